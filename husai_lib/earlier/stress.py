"""Stress results of cycles of 2026-02: sweeps of transcoders, one transcoder, and other data sets called OOD. Pure."""

from __future__ import annotations

import math
from typing import Any

from husai_lib.earlier.gates import every, gate_row, holds
from husai_lib.earlier.json_parts import Part, first
from husai_lib.evidence.rows import EarlierSweepRow, Row

Reading = tuple[dict[str, list[Row]], dict[str, Any]]
"""The tables of a file, and what no table has."""


def transcoder_sweep(file: Part) -> Reading:
    """A sweep of transcoders over widths, k, epochs and learning rates, and the gate of its best condition."""
    config, records, best, stated = (file.part("config"), file.parts("records"), file.part("best_condition"),
                                     file.part("gates"))  # fmt: skip
    rows: list[Row] = [_transcoders(r, r.text("condition_id"), config, r.number("delta_lcb")) for r in records]
    lows = [low for r in records if r.whole("returncode") == 0 and (low := r.raw("delta_lcb")) is not None]
    threshold, valid = config.number("min_delta_lcb"), holds(len(lows), 1)
    high = holds(max(lows, default=math.nan), threshold)
    gates: list[Row] = [
        gate_row("has_valid_condition", stated.flag("has_valid_condition"), valid, value=float(len(lows)),
                 threshold=1.0),
        gate_row("delta_lcb", stated.flag("gate_delta_lcb"), high, value=best.raw("delta"), bound=best.raw("delta_lcb"),
                 threshold=threshold),
        gate_row("pass_all", stated.flag("pass_all"), every(valid, high)),
    ]  # fmt: skip
    about = {"modulus": config.whole("modulus"), "best_of": len(records)}
    return {"earlier_sweep": rows, "earlier_gates": gates}, about


def transcoder(file: Part) -> Reading:
    """Transcoders of one condition beside SAEs; nothing was judged."""
    config = file.part("config")
    theirs, mine = file.part("transcoder", "summary"), file.part("sae", "summary")
    high, low = mine.number("ci95_high"), theirs.number("ci95_low")
    bound = None if low is None or high is None else low - high
    sizes = "_".join(f"{short}{config.value.get(key)}" for short, key in
                     (("dsae", "d_sae"), ("k", "k"), ("ep", "epochs"), ("lr", "learning_rate")))  # fmt: skip
    row = _transcoders(file, sizes, config, bound)
    gate = gate_row("transcoder", None, "", value=row.delta, bound=bound, direction="", required=False)
    sweep = [{"lambda": None, "models": row.n_seeds, "pairs": theirs.whole("n")}]
    return {"earlier_sweep": [row], "earlier_gates": [gate]}, {"modulus": config.whole("modulus"), "sweep": sweep}


def _transcoders(record: Part, condition: str, config: Part, low: float | None) -> EarlierSweepRow:
    seeds, code = config.joined("seeds"), record.whole("returncode")
    mine, theirs = (record.part(name, "summary").number("mean") for name in ("sae", "transcoder"))
    both = [part.number(key) for part in (record, record.part("metrics")) for key in ("delta", "transcoder_delta")]
    notes = [f"ended with return code {code}"] if code else []
    notes += ["control is the PW-MCC of the transcoders"] if theirs is not None else []
    return EarlierSweepRow(
        condition=condition, d_sae=record.needed("d_sae", config), k=record.needed("k", config),
        n_seeds=seeds.count(",") + 1 if seeds else None, pwmcc=mine, control=theirs, delta=first(*both), delta_low=low,
        explained_variance=None, alignment=None, saebench_delta=None, cebench_delta=None,
        note="; ".join(dict.fromkeys([*notes, *record.notes])),
    )  # fmt: skip


def ood(file: Part) -> Reading:
    """SAEBench of one SAE on two lists of data sets; nothing was judged."""
    drop = first(file.raw("ood_drop"), file.raw("drop"), file.part("metrics").raw("ood_drop"))
    gate = gate_row("ood", None, "", value=drop, direction="", required=False)
    parts = {name: _part(file.part(key)) for name, key in (("in_domain", "id_result"), ("ood", "ood_result"))}
    return {"earlier_gates": [gate]}, {"parts": parts, "checkpoint": file.part("config").text("checkpoint")}


def _part(part: Part) -> dict[str, Any]:
    bench = part.part("summary")
    config, meta, summary = bench.part("config"), bench.part("sae_meta"), bench.part("summary")
    return {
        "model": config.text("model_name"), "hook_name": config.text("hook_name"), "ks": config.joined("ks"),
        "data_sets": config.joined("dataset_names") or part.joined("datasets"), "setting": config.text("setting"),
        "delta": first(part.number("best_minus_llm_auc"), summary.number("best_minus_llm_auc")),
        "llm_auc": summary.part("llm_metrics").number("llm_test_auc"), "results_path": config.text("results_path"),
        "architecture": meta.text("architecture"), "evaluated_as": meta.text("eval_architecture"),
        "returncode": part.whole("returncode"), "chosen_on_test": chosen_on_test(summary),
    }  # fmt: skip


def chosen_on_test(summary: Part) -> bool:
    """Whether a SAEBench summary reports the k, of several, that is best on the test set."""
    aucs = [auc for by_k in summary.parts("sae_metrics_by_k") if (auc := by_k.number("test_auc")) is not None]
    return len(aucs) > 1 and summary.part("best_by_auc").number("test_auc") == max(aucs)
