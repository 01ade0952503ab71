"""Cells of tables: mean accuracies over seeds and differences, as values and as text."""

from kd.reports.statistics import mean_sd
from kd.reports.text import NOT_KNOWN, difference_text, mean_text
from kd.reports.verdicts import MIN_DISCORDANT, MIN_SEEDS
from kd.studies.runs import SPLITS, Run
from kd.studies.unfinished import Unfinished, count_states, n_text

# How the differences on a page have to be read.
EXPLANATION = (
    "Differences are in test accuracy; n is the number of seeds. The 95 % intervals hold for one"
    " comparison each. They include the variance between patients and, for n > 1, between seeds;"
    " with n = 1 the variance between seeds is missing. For n > 1, the variance between seeds is"
    " the mean over a column. If a difference stands in several tables, its intervals therefore"
    " differ: quote the first one on this page."
    " Verdicts follow p-values that are adjusted for the number of comparisons in their column"
    f" (Holm's method). There is no verdict below {MIN_SEEDS} seeds, if two networks differ on"
    f" fewer than {MIN_DISCORDANT} patients (images, if patients are not known), or if a network"
    " predicts one class only. Baseline: the same network trained alone. Differences in other"
    " metrics, and in accuracy beside them, have intervals from resamples, which are slightly"
    " different. That of balanced accuracy can be much narrower, because it does not depend on how"
    " many patients of each class there are."
)


def of_runs(runs: dict[int, Run], unfinished: list[Unfinished] = ()) -> dict:
    """Return the `means` of runs, which are given by seed, and the states of `unfinished` runs."""
    accuracies = {}
    for split in SPLITS:
        accuracies[split] = [run.accuracy(split) for run in runs.values()]
    return means(accuracies, len(runs)) | {"unfinished": count_states(unfinished)}


def means(accuracies: dict[str, list[float | None]], n: int) -> dict:
    """Return the `mean_sd` of each split's accuracies, and the number of runs as `n`.

    A split whose accuracy is not known of every run has None: a mean over the others would be taken
    for that of `n` runs. With --keep-matched, these would be the seeds in which fine-tuning helped.

    accuracies  split -> one value per run, None where unknown
    n           the number of runs
    """
    cell = {"n": n}
    for split, values in accuracies.items():
        cell[split] = mean_sd(values) if values and None not in values else None
    return cell


def accuracies_text(cell: dict) -> str:
    """Format `means` as text: train / validation / test, the number of runs and their `flags`."""
    n = n_text(cell["n"], cell.get("unfinished", {}), cell.get("flags", ()))
    if not cell["n"]:
        return n
    return f"{' / '.join(mean_text(cell[split]) for split in SPLITS)} {n}"


def gap_texts(gap: dict | None) -> list[str]:
    """Return [a difference with its interval and number of seeds, its verdict] as texts."""
    if gap is None:
        return [NOT_KNOWN, NOT_KNOWN]
    return [f"{difference_text(gap)} (n = {gap['seeds']})", gap["says"]]
