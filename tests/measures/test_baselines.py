"""What candidates are compared with: trained SAEs, a folder, a release; which are refused, which are the baseline."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from measures.test_evaluation import baseline_row, benches, probe
from sae_lens import SAE, Transcoder, TranscoderConfig
from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS
from small_saes import D_IN, HOOK, bank, cache, condition, random_sae, random_saes, trained

from husai_lib.activations.banks import Bank
from husai_lib.decisions import gates
from husai_lib.decisions.candidates import baseline_of
from husai_lib.errors import DataError, HusaiError, ModelError
from husai_lib.evidence.cache import cache_folder, open_entry
from husai_lib.evidence.rows.base import RunTables
from husai_lib.evidence.rows.measured import MemberRow
from husai_lib.measures import baselines
from husai_lib.measures.baselines import PICKLED, baseline_saes
from husai_lib.measures.evaluation import measure, member_rows
from husai_lib.params.conditions import BaselineParams, Condition
from husai_lib.params.inputs import ModelParams
from husai_lib.report import sentences, tables
from husai_lib.saes.trained import TrainedSae, load_sae

assert cache  # the fixture that every test of this module uses

MODEL = ModelParams(name="gpt2", prepend_bos=True)
KNOWN = {"hook_name": HOOK, "model_name": "gpt2-small", "prepend_bos": True}
"""Complete metadata: TransformerLens knows gpt2 by both names."""
SHORT = {"training_samples": 2048, "batch_size": 256}
TOPK_64 = condition(**SHORT)


@pytest.fixture(scope="module")
def rows() -> Bank:
    return bank(np.random.default_rng(1).standard_normal((512, D_IN)))


@pytest.fixture(scope="module")
def held_out() -> Bank:
    return benches().held_out


def saved(folder: Path, sae: Any, metadata: dict[str, Any] | None = None, **cfg: Any) -> BaselineParams:
    """The parameters that give `sae`, saved as a SAELens folder with these metadata and changes of `cfg.json`."""
    sae.save_model(folder)
    written = json.loads((folder / "cfg.json").read_text()) | cfg
    written["metadata"] |= KNOWN if metadata is None else metadata
    (folder / "cfg.json").write_text(json.dumps(written))
    return BaselineParams(folder=str(folder), learning_rate=1e-2)


def made(
    params: BaselineParams, rows: Bank, held_out: Bank, *conditions: Condition, **changes: Any
) -> list[TrainedSae]:
    sweep = (conditions or [TOPK_64], [0, 1])
    return baseline_saes(params, [sweep], rows, held_out, model=changes.get("model", MODEL))


def names(saes: list[TrainedSae]) -> list[tuple[str, int]]:
    return [(sae.member.condition.name, sae.member.seed) for sae in saes]


# --- who is the baseline -------------------------------------------------------------------------


def test_every_width_and_k_has_its_baseline_and_every_condition_a_delta(rows: Bank) -> None:
    conditions = [TOPK_64, condition("wide", d_sae=96, **SHORT), condition("dense", k=16, **SHORT)]
    on = benches()
    saes = made(BaselineParams(learning_rate=1e-2), rows, on.held_out, *conditions)
    shapes = ["baseline_64_k16", "baseline_64_k8", "baseline_96_k8"]
    assert sorted(names(saes)) == [(name, seed) for name in shapes for seed in (0, 1)]
    table, *_ = member_rows(saes, on, "baselines")
    assert {row.note for row in table} == {"CE-Bench deltas are measured against this baseline"}
    scores = {(row.condition, row.seed): row.cebench_interpretability for row in table}
    candidates = [sae for one in conditions for sae in random_saes([0, 1], one)]
    for own, candidate in zip(member_rows(candidates, on, "frontier", table)[0], candidates, strict=True):
        shape = f"baseline_{candidate.member.condition.d_sae}_k{candidate.member.condition.k}"
        assert own.cebench_delta == pytest.approx(own.cebench_interpretability - scores[shape, own.seed])


def test_a_baseline_is_not_trained_again_when_another_shape_joins_it(rows: Bank, held_out: Bank) -> None:
    alone = made(BaselineParams(learning_rate=1e-2), rows, held_out)
    beside = made(BaselineParams(learning_rate=1e-2), rows, held_out, TOPK_64, condition("wide", d_sae=96, **SHORT))
    assert [sae.entry.key for sae in alone] == [sae.entry.key for sae in beside[:2]]


def test_each_shape_has_a_baseline_at_the_seeds_of_all_its_sweeps_and_no_others(rows: Bank, held_out: Bank) -> None:
    wide, fresh = condition("wide", d_sae=96, **SHORT), condition("other", **SHORT)
    sweeps = [([TOPK_64, wide], [0, 1]), ([fresh], [1, 5])]
    saes = baseline_saes(BaselineParams(learning_rate=1e-2), sweeps, rows, held_out, model=MODEL)
    assert sorted(names(saes)) == [
        ("baseline_64_k8", 0), ("baseline_64_k8", 1), ("baseline_64_k8", 5), ("baseline_96_k8", 0),
        ("baseline_96_k8", 1),
    ]  # fmt: skip
    alone = made(BaselineParams(learning_rate=1e-2), rows, held_out)
    assert [sae.entry.key for sae in saes[:2]] == [sae.entry.key for sae in alone]


def test_a_matched_sae_is_the_baseline_of_every_seed_and_none_is_trained(
    rows: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "train_baseline", None)
    on = benches()
    saes = made(saved(tmp_path, random_sae(9, d_sae=70)), rows, on.held_out)  # 70 is within 10 % of 64
    assert names(saes) == [("given", 0)]
    [given], *_ = member_rows(saes, on, "baselines")
    assert (given.architecture, given.d_sae, given.k, given.l0, given.l0_matched) == ("topk", 70, 8, 8.0, True)
    assert given.note == f"folder {tmp_path}; CE-Bench deltas at every seed are measured against it"
    candidates, *_ = member_rows(random_saes([0, 1, 5], TOPK_64), on, "frontier", [given])
    for row in candidates:
        assert row.cebench_delta == row.cebench_interpretability - given.cebench_interpretability
    assert "it **is the baseline** at every seed" in sentences.given_sentence([given])


def test_an_sae_of_another_width_is_reported_beside_the_baseline_with_both_ceilings(rows: Bank, tmp_path: Path) -> None:
    on = benches()
    saes = made(saved(tmp_path, random_sae(9, d_sae=256)), rows, on.held_out)
    assert names(saes) == [("given", 0), ("baseline", 0), ("baseline", 1)]
    table, *_ = member_rows(saes, on, "baselines")
    given, *trained_rows = table
    assert "reported beside the baseline" in given.note
    assert given.explained_variance == measure(saes[0].sae, on.held_out).explained_variance
    candidates, *_ = member_rows(random_saes([0, 1], TOPK_64), on, "frontier", table)
    for row, base in zip(candidates, trained_rows, strict=True):
        assert row.cebench_delta == row.cebench_interpretability - base.cebench_interpretability
    said = sentences.given_sentence(table)
    assert "has 256 latents" in said
    assert "**not the gate's baseline** for 64 latents and k = 8" in said
    shown = tables.members_table(table)
    assert "| 15.9 |" in shown  # 255 / 16
    assert "| 7.9 |" in shown  # 63 / 8
    assert "| given | 256 | topk | every |" in shown


def test_an_sae_of_another_l0_is_no_baseline(rows: Bank, tmp_path: Path) -> None:
    on = benches()
    saes = made(saved(tmp_path, random_sae(9, k=10)), rows, on.held_out)
    assert names(saes)[1:] == [("baseline", 0), ("baseline", 1)]
    table, *_ = member_rows(saes, on, "baselines")
    assert not table[0].l0_matched
    said = sentences.given_sentence(table)
    assert "an L0 of 10.0. It is **not the gate's baseline** for 64 latents and k = 8" in said


def test_a_given_sae_may_match_one_condition_of_two(rows: Bank, tmp_path: Path) -> None:
    on, wide = benches(), condition("wide", d_sae=96, **SHORT)
    saes = made(saved(tmp_path, random_sae(9)), rows, on.held_out, wide, TOPK_64)
    assert names(saes) == [("given", 0), ("baseline_96_k8", 0), ("baseline_96_k8", 1)]
    table, *_ = member_rows(saes, on, "baselines")
    own, *_ = member_rows(
        [*random_saes([1], TOPK_64), trained(random_sae(1, d_sae=96), 1, wide)], on, "frontier", table
    )
    expected = [table[0].cebench_interpretability, table[2].cebench_interpretability]
    assert [row.cebench_interpretability - row.cebench_delta for row in own] == pytest.approx(expected)


def given_row(score: float, d_sae: int, l0: float) -> MemberRow:
    return baseline_row(0, score, d_sae=d_sae).model_copy(update={"condition": "given", "l0": l0})


@pytest.mark.parametrize(
    ("d_sae", "l0", "matched"),
    [(70, 8.8, True), (71, 8.0, False), (58, 7.2, True), (64, 8.81, False), (64, 7.1, False)],
)
def test_a_given_sae_is_matched_within_ten_per_cent_of_width_and_k(d_sae: int, l0: float, matched: bool) -> None:
    assert given_row(1.0, d_sae, l0).is_baseline_of(64, 8, seed=3) is matched


def test_the_gate_compares_with_the_baseline_of_the_candidates_own_shape() -> None:
    changes = {"condition": "topk", "cebench_delta": 0.5, "cebench_calibrated_delta": 0.5}
    own = [baseline_row(seed, 5.0).model_copy(update=changes) for seed in range(3)]
    probes = [probe("topk", seed, name, 0.0) for seed in range(3) for name in "ab"]
    trained_ones, others = ([baseline_row(s, 4.5 + d / 128, d_sae=d) for s in range(3)] for d in (64, 128))

    def found(*baselines: MemberRow) -> gates.Measured:
        return gates.external_results(gates.Judged(own, baselines, probes))["external_cebench"]

    room = {base: own[0].cebench_ceiling - base for base in (5.0, 4.0)}
    matched = found(given_row(7.5, 256, 8.0), *others, *trained_ones)
    assert (matched.ceiling, matched.note) == (pytest.approx(room[5.0]), "")
    assert found(given_row(7.5, 256, 8.0), given_row(4.0, 64, 8.4)).ceiling == pytest.approx(room[4.0])
    assert "not matched" in found(*others).note


def test_the_delta_is_taken_over_the_given_sae_where_it_is_matched() -> None:
    row = baseline_row(2, 5.0).model_copy(update={"condition": "topk"})
    own = [probe("topk", 2, "a", 0.0, form) for form in ("drop", "keep")]
    for base, delta in ((given_row(4.0, 70, 8.0), 1.0), (given_row(4.0, 128, 8.0), None)):
        tables_of_run = {("frontier", "probes"): own, ("baselines", "members"): [base]}
        run = RunTables(tables_of_run, {"probing": {"choose_k": "validation", "duplicates": "drop"}})
        assert row.derived("frontier", run)["cebench_delta"] == delta


def test_what_is_only_reported_beside_does_not_decide_who_may_be_ranked_together() -> None:
    member = baseline_row(0, 2.0)  # 64 latents, k = 8, seed 0
    alone = baseline_of([member], [baseline_row(0, 1.0)])
    other = given_row(1.0, 256, 8.0).model_copy(update={"weights_sha256": "2" * 64})
    assert baseline_of([member], [other, baseline_row(0, 1.0)]) == alone
    assert baseline_of([member], [other.model_copy(update={"d_sae": 64})]) != alone


# --- who is refused ------------------------------------------------------------------------------


def transcoder() -> Any:
    sae = Transcoder(TranscoderConfig(d_in=D_IN, d_sae=64, d_out=D_IN, apply_b_dec_to_input=False))
    for weights in sae.parameters():
        weights.data = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    return sae


REFUSED: dict[str, tuple[Callable[[Path], BaselineParams], str]] = {
    "another width of rows": (lambda f: saved(f, random_sae(0, d_in=48)), f"reads 48 dimensions, .* {HOOK} have 32"),
    "another hook": (
        lambda f: saved(f, random_sae(0), KNOWN | {"hook_name": "blocks.7.hook_resid_pre"}),
        rf"is of blocks\.7\.hook_resid_pre, but activations\.hook_name is {HOOK}",
    ),
    "another model": (
        lambda f: saved(f, random_sae(0), KNOWN | {"model_name": "pythia-70m"}),
        "is of the model 'pythia-70m', but model.name is 'gpt2'",
    ),
    "another bos": (
        lambda f: saved(f, random_sae(0), KNOWN | {"prepend_bos": False}),
        "has prepend_bos False, but model.prepend_bos is True",
    ),
    "another output": (
        lambda f: saved(f, random_sae(0), KNOWN | {"hook_name_out": "blocks.0.hook_mlp_out"}),
        "is a transcoder",
    ),
    "transcoder": (lambda f: saved(f, transcoder()), "is a transcoder"),
    "heads": (lambda f: saved(f, random_sae(0), KNOWN | {"hook_name": None}, reshape_activations="hook_z"), "heads"),
    "scale not folded": (
        lambda f: saved(f, random_sae(0), normalize_activations="expected_average_only_in"),
        "needs expected_average_only_in, which its encoder leaves out; fold it",
    ),
    "processed model": (
        lambda f: saved(f, random_sae(0), KNOWN | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}),
        "writing weights were centred",
    ),
    "never active": (
        lambda f: saved(f, silent(random_sae(0, "standard"))),
        "no latent of folder .* fires on the held-out rows",
    ),
    "not finite": (lambda f: saved(f, silent(random_sae(0), float("nan"))), "weights that are not finite"),
}


def silent(sae: Any, bias: float = -1e6) -> Any:
    sae.b_enc.data[:] = bias
    return sae


@pytest.mark.parametrize(("give", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_an_sae_of_other_activations_is_refused_in_one_sentence_that_says_what_differs(
    give: Callable[[Path], BaselineParams], why: str, rows: Bank, held_out: Bank, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"^baseline: .*{why}.*; give another SAE, or write baseline: train$"):
        made(give(tmp_path), rows, held_out)


def test_an_sae_of_real_weights_is_none_of_random_ones(rows: Bank, held_out: Bank, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    random = ModelParams(name=f"random:{tmp_path}/model.gguf", prepend_bos=True)
    with pytest.raises(DataError, match=r"is of the model 'gpt2-small', but model\.name is 'random:.*gguf'"):
        made(saved(tmp_path / "sae", random_sae(0)), rows, held_out, model=random)


@pytest.mark.parametrize(
    ("metadata", "note"),
    [
        ({}, "its metadata lack model_name, hook_name, prepend_bos"),
        ({"hook_name": HOOK, "prepend_bos": True}, "its metadata lack model_name"),
        ({"hook_name": HOOK, "model_name": "EleutherAI/gpt2"}, "its metadata lack prepend_bos"),
    ],
)
def test_what_the_metadata_do_not_say_is_noted(
    metadata: dict[str, Any], note: str, rows: Bank, held_out: Bank, tmp_path: Path
) -> None:
    [given] = made(saved(tmp_path, random_sae(0), metadata), rows, held_out)
    assert given.note.endswith(f"; whether it is of the cycle's activations is unchecked: {note}")


def test_a_hub_name_and_a_local_model_are_not_compared_and_the_note_says_so(
    rows: Bank, held_out: Bank, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").touch()
    local = ModelParams(name=str(tmp_path / "model.gguf"), prepend_bos=True)
    [given] = made(saved(tmp_path / "sae", random_sae(0)), rows, held_out, model=local)
    assert given.note.endswith("; it is of 'gpt2-small', with which the cycle's local model cannot be compared")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


BROKEN: dict[str, Callable[[Path], object]] = {
    "truncated weights": lambda folder: cut(folder / "sae_weights.safetensors"),
    "no JSON": lambda folder: cut(folder / "cfg.json"),
    "a class nobody knows": lambda folder: (folder / "cfg.json").write_text(
        (folder / "cfg.json").read_text().replace('"topk"', '"nobodys"')
    ),
    "another width than its weights'": lambda folder: (folder / "cfg.json").write_text(
        (folder / "cfg.json").read_text().replace('"d_sae": 64', '"d_sae": 65')
    ),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
def test_a_folder_that_saelens_cannot_load_is_reported_in_one_sentence(
    damage: Callable[[Path], object], rows: Bank, held_out: Bank, tmp_path: Path
) -> None:
    params = saved(tmp_path, random_sae(0))
    damage(tmp_path)
    with pytest.raises(
        ModelError, match=r"^baseline: folder .* cannot be loaded: .*; give another SAE, or write [^\n]*$"
    ):
        made(params, rows, held_out)


# --- content -------------------------------------------------------------------------------------


def test_other_weights_in_the_folder_are_another_result_and_the_same_elsewhere_the_same(
    rows: Bank, held_out: Bank, tmp_path: Path
) -> None:
    [first] = made(saved(tmp_path / "a", random_sae(0)), rows, held_out)
    [moved] = made(saved(tmp_path / "b", random_sae(0)), rows, held_out)
    [other] = made(saved(tmp_path / "a", random_sae(1)), rows, held_out)
    assert first.entry == moved.entry
    assert other.entry.key != first.entry.key
    assert other.weights_sha256 != first.weights_sha256
    shutil.rmtree(tmp_path / "a")
    assert open_entry("saes", first.entry.key).files == first.entry.files  # a copy: the folder may go
    assert torch.equal(first.sae.W_dec, random_sae(0).W_dec)


def test_weights_in_half_precision_are_measured_in_that_of_the_activations(
    rows: Bank, held_out: Bank, tmp_path: Path
) -> None:
    half = random_sae(0).to(dtype=torch.bfloat16)
    [given] = made(saved(tmp_path, half), rows, held_out)
    x = next(held_out.chunks())
    assert given.sae.encode(x).dtype == torch.float32
    assert torch.equal(given.sae.W_enc, half.W_enc.float())


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_rows_that_the_encoder_normalises_are_normalised_as_in_saelens_whoever_else_encodes(
    normalisation: Any, rows: Bank, held_out: Bank, tmp_path: Path
) -> None:
    [given, *_] = made(saved(tmp_path, random_sae(0), normalize_activations=normalisation), rows, held_out)
    reference, x = SAE.load_from_disk(tmp_path), next(held_out.chunks())
    expected = reference(x).detach()
    assert measure(given.sae, held_out).explained_variance == pytest.approx(
        1 - float((expected - x).square().sum() / (x - x.mean(0)).square().sum()), abs=1e-5
    )
    latents = given.sae.encode(x)
    assert torch.equal(latents, reference.encode(x))
    if normalisation == "constant_norm_rescale":
        other = Thread(target=given.sae.encode, args=(x[:7] * 3,))
        other.start()
        other.join()
        assert torch.equal(given.sae.decode(latents), expected)


# --- releases ------------------------------------------------------------------------------------

RELEASE = BaselineParams(release="gpt2-small-res-jb", sae_id="blocks.8.hook_resid_pre")


def hub(patch: pytest.MonkeyPatch, sae: Any) -> list[tuple[str, str]]:
    """A hub that has this SAE under every name; returns what it is asked for."""
    asked = []

    def from_pretrained(release: str, sae_id: str, **_: Any) -> Any:
        asked.append((release, sae_id))
        return sae

    patch.setattr(SAE, "from_pretrained", from_pretrained)
    return asked


def public(seed: int) -> Any:
    sae = random_sae(seed)
    for key, value in KNOWN.items():
        sae.cfg.metadata[key] = value
    return sae


def test_an_sae_of_a_release_is_kept_as_a_folder_in_the_cache_by_name_and_content(
    rows: Bank, held_out: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub(monkeypatch, public(0))
    [given] = made(RELEASE, rows, held_out)
    assert asked == [("gpt2-small-res-jb", "blocks.8.hook_resid_pre")]
    assert given.note.startswith("release gpt2-small-res-jb, blocks.8.hook_resid_pre; CE-Bench deltas")
    entry = open_entry("saes", given.entry.key)
    assert entry.files["sae_weights.safetensors"] == given.weights_sha256
    assert torch.equal(load_sae(entry.path).W_dec, public(0).W_dec)
    [other_id] = made(RELEASE.model_copy(update={"sae_id": "blocks.9.hook_resid_pre"}), rows, held_out)
    hub(monkeypatch, public(1))
    [changed] = made(RELEASE, rows, held_out)
    assert len({given.entry.key, other_id.entry.key, changed.entry.key}) == 3


def test_a_release_of_another_hook_is_refused_like_a_folder(
    rows: Bank, held_out: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = public(0)
    sae.cfg.metadata.hook_name = "blocks.8.hook_resid_pre"
    hub(monkeypatch, sae)
    with pytest.raises(DataError, match=r"release gpt2-small-res-jb, blocks\.8\.hook_resid_pre is of blocks\.8"):
        made(RELEASE, rows, held_out)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"release": "gpt2-smal-res-jb"}, "release 'gpt2-smal-res-jb' is unknown; the nearest is 'gpt2-small-res-jb'"),
        ({"sae_id": "blocks.8.hook_resid_pr"}, "sae_id 'blocks.8.hook_resid_pr' is unknown; the nearest is"),
        ({"release": "sae_bench_pythia70m_sweep_standard_ctx128_0712",
          "sae_id": "blocks.3.hook_resid_post__trainer_10"}, "its weights are a pickle"),
    ],
)  # fmt: skip
def test_a_release_that_does_not_exist_or_is_pickled_is_never_asked_for(
    change: dict[str, str], why: str, rows: Bank, held_out: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub(monkeypatch, public(0))
    with pytest.raises(ModelError, match=f"^baseline: release .*{why}.*needs a hub: go online, write baseline: train"):
        made(RELEASE.model_copy(update=change), rows, held_out)
    assert asked == []


@pytest.mark.parametrize("release", ["gpt2-small-res-jb", "somebody/saes"])
@pytest.mark.timeout(60)  # asked for a network, the hub's client would try for long
def test_without_a_hub_a_release_is_one_sentence(
    release: str, rows: Bank, held_out: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as raised:
        made(RELEASE.model_copy(update={"release": release}), rows, held_out)
    said = str(raised.value)
    assert "\n" not in said
    assert said.startswith(f"baseline: release {release}, blocks.8.hook_resid_pre cannot be loaded: ")
    assert said.endswith("go online, write baseline: train, or name a local SAE by baseline: {folder: …}")


def test_every_loader_that_unpickles_is_refused() -> None:
    unpickling = {
        name for name, load in NAMED_PRETRAINED_SAE_LOADERS.items() if "torch.load" in inspect.getsource(load)
    }
    assert unpickling == PICKLED


def test_a_failed_release_leaves_nothing_in_the_cache(
    rows: Bank, held_out: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path))
    monkeypatch.setattr(SAE, "from_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("404")))
    with pytest.raises(HusaiError, match="cannot be loaded: 404;"):
        made(RELEASE, rows, held_out)
    assert not (cache_folder() / "saes").exists()
