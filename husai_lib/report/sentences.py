"""Records in, sentences out, as Markdown: every sentence with a number that a notebook or a page shows."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from husai_lib.decisions import gates
from husai_lib.decisions.criteria import counted, criterion_outcome, lost_controls, passes
from husai_lib.evidence.rows.base import EARLIER_BASELINE, EARLIER_D_SAE, GIVEN, ceiling, shared_level
from husai_lib.evidence.rows.controls import OodRow, retained
from husai_lib.evidence.rows.decided import CandidateRow, CriterionRow, GateRow
from husai_lib.evidence.rows.earlier import ReplayRow
from husai_lib.evidence.rows.measured import ContrastiveRow, GroupRow, MemberRow
from husai_lib.evidence.rows.probes import ENOUGH_TEST_ROWS, ProbeRow, set_weight
from husai_lib.intervals import means_by
from husai_lib.report.cells import cell, escape


def verdict_sentence(rows: Sequence[GateRow]) -> str:
    """The verdict in bold, and the required gates that decided it."""
    verdict, colon, reason = escape(gates.verdict_sentence(rows)).partition(":")
    return f"**{verdict}**{colon}{reason}"


def selection_sentence(rows: Sequence[CandidateRow]) -> str:
    """Which group was selected, out of how many, and how surely."""
    template = (
        "Selected: **{condition}** ({n_seeds} seeds), with lower 95 % bounds of {saebench_delta_low:+.3f} on the "
        "SAEBench delta and {cebench_delta_low:+.3f} SD on the CE-Bench delta."
    )
    alone = (
        "Selected: **{condition}** (a single seed, so there are no bounds), with a SAEBench delta of "
        "{saebench_delta:+.3f} and a CE-Bench delta of {cebench_delta:+.3f} SD."
    )
    texts = [cell(dict(row), template if row.n_seeds > 1 else alone) for row in rows if row.selected]
    selected = texts[0] if texts else "**Nothing was selected.**"
    dropped = sum(row.joint_score is None for row in rows)
    return f"{selected} Groups considered: {len(rows)}; dropped before ranking: {dropped}."


def confirmation_sentence(fresh: int, compared: int, why_not: str) -> str:
    """Whether the selected condition was trained again at fresh seeds, and which intervals the gate therefore reads."""
    shared = f"a confidence of {shared_level(compared):.2%}"
    among = f", which shares the error rate of 2.5 % among the {compared} groups that were compared" * (compared > 1)
    if fresh:
        return (
            f"**Trained again at {fresh} fresh seeds.** The gate reads 95 % intervals over these seeds. The data sets "
            f"are those of the selection, so the part of the SAEBench interval over data sets has {shared}{among}."
        )
    unconfirmed = f"**Not confirmed**: {escape(why_not)}."
    if not compared:
        return unconfirmed
    return f"{unconfirmed} The gate reads the seeds of the selection. Its intervals have {shared}{among}."


def matched_sentence(rows: Sequence[MemberRow]) -> str:
    """How many SAEs reach their target sparsity, and which conditions do not."""
    off = sorted({escape(row.condition) for row in rows if not row.l0_matched})
    matched = f"{sum(row.l0_matched for row in rows)} of {len(rows)} SAEs have an L0 within 10 % of the target k"
    return f"{matched}; **not matched**: {', '.join(off)}." if off else f"{matched}."


def small_sets_sentence(probes: Sequence[ProbeRow]) -> str:
    """Which probing data sets have few test rows without duplicates, and what they weigh in the mean delta."""
    dropped = [probe for probe in probes if probe.duplicates == "drop"]
    names = dict.fromkeys(probe.data_set for probe in dropped)
    weights = {name: set_weight([probe for probe in dropped if probe.data_set == name]) for name in names}
    small = {name: weight for name, weight in weights.items() if weight < 1}
    if not small:
        return f"Every data set has at least {ENOUGH_TEST_ROWS} test rows without duplicates, so all weigh the same."
    named = "; ".join(f"{escape(name)} {weight:.2f}" for name, weight in small.items())
    return (
        f"{len(small)} of {len(names)} data sets have fewer than {ENOUGH_TEST_ROWS} test rows without duplicates and "
        f"weigh less than 1 in the mean: {named}."
    )


def headroom_sentence(groups: Sequence[GroupRow]) -> str:
    """What the best condition's SAEBench delta would be with every latent, and at most with a single one."""
    if not groups:
        return "No condition was probed."
    best = max(groups, key=lambda row: row.saebench_delta)
    template = (
        "The highest SAEBench delta is {saebench_delta:+.3f}, that of **{condition}**. Probes of all its latents at "
        "once reach {full_width_delta:+.3f}, and probes that were fitted on the test rows {oracle_delta:+.3f}. **No "
        "probe of a single latent can exceed {single_latent_delta:+.3f}**; the other two are fits and bound nothing."
    )
    return cell(dict(best), template)


