"""The other evaluations of SAEBench: what is refused and reported, what sae-bench receives, where its results are."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_saes import HOOK, random_sae
from stand_ins import Said, husai, synthetic_run

from husai_lib.evidence.runs import Run
from husai_lib.measures import saebench

REAL = importlib.util.find_spec("sae_bench") and importlib.util.find_spec("tabulate")
TINY = "random:package:husai_lib/data/tiny_gpt_neox"
FAKE = {
    "tabulate.py": "def tabulate(rows, **options):\n    return str(rows)\n",
    "sae_bench-0.0.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: sae-bench\nVersion: 0.0.1\n",
    "sae_bench/evals/core/main.py": """
import json, os, pathlib, torch
from transformer_lens import HookedTransformer

def multiple_evals(selected_saes, output_folder, dtype, device, dataset, n_eval_reconstruction_batches,
                   n_eval_sparsity_variance_batches, eval_batch_size_prompts,
                   compute_featurewise_density_statistics, compute_featurewise_weight_based_metrics,
                   exclude_special_tokens_from_reconstruction, context_size=128, fail="", verbose=False):
    [(name, sae)] = selected_saes
    if fail == "quietly":
        return print("\\nCannot evaluate this SAE\\n")
    first, second = (HookedTransformer.from_pretrained_no_processing(n, device="meta") for n in ("gpt2", "pythia"))
    received = {
        "name": name, "class": type(sae).__name__, "one_model": first is second, "model": type(first).__name__,
        "model_name": [sae.cfg.metadata.model_name, first.cfg.model_name],
        "bos": [sae.cfg.metadata.prepend_bos, first.cfg.default_prepend_bos],
        "latents": sae.encode(torch.linspace(-1, 1, 32)[None]).tolist(),
        "fresh": not os.path.exists(output_folder), "files": sorted(os.listdir(".")),
        "text": json.loads(next(open(dataset + "/train.jsonl")))["text"], "offline": os.environ["HF_HUB_OFFLINE"],
    }
    path = pathlib.Path(output_folder) / f"{name}_custom_sae_eval_results.json"
    path.parent.mkdir()
    path.write_text(json.dumps(received))
""",
    "sae_bench/evals/absorption/main.py": """
import json, pathlib
from dataclasses import dataclass

@dataclass
class Config:
    model_name: str = ""
    llm_dtype: str = ""
    max_k_value: int = 10

def run_k_sparse_probing_experiment(experiment_dir="/installed", probes_dir="/installed"):
    return [experiment_dir, probes_dir]

def run_feature_absortion_experiment(experiment_dir="/", sparse_probing_experiment_dir="/", probes_dir="/"):
    return [experiment_dir, sparse_probing_experiment_dir, probes_dir]

def run_eval(config: Config, selected_saes, device, output_path):
    pathlib.Path(output_path).mkdir()
    received = [vars(config), run_k_sparse_probing_experiment(), run_feature_absortion_experiment()]
    pathlib.Path(output_path, "a_eval_results.json").write_text(json.dumps(received))
""",
}
DATA = {"ravel": "artifacts/ravel/base/ravel_city_prompt_to_split.json", "unlearning": str(saebench.CORPUS),
        "autointerp": ".", "mdl": "."}  # fmt: skip
"""What the other evaluations look for in their working folder."""
FAKE |= {
    f"sae_bench/evals/{name}/main.py": f"""
import json, pathlib
from dataclasses import dataclass

@dataclass
class Config:
    model_name: str = ""

def run_eval(config: Config, selected_saes, device, output_path, api_key=None):
    pathlib.Path(output_path).mkdir()
    received = {{"evaluation": "{name}", "key": api_key, "found": pathlib.Path("{path}").exists()}}
    pathlib.Path(output_path, "a_eval_results.json").write_text(json.dumps(received))
"""
    for name, path in DATA.items()
}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `sae_bench` that records what it receives, in this process and in those that it starts."""
    for name, source in FAKE.items():
        path = tmp_path / "fake" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    for folder in (path for path in (tmp_path / "fake" / "sae_bench").rglob("") if path.is_dir()):
        (folder / "__init__.py").touch()  # a package without it gives way to an installed one
    monkeypatch.syspath_prepend(tmp_path / "fake")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(saebench, "revisions", lambda data_set: [])
    return tmp_path


def folder_of(path: Path, seed: int = 0, **metadata: Any) -> Path:
    """A SAELens folder of a random TopK SAE."""
    sae = random_sae(seed)
    for key, value in ({"hook_name": HOOK, "model_name": TINY, "prepend_bos": True} | metadata).items():
        setattr(sae.cfg.metadata, key, value)
    sae.save_model(path)
    return path


def bench(*arguments: Any) -> Said:
    return husai("eval", "saebench", *arguments, "--device", "cpu")


