"""What evaluate.py can do, one function each."""

import os
from pathlib import Path

from kd.config.evaluate_settings import EvaluateSettings, Judging
from kd.config.settings import DATASETS, Data
from kd.data.audit import audit
from kd.data.audit import text as audit_text
from kd.data.dataset import read_index
from kd.data.retinopathy import RETINOPATHY
from kd.reports import figures
from kd.reports import report as reports
from kd.studies.card import write_card
from kd.studies.evaluation import evaluate
from kd.studies.few_labels import write_arms
from kd.studies.shift import write_shift
from kd.studies.tables import write_tables
from kd.system.console import log
from kd.system.errors import Problem
from kd.system.files import make_folder, write_json


def carry_out(settings: EvaluateSettings) -> None:
    """Do the one thing that the settings ask for.

    Raises Problem where they ask for none or for several.
    """
    what, how = settings.evaluation, settings.judging
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
    if what.runs:
        _each(what.runs, lambda run: evaluate(run, how))
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


def _each(runs: list[str], do) -> None:
    """Do something with every run; a bad one is told and does not stop the others.

    Raises the first Problem at the end.
    """
    problems = []
    for run in runs:
        log(run)
        try:
            do(Path(run))
        except Problem as problem:
            problems.append(problem)
            if len(runs) > 1:
                log(f"left out: {problem}")
    if problems:
        raise problems[0]


def write_curves(runs: list[Path]) -> Path:
    """Draw the learning curves of runs into curves.png, in the folder (--out) of the first; returns
    its path.

    A bad run is told and left out. Raises Problem where none is left.
    """
    root = runs[0].resolve().parents
    root, histories, bad = root[min(3, len(root) - 1)], {}, []
    for run in runs:
        try:
            histories[os.path.relpath(run.resolve(), root)] = reports.read(run)["history"]["epochs"]
        except Problem as problem:
            bad.append(problem)
            log(f"left out: {problem}")
    if not histories:
        raise bad[0]
    figures.save(root / "curves.png", figures.pixels(figures.curves(histories)))
    log(f"written: {root}/curves.png ({len(histories)} runs)")
    return root / "curves.png"


def check_data(how: Judging) -> dict:
    """Print and write what is wrong with a data set. Raises Problem (2) if anything is."""
    if how.dataset is None:
        raise Problem(
            f"dataset in --dataset: not given; --check-data needs --dataset {'|'.join(DATASETS)}"
            " (and --data-dir DIR)"
        )
    result = audit(
        read_index(
            Data(dataset=how.dataset, data_dir=how.data_dir, label=how.label, errata=how.errata)
        )
    )
    target = make_folder(Path(how.out)) / f"check-{result['name']}.json"
    write_json(target, {"schema_version": 1, "data_dir": how.data_dir, **result})
    log(audit_text(result))
    log(f"written: {target}")
    if result["problems"]:
        raise Problem(
            f"data set '{result['name']}': {'; '.join(result['problems'])}; mend it, or know it"
            f" (all in {target})"
        )
    log("nothing wrong was found")
    return result
