"""The text that a script prints at the end of a run."""

from pathlib import Path

from kd.reports.headline import headline
from kd.training.selection import best, column


def summary(report: dict, folder: Path) -> str:
    """Return the accuracies of a report and the folder of the run as text of several lines."""
    lines = [f"{'':>6}{'epoch':>7}{'train':>9}{'valid':>9}{'test':>9}"]
    for name in ("best", "last"):
        row = report["results"][name]
        cells = [_cell(row[f"{split}_accuracy"]) for split in ("train", "valid", "test")]
        lines.append(f"{name:>6}{row['epoch']:>7}{''.join(cells)}")
    lines += _selection_lines(report)
    if report["results"]["reason"]:
        lines.append(f"({report['results']['reason']})")
    metrics = headline(report["evidence"])
    if metrics:
        lines += [f"test split, {line}" for line in metrics[:-1]]
        lines.append(metrics[-1])
    if report["teacher"]:
        lines += _teacher_lines(report["teacher"])
    lines.append(f"results: {folder}")
    return "\n".join(lines)


def _selection_lines(report: dict) -> list[str]:
    """Return a line on what made an epoch the best; none if it was the accuracy, as by default."""
    select, history = report["settings"].get("select", "accuracy"), report["history"]
    chosen = any(phase["labelled"] for phase in history["phases"]) and history["ended"] != "stopped"
    if select == "accuracy" or not chosen:
        return []
    epoch = report["results"]["best"]["epoch"]
    [value] = [row[column(select)] for row in history["epochs"] if row["epoch"] == epoch]
    return [f"(best: {best(select)}, {value:.4f})"]


def _cell(accuracy: float | None) -> str:
    return f"{'-' if accuracy is None else format(accuracy, '.4f'):>9}"


def _teacher_lines(teacher: dict) -> list[str]:
    """Return a line for each teacher, and for several teachers also one for their ensemble."""
    shown = list(teacher["members"])
    if len(shown) == 1:
        shown = [teacher]
    elif shown:
        shown.append(teacher)
    lines = [
        f"teacher {one['name']}: valid {one['valid_accuracy']:.4f}, test {one['test_accuracy']:.4f}"
        for one in shown
    ]
    if teacher["disagreement"] is not None:
        share = 100 * teacher["disagreement"]
        lines.append(f"two teachers disagree on {share:.1f} % of the test images")
    return lines
