"""Analyses of nullspace noise as in the paper: entries of a suite that measure properties instead of accuracy."""

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
"""Streams of random numbers: the first part of a generator's key after the seed."""

Eps = Annotated[FiniteFloat, Field(gt=0, lt=2)]


@validated_dataclass
class Analysis:
    """Base class of analyses. Noise is learned on one half of the images and evaluated on the other half.

    Attributes:
        num_images: maximum number of images, drawn with the seed.
    """

    num_images: Annotated[int, Field(ge=2)] = 500

    condition: ClassVar[str] = "analyzed"
    data: ClassVar[None] = None
    corruption_name: ClassVar[None] = None
    uses_model_data: ClassVar[bool] = True

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that results depend on, defaults included, as plain values."""
        return to_plain(self)

    def class_subset(self, model_data: TestDataset) -> None:
        """Analyses use all classes."""

    def num_forwards(self, num_images: int) -> int:
        """Approximate number of forward passes on a data set of this size, for the progress bar."""
        raise NotImplementedError

    def run(
        self, vit: NoisyViT, loader: DataLoader[Any], seed: int, on_progress: Callable[[int], None]
    ) -> AnalysisResult:
        """Measure one model, in fp32 and eval mode.

        Args:
            vit: the model, on its device.
            loader: gives the data set and the batch size.
            seed: seed of the choice of images and of all noise.
            on_progress: called with the number of forward passes done.
        """
        raise NotImplementedError

    def _split_images(self, vit: NoisyViT, loader: DataLoader[Any], seed: int) -> tuple[Tensor, Tensor, list[str]]:
        """Return the images to learn on, the images to evaluate on, and the ids of the latter."""
        dataset: Any = loader.dataset
        order = torch.randperm(len(dataset), generator=make_generator("cpu", seed, SPLIT))[: self.num_images].tolist()
        items = [item for index in order if (item := dataset[index]) is not None]
        if len(items) < 2:
            raise UserError("an analysis needs at least two images: one to learn noise on, one to evaluate it")
        images = torch.stack([image for image, _, _ in items]).to(vit.mean)
        half = len(items) // 2
        return images[:half], images[half:], [image_id for _, _, image_id in items[half:]]


@validated_dataclass
class NoiseAnalysis(Analysis):
    """Learned noise compared with permuted and random noise; scaled, added and mixed.

    Every noise is shared by all images and learned on the first half of them.

    Conditions, at every scale α: `learned`; `permuted` (all elements), `permuted within` (within tokens), `permuted
    across` (whole tokens); `random, same norm`; `random, same influence`. Conditions of two consecutive noises: `sum`,
    and `mix` with the weight of the first as strength.

    Metrics: those of `nsaug.nullspace.analysis.noise_effects`; at α = 1 also `rms` and, except for permuted noise,
    `unreachable_energy`; for learned noise `converged`, whether it was below ε when learning ended.
    """

    synthesis: UniversalConfig
    num_noises: PositiveInt = 20
    alphas: tuple[NonNegativeFloat, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    mix_weights: tuple[Fraction, ...] = (0.25, 0.5, 0.75)

    def num_forwards(self, num_images: int) -> int:
        half = min(num_images, self.num_images) // 2
        synthesis = self.synthesis
        learning = math.ceil(4 * half * synthesis.data_fraction * synthesis.num_passes)
        evaluation = half * (6 * len(self.alphas) + 1 + len(self.mix_weights))
        return self.num_noises * (learning + evaluation)

    def run(
        self, vit: NoisyViT, loader: DataLoader[Any], seed: int, on_progress: Callable[[int], None]
    ) -> AnalysisResult:
        train_images, test_images, ids = self._split_images(vit, loader, seed)
        size, layer, device = loader.batch_size or len(train_images), self.synthesis.layer, vit.mean.device
        vit.eval()
        rms = float(embedding_rms(vit, train_images[:size], layer))
        # init_scale is set in units of rms(u), lr in units of the start; `learn_universal` takes absolute values.
        init_scale = self.synthesis.init_scale * rms
        synthesis = replace(self.synthesis, init_scale=init_scale, lr=self.synthesis.lr * init_scale)
        batches = train_images.split(size)
        learned = []
        for index in range(self.num_noises):
            generator = make_generator(device, seed, NOISE, index)
            result = learn_universal(vit, lambda *_: iter(batches), len(batches), synthesis, generator)
            learned.append((vit.to_tokens(result.noise, layer), bool(result.converged.all())))
            on_progress(math.ceil(4 * len(train_images) * synthesis.data_fraction * synthesis.num_passes))
        clean = [compute_outputs(vit, batch) for batch in test_images.split(size)]
        measurements = [
            Measurement("learned", None, "converged", index, converged) for index, (_, converged) in enumerate(learned)
        ]

        def measure(condition: str, strength: float | None, index: int, noise: Tensor) -> None:
            for metric, value in _mean_effects(vit, test_images, noise, clean, layer).items():
                measurements.append(Measurement(condition, strength, metric, index, value))
            on_progress(len(test_images))

        for index, (noise, _) in enumerate(learned):
            variants = self._variants(vit, test_images[:size], noise, make_generator(device, seed, CHANGE, index))
            for condition, variant in variants.items():
                measurements.append(Measurement(condition, 1.0, "rms", index, float(root_mean_square(variant))))
                if layer == PATCH_EMBED and not condition.startswith("permuted"):
                    energy = unreachable_energy(vit, variant)
                    if energy is not None:
                        measurements.append(Measurement(condition, 1.0, "unreachable_energy", index, float(energy)))
                for alpha in self.alphas:
                    measure(condition, alpha, index, alpha * variant)
            if self.num_noises > 1:
                other = learned[(index + 1) % self.num_noises][0]
                measure("sum", None, index, noise + other)
                for weight in self.mix_weights:
                    measure("mix", weight, index, weight * noise + (1 - weight) * other)
        noises = torch.cat([noise for noise, _ in learned])
        titles, images = self._make_images(vit, test_images[:1], noises[:1], make_generator(device, seed, CHANGE, 0))
        return AnalysisResult(measurements, ids, titles, images, noises.cpu().numpy())

    def _variants(self, vit: NoisyViT, images: Tensor, noise: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The noise, its permutations, and random noise of the same norm and of the same influence."""
        layer = self.synthesis.layer
        random = random_like(noise, generator)
        clean = compute_outputs(vit, images)
        target = float(noise_effects(compute_outputs(vit, images, noise, layer), clean)["influence"].mean())
        match = match_influence(vit, images, random, clean.logits, max(target, 1e-6), num_steps=16, layer=layer)
        return {
            "learned": noise,
            "permuted": permute_elements(noise, generator),
            "permuted within": permute_within_tokens(noise, generator),
            "permuted across": permute_tokens(noise, generator),
            "random, same norm": random,
            "random, same influence": scale_noise(random, match.scale),
        }

    def _make_images(
        self, vit: NoisyViT, image: Tensor, noise: Tensor, generator: torch.Generator
    ) -> tuple[list[str], list[np.ndarray]]:
        """Titles and images: an image, learned and permuted noise as changes of its pixels, and their sums."""
        if self.synthesis.layer != PATCH_EMBED:
            return [], []
        titled = [("image", image)]
        for name, variant in (("learned", noise), ("permuted", permute_elements(noise, generator))):
            change = to_pixels(vit, variant)
            if change is None:
                return [], []
            contrast = 0.5 + 0.5 * change / change.abs().max()
            titled += [(f"{name} noise", contrast), (f"image with {name} noise", image + change)]
        return [title for title, _ in titled], [_to_uint8(image[0]) for _, image in titled]


