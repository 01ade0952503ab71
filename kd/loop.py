"""The only training loop: fit, train_epoch, predict.

It runs a list of phases and does not depend on modes, files or folders. It trains one student, or
several at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from kd.config.settings import Training
from kd.data.views import Batch, Views
from kd.models import Classifier, Outputs, state_on_cpu
from kd.reports import metrics
from kd.system import ranks
from kd.system.errors import DIVERGED, Problem, counted
from kd.system.seeds import seed_step
from kd.teachers.outputs import BatchTeacher, Targets, by_teacher, collect_logits
from kd.training.objectives import Objective, risen
from kd.training.selection import METRICS, column, is_better
from kd.training.state import State

LOG_EVERY = 20  # steps


@dataclass(frozen=True)
class Phase:
    """A phase of a run: its images, its teacher and its objective.

    name        the phase's name in printed lines and in the history
    views       the batches of the phase. If they have no labels, the phase keeps the weights of its
                last epoch instead of choosing an epoch by labels
    teacher     callable from a batch to `TeacherOutputs`, or to None in a phase without a teacher
    objective   callable that returns the loss and its terms (see `training.objectives`)
    start, end  the steps of the run that belong to the phase: `start` to `end` - 1
    lr          learning rate at the start of the phase
    layers      layers of the student whose features the objective uses
    keeps_start whether the weights at the start of the phase are its result if no epoch is better
    ramp_up     share of the steps in which the weight of the knowledge in the objective rises
    select      metric of the validation split by which an epoch is better than another
    targets     callable that returns what each student is taught, from the outputs of the teacher
                and of all students (see `teachers.outputs`)
    """

    name: str
    views: Views
    teacher: BatchTeacher
    objective: Objective
    start: int
    end: int
    lr: float
    layers: tuple[str, ...] = ()
    keeps_start: bool = False
    select: str = "accuracy"
    targets: Targets = by_teacher
    ramp_up: float = 0.0

    def objective_at(self, step: int) -> Objective:
        """Return the objective of a step of the run, with the weight of its knowledge."""
        if not self.ramp_up:
            return self.objective
        rising = round(self.ramp_up * (self.end - self.start))
        return replace(self.objective, ramp=risen(step - self.start, rising))

    @property
    def reads_labels(self) -> bool:
        """Whether the images of the phase come with labels."""
        return self.views.labels is not None

    def describe(self) -> str:
        """Return the steps and images of the phase in words."""
        return (
            f"{self.name}: {counted(self.end - self.start, 'step', 'steps')} on"
            f" {self.views.describe()}, {counted(self.views.steps, 'step', 'steps')} per epoch"
        )

    @property
    def images(self) -> int:
        """Number of distinct images that the phase uses."""
        return len(np.unique(self.views.rows))


class Hooks:
    """Callbacks of the training loop. By default they do nothing; a run overrides what it needs."""

    def should_stop(self, states: list[State]) -> bool:
        """Return whether training ends at this step. Called after every step."""
        return False

    def after_step(self, states: list[State]) -> None:
        """Save, log, or stop by raising. Called after every step, when all states are complete."""

    def after_epoch(self, states: list[State], rows: list[dict]) -> None:
        """Handle the history row of each student. Called at the end of every epoch."""

    def check_stop(self) -> None:
        """Stop by raising. Called between two batches of a validation.

        The states are then those after the last step.
        """


def fit(
    states: list[State], phases: list[Phase], valid: Views, training: Training, hooks: Hooks
) -> None:
    """Train from `state.progress` until the last phase is finished or a hook stops the training.

    Every phase starts with the last weights of the phase before it, even if another epoch of that
    phase was the best. With --ema, these are averaged weights, and so are all weights that are
    judged. Each of several students has its own optimizer, average and best epoch.

    states     the networks in training, usually one, changed in place; all are at the same step
    phases     all phases of the run, including finished ones; they select by the same metric
    valid      the validation split, for which this metric is defined; it is in float32
    training   settings of the optimizers and their schedule
    hooks      callbacks

    Raises Problem (3) if a loss, a gradient or the validation logits are not finite, and whatever a
    hook raises.
    """
    progress = states[0].progress
    while not progress.ended:
        phase = phases[progress.phase]
        train_epoch(states, phase, training, hooks)
        # A stop may come until all logits are there. Then the epoch ends for all students at once.
        logits = [predict(state.judged, valid, hooks.check_stop) for state in states]
        labels = valid.labels.numpy()
        rows = [_row(state, phase, own, labels) for state, own in zip(states, logits)]
        for state, row, own in zip(states, rows, logits):
            _keep_best(state, phase, row, own)
            state.progress.history.append(row)
        hooks.after_epoch(states, rows)
        for state in states:
            state.end_epoch()
            _end_phase(state, phases, training)


def train_epoch(states: list[State], phase: Phase, training: Training, hooks: Hooks) -> None:
    """Train the rest of an epoch, from `progress.step` to its end.

    It ends early at the last step of the phase, or when `hooks.should_stop` returns True. In a
    step, the outputs of all students are computed before the weights of any student change.
    Arguments and exceptions are those of `fit`.
    """
    progress = states[0].progress
    for state in states:
        state.network.module.train()
    for batch in phase.views.epoch(progress.epoch, progress.step):
        if progress.total >= phase.end or progress.stopped:
            break
        # The teacher runs before the students because this order was measured to be faster.
        taught = phase.teacher(batch)
        for state in states:
            set_lr(state.optimizer, training, phase, progress.total)
            # Gradients are freed before the forward pass, which can then use their memory.
            state.optimizer.zero_grad(set_to_none=True)
        outputs = [_outputs(state, phase, training, batch) for state in states]
        targets = phase.targets(taught, outputs)
        for state, own, target in zip(states, outputs, targets, strict=True):
            objective = phase.objective_at(state.progress.total)
            _take_step(state, phase, training, batch, objective(own, target, batch.labels))
        if progress.total % LOG_EVERY == 0 or phase.views.device.type == "cpu":
            _check_divergence(states)
        stopped = hooks.should_stop(states)
        for state in states:
            state.progress.stopped = stopped
        hooks.after_step(states)
    _check_divergence(states)


def _outputs(state: State, phase: Phase, training: Training, batch: Batch) -> Outputs:
    """Return the outputs of a student for a batch, with the dropout of this step."""
    progress = state.progress
    seed = training.seed if state.dropout_seed is None else state.dropout_seed
    seed_step(phase.views.device, seed, progress.epoch, progress.step)
    with state.precision.autocast():
        return state.network.outputs(batch.images, phase.layers)


def _take_step(
    state: State, phase: Phase, training: Training, batch: Batch, terms: dict[str, torch.Tensor]
) -> None:
    """Update a student's weights and its progress; `terms` are those of its objective."""
    progress, scaler = state.progress, state.scaler
    scaler.scale(terms["loss"] * batch.share).backward()
    ranks.average_gradients(state.helper)
    scaler.unscale_(state.optimizer)
    norm = None
    if training.clip_norm is not None:
        norm = nn.utils.clip_grad_norm_(state.parameters(), training.clip_norm)
    state.divergence.watch(ranks.sum_over_ranks(terms["loss"]), norm, progress.total)
    scaler.step(state.optimizer)
    scaler.update()
    state.follow(progress.total - phase.start)
    state.add(terms, len(batch.slots) if batch.share else 0)
    progress.step, progress.total = progress.step + 1, progress.total + 1
    progress.images += batch.whole


