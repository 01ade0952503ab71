"""Every loss of outputs: the distillation equation first; `kd.feature_losses` has the others.

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

from kd.system.errors import Problem

# Rows shorter than this are divided by it instead of by their length, to keep gradients bounded.
SMALLEST = 1e-6


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
        divergence = weighted_mean(kl_of_rows(log_student, log_teacher), weights)
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
    return weighted_mean((full(student) - full(teacher)).square().sum(1), weights) / 2


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
    tckd = kl_of_rows(binary_student, binary_teacher)
    others_student = _log_softened(other_columns(full(student), labels), temperature)
    others_teacher = _log_softened(other_columns(full(teacher), labels), temperature)
    nckd = kl_of_rows(others_student, others_teacher)
    return temperature**2 * weighted_mean(tckd + beta * nckd, weights)


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
    return weighted_mean(
        (full(student).softmax(1) - full(teacher).softmax(1)).square().sum(1), weights
    )


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
    return weighted_mean(each * confident(teacher, threshold), weights)


def confident(teacher: torch.Tensor, threshold: float = 0.95) -> torch.Tensor:
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


def weighted_mean(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over values [B, ...], in which each image counts with its weight [B].

    The sum is divided by the number of values, and not by the sum of the weights.
    """
    if weights is None:
        return values.mean()
    return (weights * values.reshape(len(values), -1).mean(1)).mean()


def _log_softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return log softmax(logits / T) over the classes of logits [B, K], in float32."""
    return F.log_softmax(full(logits) / temperature, dim=1)


def kl_of_rows(log_student: torch.Tensor, log_teacher: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence [B] of each row of two log-probabilities [B, K]."""
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


# The next two functions use `gather`, because indexing with a mask waits for the GPU.


def other_columns(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return rows [B, K] without the column of the true class, int64 [B]: [B, K - 1]."""
    columns = torch.arange(rows.shape[1] - 1, device=rows.device)
    # Columns from that of the true class on are shifted by one.
    return rows.gather(1, columns + (columns >= labels[:, None]))


def _target_against_others(log: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return log (p_t, 1 - p_t), [B, 2], of log-probabilities [B, K]; t is the true class."""
    target = log.gather(1, labels[:, None])
    others = other_columns(log, labels).logsumexp(1, keepdim=True)
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
