"""last.ckpt and metrics.csv from a stranger or damaged: one line that names the file, and nothing is executed."""

import os
import random

import pytest
import torch

from nsaug.training.checkpointing import AtomicCheckpointIO
from nsaug.training.resume import (
    check_checkpoint,
    check_same_config,
    find_resume_checkpoint,
    is_valid,
    read_checkpoint,
    read_metrics,
)
from nsaug.utils.errors import UserError

CHECKPOINT = {
    "epoch": 1,
    "global_step": 20,
    "pytorch-lightning_version": "2.6.6",
    "state_dict": {"weight": torch.ones(2, 3), "bias": torch.zeros(2)},
    "loops": {"fit_loop": {}},
    "callbacks": {},
    "optimizer_states": [{"state": {}, "param_groups": []}],
    "lr_schedulers": [{}],
}


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def refusal(read, *args) -> str:
    with pytest.raises(UserError) as error:
        read(*args)
    line = str(error.value)
    assert "\n" not in line
    return line


def save(path, content):
    torch.save(content, path)
    return path


def test_checkpoint_is_read(tmp_path):
    path = save(tmp_path / "last.ckpt", CHECKPOINT)
    assert find_resume_checkpoint(str(tmp_path), tmp_path / "other") == (tmp_path, path)
    for loaded in (read_checkpoint(path), read_checkpoint(path, mmap=True), AtomicCheckpointIO().load_checkpoint(path)):
        assert loaded.keys() == CHECKPOINT.keys()
        assert torch.equal(loaded["state_dict"]["weight"], CHECKPOINT["state_dict"]["weight"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "should be a valid dictionary"),
        (torch.ones(3), "should be a valid dictionary"),
        ({}, "epoch is missing"),
        ({"weight": torch.ones(1)}, "epoch is missing"),
        ({"model": {}, "epoch": 3}, "global_step is missing"),
        (CHECKPOINT | {"epoch": "1"}, "epoch='1' should be a valid integer"),
        (CHECKPOINT | {"epoch": True}, "epoch should be a number, not true"),
        (CHECKPOINT | {"global_step": -1}, "global_step=-1 should be greater"),
        (CHECKPOINT | {"state_dict": {"a": 1}}, "state_dict.a=1 should be an instance of Tensor"),
        (CHECKPOINT | {"state_dict": {0: torch.ones(1)}}, "state_dict"),
        (CHECKPOINT | {"optimizer_states": [3]}, "optimizer_states[0]=3 should be"),
        (CHECKPOINT | {"loops": None}, "loops=None should be"),
    ],
)
def test_other_contents_are_refused(tmp_path, content, reason):
    path = save(tmp_path / "last.ckpt", content)
    for line in (refusal(find_resume_checkpoint, str(tmp_path), tmp_path), refusal(read_checkpoint, path)):
        assert line.startswith(f"{path} is not a checkpoint of train.py ({reason}")


@pytest.mark.parametrize("key", [key for key in CHECKPOINT if key != "pytorch-lightning_version"])
def test_missing_entries_are_refused(tmp_path, key):
    path = save(tmp_path / "last.ckpt", {name: value for name, value in CHECKPOINT.items() if name != key})
    assert refusal(read_checkpoint, path).startswith(f"{path} is not a checkpoint of train.py ({key} is missing)")


@pytest.mark.parametrize("entry", ["epoch", "callbacks", "hyper_parameters"])
def test_pickled_objects_are_not_executed(tmp_path, monkeypatch, entry):
    """Also where an environment variable makes torch and Lightning load them by default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = save(tmp_path / "last.ckpt", CHECKPOINT | {entry: Evil()})
    for read in (read_checkpoint, AtomicCheckpointIO().load_checkpoint):
        line = refusal(read, path)
        assert line.startswith(f"{path} is not a checkpoint of train.py (it holds pickled objects")
    refusal(find_resume_checkpoint, str(tmp_path), tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_folder_with_the_name_of_an_address_is_not_executed(tmp_path, monkeypatch):
    """Lightning loads paths that start with http without weights_only."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("http:/host")
    path = save("http:/host/last.ckpt", CHECKPOINT | {"epoch": Evil()})
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("no network"))
    refusal(AtomicCheckpointIO().load_checkpoint, path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"\x89PNG\r\n", b"{}", b"\x00" * 10_000])
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    assert not is_valid(path)
    assert refusal(find_resume_checkpoint, str(path), tmp_path).startswith(f"resume={path} is damaged")
    assert refusal(find_resume_checkpoint, str(tmp_path), tmp_path).startswith(f"resume={tmp_path}: last.ckpt is")
    assert refusal(read_checkpoint, path).startswith(f"{path} is not a checkpoint of train.py (")


def test_bytes_replaced_at_random(tmp_path):
    generator = random.Random(0)
    path = save(tmp_path / "last.ckpt", CHECKPOINT)
    content = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(content[: generator.choice([generator.randrange(len(content)), len(content)])])
        for _ in range(generator.choice([1, 10])):
            if damaged:
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        is_valid(path)
        try:
            read_checkpoint(path)
        except UserError:
            assert str(path) in refusal(read_checkpoint, path)


def test_special_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "last.ckpt")
    (tmp_path / "previous.ckpt").mkdir()
    for path in (tmp_path, tmp_path / "last.ckpt", tmp_path / "previous.ckpt", "x" * 5000):
        assert refusal(find_resume_checkpoint, str(path), tmp_path).startswith(f"resume={path} ")


def test_checkpoint_of_another_model_is_refused(tmp_path):
    path = save(tmp_path / "last.ckpt", CHECKPOINT)
    check_checkpoint(path, torch.nn.Linear(3, 2))
    for model in (torch.nn.Linear(4, 2), torch.nn.Linear(3, 2, bias=False), torch.nn.Sequential(torch.nn.Linear(3, 2))):
        assert refusal(check_checkpoint, path, model).startswith(f"{path} is not a checkpoint of this model (")


def test_config_without_settings_is_refused(tmp_path):
    line = refusal(check_same_config, {}, {"settings": {}, "seed": 0}, tmp_path)
    assert line == f"resume={tmp_path}: config.json there records no settings: name the output folder of a run"
    line = refusal(check_same_config, {"settings": {}}, {"settings": {}, "seed": 0}, tmp_path)
    assert line == f"resume={tmp_path}: that run is of an earlier version of nsaug: start a new run"


def test_metrics_before_a_step(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n2,\n3,0.1\n")
    assert read_metrics(tmp_path / "metrics.csv", 3) == [{"step": "1", "loss": "0.5"}, {"step": "2", "loss": ""}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"loss\n0.5\n", "it has no column step"),
        (b"step,loss\nx,0.5\n", "invalid literal for int"),
        (b"step,loss\n,0.5\n", "invalid literal for int"),
        (b"step,loss\n1\n", "a row has more or fewer cells"),
        (b"step,loss\n1,2,3\n", "a row has more or fewer cells"),
        (b'step,loss\n1,"0.5\n', "unexpected end of data"),
        (b"step,loss\n1,\xff\n", "'utf-8' codec can't decode"),
        (b"step,loss\n1," + b"9" * 200_000, "field larger than field limit"),
    ],
)
def test_damaged_metrics_are_refused(tmp_path, content, reason):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert refusal(read_metrics, path, 5).startswith(f"{path} is damaged ({reason}")