def _check_divergence(states: list[State]) -> None:
    """Raise Problem (3) if a loss or a gradient of any student was not finite."""
    for state in states:
        state.divergence.check()


def _keep_best(state: State, phase: Phase, row: dict, logits: np.ndarray) -> None:
    """Keep the row and the weights of an epoch if it is the best of its phase up to now.

    logits  of the validation split, float32 [n, K]
    """
    progress = state.progress
    # The result of a stopped run is its last weights, even if an earlier epoch was better.
    always = progress.best is None or progress.stopped or not phase.reads_labels
    if always or is_better(row, progress.best, phase.select):
        progress.best, state.best_weights = row, state_on_cpu(state.judged.module)
        state.best_logits = logits


def _end_phase(state: State, phases: list[Phase], training: Training) -> None:
    """Start the next phase, or end the training, if the phase of the run is finished."""
    progress, phase = state.progress, phases[state.progress.phase]
    if progress.stopped:
        progress.ended = "stopped"
    elif progress.total >= phase.end and phase is phases[-1]:
        progress.ended = "max_steps" if progress.total == training.max_steps else "epochs"
    elif progress.total >= phase.end:
        state.end_phase(phases[progress.phase + 1].keeps_start)


def set_lr(optimizer: torch.optim.Optimizer, training: Training, phase: Phase, step: int) -> float:
    """Set the learning rate of a step in the optimizer, and return it.

    It is a pure function of the step. It rises linearly over the first steps of the phase, whose
    share is `training.warmup`, and the first step after them has `phase.lr`. Over the steps that
    remain, the cosine schedule falls from there to 0 (Goyal et al. 2017, arXiv:1706.02677, section
    2.2; Loshchilov, Hutter 2017, arXiv:1608.03983, eq. 5 without restarts).

    step  step of the run, counted over all phases
    """
    lr, steps, done = phase.lr, phase.end - phase.start, step - phase.start
    rising = round(training.warmup * steps)
    if done < rising:
        lr *= (done + 1) / (rising + 1)
    elif training.schedule == "cosine":
        lr *= 0.5 * (1 + math.cos(math.pi * (done - rising) / (steps - rising)))
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def _row(state: State, phase: Phase, logits: np.ndarray, labels: np.ndarray) -> dict:
    """Return the history row of the epoch that ends here.

    Its train figures are running means over augmented views. Raises Problem (3) if they or the
    validation logits are not finite.

    logits, labels  of the validation split, float32 [n, K] and int64 [n]
    """
    means = state.means()
    if not np.isfinite(list(means.values())).all() or not np.isfinite(logits).all():
        raise Problem(
            f"Training of {state.network.name} diverged: the loss or the validation logits of the"
            f" epoch that ends at step {state.progress.total} are not finite. Lower --lr or set"
            " --clip-norm 1, in a new run with --tag NAME.",
            DIVERGED,
        )
    selected = {}
    if phase.select not in ("accuracy", "nll"):  # every row has these
        selected[column(phase.select)] = METRICS[phase.select](logits, labels)
    return {
        "epoch": state.progress.epoch + 1,
        "phase": phase.name,
        "steps": state.progress.total,
        **{f"train_{name}": value for name, value in means.items()},
        "valid_accuracy": metrics.accuracy(logits, labels),
        "valid_nll": metrics.nll(logits, labels),
        **selected,
    }


