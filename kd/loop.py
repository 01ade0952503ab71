"""The only training loop: fit, train_epoch, predict.

It runs a list of phases and knows no modes, files or folders.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kd.config.settings import Training
from kd.data.views import Views
from kd.models import Classifier, state_on_cpu
from kd.reports import metrics
from kd.system import ranks
from kd.system.devices import Precision
from kd.system.errors import DIVERGED, Problem
from kd.system.seeds import seed_step
from kd.teachers.functions import TeacherFunction, answers
from kd.training.objectives import Objective
from kd.training.state import State

LOG_EVERY = 20


@dataclass(frozen=True)
class Phase:
    """A stretch of a run: what is seen, who teaches, what is minimised.

    views       batches; without labels where the phase reads none. Then no epoch is chosen by
                accuracy: the last one counts
    start, end  the run's steps that it takes: from `start` on, before `end`
    lr          learning rate at its start
    layers      of the student, whose features the objective looks at
    """

    name: str
    views: Views
    teacher: TeacherFunction
    objective: Objective
    start: int
    end: int
    lr: float
    layers: tuple[str, ...] = ()

    @property
    def reads_labels(self) -> bool:
        """Whether its images come with labels."""
        return self.views.labels is not None

    def describe(self) -> str:
        """Its size in words."""
        labels = "" if self.reads_labels else " without labels"
        return (
            f"{self.name}: {self.end - self.start} steps on {self.images} images{labels},"
            f" {self.views.steps} steps an epoch"
        )

    @property
    def images(self) -> int:
        """Distinct pictures that it shows."""
        return len(np.unique(self.views.rows))


def fit(
    state: State,
    phases: list[Phase],
    valid: Views,
    training: Training,
    precision: Precision,
    *,
    watch: Callable[[State], bool] = lambda state: False,
    after_step: Callable[[State], None] = lambda state: None,
    after_epoch: Callable[[State, dict], None] = lambda state, row: None,
    leave: Callable[[], None] = lambda: None,
) -> None:
    """Train until the last phase is done or `watch` says so; goes on from wherever `state.progress`
    stands.

    Every phase begins with the weights that the one before it ended with, whichever of its epochs
    was the best.

    watch        called after every step; True ends training there
    after_step   called after every step, when the state is whole: to save, to log, to leave by an
                 exception
    after_epoch  called with the epoch's row of the history
    leave        called between two batches of a validation: to leave by an exception, the state
                 being that of the last step
    """
    while not state.progress.ended:
        phase = phases[state.progress.phase]
        train_epoch(state, phase, training, precision, watch, after_step)
        row, progress = _row(state, phase, valid, leave), state.progress
        # A run that was stopped is wanted as it stands, whatever an earlier epoch reached.
        if (
            progress.best is None
            or progress.stopped
            or not phase.reads_labels
            or row["valid_accuracy"] > progress.best["valid_accuracy"]
        ):
            progress.best, state.best_weights = row, state_on_cpu(state.network.module)
        progress.history.append(row)
        after_epoch(state, row)
        state.end_epoch()
        if progress.stopped:
            progress.ended = "stopped"
        elif progress.total >= phase.end:
            if phase is phases[-1]:
                progress.ended = "max_steps" if progress.total == training.max_steps else "epochs"
            else:
                state.end_phase()


def train_epoch(
    state: State, phase: Phase, training: Training, precision: Precision, watch, after_step
) -> None:
    """The rest of an epoch, from `state.progress.step` on."""
    progress, network, optimizer, scaler = (
        state.progress,
        state.network,
        state.optimizer,
        state.scaler,
    )
    network.module.train()
    for batch in phase.views.epoch(progress.epoch, progress.step):
        if progress.total >= phase.end or progress.stopped:
            break
        set_lr(optimizer, training.schedule, phase, progress.total)
        seed_step(phase.views.device, training.seed, progress.epoch, progress.step)
        taught = phase.teacher(batch)  # before the student's forward: measured faster than after it
        optimizer.zero_grad(
            set_to_none=True
        )  # before the forward pass, which then has the gradients' memory, too
        with precision.autocast():
            outputs = network.outputs(batch.images, phase.layers)
        terms = phase.objective(outputs, taught, batch.labels)
        scaler.scale(terms["loss"] * batch.share).backward()
        ranks.average_gradients(state.helper)
        scaler.unscale_(optimizer)
        norm = None
        if training.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(state.parameters(), training.clip_norm)
        state.divergence.watch(ranks.sum_over_ranks(terms["loss"]), norm, progress.total)
        scaler.step(optimizer)
        scaler.update()
        state.add(terms, len(batch.slots) if batch.share else 0)
        progress.step, progress.total = progress.step + 1, progress.total + 1
        progress.images += batch.whole
        if progress.total % LOG_EVERY == 0 or phase.views.device.type == "cpu":
            state.divergence.check()
        progress.stopped = watch(state)
        after_step(state)
    state.divergence.check()


def set_lr(optimizer: torch.optim.Optimizer, schedule: str, phase: Phase, step: int) -> float:
    """The learning rate of a step: a pure function of its number.

    Cosine falls from the phase's lr to 0 over its steps.
    """
    lr = phase.lr
    if schedule == "cosine":
        lr *= 0.5 * (1 + math.cos(math.pi * (step - phase.start) / (phase.end - phase.start)))
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def _row(state: State, phase: Phase, valid: Views, leave) -> dict:
    """The history's row of the epoch that ends here.

    Train figures are running means over augmented views.
    """
    means = state.means()
    logits, labels = predict(state.network, valid, leave), valid.labels.numpy()
    if not np.isfinite(list(means.values())).all() or not np.isfinite(logits).all():
        raise Problem(
            f"epoch that ends at step {state.progress.total}: its loss or validation logits are not"
            " finite; lower --lr or set --clip-norm 1, under another --tag",
            DIVERGED,
        )
    return {
        "epoch": state.progress.epoch + 1,
        "phase": phase.name,
        "steps": state.progress.total,
        **{f"train_{name}": value for name, value in means.items()},
        "valid_accuracy": metrics.accuracy(logits, labels),
        "valid_nll": metrics.nll(logits, labels),
    }


@torch.inference_mode()
def predict(
    network: Classifier, views: Views, leave: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Logits of every slot once, in order: float32 [n, K].

    Evaluation mode, full precision; the mode is put back.

    `leave` is called before every batch and may end the work by an exception.
    """
    was_training = network.module.training
    ranks.broadcast_buffers(network.module)
    network.module.eval()
    try:
        return answers(lambda batch: network(batch.images).float(), views, leave)
    finally:
        network.module.train(was_training)


def stop_at_accuracy(
    subset: Views, valid: Views, threshold: float, every: int, epoch: int
) -> Callable[[State], bool]:
    """A `watch` for `fit`: true once accuracy passes `threshold` on `subset` and then on the whole
    of `valid`.

    It looks every `every` steps, and at the end of each epoch of `epoch` steps.
    """

    def watch(state: State) -> bool:
        if state.progress.total % every and state.progress.step != epoch:
            return False
        seen = metrics.accuracy(predict(state.network, subset), subset.labels.numpy())
        state.progress.looks.append([state.progress.total, seen])
        return (
            seen > threshold
            and metrics.accuracy(predict(state.network, valid), valid.labels.numpy()) > threshold
        )

    return watch
