"""Batches. Order and augmentation are pure functions of (seed, epoch, slot); nothing here has a state."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from kd.data.store import Store
from kd.runtime import random_stream

TURN, SCALE, SHIFT = 10.0, 0.1, 0.05
_ORDER, _VIEW = 0, 1


class Batch(NamedTuple):
    """images float32 [B, 3, S, S] in 0..1, labels int64 [B], slots int64 [B] (places in the part, on the CPU)."""

    images: torch.Tensor
    labels: torch.Tensor
    slots: torch.Tensor


class Views:
    """One part of the data as batches.

    rows     int64 [n]: the store's row of each slot
    augment  shuffled and changed views, anew in each epoch; else every slot as it is, in order
    """

    def __init__(self, store: Store, rows: np.ndarray, labels: np.ndarray, *, batch_size: int, device: torch.device,
                 seed: int = 0, shuffle: bool = False, augment: bool = False):
        self.store, self.rows, self.device, self.seed = store, rows, device, seed
        self.batch_size, self.shuffle, self.augment = batch_size, shuffle, augment
        self.labels = torch.from_numpy(labels[rows])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def steps(self) -> int:
        """Batches an epoch. A last batch of one joins the one before it: BatchNorm has no variance of one value."""
        full, rest = divmod(len(self), self.batch_size)
        return max(1, full + (rest > 1 or (rest == 1 and not self.shuffle)))

    def order(self, epoch: int) -> np.ndarray:
        """Slots in the order of an epoch: int64 [n]."""
        slots = np.arange(len(self))
        return random_stream(self.seed, _ORDER, epoch).permutation(slots) if self.shuffle else slots

    def epoch(self, epoch: int, first_step: int = 0):
        """The batches of an epoch from `first_step` on."""
        order = self.order(epoch)
        recipe = torch.from_numpy(view_recipe(self.seed, epoch, len(self))) if self.augment else None
        for step in range(first_step, self.steps):
            end = len(order) if step == self.steps - 1 else (step + 1) * self.batch_size
            yield self.take(order[step * self.batch_size:end], recipe)

    def take(self, slots: np.ndarray, recipe: torch.Tensor | None = None) -> Batch:
        """The batch of some slots; `recipe` [n, 2, 3] changes them, else they come as they are."""
        pictures = self.store.gather(self.rows[slots]).to(self.device, non_blocking=True)
        images = pictures.to(torch.float32).div_(255)
        if recipe is not None:
            images = warp(images, recipe[slots].to(self.device, non_blocking=True))
        labels = self.labels[slots].to(self.device, non_blocking=True)
        images = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return Batch(images, labels, torch.from_numpy(slots))


def view_recipe(seed: int, epoch: int, slots: int) -> np.ndarray:
    """How each slot is seen in an epoch: float32 [slots, 2, 3], matrices from output to input coordinates (-1..1).

    Mirrored with probability 1/2; turned by up to 10 degrees, scaled by up to 10 %, shifted by up to 5 % of the side. A row
    depends on (seed, epoch, slot) alone, not on how many slots there are.
    """
    random = random_stream(seed, _VIEW, epoch).random((slots, 5))
    centred = 2 * random - 1
    mirror = np.where(random[:, 0] < 0.5, 1.0, -1.0)
    angle = np.deg2rad(TURN) * centred[:, 1]
    scale = 1 / (1 + SCALE * centred[:, 2])
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    shift = 2 * SHIFT * centred[:, 3:]
    matrix = np.stack([np.stack([cos * mirror, -sin, shift[:, 0]], 1), np.stack([sin * mirror, cos, shift[:, 1]], 1)], 1)
    return matrix.astype(np.float32)


def warp(images: torch.Tensor, recipe: torch.Tensor) -> torch.Tensor:
    """images [B, C, S, S] seen through affine matrices [B, 2, 3]; bilinear, black beyond the edges."""
    grid = F.affine_grid(recipe, images.shape, align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
