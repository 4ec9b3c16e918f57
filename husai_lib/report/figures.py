"""Records in, matplotlib figures out: one message each, every seed a point beside its 95 % interval.

Colours are those of Okabe and Ito, each with a marker, so that figures are readable in grey. Figures do without pyplot
and depend only on their rows: the same rows give the same bytes.
"""

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

from husai_lib.decisions import gates
from husai_lib.evidence.rows.base import EARLIER_BASELINE, MATCHED_WITHIN, ceiling
from husai_lib.evidence.rows.controls import CHANCE, ControlRow, OodRow
from husai_lib.evidence.rows.decided import CandidateRow
from husai_lib.evidence.rows.measured import ContrastiveRow, GroupRow, MemberRow
from husai_lib.evidence.rows.probes import ProbeRow
from husai_lib.intervals import mean_interval, means_by

STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"),
          ("#E69F00", "v"), ("#56B4E9", "P"), ("#000000", "X"), ("#0072B2", "*"), ("#D55E00", "<"),
          ("#009E73", "p"), ("#CC79A7", ">"), ("#E69F00", "d"), ("#56B4E9", "H"))  # fmt: skip
"""Colour and marker; the markers of a colour differ."""
GREY = "#595959"
SEEDS = "mean, 95 % over seeds; small: one seed"


class ReportFigure(Figure):
    """A figure that a notebook shows without pyplot; it is drawn once, when its image is first needed."""

    @cached_property
    def _image(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=130, metadata={"Software": None})  # without the version of matplotlib
        return buffer.getvalue()

    def png(self) -> bytes:
        """The image."""
        return self._image

    _repr_png_ = png


class Dot(NamedTuple):
    """One estimate in a dot plot."""

    mean: float | None
    """None where there is no result."""
    low: float | None = None
    high: float | None = None
    """95 % interval; None where there is none."""
    seeds: Sequence[float] = ()
    """The values it is the mean of, as small points."""


def frontier(members: Sequence[MemberRow]) -> ReportFigure:
    """Explained variance against L0, one point per SAE; a dashed line marks the target k, a band what matches it.

    SAEs whose L0 is not matched are hollow. The legend lists conditions by their mean explained variance, best first.
    """
    figure, (axes,) = framed(8.0, 4.4)
    styles = _styles(row.condition for row in members)
    means = means_by((row.condition, row.explained_variance) for row in members)
    for condition, matched in itertools.product(sorted(means, key=means.__getitem__, reverse=True), (False, True)):
        color, marker = styles[condition]
        rows = [row for row in members if (row.condition, row.l0_matched) == (condition, matched)]
        look: dict[str, Any] = {"edgecolors": color, "facecolors": color if matched else "none", "alpha": 0.85}
        if rows:
            x, y = [row.l0 for row in rows], [row.explained_variance for row in rows]
            axes.scatter(x, y, label=condition, marker=marker, s=56, zorder=3, **look)
    for k in sorted({row.k for row in members}):
        low, high = k * (1 - MATCHED_WITHIN), k * (1 + MATCHED_WITHIN)
        label = f"within {100 * MATCHED_WITHIN:g} % of k (else hollow)"
        axes.axvspan(low, high, color="#f0f0f0", zorder=0, label=label)
        axes.axvline(k, color=GREY, linestyle="--", linewidth=1)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": "center"}
        axes.annotate(f"target k = {k}", (k, 1.01), color=GREY, fontsize=9, **place)
    extent = [value for row in members for value in (row.l0, row.k) if value > 0]
    if extent and max(extent) > 10 * min(extent):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.set_xlabel("L0 (mean active latents per held-out row)")
    axes.set_ylabel("Explained variance (held out)")
    legend(figure, axes, beside=True)
    return figure


