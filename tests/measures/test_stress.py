"""Stress controls compare the candidate's own weights, rows and seeds with a lesser thing's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from small_saes import HOOK, bank, cache, condition, random_sae, random_saes, trained

from husai_lib.activations.extraction import text_bank
from husai_lib.activations.language_model import open_model
from husai_lib.activations.texts import ProbingSet, drawn_texts
from husai_lib.errors import DataError, IntegrityError
from husai_lib.evidence.rows import CONTROLS, OodRow
from husai_lib.files import read_json, sha256_file, write_json
from husai_lib.intervals import pwmcc_difference
from husai_lib.measures import stress
from husai_lib.measures.matching import pairwise_pwmcc, random_decoders
from husai_lib.measures.probing import ProbeScore, ProbeTask
from husai_lib.measures.stress import (
    Candidate,
    control_sae_rows,
    decoder_pairs,
    not_run,
    ood_control,
    ood_rows,
    open_candidate,
    pwmcc_control,
    random_model_bank,
    transcoder_of,
)
from husai_lib.params.benchmarks import ProbingParams, StressParams
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


# Two tasks, three seeds, AUCs in and out of domain.
# Raw activation: a loses 0.9 -> 0.8, b 0.8 -> 0.7, so 0.1 each.
LLM = scores((0.9, 0.8), (0.8, 0.7))
SEEDS = {
    4: scores((0.85, 0.65), (0.8, 0.6)),  # loses 0.20 and 0.20: drops 0.10 and 0.10, mean 0.10
    5: scores((0.85, 0.75), (0.8, 0.5)),  # loses 0.10 and 0.30: drops 0.00 and 0.20, mean 0.10
    6: scores((0.90, 0.85), (0.7, 0.65)),  # loses 0.05 and 0.05: drops -0.05 and -0.05, mean -0.05
}


def rows_of(saes: list[TrainedSae]) -> list[OodRow]:
    found = [SEEDS[sae.member.seed] for sae in saes]
    return ood_rows(Candidate(saes), tasks("a", "b"), found, LLM)


def test_the_drop_is_what_the_sae_loses_beyond_the_raw_activation() -> None:
    saes = random_saes(list(SEEDS))
    rows = rows_of(saes)
    assert [(row.task, row.seed) for row in rows] == [(task, seed) for seed in SEEDS for task in "ab"]
    assert [row.weights_sha256 for row in rows] == [sae.weights_sha256 for sae in saes for _ in "ab"]
    assert [row.drop for row in rows] == pytest.approx([0.1, 0.1, 0.0, 0.2, -0.05, -0.05])
    first = rows[0]
    assert (first.in_domain_auc, first.in_domain_llm_auc, first.shifted_auc, first.shifted_llm_auc) == (
        0.85, 0.9, 0.65, 0.8,
    )  # fmt: skip
    assert first.best_k == 2


def test_the_ood_control_is_the_mean_drop_with_t_intervals_over_seeds_and_over_tasks() -> None:
    saes = random_saes(list(SEEDS))
    row = ood_control(rows_of(saes), ProbingParams())
    by_seed, by_task = [0.10, 0.10, -0.05], [0.05 / 3, 0.25 / 3]
    for values, found in ((by_seed, (row.delta_low, row.delta_high)), (by_task, (row.tasks_low, row.tasks_high))):
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert found == pytest.approx(expected)
    assert row.delta == pytest.approx(0.05)
    # deltas in domain: -.05 0 -.05 0 0 -.1; shifted: -.15 -.1 -.05 -.2 .05 -.05
    assert (row.candidate, row.control_value) == pytest.approx((-0.2 / 6, -0.5 / 6))
    assert row.delta == pytest.approx(row.candidate - row.control_value)
    assert (row.control, row.metric, row.note) == ("ood", "saebench_delta", "")
    assert row.candidate_sha256 == Candidate(saes).sha256


def test_an_ood_control_of_one_seed_or_task_has_no_bound_there() -> None:
    row = ood_control(rows_of(random_saes([4])), ProbingParams())
    assert (row.delta_low, row.delta_high, row.note) == (None, None, "too few seeds for an interval")
    assert row.tasks_low is not None
    one_task = ood_control([row for row in rows_of(random_saes([4, 5])) if row.task == "a"], ProbingParams())
    assert (one_task.tasks_low, one_task.tasks_high) == (None, None)
    assert one_task.delta_low is not None


def test_a_k_chosen_on_the_test_set_is_labelled() -> None:
    row = ood_control(rows_of(random_saes(list(SEEDS))), ProbingParams(choose_k="test"))
    assert row.note == "each best k was chosen on the test set"


def test_a_score_without_its_shifted_set_is_no_ood_row() -> None:
    with pytest.raises(AssertionError):
        ood_rows(Candidate(random_saes([4])), tasks("a"), [[ProbeScore(2, 0.5, 0.5)]], LLM[:1])


def candidate(seeds: int, shared: float) -> Candidate:
    """SAEs whose decoders share a part of their rows."""
    common, *own = random_decoders((64, 32), range(seeds + 1))
    saes = [random_sae(seed) for seed in range(seeds)]
    for sae, decoder in zip(saes, own, strict=True):
        sae.W_dec.data = shared * common + (1 - shared) * decoder
    return Candidate([trained(sae, seed) for seed, sae in enumerate(saes)])


def null(seeds: int) -> np.ndarray:
    """PW-MCC of the pairs of decoders that share nothing."""
    return pairwise_pwmcc(random_decoders((64, 32), range(100, 100 + seeds)))


@pytest.mark.parametrize(("control", "sign"), [("random_model", 1), ("random_decoder", 1), ("transcoder", -1)])
def test_a_control_is_subtracted_from_the_candidate_and_the_candidate_from_the_transcoder(
    control: str, sign: int
) -> None:
    own, other = candidate(4, 0.8), null(4)
    row = pwmcc_control(control, own, other)
    assert (row.control, row.metric, row.note) == (control, "pwmcc", "")
    assert (row.candidate_sha256, row.tasks_low, row.tasks_high) == (own.sha256, None, None)
    assert row.candidate > row.control_value  # type: ignore[operator]
    assert row.delta == pytest.approx(sign * (row.candidate - row.control_value))  # type: ignore[operator]
    expected = pwmcc_difference(own.pairs, other) if sign > 0 else pwmcc_difference(other, own.pairs)
    assert (row.delta, row.delta_low, row.delta_high) == (expected.mean, expected.low, expected.high)


def test_a_control_of_two_seeds_has_no_bound_and_says_so() -> None:
    row = pwmcc_control("random_model", candidate(2, 0.8), null(2))
    assert (row.delta_low, row.delta_high, row.note) == (None, None, "too few seeds for an interval")


def test_every_control_carries_the_weights_it_holds_for() -> None:
    saes = random_saes([0, 1, 2])
    assert Candidate(saes).sha256 == Candidate(saes[::-1]).sha256
    others = [saes[:2], [*saes[:2], *random_saes([2], start=50)], random_saes([0, 1, 3]), []]
    assert len({Candidate(group).sha256 for group in [saes, *others]}) == 5


def test_the_saes_of_a_control_are_listed_with_their_weights_and_their_l0() -> None:
    saes = random_saes([3, 4], condition(k=8))
    rows = bank(np.random.default_rng(0).normal(size=(200, 32)))
    found = control_sae_rows("random_model", saes, rows)
    assert [(row.seed, row.key, row.weights_sha256) for row in found] == [
        (sae.member.seed, sae.entry.key, sae.weights_sha256) for sae in saes
    ]
    for row, sae in zip(found, saes, strict=True):
        latents = sae.sae.encode(rows.take(np.arange(200)))
        assert row.l0 == pytest.approx(np.count_nonzero(latents.detach().numpy()) / 200)
        assert (row.architecture, row.d_sae, row.k, row.l0_matched) == ("topk", 64, 8, True)
    assert pwmcc_control("random_model", candidate(2, 0.8), null(2), found).note == "too few seeds for an interval"


def test_a_control_whose_l0_is_off_says_so() -> None:
    dense = [trained(random_sae(seed, "standard"), seed, condition("standard", k=8)) for seed in range(3)]
    found = control_sae_rows("random_model", dense, bank(np.random.default_rng(0).normal(size=(200, 32))))
    assert not any(row.l0_matched for row in found)
    note = pwmcc_control("random_model", candidate(3, 0.8), null(3), found).note
    assert note.startswith("the control's L0 is more than 10 % off k = 8: ")
    assert [f"{row.l0:.1f} at seed {row.seed}" in note for row in found] == [True] * 3


def test_a_transcoder_beside_a_candidate_of_joined_layers_says_where_it_is() -> None:
    joined = "blocks.0.hook_resid_post+blocks.1.hook_resid_post"
    own, other = candidate(3, 0.8), null(3)
    row = pwmcc_control("transcoder", own, other, hook_name=joined)
    assert row.note == "the transcoder is at the last of the joined layers only"
    assert row.delta is not None
    assert pwmcc_control("transcoder", own, other, hook_name=HOOK).note == ""
    assert pwmcc_control("random_model", own, other, hook_name=joined).note == ""


def test_a_control_that_was_not_run_is_a_row_that_says_why() -> None:
    own = candidate(3, 0.8)
    made = [pwmcc_control("random_model", own, null(3))]
    rows = not_run(own, made, StressParams(ood=False, transcoder=False))
    assert {row.control: row.note for row in rows} == {
        "random_decoder": "the control was not run",
        "transcoder": "switched off by stress.transcoder: false",
        "ood": "switched off by stress.ood: false",
    }
    assert {row.candidate_sha256 for row in rows} == {own.sha256}
    for row in rows:
        values = (row.candidate, row.control_value, row.delta, row.delta_low, row.delta_high)
        assert values == (None,) * 5
    switched_off = not_run(own, [], StressParams(random_model=False))
    assert [row.note for row in switched_off[:2]] == ["switched off by stress.random_model: false"] * 2
    nobody = not_run(Candidate([]), [], StressParams())
    assert [(row.control, row.note) for row in nobody] == [(name, "no candidate was selected") for name in CONTROLS]


def test_a_control_over_other_seeds_is_refused() -> None:
    with pytest.raises(DataError, match="same seeds"):
        pwmcc_control("random_model", candidate(4, 0.8), null(3))


def test_pairs_are_those_of_the_decoders() -> None:
    saes = random_saes([0, 1])
    assert decoder_pairs(saes)[0, 1] == pytest.approx(pairwise_pwmcc([sae.sae.W_dec.detach() for sae in saes])[0, 1])


def record(saes: list[TrainedSae]) -> Any:
    """A frontier record that lists these SAEs."""
    rows = [
        SimpleNamespace(condition=sae.member.condition.name, seed=sae.member.seed, key=sae.entry.key,
                        weights_sha256=sae.weights_sha256)
        for sae in saes
    ]  # fmt: skip
    conditions = {sae.member.condition.name: sae.member.condition.model_dump() for sae in saes}
    data = {"parameters": {"conditions": list(conditions.values())}}
    return SimpleNamespace(data=data, table=lambda name: {"members": rows}[name])


def reading(saes: list[TrainedSae]) -> Any:
    """Gives the record of these SAEs under the name of its step."""
    return {"frontier": record(saes)}.__getitem__


def selected(sae: TrainedSae) -> dict[str, Any]:
    return {
        "source": "frontier", "condition": sae.member.condition.name, "seed": sae.member.seed,
        "key": sae.entry.key, "weights_sha256": sae.weights_sha256,
    }  # fmt: skip


def test_the_candidate_is_every_seed_of_the_selected_condition() -> None:
    topk, other = random_saes([3, 1, 2], condition("topk")), random_saes([3, 1, 2], condition("other", k=9), start=50)
    found = open_candidate(selected(other[1]), reading([*topk, *other])).saes
    assert [sae.member for sae in found] == [sae.member for sae in other]
    assert [sae.weights_sha256 for sae in found] == [sae.weights_sha256 for sae in other]
    assert open_candidate(None, reading([*topk, *other])).saes == []


def test_a_candidate_that_this_run_did_not_train_is_refused() -> None:
    saes = random_saes([0, 1])
    elsewhere = trained(random_sae(77), of=condition("elsewhere"))
    for chosen in (selected(elsewhere), selected(elsewhere) | {"condition": "topk"}):
        with pytest.raises(DataError, match="no such weights in the record of frontier"):
            open_candidate(chosen, reading(saes))


def test_a_candidate_of_an_import_has_no_saes_and_its_controls_say_why() -> None:
    imported = SimpleNamespace(data={"parameters": {}, "tables": {"earlier_members": []}})
    chosen = selected(random_saes([0])[0]) | {"source": "imported/cycle3/frontier_results"}
    found = open_candidate(chosen, {"imported/cycle3/frontier_results": imported}.__getitem__)
    assert found.saes == []
    why = "the candidate is of imported/cycle3/frontier_results, an import without weights"
    assert [row.note for row in not_run(found, [], StressParams())] == [why] * 4


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
    given = {"model": {"name": "a"}, "activations": {"training_rows": 8}, "texts": {"training": ["x"], "ood": ["o"]}}
    records = {
        "smoke/run_x/frontier": record(saes), "activations": SimpleNamespace(data={"parameters": given}),
        "smoke/run_x/activations": SimpleNamespace(data={"parameters": given | changes}),
    }  # fmt: skip
    found = open_candidate(selected(saes[0]) | {"source": "smoke/run_x/frontier"}, records.__getitem__)
    assert len(found.saes) == (0 if other else 2)
    assert not other or found.why_none.endswith(f"was trained on other {other} than this run's")


def test_weights_that_are_not_those_of_the_record_are_refused_by_hash(cache: Path) -> None:
    saes = random_saes([10, 11])
    claimed = record([saes[0], replace(saes[0], entry=replace(saes[1].entry, key=saes[0].entry.key))])
    with pytest.raises(IntegrityError, match="not those of its record"):
        open_candidate(selected(saes[0]), lambda source: claimed)
    weights = saes[1].entry.path / "sae_weights.safetensors"
    weights.write_bytes((saes[0].entry.path / "sae_weights.safetensors").read_bytes())
    with pytest.raises(IntegrityError, match="damaged"):
        open_candidate(selected(saes[0]), reading(saes))
    # Even where the entry vouches for the other weights, the record does not.
    entry = read_json(weights.parent / "entry.json")
    entry["files"]["sae_weights.safetensors"] = sha256_file(weights)
    write_json(weights.parent / "entry.json", entry)
    with pytest.raises(IntegrityError, match="not those of its record"):
        open_candidate(selected(saes[0]), reading(saes))


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
