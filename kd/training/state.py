"""The state of a network in training, which is everything that a resumed run needs."""

import contextlib
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from kd.config.settings import Training
from kd.models import Classifier, state_on_cpu
from kd.system import ranks
from kd.system.devices import Precision
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.system.messages import shortened
from kd.training.adam import OPTIMIZERS
from kd.training.average import Averages, averages_of
from kd.training.divergence import Divergence

FUSED = ("cpu", "cuda", "mps", "xpu")


@dataclass
class Progress:
    """The progress of a run.

    Together with the weights and the optimizer, it is everything that resuming needs, because all
    random numbers are a function of it.

    phase    index of the current phase
    epoch    number of finished epochs of the run
    step     number of finished steps of the current epoch
    total    number of finished steps of the run
    images   number of images in all finished steps
    sums     running sums of the current epoch: name -> sum over images, and "images"
    history  one row for each finished epoch
    looks    [total, accuracy] of each check on validation images by `AccuracyWatch`
    best     the history row of the best epoch of the current phase, by `Phase.select` (the first of
             equals); in a phase without labels, its last row. A phase may also keep that of the
             phase before
    stopped  whether `Hooks.should_stop` has stopped the training
    ended    why the training has ended: "epochs", "max_steps" or "stopped"; "" if it has not
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    total: int = 0
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    looks: list[list] = field(default_factory=list)
    best: dict | None = None
    stopped: bool = False
    ended: str = ""


# The schema of `State.state_dict` for `checkpoint.fault`.
SCHEMA = {
    "weights": dict,
    "helper": dict,
    "optimizer": dict,
    "scaler": dict,
    "best_weights": (dict, type(None)),
    "average": dict,
    "teacher": dict,
    "progress": {
        "phase": int,
        "epoch": int,
        "step": int,
        "total": int,
        "images": int,
        "sums": dict,
        "history": list,
        "looks": list,
        "best": (dict, type(None)),
        "stopped": bool,
        "ended": str,
    },
}


def upgraded(state: dict) -> dict:
    """Return a state that an earlier version saved in the form of this one.

    Earlier versions had no averages, and no regressors but those of `hint`, without its name.
    """
    helper = state.get("helper")
    if isinstance(helper, dict):
        named = {
            f"hint.{key}" if key.startswith("weights.") else key: helper[key] for key in helper
        }
        state = state | {"helper": named}
    return {"average": {}, "teacher": {}} | state


class State:
    """A network in training, with its optimizer, loss scale and progress.

    `state_dict` returns all of it, but for `best_logits`, which can be computed again.

    precision     the precision in which the network is trained; validation is always in float32
    dropout_seed  the seed of its dropout; None: that of the training
    helper        a module that is trained together with the network and is not needed afterwards,
                  such as `training.regressors`
    average       the average of the network's weights that is delivered; without one, the network
                  itself
    teacher       the average that teaches the network; without one, the network itself
    best_weights  the weights of the best epoch of the phase; None before its first epoch ends
    best_logits   their logits for the validation split, float32 [n, K]; None if not known
    """

    def __init__(
        self,
        network: Classifier,
        training: Training,
        precision: Precision,
        helper: torch.nn.Module | None = None,
        dropout_seed: int | None = None,
        averages: Averages | None = None,
    ):
        device = next(network.module.parameters()).device
        self.network, self.precision, self.progress = network, precision, Progress()
        self.dropout_seed = dropout_seed
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.best_logits: np.ndarray | None = None
        self.helper = helper or torch.nn.Module()
        self.average, self.teacher = averages or averages_of(network, training.ema)
        self.optimizer = OPTIMIZERS[training.optimizer](
            self.parameters(),
            lr=training.lr,
            weight_decay=training.weight_decay,
            fused=device.type in FUSED,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.scaled)
        self.divergence = Divergence(network.name, self.optimizer, device, precision.scaled)
        # The sums of `terms`, on the device; copied to progress.sums when they are read.
        self.sums = None
        self.terms: tuple[str, ...] = ()

    @property
    def judged(self) -> Classifier:
        """The network that is validated, tested and delivered: the average, if there is one."""
        return self.average.network

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return everything that the optimizer updates."""
        return [*self.network.module.parameters(), *self.helper.parameters()]

    def state_dict(self) -> dict:
        """Return everything that resuming needs, as tensors and plain values.

        Raises Problem (3) if the training has diverged.
        """
        self.divergence.check()
        judged, teacher = self.judged.module, self.teacher.network.module
        modules = dict.fromkeys((self.network.module, self.helper, judged, teacher))
        self.divergence.check_weights(tuple(modules), self.progress.total)
        self._collect()
        return {
            "weights": dict(self.network.module.state_dict()),
            "helper": dict(self.helper.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "best_weights": self.best_weights,
            "average": self.average.state_dict(),
            "teacher": {} if self.teacher is self.average else self.teacher.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore a state that `state_dict` returned.

        Raises Problem (4) if the state is incomplete or belongs to another network.
        """
        try:
            self.network.module.load_state_dict(state["weights"], strict=True)
            self.helper.load_state_dict(state["helper"], strict=True)
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.average.load_state_dict(state["average"])
            if self.teacher is not self.average:
                self.teacher.load_state_dict(state["teacher"])
            self.progress, self.best_weights = Progress(**state["progress"]), state["best_weights"]
            if (self.progress.best is None) != (self.best_weights is None):
                raise ValueError("the best epoch and its weights must be saved together")
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            why = shortened(" ".join(str(error).split()), 160)
            raise Problem(
                f"Saved state of {self.network.name} does not fit this run"
                f" ({type(error).__name__}: {why}). Start a new run with --tag NAME.",
                BAD_CHECKPOINT,
            ) from None
        self.sums, self.terms, self.best_logits = None, (), None

    @contextlib.contextmanager
    def best_in_network(self):
        """Return a context manager in which `judged` has the weights of the best epoch.

        Afterwards it has its own weights again.
        """
        if self.progress.best["steps"] == self.progress.total:
            yield  # the best epoch is the last one, so the network has these weights already
            return
        module = self.judged.module
        own = state_on_cpu(module)
        module.load_state_dict(self.best_weights, strict=True)
        try:
            yield
        finally:
            module.load_state_dict(own, strict=True)

    def follow(self, updates: int) -> None:
        """Let the averages take in the weights after a step.

        updates  number of updates of the phase before it
        """
        for average in dict.fromkeys((self.average, self.teacher)):
            average.update(updates)

    def add(self, terms: dict[str, torch.Tensor], images: int) -> None:
        """Add the terms of a step to the sums of the epoch, without waiting for the device.

        terms   means over this rank's images of the step, by name
        images  number of these images
        """
        sums = [term.detach().float() * images for term in terms.values()]
        step = ranks.sum_over_ranks(torch.stack([*sums, torch.full_like(sums[0], images)]))
        if self.sums is None:
            self.terms = (*terms, "images")
            start = [self.progress.sums.get(name, 0.0) for name in self.terms]
            self.sums = torch.tensor(start, dtype=torch.float32, device=sums[0].device)
        self.sums += step

    def means(self) -> dict[str, float]:
        """Return the means of the loss and its terms over the images of the current epoch.

        Before the first step of an epoch, they are those of the previous epoch.
        """
        self._collect()
        if not self.progress.sums:
            return {
                name.removeprefix("train_"): value
                for name, value in self.progress.history[-1].items()
                if name.startswith("train_")
            }
        images = self.progress.sums["images"]
        return {
            name: value / images for name, value in self.progress.sums.items() if name != "images"
        }

    def _collect(self) -> None:
        """Copy the sums from the device to `progress.sums`."""
        if self.sums is not None:
            self.progress.sums = dict(zip(self.terms, self.sums.tolist()))

    def end_epoch(self) -> None:
        """Start the next epoch, with empty sums."""
        self.progress.epoch, self.progress.step, self.progress.sums, self.sums = (
            self.progress.epoch + 1,
            0,
            {},
            None,
        )

    def end_phase(self, keeps_best: bool) -> None:
        """Start the next phase, with the current weights and an empty optimizer state.

        The current weights are the averaged ones, if an average is delivered. The phase has such an
        average and a best epoch of its own.

        keeps_best  whether the best epoch up to now stays the best until an epoch of the next phase
                    is better
        """
        self.average.end_phase()
        self.optimizer.state.clear()
        self.progress.phase += 1
        if not keeps_best:
            self.progress.best = self.best_weights = self.best_logits = None