class _EvaluatedNetwork:
    """A network as `collect_logits` calls it."""

    def __init__(self, network: Classifier):
        self.network = network

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the logits of a batch, float32 [B, K]."""
        return self.network(batch.images).float()


@torch.inference_mode()
def predict(
    network: Classifier, views: Views, check_stop: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Return the logits of all n images of a split, in the order of their slots: float32 [n, K].

    The network runs in evaluation mode and full precision. Its mode is restored afterwards. On
    several ranks, every rank returns all logits. `check_stop` is called before every batch and may
    raise an exception to stop.
    """
    was_training = network.module.training
    ranks.broadcast_buffers(network.module)
    network.module.eval()
    try:
        return collect_logits(_EvaluatedNetwork(network), views, check_stop)
    finally:
        network.module.train(was_training)


class AccuracyWatch:
    """A check whether the validation accuracy has passed a threshold.

    To save time, the accuracy on a subset is computed first, and the accuracy on the complete
    validation split only if the subset's is above the threshold.

    subset       images of the validation split
    valid        the complete validation split
    threshold    accuracy in 0..1 that both must exceed
    every        number of steps between two checks
    epoch_steps  number of steps of an epoch; there is also a check at the end of each epoch
    """

    def __init__(self, subset: Views, valid: Views, threshold: float, every: int, epoch_steps: int):
        self.subset, self.valid, self.threshold = subset, valid, threshold
        self.every, self.epoch_steps = every, epoch_steps

    def __call__(self, state: State) -> bool:
        """Return whether training should stop; append each check to `progress.looks`."""
        progress = state.progress
        if progress.total % self.every and progress.step != self.epoch_steps:
            return False
        seen = self._accuracy(state, self.subset)
        progress.looks.append([progress.total, seen])
        return seen > self.threshold and self._accuracy(state, self.valid) > self.threshold

    def _accuracy(self, state: State, views: Views) -> float:
        return metrics.accuracy(predict(state.judged, views), views.labels.numpy())
