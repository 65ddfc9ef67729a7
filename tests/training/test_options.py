"""Every training option with every method, for one optimizer step."""

import json

import pytest
import timm
import torch

from nsaug.cli import train
from nsaug.models import weights
from tests.commands import metrics, run

METHODS = {
    "clean": [],
    "clean_same_compute": [],
    "clean_two_views": [],
    "nullspace": [],
    "nullspace_per_batch": ["method=nullspace", "nullspace=per_batch"],
    "nullspace_universal": ["method=nullspace", "nullspace=universal"],
    "nullspace_variants": [
        "method=nullspace", "nullspace.layer=blocks.1", "nullspace.init_scale=1",
    ],
    "random_noise": [],
    "random_noise_per_batch": ["method=random_noise", "nullspace=per_batch"],
    "random_noise_universal": ["method=random_noise", "nullspace=universal"],
    "random_noise_influence": ["method=random_noise", "method.noise.match=influence"],
    "random_noise_init": ["method=random_noise", "method.noise.match=init"],
    "pgd": [],
    "fgsm_rs": [],
    "trades": [],
    "embedding_pgd": [],
    "freelb": [],
    "smart": [],
    "r3f": [],
    "gaussian_noise": [],
    "augmix_loss": ["method=augmix"],
}  # fmt: skip
TRAINED = {  # prefixes of the weights that an option trains; all for other options
    "trainable=head": ("head.",),
    "trainable=last_1": ("blocks.2.", "fc_norm.", "head."),
}
OPTIONS = {
    "ema": ["ema=0.9"],
    "layer_decay": ["optim.layer_decay=0.7"],
    "drop_path": ["model.drop_path_rate=0.2"],
    "accumulation": ["trainer.accumulate_grad_batches=2"],
    "trainable=head": ["trainable=head"],
    "trainable=last_1": ["trainable=last_1"],
    "label_smoothing": ["mixup.label_smoothing=0.1"],
    "mixup": ["mixup.mixup_alpha=0.8"],
    "cutmix": ["mixup.cutmix_alpha=1.0"],
    "randaugment": ["data.auto_augment=rand-m9-mstd0.5-inc1"],
    "augmix": ["data.auto_augment=augmix-m3-w3"],
}
ONE_STEP = [
    "trainer=cpu", "trainer.enable_progress_bar=false", "logger=none", "val_attack_batches=0", "data.batch_size=8",
    "data.val_fraction=0", "trainer.max_steps=1", "nullspace.eps=1e-6", "method.attack.num_steps=2",
]  # fmt: skip


def one_step(monkeypatch, folder, method, *options):
    choices = METHODS[method] or [f"method={method}"]
    attacks = method in ("pgd", "trades")
    settings = [option for option in ONE_STEP if attacks or not option.startswith("method.")]
    run(train, monkeypatch, *choices, *settings, *options, f"hydra.run.dir={folder}")
    return timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The initial weights of all runs."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("start")
        return one_step(monkeypatch, folder, "clean", "optim.lr=1e-30", "optim.weight_decay=0")


PAIRS = [(method, option) for method in METHODS for option in OPTIONS]
"""Every fifth is in the fast tests: each method with two or three options, each option with four or five methods."""


@pytest.mark.parametrize(
    ("method", "option"),
    [pytest.param(*pair, marks=[] if index % 5 == 0 else [pytest.mark.slow]) for index, pair in enumerate(PAIRS)],
)
def test_options_compose_with_methods(monkeypatch, tmp_path, start, method, option):
    after = one_step(monkeypatch, tmp_path, method, *OPTIONS[option])
    for name, value in after.items():
        assert value.isfinite().all(), name
        trained = name.startswith(TRAINED.get(option, ""))
        assert bool((value - start[name]).abs().max() > 1e-20) == trained, name


def test_ema_weights_are_exported(monkeypatch, tmp_path, start):
    """With a decay of almost 1 the average stays at the weights after the first step, where it starts."""
    first = one_step(monkeypatch, tmp_path / "first", "nullspace")
    kept = one_step(monkeypatch, tmp_path / "kept", "nullspace", "ema=0.9999999", "trainer.max_steps=4")
    last = one_step(monkeypatch, tmp_path / "last", "nullspace", "trainer.max_steps=4")
    for name, value in first.items():
        torch.testing.assert_close(kept[name], value, atol=1e-5, rtol=0)
    assert max(float((last[name] - value).abs().max()) for name, value in first.items()) > 1e-3
    checkpoint = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["vit.head.weight"], kept["head.weight"])
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["nsaug"]["settings"]["ema"] == 0.9999999


def test_ema_copies_index_buffers(monkeypatch, tmp_path):
    """Swin has integer buffers; averaged, they would be rounded to other indices."""
    models, save = [], weights.save_config

    def keep_model(folder, vit, metadata):
        models.append(vit.model)
        save(folder, vit, metadata)

    monkeypatch.setattr(weights, "save_config", keep_model)
    args = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2}
    swin = ["model=timm", "model.name=swin_tiny_patch4_window7_224", "model.pretrained=false", "data=digits",
            "model.img_size=32", f"model.args={args}".replace("'", ""), "trainer.max_steps=6"]  # fmt: skip
    run(train, monkeypatch, "method=clean", *ONE_STEP[:-2], *swin, "ema=0.9", f"hydra.run.dir={tmp_path}")
    fresh = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, num_classes=10, **args)
    buffers = dict(models[0].named_buffers())
    assert any(not value.is_floating_point() for value in buffers.values())
    for name, value in fresh.named_buffers():
        assert torch.equal(buffers[name], value), name


def test_clean_same_compute_trains_longer(monkeypatch, tmp_path):
    """A step with K = 3 costs four plain ones, so two epochs become eight."""
    quick = ["logger=csv", "logger.num_images=0", "trainer.max_steps=-1", "trainer.max_epochs=2", "data.batch_size=512"]
    one_step(monkeypatch, tmp_path, "clean_same_compute", *quick, "data.val_fraction=0.1")
    assert {row["epoch"] for row in metrics(tmp_path) if row["val/top1"]} == {str(epoch) for epoch in range(8)}
