"""What shifted images do to a network.

Its answers to all versions, scores by shift and strength, and these as tables.
"""

from collections.abc import Callable

import numpy as np
import torch

from kd.data.shifts import SHIFTS, STRENGTHS, shifted
from kd.data.views import Views
from kd.reports.statistics import mean_sd
from kd.reports.text import NOT_KNOWN, difference_texts, mean_text
from kd.studies.outputs import left_out_lines
from kd.system.markdown import table


def _versions() -> tuple[tuple[str, int], ...]:
    versions = [("", 0)]
    for name in SHIFTS:
        versions += [(name, strength) for strength in range(1, STRENGTHS + 1)]
    return tuple(versions)


# (shift, strength) of every version of an image: clean, which is no shift's, then shift by shift.
VERSIONS = _versions()
COLUMNS = ("clean", *SHIFTS, "all")


@torch.inference_mode()
def answers(network: Callable[[torch.Tensor], torch.Tensor], views: Views) -> np.ndarray:
    """Logits of every version and image, in order: float32 [V, N, K].

    network: images [B, 3, S, S] in 0..1 -> logits [B, K].
    """
    logits = [[] for _ in VERSIONS]
    for batch in views.epoch(0):
        for own, (name, strength) in zip(logits, VERSIONS):
            images = shifted(batch.images, batch.slots, name, strength)
            own.append(network(images).float().cpu())
    return torch.stack([torch.cat(own) for own in logits]).numpy()


def scores(right: np.ndarray) -> np.ndarray:
    """bool [V, N] -> each image's score in each of COLUMNS, [8, N].

    Of a shift it is the share of strengths at which the image is right.
    """
    shifts = right[1:].reshape(len(SHIFTS), STRENGTHS, -1).mean(1)
    return np.concatenate([right[:1], shifts, shifts.mean(0, keepdims=True)])


def accuracies(right: np.ndarray) -> dict:
    """bool [seeds, V, N] -> accuracies over seeds, by shift and strength and of each of COLUMNS.

    `retained`: all shifted versions over the clean one (None where that is 0).
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
    """shift.json as Markdown that reads well in a terminal, too."""
    data = result["data"]
    networks = result["networks"]
    lines = [
        (
            f"# Shifted test images: {data['name']}, {data['images']} images of {data['patients']}"
            f" patients, {data['image_size']} px"
        ),
        "",
        (
            "Mean over seeds ± standard deviation; of a shift the mean over its strengths;"
            " retained: all over clean. Of the intervals the variance is that between patients"
            " and, where n > 1, between seeds; of those of 95 % one in twenty misses the truth,"
            f" and there are {sum(len(one['gaps']) for one in result['differences'])} here."
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
    """All networks by the mean over each shift's strengths."""
    rows = []
    for network in networks:
        means = [*network["mean"].values(), network["retained"]]
        rows.append([network["caption"], str(network["n"]), *map(_accuracy_text, means)])
    return [*table(["accuracy", "n", *COLUMNS, "retained"], rows, aligned=True), ""]


def _shift_table(name: str, shift: dict, networks: list[dict]) -> list[str]:
    """All networks by the strength of one shift."""
    header = [f"{name} ({shift['unit']})", "clean", *(f"{a:g}" for a in shift["strengths"])]
    rows = []
    for network in networks:
        means = [network["mean"]["clean"], *network["accuracy"][name]]
        rows.append([network["caption"], *map(_accuracy_text, means)])
    return [*table(header, rows, aligned=True), ""]


def _differences_table(one: dict) -> list[str]:
    """One network minus another, in each of COLUMNS."""
    names = f"{one['of']} minus {one['minus']} (n = {len(one['seeds'])})"
    rows = []
    for column, gap in one["gaps"].items():
        cells = [*difference_texts(gap), gap["says"]] if gap else [NOT_KNOWN] * 3
        rows.append([column, *cells])
    return [*table([names, "difference", "95 % interval", ""], rows, aligned=True), ""]


def _accuracy_text(score: dict | None) -> str:
    return mean_text(score, digits=3)
