"""Formatting of tables.json as Markdown that is also readable in a terminal."""

from kd.reports.text import NOT_KNOWN
from kd.studies.cells import EXPLANATION, accuracies_text, gap_texts
from kd.studies.effects import effects_text
from kd.studies.metric_gaps import gaps_text
from kd.studies.outputs import left_out_lines
from kd.studies.overview import overview_text
from kd.studies.unfinished import unfinished_lines
from kd.system.errors import printable
from kd.system.markdown import table as markdown_table

PUBLISHED = "&nbsp; published"  # the first cell of a row of published figures


def markdown(result: dict) -> str:
    """Format all tables of tables.json as Markdown."""
    lines = []
    for protocol in result["protocols"]:
        lines += [f"# {printable(protocol['heading'])}", ""]
        for note in protocol["notes"]:
            lines += [note, ""]
        if not protocol["tables"]:
            lines += ["No distilled students yet, only networks trained alone.", ""]
        lines += effects_text(protocol["effects"])
        if protocol["tables"]:
            units = f"The test split has {protocol['units']}."
            lines += [f"{EXPLANATION} {protocol['margin_note']} {units}", ""]
        for overview in protocol["overviews"]:
            lines += overview_text(overview)
        for table in protocol["tables"]:
            lines += _table(table)
    lines += unfinished_lines(result["unfinished"])
    lines += left_out_lines(result["left_out"])
    return "\n".join(lines)


def _table(table: dict) -> list[str]:
    """Format one table with its evidence and the commands for missing runs."""
    lines = [f"## {printable(table['title'])}", "", *markdown_table(*grid(table)), ""]
    lines += _paragraph(published_note(table))
    if any(cell["n"] for cell in table["cells"]):
        lines += ["Test accuracy, differences with 95 % intervals:", ""]
        lines += [*markdown_table(*evidence(table)), ""]
        lines += gaps_text(table["cells"], table["first_metrics"])
    for note in table["notes"]:
        lines += [note, ""]
    for report in table["reports"]:
        lines += _both_reports(report)
    lines += _paragraph(recipes_note(table))
    if not table["missing"]:
        return [*lines, "No missing runs.", ""]
    lines += [missing_note(table), "", *(f"    {command}" for command in table["missing"])]
    return [*lines, ""]


def _paragraph(text: str) -> list[str]:
    return [text, ""] if text else []


def recipes_note(table: dict) -> str:
    """Return the settings that differ within a table as a sentence; empty if none do."""
    if not table["recipes"]:
        return ""
    differing = "; ".join(table["recipes"])
    return f"Settings differ within this table (students, baselines, teachers): {differing}."


def missing_note(table: dict) -> str:
    """Return what stands above the commands for missing runs, of which there are some."""
    count = len(table["missing"])
    changes = any(command.startswith("#") for command in table["missing"])
    note = " (what to change first is in the lines that begin with #)" if changes else ""
    return f"Missing runs: {count}. These commands produce them{note}:"


def grid(table: dict) -> tuple[list[str], list[list[str]]]:
    """Return header and rows in the thesis's layout: the teachers, then students by teachers.

    A cell is train / validation / test.
    """
    header = ["train / validation / test accuracy", *(row["teacher"] for row in table["teachers"])]
    rows = _with_published("teacher", table["teachers"])
    for student in dict.fromkeys(cell["student"] for cell in table["cells"]):
        own = [cell for cell in table["cells"] if cell["student"] == student]
        rows += _with_published(student, own)
    return header, rows


def _with_published(name: str, cells: list[dict]) -> list[list[str]]:
    """Return a row of measured accuracies and, if there are any, a row of published ones."""
    rows = [[name, *map(accuracies_text, cells)]]
    if any(cell["published"] for cell in cells):
        rows.append([PUBLISHED, *map(_published_text, cells)])
    return rows


def published_note(table: dict) -> str:
    """Return a warning if published figures stand below those of another kind of split, or ""."""
    cells = [*table["teachers"], *table["cells"]]
    if table["split"] == "thesis" or not any(cell["published"] for cell in cells):
        return ""
    return (
        "The published figures are from a split by image, in which a patient can be in training"
        f" and in test. The measured ones are from --split {table['split']}, so they answer"
        " another question and can be expected to be lower."
    )


def _published_text(cell: dict) -> str:
    return " / ".join(cell["published"]) if cell["published"] else NOT_KNOWN


def evidence(table: dict) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: differences of each student to its baseline and its teacher."""
    rows = []
    for cell in table["cells"]:
        if cell["n"]:
            names = f"{cell['student']} <- {cell['teacher']}"
            gaps = [*gap_texts(cell["minus_alone"]), *gap_texts(cell["minus_teacher"])]
            rows.append([names, *gaps])
    header = [
        "student <- teacher",
        "difference from baseline",
        "verdict",
        "difference from teacher",
        "verdict",
    ]
    return header, rows


def _both_reports(report: dict) -> list[str]:
    """Format a published classification report and the measured averages."""
    lines = markdown_table(*published_report(report))
    lines[0] = lines[0].replace("|  |", "| |")  # an empty heading is written as a single blank
    before, after = published_report_notes(report)
    return [before, "", *lines, "", after, ""]


def published_report(report: dict) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a published classification report."""
    rows = [[key, *report["published"][key]] for key in ("precision", "recall", "f1")]
    return ["", *map(str, range(7))], rows


def published_report_notes(report: dict) -> tuple[str, str]:
    """Return what stands above a published classification report, and the averages below it."""
    printed = report["published"]
    return (
        f"Published classification report of {report['student']} <- {report['teacher']}."
        " It numbers the classes 0 to 6 without names, so only the averages are comparable:",
        f"Published: accuracy {printed['accuracy']}, macro averages (precision, recall, F1)"
        f" {' '.join(printed['macro'])}, weighted averages {' '.join(printed['weighted'])}."
        f" Measured: {_measured_text(report['measured'])}.",
    )


def _measured_text(measured: dict | None) -> str:
    if measured is None:
        return "not run"
    macro = " ".join(f"{value:.4f}" for value in measured["macro"])
    weighted = " ".join(f"{value:.4f}" for value in measured["weighted"])
    return (
        f"accuracy {measured['accuracy']:.4f}, macro averages {macro}, weighted averages {weighted}"
    )
