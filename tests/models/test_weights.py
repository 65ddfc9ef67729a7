import argparse
import os
import pickle

import pytest
import timm
import torch

from nsaug.models.weights import read_config, read_metadata, read_weights, resolve_path, save_config, save_weights
from nsaug.training.checkpointing import AtomicCheckpointIO
from nsaug.utils.errors import UserError
from tests.conftest import tiny_vit


def test_failed_lightning_checkpoint_keeps_the_old_one(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"epoch": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        io.save_checkpoint({"epoch": 2, "lambda": lambda: 0}, path)
    assert torch.load(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


@torch.no_grad()
def test_timm_loads_the_output_folder(tmp_path):
    vit = tiny_vit(mean=(0.1, 0.2, 0.3)).eval()
    save_config(tmp_path, vit, {"name": "clean", "seed": 3})
    save_weights(tmp_path, vit.model)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded(vit.normalize(images)), vit(images))
    config = timm.data.resolve_model_data_config(loaded)
    assert (tuple(config["mean"]), tuple(config["input_size"])) == ((0.1, 0.2, 0.3), (3, 8, 8))
    assert read_config(tmp_path)["nsaug"] == {"name": "clean", "seed": 3, "patch_embed": "patch_embed"}


def test_wrappers_and_prefixes_are_removed(tmp_path):
    state = {"a": torch.ones(1), "b.c": torch.zeros(2)}
    wrapped = {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "ema": {"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": state},
        "parallel": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        "lightning": {
            "state_dict": {f"vit.{key}": value for key, value in state.items()} | {"method.rms": torch.ones(1)}
        },
        "compiled": {f"_orig_mod.{key}": value for key, value in state.items()},
    }
    for name, content in wrapped.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        loaded = read_weights(path)
        assert loaded.keys() == state.keys(), name
        assert all(torch.equal(loaded[key], state[key]) for key in state), name


def test_checkpoint_of_timms_train_script(tmp_path):
    state = {"a": torch.ones(1)}
    args = argparse.Namespace(model="vit_tiny_patch16_224", lr=0.1)
    torch.save({"epoch": 3, "state_dict": state, "args": args, "version": 2}, tmp_path / "model_best.pth.tar")
    assert torch.equal(read_weights(tmp_path / "model_best.pth.tar")["a"], state["a"])


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_pickled_objects_are_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(1)}, "hyper_parameters": Evil()}, "evil.ckpt")
    with pytest.raises(UserError, match="pickled objects, which are not loaded"):
        read_weights("evil.ckpt")
    assert not os.path.exists("executed")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{", "cannot be read"),
        ("cut.pth", b"PK\x03\x04 half a file", "cannot be read|is damaged"),
        ("empty.ckpt", b"", "cannot be read|is damaged"),
        ("weights.npz", b"", "is not a .safetensors"),
        ("missing.pth", None, "does not exist"),
    ],
)
def test_unusable_files_raise_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_weights(path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_file_without_tensors_raises(tmp_path):
    for content in ({"state_dict": {"a": 1}}, [torch.ones(1)], {}):
        torch.save(content, tmp_path / "numbers.pth")
        with pytest.raises(UserError, match="holds no state dict"):
            read_weights(tmp_path / "numbers.pth")
    with pytest.raises(UserError, match=r"a folder without model.safetensors"):
        resolve_path(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ('{"architecture": ', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "should hold an object, not a list"),
        ('{"nsaug": 3}', "nsaug should be an object, not a int"),
        ('{"pretrained_cfg": []}', "pretrained_cfg should be an object, not a list"),
    ],
)
def test_invalid_config_raises_one_line(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").touch()
    for read in (read_config, read_metadata):
        with pytest.raises(UserError, match=message) as error:
            read(tmp_path)
        assert str(tmp_path / "config.json") in str(error.value)
        assert "\n" not in str(error.value)
