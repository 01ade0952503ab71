"""The objective that a phase minimises: on labels, on knowledge, or on both.

An objective is called as objective(student, teacher, labels) with the `Outputs` of the student, the
`TeacherOutputs` of the teachers (or None) and the labels of a `Batch`. It returns a dictionary of
scalars: "loss", which has a gradient, and its terms and other batch means by name, which do not.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from kd import losses
from kd.knowledge import KNOWLEDGE
from kd.models import Outputs
from kd.system import ranks
from kd.teachers.outputs import TeacherOutputs
from kd.training.class_weights import image_weights


class Objective(Protocol):
    """The interface of the objectives below."""

    def __call__(
        self, student: Outputs, teacher: TeacherOutputs | None, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Knowledge:
    """The kinds of knowledge that are transferred, with their weights.

    weights        kind -> weight of its term
    temperatures   temperatures of the losses; with several, their mean is taken
    options        kind -> its own hyper-parameters
    regressors     of the kinds that train one, by kind (see `training.regressors`)
    class_weights  weight of each class [K] in the kinds that are means over images; None for equal
                   weights
    """

    weights: dict[str, float]
    temperatures: tuple[float, ...]
    options: dict[str, dict] = field(default_factory=dict)
    regressors: nn.ModuleDict | None = None
    class_weights: torch.Tensor | None = None

    def terms(
        self,
        student: Outputs,
        teacher: TeacherOutputs,
        labels: torch.Tensor | None,
        shares: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the loss of each kind by name, without its weight.

        shares  how much each image counts in kinds that are means over images [B]; None: equally
        """
        found, weights = {}, _product(self._image_weights(teacher, labels), shares)
        for name in self.weights:
            arguments = self._arguments(name, labels, weights)
            compare = self._inside if KNOWLEDGE[name].inside else self._output
            found[name] = compare(name, student, teacher, arguments)
        return found

    def counts(
        self, teacher: TeacherOutputs, shares: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return KIND-share -> the share of images that the loss of a kind uses, if not all."""
        found = {}
        for name in self.weights:
            kind = KNOWLEDGE[name]
            if kind.counts:
                options = kind.options_of(self.options.get(name, {}), regressor=False)
                used = kind.function(kind.counts)(teacher.at(1.0), **options).float()
                found[f"{name}-share"] = (used if shares is None else shares * used).mean()
        return found

    def total(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the weighted sum of the terms."""
        return sum(weight * terms[name] for name, weight in self.weights.items())

    def _image_weights(
        self, teacher: TeacherOutputs, labels: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return the weight of each image [B]; None for equal weights.

        It is the weight of the true class. Without labels, it is what this weight is expected to be
        if the class is drawn from the teachers' probabilities at T = 1.
        """
        if self.class_weights is None:
            return None
        classes = teacher.at(1.0).softmax(1) if labels is None else labels
        return image_weights(classes, self.class_weights)

    def _arguments(
        self, name: str, labels: torch.Tensor | None, weights: torch.Tensor | None
    ) -> dict:
        """Return what the loss of a kind takes beside the outputs and the temperature."""
        kind = KNOWLEDGE[name]
        arguments = kind.options_of(self.options.get(name, {}), regressor=False)
        if kind.labels:
            arguments["labels"] = labels
        if kind.per_image:
            arguments["weights"] = weights
        return arguments

    def _output(
        self, name: str, student: Outputs, teacher: TeacherOutputs, arguments: dict
    ) -> torch.Tensor:
        """Return a loss of the logits, averaged over the temperatures if it takes one."""
        kind = KNOWLEDGE[name]
        loss = kind.function()
        if not kind.softens:
            return loss(student.logits, teacher.at(1.0), **arguments)
        values = [
            loss(student.logits, teacher.at(t), temperature=t, **arguments)
            for t in self.temperatures
        ]
        return torch.stack(values).mean()

    def _inside(
        self, name: str, student: Outputs, teacher: TeacherOutputs, arguments: dict
    ) -> torch.Tensor:
        """Return a loss of features: the mean over layers, then the weighted mean over teachers."""
        kind = KNOWLEDGE[name]
        loss = kind.function()
        of_teachers = []
        for number, features in enumerate(teacher.features):
            values = []
            for place, (own, other) in enumerate(zip(student.features, features, strict=True)):
                if kind.regressor:
                    own = self.regressors[name](own, len(features) * number + place)
                values.append(loss(own, other, **arguments))
            of_teachers.append(torch.stack(values).mean())
        return (teacher.weights * torch.stack(of_teachers)).sum()


@dataclass(frozen=True)
class Supervised:
    """The cross-entropy (CE) of the labels, without knowledge.

    class_weights  weight of each class [K]; None for equal weights
    """

    class_weights: torch.Tensor | None = None

    def __call__(self, student, teacher, labels):
        loss = losses.cross_entropy(student.logits, labels, self.class_weights)
        return {"loss": loss, "ce": loss.detach(), "accuracy": _agreement(student.logits, labels)}


@dataclass(frozen=True)
class Distillation:
    """(1 - alpha) * CE + alpha * knowledge, with the cross-entropy (CE) of the labels at T = 1.

    With `kd` as the knowledge, this is the objective of Hinton, Vinyals, Dean 2015
    (arXiv:1503.02531, section 2).

    The cross-entropy is a mean over the labelled images. If only a share of the images has a label,
    the labels are shares of the classes [B, K], which are zero for an image without a label. They
    are then not used by the knowledge.

    class_weights   weight of each class in CE [K]; None for equal weights
    labelled_share  share of the images of a batch that have a label
    teaches_rest    whether the knowledge is a mean over the images without a label only. A mixed
                    image then counts with the share of it that has none
    ramp            factor of alpha in the weight of the knowledge; the labels have 1 - alpha
    """

    knowledge: Knowledge
    alpha: float
    class_weights: torch.Tensor | None = None
    labelled_share: float = 1.0
    teaches_rest: bool = False
    ramp: float = 1.0

    def __call__(self, student, teacher, labels):
        ce = losses.cross_entropy(student.logits, labels, self.class_weights) / self.labelled_share
        known = labels if self.labelled_share == 1 else None
        shares = (1 - labels.sum(1)) / (1 - self.labelled_share) if self.teaches_rest else None
        terms = self.knowledge.terms(student, teacher, known, shares)
        weight = self.alpha * self.ramp
        return {
            "loss": (1 - self.alpha) * ce + weight * self.knowledge.total(terms),
            "ce": ce.detach(),
            **_detached(terms),
            **self.knowledge.counts(teacher, shares),
            "accuracy": _agreement(student.logits, labels) / self.labelled_share,
        }


@dataclass(frozen=True)
class Matching:
    """The knowledge without labels. A call with labels raises ValueError."""

    knowledge: Knowledge

    def __call__(self, student, teacher, labels):
        if labels is not None:
            raise ValueError("labels were passed to an objective that reads none")
        terms = self.knowledge.terms(student, teacher, None)
        graph = ranks.keep_in_graph(losses.full(student.logits))
        return {
            "loss": self.knowledge.total(terms) + graph,
            **_detached(terms),
            **self.knowledge.counts(teacher),
            "agreement": _agreement(student.logits, teacher.at(1.0).argmax(1)),
        }


def risen(done: int, steps: int) -> float:
    """Return exp(-5 (1 - t)^2) with t = done / steps, which rises from 0.0067 to 1.

    It is 1 from t = 1 on, and everywhere if it does not rise.

    done   number of steps before this one
    steps  number of steps in which it rises

    Source: Laine, Aila 2017, arXiv:1610.02242, section 2; Tarvainen, Valpola 2017,
    arXiv:1703.01780, section 3.
    """
    if done >= steps:
        return 1.0
    return math.exp(-5 * (1 - done / steps) ** 2)


def _product(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    """Return the product of two weights of images [B], of which None stands for 1."""
    if first is None or second is None:
        return second if first is None else first
    return first * second


def _detached(terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: term.detach() for name, term in terms.items()}


def _agreement(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the share of rows of logits [B, K] whose largest value is at `classes`, int64 [B].

    With the share of each class, floating point [B, K], a row counts with the share of its class.
    """
    predicted = logits.detach().argmax(1)
    if classes.is_floating_point():
        return classes.gather(1, predicted[:, None]).mean()
    return (predicted == classes).float().mean()


def gradient_ratio(
    student: torch.Tensor, teacher: TeacherOutputs, labels: torch.Tensor, objective: Distillation
) -> float:
    """Return the norm of the knowledge's gradient, divided by that of the label term's gradient.

    Both terms have their weights in the objective. The gradients are with respect to the student's
    logits [B, K]. The ratio is inf if the label term has no gradient, as with alpha = 1.
    """
    logits = student.detach().float().requires_grad_()
    knowledge = objective.knowledge
    distilled = knowledge.total(knowledge.terms(Outputs(logits), teacher, labels))
    of_knowledge = objective.alpha * torch.autograd.grad(distilled, logits)[0].norm().item()
    logits = student.detach().float().requires_grad_()
    supervised = losses.cross_entropy(logits, labels, objective.class_weights)
    of_labels = (1 - objective.alpha) * torch.autograd.grad(supervised, logits)[0].norm().item()
    return of_knowledge / of_labels if of_labels > 0 else float("inf")
