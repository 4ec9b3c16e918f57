"""Records in, tables and sentences out, as Markdown that pandoc, GitHub and notebooks read alike.

A table is a mapping of headings to cell templates over a row's fields; all numbers a page shows pass
through here, so that digits, signs and missing values look the same everywhere.
"""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from husai_lib import gates
from husai_lib.records import CandidateRow, GateRow, GroupRow, MemberRow, Row

Columns = Mapping[str, str | Callable[[dict[str, Any]], str]]
"""Heading -> `str.format` template over a row's fields, or a function of them that returns Markdown."""


def escape(text: str) -> str:
    """`text` as literal Markdown in one line: no markup, HTML, formula or table border in it is live."""
    one_line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]$~^|{}]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", one_line)


class _Cell(string.Formatter):
    """Formats a cell template: null is `n/a`, booleans are words, all text is escaped."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            return "n/a"
        return escape(("no", "yes")[value] if isinstance(value, bool) else format(value, format_spec))


def markdown_table(rows: Iterable[Row | Mapping[str, Any]], columns: Columns) -> str:
    """A pipe table with a line for each row; numbers are set right, columns with nothing in them left out."""
    fields = [dict(row) for row in rows]
    if not fields:
        return "*None.*"
    cells = {heading: [_cell(row, template) for row in fields] for heading, template in columns.items()}
    shown = [[heading, _rule(heading, column), *column] for heading, column in cells.items() if any(column)]
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*shown, strict=True))


def _cell(row: dict[str, Any], template: str | Callable[[dict[str, Any]], str]) -> str:
    return template(row) if callable(template) else _Cell().vformat(template, (), row)


def _rule(heading: str, cells: Sequence[str]) -> str:
    """The dashes below a heading: their colon sets numbers right, their count is the width pandoc gives."""
    dashes = "-" * min(max(map(len, [heading, *cells])), 40)
    return f"{dashes}:" if all(re.match(r"[+-]?\d[\d.,%]*( |$)|n/a", cell) for cell in cells) else f":{dashes}"


def _spoken(field: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: escape(gates.spoken(row[field]))


def _verdict(row: dict[str, Any]) -> str:
    return {"pass": "pass", "fail": "**FAIL**"}.get(row["verdict"], f"**{escape(row['verdict'])}**")


def _standing(row: dict[str, Any]) -> str:
    ranked = "on the Pareto front" if row["on_front"] else "behind the front"
    standing = "**selected**" if row["selected"] else "dropped" if row["joint_score"] is None else ranked
    return f"{standing}: {escape(row['note'])}" if row["note"] else standing


_QUALITY: Columns = {
    "Seed": "{seed:d}",
    "Explained variance": "{explained_variance:.3f}",
    "L0 of target k": lambda row: _cell(row, "{l0:.1f} of {k}" + ("" if row["l0_matched"] else " (not matched)")),
    "Dead latents": "{dead_fraction:.1%}",
    "SAEBench delta": "{saebench_delta:+.3f}",
    "CE-Bench interpretability (SD)": "{cebench_interpretability:.2f}",
    "CE-Bench calibrated (SD of null)": "{cebench_calibrated:.2f}",
}

baseline_table = partial(markdown_table, columns={"Recipe": "{architecture}", **_QUALITY, "Note": "{note}"})
"""One line for each SAE of the matched baseline; it has no delta to itself."""


def members_table(rows: Sequence[MemberRow]) -> str:
    """One line for each trained SAE; its width where they differ."""
    width = {"Latents": "{d_sae:d}"} if len({row.d_sae for row in rows}) > 1 else {}
    last = {"CE-Bench delta (SD)": "{cebench_delta:+.3f}", "Note": "{note}"}
    return markdown_table(rows, {"Condition": "{condition}", **width, **_QUALITY, **last})


_FRONTIER: Columns = {
    "Seeds": "{seeds:d}",
    "Explained variance (range over seeds)": "{explained_variance}",
    "L0 (range) of target k": "{l0} of {k:d}",
    "L0 within 10 %": "{matched}",
    "Dead latents (range)": "{dead}",
}


def frontier_table(rows: Sequence[MemberRow]) -> str:
    """One line for each condition, in the order in which they first appear: means over its seeds, with their range.

    Whether L0 is matched is said in words; the width is shown where it differs.
    """
    width = {"Latents": "{d_sae:d}"} if len({row.d_sae for row in rows}) > 1 else {}
    names = dict.fromkeys(row.condition for row in rows)
    lines = [_over_seeds([row for row in rows if row.condition == name]) for name in names]
    return markdown_table(lines, {"Condition": "{condition}", **width, **_FRONTIER})


def _over_seeds(rows: Sequence[MemberRow]) -> dict[str, Any]:
    matched = sum(row.l0_matched for row in rows)
    return dict(rows[0]) | {
        "seeds": len(rows),
        "explained_variance": _mean_and_range((row.explained_variance for row in rows), ".3f"),
        "l0": _mean_and_range((row.l0 for row in rows), ".1f"),
        "dead": _mean_and_range((row.dead_fraction for row in rows), ".1%"),
        "matched": {len(rows): "yes", 0: "no"}.get(matched, f"{matched} of {len(rows)} seeds"),
    }


def _mean_and_range(values: Iterable[float], spec: str) -> str:
    """The mean, and from the smallest to the largest where there are several."""
    smallest, *others = sorted(values)
    mean = format(fmean([smallest, *others]), spec)
    return f"{mean} ({smallest:{spec}} to {others[-1]:{spec}})" if others else mean


_GROUPS: Columns = {
    "Condition": "{condition}",
    "Seeds": "{n_seeds:d}",
    "PW-MCC [95 %]": "{pwmcc:.3f} [{pwmcc_low:.3f}, {pwmcc_high:.3f}]",
    "Random null": "{null_random:.3f}",
    "Gaussian null": "{null_gaussian:.3f}",
    "Corrected PW-MCC": "{pwmcc_corrected:+.3f}",
    "Row-column maxima": "{pwmcc_max:.3f}",
    "Encoder MCC": "{encoder_mcc:.3f}",
    "Reappearing latents": "{reappearing_fraction:.1%}",
    "Subspace overlap": "{subspace_overlap:.3f}",
    "Note": "{note}",
}
groups_table = partial(markdown_table, columns=_GROUPS)
"""One line for each condition: agreement of its seeds beside both nulls."""

_CANDIDATES: Columns = {
    "Condition": "{condition}",
    "Standing": _standing,
    "Seeds": "{n_seeds:d}",
    "SAEBench delta (lower bound)": "{saebench_delta:+.3f} ({saebench_delta_low:+.3f})",
    "CE-Bench delta, SD (lower bound)": "{cebench_delta:+.3f} ({cebench_delta_low:+.3f})",
    "Explained variance (lower bound)": "{explained_variance:.3f} ({explained_variance_low:.3f})",
    "Joint score": "{joint_score:.3f}",
    "Selection probability": "{selection_probability:.0%}",
}
candidates_table = partial(markdown_table, columns=_CANDIDATES)
"""One line for each group that selection saw, with lower 95 % bounds and what became of it."""

_GATES: Columns = {
    "Gate": _spoken("gate"),
    "Verdict": _verdict,
    "Metric": _spoken("metric"),
    "Value": "{value:.3f}",
    "95 % bound": "{bound:.3f}",
    "Must be": "{direction} {threshold:g}",
    "Required": "{required}",
    "Source": "{source}",
    "Note": "{note}",
}
gates_table = partial(markdown_table, columns=_GATES)
"""One line for each requirement; the verdict is a word, the bound the conservative end of the 95 % interval."""

_CONTROLS: Columns = {
    "Control": _spoken("control"),
    "Metric": _spoken("metric"),
    "Candidate": "{candidate:.3f}",
    "Control value": "{control_value:.3f}",
    "Delta [95 %]": "{delta:+.3f} [{delta_low:+.3f}, {delta_high:+.3f}]",
    "Note": "{note}",
}
controls_table = partial(markdown_table, columns=_CONTROLS)
"""One line for each stress control beside the candidate."""

_OOD: Columns = {
    "Task": "{task}",
    "Seed": "{seed:d}",
    "Best k": "{best_k:d}",
    "In-domain AUC": "{in_domain_auc:.3f}",
    "In-domain AUC, raw activation": "{in_domain_llm_auc:.3f}",
    "Shifted AUC": "{shifted_auc:.3f}",
    "Shifted AUC, raw activation": "{shifted_llm_auc:.3f}",
    "Drop": "{drop:+.3f}",
    "Note": "{note}",
}
ood_table = partial(markdown_table, columns=_OOD)
"""One line for each task and seed: AUC in domain and shifted, each beside the raw activation's."""

