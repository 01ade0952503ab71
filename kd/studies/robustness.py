"""Robustness of networks to shifted images.

Logits for all versions of the images, scores by shift and strength, and tables of the scores.
"""

from collections.abc import Callable

import numpy as np
import torch

from kd.data.shifts import SHIFTS, STRENGTHS, shifted
from kd.data.views import Views
from kd.reports.statistics import mean_sd
from kd.reports.text import NOT_KNOWN, difference_texts, mean_text, units_text
from kd.studies.cells import EXPLANATION
from kd.studies.outputs import left_out_lines
from kd.system.console import progress
from kd.system.markdown import table


def _versions() -> tuple[tuple[str, int], ...]:
    versions = [("", 0)]
    for name in SHIFTS:
        versions += [(name, strength) for strength in range(1, STRENGTHS + 1)]
    return tuple(versions)


# (shift, strength) of every version of an image: the clean one without a shift, then each shift.
VERSIONS = _versions()
COLUMNS = ("clean", *SHIFTS, "all")


@torch.inference_mode()
def answers(network: Callable[[torch.Tensor], torch.Tensor], views: Views) -> np.ndarray:
    """Return the logits of every version and image, in order: float32 [V, N, K].

    network: images [B, 3, S, S] in 0..1 -> logits [B, K].
    """
    logits = [[] for _ in VERSIONS]
    with progress(len(views), "shifting and predicting", "images", short=True) as shown:
        for batch in views.epoch(0):
            for own, (name, strength) in zip(logits, VERSIONS):
                images = shifted(batch.images, batch.slots, name, strength)
                own.append(network(images).float().cpu())
            shown.update(len(batch.slots))
    return torch.stack([torch.cat(own) for own in logits]).numpy()


def scores(right: np.ndarray) -> np.ndarray:
    """Return each image's score in each of COLUMNS: [8, N].

    right: whether each image is classified correctly in each version, bool [V, N]. The score for a
    shift is the fraction of its strengths at which the image is classified correctly.
    """
    shifts = right[1:].reshape(len(SHIFTS), STRENGTHS, -1).mean(1)
    return np.concatenate([right[:1], shifts, shifts.mean(0, keepdims=True)])


def accuracies(right: np.ndarray) -> dict:
    """Return accuracies over seeds, by shift and strength and for each of COLUMNS.

    right: whether each image is classified correctly, bool [seeds, V, N]. `retained` is the
    accuracy on all shifted versions divided by the clean accuracy, or None if the latter is 0.
    """
    columns = np.stack([scores(own).mean(1) for own in right])
    shifts = right[:, 1:].mean(2).reshape(len(right), len(SHIFTS), STRENGTHS)
    by_strength = {}
    for number, name in enumerate(SHIFTS):
        by_strength[name] = [mean_sd(values) for values in shifts[:, number].T]
    clean = columns[:, 0]
    return {
        "n": len(right),
        "mean": {column: mean_sd(columns[:, k]) for k, column in enumerate(COLUMNS)},
        "accuracy": by_strength,
        "retained": mean_sd(columns[:, -1] / clean) if clean.all() else None,
    }


def markdown(result: dict) -> str:
    """Format shift.json as Markdown that is also readable in a terminal."""
    data = result["data"]
    networks = result["networks"]
    lines = [
        (
            f"# Shifted test images: {data['name']}, {data['images']} images"
            f" ({units_text(data['patients'], data['without_patient'])}), {data['image_size']} px"
        ),
        "",
        (
            "Test accuracy: mean over seeds ± standard deviation. The column of a shift is the mean"
            " over its strengths; retained = all / clean. The differences have 95 % intervals."
            f" {EXPLANATION}"
        ),
        "",
        *_means_table(networks),
    ]
    for name, shift in result["shifts"].items():
        lines += _shift_table(name, shift, networks)
    for one in result["differences"]:
        lines += _differences_table(one)
    return "\n".join([*lines, *left_out_lines(result["left_out"])])


def _means_table(networks: list[dict]) -> list[str]:
    """Return the table of all networks with the mean over each shift's strengths."""
    rows = []
    for network in networks:
        means = [*network["mean"].values(), network["retained"]]
        rows.append([network["caption"], str(network["n"]), *map(_accuracy_text, means)])
    return [*table(["network", "n", *COLUMNS, "retained"], rows, aligned=True), ""]


def _shift_table(name: str, shift: dict, networks: list[dict]) -> list[str]:
    """Return the table of all networks by the strength of one shift."""
    header = [f"{name} ({shift['unit']})", "clean", *(f"{a:g}" for a in shift["strengths"])]
    rows = []
    for network in networks:
        means = [network["mean"]["clean"], *network["accuracy"][name]]
        rows.append([network["caption"], *map(_accuracy_text, means)])
    return [*table(header, rows, aligned=True), ""]


def _differences_table(one: dict) -> list[str]:
    """Return the table of one network minus another, for each of COLUMNS."""
    names = f"{one['of']} minus {one['minus']} (n = {len(one['seeds'])})"
    rows = []
    for column, gap in one["gaps"].items():
        cells = [*difference_texts(gap), gap["says"]] if gap else [NOT_KNOWN] * 3
        rows.append([column, *cells])
    return [*table([names, "difference", "95 % interval", "verdict"], rows, aligned=True), ""]


def _accuracy_text(score: dict | None) -> str:
    return mean_text(score, digits=3)
