"""Detection of divergence: a step with a loss or gradient that is not finite is never taken."""

import torch

from kd.system.errors import DIVERGED, Problem

SAVED_IS_FINITE = "The last saved state is finite."


class Divergence:
    """Detects a loss or gradient that is not finite, and keeps Adam from stepping on it.

    `watch` sets a flag on the device without waiting for the device, and `check` raises if the flag
    is set. The flag is never cleared, so no later step changes a weight either.

    Only the gradients of small parameters (biases, norm layers, the first convolution) are read. A
    value that is not finite reaches some of them in the backward pass, and reading all gradients
    would take 2 % of a step on a CPU. `check_weights` finds the rest before anything is saved.
    """

    SMALL = 2**16  # maximum number of values of a small parameter
    # The square of a larger gradient, which is Adam's second moment, is not finite in float32, and
    # the weight would never change again.
    LARGEST = 1e18

    def __init__(
        self, name: str, optimizer: torch.optim.Optimizer, device: torch.device, scaled: bool
    ):
        self.name, self.optimizer, self.scaled = name, optimizer, scaled
        self.first_bad = torch.tensor(-1.0, device=device)
        self.parameters = []
        for group in optimizer.param_groups:
            self.parameters += group["params"]

    def watch(self, loss: torch.Tensor, norm: torch.Tensor | None, step: int) -> None:
        """Check the loss and the gradients of a step, before the optimizer uses them.

        With a loss scale, only the loss is checked: a gradient may overflow, and the scaler then
        skips the step and lowers the scale.

        loss  scalar
        norm  norm of all gradients if clipping has computed it, otherwise None
        step  number of the step
        """
        bad = ~torch.isfinite(loss.detach())
        if not self.scaled:
            bad = bad | ~(self._largest(norm) < self.LARGEST)
        self.first_bad = torch.where((self.first_bad < 0) & bad, float(step), self.first_bad)
        if not self.scaled:
            # Fused Adam skips a step on the device if `found_inf` is 1. GradScaler relies on this,
            # too.
            self.optimizer.found_inf = (self.first_bad >= 0).float()

    def _largest(self, norm: torch.Tensor | None) -> torch.Tensor:
        """Return the norm, or without one the largest absolute value of the gradients to check."""
        values = [norm]
        if norm is None:
            values = [value.grad for value in self.parameters if value.grad is not None]
        small = [value for value in values if value.numel() <= self.SMALL] or values
        return torch.cat([value.flatten() for value in small]).abs().max()

    def check(self) -> None:
        """Raise Problem (3) if the loss or a gradient of any step was not finite."""
        step = int(self.first_bad.item())
        if step >= 0:
            safe = SAVED_IS_FINITE
            if _are_finite(self.parameters):
                safe = "The step changed no weight."
            raise self._problem(f"the loss or a gradient is not finite at step {step}", safe)

    def check_weights(self, modules: tuple[torch.nn.Module, ...], step: int) -> None:
        """Raise Problem (3) if weights or Adam's moments are not finite.

        A step with a finite gradient can still overflow.
        """
        values = []
        for module in modules:
            values += module.state_dict().values()
        for state in self.optimizer.state.values():
            values += [value for value in state.values() if torch.is_tensor(value)]
        if not _are_finite(values):
            raise self._problem(f"the weights are not finite after step {step}", SAVED_IS_FINITE)

    def _problem(self, what: str, safe: str) -> Problem:
        lr = self.optimizer.param_groups[0]["lr"]
        return Problem(
            f"Training of {self.name} diverged: {what} (learning rate {lr:g}). {safe} Lower --lr,"
            " or set --clip-norm 1 or --amp off, in a new run with --tag NAME.",
            DIVERGED,
        )


def _are_finite(values: list[torch.Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in values)
