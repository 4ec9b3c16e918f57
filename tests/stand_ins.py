"""Small notebooks, parameters and a whole synthetic run, for tests of what surrounds the science."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import nbformat
import numpy as np
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from safetensors.numpy import save_file

from husai_lib import cli
from husai_lib.cycle import run as cycle
from husai_lib.cycle.run import CycleStep
from husai_lib.decisions.candidates import candidates_from
from husai_lib.decisions.gates import Policy, evaluate_members, release_policy
from husai_lib.decisions.selection import select
from husai_lib.evidence.cache import Entry, cached
from husai_lib.evidence.rows import (
    BankRow,
    ControlRow,
    ControlSaeRow,
    GroupRow,
    MemberRow,
    OodRow,
    PairRow,
    ProbeRow,
    SourceRow,
    group_sha256,
)
from husai_lib.evidence.runs import Record, Run, new_run
from husai_lib.evidence.steps import Step, open_step, results
from husai_lib.files import REPOSITORY, canonical_json, read_json, sha256_file, sha256_text, write_json
from husai_lib.intervals import mean_interval, means_by, pair_table, pwmcc_difference, pwmcc_interval
from husai_lib.params.cycle import CycleParams, load_cycle
from husai_lib.report import tables

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
    "activations": "step = open_step('activations', run, activations=activations)\nrecord = step.write()",
    "frontier": "step = open_step('frontier', run, seeds=seeds)\nstep.read('activations')\nrecord = step.write()",
    "gate": (
        "step = open_step('gate', run, gates=gates)\nstep.read('frontier')\n"
        "step.publish('release_policy.json', {'pass_all': False})\n"
        "record = step.write(verdict='Not released: a stand-in.', pass_all=False)"
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

    It is written through Step.write: two conditions at three seeds, a baseline, controls, gates. Its notebooks lie in
    `notebooks` beside `evidence`, and show tables, sentences and figures as those of the project do.
    """
    params = load_cycle(SMOKE)
    params = params.model_copy(update={"conditions": params.conditions[:2]})
    run = new_run(evidence, "smoke")
    write_json(run.path / "parameters.json", params.model_dump(mode="json"))
    bank = _cached("banks", "training", "rows.npy")
    step = _open(run, params, "activations", "model", "texts", "activations", "contrastive", "stress")
    row = BankRow(bank="training", hook_name="blocks.0.hook_resid_post", rows=8, d_in=4, key=bank.key,
                  sha256=bank.files["rows.npy"])  # fmt: skip
    rows: dict[str, Any] = {"banks": [row], "sources": [_source(*about) for about in SOURCES]}
    _finish(run, step, rows, "01_activations", distinct_training_texts=7, story_pairs=12)

    baseline = [_member("baseline", seed, 0.01 * seed, None) for seed in params.seeds]
    step = _open(run, params, "baselines", "seeds", "sae", "conditions", "baseline", "probing", "contrastive")
    step.read("activations")
    _finish(run, step, {"members": [m for m, _ in baseline], "probes": [p for _, ps in baseline for p in ps]},
            "02_baselines")  # fmt: skip

    made = [
        _member(name, seed, quality + 0.003 * seed, baseline[seed][0])
        for name, quality in (("topk", 0.05), ("standard", 0.02))
        for seed in params.seeds
    ]
    members = [member for member, _ in made]
    step = _open(run, params, "frontier", "seeds", "sae", "conditions", "probing", "contrastive")
    step.read("baselines")
    groups = [_group("topk", 0.6, made), _group("standard", 0.4, made)]
    rows = {"members": members, "groups": groups, "probes": [p for _, ps in made for p in ps]}
    _finish(run, step, rows | {"pairs": _pairs("topk", "standard")}, "03_frontier")

    selection = select(candidates_from("frontier", members, {}), params.selection)
    step = _open(run, params, "selection", "selection")
    step.read("frontier")
    step.publish("candidate_table.csv", tables.csv_table(selection.rows()))
    _finish(run, step, {"candidates": selection.rows()}, "06_selection", **selection.summary())

    winner = [m for m in members if selection.winner and m.condition == selection.winner.condition]
    controls, control_saes, ood = _controls(winner)
    step = _open(run, params, "stress", "model", "texts", "activations", "probing", "stress")
    step.read("selection")
    selected = {"selected": selection.summary()["selected"]}
    rows = {"controls": controls, "control_saes": control_saes, "ood": ood}
    pairs = _pairs("random_model", "random_decoder", "transcoder")
    _finish(run, step, rows | {"pairs": pairs}, "07_stress", **selected)

    policy = evaluate_members(winner, [m for m, _ in baseline], controls, params.gates)
    step = _open(run, params, "gate", "gates")
    step.read("stress")
    decided = {"verdict": policy.verdict, "pass_all": policy.pass_all}
    _finish(run, step, {"gates": list(policy.gates), "criteria": []}, "08_gate", **decided, **selected)

    step = _open(run, params, "report")
    for name in ("activations", "baselines", "frontier", "selection", "stress", "gate"):
        step.read(name)
    _finish(run, step, {}, "09_report", **decided)
    complete(run)
    return run


