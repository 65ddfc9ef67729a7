import copy
import math

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from nsaug.methods import Nullspace
from nsaug.models.factory import build_vit
from nsaug.models.noisy_vit import NoisyViT, eval_mode, params_frozen
from nsaug.models.weights import save_config, save_weights
from nsaug.nullspace import NoiseSynthesis
from nsaug.utils.errors import UserError
from tests.conftest import TINY, tiny_vit

FAMILIES = {  # timm name: image size, the patch embeddings of one image
    "vit_tiny_patch16_224": (64, (16, 192)),
    "deit_tiny_patch16_224": (64, (16, 192)),
    "deit_tiny_distilled_patch16_224": (64, (16, 192)),
    "deit3_small_patch16_224": (64, (16, 384)),
    "beit_base_patch16_224": (64, (16, 768)),
    "eva02_tiny_patch14_224": (56, (16, 192)),
    "vit_small_patch14_reg4_dinov2": (56, (16, 384)),
    "swin_tiny_patch4_window7_224": (56, (14, 14, 96)),
    "pvt_v2_b0": (64, (16, 16, 32)),
    "pit_ti_224": (64, (64, 7, 7)),
    "xcit_nano_12_p16_224": (64, (16, 128)),
}
ARGS = {"swin_tiny_patch4_window7_224": {"window_size": 7}}


