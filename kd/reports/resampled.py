"""What metrics are computed from, for all resamples of patients at once: counts, sums and areas."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import log_softmax

from kd.reports import ranking
from kd.reports.calibration import BINS, probabilities
from kd.reports.operating_point import OperatingPoint
from kd.reports.positive import REFERABLE_GRADE
from kd.reports.resampling import Resamples


@dataclass(frozen=True)
class Predicted:
    """The outputs of one network (one seed) for labelled images, and what is known about these.

    logits           [N, K], N >= 1
    labels           [N], 0..K-1
    clusters         the patient of each image [N]
    studies          the study of each image [N], None where unknown; None: no study is known
    temperature      divides the logits where probabilities themselves count: Brier score, NLL, ECE
                     and operating points. Ranks, and means over the views of a study, are those of
                     the unscaled probabilities, as in `metrics`
    positive         the classes that sensitivity refers to: one of two, or the upper grades; None:
                     there are no such classes
    operating_point  fixed on other images, with the same temperature; None: there is none
    graded           whether the classes are ordered grades
    """

    logits: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray
    studies: Sequence[Hashable | None] | None = None
    temperature: float = 1.0
    positive: tuple[int, ...] | None = None
    operating_point: OperatingPoint | None = None
    graded: bool = False


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence [N], 0..BINS-1, as in `calibration.confidence_bins`."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, and nan where the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


class Resampled:
    """The sums and areas of one network's predictions, each computed when it is first needed.

    S is the number of resamples, of which the first is the data itself.

    prevalence  of the positive class where PPV and NPV are to be stated; None: not stated
    """

    def __init__(self, own: Predicted, resamples: Resamples, prevalence: float | None = None):
        self.own = own
        self.resamples = resamples
        self.prevalence = prevalence
        self.classes = own.logits.shape[1]
        self.answers = own.logits.argmax(1)
        self.right = self.answers == own.labels

    @cached_property
    def p(self) -> np.ndarray:
        """Probabilities at the temperature [N, K]."""
        return probabilities(self.own.logits, self.own.temperature)

    @cached_property
    def images(self) -> np.ndarray:
        """The number of images [S]."""
        return self.resamples.sums()[:, 0]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean over images of values [N]: [S]."""
        return ratio(self.resamples.sums(values)[:, 0], self.images)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Images by true and predicted class [S, K, K]."""
        return self._confusion(self.own.labels, self.answers)

    def _confusion(self, labels, answers, patient_of=None) -> np.ndarray:
        cell = labels * self.classes + answers
        counts = self.resamples.sums(None, cell, self.classes**2, patient_of)
        return counts.reshape(-1, self.classes, self.classes)

    @cached_property
    def studies(self) -> dict[str, np.ndarray]:
        """Label, answer and patient of each study that has one label, as in `metrics.by_study`.

        The answer is the class with the largest mean probability over the views. Only the patient
        of a study's first image is used.
        """
        number_of = {}
        known = [row for row, study in enumerate(self.own.studies or ()) if study is not None]
        number = [number_of.setdefault(self.own.studies[row], len(number_of)) for row in known]
        number = np.array(number, dtype=int)
        labels, p = self.own.labels[known], probabilities(self.own.logits[known])
        views = np.bincount(number, minlength=len(number_of))
        mean = np.zeros((len(number_of), self.classes))
        np.add.at(mean, number, p)
        first = np.unique(number, return_index=True)[1]
        own_label = labels[first] if len(known) else np.zeros(0, dtype=int)
        one_label = np.bincount(number, labels == own_label[number], len(number_of)) == views
        return {
            "labels": own_label[one_label],
            "answers": (mean / views[:, None])[one_label].argmax(1),
            "patients": self.resamples.patient_of[known][first][one_label],
        }

    @cached_property
    def study_confusion(self) -> np.ndarray:
        """Studies by true and predicted class [S, K, K]."""
        own = self.studies
        return self._confusion(own["labels"], own["answers"], own["patients"])

    @cached_property
    def present(self) -> list[int]:
        """The classes that are present in the labels."""
        return np.unique(self.own.labels).tolist()

    @cached_property
    def areas(self) -> list[ranking.Areas]:
        """The areas of the positive class if there are two classes, otherwise of each present one.

        With two classes and no positive one, both count.
        """
        if self.classes < 2:
            return []
        chosen = self.present
        if self.classes == 2 and self.own.positive is not None:
            chosen = list(self.own.positive)
        return [self._areas(np.arange(self.classes) == number) for number in chosen]

    @cached_property
    def referable(self) -> ranking.Areas:
        """The areas of grade >= REFERABLE_GRADE; nan if there are no such grades."""
        if self.classes <= REFERABLE_GRADE:
            return ranking.Areas(*np.full((2, len(self.images)), np.nan))
        return self._areas(np.arange(self.classes) >= REFERABLE_GRADE)

    def _areas(self, chosen: np.ndarray) -> ranking.Areas:
        """Return the areas of some classes against all others; chosen bool [K]."""
        scores = ranking.log_odds(self.own.logits, chosen)
        return ranking.areas(scores, chosen[self.own.labels], self.resamples)

    @cached_property
    def is_positive(self) -> np.ndarray:
        """Whether the label is a positive class: bool [N]."""
        return np.isin(self.own.labels, self.own.positive)

    @cached_property
    def flagged(self) -> np.ndarray:
        """Whether the operating point calls an image positive: bool [N]."""
        likely = self.p[:, list(self.own.positive)].sum(1)
        return likely >= self.own.operating_point.threshold

    @cached_property
    def at_point(self) -> np.ndarray:
        """True negatives, false positives, false negatives, true positives [4, S]."""
        return self.resamples.sums(None, 2 * self.is_positive + self.flagged, 4).T

    @cached_property
    def nll(self) -> np.ndarray:
        """The negative log-likelihood of each image's label [N], in nats."""
        log_p = log_softmax(self.own.logits.astype(np.float64) / self.own.temperature, axis=1)
        return -log_p[np.arange(len(log_p)), self.own.labels]

    @cached_property
    def gaps(self) -> np.ndarray:
        """Right answers minus confidence, summed over each bin of confidence [S, BINS]."""
        confidence = self.p.max(1)
        right = self.p.argmax(1) == self.own.labels
        return self.resamples.sums(right - confidence, bin_of(confidence), BINS)
