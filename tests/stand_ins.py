"""Small notebooks, parameters and a whole synthetic run, for tests of what surrounds the science."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import pytest
import yaml

from husai_lib import cli, cycle, tables
from husai_lib.cache import Entry, cached
from husai_lib.cycle import CycleStep, notebook_code
from husai_lib.evidence import Run, Step, new_run, open_step
from husai_lib.files import REPOSITORY, sha256_file, write_json
from husai_lib.gates import evaluate_members, group_sha256
from husai_lib.intervals import mean_interval, means_by
from husai_lib.params import CycleParams, load_cycle
from husai_lib.records import BankRow, ControlRow, ControlSaeRow, GroupRow, MemberRow, OodRow, ProbeRow
from husai_lib.selection import candidates_from, select

SMOKE = REPOSITORY / "params" / "smoke.yaml"

STEPS = (
    CycleStep("activations", "01_activations.ipynb", ("activations",)),
    CycleStep("frontier", "03_frontier.ipynb", ("seeds",)),
    CycleStep("gate", "08_gate.ipynb", ("gates",)),
)
"""A short cycle, so that tests of the machinery take few kernels."""

PARAMETERS = {"activations": "run = ''\nactivations = {}", "frontier": "run = ''\nseeds: list = [0]",
              "gate": "run = ''\ngates = {}"}  # fmt: skip
BODIES = {
    "activations": "step = open_step('activations', run, activations=activations)\nstep.write()",
    "frontier": "step = open_step('frontier', run, seeds=seeds)\nstep.read('activations')\nstep.write()",
    "gate": (
        "step = open_step('gate', run, gates=gates)\nstep.read('frontier')\n"
        "step.publish('release_policy.json', {'pass_all': False})\n"
        "step.write(verdict='Not released: a stand-in.', pass_all=False)"
    ),
}


def notebook(path: Path, *cells: str, outputs: list[str] | None = None) -> Path:
    """A notebook of code cells, the first tagged `parameters`; `outputs` are Markdown outputs of the last."""
    nodes = []
    for i, source in enumerate(cells):
        shown = outputs if outputs and i == len(cells) - 1 else []
        data = [{"output_type": "display_data", "metadata": {}, "data": {"text/markdown": text}} for text in shown]
        nodes.append({"cell_type": "code", "id": f"cell{i}", "metadata": {"tags": ["parameters"]} if i == 0 else {},
                      "execution_count": None, "outputs": data, "source": source})  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"cells": nodes, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def write_notebooks(folder: Path, **bodies: str) -> Path:
    """The notebooks of the short cycle; `bodies` replace those of single steps."""
    for step in STEPS:
        body = (BODIES | bodies)[step.name]
        notebook(folder / step.notebook, PARAMETERS[step.name], f"from husai_lib import open_step\n{body}")
    return folder


def smoke_data(**changes: Any) -> dict[str, Any]:
    """The smoke cycle's parameter file as a mapping, with top-level keys changed."""
    data: dict[str, Any] = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    return data | changes


