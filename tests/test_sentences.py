"""Sentences with numbers in them: what each says of given rows."""

from synthetic_rows import candidate, candidates, gate, gates, groups, member, members, ood_rows, width_row, width_rows

from husai_lib import sentences


def test_the_ood_sentence_names_what_the_shift_costs_and_where_most() -> None:
    worse = [row.model_copy(update={"task": "5_ismale", "drop": row.drop + 0.02}) for row in ood_rows()[:3]]
    # the raw activation falls from .85 to .78, the SAE by the mean drop of .03 and .05 more
    assert sentences.ood_sentence([*ood_rows()[:3], *worse]) == (
        "Averaged over 2 tasks, the shift costs the raw activation 0.070 of its AUC and the SAE 0.110, so the drop is "
        "+0.040. It is largest in 5_ismale (+0.050)."
    )


def test_the_verdict_counts_required_gates_and_names_those_that_fail() -> None:
    assert sentences.verdict_sentence(gates()) == (
        "**Not releasable**: 2 of 6 required gates fail (transcoder, external SAEBench: missing)."
    )


def test_a_failing_gate_that_is_not_required_does_not_count() -> None:
    rows = [gate("random_model"), gate("transcoder", verdict="fail", required=False)]
    assert sentences.verdict_sentence(rows) == "**Releasable**: all 1 required gates pass."


def test_without_a_required_gate_nothing_may_be_released() -> None:
    nothing = "**Not releasable**: no gate is required, so nothing was shown."
    assert sentences.verdict_sentence([gate("ood", required=False)]) == sentences.verdict_sentence([]) == nothing


def test_a_verdict_with_a_name_from_outside_stays_text() -> None:
    sentence = sentences.verdict_sentence([gate("<b>*x*", verdict="fail")])
    assert sentence == r"**Not releasable**: 1 of 1 required gates fails (&lt;b&gt;\*x\*)."


def test_the_selection_sentence_names_the_choice_or_its_absence() -> None:
    assert sentences.selection_sentence(candidates()) == (
        "Selected: **topk** (3 seeds), with lower 95 % bounds of -0.048 on the SAEBench delta and +0.065 SD on the "
        "CE-Bench delta. Groups seen: 4; dropped before ranking: 1."
    )
    nothing = sentences.selection_sentence([candidate(selected=False, joint_score=None)])
    assert nothing == "**Nothing was selected.** Groups seen: 1; dropped before ranking: 1."


def test_the_matching_sentence_names_conditions_that_are_off() -> None:
    assert sentences.matched_sentence([member()]) == "1 of 1 SAEs have an L0 within 10 % of the target k."
    assert sentences.matched_sentence(members()).startswith("9 of 12 SAEs")
    assert sentences.matched_sentence(members()).endswith("**not matched**: standard.")


def test_stability_is_judged_by_the_bound_not_the_estimate() -> None:
    sentence = sentences.stability_sentence(groups())  # standard: 0.42 > 0.40, but its bound 0.35 is not
    assert "in 2 of 3 conditions (topk, batchtopk)" in sentence


def test_the_unreachable_sentence_names_the_narrowest_width_that_can_reach_the_earlier_baseline() -> None:
    said = sentences.unreachable_sentence(1024)
    # 2300 / sqrt(2301) = 47.948 < 47.95 < 47.958 = 2301 / sqrt(2302)
    assert "no SAE of fewer than **2,302** latents" in said
    assert "At this cycle's width of 1,024 latents the ceiling is **32.0**; at 32,768 latents it is 181.0." in said


def test_the_width_sentences_compare_random_saes_over_widths_and_ks_and_trained_ones_with_the_widest() -> None:
    assert sentences.width_sentences(width_rows()) == (
        "**Nothing was learned** by the random SAEs. Widened from 64 to 1,024 latents at k = 32, they go from 2.0 as "
        "published (2.5 as released) to 32.0 as published (40.0 as released); at 1,024 latents and k = 128 it is 8.0 "
        "as published (10.0 as released). The best *trained* SAE here, of 256 latents and k = 32, has 8.0 as published "
        "(10.0 as released): as published less than the widest random one. **Calibrated**, random SAEs score +3.2 to "
        "+12.8 and trained ones +5.2 to +14.8, and a trained SAE is above the random one of its width and k in 4 of 4 "
        "cases."
    )


def test_the_width_sentences_say_when_a_trained_sae_scores_more_and_leave_out_what_has_no_calibrated_score() -> None:
    random, trained = width_row("random", 64, 8, calibrated=3.0), width_row("trained", 64, 8, interpretability=9.0)
    assert "as published more than the widest random one" in sentences.width_sentences([random, trained])
    assert "in 0 of 1 cases" in sentences.width_sentences([random, trained.model_copy(update={"calibrated": 2.0})])
    none = sentences.width_sentences([random, trained.model_copy(update={"calibrated": None})])
    assert "random SAEs score +3.0 to +3.0 and trained ones n/a" in none
    assert "in 0 of 0 cases" in none
