"""Every loss: the distillation equation first, then other losses of outputs and of feature maps.

The equation is `kd`; `training.objectives.Distillation` combines it with the loss of the labels.

In all shapes, B is the number of images in a batch, K the number of classes, M the number of
teachers, and C, H and W are the channels, height and width of a feature map. Every loss returns a
scalar tensor. It is computed in float32 (float64 inputs stay float64) and averaged over the batch;
it is averaged over other axes only where its docstring says so.

Losses that are a mean over images take `weights` [B], one for each image (see
`training.class_weights`). The sum of the weighted losses is divided by B, so that the loss of an
image does not depend on the other images. Without weights, all images count the same.
"""

import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from kd.system.errors import Problem

# Rows shorter than this are divided by it instead of by their length, to keep gradients bounded.
SMALLEST = 1e-6
ARMS_AT_ONCE = 2**22  # values in a tensor of `rkd`: 16 MB in float32


def kd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return T^2 * KL(softmax(teacher / T) || softmax(student / T)), the loss of distillation.

    The divergence is summed over the classes and averaged over the batch. The factor T^2 keeps the
    size of the gradient when T changes. The sum is divided by B and not by B * K: with the default
    mean of `torch.nn.KLDivLoss`, a weight would have a different meaning for every K.

    student, teacher  logits [B, K], converted to float32 before they are divided by T
    temperature       T
    weights           of the images [B], or None

    Raises Problem for logits that `check_logits` refuses.

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2.
    """
    check_logits(student, teacher)
    log_student = _log_softened(student, temperature)
    log_teacher = _log_softened(teacher, temperature)
    if weights is None:
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    else:
        divergence = _mean(_kl_of_rows(log_student, log_teacher), weights)
    return temperature**2 * divergence


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean over the batch of -sum_k y_k * w_k * log softmax(logits)_k, at T = 1.

    y_k is the share of class k in the image: 1 for its label, or lam and 1 - lam for the labels of
    two images that were mixed.

    The sum is divided by B. With `torch.nn.functional.cross_entropy`, it would be divided by the
    sum of the weights in the batch, and the loss of an image would depend on the other images.

    logits   [B, K]
    labels   int64 [B], or floating point [B, K]: the share of each class
    weights  w [K], one weight for each class; 1 for all classes by default
    """
    logits = full(logits)
    if labels.is_floating_point():
        labels = labels.to(logits.dtype)
    if weights is None:
        return F.cross_entropy(logits, labels)
    total = F.cross_entropy(logits, labels, weight=weights, reduction="sum")
    return total / len(labels)


