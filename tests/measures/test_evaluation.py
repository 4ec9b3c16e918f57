"""What is measured on every SAE becomes rows whose numbers are those of the parts they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_saes import bank, cache, condition, random_sae, random_saes, trained

from husai_lib.activations.texts import ProbingSet
from husai_lib.evidence.rows import MemberRow, ProbeRow
from husai_lib.intervals import mean_interval, mean_over_pairs
from husai_lib.measures import evaluation
from husai_lib.measures.contrastive import ContrastiveScore, contrastive_scores
from husai_lib.measures.evaluation import Benches, Reconstruction, by_condition, group_rows, measure, member_rows
from husai_lib.measures.matching import pairwise_pwmcc, random_decoders
from husai_lib.measures.probing import ProbeScore, ProbeTask, llm_scores, sae_scores
from husai_lib.params.benchmarks import ContrastiveParams, ProbingParams
from husai_lib.saes.trained import TrainedSae

assert cache  # the fixture that every test of this module uses

NAMES = ["first", "second", "third"]


def pwmcc(decoders: Sequence[Any]) -> float:
    return mean_over_pairs(pairwise_pwmcc(decoders))


def benches(**probing: Any) -> Benches:
    """Three data sets of 300 rows of noise, four pairs of stories and 200 held-out rows."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 2
    tasks = [
        ProbeTask(ProbingSet(name, ("prompt",) * 300, labels, ("0", "1")), bank(rng.standard_normal((300, 32))))
        for name in NAMES
    ]
    stories = bank(rng.standard_normal((80, 32)), list(range(0, 81, 10)))
    held_out = bank(rng.standard_normal((200, 32)))
    return Benches(held_out, stories, tasks, ProbingParams(ks=[1], **probing), ContrastiveParams())


def probe(condition: str, seed: int, data_set: str, delta: float, at: float | None = None) -> ProbeRow:
    return ProbeRow(condition=condition, seed=seed, data_set=data_set, at=at, best_k=1, validation_auc=0.5,
                    test_auc=0.5 + delta, llm_auc=0.5, delta=delta)  # fmt: skip


PROBES = [
    probe("topk", 0, "a", 0.0), probe("topk", 1, "a", 0.2), probe("topk", 0, "b", -0.2), probe("topk", 1, "b", -0.2),
    probe("topk", 0, "c", 0.3, 2), probe("topk", 1, "c", 0.5, 2), probe("topk", 0, "c", 0.4, 4),
    probe("topk", 1, "c", 0.4, 4), probe("standard", 0, "a", 0.5), probe("standard", 0, "d", 0.5),
]  # fmt: skip


PROBES_OF_BOTH = [*PROBES, probe("other", 0, "a", 0.1)]


class Measured:
    """Stands for the measurements of members: a CE-Bench score and an L0 for each weights, AUCs for each data set."""

    def __init__(self, patch: pytest.MonkeyPatch, saes: Sequence[TrainedSae], **values: Any) -> None:
        stories = values.get("stories", [1.0] * len(saes))
        self.interpretability = {sae.weights_sha256: score for sae, score in zip(saes, stories, strict=True)}
        self.l0 = values.get("l0", 8.0)
        self.calibrated = values.get("calibrated", 2.0)
        patch.setattr(evaluation, "llm_scores", lambda tasks, *_: [ProbeScore(32, 0.9, 0.8) for _ in tasks])
        patch.setattr(evaluation, "sae_scores", lambda saes, *_: [[ProbeScore(1, 0.9, 0.7)] * 3 for _ in saes])
        patch.setattr(evaluation, "contrastive_scores", lambda saes, *_: [self.story(sae) for sae in saes])
        patch.setattr(evaluation, "measure", lambda *_: Reconstruction(0.5, self.l0, 0.25))

    def story(self, sae: TrainedSae) -> ContrastiveScore:
        value = self.interpretability[sae.weights_sha256]
        parts = [value] * 5  # contrastive, and independence and interpretability in both forms
        return ContrastiveScore("as_published", *parts, self.calibrated, self.calibrated, l0=8.0)


def baseline_row(seed: int, score: float, d_sae: int = 64, k: int = 8) -> MemberRow:
    return MemberRow(
        condition="baseline", architecture="topk", seed=seed, d_sae=d_sae, k=k, explained_variance=0.5, l0=8.0,
        l0_matched=True, dead_fraction=0.0, saebench_auc=0.5, saebench_delta=0.0, cebench_contrastive=1.0,
        cebench_independence=1.0, cebench_interpretability=score, cebench_calibrated=0.0,
        cebench_calibrated_contrastive=0.0, cebench_delta=None,
        cebench_ceiling=7.875, key="0" * 64, weights_sha256="1" * 64,
    )  # fmt: skip


