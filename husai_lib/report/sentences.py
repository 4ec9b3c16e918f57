"""Records in, sentences out, as Markdown: every sentence with a number that a notebook or a page shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from itertools import groupby
from statistics import fmean
from typing import Any

from husai_lib.decisions import gates
from husai_lib.decisions.criteria import NOT_KNOWN, counted, criterion_outcome, lost_controls, passes
from husai_lib.evidence.rows import (
    EARLIER_BASELINE,
    EARLIER_D_SAE,
    GIVEN,
    CandidateRow,
    ContrastiveRow,
    CriterionRow,
    GateRow,
    GroupRow,
    MemberRow,
    OodRow,
    ReplayRow,
    RuleChangeRow,
    ceiling,
    is_matched,
)
from husai_lib.report.tables import DIFFERENCE, cell, escape


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
    selected = next((cell(dict(row), template) for row in rows if row.selected), "**Nothing was selected.**")
    dropped = sum(row.joint_score is None for row in rows)
    return f"{selected} Groups considered: {len(rows)}; dropped before ranking: {dropped}."


def matched_sentence(rows: Sequence[MemberRow]) -> str:
    """How many SAEs reach their target sparsity, and which conditions do not."""
    off = sorted({escape(row.condition) for row in rows if not row.l0_matched})
    matched = f"{sum(row.l0_matched for row in rows)} of {len(rows)} SAEs have an L0 within 10 % of the target k"
    return f"{matched}; **not matched**: {', '.join(off)}." if off else f"{matched}."


def ood_sentence(rows: Sequence[OodRow]) -> str:
    """What the shift costs the raw activation and the SAE on average, and the task with the largest drop."""
    raw = fmean(row.in_domain_llm_auc - row.shifted_llm_auc for row in rows)
    drops = {name: fmean(row.drop for row in rows if row.task == name) for name in {row.task for row in rows}}
    worst = max(sorted(drops), key=drops.__getitem__)
    drop = fmean(drops.values())
    return (
        f"Averaged over {len(drops)} tasks, the shift costs the raw activation {raw:.3f} of its AUC and the SAE "
        f"{raw + drop:.3f}, so the drop is {drop:+.3f}. It is largest in {escape(worst)} ({drops[worst]:+.3f})."
    )


def given_sentence(rows: Sequence[MemberRow]) -> str:
    """Whether the given SAE is the baseline that CE-Bench deltas are taken against, and if not, why."""
    given = next((row for row in rows if row.condition == GIVEN), None)
    if given is None:
        return "The parameters name no existing SAE as the baseline, so every baseline was trained here."
    trained = {(row.d_sae, row.k): row for row in rows if row.condition != GIVEN}
    has = f"The given SAE has {given.d_sae:,} latents and an L0 of {given.l0:.1f}"
    if not trained:
        return f"{has}, within 10 % of every condition: it **is the baseline** at every seed, and none was trained."
    return f"{has}. " + " ".join(_why_not(given, row) for row in trained.values())


def _why_not(given: MemberRow, trained: MemberRow) -> str:
    """Why a baseline was trained beside the given SAE."""
    differs = {"its width": not is_matched(given.d_sae, trained.d_sae), "its L0": not is_matched(given.l0, trained.k)}
    return (
        f"It is **not the gate's baseline** for {trained.d_sae:,} latents and k = {trained.k}: "
        f"{' and '.join(what for what, applies in differs.items() if applies)} would have to be within 10 % of these. "
        f"CE-Bench cannot exceed {given.cebench_ceiling:.1f} at its width, nor {trained.cebench_ceiling:.1f} at theirs."
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
    """How scores depend on width and k where nothing was learned, and how trained SAEs compare."""
    at = {(row.origin, row.d_sae, row.k): row for row in rows}
    random, trained = ([row for row in rows if row.origin == origin] for origin in ("random", "trained"))
    ks, d_saes = sorted({row.k for row in random}), sorted({row.d_sae for row in random})
    wide, best = at["random", d_saes[-1], ks[0]], max(trained, key=lambda row: row.interpretability)
    than = "less" if best.interpretability < wide.interpretability else "more"
    pairs = [(row.calibrated, at["random", row.d_sae, row.k].calibrated) for row in trained]
    above = [one > other for one, other in pairs if one is not None and other is not None]
    return (
        f"The random SAEs have **learned nothing**. From {d_saes[0]:,} to {d_saes[-1]:,} latents at k = {ks[0]} "
        f"their score goes from {_both(at['random', d_saes[0], ks[0]])} to {_both(wide)}; at {d_saes[-1]:,} latents "
        f"and k = {ks[-1]} it is {_both(at['random', d_saes[-1], ks[-1]])}. The best *trained* SAE here, of "
        f"{best.d_sae:,} latents and k = {best.k}, scores {_both(best)}: as published, {than} than the widest random "
        f"SAE. **Calibrated**, random SAEs score {_range(random)} and trained ones {_range(trained)}; a trained SAE is "
        f"above the random SAE of its width and k in {sum(above)} of {len(above)} cases."
    )


def _both(row: ContrastiveRow) -> str:
    return f"{row.interpretability:.1f} as published ({row.interpretability_as_released:.1f} as released)"


def _range(rows: Sequence[ContrastiveRow]) -> str:
    known = [row.calibrated for row in rows if row.calibrated is not None]
    return f"{min(known):+.1f} to {max(known):+.1f}" if known else "n/a"


def stability_sentence(rows: Sequence[GroupRow]) -> str:
    """How many conditions agree across seeds more than the Gaussian null does, by their bounds."""
    above = [escape(row.condition) for row in rows if row.pwmcc_low is not None and row.pwmcc_low > row.null_gaussian]
    return (
        f"PW-MCC exceeds the Gaussian null by its lower 95 % bound in {len(above)} of {len(rows)} conditions"
        f"{' (' + ', '.join(above) + ')' if above else ''}."
    )


def model_sentence(model: Mapping[str, Any], activations: Mapping[str, Any]) -> str:
    """Which model is read at which hook, and whether texts start with BOS; takes these sections of the parameters."""
    bos = "with" if model["prepend_bos"] else "without"
    return (
        f"The model is `{model['name']}`, every text {bos} BOS; activations are read at `{activations['hook_name']}`."
    )


def disjoint_sentence(texts: int) -> str:
    """That no training text occurs in another role, and how many distinct ones there are."""
    return f"The training data sets hold {texts:,} distinct texts, and none of them occurs in any other role."


def trained_sentence(conditions: Sized, seeds: Sized) -> str:
    """The number of SAEs that are trained."""
    return f"{len(conditions) * len(seeds)} SAEs: {len(conditions)} conditions at {len(seeds)} seeds."


def candidate_sentence(selected: Mapping[str, Any] | None, rows: Sequence[MemberRow]) -> str:
    """The candidate that the controls test; takes the selected candidate of a summary and the members of its record."""
    if selected is None:
        return "No candidate was selected, so there is nothing to test."
    seeds = sum(row.condition == selected["condition"] for row in rows)
    return f"The candidate is `{selected['condition']}` at {seeds} seeds."


def representative_sentence(selected: Mapping[str, Any] | None) -> str:
    """Which checkpoint represents the selected group; takes the selected candidate of a summary."""
    if selected is None:
        return "There is no representative, because no group is eligible."
    weights = selected["weights_sha256"][:12]
    return f"The representative is seed {selected['seed']} of `{selected['condition']}`, weights `{weights}`."


def measured_on_sentence(
    model: Mapping[str, Any], activations: Mapping[str, Any], texts: Mapping[str, Any], story_pairs: int
) -> str:
    """What a cycle was measured on; takes these sections of the parameters and the number of pairs of stories."""
    offline = texts["stories"] == "offline"
    stories = "the offline stories of this project" if offline else texts["stories"]
    return (
        f"Model `{model['name']}`, hook `{activations['hook_name']}`, "
        f"{len(texts['probing'])} probing data sets, {story_pairs} pairs of {stories}."
    )


def stories_sentence(stories: str) -> str:
    """Whether CE-Bench scores on these stories can be compared with published ones."""
    if stories != "offline":
        return "CE-Bench was run on the set of stories named above."
    return (
        "CE-Bench scores on the offline stories **cannot be compared with published ones**: they depend on the stories."
    )


def results_sentence(records: Sized) -> str:
    """What `results.json` holds."""
    return f"`results.json` holds the tables of {len(records)} records, without times, paths or machine names."


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
        return f"{first} It is alone on the Pareto front: no other eligible group is better in either benchmark."
    return f"{first} The next on the front, {escape(front[1].condition)}, has {_terms(front[1], weights)}."


def _terms(row: CandidateRow, weights: Mapping[str, float]) -> str:
    parts = (
        ("saebench", row.saebench_score, "SAEBench"),
        ("cebench", row.cebench_score, "CE-Bench"),
        ("train_ev", row.explained_variance_score, "explained variance"),
    )
    terms = " + ".join(f"{weights[name]:g} × {score or 0.0:.2f} ({what})" for name, score, what in parts)
    return f"{row.joint_score or 0.0:.3f} = {terms}"


def scaling_sentence(by_scaling: Mapping[str, str]) -> str:
    """Whether the choice depends on groups that cannot win, because they stretch the scale of the others."""
    if not by_scaling:
        return "No dominated group affects the choice: without any one of them the same group wins."
    named = sorted(by_scaling.items())
    cases = "; ".join(f"without {escape(name)}, {escape(winner)} would win" for name, winner in named)
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


def rule_changes_sentence(rows: Sequence[RuleChangeRow]) -> str:
    """Each imported decision, and the winner under all of today's rules together; a list in Markdown."""
    lines = []
    for decision in dict.fromkeys(row.decision for row in rows):
        then, *today = [row for row in rows if row.decision == decision]
        last = [row.winner for row in today if row.rule == today[-1].rule]
        kept = ", ".join(f"**{escape(name)}**" for name in last if name) or "**nothing**"
        chosen = f"**{escape(then.winner)}**, seed {then.representative_seed}" if then.winner else "nothing"
        lines.append(f"- {escape(decision)} selected {chosen}. Today's rules together select {kept}.")
    return "\n".join(lines) or "There is no decision to recompute."


