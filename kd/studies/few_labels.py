"""Learning with few labels: arms that share a student, a teacher and a number of steps.

The arms are compared at each fraction of labels. Students whose teacher has data of its own, such
as all labels, are arms of their own.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd.config.rows import OWN_TEACHER
from kd.data.index import digest
from kd.reports import figures, statistics
from kd.reports.statistics import mean_sd
from kd.reports.text import NOT_KNOWN, mean_text
from kd.reports.verdicts import Member, judge
from kd.studies.cells import EXPLANATION, gap_texts
from kd.studies.flags import one_class_note
from kd.studies.modes import ALONE, has_network, shows_pool, without_words, words_of
from kd.studies.outputs import left_out_lines, write_outputs
from kd.studies.runs import Run, differing, gather
from kd.studies.study import leak_text
from kd.studies.teachers import other_labels_note, own_data_notes
from kd.studies.unfinished import (
    Unfinished,
    count_states,
    data_settings,
    n_text,
    unfinished_lines,
)
from kd.system.console import log
from kd.system.errors import Problem, printable
from kd.system.markdown import table

SCHEMA_VERSION = 1
TEACHER = "teacher"
# ALONE (the baseline), or the mode that taught the student -> caption. If the teacher has data of
# its own, words about them are added: `normal (all labels)`, `teacher (all labels)`.
ARMS = {
    ALONE: "labels only",
    "normal": "KD (labelled)",
    "unlabeled-only": "KD (unlabelled)",
    "unlabeled": "KD (unlabelled), fine-tuned",
    "mean-teacher": "mean teacher",
    "fixmatch": "FixMatch",
}
# Arms whose student is its own teacher. They are in every pair of the student.
ITSELF = tuple(arm for arm in ARMS if arm != ALONE and not has_network(arm))
GAPS = (
    ("normal", ALONE),
    ("unlabeled-only", ALONE),
    ("unlabeled", ALONE),
    ("unlabeled", "normal"),
    *((arm, ALONE) for arm in ITSELF),
)
SCORES = {
    "accuracy": "test accuracy",
    "quadratic_kappa": "quadratic weighted kappa",
    "referable_auc": "AUC of referable disease (grade >= 2)",
}


class Pair(NamedTuple):
    """A student and its teacher, evaluated on the same images, which `data` describes."""

    data: str
    student: str
    teacher: str
    tag: str


class Labels(NamedTuple):
    """Seed and labels of a run. Runs that share both are compared image by image."""

    seed: int
    split_hash: str


# (fraction of labels, arm) -> the runs of the arm.
Arms = dict[tuple[float, str], dict[Labels, Run]]


def write_arms(root: Path) -> dict:
    """Print the arms of all runs below `root`; write arms.md, arms.json and a figure for each pair.

    Returns the JSON. Raises Problem if no readable run used unlabelled images.
    """
    protocols, left_out, unfinished = gather(root, "--arms")
    runs = []
    for protocol in protocols:
        runs += protocol
    pairs, twice = pairs_of(runs)
    left_out += twice
    if not pairs:
        for text in left_out:
            log(f"excluded: {text}")
        for run in unfinished:
            log(f"unfinished: {run.describe()}")
        raise Problem(
            f"Folder '{root}' (given by --arms) has no run with unlabelled images or with"
            " --teacher-labeled-fraction. Run distill.py --mode unlabeled first, as shown in"
            " configs/README.md."
        )
    result = {
        "schema_version": SCHEMA_VERSION,
        "groups": [_group(pair, pairs[pair], unfinished) for pair in sorted(pairs)],
        "unfinished": [run.entry() for run in unfinished],
        "left_out": left_out,
    }
    for number, group in enumerate(result["groups"]):
        name = f"arms-{number}.png" if len(pairs) > 1 else "arms.png"
        figures.save(root / name, figures.pixels(figures.arms(group, _captions(group))))
    write_outputs(root, "arms", markdown(result), result, f"figures ({len(pairs)})")
    return result


def _captions(group: dict) -> dict[str, str]:
    """Return arm -> caption for the figure of a group, the teachers last."""
    arms = sorted(group["arms"], key=lambda arm: without_words(arm) == TEACHER)
    return {arm: _caption(arm) for arm in arms}


def _caption(arm: str) -> str:
    """Return the caption of an arm: `KD (labelled), teacher with all labels`."""
    name = without_words(arm)
    if name == TEACHER or name == arm:
        return arm if name == TEACHER else ARMS[arm]
    return f"{ARMS[name]}, teacher with {words_of(arm)}"


def _named(name: str, words: str) -> str:
    """Return an arm with words on the data of the teacher."""
    return f"{name} ({words})" if words else name


def pairs_of(runs: list[Run]) -> tuple[dict[Pair, Arms], list[str]]:
    """Return (the arms of every pair, the excluded runs).

    The pairs are those that used unlabelled images, and those whose teacher has data of its own. A
    student that is its own teacher is a pair only if it is in no other one. Runs are comparable if
    they were evaluated on the same images.
    """
    trained = {run.report["student"]["weights_hash"]: run for run in runs}
    runs_on = {}
    for run in runs:
        runs_on.setdefault(_judged_on(run), []).append(run)
    arms_of = {}
    left_out = []
    for data in sorted(runs_on):
        pairs = set()
        for run in runs_on[data]:
            uses_pool = run.role in ITSELF or shows_pool(run.role)
            if run.role in ARMS and (uses_pool or words_of(run.teacher)):
                pairs.add(Pair(data, run.student, without_words(run.teacher), run.tag))
        for pair in sorted(_without_shown(pairs)):
            arms_of[pair], twice = _arms(runs_on[data], pair)
            _add_teachers(arms_of[pair], trained)
            left_out += twice
    return arms_of, list(dict.fromkeys(left_out))


def _without_shown(pairs: set[Pair]) -> set[Pair]:
    """Return the pairs without students that are their own teachers and arms of another pair."""
    others = {pair for pair in pairs if pair.teacher != OWN_TEACHER}
    shown = set()
    for pair in others:
        shown |= {pair._replace(teacher=OWN_TEACHER, tag=tag) for tag in ("", pair.tag)}
    return pairs - shown


def _judged_on(run: Run) -> str:
    """Describe what must agree for two runs to be compared, whatever labels they had.

    The description identifies the test images by a hash.
    """
    own = run.protocol
    rows = zip(run.test.paths, run.test.patients, run.test.labels)
    images = digest("\t".join(map(str, row)) for row in rows)
    cropped = "" if own.crop == "none" else f", {own.crop}"
    drawn = ""
    for key in ("train_per_class", "balance"):
        value = run.report["settings"][key]
        if value not in (None, "none"):
            drawn += f", {key} = {value}"
    return (
        f"{own.data}, {own.split} split (seed {own.split_seed}), {own.image_size} px ({own.resize},"
        f" {own.channels}-channel{cropped}){drawn}, {len(run.test.paths)} test images (hash"
        f" {images})"
    )


def _arms(runs: list[Run], pair: Pair) -> tuple[Arms, list[str]]:
    """Return (the arms of a pair, the excluded runs).

    Networks trained alone may be untagged. Those with the tag of the pair take precedence.
    """
    arms = {}
    tags = _tags(runs, pair)
    left_out = []
    for run in sorted(runs, key=lambda run: run.tag):  # untagged first
        labels = Labels(run.seed, run.report["data"]["split_hash"])
        for arm in _arms_in(run, pair, tags):
            own = arms.setdefault((run.report["settings"]["labeled_fraction"], arm), {})
            other = own.get(labels)
            if other is None or other.tag != run.tag:
                own[labels] = run
            else:
                left_out.append(
                    f"Run '{run.folder}' is in the same arm as '{other.folder}'. Use another --tag"
                    " for one of them."
                )
    return arms, left_out


def _add_teachers(arms: Arms, trained: dict[str, Run]) -> None:
    """Add the runs of networks that taught with data of their own, as arms beside their students.

    trained  hash of the weights -> run
    """
    for (fraction, arm), runs in list(arms.items()):
        words = words_of(arm)
        for run in runs.values() if words else ():
            teacher = trained.get(run.report["teacher"]["hash"])
            if teacher is not None:
                labels = Labels(teacher.seed, teacher.report["data"]["split_hash"])
                arms.setdefault((fraction, _named(TEACHER, words)), {})[labels] = teacher


def _tags(runs: list[Run], pair: Pair) -> tuple[str, ...]:
    """Return the tags of a pair's students whose teacher has no data of its own.

    With data of its own, a student needs another tag. Those without a tag are then its controls.
    """
    for run in runs:
        if _is_of(run, pair) and run.tag == pair.tag and not words_of(run.teacher):
            return (pair.tag,)
    return (pair.tag, "")


def _is_of(run: Run | Unfinished, pair: Pair) -> bool:
    """Return whether a run is in an arm of a pair's student, whatever its tag."""
    names = (run.student, without_words(run.teacher))
    return run.role in ARMS and run.role != ALONE and names == (pair.student, pair.teacher)