def ood_sentence(rows: Sequence[OodRow]) -> str:
    """How much of its AUC above chance the raw activation and the SAE retain, and the task where the SAE loses most."""
    if not rows:
        return "No task was probed under a shift of domain."
    losses = means_by((row.task, row.in_domain_auc - row.shifted_auc) for row in rows)
    shares = {"raw": retained(rows, "llm_auc"), "own": retained(rows), "tasks": len(losses)}
    average = "Over {tasks} tasks, the raw activation retains {raw:.0%} of its AUC above chance and the SAE {own:.0%}."
    worst = max(sorted(losses), key=losses.__getitem__)
    return f"{cell(shares, average)} The SAE loses most in {escape(worst)} ({losses[worst]:.3f} of its AUC)."


def given_sentence(rows: Sequence[MemberRow]) -> str:
    """Whether the given SAE is the baseline that CE-Bench deltas are taken against, and if not, where it is not."""
    given = next((row for row in rows if row.condition == GIVEN), None)
    if given is None:
        return "The parameters name no existing SAE as the baseline, so every baseline was trained here."
    has = f"The given SAE has {given.d_sae:,} latents and an L0 of {given.l0:.1f}"
    shapes = sorted({(row.d_sae, row.k) for row in rows if row.condition != GIVEN})
    if not shapes:
        return f"{has}, within 10 % of every condition: it **is the baseline** at every seed, and none was trained."
    named = "; ".join(f"{d_sae:,} latents and k = {k}" for d_sae, k in shapes)
    return (
        f"{has}. It is **not the gate's baseline** for {named}: either is more than 10 % off there, so a baseline was "
        "trained. CE-Bench scores of other widths have other ceilings."
    )


def unreachable_sentence(d_sae: int) -> str:
    """The ceiling of a width, and the smallest width that can reach the baseline of earlier cycles."""
    root = (EARLIER_BASELINE + math.sqrt(EARLIER_BASELINE**2 + 4)) / 2  # N - 1 = score * sqrt(N), solved for sqrt(N)
    return (
        f"At this cycle's width of {d_sae:,} latents the ceiling is **{ceiling(d_sae):.1f}**; at {EARLIER_D_SAE:,} "
        f"latents it is {ceiling(EARLIER_D_SAE):.1f}. Earlier cycles compared narrow SAEs with {EARLIER_BASELINE}, the "
        f"score of a public SAE of {EARLIER_D_SAE:,} latents: no SAE of fewer than **{math.ceil(root**2):,}** latents "
        "can reach it, whatever it learns."
    )


def width_sentences(rows: Sequence[ContrastiveRow]) -> str:
    """How the published score grows with the width where nothing was learned, and what calibration makes of it."""
    random, trained = ([row for row in rows if row.origin == origin] for origin in ("random", "trained"))
    smallest = sorted((row for row in random if row.k == min(row.k for row in random)), key=lambda row: row.d_sae)
    narrow, wide = smallest[0], smallest[-1]
    best = max(trained, key=lambda row: row.interpretability)
    null = {(row.d_sae, row.k): row.calibrated for row in random}
    pairs = [(row.calibrated, null[row.d_sae, row.k]) for row in trained]
    above = [one > other for one, other in pairs if one is not None and other is not None]
    return (
        f"The random SAEs have **learned nothing**, yet at k = {wide.k} their score as published goes from "
        f"{narrow.interpretability:.1f} at {narrow.d_sae:,} latents to {wide.interpretability:.1f} at {wide.d_sae:,}. "
        f"The best *trained* SAE, of {best.d_sae:,} latents and k = {best.k}, scores {best.interpretability:.1f}. "
        f"**Calibrated**, trained SAEs are above random ones of their width and k in {sum(above)} of {len(above)}."
    )


