"""The cards of the students of a study, in short, for its page."""

from kd.reports.text import flow_text
from kd.studies import model_card_tables as tables
from kd.studies.model_card import Licences, describe
from kd.studies.model_card_text import DIRECT_USE, OUT_OF_SCOPE
from kd.studies.modes import is_mode
from kd.studies.page_figures import first_seeds, name_of
from kd.studies.page_parts import Details, Grid, Section, excerpt, shown
from kd.studies.runs import Run
from kd.system.errors import Problem, printable

MOST = 30


def cards(runs: list[Run]) -> Section:
    """Return the section of the cards: of the lowest seed of each student.

    Without distilled students, these are the cards of the networks trained on labels only.
    """
    chosen = first_seeds([run for run in runs if is_mode(run.role)] or runs)
    lines = [f"{DIRECT_USE} {OUT_OF_SCOPE.replace('**', '')}"]
    lines.append("evaluate.py --card RUN writes the whole card of a run: card.md and card.json.")
    if len(chosen) > MOST:
        lines.append(f"{MOST} of {len(chosen)} cards are shown.")
    details = [_card(run) for run in chosen[:MOST]]
    return Section("Cards of the networks", lines=lines, details=details)


def _card(run: Run) -> Details:
    try:
        card = describe(run.folder, Licences(), [], brief=True)
    except Problem as problem:
        return Details(name_of(run), lines=[f"No card: {excerpt(str(problem))}"])
    method = card["distillation"]
    items = tables.limits(card) + tables.preprocessing_lines(card["preprocessing"])
    if method:
        items += tables.method_lines(method, printable)
    items += [f"Licence, {line}" for line in tables.licence_lines(card["licences"], printable)]
    items.append(", ".join(f"{key} {value}" for key, value in card["software"].items() if value))
    items += [line.removeprefix("- ") for line in flow_text(card["data"]["flow"])]
    before, after = tables.repeat_texts(card, printable)
    title = name_of(run)
    return Details(
        title,
        items=[*map(shown, items), shown(before), shown(after)],
        grids=_grids(card, title),
        code=[card["repeat"]["command"]],
    )


def _grids(card: dict, title: str) -> list[Grid]:
    classes = [f"{name}: images (patients)" for name in card["model"]["classes"]]
    rows = tables.split_rows(card["data"], card["model"]["classes"])
    reason = card["data"]["patients_per_class"]["reason"]
    hashes = [[name, value] for name, value in card["hashes"].items()]
    found = [
        Grid.of(f"{title}: data ({reason})", [*tables.SPLIT_HEADER, *classes], rows),
        Grid.of(f"{title}: metrics beside teacher and network alone", *tables.results_table(card)),
        Grid.of(f"{title}: calibration", *tables.calibration_table(card)),
        Grid.of(f"{title}: hashes", ["hash of", "value"], hashes),
    ]
    if card["subgroups"]:
        found.append(Grid.of(f"{title}: subgroups", *tables.subgroups_table(card)))
    return found
