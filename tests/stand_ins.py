"""Small notebooks, parameters and a whole synthetic run, for tests of what surrounds the science."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from husai_lib import cli
from husai_lib.cycle import run as cycle
from husai_lib.cycle.planned import CycleStep
from husai_lib.decisions.candidates import candidates_from
from husai_lib.decisions.gates import evaluate, release_policy
from husai_lib.decisions.of_run import judged_group
from husai_lib.decisions.selection import select
from husai_lib.evidence.cache import Entry, cached
from husai_lib.evidence.rows.base import Candidate, RunTables
from husai_lib.evidence.rows.controls import ControlRow, ControlSaeRow, OodRow, control_names
from husai_lib.evidence.rows.measured import BankRow, GroupRow, MemberRow, PairRow, SourceRow
from husai_lib.evidence.rows.probes import CeilingRow, ProbeRow
from husai_lib.evidence.runs import Run, new_run
from husai_lib.evidence.steps import Step, open_step, results
from husai_lib.files import REPOSITORY, write_json
from husai_lib.params.cycle import CycleParams, load_cycle

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


PWMCC = {
    "topk": (0.58, 0.60, 0.62), "standard": (0.38, 0.40, 0.42), "random_model_1": (0.34, 0.35, 0.36),
    "random_model_2": (0.29, 0.30, 0.31), "random_decoder": (0.19, 0.20, 0.21), "transcoder": (0.74, 0.75, 0.76),
}  # fmt: skip
"""PW-MCC of the first and second seed, the first and third, the second and third in the synthetic run."""
SEED_PAIRS = ((0, 1), (0, 2), (1, 2))
BASELINE, TOPK, STANDARD = (0.0, 0.004), (0.05, 0.003), (0.02, 0.003)
"""The quality of an SAE at seed 0, and by how much it grows from seed to seed."""


def synthetic_run(evidence: Path) -> Run:
    """A complete run of rows that agree with each other, with weights in the cache and without notebooks.

    It is written through `Step.write`: two conditions at three seeds, of which topk is confirmed at three fresh ones, a
    baseline, controls, gates. All gates pass but that of the transcoder, which is more stable than the candidate.
    """
    params = load_cycle(SMOKE)
    sources = params.selection.model_copy(update={"sources": ["frontier"]})
    absent = {"consistency": None, "scaling": None}
    params = params.model_copy(update={"conditions": params.conditions[:2], "selection": sources, **absent})
    run = new_run(evidence, "smoke")
    write_json(run.path / "parameters.json", params.model_dump(mode="json"))
    known: dict[tuple[str, str], list[Any]] = {}
    tables = RunTables(known, params.model_dump(mode="json"))

    bank = _cached("banks", "training", "rows.npy")
    row = BankRow(bank="training", hook_name="blocks.0.hook_resid_post", rows=8, d_in=4, key=bank.key,
                  sha256=bank.files["rows.npy"])  # fmt: skip
    counts = {"157_amazon_5star": 5, "161_agnews_0": 3}
    sources = [SourceRow(role="training", data_set=name, texts=n, tokens=2 * n, rows=n) for name, n in counts.items()]
    step = _open(run, params, "activations", "model", "texts", "activations", "contrastive", "stress")
    step.write({"banks": [row], "sources": sources}, distinct_training_texts=7, norm_limit=100.0, story_pairs=12)

    _trained(run, params, tables, "baselines", {"baseline": BASELINE})
    _trained(run, params, tables, "frontier", {"topk": TOPK, "standard": STANDARD})

    selection = select(candidates_from("frontier", known["frontier", "members"], {}), params.selection)
    step = _open(run, params, "selection", "selection", "earlier")
    step.read("frontier")
    chosen = {"selected": selection.summary()["selected"]}
    step.write({"candidates": selection.rows()}, **selection.summary())
    _trained(run, params, tables, "confirmation", {"topk": TOPK, "baseline": BASELINE}, **chosen, why_not="")

    group = [row for row in known["confirmation", "members"] if not row.is_baseline]
    step = _open(run, params, "stress", "model", "texts", "activations", "probing", "stress")
    for name in ("selection", "confirmation"):
        step.read(name)
    *compared, _, _ = names = control_names(step.parameters)
    stressed = replace(tables, candidate=Candidate(group, known["confirmation", "pairs"], ""))
    trained = [(control, member) for control in compared if control != "random_decoder" for member in group]
    known |= {
        ("stress", "pairs"): _pairs(*compared, seeds=params.confirmation.seeds),
        ("stress", "control_saes"): [_control_sae(*sae, stressed) for sae in trained],
        ("stress", "ood"): [_shifted(task, member, stressed) for task in params.texts.ood for member in group],
    }
    controls = [ControlRow.derive("stress", stressed, control=control) for control in names]
    step.write({table: rows for (name, table), rows in known.items() if name == "stress"} | {"controls": controls},
               **chosen)  # fmt: skip

    policy = evaluate(judged_group(chosen["selected"], run.find_record), controls, params.gates)
    decided = {"verdict": policy.verdict, "pass_all": policy.pass_all}
    step = _open(run, params, "gate", "gates", "earlier")
    for name in ("selection", "confirmation", "stress"):
        step.read(name)
    step.publish("release_policy.json", release_policy(policy) | chosen | {"criteria": []})
    step.write({"gates": list(policy.gates), "criteria": []}, **decided, **chosen)

    step = _open(run, params, "report")
    before = ("activations", "baselines", "frontier", "selection", "confirmation", "stress", "gate")
    step.publish("results.json", results([step.read(name) for name in before]))
    step.write({}, **decided)
    complete(run)
    return run


SECTIONS = {
    "baselines": ("seeds", "sae", "conditions", "sweeps", "baseline", "probing", "contrastive"),
    "frontier": ("seeds", "sae", "conditions", "probing", "contrastive"),
    "confirmation": ("confirmation", "baseline", "probing", "contrastive"),
}
"""The sections of the steps that train."""


def _trained(
    run: Run, params: CycleParams, tables: RunTables, name: str, of: dict[str, tuple[float, float]], **summary: Any
) -> None:
    """Write a step that trains: conditions with their quality, and by how much it grows from seed to seed."""
    known: Any = tables.tables
    step = _open(run, params, name, *SECTIONS[name])
    seeds = params.confirmation.seeds if name == "confirmation" else params.seeds
    saes = [(condition, seed, at + more * seed) for condition, (at, more) in of.items() for seed in seeds]
    forms = [("keep", params.probing.seed)]
    forms += [("drop", params.probing.seed + n) for n in range(params.probing.splits)]
    known[name, "probes"] = [_probe(sae, on, form) for sae in saes for on in PROBED.items() for form in forms]
    known[name, "ceilings"] = [_ceilings(sae, on) for sae in saes for on in PROBED.items()]
    known[name, "members"] = []
    for sae in reversed(saes):  # baselines first: the deltas of the others are taken against them
        known[name, "members"].insert(0, _member(name, *sae, tables))
    step.read("selection" if name == "confirmation" else "activations")
    if name != "baselines":
        step.read("baselines")
        conditions = [condition for condition in of if condition != "baseline"]
        known[name, "pairs"] = _pairs(*conditions, seeds=seeds)
        known[name, "groups"] = [_group(name, condition, tables) for condition in conditions]
    step.write({table: rows for (written, table), rows in known.items() if written == name}, **summary)


def complete(run: Run) -> None:
    """Write the run's manifest from its records, as a cycle does at its end."""
    gate = run.record("gate").summary
    run.write_manifest(cycle="smoke", verdict=gate["verdict"], pass_all=gate["pass_all"], steps=list(run.journal))


