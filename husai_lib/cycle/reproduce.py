"""Reproduce: a run executed again from its parameters, and its records compared number by number."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from husai_lib.cycle.run import NOTEBOOKS, run_cycle
from husai_lib.evidence.cache import cache_folder, discard
from husai_lib.evidence.runs import Run, earlier_run
from husai_lib.evidence.steps import results
from husai_lib.files import read_json
from husai_lib.params.cycle import CycleParams
from husai_lib.params.sections import check

NOT_COMPARED = {"key"}
"""Cache keys name the code that computed an entry, which may have changed since."""


@dataclass(frozen=True)
class Value:
    """One value of a record, as stated and as reproduced."""

    place: str
    """Step, table, row and column."""
    stated: Any
    reproduced: Any
    outcome: str
    """equal; within tolerance; different; or other choice: text or a whole number, where a tolerance is given."""


@dataclass(frozen=True)
class Comparison:
    """What came of reproducing a run."""

    run: str
    tolerance: float
    """Absolute difference up to which numbers count as reproduced."""
    values: tuple[Value, ...]
    """Every parameter, single value and table cell of the records, and the device of every step."""

    @property
    def counts(self) -> dict[str, int]:
        """How many values have each outcome."""
        return dict(sorted(Counter(value.outcome for value in self.values).items()))

    @property
    def is_reproduced(self) -> bool:
        """Whether no value is different."""
        return "different" not in self.counts

    def differing(self) -> list[Value]:
        """The values that are not equal, the largest differences of numbers first."""
        return sorted((value for value in self.values if value.outcome != "equal"), key=_size, reverse=True)

    def as_json(self) -> dict[str, Any]:
        """The comparison as JSON values, with the values that are not equal."""
        about = {"run": self.run, "tolerance": self.tolerance, "reproduced": self.is_reproduced, "counts": self.counts}
        return about | {"differing": [asdict(value) for value in self.differing()]}


def reproduce(
    run: Run, *, tolerance: float = 0.0, with_cache: bool = False, console: Console | None = None
) -> Comparison:
    """Execute a complete run again into a scratch folder and compare its records with the stated ones.

    The cache is empty unless `with_cache`. Numbers are equal or differ by at most `tolerance`, which another processor
    needs; on the processor that made the run everything must be equal. Raises EvidenceError for an unfinished run.
    """
    run.manifest()
    parameters = check(CycleParams, read_json(run.path / "parameters.json"), f"{run.path}/parameters.json")
    with tempfile.TemporaryDirectory(prefix="husai-reproduce-", dir=_scratch()) as scratch:
        evidence, before = Path(scratch) / "evidence", os.environ.get("HUSAI_CACHE")
        for name in _earlier(parameters):
            shutil.copytree(earlier_run(run.path.parent.parent, name).path, evidence / name)
        os.environ["HUSAI_CACHE"] = str(cache_folder().absolute() if with_cache else Path(scratch) / "cache")
        try:
            again = run_cycle(parameters, evidence, NOTEBOOKS, console=console)
        finally:
            os.environ |= {"HUSAI_CACHE": before or ""}
            for bank in (Path(scratch) / "cache" / "banks").glob("*"):
                discard(bank)  # what lies on other disks would stay
        return compare(run, again, tolerance)


def compare(run: Run, again: Run, tolerance: float = 0.0) -> Comparison:
    """The records of two runs of the same parameters, value by value."""
    stated, reproduced = (_values_of(one) for one in (run, again))
    values = []
    for place in dict.fromkeys([*stated, *reproduced]):
        pair = stated.get(place, "absent"), reproduced.get(place, "absent")
        values.append(Value(place, *pair, _outcome(*pair, tolerance)))
    return Comparison(run.name, tolerance, tuple(values))


def _scratch() -> Path:
    """Where scratch folders go: beside the cache, which has room for activations."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    return cache_folder()


def _earlier(parameters: CycleParams) -> set[str]:
    """The earlier runs that the parameters name."""
    return {*parameters.earlier, *(s.rpartition("/")[0] for s in parameters.selection.sources if "/" in s)}


def _values_of(run: Run) -> dict[str, Any]:
    """What is compared, by its place; the records are read rather than `results.json`, which follows from them."""
    records = [run.record(step) for step in run.journal]
    devices = {f"{record.step}.device": record.data["environment"]["device"] for record in records}
    return dict(_values(results(records))) | devices


def _values(data: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value of nested JSON values, with its place."""
    items: Iterator[tuple[Any, Any]] | None = None
    if isinstance(data, dict):
        items = ((name, value) for name, value in data.items() if name not in NOT_COMPARED)
    elif isinstance(data, list):
        items = iter(enumerate(data))
    if items is None:
        yield place, data
        return
    for name, value in items:
        yield from _values(value, f"{place}.{name}".removeprefix("."))


def _outcome(stated: Any, reproduced: Any, tolerance: float) -> str:
    if type(stated) is type(reproduced) and stated == reproduced:
        return "equal"
    if isinstance(stated, float) and isinstance(reproduced, float):
        return "within tolerance" if abs(stated - reproduced) <= tolerance else "different"
    return "other choice" if tolerance and "absent" not in (stated, reproduced) else "different"


def _size(value: Value) -> float:
    numbers = isinstance(value.stated, float) and isinstance(value.reproduced, float)
    return abs(value.stated - value.reproduced) if numbers else 0.0
