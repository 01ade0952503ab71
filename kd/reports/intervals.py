"""Intervals of metrics from their values on resamples of patients: one rule for all metrics.

The percentiles of resamples are too narrow if few patients decide, and have no width where a
sensitivity is 1. The intervals here are score intervals, as Wilson's (1927, J. Am. Stat. Assoc.
22): all true values from which the observed one is at most t standard errors away. The standard
error is that at the true value x. It is known at the observed value, from the resamples, and
elsewhere it is taken to be

    share    in proportion to sqrt(x (1 - x)), with the range of the metric taken to 0..1
    loss     in proportion to sqrt(x)
    gap      the same everywhere (for an absolute value, whose bias counts, too)

A predictive value at a stated prevalence has the interval that follows from those of two rates.

t is a quantile of Student's distribution. It has few degrees of freedom if the metric rests on few
patients, or if few patients move it, but at least LEAST for shares and gaps: a share with a single
error is moved by one patient, and sqrt(x (1 - x)) already says so. All this was chosen by
simulation: `coverage.py metrics` in tests/benchmarks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kd.reports.resampling import Sampled
from kd.reports.statistics import LEVEL, Comparison, added_variance, estimate

# The smallest share of resamples on which a metric must be defined.
DEFINED = 0.5
# Degrees of freedom for the kurtosis 1 + 1 / CAUTIOUS. Theory has 2 for many patients, but the
# kurtosis of few patients is too small.
CAUTIOUS = 1.25
# The fewest degrees of freedom for few patients who move a metric whose range is bounded. With
# fewer, the lower end of a share with one error is far below that with two.
LEAST = 4.0
NOT_DEFINED = "it is undefined on most resamples of the patients"


@dataclass(frozen=True)
class Basis:
    """What a metric rests on.

    patients  the effective number of patients
    freedom   degrees of freedom of a variance that is estimated from them
    images    the number of independent images whose share would vary as little as a mean of rates
              of classes can; infinite for other metrics
    least     the degrees of freedom that remain however few patients move the metric
    """

    patients: float
    freedom: float
    images: float
    least: float = LEAST


@dataclass(frozen=True)
class Spread:
    """The variance of a metric over samples of patients, and Student's quantile for it."""

    variance: float
    t: float


def effective(units: np.ndarray) -> float:
    """Return the effective number of patients with these numbers of images (Kish 1965).

    It is (sum of m)^2 / (sum of m^2): the number of patients if all have as many images, and less
    if few patients have most of the images. units [P], of which one at least is above 0.
    """
    return float(units.sum() ** 2 / (units**2).sum())


def basis(
    patients: Sequence[float], images: Sequence[float] | None = None, least: float = LEAST
) -> Basis:
    """Return the basis of a mean over classes.

    patients  the effective number of each class, at least 1
    images    the number of each class, if the metric is a mean of rates
    least     see `Basis`

    The variance of a class is taken to be in proportion to 1 / patients. The degrees of freedom are
    Satterthwaite's (1946, Biometrics 2, eq. 17).
    """
    variances = 1 / np.array(patients)
    below = np.maximum(np.array(patients) - 1, 0.01)
    degrees = variances.sum() ** 2 / (variances**2 / below).sum()
    most = np.inf if images is None else len(images) ** 2 / (1 / np.array(images)).sum()
    return Basis(float(1 / variances.mean()), max(1.0, float(degrees)), float(most), least)


def spread(one: Sampled, own: Basis) -> Spread | None:
    """Return the variance of a metric and Student's quantile; None if it is mostly undefined.

    The variance over resamples of n patients is too small by the factor (n - 1) / n.
    """
    drawn = one.drawn[np.isfinite(one.drawn)]
    if len(drawn) < max(2, DEFINED * len(one.drawn)):
        return None
    variance = float(np.var(drawn)) * own.patients / max(1.0, own.patients - 1)
    t = stats.t.ppf((1 + LEVEL) / 2, freedom(one.left_out, own))
    return Spread(variance, float(t))


