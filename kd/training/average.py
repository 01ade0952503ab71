"""Averages of the weights of a network in training: one that is delivered, one that teaches it."""

import copy
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kd.config.plan import Follower
from kd.models import Classifier
from kd.system import ranks


class Average(Protocol):
    """The interface of the two classes below.

    network  the network with the averaged weights
    """

    network: Classifier

    def update(self, updates: int) -> None:
        """Take in the weights after a step. `updates` is the number of updates before it."""

    def end_phase(self) -> None:
        """Continue the training from the averaged weights, and start a new average there."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return everything that resuming needs."""

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state_dict` returned. Raises an error of torch if it does not fit."""


class NoAverage:
    """No average: the network itself is judged and delivered."""

    def __init__(self, network: Classifier):
        self.network = network

    def update(self, updates: int) -> None:
        pass

    def end_phase(self) -> None:
        pass

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        if state:
            raise ValueError("the saved run has an average of its weights, and this run has none")


class ExponentialAverage:
    """The exponential moving average of the weights, on the device of the network.

    After each step, average = d * average + (1 - d) * weights, with d = `decay_at(updates)`. As in
    timm's `ModelEmaV3`, the floating-point buffers (the running mean and variance of BatchNorm) are
    averaged like the weights, and integer buffers are copied. Modules that are trained beside the
    network, such as regressors, are not averaged.

    Source: Polyak, Juditsky 1992, SIAM Journal on Control and Optimization 30 (the average).

    The average is a network of its own, neither compiled nor wrapped for several ranks, and the
    network in training never sees it, except at the end of a phase. On several ranks, the weights
    are equal everywhere, and `loop.predict` takes the buffers of the first rank. An average that
    teaches takes them at every step, so that all ranks have one teacher.

    decay    0: the weights after each step; 1: those at the start
    teaches  whether the average teaches the network
    """

    def __init__(self, network: Classifier, decay: float, teaches: bool = False):
        self.trained, self.decay, self.teaches = network, decay, teaches
        module = copy.deepcopy(network.module).requires_grad_(False)
        self.network = replace(network, module=module, compiled=None, parallel=None)

    def decay_at(self, updates: int) -> float:
        """Return min(decay, (1 + n) / (10 + n)), where n is the number of updates before.

        Otherwise the initial weights would keep a share of decay^n: 37 % after 1000 steps with a
        decay of 0.999. The first steps have 0.1, 2/11, 3/12, ..., so that the average is over about
        the last tenth of the steps until `decay` is reached, at n = 8990 for 0.999. The formula is
        that of `num_updates` in TensorFlow's `tf.train.ExponentialMovingAverage`. A decay of 1 is
        never lowered: the average stays as it began.
        """
        if self.decay == 1:
            return 1.0
        return min(self.decay, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def update(self, updates: int) -> None:
        if self.teaches:
            ranks.broadcast_buffers(self.trained.module)
        own, values = _tensors(self.network.module), _tensors(self.trained.module)
        floats = [number for number, value in enumerate(own) if value.is_floating_point()]
        average = get_ema_multi_avg_fn(self.decay_at(updates))
        average([own[number] for number in floats], [values[number] for number in floats], None)
        for one, value in zip(own, values, strict=True):
            if not one.is_floating_point():
                one.copy_(value)

    @torch.no_grad()
    def end_phase(self) -> None:
        own, values = _tensors(self.network.module), _tensors(self.trained.module)
        for one, value in zip(own, values, strict=True):
            value.copy_(one)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.network.module.state_dict())

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.network.module.load_state_dict(state, strict=True)


class Averages(NamedTuple):
    """The averages of a network in training; both may be the same one.

    delivered  what is judged and delivered
    teacher    what teaches the network
    """

    delivered: Average
    teacher: Average


def averages_of(
    network: Classifier, ema: float | None, follower: Follower | None = None
) -> Averages:
    """Return the averages of a network's weights; where there is none, the network itself.

    ema       decay of the average that is delivered; None: none
    follower  the average that teaches; None: there is another teacher, or none
    """
    delivered = NoAverage(network) if ema is None else ExponentialAverage(network, ema)
    if follower is None:
        return Averages(delivered, NoAverage(network))
    teacher = ExponentialAverage(network, follower.decay, teaches=True)
    return Averages(teacher if follower.delivered else delivered, teacher)


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """Return all weights and buffers, each once, in an order that a copy of the module shares."""
    return [*module.parameters(), *module.buffers()]
