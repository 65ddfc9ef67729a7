"""Build a NoisyViT from a timm name, the hub, or a local checkpoint."""

import difflib
import logging
import re
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from torch import Tensor

from nsaug.models.noisy_vit import NoisyViT
from nsaug.models.weights import read_config, read_weights
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.types import Fraction, PositiveInt, validate_args

log = logging.getLogger(__name__)


@validate_args
def build_vit(
    name: str,
    *,
    num_classes: PositiveInt | None = None,
    pretrained: bool = False,
    checkpoint: str | None = None,
    img_size: PositiveInt | None = None,
    patch_size: PositiveInt | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    crop_pct: Fraction | None = None,
    interpolation: str | None = None,
    drop_path_rate: Fraction = 0.0,
    compile: bool = False,
    grad_checkpointing: bool = False,
    args: dict[str, Any] | None = None,
) -> NoisyViT:
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
        UserError: unknown name, weights that cannot be had or do not fit, no patch embedding to add noise to.
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
    return NoisyViT(model, model_args, compile=compile, grad_checkpointing=grad_checkpointing)


def _registered(name: str) -> dict[str, Any]:
    """timm's configuration for a name, or an error that offers the names like it."""
    base = name.split(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3) or ["vit_small_patch16_224"]
        raise UserError(f"model.name={name} is no timm model: try {' or '.join(near)}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = [tag.removeprefix(f"{base}.") for tag in timm.list_pretrained(f"{base}.*")]
        raise UserError(f"model.name={name}: {base} has no such weights; its tags are {', '.join(tags)}") from None
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
            raise UserError(f"{weights} does not fit model.name={name}: {_summarize_load_error(str(error))}") from error
        raise UserError(f"model.name={name} cannot be built: {first_line(error)}") from error


def _summarize_load_error(message: str) -> str:
    """One line from torch's report of a failed load: how many keys, and the first few of each kind."""
    parts = []
    for kind, pattern in (
        ("missing", r"Missing key\(s\)[^:]*: (.*)"),
        ("unexpected", r"Unexpected key\(s\)[^:]*: (.*)"),
    ):
        if found := re.search(pattern, message):
            parts.append(_preview(kind, re.findall(r'"([^"]+)"', found[1])))
    shapes = re.findall(r"size mismatch for ([^:]+):", message)
    if shapes:
        parts.append(_preview("of another shape", shapes))
    return "; ".join(parts) or message.splitlines()[0]


def _preview(kind: str, keys: list[str]) -> str:
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
        raise UserError(f"timm has no pretrained weights for {name}: {otherwise}")
    files = (config.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files if file):
        return
    try:
        if constants.is_offline_mode():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"the pretrained weights of {name} cannot be downloaded ({reason}): {otherwise}") from error
