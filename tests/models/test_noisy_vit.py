import copy

import pytest
import timm
import torch
from torch import nn

from nsaug.methods import NoiseAugmentation
from nsaug.models.noisy_vit import NoisyViT, eval_mode, params_frozen
from nsaug.nullspace import NullspaceNoise
from nsaug.utils.errors import UserError
from tests.conftest import TINY, tiny_vit


@torch.no_grad()
def test_noise_equals_a_change_of_the_patch_embedding_bias(vit, images):
    token = torch.randn(24, dtype=torch.float64)
    noisy = vit.eval()(images, token.expand(1, 16, 24))
    vit.model.patch_embed.proj.bias += token
    torch.testing.assert_close(vit(images), noisy)


@torch.no_grad()
def test_deepcopy_has_independent_noise(vit, images):
    vit.eval()
    copied, noise = copy.deepcopy(vit), torch.randn(1, 16, 24, dtype=torch.float64)
    clean, noisy = vit(images), vit(images, noise)
    assert torch.equal(copied(images, noise), noisy)
    for parameter in vit.parameters():
        parameter.zero_()
    assert torch.equal(copied(images, noise), noisy)
    assert torch.equal(copied(images), clean)


def test_release_removes_the_hooks(vit, images):
    model, logits = vit.model, vit.eval()(images)
    copied = copy.deepcopy(vit)
    assert copied.release() is copied.model
    hooks = [(module._forward_hooks, module._forward_pre_hooks) for module in copied.model.modules()]
    assert not any(map(any, hooks))
    assert torch.equal(copied(images), logits)
    assert any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_image_size_is_that_of_a_model_built_for_another_one(name):
    """timm.create_model(..., img_size=...) leaves 224 in the configuration."""
    sizes = {"vit_tiny_patch16_224": {**TINY, "patch_size": 2}, "swin_tiny_patch4_window7_224": {"window_size": 2}}
    vit = NoisyViT(timm.create_model(name, img_size=16, num_classes=3, **sizes[name]))
    assert vit.data_config["input_size"] == (3, 16, 16)
    assert vit(torch.rand(1, 3, 16, 16)).shape == (1, 3)


def test_wrong_noise_shape_raises(vit, images):
    with pytest.raises(UserError, match=r"noise has shape \(1, 16, 23\); patch_embed takes \(1 or B, 16, 24\)"):
        vit(images, torch.zeros(1, 16, 23))


def test_state_dict_has_timm_keys(vit):
    own = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=8, patch_size=2, **TINY)
    assert list(vit.state_dict()) == list(own.state_dict())
    own.load_state_dict(vit.state_dict())
    vit.load_state_dict(own.state_dict())

    nested = nn.ModuleDict({"vit": tiny_vit()})
    assert {key.removeprefix("vit.") for key in nested.state_dict()} == set(own.state_dict())
    changed = {key: value + 1 for key, value in nested.state_dict().items()}
    nested.load_state_dict(changed)
    assert all(torch.equal(nested.state_dict()[key], value) for key, value in changed.items())


def test_eval_mode_restores_every_submodule(vit):
    vit.train()
    vit.model.blocks[0].eval()
    with eval_mode(vit):
        assert not any(part.training for part in vit.modules())
    assert vit.training
    assert vit.model.blocks[1].training
    assert not vit.model.blocks[0].training


@pytest.mark.parametrize("noise", [False, True])
def test_gradient_checkpointing_keeps_gradients(noise, images):
    gradients = []
    for grad_checkpointing in (False, True):
        vit = tiny_vit(grad_checkpointing=grad_checkpointing).double().train()
        shared = torch.ones(vit.noise_shape(), dtype=torch.float64)[None].requires_grad_() if noise else None
        inputs = [*vit.parameters(), *([shared] if noise else [])]
        gradients.append(torch.autograd.grad(vit(images, shared).square().sum(), inputs))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_block_noise_with_gradient_checkpointing_raises():
    method = NoiseAugmentation(NullspaceNoise(layer="blocks.1"))
    method.setup(tiny_vit())
    with pytest.raises(UserError, match="model.grad_checkpointing=false, or nullspace.layer=patch_embed"):
        method.setup(tiny_vit(grad_checkpointing=True))


def test_params_frozen_restores_requires_grad():
    vit = tiny_vit()
    vit.model.head.requires_grad_(False)
    with params_frozen(vit):
        assert not any(parameter.requires_grad for parameter in vit.parameters())
    assert all(p.requires_grad == (not name.startswith("model.head")) for name, p in vit.named_parameters())
