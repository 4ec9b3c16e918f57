"""Records in, tables out, as Markdown that pandoc, GitHub and notebooks read alike.

A table is a mapping of headings to cell templates over a row's fields. All numbers that a page shows are formatted
here, so that digits, signs and missing values look the same everywhere.
"""

from __future__ import annotations

import csv
import html
import io
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from husai_lib.decisions import gates
from husai_lib.evidence.rows import TABLES
from husai_lib.evidence.rows.base import GIVEN, Row
from husai_lib.evidence.rows.controls import OodRow
from husai_lib.evidence.rows.measured import GroupRow, MemberRow, ProbeRow
from husai_lib.intervals import mean_interval, means_by

Template = str | Callable[[dict[str, Any]], str]
"""A `str.format` template over a row's fields, or a function of them that returns Markdown."""
Columns = Mapping[str, Template]
"""Heading -> template of the cells."""


def escape(text: str) -> str:
    """`text` as literal Markdown in one line: nothing in it acts as markup, HTML, formula or table border."""
    one_line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]$~^|{}]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", one_line)


class _Cell(string.Formatter):
    """Formats a cell template: null as `n/a`, booleans as words, a list as mean and range, all text escaped."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, list):
            known = [one for one in value if one is not None]
            if len(set(known)) > 1:
                if isinstance(known[0], bool):
                    return f"{sum(known)} of {len(known)} seeds"
                mean, low, high = (f"{one:{format_spec}}" for one in (fmean(known), min(known), max(known)))
                return f"{mean} ({low} to {high})"
            value = known[0] if known else None
        if value is None:
            return "n/a"
        return escape(("no", "yes")[value] if isinstance(value, bool) else format(value, format_spec))


def csv_table(rows: Sequence[Row]) -> str:
    """The rows as CSV with a heading, every column and every digit; null is empty."""
    text = io.StringIO()
    note, *columns = type(rows[0]).model_fields if rows else ("note",)
    writer = csv.DictWriter(text, [*columns, note], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    return text.getvalue()


def markdown_table(rows: Iterable[Row | Mapping[str, Any]], columns: Columns) -> str:
    """A pipe table with one line per row; numbers are aligned right, and empty columns are left out."""
    fields = [dict(row) for row in rows]
    if not fields:
        return "*None.*"
    cells = {heading: [cell(row, template) for row in fields] for heading, template in columns.items()}
    shown = [[heading, _rule(heading, column), *column] for heading, column in cells.items() if any(column)]
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*shown, strict=True))


def cell(row: dict[str, Any], template: Template) -> str:
    """The Markdown that a template gives for a row's fields."""
    return template(row) if callable(template) else _Cell().vformat(template, (), row)


def _rule(heading: str, cells: Sequence[str]) -> str:
    """The dashes below a heading: a colon on the right aligns numbers right, and pandoc takes widths from the count."""
    dashes = "-" * min(max(map(len, [heading, *cells])), 40)
    return f"{dashes}:" if all(re.match(r"[+-]?\d[\d.,%]*( |$)|n/a", cell) for cell in cells) else f":{dashes}"


