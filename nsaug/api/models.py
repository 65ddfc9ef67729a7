"""Models and devices as a caller names them."""

import copy
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from nsaug.evaluation import EvalModel, find_models
from nsaug.evaluation.models import TIMM
from nsaug.models.factory import build_vit
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.errors import UserError, first_line

Model = nn.Module | str | Path
"""A timm model or a NoisyViT; or a folder, a weights file or the name of a timm model."""
Loaded = tuple[EvalModel, NoisyViT]
"""How tables describe a model, and a copy of it."""


def load_model(model: Model) -> Loaded:
    """A copy of a model as a NoisyViT, and how tables describe it."""
    if isinstance(model, str | Path):
        return _load_weights(str(model))
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {type(model).__name__}: pass a timm vision transformer, a folder or a timm name")
    timm_model: Any = model.model if isinstance(model, NoisyViT) else model
    if not hasattr(timm_model, "pretrained_cfg") or not hasattr(timm_model, "num_classes"):
        raise UserError(
            f"model is a {type(timm_model).__module__}.{type(timm_model).__name__}, which timm.create_model does not"
            " build: pass a timm vision transformer"
        )
    if not timm_model.num_classes:
        raise UserError("model has no classifier: build it with one, such as timm.create_model(..., num_classes=10)")
    dtype = next(model.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise UserError(
            f'model has weights of {dtype}: pass model.float(), and settings={{"trainer.precision": "bf16-mixed"}} to'
            " train in lower precision"
        )
    vit = copy.deepcopy(model) if isinstance(model, NoisyViT) else NoisyViT(copy.deepcopy(model))
    name = timm_model.pretrained_cfg.get("architecture") or type(timm_model).__name__
    return EvalModel(None, None, {}, name), vit


def _load_weights(name: str) -> Loaded:
    """The model in a folder or a weights file, or a timm model with pretrained weights."""
    path = Path(name).expanduser()
    if path.exists():
        (eval_model,), _ = find_models(str(path), None)
    elif timm.is_model(name.partition(".")[0]):
        (eval_model,), _ = find_models(f"{TIMM}{name}", None)
    else:
        raise UserError(f"model={name} is neither a folder or file with weights nor the name of a timm model")
    return eval_model, build_vit(**eval_model.build_args())


def find_device(device: torch.device | str | None, current: torch.device) -> torch.device:
    """The device to compute on.

    Args:
        device: as the caller names it.
        current: that of the model.
    """
    if device is None and current.type != "cpu":
        return current
    if device is None:
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        return torch.empty(0, device=device).device  # with its index
    except Exception as error:  # of several types, by the device
        raise UserError(f"device={device} cannot be used ({first_line(error)}): type device='cpu'") from error
