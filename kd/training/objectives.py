"""What a phase minimises: labels, knowledge, or both.

A new kind of knowledge is a function here and a row in `strategies`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kd import losses
from kd.methods import KNOWLEDGE
from kd.models import Outputs
from kd.system import ranks
from kd.teachers.functions import Taught

# (student, teachers or None, labels [B] or None) -> {"loss": scalar, its terms and other batch
# means}
Objective = Callable[[Outputs, Taught | None, torch.Tensor | None], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Knowledge:
    """What is passed on, and how much each kind counts.

    temperatures  of several the mean of a kind's losses
    beta          of `dkd`
    projectors    of `hint`, one for every teacher and layer
    """

    weights: dict[str, float]
    temperatures: tuple[float, ...]
    beta: float = 1.0
    projectors: losses.Projectors | None = None

    def terms(
        self, student: Outputs, taught: Taught, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Each kind's loss, without its weight."""
        return {
            name: (
                self._inside(name, student, taught)
                if KNOWLEDGE[name].location == "stages"
                else self._output(name, student, taught, labels)
            )
            for name in self.weights
        }

    def total(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of the terms."""
        return sum(weight * terms[name] for name, weight in self.weights.items())

    def _output(
        self, name: str, student: Outputs, taught: Taught, labels: torch.Tensor | None
    ) -> torch.Tensor:
        temperatures = self.temperatures if KNOWLEDGE[name].softens else (1.0,)
        values = [OUTPUT[name](student.logits, taught.at(t), labels, t, self) for t in temperatures]
        return torch.stack(values).mean()

    def _inside(self, name: str, student: Outputs, taught: Taught) -> torch.Tensor:
        """Weighted mean over the teachers of the mean over the layers."""
        of_teachers = [
            torch.stack(
                [
                    INSIDE[name](own, other, place, self)
                    for place, (own, other) in enumerate(
                        zip(student.features, features, strict=True), len(features) * number
                    )
                ]
            ).mean()
            for number, features in enumerate(taught.features)
        ]
        return (taught.weights * torch.stack(of_teachers)).sum()


# (student's logits, teachers' logits, labels, T, what else is set) -> scalar
OUTPUT = {
    "kd": lambda student, teacher, labels, t, how: losses.kd(student, teacher, t),
    "logit-mse": lambda student, teacher, labels, t, how: losses.logit_mse(student, teacher),
    "dkd": lambda student, teacher, labels, t, how: losses.dkd(
        student, teacher, labels, t, how.beta
    ),
    "dist": lambda student, teacher, labels, t, how: losses.dist(student, teacher, t),
    "standardized": lambda student, teacher, labels, t, how: losses.standardized(
        student, teacher, t
    ),
}
# (student's features, a teacher's, number of the pair, what else is set) -> scalar
INSIDE = {
    "attention": lambda student, teacher, pair, how: losses.attention(student, teacher),
    "similarity": lambda student, teacher, pair, how: losses.similarity(student, teacher),
    "hint": lambda student, teacher, pair, how: losses.hint(how.projectors(student, pair), teacher),
}


def supervised(class_weights: torch.Tensor | None = None) -> Objective:
    """Labels alone. class_weights [K]: how much each class counts."""

    def objective(student, taught, labels):
        loss = losses.cross_entropy(student.logits, labels, class_weights)
        return {"loss": loss, "ce": loss.detach(), "accuracy": _share_of(student.logits, labels)}

    return objective


def distillation(
    knowledge: Knowledge, alpha: float, class_weights: torch.Tensor | None = None
) -> Objective:
    """(1 - alpha) * CE + alpha * knowledge: with `kd` Hinton's form (1503.02531, section 2), the
    label at T = 1.
    """

    def objective(student, taught, labels):
        ce, terms = (
            losses.cross_entropy(student.logits, labels, class_weights),
            knowledge.terms(student, taught, labels),
        )
        return {
            "loss": (1 - alpha) * ce + alpha * knowledge.total(terms),
            "ce": ce.detach(),
            **_detached(terms),
            "accuracy": _share_of(student.logits, labels),
        }

    return objective


def matching(knowledge: Knowledge) -> Objective:
    """The teachers alone, no label.

    It takes no labels, and takes none that it is given: raises ValueError.
    """

    def objective(student, taught, labels):
        if labels is not None:
            raise ValueError("labels in a phase that reads none")
        terms = knowledge.terms(student, taught, None)
        return {
            "loss": knowledge.total(terms) + ranks.keep_in_graph(losses.full(student.logits)),
            **_detached(terms),
            "agreement": _share_of(student.logits, taught.at(1.0).argmax(1)),
        }

    return objective


def _detached(terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: term.detach() for name, term in terms.items()}


def _share_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.detach().argmax(1) == labels).float().mean()


def gradient_ratio(
    student: torch.Tensor,
    taught: Taught,
    labels: torch.Tensor,
    knowledge: Knowledge,
    alpha: float,
    class_weights: torch.Tensor | None = None,
) -> float:
    """Norm of the weighted knowledge's gradient by the logits [B, K], over that of the weighted
    label term. inf at alpha = 1.
    """
    norms = []
    terms = (
        (alpha, lambda logits: knowledge.total(knowledge.terms(Outputs(logits), taught, labels))),
        (1 - alpha, lambda logits: losses.cross_entropy(logits, labels, class_weights)),
    )
    for weight, term in terms:
        logits = student.detach().float().requires_grad_()
        norms.append(weight * torch.autograd.grad(term(logits), logits)[0].norm().item())
    return norms[0] / norms[1] if norms[1] > 0 else float("inf")
