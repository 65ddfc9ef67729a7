"""What a run trains on: from a batch to a loss, one file each."""

from nsaug.methods.adversarial import AdversarialTraining
from nsaug.methods.base import Method
from nsaug.methods.clean import Clean, TwoViews
from nsaug.methods.nullspace import Nullspace
from nsaug.methods.random_noise import RandomNoise
from nsaug.methods.trades import TRADES

__all__ = ["TRADES", "AdversarialTraining", "Clean", "Method", "Nullspace", "RandomNoise", "TwoViews"]