def family(name):
    torch.manual_seed(0)
    size, _ = FAMILIES[name]
    return build_vit(name, num_classes=7, img_size=size, args=ARGS.get(name)).eval()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_noise_in_every_family(name):
    vit = family(name)
    size, shape = FAMILIES[name]
    images = torch.rand(2, 3, size, size)
    mean, std = (torch.tensor(vit.model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = vit.model((images - mean) / std)

    assert tuple(vit.noise_shape()) == shape
    embeddings = vit.activations(images)
    assert embeddings.shape == (2, *shape)
    assert torch.equal(vit(images), expected)
    assert torch.equal(vit(images, torch.zeros(1, *shape)), expected)
    noise = torch.randn(2, *shape)
    assert not torch.allclose(vit(images, noise), expected, atol=0, rtol=1e-3)
    assert torch.equal(vit.activations(images), embeddings), "noise stayed behind"
    tokens = noise.flatten(2).transpose(1, 2) if name == "pit_ti_224" else noise.flatten(1, -2)
    assert torch.equal(vit.to_tokens(noise), tokens)
    assert torch.equal(vit(images, tokens), vit(images, noise))
    assert torch.equal(vit(images), expected), "noise stayed behind"


SITES = {  # timm name: a block, and the shape of what it is given for one image
    "vit_tiny_patch16_224": ("blocks.3", (17, 192)),
    "deit_tiny_distilled_patch16_224": ("blocks.0", (18, 192)),
    "beit_base_patch16_224": ("blocks.11", (17, 768)),
    "eva02_tiny_patch14_224": ("blocks.5", (17, 192)),
    "vit_small_patch14_reg4_dinov2": ("blocks.1", (21, 384)),
    "swin_tiny_patch4_window7_224": ("layers.1.blocks.0", (7, 7, 192)),
    "pvt_v2_b0": ("stages.1.blocks.0", (64, 64)),
    "xcit_nano_12_p16_224": ("blocks.2", (16, 128)),
}


@pytest.mark.parametrize("name", SITES)
@torch.no_grad()
def test_noise_at_a_block_in_every_family(name):
    """Against a forward whose block is given other values, and the values it is given without noise."""
    vit, (layer, shape) = family(name), SITES[name]
    images = torch.rand(2, 3, FAMILIES[name][0], FAMILIES[name][0])
    clean = vit(images)
    assert tuple(vit.noise_shape(layer)) == shape
    values, noise = vit.activations(images, layer), torch.randn(2, *shape)
    assert values.shape == (2, *shape)
    noisy = vit(images, noise, layer)
    assert not torch.allclose(noisy, clean, atol=0, rtol=1e-3)
    block = vit.model.get_submodule(layer)
    handle = block.register_forward_pre_hook(lambda module, args: (values + noise, *args[1:]))
    assert torch.equal(vit(images), noisy)
    handle.remove()
    assert torch.equal(vit(images, vit.to_tokens(noise, layer), layer), noisy)
    assert torch.equal(vit(images), clean), "noise stayed behind"
    with pytest.raises(UserError, match=rf"at {layer} it has to be \(1 or B, "):
        vit(images, noise[..., 1:], layer)


@torch.no_grad()
def test_noise_is_added_to_the_patch_embeddings(vit, images):
    """Against a model whose patch embedding adds the noise itself, through its bias."""
    token = torch.randn(24, dtype=torch.float64)
    noisy = vit.eval()(images, token.expand(1, 16, 24))
    vit.model.patch_embed.proj.bias += token
    torch.testing.assert_close(vit(images), noisy)


@torch.no_grad()
def test_a_copy_has_noise_of_its_own(vit, images):
    vit.eval()
    copied, noise = copy.deepcopy(vit), torch.randn(1, 16, 24, dtype=torch.float64)
    clean, noisy = vit(images), vit(images, noise)
    assert torch.equal(copied(images, noise), noisy)
    for parameter in vit.parameters():
        parameter.zero_()
    assert torch.equal(copied(images, noise), noisy)
    assert torch.equal(copied(images), clean)


def test_noise_of_another_shape_is_refused(vit, images):
    with pytest.raises(UserError, match=r"noise has shape \(1, 16, 23\)"):
        vit(images, torch.zeros(1, 16, 23))


def test_keys_are_timms_own_alone_and_nested(vit):
    own = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=8, patch_size=2, **TINY)
    assert list(vit.state_dict()) == list(own.state_dict())
    own.load_state_dict(vit.state_dict())
    vit.load_state_dict(own.state_dict())

    nested = nn.ModuleDict({"vit": tiny_vit()})
    assert {key.removeprefix("vit.") for key in nested.state_dict()} == set(own.state_dict())
    changed = {key: value + 1 for key, value in nested.state_dict().items()}
    nested.load_state_dict(changed)
    assert all(torch.equal(nested.state_dict()[key], value) for key, value in changed.items())


@pytest.mark.parametrize("name", ["mixer_s16_224", "convnext_atto", "levit_128s"])
def test_a_model_without_patch_embeddings_is_refused(name):
    with pytest.raises(UserError, match="patch_embed"):
        build_vit(name, num_classes=10)


def test_a_patch_embedding_that_is_never_called_is_refused():
    with pytest.raises(UserError, match="never calls its patch_embed"):
        build_vit("crossvit_9_240", num_classes=10)


def test_eval_mode_restores_each_part(vit):
    vit.train()
    vit.model.blocks[0].eval()
    with eval_mode(vit):
        assert not any(part.training for part in vit.modules())
    assert vit.training
    assert vit.model.blocks[1].training
    assert not vit.model.blocks[0].training


def test_unknown_names_are_answered_with_like_ones():
    with pytest.raises(UserError, match="vit_small_patch16_224"):
        build_vit("vit_smal_patch16_224", num_classes=10)
    with pytest.raises(UserError, match="its tags are .*augreg_in21k_ft_in1k"):
        build_vit("vit_small_patch16_224.nonsense", num_classes=10)


def saved(vit: NoisyViT, path):
    state = vit.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".ckpt":
        state = {f"vit.{key}": value for key, value in state.items()} | {"method.rms": torch.tensor(1.0)}
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
def test_weights_from_files(tmp_path, suffix, caplog):
    caplog.set_level("INFO")
    source = tiny_vit()
    loaded = tiny_vit(checkpoint=str(saved(source, tmp_path / f"weights{suffix}")))
    for key, value in source.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    assert "none missing, none unexpected" in caplog.text


def test_another_class_count_replaces_the_head_and_says_so(tmp_path, caplog):
    caplog.set_level("INFO")
    path = saved(tiny_vit(), tmp_path / "weights.pth")
    loaded = tiny_vit(checkpoint=str(path), num_classes=4)
    assert loaded.model.head.weight.shape == (4, 24)
    assert "a new head for 4 classes (the weights had 10 classes)" in caplog.text
    torch.testing.assert_close(loaded.model.pos_embed, tiny_vit().model.pos_embed)


def test_weights_without_a_head_get_one(tmp_path, caplog):
    caplog.set_level("INFO")
    state = {key: value for key, value in tiny_vit().state_dict().items() if not key.startswith("head.")}
    torch.save(state, tmp_path / "weights.pth")
    assert tiny_vit(checkpoint=str(tmp_path / "weights.pth"), num_classes=4).model.num_classes == 4
    assert "the weights had no head" in caplog.text


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    state = tiny_vit().state_dict()
    state["stranger"] = state.pop("blocks.0.attn.qkv.weight")
    state["blocks.1.mlp.fc1.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(
        UserError, match=r"1 missing \(blocks.0.attn.qkv.weight\); 1 unexpected \(stranger\); 1 of another"
    ):
        tiny_vit(checkpoint=str(tmp_path / "weights.pth"))


def test_a_distilled_model_drops_both_heads(tmp_path):
    name, args = "deit_tiny_distilled_patch16_224", {"depth": 1}
    source = build_vit(name, num_classes=10, img_size=32, args=args)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    loaded = build_vit(name, num_classes=4, img_size=32, args=args, checkpoint=str(tmp_path / "weights.pth"))
    assert loaded.model.head.out_features == loaded.model.head_dist.out_features == 4


@torch.no_grad()
def test_image_and_patch_size_may_differ(tmp_path):
    """timm resamples; a constant image through a constant kernel keeps its embedding under another patch size."""
    source = tiny_vit()
    path = str(saved(source, tmp_path / "weights.pth"))
    larger = tiny_vit(checkpoint=path, img_size=12)
    assert larger.noise_shape() == (36, 24)
    assert larger(torch.rand(1, 3, 12, 12)).shape == (1, 10)
    coarser = tiny_vit(checkpoint=path, img_size=16, patch_size=4)
    flat = source.activations(torch.full((1, 3, 8, 8), 0.3))
    torch.testing.assert_close(coarser.activations(torch.full((1, 3, 16, 16), 0.3)), flat, atol=1e-4, rtol=1e-3)


def test_hub_weights_out_of_reach(monkeypatch):
    with pytest.raises(UserError, match=r"cannot be downloaded .*checkpoint=PATH.*model.pretrained=false"):
        build_vit("vit_tiny_patch16_224", num_classes=10, pretrained=True)


def test_a_hub_that_does_not_answer(monkeypatch):
    def unreachable():
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr("nsaug.models.factory.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("nsaug.models.factory.get_session", unreachable)
    with pytest.raises(UserError, match=r"\(\[Errno -2\] Name or service not known\): type checkpoint="):
        build_vit("vit_tiny_patch16_224", num_classes=10, pretrained=True)


def test_a_model_without_pretrained_weights():
    with pytest.raises(UserError, match="timm has no pretrained weights for vit_giant_patch14_224"):
        build_vit("vit_giant_patch14_224", num_classes=10, pretrained=True)


def test_hub_weights_are_loaded_strictly_and_keep_their_head(monkeypatch):
    """The hub's client replaced by one that finds the weights: everything behind it is the real path."""
    source = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    monkeypatch.setattr("nsaug.models.factory._require_hub_weights", lambda name, config: None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: source.state_dict())
    loaded = build_vit("vit_tiny_patch16_224", pretrained=True)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in source.state_dict().items())
    assert build_vit("vit_tiny_patch16_224", pretrained=True, num_classes=3).model.head.out_features == 3
    partial = {key: value for key, value in source.state_dict().items() if "blocks.3" not in key}
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: partial)
    with pytest.raises(UserError, match=r"the hub's weights does not fit|missing \(blocks.3"):
        build_vit("vit_tiny_patch16_224", pretrained=True)


