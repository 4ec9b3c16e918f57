"""Rows and runs for the tests of the report: small, made up, and hostile where texts come from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from husai_lib.evidence.rows.consistency import SweepRow, TruthRow
from husai_lib.evidence.rows.controls import ControlRow, OodRow
from husai_lib.evidence.rows.decided import CandidateRow, GateRow
from husai_lib.evidence.rows.measured import ContrastiveRow, GroupRow, MemberRow, SourceRow
from husai_lib.evidence.rows.probes import CeilingRow, ProbeRow
from husai_lib.evidence.runs import Run
from husai_lib.evidence.steps import open_step
from husai_lib.files import write_json
from husai_lib.params.cycle import load_cycle
from husai_lib.report.figures import controls, external, frontier, ood, pareto, stability

ATTACK = "<img src=x onerror=alert(1)>|`$x$` [a](javascript:alert(2))"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def member(condition: str = "topk", seed: int = 0, **changes: Any) -> MemberRow:
    values: dict[str, Any] = {
        "condition": condition, "architecture": condition, "seed": seed, "d_sae": 64, "k": 8,
        "explained_variance": 0.71349 + 0.01 * seed, "l0": 8.0 + 0.1 * seed, "l0_matched": True,
        "dead_fraction": 0.03125, "saebench_auc": 0.812, "saebench_delta": -0.0421 + 0.004 * seed,
        "saebench_delta_keep": -0.0821 + 0.004 * seed,
        "cebench_contrastive": 4.5, "cebench_independence": 3.25, "cebench_interpretability": 5.75,
        "cebench_calibrated": 1.5, "cebench_calibrated_contrastive": 1.25,
        "cebench_delta": 0.25 + 0.125 * seed, "cebench_calibrated_delta": 0.5 + 0.25 * seed, "cebench_ceiling": 7.875,
        "key": "ab" * 32, "weights_sha256": "cd" * 32,
    }  # fmt: skip
    return MemberRow(**values | changes)


def members() -> list[MemberRow]:
    rows = [member("topk", seed) for seed in range(3)]
    rows += [member("standard", seed, l0=21.5 + seed, l0_matched=False, explained_variance=0.82) for seed in range(3)]
    rows += [member("batchtopk", seed, explained_variance=0.74, saebench_delta=0.01 * seed) for seed in range(3)]
    return rows + [member("jumprelu", seed, l0=7.7, explained_variance=0.69 + 0.02 * seed) for seed in range(3)]


def group(condition: str = "topk", **changes: Any) -> GroupRow:
    values: dict[str, Any] = {
        "condition": condition, "architecture": condition, "n_seeds": 3, "pwmcc": 0.523, "pwmcc_low": 0.48,
        "pwmcc_high": 0.566, "pwmcc_max": 0.61, "null_random": 0.29, "null_gaussian": 0.40, "pwmcc_corrected": 0.205,
        "encoder_mcc": 0.44, "reappearing_fraction": 0.25, "subspace_overlap": 0.73,
        "functional_agreement": 0.41, "functional_rare": 0.33, "functional_frequent": 0.47,
        "saebench_delta": -0.021, "saebench_low": -0.093, "saebench_high": 0.051, "saebench_delta_keep": -0.064,
        "largest_k_delta": -0.034, "full_width_delta": 0.012, "supervised_delta": -0.002, "oracle_delta": 0.045,
        "single_latent_delta": -0.125,
    }  # fmt: skip
    return GroupRow(**values | changes)


def groups() -> list[GroupRow]:
    return [group("topk"), group("standard", pwmcc_low=0.35, pwmcc=0.42, pwmcc_high=0.49), group("batchtopk")]


def swept(weight: float, base: str = "topk_lambda_0", **changes: Any) -> SweepRow:
    """A weight of the objective that passes every gate; seeds of one reference agree more the larger it is."""
    values: dict[str, Any] = {
        "condition": f"{base.removesuffix('_0')}_{weight:g}".replace(".", "_"), "base": base, "weight": weight,
        "n_seeds": 6, "pwmcc": 0.5, "pwmcc_low": 0.45, "pwmcc_high": 0.55,
        "pwmcc_within": 0.5 + weight if weight else None, "random": 0.29, "random_high": 0.3, "delta_pwmcc": 0.21,
        "delta_lcb": 0.15, "alignment": 0.8 if weight else None, "explained_variance": 0.72 - weight / 10,
        "ev_drop": weight / 10, "external_delta": 0.01, "cebench_delta": 0.25, "gate_delta_pwmcc": "pass",
        "gate_delta_lcb": "pass", "gate_ev_drop": "pass", "gate_external": "pass", "gate_cebench": "",
        "accepted": True, "checkpoint_seed": 2,
    }  # fmt: skip
    return SweepRow(**values | changes)


def sweep() -> list[SweepRow]:
    """Two conditions at three weights; at the largest weight of topk too much explained variance is lost."""
    lost = {"explained_variance": 0.6, "ev_drop": 0.12, "gate_ev_drop": "fail", "accepted": False}
    return [
        swept(0.0), swept(0.1, pwmcc=0.52, pwmcc_low=0.47, pwmcc_high=0.57), swept(0.3, **lost),
        *(swept(weight, "standard_lambda_0", pwmcc=0.4, pwmcc_low=None, pwmcc_high=None) for weight in (0.0, 0.1, 0.3)),
    ]  # fmt: skip


def truth(weight: float, **changes: Any) -> TruthRow:
    values: dict[str, Any] = {
        "weight": weight, "recovery": 0.6, "pwmcc": 0.5, "pwmcc_within": 0.5 + weight if weight else None,
        "functional_agreement": 0.4, "explained_variance": 0.8,
    }  # fmt: skip
    return TruthRow(**values | changes)


def known_truth() -> list[TruthRow]:
    return [truth(0.0), truth(0.1, recovery=0.65), truth(0.3, recovery=0.55)]


def candidate(condition: str = "topk", **changes: Any) -> CandidateRow:
    values: dict[str, Any] = {
        "source": "frontier", "condition": condition, "architecture": condition, "n_seeds": 3,
        "saebench_delta": -0.038, "saebench_delta_low": -0.048, "cebench_delta": 0.375, "cebench_delta_low": 0.0645,
        "explained_variance": 0.723, "explained_variance_low": 0.6986, "joint_score": 0.9, "on_front": True,
        "selected": True, "selection_probability": 0.62,
    }  # fmt: skip
    return CandidateRow(**values | changes)


def candidates() -> list[CandidateRow]:
    dropped = {"joint_score": None, "on_front": False, "selected": False, "selection_probability": None}
    return [
        candidate("topk"),
        candidate("batchtopk", saebench_delta=0.01, saebench_delta_low=-0.01, cebench_delta=-0.2,
                  cebench_delta_low=-0.6, joint_score=0.5, selected=False, selection_probability=0.31),
        candidate("jumprelu", saebench_delta=-0.06, saebench_delta_low=-0.09, joint_score=0.1, on_front=False,
                  selected=False, selection_probability=0.07),
        candidate("standard", saebench_delta=-0.02, **dropped, note="L0 is more than 10 % off the target k"),
    ]  # fmt: skip


def control(name: str = "random_model_1", **changes: Any) -> ControlRow:
    values: dict[str, Any] = {
        "control": name, "metric": "pwmcc", "candidate": 0.523, "control_value": 0.41, "delta": 0.113,
        "delta_low": 0.06, "delta_high": 0.166, "level": 0.95, "l0_matched": True, "candidate_sha256": "0" * 64,
    }  # fmt: skip
    return ControlRow(**values | changes)


def all_controls() -> list[ControlRow]:
    return [
        control(),
        control("random_model_2", control_value=0.39, delta=0.133, delta_low=0.08, delta_high=0.186),
        control("random_decoder", control_value=0.29, delta=0.233, delta_low=0.19, delta_high=0.276),
        control("transcoder", control_value=0.55, delta=-0.027, delta_low=-0.08, delta_high=0.026),
        control("in_domain", metric="in_domain_auc", candidate=0.82, control_value=0.5, delta=0.32, delta_low=0.29,
                delta_high=0.35, tasks_low=0.2, tasks_high=0.44),
        control("ood", metric="retained_auc", candidate=0.69, control_value=0.8, delta=0.11, delta_low=0.05,
                delta_high=0.17, tasks_low=-0.02, tasks_high=0.24),
    ]  # fmt: skip


def ood_rows() -> list[OodRow]:
    return [
        OodRow(task=task, seed=seed, best_k=2, in_domain_auc=0.81 + 0.01 * seed, in_domain_llm_auc=0.85,
               shifted_auc=0.7 + 0.02 * seed, shifted_llm_auc=0.78, weights_sha256="0" * 64)
        for task in ("87_glue_cola", ATTACK) for seed in range(3)
    ]  # fmt: skip


def gate(name: str, **changes: Any) -> GateRow:
    values: dict[str, Any] = {
        "gate": name, "metric": "pwmcc", "value": 0.113, "bound": 0.06, "threshold": 0.0, "direction": "above",
        "required": True, "verdict": "pass", "source": "stress",
    }  # fmt: skip
    return GateRow(**values | changes)


def gates() -> list[GateRow]:
    return [
        gate("random_model"),
        gate("random_decoder", value=0.233, bound=0.19),
        gate("transcoder", value=-0.023, bound=-0.08, verdict="fail"),
        gate("ood", metric="ood_drop", value=0.05, bound=0.09, threshold=0.1, direction="below"),
        gate("external_saebench", metric="saebench_delta", value=None, bound=None, verdict="missing",
             note=f"no result for {ATTACK}", source="frontier"),
        gate("external_cebench", metric="cebench_delta", value=0.375, bound=0.0645, source="frontier"),
    ]  # fmt: skip


def sources() -> list[SourceRow]:
    return [
        SourceRow(role="training", data_set="157_amazon_5star", texts=1200, tokens=61234, rows=4096),
        SourceRow(role="held_out", data_set=ATTACK, texts=30, tokens=1234, rows=1024),
    ]


def probe(data_set: str = "a", **changes: Any) -> ProbeRow:
    values: dict[str, Any] = {
        "condition": "topk", "seed": 0, "data_set": data_set, "duplicates": "drop", "split": 42, "test_rows": 250,
        "best_k": 5, "validation_auc": 0.9, "test_auc": 0.875, "llm_auc": 0.9, "delta": -0.025,
    }  # fmt: skip
    return ProbeRow(**values | changes)


def probes() -> list[ProbeRow]:
    """Two splits without duplicates, and the published form."""
    kept = probe(ATTACK, duplicates="keep", test_rows=500, best_k=2, test_auc=0.85, llm_auc=0.95, delta=-0.1)
    return [kept, probe(ATTACK), probe(ATTACK, split=43, best_k=1, test_auc=0.825, delta=-0.075)]


def ceiling(data_set: str = "a", **changes: Any) -> CeilingRow:
    values: dict[str, Any] = {
        "condition": "topk", "seed": 0, "data_set": data_set, "test_rows": 250, "largest_k_delta": -0.025,
        "full_width_delta": 0.0, "supervised_delta": -0.01, "oracle_delta": 0.05, "single_latent_delta": -0.1,
    }  # fmt: skip
    return CeilingRow(**values | changes)


def width_row(origin: str, d_sae: int, k: int, **changes: Any) -> ContrastiveRow:
    values: dict[str, Any] = {
        "origin": origin, "seed": 0, "d_sae": d_sae, "k": k, "l0": float(min(k, d_sae)), "contrastive": d_sae / k / 2,
        "independence": 2.0, "interpretability": d_sae / k / 2, "independence_as_released": 3.0,
        "interpretability_as_released": 1.25 * d_sae / k / 2, "calibrated_contrastive": 1.0,
        "calibrated": k / 10 + (2.0 if origin == "trained" else 0.0), "ceiling": (d_sae - 1) / d_sae**0.5,
    }  # fmt: skip
    return ContrastiveRow(**values | changes)


def width_rows() -> list[ContrastiveRow]:
    random = [width_row("random", d_sae, k) for d_sae in (64, 256, 1024) for k in (32, 128)]
    return random + [width_row("trained", d_sae, k) for d_sae in (64, 256) for k in (32, 128)]


def write_run(run: Run, finished: bool = True) -> Run:
    """A run with every record but the report's, its figures and one executed notebook."""
    cycle = load_cycle(Path(__file__).parent.parent / "params" / "smoke.yaml")
    write_json(run.path / "parameters.json", cycle.model_dump(mode="json"))
    sections = {
        name: getattr(cycle, name).model_dump(mode="json") for name in ("model", "texts", "activations", "stress")
    }
    step = open_step("activations", str(run.path), **sections)
    step.write({"sources": sources()})
    step = open_step("baselines", str(run.path))
    step.write({"members": [member("baseline", s, architecture="topk", cebench_delta=None) for s in range(3)]})
    step = open_step("frontier", str(run.path))
    step.save_figure(frontier(members()), "frontier")
    step.save_figure(external(members(), groups()), "external")
    step.save_figure(stability(groups()), "stability")
    step.write({"members": members(), "groups": groups(), "probes": probes()})
    step = open_step("selection", str(run.path))
    step.save_figure(pareto(candidates()), "pareto")
    step.write({"candidates": candidates()})
    if finished:
        step = open_step("stress", str(run.path), stress=sections["stress"])
        step.save_figure(controls(all_controls()), "controls")
        step.save_figure(ood(ood_rows()), "ood")
        step.write({"controls": all_controls(), "ood": ood_rows()})
        open_step("gate", str(run.path), gates=cycle.gates.model_dump(mode="json")).write({"gates": gates()})
        write_notebook(run.path / "notebooks" / "01_activations.ipynb")
        run.write_manifest()
    return run


