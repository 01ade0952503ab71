"""One page to hand on: study.html with all tables, figures and cards of a study.

The page is made from the values of tables.json and the reports of the runs. It loads nothing and
runs nothing: figures are data URIs, and there is no script.
"""

from pathlib import Path

from kd.studies import effects, overview, tables_text
from kd.studies.cells import EXPLANATION
from kd.studies.metric_gaps import OTHERS, gaps_table
from kd.studies.modes import ALONE
from kd.studies.page_cards import cards
from kd.studies.page_figures import Figures, heat_map, images_of_patients, run_figures
from kd.studies.page_parts import Details, Grid, Section, shown, slugs
from kd.studies.page_runs import metrics_of_runs, runs_commands, settings_of_runs
from kd.studies.page_words import how_to_read
from kd.studies.runs import Run
from kd.studies.unfinished import entry_line
from kd.system.console import log
from kd.system.errors import Problem, counted
from kd.system.files import write_text

NAME = "study.html"
TEMPLATE = "study_page.html.jinja"
_SIZE = "@@@@@@@@@"  # as long as the text that replaces it
FEW = 12  # details with at most as many rows are open from the start


def write_page(root: Path, result: dict, groups: list[list[Run]], with_images: bool) -> None:
    """Write study.html to `root`, or say why not.

    result       the content of tables.json
    groups       the finished runs of each of its protocols
    with_images  whether to show images of patients, those in RUN/look

    Without jinja2 there is a warning; with `with_images` that is a Problem, as the page was asked
    for. Raises Problem (74) if the file cannot be written.
    """
    try:
        import jinja2
    except ImportError:
        missing = (
            f"{NAME} cannot be written: jinja2 is not installed. Run 'pip install -r"
            " requirements.txt'."
        )
        if with_images:
            raise Problem(missing) from None
        log(f"warning: {missing}")
        return
    html = render(jinja2, root, result, groups, with_images)
    write_text(root / NAME, html)
    log(f"written: {root}/{NAME} ({size_text(len(html.encode()))}), a page to hand on")


