"""Comparison of everything that was tried on one student.

It includes the same network trained alone (the baseline), every mode, and the controls of a
defective teacher.
"""

from kd.reports.text import NOT_KNOWN
from kd.reports.verdicts import judge
from kd.studies.cells import accuracies_text, gap_texts, of_runs
from kd.studies.flags import flags
from kd.studies.modes import ALONE, is_mode, mode_order, stop_accuracy
from kd.studies.runs import Run
from kd.studies.study import Study
from kd.system.errors import printable
from kd.system.markdown import table


def overviews(study: Study) -> list[dict]:
    """Return an overview of each (student, tag) that was taught in more than one way.

    An overview has a row for each way and one for the baseline.
    """
    ways_of = {}
    for run in (*study.runs.values(), *study.unfinished):
        if is_mode(run.role):
            ways_of.setdefault((run.student, run.tag), set()).add((run.role, run.teacher))
    result = []
    for student, tag in sorted(ways_of):
        ways = sorted(ways_of[student, tag], key=lambda way: (mode_order(way[0]), way[1]))
        if len(ways) > 1:
            result.append(_overview(study, student, tag, ways))
    return result


def _overview(study: Study, student: str, tag: str, ways: list[tuple[str, str]]) -> dict:
    """Return the overview of a student that was taught in `ways`, each a (mode, teacher).

    A single defective teacher is compared with every other way.
    """
    runs = {(mode, teacher): study.at(mode, tag, teacher, student) for mode, teacher in ways}
    alone = study.alone(student, tag)
    rows = [
        _row(study, (ALONE, "", student), tag, alone),
        *(_row(study, (*way, student), tag, runs[way]) for way in ways),
    ]
    from_alone = judge([study.minus(runs[way], alone, student) for way in ways])
    for row, gap in zip(rows[1:], from_alone):
        row["minus_alone"] = gap
    defective = [way for way in ways if runs[way] and stop_accuracy(way[0]) is not None]
    if len(defective) == 1:
        others = [way for way in ways if way not in defective]
        members = [study.minus(runs[defective[0]], runs[way], defective[0]) for way in others]
        found = dict(zip(others, judge(members)))
        for row, way in zip(rows[1:], ways):
            row["defective_minus"] = found.get(way)
    return {"student": student, "tag": tag, "rows": rows}


def _row(study: Study, way: tuple[str, str, str], tag: str, runs: dict[int, Run]) -> dict:
    """Return a row as plain values. `way` is (mode, teacher, student)."""
    mode, teacher, student = way
    cell = of_runs(runs, study.unfinished_at(mode, tag, teacher, student))
    gaps = {"minus_alone": None, "defective_minus": None}
    return {"mode": mode, "teacher": teacher, **cell, "flags": flags(runs), **gaps}


def overview_text(overview: dict) -> list[str]:
    """Format an overview as lines of Markdown."""
    return [f"## {overview_title(overview)}", "", *table(*overview_table(overview)), ""]


def overview_title(overview: dict) -> str:
    """Return the heading of an overview."""
    tag = f", tag {overview['tag']}" if overview["tag"] else ""
    return f"{printable(overview['student'])}{printable(tag)}: comparison of all modes"


def overview_table(overview: dict) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of an overview."""
    controls = any(row["defective_minus"] for row in overview["rows"])
    heads = [
        "mode",
        "teacher",
        "train / validation / test accuracy",
        "difference from baseline",
        "verdict",
    ]
    if controls:
        heads += ["defective minus this mode", "verdict"]
    rows = []
    for row in overview["rows"]:
        mode = "baseline" if row["mode"] == ALONE else row["mode"]
        cells = [mode, row["teacher"] or NOT_KNOWN, accuracies_text(row)]
        cells += gap_texts(row["minus_alone"])
        if controls:
            cells += gap_texts(row["defective_minus"])
        rows.append(cells)
    return heads, rows
