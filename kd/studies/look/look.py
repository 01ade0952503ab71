"""Where teacher, student and the student's network alone look: maps, agreement and sheets."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from kd.config.evaluate_settings import Judging
from kd.config.layout import RunPaths, out_of, slug
from kd.data.boxes import Box, read_boxes
from kd.data.dataset import Dataset
from kd.data.views import Views
from kd.models import Classifier
from kd.reports import figures
from kd.reports.calibration import probabilities
from kd.reports.resampling import Resamples, draw
from kd.reports.text import units_text
from kd.runs.tensorboard import write_images
from kd.studies.images import check_finite, own_images_by_size
from kd.studies.look import gradcam, sheets
from kd.studies.look.agreement import correlations, pointing
from kd.studies.look.gradcam import Looked, Together
from kd.studies.look.randomized import ALL, cascade
from kd.studies.look.randomized import SEED as RANDOM_SEED
from kd.studies.look.summary import POINTING, RANDOM, ROLES, Scores, markdown, summarise
from kd.studies.networks import TOGETHER, Entry, Member, Trio, load_member, trios
from kd.studies.outputs import write_outputs
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.errors import Problem, counted
from kd.system.files import make_folder
from kd.system.seeds import random_stream

SCHEMA_VERSION = 1
MOST = 2000  # test images; of more, so many are drawn
CONTROLS = 256  # images on which networks with random weights are looked at
SEED = 0
_DRAWN = 11  # key of `random_stream`


@dataclass(frozen=True)
class Images:
    """The test images that are looked at, N of them.

    datasets  the test split at the image size of each network
    size      that of the students; all maps are compared at this size
    places    the positions of the images in the test split [N], ascending
    few       the positions among these of the images for networks with random weights [n]
    boxes     position among these -> boxes in pixels at `size`; None if the data set has none
    line      the line in predictions.csv of the first test image
    """

    datasets: dict[int, Dataset]
    size: int
    places: np.ndarray
    few: np.ndarray
    boxes: dict[int, list[Box]] | None
    line: int

    @property
    def own(self) -> Dataset:
        return self.datasets[self.size]

    @cached_property
    def rows(self) -> np.ndarray:
        """The row of each image in the index [N]."""
        return self.own.splits.test[self.places]

    @cached_property
    def labels(self) -> np.ndarray:
        return self.own.index.labels[self.rows]

    @cached_property
    def resamples(self) -> Resamples:
        return draw(np.array([self.own.index.unit(row) for row in self.rows]))

    def views(self, size: int, how: Judging, places: np.ndarray) -> Views:
        """Return images at a size, by their positions among these."""
        dataset = self.datasets[size]
        rows = dataset.splits.test[self.places[places]]
        return dataset.views("test", pick_device(how.device), rows, batch_size=how.batch_size)


def write_look(runs: list[Path], how: Judging) -> dict:
    """Compare where runs, their teachers and their networks trained alone look in test images.

    Writes look.md, look.json and look-CLASS.png to RUN/look of each run, the sheets also to
    TensorBoard; for several runs, also look.md and look.json over seeds to the output folder
    (--out) of the first one. Returns the JSON that was written last. Raises Problem for runs with
    different test images, for images that are gone, and for a student without a map with several
    positions. Networks that are missing or have no such map are reported and left out.
    """
    if how.dataset is not None:
        raise Problem(
            f"--dataset {how.dataset} cannot be combined with --look, which uses the runs' own test"
            " split. Remove --dataset."
        )
    found = trios(runs, "--look")
    images = open_images(found, how)
    watch = Watch(images, how)
    scores = []
    for trio in found:
        looks = watch.looks(trio)
        scores.append(score(looks, watch.controls(trio), images))
        result = _result(trio, looks, scores[-1], images)
        result["sheets"] = _write_sheets(trio, looks, images)
        _write(trio, result, images)
    if len(found) > 1:
        result = _write_summary(found, scores, images)
    return result


def open_images(found: list[Trio], how: Judging) -> Images:
    """Open the test images of runs, and draw some if there are many. Raises Problem as above."""
    first = found[0]
    report = first.student.report
    size = report["data"]["image_size"]
    sizes = [size]
    for trio in found:
        sizes += [member.size for member in trio.teacher.members] if trio.teacher else []
    datasets = own_images_by_size(first.run, report, sizes, how)
    own = datasets[size]
    order = random_stream(SEED, _DRAWN).permutation(len(own.splits.test))
    places = np.sort(order[:MOST])
    few = random_stream(SEED, _DRAWN, 1).permutation(len(places))[:CONTROLS]
    rows = own.splits.test[places]
    boxes = read_boxes(own.store, rows)
    if boxes is not None:
        boxes = {place: boxes[row] for place, row in enumerate(rows) if row in boxes}
    line = 2 + report["data"]["parts"]["valid"]  # below the header and the validation split
    return Images(datasets, size, places, np.sort(few), boxes, line)


class Watch:
    """The maps of networks, each computed once for all runs that share it."""

    def __init__(self, images: Images, how: Judging):
        self.images, self.how = images, how
        self._seen: dict[str, Looked] = {}

    def looks(self, trio: Trio) -> dict[str, Together]:
        """Return role -> maps. A teacher or network alone without maps is added to `left_out`."""
        found = {"student": self._together(trio.student)}
        for role, entry in (("teacher", trio.teacher), ("alone", trio.alone)):
            if entry is not None:
                try:
                    found[role] = self._together(entry)
                except gradcam.NoMap as problem:
                    trio.left_out.append(str(problem))
        for text in trio.left_out:
            log(f"excluded: {text}")
        return {role: found[role] for role in ROLES if role in found}

    def _together(self, entry: Entry) -> Together:
        members = [self._of(member) for member in entry.members]
        return Together(members, [member.share for member in entry.members])

    def _of(self, member: Member) -> Looked:
        if member.weights not in self._seen:
            every = np.arange(len(self.images.places))
            views = self.images.views(member.size, self.how, every)
            network = load_member(member).to(views.device)
            own = gradcam.look(network, views)
            check_finite(own.logits, RunPaths(member.folder).model)
            self._seen[member.weights] = own
        return self._seen[member.weights]

    def controls(self, trio: Trio) -> dict[str, Together]:
        """Return step -> maps of the student with random weights; 0 where it was not looked at."""
        [member] = trio.student.members
        layer = self._of(member).layer
        views = self.images.views(member.size, self.how, self.images.few)
        found = {}
        trained = load_member(member).to(views.device)
        for step, network in cascade(trained):
            found[step] = Together([self._spread(network, views, layer)], [1.0])
        return found

    def _spread(self, network: Classifier, views: Views, layer: str) -> Looked:
        own = gradcam.look(network, views, layer)
        maps = np.zeros((len(self.images.places), *own.maps.shape[1:]), np.float32)
        maps[self.images.few] = own.maps
        return Looked(layer, maps, own.logits)


def score(looks: dict[str, Together], controls: dict[str, Together], images: Images) -> Scores:
    """Return the scores of a run's images, by the names of `summary.Scores`."""
    student = looks["student"]
    every = np.arange(len(images.places))
    found = {}
    for name, one, other in (
        ("student_teacher", "student", "teacher"),
        ("alone_teacher", "alone", "teacher"),
        ("student_alone", "student", "alone"),
    ):
        if one in looks and other in looks:
            found[name] = correlations(looks[one], looks[other], images.size, every)
    for step, random in controls.items():
        found[RANDOM + step] = _of_few(student, random, images)
    if "teacher" in looks:
        found["random_teacher"] = _of_few(looks["teacher"], controls[ALL], images)
    if images.boxes:
        for role, own in looks.items():
            found[POINTING + role] = pointing(own, images.size, images.boxes, len(every))
    return found