def _arms_in(run: Run | Unfinished, pair: Pair, tags: tuple[str, ...]) -> list[str]:
    """Return the arms that a run belongs to; `tags` are those of `_tags`.

    A network trained alone may be the student's baseline, the teacher, or both.
    """
    if run.role == ALONE:
        if run.tag not in ("", pair.tag):
            return []
        names = {ALONE: pair.student, TEACHER: pair.teacher}
        return [arm for arm, name in names.items() if run.student == name]
    if run.role in ITSELF:
        own = run.student == pair.student and run.tag in ("", pair.tag)
        return [run.role] if own else []
    words = words_of(run.teacher)
    own = _is_of(run, pair) and run.tag in ((pair.tag,) if words else tags)
    return [_named(run.role, words)] if own else []


def _unfinished_in(
    arms: Arms, pair: Pair, unfinished: list[Unfinished]
) -> dict[tuple[float, str], list[Unfinished]]:
    """Return the unfinished runs of a pair's arms, by fraction of labels and arm."""
    known = []
    every = []
    for (_, arm), runs in arms.items():
        if arm == TEACHER or without_words(arm) != TEACHER:
            every += runs.values()
            known += [data_settings(run.settings, labels=False) for run in runs.values()]
    tags = _tags(every, pair)
    found = {}
    for run in unfinished:
        if data_settings(run.settings, labels=False) in known:
            for arm in _arms_in(run, pair, tags):
                found.setdefault((run.settings["labeled_fraction"], arm), []).append(run)
    return found


