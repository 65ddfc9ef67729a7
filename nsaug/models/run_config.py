"""config.json beside the weights: the entries that timm and nsaug need, read as data.

The file may come from a stranger. Entries that are not listed here are ignored, such as the address of pretrained
weights; nothing is imported, downloaded or executed.
"""

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import timm
from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, TypeAdapter, ValidationError, with_config
from timm.models import build_model_with_cfg, model_entrypoint
from torch import nn
from typing_extensions import TypedDict

from nsaug.utils.errors import UserError, os_reason
from nsaug.utils.files import open_regular
from nsaug.utils.types import (
    CropFraction,
    Decay,
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    Seed,
    adapter,
    check_unique,
    first_problem,
    problem,
)

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
MAX_BYTES = 16 * 2**20
"""The class names of ImageNet-21k take 1 MB."""
MAX_ARG = 2**16
"""Largest number in `model_args`: a depth or width above it would only fill the memory."""
ADVICE = "restore it, or name weights in another folder"

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that break a line or a terminal, or have no UTF-8 form."""


def _check_text(value: Any) -> Any:
    for text in _texts(value):
        if CONTROL.search(text):
            raise ValueError(f"{text!a:.80} has control characters")
    return value


def _texts(value: Any) -> Iterator[str]:
    """All strings in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(item)


ShortText = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_check_text)]
Plain = Annotated[JsonValue, AfterValidator(_check_text)]
Side = Annotated[int, Field(ge=1, le=MAX_ARG)]
Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
PILLOW_FILTERS: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By number in Pillow, as in preprocessor_config.json."""
WORD = re.compile(r"[\w-]{0,64}")
"""Name of a layer or a pooling: never a path or an address."""
IDENTIFIER = re.compile(r"[\w.-]{1,200}")
"""Part of the name of a W&B run: never a path or an address."""


def _check_identifier(value: str) -> str:
    if not IDENTIFIER.fullmatch(value):
        raise ValueError(f"{value!a:.80} should be a name of letters and digits")
    return value


Identifier = Annotated[str, AfterValidator(_check_identifier)]


def _check_model_arg(value: Any, depth: int = 0) -> Any:
    if isinstance(value, list) and depth < 2:
        for item in value:
            _check_model_arg(item, depth + 1)
    elif isinstance(value, str):
        if not WORD.fullmatch(value):
            raise ValueError(f"{value!a:.80} should be a name of letters and digits")
    elif isinstance(value, int | float):
        if not -MAX_ARG <= value <= MAX_ARG:  # also not NaN
            raise ValueError(f"{value!s:.20} should be from {-MAX_ARG:,} to {MAX_ARG:,}")
    elif value is not None:
        raise ValueError("should be a number, a name, or a list of these")
    return value


ModelArg = Annotated[JsonValue, AfterValidator(_check_model_arg)]


NormEps = Annotated[float, Field(ge=0, lt=1)]
ClassName = Annotated[str, Field(max_length=1000), AfterValidator(_check_text)]


def _by_index(value: Any) -> Any:
    """Convert names by index, {"0": "cat", "1": "dog"}, to a list; an empty one if indices are missing."""
    if not isinstance(value, dict):
        return value
    names = [value.get(str(index)) for index in range(len(value))]
    return [] if None in names else names


ClassNames = Annotated[list[ClassName], BeforeValidator(_by_index)]
"""By class index. Names may occur twice, as in ImageNet's."""


class Preprocessing(TypedDict, total=False):
    """The entries of timm's `pretrained_cfg` that describe the input."""

    input_size: tuple[Literal[3], Side, Side]
    mean: tuple[Fraction, Fraction, Fraction]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    crop_pct: CropFraction
    interpolation: Interpolation


class RecordedData(TypedDict):
    """A data set: its name in `nsaug.data.registry`, and the arguments of its class."""

    name: ShortText
    args: dict[ShortText, Plain]


class SplitRecord(TypedDict):
    """The images of a split: how many, and a hash of their ids."""

    count: NonNegativeInt
    hash: Identifier


class Splits(TypedDict):
    """The images that a run was trained on, and those it held out for validation."""

    train: SplitRecord
    val: SplitRecord


class WandbRun(TypedDict):
    """The W&B run that recorded the training."""

    id: Identifier
    project: Identifier
    entity: Identifier | None
    online: bool


@with_config(extra="allow")
class Settings(TypedDict, total=False):
    """The settings of a run, by group. They are compared and shown, never built."""

    ema: Decay | None