@validated_dataclass
class NoiseRadius(Analysis):
    """Largest norm of noise whose influence is below ε, for learned noise and for scaled random noise.

    Conditions: `learned` and `random`, with ε as strength. Metrics: `radius` (root mean square of the noise) and
    `relative radius` (relative to that of the embeddings); see `nsaug.nullspace.analysis.nullspace_radius`.
    """

    eps: tuple[Eps, ...] = (0.01, 0.03, 0.1)
    num_noises: PositiveInt = 5
    init_scales: tuple[PositiveFloat, ...] = (0.5, 1, 2, 4, 8)
    num_updates: PositiveInt = 200
    layer: str = PATCH_EMBED

    def num_forwards(self, num_images: int) -> int:
        half = min(num_images, self.num_images) // 2
        learning = 4 * half * max(1, round(self.num_updates / math.ceil(half / 64))) * len(self.init_scales)
        return self.num_noises * (learning + 12 * half * (1 + len(self.init_scales)) * len(self.eps))

    def run(
        self, vit: NoisyViT, loader: DataLoader[Any], seed: int, on_progress: Callable[[int], None]
    ) -> AnalysisResult:
        train_images, test_images, ids = self._split_images(vit, loader, seed)
        vit.eval()
        rms = float(embedding_rms(vit, test_images[: loader.batch_size], self.layer))
        measurements = []
        for index in range(self.num_noises):
            generator = make_generator(vit.mean.device, seed, RADIUS, index)
            by_eps = nullspace_radius(
                vit, train_images, test_images, self.eps, generator, self.init_scales, self.num_updates,
                layer=self.layer, on_progress=on_progress,
            )  # fmt: skip
            for radius in by_eps:
                for condition, value in (("learned", radius.learned), ("random", radius.random)):
                    measurements.append(Measurement(condition, radius.eps, "radius", index, value))
                    measurements.append(Measurement(condition, radius.eps, "relative radius", index, value / rms))
        return AnalysisResult(measurements, ids)


