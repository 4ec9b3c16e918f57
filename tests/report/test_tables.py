import itertools

import pytest
from markdown_it import MarkdownIt
from synthetic_rows import (
    ATTACK,
    all_controls,
    candidates,
    control,
    gate,
    gates,
    group,
    member,
    members,
    ood_rows,
    probe,
    probes,
    sources,
    width_row,
)  # fmt: skip

from husai_lib.report import tables


def cells(table: str) -> list[list[str]]:
    """The table's lines as an independent Markdown parser reads them: text of each cell."""
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    lines: list[list[str]] = []
    for before, token in itertools.pairwise(tokens):
        if token.type == "tr_open":
            lines.append([])
        if before.type in ("th_open", "td_open"):
            assert not any(child.type.startswith(("html", "link", "code", "image")) for child in token.children or [])
            lines[-1].append("".join(child.content for child in token.children or []))
    return lines


def column(table: str, heading: str) -> list[str]:
    first, *rest = cells(table)
    return [line[first.index(heading)] for line in rest]


def test_a_table_is_a_pipe_table_with_numbers_aligned_right() -> None:
    rows = [{"name": "a", "value": 1.25}, {"name": "bb", "value": -10.0}]
    table = tables.markdown_table(rows, {"Name": "{name}", "Value (nats)": "{value:+.1f}"})
    assert table.splitlines() == [
        "| Name | Value (nats) |",
        "| :---- | ------------: |",
        "| a | +1.2 |",
        "| bb | -10.0 |",
    ]


def test_a_column_of_numbers_is_aligned_right_also_where_some_cells_are_empty() -> None:
    rows = [{"some": ""}, {"some": "0.719"}]
    assert tables.markdown_table(rows, {"Alignment": "{some}"}).splitlines()[1] == "| ---------: |"
    assert tables.markdown_table([*rows, {"some": "x"}], {"Alignment": "{some}"}).splitlines()[1] == "| :--------- |"


def test_text_from_outside_stays_text() -> None:
    assert column(tables.probes_table(probes()), "Data set") == [ATTACK]
    assert column(tables.table_of(sources()), "Data set") == ["157_amazon_5star", ATTACK]
    assert column(tables.ood_table(ood_rows()), "Task")[-1] == ATTACK


@pytest.mark.parametrize("text", ["a\nb", "a  b", "*a* _b_ `c` ~~d~~", "<b>|\\|&amp;", "[x](y) ![z](w)", "$a$ {b} ^c^"])
def test_escaped_text_reads_as_it_was_in_one_line(text: str) -> None:
    table = tables.markdown_table([{"text": text}], {"Text": "{text}"})
    assert column(table, "Text") == [" ".join(text.split())]


def test_names_with_underscores_stay_readable_in_the_source() -> None:
    assert tables.escape("117_us_state_FL") == "117_us_state_FL"


def test_a_missing_value_is_na_and_its_note_is_shown() -> None:
    table = tables.members_table([member(cebench_delta=None, note="no stories"), member(seed=1)])
    assert column(table, "CE-Bench delta (SD)") == ["n/a", "+0.375"]
    assert column(table, "Note") == ["no stories", ""]


def test_without_notes_there_is_no_note_column() -> None:
    assert "Note" not in cells(tables.members_table(members()))[0]


def test_an_l0_off_its_target_says_not_matched() -> None:
    table = tables.members_table([member(l0=8.04), member(l0=21.5, l0_matched=False)])
    assert column(table, "L0 (target k)") == ["8.0 (8)", "21.5 (8), not matched"]


def test_the_width_is_shown_where_it_differs() -> None:
    assert "Latents" not in cells(tables.members_table(members()))[0]
    assert column(tables.members_table([member(), member(d_sae=128)]), "Latents") == ["64", "128"]


