"""What a table's cell holds: means over seeds, differences with intervals, and both in words."""

import numpy as np

from kd.studies.study import PARTS, Run

NOT_RUN = "-"


def of_runs(runs: dict[int, Run]) -> dict:
    """`means` of runs by seed."""
    return means({part: [run.accuracy(part) for run in runs.values()] for part in PARTS}, len(runs))


def means(values: dict[str, list[float | None]], n: int) -> dict:
    """Mean and standard deviation over seeds (None with one) of each part's known accuracies, and
    how many runs there are.
    """
    known = {part: [value for value in own if value is not None] for part, own in values.items()}
    return {
        "n": n,
        **{
            part: (
                {
                    "mean": float(np.mean(own)),
                    "sd": float(np.std(own, ddof=1)) if len(own) > 1 else None,
                }
                if own
                else None
            )
            for part, own in known.items()
        },
    }


def figures_text(cell: dict) -> str:
    """`means` in words: train / validation / test."""
    if not cell["n"]:
        return NOT_RUN
    parts = [
        (
            f"{own['mean']:.4f}" + (f" ± {own['sd']:.4f}" if own["sd"] is not None else "")
            if (own := cell[part])
            else NOT_RUN
        )
        for part in PARTS
    ]
    return f"{' / '.join(parts)} (n = {cell['n']})"


def gap_text(gap: dict | None) -> tuple[str, str]:
    """(a difference with its interval, what it says) in words."""
    if gap is None:
        return NOT_RUN, NOT_RUN
    return (
        f"{gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}] (n = {gap['seeds']})",
        gap["says"],
    )
