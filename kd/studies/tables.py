"""Tables of studies in the layout of the thesis.

The published numbers are next to the measured ones, with the evidence for each claim.
"""

import tomllib
from pathlib import Path

import numpy as np

from kd.reports import figures
from kd.reports.headline import names_of
from kd.reports.verdicts import judge
from kd.studies.cells import of_runs
from kd.studies.effects import effects
from kd.studies.flags import flags
from kd.studies.metric_gaps import metric_gaps
from kd.studies.missing import missing_commands
from kd.studies.modes import stop_accuracy
from kd.studies.outputs import write_outputs
from kd.studies.overview import overviews
from kd.studies.page_figures import heat_map_file
from kd.studies.runs import gather
from kd.studies.study import Study
from kd.studies.study_page import write_page
from kd.studies.tables_text import markdown
from kd.studies.teachers import teacher_notes, teacher_row

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


def write_tables(root: Path, margin: float | None = None, with_images: bool = False) -> dict:
    """Print the tables of all runs below `root`; write tables.md, tables.json and heat maps.

    There is one heat map per table, and study.html, a page with all of it to hand on. `margin`
    replaces the one that the runs recorded; `with_images` shows images of patients on the page.
    Returns the JSON.
    """
    groups, left_out, unfinished = gather(root, "--tables")
    result = {
        "schema_version": SCHEMA_VERSION,
        "protocols": [_protocol(Study(runs, unfinished), margin) for runs in groups],
        "unfinished": [run.entry() for run in unfinished],
        "left_out": left_out,
    }
    count = _write_heat_maps(root, result["protocols"])
    write_outputs(root, "tables", markdown(result), result, f"heat maps ({count})")
    write_page(root, result, groups, with_images)
    return result


def _protocol(study: Study, given: float | None) -> dict:
    """Return all tables of one study as plain values."""
    margin, note = study.margin(given)
    return {
        "heading": study.heading,
        "margin": margin,
        "margin_note": note,
        "notes": study.notes,
        "units": study.units,
        "seeds": study.seeds,
        "effects": effects(study),
        "tables": [_table(study, mode, tag, margin) for mode, tag in study.tables()],
        "overviews": overviews(study),
    }


def _write_heat_maps(root: Path, protocols: list[dict]) -> int:
    """Write tables[-NUMBER]-MODE[-TAG].png for each table and return their number."""
    count = 0
    for number, protocol in enumerate(protocols):
        for table in protocol["tables"]:
            file = heat_map_file(root, table, number if len(protocols) > 1 else None)
            figure = figures.heat_map(table, protocol["heading"])
            figures.save(file, figures.pixels(figure))
            count += 1
    return count


def _table(study: Study, mode: str, tag: str, margin: float) -> dict:
    """Return one table as plain values."""
    teachers, _ = study.pairs(mode, tag)
    evidence = study.first.report["evidence"]
    printed = _printed(study, mode, tag)
    cells = _cells(study, mode, tag, printed["students"])
    _compare(study, cells, (mode, tag), margin)
    rows = []
    for teacher in teachers:
        own = teacher_row(study, mode, tag, teacher)
        number = printed["teachers"].get(teacher)
        rows.append({"teacher": teacher, **own, "published": number})
    return {
        "mode": mode,
        "tag": tag,
        "split": study.first.protocol.split,
        "title": f"{TITLES.get(mode, mode)} {tag}" if tag else TITLES.get(mode, mode),
        "teachers": rows,
        "cells": cells,
        "first_metrics": [name for name in names_of(evidence) if name != "accuracy"],
        "notes": teacher_notes(study, mode, tag),
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


def _cells(study: Study, mode: str, tag: str, printed: dict) -> list[dict]:
    """Return the cells of a table as plain values, each with its published result if there is one.

    printed  student -> teacher -> the published result
    """
    teachers, students = study.pairs(mode, tag)
    cells = []
    for student in students:
        for teacher in teachers:
            runs = study.at(mode, tag, teacher, student)
            number = printed.get(teacher, {}).get(student)
            unfinished = study.unfinished_at(mode, tag, teacher, student)
            entry = {"student": student, "teacher": teacher, **of_runs(runs, unfinished)}
            cells.append(entry | {"flags": flags(runs), "published": number})
    return cells


def _compare(study: Study, cells: list[dict], key: tuple[str, str], margin: float) -> None:
    """Add to each cell of the table `key` (mode, tag) its differences from baseline and teacher."""
    alone = []
    teachers = []
    for cell in cells:
        runs = study.at(*key, cell["teacher"], cell["student"])
        baseline = study.alone(cell["student"], key[1])
        alone.append(study.minus(runs, baseline, cell["student"]))
        teachers.append(study.minus_teacher(runs, cell["teacher"]))
    for cell, from_alone, from_teacher in zip(cells, judge(alone), judge(teachers, margin)):
        cell["minus_alone"] = from_alone
        cell["minus_teacher"] = from_teacher
    for cell in cells:
        runs = study.at(*key, cell["teacher"], cell["student"])
        cell["metrics_minus_alone"] = metric_gaps(runs, study.alone(cell["student"], key[1]))
        cell["metrics_minus_teacher"] = metric_gaps(runs, study.taught_by(runs))


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