PWMCC = {
    "topk": (0.58, 0.60, 0.62), "standard": (0.38, 0.40, 0.42), "baseline": (0.28, 0.30, 0.32),
    "random_model": (0.34, 0.35, 0.36), "random_decoder": (0.19, 0.20, 0.21), "transcoder": (0.49, 0.50, 0.51),
}  # fmt: skip
"""PW-MCC of the pairs of seeds 0 and 1, 0 and 2, 1 and 2."""
SEED_PAIRS = ((0, 1), (0, 2), (1, 2))
SOURCES = (("157_amazon_5star", 5), ("161_agnews_0", 3))
SHOWN: dict[str, dict[str, str]] = {
    "01_activations": {
        "model_sentence": 'sentences.model_sentence(step.parameters["model"], step.parameters["activations"])',
        "disjoint_sentence": "sentences.disjoint_sentence(unseen)",
        "sources_table": 'tables.sources_table(record.table("sources"))',
    },
    "02_baselines": {
        "baseline_table": 'tables.baseline_table(record.table("members"))',
        "given_sentence": 'sentences.given_sentence(record.table("members"))',
        "probes_table": 'tables.probes_table(record.table("probes"))',
        "unreachable_sentence": "sentences.unreachable_sentence(step.params.sae.d_sae)",
    },
    "03_frontier": {
        "trained_sentence": "sentences.trained_sentence(step.params.conditions, step.params.seeds)",
        "frontier": "frontier",
        "members_table": 'tables.members_table(record.table("members"))',
        "matched_sentence": 'sentences.matched_sentence(record.table("members"))',
        "groups_table": 'tables.groups_table(record.table("groups"))',
        "stability_sentence": 'sentences.stability_sentence(record.table("groups"))',
        "external_table": 'tables.external_table(record.table("groups"), record.table("members"))',
        "data_sets_table": 'tables.data_sets_table(record.table("probes"))',
    },
    "06_selection": {
        "candidates_table": 'tables.candidates_table(record.table("candidates"))',
        "selection_sentence": 'sentences.selection_sentence(record.table("candidates"))',
        "sensitivity_table": 'tables.sensitivity_table(record.summary["sensitivity"])',
        "winner_sentence": 'sentences.winner_sentence(record.table("candidates"), step.params.selection.weights)',
        "scores_table": 'tables.scores_table(record.table("candidates"))',
        "scaling_sentence": 'sentences.scaling_sentence(record.summary["by_scaling"])',
        "representative_sentence": 'sentences.representative_sentence(record.summary["selected"])',
    },
    "07_stress": {
        "candidate_sentence": "sentences.candidate_sentence(chosen, group)",
        "controls_table": 'tables.controls_table(record.table("controls"))',
        "controls": "controls",
        "ood_table": 'tables.ood_table(record.table("ood")) if shifted else "No shifted set was probed."',
        "ood_sentence": 'sentences.ood_sentence(record.table("ood")) if shifted else ""',
    },
    "08_gate": {
        "gates_table": 'tables.gates_table(record.table("gates"))',
        "gate_sentences": 'sentences.gate_sentences(record.table("gates"))',
        "verdict_sentence": 'sentences.verdict_sentence(record.table("gates"))',
    },
    "09_report": {
        "verdict_sentence": 'sentences.verdict_sentence(gate.table("gates"))',
        "members_table": 'tables.members_table(frontier.table("members"))',
        "stories_sentence": 'sentences.stories_sentence(given["texts"]["stories"])',
        "results_sentence": "sentences.results_sentence(records)",
    },
}
"""What each notebook of the synthetic run shows: its function, or its figure, and the code that does."""


