"""Random draws as a function of where they are made, never of what was drawn before."""

import numpy as np
import torch


def generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator seeded by the whole key, e.g. (seed, step, rank).

    Two different keys give independent streams (numpy's SeedSequence); the same key gives the same stream on the
    same kind of device.

    Args:
        device: where the numbers are drawn; CPU and GPU streams differ.
        key: non-negative integers.
    """
    # The length counts too: SeedSequence takes (1, 2) and (1, 2, 0) for the same.
    words = np.random.SeedSequence((len(key), *key)).generate_state(2, np.uint32)
    seed = int(words[0]) << 31 ^ int(words[1])
    return torch.Generator(device).manual_seed(seed)
