import os
import pickle

import pytest
import timm
import torch

from nsaug.models.weights import read_config, read_weights, resolve_path, save_config, save_weights
from nsaug.training.checkpointing import AtomicCheckpointIO
from nsaug.utils.errors import UserError
from nsaug.utils.files import atomic_write
from tests.conftest import tiny_vit


def test_what_fails_halfway_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail_halfway():
        with atomic_write(path) as draft:
            draft.write_text("ne")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fail_halfway()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    with atomic_write(path) as draft:
        draft.write_text("new")
    assert path.read_text() == "new"


def test_a_lightning_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"epoch": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        io.save_checkpoint({"epoch": 2, "lambda": lambda: 0}, path)
    assert torch.load(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


@torch.no_grad()
def test_plain_timm_loads_what_is_exported(tmp_path):
    vit = tiny_vit(mean=(0.1, 0.2, 0.3)).eval()
    save_config(tmp_path, vit.model, vit.model_args, {"name": "clean", "seed": 3})
    save_weights(tmp_path, vit.model)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded(vit.normalize(images)), vit(images))
    config = timm.data.resolve_model_data_config(loaded)
    assert (tuple(config["mean"]), tuple(config["input_size"])) == ((0.1, 0.2, 0.3), (3, 8, 8))
    assert read_config(tmp_path)["nsaug"] == {"name": "clean", "seed": 3}


def test_wrapped_and_prefixed_state_dicts(tmp_path):
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
        found = read_weights(path)
        assert found.keys() == state.keys(), name
        assert all(torch.equal(found[key], state[key]) for key in state), name


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
    ("name", "content", "says"),
    [
        ("cut.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{", "cannot be read"),
        ("cut.pth", b"PK\x03\x04 half a file", "cannot be read|is damaged"),
        ("empty.ckpt", b"", "cannot be read|is damaged"),
        ("weights.npz", b"", "is no .safetensors"),
        ("missing.pth", None, "does not exist"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_weights(path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_without_tensors(tmp_path):
    for content in ({"state_dict": {"a": 1}}, [torch.ones(1)], {}):
        torch.save(content, tmp_path / "numbers.pth")
        with pytest.raises(UserError, match="holds no state dict"):
            read_weights(tmp_path / "numbers.pth")
    with pytest.raises(UserError, match=r"a folder without model.safetensors"):
        resolve_path(tmp_path)
