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
from kd.data.views import Batch, Views
from kd.models import Classifier, state_on_cpu
from kd.reports import metrics
from kd.system import ranks
from kd.system.devices import Precision
from kd.system.errors import DIVERGED, Problem
from kd.system.seeds import seed_step
from kd.teachers.outputs import BatchTeacher, collect_logits
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
    teacher: BatchTeacher
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
        """Number of distinct images that it shows."""
        return len(np.unique(self.views.rows))


class Hooks:
    """What happens beside the training; a run overrides what it needs."""

    def should_stop(self, state: State) -> bool:
        """Called after every step; True ends training there."""
        return False

    def after_step(self, state: State) -> None:
        """Called after every step, when the state is whole: to save, to log, to stop by raising."""

    def after_epoch(self, state: State, row: dict) -> None:
        """Called with the epoch's row of the history."""

    def check_stop(self) -> None:
        """Called between two batches of a validation: to stop by raising.

        The state is then that of the last step.
        """


def fit(
    state: State,
    phases: list[Phase],
    valid: Views,
    training: Training,
    precision: Precision,
    hooks: Hooks,
) -> None:
    """Train until the last phase is done or a hook ends it, from wherever `state.progress` stands.

    Every phase begins with the weights that the one before it ended with, whichever of its epochs
    was the best.
    """
    while not state.progress.ended:
        phase = phases[state.progress.phase]
        train_epoch(state, phase, training, precision, hooks)
        row = _row(state, phase, valid, hooks)
        _keep_best(state, phase, row)
        state.progress.history.append(row)
        hooks.after_epoch(state, row)
        state.end_epoch()
        _end_phase(state, phases, training)


def train_epoch(
    state: State, phase: Phase, training: Training, precision: Precision, hooks: Hooks
) -> None:
    """The rest of an epoch, from `state.progress.step` on."""
    progress, network = state.progress, state.network
    optimizer, scaler = state.optimizer, state.scaler
    network.module.train()
    for batch in phase.views.epoch(progress.epoch, progress.step):
        if progress.total >= phase.end or progress.stopped:
            break
        set_lr(optimizer, training.schedule, phase, progress.total)
        seed_step(phase.views.device, training.seed, progress.epoch, progress.step)
        taught = phase.teacher(batch)  # before the student's forward: measured faster than after it
        # Before the forward pass, which then has the gradients' memory, too.
        optimizer.zero_grad(set_to_none=True)
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
        progress.stopped = hooks.should_stop(state)
        hooks.after_step(state)
    state.divergence.check()


def _keep_best(state: State, phase: Phase, row: dict) -> None:
    """Keep the weights of an epoch that is the best of its phase so far."""
    progress = state.progress
    # A run that was stopped is wanted as it stands, whatever an earlier epoch reached.
    always = progress.best is None or progress.stopped or not phase.reads_labels
    if always or row["valid_accuracy"] > progress.best["valid_accuracy"]:
        progress.best, state.best_weights = row, state_on_cpu(state.network.module)


def _end_phase(state: State, phases: list[Phase], training: Training) -> None:
    """Move on to the next phase, or end training, where an epoch was a phase's last."""
    progress, phase = state.progress, phases[state.progress.phase]
    if progress.stopped:
        progress.ended = "stopped"
    elif progress.total >= phase.end and phase is phases[-1]:
        progress.ended = "max_steps" if progress.total == training.max_steps else "epochs"
    elif progress.total >= phase.end:
        state.end_phase()


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


def _row(state: State, phase: Phase, valid: Views, hooks: Hooks) -> dict:
    """The history's row of the epoch that ends here.

    Train figures are running means over augmented views.
    """
    means = state.means()
    logits, labels = predict(state.network, valid, hooks.check_stop), valid.labels.numpy()
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


class _EvaluatedNetwork:
    """A network as `collect_logits` calls it: batch -> logits float32 [B, K]."""

    def __init__(self, network: Classifier):
        self.network = network

    def __call__(self, batch: Batch) -> torch.Tensor:
        return self.network(batch.images).float()


@torch.inference_mode()
def predict(
    network: Classifier, views: Views, check_stop: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Logits of every slot once, in order: float32 [n, K].

    The network runs in evaluation mode and full precision; its mode is restored afterwards.
    `check_stop` is called before every batch and may end the work by an exception.
    """
    was_training = network.module.training
    ranks.broadcast_buffers(network.module)
    network.module.eval()
    try:
        return collect_logits(_EvaluatedNetwork(network), views, check_stop)
    finally:
        network.module.train(was_training)


class AccuracyWatch:
    """Whether accuracy has passed a threshold on a subset, and then on the whole validation split.

    It looks every `every` steps, and at the end of each epoch of `epoch_steps` steps.
    """

    def __init__(self, subset: Views, valid: Views, threshold: float, every: int, epoch_steps: int):
        self.subset, self.valid, self.threshold = subset, valid, threshold
        self.every, self.epoch_steps = every, epoch_steps

    def __call__(self, state: State) -> bool:
        """True where training is to stop; adds to `progress.looks`."""
        progress = state.progress
        if progress.total % self.every and progress.step != self.epoch_steps:
            return False
        seen = self._accuracy(state, self.subset)
        progress.looks.append([progress.total, seen])
        return seen > self.threshold and self._accuracy(state, self.valid) > self.threshold

    def _accuracy(self, state: State, views: Views) -> float:
        return metrics.accuracy(predict(state.network, views), views.labels.numpy())
