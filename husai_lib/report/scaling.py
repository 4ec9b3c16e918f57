"""What the grid of layers, token budgets and widths showed: its figure, and the sentences that answer its questions."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from husai_lib.decisions.gates import describe
from husai_lib.evidence.rows.measured import GroupRow, MemberRow
from husai_lib.evidence.rows.scaling import EffectRow
from husai_lib.params.scaling import point_of
from husai_lib.report.cells import escape
from husai_lib.report.figures import STYLES, ReportFigure, framed, legend

WORDS = {"layer": "layer", "tokens": "tokens", "d_sae": "latents"}
"""What the levels of an axis count."""


def trade_sentence(effects: Sequence[EffectRow]) -> str:
    """What each axis gains and loses, metric by metric, as far as its interval excludes zero."""
    return "\n".join(f"- {_trade(axis, effects)}" for axis in WORDS if any(row.of == axis for row in effects))


def _trade(axis: str, effects: Sequence[EffectRow]) -> str:
    own = [row for row in effects if row.of == axis and row.effect is not None]
    up, down = ([row for row in own if _is_sure(row) and sign * (row.effect or 0) > 0] for sign in (1, -1))
    unsure = [row for row in own if not _is_sure(row)]
    levels = f"**{WORDS[axis].capitalize()} {escape(own[0].change)}**" if own else f"**{axis}**"
    said = " and ".join(f"{word} in {_listed(rows)}" for word, rows in (("gains", up), ("losses", down)) if rows)
    rest = f"{'; ' if said else ''}not told from zero: {_listed(unsure)}" if unsure else ""
    opposed = " **A trade-off: it gains in one and loses in another.**" if up and down else ""
    return f"{levels}: {said}{rest}.{opposed}"


def _listed(rows: Sequence[EffectRow]) -> str:
    return ", ".join(f"{describe(row.metric)} ({row.effect:+.3f})" for row in rows)


def _is_sure(row: EffectRow) -> bool:
    return row.low is not None and row.high is not None and (row.low > 0 or row.high < 0)


def interaction_sentence(effects: Sequence[EffectRow]) -> str:
    """Which interaction matters: the one that is largest beside the width of its interval."""
    pairs = [row for row in effects if " x " in row.of and row.effect is not None]
    if not pairs:
        return "Fewer than two axes vary, so there is no interaction."
    sure = [row for row in pairs if _is_sure(row)]
    best = max(sure or pairs, key=_clarity)
    (first, second), (of_first, of_second) = best.of.split(" x "), best.change.split("; ")
    lowest, highest = of_second.split(" to ")
    what = (
        f"the effect of {WORDS[first]} {escape(of_first)} on {describe(best.metric)} is {best.effect:+.3f} at "
        f"{escape(highest)} {WORDS[second]}, relative to its effect at {escape(lowest)}."
    )
    if sure:
        return f"{len(sure)} of {len(pairs)} interactions can be told from zero. The clearest: {what}"
    return f"**No interaction can be told from zero.** The clearest of them: {what}"


def _clarity(row: EffectRow) -> float:
    """An effect in widths of its interval; 0 where it has none."""
    return abs(row.effect or 0) / (row.high - row.low) if row.high is not None and row.low is not None else 0.0


def tradeoff(members: Sequence[MemberRow], groups: Sequence[GroupRow]) -> ReportFigure:
    """Which points do well on benchmarks, and what do they lose? Each panel has SAEBench deltas against another metric.

    Colours are layers, markers widths; hollow points have the smaller token budgets.
    """
    points = {row.condition: point_of(row.condition) for row in groups}
    layers, budgets, widths = (sorted({point[axis] for point in points.values()}) for axis in range(3))
    panels = {
        "Explained variance": _means(members, points, "explained_variance"),
        "PW-MCC across seeds": {row.condition: row.pwmcc for row in groups},
        "CE-Bench delta (SD)": _means(members, points, "cebench_delta"),
    }
    shown = {label: values for label, values in panels.items() if any(value is not None for value in values.values())}
    figure, axes_of = framed(max(9.0, 3.2 * len(shown)), 4.0, len(shown))
    deltas = _means(members, points, "saebench_delta")
    for axes, (label, values) in zip(axes_of, shown.items(), strict=True):
        for name, (layer, tokens, d_sae) in points.items():
            color, marker = STYLES[layers.index(layer)][0], STYLES[widths.index(d_sae)][1]
            look: dict[str, Any] = {} if tokens == budgets[-1] else {"markerfacecolor": "white"}
            what = f"layer {layer}, {tokens:,} tokens, d_sae {d_sae:,}"
            if (x := values[name]) is not None and (y := deltas[name]) is not None:
                axes.plot(x, y, marker, color=color, label=what, linestyle="none", **look)
        axes.set_xlabel(label)
        axes.margins(0.15)
        axes.tick_params(labelleft=axes is axes_of[0])
    axes_of[0].set_ylabel("SAEBench delta (AUC)")
    legend(figure, axes_of[0])
    return figure


def _means(members: Sequence[MemberRow], conditions: Iterable[str], column: str) -> dict[str, float | None]:
    """The mean over seeds of each point; None where a value is missing."""
    groups = {name: [getattr(row, column) for row in members if row.condition == name] for name in conditions}
    return {name: None if None in values else fmean(values) for name, values in groups.items()}
