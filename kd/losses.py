"""Losses in float32. Every one is a mean over the batch alone, whatever the number of classes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kd.errors import Problem

# (student logits [B, K], teacher logits [B, K] or None, labels [B]) -> {"loss": scalar, and its terms}
Objective = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], dict[str, torch.Tensor]]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of -log softmax(logits)[label], at T = 1. logits [B, K], labels int64 [B]."""
    return F.cross_entropy(logits.float(), labels)


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


def check_logits(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Refuse logits that would broadcast silently or make no distribution. Raises Problem."""
    if student.shape != teacher.shape or student.ndim != 2 or student.shape[1] < 2:
        raise Problem(f"logits of shape {tuple(teacher.shape)} from the teacher and {tuple(student.shape)} from the student: "
                      "must both be [batch, classes] with at least 2 classes; choose networks for the same classes")


def supervised() -> Objective:
    """Labels alone."""
    def objective(student, teacher, labels):
        loss = cross_entropy(student, labels)
        return {"loss": loss, "ce": loss.detach()}
    return objective


def distillation(temperature: float, alpha: float) -> Objective:
    """(1 - alpha) * CE + alpha * T^2 * KL: Hinton's form (1503.02531, section 2), the label at T = 1."""
    def objective(student, teacher, labels):
        ce, soft = cross_entropy(student, labels), kd(student, teacher, temperature)
        return {"loss": (1 - alpha) * ce + alpha * soft, "ce": ce.detach(), "kd": soft.detach()}
    return objective


def gradient_ratio(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float,
                   alpha: float) -> float:
    """Norm of the weighted KD term's gradient by the logits, over that of the weighted label term. inf at alpha = 1."""
    norms = []
    for weight, term in ((alpha, lambda z: kd(z, teacher, temperature)), (1 - alpha, lambda z: cross_entropy(z, labels))):
        logits = student.detach().float().requires_grad_()
        norms.append(weight * torch.autograd.grad(term(logits), logits)[0].norm().item())
    return norms[0] / norms[1] if norms[1] > 0 else float("inf")
