"""What is measured on every SAE becomes rows whose numbers are those of the parts they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_saes import bank, cache, condition, random_sae, random_saes, trained

from husai_lib.activations.banks import Bank
from husai_lib.activations.texts import ProbingSet
from husai_lib.evidence.rows.measured import GroupRow, MemberRow, PairRow
from husai_lib.evidence.rows.probes import CeilingRow, ProbeRow
from husai_lib.intervals import mean_over_pairs
from husai_lib.measures import evaluation
from husai_lib.measures.contrastive import ContrastiveScore, contrastive_scores
from husai_lib.measures.evaluation import Benches, Reconstruction, decoder_pairs, group_rows, measure, member_rows
from husai_lib.measures.matching import behaviour, group_stability, pairwise_pwmcc, random_decoders
from husai_lib.measures.probing import ProbeScore, ProbeTask, llm_scores, sae_scores
from husai_lib.params.benchmarks import ContrastiveParams, ProbingParams
from husai_lib.saes.trained import TrainedSae

assert cache  # the fixture that every test of this module uses

NAMES = ["first", "second", "third"]


def pwmcc(decoders: Sequence[Any]) -> float:
    return mean_over_pairs(pairwise_pwmcc(decoders))


def benches(**probing: Any) -> Benches:
    """Three data sets of 300 rows of noise in both forms, four pairs of stories and 200 held-out rows."""
    rng = np.random.default_rng(0)
    tasks = [
        replace(ProbeTask(data, rows), kept=kept)
        for data, rows in (_noise(name, rng) for name in NAMES)
        for kept in (None, np.arange(300))
    ]
    stories = bank(rng.standard_normal((80, 32)), list(range(0, 81, 10)))
    return Benches(
        bank(rng.standard_normal((200, 32))), stories, tasks, ProbingParams(ks=[1], **probing), ContrastiveParams()
    )


def _noise(name: str, rng: np.random.Generator) -> tuple[ProbingSet, Bank]:
    labels = np.arange(300) % 2
    prompts = tuple(f"prompt {i}" for i in range(300))
    return ProbingSet(name, prompts, labels, ("0", "1")), bank(rng.standard_normal((300, 32)))


def probe(condition: str, seed: int, data_set: str, delta: float, form: str = "drop") -> ProbeRow:
    return ProbeRow(condition=condition, seed=seed, data_set=data_set, duplicates=form, split=42, test_rows=99,
                    best_k=1, validation_auc=0.5, test_auc=0.5 + delta, llm_auc=0.5, delta=delta)  # fmt: skip


def limits(condition: str, seed: int) -> CeilingRow:
    return CeilingRow(
        condition=condition, seed=seed, data_set="a", test_rows=99, largest_k_delta=0.1, full_width_delta=0.2,
        supervised_delta=0.3, oracle_delta=0.4, single_latent_delta=0.5,
    )  # fmt: skip


def grouped(
    saes: list[TrainedSae], gaussian: list[TrainedSae], step: str = "frontier"
) -> tuple[list[GroupRow], list[PairRow]]:
    """The groups and pairs of these SAEs, each with a probe on one data set."""
    of = [(sae.member.condition.name, sae.member.seed) for sae in saes]
    members = [baseline_row(seed, 1.0).model_copy(update={"condition": name}) for name, seed in of]
    probes = [probe(*one, "a", 0.1, form) for one in of for form in ("drop", "keep")]
    members = [
        row.model_copy(update={"reference": sae.member.reference}) for row, sae in zip(members, saes, strict=True)
    ]
    return group_rows(saes, gaussian, members, probes, [limits(*one) for one in of], held_out=held_out(), step=step)


def held_out() -> Bank:
    return bank(np.random.default_rng(0).standard_normal((200, 32)))


def baseline_row(seed: int, score: float, d_sae: int = 64, k: int = 8) -> MemberRow:
    return MemberRow(
        condition="baseline", architecture="topk", seed=seed, d_sae=d_sae, k=k, explained_variance=0.5, l0=8.0,
        l0_matched=True, dead_fraction=0.0, saebench_auc=0.5, saebench_delta=0.0, saebench_delta_keep=0.0,
        cebench_contrastive=1.0, cebench_independence=1.0, cebench_interpretability=score, cebench_calibrated=0.0,
        cebench_calibrated_contrastive=0.0, cebench_delta=None, cebench_calibrated_delta=None,
        cebench_ceiling=7.875, key="0" * 64, weights_sha256="1" * 64,
    )  # fmt: skip


def test_every_number_of_a_member_is_that_of_its_own_measurement() -> None:
    saes = [trained(random_sae(0), 5), trained(random_sae(1, "standard"), 6)]
    on = benches()
    rows, probes, ceilings = member_rows(saes, on, "frontier", [baseline_row(5, 1.5), baseline_row(6, 2.5)])
    llm = llm_scores(on.tasks, on.probing)
    for i, (row, sae) in enumerate(zip(rows, saes, strict=True)):
        quality = measure(sae.sae, on.held_out)
        [story] = contrastive_scores([sae], on.stories, on.contrastive)
        [scores] = sae_scores([sae], on.tasks, on.probing)
        own = [probe for probe in probes if probe.seed == row.seed]
        assert [(probe.data_set, probe.duplicates) for probe in own] == [*product(NAMES, ("keep", "drop"))]
        assert [probe.test_auc for probe in own] == [score.test_auc for score in scores]
        assert row.saebench_auc == pytest.approx(np.mean([score.test_auc for score in scores[1::2]]))
        deltas = [score.test_auc - base.test_auc for score, base in zip(scores, llm, strict=True)]
        assert (row.saebench_delta, row.saebench_delta_keep) == pytest.approx(
            (np.mean(deltas[1::2]), np.mean(deltas[::2]))
        )
        assert row.saebench_delta == pytest.approx(np.mean([probe.delta for probe in own[1::2]]))
        assert [limit.data_set for limit in ceilings if limit.seed == row.seed] == NAMES
        assert (row.explained_variance, row.l0, row.dead_fraction) == (
            quality.explained_variance, quality.l0, quality.dead_fraction,
        )  # fmt: skip
        assert row.cebench_interpretability == story.interpretability
        assert row.cebench_calibrated == story.calibrated
        assert row.cebench_calibrated_contrastive == story.calibrated_contrastive
        assert row.cebench_delta == pytest.approx(story.interpretability - (1.5 + i))
        assert row.cebench_calibrated_delta == story.calibrated  # that of the baseline is 0
        assert row.cebench_ceiling == 63 / 8
        assert (row.key, row.weights_sha256, row.note) == (sae.entry.key, sae.weights_sha256, "")
    assert (len(probes), len(ceilings)) == (12, 6)


@pytest.mark.parametrize(("form", "suffix"), [("as_published", ""), ("as_released", "_as_released")])
def test_members_have_the_cebench_scores_of_the_form_that_the_parameters_name(form: Any, suffix: str) -> None:
    on = replace(benches(), contrastive=ContrastiveParams(independence=form))
    [sae] = random_saes([0])
    [row], *_ = member_rows([sae], on, "baselines")
    [story] = contrastive_scores([sae], on.stories, on.contrastive)
    assert row.cebench_independence == getattr(story, f"independence{suffix}")
    assert row.cebench_interpretability == getattr(story, f"interpretability{suffix}")


def test_what_was_measured_reaches_the_row_and_a_baseline_of_none_has_no_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    story = ContrastiveScore(1.0, 2.0, 3.0, 4.0, 5.0, None, None, l0=8.0)
    monkeypatch.setattr(evaluation, "contrastive_scores", lambda saes, *_: [story for _ in saes])
    monkeypatch.setattr(evaluation, "measure", lambda *_: Reconstruction(0.5, 8.9, 0.25))
    rows, *_ = member_rows(random_saes([0, 1], condition("baseline")), benches(choose_k="test"), "baselines")
    for row in rows:
        assert (row.explained_variance, row.l0, row.dead_fraction, row.l0_matched) == (0.5, 8.9, 0.25, False)
        assert (row.cebench_contrastive, row.cebench_independence, row.cebench_interpretability) == (1.0, 2.0, 3.0)
        assert (row.cebench_calibrated, row.cebench_delta) == (None, None)
        assert row.note == (
            "CE-Bench deltas are measured against this baseline; no calibrated CE-Bench score: its null does not vary; "
            "each best k was chosen on the test set"
        )


def test_a_group_lies_between_its_nulls_and_identity() -> None:
    saes, gaussian = random_saes([4, 2, 7]), random_saes([4, 2, 7], start=300)
    [row], _ = grouped(saes, gaussian)
    own, null = (pwmcc([sae.sae.W_dec.detach() for sae in group]) for group in (saes, gaussian))
    assert (row.pwmcc, row.null_gaussian) == pytest.approx((own, null))
    assert row.null_random == pytest.approx(pwmcc(random_decoders((64, 32), [4, 2, 7])))
    assert row.pwmcc_corrected == pytest.approx((own - null) / (1 - null))
    assert row.pwmcc_low < row.pwmcc < row.pwmcc_high  # type: ignore[operator]
    assert (row.condition, row.architecture, row.n_seeds, row.note) == ("topk", "topk", 3, "")
    # random weights: no more alike than random decoders are
    assert row.pwmcc == pytest.approx(row.null_random, abs=0.02)
    assert abs(row.pwmcc_corrected) < 0.05


def test_a_single_seed_is_a_group_without_pairs_nulls_or_bounds_but_with_its_deltas() -> None:
    [row], pairs = grouped(random_saes([4]), [])
    assert pairs == []
    assert (row.n_seeds, row.note) == (1, "a single seed has no agreement across seeds")
    of_pairs = ("pwmcc", "pwmcc_low", "pwmcc_high", "pwmcc_within", "pwmcc_max", "pwmcc_corrected", "null_random",
                "null_gaussian", "encoder_mcc", "reappearing_fraction", "subspace_overlap", "functional_agreement",
                "functional_rare", "functional_frequent")  # fmt: skip
    assert {getattr(row, column) for column in of_pairs} == {None}
    assert (row.saebench_delta, row.saebench_low, row.saebench_high) == (pytest.approx(0.1), None, None)
    assert (row.largest_k_delta, row.single_latent_delta) == pytest.approx((0.1, 0.5))


def test_beside_a_single_seed_other_conditions_keep_their_pairs() -> None:
    groups, pairs = grouped([*random_saes([4]), *random_saes([4, 2], condition("other"), start=50)], [])
    assert [(pair.of, pair.seed_a, pair.seed_b) for pair in pairs] == [("other", 4, 2)]
    assert [group.pwmcc for group in groups] == [None, pytest.approx(pairs[0].pwmcc)]


def test_a_data_set_with_several_points_has_a_probe_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    [sae] = random_saes([0])
    on = benches()
    points = [replace(on.tasks[1], at=at) for at in (100, 150, 200)]
    on = replace(on, tasks=[*points, on.tasks[3], on.tasks[0]])
    scores = [ProbeScore(1, 0.9, auc) for auc in (0.5, 0.6, 0.7, 0.9, 0.1)]
    monkeypatch.setattr(evaluation, "llm_scores", lambda tasks, *_: [ProbeScore(32, 0.9, 0.8) for _ in tasks])
    monkeypatch.setattr(evaluation, "sae_scores", lambda *_: [scores])
    monkeypatch.setattr(evaluation, "ceiling_rows", lambda *_: [])
    [row], probes, _ = member_rows([sae], on, "frontier")
    assert [(probe.at, probe.test_rows) for probe in probes] == [
        (100, 199), (150, 149), (200, 99), (None, 99), (None, 99)
    ]  # fmt: skip
    # both have 99 test rows at the least, so both weigh the same
    assert (row.saebench_auc, row.saebench_delta) == pytest.approx(((0.6 + 0.9) / 2, (0.6 + 0.9) / 2 - 0.8))


def test_equal_seeds_are_perfectly_stable_whatever_the_null() -> None:
    same = [trained(random_sae(0), seed) for seed in (0, 1, 2)]
    [row], _ = grouped(same, random_saes([0, 1, 2], start=300))
    assert (row.pwmcc, row.pwmcc_corrected, row.encoder_mcc, row.reappearing_fraction) == pytest.approx((1, 1, 1, 1))
    assert (row.functional_agreement, row.functional_rare, row.functional_frequent) == pytest.approx((1, 1, 1))


def aligned_with(saes: list[TrainedSae], references: list[int | None]) -> list[TrainedSae]:
    """These SAEs, as if each had been aligned with the reference of this seed."""
    return [
        replace(sae, member=replace(sae.member, reference=seed)) for sae, seed in zip(saes, references, strict=True)
    ]


def test_means_of_a_group_are_over_unrelated_seeds_each_pair_of_references_with_equal_weight() -> None:
    seeds, references = [0, 1, 2, 3], [10, 11, 12, 10]
    saes = aligned_with([trained(random_sae(seed % 3), seed) for seed in seeds], references)  # 3 is a copy of 0
    gaussian = aligned_with(random_saes(seeds, start=300), references)
    [row], _ = grouped(saes, gaussian)
    does_what = [behaviour(sae.sae, held_out()) for sae in saes]
    found = group_stability([sae.sae.W_dec for sae in saes], [sae.sae.W_enc for sae in saes], does_what)
    null = decoder_pairs(gaussian)

    def across(of: Any) -> float:
        return float(np.mean([(of[0, 1] + of[3, 1]) / 2, (of[0, 2] + of[3, 2]) / 2, of[1, 2]]))

    for column in ("pwmcc", "encoder_mcc", "functional_agreement", "functional_rare", "subspace_overlap"):
        assert getattr(row, column) == pytest.approx(across(getattr(found, column))), column
    assert row.null_gaussian == pytest.approx(across(null))
    assert row.pwmcc_within == pytest.approx(1.0)
    assert row.pwmcc < 0.6  # type: ignore[operator]
    assert row.pwmcc_low < row.pwmcc  # type: ignore[operator]


def test_where_all_seeds_have_one_reference_only_the_column_of_related_seeds_has_a_pwmcc() -> None:
    saes = aligned_with(random_saes([4, 2, 7]), [10, 10, 10])
    [row], _ = grouped(saes, random_saes([4, 2, 7], start=300))
    assert (row.pwmcc, row.pwmcc_low, row.pwmcc_corrected) == (None, None, None)
    assert row.pwmcc_within == pytest.approx(pwmcc([sae.sae.W_dec.detach() for sae in saes]))
    assert row.note == "all seeds have one reference, so none of them are unrelated"


def test_a_member_names_what_it_was_aligned_with() -> None:
    saes = aligned_with(random_saes([0, 1]), [10, None])
    rows, *_ = member_rows(saes, benches(), "consistency")
    assert [row.reference for row in rows] == [10, None]
    assert [row.unit for row in rows] == [sae.member.unit for sae in saes]


def test_every_pair_of_seeds_of_every_condition_is_a_row_with_its_pwmcc() -> None:
    topk, other = random_saes([4, 2, 7]), random_saes([4, 2], condition("other", k=9), start=50)
    mixed = [other[0], topk[0], other[1], *topk[1:]]  # groups are in the order of their first members
    groups, pairs = grouped(mixed, random_saes([4, 2, 7], start=300) + other)
    found = {(pair.of, pair.seed_a, pair.seed_b): pair.pwmcc for pair in pairs}
    assert list(found) == [("other", 4, 2), ("topk", 4, 2), ("topk", 4, 7), ("topk", 2, 7)]
    assert found["topk", 2, 7] == pytest.approx(pwmcc([sae.sae.W_dec.detach() for sae in topk[1:]]), abs=1e-12)
    assert [(group.condition, group.n_seeds) for group in groups] == [("other", 2), ("topk", 3)]
    assert groups[1].pwmcc == pytest.approx(np.mean([found[key] for key in list(found)[1:]]))
    assert (groups[0].pwmcc, groups[0].pwmcc_low) == (found["other", 4, 2], None)


def test_members_are_measured_the_same_alone_and_together(cache: Path) -> None:
    on, saes = benches(), random_saes([20, 21])
    together = member_rows(saes, on, "frontier")
    alone = [member_rows([sae], on, "frontier") for sae in saes]
    for i, table in enumerate(together):
        assert table == [row for tables in alone for row in tables[i]]


def test_fresh_seeds_are_grouped_from_their_own_record_and_a_null_may_have_fewer_seeds() -> None:
    saes, gaussian = random_saes([4, 2, 7]), random_saes([4, 2], start=300)
    [row], pairs = grouped(saes, gaussian, "confirmation")
    assert row.null_gaussian == pytest.approx(pwmcc([sae.sae.W_dec.detach() for sae in gaussian]))
    assert (row.n_seeds, len(pairs)) == (3, 3)
    assert (row.saebench_delta, row.oracle_delta, row.single_latent_delta) == pytest.approx((0.1, 0.4, 0.5))
