"""The card of a run: card.md to pass on, card.json with all of its values."""

from pathlib import Path

from kd.config.layout import RunPaths
from kd.studies.card_sizes import measured_sizes, sizes_text
from kd.studies.model_card import Licences, describe, text
from kd.system.console import log
from kd.system.files import write_json, write_text


def write_card(folder: Path, device_name: str, licences: Licences) -> dict:
    """Write card.md and card.json to the folder of a finished run, and return the card.

    Prints the comparison of the network with its teacher: size, arithmetic, latency, accuracy and
    calibration. Raises Problem as `describe` and `measured_sizes` do.
    """
    card = describe(folder, licences, []) | measured_sizes(folder, device_name)
    run = RunPaths(folder)
    write_json(run.card, card)
    write_text(run.card_text, text(card))
    log("\n".join(sizes_text(card)))
    log(f"written: {run.card_text.name} and {run.card.name} in '{folder}'")
    return card
