"""The decisions of a run from its records: selection, gates, and whether it improves on earlier runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from husai_lib.decisions import candidates
from husai_lib.decisions.criteria import Standing, compare
from husai_lib.decisions.gates import Judged, Policy, evaluate, external_results
from husai_lib.errors import DataError
from husai_lib.evidence.rows.base import IMPORTED
from husai_lib.evidence.rows.decided import CriterionRow, GateRow
from husai_lib.evidence.rows.earlier import EarlierGroupRow
from husai_lib.evidence.runs import Record
from husai_lib.evidence.steps import Read, confirmed_members, levels_of
from husai_lib.intervals import Interval, mean_interval
from husai_lib.params.rules import GateParams, SelectionParams

ReadRun = Callable[[str], Mapping[str, Record]]
"""All records of an earlier run, by step."""


def candidates_for(rules: SelectionParams, read: Read) -> list[candidates.Candidate]:
    """The candidates of all sources; of groups of this run that share SAEs, the largest.

    Raises DataError for a source that was measured on other things than this run, except under the rules 2026-02.
    """
    found: list[candidates.Candidate] = []
    then = rules.rules == "2026-02"
    for source in rules.sources:
        here = candidates.measured_on("", read) if "/" in source and not then else None
        found += candidates.candidates_of(source, read, here, duplicates=then)
    groups: dict[tuple[Any, ...], set[str]] = {}
    for one in found:
        if "/" not in one.source:
            groups.setdefault(_group_of(one, rules), set()).add(one.weights_sha256)
    held, repeats = set[str](), set()
    for group in sorted(groups, key=lambda group: -len(groups[group])):  # of equal ones, the first
        if groups[group] & held:
            repeats.add(group)
        else:
            held |= groups[group]
    return [one for one in found if _group_of(one, rules) not in repeats]


def _group_of(one: candidates.Candidate, rules: SelectionParams) -> tuple[Any, ...]:
    """What a candidate is ranked with: its condition or, where seeds are ranked by themselves, nothing else."""
    return (one.source, one.condition, one.seed if rules.grouping == "seed" else None)


def judged_group(chosen: Mapping[str, Any] | None, read: Read) -> Judged:
    """What the gates judge: the confirmation seeds of the selected group, or without any those it was selected by."""
    level, sets_level = levels_of(read)
    source = chosen["source"] if chosen else "selection"
    if not chosen or source.startswith(f"{IMPORTED}/"):
        return Judged(source=source, level=level, sets_level=sets_level)
    baselines = candidates.beside(source, "baselines")
    if confirmed_members(read):
        source = baselines = "confirmation"
    record, name, probing = read(source), chosen["condition"], read(baselines).data["parameters"]["probing"]
    members, probes, groups = ([row for row in record.table(table) if row.condition == name]
                               for table in ("members", "probes", "groups"))  # fmt: skip
    others, group = [row for row in read(baselines).table("members") if row.is_baseline], next(iter(groups), None)
    return Judged(members, others, probes, group, source, probing["ks"], probing["choose_k"], level, sets_level)


def policy_of(read: Read) -> Policy:
    """The gates by the parameters in the record of their step; raises IntegrityError for controls of other weights."""
    thresholds = GateParams.model_validate(read("gate").data["parameters"]["gates"])
    judged = judged_group(read("selection").summary["selected"], read)
    return evaluate(judged, read("stress").table("controls"), thresholds)


def against(earlier: Sequence[str], policy: Policy, read: Read, read_run: ReadRun) -> list[CriterionRow]:
    """Both decision criteria against each earlier run."""
    here = _standing("this cycle", policy.gates, policy.basis, read)
    return [row for name in earlier for row in compare(here, earlier_standing(name, read_run))]


def _standing(name: str, gates: Sequence[GateRow], basis: Literal["bound", "value"], read: Read) -> Standing:
    chosen = read("selection").summary["selected"]
    judged = judged_group(chosen, read)
    own = candidates.baseline_of(judged.members, judged.baselines)
    measured = candidates.measured_on(judged.source, read) | {candidates.BASELINE: own}
    verdicts = {row.gate: (row.verdict, row.threshold) for row in gates if row.required}
    # both deltas over the seeds alone: two runs that are compared were measured on the same data sets
    found = external_results(judged)["external_cebench"]
    deltas = [row.saebench_delta for row in sorted(judged.members, key=lambda row: row.seed)]
    others = [row.cebench_delta for row in judged.members if row.cebench_delta is not None]
    cebench = found.interval and mean_interval(others)
    note, fresh = "" if cebench else found.note, judged.source == "confirmation"
    saebench = mean_interval(deltas) if deltas else None
    return Standing(name, saebench, cebench, measured, verdicts, basis, note, confirmed=fresh)


def earlier_standing(name: str, read_run: ReadRun) -> Standing:
    """What an earlier run's candidate achieved; raises DataError for an import of several selections or policies."""
    records = read_run(name)
    if name.startswith(f"{IMPORTED}/"):
        return _imported_standing(name, records)

    def read(step: str) -> Record:
        run, _, its_step = step.rpartition("/")
        found = read_run(run) if run else records
        if its_step not in found:
            raise DataError(f"{run or name} has no record of step {its_step!r}; name a run of today's steps")
        return found[its_step]

    gate = read("gate")
    return _standing(name, gate.table("gates"), gate.data["parameters"]["gates"]["basis"], read)


def _imported_standing(name: str, records: Mapping[str, Record]) -> Standing:
    """The group of rank 0 of an imported cycle as stated, and the gates that its policy required."""

    def rows(table: str, kind: str = "") -> list[Any]:
        holding = [record for record in records.values() if table in record.data["tables"]]
        return [row for record in holding if kind in ("", record.summary.get("kind")) for row in record.table(table)]

    chosen = [group for group in rows("earlier_groups") if group.rank == 0]
    gates = rows("earlier_gates", "gates")  # those of stress tests and sweeps decided nothing
    required = [row for row in gates if row.required and row.gate != "pass_all"]  # that one sums up the others
    verdicts = {row.gate: (row.stated or "missing", row.threshold) for row in required}
    if len(chosen) > 1 or len(verdicts) < len(required):
        what = f"{len(chosen)} selections" if len(chosen) > 1 else "several verdicts on one gate"
        raise DataError(f"{name} holds {what}; import each decision under its own name")
    saebench = cebench = None
    own: dict[str, str] = {}
    for group in chosen:
        saebench, cebench = _stated(group, "saebench_delta"), _stated(group, "cebench_delta")
        members = [row for row in rows("earlier_members") if row.condition == group.condition]
        settings = [candidates.earlier_settings(row) for row in members]
        own = {what: value for each in settings for what, value in each.items()}
        for what, values in candidates.differences(settings).items():  # several equal no value of another run
            own |= {what: '"several"'} if len({*values} - {candidates.UNKNOWN}) > 1 else {}
    wrong = tuple(dict.fromkeys(row.caveat for row in rows("caveats")))
    note = "" if chosen else "no selection was imported"
    return Standing(name, saebench, cebench, own, verdicts, note=note, caveats=wrong, confirmed=False)


def _stated(group: EarlierGroupRow, metric: str) -> Interval | None:
    ends = {part: getattr(group, f"{metric}{end}") for end, part in candidates.ENDS.items()}
    return None if ends["mean"] is None else Interval(n=group.n_seeds, **ends)
