import argparse
import os
import pickle
import random

import pytest
import timm
import torch
from safetensors.torch import save_file

from nsaug.models.checkpoint_formats import select_model
from nsaug.models.weights import read_config, read_weights, resolve_path, save_config, save_weights
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
    save_weights(tmp_path, vit.state_dict())
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded(vit.normalize(images)), vit(images))
    config = timm.data.resolve_model_data_config(loaded)
    assert (tuple(config["mean"]), tuple(config["input_size"])) == ((0.1, 0.2, 0.3), (3, 8, 8))
    assert read_config(tmp_path)["nsaug"] == {"name": "clean", "seed": 3, "patch_embed": "patch_embed"}


def test_tied_weights_are_written(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3), "b": torch.nn.Linear(2, 3)})
    model["b"].weight = model["a"].weight
    save_weights(tmp_path, model.state_dict())
    loaded = read_weights(tmp_path)
    assert torch.equal(loaded["b.weight"], model["a"].weight)


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
        loaded = select_model(read_weights(path), state).weights
        assert loaded.keys() == state.keys(), name
        assert all(torch.equal(loaded[key], state[key]) for key in state), name


def test_checkpoint_of_timms_train_script(tmp_path):
    state = {"a": torch.ones(1)}
    args = argparse.Namespace(model="vit_tiny_patch16_224", lr=0.1)
    torch.save({"epoch": 3, "state_dict": state, "args": args, "version": 2}, tmp_path / "model_best.pth.tar")
    assert torch.equal(read_weights(tmp_path / "model_best.pth.tar")["state_dict.a"], state["a"])


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


def test_folder_of_a_sweep_names_its_runs(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "model.safetensors").touch()
    with pytest.raises(UserError) as error:
        resolve_path(tmp_path)
    assert str(error.value).endswith(f"is a folder without model.safetensors: its runs are checkpoint='{tmp_path}/*'")


def test_state_dict_with_other_keys_than_names_raises(tmp_path):
    torch.save({"state_dict": {0: torch.ones(1)}}, tmp_path / "numbered.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_weights(tmp_path / "numbered.pth")


def test_damaged_weights_raise_one_line(tmp_path):
    """Bytes cut off or replaced at random positions."""
    generator = random.Random(0)
    torch.save({"a": torch.ones(3)}, tmp_path / "weights.pth")
    torch.save({"a": torch.ones(3)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file({"a": torch.ones(3)}, tmp_path / "weights.safetensors")
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(content[: generator.choice([generator.randrange(len(content)), len(content)])])
            for _ in range(generator.choice([0, 1, 10])):
                if damaged:
                    damaged[generator.randrange(len(damaged))] = generator.randrange(256)
            path.write_bytes(damaged)
            line = message_of(path)
            assert line is None or (path.name in line and "\n" not in line)


def message_of(path):
    """The message of the UserError that refuses a file; None for one that is read."""
    try:
        read_weights(path)
    except UserError as error:
        return str(error)


def test_pipes_and_long_names_raise_one_line(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is not a regular file"):
        read_weights(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is a folder without model.safetensors"):
        read_weights(tmp_path)
    with pytest.raises(UserError, match="cannot be read .*too long"):
        read_weights("x" * 5000 + ".pth")


def test_metadata_that_could_not_be_read_back_is_refused(tmp_path):
    for metadata, message in (
        ({"class_names": ["a\nb"]}, "control characters"),
        ({"class_names": ["caf\udce9"]}, "unicode"),
        ({"class_names": ["a", "a"]}, "a is listed twice"),
        ({"seed": True}, "nsaug.seed|seed=True"),
    ):
        with pytest.raises(UserError, match=message) as error:
            save_config(tmp_path, tiny_vit(), metadata)
        assert str(error.value).startswith(f"{tmp_path}/config.json cannot record this run: ")
    assert not list(tmp_path.iterdir())
