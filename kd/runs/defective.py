"""Defective teachers, whose training stops once validation accuracy passes a threshold."""

import numpy as np

from kd.loop import AccuracyWatch
from kd.runs.active import ActiveRun
from kd.system.console import log
from kd.system.errors import Problem

LOOK_IMAGES = 320  # maximum number of images in a check inside an epoch
NOT_SO_DEFECTIVE = 0.7  # validation accuracy above which a defective teacher gets a warning


def accuracy_watch(run: ActiveRun) -> AccuracyWatch | None:
    """Return the check that ends the training of a defective teacher; None for any other run.

    Its subset of the validation split has at most LOOK_IMAGES images, spread evenly over the
    images sorted by class.
    """
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
    """Warn if a defective teacher is too accurate.

    Raises Problem if its accuracy never passed the threshold.
    """
    threshold, name, progress = run.plan.stop_at, run.plan.student, run.state.progress
    if threshold is None:
        return
    if not progress.stopped:
        best = max(row["valid_accuracy"] for row in progress.history)
        run.folder.forget()  # a new run with the suggested settings must not be refused here
        raise Problem(
            f"--stop-at-val-accuracy {threshold} was not exceeded by {name} in {progress.total}"
            f" steps: the best validation accuracy was {best:.4f}. Run train_teacher.py --model"
            f" {name} with more --epochs, a higher --lr or a lower --stop-at-val-accuracy."
        )
    if progress.best["valid_accuracy"] > NOT_SO_DEFECTIVE:
        log(
            "warning: The defective teacher has validation accuracy"
            f" {progress.best['valid_accuracy']:.4f}, above {NOT_SO_DEFECTIVE}, so it is hardly"
            " defective. Use a smaller --look-every or a lower --lr."
        )
