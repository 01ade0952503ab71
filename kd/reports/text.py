"""Formatting of the numbers of reports and studies as text."""

from kd.reports.metrics import class_keys
from kd.system.errors import counted, printable

NOT_KNOWN = "-"


def mean_text(score: dict | None, digits: int = 4, n: int | None = None) -> str:
    """Format `mean_sd`: `0.1234 ± 0.0012 (n = 3)`, or `-` for None.

    The part with `±` is omitted without a standard deviation, the brackets without n.
    """
    if score is None:
        return NOT_KNOWN
    text = f"{score['mean']:.{digits}f}"
    if score["sd"] is not None:
        text += f" ± {score['sd']:.{digits}f}"
    return text if n is None else f"{text} (n = {n})"


def difference_texts(gap: dict, digits: int = 4, factor: float = 1) -> tuple[str, str]:
    """Format a difference and its interval: (`+0.0123`, `[-0.0012, +0.0200]`).

    `factor` converts to another unit: 100 for percentage points.
    """
    low = f"{factor * gap['low']:+.{digits}f}"
    high = f"{factor * gap['high']:+.{digits}f}"
    return f"{factor * gap['mean']:+.{digits}f}", f"[{low}, {high}]"


def difference_text(gap: dict) -> str:
    """Format a difference with its interval: `+0.0123 [-0.0012, +0.0200]`."""
    return " ".join(difference_texts(gap))


def units_text(patients: int, unknown: int) -> str:
    """Format what images are of: `77 patients`, or `84 images, whose patients are not known`.

    patients  number of known patients
    unknown   number of images whose patients are not known
    """
    known = counted(patients, "patient", "patients")
    if not unknown:
        return known
    images = counted(unknown, "image, whose patient is", "images, whose patients are")
    return f"{known} and {images} not known" if patients else f"{images} not known"


def flow_text(flow: list[dict]) -> list[str]:
    """Format what became of the images (`data.flow` of a report) as a list in Markdown.

    The number of excluded images is negative in a report, and positive here.
    """
    lines = []
    for step in flow:
        patients = ""
        if step["patients"]:
            patients = f", {counted(step['patients'], 'known patient', 'known patients')}"
        lines.append(f"- {step['step']}: {abs(step['images'])}{patients}")
    return lines


def report_text(report: dict, classes: tuple[str, ...]) -> str:
    """Format the dictionary of `metrics.classification_report` as the table of scikit-learn."""
    names = [*class_keys(classes), "macro avg", "weighted avg"]
    words = {name: printable(name) for name in names}
    width = max(map(len, words.values()))
    columns = ("precision", "recall", "f1-score")
    heads = "".join(f"{column:>11}" for column in (*columns, "support"))
    lines = [" " * width + heads]
    for name in names:
        cells = [_cell(report[name][column]) for column in columns]
        lines.append(f"{words[name]:<{width}}{''.join(cells)}{int(report[name]['support']):>11}")
    total = int(report["macro avg"]["support"])
    lines.append(f"{'accuracy':<{width}}{'':>22}{report['accuracy']:>11.4f}{total:>11}")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    text = NOT_KNOWN if value is None else f"{value:.4f}"
    return f"{text:>11}"