def test_every_number_of_a_member_is_that_of_its_own_measurement() -> None:
    saes = [trained(random_sae(0), 5), trained(random_sae(1, "standard"), 6)]
    on = benches()
    rows, probes = member_rows(saes, on, [baseline_row(5, 1.5), baseline_row(6, 2.5)])
    llm = llm_scores(on.tasks, on.probing)
    for i, (row, sae) in enumerate(zip(rows, saes, strict=True)):
        quality = measure(sae.sae, on.held_out)
        [story] = contrastive_scores([sae], on.stories, on.contrastive)
        [scores] = sae_scores([sae], on.tasks, on.probing)
        own = [probe for probe in probes if probe.seed == row.seed]
        assert [probe.data_set for probe in own] == NAMES
        assert [probe.test_auc for probe in own] == [score.test_auc for score in scores]
        assert row.saebench_auc == pytest.approx(np.mean([score.test_auc for score in scores]))
        deltas = [score.test_auc - base.test_auc for score, base in zip(scores, llm, strict=True)]
        assert row.saebench_delta == pytest.approx(np.mean(deltas))
        assert row.saebench_delta == pytest.approx(np.mean([probe.delta for probe in own]))
        assert (row.explained_variance, row.l0, row.dead_fraction) == (
            quality.explained_variance, quality.l0, quality.dead_fraction,
        )  # fmt: skip
        assert row.cebench_interpretability == story.interpretability
        assert row.cebench_calibrated == story.calibrated_interpretability
        assert row.cebench_calibrated_contrastive == story.calibrated_contrastive
        assert row.cebench_delta == pytest.approx(story.interpretability - (1.5 + i))
        assert row.cebench_ceiling == 63 / 8
        assert (row.key, row.weights_sha256, row.note) == (sae.entry.key, sae.weights_sha256, "")
    assert len(probes) == 6


def test_cebench_deltas_are_paired_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    saes = random_saes([0, 1, 2])
    Measured(monkeypatch, saes, stories=[5.0, 6.0, 7.0])
    matched = [baseline_row(2, 4.0), baseline_row(0, 4.5), baseline_row(1, 3.0)]
    rows, _ = member_rows(saes, benches(), matched)
    assert [row.cebench_delta for row in rows] == [0.5, 3.0, 3.0]
    assert {row.note for row in rows} == {""}


