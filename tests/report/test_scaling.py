"""What the page says of the grid: gains and losses only where they can be told from zero, and one marker a point."""

from typing import Any

import pytest
from synthetic_rows import group, member

from husai_lib.evidence.rows.scaling import EffectRow
from husai_lib.params.scaling import name_of
from husai_lib.report import scaling


def effect(of: str, value: float, half: float | None, metric: str = "saebench_delta", **changes: Any) -> EffectRow:
    bounds = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
    values: dict[str, Any] = {"change": "10 to 30", "n_seeds": 3, "effect": value, **bounds}
    return EffectRow(metric=metric, of=of, **values | changes)


def test_a_gain_and_a_loss_are_named_where_the_interval_excludes_zero() -> None:
    said = scaling.trade_sentence([
        effect("tokens", 0.03, 0.01, "explained_variance"),
        effect("tokens", -0.02, 0.01),
        effect("tokens", 0.5, 0.6, "cebench_delta"),
    ])  # fmt: skip
    assert said == (
        "- **Tokens 10 to 30**: gains in explained variance (+0.030) and losses in SAEBench delta (-0.020); not told "
        "from zero: CE-Bench delta (+0.500). **A trade-off: it gains in one and loses in another.**"
    )


@pytest.mark.parametrize("half", [None, 0.05])
def test_without_a_bound_that_excludes_zero_nothing_is_gained(half: float | None) -> None:
    said = scaling.trade_sentence([effect("d_sae", 0.04, half)])
    assert said == "- **Latents 10 to 30**: not told from zero: SAEBench delta (+0.040)."


def test_two_gains_are_no_trade_off() -> None:
    said = scaling.trade_sentence([effect("layer", 0.04, 0.01), effect("layer", 0.3, 0.1, "pwmcc")])
    assert "trade-off" not in said
    assert "gains in SAEBench delta (+0.040), PW-MCC (+0.300)" in said


def test_the_interaction_that_matters_is_the_clearest_and_not_the_largest() -> None:
    pairs = {"change": "0 to 1; 16 to 32"}
    said = scaling.interaction_sentence([
        effect("layer x d_sae", 0.9, 0.8, "cebench_delta", **pairs),
        effect("layer x d_sae", 0.05, 0.01, **pairs),
        effect("layer x tokens", 0.05, 0.06, **pairs),
    ])  # fmt: skip
    assert said == (
        "2 of 3 interactions can be told from zero. The clearest: the effect of layer 0 to 1 on SAEBench delta is "
        "+0.050 at 32 latents, relative to its effect at 16."
    )


def test_without_a_clear_interaction_the_sentence_says_so() -> None:
    said = scaling.interaction_sentence([effect("tokens x d_sae", 0.05, 0.06, change="10 to 30; 16 to 32")])
    assert said.startswith(
        "**No interaction can be told from zero.** The clearest of them: the effect of tokens 10 to 30"
    )
    assert scaling.interaction_sentence([effect("tokens", 0.1, 0.01)]) == (
        "Fewer than two axes vary, so there is no interaction."
    )


def test_every_point_has_one_marker_in_every_panel_that_has_values() -> None:
    points = [name_of((layer, tokens, 16)) for layer in (0, 1) for tokens in (10, 30)]
    members = [member(name, seed, saebench_delta=0.01 * seed) for name in points for seed in (0, 1)]
    groups = [group(name) for name in points]
    panels = scaling.tradeoff(members, groups).axes
    assert [axes.get_xlabel() for axes in panels] == [
        "Explained variance",
        "PW-MCC across seeds",
        "CE-Bench delta (SD)",
    ]
    for axes in panels:
        assert len(axes.lines) == 4
        assert {float(line.get_ydata()[0]) for line in axes.lines} == {0.005}
    alone = [group(name, pwmcc=None, pwmcc_low=None, pwmcc_high=None) for name in points]
    assert len(scaling.tradeoff(members, alone).axes) == 2
