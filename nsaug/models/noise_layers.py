"""Find the layers of a timm model that take noise: its patch embedding and its blocks."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nsaug.utils.errors import UserError, first_line

PATCH_EMBED_NAMES = (
    "patch_embed",  # ViT, DeiT, BEiT, Swin, PVTv2, XCiT and most others
    "encoder.patch_embed",  # Qwen3-ViT
    "patch_embed1",  # CoaT, Visformer
    "patch_embeds.0",  # Twins
    "embeds.norm",  # NaFlexViT: the last module before its positions are added
    "norm2_proj",  # TNT: the last module before its patch tokens get positions
    "stem",  # MLP-Mixer, LeViT, PoolFormer, DaViT, MaxViT, ConvNeXt, ...
)
"""Names that timm gives to the patch embedding; a model uses the first that it has."""

BLOCK = re.compile(r"(.+\.)?blocks\.\d+")
"""Names of blocks; Swin and PVT nest them in stages."""

AFTER_EMBEDDING = re.compile(r"(.+\.)?(block|stage|layer)s?_?\d*(\..+)?")
NUM_SUGGESTIONS = 5


@dataclass(frozen=True)
class NoiseLayers:
    """The layers of a model that take noise.

    Attributes:
        patch_embed: name of the module that is the patch embedding.
        takes_images: whether the input of that module is the images themselves.
        shapes: shape of one image's activations by layer: the output of the patch embedding, under "patch_embed",
            and the input of each block.
    """

    patch_embed: str
    takes_images: bool
    shapes: dict[str, torch.Size]


def find_noise_layers(
    model: nn.Module, input_size: tuple[int, int, int], patch_embed: str | None = None
) -> NoiseLayers:
    """Find the patch embedding and the blocks that take noise, by one forward of a black image.

    Args:
        model: a timm model in eval mode.
        input_size: (3, H, W).
        patch_embed: name of the module to use as patch embedding; None: look for it under the usual names.

    Raises:
        UserError: no such module, a module that the forward does not call exactly once, or a wrong image size.
    """
    modules = dict(model.named_modules())
    name = patch_embed or next((known for known in PATCH_EMBED_NAMES if known in modules), "")
    if name not in modules or not name:
        reason = f"has no module {name}" if name else "has no patch embedding with a known name"
        raise _no_patch_embed(model, input_size, reason)

    image = _black_image(model, input_size)
    inputs: list[Any] = []
    shapes: dict[str, list[Any]] = {}
    handles = [
        modules[name].register_forward_pre_hook(lambda module, args: inputs.append(unwrap_tokens(args))),
        modules[name].register_forward_hook(_record_output(shapes, "patch_embed")),
    ]
    for layer, module in modules.items():
        if BLOCK.fullmatch(layer) and layer != name:
            handles.append(module.register_forward_pre_hook(_record_input(shapes, layer)))
    with _removed_at_exit(handles):
        _forward(model, image)
    layers = {layer: calls[0][1:] for layer, calls in shapes.items() if len(calls) == 1 and calls[0] is not None}
    if "patch_embed" not in layers:
        calls = len(shapes.get("patch_embed", []))
        reason = f"calls its {name} {calls} times, not once"
        if calls == 0:
            reason = f"never calls its {name}"
        elif calls == 1:
            reason = f"has no embeddings (B, N, D) or (B, D, H, W) in the output of its {name}"
        raise _no_patch_embed(model, input_size, reason)
    ordered = {"patch_embed": layers.pop("patch_embed")} | layers
    return NoiseLayers(name, inputs[0] is image, ordered)


def unwrap_tokens(values: Any) -> Any:
    """Return the embeddings from a module's output or arguments, which may be a tuple that starts with them."""
    return values[0] if isinstance(values, tuple) and values else values


def is_channels_last(patch_embed: nn.Module, shape: torch.Size) -> bool:
    """Return whether a map of patch embeddings is (H, W, D) rather than (D, H, W)."""
    convolutions = [module for module in patch_embed.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        return not (shape[0] != shape[1] == shape[2])
    width = convolutions[-1].out_channels
    declared = str(getattr(patch_embed, "output_fmt", "")).endswith("NHWC")
    return shape[-1] == width and (shape[0] != width or declared)


def _record_output(shapes: dict[str, list[Any]], layer: str) -> Any:
    return lambda module, args, output: shapes.setdefault(layer, []).append(_shape(output))


def _record_input(shapes: dict[str, list[Any]], layer: str) -> Any:
    return lambda module, args: shapes.setdefault(layer, []).append(_shape(args))


def _shape(values: Any) -> torch.Size | None:
    """Shape of the embeddings of one image; None for other values."""
    values = unwrap_tokens(values)
    return values.shape if isinstance(values, Tensor) and values.dim() in (3, 4) and len(values) == 1 else None


def _black_image(model: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    parameter = next(model.parameters())
    return torch.zeros(1, *input_size, dtype=parameter.dtype, device=parameter.device)


def _forward(model: nn.Module, image: Tensor) -> None:
    try:
        with torch.no_grad():
            model(image)
    except (AssertionError, RuntimeError, ValueError) as error:
        size = "x".join(map(str, image.shape[2:]))
        raise UserError(
            f"{type(model).__name__} does not take images of {size} pixels ({first_line(error)}): set model.img_size"
        ) from error


def _no_patch_embed(model: nn.Module, input_size: tuple[int, int, int], reason: str) -> UserError:
    """Make the error that lists the modules that could serve as patch embedding."""
    shapes: dict[str, list[Any]] = {}
    modules = [(name, module) for name, module in model.named_modules() if name and name.count(".") < 2]
    with _removed_at_exit([module.register_forward_hook(_record_output(shapes, name)) for name, module in modules]):
        _forward(model, _black_image(model, input_size))
    candidates: list[str] = []
    for name, calls in shapes.items():  # in the order in which the modules return
        if AFTER_EMBEDDING.fullmatch(name):
            break
        if len(calls) == 1 and calls[0] is not None:
            candidates.append(name)
    *others, last = candidates[:NUM_SUGGESTIONS] or ["NAME"]
    choices = f"{', '.join(others)} or {last}" if others else last
    return UserError(f"{type(model).__name__} {reason}: set model.patch_embed={choices}, or choose another model")


@contextmanager
def _removed_at_exit(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