_ASKED = {
    "random_model": "Do its seeds agree more than those of the same recipe on a model with random weights?",
    "random_decoder": "Do its seeds agree more than random decoders do?",
    "transcoder": "Do the seeds of a matched transcoder agree at least as much as its own?",
    "ood": "Does its probing delta hold under a shift of domain?",
    "external_saebench": "Do a few of its latents probe as well as the whole activation?",
    "external_cebench": "Do its latents distinguish stories at least as well as those of a matched baseline?",
    "external": "Do both benchmarks pass?",
}


def gate_sentences(rows: Sequence[GateRow]) -> str:
    """Each required gate as a question, with the number that answers it; a list in Markdown."""
    required = [row for row in rows if row.required]
    return "\n".join(f"- {_ASKED[row.gate]} {_answer(row)}" for row in required) or "No gate is required."


def _answer(row: GateRow) -> str:
    word = {"pass": "Yes", "fail": "**No**"}.get(row.verdict, f"**Not shown** ({escape(row.verdict)})")
    if row.value is None or row.verdict == "unreachable":
        return f"{word}: {escape(row.note)}."
    if row.bound is None:
        return f"{word}: {row.value:+.3f}; {escape(row.note)}."
    required = escape(gates.requirement(row.gate, row.threshold))
    return f"{word}: {row.value:+.3f}, and {row.bound:+.3f} at the worse end of its interval; it must be {required}."


