"""Finetuning methods, one per file: from a batch to a loss."""

from nsaug.methods.adversarial import AdversarialTraining
from nsaug.methods.base import Method
from nsaug.methods.clean import Clean, TwoViews
from nsaug.methods.noise_augmentation import NoiseAugmentation
from nsaug.methods.trades import TRADES

__all__ = ["TRADES", "AdversarialTraining", "Clean", "Method", "NoiseAugmentation", "TwoViews"]
