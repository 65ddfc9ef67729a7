"""The model card: front matter, facts, results of several evaluations, code that runs."""

import json
import re

import pytest
import timm
import torch
import yaml
from PIL import Image

from nsaug.cli import evaluate, train
from nsaug.evaluation.models import find_models
from nsaug.models.factory import build_vit
from nsaug.models.model_card import NO_RESULTS, add_results, find_base, render_card
from nsaug.models.run_config import CONFIG, read_run_config
from tests.commands import FAST, SHORT, run

SMALL = ["suite=clean", "suite.max_images=20", "accelerator=cpu"]


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def sections(folder):
    return re.findall(r"^### (.*)$", (folder / "README.md").read_text(), flags=re.MULTILINE)


@pytest.fixture
def config(tmp_path):
    """Content of a config.json, to be changed, and rendered by `card`."""
    return {"architecture": "vit_tiny_patch16_224", "nsaug": {"name": "n", "method": "pgd", "seed": 3}}


def card(config, tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps(config))
    return render_card(read_run_config(tmp_path / CONFIG))


def test_license_of_the_base_weights(config, tmp_path):
    for name, license, lines in (
        ("vit_base_patch16_224.mae", "cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}),
        (
            "vit_small_patch16_dinov3",
            "dinov3-license",
            {"license": "other", "license_name": "dinov3-license"},
        ),
    ):
        config["nsaug"]["base"] = base = find_base({"name": name, "pretrained": True}, None)
        assert base["license"] == license
        text = card(config, tmp_path)
        assert lines.items() <= front_matter(text).items()
        assert front_matter(text)["base_model"] == base["name"] == timm.get_pretrained_cfg(name).hf_hub_id
        assert f"have the license {license}." in text
    assert find_base({"name": "vit_tiny_patch16_224", "pretrained": False}, None) is None
    unknown = find_base({"name": "my_model", "pretrained": True}, None)
    assert unknown == {"name": None, "license": None}
    for base, reason in ((unknown, "The license of the base weights is not known"), (None, "The model was trained")):
        config["nsaug"]["base"] = base
        text = card(config, tmp_path)
        assert not {"license", "base_model"} & front_matter(text).keys()
        assert front_matter(text)["library_name"] == "timm"
        assert re.search(rf"{reason}.*Replace this sentence by the license", text)


def test_names_have_no_meaning_in_markdown(config, tmp_path):
    config["nsaug"] |= {"name": "<script>|`$x$`", "class_names": ["[a](b)", "|", "c", "d"]}
    config["nsaug"]["data"] = {"name": "folder", "args": {}}
    text = card(config, tmp_path)
    assert "# &lt;script&gt;\\|\\`\\$x\\$\\`\n" in text
    assert "4 classes: \\[a\\](b), \\|, c, d |" in text


def test_code_of_the_card_loads_the_model(trained):
    text = (trained / "README.md").read_text()
    names = {"image": Image.new("RGB", (9, 12)), "images": torch.rand(2, 3, 8, 8)}
    ((model,), _) = find_models(str(trained), None)
    vit = build_vit(**model.build_args()).eval()
    with torch.no_grad():
        for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            exec(code.replace("hf-hub:USER/NAME", f"local-dir:{trained}"), names)
            if "vit" not in names:
                assert names["logits"].shape == (1, 10)
        assert torch.equal(names["logits"], vit(names["images"]))
    assert "| method | nullspace (noise.eps=0.3," in text
    assert "| data | digits, 1,310 training images, 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |" in text


def test_evaluations_update_their_own_results(trained, monkeypatch, tmp_path):
    def evaluated(*more):
        run(evaluate, monkeypatch, f"checkpoint={trained}", *SMALL, f"hydra.run.dir={tmp_path}/eval", *more)
        return (trained / "README.md").read_text()

    before = (trained / "README.md").read_text()
    assert NO_RESULTS in before
    once = evaluated()
    assert NO_RESULTS not in once
    assert re.search(r"^\| clean \| [\d.]+ \[[\d.]+, [\d.]+\] \|$", once, flags=re.MULTILINE)
    assert once.split("### ")[0] == before.split(NO_RESULTS)[0].rstrip() + "\n\n"
    assert once.endswith(before.split(NO_RESULTS)[1])
    evaluated("split=val")
    again = evaluated("suite.max_images=30")
    assert sections(trained) == ["suite clean, test images of digits", "suite clean, val images of digits"]
    assert "30 test images" in again
    assert "20 test images" not in again

    run(train, monkeypatch, f"resume={trained}")  # the same weights
    assert (trained / "README.md").read_text() == again
    run(train, monkeypatch, f"resume={trained}", "trainer.max_epochs=2")
    assert NO_RESULTS in (trained / "README.md").read_text()


def test_card_that_cannot_be_updated(trained, monkeypatch, tmp_path, capsys):
    def evaluated(*more):
        run(evaluate, monkeypatch, f"checkpoint={trained}", *SMALL, f"hydra.run.dir={tmp_path}/eval", *more)
        return capsys.readouterr().out

    readme = trained / "README.md"
    readme.write_text("my own\n")
    evaluated()
    assert readme.read_text() == "my own\n"
    assert not add_results(tmp_path, "title", "text")
    readme.unlink()
    evaluated()
    assert not readme.exists()
    run(train, monkeypatch, f"resume={trained}")

    def fail(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("nsaug.models.model_card.atomic_write", fail)
    assert f"{readme} does not get these results: [Errno 30] Read-only file system" in evaluated()


def test_run_from_a_run_names_the_base_of_both(trained, monkeypatch, tmp_path):
    config = json.loads((trained / CONFIG).read_text())
    config["nsaug"]["base"] = {"name": "timm/a.b", "license": "mit"}
    (trained / CONFIG).write_text(json.dumps(config))
    settings = [*FAST, *SHORT, "method=clean", f"checkpoint={trained}", f"hydra.run.dir={tmp_path}/second"]
    run(train, monkeypatch, *settings)
    text = (tmp_path / "second" / "README.md").read_text()
    assert "| started from | nullspace, itself from timm/a.b |" in text
    assert front_matter(text)["license"] == "mit"