def render(jinja2, root: Path, result: dict, groups: list[list[Run]], with_images: bool) -> str:
    """Return the page as HTML. `jinja2` is the module, which is imported only where it is used."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = Figures()
    chapters = []
    for number, (protocol, runs) in enumerate(zip(result["protocols"], groups), 1):
        chapters.append(_study(root, number, len(groups), protocol, runs, figures, with_images))
    chapters += _unfinished(root, result)
    runs = sum(map(len, groups))
    html = environment.get_template(TEMPLATE).render(
        title=_title(groups),
        summary=_summary(runs, result),
        size=_SIZE,
        words=how_to_read(result["protocols"]),
        chapters=slugs(chapters),
        left_out=figures.left_out(),
        with_images=with_images,
    )
    size = size_text(len(html.encode())).rjust(len(_SIZE))
    return html.replace(_SIZE, size)


def size_text(count: int) -> str:
    """Return a number of bytes in MB: `0.35 MB`."""
    return f"{count / 1e6:.2f} MB"


def _title(groups: list[list[Run]]) -> str:
    names = dict.fromkeys(runs[0].protocol.data for runs in groups)
    return f"Knowledge distillation on {', '.join(map(shown, names))}"


def _summary(runs: int, result: dict) -> str:
    unfinished = len(result["unfinished"])
    parts = [counted(runs, "finished run", "finished runs")]
    if unfinished:
        parts.append(counted(unfinished, "run without a report", "runs without a report"))
    if result["left_out"]:
        parts.append(f"{len(result['left_out'])} excluded")
    return ", ".join(parts)


def _study(
    root: Path,
    number: int,
    count: int,
    protocol: dict,
    runs: list[Run],
    figures: Figures,
    with_images: bool,
) -> Section:
    """Return all sections of one protocol."""
    sections = [*_results(protocol)]
    for table in protocol["tables"]:
        sections.append(_table(root, table, number - 1 if count > 1 else None, figures))
    sections += [
        metrics_of_runs(runs),
        run_figures(runs, figures),
        cards(runs),
        *images_of_patients(runs, with_images, figures),
        settings_of_runs(runs),
        runs_commands(root, runs),
    ]
    notes = [shown(note.strip("*")) for note in protocol["notes"]]
    if not protocol["tables"]:
        notes.append("No distilled students yet, only networks trained alone.")
    prefix = f"Study {number}: " if count > 1 else "The study: "
    own = runs[0].protocol
    return Section(
        f"{prefix}{shown(own.data)}, {own.image_size} px",
        lines=[shown(protocol["heading"]) + "."],
        warnings=notes,
        sections=sections,
    )


def _results(protocol: dict) -> list[Section]:
    """Return the sections of the primary result and of the comparisons of all modes."""
    sections = []
    if protocol["effects"]:
        families = protocol["effects"]
        grids = []
        for family in families:
            alone = all(row["minus"] == ALONE for row in family["rows"])
            other = "baseline" if alone else "other modes"
            caption = f"Mean difference in test accuracy from the {other}, 95 % interval, verdict"
            grids.append(Grid.of(caption, *effects.effects_table(family)))
        left_out = [shown(text) for one in families for text in effects.left_out_texts(one)]
        sections.append(Section(effects.TITLE, lines=[effects.EXPLANATION, *left_out], grids=grids))
    if protocol["tables"]:
        lines = [EXPLANATION, protocol["margin_note"]]
        lines.append(f"The test split has {protocol['units']}.")
        sections.append(Section("What the differences mean", lines=lines))
    for one in protocol["overviews"]:
        title = shown(overview.overview_title(one))
        caption = f"{title} (test accuracy; differences with 95 % intervals)"
        sections.append(Section(title, grids=[Grid.of(caption, *overview.overview_table(one))]))
    return sections


def _table(root: Path, table: dict, number: int | None, figures: Figures) -> Section:
    """Return the section of one table with its evidence and the commands for missing runs."""
    title = shown(table["title"])
    header, rows = tables_text.grid(table)
    rows = [[cell.replace("&nbsp; ", "") for cell in row] for row in rows]
    grids = [Grid.of(f"{title}: accuracies, mean ± standard deviation over seeds", header, rows)]
    details = []
    if any(cell["n"] for cell in table["cells"]):
        caption = f"{title}: differences in test accuracy, with 95 % intervals and verdicts"
        grids.append(Grid.of(caption, *tables_text.evidence(table)))
        details = _other_metrics(table, title)
    lines = [tables_text.published_note(table), *table["notes"]]
    after = [tables_text.recipes_note(table)]
    for report in table["reports"]:
        before, averages = tables_text.published_report_notes(report)
        grids.append(Grid.of(before, *tables_text.published_report(report)))
        after.append(averages)
    if table["missing"]:
        commands = [shown(command, root) for command in table["missing"]]
        summary = tables_text.missing_note(table).removesuffix(":")
        details.append(Details(shown(summary), code=commands))
    else:
        after.append("No missing runs.")
    return Section(
        f"Table {title}",
        lines=[shown(line, root) for line in lines if line],
        grids=grids,
        figures=figures.take([heat_map(root, table, number)]),
        after=[shown(line, root) for line in after if line],
        details=details,
    )


def _other_metrics(table: dict, title: str) -> list[Details]:
    """Return the differences in the first metrics, and those in all of them."""
    every = {}
    for cell in table["cells"]:
        for key in OTHERS:
            every |= {name: None for name, gap in cell[key].items() if gap["value"] is not None}
    found = []
    for words, names in (("other", table["first_metrics"]), ("all", list(every))):
        grids = []
        for key, other in OTHERS.items():
            header, rows = gaps_table(table["cells"], names, key)
            caption = f"{title}, {words} metrics: minus {other}, 95 % intervals, no verdicts"
            if rows:
                grids.append(Grid.of(caption, header, rows))
        if grids:
            opened = words == "other" and len(grids[0].rows) <= FEW
            found.append(Details(f"Differences in {words} metrics", grids=grids, opened=opened))
    return found


def _unfinished(root: Path, result: dict) -> list[Section]:
    """Return what is missing: runs without a report, and runs that were excluded."""
    sections = []
    if result["unfinished"]:
        lines = [shown(entry_line(entry), root) for entry in result["unfinished"]]
        sections.append(Section("Unfinished runs", items=lines))
    if result["left_out"]:
        lines = [shown(text, root) for text in result["left_out"]]
        sections.append(Section("Excluded", items=lines))
    return sections
