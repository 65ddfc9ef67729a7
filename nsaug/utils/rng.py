"""Random draws as a function of where they are made, never of what was drawn before."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """What a stream of random numbers is for; the first part of a key after the seed, so that streams are independent."""

    TRAINING = 0
    """What methods draw in a training step, such as noise and random starts."""
    VALIDATION = 1
    NOISE_IMAGES = 2
    """The noise in logged pictures."""
    MIXUP = 3
    UNIVERSAL_NOISE = 4
    """Where the universal noise of an epoch starts."""
    UNIVERSAL_ORDER = 5
    """The order of the images that it is learned on."""
    DATA_ORDER = 6
    AUGMENTATION = 7
    LAYERS = 8
    """Dropout and drop path."""


def make_generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator seeded by the whole key, e.g. (seed, step, rank).

    Two different keys give independent streams (numpy's SeedSequence); the same key gives the same stream on the
    same kind of device.

    Args:
        device: where the numbers are drawn; CPU and GPU streams differ.
        key: non-negative integers.
    """
    return torch.Generator(device).manual_seed(_number(_words(key)))


_WORD = (1 << 64) - 1
GeneratorLike = torch.Generator | Sequence[torch.Generator] | None
"""Where numbers come from: one generator for a whole batch, one for each image of it, or the global one."""


def uniform(shape: tuple[int, ...], source: GeneratorLike, like: Tensor) -> Tensor:
    """U(0, 1) in a shape, on the device and in the type of `like`.

    With a generator for each image, the numbers of an image do not depend on the batch that it is in.
    """
    return _sample(torch.rand, shape, source, like)


def normal(shape: tuple[int, ...], source: GeneratorLike, like: Tensor) -> Tensor:
    """N(0, 1), likewise."""
    return _sample(torch.randn, shape, source, like)


def _sample(draw: Callable[..., Tensor], shape: tuple[int, ...], source: GeneratorLike, like: Tensor) -> Tensor:
    if source is None or isinstance(source, torch.Generator):
        return draw(shape, generator=source, device=like.device, dtype=like.dtype)
    each = source[: shape[0]]  # one shape for all images, as of a noise they share, is the first one's
    numbers = [draw(shape[1:], generator=own, device=own.device, dtype=like.dtype) for own in each]
    return torch.stack(numbers).to(like.device)


@contextmanager
def seed_scope(*key: int) -> Iterator[None]:
    """Seeds the global generators of Python, numpy and torch (the CPU's) by the key: libraries draw from them.

    Afterwards they are as they were.
    """
    python, numpy, own = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(*key)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(own)


def seed_all(*key: int) -> None:
    """As `seeded`, for good. Cheaper than `generator`, for what is done to each image."""
    number = len(key)
    for part in key:
        number = _splitmix(number ^ part)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    torch.default_generator.manual_seed(number >> 1)


def seed_torch(*key: int) -> None:
    """Seeds torch's global generators, of all devices, by the key: what layers such as dropout draw from."""
    torch.manual_seed(_number(_words(key)))


def _splitmix(number: int) -> int:
    """SplitMix64's step (Steele, Lea and Flood, OOPSLA 2014): 64 bits to 64 bits, one to one, all of them mixed."""
    number = (number + 0x9E3779B97F4A7C15) & _WORD
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _WORD
    return number ^ (number >> 31)


def _number(words: np.ndarray) -> int:
    return int(words[0]) << 31 ^ int(words[1])


def _words(key: tuple[int, ...]) -> np.ndarray:
    # The length counts too: SeedSequence takes (1, 2) and (1, 2, 0) for the same.
    return np.random.SeedSequence((len(key), *key)).generate_state(2, np.uint32)