@pytest.mark.parametrize("other", [{"seed": 1}, {"d_sae": 128}, {"k": 16}], ids=["seed", "width", "k"])
def test_a_baseline_of_another_seed_width_or_k_is_no_matched_one(
    other: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    saes = random_saes([0])
    Measured(monkeypatch, saes)
    [row], _ = member_rows(saes, benches(), [baseline_row(**{"seed": 0, "score": 4.0} | other)])
    assert row.cebench_delta is None
    assert row.note == "no CE-Bench delta: no baseline has this width, k and seed"


def test_the_baseline_of_the_same_width_and_k_is_taken_among_several(monkeypatch: pytest.MonkeyPatch) -> None:
    saes = random_saes([0])
    Measured(monkeypatch, saes, stories=[5.0])
    matched = [baseline_row(0, 1.0, d_sae=128), baseline_row(0, 4.0), baseline_row(0, 2.0, k=16)]
    [row], _ = member_rows(saes, benches(), matched)
    assert row.cebench_delta == 1.0


def test_the_baseline_itself_has_no_cebench_delta_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    saes = random_saes([0, 1])
    Measured(monkeypatch, saes)
    rows, _ = member_rows(saes, benches(), baseline=[])
    assert [row.cebench_delta for row in rows] == [None, None]
    assert {row.note for row in rows} == {"CE-Bench deltas are measured against this baseline"}


def test_a_score_that_cannot_be_calibrated_and_a_k_chosen_on_the_test_set_are_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saes = random_saes([0])
    Measured(monkeypatch, saes, calibrated=None)
    [row], _ = member_rows(saes, benches(choose_k="test"), [baseline_row(0, 1.0)])
    assert row.cebench_calibrated is None
    assert row.note == ("no calibrated CE-Bench score: its null does not vary; each best k was chosen on the test set")


@pytest.mark.parametrize(
    ("k", "l0", "matched"),
    [
        (10, 11.0, True), (10, 9.0, True), (10, 11.01, False), (10, 8.99, False), (10, 10.0, True),
        (8, 8.8, True), (7, 7.7, True), (3, 2.7, True),  # exactly 10 %, whatever floats make of it
        (1000, 1100.0, True), (1000, 1101.0, False), (1000, 899.0, False), (8, 0.0, False), (8, 48.0, False),
    ],
)  # fmt: skip
def test_l0_is_matched_within_ten_per_cent_of_k(
    k: int, l0: float, matched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    saes = random_saes([0], condition(k=k, d_sae=2000))
    Measured(monkeypatch, saes, l0=l0)
    [row], _ = member_rows(saes, benches(), [])
    assert row.l0_matched is matched


def test_a_group_lies_between_its_nulls_and_identity() -> None:
    saes, gaussian = random_saes([4, 2, 7]), random_saes([4, 2, 7], start=300)
    [row], _ = group_rows(saes, gaussian, PROBES)
    own, null = (pwmcc([sae.sae.W_dec.detach() for sae in group]) for group in (saes, gaussian))
    assert (row.pwmcc, row.null_gaussian) == pytest.approx((own, null))
    assert row.null_random == pytest.approx(pwmcc(random_decoders((64, 32), [4, 2, 7])))
    assert row.pwmcc_corrected == pytest.approx((own - null) / (1 - null))
    assert row.pwmcc_low < row.pwmcc < row.pwmcc_high  # type: ignore[operator]
    assert (row.condition, row.architecture, row.n_seeds, row.note) == ("topk", "topk", 3, "")
    # random weights: no more alike than random decoders are
    assert row.pwmcc == pytest.approx(row.null_random, abs=0.02)
    assert abs(row.pwmcc_corrected) < 0.05


def test_a_group_has_its_saebench_delta_with_an_interval_over_data_sets() -> None:
    [row], _ = group_rows(random_saes([0, 1]), random_saes([0, 1], start=300), PROBES)
    # of the sets a, b and c: the means over seeds, and over the points of c, of this condition alone
    expected = mean_interval([0.1, -0.2, 0.4])
    assert (row.saebench_delta, row.sets_low, row.sets_high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    [one_set], _ = group_rows(random_saes([0, 1]), random_saes([0, 1], start=300), PROBES[:2])
    assert (one_set.saebench_delta, one_set.sets_low, one_set.sets_high) == pytest.approx((0.1, None, None))


def test_a_data_set_with_several_points_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    [sae] = random_saes([0])
    on = benches(setting="scarcity")
    points = [replace(on.tasks[0], at=at) for at in (2, 4, 8)]
    on = replace(on, tasks=[*points, on.tasks[1]])
    Measured(monkeypatch, [sae])
    scores = [ProbeScore(1, 0.9, auc) for auc in (0.5, 0.6, 0.7, 0.9)]
    monkeypatch.setattr(evaluation, "sae_scores", lambda *_: [scores])
    [row], probes = member_rows([sae], on, [])
    assert [probe.at for probe in probes] == [2, 4, 8, None]
    assert (row.saebench_auc, row.saebench_delta) == pytest.approx(((0.6 + 0.9) / 2, (0.6 + 0.9) / 2 - 0.8))


def test_equal_seeds_are_perfectly_stable_whatever_the_null() -> None:
    same = [trained(random_sae(0), seed) for seed in (0, 1, 2)]
    [row], _ = group_rows(same, random_saes([0, 1, 2], start=300), PROBES)
    assert (row.pwmcc, row.pwmcc_corrected, row.encoder_mcc, row.reappearing_fraction) == pytest.approx((1, 1, 1, 1))


def test_every_pair_of_seeds_of_every_condition_is_a_row_with_its_pwmcc() -> None:
    topk, other = random_saes([4, 2, 7]), random_saes([4, 2], condition("other", k=9), start=50)
    groups, pairs = group_rows([*topk, *other], random_saes([4, 2, 7], start=300) + other, PROBES_OF_BOTH)
    found = {(pair.of, pair.seed_a, pair.seed_b): pair.pwmcc for pair in pairs}
    assert list(found) == [("topk", 4, 2), ("topk", 4, 7), ("topk", 2, 7), ("other", 4, 2)]
    assert found["topk", 2, 7] == pytest.approx(pwmcc([sae.sae.W_dec.detach() for sae in topk[1:]]), abs=1e-12)
    assert [group.condition for group in groups] == ["topk", "other"]
    assert groups[0].pwmcc == pytest.approx(np.mean([found[key] for key in list(found)[:3]]))
    assert (groups[1].pwmcc, groups[1].pwmcc_low) == (found["other", 4, 2], None)


def test_two_seeds_have_no_interval_and_the_row_says_why() -> None:
    [row], _ = group_rows(random_saes([0, 1]), random_saes([0, 1], start=300), PROBES)
    assert (row.pwmcc_low, row.pwmcc_high, row.n_seeds) == (None, None, 2)
    assert row.note == "too few seeds for an interval"


def test_conditions_come_in_the_order_of_their_first_member() -> None:
    sae = trained(random_sae(0))
    order = [("b", 1), ("a", 0), ("b", 0), ("a", 1)]
    saes = [replace(sae, member=replace(sae.member, condition=condition(name), seed=seed)) for name, seed in order]
    found = [[(one.member.condition.name, one.member.seed) for one in group] for group in by_condition(saes)]
    assert found == [[("b", 1), ("b", 0)], [("a", 0), ("a", 1)]]
    assert by_condition([]) == []


def test_members_are_measured_the_same_alone_and_together(cache: Path) -> None:
    on, saes = benches(), random_saes([20, 21])
    together, _ = member_rows(saes, on, [])
    alone = [row for sae in saes for row in member_rows([sae], on, [])[0]]
    assert together == alone
