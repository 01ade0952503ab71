"""What a table's cell holds: mean accuracies over seeds and differences, and both as text."""

from kd.reports.statistics import mean_sd
from kd.reports.text import NOT_KNOWN, difference_text, mean_text
from kd.studies.runs import SPLITS, Run


def of_runs(runs: dict[int, Run]) -> dict:
    """`means` of runs by seed."""
    accuracies = {}
    for split in SPLITS:
        accuracies[split] = [run.accuracy(split) for run in runs.values()]
    return means(accuracies, len(runs))


def means(accuracies: dict[str, list[float | None]], n: int) -> dict:
    """`mean_sd` of each split's known accuracies (None without any), and how many runs there are.

    accuracies: split -> one of each run, None where unknown; n: the number of runs.
    """
    cell = {"n": n}
    for split, values in accuracies.items():
        known = [value for value in values if value is not None]
        cell[split] = mean_sd(known) if known else None
    return cell


def accuracies_text(cell: dict) -> str:
    """`means` as text: train / validation / test."""
    if not cell["n"]:
        return NOT_KNOWN
    return f"{' / '.join(mean_text(cell[split]) for split in SPLITS)} (n = {cell['n']})"


def gap_texts(gap: dict | None) -> list[str]:
    """[a difference with its interval, what it says]."""
    if gap is None:
        return [NOT_KNOWN, NOT_KNOWN]
    return [f"{difference_text(gap)} (n = {gap['seeds']})", gap["says"]]
