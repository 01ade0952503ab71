"""A study: all runs of one protocol, by table and cell, and the differences between cells."""

from kd.reports.statistics import paired_difference
from kd.studies.modes import (
    ALONE,
    is_mode,
    members,
    mode_order,
    teacher_role,
    teaches_itself,
    thesis_pairs,
)
from kd.studies.runs import Cell, Run, differing
from kd.studies.unfinished import Unfinished, data_settings


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
        return (
            f"{own.data}, {own.split} split (seed {own.split_seed}, split hash {own.split_hash},"
            f" content hash {own.content_hash}), {own.image_size} px ({own.resize},"
            f" {own.channels}-channel{cropped}), {own.train} / {own.valid} / {own.test} training /"
            " validation / test images"
        )

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

        Every teacher is combined with every student. In a mode in which students teach themselves,
        there are only the combinations that were run.
        """
        teachers, students = self.pairs(mode, tag)
        there = {(run.teacher, run.student) for run in self.begun_in(mode, tag)}
        pairs = []
        for student in students:
            for teacher in teachers:
                if not teaches_itself(mode) or (teacher, student) in there:
                    pairs.append((teacher, student))
        return pairs

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

    def gap(self, first: dict[int, Run], second: dict[int, Run]) -> dict | None:
        """Return the `paired_difference` in test accuracy between the runs of two cells."""
        return paired_difference(right_of(first), right_of(second), self.first.test.patients)

    def gap_to_teacher(self, runs: dict[int, Run], margin: float) -> dict | None:
        """Return the `paired_difference` between a cell's students and their own teachers.

        Only runs with the teacher's prediction for every image are used.
        """
        known = {seed: run for seed, run in runs.items() if run.test.teacher_known}
        taught_by = {seed: run.test.teacher_right for seed, run in known.items()}
        return paired_difference(right_of(known), taught_by, self.first.test.patients, margin)

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


def right_of(runs: dict[int, Run]) -> dict:
    """Return seed -> whether each test image is classified correctly, bool [N]."""
    return {seed: run.test.right for seed, run in runs.items()}
