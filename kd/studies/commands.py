"""What evaluate.py can do, one function each."""

from pathlib import Path

from kd.config.evaluate_settings import EvaluateSettings, Judging
from kd.data.retinopathy import RETINOPATHY
from kd.studies.card import write_card
from kd.studies.curves import write_curves
from kd.studies.data_check import check_data
from kd.studies.evaluation import evaluate
from kd.studies.few_labels import write_arms
from kd.studies.shift import write_shift
from kd.studies.tables import write_tables
from kd.system.console import log
from kd.system.errors import Problem


def carry_out(settings: EvaluateSettings) -> None:
    """Do the one thing that the settings ask for.

    Raises Problem where they ask for none or for several.
    """
    what = settings.evaluation
    how = settings.judging
    _refuse_misfits(settings)
    if what.runs:
        _evaluate_each(what.runs, how)
    elif what.tables:
        write_tables(Path(what.tables), how.margin)
    elif what.arms:
        write_arms(Path(what.arms))
    elif what.shift:
        write_shift([Path(run) for run in what.shift], how)
    elif what.card:
        write_card(Path(what.card), how.device)
    elif what.curves:
        write_curves([Path(run) for run in what.curves])
    else:
        check_data(how)


def _refuse_misfits(settings: EvaluateSettings) -> None:
    """Raise Problem where not exactly one thing is asked for, or an option does not fit it."""
    what = settings.evaluation
    how = settings.judging
    asked = {
        "RUN ...": what.runs,
        "--tables": what.tables,
        "--card": what.card,
        "--curves": what.curves,
        "--arms": what.arms,
        "--shift": what.shift,
        "--check-data": what.check_data,
    }
    given = [name for name, value in asked.items() if value]
    if len(given) != 1:
        raise Problem(
            f"command line of evaluate.py: {' and '.join(given) or 'nothing'} given; give exactly"
            f" one of {', '.join(asked)} (see --help)"
        )
    if how.dataset == "synthetic" and not what.check_data:
        raise Problem(
            "dataset 'synthetic' in --dataset: only --check-data looks at it; give RUN alone for"
            " its own test part"
        )
    if how.errata is not None and how.dataset not in RETINOPATHY:
        raise Problem(
            f"errata '{how.errata}' in --errata: corrects a retinopathy set; give --dataset "
            f"{'|'.join(RETINOPATHY)} too"
        )


def _evaluate_each(runs: list[str], how: Judging) -> None:
    """Evaluate every run; a bad one is reported and does not stop the others.

    Raises the first Problem at the end.
    """
    problems = []
    for run in runs:
        log(run)
        try:
            evaluate(Path(run), how)
        except Problem as problem:
            problems.append(problem)
            if len(runs) > 1:
                log(f"left out: {problem}")
    if problems:
        raise problems[0]
