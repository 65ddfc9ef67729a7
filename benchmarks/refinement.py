"""What cheaper ways to refine noise cost, beside the influence that they reach.

    python benchmarks/refinement.py outputs/train/...            a run's folder, of model and training images

Each way takes every batch in turn, after a plain step, in one process; the weights stay as they are. Columns, the first
`--rest` batches left out, in which warm starts get under way:

- plain: a training step's time over the plain step's, median;
- before, after: mean influence of the noise that refinement starts from, and of that which is trained on;
- reached: share of the images whose influence is below ε;
- rms: of the noise trained on, over that of a cold start.

`every n`: refined at every n-th step, used as it is at those between. `share`: for a share of the batch; noise of one
image each is then trained on for these alone, noise that the batch shares for all.
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from nsaug.cli.app import instantiate
from nsaug.evaluation import find_models
from nsaug.models.factory import build_vit
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace import NoiseSynthesis, embedding_rms, influence
from nsaug.utils.rng import make_generator


@dataclasses.dataclass
class Way:
    """One way to refine, with the noise found last."""

    synthesis: NoiseSynthesis
    share: float = 1.0
    every: int = 1
    last: Tensor | None = None

    def step(self, vit: NoisyViT, images: Tensor, labels: Tensor, number: int, rms: Tensor) -> dict[str, float]:
        """A training step's forward and backward; what became of the noise."""
        clean = vit(images)
        refined = round(self.share * len(images))
        noised = refined if self.synthesis.scope == "sample" else len(images)
        rests = number % self.every and self.last is not None
        synthesis = dataclasses.replace(self.synthesis, steps=0) if rests else self.synthesis
        told: Any = images[:refined], make_generator(images.device, number), clean[:refined].detach(), rms, self.last
        found = synthesis.refine(vit, *told)
        logits: Any = found.logits if noised == refined else vit(images[:noised], found.noise)
        (F.cross_entropy(clean, labels) + F.cross_entropy(logits, labels[:noised])).backward()
        self.last = found.noise
        each = influence(logits.detach(), clean[:noised].detach())
        return {
            "before": float(found.influence_before.mean()),
            "after": float(each.mean()),
            "converged": float((each < synthesis.eps).float().mean()),
            "rms": float(found.norm_after.mean() / (synthesis.limit * rms / 3**0.5)),
        }


def ways(eps: float, limit: float) -> dict[str, Way]:
    def synthesis(**settings: Any) -> NoiseSynthesis:
        return NoiseSynthesis(eps=eps, limit=limit, **settings)

    return {
        "K=1": Way(synthesis(steps=1)),
        "K=3": Way(synthesis(steps=3)),
        "K=10": Way(synthesis(steps=10)),
        "warm K=1": Way(synthesis(steps=1, init="warm")),
        "warm K=1, norm held": Way(synthesis(steps=1, init="warm", norm="held")),
        "warm K=3, every 3": Way(synthesis(steps=3, init="warm"), every=3),
        "K=3, bf16": Way(synthesis(steps=3, precision="bf16")),
        "K=3, share 0.5": Way(synthesis(steps=3), share=0.5),
        "batch, K=3": Way(synthesis(steps=3, scope="batch")),
        "batch, K=3, share 0.25": Way(synthesis(steps=3, scope="batch"), share=0.25),
        "batch, warm K=1": Way(synthesis(steps=1, scope="batch", init="warm")),
        "batch, warm K=1, every 3": Way(synthesis(steps=1, scope="batch", init="warm"), every=3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a run's folder")
    parser.add_argument("--eps", type=float, default=0.03)
    parser.add_argument("--limit", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--rest", type=int, default=8)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (subject,) = find_models(options.checkpoint, None)
    vit = build_vit(**subject.model()).to(device).train()
    data = instantiate(OmegaConf.create(subject.record["data"] | {"batch_size": options.batch}))
    data.setup("fit")
    data.configure(vit.data_config)
    batches = [(x.to(device), y.to(device)) for x, y, _ in itertools.islice(data.train_dataloader(), options.batches)]
    rms = embedding_rms(vit, batches[0][0])
    print(f"{'plain':>6} {'before':>7} {'after':>7} {'reached':>8} {'rms':>5}   eps {options.eps:g}, {device}")
    measured(vit, batches, ways(options.eps, options.limit), rms, options.rest)


def measured(vit: NoisyViT, batches: list[Any], ways: dict[str, Way], rms: Tensor, rest: int) -> None:
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number, (images, labels) in enumerate(batches):
        plain, _ = timed(lambda x=images, y=labels: F.cross_entropy(vit(x), y).backward())
        for name, way in ways.items():
            vit.zero_grad()
            seconds, values = timed(lambda w=way, x=images, y=labels, n=number: w.step(vit, x, y, n, rms))
            ratios[name].append(seconds / plain)
            found[name].append(values)
    for name in ways:
        mean = {key: statistics.mean(each[key] for each in found[name][rest:]) for key in found[name][0]}
        print(
            f"{statistics.median(ratios[name][rest:]):6.2f} {mean['before']:7.3f} {mean['after']:7.4f}"
            f" {mean['reached']:8.2f} {mean['rms']:5.2f}   {name}"
        )


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


if __name__ == "__main__":
    main()
