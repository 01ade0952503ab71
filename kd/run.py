"""One experiment from settings to report: lock, resume or skip, missing teacher, fit, evaluate, report."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kd import checkpoint, config, losses, metrics, models, teachers, trained
from kd.data.dataset import Dataset, open_dataset, read_index
from kd.data.index import slug
from kd.errors import Problem
from kd.folder import RunFolder, changed, folder_of, teacher_settings
from kd.loop import State, fit, predict, stop_at_accuracy
from kd.losses import Objective
from kd.results import outcome
from kd.results import report as reports
from kd.results.events import Events
from kd.runtime import StopSignals, lock, pick_device, pick_precision, say, watched
from kd.settings import DistillSettings, TeacherSettings
from kd.strategies import unusual
from kd.teachers import TeacherFunction

LOOK_IMAGES = 320
NOT_SO_DEFECTIVE = 0.7


@dataclass(frozen=True)
class Lesson:
    """Who teaches and how: what differs between training on labels and distilling."""

    teacher: TeacherFunction
    objective: Objective
    account: dict | None  # the report's `teacher`

    @property
    def hash(self) -> str | None:
        return self.account and self.account["hash"]


def run(settings: TeacherSettings | DistillSettings, dataset: Dataset | None = None) -> dict:
    """Do what the settings say, or find it done; returns the report.

    A finished run is read, an interrupted one goes on exactly, a missing teacher is trained first. Raises Problem.
    """
    check_settings(settings)
    folder = RunFolder(folder_of(settings))
    with StopSignals() as signals, lock(folder.path):
        folder.claim(settings)
        if folder.finished:
            say(f"finished before: {folder.path}")
            return reports.read(folder.path)
        index = dataset.index if dataset else read_index(settings.data)
        if settings.network.pretrained and not settings.network.weights and not folder.begun:
            models.require_weights(student_of(settings))
        if dataset is None:
            dataset = open_dataset(settings.data, index, signals.leave)
            say_data(dataset)
        return Experiment(settings, folder, dataset, signals).run()


def check_settings(settings) -> None:
    """Refuse, before data are read, names that cannot be."""
    files = {"weights": settings.network.weights}
    models.architecture_of(student_of(settings))
    if isinstance(settings, DistillSettings):
        models.architecture_of(settings.distillation.teacher)
        files["teacher_checkpoint"] = settings.distillation.teacher_checkpoint
    tag = settings.output.tag
    if tag and slug(tag) != tag:
        raise Problem(f"tag '{tag}' in --tag: must be letters, digits, '.', '_' and '-', as it names a folder; try '{slug(tag)}'")
    for key, file in files.items():
        if file is not None and not Path(file).is_file():
            raise Problem(f"{key} '{file}' in --{key.replace('_', '-')}: no such file; give another")


def student_of(settings) -> str:
    """The network that a run trains."""
    return settings.teacher.model if isinstance(settings, TeacherSettings) else settings.distillation.student


def say_data(dataset: Dataset) -> None:
    """What is trained on, and what there is to know about it."""
    account = dataset.describe()
    sizes = ", ".join(f"{name} {size}" for name, size in account["parts"].items())
    say(f"data {account['name']}, split {account['split']}: {sizes}; {len(account['classes'])} classes; patients in two "
        f"parts {account['overlaps']['patients']}, identical files in two parts {account['overlaps']['files']}")
    for note in account["notes"]:
        say(f"note: {note}")
    if account["skipped_files"]:
        say(f"note: {account['skipped_files']} hidden files passed over")


class Experiment:
    """A run in its locked folder."""

    def __init__(self, settings, folder: RunFolder, dataset: Dataset, signals: StopSignals):
        self.settings, self.folder, self.dataset, self.signals = settings, folder, dataset, signals
        self.training, self.distils = settings.training, isinstance(settings, DistillSettings)
        self.device = pick_device(self.training.device)
        self.precision = pick_precision(self.training.amp, self.device)
        self.name = student_of(settings)
        self.train = dataset.views("train", self.device, batch_size=self.training.batch_size, seed=self.training.seed,
                                   shuffle=True, augment=self.training.augment)
        self.valid, self.test = dataset.views("valid", self.device), dataset.views("test", self.device)

    def run(self) -> dict:
        """From the first step, or the one after the last save, to the report."""
        network, fresh = self.settings.network, not self.folder.begun
        student = models.build(self.name, self.dataset.index.classes, pretrained=network.pretrained and fresh,
                               weights=network.weights if fresh else None, drop_rate=network.drop_rate,
                               seed=self.training.seed).to(self.device)
        self.folder.check_space(models.parameters(student.module))
        lesson = self.lesson(student)
        self.clock = outcome.Clock()
        state = State(student, self.training, self.precision)
        self.restore(state, lesson)
        say(f"training {self.name} ({models.parameters(student.module):,} parameters) on {self.device.type}, "
            f"{self.precision.words}, {len(self.train)} images, {self.train.steps} steps an epoch")
        events = Events(self.folder.path, state)
        try:
            if not state.progress.total:
                events.views(next(self.train.epoch(0)).images)
            self.fit(state, lesson, events)
            self.judge_defective(state)
            report = outcome.conclude(self.settings, self.folder, self.dataset, state, self.valid, self.test,
                                      lesson.account, self.clock.account(self.device, self.precision, state), events)
        finally:
            events.close()
        self.folder.forget()
        return report

    def lesson(self, student) -> Lesson:
        """No teacher, or the one that the settings name, ready to teach, with its account for the report."""
        if not self.distils:
            return Lesson(teachers.nobody, losses.supervised(), None)
        how = self.settings.distillation
        chosen, source, remarks = find_teacher(self.settings, self.dataset, self.folder)
        chosen.network.to(self.device)
        valid, test = (metrics.accuracy(predict(chosen.network, views), views.labels.numpy()) for views in (self.valid, self.test))
        teacher = teachers.live(chosen.network, self.precision)
        ratio = teachers.first_ratio(student, teacher, next(self.train.epoch(0)), how.temperature, how.alpha)
        say(f"teacher {how.teacher} ({source}): validation accuracy {valid:.4f}")
        say(f"gradient of the KD term over that of the label term, first batch: {ratio:.3g} "
            f"(alpha {how.alpha:g}, T {how.temperature:g})")
        for remark in remarks:
            say(f"note: {remark}")
        account = {"name": how.teacher, "architecture": chosen.network.architecture, "source": source, "hash": chosen.hash,
                   "split": chosen.about and chosen.about["data"]["split_hash"], "valid_accuracy": valid,
                   "test_accuracy": test, "gradient_ratio": ratio if np.isfinite(ratio) else None, "differences": remarks}
        return Lesson(teacher, losses.distillation(how.temperature, how.alpha), account)

    def began_with(self, lesson: Lesson) -> dict:
        """What may not change under a run that goes on."""
        return {"split_hash": self.dataset.split_hash, "content_hash": self.dataset.content_hash, "teacher_hash": lesson.hash}

    def restore(self, state: State, lesson: Lesson) -> None:
        """Go on from the last save, if there is one."""
        saved = self.folder.load(**self.began_with(lesson))
        if saved is not None:
            state.load_state_dict(saved["state"])
            self.clock.restore(saved["clock"])
            say(f"going on from step {state.progress.total} (epoch {state.progress.epoch + 1})")

    def save(self, state: State, lesson: Lesson) -> None:
        """Save for resuming."""
        self.folder.save(state, **self.began_with(lesson), clock=self.clock.state())

    def fit(self, state: State, lesson: Lesson, events: Events) -> None:
        """Train with everything that happens beside it: bar, events, saves, stop signals, the defective teacher's watch."""
        training, save_every = self.training, 60 * self.training.save_every_minutes
        steps = min(training.epochs * self.train.steps, training.max_steps or training.epochs * self.train.steps)
        bar = tqdm(initial=state.progress.total, total=steps, unit="step", desc=self.name, disable=not watched(), leave=False)
        saved = time.monotonic()

        def after_step(state):
            nonlocal saved
            events.step(state, training.batch_size)
            bar.update()
            if self.signals.code is not None:
                self.save(state, lesson)
                self.signals.leave(f" at step {state.progress.total}, saved in '{self.folder.path}'")
            if time.monotonic() - saved >= save_every:
                self.save(state, lesson)
                saved = time.monotonic()

        def after_epoch(state, row):
            events.epoch(row)
            say(f"epoch {row['epoch']}/{training.epochs}  loss {row['train_loss']:.4f}  train {row['train_accuracy']:.4f}  "
                f"valid {row['valid_accuracy']:.4f}  {self.clock.seconds():.0f} s")

        with bar:
            fit(state, self.train, self.valid, lesson.teacher, lesson.objective, training, self.precision,
                watch=self.watch(), after_step=after_step, after_epoch=after_epoch)

    def watch(self):
        """What may end training early: a defective teacher's first pass of its threshold."""
        if self.threshold is None:
            return lambda state: False
        rows = self.dataset.parts.valid
        rows = rows[np.argsort(self.dataset.index.labels[rows], kind="stable")]
        spread = np.unique(np.linspace(0, len(rows) - 1, min(LOOK_IMAGES, len(rows))).astype(int))
        subset = self.dataset.views("valid", self.device, rows=rows[spread])
        return stop_at_accuracy(subset, self.valid, self.threshold, self.settings.teacher.look_every)

    @property
    def threshold(self) -> float | None:
        return None if self.distils else self.settings.teacher.stop_at_val_accuracy

    def judge_defective(self, state: State) -> None:
        """A defective teacher that never became even that is no result; one that is too good deserves a warning."""
        progress = state.progress
        if self.threshold is not None and not progress.stopped:
            best = max([row["valid_accuracy"] for row in progress.history] + [seen for _, seen in progress.looks])
            raise Problem(f"stop_at_val_accuracy '{self.threshold}' of {self.name}: never passed in {progress.total} steps, the "
                          f"best seen was {best:.4f}; train longer (--epochs), with a higher --lr, or lower the threshold")
        if self.threshold is not None and progress.best["valid_accuracy"] > NOT_SO_DEFECTIVE:
            say(f"warning: the defective teacher has validation accuracy {progress.best['valid_accuracy']:.4f}, above "
                f"{NOT_SO_DEFECTIVE}: hardly defective; look more often (--look-every) or lower --lr")


