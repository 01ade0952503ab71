"""A defective teacher: training that stops once validation accuracy passes a threshold."""

import numpy as np

from kd.loop import AccuracyWatch
from kd.runs.active import ActiveRun
from kd.system.console import log
from kd.system.errors import Problem

LOOK_IMAGES = 320
NOT_SO_DEFECTIVE = 0.7


def accuracy_watch(run: ActiveRun) -> AccuracyWatch | None:
    """What ends the training of a defective teacher; None for any other run."""
    threshold, data = run.plan.stop_at, run.data
    if threshold is None:
        return None
    rows = data.dataset.splits.valid
    rows = rows[np.argsort(data.dataset.index.labels[rows], kind="stable")]
    spread = np.linspace(0, len(rows) - 1, min(LOOK_IMAGES, len(rows)))
    chosen = rows[np.unique(spread.astype(int))]
    subset = data.dataset.views("valid", data.device, rows=chosen)
    every = run.plan.settings.teacher.look_every
    return AccuracyWatch(subset, data.valid, threshold, every, data.train.steps)


def judge_defective(run: ActiveRun) -> None:
    """Warn of a defective teacher that is too good. Raises Problem for one that never passed."""
    threshold, name, progress = run.plan.stop_at, run.plan.student, run.state.progress
    if threshold is None:
        return
    if not progress.stopped:
        best = max(row["valid_accuracy"] for row in progress.history)
        run.folder.forget()  # so that the cure is not refused as "other settings"
        raise Problem(
            f"stop_at_val_accuracy '{threshold}' of {name}: never passed in {progress.total} steps,"
            f" the best seen was {best:.4f}; train_teacher.py --model {name} with more --epochs, a"
            " higher --lr or a lower --stop-at-val-accuracy gives one"
        )
    if progress.best["valid_accuracy"] > NOT_SO_DEFECTIVE:
        log(
            "warning: the defective teacher has validation accuracy"
            f" {progress.best['valid_accuracy']:.4f}, above {NOT_SO_DEFECTIVE}: hardly defective;"
            " look more often (--look-every) or lower --lr"
        )
