"""What pages say and draw of a sweep of the consistency objective, from rows made by hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from synthetic_rows import known_truth, member, sweep, swept, truth

from husai_lib.evidence.rows.consistency import SweepRow
from husai_lib.report import consistency, tables
from husai_lib.report.figures import ReportFigure

PLAIN = swept(0.0, pwmcc=0.4, pwmcc_low=0.35, pwmcc_high=0.45)


def answer(**changes: Any) -> str:
    """What is said of a weight of 0.3, at which seeds of one reference agree with 0.8."""
    return consistency.answer_sentence([PLAIN, swept(0.3, **{"pwmcc_within": 0.8, "ev_drop": 0.02} | changes)])


# Stable, or copied?


def test_features_are_only_copied_where_unrelated_seeds_agree_no_more() -> None:
    assert answer(pwmcc=0.39, pwmcc_low=0.34, pwmcc_high=0.44) == (
        "**topk: only copied.** At no weight do unrelated seeds exceed their PW-MCC without it, 0.400. At lambda = "
        "0.3, seeds of one reference agree with 0.800 and unrelated ones with 0.390: **the difference was copied**."
    )


@pytest.mark.parametrize(
    ("low", "word"), [(0.4501, ("more stable", "")), (0.4499, ("more alike", ", but the intervals overlap"))]
)
def test_features_are_stable_only_where_the_bounds_of_unrelated_seeds_say_so(low: float, word: tuple[str, str]) -> None:
    said = answer(pwmcc=0.7, pwmcc_low=low, pwmcc_high=0.8)
    assert said.startswith(
        f"**topk: {word[0]} at lambda = 0.3{word[1]}.** There, unrelated seeds agree with PW-MCC 0.700; without the "
        "objective it is 0.400. Explained variance changes by -0.020."
    )


def test_with_two_references_nothing_is_called_stable_and_the_missing_bound_is_said() -> None:
    said = answer(pwmcc=0.79, pwmcc_low=None, pwmcc_high=None)
    assert said.startswith(
        "**topk: more alike at lambda = 0.3, but there are too few unrelated seeds for an interval.**"
    )


def test_seeds_of_one_reference_are_copies_at_best_however_alike_they_are() -> None:
    said = answer(pwmcc=None, pwmcc_low=None, pwmcc_high=None, pwmcc_within=0.999)
    assert said == (
        "**topk: copied at best.** All seeds have one reference, so none are unrelated, and nothing shows that another "
        "reference would give the same features."
    )


@pytest.mark.parametrize("within", [0.4, 0.35])
def test_where_neither_related_nor_unrelated_seeds_agree_more_nothing_was_stabilised(within: float) -> None:
    said = answer(pwmcc=0.36, pwmcc_low=0.3, pwmcc_high=0.42, pwmcc_within=within)
    assert said.startswith("**topk: not stabilised.**")
    assert said.endswith("copied**.") == (within > 0.36)


def test_with_a_reference_for_every_seed_there_are_no_copies_to_speak_of() -> None:
    said = answer(pwmcc=0.7, pwmcc_low=0.6, pwmcc_high=0.8, pwmcc_within=None)
    assert said.startswith("**topk: more stable at lambda = 0.3.**")
    assert said.endswith("No two seeds have one reference.")


def test_the_weight_at_which_unrelated_seeds_agree_most_comes_before_that_of_the_copies() -> None:
    rows = [PLAIN, swept(0.1, pwmcc_within=0.7, pwmcc=0.5), swept(1.0, pwmcc_within=0.9, pwmcc=0.3)]
    said = consistency.answer_sentence(rows)
    assert (
        said.index("at lambda = 0.1, but the intervals overlap.** There, unrelated seeds agree with PW-MCC 0.500") > 0
    )
    assert said.endswith(
        "At lambda = 1, seeds of one reference agree with 0.900 and unrelated ones with 0.300: "
        "**the difference was copied**."
    )


def test_each_condition_has_a_paragraph_of_its_own() -> None:
    rows = [PLAIN, swept(0.3), swept(0.0, "wide_lambda_0"), swept(0.3, "wide_lambda_0")]
    first, second = consistency.answer_sentence(rows).split("\n\n")
    assert first.startswith("**topk: ")
    assert second.startswith("**wide: ")


def test_names_of_conditions_are_escaped() -> None:
    rows = [row.model_copy(update={"base": "a*b_lambda_0"}) for row in (PLAIN, swept(0.3))]
    assert consistency.answer_sentence(rows).startswith("**a\\*b: ")


# Acceptance


def test_the_best_of_the_accepted_weights_is_named() -> None:
    rows = [swept(0.0), swept(0.1, delta_lcb=0.2), swept(0.3, delta_lcb=0.9, accepted=False)]
    assert consistency.acceptance_sentence(rows) == (
        "1 of 2 weights is accepted. The largest conservative delta among them has **topk_lambda_0_1**."
    )


def test_where_no_weight_is_accepted_the_gates_that_the_best_fails_are_named() -> None:
    gates = {"gate_delta_lcb": "missing", "gate_external": "fail", "gate_ev_drop": "pass", "accepted": False}
    said = consistency.acceptance_sentence(
        [swept(0.0, delta_lcb=0.9), swept(0.1, delta_lcb=0.1, **gates), swept(0.3, delta_lcb=0.2, **gates)]
    )
    assert said.startswith(
        "**0 of 2 weights are accepted.** The best by its conservative delta, topk_lambda_0_3, fails at: "
        "agreement by its lower bound, SAEBench."
    )


def test_one_accepted_weight_is_said_in_the_singular() -> None:
    rows = [swept(0.0), swept(0.1, accepted=False), swept(0.3)]
    assert consistency.acceptance_sentence(rows).startswith("1 of 2 weights is accepted.")


def test_the_table_says_of_each_weight_whether_it_is_accepted_or_which_gates_it_fails() -> None:
    missed = swept(0.3, gate_ev_drop="fail", gate_delta_lcb="missing", accepted=False)
    plain, first, second = tables.table_of([swept(0.0), swept(0.1), missed]).splitlines()[2:]
    assert "| for comparison |" in plain
    assert "| accepted |" in first
    assert "not accepted" in second
    assert "agreement by its lower bound (missing), explained variance (fail)" in second.replace("\\", "")


def test_the_table_leaves_a_cell_empty_where_nothing_is_missing_and_shows_a_zero() -> None:
    plain, zero = tables.table_of([swept(0.0), swept(0.3, pwmcc_within=0.0, alignment=0.0)]).splitlines()[2:]
    assert [cell.strip() for cell in plain.strip("|").split("|")][3:5] == ["", ""]
    assert [cell.strip() for cell in zero.strip("|").split("|")][3:5] == ["0.000", "0.000"]


# Known truth


def test_agreement_that_rises_while_recovery_falls_is_said_with_its_weights() -> None:
    said = consistency.truth_sentence(known_truth())
    assert said.startswith(
        "Recovery of the true features is 0.600 without the objective and highest, 0.650 at lambda = 0.1. At "
        "lambda = 0.3, seeds of one reference agree with PW-MCC 0.800 and unrelated seeds with 0.500"
    )
    assert "**Agreement within a reference rose while recovery fell at lambda = 0.3**" in said


def test_agreement_that_rises_with_recovery_is_not_held_against_the_objective() -> None:
    said = consistency.truth_sentence([truth(0.3, recovery=0.7), truth(0.0), truth(0.1, recovery=0.6)])
    assert said.endswith("At no weight did agreement rise without recovery.")
    fallen = consistency.truth_sentence([truth(0.0), truth(0.3, recovery=0.5, pwmcc_within=0.4)])
    assert fallen.endswith("At no weight did agreement rise without recovery.")  # agreement fell, too


# Figures

MEMBERS = [member(row.condition, seed, saebench_delta=0.01 * seed) for row in sweep() for seed in range(3)]


def cost(rows: list[SweepRow]) -> ReportFigure:
    return consistency.cost(rows, MEMBERS if rows else [])


ALL: list[tuple[Callable[[Any], ReportFigure], list[Any]]] = [
    (consistency.tradeoff, sweep()), (cost, sweep()), (consistency.truth, known_truth()),
]  # fmt: skip
EACH = pytest.mark.parametrize(("draw", "rows"), ALL, ids=["tradeoff", "cost", "truth"])


@EACH
def test_the_same_rows_give_the_same_bytes(draw: Callable[[Any], ReportFigure], rows: list[Any]) -> None:
    assert draw(rows).png() == draw(rows).png()


@EACH
def test_every_axis_is_labelled(draw: Callable[[Any], ReportFigure], rows: list[Any]) -> None:
    for axes in draw(rows).axes:
        assert axes.get_xlabel()
    assert draw(rows).axes[0].get_ylabel() or [label.get_text() for label in draw(rows).axes[0].get_yticklabels()]


@EACH
def test_no_rows_still_make_a_figure(draw: Callable[[Any], ReportFigure], rows: list[Any]) -> None:
    assert Image.open(io.BytesIO(draw([]).png())).size[0] > 100


def lines_of(figure: ReportFigure) -> dict[str, Any]:
    """The lines that have an entry in the legend, by it."""
    return {str(line.get_label()): line for line in figure.axes[0].lines if not str(line.get_label()).startswith("_")}


def test_the_tradeoff_has_a_line_for_unrelated_and_a_dashed_one_for_related_seeds_of_each_condition() -> None:
    lines = lines_of(consistency.tradeoff(sweep()))
    assert [*lines] == [
        "topk, unrelated seeds", "topk, seeds of one reference", "standard, unrelated seeds",
        "standard, seeds of one reference",
    ]  # fmt: skip
    np.testing.assert_allclose(lines["topk, unrelated seeds"].get_xydata(), [[0.72, 0.5], [0.71, 0.52], [0.6, 0.5]])
    np.testing.assert_allclose(lines["topk, seeds of one reference"].get_xydata(), [[0.71, 0.6], [0.6, 0.8]])
    assert lines["topk, seeds of one reference"].get_linestyle() == "--"
    assert lines["topk, seeds of one reference"].get_markerfacecolor() == "white"  # so that they differ in grey too
    assert lines["topk, unrelated seeds"].get_marker() != lines["standard, unrelated seeds"].get_marker()


def test_the_tradeoff_draws_the_interval_of_unrelated_seeds_where_there_is_one() -> None:
    axes = consistency.tradeoff(sweep()).axes[0]
    drawn = [bar.lines[2][0].get_segments()[0][:, 1].tolist() for bar in axes.containers]  # type: ignore[attr-defined]
    np.testing.assert_allclose(drawn, [[0.45, 0.55], [0.47, 0.57], [0.45, 0.55]])  # standard has none


def test_every_point_of_the_tradeoff_names_its_weight() -> None:
    texts = [text.get_text() for text in consistency.tradeoff(sweep()[:3]).axes[0].texts]
    assert texts == ["λ = 0", "λ = 0.1", "λ = 0.3"]


def test_a_sweep_of_one_reference_has_a_line_of_related_seeds_alone() -> None:
    none = {"pwmcc": None, "pwmcc_low": None, "pwmcc_high": None}
    lines = lines_of(consistency.tradeoff([swept(0.0), swept(0.1, **none), swept(0.3, **none)]))
    assert lines["topk, unrelated seeds"].get_xydata().tolist() == [[0.72, 0.5]]
    assert len(lines["topk, seeds of one reference"].get_xydata()) == 2


def test_the_cost_shows_both_deltas_at_every_weight_with_the_t_interval_of_its_seeds() -> None:
    rows = [swept(0.0), swept(0.1)]
    deltas = {"topk_lambda_0": [0.0, 0.01, 0.05], "topk_lambda_0_1": [0.1, 0.12, 0.11]}
    members = [
        member(name, seed, saebench_delta=value) for name, own in deltas.items() for seed, value in enumerate(own)
    ]
    figure = consistency.cost(rows, members)
    assert [axes.get_xlabel() for axes in figure.axes] == ["SAEBench delta (AUC)", "CE-Bench delta (SD)"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["topk, λ = 0", "topk, λ = 0.1"]
    for bar, own in zip(figure.axes[0].containers, deltas.values(), strict=True):
        (low, _), (high, _) = bar.lines[2][0].get_segments()[0]  # type: ignore[attr-defined]
        half = stats.t.ppf(0.975, 2) * stats.sem(own)
        assert (low, high) == (pytest.approx(np.mean(own) - half), pytest.approx(np.mean(own) + half))


def test_known_truth_has_a_line_for_each_quantity_over_the_weights_in_order() -> None:
    figure = consistency.truth(known_truth()[::-1])
    lines = lines_of(figure)
    assert lines["recovery of the true features"].get_xydata().tolist() == [[0, 0.6], [1, 0.65], [2, 0.55]]
    assert lines["PW-MCC, seeds of one reference"].get_xydata().tolist() == [[1, 0.6], [2, 0.8]]
    assert lines["functional agreement, unrelated seeds"].get_ydata().tolist() == [0.4] * 3
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "0.1", "0.3"]
    assert len({line.get_marker() for line in lines.values()}) == len(lines) == 5
