"""What every part of a configuration is made of, for all packages: a data layout has one of its own."""

from __future__ import annotations

import os
from operator import attrgetter
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from res2net_dense.limits import MAX_BATCH, MAX_CLASSES, MAX_PIXELS, MAX_STEPS


class OnlyWith:
    """Metadata of a field: it acts only where another one has one of some values.

    Args:
        key: a dotted path from the section of the field, or after a `/` from the top of the configuration.
        values: None among them is for what is not set; without any, whatever is set and not empty or 0.
        where: a field of the same section and its value with which this holds; None for always.
    """

    def __init__(self, key: str, *values: object, where: tuple[str, object] | None = None) -> None:
        self.key, self.values, self.where = key, values, where

    def fits(self, value: object) -> bool:
        """Whether the field acts where the other one is `value`."""
        return value in self.values if self.values else bool(value)


class Section(BaseModel):
    """Base of all sections: unknown keys, implicit conversions and later changes are refused."""

    # Strict, because lax mode silently takes `true` for 1, "4" for 4 and 4.0 for 4.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def conflict(self, key: str, reason: str) -> PydanticCustomError:
        """Build the error of a field that does not fit another one; `key` is its path inside the section."""
        return conflict(key, attrgetter(key)(self), reason)

    def check_not_above(self, low: str, high: str) -> None:
        """Raise an error if the field `low`, which is a number, a list or None, exceeds the field `high`."""
        value, limit = getattr(self, low), getattr(self, high)
        if value is not None and (max(value) if isinstance(value, list) else value) > limit:
            raise self.conflict(low, f"must not exceed {high} = {limit}")


def conflict(key: str, value: object, reason: str) -> PydanticCustomError:
    """Build the error of a value that is not a field; see `Section.conflict`."""
    return PydanticCustomError("conflict", "{reason}", {"key": key, "value": value, "reason": reason})


def _check_ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise PydanticCustomError("ascending", "must be two ascending numbers")
    return pair


def _check_rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise PydanticCustomError("rising", "must be two rising numbers")
    return pair


Text = Annotated[str, Field(min_length=1)]
PathText = Annotated[Text, AfterValidator(os.path.expanduser)]
"""A path; `~` is the home folder."""

Steps = Annotated[int, Field(gt=0, le=MAX_STEPS)]
StepsOrNone = Annotated[int, Field(ge=0, le=MAX_STEPS)]
BatchSize = Annotated[int, Field(gt=0, le=MAX_BATCH)]
Classes = Annotated[int, Field(gt=0, le=MAX_CLASSES)]
Edge = Annotated[int, Field(gt=0, le=MAX_PIXELS)]
"""Pixels of an edge."""
Channels = Annotated[int, Field(gt=0, le=16_384)]
Layers = Annotated[int, Field(ge=0, le=64)]
Number = Annotated[int, Field(gt=0, le=1_000_000)]
"""Of things in an image."""
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Score = Annotated[float, Field(ge=-1e6, le=1e6)]
PixelValue = Annotated[float, Field(ge=-1e12, le=1e12)]
Scale = Annotated[float, Field(gt=0, le=16)]
"""Factor on the size of an image."""
# YAML has no tuples, and strict mode would refuse a list for one.
Pair = Annotated[tuple[Score, Score], Field(strict=False)]
ValueRange = Annotated[tuple[PixelValue, PixelValue], Field(strict=False), AfterValidator(_check_rising)]
Range = Annotated[tuple[Scale, Scale], Field(strict=False), AfterValidator(_check_ascending)]
Shares = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(_check_ascending)]
