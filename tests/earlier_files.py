"""Small files as earlier cycles wrote them, made by hand, for tests of what reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from husai_lib.earlier.records import Reading, read_earlier

RUN, SCALING_RUN = "run_20260214T000000Z", "run_20260215T000000Z"
EIGHT = [f"set_{n}" for n in range(8)]
NAN = float("nan")
CEBENCH_SCORE = "interpretability_score_mean_max"


def probing(
    delta: float | None = -0.04,
    llm: float = 0.7,
    names: list[str] | None = None,
    used: str = "topk",
    folder: str = "/t/a",
) -> dict[str, Any]:
    names = EIGHT if names is None else names
    return {
        "config": {"model_name": "pythia", "hook_name": "blocks.0", "ks": [1, 5], "dataset_names": names,
                   "results_path": folder, "setting": "normal"},
        "sae_meta": {"architecture": "topk", "eval_architecture": used, "d_sae": 1024, "k": 32},
        "summary": {
            "llm_metrics": {"llm_test_auc": llm},
            "sae_metrics_by_k": [{"k": 1, "test_auc": 0.6}, {"k": 5, "test_auc": 0.66}],
            "best_by_auc": {"k": 5, "test_auc": 0.66},
            "best_minus_llm_auc": delta,
        },
    }  # fmt: skip


def contrastive(score: float = 8.0, baseline: float = 48.0, sha256: str | None = "ab") -> dict[str, Any]:
    return {
        "config": {"model_name": "pythia", "hook_name": "blocks.0", "dataset_name": "stories", "dataset_rows_used": 200,
                   "checkpoint_sha256": sha256},
        "sae_meta": {"architecture": "topk", "d_sae": 1024, "k": 32},
        "custom_metrics": {CEBENCH_SCORE: score},
        "matched_baseline_metrics": {CEBENCH_SCORE: baseline},
        "matched_baseline_payload": {"sae_release": "res-sm", "sae_id": "blocks.0"},
        "delta_vs_matched_baseline": {CEBENCH_SCORE: score - baseline},
    }  # fmt: skip


def frontier(*seeds: int, **probed: Any) -> dict[str, Any]:
    records = [
        {
            "architecture": "topk", "seed": seed, "checkpoint": f"results/{RUN}/checkpoints/topk_seed{seed}/sae.pt",
            "train_metrics": {"mse": seed / 1000, "explained_variance": 0.75, "l0": 32.0},
            "saebench": probing(**probed), "cebench": contrastive(), "saebench_returncode": 0, "cebench_returncode": 0,
        }
        for seed in seeds or (42,)
    ]  # fmt: skip
    return {"config": {"run_id": RUN, "k": 32, "d_sae": 1024}, "records": records, "aggregate": {}}


def scaling() -> dict[str, Any]:
    record = {
        "condition_id": "tok10_layer0_dsae2048_seed42", "hook_name": "blocks.1", "d_sae": 2048, "seed": 42,
        "train_summary": {"final_metrics": {"mse": 0.1, "explained_variance": 0.99, "l0": 32.0}},
        "saebench": probing(names=[*EIGHT, *(f"more_{n}" for n in range(8))]), "cebench": None,
        "checkpoint": f"results/{SCALING_RUN}/sae.pt",
    }  # fmt: skip
    return {"config": {"run_id": SCALING_RUN, "k": 32}, "records": [record], "aggregates": {}}


def lambdas(key: str = "records") -> dict[str, Any]:
    sweep = [
        {
            "lambda_consistency": strength, "d_sae": 128, "k": 8, "n_models": 5,
            "trained_pwmcc": {"mean": 0.3 + strength, "n": 10}, "random_pwmcc": {"mean": 0.25, "n": 10},
            "delta_pwmcc": 0.05 + strength, "delta_pwmcc_ci_low_conservative": 0.04,
            "explained_variance": {"mean": 0.9}, "alignment_to_ref": {"mean": 0.8},
        }
        for strength in (0.0, 0.2)
    ]  # fmt: skip
    return {"run_metadata": {"run_id": RUN}, "config": {"seed_ref": 42, "k": 8}, key: sweep}


def assignment_v2(external: float | None = -0.1, **stated: Any) -> dict[str, Any]:
    acceptance = {
        "best_lambda": 0.2, "best_delta_pwmcc": 0.25, "best_delta_lcb": 0.04, "ev_drop": 0.01,
        "external_delta": external, "min_delta_pwmcc": 0.0, "min_delta_lcb": 0.0, "max_ev_drop": 0.05,
        "min_external_delta": 0.0, "gate_delta_pwmcc": True, "gate_delta_lcb": True, "gate_ev_drop": True,
        "gate_external": False, "pass_all": False,
    }  # fmt: skip
    return lambdas("results") | {"acceptance": acceptance | stated}


def assignment_v3() -> dict[str, Any]:
    data = lambdas()
    for record, checkpoint in zip(data["records"], (f"results/{RUN}/lambda_0.0/sae_seed123.pt", None), strict=True):
        record["selected_checkpoint"] = checkpoint
        trained = {"seed": 123, "checkpoint": checkpoint, "mse": 0.5, "explained_variance": 0.91, "l0": 8.0}
        record["per_seed_metrics"] = [{"seed": 42, "checkpoint": "sae_seed42.pt", "l0": 9.0}, trained]
        record["external_eval"] = {"saebench": probing(), "cebench": contrastive()}
        record["selection_metrics"] = {"internal_lcb": 0.04, "ev_drop": 0.2, "saebench_delta": 0.0}
    acceptance = {
        "best_lambda": 0.2, "require_external": True, "min_internal_lcb": 0.0, "max_ev_drop": 0.05,
        "min_saebench_delta": 0.0, "min_cebench_delta": 0.0, "gate_internal_lcb": True, "gate_ev_drop": False,
        "gate_saebench": True, "gate_cebench": False, "pass_all": False,
    }  # fmt: skip
    return data | {"acceptance": acceptance, "selected": data["records"][1]}


def group(name: str = "topk", seeds: tuple[int, ...] = (1, 2, 3), runs: tuple[str, ...] = (RUN,)) -> dict[str, Any]:
    half = 1.96 * 0.003 / math.sqrt(3)
    members = [
        {"seed": seed, "condition_id": f"{name}_seed{seed}", "checkpoint": f"results/{runs[n % len(runs)]}/sae.pt",
         "joint_score": 0.1 * seed}
        for n, seed in enumerate(seeds)
    ]  # fmt: skip
    metrics = {
        "saebench_delta": -0.04 - half, "saebench_delta_mean": -0.04, "saebench_delta_std": 0.003,
        "saebench_delta_ci95_low": -0.04 - half, "saebench_delta_ci95_high": -0.04 + half,
        "cebench_interp_delta_vs_baseline": -40.0, "train_explained_variance": 0.7,
    }  # fmt: skip
    return {
        "condition_id": name, "group_id": name, "architecture": "topk", "seed": max(seeds), "seed_count": len(seeds),
        "checkpoint": f"results/{runs[0]}/sae.pt", "metrics": metrics, "seed_candidates": members,
        "selection": {"joint_score": 0.9, "is_pareto": True, "normalized_components": {"saebench_norm": 0.5}},
    }  # fmt: skip


def selection(**config: Any) -> dict[str, Any]:
    groups = [group(), group("relu")]
    counts = {"total_candidates": 6, "pareto_count": 1}
    about = {"run_metadata": {"run_id": RUN}, "config": {"uncertainty_mode": "lcb"} | config, "counts": counts}
    return about | {"selected_candidate": groups[0], "ranked_candidates": groups, "pareto_front": groups[:1]}


def policy(mode: str | None = "joint", **changes: Any) -> dict[str, Any]:
    """All gates pass but the transcoder's and the external ones; `changes` go to whichever part has the key."""
    parts: dict[str, dict[str, Any]] = {
        "thresholds": {
            "min_trained_random_delta": 0.0, "min_trained_random_lcb": 0.0, "min_transcoder_delta": 0.0,
            "max_ood_drop": 0.1, "min_external_delta": 0.0, "require_transcoder": True, "require_ood": True,
            "require_external": True,
        },
        "metrics": {
            "trained_random_delta": 0.1, "trained_random_delta_lcb": 0.05, "transcoder_delta": -0.01, "ood_drop": 0.02,
            "external_delta": -0.04, "saebench_delta": 0.01, "saebench_delta_ci95_low": -0.04,
            "cebench_interp_delta_vs_baseline": 1.0, "cebench_interp_delta_vs_baseline_ci95_low": -40.0,
        },
        "gates": {"random_model": True, "transcoder": False, "ood": True, "external": False, "pass_all": False},
    }  # fmt: skip
    if mode:
        parts["thresholds"] |= {"external_mode": mode, "use_external_lcb": True, "min_saebench_delta": 0.0,
                                "min_cebench_delta": 0.0}  # fmt: skip
        parts["gates"] |= {"external_saebench": False, "external_cebench": False}
    for part in parts.values():
        part.update({key: value for key, value in changes.items() if key in part})
    return {"run_metadata": {"run_id": RUN}, "inputs": {}, **parts}


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "frontier": frontier, "scaling": scaling, "assignment_v2": assignment_v2, "assignment_v3": assignment_v3,
    "selection": selection, "gates": policy,
}  # fmt: skip


def read(data: Any) -> Reading:
    """As from a file: through JSON text, NaN included."""
    return read_earlier(json.dumps(data).encode(), "a.json")


def save(folder: Path, **files: Any) -> Path:
    """The files as `<name>.json` in a folder."""
    for name, data in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))
    return folder
