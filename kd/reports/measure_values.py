"""The metrics of the table of measures, on the data and on all resamples at once: [S].

A metric is nan on a resample on which it is undefined. The second half of the file says which
patients each metric rests on.
"""

import numpy as np

from kd.reports.positive import REFERABLE_GRADE
from kd.reports.resampled import Resampled, ratio


def accuracy(own: Resampled) -> np.ndarray:
    """Return the share of images that are classified correctly."""
    return own.mean(own.right)


def accuracy_by_study(own: Resampled) -> np.ndarray:
    """Return the share of studies whose mean probability is largest for their label."""
    return _agreement(own.study_confusion)


def accuracy_by_patient(own: Resampled) -> np.ndarray:
    """Return the mean over patients of the share of their images that are classified correctly."""
    shares = own.resamples.by_patient(own.right)[:, 0] / own.resamples.images
    return ratio(own.resamples.counts @ shares, own.resamples.counts.sum(1))


def _agreement(confusion: np.ndarray) -> np.ndarray:
    return ratio(np.trace(confusion, axis1=1, axis2=2), confusion.sum((1, 2)))


def balanced_accuracy(own: Resampled) -> np.ndarray:
    """Return the mean recall of the classes that are present in the (resampled) labels."""
    right = np.diagonal(own.confusion, axis1=1, axis2=2)
    return _mean_defined(own, ratio(right, own.confusion.sum(2)).T)


def macro_f1(own: Resampled) -> np.ndarray:
    """Return the mean F1 of the classes that are present in the (resampled) labels.

    F1 is 2 TP / (2 TP + FP + FN), so it is 0 for a class that is present and never predicted.
    """
    labelled, answered = own.confusion.sum(2), own.confusion.sum(1)
    scores = 2 * np.diagonal(own.confusion, axis1=1, axis2=2)
    scores = ratio(scores, np.where(labelled > 0, labelled + answered, 0))
    return _mean_defined(own, scores.T)


def kappa(own: Resampled) -> np.ndarray:
    """Return Cohen's kappa of labels and answers of images (1960, Educ. Psychol. Meas. 20)."""
    return _kappa(own.confusion, 1 - np.eye(own.classes))


def kappa_by_study(own: Resampled) -> np.ndarray:
    """Return Cohen's kappa of labels and answers of studies, as MURA's leaderboard reports it."""
    return _kappa(own.study_confusion, 1 - np.eye(own.classes))


def quadratic_kappa(own: Resampled) -> np.ndarray:
    """Return Cohen's kappa with disagreements weighted by their squared distance (1968)."""
    grades = np.arange(own.classes)
    return _kappa(own.confusion, (grades[:, None] - grades) ** 2.0)


