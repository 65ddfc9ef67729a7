"""Learned nullspace noise, compared with permuted and random noise, as in the paper."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nsaug.evaluation.analyses.base import CHANGE, NOISE, Analysis, AnalysisImages, mean_effects, to_uint8
from nsaug.evaluation.results import AnalysisResult, Measurement
from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT
from nsaug.nullspace import UniversalConfig, embedding_rms, learn_universal, match_influence
from nsaug.nullspace.analysis import (
    compute_outputs,
    noise_effects,
    permute_elements,
    permute_tokens,
    permute_within_tokens,
    random_like,
    unreachable_energy,
)
from nsaug.nullspace.noise import root_mean_square, scale_noise
from nsaug.nullspace.pixel_space import to_pixels
from nsaug.utils.rng import make_generator
from nsaug.utils.types import Fraction, NonNegativeFloat, PositiveInt, UniqueTuple, validated_dataclass


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
    alphas: UniqueTuple[NonNegativeFloat] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    mix_weights: tuple[Fraction, ...] = (0.25, 0.5, 0.75)

    def cost(self, num_images: int) -> int:
        half = num_images // 2
        synthesis = self.synthesis
        learning = math.ceil(4 * half * synthesis.data_fraction * synthesis.num_passes)
        evaluation = half * (6 * len(self.alphas) + 1 + len(self.mix_weights))
        return self.num_noises * (learning + evaluation)

    def analyze(
        self, model: NoisyViT, images: AnalysisImages, seed: int, required: Mapping[str, AnalysisResult]
    ) -> AnalysisResult:
        train_images, test_images = images.train, images.test
        size, layer, device = images.batch_size, self.synthesis.layer, model.mean.device
        rms = float(embedding_rms(model, train_images[:size], layer))
        # init_scale is set in units of rms(u), lr in units of the start; `learn_universal` takes absolute values.
        init_scale = self.synthesis.init_scale * rms
        synthesis = replace(self.synthesis, init_scale=init_scale, lr=self.synthesis.lr * init_scale)
        batches = train_images.split(size)
        learned = []
        for index in range(self.num_noises):
            generator = make_generator(device, seed, NOISE, index)
            result = learn_universal(model, lambda *_: iter(batches), len(batches), synthesis, generator)
            learned.append((model.to_tokens(result.noise, layer), bool(result.converged.all())))
        clean = [compute_outputs(model, batch) for batch in test_images.split(size)]
        measurements = [
            Measurement("learned", None, "converged", index, float(converged))
            for index, (_, converged) in enumerate(learned)
        ]

        def measure(condition: str, strength: float | None, index: int, noise: Tensor) -> None:
            for metric, value in mean_effects(model, test_images, noise, clean, layer).items():
                measurements.append(Measurement(condition, strength, metric, index, value))

        for index, (noise, _) in enumerate(learned):
            variants = self._variants(model, test_images[:size], noise, make_generator(device, seed, CHANGE, index))
            for condition, variant in variants.items():
                measurements.append(Measurement(condition, 1.0, "rms", index, float(root_mean_square(variant))))
                if layer == PATCH_EMBED and not condition.startswith("permuted"):
                    energy = unreachable_energy(model, variant)
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
        titles, shown = self._make_images(model, test_images[:1], noises[:1], make_generator(device, seed, CHANGE, 0))
        return AnalysisResult(measurements, images.test_ids, titles, shown, noises.cpu().numpy())

    def _variants(
        self, model: NoisyViT, images: Tensor, noise: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The noise, its permutations, and random noise of the same norm and of the same influence."""
        layer = self.synthesis.layer
        random = random_like(noise, generator)
        clean = compute_outputs(model, images)
        target = float(noise_effects(compute_outputs(model, images, noise, layer), clean)["influence"].mean())
        match = match_influence(model, images, random, clean.logits, max(target, 1e-6), num_steps=16, layer=layer)
        return {
            "learned": noise,
            "permuted": permute_elements(noise, generator),
            "permuted within": permute_within_tokens(noise, generator),
            "permuted across": permute_tokens(noise, generator),
            "random, same norm": random,
            "random, same influence": scale_noise(random, match.scale),
        }

    def _make_images(
        self, model: NoisyViT, image: Tensor, noise: Tensor, generator: torch.Generator
    ) -> tuple[list[str], list[np.ndarray]]:
        """Titles and images: an image, learned and permuted noise as changes of its pixels, and their sums."""
        if self.synthesis.layer != PATCH_EMBED:
            return [], []
        titled = [("image", image)]
        for name, variant in (("learned", noise), ("permuted", permute_elements(noise, generator))):
            change = to_pixels(model, variant)
            if change is None:
                return [], []
            contrast = 0.5 + 0.5 * change / change.abs().max()
            titled += [(f"{name} noise", contrast), (f"image with {name} noise", image + change)]
        return [title for title, _ in titled], [to_uint8(image[0]) for _, image in titled]
