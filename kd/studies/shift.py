"""Networks on shifted test images: teachers, teachers together, students alone and distilled, by
kind and strength of shift.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from kd import losses
from kd.config import parsing
from kd.config.settings import Judging, TeacherSettings
from kd.data.dataset import Dataset, open_dataset, read_index
from kd.data.shifts import SHIFTS
from kd.data.views import Views
from kd.reports import figures
from kd.reports import report as reports
from kd.reports.statistics import against_alone
from kd.runs.folder import RunFolder
from kd.studies.robustness import COLUMNS, account, answers, markdown, scores
from kd.studies.study import ALONE, gap
from kd.studies.tables import tell
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.teachers import model_file

SCHEMA_VERSION = 1
TEACHER, TOGETHER, DISTILLED = "teacher", "teachers together", "distilled"
KINDS = (TEACHER, TOGETHER, ALONE, DISTILLED)


class Entry(NamedTuple):
    """One seed of a row (`caption`): a network, or several teachers together.

    `kind` is one of KINDS.

    report   of the run; of teachers together that of their student
    members  (folder of the run, hash of the weights, share) of each network
    """

    caption: str
    kind: str
    seed: int
    report: dict
    members: list[tuple[Path, str, float]]


def write_shift(runs: list[Path], how: Judging) -> dict:
    """Judge runs, their teachers and their students alone on shifted test images; print, write
    shift.md, .json and .png.

    They go to the folder (--out) of the first run. Returns the JSON. Raises Problem for runs that
    were judged on different images and for damaged ones; teachers and networks alone that are
    missing beside them are told and left out.
    """
    if how.dataset is not None:
        raise Problem(
            f"dataset '{how.dataset}' in --dataset: --shift changes the runs' own test part; leave"
            " it out"
        )
    entries, left_out = collect(runs)
    for text in left_out:
        log(f"left out: {text}")
    dataset = _open(runs[0], how)
    rows = judge(entries, dataset, how)
    patients = np.array([dataset.index.samples[row].patient for row in dataset.parts.test])
    kinds = {entry.caption: entry.kind for entry in entries}
    result = {
        "schema_version": SCHEMA_VERSION,
        "runs": [str(run) for run in runs],
        "data": {
            "name": dataset.index.name,
            "split_hash": dataset.split_hash,
            "content_hash": dataset.content_hash,
            "image_size": dataset.store.size,
            "images": len(patients),
            "patients": len(set(patients.tolist())),
        },
        "shifts": {
            name: {"strengths": list(shift.amounts), "unit": shift.unit}
            for name, shift in SHIFTS.items()
        },
        "networks": [
            {
                "caption": caption,
                "kind": kinds[caption],
                "seeds": [*row],
                **account(np.stack([*row.values()])),
            }
            for caption, row in rows.items()
        ],
        "differences": differences(entries, rows, patients),
        "left_out": left_out,
    }
    root = _above(runs[0], 3)
    figures.save(root / "shift.png", figures.pixels(figures.shifts(result)))
    tell(root, "shift", markdown(result), result, "shift.png")
    return result


def members_of(report: dict) -> list[dict]:
    """The networks that taught a run; none where it was trained alone, or its teacher is no
    network.
    """
    return report["teacher"]["members"] if report["teacher"] else []


def collect(runs: list[Path]) -> tuple[list[Entry], list[str]]:
    """(the runs' networks with their teachers and students alone, by kind; what was left out).

    A row has the same weights once.

    A run of a network alone stands as a teacher where a distilled run beside it had one of that
    name.
    """
    found, every, left_out, kept = [(run, reports.read(run)) for run in runs], [], [], {}
    for run, report in found:
        _same_images(f"run '{run}' in --shift", report, runs[0], found[0][1])
    teaching = {member["name"] for _, report in found for member in members_of(report)}
    for run, report in found:
        if report["kind"] == "student":
            every += [
                *_teachers(run, report, left_out),
                *_alone(run, report, left_out),
                _entry(run, report, DISTILLED),
            ]
        else:
            teaches = (
                report["student"]["name"] in teaching
                or report["settings"]["stop_at_val_accuracy"] is not None
            )
            every.append(_entry(run, report, TEACHER if teaches else ALONE))
    for entry in every:
        weights = [
            [member[1:] for member in other.members]
            for other in kept.values()
            if other.caption == entry.caption
        ]
        if [member[1:] for member in entry.members] not in weights:
            other = kept.setdefault((entry.caption, entry.seed), entry)
            left_out += (
                []
                if other is entry
                else [
                    f"'{entry.members[0][0]}': is {entry.caption}, seed {entry.seed}, as"
                    f" '{other.members[0][0]}' is, with other weights; give one of them another"
                    " --tag"
                ]
            )
    order = sorted(
        kept.values(), key=lambda entry: (KINDS.index(entry.kind), len(members_of(entry.report)))
    )
    return order, list(dict.fromkeys(left_out))


def _above(run: Path, levels: int) -> Path:
    """A run is OUT/DATA/MODE/PAIR/seedN: with 3 levels OUT, with 2 OUT/DATA; as it is seen from the
    working folder.
    """
    above = run.resolve().parents
    return Path(os.path.relpath(above[min(levels, len(above) - 1)]))


def _entry(run: Path, report: dict, kind: str) -> Entry:
    """The network of a run."""
    settings, name = report["settings"], report["student"]["name"]
    tag = f", {settings['tag']}" if settings["tag"] else ""
    defective = "defective " if settings.get("stop_at_val_accuracy") is not None else ""
    caption = {TEACHER: f"{name} ({defective}teacher{tag})", ALONE: f"{name} alone{tag}"}.get(kind)
    caption = caption or f"{name} <- {report['teacher']['name']}, {settings['mode']}{tag}"
    return Entry(
        caption, kind, settings["seed"], report, [(run, report["student"]["weights_hash"], 1.0)]
    )


def _teachers(run: Path, report: dict, left_out: list[str]) -> list[Entry]:
    """A distilled run's teachers and, where all are found, these together; adds to `left_out` which
    are not.
    """
    found, members, tag = [], members_of(report), report["settings"]["tag"]
    for member in members:
        place, what = (
            _above(run, 3) / member["source"],
            f"teacher '{member['name']}' ({member['source']}) of '{run}'",
        )
        try:
            own = _sought(place, what, member["hash"])
            found.append(
                _entry(place, own, TEACHER if own["kind"] == "teacher" else DISTILLED)
            )  # born again: a student, too
        except Problem as problem:
            left_out.append(str(problem))
    if len(found) < len(members) or len(members) < 2:
        return found
    caption = f"{report['teacher']['name']} ({TOGETHER}{tag and ', '}{tag})"
    own = [(*entry.members[0][:2], member["weight"]) for entry, member in zip(found, members)]
    return [*found, Entry(caption, TOGETHER, report["settings"]["seed"], report, own)]


def _alone(run: Path, report: dict, left_out: list[str]) -> list[Entry]:
    """A distilled run's network trained alone, under the run's own tag, else under none; adds to
    `left_out` if there is none.
    """
    settings, name = report["settings"], report["student"]["name"]
    tags = dict.fromkeys((f"-{settings['tag']}" if settings["tag"] else "", ""))
    places = [_above(run, 2) / f"teacher{tag}" / name / f"seed{settings['seed']}" for tag in tags]
    place = next((place for place in places if RunFolder(place).finished), places[0])
    what = f"network '{name}' alone ({place}) for '{run}'"
    try:
        own = _sought(place, what)
        _same_images(what, own, run, report)
        return [_entry(place, own, ALONE)]
    except Problem as problem:
        left_out.append(str(problem))
        return []


def _sought(place: Path, what: str, weights: str | None = None) -> dict:
    """The report of a run that should lie in `place`.

    Raises Problem where none does, or with other weights than it should.
    """
    if not RunFolder(place).finished:
        raise Problem(f"{what}: no finished run lies there; only networks that have one are judged")
    report = reports.read(place)
    if weights not in (None, report["student"]["weights_hash"]):
        raise Problem(
            f"{what}: holds the weights {report['student']['weights_hash']} now, {weights} taught;"
            " restore those"
        )
    return report


def _same_images(what: str, report: dict, run: Path, other: dict) -> None:
    for key in ("split_hash", "content_hash", "image_size", "channels", "crop", "resize"):
        own, theirs = (one["data"].get(key, one["settings"].get(key)) for one in (report, other))
        if own != theirs:
            raise Problem(
                f"{what}: its {key} is {own}, that of '{run}' {theirs}; give runs judged on the"
                " same test images"
            )


def _open(run: Path, how: Judging) -> Dataset:
    """The data of a run. Raises Problem where they are no longer those it was judged on."""
    report = reports.read(run)
    given = {key: (value, str(run / "report.json")) for key, value in report["settings"].items()}
    settings = parsing.build(TeacherSettings, given)
    data = parsing.replace(
        settings, cache_dir=how.cache_dir, data_dir=how.data_dir or settings.data.data_dir
    ).data
    dataset = open_dataset(data, read_index(data))
    _same_images(
        "data in --data-dir",
        {"data": dataset.describe(), "settings": report["settings"]},
        run,
        report,
    )
    return dataset


def judge(entries: list[Entry], dataset: Dataset, how: Judging) -> dict[str, dict[int, np.ndarray]]:
    """caption -> seed -> whether each test image is right in each version, bool [V, N].

    Each network is read once.

    Teachers together are mixed at T = 1. Raises Problem (4) for a network that does not belong to
    its report or is damaged.
    """
    device, logits, rows = pick_device(how.device), {}, {}
    views = dataset.views("test", device, batch_size=how.batch_size)
    for entry in entries:
        for folder, weights, _ in entry.members:
            if weights not in logits:
                logits[weights] = _logits(RunFolder(folder).model, weights, views)
        own = torch.stack([logits[weights].flatten(0, 1) for _, weights, _ in entry.members])
        mixed = losses.mixture(own, torch.tensor([share for *_, share in entry.members]), 1.0)
        right = (mixed.argmax(1).view(-1, len(views)) == views.labels).numpy()
        log(
            f"{entry.caption}, seed {entry.seed}: clean {right[0].mean():.4f}, shifted"
            f" {right[1:].mean():.4f}"
        )
        rows.setdefault(entry.caption, {})[entry.seed] = right
    return rows


def _logits(file: Path, weights: str, views: Views) -> torch.Tensor:
    """A network's logits for all versions, float32 [V, N, K]; the network is gone afterwards."""
    model = model_file.load(file)
    if model.hash != weights:
        raise Problem(
            f"model '{file}': holds {model.hash}, its report says {weights}; restore both",
            BAD_CHECKPOINT,
        )
    model.network.to(views.device).module.eval()
    logits = torch.from_numpy(answers(model.network, views))
    if not logits.isfinite().all():
        raise Problem(
            f"model '{file}': its logits are not finite, so its weights are damaged; restore it",
            BAD_CHECKPOINT,
        )
    return logits


def differences(
    entries: list[Entry], rows: dict[str, dict[int, np.ndarray]], patients: np.ndarray
) -> list[dict]:
    """Distilled minus alone, and by several teachers minus by one of these; 95 % intervals over the
    seeds that both have.
    """
    pairs, found = [], []
    distilled = [
        (
            entry,
            entry.report["student"]["name"],
            [member["hash"] for member in members_of(entry.report)],
        )
        for entry in entries
        if entry.kind == DISTILLED
    ]
    for own, name, teachers in distilled:
        tagged = f"{name} alone, {own.report['settings']['tag']}"
        alone = [
            caption for caption in (tagged, f"{name} alone") if own.seed in rows.get(caption, ())
        ]
        single = [
            other.caption
            for other, student, taught_by in distilled
            if len(taught_by) == 1 < len(teachers)
            and (other.seed, student) == (own.seed, name)
            and taught_by[0] in teachers
        ]
        pairs += [(own.caption, minus) for minus in [*alone[:1], *single]]
    for of, minus in dict.fromkeys(pairs):
        seeds = sorted(rows[of].keys() & rows[minus].keys())
        first, second = (
            np.stack([scores(rows[caption][seed]) for seed in seeds], 1) for caption in (of, minus)
        )
        gaps = {column: gap(first[k], second[k], patients) for k, column in enumerate(COLUMNS)}
        found.append(
            {
                "of": of,
                "minus": minus,
                "seeds": seeds,
                "gaps": {
                    column: own and own | {"says": against_alone(own)}
                    for column, own in gaps.items()
                },
            }
        )
    return found
