"""Studies as tables: the thesis's own shape, each published figure beside the measured one, and the
evidence of each claim.
"""

import tomllib
from pathlib import Path

import numpy as np

from kd.methods import STRATEGIES
from kd.reports import figures
from kd.reports.statistics import against_alone, against_teacher
from kd.studies.cells import NOT_RUN, figures_text, gap_text, means, of_runs
from kd.studies.overview import overview_text, overviews
from kd.studies.study import PARTS, Study, gather
from kd.system.console import log
from kd.system.errors import printable
from kd.system.files import write_json, write_text

SCHEMA_VERSION = 1
PUBLISHED = Path(__file__).resolve().parents[2] / "configs" / "published.toml"
TITLES = {
    "normal": "9.3.1 Normal KD",
    "reverse": "9.3.2 Reverse KD",
    "defective": "9.3.3 Defective KD",
}


def published() -> dict:
    """The thesis's figures as they are printed: strings, so that no digit is lost."""
    return tomllib.loads(PUBLISHED.read_text("utf-8"), parse_float=str)


def write_tables(root: Path, margin: float) -> dict:
    """Print the tables of all runs below `root`; write tables.md, tables.json and a heat map for
    each table. Returns the JSON.
    """
    studies, left_out = gather(root, "--tables")
    result = {
        "schema_version": SCHEMA_VERSION,
        "margin": margin,
        "protocols": [],
        "left_out": left_out,
    }
    for number, study in enumerate(studies):
        tables = [_table(study, mode, tag, margin) for mode, tag in study.tables()]
        result["protocols"].append(
            {
                "heading": study.heading,
                "seeds": study.seeds,
                "tables": tables,
                "overviews": overviews(study),
            }
        )
        for table in tables:
            name = "-".join(
                filter(
                    None,
                    (
                        "tables",
                        str(number) if len(studies) > 1 else "",
                        table["mode"],
                        table["tag"],
                    ),
                )
            )
            figures.save(
                root / f"{name}.png", figures.pixels(figures.heat_map(table, study.heading))
            )
    tell(
        root,
        "tables",
        markdown(result),
        result,
        f"{sum(len(p['tables']) for p in result['protocols'])} heat maps",
    )
    return result


def tell(root: Path, name: str, text: str, result: dict, pictures: str) -> None:
    """Write NAME.md and NAME.json, and print the text; `pictures` says what else was written."""
    write_text(root / f"{name}.md", text)
    write_json(root / f"{name}.json", result)
    log(text)
    log(f"written: {root}/{name}.md, {name}.json and {pictures}")


def _table(study: Study, mode: str, tag: str, margin: float) -> dict:
    """One table as plain values."""
    teachers, students = study.pairs(mode, tag)
    printed = {}
    if study.first.report["data"]["name"] == "mura" and mode in TITLES and not tag:
        printed = published()[mode] | {
            "reports": [one for one in published()["reports"] if one["mode"] == mode]
        }
    cells = []
    for student in students:
        for teacher in teachers:
            runs = study.at(mode, tag, teacher, student)
            alone, above = study.gap_to_alone(runs, tag), study.gap_to_teacher(runs)
            cells.append(
                {
                    "student": student,
                    "teacher": teacher,
                    **of_runs(runs),
                    "published": printed.get("students", {}).get(teacher, {}).get(student),
                    "minus_alone": alone and alone | {"says": against_alone(alone)},
                    "minus_teacher": above and above | {"says": against_teacher(above, margin)},
                }
            )
    rows = [
        {
            "teacher": teacher,
            **_of_teacher(study, mode, tag, teacher),
            "published": printed.get("teachers", {}).get(teacher),
        }
        for teacher in teachers
    ]
    return {
        "mode": mode,
        "tag": tag,
        "title": " ".join(filter(None, (TITLES.get(mode, mode), tag))),
        "teachers": rows,
        "cells": cells,
        "recipes": _told(study.recipes(mode, tag), mode),
        "missing": study.missing(mode, tag),
        "reports": [_report(study, one) for one in printed.get("reports", [])],
    }


def _of_teacher(study: Study, mode: str, tag: str, teacher: str) -> dict:
    """A teacher's accuracies: of its own runs, or where it has none as its students' reports tell
    them, by seed.
    """
    own = study.teacher_runs(mode, tag, teacher)
    if own is not None:
        return of_runs(own)
    told = {
        run.seed: run.report["teacher"]
        for run in study.runs.values()
        if (run.role, run.tag, run.teacher) == (mode, tag, teacher)
        and run.report["teacher"]["members"]
    }
    return means(
        {part: [one.get(f"{part}_accuracy") for one in told.values()] for part in PARTS}, len(told)
    )


def _told(recipes: list[str], mode: str) -> list[str]:
    """Without what is always so: only the teachers of a defective table are stopped, the networks
    alone never.
    """
    expected = f"stop_at_val_accuracy: {STRATEGIES[mode].teacher.stop_at}, None"
    return [text for text in recipes if text != expected]