def outcome_sentence(rows: Sequence[CriterionRow]) -> str:
    """A sentence for each earlier run and criterion, as a Markdown list: met, not met or not comparable, and why."""
    if not rows:
        return "The parameters name no earlier cycle, so this comparison was **not made**."
    parts = [list(own) for _, own in groupby(sorted(rows, key=_which), key=_which)]
    met = {n: sum(own[0].criterion == n and criterion_outcome(own) == "met" for own in parts) for n in (1, 2)}
    earlier = len({row.earlier for row in rows})
    shown = "Progress is shown" if set(met.values()) == {earlier} else "Progress is not shown"
    counts = f"criterion 1 is met against {met[1]} of {earlier} earlier cycles, criterion 2 against {met[2]}"
    return "\n".join([f"**{shown}**: {counts}.", "", *(f"- {_criterion_sentence(own)}" for own in parts)])


def _which(row: CriterionRow) -> tuple[str, int]:
    return (row.earlier, row.criterion)


def _criterion_sentence(rows: Sequence[CriterionRow]) -> str:
    why = _gates_compared(rows) if rows[0].criterion == 2 else _deltas_compared(rows)
    return f"Criterion {rows[0].criterion} against {escape(rows[0].earlier)}: **{criterion_outcome(rows)}** ({why})."


def _deltas_compared(rows: Sequence[CriterionRow]) -> str:
    if any(row.difference is not None for row in rows):
        return "; ".join(map(_difference, rows))
    notes = list(dict.fromkeys(note for row in rows for note in row.note.split("; ")))
    differ = list(dict.fromkeys(note.partition(":")[0] for note in notes if " here, " in note))
    reasons = [f"measured on different things: {', '.join(differ)}"] if differ else []
    unknown = {name for note in notes if note.startswith(NOT_KNOWN) for name in note.partition(": ")[2].split(", ")}
    reasons += [f"{len(unknown)} settings of one of them are not known"] if unknown else []
    return escape("; ".join(reasons or notes))


def _difference(row: CriterionRow) -> str:
    name, note = escape(gates.describe(row.metric)), escape(row.note)
    if row.difference is None:
        return f"{name} {row.outcome}: {note}"
    return f"{name} {cell(dict(row), DIFFERENCE)}" + (f", {note}" if note else "")


def _gates_compared(rows: Sequence[CriterionRow]) -> str:
    compared = counted(rows)
    if not compared:
        return "no gate there can be compared"
    lost = ", ".join(escape(gates.describe(name)) for name in lost_controls(compared)) or "none"
    both = f"{passes(compared, 'verdict_here')} pass here and {passes(compared, 'verdict_there')} there"
    return f"of {len(compared)} gates required there, {both}; stress controls lost: {lost}"
