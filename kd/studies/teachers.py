"""The teachers of a table: the networks that taught its students, and what to know about them."""

from kd.studies.cells import means
from kd.studies.flags import flags
from kd.studies.modes import members, teacher_role, words_of
from kd.studies.runs import SPLITS, Run
from kd.studies.study import Study
from kd.studies.unfinished import count_states
from kd.system.errors import printable


def teacher_row(study: Study, mode: str, tag: str, teacher: str) -> dict:
    """Return the mean accuracies of a teacher, over the networks that taught under its name.

    They are in the students' reports. The train accuracy is known if the teacher's own run is part
    of the study. A teacher without students has the accuracies of the runs that could teach.
    """
    students = _students(study, mode, tag, teacher)
    reports = {run.report["teacher"]["hash"]: run.report["teacher"] for run in students}
    ended = {}
    if len(members(mode, teacher)) == 1:
        ended = count_states(study.unfinished_at(teacher_role(mode), tag, "", teacher))
    if not reports:
        own = study.teacher_runs(mode, tag, teacher) or {}
        rows = [{split: run.accuracy(split) for split in SPLITS} for run in own.values()]
        return {**_means(rows), "unfinished": ended, "flags": flags(own)}
    rows = [_accuracies(study, report) for report in reports.values()]
    of_teachers = flags({run.seed: run for run in students}, teachers=True)
    return {**_means(rows), "unfinished": ended, "flags": of_teachers}


def _students(study: Study, mode: str, tag: str, teacher: str) -> list[Run]:
    """Return the runs of a teacher's students; none if the teacher is not a network."""
    runs = [run for run in study.students_of(mode, tag) if run.teacher == teacher]
    return [run for run in runs if run.report["teacher"]["members"]]


def _accuracies(study: Study, report: dict) -> dict:
    """Return the accuracies of a teacher by split, None where unknown."""
    found = {split: report.get(f"{split}_accuracy") for split in SPLITS}
    weights = [member["hash"] for member in report["members"]]
    for run in study.runs.values():
        if weights == [run.report["student"]["weights_hash"]]:
            found["train"] = run.accuracy("train")
    return found


def _means(rows: list[dict]) -> dict:
    return means({split: [row[split] for row in rows] for split in SPLITS}, len(rows))


def teacher_notes(study: Study, mode: str, tag: str) -> list[str]:
    """Return sentences on the teachers of a table that change how it has to be read."""
    notes = []
    taught = []
    for teacher in study.pairs(mode, tag)[0]:
        runs = _students(study, mode, tag, teacher)
        taught += runs
        notes += _sharing_notes(teacher, runs)
    return [*notes, *own_data_notes(taught), *filter(None, [other_labels_note(taught)])]


def _sharing_notes(teacher: str, runs: list[Run]) -> list[str]:
    """Return notes if all seeds share one teacher, or if one seed has several of the same name."""
    hashes_of = {}
    for run in runs:
        hashes_of.setdefault(run.seed, set()).add(run.report["teacher"]["hash"])
    several = sorted(seed for seed, hashes in hashes_of.items() if len(hashes) > 1)
    name = printable(teacher)
    notes = []
    if several:
        seeds = ", ".join(map(str, several))
        notes.append(
            f"Warning: the students of {name} with seed {seeds} were taught by different networks"
            " of this name."
        )
    if len(hashes_of) > 1 and len(set.union(*hashes_of.values())) == 1:
        notes.append(
            f"All seeds share one teacher {name}: the intervals are conditional on this network,"
            " and do not include the variance between teachers."
        )
    return notes


def own_data_notes(runs: list[Run]) -> list[str]:
    """Return a sentence on each teacher that has labels or an image size of its own.

    Later generations of a chain have its words, but the data of a student.
    """
    texts = set()
    for run in runs:
        differences = set()
        for member in run.report["teacher"]["members"] if words_of(run.teacher) else ():
            differences.update(member["differences"])
        if differences:
            texts.add(f"Teacher {printable(run.teacher)}: {'; '.join(sorted(differences))}.")
    return sorted(texts)


def has_declared_labels(run: Run) -> bool:
    """Return whether a run says which labels its teachers have, and they have no others."""
    given = run.settings.get("teacher_labeled_fraction") is not None
    foreign = run.settings.get("teacher_checkpoint") and run.settings["allow_foreign_teacher"]
    return bool(given and "labels" in words_of(run.teacher) and not foreign)


def other_labels_note(runs: list[Run]) -> str:
    """Return a warning if teachers were trained on other labels than their students, or "".

    Teachers with --teacher-labeled-fraction are meant to be, and are named by it.
    """
    taught = [run.report for run in runs if run.report["teacher"] and not has_declared_labels(run)]
    foreign = 0
    for report in taught:
        known = {member["split"] for member in report["teacher"]["members"]} - {None}
        foreign += bool(known - {report["data"]["split_hash"]})
    if not foreign:
        return ""
    return (
        f"Warning: {foreign} of {len(taught)} students had a teacher that was trained on other"
        " labels than theirs."
    )
