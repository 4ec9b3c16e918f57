"""Selection: hand-made groups, properties, and the decision of an earlier cycle from its own records."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from husai_lib.decisions.candidates import METRICS, Candidate
from husai_lib.decisions.selection import select
from husai_lib.errors import DataError
from husai_lib.params.rules import SelectionParams

RULES = SelectionParams(bootstraps=50)
MEANS = RULES.model_copy(update={"mode": "mean"})


def member(condition, seed, saebench, cebench, variance=0.9, **more):
    return Candidate("frontier", condition, "topk", seed, saebench, cebench, variance, **({"l0_matched": True} | more))


def group(condition, saebench, cebench, variance=0.9, *, spread=0.0, seeds=3, **more):
    """Members around given means: seed i lies (i - middle) * spread off."""
    offsets = [(i - (seeds - 1) / 2) * spread for i in range(seeds)]
    return [member(condition, i, saebench + o, cebench + o, variance, **more) for i, o in enumerate(offsets)]


values = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0]), st.floats(-5, 5))
members = st.builds(
    member,
    st.sampled_from(["a", "b", "c", "d"]),
    st.integers(0, 4),
    st.none() | values,
    st.none() | values,
    st.none() | values,
    l0_matched=st.integers(0, 9).map(bool),
)
pools = st.lists(members, max_size=25, unique_by=lambda m: (m.condition, m.seed))
rules = st.builds(
    SelectionParams,
    mode=st.sampled_from(["lcb", "mean"]),
    min_seeds=st.integers(2, 4),
    require_both_external=st.booleans(),
    require_matched_l0=st.booleans(),
    min_cebench_delta=st.none() | st.just(0.0),
    bootstraps=st.just(20),
)


@given(pools, rules, st.randoms())
@settings(max_examples=examples(2000), deadline=None)
def test_the_order_of_the_input_never_matters(pool, rule, random):
    shuffled = random.sample(pool, len(pool))
    first, second = select(pool, rule), select(shuffled, rule)
    assert first.rows() == second.rows()
    assert first.summary() == second.summary()


@given(pools, rules)
@settings(max_examples=examples(1000), deadline=None)
def test_the_winner_is_the_best_of_the_groups_that_nobody_dominates(pool, rule):
    selection = select(pool, rule)
    rows = [row for row in selection.rows() if row.joint_score is not None]
    which = "_low" if rule.mode == "lcb" else ""

    def score(row, metric):
        value = getattr(row, f"{metric}_delta{which}")
        return -math.inf if value is None else value

    def dominates(x, y):
        pairs = [(score(x, m), score(y, m)) for m in ("saebench", "cebench")]
        return all(p >= q for p, q in pairs) and any(p > q for p, q in pairs)

    assert [row.on_front for row in rows] == [not any(dominates(other, row) for other in rows) for row in rows]
    if not rows:
        assert selection.winner is None
        assert selection.reason.startswith("No group is eligible")
        return
    assert [row.selected for row in rows] == [True] + [False] * (len(rows) - 1)
    assert rows[0].joint_score == max(row.joint_score for row in rows if row.on_front)
    chances = [row.selection_probability for row in rows]
    few = min(row.n_seeds for row in rows) < (3 if rule.mode == "lcb" else 2)
    assert chances == [None] * len(rows) if few else sum(chances) == pytest.approx(1)
    assert all(row.n_seeds >= rule.min_seeds for row in rows)
    assert selection.winner.representative in selection.winner.members


def test_lower_bounds_decide_not_means():
    # Means 0.5 and 0.4; bounds 0.5 - 4.303 * 0.2 / sqrt(3) = 0.003 and 0.4.
    pool = group("noisy", 0.5, 0.5, spread=0.2) + group("steady", 0.4, 0.4)
    assert select(pool, RULES).winner.row.condition == "steady"
    assert select(pool, MEANS).winner.row.condition == "noisy"
    row = select(pool, RULES).rows()[1]
    assert (row.saebench_delta, row.saebench_delta_low) == pytest.approx(
        (0.5, 0.5 - stats.t.ppf(0.975, 2) * 0.2 / 3**0.5)
    )


def test_a_dominated_group_never_wins_however_good_its_reconstruction():
    pool = group("best", 0.2, 0.2, 0.1) + group("dominated", 0.19, 0.19, 0.99) + group("far", -5.0, -5.0, 0.1)
    selection = select(pool, RULES.model_copy(update={"weights": {"saebench": 0.5, "cebench": 0.5, "train_ev": 9.0}}))
    assert selection.winner.row.condition == "best"
    assert [row.condition for row in selection.rows()] == ["best", "dominated", "far"]


def test_zero_is_a_value_and_missing_is_not():
    kept = select(group("zero", 0.0, -0.0), RULES)
    assert kept.winner.row.condition == "zero"
    assert kept.rows()[0].saebench_delta == 0.0
    floored = RULES.model_copy(update={"min_saebench_delta": 0.0})
    assert select(group("zero", -0.0, 1.0), floored).winner.row.condition == "zero"
    lacking = [replace(m, cebench_delta=None) for m in group("lacking", 1.0, 0.0)]
    dropped = select(lacking, RULES)
    assert dropped.winner is None
    assert "no cebench_delta" in dropped.rows()[0].note
    lenient = select(lacking, RULES.model_copy(update={"require_both_external": False}))
    assert lenient.rows()[0].cebench_delta is None
    assert lenient.winner.row.condition == "lacking"


def test_a_missing_metric_is_worse_than_any_value():
    lacking = [replace(m, cebench_delta=None) for m in group("lacking", 1.0, 0.0)]
    pool = lacking + group("measured", 1.0, -100.0)
    selection = select(pool, RULES.model_copy(update={"require_both_external": False}))
    assert [row.on_front for row in selection.rows()] == [True, False]
    assert selection.winner.row.condition == "measured"


SPREAD = [member("a", seed, 0.1, x) for seed, x in enumerate([0.3, -0.3, 0.3, 0.1])]
"""A group whose CE-Bench deltas have the mean 0.1."""


def floored(floor, rules=RULES):
    return rules.model_copy(update={"min_cebench_delta": floor})


def test_a_floor_drops_the_group_by_its_mean_and_never_a_single_seed():
    row = select(SPREAD, floored(0.0)).rows()[0]
    assert (row.n_seeds, row.selected, row.note) == (4, True, "")
    assert row.cebench_delta == pytest.approx(0.1)
    below = select(SPREAD, floored(0.2))
    assert below.winner is None
    [row] = below.rows()
    assert (row.n_seeds, row.note) == (4, "cebench_delta 0.1 is below 0.2")
    assert below.summary()["dropped"] == {"frontier/a": row.note}
    assert below.reason == "No group is eligible: frontier/a: cebench_delta 0.1 is below 0.2."


def test_bounds_of_groups_that_pass_a_floor_at_their_truth_lie_above_it_as_rarely_as_stated():
    """Six seeds of true mean 0 and a floor of 0: without the seeds below it, 37.5 % of bounds would lie above 0."""
    rng, cycles = np.random.default_rng(0), 400
    above = 0
    for _ in range(cycles):
        pool = [member("a", seed, x, x) for seed, x in enumerate(rng.normal(size=6))]
        [row] = select(pool, floored(0.0).model_copy(update={"min_saebench_delta": 0.0, "bootstraps": 0})).rows()
        above += row.joint_score is not None and row.cebench_delta_low > 0
    assert above / cycles < 0.025 + 3 * math.sqrt(0.025 * 0.975 / cycles)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cebench_delta": None}, "no cebench_delta"),
        ({"saebench_delta": None}, "no saebench_delta"),
        ({"failed": "SAEBench ended with code 1"}, "SAEBench ended with code 1"),
    ],
)
def test_a_group_with_a_member_that_cannot_be_ranked_is_dropped_whole(change, why):
    """Which seeds fail may depend on their values, so the others are no sample of the group."""
    pool = [*group("a", 1.0, 1.0, seeds=4), *group("b", 0.0, 0.0)]
    pool[2] = replace(pool[2], **change)
    selection = select(pool, RULES)
    row = next(row for row in selection.rows() if row.condition == "a")
    assert selection.winner.row.condition == "b"
    assert (row.n_seeds, row.joint_score, row.note) == (3, None, f"seed 2: {why}")
    then = select(pool, THEN)
    assert (then.winner.row.condition, then.winner.row.n_seeds) == ("a", 3)


def test_groups_below_a_floor_were_compared_and_groups_that_cannot_be_ranked_were_not():
    pool = [*group("fine", 0.2, 0.2), *group("low", 0.1, -0.1), *group("few", 1.0, 1.0, seeds=2)]
    pool += [*group("off", 1.0, 1.0, l0_matched=False), *group("failed", 1.0, 1.0, failed="it ended with an error")]
    counts = select(pool, floored(0.0)).summary()["counts"]
    assert counts == {
        "members": 14, "eligible_members": 11, "groups": 5, "eligible_groups": 1, "compared_groups": 2, "pareto": 1,
    }  # fmt: skip


def test_too_few_seeds_and_unmatched_l0_drop_a_group_with_the_reason():
    pool = group("few", 1.0, 1.0, seeds=2) + group("dense", 1.0, 1.0) + group("fine", 0.0, 0.0)
    pool[3] = replace(pool[3], l0_matched=False)
    selection = select(pool, RULES)
    notes = {row.condition: row.note for row in selection.rows()}
    assert selection.winner.row.condition == "fine"
    assert notes == {
        "fine": "", "few": "2 eligible seeds, 3 are needed", "dense": "L0 is not within 10 % of k at seeds 1",
    }  # fmt: skip
    assert select(pool, RULES.model_copy(update={"require_matched_l0": False})).winner.row.condition == "dense"


def test_nobody_eligible_is_a_result_with_a_reason():
    nobody = select(group("few", 1.0, 1.0, seeds=2), RULES)
    assert nobody.winner is None
    assert nobody.reason == "No group is eligible: frontier/few: 2 eligible seeds, 3 are needed."
    assert nobody.summary()["selected"] is None
    assert select([], RULES).reason == "No group is eligible: there are no candidates."


def test_conditions_with_a_common_stem_and_sources_with_a_common_condition_stay_apart():
    pool = group("topk", 0.1, 0.1) + group("topk_seed2", 0.2, 0.2)
    pool += [replace(m, source="cycle1/frontier") for m in group("topk", 0.3, 0.3)]
    selection = select(pool, RULES)
    assert [row.n_seeds for row in selection.rows()] == [3, 3, 3]
    assert selection.winner.name == "cycle1/frontier/topk"


def test_a_seed_given_twice_is_refused():
    with pytest.raises(DataError, match="frontier/a, seed 0 is given twice"):
        select([*group("a", 1.0, 1.0), member("a", 0, 2.0, 2.0)], RULES)


def test_candidates_measured_on_different_things_are_refused_naming_both():
    eight, sixteen = {"model": '"m"', "sets": "8"}, {"model": '"m"', "sets": "16"}
    pool = group("a", 1.0, 1.0, comparability=eight) + group("b", 2.0, 2.0, comparability=sixteen)
    with pytest.raises(DataError, match=r"frontier/a, seed 0 and frontier/b, seed 0 .* sets is 8 and 16; measure"):
        select(pool, RULES)
    pool = group("a", 1.0, 1.0, comparability=eight) + group("b", 2.0, 2.0, comparability={"model": '"n"'})
    with pytest.raises(DataError, match=r"model is m and n \(also different: sets\)"):
        select(pool, RULES)


def test_baselines_are_compared_where_two_members_have_the_same_width_k_and_seed():
    def with_baseline(shape, weights):
        return {f"baseline of {shape}": f'["{weights}"]'}

    narrow, wide = with_baseline("64 latents, k = 8, seed 0", "a"), with_baseline("128 latents, k = 8, seed 0", "b")
    pool = group("a", 1.0, 1.0, comparability=narrow) + group("b", 2.0, 2.0, comparability=wide)
    assert select(pool, RULES).winner.row.condition == "b"
    other = with_baseline("64 latents, k = 8, seed 0", "c")
    with pytest.raises(DataError, match="baseline of 64 latents, k = 8, seed 0 is "):
        select(group("a", 1.0, 1.0, comparability=narrow) + group("b", 2.0, 2.0, comparability=other), RULES)


def test_the_same_weights_from_two_sources_are_refused():
    pool = group("a", 1.0, 1.0, weights_sha256="w")
    twins = [replace(m, source="earlier/run_x/frontier") for m in pool]
    with pytest.raises(DataError, match="are the same weights; name one of the two sources"):
        select(pool[:1] + twins[:1], RULES)


def test_equal_groups_are_ranked_by_name():
    pool = group("b", 0.5, 0.5) + group("a", 0.5, 0.5)
    assert select(pool, RULES).winner.row.condition == "a"


def test_the_representative_is_the_median_seed():
    pool = [member("a", seed, x, x) for seed, x in [(0, 0.9), (1, 0.1), (2, 0.5), (3, 0.3), (4, 0.7)]]
    assert select(pool, RULES).winner.representative.seed == 2
    assert select(pool[:4], RULES).winner.representative.seed == 3  # 0.1, 0.3, 0.5, 0.9: the lower of 0.3 and 0.5
    assert select(group("same", 0.1, 0.1), RULES).winner.representative.seed == 1


def test_an_irrelevant_group_rescales_scores_and_sensitivity_shows_what_decides():
    # Only the range of cebench changes when 'far' joins: 0..1 becomes -9..1, so saebench decides.
    pool = group("a", 0.1, 1.0) + group("b", 0.2, 0.1)
    more = pool + group("far", 0.15, -9.0)
    weights = {"saebench": 0.4, "cebench": 0.6, "train_ev": 0.0}
    rule = RULES.model_copy(update={"weights": weights})
    assert select(pool, rule).winner.row.condition == "a"
    assert select(more, rule).winner.row.condition == "b"
    assert select(pool, rule).by_scaling == {}
    assert select(more, rule).by_scaling == {"frontier/far": "frontier/a"}  # without it the winner is another
    ranks = rule.model_copy(update={"scaling": "rank"})
    assert select(pool, ranks).winner.name == select(more, ranks).winner.name
    sensitivity = select(pool, rule).sensitivity
    assert sensitivity["weight of CE-Bench -50 %"] == "frontier/b"
    assert sensitivity["weight of SAEBench -50 %"] == "frontier/a"
    assert sensitivity["at least 3 seeds"] == "frontier/a"
    assert sensitivity["at least 4 seeds"] is None


def test_selection_probability_is_the_share_of_resamples_that_a_group_wins():
    # In 'mean' mode, 'a' (0 for all seeds) beats 'b' (-1, -1, 2) in both metrics where b's resampled
    # mean is below 0: only where no 2 is drawn, (2/3)^3 = 8/27. One 2 gives a tie: 'a' is the first.
    # One 2 among three draws: 3 * 1/3 * 4/9 = 12/27. So 'a' wins 20/27.
    pool = group("a", 0.0, 0.0) + [member("b", i, x, x) for i, x in enumerate([-1.0, -1.0, 2.0])]
    many = MEANS.model_copy(update={"bootstraps": 20000})
    chances = {row.condition: row.selection_probability for row in select(pool, many).rows()}
    assert chances["a"] == pytest.approx(20 / 27, abs=0.015)
    assert chances["a"] + chances["b"] == pytest.approx(1)
    assert select(pool, RULES.model_copy(update={"bootstraps": 0})).rows()[0].selection_probability is None


@pytest.mark.parametrize("interval", ["t", "normal", "bootstrap"])
def test_a_clear_winner_wins_every_resample(interval):
    pool = group("a", 1.0, 1.0, spread=0.01, seeds=10) + group("b", 0.0, 0.0, spread=0.01, seeds=10)
    row = select(pool, SelectionParams(interval=interval, min_seeds=10, bootstraps=50)).rows()[0]
    assert (row.condition, row.selection_probability) == ("a", 1.0)


def test_resampled_bounds_are_those_of_mean_interval():
    # 'a' always scores 0. 'b' has 3 seeds; by enumeration of its 27 resamples without the 3 that are
    # one seed alone, count those whose t bound is above 0.
    seeds = [0.1, 0.2, 1.0]
    draws = [(x, y, z) for x in seeds for y in seeds for z in seeds if len({x, y, z}) > 1]
    wins = sum(np.mean(d) - stats.t.ppf(0.975, 2) * np.std(d, ddof=1) / 3**0.5 > 0 for d in draws)
    assert 0 < wins < len(draws)
    pool = group("a", 0.0, 0.0) + [member("b", i, x, x) for i, x in enumerate(seeds)]
    rows = select(pool, RULES.model_copy(update={"bootstraps": 20000})).rows()
    chance = next(row.selection_probability for row in rows if row.condition == "b")
    assert chance == pytest.approx(wins / len(draws), abs=0.015)


def test_300_groups_with_2000_bootstraps_take_seconds():
    rng = np.random.default_rng(0)
    pool = [member(f"c{g}", i, *rng.normal(size=3)) for g in range(300) for i in range(5)]
    start = time.process_time()
    selection = select(pool, RULES.model_copy(update={"bootstraps": 2000}))
    assert time.process_time() - start < 5
    assert len(selection.rows()) == 300


# The rules of 2026-02


THEN = SelectionParams(rules="2026-02", bootstraps=50)


def test_then_conditions_of_one_name_were_one_group_whatever_their_source_and_seeds_could_repeat():
    # Two sources, both with seeds 0 and 1: today two groups of 2, then one of 4 with 1.96 * std / sqrt(4).
    pool = [member("a", seed, x, x) for seed, x in [(0, 0.1), (1, 0.2)]]
    pool += [replace(m, source="later", saebench_delta=m.saebench_delta + 0.2) for m in pool]
    rows = select(pool, THEN).rows()
    assert [(row.source, row.condition, row.n_seeds) for row in rows] == [("frontier + later", "a", 4)]
    # 0.1, 0.2, 0.3, 0.4: mean 0.25, std sqrt(0.05 / 3)
    assert rows[0].saebench_delta_low == pytest.approx(0.25 - 1.96 * (0.05 / 3) ** 0.5 / 2)
    assert [row.n_seeds for row in select(pool, RULES).rows()] == [2, 2]


def test_then_the_luckiest_seed_stood_for_a_group_today_it_is_the_median():
    pool = [member("a", seed, x, x) for seed, x in [(0, 0.9), (1, 0.1), (2, 0.5)]]
    assert select(pool, THEN).rows()[0].representative_seed == 0
    assert select(pool, RULES).rows()[0].representative_seed == 2


def test_then_one_seed_was_its_own_bound_and_nobody_asked_for_l0_or_a_baseline():
    single = [member("a", 0, 0.5, 0.5, l0_matched=False, unmatched_baseline="it is wide")]
    chosen = select(single, THEN.model_copy(update={"min_seeds": 1}))
    assert chosen.winner.row.condition == "a"
    assert chosen.rows()[0].saebench_delta_low == 0.5
    assert chosen.rows()[0].saebench_delta_std is None


def test_then_a_floor_dropped_single_seeds():
    selection = select(SPREAD, floored(0.0, THEN))
    row = selection.rows()[0]
    assert (row.n_seeds, row.selected, row.note) == (3, True, "seed 1: cebench_delta -0.3 is below 0")
    assert row.cebench_delta == pytest.approx(0.7 / 3)
    assert selection.summary()["counts"] == {
        "members": 4, "eligible_members": 3, "groups": 1, "eligible_groups": 1, "compared_groups": 1, "pareto": 1,
    }  # fmt: skip


def test_then_what_was_measured_on_what_was_not_asked_but_the_record_says_it():
    eight, sixteen = {"data sets": "8"}, {"data sets": "16"}
    pool = group("a", 1.0, 1.0, comparability=eight) + group("b", 2.0, 2.0, comparability=sixteen)
    chosen = select(pool, THEN)
    assert chosen.winner.row.condition == "b"
    assert chosen.summary()["pooled"] == {"data sets": ["8", "16"]}


def test_the_rules_of_then_have_no_other_interval():
    for other in ({"interval": "t"}, {"scaling": "rank"}):
        with pytest.raises(ValidationError, match="the rules 2026-02 have interval: normal and scaling: minmax only"):
            SelectionParams(rules="2026-02", **other)


# Groups that cannot be selected, and other ways to rank


def test_a_group_without_a_matched_baseline_is_dropped_with_the_reason():
    pool = group("wide", 1.0, 1.0, unmatched_baseline="the baseline's 47.9 lies above 32.0") + group("fine", 0.0, 0.0)
    selection = select(pool, RULES)
    assert selection.winner.row.condition == "fine"
    [note] = [row.note for row in selection.rows() if row.condition == "wide"]
    assert note == "its CE-Bench delta is against no matched baseline: the baseline's 47.9 lies above 32.0"
    loose = RULES.model_copy(update={"require_matched_baseline": False})
    assert select(pool, loose).winner.row.condition == "wide"


def test_seed_by_seed_the_best_single_value_wins():
    pool = group("steady", 0.4, 0.4) + group("noisy", 0.3, 0.3, spread=0.3)  # its best seed has 0.6
    seeds = RULES.model_copy(update={"grouping": "seed"})
    assert select(pool, RULES).winner.row.condition == "steady"
    assert select(pool, seeds).winner.row.condition == "noisy_seed2"
    assert select(pool, seeds).winner.representative.seed == 2


def test_weights_may_be_named_and_every_named_set_is_tried():
    named = SelectionParams(weights="probing_first")
    assert named.weights == {"saebench": 0.70, "cebench": 0.25, "train_ev": 0.05}
    with pytest.raises(ValidationError, match="set of weights 'probing' is unknown; the nearest is 'probing_first'"):
        SelectionParams(weights="probing")
    pool = group("a", 1.0, 0.0) + group("b", 0.0, 1.0) + group("c", -1.0, -1.0)  # far down, so that scales are alike
    assert select(pool, RULES.model_copy(update={"weights": named.weights})).winner.row.condition == "a"
    sensitivity = select(pool, RULES).sensitivity
    assert sensitivity["weights probing_first"] == "frontier/a"
    assert "weights balanced" not in sensitivity  # it is the one in use
    assert select(pool, RULES.model_copy(update={"weights": named.weights})).sensitivity["weights balanced"]


def test_members_without_a_known_seed_have_their_place():
    pool = [member("a", None, 0.1, 0.1), member("a", 1, 0.2, 0.2), member("a", 0, 0.3, 0.3)]
    assert [m.seed for m in select(pool, RULES).winner.members] == [0, 1, None]


@given(pools, st.integers(0, 10**6))
@settings(max_examples=examples(1000), deadline=None)
def test_a_wider_interval_never_raises_a_bound(pool, seed):
    """Every value moves away from its group's mean: bounds fall or stay, means and membership stay."""
    pool = [replace(m, l0_matched=True) for m in pool]
    loose = RULES.model_copy(update={"require_both_external": True, "min_seeds": 2})
    first = {g.name: g for g in select(pool, loose).groups}
    means = {g.name: {metric: getattr(g.row, metric) for metric in METRICS} for g in first.values()}
    stretch = 1 + seed % 7

    def stretched(m):
        mean = means[f"{m.source}/{m.condition}"]
        moved = {k: m_ + stretch * (getattr(m, k) - m_) for k, m_ in mean.items() if None not in (m_, getattr(m, k))}
        return replace(m, **moved)

    kept = {m.place for g in first.values() for m in g.members}
    second = select([stretched(m) if m.place in kept else m for m in pool], loose)
    for g in second.groups:
        for metric in METRICS:
            before, after = (getattr(one.row, f"{metric}_low") for one in (first[g.name], g))
            if before is not None:
                assert after <= before + 1e-9


def test_two_seeds_and_single_ones_have_no_selection_probability():
    two = group("a", 1.0, 1.0, spread=0.1, seeds=2) + group("b", 0.9, 0.9, spread=0.1)
    few = RULES.model_copy(update={"min_seeds": 2})
    assert {row.selection_probability for row in select(two, few).rows()} == {None}
    assert sum(row.selection_probability for row in select(two, few.model_copy(update={"mode": "mean"})).rows()) == 1
    alone = RULES.model_copy(update={"grouping": "seed"})
    assert {row.selection_probability for row in select(two, alone).rows()} == {None}
