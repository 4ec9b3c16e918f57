"""Records in, sentences out, as Markdown: every sentence with a number in it that a notebook or a page shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from husai_lib import gates
from husai_lib.records import (
    EARLIER_BASELINE,
    EARLIER_D_SAE,
    GIVEN,
    CandidateRow,
    ContrastiveRow,
    GateRow,
    GroupRow,
    MemberRow,
    OodRow,
    ceiling,
    is_matched,
)
from husai_lib.tables import cell, escape


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
    said = next((cell(dict(row), template) for row in rows if row.selected), "**Nothing was selected.**")
    return f"{said} Groups seen: {len(rows)}; dropped before ranking: {sum(row.joint_score is None for row in rows)}."


def matched_sentence(rows: Sequence[MemberRow]) -> str:
    """How many SAEs have the sparsity they were asked for, and which conditions have not."""
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
        return "The parameters name no SAE of somebody else: every baseline was trained here."
    trained = {(row.d_sae, row.k): row for row in rows if row.condition != GIVEN}
    has = f"The given SAE has {given.d_sae:,} latents and an L0 of {given.l0:.1f}"
    if not trained:
        return f"{has}, within 10 % of every condition's: it **is the baseline** at every seed, and none was trained."
    return f"{has}. " + " ".join(_why_not(given, row) for row in trained.values())


def _why_not(given: MemberRow, trained: MemberRow) -> str:
    """Why a baseline was trained beside the given SAE."""
    differs = {"its width": not is_matched(given.d_sae, trained.d_sae), "its L0": not is_matched(given.l0, trained.k)}
    return (
        f"It is **not the gate's baseline** for {trained.d_sae:,} latents and k = {trained.k}: "
        f"{' and '.join(what for what, applies in differs.items() if applies)} would have to lie within 10 % of these. "
        f"CE-Bench cannot exceed {given.cebench_ceiling:.1f} at its width and {trained.cebench_ceiling:.1f} at theirs."
    )


def unreachable_sentence(d_sae: int) -> str:
    """The ceiling of a width, and from which width on the baseline of earlier cycles can be reached at all."""
    root = (EARLIER_BASELINE + math.sqrt(EARLIER_BASELINE**2 + 4)) / 2  # N - 1 = score * sqrt(N), solved for sqrt(N)
    return (
        f"At this cycle's width of {d_sae:,} latents the ceiling is **{ceiling(d_sae):.1f}**; at {EARLIER_D_SAE:,} "
        f"latents it is {ceiling(EARLIER_D_SAE):.1f}. Earlier cycles held narrow SAEs against {EARLIER_BASELINE}, the "
        f"score of a public SAE of {EARLIER_D_SAE:,} latents: no SAE of fewer than **{math.ceil(root**2):,}** latents "
        "can score that, whatever it learns."
    )


def width_sentences(rows: Sequence[ContrastiveRow]) -> str:
    """How far scores move with width and k where nothing was learned, and how trained SAEs compare."""
    at = {(row.origin, row.d_sae, row.k): row for row in rows}
    random, trained = ([row for row in rows if row.origin == origin] for origin in ("random", "trained"))
    ks, d_saes = sorted({row.k for row in random}), sorted({row.d_sae for row in random})
    wide, best = at["random", d_saes[-1], ks[0]], max(trained, key=lambda row: row.interpretability)
    than = "less" if best.interpretability < wide.interpretability else "more"
    pairs = [(row.calibrated, at["random", row.d_sae, row.k].calibrated) for row in trained]
    above = [one > other for one, other in pairs if one is not None and other is not None]
    return (
        f"**Nothing was learned** by the random SAEs. Widened from {d_saes[0]:,} to {d_saes[-1]:,} latents at "
        f"k = {ks[0]}, they go from {_both(at['random', d_saes[0], ks[0]])} to {_both(wide)}; at {d_saes[-1]:,} "
        f"latents and k = {ks[-1]} it is {_both(at['random', d_saes[-1], ks[-1]])}. The best *trained* SAE here, of "
        f"{best.d_sae:,} latents and k = {best.k}, has {_both(best)}: as published {than} than the widest random one. "
        f"**Calibrated**, random SAEs score {_range(random)} and trained ones {_range(trained)}, and a trained SAE is "
        f"above the random one of its width and k in {sum(above)} of {len(above)} cases."
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
