"""Sentences with numbers in them: what each says of given rows."""

from synthetic_rows import (
    candidate,
    candidates,
    gate,
    gates,
    group,
    groups,
    member,
    members,
    ood_rows,
    probe,
    width_row,
    width_rows,
)

from husai_lib.evidence.rows.decided import CandidateRow
from husai_lib.evidence.rows.earlier import ReplayRow
from husai_lib.report import sentences, tables


def test_the_ood_sentence_names_what_is_retained_and_where_most_is_lost() -> None:
    worse = [row.model_copy(update={"task": "5_ismale", "shifted_auc": 0.6}) for row in ood_rows()[:3]]
    # above chance, the raw activation has 0.35 and 0.28, the SAE 0.32 in domain, 0.22 and 0.10 shifted
    assert sentences.ood_sentence([*ood_rows()[:3], *worse]) == (
        "Over 2 tasks, the raw activation retains 80% of its AUC above chance and the SAE 50%. The SAE loses most in "
        "5_ismale (0.220 of its AUC)."
    )


def test_the_ood_sentence_of_an_sae_at_chance_states_no_share() -> None:
    dead = [row.model_copy(update={"in_domain_auc": 0.5, "shifted_auc": 0.5}) for row in ood_rows()]
    assert "and the SAE n/a." in sentences.ood_sentence(dead)


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
        "CE-Bench delta. Groups considered: 4; dropped before ranking: 1."
    )
    nothing = sentences.selection_sentence([candidate(selected=False, joint_score=None)])
    assert nothing == "**Nothing was selected.** Groups considered: 1; dropped before ranking: 1."


def test_the_matching_sentence_names_conditions_that_are_off() -> None:
    assert sentences.matched_sentence([member()]) == "1 of 1 SAEs have an L0 within 10 % of the target k."
    assert sentences.matched_sentence(members()).startswith("9 of 12 SAEs")
    assert sentences.matched_sentence(members()).endswith("**not matched**: standard.")


def test_stability_is_judged_by_the_bound_not_the_estimate() -> None:
    sentence = sentences.stability_sentence(groups())  # standard: 0.42 > 0.40, but its bound 0.35 is not
    assert "in 2 of 3 conditions (topk, batchtopk)" in sentence


def test_the_unreachable_sentence_names_the_narrowest_width_that_can_reach_the_earlier_baseline() -> None:
    sentence = sentences.unreachable_sentence(1024)
    # 2300 / sqrt(2301) = 47.948 < 47.95 < 47.958 = 2301 / sqrt(2302)
    assert "no SAE of fewer than **2,302** latents" in sentence
    assert "At this cycle's width of 1,024 latents the ceiling is **32.0**; at 32,768 latents it is 181.0." in sentence


def test_the_width_sentences_compare_random_saes_over_widths_and_name_the_best_trained_one() -> None:
    assert sentences.width_sentences(width_rows()) == (
        "The random SAEs have **learned nothing**, yet at k = 32 their score as published goes from 1.0 at 64 latents "
        "to 16.0 at 1,024. The best *trained* SAE, of 256 latents and k = 32, scores 4.0. **Calibrated**, trained "
        "SAEs are above random ones of their width and k in 4 of 4."
    )


def test_the_width_sentences_leave_out_what_has_no_calibrated_score() -> None:
    random, trained = width_row("random", 64, 8, calibrated=3.0), width_row("trained", 64, 8)
    assert "in 0 of 1." in sentences.width_sentences([random, trained.model_copy(update={"calibrated": 2.0})])
    assert "in 0 of 0." in sentences.width_sentences([random, trained.model_copy(update={"calibrated": None})])


def weighed(condition: str, joint: float, scores: tuple[float, float, float], **changes: object) -> CandidateRow:
    names = ("saebench_score", "cebench_score", "explained_variance_score")
    return candidate(condition, joint_score=joint, **dict(zip(names, scores, strict=True)), **changes)


