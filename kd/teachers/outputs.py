"""What teachers say of a batch: without gradient, in float32, leaving the teachers as they were.

A network's logits come from a callable, batch -> float32 [B, K]: `LiveNetwork`, or `StoredLogits`
around it. What all teachers say together comes from a callable, batch -> `TeacherOutputs`.
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
from kd.system.devices import Precision


class TeacherOutputs(NamedTuple):
    """What M teachers say of a batch.

    logits    float32 [M, B, K]
    weights   [M] that sum to 1
    features  of each teacher, the feature maps of some of its layers
    """

    logits: torch.Tensor
    weights: torch.Tensor
    features: tuple[tuple[torch.Tensor, ...], ...] = ()

    def at(self, temperature: float) -> torch.Tensor:
        """Logits [B, K] of the weighted mean of the teachers' probabilities at this temperature."""
        return losses.mixture(self.logits, self.weights, temperature)


BatchLogits = Callable[[Batch], torch.Tensor]
BatchTeacher = Callable[[Batch], TeacherOutputs | None]


class LiveNetwork:
    """A network that looks at every batch.

    It runs in evaluation mode, in the training's precision, with its own mean and std.
    """

    def __init__(self, network: Classifier, precision: Precision):
        network.module.eval().requires_grad_(False)
        self.network, self.precision = network, precision

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits float32 [B, K]."""
        with torch.inference_mode():
            with self.precision.autocast():
                output = self.network(batch.images)
            logits = output.float()
        return logits.clone()  # inference tensors may not enter autograd; a clone made outside may


class ObservedNetwork:
    """A network that looks at every batch and shows the feature maps of some of its layers."""

    def __init__(self, network: Classifier, precision: Precision, layers: tuple[str, ...]):
        network.module.eval().requires_grad_(False)
        self.network, self.precision, self.layers = network, precision, layers

    # Not inference_mode: a loss keeps features for its backward pass, which may not be inference
    # tensors.
    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """Logits float32 [B, K] and the features of each layer, float32."""
        with self.precision.autocast():
            logits, features = self.network.outputs(batch.images, self.layers)
        return Outputs(logits.float(), tuple(one.float() for one in features))


class JointTeacher:
    """Networks that teach together, by their logits. `weights` are made to sum to 1."""

    def __init__(self, networks: list[BatchLogits], weights: list[float], device: torch.device):
        self.networks = networks
        self.weights = torch.tensor(weights, device=device) / sum(weights)

    def __call__(self, batch: Batch) -> TeacherOutputs:
        logits = [network(batch) for network in self.networks]
        return TeacherOutputs(torch.stack(logits), self.weights)


class ObservedJointTeacher(JointTeacher):
    """Networks that teach together, by logits and features: each is an `ObservedNetwork`."""

    def __call__(self, batch: Batch) -> TeacherOutputs:
        outputs = [network(batch) for network in self.networks]
        logits = torch.stack([one.logits for one in outputs])
        return TeacherOutputs(logits, self.weights, tuple(one.features for one in outputs))


class LabelDistribution:
    """No network: probability `correct` for the true class, (1 - correct) / (K - 1) for the others.

    Yuan et al. 2020, 1909.11723, eq. 8, which softens this distribution as a network's: its logits
    are the logarithms. With correct = 1 / K it is the uniform one of label smoothing (Szegedy et
    al. 2016, 1512.00567, section 7). Raises ValueError for a batch without labels.
    """

    def __init__(self, classes: int, correct: float):
        self.classes, self.correct = classes, correct

    def __call__(self, batch: Batch) -> TeacherOutputs:
        if batch.labels is None:
            raise ValueError("a label distribution where no label is read")
        device, shape = batch.labels.device, (len(batch.labels), self.classes)
        other = math.log((1 - self.correct) / (self.classes - 1))
        logits = torch.full(shape, other, device=device)
        logits.scatter_(1, batch.labels[:, None], math.log(self.correct))
        return TeacherOutputs(logits[None], torch.ones(1, device=device))


def no_teacher(batch: Batch) -> None:
    """Nobody teaches: training on labels alone."""


def collect_logits(
    network: BatchLogits, views: Views, check_stop: Callable[[], None] = lambda: None
) -> np.ndarray:
    """What a network says of every slot once, in order: float32 [n, K].

    `check_stop` is called before every batch and may end the work by an exception.
    """
    slots, logits = [], []
    for batch in views.epoch(0):
        check_stop()
        slots.append(batch.slots)
        logits.append(network(batch).cpu())
    if not logits:  # this rank has no part of the data
        return ranks.gather_rows(torch.empty(0, dtype=torch.int64), None, len(views)).numpy()
    return ranks.gather_rows(torch.cat(slots), torch.cat(logits), len(views)).numpy()
