import gc
import math
import weakref

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from nsaug.models.factory import build_vit
from nsaug.models.noisy_vit import NoisyViT
from nsaug.models.weights import save_config, save_weights
from nsaug.utils.errors import UserError
from tests.conftest import SHARED, TINY, tiny_vit


def test_unknown_name_suggests_similar_ones():
    with pytest.raises(UserError, match="vit_small_patch16_224"):
        build_vit("vit_smal_patch16_224", num_classes=10)
    with pytest.raises(UserError, match="its tags are .*augreg_in21k_ft_in1k"):
        build_vit("vit_small_patch16_224.nonsense", num_classes=10)


def save_to(vit: NoisyViT, path):
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
    loaded = tiny_vit(checkpoint=str(save_to(source, tmp_path / f"weights{suffix}")))
    for key, value in source.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    assert "none missing, none unexpected" in caplog.text


def test_new_class_count_replaces_the_head(tmp_path, caplog):
    caplog.set_level("INFO")
    path = save_to(tiny_vit(), tmp_path / "weights.pth")
    loaded = tiny_vit(checkpoint=str(path), num_classes=4)
    assert loaded.model.head.weight.shape == (4, 24)
    assert "new head for 4 classes (the weights had 10 classes)" in caplog.text
    torch.testing.assert_close(loaded.model.pos_embed, tiny_vit().model.pos_embed)


def test_weights_without_a_head_get_one(tmp_path, caplog):
    caplog.set_level("INFO")
    state = {key: value for key, value in tiny_vit().state_dict().items() if not key.startswith("head.")}
    torch.save(state, tmp_path / "weights.pth")
    assert tiny_vit(checkpoint=str(tmp_path / "weights.pth"), num_classes=4).model.num_classes == 4
    assert "the weights had no head" in caplog.text


def test_mismatched_keys_are_named(tmp_path):
    state = tiny_vit().state_dict()
    state["stranger"] = state.pop("blocks.0.attn.qkv.weight")
    state["blocks.1.mlp.fc1.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(
        UserError, match=r"1 missing \(blocks.0.attn.qkv.weight\); 1 unexpected \(stranger\); 1 with another"
    ):
        tiny_vit(checkpoint=str(tmp_path / "weights.pth"))


def test_model_is_freed_with_its_last_reference():
    """No cache keeps it: a sweep builds a model in every run."""
    vit = tiny_vit(img_size=16)
    reference = weakref.ref(vit.model)
    del vit
    gc.collect()
    assert reference() is None


def test_image_size_is_a_multiple_of_the_patch_size(tmp_path):
    with pytest.raises(UserError, match=r"^model\.img_size=9: should be a multiple of the patch size, 2$"):
        tiny_vit(img_size=9)
    with pytest.raises(UserError, match=r"^model\.img_size=\[8,9\]: should be a multiple"):
        tiny_vit(img_size=(8, 9))
    assert tiny_vit(img_size=9, args=TINY | {"dynamic_img_pad": True, "dynamic_img_size": True}).data_config[
        "input_size"
    ] == (3, 9, 9)


@pytest.mark.parametrize("given", [{"img_size": 12}, {"args": TINY | {"img_size": 12}}])
def test_given_image_size_precedes_that_of_the_run(tmp_path, given):
    vit = tiny_vit()
    save_config(tmp_path, vit, {})
    save_weights(tmp_path, vit.state_dict())
    options = {"checkpoint": str(tmp_path), "patch_size": 2, "args": TINY} | given
    loaded = build_vit("vit_tiny_patch16_224", **options)
    assert loaded.data_config["input_size"] == (3, 12, 12)
    assert loaded.model.patch_embed.grid_size == (6, 6)


def test_distilled_model_replaces_both_heads(tmp_path):
    name, args = "deit_tiny_distilled_patch16_224", {"depth": 1}
    source = build_vit(name, num_classes=10, img_size=32, args=args)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    loaded = build_vit(name, num_classes=4, img_size=32, args=args, checkpoint=str(tmp_path / "weights.pth"))
    assert loaded.model.head.out_features == loaded.model.head_dist.out_features == 4


@torch.no_grad()
def test_weights_are_resampled_to_another_image_and_patch_size(tmp_path):
    """A constant image keeps its embedding when the kernel is resampled."""
    source = tiny_vit()
    path = str(save_to(source, tmp_path / "weights.pth"))
    larger = tiny_vit(checkpoint=path, img_size=12)
    assert larger.noise_shape() == (36, 24)
    assert larger(torch.rand(1, 3, 12, 12)).shape == (1, 10)
    coarser = tiny_vit(checkpoint=path, img_size=16, patch_size=4)
    flat = source.activations(torch.full((1, 3, 8, 8), 0.3))
    torch.testing.assert_close(coarser.activations(torch.full((1, 3, 16, 16), 0.3)), flat, atol=1e-4, rtol=1e-3)


def test_offline_hub_raises():
    with pytest.raises(UserError, match=r"cannot be downloaded .*checkpoint=PATH.*model.pretrained=false"):
        build_vit("vit_tiny_patch16_224", num_classes=10, pretrained=True)


