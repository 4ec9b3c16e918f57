"""The formats of records of cycles of 2026-02: each kind of file to typed rows; nothing in them is recomputed. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from husai_lib.earlier.caveats import RUN_ID, Earlier
from husai_lib.earlier.gates import V2, V3, acceptance, policy
from husai_lib.earlier.json_parts import Part, first
from husai_lib.earlier.stress import Reading, chosen_on_test, ood, transcoder, transcoder_sweep
from husai_lib.errors import DataError
from husai_lib.evidence.rows import EarlierGroupRow, EarlierMemberRow, EarlierSweepRow, Row

SEED_OF_NAME = re.compile(r"_seed\d+$")
WANTED = ("seed", "d_sae", "k", "explained_variance", "l0", "saebench_delta", "llm_auc", "cebench_interpretability",
          "cebench_delta", "weights_sha256")  # fmt: skip
"""Columns of a member whose absence its note tells."""


def read_earlier(data: Any, source: str) -> Earlier:
    """One file's content as typed rows; `source` is what messages call it.

    A value that a record lacks, or that is not finite, is null and noted. Raises DataError for content of another kind
    and for a value of a wrong type.
    """
    if not isinstance(data, dict):
        raise DataError(f"{source} holds no JSON object; name a results, selection, stress or policy file")
    file = Part(data, source)
    kind = _kind(file)
    tables, summary = READERS[kind](file)
    paths = [row.checkpoint for row in tables.get("earlier_members", []) if isinstance(row, EarlierMemberRow)]
    stated = [file.part("run_metadata").text("run_id"), file.part("config").text("run_id")]
    found = RUN_ID.search("\n".join([*stated, *paths, file.text("checkpoint"), file.part("config").text("checkpoint")]))
    return Earlier(kind, found.group() if found else "", tables, _finite(summary))


def _kind(file: Part) -> str:
    keys = set(file.value)
    lists = [rows for name in ("records", "results") if isinstance(rows := file.value.get(name), list)]
    in_records = {key for rows in lists for row in rows if isinstance(row, dict) for key in row}
    for kind, top, inner in KINDS:
        if top <= keys and inner <= in_records:
            return kind
    raise DataError(
        f"{file.place} is no record of an earlier cycle that can be read ({', '.join(READERS)}); "
        "name such a file, or the folder it lies in"
    )


def _finite(value: Any) -> Any:
    """JSON values with null for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------------------------------------
# SAEs
# ---------------------------------------------------------------------------------------------


def _frontier(file: Part) -> Reading:
    config, members, saes = file.part("config"), list[Row](), []
    for position, record in enumerate(file.parts("records")):
        metas = [record.part(bench, "sae_meta").text("architecture") for bench in ("cebench", "saebench")]
        architecture = next(filter(None, (record.text("architecture"), *metas)), "unknown")
        train = record.part("train_metrics" if "train_metrics" in record.value else "train_summary")
        train = train if "train_metrics" in record.value else train.part("final_metrics")
        columns = _external(record, config) | {
            "position": position, "architecture": architecture, "seed": record.whole("seed"),
            "condition": SEED_OF_NAME.sub("", record.text("condition_id")) or architecture,
            "explained_variance": train.number("explained_variance"), "l0": train.number("l0"),
            "checkpoint": record.text("checkpoint"),
        }  # fmt: skip
        members.append(_member(columns, record))
        saes.append(_sae(train, record.part("saebench")))
    return {"earlier_members": members}, {"k": config.whole("k"), "saes": saes}


def _member(columns: dict[str, Any], record: Part) -> EarlierMemberRow:
    lacking = ", ".join(column for column in WANTED if columns[column] in {None, ""})
    codes = {name: record.whole(f"{name}_returncode") for name in ("train", "saebench", "cebench")}
    notes = [f"no {lacking}"] if lacking else []
    notes += [f"{name} ended with return code {code}" for name, code in codes.items() if code]
    notes += record.notes if columns["checkpoint"] else [*record.notes, "no checkpoint, so it was no candidate"]
    failed = ", ".join(name for name, code in codes.items() if code and name != "train")
    return EarlierMemberRow(**columns, failed=failed, note="; ".join(dict.fromkeys(notes)))


def _external(record: Part, config: Part) -> dict[str, Any]:
    """What both benchmarks say of one SAE, and of what they ran on."""
    saebench, cebench, train = record.part("saebench"), record.part("cebench"), record.part("train_summary", "config")
    metas, configs = ([bench.part(key) for bench in (saebench, cebench)] for key in ("sae_meta", "config"))
    described = [meta for meta in metas if "k" in meta.value]
    return _probed(saebench) | _contrasted(cebench) | {
        "d_sae": first(*(part.whole("d_sae") for part in (record, *metas, train, config))),
        "k": described[0].whole("k") if described else first(train.whole("k"), config.whole("k")),
        "model": next(filter(None, (part.text("model_name") for part in (*configs, config))), ""),
        "hook_name": next(filter(None, (part.text("hook_name") for part in (record, *configs, config))), ""),
        "evaluated_as": next(filter(None, (meta.text("eval_architecture") for meta in metas)), ""),
    }  # fmt: skip