def _of_few(one: Together, random: Together, images: Images) -> np.ndarray:
    """Return the correlations for the images of the control, nan for all others [N]."""
    found = np.full(len(images.places), np.nan)
    found[images.few] = correlations(one, random, images.size, images.few)
    return found


def _result(trio: Trio, looks: dict[str, Together], scores: Scores, images: Images) -> dict:
    """Return the content of look.json but for the sheets."""
    networks = {}
    for role, own in looks.items():
        entry = getattr(trio, role)
        layers = []
        for member, one in zip(entry.members, own.members):
            positions = list(one.maps.shape[1:])
            layers.append({"layer": one.layer, "positions": positions, "image_size": member.size})
        networks[role] = {
            "caption": entry.caption,
            "maps": layers,
            "empty_maps": int(own.empty.sum()),
            "accuracy": float((own.logits.argmax(1) == images.labels).mean()),
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "run": str(trio.run),
        "data": _data(trio.student.report["data"], images),
        "method": _method(images),
        "networks": networks,
        **summarise([scores], images.resamples, _about_boxes(images)),
        "left_out": trio.left_out,
    }


def _data(entry: dict, images: Images) -> dict:
    """Return what identifies the test images."""
    keys = ("name", "split_hash", "content_hash", "image_size")
    own = images.own
    return {key: entry[key] for key in keys} | {
        "images": len(own.splits.test),
        "patients": own.patients("test"),
        "without_patient": own.without_patient("test"),
    }


