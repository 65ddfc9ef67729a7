"""Entries of a suite that ask what noise is like, not how often a model is right: the paper's analysis."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from nsaug.data import TestDataset
from nsaug.evaluation.cache import AnalysisResult, Measurement
from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT
from nsaug.nullspace import ExactNullspace, UniversalConfig, embedding_rms, learn_universal, match_influence
from nsaug.nullspace.analysis import (
    Outputs,
    compute_outputs,
    noise_effects,
    nullspace_radius,
    permute_elements,
    permute_tokens,
    permute_within_tokens,
    random_like,
    unreachable_energy,
)
from nsaug.nullspace.noise import root_mean_square, scale_noise
from nsaug.nullspace.pixel_space import patch_convolution, to_pixels
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator
from nsaug.utils.types import (
    FiniteFloat,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    to_plain,
    validated_dataclass,
)

SPLIT, NOISE, CHANGE, RADIUS = 0, 1, 2, 3
"""First part of the key of a generator's draws, after the seed."""

Eps = Annotated[FiniteFloat, Field(gt=0, lt=2)]


@validated_dataclass
class Analysis:
    """What all analyses are told. Half of the images are learned on, the other half is judged: never the same.

    Attributes:
        images: how many of the data set are used at most, drawn by the seed.
    """

    images: Annotated[int, Field(ge=2)] = 500

    condition: ClassVar[str] = "analysed"
    data: ClassVar[None] = None
    corrupted_by: ClassVar[None] = None
    on_own_images: ClassVar[bool] = True

    @property
    def settings(self) -> dict[str, Any]:
        """All that its results depend on, defaults included, as plain values."""
        return to_plain(self)

    def class_subset(self, own: TestDataset) -> None:
        """Analyses take all answers as they are."""

    def work(self, count: int) -> int:
        """About how many forwards it takes, on a data set of `count` images."""
        raise NotImplementedError

    def run(self, vit: NoisyViT, loader: DataLoader[Any], seed: int, advance: Callable[[int], None]) -> AnalysisResult:
        """Measures one model, in fp32 and eval mode.

        Args:
            vit: on the device to work on.
            loader: its data set and batch size are what counts.
            seed: of the choice of images and of every draw.
            advance: called with the number of forwards done.
        """
        raise NotImplementedError

    def _halves(self, vit: NoisyViT, loader: DataLoader[Any], seed: int) -> tuple[Tensor, Tensor, list[str]]:
        """Images to learn on, images to judge on, and the ids of the latter."""
        data: Any = loader.dataset
        order = torch.randperm(len(data), generator=make_generator("cpu", seed, SPLIT))[: self.images].tolist()
        read = [found for index in order if (found := data[index]) is not None]
        if len(read) < 2:
            raise UserError("an analysis of noise needs two images at least: one to learn on, one to judge on")
        images = torch.stack([image for image, _, _ in read]).to(vit.mean)
        half = len(read) // 2
        return images[:half], images[half:], [name for _, _, name in read[half:]]


