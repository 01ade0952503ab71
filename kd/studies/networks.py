"""The networks that stand beside runs: their teachers, alone and together, and students alone."""

from pathlib import Path
from typing import NamedTuple

from kd.config.layout import RunPaths, alone_path, out_of
from kd.reports import report as reports
from kd.studies.modes import ALONE
from kd.system.errors import Problem

TEACHER = "teacher"
TOGETHER = "teachers together"
DISTILLED = "distilled"
KINDS = (TEACHER, TOGETHER, ALONE, DISTILLED)


class Member(NamedTuple):
    """A network of an entry: its run's folder, the hash of its weights, its share."""

    folder: Path
    weights: str
    share: float


class Entry(NamedTuple):
    """One seed of a row (`caption`): a network, or several teachers together.

    kind     one of KINDS
    report   of the run; of teachers together that of their student
    members  the networks; several for teachers together
    """

    caption: str
    kind: str
    seed: int
    report: dict
    members: list[Member]

    @property
    def mixture(self) -> list[tuple[str, float]]:
        """(weights, share) of each member: what makes two entries the same network."""
        return [(member.weights, member.share) for member in self.members]


def members_of(report: dict) -> list[dict]:
    """The networks that taught a run.

    None where it was trained alone, or its teacher is no network.
    """
    return report["teacher"]["members"] if report["teacher"] else []


def collect(runs: list[Path]) -> tuple[list[Entry], list[str]]:
    """(the runs' networks with their teachers and students alone, by kind; what was left out).

    A row has the same weights once. A run of a network alone stands as a teacher where a distilled
    run beside it had one of that name.
    """
    given = [(run, reports.read(run)) for run in runs]
    for run, report in given:
        check_same_images(f"run '{run}' in --shift", report, *given[0])
    teaching = set()
    for _, report in given:
        teaching |= {member["name"] for member in members_of(report)}
    entries = []
    left_out = []
    for run, report in given:
        if report["kind"] == "student":
            entries += _teachers(run, report, left_out)
            entries += _alone(run, report, left_out)
            entries.append(_entry(run, report, DISTILLED))
        else:
            stopped = report["settings"]["stop_at_val_accuracy"] is not None
            teaches = report["student"]["name"] in teaching or stopped
            entries.append(_entry(run, report, TEACHER if teaches else ALONE))
    kept = _distinct(entries, left_out)
    kept.sort(key=lambda entry: (KINDS.index(entry.kind), len(members_of(entry.report))))
    return kept, list(dict.fromkeys(left_out))


def _distinct(entries: list[Entry], left_out: list[str]) -> list[Entry]:
    """The entries without those of weights that their row has; adds to `left_out`.

    What is left out has the caption and seed of another entry, but other weights.
    """
    kept = {}
    for entry in entries:
        row = [other for other in kept.values() if other.caption == entry.caption]
        if entry.mixture in [other.mixture for other in row]:
            continue
        other = kept.setdefault((entry.caption, entry.seed), entry)
        if other is not entry:
            left_out.append(
                f"'{entry.members[0].folder}': is {entry.caption}, seed {entry.seed}, as"
                f" '{other.members[0].folder}' is, with other weights; give one of them another"
                " --tag"
            )
    return list(kept.values())


def _entry(run: Path, report: dict, kind: str) -> Entry:
    """The network of a run."""
    member = Member(run, report["student"]["weights_hash"], 1.0)
    caption = _caption(report, kind)
    return Entry(caption, kind, report["settings"]["seed"], report, [member])


def _caption(report: dict, kind: str) -> str:
    settings = report["settings"]
    name = report["student"]["name"]
    tag = f", {settings['tag']}" if settings["tag"] else ""
    if kind == TEACHER:
        defective = "defective " if settings.get("stop_at_val_accuracy") is not None else ""
        return f"{name} ({defective}teacher{tag})"
    if kind == ALONE:
        return f"{name} alone{tag}"
    return f"{name} <- {report['teacher']['name']}, {settings['mode']}{tag}"


def _teachers(run: Path, report: dict, left_out: list[str]) -> list[Entry]:
    """A distilled run's teachers and, where all are there, these together.

    Adds to `left_out` which are not.
    """
    entries = []
    members = members_of(report)
    for member in members:
        folder = out_of(run) / member["source"]
        what = f"teacher '{member['name']}' ({member['source']}) of '{run}'"
        try:
            own = _read_existing(folder, what, member["hash"])
        except Problem as problem:
            left_out.append(str(problem))
            continue
        # A teacher of a born-again chain was a student itself.
        entries.append(_entry(folder, own, TEACHER if own["kind"] == "teacher" else DISTILLED))
    if len(entries) == len(members) > 1:
        entries.append(_together(report, entries))
    return entries


def _together(report: dict, teachers: list[Entry]) -> Entry:
    """A run's teachers, mixed as they taught."""
    mixed = []
    for entry, member in zip(teachers, members_of(report)):
        mixed.append(entry.members[0]._replace(share=member["weight"]))
    settings = report["settings"]
    tag = f", {settings['tag']}" if settings["tag"] else ""
    caption = f"{report['teacher']['name']} ({TOGETHER}{tag})"
    return Entry(caption, TOGETHER, settings["seed"], report, mixed)


def _alone(run: Path, report: dict, left_out: list[str]) -> list[Entry]:
    """A distilled run's network trained alone, under the run's own tag, otherwise under none.

    Adds to `left_out` if there is none.
    """
    settings = report["settings"]
    name = report["student"]["name"]
    folder = alone_path(run, settings["tag"], name, settings["seed"])
    untagged = alone_path(run, "", name, settings["seed"])
    if not RunPaths(folder).finished and RunPaths(untagged).finished:
        folder = untagged
    what = f"network '{name}' alone ({folder}) for '{run}'"
    try:
        own = _read_existing(folder, what)
        check_same_images(what, own, run, report)
    except Problem as problem:
        left_out.append(str(problem))
        return []
    return [_entry(folder, own, ALONE)]


def _read_existing(folder: Path, what: str, weights: str | None = None) -> dict:
    """The report of a run that should be in `folder`.

    Raises Problem where there is none, or with other weights than it should.
    """
    if not RunPaths(folder).finished:
        raise Problem(f"{what}: no finished run lies there; only networks that have one are judged")
    report = reports.read(folder)
    own = report["student"]["weights_hash"]
    if weights not in (None, own):
        raise Problem(f"{what}: holds the weights {own} now, {weights} taught; restore those")
    return report


def check_same_images(what: str, report: dict, run: Path, other: dict) -> None:
    """Raise Problem where a report is of other test images than that of `run` (`other`)."""
    for key in ("split_hash", "content_hash", "image_size", "channels", "crop", "resize"):
        own = _image_property(report, key)
        theirs = _image_property(other, key)
        if own != theirs:
            raise Problem(
                f"{what}: its {key} is {own}, that of '{run}' {theirs}; give runs judged on the"
                " same test images"
            )


def _image_property(report: dict, key: str):
    return report["data"].get(key, report["settings"].get(key))
