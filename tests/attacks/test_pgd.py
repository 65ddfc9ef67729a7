"""PGD in both balls: random start, restarts, and its strength against foolbox's on trained models over five seeds."""

import io
import tarfile

import foolbox
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import to_tensor

from nsaug.attacks import PGD, PGDL2
from nsaug.attacks.objectives import margin
from nsaug.cli import train
from nsaug.data import Digits
from nsaug.data.names import CIFAR10_CLASSES
from nsaug.evaluation import find_models
from nsaug.models.factory import build_vit
from nsaug.utils.rng import make_generator
from tests.commands import FAST, run
from tests.conftest import SHARED

NUM_STEPS = 10


@pytest.mark.parametrize("attack", [PGD, PGDL2])
def test_restarts_keep_the_worst_attempt(vit, images, labels, attack):
    vit.eval()
    generator = make_generator("cpu", 0)
    single = attack(eps=0.02, num_steps=1)
    attempts = [single(vit, images, labels, generator) for _ in range(5)]
    margins = torch.stack([margin(vit(attempt), labels) for attempt in attempts]).detach()
    worst = attack(eps=0.02, num_steps=1, restarts=5)(vit, images, labels, make_generator("cpu", 0))
    torch.testing.assert_close(margin(vit(worst), labels).detach(), margins.amax(0))
    assert (margins.amax(0) > margins[0]).any()


def test_random_init_depends_on_the_generator(vit, images, labels):
    attack = PGD(eps="8/255", num_steps=0)
    first, second, other = (attack(vit, images, labels, make_generator("cpu", key)) for key in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert (first - images).abs().max() > 7 / 255


def test_random_init_is_uniform_in_the_l2_ball():
    """In d dimensions the d-th power of the distance is uniform."""
    images = torch.full((4000, 3, 1, 1), 0.5)
    start = PGDL2(eps=0.3).random_init(images, make_generator("cpu", 0))
    volume = ((start - images).flatten(1).norm(dim=1) / 0.3) ** 3
    assert abs(float(volume.mean()) - 0.5) < 0.02
    assert abs(float(volume.var()) - 1 / 12) < 0.01
    assert abs(float((start - images).mean())) < 0.01


def accuracies_over_seeds(vit, images, labels, attack, reference, eps):
    """Accuracy under our attack and under foolbox's, (2, 5)."""
    model = foolbox.PyTorchModel(vit, bounds=(0, 1), device="cpu")
    accuracies = []
    for seed in range(5):
        torch.manual_seed(seed)
        ours = attack(eps=eps, num_steps=NUM_STEPS)(vit, images, labels, make_generator("cpu", seed))
        theirs = reference(abs_stepsize=2.5 * eps / NUM_STEPS, steps=NUM_STEPS)(model, images, labels, epsilons=eps)[1]
        accuracies.append([accuracy(vit, ours, labels), accuracy(vit, theirs, labels)])
    return torch.tensor(accuracies).T


@torch.no_grad()
def accuracy(vit, images, labels):
    return float((vit(images).argmax(1) == labels).float().mean())


def assert_no_weaker(ours, theirs, clean, num_images):
    """Our mean accuracy is at most foolbox's plus one standard error, or plus one image where seeds hardly differ."""
    print(f"clean {clean:.4f}, our PGD {ours.mean():.4f}, foolbox's {theirs.mean():.4f} over 5 seeds")
    assert ours.mean() <= theirs.mean() + max(theirs.std() / len(theirs) ** 0.5, 1 / num_images)
    assert ours.mean() < clean - 0.1


@pytest.fixture(scope="module")
def digits_vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        run(train, monkeypatch, *FAST, "method=clean", "trainer.max_epochs=12", f"hydra.run.dir={folder}/run")
    (model,), _ = find_models(f"{folder}/run", None)
    return build_vit(**model.build_args()).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "reference", "eps"),
    [(PGD, foolbox.attacks.LinfPGD, 8 / 255), (PGDL2, foolbox.attacks.L2PGD, 0.3)],
    ids=["linf", "l2"],
)
def test_no_weaker_than_foolbox_on_digits(digits_vit, attack, reference, eps):
    data = Digits().test_dataset()
    data.setup("test")
    data.configure(digits_vit.data_config)
    images = torch.stack([image for image, _, _ in data.images])
    labels = torch.tensor(data.images.labels)
    ours, theirs = accuracies_over_seeds(digits_vit, images, labels, attack, reference, eps)
    clean = accuracy(digits_vit, images, labels)
    assert clean > 0.7
    assert_no_weaker(ours, theirs, clean, len(images))


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cifar10_vit.safetensors").is_file(), reason=f"no CIFAR-10 model at {SHARED}")
def test_no_weaker_than_foolbox_on_cifar10():
    """On 100 test images, with the model of cifar10_vit.md."""
    vit = build_vit(
        "vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=4, mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616), args={"embed_dim": 128, "depth": 6, "num_heads": 4},
    ).eval()  # fmt: skip
    vit.load_state_dict(load_file(SHARED / "cifar10_vit.safetensors"))
    images, labels, index = [], [], 0
    with tarfile.open(SHARED / "cifar10.tar.xz") as tar:
        for member in tar:
            if member.isfile() and "/val/" in member.name:
                if index % 50 == 0:
                    images.append(to_tensor(Image.open(io.BytesIO(tar.extractfile(member).read()))))
                    labels.append(CIFAR10_CLASSES.index(member.name.split("/")[-2]))
                index += 1
    images, labels = torch.stack(images), torch.tensor(labels)
    clean = accuracy(vit, images, labels)
    assert clean > 0.6, "these are not the weights of cifar10_vit.md"
    ours, theirs = accuracies_over_seeds(vit, images, labels, PGD, foolbox.attacks.LinfPGD, 1 / 255)
    assert_no_weaker(ours, theirs, clean, len(images))
