"""Random draws as a function of where they are made, never of what was drawn before."""

from collections.abc import Iterator
from contextlib import contextmanager

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
    words = _words(key)
    seed = int(words[0]) << 31 ^ int(words[1])
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def numpy_draws(*key: int) -> Iterator[None]:
    """Seeds numpy's global generator by the key, for libraries that draw from it; afterwards it is as it was."""
    before = np.random.get_state()
    np.random.seed(_words(key))
    try:
        yield
    finally:
        np.random.set_state(before)


def _words(key: tuple[int, ...]) -> np.ndarray:
    # The length counts too: SeedSequence takes (1, 2) and (1, 2, 0) for the same.
    return np.random.SeedSequence((len(key), *key)).generate_state(2, np.uint32)
