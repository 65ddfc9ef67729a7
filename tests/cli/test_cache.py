"""python -m nsaug.cli.cache lists and deletes results."""

import sys

import pytest

from nsaug.cli import cache, evaluate
from tests.commands import run


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["cache", *map(str, arguments)])
    cache.main()


@pytest.mark.usefixtures("tmp_cwd")
def test_cache_is_listed_and_cleared(trained, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "cache"
    small = ["suite=clean", "batch_size=20", "suite.max_images=50", "accelerator=cpu", f"hydra.run.dir={tmp_path}/eval"]
    run(evaluate, monkeypatch, f"checkpoint={trained}", f"cache={folder}", *small)
    (folder / "v3" / "ff").mkdir(exist_ok=True)
    (folder / "v3" / "ff" / "damaged.npz").write_bytes(b"PK")
    capsys.readouterr()
    call(monkeypatch, folder)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == ["3", "blocks"]
    assert line.endswith("nullspace, seed 0: clean")
    call(monkeypatch, folder, "--clear")
    assert not list(folder.rglob("*.npz"))
    with pytest.raises(SystemExit, match="1"):
        call(monkeypatch, folder)
    assert "is not a cache of this version" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--foo"], ["x" * 300]])
def test_wrong_arguments_are_one_line(monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit, match="1"):
        call(monkeypatch, *arguments)
    assert len(capsys.readouterr().err.splitlines()) == 1
