"""JSON that others wrote, read with care: every value has a type, and a wrong one is named with its place. Pure."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass, field
from typing import Any

from husai_lib.errors import DataError

WHOLE = "a whole number"


@dataclass(frozen=True)
class Part:
    """One JSON object of a file with its place, so that what is wrong in it can be named."""

    value: dict[str, Any]
    place: str
    notes: list[str] = field(default_factory=list)
    """What was there but could not be kept: numbers that are not finite."""

    def _get(self, key: str, kinds: type | tuple[type, ...], what: str) -> Any:
        value = self.value.get(key)
        return None if value is None else _checked(value, kinds, what, f"{self.place}.{key}")

    def part(self, *keys: str) -> Part:
        """The object under nested keys; an empty one where a key is missing or null."""
        here = self
        for key in keys:
            here = Part(here._get(key, dict, "an object") or {}, f"{here.place}.{key}", self.notes)
        return here

    def parts(self, key: str) -> list[Part]:
        """The objects of a list, each with notes of its own; none where it is missing or null."""
        places = [(value, f"{self.place}.{key}.{n}") for n, value in enumerate(self._get(key, list, "a list") or [])]
        return [Part(_checked(value, dict, "an object", place), place) for value, place in places]

    def raw(self, key: str) -> float | None:
        """A number, NaN and infinity included."""
        value = self._get(key, (int, float), "a number")
        try:
            return None if value is None else float(value)
        except OverflowError:
            return math.inf

    def number(self, key: str) -> float | None:
        """A finite number; None, and a note, for another."""
        value = self.raw(key)
        if value is None or math.isfinite(value):
            return value
        inside = self.place.rpartition(".")[2]
        self.notes.append(f"{key} is {value}" if inside.isdigit() else f"{inside}.{key} is {value}")
        return None

    def whole(self, key: str) -> int | None:
        """A whole number."""
        value = self.number(key)
        return None if value is None else int(self.value[key] if value.is_integer() else self._get(key, int, WHOLE))

    def needed(self, key: str, *others: Part) -> int:
        """A whole number of this object, else of one of the others; DataError where all lack it."""
        value: int | None = first(*(part.whole(key) for part in (self, *others)))
        if value is None:
            raise DataError(f"{self.place}.{key} is missing; give the file as it was written")
        return value

    def text(self, key: str) -> str:
        """A text; empty where it is missing or null."""
        return self._get(key, str, "a text") or ""

    def flag(self, key: str) -> bool | None:
        """True, false, or None where it is missing."""
        value: bool | None = self._get(key, bool, "true or false")
        return value

    def joined(self, key: str) -> str:
        """Names or numbers of a list, or of a text that joins them, joined by commas."""
        value = self._get(key, (list, str), "a list")
        return value if isinstance(value, str) else ",".join(map(str, value or ()))


def _checked(value: Any, kinds: type | tuple[type, ...], what: str, place: str) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise DataError(f"{place} is {reprlib.repr(value)}, not {what}; give the file as it was written")
    return value


def first(*values: Any) -> Any:
    """The first that is not None; 0.0 is a value."""
    return next((value for value in values if value is not None), None)