def find_teacher(settings: DistillSettings, dataset: Dataset, own: RunFolder) -> tuple[trained.Trained, str, list[str]]:
    """(the teacher, where it comes from, remarks for the user): from a file, from its run folder, or trained now.

    Looked for under the same --tag first, then without one. Raises Problem where what is found does not fit the data.
    """
    how = settings.distillation
    remarks = [text for text in (unusual(how.mode, how.teacher, how.student),) if text]
    if how.teacher_checkpoint is not None:
        found = trained.load_any(Path(how.teacher_checkpoint), how.teacher, dataset)
        trained.refuse_overlap(found, dataset)
        return found, Path(how.teacher_checkpoint).name, remarks + trained.differences(found, dataset)
    wanted = teacher_settings(settings)
    tags = list(dict.fromkeys((settings.output.tag, "")))
    faults = []
    for tag in tags:
        folder = RunFolder(folder_of(config.replace(wanted, tag=tag)))
        if not folder.finished:
            continue
        found = trained.load(folder.model)
        unlike = trained.differences(found, dataset)
        if not unlike:
            recipe = changed(checkpoint.read_json(folder.settings), config.replace(wanted, tag=tag))
            return found, str(folder.path.relative_to(settings.output.out)), remarks + [f"teacher's {text}" for text in recipe]
        faults.append(f"{folder.path} ({'; '.join(unlike)})")
    if faults and not settings.output.tag:
        raise Problem(f"teacher {faults[0]}: does not fit; give --tag NAME to train another beside it")
    wanted = config.replace(wanted, tag=settings.output.tag if faults else "")
    say(f"no teacher in {folder_of(wanted)}: training it first")
    run(wanted, dataset)
    folder = RunFolder(folder_of(wanted))
    return trained.load(folder.model), str(folder.path.relative_to(settings.output.out)), remarks
