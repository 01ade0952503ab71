"""The end of a run: predictions, the chosen weights, and the files that carry them."""

import datetime
import platform
import time
from collections.abc import Callable

import numpy as np
import PIL
import timm
import torch
from matplotlib.figure import Figure

from kd import models
from kd.config import parsing
from kd.config.settings import DistillSettings
from kd.data.dataset import Dataset
from kd.data.pool import Pool
from kd.data.views import Views
from kd.loop import Phase, predict
from kd.reports import evidence, figures, metrics
from kd.reports import report as reports
from kd.reports.calibration import fit_temperature, probabilities
from kd.reports.predictions import predictions_csv
from kd.reports.text import grades_text
from kd.runs.folder import RunFolder, portable
from kd.runs.phases import Lesson
from kd.runs.tensorboard import Events
from kd.system import checkpoint, ranks
from kd.system.console import log
from kd.system.devices import Precision
from kd.system.errors import Problem, printable
from kd.system.files import write_json, write_text
from kd.teachers import model_file
from kd.training.state import State


class Clock:
    """How long a run took, over all its tries."""

    def __init__(self):
        self._before, self._mark, self.started = 0.0, time.monotonic(), _now()

    def seconds(self) -> float:
        """Seconds so far, those of killed tries up to their last save included."""
        return self._before + time.monotonic() - self._mark

    def state(self) -> dict:
        """What `restore` goes on from."""
        return {"seconds": self.seconds(), "started": self.started}

    def restore(self, state: dict) -> None:
        """Count on from a saved state."""
        self._before, self.started = state["seconds"], state["started"]

    def account(self, device: torch.device, precision: Precision, state: State) -> dict:
        """The report's `clock`: everything that depends on the time or the machine."""
        seconds = self.seconds()
        name = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else platform.processor() or platform.machine()
        )
        return {
            "seconds": round(seconds, 3),
            "device": f"{device.type} ({name})",
            "precision": precision.words,
            "threads": torch.get_num_threads(),
            "started": self.started,
            "finished": _now(),
            "images_per_second": round(state.progress.images / seconds, 3) if seconds > 0 else None,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "timm": timm.__version__,
                "numpy": np.__version__,
                "pillow": PIL.__version__,
            },
        }


def conclude(
    settings,
    folder: RunFolder,
    dataset: Dataset,
    pool: Pool | None,
    state: State,
    lesson: Lesson,
    valid: Views,
    test: Views,
    clock: dict,
    events: Events,
    leave: Callable[[], None],
) -> dict:
    """Predict with the last and the best weights, write all files of the finished run (the report
    last), return the report.

    `leave` may end the predictions by an exception; the state is then as it was.
    """
    network, progress, classes = state.network, state.progress, dataset.index.classes
    last = (
        predict(network, test, leave)
        if progress.history[-1]["epoch"] != progress.best["epoch"]
        else None
    )
    with state.best_in_network():
        logits = {"valid": predict(network, valid, leave), "test": predict(network, test, leave)}
        last = logits["test"] if last is None else last
        taught = {"test": lesson.judge(test).argmax(1)} if lesson.judge else {}
    labels, rows = test.labels.numpy(), dataset.parts.test
    samples = [dataset.index.samples[row] for row in rows]
    report = reports.check(
        {
            "schema_version": reports.SCHEMA_VERSION,
            "kind": "student" if isinstance(settings, DistillSettings) else "teacher",
            "command": (
                "distill.py" if isinstance(settings, DistillSettings) else "train_teacher.py"
            ),
            "settings": portable(parsing.flat(settings)),
            "data": dataset.describe() | {"pool": pool and pool.account},
            "teacher": lesson.account,
            "student": {
                "name": network.name,
                "architecture": network.architecture,
                "parameters": models.parameters(network.module),
                "pretrained": settings.network.pretrained and not settings.network.weights,
                "weights_hash": model_file.state_hash(state.best_weights),
            },
            "history": {
                "epochs": progress.history,
                "looks": progress.looks,
                "steps": progress.total,
                "ended": progress.ended,
                "phases": [_phase(phase, progress.total) for phase in lesson.phases],
            },
            "results": {
                "best": _result(progress.best, logits["test"], test),
                "last": _result(progress.history[-1], last, test),
                "reason": (
                    None
                    if lesson.phases[-1].reads_labels
                    else (
                        "train_accuracy is null: no label was read; the last epoch counts, none was"
                        " chosen"
                    )
                ),
            },
            "classification_report": metrics.classification_report(logits["test"], labels, classes),
            "confusion_matrix": metrics.confusion_matrix(logits["test"], labels),
            "evidence": evidence.summarise(
                logits["test"],
                labels,
                [sample.study for sample in samples],
                fit_temperature(logits["valid"], valid.labels.numpy()),
                dataset.index.graded,
            ),
            "agreement": (
                metrics.agreement(
                    logits["test"].argmax(1),
                    taught["test"],
                    labels,
                    [printable(s.path) for s in samples],
                )
                if lesson.judge
                else None
            ),
            "clock": clock,
        }
    )
    if not ranks.is_main_rank():
        return report
    packed = model_file.pack(
        report["kind"],
        state.network,
        state.best_weights,
        progress.best["epoch"],
        dataset,
        pool,
        lesson.taught_by,
    )
    _write(folder, dataset, packed, logits, taught, report, events)
    return report