@validated_dataclass
class NoiseAnalysis(Analysis):
    """Learned noises beside their permutations and random noise, scaled, added, mixed.

    Each noise is one for all images, learned as the synthesis says on the first half of the images.

    Conditions: `learned`; `permuted` (all elements), `permuted within` (each token's), `permuted across` (the tokens);
    `random, same norm`; `random, same influence` (as the learned noise has on the judged images); each at every α that
    it is scaled by. Of every two neighbours `sum`, and `mix` at each weight of the first. Metrics: those of
    `nsaug.nullspace.analysis.noise_effects`, at α = 1 also `rms`, and of learned and random noise `unreachable_energy`; `reached`, the
    share of noises that were below ε when their learning ended.
    """

    synthesis: UniversalConfig
    noises: PositiveInt = 20
    alphas: tuple[NonNegativeFloat, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    mixes: tuple[Fraction, ...] = (0.25, 0.5, 0.75)

    def work(self, count: int) -> int:
        half = min(count, self.images) // 2
        synthesis = self.synthesis
        learning = math.ceil(4 * half * synthesis.data_fraction * synthesis.num_passes)
        judging = half * (6 * len(self.alphas) + 1 + len(self.mixes))
        return self.noises * (learning + judging)

    def run(self, vit: NoisyViT, loader: DataLoader[Any], seed: int, advance: Callable[[int], None]) -> AnalysisResult:
        images, judged, ids = self._halves(vit, loader, seed)
        size, layer, device = loader.batch_size or len(images), self.synthesis.layer, vit.mean.device
        vit.eval()
        rms = float(embedding_rms(vit, images[:size], layer))
        synthesis = self.synthesis
        # Settings count in multiples of rms(u); AdamW's step also in those of the start.
        unit = synthesis.init_scale * rms
        synthesis = replace(synthesis, init_scale=unit, lr=synthesis.lr * unit)
        batches = images.split(size)
        learned = []
        for number in range(self.noises):
            draws = make_generator(device, seed, NOISE, number)
            found = learn_universal(vit, lambda *_: iter(batches), len(batches), synthesis, draws)
            learned.append((vit.to_tokens(found.noise, layer), bool(found.converged.all())))
            advance(math.ceil(4 * len(images) * synthesis.data_fraction * synthesis.num_passes))
        clean = [compute_outputs(vit, batch) for batch in judged.split(size)]
        measures = [
            Measurement("learned", None, "converged", number, converged)
            for number, (_, converged) in enumerate(learned)
        ]

        def measure(condition: str, strength: float | None, number: int, noise: Tensor) -> None:
            for metric, value in _effects(vit, judged, noise, clean, layer).items():
                measures.append(Measurement(condition, strength, metric, number, value))
            advance(len(judged))

        for number, (noise, _) in enumerate(learned):
            kinds = self._kinds(vit, judged[:size], noise, make_generator(device, seed, CHANGE, number))
            for condition, kind in kinds.items():
                measures.append(Measurement(condition, 1.0, "rms", number, float(root_mean_square(kind))))
                share = (
                    unreachable_energy(vit, kind)
                    if layer == PATCH_EMBED and not condition.startswith("permuted")
                    else None
                )
                if share is not None:
                    measures.append(Measurement(condition, 1.0, "unreachable_energy", number, float(share)))
                for alpha in self.alphas:
                    measure(condition, alpha, number, alpha * kind)
            if self.noises > 1:
                other = learned[(number + 1) % self.noises][0]
                measure("sum", None, number, noise + other)
                for weight in self.mixes:
                    measure("mix", weight, number, weight * noise + (1 - weight) * other)
        every = torch.cat([noise for noise, _ in learned])
        titles, pictures = self._pictures(vit, judged[:1], every[:1], make_generator(device, seed, CHANGE, 0))
        return AnalysisResult(measures, ids, titles, pictures, every.cpu().numpy())

    def _kinds(self, vit: NoisyViT, images: Tensor, noise: Tensor, draws: torch.Generator) -> dict[str, Tensor]:
        layer = self.synthesis.layer
        random = random_like(noise, draws)
        clean = compute_outputs(vit, images)
        own = float(noise_effects(compute_outputs(vit, images, noise, layer), clean)["influence"].mean())
        match = match_influence(vit, images, random, clean.logits, max(own, 1e-6), num_steps=16, layer=layer)
        return {
            "learned": noise,
            "permuted": permute_elements(noise, draws),
            "permuted within": permute_within_tokens(noise, draws),
            "permuted across": permute_tokens(noise, draws),
            "random, same norm": random,
            "random, same influence": scale_noise(random, match.scale),
        }

    def _pictures(
        self, vit: NoisyViT, image: Tensor, noise: Tensor, draws: torch.Generator
    ) -> tuple[list[str], list[np.ndarray]]:
        """An image, a noise as the smallest change of pixels that comes nearest to it, and both together."""
        if self.synthesis.layer != PATCH_EMBED:
            return [], []
        shown = [("image", image)]
        for name, each in (("learned", noise), ("permuted", permute_elements(noise, draws))):
            change = to_pixels(vit, each)
            if change is None:
                return [], []
            contrast = 0.5 + 0.5 * change / change.abs().max()
            shown += [(f"{name} noise", contrast), (f"image with {name} noise", image + change)]
        return [title for title, _ in shown], [_eight_bit(picture[0]) for _, picture in shown]


@validated_dataclass
class NoiseRadius(Analysis):
    """How large noise grows before it moves the predictions by ε: learned, and merely scaled.

    Conditions `learned` and `random`, strength ε. Metrics `radius` (root mean square, in units of the patch
    embeddings) and `relative radius` (in multiples of theirs); see `nsaug.nullspace.analysis.nullspace_radius`.
    """

    eps: tuple[Eps, ...] = (0.01, 0.03, 0.1)
    noises: PositiveInt = 5
    init_scales: tuple[PositiveFloat, ...] = (0.5, 1, 2, 4, 8)
    num_updates: PositiveInt = 200
    layer: str = PATCH_EMBED

    def work(self, count: int) -> int:
        half = min(count, self.images) // 2
        learning = 4 * half * max(1, round(self.num_updates / math.ceil(half / 64))) * len(self.init_scales)
        return self.noises * (learning + 12 * half * (1 + len(self.init_scales)) * len(self.eps))

    def run(self, vit: NoisyViT, loader: DataLoader[Any], seed: int, advance: Callable[[int], None]) -> AnalysisResult:
        images, judged, ids = self._halves(vit, loader, seed)
        vit.eval()
        unit = float(embedding_rms(vit, judged[: loader.batch_size], self.layer))
        measures = []
        for number in range(self.noises):
            draws = make_generator(vit.mean.device, seed, RADIUS, number)
            found = nullspace_radius(
                vit,
                images,
                judged,
                self.eps,
                draws,
                self.init_scales,
                self.num_updates,
                layer=self.layer,
                on_progress=advance,
            )
            for each in found:
                for condition, value in (("learned", each.learned), ("random", each.random)):
                    measures.append(Measurement(condition, each.eps, "radius", number, value))
                    measures.append(Measurement(condition, each.eps, "relative radius", number, value / unit))
        return AnalysisResult(measures, ids)


@validated_dataclass
class NoiseTransfer(Analysis):
    """The noises that another model learned, on this one: conditions `from NAME`, metrics as in `NoiseAnalysis`.

    Attributes:
        of: the suite's entry, a `NoiseAnalysis`, whose noises they are.
        layer: where they are added; where that entry's are.
    """

    of: str
    layer: str = PATCH_EMBED

    def work(self, count: int) -> int:
        return 0  # it depends on the other models

    def run(
        self,
        vit: NoisyViT,
        loader: DataLoader[Any],
        seed: int,
        advance: Callable[[int], None],
        noises: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> AnalysisResult:
        """As all analyses; `noises` are the other models', (M, N, D), by the models' names."""
        _, judged, ids = self._halves(vit, loader, seed)
        size = loader.batch_size or len(judged)
        vit.eval()
        clean = [compute_outputs(vit, batch) for batch in judged.split(size)]
        shape = vit.to_tokens(torch.zeros(1, *vit.noise_shape(self.layer)), self.layer).shape[1:]
        measures = []
        for name, others in noises.items():
            if others.shape[1:] != shape:
                continue  # another width or number of tokens: nothing to transfer
            for number, noise in enumerate(torch.from_numpy(others).to(judged)):
                for metric, value in _effects(vit, judged, noise[None], clean, self.layer).items():
                    measures.append(Measurement(f"from {name}", None, metric, number, value))
        return AnalysisResult(measures, ids)


@validated_dataclass
class ExactPair(Analysis):
    """Two images that look different and are one to the model: the exact nullspace of its patch embedding at work.

    Metrics `nullity` (dimensions of the nullspace of one patch), and where there are any: `pixels` (mean absolute
    change of a pixel), `logits` (largest change of a logit, in float64) and `targets` (the largest that the target
    image itself makes).
    """

    images: Annotated[int, Field(ge=2)] = 2

    def work(self, count: int) -> int:
        return 1

    def run(self, vit: NoisyViT, loader: DataLoader[Any], seed: int, advance: Callable[[int], None]) -> AnalysisResult:
        images, targets, ids = self._halves(vit, loader, seed)
        vit.eval()
        advance(1)
        if patch_convolution(vit) is None:
            return AnalysisResult([], ids)
        null = ExactNullspace(vit)
        measures = [Measurement("exact", None, "nullity", 0, float(null.dimension))]
        if null.dimension == 0:
            return AnalysisResult(measures, ids)
        image, target = images[:1], targets[:1]
        other = null.nearest(image, target).to(vit.mean.device)
        with torch.no_grad():
            logits = copy.deepcopy(vit).double()(torch.cat([image.double(), other, target.double()]))
        found = {
            "pixels": (other - image).abs().mean(),
            "logits": (logits[1] - logits[0]).abs().max(),
            "targets": (logits[2] - logits[0]).abs().max(),
        }
        measures += [Measurement("exact", None, metric, 0, float(value)) for metric, value in found.items()]
        confidence, said = logits.softmax(-1).max(-1)
        told = [f"class {int(c)}, {100 * float(p):.1f} %" for c, p in zip(said, confidence, strict=True)]
        titles = [f"{name}: {what}" for name, what in zip(("image", "its pair", "target"), told, strict=True)]
        pictures = [_eight_bit(each[0]) for each in (image, other, target)]
        return AnalysisResult(measures, ids, titles, pictures)


def _effects(vit: NoisyViT, judged: Tensor, noise: Tensor, clean: list[Outputs], layer: str) -> dict[str, float]:
    """Mean effects of one noise over all judged images."""
    size = len(clean[0].logits)
    parts = [
        noise_effects(compute_outputs(vit, batch, noise, layer), before)
        for batch, before in zip(judged.split(size), clean, strict=True)
    ]
    return {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}


def _eight_bit(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] as (H, W, 3) in uint8."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
