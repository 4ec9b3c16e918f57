"""What can happen to a machine, a cache or a text is one clear sentence or handled; nothing is silently skipped.

Elsewhere: a killed kernel or run and disks that are full at the start (test_bad_input, test_smoke_cycle), activations
that are not finite (test_activations), classes too rare to be split (test_probing), damaged models and a context that
is too short (test_language_model), training that diverges (test_training), a story without a token (test_contrastive).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_saes import D_IN, HOOK, bank, cache, condition, random_sae, trained
from transformers import AutoModelForCausalLM

from husai_lib.activations import language_model, texts
from husai_lib.activations.banks import Bank, banks_of
from husai_lib.activations.extraction import gaussian_bank, last_token_bank, text_bank
from husai_lib.activations.language_model import LanguageModel, open_model
from husai_lib.activations.texts import ProbingSet, Text, probing_set
from husai_lib.errors import DataError, HusaiError, IntegrityError
from husai_lib.evidence.cache import cached
from husai_lib.evidence.runs import Record
from husai_lib.files import write_json
from husai_lib.measures.contrastive import contrastive_scores
from husai_lib.measures.matching import pairwise_pwmcc
from husai_lib.measures.probing import ProbeTask, llm_scores, sae_scores
from husai_lib.params.benchmarks import ContrastiveParams, ProbingParams
from husai_lib.params.inputs import ActivationParams, ModelParams
from husai_lib.saes.trained import Member, TrainedSae, open_trained
from husai_lib.saes.training import train_bank

assert cache  # the fixture that every test of this module uses

READ = ActivationParams(hook_name=HOOK, training_rows=1, held_out_rows=1, context_tokens=64, probe_tokens=64)
STORIES = ContrastiveParams()
ROWS = np.random.default_rng(0).normal(size=(400, D_IN))
LONG = "word " * 50_000
"""100,000 tokens of the tiny model's tokenizer."""


def probe_task(rows: np.ndarray = ROWS) -> ProbeTask:
    labels = np.arange(len(rows)) % 2
    return ProbeTask(ProbingSet("set", ("prompt",) * len(rows), labels, ("0", "1")), bank(rows))


def stories_of(rows: np.ndarray = ROWS) -> Bank:
    return bank(rows[:80], offsets=[0, 20, 40, 60, 80])


# --- a full disk -------------------------------------------------------------------------------

WRITTEN = ["bank", "outliers of a bank", "gaussian bank", "sae", "checkpoint", "model", "llm probe", "sae probe",
           "stories", "progress", "figure", "published file", "record", "manifest", "parameters",
           "executed notebook"]  # fmt: skip


@pytest.fixture(scope="module")
def on_a_full_disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each write on a real disk of 24 MB that was full (see full_disk.py)."""
    disk, script = tmp_path_factory.mktemp("disk"), Path(__file__).with_name("full_disk.py")
    small = f"mount -t tmpfs -o size=24m tmpfs {disk} && exec"
    if subprocess.run(["unshare", "-rm", "sh", "-c", f"{small} true"], check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    command = ["unshare", "-rm", "sh", "-c", f"{small} {sys.executable} {script} {disk}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]  # a page of a memory map without space would kill the process
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in told}


@pytest.mark.timeout(180)
def test_everything_that_is_written_was_tried_on_a_full_disk(on_a_full_disk: dict[str, dict[str, Any]]) -> None:
    assert list(on_a_full_disk) == WRITTEN


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", WRITTEN)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    on_a_full_disk: dict[str, dict[str, Any]], name: str
) -> None:
    kind, sentence = on_a_full_disk[name]["error"]
    assert "No space left on device" in sentence
    assert "\n" not in sentence
    if name == "executed notebook":  # its step tells how to go on, and runs it again
        assert (kind, on_a_full_disk[name]["left"]) == ("StepError", ["run/page.unfinished.ipynb"])
    else:
        assert "cannot be written" in sentence
        assert "free space" in sentence
        assert (kind, on_a_full_disk[name]["left"]) == ("EvidenceError", [])


# --- a truncated file of the cache -------------------------------------------------------------


def _tiny_gguf(folder: Path) -> Path:
    path = folder / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return language_model._converted(path)


MADE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "banks": (f"{HOOK}.npy", lambda _: gaussian_bank(bank(ROWS)).entry.path),
    "saes": ("sae_weights.safetensors", lambda _: _trained().entry.path),
    "probes": ("scores.json", lambda _: sae_scores([trained(random_sae(0))], [probe_task()], ProbingParams())),
    "contrastive": ("score.json", lambda _: contrastive_scores([trained(random_sae(0))], stories_of(), STORIES)),
    "models": ("model.safetensors", _tiny_gguf),
}


@pytest.fixture
def gguf_is_tiny(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any GGUF file holds the tiny model."""
    monkeypatch.setattr(language_model, "_weights", lambda *_, **__: AutoModelForCausalLM.from_pretrained(tiny_folder))
    monkeypatch.setattr(language_model, "_loaded", lambda load, _, **__: load(tiny_folder))


