"""Random draws that are functions of an explicit key, independent of all earlier draws."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """Purpose of a stream of random numbers; follows the seed in a key, so that streams are independent."""

    TRAINING = 0
    """Draws of methods in a training step, such as noise and random starts."""
    VALIDATION = 1
    NOISE_IMAGES = 2
    """Noise in logged images."""
    MIXUP = 3
    UNIVERSAL_NOISE = 4
    """Start of an epoch's universal noise."""
    UNIVERSAL_ORDER = 5
    """Order of the images that the universal noise is learned on."""
    DATA_ORDER = 6
    AUGMENTATION = 7
    LAYERS = 8
    """Dropout and drop path."""


def make_generator(device: torch.device | str, *key: int) -> torch.Generator:
    """Create a generator seeded by the whole key, such as (seed, stream, step, rank).

    Different keys give independent streams (numpy's SeedSequence), equal keys the same stream.

    Args:
        device: device of the generator; CPU and GPU streams differ.
        key: non-negative integers.
    """
    return torch.Generator(device).manual_seed(_hash_key(key))


GeneratorLike = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a batch, one per image, or None for the global generator."""


def uniform(shape: tuple[int, ...], generator: GeneratorLike, like: Tensor) -> Tensor:
    """Sample U(0, 1), on the device and with the dtype of `like`.

    With one generator per image, the numbers of an image do not depend on the rest of the batch.
    """
    return _sample(torch.rand, shape, generator, like)


def normal(shape: tuple[int, ...], generator: GeneratorLike, like: Tensor) -> Tensor:
    """Sample N(0, 1); see `uniform`."""
    return _sample(torch.randn, shape, generator, like)


def _sample(sampler: Callable[..., Tensor], shape: tuple[int, ...], generator: GeneratorLike, like: Tensor) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        return sampler(shape, generator=generator, device=like.device, dtype=like.dtype)
    # A shape (1, ...) is shared by all images: the first generator draws it.
    rows = [sampler(shape[1:], generator=g, device=g.device, dtype=like.dtype) for g in generator[: shape[0]]]
    return torch.stack(rows).to(like.device)


@contextmanager
def seed_scope(*key: int) -> Iterator[None]:
    """Seed the global CPU generators of Python, numpy and torch by a key; restore their states on exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(*key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def seed_devices_scope(*key: int) -> Iterator[None]:
    """`seed_scope` that seeds and restores the generators of all GPUs, too."""
    with torch.random.fork_rng(range(torch.cuda.device_count())), seed_scope(*key):
        seed_torch(*key)
        yield


def seed_all(*key: int) -> None:
    """Seed the global CPU generators of Python, numpy and torch by a key.

    Hashes the key with SplitMix64, which is faster than `make_generator`: augmentation calls this for every image.
    """
    state = len(key)
    for part in key:
        state = _splitmix(state ^ part)
    random.seed(state)
    np.random.seed(state & 0xFFFFFFFF)
    torch.default_generator.manual_seed(state >> 1)


def seed_torch(*key: int) -> None:
    """Seed torch's global generators of all devices by a key; layers such as dropout draw from them."""
    torch.manual_seed(_hash_key(key))


def uniform_from_text(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on a text and a seed alone, on every machine."""
    digest = hashlib.blake2b(f"{seed} {text}".encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53  # as many bits as a float has


_MASK64 = (1 << 64) - 1


def _splitmix(state: int) -> int:
    """Apply one step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), a bijection of 64-bit numbers."""
    state = (state + 0x9E3779B97F4A7C15) & _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state ^ (state >> 31)


def _hash_key(key: tuple[int, ...]) -> int:
    # The length is part of the entropy: SeedSequence maps (1, 2) and (1, 2, 0) to the same state.
    high, low = np.random.SeedSequence((len(key), *key)).generate_state(2, np.uint32)
    return int(high) << 31 ^ int(low)
