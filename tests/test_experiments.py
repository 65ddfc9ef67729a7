"""The experiments for ImageNet and for a user's own images."""

import pytest
import timm
from omegaconf import DictConfig

from nsaug.cli import train
from nsaug.cli.compose import compose
from tests.commands import FAST, run
from tests.conftest import SHARED

CHECKPOINT = SHARED / "vit_tiny_patch16_224.safetensors"


def composed(*overrides: str) -> DictConfig:
    return compose("train", overrides)


@pytest.mark.parametrize(
    ("model", "name", "batch_size"),
    [
        ("vit_ti", "vit_tiny_patch16_224", 128),
        ("vit_s", "vit_small_patch16_224", 128),
        ("vit_b", "vit_base_patch16_224", 64),
        ("vit_l", "vit_large_patch16_224", 16),
    ],
)
def test_imagenet_has_the_settings_of_the_paper(model, name, batch_size):
    cfg = composed("experiment=imagenet", f"model={model}")
    train.check_settings(cfg)
    assert cfg.model.name.startswith(f"{name}.")
    assert (cfg.data.batch_size, cfg.data.crop, cfg.data.hflip) == (batch_size, "resized", 0.5)
    assert (cfg.trainer.max_epochs, cfg.optim.lr, cfg.optim.weight_decay, cfg.optim.warmup) == (10, 1e-4, 1e-4, 0)
    assert cfg.nullspace.eps == 0.03
    assert cfg.nullspace["_target_"] == composed("nullspace=universal").nullspace["_target_"]
    assert composed("experiment=imagenet", f"model={model}", "data.batch_size=8").data.batch_size == 8


def test_imagenet_starts_with_vit_s():
    assert composed("experiment=imagenet") == composed("experiment=imagenet", "model=vit_s")


@pytest.mark.parametrize("overrides", [(), ("model=vit_l",), ("model=timm", "model.name=deit_tiny_patch16_224")])
def test_finetune_reads_a_folder(overrides):
    cfg = composed("experiment=finetune", "data.root=/my/images", *overrides)
    train.check_settings(cfg)
    assert (cfg.data["_target_"], cfg.data.root, cfg.data.batch_size) == ("nsaug.data.Folder", "/my/images", 32)
    assert (cfg.optim.lr, cfg.trainer.max_epochs, cfg.model.pretrained) == (1e-4, 5, True)
    assert cfg.attack.eps == "0.5/255"
    assert cfg.nullspace == composed().nullspace


@pytest.mark.slow
@pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"no weights at {CHECKPOINT} (set NSAUG_SHARED)")
def test_finetune_trains_from_a_local_checkpoint(monkeypatch, tmp_path, imagenet):
    run(
        train, monkeypatch, *FAST, "experiment=finetune", f"data.root={imagenet}", f"checkpoint={CHECKPOINT}",
        "model=vit_ti", "model.pretrained=false", "data.batch_size=4", "data.num_workers=0", "data.val_fraction=0.3",
        "trainer.max_steps=2",
        f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 12


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vit_s", "vit_b", "vit_l"])
def test_imagenet_trains_on_real_images(monkeypatch, tmp_path, imagenet, model):
    run(
        train, monkeypatch, *FAST, "experiment=imagenet", f"model={model}", "trainer.max_steps=2",
        "nullspace.num_passes=1", f"data.root={imagenet}", "data.batch_size=2", "data.val_fraction=0.3",
        "model.pretrained=false", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 1000