def stability_sentence(rows: Sequence[GroupRow]) -> str:
    """How many conditions agree across seeds more than the Gaussian null does, by their bounds."""
    bounds = [(row.condition, row.pwmcc_low, row.null_gaussian) for row in rows]
    above = [escape(name) for name, low, null in bounds if low is not None and null is not None and low > null]
    return (
        f"PW-MCC exceeds the Gaussian null by its lower 95 % bound in {len(above)} of {len(rows)} conditions"
        f"{' (' + ', '.join(above) + ')' if above else ''}."
    )


def measured_on_sentence(parameters: Mapping[str, Mapping[str, Any]]) -> str:
    """What a cycle is measured on, and whether its CE-Bench scores can be compared with published ones.

    Takes the parameters of the step `activations`.
    """
    model, texts = parameters["model"], parameters["texts"]
    bos = "with" if model["prepend_bos"] else "without"
    own = "the offline stories of this project, whose scores **cannot be compared with published ones**"
    return (
        f"Model `{model['name']}`, every text {bos} BOS, hook `{parameters['activations']['hook_name']}`; "
        f"{len(texts['probing'])} probing data sets; at most {parameters['contrastive']['max_rows']} pairs of "
        f"{own if texts['stories'] == 'offline' else texts['stories']}."
    )


def pooled_sentence(pooled: Mapping[str, Sequence[str]]) -> str:
    """Whether all candidates were measured on the same things, and if not, in what they differ."""
    if not pooled:
        return (
            "All candidates were measured on the same model, hook, data sets, tokens, probe settings, stories and "
            "pairs, and against the same baseline where width, k and seed are equal."
        )
    found = ", ".join(f"{escape(what)} ({len(values)} different)" for what, values in sorted(pooled.items()))
    return f"**They were not measured on the same things**, and only the rules 2026-02 rank them together: {found}."


def winner_sentence(rows: Sequence[CandidateRow], weights: Mapping[str, float]) -> str:
    """Why the selected group won: its joint score, term by term, and that of the next group on the front."""
    front = [row for row in rows if row.on_front]
    if not front:
        return "No group is eligible, so there is no joint score."
    first = f"**{escape(front[0].condition)}** wins with a joint score of {_terms(front[0], weights)}."
    if len(front) == 1:
        return f"{first} It is alone on the Pareto front: no other eligible group scores higher on either benchmark."
    return f"{first} The next on the front, {escape(front[1].condition)}, has {_terms(front[1], weights)}."


def _terms(row: CandidateRow, weights: Mapping[str, float]) -> str:
    return (
        f"{row.joint_score or 0.0:.3f} = {weights['saebench']:g} × {row.saebench_score or 0.0:.2f} (SAEBench) + "
        f"{weights['cebench']:g} × {row.cebench_score or 0.0:.2f} (CE-Bench) + "
        f"{weights['train_ev']:g} × {row.explained_variance_score or 0.0:.2f} (explained variance)"
    )


def scaling_sentence(by_scaling: Mapping[str, str]) -> str:
    """Whether the choice depends on groups that cannot win, because they stretch the scale of the others."""
    if not by_scaling:
        return "No dominated group affects the choice: without any one of them the same group wins."
    cases = "; ".join(f"without {escape(name)}, {escape(by_scaling[name])} would win" for name in sorted(by_scaling))
    return f"**The scaling decides here.** Groups that cannot win stretch the 0 to 1 scale of the others: {cases}."


def replays_sentence(rows: Sequence[ReplayRow]) -> str:
    """How many imported decisions their own rules reproduce, and over how many numbers."""
    if not rows:
        return "These parameters name no imported decision, so none was recomputed."
    same = [row for row in rows if row.values and not row.differing]
    return (
        f"{len(same)} of {len(rows)} imported decisions are **reproduced by their own rules**, in all "
        f"{sum(row.values for row in same):,} of their numbers and names."
    )


