"""The wheel contains conf/ and commands that work in an empty folder."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

from nsaug.cli.command_line import config_dir
from tests.conftest import ROOT

SETTINGS = ["trainer=cpu", "logger=csv", "trainer.enable_progress_bar=false", "trainer.max_steps=2", "method=clean"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with nsaug installed from its wheel, built without network."""
    for module in ("setuptools", "pip"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("nsaug", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", source], cwd=source, check=True)
    (wheel,) = source.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    return target


def command(installed, folder, *arguments):
    env = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_wheel_contains_all_of_conf(installed):
    files = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert files == {path.relative_to(installed / "nsaug/conf") for path in (installed / "nsaug/conf").rglob("*.yaml")}


@pytest.mark.slow
def test_console_command_trains_in_an_empty_folder(installed, tmp_path):
    done = command(installed, tmp_path, str(installed / "bin" / "nsaug-train"), *SETTINGS, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()
    done = command(installed, tmp_path, str(installed / "bin" / "nsaug-evaluate"), "checkpoint=nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("error: checkpoint=nowhere does not exist")
    done = command(installed, tmp_path, str(installed / "bin" / "nsaug-push"), "checkpoint=run", "repo=vit")
    assert done.stderr.startswith("error: repo=vit: type repo=USER/vit")
    output = ("format=torch_export", "output=vit.pt2")
    done = command(installed, tmp_path, str(installed / "bin" / "nsaug-export"), "checkpoint=run", *output)
    assert done.stdout.startswith("vit.pt2: images (batch, 3, 8, 8) in [0, 1]")


@pytest.mark.slow
def test_config_dir_adds_experiments_and_cwd_holds_classes(installed, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\noptim:\n  lr: 0.125\n")
    (tmp_path / "mypackage.py").write_text("from nsaug.methods import Clean\nclass Mine(Clean):\n    name = 'mine'\n")
    own = [
        "experiment=mine",
        "method=custom",
        "method._target_=mypackage.Mine",
        "--config-dir",
        "own",
    ]
    done = command(
        installed, tmp_path, str(installed / "bin" / "nsaug-train"), *SETTINGS[:-1], *own, "hydra.run.dir=run"
    )
    assert done.returncode == 0, done.stderr
    config = (tmp_path / "run" / "config.json").read_text()
    assert '"lr": 0.125' in config
    assert '"method": "mine"' in config


def test_a_checkout_uses_its_top_level_conf():
    assert config_dir() == ROOT / "conf"
