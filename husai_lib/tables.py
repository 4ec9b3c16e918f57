"""Records in, tables and sentences out, as Markdown that pandoc, GitHub and notebooks read alike.

A table is a mapping of headings to cell templates over a row's fields; all numbers a page shows pass
through here, so that digits, signs and missing values look the same everywhere.
"""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from husai_lib.records import CandidateRow, ControlRow, GateRow, GroupRow, MemberRow, OodRow, ProbeRow, Row, SourceRow

Columns = Mapping[str, str | Callable[[dict[str, Any]], str]]
"""Heading -> `str.format` template over a row's fields, or a function of them that returns Markdown."""

MISSING = "n/a"
VERDICTS = {"pass": "pass", "fail": "**FAIL**"}
NAMES = {
    "saebench_delta": "SAEBench delta",
    "cebench_delta": "CE-Bench delta",
    "pwmcc": "PW-MCC",
    "ood": "OOD",
    "ood_drop": "OOD drop",
    "external": "external (both)",
    "external_saebench": "external SAEBench",
    "external_cebench": "external CE-Bench",
}


def escape(text: str) -> str:
    """`text` as literal Markdown in one line: no markup, HTML, formula or table border in it is live."""
    one_line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]$~^|{}]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", one_line)


def spoken(name: str) -> str:
    """How prose calls a gate, control or metric: its known name, else the identifier without underscores."""
    return escape(NAMES.get(name, name.replace("_", " ")))


class _Cell(string.Formatter):
    """Formats a cell template: null is `n/a`, booleans are words, all text is escaped."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            return MISSING
        return escape(("no", "yes")[value] if isinstance(value, bool) else format(value, format_spec))


def markdown_table(rows: Iterable[Row | Mapping[str, Any]], columns: Columns) -> str:
    """A pipe table with a line for each row; numbers are set right, a note column appears if a row has a note."""
    fields = [dict(row) for row in rows]
    if not fields:
        return "*None.*"
    columns = dict(columns) | ({"Note": "{note}"} if any(row.get("note") for row in fields) else {})
    cells = [[_cell(row, template) for template in columns.values()] for row in fields]
    rules = [_rule(heading, own) for heading, *own in zip(columns, *cells, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(columns), rules, *cells])


def _rule(heading: str, cells: Sequence[str]) -> str:
    """The dashes below a heading: their colon sets numbers right, their count is the width pandoc gives."""
    dashes = "-" * min(max(map(len, [heading, *cells])), 40)
    number = re.compile(rf"[+-]?\d[\d.,]*%?( .*)?|{MISSING}.*")
    return f"{dashes}:" if all(map(number.fullmatch, cells)) else f":{dashes}"


def _cell(row: dict[str, Any], template: str | Callable[[dict[str, Any]], str]) -> str:
    return template(row) if callable(template) else _Cell().vformat(template, (), row)


def _l0(row: dict[str, Any]) -> str:
    return f"{row['l0']:.1f} of {row['k']}" + ("" if row["l0_matched"] else " (not matched)")


def _standing(row: dict[str, Any]) -> str:
    if row["selected"]:
        return "**selected**"
    if row["joint_score"] is None:
        return "dropped"
    return "on the Pareto front" if row["on_front"] else "behind the front"


_QUALITY: Columns = {
    "Latents": "{d_sae:d}",
    "Explained variance": "{explained_variance:.3f}",
    "L0 of target k": _l0,
    "Dead latents": "{dead_fraction:.1%}",
    "SAEBench AUC": "{saebench_auc:.3f}",
    "SAEBench delta": "{saebench_delta:+.3f}",
    "CE-Bench contrastive (SD)": "{cebench_contrastive:.2f}",
    "CE-Bench independence (SD)": "{cebench_independence:.2f}",
    "CE-Bench interpretability (SD)": "{cebench_interpretability:.2f}",
    "CE-Bench calibrated (SD of null)": "{cebench_calibrated:.2f}",
    "CE-Bench ceiling (SD)": "{cebench_ceiling:.1f}",
}


def members_table(rows: Sequence[MemberRow]) -> str:
    """One line for each trained SAE."""
    delta = {"CE-Bench delta (SD)": "{cebench_delta:+.3f}"}
    return markdown_table(rows, {"Condition": "{condition}", "Seed": "{seed:d}"} | dict(_QUALITY) | delta)


def baseline_table(rows: Sequence[MemberRow]) -> str:
    """One line for each SAE of the matched baseline; it has no delta to itself."""
    return markdown_table(rows, {"Recipe": "{architecture}", "Seed": "{seed:d}"} | dict(_QUALITY))


def groups_table(rows: Sequence[GroupRow]) -> str:
    """One line for each condition: agreement of its seeds beside both nulls."""
    return markdown_table(
        rows,
        {
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
        },
    )


def candidates_table(rows: Sequence[CandidateRow]) -> str:
    """One line for each group that selection saw, with lower 95 % bounds and what became of it."""
    return markdown_table(
        rows,
        {
            "Condition": "{condition}",
            "Standing": _standing,
            "Seeds": "{n_seeds:d}",
            "SAEBench delta": "{saebench_delta:+.3f}",
            "SAEBench lower bound": "{saebench_delta_low:+.3f}",
            "CE-Bench delta (SD)": "{cebench_delta:+.3f}",
            "CE-Bench lower bound (SD)": "{cebench_delta_low:+.3f}",
            "Explained variance": "{explained_variance:.3f}",
            "Variance lower bound": "{explained_variance_low:.3f}",
            "Joint score": "{joint_score:.3f}",
            "Selection probability": "{selection_probability:.0%}",
            "Step": "{source}",
        },
    )


def gates_table(rows: Sequence[GateRow]) -> str:
    """One line for each requirement; the verdict is a word: pass, FAIL, missing or unreachable.

    The bound is the conservative end of the 95 % interval.
    """
    return markdown_table(
        rows,
        {
            "Gate": lambda row: spoken(row["gate"]),
            "Verdict": lambda row: VERDICTS.get(row["verdict"], f"**{escape(row['verdict'])}**"),
            "Metric": lambda row: spoken(row["metric"]),
            "Value": "{value:.3f}",
            "95 % bound": "{bound:.3f}",
            "Must be": "{direction} {threshold:.3f}",
            "Required": "{required}",
            "Source": "{source}",
        },
    )


def controls_table(rows: Sequence[ControlRow]) -> str:
    """One line for each stress control beside the candidate."""
    return markdown_table(
        rows,
        {
            "Control": lambda row: spoken(row["control"]),
            "Metric": lambda row: spoken(row["metric"]),
            "Candidate": "{candidate:.3f}",
            "Control value": "{control_value:.3f}",
            "Delta [95 %]": "{delta:+.3f} [{delta_low:+.3f}, {delta_high:+.3f}]",
        },
    )


def ood_table(rows: Sequence[OodRow]) -> str:
    """One line for each task and seed: AUC in domain and shifted, each beside the raw activation's."""
    return markdown_table(
        rows,
        {
            "Task": "{task}",
            "Seed": "{seed:d}",
            "Best k": "{best_k:d}",
            "In-domain AUC": "{in_domain_auc:.3f}",
            "In-domain AUC, raw activation": "{in_domain_llm_auc:.3f}",
            "Shifted AUC": "{shifted_auc:.3f}",
            "Shifted AUC, raw activation": "{shifted_llm_auc:.3f}",
            "Drop": "{drop:+.3f}",
        },
    )


