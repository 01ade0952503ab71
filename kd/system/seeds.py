"""Random numbers as pure functions of a few small integers.

There is no random state to save, so that resuming is exact.
"""

import numpy as np
import torch

from kd.system import ranks

_STEP = 2  # part of the key of `random_stream`: the purpose of the numbers


def random_stream(*key: int) -> np.random.Generator:
    """Return a counter-based generator that is a pure function of a few small integers."""
    entropy = np.random.SeedSequence(key).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=entropy))


def seed_step(device: torch.device, seed: int, epoch: int, step: int) -> None:
    """Seed the generators of the CPU and the device for one training step.

    Dropout therefore needs no saved state, and resuming is exact. Each rank has its own stream:
    with a shared one, dropout would drop the same units for the images of all ranks.
    """
    key = [seed, _STEP, epoch, step]
    if ranks.rank():
        key.append(ranks.rank())
    number = int(random_stream(*key).integers(2**62))
    # Not torch.manual_seed: with a CUDA build of torch on a machine without a GPU, each call of it
    # formats a stack trace, which is slow.
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)
