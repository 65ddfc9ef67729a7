"""Which weights of a ViT are trainable, and the learning rate and weight decay of each layer."""

import re
from typing import Annotated, Any

import timm.optim
from pydantic import AfterValidator
from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nsaug.utils.errors import UserError


def _parse_trainable(value: str) -> str:
    if re.fullmatch(r"all|head|last_[1-9]\d*", value) is None:
        raise ValueError("should be all, head, or last_N with N from 1 on, such as last_4")
    return value


Trainable = Annotated[str, AfterValidator(_parse_trainable)]
"""all: every weight. head: the classifier. last_N: the last N blocks and all layers after them."""


def freeze(model: Any, trainable: str) -> None:
    """Turn off the gradients of all weights that are not trainable.

    Args:
        model: a timm model.
        trainable: see `Trainable`.

    Raises:
        UserError: the model has fewer blocks, or timm does not know its blocks.
    """
    if trainable == "all":
        return
    kept = {id(parameter) for parameter in _head_parameters(model)}
    if trainable != "head":
        count, layers = int(trainable.removeprefix("last_")), _layer_indices(model)
        last = max(layers.values())
        blocks = sorted({layer for layer in layers.values() if 0 < layer < last})
        if count > len(blocks):
            raise UserError(f"trainable={trainable}: {type(model).__name__} has only {len(blocks)} blocks")
        kept |= {id(p) for name, p in model.named_parameters() if layers[name] >= blocks[-count]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)


def freeze_bn_stats(model: nn.Module) -> None:
    """Put batch norms without trainable weights into eval mode, so that their statistics are frozen, too."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


def parameter_groups(model: Any, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, without weight decay on biases, norms and position embeddings.

    Args:
        model: a timm model; frozen weights are skipped.
        lr: learning rate of the head.
        weight_decay: of all other weights.
        layer_decay: the learning rate of a layer is this factor times that of the next layer (arXiv 2106.08254).
    """
    no_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if layer_decay == 1:
        return timm.optim.param_groups_weight_decay(model, weight_decay, no_weight_decay_list=no_decay)
    groups = timm.optim.param_groups_layer_decay(
        model, weight_decay, no_weight_decay_list=no_decay, layer_decay=layer_decay
    )
    # timm's schedulers read lr_scale; torch's read the group's own lr.
    return [group | {"lr": lr * group.pop("lr_scale")} for group in groups]


def _head_parameters(model: Any) -> list[nn.Parameter]:
    heads = model.get_classifier()
    return [p for head in (heads if isinstance(heads, tuple | list) else (heads,)) for p in head.parameters()]


def _layer_indices(model: Any) -> dict[str, int]:
    """timm's layer index by parameter name: 0 is the stem, the highest is what follows the blocks."""
    if not hasattr(model, "group_matcher"):
        raise UserError(f"timm does not know the blocks of {type(model).__name__}: set trainable=head or trainable=all")
    return group_parameters(model, model.group_matcher(coarse=False), reverse=True)
