"""Build a NoisyViT from a timm name, with weights of the hub or of a local file."""

import difflib
import inspect
import logging
import re
from functools import cache
from typing import Annotated, Any

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from pydantic import Field
from timm.layers import PatchEmbed
from torch import Tensor, nn

from nsaug.models.checkpoint_formats import (
    has_openai_clip_keys,
    has_transformers_keys,
    select_model,
    to_timm_keys,
    unwrap,
)
from nsaug.models.noisy_vit import NoisyViT
from nsaug.models.run_config import Interpolation, TransformersConfig, model_arg_names, model_arg_problem
from nsaug.models.weights import find_transformers_config, read_config, read_preprocessing, read_weights
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.text import preview
from nsaug.utils.types import CropFraction, Fraction, PositiveFloat, PositiveInt, shown, validate_args

log = logging.getLogger(__name__)

HEAD_INIT_SCALE = 0.03
"""Factor on timm's initialization of a head that replaces another.

With 10 new classes, ViT-Ti/16 starts at a cross-entropy of 4.36 for factor 1 and within 0.1 % of ln(10) for 0.03. With
factor 0 the influence of any noise and its gradient would be 0, so noise synthesis could not start.
"""

ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "quick_gelu": "quick_gelu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip
"""timm's names of the activations of transformers."""

TRANSFORMERS_ASSUMED = (
    "the number of heads, the activation and the epsilon of LayerNorm are assumed to be those of model.name"
    " (transformers' ViT has an epsilon of 1e-12, timm's 1e-6)"
)
CLIP_ASSUMED = (
    "the weights do not say which activation CLIP has, GELU is assumed: for OpenAI's weights choose a name with"
    " quickgelu, such as model.name=vit_base_patch32_clip_quickgelu_224"
)

RESAMPLED = "predictions differ from the source's unless model.img_size and model.patch_size are those of the weights"

HINTS = {
    "fc_norm.weight": "model.args={global_pool: avg}",
    "dist_token": "a model.name with distilled, or, without head_dist, model.args={reg_tokens: 1}",
    "reg_token": "a model.name with reg4",
    "norm_pre.weight": "a model.name with clip",
    "ls1.gamma": "model.args={init_values: 1}",
}
"""What to type for keys that the model does not have."""

RESERVED_ARGS = inspect.signature(timm.create_model).parameters.keys() - {"kwargs"}
"""Arguments of timm.create_model itself, such as checkpoint_path; only those of the model are accepted in `args`."""


