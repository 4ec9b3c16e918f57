"""What follows from other numbers in the records of a run, row by row; an audit holds the rows to it: no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any

from husai_lib.gates import group_sha256
from husai_lib.intervals import mean_interval, means_by
from husai_lib.records import ceiling, is_matched

Rows = Mapping[tuple[str, str], list[Any]]
"""The typed rows of (step, table), none where there is no such table.

Those of `candidate` are the selected group's: its members as `saes`, its row of `groups` as `stability`.
"""


def recomputed(step: str, table: str, row: Any, rows: Rows) -> dict[str, Any]:
    """Every column of a row that follows from other numbers in the run's records, with its value."""
    follows = FOLLOWS.get(table)
    return follows(step, row, rows) if follows else {}


def _member(step: str, row: Any, rows: Rows) -> dict[str, Any]:
    probes = [p for p in rows[step, "probes"] if (p.condition, p.seed) == (row.condition, row.seed)]
    others = rows["baselines", "members"] if step != "baselines" else []
    base = [other for other in others if other.is_baseline_of(row.d_sae, row.k, row.seed)]
    return {
        "saebench_auc": _mean(means_by((probe.data_set, probe.test_auc) for probe in probes).values()),
        "saebench_delta": _mean(means_by((probe.data_set, probe.delta) for probe in probes).values()),
        "l0_matched": is_matched(row.l0, row.k),
        "cebench_ceiling": ceiling(row.d_sae),
        "cebench_delta": row.cebench_interpretability - base[0].cebench_interpretability if base else None,
    }


def _group(step: str, row: Any, rows: Rows) -> dict[str, Any]:
    """A jackknife's interval lies evenly about its estimate; how wide it is takes the weights."""
    probes = [probe for probe in rows[step, "probes"] if probe.condition == row.condition]
    members = [member for member in rows[step, "members"] if member.condition == row.condition]
    sets = mean_interval(list(means_by((probe.data_set, probe.delta) for probe in probes).values()))
    return {
        "architecture": members[0].architecture if members else None,
        "n_seeds": len(members),
        "pwmcc": _middle(row.pwmcc, row.pwmcc_low, row.pwmcc_high),
        "pwmcc_corrected": (row.pwmcc - row.null_gaussian) / (1 - row.null_gaussian),
        "saebench_delta": sets.mean, "sets_low": sets.low, "sets_high": sets.high,
    }  # fmt: skip


def _probe(_step: str, row: Any, rows: Rows) -> dict[str, Any]:
    """The raw activation's AUC is one number a data set, whatever SAE is beside it."""
    raw = (p.llm_auc for p in rows["baselines", "probes"] if (p.data_set, p.at) == (row.data_set, row.at))
    return {"delta": row.test_auc - row.llm_auc, "llm_auc": next(raw, row.llm_auc)}


def _bank(step: str, row: Any, rows: Rows) -> dict[str, Any]:
    """A bank has the rows of its sources; those of a transcoder are the training rows."""
    role, _, name = ("training" if row.bank.startswith("mlp_") else row.bank).partition("/")
    kept = [source.rows for source in rows[step, "sources"] if source.role == role and name in {"", source.data_set}]
    return {"rows": sum(kept)} if kept else {}


def _task(step: str, row: Any, rows: Rows) -> dict[str, Any]:
    inside, shifted = row.in_domain_auc - row.in_domain_llm_auc, row.shifted_auc - row.shifted_llm_auc
    raw = next(other for other in rows[step, "ood"] if other.task == row.task)
    return {
        "drop": inside - shifted,
        "in_domain_llm_auc": raw.in_domain_llm_auc,
        "shifted_llm_auc": raw.shifted_llm_auc,
        "weights_sha256": {member.seed: member.weights_sha256 for member in rows["candidate", "saes"]}.get(row.seed),
    }


def _control(_step: str, row: Any, rows: Rows) -> dict[str, Any]:
    """Of a control that was not run only whose it is; the PW-MCC of a control's own SAEs takes torch."""
    members, tasks = rows["candidate", "saes"], rows["stress", "ood"]
    found: dict[str, Any] = {"candidate_sha256": group_sha256((m.seed, m.weights_sha256) for m in members)}
    if row.delta is None or (row.control == "ood" and not tasks):
        return found | dict.fromkeys(("candidate", "control_value", "delta", "delta_low", "delta_high"))
    if row.control == "ood":
        return found | _ood(tasks)
    groups = rows["candidate", "stability"]
    if row.control == "random_decoder":
        found["control_value"] = _mean(group.null_random for group in groups)
    else:
        made = [sae.seed for sae in rows["stress", "control_saes"] if sae.control == row.control]
        found["control"] = row.control if made == [m.seed for m in members] else f"a control at the seeds {made}"
    delta = (row.candidate - row.control_value) * (-1 if row.control == "transcoder" else 1)
    pwmcc = _mean(group.pwmcc for group in groups)
    return found | {"candidate": pwmcc, "delta": _middle(delta, row.delta_low, row.delta_high)}


def _control_sae(_step: str, row: Any, rows: Rows) -> dict[str, Any]:
    """Seed, width, k and, but for a transcoder, architecture are those of a member of the candidate."""
    own = [member for member in rows["candidate", "saes"] if member.seed == row.seed]
    if not own:
        return {"seed": None}
    architecture = "topk_transcoder" if row.control == "transcoder" else own[0].architecture
    matched = is_matched(row.l0, row.k)
    return {"architecture": architecture, "d_sae": own[0].d_sae, "k": own[0].k, "l0_matched": matched}


def _ood(rows: list[Any]) -> dict[str, Any]:
    by_seed, by_task = (
        mean_interval(list(means_by((getattr(row, column), row.drop) for row in rows).values()))
        for column in ("seed", "task")
    )
    return {
        "candidate": fmean(row.in_domain_auc - row.in_domain_llm_auc for row in rows),
        "control_value": fmean(row.shifted_auc - row.shifted_llm_auc for row in rows),
        "delta": by_seed.mean, "delta_low": by_seed.low, "delta_high": by_seed.high,
        "tasks_low": by_task.low, "tasks_high": by_task.high,
    }  # fmt: skip


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def _middle(value: float, low: float | None, high: float | None) -> float:
    """The value, or the middle of its interval where that is another number."""
    return value if low is None or high is None else (low + high) / 2


FOLLOWS: Mapping[str, Callable[[str, Any, Rows], dict[str, Any]]] = {
    "banks": _bank,
    "members": _member,
    "groups": _group,
    "probes": _probe,
    "controls": _control,
    "control_saes": _control_sae,
    "ood": _task,
    "contrastive": lambda _step, row, _rows: {"ceiling": ceiling(row.d_sae)},
}
"""What follows in a row of each table."""
