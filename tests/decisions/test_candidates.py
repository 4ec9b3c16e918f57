"""Candidates from every kind of record, and what may be ranked together."""

import json

import pytest
from synthetic_rows import member

from husai_lib.decisions.candidates import (
    Candidate,
    candidates_from,
    candidates_from_earlier,
    candidates_of,
    describe_setting,
    differences,
    settings_of,
)
from husai_lib.errors import DataError
from husai_lib.evidence.rows.earlier import EarlierMemberRow
from husai_lib.evidence.runs import Record


def earlier(**changes):
    values = {
        "position": 0, "condition": "topk", "architecture": "topk", "seed": 42, "d_sae": 1024, "k": 32,
        "model": "pythia", "hook_name": "blocks.0", "explained_variance": 0.74, "l0": 32.0, "saebench_delta": 0.0,
        "llm_auc": 0.7, "data_sets": "a,b", "ks": "1,2,5", "cebench_interpretability": 7.6, "cebench_delta": -40.4,
        "cebench_baseline": "res-sm", "cebench_baseline_score": 47.95, "pairs": "stories, 200", "evaluated_as": "",
        "failed": "", "checkpoint": "sae.pt", "weights_sha256": "ab", "mse": 0.01, "results_path": "",
    }  # fmt: skip
    return EarlierMemberRow(**values | changes)


def record(step, **tables):
    rows = {name: [row.model_dump() for row in own] for name, own in tables.items()}
    return Record(step, {"tables": rows, "summary": {}, "parameters": {}}, "0")


def test_members_of_a_record_become_candidates_that_name_their_own_baseline():
    row = member("topk", 3, cebench_delta=None, saebench_delta=0.5, explained_variance=0.25)
    baselines = [member("baseline", seed, weights_sha256=f"b{seed}") for seed in (2, 3)]
    same = {"hook": '"h"', "baseline of 64 latents, k = 8, seed 3": '[\n "b3"\n]'}
    expected = Candidate("frontier", "topk", "topk", 3, 0.5, None, 0.25, True, "ab" * 32, "cd" * 32, same)
    assert candidates_from("frontier", [row], {"hook": '"h"'}, baselines) == [expected]


def test_a_trained_baseline_of_another_l0_is_not_matched():
    """One of width and target k may still have any L0, where its sparsity is not tuned."""
    rows = [member("topk", seed, l0=8.2) for seed in (0, 1)]
    for l0, why in ((8.0, ""), (61.0, "the baseline's L0 is 61, the candidate's 8.2")):
        baselines = [member("baseline", seed, l0=l0) for seed in (0, 1)]
        found = candidates_from("frontier", [*rows, member("wide", 0, d_sae=128)], {}, baselines)
        assert [one.unmatched_baseline for one in found] == [why, why, ""]


def test_rows_of_an_imported_record_become_candidates_with_what_they_were_measured_on():
    [found] = candidates_from_earlier("imported/c/f", [earlier(position=4)])
    assert (found.name, found.saebench_delta, found.l0_matched, found.position) == (
        "imported/c/f/topk, seed 42", 0.0, True, 4,
    )  # fmt: skip
    assert {what: json.loads(value) for what, value in found.comparability.items()} == {
        "model name": "pythia", "hook": "blocks.0", "data sets": ["a", "b"], "probing ks": [1, 2, 5],
        "probing choose_k": "test", "stories": "stories", "pairs max_rows": 200, "baseline": "res-sm",
    }  # fmt: skip
    # (1024 - 1) / sqrt(1024) = 31.97
    assert found.unmatched_baseline == "the baseline's 47.95 lies above 31.97, the highest score of 1,024 latents"


def test_an_imported_row_without_a_checkpoint_was_no_candidate():
    assert candidates_from_earlier("f", [earlier(checkpoint="")]) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"d_sae": 32768}, "its record does not give the baseline's width and L0"),
        ({"cebench_baseline_score": None}, "its record names no baseline or no width"),
        ({"d_sae": None}, "its record names no baseline or no width"),
    ],
)
def test_an_imported_delta_has_no_matched_baseline_and_says_why(changes, why):
    assert candidates_from_earlier("f", [earlier(**changes)])[0].unmatched_baseline == why


