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
    lines = [f"## {printable(table['title'])}", "", *_grid(table), "", *_published_note(table)]
    if any(cell["n"] for cell in table["cells"]):
        lines += [*_evidence(table), "", *gaps_text(table["cells"], table["first_metrics"])]
    for note in table["notes"]:
        lines += [note, ""]
    for report in table["reports"]:
        lines += _both_reports(report)
    if table["recipes"]:
        differing = "; ".join(table["recipes"])
        lines += [
            (f"Settings differ within this table (students, baselines, teachers): {differing}."),
            "",
        ]
    if not table["missing"]:
        return [*lines, "No missing runs.", ""]
    count = len(table["missing"])
    changes = any(command.startswith("#") for command in table["missing"])
    note = " (what to change first is in the lines that begin with #)" if changes else ""
    lines += [f"Missing runs: {count}. These commands produce them{note}:", ""]
    lines += [f"    {command}" for command in table["missing"]]
    return [*lines, ""]


def _grid(table: dict) -> list[str]:
    """Return the thesis's layout: a row for the teachers, then students by teachers.

    A cell is train / validation / test.
    """
    header = ["train / validation / test accuracy", *(row["teacher"] for row in table["teachers"])]
    rows = _with_published("teacher", table["teachers"])
    for student in dict.fromkeys(cell["student"] for cell in table["cells"]):
        own = [cell for cell in table["cells"] if cell["student"] == student]
        rows += _with_published(student, own)
    return markdown_table(header, rows)


def _with_published(name: str, cells: list[dict]) -> list[list[str]]:
    """Return a row of measured accuracies and, if there are any, a row of published ones."""
    rows = [[name, *map(accuracies_text, cells)]]
    if any(cell["published"] for cell in cells):
        rows.append(["&nbsp; published", *map(_published_text, cells)])
    return rows


def _published_note(table: dict) -> list[str]:
    """Return a sentence if published figures stand below those of another kind of split."""
    cells = [*table["teachers"], *table["cells"]]
    if table["split"] == "thesis" or not any(cell["published"] for cell in cells):
        return []
    return [
        (
            "The published figures are from a split by image, in which a patient can be in training"
            f" and in test. The measured ones are from --split {table['split']}, so they answer"
            " another question and can be expected to be lower."
        ),
        "",
    ]


def _published_text(cell: dict) -> str:
    return " / ".join(cell["published"]) if cell["published"] else NOT_KNOWN


def _evidence(table: dict) -> list[str]:
    """Return the differences of each student to its baseline and its teacher, with intervals."""
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
    return [
        "Test accuracy, differences with 95 % intervals:",
        "",
        *markdown_table(header, rows),
    ]


def _both_reports(report: dict) -> list[str]:
    """Format a published classification report and the measured averages."""
    printed = report["published"]
    rows = [[key, *printed[key]] for key in ("precision", "recall", "f1")]
    header = ["", *map(str, range(7))]
    lines = markdown_table(header, rows)
    lines[0] = lines[0].replace("|  |", "| |")  # an empty heading is written as a single blank
    return [
        (
            f"Published classification report of {report['student']} <- {report['teacher']}."
            " It numbers the classes 0 to 6 without names, so only the averages are comparable:"
        ),
        "",
        *lines,
        "",
        (
            f"Published: accuracy {printed['accuracy']}, macro averages (precision, recall, F1)"
            f" {' '.join(printed['macro'])}, weighted averages {' '.join(printed['weighted'])}."
            f" Measured: {_measured_text(report['measured'])}."
        ),
        "",
    ]


def _measured_text(measured: dict | None) -> str:
    if measured is None:
        return "not run"
    macro = " ".join(f"{value:.4f}" for value in measured["macro"])
    weighted = " ".join(f"{value:.4f}" for value in measured["weighted"])
    return (
        f"accuracy {measured['accuracy']:.4f}, macro averages {macro}, weighted averages {weighted}"
    )
