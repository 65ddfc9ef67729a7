"""Noise at the patch embedding and at blocks, over timm's families."""

import math
import re

import pytest
import timm
import torch
from torch import nn

from nsaug.models.factory import build_vit
from nsaug.models.noise_layers import PATCH_EMBED_NAMES, is_channels_last
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.errors import UserError

FAMILIES = {  # timm name: image size, arguments for a small model, patch embedding, shape of one image's noise
    "vit_tiny_patch16_224": (64, {"depth": 2}, "patch_embed", (16, 192)),
    "deit_tiny_distilled_patch16_224": (64, {"depth": 2}, "patch_embed", (16, 192)),
    "deit3_small_patch16_224": (64, {"depth": 2}, "patch_embed", (16, 384)),
    "beit_base_patch16_224": (64, {"depth": 1}, "patch_embed", (16, 768)),
    "eva02_tiny_patch14_224": (56, {"depth": 2}, "patch_embed", (16, 192)),
    "vit_small_patch14_reg4_dinov2": (56, {"depth": 2}, "patch_embed", (16, 384)),
    "swin_tiny_patch4_window7_224": (56, {"window_size": 7, "depths": (1, 1, 1, 1)}, "patch_embed", (14, 14, 96)),
    "pvt_v2_b0": (64, {}, "patch_embed", (16, 16, 32)),
    "pit_ti_224": (64, {}, "patch_embed", (64, 7, 7)),
    "xcit_nano_12_p16_224": (64, {"depth": 2}, "patch_embed", (16, 128)),
    "qwen3_vit_88m": (64, {"depth": 1}, "encoder.patch_embed", (4, 4, 768)),
    "coat_tiny": (64, {"serial_depths": (1, 1, 1, 1), "parallel_depth": 1}, "patch_embed1", (256, 152)),
    "visformer_tiny": (64, {"depth": (1, 1, 1)}, "patch_embed1", (96, 8, 8)),
    "twins_svt_small": (64, {"depths": (1, 1, 1, 1)}, "patch_embeds.0", (256, 64)),
    "naflexvit_base_patch16_gap": (64, {"depth": 1, "embed_dim": 48, "num_heads": 2}, "embeds.norm", (16, 48)),
    "tnt_s_legacy_patch16_224": (64, {"depth": 1}, "norm2_proj", (16, 384)),
    "mixer_s32_224": (64, {}, "stem", (4, 512)),
    "resmlp_12_224": (64, {}, "stem", (16, 384)),
    "gmlp_ti16_224": (64, {}, "stem", (16, 128)),
    "levit_128s": (224, {}, "stem", (128, 14, 14)),
    "poolformerv2_s12": (64, {}, "stem", (64, 16, 16)),
    "davit_tiny": (64, {"depths": (1, 1, 1, 1)}, "stem", (96, 16, 16)),
    "test_coatnet": (160, {}, "stem", (32, 80, 80)),
    "test_convnext": (64, {}, "stem", (24, 16, 16)),
    "test_mambaout": (96, {}, "stem", (24, 24, 16)),
}


def build_family(name: str) -> NoisyViT:
    torch.manual_seed(0)
    size, args, *_ = FAMILIES[name]
    vit = build_vit(name, num_classes=7, img_size=size, args=args).eval()
    randomize_head(vit.model)
    return vit


@torch.no_grad()
def randomize_head(model: nn.Module) -> None:
    """Initialize the head, which some families start at zero."""
    heads = model.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):
        for parameter in head.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)


