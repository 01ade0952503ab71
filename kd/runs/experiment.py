"""A run in its locked folder: build, learn from a teacher or from labels alone, save on the way,
conclude.
"""

import contextlib
import itertools
import time

import numpy as np
import torch
from tqdm import tqdm

from kd import models
from kd.config.plan import drawn_by, student_of
from kd.config.settings import DistillSettings
from kd.data.dataset import Dataset
from kd.data.pool import Pool
from kd.loop import fit, stop_at_accuracy
from kd.runs import finish
from kd.runs.folder import RunFolder
from kd.runs.phases import FindTeachers, Lesson, Tutor
from kd.runs.tensorboard import Events
from kd.system import ranks
from kd.system.console import log, shows_progress
from kd.system.devices import pick_device, pick_precision
from kd.system.errors import CANNOT_WRITE, Problem, Stopped
from kd.system.seeds import seed_step
from kd.system.signals import StopSignals
from kd.teachers.stored_logits import StoredLogits
from kd.training.state import State

LOOK_IMAGES = 320
NOT_SO_DEFECTIVE = 0.7


class Experiment:
    """A run in its locked folder."""

    def __init__(
        self,
        settings,
        folder: RunFolder,
        dataset: Dataset,
        pool: Pool | None,
        signals: StopSignals,
        find_teachers: FindTeachers,
        stores: dict[str, StoredLogits],
    ):
        self.settings, self.folder, self.dataset, self.pool = settings, folder, dataset, pool
        self.signals, self.find_teachers = signals, find_teachers
        self.training = settings.training
        self.device = pick_device(self.training.device)
        self.precision = pick_precision(self.training.amp, self.device)
        self.name = student_of(settings)
        self.tutor = Tutor(
            settings, dataset, pool, self.device, self.precision, stores, signals.leave
        )
        self.train, (self.valid, self.test) = self.tutor.views["train"], self.tutor.judged
        # What may not change under a run that goes on.
        self.fixed = {
            "split_hash": dataset.split_hash,
            "content_hash": dataset.content_hash,
            "pool_hash": pool and pool.hash,
            "precision": self.precision.words,
        }

    def run(self) -> dict:
        """From the first step, or the one after the last save, to the report."""
        try:
            return self._run()
        finally:
            self.tutor.flush_stores()
            if self.training.compile:
                torch.compiler.reset()  # of eight graphs that all networks of a family share, the next run needs its own

    def _run(self) -> dict:
        network, fresh = self.settings.network, not ranks.main_rank_says(self.folder.begun)
        self.signals.leave()
        student = models.build(
            self.name,
            self.dataset.index.classes,
            pretrained=network.pretrained and fresh,
            weights=network.weights if fresh else None,
            drop_rate=network.drop_rate,
            seed=drawn_by(self.settings),
        ).to(self.device)
        self.folder.check_space(models.parameters(student.module))
        first = self.tutor.first_batch()
        seed_step(self.device, self.training.seed, 0, 0)
        logits = models.try_batch(student, first.images, self.precision).logits
        saved = self.folder.load(**self.fixed)
        lesson = self.tutor.lesson(
            self.find_teachers, student, first, logits, saved and saved["teacher"]
        )
        self.clock = finish.Clock()
        state = State(student, self.training, self.precision, lesson.helper)
        if saved is not None:
            state.load_state_dict(saved["state"])
            self.clock.restore(saved["clock"])
            log(f"going on from step {state.progress.total} (epoch {state.progress.epoch + 1})")
        del saved  # for VGG11 two gigabytes
        size = models.parameters(student.module)
        log(
            f"training {self.name} ({size:,} parameters) on {self.device.type},"
            f" {self.precision.words}{self.crew()}"
        )
        for phase in lesson.phases:
            log(phase.describe())
        student.spread(self.training.sync_bn)
        if self.training.compile:
            student.compile()
        self.events = Events(self.folder.path, state)
        try:
            if not state.progress.total:
                self.events.views(first.images)
            self.fit(state, lesson)
            self.judge_defective(state)
            report = finish.conclude(
                self.settings,
                self.folder,
                self.dataset,
                self.pool,
                state,
                lesson,
                self.valid,
                self.test,
                self.clock.account(self.device, self.precision, state),
                self.events,
                self.signals.leave,
            )
        except Stopped:
            self.save(state, lesson)
            ranks.barrier()  # a rank that ends early has torchrun end the others
            raise self.signals.stopped(
                f" at step {state.progress.total}, saved in '{self.folder.path}'"
            ) from None
        except Problem as problem:
            if (
                problem.code == CANNOT_WRITE
            ):  # what does not fit now may be a result that is larger than this
                with contextlib.suppress(Problem):
                    self.save(state, lesson)
            raise
        finally:
            self.events.close()
        if ranks.is_main_rank():
            self.folder.forget()
        ranks.barrier()
        return report

    def crew(self) -> str:
        """How many work on it, in words; empty for one."""
        if ranks.world_size() == 1:
            return ""
        own = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else self.device.type
        )
        devices = [
            f"{word} x {len(list(group))}"
            for word, group in itertools.groupby(ranks.gather_words(own))
        ]
        return (
            f"; {ranks.world_size()} ranks ({', '.join(devices)}), {self.training.batch_size}"
            " images a step in all"
        )

    def save(self, state: State, lesson: Lesson) -> None:
        """Save for resuming, with what may not change under a run that goes on."""
        if not ranks.is_main_rank():
            return
        self.events.flush()
        self.folder.save(state, **self.fixed, teacher=lesson.account, clock=self.clock.state())

    def fit(self, state: State, lesson: Lesson) -> None:
        """Train with everything that happens beside it: bar, events, saves, stop signals, the
        defective teacher's watch.
        """
        training, save_every = self.training, 60 * self.training.save_every_minutes
        steps = lesson.phases[-1].end
        bar = tqdm(
            initial=state.progress.total,
            total=steps,
            unit="step",
            desc=self.name,
            disable=not shows_progress(),
            leave=False,
        )
        saved = time.monotonic()

        def after_step(state):
            nonlocal saved
            self.events.step(state, training.batch_size)
            bar.update()
            self.signals.look_at_clock()
            if self.signals.leave_together(time.monotonic() - saved >= save_every):
                self.save(state, lesson)
                saved = time.monotonic()

        def after_epoch(state, row):
            self.events.epoch(row)
            shown = "train" if "train_accuracy" in row else "agreement"
            figure = row.get("train_accuracy", row.get("train_agreement"))
            log(
                f"{row['phase']}: epoch {row['epoch']}, step {row['steps']}/{steps}  loss"
                f" {row['train_loss']:.4f}  {shown} {figure:.4f}  valid {row['valid_accuracy']:.4f}"
                f"  {self.clock.seconds():.0f} s"
            )

        with bar:
            fit(
                state,
                lesson.phases,
                self.valid,
                training,
                self.precision,
                watch=self.watch(),
                after_step=after_step,
                after_epoch=after_epoch,
                leave=self.signals.leave,
            )

    def watch(self):
        """What may end training early: a defective teacher's first pass of its threshold."""
        if self.threshold is None:
            return lambda state: False
        rows = self.dataset.parts.valid
        rows = rows[np.argsort(self.dataset.index.labels[rows], kind="stable")]
        spread = np.unique(np.linspace(0, len(rows) - 1, min(LOOK_IMAGES, len(rows))).astype(int))
        subset = self.dataset.views("valid", self.device, rows=rows[spread])
        return stop_at_accuracy(
            subset, self.valid, self.threshold, self.settings.teacher.look_every, self.train.steps
        )

    @property
    def threshold(self) -> float | None:
        return (
            None
            if isinstance(self.settings, DistillSettings)
            else self.settings.teacher.stop_at_val_accuracy
        )

    def judge_defective(self, state: State) -> None:
        """A defective teacher that never became even that is no result; one that is too good
        deserves a warning.
        """
        progress = state.progress
        if self.threshold is not None and not progress.stopped:
            best = max(row["valid_accuracy"] for row in progress.history)
            self.folder.forget()  # so that the cure is not refused as "other settings"
            raise Problem(
                f"stop_at_val_accuracy '{self.threshold}' of {self.name}: never passed in"
                f" {progress.total} steps, the best seen was {best:.4f}; train_teacher.py --model"
                f" {self.name} with more --epochs, a higher --lr or a lower --stop-at-val-accuracy"
                " gives one"
            )
        if self.threshold is not None and progress.best["valid_accuracy"] > NOT_SO_DEFECTIVE:
            log(
                "warning: the defective teacher has validation accuracy"
                f" {progress.best['valid_accuracy']:.4f}, above {NOT_SO_DEFECTIVE}: hardly"
                " defective; look more often (--look-every) or lower --lr"
            )
