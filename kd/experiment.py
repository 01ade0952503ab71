"""A run in its locked folder: build, learn from a teacher or from labels alone, save on the way, conclude."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from kd import losses, metrics, models, teachers, trained
from kd.data.dataset import Dataset
from kd.data.views import Batch, Views
from kd.errors import BAD_CHECKPOINT, CANNOT_WRITE, DIVERGED, Problem, Stopped
from kd.folder import RunFolder, student_of
from kd.loop import fit, stop_at_accuracy
from kd.losses import Objective
from kd.results import outcome
from kd.results.events import Events
from kd.runtime import Precision, StopSignals, pick_device, pick_precision, say, seed_step, watched
from kd.settings import DistillSettings
from kd.state import State
from kd.stored import StoredLogits, key_of
from kd.teachers import TeacherFunction

# () -> (the teacher, where it comes from, remarks for the user)
FindTeacher = Callable[[], tuple[trained.Trained, str, list[str]]]
LOOK_IMAGES = 320
NOT_SO_DEFECTIVE = 0.7


@dataclass(frozen=True)
class Lesson:
    """Who teaches and how: what differs between training on labels and distilling."""

    teacher: TeacherFunction
    objective: Objective
    account: dict | None = None  # the report's `teacher`
    judge: Callable[[Views], np.ndarray] | None = None  # views -> the teacher's logits


class Experiment:
    """A run in its locked folder."""

    def __init__(self, settings, folder: RunFolder, dataset: Dataset, signals: StopSignals, find_teacher: FindTeacher,
                 stores: dict[str, StoredLogits]):
        self.settings, self.folder, self.dataset, self.signals = settings, folder, dataset, signals
        self.find_teacher, self.stores = find_teacher, stores
        self.training, self.distils = settings.training, isinstance(settings, DistillSettings)
        self.device = pick_device(self.training.device)
        self.precision = pick_precision(self.training.amp, self.device)
        self.name = student_of(settings)
        self.train = dataset.views("train", self.device, batch_size=self.training.batch_size, seed=self.training.seed,
                                   shuffle=True, augment=self.training.augment)
        self.valid, self.test = dataset.views("valid", self.device), dataset.views("test", self.device)

    def run(self) -> dict:
        """From the first step, or the one after the last save, to the report."""
        try:
            return self._run()
        finally:
            self.flush_stores()
            if self.training.compile:
                torch.compiler.reset()  # of eight graphs that all networks of a family share, the next run needs its own

    def _run(self) -> dict:
        network, fresh = self.settings.network, not self.folder.begun
        self.signals.leave()
        student = models.build(self.name, self.dataset.index.classes, pretrained=network.pretrained and fresh,
                               weights=network.weights if fresh else None, drop_rate=network.drop_rate,
                               seed=self.training.seed).to(self.device)
        self.folder.check_space(models.parameters(student.module))
        first = next(self.train.epoch(0))
        seed_step(self.device, self.training.seed, 0, 0)
        logits = models.try_batch(student, first.images, self.precision)
        saved = self.folder.load(split_hash=self.dataset.split_hash, content_hash=self.dataset.content_hash,
                                 precision=self.precision.words)
        lesson = self.lesson(first, logits, saved and saved["teacher"])
        self.clock = outcome.Clock()
        state = State(student, self.training, self.precision)
        if saved is not None:
            state.load_state_dict(saved["state"])
            self.clock.restore(saved["clock"])
            say(f"going on from step {state.progress.total} (epoch {state.progress.epoch + 1})")
        del saved  # for VGG11 two gigabytes
        say(f"training {self.name} ({models.parameters(student.module):,} parameters) on {self.device.type}, "
            f"{self.precision.words}, {len(self.train)} images, {self.train.steps} steps an epoch")
        if self.training.compile:
            student.compile()
        self.events = Events(self.folder.path, state)
        try:
            if not state.progress.total:
                self.events.views(first.images)
            self.fit(state, lesson)
            self.judge_defective(state)
            report = outcome.conclude(self.settings, self.folder, self.dataset, state, self.valid, self.test,
                                      lesson.account, lesson.judge, self.clock.account(self.device, self.precision, state),
                                      self.events, self.signals.leave)
        except Stopped:
            self.save(state, lesson)
            raise self.signals.stopped(f" at step {state.progress.total}, saved in '{self.folder.path}'") from None
        except Problem as problem:
            if problem.code == CANNOT_WRITE:  # what does not fit now may be a result that is larger than this
                with contextlib.suppress(Problem):
                    self.save(state, lesson)
            raise
        finally:
            self.events.close()
        self.folder.forget()
        return report

    def lesson(self, first: Batch, logits: torch.Tensor, account: dict | None) -> Lesson:
        """No teacher, or the one that the settings name, ready to teach. `account` is what an earlier try said of it.

        logits [B, K] are the student's for the first batch, before any step.
        """
        if not self.distils:
            return Lesson(teachers.nobody, losses.supervised())
        how = self.settings.distillation
        chosen, source, remarks = self.find_teacher()
        self.signals.leave()
        chosen.network.to(self.device)
        teacher = self.ask(chosen, self.train, self.precision)

        def judge(views):
            return teachers.answers(self.ask(chosen, views, Precision(self.device.type, "off")), views, self.signals.leave)

        if account is None:
            ratio = losses.gradient_ratio(logits, teacher(first), first.labels, how.temperature, how.alpha)
            account = self.introduce(chosen, judge, ratio, source, remarks)
        elif account["hash"] != chosen.hash:
            raise Problem(f"teacher of '{self.folder.path}': weights {chosen.hash} ({source}), the run began with "
                          f"{account['hash']}; restore that teacher, or give --tag NAME to begin anew", BAD_CHECKPOINT)
        return Lesson(teacher, losses.distillation(how.temperature, how.alpha), account, judge)

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

    def introduce(self, chosen: trained.Trained, judge: Callable[[Views], np.ndarray], ratio: float, source: str,
                  remarks: list[str]) -> dict:
        """Print, and return for the report, how good the teacher is and how its term weighs against the label's."""
        how = self.settings.distillation
        name = f"{how.teacher} ({source})"
        valid, test = (self.teacher_accuracy(judge(views), views, name) for views in (self.valid, self.test))
        say(f"teacher {name}: validation accuracy {valid:.4f}")
        say(f"gradient of the KD term over that of the label term, first batch: {ratio:.3g} "
            f"(alpha {how.alpha:g}, T {how.temperature:g})")
        for remark in remarks:
            say(f"note: {remark}")
        return {"name": how.teacher, "architecture": chosen.network.architecture, "source": source, "hash": chosen.hash,
                "split": chosen.about and chosen.about["data"]["split_hash"], "valid_accuracy": valid,
                "test_accuracy": test, "gradient_ratio": ratio if np.isfinite(ratio) else None, "differences": remarks}

    def teacher_accuracy(self, logits: np.ndarray, views: Views, name: str) -> float:
        """Accuracy on some views. Raises Problem (3) for a teacher whose logits are not finite: its weights are damaged."""
        bad = int((~np.isfinite(logits)).any(1).sum())
        if bad:
            raise Problem(f"teacher {name}: its logits are not finite for {bad} of {len(logits)} images; "
                          f"stopped before step 0 (learning rate {self.training.lr:g}); give a teacher whose weights are finite",
                          DIVERGED)
        return metrics.accuracy(logits, views.labels.numpy())

    def save(self, state: State, lesson: Lesson) -> None:
        """Save for resuming, with what may not change under a run that goes on."""
        self.events.flush()
        self.folder.save(state, split_hash=self.dataset.split_hash, content_hash=self.dataset.content_hash,
                         precision=self.precision.words, teacher=lesson.account, clock=self.clock.state())

    def fit(self, state: State, lesson: Lesson) -> None:
        """Train with everything that happens beside it: bar, events, saves, stop signals, the defective teacher's watch."""
        training, save_every = self.training, 60 * self.training.save_every_minutes
        steps = min(training.epochs * self.train.steps, training.max_steps or training.epochs * self.train.steps)
        bar = tqdm(initial=state.progress.total, total=steps, unit="step", desc=self.name, disable=not watched(), leave=False)
        saved = time.monotonic()

        def after_step(state):
            nonlocal saved
            self.events.step(state, training.batch_size)
            bar.update()
            self.signals.look_at_clock()
            self.signals.leave()
            if time.monotonic() - saved >= save_every:
                self.save(state, lesson)
                saved = time.monotonic()

        def after_epoch(state, row):
            self.events.epoch(row)
            say(f"epoch {row['epoch']}/{training.epochs}  loss {row['train_loss']:.4f}  train {row['train_accuracy']:.4f}  "
                f"valid {row['valid_accuracy']:.4f}  {self.clock.seconds():.0f} s")

        with bar:
            fit(state, self.train, self.valid, lesson.teacher, lesson.objective, training, self.precision,
                watch=self.watch(), after_step=after_step, after_epoch=after_epoch, leave=self.signals.leave)

    def watch(self):
        """What may end training early: a defective teacher's first pass of its threshold."""
        if self.threshold is None:
            return lambda state: False
        rows = self.dataset.parts.valid
        rows = rows[np.argsort(self.dataset.index.labels[rows], kind="stable")]
        spread = np.unique(np.linspace(0, len(rows) - 1, min(LOOK_IMAGES, len(rows))).astype(int))
        subset = self.dataset.views("valid", self.device, rows=rows[spread])
        return stop_at_accuracy(subset, self.valid, self.threshold, self.settings.teacher.look_every,
                                self.train.steps)

    @property
    def threshold(self) -> float | None:
        return None if self.distils else self.settings.teacher.stop_at_val_accuracy

    def judge_defective(self, state: State) -> None:
        """A defective teacher that never became even that is no result; one that is too good deserves a warning."""
        progress = state.progress
        if self.threshold is not None and not progress.stopped:
            best = max(row["valid_accuracy"] for row in progress.history)
            self.folder.forget()  # so that the cure is not refused as "other settings"
            raise Problem(f"stop_at_val_accuracy '{self.threshold}' of {self.name}: never passed in {progress.total} steps, the "
                          f"best seen was {best:.4f}; train_teacher.py --model {self.name} with more --epochs, a higher --lr or "
                          "a lower --stop-at-val-accuracy gives one")
        if self.threshold is not None and progress.best["valid_accuracy"] > NOT_SO_DEFECTIVE:
            say(f"warning: the defective teacher has validation accuracy {progress.best['valid_accuracy']:.4f}, above "
                f"{NOT_SO_DEFECTIVE}: hardly defective; look more often (--look-every) or lower --lr")
