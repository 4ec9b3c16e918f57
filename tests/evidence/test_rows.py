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

from husai_lib.evidence.rows.base import CONTROLS, Candidate, Row, RunTables, ceiling, group_sha256, is_matched
from husai_lib.evidence.rows.measured import BankRow, ContrastiveRow, GroupRow, MemberRow, PairRow, ProbeRow, SourceRow
from husai_lib.evidence.rows.controls import ControlRow, ControlSaeRow, OodRow

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


def probe(condition: str, seed: int, data_set: str, delta: float, at: float | None = None) -> ProbeRow:
    return ProbeRow(condition=condition, seed=seed, data_set=data_set, at=at, best_k=1, validation_auc=0.5,
                    test_auc=0.5 + delta, llm_auc=0.5, delta=delta)  # fmt: skip


# --- members -------------------------------------------------------------------------------------


def derived_member(
    baselines: Sequence[MemberRow] = (),
    probes: Sequence[ProbeRow] = (),
    choose_k: str = "validation",
    step: str = "frontier",
    **changes: Any,
) -> MemberRow:
    """The row of a member of 64 latents, k = 8 and seed 0, all derived columns computed."""
    measured = made_up.member(**changes).model_dump(exclude={"l0_matched", "saebench_auc", "saebench_delta",
                                                             "cebench_delta", "cebench_ceiling", "note"})  # fmt: skip
    own = probes or [probe(measured["condition"], measured["seed"], "a", 0.0)]
    tables = {(step, "probes"): own, ("baselines", "members"): baselines}
    return MemberRow.derive(step, RunTables(tables, {"probing": {"choose_k": choose_k}}), **measured)


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
    points = [probe("topk", 0, "a", delta, at) for delta, at in ((0.0, 2), (0.1, 4), (0.2, 8))]
    others = [probe("topk", 1, "a", 0.5), probe("standard", 0, "a", 0.5)]
    row = derived_member(probes=[*points, probe("topk", 0, "b", 0.4), *others])
    # the mean over points of a is 0.1; over a and b (0.1 + 0.4) / 2; each test AUC is 0.5 higher
    assert (row.saebench_auc, row.saebench_delta) == pytest.approx((0.75, 0.25))


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
        {("baselines", "probes"): [probe("given", 0, "a", 0.0)]}, {"probing": {"choose_k": "test"}}
    ))["note"] == "of a folder"  # fmt: skip


# --- groups --------------------------------------------------------------------------------------

PROBES = [
    probe("topk", 0, "a", 0.0), probe("topk", 1, "a", 0.2), probe("topk", 0, "b", -0.2), probe("topk", 1, "b", -0.2),
    probe("topk", 0, "c", 0.3, 2), probe("topk", 1, "c", 0.5, 2), probe("topk", 0, "c", 0.4, 4),
    probe("topk", 1, "c", 0.4, 4), probe("standard", 0, "a", 0.5), probe("standard", 0, "d", 0.5),
]  # fmt: skip


def derived_group(
    values: Sequence[float], seeds: Sequence[int], probes: Sequence[ProbeRow] = PROBES, **measured: Any
) -> GroupRow:
    """The row of the condition topk whose pairs of seeds have these PW-MCC."""
    members = [made_up.member("topk", seed) for seed in seeds] + [made_up.member("standard", 9)]
    pairs = pair_rows("standard", seeds, [0.9] * len(values)) + pair_rows("topk", seeds, values)
    tables = {("frontier", "members"): members, ("frontier", "pairs"): pairs, ("frontier", "probes"): probes}
    names = ("null_random", "encoder_mcc", "reappearing_fraction", "subspace_overlap")
    given = {"condition": "topk", "pwmcc_max": 1.0, "null_gaussian": 0.2, **dict.fromkeys(names, 0.3)} | measured
    return GroupRow.derive("frontier", RunTables(tables, {}), **given)


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


def test_a_group_has_its_saebench_delta_with_an_interval_over_data_sets() -> None:
    # of the sets a, b and c: the means over seeds, and over the points of c, of this condition alone
    row, expected = derived_group([0.5], [0, 1]), [0.1, -0.2, 0.4]
    assert (row.saebench_delta, row.sets_low, row.sets_high) == pytest.approx((0.1, *t_interval(expected)))
    one_set = derived_group([0.5], [0, 1], PROBES[:2])
    assert (one_set.saebench_delta, one_set.sets_low, one_set.sets_high) == (pytest.approx(0.1), None, None)


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
    "stress": {"random_model": True, "transcoder": True, "ood": True},
}


def candidate(seeds: Sequence[int] = range(4), values: Sequence[float] = (0.7, 0.6, 0.8, 0.7, 0.5, 0.9)) -> Candidate:
    """A candidate whose SAEs have weights of their own and pairs of these PW-MCC."""
    members = [made_up.member("topk", seed, weights_sha256=f"{seed:064}") for seed in seeds]
    return Candidate(members, pair_rows("topk", seeds, values), "")


