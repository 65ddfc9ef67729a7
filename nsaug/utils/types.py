"""Types for settings: numbers with a range, and dataclasses and functions that check them.

The annotation is the only place that states the range. `cli.app.validate_config` reads the same annotations to check
a configuration before anything is built.
"""

import dataclasses
import fractions
import json
from collections.abc import Hashable, Iterable
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, validate_call
from pydantic.dataclasses import dataclass
from pydantic.errors import PydanticUserError
from pydantic_core import ErrorDetails

from nsaug.utils.errors import unknown_name


def parse_number(value: Any) -> Any:
    """Convert a fraction such as `4/255` to a float; return other values unchanged, except booleans."""
    if isinstance(value, str) and "/" in value:
        try:
            numerator, denominator = value.split("/")
            return float(fractions.Fraction(numerator) / fractions.Fraction(denominator))  # also 0.5/255
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is neither a number nor a fraction such as 4/255") from None
    return refuse_bool(value)


def refuse_bool(value: Any) -> Any:
    """Raise ValueError for a boolean, which pydantic takes for 0 or 1; return other values unchanged."""
    if isinstance(value, bool):
        raise ValueError(f"should be a number, not {str(value).lower()}")
    return value


Item = TypeVar("Item", bound=Hashable)


def check_unique(items: Any) -> Any:
    """Raise ValueError if an item of a sequence occurs twice; return the sequence."""
    seen = set()
    for item in items:
        if item in seen:
            raise ValueError(f"{item} is listed twice")
        seen.add(item)
    return items


def check_not_empty(text: str) -> str:
    """Raise ValueError for an empty text; return others unchanged."""
    if not text:
        raise ValueError("should not be empty")
    return text


Text = Annotated[str, AfterValidator(check_not_empty)]
"""Not empty: `checkpoint=$UNSET` is a mistake, and an empty path is the working directory."""

UniqueTuple = Annotated[tuple[Item, ...], Field(min_length=1), AfterValidator(check_unique)]
"""One or more different items."""

FiniteFloat = Annotated[float, BeforeValidator(parse_number), Field(allow_inf_nan=False)]
"""A finite float, also given as text such as `4/255`."""

PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
Fraction = Annotated[FiniteFloat, Field(ge=0, le=1)]
PositiveFraction = Annotated[FiniteFloat, Field(gt=0, le=1)]
CropFraction = Annotated[FiniteFloat, Field(ge=0.1, le=1)]
"""Share of an image that a crop keeps; the image is resized to the size of the crop divided by it."""
Decay = Annotated[float, BeforeValidator(refuse_bool), Field(gt=0, lt=1)]
"""Decay of a moving average."""

PixelEps = Annotated[FiniteFloat, Field(ge=0, le=1)]
"""A distance in pixel units: images are in [0, 1], so 4/255 is four gray levels of an 8-bit image."""

Integer = Annotated[int, BeforeValidator(refuse_bool), Field(ge=-(2**63), lt=2**63)]
NonNegativeInt = Annotated[Integer, Field(ge=0)]
PositiveInt = Annotated[Integer, Field(ge=1)]
NumWorkers = Annotated[Integer, Field(ge=0, le=1024)]
"""Processes that load images; a large number would only fill the memory."""
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
"""NumPy's global generator takes 32 bits."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def validated_dataclass(cls: type) -> Any:
    """Make a class a frozen, keyword-only dataclass whose fields are checked against their annotations."""
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return dataclass(config=config, frozen=True, kw_only=True)(cls)


def to_plain(value: Any) -> Any:
    """Convert dataclasses to dicts, recursively, with the class name under "class"; tuples to lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__qualname__} | fields
    return list(value) if isinstance(value, tuple) else value


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to one with dotted keys, such as "optim.lr"; lists become JSON."""
    if not isinstance(settings, dict):
        return {prefix: settings if isinstance(settings, str | int | float | None) else json.dumps(settings)}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


validate_args = validate_call(config=ConfigDict(arbitrary_types_allowed=True))
"""Decorator that checks the arguments of a function or constructor against their annotations."""


def adapter(annotation: Any) -> TypeAdapter[Any]:
    """A pydantic adapter of any type."""
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # validated dataclasses have a configuration already
        return TypeAdapter(annotation)


def problem(detail: ErrorDetails) -> str:
    """What is wrong with a value, given an item of `ValidationError.errors()`."""
    if detail["type"].startswith("missing"):
        return "lacks a value"
    text = detail["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    text = text.replace("a valid tuple", "a list, such as [a,b]").replace("Tuple should", "the list should")
    return text.replace(" after validation", "")


def shown(value: Any) -> str:
    """A value as it is typed, approximately."""
    return "null" if value is None else str(value)


def validation_message(error: ValidationError, path: str, known: Iterable[str]) -> str:
    """One line for the first fault that pydantic reports about the arguments under a path.

    Args:
        error: the error.
        path: the setting that holds the arguments, such as `suite.attacks.pgd`.
        known: names of all arguments.
    """
    detail = error.errors(include_url=False)[0]
    name = ".".join([path, *map(str, detail["loc"][:1])])
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return unknown_name(path, str(detail["loc"][0]), known)
    reason = problem(detail)
    if detail["type"].startswith("missing"):
        return f"{name} {reason}"
    if not detail["loc"]:
        return f"{path}: {reason}"
    return f"{name}={shown(detail['input'])}: {reason}"


def first_problem(error: ValidationError) -> str:
    """Describe the first problem of a failed validation, such as `data.args.root=3 should be a valid string`."""
    detail = error.errors(include_url=False)[0]
    keys = [part for part in detail["loc"] if not str(part).startswith(("function-", "constrained-"))]  # of a union
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)[1:]
    path = path.encode("ascii", "backslashreplace").decode()[:200]
    if detail["type"].startswith("missing"):
        return f"{path} is missing"
    if detail["type"] == "unexpected_keyword_argument":
        return f"{path}: no such setting"
    if detail["type"] == "json_invalid":
        return f"not valid JSON ({detail['ctx']['error']})"
    if detail["type"] == "too_short":
        return f"{path} is empty"
    value = detail["input"]
    hidden = not path or isinstance(value, dict | list) or detail["type"] == "value_error"
    text = "" if hidden else f"={ascii(value)[:60]}"
    return f"{path}{text} {problem(detail)}".strip()
