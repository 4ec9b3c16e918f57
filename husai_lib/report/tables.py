"""Records in, tables out, as Markdown that pandoc, GitHub and notebooks read alike.

A table is a mapping of headings to cell templates over a row's fields.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from husai_lib.evidence.rows.base import GIVEN, Row
from husai_lib.evidence.rows.controls import OodRow, retained
from husai_lib.evidence.rows.measured import GroupRow, MemberRow
from husai_lib.evidence.rows.probes import ProbeRow
from husai_lib.evidence.rows.tables import TABLES
from husai_lib.intervals import mean_interval, means_by
from husai_lib.report.cells import LAYOUTS, Cell, Columns, Template, cell, described, escape
from husai_lib.report.comparison import Difference


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


def _rule(heading: str, cells: Sequence[str]) -> str:
    """The dashes below a heading: a colon on the right aligns numbers right, and pandoc takes widths from the count."""
    dashes = "-" * min(max(map(len, [heading, *cells])), 40)
    return f"{dashes}:" if all(re.match(r"[+-]?\d[\d.,%]*( |$)|n/a|$", cell) for cell in cells) else f":{dashes}"


_NAMES = {row_class: name for name, row_class in TABLES.items()}


def table_of(rows: Sequence[Row]) -> str:
    """One line per row, in the layout of its kind."""
    return markdown_table(rows, LAYOUTS[_NAMES[type(rows[0])]] if rows else {})


def _over_seeds(rows: Iterable[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """One row for each value of `key`, in order, whose fields list the values of all its rows."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return [{"seeds": len(g)} | {field: [row[field] for row in g] for field in g[0]} for g in groups.values()]


def _width(rows: Sequence[MemberRow]) -> Columns:
    """A column for the width, where it differs between rows."""
    return {"Latents": "{d_sae:,d}"} if len({row.d_sae for row in rows}) > 1 else {}


def members_table(rows: Sequence[MemberRow]) -> str:
    """One line per SAE: what its condition does not say, its quality, and its delta or, of a baseline, its ceiling.

    A given SAE serves every seed. A baseline has no delta to itself.
    """
    columns: dict[str, Template] = {"Condition": "{condition}", **_width(rows)}
    if any(row.architecture != row.condition for row in rows):
        columns["Architecture"] = "{architecture}"
    columns |= {
        "Seed": lambda row: "every" if row["condition"] == GIVEN else str(row["seed"]),
        "Explained variance": "{explained_variance:.3f}",
        "L0 (target k)": lambda row: cell(row, "{l0:.1f} ({k})" + ("" if row["l0_matched"] else ", not matched")),
        "Dead latents": "{dead_fraction:.1%}",
        "SAEBench delta": "{saebench_delta:+.3f}",
        "CE-Bench interpretability (SD)": "{cebench_interpretability:.2f}",
        "CE-Bench calibrated (SD of null)": "{cebench_calibrated:.2f}",
    }
    if all(row.cebench_delta is None for row in rows):
        columns["CE-Bench ceiling (SD)"] = "{cebench_ceiling:.1f}"
    else:
        columns["CE-Bench delta (SD)"] = "{cebench_delta:+.3f}"
    return markdown_table(rows, columns | {"Note": "{note}"})


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


CEBENCH_DELTAS = ("cebench_delta", "cebench_calibrated_delta")


def external_table(groups: Sequence[GroupRow], members: Sequence[MemberRow]) -> str:
    """One line per condition: its external deltas with their intervals, SAEBench in both forms and CE-Bench in both."""
    lines = []
    for group in groups:
        own = [row for row in members if row.condition == group.condition]
        deltas = {name: _with_interval([getattr(row, name) for row in own]) for name in CEBENCH_DELTAS}
        lines.append(dict(group) | deltas)
    columns: Columns = {
        "Condition": "{condition}",
        "SAEBench delta [95 % over seeds and data sets]": (
            "{saebench_delta:+.3f} [{saebench_low:+.3f}, {saebench_high:+.3f}]"
        ),
        "SAEBench delta, duplicates kept": "{saebench_delta_keep:+.3f}",
        "CE-Bench delta, SD [95 % over seeds]": "{cebench_delta}",
        "CE-Bench calibrated delta, SD of null [95 %]": "{cebench_calibrated_delta}",
    }
    return markdown_table(lines, columns)


