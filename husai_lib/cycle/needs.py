"""What a cycle needs before it runs: members, time, memory and disk of every step, on this machine."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from husai_lib.cycle.estimates import MEMORY, in_words, nearest, read_rates, seconds_of
from husai_lib.cycle.planned import PlannedStep, cached_already, is_cached
from husai_lib.cycle.run import NOTEBOOKS, plan
from husai_lib.cycle.work import Saes, Work, disk_of, memory_of, width_of, work_of
from husai_lib.errors import StepError
from husai_lib.evidence.runs import Run
from husai_lib.params.cycle import CycleParams


@dataclass(frozen=True)
class Need:
    """What a step needs on this machine."""

    seconds: float
    """As far as it is known."""
    timed: str
    """What of it was timed just now, in words."""
    unknown: list[str]
    """Kinds of work that were never timed here."""
    disk: int | None
    memory: int | None

    def __str__(self) -> str:
        long = f"{'at least' if self.unknown else 'about'} {in_words(self.seconds)}{self.timed}"
        if self.unknown:
            never = f"never timed here: {', '.join(self.unknown)}"
            long = f"{long} ({never})" if self.seconds else f"time not known ({never})"
        sizes = {"memory": self.memory, "disk": self.disk}
        known = [f"{size / 1e9:.2f} GB of {what}" for what, size in sizes.items() if size is not None]
        lacking = [what for what, size in sizes.items() if size is None]
        not_known = [f"{' and '.join(lacking)} not known, as the model is not here"] if lacking else []
        return "; ".join([long, *known, *not_known])


def need_of(step: PlannedStep, params: CycleParams, cached: str = "") -> Need:
    """What a step needs: time by the rates of this machine, memory and disk by the shapes of its arrays.

    The memory of the libraries is that of steps measured here. Training that was never timed here is timed now.
    """
    work, rates, timed = work_of(step.step.name, params), read_rates(), ""
    if is_cached(cached):
        work = Work([], [], [], {"": 1.0})
    seconds = seconds_of(step.step.notebook, work, rates)
    if "members trained" in seconds and seconds["members trained"] is None and (width := width_of(params)):
        seconds["members trained"] = time_training([*work.candidates, *work.others], width)
        timed = ", training timed now"
    memory = memory_of(step.step.name, params)
    if memory and (peak := nearest(rates, step.step.notebook, MEMORY, memory)):
        memory += max(0, int(peak[1] - peak[0]))
    unknown = [kind or "the rest" for kind, value in seconds.items() if value is None]
    disk = 0 if is_cached(cached) else disk_of(step.step.name, params)
    return Need(sum(filter(None, seconds.values())), timed, unknown, disk, memory)


def total_of(params: CycleParams, needs: Sequence[Need]) -> str:
    """What all steps need together, in a sentence, with the numbers of members that compete."""
    numbers = {name: len(conditions) * len(seeds) for name, (conditions, seeds) in params.trained.items()}
    members = f"{sum(numbers.values())} members compete: {', '.join(f'{n} of {name}' for name, n in numbers.items())}"
    unknown = sorted({kind for need in needs for kind in need.unknown})
    disk = None if None in [need.disk for need in needs] else sum(need.disk or 0 for need in needs)
    memory = max((need.memory or 0 for need in needs), default=0)
    timed = ", training timed now" if any(need.timed for need in needs) else ""
    return f"{members}\n{Need(sum(need.seconds for need in needs), timed, unknown, disk, memory or None)}"


def time_training(saes: Saes, width: int) -> float:
    """Seconds that training takes, from a few steps of every condition on random rows, in a process of its own."""
    numbers: Counter[str] = Counter()
    for one, number in saes:
        numbers[one.model_dump_json(exclude={"name", "consistency"})] += number
    stacks = [(json.loads(one) | {"name": "timed"}, number) for one, number in numbers.items()]
    request = json.dumps({"width": width, "stacks": stacks})
    command = [sys.executable, "-m", "husai_lib.saes.timing"]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepError(f"training could not be timed: {(done.stderr.strip().splitlines() or ['it was killed'])[-1]}")
    return float(done.stdout)


def plan_lines(params: CycleParams, evidence: Path, resumed: Run | None, notebooks: Path = NOTEBOOKS) -> Iterator[str]:
    """The plan of a cycle: each step, what it makes, what of it is cached, why it runs, and what it then needs."""
    yield f"{params.cycle}: {f'resuming {resumed.name}' if resumed else 'new run'}; nothing was written"
    needs = []
    for step in plan(params, resumed, notebooks):
        held = cached_already(step, params.cycle, evidence)
        names = f"{step.step.name:12}  {step.step.notebook:22}  {step.makes:64}"
        yield f"{names}  {held:15}  {step.reason or 'kept'}".rstrip()
        if step.reason:
            needs.append(need_of(step, params, held))
            yield f"{'':14}{needs[-1]}"
    yield total_of(params, needs)
