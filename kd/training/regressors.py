"""Regressors: modules trained together with the student, from its features to its teachers'.

A kind of knowledge names its class in the table of `methods`. Regressors are saved for resuming and
are no part of model.pt. They compute in float32 and have a part for each pair of a student's and a
teacher's layer.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from kd.knowledge import Kind
from kd.losses import full

SMALLEST_VARIANCE = 1e-5  # as in the code of the authors of `feature_losses.vid`


def build(
    kinds: Mapping[str, Kind],
    pairs: list[tuple[int, int]],
    seed: int,
    options: Mapping[str, Mapping] | None = None,
) -> nn.ModuleDict:
    """Return the regressor of each kind that has one, by the name of the kind.

    kinds    kinds of knowledge by name
    pairs    (channels of the student, channels of the teacher) for each pair of layers: those of
             the first teacher, then those of the next
    seed     determines the initial weights, independently of torch's global generator
    options  kind -> its own hyper-parameters; by default those of the classes below
    """
    found = {}
    for name, kind in kinds.items():
        if kind.regressor:
            given = kind.options_of((options or {}).get(name, {}), regressor=True)
            found[name] = globals()[kind.regressor](pairs, seed, **given)
    return nn.ModuleDict(found)


class Projectors(nn.Module):
    """A trainable 1x1 convolution without bias for each pair of a student's and a teacher's layer.

    This is the regressor of FitNets (Romero et al. 2015, arXiv:1412.6550). The initial weights have
    the distribution that torch uses for a convolution.

    pairs  (channels of the student, channels of the teacher) for each pair
    seed   determines the initial weights, independently of torch's global generator
    """

    def __init__(self, pairs: list[tuple[int, int]], seed: int):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList()
        for own, theirs in pairs:
            drawn = 2 * torch.rand(theirs, own, 1, 1, generator=random) - 1
            self.weights.append(nn.Parameter(drawn / own**0.5))

    def forward(self, features: torch.Tensor, pair: int) -> torch.Tensor:
        """Project a student's features [B, C, H, W] to the teacher's channels, [B, C', H, W].

        The result is float32. `pair` is the index of the pair of layers.
        """
        return F.conv2d(full(features), self.weights[pair])


class Gaussians(Projectors):
    """A projector and the variance of each channel, for each pair of layers.

    The variance is log(1 + exp(a)) + 1e-5 with a trained value a for each channel of the teacher's
    layer. The paper leaves the form of the mean open, and its authors' code uses three 1x1
    convolutions. Here it is that of `Projectors`, so that `vid` differs from `hint` in the variance
    only, and the regressors stay smaller than the student.

    pairs, seed  as for `Projectors`
    variance     initial variance of all channels, more than 1e-5

    Source: Ahn et al. 2019, arXiv:1904.05835 (variational information distillation).
    """

    def __init__(self, pairs: list[tuple[int, int]], seed: int, variance: float = 5.0):
        super().__init__(pairs, seed)
        excess = variance - SMALLEST_VARIANCE
        raw = excess + math.log(-math.expm1(-excess))  # log(exp(excess) - 1) without overflow
        self.raw = nn.ParameterList(torch.full((theirs,), raw) for _, theirs in pairs)

    def forward(self, features: torch.Tensor, pair: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean [B, C', H, W] and the variance [C'] of a teacher's features, float32.

        features  of the student, [B, C, H, W]
        pair      index of the pair of layers
        """
        variance = F.softplus(self.raw[pair]) + SMALLEST_VARIANCE
        return super().forward(features, pair), variance
