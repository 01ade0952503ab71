"""Teachers: callables from a batch to what they say of it, without gradient, in float32, that
training leaves as they were.
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


class Taught(NamedTuple):
    """What teachers say of a batch: logits float32 [M, B, K], weights [M] that sum to 1, and each
    one's features.
    """

    logits: torch.Tensor
    weights: torch.Tensor
    features: tuple[tuple[torch.Tensor, ...], ...] = ()

    def at(self, temperature: float) -> torch.Tensor:
        """Logits [B, K] that give, at this temperature, the weighted mean of the teachers' softened
        probabilities.
        """
        return losses.mixture(self.logits, self.weights, temperature)


# One network: batch -> logits float32 [B, K]
Network = Callable[[Batch], torch.Tensor]
# All that teach, together
TeacherFunction = Callable[[Batch], Taught | None]


def live(network: Classifier, precision: Precision) -> Network:
    """A network that looks at every batch: evaluation mode, no gradient, the training's precision,
    its own mean and std.
    """
    network.module.eval().requires_grad_(False)

    @torch.inference_mode()
    def logits(batch: Batch) -> torch.Tensor:
        with precision.autocast():
            output = network(batch.images)
        return output.float()

    # Inference tensors may not enter autograd; a clone made outside may.
    return lambda batch: logits(batch).clone()


def observed(
    network: Classifier, precision: Precision, layers: tuple[str, ...]
) -> Callable[[Batch], Outputs]:
    """As `live`, with the feature maps of some layers, float32."""
    network.module.eval().requires_grad_(False)

    @torch.no_grad()  # not inference_mode: a loss keeps features for its backward pass, which may not be inference tensors
    def outputs(batch: Batch) -> Outputs:
        with precision.autocast():
            logits, features = network.outputs(batch.images, layers)
        return Outputs(logits.float(), tuple(one.float() for one in features))

    return outputs


def without_features(network: Network) -> Callable[[Batch], Outputs]:
    """A network of which the logits are all that is looked at."""
    return lambda batch: Outputs(network(batch))


def together(
    networks: list[Callable[[Batch], Outputs]], weights: list[float], device: torch.device
) -> TeacherFunction:
    """Networks that teach with these weights, which are made to sum to 1."""
    shares = torch.tensor(weights, device=device) / sum(weights)

    def taught(batch: Batch) -> Taught:
        outputs = [network(batch) for network in networks]
        return Taught(
            torch.stack([one.logits for one in outputs]),
            shares,
            tuple(one.features for one in outputs),
        )

    return taught


def virtual(classes: int, correct: float) -> TeacherFunction:
    """No network: probability `correct` for the true class, (1 - correct) / (K - 1) for each other,
    at T = 1.

    Yuan et al. 2020, 1909.11723, eq. 8, which softens this distribution as a network's: its logits
    are the logarithms. With correct = 1 / K it is the uniform one of label smoothing (Szegedy et
    al. 2016, 1512.00567, section 7).
    """

    def taught(batch: Batch) -> Taught:
        if batch.labels is None:
            raise ValueError("a label distribution where no label is read")
        logits = torch.full(
            (len(batch.labels), classes),
            math.log((1 - correct) / (classes - 1)),
            device=batch.labels.device,
        )
        logits.scatter_(1, batch.labels[:, None], math.log(correct))
        return Taught(logits[None], torch.ones(1, device=logits.device))

    return taught


def answers(
    function: Network, views: Views, leave: Callable[[], None] = lambda: None
) -> np.ndarray:
    """What a network says of every slot once, in order: float32 [n, K].

    `leave` is called before every batch.
    """
    slots, logits = [], []
    for batch in views.epoch(0):
        leave()
        slots.append(batch.slots)
        logits.append(function(batch).cpu())
    own = (
        (torch.cat(slots), torch.cat(logits))
        if logits
        else (torch.empty(0, dtype=torch.int64), None)
    )
    return ranks.gather_rows(*own, len(views)).numpy()


def nobody(batch: Batch) -> None:
    """No teacher: training on labels alone."""