def pareto(candidates: Sequence[CandidateRow]) -> ReportFigure:
    """Groups by their external deltas, with lines to the lower 95 % bounds; front and selected group are marked.

    Of more groups than there are styles, only those on the front have a colour and a line in the legend of their own.
    """
    figure, (axes,) = framed(8.6, 4.2)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axhline(0, color=GREY, linewidth=1)
    many = len(candidates) > len(STYLES)
    styles = _styles(row.condition for row in candidates if row.on_front or not many)
    for row in sorted(candidates, key=lambda row: not row.on_front):
        x, y, x_low, y_low = row.saebench_delta, row.cebench_delta, row.saebench_delta_low, row.cebench_delta_low
        if x is None or y is None:
            continue
        color, marker = styles.get(row.condition, (GREY, "o"))
        axes.plot([x if x_low is None else x_low, x], [y, y], color=color, linewidth=1)
        axes.plot([x, x], [y if y_low is None else y_low, y], color=color, linewidth=1)
        standing = "on the front" if row.on_front else "dropped" if row.joint_score is None else "behind the front"
        look: dict[str, Any] = {"edgecolors": color, "facecolors": color if row.on_front else "none"}
        label = f"{row.condition} ({standing})" if row.condition in styles else standing
        axes.scatter(x, y, label=label, marker=marker, s=40, zorder=3, **look)
        if row.selected:
            axes.scatter(x, y, s=240, facecolors="none", edgecolors="black", linewidths=1.4, label="selected")
    axes.set_xlabel("SAEBench delta (AUC; line: to the lower 95 % bound)")
    axes.set_ylabel("CE-Bench delta (SD; line: to the lower 95 % bound)")
    axes.margins(0.12)
    legend(figure, axes, beside=True)
    return figure


def stability(groups: Sequence[GroupRow]) -> ReportFigure:
    """PW-MCC of each condition with its 95 % interval, beside the random and the Gaussian null."""
    dots = {
        "PW-MCC, 95 % interval": {row.condition: Dot(row.pwmcc, row.pwmcc_low, row.pwmcc_high) for row in groups},
        "Gaussian activations (null)": {row.condition: Dot(row.null_gaussian) for row in groups},
        "random decoders (null)": {row.condition: Dot(row.null_random) for row in groups},
    }
    return dot_plot({"PW-MCC across seeds (mean |cosine| of matched decoder rows)": dots})


def external(members: Sequence[MemberRow], groups: Sequence[GroupRow]) -> ReportFigure:
    """SAEBench and CE-Bench deltas of each condition: every seed, and the mean with its 95 % interval.

    The SAEBench delta has a second interval, over seeds and data sets.
    """
    panels = delta_panels([(row.condition, row) for row in members])
    sets = {row.condition: Dot(row.saebench_delta, row.saebench_low, row.saebench_high) for row in groups}
    panels["SAEBench delta (AUC)"]["95 % over seeds and data sets"] = sets
    return dot_plot(panels)


def duplicates(probes: Sequence[ProbeRow]) -> ReportFigure:
    """Probing deltas by data set with duplicate prompts and without: means over conditions, each a small point."""
    forms = {"duplicates kept, as published": "keep", "without duplicates": "drop"}
    names = dict.fromkeys(probe.data_set for probe in probes)
    panel = {}
    for label, form in forms.items():
        means = means_by(
            ((probe.data_set, probe.condition), probe.delta) for probe in probes if probe.duplicates == form
        )
        own = {name: [mean for (data_set, _), mean in means.items() if data_set == name] for name in names}
        panel[label] = {name: Dot(fmean(deltas), seeds=deltas) for name, deltas in own.items()}
    return dot_plot({"Probing delta (AUC; large: mean, small: one condition)": panel})


def confirmation(selected: Sequence[MemberRow], fresh: Sequence[MemberRow]) -> ReportFigure:
    """The external deltas of one condition at the seeds it was selected by and at fresh ones, a panel for each."""
    named = [*(("seeds of the selection", row) for row in selected), *(("fresh seeds", row) for row in fresh)]
    calibrated = seed_means((name, row.cebench_calibrated_delta) for name, row in named)
    return dot_plot({**delta_panels(named), "calibrated delta (SD of null)": {SEEDS: calibrated}})