def write_params(path: Path, data: Any) -> Path:
    """A parameter file."""
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def synthetic_run(evidence: Path) -> Run:
    """A complete run made of rows that agree with each other, with weights in the cache.

    It is written through Step.write: two conditions at three seeds, a baseline, controls, gates.
    """
    params = load_cycle(SMOKE)
    run = new_run(evidence, "smoke")
    write_json(run.path / "parameters.json", params.model_dump(mode="json"))
    bank = _cached("banks", "training", "rows.npy")
    step = _open(run, params, "activations", "activations")
    row = BankRow(bank="training", hook_name="blocks.0.hook_resid_post", rows=8, d_in=4, key=bank.key,
                  sha256=bank.files["rows.npy"])  # fmt: skip
    _finish(run, step, {"banks": [row]}, "01_activations")

    baseline = [_member("baseline", seed, 0.01 * seed, None) for seed in params.seeds]
    step = _open(run, params, "baselines", "seeds", "baseline")
    step.read("activations")
    _finish(run, step, {"members": [m for m, _ in baseline], "probes": [p for _, ps in baseline for p in ps]},
            "02_baselines")  # fmt: skip

    made = [
        _member(name, seed, quality + 0.003 * seed, baseline[seed][0])
        for name, quality in (("topk", 0.05), ("standard", 0.02))
        for seed in params.seeds
    ]
    members = [member for member, _ in made]
    groups = [_group("topk", 0.6, made), _group("standard", 0.4, made)]
    step = _open(run, params, "frontier", "seeds", "conditions")
    step.read("baselines")
    rows = {"members": members, "groups": groups, "probes": [p for _, ps in made for p in ps]}
    shown = [f"Text before.\n\n{tables.members_table(members)}\n", tables.groups_table(groups)]
    shown += [tables.external_table(groups, members), tables.data_sets_table(rows["probes"])]
    _finish(run, step, rows, "03_frontier", shown)

    selection = select(candidates_from("frontier", members, {}), params.selection)
    step = _open(run, params, "selection", "selection")
    step.read("frontier")
    step.publish("selection_summary.json", selection.summary())
    shown = [tables.candidates_table(selection.rows())]
    _finish(run, step, {"candidates": selection.rows()}, "06_selection", shown, **selection.summary())

    winner = [m for m in members if selection.winner and m.condition == selection.winner.condition]
    controls, control_saes, ood = _controls(winner)
    step = _open(run, params, "stress", "seeds", "stress")
    step.read("selection")
    _figure(step)
    rows = {"controls": controls, "control_saes": control_saes, "ood": ood}
    shown = [tables.controls_table(controls), tables.ood_table(ood)]
    _finish(run, step, rows, "07_stress", shown, selected=selection.summary()["selected"])

    policy = evaluate_members(winner, [m for m, _ in baseline], controls, params.gates)
    step = _open(run, params, "gate", "gates")
    step.read("stress")
    step.publish("release_policy.json", {"pass_all": policy.pass_all})
    _finish(run, step, {"gates": list(policy.gates)}, "08_gate", [tables.gates_table(policy.gates)],
            verdict=policy.verdict, pass_all=policy.pass_all, selected=selection.summary()["selected"])  # fmt: skip
    complete(run)
    return run


def complete(run: Run) -> None:
    """Write the run's manifest from its records, as a cycle does at its end."""
    gate = run.record("gate").summary
    run.write_manifest(cycle="smoke", verdict=gate["verdict"], pass_all=gate["pass_all"], steps=list(run.journal))


def _open(run: Run, params: CycleParams, step: str, *sections: str) -> Step:
    values = params.model_dump(mode="json")
    return open_step(step, str(run.path), **{name: values[name] for name in sections})


def _finish(run: Run, step: Step, rows: dict[str, Any], stem: str, shown: list[str] | None = None,
            **summary: Any) -> None:  # fmt: skip
    step.write(rows, **summary)
    path = notebook(run.path / "notebooks" / f"{stem}.ipynb", "run = ''", "show()", outputs=shown)
    note_notebook(run, step.name, path)


def note_notebook(run: Run, step: str, path: Path) -> None:
    """Take an executed notebook into the journal, as a cycle does."""
    entry = run.journal[step]
    files = entry["files"] | {str(path.relative_to(run.path)): sha256_file(path)}
    run.note_step(step, entry | {"files": files, "notebook_code": notebook_code(path)})


def _figure(step: Step) -> None:
    path = step.run.path / "figures" / "stress.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(range(256)))
    step.published["figures/stress.png"] = sha256_file(path)


def _cached(kind: str, name: str, file: str) -> Entry:
    """A cache entry of one small file."""
    return cached(kind, "husai_lib.files", {"name": name}, lambda folder: _fill(folder / file, name))


def _fill(path: Path, name: str) -> None:
    path.write_bytes(name.encode() * 8)


def _member(condition: str, seed: int, delta: float, baseline: MemberRow | None) -> tuple[MemberRow, list[ProbeRow]]:
    probes = [
        ProbeRow(condition=condition, seed=seed, data_set=name, best_k=2, validation_auc=0.8,
                 test_auc=0.7 + delta + shift, llm_auc=0.7, delta=0.7 + delta + shift - 0.7)
        for name, shift in (("95_toxic_is", 0.01), ("117_us_state_FL", -0.01))
    ]  # fmt: skip
    score = 5.0 + 10 * delta
    entry = _cached("saes", f"{condition} {seed}", "sae_weights.safetensors")
    member = MemberRow(
        condition=condition, architecture="topk", seed=seed, d_sae=64, k=8, explained_variance=0.8 + delta,
        l0=8.0, l0_matched=True, dead_fraction=0.1, saebench_auc=fmean(p.test_auc for p in probes),
        saebench_delta=fmean(p.delta for p in probes), cebench_contrastive=3.0, cebench_independence=3.0,
        cebench_interpretability=score, cebench_calibrated=1.5, cebench_calibrated_contrastive=1.25,
        cebench_delta=score - baseline.cebench_interpretability if baseline else None,
        cebench_ceiling=63 / math.sqrt(64), key=entry.key, weights_sha256=entry.files["sae_weights.safetensors"],
    )  # fmt: skip
    return member, probes


