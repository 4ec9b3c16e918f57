"""How long a cycle takes: the work of its steps by the rates that this machine showed.

`rates.json` in the cache holds what each finished step took here. Its kinds of work are those that steps report as
progress; "" is the rest: imports, null distributions, matching, figures.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from husai_lib.cycle.planned import PlannedStep, cached_already, is_cached
from husai_lib.cycle.work import Work, memory_of, work_of
from husai_lib.errors import EvidenceError, HusaiError
from husai_lib.evidence.cache import cache_folder
from husai_lib.evidence.runs import Run, find_runs
from husai_lib.evidence.steps import condition_of
from husai_lib.files import REPOSITORY, read_json, write_json
from husai_lib.params.conditions import Condition
from husai_lib.params.cycle import CycleParams

Rates = dict[str, dict[str, list[list[float]]]]
"""Units and seconds of each time that a step did a kind of work here, newest last, by step and kind."""
KEPT = 20
"""Times that are remembered of each step and kind."""
REACH = 10.0
"""A rate holds for up to so many times the amount that was measured: in small amounts it is mostly overhead."""
MEMORY = "memory"
HERE, GUESSED = "measured on this machine", "guessed from an earlier run, perhaps of another machine"


def _rates_file() -> Path:
    return cache_folder() / "rates.json"


def _here() -> str:
    """What rates hold for: the device and the number of jobs, as asked for."""
    return f"{os.environ.get('HUSAI_DEVICE') or 'auto'}, jobs {os.environ.get('HUSAI_JOBS') or 'auto'}"


def _all_rates() -> dict[str, Rates]:
    try:
        known: dict[str, Rates] = read_json(_rates_file())
    except EvidenceError:  # not there yet, or damaged; it is only a memory, which the next step begins anew
        return {}
    return known


def read_rates() -> Rates:
    """The rates measured on this machine with this device and number of jobs."""
    return _all_rates().get(_here(), {})


def note_rates(notebook: str, measured: Mapping[str, tuple[float, float]]) -> None:
    """Remember amount and seconds of each kind of work of a step, or under `MEMORY` its bytes and its measured peak."""
    known = _all_rates()
    of_step = known.setdefault(_here(), {}).setdefault(notebook, {})
    for kind, (amount, value) in measured.items():
        of_step[kind] = [*of_step.get(kind, []), [amount, round(value, 3)]][-KEPT:]
    write_json(_rates_file(), known)


def nearest(rates: Rates, notebook: str, kind: str, amount: float, reach: float = math.inf) -> list[float] | None:
    """What was measured of the amount nearest to this one, the newest of equals: of the same step, or else of any.

    None where no amount was measured that is up to `reach` times this one, or this one up to `reach` times it.
    """
    every = [one for other in rates.values() for one in other.get(kind, [])]
    for known in (rates.get(notebook, {}).get(kind, []), every):
        near = [one for one in known if abs(math.log(one[0] / amount)) <= math.log(reach)]
        if near:
            return min(reversed(near), key=lambda one: abs(math.log(one[0] / amount)))
    return None


def seconds_of(notebook: str, work: Work, rates: Rates) -> dict[str, float | None]:
    """How long each kind of a step's work takes by these rates; None for a kind that has none near its amount."""
    found = {kind: nearest(rates, notebook, kind, units, REACH) for kind, units in work.units.items()}
    return {kind: rate[1] * work.units[kind] / rate[0] if rate else None for kind, rate in found.items()}


