"""Approximate nullspace augmented finetuning of vision transformers (Liu et al., arXiv 2403.10476)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsaug.api import evaluate, finetune

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "finetune"]


def __getattr__(name: str) -> Any:
    """Import the functions at first use: `import nsaug` loads neither PyTorch nor Lightning."""
    if name in ("evaluate", "finetune"):
        from nsaug import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
