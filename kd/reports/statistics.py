"""Means over seeds, and comparisons of two methods on the same patients.

All functions are pure functions of arrays.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
# Both were chosen by simulation (tests/benchmarks/coverage.py).
CAUTION = 6  # how often the variance of few seeds counts for the degrees of freedom
UNLIKE = 0.9  # quantile of F above which the seeds of a comparison vary more than those of others


def mean_sd(values: Sequence[float] | np.ndarray) -> dict:
    """Return mean and sample standard deviation over seeds, N >= 1. With N = 1, `sd` is None."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd}


@dataclass(frozen=True)
class Comparison:
    """The difference of two methods that were applied to the same images with the same seeds.

    mean              mean of first - second over seeds and images
    center            the mean after adding two patients (see `compare`): the centre of its interval
    patient_variance  variance of `center` due to the choice of the patients
    seed_variance     variance over the seeds of the mean of one seed
    noise_variance    the part of `seed_variance` that is expected from the limited number of
                      patients alone: in each seed, other images are wrong
    seeds             number of seeds, S
    patients          number of patients, P >= 2
    discordant        number of patients with an image on which the methods differ in some seed
    """

    mean: float
    center: float
    patient_variance: float
    seed_variance: float
    noise_variance: float
    seeds: int
    patients: int
    discordant: int


class SeedVariance(NamedTuple):
    """Variance of the mean of one seed.

    excess   the variance beyond what the patients explain; it is added to theirs
    total    the variance that weighs the degrees of freedom
    freedom  degrees of freedom; 0 if there is only one seed
    """

    excess: float
    total: float
    freedom: int


def compare(first: np.ndarray, second: np.ndarray, patients: np.ndarray) -> Comparison:
    """Compare two methods by whether each image is classified correctly, or by its score.

    first, second: [S, N] in 0..1, paired by seed and image; patients [N], at least two different.

    Patients are clusters: the variance of the mean over all images is that of a ratio of two sums
    over patients. Before it is computed, two patients of average size are added: one on whom the
    methods are equal, and one who is half a win for the first and half for the second. With one
    image per patient and one seed, this is the interval of Agresti and Min (2005, Statistics in
    Medicine 24) with Student's t. The variance is therefore never 0, not even if the methods agree
    on all images.
    """
    gaps = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    _, patient_of = np.unique(patients, return_inverse=True)
    images = np.bincount(patient_of)
    sums = np.stack([np.bincount(patient_of, own) for own in gaps])
    differs = np.bincount(patient_of, (gaps != 0).any(0)) > 0
    seeds, count = sums.shape
    mean = gaps.mean()
    center = mean * count / (count + 2)
    around = (sums.mean(0) - center * images) / images.mean()
    patient_variance = (around**2).sum() / ((count + 1) * (count + 2))
    patient_variance += added_variance(center, count)
    total, noise = _seed_variances((sums - mean * images) / images.mean())
    return Comparison(
        mean=float(mean),
        center=float(center),
        patient_variance=float(patient_variance),
        seed_variance=total,
        noise_variance=noise,
        seeds=seeds,
        patients=count,
        discordant=int(differs.sum()),
    )


def added_variance(center: float, patients: int) -> float:
    """Return what the two added patients contribute to the variance between patients."""
    added = 1 + 2 * center**2  # (1 - c)^2 / 2 + (-1 - c)^2 / 2 + c^2
    return added / ((patients + 1) * (patients + 2))


def _seed_variances(deviations: np.ndarray) -> tuple[float, float]:
    """Return the variance over seeds of their means, and the part expected from the patients.

    deviations [S, P], with mean 0. The two are the mean squares of seeds and of the interaction in
    an analysis of variance of seeds by patients, both divided by P. With one seed both are 0.
    """
    seeds, patients = deviations.shape
    if seeds < 2:
        return 0.0, 0.0
    of_seeds = deviations.mean(1)
    rest = deviations - deviations.mean(0) - of_seeds[:, None]
    freedom = (seeds - 1) * (patients - 1)
    return float((of_seeds**2).sum() / (seeds - 1)), float((rest**2).sum() / freedom / patients)


