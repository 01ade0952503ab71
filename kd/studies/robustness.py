"""What shifted pictures do to a network: its answers to all versions, scores by shift and strength,
and these as tables.
"""

from collections.abc import Callable

import numpy as np
import torch

from kd.data.shifts import SHIFTS, STRENGTHS, shifted
from kd.data.views import Views
from kd.system.errors import printable

# (shift, strength) of every version of a picture: clean, which is no shift's, then shift by shift.
VERSIONS = (("", 0), *((name, strength) for name in SHIFTS for strength in range(1, STRENGTHS + 1)))


@torch.inference_mode()
def answers(network: Callable[[torch.Tensor], torch.Tensor], views: Views) -> np.ndarray:
    """Logits of every version and slot, in order: float32 [V, n, K]. network: images [B, 3, S, S]
    in 0..1 -> logits [B, K].
    """
    logits = [[] for _ in VERSIONS]
    for batch in views.epoch(0):
        for own, version in zip(logits, VERSIONS):
            own.append(network(shifted(batch.images, batch.slots, *version)).float().cpu())
    return torch.stack([torch.cat(own) for own in logits]).numpy()


COLUMNS = ("clean", *SHIFTS, "all")


def scores(right: np.ndarray) -> np.ndarray:
    """bool [V, n] -> each slot's score in each of COLUMNS, [8, n]; of a shift the share of
    strengths that it is right in.
    """
    shifts = right[1:].reshape(len(SHIFTS), STRENGTHS, -1).mean(1)
    return np.concatenate([right[:1], shifts, shifts.mean(0, keepdims=True)])


def account(right: np.ndarray) -> dict:
    """bool [seeds, V, n] -> accuracies over seeds: by shift and strength, and of each of COLUMNS.

    `retained`: all shifted versions over the clean one (None where that is 0).
    """
    columns = np.stack([scores(own).mean(1) for own in right])
    shifts = right[:, 1:].mean(2).reshape(len(right), len(SHIFTS), STRENGTHS)
    clean = columns[:, 0]
    return {
        "n": len(right),
        "mean": {column: _stat(columns[:, k]) for k, column in enumerate(COLUMNS)},
        "accuracy": {
            name: [_stat(values) for values in shifts[:, k].T] for k, name in enumerate(SHIFTS)
        },
        "retained": _stat(columns[:, -1] / clean) if clean.all() else None,
    }


def _stat(values: np.ndarray) -> dict:
    """Mean and standard deviation over seeds (None with one)."""
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
    }


def markdown(result: dict) -> str:
    """All of it as Markdown that reads well in a terminal, too."""
    data, networks = result["data"], result["networks"]
    tables = [
        [
            ["accuracy", "n", *COLUMNS, "retained"],
            *(
                [
                    row["caption"],
                    str(row["n"]),
                    *map(_figure, row["mean"].values()),
                    _figure(row["retained"]),
                ]
                for row in networks
            ),
        ]
    ]
    tables += [
        [
            [
                f"{name} ({shift['unit']})",
                "clean",
                *(f"{amount:g}" for amount in shift["strengths"]),
            ],
            *(
                [row["caption"], *map(_figure, [row["mean"]["clean"], *row["accuracy"][name]])]
                for row in networks
            ),
        ]
        for name, shift in result["shifts"].items()
    ]
    tables += [
        [
            [
                f"{one['of']} minus {one['minus']} (n = {len(one['seeds'])})",
                "difference",
                "95 % interval",
                "",
            ],
            *(
                (
                    [
                        column,
                        f"{own['mean']:+.4f}",
                        f"[{own['low']:+.4f}, {own['high']:+.4f}]",
                        own["says"],
                    ]
                    if own
                    else [column, *"---"]
                )
                for column, own in one["gaps"].items()
            ),
        ]
        for one in result["differences"]
    ]
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
    ]
    for table in tables:
        widths = [max(map(len, cells)) for cells in zip(*table)]
        table.insert(1, ["-" * width for width in widths])
        lines += [
            *(
                f"| {' | '.join(printable(cell).ljust(width) for cell, width in zip(row, widths))} |"
                for row in table
            ),
            "",
        ]
    lines += (
        ["# Left out", "", *(f"- {printable(text)}" for text in result["left_out"]), ""]
        if result["left_out"]
        else []
    )
    return "\n".join(lines)


def _figure(score: dict | None) -> str:
    if score is None:
        return "-"
    return f"{score['mean']:.3f}" + ("" if score["sd"] is None else f" ± {score['sd']:.3f}")
