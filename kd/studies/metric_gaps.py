"""Differences of students from other networks in every metric, with intervals."""

from kd.reports.evidence import applies
from kd.reports.headline import words_of
from kd.reports.measures import MEASURES, differences
from kd.reports.operating_point import OperatingPoint
from kd.reports.positive import classes_of
from kd.reports.resampled import Predicted
from kd.studies.runs import Run, reported
from kd.system.markdown import table

# What a cell is compared with: the key of its differences -> the words for it.
OTHERS = {"metrics_minus_alone": "baseline", "metrics_minus_teacher": "teacher"}


def metric_gaps(first: dict[int, Run], second: dict[int, Run]) -> dict[str, dict]:
    """Return {metric: its difference with interval} of two cells, paired by seed.

    See `kd.reports.measures.differences`. Each network has its own temperature and operating point.
    The result is empty without a seed that both have. Metrics that do not apply are left out, and
    so are those that are not of the same thing on both sides: of the positive class if the runs
    have different ones, at the operating point if it was chosen by different rules, and PPV and NPV
    at a prevalence if not all runs state the same.

    first, second  seed -> run, of the same test images
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return {}
    runs = [side[seed] for side in (first, second) for seed in seeds]
    sides = [{seed: predicted(side[seed]) for seed in seeds} for side in (first, second)]
    every = [*sides[0].values(), *sides[1].values()]
    stated = reported(runs, "prevalence")
    prevalence = stated.pop() if len(stated) == 1 else None
    names = []
    for name, one in MEASURES.items():
        if _comparable(name, runs) and all(applies(one, own, prevalence) for own in every):
            names.append(name)
    return differences(*sides, names, prevalence)


def _comparable(name: str, runs: list[Run]) -> bool:
    """Return whether a metric is of the same classes, by the same rule, in all runs."""
    needs = MEASURES[name].needs
    if "positive" in needs or name == "auprc":
        if len(reported(runs, "positive")) > 1:
            return False
    return "point" not in needs or len(reported(runs, "operating_point")) <= 1


def predicted(run: Run) -> Predicted:
    """Return the predictions of a run for its test split, as its report evaluates them."""
    test, evidence = run.test, run.report["evidence"]
    point = evidence["operating_point"]
    return Predicted(
        logits=test.logits,
        labels=test.labels,
        clusters=test.clusters,
        studies=test.known_studies,
        temperature=evidence["calibration"]["temperature"] or 1.0,
        positive=classes_of(evidence["positive"], run.report["data"]["classes"]),
        operating_point=None if point is None else OperatingPoint(**point),
        graded=evidence["grades"] is not None,
    )


def gaps_text(cells: list[dict], names: list[str]) -> list[str]:
    """Return the differences in some metrics as Markdown: from baselines, then from teachers.

    cells  of a table, with `metrics_minus_alone` and `metrics_minus_teacher`
    """
    lines = []
    for key in OTHERS:
        header, rows = gaps_table(cells, names, key)
        if rows:
            lines += [*table(header, rows), ""]
    if not lines:
        return []
    return [
        "Other metrics, differences with 95 % intervals, no verdicts (all are in tables.json):",
        "",
        *lines,
    ]


def gaps_table(cells: list[dict], names: list[str], key: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the differences `key`, one of OTHERS, in some metrics.

    Cells without such differences have no row.
    """
    rows = []
    for cell in cells:
        gaps = cell[key]
        if gaps:
            texts = [_gap_text(gaps.get(name)) for name in names]
            rows.append([f"{cell['student']} <- {cell['teacher']}", *texts])
    words = map(words_of, names)
    return [f"student <- teacher, minus {OTHERS[key]}", *words], rows


def _gap_text(gap: dict | None) -> str:
    if gap is None or gap["value"] is None:
        return "-"
    text = f"{gap['value']:+.4f}"
    return text if gap["low"] is None else f"{text} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
