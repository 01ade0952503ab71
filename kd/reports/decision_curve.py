"""Decision curves: the net benefit of acting on predictions, by the threshold of acting."""

import numpy as np

THRESHOLDS = np.arange(1, 100) / 100


def decision_curve(
    p: np.ndarray, positive: np.ndarray, thresholds: np.ndarray = THRESHOLDS
) -> dict[str, np.ndarray]:
    """Return the net benefit of the network, of treating all and of treating none.

    A patient is treated if p >= t. The threshold t is the probability at which treating and not
    treating are equally good, so that one unnecessary treatment costs t / (1 - t) of the benefit of
    a necessary one:

        net benefit = TP / N - FP / N * t / (1 - t)

    (Vickers and Elkin 2006, Medical Decision Making 26). It is at most the prevalence, and below 0
    where treating none is better. It depends on the prevalence among these images, and is
    meaningful only if p is calibrated.

    p [N]: the calibrated probability of the positive class; positive [N]: bool or 0 and 1;
    thresholds [T], each above 0 and below 1. N >= 1. Returns `thresholds`, `network`, `all` and
    `none`, each [T].
    """
    positive = np.asarray(positive, dtype=bool)
    odds = thresholds / (1 - thresholds)
    prevalence = positive.mean()
    true_positives = _at_least(p[positive], thresholds) / len(p)
    false_positives = _at_least(p[~positive], thresholds) / len(p)
    return {
        "thresholds": thresholds,
        "network": true_positives - false_positives * odds,
        "all": prevalence - (1 - prevalence) * odds,
        "none": np.zeros(len(thresholds)),
    }


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return how many values are at or above each threshold: int [T]."""
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")
