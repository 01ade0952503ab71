"""Who teaches what: the phases of a run as its mode has them, and the teacher at its work."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from kd import config, losses, metrics, teachers, trained
from kd.data.dataset import Dataset
from kd.data.pool import Pool
from kd.data.views import Batch, Views
from kd.errors import BAD_CHECKPOINT, DIVERGED, Problem
from kd.loop import Phase
from kd.losses import Objective
from kd.runtime import Precision, say
from kd.settings import DistillSettings
from kd.stored import StoredLogits, key_of
from kd.strategies import ALONE, STRATEGIES, Stage
from kd.teachers import TeacherFunction

# () -> (the teacher, where it comes from, remarks for the user)
FindTeacher = Callable[[], tuple[trained.Trained, str, list[str]]]


@dataclass(frozen=True)
class Lesson:
    """A run's phases, what its report says of the teacher, and what gives the teacher's logits of some views."""

    phases: list[Phase]
    account: dict | None = None
    judge: Callable[[Views], np.ndarray] | None = None


def stages_of(settings) -> tuple[Stage, ...]:
    """The phases of a run, as its mode has them."""
    return STRATEGIES[settings.distillation.mode].stages if isinstance(settings, DistillSettings) else ALONE


def shows_pool(settings) -> bool:
    """Whether a run sees pictures without labels."""
    return any(stage.images == "pool" for stage in stages_of(settings))


def unused(settings) -> frozenset[str]:
    """The settings that a run does not look at, whatever their values: of another mode, or of what it has not."""
    given, losses_of = config.flat(settings), {stage.loss for stage in stages_of(settings)}
    tunes, matches = "finetune" in losses_of, "match" in losses_of
    distils = "kd" in losses_of or (tunes and given["finetune"] == "kd")
    others = matches and given["unlabeled_dir"] is not None
    looked_at = {"temperature": distils, "alpha": distils, "finetune": tunes, "finetune_lr": tunes, "match": matches,
                 "match_share": matches and tunes, "match_temperatures": matches and given["match"] == "kd",
                 "unlabeled_dir": matches, "unlabeled_dataset": others, "strict": others,
                 "look_every": given.get("stop_at_val_accuracy") is not None,
                 "labeled_seed": given["labeled_fraction"] < 1 or given["balance"] == "draw"}
    return frozenset(key for key, looked in looked_at.items() if key in given and not looked)


def idle(settings) -> list[str]:
    """The flags among `unused` that were given another value than their default."""
    given, default = config.flat(settings), config.flat(type(settings)())
    return ["--" + key.replace("_", "-") for key in sorted(unused(settings)) if given[key] != default[key]]


class Tutor:
    """Lays out the phases of a run; asks, judges and introduces its teacher."""

    def __init__(self, settings, dataset: Dataset, pool: Pool | None, device: torch.device, precision: Precision,
                 stores: dict[str, StoredLogits], leave: Callable[[], None]):
        self.settings, self.training, self.stages = settings, settings.training, stages_of(settings)
        self.device, self.precision, self.stores, self.leave = device, precision, stores, leave
        how = {"batch_size": self.training.batch_size, "seed": self.training.seed, "shuffle": True,
               "augment": self.training.augment}
        self.views = {"train": dataset.views("train", device, shown=dataset.parts.shown, **how)}
        if pool is not None:
            self.views["pool"] = pool.views(device, **how)
        self.judged = dataset.views("valid", device), dataset.views("test", device)
        steps = self.training.epochs * self.views["train"].steps
        self.steps = min(steps, self.training.max_steps or steps)
        if self.steps < len(self.stages):
            raise Problem(f"steps of mode {settings.distillation.mode}: {self.steps} in all for {len(self.stages)} phases; give "
                          "more --epochs or --max-steps, or a smaller --batch-size")
        weighted = settings.data.balance == "weights"
        labels, classes = self.views["train"].labels, len(dataset.index.classes)
        self.weights = losses.class_weights(labels, classes).to(device) if weighted else None

    def first_batch(self) -> Batch:
        """What the student sees first."""
        return next(self.views[self.stages[0].images].epoch(0))

    def lesson(self, find_teacher: FindTeacher, first: Batch, logits: torch.Tensor, account: dict | None) -> Lesson:
        """The phases with nobody as a teacher, or with the one that the settings name. `account`: what an earlier try said of it.

        logits [B, K] are the student's for the first batch, before any step.
        """
        if not isinstance(self.settings, DistillSettings):
            return Lesson(self.phases(lambda views: teachers.nobody))
        chosen, source, remarks = find_teacher()
        self.leave()
        chosen.network.to(self.device)
        phases = self.phases(lambda views: self.ask(chosen, views, self.precision))

        def judge(views):
            return teachers.answers(self.ask(chosen, views, Precision(self.device.type, "off")), views, self.leave)

        if account is None:
            account = self.introduce(chosen, judge, self.ratio(logits, phases[0], first), source, remarks)
        elif account["hash"] != chosen.hash:
            raise Problem(f"teacher {source}: its weights are {chosen.hash}, the run began with {account['hash']}; restore that "
                          "teacher, or give --tag NAME to begin anew", BAD_CHECKPOINT)
        return Lesson(phases, account, judge)

    def phases(self, teacher_of: Callable[[Views], TeacherFunction]) -> list[Phase]:
        """The stages with their steps: --epochs of the train part in all, whatever is shown, and --match-share of them first."""
        ends = [self.steps]
        if len(self.stages) > 1:
            ends.insert(0, min(max(1, round(self.steps * self.settings.unlabeled.match_share)), self.steps - 1))
        found, start = [], 0
        for stage, end in zip(self.stages, ends):
            views = self.views[stage.images]
            teacher = teachers.nobody if self.loss_of(stage) == "labels" else teacher_of(views)
            found.append(Phase(stage.name, views, teacher, self.objective(stage), start, end, self.lr_of(stage)))
            start = end
        return found

    def loss_of(self, stage: Stage) -> str:
        """Which loss a stage learns by: `labels`, `kd` or `match`."""
        return {"ce": "labels", "kd": "kd"}[self.settings.unlabeled.finetune] if stage.loss == "finetune" else stage.loss

    def lr_of(self, stage: Stage) -> float:
        own = self.settings.unlabeled.finetune_lr if stage.loss == "finetune" else None
        return self.training.lr if own is None else own

    def objective(self, stage: Stage) -> Objective:
        """The loss of a stage."""
        loss = self.loss_of(stage)
        if loss == "labels":
            return losses.supervised(self.weights)
        if loss == "match":
            return losses.matching(self.settings.unlabeled.match, self.settings.unlabeled.match_temperatures)
        how = self.settings.distillation
        return losses.distillation(how.temperature, how.alpha, self.weights)

    def ratio(self, logits: torch.Tensor, phase: Phase, first: Batch) -> tuple[float | None, str | None]:
        """(the KD term's gradient over the label term's on the first batch, why there is none)."""
        how = self.settings.distillation
        if first.labels is None:
            return None, "the first phase reads no labels"
        ratio = losses.gradient_ratio(logits, phase.teacher(first), first.labels, how.temperature, how.alpha, self.weights)
        return (ratio, None) if np.isfinite(ratio) else (None, "the label term has no gradient")

    def ask(self, chosen: trained.Trained, views: Views, precision: Precision) -> TeacherFunction:
        """The teacher for some views: its stored logits, which fill themselves, or with --no-stored-logits the network."""
        if not self.settings.distillation.stored_logits:
            return teachers.live(chosen.network, precision)
        key = key_of(chosen.network, chosen.hash, views, precision)
        if key not in self.stores:
            self.stores[key] = StoredLogits(self.settings.data.cache_dir, chosen.network, key, views, precision)
        return self.stores[key]

    def flush_stores(self) -> None:
        """Write what is left to be stored, and say what storing was worth."""
        asked = computed = 0
        for store in self.stores.values():
            store.flush()
            asked, computed = asked + store.asked, computed + store.computed
            store.asked = store.computed = 0
        if asked:
            say(f"teacher's logits: {asked} asked for, {computed} computed, the others were stored")

    def introduce(self, chosen: trained.Trained, judge: Callable[[Views], np.ndarray], ratio: tuple[float | None, str | None],
                  source: str, remarks: list[str]) -> dict:
        """Print, and return for the report, how good the teacher is and how its term weighs against the label's."""
        how = self.settings.distillation
        name = f"{how.teacher} ({source})"
        valid, test = (self.teacher_accuracy(judge(views), views, name) for views in self.judged)
        say(f"teacher {name}: validation accuracy {valid:.4f}")
        if ratio[0] is not None:
            say(f"gradient of the KD term over that of the label term, first batch: {ratio[0]:.3g} "
                f"(alpha {how.alpha:g}, T {how.temperature:g})")
        for remark in remarks:
            say(f"note: {remark}")
        return {"name": how.teacher, "architecture": chosen.network.architecture, "source": source, "hash": chosen.hash,
                "split": chosen.about and chosen.about["data"]["split_hash"], "valid_accuracy": valid, "test_accuracy": test,
                "gradient_ratio": ratio[0], "gradient_reason": ratio[1], "differences": remarks}

    def teacher_accuracy(self, logits: np.ndarray, views: Views, name: str) -> float:
        """Accuracy on some views. Raises Problem (3) for a teacher whose logits are not finite: its weights are damaged."""
        bad = int((~np.isfinite(logits)).any(1).sum())
        if bad:
            raise Problem(f"teacher {name}: its logits are not finite for {bad} of {len(logits)} images; "
                          f"stopped before step 0 (learning rate {self.training.lr:g}); give a teacher whose weights are finite",
                          DIVERGED)
        return metrics.accuracy(logits, views.labels.numpy())