def test_the_normalisation_comes_with_the_weights(tmp_path):
    vit = tiny_vit(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixel = torch.full((1, 3, 8, 8), 0.5)
    torch.testing.assert_close(vit.normalize(pixel)[0, :, 0, 0], torch.tensor([0.4 / 0.4, 0.3 / 0.5, 0.2 / 0.6]))
    save_config(tmp_path, vit.model, vit.model_args, {})
    save_weights(tmp_path, vit.model)
    again = tiny_vit(checkpoint=str(tmp_path))
    torch.testing.assert_close(again.normalize(pixel), vit.normalize(pixel))
    assert math.isclose(tiny_vit(checkpoint=str(tmp_path), mean=(0.0, 0.0, 0.0)).mean.sum().item(), 0)


@pytest.mark.parametrize("noise", [False, True])
def test_gradient_checkpointing_changes_nothing_but_memory(noise, images):
    found = []
    for on in (False, True):
        vit = tiny_vit(grad_checkpointing=on).double().train()
        added = torch.ones(vit.noise_shape(), dtype=torch.float64)[None].requires_grad_() if noise else None
        wanted = [*vit.parameters(), *([added] if noise else [])]
        found.append(torch.autograd.grad(vit(images, added).square().sum(), wanted))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_noise_in_a_block_that_is_computed_again_is_refused():
    method = Nullspace(NoiseSynthesis(layer="blocks.1"))
    method.check(tiny_vit())
    with pytest.raises(UserError, match="model.grad_checkpointing=false, or nullspace.layer=patch_embed"):
        method.check(tiny_vit(grad_checkpointing=True))


def test_frozen_parts_stay_as_they_were():
    vit = tiny_vit()
    vit.model.head.requires_grad_(False)
    with params_frozen(vit):
        assert not any(parameter.requires_grad for parameter in vit.parameters())
    assert all(p.requires_grad == (not name.startswith("model.head")) for name, p in vit.named_parameters())
