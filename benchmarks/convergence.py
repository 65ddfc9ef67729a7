"""How much of the noise is ε-approximate nullspace noise: influence before and after the Newton steps, on real models.

    python benchmarks/convergence.py                      all models, over eps, init_scale and num_steps
    python benchmarks/convergence.py --models vit_ti      one of vit_ti, cifar10, digits
    python benchmarks/convergence.py --check              the default settings alone; exits 1 below the bar

Models and images: ViT-Ti/16 (AugReg) on imagenette's validation images, a ViT of 1.2 M parameters on CIFAR-10's (both
from ../shared/data, or NSAUG_SHARED), and a ViT of 87,000 parameters that is trained on digits here, in seconds.

Columns: fraction of the images whose noise is below eps, mean influence, agreement of the predicted class with that
without noise, each at the start and at the end; root mean square of the noise at the end in multiples of rms(u).

Bar, at the default init_scale and num_steps, for every eps: at least 90 % of the noises end below eps, and the mean
influence does not end above the larger of eps and its start.
"""

import argparse
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nsaug.data import CIFAR10, Digits, Folder, ImageDataModule
from nsaug.models.factory import build_vit
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace import NullspaceNoise, embedding_rms, synthesize
from nsaug.nullspace.noise import root_mean_square
from nsaug.utils.rng import make_generator

SHARED = Path(os.environ.get("NSAUG_SHARED", Path(__file__).resolve().parents[1] / ".." / "shared")) / "data"
EPS = (0.01, 0.03, 0.1, 0.3)
INIT_SCALES = (0.1, 0.25, 0.5, 1.0)
NUM_STEPS = (1, 3, 6)
MIN_BELOW_EPS = 0.9
DEFAULT = NullspaceNoise()


def vit_ti(folder: Path) -> tuple[NoisyViT, ImageDataModule]:
    extract("imagenette.tar", "imagenette/val/", folder)
    weights = SHARED / "vit_tiny_patch16_224.safetensors"
    return build_vit("vit_tiny_patch16_224", checkpoint=str(weights)), Folder(root=str(folder / "imagenette"))


def cifar10(folder: Path) -> tuple[NoisyViT, ImageDataModule]:
    extract("cifar10.tar.xz", "cifar10/val/", folder)
    model = build_vit(
        "vit_tiny_patch16_224",
        checkpoint=str(SHARED / "cifar10_vit.safetensors"),
        img_size=32,
        patch_size=4,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
        args={"embed_dim": 128, "depth": 6, "num_heads": 4},
    )
    return model, CIFAR10(root=str(folder / "cifar10"))


def digits(folder: Path) -> tuple[NoisyViT, ImageDataModule]:
    """Trained on the spot with AdamW: as accurate as the models of the study, without a run folder."""
    torch.manual_seed(0)
    args = {"embed_dim": 48, "depth": 3, "num_heads": 3, "class_token": False, "global_pool": "avg"}
    model = build_vit("vit_tiny_patch16_224", num_classes=10, img_size=8, patch_size=2, args=args).train()
    data = Digits(crop="none", hflip=0)
    data.setup("fit")
    data.configure(model.data_config)
    assert data.train_set is not None
    samples = [data.train_set[index][:2] for index in range(len(data.train_set))]
    images, labels = torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=400)
    for _ in range(400):
        batch = torch.randint(len(images), (64,))
        loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model, data


MODELS: dict[str, Callable[[Path], tuple[NoisyViT, ImageDataModule]]] = {
    "vit_ti": vit_ti,
    "cifar10": cifar10,
    "digits": digits,
}


def extract(archive: str, prefix: str, folder: Path) -> None:
    with tarfile.open(SHARED / archive) as tar:
        members = (member for member in tar if member.name.startswith(prefix))
        tar.extractall(folder, members=members, filter="data")


def first_images(model: NoisyViT, data: ImageDataModule, count: int) -> Tensor:
    """`count` test images, drawn with seed 0."""
    test = data.test_dataset()
    test.setup("test")
    test.configure(model.data_config)
    order = torch.randperm(len(test.images), generator=make_generator("cpu", 0))[:count].tolist()
    return torch.stack([test.images[index][0] for index in order])


def measure(model: NoisyViT, images: Tensor, clean: Tensor, config: NullspaceNoise) -> dict[str, float]:
    with torch.no_grad():
        start = synthesize(
            model, images, NullspaceNoise(eps=config.eps, init_scale=config.init_scale, num_steps=0), clean,
            make_generator("cpu", 1),
        )  # fmt: skip
        end = synthesize(model, images, config, clean, make_generator("cpu", 1))

    def agreement(logits: Tensor) -> float:
        return float((logits.argmax(1) == clean.argmax(1)).float().mean())

    rms = root_mean_square(end.noise).mean() / embedding_rms(model, images)
    return {
        "below_before": float(start.converged.float().mean()), "below": float(end.converged.float().mean()),
        "influence_before": float(end.influence_before.mean()), "influence": float(end.influence_after.mean()),
        "agreement_before": agreement(start.logits), "agreement": agreement(end.logits), "rms": float(rms),
    }  # fmt: skip


def format_row(name: str, config: NullspaceNoise, row: dict[str, float]) -> str:
    below, agreement = (f"{100 * row[f'{key}_before']:5.1f} -> {100 * row[key]:5.1f}" for key in ("below", "agreement"))
    influence = f"{row['influence_before']:.4f} -> {row['influence']:.4f}"
    settings = f"{name:8} {config.eps:4g} {config.init_scale:5g} {config.num_steps:2}"
    return f"{settings}   {below}  {influence}   {agreement} {row['rms']:7.3f}"


def failures(name: str, config: NullspaceNoise, row: dict[str, float]) -> list[str]:
    where = f"{name}, eps {config.eps:g}"
    result = []
    if row["below"] < MIN_BELOW_EPS:
        result.append(f"{where}: {100 * row['below']:.1f} % below eps, at least {100 * MIN_BELOW_EPS:.0f} % expected")
    if row["influence"] > max(config.eps, row["influence_before"]):
        result.append(f"{where}: mean influence {row['influence_before']:.4f} -> {row['influence']:.4f}, above eps")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--check", action="store_true", help="the default settings alone; exit 1 below the bar")
    options = parser.parse_args()
    if missing := [name for name in options.models if name != "digits" and not SHARED.is_dir()]:
        sys.exit(f"error: no images and weights for {', '.join(missing)} at {SHARED}: set NSAUG_SHARED")
    grid = (
        [(DEFAULT.init_scale, DEFAULT.num_steps)] if options.check else [(i, k) for i in INIT_SCALES for k in NUM_STEPS]
    )
    print("model     eps  init  K   below eps, %    mean influence   agreement, %      rms")
    failed = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            model, data = MODELS[name](Path(folder))
            model.eval()
            images = first_images(model, data, options.num_images)
        with torch.no_grad():
            clean = model(images)
        for eps in EPS:
            for init_scale, num_steps in grid:
                config = NullspaceNoise(eps=eps, init_scale=init_scale, num_steps=num_steps)
                row = measure(model, images, clean, config)
                print(format_row(name, config, row), flush=True)
                if (init_scale, num_steps) == (DEFAULT.init_scale, DEFAULT.num_steps):
                    failed += failures(name, config, row)
    if options.check:
        print("\n".join(failed) or "the bar is met")
    sys.exit(bool(failed and options.check))


if __name__ == "__main__":
    main()
