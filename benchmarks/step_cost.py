"""What a training step with nullspace noise costs, as a ratio to a plain one.

    python benchmarks/step_cost.py                                   model=micro, and ViT-S/16 at 224 px
    python benchmarks/step_cost.py --steps 1 3 10 --pairs 20

Plain and nullspace steps alternate within one process, early stop off; each ratio is the median of the pairs', with
its quartiles. Counting forward, backward to activations and backward to weights as 1 each, it should be (6 + 2 K) / 3.
"""

import argparse
import statistics
import time

import torch

from nsaug.draws import generator
from nsaug.methods import Clean, Method, Nullspace
from nsaug.nullspace import NoiseSynthesis
from nsaug.vit import ViT, build_vit

MODELS = {
    "micro": {
        "name": "vit_tiny_patch16_224",
        "num_classes": 10,
        "img_size": 8,
        "patch_size": 2,
        "args": {"embed_dim": 48, "depth": 3, "num_heads": 3, "class_token": False, "global_pool": "avg"},
    },
    "vit_s": {"name": "vit_small_patch16_224", "num_classes": 1000},
}
BATCH = {"micro": 64, "vit_s": 8}


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
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 3], help="K, the updates of the noise")
    parser.add_argument("--pairs", type=int, default=9, help="how often plain and nullspace steps are timed in turn")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{'model':8} {'batch':>5} {'K':>3} {'ratio':>7} {'quartiles':>13} {'(6+2K)/3':>9}   on {device}")
    for name in options.models:
        torch.manual_seed(0)
        vit = build_vit(**MODELS[name]).to(device).train()
        images = torch.rand(BATCH[name], *vit.data_config["input_size"], device=device)
        labels = torch.randint(vit.model.num_classes, (len(images),), device=device)
        optimizer = torch.optim.AdamW(vit.parameters(), lr=1e-5)
        for steps in options.steps:
            noisy = Nullspace(NoiseSynthesis(eps=1e-9, steps=steps)).to(device)
            noisy.prepare(vit, images, lambda value: value)
            plain = Clean()
            ratios = []
            for _ in range(options.pairs + 2):
                base = seconds(plain, vit, optimizer, images, labels)
                ratios.append(seconds(noisy, vit, optimizer, images, labels) / base)
            low, middle, high = statistics.quantiles(ratios[2:], n=4)  # the first two warm up
            ideal = (6 + 2 * steps) / 3
            print(f"{name:8} {len(images):5} {steps:3} {middle:7.2f} {low:6.2f}-{high:6.2f} {ideal:9.2f}")


if __name__ == "__main__":
    main()