def _with_interval(values: Sequence[float | None]) -> str | None:
    """The mean over seeds with its 95 % interval; None where a seed has no value."""
    known = [value for value in values if value is not None]
    template = "{0.mean:+.3f} [{0.low:+.3f}, {0.high:+.3f}]"
    return Cell().format(template, mean_interval(known)) if known and len(known) == len(values) else None


def probes_table(rows: Sequence[ProbeRow]) -> str:
    """One line per SAE and data set: means over the splits without duplicates with their range, and the other form."""
    lines = []
    for row in rows:
        line = dict(row) | {"line": (row.condition, row.seed, row.data_set), "kept": None}
        if row.duplicates == "keep":
            line |= dict.fromkeys(("test_rows", "best_k", "test_auc", "llm_auc", "delta")) | {"kept": row.delta}
        lines.append(line)
    columns: Columns = {
        "Condition": "{condition}",
        "Seed": "{seed:d}",
        "Data set": "{data_set}",
        "Test rows": "{test_rows:,.0f}",
        "Best k": "{best_k:.3g}",
        "Test AUC": "{test_auc:.3f}",
        "Test AUC, raw activation": "{llm_auc:.3f}",
        "Delta (smallest to largest split)": "{delta:+.3f}",
        "Delta, duplicates kept": "{kept:+.3f}",
    }
    return markdown_table(_over_seeds(lines, "line"), columns)


def data_sets_table(rows: Sequence[ProbeRow]) -> str:
    """One line per probing data set: the raw activation's AUC, and each condition's delta, averaged over seeds.

    Both are without duplicates and averaged over splits; the raw AUC is also shown with them.
    """
    dropped, kept = ([row for row in rows if row.duplicates == form] for form in ("drop", "keep"))
    conditions = dict.fromkeys(row.condition for row in dropped)
    raw, raw_kept = (means_by((row.data_set, row.llm_auc) for row in form) for form in (dropped, kept))
    delta = means_by(((row.data_set, row.condition), row.delta) for row in dropped)
    tested = {row.data_set: row.test_rows for row in dropped}
    lines = [
        {"data_set": name, "tested": tested[name], "raw": raw[name], "raw_kept": raw_kept.get(name)}
        | {f"delta_{i}": delta[name, condition] for i, condition in enumerate(conditions)}
        for name in raw
    ]
    deltas: Columns = {escape(name): f"{{delta_{i}:+.3f}}" for i, name in enumerate(conditions)}
    columns: Columns = {
        "Data set": "{data_set}",
        "Test rows": "{tested:,d}",
        "Raw AUC": "{raw:.3f}",
        "Raw AUC, duplicates kept": "{raw_kept:.3f}",
    }
    return markdown_table(lines, {**columns, **deltas})


def ceilings_table(groups: Sequence[GroupRow]) -> str:
    """One line per condition: its SAEBench delta, and what it would be with more latents, labels or the test rows."""
    columns: Columns = {
        "Condition": "{condition}",
        "SAEBench delta": "{saebench_delta:+.3f}",
        "Largest number of latents": "{largest_k_delta:+.3f}",
        "Full width": "{full_width_delta:+.3f}",
        "Supervised": "{supervised_delta:+.3f}",
        "Oracle": "{oracle_delta:+.3f}",
        "Best single latent (exact)": "{single_latent_delta:+.3f}",
    }
    return markdown_table(groups, columns)