def logit_mse(
    student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ||student - teacher||^2 / 2, summed over the classes, averaged over the batch.

    student, teacher  logits [B, K]
    weights           of the images [B], or None

    Raises Problem for logits that `check_logits` refuses.

    Source: Ba, Caruana 2014, arXiv:1312.6184, eq. 1 (regression on logits).
    """
    check_logits(student, teacher)
    return _mean((full(student) - full(teacher)).square().sum(1), weights) / 2


def dkd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    beta: float | torch.Tensor = 1.0,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return T^2 * (TCKD + beta * NCKD), averaged over the batch.

    Let p_t be the softened probability of the true class. TCKD is the KL divergence of
    (p_t, 1 - p_t), the true class against all others. NCKD is the KL divergence of the other
    classes among themselves. With beta = 1 - p_t of the teacher, the loss equals `kd`: there, a
    teacher that is certain of the true class passes on little about the others.

    student, teacher  logits [B, K] with K >= 3
    labels            int64 [B]
    temperature       T
    beta              a number, or a tensor [B] with one value per image
    weights           of the images [B], or None

    Raises Problem for K = 2 and for logits that `check_logits` refuses.

    Source: Zhao et al. 2022, arXiv:2203.08679, eq. 7 with alpha = 1 (decoupled distillation).
    """
    check_logits(student, teacher)
    if student.shape[1] < 3:
        raise Problem(
            "--knowledge dkd is not defined for 2 classes: a single other class has no distribution"
            " to match. Use --knowledge kd."
        )
    binary_student = _target_against_others(_log_softened(student, temperature), labels)
    binary_teacher = _target_against_others(_log_softened(teacher, temperature), labels)
    tckd = _kl_of_rows(binary_student, binary_teacher)
    others_student = _log_softened(_others(full(student), labels), temperature)
    others_teacher = _log_softened(_others(full(teacher), labels), temperature)
    nckd = _kl_of_rows(others_student, others_teacher)
    return temperature**2 * _mean(tckd + beta * nckd, weights)


def dist(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 * ((1 - correlation of rows) + (1 - correlation of columns)) of probabilities.

    The softened probabilities [B, K] of student and teacher are compared by Pearson's correlation,
    averaged over the B rows (the classes of an image) and over the K columns (the images of a
    class). A correlation of two values is -1 or 1 and has no gradient: with K = 2 the rows teach
    nothing, and with B = 2 the columns teach nothing.

    student, teacher  logits [B, K]
    temperature       T

    Raises Problem for logits that `check_logits` refuses.

    Source: DIST, Huang et al. 2022, arXiv:2205.10536, the inter-class and the intra-class relation,
    both with weight 1.
    """
    check_logits(student, teacher)
    own = (full(student) / temperature).softmax(1)
    other = (full(teacher) / temperature).softmax(1)
    rows, columns = _correlation(own, other).mean(), _correlation(own.T, other.T).mean()
    return temperature**2 * (2 - rows - columns)


def standardized(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `kd` of logits that are standardized over the classes of each image.

    Standardized logits have mean 0 and standard deviation 1, which divides by K and not by K - 1.
    None of them exceeds sqrt(K - 1), which limits the probabilities (see `standardized_cap`). If
    all logits of an image are equal, they become 0.

    student, teacher  logits [B, K]
    temperature       T
    weights           of the images [B], or None

    Raises Problem for logits that `check_logits` refuses.

    Source: Sun et al. 2024, arXiv:2403.01427, algorithm 1 (logit standardization).
    """
    return kd(_standardize(full(student)), _standardize(full(teacher)), temperature, weights)


def probability_mse(
    student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ||softmax(student) - softmax(teacher)||^2, averaged over the batch.

    The distance is a sum over the classes, at most 2. The paper's mean over K classes with a weight
    of 100 is this one with a weight of 100 / K.

    student, teacher  logits [B, K]
    weights           of the images [B], or None

    Raises Problem for logits that `check_logits` refuses.

    Source: Tarvainen, Valpola 2017, arXiv:1703.01780, section 2 (consistency cost).
    """
    check_logits(student, teacher)
    return _mean((full(student).softmax(1) - full(teacher).softmax(1)).square().sum(1), weights)


def pseudo_label(
    student: torch.Tensor,
    teacher: torch.Tensor,
    threshold: float = 0.95,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the cross-entropy with the teacher's most probable class, averaged over the batch.

    An image counts with 0 where the probability of that class is below the threshold (`confident`).
    The sum is divided by B all the same, so the loss grows with the number of confident images.

    student, teacher  logits [B, K]; both probabilities are at T = 1
    weights           of the images [B], or None

    Raises Problem for logits that `check_logits` refuses.

    Source: FixMatch, Sohn et al. 2020, arXiv:2001.07685, eq. 4.
    """
    check_logits(student, teacher)
    each = F.cross_entropy(full(student), teacher.argmax(1), reduction="none")
    return _mean(each * confident(teacher, threshold), weights)


def confident(teacher: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return in which rows of logits [B, K] a class has at least this probability: bool [B]."""
    return full(teacher).softmax(1).amax(1) >= threshold


def standardized_cap(classes: int, temperature: float) -> float:
    """Return the largest probability that a class can have in softmax(standardized logits / T).

    It is reached when one logit is sqrt(K - 1) and all others are -1 / sqrt(K - 1).

    classes      K
    temperature  T
    """
    top = (classes - 1) ** 0.5 / temperature
    others = -((classes - 1) ** -0.5) / temperature
    return 1 / (1 + (classes - 1) * math.exp(others - top))


def mixture(logits: torch.Tensor, weights: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return logits [B, K] whose softmax at T is the weighted mean of the teachers' probabilities.

    They are T * log of the mean of the softened probabilities, shifted so that the mean of each row
    is the weighted mean of the teachers' row means. The logits of a single teacher are returned
    unchanged, in float32 or float64.

    logits       of the teachers, [M, B, K]
    weights      of the teachers, [M], with sum 1
    temperature  T

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 1 (the knowledge of an ensemble as
    the mean of its members' predictions).
    """
    if len(logits) == 1:
        return full(logits[0])
    logits, weights = full(logits), full(weights).view(-1, 1, 1)
    log_probabilities = F.log_softmax(logits / temperature, dim=2)
    mean = torch.logsumexp(log_probabilities + weights.log(), dim=0) * temperature
    return mean - mean.mean(1, keepdim=True) + (weights * logits).sum(0).mean(1, keepdim=True)


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
    return _mean((own - other).square().sum(1), weights)


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
    divergence = _kl_of_rows(log_student, log_teacher).mean()
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
    return _mean((student - teacher).square(), weights) / 2


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
    return _mean(variance.log() + (teacher - mean).square() / variance, weights) / 2


def full(values: torch.Tensor) -> torch.Tensor:
    """Return the values in float32, or in float64 if they already are float64."""
    return values if values.dtype == torch.float64 else values.float()


def unit(rows: torch.Tensor, smallest: float) -> torch.Tensor:
    """Return rows [n, m] scaled to length 1; rows shorter than `smallest` are divided by it."""
    return F.normalize(rows, dim=1, eps=smallest)


def check_logits(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Raise Problem unless both logits have the same shape [B, K] with K >= 2.

    Other shapes would be broadcast silently, or have no distribution over classes.
    """
    if student.shape != teacher.shape or student.ndim != 2 or student.shape[1] < 2:
        raise Problem(
            f"Logits of shape {tuple(teacher.shape)} from the teacher and {tuple(student.shape)}"
            " from the student cannot be compared: both must be [batch, classes] with at least 2"
            " classes. Choose networks for the same classes."
        )


def _mean(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over values [B, ...], in which each image counts with its weight [B].

    The sum is divided by the number of values, and not by the sum of the weights.
    """
    if weights is None:
        return values.mean()
    return (weights * values.reshape(len(values), -1).mean(1)).mean()


def _log_softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return log softmax(logits / T) over the classes of logits [B, K], in float32."""
    return F.log_softmax(full(logits) / temperature, dim=1)


def _kl_of_rows(log_student: torch.Tensor, log_teacher: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence [B] of each row of two log-probabilities [B, K]."""
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


# The next two functions use `gather`, because indexing with a mask waits for the GPU.


def _others(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return rows [B, K] without the column of the true class, int64 [B]: [B, K - 1]."""
    columns = torch.arange(rows.shape[1] - 1, device=rows.device)
    # Columns from that of the true class on are shifted by one.
    return rows.gather(1, columns + (columns >= labels[:, None]))


def _target_against_others(log: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return log (p_t, 1 - p_t), [B, 2], of log-probabilities [B, K]; t is the true class."""
    target = log.gather(1, labels[:, None])
    others = _others(log, labels).logsumexp(1, keepdim=True)
    return torch.cat([target, others], 1)


def _correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation [n] of the rows of two matrices [n, m].

    It is 0 for a row whose values are all equal.
    """
    return (_centred(first) * _centred(second)).sum(1)


def _centred(rows: torch.Tensor) -> torch.Tensor:
    """Return rows [n, m] shifted to mean 0, then scaled to length 1."""
    return unit(rows - rows.mean(1, keepdim=True), SMALLEST)


def _standardize(logits: torch.Tensor) -> torch.Tensor:
    """Return logits [B, K] with mean 0 and standard deviation 1 in each row."""
    return _centred(logits) * logits.shape[1] ** 0.5


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
    cosines = _others(rows @ rows.T, torch.arange(len(rows), device=rows.device))
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
