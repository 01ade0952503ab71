"""The maps of the networks of runs on their test images, and the scores of these maps."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kd.config.evaluate_settings import Judging
from kd.config.layout import RunPaths
from kd.data.boxes import Box, read_boxes
from kd.data.dataset import Dataset
from kd.data.views import Views
from kd.models import Classifier
from kd.reports.resampling import Resamples, draw
from kd.studies.images import check_finite, own_images_by_size
from kd.studies.look import gradcam
from kd.studies.look.agreement import correlations, pointing
from kd.studies.look.gradcam import Looked, Together
from kd.studies.look.randomized import ALL, cascade
from kd.studies.look.summary import POINTING, RANDOM, ROLES, Scores
from kd.studies.networks import Entry, Member, Trio, load_member
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.seeds import random_stream

MOST = 2000  # test images; of more, so many are drawn
CONTROLS = 100  # images on which networks with random weights are looked at
DRAWS = 5  # networks with random weights: one alone may by chance look where the trained one looks
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
    def patients(self) -> np.ndarray:
        return np.array([self.own.index.unit(row) for row in self.rows])

    @cached_property
    def resamples(self) -> Resamples:
        return draw(self.patients)

    @cached_property
    def others(self) -> np.ndarray:
        """For each image another one of its class and of another patient, or -1 [N].

        The images of a class, with the patients in a random order, are moved on by as many as one
        patient has at most, so that each is taken once.
        """
        names, patient_of = np.unique(self.patients, return_inverse=True)
        place = random_stream(SEED, _DRAWN, 2).permutation(len(names))[patient_of]
        order = np.argsort(place, kind="stable")
        found = np.full(len(order), -1)
        for label in np.unique(self.labels):
            own = order[self.labels[order] == label]
            most = np.unique(self.patients[own], return_counts=True)[1].max()
            moved = np.roll(own, most)
            other = self.patients[moved] != self.patients[own]
            found[own[other]] = moved[other]
        return found

    @cached_property
    def about_boxes(self) -> dict | None:
        """The number of images with a box, and what chance would do; see `summary.summarise`."""
        if self.boxes is None:
            return None
        areas = []
        centre = []
        for boxes in self.boxes.values():
            inside = np.zeros((self.size, self.size), bool)
            for y, x in np.ndindex(inside.shape):
                inside[y, x] = any(box.has(x, y) for box in boxes)
            areas.append(inside.mean())
            centre.append(inside[self.size // 2, self.size // 2])
        if not areas:
            return {"images": 0}
        return {
            "images": len(areas),
            "area": float(np.mean(areas)),
            "centre": float(np.mean(centre)),
        }

    def views(self, size: int, how: Judging, places: np.ndarray) -> Views:
        """Return images at a size, by their positions among these."""
        dataset = self.datasets[size]
        rows = dataset.splits.test[self.places[places]]
        return dataset.views("test", pick_device(how.device), rows, batch_size=how.batch_size)


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

    def controls(self, trio: Trio) -> dict[str, list[Together]]:
        """Return step -> maps of each draw of the student's random weights.

        They are 0 for images that it does not look at. Runs with other seeds have other draws.
        """
        [member] = trio.student.members
        layer = self._of(member).layer
        views = self.images.views(member.size, self.how, self.images.few)
        found = {}
        trained = load_member(member).to(views.device)
        for number in range(DRAWS):
            for step, network in cascade(trained, DRAWS * trio.student.seed + number):
                own = Together([self._spread(network, views, layer)], [1.0])
                found.setdefault(step, []).append(own)
        return found

    def _spread(self, network: Classifier, views: Views, layer: str) -> Looked:
        own = gradcam.look(network, views, layer)
        maps = np.zeros((len(self.images.places), *own.maps.shape[1:]), np.float32)
        maps[self.images.few] = own.maps
        return Looked(layer, maps, own.logits)


def score(
    looks: dict[str, Together], controls: dict[str, list[Together]], images: Images
) -> Scores:
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
    if "teacher" in looks:
        pairs = np.flatnonzero(images.others >= 0)
        own = np.full(len(every), np.nan)
        both = (student, looks["teacher"])
        own[pairs] = correlations(*both, images.size, pairs, images.others[pairs])
        found["other_image"] = own
    for step, random in controls.items():
        found[RANDOM + step] = _of_few(student, random, images)
    if "teacher" in looks:
        found["random_teacher"] = _of_few(looks["teacher"], controls[ALL], images)
    if images.boxes:
        for role, own in looks.items():
            found[POINTING + role] = pointing(own, images.size, images.boxes, len(every))
    return found


def _of_few(one: Together, draws: list[Together], images: Images) -> np.ndarray:
    """Return the correlations of each draw for the images of the control, else nan [draws, N]."""
    found = np.full((len(draws), len(images.places)), np.nan)
    for row, random in zip(found, draws):
        row[images.few] = correlations(one, random, images.size, images.few)
    return found
