"""Knowledge inside networks: feature maps of student and teacher, compared in float32, mean over the batch."""

import torch
import torch.nn.functional as F
from torch import nn

from kd.losses import full, unit


def attention(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """|| A_s / |A_s| - A_t / |A_t| ||^2, mean over the batch; A is a map's mean square over channels. [B, C, H, W], any C.

    Attention transfer (Zagoruyko, Komodakis 2017, 1612.03928, eq. 2 with p = 2, squared as in their code). Between 0 and 2,
    whatever the size of a map: their code takes the mean over positions and weighs it with 1000, the formula is a sum.
    """
    student, teacher = _same_size(full(student), full(teacher))
    own, of_teacher = (unit(maps.square().mean(1).flatten(1), 1e-6) for maps in (student, teacher))
    return (own - of_teacher).square().sum(1).mean()


def similarity(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """|| G_s - G_t ||_F^2 / B, where G [B, B] holds the inner products of images' features, rows of length 1. [B, ...].

    Similarity-preserving distillation (Tung, Mori 2019, 1907.09682, eq. 1 to 4). They divide by B^2, so that their weight 3000
    belongs to batches of 128; divided by B it is 23 and holds for any batch. An image alone is only like itself: 0.
    """
    own, of_teacher = (unit(rows @ rows.T, 1e-6) for rows in
                       (full(features).flatten(1) for features in (student, teacher)))
    return (own - of_teacher).square().sum() / len(own)


def hint(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """|| student - teacher ||^2 / 2, mean over batch, channels and positions. [B, C, H, W], projected to the same C before.

    FitNets (Romero et al. 2015, 1412.6550, eq. 3). They sum over the map, so that a weight depends on its size.
    """
    student, teacher = _same_size(full(student), full(teacher))
    return (student - teacher).square().mean() / 2


def _same_size(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both maps at the smaller one's height and width: the larger one is averaged down."""
    size = [min(one, other) for one, other in zip(first.shape[2:], second.shape[2:])]
    return tuple(maps if list(maps.shape[2:]) == size else F.adaptive_avg_pool2d(maps, size) for maps in (first, second))


class Projectors(nn.Module):
    """A trainable 1x1 convolution from the student's channels to a teacher's, for every pair of layers (FitNets' regressor).

    pairs: (student's channels, teacher's channels). Drawn by `seed` alone, as torch draws a convolution.
    """

    def __init__(self, pairs: list[tuple[int, int]], seed: int):
        super().__init__()
        random = torch.Generator().manual_seed(seed)  # torch's own stream stays as it is
        self.weights = nn.ParameterList((2 * torch.rand(theirs, own, 1, 1, generator=random) - 1) / own**0.5
                                        for own, theirs in pairs)

    def forward(self, features: torch.Tensor, pair: int) -> torch.Tensor:
        """features [B, C, H, W] of a pair's student -> [B, C', H, W], in float32."""
        return F.conv2d(full(features), self.weights[pair])