def _trained() -> Any:
    return train_bank([Member(condition(training_samples=2048), 0)], bank(ROWS))[0]


@pytest.mark.parametrize("damaged", ["its file", "its list of files"])
@pytest.mark.parametrize("kind", MADE)
def test_a_truncated_entry_is_never_read_and_made_again(
    kind: str, damaged: str, fresh_cache: Path, gguf_is_tiny: None, tmp_path: Path
) -> None:
    name, make = MADE[kind]
    made = make(tmp_path)
    before = {path: path.read_bytes() for path in fresh_cache.glob(f"{kind}/*/*")}
    to_damage = [path for path in before if path.name == (name if damaged == "its file" else "entry.json")]
    assert to_damage
    for path in to_damage:
        path.write_bytes(before[path][:-20])
    again = make(tmp_path)
    assert str(again) == str(made)
    assert {path: path.read_bytes() for path in fresh_cache.glob(f"{kind}/*/*")} == before


def test_truncated_weights_of_a_record_are_refused_and_not_trained_again(fresh_cache: Path) -> None:
    sae = _trained()
    path = sae.entry.path / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(IntegrityError, match=r"sae_weights.safetensors is damaged; delete .* and run again"):
        open_trained(sae.member, sae.entry.key, sae.weights_sha256)
    shutil.rmtree(sae.entry.path)
    with pytest.raises(HusaiError, match=r"entry.json is missing; run the cycle again"):
        open_trained(sae.member, sae.entry.key, sae.weights_sha256)
    assert not list(fresh_cache.glob("saes/*"))


def test_activations_that_are_not_those_of_the_record_are_refused(fresh_cache: Path) -> None:
    own, other = bank(ROWS), bank(ROWS + 1)
    rows = [own.row("training").model_dump(), own.row("held_out").model_dump() | {"sha256": other.sha256}]
    record = Record("activations", {"tables": {"banks": rows[:1]}}, "")
    assert banks_of(record)["training"].sha256 == own.sha256
    with pytest.raises(IntegrityError, match=r"activations in .* are not those of their record"):
        banks_of(Record("activations", {"tables": {"banks": rows}}, ""))


# --- a data set with one class -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["in domain", "shifted", "in domain, cut", "shifted, the other class only"])
def test_a_data_set_with_one_class_is_named(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "probe_data_folder", lambda: tmp_path)
    probing_set.cache_clear()
    one, two = [("x", "yes")] * 5000, [("x", "yes")] * 5000 + [("y", "no")] * 5000
    shifted = how.startswith("shifted")
    for folder, name, pairs in (("cleaned_data", "a", two if shifted else one), ("OOD data", "a_OOD", one[:300])):
        (tmp_path / folder).mkdir()
        pd.DataFrame(pairs, columns=["prompt", "target"]).to_csv(tmp_path / folder / f"{name}.csv.zst", index=False)
    with pytest.raises(DataError, match=r"'a' has 1 class\(es\); a probe needs two, so choose another data set"):
        probing_set("a", shifted=shifted, max_rows=1200 if how.endswith("cut") else None)
    probing_set.cache_clear()


def test_a_class_that_comes_last_survives_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "probe_data_folder", lambda: tmp_path)
    probing_set.cache_clear()
    (tmp_path / "cleaned_data").mkdir()
    pairs = [(f"x{i}", "yes") for i in range(5000)] + [(f"y{i}", "no") for i in range(5000)]
    pd.DataFrame(pairs, columns=["prompt", "target"]).to_csv(tmp_path / "cleaned_data" / "a.csv.zst", index=False)
    assert np.bincount(probing_set("a", max_rows=1200).labels).tolist() == [600, 600]
    probing_set.cache_clear()


# --- texts of no token, and of 100,000 ---------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["BOS", "no BOS"])
def model(request: pytest.FixtureRequest, tiny_folder: Path) -> LanguageModel:
    return open_model(ModelParams(name=str(tiny_folder), prepend_bos=request.param))


def test_a_training_text_without_tokens_gives_no_row_and_is_counted(model: LanguageModel) -> None:
    """With BOS the skipped position is the only one there is."""
    found = text_bank(model, [Text("a", ""), Text("a", "some words of text"), Text("a", "")], READ, [HOOK])
    assert np.diff(found.offsets).tolist()[::2] == [0, 0]
    [source] = found.sources("training")
    assert (source.texts, source.rows) == (3, len(found.rows))
    assert source.tokens == len(found.rows) + (3 if model.params.prepend_bos else 1)


