"""Approximate nullspace augmented finetuning of vision transformers (Liu et al., arXiv 2403.10476)."""

__version__ = "0.1.0"
