"""Calibration: how well the confidence of predictions matches their accuracy.

All functions are pure functions of arrays.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

from kd.reports import metrics

BINS = 15
# Range of the fitted temperature.
LOWEST = 0.01
HIGHEST = 100.0
# Why there is no temperature, in the report.
NO_TEMPERATURE = (
    "no temperature between 0.01 and 100 makes the validation labels most likely (for example"
    " because all validation images are classified correctly)"
)


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return softmax(logits / T) in float64. logits [N, K] -> [N, K]."""
    return softmax(logits.astype(np.float64) / temperature, axis=1)


def confidence_bins(p: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[dict]:
    """Return the count, mean confidence and accuracy of the images in each bin of confidence.

    The bins divide 0..1 into equal steps. In an empty bin, mean confidence and accuracy are None. A
    confidence on a border belongs to the lower bin. p [N, K], labels [N].
    """
    confidence = p.max(1)
    correct = p.argmax(1) == labels
    bin_of = _equal_steps(confidence, bins)
    rows = []
    for number in range(bins):
        inside = bin_of == number
        row = {"count": int(inside.sum()), "confidence": None, "accuracy": None}
        if inside.any():
            row["confidence"] = float(confidence[inside].mean())
            row["accuracy"] = float(correct[inside].mean())
        rows.append(row)
    return rows


def _equal_steps(values: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each value in 0..1; a value on a border belongs to the lower bin."""
    return np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)


def equal_counts(values: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the bin of each value, in bins of about equal counts: int [N], 0, 1, ... without gaps.

    A bin begins at the value of rank b * N / bins. Equal values belong to the same bin, whatever
    their order, so there can be fewer bins, whose counts differ. There are never more than N.
    values [N], N >= 1.
    """
    ranks = np.arange(bins) * len(values) // bins
    starts = np.unique(np.sort(values)[ranks])  # the first one is the smallest value
    return np.searchsorted(starts, values, side="right") - 1


def ece(p: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error.

    It is the sum over bins of n_b / N * |accuracy_b - confidence_b| (Guo et al. 2017, 1706.04599,
    eq. 3). p [N, K], labels [N].
    """
    total = 0
    for row in confidence_bins(p, labels, bins):
        if row["count"]:
            total += row["count"] * abs(row["accuracy"] - row["confidence"])
    return total / len(labels)


def adaptive_ece(p: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error of the confidence, with bins of about equal counts.

    Bins of equal steps leave most of them almost empty if most confidences are near 1 (Nixon et al.
    2019, 1904.01685; for the bins, see `equal_counts`). p [N, K], labels [N].
    """
    confidence = p.max(1)
    return _gap(equal_counts(confidence, bins), confidence, p.argmax(1) == labels)


def classwise_ece(p: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the mean over classes of the calibration error of the probability of each class.

    For class k, it is the sum over bins of n_b / N * |frequency of k in b - mean p_k in b|, with
    bins of equal steps (the static calibration error of Nixon et al. 2019, 1904.01685).
    All K classes count: the frequency of a class without images is 0, so all its probability is
    error. With many classes, most probabilities are near 0 and so is the result; compare it only
    between networks for the same classes. p [N, K], labels [N].
    """
    gaps = []
    for k in range(p.shape[1]):
        gaps.append(_gap(_equal_steps(p[:, k], bins), p[:, k], labels == k))
    return float(np.mean(gaps))


def _gap(bin_of: np.ndarray, predicted: np.ndarray, observed: np.ndarray) -> float:
    """Return the sum of bins of n_b / N * |mean observed - mean predicted|; all arrays are [N]."""
    return float(np.abs(np.bincount(bin_of, observed - predicted)).sum() / len(bin_of))


def frequency_bins(p: np.ndarray, happened: np.ndarray, bins: int = 10) -> list[dict]:
    """Return the count, mean probability and observed frequency in bins of about equal counts.

    p [N]: the predicted probability of an event, such as a class; happened [N]: bool. The bins are
    those of `equal_counts`, in ascending order.
    """
    bin_of = equal_counts(p, bins)
    rows = []
    for number in range(bin_of.max() + 1):
        inside = bin_of == number
        rows.append(
            {
                "count": int(inside.sum()),
                "predicted": float(p[inside].mean()),
                "observed": float(happened[inside].mean()),
            }
        )
    return rows


def brier(p: np.ndarray, labels: np.ndarray) -> float:
    """Return the Brier score: the mean squared distance between p and the one-hot label.

    The distance is summed over classes, so the score is between 0 and 2 (Brier 1950).
    """
    return float(((p - np.eye(p.shape[1])[labels]) ** 2).sum(1).mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the T between 1/100 and 100 at which softmax(logits / T) makes the labels most likely.

    Guo et al. 2017, section 4.2. The negative log-likelihood is convex in 1/T, so T is the point
    where its slope is 0. Returns None if the slope does not change its sign between the bounds.
    That is so, for example, if all images are classified correctly: the smaller T, the more likely
    are these labels, and the more certain is the network of its errors on other images. logits
    [N, K], labels [N].
    """
    logits = logits.astype(np.float64)
    # Relative to the label's own logit, so that rounding does not hide the sign of the slope when
    # all images are classified correctly.
    above_own = logits - logits[np.arange(len(labels)), labels][:, None]

    def slope(log_t: float) -> float:
        """Return the derivative of the mean negative log-likelihood by 1/T at T = 10^log_t."""
        return float((probabilities(logits, 10**log_t) * above_own).sum(1).mean())

    lowest, highest = np.log10([LOWEST, HIGHEST])
    if slope(lowest) <= 0 or slope(highest) >= 0:
        return None
    return float(10 ** brentq(slope, lowest, highest, xtol=1e-12))


def is_fitted(temperature: float) -> bool:
    """Return whether a temperature is an optimum rather than a bound of the range."""
    return LOWEST < temperature < HIGHEST


def calibration(logits: np.ndarray, labels: np.ndarray, temperature: float | None) -> dict:
    """Return ECE, NLL (nats) and Brier score before and after scaling by a temperature.

    The temperature was fitted on other data (the validation split). If it is None, so is `after`,
    and `reason` explains why; otherwise `reason` is None. logits [N, K], labels [N].
    """
    fitted = temperature is not None
    return {
        "temperature": temperature,
        "before": _scores(logits, labels, 1.0),
        "after": _scores(logits, labels, temperature) if fitted else None,
        "reason": None if fitted else NO_TEMPERATURE,
    }


def _scores(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict:
    p = probabilities(logits, temperature)
    return {
        "ece": ece(p, labels),
        "classwise_ece": classwise_ece(p, labels),
        "adaptive_ece": adaptive_ece(p, labels),
        "nll": metrics.nll(logits / temperature, labels),
        "brier": brier(p, labels),
    }
