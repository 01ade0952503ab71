"""Batches whose order and augmentation are pure functions of (seed, epoch, slot)."""

import copy
from dataclasses import dataclass
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

TURN = 10.0  # degrees
SCALE = 0.1
SHIFT = 0.05  # of the side
# Increase the number when a change makes the same (seed, epoch, slot) give other pixels.
_RECIPE = "views 1"
# Keys of `random_stream`, one for each purpose.
_ORDER = 0
_VIEW = 1


class Batch(NamedTuple):
    """A batch, or one rank's share of it.

    images  float32 [B, 3, S, S] in 0..1; grey images have one channel in memory, expanded to three
    labels  int64 [B], or None
    slots   int64 [B], on the CPU: positions in the split
    epoch   the epoch that the batch belongs to
    whole   number of images of all ranks together
    share   weight of this rank's mean in the mean over ranks: 1 if all ranks have the same number
            of images, 0 if the images are only a placeholder, because the batch has too few images
            for all ranks
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    slots: torch.Tensor
    epoch: int
    whole: int = 0
    share: float = 1.0


@dataclass(frozen=True)
class BatchOrder:
    """How the slots of a split become batches.

    seed     seed of the order and the augmentation
    shuffle  whether each epoch has another order; otherwise, it is that of the slots
    augment  whether images are augmented, differently in each epoch; otherwise, they are unchanged
    shown    number of slots in an epoch, other slots in each epoch with `shuffle`; None for all
    """

    batch_size: int
    seed: int = 0
    shuffle: bool = False
    augment: bool = False
    shown: int | None = None


class Views:
    """A split of the data as batches.

    rows    int64 [n]: the store's row of each slot
    labels  int64 [N]: the label of each row of the store; None for images without labels
    order   the fields of a BatchOrder
    """

    def __init__(
        self,
        store: Store | Joined,
        rows: np.ndarray,
        labels: np.ndarray | None,
        *,
        device: torch.device,
        **order,
    ):
        order = BatchOrder(**order)
        self.store = store
        self.rows = rows
        self.labels = None if labels is None else torch.from_numpy(labels[rows])
        self.device = device
        self.batch_size = order.batch_size
        self.seed = order.seed
        self.shuffle = order.shuffle
        self.augment = order.augment
        self.shown = order.shown or len(rows)
        self._feed = None
        self._last_recipe = None, None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def steps(self) -> int:
        """Number of batches in an epoch.

        In training, a last batch of one image is merged into the previous batch, because BatchNorm
        cannot compute the variance of one value.
        """
        full, rest = divmod(self.shown, self.batch_size)
        fewest = 2 if self.shuffle else 1
        if rest >= fewest:
            full += 1
        return max(1, full)

    def order(self, epoch: int) -> np.ndarray:
        """Return the slots in the order of an epoch: int64 [shown]."""
        slots = np.arange(len(self))
        if self.shuffle:
            slots = random_stream(self.seed, _ORDER, epoch).permutation(slots)
        return slots[: self.shown]

    def epoch(self, epoch: int, first_step: int = 0):
        """Yield the batches of an epoch from `first_step` on.

        With several ranks, this yields the shares of this rank. A batch is the same set of images
        for any number of ranks. In training (with `shuffle`), every rank has a share of each batch.
        """
        sizes = []
        own_slots = []
        shares = []
        for slots in self._slots_of_steps(epoch, first_step):
            own, share = ranks.part_of_batch(slots, self.shuffle)
            if len(own):
                sizes.append(len(slots))
                own_slots.append(own)
                shares.append(share)
        batches = self.batches(epoch, own_slots)
        for size, share, batch in zip(sizes, shares, batches):
            yield batch._replace(whole=size, share=share)

    def _slots_of_steps(self, epoch: int, first_step: int) -> list[np.ndarray]:
        """Return the slots of each step of an epoch; the last step includes all remaining slots."""
        order = self.order(epoch)
        steps = []
        for step in range(first_step, self.steps):
            start = step * self.batch_size
            end = len(order) if step == self.steps - 1 else start + self.batch_size
            steps.append(order[start:end])
        return steps

    def batches(self, epoch: int, slots_of: list[np.ndarray]):
        """Yield the batches of given slots, with the augmentation of an epoch."""
        recipe = self._recipe(epoch) if self.augment else None
        if self._feed is None:
            self._feed = feed(self.store, self.rows, self.device)
        for slots, stored in zip(slots_of, self._feed(slots_of)):
            images = stored.to(torch.float32).div_(255)
            if recipe is not None:
                images = warp(images, to_device(recipe[slots], self.device))
            labels = None if self.labels is None else to_device(self.labels[slots], self.device)
            yield Batch(images.expand(-1, 3, -1, -1), labels, torch.from_numpy(slots), epoch)

    def _recipe(self, epoch: int) -> torch.Tensor:
        """Return the augmentation of each slot; that of the last epoch is kept."""
        key = self.seed, epoch
        if self._last_recipe[0] != key:
            self._last_recipe = key, torch.from_numpy(view_recipe(*key, len(self)))
        return self._last_recipe[1]

    def over(self, store: Store | Joined) -> "Views":
        """Return the same views of the images in another store, without labels.

        The store has the same images in the same rows, for example decoded at another size.
        """
        other = copy.copy(self)
        other.store, other.labels, other._feed = store, None, None
        return other

    def identity(self) -> str:
        """Return a hash that identifies the pixels of every (epoch, slot).

        It changes with the images, their preparation and their augmentation.
        """
        seen = "as they are"
        if self.augment:
            seen = f"{_RECIPE} {TURN} {SCALE} {SHIFT} {self.seed}"
        return digest([self.store.recipe, seen, self.store.hashes[self.rows].tobytes().hex()])


def view_recipe(seed: int, epoch: int, slots: int) -> np.ndarray:
    """Return the augmentation of each slot in an epoch: float32 [slots, 2, 3].

    The result holds affine matrices from output to input coordinates (-1..1). Images are mirrored
    with probability 1/2, rotated by up to 10 degrees, scaled by up to 10 %, and shifted by up to
    5 % of the side. A matrix depends only on (seed, epoch, slot), not on the number of slots.
    """
    random = random_stream(seed, _VIEW, epoch).random((slots, 5))
    centred = 2 * random - 1
    mirror = np.where(random[:, 0] < 0.5, 1.0, -1.0)
    angle = np.deg2rad(TURN) * centred[:, 1]
    scale = 1 / (1 + SCALE * centred[:, 2])
    cos = np.cos(angle) * scale
    sin = np.sin(angle) * scale
    shift = 2 * SHIFT * centred[:, 3:]
    across = np.stack([cos * mirror, -sin, shift[:, 0]], 1)
    down = np.stack([sin * mirror, cos, shift[:, 1]], 1)
    return np.stack([across, down], 1).astype(np.float32)


def warp(images: torch.Tensor, recipe: torch.Tensor) -> torch.Tensor:
    """Transform images [B, C, S, S] by affine matrices [B, 2, 3].

    Interpolation is bilinear, and pixels outside the image are black.
    """
    side = images.shape[-1]
    centres = (2 * torch.arange(side, dtype=torch.float32, device=images.device) + 1) / side - 1
    # This computes the grid of F.affine_grid as a sum of rows and columns, with x and y as planes.
    # It takes a quarter of the time and gives the same bits for a batch of any size.
    across = recipe[:, :, 0, None, None] * centres.view(1, 1, 1, side)
    down = recipe[:, :, 1, None, None] * centres.view(1, 1, side, 1) + recipe[:, :, 2, None, None]
    grid = (across + down).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