def complete(run: Run) -> None:
    """Write the run's manifest from its records, as a cycle does at its end."""
    gate = run.record("gate").summary
    run.write_manifest(cycle="smoke", verdict=gate["verdict"], pass_all=gate["pass_all"], steps=list(run.journal))


def notebooks_of(run: Run) -> Path:
    """The notebooks that a synthetic run was made with."""
    return run.path.parent.parent.parent / "notebooks"


def _open(run: Run, params: CycleParams, step: str, *sections: str) -> Step:
    values = params.model_dump(mode="json")
    return open_step(step, str(run.path), **{name: values[name] for name in sections})


def _source(data_set: str, rows: int) -> SourceRow:
    return SourceRow(role="training", data_set=data_set, texts=rows, tokens=2 * rows, rows=rows)


def _finish(run: Run, step: Step, rows: dict[str, Any], stem: str, **summary: Any) -> None:
    """Write the step's record, and an executed notebook that shows what it shows of the records so far."""
    record = step.write(rows, **summary)
    publish(run, step.name)
    path = _execute(run, stem, step.parameters)
    show(run, stem)
    note_notebook(run, record.step, path)


def records_of(run: Run) -> dict[str, Record]:
    """Every record of a run as it lies in its file, whatever its hash."""
    paths = [run.path / "records" / f"{step}.json" for step in run.journal]
    return {path.stem: Record(path.stem, read_json(path), sha256_file(path)) for path in paths}


def _execute(run: Run, stem: str, parameters: dict[str, Any]) -> Path:
    """The notebook itself, and it executed but without outputs: prose, parameters, a cell for each thing shown."""
    codes = {
        name: f'step.save_figure(figures.{name}(record.table("x")), "{name}")' if name == code else f"Markdown({code})"
        for name, code in SHOWN[stem].items()
    }
    cells = [new_markdown_cell(f"# {stem}\n\nThe threshold is 0.5."), _tagged("run = ''", "parameters")]
    cells += [cell for code in codes.values() for cell in (new_markdown_cell("Prose."), new_code_cell(code))]
    if stem in ("03_frontier", "07_stress"):
        cells.append(_tagged('record = step.write(rows | {"pairs": pairs})', "record"))
    source = notebooks_of(run) / f"{stem}.ipynb"
    source.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), source)
    lines = [f"{name} = {value!r}" for name, value in ({"run": str(run.path)} | parameters).items()]
    cells.insert(2, _tagged("\n".join(["# Parameters", *lines]), "injected-parameters"))
    path = run.path / "notebooks" / source.name
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


def _tagged(source: str, tag: str) -> Any:
    return new_code_cell(source, metadata={"tags": [tag]})


def show(run: Run, stem: str) -> None:
    """Put what the records give into the outputs of an executed notebook, as running it would."""
    path = run.path / "notebooks" / f"{stem}.ipynb"
    notebook, records = nbformat.read(path, 4), records_of(run)
    if stem == "09_report":
        records.setdefault("report", records["gate"])
    records.setdefault("candidate", records.get("frontier", records["activations"]))
    texts = shown.fragments(records)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and not cell.metadata]
    for name, cell in zip(SHOWN[stem], cells, strict=True):
        if name in shown.FIGURES:
            make, *takes = shown.FIGURES[name]
            figure = make(*(records[what.split("/")[0]].table(what.split("/")[1]) for what in takes))
            step = Step("", run, None, {})
            data = {"image/png": base64.b64encode(step.save_figure(figure, name)._repr_png_()).decode()}
        else:
            data = {"text/markdown": texts[name], "text/plain": "<IPython.core.display.Markdown object>"}
        cell.outputs = [new_output("execute_result", data, execution_count=1)]
    nbformat.write(notebook, path)