def _probed(saebench: Part) -> dict[str, Any]:
    summary, config = saebench.part("summary"), saebench.part("config")
    return {
        "saebench_delta": first(summary.number("best_minus_llm_auc"), saebench.number("best_minus_llm_auc")),
        "llm_auc": summary.part("llm_metrics").number("llm_test_auc"),
        "data_sets": config.joined("dataset_names"), "ks": config.joined("ks"),
    }  # fmt: skip


def _contrasted(cebench: Part) -> dict[str, Any]:
    config, base, score = (
        cebench.part("config"),
        cebench.part("matched_baseline_payload"),
        "interpretability_score_mean_max",
    )
    used, own = config.whole("dataset_rows_used"), (cebench.part(key) for key in ("custom_metrics", "cebench_summary"))
    return {
        "cebench_interpretability": first(*(part.number(score) for part in own)),
        "cebench_delta": cebench.part("delta_vs_matched_baseline").number(score),
        "cebench_baseline": " ".join(filter(None, (base.text("sae_release"), base.text("sae_id")))),
        "cebench_baseline_score": cebench.part("matched_baseline_metrics").number(score),
        "pairs": config.text("dataset_name") + (f", {used} pairs" if used is not None else ""),
        "weights_sha256": config.text("checkpoint_sha256"),
    }


def _sae(train: Part, saebench: Part) -> dict[str, Any]:
    """What tells an SAE from others, and where its SAEBench mean came from."""
    metrics = {"mse": train.number("mse"), "explained_variance": train.number("explained_variance")}
    path = saebench.part("config").text("results_path")
    return metrics | {"results_path": path, "chosen_on_test": chosen_on_test(saebench.part("summary"))}


# ---------------------------------------------------------------------------------------------
# Sweeps of lambda
# ---------------------------------------------------------------------------------------------


def _assignment_v3(file: Part) -> Reading:
    config, records = file.part("config"), file.parts("records")
    members, saes = list[Row](), []
    for position, record in enumerate(records):
        if checkpoint := record.text("selected_checkpoint"):
            seeds = record.parts("per_seed_metrics")
            trained = next((s for s in seeds if s.whole("seed") == _seed(checkpoint)), Part({}, record.place))
            members.append(_assigned(position, record, config, trained))
            saes.append(_sae(trained, record.part("external_eval", "saebench")))
    summary = _lambdas(records, config) | {"k": config.whole("k"), "saes": saes}
    gates = acceptance(file, V3, _best(file, records).part("selection_metrics"))
    return {"earlier_members": members, "earlier_sweep": _sweep(records, config, "assignv3"),
            "earlier_gates": [*gates]}, summary  # fmt: skip


def _seed(checkpoint: str) -> int | None:
    found = re.search(r"sae_seed(\d+)", checkpoint)
    return int(found[1]) if found else None


def _assigned(position: int, record: Part, config: Part, trained: Part) -> EarlierMemberRow:
    external, checkpoint = record.part("external_eval"), record.text("selected_checkpoint")
    columns = _external(external, config)
    return _member(
        columns | _stated_deltas(record, columns) | {
            "position": position, "condition": f"assignv3_lambda{record.value.get('lambda_consistency')}",
            "architecture": "topk", "seed": _seed(checkpoint), "checkpoint": checkpoint, "l0": trained.number("l0"),
            "d_sae": first(record.whole("d_sae"), columns["d_sae"]), "k": first(record.whole("k"), columns["k"]),
            "explained_variance": record.part("explained_variance").number("mean"),
        },
        external,
    )  # fmt: skip


def _stated_deltas(record: Part, columns: dict[str, Any]) -> dict[str, Any]:
    """The external metrics an assignment record was selected by, else those of its evaluation."""
    stated = record.part("selection_metrics")
    names = ("saebench_delta", "cebench_delta", "cebench_interpretability")
    keys = ("saebench_delta", "cebench_delta", "cebench_interpretability_max")
    return {name: first(stated.number(key), columns[name]) for name, key in zip(names, keys, strict=True)}


def _assignment_v2(file: Part) -> Reading:
    config, records = file.part("config"), file.parts("results")
    gates = acceptance(file, V2, file.part("acceptance"))
    return {"earlier_sweep": _sweep(records, config, "assignv2"), "earlier_gates": [*gates]}, _lambdas(records, config)


def _sweep(records: list[Part], config: Part, prefix: str) -> list[Row]:
    return [
        EarlierSweepRow(
            condition=f"{prefix}_lambda{record.value.get('lambda_consistency')}",
            d_sae=record.needed("d_sae", config), k=record.needed("k", config), n_seeds=record.whole("n_models"),
            pwmcc=record.part("trained_pwmcc").number("mean"), control=record.part("random_pwmcc").number("mean"),
            delta=record.number("delta_pwmcc"), delta_low=record.number("delta_pwmcc_ci_low_conservative"),
            explained_variance=record.part("explained_variance").number("mean"),
            alignment=record.part("alignment_to_ref").number("mean"),
            **{name: value for name, value in _stated_deltas(record, _external(record.part("external_eval"), config))
               .items() if name != "cebench_interpretability"},
            note="; ".join(dict.fromkeys(record.notes)),
        )
        for record in records
    ]  # fmt: skip


