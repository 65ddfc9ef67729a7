"""Approximate nullspace augmented finetuning of vision transformers (Liu et al., arXiv 2403.10476)."""