def publish(run: Run, step: str) -> None:
    """Write the files that a step publishes from its record, and their hashes into record and journal."""
    record = records_of(run)[step]
    selected = {"selected": record.summary.get("selected")}
    files: dict[str, Any] = {}
    if step == "selection":
        front = [row for row in record.data["tables"]["candidates"] if row["on_front"]]
        files = {"selection_summary.json": record.summary, "selected_candidate.json": selected,
                 "pareto_front.json": {"groups": front}}  # fmt: skip
    if step == "gate":
        basis = record.data["parameters"]["gates"]["basis"]
        decided = {name: record.summary[name] for name in ("verdict", "pass_all")}
        policy = Policy(gates=tuple(record.table("gates")), basis=basis, **decided)
        criteria = {"criteria": record.data["tables"].get("criteria", [])}
        files = {"release_policy.json": release_policy(policy) | selected | criteria}
    if step == "report":
        records = records_of(run)
        files = {"results.json": results([records[name] for name in record.data["inputs"]])}
    published = record.data["published"] | {name: write_json(run.path / name, data) for name, data in files.items()}
    name = f"records/{step}.json"
    sha256 = write_json(run.path / name, record.data | {"published": published})
    entry = run.journal[step]
    run.note_step(step, entry | {"files": entry["files"] | published | {name: sha256}})