def _described(field: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: escape(gates.describe(row[field]))


def _verdict(row: dict[str, Any]) -> str:
    return {"pass": "pass", "fail": "**FAIL**"}.get(row["verdict"], f"**{escape(row['verdict'])}**")


def _standing(row: dict[str, Any]) -> str:
    ranked = "on the Pareto front" if row["on_front"] else "behind the front"
    standing = "**selected**" if row["selected"] else "dropped" if row["joint_score"] is None else ranked
    return f"{standing}: {escape(row['note'])}" if row["note"] else standing


def _scored(field: str, spec: str) -> Template:
    """A metric of a group, its lower bound and, where the group was ranked, the score of the bound."""
    bound, score = f"{{{field}:{spec}}} ({{{field}_low:{spec}}}", f"{{{field.removesuffix('_delta')}_score:.2f}}"
    return lambda row: cell(row, f"{bound})" if row["joint_score"] is None else f"{bound} → {score})")


DIFFERENCE = "{difference:+.3f} [{difference_low:+.3f}, {difference_high:+.3f}]"
LAYOUTS: dict[str, Columns] = {
    # One line per data set and role.
    "sources": {
        "Role": "{role}",
        "Data set": "{data_set}",
        "Texts": "{texts:,d}",
        "Tokens": "{tokens:,d}",
        "Rows kept": "{rows:,d}",
        "Note": "{note}",
    },
    # One line per SAE and probing data set.
    "probes": {
        "Condition": "{condition}",
        "Seed": "{seed:d}",
        "Data set": "{data_set}",
        "Best k": "{best_k:d}",
        "Validation AUC": "{validation_auc:.3f}",
        "Test AUC": "{test_auc:.3f}",
        "Test AUC, raw activation": "{llm_auc:.3f}",
        "Delta": "{delta:+.3f}",
        "Note": "{note}",
    },
    # One line per SAE of the width study: CE-Bench in every form, and the ceiling of its width.
    "contrastive": {
        "SAE": "{origin}",
        "Latents": "{d_sae:,d}",
        "L0 (target k)": "{l0:.1f} ({k})",
        "Contrastive (SD)": "{contrastive:.2f}",
        "Independence, published / released (SD)": "{independence:.2f} / {independence_as_released:.2f}",
        "Interpretability, published / released (SD)": "{interpretability:.2f} / {interpretability_as_released:.2f}",
        "Ceiling": "{ceiling:.1f}",
        "Calibrated contrastive / interpretability (SD of null)": "{calibrated_contrastive:.2f} / {calibrated:.2f}",
        "Note": "{note}",
    },
    # One line per condition: the agreement of its seeds, and both nulls.
    "groups": {
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
    },
    # One line per group that selection ranked or dropped: lower 95 % bounds, their scores and the weighted sum.
    "candidates": {
        "Condition": "{condition}",
        "Standing": _standing,
        "Seeds": "{n_seeds:d}",
        "SAEBench delta (lower bound → score)": _scored("saebench_delta", "+.3f"),
        "CE-Bench delta, SD (lower bound → score)": _scored("cebench_delta", "+.3f"),
        "Explained variance (lower bound → score)": _scored("explained_variance", ".3f"),
        "Joint score": "{joint_score:.3f}",
        "Selection probability": "{selection_probability:.0%}",
        "Representative seed": "{representative_seed}",
    },
    # One line per gate; the bound is the conservative end of the 95 % interval.
    "gates": {
        "Gate": _described("gate"),
        "Verdict": _verdict,
        "Metric": _described("metric"),
        "Value": "{value:.3f}",
        "95 % bound": "{bound:.3f}",
        "Must be": lambda row: escape(gates.requirement(row["gate"], row["threshold"])),
        "Required": "{required}",
        "Source": "{source}",
        "Note": "{note}",
    },
    # One line per comparison with an earlier run: both deltas, then every gate.
    "criteria": {
        "Criterion": "{criterion:d}",
        "Against": "{earlier}",
        "Metric or gate": _described("metric"),
        "Here": lambda row: escape(row["verdict_here"]) or cell(row, "{here:+.3f}"),
        "There": lambda row: escape(row["verdict_there"]) or cell(row, "{there:+.3f}"),
        "Difference [95 %]": lambda row: "" if row["difference"] is None else cell(row, DIFFERENCE),
        "Outcome": lambda row: "met" if row["outcome"] == "met" else f"**{escape(row['outcome'])}**",
        "Note": "{note}",
    },
    # One line per stress control, compared with the candidate; only the OOD control has the second interval.
    "controls": {
        "Control": _described("control"),
        "Metric": _described("metric"),
        "Candidate": "{candidate:.3f}",
        "Control value": "{control_value:.3f}",
        "Delta [95 % over seeds]": "{delta:+.3f} [{delta_low:+.3f}, {delta_high:+.3f}]",
        "95 % over tasks": lambda row: cell(row, "[{tasks_low:+.3f}, {tasks_high:+.3f}]" * (row["control"] == "ood")),
        "Note": "{note}",
    },
    # One line per imported decision, recomputed by its own rules.
    "replays": {
        "Decision": "{decision}",
        "Winner": "{winner}",
        "Numbers compared": "{values:d}",
        "Differing": "{differing:d}",
        "Largest difference": "{largest_difference:.1e}",
        "Note": "{note}",
    },
    # The outcome of an imported decision as today's rules are added one after another.
    "rule_changes": {
        "Rule": "{rule}",
        "Ranked together": "{over}",
        "Eligible groups": "{eligible_groups:d}",
        "Winner": lambda row: cell(row, "{winner}, seed {representative_seed}") if row["winner"] else "**none**",
        "Why none": "{note}",
    },
    # What is known to be wrong with imported numbers, by record.
    "caveats": {
        "Caveat": lambda row: escape(row["caveat"].replace("_", " ")),
        "Record": "{record}",
        "Rows": "{rows:d}",
        "What is known": "{what}",
    },
}
"""Columns by the table of a record that holds such rows."""
_NAMES = {row_class: name for name, row_class in TABLES.items()}


def table_of(rows: Sequence[Row]) -> str:
    """One line per row, in the layout of its kind."""
    return markdown_table(rows, LAYOUTS[_NAMES[type(rows[0])]] if rows else {})


def _over_seeds(rows: Iterable[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """One row for each value of `key`, in order, whose fields list the values of all its rows."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return [{"seeds": len(g)} | {field: [row[field] for row in g] for field in g[0]} for g in groups.values()]


def _width(rows: Sequence[MemberRow]) -> Columns:
    """A column for the width, where it differs between rows."""
    return {"Latents": "{d_sae:,d}"} if len({row.d_sae for row in rows}) > 1 else {}


_QUALITY: Columns = {
    "Seed": lambda row: "every" if row["condition"] == GIVEN else str(row["seed"]),
    "Explained variance": "{explained_variance:.3f}",
    "L0 (target k)": lambda row: cell(row, "{l0:.1f} ({k})" + ("" if row["l0_matched"] else ", not matched")),
    "Dead latents": "{dead_fraction:.1%}",
    "SAEBench delta": "{saebench_delta:+.3f}",
    "CE-Bench interpretability (SD)": "{cebench_interpretability:.2f}",
    "CE-Bench calibrated (SD of null)": "{cebench_calibrated:.2f}",
}


def members_table(rows: Sequence[MemberRow]) -> str:
    """One line per SAE: what its condition does not say, its quality, and its delta or, of a baseline, its ceiling.

    A given SAE serves every seed. A baseline has no delta to itself.
    """
    first: Columns = {"Condition": "{condition}", **_width(rows)}
    if any(row.architecture != row.condition for row in rows):
        first = {**first, "Architecture": "{architecture}"}
    delta: Columns = {"CE-Bench delta (SD)": "{cebench_delta:+.3f}"}
    if all(row.cebench_delta is None for row in rows):
        delta = {"CE-Bench ceiling (SD)": "{cebench_ceiling:.1f}"}
    return markdown_table(rows, {**first, **_QUALITY, **delta, "Note": "{note}"})


def frontier_table(rows: Sequence[MemberRow]) -> str:
    """One line per condition, in the order of the rows: means over its seeds with their range."""
    columns: Columns = {
        "Condition": "{condition}",
        **_width(rows),
        "Seeds": "{seeds:d}",
        "Explained variance (range over seeds)": "{explained_variance:.3f}",
        "L0 (range)": "{l0:.1f}",
        "Target k": "{k:d}",
        "L0 within 10 % of k": "{l0_matched}",
        "Dead latents (range)": "{dead_fraction:.1%}",
    }
    return markdown_table(_over_seeds(map(dict, rows), "condition"), columns)


def external_table(groups: Sequence[GroupRow], members: Sequence[MemberRow]) -> str:
    """One line per condition: both external deltas with their intervals, and the calibrated CE-Bench score."""

    def interval(deltas: list[float | None]) -> str | None:
        known = [delta for delta in deltas if delta is not None]
        template = "{0.mean:+.3f} [{0.low:+.3f}, {0.high:+.3f}]"
        return _Cell().format(template, mean_interval(known)) if len(known) == len(deltas) else None

    over_seeds = {line["condition"][0]: line for line in _over_seeds(map(dict, members), "condition")}
    lines = []
    for group in groups:
        own = over_seeds[group.condition]
        deltas = {"saebench": interval(own["saebench_delta"]), "cebench": interval(own["cebench_delta"])}
        lines.append(dict(group) | deltas | {"calibrated": own["cebench_calibrated"]})
    columns: Columns = {
        "Condition": "{condition}",
        "SAEBench delta [95 % over seeds]": "{saebench}",
        "95 % over data sets": "[{sets_low:+.3f}, {sets_high:+.3f}]",
        "CE-Bench delta, SD [95 % over seeds]": "{cebench}",
        "CE-Bench calibrated (range)": "{calibrated:.2f}",
    }
    return markdown_table(lines, columns)


def data_sets_table(rows: Sequence[ProbeRow]) -> str:
    """One line per probing data set: the raw activation's AUC, and each condition's delta, averaged over seeds."""
    conditions = dict.fromkeys(row.condition for row in rows)
    raw = means_by((row.data_set, row.llm_auc) for row in rows)
    delta = means_by(((row.data_set, row.condition), row.delta) for row in rows)
    lines = [{"data_set": name, "raw": raw[name]} | {c: delta[name, c] for c in conditions} for name in raw]
    deltas: Columns = {f"{escape(name)}": f"{{{name}:+.3f}}" for name in conditions}
    return markdown_table(lines, {"Data set": "{data_set}", "Raw AUC": "{raw:.3f}", **deltas})


def sensitivity_table(winners: Mapping[str, str | None]) -> str:
    """One line per changed rule, with the group that then wins."""
    if not winners:
        return "No group is eligible."
    rows = [{"rule": rule, "winner": winner or "none"} for rule, winner in sorted(winners.items())]
    return markdown_table(rows, {"Rule": "{rule}", "Winner": "{winner}"})


def ood_table(rows: Sequence[OodRow]) -> str:
    """One line per task: AUCs and deltas in and out of domain, as means over the seeds with their range."""
    lines = []
    for row in rows:
        inside, outside = row.in_domain_auc - row.in_domain_llm_auc, row.shifted_auc - row.shifted_llm_auc
        lines.append(dict(row) | {"inside": inside, "outside": outside})
    columns: Columns = {
        "Task": "{task}",
        "SAE AUC in domain": "{in_domain_auc:.3f}",
        "Raw AUC in domain": "{in_domain_llm_auc:.3f}",
        "SAE AUC shifted": "{shifted_auc:.3f}",
        "Raw AUC shifted": "{shifted_llm_auc:.3f}",
        "Delta in domain": "{inside:+.3f}",
        "Delta shifted": "{outside:+.3f}",
        "Drop": "{drop:+.3f}",
    }
    return markdown_table(_over_seeds(lines, "task"), columns)


def reproduction_table(values: Iterable[Mapping[str, Any]]) -> str:
    """One line for each value that `husai reproduce` did not find equal."""
    columns = {"Value": "{place}", "Stated": "{stated}", "Reproduced": "{reproduced}", "Outcome": "{outcome}"}
    return markdown_table(values, columns)
