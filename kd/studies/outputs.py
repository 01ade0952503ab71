"""Output of a study: files and printed text."""

from pathlib import Path

from kd.system.console import log
from kd.system.errors import printable
from kd.system.files import write_json, write_text
from kd.system.messages import bounded


def write_outputs(root: Path, name: str, text: str, result: dict, figures: str) -> None:
    """Write NAME.md and NAME.json and print the text. `figures` names the other written files."""
    write_text(root / f"{name}.md", text)
    write_json(root / f"{name}.json", result)
    log(text)
    log(f"written: {root}/{name}.md, {name}.json and {figures}")


def left_out_lines(left_out: list[str]) -> list[str]:
    """Return the lines of Markdown that list the exclusions; empty if there are none."""
    if not left_out:
        return []
    return ["# Excluded", "", *(f"- {bounded(printable(text))}" for text in left_out), ""]