def test_the_frontier_has_a_line_for_each_condition_with_mean_and_range_over_its_seeds() -> None:
    rows = [
        member("topk", 0, explained_variance=0.70, l0=8.0, dead_fraction=0.0),
        member("standard", 0, explained_variance=0.9, l0=12.0, dead_fraction=0.25, l0_matched=False),
        member("topk", 1, explained_variance=0.82, l0=8.6, dead_fraction=0.125),
        member("topk", 2, explained_variance=0.73, l0=7.7, dead_fraction=0.025),
    ]
    # (0.70 + 0.82 + 0.73) / 3 = 0.75; (8 + 8.6 + 7.7) / 3 = 8.1; (0 + 12.5 + 2.5) / 3 = 5
    assert cells(tables.frontier_table(rows)) == [
        ["Condition", "Seeds", "Explained variance (range over seeds)", "L0 (range)", "Target k", "L0 within 10 % of k",
         "Dead latents (range)"],
        ["topk", "3", "0.750 (0.700 to 0.820)", "8.1 (7.7 to 8.6)", "8", "yes", "5.0% (0.0% to 12.5%)"],
        ["standard", "1", "0.900", "12.0", "8", "no", "25.0%"],
    ]  # fmt: skip


def test_a_condition_of_which_some_seeds_are_matched_says_how_many() -> None:
    off = {"l0": 9.9, "l0_matched": False}
    table = tables.frontier_table([member(), member(seed=1, **off), member(seed=2), member("other", **off)])
    assert column(table, "L0 within 10 % of k") == ["2 of 3 seeds", "no"]


def test_the_frontier_shows_the_width_where_it_differs_and_names_as_text() -> None:
    table = tables.frontier_table([member(), member(ATTACK, d_sae=128)])
    assert column(table, "Latents") == ["64", "128"]
    assert column(table, "Condition") == ["topk", ATTACK]
    assert "Latents" not in cells(tables.frontier_table(members()))[0]
    assert tables.frontier_table([]) == "*None.*"


def test_an_estimate_and_its_lower_bound_share_a_cell() -> None:
    ranked, *_, dropped = candidates()
    table = tables.table_of([ranked.model_copy(update={"saebench_score": 0.625}), dropped])
    shown = column(table, "SAEBench delta (lower bound → score)")
    assert shown == ["-0.038 (-0.048 → 0.62)", "-0.020 (-0.048)"]
    assert column(table, "Joint score")[-1] == "n/a"


def test_digits_suit_the_quantity() -> None:
    table = tables.members_table([member()])
    assert column(table, "Explained variance") == ["0.713"]
    assert column(table, "SAEBench delta") == ["-0.042"]
    assert column(table, "Dead latents") == ["3.1%"]


def test_a_group_shows_its_interval_beside_both_nulls() -> None:
    table = tables.table_of([group()])
    assert column(table, "PW-MCC [95 %]") == ["0.523 [0.480, 0.566]"]
    assert (column(table, "Random null"), column(table, "Gaussian null")) == (["0.290"], ["0.400"])


def test_candidates_show_their_standing() -> None:
    dropped = "dropped: L0 is more than 10 % off the target k"
    standing = ["selected", "on the Pareto front", "behind the front", dropped]
    assert column(tables.table_of(candidates()), "Standing") == standing


def test_gate_verdicts_are_words() -> None:
    table = tables.table_of([*gates(), gate("external_cebench", verdict="unreachable")])
    assert column(table, "Verdict") == ["pass", "pass", "FAIL", "pass", "missing", "pass", "unreachable"]
    assert column(table, "Must be")[3] == "≤ 0.1"


def test_a_control_without_a_result_is_na() -> None:
    row = control("transcoder", control_value=None, delta=None, delta_low=None, delta_high=None, note="switched off")
    table = tables.table_of([*all_controls(), row])
    assert column(table, "Delta [over seeds]")[-1] == "n/a [n/a, n/a]"
    assert column(table, "Delta [over seeds]")[0] == "+0.113 [+0.060, +0.166]"
    assert column(table, "Control")[:2] == ["random model 1", "random model 2"]
    assert {*column(table, "Confidence")} == {"95.00%"}


def test_only_controls_of_probes_have_an_interval_over_tasks() -> None:
    over_tasks = column(tables.table_of(all_controls()), "Interval over tasks")
    assert over_tasks == ["", "", "", "", "[+0.200, +0.440]", "[-0.020, +0.240]"]
    with pytest.raises(ValueError, match="not in list"):
        column(tables.table_of(all_controls()[:4]), "Interval over tasks")