def _open(run: Run, params: CycleParams, step: str, *sections: str) -> Step:
    values = params.model_dump(mode="json")
    return open_step(step, str(run.path), **{name: values[name] for name in sections})


def _cached(kind: str, name: str, file: str) -> Entry:
    """A cache entry of one small file; that of an SAE, named by condition and seed, holds a decoder."""
    return cached(kind, "husai_lib.files", {"name": name}, lambda folder: _fill(folder / file, name))


def _fill(path: Path, name: str) -> None:
    of, _, seed = name.partition(" ")
    if of in PWMCC:
        save_file({"W_dec": decoder(of, int(seed))}, path)
    else:
        path.write_bytes(name.encode() * 8)


def decoder(of: str, seed: int) -> np.ndarray:
    """Two rows for which PW-MCC has the values of PWMCC: a part that all seeds share beside one that none shares."""
    values, place = dict(zip(SEED_PAIRS, PWMCC[of], strict=True)), seed % 3  # confirmation seeds are 3, 4 and 5
    with_it = math.prod(value for pair, value in values.items() if place in pair)
    shared = math.sqrt(with_it / math.prod(value for pair, value in values.items() if place not in pair))
    rows = np.zeros((2, 14), np.float32)
    rows[:, :2], rows[:, 2 * seed + 2 : 2 * seed + 4] = shared * np.eye(2), math.sqrt(1 - shared**2) * np.eye(2)
    return rows


