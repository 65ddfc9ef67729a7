"""Finetuning methods: from a batch to a loss."""

from nsaug.methods.adversarial import AdversarialTraining
from nsaug.methods.base import Method
from nsaug.methods.clean import Clean, TwoViews
from nsaug.methods.embedding_adversarial import EmbeddingAdversarial, FreeLB
from nsaug.methods.image_augmentation import AugMix, GaussianNoise
from nsaug.methods.noise_augmentation import NoiseAugmentation
from nsaug.methods.r_drop import RDrop
from nsaug.methods.smoothness import R3F, SMART
from nsaug.methods.trades import TRADES

__all__ = [
    "R3F",
    "SMART",
    "TRADES",
    "AdversarialTraining",
    "AugMix",
    "Clean",
    "EmbeddingAdversarial",
    "FreeLB",
    "GaussianNoise",
    "Method",
    "NoiseAugmentation",
    "RDrop",
    "TwoViews",
]
