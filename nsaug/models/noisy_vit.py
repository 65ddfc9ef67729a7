"""A timm vision transformer that takes images in [0, 1] and, if asked, noise on its patch embeddings or in a block."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from nsaug.utils.errors import UserError, first_line

log = logging.getLogger(__name__)

PATCH_EMBED = "patch_embed"
BLOCK = re.compile(r"(.+\.)?blocks\.\d+")
"""Which of a timm model's modules are blocks; nested in Swin's and PVT's stages."""


class NoisyViT(nn.Module):
    """Wraps a timm model: normalises inside, adds noise at a site, is timm's own in all else.

    The encoder's forward is timm's. The noise enters through hooks: on what `patch_embed` returns, before class token
    and positions, or on what a block is given (`blocks.3`), class token included. `state_dict()` has the keys of the
    timm model, without a prefix.

    Attributes:
        model: the timm model.
        compile_forward: whether forwards go through torch.compile while `compiled` is open.
        compiles: whether they do now.
        grad_checkpointing: whether blocks keep no activations but compute them again in the backward.
        model_args: what `timm.create_model` was given beyond name and class count.
        sites: where noise can be added, and the shape of one image's values there. Those of `patch_embed` are in the
            model's own grid: (N, D), (H, W, D) or (D, H, W).
        data_config: timm's description of the images it takes: `input_size` (3, H, W), `interpolation`, `crop_pct`,
            `crop_mode`, `mean`, `std`.

    Raises:
        UserError: the model has no `patch_embed` that its forward calls.
    """

    model: Any  # timm's architectures share methods that no base class declares
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        compile: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.compile_forward = compile
        self.compiles = False
        self.grad_checkpointing = grad_checkpointing
        if grad_checkpointing:
            try:
                self.model.set_grad_checkpointing()
            except (AttributeError, AssertionError) as error:
                name = type(model).__name__
                raise UserError(
                    f"{name} knows no gradient checkpointing: set model.grad_checkpointing=false"
                ) from error
        self.model_args = dict(model_args or {})
        self.data_config: dict[str, Any] = resolve_model_data_config(model)
        # Not persistent: the state dict stays timm's, which keeps mean and std in its configuration.
        for name in ("mean", "std"):
            value = torch.tensor(self.data_config[name]).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.register_state_dict_post_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)
        self._noise: Tensor | None = None
        self._layer = PATCH_EMBED
        self.noise_shapes = _find_noise_layers(model, self.data_config["input_size"])
        for layer in self.noise_shapes:  # all at once: a hook that comes after torch.compile is ignored
            module = model.get_submodule(layer)
            if layer == PATCH_EMBED:
                module.register_forward_hook(self._add_to_output)
            else:
                module.register_forward_pre_hook(partial(self._add_to_input, layer))

    def forward(self, images: Tensor, noise: Tensor | None = None, layer: str = PATCH_EMBED) -> Tensor:
        """Logits, (B, num_classes).

        Args:
            images: (B, 3, H, W) in [0, 1], not normalised.
            noise: (1 or B, *noise_shape(site)), added there in the units of what is there; where tokens are kept in
                a map, (1 or B, N, D) does too.
            layer: one of `sites`.

        Raises:
            UserError: an unknown site, or noise of another shape.
        """
        if noise is not None:
            noise = self._to_grid(noise, layer)
        return (_compiled_run if self.compiles else _run)(self, images, noise, layer)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """While it is open, forwards go through torch.compile, where the model was built for it.

        For what is done over and over on images of one shape. Each combination of noise or none, gradients wanted or
        not, frozen or not, and train or eval mode has a graph of its own, made when it first occurs.
        """
        before, self.compiles = self.compiles, self.compile_forward
        try:
            yield
        finally:
            self.compiles = before

    @contextmanager
    def restrict_classes(self, classes: Sequence[int] | None) -> Iterator[None]:
        """While it is open, answers are logits of these class indices alone, in this order; of all where None.

        As good as masking the others: attacks and noise know of no other class either.
        """
        if classes is None:
            yield
            return
        kept = torch.tensor(list(classes), device=self.mean.device)
        handle = self.register_forward_hook(lambda module, args, logits: logits.index_select(-1, kept))
        try:
            yield
        finally:
            handle.remove()

    def noise_shape(self, layer: str = PATCH_EMBED) -> torch.Size:
        """The shape of one image's noise at a site.

        Raises:
            UserError: the model has no such site.
        """
        if layer not in self.noise_shapes:
            known = list(self.noise_shapes)
            shown = known if len(known) < 4 else [*known[:2], "...", known[-1]]
            raise UserError(f"{type(self.model).__name__} takes no noise at {layer}: choose among {', '.join(shown)}")
        return self.noise_shapes[layer]

    def normalize(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to what the timm model expects."""
        return (images - self.mean) / self.std

    def activations(self, images: Tensor, layer: str = PATCH_EMBED) -> Tensor:
        """What noise would be added to, (B, *noise_shape(site)), for images (B, 3, H, W) in [0, 1]."""
        self.noise_shape(layer)
        module = self.model.get_submodule(layer)
        if layer == PATCH_EMBED:
            return _unwrap_tokens(module(self.normalize(images)))
        seen: list[Tensor] = []
        handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self.model(self.normalize(images))
        finally:
            handle.remove()
        return seen[0]

    def _add_to_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._noise is None or self._layer != PATCH_EMBED:
            return None
        noised = self._add_noise(_unwrap_tokens(output))
        return (noised, *output[1:]) if isinstance(output, tuple) else noised

    def _add_to_input(self, layer: str, module: nn.Module, args: Any) -> Any:
        if self._noise is None or self._layer != layer:
            return None
        return (self._add_noise(args[0]), *args[1:])

    def _add_noise(self, values: Tensor) -> Tensor:
        assert self._noise is not None
        return values + self._noise.to(values.dtype)

    def to_tokens(self, noise: Tensor, layer: str = PATCH_EMBED) -> Tensor:
        """Noise (M, *noise_shape(site)) token by token, (M, N, D), which `forward` takes as well."""
        if noise.dim() == 3:
            return noise
        return noise.flatten(1, 2) if self._channels_last(layer) else noise.flatten(2).transpose(1, 2)

    def _channels_last(self, layer: str) -> bool:
        return layer != PATCH_EMBED or _channels_last(self.model, self.noise_shape(layer))

    def _to_grid(self, noise: Tensor, layer: str) -> Tensor:
        grid = self.noise_shape(layer)
        if noise.shape[1:] == grid:
            return noise
        if len(grid) == 3 and noise.dim() == 3:
            if self._channels_last(layer) and noise.shape[1:] == (grid[0] * grid[1], grid[2]):
                return noise.unflatten(1, grid[:2])
            if not self._channels_last(layer) and noise.shape[1:] == (grid[1] * grid[2], grid[0]):
                return noise.transpose(1, 2).unflatten(2, grid[1:])
        wanted = ", ".join(map(str, grid))
        raise UserError(f"noise has shape {tuple(noise.shape)}; at {layer} it has to be (1 or B, {wanted})")


def _run(vit: NoisyViT, images: Tensor, noise: Tensor | None, layer: str) -> Tensor:
    vit._noise, vit._layer = noise, layer
    try:
        return vit.model(vit.normalize(images))
    finally:
        vit._noise = None


_compiled_run = torch.compile(_run)


def check_compile(device: torch.device) -> None:
    """Raises UserError where torch.compile does not work on a device: it needs a C++ compiler, or Triton."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:
        raise UserError(
            f"model.compile=true: torch.compile does not work here ({first_line(error)}): install"
            f" {'a C++ compiler' if device.type == 'cpu' else 'Triton'}, or type model.compile=false"
        ) from error


@contextmanager
def params_frozen(module: nn.Module) -> Iterator[None]:
    """While it is open, no graph leads to a parameter.

    For gradients to images or noise alone: what torch.compile makes computes the weights' as well, whoever asks.
    """
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module into eval mode; afterwards each of its parts is back in the mode it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _find_noise_layers(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, torch.Size]:
    """The sites of a model with the shape of one image's values there, seen in a forward, which shows too that it
    calls each once."""
    name = type(model).__name__
    patch_embed = getattr(model, PATCH_EMBED, None)
    if not isinstance(patch_embed, nn.Module):
        raise UserError(f"{name} has no patch_embed to add noise to: choose a plain ViT, DeiT, BEiT, Swin, PVT, ...")
    seen: dict[str, list[Any]] = {PATCH_EMBED: []}
    handles = [
        patch_embed.register_forward_hook(lambda module, args, output: seen[PATCH_EMBED].append(_unwrap_tokens(output)))
    ]
    for layer, module in model.named_modules():
        if BLOCK.fullmatch(layer):
            own = seen[layer] = []
            handles.append(
                module.register_forward_pre_hook(lambda module, args, own=own: own.append(_unwrap_tokens(args or None)))
            )
    parameter = next(model.parameters())
    try:
        with torch.no_grad(), eval_mode(model):
            model(torch.zeros(1, *input_size, dtype=parameter.dtype, device=parameter.device))
    except (AssertionError, RuntimeError, ValueError) as error:
        size = "x".join(map(str, input_size[1:]))
        raise UserError(
            f"{name} does not take images of {size} pixels ({first_line(error)}): set model.img_size"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not seen[PATCH_EMBED]:
        raise UserError(f"{name} never calls its patch_embed, so no noise can be added to it: choose another model")
    values = {layer: found[0] for layer, found in seen.items() if layer == PATCH_EMBED or len(found) == 1}
    return {layer: each.shape[1:] for layer, each in values.items() if isinstance(each, Tensor) and len(each) == 1}


def _unwrap_tokens(values: Any) -> Any:
    """The embeddings in what a patch embedding returns, or a block is given: some have the grid's size beside them."""
    return values[0] if isinstance(values, tuple) else values


def _channels_last(model: nn.Module, grid: torch.Size) -> bool:
    """Whether a map of patch embeddings is (H, W, D) and not (D, H, W)."""
    convolutions = [m for m in model.get_submodule("patch_embed").modules() if isinstance(m, nn.Conv2d)]
    width = convolutions[-1].out_channels if convolutions else grid[-1]
    return grid[-1] == width and (grid[0] != width or _declares_channels_last(model))


def _declares_channels_last(model: nn.Module) -> bool:
    return str(getattr(model.get_submodule("patch_embed"), "output_fmt", "")).endswith("NHWC")


def _drop_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    inner = f"{prefix}model."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}model.{key.removeprefix(prefix)}"] = state.pop(key)
