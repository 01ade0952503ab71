"""A loss or gradient that is not finite: noticed soon, and never stepped on."""

import torch

from kd.system.errors import DIVERGED, Problem

SAVED_IS_FINITE = "the last file that was saved is finite"


class Divergence:
    """Notices a loss or gradient that is not finite, and keeps Adam from stepping on it.

    It does not wait for the device. It looks at the gradients of small parameters (biases, norm
    layers, the first convolution): what goes wrong in a backward pass reaches some of them, and
    reading all gradients once more would take 2 % of a CPU step. What slips through is caught by
    `check_weights` before anything is saved. The flag stays up: no later step changes a weight
    either. `check` raises.
    """

    SMALL = 2**16  # values
    # Beyond it the square, Adam's second moment, is not finite in float32, and the weight would
    # never move again.
    LARGEST = 1e18

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, scaled: bool):
        self.optimizer, self.scaled = optimizer, scaled
        self.first_bad = torch.tensor(-1.0, device=device)
        self.parameters = []
        for group in optimizer.param_groups:
            self.parameters += group["params"]

    def watch(self, loss: torch.Tensor, norm: torch.Tensor | None, step: int) -> None:
        """Look at one step, and at the norm of all gradients where clipping has worked it out.

        Under a loss scale a gradient may overflow: the scaler skips that step and lowers itself.
        """
        bad = ~torch.isfinite(loss.detach())
        if not self.scaled:
            bad = bad | ~(self._largest(norm) < self.LARGEST)
        self.first_bad = torch.where((self.first_bad < 0) & bad, float(step), self.first_bad)
        if not self.scaled:
            # Fused Adam skips a step whose `found_inf` is 1, on the device: what GradScaler uses,
            # too.
            self.optimizer.found_inf = (self.first_bad >= 0).float()

    def _largest(self, norm: torch.Tensor | None) -> torch.Tensor:
        """The largest value of the norm, or where there is none of the gradients that are read."""
        values = [norm]
        if norm is None:
            values = [value.grad for value in self.parameters if value.grad is not None]
        small = [value for value in values if value.numel() <= self.SMALL] or values
        return torch.cat([value.flatten() for value in small]).abs().max()

    def check(self) -> None:
        """Raise Problem (3) if any step so far was not finite."""
        step = int(self.first_bad.item())
        if step >= 0:
            safe = SAVED_IS_FINITE
            if _are_finite(self.parameters):
                safe = "no weight was changed by it"
            raise self._problem(f"loss or gradient at step {step}", safe)

    def check_weights(self, modules: tuple[torch.nn.Module, ...], step: int) -> None:
        """Raise Problem (3) for weights or moments that are not finite.

        A step on a finite gradient may still go too far.
        """
        values = []
        for module in modules:
            values += module.state_dict().values()
        for state in self.optimizer.state.values():
            values += [value for value in state.values() if torch.is_tensor(value)]
        if not _are_finite(values):
            raise self._problem(f"weights after step {step}", SAVED_IS_FINITE)

    def _problem(self, what: str, safe: str) -> Problem:
        lr = self.optimizer.param_groups[0]["lr"]
        return Problem(
            f"{what}: not finite (learning rate {lr:g}); {safe}; lower --lr, set --clip-norm 1 or"
            " --amp off, under another --tag",
            DIVERGED,
        )


def _are_finite(values: list[torch.Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in values)
