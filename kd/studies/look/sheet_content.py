"""What is on the contact sheet of each class, and the files of the sheets."""

from collections import Counter

import numpy as np

from kd.config.layout import slug
from kd.reports import figures
from kd.reports.calibration import probabilities
from kd.runs.tensorboard import write_images
from kd.studies.look import sheets
from kd.studies.look.gradcam import Together
from kd.studies.look.summary import ROLES
from kd.studies.look.watch import Images
from kd.studies.networks import TOGETHER, Entry, Trio
from kd.system.files import make_folder


def write_sheets(trio: Trio, looks: dict[str, Together], images: Images) -> list[dict]:
    """Draw and write the sheet of every class with test images; return what they show."""
    folder = make_folder(trio.run / "look")
    classes = images.own.index.classes
    likely = {role: _probabilities(getattr(trio, role), own) for role, own in looks.items()}
    answers = {role: p.argmax(1) for role, p in likely.items()}
    changed = np.zeros(len(images.places), bool)
    for role in looks:
        changed |= answers[role] != answers["student"]
    files = _file_names(classes)
    entries = []
    drawn = {}
    for label in np.unique(images.labels).tolist():
        choice = sheets.choose(images.labels, changed, label)
        shown = _shown(choice, looks, likely, images)
        notes = _notes(trio, looks, choice, images)
        headings = [_heading(role, getattr(trio, role)) for role in looks]
        figure = sheets.sheet(shown, label, classes, headings, notes)
        drawn[files[label]] = figures.pixels(figure)
        figures.save(folder / f"{files[label]}.png", drawn[files[label]])
        entries.append(
            {
                "class": classes[label],
                "file": f"{files[label]}.png",
                "changed": choice.all_changed,
                "not_changed": choice.all_others,
                "shown_lines": [one.line for one in shown],
                "not_shown": choice.left_out,
            }
        )
    if trio.student.report["settings"].get("log_images", True):
        write_images(folder, drawn)
    return entries


def _file_names(classes: tuple[str, ...]) -> list[str]:
    """Return the name of each class's sheet; equal ones get the number of the class, from 1."""
    names = [f"look-{slug(name)}" for name in classes]
    times = Counter(name.casefold() for name in names)
    found = []
    for number, name in enumerate(names, 1):
        found.append(name if times[name.casefold()] == 1 else f"{name}-{number}")
    return found


def _probabilities(entry: Entry, own: Together) -> np.ndarray:
    """Return the probabilities [N, K], calibrated as in the network's predictions.csv.

    Those of teachers together are their mean at T = 1, as in the report of their student.
    """
    temperature = None
    if entry.kind != TOGETHER:
        temperature = entry.report["evidence"]["calibration"]["temperature"]
    return probabilities(own.logits, temperature or 1.0)


def _shown(
    choice: sheets.Choice,
    looks: dict[str, Together],
    likely: dict[str, np.ndarray],
    images: Images,
) -> list[sheets.Shown]:
    rows = choice.rows
    pixels = images.own.store.gather(images.rows[rows]).numpy()
    maps = {role: own.maps(images.size, rows) for role, own in looks.items()}
    found = []
    for number, row in enumerate(rows.tolist()):
        label = images.labels[row]
        answers = []
        for role in looks:
            p = likely[role][row]
            own = maps[role][number]
            answers.append(sheets.Answer(int(p.argmax()), float(p.max()), float(p[label]), own))
        line = images.line + int(images.places[row])
        boxes = (images.boxes or {}).get(row, ())
        is_changed = number < len(choice.changed)
        found.append(sheets.Shown(line, is_changed, pixels[number], answers, boxes))
    return found


def _heading(role: str, entry: Entry) -> str:
    report = entry.report
    taught = role == "teacher" and entry.kind == TOGETHER
    name = report["teacher"]["name"] if taught else report["student"]["name"]
    return f"{ROLES[role]}: {name}"


def _notes(
    trio: Trio, looks: dict[str, Together], choice: sheets.Choice, images: Images
) -> list[str]:
    """Return what a reader of a sheet has to know."""
    student = trio.student
    data = student.report["data"]
    of = len(images.own.splits.test)
    drawn = "" if len(images.places) == of else f" {len(images.places)} of {of} images,"
    others = [ROLES[role] for role in looks if role != "student"]
    changed = f"on which the answers of student and {' or '.join(others)} differ"
    shown = (
        f"{len(choice.changed)} of {choice.all_changed} images {changed} (changed) and"
        f" {len(choice.others)} of {choice.all_others} others"
    )
    if not others:
        shown = f"{len(choice.others)} of {choice.all_others} images"
    return [
        f"{student.caption}, seed {student.seed}. {data['name']}, test split,{drawn}"
        f" {images.size} px. Every map is for the class of the label, also where the answer is"
        f" another class. {layers_text(looks)}",
        f"Shown: {shown}, drawn at random (seed {sheets.SEED}); {choice.left_out} images of this"
        " class are not shown. line: in predictions.csv. p: calibrated probability of the answer;"
        " label: of the label's class.",
    ]


def layers_text(looks: dict[str, Together]) -> str:
    """Return which layer the maps of each network are of."""
    texts = []
    for role, own in looks.items():
        layers = []
        for one in own.members:
            height, width = one.maps.shape[1:]
            layers.append(f"{one.layer} ({height} x {width} positions)")
        texts.append(f"{ROLES[role]} {' and '.join(dict.fromkeys(layers))}")
    return f"Maps at {', '.join(texts)}."