@pytest.mark.parametrize(
    ("changes", "matched"), [({"l0": 35.2}, True), ({"l0": 35.3}, False), ({"l0": None}, False), ({"k": None}, False)]
)
def test_imported_l0_is_matched_within_ten_percent_of_a_known_k(changes, matched):
    assert candidates_from_earlier("f", [earlier(**changes)])[0].l0_matched is matched


def test_a_source_is_read_by_its_name_and_an_imported_one_needs_nothing_else():
    asked = []

    def read(name):
        asked.append(name)
        return record("x", earlier_members=[earlier()])

    assert len(candidates_of("imported/cycle3/frontier_results", read)) == 1
    assert asked == ["imported/cycle3/frontier_results"]


def test_a_source_without_saes_is_refused():
    with pytest.raises(DataError, match=r"selection\.sources: gate holds no SAEs; name a step such as frontier"):
        candidates_of("gate", lambda name: record("gate", gates=[]))


def test_differences_list_every_value_and_a_setting_that_one_lacks_is_not_known():
    pool = candidates_from_earlier("f", [earlier(), earlier(data_sets="a,b,c", position=1)])
    pool.append(Candidate("g", "a", "a", 0, 0.0, 0.0, 0.0, True, comparability={"model name": '"pythia"'}))
    found = differences([one.comparability for one in pool])
    assert [json.loads(value) for value in found["data sets"]] == [["a", "b"], ["a", "b", "c"], "not known"]
    assert "model name" not in found


def test_a_source_that_was_measured_on_other_things_is_refused_by_the_first_of_them():
    def checked(here, **changes):
        return candidates_of("c/run_x/f", lambda name: record("x", earlier_members=[earlier(**changes)]), here)

    here = {"tokens probe_tokens": "64", "hook": '"blocks.0"', "probing ks": "[\n 1\n]"}
    same = {what: here[what] for what in ("hook", "probing ks")}
    assert checked(same, ks="1") == checked(None, ks="1")  # what only the source names does not matter
    with pytest.raises(
        DataError, match=r"c/run_x/f was .* things than .*: probing ks is \[1, 2\] there and \[1\] here"
    ):
        checked(same, ks="1,2")
    with pytest.raises(DataError, match=r"probing ks is \[3\] there"):  # what both name comes first
        checked(here, ks="3")
    with pytest.raises(DataError, match=r"hook is not known there and blocks\.0 here"):
        checked(same, ks="1", hook_name="")


SECTIONS = {
    "model": {"name": "org/model", "seed": 0}, "texts": {"probing": ["a", "b"], "stories": "offline"},
    "activations": {"hook_name": "blocks.0"}, "contrastive": {"max_rows": 12, "independence": "as_published"},
    "probing": {"ks": [1, 2], "duplicates": "drop", "splits": 5},
}  # fmt: skip


@pytest.mark.parametrize(("key", "theirs", "ours"), [("duplicates", "keep", "drop"), ("splits", 1, 5)])
def test_deltas_of_other_forms_or_splits_are_not_ranked_together(key, theirs, ours):
    there = SECTIONS | {"probing": SECTIONS["probing"] | {key: theirs}}

    def read(name):
        found = record(name, members=[member()])
        return Record(name, found.data | {"parameters": there}, "0")

    assert candidates_of("c/run_x/frontier", read, settings_of(there))
    with pytest.raises(DataError, match=rf"probing {key} is {theirs} there and {ours} here"):
        candidates_of("c/run_x/frontier", read, settings_of(SECTIONS))


def test_on_request_the_deltas_are_those_that_keep_duplicate_prompts():
    rows = [member("topk", seed, saebench_delta=-0.1, saebench_delta_keep=-0.2 - 0.1 * seed) for seed in range(2)]

    def read(name):
        return Record(name, record(name, members=rows).data | {"parameters": SECTIONS}, "0")

    dropped, kept = (candidates_of("frontier", read, duplicates=duplicates) for duplicates in (False, True))
    assert [one.saebench_delta for one in dropped] == [-0.1, -0.1]
    assert [one.saebench_delta for one in kept] == pytest.approx([-0.2, -0.3])


@pytest.mark.parametrize(
    ("value", "description"),
    [
        ('"text"', "text"),
        ('["a", "b"]', "2"),
        ("[1, 2]", "[1, 2]"),
        ("null", "null"),
        (f'"{"x" * 70}"', f"{'x' * 59}…"),
    ],
)
def test_a_setting_is_described_in_few_letters(value, description):
    assert describe_setting(value) == description