def _lambdas(records: list[Part], config: Part) -> dict[str, Any]:
    """What the caveats need to know of a lambda sweep."""
    sweep = [
        {"lambda": record.number("lambda_consistency"), "models": record.whole("n_models"),
         "pairs": record.part("trained_pwmcc").whole("n")} for record in records
    ]  # fmt: skip
    on_language = config.part("activation_source").text("source") == "external_cache"
    modulus = None if on_language else config.whole("modulus")
    return {"seed_ref": config.whole("seed_ref"), "sweep": sweep, "best_of": len(records), "modulus": modulus}


def _best(file: Part, records: list[Part]) -> Part:
    """The selected record of an assignment sweep: as stated, else that of its best lambda."""
    best = file.part("acceptance").number("best_lambda")
    same = [record for record in records if record.number("lambda_consistency") == best]
    return file.part("selected") if file.value.get("selected") else (same or [Part({}, file.place)])[0]


# ---------------------------------------------------------------------------------------------
# Selections
# ---------------------------------------------------------------------------------------------


def _selection(file: Part) -> Reading:
    groups = file.parts("ranked_candidates") if "ranked_candidates" in file.value else [file]
    known = {key: file.part(key).value for key in ("config", "counts", "grouping_diagnostics")}
    kept = {key: value for key, value in known.items() if value}
    members = [[_group_member(seed) for seed in group.parts("seed_candidates")] for group in groups]
    rows: list[Row] = [_group(rank, group) for rank, group in enumerate(groups)]
    return {"earlier_groups": rows}, kept | {"members": members, "best_of": len(groups)}


def _group_member(seed: Part) -> dict[str, Any]:
    run = RUN_ID.search(seed.text("checkpoint"))
    own = {"seed": seed.whole("seed"), "condition": seed.text("condition_id"), "run_id": run.group() if run else ""}
    return own | {"joint_score": seed.number("joint_score")}


def _group(rank: int, group: Part) -> EarlierGroupRow:
    metrics, selection = group.part("metrics"), group.part("selection")
    names = {"saebench_delta": "saebench_delta", "cebench_delta": "cebench_interp_delta_vs_baseline",
             "explained_variance": "train_explained_variance"}  # fmt: skip
    ends = {"_std": "_std", "_low": "_ci95_low", "_high": "_ci95_high"}
    columns = {own: first(metrics.number(f"{key}_mean"), metrics.number(key)) for own, key in names.items()}
    columns |= {own + end: metrics.number(key + its) for own, key in names.items() for end, its in ends.items()}
    scores, joint = selection.part("normalized_components"), selection.number("joint_score")
    if joint is None:
        raise DataError(f"{selection.place}.joint_score is missing; give the file as it was written")
    lacking = ", ".join(column for column, value in columns.items() if value is None)
    return EarlierGroupRow(
        rank=rank, condition=group.text("group_id") or group.text("condition_id"),
        architecture=group.text("architecture"), representative_seed=group.whole("seed"),
        n_seeds=first(group.whole("seed_count"), len(group.parts("seed_candidates")) or 1),
        on_front=bool(selection.flag("is_pareto")), joint_score=joint, saebench_score=scores.number("saebench_norm"),
        cebench_score=scores.number("cebench_delta_norm"), explained_variance_score=scores.number("train_ev_norm"),
        **columns, note="; ".join(([f"no {lacking}"] if lacking else []) + group.notes),
    )  # fmt: skip


def _gates(file: Part) -> Reading:
    about = {key: file.part(key).value for key in ("inputs", "thresholds", "metrics", "gates")}
    return {"earlier_gates": [*policy(file)]}, about


READERS: dict[str, Callable[[Part], Reading]] = {
    "frontier": _frontier, "scaling": _frontier, "assignment_v2": _assignment_v2, "assignment_v3": _assignment_v3,
    "ood": ood, "transcoder_sweep": transcoder_sweep, "transcoder": transcoder, "selection": _selection,
    "gates": _gates,
}  # fmt: skip
KINDS: tuple[tuple[str, set[str], set[str]], ...] = (
    ("assignment_v2", {"results", "acceptance"}, {"lambda_consistency"}),
    ("assignment_v3", {"records"}, {"lambda_consistency", "selected_checkpoint"}),
    ("transcoder_sweep", {"records", "best_condition", "gates"}, {"condition_id"}),
    ("scaling", {"records"}, {"condition_id", "train_summary"}),
    ("frontier", {"records"}, {"architecture", "train_metrics"}),
    ("ood", {"id_result", "ood_result"}, set()),
    ("transcoder", {"config", "transcoder", "sae"}, set()),
    ("selection", {"ranked_candidates"}, set()),
    ("gates", {"thresholds", "metrics", "gates"}, set()),
    ("selection", {"condition_id", "metrics", "selection"}, set()),
)
"""Kinds with the keys that tell them: of the file, and of any of its records."""
