"""A loss or gradient that is not finite: noticed without waiting for the device, and never stepped on."""

import torch

from kd.system.errors import DIVERGED, Problem


class Divergence:
    """Notices a loss or gradient that is not finite, without waiting for the device, and keeps Adam
    from stepping on it.

    It looks at the gradients of small parameters (biases, norm layers, the first convolution): what
    goes wrong in a backward pass reaches some of them, and reading all gradients once more would
    take 2 % of a CPU step. What slips through is caught by `check_weights` before anything is
    saved. The flag stays up: no later step changes a weight either. `check` raises.
    """

    SMALL = 2**16  # values
    LARGEST = 1e18  # beyond it the square, Adam's second moment, is not finite in float32, and the weight would never move again

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, scaled: bool):
        self.optimizer, self.scaled = optimizer, scaled
        self.first_bad = torch.tensor(-1.0, device=device)
        self.parameters = [value for group in optimizer.param_groups for value in group["params"]]

    def watch(self, loss: torch.Tensor, norm: torch.Tensor | None, step: int) -> None:
        """Look at one step, and at the norm of all gradients where clipping has worked it out.

        Under a loss scale a gradient may overflow: the scaler skips that step and lowers itself.
        """
        bad = ~torch.isfinite(loss.detach())
        if not self.scaled:
            looked_at = (
                [norm]
                if norm is not None
                else [value.grad for value in self.parameters if value.grad is not None]
            )
            small = [value for value in looked_at if value.numel() <= self.SMALL] or looked_at
            bad = bad | ~(
                torch.cat([value.flatten() for value in small]).abs().max() < self.LARGEST
            )
        self.first_bad = torch.where((self.first_bad < 0) & bad, float(step), self.first_bad)
        if not self.scaled:
            # Fused Adam skips a step whose `found_inf` is 1, on the device: what GradScaler uses,
            # too.
            self.optimizer.found_inf = (self.first_bad >= 0).float()

    def check(self) -> None:
        """Raise Problem (3) if any step so far was not finite."""
        step = int(self.first_bad.item())
        if step >= 0:
            whole = all(bool(value.isfinite().all()) for value in self.parameters)
            raise self._problem(
                f"loss or gradient at step {step}",
                (
                    "no weight was changed by it"
                    if whole
                    else "the last file that was saved is finite"
                ),
            )

    def check_weights(self, modules: tuple[torch.nn.Module, ...], step: int) -> None:
        """Raise Problem (3) for weights or moments that are not finite: a finite gradient may still
        be stepped on too far.
        """
        moments = [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value)
        ]
        weights = [value for module in modules for value in module.state_dict().values()]
        if not all(bool(value.isfinite().all()) for value in (*weights, *moments)):
            raise self._problem(
                f"weights after step {step}", "the last file that was saved is finite"
            )

    def _problem(self, what: str, safe: str) -> Problem:
        lr = self.optimizer.param_groups[0]["lr"]
        return Problem(
            f"{what}: not finite (learning rate {lr:g}); {safe}; lower --lr, set --clip-norm 1 or"
            " --amp off, under another --tag",
            DIVERGED,
        )