def widths(rows: Sequence[ContrastiveRow]) -> ReportFigure:
    """CE-Bench interpretability against width, one panel per form and one line per k; random SAEs hollow and dashed.

    The plain forms are shown with the ceiling of each width and with the baseline of earlier cycles.
    """
    figure, panels = framed(10.0, 4.2, 3)
    forms = {"As published": "interpretability", "As released": "interpretability_as_released"}
    for axes, (form, column) in zip(panels, forms.items(), strict=False):
        _lines_over_width(axes, rows, column)
        _bounds_over_width(axes, sorted({row.d_sae for row in rows}))
        axes.set_title(f"{form} (SD over latents)", fontsize=10, loc="left")
    _lines_over_width(panels[2], rows, "calibrated")
    panels[2].axhline(0, color=GREY, linewidth=1)
    panels[2].set_title("Calibrated (SD of the null)", fontsize=10, loc="left")
    panels[0].sharey(panels[1])
    panels[0].set_ylabel("CE-Bench interpretability")
    legend(figure, panels[0])
    return figure


def controls(rows: Sequence[ControlRow]) -> ReportFigure:
    """Delta of each PW-MCC control with its interval over seeds, beside zero; `ood` shows those about probes."""
    shown = {gates.describe(row.control): row for row in rows if row.metric == "pwmcc"}
    dots = {name: Dot(row.delta, row.delta_low, row.delta_high) for name, row in shown.items()}
    return dot_plot({"PW-MCC of the candidate minus that of the control": {"delta, interval over seeds": dots}})


def ood(rows: Sequence[OodRow]) -> ReportFigure:
    """How far probes exceed chance in domain and on the shifted set, task by task: the SAE beside the raw activation.

    Every seed of the SAE is a point, and its mean has a 95 % interval.
    """
    panels = {}
    for axis, at in {"AUC above chance, in domain": "in_domain", "AUC above chance, shifted": "shifted"}.items():
        own = seed_means((row.task, getattr(row, f"{at}_auc") - CHANCE) for row in rows)
        raw = {row.task: Dot(getattr(row, f"{at}_llm_auc") - CHANCE) for row in rows}
        panels[axis] = {f"SAE: {SEEDS}": own, "raw activation": raw}
    figure = dot_plot(panels)
    figure.axes[1].sharex(figure.axes[0])
    figure.axes[0].autoscale(axis="x")
    return figure


def dot_plot(panels: Mapping[str, Mapping[str, Mapping[str, Dot]]]) -> ReportFigure:
    """Dots by axis label (one panel each), legend entry (one style each) and name (one line each).

    Names are drawn literally, `$` included, and long ones are shortened.
    """
    first = next(iter(next(iter(panels.values())).values()))
    names = [name if len(name) <= 36 else f"{name[:35]}…" for name in first]
    figure, axes_of = framed(6.4 if len(panels) == 1 else 8.4, 1.5 + 0.42 * max(len(names), 1), len(panels))
    for axes, (xlabel, series) in zip(axes_of, panels.items(), strict=True):
        axes.axvline(0, color=GREY, linewidth=1)
        for i, (label, dots) in enumerate(series.items()):
            for y, dot in enumerate(dots.values()):
                _draw(axes, y + 0.25 * (i - (len(series) - 1) / 2), dot, label, STYLES[i])
        axes.set_xlabel(xlabel)
        if len(panels) > 1:  # narrow panels: labels as long as -0.125 have to stay apart
            axes.xaxis.set_major_locator(MaxNLocator(6 - len(panels)))
        axes.set_yticks(range(len(names)), labels=names, parse_math=False)
        axes.set_ylim(max(len(names), 1) - 0.4, -0.6)  # first on top
        axes.tick_params(labelleft=axes is axes_of[0])
        axes.grid(visible=False, axis="y")
    legend(figure, axes_of[0])
    return figure


