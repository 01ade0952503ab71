"""The runs of a study: which there are, which cell of which table each fills, what is missing and
the command that fills it.
"""

import functools
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from kd.config import parsing
from kd.config.plan import GENERATION_WORD, teacher_of, unused
from kd.config.settings import (
    DistillSettings,
    Network,
    TeacherSettings,
    Training,
    Transfer,
    Unlabeled,
)
from kd.methods import STRATEGIES
from kd.reports import report as reports
from kd.reports.predictions import Predictions, read_predictions
from kd.reports.statistics import difference
from kd.system.errors import Problem

ALONE, DEFECTIVE = "alone", "defective teacher"
PARTS = ("train", "valid", "test")
# Settings that two runs of one table should share: of the recipe, not of the pair.
COMPARED = (
    "temperature",
    "alpha",
    "correct_probability",
    "teacher_weights",
    "teacher_checkpoint",
    "stop_at_val_accuracy",
    "balance",
    *(
        entry.name
        for section in (Transfer, Network, Training, Unlabeled)
        for entry in fields(section)
        if entry.metadata["identity"] and entry.name not in ("seed", "weights")
    ),
)


@dataclass(frozen=True)
class Run:
    """A finished run.

    `role` is a mode, or ALONE, or DEFECTIVE; `teacher` is empty for those two, else what `plan`
    calls it.
    """

    folder: Path
    report: dict
    role: str
    tag: str
    teacher: str
    student: str
    seed: int
    unused: frozenset[str] = frozenset()  # settings that it did not look at

    @property
    def cell(self) -> tuple:
        return self.role, self.tag, self.teacher, self.student, self.seed

    @property
    def protocol(self) -> tuple:
        """What must agree for two runs to stand in one table."""
        data, settings = self.report["data"], self.report["settings"]
        return (
            data["name"],
            data["split"],
            settings["split_seed"],
            data["image_size"],
            settings["resize"],
            data["channels"],
            data["crop"],
            *(data["parts"][part] for part in PARTS),
            data["split_hash"],
            data["content_hash"],
        )

    def accuracy(self, part: str) -> float | None:
        """Of the best epoch by validation accuracy, as a fraction; None for `train` where no label
        was read.
        """
        return self.report["results"]["best"][f"{part}_accuracy"]

    @functools.cached_property
    def test(self) -> Predictions:
        return read_predictions(self.folder, "test")


def read_run(folder: Path) -> Run:
    """The run in a folder.

    Raises Problem where its report or predictions are missing or damaged.
    """
    report = reports.read(folder)
    kind = TeacherSettings if report["kind"] == "teacher" else DistillSettings
    given = {key: (value, str(folder / "report.json")) for key, value in report["settings"].items()}
    settings = parsing.build(kind, given)
    if kind is TeacherSettings:
        role, teacher = ALONE if settings.teacher.stop_at_val_accuracy is None else DEFECTIVE, ""
        student = settings.teacher.model
    else:
        role, teacher, student = (
            settings.distillation.mode,
            teacher_of(settings),
            settings.distillation.student,
        )
    report = report | {"settings": parsing.flat(settings)}
    run = Run(
        folder,
        report,
        role,
        settings.output.tag,
        teacher,
        student,
        settings.training.seed,
        unused(settings),
    )
    if (
        not set(PARTS) <= report["data"]["parts"].keys()
        or len(run.test.paths) != report["data"]["parts"]["test"]
    ):
        raise Problem(
            f"'{folder}': report and predictions.csv differ in the images of the test part; restore"
            " both"
        )
    told = [(run.test.right, run.accuracy("test"))]
    if report["teacher"] is not None and report["teacher"]["members"]:
        told.append((run.test.teacher == run.test.labels, report["teacher"]["test_accuracy"]))
    if any(abs(right.mean() - accuracy) > 1e-9 for right, accuracy in told):
        raise Problem(f"'{folder}': report and predictions.csv differ in accuracy; restore both")
    return run


def same_images(first: Run, second: Run) -> bool:
    """Whether two runs were judged on the same images, patients and labels, in the same order."""
    return all(
        np.array_equal(getattr(first.test, key), getattr(second.test, key))
        for key in ("paths", "patients", "labels")
    )


