"""Shared fixtures: small models, trained runs, and real images where they are available."""

import logging
import os
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.layers import PatchEmbed
from torch import nn

# Before huggingface_hub or wandb are imported: tests use neither network nor account.
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_SILENT": "true"}
os.environ.pop("WANDB_API_KEY", None)

from nsaug.cli import train
from nsaug.data.sources.imagenet import wnids
from nsaug.models.factory import build_vit
from nsaug.models.noisy_vit import NoisyViT
from tests.commands import FAST, run

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("NSAUG_SHARED", ROOT / ".." / "shared")) / "data"
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def tiny_vit(**kwargs) -> NoisyViT:
    """A ViT for 8 x 8 images with 16 tokens of width 24, fast enough for float64."""
    torch.manual_seed(0)
    options = {"num_classes": 10, "img_size": 8, "patch_size": 2, "args": TINY} | kwargs
    vit = build_vit("vit_tiny_patch16_224", **options)
    with torch.no_grad():  # the predictions of timm's initialization hardly depend on the image or the noise
        for parameter in vit.model.parameters():
            if parameter.dim() == 2 and not options.get("checkpoint"):
                parameter.normal_(std=0.3)
    return vit


class Linear(nn.Module):
    """A patch embedding and a linear head: every method has a closed form."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(img_size=8, patch_size=4, in_chans=3, embed_dim=5)
        self.head = nn.Linear(4 * 5, num_classes)
        self.num_classes = num_classes
        config = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "crop_pct": 1.0, "interpolation": "bicubic"}
        self.pretrained_cfg = {"input_size": (3, 8, 8), **config}

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.patch_embed(images).flatten(1))


def linear_vit() -> NoisyViT:
    """A linear model with two classes, in float64."""
    torch.manual_seed(0)
    return NoisyViT(Linear(2)).double()


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory) -> Iterator[None]:
    """Keep fingerprints of images out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def vit() -> NoisyViT:
    return tiny_vit().double()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(10, (6,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory) -> Path:
    """train/ and val/ with real images of 12 classes, not the first 12."""
    archive = SHARED / "imagenet_sample.tar"
    if not archive.is_file():
        pytest.skip(f"no real ImageNet images at {archive} (set NSAUG_SHARED)")
    root = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)[500:1000:42]
        for member in members:
            wnid, name = Path(member.name).parts[-2:]
            content = tar.extractfile(member).read()
            for split in ("train", "val"):
                for copy in range(2):
                    path = root / split / wnid / f"{copy}_{name}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
    return root


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> dict[int, Path]:
    """Real images by class index, one for each of 1,000 classes."""
    archive = SHARED / "imagenet_sample.tar"
    if not archive.is_file():
        pytest.skip(f"no real ImageNet images at {archive} (set NSAUG_SHARED)")
    root = tmp_path_factory.mktemp("sample")
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    return {wnids().index(path.parent.name): path for path in root.rglob("*.JPEG")}


def place(source: Path, *targets: Path, size: int | None = None) -> None:
    """Copy an image to the target paths, resized to a square if `size` is given."""
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        if size is None:
            shutil.copy(source, target)
        else:
            with Image.open(source) as image:
                image.convert("RGB").resize((size, size)).save(target, quality=95)


@pytest.fixture
def tmp_cwd(monkeypatch, tmp_path):
    """Run in a temporary working directory, where evaluate.py puts its cache."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def restored_log_handlers(monkeypatch):
    """A command logs to the standard output of its test, which the next test does not have."""
    monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers])


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    """The output folder of the default command after one epoch; its name is relative, so that it can be moved."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers])
        monkeypatch.chdir(folder)
        run(train, monkeypatch, *FAST, "trainer.max_epochs=1", "hydra.run.dir=run")
    return folder / "run"


@pytest.fixture
def trained(trained_once, tmp_path, tmp_cwd):
    """A copy of `trained_once` that a test may change."""
    return Path(shutil.copytree(trained_once, tmp_path / "run"))


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM: a command that a signal has ended keeps its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
