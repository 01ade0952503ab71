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
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = []
    for number in range(bins):
        inside = bin_of == number
        row = {"count": int(inside.sum()), "confidence": None, "accuracy": None}
        if inside.any():
            row["confidence"] = float(confidence[inside].mean())
            row["accuracy"] = float(correct[inside].mean())
        rows.append(row)
    return rows


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
        "nll": metrics.nll(logits / temperature, labels),
        "brier": brier(p, labels),
    }
