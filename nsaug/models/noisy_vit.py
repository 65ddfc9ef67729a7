"""A timm vision transformer for images in [0, 1] that can add noise to its patch embeddings or in a block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.layers import DropPath, PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from nsaug.models.noise_layers import find_noise_layers, is_channels_last, unwrap_tokens
from nsaug.utils.errors import UserError, first_line

PATCH_EMBED = "patch_embed"
"""The layer that is the output of the patch embedding, whatever timm calls that module."""


class NoisyViT(nn.Module):
    """A timm model with normalization inside and a forward that can add noise at a layer.

    The forward is timm's. Hooks add the noise: to the output of the patch embedding, before class token and position
    embeddings, or to the input of a block (`blocks.3`), class token included. `state_dict()` has the keys of the timm
    model, without a prefix.

    Args:
        model: a timm model.
        model_args: arguments of `timm.create_model` besides name and class count, to be saved with the weights.
        patch_embed: name of the module in `model` that is the patch embedding; None: find it.
        norm_eps: epsilon of all LayerNorms, where it is not timm's: that of transformers' ViT is 1e-12.
        compile: use torch.compile while `compiled` is open.
        grad_checkpointing: recompute the activations of blocks in the backward instead of storing them.

    Attributes:
        compiles: whether forwards currently use torch.compile.
        noise_shapes: the layers that take noise, with the shape of one image's activations. That of `patch_embed` is
            the model's own: (N, D), (H, W, D) or (D, H, W).
        data_config: timm's description of the input: `input_size` (3, H, W), `interpolation`, `crop_pct`,
            `crop_mode`, `mean`, `std`.

    Raises:
        UserError: no patch embedding that the forward calls exactly once.
    """

    model: Any  # timm's architectures share methods that no base class declares
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        patch_embed: str | None = None,
        norm_eps: float | None = None,
        compile: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.norm_eps = norm_eps
        if norm_eps is not None:
            for module in model.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = norm_eps
        self.compile_forward = compile
        self.compiles = False
        self.grad_checkpointing = grad_checkpointing
        if grad_checkpointing:
            try:
                self.model.set_grad_checkpointing()
            except (AttributeError, AssertionError) as error:
                name = type(model).__name__
                raise UserError(
                    f"{name} does not support gradient checkpointing: set model.grad_checkpointing=false"
                ) from error
        self.model_args = dict(model_args or {})
        self.data_config: dict[str, Any] = resolve_model_data_config(model)
        embed: Any = getattr(model, "patch_embed", None)
        if getattr(embed, "strict_img_size", False):  # timm.create_model(..., img_size=...) leaves the configuration
            self.data_config["input_size"] = (3, *embed.img_size)
        # Not persistent: the state dict stays timm's, which keeps mean and std in its configuration.
        device = next(model.parameters()).device
        for name in ("mean", "std"):
            value = torch.tensor(self.data_config[name], device=device).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.register_state_dict_post_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)
        self._noise: Tensor | None = None
        self._layer = PATCH_EMBED
        with eval_mode(model):
            layers = find_noise_layers(model, self.data_config["input_size"], patch_embed)
        self.patch_embed_name, self.noise_shapes = layers.patch_embed, layers.shapes
        self._embeds_images = layers.takes_images
        # Register all hooks now: torch.compile ignores hooks that are added after it.
        self._handles = [
            self.patch_embed.register_forward_hook(self._add_to_output)
            if layer == PATCH_EMBED
            else model.get_submodule(layer).register_forward_pre_hook(partial(self._add_to_input, layer))
            for layer in self.noise_shapes
        ]

    @property
    def patch_embed(self) -> nn.Module:
        """The module whose output is the patch embeddings."""
        return self.model.get_submodule(self.patch_embed_name)

    def release(self) -> Any:
        """Return the timm model without hooks; no noise can be added afterwards."""
        for handle in self._handles:
            handle.remove()
        return self.model

    def forward(self, images: Tensor, noise: Tensor | None = None, layer: str = PATCH_EMBED) -> Tensor:
        """Compute logits, (B, num_classes).

        Args:
            images: (B, 3, H, W) in [0, 1], not normalized.
            noise: (1 or B, *noise_shape(layer)), in units of the activations there. Where the activations are a map,
                (1 or B, N, D) is accepted, too.
            layer: a key of `noise_shapes`.

        Raises:
            UserError: unknown layer, or wrong shape of the noise.
        """
        if noise is not None:
            noise = self._to_grid(noise, layer)
        return (_compiled_run() if self.compiles else _run)(self, images, noise, layer)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Use torch.compile inside this context, if the model was built with `compile=True`.

        Meant for repeated forwards on images of one shape. Every combination of with or without noise, gradients,
        frozen parameters, and train or eval mode compiles its own graph at first use.
        """
        before, self.compiles = self.compiles, self.compile_forward
        try:
            yield
        finally:
            self.compiles = before

    @contextmanager
    def restrict_classes(self, classes: Sequence[int] | None) -> Iterator[None]:
        """Return only the logits of these class indices, in this order, inside this context; None: all logits.

        Attacks and noise synthesis in the context do not see other classes either.
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
        """Return the shape of one image's noise at a layer.

        Raises:
            UserError: the model has no such layer.
        """
        if layer not in self.noise_shapes:
            known = list(self.noise_shapes)
            shown = known if len(known) < 4 else [*known[:2], "...", known[-1]]
            raise UserError(f"{type(self.model).__name__} takes no noise at {layer}: choose among {', '.join(shown)}")
        return self.noise_shapes[layer]

    def normalize(self, images: Tensor) -> Tensor:
        """Convert images in [0, 1] to the input of the timm model."""
        return (images - self.mean) / self.std

    def activations(self, images: Tensor, layer: str = PATCH_EMBED) -> Tensor:
        """Compute the activations that noise is added to, (B, *noise_shape(layer)), for images (B, 3, H, W)."""
        self.noise_shape(layer)
        if layer == PATCH_EMBED and self._embeds_images:
            return unwrap_tokens(self.patch_embed(self.normalize(images)))
        seen: list[Tensor] = []  # clones, because NaFlexViT adds its position embeddings in place
        if layer == PATCH_EMBED:
            handle = self.patch_embed.register_forward_hook(
                lambda module, args, output: seen.append(unwrap_tokens(output).clone())
            )
        else:
            module = self.model.get_submodule(layer)
            handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        try:
            self.model(self.normalize(images))
        finally:
            handle.remove()
        return seen[0]

    def _add_to_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._noise is None or self._layer != PATCH_EMBED:
            return None
        noisy = self._add_noise(unwrap_tokens(output))
        return (noisy, *output[1:]) if isinstance(output, tuple) else noisy

    def _add_to_input(self, layer: str, module: nn.Module, args: Any) -> Any:
        if self._noise is None or self._layer != layer:
            return None
        return (self._add_noise(args[0]), *args[1:])

    def _add_noise(self, values: Tensor) -> Tensor:
        assert self._noise is not None
        return values + self._noise.to(values.dtype)

    def to_tokens(self, noise: Tensor, layer: str = PATCH_EMBED) -> Tensor:
        """Reshape noise (M, *noise_shape(layer)) to tokens, (M, N, D), which `forward` accepts as well."""
        if noise.dim() == 3:
            return noise
        return noise.flatten(1, 2) if self._channels_last(layer) else noise.flatten(2).transpose(1, 2)

    def _channels_last(self, layer: str) -> bool:
        return layer != PATCH_EMBED or is_channels_last(self.patch_embed, self.noise_shape(layer))

    def _to_grid(self, noise: Tensor, layer: str) -> Tensor:
        grid = self.noise_shape(layer)
        if noise.shape[1:] == grid:
            return noise
        if len(grid) == 3 and noise.dim() == 3:
            if self._channels_last(layer) and noise.shape[1:] == (grid[0] * grid[1], grid[2]):
                return noise.unflatten(1, grid[:2])
            if not self._channels_last(layer) and noise.shape[1:] == (grid[1] * grid[2], grid[0]):
                return noise.transpose(1, 2).unflatten(2, grid[1:])
        expected = ", ".join(map(str, grid))
        raise UserError(f"noise has shape {tuple(noise.shape)}; {layer} takes (1 or B, {expected})")


def _run(vit: NoisyViT, images: Tensor, noise: Tensor | None, layer: str) -> Tensor:
    vit._noise, vit._layer = noise, layer
    try:
        return vit.model(vit.normalize(images))
    finally:
        vit._noise = None


@cache
def _compiled_run() -> Any:
    """`_run` compiled, for all models; made at first use, since torch.compile is slow to import."""
    return torch.compile(_run)


def check_compile(device: torch.device) -> None:
    """Raise UserError if torch.compile does not work on a device; it needs a C++ compiler or Triton."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:
        raise UserError(
            f"model.compile=true: torch.compile does not work here ({first_line(error)}): install"
            f" {'a C++ compiler' if device.type == 'cpu' else 'Triton'}, or set model.compile=false"
        ) from error


@contextmanager
def params_frozen(module: nn.Module) -> Iterator[None]:
    """Turn off gradients of all parameters inside this context.

    For gradients with respect to images or noise alone: a graph from torch.compile would compute those of the
    parameters as well.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode; restore the mode of every submodule on exit."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def matches_eval_mode(module: nn.Module) -> bool:
    """Whether a module computes the same in its present mode as in eval mode: no dropout, no batch statistics."""
    return not any(part.training and (_drops(part) or isinstance(part, _BatchNorm)) for part in module.modules())


def has_dropout(module: nn.Module) -> bool:
    """Whether a module has dropout or stochastic depth with a rate above 0."""
    return any(_drops(part) for part in module.modules())


def _drops(part: Any) -> bool:
    if isinstance(part, _DropoutNd):
        return part.p > 0
    if isinstance(part, DropPath):
        return part.drop_prob > 0
    return isinstance(part, PatchDropout | PatchDropoutWithIndices) and part.prob > 0


def _drop_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    inner = f"{prefix}model."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}model.{key.removeprefix(prefix)}"] = state.pop(key)
