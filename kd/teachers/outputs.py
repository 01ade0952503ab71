"""Outputs of teachers for a batch: without gradients, in float32, and with unchanged teachers.

The logits of a single network come from a callable, batch -> float32 [B, K]: `LiveNetwork`, or
`StoredLogits` around it. The outputs of all teachers come from a callable, batch ->
`TeacherOutputs`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from kd import losses
from kd.data.views import Batch, Views
from kd.models import Classifier, Outputs
from kd.system import ranks
from kd.system.console import progress
from kd.system.devices import Precision


class TeacherOutputs(NamedTuple):
    """The outputs of M teachers for a batch.

    logits    float32 [M, B, K]
    weights   [M], with sum 1
    features  for each teacher, the feature maps of some of its layers
    """

    logits: torch.Tensor
    weights: torch.Tensor
    features: tuple[tuple[torch.Tensor, ...], ...] = ()

    def at(self, temperature: float) -> torch.Tensor:
        """Return logits [B, K] of the teachers' weighted mean probabilities at this temperature."""
        return losses.mixture(self.logits, self.weights, temperature)


BatchImages = Callable[[Batch], Batch]
BatchLogits = Callable[[Batch], torch.Tensor]
BatchTeacher = Callable[[Batch], TeacherOutputs | None]
Targets = Callable[[TeacherOutputs | None, list[Outputs]], list[TeacherOutputs | None]]


def same_images(batch: Batch) -> Batch:
    """Return the batch: its teachers see the images of the student."""
    return batch


class OwnImages:
    """The images that teachers see in a batch of their student, from views of their own.

    They are the same views of the same slots, for example at another size. Those of the last batch
    are kept, because several teachers ask for them in turn.
    """

    def __init__(self, views: Views):
        self.views = views
        self._asked: Batch | None = None
        self._own: Batch | None = None

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with the images of the teachers."""
        if batch is not self._asked:
            [own] = self.views.batches(batch.epoch, [batch.slots.numpy()])
            self._asked, self._own = batch, batch._replace(images=own.images)
        return self._own


class LiveNetwork:
    """A network that is evaluated on every batch.

    It runs in evaluation mode, in the precision of the training, with its own mean and std, on the
    images that `own` returns.
    """

    def __init__(self, network: Classifier, precision: Precision, own: BatchImages = same_images):
        network.module.eval().requires_grad_(False)
        self.network, self.precision, self.own = network, precision, own

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the logits, float32 [B, K]."""
        with torch.inference_mode():
            with self.precision.autocast():
                output = self.network(self.own(batch).images)
            logits = output.float()
        return (
            logits.clone()
        )  # autograd rejects inference tensors, but accepts a clone made outside


class ObservedNetwork:
    """A network that is evaluated on every batch and also returns features of some layers."""

    def __init__(
        self,
        network: Classifier,
        precision: Precision,
        layers: tuple[str, ...],
        own: BatchImages = same_images,
    ):
        network.module.eval().requires_grad_(False)
        self.network, self.precision, self.layers, self.own = network, precision, layers, own

    # Not inference_mode: losses save the features for their backward pass, which is not allowed for
    # inference tensors.
    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """Return the logits, float32 [B, K], and the features of each layer, float32."""
        with self.precision.autocast():
            logits, features = self.network.outputs(self.own(batch).images, self.layers)
        return Outputs(logits.float(), tuple(one.float() for one in features))


class JointTeacher:
    """Several networks as one teacher of logits. `weights` are normalised to sum 1."""

    def __init__(self, networks: list[BatchLogits], weights: list[float], device: torch.device):
        self.networks = networks
        self.weights = torch.tensor(weights, device=device) / sum(weights)

    def __call__(self, batch: Batch) -> TeacherOutputs:
        logits = [network(batch) for network in self.networks]
        return TeacherOutputs(torch.stack(logits), self.weights)


class ObservedJointTeacher(JointTeacher):
    """Several `ObservedNetwork`s as one teacher of logits and features."""

    def __call__(self, batch: Batch) -> TeacherOutputs:
        outputs = [network(batch) for network in self.networks]
        logits = torch.stack([one.logits for one in outputs])
        return TeacherOutputs(logits, self.weights, tuple(one.features for one in outputs))


class LabelDistribution:
    """A teacher without a network: a fixed distribution around the true class.

    The true class has probability `correct`, each other class (1 - correct) / (K - 1). The logits
    are the logarithms, so that the distribution is softened like that of a network, as in Yuan et
    al. 2020, arXiv:1909.11723, eq. 8. With correct = 1 / K it is the uniform distribution of label
    smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7). It is also that of mixed images,
    whose classes share the probability `correct`.

    Calling it raises ValueError for a batch without labels.
    """

    def __init__(self, classes: int, correct: float):
        self.classes, self.correct = classes, correct

    def __call__(self, batch: Batch) -> TeacherOutputs:
        if batch.labels is None:
            raise ValueError("a label distribution needs a batch with labels")
        device, shape = batch.labels.device, (len(batch.labels), self.classes)
        other = (1 - self.correct) / (self.classes - 1)
        if batch.labels.is_floating_point():
            logits = torch.log(other + (self.correct - other) * batch.labels)
        else:
            logits = torch.full(shape, math.log(other), device=device)
            logits.scatter_(1, batch.labels[:, None], math.log(self.correct))
        return TeacherOutputs(logits[None], torch.ones(1, device=device))


def no_teacher(batch: Batch) -> None:
    """Return None: there is no teacher, and training uses labels only."""


def by_teacher(
    taught: TeacherOutputs | None, outputs: list[Outputs]
) -> list[TeacherOutputs | None]:
    """Return what each student is taught: the outputs of the teacher, if there is one.

    taught   outputs of the teacher for a batch
    outputs  of each student for the same batch
    """
    return [taught] * len(outputs)


def by_peers(taught: None, outputs: list[Outputs]) -> list[TeacherOutputs]:
    """Return what each student is taught: the outputs of all others, without their gradients.

    Source: Zhang et al. 2018, arXiv:1706.00384. With more than two students, the target is the mean
    of the others' probabilities (the paper's DML_e).
    """
    logits = torch.stack([losses.full(one.logits.detach()) for one in outputs])
    others = len(outputs) - 1
    weights = torch.full((others,), 1 / others, dtype=logits.dtype, device=logits.device)
    found = []
    for place in range(len(outputs)):
        rest = torch.cat([logits[:place], logits[place + 1 :]])
        found.append(TeacherOutputs(rest, weights))
    return found


def collect_logits(
    network: BatchLogits, views: Views, check_stop: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Return a network's logits for every slot, in order: float32 [n, K].

    `check_stop` is called before every batch and may end the work by raising an exception.
    """
    slots, logits = [], []
    with progress(len(views), "predicting", "images", short=True) as shown:
        for batch in views.epoch(0):
            check_stop()
            slots.append(batch.slots)
            logits.append(network(batch).cpu())
            shown.update(batch.whole)
    if not logits:  # this rank has no share of the data
        return ranks.gather_rows(torch.empty(0, dtype=torch.int64), None, len(views)).numpy()
    return ranks.gather_rows(torch.cat(slots), torch.cat(logits), len(views)).numpy()