def pair(first: Mapping, second: Mapping, patients: np.ndarray) -> Comparison | None:
    """Return `compare` over the seeds that both sides have.

    first, second: seed -> whether each image is classified correctly (or its score), [N]; patients
    [N]. Returns None if the sides have no seed in common, or if there is only one patient, from
    whom nothing can be concluded.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds or len(np.unique(patients)) < 2:
        return None
    sides = [np.stack([side[seed] for seed in seeds]) for side in (first, second)]
    return compare(*sides, patients)


def own_seed_variance(one: Comparison) -> SeedVariance:
    """Return the variance between the seeds of a single comparison.

    With three seeds it is often much too small by chance. It is therefore not reduced by what the
    patients explain, and it counts CAUTION times in Satterthwaite's formula, which would otherwise
    assume too many degrees of freedom.
    """
    return SeedVariance(one.seed_variance, CAUTION * one.seed_variance, one.seeds - 1)


def shared_seed_variances(
    comparisons: Sequence[Comparison], shared: Sequence[Hashable]
) -> list[SeedVariance]:
    """Return the variance between seeds of each comparison of a family.

    It is the mean over the family, or the comparison's own variance if that is larger. A comparison
    whose own variance is significantly larger (F-test) than that of comparisons with other networks
    stands alone. Each comparison needs several seeds.

    shared  the network that each comparison has in common with others: those with an equal entry
            are correlated, and their degrees of freedom count once
    """
    freedoms = np.array([one.seeds - 1 for one in comparisons])
    totals = np.array([one.seed_variance for one in comparisons])
    excesses = totals - np.array([one.noise_variance for one in comparisons])
    freedom_of = {}
    for network, freedom in zip(shared, freedoms.tolist(), strict=True):
        freedom_of[network] = max(freedom, freedom_of.get(network, 0))
    freedom = sum(freedom_of.values())
    total = np.average(totals, weights=freedoms)
    excess = np.average(excesses, weights=freedoms)
    found = []
    for number, one in enumerate(comparisons):
        others = [own != shared[number] for own in shared]
        rest = np.average(totals[others], weights=freedoms[others]) if any(others) else np.inf
        other_freedom = max(1, freedom - freedom_of[shared[number]])
        limit = rest * stats.f.ppf(UNLIKE, one.seeds - 1, other_freedom)
        if totals[number] > limit:
            found.append(own_seed_variance(one))
        else:
            larger = (max(excess, excesses[number]), max(total, totals[number]))
            found.append(SeedVariance(*map(float, larger), freedom))
    return found


class Estimate(NamedTuple):
    """The centre of a difference, its standard error, and the degrees of freedom of the latter."""

    center: float
    error: float
    freedom: float

    @property
    def half(self) -> float:
        """Half of the width of the 95 % interval by Student's t."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.freedom)) * self.error

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of a difference of shares, within -1..1."""
        return max(-1.0, self.center - self.half), min(1.0, self.center + self.half)

    def p_two_sided(self) -> float:
        """Return the p-value of the hypothesis that the true difference is 0."""
        return float(2 * stats.t.sf(abs(self.center) / self.error, self.freedom))

    def p_below(self, bound: float) -> float:
        """Return the p-value of the hypothesis that the true difference is at most `bound`."""
        return float(stats.t.sf((self.center - bound) / self.error, self.freedom))


def estimate(one: Comparison, seeds: SeedVariance | None = None) -> Estimate:
    """Return the estimate of a difference: the variances between patients and seeds are added.

    The degrees of freedom of the sum are Satterthwaite's (1946, Biometrics 2, eq. 17). With one
    seed, only the variance between patients is included.

    seeds  the variance between seeds; None: that of the comparison alone
    """
    if seeds is None:
        seeds = own_seed_variance(one)
    variance = one.patient_variance + max(0.0, seeds.excess) / one.seeds
    freedom = float(one.patients - 1)
    if seeds.freedom:
        of_seeds = seeds.total / one.seeds
        spread = one.patient_variance**2 / (one.patients - 1) + of_seeds**2 / seeds.freedom
        freedom = (one.patient_variance + of_seeds) ** 2 / spread
    return Estimate(one.center, variance**0.5, freedom)
