"""Batches of which one half has labels and the other half has none."""

import numpy as np
import torch
import torch.nn.functional as F

from kd.data.augmentation import Augmentation, Mixing
from kd.data.index import digest
from kd.data.store import Joined, Store
from kd.data.views import Views
from kd.system.devices import to_device


class HalfLabelled(Views):
    """Two views as one: the first half of each batch is unlabelled, and the second is labelled.

    An epoch has the steps of an epoch of the labelled views, and the order within each half is that
    of its views. If the images of one half are too few for an epoch, they repeat. The slots of the
    labelled images follow those of the unlabelled ones. Each half has the augmentation of its
    views; teachers see all images as the unlabelled views say.

    The labels of a batch are the shares of the classes [B, K], which are zero for an image without
    a label. With mixup, a labelled image may be mixed with an unlabelled one. The shares of its
    classes then sum to its own share in the mixed image.

    unlabelled  training views without labels
    labelled    training views with labels, whose rows are the same images in both stores
    """

    def __init__(self, unlabelled: Views, labelled: Views):
        size = labelled.batch_size
        super().__init__(
            unlabelled.store,
            np.concatenate([unlabelled.rows, labelled.rows]),
            None,
            device=labelled.device,
            batch_size=size,
            seed=labelled.seed,
            shuffle=labelled.shuffle,
            augmentation=unlabelled.augmentation,
            taught=unlabelled.taught,
            shown=labelled.steps * size,
            classes=labelled.classes,
        )
        self.halves = unlabelled, labelled
        self.labelled_augmentation = labelled.augmentation
        self.unlabelled_size = size // 2
        shares = F.one_hot(labelled.labels, labelled.classes).float()
        self.labels = torch.cat([shares.new_zeros(len(unlabelled), labelled.classes), shares])

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        return tuple(dict.fromkeys((self.augmentation, self.labelled_augmentation)))

    def _groups(self, slots: np.ndarray) -> np.ndarray:
        if len(self.augmentations) == 1:
            return super()._groups(slots)
        return (slots >= len(self.halves[0])).astype(np.int64)

    def over(self, store: Store | Joined) -> Views:
        other = super().over(store)
        other.labelled_augmentation = self.taught
        return other

    @property
    def labelled_share(self) -> float:
        """The share of the images of a batch that have a label."""
        return 1 - self.unlabelled_size / self.batch_size

    def describe(self) -> str:
        """Return the numbers of distinct images of both halves in words."""
        first, second = self.halves
        return (
            f"batches of which one half is of {second.describe()}, the other of {first.describe()}"
        )

    @property
    def kind_of_order(self) -> str:
        first, second = self.halves
        return f"halves of {self.batch_size}: {first.kind_of_order}, {second.kind_of_order}"

    def identity(self) -> str:
        """Return a hash as `Views.identity` does; other views of the same images have another."""
        return digest([super().identity(), self.kind_of_order])

    def order(self, epoch: int) -> np.ndarray:
        """Return the slots in the order of an epoch: int64 [shown]."""
        unlabelled, labelled = self.halves
        steps = labelled.steps
        rest = self.batch_size - self.unlabelled_size
        first = np.resize(unlabelled.order(epoch), (steps, self.unlabelled_size))
        second = np.resize(labelled.order(epoch) + len(unlabelled), (steps, rest))
        return np.concatenate([first, second], axis=1).ravel()

    def _labels(self, slots: np.ndarray, mixing: Mixing | None) -> torch.Tensor | None:
        """Return the shares of the classes of slots as in a Batch."""
        if self.labels is None:
            return None
        shares = self.labels[slots]
        if mixing is not None:
            shares = mixing.mix(self.labels[mixing.with_partners(slots)], slots)
        return to_device(shares, self.device)
