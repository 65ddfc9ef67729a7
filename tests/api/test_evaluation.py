"""nsaug.evaluate: what evaluate.py does, on models and images of a program that stays as it is."""

import copy
import random

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

import nsaug
from nsaug.api.models import load_model
from nsaug.attacks import PGD
from nsaug.cli import evaluate
from nsaug.data import Digits
from nsaug.models.noisy_vit import NoisyViT
from tests.commands import run
from tests.conftest import TINY

IMAGES = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 10
PGD_SUITE = {"attacks": {"pgd": {"eps": ["8/255", "32/255"], "num_steps": 3}}, "score": {"pgd": 1}}

pytestmark = pytest.mark.usefixtures("tmp_cwd")


def loader(batch_size=8):
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=batch_size)


def make_model(seed, **options):
    torch.manual_seed(seed)
    options = {"img_size": 8, "patch_size": 2, "num_classes": 10, **TINY} | options
    return timm.create_model("vit_tiny_patch16_224", **options)


@pytest.fixture
def model():
    return make_model(0)


def top1(result, **columns):
    rows = result.table[result.table["metric"] == "top1"]
    for column, value in columns.items():
        rows = rows[rows[column] == value]
    return rows["value"].tolist()


def test_same_numbers_as_the_command(trained, monkeypatch, tmp_path):
    """On the test images of digits, with their ids, in batches of another size: results.csv is equal to the byte."""
    suite = {"suite.max_images": 100, "suite.attacks.pgd.num_steps": 2, "suite.corruptions": ["fog", "shot_noise"]}
    typed = [f"{name}={value}".replace("'", "").replace(" ", "") for name, value in suite.items()]
    own = ["tracking.wandb=off", "accelerator=cpu", f"hydra.run.dir={tmp_path}/command", "seed=2"]
    run(evaluate, monkeypatch, f"checkpoint={trained}", *typed, *own)
    data = Digits().test_dataset()
    data.setup()
    _, vit = load_model(trained)
    data.configure(vit.data_config)
    result = nsaug.evaluate(str(trained), DataLoader(data.images, batch_size=33), settings=suite, seed=2, device="cpu")
    result.save(tmp_path / "python")
    for file in ("results.csv", "groups.csv"):
        assert (tmp_path / "python" / file).read_text() == (tmp_path / "command" / file).read_text()
    assert "pgd 1/255" in repr(result)
    assert "score" in (tmp_path / "python" / "report.html").read_text()