def _kappa(confusion: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return 1 - observed / expected disagreement. confusion [S, K, K], weights [K, K]."""
    total = confusion.sum((1, 2))
    by_chance = np.einsum("ri,ij,rj->r", confusion.sum(2), weights, confusion.sum(1))
    return 1 - ratio((confusion * weights).sum((1, 2)) * total, by_chance)


def auroc(own: Resampled) -> np.ndarray:
    """Return the area under the ROC curve: the mean over the classes that count."""
    return _mean_defined(own, [one.auroc for one in own.areas])


def auprc(own: Resampled) -> np.ndarray:
    """Return the average precision: the mean over the classes that count."""
    return _mean_defined(own, [one.auprc for one in own.areas])


def _mean_defined(own: Resampled, rows: list[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return the mean of the defined values of rows [C][S]; nan where there is none."""
    rows = np.reshape(rows, (len(rows), len(own.images)))
    defined = np.isfinite(rows)
    return ratio(np.where(defined, rows, 0).sum(0), defined.sum(0))


def referable_auc(own: Resampled) -> np.ndarray:
    """Return the area under the ROC curve of grade >= REFERABLE_GRADE."""
    return own.referable.auroc


def sensitivity(own: Resampled) -> np.ndarray:
    """Return the share of positive images that the operating point calls positive."""
    _, _, missed, hits = own.at_point
    return ratio(hits, hits + missed)


def specificity(own: Resampled) -> np.ndarray:
    """Return the share of negative images that the operating point calls negative."""
    clear, false, _, _ = own.at_point
    return ratio(clear, clear + false)


def ppv(own: Resampled) -> np.ndarray:
    """Return the share of positive images among those that the operating point calls positive."""
    _, false, _, hits = own.at_point
    return ratio(hits, hits + false)


def npv(own: Resampled) -> np.ndarray:
    """Return the share of negative images among those that the operating point calls negative."""
    clear, _, missed, _ = own.at_point
    return ratio(clear, clear + missed)


def ppv_at_prevalence(own: Resampled) -> np.ndarray:
    """Return the PPV at the stated prevalence, from sensitivity and specificity (Bayes)."""
    hits = own.prevalence * sensitivity(own)
    return ratio(hits, hits + (1 - own.prevalence) * (1 - specificity(own)))


def npv_at_prevalence(own: Resampled) -> np.ndarray:
    """Return the NPV at the stated prevalence, from sensitivity and specificity (Bayes)."""
    clear = (1 - own.prevalence) * specificity(own)
    return ratio(clear, clear + own.prevalence * (1 - sensitivity(own)))


def brier(own: Resampled) -> np.ndarray:
    """Return the mean squared distance of probabilities and one-hot labels, as `calibration`."""
    return own.mean(((own.p - np.eye(own.classes)[own.own.labels]) ** 2).sum(1))


def nll(own: Resampled) -> np.ndarray:
    """Return the mean negative log-likelihood of the labels (nats)."""
    return own.mean(own.nll)


def ece(own: Resampled) -> np.ndarray:
    """Return the expected calibration error in bins of equal width, as `calibration.ece`."""
    return ratio(np.abs(own.gaps).sum(1), own.images)


# Which patients a metric rests on: for each class of a mean over classes, the groups of images that
# it needs by name, and the number of these images of each patient [P].


def all_images(own: Resampled) -> list[dict]:
    """Return all images."""
    return [{"images": own.resamples.images}]


def all_patients(own: Resampled) -> list[dict]:
    """Return every patient once."""
    return [{"images": np.ones(own.resamples.patients)}]


def all_studies(own: Resampled) -> list[dict]:
    """Return all studies that count."""
    studies = own.resamples.by_patient(patient_of=own.studies["patients"])[:, 0]
    return [{"studies of one label": studies}]


def each_class(own: Resampled) -> list[dict]:
    """Return the images of each class that is present."""
    return [{"images of each class": _count(own, own.own.labels == one)} for one in own.present]


def each_class_of_studies(own: Resampled) -> list[dict]:
    """Return the studies of each class that is present."""
    labels, patients = own.studies["labels"], own.studies["patients"]
    counts = [
        own.resamples.by_patient(patient_of=patients[labels == one])[:, 0]
        for one in np.unique(labels)
    ]
    return [{"studies of each class": count} for count in counts]


def each_class_and_rest(own: Resampled) -> list[dict]:
    """Return the images of each class that counts for the areas, and those of all others."""
    chosen = own.present
    if own.classes == 2:
        chosen = chosen[:1]
    return [_both(own, own.own.labels == one) for one in chosen]


def referable_and_rest(own: Resampled) -> list[dict]:
    """Return the referable images and the others."""
    return [_both(own, own.own.labels >= REFERABLE_GRADE)]


def _both(own: Resampled, inside: np.ndarray) -> dict:
    return {"images of each class": _count(own, inside), "other images": _count(own, ~inside)}


def positives(own: Resampled) -> list[dict]:
    """Return the positive images."""
    return [{"positive images": _count(own, own.is_positive)}]


def negatives(own: Resampled) -> list[dict]:
    """Return the negative images."""
    return [{"negative images": _count(own, ~own.is_positive)}]


def positives_and_negatives(own: Resampled) -> list[dict]:
    """Return the positive and the negative images."""
    return [positives(own)[0] | negatives(own)[0]]


def flagged(own: Resampled) -> list[dict]:
    """Return the images that the operating point calls positive."""
    return [{"images that are called positive": _count(own, own.flagged)}]


def unflagged(own: Resampled) -> list[dict]:
    """Return the images that the operating point calls negative."""
    return [{"images that are called negative": _count(own, ~own.flagged)}]


def _count(own: Resampled, inside: np.ndarray) -> np.ndarray:
    return own.resamples.by_patient(inside)[:, 0]
