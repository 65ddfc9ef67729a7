"""What attacks of other libraries need around them: a seed, and a model left as it was."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from nsaug.models.noisy_vit import eval_mode
from nsaug.utils.rng import GeneratorLike


@contextmanager
def preserve_state(model: nn.Module, seed: int) -> Iterator[None]:
    """Gradients, modes, logging and the state of all global generators.

    Inside, the model is in eval mode, generators are seeded and what libraries have to say below a warning is silenced.
    """
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    python, numpy, silenced = random.getstate(), np.random.get_state(), logging.root.manager.disable
    try:
        logging.disable(logging.INFO)
        for parameter in parameters:
            parameter.grad = None
        devices = sorted({parameter.device.index or 0 for parameter in parameters if parameter.is_cuda})
        with eval_mode(model), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        logging.disable(silenced)
        random.setstate(python)
        np.random.set_state(numpy)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def draw_seed(generator: GeneratorLike) -> int:
    """A seed for a library, drawn from a generator, from the first of several, or from the global one."""
    own = generator if isinstance(generator, torch.Generator) or generator is None else generator[0]
    device = "cpu" if own is None else own.device
    return int(torch.randint(2**31, (), generator=own, device=device))
