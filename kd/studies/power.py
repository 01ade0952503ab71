"""Planning of a study: the power to show an effect, from the variances of pilot runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from kd.reports.statistics import LEVEL, Comparison, added_variance, estimate
from kd.reports.verdicts import MIN_DISCORDANT, MIN_SEEDS
from kd.studies.modes import Way, words_of
from kd.studies.outputs import left_out_lines, write_outputs
from kd.studies.runs import gather
from kd.studies.study import Study
from kd.system.console import log
from kd.system.errors import Problem, counted, printable
from kd.system.markdown import table

SCHEMA_VERSION = 1
EFFECTS = (0.01, 0.02, 0.03, 0.05)
SEEDS = (3, 5, 10)
FACTORS = (1, 2, 4, 8)  # of the number of patients in the pilot


class Components(NamedTuple):
    """Variances of a difference between two networks: those of one patient, one seed, and both.

    patient     of a patient's mean over all seeds
    seed        of a seed's mean over all patients
    both        of a patient in one seed, beyond these two
    discordant  share of the patients on whom the networks differ
    """

    patient: float
    seed: float
    both: float
    discordant: float


def components(pilots: Iterable[Comparison]) -> Components:
    """Return the variance components of comparisons with at least two seeds, averaged over them."""
    rows = []
    for one in pilots:
        both = one.noise_variance * one.patients
        own = one.patient_variance - added_variance(one.center, one.patients)
        patient = own * one.patients - both / one.seeds
        excess = one.seed_variance - one.noise_variance
        rows.append((patient, excess, both, one.discordant / one.patients))
    return Components(*np.maximum(0.0, np.mean(rows, axis=0)).tolist())


def planned(parts: Components, seeds: int, patients: int) -> Comparison:
    """Return the comparison of a study with expected variances and no difference."""
    both = parts.both / patients
    added = added_variance(0.0, patients)
    return Comparison(
        mean=0.0,
        center=0.0,
        patient_variance=parts.patient / patients + both / seeds + added,
        seed_variance=parts.seed + both,
        noise_variance=both,
        seeds=seeds,
        patients=patients,
        discordant=round(parts.discordant * patients),
    )


def power(
    parts: Components, effect: float, seeds: int, patients: int, comparisons: int = 1
) -> float:
    """Return the probability that a true `effect` (a fraction, above 0) is called "better".

    It is that of a t-test at the level 5 % / comparisons, the strictest of Holm's levels, with the
    noncentral t distribution, times the probability that the networks differ on enough patients for
    a verdict. With the margin M as the effect it is the power to call a student "as good within M"
    that is exactly as good: the test is the same, moved by M.
    """
    own = estimate(planned(parts, seeds, patients))
    critical = stats.t.ppf(1 - (1 - LEVEL) / 2 / comparisons, own.freedom)
    shrunk = effect * patients / (patients + 2)
    found = float(stats.nct.sf(critical, own.freedom, shrunk / own.error))
    return found * float(stats.binom.sf(MIN_DISCORDANT - 1, patients, min(1.0, parts.discordant)))


def write_power(root: Path, margin: float | None = None) -> dict:
    """Print the power of studies like those of the runs below `root`; write power.md, power.json.

    Returns the JSON. Raises Problem if no comparison has two seeds.
    """
    groups, left_out, _ = gather(root, "--power")
    result = {"schema_version": SCHEMA_VERSION, "studies": [], "left_out": left_out}
    for runs in groups:
        study = Study(runs)
        for mode, tag in study.tables():
            plans = [_plan(study, way, tag, margin) for way in study.ways(mode, tag)]
            result["studies"] += [plan for plan in plans if plan is not None]
    if not result["studies"]:
        for text in left_out:
            log(f"excluded: {text}")
        raise Problem(
            f"Folder '{root}' (given by --power) has no student and network trained alone with two"
            " seeds in common. The variance between seeds is needed: run them with --seed 0 and"
            " --seed 1."
        )
    write_outputs(root, "power", markdown(result), result, "no figure")
    return result


def _plan(study: Study, way: Way, tag: str, given: float | None) -> dict | None:
    """Return the power of a table's comparisons with the networks trained alone.

    None if no pair has two seeds.
    """
    pilots = []
    for teacher, student in study.cells(way.mode, tag):
        if words_of(teacher) != way.words:
            continue
        runs = study.at(way.mode, tag, teacher, student)
        member = study.minus(runs, study.alone(student, tag), student)
        one = member.comparison
        if one is not None and one.seeds > 1 and not member.doubt:
            pilots.append(one)
    if not pilots:
        return None
    parts = components(pilots)
    margin, _ = study.margin(given)
    rows = []
    for patients in [factor * pilots[0].patients for factor in FACTORS]:
        for seeds in SEEDS:
            for comparisons in dict.fromkeys((1, len(pilots))):
                values = [power(parts, size, seeds, patients, comparisons) for size in EFFECTS]
                rows.append(
                    {
                        "patients": patients,
                        "seeds": seeds,
                        "comparisons": comparisons,
                        "power": dict(zip(map(str, EFFECTS), values)),
                        "as_good": power(parts, margin, seeds, patients, comparisons),
                    }
                )
    return {
        "heading": study.heading,
        "mode": way.name,
        "tag": tag,
        "pairs": len(pilots),
        "seeds": max(one.seeds for one in pilots),
        "patients": pilots[0].patients,
        "margin": margin,
        "sd": {name: getattr(parts, name) ** 0.5 for name in ("patient", "seed", "both")},
        "discordant": parts.discordant,
        "rows": rows,
    }


def markdown(result: dict) -> str:
    """Format power.json as Markdown that is also readable in a terminal."""
    lines = []
    for study in result["studies"]:
        lines += _study_lines(study)
    return "\n".join([*lines, *left_out_lines(result["left_out"])])


def _study_lines(study: dict) -> list[str]:
    """Return the table of one mode, with the variances that it is based on."""
    tag = f", tag {printable(study['tag'])}" if study["tag"] else ""
    sd = {name: f"{100 * value:.1f}" for name, value in study["sd"].items()}
    effects = [f"+{100 * size:g} points" for size in EFFECTS]
    heads = ["patients", "seeds", "comparisons", *effects, f"as good within {study['margin']:g}"]
    rows = []
    for row in study["rows"]:
        shares = [*row["power"].values(), row["as_good"]]
        numbers = [row["patients"], row["seeds"], row["comparisons"]]
        rows.append([*map(str, numbers), *(f"{100 * share:.0f} %" for share in shares)])
    pilots = f"{counted(study['pairs'], 'pair', 'pairs')} with up to {study['seeds']} seeds"
    return [
        f"# Power of --mode {study['mode']}{tag}: {printable(study['heading'])}",
        "",
        *table(heads, rows),
        "",
        (
            "Power: the probability that a true difference of a single pair from the same network"
            " trained alone is called better; for a mean over pairs it is larger. The last column"
            " is the probability that a student with exactly the accuracy of its teacher is called"
            " as good, if the differences from teachers vary like those from networks alone. With"
            " several comparisons the strictest level of Holm's method is used, which is cautious."
            f" Estimated from {pilots} and {study['patients']} patients; standard deviations in"
            f" points: {sd['patient']} between patients, {sd['seed']} between seeds, {sd['both']}"
            " of a patient in one seed; the networks differ on"
            f" {100 * study['discordant']:.0f} % of the patients. Variances of few seeds are"
            f" themselves uncertain. There is no verdict below {MIN_SEEDS} seeds, or if networks"
            f" differ on fewer than {MIN_DISCORDANT} patients, which is included."
        ),
        "",
    ]
