"""A run folder from a stranger, given to train.py and evaluate.py: nothing in it is executed."""

import json
import os
import pickle
import shutil
import sys
from types import ModuleType

import pytest
import torch

from nsaug.cli import evaluate, train
from nsaug.data import Digits
from nsaug.training.checkpointing import AtomicCheckpointIO
from tests.commands import FAST, SHORT, cli_error, run, top1

pytestmark = pytest.mark.usefixtures("tmp_cwd")
SMALL = ["suite=clean", "suite.max_images=20", "accelerator=cpu"]


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    run(train, monkeypatch, *SHORT, "method=clean", f"hydra.run.dir={tmp_path}/runs/0")
    return tmp_path / "runs" / "0"


def edit(folder, edit_config):
    config = json.loads((folder / "config.json").read_text())
    edit_config(config)
    (folder / "config.json").write_text(json.dumps(config))


ATTACKS = {
    "torch.load": {"f": "evil.pt", "weights_only": False},
    "pandas.read_pickle": {"filepath_or_buffer": "evil.pt"},
    "joblib.load": {"filename": "evil.pt"},
    "torch.hub.load": {"repo_or_dir": ".", "model": "evil", "source": "local"},
    "os.mkdir": {"path": "executed"},
    "pathlib.Path.touch": {"self": {"_target_": "pathlib.Path", "_args_": ["executed"]}},
    "io.open": {"file": "executed", "mode": "w"},
    "urllib.request.urlopen": {"url": "http://127.0.0.1:9/${oc.env:HOME}"},
}


def test_recorded_data_execute_nothing(run_folder, monkeypatch, tmp_path, capsys):
    """The attacks on version 1, as they were written there and in the present form."""
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "hubconf.py").write_text("import os\nos.mkdir('executed')\n")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("no network"))
    for target, args in ATTACKS.items():
        for data in ({"_target_": target, **args}, {"name": target, "args": args}):
            edit(run_folder, lambda config, data=data: config["nsaug"].update(data=data))
            line = cli_error(evaluate, monkeypatch, capsys, *SMALL, f"checkpoint={run_folder}")
            assert line.startswith(f"error: {run_folder}/config.json: nsaug.data.")
            assert os.environ["HOME"] not in line.removeprefix(f"error: {run_folder}")
            assert not (tmp_path / "executed").exists()


def test_model_arguments_execute_nothing(run_folder, monkeypatch, tmp_path, capsys):
    torch.save(Evil(), tmp_path / "evil.pth")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("no network"))
    for key, value in {
        "checkpoint_path": f"{tmp_path}/evil.pth", "pretrained_cfg": {"file": f"{tmp_path}/evil.pth"},
        "norm_layer": "os.system", "features_only": True, "cache_dir": f"{tmp_path}/executed",
    }.items():  # fmt: skip
        original = (run_folder / "config.json").read_bytes()
        edit(run_folder, lambda config, item=(key, value): config["model_args"].update([item]))
        for script, more in ((evaluate, SMALL), (train, [*SHORT, "model=micro", "data=digits"])):
            line = cli_error(script, monkeypatch, capsys, *more, f"checkpoint={run_folder}")
            assert line.startswith(f"error: {run_folder}/config.json: model_args.")
        (run_folder / "config.json").write_bytes(original)
    assert not (tmp_path / "executed").exists()


def test_one_damaged_run_among_many_costs_itself_alone(run_folder, monkeypatch, tmp_path, capsys):
    contents = {"cut": '{"architecture": ', "list": "[]", "attack": None}
    for name, content in contents.items():
        shutil.copytree(run_folder, tmp_path / "runs" / name)
        if content is not None:
            (tmp_path / "runs" / name / "config.json").write_text(content)
    edit(
        tmp_path / "runs" / "attack",
        lambda config: config["nsaug"].update(data={"name": "os.mkdir", "args": {"path": "executed"}}),
    )
    shutil.copytree(run_folder, tmp_path / "runs" / "1")
    edit(tmp_path / "runs" / "1", lambda config: config["nsaug"].update(seed=1))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(evaluate, monkeypatch, *SMALL, f"checkpoint={tmp_path}/runs/*", f"hydra.run.dir={tmp_path}/eval")
    assert stop.value.code == 1
    output = capsys.readouterr()
    for name in contents:
        assert output.out.count(f"{tmp_path}/runs/{name}/config.json: ") == 1
    (line,) = output.err.strip().splitlines()
    assert line.startswith(f"error: 3 of 5 models cannot be evaluated: {tmp_path}/runs/")
    assert len(top1(tmp_path / "eval")) > 0
    checkpoints = {row["checkpoint"] for row in json.loads((tmp_path / "eval" / "results.json").read_text())}
    assert {f"{tmp_path}/runs/{name}/model.safetensors" for name in "01"} <= checkpoints
    assert not (tmp_path / "executed").exists()


