"""The base of all sections of the parameters, and kinds of numbers."""

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from husai_lib.errors import ParameterError

P = TypeVar("P", bound=BaseModel)
T = TypeVar("T")
NAME = r"^[a-z][a-z0-9_]{0,99}$"
UNSAID = {"[key]", "hyperparameters", "constrained-int"}
"""Parts of the place of a mistake that no file has."""
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

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in data if isinstance(data, dict) else ():
            one_of(key, known, "key")
        return data

    @model_validator(mode="after")
    def _checked(self) -> Self:
        self._check()
        return self

    def _check(self) -> None:
        """Raise ValueError where the values do not fit together."""


def distinct(values: list[T], what: str) -> list[T]:
    """`values` if none occurs twice; ValueError names the first that does."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{what} {value!r} is given twice; keep one")
    return values


def check(model: type[P], data: dict[str, Any], source: str) -> P:
    """`data` as a `model`; ParameterError describes the first mistake in one sentence."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ParameterError(f"{source}: {_sentence(error.errors()[0])}") from None


def _sentence(mistake: Any) -> str:
    key = ".".join(str(part) for part in mistake["loc"] if part not in UNSAID)
    match mistake["type"], mistake["input"]:
        case "missing", _:
            return f"{key} is missing; add it"
        case "value_error", _ if isinstance(mistake["ctx"]["error"], ValidationError):  # of hyperparameters
            return f"{key}.{_sentence(mistake['ctx']['error'].errors()[0])}"
        case "value_error", _:
            return f"{key}: {mistake['ctx']['error']}".removeprefix(": ")
        case "float_type", str(text) if re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", text):
            return f"{key} = {text!r} is text in YAML; write it with a decimal point, such as 1.0e-5"
        case _, value:
            return f"{key} = {reprlib.repr(value)}: {mistake['msg']}"
