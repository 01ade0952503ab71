"""What a set of predictions shows, and how sure it is: calibration, studies, agreement, intervals
of differences. Pure.
"""

import numpy as np
from sklearn.metrics import f1_score, recall_score

from kd.reports import metrics

BINS = 15
NEWLY_WRONG_LISTED = 20
DRAWS = 2000
LEVEL = 0.95


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax(logits / T) in float64. logits [N, K] -> [N, K]."""
    logits = logits.astype(np.float64) / temperature
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


def confidence_bins(p: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[dict]:
    """Images by the confidence of their prediction, in equal steps of 0..1: count, mean confidence,
    accuracy (None if empty).

    A confidence on a border counts below it. p [N, K], labels [N].
    """
    confidence, correct = p.max(1), p.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = [place == k for k in range(bins)]
    return [
        {
            "count": int(row.sum()),
            "confidence": float(confidence[row].mean()) if row.any() else None,
            "accuracy": float(correct[row].mean()) if row.any() else None,
        }
        for row in rows
    ]


def ece(p: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: sum over bins of n_b / N * |accuracy_b - confidence_b| (Guo et
    al. 2017, 1706.04599, eq. 3).
    """
    return sum(
        row["count"] * abs(row["accuracy"] - row["confidence"])
        for row in confidence_bins(p, labels, bins)
        if row["count"]
    ) / len(labels)