def freedom(left_out: np.ndarray, own: Basis) -> float:
    """Return the degrees of freedom of a variance: at most those of the patients.

    A variance of n independent terms with the kurtosis k has 2 n / (k - 1). The terms are the
    influences of the patients: how far the metric moves without them. left_out [G].
    """
    terms = left_out[np.isfinite(left_out)]
    squares = (terms - terms.mean()) ** 2 if len(terms) else np.zeros(1)
    if squares.max() < 1e-20:  # nobody moves it
        return own.freedom
    kurtosis = np.mean(squares**2) / np.mean(squares) ** 2
    if kurtosis - 1 < 1e-9:  # all move it alike
        return own.freedom
    return float(min(own.freedom, max(own.least, CAUTIOUS * len(terms) / (kurtosis - 1))))


def of_share(one: Sampled, own: Spread, rests: Basis, ends: tuple) -> tuple[float, float]:
    """Return Wilson's interval of a share, with the number of images that has its variance.

    A share without variance has that of as many images as there are patients. ends: its range.
    """
    low, high = ends
    x = (one.value - low) / (high - low)
    variance = own.variance / (high - low) ** 2
    images = rests.patients
    if variance > 0 and 0 < x < 1:
        images = min(x * (1 - x) / variance, rests.images)
    k = own.t**2 / images
    half = np.sqrt(k * (x * (1 - x) + k / 4))
    found = [(x + k / 2 + sign * half) / (1 + k) for sign in (-1, 1)]
    return tuple(low + (high - low) * end for end in found)


def of_loss(one: Sampled, own: Spread, rests: Basis, ends: tuple) -> tuple[float, float]:
    """Return the interval of a mean of values above 0: Wilson's for a range without upper end."""
    if one.value <= 0:
        return one.value, one.value
    k = own.t**2 * own.variance / one.value
    half = np.sqrt(k * (one.value + k / 4))
    return one.value + k / 2 - half, one.value + k / 2 + half


def of_gap(one: Sampled, own: Spread, rests: Basis, ends: tuple) -> tuple[float, float]:
    """Return the interval of an absolute value, which chance makes too large.

    Its mean over the resamples is above its value, about as much as its value is above the true
    one, if that is large, and less than that, if it is small. The lower end is therefore that of
    the corrected value, and the upper end that of the value itself.
    """
    bias = float(np.nanmean(one.drawn)) - one.value
    half = own.t * np.sqrt(own.variance)
    return one.value - max(0.0, bias) - half, one.value + half


def of_predictive(right: Mapping, other: Mapping, odds: float) -> tuple[float, float]:
    """Return the interval of a predictive value at a prevalence, from those of two rates.

    The value is 1 / (1 + odds * wrong / right), where `right` is the rate of an answer among the
    images that should have it, and wrong = 1 - `other` its rate among all others. If no image is
    wrong, the value is 1 on every resample, although the other end of the interval of `wrong` may
    stand for a much smaller value. The interval of the ratio is therefore that of MOVER-R (Donner,
    Zou 2012 and Newcombe 2016, Stat. Methods Med. Res. 21 and 25) for independent rates.

    right, other  `value`, `low` and `high` of the rates: for the PPV, sensitivity and specificity
    odds          of images that should not have the answer, (1 - prevalence) / prevalence for PPV
    """
    wrong, least, most = 1 - other["value"], 1 - other["high"], 1 - other["low"]
    product = wrong * right["value"]
    above = least * (2 * wrong - least)
    below = right["high"] * (2 * right["value"] - right["high"])
    root = np.sqrt(max(0.0, product**2 - above * below))
    smallest = above / (product + root) if above > 0 else 0.0  # (product - root) / below
    above = most * (2 * wrong - most)
    below = right["low"] * (2 * right["value"] - right["low"])
    root = np.sqrt(max(0.0, product**2 - above * below))
    largest = (product + root) / below if below > 0 else np.inf
    return 1 / (1 + odds * largest), 1 / (1 + odds * smallest)


