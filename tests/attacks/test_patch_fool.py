import dataclasses

import pytest
import torch
from torch.nn import functional as F

from nsaug.attacks import PatchFool
from nsaug.attacks.patch_fool import attention_maps, project_conflicting
from nsaug.models.factory import build_vit
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator
from tests.conftest import tiny_vit

ATTACK = PatchFool(num_patches=2, num_steps=20)


@pytest.fixture
def vit():
    return tiny_vit().double().eval()


@pytest.fixture
def labels(vit, images):
    return vit(images).argmax(1)


def changed_patches(delta):
    """Which of the 16 patches of 2 x 2 pixels changed, (B, 16)."""
    return F.max_pool2d(delta.abs().amax(1, keepdim=True), 2).flatten(1) > 0


def test_perturbs_the_patches_that_receive_most_attention(vit, images, labels):
    """Against attention computed from queries and keys."""
    block = vit.model.blocks[1]  # attn_layer=4 means the last of two
    inputs = []
    handle = block.attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    vit(images)
    handle.remove()
    q, k, _ = block.attn.qkv(inputs[0]).reshape(6, 17, 3, 2, 12).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-1, -2) / 12**0.5).softmax(-1)
    received = attention.mean((1, 2))[:, 1:]
    expected = torch.zeros(6, 16, dtype=torch.bool).scatter(1, received.topk(2).indices, True)
    attacked = ATTACK(vit, images, labels, make_generator("cpu", 0))
    assert torch.equal(changed_patches(attacked - images), expected)


def test_increases_loss_more_than_noise_in_the_same_patches(vit, images, labels):
    attacked = ATTACK(vit, images, labels, make_generator("cpu", 0))
    noisy = dataclasses.replace(ATTACK, num_steps=0)(vit, images, labels, make_generator("cpu", 0))
    assert torch.equal(changed_patches(noisy - images), changed_patches(attacked - images))
    clean_loss, noisy_loss, attacked_loss = (F.cross_entropy(vit(batch), labels) for batch in (images, noisy, attacked))
    assert attacked_loss > max(clean_loss, noisy_loss) + 0.5
    assert 0 <= attacked.min() <= attacked.max() <= 1


def test_attn_weight_draws_attention_to_the_patches(vit, images, labels):
    def attention_on_patches(attn_weight):
        attack = dataclasses.replace(ATTACK, attn_weight=attn_weight)
        attacked = attack(vit, images, labels, make_generator("cpu", 0))
        with attention_maps(vit) as maps, torch.no_grad():
            vit(attacked)
        tokens = F.pad(changed_patches(attacked - images), (1, 0))
        return float(sum(layer.mean((1, 2))[tokens].sum() for layer in maps))

    assert attention_on_patches(5.0) > attention_on_patches(0.0)


def test_eps_bounds_the_change_of_a_pixel(vit, images, labels):
    attacked = dataclasses.replace(ATTACK, eps=0.05)(vit, images, labels, make_generator("cpu", 0))
    assert 0.04 < (attacked - images).abs().max() <= 0.05 + 1e-12


def test_project_conflicting_removes_only_opposed_components():
    main = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    projected = project_conflicting(torch.tensor([[-2.0, 3.0], [2.0, 3.0]]), main)
    torch.testing.assert_close(projected, torch.tensor([[0.0, 3.0], [2.0, 3.0]]))


def test_fused_attention_is_restored(vit, images, labels):
    vit.model.blocks[0].attn.fused_attn = False
    ATTACK(vit, images, labels, make_generator("cpu", 0))
    assert [block.attn.fused_attn for block in vit.model.blocks] == [False, True]


def test_model_is_restored_after_an_error(vit, images):
    with pytest.raises(RuntimeError), attention_maps(vit):
        vit(images[:, :1].expand(-1, 4, -1, -1))
    assert all(block.attn.fused_attn for block in vit.model.blocks)
    assert all(len(block.attn.attn_drop._forward_hooks) == 0 for block in vit.model.blocks)


def test_register_and_class_tokens_are_not_patches():
    vit = build_vit("vit_small_patch14_reg4_dinov2", num_classes=3, img_size=56, args={"depth": 1}).eval()
    images = torch.rand(2, 3, 56, 56)
    attacked = PatchFool(num_steps=2)(vit, images, torch.tensor([0, 1]))
    changed = F.max_pool2d((attacked - images).abs().amax(1, keepdim=True), 14).flatten(1) > 0
    assert changed.sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("name", ["pvt_v2_b0", "swin_tiny_patch4_window7_224"])
def test_hierarchical_models_are_refused(name):
    vit = build_vit(name, num_classes=3, img_size=56)
    with pytest.raises(UserError, match="choose a plain ViT or DeiT"):
        PatchFool(num_steps=1)(vit.eval(), torch.rand(1, 3, 56, 56), torch.tensor([0]))


def test_more_patches_than_the_model_has_are_refused(vit, images, labels):
    with pytest.raises(UserError, match="needs a square grid of at least 17 patches, but the model has 17 tokens"):
        PatchFool(num_patches=17)(vit, images, labels)
