"""What the sweep of the consistency objective showed: its figures, and the sentences that answer its question."""

from collections.abc import Mapping, Sequence
from typing import Any

from husai_lib.decisions.acceptance import best_of
from husai_lib.evidence.rows.consistency import SweepRow, TruthRow
from husai_lib.evidence.rows.measured import MemberRow
from husai_lib.params.consistency import plain_name
from husai_lib.report.cells import escape, failing
from husai_lib.report.figures import GREY, STYLES, ReportFigure, delta_panels, dot_plot, framed, legend, line


def answer_sentence(rows: Sequence[SweepRow]) -> str:
    """Did the features become stable, or were they merely copied? A paragraph for each condition."""
    return "\n\n".join(
        _answer(plain, [row for row in rows if row.base == plain.base and row.weight])
        for plain in rows
        if not plain.weight
    )


def _answer(plain: SweepRow, swept: Sequence[SweepRow]) -> str:
    """The answer for one condition: where unrelated seeds agree most, and where related ones do.

    Seeds are *more stable* at a weight if unrelated ones agree more than without the objective, by their bounds, and
    *more alike* if they agree more without such bounds. If only related seeds agree more, features were *only copied*.
    """
    name = escape(plain_name(plain.base))
    known = [row for row in swept if row.pwmcc is not None]
    if plain.pwmcc is None or not known:
        return (
            f"**{name}: copied at best.** All seeds have one reference, so none are unrelated, and nothing shows that "
            "another reference would give the same features."
        )
    best, strongest = (max(known, key=lambda row: getattr(row, of) or 0.0) for of in ("pwmcc", "pwmcc_within"))
    within, unrelated = strongest.pwmcc_within, strongest.pwmcc or 0.0
    if (best.pwmcc or 0.0) > plain.pwmcc:
        gain, doubt = "more alike", ", but the intervals overlap"
        if best.pwmcc_low is None or plain.pwmcc_high is None:
            doubt = ", but there are too few unrelated seeds for an interval"
        elif best.pwmcc_low > plain.pwmcc_high:
            gain, doubt = "more stable", ""
        first = (
            f"**{name}: {gain} at lambda = {best.weight:g}{doubt}.** There, unrelated seeds agree with PW-MCC "
            f"{best.pwmcc:.3f}; without the objective it is {plain.pwmcc:.3f}. Explained variance changes by "
            f"{-best.ev_drop:+.3f}."
        )
    else:
        word = "only copied" if (within or 0.0) > plain.pwmcc else "not stabilised"
        first = (
            f"**{name}: {word}.** At no weight do unrelated seeds exceed their PW-MCC without it, {plain.pwmcc:.3f}."
        )
    if within is None:
        return f"{first} No two seeds have one reference."
    copied = ": **the difference was copied**" if within > unrelated else ""
    return (
        f"{first} At lambda = {strongest.weight:g}, seeds of one reference agree with {within:.3f} and unrelated ones "
        f"with {unrelated:.3f}{copied}."
    )


def acceptance_sentence(rows: Sequence[SweepRow]) -> str:
    """Which weight is the best, whether it is accepted, and which gates it fails."""
    best = best_of(rows)
    weights = [row for row in rows if row.weight]
    number = sum(row.accepted for row in weights)
    first = f"{number} of {len(weights)} weights {'is' if number == 1 else 'are'} accepted."
    if best.accepted:
        return f"{first} The largest conservative delta among them has **{escape(best.condition)}**."
    missed = ", ".join(failing(dict(best)))
    return (
        f"**{first}** The best by its conservative delta, {escape(best.condition)}, fails at: {missed}. Groups at "
        "lambda = 0 have no objective and serve for comparison."
    )


def why_not_accepted(acceptance: Mapping[str, Any]) -> str:
    """What a record's acceptance says against its best weight, as the end of a sentence; empty where it passes."""
    if acceptance["pass_all"]:
        return ""
    missed = ", ".join(f"{gate} ({verdict})" for gate, verdict in failing(acceptance).items())
    best = f"lambda = {acceptance['best_lambda']:g} ({acceptance['best_condition']})"
    return f"accepts no weight of the consistency objective: the best, {best}, does not pass {missed}"


