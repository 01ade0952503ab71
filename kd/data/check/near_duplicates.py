"""Find images that show the same, although their files differ: a film that was saved again.

Two images are near-duplicates if their difference hashes differ in at most MAX_BITS of 256 bits,
and the fine structures of their thumbnails correlate by at least MIN_CORRELATION. On 3,480
paediatric chest radiographs, the highest correlation of two different films is 0.68, and that of a
film with a copy that was resized, made 20 % brighter or darker, or saved as JPEG of quality 30 is
at least 0.95. A copy that was cropped by 1 % on each side, or rotated, is usually not found.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from PIL import Image

from kd.system.console import progress

MAX_BITS = 32
MIN_CORRELATION = 0.9
CLIP = 3  # times the median of the fine structure
LIMIT = 1_000_000  # pairs, after which the search ends
_SIDE = 32  # of a thumbnail
_READ_SIDE = 128  # each pixel of a thumbnail is the mean of 4 x 4 of these
_FLAT = 2.0  # grey levels between the darkest and the brightest pixel of a flat thumbnail
_NOISE = 6  # 1.5 grey levels, in the sum of the 4 pixels of a cell
_ROWS, _COLUMNS = 256, 2048  # of a block of pairs that fits into the cache of a processor
_DENSE = 0.02  # share of pairs above which it is faster to correlate all pairs of a block


def thumbnail(image: Image.Image) -> np.ndarray | None:
    """Return a thumbnail, uint8 [32, 32], over its own range of brightness.

    It is None for a flat image: of mode F if all values are equal, of other modes if they differ by
    less than two grey levels.
    """
    is_float = image.mode == "F"
    grey = image if is_float else image.convert("L")
    grey = grey.resize((_READ_SIDE, _READ_SIDE), Image.Resampling.BILINEAR)
    factor = _READ_SIDE // _SIDE
    blocks = np.asarray(grey, np.float64).reshape(_SIDE, factor, _SIDE, factor)
    means = blocks.mean((1, 3))
    low, high = means.min(), means.max()
    if high - low <= (0 if is_float else _FLAT):
        return None
    return np.round((means - low) * (255 / (high - low))).astype(np.uint8)


def difference_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Return a hash of 256 bits of each thumbnail, uint8 [N, 32, 32]: uint64 [4, N].

    Each bit says whether one of 16 x 16 cells is brighter than its right neighbour (the last cell
    of a row is compared with the first), by more than the noise of an empty background.
    """
    cells = thumbnails.reshape(-1, 16, 2, 16, 2).sum((2, 4), dtype=np.uint16)
    bits = cells > np.roll(cells, -1, axis=2) + _NOISE
    words = np.packbits(bits.reshape(len(bits), 256), axis=1).view(np.uint64)
    return np.ascontiguousarray(words.T)


def fine_structures(thumbnails: np.ndarray) -> np.ndarray:
    """Return what distinguishes images of the same kind: float32 [N, 1024], of length 1.

    This is each thumbnail, uint8 [N, 32, 32], minus the mean of the 3 x 3 pixels around each pixel,
    and clipped: strong edges are alike in all images of a kind, such as that of the disc in fundus
    photographs, and would outweigh everything else. The product of two rows is their correlation.
    """
    result = np.empty((len(thumbnails), _SIDE * _SIDE), np.float32)
    for start in range(0, len(thumbnails), 1024):
        part = thumbnails[start : start + 1024].astype(np.float32)
        padded = np.pad(part, ((0, 0), (1, 1), (1, 1)), mode="edge")
        for down in range(3):
            for right in range(3):
                part -= padded[:, down : down + _SIDE, right : right + _SIDE] / 9
        flat = part.reshape(len(part), -1)
        # More than the median, because a large part may be empty background.
        limit = CLIP * (np.median(np.abs(flat), axis=1, keepdims=True) + 0.2)
        flat = np.clip(flat, -limit, limit)
        flat -= flat.mean(1, keepdims=True)
        length = np.linalg.norm(flat, axis=1, keepdims=True)
        result[start : start + 1024] = flat / np.maximum(length, 1e-6)
    return result


def find_pairs(thumbnails: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return (all pairs of near-duplicates, whether the search is complete).

    thumbnails  uint8 [N, 32, 32]

    The pairs are positions in `thumbnails`, int64 [P, 2], each with the smaller one first. The
    search compares all pairs (about 15 s for 40,000 images on two cores) and ends after LIMIT
    pairs.
    """
    found = [np.empty((0, 2), np.int64)]
    number = 0
    blocks = sum(1 for _ in _corners(len(thumbnails)))
    with progress(blocks, "near-duplicates", "blocks", short=True) as shown:
        for pairs in _pairs_by_block(thumbnails):
            shown.update()
            found.append(pairs)
            number += len(pairs)
            if number > LIMIT:
                return np.concatenate(found)[:LIMIT], False
    return np.concatenate(found), True


def _pairs_by_block(thumbnails: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the pairs of _ROWS images with _COLUMNS later ones, block by block."""
    hashes = difference_hashes(thumbnails)
    structures = fine_structures(thumbnails)

    def compare(corner: tuple[int, int]) -> np.ndarray:
        return _pairs_of(*corner, hashes, structures)

    corners = iter(_corners(len(thumbnails)))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        # A few blocks at a time, so that little is left to do when the search ends early.
        while some := list(islice(corners, 64)):
            yield from threads.map(compare, some)


def _corners(number: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the first column of blocks that hold all pairs of `number` images."""
    for row in range(0, number, _ROWS):
        for column in range(row, number, _COLUMNS):
            yield row, column


def _pairs_of(row: int, column: int, hashes: np.ndarray, structures: np.ndarray) -> np.ndarray:
    """Return the pairs of a block: int64 [P, 2]."""
    alike = _differing_bits(hashes[:, row : row + _ROWS], hashes[:, column : column + _COLUMNS])
    alike = alike <= MAX_BITS
    if row == column:
        alike = np.triu(alike, 1)  # each image once with each later one
    firsts, seconds = np.nonzero(alike)
    if len(firsts) > _DENSE * alike.size:
        block = structures[row : row + _ROWS] @ structures[column : column + _COLUMNS].T
        correlations = block[firsts, seconds]
    else:
        correlations = np.einsum("ij,ij->i", structures[row + firsts], structures[column + seconds])
    pairs = np.stack([row + firsts, column + seconds], axis=1)
    return pairs[correlations >= MIN_CORRELATION]


def _differing_bits(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return in how many bits hashes, uint64 [4, n] and [4, m], differ: uint8 [n, m].

    If all 256 bits differ, the result is 0: then the images are not alike, which their fine
    structures show.
    """
    shape = (first.shape[1], second.shape[1])
    total = np.zeros(shape, np.uint8)
    differing = np.empty(shape, np.uint64)
    count = np.empty(shape, np.uint8)
    for one, other in zip(first, second):
        np.bitwise_xor(one[:, None], other[None], out=differing)
        np.bitwise_count(differing, out=count)
        total += count
    return total
