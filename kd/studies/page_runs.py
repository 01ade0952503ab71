"""All runs of a study on its page: their metrics, their settings, and how they are repeated."""

import shlex
from pathlib import Path

from kd.config.layout import RunPaths
from kd.config.settings import DistillSettings, TeacherSettings
from kd.reports.headline import names_of, words_of
from kd.studies.model_card import shown_settings
from kd.studies.model_card_tables import setting_text, value_text
from kd.studies.page_figures import name_of
from kd.studies.page_parts import Details, Grid, Section, shown
from kd.studies.runs import Run, read_settings
from kd.system.errors import counted

FEW = 12  # runs that are shown without a click
MOST_VALUES = 6  # of a setting that differs


def metrics_of_runs(runs: list[Run]) -> Section:
    """Return the section with the first metrics of each run, and with all of them."""
    ordered = in_order(runs)
    first = names_of(ordered[0].report["evidence"])
    every = {}
    for run in ordered:
        for name, one in run.report["evidence"]["metrics"].items():
            if one["value"] is not None:
                every[name] = None
    details = []
    for words, names in (("First metrics", first), ("All metrics", list(every))):
        caption = f"{words} of each run on the test split, with 95 % intervals over patients"
        rows = [[name_of(run), *_metrics(run, names)] for run in ordered]
        grid = Grid.of(caption, ["run", *map(words_of, names)], rows)
        opened = words == "First metrics" and len(rows) <= FEW
        details.append(
            Details(f"{words} ({counted(len(rows), 'run', 'runs')})", grids=[grid], opened=opened)
        )
    lines = [
        "Each interval is that of one trained network over other patients. What other seeds change"
        " is in the tables above."
    ]
    return Section("Metrics of each run", lines=lines, details=details)


def in_order(runs: list[Run]) -> list[Run]:
    """Return runs sorted: students first, then networks trained alone, each by name and seed."""
    return sorted(runs, key=lambda run: (not run.teacher, *map(str, run.cell[:4]), run.seed))


def _metrics(run: Run, names) -> list[str]:
    metrics = run.report["evidence"]["metrics"]
    if not metrics:  # a report of an earlier version
        accuracy = run.accuracy("test")
        return [f"{accuracy:.4f}" if name == "accuracy" else value_text(None) for name in names]
    return [value_text(metrics.get(name)) for name in names]


def settings_of_runs(runs: list[Run]) -> Section:
    """Return the section of the settings: those that all runs share, and those that differ."""
    values = {}
    for run in runs:
        kind = TeacherSettings if run.report["kind"] == "teacher" else DistillSettings
        settings = read_settings(run.folder, run.report, kind)
        for key, value in shown_settings(settings, run.unused).items():
            values.setdefault(key, {})[setting_text(value)] = None
    same, differing = [], []
    for key, own in values.items():
        texts = list(own)
        if len(texts) == 1:
            if texts[0] not in ("null", "[]", "", "false"):
                same.append([key, texts[0]])
            continue
        more = f" and {len(texts) - MOST_VALUES} more" if len(texts) > MOST_VALUES else ""
        differing.append([key, ", ".join(texts[:MOST_VALUES]) + more])
    caption = (
        "Settings that are the same in all runs that use them; those that are off are left out"
    )
    details = [
        Details("Settings of all runs", grids=[Grid.of(caption, ["setting", "value"], same)])
    ]
    if differing:
        grid = Grid.of("Settings that differ between runs", ["setting", "values"], differing)
        details.append(Details("Settings that differ", grids=[grid]))
    lines = ["Of a setting that is a path, only whether it is given is shown."]
    return Section("Settings", lines=lines, items=_machines(runs), details=details)


def _machines(runs: list[Run]) -> list[str]:
    """Return the machines and versions that made the runs, each once."""
    found = {}
    for run in runs:
        clock = run.report["clock"]
        versions = ", ".join(f"{key} {value}" for key, value in clock["versions"].items() if value)
        found[shown(f"{clock['device']}, {clock['precision']}; {versions}")] = None
    hours = sum(run.report["clock"]["seconds"] for run in runs) / 3600
    return [*list(found)[:MOST_VALUES], f"Training of all runs: {hours:.2f} hours in total."]


def runs_commands(root: Path, runs: list[Run]) -> Section:
    """Return the section of the commands that repeat the runs and make this page."""
    commands = []
    for run in in_order(runs):
        words = ["python", run.report["command"], "--config", str(RunPaths(run.folder).settings)]
        commands.append(shown(shlex.join([*words, "--out", "again"]), root))
    lines = [
        "In the folder of the program, with settings.json of each run. Where the data have moved,"
        " add --data-dir."
    ]
    page = shown(shlex.join(["python", "evaluate.py", "--tables", str(root)]), root)
    details = [
        Details(f"Commands that repeat the runs ({len(commands)})", code=commands),
        Details("Command that makes this page", code=[page], opened=True),
    ]
    return Section("Commands", lines=lines, details=details)