def control(name: str, of: Candidate, parameters: dict[str, Any] | None = None, **tables: Sequence[Row]) -> ControlRow:
    known = {("stress", table): rows for table, rows in tables.items()}
    return ControlRow.derive("stress", RunTables(known, PARAMETERS | (parameters or {}), of), control=name)


@pytest.mark.parametrize(("name", "sign"), [("random_model", 1), ("random_decoder", 1), ("transcoder", -1)])
def test_a_control_is_subtracted_from_the_candidate_and_the_candidate_from_the_transcoder(name: str, sign: int) -> None:
    own, other = candidate(), [0.3, 0.2, 0.3, 0.4, 0.3, 0.3]
    row = control(name, own, pairs=pair_rows("another", range(4), [0.9] * 6) + pair_rows(name, range(4), other))
    assert (row.control, row.metric, row.note) == (name, "pwmcc", "")
    assert (row.candidate, row.control_value) == pytest.approx((0.7, 0.3))
    # the interval leaves the same seed out of both, so it is that of the differences of pairs
    differences = sign * (np.array([pair.pwmcc for pair in own.pairs]) - other)
    assert (row.delta, row.delta_low, row.delta_high) == pytest.approx(jackknife(list(differences), 4))
    assert (row.tasks_low, row.tasks_high) == (None, None)
    assert row.candidate_sha256 == group_sha256((member.seed, member.weights_sha256) for member in own.members)


def test_a_control_of_two_seeds_has_no_bound_and_says_so() -> None:
    row = control("random_model", candidate([0, 1], [0.8]), pairs=pair_rows("random_model", [0, 1], [0.3]))
    assert (row.delta, row.delta_low, row.delta_high) == (pytest.approx(0.5), None, None)
    assert row.note == "too few seeds for an interval"


def test_a_control_over_other_seeds_is_an_error() -> None:
    with pytest.raises(KeyError):
        control("random_model", candidate(), pairs=pair_rows("random_model", range(3), [0.3] * 3))


def test_the_hash_of_a_group_is_of_its_weights_and_seeds_in_any_order() -> None:
    group = [(0, "a"), (1, "b"), (2, "c")]
    assert group_sha256(group) == group_sha256(group[::-1])
    others = [group[:2], [*group[:2], (2, "d")], [*group[:2], (3, "c")], []]
    assert len({group_sha256(one) for one in [group, *others]}) == 5


def test_a_control_whose_l0_is_off_names_the_seeds() -> None:
    own = candidate(range(3), [0.8] * 3)
    run = RunTables({}, {}, own)
    saes = [ControlSaeRow.derive("stress", run, control="random_model", seed=seed, l0=l0, key="0", weights_sha256="1")
            for seed, l0 in enumerate((8.0, 9.0, 7.1))]  # fmt: skip
    assert [(row.architecture, row.d_sae, row.k, row.l0_matched) for row in saes] == [
        ("topk", 64, 8, matched) for matched in (True, False, False)
    ]
    row = control("random_model", own, pairs=pair_rows("random_model", range(3), [0.3] * 3), control_saes=saes)
    assert row.note == "the control's L0 is more than 10 % off k = 8: 9.0 at seed 1, 7.1 at seed 2"
    of_another = control("transcoder", own, pairs=pair_rows("transcoder", range(3), [0.3] * 3), control_saes=saes)
    assert of_another.note == ""


def test_a_transcoder_beside_a_candidate_of_joined_layers_says_where_it_is() -> None:
    joined = {"activations": {"hook_name": f"{HOOK}+blocks.1.hook_resid_post"}}
    pairs = [*pair_rows("transcoder", range(4), [0.3] * 6), *pair_rows("random_model", range(4), [0.3] * 6)]
    row = control("transcoder", candidate(), joined, pairs=pairs)
    assert (row.note, row.delta) == ("the transcoder is at the last of the joined layers only", pytest.approx(-0.4))
    assert control("random_model", candidate(), joined, pairs=pairs).note == ""
    sae = ControlSaeRow.derive("stress", RunTables({}, {}, candidate()), control="transcoder", seed=0, l0=8.0, key="0",
                               weights_sha256="1")  # fmt: skip
    assert sae.architecture == "topk_transcoder"


def test_a_control_that_was_not_run_says_why_and_has_no_values() -> None:
    own = candidate()
    off = {"stress": {"random_model": False, "transcoder": False, "ood": True}}
    rows = [control(name, own, off) for name in CONTROLS]
    assert [row.note for row in rows] == [
        "switched off by stress.random_model: false",
        "switched off by stress.random_model: false",
        "switched off by stress.transcoder: false",
        "the control was not run",
    ]
    assert [row.metric for row in rows] == ["pwmcc"] * 3 + ["saebench_delta"]
    assert {row.candidate_sha256 for row in rows} == {group_sha256((m.seed, m.weights_sha256) for m in own.members)}
    for row in rows:
        values = (row.candidate, row.control_value, row.delta, row.delta_low, row.delta_high)
        assert values == (None,) * 5
    assert {control(name, Candidate()).note for name in CONTROLS} == {"no candidate was selected"}
    imported = Candidate(why_none="the candidate is of imported/x, an import without weights")
    assert {control(name, imported, off).note for name in CONTROLS} == {imported.why_none}