def _phase(phase: Phase, total: int) -> dict:
    return {
        "name": phase.name,
        "steps": max(0, min(phase.end, total) - phase.start),
        "images": phase.images,
        "labelled": phase.reads_labels,
    }


def _write(
    folder: RunFolder,
    dataset: Dataset,
    packed: dict,
    logits: dict,
    taught: dict,
    report: dict,
    events: Events,
) -> None:
    rows = {"valid": dataset.parts.valid, "test": dataset.parts.test}
    title = f"{folder.path.parent.name}, test part (n = {len(rows['test'])})"
    checkpoint.save(folder.model, packed)
    write_text(
        folder.path / "predictions.csv",
        predictions_csv(dataset.index, rows, logits, taught),
    )
    drawn = {
        "confusion": figures.confusion(report["confusion_matrix"], dataset.index.classes, title),
        "reliability": reliability(
            report["evidence"]["calibration"],
            logits["test"],
            dataset.index.labels[rows["test"]],
            title,
        ),
    }
    drawn = {name: figures.pixels(figure) for name, figure in drawn.items()}
    for name, pixels in drawn.items():
        try:
            figures.save(folder.path / f"{name}.png", pixels)
        except Problem as problem:  # a picture that can be drawn again is no reason to lose a run
            log(f"warning: {str(problem).partition(';')[0]}; the run goes on without it")
    events.finish(report, drawn)
    write_json(folder.report, report)


def reliability(calibration: dict, logits: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """The reliability diagram of logits [N, K] before and after the temperature scaling that
    `calibration` tells of.
    """
    panels = {}
    for name, temperature in (("before", 1.0), ("after", calibration["temperature"])):
        caption = f"{name} scaling (T = {temperature:.2f}): ECE {calibration[name]['ece']:.3f}"
        panels[caption] = probabilities(logits, temperature), labels
    return figures.reliability(panels, title)


def _result(row: dict, test_logits: np.ndarray, test: Views) -> dict:
    return {
        "epoch": row["epoch"],
        "train_accuracy": row.get("train_accuracy"),
        "valid_accuracy": row["valid_accuracy"],
        "test_accuracy": metrics.accuracy(test_logits, test.labels.numpy()),
    }


def summary(report: dict, folder: RunFolder) -> str:
    """What a script prints at the end: the accuracies, and where everything lies."""
    lines = [f"{'':>6}{'epoch':>7}{'train':>9}{'valid':>9}{'test':>9}"]
    for name in ("best", "last"):
        row = report["results"][name]
        figures = (row[f"{part}_accuracy"] for part in ("train", "valid", "test"))
        lines.append(
            f"{name:>6}{row['epoch']:>7}"
            + "".join(f"{'-' if f is None else format(f, '.4f'):>9}" for f in figures)
        )
    if report["results"]["reason"]:
        lines.append(f"({report['results']['reason']})")
    if report["evidence"]["grades"]:
        lines.append(f"test part: {grades_text(report['evidence']['grades'])}")
    if report["teacher"]:
        teacher = report["teacher"]
        told = (
            [teacher]
            if len(teacher["members"]) == 1
            else [*teacher["members"], teacher]
            if teacher["members"]
            else []
        )
        lines += [
            f"teacher {one['name']}: valid {one['valid_accuracy']:.4f}, test"
            f" {one['test_accuracy']:.4f}"
            for one in told
        ]
        if teacher["disagreement"] is not None:
            lines.append(
                f"two of them differ on {100 * teacher['disagreement']:.1f} % of the test images"
            )
    lines.append(f"all of it: {folder.path}")
    return "\n".join(lines)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
