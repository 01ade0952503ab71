"""Losses of feature maps: what a student's layers learn from those of a teacher.

Shapes, precision, averages and `weights` are as in `kd.losses`.
"""

import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from kd.losses import SMALLEST, full, kl_of_rows, other_columns, unit, weighted_mean

ARMS_AT_ONCE = 2**22  # values in a tensor of `rkd`: 16 MB in float32


def attention(
    student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return || A_s / |A_s| - A_t / |A_t| ||^2, averaged over the batch.

    A is the mean square of a feature map over its channels. The squared distance is a sum over
    positions and is between 0 and 2 for maps of any size. The authors' code takes the mean over
    positions instead and multiplies it by 1000.

    student, teacher  maps [B, C, H, W]; C may differ, and the larger map is averaged down
    weights           of the images [B], or None

    Source: Zagoruyko, Komodakis 2017, arXiv:1612.03928, eq. 2 with p = 2, squared as in the
    authors' code (attention transfer).
    """
    student, teacher = _same_size(full(student), full(teacher))
    own = unit(student.square().mean(1).flatten(1), SMALLEST)
    other = unit(teacher.square().mean(1).flatten(1), SMALLEST)
    return weighted_mean((own - other).square().sum(1), weights)


def similarity(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return ||G_s - G_t||_F^2 / B, where G [B, B] compares the images by their features.

    G holds the inner products of the images' features; each row is scaled to length 1. The paper
    divides by B^2, so its weight of 3000 belongs to batches of 128. With the division by B, the
    same weight is 23 and holds for any batch size. In a batch of one image the loss is 0, because
    the image is compared only with itself.

    student, teacher  features [B, ...]; all axes but the first may differ

    Source: Tung, Mori 2019, arXiv:1907.09682, eq. 1 to 4 (similarity-preserving distillation).
    """
    own, other = _inner_products(student), _inner_products(teacher)
    return (own - other).square().sum() / len(own)


def pkt(student: torch.Tensor, teacher: torch.Tensor, width: float = 0.0) -> torch.Tensor:
    """Return KL(p_t(. | i) || p_s(. | i)) over the neighbours of image i, averaged over the batch.

    p(j | i) is the probability that another image j of the batch is the neighbour of image i: a
    kernel of their features, divided by its sum over all images except i. The paper sums over the
    images i. Its code counts an image among its own neighbours, while its formula does not. In a
    batch of one or two images there is no choice of neighbours, and the loss is 0.

    student, teacher  features: maps [B, C, H, W] are averaged over positions, other shapes [B, ...]
                      are flattened; each row is then scaled to length 1
    width             0 selects the cosine kernel (1 + cos) / 2, which has no width. Other values
                      are sigma of the Gaussian kernel exp(-d^2 / (2 sigma^2)), where the distance d
                      is between 0 and 2 for rows of length 1. The divergence is then multiplied by
                      sigma^4: sigma^2 softens as T does in `kd`, and the factor keeps the size of
                      the gradient when sigma changes

    Source: Passalis, Tefas 2018, arXiv:1803.10837, section 3 (probabilistic knowledge transfer).
    """
    log_student, log_teacher = _log_neighbours(student, width), _log_neighbours(teacher, width)
    divergence = kl_of_rows(log_student, log_teacher).mean()
    return width**4 * divergence if width else divergence


def rkd(
    student: torch.Tensor, teacher: torch.Tensor, distance: float = 1.0, angle: float = 2.0
) -> torch.Tensor:
    """Return distance * L_D + angle * L_A, which compare distances and angles between images.

    L_D compares the distances of two images, each divided by the mean of all that are not zero. L_A
    compares the cosines of the angles at image j between the lines to images i and k. Both are
    Huber losses (half the square up to 1, linear from there), averaged over all pairs and triples
    of different images; the paper sums them. A batch of one image has a loss of 0, and one of two
    images has no angles. Images with equal features have a distance of 0 and no line between them:
    cosines with it are 0, and neither has a gradient.

    The angles need memory for B^2 * max(B, C) values once, in float32: they are computed for some
    images j at a time, and once more for the gradient.

    student, teacher  features: maps [B, C, H, W] are averaged over positions, other shapes [B, ...]
                      are flattened. For the last stage of a ResNet this is the paper's embedding
    distance, angle   weights of the two parts; the paper's are 1 and 2

    Source: Park et al. 2019, arXiv:1904.05068, section 3.2 (relational knowledge distillation).
    """
    own, other, images = _pooled(student), _pooled(teacher), len(student)
    both = F.smooth_l1_loss(_distances(own), _distances(other), reduction="sum")
    loss = distance * both / max(1, images * (images - 1))
    widest = max(images, own.shape[1], other.shape[1])
    some = max(1, ARMS_AT_ONCE // (images * widest))
    how = {"use_reentrant": False, "preserve_rng_state": False}
    for start in range(0, images if angle else 0, some):
        part = checkpoint(_angle_losses, own, other, slice(start, start + some), **how)
        loss = loss + angle * part / max(1, images * (images - 1) * (images - 2))
    return loss


def hint(
    student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ||student - teacher||^2 / 2, averaged over the batch, channels and positions.

    The paper sums over the map instead, so there the meaning of a weight depends on the map's size.

    student, teacher  maps [B, C, H, W] of the same C (the student's after
                      `training.regressors.Projectors`); the larger map is averaged down
    weights           of the images [B], or None

    Source: FitNets, Romero et al. 2015, arXiv:1412.6550, eq. 3.
    """
    student, teacher = _same_size(full(student), full(teacher))
    return weighted_mean((student - teacher).square(), weights) / 2


def vid(
    student: tuple[torch.Tensor, torch.Tensor],
    teacher: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return log sigma + (teacher - mean)^2 / (2 sigma^2), averaged like `hint`.

    This is -log of the density of the teacher's map, as the student predicts it, without the
    constant log(2 pi) / 2. It may be negative. With a fixed sigma, it is `hint` / sigma^2. The
    paper sums over the map; its authors' code takes the mean.

    student  (mean [B, C, H, W], sigma^2 of each channel [C]), as `training.regressors.Gaussians`
             predicts them
    teacher  map [B, C, H, W] of the same C; the larger map is averaged down
    weights  of the images [B], or None

    Source: Ahn et al. 2019, arXiv:1904.05835, the Gaussian with a variance for each channel
    (variational information distillation).
    """
    mean, teacher = _same_size(full(student[0]), full(teacher))
    variance = full(student[1]).view(-1, 1, 1)
    return weighted_mean(variance.log() + (teacher - mean).square() / variance, weights) / 2


def _inner_products(features: torch.Tensor) -> torch.Tensor:
    """Return the inner products [B, B] of images' features [B, ...], with rows of length 1."""
    rows = full(features).flatten(1)
    return unit(rows @ rows.T, SMALLEST)


def _pooled(features: torch.Tensor) -> torch.Tensor:
    """Return features as rows [B, m]: maps averaged over positions, other shapes flattened."""
    features = full(features)
    return features.mean((2, 3)) if features.ndim == 4 else features.flatten(1)


def _distances(rows: torch.Tensor) -> torch.Tensor:
    """Return the distances [B, B] of rows [B, m], divided by the mean of those that are not 0."""
    # Differences are exact for rows that are nearly equal, unlike the products of a faster way.
    found = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    mean = found.sum() / (found > 0).sum().clamp(min=1)
    return found / mean.clamp(min=SMALLEST)


def _angle_losses(own: torch.Tensor, other: torch.Tensor, some: slice) -> torch.Tensor:
    """Return the sum of the Huber losses of all angles at some of the rows [B, ...]."""
    same = torch.eye(len(own), dtype=torch.bool, device=own.device)
    cosines = [_cosines(rows, some).masked_fill(same, 0) for rows in (own, other)]
    return F.smooth_l1_loss(*cosines, reduction="sum")


def _cosines(rows: torch.Tensor, some: slice) -> torch.Tensor:
    """Return the cosines [b, B, B] of the angles at b of the rows [B, m], between all others."""
    arms = rows - rows[some, None]
    lengths = torch.linalg.vector_norm(arms, dim=2, keepdim=True)
    arms = arms / lengths.clamp(min=SMALLEST).masked_fill(lengths == 0, math.inf)
    return arms @ arms.mT


def _log_neighbours(features: torch.Tensor, width: float) -> torch.Tensor:
    """Return log p(j | i), [B, B - 1], of images' features [B, ...]; j is never i itself."""
    rows = unit(_pooled(features), SMALLEST)
    cosines = other_columns(rows @ rows.T, torch.arange(len(rows), device=rows.device))
    if width:
        log_kernel = (cosines - 1) / width**2  # because d^2 = 2 - 2 cos
    else:
        log_kernel = ((1 + cosines) / 2).clamp(min=SMALLEST).log()
    return F.log_softmax(log_kernel, dim=1)


def _same_size(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two maps [B, C, H, W] averaged down to the smaller height and the smaller width."""
    size = [min(one, other) for one, other in zip(first.shape[2:], second.shape[2:])]
    return _averaged_to(first, size), _averaged_to(second, size)


def _averaged_to(maps: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Return maps [B, C, H, W] averaged down to the height and width in `size`."""
    if list(maps.shape[2:]) == size:
        return maps
    return F.adaptive_avg_pool2d(maps, size)