def _method(images: Images) -> dict:
    return {
        "maps": "Grad-CAM (1610.02391)",
        "class": "that of the label, for all networks",
        "images": len(images.places),
        "drawn_with_seed": SEED if len(images.places) < len(images.own.splits.test) else None,
        "control_images": len(images.few),
        "control_drawn_with_seed": SEED if len(images.few) < len(images.places) else None,
        "control_weights_seed": RANDOM_SEED,
    }


def _about_boxes(images: Images) -> dict | None:
    """Return the number of images with a box and what chance would do; see `summarise`."""
    if images.boxes is None:
        return None
    areas = []
    centre = []
    for boxes in images.boxes.values():
        inside = np.zeros((images.size, images.size), bool)
        for y, x in np.ndindex(inside.shape):
            inside[y, x] = any(box.has(x, y) for box in boxes)
        areas.append(inside.mean())
        centre.append(inside[images.size // 2, images.size // 2])
    if not areas:
        return {"images": 0}
    return {"images": len(areas), "area": float(np.mean(areas)), "centre": float(np.mean(centre))}


def _write_sheets(trio: Trio, looks: dict[str, Together], images: Images) -> list[dict]:
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
        figure = sheets.sheet(shown, classes[label], classes, headings, notes)
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


def _write(trio: Trio, result: dict, images: Images) -> None:
    """Write and print the results of a run."""
    empty = []
    for role, own in result["networks"].items():
        empty.append(f"{ROLES[role]} {own['empty_maps']}")
    looks = [f"{len(result['sheets'])} sheets look-CLASS.png"]
    if not trio.student.report["settings"].get("log_images", True):
        looks.append("not in TensorBoard, because the run has --no-log-images")
    lines = [
        _about(result["data"], images),
        "",
        f"Empty maps, which have no rank correlation: {', '.join(empty)}.",
    ]
    heading = f"Where the networks look: {trio.student.caption}, seed {trio.student.seed}"
    text = "\n".join(markdown(heading, lines, result))
    write_outputs(trio.run / "look", "look", text, result, " ".join(looks))


def _about(data: dict, images: Images) -> str:
    """Return the line on the images and the method."""
    units = units_text(data["patients"], data["without_patient"])
    count = f"{data['images']} test images ({units})"
    if len(images.places) < data["images"]:
        count = f"{len(images.places)} of {count}, drawn with seed {SEED}"
    control = f"random weights: {counted(len(images.few), 'image', 'images')}"
    if len(images.few) < len(images.places):
        control += f", drawn with seed {SEED}"
    return (
        f"{data['name']}, {count}, {data['image_size']} px; {control}. Grad-CAM maps of the label's"
        " class; Spearman's rank correlation of their pixels, mean over images. Intervals are over"
        " patients, and over seeds if there are several."
    )


def _write_summary(found: list[Trio], scores: list[Scores], images: Images) -> dict:
    """Write and print the results over the seeds of each row of runs."""
    rows = {}
    for trio, own in zip(found, scores):
        rows.setdefault(trio.student.caption, []).append((trio, own))
    groups = []
    text = []
    data = _data(found[0].student.report["data"], images)
    for caption, members in rows.items():
        seeds = [trio.student.seed for trio, _ in members]
        own = summarise([one for _, one in members], images.resamples, _about_boxes(images))
        groups.append({"caption": caption, "seeds": seeds, **own})
        heading = f"Where the networks look: {caption} (n = {len(seeds)})"
        text += markdown(heading, [_about(data, images)], own)
    result = {
        "schema_version": SCHEMA_VERSION,
        "runs": [str(trio.run) for trio in found],
        "data": data,
        "method": _method(images),
        "groups": groups,
        "left_out": [text for trio in found for text in trio.left_out],
    }
    root = out_of(found[0].run)
    write_outputs(root, "look", "\n".join(text), result, "RUN/look of each run")
    return result
