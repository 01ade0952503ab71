"""Areas under the ROC and the precision-recall curve, for all resamples of patients at once."""

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from kd.reports.resampling import Resamples

# Different logits can give equal probabilities. Without rounding, their last bits would break such
# ties.
DIGITS = 10


class Areas(NamedTuple):
    """Both areas for each resample [S]; nan where a class is absent."""

    auroc: np.ndarray
    auprc: np.ndarray


def log_odds(logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the log-odds of some classes against all others, rounded to DIGITS digits.

    They have the order of the summed probabilities and keep it near 0 and 1. logits [N, K], chosen
    bool [K], at least one class chosen and at least one not.
    """
    logits = logits.astype(np.float64)
    odds = logsumexp(logits[:, chosen], axis=1) - logsumexp(logits[:, ~chosen], axis=1)
    return odds.round(DIGITS)


def areas(scores: np.ndarray, positive: np.ndarray, resamples: Resamples) -> Areas:
    """Return the areas under both curves of a score.

    The ROC curve is joined by straight lines, so that a tie of a positive and a negative image
    counts one half. The area under the precision-recall curve is the average precision: the sum of
    (recall_n - recall_{n-1}) * precision_n over the distinct scores, without interpolation. Both
    are those of scikit-learn. scores [N], positive bool [N].
    """
    order = np.argsort(-scores, kind="stable")
    falling, is_positive = scores[order], positive[order].astype(float)
    ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    parts = []
    for _, weights in resamples.blocks(order):
        found = np.cumsum(weights, axis=1)[:, ends]
        weights *= is_positive
        hits = np.cumsum(weights, axis=1)[:, ends]
        parts.append(_areas_of(hits, found - hits))
    return Areas(*map(np.concatenate, zip(*parts, strict=True)))


def _areas_of(hits: np.ndarray, false: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both areas from the positive and negative images at or above each score [r, n]."""
    more_hits = np.diff(hits, axis=1, prepend=0)
    more_false = np.diff(false, axis=1, prepend=0)
    positives, negatives = hits[:, -1], false[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (more_false * (hits - more_hits / 2)).sum(1) / (positives * negatives)
        # Where no image has been counted yet, there is no precision, and recall does not rise.
        precision = np.where(hits > 0, hits / (hits + false), 0)
        auprc = (more_hits * precision).sum(1) / positives
    return auroc, np.where(negatives > 0, auprc, np.nan)
