"""Run attacks of other libraries reproducibly and without side effects."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nsaug.attacks.objectives import as_labels
from nsaug.models.noisy_vit import eval_mode
from nsaug.utils.optional_imports import optional_import
from nsaug.utils.rng import GeneratorLike


def run_within_eps(
    attack: Any, eps: float, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike
) -> Tensor:
    """Run a minimum-norm attack of foolbox and keep the results within an L2 radius.

    Returns:
        The adversarial images, (B, 3, H, W) in [0, 1]; the original where none was found within eps.
    """
    if eps == 0:
        return images
    foolbox = optional_import("attacks", "foolbox")
    with preserve_state(model, draw_seed(generator)), torch.enable_grad():
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        attacked, _, _ = attack(bounded, images.contiguous(), as_labels(labels), epsilons=None)
    distance = (attacked - images).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    within_eps = attacked.isfinite().flatten(1).all(1).view(-1, 1, 1, 1) & (distance <= eps)
    return torch.where(within_eps, attacked, images).detach().clamp(0, 1)


@contextmanager
def preserve_state(model: nn.Module, seed: int) -> Iterator[None]:
    """Restore gradients, modes, logging and all global random states on exit.

    Inside the context the model is in eval mode without gradients, all global generators are seeded, and log messages
    below warnings are disabled.
    """
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    python_state, numpy_state, log_level = random.getstate(), np.random.get_state(), logging.root.manager.disable
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
        logging.disable(log_level)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def draw_seed(generator: GeneratorLike) -> int:
    """Draw a seed for a library from a generator, the first of several, or torch's global one."""
    source = generator if isinstance(generator, torch.Generator) or generator is None else generator[0]
    device = "cpu" if source is None else source.device
    return int(torch.randint(2**31, (), generator=source, device=device))
