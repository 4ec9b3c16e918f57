"""Tables of records as Markdown: how a cell is formatted, and the columns of each table.

All numbers that a page shows are formatted here, so that digits, signs and missing values look the same everywhere.
"""

import html
import re
import string
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from husai_lib.decisions import gates

Template = str | Callable[[dict[str, Any]], str]
"""A `str.format` template over a row's fields, or a function of them that returns Markdown."""
Columns = Mapping[str, Template]
"""Heading -> template of the cells."""


def escape(text: str) -> str:
    """`text` as literal Markdown in one line: nothing in it acts as markup, HTML, formula or table border."""
    one_line = html.escape(" ".join(text.split()), quote=False)
    one_line = one_line.replace("\\", "&#92;")  # nbconvert reads two backslashes before a bracket as a formula
    one_line = one_line.replace("://", "&#58;//")  # and a bare address as a link
    return re.sub(r"([`*\[\]$~^|{}]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", one_line)


class Cell(string.Formatter):
    """Formats a cell template: null as `n/a`, booleans as words, a list as mean and range, all text escaped."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """The text of one field of a template."""
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


def cell(row: dict[str, Any], template: Template) -> str:
    """The Markdown that a template gives for a row's fields."""
    return template(row) if callable(template) else Cell().vformat(template, (), row)


def described(field: str) -> Callable[[dict[str, Any]], str]:
    """A template that gives the name in a field in prose."""
    return lambda row: escape(gates.describe(row[field]))


def _verdict(row: dict[str, Any]) -> str:
    return {"pass": "pass", "fail": "**FAIL**"}.get(row["verdict"], f"**{escape(row['verdict'])}**")


def _standing(row: dict[str, Any]) -> str:
    ranked = "on the Pareto front" if row["on_front"] else "behind the front"
    standing = "**selected**" if row["selected"] else "dropped" if row["joint_score"] is None else ranked
    return f"{standing}: {escape(row['note'])}" if row["note"] else standing


def _accepted(row: dict[str, Any]) -> str:
    """Whether a weight of the objective is accepted, or at which gates it fails."""
    if not row["weight"]:
        return "for comparison"
    if row["accepted"]:
        return "accepted"
    return f"**not accepted**: {escape(', '.join(f'{gate} ({verdict})' for gate, verdict in failing(row).items()))}"


def failing(acceptance: Mapping[str, Any]) -> dict[str, str]:
    """The gates of acceptance that a weight of the objective does not pass, in words, with their verdicts."""
    verdicts = {words: acceptance[f"gate_{gate}"] for gate, words in GATE_WORDS.items()}
    return {words: verdict for words, verdict in verdicts.items() if verdict not in {"pass", ""}}


def _scored(field: str, spec: str) -> Template:
    """A metric of a group, its lower bound and, where the group was ranked, the score of the bound."""
    bound, score = f"{{{field}:{spec}}} ({{{field}_low:{spec}}}", f"{{{field.removesuffix('_delta')}_score:.2f}}"
    return lambda row: cell(row, f"{bound})" if row["joint_score"] is None else f"{bound} → {score})")