_PROBES: Columns = {
    "Condition": "{condition}",
    "Seed": "{seed:d}",
    "Data set": "{data_set}",
    "Best k": "{best_k:d}",
    "Validation AUC": "{validation_auc:.3f}",
    "Test AUC": "{test_auc:.3f}",
    "Test AUC, raw activation": "{llm_auc:.3f}",
    "Delta": "{delta:+.3f}",
    "Note": "{note}",
}
probes_table = partial(markdown_table, columns=_PROBES)
"""One line for each SAE and probing data set."""

_SOURCES: Columns = {
    "Role": "{role}",
    "Data set": "{data_set}",
    "Texts": "{texts:,d}",
    "Tokens": "{tokens:,d}",
    "Rows kept": "{rows:,d}",
    "Note": "{note}",
}
sources_table = partial(markdown_table, columns=_SOURCES)
"""One line for each data set in its role."""


def verdict_sentence(rows: Sequence[GateRow]) -> str:
    """The verdict, emboldened, and the required gates it rests on."""
    verdict, colon, reason = escape(gates.verdict_sentence(rows)).partition(":")
    return f"**{verdict}**{colon}{reason}"


def selection_sentence(rows: Sequence[CandidateRow]) -> str:
    """Which group was selected, out of how many, and how surely."""
    template = (
        "Selected: **{condition}** ({n_seeds} seeds), with lower 95 % bounds of {saebench_delta_low:+.3f} on the "
        "SAEBench delta and {cebench_delta_low:+.3f} SD on the CE-Bench delta."
    )
    said = next((_cell(dict(row), template) for row in rows if row.selected), "**Nothing was selected.**")
    return f"{said} Groups seen: {len(rows)}; dropped before ranking: {sum(row.joint_score is None for row in rows)}."


def matched_sentence(rows: Sequence[MemberRow]) -> str:
    """How many SAEs have the sparsity they were asked for, and which conditions have not."""
    off = sorted({escape(row.condition) for row in rows if not row.l0_matched})
    matched = f"{sum(row.l0_matched for row in rows)} of {len(rows)} SAEs have an L0 within 10 % of the target k"
    return f"{matched}; **not matched**: {', '.join(off)}." if off else f"{matched}."


def stability_sentence(rows: Sequence[GroupRow]) -> str:
    """How many conditions agree across seeds more than the Gaussian null does, by their bounds."""
    above = [escape(row.condition) for row in rows if row.pwmcc_low is not None and row.pwmcc_low > row.null_gaussian]
    return (
        f"PW-MCC exceeds the Gaussian null by its lower 95 % bound in {len(above)} of {len(rows)} conditions"
        f"{' (' + ', '.join(above) + ')' if above else ''}."
    )
