"""The five metrics that are printed: what a reader needs first; the report has all others."""

from collections.abc import Mapping

from kd.config.reporting import DEFAULT_RULE
from kd.system.errors import counted, printable

_TWO_CLASSES = ("accuracy", "auroc", "sensitivity", "specificity", "ece")
_STUDIES = ("kappa_by_study", "auroc", "sensitivity", "specificity", "ece")
_GRADES = ("accuracy", "quadratic_kappa", "referable_auc", "balanced_accuracy", "ece")
_GRADES_AT_POINT = ("accuracy", "quadratic_kappa", "referable_auc", "sensitivity", "specificity")
_CLASSES = ("accuracy", "balanced_accuracy", "auroc", "kappa", "ece")
WORDS = {
    "accuracy": "accuracy",
    "accuracy_by_study": "accuracy by study",
    "accuracy_by_patient": "accuracy by patient",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "auroc": "AUROC",
    "auprc": "average precision",
    "kappa": "Cohen's kappa",
    "kappa_by_study": "Cohen's kappa by study",
    "quadratic_kappa": "quadratic weighted kappa",
    "referable_auc": "AUC of referable disease (grade >= 2)",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "ppv_at_prevalence": "PPV at the stated prevalence",
    "npv_at_prevalence": "NPV at the stated prevalence",
    "brier": "Brier score",
    "nll": "NLL",
    "ece": "ECE, calibrated",
}


def words_of(metric: str) -> str:
    """Return the name of a metric as a reader knows it."""
    return WORDS.get(metric, metric.replace("_", " "))


def headline(evidence: Mapping) -> list[str]:
    """Return metrics with 95 % intervals as lines, the last of which says where the others are.

    These are five metrics of all images, and two of each subgroup. Reports of earlier versions have
    none, and the list is then empty.
    """
    if not evidence["metrics"]:
        return []
    lines = [_line(evidence, name) for name in names_of(evidence)]
    count = len(evidence["metrics"])
    return [
        *lines,
        *_subgroup_lines(evidence),
        f"({count} metrics, with 95 % intervals over patients: `evidence` in the JSON file)",
    ]


def names_of(evidence: Mapping) -> tuple[str, ...]:
    """Return the names of the five metrics, which depend on the classes and on known studies.

    Of grades, sensitivity and specificity are among them if --operating-point asked for one.
    """
    if evidence["grades"] is not None:
        point = evidence["operating_point"]
        asked = point is not None and point["rule"] != DEFAULT_RULE
        return _GRADES_AT_POINT if asked else _GRADES
    if evidence["positive"] is None:
        return _CLASSES
    by_study = evidence["metrics"].get("kappa_by_study", {"value": None})
    return _TWO_CLASSES if by_study["value"] is None else _STUDIES


def _subgroup_lines(evidence: Mapping) -> list[str]:
    """Return a line for each group of images: its size and two metrics."""
    names = [name for name in names_of(evidence) if name not in ("sensitivity", "specificity")]
    lines = []
    for column, groups in evidence["subgroups"].items():
        for group, own in groups.items():
            values = [_value(WORDS[name], own["metrics"][name]) for name in names[:2]]
            images = counted(own["images"], "image", "images")
            patients = own["note"] or counted(own["patients"], "patient", "patients")
            name = f"{printable(column)} {printable(group)} ({images}, {patients})"
            lines.append(f"{name}: {', '.join(values)}")
    return lines


def _line(evidence: Mapping, name: str) -> str:
    own, words = evidence["metrics"][name], WORDS[name]
    if name in ("sensitivity", "specificity"):
        words += f" for {printable(evidence['positive'])} ({evidence['operating_point']['rule']})"
    if name == "ece" and evidence["calibration"]["temperature"] is None:
        words = "ECE, without temperature scaling"
    return _value(words, own)


def _value(words: str, own: Mapping) -> str:
    """Return a metric with its interval, or why there is none."""
    if own["value"] is None:
        return f"{words}: undefined ({own['reason']})"
    text = f"{words}: {own['value']:.4f}"
    if own["low"] is None:
        return f"{text} (no interval: {own['reason']})"
    return f"{text} [{own['low']:.4f}, {own['high']:.4f}]"
