"""Ranking: scaled metrics, the front and the winner from arrays, by hand and by properties."""

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from husai_lib.decisions.selection import minmax, rank
from husai_lib.params.rules import SelectionParams

TODAY, THEN, RANKS = SelectionParams(), SelectionParams(rules="2026-02"), SelectionParams(scaling="rank")
assert TODAY.weights == {"saebench": 0.5, "cebench": 0.5, "train_ev": 0.1}
MISSING = -np.inf


def test_joint_score_by_hand():
    # saebench 0, 1, 0.5 -> 0, 1, 0.5; cebench 4, 0, 1 -> 1, 0, 0.25; variance 0.5, 0.5, 1 -> 0, 0, 1
    scores = np.array([[0.0, 4.0, 0.5], [1.0, 0.0, 0.5], [0.5, 1.0, 1.0]])
    ranking = rank(scores, TODAY)
    assert ranking.components.tolist() == [[0, 1, 0], [1, 0, 0], [0.5, 0.25, 1]]
    assert ranking.joint == pytest.approx([0.5, 0.5, 0.25 + 0.125 + 0.1])
    assert ranking.front.all()
    assert ranking.winner == 0  # of the tie, the first


def test_scores_by_rank_count_the_groups_of_the_front_that_are_exceeded():
    # The front is 0, 1 and 2; 3 is behind 1. Of the two others on the front 0 exceeds none in saebench and both in
    # cebench, 1 exceeds one in each, 2 exceeds both and none; 3 exceeds 0 in saebench and 2 in cebench.
    scores = np.array([[0.0, 9.0, 0.1], [1.0, 8.0, 0.1], [2.0, 0.0, 0.1], [0.5, 7.0, 0.9]])
    ranking = rank(scores, RANKS)
    assert ranking.front.tolist() == [True, True, True, False]
    assert ranking.components.tolist() == [[0, 1, 0], [0.5, 0.5, 0], [1, 0, 0], [0.5, 0.5, 1.5]]


def test_a_front_of_one_has_ranks_of_zero():
    ranking = rank(np.array([[1.0, 1.0, 0.5], [0.0, 0.0, 0.5]]), RANKS)
    assert ranking.components.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert ranking.winner == 0


def test_a_metric_on_which_all_agree_adds_nothing_today_even_with_rounding_and_a_half_then():
    scores = np.array([[0.0, 0.3, 0.9], [1.0, 0.1 + 0.2, 0.9]])  # 0.1 + 0.2 = 0.30000000000000004
    assert minmax(scores, TODAY).tolist() == [[0, 0, 0], [1, 0, 0]]
    assert minmax(scores, THEN).tolist() == [[0, 0, 0.5], [1, 1, 0.5]]


def test_a_missing_metric_adds_nothing_and_is_dominated_today_but_not_then():
    scores = np.array([[1.0, MISSING, 0.5], [1.0, 0.0, 0.0], [0.5, 0.5, MISSING]])
    assert minmax(scores, TODAY)[0].tolist() == [1, 0, 1]
    assert minmax(scores, TODAY)[2].tolist() == [0, 1, 0]
    assert rank(scores, TODAY).front.tolist() == [False, True, True]
    assert rank(scores, THEN).front.tolist() == [True, True, True]


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-10, 10))
@settings(deadline=None)
def test_units_of_a_metric_do_not_matter(seed, factor, shift):
    scores = np.random.default_rng(seed).normal(size=(5, 3))
    changed = scores * [1, factor, 1] + [0, shift, 0]
    for rules in (TODAY, RANKS):
        joint = rank(scores, rules).joint
        assert rank(changed, rules).joint == pytest.approx(joint, abs=1e-9)
    assert minmax(scores, TODAY).min() == 0
    assert minmax(scores, TODAY).max() == 1


values = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, MISSING]), st.floats(-5, 5))
tables = st.lists(st.tuples(values, values, values), min_size=1, max_size=9).map(np.array)


@given(tables, st.integers(0, 8), st.lists(st.floats(0, 3), min_size=3, max_size=3), st.sampled_from([RANKS, TODAY]))
@settings(max_examples=examples(2000), deadline=None)
def test_a_dominated_group_changes_no_front_and_by_ranks_no_winner(scores, which, below, rules):
    by = scores[which % len(scores)]
    front = rank(scores, rules)
    if not front.front[which % len(scores)]:
        return
    worse = by - np.array([below[0] + 1e-3, below[1], 0]) + np.array([0, 0, below[2]])  # however good its third metric
    more = rank(np.vstack([scores, worse]), rules)
    if np.isfinite(by[0]):
        assert more.front.tolist() == [*front.front.tolist(), False]
        if rules is RANKS:
            assert more.winner == front.winner
            assert more.components[:-1].tolist() == front.components.tolist()


@given(tables)
@settings(max_examples=examples(500), deadline=None)
def test_a_stack_of_tables_is_ranked_as_each_alone(scores):
    stack = np.stack([scores, scores[::-1]])
    for rules in (TODAY, THEN, RANKS):
        together = rank(stack, rules)
        for i, one in enumerate(stack):
            alone = rank(one, rules)
            assert together.joint[i].tolist() == alone.joint.tolist()
            assert together.front[i].tolist() == alone.front.tolist()
            assert together.winner[i] == alone.winner
