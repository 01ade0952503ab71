"""Batches.

Order and augmentation are pure functions of (seed, epoch, slot); nothing here has a state.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from kd.data.feed import feed
from kd.data.index import digest
from kd.data.store import Joined, Store
from kd.system import ranks
from kd.system.devices import to_device
from kd.system.seeds import random_stream

TURN, SCALE, SHIFT = 10.0, 0.1, 0.05
_RECIPE = (  # to be counted up when the same (seed, epoch, slot) begins to give other pixels
    "views 1"
)
_ORDER, _VIEW = 0, 1


class Batch(NamedTuple):
    """images float32 [B, 3, S, S] in 0..1 (grey ones: one channel in memory, expanded), labels
    int64 [B] or None, slots int64 [B] (places in the part, on the CPU), and the epoch that they are
    seen in.

    Of several ranks each has its part of a batch. whole: images of all of them; share: what this
    part's mean counts for in the mean over ranks, 1 where all are alike; 0 for pictures that only
    stand in where there are too few for all ranks.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    slots: torch.Tensor
    epoch: int
    whole: int = 0
    share: float = 1.0


class Views:
    """One part of the data as batches.

    rows     int64 [n]: the store's row of each slot
    labels   int64 [N], of the store's rows; None for pictures that are seen without
    augment  shuffled and changed views, anew in each epoch; else every slot as it is, in order
    shown    so many slots make an epoch, with `shuffle` others in each; None: all
    """

    def __init__(
        self,
        store: Store | Joined,
        rows: np.ndarray,
        labels: np.ndarray | None,
        *,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
        shuffle: bool = False,
        augment: bool = False,
        shown: int | None = None,
    ):
        self.store, self.rows, self.device, self.seed = store, rows, device, seed
        self.batch_size, self.shuffle, self.augment, self.shown = (
            batch_size,
            shuffle,
            augment,
            shown or len(rows),
        )
        self.labels, self._feed = None if labels is None else torch.from_numpy(labels[rows]), None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def steps(self) -> int:
        """Batches an epoch.

        A last batch of one joins the one before it: BatchNorm has no variance of one value.
        """
        full, rest = divmod(self.shown, self.batch_size)
        return max(1, full + (rest > 1 or (rest == 1 and not self.shuffle)))

    def order(self, epoch: int) -> np.ndarray:
        """Slots in the order of an epoch: int64 [shown]."""
        slots = np.arange(len(self))
        return (
            random_stream(self.seed, _ORDER, epoch).permutation(slots) if self.shuffle else slots
        )[: self.shown]

    def epoch(self, epoch: int, first_step: int = 0):
        """The batches of an epoch from `first_step` on; of several ranks this one's part of each.

        A batch is the same set of images whatever the number of ranks. In training (shuffled) every
        rank has a part of each.
        """
        order = self.order(epoch)
        ends = [*range(self.batch_size, self.steps * self.batch_size, self.batch_size), len(order)]
        every = [
            order[step * self.batch_size : ends[step]] for step in range(first_step, self.steps)
        ]
        parts = [(len(slots), *ranks.part_of_batch(slots, self.shuffle)) for slots in every]
        parts = [part for part in parts if len(part[1])]
        for (whole, _, share), batch in zip(
            parts, self.batches(epoch, [own for _, own, _ in parts])
        ):
            yield batch._replace(whole=whole, share=share)

    def batches(self, epoch: int, slots_of: list[np.ndarray]):
        """The batches of given slots, as they are seen in an epoch."""
        recipe = (
            torch.from_numpy(view_recipe(self.seed, epoch, len(self))) if self.augment else None
        )
        self._feed = self._feed or feed(self.store, self.rows, self.device)
        for slots, pictures in zip(slots_of, self._feed(slots_of)):
            images = pictures.to(torch.float32).div_(255)
            if recipe is not None:
                images = warp(images, to_device(recipe[slots], self.device))
            labels = None if self.labels is None else to_device(self.labels[slots], self.device)
            yield Batch(images.expand(-1, 3, -1, -1), labels, torch.from_numpy(slots), epoch)

    def identity(self) -> str:
        """A name for the pixels of every (epoch, slot): pictures, their preparation, and how they
        are seen.
        """
        seen = f"{_RECIPE} {TURN} {SCALE} {SHIFT} {self.seed}" if self.augment else "as they are"
        return digest([self.store.recipe, seen, self.store.hashes[self.rows].tobytes().hex()])


def view_recipe(seed: int, epoch: int, slots: int) -> np.ndarray:
    """How each slot is seen in an epoch: float32 [slots, 2, 3], matrices from output to input
    coordinates (-1..1).

    Mirrored with probability 1/2; turned by up to 10 degrees, scaled by up to 10 %, shifted by up
    to 5 % of the side. A row depends on (seed, epoch, slot) alone, not on how many slots there are.
    """
    random = random_stream(seed, _VIEW, epoch).random((slots, 5))
    centred = 2 * random - 1
    mirror = np.where(random[:, 0] < 0.5, 1.0, -1.0)
    angle = np.deg2rad(TURN) * centred[:, 1]
    scale = 1 / (1 + SCALE * centred[:, 2])
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    shift = 2 * SHIFT * centred[:, 3:]
    matrix = np.stack(
        [
            np.stack([cos * mirror, -sin, shift[:, 0]], 1),
            np.stack([sin * mirror, cos, shift[:, 1]], 1),
        ],
        1,
    )
    return matrix.astype(np.float32)


def warp(images: torch.Tensor, recipe: torch.Tensor) -> torch.Tensor:
    """images [B, C, S, S] seen through affine matrices [B, 2, 3]; bilinear, black beyond the edges."""
    side = images.shape[-1]
    centres = (2 * torch.arange(side, dtype=torch.float32, device=images.device) + 1) / side - 1
    # What F.affine_grid gives, as a sum of rows and columns: half its time, and the same bits in a
    # batch of any size.
    across = recipe[:, None, None, :, 0] * centres.view(1, 1, side, 1)
    down = recipe[:, None, None, :, 1] * centres.view(1, side, 1, 1) + recipe[:, None, None, :, 2]
    return F.grid_sample(
        images, across + down, mode="bilinear", padding_mode="zeros", align_corners=False
    )
