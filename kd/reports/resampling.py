"""Resamples of patients, and sums over the images of each, for all resamples at once.

Images of a patient are not independent of each other, so patients (clusters) are drawn, with all of
their images, and not images. A resample is a number for each patient: how often it was drawn. Most
metrics are functions of sums over images, so one product of two matrices gives such a sum for all
resamples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

# The draws give standard errors (see intervals.py), which need fewer than percentiles: their own
# error is 1 / sqrt(2 * DRAWS), about 2 %.
DRAWS = 1000
GROUPS = 200
SEED = 0
# The most numbers of an array with one entry per resample and image.
_BLOCK = 1_000_000


class Sampled(NamedTuple):
    """A metric on the data, on the drawn resamples [R], and without each group of patients [G].

    It is nan where it is undefined.
    """

    value: float
    drawn: np.ndarray
    left_out: np.ndarray


@dataclass(frozen=True)
class Resamples:
    """How often each patient is in each resample.

    The first is the data itself, with every patient once, so that the value of a metric and its
    values on the resamples are computed by the same code. Then come R drawn resamples, and at last
    the data without each of G groups of patients (a jackknife), which show how far a metric is
    moved by few patients. S = 1 + R + G.

    counts      [S, P]
    patient_of  the patient of each image, 0..P-1 [N]
    draws       R
    """

    counts: np.ndarray
    patient_of: np.ndarray
    draws: int

    def split(self, values: np.ndarray) -> Sampled:
        """Return the parts of a metric's values [S]."""
        end = 1 + self.draws
        return Sampled(float(values[0]), values[1:end], values[end:])

    @property
    def patients(self) -> int:
        """The number of patients, P."""
        return self.counts.shape[1]

    def sums(
        self,
        values: np.ndarray | None = None,
        cell: np.ndarray | None = None,
        cells: int = 1,
        patient_of: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the sum of values in each cell, for all resamples: [S, cells].

        values      one value per image [N]; None: 1, so that the sums are counts
        cell        the cell of each image, 0..cells-1 [N]; None: all are in one cell
        patient_of  the patient of each value, if the values are not those of images
        """
        return self.counts @ self.by_patient(values, cell, cells, patient_of)

    def by_patient(
        self,
        values: np.ndarray | None = None,
        cell: np.ndarray | None = None,
        cells: int = 1,
        patient_of: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the sum of values in each cell for each patient: [P, cells]. See `sums`."""
        patient_of = self.patient_of if patient_of is None else patient_of
        place = patient_of * cells + (0 if cell is None else cell)
        sums = np.bincount(place, values, minlength=self.patients * cells)
        return sums.reshape(self.patients, cells).astype(float)

    def blocks(self, order: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield some resamples at a time and how often each image is in them, in this order.

        order [n]: images. Yields (slice of resamples, weights [size of the slice, n]).
        """
        size = max(1, _BLOCK // len(order))
        for first in range(0, len(self.counts), size):
            block = slice(first, first + size)
            yield block, self.counts[block][:, self.patient_of[order]]

    @cached_property
    def images(self) -> np.ndarray:
        """The number of images of each patient [P]."""
        return self.by_patient()[:, 0]


def draw(clusters: np.ndarray, draws: int = DRAWS) -> Resamples:
    """Return resamples of patients: P of P patients are drawn with replacement, `draws` times.

    clusters [N]: the patient of each image, N >= 1. The result is the same for the same patients,
    in whatever order their images are. There are at most GROUPS groups to be left out, each of one
    patient if possible.
    """
    names, patient_of = np.unique(clusters, return_inverse=True)
    patients = len(names)
    random = np.random.default_rng(SEED)
    drawn = random.multinomial(patients, np.full(patients, 1 / patients), size=draws)
    group_of = random.permutation(patients) % GROUPS
    kept = np.arange(min(patients, GROUPS))[:, None] != group_of
    counts = np.concatenate([np.ones((1, patients)), drawn, kept])
    return Resamples(counts, patient_of, draws)
