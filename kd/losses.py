"""Every loss, in float32: the equation first, then the other kinds, of outputs and of feature maps.

The equation is `kd`; `training.objectives.Distillation` sets it beside the label. Each loss is a
mean over the batch alone, whatever the number of classes or the size of a map.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from kd.system.errors import Problem

SMALLEST = 1e-6  # length of a row below which it is not scaled to length 1: keeps gradients bounded


def kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)).

    Summed over classes, mean over the batch. student, teacher: logits [B, K], taken to float32
    before they are divided. T^2 keeps the gradient's size when T changes (Hinton, Vinyals, Dean
    2015, 1503.02531, section 2). Dividing by B and not by B * K matters: with `KLDivLoss`'s default
    mean, a weight means something else for every number of classes.
    """
    check_logits(student, teacher)
    log_student = _log_softened(student, temperature)
    log_teacher = _log_softened(teacher, temperature)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the batch of -w[label] * log softmax(logits)[label], at T = 1.

    logits [B, K], labels int64 [B], weights [K]. Divided by B, not by the batch's weights: an image
    counts for the same in any company.
    """
    if weights is None:
        return F.cross_entropy(full(logits), labels)
    total = F.cross_entropy(full(logits), labels, weight=weights, reduction="sum")
    return total / len(labels)


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """N / (K * n_k): every class counts for the same, and the mean over the images is 1.

    labels int64 [N] -> float32 [K].
    """
    counts = torch.bincount(labels, minlength=classes).float()
    return len(labels) / (classes * counts.clamp(min=1))


def logit_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """||student - teacher||^2 / 2, summed over classes, mean over the batch. logits [B, K].

    Regression on logits: Ba, Caruana 2014, 1312.6184, eq. 1.
    """
    check_logits(student, teacher)
    return (full(student) - full(teacher)).square().sum(1).mean() / 2


def dkd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    beta: float | torch.Tensor = 1.0,
) -> torch.Tensor:
    """T^2 * (TCKD + beta * NCKD), mean over the batch.

    logits [B, K] with K > 2, labels int64 [B], beta a number or [B]. Decoupled KD (Zhao et al.
    2022, 2203.08679, eq. 7, its alpha = 1): TCKD is the KL of (p_t, 1 - p_t), the true class
    against all others; NCKD that of the others among themselves. KD itself is beta = 1 - p_t, with
    the teacher's softened p_t: the surer it is, the less its knowledge of the other classes counts.
    """
    check_logits(student, teacher)
    if student.shape[1] < 3:
        raise Problem(
            "knowledge 'dkd' in --knowledge: with 2 classes there is one other class, and nothing"
            " to tell of it; give --knowledge kd"
        )
    target = F.one_hot(labels, student.shape[1]).bool()
    binary_student = _target_against_others(_log_softened(student, temperature), target)
    binary_teacher = _target_against_others(_log_softened(teacher, temperature), target)
    tckd = _kl_of_rows(binary_student, binary_teacher)
    others_student = _log_softened(_others(full(student), target), temperature)
    others_teacher = _log_softened(_others(full(teacher), target), temperature)
    nckd = _kl_of_rows(others_student, others_teacher)
    return temperature**2 * (tckd + beta * nckd).mean()


def dist(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * ((1 - correlation of rows) + (1 - correlation of columns)) of softened probabilities.

    logits [B, K]. Pearson's correlation, mean over the B rows (classes of an image) and over the K
    columns (images of a class): DIST (Huang et al. 2022, 2205.10536, inter- and intra-class
    relation, both weights 1). A correlation of two values is -1 or 1 and has no gradient: with K =
    2 the rows teach nothing, in a batch of 2 the columns.
    """
    check_logits(student, teacher)
    own = (full(student) / temperature).softmax(1)
    other = (full(teacher) / temperature).softmax(1)
    rows, columns = _correlation(own, other).mean(), _correlation(own.T, other.T).mean()
    return temperature**2 * (2 - rows - columns)


