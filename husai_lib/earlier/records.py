"""The formats of February 2026: each kind of file to typed rows; nothing in them is recomputed.

MEMBER, SWEEP and GROUP name the places in the JSON that may hold a column that does not stand under its own name.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from husai_lib.errors import DataError, ParameterError
from husai_lib.evidence.rows.base import Row
from husai_lib.evidence.rows.earlier import EarlierGateRow, EarlierGroupRow, EarlierMemberRow, EarlierSweepRow
from husai_lib.files import canonical_json
from husai_lib.params.sections import check

RUN_ID = re.compile(r"run_\d{8}T\d{6}Z")
"""What earlier cycles called a run, alone or within a path."""
Json = dict[str, Any]
Reading = tuple[dict[str, list[Any]], Json]
"""The tables and the summary of the record of one file."""
R = TypeVar("R", bound=Row)
Paths = Mapping[str, tuple[str, ...]]

SCORE = "interpretability_score_mean_max"
MEMBER: Paths = {
    "architecture": ("architecture", "saebench.sae_meta.architecture", "cebench.sae_meta.architecture"),
    "d_sae": ("d_sae", "file.config.d_sae", "saebench.sae_meta.d_sae"),
    "k": ("k", "file.config.k", "saebench.sae_meta.k"),
    "model": ("file.config.model_name", "saebench.config.model_name"),
    "hook_name": ("hook_name", "file.config.hook_name", "saebench.config.hook_name"),
    "explained_variance": ("explained_variance.mean", "train_metrics.explained_variance",
                           "train_summary.final_metrics.explained_variance"),
    "l0": ("train_metrics.l0", "train_summary.final_metrics.l0"),
    "mse": ("train_metrics.mse", "train_summary.final_metrics.mse"),
    "saebench_delta": ("saebench.summary.best_minus_llm_auc", "saebench.best_minus_llm_auc"),
    "llm_auc": ("saebench.summary.llm_metrics.llm_test_auc",),
    "results_path": ("saebench.config.results_path",),
    "cebench_interpretability": (f"cebench.custom_metrics.{SCORE}", f"cebench.cebench_summary.{SCORE}"),
    "cebench_delta": (f"cebench.delta_vs_matched_baseline.{SCORE}",),
    "cebench_baseline_score": (f"cebench.matched_baseline_metrics.{SCORE}",),
    "evaluated_as": ("saebench.sae_meta.eval_architecture", "cebench.sae_meta.eval_architecture"),
    "weights_sha256": ("cebench.config.checkpoint_sha256",),
}  # fmt: skip
SWEEP: Paths = {
    "d_sae": ("d_sae", "file.config.d_sae"),
    "k": ("k", "file.config.k"),
    "n_seeds": ("n_models",),
    "pairs": ("trained_pwmcc.n",),
    "pwmcc": ("trained_pwmcc.mean",),
    "control": ("random_pwmcc.mean",),
    "delta": ("delta_pwmcc",),
    "delta_low": ("delta_pwmcc_ci_low_conservative",),
    "explained_variance": ("explained_variance.mean",),
    "alignment": ("alignment_to_ref.mean",),
    "saebench_delta": ("selection_metrics.saebench_delta",),
    "cebench_delta": ("selection_metrics.cebench_delta",),
}
GROUP: Paths = {
    "condition": ("group_id", "condition_id"),
    "representative_seed": ("seed",),
    "joint_score": ("selection.joint_score",),
    "saebench_score": ("selection.normalized_components.saebench_norm",),
    "cebench_score": ("selection.normalized_components.cebench_delta_norm",),
    "explained_variance_score": ("selection.normalized_components.train_ev_norm",),
} | {
    f"{column}{end}": (f"metrics.{metric}{its_end}", *([] if end else [f"metrics.{metric}"]))
    for column, metric in (("saebench_delta", "saebench_delta"), ("cebench_delta", "cebench_interp_delta_vs_baseline"),
                           ("explained_variance", "train_explained_variance"))
    for end, its_end in (("", "_mean"), ("_std", "_std"), ("_low", "_ci95_low"), ("_high", "_ci95_high"))
}  # fmt: skip
GATES = {
    "delta_pwmcc": ("best_delta_pwmcc", "min_delta_pwmcc", ""),
    "delta_lcb": ("best_delta_lcb", "min_delta_lcb", ""),
    "internal_lcb": ("internal_lcb", "min_internal_lcb", ""),
    "ev_drop": ("ev_drop", "max_ev_drop", ""),
    "saebench": ("saebench_delta", "min_saebench_delta", "require_external"),
    "cebench": ("cebench_delta", "min_cebench_delta", "require_external"),
    "random_model": ("trained_random_delta", "min_trained_random_delta", ""),
    "transcoder": ("transcoder_delta", "min_transcoder_delta", "require_transcoder"),
    "ood": ("ood_drop", "max_ood_drop", "require_ood"),
    "external_saebench": ("saebench_delta", "min_saebench_delta", "require_external"),
    "external_cebench": ("cebench_interp_delta_vs_baseline", "min_cebench_delta", "require_external"),
    "external": ("external_delta", "min_external_delta", "require_external"),
    "pass_all": ("", "", ""),
}
"""Keys of each gate of a release policy and each part of the acceptance of a sweep: its value, its threshold, and the
flag that says whether it is required."""


def read_earlier(content: bytes, source: str) -> Reading:
    """The tables and the summary of the record of one file; DataError for any other content.

    A value that the file lacks, or that is not finite, is null and noted.
    """
    try:
        given = json.loads(content, parse_constant=lambda _: None)  # NaN, Infinity
        canonical_json(given).encode()  # fails for what no record can hold, such as half a surrogate pair
    except (ValueError, RecursionError):
        raise DataError(f"{source} is empty, cut off or no JSON; name the file as it was written") from None
    data = given if isinstance(given, dict) else {}
    rows = _first(data, "records", "results")
    keys = {*data, *(key for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict) for key in row)}
    found = [(kind, reader) for kind, reader, needed in KINDS if needed <= keys]
    if not found:
        known = ", ".join(dict.fromkeys(kind for kind, _, _ in KINDS))
        raise DataError(f"{source} is none of the records that can be read ({known}); name such a file or its folder")
    kind, reader = found[0]
    tables, summary = reader(data, source)
    about = {"kind": kind, "run_id": str(_first(data, "run_metadata.run_id", "config.run_id") or ""), "source": source}
    return tables, about | {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} | summary


def _first(data: Json, *paths: str) -> Any:
    """The first value at one of several dotted paths; None where each is missing, null or an empty text."""
    for path in paths:
        value: Any = data
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value not in (None, ""):
            return value
    return None


def _object(data: Json, path: str) -> Json:
    """The object at a dotted path; an empty one where there is none."""
    value = _first(data, path)
    return value if isinstance(value, dict) else {}


def _objects(data: Json, key: str, source: str) -> list[Json]:
    """A list of objects; an empty one where it is missing or null."""
    found = data.get(key) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(f"{source}: {key} is no list of objects; give the file as it was written")
    return found


def _row(model: type[R], source: str, data: Json, paths: Paths, **columns: Any) -> R:
    """A row of `columns` and, for the others, of the values in `data`; its note names the numbers that are missing."""
    texts = {column for column, field in model.model_fields.items() if field.annotation is str}
    read = [column for column in model.model_fields if column not in {"note", *columns}]
    found = {column: _first(data, *paths.get(column, (column,))) for column in read}
    lacking = ", ".join(column for column, value in found.items() if value is None and column not in texts)
    row = {"note": f"no {lacking}" if lacking else ""} | found | columns
    try:
        return check(model, row | {column: "" for column in texts if row[column] is None}, source)
    except ParameterError as error:
        raise DataError(f"{error}; give the file as it was written") from None


def _frontier(data: Json, source: str) -> Reading:
    """The SAEs of a file; an empty record holds none."""
    records = enumerate(_objects(data, "records", source))
    members = [_member(n, record | {"file": data}, f"{source}, record {n}") for n, record in records if record]
    return {"earlier_members": members}, {}


def _member(position: int, record: Json, source: str) -> EarlierMemberRow:
    saebench, cebench = _object(record, "saebench.config"), _object(record, "cebench.config")
    used, baseline = cebench.get("dataset_rows_used"), _object(record, "cebench.matched_baseline_payload")
    name = _first(record, "condition_id", *MEMBER["architecture"]) or ""
    return _row(
        EarlierMemberRow, source, record, MEMBER, position=position, condition=re.sub(r"_seed\d+$", "", str(name)),
        data_sets=_joined(saebench.get("dataset_names")), ks=_joined(saebench.get("ks")),
        pairs=_joined([cebench.get("dataset_name"), None if used is None else f"{used} pairs"], ", "),
        cebench_baseline=_joined([baseline.get("sae_release"), baseline.get("sae_id")], " "),
        failed=", ".join(bench for bench in ("saebench", "cebench") if record.get(f"{bench}_returncode")),
    )  # fmt: skip


def _joined(value: Any, by: str = ",") -> Any:
    """A list as one text; anything else as it is."""
    return by.join(str(one) for one in value if one is not None) if isinstance(value, list) else value


def _assignment(data: Json, source: str) -> Reading:
    """A sweep of the consistency loss; v3 evaluated one checkpoint of each strength, v2 none."""
    records = _objects(data, "records", source) or _objects(data, "results", source)
    tables, _ = _frontier(data | {"records": [_assigned(record, source) for record in records]}, source)
    tables["earlier_sweep"] = [_row(EarlierSweepRow, f"{source}, record {n}", record | {"file": data}, SWEEP)
                               for n, record in enumerate(records)]  # fmt: skip
    limits = _object(data, "acceptance")
    stated = {key.removeprefix("gate_"): verdict for key, verdict in limits.items() if key[:5] in ("gate_", "pass_")}
    tables["earlier_gates"] = _gates(stated, limits, limits | _object(data, "selected.selection_metrics"), source)
    about = {"seed_ref": _first(data, "config.seed_ref"), "best_lambda": limits.get("best_lambda")}
    return {name: rows for name, rows in tables.items() if rows}, about


def _assigned(record: Json, source: str) -> Json:
    """The SAE of a strength that was evaluated, in the shape of a frontier record; empty where there is none."""
    checkpoint, seeds = record.get("selected_checkpoint"), _objects(record, "per_seed_metrics", source)
    trained = next((seed for seed in seeds if seed.get("checkpoint") == checkpoint), {})
    own = {"condition_id": f"assignv3_lambda{record.get('lambda_consistency')}", "architecture": "topk",
           "seed": trained.get("seed"), "checkpoint": checkpoint, "train_metrics": trained}  # fmt: skip
    return record | _object(record, "external_eval") | own if checkpoint else {}


def _selection(data: Json, source: str) -> Reading:
    """The ranked groups of a selection, or the one of a selected candidate alone."""
    rows, members = [], []
    for rank, group in enumerate(_objects(data, "ranked_candidates", source) or [data]):
        place, seeds = f"{source}, group {rank}", _objects(group, "seed_candidates", source)
        n_seeds, on_front = group.get("seed_count") or len(seeds) or 1, _first(group, "selection.is_pareto") or False
        rows.append(_row(EarlierGroupRow, place, group, GROUP, rank=rank, n_seeds=n_seeds, on_front=on_front))
        members.append([{key: seed.get(key) for key in ("seed", "joint_score", "checkpoint")} for seed in seeds])
    kept = {key: data[key] for key in ("config", "counts") if isinstance(data.get(key), dict)}
    return {"earlier_groups": rows}, kept | {"members": members}


def _policy(data: Json, source: str) -> Reading:
    gates, limits, values = (_object(data, key) for key in ("gates", "thresholds", "metrics"))
    return {"earlier_gates": _gates(gates, limits, values, source)}, {}


def _gates(stated: Json, limits: Json, values: Json, source: str) -> list[EarlierGateRow]:
    by_bound, mode = limits.get("use_external_lcb") is True, limits.get("external_mode")
    return [
        _row(
            EarlierGateRow, f"{source}, gate {gate}", {}, {}, gate=gate, value=_first(values, value),
            bound=_first(values, f"{value}_lcb", f"{value}_ci95_low"),
            threshold=_first(limits, *([f"{limit}_lcb"] if by_bound else []), limit),
            direction="below" if limit.startswith("max") else "above",
            required=not required_by or limits.get(required_by) is True,
            stated={"True": "pass", "False": "fail"}.get(str(stated[gate])),
            note=f"by external_mode {mode}" if mode and gate == "external" else "",
        )
        for gate, (value, limit, required_by) in GATES.items() if gate in stated
    ]  # fmt: skip


KINDS: tuple[tuple[str, Callable[[Json, str], Reading], set[str]], ...] = (
    ("assignment_v2", _assignment, {"results", "acceptance", "lambda_consistency"}),
    ("assignment_v3", _assignment, {"records", "lambda_consistency", "selected_checkpoint"}),
    ("scaling", _frontier, {"records", "condition_id", "train_summary"}),
    ("frontier", _frontier, {"records", "architecture", "train_metrics"}),
    ("selection", _selection, {"ranked_candidates"}),
    ("gates", _policy, {"thresholds", "metrics", "gates"}),
    ("selection", _selection, {"condition_id", "metrics", "selection"}),
)
"""What each kind of file is called, its reader, and keys that it or its records have."""
