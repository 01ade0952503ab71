"""The actions of evaluate.py."""

from dataclasses import fields
from pathlib import Path

from kd.config.evaluate_settings import EvaluateSettings, Judging
from kd.config.reporting import Reporting
from kd.config.settings import Protocol, Reading
from kd.studies.card import write_card
from kd.studies.curves import write_curves
from kd.studies.data_check import check_data
from kd.studies.evaluation import evaluate
from kd.studies.few_labels import write_arms
from kd.studies.look.look import write_look
from kd.studies.model_card import Licences
from kd.studies.power import write_power
from kd.studies.predicting import Incomplete
from kd.studies.shift import write_shift
from kd.studies.tables import write_tables
from kd.system.console import log
from kd.system.errors import Problem

# Flags that fit some actions only -> these actions.
_FITS = {
    **{"--" + entry.name.replace("_", "-"): ("RUN ...",) for entry in fields(Reporting)},
    "--data-dir": ("RUN ...", "--shift", "--look", "--export", "--check-data"),
    "--weights-license": ("--card", "--export"),
    "--data-license": ("--card", "--export"),
    "--with-images": ("--tables",),
    "--margin": ("--tables", "--power", "--export"),
}


def carry_out(settings: EvaluateSettings) -> None:
    """Carry out the one action that the settings ask for.

    Raises Problem if they ask for none or for several, or if an option does not fit the action.
    """
    what = settings.evaluation
    how = settings.judging
    _refuse_misfits(settings)
    if what.runs:
        _evaluate_each(what.runs, how)
    elif what.tables:
        write_tables(Path(what.tables), how.margin, how.with_images)
    elif what.power:
        write_power(Path(what.power), how.margin)
    elif what.arms:
        write_arms(Path(what.arms))
    elif what.shift:
        write_shift([Path(run) for run in what.shift], how)
    elif what.look:
        write_look([Path(run) for run in what.look], how)
    elif what.card:
        write_card(Path(what.card), how.device, _licences(how))
    elif what.export:
        # Imported late: what it needs is needed by no other action.
        from kd.studies.export.write import write_export

        write_export(Path(what.export), how, _licences(how))
    elif what.curves:
        write_curves([Path(run) for run in what.curves])
    else:
        check_data(how)


def _licences(how: Judging) -> Licences:
    return Licences(how.weights_license, how.data_license)


def _refuse_misfits(settings: EvaluateSettings) -> None:
    """Raise Problem unless exactly one action is requested and all options fit it."""
    what = settings.evaluation
    how = settings.judging
    asked = {
        "RUN ...": what.runs,
        "--tables": what.tables,
        "--power": what.power,
        "--card": what.card,
        "--export": what.export,
        "--curves": what.curves,
        "--arms": what.arms,
        "--shift": what.shift,
        "--look": what.look,
        "--check-data": what.check_data,
    }
    given = [name for name, value in asked.items() if value]
    if len(given) != 1:
        raise Problem(
            f"evaluate.py expects exactly one of {', '.join(asked)}, but got"
            f" {' and '.join(given) or 'none'}. See --help."
        )
    for flag in _given(how, Judging):
        if given[0] not in _FITS.get(flag, asked):
            raise Problem(
                f"{flag} works only with {' or '.join(_FITS[flag])}, not with {given[0]}. Remove"
                f" {flag}."
            )
    if how.dataset == "synthetic" and not what.check_data:
        raise Problem(
            "--dataset synthetic works only with --check-data. Remove --dataset to evaluate a run"
            " on its own test split."
        )
    # A run on its own test split is read with its own settings. Only its places may have changed.
    reads = [flag for flag in _given(how, Reading) if flag not in ("--table", "--errata")]
    if reads and how.dataset is None:
        raise Problem(
            f"{reads[0]} applies only to another data set. Add --dataset, or remove {reads[0]}."
        )
    tries = _given(how, Protocol)
    if tries and not what.check_data:
        raise Problem(
            f"{tries[0]} works only with --check-data: a run is evaluated with its own setting."
            f" Remove {tries[0]}."
        )


def _given(how: Judging, group: type) -> list[str]:
    """Return the flags of a group of settings whose value is not the default."""
    flags = []
    for entry in fields(group):
        if getattr(how, entry.name) not in ([], entry.default):
            flags.append("--" + entry.name.replace("_", "-"))
    return flags


def _evaluate_each(runs: list[str], how: Judging) -> None:
    """Evaluate every run.

    A run that fails is reported and does not stop the others. Raises the first Problem at the end,
    and Incomplete only if there is no other.
    """
    problems = []
    for run in runs:
        log(run)
        try:
            evaluate(Path(run), how)
        except Problem as problem:
            problems.append(problem)
            if len(runs) > 1:
                log(f"{'incomplete' if isinstance(problem, Incomplete) else 'skipped'}: {problem}")
    if problems:
        failures = [problem for problem in problems if not isinstance(problem, Incomplete)]
        raise (failures or problems)[0]