def _report(study: Study, printed: dict) -> dict:
    """One of the thesis's classification reports beside ours (means over seeds)."""
    runs = study.at(printed["mode"], "", printed["teacher"], printed["student"]).values()
    measured = None
    if runs:
        own = [run.report["classification_report"] for run in runs]
        measured = {
            key: [
                float(np.mean([one[f"{key} avg"][figure] for one in own]))
                for figure in ("precision", "recall", "f1-score")
            ]
            for key in ("macro", "weighted")
        }
        measured["accuracy"] = float(np.mean([one["accuracy"] for one in own]))
    return {
        "teacher": printed["teacher"],
        "student": printed["student"],
        "published": printed,
        "measured": measured,
    }


def markdown(result: dict) -> str:
    """All tables as Markdown that reads well in a terminal, too."""
    lines = []
    for protocol in result["protocols"]:
        lines += [f"# {printable(protocol['heading'])}", ""]
        if not protocol["tables"]:
            lines += ["No student yet: networks trained alone only.", ""]
        lines += [line for found in protocol["overviews"] for line in overview_text(found)]
        for table in protocol["tables"]:
            lines += [
                f"## {printable(table['title'])}",
                "",
                *_grid(table),
                "",
                *_evidence(table, result["margin"]),
                "",
            ]
            lines += [line for one in table["reports"] for line in _both_reports(one)]
            if table["recipes"]:
                differing = "; ".join(table["recipes"])
                lines += [
                    (
                        "Settings differ inside this table (students, networks alone, teachers):"
                        f" {differing}."
                    ),
                    "",
                ]
            count = len(table["missing"])
            lines += (
                [
                    f"{count} empty cells (run by seed). These commands fill them:",
                    "",
                    *(f"    {command}" for command in table["missing"]),
                    "",
                ]
                if count
                else ["No empty cells.", ""]
            )
    if result["left_out"]:
        lines += ["# Left out", "", *(f"- {printable(text)}" for text in result["left_out"]), ""]
    return "\n".join(lines)


def _grid(table: dict) -> list[str]:
    """The thesis's shape: a row for the teachers themselves, then students by teachers; train /
    validation / test.
    """
    teachers = [row["teacher"] for row in table["teachers"]]
    lines = [
        f"| train / validation / test | {' | '.join(f'{name}' for name in teachers)} |",
        "|---" * (len(teachers) + 1) + "|",
        f"| the teacher itself | {' | '.join(map(figures_text, table['teachers']))} |",
    ]
    if any(row["published"] for row in table["teachers"]):
        lines.append(f"| &nbsp; published | {' | '.join(map(_printed, table['teachers']))} |")
    for student in dict.fromkeys(cell["student"] for cell in table["cells"]):
        own = [cell for cell in table["cells"] if cell["student"] == student]
        lines.append(f"| {student} | {' | '.join(map(figures_text, own))} |")
        if any(cell["published"] for cell in own):
            lines.append(f"| &nbsp; published | {' | '.join(map(_printed, own))} |")
    return lines


def _printed(cell: dict) -> str:
    return " / ".join(cell["published"]) if cell["published"] else NOT_RUN


def _evidence(table: dict, margin: float) -> list[str]:
    """Each student beside the same network alone and beside its teacher, with 95 % intervals."""
    lines = [
        "Test accuracy, differences with 95 % intervals:",
        "",
        "| student <- teacher | minus the student alone | says | minus its teacher | says |",
        "|---|---|---|---|---|",
    ]
    for cell in table["cells"]:
        if cell["n"]:
            gaps = [
                entry for key in ("minus_alone", "minus_teacher") for entry in gap_text(cell[key])
            ]
            lines.append(f"| {cell['student']} <- {cell['teacher']} | {' | '.join(gaps)} |")
    found = [
        gap
        for cell in table["cells"]
        for gap in (cell["minus_alone"], cell["minus_teacher"])
        if gap
    ]
    patients = found[0]["patients"] if found else 0
    lines += [
        "",
        (
            f"Intervals: variance between {patients} patients (paired cluster bootstrap) plus,"
            " where n > 1, variance between seeds; Student's t. Where n = 1, what another seed"
            f' would give is not in them. "As good" means a lower end above -{margin:g}.'
        ),
    ]
    return lines


def _both_reports(one: dict) -> list[str]:
    """A printed classification report beside the measured averages."""
    printed, own = one["published"], one["measured"]
    lines = [
        (
            f"Classification report of {one['student']} <- {one['teacher']}, published (classes 0"
            " to 6; ours are named, so only averages compare):"
        ),
        "",
        "| | 0 | 1 | 2 | 3 | 4 | 5 | 6 |",
        "|---" * 8 + "|",
    ]
    lines += [f"| {key} | {' | '.join(printed[key])} |" for key in ("precision", "recall", "f1")]
    lines += [
        "",
        f"accuracy {printed['accuracy']}, macro {' '.join(printed['macro'])}, "
        f"weighted {' '.join(printed['weighted'])}; "
        + (
            "measured: not run"
            if own is None
            else f"measured: accuracy {own['accuracy']:.4f}, macro "
            + " ".join(f"{value:.4f}" for value in own["macro"])
            + ", weighted "
            + " ".join(f"{value:.4f}" for value in own["weighted"])
        ),
        "",
    ]
    return lines
