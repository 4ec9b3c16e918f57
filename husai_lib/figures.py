"""Records in, matplotlib figures out: one message each, every seed a point beside its 95 % interval.

Colours are Okabe and Ito's, and every colour comes with a marker, so figures read in grey too. Nothing
here touches pyplot: a figure depends on its rows only.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from husai_lib.intervals import mean_interval
from husai_lib.params import ARCHITECTURES
from husai_lib.records import CandidateRow, ControlRow, GroupRow, MemberRow, OodRow

STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"),
          ("#E69F00", "v"), ("#56B4E9", "P"), ("#000000", "X"))  # fmt: skip
GREY = "#595959"


class ReportFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        return buffer.getvalue()


def frontier(members: Sequence[MemberRow]) -> ReportFigure:
    """Explained variance against L0, a point for each SAE; vertical lines mark the target k."""
    figure, (axes,) = _panels(6.4, 4.2)
    for architecture in _unique(row.architecture for row in members):
        rows = [row for row in members if row.architecture == architecture]
        x, y = [row.l0 for row in rows], [row.explained_variance for row in rows]
        axes.scatter(x, y, label=architecture, s=38, alpha=0.85, **_style(architecture, members))
    for k in sorted({row.k for row in members}):
        axes.axvline(k, color=GREY, linestyle="--", linewidth=1)
        at = ("data", "axes fraction")
        axes.annotate(f"target k = {k}", (k, 1.01), xycoords=at, ha="center", color=GREY, fontsize=9)
    extent = [value for row in members for value in (row.l0, row.k) if value > 0]
    if extent and max(extent) > 5 * min(extent):
        axes.set_xscale("log")
    axes.set_xlabel("L0 (mean active latents a held-out row)")
    axes.set_ylabel("Explained variance (held out)")
    _legend(figure, axes)
    return figure


def stability(groups: Sequence[GroupRow]) -> ReportFigure:
    """PW-MCC of each condition with its 95 % interval, beside the random and the Gaussian null."""
    figure, (axes,) = _panels(6.4, _height(len(groups)))
    for y, row in enumerate(groups):
        _interval(axes, y, row.pwmcc, row.pwmcc_low, row.pwmcc_high, color=STYLES[0][0], marker="o")
    heights = range(len(groups))
    _key(axes, "PW-MCC, 95 % interval", color=STYLES[0][0], marker="o")
    axes.scatter([row.null_gaussian for row in groups], heights, color=STYLES[1][0], marker="s",
                 facecolors="none", label="Gaussian activations (null)", zorder=3)  # fmt: skip
    axes.scatter([row.null_random for row in groups], heights, color=GREY, marker="x",
                 label="random decoders (null)", zorder=3)  # fmt: skip
    bounds = [bound for row in groups for bound in (row.pwmcc_low, row.pwmcc_high) if bound is not None]
    axes.set_xlim(min([0, *bounds]), max([1.02, *bounds]))
    axes.set_xlabel("PW-MCC across seeds (mean |cosine| of matched decoder rows)")
    _categories(axes, [row.condition for row in groups])
    _legend(figure, axes)
    return figure


def external(members: Sequence[MemberRow]) -> ReportFigure:
    """SAEBench and CE-Bench deltas of each condition: every seed, and the mean with its 95 % interval."""
    conditions = _unique(row.condition for row in members)
    figure, panels = _panels(8.4, _height(len(conditions)), columns=2)
    labels = {
        "saebench_delta": "SAEBench delta (test AUC minus raw activation's)",
        "cebench_delta": "CE-Bench delta (SD, minus matched baseline)",
    }
    for axes, (attribute, label) in zip(panels, labels.items(), strict=True):
        axes.axvline(0, color=GREY, linewidth=1)
        for y, condition in enumerate(conditions):
            rows = [row for row in members if row.condition == condition]
            values = [value for row in rows if (value := getattr(row, attribute)) is not None]
            _seeds_and_mean(axes, y, values, _style(rows[0].architecture, members))
        axes.set_xlabel(label)
        _categories(axes, conditions)
    panels[1].tick_params(labelleft=False)
    _key(panels[0], "one seed", color=GREY, marker="o", markersize=4)
    _key(panels[0], "mean, 95 % interval", color=GREY, marker="o")
    _legend(figure, panels[0])
    return figure


def pareto(candidates: Sequence[CandidateRow]) -> ReportFigure:
    """Groups by their external deltas, with arms down to the lower 95 % bounds; the front and the choice marked."""
    figure, (axes,) = _panels(6.4, 4.4)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axhline(0, color=GREY, linewidth=1)
    shown = [row for row in candidates if row.saebench_delta is not None and row.cebench_delta is not None]
    for row in shown:
        x, y = row.saebench_delta, row.cebench_delta
        x_low, y_low = row.saebench_delta_low, row.cebench_delta_low
        assert x is not None
        assert y is not None
        style = _style(row.architecture, candidates)
        face = style["color"] if row.on_front else "none"
        x_arm = None if x_low is None else [[x - x_low], [0.0]]
        y_arm = None if y_low is None else [[y - y_low], [0.0]]
        axes.errorbar(x, y, yerr=y_arm, xerr=x_arm, elinewidth=1, markerfacecolor=face, **style)
        axes.annotate(row.condition, (x, y), (8, 6), textcoords="offset points", fontsize=9, parse_math=False)
        if row.selected:
            axes.scatter(x, y, s=240, facecolors="none", edgecolors="black", linewidths=1.4, label="selected")
    _key(axes, "on the Pareto front", color=GREY, marker="o")
    _key(axes, "behind it or dropped", color=GREY, marker="o", markerfacecolor="none")
    axes.set_xlabel("SAEBench delta (AUC; arm: lower 95 % bound)")
    axes.set_ylabel("CE-Bench delta (SD; arm: lower 95 % bound)")
    axes.margins(0.12)
    _legend(figure, axes)
    return figure


def controls(rows: Sequence[ControlRow], threshold: float = 0.0) -> ReportFigure:
    """Delta of each PW-MCC control with its 95 % interval, beside the threshold it must exceed.

    The out-of-distribution control is in AUC, not PW-MCC; `ood` shows it.
    """
    rows = [row for row in rows if row.control != "ood"]
    figure, (axes,) = _panels(6.4, _height(len(rows)))
    axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
    for y, row in enumerate(rows):
        if row.delta is None:
            axes.annotate("missing", (threshold, y), (6, -3), textcoords="offset points", fontsize=9)
        else:
            _interval(axes, y, row.delta, row.delta_low, row.delta_high, color=STYLES[0][0], marker="o")
    _key(axes, "delta, 95 % interval", color=STYLES[0][0], marker="o")
    axes.set_xlabel("Delta of PW-MCC between candidate and control")
    _categories(axes, [row.control.replace("_", " ") for row in rows])
    _legend(figure, axes)
    return figure


def ood(rows: Sequence[OodRow]) -> ReportFigure:
    """Each task's probing delta in domain and on its shifted set: every seed, and the means joined by a line."""
    tasks = _unique(row.task for row in rows)
    figure, (axes,) = _panels(7.4, _height(len(tasks)))
    axes.axvline(0, color=GREY, linewidth=1)
    for y, task in enumerate(tasks):
        own = [row for row in rows if row.task == task]
        ends = []
        for side, (color, marker) in zip(("in_domain", "shifted"), STYLES, strict=False):
            values = [getattr(row, f"{side}_auc") - getattr(row, f"{side}_llm_auc") for row in own]
            axes.scatter(values, [y + 0.16] * len(values), s=12, color=color, marker=marker, alpha=0.7)
            ends.append(sum(values) / len(values))
            axes.scatter(ends[-1], y, s=55, color=color, marker=marker, zorder=3)
        axes.plot(ends, [y, y], color=GREY, linewidth=1.5, zorder=2)
    for name, (color, marker) in zip(("in domain", "shifted"), STYLES, strict=False):
        _key(axes, f"{name}: mean (large), seeds (small)", color=color, marker=marker)
    axes.set_xlabel("Probing delta (test AUC minus raw activation's)")
    _categories(axes, tasks)
    _legend(figure, axes)
    return figure