def test_model_and_global_state_are_left_as_they_are(model, tmp_path):
    model.train()
    model.blocks[1].eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    nsaug.evaluate(model, loader(), suite=PGD_SUITE)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert [part.training for part in model.blocks] == [True, False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert list(tmp_path.iterdir()) == []


def test_accuracy_is_that_of_a_loop(model):
    """Clean, and under an attack without a random start."""
    suite = {"attacks": {"pgd": {"eps": ["32/255"], "num_steps": 3, "random_start": False}}}
    result = nsaug.evaluate(model, loader(7), suite=suite)
    vit = NoisyViT(model).eval()
    attacked = PGD(eps=32 / 255, num_steps=3, random_start=False)(vit, IMAGES, LABELS)
    with torch.no_grad():
        expected = [float((vit(images).argmax(1) == LABELS).float().mean()) for images in (IMAGES, attacked)]
    assert top1(result) == pytest.approx(expected)
    rows = result.table[result.table["metric"] == "top1"]
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()


def test_batch_sizes_of_the_loader_do_not_matter(model):
    first, second = (nsaug.evaluate(model, loader(size), suite=PGD_SUITE, seed=1).table for size in (3, 40))
    pd.testing.assert_frame_equal(first, second)


def test_max_images_takes_a_part_of_the_images(model):
    result = nsaug.evaluate(model, loader(4), suite="clean", settings={"suite.max_images": 10})
    assert set(result.table["n"]) == {10}
    assert "10 of 40 images, drawn with seed 0" in repr(result)


def test_several_models_have_paired_differences(model):
    other = make_model(1)
    result = nsaug.evaluate({"before": model, "after": other}, loader(), suite=PGD_SUITE)
    alone = nsaug.evaluate(other, loader(), suite=PGD_SUITE)
    assert list(dict.fromkeys(result.table["name"])) == ["before", "after"]
    assert top1(result, name="after") == top1(alone)
    clean = result.differences.query("benchmark == 'clean'").iloc[0]
    before, after = (top1(result, name=name, benchmark="clean")[0] for name in ("before", "after"))
    assert (clean["name"], clean["other"]) == ("after", "before")
    assert clean["difference"] == pytest.approx(after - before)
    assert alone.differences.empty
    assert "| before | after |" in result._repr_markdown_()


def test_an_interrupted_evaluation_continues_from_its_cache(model, tmp_path):
    settings = {"cache": str(tmp_path / "cache")}
    first = nsaug.evaluate(model, loader(), suite=PGD_SUITE, settings=settings)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npz")}
    second = nsaug.evaluate(model, loader(), suite=PGD_SUITE, settings=settings)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npz")}
    pd.testing.assert_frame_equal(first.table, second.table)


@pytest.mark.parametrize("cached", [False, True])
def test_models_with_the_same_weights_that_compute_something_else(model, tmp_path, cached):
    """Another number of heads, and a hook; the one with another name computes the same."""
    heads, hooked = make_model(0, num_heads=1), copy.deepcopy(model)
    hooked.head.register_forward_hook(lambda module, args, output: output.roll(1, 1))
    models = {"model": model, "heads": heads, "hooked": hooked, "same": copy.deepcopy(model)}
    settings = {"cache": tmp_path / "cache"} if cached else {}

    def loss(result):
        return result.table.query("metric == 'nll'").set_index("name")["value"]

    if cached:
        alone = {name: loss(nsaug.evaluate({name: it}, loader(), suite="clean", settings=settings))[name]
                 for name, it in models.items()}  # fmt: skip
    else:
        alone = loss(nsaug.evaluate(models, loader(), suite="clean"))
    assert alone["model"] == alone["same"]
    for name in ("model", "heads", "hooked"):
        with torch.no_grad():
            logits = NoisyViT(copy.deepcopy(models[name])).eval()(IMAGES)
        assert alone[name] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, LABELS)), rel=1e-5)


def test_a_failed_benchmark_is_named_and_the_others_stay(model):
    suite = PGD_SUITE | {"analyses": {"radius": {"num_images": 20, "num_noises": 1, "layer": "blocks.7"}}}
    result = nsaug.evaluate(model, loader(), suite=suite)
    (line,) = result.failures
    assert line.startswith("vit_tiny_patch16_224: radius failed: VisionTransformer takes no noise at blocks.7")
    assert line in repr(result)
    assert len(top1(result)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "quik"}, "suite=quik: no such choice; suite is one of attacks, cifar10,"),
        ({"suite": 3}, "suite is a int: pass a name, such as 'quick', or a dict"),
        ({"suite": {"attack": {}}}, "suite.attack: no such setting; did you mean suite.attacks?"),
        ({"suite": {"attacks": {"pgd": {"epz": 1}}}}, "suite.attacks.pgd.epz: no such setting; did you mean suite.att"),
        ({"settings": {"suite.attacks.pgd.epz": 1}}, "suite.attacks.pgd.epz: no such setting; did you mean suite.att"),
        ({"settings": {"batch_size": 0}}, "batch_size=0: should be greater than or equal to 1"),
        ({"settings": {"suite": "clean"}}, "settings: suite is not a setting of nsaug.evaluate: type suite=..."),
        ({"settings": {"split": "val"}}, "settings of nsaug.evaluate: split: no such setting; did you mean suite?"),
        ({"seed": True}, "seed=True: should be a valid integer"),
        ({"loader": []}, "loader is empty"),
        ({"loader": [(IMAGES, LABELS + 1)]}, "loader yields the label 10, and the model has the classes 0 to 9"),
        ({"model": {}}, 'model: name the models, such as {"before": model, "after": tuned.model}'),
        ({"suite": {"class_subsets": ["imagenet_a"]}}, "clean_imagenet_a restricts predictions to classes up to"),
    ],
)
def test_mistakes_are_one_line(model, arguments, message):
    arguments = {"model": model, "loader": loader()} | arguments
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the message is compared below)
        nsaug.evaluate(arguments.pop("model"), arguments.pop("loader"), **arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_models_of_different_formats_are_refused(model):
    with pytest.raises(ValueError, match="a and b differ in the size of their images"):
        nsaug.evaluate({"a": model, "b": make_model(0, num_classes=9)}, loader())
