"""Networks to compare with runs: their teachers, single or together, and baselines."""

from pathlib import Path
from typing import NamedTuple

from kd.config.layout import RunPaths, alone_path, out_of
from kd.config.settings import DistillSettings
from kd.data.ranges import same
from kd.models import Classifier
from kd.reports import report as reports
from kd.studies.modes import ALONE, meaning_of, words_of
from kd.studies.runs import read_settings
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.teachers import model_file

TEACHER = "teacher"
TOGETHER = "teachers together"
DISTILLED = "distilled"
KINDS = (TEACHER, TOGETHER, ALONE, DISTILLED)


class Member(NamedTuple):
    """A network of an entry: the folder of its run, the hash of its weights and its share.

    size  the size of its images
    """

    folder: Path
    weights: str
    share: float
    size: int


class Entry(NamedTuple):
    """One seed of a row (`caption`): a network, or several teachers together.

    kind     one of KINDS
    report   of the run; for teachers together, the report of their student
    members  the networks; several for teachers together
    """

    caption: str
    kind: str
    seed: int
    report: dict
    members: list[Member]

    @property
    def mixture(self) -> list[tuple[str, float]]:
        """(weights, share) of each member. Entries with equal mixtures are the same network."""
        return [(member.weights, member.share) for member in self.members]


class Trio(NamedTuple):
    """A run with its teachers together and its network trained alone.

    left_out  why the teacher or the network alone is None
    """

    run: Path
    student: Entry
    teacher: Entry | None
    alone: Entry | None
    left_out: list[str]


def members_of(report: dict) -> list[dict]:
    """Return the networks that taught a run.

    Empty if the run was trained alone or its teacher is not a network.
    """
    return report["teacher"]["members"] if report["teacher"] else []


def collect(runs: list[Path]) -> tuple[list[Entry], list[str]]:
    """Return (the entries of runs, their teachers and their baselines; the exclusions).

    A baseline is the student's network trained alone. The entries are sorted by kind, and the same
    weights occur only once in a row. A network trained alone counts as a teacher if its training
    was stopped early or if one of the distilled runs had a teacher of that name.
    """
    given = _read_all(runs, "--shift")
    teaching = set()
    for _, report in given:
        teaching |= {member["name"] for member in members_of(report)}
    entries = []
    left_out = []
    for run, report in given:
        if report["kind"] == "student":
            entries += _teachers(run, report, left_out)
            entries += _alone(run, report, left_out)
            entries.append(_entry(run, report, DISTILLED, _words(run, report)))
        else:
            stopped = report["settings"]["stop_at_val_accuracy"] is not None
            teaches = report["student"]["name"] in teaching or stopped
            entries.append(_entry(run, report, TEACHER if teaches else ALONE))
    kept = _distinct(entries, left_out)
    kept.sort(key=lambda entry: (KINDS.index(entry.kind), len(members_of(entry.report))))
    return kept, list(dict.fromkeys(left_out))


def _read_all(runs: list[Path], flag: str) -> list[tuple[Path, dict]]:
    """Return (run, its report) of all runs. Raises Problem if they have other test images."""
    given = [(run, reports.read(run)) for run in runs]
    for run, report in given:
        check_same_images(f"Run '{run}' (given by {flag})", report, *given[0])
    return given


def trios(runs: list[Path], flag: str) -> list[Trio]:
    """Return each run with its teacher and its network alone, as far as they are available.

    Raises Problem for runs with different test images, and for two with the same row and seed.
    """
    found = [_trio(run, report) for run, report in _read_all(list(dict.fromkeys(runs)), flag)]
    first = {}
    for one in found:
        other = first.setdefault((one.student.caption, one.student.seed), one)
        if other is not one:
            raise Problem(
                f"Runs '{other.run}' and '{one.run}' (given by {flag}) are both"
                f" {one.student.caption}, seed {one.student.seed}. Give only one of them, or use"
                " another --tag for one."
            )
    return found


def _trio(run: Path, report: dict) -> Trio:
    left_out = []
    if report["kind"] != "student":
        left_out.append(
            f"Run '{run}' was trained on labels only: it has no teacher, and is itself the network"
            " alone."
        )
        return Trio(run, _entry(run, report, ALONE), None, None, left_out)
    student = _entry(run, report, DISTILLED, _words(run, report))
    count = len(members_of(report))
    teachers = _teachers(run, report, left_out)
    if not count:
        left_out.append(f"Run '{run}' had no teacher network.")
    complete = count > 0 and len(teachers) == count + (count > 1)
    alone = _alone(run, report, left_out)
    return Trio(
        run, student, teachers[-1] if complete else None, alone[0] if alone else None, left_out
    )


def load_member(member: Member) -> Classifier:
    """Return the network of a member, in evaluation mode on the CPU.

    Raises Problem (4) if it is damaged or does not belong to its report.
    """
    file = RunPaths(member.folder).model
    model = model_file.load(file)
    if model.hash != member.weights:
        raise Problem(
            f"Model '{file}' does not belong to its report: its weights are {model.hash}, but the"
            f" report has {member.weights}. Restore both files.",
            BAD_CHECKPOINT,
        )
    model.network.module.eval()
    return model.network


def _distinct(entries: list[Entry], left_out: list[str]) -> list[Entry]:
    """Return the entries without those whose weights are already in their row.

    Entries that have the caption and seed of another entry but other weights are added to
    `left_out`.
    """
    kept = {}
    for entry in entries:
        row = [other for other in kept.values() if other.caption == entry.caption]
        if entry.mixture in [other.mixture for other in row]:
            continue
        other = kept.setdefault((entry.caption, entry.seed), entry)
        if other is not entry:
            left_out.append(
                f"Run '{entry.members[0].folder}' has other weights than"
                f" '{other.members[0].folder}', but both are {entry.caption}, seed {entry.seed}."
                " Use another --tag for one of them."
            )
    return list(kept.values())


