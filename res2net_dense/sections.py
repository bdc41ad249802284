"""What every part of a configuration is made of, for all packages: a data layout has one of its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys, implicit conversions and later changes are refused."""

    # Strict, because lax mode silently takes `true` for 1, "4" for 4 and 4.0 for 4.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def conflict(key: str, value: object, reason: str) -> PydanticCustomError:
    """Build the error of a field that does not fit another one; `key` is its path inside the section."""
    return PydanticCustomError("conflict", "{reason}", {"key": key, "value": value, "reason": reason})
