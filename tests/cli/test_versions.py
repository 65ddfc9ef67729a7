"""`python -m nsaug --version`: what a bug report needs."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from nsaug import __version__
from nsaug.cli import versions
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEVELOPMENT = ("dev", "docs")


def names(requirements):
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}


def rows():
    return {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in versions.describe().splitlines()}


def git(folder, *arguments):
    author = ("-c", "user.name=me", "-c", "user.email=me@localhost")
    subprocess.run(["git", "-C", folder, *author, *arguments], check=True, capture_output=True)


def test_every_dependency_is_listed():
    extras = PROJECT["optional-dependencies"]
    assert names(PROJECT["dependencies"]) == {"torch", *versions.REQUIRED}
    assert set().union(*(names(extras[name]) for name in extras if name not in DEVELOPMENT)) == {*versions.OPTIONAL}


def test_rows_hold_the_versions():
    shown = rows()
    assert shown["nsaug"].startswith(__version__)
    assert shown["python"] == sys.version.split()[0]
    assert shown["torch"].split(", ")[0] == torch.__version__
    assert shown["timm"] == version("timm")
    assert "CPU cores" in shown["devices"]


def test_missing_and_broken_packages_are_named(monkeypatch):
    def missing(name):
        if name == "timm":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(versions, "version", missing)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    shown = rows()
    assert shown["timm"] == "not installed"
    assert shown["wandb"] == "1.0"
    assert shown["torch"].startswith("ModuleNotFoundError: import of torch halted")
    assert shown["nsaug"].startswith(__version__)


def test_commit_of_a_checkout(tmp_path):
    assert versions.find_commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git(tmp_path, "init")
    assert versions.find_commit(tmp_path) is None  # no commit yet
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "one")
    head = (tmp_path / ".git" / "refs" / "heads").rglob("*")
    (commit,) = [path.read_text().strip() for path in head if path.is_file()]
    prefix, _, short = versions.find_commit(tmp_path).partition(" ")
    assert prefix == "commit"
    assert commit.startswith(short)
    (tmp_path / "a").write_text("2")
    assert versions.find_commit(tmp_path) == f"commit {short} with changes"
    (tmp_path / "below").mkdir()  # as site-packages in another project's checkout
    assert versions.find_commit(tmp_path / "below") is None


def test_no_git_is_no_commit(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert versions.find_commit(tmp_path) is None


def test_module_names_all_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nsaug"])
    versions.main()
    shown = capsys.readouterr().out
    for command in PROJECT["scripts"]:
        assert f"\n{command} " in shown
    monkeypatch.setattr(sys, "argv", ["nsaug", "--versoin"])
    with pytest.raises(SystemExit) as stop:
        versions.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: unrecognized arguments: --versoin: see --help\n"


def test_module_runs():
    done = subprocess.run([sys.executable, "-m", "nsaug", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nsaug ")
