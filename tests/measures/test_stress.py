"""Stress controls compare the candidate's own weights, rows and seeds with a lesser thing's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import synthetic_rows as made_up
from small_saes import HOOK, bank, cache, condition, random_sae, random_saes, trained

from husai_lib.activations.extraction import text_bank
from husai_lib.activations.language_model import open_model
from husai_lib.activations.texts import ProbingSet, drawn_texts
from husai_lib.errors import DataError, IntegrityError
from husai_lib.evidence.rows.base import CONTROLS, Candidate
from husai_lib.evidence.rows.measured import MemberRow
from husai_lib.files import read_json, sha256_file, write_json
from husai_lib.measures import stress
from husai_lib.measures.evaluation import decoder_pairs
from husai_lib.measures.matching import pair_rows, pairwise_pwmcc, random_decoders
from husai_lib.measures.probing import ProbeScore, ProbeTask
from husai_lib.measures.stress import (
    Stressed,
    control_rows,
    control_sae_rows,
    ood_rows,
    open_candidate,
    random_model_bank,
    transcoder_of,
)
from husai_lib.params.inputs import ActivationParams, ModelParams, TextParams
from husai_lib.saes.trained import TrainedSae

assert cache  # the fixture that every test of this module uses

TINY = "random:package:husai_lib/data/tiny_gpt_neox"
TEXTS = TextParams(
    training=["117_us_state_FL"], held_out=["95_toxic_is"], probing=["41_truthqa_tf"], ood=["87_glue_cola"]
)
READ = ActivationParams(hook_name=HOOK, training_rows=300, held_out_rows=1, context_tokens=16)


def tasks(*names: str) -> list[ProbeTask]:
    labels = np.array([0, 1])
    return [ProbeTask(ProbingSet(name, ("a", "b"), labels, ("0", "1")), bank(np.zeros((2, 2)))) for name in names]


def scores(*pairs: tuple[float, float]) -> list[ProbeScore]:
    return [ProbeScore(2, 0.5, inside, shifted) for inside, shifted in pairs]


def member_of(sae: TrainedSae) -> MemberRow:
    """The row of an SAE in the record that it is from."""
    of = sae.member.condition
    return made_up.member(of.name, sae.member.seed, architecture=of.architecture, k=of.k, key=sae.entry.key,
                          weights_sha256=sae.weights_sha256)  # fmt: skip


def stressed(saes: list[TrainedSae]) -> Stressed:
    """These SAEs of one condition as the candidate."""
    seeds = [sae.member.seed for sae in saes]
    pairs = pair_rows({saes[0].member.condition.name: decoder_pairs(saes)}, seeds) if len(saes) > 1 else []
    return Stressed(Candidate([member_of(sae) for sae in saes], pairs, ""), saes)


PARAMETERS: dict[str, Any] = {
    "activations": {"hook_name": HOOK}, "probing": {"choose_k": "validation"},
    "stress": {"random_model": True, "transcoder": True, "ood": False},
}  # fmt: skip
# The raw activation loses 0.9 -> 0.8 and 0.8 -> 0.7, so 0.1 on both tasks.
LLM = scores((0.9, 0.8), (0.8, 0.7))


def test_every_task_at_every_seed_is_a_row_beside_the_raw_activation_and_names_its_weights() -> None:
    saes = random_saes([4, 5])
    found = [scores((0.85, 0.65), (0.8, 0.6)), scores((0.85, 0.75), (0.8, 0.5))]
    rows = ood_rows(stressed(saes), tasks("a", "b"), found, LLM)
    assert [(row.task, row.seed) for row in rows] == [(task, seed) for seed in (4, 5) for task in "ab"]
    assert [row.weights_sha256 for row in rows] == [sae.weights_sha256 for sae in saes for _ in "ab"]
    assert [row.drop for row in rows] == pytest.approx([0.1, 0.1, 0.0, 0.2])  # what the SAE loses beyond it
    first = rows[0]
    assert (first.in_domain_auc, first.in_domain_llm_auc, first.shifted_auc, first.shifted_llm_auc) == (
        0.85, 0.9, 0.65, 0.8,
    )  # fmt: skip
    assert first.best_k == 2


def test_a_score_without_its_shifted_set_is_no_ood_row() -> None:
    with pytest.raises(TypeError):
        ood_rows(stressed(random_saes([4])), tasks("a"), [[ProbeScore(2, 0.5, 0.5)]], LLM[:1])


def test_the_controls_of_a_candidate_are_four_rows_from_the_tables_of_the_step() -> None:
    common, *own = random_decoders((64, 32), range(4))
    saes = []
    for seed, decoder in enumerate(own):
        sae = random_sae(seed)
        sae.W_dec.data = 0.8 * common + 0.2 * decoder  # decoders that share a part of their rows
        saes.append(trained(sae, seed))
    null = pairwise_pwmcc(random_decoders((64, 32), range(100, 103)))
    candidate, pairs = stressed(saes), pair_rows({"random_model": null, "transcoder": null}, range(3))
    rows = control_rows(candidate, {"pairs": pairs, "control_saes": [], "ood": []}, PARAMETERS)
    assert [row.control for row in rows] == list(CONTROLS)
    model, decoder, transcoder, ood = rows
    assert model.candidate == pytest.approx(np.mean([pair.pwmcc for pair in candidate.candidate.pairs]))
    assert model.candidate > model.control_value  # type: ignore[operator]
    assert model.delta == pytest.approx(model.candidate - model.control_value) == -transcoder.delta  # type: ignore[operator]
    assert (decoder.delta, decoder.note) == (None, "the control was not run")
    assert (ood.delta, ood.note) == (None, "switched off by stress.ood: false")
    assert len({row.candidate_sha256 for row in rows}) == 1


def test_the_saes_of_a_control_are_listed_with_their_weights_and_their_l0() -> None:
    own, saes = random_saes([3, 4], condition(k=8), start=50), random_saes([3, 4], condition(k=8))
    rows = bank(np.random.default_rng(0).normal(size=(200, 32)))
    found = control_sae_rows("random_model", stressed(own), saes, rows)
    assert [(row.seed, row.key, row.weights_sha256) for row in found] == [
        (sae.member.seed, sae.entry.key, sae.weights_sha256) for sae in saes
    ]
    for row, sae in zip(found, saes, strict=True):
        latents = sae.sae.encode(rows.take(np.arange(200)))
        assert row.l0 == pytest.approx(np.count_nonzero(latents.detach().numpy()) / 200)
        assert (row.architecture, row.d_sae, row.k, row.l0_matched) == ("topk", 64, 8, True)
    dense = [trained(random_sae(seed, "standard"), seed, condition("standard", k=8)) for seed in (3, 4)]
    assert not any(row.l0_matched for row in control_sae_rows("random_model", stressed(own), dense, rows))


def test_pairs_are_those_of_the_decoders() -> None:
    saes = random_saes([0, 1])
    assert decoder_pairs(saes)[0, 1] == pytest.approx(pairwise_pwmcc([sae.sae.W_dec.detach() for sae in saes])[0, 1])


def record(saes: list[TrainedSae]) -> Any:
    """A frontier record that lists these SAEs."""
    rows = {"members": [member_of(sae) for sae in saes], "pairs": []}
    conditions = {sae.member.condition.name: sae.member.condition.model_dump() for sae in saes}
    data = {"parameters": {"conditions": list(conditions.values())}}
    return SimpleNamespace(data=data, table=rows.__getitem__)


ACTIVATIONS: dict[str, Any] = {
    "model": {"name": "a"}, "activations": {"training_rows": 8}, "texts": {"training": ["x"], "ood": ["o"]}
}  # fmt: skip


def reading(frontier: Any, **others: Any) -> Any:
    """Gives the records of a run by their names."""
    activations = SimpleNamespace(data={"parameters": ACTIVATIONS})
    return ({"frontier": frontier, "activations": activations} | others).__getitem__


def selected(sae: TrainedSae) -> dict[str, Any]:
    return {
        "source": "frontier", "condition": sae.member.condition.name, "seed": sae.member.seed,
        "key": sae.entry.key, "weights_sha256": sae.weights_sha256,
    }  # fmt: skip


def test_the_candidate_is_every_seed_of_the_selected_condition() -> None:
    topk, other = random_saes([3, 1, 2], condition("topk")), random_saes([3, 1, 2], condition("other", k=9), start=50)
    found = open_candidate(selected(other[1]), reading(record([*topk, *other]))).saes
    assert [sae.member for sae in found] == [sae.member for sae in other]
    assert [sae.weights_sha256 for sae in found] == [sae.weights_sha256 for sae in other]
    assert open_candidate(None, reading(record([*topk, *other]))).saes == []


def test_a_candidate_that_this_run_did_not_train_is_refused() -> None:
    saes = random_saes([0, 1])
    elsewhere = trained(random_sae(77), of=condition("elsewhere"))
    for chosen in (selected(elsewhere), selected(elsewhere) | {"condition": "topk"}):
        with pytest.raises(DataError, match="no such weights in the record of frontier"):
            open_candidate(chosen, reading(record(saes)))


def test_a_candidate_of_an_import_has_no_saes_and_its_controls_say_why() -> None:
    imported = SimpleNamespace(data={"parameters": {}, "tables": {"earlier_members": []}})
    chosen = selected(random_saes([0])[0]) | {"source": "imported/cycle3/frontier_results"}
    found = open_candidate(chosen, {"imported/cycle3/frontier_results": imported}.__getitem__)
    assert found.saes == []
    why = "the candidate is of imported/cycle3/frontier_results, an import without weights"
    assert [row.note for row in control_rows(found, {}, PARAMETERS)] == [why] * 4
    assert {row.note for row in control_rows(Stressed(Candidate(), []), {}, PARAMETERS)} == {
        "no candidate was selected"
    }


@pytest.mark.parametrize(
    ("changes", "other"),
    [({}, ""), ({"model": {"name": "b"}}, "model"), ({"activations": {"training_rows": 9}}, "activations"),
     ({"texts": {"training": ["y"], "ood": ["o"]}}, "training texts"),
     ({"texts": {"training": ["x"], "ood": ["p"]}}, "")],
)  # fmt: skip
def test_a_candidate_of_another_run_is_stressed_only_if_it_was_trained_on_the_same_rows(
    changes: Any, other: str
) -> None:
    saes = random_saes([0, 1])
    theirs = SimpleNamespace(data={"parameters": ACTIVATIONS | changes})
    records = {"smoke/run_x/frontier": record(saes), "smoke/run_x/activations": theirs}
    found = open_candidate(selected(saes[0]) | {"source": "smoke/run_x/frontier"}, reading(None, **records))
    assert len(found.saes) == (0 if other else 2)
    assert not other or found.candidate.why_none.endswith(f"was trained on other {other} than this run's")


def test_weights_that_are_not_those_of_the_record_are_refused_by_hash(cache: Path) -> None:
    saes = random_saes([10, 11])
    claimed = record([saes[0], replace(saes[0], entry=replace(saes[1].entry, key=saes[0].entry.key))])
    with pytest.raises(IntegrityError, match="not those of its record"):
        open_candidate(selected(saes[0]), reading(claimed))
    weights = saes[1].entry.path / "sae_weights.safetensors"
    weights.write_bytes((saes[0].entry.path / "sae_weights.safetensors").read_bytes())
    with pytest.raises(IntegrityError, match="damaged"):
        open_candidate(selected(saes[0]), reading(record(saes)))
    # Even where the entry vouches for the other weights, the record does not.
    entry = read_json(weights.parent / "entry.json")
    entry["files"]["sae_weights.safetensors"] = sha256_file(weights)
    write_json(weights.parent / "entry.json", entry)
    with pytest.raises(IntegrityError, match="not those of its record"):
        open_candidate(selected(saes[0]), reading(record(saes)))


def test_the_control_of_a_random_model_has_the_same_rows_of_another_seed() -> None:
    model = ModelParams(name=TINY, prepend_bos=True, seed=3)
    drawn = drawn_texts(TEXTS.training, READ.seed)
    own, other = (
        text_bank(open_model(params), drawn, READ, [HOOK], READ.training_rows)
        for params in (model, model.model_copy(update={"seed": 4}))
    )
    control = random_model_bank(model, TEXTS, READ)
    np.testing.assert_array_equal(control.rows, other.rows)
    np.testing.assert_array_equal(control.offsets, own.offsets)  # the same positions of the same texts
    assert control.sources("training") == own.sources("training")
    assert control.rows.shape == own.rows.shape == (300, 32)
    assert not np.isclose(control.rows, own.rows).any(1).all()


def test_the_control_of_a_trained_model_is_the_same_architecture_with_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelParams(name="package:husai_lib/data/tiny_gpt_neox", prepend_bos=True)
    asked: list[ModelParams] = []

    def opened(params: ModelParams, device: str) -> Any:
        asked.append(params)
        return open_model(params, device)

    monkeypatch.setattr(stress, "open_model", opened)
    control = random_model_bank(model, TEXTS, READ)
    assert asked[0] == model.model_copy(update={"name": TINY, "seed": 1})
    same = random_model_bank(ModelParams(name=TINY, prepend_bos=True, seed=0), TEXTS, READ)
    assert same.sha256 == control.sha256


def test_the_transcoder_keeps_width_sparsity_and_training() -> None:
    of = condition("standard", architecture="standard", d_sae=48, k=6, training_samples=2048, batch_size=256,
                   learning_rate=0.002, hyperparameters={"l1_coefficient": 3.0})  # fmt: skip
    found = transcoder_of(of)
    assert found.architecture == "topk_transcoder"
    same = ("d_sae", "k", "training_samples", "batch_size", "learning_rate")
    assert [getattr(found, name) for name in same] == [48, 6, 2048, 256, 0.002]
    assert found.hyperparameters == {"aux_loss_coefficient": 1.0, "skip": False}