class Study:
    """All runs of one protocol."""

    def __init__(self, root: Path, runs: list[Run]):
        self.root, self.runs = root, {run.cell: run for run in runs}
        self.seeds = sorted({run.seed for run in runs})
        self.first = runs[0]

    @property
    def heading(self) -> str:
        """The protocol in words."""
        name, split, seed, size, resize, channels, crop, train, valid, test, split_hash, content = (
            self.first.protocol
        )
        cropped = "" if crop == "none" else f", {crop}"
        return (
            f"{name}, split {split} (seed {seed}, parts {split_hash}, pictures {content}), {size}"
            f" px ({resize}, {channels} channels{cropped}), {train} / {valid} / {test} images to"
            " train, validate and test"
        )

    def tables(self) -> list[tuple[str, str]]:
        """(mode, tag) of every table with at least one student, in the modes' order."""
        found = {(run.role, run.tag) for run in self.runs.values() if run.role in STRATEGIES}
        return sorted(found, key=lambda key: (list(STRATEGIES).index(key[0]), key[1]))

    def pairs(self, mode: str, tag: str) -> tuple[list[str], list[str]]:
        """(teachers, students) of a table: the thesis's where one of its pairs is there, and all
        that were run.
        """
        found = [
            (run.teacher, run.student)
            for run in self.runs.values()
            if (run.role, run.tag) == (mode, tag)
        ]
        row = STRATEGIES[mode]
        of_thesis = not tag and any(
            teacher in row.teachers and student in row.students for teacher, student in found
        )
        teachers, students = (row.teachers, row.students) if of_thesis else ((), ())
        return (
            list(dict.fromkeys([*teachers, *sorted(teacher for teacher, _ in found)])),
            list(dict.fromkeys([*students, *sorted(student for _, student in found)])),
        )

    def at(self, role: str, tag: str, teacher: str, student: str) -> dict[int, Run]:
        """The runs of a cell by seed. Networks alone, and defective teachers, may be untagged."""
        found = {}
        for seed in self.seeds:
            tags = (tag,) if role in STRATEGIES else (tag, "")
            runs = [
                self.runs[key]
                for own in tags
                if (key := (role, own, teacher, student, seed)) in self.runs
            ]
            found |= {seed: runs[0]} if runs else {}
        return found

    def teacher_role(self, mode: str) -> str:
        return ALONE if STRATEGIES[mode].teacher.stop_at is None else DEFECTIVE

    def members(self, mode: str, teacher: str) -> list[str]:
        """The networks trained on labels that are a mode's `teacher` together; none where it is no
        such run.
        """
        origin = STRATEGIES[mode].teacher
        return (
            teacher.split("+")
            if origin.trained and origin.network != "none" and GENERATION_WORD not in teacher
            else []
        )

    def teacher_runs(self, mode: str, tag: str, teacher: str) -> dict[int, Run] | None:
        """A teacher's own runs by seed; None where it has none, as an ensemble, or a network that
        was never trained.
        """
        alone = self.members(mode, teacher)
        return self.at(self.teacher_role(mode), tag, "", teacher) if len(alone) == 1 else None

    def missing(self, mode: str, tag: str) -> list[str]:
        """The commands that fill a table's empty cells: teachers, networks alone, students, for
        every seed that was used.
        """
        teachers, students = self.pairs(mode, tag)
        given = {
            run.teacher
            for run in self.runs.values()
            if (run.role, run.tag) == (mode, tag)
            and run.report["settings"].get("teacher_checkpoint")
        }
        wanted = [
            (self.teacher_role(mode), "", name)
            for teacher in teachers
            if teacher not in given
            for name in self.members(mode, teacher)
        ]
        wanted += [(ALONE, "", student) for student in students]
        wanted += self.cells(mode, tag)
        return [
            self.command(role, tag, teacher, student, seed)
            for role, teacher, student in dict.fromkeys(wanted)
            for seed in self.seeds
            if seed not in self.at(role, tag, teacher, student)
        ]

    def cells(self, mode: str, tag: str) -> list[tuple[str, str, str]]:
        """(mode, teacher, student) of a table's cells: every teacher with every student, unless
        each is its own teacher.
        """
        teachers, students = self.pairs(mode, tag)
        found = {
            (run.teacher, run.student)
            for run in self.runs.values()
            if (run.role, run.tag) == (mode, tag)
        }
        everyone = STRATEGIES[mode].teacher.network != "student"
        return [
            (mode, teacher, student)
            for student in students
            for teacher in teachers
            if everyone or (teacher, student) in found
        ]

    def command(self, role: str, tag: str, teacher: str, student: str, seed: int) -> str:
        """What to type to get a run: the settings of the nearest one that is there, and what
        differs.
        """

        def distance(run):
            return (
                (run.role in STRATEGIES) != (role in STRATEGIES),
                run.role != role,
                run.tag != tag,
                run.student != student,
                run.seed != seed,
            )

        like = min(self.runs.values(), key=distance)
        settings, words = like.report["settings"], ["--config", str(like.folder / "settings.json")]
        if role in STRATEGIES:
            words = [
                "distill.py",
                *words,
                "--mode",
                role,
                *_names(role, teacher),
                "--student",
                student,
            ]
        else:
            words = ["train_teacher.py", *words, "--model", student]
        if role == DEFECTIVE and like.role != DEFECTIVE:
            words += ["--stop-at-val-accuracy", "0.5"]
        # What belongs to that run alone is not carried over.
        other = like.teacher != teacher
        own = {
            "stop_at_val_accuracy": role == ALONE,
            "teacher_checkpoint": other,
            "teacher_weights": other,
            "weights": like.student != student,
            "max_minutes": True,
        }
        words += [
            word
            for key, foreign in own.items()
            if foreign and settings.get(key) not in (None, [])
            for word in ("--" + key.replace("_", "-"), "none")
        ]
        words += ["--tag", tag] if like.tag != tag else []
        out = like.folder.parents[3] if len(like.folder.parents) > 3 else self.root
        return shlex.join(["python", *words, "--seed", str(seed), "--out", str(out)])

    def gap_to_alone(self, runs: dict[int, Run], tag: str) -> dict | None:
        """`evidence.difference` between a cell's students and the same network trained alone; None
        where no seed has both.
        """
        alone = self.at(ALONE, tag, "", next(iter(runs.values())).student) if runs else {}
        seeds = [seed for seed in runs if seed in alone]
        if not seeds:
            return None
        students, others = (
            np.stack([side[seed].test.right for seed in seeds]) for side in (runs, alone)
        )
        return self.difference(students, others)

    def difference(self, first: np.ndarray, second: np.ndarray) -> dict | None:
        """`gap` over this protocol's patients."""
        return gap(first, second, self.first.test.patients)

    def gap_to_teacher(self, runs: dict[int, Run]) -> dict | None:
        """`evidence.difference` between a cell's students and their own teachers; None where no run
        knows those answers.
        """
        known = [run.test for run in runs.values() if (run.test.teacher >= 0).all()]
        if not known:
            return None
        return self.difference(
            np.stack([test.right for test in known]),
            np.stack([test.teacher == test.labels for test in known]),
        )

    def recipes(self, mode: str, tag: str) -> list[str]:
        """Settings in which a table's students, the networks alone and the teachers differ:

        `key: value, value`.
        """
        teachers, students = self.pairs(mode, tag)
        groups = [
            self.at(mode, tag, teacher, student) for teacher in teachers for student in students
        ]
        groups += [self.at(ALONE, tag, "", student) for student in students]
        groups += [
            self.at(self.teacher_role(mode), tag, "", name)
            for teacher in teachers
            for name in self.members(mode, teacher)
        ]
        return differing([run for group in groups for run in group.values()])


