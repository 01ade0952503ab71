"""tables.json as Markdown that reads well in a terminal, too."""

from kd.reports.text import NOT_KNOWN
from kd.studies.cells import accuracies_text, gap_texts
from kd.studies.outputs import left_out_lines
from kd.studies.overview import overview_text
from kd.system.errors import printable
from kd.system.markdown import table as markdown_table


def markdown(result: dict) -> str:
    """All tables of tables.json as Markdown."""
    lines = []
    for protocol in result["protocols"]:
        lines += [f"# {printable(protocol['heading'])}", ""]
        if not protocol["tables"]:
            lines += ["No student yet: networks trained alone only.", ""]
        for overview in protocol["overviews"]:
            lines += overview_text(overview)
        for table in protocol["tables"]:
            lines += _table(table, result["margin"])
    lines += left_out_lines(result["left_out"])
    return "\n".join(lines)


def _table(table: dict, margin: float) -> list[str]:
    """One table with its evidence, and what is missing."""
    lines = [f"## {printable(table['title'])}", "", *_grid(table), ""]
    lines += [*_evidence(table, margin), ""]
    for report in table["reports"]:
        lines += _both_reports(report)
    if table["recipes"]:
        differing = "; ".join(table["recipes"])
        lines += [
            (
                "Settings differ inside this table (students, networks alone, teachers):"
                f" {differing}."
            ),
            "",
        ]
    if not table["missing"]:
        return [*lines, "No empty cells.", ""]
    count = len(table["missing"])
    lines += [f"{count} empty cells (run by seed). These commands fill them:", ""]
    lines += [f"    {command}" for command in table["missing"]]
    return [*lines, ""]


def _grid(table: dict) -> list[str]:
    """The thesis's shape: a row for the teachers themselves, then students by teachers.

    A cell is train / validation / test.
    """
    header = ["train / validation / test", *(row["teacher"] for row in table["teachers"])]
    rows = _with_published("the teacher itself", table["teachers"])
    for student in dict.fromkeys(cell["student"] for cell in table["cells"]):
        own = [cell for cell in table["cells"] if cell["student"] == student]
        rows += _with_published(student, own)
    return markdown_table(header, rows)


def _with_published(name: str, cells: list[dict]) -> list[list[str]]:
    """A row of the measured accuracies, and below it the published ones where there are any."""
    rows = [[name, *map(accuracies_text, cells)]]
    if any(cell["published"] for cell in cells):
        rows.append(["&nbsp; published", *map(_published_text, cells)])
    return rows


def _published_text(cell: dict) -> str:
    return " / ".join(cell["published"]) if cell["published"] else NOT_KNOWN


def _evidence(table: dict, margin: float) -> list[str]:
    """Each student against the same network alone and against its teacher, with intervals."""
    rows = []
    patients = 0
    for cell in table["cells"]:
        gaps = [cell["minus_alone"], cell["minus_teacher"]]
        for gap in gaps:
            patients = gap["patients"] if gap else patients
        if cell["n"]:
            names = f"{cell['student']} <- {cell['teacher']}"
            rows.append([names, *gap_texts(gaps[0]), *gap_texts(gaps[1])])
    header = ["student <- teacher", "minus the student alone", "says", "minus its teacher", "says"]
    return [
        "Test accuracy, differences with 95 % intervals:",
        "",
        *markdown_table(header, rows),
        "",
        (
            f"Intervals: variance between {patients} patients (paired cluster bootstrap) plus,"
            " where n > 1, variance between seeds; Student's t. Where n = 1, what another seed"
            f' would give is not in them. "As good" means a lower end above -{margin:g}.'
        ),
    ]


def _both_reports(report: dict) -> list[str]:
    """A printed classification report beside the measured averages."""
    printed = report["published"]
    rows = [[key, *printed[key]] for key in ("precision", "recall", "f1")]
    header = ["", *map(str, range(7))]
    lines = markdown_table(header, rows)
    lines[0] = lines[0].replace("|  |", "| |")  # as it has always been written
    return [
        (
            f"Classification report of {report['student']} <- {report['teacher']}, published"
            " (classes 0 to 6; ours are named, so only averages compare):"
        ),
        "",
        *lines,
        "",
        (
            f"accuracy {printed['accuracy']}, macro {' '.join(printed['macro'])}, weighted"
            f" {' '.join(printed['weighted'])}; measured: {_measured_text(report['measured'])}"
        ),
        "",
    ]


def _measured_text(measured: dict | None) -> str:
    if measured is None:
        return "not run"
    macro = " ".join(f"{value:.4f}" for value in measured["macro"])
    weighted = " ".join(f"{value:.4f}" for value in measured["weighted"])
    return f"accuracy {measured['accuracy']:.4f}, macro {macro}, weighted {weighted}"
