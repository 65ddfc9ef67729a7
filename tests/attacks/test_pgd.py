"""Own PGD against foolbox's on trained models, at the same budget, over five seeds."""

import io
import tarfile

import foolbox
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import to_tensor

from nsaug.attacks import PGD, PGDL2
from nsaug.cli import train
from nsaug.data import Digits
from nsaug.data.sources.cifar10 import CLASSES
from nsaug.evaluation import find_models
from nsaug.models.factory import build_vit
from nsaug.utils.rng import make_generator
from tests.commands import FAST, run
from tests.conftest import SHARED

STEPS = 10


def robust_accuracies(vit, images, labels, kind, library, eps):
    """Of each seed: under own PGD, and under the library's."""
    bounded = foolbox.PyTorchModel(vit, bounds=(0, 1), device="cpu")
    stands = []
    for seed in range(5):
        torch.manual_seed(seed)
        found = kind(eps=eps, num_steps=STEPS)(vit, images, labels, make_generator("cpu", seed))
        other = library(abs_stepsize=2.5 * eps / STEPS, steps=STEPS)(bounded, images, labels, epsilons=eps)[1]
        with torch.no_grad():
            stands.append([float((vit(each).argmax(1) == labels).float().mean()) for each in (found, other)])
    return torch.tensor(stands).T


def is_no_weaker(ours, theirs, clean, count):
    """No higher than the library's mean plus one standard error, or plus one image where seeds hardly differ."""
    print(f"clean {clean:.4f}, own PGD {ours.mean():.4f}, the library's {theirs.mean():.4f} over 5 seeds")
    assert ours.mean() <= theirs.mean() + max(theirs.std() / len(theirs) ** 0.5, 1 / count)
    assert ours.mean() < clean - 0.1, "it attacks"


@pytest.mark.parametrize(
    ("kind", "library", "eps"),
    [(PGD, foolbox.attacks.LinfPGD, 8 / 255), (PGDL2, foolbox.attacks.L2PGD, 0.3)],
    ids=["linf", "l2"],
)
def test_on_digits(monkeypatch, tmp_path, elsewhere, kind, library, eps):
    run(train, monkeypatch, *FAST, "method=clean", "trainer.max_epochs=12", f"hydra.run.dir={tmp_path}/run")
    vit = build_vit(**find_models(f"{tmp_path}/run", None)[0].model()).eval()
    data = Digits().test_dataset()
    data.setup("test")
    data.configure(vit.data_config)
    images = torch.stack([image for image, _, _ in data.images])
    labels = torch.tensor(data.images.labels)
    ours, theirs = robust_accuracies(vit, images, labels, kind, library, eps)
    clean = (vit(images).argmax(1) == labels).float().mean()
    assert clean > 0.7, "an untrained model says nothing of an attack"
    is_no_weaker(ours, theirs, clean, len(images))


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cifar10_vit.safetensors").is_file(), reason=f"no CIFAR-10 model at {SHARED}")
def test_on_cifar10():
    """100 test images, and the model of cifar10_vit.md."""
    vit = build_vit(
        "vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=4, mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616), args={"embed_dim": 128, "depth": 6, "num_heads": 4},
    ).eval()  # fmt: skip
    vit.load_state_dict(load_file(SHARED / "cifar10_vit.safetensors"))
    images, labels, seen = [], [], 0
    with tarfile.open(SHARED / "cifar10.tar.xz") as tar:
        for member in tar:
            if member.isfile() and "/val/" in member.name:
                if seen % 50 == 0:
                    images.append(to_tensor(Image.open(io.BytesIO(tar.extractfile(member).read()))))
                    labels.append(CLASSES.index(member.name.split("/")[-2]))
                seen += 1
    images, labels = torch.stack(images), torch.tensor(labels)
    clean = (vit(images).argmax(1) == labels).float().mean()
    assert clean > 0.6, "the model is the one that it is said to be"
    ours, theirs = robust_accuracies(vit, images, labels, PGD, foolbox.attacks.LinfPGD, 1 / 255)
    is_no_weaker(ours, theirs, clean, len(images))
