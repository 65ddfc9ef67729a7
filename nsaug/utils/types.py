"""What a setting may be: types that carry their range, checked wherever a class marked `settings` is built.

The range stands once, in the annotation. `config.check` reads the same annotations to refuse a bad value of a
configuration before anything is built.
"""

import dataclasses
import fractions
import json
from typing import Annotated, Any, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, validate_call
from pydantic.dataclasses import dataclass


def parse_number(value: Any) -> Any:
    """Reads `4/255` as the number it means; leaves all else to the type's own check."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(fractions.Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is neither a number nor a fraction such as 4/255") from None
    return value


FiniteFloat = Annotated[float, BeforeValidator(parse_number), Field(allow_inf_nan=False)]
"""A finite float; text such as `4/255` is read as a fraction."""

PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
Fraction = Annotated[FiniteFloat, Field(ge=0, le=1)]
PositiveFraction = Annotated[FiniteFloat, Field(gt=0, le=1)]
Decay = Annotated[FiniteFloat, Field(gt=0, lt=1)]
PixelEps = Annotated[FiniteFloat, Field(ge=0, le=1)]
"""A size in pixel units: images lie in [0, 1], so 4/255 is four grey levels of 8-bit images."""

NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def validated_dataclass(cls: type) -> Any:
    """Makes a class a frozen dataclass with keyword arguments, each checked against its annotation."""
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return dataclass(config=config, frozen=True, kw_only=True)(cls)


def to_plain(value: Any) -> Any:
    """Settings as plain values, defaults included, with the class that each stands for."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__qualname__} | fields
    return list(value) if isinstance(value, tuple) else value


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their path, such as optim.lr; lists as JSON."""
    if not isinstance(settings, dict):
        return {prefix: settings if isinstance(settings, str | int | float | None) else json.dumps(settings)}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return found


validate_args = validate_call(config=ConfigDict(arbitrary_types_allowed=True))
"""Checks the arguments of a function, or of a constructor, against their annotations."""
