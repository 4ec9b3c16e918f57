"""What a section of the parameters is: closed to unknown keys, strict about types; and kinds of numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z][a-z0-9_]*$"
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def one_of(value: str, known: Iterable[str], what: str) -> str:
    """`value` if it is known; ValueError names the nearest that is."""
    if value not in (known := tuple(known)):
        nearest = difflib.get_close_matches(str(value), known, n=1, cutoff=0)[0]
        raise ValueError(f"{what} {value!r} is unknown; the nearest is {nearest!r}")
    return value


class Section(BaseModel):
    """A part of the parameters: frozen, strict about types, closed to unknown keys and NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            one_of(key, cls.model_fields, "key")
        return data