def brier(p: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images of the squared distance between p and the one-hot label, summed over
    classes: 0 to 2 (Brier 1950).
    """
    return float(((p - np.eye(p.shape[1])[labels]) ** 2).sum(1).mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T that makes softmax(logits / T) most likely for the labels (Guo et al. 2017, section
    4.2), within 1/100 to 100.

    The negative log-likelihood is convex in 1/T, so its slope is bisected. logits [N, K], labels
    [N].
    """
    logits = logits.astype(np.float64)
    own = logits[np.arange(len(labels)), labels]
    low, high = -2.0, 2.0  # of log10(1/T)
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((probabilities(logits, 10**-middle) * logits).sum(1) - own).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(10 ** -((low + high) / 2))


def calibration(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict:
    """ECE, NLL (nats) and Brier score as they are, and after scaling by a temperature that was
    fitted elsewhere (validation).
    """

    def scores(t):
        p = probabilities(logits, t)
        return {
            "ece": ece(p, labels),
            "nll": metrics.nll(logits / t, labels),
            "brier": brier(p, labels),
        }

    return {"temperature": temperature, "before": scores(1.0), "after": scores(temperature)}


def by_study(logits: np.ndarray, labels: np.ndarray, studies: list[str]) -> dict:
    """Accuracy of the mean probability over each study's views.

    A study whose images differ in label counts once a label.
    """
    groups = {}
    for row, key in enumerate(zip(studies, labels.tolist())):
        groups.setdefault(key, []).append(row)
    p = probabilities(logits)
    correct = [p[rows].mean(0).argmax() == label for (_, label), rows in groups.items()]
    return {"studies": len(groups), "accuracy": float(np.mean(correct))}


def agreement(
    predicted: np.ndarray, teacher: np.ndarray, labels: np.ndarray, paths: list[str]
) -> dict:
    """How student and teacher differ, image by image: predicted, teacher, labels int [N].

    Lists the first images newly wrong.
    """
    newly_wrong = np.flatnonzero((teacher == labels) & (predicted != labels))
    newly_right = int(((teacher != labels) & (predicted == labels)).sum())
    return {
        "same_prediction": float((predicted == teacher).mean()),
        "newly_wrong": len(newly_wrong),
        "newly_right": newly_right,
        "first_newly_wrong": [paths[row] for row in newly_wrong[:NEWLY_WRONG_LISTED]],
    }


def summarise(
    logits: np.ndarray, labels: np.ndarray, studies: list[str], temperature: float, graded: bool
) -> dict:
    """The figures beyond accuracy of some labelled images.

    F1 and recall are means over the classes that are there.

    `graded`: the classes are ordered grades, so kappa and referable AUC are told, too.
    """
    predicted, present = logits.argmax(1), np.unique(labels)
    return {
        "macro_f1": float(
            f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
        ),
        "balanced_accuracy": float(
            recall_score(labels, predicted, labels=present, average="macro", zero_division=0)
        ),
        "study": by_study(logits, labels, studies),
        "calibration": calibration(logits, labels, temperature),
        "grades": metrics.grades(logits, labels) if graded else None,
    }


def grades_text(grades: dict) -> str:
    """The figures of ordered grades on a line."""
    kappa, auc = (
        "undefined" if grades[key] is None else f"{grades[key]:.4f}"
        for key in ("quadratic_kappa", "referable_auc")
    )
    reason = f" ({grades['reason']})" if grades["reason"] else ""
    return f"quadratic weighted kappa {kappa}, AUC of referable (grade >= 2) {auc}{reason}"


def t_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t with `freedom` degrees (any real number from 1 on), for a
    probability from 0.5 to 1.

    With t = sqrt(freedom) * tan(angle) the density is a power of a cosine, which is summed on a
    fine grid.
    """
    freedom = min(freedom, 1e5)
    angle = np.linspace(0, np.pi / 2, 40_001)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.sqrt(freedom) * np.tan(np.interp(2 * probability - 1, mass / mass[-1], angle)))


def patient_variance(
    differences: np.ndarray, patients: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> float:
    """Variance of the mean of `differences` [N] when whole patients are drawn anew: a cluster
    bootstrap. patients [N].

    The factor P / (P - 1) makes up for drawing from the sample itself. 0 where there is one
    patient.
    """
    _, place = np.unique(patients, return_inverse=True)
    sums, counts = np.bincount(place, differences), np.bincount(place)
    if len(sums) < 2:
        return 0.0
    weights = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=draws
    )
    means = (weights @ sums) / (weights @ counts)
    return float(means.var(ddof=1) * len(sums) / (len(sums) - 1))


def difference(first: np.ndarray, second: np.ndarray, patients: np.ndarray) -> dict:
    """Mean of first - second over seeds and images, with its 95 % interval.

    first, second: whether each image is right, [seeds, N], paired by seed and image; patients [N].
    The variance is the sum of that between patients (paired cluster bootstrap of the differences,
    mean over seeds) and that between seeds (of the seeds' mean differences, over n); the interval
    is Student's t with Satterthwaite's degrees of freedom (1946, Biometrics 2, eq. 17). With one
    seed the interval knows of patients only: `seeds` is 1.
    """
    gaps = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    mean, n = float(gaps.mean()), len(gaps)
    between_patients, groups = patient_variance(gaps.mean(0), patients), len(np.unique(patients))
    between_seeds = float(gaps.mean(1).var(ddof=1) / n) if n > 1 else 0.0
    variance = between_patients + between_seeds
    parts = [(between_patients, groups - 1), (between_seeds, n - 1)]
    spread = sum(part**2 / degrees for part, degrees in parts if degrees > 0)
    freedom = max(1.0, variance**2 / spread) if spread > 0 else 1.0
    half = t_quantile((1 + LEVEL) / 2, freedom) * np.sqrt(variance)
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": n, "patients": groups}


def against_alone(gap: dict) -> str:
    """What an interval says of a student beside the same network trained alone."""
    return "better" if gap["low"] > 0 else "worse" if gap["high"] < 0 else "no evidence"


def against_teacher(gap: dict, margin: float) -> str:
    """What an interval says of a student beside its teacher: non-inferior within `margin` (a
    fraction), worse, or neither.
    """
    return (
        f"as good within {margin:g}"
        if gap["low"] > -margin
        else "worse"
        if gap["high"] < 0
        else "not shown"
    )