def shifted_logits(vit: NoisyViT, name: str, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Logits of a plain timm model with the weights of `vit`, whose module `name` returns its output plus noise."""
    plain = timm.create_model(vit.model.pretrained_cfg["architecture"], num_classes=7, **vit.model_args).eval()
    plain.load_state_dict(vit.state_dict())

    def shift(module, args, output):
        return (output[0] + noise, *output[1:]) if isinstance(output, tuple) else output + noise

    plain.get_submodule(name).register_forward_hook(shift)
    mean, std = (torch.tensor(vit.data_config[key]).view(3, 1, 1) for key in ("mean", "std"))
    return plain((images - mean) / std)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_noise_equals_a_shift_of_the_patch_embeddings(name):
    vit = build_family(name)
    size, _, module, shape = FAMILIES[name]
    assert (vit.patch_embed_name, tuple(vit.noise_shape())) == (module, shape)
    images = torch.rand(2, 3, size, size)
    clean, embeddings = vit(images), vit.activations(images)
    assert embeddings.shape == (2, *shape)

    noise = torch.randn(2, *shape) * embeddings.std()
    noisy = vit(images, noise)
    torch.testing.assert_close(noisy, shifted_logits(vit, module, images, noise))
    assert (noisy - clean).abs().max() > 1e-3 * clean.std()
    assert torch.equal(vit.activations(images), embeddings), "noise left in the model"
    assert torch.equal(vit(images), clean), "noise left in the model"

    channels_first = len(shape) == 3 and name in {
        *("pit_ti_224", "visformer_tiny", "levit_128s", "poolformerv2_s12"),
        *("davit_tiny", "test_coatnet", "test_convnext"),
    }
    tokens = noise.flatten(2).transpose(1, 2) if channels_first else noise.flatten(1, -2)
    assert torch.equal(vit.to_tokens(noise), tokens)
    assert torch.equal(vit(images, tokens), noisy)


BLOCKS = {  # timm name: a block, and the shape of its input for one image
    "vit_tiny_patch16_224": ("blocks.1", (17, 192)),
    "deit_tiny_distilled_patch16_224": ("blocks.0", (18, 192)),
    "beit_base_patch16_224": ("blocks.0", (17, 768)),
    "eva02_tiny_patch14_224": ("blocks.1", (17, 192)),
    "vit_small_patch14_reg4_dinov2": ("blocks.1", (21, 384)),
    "swin_tiny_patch4_window7_224": ("layers.1.blocks.0", (7, 7, 192)),
    "pvt_v2_b0": ("stages.1.blocks.0", (64, 64)),
    "xcit_nano_12_p16_224": ("blocks.1", (16, 128)),
}


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_noise_at_a_block_equals_a_shift_of_its_input(name):
    vit, (layer, shape) = build_family(name), BLOCKS[name]
    size = FAMILIES[name][0]
    images = torch.rand(2, 3, size, size)
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
    assert torch.equal(vit(images), clean), "noise left in the model"
    with pytest.raises(UserError, match=rf"{layer} takes \(1 or B, "):
        vit(images, noise[..., 1:], layer)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "crossvit_tiny_240",
            "CrossVit never calls its patch_embed: set model.patch_embed=patch_embed.0 or patch_embed.1",
        ),
        (
            "test_efficientnet",
            "EfficientNet has no patch embedding with a known name: set model.patch_embed=conv_stem, ",
        ),
    ],
)
def test_undecided_patch_embedding_lists_candidates(name, line):
    with pytest.raises(UserError, match=f"^{re.escape(line)}[^\n]*$"):
        build_vit(name, num_classes=7)


@torch.no_grad()
def test_named_patch_embedding():
    vit = build_vit("crossvit_tiny_240", num_classes=7, patch_embed="patch_embed.1").eval()
    assert (vit.patch_embed_name, tuple(vit.noise_shape())) == ("patch_embed.1", (196, 192))
    images, noise = torch.rand(1, 3, 240, 240), torch.randn(1, 196, 192)
    torch.testing.assert_close(vit(images, noise), shifted_logits(vit, "patch_embed.1", images, noise))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("nonsense", "has no module nonsense: set model.patch_embed=patch_embed.proj, patch_embed.norm"),
        ("blocks.0.attn.proj_drop", None),
        ("head", "has no embeddings (B, N, D) or (B, D, H, W) in the output of its head: set "),
    ],
)
def test_unusable_named_patch_embedding(module, reason):
    def build():
        return build_vit("vit_tiny_patch16_224", num_classes=7, img_size=32, args={"depth": 1}, patch_embed=module)

    if reason is None:
        assert build().patch_embed_name == module
    else:
        with pytest.raises(UserError, match=re.escape(reason)):
            build()


def test_layout_of_a_map_without_convolution():
    assert is_channels_last(nn.Identity(), torch.Size((7, 7, 32)))
    assert not is_channels_last(nn.Identity(), torch.Size((32, 7, 7)))


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
@torch.no_grad()
def test_smallest_model_of_every_timm_module(module):
    """The noise is added exactly once, or one line lists candidates."""
    torch.manual_seed(0)
    size, name = min((_num_parameters(name), name) for name in timm.list_models(module=module))
    if size > 9e7:
        pytest.skip("too large")
    model = timm.create_model(name, num_classes=7)
    if not any(known in dict(model.named_modules()) for known in PATCH_EMBED_NAMES) or module == "crossvit":
        with pytest.raises(UserError, match=r"^\w+ (has no|never calls) .*: set model.patch_embed=.*$"):
            NoisyViT(model)
        return
    vit = NoisyViT(model).eval()
    randomize_head(vit.model)
    images = torch.rand(1, *vit.data_config["input_size"])
    noise = torch.randn(1, *vit.noise_shape()) * vit.activations(images).std()
    torch.testing.assert_close(vit(images, noise), shifted_logits(vit, vit.patch_embed_name, images, noise))


def _num_parameters(name: str) -> float:
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    except (NotImplementedError, RuntimeError):  # some models cannot be built without data
        return math.inf
