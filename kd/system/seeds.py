"""Random numbers as pure functions of a few small numbers: nothing to save, and resuming is exact."""

import numpy as np
import torch

from kd.system import ranks


def random_stream(*key: int) -> np.random.Generator:
    """A counter-based generator that is a pure function of a few small numbers."""
    entropy = np.random.SeedSequence(key).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=entropy))


def seed_step(device: torch.device, seed: int, epoch: int, step: int) -> None:
    """Seed the generators of CPU and device for one step, so that dropout needs no saved state and
    resuming is exact.

    Each rank has a stream of its own: the same one would drop the same units for other images.
    """
    own = (ranks.rank(),) if ranks.rank() else ()
    number = int(random_stream(seed, 2, epoch, step, *own).integers(2**62))
    # Not torch.manual_seed: where CUDA is compiled in but absent, it formats a stack trace for
    # later at every call.
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)