def _group(pair: Pair, arms: Arms, unfinished: list[Unfinished]) -> dict:
    """Return a pair as plain values, with a row for each fraction of labels."""
    students = []
    for (_, arm), runs in arms.items():
        if without_words(arm) != TEACHER:
            students += runs.values()
    rows = []
    every = []
    ended = _unfinished_in(arms, pair, unfinished)
    names = _names([arm for _, arm in (*arms, *ended)])
    # A fraction that only the teachers' own runs have is not one of the students.
    for fraction in sorted({fraction for fraction, arm in arms if arm in names and arm != TEACHER}):
        runs_of = {}
        states = {}
        for arm in names:
            states[arm] = count_states(ended.get((fraction, arm), []))
            if (fraction, arm) in arms:
                runs_of[arm] = arms[fraction, arm]
        rows.append({"fraction": fraction, **_row(runs_of), "gaps": [], "unfinished": states})
        every.append(runs_of)
    for first, second in _gaps(names):
        family = [_member(runs_of, first, second, students[0].test.clusters) for runs_of in every]
        for row, gap in zip(rows, judge(family)):
            row["gaps"].append({"of": first, "minus": second, "gap": gap})
    return {**pair._asdict(), "arms": names, "rows": rows, "notes": _notes(students)}


def _names(arms: list[str]) -> list[str]:
    """Return the arms of a group in order: teachers, then students, own data of teachers last.

    If no student has a teacher with the student's own data, the arms of such teachers are left out.
    Otherwise all of them are named, so that the page shows which ones are missing. Arms without a
    teacher network are named if there are any.
    """
    itself = [arm for arm in ITSELF if arm in arms]
    if itself and set(arms) <= {ALONE, *itself}:
        return [ALONE, *itself]
    taught = [arm for arm in ARMS if arm not in (ALONE, *ITSELF)]
    every = sorted({words_of(arm) for arm in arms} - {""})
    plain = not every or any(arm in arms for arm in taught)
    names = [TEACHER] if plain else []
    names += [_named(TEACHER, words) for words in every]
    names += [ALONE, *(taught if plain else []), *itself]
    for words in every:
        names += [_named(arm, words) for arm in taught if _named(arm, words) in arms]
    return names