def write_notebook(path: Path) -> None:
    """An executed notebook with all that a page must handle."""
    table = "<table onmouseover='alert(3)'><tr><th>name</th></tr><tr><td>value</td></tr></table>"
    cells = [
        new_markdown_cell(
            "# From text to *activations*\n\nThe question is what the SAE reads, at $L_0 = k$. See the "
            "[next](02_next.ipynb#results) page.\n\n$$1 - \\frac{\\sum_i \\|x_i - \\hat{x}_i\\|^2}{\\sum_i "
            "\\|x_i - \\bar{x}\\|^2}$$\n\n"
            "<script>alert(4)</script><a href='java&#x73;cript:alert(5)' onclick='alert(6)'>click</a> "
            "x\n\n![far](https://example.org/x.png) [away](https://example.org) https://example.org/bare "
            "$\\text{<script>alert(7)</script>}$ $\\frac$"
        ),
        new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
        new_code_cell("seed = 3", metadata={"tags": ["injected-parameters"]}),
        new_markdown_cell("# Results\n\n## Norms"),
        new_code_cell(
            "#| label: fig-norms\n#| fig-cap: \"Norms of activations, $x$.\"\n#| fig-alt: A \"pixel\".\n"
            "plot(x)  # a < b <script>alert(9)</script>",
            outputs=[new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})],
        ),
        new_code_cell(
            "show()",
            outputs=[
                new_output("display_data", {"text/html": table + "<script>alert(8)</script><style>b{}</style>"}),
                new_output("display_data", {"text/markdown": "| a | b |\n|---|---:|\n| one | 1.5 |"}),
                new_output("display_data", {"application/javascript": "alert(10)", "text/plain": "<script>"}),
                new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "50%|#"}),
                new_output("stream", name="stdout", text="<b>plain</b>\n"),
                new_output("error", ename="E", evalue="<bad>", traceback=["\x1b[31mE\x1b[0m: <bad>"]),
            ],
        ),
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
