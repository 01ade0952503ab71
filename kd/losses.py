"""Losses in float32. Every one is a mean over the batch alone, whatever the number of classes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kd.errors import Problem

# (student logits [B, K], teacher logits [B, K] or None, labels [B] or None) -> {"loss": scalar, its terms and other batch means}
Objective = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor | None], dict[str, torch.Tensor]]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the batch of -w[label] * log softmax(logits)[label], at T = 1. logits [B, K], labels int64 [B], weights [K].

    Divided by B, not by the batch's weights: an image counts for the same in any company.
    """
    if weights is None:
        return F.cross_entropy(logits.float(), labels)
    return F.cross_entropy(logits.float(), labels, weight=weights, reduction="sum") / len(labels)


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """N / (K * n_k): every class counts for the same, and the mean over the images is 1. labels int64 [N] -> float32 [K]."""
    counts = torch.bincount(labels, minlength=classes).float()
    return len(labels) / (classes * counts.clamp(min=1))


def kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), summed over classes, mean over the batch.

    student, teacher: logits [B, K], taken to float32 before they are divided. T^2 keeps the gradient's size when T
    changes (Hinton, Vinyals, Dean 2015, 1503.02531, section 2). Dividing by B and not by B * K matters: with
    `KLDivLoss`'s default mean, a weight means something else for every number of classes.
    """
    check_logits(student, teacher)
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def logit_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """||student - teacher||^2 / 2, summed over classes, mean over the batch. logits [B, K].

    Regression on logits: Ba, Caruana 2014, 1312.6184, eq. 1.
    """
    check_logits(student, teacher)
    return (student.float() - teacher.float()).square().sum(1).mean() / 2


def check_logits(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Refuse logits that would broadcast silently or make no distribution. Raises Problem."""
    if student.shape != teacher.shape or student.ndim != 2 or student.shape[1] < 2:
        raise Problem(f"logits of shape {tuple(teacher.shape)} from the teacher and {tuple(student.shape)} from the student: "
                      "must both be [batch, classes] with at least 2 classes; choose networks for the same classes")


def supervised(weights: torch.Tensor | None = None) -> Objective:
    """Labels alone. weights [K]: how much each class counts."""
    def objective(student, teacher, labels):
        loss = cross_entropy(student, labels, weights)
        return {"loss": loss, "ce": loss.detach(), "accuracy": _share_of(student, labels)}
    return objective


def distillation(temperature: float, alpha: float, weights: torch.Tensor | None = None) -> Objective:
    """(1 - alpha) * CE + alpha * T^2 * KL: Hinton's form (1503.02531, section 2), the label at T = 1."""
    def objective(student, teacher, labels):
        ce, soft = cross_entropy(student, labels, weights), kd(student, teacher, temperature)
        return {"loss": (1 - alpha) * ce + alpha * soft, "ce": ce.detach(), "kd": soft.detach(),
                "accuracy": _share_of(student, labels)}
    return objective


def matching(loss: str, temperatures: list[float]) -> Objective:
    """The teacher's outputs alone, no label: `logit-mse`, or the mean of T^2 * KL over the temperatures (`kd`).

    It takes no labels, and takes none that it is given: raises ValueError.
    """
    def objective(student, teacher, labels):
        if labels is not None:
            raise ValueError("labels in a phase that reads none")
        if loss == "logit-mse":
            value = logit_mse(student, teacher)
        else:
            value = torch.stack([kd(student, teacher, temperature) for temperature in temperatures]).mean()
        return {"loss": value, "agreement": _share_of(student, teacher.argmax(1))}
    return objective


def _share_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.detach().argmax(1) == labels).float().mean()


def gradient_ratio(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float,
                   alpha: float, weights: torch.Tensor | None = None) -> float:
    """Norm of the weighted KD term's gradient by the logits, over that of the weighted label term. inf at alpha = 1."""
    norms = []
    soft, hard = (lambda z: kd(z, teacher, temperature)), (lambda z: cross_entropy(z, labels, weights))
    for weight, term in ((alpha, soft), (1 - alpha, hard)):
        logits = student.detach().float().requires_grad_()
        norms.append(weight * torch.autograd.grad(term(logits), logits)[0].norm().item())
    return norms[0] / norms[1] if norms[1] > 0 else float("inf")