def _names(mode: str, teacher: str) -> list[str]:
    """The flags that name a mode's teacher."""
    network = STRATEGIES[mode].teacher.network
    if network == "student":
        return ["--generations", str(1 + int(teacher.partition(GENERATION_WORD)[2] or 0))]
    return ["--teacher", teacher] if network == "teacher" else []


def differing(runs: list[Run]) -> list[str]:
    """Settings and unlabelled pictures in which runs differ:

    `key: value, value`. What a run does not use is none.
    """
    found = {
        key: sorted(
            {
                str(run.report["settings"][key])
                for run in runs
                if key in run.report["settings"] and key not in run.unused
            }
        )
        for key in COMPARED
    }
    found["unlabelled pictures"] = sorted(
        {run.report["data"]["pool"]["hash"] for run in runs if run.report["data"]["pool"]}
    )
    return [f"{key}: {', '.join(values)}" for key, values in found.items() if len(values) > 1]


def gap(first: np.ndarray, second: np.ndarray, patients: np.ndarray) -> dict | None:
    """`evidence.difference`; None where there is only one patient, for whom nothing can be told."""
    return difference(first, second, patients) if len(np.unique(patients)) > 1 else None


def gather(root: Path, flag: str) -> tuple[list[Study], list[str]]:
    """(a study for each protocol below `root`, what was left out and why).

    Raises Problem where there is no run at all.
    """
    protocols, cells, left_out = {}, {}, []
    files = sorted(root.rglob("report.json"))
    if not files:
        raise Problem(
            f"runs '{root}' in {flag}: holds no report.json; give the folder of finished runs"
            " (--out of the scripts)"
        )
    for file in files:
        try:
            run = read_run(file.parent)
        except Problem as problem:
            left_out.append(str(problem))
            continue
        first = protocols.get(run.protocol, [run])[0]
        if not same_images(run, first):
            left_out.append(
                f"'{run.folder}': its predictions are of other images, patients or labels than"
                f" those of '{first.folder}', or in another order; restore both"
            )
            continue
        other = cells.setdefault((run.protocol, run.cell), run)
        if other is not run:
            left_out.append(
                f"'{run.folder}': claims the same cell as '{other.folder}'; give one of them"
                " another --tag"
            )
            continue
        protocols.setdefault(run.protocol, []).append(run)
    return [
        Study(root, runs) for _, runs in sorted(protocols.items(), key=lambda item: str(item[0]))
    ], left_out