class BaseWeights(TypedDict):
    """Weights that a run was finetuned from: their name on the hub and their license, as far as they are known."""

    name: Annotated[str, Field(pattern=r"^[\w./-]{1,200}$")] | None
    license: Identifier | None


class RunMetadata(TypedDict, total=False):
    """What a training run records about itself."""

    command: list[Annotated[str, AfterValidator(_check_text)]]
    base: BaseWeights | None
    name: ShortText
    method: ShortText
    seed: Seed
    data: RecordedData
    splits: Splits
    class_names: Annotated[list[ShortText], Field(min_length=1), AfterValidator(check_unique)]
    settings: Annotated[Settings, AfterValidator(_check_text)]
    wandb: WandbRun | None
    patch_embed: ShortText
    norm_eps: NormEps


class RunConfig(TypedDict, total=False):
    """The content of config.json."""

    architecture: ShortText
    label_names: ClassNames
    model_args: dict[str, ModelArg]
    pretrained_cfg: Preprocessing
    nsaug: RunMetadata


class VisionConfig(TypedDict, total=False):
    """What the weights of a vision transformer of transformers do not show."""

    num_attention_heads: Side
    hidden_act: ShortText
    layer_norm_eps: NormEps
    use_swiglu_ffn: bool
    image_size: Side
    patch_size: Side


class TransformersConfig(VisionConfig, total=False):
    """The content of config.json that transformers writes."""

    model_type: ShortText
    id2label: ClassNames
    vision_config: VisionConfig | None


class ImageProcessor(TypedDict, total=False):
    """The content of preprocessor_config.json that transformers writes."""

    do_normalize: bool
    image_mean: tuple[Fraction, Fraction, Fraction]
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    resample: Annotated[int, Field(ge=0, le=5)]


