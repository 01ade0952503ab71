"""Teachers: callables from a batch to logits, without gradient, in float32, that training leaves as they were."""

from collections.abc import Callable

import numpy as np
import torch

from kd.data.views import Batch, Views
from kd.models import Classifier
from kd.runtime import Precision

# batch -> logits float32 [B, K]
TeacherFunction = Callable[[Batch], torch.Tensor]


def live(network: Classifier, precision: Precision) -> TeacherFunction:
    """A network that looks at every batch: evaluation mode, no gradient, the training's precision, its own mean and std."""
    network.module.eval().requires_grad_(False)

    @torch.inference_mode()
    def logits(batch: Batch) -> torch.Tensor:
        with precision.autocast():
            output = network(batch.images)
        return output.float()

    # Inference tensors may not enter autograd; a clone made outside may.
    return lambda batch: logits(batch).clone()


def answers(function: TeacherFunction, views: Views, leave: Callable[[], None] = lambda: None) -> np.ndarray:
    """What a teacher says of every slot once, in order: float32 [n, K]. `leave` is called before every batch."""
    logits = []
    for batch in views.epoch(0):
        leave()
        logits.append(function(batch).cpu())
    return torch.cat(logits).numpy()


def nobody(batch: Batch) -> None:
    """No teacher: training on labels alone."""
