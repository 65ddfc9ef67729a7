"""What a setting may be: types that carry their range, checked wherever a class marked `settings` is built.

The range stands once, in the annotation. `config.check` reads the same annotations to refuse a bad value of a
configuration before anything is built.
"""

import dataclasses
import json
from fractions import Fraction
from typing import Annotated, Any, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, validate_call
from pydantic.dataclasses import dataclass


class NsaugError(Exception):
    """Something a user can mend: its text is one line that says what is wrong and what to type instead."""

    def __init__(self, text: str) -> None:
        if text.startswith("Caught ") and "Original Traceback" in text:  # what torch makes of a loading process's error
            text = text.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(text)


def first_line(error: Exception) -> str:
    """The first line of an error's text; the name of its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def parse_number(value: Any) -> Any:
    """Reads `4/255` as the number it means; leaves all else to the type's own check."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is neither a number nor a fraction such as 4/255") from None
    return value


Number = Annotated[float, BeforeValidator(parse_number), Field(allow_inf_nan=False)]
"""A finite float; text such as `4/255` is read as a fraction."""

Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
PositiveShare = Annotated[Number, Field(gt=0, le=1)]
Decay = Annotated[Number, Field(gt=0, lt=1)]
PixelSize = Annotated[Number, Field(ge=0, le=1)]
"""A size in pixel units: images lie in [0, 1], so 4/255 is four grey levels of 8-bit images."""

Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def settings(cls: type) -> Any:
    """Makes a class a frozen dataclass with keyword arguments, each checked against its annotation."""
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return dataclass(config=config, frozen=True, kw_only=True)(cls)


def plain(value: Any) -> Any:
    """Settings as plain values, defaults included, with the class that each stands for."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__qualname__} | fields
    return list(value) if isinstance(value, tuple) else value


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their path, such as optim.lr; lists as JSON."""
    if not isinstance(settings, dict):
        return {prefix: settings if isinstance(settings, str | int | float | None) else json.dumps(settings)}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


validated = validate_call(config=ConfigDict(arbitrary_types_allowed=True))
"""Checks the arguments of a function, or of a constructor, against their annotations."""