class ShardIndex(TypedDict):
    """Transformers' index of weights in several files: file by key."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^[\w-][\w.-]{0,200}\.(safetensors|bin)$")]]


TRANSFORMERS_DEFAULTS: dict[str, VisionConfig] = {
    "vit": {"hidden_act": "gelu", "layer_norm_eps": 1e-12},
    "deit": {"hidden_act": "gelu", "layer_norm_eps": 1e-12},
    "vit_mae": {"hidden_act": "gelu", "layer_norm_eps": 1e-12},
    "dinov2": {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "dinov2_with_registers": {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "clip": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "clip_vision_model": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
}
"""What a config.json of transformers leaves out where it is the default."""

T = TypeVar("T")


@with_config(extra="allow")
class JsonObject(TypedDict):
    """Any entries."""


_OBJECT = TypeAdapter(JsonObject)
_TRANSFORMERS = TypeAdapter(TransformersConfig)
_PROCESSOR = TypeAdapter(ImageProcessor)
_SHARDS = TypeAdapter(ShardIndex)
_CONFIG = TypeAdapter(RunConfig)
_METADATA = TypeAdapter(RunMetadata)


def read_run_config(file: Path) -> RunConfig | None:
    """Read and check a config.json; None if there is none, or only one of another program.

    Raises:
        UserError: an entry is missing or invalid; the message names the file and the entry.
    """
    config = _read(file, _CONFIG, keys={"architecture", "nsaug"})
    if config is None:
        return None
    if "architecture" not in config:
        raise UserError(f"{file}: architecture is missing: {ADVICE}")
    architecture = config["architecture"]
    if "." in architecture or not timm.is_model(architecture):
        raise UserError(f"{file}: architecture={architecture!a:.80} is not a timm model: {ADVICE}")
    for key in config.get("model_args", {}):
        if key not in model_arg_names(architecture):
            raise UserError(f"{file}: model_args.{key!a:.80} is not an argument of {architecture}: {ADVICE}")
    return config


def read_transformers_config(file: Path) -> TransformersConfig | None:
    """Read and check a config.json of transformers; None if there is none, or one of another program.

    That of the vision tower of a model for images and text is moved to the top.

    Raises:
        UserError: an entry is invalid; the message names the file and the entry.
    """
    config = _read(file, _TRANSFORMERS, keys={"model_type"})
    if config is None:
        return None
    defaults = TRANSFORMERS_DEFAULTS.get(config["model_type"], {})
    merged: Any = defaults | config | (config.get("vision_config") or {})
    return merged


def read_preprocessor_config(file: Path) -> Preprocessing:
    """Read mean, std and interpolation from preprocessor_config.json of transformers; empty if there is none.

    Raises:
        UserError: an entry is invalid; the message names the file and the entry.
    """
    config = _read(file, _PROCESSOR, strict=None) or {}
    if not config.get("do_normalize", True):
        config |= {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
    preprocessing: Preprocessing = {}
    if "image_mean" in config and "image_std" in config:
        preprocessing |= {"mean": config["image_mean"], "std": config["image_std"]}
    if "resample" in config:
        preprocessing["interpolation"] = PILLOW_FILTERS[config["resample"]]
    return preprocessing


def read_shard_names(file: Path) -> list[str]:
    """Read the names of the files that hold the weights of a large model of transformers; none without an index.

    Raises:
        UserError: invalid index; files elsewhere are refused.
    """
    index = _read(file, _SHARDS)
    return sorted(set(index["weight_map"].values())) if index else []


def label_names(config: RunConfig | TransformersConfig | None) -> list[str] | None:
    """The class names by index that a config.json of timm or transformers states; None without any.

    The names LABEL_0, LABEL_1, ..., which transformers writes by default, do not count as names.
    """
    content: Any = config or {}
    names = content.get("label_names") or content.get("id2label")
    if not names or all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return None
    return list(names)


def check_metadata(metadata: dict[str, Any], file: Path) -> None:
    """Raise UserError if the metadata of a new run could not be read back from `file`."""
    try:
        _METADATA.validate_python(json.loads(json.dumps(metadata)), strict=True)
    except ValidationError as error:
        raise UserError(f"{file} cannot record this run: {first_problem(error)}") from error


def _read(file: Path, schema: TypeAdapter[T], *, keys: Collection[str] = (), strict: bool | None = True) -> T | None:
    """Read and check a JSON file.

    Args:
        file: its path.
        schema: the type of its content.
        keys: what only files of one program have.
        strict: as in `TypeAdapter.validate_json`.

    Returns:
        The content; None if there is no such file, or if it has none of the keys.

    Raises:
        UserError: it cannot be read, or is invalid; the message names the file and the entry.
    """
    try:
        with open_regular(file) as opened:
            content = opened.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({os_reason(error)}): {ADVICE}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{file} is larger than {MAX_BYTES // 2**20} MB: {ADVICE}")
    try:
        if keys and not _OBJECT.validate_json(content).keys() & keys:
            return None
        return schema.validate_json(content, strict=strict)
    except ValidationError as error:
        raise UserError(f"{file}: {first_problem(error)}: {ADVICE}") from error


@cache
def model_arg_types(architecture: str) -> dict[str, Any]:
    """Arguments that the constructors of a timm architecture take, with their types; Any where timm states none.

    Those of timm's factory are left out: they name files and addresses of weights (`checkpoint_path`,
    `pretrained_cfg`), or build something else than the classifier (`features_only`).
    """
    module = sys.modules[model_entrypoint(architecture).__module__]
    factory = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
    hidden = factory | {"self", "args", "device", "dtype", "features_only", "pruned"}
    types: dict[str, Any] = {}
    for item in vars(module).values():
        if not (inspect.isclass(item) and (issubclass(item, nn.Module) or dataclasses.is_dataclass(item))):
            continue
        for name, parameter in inspect.signature(item).parameters.items():
            stated = parameter.annotation
            known = Any if stated is parameter.empty or isinstance(stated, str) else stated
            if name not in hidden:
                types[name] = Union[types[name], known] if name in types else known  # noqa: UP007
    return types


def model_arg_names(architecture: str) -> frozenset[str]:
    """Names of the arguments that the constructors of a timm architecture take."""
    return frozenset(model_arg_types(architecture))


def model_arg_problem(architecture: str, name: str, value: Any) -> str | None:
    """What is wrong with the value of an argument of a timm architecture; None if nothing is known to be."""
    if isinstance(value, int | float) and not -MAX_ARG <= value <= MAX_ARG:
        return f"should be from {-MAX_ARG:,} to {MAX_ARG:,}"
    if name in ("depth", "embed_dim", "num_heads") and isinstance(value, int) and value < 1:
        return "should be 1 or more"
    try:
        stated = adapter(model_arg_types(architecture).get(name, Any))
        stated.validate_python(value, strict=True if isinstance(value, bool) else None)
    except ValidationError as error:
        return problem(error.errors()[0])
    return None