def of_difference(
    own: Sequence[Sampled], rests: Basis, ends: tuple
) -> tuple[tuple[float, float] | None, str | None]:
    """Return the interval of a difference over paired seeds, or why there is none.

    own: the difference in each seed. The interval is symmetric. If no patient moves the difference,
    because both networks are right on all images that count, its variance is what two more patients
    would add, of whom one is half a win for the first and half for the second network, as in
    `statistics.compare`.
    """
    gaps = [np.array([one[part] for one in own]) for part in range(3)]
    mean = Sampled(float(gaps[0].mean()), gaps[1].mean(0), gaps[2].mean(0))
    found = spread(mean, rests)
    if found is None:
        return None, NOT_DEFINED
    width = ends[1] - ends[0]
    variance = found.variance
    if variance == 0 and np.isfinite(width):
        variance = width**2 * added_variance(mean.value / width, rests.patients)
    between, noise = _seed_variances(*gaps[:2], rests.patients)
    if variance + between == 0:
        return None, "the networks do not differ"
    half = _half(variance, between, noise, len(own), freedom(mean.left_out, rests))
    return (max(-width, mean.value - half), min(width, mean.value + half)), None


def of_predictive_difference(
    first: Sequence[tuple[Sampled, Mapping]],
    second: Sequence[tuple[Sampled, Mapping]],
    rests: Basis,
) -> tuple[float, float]:
    """Return the interval of a difference of predictive values at a prevalence, over paired seeds.

    first, second: in each seed, the value on the resamples, and the ends (`low` and `high`).
    If no image is wrong, the resamples show no variance, so each end is that of MOVER-D (Zou,
    Donner 2008, Stat. Med. 27): how far the ends of both intervals are away, with the correlation
    of the values over the resamples. The variance between seeds is added as in `of_difference`.
    """
    sides = []
    for side in (first, second):
        values, drawn = (np.array([one[part] for one, _ in side]) for part in range(2))
        below = np.mean([one.value - ends["low"] for one, ends in side])
        above = np.mean([ends["high"] - one.value for one, ends in side])
        sides.append((values, drawn, below, above))
    (one, one_drawn, one_below, one_above), (two, two_drawn, two_below, two_above) = sides
    correlation = _correlation(one_drawn.mean(0), two_drawn.mean(0))
    t = stats.t.ppf((1 + LEVEL) / 2, rests.freedom)
    seeds = _seed_variances(one - two, one_drawn - two_drawn, rests.patients)
    halves = []
    for own, other in ((one_below, two_above), (one_above, two_below)):
        square = max(0.0, own**2 + other**2 - 2 * correlation * own * other)
        halves.append(_half(square / t**2, *seeds, len(one), rests.freedom))
    mean = float((one - two).mean())
    return max(-1.0, mean - halves[0]), min(1.0, mean + halves[1])


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation over resamples [R]; 0 where one of both does not vary."""
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 2 or min(first[both].std(), second[both].std()) < 1e-10:
        return 0.0
    return float(np.corrcoef(first[both], second[both])[0, 1])


def _half(variance: float, between: float, noise: float, seeds: int, degrees: float) -> float:
    """Return half of the width of an interval from the variances of patients and seeds."""
    if variance + between == 0:
        return 0.0
    one = Comparison(
        mean=0.0,
        center=0.0,
        patient_variance=variance,
        seed_variance=between,
        noise_variance=noise,
        seeds=seeds,
        patients=degrees + 1,
        discordant=0,  # only for verdicts
    )
    return estimate(one).half


def _seed_variances(values: np.ndarray, drawn: np.ndarray, patients: float) -> tuple[float, float]:
    """Return the variance of differences over seeds, and its part that is due to patients alone.

    The latter is the variance over resamples of what is special to a seed, see
    `statistics.Comparison`. values [S], drawn [S, R].
    """
    if len(values) < 2:
        return 0.0, 0.0
    drawn = drawn[:, np.isfinite(drawn).all(0)]
    if not drawn.size:
        return float(values.var(ddof=1)), 0.0
    special = (drawn - drawn.mean(0)).var(axis=1).sum() / (len(values) - 1)
    return float(values.var(ddof=1)), float(special * patients / max(1.0, patients - 1))
