"""resume=FOLDER alone: the settings of the command that started the run, as data."""

import json
import os
import sys
from types import ModuleType

import pytest

from nsaug.cli import train
from nsaug.cli.recorded import insert_recorded_settings
from nsaug.methods import Clean
from nsaug.models.weights import read_metadata
from nsaug.utils.errors import UserError
from tests.commands import SHORT, cli_error, run
from tests.data.helpers import make_tree

pytestmark = pytest.mark.usefixtures("tmp_cwd")
VALUES = {"name", "seed", "checkpoint", "resume"}


@pytest.fixture
def folder(tmp_path):
    """A run folder with a name that needs quotes; write its command with `record`."""
    (tmp_path / "a run").mkdir()
    return tmp_path / "a run"


def record(folder, *settings):
    metadata = {} if settings == (None,) else {"command": settings}
    content = {"architecture": "vit_tiny_patch16_224", "nsaug": metadata}
    (folder / "config.json").write_text(json.dumps(content))


def inserted(folder, *typed):
    return insert_recorded_settings([f"resume='{folder}'", *typed], VALUES)[:-1]


def test_recorded_settings_come_before_those_typed(folder):
    plain = [
        "method=clean", "+model.args.drop_rate=0.1", "checkpoint=/weights/a.pth", "~trainer.max_time", "name='a b'",
        "data.scale=[0.5,1]", "model.args={depth: 2}", "experiment=null",
    ]  # fmt: skip
    record(folder, *plain, "resume=true", "data.download=true", "optim.lr=1", "data=digits")
    typed = ["optim.lr=2", "data=folder", "--config-dir=own"]
    arguments = [typed.pop(), f"resume='{folder}'", *typed]
    run_dir = f'hydra.run.dir="{folder}"'
    assert insert_recorded_settings(arguments, VALUES) == [arguments[0], *plain, run_dir, *arguments[1:]]
    typed = ["hydra.run.dir=other", f"resume='{folder}'", "optim.lr=2", "data=folder"]
    assert insert_recorded_settings(typed, VALUES) == [*plain, *typed]
    for setting in ("resume=true", "resume=null", "resume=nowhere", "seed=1"):
        assert insert_recorded_settings([setting], VALUES) == [setting]
    record(folder, None)
    assert inserted(folder) == []


@pytest.mark.parametrize(
    "setting",
    [
        "method._target_=os.mkdir", "method={_target_: os.mkdir}", "+trainer.callbacks=[{_target_: os.mkdir}]",
        "trainer.plugins={'a': [{'_target_': os.mkdir}]}", "method._args_=[executed]", "name=${oc.env:HOME}",
        "data.root='${oc.env:HOME}'", "name=[a,{b: '${seed}'}]", "hydra.searchpath=[/evil]", "hydra/launcher=evil",
        "hydra={}", "experiment=../../evil", "method=/evil", "'+experiment@data=a'", "+experiment@data=a", "seed=1,2",
        "mixup={}", "method=[a,b]", "+new/group=evil", "a", "=", "[", "x=" + "[" * 5000,
    ],
)  # fmt: skip
def test_settings_that_might_run_code_are_not_read(folder, setting):
    record(folder, "seed=1", setting)
    with pytest.raises(UserError) as error:
        inserted(folder)
    assert str(error.value).startswith(f"{folder}/config.json: nsaug.command: {setting[:20]!a}"[:-1])
    assert "is not read from a file" in str(error.value)


def test_code_of_the_user_is_typed_again(monkeypatch, tmp_path, capsys):
    module = ModuleType("mypackage")
    module.Mine = type("Mine", (Clean,), {"__module__": "mypackage", "name": "mine"})
    monkeypatch.setitem(sys.modules, "mypackage", module)
    own = "method._target_=mypackage.Mine"
    run(train, monkeypatch, *SHORT, "method=custom", own, f"hydra.run.dir={tmp_path}/run")
    line = cli_error(train, monkeypatch, capsys, f"resume={tmp_path}/run", "trainer.max_steps=4")
    assert line == (
        f"error: {tmp_path}/run/config.json: nsaug.command: '{own}' is not read from a file, because it might run"
        f" code: type it beside resume={tmp_path}/run"
    )
    run(train, monkeypatch, f"resume={tmp_path}/run", "trainer.max_steps=4", own)
    command = read_metadata(tmp_path / "run")["command"]
    assert command[-2:] == ["trainer.max_steps=4", own]
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_images_may_have_moved(monkeypatch, tmp_path):
    make_tree(tmp_path / "images" / "train", ["cat", "dog"], images=20)
    images = ["data=folder", "data.batch_size=8", "data.num_workers=0", f"data.root={tmp_path}/images"]
    run(train, monkeypatch, *SHORT, "method=clean", *images, f"hydra.run.dir={tmp_path}/run")
    (tmp_path / "images").rename(tmp_path / "moved")
    run(train, monkeypatch, f"resume={tmp_path}/run", f"data.root={tmp_path}/moved", "trainer.max_steps=4")
    run(train, monkeypatch, f"resume={tmp_path}/run")
    assert read_metadata(tmp_path / "run")["data"]["args"]["root"] == f"{tmp_path}/moved"


def test_runs_of_a_sweep(monkeypatch, tmp_path, capsys):
    sweep = ["-m", *SHORT, "method=clean", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep"]
    run(train, monkeypatch, *sweep)
    folder = tmp_path / "sweep" / "1_seed-1"
    line = cli_error(train, monkeypatch, capsys, f"resume={tmp_path}/sweep")
    assert line.endswith(f"name the output folder of a run, such as resume={tmp_path}/sweep/0_seed-0")
    line = cli_error(train, monkeypatch, capsys, "-m", f"resume={folder}", "seed=0,1")
    assert line.startswith("error: resume=FOLDER resumes one run: ")
    run(train, monkeypatch, f"resume={folder}", "trainer.max_steps=4")
    metadata = read_metadata(folder)
    assert (metadata["seed"], metadata["settings"]["trainer"]["max_steps"]) == (1, 4)
    for name in ("last.ckpt", "previous.ckpt", "model.safetensors"):
        (folder / name).unlink()
    run(train, monkeypatch, *sweep, "resume=true")
    assert (folder / "model.safetensors").is_file()