GATE_WORDS = {
    "delta_pwmcc": "agreement above random decoders",
    "delta_lcb": "agreement by its lower bound",
    "ev_drop": "explained variance",
    "external": "SAEBench",
    "cebench": "CE-Bench",
}
FUNCTIONAL = "{functional_agreement:.3f} ({functional_rare:.3f} to {functional_frequent:.3f})"
OVER_TASKS = "[{tasks_low:+.3f}, {tasks_high:+.3f}]"
SETS_APART = "{level:.2%}, data sets {sets_level:.2%}"
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
        "PW-MCC within a reference": lambda row: cell(row, "" if row["pwmcc_within"] is None else "{pwmcc_within:.3f}"),
        "Random null": "{null_random:.3f}",
        "Gaussian null": "{null_gaussian:.3f}",
        "Corrected PW-MCC": "{pwmcc_corrected:+.3f}",
        "Row-column maxima": "{pwmcc_max:.3f}",
        "Encoder MCC": "{encoder_mcc:.3f}",
        "Reappearing latents": "{reappearing_fraction:.1%}",
        "Subspace overlap": "{subspace_overlap:.3f}",
        "Functional agreement (rare to frequent)": lambda row: (
            "" if row["functional_agreement"] is None else cell(row, FUNCTIONAL)
        ),
        "Note": "{note}",
    },
    # One line per weight of the consistency objective: its effects, and whether these are accepted.
    "sweep": {
        "Group": "{condition}",
        "Verdict": _accepted,
        "PW-MCC of unrelated seeds [95 %]": "{pwmcc:.3f} [{pwmcc_low:.3f}, {pwmcc_high:.3f}]",
        "Of one reference": lambda row: cell(row, "" if row["pwmcc_within"] is None else "{pwmcc_within:.3f}"),
        "Alignment": lambda row: cell(row, "" if row["alignment"] is None else "{alignment:.3f}"),
        "Above random decoders (conservative)": "{delta_pwmcc:+.3f} ({delta_lcb:+.3f})",
        "Explained variance (drop)": "{explained_variance:.3f} ({ev_drop:+.3f})",
        "SAEBench delta": "{external_delta:+.3f}",
        "CE-Bench delta (SD)": "{cebench_delta:+.3f}",
        "Checkpoint of seed": "{checkpoint_seed:d}",
        "Note": "{note}",
    },
    # One line per SAE of the sweep: validation metrics, which choose the checkpoint of each weight.
    "checkpoints": {
        "Group": "{condition}",
        "Seed": "{seed:d}",
        "Validation AUC": "{saebench:.3f}",
        "CE-Bench (SD)": "{cebench:.2f}",
        "Alignment": lambda row: cell(row, "" if row["alignment"] is None else "{alignment:.3f}"),
        "Explained variance": "{ev:.3f}",
        "External score": "{external_score:.3f}",
        "Note": "{note}",
    },
    # One line per weight of the objective, on activations with known features.
    "known_truth": {
        "lambda": "{weight:g}",
        "Recovery of the true features": "{recovery:.3f}",
        "PW-MCC of unrelated seeds": "{pwmcc:.3f}",
        "Of one reference": lambda row: cell(row, "" if row["pwmcc_within"] is None else "{pwmcc_within:.3f}"),
        "Functional agreement": "{functional_agreement:.3f}",
        "Explained variance": "{explained_variance:.3f}",
        "Note": "{note}",
    },
    # One line per metric and axis of the grid, or pair of axes.
    "effects": {
        "Metric": described("metric"),
        "Axis, or interaction": lambda row: escape(row["of"].replace(" x ", " × ")),
        "From the lowest to the highest": "{change}",
        "Effect [95 % over seeds]": lambda row: cell(
            row, "{effect:+.3f} [{low:+.3f}, {high:+.3f}]" if row["low"] is not None else "{effect:+.3f}"
        ),
        "Seeds": "{n_seeds:d}",
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
    # One line per gate; the bound is the conservative end of the interval of the stated confidence.
    "gates": {
        "Gate": described("gate"),
        "Verdict": _verdict,
        "Metric": described("metric"),
        "Value": "{value:.3f}",
        "Bound": "{bound:.3f}",
        "Confidence": lambda row: cell(row, "{level:.2%}" if row["sets_level"] in (None, row["level"]) else SETS_APART),
        "Must be": lambda row: escape(gates.requirement(row["gate"], row["threshold"])),
        "Ceiling": lambda row: "" if row["ceiling"] is None else cell(row, "{ceiling:.3f}"),
        "Required": "{required}",
        "Source": "{source}",
        "Note": "{note}",
    },
    # One line per comparison with an earlier run: both deltas, then every gate.
    "criteria": {
        "Criterion": "{criterion:d}",
        "Against": "{earlier}",
        "Metric or gate": described("metric"),
        "Here": lambda row: escape(row["verdict_here"]) or cell(row, "{here:+.3f}"),
        "There": lambda row: escape(row["verdict_there"]) or cell(row, "{there:+.3f}"),
        "Difference [95 %]": lambda row: "" if row["difference"] is None else cell(row, DIFFERENCE),
        "Outcome": lambda row: "met" if row["outcome"] == "met" else f"**{escape(row['outcome'])}**",
        "Note": "{note}",
    },
    # One line per stress control, compared with the candidate; only those about probes have the second interval.
    "controls": {
        "Control": described("control"),
        "Metric": described("metric"),
        "Candidate": "{candidate:.3f}",
        "Control value": "{control_value:.3f}",
        "Delta [over seeds]": "{delta:+.3f} [{delta_low:+.3f}, {delta_high:+.3f}]",
        "Interval over tasks": lambda row: "" if row["tasks_low"] is None else cell(row, OVER_TASKS),
        "Confidence": "{level:.2%}",
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
