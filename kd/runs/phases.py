"""What a run teaches: its phases as its mode has them, each with its images, its loss and its
teachers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from kd import losses, models
from kd.config.plan import (
    all_kinds,
    cautions,
    inside_of,
    kinds_of,
    loss_of,
    stages_of,
    temperatures_of,
)
from kd.config.settings import DistillSettings
from kd.data.dataset import Dataset
from kd.data.pool import Pool
from kd.data.views import Batch, Views
from kd.loop import Phase
from kd.methods import KNOWLEDGE, Stage
from kd.models import Classifier
from kd.system import ranks
from kd.system.console import log
from kd.system.devices import Precision
from kd.system.errors import Problem
from kd.teachers import functions
from kd.teachers.ensemble import Member, Panel
from kd.teachers.model_file import Trained
from kd.teachers.stored_logits import StoredLogits
from kd.training import objectives
from kd.training.objectives import Knowledge, Objective

# () -> (the networks that teach, remarks for the user)
FindTeachers = Callable[[], tuple[list[Member], list[str]]]


@dataclass(frozen=True)
class Lesson:
    """A run's phases, what its report says of the teachers, what gives their logits, what is
    trained beside, who they are.
    """

    phases: list[Phase]
    account: dict | None = None
    judge: Callable[[Views], np.ndarray] | None = None
    helper: nn.Module | None = None
    taught_by: list[Trained] = field(default_factory=list)


class Tutor:
    """Lays out the phases of a run."""

    def __init__(
        self,
        settings,
        dataset: Dataset,
        pool: Pool | None,
        device: torch.device,
        precision: Precision,
        stores: dict[str, StoredLogits],
        leave: Callable[[], None],
    ):
        self.settings, self.training, self.stages = settings, settings.training, stages_of(settings)
        self.dataset, self.device, self.precision, self.stores, self.leave = (
            dataset,
            device,
            precision,
            stores,
            leave,
        )
        how = {
            "batch_size": self.training.batch_size,
            "seed": self.training.seed,
            "shuffle": True,
            "augment": self.training.augment,
        }
        self.views = {"train": dataset.views("train", device, shown=dataset.parts.shown, **how)}
        self.views["silent"] = Views(
            dataset.store,
            dataset.parts.train,
            None,
            device=device,
            shown=dataset.parts.shown,
            **how,
        )
        if pool is not None:
            self.views["pool"] = pool.views(device, **how)
        self.remarks: list[str] = []
        self.judged = dataset.views("valid", device), dataset.views("test", device)
        steps = self.training.epochs * self.views["train"].steps
        self.steps = min(steps, self.training.max_steps or steps)
        if self.steps < len(self.stages):
            raise Problem(
                f"steps of mode {settings.distillation.mode}: {self.steps} in all for"
                f" {len(self.stages)} phases; give more --epochs or --max-steps, or a smaller"
                " --batch-size"
            )
        weighted = settings.data.balance == "weights"
        labels, classes = self.views["train"].labels, len(dataset.index.classes)
        self.class_weights = losses.class_weights(labels, classes).to(device) if weighted else None

    def first_batch(self) -> Batch:
        """What the student sees first."""
        return next(self.views_of(self.stages[0]).epoch(0))

    def views_of(self, stage: Stage) -> Views:
        """What a stage shows; where it only matches its teachers, without labels."""
        return self.views[
            (
                "silent"
                if stage.images == "train" and loss_of(self.settings, stage) == "match"
                else stage.images
            )
        ]

    def lesson(
        self,
        find_teachers: FindTeachers,
        student: Classifier,
        first: Batch,
        logits: torch.Tensor,
        account: dict | None,
    ) -> Lesson:
        """The phases with nobody as a teacher, or with those that the settings name.

        `account`: what an earlier try said.

        logits [B, K] are the student's for the first batch, before any step.
        """
        if not isinstance(self.settings, DistillSettings):
            return Lesson(self.phases(None, [()], None))
        members, remarks = find_teachers()
        self.leave()
        panel = Panel(self.settings, members, self.dataset, self.device, self.stores, self.leave)
        panel.try_batch(first.images)
        layers, helper = [()], None
        if inside_of(all_kinds(self.settings)):
            layers = panel.layers(student, self.settings.transfer.layers)
            helper = self.look_inside(panel, student, first, layers)
        phases = self.phases(panel, layers, helper)
        if account is None:
            remarks = [*remarks, *cautions(self.settings, panel.classes), *self.remarks]
            account = panel.introduce(self.judged, self.ratio(logits, phases[0], first), remarks)
        panel.check_same(account)
        return Lesson(
            phases,
            account,
            panel.judge if members else None,
            helper,
            [member.trained for member in members],
        )

    def look_inside(
        self, panel: Panel, student: Classifier, first: Batch, layers: list[tuple[str, ...]]
    ) -> nn.Module | None:
        """Try the layers on the first batch; the projectors that `hint` needs, or None.

        Raises Problem for unfit maps.
        """
        own = models.try_batch(student, first.images, self.precision, layers[0]).features
        others = panel.ask(self.views["train"], self.precision, layers[1:])(first).features
        flat = [kind for kind in inside_of(all_kinds(self.settings)) if KNOWLEDGE[kind].maps]
        for name, features in zip(layers, (own, *others)):
            odd = [layer for layer, one in zip(name, features) if one.ndim != 4]
            if odd and flat:
                raise Problem(
                    f"layer '{odd[0]}' in --layers: gives no map [B, C, H, W], which '{flat[0]}'"
                    " needs; name another with --layers, or give --knowledge similarity"
                )
        points = [
            name
            for name, *maps in zip(layers[0], own, *others)
            if min(one[0, 0].numel() for one in maps) == 1
        ]
        if "attention" in all_kinds(self.settings) and points:
            if len(points) == len(own):
                raise Problem(
                    f"layer '{points[0]}' in --layers: is one point at this size, as all others"
                    " are: 'attention' has nothing to compare; give a larger --image-size or other"
                    " --layers"
                )
            self.remarks = [
                f"attention: nothing to compare in {', '.join(points)}, which at this --image-size"
                " is one point"
            ]
        if "hint" not in all_kinds(self.settings):
            return None
        pairs = [
            (mine.shape[1], theirs.shape[1])
            for features in others
            for mine, theirs in zip(own, features)
        ]
        return losses.Projectors(pairs, self.training.seed).to(self.device)

    def phases(
        self, panel: Panel | None, layers: list[tuple[str, ...]], helper: nn.Module | None
    ) -> list[Phase]:
        """The stages with their steps: --epochs of the train part in all, whatever is shown.

        layers: of the student, then of each teacher.
        """
        found, start = [], 0
        for stage, end in zip(self.stages, self.ends(), strict=True):
            looks = bool(panel and inside_of(kinds_of(self.settings, stage)))
            views = self.views_of(stage)
            teacher = functions.nobody
            if panel is not None and kinds_of(self.settings, stage):
                teacher = panel.ask(views, self.precision, layers[1:] if looks else [])
            found.append(
                Phase(
                    stage.name,
                    views,
                    teacher,
                    self.objective(stage, helper),
                    start,
                    end,
                    self.lr_of(stage),
                    layers[0] if looks else (),
                )
            )
            start = end
        return found

    def ends(self) -> list[int]:
        """The step at which each stage ends: the first of several takes --match-share of all, the
        others the rest alike.
        """
        others = len(self.stages) - 1
        if not others:
            return [self.steps]
        first = min(
            max(1, round(self.steps * self.settings.unlabeled.match_share)), self.steps - others
        )
        return [first + (self.steps - first) * number // others for number in range(others + 1)]

    def lr_of(self, stage: Stage) -> float:
        own = self.settings.unlabeled.finetune_lr if stage.loss == "finetune" else None
        return self.training.lr if own is None else own

    def objective(self, stage: Stage, helper: nn.Module | None) -> Objective:
        """The loss of a stage."""
        loss = loss_of(self.settings, stage)
        if loss == "labels":
            return objectives.supervised(self.class_weights)
        if loss == "match":
            return objectives.matching(self.knowledge(stage, helper))
        return objectives.distillation(
            self.knowledge(stage, helper), self.settings.distillation.alpha, self.class_weights
        )

    def knowledge(self, stage: Stage, helper: nn.Module | None = None) -> Knowledge:
        """What a stage passes on, and how much each kind counts."""
        kinds, given = kinds_of(self.settings, stage), self.settings.transfer
        weights = given.knowledge_weights if not stage.knowledge else []
        if loss_of(self.settings, stage) == "match" and len(kinds) == 1 and not weights:
            weights = [1.0]  # nothing stands beside it
        return Knowledge(
            dict(zip(kinds, weights or [KNOWLEDGE[kind].weight for kind in kinds])),
            tuple(temperatures_of(self.settings)),
            given.dkd_beta,
            helper,
        )

    def ratio(
        self, logits: torch.Tensor, phase: Phase, first: Batch
    ) -> tuple[float | None, str | None]:
        """(the knowledge's gradient over the label term's on the first batch, why there is none)."""
        if first.labels is None or not kinds_of(self.settings, self.stages[0]):
            return None, "the first phase does not weigh knowledge against labels"
        if ranks.world_size() > 1:
            return None, "not taken on several ranks, each of which has a part of the batch"
        if phase.layers:
            return None, "knowledge inside a network has no gradient by its logits"
        ratio = objectives.gradient_ratio(
            logits,
            phase.teacher(first),
            first.labels,
            self.knowledge(self.stages[0]),
            self.settings.distillation.alpha,
            self.class_weights,
        )
        return (ratio, None) if np.isfinite(ratio) else (None, "the label term has no gradient")

    def flush_stores(self) -> None:
        """Write what is left to be stored, and say what storing was worth."""
        asked = computed = 0
        for store in self.stores.values():
            store.flush()
            asked, computed = asked + store.asked, computed + store.computed
            store.asked = store.computed = 0
        if asked:
            whose = " by the first rank" if ranks.world_size() > 1 else ""
            log(
                f"teacher's logits: {asked} asked for{whose}, {computed} computed, the others were"
                " stored"
            )
