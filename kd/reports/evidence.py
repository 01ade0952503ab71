"""The report's `evidence`: metrics of predictions beyond accuracy, with intervals."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from kd.config.reporting import DEFAULT_RULE, Reporting, parse_rule
from kd.data.index import Index
from kd.reports import metrics
from kd.reports.calibration import calibration, probabilities
from kd.reports.groups import columns_of, groups_of
from kd.reports.measures import MEASURES, Measure, ece_of_calibrated, measure
from kd.reports.operating_point import OperatingPoint, fix_threshold
from kd.reports.positive import Positive, positive_of
from kd.reports.resampled import Predicted
from kd.system.errors import Problem, counted

FEW_PATIENTS = 20  # below which a subgroup is called small


@dataclass(frozen=True)
class Labelled:
    """Labelled images with the outputs of a network.

    logits    [N, K]
    labels    [N]
    clusters  the patient of each image [N]; the study or the image itself if he is not known
    studies   the study of each image, None where it is not known
    columns   {name of a column: the text of each image}, for subgroups
    """

    logits: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray
    studies: Sequence[Hashable | None]
    columns: Mapping[str, Sequence[str]]


def labelled(index: Index, rows: np.ndarray, logits: np.ndarray, how: Reporting) -> Labelled:
    """Return rows [N] of an index, each with a label, and their logits [N, K].

    Raises Problem as `columns_of` does.
    """
    columns = {}
    for name, texts in columns_of(index, how.subgroups).items():
        columns[name] = [texts[row] for row in rows]
    return Labelled(
        logits,
        index.labels[rows],
        np.array([index.unit(row) for row in rows]),
        [index.samples[row].known_study for row in rows],
        columns,
    )


def check(index: Index, how: Reporting) -> None:
    """Raise Problem if settings of the metrics do not fit the classes or columns of an index."""
    positive = positive_of(index.classes, index.graded, how.positive)
    columns_of(index, how.subgroups)
    parse_rule(how.operating_point or DEFAULT_RULE)
    given = {"--operating-point": how.operating_point, "--prevalence": how.prevalence}
    for flag, value in given.items():
        if value is not None and positive is None:
            raise Problem(
                f"{flag} is not valid for {len(index.classes)} classes, none of which is the"
                f" positive one. Use two classes, or ordered grades (--graded), or remove {flag}."
            )


def fixed_point(
    logits: np.ndarray,
    labels: np.ndarray,
    temperature: float | None,
    positive: Positive | None,
    how: Reporting,
) -> OperatingPoint | None:
    """Return the operating point of --operating-point, fixed on validation images.

    None if no class is positive. logits [N, K], labels [N] of the validation split.
    """
    if positive is None:
        return None
    chosen = list(positive.classes)
    likely = probabilities(logits, temperature or 1.0)[:, chosen].sum(1)
    return fix_threshold(
        parse_rule(how.operating_point or DEFAULT_RULE), likely, np.isin(labels, chosen)
    )


def summarise(
    own: Labelled,
    index: Index,
    temperature: float | None,
    point: OperatingPoint | None,
    how: Reporting,
) -> dict:
    """Return the metrics beyond accuracy for labelled images, at least one.

    temperature  fitted on other data, for the calibration after scaling; None if none was found
    point        the operating point, fixed on other data; None if no class is positive
    """
    logits, labels = own.logits, own.labels
    averages = metrics.macro_averages(logits, labels)
    positive = positive_of(index.classes, index.graded, how.positive)
    predicted = Predicted(
        logits=logits,
        labels=labels,
        clusters=own.clusters,
        studies=own.studies,
        temperature=temperature or 1.0,
        positive=None if positive is None else positive.classes,
        operating_point=point,
        graded=index.graded,
    )
    return {
        "macro_f1": averages["f1-score"],
        "balanced_accuracy": averages["recall"],
        "study": metrics.by_study(logits, labels, own.studies),
        "calibration": calibration(logits, labels, temperature)
        | {"ece_if_calibrated": ece_of_calibrated(predicted)},
        "grades": metrics.grades(logits, labels) if index.graded else None,
        "positive": None if positive is None else positive.name,
        "operating_point": None if point is None else asdict(point),
        "prevalence": how.prevalence,
        "metrics": measure(predicted, prevalence=how.prevalence),
        "subgroups": _subgroups(predicted, own.columns, how.prevalence),
    }


def _subgroups(
    predicted: Predicted, columns: Mapping[str, Sequence[str]], prevalence: float | None
) -> dict:
    """Return {column: {group: its images, patients and metrics}}.

    Metrics that the data or settings do not allow in any group are left out.
    """
    names = [name for name, one in MEASURES.items() if applies(one, predicted, prevalence)]
    return {
        column: {
            group: _subgroup(predicted, rows, names, prevalence)
            for group, rows in groups_of(column, texts).items()
        }
        for column, texts in columns.items()
    }


def applies(one: Measure, predicted: Predicted, prevalence: float | None) -> bool:
    """Return whether a metric can be computed at all for such images and settings."""
    has = {
        "positive": predicted.positive is not None,
        "point": predicted.operating_point is not None,
        "prevalence": prevalence is not None,
        "studies": any(study is not None for study in predicted.studies or ()),
        "grades": predicted.graded,
    }
    return all(has[need] for need in one.needs)


def _subgroup(
    predicted: Predicted, rows: np.ndarray, names: list[str], prevalence: float | None
) -> dict:
    own = replace(
        predicted,
        logits=predicted.logits[rows],
        labels=predicted.labels[rows],
        clusters=predicted.clusters[rows],
        studies=[predicted.studies[row] for row in rows],
    )
    patients = len(np.unique(own.clusters))
    note = None
    if patients < FEW_PATIENTS:
        few = counted(patients, "patient", "patients")
        note = f"only {few}: too few to conclude much from this group"
    return {
        "images": len(rows),
        "patients": patients,
        "note": note,
        "metrics": measure(own, names, prevalence),
    }