CONFIRMED = {
    "SAEBench delta": "saebench_delta", "SAEBench delta, duplicates kept": "saebench_delta_keep",
    "CE-Bench delta (SD)": "cebench_delta", "CE-Bench calibrated delta (SD of null)": "cebench_calibrated_delta",
    "Explained variance": "explained_variance", "L0": "l0", "Dead latents": "dead_fraction",
}  # fmt: skip
"""Metrics that the selection and the confirmation both measured, with their columns."""


def confirmation_table(selected: Sequence[MemberRow], fresh: Sequence[MemberRow]) -> str:
    """One line per metric: its mean at the seeds of the selection and at fresh ones, each with its 95 % interval."""
    lines = []
    for name, column in CONFIRMED.items():
        known = ([value for row in rows if (value := getattr(row, column)) is not None] for rows in (selected, fresh))
        shown, fresh_shown = (_with_interval(values) for values in known)
        lines.append({"metric": name, "selected": shown, "fresh": fresh_shown})
    columns: Columns = {
        "Metric": "{metric}",
        "Selected [95 % over seeds]": "{selected}",
        "Confirmed [95 % over seeds]": "{fresh}",
    }
    return markdown_table(lines, columns)


def sensitivity_table(winners: Mapping[str, str | None]) -> str:
    """One line per changed rule, with the group that then wins."""
    if not winners:
        return "No group is eligible."
    rows = [{"rule": rule, "winner": winner or "none"} for rule, winner in sorted(winners.items())]
    return markdown_table(rows, {"Rule": "{rule}", "Winner": "{winner}"})


def ood_table(rows: Sequence[OodRow]) -> str:
    """One line per task: AUCs in and out of domain, as means over the seeds with their range, and what is retained."""
    lines = _over_seeds(map(dict, rows), "task")
    for line in lines:
        own = [row for row in rows if row.task == line["task"][0]]
        line |= {"own": retained(own), "raw": retained(own, "llm_auc")}
    columns: Columns = {
        "Task": "{task}",
        "SAE AUC in domain": "{in_domain_auc:.3f}",
        "Raw AUC in domain": "{in_domain_llm_auc:.3f}",
        "SAE AUC shifted": "{shifted_auc:.3f}",
        "Raw AUC shifted": "{shifted_llm_auc:.3f}",
        "Retained by the SAE": "{own:.0%}",
        "Retained by the raw activation": "{raw:.0%}",
    }
    return markdown_table(lines, columns)


def reproduction_table(values: Iterable[Mapping[str, Any]]) -> str:
    """One line for each value that `husai reproduce` did not find equal."""
    columns = {"Value": "{place}", "Stated": "{stated}", "Reproduced": "{reproduced}", "Outcome": "{outcome}"}
    return markdown_table(values, columns)


def comparison_table(found: Sequence[Difference], runs: Sequence[str]) -> str:
    """One line for each thing that is not the same in all runs, with its value in each."""
    lines = []
    for one in found:
        values = ("n/a" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in one.values)
        lines.append({"kind": one.kind, "what": one.what} | {f"run_{i}": value for i, value in enumerate(values)})
    of_runs: Columns = {escape(name): f"{{run_{i}}}" for i, name in enumerate(runs)}
    return markdown_table(lines, {"Of": "{kind}", "What": "{what}", **of_runs})


def plan_table(needs: Iterable[Mapping[str, Any]]) -> str:
    """One line per gate: what was measured, and how many seeds or data sets would show the assumed true value."""
    columns: Columns = {
        "Gate": described("gate"),
        "Threshold": "{threshold:g}",
        "Estimate": "{estimate:+.4g}",
        "SD over seeds": "{seeds_std:.3g}",
        "SD over data sets": "{sets_std:.3g}",
        "Assumed true value": "{true_value:+.4g}",
        "Seeds needed": "{seeds}",
        "Data sets needed": "{sets}",
        "Remark": "{remark}",
    }
    return markdown_table(needs, columns)
