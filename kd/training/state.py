"""A network in training: weights, optimizer, loss scale, progress; all that a resumed run needs."""

import contextlib
from dataclasses import asdict, dataclass, field

import torch

from kd.config.settings import Training
from kd.models import Classifier, state_on_cpu
from kd.system import ranks
from kd.system.devices import Precision
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.training.divergence import Divergence

FUSED = ("cpu", "cuda", "mps", "xpu")


@dataclass
class Progress:
    """Where a run stands.

    With weights and optimizer it is all that resuming needs: randomness is a function of it.

    phase        which of the run's phases it is in
    epoch, step  the next step to take: `step` counts inside the epoch, `epoch` and `total` over the
                 run, `images` what they held
    sums         running sums of the epoch so far: name -> sum over images, and "images"
    history      one row for each finished epoch
    looks        (total step, accuracy) of each look at the validation images inside an epoch
    best         of the phase so far, the history row with the highest validation accuracy (the
                 first of equals); in a phase that reads no labels the last row
    stopped      whether `Hooks.should_stop` has ended training
    ended        why training is over: "" while it is not, else "epochs", "max_steps" or "stopped"
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


# What `State.state_dict` holds, as `checkpoint.fault` reads it.
SCHEMA = {
    "weights": dict,
    "helper": dict,
    "optimizer": dict,
    "scaler": dict,
    "best_weights": (dict, type(None)),
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


class State:
    """A network in training: weights, optimizer, loss scale, progress; `state_dict` holds all of
    it.

    helper  what is trained beside the network and needed no more afterwards: the projectors of a
            hint
    """

    def __init__(
        self,
        network: Classifier,
        training: Training,
        precision: Precision,
        helper: torch.nn.Module | None = None,
    ):
        device = next(network.module.parameters()).device
        self.network, self.progress, self.best_weights = network, Progress(), None
        self.helper = helper or torch.nn.Module()
        self.optimizer = torch.optim.Adam(
            self.parameters(),
            lr=training.lr,
            weight_decay=training.weight_decay,
            fused=device.type in FUSED,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.scaled)
        self.divergence = Divergence(self.optimizer, device, precision.scaled)
        # On the device, in the order of `terms`; moved to progress.sums when saved or logged.
        self.sums = None
        self.terms: tuple[str, ...] = ()

    def parameters(self) -> list[torch.nn.Parameter]:
        """All that the optimizer moves."""
        return [*self.network.module.parameters(), *self.helper.parameters()]

    def state_dict(self) -> dict:
        """All that resuming needs, as tensors and plain values.

        Raises Problem (3) for a state that has diverged.
        """
        self.divergence.check()
        self.divergence.check_weights((self.network.module, self.helper), self.progress.total)
        self._collect()
        return {
            "weights": dict(self.network.module.state_dict()),
            "helper": dict(self.helper.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`.

        Raises Problem (4) for a state of another network, or one that lacks something.
        """
        try:
            self.network.module.load_state_dict(state["weights"], strict=True)
            self.helper.load_state_dict(state["helper"], strict=True)
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.progress, self.best_weights = Progress(**state["progress"]), state["best_weights"]
            if (self.progress.best is None) != (self.best_weights is None):
                raise ValueError("a best epoch and its weights go together")
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            why = " ".join(str(error).split())[:160]
            raise Problem(
                f"saved state of {self.network.name}: does not fit this run"
                f" ({type(error).__name__}: {why}); give --tag NAME to begin anew",
                BAD_CHECKPOINT,
            ) from None
        self.sums, self.terms = None, ()

    @contextlib.contextmanager
    def best_in_network(self):
        """Inside the block the network holds the best epoch's weights, afterwards its own."""
        own = state_on_cpu(self.network.module)
        self.network.module.load_state_dict(self.best_weights, strict=True)
        try:
            yield
        finally:
            self.network.module.load_state_dict(own, strict=True)

    def add(self, terms: dict[str, torch.Tensor], images: int) -> None:
        """Add a step's terms (means over so many images of this rank's) to the epoch's sums,
        without waiting for the device.
        """
        sums = [term.detach().float() * images for term in terms.values()]
        step = ranks.sum_over_ranks(torch.stack([*sums, torch.full_like(sums[0], images)]))
        if self.sums is None:
            self.terms = (*terms, "images")
            start = [self.progress.sums.get(name, 0.0) for name in self.terms]
            self.sums = torch.tensor(start, dtype=torch.float32, device=sums[0].device)
        self.sums += step

    def means(self) -> dict[str, float]:
        """Means over the epoch's images so far of the loss and its terms.

        Between two epochs: of the one before.
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
        if self.sums is not None:
            self.progress.sums = dict(zip(self.terms, self.sums.tolist()))

    def end_epoch(self) -> None:
        """Move on to the next epoch with empty sums."""
        self.progress.epoch, self.progress.step, self.progress.sums, self.sums = (
            self.progress.epoch + 1,
            0,
            {},
            None,
        )

    def end_phase(self) -> None:
        """Move on to the next phase: the weights as they are, an optimizer without memory, a best
        epoch of its own.
        """
        self.optimizer.state.clear()
        self.progress.phase, self.progress.best, self.best_weights = (
            self.progress.phase + 1,
            None,
            None,
        )