@validate_args
def build_vit(
    name: str,
    *,
    num_classes: PositiveInt | None = None,
    pretrained: bool = False,
    checkpoint: str | None = None,
    img_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    patch_size: PositiveInt | None = None,
    patch_embed: str | None = None,
    mean: tuple[Fraction, Fraction, Fraction] | None = None,
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None,
    crop_pct: CropFraction | None = None,
    interpolation: Interpolation | None = None,
    drop_path_rate: Annotated[Fraction, Field(lt=1)] = 0.0,
    compile: bool = False,
    grad_checkpointing: bool = False,
    args: dict[str, Any] | None = None,
) -> NoisyViT:
    """Build a timm model as a NoisyViT: from scratch, or with weights of the hub or of a local file.

    Loaded weights must match the model key by key; timm resamples them to another image or patch size. Only the head
    may differ: it is replaced for another class count and starts with almost uniform predictions. Of a checkpoint of
    another library the encoder and, if timm has it, the head are used; see `checkpoint_formats`.

    Args:
        name: a timm name, with or without a weight tag.
        num_classes: number of classes; None: that of the weights.
        pretrained: load the hub's weights; a `checkpoint` takes precedence.
        checkpoint: a run's output folder, a folder of transformers, or a weights file (.safetensors, .pth, ...).
        img_size: input size in pixels, one number or (H, W); None: that of the weights.
        patch_size: patch size in pixels; None: the model's own.
        patch_embed: name of the module that is the patch embedding; None: the checkpoint's, else find it.
        mean: normalization per channel of images in [0, 1]; None: that of the weights, else timm's.
        std: likewise.
        crop_pct: share of an image's side that the center crop keeps; None: as for `mean`.
        interpolation: of resizing; None: as for `mean`.
        drop_path_rate: stochastic depth rate.
        compile: use torch.compile in training; see `NoisyViT.compiled`.
        grad_checkpointing: recompute the activations of blocks in the backward instead of storing them.
        args: further arguments of `timm.create_model`.

    Raises:
        UserError: unknown name, weights that are not available or do not match, or no patch embedding.
    """
    config = _find_config(name)
    model_args = dict(args or {})
    for key in RESERVED_ARGS & model_args.keys():
        raise UserError(f"model.args={{{key}: ...}} is not an option of the model: leave it out")
    if model_args.get("in_chans", 3) != 3:
        raise UserError(
            f"model.args={{in_chans: {model_args['in_chans']}}}: images have 3 channels, leave in_chans out"
        )
    _check_args(
        config["architecture"],
        model_args,
        {"img_size": img_size, "patch_size": patch_size, "drop_path_rate": drop_path_rate or None},
    )
    img_size = img_size or model_args.get("img_size")
    patch_size = patch_size or model_args.get("patch_size")
    run_config = (read_config(checkpoint) if checkpoint else None) or {}
    source = run_config.get("pretrained_cfg", {})
    norm_eps = run_config.get("nsaug", {}).get("norm_eps")
    if checkpoint and (transformers_config := find_transformers_config(checkpoint)):
        source = read_preprocessing(checkpoint)
        model_args = _transformers_args(transformers_config, config["architecture"], checkpoint) | model_args
        norm_eps = transformers_config.get("layer_norm_eps")
        img_size = img_size or transformers_config.get("image_size")
        patch_size = patch_size or transformers_config.get("patch_size")
    settings = {"mean": mean, "std": std, "crop_pct": crop_pct, "interpolation": interpolation}
    overlay: dict[str, Any] = {
        key: value if value is not None else source.get(key)
        for key, value in settings.items()
        if value is not None or key in source
    }
    size = _as_pair(img_size) if img_size is not None else tuple(source.get("input_size", ()))[1:]
    if size:
        overlay |= {"input_size": (3, *size), "test_input_size": None}
        if _takes_img_size(config["architecture"], config["input_size"][1:]):
            model_args["img_size"] = size
    if patch_size is not None:
        model_args["patch_size"] = patch_size
    if drop_path_rate:
        model_args["drop_path_rate"] = drop_path_rate

    if checkpoint:
        model = _load_checkpoint(name, str(checkpoint), config.get("classifier"), overlay, model_args)
    elif pretrained:
        _require_hub_weights(name, config)
        model = _create(name, "the hub's checkpoint", pretrained=True, overlay=overlay, args=model_args)
        log.info("%s: loaded the hub's weights, none missing, none unexpected", name)
    else:
        classes_arg = {} if num_classes is None else {"num_classes": num_classes}
        model = _create(name, "", overlay=overlay, args=model_args, **classes_arg)

    if num_classes is not None and model.num_classes != num_classes:
        before = f"{model.num_classes} classes" if model.num_classes else "no head"
        log.info("%s: new head for %d classes (the weights had %s)", name, num_classes, before)
        _replace_head(model, num_classes)
    if size:
        _check_size(model, size)
    if compile:
        torch.compiler.reset()  # graphs of earlier runs in this process count towards torch's recompile limit
    return NoisyViT(
        model,
        model_args,
        patch_embed=patch_embed or run_config.get("nsaug", {}).get("patch_embed"),
        norm_eps=norm_eps,
        compile=compile,
        grad_checkpointing=grad_checkpointing,
    )