def test_the_ood_table_has_a_line_a_task_with_the_range_over_seeds() -> None:
    table = tables.ood_table(ood_rows())  # in domain .81 .82 .83 beside .85, shifted .70 .72 .74 beside .78
    assert column(table, "Task") == ["87_glue_cola", ATTACK]
    assert {heading: column(table, heading)[0] for heading in cells(table)[0][1:]} == {
        "SAE AUC in domain": "0.820 (0.810 to 0.830)",
        "Raw AUC in domain": "0.850",
        "SAE AUC shifted": "0.720 (0.700 to 0.740)",
        "Raw AUC shifted": "0.780",
        "Retained by the SAE": "69%",  # 0.22 / 0.32
        "Retained by the raw activation": "80%",  # 0.28 / 0.35
    }


def test_a_task_at_chance_in_domain_retains_no_share() -> None:
    at_chance = [row.model_copy(update={"in_domain_auc": 0.5}) for row in ood_rows()]
    assert column(tables.ood_table(at_chance), "Retained by the SAE") == ["n/a", "n/a"]


def test_the_baseline_has_no_delta_to_itself() -> None:
    table = tables.members_table([member("baseline", seed, cebench_delta=None, architecture="topk") for seed in (0, 1)])
    assert not any("CE-Bench delta" in heading for heading in cells(table)[0])
    assert column(table, "Architecture") == ["topk", "topk"]
    assert column(table, "CE-Bench ceiling (SD)") == ["7.9", "7.9"]  # 63 / 8


def test_an_empty_table_says_so() -> None:
    assert tables.table_of([]) == "*None.*"


def test_the_contrastive_table_shows_every_form_beside_the_ceiling() -> None:
    lines = cells(tables.table_of([width_row("random", 1024, 128, calibrated=None, l0=125.25)]))
    assert lines[1] == [
        "random", "1,024", "125.2 (128)", "4.00", "2.00 / 3.00", "4.00 / 5.00", "32.0", "1.00 / n/a",
    ]  # fmt: skip


def test_the_probes_of_an_sae_are_a_line_a_data_set_with_the_range_over_splits() -> None:
    other = probe("b", seed=1, delta=0.1)
    lines = cells(tables.probes_table([*probes(), other]))
    assert dict(zip(lines[0], lines[1], strict=True)) == {
        "Condition": "topk", "Seed": "0", "Data set": ATTACK, "Test rows": "250", "Best k": "3 (1 to 5)",
        "Test AUC": "0.850 (0.825 to 0.875)", "Test AUC, raw activation": "0.900",
        "Delta (smallest to largest split)": "-0.050 (-0.075 to -0.025)", "Delta, duplicates kept": "-0.100",
    }  # fmt: skip
    assert lines[2][-2:] == ["+0.100", "n/a"]


def test_the_deltas_of_a_data_set_are_without_duplicates_and_the_raw_auc_is_in_both_forms() -> None:
    table = tables.data_sets_table([*probes(), probe(ATTACK, condition="$x$", delta=0.1)])
    found = {heading: column(table, heading) for heading in cells(table)[0]}
    assert found == {"Data set": [ATTACK], "Test rows": ["250"], "Raw AUC": ["0.900"],
                     "Raw AUC, duplicates kept": ["0.950"], "topk": ["-0.050"], "$x$": ["+0.100"]}  # fmt: skip


def test_external_deltas_are_in_both_forms_each_with_its_interval() -> None:
    table = tables.external_table([group()], [member(seed=seed) for seed in range(3)])
    assert column(table, "SAEBench delta [95 % over seeds and data sets]") == ["-0.021 [-0.093, +0.051]"]
    assert column(table, "SAEBench delta, duplicates kept") == ["-0.064"]
    # 0.5, 0.75 and 1.0: 0.75 -+ 4.303 * 0.25 / sqrt(3)
    assert column(table, "CE-Bench calibrated delta, SD of null [95 %]") == ["+0.750 [+0.129, +1.371]"]
    none = tables.external_table([group()], [member(cebench_calibrated_delta=None)])
    assert column(none, "CE-Bench calibrated delta, SD of null [95 %]") == ["n/a"]


def test_ceilings_stand_beside_the_delta() -> None:
    assert cells(tables.ceilings_table([group()]))[1] == [
        "topk", "-0.021", "-0.034", "+0.012", "-0.002", "+0.045", "-0.125"
    ]  # fmt: skip
    assert tables.ceilings_table([]) == "*None.*"
