"""nsaug-push, with a stand-in for the hub's API."""

import json

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from nsaug.cli import push
from nsaug.models.weights import read_config
from tests.commands import cli_error, run


class Api:
    """Records what is created and uploaded; `error` is raised instead."""

    def __init__(self):
        self.repos, self.files, self.error = [], {}, None

    def create_repo(self, repo, *, private, exist_ok):
        assert exist_ok
        if self.error:
            raise self.error
        self.repos.append((repo, private))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo}")

    def create_commit(self, repo, operations, *, commit_message):
        assert not self.files
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()


@pytest.fixture
def api(monkeypatch):
    api = Api()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    return api


def test_model_is_uploaded(api, trained, monkeypatch, tmp_path, capsys):
    config = json.loads((trained / "config.json").read_text())
    for args in (config["nsaug"]["data"]["args"], config["nsaug"]["settings"]["data"]):
        args["root"] = "/home/me/images"
    (trained / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    run(push, monkeypatch, f"checkpoint={trained}", "repo=me/my-vit")
    assert capsys.readouterr().out == "https://huggingface.co/me/my-vit\n"
    assert api.repos == [("me/my-vit", True)]
    assert sorted(api.files) == ["README.md", "config.json", "model.safetensors"]
    assert api.files["model.safetensors"] == (trained / "model.safetensors").read_bytes()
    card = api.files["README.md"].decode()
    assert 'create_model("hf-hub:me/my-vit"' in card
    assert "USER/NAME" not in card
    assert "USER/NAME" in (trained / "README.md").read_text()

    uploaded = api.files["config.json"].decode()
    assert "/home/me" not in uploaded
    assert not {"command", "wandb"} & json.loads(uploaded)["nsaug"].keys()
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    for name, content in api.files.items():
        (downloaded / name).write_bytes(content)
    for key in ("command", "wandb"):
        del config["nsaug"][key]
    for args in (config["nsaug"]["data"]["args"], config["nsaug"]["settings"]["data"]):
        del args["root"]
    assert read_config(downloaded)["nsaug"] == config["nsaug"]


def test_card_that_is_missing_is_written(api, trained, monkeypatch):
    card = (trained / "README.md").read_text()
    (trained / "README.md").unlink()
    run(push, monkeypatch, f"checkpoint={trained}", "repo=me/vit", "private=false")
    assert api.repos == [("me/vit", False)]
    assert api.files["README.md"].decode() == card.replace("USER/NAME", "me/vit")


def test_errors_are_one_line(api, trained, monkeypatch, tmp_path, capsys):
    def error(*arguments):
        return cli_error(push, monkeypatch, capsys, *arguments)

    here = f"checkpoint={trained}"
    for arguments, message in (
        ([here], "repo lacks a value: type nsaug-push checkpoint=FOLDER repo=USER/NAME"),
        ([here, "repo=me/vit", "privat=true"], "privat: no such setting; did you mean private?"),
        ([here, "repo=me/vit", "private=maybe"], "private=maybe: should be a valid boolean"),
        ([here, "--repo", "me/vit"], "--repo: type name=value, as in nsaug-push checkpoint=FOLDER repo=USER/NAME"),
        ([here, "repo=vit"], "repo=vit: type repo=USER/vit, with your name on the hub"),
        ([here, "repo=me/a/b"], "repo=me/a/b: Repo id must be in the form"),
        ([here, "repo=me/-x"], "repo=me/-x: Repo id must use alphanumeric chars"),
        ([f"checkpoint={tmp_path}/nowhere", "repo=me/vit"], f"checkpoint={tmp_path}/nowhere is not a folder: "),
        ([f"checkpoint={tmp_path}", "repo=me/vit"], f"checkpoint={tmp_path} has no model.safetensors: "),
    ):
        assert error(*arguments).startswith(f"error: {message}")
    api.error = httpx.ConnectError("[Errno -3] Temporary failure in name resolution")
    assert error(here, "repo=me/vit") == f"error: repo=me/vit: the hub cannot be reached ({api.error})"
    response = httpx.Response(403, request=httpx.Request("POST", "https://huggingface.co"))
    api.error = HfHubHTTPError("403 Forbidden: no rights\nin me", response=response, server_message="no rights")
    assert error(here, "repo=me/vit") == "error: repo=me/vit: the hub refused the upload (no rights)"
    assert (api.repos, api.files) == ([], {})
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert error(here, "repo=me/vit").startswith("error: no token of the Hugging Face hub is stored: ")
    (trained / "config.json").unlink()
    assert error(here, "repo=me/vit").startswith(f"error: {here} has no config.json of nsaug: ")


def test_help(monkeypatch, capsys):
    run(push, monkeypatch, "--help")
    assert "nsaug-push checkpoint=FOLDER repo=USER/NAME" in capsys.readouterr().out
