"""Stress controls compare the candidate's own weights, rows and seeds with a lesser thing's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import synthetic_rows as made_up
from small_saes import HOOK, bank, cache, condition, random_sae, random_saes, trained

from husai_lib.activations.banks import Bank
from husai_lib.activations.extraction import scaled_bank, text_bank
from husai_lib.activations.language_model import open_model
from husai_lib.activations.texts import ProbingSet, drawn_texts
from husai_lib.errors import DataError, IntegrityError
from husai_lib.evidence.rows.base import Candidate
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
    random_model,
    transcoder_of,
)
from husai_lib.params.conditions import Condition
from husai_lib.params.inputs import ActivationParams, ModelParams, TextParams
from husai_lib.saes.trained import TrainedSae

assert cache  # the fixture that every test of this module uses

TINY = "random:package:husai_lib/data/tiny_gpt_neox"
TEXTS = TextParams(
    training=["117_us_state_FL"], held_out=["95_toxic_is"], probing=["41_truthqa_tf"], ood=["87_glue_cola"]
)
READ = ActivationParams(hook_name=HOOK, training_rows=300, held_out_rows=200, context_tokens=16)


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
    "stress": {"random_model": True, "random_models": 2, "transcoder": True, "ood": False},
}  # fmt: skip
LLM = scores((0.9, 0.8), (0.8, 0.7))


def test_every_task_at_every_seed_is_a_row_beside_the_raw_activation_and_names_its_weights() -> None:
    saes = random_saes([4, 5])
    found = [scores((0.85, 0.65), (0.8, 0.6)), scores((0.85, 0.75), (0.8, 0.5))]
    rows = ood_rows(stressed(saes), tasks("a", "b"), found, LLM)
    assert [(row.task, row.seed) for row in rows] == [(task, seed) for seed in (4, 5) for task in "ab"]
    assert [row.weights_sha256 for row in rows] == [sae.weights_sha256 for sae in saes for _ in "ab"]
    first = rows[0]
    assert (first.in_domain_auc, first.in_domain_llm_auc, first.shifted_auc, first.shifted_llm_auc) == (
        0.85, 0.9, 0.65, 0.8,
    )  # fmt: skip
    assert first.best_k == 2


def test_a_score_without_its_shifted_set_is_no_ood_row() -> None:
    with pytest.raises(ValueError, match="shifted_auc"):
        ood_rows(stressed(random_saes([4])), tasks("a"), [[ProbeScore(2, 0.5, 0.5)]], LLM[:1])


def alike(share: float, seeds: int = 3) -> list[TrainedSae]:
    """SAEs whose decoders share a part of their rows: 0 for random decoders, 1 for equal ones."""
    common, *own = random_decoders((64, 32), range(seeds + 1))
    saes = []
    for seed, decoder in enumerate(own):
        sae = random_sae(seed)
        sae.W_dec.data = share * common + (1 - share) * decoder
        saes.append(trained(sae, seed))
    return saes


def test_the_controls_of_a_candidate_are_rows_from_the_tables_of_the_step() -> None:
    null = pairwise_pwmcc(random_decoders((64, 32), range(100, 103)))
    candidate, pairs = stressed(alike(0.8)), pair_rows({"random_model_1": null, "transcoder": null}, range(3))
    rows = control_rows(candidate, {"pairs": pairs, "control_saes": [], "ood": []}, PARAMETERS)
    names = ["random_model_1", "random_model_2", "random_decoder", "transcoder", "in_domain", "ood"]
    assert [row.control for row in rows] == names
    model, other, decoder, transcoder, in_domain, ood = rows
    assert model.candidate == pytest.approx(np.mean([pair.pwmcc for pair in candidate.candidate.pairs]))
    assert model.candidate > model.control_value  # type: ignore[operator]
    assert model.delta == pytest.approx(model.candidate - model.control_value) == transcoder.delta  # type: ignore[operator]
    assert {(row.delta, row.note) for row in (other, decoder)} == {(None, "the control was not run")}
    assert {(row.delta, row.note) for row in (in_domain, ood)} == {(None, "switched off by stress.ood: false")}
    assert len({row.candidate_sha256 for row in rows}) == 1


def test_controls_of_a_single_seed_have_no_pwmcc_and_say_so_whatever_was_run() -> None:
    for random in (True, False):
        switches = PARAMETERS["stress"] | {"random_model": random}
        *of_pairs, in_domain, ood = control_rows(
            stressed(random_saes([4])), {"pairs": []}, PARAMETERS | {"stress": switches}
        )
        assert {(row.candidate, row.control_value, row.delta, row.delta_low, row.note) for row in of_pairs} == {
            (None, None, None, None, "a single seed has no PW-MCC to compare")
        }
        assert {row.note for row in (in_domain, ood)} == {"switched off by stress.ood: false"}


def test_shift_of_a_single_seed_has_a_delta_without_bounds_over_seeds_but_one_over_tasks() -> None:
    of = stressed(random_saes([4]))
    shifted = ood_rows(of, tasks("a", "b"), [scores((0.85, 0.65), (0.8, 0.6))], LLM)
    rows = control_rows(of, {"pairs": [], "ood": shifted}, PARAMETERS)
    in_domain = next(row for row in rows if row.control == "in_domain")
    assert (in_domain.delta, in_domain.delta_low) == (pytest.approx((0.85 + 0.8) / 2 - 0.5), None)
    assert in_domain.note == "too few seeds for an interval"
    assert in_domain.tasks_low < in_domain.delta < in_domain.tasks_high  # type: ignore[operator]


def test_random_decoders_as_candidate_fail_against_a_transcoder_and_stable_saes_pass() -> None:
    pairs = pair_rows({"transcoder": decoder_pairs(alike(0.5))}, range(3))
    deltas = {}
    for share in (0.0, 0.5, 0.8):
        rows = control_rows(stressed(alike(share)), {"pairs": pairs}, PARAMETERS)
        deltas[share] = next(row for row in rows if row.control == "transcoder")
    assert deltas[0.0].delta_low < deltas[0.0].delta < -0.05  # type: ignore[operator]
    assert deltas[0.5].delta_low == pytest.approx(0, abs=1e-9)
    assert deltas[0.8].delta_low > 0  # type: ignore[operator]


def test_the_saes_of_a_control_are_listed_with_their_weights_and_their_l0() -> None:
    own, saes = random_saes([3, 4], condition(k=8), start=50), random_saes([3, 4], condition(k=8))
    rows = bank(np.random.default_rng(0).normal(size=(200, 32)))
    found = control_sae_rows("random_model_1", stressed(own), saes, rows)
    assert [(row.seed, row.key, row.weights_sha256) for row in found] == [
        (sae.member.seed, sae.entry.key, sae.weights_sha256) for sae in saes
    ]
    for row, sae in zip(found, saes, strict=True):
        latents = sae.sae.encode(rows.take(np.arange(200)))
        assert row.l0 == pytest.approx(np.count_nonzero(latents.detach().numpy()) / 200)
        assert (row.architecture, row.d_sae, row.k, row.l0_matched) == ("topk", 64, 8, True)
    dense = [trained(random_sae(seed, "standard"), seed, condition("standard", k=8)) for seed in (3, 4)]
    assert not any(row.l0_matched for row in control_sae_rows("random_model_1", stressed(own), dense, rows))


def test_the_l0_of_a_controls_sae_is_that_of_held_out_rows_and_not_of_those_it_was_trained_on() -> None:
    sae = random_sae(0, "standard")
    sae.b_enc.data.fill_(-0.5)
    sae.W_enc.data.zero_()
    sae.W_enc.data[0, :8] = 1.0  # 8 latents fire where the first dimension is 1
    of = stressed([trained(sae, 3, condition("standard", k=8))])
    first = np.zeros((stress.HELD_OUT_AT_MOST + 100, 32))
    first[: stress.HELD_OUT_AT_MOST // 2, 0] = 1.0
    [row] = control_sae_rows("random_model_1", of, of.saes, bank(first))
    assert (row.l0, row.l0_matched) == (4.0, False)  # half of the first 4,096 rows, whatever the others do


def test_pairs_are_those_of_the_decoders() -> None:
    saes = random_saes([0, 1])
    assert decoder_pairs(saes)[0, 1] == pytest.approx(pairwise_pwmcc([sae.sae.W_dec.detach() for sae in saes])[0, 1])


def record(saes: list[TrainedSae]) -> Any:
    """A frontier record that lists these SAEs."""
    rows = {"members": [member_of(sae) for sae in saes], "pairs": []}
    conditions = {sae.member.condition.name: sae.member.condition.model_dump() for sae in saes}
    data = {"parameters": {"conditions": list(conditions.values())}}
    return SimpleNamespace(step="frontier", data=data, table=rows.__getitem__)


ACTIVATIONS: dict[str, Any] = {
    "model": {"name": "a"}, "activations": {"training_rows": 8}, "texts": {"training": ["x"], "ood": ["o"]}
}  # fmt: skip


def reading(frontier: Any, fresh: Sequence[TrainedSae] = (), **others: Any) -> Any:
    """Gives the records of a run by their names, with these SAEs as its confirmation."""
    known = {"frontier": frontier, "confirmation": record([*fresh])}
    known["activations"] = SimpleNamespace(data={"parameters": ACTIVATIONS})
    known["selection"] = SimpleNamespace(summary={"counts": {"compared_groups": 2}})
    return (known | others).__getitem__


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


def test_a_confirmed_candidate_is_its_fresh_seeds_without_their_baselines() -> None:
    chosen, fresh = random_saes([0, 1]), random_saes([10, 11, 12], start=50)
    baselines = random_saes([10, 11, 12], condition("baseline"), start=70)
    found = open_candidate(selected(chosen[0]), reading(record(chosen), [*fresh, *baselines]))
    assert [(sae.member.seed, sae.weights_sha256) for sae in found.saes] == [
        (sae.member.seed, sae.weights_sha256) for sae in fresh
    ]
    assert found.condition == condition()
    assert found.candidate.level == pytest.approx(0.95)  # fresh seeds were not chosen among several groups
    assert open_candidate(selected(chosen[0]), reading(record(chosen))).candidate.level == pytest.approx(0.975)


def test_fresh_seeds_whose_weights_are_not_those_of_their_record_are_refused() -> None:
    chosen, fresh = random_saes([0, 1]), random_saes([10, 11], start=90)
    claimed = [fresh[0], replace(fresh[1], entry=replace(fresh[0].entry, key=fresh[1].entry.key))]
    with pytest.raises(IntegrityError, match="not those of its record"):
        open_candidate(selected(chosen[0]), reading(record(chosen), claimed))


def test_a_candidate_that_this_run_did_not_train_is_refused() -> None:
    saes = random_saes([0, 1])
    elsewhere = trained(random_sae(77), of=condition("elsewhere"))
    for chosen in (selected(elsewhere), selected(elsewhere) | {"condition": "topk"}):
        with pytest.raises(DataError, match=f"frontier/{chosen['condition']} has no such weights in its record"):
            open_candidate(chosen, reading(record(saes)))


def test_a_candidate_of_an_import_has_no_saes_and_its_controls_say_why() -> None:
    imported = SimpleNamespace(data={"parameters": {}, "tables": {"earlier_members": []}})
    chosen = selected(random_saes([0])[0]) | {"source": "imported/cycle3/frontier_results"}
    found = open_candidate(chosen, reading(None, (), **{"imported/cycle3/frontier_results": imported}))
    assert found.saes == []
    why = "the candidate is of imported/cycle3/frontier_results, an import without weights"
    assert [row.note for row in control_rows(found, {}, PARAMETERS)] == [why] * 6
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


def unscaled(model: ModelParams) -> Bank:
    """What a model makes of the training texts."""
    texts = drawn_texts(TEXTS.training, READ.seed)
    return text_bank(open_model(model), texts, READ, [HOOK], READ.training_rows)


def mean_norm(rows: Bank) -> float:
    return float(np.linalg.norm(rows.rows, axis=1).mean())


def test_random_models_have_the_same_texts_seeds_of_their_own_and_the_mean_norm_of_the_trained_one() -> None:
    model = ModelParams(name=TINY, prepend_bos=True, seed=3)
    own = unscaled(model)
    louder = scaled_bank(own, 2.5)
    one, two = (random_model(model, TEXTS, READ, number=number, like=louder) for number in (1, 2))
    assert [one.control, two.control] == ["random_model_1", "random_model_2"]
    for number, found in ((1, one), (2, two)):
        raw = unscaled(model.model_copy(update={"seed": 3 + number}))
        factor = 2.5 * mean_norm(own) / mean_norm(raw)
        np.testing.assert_allclose(found.rows.rows, raw.rows * factor, rtol=1e-5)
        np.testing.assert_array_equal(found.rows.offsets, own.offsets)  # the same positions of the same texts
        assert found.rows.sources("training") == own.sources("training")
        assert mean_norm(found.rows) == pytest.approx(mean_norm(louder), rel=1e-5)
    assert not np.isclose(one.rows.rows, two.rows.rows).any(1).all()


def test_a_random_models_held_out_rows_are_scaled_alike_and_have_its_own_norm_limit() -> None:
    model, params = ModelParams(name=TINY, prepend_bos=True), READ.model_copy(update={"max_norm_ratio": 1.05})
    found = random_model(model, TEXTS, params, number=1, like=unscaled(model))
    untrained = open_model(model.model_copy(update={"seed": 1}))
    texts = {role: drawn_texts(getattr(TEXTS, role), params.seed) for role in ("training", "held_out")}
    rows = text_bank(untrained, texts["training"], params, [HOOK], 300)
    limit = rows.meta["norm_limit"]
    further = [*texts["training"][len(rows.offsets) - 1 :], *texts["held_out"]]  # no text that SAEs are trained on
    held_out = text_bank(untrained, further, params, [HOOK], 200, norm_limit=limit)
    factor = mean_norm(found.rows) / mean_norm(rows)
    assert len(found.rows.rows) == len(rows.rows) < 300
    np.testing.assert_allclose(found.held_out.rows, held_out.rows * factor, rtol=1e-5)
    assert np.linalg.norm(found.held_out.rows, axis=1).max() <= limit * factor * (1 + 1e-5)
    assert found.held_out.meta["norm_limit"] == pytest.approx(limit * factor)
    assert [row.bank for row in found.bank_rows()] == ["random_model_1", "random_model_1_held_out"]


def test_the_control_of_a_trained_model_is_the_same_architecture_with_random_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ModelParams(name="package:husai_lib/data/tiny_gpt_neox", prepend_bos=True)
    asked: list[ModelParams] = []

    def opened(params: ModelParams, device: str) -> Any:
        asked.append(params)
        return open_model(params, device)

    monkeypatch.setattr(stress, "open_model", opened)
    like = unscaled(ModelParams(name=TINY, prepend_bos=True))
    control = random_model(model, TEXTS, READ, number=1, like=like)
    assert asked[0] == model.model_copy(update={"name": TINY, "seed": 1})
    same = random_model(ModelParams(name=TINY, prepend_bos=True, seed=0), TEXTS, READ, number=1, like=like)
    assert same.rows.sha256 == control.rows.sha256


def test_the_transcoder_keeps_width_sparsity_and_training() -> None:
    of = condition("standard", architecture="standard", d_sae=48, k=6, training_samples=2048, batch_size=256,
                   learning_rate=0.002, hyperparameters={"l1_coefficient": 3.0})  # fmt: skip
    found = transcoder_of(of)
    assert found.architecture == "topk_transcoder"
    same = ("d_sae", "k", "training_samples", "batch_size", "learning_rate")
    assert [getattr(found, name) for name in same] == [48, 6, 2048, 256, 0.002]
    assert found.hyperparameters == {"aux_loss_coefficient": 1.0, "skip": False}
    aligned = of.model_dump() | {"consistency": {"lambda": 1.0, "reference": 9}}
    assert transcoder_of(Condition(**aligned)) == found  # a transcoder has no objective
