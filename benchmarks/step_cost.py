"""What a training step of each method costs, as a ratio to a plain one.

    python benchmarks/step_cost.py                                         model=micro and model=vit_cifar
    python benchmarks/step_cost.py --models vit_s --methods nullspace "nullspace nullspace.steps=1" --pairs 20

Models and methods are those of conf/; a method may be followed by further settings. Plain steps and the method's
alternate within one process, noise never gets below eps early (but for the noise that is scaled to it); each ratio is
the median of the pairs', with its quartiles. `counted` is what the method costs when forward, backward to activations
and backward to weights count 1 each: for nullspace finetuning (6 + 2 K) / 3.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from nsaug.config import build
from nsaug.draws import generator
from nsaug.methods import Clean, Method
from nsaug.vit import ViT

BATCH = {"micro": 64, "vit_cifar": 32, "vit_s": 8}
METHODS = [
    "clean_two_views",
    "nullspace nullspace.steps=1",
    "nullspace",
    "nullspace nullspace=batch",
    "random_noise",
    "random_noise method.match=influence nullspace.eps=0.03",
    "random_noise method.match=start",
    "fgsm_rs",
    "pgd",
    "trades",
]


def seconds(
    method: Method, vit: ViT, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> float:
    start = time.perf_counter()
    loss, _ = method.loss(vit, images, labels, generator(images.device, 0))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=BATCH, default=["micro", "vit_cifar"])
    parser.add_argument("--methods", nargs="+", default=METHODS, help="each as on the command line, after method=")
    parser.add_argument(
        "--pairs", type=int, default=9, help="how often a plain step and the method's are timed in turn"
    )
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{'model':10} {'batch':>5} {'ratio':>6} {'quartiles':>13} {'counted':>8}   method, on {device}")
    for name in options.models:
        for settings in options.methods:
            with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
                told = [f"model={name}", "model.pretrained=false", "nullspace.eps=1e-9", *f"method={settings}".split()]
                cfg = compose("train", told)
            torch.manual_seed(0)
            vit, method = build(cfg.model, num_classes=10).to(device).train(), build(cfg.method).to(device)
            images = torch.rand(BATCH[name], *vit.data_config["input_size"], device=device)
            labels = torch.randint(10, (len(images),), device=device)
            optimizer = torch.optim.AdamW(vit.parameters(), lr=1e-5)
            method.prepare(vit, images, lambda value: value)
            plain, ratios = Clean(), []
            seen = images if method.views == 1 else images.unsqueeze(1).repeat(1, method.views, 1, 1, 1)
            for _ in range(options.pairs + 2):
                base = seconds(plain, vit, optimizer, images, labels)
                ratios.append(seconds(method, vit, optimizer, seen, labels) / base)
            low, middle, high = statistics.quantiles(ratios[2:], n=4)  # the first two warm up
            shown = f"{middle:6.2f} {low:6.2f}-{high:6.2f} {method.cost:8.2f}"
            print(f"{name:10} {len(images):5} {shown}   {settings}", flush=True)


if __name__ == "__main__":
    main()