PROBED = {"95_toxic_is": 0.001, "117_us_state_FL": -0.001}
"""How much easier a data set is than the mean, by name; the interval over two that differ more would be useless."""


def _probe(sae: tuple[str, int, float], on: tuple[str, float], form: tuple[Any, int]) -> ProbeRow:
    (condition, seed, quality), (data_set, shift), (duplicates, split) = sae, on, form
    auc = 0.7 + quality + shift
    return ProbeRow(
        condition=condition, seed=seed, data_set=data_set, duplicates=duplicates, split=split, test_rows=200,
        best_k=2, validation_auc=0.8, test_auc=auc, llm_auc=0.7, delta=auc - 0.7,
    )  # fmt: skip


def _ceilings(sae: tuple[str, int, float], on: tuple[str, float]) -> CeilingRow:
    (condition, seed, quality), (data_set, shift) = sae, on
    delta = quality + shift
    return CeilingRow(
        condition=condition, seed=seed, data_set=data_set, test_rows=200, largest_k_delta=delta + 0.01,
        full_width_delta=delta + 0.02, supervised_delta=delta + 0.03, oracle_delta=delta + 0.04,
        single_latent_delta=delta,
    )  # fmt: skip


def _member(step: str, condition: str, seed: int, quality: float, tables: RunTables) -> MemberRow:
    entry = _cached("saes", f"{condition} {seed}", "sae_weights.safetensors")
    return MemberRow.derive(
        step, tables, condition=condition, architecture="topk" if condition == "baseline" else condition, seed=seed,
        d_sae=64, k=8, explained_variance=0.8 + quality, l0=8.0, dead_fraction=0.1, cebench_contrastive=3.0,
        cebench_independence=3.0, cebench_interpretability=5.0 + 10 * quality, cebench_calibrated=1.5 + quality,
        cebench_calibrated_contrastive=1.25, key=entry.key, weights_sha256=entry.files["sae_weights.safetensors"],
    )  # fmt: skip


def _group(step: str, condition: str, tables: RunTables) -> GroupRow:
    return GroupRow.derive(
        step, tables, condition=condition, pwmcc_max=0.65, null_random=0.2, null_gaussian=0.25, encoder_mcc=0.3,
        reappearing_fraction=0.4, subspace_overlap=0.5, functional_agreement=0.45, functional_rare=0.35,
        functional_frequent=0.55,
    )  # fmt: skip


def _pairs(*names: str, seeds: Sequence[int]) -> list[PairRow]:
    return [
        PairRow(of=name, seed_a=seeds[a], seed_b=seeds[b], pwmcc=value)
        for name in names
        for (a, b), value in zip(SEED_PAIRS, PWMCC[name], strict=True)
    ]


def _control_sae(control: str, of: MemberRow, tables: RunTables) -> ControlSaeRow:
    entry = _cached("saes", f"{control} {of.seed}", "sae_weights.safetensors")
    weights = entry.files["sae_weights.safetensors"]
    return ControlSaeRow.derive("stress", tables, control=control, seed=of.seed, l0=8.0, key=entry.key,
                                weights_sha256=weights)  # fmt: skip


def _shifted(task: str, member: MemberRow, tables: RunTables) -> OodRow:
    return OodRow.derive(
        "stress", tables, task=task, seed=member.seed, best_k=2, in_domain_auc=0.8, in_domain_llm_auc=0.85,
        shifted_auc=0.75, shifted_llm_auc=0.8,
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
