"""Frozen weights and layer-wise learning rates, beside timm's own."""

import pytest
import timm
import timm.optim
import torch
from torch import nn

from nsaug.training.param_groups import freeze, freeze_bn_stats, parameter_groups
from nsaug.utils.errors import UserError
from tests.conftest import tiny_vit

LAST_1 = {  # prefixes of the weights that trainable=last_1 trains
    "vit_tiny_patch16_224": ("blocks.11.", "norm.", "head."),
    "deit_tiny_distilled_patch16_224": ("blocks.11.", "norm.", "head.", "head_dist."),
    "beit_base_patch16_224": ("blocks.11.", "fc_norm.", "head."),
    "swin_tiny_patch4_window7_224": ("layers.3.blocks.1.", "norm.", "head."),
}


def trainable_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", [*LAST_1, "pit_ti_224", "xcit_nano_12_p16_224"])
def test_head_trains_the_classifier(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    freeze(model, "head")
    assert trainable_names(model)
    assert all(parameter.startswith("head") for parameter in trainable_names(model))


@pytest.mark.parametrize("name", LAST_1)
def test_last_n_trains_the_last_blocks_and_all_after_them(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    freeze(model, "last_1")
    assert trainable_names(model) == {key for key, _ in model.named_parameters() if key.startswith(LAST_1[name])}


def test_last_n_counts_blocks():
    model = tiny_vit().model
    freeze(model, "last_2")
    stem = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert trainable_names(model) == {name for name, _ in model.named_parameters()} - stem
    with pytest.raises(UserError, match="trainable=last_3: VisionTransformer has only 2 blocks"):
        freeze(model, "last_3")


def test_last_n_needs_blocks_that_timm_knows():
    with torch.device("meta"):
        model = timm.create_model("pit_ti_224")
    with pytest.raises(UserError, match="set trainable=head or trainable=all"):
        freeze(model, "last_1")


def test_frozen_batch_norms_keep_their_statistics():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).train()
    model[0].requires_grad_(False)
    freeze_bn_stats(model)
    assert [module.training for module in model] == [False, True]


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_layer_decay_follows_the_distance_from_the_head(layer_decay):
    vit = tiny_vit()
    groups = parameter_groups(vit.model, lr=0.1, weight_decay=0.3, layer_decay=layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    layers = {"cls_token": 0, "pos_embed": 0, "patch_embed": 0, "blocks.0": 1, "blocks.1": 2, "norm": 2, "head": 3}
    assert len(rate) == len(list(vit.model.parameters()))
    for name, parameter in vit.model.named_parameters():
        distance = 3 - next(layer for prefix, layer in layers.items() if name.startswith(prefix))
        no_decay = parameter.dim() == 1 or name in ("pos_embed", "cls_token")
        assert rate[id(parameter)] == (pytest.approx(0.1 * layer_decay**distance), 0 if no_decay else 0.3), name
    if layer_decay < 1:
        theirs = timm.optim.create_optimizer_v2(
            vit.model, "adamw", lr=0.1, weight_decay=0.3, layer_decay=layer_decay, filter_bias_and_bn=True
        )
        for group in theirs.param_groups:
            for parameter in group["params"]:
                assert rate[id(parameter)] == (pytest.approx(0.1 * group["lr_scale"]), group["weight_decay"])
