"""Tables of studies in the layout of the thesis.

The published numbers are next to the measured ones, with the evidence for each claim.
"""

import tomllib
from pathlib import Path

import numpy as np

from kd.reports import figures
from kd.studies.cells import means, of_runs
from kd.studies.missing import missing_commands
from kd.studies.modes import stop_accuracy, teacher_role
from kd.studies.outputs import write_outputs
from kd.studies.overview import overviews
from kd.studies.runs import SPLITS, gather
from kd.studies.study import Study
from kd.studies.tables_text import markdown

SCHEMA_VERSION = 1
PUBLISHED = Path(__file__).resolve().parents[2] / "configs" / "published.toml"
TITLES = {
    "normal": "9.3.1 Normal KD",
    "reverse": "9.3.2 Reverse KD",
    "defective": "9.3.3 Defective KD",
}


def published() -> dict:
    """Return the thesis's numbers as they are printed: strings, so that no digit is lost."""
    return tomllib.loads(PUBLISHED.read_text("utf-8"), parse_float=str)


def write_tables(root: Path, margin: float) -> dict:
    """Print the tables of all runs below `root`; write tables.md, tables.json and heat maps.

    There is one heat map per table. `margin` is the difference within which a student is as good as
    its teacher. Returns the JSON.
    """
    groups, left_out, unfinished = gather(root, "--tables")
    result = {
        "schema_version": SCHEMA_VERSION,
        "margin": margin,
        "protocols": [_protocol(Study(runs, unfinished), margin) for runs in groups],
        "unfinished": [run.entry() for run in unfinished],
        "left_out": left_out,
    }
    count = _write_heat_maps(root, result["protocols"])
    write_outputs(root, "tables", markdown(result), result, f"heat maps ({count})")
    return result


def _protocol(study: Study, margin: float) -> dict:
    """Return all tables of one study as plain values."""
    return {
        "heading": study.heading,
        "seeds": study.seeds,
        "tables": [_table(study, mode, tag, margin) for mode, tag in study.tables()],
        "overviews": overviews(study),
    }


def _write_heat_maps(root: Path, protocols: list[dict]) -> int:
    """Write tables[-NUMBER]-MODE[-TAG].png for each table and return their number."""
    count = 0
    for number, protocol in enumerate(protocols):
        for table in protocol["tables"]:
            words = ["tables", str(number), table["mode"], table["tag"]]
            if len(protocols) == 1:
                del words[1]
            name = "-".join(word for word in words if word)
            figure = figures.heat_map(table, protocol["heading"])
            figures.save(root / f"{name}.png", figures.pixels(figure))
            count += 1
    return count


def _table(study: Study, mode: str, tag: str, margin: float) -> dict:
    """Return one table as plain values."""
    teachers, students = study.pairs(mode, tag)
    printed = _printed(study, mode, tag)
    cells = []
    for student in students:
        for teacher in teachers:
            number = printed["students"].get(teacher, {}).get(student)
            cells.append(_cell(study, (mode, tag, teacher, student), number, margin))
    rows = []
    for teacher in teachers:
        own = _of_teacher(study, mode, tag, teacher)
        number = printed["teachers"].get(teacher)
        rows.append({"teacher": teacher, **own, "published": number})
    return {
        "mode": mode,
        "tag": tag,
        "title": f"{TITLES.get(mode, mode)} {tag}" if tag else TITLES.get(mode, mode),
        "teachers": rows,
        "cells": cells,
        "recipes": _unexpected_differences(study.recipes(mode, tag), mode),
        "missing": missing_commands(study, mode, tag),
        "reports": [_both_reports(study, report) for report in printed["reports"]],
    }


def _printed(study: Study, mode: str, tag: str) -> dict:
    """Return the thesis's numbers of a table: `students`, `teachers` and `reports`.

    They are empty for a table that the thesis does not have.
    """
    if study.first.report["data"]["name"] != "mura" or mode not in TITLES or tag:
        return {"students": {}, "teachers": {}, "reports": []}
    every = published()
    reports = [report for report in every["reports"] if report["mode"] == mode]
    return {"teachers": {}, **every[mode], "reports": reports}


def _cell(study: Study, key: tuple[str, str, str, str], number, margin: float) -> dict:
    """Return one cell as plain values.

    `key` is (mode, tag, teacher, student), `number` the published result.
    """
    _, tag, teacher, student = key
    runs = study.at(*key)
    return {
        "student": student,
        "teacher": teacher,
        **of_runs(runs, study.unfinished_at(*key)),
        "published": number,
        "minus_alone": study.gap(runs, study.alone(student, tag)),
        "minus_teacher": study.gap_to_teacher(runs, margin),
    }


def _of_teacher(study: Study, mode: str, tag: str, teacher: str) -> dict:
    """Return a teacher's accuracies: from its own runs, otherwise from its students' reports.

    Of the students' reports, one per seed is used.
    """
    own = study.teacher_runs(mode, tag, teacher)
    if own is not None:
        role = teacher_role(mode)
        return of_runs(own, study.unfinished_at(role, tag, "", teacher))
    reported = {}
    for run in study.students_of(mode, tag):
        if run.teacher == teacher and run.report["teacher"]["members"]:
            reported[run.seed] = run.report["teacher"]
    accuracies = {}
    for split in SPLITS:
        accuracies[split] = [one.get(f"{split}_accuracy") for one in reported.values()]
    return means(accuracies, len(reported))


def _unexpected_differences(recipes: list[str], mode: str) -> list[str]:
    """Return the differences without the one that is always there.

    Only the teachers of a defective table are stopped early; networks trained alone never are.
    """
    expected = f"stop_at_val_accuracy: {stop_accuracy(mode)}, None"
    return [text for text in recipes if text != expected]


def _both_reports(study: Study, printed: dict) -> dict:
    """Return a classification report of the thesis and the measured one (means over seeds)."""
    runs = study.at(printed["mode"], "", printed["teacher"], printed["student"])
    reports = [run.report["classification_report"] for run in runs.values()]
    measured = None
    if reports:
        measured = {key: _averages(reports, f"{key} avg") for key in ("macro", "weighted")}
        measured["accuracy"] = float(np.mean([report["accuracy"] for report in reports]))
    return {
        "teacher": printed["teacher"],
        "student": printed["student"],
        "published": printed,
        "measured": measured,
    }


def _averages(reports: list[dict], row: str) -> list[float]:
    """Return the means over reports of a row's precision, recall and f1-score."""
    averages = []
    for column in ("precision", "recall", "f1-score"):
        averages.append(float(np.mean([report[row][column] for report in reports])))
    return averages
