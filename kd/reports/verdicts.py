"""Verdicts on differences: the words of a family of comparisons.

A family is one kind of comparison in one table, for example all students minus the same networks
trained alone. The words follow p-values that are adjusted for the number of comparisons in the
family. A family in which there is no difference has a wrong "better" or "worse" in about one case
in twenty at most (tests/benchmarks/coverage.py).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from kd.reports.statistics import (
    LEVEL,
    Comparison,
    Estimate,
    SeedVariance,
    estimate,
    shared_seed_variances,
)
from kd.system.errors import counted

MIN_SEEDS = 3
# Patients on whom two methods must differ before there is a verdict: with fewer, the normal
# approximation does not hold.
MIN_DISCORDANT = 10
NO_EVIDENCE = "no evidence"
NOT_SHOWN = "not shown to be as good"


@dataclass(frozen=True)
class Member:
    """A comparison of a family.

    comparison  None if the sides have no seed or less than two patients in common
    shared      the network that it has in common with other members, which are then correlated
    doubt       why there can be no verdict, whatever the numbers are; otherwise empty
    """

    comparison: Comparison | None
    shared: Hashable
    doubt: str = ""


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979, Scandinavian J. of Statistics 6)."""
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def judge(family: Sequence[Member], margin: float | None = None) -> list[dict | None]:
    """Return each comparison of a family as plain values, with its interval and verdict.

    The intervals are not adjusted for the number of comparisons. The verdicts are, by Holm's method
    over the members that can have one; `p` and `p_margin` are the adjusted p-values.

    margin  of non-inferiority, for comparisons with a teacher. The verdict is then "better", "as
            good within MARGIN", "worse", both of the last two, or "not shown to be as good".
            Without a margin it is "better", "worse" or "no evidence". A member that can have no
            verdict has the reason

    Returns None for members without a comparison.
    """
    known = [member for member in family if member.comparison is not None]
    seeds_of = _seed_variances(known)
    estimates = {
        id(member): estimate(member.comparison, seeds_of.get(id(member))) for member in known
    }
    silent = {id(member): _silence(member) for member in known}
    heard = [id(member) for member in known if not silent[id(member)]]
    p_values = _adjusted([estimates[one].p_two_sided() for one in heard], heard)
    p_margins = {}
    if margin is not None:
        p_margins = _adjusted([estimates[one].p_below(-margin) for one in heard], heard)
    results = {}
    for member in known:
        own = id(member)
        p, p_margin = p_values.get(own), p_margins.get(own)
        says = silent[own] or _words(member.comparison.mean, p, p_margin, margin)
        results[own] = _plain(member.comparison, estimates[own]) | {"p": p, "says": says}
        if margin is not None:
            results[own]["p_margin"] = p_margin
    return [results.get(id(member)) for member in family]


def _seed_variances(members: list[Member]) -> dict[int, SeedVariance]:
    """Return the `shared_seed_variances` of the members with several seeds, if there are two."""
    several = [member for member in members if member.comparison.seeds > 1]
    if len(several) < 2:
        return {}
    comparisons = [member.comparison for member in several]
    found = shared_seed_variances(comparisons, [member.shared for member in several])
    return dict(zip(map(id, several), found))


def _adjusted(p_values: list[float], owners: list[int]) -> dict[int, float]:
    return dict(zip(owners, holm(p_values)))


def _silence(member: Member) -> str:
    """Return why a comparison can have no verdict; an empty string if it can."""
    one = member.comparison
    if one.seeds < MIN_SEEDS:
        return f"no verdict: {counted(one.seeds, 'seed', 'seeds')}"
    if member.doubt:
        return f"no verdict: {member.doubt}"
    if one.discordant < MIN_DISCORDANT:
        return f"no verdict: too few differences ({one.discordant})"
    return ""


def _words(mean: float, p: float, p_margin: float | None, margin: float | None) -> str:
    """Return the verdict for adjusted p-values."""
    differs = ""
    if p < 1 - LEVEL:
        differs = "better" if mean > 0 else "worse"
    if margin is None:
        return differs or NO_EVIDENCE
    if p_margin >= (1 - LEVEL) / 2:
        return differs or NOT_SHOWN
    as_good = f"as good within {margin:g}"
    return f"{as_good} but worse" if differs == "worse" else differs or as_good


def _plain(one: Comparison, own: Estimate) -> dict:
    low, high = own.interval
    return {
        "mean": one.mean,
        "low": low,
        "high": high,
        "seeds": one.seeds,
        "patients": one.patients,
        "discordant": one.discordant,
    }