def outcome_sentence(rows: Sequence[CriterionRow]) -> str:
    """A sentence for each earlier run and criterion, as a Markdown list: met, not met or not comparable.

    The table of criteria says why.
    """
    if not rows:
        return "The parameters name no earlier cycle, so this comparison was **not made**."
    lines, outcomes = [], set()
    for earlier, criterion in itertools.product(sorted({row.earlier for row in rows}), (1, 2)):
        own = [row for row in rows if (row.earlier, row.criterion) == (earlier, criterion)]
        outcomes.add(outcome := criterion_outcome(own))
        comparison = ""
        if criterion == 2 and (compared := counted(own)):
            lost = ", ".join(escape(gates.describe(name)) for name in lost_controls(compared)) or "none"
            both = f"{passes(compared, 'verdict_here')} pass here and {passes(compared, 'verdict_there')} there"
            comparison = f" (of {len(compared)} gates required there, {both}; stress controls lost: {lost})"
        elif criterion == 2:
            comparison = " (no gate there can be compared)"
        lines.append(f"- Criterion {criterion} against {escape(earlier)}: **{outcome}**{comparison}.")
    return "\n".join([f"**Progress is {'shown' if outcomes == {'met'} else 'not shown'}**:", "", *lines])


def gate_sentences(rows: Sequence[GateRow], basis: str) -> str:
    """Each required gate as a question, with its answer; Markdown.

    Where gates read bounds (`basis`), it also says what would pass, and which gate is furthest from passing.
    """
    required = [row for row in rows if row.required]
    lines = [f"- {gates.RULES[row.gate].question} {_answer(row, basis)}" for row in required]
    missed = {row.gate: by for row in required if row.gate != "external" and (by := half_widths_missed(row))}
    if missed and basis == "bound":
        furthest = max(missed, key=missed.__getitem__)
        if missed[furthest] < 1:
            so = "Its value passes, so more seeds may be enough"
        elif missed[furthest] <= 2:  # one half width beyond the value
            so = "Its value does not pass either, but its interval holds values that would: nothing is settled"
        else:
            so = "No value in its interval passes, so it takes another SAE rather than more seeds"
        lines.append(
            f"\nFurthest from passing is **{escape(gates.describe(furthest))}**, whose bound misses its threshold by "
            f"{missed[furthest]:.1f} times the half width of its interval. {so}."
        )
    return "\n".join(lines) or "No gate is required."


def half_widths_missed(row: GateRow) -> float | None:
    """By how many half widths of its interval the bound of a gate that fails misses the threshold; None of others."""
    if row.verdict != "fail" or row.value is None or row.bound is None or row.value == row.bound:
        return None
    return abs(row.threshold - row.bound) / abs(row.value - row.bound)


def _answer(row: GateRow, basis: str) -> str:
    word = {"pass": "Yes", "fail": "**No**"}.get(row.verdict, f"**Not shown** ({escape(row.verdict)})")
    if row.value is None or row.verdict == "unreachable":
        return f"{word}: {escape(row.note)}."
    must = escape(gates.requirement(row.gate, row.threshold))
    note = f" ({escape(row.note)})" if row.note else ""
    if row.bound is None and basis == "value":
        return f"{word}: {row.value:+.3f}, which must be {must}; it has no interval{note}."
    if row.bound is None:
        return f"{word}: {row.value:+.3f}; {escape(row.note)}."
    worse = f"{row.bound:+.3f} at the worse end of its interval"
    if basis == "value":
        return f"{word}: {row.value:+.3f}, which must be {must}; {worse}, which is not read{note}."
    said = f"{word}: {row.value:+.3f}, and {worse}; it must be {must}{note}."
    if row.verdict != "fail" or row.gate == "external":
        return said
    beyond = f"{'below' if row.direction == 'below' else 'above'} {row.threshold + row.value - row.bound:+.3f}"
    return f"{said} With an interval of this width, a value {beyond} would pass."