def _check_args(architecture: str, args: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise UserError for arguments of the model that are not of timm's type, or are set a second time.

    Args:
        architecture: name of the model in timm.
        args: the arguments.
        settings: arguments that are settings of their own.
    """
    for key, value in args.items():
        if settings.get(key) is not None and value != settings[key]:
            raise UserError(
                f"model.args={{{key}: {value}}}: model.{key}={settings[key]} says otherwise, set that alone"
            )
        if reason := model_arg_problem(architecture, key, value):
            raise UserError(f"model.args.{key}={shown(value)}: {reason}")


def _as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


@torch.no_grad()
def _replace_head(model: Any, num_classes: int) -> None:
    """Replace the classification head by one whose loss starts at ln(num_classes)."""
    model.reset_classifier(num_classes)
    heads = model.get_classifier()
    for head in heads if isinstance(heads, tuple | list) else (heads,):
        for module in head.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                for parameter in module.parameters():
                    parameter.mul_(HEAD_INIT_SCALE)


def _find_config(name: str) -> dict[str, Any]:
    """Return timm's configuration of a model.

    Raises:
        UserError: unknown name or weight tag; the message suggests similar ones.
    """
    base = name.split(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3) or ["vit_small_patch16_224"]
        raise UserError(f"model.name={name} is not a timm model: try {' or '.join(near)}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = [tag.removeprefix(f"{base}.") for tag in timm.list_pretrained(f"{base}.*")]
        raise UserError(f"model.name={name}: {base} has no such weights; its tags are {', '.join(tags)}") from None
    return config.to_dict()


def _transformers_args(config: TransformersConfig, architecture: str, checkpoint: str) -> dict[str, Any]:
    """Arguments of timm's model that config.json of transformers states and the weights do not show."""
    args: dict[str, Any] = {"num_heads": config.get("num_attention_heads")}
    if "hidden_act" in config and not config.get("use_swiglu_ffn"):
        if config["hidden_act"] not in ACTIVATIONS:
            raise UserError(
                f"checkpoint={checkpoint}: hidden_act={config['hidden_act']} in its config.json is not one of"
                f" {', '.join(ACTIVATIONS)}"
            )
        args["act_layer"] = ACTIVATIONS[config["hidden_act"]]
    known = model_arg_names(architecture)
    return {key: value for key, value in args.items() if value is not None and key in known}


def _load_checkpoint(
    name: str, checkpoint: str, classifier: str | tuple[str, ...] | None, overlay: dict[str, Any], args: dict[str, Any]
) -> Any:
    """Build a model with the weights of a local file, and log what is taken from it and what is assumed."""
    tensors = read_weights(checkpoint)
    with torch.device("meta"):
        expected = _create(name, "", overlay=overlay, args=args).state_dict()
    try:
        selected = select_model(to_timm_keys(tensors), expected)
    except UserError as error:
        raise UserError(f"checkpoint={checkpoint}: {error}") from error
    except (RuntimeError, IndexError) as error:
        raise UserError(f"checkpoint={checkpoint} has weights of unexpected shapes: {first_line(error)}") from error
    try:
        model = _load(name, checkpoint, classifier, selected.weights, overlay=overlay, args=args)
    except UserError as error:
        try:  # formats of single models that only timm knows, such as AIMv2
            model = _load(name, checkpoint, classifier, unwrap(tensors), overlay=overlay, args=args)
        except UserError:
            raise error from None
        log.info("%s: loaded %s by timm's own conversion, none missing, none unexpected", name, checkpoint)
        return model

    log.info("%s: loaded all %d tensors of %s, none missing, none unexpected", name, len(selected.weights), checkpoint)
    if selected.copies:
        taken, *copies = (ascii(prefix or "no prefix")[1:-1] for prefix in (selected.prefix, *selected.copies))
        log.info("%s holds several models: took %s, not %s", checkpoint, taken, ", ".join(copies))
    if selected.unused:
        log.info("%s: %d not used (%s)", checkpoint, len(selected.unused), preview(selected.unused))
    loaded = model.state_dict()
    resampled = [key for key, value in selected.weights.items() if key in loaded and value.shape != loaded[key].shape]
    if resampled:
        log.info("%s: %d resampled (%s): %s", checkpoint, len(resampled), preview(resampled), RESAMPLED)
    if has_transformers_keys(tensors) and find_transformers_config(checkpoint) is None:
        log.warning("%s has no config.json of transformers beside it: %s", checkpoint, TRANSFORMERS_ASSUMED)
    if has_openai_clip_keys(tensors) and "quickgelu" not in name and "act_layer" not in args:
        log.warning("%s: %s", checkpoint, CLIP_ASSUMED)
    return model


def _check_size(model: Any, size: tuple[int, ...]) -> None:
    """Raise UserError if patches do not cover an image: timm would ignore the pixels beyond them."""
    patches = getattr(model, "patch_embed", None)
    if not isinstance(patches, PatchEmbed) or patches.dynamic_img_pad:
        return
    patch_size = patches.patch_size
    if any(length % patch for length, patch in zip(size, patch_size, strict=True)):
        text = str(size[0]) if size[0] == size[1] else f"[{size[0]},{size[1]}]"
        raise UserError(f"model.img_size={text}: should be a multiple of the patch size, {patch_size[0]}")


@cache
def _takes_img_size(architecture: str, size: tuple[int, int]) -> bool:
    """Return whether the architecture is built for a fixed image size; PVT, for example, is not."""
    try:
        with torch.device("meta"):
            timm.create_model(architecture, img_size=size)
    except TypeError:
        return False
    return True


def _load(
    name: str,
    checkpoint: str,
    classifier: str | tuple[str, ...] | None,
    state: dict[str, Tensor],
    *,
    overlay: dict[str, Any],
    args: dict[str, Any],
) -> Any:
    """Build a model with as many classes as the weights have, and load them; timm resamples and checks them."""
    classes = _count_head_classes(state, classifier)
    weights = {"state_dict": state, "num_classes": classes, "custom_load": False, "label_offset": None}
    model = _create(name, checkpoint, pretrained=True, num_classes=classes, overlay=overlay | weights, args=args)
    model.pretrained_cfg.pop("state_dict", None)
    return model


def _create(name: str, weights: str, *, overlay: dict[str, Any], args: dict[str, Any], **kwargs: Any) -> Any:
    try:
        return timm.create_model(name, pretrained_cfg_overlay=overlay, **kwargs, **args)
    except Exception as error:
        if weights and "state_dict" in str(error):
            raise UserError(
                f"{weights} does not match model.name={name}: {_summarize_load_error(str(error))}"
            ) from error
        raise UserError(f"model.name={name} cannot be built: {first_line(error)}") from error


def _summarize_load_error(message: str) -> str:
    """Summarize torch's report of a failed load in one line: count and first few keys of each kind, what to type."""
    keys = {
        kind: re.findall(r'"([^"]+)"', match[1])
        if (match := re.search(rf"{kind.title()} key\(s\)[^:]*: (.*)", message))
        else []
        for kind in ("missing", "unexpected")
    }
    keys["with another shape"] = re.findall(r"size mismatch for ([^:]+):", message)
    parts = [f"{len(names)} {kind} ({preview(names)})" for kind, names in keys.items() if names]
    hints = [hint for key, hint in HINTS.items() if any(name.endswith(key) for name in keys["unexpected"])]
    if keys["with another shape"]:
        hints.append("the model of these weights, such as model=vit_ti")
    if hints and parts:
        parts.append(f"try {' and '.join(hints)}")
    return "; ".join(parts) or message.splitlines()[0]


def _count_head_classes(state: dict[str, Tensor], classifier: str | tuple[str, ...] | None) -> int:
    """Return the number of classes of a state dict's head; 0 without a head, as in self-supervised weights."""
    declared = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    for head in (*declared, "head", "head.fc", "fc", "classifier"):
        if f"{head}.weight" in state:
            return state[f"{head}.weight"].shape[0]
    return 0


def _require_hub_weights(name: str, config: dict[str, Any]) -> None:
    """Fail early if the hub's weights are neither cached nor reachable; the hub's client would try for a minute."""
    advice = "set checkpoint=PATH to start from a local file, or model.pretrained=false to train from scratch"
    repository = config.get("hf_hub_id")
    if not repository:
        if config.get("url"):
            return
        raise UserError(f"timm has no pretrained weights for {name}: {advice}")
    files = (config.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files if file):
        return
    try:
        if constants.is_offline_mode():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"the pretrained weights of {name} cannot be downloaded ({reason}): {advice}") from error
