"""Means over seeds, and differences between runs with intervals.

All functions are pure functions of arrays.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

DRAWS = 2000
LEVEL = 0.95


def mean_sd(values: Sequence[float] | np.ndarray) -> dict:
    """Return mean and sample standard deviation over seeds, N >= 1. With N = 1, `sd` is None."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd}


def patient_variance(
    differences: np.ndarray, patients: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> float:
    """Return the variance of the mean of `differences` [N] when complete patients are resampled.

    This is a cluster bootstrap. patients [N]. With P patients, the factor P / (P - 1) corrects for
    drawing from the sample itself. Returns 0 for a single patient.
    """
    _, patient_of = np.unique(patients, return_inverse=True)
    sums = np.bincount(patient_of, differences)
    counts = np.bincount(patient_of)
    if len(sums) < 2:
        return 0.0
    share = np.full(len(sums), 1 / len(sums))
    weights = np.random.default_rng(seed).multinomial(len(sums), share, size=draws)
    means = (weights @ sums) / (weights @ counts)
    return float(means.var(ddof=1) * len(sums) / (len(sums) - 1))


def difference(first: np.ndarray, second: np.ndarray, patients: np.ndarray) -> dict:
    """Return the mean of first - second over seeds and images, with its 95 % interval.

    first, second: whether each image is classified correctly (or its score), [seeds, N], paired by
    seed and image; patients [N]. The variance is the sum of two components. One is the variance
    between patients (paired cluster bootstrap of the differences, which are first averaged over
    seeds), the other that between seeds (of the mean difference of each seed, divided by n). The
    interval uses Student's t with Satterthwaite's degrees of freedom (1946, Biometrics 2, eq. 17).
    With one seed (`seeds` is 1) it includes only the variance between patients.
    """
    gaps = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    seeds = len(gaps)
    groups = len(np.unique(patients))
    between_patients = patient_variance(gaps.mean(0), patients)
    between_seeds = float(gaps.mean(1).var(ddof=1) / seeds) if seeds > 1 else 0.0
    half = half_width([(between_patients, groups - 1), (between_seeds, seeds - 1)])
    mean = float(gaps.mean())
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "seeds": seeds,
        "patients": groups,
    }


def half_width(variances: Sequence[tuple[float, int]]) -> float:
    """Return half the width of a 95 % interval of a mean.

    `variances`: (variance, degrees of freedom) of each independent source. The variances are added.
    The degrees of freedom of the sum are Satterthwaite's, but at least 1.
    """
    variance = sum(part for part, _ in variances)
    spread = sum(part**2 / degrees for part, degrees in variances if degrees > 0)
    freedom = max(1.0, variance**2 / spread) if spread > 0 else 1.0
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance))


def paired_difference(
    first: Mapping, second: Mapping, patients: np.ndarray, margin: float | None = None
) -> dict | None:
    """Return the `difference` over the seeds that both sides have, with a verdict in `says`.

    first, second: seed -> whether each image is classified correctly (or its score), [N]; patients
    [N]. The verdict is that of `against_alone`, or of `against_teacher` if there is a margin.
    Returns None if the sides have no seed in common, or if there is only one patient, from whom
    nothing can be concluded.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds or len(np.unique(patients)) < 2:
        return None
    gap = difference(
        np.stack([first[seed] for seed in seeds]),
        np.stack([second[seed] for seed in seeds]),
        patients,
    )
    says = against_alone(gap) if margin is None else against_teacher(gap, margin)
    return gap | {"says": says}


def against_alone(gap: dict) -> str:
    """Return the verdict on a student compared with the same network trained alone."""
    if gap["low"] > 0:
        return "better"
    if gap["high"] < 0:
        return "worse"
    return "no evidence"


def against_teacher(gap: dict, margin: float) -> str:
    """Return the verdict on a student compared with its teacher.

    The student is non-inferior within `margin` (a fraction), worse, or neither is shown.
    """
    if gap["low"] > -margin:
        return f"as good within {margin:g}"
    if gap["high"] < 0:
        return "worse"
    return "not shown"
