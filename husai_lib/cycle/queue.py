"""A queue of cycles, one after another; a later one may name the newest run of an earlier one."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from husai_lib.cycle.run import check_earlier, newest_started
from husai_lib.errors import EvidenceError, HusaiError, ParameterError
from husai_lib.evidence.runs import Run, find_runs
from husai_lib.files import REPOSITORY
from husai_lib.params.cycle import CycleParams, load_cycle
from husai_lib.params.sections import check
from husai_lib.params.strict_yaml import override

NEWEST = re.compile(r"(?!imported/)([a-z][a-z0-9_]*)/newest((?:/[a-z][a-z0-9_]*)?)")


@dataclass(frozen=True)
class Queued:
    """A cycle of the queue."""

    file: Path
    params: CycleParams
    assignments: tuple[str, ...]
    """Those of the command line; of a resolved cycle also those that put runs in place of `newest`."""

    @property
    def parameters_file(self) -> str | None:
        """The parameter file as a manifest names it; None outside the repository."""
        path = self.file.resolve()
        return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else None

    @property
    def waits_for(self) -> set[str]:
        """The cycles whose newest runs it names."""
        names = [*self.params.earlier, *self.params.selection.sources]
        return {found[1] for name in names if (found := NEWEST.fullmatch(name))}

    def resolved(
        self, evidence: Path, made: Mapping[str, str | None], resumed: Mapping[str, Any] | None = None
    ) -> "Queued":
        """The same with the name of a run in place of every `<cycle>/newest`.

        It is that of `made` (None leaves the name as it is), else the one in the parameters `resumed`, else the newest
        complete run. Raises ParameterError where there is none.
        """
        before = resumed or {}
        lists = {
            "earlier": (self.params.earlier, before.get("earlier", [])),
            "selection.sources": (self.params.selection.sources, before.get("selection", {}).get("sources", [])),
        }
        assignments = []
        for key, (names, kept) in lists.items():
            pairs = zip(names, kept if len(kept) == len(names) else names, strict=True)
            try:
                of_key = [_run_name(*pair, evidence, made) for pair in pairs]
            except EvidenceError as error:
                raise ParameterError(f"{key}: {error}") from None
            if of_key != names:
                assignments.append(f"{key}=[{', '.join(of_key)}]")
        if not assignments:
            return self
        values = override(self.params.model_dump(mode="json"), assignments)
        return Queued(self.file, check(CycleParams, values, str(self.file)), (*self.assignments, *assignments))


def _run_name(name: str, kept: str, evidence: Path, made: Mapping[str, str | None]) -> str:
    if not (found := NEWEST.fullmatch(name)):
        return name
    cycle, step = found.groups()
    if cycle in made:
        return f"{made[cycle]}{step}" if made[cycle] else name
    if kept != name and kept.startswith(f"{cycle}/") and kept.endswith(step):
        return kept
    complete = [run.name for run in find_runs(evidence) if run.path.parent.name == cycle and run.is_complete]
    if not complete:
        remedy = "run it first, or before in the queue"
        raise EvidenceError(f"{name}: {evidence} holds no complete run of {cycle}; {remedy}")
    return f"{complete[-1]}{step}"


def _started(one: Queued, evidence: Path, resume: bool) -> dict[str, Any] | None:
    """The parameters of the run that would be resumed; None where there is none."""
    found = newest_started(one.params, evidence) if resume else None
    return found[1] if found else None


def read_queue(files: Sequence[Path], assignments: Sequence[str]) -> list[Queued]:
    """The cycles of the parameter files, each with the assignments of the command line; raises ParameterError."""
    queue = [Queued(file, load_cycle(file, assignments), tuple(assignments)) for file in files]
    for i, one in enumerate(queue):
        if same := [other.file for other in queue[:i] if other.params.cycle == one.params.cycle]:
            raise ParameterError(f"{same[0]} and {one.file} are both of cycle {one.params.cycle}; queue them apart")
    return queue


def check_queue(queue: Sequence[Queued], evidence: Path, *, resume: bool = False) -> list[Queued]:
    """Raise ParameterError where a cycle names a run or a step that is not there when its turn comes.

    Returns the cycles as far as they are known now: `newest` stands where the queue has yet to make a run.
    """
    before: dict[str, CycleParams] = {}
    known = []
    for one in queue:
        for source in one.params.selection.sources:
            found = NEWEST.fullmatch(source)
            if found and found[1] in before and (step := found[2][1:]) not in before[found[1]].trained:
                raise ParameterError(f"selection.sources: {source}: cycle {found[1]} of the queue trains no {step!r}")
        here = one.resolved(evidence, dict.fromkeys(before), _started(one, evidence, resume))
        there = {"earlier": here.params.earlier, "sources": here.params.selection.sources}
        there = {key: [name for name in names if not NEWEST.fullmatch(name)] for key, names in there.items()}
        selection = here.params.selection.model_copy(update={"sources": there["sources"]})
        now = here.params.model_copy(update={"earlier": there["earlier"], "selection": selection})
        check_earlier(now, evidence)
        known.append(here)
        before[one.params.cycle] = one.params
    return known


def run_queue(
    queue: Sequence[Queued],
    evidence: Path,
    run: Callable[[Queued, bool], Run],
    judge: Callable[[Run], None],
    *,
    resume: bool,
    console: Console,
) -> None:
    """Give each cycle to `run`, with whether it resumes, and the complete run to `judge`, one after another.

    A cycle that fails stops those that name its results and no others. Then the error that came first is raised: as it
    is if it was the only cycle, and with its class, so with its exit code, if it was not.
    """
    made: dict[str, str | None] = {}
    failed: dict[str, HusaiError] = {}
    for number, one in enumerate(queue, 1):
        cycle = one.params.cycle
        if len(queue) > 1:
            console.print(f"cycle {number}/{len(queue)} {cycle}")
        try:
            if missing := sorted(one.waits_for & failed.keys() - made.keys()):
                raise EvidenceError(f"it names results of {missing[0]}, which failed")
            started = _started(one, evidence, resume)
            now = one.resolved(evidence, made, started)
            if renewed := started is not None and one.resolved(evidence, {}, started) != now:
                console.print(f"the newest run of {cycle} rests on other results than this queue's: new run")
            finished = run(now, resume and not renewed)
            made[cycle] = finished.name
            judge(finished)
        except HusaiError as error:
            if len(queue) == 1:
                raise
            failed[cycle] = error
            console.print(f"cycle {cycle} failed: {error}")
    if failed:
        first = next(iter(failed.values()))
        raise type(first)(f"{len(failed)} of {len(queue)} cycles failed ({', '.join(failed)}); the reasons stand above")