def test_the_winner_is_explained_term_by_term_beside_the_next_on_the_front() -> None:
    rows = [weighed("topk", 0.6, (1.0, 0.0, 1.0)), weighed("gated", 0.55, (0.1, 1.0, 0.0), selected=False),
            weighed("far", 0.9, (0.9, 0.9, 0.9), selected=False, on_front=False)]  # fmt: skip
    weights = {"saebench": 0.5, "cebench": 0.5, "train_ev": 0.1}
    assert sentences.winner_sentence(rows, weights) == (
        "**topk** wins with a joint score of 0.600 = 0.5 × 1.00 (SAEBench) + 0.5 × 0.00 (CE-Bench) + 0.1 × 1.00 "
        "(explained variance). The next on the front, gated, has 0.550 = 0.5 × 0.10 (SAEBench) + 0.5 × 1.00 (CE-Bench) "
        "+ 0.1 × 0.00 (explained variance)."
    )
    assert sentences.winner_sentence(rows[:1], weights).endswith(
        "no other eligible group scores higher on either benchmark."
    )
    assert sentences.winner_sentence([candidate(on_front=False)], weights).startswith("No group is eligible")


def test_a_dominated_group_that_decides_by_stretching_the_scale_is_named() -> None:
    assert sentences.scaling_sentence({}).startswith("No dominated group affects the choice")
    sentence = sentences.scaling_sentence({"frontier/far": "frontier/a"})
    assert sentence.endswith("scale of the others: without frontier/far, frontier/a would win.")


def replay(**changes: object) -> ReplayRow:
    values = {"decision": "d", "winner": "topk", "values": 173, "differing": 0, "largest_difference": 1e-15}
    return ReplayRow(**values | changes)  # type: ignore[arg-type]


def test_a_decision_counts_as_reproduced_only_if_all_its_numbers_are() -> None:
    rows = [replay(), replay(values=10, differing=1), replay(values=0, largest_difference=None)]
    assert sentences.replays_sentence(rows) == (
        "1 of 3 imported decisions are **reproduced by their own rules**, in all 173 of their numbers and names."
    )
    assert "none was recomputed" in sentences.replays_sentence([])


def test_each_required_gate_is_a_question_with_its_number() -> None:
    rows = [
        gate("random_model"), gate("transcoder", value=-0.023, bound=-0.08, verdict="fail"),
        gate("ood", value=0.05, bound=0.09, threshold=0.1, direction="below"),
        gate("external_cebench", value=None, bound=None, verdict="missing", note="the control was not run"),
        gate("external_saebench", value=0.2, bound=None, verdict="fail", note="too few seeds"),
        gate("external", required=False),
    ]  # fmt: skip
    random, transcoder, ood, cebench, saebench, _, furthest = sentences.gate_sentences(rows, "bound").splitlines()
    assert random.endswith("Yes: +0.113, and +0.060 at the worse end of its interval; it must be &gt; 0.")
    assert "**No**: -0.023, and -0.080 at the worse end" in transcoder
    assert transcoder.endswith("it must be ≥ 0. With an interval of this width, a value above +0.057 would pass.")
    assert furthest == (  # 0.08 missed, of a half width of 0.057
        "Furthest from passing is **transcoder**, whose bound misses its threshold by 1.4 times the half width of its "
        "interval. Its value does not pass either, but its interval holds values that would: nothing is settled."
    )
    assert ood.endswith("it must be ≤ 0.1.")
    assert cebench.endswith("**Not shown** (missing): the control was not run.")
    assert saebench.endswith("**No**: +0.200; too few seeds.")


def test_the_gate_furthest_from_passing_is_the_one_that_misses_most_by_its_own_interval() -> None:
    near = gate("ood", value=0.05, bound=0.15, threshold=0.1, direction="below", verdict="fail")  # misses by a half
    far = gate("external_saebench", value=-0.01, bound=-0.02, verdict="fail")  # misses by two, though by less
    assert "Furthest from passing is **external SAEBench**" in sentences.gate_sentences([near, far], "bound")
    out_of_reach = gate("transcoder", value=-0.11, bound=-0.12, threshold=-0.05, verdict="fail")
    said = sentences.gate_sentences([near, out_of_reach], "bound")
    assert said.endswith("No value in its interval passes, so it takes another SAE rather than more seeds.")
    alone = sentences.gate_sentences([near], "bound")
    assert alone.endswith("by 0.5 times the half width of its interval. Its value passes, so more seeds may be enough.")
    assert "a value below +0.000 would pass" in alone
    assert "Furthest" not in sentences.gate_sentences([gate("ood", value=0.05, bound=0.09, threshold=0.1)], "bound")


