"""What is frozen, and how fast the rest learns."""

import pytest
import timm
import timm.optim
import torch
from torch import nn

from nsaug.training.param_groups import freeze, freeze_bn_stats, parameter_groups
from nsaug.utils.errors import UserError
from tests.conftest import tiny_vit

FAMILIES = {  # what finetune=last_1 leaves to learn
    "vit_tiny_patch16_224": ("blocks.11.", "norm.", "head."),
    "deit_tiny_distilled_patch16_224": ("blocks.11.", "norm.", "head.", "head_dist."),
    "beit_base_patch16_224": ("blocks.11.", "fc_norm.", "head."),
    "swin_tiny_patch4_window7_224": ("layers.3.blocks.1.", "norm.", "head."),
}


@pytest.mark.parametrize("name", [*FAMILIES, "pit_ti_224", "xcit_nano_12_p16_224"])
def test_head_is_the_classifier(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    freeze(model, "head")
    learning = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert learning
    assert all(key.startswith("head") for key in learning)


@pytest.mark.parametrize("name", FAMILIES)
def test_last_n_is_the_last_blocks_and_all_that_follows(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    freeze(model, "last_1")
    learning = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {key for key, _ in model.named_parameters() if key.startswith(FAMILIES[name])}


def test_last_n_counts_blocks():
    vit = tiny_vit()
    freeze(vit.model, "last_2")
    stem = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    frozen = {key for key, parameter in vit.model.named_parameters() if not parameter.requires_grad}
    assert frozen == stem
    with pytest.raises(UserError, match="VisionTransformer has 2 blocks, set no more"):
        freeze(vit.model, "last_3")


def test_a_model_whose_blocks_timm_does_not_know():
    with torch.device("meta"):
        model = timm.create_model("pit_ti_224")
    with pytest.raises(UserError, match="set finetune=head or finetune=all"):
        freeze(model, "last_1")


def test_frozen_batch_norms_stand_still():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).train()
    model[0].requires_grad_(False)
    freeze_bn_stats(model)
    assert [part.training for part in model] == [False, True]


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_layers_learn_by_their_distance_from_the_head(layer_decay):
    vit = tiny_vit()
    groups = parameter_groups(vit.model, lr=0.1, weight_decay=0.3, layer_decay=layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    place = {"cls_token": 0, "pos_embed": 0, "patch_embed": 0, "blocks.0": 1, "blocks.1": 2, "norm": 2, "head": 3}
    assert len(rate) == len(list(vit.model.parameters()))
    for name, parameter in vit.model.named_parameters():
        distance = 3 - next(layer for prefix, layer in place.items() if name.startswith(prefix))
        plain = parameter.dim() == 1 or name in ("pos_embed", "cls_token")
        assert rate[id(parameter)] == (pytest.approx(0.1 * layer_decay**distance), 0 if plain else 0.3), name
    if layer_decay < 1:
        theirs = timm.optim.create_optimizer_v2(
            vit.model, "adamw", lr=0.1, weight_decay=0.3, layer_decay=layer_decay, filter_bias_and_bn=True
        )
        for group in theirs.param_groups:
            for parameter in group["params"]:
                assert rate[id(parameter)] == (pytest.approx(0.1 * group["lr_scale"]), group["weight_decay"])