def rewrite(run: Run, step: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a record, and make all that follows from it agree as a careful forger would.

    That is: published files, the outputs of notebooks, figures and every hash; but no number of another record.
    """
    path = run.path / "records" / f"{step}.json"
    record = read_json(path)
    change(record)
    write_json(path, record)
    for name in run.journal:
        publish(run, name)
    for stem in SHOWN:
        show(run, stem)
    forge_hashes(run)


def forge_hashes(run: Run) -> None:
    """Make every hash of a run agree with its files: in records, journal and manifest."""
    journal = run.journal
    for _ in journal:  # hashes of hashes: as often as records rest on each other
        for other in journal:
            path = run.path / "records" / f"{other}.json"
            data = read_json(path)
            data["inputs"] = {s: sha256_file(run.path / "records" / f"{s}.json") for s in data["inputs"]}
            data["published"] = {name: sha256_file(run.path / name) for name in data["published"]}
            write_json(path, data)
    for step, entry in journal.items():
        files = {name: sha256_file(run.path / name) for name in entry["files"]}
        [path] = [run.path / name for name in files if name.endswith(".ipynb")]
        run.note_step(step, entry | {"files": files, "notebook_code": _own_code(path)})
    complete(run)


def _own_code(path: Path) -> str:
    """Hash of the code of an executed notebook, without the cell of its parameters."""
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    own = [cell.source for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    return sha256_text(canonical_json(own))


def note_notebook(run: Run, step: str, path: Path) -> None:
    """Take an executed notebook into the journal, as a cycle does."""
    entry = run.journal[step]
    files = entry["files"] | {str(path.relative_to(run.path)): sha256_file(path)}
    run.note_step(step, entry | {"files": files, "notebook_code": _own_code(path)})


def _cached(kind: str, name: str, file: str) -> Entry:
    """A cache entry of one small file; that of an SAE, named by condition and seed, holds a decoder."""
    return cached(kind, "husai_lib.files", {"name": name}, lambda folder: _fill(folder / file, name))


def _fill(path: Path, name: str) -> None:
    if path.suffix == ".safetensors":
        of, seed = name.split()
        save_file({"W_dec": decoder(of, int(seed))}, path)
    else:
        path.write_bytes(name.encode() * 8)


def decoder(of: str, seed: int) -> np.ndarray:
    """Two rows for which PW-MCC has the values of PWMCC: a part that all seeds share beside one that none shares."""
    values = dict(zip(SEED_PAIRS, PWMCC[of], strict=True))
    with_it = math.prod(value for pair, value in values.items() if seed in pair)
    shared = math.sqrt(with_it / math.prod(value for pair, value in values.items() if seed not in pair))
    rows = np.zeros((2, 8), np.float32)
    rows[:, :2], rows[:, 2 * seed + 2 : 2 * seed + 4] = shared * np.eye(2), math.sqrt(1 - shared**2) * np.eye(2)
    return rows


def _pairs(*names: str) -> list[PairRow]:
    return [
        PairRow(of=name, seed_a=a, seed_b=b, pwmcc=value)
        for name in names
        for (a, b), value in zip(SEED_PAIRS, PWMCC[name], strict=True)
    ]


def pairs_of(name: str) -> Any:
    """The table of the pairs of a condition or control."""
    return pair_table(3, dict(zip(SEED_PAIRS, PWMCC[name], strict=True)))


def _member(condition: str, seed: int, delta: float, baseline: MemberRow | None) -> tuple[MemberRow, list[ProbeRow]]:
    probes = [
        ProbeRow(condition=condition, seed=seed, data_set=name, best_k=2, validation_auc=0.8,
                 test_auc=0.7 + delta + shift, llm_auc=0.7, delta=0.7 + delta + shift - 0.7)
        for name, shift in (("95_toxic_is", 0.01), ("117_us_state_FL", -0.01))
    ]  # fmt: skip
    score = 5.0 + 10 * delta
    entry = _cached("saes", f"{condition} {seed}", "sae_weights.safetensors")
    member = MemberRow(
        condition=condition, architecture=_architecture(condition), seed=seed, d_sae=64, k=8,
        explained_variance=0.8 + delta, l0=8.0, l0_matched=True, dead_fraction=0.1,
        saebench_auc=fmean(p.test_auc for p in probes),
        saebench_delta=fmean(p.delta for p in probes), cebench_contrastive=3.0, cebench_independence=3.0,
        cebench_interpretability=score, cebench_calibrated=1.5, cebench_calibrated_contrastive=1.25,
        cebench_delta=score - baseline.cebench_interpretability if baseline else None,
        cebench_ceiling=63 / math.sqrt(64), key=entry.key, weights_sha256=entry.files["sae_weights.safetensors"],
    )  # fmt: skip
    return member, probes


def _architecture(condition: str) -> str:
    return "topk" if condition == "baseline" else condition


def _group(condition: str, pwmcc: float, made: list[tuple[MemberRow, list[ProbeRow]]]) -> GroupRow:
    probes = [probe for member, own in made for probe in own if member.condition == condition]
    saebench = mean_interval(list(means_by((probe.data_set, probe.delta) for probe in probes).values()))
    found = pwmcc_interval(pairs_of(condition))
    return GroupRow(
        condition=condition, architecture=_architecture(condition), n_seeds=3, pwmcc=pwmcc, pwmcc_low=found.low,
        pwmcc_high=found.high, pwmcc_max=pwmcc + 0.05, null_random=0.2, null_gaussian=0.25,
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
    controls = [
        _control("random_model", "topk", "random_model", 0.35, own),
        _control("random_decoder", "topk", "random_decoder", 0.2, own),
        _control("transcoder", "transcoder", "topk", 0.5, own),
        ControlRow(control="ood", metric="saebench_delta", candidate=0.8 - 0.85, control_value=0.7 - 0.8, delta=drop,
                   delta_low=drop, delta_high=drop, tasks_low=drop, tasks_high=drop, candidate_sha256=own),
    ]  # fmt: skip
    made = [_control_sae(control, member) for control in ("random_model", "transcoder") for member in members]
    return controls, made, ood


def _control(control: str, more: str, less: str, value: float, own: str) -> ControlRow:
    delta = pwmcc_difference(pairs_of(more), pairs_of(less))
    return ControlRow(control=control, metric="pwmcc", candidate=0.6, control_value=value, delta=delta.mean,
                      delta_low=delta.low, delta_high=delta.high, candidate_sha256=own)  # fmt: skip


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