def _gaps(names: list[str]) -> list[tuple[str, str]]:
    """Return the arms to compare: those of GAPS, and those with words with those without."""
    gaps = list(GAPS)
    for words in dict.fromkeys(filter(None, map(words_of, names))):
        for first, second in GAPS:
            other = second if second == ALONE else _named(second, words)
            gaps.append((_named(first, words), other))
        gaps += [(_named(arm, words), arm) for arm in ARMS]
    return [gap for gap in gaps if set(gap) <= set(names)]


def _row(runs_of: dict[str, dict[Labels, Run]]) -> dict:
    """Return the results at one fraction of labels. runs_of: arm -> runs by seed and labels."""
    images = set()
    for arm, runs in runs_of.items():
        if without_words(arm) == TEACHER != arm:
            continue  # it has other labels than the students of the row
        images |= {run.report["data"]["distinct_images"]["train"] for run in runs.values()}
    return {
        "images": sorted(images),
        "cells": {arm: _cell(list(runs.values())) for arm, runs in runs_of.items()},
    }


def _member(
    runs_of: dict[str, dict[Labels, Run]], first: str, second: str, patients: np.ndarray
) -> Member:
    """Return the comparison of two arms at one fraction of labels; patients [N]."""
    sides = [runs_of.get(arm, {}) for arm in (first, second)]
    common = sorted(sides[0].keys() & sides[1].keys())
    rights = [_by_seed({labels: side[labels].test.right for labels in common}) for side in sides]
    runs = [side[labels] for side in sides for labels in common]
    return Member(statistics.pair(*rights, patients), second, one_class_note(runs))


def _by_seed(rights: dict[Labels, np.ndarray]) -> dict[int, np.ndarray]:
    """Return seed -> the mean over its draws of labels [N]. Draws are no seeds of their own."""
    drawn = {}
    for labels, right in rights.items():
        drawn.setdefault(labels.seed, []).append(right)
    return {seed: np.mean(own, axis=0) for seed, own in drawn.items()}


def _cell(runs: list[Run]) -> dict:
    """Return the `mean_sd` of each score (None where it is undefined) and the numbers of steps."""
    cell = {"steps": sorted({run.report["history"]["steps"] for run in runs})}
    for score in SCORES:
        values = [value for value in (_score(run, score) for run in runs) if value is not None]
        cell[score] = {"n": len(values), **mean_sd(values)} if values else None
    return cell


def _score(run: Run, score: str) -> float | None:
    if score == "accuracy":
        return run.accuracy("test")
    grades = run.report["evidence"]["grades"]
    return None if grades is None else grades[score]


