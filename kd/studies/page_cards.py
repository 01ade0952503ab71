"""The cards of the students of a study, in short, for its page."""

from kd.config.layout import RunPaths
from kd.reports.text import flow_text
from kd.studies import model_card_tables as tables
from kd.studies.model_card import Licences, describe
from kd.studies.model_card_text import DIRECT_USE, OUT_OF_SCOPE
from kd.studies.modes import is_mode
from kd.studies.page_figures import first_seeds, name_of
from kd.studies.page_parts import Details, Grid, Section, excerpt, shown
from kd.studies.runs import Run
from kd.system.errors import Problem, printable
from kd.system.files import read_json

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
        card = describe(run.folder, _licences(run), [], brief=True)
    except Problem as problem:
        return Details(name_of(run), lines=[f"No card: {excerpt(str(problem))}"])
    before, after = tables.repeat_texts(card, printable)
    items = [*_items(card), f"{before} {card['repeat']['command']}. {after}"]
    title = name_of(run)
    return Details(title, items=[*map(shown, items)], grids=_grids(card, title))


def _licences(run: Run) -> Licences:
    """Return the licences in the card.json of a run, if it is of the same weights."""
    file = RunPaths(run.folder).card
    try:
        card = read_json(file) if file.is_file() else {}
        if card["hashes"]["weights"] == run.report["student"]["weights_hash"]:
            return Licences(str(card["licences"]["weights"]), str(card["licences"]["data"]))
    except (Problem, KeyError, TypeError):
        pass  # damaged, or of an earlier version, which had no licences
    return Licences()


def _items(card: dict) -> list[str]:
    """Return the facts of a card that are not in its tables."""
    model, method = card["model"], card["distillation"]
    flow = [line.removeprefix("- ") for line in flow_text(card["data"]["flow"])]
    software = [f"{key} {value}" for key, value in card["software"].items() if value]
    items = [
        f"Network: {model['architecture']}, {model['parameters']:,} parameters",
        f"Images: {'; '.join(flow) or 'what became of them was not recorded'}",
        f"Preprocessing. {'; '.join(tables.preprocessing_lines(card['preprocessing']))}",
        *(tables.method_lines(method, printable) if method else ["Trained on labels only"]),
        *(f"Licences. {line}" for line in tables.licence_lines(card["licences"], printable)),
        f"Software: {', '.join(software)}",
    ]
    return items + tables.limits(card)


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