def _lines_over_width(axes: Axes, rows: Sequence[ContrastiveRow], column: str) -> None:
    ks = sorted({row.k for row in rows})
    for (k, (color, marker)), origin in itertools.product(zip(ks, STYLES, strict=False), ("random", "trained")):
        of = sorted((row.d_sae, getattr(row, column)) for row in rows if (row.k, row.origin) == (k, origin))
        look: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"} if origin == "random" else {}
        line(axes, of, color=color, marker=marker, label=f"{origin}, k = {k}", **look)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({row.d_sae for row in rows})))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("Latents N (log scale)")


def _bounds_over_width(axes: Axes, d_saes: Sequence[int]) -> None:
    """The ceiling of each width and the baseline of earlier cycles, with their names at the lines."""
    axes.plot(d_saes, [ceiling(d_sae) for d_sae in d_saes], color="black", linewidth=2)
    axes.axhline(EARLIER_BASELINE, color=GREY, linestyle=":")
    for d_sae in d_saes[-1:]:
        look: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 9, "textcoords": "offset points"}
        axes.annotate("ceiling (N - 1) / √N", (d_sae, ceiling(d_sae)), (-14, 0), **look)
        axes.annotate(f"earlier baseline: {EARLIER_BASELINE}", (d_sae, EARLIER_BASELINE), (0, -8), **look)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")


def _draw(axes: Axes, y: float, dot: Dot, label: str, style: tuple[str, str]) -> None:
    color, marker = style
    if dot.mean is None:
        axes.annotate("n/a", (0.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=GREY)
        return
    arms = None if dot.low is None or dot.high is None else [[dot.mean - dot.low], [dot.high - dot.mean]]
    axes.errorbar(dot.mean, y, xerr=arms, label=label, color=color, marker=marker, linestyle="none", capsize=3)
    axes.scatter(dot.seeds, [y + 0.13] * len(dot.seeds), s=12, alpha=0.75, color=color, marker=marker)


def delta_panels(named: Sequence[tuple[str, MemberRow]]) -> dict[str, dict[str, dict[str, Dot]]]:
    """The external deltas of named SAEs, for `dot_plot`: a panel each."""
    columns = {"SAEBench delta (AUC)": "saebench_delta", "CE-Bench delta (SD)": "cebench_delta"}
    return {
        axis: {SEEDS: seed_means((name, getattr(row, column)) for name, row in named)}
        for axis, column in columns.items()
    }


def line(axes: Axes, points: Iterable[tuple[float, float | None]], **look: Any) -> None:
    """A line through the points that have a value."""
    known = [(x, y) for x, y in points if y is not None]
    axes.plot([x for x, _ in known], [y for _, y in known], **look)


def seed_means(values: Iterable[tuple[str, float | None]]) -> dict[str, Dot]:
    """The mean of each name's known values, one per seed, with its t interval."""
    known: dict[str, list[float]] = {}
    for name, value in values:
        known.setdefault(name, []).extend(() if value is None else (value,))
    means = {name: mean_interval(seeds) for name, seeds in known.items() if seeds}
    return {name: Dot(m.mean, m.low, m.high, known[name]) if (m := means.get(name)) else Dot(None) for name in known}


def framed(width: float, height: float, columns: int = 1) -> tuple[ReportFigure, list[Axes]]:
    """An empty figure (inches) with its panels side by side, framed left and below only."""
    figure = ReportFigure(figsize=(width, height), layout="constrained", facecolor="white")
    panels = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e2e2e2", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def _styles(conditions: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each condition, the same in every figure of a cycle."""
    return {name: STYLES[i % len(STYLES)] for i, name in enumerate(sorted(set(conditions)))}


def legend(figure: Figure, axes: Axes, *, beside: bool = False) -> None:
    """One entry for each label, above the panels or beside them; labels are drawn literally, `$` included."""
    handles, labels = axes.get_legend_handles_labels()
    if entries := dict(zip(labels, handles, strict=True)):
        look = {"ncols": 1 if beside else 2 if len(entries) == 4 else 3, "frameon": False, "fontsize": 9}
        loc: Any = "outside right upper" if beside else "outside upper center"
        legend = figure.legend(entries.values(), entries, loc=loc, **look)
        for text in legend.get_texts():
            text.set_parse_math(False)