def test_texts_without_any_row_are_one_sentence(model: LanguageModel) -> None:
    empty = [Text("a", ""), Text("b", "")]
    with pytest.raises(DataError, match="0 token positions but 1 were requested"):
        text_bank(model, empty, READ, [HOOK], 1)
    for limit in (None, 1.0):
        with pytest.raises(DataError, match=r"no row of these texts is left; .*skip_positions"):
            text_bank(model, empty, READ, [HOOK], norm_limit=limit)
    with pytest.raises(DataError, match=r"no row of these texts is left; .*max_norm_ratio"):
        text_bank(model, [Text("a", "some words of text")], READ, [HOOK], norm_limit=1e-9)


def test_a_prompt_without_tokens_is_read_at_bos_or_refused(model: LanguageModel) -> None:
    prompts = [Text("set", "a word"), Text("set", "")]
    if model.params.prepend_bos:
        assert last_token_bank(model, prompts, READ, HOOK).rows.shape == (2, 32)
    else:
        with pytest.raises(DataError, match=r"'set' has a text without tokens; set model.prepend_bos: true"):
            last_token_bank(model, prompts, READ, HOOK)


def test_a_story_without_tokens_is_named(model: LanguageModel) -> None:
    told = text_bank(model, [Text("s", text) for text in ("one story", "another", "a third", "")], READ, [HOOK])
    with pytest.raises(DataError, match=r"story2 of pair 2 has no token left after activations.skip_positions"):
        contrastive_scores([trained(random_sae(0))], told, STORIES)


def test_a_text_of_100_000_tokens_is_cut_to_the_context(model: LanguageModel) -> None:
    assert len(model.tokenizer(LONG, add_special_tokens=False)["input_ids"]) >= 100_000
    found = text_bank(model, [Text("a", LONG), Text("a", "some words")], READ, [HOOK])
    assert found.offsets[1] == READ.context_tokens - 1
    assert found.sources("training")[0].tokens < 2 * READ.context_tokens
    prompt = last_token_bank(model, [Text("set", LONG), Text("set", LONG[:-5] + "end ")], READ, HOOK)
    assert not np.allclose(prompt.rows[0], prompt.rows[1])  # of a prompt the end survives
    told = text_bank(model, [Text("s", text) for text in (LONG, LONG + "end", "one story", "another")], READ, [HOOK])
    assert np.isfinite(contrastive_scores([trained(random_sae(0))], told, STORIES)[0].contrastive)


# --- numbers that are none -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("read", ["texts", "prompts"])
def test_activations_that_are_not_finite_are_refused_and_never_stored(
    read: str, value: float, tiny_folder: Path, tmp_path: Path, fresh_cache: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.layers.0.mlp.dense_4h_to_h.bias"][3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    broken, prompts = open_model(ModelParams(name=str(folder), prepend_bos=True)), [Text("a", "some words")]
    with pytest.raises(DataError, match=f"activation {HOOK} has a value that is not finite; set model.dtype: float32"):
        text_bank(broken, prompts, READ, [HOOK]) if read == "texts" else last_token_bank(broken, prompts, READ, HOOK)
    assert not list(fresh_cache.glob("banks/*"))


def broken_sae(value: float = torch.nan) -> Any:
    """An SAE with a latent that is never finite."""
    sae = random_sae(0)
    sae.b_enc.data[5] = value
    return TrainedSae(Member(condition(), 0), cached("saes", "husai_lib.files", {"broken": str(value)}, sae.save_model))


def test_an_sae_that_gives_no_number_is_refused_by_ce_bench(fresh_cache: Path) -> None:
    with pytest.raises(
        DataError, match="a latent is NaN or infinite on the stories of pair 1; check the SAE's weights"
    ):
        contrastive_scores([broken_sae()], stories_of(), STORIES)
    assert not list(fresh_cache.glob("contrastive/*"))


def test_an_sae_that_gives_no_number_is_refused_by_probing(fresh_cache: Path) -> None:
    with pytest.raises(DataError, match=r"a latent that is NaN or infinite on .set.; check its weights"):
        sae_scores([broken_sae()], [probe_task()], ProbingParams())
    assert not list(fresh_cache.glob("probes/*"))


def test_decoders_that_are_no_numbers_have_no_pwmcc() -> None:
    decoders = [np.random.default_rng(seed).normal(size=(8, 4)) for seed in (0, 1)]
    decoders[1][2, 3] = np.inf
    with pytest.raises(HusaiError, match="weights of an SAE hold NaN or infinite values"):
        pairwise_pwmcc(decoders)  # type: ignore[arg-type]


def test_no_json_file_can_hold_what_is_no_number(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "record.json", {"x": value})
    assert not list(tmp_path.iterdir())


def test_a_task_that_is_sound_is_scored() -> None:
    """So that the refusals above are not for another reason."""
    assert llm_scores([probe_task()], ProbingParams())
    assert sae_scores([trained(random_sae(0))], [probe_task()], ProbingParams())
