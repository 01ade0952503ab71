"""How alike the maps of two networks are, and whether they point into boxes, with intervals."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from kd.data.boxes import Box
from kd.reports import intervals
from kd.reports.intervals import Basis
from kd.reports.resampled import ratio
from kd.reports.resampling import Resamples, Sampled
from kd.studies.look.gradcam import Together

CHUNK = 64  # images whose enlarged maps are in memory at a time
DIGITS = 6  # values of a map that are equal to so many digits differ by rounding only
CORRELATION = (-1.0, 1.0)  # range
SHARE = (0.0, 1.0)
NOTHING = "no image has it"
FEW = "two patients at least are needed"


def correlations(
    first: Together,
    second: Together,
    side: int,
    rows: np.ndarray,
    others: np.ndarray | None = None,
) -> np.ndarray:
    """Return the rank correlation of the enlarged maps of two networks for some images: [n].

    It is nan where a map is the same everywhere, because nothing speaks for the class.

    others  the images of the second network, if they are not `rows`, too
    """
    others = rows if others is None else others
    found = []
    for start in range(0, len(rows), CHUNK):
        sides = []
        for one, images in ((first, rows), (second, others)):
            some = images[start : start + CHUNK]
            sides.append(one.maps(side, some).reshape(len(some), -1))
        found.append(rank_correlation(*sides))
    return np.concatenate(found) if found else np.zeros(0)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of each row of two arrays [n, P]: [n].

    Equal values have the mean of their ranks. It is nan where all values of a row are equal.
    """
    centred = []
    for values in (first, second):
        ranks = stats.rankdata(np.round(values, DIGITS), axis=1)
        centred.append(ranks - (values.shape[1] + 1) / 2)
    one, other = centred
    spread = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    return ratio((one * other).sum(1), spread)


def pointing(looks: Together, side: int, boxes: dict[int, list[Box]], count: int) -> np.ndarray:
    """Return whether the maximum of each map is in a box of its image: [count], as 0 or 1.

    It is nan without a box, and 0 for a map that is empty: it points nowhere. This is the pointing
    game of Zhang et al. 2016, arXiv:1608.00507, without a margin around the boxes.

    boxes  position of an image -> its boxes, in pixels of the maps
    """
    found = np.full(count, np.nan)
    rows = np.array(sorted(boxes), dtype=np.int64)
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        for row, own in zip(some, looks.maps(side, some)):
            y, x = peak(own)
            found[row] = own.any() and any(box.has(x, y) for box in boxes[row])
    return found


def peak(own: np.ndarray) -> tuple[int, int]:
    """Return (y, x) of the highest pixel of a map [S, S].

    At the border, the enlarged map is flat from the outermost position on. Of equally high pixels,
    the one nearest to the middle of the image is therefore taken: the position itself.
    """
    places = np.argwhere(np.round(own, DIGITS) >= np.round(own.max(), DIGITS))
    away = ((places - (len(own) - 1) / 2) ** 2).sum(1)
    y, x = places[away.argmin()]
    return int(y), int(x)


def mean(scores: Sequence[np.ndarray], resamples: Resamples, ends: tuple[float, float]) -> dict:
    """Return the mean score of images over seeds, with its 95 % interval over patients and seeds.

    `value`, `low`, `high`, `reason` as in `measures.measure`, `images` (the smallest number of a
    seed that has a score) and `seeds`. With one seed the interval is only due to the choice of the
    patients, see `intervals.of_share`; with several it is that of a difference from 0.

    scores  of each seed, [N], nan where an image has none
    ends    the range of a score
    """
    found, reason = _sampled(scores, resamples)
    if reason:
        return found | {"reason": reason}
    sampled, basis = found.pop("sampled"), found.pop("basis")
    if len(sampled) > 1:
        interval, reason = intervals.of_difference(sampled, basis, ends)
        if interval:
            interval = max(ends[0], interval[0]), min(ends[1], interval[1])
    else:
        spread = intervals.spread(sampled[0], basis)
        interval = spread and intervals.of_share(sampled[0], spread, basis, ends)
        reason = None if interval else intervals.NOT_DEFINED
    return _with_interval(found, interval, reason)


def difference(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    resamples: Resamples,
    ends: tuple[float, float],
) -> dict:
    """Return the mean of first - second, as `mean` does: of images that have both scores.

    The seeds are paired. The interval is that of `intervals.of_difference`.
    """
    gaps = [one - other for one, other in zip(first, second, strict=True)]
    found, reason = _sampled(gaps, resamples)
    if reason:
        return found | {"reason": reason}
    sampled, basis = found.pop("sampled"), found.pop("basis")
    return _with_interval(found, *intervals.of_difference(sampled, basis, ends))


def _sampled(scores: Sequence[np.ndarray], resamples: Resamples) -> tuple[dict, str | None]:
    """Return (the mean with all that its interval needs, why there is no interval)."""
    known = [np.isfinite(own) for own in scores]
    images = min((int(own.sum()) for own in known), default=0)
    found = {"value": None, "low": None, "high": None, "images": images, "seeds": len(scores)}
    if not images:
        return found, NOTHING
    sampled = [_mean_on_resamples(own, resamples) for own in scores]
    found["value"] = float(np.mean([one.value for one in sampled]))
    bases = []
    for own in known:
        units = resamples.by_patient(own.astype(float))[:, 0]
        if (units > 0).sum() < 2:
            return found, FEW
        bases.append(intervals.basis([intervals.effective(units)]))
    return found | {"sampled": sampled, "basis": min(bases, key=_freedom)}, None


def _freedom(basis: Basis) -> float:
    return basis.freedom


def _mean_on_resamples(scores: np.ndarray, resamples: Resamples) -> Sampled:
    known = np.isfinite(scores)
    sums = resamples.sums(np.where(known, scores, 0.0))[:, 0]
    return resamples.split(ratio(sums, resamples.sums(known.astype(float))[:, 0]))


def _with_interval(found: dict, interval: tuple | None, reason: str | None) -> dict:
    low, high = map(float, interval) if interval else (None, None)
    return found | {"low": low, "high": high, "reason": reason}