def _notes(runs: list[Run]) -> list[str]:
    """Return notes on whether the arms are equal in steps, labels of the teachers and settings."""
    other_labels = other_labels_note(runs)
    own_data = own_data_notes(runs)
    others = [run for run in runs if run.teacher and not words_of(run.teacher)]
    same_labels = ""
    if others:
        which = "Every other" if own_data else "Every"
        same_labels = f"{which} teacher was trained on exactly the labels of its student."
    leaking = [run.report["data"] for run in runs if run.report["data"]["leaks"]]
    notes = [leak_text(leaking[0])] if leaking else []
    notes += [_steps_note(runs), *own_data, *filter(None, [other_labels or same_labels])]
    splits = {}
    for run in runs:
        settings = run.report["settings"]
        drawn = (run.seed, settings["labeled_fraction"], settings["labeled_seed"])
        splits.setdefault(drawn, set()).add(run.report["data"]["split_hash"])
    if any(len(hashes) > 1 for hashes in splits.values()):
        notes.append(
            "Warning: some runs of the same seed had different labels or images. No differences are"
            " computed between them."
        )
    return notes + [f"Settings differ between the students: {text}." for text in differing(runs)]


def _steps_note(runs: list[Run]) -> str:
    steps = sorted({run.report["history"]["steps"] for run in runs})
    if len(steps) == 1:
        return f"Every student took {steps[0]} optimizer steps."
    return (
        f"Warning: the students took different numbers of optimizer steps"
        f" ({', '.join(map(str, steps))}), so differences may be due to longer training."
    )


def markdown(result: dict) -> str:
    """Format arms.json as Markdown that is also readable in a terminal."""
    lines = []
    for group in result["groups"]:
        tag = f", tag {group['tag']}" if group["tag"] else ""
        names = f"{printable(group['student'])} <- {printable(group['teacher'])}"
        lines += [f"# {names}{tag}: {printable(group['data'])}", ""]
        for score in SCORES:
            lines += _score_lines(group, score)
        lines += [*_gap_lines(group), "", *group["notes"], ""]
    lines += unfinished_lines(result["unfinished"])
    return "\n".join([*lines, *left_out_lines(result["left_out"])])


def _score_lines(group: dict, score: str) -> list[str]:
    """Return the table of one score for all arms, or nothing if no arm has the score."""
    rows = []
    known = False
    for row in group["rows"]:
        texts = []
        for arm in group["arms"]:
            own = row["cells"][arm][score] if arm in row["cells"] else None
            known = known or own is not None
            texts.append(_score_text(own, row["unfinished"][arm]))
        rows.append([_labels(row), *texts])
    header = [f"{SCORES[score]} by labelled images", *map(_caption, group["arms"])]
    return [*table(header, rows), ""] if known else []


def _score_text(score: dict | None, states: dict[str, int]) -> str:
    if score is None:
        return n_text(0, states)
    return f"{mean_text(score)} {n_text(score['n'], states)}"


def _labels(row: dict) -> str:
    """Format the number of labelled images: `56 (30 % requested)`, or a range `56-60 (...)`."""
    ends = dict.fromkeys((row["images"][0], row["images"][-1]))
    return f"{'-'.join(map(str, ends))} ({100 * row['fraction']:g} % requested)"


def _gap_lines(group: dict) -> list[str]:
    """Return the table of the differences between arms in test accuracy."""
    pairs = [(_caption(one["of"]), _caption(one["minus"])) for one in group["rows"][0]["gaps"]]
    header = ["labelled images", *(f"{first} minus {second}" for first, second in pairs)]
    rows = []
    for row in group["rows"]:
        gaps = [one["gap"] for one in row["gaps"]]
        rows.append([_labels(row), *map(_gap_text, gaps)])
    caption = "Test accuracy, differences with 95 % intervals:"
    return [caption, "", *table(header, rows), "", EXPLANATION]


def _gap_text(gap: dict | None) -> str:
    return ", ".join(gap_texts(gap)) if gap else NOT_KNOWN
