"""Which weights of a ViT are finetuned, and how fast each layer learns."""

import re
from typing import Annotated, Any

import timm.optim
from pydantic import AfterValidator
from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nsaug.utils.errors import UserError


def _finetune(value: str) -> str:
    if re.fullmatch(r"all|head|last_[1-9]\d*", value) is None:
        raise ValueError("should be all, head, or last_N with N from 1 on, such as last_4")
    return value


Finetune = Annotated[str, AfterValidator(_finetune)]
"""all: every weight. head: the classifier alone. last_N: the last N blocks and all that follows them."""


def freeze(model: Any, finetune: str) -> None:
    """Stops the gradients of all weights but those that are to be finetuned.

    Args:
        model: a timm model.
        finetune: see `Finetune`.

    Raises:
        UserError: the model has fewer blocks, or timm does not know its blocks.
    """
    if finetune == "all":
        return
    head = {id(parameter) for parameter in _head(model)}
    if finetune == "head":
        kept = head
    else:
        count, layers = int(finetune.removeprefix("last_")), _layers(model)
        last = max(layers.values())
        blocks = sorted({layer for layer in layers.values() if 0 < layer < last})
        if count > len(blocks):
            raise UserError(f"finetune={finetune}: {type(model).__name__} has {len(blocks)} blocks, set no more")
        kept = head | {id(p) for name, p in model.named_parameters() if layers[name] >= blocks[-count]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)


def freeze_bn_stats(model: nn.Module) -> None:
    """Puts batch norms that are not finetuned into eval mode, so that their statistics stand still too."""
    for part in model.modules():
        if isinstance(part, _BatchNorm) and not any(parameter.requires_grad for parameter in part.parameters()):
            part.eval()


def parameter_groups(model: Any, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: no weight decay on biases, norms and positions; layers at their own rates.

    Args:
        model: a timm model; frozen weights are left out.
        lr: the learning rate of the head.
        weight_decay: of all other weights.
        layer_decay: each layer learns by this factor slower than the one after it (arXiv 2106.08254); 1: all alike.
    """
    fixed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if layer_decay == 1:
        return timm.optim.param_groups_weight_decay(model, weight_decay, no_weight_decay_list=fixed)
    groups = timm.optim.param_groups_layer_decay(
        model, weight_decay, no_weight_decay_list=fixed, layer_decay=layer_decay
    )
    # timm's schedulers read lr_scale; torch's know the rate of a group.
    return [group | {"lr": lr * group.pop("lr_scale")} for group in groups]


def _head(model: Any) -> list[nn.Parameter]:
    heads = model.get_classifier()
    return [p for head in (heads if isinstance(heads, tuple | list) else (heads,)) for p in head.parameters()]


def _layers(model: Any) -> dict[str, int]:
    """A layer's place by parameter name, as timm groups them: 0 is the stem, the last is what follows the blocks."""
    if not hasattr(model, "group_matcher"):
        raise UserError(f"timm does not know the blocks of {type(model).__name__}: set finetune=head or finetune=all")
    return group_parameters(model, model.group_matcher(coarse=False), reverse=True)
