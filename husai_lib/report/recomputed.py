"""What follows from other numbers in the records of a run, row by row; an audit holds the rows to it: no torch.

The values of pairs of seeds follow from weights, where these are in the cache of this machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.optimize import linear_sum_assignment

from husai_lib.evidence.cache import cache_folder, open_entry
from husai_lib.evidence.rows import ceiling, group_sha256, is_matched
from husai_lib.intervals import Pairs, mean_interval, means_by, pair_table, pwmcc_difference, pwmcc_interval

NOT_CHECKED = "not checked"
NOT_HERE = "not in the cache of this machine"
WIDEST = 4096
"""Latents up to which pairs are matched again: an assignment takes a time that grows with their cube."""
WEIGHTS = "sae_weights.safetensors"
SAES = {"frontier": ("members", "condition"), "stress": ("control_saes", "control")}
"""The table of the SAEs whose pairs a step measures, and the column that says whose they are."""
Rows = Mapping[tuple[str, str], list[Any]]
"""The typed rows of (step, table), none where there is no such table.

Those of `candidate` are the selected group's: its members as `saes`, its row of `groups` as `stability`, the pairs
beside them as `pwmcc`.
"""


def recomputed(step: str, table: str, row: Any, rows: Rows) -> dict[str, Any]:
    """Every column of a row that follows from other numbers in the run's records, with its value.

    It is NOT_CHECKED or NOT_HERE where nothing on this machine gives the value.
    """
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
    """PW-MCC and its interval follow from the pairs; of a record without pairs only that the interval lies evenly."""
    probes = [probe for probe in rows[step, "probes"] if probe.condition == row.condition]
    members = [member for member in rows[step, "members"] if member.condition == row.condition]
    sets = mean_interval(list(means_by((probe.data_set, probe.delta) for probe in probes).values()))
    pairs = pairs_of(row.condition, [member.seed for member in members], rows[step, "pairs"])
    known = None if pairs is None else pwmcc_interval(pairs)
    return {
        "architecture": members[0].architecture if members else None,
        "n_seeds": len(members),
        "pwmcc": known.mean if known else _middle(row.pwmcc, row.pwmcc_low, row.pwmcc_high),
        "pwmcc_low": known.low if known else NOT_CHECKED,
        "pwmcc_high": known.high if known else NOT_CHECKED,
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
    """Of a control that was not run only whose it is; what decides on the others follows from pairs of seeds."""
    members, tasks = rows["candidate", "saes"], rows["stress", "ood"]
    found: dict[str, Any] = {"candidate_sha256": group_sha256((m.seed, m.weights_sha256) for m in members)}
    if row.delta is None or (row.control == "ood" and not tasks):
        return found | dict.fromkeys(("candidate", "control_value", "delta", "delta_low", "delta_high"))
    if row.control == "ood":
        return found | _ood(tasks)
    groups, seeds = rows["candidate", "stability"], [member.seed for member in members]
    if row.control != "random_decoder":
        made = [sae.seed for sae in rows["stress", "control_saes"] if sae.control == row.control]
        found["control"] = row.control if made == seeds else f"a control at the seeds {made}"
    found["candidate"] = _mean(group.pwmcc for group in groups)
    own = pairs_of(members[0].condition, seeds, rows["candidate", "pwmcc"])
    return found | _difference(row, own, pairs_of(row.control, seeds, rows["stress", "pairs"]), groups)


def _difference(row: Any, own: Pairs | None, other: Pairs | None, groups: Iterable[Any]) -> dict[str, Any]:
    """Of a record without pairs only that the delta is one and its interval lies evenly about it."""
    if own is None or other is None:
        delta = (row.candidate - row.control_value) * (-1 if row.control == "transcoder" else 1)
        null = _mean(group.null_random for group in groups) if row.control == "random_decoder" else NOT_CHECKED
        unknown = dict.fromkeys(("delta_low", "delta_high"), NOT_CHECKED)
        return unknown | {"control_value": null, "delta": _middle(delta, row.delta_low, row.delta_high)}
    delta = pwmcc_difference(other, own) if row.control == "transcoder" else pwmcc_difference(own, other)
    value = pwmcc_interval(other).mean
    return {"control_value": value, "delta": delta.mean, "delta_low": delta.low, "delta_high": delta.high}


def pairs_of(of: str, seeds: Sequence[int], rows: Iterable[Any]) -> Pairs | None:
    """The table `[S, S]` of the pairs of these seeds, of rows of `pairs`; None where one is missing."""
    known = {(row.seed_a, row.seed_b): row.pwmcc for row in rows if row.of == of}
    places = {pair: (seeds[pair[0]], seeds[pair[1]]) for pair in combinations(range(len(seeds)), 2)}
    found = {pair: known[those] for pair, those in places.items() if those in known}
    return pair_table(len(seeds), found) if found and len(found) == len(places) else None


def _pair(step: str, row: Any, rows: Rows) -> dict[str, Any]:
    """Within 1e-4 of what the weights give, as graphics processors add in another order.

    It is NOT_CHECKED for random decoders, which take torch, and for more than WIDEST latents.
    """
    table, column = SAES[step]
    saes = [sae for sae in rows[step, table] if getattr(sae, column) == row.of and sae.seed in (row.seed_a, row.seed_b)]
    if row.of == "random_decoder" or any(sae.d_sae > WIDEST for sae in saes):
        return {"pwmcc": NOT_CHECKED}
    decoders = [decoder for decoder in map(_decoder, saes) if decoder is not None]
    if len(decoders) < 2:
        return {"pwmcc": NOT_HERE}
    found = matched_cosine(decoders[0], decoders[1])
    return {"pwmcc": row.pwmcc if math.isclose(row.pwmcc, found, rel_tol=1e-4) else found}


def matched_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Mean |cosine| of the rows of two decoders `[d_sae, d_in]` under the best one-to-one assignment."""
    cosines = np.abs(_unit(a) @ _unit(b).T)
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean(dtype=np.float64))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(np.finfo(np.float32).tiny)
    return unit


def _decoder(sae: Any) -> NDArray[np.float32] | None:
    """Its decoder rows; None where its weights are not in the cache."""
    if not (cache_folder() / "saes" / sae.key).exists():
        return None
    entry = open_entry("saes", sae.key)
    found: NDArray[np.float32] = load_file(entry.path / WEIGHTS)["W_dec"]
    return found if entry.files[WEIGHTS] == sae.weights_sha256 else None


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
    "pairs": _pair,
    "probes": _probe,
    "controls": _control,
    "control_saes": _control_sae,
    "ood": _task,
    "contrastive": lambda _step, row, _rows: {"ceiling": ceiling(row.d_sae)},
}
"""What follows in a row of each table."""
