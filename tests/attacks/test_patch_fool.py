"""Patch-Fool: where it works, on what, and what it leaves behind."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from nsaug.attacks import PatchFool
from nsaug.attacks.patch_fool import _agreeing, attention_maps
from nsaug.models.factory import build_vit
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator as draws
from tests.conftest import tiny_vit

ATTACK = PatchFool(patches=2, num_steps=20)


@pytest.fixture
def vit():
    return tiny_vit().double().eval()


@pytest.fixture
def right(vit, images):
    return vit(images).argmax(1)


def patches(change):
    """Which of the 16 patches of 2 x 2 pixels changed, (B, 16)."""
    return F.max_pool2d(change.abs().amax(1, keepdim=True), 2).flatten(1) > 0


def test_the_patches_are_those_that_are_attended_to_most(vit, images, right):
    """Attention computed by hand, from queries and keys."""
    block = vit.model.blocks[1]  # the model has two, the attack's fourth is the last
    seen = []
    handle = block.attn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    vit(images)
    handle.remove()
    q, k, _ = block.attn.qkv(seen[0]).reshape(6, 17, 3, 2, 12).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-1, -2) / 12**0.5).softmax(-1)
    paid = attention.mean((1, 2))[:, 1:]
    expected = torch.zeros(6, 16, dtype=torch.bool).scatter(1, paid.topk(2).indices, True)
    attacked = ATTACK(vit, images, right, draws("cpu", 0))
    assert torch.equal(patches(attacked - images), expected)


def test_it_fools_better_than_noise_in_the_same_patches(vit, images, right):
    attacked = ATTACK(vit, images, right, draws("cpu", 0))
    noise = dataclasses.replace(ATTACK, num_steps=0)(vit, images, right, draws("cpu", 0))
    assert torch.equal(patches(noise - images), patches(attacked - images))
    losses = [F.cross_entropy(vit(each), right) for each in (images, noise, attacked)]
    assert losses[2] > max(losses[:2]) + 0.5
    assert 0 <= attacked.min() <= attacked.max() <= 1
    assert not attacked.requires_grad


def test_it_draws_attention(vit, images, right):
    """The weight of the attention's gradient does what it says."""

    def paid(attack):
        attacked = attack(vit, images, right, draws("cpu", 0))
        with attention_maps(vit) as maps, torch.no_grad():
            vit(attacked)
        changed = F.pad(patches(attacked - images), (1, 0))
        return float(sum(each.mean((1, 2))[changed].sum() for each in maps))

    assert paid(dataclasses.replace(ATTACK, attention=5.0)) > paid(dataclasses.replace(ATTACK, attention=0.0))


def test_a_radius_bounds_each_pixel(vit, images, right):
    attacked = dataclasses.replace(ATTACK, eps=0.05)(vit, images, right, draws("cpu", 0))
    assert 0.04 < (attacked - images).abs().max() <= 0.05 + 1e-12
    assert torch.equal(dataclasses.replace(ATTACK, eps=0.0)(vit, images, right), images)


def test_a_gradient_that_works_against_the_other_loses_that_part():
    main = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = _agreeing(torch.tensor([[-2.0, 3.0], [2.0, 3.0]]), main)
    torch.testing.assert_close(found, torch.tensor([[0.0, 3.0], [2.0, 3.0]]))


def test_it_leaves_no_trace(images, right):
    vit = tiny_vit().double().train()
    vit.model.blocks[0].attn.fused_attn = False
    fused = [block.attn.fused_attn for block in vit.model.blocks]
    assert fused == [False, True], "each is put back as it was"
    hooks = [len(part._forward_hooks) for part in vit.modules()]
    with torch.no_grad():
        ATTACK(vit, images, right, draws("cpu", 0))
    assert [block.attn.fused_attn for block in vit.model.blocks] == fused
    assert [len(part._forward_hooks) for part in vit.modules()] == hooks
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert vit.training


def test_after_an_error_too(vit, images):
    with pytest.raises(RuntimeError), attention_maps(vit):
        vit(images[:, :1].expand(-1, 4, -1, -1))
    assert all(block.attn.fused_attn for block in vit.model.blocks)
    assert all(len(block.attn.attn_drop._forward_hooks) == 0 for block in vit.model.blocks)


def test_registers_and_class_tokens_are_no_patches(images):
    vit = build_vit("vit_small_patch14_reg4_dinov2", num_classes=3, img_size=56, args={"depth": 1}).eval()
    images = torch.rand(2, 3, 56, 56)
    attacked = PatchFool(num_steps=2)(vit, images, torch.tensor([0, 1]))
    changed = F.max_pool2d((attacked - images).abs().amax(1, keepdim=True), 14).flatten(1) > 0
    assert changed.sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("name", ["pvt_v2_b0", "swin_tiny_patch4_window7_224"])
def test_other_models_are_refused_in_one_line(name):
    vit = build_vit(name, num_classes=3, img_size=56)
    with pytest.raises(UserError):
        PatchFool(num_steps=1)(vit.eval(), torch.rand(1, 3, 56, 56), torch.tensor([0]))
