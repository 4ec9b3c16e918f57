"""What pages say of the confirmation: whether there is one, and what the choice owed to luck."""

from __future__ import annotations

import synthetic_rows as made_up

from husai_lib.report import figures, sentences, tables


def test_a_confirmed_candidate_is_read_at_95_percent_over_seeds_and_surer_over_the_data_sets_that_chose_it() -> None:
    said = sentences.confirmation_sentence(4, 7, "")
    assert said.startswith("**Trained again at 4 fresh seeds.** The gate reads 95 % intervals")
    assert "over data sets has a confidence of 99.29%" in said  # 1 - 0.05 / 7
    assert said.endswith("shares the error rate of 2.5 % among the 7 groups that were compared.")


def test_without_fresh_seeds_the_reason_and_the_shared_confidence_are_said() -> None:
    said = sentences.confirmation_sentence(0, 20, "the parameters name *no* seeds")
    assert said.startswith("**Not confirmed**: the parameters name \\*no\\* seeds. The gate reads the seeds of the sel")
    assert "a confidence of 99.75%" in said
    assert sentences.confirmation_sentence(0, 1, "none").endswith("have a confidence of 95.00%.")


def test_selected_and_confirmed_means_stand_beside_each_other() -> None:
    selected = [made_up.member("topk", seed, saebench_delta=0.02) for seed in range(3)]
    fresh = [made_up.member("topk", seed, saebench_delta=value) for seed, value in ((3, -0.01), (4, 0.0), (5, 0.01))]
    [line] = [line for line in tables.confirmation_table(selected, fresh).splitlines() if "SAEBench delta |" in line]
    # t(2) at 97.5 % is 4.303, and 0.01 / sqrt(3) is 0.00577
    assert line.replace("\\", "").split(" | ")[1:] == ["+0.020 [+0.020, +0.020]", "+0.000 [-0.025, +0.025] |"]


def test_the_figure_has_a_panel_for_each_external_delta() -> None:
    members = [made_up.member("topk", seed) for seed in range(3)]
    drawn = figures.confirmation(members, members)
    assert [axes.get_xlabel().split(" (")[0] for axes in drawn.axes] == [
        "SAEBench delta", "CE-Bench delta", "calibrated delta",
    ]  # fmt: skip
    assert [tick.get_text() for tick in drawn.axes[0].get_yticklabels()] == ["seeds of the selection", "fresh seeds"]
