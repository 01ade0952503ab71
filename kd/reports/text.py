"""Formatting of the numbers of reports and studies as text."""

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


def grades_text(grades: dict) -> str:
    """Format the metrics of ordered grades as one line."""
    texts = {}
    for key in ("quadratic_kappa", "referable_auc"):
        texts[key] = "undefined" if grades[key] is None else f"{grades[key]:.4f}"
    reason = f" ({grades['reason']})" if grades["reason"] else ""
    return (
        f"quadratic weighted kappa {texts['quadratic_kappa']}, AUC of referable disease"
        f" (grade >= 2) {texts['referable_auc']}{reason}"
    )


def report_text(report: dict, classes: tuple[str, ...]) -> str:
    """Format the dictionary of `metrics.classification_report` as the table of scikit-learn."""
    names = [*classes, "macro avg", "weighted avg"]
    width = max(map(len, names))
    columns = ("precision", "recall", "f1-score")
    heads = "".join(f"{column:>11}" for column in (*columns, "support"))
    lines = [" " * width + heads]
    for name in names:
        cells = [_cell(report[name][column]) for column in columns]
        lines.append(f"{name:<{width}}{''.join(cells)}{int(report[name]['support']):>11}")
    total = int(report["macro avg"]["support"])
    lines.append(f"{'accuracy':<{width}}{'':>22}{report['accuracy']:>11.4f}{total:>11}")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    text = NOT_KNOWN if value is None else f"{value:.4f}"
    return f"{text:>11}"
