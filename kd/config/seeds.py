"""Seeds of networks that must not start like another network of the same --seed."""

import numpy as np

# Numbers for `another_seed` above every generation of a chain, which is its own number.
UNTRAINED = 10**6
SAME_NAME = 2 * 10**6


def another_seed(seed: int, number: int) -> int:
    """Return a seed that is unrelated to `seed`, and different for every number.

    It has 32 bits, because torch's CPU generator does not use more.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
