"""A timm vision transformer that takes images in [0, 1] and, if asked, noise on its patch embeddings or in a block."""

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from nsaug.checkpoints import read_config, read_weights
from nsaug.settings import NsaugError, PositiveCount, Share, first_line, validated

log = logging.getLogger(__name__)

PATCH_EMBED = "patch_embed"
BLOCK = re.compile(r"(.+\.)?blocks\.\d+")
"""Which of a timm model's modules are blocks; nested in Swin's and PVT's stages."""


class ViT(nn.Module):
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
        NsaugError: the model has no `patch_embed` that its forward calls.
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
                raise NsaugError(
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
        self._site = PATCH_EMBED
        self.sites = _probe(model, self.data_config["input_size"])
        for site in self.sites:  # all at once: a hook that comes after torch.compile is ignored
            module = model.get_submodule(site)
            if site == PATCH_EMBED:
                module.register_forward_hook(self._add_to_output)
            else:
                module.register_forward_pre_hook(partial(self._add_to_input, site))

    def forward(self, images: Tensor, noise: Tensor | None = None, site: str = PATCH_EMBED) -> Tensor:
        """Logits, (B, num_classes).

        Args:
            images: (B, 3, H, W) in [0, 1], not normalised.
            noise: (1 or B, *noise_shape(site)), added there in the units of what is there; where tokens are kept in
                a map, (1 or B, N, D) does too.
            site: one of `sites`.

        Raises:
            NsaugError: an unknown site, or noise of another shape.
        """
        if noise is not None:
            noise = self._to_grid(noise, site)
        return (_compiled_run if self.compiles else _run)(self, images, noise, site)

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
    def among(self, classes: Sequence[int] | None) -> Iterator[None]:
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

    def noise_shape(self, site: str = PATCH_EMBED) -> torch.Size:
        """The shape of one image's noise at a site.

        Raises:
            NsaugError: the model has no such site.
        """
        if site not in self.sites:
            known = list(self.sites)
            shown = known if len(known) < 4 else [*known[:2], "...", known[-1]]
            raise NsaugError(f"{type(self.model).__name__} takes no noise at {site}: choose among {', '.join(shown)}")
        return self.sites[site]

    def normalize(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to what the timm model expects."""
        return (images - self.mean) / self.std

    def activations(self, images: Tensor, site: str = PATCH_EMBED) -> Tensor:
        """What noise would be added to, (B, *noise_shape(site)), for images (B, 3, H, W) in [0, 1]."""
        self.noise_shape(site)
        module = self.model.get_submodule(site)
        if site == PATCH_EMBED:
            return _first(module(self.normalize(images)))
        seen: list[Tensor] = []
        handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self.model(self.normalize(images))
        finally:
            handle.remove()
        return seen[0]

    def _add_to_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._noise is None or self._site != PATCH_EMBED:
            return None
        noised = self._added(_first(output))
        return (noised, *output[1:]) if isinstance(output, tuple) else noised

    def _add_to_input(self, site: str, module: nn.Module, args: Any) -> Any:
        if self._noise is None or self._site != site:
            return None
        return (self._added(args[0]), *args[1:])

    def _added(self, values: Tensor) -> Tensor:
        assert self._noise is not None
        return values + self._noise.to(values.dtype)

    def to_tokens(self, noise: Tensor, site: str = PATCH_EMBED) -> Tensor:
        """Noise (M, *noise_shape(site)) token by token, (M, N, D), which `forward` takes as well."""
        if noise.dim() == 3:
            return noise
        return noise.flatten(1, 2) if self._channels_last(site) else noise.flatten(2).transpose(1, 2)

    def _channels_last(self, site: str) -> bool:
        return site != PATCH_EMBED or _channels_last(self.model, self.noise_shape(site))

    def _to_grid(self, noise: Tensor, site: str) -> Tensor:
        grid = self.noise_shape(site)
        if noise.shape[1:] == grid:
            return noise
        if len(grid) == 3 and noise.dim() == 3:
            if self._channels_last(site) and noise.shape[1:] == (grid[0] * grid[1], grid[2]):
                return noise.unflatten(1, grid[:2])
            if not self._channels_last(site) and noise.shape[1:] == (grid[1] * grid[2], grid[0]):
                return noise.transpose(1, 2).unflatten(2, grid[1:])
        wanted = ", ".join(map(str, grid))
        raise NsaugError(f"noise has shape {tuple(noise.shape)}; at {site} it has to be (1 or B, {wanted})")


def _run(vit: ViT, images: Tensor, noise: Tensor | None, site: str) -> Tensor:
    vit._noise, vit._site = noise, site
    try:
        return vit.model(vit.normalize(images))
    finally:
        vit._noise = None


_compiled_run = torch.compile(_run)


def check_compile(device: torch.device) -> None:
    """Raises NsaugError where torch.compile does not work on a device: it needs a C++ compiler, or Triton."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:
        raise NsaugError(
            f"model.compile=true: torch.compile does not work here ({first_line(error)}): install"
            f" {'a C++ compiler' if device.type == 'cpu' else 'Triton'}, or type model.compile=false"
        ) from error


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
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


@validated
def build_vit(
    name: str,
    *,
    num_classes: PositiveCount | None = None,
    pretrained: bool = False,
    checkpoint: str | None = None,
    img_size: PositiveCount | None = None,
    patch_size: PositiveCount | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    crop_pct: Share | None = None,
    interpolation: str | None = None,
    drop_path_rate: Share = 0.0,
    compile: bool = False,
    grad_checkpointing: bool = False,
    args: dict[str, Any] | None = None,
) -> ViT:
    """A timm model as a `ViT`, from scratch, with the hub's weights, or with those of a local file.

    All weights that are loaded have to fit, key by key; timm resamples them for another image or patch size. Only the
    head may differ: for another class count it is replaced, and a line in the log says so.

    Args:
        name: any timm name, with or without a weight tag.
        num_classes: the classes of the data; where None, those that the weights know.
        pretrained: take the hub's weights; a `checkpoint` takes precedence.
        checkpoint: a run's folder, or a .safetensors, .pth or .ckpt file.
        img_size: side of the square input in pixels; where None, what the weights were trained on.
        patch_size: side of a patch in pixels; the model's own where None.
        mean, std: of the normalisation, per channel, for images in [0, 1]; where None, those that came with the
            weights, else timm's for this model.
        crop_pct, interpolation: how images are prepared for it; likewise.
        drop_path_rate: stochastic depth.
        compile: train it with torch.compile; see `ViT.compiled`.
        grad_checkpointing: keep no activations within blocks but compute them again in the backward.
        args: further arguments of `timm.create_model`.

    Raises:
        NsaugError: unknown name, weights that cannot be had or do not fit, no patch embedding to add noise to.
    """
    config = _registered(name)
    source = (read_config(checkpoint) or {}).get("pretrained_cfg", {}) if checkpoint else {}
    given = {"mean": mean, "std": std, "crop_pct": crop_pct, "interpolation": interpolation}
    overlay: dict[str, Any] = {
        key: value if value is not None else source.get(key)
        for key, value in given.items()
        if value is not None or key in source
    }
    overlay = {key: tuple(value) if isinstance(value, list) else value for key, value in overlay.items()}
    size = (img_size, img_size) if img_size is not None else tuple(source.get("input_size", ()))[1:]
    model_args = dict(args or {})
    if size:
        overlay |= {"input_size": (3, *size), "test_input_size": None}
        if _takes_img_size(config):
            model_args["img_size"] = size
    if patch_size is not None:
        model_args["patch_size"] = patch_size
    if drop_path_rate:
        model_args["drop_path_rate"] = drop_path_rate

    if checkpoint:
        state = read_weights(checkpoint)
        classes = _head_classes(state, config.get("classifier"))
        overlay |= {"state_dict": state, "num_classes": classes, "custom_load": False, "label_offset": None}
        model = _create(name, str(checkpoint), pretrained=True, num_classes=classes, overlay=overlay, args=model_args)
        model.pretrained_cfg.pop("state_dict", None)
        log.info("%s: all %d tensors of %s loaded, none missing, none unexpected", name, len(state), checkpoint)
    elif pretrained:
        _require_hub_weights(name, config)
        model = _create(name, "the hub's weights", pretrained=True, overlay=overlay, args=model_args)
        log.info("%s: the hub's weights loaded, none missing, none unexpected", name)
    else:
        wanted = {} if num_classes is None else {"num_classes": num_classes}
        model = _create(name, "", overlay=overlay, args=model_args, **wanted)

    if num_classes is not None and model.num_classes != num_classes:
        was = f"{model.num_classes} classes" if model.num_classes else "no head"
        log.info("%s: a new head for %d classes (the weights had %s)", name, num_classes, was)
        model.reset_classifier(num_classes)
    if compile:
        torch.compiler.reset()  # the graphs of the run before in this process count towards torch's limit of them
    return ViT(model, model_args, compile=compile, grad_checkpointing=grad_checkpointing)


def _registered(name: str) -> dict[str, Any]:
    """timm's configuration for a name, or an error that offers the names like it."""
    base = name.split(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3) or ["vit_small_patch16_224"]
        raise NsaugError(f"model.name={name} is no timm model: try {' or '.join(near)}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = [tag.removeprefix(f"{base}.") for tag in timm.list_pretrained(f"{base}.*")]
        raise NsaugError(f"model.name={name}: {base} has no such weights; its tags are {', '.join(tags)}") from None
    return config.to_dict()


def _takes_img_size(config: dict[str, Any]) -> bool:
    """Whether the architecture is built for one image size (PVT, for one, takes images as they come)."""
    try:
        with torch.device("meta"):
            timm.create_model(config["architecture"], img_size=config["input_size"][1:])
    except TypeError:
        return False
    return True


def _create(name: str, weights: str, *, overlay: dict[str, Any], args: dict[str, Any], **kwargs: Any) -> Any:
    try:
        return timm.create_model(name, pretrained_cfg_overlay=overlay, **kwargs, **args)
    except Exception as error:
        if weights and "state_dict" in str(error):
            raise NsaugError(f"{weights} does not fit model.name={name}: {_misfit(str(error))}") from error
        raise NsaugError(f"model.name={name} cannot be built: {first_line(error)}") from error


def _misfit(message: str) -> str:
    """One line from torch's report of a failed load: how many keys, and the first few of each kind."""
    parts = []
    for kind, pattern in (
        ("missing", r"Missing key\(s\)[^:]*: (.*)"),
        ("unexpected", r"Unexpected key\(s\)[^:]*: (.*)"),
    ):
        if found := re.search(pattern, message):
            parts.append(_some(kind, re.findall(r'"([^"]+)"', found[1])))
    shapes = re.findall(r"size mismatch for ([^:]+):", message)
    if shapes:
        parts.append(_some("of another shape", shapes))
    return "; ".join(parts) or message.splitlines()[0]


def _some(kind: str, keys: list[str]) -> str:
    return f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"


def _head_classes(state: dict[str, Tensor], classifier: str | tuple[str, ...] | None) -> int:
    """How many classes a state dict's head has; 0 without a head, as in self-supervised weights."""
    own = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    for head in (*own, "head", "head.fc", "fc", "classifier"):
        if f"{head}.weight" in state:
            return state[f"{head}.weight"].shape[0]
    return 0


def _require_hub_weights(name: str, config: dict[str, Any]) -> None:
    """Fails at once where the hub's weights are neither cached nor within reach (its client tries for a minute)."""
    otherwise = "type checkpoint=PATH to start from a local file, or model.pretrained=false to train from scratch"
    repository = config.get("hf_hub_id")
    if not repository:
        if config.get("url"):
            return
        raise NsaugError(f"timm has no pretrained weights for {name}: {otherwise}")
    files = (config.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files if file):
        return
    try:
        if constants.is_offline_mode():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:
        reason = first_line(error)
        raise NsaugError(f"the pretrained weights of {name} cannot be downloaded ({reason}): {otherwise}") from error


def _probe(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, torch.Size]:
    """The sites of a model with the shape of one image's values there, seen in a forward, which shows too that it
    calls each once."""
    name = type(model).__name__
    patch_embed = getattr(model, PATCH_EMBED, None)
    if not isinstance(patch_embed, nn.Module):
        raise NsaugError(f"{name} has no patch_embed to add noise to: choose a plain ViT, DeiT, BEiT, Swin, PVT, ...")
    seen: dict[str, list[Any]] = {PATCH_EMBED: []}
    handles = [patch_embed.register_forward_hook(lambda module, args, output: seen[PATCH_EMBED].append(_first(output)))]
    for site, module in model.named_modules():
        if BLOCK.fullmatch(site):
            own = seen[site] = []
            handles.append(
                module.register_forward_pre_hook(lambda module, args, own=own: own.append(_first(args or None)))
            )
    parameter = next(model.parameters())
    try:
        with torch.no_grad(), eval_mode(model):
            model(torch.zeros(1, *input_size, dtype=parameter.dtype, device=parameter.device))
    except (AssertionError, RuntimeError, ValueError) as error:
        size = "x".join(map(str, input_size[1:]))
        raise NsaugError(
            f"{name} does not take images of {size} pixels ({first_line(error)}): set model.img_size"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not seen[PATCH_EMBED]:
        raise NsaugError(f"{name} never calls its patch_embed, so no noise can be added to it: choose another model")
    values = {site: found[0] for site, found in seen.items() if site == PATCH_EMBED or len(found) == 1}
    return {site: each.shape[1:] for site, each in values.items() if isinstance(each, Tensor) and len(each) == 1}


def _first(values: Any) -> Any:
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
