"""Accuracy on shifted test images, by kind and strength of shift.

Compared are distilled students, the same networks trained alone, and teachers, single or together.
"""

from pathlib import Path

import numpy as np
import torch

from kd import losses
from kd.config.evaluate_settings import Judging
from kd.config.layout import RunPaths, out_of
from kd.data.dataset import Dataset
from kd.data.shifts import SHIFTS
from kd.data.views import Views
from kd.reports import figures, verdicts
from kd.reports import report as reports
from kd.reports.statistics import pair
from kd.studies.images import check_finite, own_images_by_size
from kd.studies.networks import DISTILLED, Entry, Member, collect, load_member, members_of
from kd.studies.outputs import write_outputs
from kd.studies.robustness import COLUMNS, VERSIONS, accuracies, answers, markdown, scores
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.errors import Problem, counted

SCHEMA_VERSION = 1

# caption -> seed -> a value for each version, such as whether each image is right, bool [V, N]
Rows = dict[str, dict[int, np.ndarray]]


def write_shift(runs: list[Path], how: Judging) -> dict:
    """Evaluate runs, their teachers and their students trained alone on shifted test images.

    Prints the tables and writes shift.md, shift.json and shift.png to the output folder (--out) of
    the first run. Returns the JSON. Raises Problem for runs with different test images and for
    damaged ones. Teachers and networks trained alone that are missing are reported and excluded.
    """
    if how.dataset is not None:
        raise Problem(
            f"--dataset {how.dataset} cannot be combined with --shift, which uses the runs' own"
            " test split. Remove --dataset."
        )
    entries, left_out = collect(runs)
    for text in left_out:
        log(f"excluded: {text}")
    report = reports.read(runs[0])
    datasets = _datasets(entries, runs[0], report, how)
    dataset = datasets[report["data"]["image_size"]]
    rows, collapsed = judge(entries, datasets, how)
    patients = np.array([dataset.index.unit(row) for row in dataset.splits.test])
    result = {
        "schema_version": SCHEMA_VERSION,
        "runs": [str(run) for run in runs],
        "data": _data(report["data"], dataset),
        "shifts": {
            name: {"strengths": list(shift.amounts), "unit": shift.unit}
            for name, shift in SHIFTS.items()
        },
        "networks": _networks(entries, rows),
        "differences": differences(entries, rows, collapsed, patients),
        "left_out": left_out,
    }
    root = out_of(runs[0])
    figures.save(root / "shift.png", figures.pixels(figures.shifts(result)))
    write_outputs(root, "shift", markdown(result), result, "shift.png")
    return result


def _datasets(entries: list[Entry], run: Path, report: dict, how: Judging) -> dict[int, Dataset]:
    """Return the test images of a run by image size: its own, and those of teachers.

    The shifts are relative to the side, except noise, which is added to each pixel.
    """
    own = report["data"]["image_size"]
    sizes = [own]
    for entry in entries:
        for member in entry.members:
            sizes.append(member.size)
            if member.size != own:
                log(f"note: {entry.caption} sees images of {member.size} pixels, not of {own}.")
    return own_images_by_size(run, report, sizes, how)


def _data(entry: dict, dataset: Dataset) -> dict:
    """Return what identifies the test images, from the report's entry on the data."""
    keys = ("name", "split_hash", "content_hash", "image_size")
    same = {key: entry[key] for key in keys}
    return same | {
        "images": len(dataset.splits.test),
        "patients": dataset.patients("test"),
        "without_patient": dataset.without_patient("test"),
    }


def _networks(entries: list[Entry], rows: Rows) -> list[dict]:
    """Return the rows as plain values."""
    kinds = {entry.caption: entry.kind for entry in entries}
    networks = []
    for caption, row in rows.items():
        own = accuracies(np.stack(list(row.values())))
        networks.append({"caption": caption, "kind": kinds[caption], "seeds": list(row), **own})
    return networks


