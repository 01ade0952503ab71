"""Every metric of a classifier and differences of two, with intervals by resampling of patients."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kd.reports import intervals
from kd.reports import measure_values as of
from kd.reports.calibration import probabilities
from kd.reports.resampled import Predicted, Resampled, bin_of
from kd.reports.resampling import SEED, Resamples, draw

ECE_DRAWS = 200
ONE_CLASS = "the labels contain only one class"
ONE_ANSWER = "labels and predictions contain only one class"


@dataclass(frozen=True)
class Measure:
    """A metric.

    what       what it is, in a few words
    compute    its value on the data and on each resample [S]; nan where it is undefined
    rests_on   the patients that it rests on (see `measure_values`)
    undefined  why it is undefined if all that it needs is there
    needs      some of "positive", "point", "prevalence", "studies", "grades"
    low, high  its range
    interval   the function of `intervals` for its kind
    rates      whether it is a mean of rates of classes, so that it cannot vary less than a mean
               over independent images. If one class has no variance by chance, it would
    bayes      for a predictive value at a prevalence: the rate of its answer among the images that
               should have it, and the rate of the other answer among all others
    rises      whether higher is better
    """

    what: str
    compute: Callable[[Resampled], np.ndarray]
    rests_on: Callable[[Resampled], list[dict]]
    undefined: str = ""
    needs: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    interval: Callable[..., tuple[float, float]] = intervals.of_share
    rates: bool = False
    bayes: tuple[str, ...] = ()
    rises: bool = True


_POINT = ("positive", "point")
_BAYES = ("positive", "point", "prevalence")
_NO_BAYES = "sensitivity or specificity is undefined, or no image at all would have this answer"

MEASURES = {
    "accuracy": Measure("accuracy by image", of.accuracy, of.all_images),
    "accuracy_by_study": Measure(
        "accuracy by study, of the mean probability over its views",
        of.accuracy_by_study,
        of.all_studies,
        "every study has several labels",
        ("studies",),
    ),
    "accuracy_by_patient": Measure(
        "mean over patients of the share of their images that are right",
        of.accuracy_by_patient,
        of.all_patients,
    ),
    "balanced_accuracy": Measure(
        "mean recall of the classes that are present",
        of.balanced_accuracy,
        of.each_class,
        rates=True,
    ),
    "macro_f1": Measure(
        "mean F1 of the classes that are present", of.macro_f1, of.each_class, rates=True
    ),
    "auroc": Measure(
        "area under the ROC curve of the positive class; one against rest, macro",
        of.auroc,
        of.each_class_and_rest,
        ONE_CLASS,
    ),
    "auprc": Measure(
        "average precision of the positive class; one against rest, macro",
        of.auprc,
        of.each_class_and_rest,
        ONE_CLASS,
    ),
    "kappa": Measure("Cohen's kappa by image", of.kappa, of.each_class, ONE_ANSWER, low=-1.0),
    "kappa_by_study": Measure(
        "Cohen's kappa by study",
        of.kappa_by_study,
        of.each_class_of_studies,
        "labels and predictions of studies contain only one class",
        ("studies",),
        low=-1.0,
    ),
    "quadratic_kappa": Measure(
        "Cohen's kappa of grades with quadratic weights",
        of.quadratic_kappa,
        of.each_class,
        "labels and predictions contain only one grade",
        ("grades",),
        low=-1.0,
    ),
    "referable_auc": Measure(
        "area under the ROC curve of grade >= 2",
        of.referable_auc,
        of.referable_and_rest,
        "all images are below grade 2, or none is, or there are fewer than three grades",
        ("grades",),
    ),
    "sensitivity": Measure(
        "sensitivity at the operating point",
        of.sensitivity,
        of.positives,
        "no image is positive",
        _POINT,
    ),
    "specificity": Measure(
        "specificity at the operating point",
        of.specificity,
        of.negatives,
        "no image is negative",
        _POINT,
    ),
    "ppv": Measure(
        "positive predictive value at the operating point",
        of.ppv,
        of.flagged,
        "no image is called positive",
        _POINT,
    ),
    "npv": Measure(
        "negative predictive value at the operating point",
        of.npv,
        of.unflagged,
        "no image is called negative",
        _POINT,
    ),
    "ppv_at_prevalence": Measure(
        "positive predictive value at the stated prevalence (Bayes)",
        of.ppv_at_prevalence,
        of.positives_and_negatives,
        _NO_BAYES,
        _BAYES,
        bayes=("sensitivity", "specificity"),
    ),
    "npv_at_prevalence": Measure(
        "negative predictive value at the stated prevalence (Bayes)",
        of.npv_at_prevalence,
        of.positives_and_negatives,
        _NO_BAYES,
        _BAYES,
        bayes=("specificity", "sensitivity"),
    ),
    "brier": Measure(
        "Brier score, summed over classes",
        of.brier,
        of.all_images,
        high=2.0,
        interval=intervals.of_loss,
        rises=False,
    ),
    "nll": Measure(
        "negative log-likelihood (nats)",
        of.nll,
        of.all_images,
        high=np.inf,
        interval=intervals.of_loss,
        rises=False,
    ),
    "ece": Measure(
        "expected calibration error",
        of.ece,
        of.all_images,
        interval=intervals.of_gap,
        rises=False,
    ),
}


def measure(
    own: Predicted,
    names: Sequence[str] | None = None,
    prevalence: float | None = None,
    resamples: Resamples | None = None,
) -> dict[str, dict]:
    """Return `value`, `low`, `high` and `reason` of metrics for one network (one seed).

    low, high  the 95 % interval, due to the choice of the patients (see `intervals`)
    reason     why the value, or only its interval, is None; otherwise None

    names       keys of MEASURES; None: all
    prevalence  of the positive class, 0..1, at which PPV and NPV are stated
    resamples   of the same patients, if there are some already (`resampling.draw`)
    """
    resamples = draw(own.clusters) if resamples is None else resamples
    state = Resampled(own, resamples, prevalence)
    return {name: _measured(MEASURES[name], state) for name in names or MEASURES}


def _measured(one: Measure, state: Resampled) -> dict:
    missing = _missing(one, state)
    if missing:
        return _result(None, None, missing)
    found = one.compute(state)
    value = float(found[0])
    if np.isnan(value):
        return _result(None, None, one.undefined)
    if one.bayes:
        return _predictive(one, value, state)
    basis, reason = _basis(one, state)
    if reason:
        return _result(value, None, reason)
    sampled = state.resamples.split(found)
    spread = intervals.spread(sampled, basis)
    if spread is None:
        return _result(value, None, intervals.NOT_DEFINED)
    if spread.variance == 0 and one.interval is not intervals.of_share:
        return _result(value, None, "it is the same for all patients")
    low, high = one.interval(sampled, spread, basis, (one.low, one.high))
    return _result(value, (max(one.low, min(low, value)), min(one.high, max(high, value))))


def _predictive(one: Measure, value: float, state: Resampled) -> dict:
    """Return a predictive value at a prevalence, with the interval of `of_predictive`."""
    rates = [_measured(MEASURES[name], state) for name in one.bayes]
    reason = next((rate["reason"] for rate in rates if rate["low"] is None), None)
    if reason:
        return _result(value, None, reason)
    odds = (1 - state.prevalence) / state.prevalence
    if one.bayes[0] == "specificity":
        odds = 1 / odds
    low, high = intervals.of_predictive(*rates, odds)
    return _result(value, (min(low, value), max(high, value)))


def _result(value: float | None, interval: tuple | None, reason: str | None = None) -> dict:
    low, high = map(float, interval) if interval else (None, None)
    return {"value": value, "low": low, "high": high, "reason": reason}


def _missing(one: Measure, state: Resampled) -> str | None:
    """Return why a metric cannot be computed at all, or None."""
    own, point = state.own, state.own.operating_point
    if "grades" in one.needs and not own.graded:
        return "the classes are not grades"
    if "studies" in one.needs and not any(study is not None for study in own.studies or ()):
        return "no image has a known study"
    if "positive" in one.needs and own.positive is None:
        return "no class is named as the positive one"
    if "point" in one.needs and point is None:
        return "there is no operating point"
    if "point" in one.needs and point.threshold is None:
        return f"there is no operating point: {point.reason}"
    if "prevalence" in one.needs and state.prevalence is None:
        return "no prevalence is stated"
    return None


def _basis(one: Measure, state: Resampled) -> tuple[intervals.Basis | None, str | None]:
    """Return the patients that a metric rests on, or why they are too few for an interval."""
    patients, images = [], []
    for groups in one.rests_on(state):
        for name, units in groups.items():
            if (units > 0).sum() < 2:
                return None, f"two patients at least are needed with {name}"
        patients.append(min(map(intervals.effective, groups.values())))
        images.append(min(map(np.sum, groups.values())))
    least = 1.0 if one.interval is intervals.of_loss else intervals.LEAST
    return intervals.basis(patients, images if one.rates else None, least), None


def differences(
    first: Mapping[Hashable, Predicted],
    second: Mapping[Hashable, Predicted],
    names: Sequence[str] | None = None,
    prevalence: float | None = None,
    resamples: Resamples | None = None,
) -> dict[str, dict]:
    """Return `value`, `low`, `high`, `seeds` and `reason` of first - second for each metric.

    first, second: seed -> predictions, all of the same images in the same order. The seeds that
    both have are paired. The interval adds the variances of patients and seeds
    (`statistics.estimate`); with one seed, it is only due to the choice of the patients. See
    `measure` for the rest. Raises ValueError if the images differ.
    """
    seeds = [seed for seed in first if seed in second]
    names = list(names or MEASURES)
    if not seeds:
        return {name: _result(None, None, "no seed in common") | {"seeds": 0} for name in names}
    _check_same_images([side[seed] for side in (first, second) for seed in seeds])
    resamples = draw(first[seeds[0]].clusters) if resamples is None else resamples
    sides = [
        [Resampled(side[seed], resamples, prevalence) for seed in seeds] for side in (first, second)
    ]
    return {name: _differing(MEASURES[name], *sides) | {"seeds": len(seeds)} for name in names}


def _check_same_images(all_predicted: Sequence[Predicted]) -> None:
    one = all_predicted[0]
    for other in all_predicted[1:]:
        same = np.array_equal(one.labels, other.labels)
        if not same or not np.array_equal(one.clusters, other.clusters):
            raise ValueError("the images of the predictions differ")


def _differing(one: Measure, first: list[Resampled], second: list[Resampled]) -> dict:
    """Return the difference of a metric over paired seeds, with its interval."""
    states = [*first, *second]
    missing = next(filter(None, (_missing(one, state) for state in states)), None)
    if missing:
        return _result(None, None, missing)
    gaps = [
        state.resamples.split(one.compute(state) - one.compute(other))
        for state, other in zip(first, second, strict=True)
    ]
    value = float(np.mean([gap.value for gap in gaps]))
    if np.isnan(value):
        return _result(None, None, one.undefined)
    bases, reasons = zip(*(_basis(one, state) for state in states))
    reason = next(filter(None, reasons), None)
    if reason:
        return _result(value, None, reason)
    basis = min(bases, key=_freedom_of)
    if one.bayes:
        return _differing_predictive(one, value, first, second, basis)
    return _result(value, *intervals.of_difference(gaps, basis, (one.low, one.high)))


def _differing_predictive(
    one: Measure,
    value: float,
    first: list[Resampled],
    second: list[Resampled],
    basis: intervals.Basis,
) -> dict:
    """Return a difference of predictive values at a prevalence (`of_predictive_difference`)."""
    sides = []
    for states in (first, second):
        ends = [_measured(one, state) for state in states]
        sampled = [state.resamples.split(one.compute(state)) for state in states]
        sides.append(list(zip(sampled, ends, strict=True)))
    reason = next(
        (ends["reason"] for side in sides for _, ends in side if ends["low"] is None), None
    )
    if reason:
        return _result(value, None, reason)
    return _result(value, intervals.of_predictive_difference(*sides, basis))


def _freedom_of(own: intervals.Basis) -> float:
    return own.freedom


def ece_of_calibrated(own: Predicted, draws: int = ECE_DRAWS) -> float:
    """Return the mean ECE that a perfectly calibrated network would have on as many images.

    The ECE is an absolute value in each bin, so chance alone makes it positive: this is its upward
    bias at a true ECE of 0, and the larger the true ECE, the smaller is the bias. Whether an answer
    is right is drawn from its confidence, for each image by itself. Where the images of a patient
    resemble each other, the bias is larger.
    """
    confidence = probabilities(own.logits, own.temperature).max(1)
    bins = bin_of(confidence)
    random = np.random.default_rng(SEED)
    found = []
    for _ in range(draws):
        gaps = (random.random(len(confidence)) < confidence) - confidence
        found.append(np.abs(np.bincount(bins, gaps)).sum() / len(confidence))
    return float(np.mean(found))