class TimeLeft:
    """How long the rest of a run takes: estimates before it began, scaled by how true they were so far.

    A step without rates of this machine is estimated by the wall time of a run of the same parameters, made elsewhere
    or here, and where there is none by what other steps of this run showed.
    """

    def __init__(self, params: CycleParams, run: Run, evidence: Path) -> None:
        self.params, self.run, self.evidence = params, run, evidence
        self.rates = read_rates()
        self.estimated: dict[str, list[tuple[float, float]]] = {}
        """Estimated and true seconds of finished steps, by where the estimate came from."""

    def begin(self, step: PlannedStep) -> None:
        """Note what a step that starts now is expected to take."""
        self.work, self.expected = self._work(step), self._estimate(step, self.rates)
        self.entries, self.began = _entries(), time.monotonic()

    def end(self, step: PlannedStep, reported: Mapping[str, Any]) -> float:
        """The seconds that the step took; `reported` is the last state of its progress.

        A step that found its SAEs or activations in the cache says nothing of how long they take.
        """
        seconds = time.monotonic() - self.began
        if self.expected:
            self.estimated.setdefault(self.expected[1], []).append((self.expected[0], seconds))
        made = _entries() - self.entries
        if made >= max(self.work.trained, int("texts" in self.work.units)):
            spent = {kind: value for kind, value in reported.get("seconds", {}).items() if kind}
            spent[""] = seconds - sum(spent.values())
            measured = {kind: (self.work.units[kind], spent[kind]) for kind in spent.keys() & self.work.units.keys()}
            if (bytes_ := memory_of(step.step.name, self.params, self._chosen())) and "peak_bytes" in reported:
                measured[MEMORY] = (bytes_, reported["peak_bytes"])
            note_rates(step.step.notebook, measured)
        return seconds

    def sentence(self, steps: Sequence[PlannedStep]) -> str:
        """About how long the remaining steps take, and by which measurements; empty where there are none."""
        now, total, origins = read_rates(), 0.0, set()
        for step in steps:
            known, showed = self._estimate(step, self.rates), self._measured(step, now)
            light = self._work(step).units.keys() == {
                ""
            }  # any step of this run shows better what a kernel takes to start
            if showed and (known is None or (light and known[1] == GUESSED)):
                total += showed  # which needs no scaling, as this run showed it
                origins.add(HERE)
            elif known:
                pairs = self.estimated.get(known[1], [])
                total += known[0] * (sum(true for _, true in pairs) / sum(said for said, _ in pairs) if pairs else 1.0)
                origins.add(known[1])
            else:
                return f"; time left not known, as {step.step.name} was never timed here"
        return f"; about {in_words(total)} left ({' and '.join(sorted(origins, reverse=True))})" if steps else ""

    def _chosen(self) -> Condition | None:
        """The selected condition, as soon as there is one."""
        selected = self.run.record("selection").summary.get("selected") if "selection" in self.run.journal else None
        return condition_of(selected, self.run.find_record) if selected else None

    def _work(self, step: PlannedStep) -> Work:
        return work_of(step.step.name, self.params, self._chosen())

    def _measured(self, step: PlannedStep, rates: Rates) -> float | None:
        work = self._work(step)
        if is_cached(cached_already(step, self.params.cycle, self.evidence)):
            work = replace(work, units={"": 1.0})
        seconds = [*seconds_of(step.step.notebook, work, rates).values()]
        return None if None in seconds else sum(filter(None, seconds))

    def _estimate(self, step: PlannedStep, rates: Rates) -> tuple[float, str] | None:
        """Seconds, and where they come from."""
        if (seconds := self._measured(step, rates)) is not None:
            return seconds, HERE
        wall = wall_seconds(step, self.params.cycle, self.evidence)
        return (wall, GUESSED) if wall else None


def wall_seconds(step: PlannedStep, cycle: str, evidence: Path) -> float | None:
    """How long the step took in the newest run of the cycle with the same parameters, wherever that was."""
    for run in reversed([*find_runs(REPOSITORY / "evidence"), *find_runs(evidence)]):
        try:
            if run.path.parent.name != cycle or step.step.name not in run.journal:
                continue
            data = run.record(step.step.name).data
        except HusaiError:  # a damaged run tells nothing; `ls` and `verify` say that it is damaged
            continue
        if all(step.parameters.get(section) == value for section, value in data["parameters"].items()):
            return float(data["wall_seconds"])
    return None


def _entries() -> int:
    """Number of SAEs and banks in the cache."""
    return sum(len(list((cache_folder() / kind).glob("*"))) for kind in ("saes", "banks"))


def in_words(seconds: float) -> str:
    """A time with the precision that an estimate has: seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
