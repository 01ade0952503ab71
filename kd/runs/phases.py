"""The phases of a run, built from those of its plan: images, loss, teacher and steps of each."""

import numpy as np
import torch
from torch import nn

from kd import models
from kd.config.plan import PhasePlan, Plan
from kd.data.views import Batch
from kd.loop import Phase
from kd.models import Classifier
from kd.runs.data import RunData
from kd.system import ranks
from kd.system.devices import Precision
from kd.system.errors import Problem
from kd.teachers.ensemble import Ensemble
from kd.teachers.outputs import by_peers, by_teacher, no_teacher
from kd.training import objectives, regressors
from kd.training.objectives import Distillation, Knowledge, Matching, Objective, Supervised


class PhaseBuilder:
    """Builds the phases of a run when its teachers exist. Call `look_inside`, then `build`.

    layers      layers whose features are used, of the student and then of each teacher; empty if no
                loss uses features
    regressors  modules that are trained together with the student, or None
    remarks     notes for the user, each a sentence
    """

    def __init__(self, plan: Plan, data: RunData, ensemble: Ensemble | None):
        self.plan, self.data, self.ensemble = plan, data, ensemble
        self.layers: list[tuple[str, ...]] = []
        self.regressors: nn.ModuleDict | None = None
        self.remarks: list[str] = []

    def look_inside(self, student: Classifier, first: Batch, precision: Precision) -> None:
        """Try the layers of the plan's feature losses on the first batch; sets `layers`.

        Does nothing if no loss uses features. Raises Problem if a layer does not exist or its
        features do not fit the loss.

        precision  of the student's training
        """
        if not self.plan.inside:
            return
        self.layers = self.ensemble.layers(student, self.plan.settings.transfer.layers)
        own = models.try_batch(student, first.images, precision, self.layers[0]).features
        views = self.data.views(self.plan.phases[0])
        teacher = self.ensemble.on(views, self.data.precision, self.layers[1:])
        others = teacher(first).features
        self._check_maps(own, others)
        self._check_points(own, others)
        if any(kind.regressor for kind in self.plan.kinds.values()):
            self.regressors = self._regressors(own, others)

    def build(self) -> list[Phase]:
        """Return the phases with their steps, in order."""
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
        """Return (norm of the knowledge's gradient over that of the label term, None).

        If the ratio is not defined, returns (None, the reason).

        logits  [B, K], of the student for the first batch, before any step
        phase   the first phase
        """
        if not isinstance(phase.objective, Distillation):
            return None, "the first phase does not weigh knowledge against labels"
        if self.plan.follower is not None:
            return None, "the teacher begins as its student and changes with it"
        if ranks.world_size() > 1:
            return None, "not computed on several ranks, because each has only a share of the batch"
        if phase.layers:
            return None, "knowledge in feature maps has no gradient with respect to the logits"
        ratio = objectives.gradient_ratio(
            logits, phase.teacher(first), first.labels, phase.objective
        )
        return (
            (ratio, None)
            if np.isfinite(ratio)
            else (None, "the gradient of the label term is zero")
        )

    def _phase(self, phase: PhasePlan, start: int, end: int) -> Phase:
        views, looks = self.data.views(phase), bool(phase.knowledge.inside)
        teacher = no_teacher
        if phase.knowledge.weights and not self.plan.peers:
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
            keeps_start=phase.keeps_start,
            select=self.plan.select,
            ramp_up=phase.ramp_up,
            targets=by_peers if self.plan.peers and phase.knowledge.weights else by_teacher,
        )

    def _objective(self, phase: PhasePlan) -> Objective:
        """Return the objective of a phase: labels, knowledge, or both."""
        if not phase.knowledge.weights:
            return Supervised(self.data.class_weights)
        given = phase.knowledge
        knowledge = Knowledge(
            given.weights,
            given.temperatures,
            given.options,
            self.regressors,
            self.data.class_weights if self.plan.weighs_knowledge else None,
        )
        if not phase.reads_labels:
            return Matching(knowledge)
        share = self.data.half_labelled.labelled_share if phase.half_labelled else 1.0
        return Distillation(
            knowledge,
            self.plan.alpha,
            self.data.class_weights,
            labelled_share=share,
            teaches_rest=phase.teaches_rest,
        )

    def _check_maps(self, own: tuple, others: tuple) -> None:
        """Raise Problem if a kind needs maps and the features of a layer are not maps."""
        needing = [name for name in self.plan.inside if self.plan.kinds[name].maps]
        if not needing:
            return
        for names, features in zip(self.layers, (own, *others)):
            odd = [name for name, one in zip(names, features) if one.ndim != 4]
            if odd:
                raise Problem(
                    f"Layer '{odd[0]}' in --layers does not return a feature map [B, C, H, W],"
                    f" which --knowledge {needing[0]} needs. Choose another layer, or use"
                    " --knowledge similarity."
                )

    def _check_points(self, own: tuple, others: tuple) -> None:
        """Check that the maps have several points if a kind compares their positions.

        Adds a remark if some maps have only one point. Raises Problem if all do.
        """
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
                f"Layer '{points[0]}' in --layers has a map of a single point at this image size,"
                f" like all other layers: --knowledge {comparing[0]} has no positions to compare."
                " Use a larger --image-size or other --layers."
            )
        self.remarks = [
            f"{comparing[0]}: no positions to compare in {', '.join(points)}, where the map is a"
            " single point at this --image-size."
        ]

    def _regressors(self, own: tuple, others: tuple) -> nn.ModuleDict:
        """Return the regressors of the plan's kinds, with a part for each teacher and layer."""
        pairs, options = [], {}
        for features in others:
            pairs += [(mine.shape[1], theirs.shape[1]) for mine, theirs in zip(own, features)]
        for phase in self.plan.phases:
            options |= phase.knowledge.options
        found = regressors.build(self.plan.kinds, pairs, self.plan.settings.training.seed, options)
        return found.to(self.data.device)


def phase_ends(steps: int, phases: int, first_share: float) -> list[int]:
    """Return the step at which each phase ends.

    The first of several phases takes `first_share` of all steps, and the others share the rest
    equally. Each phase has at least one step.
    """
    others = phases - 1
    if not others:
        return [steps]
    first = min(max(1, round(steps * first_share)), steps - others)
    return [first + (steps - first) * number // others for number in range(others + 1)]


def cautions(plan: Plan, classes: int) -> list[str]:
    """Return notes for the user about the plan's knowledge, each a sentence.

    They depend on the number of classes and on the number of images per step.
    """
    found = []
    for name, kind in plan.kinds.items():
        if plan.weighs_knowledge and not kind.per_image:
            found.append(
                f"{name}: it compares the images of a step with each other, so --balance-knowledge"
                " does not weigh it."
            )
        if kind.cautions is not None:
            batch_size = plan.settings.training.batch_size
            found += kind.cautions(classes, batch_size, plan.temperatures)
    can_store = plan.settings.distillation.stored_logits and plan.follower is None
    if plan.inside and can_store:
        found.append(
            f"{', '.join(plan.inside)}: the teacher runs in every step, because only its logits can"
            " be stored."
        )
    return found
