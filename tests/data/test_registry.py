"""The data that a run folder names: nsaug's own classes and plain values only."""

import pytest
import yaml

from nsaug.data import Digits, Folder
from nsaug.data.registry import DATASETS, data_from_metadata, record_data
from nsaug.utils.errors import UserError
from tests.conftest import ROOT


def build(name, **args):
    return data_from_metadata({"data": {"name": name, "args": args}}, source="RUN/config.json")


def test_recorded_data_are_built_again(tmp_path):
    args = {"root": str(tmp_path), "classes": ["a", "b"], "hflip": 0.25}
    data = data_from_metadata({"data": record_data("nsaug.data.Folder", args)}, {"batch_size": 7}, source="")
    assert type(data) is Folder
    assert (data.root, data.hflip, data.batch_size) == (tmp_path, 0.25, 7)
    assert type(build("digits", num_workers=0)) is Digits


def test_names_are_those_of_conf():
    """Every data set of conf/data that can be trained on is registered, under the name of its choice."""
    targets = {}
    for file in (ROOT / "conf" / "data").glob("*.yaml"):
        target = (yaml.safe_load(file.read_text()) or {}).get("_target_", "???")
        if file.read_text().find("val_fraction") > 0:
            targets[file.stem] = target
    assert targets == {name: f"nsaug.data.{cls.__qualname__}" for name, cls in DATASETS.items()}


def test_relative_paths_are_recorded_as_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorded = record_data("nsaug.data.Folder", {"root": "images", "classes": "names.txt"})
    assert recorded["args"] == {"root": f"{tmp_path}/images", "classes": f"{tmp_path}/names.txt"}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("os.system", {"command": "touch executed"}),
        ("torch.load", {"f": "evil.pt", "weights_only": False}),
        ("joblib.load", {"filename": "evil.pt"}),
        ("pandas.read_pickle", {"filepath_or_buffer": "evil.pt"}),
        ("torch.hub.load", {"repo_or_dir": ".", "source": "local", "model": "evil"}),
        ("pathlib.Path.touch", {"self": "executed"}),
        ("io.open", {"file": "executed", "mode": "w"}),
        ("urllib.request.urlopen", {"url": "http://127.0.0.1:1/${oc.env:HOME}"}),
        ("hydra.utils.instantiate", {"config": {"_target_": "os.system"}}),
        ("nsaug.data.Folder", {"root": "."}),
        ("__class__", {}),
        ("Digits", {}),
        ("digits ", {}),
    ],
)
def test_other_names_are_refused(name, args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("no network"))
    with pytest.raises(UserError, match=r"^RUN/config.json: nsaug.data.name=.* is none of cifar10, digits") as error:
        build(name, **args)
    assert f"type data=custom data._target_={name} " in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("folder", {}, "root is missing"),
        ("folder", {"root": {"_target_": "os.getcwd"}}, "root should be a valid string"),
        ("folder", {"root": ".", "_target_": "os.getcwd"}, "_target_: no such setting"),
        ("folder", {"root": ".", "_args_": ["."]}, "_args_: no such setting"),
        ("folder", {"root": ".", "classes": []}, "classes is empty"),
        ("folder", {"root": ".", "classes": ["a", "b", "a"]}, "classes a is listed twice"),
        ("digits", {"batch_size": True}, "batch_size should be a number, not true"),
        ("digits", {"batch_size": 0}, "batch_size=0 should be greater than or equal to 1"),
        ("digits", {"batch_size": 10**30}, "batch_size=1"),
        ("digits", {"hflip": float("nan")}, "hflip=nan should be a finite number"),
        ("digits", {"scale": [0.5, 0.1]}, "scale should start with the smaller number"),
        ("digits", {"crop": "${oc.env:HOME}"}, "crop='${oc.env:HOME}' should be"),
        ("cifar10", {"root": ".", "download": True}, "download is not read from a file"),
    ],
)
def test_invalid_arguments_are_refused(name, args, message):
    with pytest.raises(UserError) as error:
        build(name, **args)
    assert str(error.value).startswith(f"RUN/config.json: nsaug.data.args.{message}")
    assert "\n" not in str(error.value)


def test_arguments_that_a_class_sets_itself_are_refused():
    for name, args in (("imagenet", {"root": ".", "classes": ["a"]}), ("digits", {"self": 1})):
        with pytest.raises(UserError, match=r"^RUN/config.json: .* multiple values"):
            build(name, **args)


def test_interpolations_are_plain_text(monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    data = build("folder", root="${oc.env:SECRET}")
    with pytest.raises(UserError) as error:
        data.setup("fit")
    assert "hunter2" not in str(error.value)


def test_no_more_processes_than_cores():
    assert build("digits", num_workers=10**6).num_workers <= 8


def test_metadata_without_data():
    with pytest.raises(UserError, match=r"^RUN/config.json does not record its training data: add data="):
        data_from_metadata({}, source="RUN/config.json")


def test_lists_of_classes_in_a_file(tmp_path):
    for content, message in (
        (b"", "is empty"),
        (b"cat\ndog\ncat\n", "cat is listed twice"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
    ):
        (tmp_path / "classes.txt").write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            Folder(root=str(tmp_path), classes=str(tmp_path / "classes.txt"))
        assert str(tmp_path / "classes.txt") in str(error.value)
