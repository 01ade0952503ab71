"""All that was tried on one student, side by side: alone, every mode, and the controls of a
defective teacher.
"""

import numpy as np

from kd.methods import STRATEGIES
from kd.reports.statistics import against_alone
from kd.studies.cells import figures_text, gap_text, of_runs
from kd.studies.study import ALONE, Run, Study
from kd.system.errors import printable


def overviews(study: Study) -> list[dict]:
    """One for each (student, tag) that was taught in more than one way: a row for each of them, and
    the student alone.
    """
    taught = [run for run in study.runs.values() if run.role in STRATEGIES]
    found = []
    for student, tag in sorted({(run.student, run.tag) for run in taught}):
        ways = sorted(
            {(run.role, run.teacher) for run in taught if (run.student, run.tag) == (student, tag)},
            key=lambda way: (list(STRATEGIES).index(way[0]), way[1]),
        )
        if len(ways) > 1:
            found.append(_overview(study, student, tag, ways))
    return found


def _overview(study: Study, student: str, tag: str, ways: list[tuple[str, str]]) -> dict:
    runs = {way: study.at(way[0], tag, way[1], student) for way in ways}
    alone = study.at(ALONE, tag, "", student)
    defective = [way for way in ways if STRATEGIES[way[0]].teacher.stop_at is not None]
    rows = [
        {
            "mode": ALONE,
            "teacher": "",
            **of_runs(alone),
            "minus_alone": None,
            "defective_minus": None,
        }
    ]
    for way in ways:
        against = (
            _gap(study, runs[defective[0]], runs[way])
            if len(defective) == 1 and way not in defective
            else None
        )
        rows.append(
            {
                "mode": way[0],
                "teacher": way[1],
                **of_runs(runs[way]),
                "minus_alone": _gap(study, runs[way], alone),
                "defective_minus": against,
            }
        )
    return {"student": student, "tag": tag, "rows": rows}


def _gap(study: Study, first: dict[int, Run], second: dict[int, Run]) -> dict | None:
    """The difference in test accuracy over the seeds that both have; None where there are none."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    found = study.difference(
        *(np.stack([side[seed].test.right for seed in seeds]) for side in (first, second))
    )
    return found and found | {"says": against_alone(found)}


def overview_text(found: dict) -> list[str]:
    """An overview as lines of Markdown."""
    tag = f", {found['tag']}" if found["tag"] else ""
    controls = any(row["defective_minus"] for row in found["rows"])
    heads = [
        "mode",
        "teacher",
        "train / validation / test",
        "minus alone",
        "says",
        *(["defective minus it", "says"] if controls else []),
    ]
    lines = [
        f"## {printable(found['student'])}{printable(tag)}: all modes side by side",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for row in found["rows"]:
        cells = [
            row["mode"],
            printable(row["teacher"]) or "-",
            figures_text(row),
            *gap_text(row["minus_alone"]),
            *(gap_text(row["defective_minus"]) if controls else ()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    count = sum(
        row[key] is not None for row in found["rows"] for key in ("minus_alone", "defective_minus")
    )
    return [
        *lines,
        "",
        (
            f"{count} intervals of 95 % of test accuracy, patients and seeds: one in twenty misses"
            " the truth."
        ),
        "",
    ]
