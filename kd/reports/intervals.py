"""Intervals of metrics from their values on resamples of patients: one rule for all metrics.

    1. The metric is taken to 0..1 by its range, and two patients are added, one for whom it is 1 and
       one for whom it is 0 (as in `statistics.compare`).
    2. The variance is that over the resamples, and that of the two added patients.
    3. The interval is symmetric on the scale of the log-odds, by Student's t, and extended to the
       value if that is outside.

The number of patients is the effective number of those that the metric rests on: of the patients with
positive images for sensitivity, of the rarer class for AUROC.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kd.reports.statistics import LEVEL, Comparison, added_variance, estimate

# The smallest share of resamples on which a metric must be defined.
_DEFINED = 0.5


@dataclass(frozen=True)
class Basis:
    """The patients that a metric rests on.

    patients  their effective number
    freedom   degrees of freedom of the variance
    """

    patients: float
    freedom: float


def effective(units: np.ndarray) -> float:
    """Return the effective number of patients with these numbers of images (Kish 1965).

    It is (sum of m)^2 / (sum of m^2): the number of patients if all have as many images, and less
    if few patients have most of the images. units [P], of which one at least is above 0.
    """
    return float(units.sum() ** 2 / (units**2).sum())


def basis(numbers: Sequence[float]) -> Basis:
    """Return the basis of a mean over classes from the effective number of patients of each.

    A class of n patients is taken to have a variance in proportion to 1/n. The degrees of freedom
    are Satterthwaite's (1946, Biometrics 2, eq. 17). numbers: each above 1.
    """
    numbers = np.array(numbers)
    added = np.mean(2 / (numbers + 2))
    variances = 1 / numbers
    freedom = variances.sum() ** 2 / (variances**2 / (numbers - 1)).sum()
    return Basis(float(2 / added - 2), float(freedom))


def spread(resampled: np.ndarray, patients: float) -> float | None:
    """Return the variance of a metric from its values on resamples [R].

    Undefined values (nan) are left out; None if they are too many. The variance over resamples of n
    patients is too small by the factor (n - 1) / n.
    """
    defined = resampled[np.isfinite(resampled)]
    if len(defined) < max(2, _DEFINED * len(resampled)):
        return None
    return float(np.var(defined)) * patients / (patients - 1)


def bounded(value: float, variance: float, own: Basis, low: float, high: float) -> tuple:
    """Return the interval of a metric with values in low..high."""
    n = own.patients
    share = (value - low) / (high - low)
    center = (n * share + 1) / (n + 2)
    total = variance / (high - low) ** 2 * (n / (n + 2)) ** 2
    total += ((1 - center) ** 2 + center**2) / ((n + 1) * (n + 2))
    half = _half(total**0.5 / (center * (1 - center)), own.freedom)
    middle = np.log(center / (1 - center))
    ends = [low + (high - low) / (1 + np.exp(-end)) for end in (middle - half, middle + half)]
    return float(min(ends[0], value)), float(max(ends[1], value))


def unbounded(value: float, variance: float, own: Basis) -> tuple[float, float]:
    """Return the interval of a metric with values above 0."""
    half = _half(variance**0.5 / value, own.freedom)
    return value * float(np.exp(-half)), value * float(np.exp(half))


def _half(error: float, freedom: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error


def of_difference(gaps: np.ndarray, own: Basis, low: float, high: float | None) -> tuple:
    """Return the interval of a difference over paired seeds, and why it is None.

    gaps [S, 1 + R]: the differences of each seed on the data and on the resamples. low, high: the
    range of the metric; high None: it has no upper limit.
    """
    variance = spread(gaps[:, 1:].mean(0), own.patients)
    if variance is None:
        return None, "it is undefined on most resamples of the patients"
    value = float(gaps[:, 0].mean())
    total, noise = _seed_variances(gaps, own.patients)
    center = value
    if high is not None:
        scale = high - low
        shrinkage = own.patients / (own.patients + 2)
        center = value * shrinkage
        variance = variance * shrinkage**2
        variance += scale**2 * added_variance(center / scale, own.patients)
    if variance + total == 0:
        return None, "the networks do not differ"
    one = Comparison(value, center, variance, total, noise, len(gaps), own.freedom + 1, 0)
    found = estimate(one)
    half = _half(found.error, found.freedom)
    limit = np.inf if high is None else high - low
    return (max(-limit, min(center - half, value)), min(limit, max(center + half, value))), None


def _seed_variances(gaps: np.ndarray, patients: float) -> tuple[float, float]:
    """Return the variance over seeds of their differences, and the part due to the patients alone.

    The latter is the variance over resamples of what is special to a seed, see `statistics`.
    """
    if len(gaps) < 2:
        return 0.0, 0.0
    rest = gaps[:, 1:] - gaps[:, 1:].mean(0)
    rest = rest[:, np.isfinite(rest).all(0)]
    freedom = len(gaps) - 1
    noise = rest.var(axis=1).sum() / freedom * patients / (patients - 1)
    return float(gaps[:, 0].var(ddof=1)), float(noise)