@validated_dataclass
class NoiseTransfer(Analysis):
    """Noise learned on the other models: conditions `from NAME`, metrics as in `NoiseAnalysis`.

    Attributes:
        source: name of the `NoiseAnalysis` in the suite that provides the noises.
        layer: where the noises are added; the layer of that analysis.
    """

    source: str
    layer: str = PATCH_EMBED

    def num_forwards(self, num_images: int) -> int:
        return 0  # depends on the other models

    def run(
        self,
        vit: NoisyViT,
        loader: DataLoader[Any],
        seed: int,
        on_progress: Callable[[int], None],
        noises: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> AnalysisResult:
        """As `Analysis.run`; `noises` are those of the other models, (M, N, D), by model name."""
        _, test_images, ids = self._split_images(vit, loader, seed)
        size = loader.batch_size or len(test_images)
        vit.eval()
        clean = [compute_outputs(vit, batch) for batch in test_images.split(size)]
        shape = vit.to_tokens(torch.zeros(1, *vit.noise_shape(self.layer)), self.layer).shape[1:]
        measurements = []
        for name, array in noises.items():
            if array.shape[1:] != shape:
                continue  # another width or number of tokens: not transferable
            for index, noise in enumerate(torch.from_numpy(array).to(test_images)):
                for metric, value in _mean_effects(vit, test_images, noise[None], clean, self.layer).items():
                    measurements.append(Measurement(f"from {name}", None, metric, index, value))
        return AnalysisResult(measurements, ids)


@validated_dataclass
class NullspacePair(Analysis):
    """Two images that differ by a vector in the exact nullspace of the patch embedding, and so have equal logits.

    The second image is the one nearest to a target image. Metrics: `nullity` (dimension of the nullspace per patch)
    and, if it is positive, `pixels` (mean absolute difference between the pair's pixels), `logits` (largest difference
    between the pair's logits, in float64) and `targets` (largest difference between the image's and the target's).
    """

    num_images: Annotated[int, Field(ge=2)] = 2

    def num_forwards(self, num_images: int) -> int:
        return 1

    def run(
        self, vit: NoisyViT, loader: DataLoader[Any], seed: int, on_progress: Callable[[int], None]
    ) -> AnalysisResult:
        images, targets, ids = self._split_images(vit, loader, seed)
        vit.eval()
        on_progress(1)
        if patch_convolution(vit) is None:
            return AnalysisResult([], ids)
        null = ExactNullspace(vit)
        measurements = [Measurement("exact", None, "nullity", 0, float(null.dimension))]
        if null.dimension == 0:
            return AnalysisResult(measurements, ids)
        image, target = images[:1], targets[:1]
        pair = null.nearest(image, target).to(vit.mean.device)
        with torch.no_grad():
            logits = copy.deepcopy(vit).double()(torch.cat([image.double(), pair, target.double()]))
        metrics = {
            "pixels": (pair - image).abs().mean(),
            "logits": (logits[1] - logits[0]).abs().max(),
            "targets": (logits[2] - logits[0]).abs().max(),
        }
        measurements += [Measurement("exact", None, metric, 0, float(value)) for metric, value in metrics.items()]
        confidences, predictions = logits.softmax(-1).max(-1)
        titles = [
            f"{name}: class {int(prediction)}, {100 * float(confidence):.1f} %"
            for name, prediction, confidence in zip(("image", "pair", "target"), predictions, confidences, strict=True)
        ]
        shown = [_to_uint8(batch[0]) for batch in (image, pair, target)]
        return AnalysisResult(measurements, ids, titles, shown)


def _mean_effects(vit: NoisyViT, images: Tensor, noise: Tensor, clean: list[Outputs], layer: str) -> dict[str, float]:
    """Mean effects of one noise over all images."""
    size = len(clean[0].logits)
    parts = [
        noise_effects(compute_outputs(vit, batch, noise, layer), before)
        for batch, before in zip(images.split(size), clean, strict=True)
    ]
    return {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}


def _to_uint8(image: Tensor) -> np.ndarray:
    """Convert (3, H, W) in [0, 1] to (H, W, 3) in uint8."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
