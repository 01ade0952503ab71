"""Random numbers as pure functions of a few small integers.

There is no random state to save, and resuming is exact.
"""

import numpy as np
import torch

from kd.system import ranks

_STEP = 2  # of `random_stream`: the purpose of its numbers


def random_stream(*key: int) -> np.random.Generator:
    """A counter-based generator that is a pure function of a few small integers."""
    entropy = np.random.SeedSequence(key).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=entropy))


def seed_step(device: torch.device, seed: int, epoch: int, step: int) -> None:
    """Seed the generators of the CPU and the device for one training step.

    So dropout needs no saved state and resuming is exact. Each rank has a stream of its own: a
    shared one would drop the same units for different images.
    """
    key = [seed, _STEP, epoch, step]
    if ranks.rank():
        key.append(ranks.rank())
    number = int(random_stream(*key).integers(2**62))
    # Not torch.manual_seed: where CUDA is compiled in but absent, it formats a stack trace for
    # later at every call.
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)
