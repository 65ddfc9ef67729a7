import pytest
import timm
import torch
import torchvision
from torch import nn

from nsaug.api.models import find_device, load_model
from nsaug.models.noisy_vit import NoisyViT
from nsaug.models.weights import read_weights
from nsaug.utils.errors import UserError
from tests.conftest import TINY, tiny_vit


def test_a_copy_of_a_timm_model():
    model = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=2, **TINY)
    description, vit = load_model(model)
    assert description.name == "vit_tiny_patch16_224"
    assert vit.data_config["input_size"] == (3, 8, 8)
    vit.model.head.weight.data.zero_()
    assert model.head.weight.any()


def test_a_copy_of_a_noisy_vit_keeps_its_settings():
    vit = NoisyViT(tiny_vit().model, norm_eps=1e-3)
    _, copied = load_model(vit)
    assert copied.norm_eps == 1e-3
    assert copied.model is not vit.model


def test_folder_and_weights_file_of_a_run(trained):
    for source in (trained, str(trained / "model.safetensors")):
        description, vit = load_model(source)
        assert description.metadata["method"] == "nullspace"
        for key, value in read_weights(trained).items():
            assert torch.equal(vit.state_dict()[key], value)


def test_timm_names_have_pretrained_weights(monkeypatch):
    calls = []
    monkeypatch.setattr("nsaug.api.models.build_vit", lambda **kwargs: calls.append(kwargs))
    assert load_model("deit_tiny_patch16_224.fb_in1k")[0].name == "deit_tiny_patch16_224.fb_in1k"
    assert calls == [{"name": "deit_tiny_patch16_224.fb_in1k", "pretrained": True}]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "nowhere", "model=nowhere is neither a folder or file with weights nor the name of a timm model"),
        (lambda: 3, "model is a int: pass a timm vision transformer, a folder or a timm name"),
        (lambda: nn.Linear(2, 2), "model is a torch.nn.modules.linear.Linear, which timm.create_model does not build"),
        (
            lambda: torchvision.models.VisionTransformer(8, 4, 1, 1, 6, 6),
            "model is a torchvision.models.vision_transformer.VisionTransformer, which timm.create_model does",
        ),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=2, num_classes=0, **TINY),
            "model has no classifier: build it with one, such as timm.create_model(..., num_classes=10)",
        ),
        (lambda: tiny_vit().model.half(), "model has weights of torch.float16: pass model.float()"),
    ],
)
def test_other_models_are_refused(make, message):
    with pytest.raises(UserError) as error:
        load_model(make())
    assert str(error.value).startswith(message)


def test_home_folder(trained, monkeypatch):
    monkeypatch.setenv("HOME", str(trained.parent))
    eval_model, _ = load_model(f"~/{trained.name}")
    assert eval_model.checkpoint == load_model(trained)[0].checkpoint


def test_device_is_that_of_the_model_if_it_is_no_cpu():
    assert find_device(None, torch.device("meta")) == torch.device("meta")
    assert find_device("cpu", torch.device("meta")) == torch.device("cpu")
    with pytest.raises(UserError, match=r"device=nowhere cannot be used \(.*\): type device='cpu'"):
        find_device("nowhere", torch.device("cpu"))
