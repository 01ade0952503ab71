"""The effect of each mode, averaged over its pairs: the primary result of a study."""

from typing import NamedTuple

import numpy as np

from kd.reports.statistics import mean_sd, pair
from kd.reports.text import NOT_KNOWN
from kd.reports.verdicts import Member, judge
from kd.studies.cells import gap_texts
from kd.studies.flags import one_class_note
from kd.studies.modes import ALONE, stop_accuracy
from kd.studies.runs import Run
from kd.studies.study import Study
from kd.system.errors import counted, printable
from kd.system.markdown import table


class Pair(NamedTuple):
    """A pair of teacher and student whose runs are compared with other runs, both by seed."""

    name: str
    first: dict[int, Run]
    second: dict[int, Run]

    @property
    def seeds(self) -> frozenset[int]:
        return frozenset(self.first.keys() & self.second.keys())


def effects(study: Study) -> list[dict]:
    """Return the families of effects of each tag: first each mode minus the networks trained alone,
    then the defective mode minus each other mode.

    An effect is the mean over the pairs of a mode. It is evaluated like a single pair, seed by seed
    and patient by patient, after averaging over the pairs. Pairs that share a network, a teacher or
    a seed are correlated, so only the seeds count as independent repetitions.
    """
    families = []
    for tag in dict.fromkeys(tag for _, tag in study.tables()):
        modes = [mode for mode, own in study.tables() if own == tag]
        rows = {(mode, ALONE): _with_alone(study, mode, tag) for mode in modes}
        families.append(_family(study, tag, rows))
        for mode in modes:
            if stop_accuracy(mode) is not None:
                others = [other for other in modes if other != mode]
                rows = {(mode, other): _with_other(study, mode, other, tag) for other in others}
                families.append(_family(study, tag, rows))
    return [family for family in families if family["rows"]]


def _with_alone(study: Study, mode: str, tag: str) -> list[Pair]:
    """Return the pairs of a mode, each with the same network trained alone."""
    pairs = []
    for teacher, student in study.cells(mode, tag):
        runs = study.at(mode, tag, teacher, student)
        pairs.append(Pair(f"{student} <- {teacher}", runs, study.alone(student, tag)))
    return [one for one in pairs if one.seeds]


def _with_other(study: Study, mode: str, other: str, tag: str) -> list[Pair]:
    """Return the pairs of a mode, each with the same pair in another mode.

    If the other mode does not have the teacher, because students teach themselves or no network
    teaches, the pair is compared with the only run of its student in that mode.
    """
    pairs = []
    for teacher, student in study.cells(mode, tag):
        own = [name for name, of in study.cells(other, tag) if of == student]
        match = teacher if teacher in own else own[0] if len(own) == 1 else None
        if match is not None:
            runs = study.at(mode, tag, teacher, student)
            control = study.at(other, tag, match, student)
            pairs.append(Pair(f"{student} <- {teacher}", runs, control))
    return [one for one in pairs if one.seeds]


def _family(study: Study, tag: str, pairs_of: dict[tuple[str, str], list[Pair]]) -> dict:
    """Return a family as plain values. `pairs_of` is (mode, what it is compared with) -> pairs."""
    rows = []
    members = []
    for (mode, minus), pairs in pairs_of.items():
        used = _with_most_seeds(pairs)
        if used:
            rows.append({"mode": mode, "minus": minus, **_pairs_entry(study, pairs, used)})
            members.append(_member(study, used))
    for row, gap in zip(rows, judge(members, pool=False)):
        row["gap"] = gap
    return {"tag": tag, "rows": rows}


def _with_most_seeds(pairs: list[Pair]) -> list[Pair]:
    """Return the pairs that have the seeds of the pair with the most seeds.

    A mean over pairs needs the same seeds in each of them.
    """
    if not pairs:
        return []
    most = max(pairs, key=lambda one: len(one.seeds)).seeds
    return [
        one._replace(
            first={seed: one.first[seed] for seed in most},
            second={seed: one.second[seed] for seed in most},
        )
        for one in pairs
        if one.seeds >= most
    ]


def _pairs_entry(study: Study, pairs: list[Pair], used: list[Pair]) -> dict:
    """Return the pairs of an effect, how far they differ, and those that were left out."""
    means = [pair(_right(one.first), _right(one.second), study.clusters).mean for one in used]
    names = [one.name for one in used]
    return {
        "pairs": dict(zip(names, means)),
        "spread": mean_sd(means)["sd"],
        "left_out": [one.name for one in pairs if one.name not in names],
    }


def _member(study: Study, pairs: list[Pair]) -> Member:
    """Return the comparison of two sides, after averaging over their pairs."""
    sides = []
    for which in ("first", "second"):
        rights = [_right(getattr(one, which)) for one in pairs]
        sides.append({seed: np.mean([own[seed] for own in rights], axis=0) for seed in rights[0]})
    runs = []
    for one in pairs:
        runs += [*one.first.values(), *one.second.values()]
    return Member(pair(*sides, study.clusters), ALONE, one_class_note(runs))


def _right(runs: dict[int, Run]) -> dict[int, np.ndarray]:
    return {seed: run.test.right for seed, run in runs.items()}


def effects_text(families: list[dict]) -> list[str]:
    """Format the effects as lines of Markdown."""
    if not families:
        return []
    lines = ["## Result: the mean effect of each mode over its pairs", ""]
    for family in families:
        tag = f", tag {printable(family['tag'])}" if family["tag"] else ""
        heads = [f"test accuracy{tag}", "pairs", "mean difference", "verdict", "single pairs"]
        lines += [*table(heads, [_row_text(row) for row in family["rows"]]), ""]
    left_out = [text for family in families for text in _left_out_texts(family)]
    lines += [
        (
            "Each pair is a teacher and a student; the mean has equal weights. Pairs are no random"
            " sample: the interval is for these networks, over other patients and seeds. Single"
            " pairs: standard deviation of their differences, smallest and largest."
        ),
        "",
        *left_out,
    ]
    return [*lines, ""] if left_out else lines


def _row_text(row: dict) -> list[str]:
    minus = "baseline" if row["minus"] == ALONE else row["minus"]
    values = list(row["pairs"].values())
    spread = NOT_KNOWN
    if row["spread"] is not None:
        spread = f"sd {row['spread']:.4f}, {min(values):+.4f} to {max(values):+.4f}"
    return [f"{row['mode']} minus {minus}", str(len(values)), *gap_texts(row["gap"]), spread]


def _left_out_texts(family: dict) -> list[str]:
    """Return a line for each effect from which pairs with fewer seeds were left out."""
    lines = []
    for row in family["rows"]:
        if row["left_out"]:
            pairs = counted(len(row["left_out"]), "pair has", "pairs have")
            names = ", ".join(printable(name) for name in row["left_out"])
            lines.append(
                f"{row['mode']} minus {row['minus']}: {pairs} fewer seeds than the others and"
                f" cannot be averaged with them: {names}."
            )
    return lines