def test_unreachable_hub_raises(monkeypatch):
    def unreachable():
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr("nsaug.models.factory.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("nsaug.models.factory.get_session", unreachable)
    with pytest.raises(UserError, match=r"\(\[Errno -2\] Name or service not known\): set checkpoint="):
        build_vit("vit_tiny_patch16_224", num_classes=10, pretrained=True)


def test_name_without_pretrained_weights_raises():
    with pytest.raises(UserError, match="timm has no pretrained weights for vit_giant_patch14_224"):
        build_vit("vit_giant_patch14_224", num_classes=10, pretrained=True)


def test_hub_weights_are_loaded_strictly(monkeypatch):
    """Only the download is replaced; everything after it is the real code."""
    source = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    monkeypatch.setattr("nsaug.models.factory._require_hub_weights", lambda name, config: None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: source.state_dict())
    loaded = build_vit("vit_tiny_patch16_224", pretrained=True)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in source.state_dict().items())
    assert build_vit("vit_tiny_patch16_224", pretrained=True, num_classes=3).model.head.out_features == 3
    partial = {key: value for key, value in source.state_dict().items() if "blocks.3" not in key}
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: partial)
    with pytest.raises(UserError, match=r"the hub's checkpoint does not match|missing \(blocks.3"):
        build_vit("vit_tiny_patch16_224", pretrained=True)


def test_normalization_comes_with_the_weights(tmp_path):
    vit = tiny_vit(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixel = torch.full((1, 3, 8, 8), 0.5)
    torch.testing.assert_close(vit.normalize(pixel)[0, :, 0, 0], torch.tensor([0.4 / 0.4, 0.3 / 0.5, 0.2 / 0.6]))
    save_config(tmp_path, vit, {})
    save_weights(tmp_path, vit.state_dict())
    again = tiny_vit(checkpoint=str(tmp_path))
    torch.testing.assert_close(again.normalize(pixel), vit.normalize(pixel))
    assert math.isclose(tiny_vit(checkpoint=str(tmp_path), mean=(0.0, 0.0, 0.0)).mean.sum().item(), 0)


@torch.no_grad()
def test_rectangular_images(tmp_path):
    vit = tiny_vit(img_size=(8, 12)).eval()
    assert vit.noise_shape() == (24, 24)
    assert vit.data_config["input_size"] == (3, 8, 12)
    save_config(tmp_path, vit, {})
    save_weights(tmp_path, vit.state_dict())
    images = torch.rand(2, 3, 8, 12)
    assert torch.equal(tiny_vit(checkpoint=str(tmp_path), img_size=None).eval()(images), vit(images))


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"depth": 10**9}, "model.args.depth=1000000000: should be from -65,536 to 65,536"),
        ({"depth": -1}, "model.args.depth=-1: should be 1 or more"),
        ({"depth": None}, "model.args.depth=null: should be a valid integer"),
        ({"class_token": -7}, "model.args.class_token=-7: should be a valid boolean"),
        ({"global_pool": "avgx"}, "model.args.global_pool=avgx: should be '', 'avg', "),
        ({"in_chans": 1}, "model.args={in_chans: 1}: images have 3 channels, leave in_chans out"),
        ({"checkpoint_path": "x"}, "model.args={checkpoint_path: ...} is not an option of the model: leave it out"),
    ],
)
def test_invalid_model_args_raise(args, line):
    with pytest.raises(UserError) as error:
        tiny_vit(args=args)
    assert str(error.value).startswith(line)


def test_argument_that_is_set_twice_is_refused():
    with pytest.raises(UserError, match="patch_size: 4}: model.patch_size=2 says otherwise, set that alone"):
        tiny_vit(args=TINY | {"patch_size": 4})
    assert tiny_vit(args=TINY | {"patch_size": 2}).noise_shape() == (16, 24)


def test_named_patch_embedding_is_restored_from_a_run(tmp_path):
    vit = tiny_vit(patch_embed="patch_embed.proj")
    save_config(tmp_path, vit, {})
    save_weights(tmp_path, vit.state_dict())
    assert vit.noise_shape() == (24, 4, 4)
    assert tiny_vit(checkpoint=str(tmp_path)).noise_shape() == (24, 4, 4)
    assert tiny_vit(checkpoint=str(tmp_path), patch_embed="patch_embed").noise_shape() == (16, 24)


CHECKPOINT = SHARED / "vit_tiny_patch16_224.safetensors"


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"no weights at {CHECKPOINT} (set NSAUG_SHARED)")
@torch.no_grad()
def test_new_head_starts_at_uniform_predictions(sample):
    """Real weights and images: cross-entropy within 2 % of ln(10), and an influence that is not zero."""
    torch.manual_seed(0)
    vit = build_vit("vit_tiny_patch16_224.augreg_in21k_ft_in1k", checkpoint=str(CHECKPOINT), num_classes=10).eval()
    images = torch.stack([read(sample[index]) for index in range(0, 1000, 50)])
    labels = torch.arange(20) % 10
    logits = vit(images)
    assert F.cross_entropy(logits, labels).item() == pytest.approx(math.log(10), rel=0.02)
    noise = torch.rand(1, *vit.noise_shape()) * vit.activations(images).square().mean().sqrt()
    change = vit(images, noise).softmax(-1) - logits.softmax(-1)
    assert change.square().sum(-1).min() > 1e-6


def read(path) -> torch.Tensor:
    with Image.open(path) as image:
        pixels = torch.tensor(list(image.convert("RGB").resize((224, 224)).tobytes()), dtype=torch.float32)
    return pixels.view(224, 224, 3).permute(2, 0, 1) / 255


def test_model_from_scratch_keeps_its_initialization():
    torch.manual_seed(0)
    vit = build_vit("vit_tiny_patch16_224", num_classes=10, img_size=32, args={"depth": 1})
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, depth=1)
    assert all(torch.equal(value, vit.state_dict()[key]) for key, value in plain.state_dict().items())
