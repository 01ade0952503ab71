"""What a phase minimises: labels, knowledge, or both.

An objective is called as objective(student, teacher, labels) with the student's `Outputs`, what the
teachers say (`TeacherOutputs`, or None) and labels int64 [B] (or None). It returns {"loss": scalar,
and its terms and other batch means by name}.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch

from kd import losses
from kd.methods import KNOWLEDGE
from kd.models import Outputs
from kd.system import ranks
from kd.teachers.outputs import TeacherOutputs


class Objective(Protocol):
    """Any of the objectives below."""

    def __call__(
        self, student: Outputs, teacher: TeacherOutputs | None, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Knowledge:
    """What is passed on, and how much each kind counts.

    weights       kind -> weight of its term
    temperatures  of several the mean of a kind's losses
    options       kind -> its own hyper-parameters
    projectors    for kinds that compare projected maps: one for every teacher and layer
    """

    weights: dict[str, float]
    temperatures: tuple[float, ...]
    options: dict[str, dict] = field(default_factory=dict)
    projectors: losses.Projectors | None = None

    def terms(
        self, student: Outputs, teacher: TeacherOutputs, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Each kind's loss, without its weight."""
        found = {}
        for name in self.weights:
            if KNOWLEDGE[name].inside:
                found[name] = self._inside(name, student, teacher)
            else:
                found[name] = self._output(name, student, teacher, labels)
        return found

    def total(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of the terms."""
        return sum(weight * terms[name] for name, weight in self.weights.items())

    def _output(
        self, name: str, student: Outputs, teacher: TeacherOutputs, labels: torch.Tensor | None
    ) -> torch.Tensor:
        """A loss of logits: the mean over the temperatures, where it takes one."""
        kind, arguments = KNOWLEDGE[name], dict(self.options.get(name, {}))
        loss = kind.function()
        if kind.labels:
            arguments["labels"] = labels
        if not kind.softens:
            return loss(student.logits, teacher.at(1.0), **arguments)
        values = [
            loss(student.logits, teacher.at(t), temperature=t, **arguments)
            for t in self.temperatures
        ]
        return torch.stack(values).mean()

    def _inside(self, name: str, student: Outputs, teacher: TeacherOutputs) -> torch.Tensor:
        """A loss of feature maps: the weighted mean over the teachers of the mean over layers."""
        kind, options = KNOWLEDGE[name], self.options.get(name, {})
        loss = kind.function()
        of_teachers = []
        for number, features in enumerate(teacher.features):
            values = []
            for place, (own, other) in enumerate(zip(student.features, features, strict=True)):
                if kind.projects:
                    own = self.projectors(own, len(features) * number + place)
                values.append(loss(own, other, **options))
            of_teachers.append(torch.stack(values).mean())
        return (teacher.weights * torch.stack(of_teachers)).sum()


@dataclass(frozen=True)
class Supervised:
    """CE: labels alone. class_weights [K]: how much each class counts."""

    class_weights: torch.Tensor | None = None

    def __call__(self, student, teacher, labels):
        loss = losses.cross_entropy(student.logits, labels, self.class_weights)
        return {"loss": loss, "ce": loss.detach(), "accuracy": _agreement(student.logits, labels)}


@dataclass(frozen=True)
class Distillation:
    """(1 - alpha) * CE + alpha * knowledge.

    With `kd` it is Hinton's form (1503.02531, section 2), with the label at T = 1.
    """

    knowledge: Knowledge
    alpha: float
    class_weights: torch.Tensor | None = None

    def __call__(self, student, teacher, labels):
        ce = losses.cross_entropy(student.logits, labels, self.class_weights)
        terms = self.knowledge.terms(student, teacher, labels)
        return {
            "loss": (1 - self.alpha) * ce + self.alpha * self.knowledge.total(terms),
            "ce": ce.detach(),
            **_detached(terms),
            "accuracy": _agreement(student.logits, labels),
        }


@dataclass(frozen=True)
class Matching:
    """The knowledge alone: no label is read. Raises ValueError where it is given any."""

    knowledge: Knowledge

    def __call__(self, student, teacher, labels):
        if labels is not None:
            raise ValueError("labels in a phase that reads none")
        terms = self.knowledge.terms(student, teacher, None)
        graph = ranks.keep_in_graph(losses.full(student.logits))
        return {
            "loss": self.knowledge.total(terms) + graph,
            **_detached(terms),
            "agreement": _agreement(student.logits, teacher.at(1.0).argmax(1)),
        }


def _detached(terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: term.detach() for name, term in terms.items()}


def _agreement(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Share of rows [B, K] whose largest logit is at the given class, int64 [B]."""
    return (logits.detach().argmax(1) == classes).float().mean()


def gradient_ratio(
    student: torch.Tensor, teacher: TeacherOutputs, labels: torch.Tensor, objective: Distillation
) -> float:
    """Norm of the weighted knowledge's gradient over that of the weighted label term.

    Gradients are taken by the student's logits [B, K]. inf at alpha = 1.
    """
    logits = student.detach().float().requires_grad_()
    knowledge = objective.knowledge
    distilled = knowledge.total(knowledge.terms(Outputs(logits), teacher, labels))
    of_knowledge = objective.alpha * torch.autograd.grad(distilled, logits)[0].norm().item()
    logits = student.detach().float().requires_grad_()
    supervised = losses.cross_entropy(logits, labels, objective.class_weights)
    of_labels = (1 - objective.alpha) * torch.autograd.grad(supervised, logits)[0].norm().item()
    return of_knowledge / of_labels if of_labels > 0 else float("inf")
