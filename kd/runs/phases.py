"""From the phases of a plan to those of the loop: images, loss, teachers and steps of each."""

import numpy as np
import torch
from torch import nn

from kd import losses, models
from kd.config.plan import PhasePlan, Plan
from kd.data.views import Batch
from kd.loop import Phase
from kd.models import Classifier
from kd.runs.data import RunData
from kd.system import ranks
from kd.system.errors import Problem
from kd.teachers.ensemble import Ensemble
from kd.teachers.outputs import no_teacher
from kd.training import objectives
from kd.training.objectives import Distillation, Knowledge, Matching, Objective, Supervised


class PhaseBuilder:
    """Builds the phases of a run once its teachers are there: first `look_inside`, then `build`.

    layers      to look at, of the student and of each teacher; empty where no loss looks inside
    projectors  to be trained beside the student, or None
    remarks     for the user, found on the way
    """

    def __init__(self, plan: Plan, data: RunData, ensemble: Ensemble | None):
        self.plan, self.data, self.ensemble = plan, data, ensemble
        self.layers: list[tuple[str, ...]] = []
        self.projectors: losses.Projectors | None = None
        self.remarks: list[str] = []

    def look_inside(self, student: Classifier, first: Batch) -> None:
        """Try the layers of a plan's feature losses on the first batch.

        Raises Problem for layers that are not there and for maps that do not fit.
        """
        if not self.plan.inside:
            return
        self.layers = self.ensemble.layers(student, self.plan.settings.transfer.layers)
        own = models.try_batch(student, first.images, self.data.precision, self.layers[0]).features
        teacher = self.ensemble.on(self.data.train, self.data.precision, self.layers[1:])
        others = teacher(first).features
        self._check_maps(own, others)
        self._check_points(own, others)
        if any(kind.projects for kind in self.plan.kinds.values()):
            self.projectors = self._projectors(own, others)

    def build(self) -> list[Phase]:
        """The phases with their steps."""
        found, start = [], 0
        share = 1.0
        if len(self.plan.phases) > 1:
            share = self.plan.settings.unlabeled.match_share
        ends = phase_ends(self.data.steps, len(self.plan.phases), share)
        for phase, end in zip(self.plan.phases, ends, strict=True):
            found.append(self._phase(phase, start, end))
            start = end
        return found

    def gradient_ratio(
        self, logits: torch.Tensor, phase: Phase, first: Batch
    ) -> tuple[float | None, str | None]:
        """(The knowledge's gradient over the label term's on the first batch, why there is none).

        logits [B, K]: the student's for that batch, before any step.
        """
        if not isinstance(phase.objective, Distillation):
            return None, "the first phase does not weigh knowledge against labels"
        if ranks.world_size() > 1:
            return None, "not taken on several ranks, each of which has a part of the batch"
        if phase.layers:
            return None, "knowledge inside a network has no gradient by its logits"
        ratio = objectives.gradient_ratio(
            logits, phase.teacher(first), first.labels, phase.objective
        )
        return (ratio, None) if np.isfinite(ratio) else (None, "the label term has no gradient")

    def _phase(self, phase: PhasePlan, start: int, end: int) -> Phase:
        views, looks = self.data.views(phase), bool(phase.knowledge.inside)
        teacher = no_teacher
        if phase.knowledge.weights:
            layers = self.layers[1:] if looks else []
            teacher = self.ensemble.on(views, self.data.precision, layers)
        return Phase(
            name=phase.name,
            views=views,
            teacher=teacher,
            objective=self._objective(phase),
            start=start,
            end=end,
            lr=phase.lr,
            layers=self.layers[0] if looks else (),
        )

    def _objective(self, phase: PhasePlan) -> Objective:
        """Labels, knowledge, or both."""
        if not phase.knowledge.weights:
            return Supervised(self.data.class_weights)
        given = phase.knowledge
        knowledge = Knowledge(given.weights, given.temperatures, given.options, self.projectors)
        if not phase.reads_labels:
            return Matching(knowledge)
        return Distillation(knowledge, self.plan.alpha, self.data.class_weights)

    def _check_maps(self, own: tuple, others: tuple) -> None:
        """Raise Problem for a layer that gives no map, where a kind needs maps."""
        needing = [name for name in self.plan.inside if self.plan.kinds[name].maps]
        if not needing:
            return
        for names, features in zip(self.layers, (own, *others)):
            odd = [name for name, one in zip(names, features) if one.ndim != 4]
            if odd:
                raise Problem(
                    f"layer '{odd[0]}' in --layers: gives no map [B, C, H, W], which"
                    f" '{needing[0]}' needs; name another with --layers, or give --knowledge"
                    " similarity"
                )

    def _check_points(self, own: tuple, others: tuple) -> None:
        """Note, or raise Problem, where a map of one point gives a kind nothing to compare."""
        comparing = [name for name in self.plan.inside if self.plan.kinds[name].positions]
        if not comparing:
            return
        points = []
        for name, *maps in zip(self.layers[0], own, *others):
            if min(one[0, 0].numel() for one in maps) == 1:
                points.append(name)
        if not points:
            return
        if len(points) == len(own):
            raise Problem(
                f"layer '{points[0]}' in --layers: is one point at this size, as all others are:"
                f" '{comparing[0]}' has nothing to compare; give a larger --image-size or other"
                " --layers"
            )
        self.remarks = [
            f"{comparing[0]}: nothing to compare in {', '.join(points)}, which at this --image-size"
            " is one point"
        ]

    def _projectors(self, own: tuple, others: tuple) -> nn.Module:
        """A projector for every teacher and layer, from the student's channels to the teacher's."""
        pairs = []
        for features in others:
            pairs += [(mine.shape[1], theirs.shape[1]) for mine, theirs in zip(own, features)]
        return losses.Projectors(pairs, self.plan.settings.training.seed).to(self.data.device)


def phase_ends(steps: int, phases: int, first_share: float) -> list[int]:
    """The step at which each phase ends.

    The first of several takes a share of all steps, the others share the rest equally; each has at
    least one.
    """
    others = phases - 1
    if not others:
        return [steps]
    first = min(max(1, round(steps * first_share)), steps - others)
    return [first + (steps - first) * number // others for number in range(others + 1)]


def cautions(plan: Plan, classes: int) -> list[str]:
    """What a user should know of this knowledge with so many classes and images a step."""
    found = []
    for kind in plan.kinds.values():
        if kind.cautions is not None:
            batch_size = plan.settings.training.batch_size
            found += kind.cautions(classes, batch_size, plan.temperatures)
    if plan.inside and plan.settings.distillation.stored_logits:
        found.append(
            f"{', '.join(plan.inside)}: the teacher runs in every step; only its logits can be"
            " stored"
        )
    return found