def test_run_on_the_users_own_data_says_what_to_type(monkeypatch, tmp_path, capsys):
    module = ModuleType("mypackage")
    module.Mine = type("Mine", (Digits,), {"__module__": "mypackage"})
    monkeypatch.setitem(sys.modules, "mypackage", module)
    own = ["data=custom", "data._target_=mypackage.Mine", "data.num_workers=0"]
    run(train, monkeypatch, *SHORT, "method=clean", *own, f"hydra.run.dir={tmp_path}/run")
    line = cli_error(evaluate, monkeypatch, capsys, *SMALL, f"checkpoint={tmp_path}/run")
    assert line.startswith(f"error: {tmp_path}/run/config.json: nsaug.data.name=mypackage.Mine is none of cifar10,")
    assert "type data=custom data._target_=mypackage.Mine and its arguments" in line
    run(evaluate, monkeypatch, *SMALL, f"checkpoint={tmp_path}/run", *own, f"hydra.run.dir={tmp_path}/eval")
    assert len(top1(tmp_path / "eval")) > 0


def test_checkpoint_of_another_program_is_not_resumed(run_folder, monkeypatch, tmp_path, capsys):
    settings = [*SHORT, "method=clean", f"resume={run_folder}"]
    checkpoint = torch.load(run_folder / "last.ckpt", weights_only=True)
    for content, message in (
        ([1], "is not a checkpoint of train.py"),
        (checkpoint | {"epoch": Evil()}, "is not a checkpoint of train.py (it holds pickled objects"),
        (checkpoint | {"state_dict": {"weight": torch.ones(1)}}, "is not a checkpoint of this model"),
    ):
        torch.save(content, run_folder / "last.ckpt")
        line = cli_error(train, monkeypatch, capsys, *settings)
        assert line.startswith(f"error: {run_folder}/last.ckpt {message}")
    torch.save(checkpoint, run_folder / "last.ckpt")
    (run_folder / "metrics.csv").write_text("loss\n0.5\n")
    line = cli_error(train, monkeypatch, capsys, *settings)
    assert line.startswith(f"error: {run_folder}/metrics.csv is damaged (it has no column step)")
    (run_folder / "config.json").unlink()
    assert "config.json there records no settings" in cli_error(train, monkeypatch, capsys, *settings)
    assert not (tmp_path / "executed").exists()


def test_checkpoint_that_lightning_cannot_restore_is_one_line(run_folder, monkeypatch, capsys):
    checkpoint = torch.load(run_folder / "last.ckpt", weights_only=True)
    del checkpoint["pytorch-lightning_version"]
    torch.save(checkpoint, run_folder / "last.ckpt")
    line = cli_error(train, monkeypatch, capsys, *SHORT, "method=clean", f"resume={run_folder}")
    assert line.startswith(f"error: {run_folder}/last.ckpt cannot be restored (KeyError: 'pytorch-lightning_version')")


def test_lack_of_memory_is_not_a_fault_of_the_checkpoint(run_folder, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise MemoryError("8 GB")

    monkeypatch.setattr(AtomicCheckpointIO, "load_checkpoint", fail)
    line = cli_error(train, monkeypatch, capsys, *SHORT, "method=clean", f"resume={run_folder}")
    assert line.startswith("error: memory ran out (8 GB)")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=true", "seed=True: should be a valid integer"),
        ("data.batch_size=true", "data.batch_size=True: should be a number, not true"),
        ("trainer.max_epochs=true", "trainer.max_epochs=True: should be a valid integer"),
        ("trainer.gradient_clip_val=true", "trainer.gradient_clip_val=True: should be a valid"),
        ("optim.lr=true", "optim.lr=True: should be a number, not true"),
        ("optim.lr=nan", "optim.lr=nan: should be a finite number"),
        ("model.crop_pct=0", "model.crop_pct=0: should be greater than or equal to 0.1"),
        ("model.std=[-1,1,1]", "model.std=[-1, 1, 1]: should be greater than 0"),
        ("model.std=[0,0,0]", "model.std=[0, 0, 0]: should be greater than 0"),
        ("model.mean=[.nan,1,1]", "model.mean="),
        ("model.interpolation=cubic", "model.interpolation=cubic: should be 'nearest'"),
        ("model.drop_path_rate=1", "model.drop_path_rate=1: should be less than 1"),
        ("data.scale=[1,0.5]", "data.scale=[1, 0.5]: should start with the smaller number"),
        ("data.scale=[0,0]", "data.scale=[0, 0]: should be greater than 0"),
        ("attack.num_steps=true", "attack.num_steps=True: should be a number, not true"),
    ],
)
def test_values_that_make_no_sense_are_refused(monkeypatch, capsys, setting, message):
    line = cli_error(train, monkeypatch, capsys, *FAST, setting if "scale" not in setting else f"+{setting}")
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize("value", ["[]", "[fab,fab]", "[true]"])
def test_lists_of_attacks_are_checked(monkeypatch, capsys, value):
    line = cli_error(
        evaluate, monkeypatch, capsys, "model=micro", "data=digits",
        f"+suite.attacks.autoattack={{attacks: {value}}}",
    )  # fmt: skip
    assert line.startswith("error: suite.attacks.autoattack.attacks=")
