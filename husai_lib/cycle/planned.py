"""A step of a cycle, with its parameters, and what the cache holds of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from husai_lib.errors import EvidenceError
from husai_lib.evidence.cache import CACHED, is_there
from husai_lib.evidence.runs import find_runs
from husai_lib.evidence.steps import step_key


@dataclass(frozen=True)
class CycleStep:
    """One step of a cycle."""

    name: str
    notebook: str
    """File name in `notebooks/`."""
    sections: tuple[str, ...]
    """Sections of the parameters that the notebook is given; nothing else can change its result."""
    only_with: str = ""
    """The section without which the step is left out."""

    @property
    def executed(self) -> str:
        """File name of the executed notebook: that of a further sweep is named after it."""
        return f"{self.notebook.partition('_')[0]}_{self.name}.ipynb"

    @property
    def injected(self) -> dict[str, str]:
        """What its notebook is given beside sections: its name, where it is not the notebook's own."""
        return {} if self.executed == self.notebook else {"sweep": self.name}


@dataclass(frozen=True)
class PlannedStep:
    """A step with the parameters of one cycle."""

    step: CycleStep
    parameters: dict[str, Any]
    """Its sections as JSON values."""
    makes: str
    """Which SAEs or controls it makes, in words."""
    reason: str
    """Why it runs; empty where its result of an earlier attempt is kept."""


def cached_entries(record: dict[str, Any]) -> list[bool]:
    """Of every bank and SAE that a record names, whether the cache still has it."""
    rows = [(kind, row["key"]) for table, kind in CACHED.items() for row in record["tables"].get(table, [])]
    return [is_there(kind, key) for kind, key in rows]


def cached_already(planned: PlannedStep, cycle: str, evidence: Path) -> str:
    """What the cache holds of a step that runs: banks and SAEs of the newest run with the same parameters and code."""
    for run in reversed([run for run in find_runs(evidence) if run.path.parent.name == cycle]):
        try:
            entry = run.journal.get(planned.step.name, {"key": ""})
            if entry["key"] == step_key(planned.step.name, planned.parameters):
                found = cached_entries(run.record(planned.step.name).data)
                return f"{sum(found)} of {len(found)} cached" if found else ""
        except EvidenceError:  # a damaged run tells nothing; `ls` and `verify` say that it is damaged
            continue
    return ""


def is_cached(cached: str) -> bool:
    """Whether `cached_already` says that the cache has all that a step makes."""
    number, _, of = cached.removesuffix(" cached").partition(" of ")
    return bool(cached) and number == of
