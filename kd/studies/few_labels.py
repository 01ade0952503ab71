"""Learning with few labels: four arms that share a student, a teacher and a number of steps, over
the share of labels.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from kd.data.index import digest
from kd.reports import figures
from kd.reports.statistics import against_alone
from kd.studies.study import ALONE, Run, differing, gap, gather
from kd.studies.tables import tell
from kd.system.console import log
from kd.system.errors import Problem, printable

SCHEMA_VERSION = 1
TEACHER = "teacher"
# A student alone, or the mode it was taught in -> caption.
ARMS = {
    ALONE: "labels only",
    "normal": "KD, labelled",
    "unlabeled-only": "unlabelled alone",
    "unlabeled": "unlabelled, then labelled",
}
GAPS = (("normal", ALONE), ("unlabeled-only", ALONE), ("unlabeled", ALONE), ("unlabeled", "normal"))
SCORES = {
    "accuracy": "test accuracy",
    "quadratic_kappa": "quadratic weighted kappa",
    "referable_auc": "AUC of referable (grade >= 2)",
}


def write_arms(root: Path) -> dict:
    """Print the arms of all runs below `root`; write arms.md, arms.json and a plot for each pair.

    Returns the JSON.

    Raises Problem where no run that can be read went through unlabelled images.
    """
    studies, left_out = gather(root, "--arms")
    groups, twice = pairs_of([run for study in studies for run in study.runs.values()])
    left_out += twice
    if not groups:
        for text in left_out:
            log(f"left out: {text}")
        raise Problem(
            f"runs '{root}' in --arms: none is of distill.py --mode unlabeled; run that first (the"
            " README shows how)"
        )
    result = {
        "schema_version": SCHEMA_VERSION,
        "groups": [_account(key, runs) for key, runs in sorted(groups.items())],
        "left_out": left_out,
    }
    for number, found in enumerate(result["groups"]):
        name = f"arms-{number}.png" if len(groups) > 1 else "arms.png"
        figures.save(
            root / name, figures.pixels(figures.arms(found, ARMS | {TEACHER: "the teacher"}))
        )
    tell(root, "arms", markdown(result), result, f"{len(groups)} plots")
    return result


def pairs_of(runs: list[Run]) -> tuple[dict[tuple, dict], list[str]]:
    """({(data, student, teacher, tag): {(fraction, arm): {(seed, parts): run}}}, what was left
    out).

    Pairs that went through unlabelled images. Runs are comparable where they are judged on the same
    images; those of one (seed, parts) had the same labels. Networks alone may be untagged.
    """
    judged = {id(run): _judged_on(run) for run in runs}
    pairs = {
        (judged[id(run)], run.student, run.teacher, run.tag)
        for run in runs
        if run.role.startswith("unlabeled")
    }
    groups, left_out = {}, []
    for data, student, teacher, tag in pairs:
        found = defaultdict(dict)
        for run in sorted(
            runs, key=lambda run: run.tag
        ):  # untagged first: the tag's own take their place
            if judged[id(run)] != data or run.tag not in (
                ("", tag) if run.role == ALONE else (tag,)
            ):
                continue
            for arm in _arms_of(run, student, teacher):
                cell = found[run.report["settings"]["labeled_fraction"], arm]
                other = cell.setdefault((run.seed, run.report["data"]["split_hash"]), run)
                if other is not run and other.tag != run.tag:
                    cell[run.seed, run.report["data"]["split_hash"]] = run
                elif other is not run:
                    left_out.append(
                        f"'{run.folder}': is the same arm as '{other.folder}'; give one of them"
                        " another --tag"
                    )
        groups[data, student, teacher, tag] = dict(found)
    return groups, list(dict.fromkeys(left_out))


def _judged_on(run: Run) -> str:
    """What must agree for two runs to be compared, whatever labels they had: in words, with a name
    for the test images.
    """
    name, split, seed, size, resize, channels, crop, *_ = run.protocol
    given = {key: run.report["settings"][key] for key in ("train_per_class", "balance")}
    own = "".join(f", {key} {value}" for key, value in given.items() if value not in (None, "none"))
    images = digest(
        "\t".join(map(str, row)) for row in zip(run.test.paths, run.test.patients, run.test.labels)
    )
    cropped = "" if crop == "none" else f", {crop}"
    return (
        f"{name}, split {split} (seed {seed}), {size} px ({resize}, {channels}"
        f" channels{cropped}){own}, {len(run.test.paths)} test images ({images})"
    )


def _arms_of(run: Run, student: str, teacher: str) -> list[str]:
    """The arms in which a run stands for a pair: a network alone may be the student's, the
    teacher's, or both.
    """
    if run.role == ALONE:
        return [arm for arm, name in ((ALONE, student), (TEACHER, teacher)) if run.student == name]
    return (
        [run.role] if run.role in ARMS and (run.student, run.teacher) == (student, teacher) else []
    )


def _account(key: tuple, runs: dict) -> dict:
    data, student, teacher, tag = key
    rows = []
    for fraction in sorted({fraction for fraction, _ in runs}):
        own = {arm: runs[fraction, arm] for arm in (TEACHER, *ARMS) if (fraction, arm) in runs}
        images = sorted(
            {
                run.report["data"]["distinct_images"]["train"]
                for found in own.values()
                for run in found.values()
            }
        )
        rows.append(
            {
                "fraction": fraction,
                "images": images,
                "cells": {arm: _cell(found) for arm, found in own.items()},
                "gaps": [_gap(own, *pair) for pair in GAPS],
            }
        )
    every = [run for (_, arm), found in runs.items() for run in found.values() if arm != TEACHER]
    return {
        "data": data,
        "student": student,
        "teacher": teacher,
        "tag": tag,
        "rows": rows,
        "notes": _notes(every),
    }


def _cell(runs: dict) -> dict:
    """Mean and standard deviation over seeds of each score (None where it is undefined), and the
    steps that were taken.
    """
    values = {"accuracy": [run.accuracy("test") for run in runs.values()]}
    for score in list(SCORES)[1:]:
        grades = [run.report["evidence"]["grades"] for run in runs.values()]
        values[score] = [
            grade[score] for grade in grades if grade is not None and grade[score] is not None
        ]
    return {
        "steps": sorted({run.report["history"]["steps"] for run in runs.values()}),
        **{
            score: (
                {
                    "n": len(own),
                    "mean": float(np.mean(own)),
                    "sd": float(np.std(own, ddof=1)) if len(own) > 1 else None,
                }
                if own
                else None
            )
            for score, own in values.items()
        },
    }


def _gap(own: dict, first: str, second: str) -> dict:
    """The difference in test accuracy between two arms with its interval; None for it where no seed
    has both.
    """
    seeds, found = sorted(own.get(first, {}).keys() & own.get(second, {}).keys()), None
    if seeds:
        right = [np.stack([own[arm][seed].test.right for seed in seeds]) for arm in (first, second)]
        found = gap(*right, own[first][seeds[0]].test.patients)
    return {"of": first, "minus": second, "gap": found and found | {"says": against_alone(found)}}


def _notes(runs: list[Run]) -> list[str]:
    """What makes arms unequal: other numbers of steps, teachers that knew other labels, other
    settings.
    """
    steps = sorted({run.report["history"]["steps"] for run in runs})
    draws = defaultdict(set)
    for run in runs:
        given = run.report["settings"]
        draws[run.seed, given["labeled_fraction"], given["labeled_seed"]].add(
            run.report["data"]["split_hash"]
        )
    taught = [run.report for run in runs if run.report["teacher"] is not None]
    foreign = sum(
        any(
            member["split"] != report["data"]["split_hash"]
            for member in report["teacher"]["members"]
        )
        for report in taught
    )
    return [
        (
            f"Every student took {steps[0]} optimizer steps."
            if len(steps) == 1
            else (
                f"NOT EQUAL: the students took {', '.join(map(str, steps))} optimizer steps; who"
                " trains longer proves nothing."
            )
        ),
        (
            f"NOT EQUAL: {foreign} of {len(taught)} students had a teacher that knew other labels"
            " than theirs."
            if foreign
            else "Every teacher was trained on the labels of its student, and on no others."
        ),
        *(
            [
                "NOT EQUAL: runs of the same seeds had other labels or pictures; no difference is"
                " taken between those."
            ]
            if any(len(hashes) > 1 for hashes in draws.values())
            else []
        ),
        *(f"Settings differ between the students: {text}." for text in differing(runs)),
    ]


def markdown(result: dict) -> str:
    """All groups as Markdown that reads well in a terminal, too."""
    lines = []
    for found in result["groups"]:
        tag = f", {found['tag']}" if found["tag"] else ""
        lines += [
            (
                f"# {printable(found['student'])} <- {printable(found['teacher'])}{tag}:"
                f" {printable(found['data'])}"
            ),
            "",
        ]
        for score, caption in SCORES.items():
            if any(cell[score] for row in found["rows"] for cell in row["cells"].values()):
                lines += [*_table(found, score, caption), ""]
        lines += [*_gaps(found), "", *found["notes"], ""]
    if result["left_out"]:
        lines += ["# Left out", "", *(f"- {printable(text)}" for text in result["left_out"]), ""]
    return "\n".join(lines)


def _table(found: dict, score: str, caption: str) -> list[str]:
    lines = [
        f"| {caption} by labels | the teacher | {' | '.join(ARMS.values())} |",
        "|---" * (len(ARMS) + 2) + "|",
    ]
    for row in found["rows"]:
        cells = [_figure(row["cells"].get(arm), score) for arm in (TEACHER, *ARMS)]
        lines.append(f"| {_labels(row)} | {' | '.join(cells)} |")
    return lines


def _labels(row: dict) -> str:
    images = "-".join(map(str, dict.fromkeys((row["images"][0], row["images"][-1]))))
    return f"{images} ({100 * row['fraction']:g} % asked for)"


def _figure(cell: dict | None, score: str) -> str:
    if cell is None or cell[score] is None:
        return "-"
    sd = cell[score]["sd"]
    return (
        f"{cell[score]['mean']:.4f}"
        + ("" if sd is None else f" ± {sd:.4f}")
        + f" (n = {cell[score]['n']})"
    )


def _gaps(group: dict) -> list[str]:
    """The arms' differences in test accuracy."""
    heads = [f"{ARMS[of]} minus {ARMS[minus]}" for of, minus in GAPS]
    lines = [
        "Differences in test accuracy with 95 % intervals (patients and seeds):",
        "",
        f"| labels | {' | '.join(heads)} |",
        "|---" * (len(GAPS) + 1) + "|",
    ]
    for row in group["rows"]:
        cells = [
            (
                f"{found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}], {found['says']}"
                if (found := one["gap"])
                else "-"
            )
            for one in row["gaps"]
        ]
        lines.append(f"| {_labels(row)} | {' | '.join(cells)} |")
    return lines