def _group(condition: str, pwmcc: float, made: list[tuple[MemberRow, list[ProbeRow]]]) -> GroupRow:
    probes = [probe for member, own in made for probe in own if member.condition == condition]
    saebench = mean_interval(list(means_by((probe.data_set, probe.delta) for probe in probes).values()))
    return GroupRow(
        condition=condition, architecture="topk", n_seeds=3, pwmcc=pwmcc, pwmcc_low=pwmcc - 0.1,
        pwmcc_high=pwmcc + 0.1, pwmcc_max=pwmcc + 0.05, null_random=0.2, null_gaussian=0.25,
        pwmcc_corrected=(pwmcc - 0.25) / 0.75, encoder_mcc=0.3, reappearing_fraction=0.4, subspace_overlap=0.5,
        saebench_delta=saebench.mean, sets_low=saebench.low, sets_high=saebench.high,
    )  # fmt: skip


def _controls(members: list[MemberRow]) -> tuple[list[ControlRow], list[ControlSaeRow], list[OodRow]]:
    ood = [
        OodRow(task=task, seed=member.seed, best_k=2, in_domain_auc=0.8, in_domain_llm_auc=0.85, shifted_auc=0.7,
               shifted_llm_auc=0.8, drop=(0.8 - 0.85) - (0.7 - 0.8), weights_sha256=member.weights_sha256)
        for task in ("87_glue_cola", "7_hist_fig_ispolitician")
        for member in members
    ]  # fmt: skip
    drop, own = fmean(row.drop for row in ood), group_sha256((m.seed, m.weights_sha256) for m in members)
    pwmcc: dict[str, Any] = {"metric": "pwmcc", "candidate": 0.6, "candidate_sha256": own}
    controls = [
        ControlRow(control="random_model", control_value=0.35, delta=0.6 - 0.35, delta_low=0.2, delta_high=0.3,
                   **pwmcc),
        ControlRow(control="random_decoder", control_value=0.2, delta=0.6 - 0.2, delta_low=0.3, delta_high=0.5,
                   **pwmcc),
        ControlRow(control="transcoder", control_value=0.5, delta=-(0.6 - 0.5), delta_low=-0.2, delta_high=0.0,
                   **pwmcc),
        ControlRow(control="ood", metric="saebench_delta", candidate=0.8 - 0.85, control_value=0.7 - 0.8, delta=drop,
                   delta_low=drop, delta_high=drop, tasks_low=drop, tasks_high=drop, candidate_sha256=own),
    ]  # fmt: skip
    made = [_control_sae(control, member) for control in ("random_model", "transcoder") for member in members]
    return controls, made, ood


def _control_sae(control: str, of: MemberRow) -> ControlSaeRow:
    entry = _cached("saes", f"{control} {of.seed}", "sae_weights.safetensors")
    architecture = "topk_transcoder" if control == "transcoder" else of.architecture
    return ControlSaeRow(
        control=control, architecture=architecture, seed=of.seed, d_sae=of.d_sae, k=of.k, l0=8.0, l0_matched=True,
        key=entry.key, weights_sha256=entry.files["sae_weights.safetensors"],
    )  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What a command said."""

    code: int
    out: str
    err: str


def husai(*arguments: Any) -> Said:
    """Run a command in this process, through the entry point that the installed command has."""
    out, err = io.StringIO(), io.StringIO()
    redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    environment = mock.patch.dict(os.environ)  # a command changes it for its kernels
    with environment, redirected[0], redirected[1], pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return Said(end.value.code, out.getvalue(), err.getvalue())


def short_cycle(patch: pytest.MonkeyPatch, folder: Path, **bodies: str) -> Path:
    """Make commands run the short cycle, from notebooks written to `folder`, with a cache beside them."""
    patch.setattr(cycle, "STEPS", STEPS)
    patch.setattr(cli, "NOTEBOOKS", write_notebooks(folder, **bodies))
    patch.setenv("HUSAI_CACHE", str(folder.parent / "cache"))
    return folder


def start_husai(notebooks: Path, *arguments: Any) -> subprocess.Popen[str]:
    """A process that runs a command on the short cycle; it hears Ctrl-C even where the tests run in the background."""
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import sys; from pathlib import Path; import stand_ins; from husai_lib import cli, cycle;"
        "cycle.STEPS = stand_ins.STEPS; cli.NOTEBOOKS = Path(sys.argv[1]); cli.main(sys.argv[2:])"
    )
    command = [sys.executable, "-c", script, str(notebooks), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
