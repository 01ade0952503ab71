"""A study: all runs of one protocol, by table and cell, and the differences between cells."""

from collections.abc import Hashable

import numpy as np

from kd.config.settings import Distillation
from kd.config.teacher_data import OWN
from kd.reports.statistics import pair
from kd.reports.text import units_text
from kd.reports.verdicts import Member
from kd.studies.flags import one_class_note
from kd.studies.modes import (
    ALONE,
    Way,
    has_own_pairs,
    is_mode,
    members,
    mode_order,
    teacher_role,
    thesis_pairs,
    without_words,
    words_of,
)
from kd.studies.runs import SPLITS, Cell, Run, differing
from kd.studies.unfinished import Unfinished, data_settings
from kd.system.errors import counted

DEFAULT_MARGIN = Distillation().margin


class Study:
    """All finished runs of one protocol, and the unfinished runs whose settings fit it."""

    def __init__(self, runs: list[Run], unfinished: list[Unfinished] = ()):
        self.runs = {run.cell: run for run in runs}
        self.seeds = sorted({run.seed for run in runs})
        self.first = runs[0]
        known = [data_settings(run.report["settings"]) for run in runs]
        self.unfinished = [run for run in unfinished if data_settings(run.settings) in known]

    @property
    def heading(self) -> str:
        """Description of the protocol."""
        own = self.first.protocol
        cropped = "" if own.crop == "none" else f", {own.crop}"
        data = self.first.report["data"]
        leaks = f" THAT {_leaks(data)}" if data["leaks"] else ""
        return (
            f"{own.data}, {own.split} split{leaks} (seed {own.split_seed}, split hash"
            f" {own.split_hash}, content hash {own.content_hash}), {own.image_size} px"
            f" ({own.resize}, {own.channels}-channel{cropped}), {self._images}"
        )

    @property
    def _images(self) -> str:
        """The numbers of distinct images in the splits and, if images repeat, with repeats."""
        data = self.first.report["data"]
        distinct = [data["distinct_images"][split] for split in SPLITS]
        slots = [data["parts"][split] for split in SPLITS]
        repeats = "" if slots == distinct else f" ({_slashed(slots)} with repeats)"
        return f"{_slashed(distinct)} training / validation / test images{repeats}"

    @property
    def units(self) -> str:
        """What the test images are of: `77 patients`, `84 images, whose patients are not known`."""
        return units_text(*self._patients)

    @property
    def _patients(self) -> tuple[int, int]:
        """The number of known patients in the test split, and of images without one."""
        data = self.first.report["data"]
        patients = data["patients"]["test"]
        unknown = data["without_patient"]["test"]
        if unknown is None:  # a report of an earlier version
            test = self.first.test
            is_known = test.patients != test.paths
            patients = len(set(test.patients[is_known].tolist()))
            unknown = len(set(test.paths[~is_known].tolist()))
        return patients, unknown

    @property
    def notes(self) -> list[str]:
        """What a reader of the tables must know about the split and the patients."""
        data = self.first.report["data"]
        notes = [leak_text(data)] if data["leaks"] else []
        if self._patients[1]:
            notes.append(
                f"The test split has {self.units}. An image without a known patient counts as a"
                " patient of its own, or with its study if that is known: one patient can be in"
                " several splits, and the intervals may be too narrow."
            )
        return notes

    def students_of(self, mode: str, tag: str) -> list[Run]:
        """Return the finished runs of a table's students."""
        return [run for run in self.runs.values() if (run.role, run.tag) == (mode, tag)]

    def begun_in(self, mode: str, tag: str) -> list[Run | Unfinished]:
        """Return the runs of a table's students, whether they are finished or not."""
        unfinished = [run for run in self.unfinished if (run.role, run.tag) == (mode, tag)]
        return [*self.students_of(mode, tag), *unfinished]

    def tables(self) -> list[tuple[str, str]]:
        """Return (mode, tag) of every table with at least one student, in the modes' order."""
        runs = [*self.runs.values(), *self.unfinished]
        tables = {(run.role, run.tag) for run in runs if is_mode(run.role)}
        return sorted(tables, key=lambda table: (mode_order(table[0]), table[1]))

    def pairs(self, mode: str, tag: str) -> tuple[list[str], list[str]]:
        """Return (teachers, students) of a table.

        These are all that were run, and all of the thesis if one of its pairs was run.
        """
        runs = self.begun_in(mode, tag)
        teachers, students = thesis_pairs(mode)
        of_thesis = [run for run in runs if run.teacher in teachers and run.student in students]
        if tag or not of_thesis:
            teachers = ()
            students = ()
        return (
            list(dict.fromkeys([*teachers, *sorted(run.teacher for run in runs)])),
            list(dict.fromkeys([*students, *sorted(run.student for run in runs)])),
        )

    def cells(self, mode: str, tag: str) -> list[tuple[str, str]]:
        """Return (teacher, student) of a table's cells.

        Every teacher is combined with every student. In a mode in which students teach themselves
        or each other, there are only the combinations that were run.
        """
        teachers, students = self.pairs(mode, tag)
        there = {(run.teacher, run.student) for run in self.begun_in(mode, tag)}
        pairs = []
        for student in students:
            for teacher in teachers:
                if not has_own_pairs(mode) or (teacher, student) in there:
                    pairs.append((teacher, student))
        return pairs

    def ways(self, mode: str, tag: str) -> list[Way]:
        """Return the mode of a table with the data of its teachers: that of the students first."""
        every = {words_of(teacher) for teacher in self.pairs(mode, tag)[0]}
        return [Way(mode, words) for words in sorted(every)]

    def is_taken(self, cell: Cell) -> bool:
        """Return whether the folder of a cell's run has a run whose teachers have other data."""
        for run in self.begun_in(cell.role, cell.tag):
            same_name = without_words(run.teacher) == without_words(cell.teacher)
            same_run = (run.student, run.seed) == (cell.student, cell.seed)
            if same_name and same_run and run.teacher != cell.teacher:
                return True
        return False

    def teachers_data(self, cell: Cell) -> dict:
        """Return the data settings that a cell's teachers have of their own, or None for each."""
        for run in (*self.runs.values(), *self.unfinished):
            if words_of(cell.teacher) and run.teacher == cell.teacher:
                return {key: run.settings[key] for key in OWN}
        return dict.fromkeys(OWN)

    def at(self, role: str, tag: str, teacher: str, student: str) -> dict[int, Run]:
        """Return the runs of a cell by seed.

        Networks trained alone and defective teachers may be untagged.
        """
        tags = (tag,) if is_mode(role) else (tag, "")
        runs = {}
        for seed in self.seeds:
            for own in tags:
                run = self.runs.get(Cell(role, own, teacher, student, seed))
                if run is not None:
                    runs[seed] = run
                    break
        return runs

    def unfinished_at(self, role: str, tag: str, teacher: str, student: str) -> list[Unfinished]:
        """Return the unfinished runs of a cell.

        Untagged runs count where `at` may use them: if the seed has no finished run.
        """
        finished = self.at(role, tag, teacher, student)
        found = []
        for run in self.unfinished:
            here = (run.role, run.teacher, run.student) == (role, teacher, student)
            untagged = not is_mode(role) and not run.tag and run.seed not in finished
            if here and (run.tag == tag or untagged):
                found.append(run)
        return found

    def alone(self, student: str, tag: str) -> dict[int, Run]:
        """Return the runs of a network trained on labels only, by seed."""
        return self.at(ALONE, tag, "", student)

    def teacher_runs(self, mode: str, tag: str, teacher: str) -> dict[int, Run] | None:
        """Return a teacher's own runs by seed.

        Returns None for a teacher without own runs: an ensemble or an untrained network.
        """
        if len(members(mode, teacher)) != 1:
            return None
        return self.at(teacher_role(mode), tag, "", teacher)

    def margin(self, given: float | None = None) -> tuple[float, str]:
        """Return the margin of non-inferiority, and a sentence that says where it comes from.

        Without a `given` one it is the smallest that the students recorded.
        """
        students = [run for run in self.runs.values() if is_mode(run.role)]
        recorded = sorted({run.margin for run in students if run.margin is not None})
        texts = ", ".join(f"{margin:g}" for margin in recorded)
        margin = given if given is not None else recorded[0] if recorded else DEFAULT_MARGIN
        what = f"The margin of non-inferiority, {margin:g},"
        if not recorded:
            return margin, f"{what} was not recorded by the runs."
        if recorded == [margin]:
            return margin, f"{what} was recorded by the runs before they had results."
        if given is None:
            return margin, f"{what} is the smallest of those that the runs recorded ({texts})."
        return margin, f"{what} was given to evaluate.py; the runs recorded {texts}."

    @property
    def clusters(self) -> np.ndarray:
        """The patient of each test image [N], or what stands for an unknown one."""
        return self.first.test.clusters

    def minus(self, first: dict[int, Run], second: dict[int, Run], shared: Hashable) -> Member:
        """Return the comparison in test accuracy between the runs of two cells.

        shared  the name of the network that other members of its family are compared with, too
        """
        compared = pair(right_of(first), right_of(second), self.clusters)
        seeds = first.keys() & second.keys()
        runs = [side[seed] for side in (first, second) for seed in sorted(seeds)]
        return Member(compared, shared, one_class_note(runs))

    def minus_teacher(self, runs: dict[int, Run], teacher: str) -> Member:
        """Return the comparison of a cell's students with their own teachers.

        Only runs with the teacher's prediction for every image are used.
        """
        known = {seed: run for seed, run in runs.items() if run.test.teacher_known}
        taught_by = {seed: run.test.teacher_right for seed, run in known.items()}
        compared = pair(right_of(known), taught_by, self.clusters)
        every = list(known.values())
        return Member(compared, teacher, one_class_note(every, every))

    def taught_by(self, runs: dict[int, Run]) -> dict[int, Run]:
        """Return the own run of the network that taught each student, by the seed of the student.

        Only students with a single teacher are included, and only if its run is in this study.
        """
        of_weights = {run.report["student"]["weights_hash"]: run for run in self.runs.values()}
        found = {}
        for seed, run in runs.items():
            taught = run.report["teacher"]["members"]
            if len(taught) == 1 and taught[0]["hash"] in of_weights:
                found[seed] = of_weights[taught[0]["hash"]]
        return found

    def recipes(self, mode: str, tag: str) -> list[str]:
        """Return `differing` for a table's students, the same networks alone, and teachers."""
        teachers, students = self.pairs(mode, tag)
        groups = []
        for teacher in teachers:
            groups += [self.at(mode, tag, teacher, student) for student in students]
        groups += [self.alone(student, tag) for student in students]
        for teacher in teachers:
            for name in members(mode, teacher):
                groups.append(self.at(teacher_role(mode), tag, "", name))
        runs = []
        for group in groups:
            runs += group.values()
        return differing(runs)


def leak_text(data: dict) -> str:
    """Return a warning about a split that leaks, from a report's entry on the data."""
    shared = data["overlaps"]
    patients = counted(shared["patients"], "patient", "patients")
    files = counted(shared["files"], "identical file", "identical files")
    return (
        f"**WARNING: THIS SPLIT {_leaks(data)}. In more than one split: {patients}, {files}. The"
        " accuracies are too high for new patients.**"
    )


def _leaks(data: dict) -> str:
    """Return what a split that is drawn by image does, whether or not anything was found."""
    return "LEAKS" if any(data["overlaps"].values()) else "MAY LEAK"


def _slashed(numbers: list[int]) -> str:
    return " / ".join(map(str, numbers))


def right_of(runs: dict[int, Run]) -> dict:
    """Return seed -> whether each test image is classified correctly, bool [N]."""
    return {seed: run.test.right for seed, run in runs.items()}
