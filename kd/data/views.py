"""Batches whose order and augmentation are pure functions of (seed, epoch, slot)."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from kd.data.augmentation import Augmentation, Mixing, Recipe, augmented
from kd.data.feed import feed
from kd.data.index import digest
from kd.data.store import Joined, Store
from kd.system import ranks
from kd.system.devices import to_device
from kd.system.seeds import random_stream

_ORDER = 0  # key of `random_stream`; `kd.data.augmentation` has others


class Batch(NamedTuple):
    """A batch, or one rank's share of it.

    images  float32 [B, 3, S, S] in 0..1; grey images have one channel in memory, expanded to three
    labels  int64 [B]; or float32 [B, K]: the share of each class in the image, if images are mixed
            or some have no label; or None
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

    seed          seed of the order and the augmentation
    shuffle       whether each epoch has another order; otherwise, it is that of the slots
    augmentation  how images are augmented, differently in each epoch; by default they are unchanged
    taught        augmentation of the same slots as teachers see them; None: as the student does
    shown         number of slots in an epoch, other slots in each epoch with `shuffle`; None: all
    classes       number of classes, which the labels of mixed images need
    """

    batch_size: int
    seed: int = 0
    shuffle: bool = False
    augmentation: Augmentation = Augmentation()
    taught: Augmentation | None = None
    shown: int | None = None
    classes: int | None = None


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
        self.augmentation = order.augmentation
        self.taught = order.taught or order.augmentation
        self.shown = order.shown or len(rows)
        self.classes = order.classes
        self._feed = None
        self._last_recipes = None, None

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
        recipes, mixing = self._recipes(epoch)
        needed = slots_of
        if mixing is not None:
            needed = [mixing.with_partners(slots) for slots in slots_of]
        if self._feed is None:
            self._feed = feed(self.store, self.rows, self.device)
        for slots, used, stored in zip(slots_of, needed, self._feed(needed)):
            images = self._augmented(stored, used, recipes)
            if mixing is not None:
                images = mixing.mix(images, slots)
            labels = self._labels(slots, mixing)
            yield Batch(images.expand(-1, 3, -1, -1), labels, torch.from_numpy(slots), epoch)

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """The augmentation of each group of slots (`_groups`)."""
        return (self.augmentation,)

    def _groups(self, slots: np.ndarray) -> np.ndarray:
        """Return the group of slots [n], each with an augmentation of its own: int64 [n]."""
        return np.zeros(len(slots), np.int64)

    def _augmented(
        self, stored: torch.Tensor, slots: np.ndarray, recipes: list[Recipe | None]
    ) -> torch.Tensor:
        """Return the views of stored images, uint8 [n, C, S, S], of slots [n]: float32."""
        groups = self._groups(slots)
        if groups.min() == groups.max():
            return augmented(stored, _of(recipes[groups[0]], slots))
        parts, places = [], []
        for group, recipe in enumerate(recipes):
            place = np.flatnonzero(groups == group)
            own = stored[to_device(torch.from_numpy(place), self.device)]
            parts.append(augmented(own, _of(recipe, slots[place])))
            places.append(place)
        back = np.argsort(np.concatenate(places))
        return torch.cat(parts)[to_device(torch.from_numpy(back), self.device)]

    def _recipes(self, epoch: int) -> tuple[list[Recipe | None], Mixing | None]:
        """Return the recipes of each slot, one for each group of slots, and the mixing.

        Those of the last epoch are kept: a teacher with images of its own asks for a single batch
        at a time.
        """
        if self._last_recipes[0] != epoch:
            recipes = [one.recipe(self.seed, epoch, len(self)) for one in self.augmentations]
            mixing = None
            if self.augmentation.mixup:
                mixing = self.augmentation.mixing(self.seed, epoch, self.order(epoch), len(self))
            self._last_recipes = epoch, (recipes, mixing)
        return self._last_recipes[1]

    def over(self, store: Store | Joined) -> "Views":
        """Return the views of the same slots as teachers see them, without labels.

        store  has the same images in the same rows, for example decoded at another size
        """
        other = copy.copy(self)
        other.augmentation, other.labels, other._last_recipes = self.taught, None, (None, None)
        if store is not self.store:
            other.store, other._feed = store, None
        elif self._feed is None:  # both read the images that are on the device once
            other._feed = self._feed = feed(self.store, self.rows, self.device)
        return other

    @property
    def teachers_see_them(self) -> bool:
        """Whether teachers see these views, at the size that they have here."""
        return set(self.augmentations) == {self.taught}

    def _labels(self, slots: np.ndarray, mixing: Mixing | None) -> torch.Tensor | None:
        """Return the labels of slots as in a Batch, or None if there are none."""
        if self.labels is None:
            return None
        if mixing is None:
            return to_device(self.labels[slots], self.device)
        labels = F.one_hot(self.labels[mixing.with_partners(slots)], self.classes)
        return to_device(mixing.mix(labels.float(), slots), self.device)

    def describe(self) -> str:
        """Return the number of distinct images in words, and whether they have labels."""
        labels = "" if self.labels is not None else " without labels"
        return f"{len(np.unique(self.rows))} images{labels}"

    @property
    def kind_of_order(self) -> str:
        """What the order of an epoch depends on beside the seed and the slots, as text."""
        return f"{self.shuffle} {self.shown}"

    def identity(self) -> str:
        """Return a hash that identifies the pixels of every (epoch, slot).

        It changes with the images, their preparation and their augmentation.
        """
        order = self.kind_of_order
        seen = " ".join(one.identity(self.seed, order) for one in self.augmentations)
        return digest([self.store.recipe, seen, self.store.hashes[self.rows].tobytes().hex()])


def _of(recipe: Recipe | None, slots: np.ndarray) -> Recipe | None:
    return None if recipe is None else recipe.of(slots)