def judge(entries: list[Entry], datasets: dict[int, Dataset], how: Judging) -> tuple[Rows, Rows]:
    """Return (whether each test image is classified correctly in each version, by row and seed;
    whether a network predicts one class for all images of a version, bool [V], by row and seed).

    Each network is loaded only once, and sees the images of its own size. Teachers together are
    mixed at T = 1. Raises Problem (4) for a network that does not belong to its report or is
    damaged.
    """
    views_of = {}
    for size, dataset in datasets.items():
        views_of[size] = dataset.views("test", pick_device(how.device), batch_size=how.batch_size)
    logits = {}  # by hash of the weights
    rows = {}
    collapsed = {}
    for entry in entries:
        for member in entry.members:
            if member.weights not in logits:
                views = views_of[member.size]
                logits[member.weights] = _logits(member, views)
        own = torch.stack([logits[member.weights].flatten(0, 1) for member in entry.members])
        shares = torch.tensor([member.share for member in entry.members])
        predicted = losses.mixture(own, shares, 1.0).argmax(1)
        views = views_of[entry.members[0].size]
        predicted = predicted.view(-1, len(views))
        right = (predicted == views.labels).numpy()
        log(
            f"{entry.caption}, seed {entry.seed}: clean {right[0].mean():.4f}, shifted"
            f" {right[1:].mean():.4f}"
        )
        rows.setdefault(entry.caption, {})[entry.seed] = right
        one_class = (predicted == predicted[:, :1]).all(1).numpy()
        collapsed.setdefault(entry.caption, {})[entry.seed] = one_class
    return rows, collapsed


def _logits(member: Member, views: Views) -> torch.Tensor:
    """Return the logits of a network for all versions: float32 [V, N, K].

    The network is freed afterwards.
    """
    network = load_member(member).to(views.device)
    return torch.from_numpy(check_finite(answers(network, views), RunPaths(member.folder).model))


def differences(
    entries: list[Entry], rows: Rows, collapsed: Rows, patients: np.ndarray
) -> list[dict]:
    """Return the differences between networks, with 95 % intervals over the seeds of both.

    A distilled student is compared with the same network trained alone. A student of several
    teachers is also compared with the student of one of these teachers.
    """
    result = []
    for of, minus in _comparisons(entries, rows):
        first = {seed: scores(right) for seed, right in rows[of].items()}
        second = {seed: scores(right) for seed, right in rows[minus].items()}
        family = []
        for number in range(len(COLUMNS)):
            own = {seed: score[number] for seed, score in first.items()}
            other = {seed: score[number] for seed, score in second.items()}
            doubt = _doubt([collapsed[of], collapsed[minus]], number)
            family.append(verdicts.Member(pair(own, other, patients), minus, doubt))
        gaps = dict(zip(COLUMNS, verdicts.judge(family)))
        seeds = sorted(first.keys() & second.keys())
        result.append({"of": of, "minus": minus, "seeds": seeds, "gaps": gaps})
    return result


def _doubt(sides: list[dict[int, np.ndarray]], column: int) -> str:
    """Return why a column of COLUMNS can have no verdict; empty if it can.

    sides  seed -> whether the network predicts one class in each version, bool [V], of both rows
    """
    versions = [
        number
        for number, (name, _) in enumerate(VERSIONS)
        if COLUMNS[column] in ("all", name or "clean")
    ]
    seeds = sides[0].keys() & sides[1].keys()
    count = sum(bool(side[seed][versions].any()) for side in sides for seed in seeds)
    if not count:
        return ""
    return counted(count, "network predicts", "networks predict") + " one class"


def _comparisons(entries: list[Entry], rows: Rows) -> list[tuple[str, str]]:
    """Return the captions of the rows to compare: (of, minus)."""
    distilled = [entry for entry in entries if entry.kind == DISTILLED]
    pairs = []
    for entry in distilled:
        name = entry.report["student"]["name"]
        for caption in (
            f"{name} (baseline, {entry.report['settings']['tag']})",
            f"{name} (baseline)",
        ):
            if entry.seed in rows.get(caption, ()):
                pairs.append((entry.caption, caption))
                break
        for other in distilled:
            if _by_one_of_several(other, entry):
                pairs.append((entry.caption, other.caption))
    return list(dict.fromkeys(pairs))


def _by_one_of_several(single: Entry, several: Entry) -> bool:
    """Return whether `single` has student and seed of `several`, but only one of its teachers."""
    if single.seed != several.seed:
        return False
    if single.report["student"]["name"] != several.report["student"]["name"]:
        return False
    own = [member["hash"] for member in members_of(single.report)]
    teachers = [member["hash"] for member in members_of(several.report)]
    return len(own) == 1 < len(teachers) and own[0] in teachers
