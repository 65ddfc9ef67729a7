"""The wheel contains conf/ and commands that work in an empty folder; the sdist contains the project."""

import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from nsaug import __version__
from nsaug.cli.command_line import config_dir
from tests.conftest import ROOT

FOLDERS = ("nsaug", "conf", "benchmarks", "docs", "scripts", "studies", "tests")
SETTINGS = ["trainer=cpu", "logger=csv", "trainer.enable_progress_bar=false", "trainer.max_steps=2", "method=clean"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the sdist, and the wheel that was built from it, without network."""
    for module in ("setuptools", "build"):
        pytest.importorskip(module)
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source], check=True)
    return target


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """A folder with nsaug installed from its wheel."""
    (wheel,) = dist.glob("*.whl")
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    return target


def command(installed, folder, *arguments):
    env = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)


def files_below(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


@pytest.mark.slow
def test_sdist_contains_the_project(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for folder in FOLDERS:
        assert {f"{folder}/{name}" for name in files_below(ROOT / folder)} <= names
    assert {"Makefile", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "constraints.txt", "train.py"} <= names


@pytest.mark.slow
def test_wheel_contains_the_package_alone(installed):
    assert files_below(ROOT / "nsaug") | {f"conf/{name}" for name in files_below(ROOT / "conf")} == files_below(
        installed / "nsaug"
    )
    assert {path.name for path in installed.iterdir()} == {"nsaug", "bin", f"nsaug-{__version__}.dist-info"}


@pytest.mark.slow
def test_twine_accepts_both(dist):
    pytest.importorskip("twine")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()], check=True)


@pytest.mark.slow
def test_versions_of_an_installed_package(installed, tmp_path):
    done = command(installed, tmp_path, "-m", "nsaug", "--version")
    assert done.stdout.splitlines()[0].split() == ["nsaug", __version__]  # no commit


@pytest.mark.slow
def test_console_command_trains_in_an_empty_folder(installed, tmp_path):
    done = command(installed, tmp_path, str(installed / "bin" / "nsaug-train"), "--help")
    assert "data: checkpoint, cifar10, " in done.stdout
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