def test_gates_that_read_values_are_not_explained_by_their_bounds() -> None:
    passing = gate("ood", value=0.05, bound=0.15, threshold=0.1, direction="below")
    missing = gate("external_saebench", value=-0.01, bound=-0.02, verdict="fail")
    yes, no = sentences.gate_sentences([passing, missing], "value").splitlines()
    assert yes.endswith("Yes: +0.050, which must be ≤ 0.1; +0.150 at the worse end of its interval, which is not read.")
    assert "**No**: -0.010, which must be ≥ 0; -0.020" in no
    assert "would pass" not in no


def test_what_was_measured_on_and_what_the_stories_allow() -> None:
    parameters = {
        "model": {"name": "pythia-70m", "prepend_bos": True}, "activations": {"hook_name": "blocks.3.hook_resid_post"},
        "texts": {"probing": ["a", "b"], "stories": "offline"}, "contrastive": {"max_rows": 64},
    }  # fmt: skip
    assert sentences.measured_on_sentence(parameters) == (
        "Model `pythia-70m`, every text with BOS, hook `blocks.3.hook_resid_post`; 2 probing data sets; at most 64 "
        "pairs of the offline stories of this project, whose scores **cannot be compared with published ones**."
    )
    parameters["model"]["prepend_bos"] = False
    parameters["texts"]["stories"] = "GulkoA/contrastive-stories-v4"
    sentence = sentences.measured_on_sentence(parameters)
    assert "every text without BOS" in sentence
    assert sentence.endswith("at most 64 pairs of GulkoA/contrastive-stories-v4.")


def test_candidates_measured_on_different_things_are_named_in_bold() -> None:
    assert sentences.pooled_sentence({}).startswith("All candidates were measured on the same model, hook")
    sentence = sentences.pooled_sentence({"data sets": ["a", "b"], "hook": ["c", "d", "e"]})
    assert sentence.startswith("**They were not measured on the same things**")
    assert sentence.endswith("data sets (2 different), hook (3 different).")


def test_what_comes_from_a_mapping_has_one_order_as_records_are_read_back_sorted() -> None:
    for sentence, one, other in (
        (sentences.pooled_sentence, {"hook": ["a", "b"]}, {"data sets": ["a", "b", "c"]}),
        (sentences.scaling_sentence, {"f/z": "f/a"}, {"f/b": "f/c"}),
        (tables.sensitivity_table, {"without": "f/a"}, {"at least": None}),
    ):
        assert sentence(one | other) == sentence(other | one)  # type: ignore[operator]


def test_sets_of_few_test_rows_are_named_with_their_weight() -> None:
    kept = probe("c", duplicates="keep", test_rows=10)  # as published, all weigh the same
    rows = [probe("a", test_rows=50), probe("b", test_rows=99), probe("b", split=43, test_rows=99), probe("c"), kept]
    assert sentences.small_sets_sentence(rows) == (
        "2 of 3 data sets have fewer than 200 test rows without duplicates and weigh less than 1 in the mean: "
        "a 0.25; b 0.49."
    )
    assert sentences.small_sets_sentence([probe("c"), kept]) == (
        "Every data set has at least 200 test rows without duplicates, so all weigh the same."
    )


def test_the_headroom_sentence_calls_only_the_best_single_latent_a_bound() -> None:
    assert sentences.headroom_sentence([group(), group("batchtopk", saebench_delta=-0.2)]) == (
        "The highest SAEBench delta is -0.021, that of **topk**. Probes of all its latents at once reach +0.012, and "
        "probes that were fitted on the test rows +0.045. **No probe of a single latent can exceed -0.125**; the other "
        "two are fits and bound nothing."
    )
    assert sentences.headroom_sentence([]) == "No condition was probed."