def truth_sentence(rows: Sequence[TruthRow]) -> str:
    """Whether agreement came with recovery of the known features."""
    plain, *others = sorted(rows, key=lambda row: row.weight)
    best = max(rows, key=lambda row: row.recovery)
    last = others[-1]
    first = (
        f"Recovery of the true features is {plain.recovery:.3f} without the objective and highest, {best.recovery:.3f} "
        f"at lambda = {best.weight:g}. At lambda = {last.weight:g}, seeds of one reference agree with PW-MCC "
        f"{last.pwmcc_within or 0.0:.3f} and unrelated seeds with {last.pwmcc:.3f} ({plain.pwmcc:.3f} without the "
        f"objective), while recovery is {last.recovery:.3f} and functional agreement {last.functional_agreement:.3f} "
        f"({plain.functional_agreement:.3f})."
    )
    without = [
        f"{row.weight:g}" for row in others if (row.pwmcc_within or 0) > plain.pwmcc and row.recovery < plain.recovery
    ]
    if not without:
        return f"{first} At no weight did agreement rise without recovery."
    return (
        f"{first} **Agreement within a reference rose while recovery fell at lambda = {', '.join(without)}**: there "
        "the objective makes seeds alike without making them right."
    )


def tradeoff(rows: Sequence[SweepRow]) -> ReportFigure:
    """PW-MCC of related and of unrelated seeds against explained variance, a line over lambda for each condition."""
    figure, (axes,) = framed(8.0, 4.2)
    for base, (color, marker) in zip(dict.fromkeys(row.base for row in rows), STYLES, strict=False):
        own, look = [row for row in rows if row.base == base], {"color": color, "marker": marker}
        unrelated, within = (f"{plain_name(base)}, {of}" for of in ("unrelated seeds", "seeds of one reference"))
        line(axes, [(row.explained_variance, row.pwmcc) for row in own], label=unrelated, **look)
        look |= {"linestyle": "--", "markerfacecolor": "white"}
        line(axes, [(row.explained_variance, row.pwmcc_within) for row in own], label=within, **look)
        for row in own:
            if (value := row.pwmcc if row.pwmcc is not None else row.pwmcc_within) is not None:
                place: dict[str, Any] = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 9, "color": GREY}
                axes.annotate(f"λ = {row.weight:g}", (row.explained_variance, value), **place)
            if row.pwmcc is not None and row.pwmcc_low is not None and row.pwmcc_high is not None:
                arms = [[row.pwmcc - row.pwmcc_low], [row.pwmcc_high - row.pwmcc]]
                axes.errorbar(row.explained_variance, row.pwmcc, yerr=arms, color=color, capsize=3, linestyle="none")
    axes.set_xlabel("Explained variance (held out, mean over seeds)")
    axes.set_ylabel("PW-MCC")
    axes.margins(0.1)
    legend(figure, axes)
    return figure


def cost(rows: Sequence[SweepRow], members: Sequence[MemberRow]) -> ReportFigure:
    """Both external deltas at every weight: the mean with its 95 % interval over seeds, and every seed."""
    names = {row.condition: f"{plain_name(row.base)}, λ = {row.weight:g}" for row in rows}
    return dot_plot(delta_panels([(names[row.condition], row) for row in members]))


def truth(rows: Sequence[TruthRow]) -> ReportFigure:
    """Agreement, function and recovery against the weight of the objective, on known features."""
    figure, (axes,) = framed(8.0, 4.2)
    lines = {
        "recovery of the true features": "recovery",
        "PW-MCC, unrelated seeds": "pwmcc",
        "PW-MCC, seeds of one reference": "pwmcc_within",
        "functional agreement, unrelated seeds": "functional_agreement",
        "explained variance": "explained_variance",
    }
    ordered = sorted(rows, key=lambda row: row.weight)
    for (label, column), (color, marker) in zip(lines.items(), STYLES, strict=False):
        points = ((at, getattr(row, column)) for at, row in enumerate(ordered))
        style = "--" if column == "pwmcc_within" else "-"
        line(axes, points, color=color, marker=marker, label=label, linestyle=style)
    axes.set_xticks(range(len(ordered)), labels=[f"{row.weight:g}" for row in ordered])
    axes.set_xlabel("Weight of the objective, λ")
    axes.set_ylabel("Agreement, or share")
    axes.set_ylim(0, 1)
    legend(figure, axes)
    return figure