# Two tasks, three seeds, AUCs in and out of domain.
# Raw activation: a loses 0.9 -> 0.8, b 0.8 -> 0.7, so 0.1 each.
SHIFTED = {
    4: ((0.85, 0.65), (0.8, 0.6)),  # loses 0.20 and 0.20: drops 0.10 and 0.10, mean 0.10
    5: ((0.85, 0.75), (0.8, 0.5)),  # loses 0.10 and 0.30: drops 0.00 and 0.20, mean 0.10
    6: ((0.90, 0.85), (0.7, 0.65)),  # loses 0.05 and 0.05: drops -0.05 and -0.05, mean -0.05
}
OF_SHIFTED = candidate(list(SHIFTED), [0.8] * 3)


def ood_rows(seeds: Sequence[int] = tuple(SHIFTED), tasks: str = "ab") -> list[OodRow]:
    raw = {"a": (0.9, 0.8), "b": (0.8, 0.7)}
    return [
        OodRow.derive("stress", RunTables({}, {}, OF_SHIFTED), task=task, seed=seed, best_k=2, in_domain_auc=inside,
                      in_domain_llm_auc=raw[task][0], shifted_auc=shifted, shifted_llm_auc=raw[task][1])
        for seed in seeds for task, (inside, shifted) in zip("ab", SHIFTED[seed], strict=True) if task in tasks
    ]  # fmt: skip


def test_the_drop_is_what_the_sae_loses_beyond_the_raw_activation() -> None:
    rows = ood_rows()
    assert [row.drop for row in rows] == pytest.approx([0.1, 0.1, 0.0, 0.2, -0.05, -0.05])
    assert [row.weights_sha256 for row in rows] == [f"{seed:064}" for seed in SHIFTED for _ in "ab"]


def test_the_ood_control_is_the_mean_drop_with_t_intervals_over_seeds_and_over_tasks() -> None:
    row = control("ood", OF_SHIFTED, ood=ood_rows())
    assert (row.delta_low, row.delta_high) == pytest.approx(t_interval([0.10, 0.10, -0.05]))
    assert (row.tasks_low, row.tasks_high) == pytest.approx(t_interval([0.05 / 3, 0.25 / 3]))
    assert row.delta == pytest.approx(0.05)
    # deltas in domain: -.05 0 -.05 0 0 -.1; shifted: -.15 -.1 -.05 -.2 .05 -.05
    assert (row.candidate, row.control_value) == pytest.approx((-0.2 / 6, -0.5 / 6))
    assert (row.control, row.metric, row.note) == ("ood", "saebench_delta", "")
    assert row.candidate_sha256 == group_sha256((member.seed, member.weights_sha256) for member in OF_SHIFTED.members)


def test_an_ood_control_of_one_seed_or_task_has_no_bound_there() -> None:
    row = control("ood", OF_SHIFTED, ood=ood_rows([4]))
    assert (row.delta_low, row.delta_high, row.note) == (None, None, "too few seeds for an interval")
    assert row.tasks_low is not None
    one_task = control("ood", OF_SHIFTED, ood=ood_rows([4, 5], "a"))
    assert (one_task.tasks_low, one_task.tasks_high) == (None, None)
    assert one_task.delta_low is not None


def test_an_ood_control_whose_k_was_chosen_on_the_test_set_is_labelled() -> None:
    row = control("ood", OF_SHIFTED, {"probing": {"choose_k": "test"}}, ood=ood_rows())
    assert row.note == "each best k was chosen on the test set"


def test_the_raw_activation_has_one_auc_a_task_or_data_set() -> None:
    rows = ood_rows()
    forged = rows[2].model_copy(update={"shifted_llm_auc": 0.5})
    run = RunTables({("stress", "ood"): [*rows[:2], forged]}, {}, OF_SHIFTED)
    assert forged.derived("stress", run)["shifted_llm_auc"] == rows[0].shifted_llm_auc
    of_baseline = probe("baseline", 0, "a", 0.1)
    run = RunTables({("baselines", "probes"): [of_baseline, probe("baseline", 0, "a", 0.1, at=4)]}, {})
    assert probe("topk", 0, "a", 0.2).model_copy(update={"llm_auc": 0.3}).derived("frontier", run)["llm_auc"] == 0.5


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
        (made_up.probes()[0], {"test_auc": 1.2}, "less than or equal to 1"),
        (made_up.probes()[0], {"latents": "3 1"}, "best_k = 5, but 2 latents are listed"),
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
    pairs, ood = pair_rows("random_model", list(SHIFTED), [0.3, 0.2, 0.4]), ood_rows()
    run = RunTables({("stress", "pairs"): pairs, ("stress", "ood"): ood}, PARAMETERS, own)
    for row in (*ood, *(ControlRow.derive("stress", run, control=name) for name in CONTROLS)):
        assert type(row)(**row.model_dump() | row.derived("stress", run)) == row