def probes_table(rows: Sequence[ProbeRow]) -> str:
    """One line for each SAE and probing data set."""
    return markdown_table(
        rows,
        {
            "Condition": "{condition}",
            "Seed": "{seed:d}",
            "Data set": "{data_set}",
            "Best k": "{best_k:d}",
            "Validation AUC": "{validation_auc:.3f}",
            "Test AUC": "{test_auc:.3f}",
            "Test AUC, raw activation": "{llm_auc:.3f}",
            "Delta": "{delta:+.3f}",
        },
    )


def sources_table(rows: Sequence[SourceRow]) -> str:
    """One line for each data set in its role."""
    counts = {"Texts": "{texts:,d}", "Tokens": "{tokens:,d}", "Rows kept": "{rows:,d}"}
    return markdown_table(rows, {"Role": "{role}", "Data set": "{data_set}"} | counts)


def verdict_sentence(rows: Sequence[GateRow]) -> str:
    """The verdict, and the required gates it rests on."""
    required = [row for row in rows if row.required]
    if not required:
        return "**No verdict**: no required gate was evaluated."
    failed = [_gate_name(row, rows) for row in required if row.verdict != "pass"]
    if not failed:
        return f"**Releasable**: all {len(required)} required gates pass."
    verb = "fails" if len(failed) == 1 else "fail"
    return f"**Not releasable**: {len(failed)} of {len(required)} required gates {verb} ({', '.join(failed)})."


def _gate_name(row: GateRow, rows: Sequence[GateRow]) -> str:
    shared = sum(other.gate == row.gate for other in rows) > 1
    name = spoken(row.gate) + (f" {spoken(row.metric)}" if shared else "")
    return name if row.verdict == "fail" else f"{name}: {escape(row.verdict)}"


def selection_sentence(rows: Sequence[CandidateRow]) -> str:
    """Which group was selected, out of how many, and how surely."""
    dropped = sum(row.joint_score is None for row in rows)
    among = f"{len(rows)} {'group' if len(rows) == 1 else 'groups'}, {dropped} of them dropped before ranking"
    for row in rows:
        if row.selected:
            template = (
                "Selected: **{condition}** ({n_seeds} seeds), with lower 95 % bounds of {saebench_delta_low:+.3f} on "
                "the SAEBench delta and {cebench_delta_low:+.3f} SD on the CE-Bench delta"
            )
            return f"{_cell(dict(row), template)}; from {among}."
    return f"**Nothing was selected** from {among}."


def matched_sentence(rows: Sequence[MemberRow]) -> str:
    """How many SAEs have the sparsity they were asked for, and which conditions have not."""
    off = sorted({row.condition for row in rows if not row.l0_matched})
    if not off:
        return f"All {len(rows)} SAEs have an L0 within 10 % of the target k."
    matched = sum(row.l0_matched for row in rows)
    names = ", ".join(map(escape, off))
    return f"{matched} of {len(rows)} SAEs have an L0 within 10 % of the target k; **not matched**: {names}."


def stability_sentence(rows: Sequence[GroupRow]) -> str:
    """How many conditions agree across seeds more than the Gaussian null does, by their bounds."""
    above = [escape(row.condition) for row in rows if row.pwmcc_low is not None and row.pwmcc_low > row.null_gaussian]
    names = f" ({', '.join(above)})" if above else ""
    return (
        f"PW-MCC exceeds the Gaussian null by its lower 95 % bound in {len(above)} of {len(rows)} "
        f"{'condition' if len(rows) == 1 else 'conditions'}{names}."
    )
