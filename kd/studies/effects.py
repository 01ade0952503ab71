"""The effect of each mode, averaged over its pairs: the primary result of a study."""

from typing import NamedTuple

import numpy as np

from kd.reports.statistics import mean_sd, pair
from kd.reports.text import NOT_KNOWN
from kd.reports.verdicts import MIN_SEEDS, Member, judge
from kd.studies.cells import gap_texts
from kd.studies.flags import one_class_note
from kd.studies.modes import (
    ALONE,
    Way,
    has_network,
    stop_accuracy,
    teaches_itself,
    without_words,
    words_of,
)
from kd.studies.runs import Run
from kd.studies.study import Study
from kd.system.errors import printable
from kd.system.markdown import table

TITLE = "Result: the mean effect of each mode over its pairs"
EXPLANATION = (
    "Each pair is a teacher and a student; the mean has equal weights. Pairs are no random sample:"
    " the interval is for these networks, over other patients and seeds. Single pairs: standard"
    " deviation of their differences (chance included), smallest and largest."
)


class Pair(NamedTuple):
    """A pair of teacher and student whose runs are compared with other runs, both by seed."""

    name: str
    first: dict[int, Run]
    second: dict[int, Run]

    @property
    def seeds(self) -> frozenset[int]:
        return frozenset(self.first.keys() & self.second.keys())

    def only(self, seeds: frozenset[int]) -> "Pair":
        """Return the pair with some of its seeds only."""
        sides = [{seed: side[seed] for seed in sorted(seeds)} for side in (self.first, self.second)]
        return Pair(self.name, *sides)


def effects(study: Study) -> list[dict]:
    """Return the families of effects of each tag: first each mode minus the networks trained alone,
    then the defective mode minus each other mode.

    An effect is the mean over the pairs of a mode. It is evaluated like a single pair, seed by seed
    and patient by patient, after averaging over the pairs. Pairs that share a network, a teacher or
    a seed are correlated, so only the seeds count as independent repetitions.
    """
    families = []
    for tag in dict.fromkeys(tag for _, tag in study.tables()):
        ways = []
        for mode, own in study.tables():
            if own == tag:
                ways += study.ways(mode, tag)
        rows = {(way, None): _with_alone(study, way, tag) for way in ways}
        families.append(_family(study, tag, rows))
        for way in ways:
            if stop_accuracy(way.mode) is not None:
                others = [other for other in ways if way.has_control(other)]
                rows = {(way, other): _with_other(study, way, other, tag) for other in others}
                families.append(_family(study, tag, rows))
    return [family for family in families if family["rows"]]


def _with_alone(study: Study, way: Way, tag: str) -> list[Pair]:
    """Return the pairs of a mode, each with the same network trained alone."""
    pairs = []
    for teacher, student in _pairs_of(study, way, tag):
        runs = study.at(way.mode, tag, teacher, student)
        pairs.append(Pair(f"{student} <- {teacher}", runs, study.alone(student, tag)))
    return pairs


def _with_other(study: Study, way: Way, other: Way, tag: str) -> list[Pair]:
    """Return the pairs of a mode, each with the same pair in another mode.

    In a mode in which students teach themselves, or no network teaches, that is the student's run.
    """
    others = _pairs_of(study, other, tag)
    pairs = []
    for teacher, student in _pairs_of(study, way, tag):
        match = teacher
        if teaches_itself(other.mode) or not has_network(other.mode):
            match = next((name for name, of in others if of == student), teacher)
        runs = study.at(way.mode, tag, teacher, student)
        control = study.at(other.mode, tag, match, student)
        pairs.append(Pair(f"{student} <- {teacher}", runs, control))
    return pairs


def _pairs_of(study: Study, way: Way, tag: str) -> list[tuple[str, str]]:
    """Return (teacher, student) of the pairs of a mode that were run.

    Of a chain, this is the first generation only.
    """
    pairs = []
    for teacher, student in study.cells(way.mode, tag):
        first = not teaches_itself(way.mode) or without_words(teacher) == student
        fits = first and words_of(teacher) == way.words
        if fits and study.at(way.mode, tag, teacher, student):
            pairs.append((teacher, student))
    return pairs


def _family(study: Study, tag: str, pairs_of: dict[tuple[Way, Way | None], list[Pair]]) -> dict:
    """Return a family as plain values.

    pairs_of  (a mode, what it is compared with: a mode, or None for the baseline) -> pairs
    """
    rows = []
    members = []
    for (way, other), pairs in pairs_of.items():
        seeds = _best_seeds(pairs)
        used = [one.only(seeds) for one in pairs if one.seeds >= seeds]
        if seeds:
            minus = other.name if other else ALONE
            rows.append({"mode": way.name, "minus": minus, **_pairs_entry(pairs, used, seeds)})
            members.append(_member(study, used))
    for row, gap in zip(rows, judge(members)):
        row["gap"] = gap
    return {"tag": tag, "rows": rows}


def _best_seeds(pairs: list[Pair]) -> frozenset[int]:
    """Return the seeds over which pairs are averaged; each pair needs all of them.

    They are those that all pairs have, if these are enough for a verdict. Otherwise they are those
    of a single pair: enough for a verdict if possible, then shared by the most pairs, then the most
    seeds.
    """
    own = [one.seeds for one in pairs if one.seeds]
    if not own:
        return frozenset()
    candidates = [frozenset.intersection(*own), *own]
    return max(
        filter(None, candidates),
        key=lambda seeds: (len(seeds) >= MIN_SEEDS, sum(one >= seeds for one in own), len(seeds)),
    )


def _pairs_entry(pairs: list[Pair], used: list[Pair], seeds: frozenset[int]) -> dict:
    """Return the pairs of an effect, how far they differ, and the seeds that others lack."""
    means = {}
    for one in used:
        gaps = [
            run.test.right.mean() - one.second[seed].test.right.mean()
            for seed, run in one.first.items()
        ]
        means[one.name] = float(np.mean(gaps))
    left_out = {one.name: sorted(seeds - one.seeds) for one in pairs if one.name not in means}
    return {
        "pairs": means,
        "spread": mean_sd(list(means.values()))["sd"],
        "left_out": left_out,
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
    lines = [f"## {TITLE}", ""]
    for family in families:
        lines += [*table(*effects_table(family)), ""]
    lines += [EXPLANATION, ""]
    for family in families:
        for text in left_out_texts(family):
            lines += [text, ""]
    return lines


def effects_table(family: dict) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a family of effects."""
    tag = f", tag {printable(family['tag'])}" if family["tag"] else ""
    heads = [f"test accuracy{tag}", "pairs", "mean difference", "verdict", "single pairs"]
    return heads, [_row_text(row) for row in family["rows"]]


def _row_text(row: dict) -> list[str]:
    values = list(row["pairs"].values())
    spread = NOT_KNOWN
    if row["spread"] is not None:
        spread = f"sd {row['spread']:.4f}, {min(values):+.4f} to {max(values):+.4f}"
    return [_name(row), str(len(values)), *gap_texts(row["gap"]), spread]


def _name(row: dict) -> str:
    return f"{row['mode']} minus {'baseline' if row['minus'] == ALONE else row['minus']}"


def left_out_texts(family: dict) -> list[str]:
    """Return a sentence for each effect from which pairs without some seed were left out."""
    lines = []
    for row in family["rows"]:
        pairs = []
        for name, seeds in row["left_out"].items():
            which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
            pairs.append(f"{printable(name)} (without {which})")
        if pairs:
            what = "; ".join(pairs)
            lines.append(f"{_name(row)}: not averaged, because runs are missing: {what}.")
    return lines
