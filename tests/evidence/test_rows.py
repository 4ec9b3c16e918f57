"""Derived columns follow from the tables of a run as their definitions say, and impossible values are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import synthetic_rows as made_up
from scipy import stats

from husai_lib.evidence.rows.base import Candidate, Row, RunTables, ceiling, group_sha256, is_matched
from husai_lib.evidence.rows.controls import ControlRow, ControlSaeRow, OodRow, control_names, retained
from husai_lib.evidence.rows.measured import BankRow, ContrastiveRow, GroupRow, MemberRow, PairRow, SourceRow
from husai_lib.evidence.rows.probes import CeilingRow, ProbeRow, saebench_interval

HOOK = "blocks.0.hook_resid_post"


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return float(low), float(high)


def jackknife(pairs: Sequence[float], n: int) -> tuple[float, float, float]:
    """Mean over the pairs of n seeds with its 95 % interval, leaving out one seed at a time."""
    of = dict(zip(combinations(range(n), 2), pairs, strict=True))
    thetas = np.array([np.mean([v for pair, v in of.items() if out not in pair]) for out in range(n)])
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((thetas - thetas.mean()) ** 2).sum())
    mean = float(np.mean(pairs))
    return mean, mean - half, mean + half


def pair_rows(of: str, seeds: Sequence[int], values: Sequence[float]) -> list[PairRow]:
    """One row a pair of seeds, in the order (0, 1), (0, 2), ..., (1, 2), ..."""
    pairs = zip(combinations(seeds, 2), values, strict=True)
    return [PairRow(of=of, seed_a=a, seed_b=b, pwmcc=value) for (a, b), value in pairs]


def probe(
    condition: str, seed: int, data_set: str, delta: float, at: float | None = None, **changes: Any
) -> list[ProbeRow]:
    """The same delta in both forms; with `duplicates` in this form alone."""
    forms = [changes.pop("duplicates")] if "duplicates" in changes else ["drop", "keep"]
    about = {"condition": condition, "seed": seed, "at": at, "best_k": 1, "llm_auc": 0.5} | changes
    return [made_up.probe(data_set, duplicates=form, test_auc=0.5 + delta, delta=delta, **about) for form in forms]


def probes_of(*probes: list[ProbeRow]) -> list[ProbeRow]:
    return [row for both in probes for row in both]


# --- members -------------------------------------------------------------------------------------


def derived_member(
    baselines: Sequence[MemberRow] = (),
    probes: Sequence[ProbeRow] = (),
    choose_k: str = "validation",
    step: str = "frontier",
    duplicates: str = "drop",
    **changes: Any,
) -> MemberRow:
    """The row of a member of 64 latents, k = 8 and seed 0, all derived columns computed."""
    follow = ("saebench_auc", "saebench_delta", "saebench_delta_keep", "cebench_delta", "cebench_calibrated_delta")
    measured = made_up.member(**changes).model_dump(exclude={"l0_matched", "cebench_ceiling", "note", *follow})
    own = probes or probe(measured["condition"], measured["seed"], "a", 0.0)
    record = "confirmation" if step == "confirmation" else "baselines"
    tables = {(step, "probes"): own, (record, "members"): baselines}
    probing = {"choose_k": choose_k, "duplicates": duplicates}
    return MemberRow.derive(step, RunTables(tables, {"probing": probing}), **measured)


def baseline(seed: int, score: float, **changes: Any) -> MemberRow:
    return made_up.member("baseline", seed, cebench_interpretability=score, cebench_delta=None, **changes)


@pytest.mark.parametrize(
    ("k", "l0", "matched"),
    [
        (10, 11.0, True), (10, 9.0, True), (10, 11.01, False), (10, 8.99, False), (10, 10.0, True),
        (8, 8.8, True), (7, 7.7, True), (3, 2.7, True),  # exactly 10 %, whatever floats make of it
        (1000, 1100.0, True), (1000, 1101.0, False), (1000, 899.0, False), (8, 0.0, False), (8, 48.0, False),
    ],
)  # fmt: skip
def test_l0_is_matched_within_ten_per_cent_of_k(k: int, l0: float, matched: bool) -> None:
    assert derived_member(k=k, l0=l0, d_sae=2000).l0_matched is matched is is_matched(l0, k)


def test_a_member_has_the_means_of_its_own_probes_and_a_data_set_of_several_points_counts_once() -> None:
    points = probes_of(*(probe("topk", 0, "a", delta, at) for delta, at in ((0.0, 2), (0.1, 4), (0.2, 8))))
    others = probes_of(probe("topk", 1, "a", 0.5), probe("standard", 0, "a", 0.5))
    row = derived_member(probes=[*points, *probe("topk", 0, "b", 0.4), *others])
    # the mean over points of a is 0.1; over a and b (0.1 + 0.4) / 2; each test AUC is 0.5 higher
    assert (row.saebench_auc, row.saebench_delta) == pytest.approx((0.75, 0.25))


SPLITS = probes_of(
    probe("topk", 0, "a", -0.4, duplicates="keep", test_rows=300),  # a probe with duplicates, which help the raw AUC
    probe("topk", 0, "a", 0.0, duplicates="drop", split=42), probe("topk", 0, "a", 0.1, duplicates="drop", split=43),
    probe("topk", 0, "b", -0.2, duplicates="keep", test_rows=99),
    probe("topk", 0, "b", -0.1, duplicates="drop", split=42, test_rows=50),
    probe("topk", 0, "b", -0.3, duplicates="drop", split=43, test_rows=50),
)  # fmt: skip


def test_a_delta_without_duplicates_is_over_all_splits_and_small_sets_weigh_in_proportion() -> None:
    row = derived_member(probes=SPLITS)
    # a: the mean of its splits 0.05 with the weight 1; b: -0.2 with the weight 50 / 200
    expected = (0.05 - 0.25 * 0.2) / 1.25
    assert (row.saebench_delta, row.saebench_auc) == pytest.approx((expected, 0.5 + expected), abs=1e-12)
    assert row.saebench_delta_keep == pytest.approx(-0.3)  # equal weights, as published


def test_the_parameters_name_the_form_by_which_a_member_is_ranked() -> None:
    kept = derived_member(probes=SPLITS, duplicates="keep")
    assert (kept.saebench_auc, kept.saebench_delta, kept.saebench_delta_keep) == pytest.approx((0.2, -0.3, -0.3))


def test_fresh_seeds_are_compared_with_the_baselines_of_their_own_record() -> None:
    fresh = [baseline(0, 4.0, cebench_calibrated=0.5), made_up.member("topk", 0, cebench_interpretability=1.0)]
    row = derived_member(fresh, step="confirmation", cebench_interpretability=5.0, cebench_calibrated=1.5)
    assert (row.cebench_delta, row.cebench_calibrated_delta, row.note) == (1.0, 1.0, "")
    own = derived_member(fresh, step="confirmation", condition="baseline_64_k8")
    assert (own.is_baseline, own.cebench_delta, own.cebench_calibrated_delta) == (True, None, None)


@pytest.mark.parametrize("which", ["candidate", "baseline"])
def test_a_score_that_cannot_be_calibrated_has_no_calibrated_delta(which: str) -> None:
    scores = {"candidate": 1.0, "baseline": 1.0} | {which: None}
    row = derived_member([baseline(0, 4.0, cebench_calibrated=scores["baseline"])],
                         cebench_calibrated=scores["candidate"])  # fmt: skip
    assert (row.cebench_calibrated_delta, row.cebench_delta is None) == (None, False)


def test_cebench_deltas_are_paired_by_seed() -> None:
    baselines = [baseline(2, 4.0), baseline(0, 4.5), baseline(1, 3.0)]
    rows = [derived_member(baselines, seed=seed, cebench_interpretability=5.0 + seed) for seed in range(3)]
    assert [row.cebench_delta for row in rows] == [0.5, 3.0, 3.0]
    assert {row.note for row in rows} == {""}


@pytest.mark.parametrize("other", [{"seed": 1}, {"d_sae": 128}, {"k": 16}], ids=["seed", "width", "k"])
def test_a_baseline_of_another_seed_width_or_k_is_no_matched_one(other: dict[str, int]) -> None:
    row = derived_member([baseline(**{"seed": 0, "score": 4.0} | other)])
    assert row.cebench_delta is None
    assert row.note == "no CE-Bench delta: no baseline has this width, k and seed"


def test_the_baseline_of_the_same_width_and_k_is_taken_among_several() -> None:
    baselines = [baseline(0, 1.0, d_sae=128), baseline(0, 4.0), baseline(0, 2.0, k=16)]
    assert derived_member(baselines, cebench_interpretability=5.0).cebench_delta == 1.0


def test_the_baseline_itself_has_no_cebench_delta_and_says_why() -> None:
    row = derived_member([baseline(0, 4.0)], step="baselines", condition="baseline")
    assert (row.cebench_delta, row.note) == (None, "CE-Bench deltas are measured against this baseline")


def test_a_score_that_cannot_be_calibrated_and_a_k_chosen_on_the_test_set_are_noted() -> None:
    row = derived_member([baseline(0, 1.0)], choose_k="test", cebench_calibrated=None)
    assert row.note == "no calibrated CE-Bench score: its null does not vary; each best k was chosen on the test set"


def test_the_note_of_a_given_sae_is_kept() -> None:
    row = derived_member(condition="given", step="baselines")
    assert row.model_copy(update={"note": "of a folder"}).derived("baselines", RunTables(
        {("baselines", "probes"): probe("given", 0, "a", 0.0)},
        {"probing": {"choose_k": "test", "duplicates": "drop"}},
    ))["note"] == "of a folder"  # fmt: skip


# --- groups --------------------------------------------------------------------------------------

PROBES = probes_of(
    probe("topk", 0, "a", 0.0), probe("topk", 1, "a", 0.2), probe("topk", 0, "b", -0.2), probe("topk", 1, "b", -0.2),
    probe("topk", 0, "c", 0.3, 2), probe("topk", 1, "c", 0.5, 2), probe("topk", 0, "c", 0.4, 4),
    probe("topk", 1, "c", 0.4, 4), probe("standard", 0, "a", 0.5), probe("standard", 0, "d", 0.5),
)  # fmt: skip
CEILINGS = [made_up.ceiling("a", oracle_delta=0.1), made_up.ceiling("b", oracle_delta=0.4, test_rows=100)]


FUNCTIONAL = ("functional_agreement", "functional_rare", "functional_frequent")


def derived_group(
    values: Sequence[float],
    seeds: Sequence[int],
    probes: Sequence[ProbeRow] = PROBES,
    references: Sequence[int | None] = (),
    **measured: Any,
) -> GroupRow:
    """The row of the condition topk whose pairs of seeds have these PW-MCC."""
    aligned = zip(seeds, references or [None] * len(seeds), strict=True)
    members = [made_up.member("topk", seed, reference=reference) for seed, reference in aligned]
    members += [made_up.member("standard", 9)]
    pairs = pair_rows("standard", seeds, [0.9] * len(values)) + pair_rows("topk", seeds, values)
    tables = {"members": members, "pairs": pairs, "probes": probes, "ceilings": CEILINGS}
    names = ("null_random", "encoder_mcc", "reappearing_fraction", "subspace_overlap", *FUNCTIONAL)
    given = {"condition": "topk", "pwmcc_max": 1.0, "null_gaussian": 0.2, **dict.fromkeys(names, 0.3)} | measured
    return GroupRow.derive("frontier", RunTables({("frontier", name): tables[name] for name in tables}, {}), **given)


def test_a_group_has_the_mean_over_its_pairs_with_a_jackknife_interval_and_what_exceeds_the_null() -> None:
    values = [0.5, 0.6, 0.4, 0.7, 0.5, 0.6]
    row = derived_group(values, [4, 2, 7, 0])
    assert (row.pwmcc, row.pwmcc_low, row.pwmcc_high) == pytest.approx(jackknife(values, 4))
    assert row.pwmcc_corrected == pytest.approx((0.55 - 0.2) / 0.8)
    assert (row.architecture, row.n_seeds, row.note) == ("topk", 4, "")


def test_two_seeds_have_no_interval_and_the_row_says_why() -> None:
    row = derived_group([0.5], [0, 1])
    assert (row.pwmcc, row.pwmcc_low, row.pwmcc_high, row.n_seeds) == (0.5, None, None, 2)
    assert row.note == "too few seeds for an interval"


# Seeds 4 and 0 copied the SAE of seed 100, 2 and 5 that of 101, 7 that of 102: pairs of related ones have 0.9 and 0.7.
REFERENCES = [100, 101, 102, 100, 101]
OF_COPIES = [0.3, 0.2, 0.9, 0.5, 0.5, 0.1, 0.7, 0.4, 0.7, 0.3]  # 4-2 4-7 4-0 4-5, 2-7 2-0 2-5, 7-0 7-5, 0-5


def test_a_group_with_references_has_its_pwmcc_across_them_and_apart_that_within() -> None:
    row = derived_group(OF_COPIES, [4, 2, 7, 0, 5], references=REFERENCES)
    # 100 and 101: 4-2, 4-5, 2-0, 0-5 with mean 0.3; 100 and 102: 4-7, 7-0 with 0.3; 101 and 102: 2-7, 7-5 with 0.6
    assert (row.pwmcc, row.pwmcc_low, row.pwmcc_high) == pytest.approx(jackknife([0.3, 0.3, 0.6], 3))
    assert row.pwmcc_within == pytest.approx((0.9 + 0.7) / 2)
    assert row.pwmcc_corrected == pytest.approx((0.4 - 0.2) / 0.8)
    assert (row.n_seeds, row.note) == (5, "")


def test_a_group_without_references_has_no_agreement_within_one() -> None:
    assert derived_group(OF_COPIES, [4, 2, 7, 0, 5]).pwmcc_within is None


def test_two_references_give_a_group_no_interval_and_the_row_says_why() -> None:
    row = derived_group([0.4, 0.9, 0.4, 0.6, 0.8, 0.6], [0, 1, 2, 3], references=[100, 101, 100, 101])
    assert (row.pwmcc, row.pwmcc_low, row.pwmcc_high) == (pytest.approx(0.5), None, None)
    assert (row.pwmcc_within, row.note) == (pytest.approx(0.85), "too few references for an interval")


def test_a_group_of_one_reference_has_no_pwmcc_at_all_however_alike_its_seeds_are() -> None:
    row = derived_group([0.99, 0.98, 0.97], [0, 1, 2], references=[100] * 3)
    assert (row.pwmcc, row.pwmcc_low, row.pwmcc_high, row.pwmcc_corrected) == (None,) * 4
    assert (row.pwmcc_within, row.note) == (
        pytest.approx(0.98), "all seeds have one reference, so none of them are unrelated"
    )  # fmt: skip


def test_a_seed_is_no_copy_of_a_reference_that_has_its_number() -> None:
    plain, copy, other = (
        made_up.member(seed=5),
        made_up.member(seed=6, reference=5),
        made_up.member(seed=7, reference=5),
    )
    assert plain.unit != copy.unit == other.unit
    assert len({made_up.member(seed=seed).unit for seed in range(3)}) == 3


def test_a_group_has_its_saebench_delta_with_an_interval_over_seeds_and_data_sets() -> None:
    row = derived_group([0.5], [0, 1])
    # rows: seeds, columns: the sets a, b and c, over the points of c; of this condition alone
    deltas = np.array([[0.0, -0.2, 0.35], [0.2, -0.2, 0.45]])
    seeds, sets = (stats.t.ppf(0.975, n - 1) * stats.sem(deltas.mean(axis)) for n, axis in ((2, 1), (3, 0)))
    half = np.hypot(seeds, sets)
    assert (row.saebench_delta, row.saebench_low, row.saebench_high) == pytest.approx((0.1, 0.1 - half, 0.1 + half))
    assert row.saebench_delta_keep == pytest.approx(0.1)
    one_set = derived_group([0.5], [0, 1], [probe for probe in PROBES if probe.data_set == "a"])
    assert (one_set.saebench_delta, one_set.saebench_low, one_set.saebench_high) == (pytest.approx(0.1), None, None)


def test_an_interval_over_data_sets_is_wider_at_a_higher_confidence() -> None:
    own = [probe for probe in PROBES if probe.condition == "topk"]
    usual, surer = saebench_interval(own), saebench_interval(own, 0.95, 0.999)
    assert surer.low < usual.low < usual.mean == surer.mean  # type: ignore[operator]


def test_splits_are_no_data_sets_and_kept_duplicates_do_not_enter_the_interval() -> None:
    one, other = SPLITS, [row.model_copy(update={"seed": 1}) for row in SPLITS]
    found = saebench_interval([*one, *other])
    expected = (0.05 - 0.25 * 0.2) / 1.25
    # without a set, the other alone is left: 0.05 or -0.2; the seeds are equal
    thetas = np.array([-0.2, 0.05])
    half = stats.t.ppf(0.975, 1) * np.sqrt(0.5 * ((thetas - thetas.mean()) ** 2).sum())
    assert (found.mean, found.low, found.n) == (pytest.approx(expected), pytest.approx(expected - half), 2)


def test_a_group_has_the_mean_of_each_ceiling_with_the_weights_of_its_delta() -> None:
    row = derived_group([0.5], [0, 1])
    assert row.oracle_delta == pytest.approx((0.1 + 0.5 * 0.4) / 1.5)
    assert row.single_latent_delta == pytest.approx(-0.1)


def test_a_ceiling_has_the_fewest_test_rows_of_its_probes() -> None:
    run = RunTables({("frontier", "probes"): SPLITS}, {})
    assert CeilingRow.derive("frontier", run, **made_up.ceiling("b").model_dump(exclude={"test_rows"})).test_rows == 50


def test_a_pair_of_seeds_that_is_missing_is_an_error() -> None:
    tables = {("frontier", "members"): [made_up.member("topk", seed) for seed in range(3)]}
    row = GroupRow.model_construct(condition="topk", null_gaussian=0.0)
    for pairs in ([], pair_rows("topk", [0, 1], [0.5]), pair_rows("topk", [0, 1, 5], [0.5] * 3)):
        with pytest.raises(KeyError):
            row.derived("frontier", RunTables(tables | {("frontier", "pairs"): pairs}, {}))


# --- stress controls -----------------------------------------------------------------------------

PARAMETERS: dict[str, Any] = {
    "activations": {"hook_name": HOOK},
    "probing": {"choose_k": "validation"},
    "stress": {"random_model": True, "random_models": 2, "transcoder": True, "ood": True},
}
CONTROLS = ["random_model_1", "random_model_2", "random_decoder", "transcoder", "in_domain", "ood"]


def candidate(seeds: Sequence[int] = range(4), values: Sequence[float] = (0.7, 0.6, 0.8, 0.7, 0.5, 0.9)) -> Candidate:
    """A candidate whose SAEs have weights of their own and pairs of these PW-MCC."""
    members = [made_up.member("topk", seed, weights_sha256=f"{seed:064}") for seed in seeds]
    return Candidate(members, pair_rows("topk", seeds, values), "")


def control(name: str, of: Candidate, parameters: dict[str, Any] | None = None, **tables: Sequence[Row]) -> ControlRow:
    known = {("stress", table): rows for table, rows in tables.items()}
    return ControlRow.derive("stress", RunTables(known, PARAMETERS | (parameters or {}), of), control=name)


def test_there_is_a_row_for_every_random_model_and_every_other_control() -> None:
    assert control_names(PARAMETERS) == CONTROLS
    assert control_names({"stress": {"random_models": 1}}) == [CONTROLS[0], *CONTROLS[2:]]


@pytest.mark.parametrize("name", CONTROLS[:4])
def test_every_control_of_pwmcc_is_subtracted_from_the_candidate(name: str) -> None:
    own, other = candidate(), [0.3, 0.2, 0.3, 0.4, 0.3, 0.3]
    row = control(name, own, pairs=pair_rows("another", range(4), [0.9] * 6) + pair_rows(name, range(4), other))
    assert (row.control, row.metric, row.note, row.level) == (name, "pwmcc", "", 0.95)
    assert (row.candidate, row.control_value) == pytest.approx((0.7, 0.3))
    # the interval leaves the same seed out of both, so it is that of the differences of pairs
    differences = np.array([pair.pwmcc for pair in own.pairs]) - other
    assert (row.delta, row.delta_low, row.delta_high) == pytest.approx(jackknife(list(differences), 4))
    assert (row.tasks_low, row.tasks_high) == (None, None)
    assert row.candidate_sha256 == group_sha256((member.seed, member.weights_sha256) for member in own.members)


def with_references(of: Candidate, references: Sequence[int]) -> Candidate:
    """The candidate whose seeds were aligned with these references."""
    aligned = zip(of.members, references, strict=True)
    return replace(of, members=[member.model_copy(update={"reference": reference}) for member, reference in aligned])


@pytest.mark.parametrize("name", CONTROLS[:4])
def test_a_control_compares_unrelated_seeds_only(name: str) -> None:
    own = with_references(candidate(range(5), OF_COPIES), REFERENCES)
    other = [0.2, 0.1, 0.6, 0.2, 0.3, 0.4, 0.9, 0.3, 0.3, 0.4]
    # 100 and 101: 0.2, 0.2, 0.4, 0.4 with mean 0.3; 100 and 102: 0.1, 0.3 with 0.2; 101 and 102: 0.3, 0.3 with 0.3
    row = control(name, own, pairs=pair_rows(name, range(5), other))
    assert (row.candidate, row.control_value) == pytest.approx((0.4, 0.8 / 3))
    assert (row.delta, row.delta_low, row.delta_high) == pytest.approx(jackknife([0.0, 0.1, 0.3], 3))
    assert row.note == ""


def test_a_control_is_missing_where_all_seeds_of_the_candidate_have_one_reference() -> None:
    own = with_references(candidate(), [100] * 4)
    row = control("random_model_1", own, pairs=pair_rows("random_model_1", range(4), [0.3] * 6))
    assert (row.candidate, row.control_value, row.delta, row.delta_low, row.delta_high) == (None,) * 5
    assert row.note == "all seeds have one reference, so none of them are unrelated"


def test_a_control_of_a_candidate_of_two_references_has_no_bound() -> None:
    own = with_references(candidate(), [100, 101, 100, 101])
    row = control("random_model_1", own, pairs=pair_rows("random_model_1", range(4), [0.3] * 6))
    # unrelated pairs of the candidate: 0-1 0.7, 0-3 0.8, 1-2 0.7, 2-3 0.9
    assert (row.delta, row.delta_low, row.delta_high) == (pytest.approx(0.775 - 0.3), None, None)
    assert row.note == "too few references for an interval"


def test_the_random_models_are_compared_one_by_one() -> None:
    pairs = pair_rows("random_model_1", range(4), [0.3] * 6) + pair_rows("random_model_2", range(4), [0.6] * 6)
    assert [control(name, candidate(), pairs=pairs).delta for name in CONTROLS[:3]] == [
        pytest.approx(0.4), pytest.approx(0.1), None,
    ]  # fmt: skip


def test_an_interval_has_the_confidence_of_the_candidate() -> None:
    pairs = pair_rows("random_model_1", range(4), [0.3, 0.2, 0.3, 0.4, 0.3, 0.3])
    surer = control("random_model_1", replace(candidate(), level=0.99), pairs=pairs)
    usual = control("random_model_1", candidate(), pairs=pairs)
    assert (surer.level, surer.delta) == (0.99, usual.delta)
    ratio = stats.t.ppf(0.995, 3) / stats.t.ppf(0.975, 3)
    assert surer.delta - surer.delta_low == pytest.approx(ratio * (usual.delta - usual.delta_low))  # type: ignore[operator]
    wider = control("ood", replace(OF_SHIFTED, level=0.99), ood=ood_rows())
    narrower = control("ood", OF_SHIFTED, ood=ood_rows())
    assert wider.delta_high > narrower.delta_high  # type: ignore[operator]
    assert wider.tasks_high > narrower.tasks_high  # type: ignore[operator]


def test_random_decoders_as_candidate_are_inferior_to_a_transcoder_and_a_stable_sae_is_not() -> None:
    transcoders = pair_rows("transcoder", range(4), [0.41, 0.42, 0.40, 0.43, 0.41, 0.42])
    decoders = control("transcoder", candidate(values=[0.29, 0.30, 0.28, 0.29, 0.30, 0.29]), pairs=transcoders)
    stable = control("transcoder", candidate(values=[0.60, 0.61, 0.59, 0.62, 0.60, 0.61]), pairs=transcoders)
    assert decoders.delta_high < -0.05  # type: ignore[operator]
    assert stable.delta_low > -0.05  # type: ignore[operator]


def test_a_control_of_two_seeds_has_no_bound_and_says_so() -> None:
    row = control("random_model_1", candidate([0, 1], [0.8]), pairs=pair_rows("random_model_1", [0, 1], [0.3]))
    assert (row.delta, row.delta_low, row.delta_high) == (pytest.approx(0.5), None, None)
    assert row.note == "too few seeds for an interval"


def test_a_control_over_other_seeds_is_an_error() -> None:
    with pytest.raises(KeyError):
        control("random_model_1", candidate(), pairs=pair_rows("random_model_1", range(3), [0.3] * 3))


def test_the_hash_of_a_group_is_of_its_weights_and_seeds_in_any_order() -> None:
    group = [(0, "a"), (1, "b"), (2, "c")]
    assert group_sha256(group) == group_sha256(group[::-1])
    others = [group[:2], [*group[:2], (2, "d")], [*group[:2], (3, "c")], []]
    assert len({group_sha256(one) for one in [group, *others]}) == 5


def test_a_control_whose_l0_is_off_names_the_seeds() -> None:
    own = candidate(range(3), [0.8] * 3)
    run = RunTables({}, {}, own)
    saes = [ControlSaeRow.derive("stress", run, control="random_model_1", seed=seed, l0=l0, key="0", weights_sha256="1")
            for seed, l0 in enumerate((8.0, 9.0, 7.1))]  # fmt: skip
    assert [(row.architecture, row.d_sae, row.k, row.l0_matched) for row in saes] == [
        ("topk", 64, 8, matched) for matched in (True, False, False)
    ]
    row = control("random_model_1", own, pairs=pair_rows("random_model_1", range(3), [0.3] * 3), control_saes=saes)
    assert row.note == "the control's L0 is more than 10 % off k = 8: 9.0 at seed 1, 7.1 at seed 2"
    of_another = control("transcoder", own, pairs=pair_rows("transcoder", range(3), [0.3] * 3), control_saes=saes)
    assert (row.l0_matched, of_another.l0_matched, of_another.note) == (False, True, "")


def test_a_transcoder_beside_a_candidate_of_joined_layers_says_where_it_is() -> None:
    joined = {"activations": {"hook_name": f"{HOOK}+blocks.1.hook_resid_post"}}
    pairs = [*pair_rows("transcoder", range(4), [0.3] * 6), *pair_rows("random_model_1", range(4), [0.3] * 6)]
    row = control("transcoder", candidate(), joined, pairs=pairs)
    assert (row.note, row.delta) == ("the transcoder is at the last of the joined layers only", pytest.approx(0.4))
    assert control("random_model_1", candidate(), joined, pairs=pairs).note == ""
    sae = ControlSaeRow.derive("stress", RunTables({}, {}, candidate()), control="transcoder", seed=0, l0=8.0, key="0",
                               weights_sha256="1")  # fmt: skip
    assert sae.architecture == "topk_transcoder"


def test_a_control_that_was_not_run_says_why_and_has_no_values() -> None:
    own = candidate()
    off = {"stress": {"random_model": False, "random_models": 2, "transcoder": False, "ood": True}}
    rows = [control(name, own, off) for name in CONTROLS]
    assert [row.note for row in rows] == [
        *["switched off by stress.random_model: false"] * 3,
        "switched off by stress.transcoder: false",
        *["the control was not run"] * 2,
    ]
    assert [row.metric for row in rows] == ["pwmcc"] * 4 + ["in_domain_auc", "retained_auc"]
    without = {"stress": off["stress"] | {"ood": False}}
    assert control("in_domain", own, without).note == "switched off by stress.ood: false"
    assert {row.candidate_sha256 for row in rows} == {group_sha256((m.seed, m.weights_sha256) for m in own.members)}
    for row in rows:
        values = (row.candidate, row.control_value, row.delta, row.delta_low, row.delta_high)
        assert values == (None,) * 5
    assert {control(name, Candidate()).note for name in CONTROLS} == {"no candidate was selected"}
    imported = Candidate(why_none="the candidate is of imported/x, an import without weights")
    assert {control(name, imported, off).note for name in CONTROLS} == {imported.why_none}


# Two tasks, three seeds, AUCs in and out of domain.
# Raw activation: 0.9 and 0.8 in domain, so 0.35 above chance; 0.8 and 0.7 shifted, so 0.25: it retains 5/7.
RAW = {"a": (0.9, 0.8), "b": (0.8, 0.7)}
SHIFTED = {
    4: ((0.85, 0.65), (0.8, 0.6)),  # 0.325 above chance in domain, 0.125 shifted
    5: ((0.85, 0.75), (0.8, 0.5)),  # 0.325, 0.125
    6: ((0.90, 0.85), (0.7, 0.65)),  # 0.300, 0.250
}
OF_SHIFTED = candidate(list(SHIFTED), [0.8] * 3)


def ood_rows(
    seeds: Sequence[int] = tuple(SHIFTED), tasks: str = "ab", known: dict[int, Any] | None = None
) -> list[OodRow]:
    return [
        OodRow.derive("stress", RunTables({}, {}, OF_SHIFTED), task=task, seed=seed, best_k=2, in_domain_auc=inside,
                      in_domain_llm_auc=RAW[task][0], shifted_auc=shifted, shifted_llm_auc=RAW[task][1])
        for seed in seeds for task, (inside, shifted) in zip("ab", (known or SHIFTED)[seed], strict=True)
        if task in tasks
    ]  # fmt: skip


def t_of_jackknife(estimate: float, left_out: Sequence[float]) -> tuple[float, float]:
    thetas, n = np.array(left_out), len(left_out)
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((thetas - thetas.mean()) ** 2).sum())
    return float(estimate - half), float(estimate + half)


def test_a_task_under_shift_names_the_weights_of_its_seed() -> None:
    assert [row.weights_sha256 for row in ood_rows()] == [f"{seed:064}" for seed in SHIFTED for _ in "ab"]


def test_the_ood_control_is_what_the_sae_retains_less_than_the_raw_activation() -> None:
    row = control("ood", OF_SHIFTED, ood=ood_rows())
    own = (0.125 + 0.125 + 0.25) / (0.325 + 0.325 + 0.3)
    assert (row.candidate, row.control_value) == pytest.approx((own, 5 / 7))
    assert row.delta == pytest.approx(5 / 7 - own)
    without_a_seed = [5 / 7 - 0.375 / 0.625, 5 / 7 - 0.375 / 0.625, 5 / 7 - 0.25 / 0.65]
    assert (row.delta_low, row.delta_high) == pytest.approx(t_of_jackknife(5 / 7 - own, without_a_seed))
    # b alone: raw retains 2/3, the SAE 0.1 + 0 + 0.15 of 0.3 + 0.3 + 0.2; a alone: 3/4, and 0.75 of 0.35 + 0.35 + 0.4
    without_a_task = [2 / 3 - 0.25 / 0.8, 3 / 4 - 0.75 / 1.1]
    assert (row.tasks_low, row.tasks_high) == pytest.approx(t_of_jackknife(5 / 7 - own, without_a_task))
    assert (row.control, row.metric, row.note) == ("ood", "retained_auc", "")
    assert row.candidate_sha256 == group_sha256((member.seed, member.weights_sha256) for member in OF_SHIFTED.members)


def test_probes_in_domain_are_compared_with_chance() -> None:
    row = control("in_domain", OF_SHIFTED, ood=ood_rows())
    seeds = [0.825, 0.825, 0.8]
    assert (row.candidate, row.control_value, row.delta) == pytest.approx((np.mean(seeds), 0.5, np.mean(seeds) - 0.5))
    assert (row.delta_low, row.delta_high) == pytest.approx(t_interval([seed - 0.5 for seed in seeds]))
    assert (row.tasks_low, row.tasks_high) == pytest.approx(t_interval([2.6 / 3 - 0.5, 2.3 / 3 - 0.5]))
    assert (row.metric, row.note) == ("in_domain_auc", "")


def test_a_dead_sae_is_not_above_chance_in_domain_and_retains_nothing() -> None:
    dead = ood_rows(known=dict.fromkeys(SHIFTED, ((0.5, 0.5), (0.5, 0.5))))
    inside, shifted = (control(name, OF_SHIFTED, ood=dead) for name in ("in_domain", "ood"))
    assert (inside.delta, inside.delta_low) == (0.0, 0.0)  # the gate asks for more than 0
    assert (shifted.delta, shifted.delta_high, shifted.candidate) == (None, None, None)
    assert shifted.note == "nothing is above chance in domain, so no share of it is retained"


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_an_sae_that_guesses_is_not_above_chance_by_its_bound(noise: float) -> None:
    signs = np.random.default_rng(0).normal(scale=noise, size=(3, 2, 2))
    guesses = {seed: tuple(map(tuple, 0.5 + own)) for seed, own in zip(SHIFTED, signs, strict=True)}
    assert control("in_domain", OF_SHIFTED, ood=ood_rows(known=guesses)).delta_low < 0  # type: ignore[operator]


def test_an_ood_control_of_one_seed_or_task_has_no_bound_there() -> None:
    row = control("ood", OF_SHIFTED, ood=ood_rows([4]))
    assert (row.delta_low, row.delta_high, row.note) == (None, None, "too few seeds for an interval")
    assert row.tasks_low is not None
    one_task = control("ood", OF_SHIFTED, ood=ood_rows([4, 5], "a"))
    assert (one_task.tasks_low, one_task.tasks_high) == (None, None)
    assert one_task.delta_low is not None


def test_tasks_of_which_one_alone_is_above_chance_have_no_interval_over_tasks() -> None:
    one = dict.fromkeys(SHIFTED, ((0.9, 0.8), (0.5, 0.5)))
    row = control("ood", OF_SHIFTED, ood=ood_rows(known=one))
    assert (row.candidate, row.tasks_low, row.tasks_high) == (pytest.approx(0.75), None, None)
    assert row.delta_low is not None
    assert row.note == "no interval over tasks: without one of them nothing is above chance"


def test_the_share_that_is_retained_does_not_exist_at_chance() -> None:
    at_chance = ood_rows([4], "a", {4: ((0.5, 0.7), (0.5, 0.7))})
    assert (retained(at_chance), retained(at_chance, "llm_auc")) == (None, pytest.approx(0.75))


def test_an_ood_control_whose_k_was_chosen_on_the_test_set_is_labelled() -> None:
    row = control("ood", OF_SHIFTED, {"probing": {"choose_k": "test"}}, ood=ood_rows())
    assert row.note == "each best k was chosen on the test set"


def test_the_raw_activation_has_one_auc_a_task_or_data_set() -> None:
    rows = ood_rows()
    forged = rows[2].model_copy(update={"shifted_llm_auc": 0.5})
    run = RunTables({("stress", "ood"): [*rows[:2], forged]}, {}, OF_SHIFTED)
    assert forged.derived("stress", run)["shifted_llm_auc"] == rows[0].shifted_llm_auc
    raw = [made_up.probe(at=4, llm_auc=0.1), *(made_up.probe(split=split, llm_auc=split / 100) for split in (42, 43))]
    raw += [made_up.probe(duplicates="keep", llm_auc=0.9)]
    run = RunTables({("baselines", "probes"): [row.model_copy(update={"condition": "baseline"}) for row in raw]}, {})
    for row in raw:
        forged = row.model_copy(update={"llm_auc": 0.3, "test_rows": 251})
        found = forged.derived("frontier", run)
        assert (found["llm_auc"], found["test_rows"]) == (row.llm_auc, 250)


# --- other tables --------------------------------------------------------------------------------


def test_a_bank_has_the_rows_of_its_sources() -> None:
    sources = [
        SourceRow(role=role, data_set=name, texts=1, tokens=rows, rows=rows)
        for role, name, rows in (("training", "x", 5), ("training", "y", 3), ("probing", "x", 7), ("probing", "y", 2))
    ]
    run = RunTables({("activations", "sources"): sources}, {})
    expected = {"training": 8, "mlp_in": 8, "probing/y": 2, "stories": 11}  # stories have no source here
    for bank, rows in expected.items():
        row = BankRow(bank=bank, hook_name=HOOK, rows=11, d_in=4, key="0", sha256="1")
        assert row.derived("activations", run)["rows"] == rows


def test_an_sae_of_the_width_study_has_the_ceiling_of_its_width_and_says_why_it_is_not_calibrated() -> None:
    measured = made_up.width_row("random", 64, 8).model_dump(exclude={"ceiling", "note"})
    row = ContrastiveRow.derive("baselines", RunTables({}, {}), **measured)
    assert (row.ceiling, row.note) == (63 / 8, "")
    constant = ContrastiveRow.derive("baselines", RunTables({}, {}), **measured | {"calibrated": None})
    assert constant.note == "no calibrated score: its null does not vary"


# --- impossible values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (made_up.member(), {"saebench_auc": 1.01}, "less than or equal to 1"),
        (made_up.member(), {"explained_variance": 1.01}, "less than or equal to 1"),
        (made_up.member(), {"l0": 65.0}, "l0 = 65.0 is impossible for 64 latents"),
        (made_up.member(), {"cebench_independence": 7.9}, "7.9 lies above 7.875, the ceiling"),
        (made_up.group(), {"pwmcc": 0.62}, "pwmcc = 0.62 lies above 0.61, the mean of the maxima"),
        (made_up.group(), {"reappearing_fraction": 1.5}, "less than or equal to 1"),
        (made_up.probe(), {"test_auc": 1.2}, "less than or equal to 1"),
        (made_up.probe(), {"latents": "3 1"}, "best_k = 5, but 2 latents are listed"),
        (made_up.ood_rows()[0], {"shifted_auc": -0.1}, "greater than or equal to 0"),
        (made_up.width_row("random", 64, 8), {"interpretability": 8.0}, "a score of 8.0 is impossible for 64 latents"),
        (made_up.width_row("random", 64, 8), {"l0": 65.0}, "l0 = 65.0"),
        (PairRow(of="topk", seed_a=0, seed_b=1, pwmcc=0.5), {"pwmcc": 1.1}, "less than or equal to 1"),
        (made_up.sources()[0], {"rows": -1}, "greater than or equal to 0"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else type(value).__name__,
)
def test_impossible_values_are_refused(row: Row, change: dict[str, Any], message: str) -> None:
    values = row.model_dump()
    assert type(row)(**values) == row
    with pytest.raises(ValueError, match=message):
        type(row)(**values | change)


def test_one_latent_that_differs_from_all_others_attains_the_ceiling() -> None:
    for n in (2, 64, 1000):
        values = np.eye(n)[0]
        assert (values.max() - values.mean()) / values.std(ddof=1) == pytest.approx(ceiling(n))


def test_deriving_the_columns_of_a_derived_row_again_changes_nothing() -> None:
    own = replace(OF_SHIFTED, pairs=pair_rows("topk", list(SHIFTED), [0.7, 0.8, 0.6]))
    pairs, ood = pair_rows("random_model_2", list(SHIFTED), [0.3, 0.2, 0.4]), ood_rows()
    run = RunTables({("stress", "pairs"): pairs, ("stress", "ood"): ood}, PARAMETERS, own)
    for row in (*ood, *(ControlRow.derive("stress", run, control=name) for name in CONTROLS)):
        assert type(row)(**row.model_dump() | row.derived("stress", run)) == row
