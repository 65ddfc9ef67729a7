"""Types for settings: numbers with a range, and dataclasses and functions that check them.

The annotation is the only place that states the range. `cli.app.validate_config` reads the same annotations to check
a configuration before anything is built.
"""

import dataclasses
import fractions
import json
from collections.abc import Iterable
from typing import Annotated, Any, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, validate_call
from pydantic.dataclasses import dataclass

from nsaug.utils.errors import unknown_name


def parse_number(value: Any) -> Any:
    """Convert a fraction such as `4/255` to a float; return other values unchanged."""
    if isinstance(value, str) and "/" in value:
        try:
            numerator, denominator = value.split("/")
            return float(fractions.Fraction(numerator) / fractions.Fraction(denominator))  # also 0.5/255
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is neither a number nor a fraction such as 4/255") from None
    return value


FiniteFloat = Annotated[float, BeforeValidator(parse_number), Field(allow_inf_nan=False)]
"""A finite float, also given as text such as `4/255`."""

PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
Fraction = Annotated[FiniteFloat, Field(ge=0, le=1)]
PositiveFraction = Annotated[FiniteFloat, Field(gt=0, le=1)]
Decay = Annotated[FiniteFloat, Field(gt=0, lt=1)]
"""Decay of a moving average."""

PixelEps = Annotated[FiniteFloat, Field(ge=0, le=1)]
"""A distance in pixel units: images are in [0, 1], so 4/255 is four gray levels of an 8-bit image."""

NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]


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
    if detail["type"] in ("missing", "missing_keyword_only_argument", "missing_argument"):
        return f"{name} lacks a value"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    if not detail["loc"]:
        return f"{path}: {message}"
    return f"{name}={detail['input']}: {message}".replace("None", "null")