# ---------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------


def _panels(width: float, height: float, columns: int = 1) -> tuple[ReportFigure, list[Axes]]:
    """An empty figure (inches) with its panels side by side, framed left and below only."""
    figure = ReportFigure(figsize=(width, height), layout="constrained", facecolor="white")
    panels = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e2e2e2", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def _height(categories: int) -> float:
    return 1.5 + 0.42 * max(categories, 1)


def _style(architecture: str, rows: Sequence[MemberRow | CandidateRow]) -> dict[str, Any]:
    """Colour and marker of an architecture, the same in every figure of a cycle."""
    order = [*ARCHITECTURES, *sorted({row.architecture for row in rows} - set(ARCHITECTURES))]
    color, marker = STYLES[order.index(architecture) % len(STYLES)]
    return {"color": color, "marker": marker}


def _interval(axes: Axes, y: float, mean: float, low: float | None, high: float | None, **style: Any) -> None:
    arms = [[mean - low], [high - mean]] if low is not None and high is not None else None
    axes.errorbar(mean, y, xerr=arms, capsize=3, linewidth=1.4, zorder=3, **style)


def _seeds_and_mean(axes: Axes, y: float, values: list[float], style: dict[str, Any]) -> None:
    if not values:
        axes.annotate("n/a", (0.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=GREY)
        return
    axes.scatter(values, [y + 0.18] * len(values), s=14, alpha=0.75, **style)
    interval = mean_interval(values, method="t")
    _interval(axes, y, interval.mean, interval.low, interval.high, **style)


def _categories(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a horizontal plot, first on top; names are literal, `$` included, and cut if long."""
    shown = [name if len(name) <= 36 else f"{name[:35]}…" for name in names]
    axes.set_yticks(range(len(shown)), labels=shown, parse_math=False)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _key(axes: Axes, label: str, **style: Any) -> None:
    axes.plot([], [], linestyle="none", label=label, **style)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 4 if len(labels) == 4 else 3
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