def standardized(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """`kd` of logits [B, K] that have mean 0 and standard deviation 1 over an image's classes.

    Logit standardization (Sun et al. 2024, 2403.01427, algorithm 1; the deviation divides by K, not
    by K - 1). No standardized logit exceeds sqrt(K - 1): see `standardized_cap`. Logits that are
    all equal stay 0.
    """
    return kd(_standardize(full(student)), _standardize(full(teacher)), temperature)


def standardized_cap(classes: int, temperature: float) -> float:
    """The most that softmax(standardized / T) can give a class.

    One logit is sqrt(K - 1) then, the others -1 / sqrt(K - 1).
    """
    top = (classes - 1) ** 0.5 / temperature
    others = -((classes - 1) ** -0.5) / temperature
    return 1 / (1 + (classes - 1) * math.exp(others - top))


def mixture(logits: torch.Tensor, weights: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits [B, K] of several teachers together, from logits [M, B, K], weights [M] of sum 1.

    At T they give the weighted mean of the teachers' softened probabilities: T * log of that mean,
    shifted so that a row's mean is the weighted mean of the teachers'. Of one teacher alone these
    are its own logits. (Hinton, Vinyals, Dean 2015, 1503.02531, section 1: an ensemble's knowledge
    as the mean of its members' predictions.)
    """
    if len(logits) == 1:
        return logits[0].float()
    logits, weights = full(logits), full(weights).view(-1, 1, 1)
    log_probabilities = F.log_softmax(logits / temperature, dim=2)
    mean = torch.logsumexp(log_probabilities + weights.log(), dim=0) * temperature
    return mean - mean.mean(1, keepdim=True) + (weights * logits).sum(0).mean(1, keepdim=True)


def attention(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """|| A_s / |A_s| - A_t / |A_t| ||^2, mean over the batch; maps [B, C, H, W] with any C.

    A is a map's mean square over channels. Attention transfer (Zagoruyko, Komodakis 2017,
    1612.03928, eq. 2 with p = 2, squared as in their code). Between 0 and 2, whatever the size of a
    map: their code takes the mean over positions and weighs it with 1000, the formula is a sum.
    """
    student, teacher = _same_size(full(student), full(teacher))
    own = unit(student.square().mean(1).flatten(1), SMALLEST)
    other = unit(teacher.square().mean(1).flatten(1), SMALLEST)
    return (own - other).square().sum(1).mean()


def similarity(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """|| G_s - G_t ||_F^2 / B, where G [B, B] compares images by their features [B, ...].

    G holds the inner products of images' features, its rows scaled to length 1.
    Similarity-preserving distillation (Tung, Mori 2019, 1907.09682, eq. 1 to 4). They divide by
    B^2, so that their weight 3000 belongs to batches of 128; divided by B it is 23 and holds for
    any batch. An image alone is only like itself: 0.
    """
    own, other = _inner_products(student), _inner_products(teacher)
    return (own - other).square().sum() / len(own)


def pkt(student: torch.Tensor, teacher: torch.Tensor, width: float = 0.0) -> torch.Tensor:
    """KL(p_t(. | i) || p_s(. | i)) of neighbours, mean over the B images i of a batch.

    p(j | i) is the probability that another image j of the batch is the neighbour of i: a kernel of
    their features, divided by its sum over all others. Features [B, C, H, W] are averaged over
    positions, those of another shape are flattened, and each row is scaled to length 1.
    Probabilistic knowledge transfer (Passalis, Tefas 2018, 1803.10837, section 3).

    width  0: the cosine kernel (1 + cos) / 2, which needs none; otherwise sigma of the Gaussian
           kernel exp(-d^2 / (2 sigma^2)) of the distance d, which on rows of length 1 lies
           between 0 and 2. The KL is then multiplied by sigma^4: sigma^2 softens as T does in
           `kd`, and the gradient keeps its size when it changes

    They sum over the images, and their code counts an image among its own neighbours; the paper's
    formula does not. In a batch of one or two images no neighbour can be chosen: 0.
    """
    log_student, log_teacher = _log_neighbours(student, width), _log_neighbours(teacher, width)
    divergence = _kl_of_rows(log_student, log_teacher).mean()
    return width**4 * divergence if width else divergence


def hint(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """|| student - teacher ||^2 / 2, mean over batch, channels and positions.

    Maps [B, C, H, W], projected to the same C before. FitNets (Romero et al. 2015, 1412.6550, eq.
    3). They sum over the map, so that a weight depends on its size.
    """
    student, teacher = _same_size(full(student), full(teacher))
    return (student - teacher).square().mean() / 2


class Projectors(nn.Module):
    """A trainable 1x1 convolution for every pair of layers (FitNets' regressor).

    pairs: (student's channels, teacher's channels). Drawn by `seed` alone, as torch draws a
    convolution.
    """

    def __init__(self, pairs: list[tuple[int, int]], seed: int):
        super().__init__()
        random = torch.Generator().manual_seed(seed)  # torch's own stream stays as it is
        self.weights = nn.ParameterList()
        for own, theirs in pairs:
            drawn = 2 * torch.rand(theirs, own, 1, 1, generator=random) - 1
            self.weights.append(nn.Parameter(drawn / own**0.5))

    def forward(self, features: torch.Tensor, pair: int) -> torch.Tensor:
        """features [B, C, H, W] of a pair's student -> [B, C', H, W], in float32."""
        return F.conv2d(full(features), self.weights[pair])


def full(values: torch.Tensor) -> torch.Tensor:
    """In float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def unit(rows: torch.Tensor, smallest: float) -> torch.Tensor:
    """Rows [n, m] scaled to length 1, but for those shorter than `smallest`."""
    return F.normalize(rows, dim=1, eps=smallest)


def check_logits(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Refuse logits that would broadcast silently or make no distribution. Raises Problem."""
    if student.shape != teacher.shape or student.ndim != 2 or student.shape[1] < 2:
        raise Problem(
            f"logits of shape {tuple(teacher.shape)} from the teacher and {tuple(student.shape)}"
            " from the student: must both be [batch, classes] with at least 2 classes; choose"
            " networks for the same classes"
        )


def _log_softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(logits / T) over classes [B, K], in float32."""
    return F.log_softmax(full(logits) / temperature, dim=1)


def _kl_of_rows(log_student: torch.Tensor, log_teacher: torch.Tensor) -> torch.Tensor:
    """KL of each row of log-probabilities: [B, K] and [B, K] -> [B]."""
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


def _others(rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Rows [B, K] without the true class: [B, K - 1]. target bool [B, K]."""
    return rows[~target].view(len(rows), -1)


def _target_against_others(log: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """log (p_t, 1 - p_t) of log-probabilities [B, K]: [B, 2]. target bool [B, K]."""
    return torch.stack([log[target], _others(log, target).logsumexp(1)], 1)


def _correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of rows: [n, m] and [n, m] -> [n]. 0 for a row of equal values."""
    return (_centred(first) * _centred(second)).sum(1)


def _centred(rows: torch.Tensor) -> torch.Tensor:
    """Rows [n, m] with mean 0 and length 1."""
    return unit(rows - rows.mean(1, keepdim=True), SMALLEST)


def _standardize(logits: torch.Tensor) -> torch.Tensor:
    return _centred(logits) * logits.shape[1] ** 0.5


def _inner_products(features: torch.Tensor) -> torch.Tensor:
    """Inner products of images' features [B, ...], rows of length 1: [B, B]."""
    rows = full(features).flatten(1)
    return unit(rows @ rows.T, SMALLEST)


def _log_neighbours(features: torch.Tensor, width: float) -> torch.Tensor:
    """log p(j | i) of images' features [B, ...], without i itself: [B, B - 1]."""
    features = full(features)
    if features.ndim == 4:
        features = features.mean((2, 3))
    rows = unit(features.flatten(1), SMALLEST)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    cosines = (rows @ rows.T)[~itself].view(len(rows), len(rows) - 1)
    if width:
        log_kernel = (cosines - 1) / width**2  # d^2 = 2 - 2 cos
    else:
        log_kernel = ((1 + cosines) / 2).clamp(min=SMALLEST).log()
    return F.log_softmax(log_kernel, dim=1)


def _same_size(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both maps at the smaller one's height and width: the larger one is averaged down."""
    size = [min(one, other) for one, other in zip(first.shape[2:], second.shape[2:])]
    return _averaged_to(first, size), _averaged_to(second, size)


def _averaged_to(maps: torch.Tensor, size: list[int]) -> torch.Tensor:
    if list(maps.shape[2:]) == size:
        return maps
    return F.adaptive_avg_pool2d(maps, size)