def results(cache: Path) -> dict[Path, Any]:
    """What sae-bench wrote, by the folder of the cache."""
    found = (cache / "saebench").rglob("*_eval_results.json")
    return {path.parent: json.loads(path.read_text()) for path in found}


def test_a_missing_package_is_reported_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(saebench.importlib.util, "find_spec", lambda name: None if name == "sae_bench" else real(name))
    said = bench(folder_of(tmp_path))
    assert (said.code, said.err) == (1, "husai: sae-bench is not installed; run make saebench\n")


@pytest.mark.parametrize(
    ("metadata", "options", "code", "sentence"),
    [
        ({}, ["--evals", "corr"], 2, "evaluation 'corr' is unknown; choose among core, absorption"),
        ({}, ["--set", "cor.k=1"], 2, "evaluation 'cor' is unknown; choose among core, absorption"),
        ({"model_name": None}, [], 2, "does not name the language model and its BOS; add --model and --prepend-bos"),
        ({"prepend_bos": None}, [], 2, "does not name the language model and its BOS; add --model and --prepend-bos"),
        ({"hook_name": f"{HOOK}+blocks.1.hook_resid_post"}, [], 1, "sae-bench needs an SAE of one hook"),
        ({"hook_name": None}, [], 1, "reads a hook it does not name"),
        ({"hook_name_out": "blocks.0.hook_mlp_out"}, [], 1, "and reconstructs blocks.0.hook_mlp_out"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(
    fake: Path, metadata: dict[str, Any], options: list[str], code: int, sentence: str
) -> None:
    said = bench(folder_of(fake / "sae", **metadata), *options)
    assert said.code == code
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1
    assert results(fake / "cache") == {}


def test_a_folder_without_weights_or_with_a_broken_configuration_is_refused(fake: Path) -> None:
    (folder_of(fake / "no weights") / "sae_weights.safetensors").unlink()
    (folder_of(fake / "broken") / "cfg.json").write_text("{")
    for name in ("no weights", "broken"):
        assert f"{name} has no readable cfg.json and sae_weights.safetensors" in bench(fake / name).err


@pytest.mark.parametrize(
    ("evaluation", "needs"),
    [
        ("scr", "the data sets LabHC/bias_in_bios, canrager/amazon_reviews_mcauley_1and5, which are not in the local"),
        ("sparse_probing", "codeparrot/github-code, fancyzhx/ag_news, Helsinki-NLP/europarl, which are not in the"),
        (
            "ravel",
            "the model gemma-2-2b or pythia-160m-deduped, but this SAE is of random-tiny_gpt_neox; the data sets "
            "adamkarvonen/ravel_prompts, which are not in the local cache; --download fetches them",
        ),
        ("unlearning", "the file sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl, which the authors of WMDP"),
        ("autointerp", "needs a key in $OPENAI_API_KEY; the data sets monology/pile-uncopyrighted, which are not"),
        ("mdl", "needs the data sets HuggingFaceFW/fineweb, which are not in the local cache; --download fetches"),
        ("absorption", "the hook hook_resid_post, but this SAE reads blocks.0.hook_mlp_out"),
    ],
)
def test_what_an_evaluation_lacks_is_named_and_asking_for_it_fails(
    fake: Path, monkeypatch: pytest.MonkeyPatch, evaluation: str, needs: str
) -> None:
    monkeypatch.setattr(saebench.subprocess, "run", None)  # nothing may be started
    said = bench(folder_of(fake / "sae", hook_name="blocks.0.hook_mlp_out"), "--evals", evaluation)
    assert needs in said.out
    assert (said.code, said.err) == (1, f"husai: did not run: {evaluation}; the reasons stand above\n")


def test_only_the_data_sets_that_the_settings_name_are_needed() -> None:
    named = {"dataset_names": ["fancyzhx/ag_news", "LabHC/bias_in_bios_class_set2", "LabHC/bias_in_bios_class_set1"]}
    assert saebench.hub_data("sparse_probing", named) == ["fancyzhx/ag_news", "LabHC/bias_in_bios"]
    assert saebench.hub_data("sparse_probing_sae_probes", {"dataset_names": ["41_truthqa_tf"]}) == []
    assert saebench.hub_data("core", {"dataset": "some/text"}) == ["some/text"]


def test_data_sets_are_found_in_the_cache_without_asking_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    path = tmp_path / "A___b" / "default" / "0.0.0" / "fingerprint" / "b-train.arrow"
    path.parent.mkdir(parents=True)
    path.write_text("content")
    (tmp_path / "A___described").mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert [saebench.revisions(name) for name in ("A/b", "A/c", "A/described")] == [["fingerprint"], [], []]
    assert saebench.revisions(saebench.RAVEL) == []
    commit = prompts_of_ravel(tmp_path, monkeypatch)
    assert saebench.revisions(saebench.RAVEL) == [commit.name]


def prompts_of_ravel(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The prompts of RAVEL in a cache of the hub, as huggingface_hub keeps them; returns the folder of their commit."""
    repository = hub / "datasets--adamkarvonen--ravel_prompts"
    commit = repository / "snapshots" / ("ab" * 20)
    commit.mkdir(parents=True)
    (commit / "ravel_city_prompt_to_split.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit.name)
    monkeypatch.setattr(saebench, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(saebench, "snapshot_download", partial(saebench.snapshot_download, cache_dir=hub))
    return commit


def test_the_sae_of_a_run_is_its_candidate_with_verified_weights(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = synthetic_run(fake / "evidence")
    selected = run.record("selection").summary["selected"]
    config = {"metadata": {"hook_name": HOOK}}
    (fake / "cache" / "saes" / selected["key"] / "cfg.json").write_text(json.dumps(config))
    subject = saebench.subject_of(run.name, fake / "evidence")
    assert subject.weights_sha256 == selected["weights_sha256"]
    assert (subject.model.name, subject.hook_name, subject.texts) == (TINY, HOOK, ["89_glue_mrpc"])
    with pytest.raises(saebench.ParameterError, match="knows its language model; leave --model and --prepend-bos out"):
        saebench.subject_of(run.name, fake / "evidence", TINY)
    for change, error, sentence in (
        ({"weights_sha256": "0" * 64}, saebench.IntegrityError, "are not those of"),
        ({"source": "other/run_x/frontier"}, saebench.DataError, "selected no candidate of its own"),
    ):
        monkeypatch.setattr(Run, "record", _with_selected(Run.record, selected | change))
        with pytest.raises(error, match=sentence):
            saebench.subject_of(run.name, fake / "evidence")
        monkeypatch.undo()
        monkeypatch.setenv("HUSAI_CACHE", str(fake / "cache"))


def _with_selected(record: Any, selected: dict[str, Any]) -> Any:
    """`Run.record` whose selection has another candidate."""

    def changed(run: Run, step: str) -> Any:
        found = record(run, step)
        return SimpleNamespace(summary={"selected": selected}) if step == "selection" else found

    return changed


def test_sae_bench_receives_our_objects_in_a_fresh_folder_and_its_result_is_kept_by_content(fake: Path) -> None:
    folder = folder_of(fake / "sae")
    said = bench(folder, "--evals", "core", "--out", fake / "copies")
    assert (said.code, said.err) == (0, "")
    [(kept, received)] = results(fake / "cache").items()
    weights = saebench.sha256_file(folder / "sae_weights.safetensors")
    sae = random_sae(0)
    import torch

    expected = sae.encode(torch.linspace(-1, 1, 32)[None])
    assert torch.allclose(torch.tensor(received["latents"]), expected, atol=1e-6)
    assert int((expected != 0).sum()) == 8
    assert received["name"] == f"random-tiny_gpt_neox_{weights[:12]}"
    assert (received["class"], received["model"], received["one_model"]) == ("TopKSAE", "TransformerBridge", True)
    assert (received["model_name"], received["bos"]) == (["random-tiny_gpt_neox"] * 2, [True, True])
    assert (received["fresh"], received["files"], received["offline"]) == (True, ["texts"], "1")
    assert received["text"]

    about = json.loads((kept / "entry.json").read_text())["inputs"]
    assert kept.parent == fake / "cache" / "saebench" / weights[:12] / "core"
    assert (about["weights_sha256"], about["sae_bench"], about["model"]["random_seed"]) == (weights, "0.0.1", 0)
    assert about["texts"] == ["100_news_fake", "48_cm_correct", "89_glue_mrpc"]
    copy = fake / "copies" / kept.relative_to(fake / "cache" / "saebench")
    assert {p.name for p in copy.iterdir()} == {p.name for p in kept.iterdir()}

    times = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert bench(folder, "--evals", "core").code == 0
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == times, "the result was computed again"

    other = folder_of(folder, seed=1)  # other weights under the same name
    assert bench(other, "--evals", "core").code == 0
    by_weights = {path.parent.parent.name: received["latents"] for path, received in results(fake / "cache").items()}
    assert by_weights[weights[:12]] != by_weights[saebench.sha256_file(other / "sae_weights.safetensors")[:12]]


def test_absorption_writes_nothing_into_the_package_and_settings_reach_its_configuration(fake: Path) -> None:
    said = bench(folder_of(fake / "sae"), "--evals", "absorption", "--set", "absorption.max_k_value=3")
    assert said.code == 0, said.out
    [(config, probing, absorption)] = results(fake / "cache").values()
    assert config == {"model_name": "random-tiny_gpt_neox", "llm_dtype": "float32", "max_k_value": 3}
    assert (probing, absorption) == (["scores", "probes"], ["absorbed", "scores", "probes"])


@pytest.mark.parametrize("evaluation", DATA)
def test_an_evaluation_whose_data_are_here_finds_them_in_its_working_folder(
    fake: Path, monkeypatch: pytest.MonkeyPatch, evaluation: str
) -> None:
    prompts_of_ravel(fake / "hub", monkeypatch)
    monkeypatch.setattr(saebench, "revisions", lambda data_set: ["a revision"])
    monkeypatch.setattr(saebench, "MODELS", {})
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    monkeypatch.chdir(fake)
    saebench.CORPUS.parent.mkdir(parents=True)
    saebench.CORPUS.write_text('{"text": "of one author"}')
    said = bench(folder_of(fake / "sae"), "--evals", evaluation)
    assert (said.code, said.err) == (0, ""), said.out
    [received] = results(fake / "cache").values()
    key = "a key" if evaluation == "autointerp" else None
    assert received == {"evaluation": evaluation, "key": key, "found": True}


def test_another_corpus_is_another_result(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saebench, "revisions", lambda data_set: ["a revision"])
    monkeypatch.setattr(saebench, "MODELS", {})
    monkeypatch.chdir(fake)
    saebench.CORPUS.parent.mkdir(parents=True)
    for text in ("one", "another"):
        saebench.CORPUS.write_text(text)
        assert bench(folder_of(fake / "sae"), "--evals", "unlearning").code == 0
    assert len(results(fake / "cache")) == 2


def test_an_evaluation_that_leaves_no_result_is_reported_with_the_last_line_of_its_log(fake: Path) -> None:
    said = bench(folder_of(fake / "sae"), "--evals", "core", "--set", "core.fail=quietly")
    assert "core: did not run; sae-bench's core failed: Cannot evaluate this SAE (log: " in said.out
    assert (said.code, said.err) == (1, "husai: did not run: core; the reasons stand above\n")
    assert results(fake / "cache") == {}


@pytest.mark.parametrize(
    ("ended", "sentence"),
    [
        ((1, "AssertionError: it broke"), r"core failed: AssertionError: it broke \(log: .*core.log"),
        ((1, "husai_lib.errors.DataError: no text; give one"), "core failed: DataError: no text; give one"),
        ((-9, "half a line"), "the process was killed"),
        ((1, ""), "the process was killed"),
    ],
)
def test_a_process_that_fails_is_an_error_with_the_last_line_of_its_log(
    fake: Path, monkeypatch: pytest.MonkeyPatch, ended: tuple[int, str], sentence: str
) -> None:
    def run(command: list[str], stdout: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        stdout.write(f"Traceback (most recent call last):\n{ended[1]}\n\n" if ended[1] else "")
        return subprocess.CompletedProcess(command, ended[0])

    monkeypatch.setattr(saebench.subprocess, "run", run)
    subject = saebench.subject_of(str(folder_of(fake / "sae")), fake)
    with pytest.raises(saebench.ModelError, match=sentence):
        saebench.evaluate("core", subject, {})


def test_a_misspelt_setting_is_refused_with_the_nearest(fake: Path) -> None:
    said = bench(folder_of(fake / "sae"), "--evals", "absorption", "--set", "absorption.max_k=3")
    assert "ValueError: setting of absorption 'max_k' is unknown; the nearest is 'max_k_value'" in said.out


def test_without_names_all_that_can_run_do_and_the_others_are_listed(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saebench, "evaluate", lambda name, *_, **__: Path(f"result of {name}"))
    said = bench(folder_of(fake / "sae"))
    lines = dict(line.split(": ", 1) for line in said.out.splitlines())
    assert said.code == 0
    assert set(lines) == set(saebench.EVALUATIONS)
    ran = {name for name, text in lines.items() if text == f"result of {name}"}
    assert ran == {"core", "absorption", "sparse_probing_sae_probes", "meta_structure"}
    assert all("cannot run here; it needs" in lines[name] for name in set(lines) - ran)


@pytest.mark.skipif(not REAL, reason="sae-bench is not installed; 'make saebench' installs it")
def test_the_real_package_evaluates_a_random_sae_on_a_random_model_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "cache"))
    small = {"n_eval_reconstruction_batches": 1, "n_eval_sparsity_variance_batches": 2, "context_size": 32}
    settings = [argument for key, value in small.items() for argument in ("--set", f"core.{key}={value}")]
    said = bench(folder_of(tmp_path / "sae"), "--evals", "core", *settings)
    assert said.code == 0, said.out
    [received] = results(tmp_path / "cache").values()
    metrics = received["eval_result_metrics"]
    assert metrics["sparsity"]["l0"] == 8  # k of the TopK SAE
    assert metrics["token_stats"]["total_tokens_eval_sparsity_variance"] == 2 * 16 * 32
    assert received["eval_config"]["model_name"] == "random-tiny_gpt_neox"