def _entry(run: Path, report: dict, kind: str, words: str = "") -> Entry:
    """Return the entry of a run's network; `words` are on the data of its teachers, or its own."""
    size = report["data"]["image_size"]
    member = Member(run, report["student"]["weights_hash"], 1.0, size)
    caption = _caption(report, kind, words)
    return Entry(caption, kind, report["settings"]["seed"], report, [member])


def _words(run: Path, report: dict) -> str:
    """Return the words on the data of a distilled run's teachers, or an empty string."""
    return words_of(meaning_of(read_settings(run, report, DistillSettings)).teacher)


def _caption(report: dict, kind: str, words: str) -> str:
    settings = report["settings"]
    name = report["student"]["name"]
    tag = f", {settings['tag']}" if settings["tag"] else ""
    if kind == TEACHER:
        defective = "defective " if settings.get("stop_at_val_accuracy") is not None else ""
        return f"{name} ({defective}teacher{words and ', '}{words}{tag})"
    if kind == ALONE:
        return f"{name} (baseline{tag})"
    teacher = report["teacher"]["name"] + (f" ({words})" if words else "")
    return f"{name} <- {teacher}, {settings['mode']}{tag}"


def _teachers(run: Path, report: dict, left_out: list[str]) -> list[Entry]:
    """Return a distilled run's teachers and, if all of several are available, these together.

    The reasons for missing teachers are added to `left_out`.
    """
    entries = []
    members = members_of(report)
    for member in members:
        folder = out_of(run) / member["source"]
        what = f"Teacher '{member['name']}' ({member['source']}) of '{run}'"
        try:
            own = _read_existing(folder, what, member["hash"])
        except Problem as problem:
            left_out.append(str(problem))
            continue
        # A teacher of a born-again chain was a student itself.
        if own["kind"] == "teacher":
            entries.append(_entry(folder, own, TEACHER, _words(run, report)))
        else:
            entries.append(_entry(folder, own, DISTILLED, _words(folder, own)))
    if len(entries) == len(members) > 1:
        entries.append(_together(report, entries, _words(run, report)))
    return entries


def _together(report: dict, teachers: list[Entry], words: str) -> Entry:
    """Return the teachers of a run as one entry, mixed as in its training."""
    mixed = []
    for entry, member in zip(teachers, members_of(report)):
        mixed.append(entry.members[0]._replace(share=member["weight"]))
    settings = report["settings"]
    tag = f", {settings['tag']}" if settings["tag"] else ""
    caption = f"{report['teacher']['name']} ({TOGETHER}{words and ', '}{words}{tag})"
    return Entry(caption, TOGETHER, settings["seed"], report, mixed)


def _alone(run: Path, report: dict, left_out: list[str]) -> list[Entry]:
    """Return a distilled run's network trained alone, with the run's tag or otherwise without one.

    If there is none, the list is empty and the reason is added to `left_out`.
    """
    try:
        folder, own = read_alone(run, report)
    except Problem as problem:
        left_out.append(str(problem))
        return []
    return [_entry(folder, own, ALONE)]


def read_alone(run: Path, report: dict) -> tuple[Path, dict]:
    """Return the folder and the report of a distilled run's network trained alone.

    It has the run's tag or otherwise none. Raises Problem if it is not finished or has other test
    images.
    """
    settings = report["settings"]
    name = report["student"]["name"]
    folder = alone_path(run, settings["tag"], name, settings["seed"])
    untagged = alone_path(run, "", name, settings["seed"])
    if not RunPaths(folder).finished and RunPaths(untagged).finished:
        folder = untagged
    what = f"Network '{name}' trained alone ({folder}) for '{run}'"
    own = _read_existing(folder, what)
    check_same_images(what, own, run, report)
    return folder, own


def member_folder(run: Path, member: dict) -> Path | None:
    """Return the run folder of one of the networks that taught a run (`members_of`).

    Returns None if that run no longer exists or does not hold the weights that taught.
    """
    folder = out_of(run.resolve()) / member["source"]
    if not RunPaths(folder).finished:
        return None
    return folder if reports.read(folder)["student"]["weights_hash"] == member["hash"] else None


def _read_existing(folder: Path, what: str, weights: str | None = None) -> dict:
    """Return the report of a run that should be in `folder`.

    Raises Problem if there is no finished run, or if it does not have the expected weights.
    """
    if not RunPaths(folder).finished:
        raise Problem(f"{what} has no finished run. Train it to include it in the comparison.")
    report = reports.read(folder)
    own = report["student"]["weights_hash"]
    if weights not in (None, own):
        raise Problem(
            f"{what} has changed: its weights are {own}, but those that taught were {weights}."
            " Restore the original run."
        )
    return report


def check_same_images(what: str, report: dict, run: Path, other: dict) -> None:
    """Raise Problem if a report has other test images than `other`, the report of `run`."""
    if not same(report["data"]["ranges"], other["data"]["ranges"]):
        raise Problem(
            f"{what} shows images with more than 8 bits in another range than '{run}':"
            f" {report['data']['ranges']}, not {other['data']['ranges']}. Use runs with the same"
            " --bits and train split."
        )
    for key in ("split_hash", "content_hash", "image_size", "channels", "crop", "resize"):
        own = _image_property(report, key)
        theirs = _image_property(other, key)
        if own != theirs:
            raise Problem(
                f"{what} does not have the test images of '{run}': its {key} is {own}, not"
                f" {theirs}. Use runs and data with the same test images."
            )


def _image_property(report: dict, key: str):
    return report["data"].get(key, report["settings"].get(key))
