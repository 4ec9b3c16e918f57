"""What a check is, and what came of many of them: problems, and what could not be checked here."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import Any

from husai_lib.errors import HusaiError
from husai_lib.evidence.rows.base import RunTables
from husai_lib.evidence.runs import Record, Run
from husai_lib.evidence.steps import candidate_of
from husai_lib.evidence.verification import UNREADABLE
from husai_lib.files import read_json

Check = tuple[str, Any, Any]
"""What is checked, what is stated, what it must be."""
UNCHECKED: Any = object()
"""In place of a stated value: it cannot be checked here, and the name of the check says why."""


@dataclass
class Audit:
    """What came of checking a run, an import, the front page or a site."""

    checked: int = 0
    """Values that were checked."""
    unchecked: Counter[str] = field(default_factory=Counter)
    """What could not be checked here, and how many values it concerns."""
    problems: list[str] = field(default_factory=list)
    """One sentence each."""
    by: str = ""
    """The commit whose code checked; empty for this code."""

    def __str__(self) -> str:
        """The counts, in words."""
        counts = [f"{self.checked:,} values checked", *(f"{n} {what}" for what, n in sorted(self.unchecked.items()))]
        by = f"; by the code of commit {self.by[:12]}, which made it" if self.by else ""
        return ", ".join([*counts, f"{len(self.problems)} problems" if self.problems else "no problem"]) + by

    def take(self, checks: Iterable[Check], what: str) -> None:
        """Count the checks of a generator; a value that must be another one, or a failure of it, is a problem."""
        found = list(self.problems)
        try:
            for name, stated, must in checks:
                if stated is UNCHECKED:
                    self.unchecked[name] += 1
                    continue
                self.checked += 1
                if not same(stated, must):
                    found.append(f"{name} is {_short(stated)} but must be {_short(must)}")
        except HusaiError as error:
            found.append(str(error))
        except UNREADABLE as error:
            found.append(f"{what} cannot be checked ({type(error).__name__}: {error})")
        self.problems = list(dict.fromkeys(found))


def same(stated: Any, must: Any) -> bool:
    """Whether two values are equal; numbers to 1e-9."""
    if isinstance(stated, float) and isinstance(must, float):
        return math.isclose(stated, must, rel_tol=1e-9, abs_tol=1e-9)
    return bool(stated == must)


def follow(what: str, stated: Mapping[str, Any], must: Mapping[str, Any]) -> Iterator[Check]:
    """A check for every key that either mapping has."""
    for name in sorted(stated.keys() | must.keys()):
        yield f"{what} {name}", stated.get(name, "absent"), must.get(name, "absent")


def follow_values(what: str, stated: Any, must: Any) -> Iterator[Check]:
    """A check for every single value of two nested JSON values."""
    if isinstance(stated, dict) and isinstance(must, dict):
        for key in sorted(stated.keys() | must.keys()):
            yield from follow_values(f"{what}.{key}", stated.get(key, "absent"), must.get(key, "absent"))
    elif isinstance(stated, list) and isinstance(must, list) and len(stated) == len(must):
        for n, (own, other) in enumerate(zip(stated, must, strict=True)):
            yield from follow_values(f"{what}.{n}", own, other)
    else:
        yield what, stated, must


def first_difference(text: str, must: str) -> tuple[str, str]:
    """The first lines in which two texts differ, `(nothing)` where one has no such line; twice the same if equal."""
    lines = zip_longest(text.split("\n"), must.split("\n"), fillvalue="(nothing)")
    return next(((stated, line) for stated, line in lines if stated != line), ("", ""))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:299]}…"


@dataclass(frozen=True)
class Audited:
    """A run under audit: its records, read once."""

    run: Run

    @cached_property
    def records(self) -> dict[str, Record]:
        """Every record, by step."""
        return {step: self.run.record(step) for step in self.run.journal}

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """All sections of the cycle."""
        parameters: dict[str, Any] = read_json(self.run.path / "parameters.json")
        return parameters

    @cached_property
    def tables(self) -> RunTables:
        """The typed tables, with the selected group beside them."""
        tables = {(s, table): r.table(table) for s, r in self.records.items() for table in r.data["tables"]}
        chosen = self.records["selection"].summary["selected"]
        return RunTables(tables, self.parameters, candidate_of(chosen, self.run.find_record))
