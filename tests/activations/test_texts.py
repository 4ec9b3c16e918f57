"""Texts are those of sae-probes, drawn in proportion, and no training text has another role."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants
from sae_probes.utils_data import get_yvals, read_numbered_dataset_df
from scipy.stats import chisquare

from husai_lib.activations import texts
from husai_lib.activations.texts import (
    OFFLINE_STORIES,
    check_disjoint,
    distinct_rows,
    drawn_texts,
    further_pairs,
    probing_set,
    story_pairs,
)
from husai_lib.errors import DataError
from husai_lib.files import REPOSITORY
from husai_lib.params.catalogue import data_set_names
from husai_lib.params.cycle import load_cycle
from husai_lib.params.inputs import TextParams

OwnSets = Callable[..., None]


@pytest.fixture
def own_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnSets]:
    """Data sets of a test's own in place of sae-probes'; each is given as (prompt, target) pairs."""
    monkeypatch.setattr(texts, "probe_data_folder", lambda: tmp_path)
    probing_set.cache_clear()

    def write(**sets: list[tuple[object, object]]) -> None:
        for name, pairs in sets.items():
            folder, suffix = ("OOD data", "") if name.endswith("_OOD") else ("cleaned_data", "")
            (tmp_path / folder).mkdir(exist_ok=True)
            pd.DataFrame(pairs, columns=["prompt", "target"]).to_csv(
                tmp_path / folder / f"{name}{suffix}.csv.zst", index=False
            )

    yield write
    probing_set.cache_clear()


def roles(**names: list[str]) -> TextParams:
    """Text parameters with names of data sets that only this test knows."""
    given: dict[str, Any] = {"training": ["a"], "held_out": ["b"], "probing": ["c"], "ood": ["d"], "stories": "offline"}
    return TextParams.model_construct(**given | names)


# --- probing data sets -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["87_glue_cola", "94_ai_gen", "161_agnews_0", "117_us_state_FL", "73_control-group"])
def test_prompts_and_labels_are_those_of_sae_probes(name: str) -> None:
    data = probing_set(name)
    np.testing.assert_array_equal(data.labels, get_yvals(name))
    assert list(data.prompts) == read_numbered_dataset_df(name)["prompt"].tolist()


def test_a_shifted_set_has_other_prompts_and_the_same_two_classes() -> None:
    inside, shifted = probing_set("73_control-group"), probing_set("73_control-group", shifted=True)
    assert (len(shifted.prompts), set(shifted.labels)) == (300, {0, 1})
    assert len(set(inside.prompts) & set(shifted.prompts)) < 10  # sae-probes left a few lines of code untranslated
    german = [label for prompt, label in zip(shifted.prompts, shifted.labels, strict=True) if "ontrollgruppe" in prompt]
    assert len(german) > 50
    assert np.mean(german) < 0.05  # class 0 is 'bigram', in domain as here: "control group"


def test_labels_follow_the_alphabet(own_sets: OwnSets) -> None:
    own_sets(a=[("1", "yes"), ("2", "no"), ("3", "yes")])
    assert probing_set("a").labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("classes", [["x"], ["x", "y", "z"]])
def test_a_data_set_without_exactly_two_classes_is_refused(own_sets: OwnSets, classes: list[str]) -> None:
    own_sets(a=[(f"text {i}", classes[i % len(classes)]) for i in range(6)])
    with pytest.raises(DataError, match=rf"'a' has {len(classes)} class\(es\)"):
        probing_set("a")


@pytest.mark.parametrize("prompt", ["", "  \n", None])
def test_a_blank_prompt_is_refused(own_sets: OwnSets, prompt: str | None) -> None:
    own_sets(a=[("text", "x"), (prompt, "y")])
    with pytest.raises(DataError, match="'a' holds an empty prompt"):
        probing_set("a")


def test_prompts_that_pandas_takes_for_missing_or_for_numbers_stay_texts(own_sets: OwnSets) -> None:
    own_sets(a=[("NA", "x"), ("null", "y")], b=[("0012", "x"), ("1e3", "y")])
    assert probing_set("a").prompts == ("NA", "null")
    assert probing_set("b").prompts == ("0012", "1e3")


def test_max_rows_takes_the_first_rows_of_each_class(own_sets: OwnSets) -> None:
    own_sets(a=[(f"{target}{i}", target) for i in range(5) for target in "xxy"])
    data = probing_set("a", max_rows=7)
    assert data.labels.tolist().count(0) == data.labels.tolist().count(1) == 3
    assert data.prompts == ("x0", "x0", "y0", "x1", "y1", "y2")


# --- duplicates ------------------------------------------------------------------------------


def test_of_equal_prompts_the_first_is_kept_and_one_with_both_labels_is_left_out(own_sets: OwnSets) -> None:
    own_sets(a=[("one", "x"), ("two", "y"), ("one", "x"), ("both", "x"), ("two", "y"), ("both", "y"), ("three", "x"),
                ("four", "y")])  # fmt: skip
    data = probing_set("a")
    assert distinct_rows(data).tolist() == [0, 1, 6, 7]
    assert distinct_rows(data, {"three", "other"}).size == 2  # as many of each class


def test_the_larger_class_is_drawn_from_at_random_but_always_the_same(own_sets: OwnSets) -> None:
    own_sets(a=[(f"text {i}", "xy"[i < 20]) for i in range(200)])
    kept = distinct_rows(probing_set("a"))
    assert kept.tolist() == sorted(kept.tolist()) == distinct_rows(probing_set("a")).tolist()
    assert kept[:20].tolist() == list(range(20))
    assert len(kept) == 40
    assert kept[20:].max() - kept[20:].min() > 100


@pytest.mark.parametrize(
    ("name", "rows", "distinct"), [("130_temp_cat_Frequency", 1062, 371), ("41_truthqa_tf", 786, 490)]
)
def test_published_data_sets_hold_most_prompts_more_than_once(name: str, rows: int, distinct: int) -> None:
    data = probing_set(name)
    kept = distinct_rows(data)
    assert (len(data.prompts), len(set(data.prompts))) == (rows, distinct)
    assert len({data.prompts[i] for i in kept}) == len(kept) <= distinct
    assert np.bincount(data.labels[kept]).tolist() == [len(kept) // 2] * 2


def test_nearly_every_published_data_set_can_be_probed_without_duplicates() -> None:
    sizes = {name: len(distinct_rows(probing_set(name))) for name in data_set_names()}
    assert sorted(name for name, size in sizes.items() if size < 300) == [
        "130_temp_cat_Frequency", "131_temp_cat_Typical Time", "132_temp_cat_Event Ordering",
        "144_cancer_cat_Colon_Cancer",
    ]  # fmt: skip


# --- training and held-out text --------------------------------------------------------------


def test_any_prefix_of_the_drawn_texts_has_the_sources_in_proportion() -> None:
    names = ["89_glue_mrpc", "117_us_state_FL", "95_toxic_is"]
    drawn = drawn_texts(names, seed=0)
    shares = Counter(text.data_set for text in drawn)
    assert set(shares) == set(names)
    for length in (200, 1000, len(drawn) // 2):
        found = Counter(text.data_set for text in drawn[:length])
        expected = [shares[name] * length / len(drawn) for name in names]
        # with a fixed seed this either holds or not; for a random order it fails once in a thousand
        assert chisquare([found[name] for name in names], expected).pvalue > 1e-3


def test_drawn_texts_are_all_texts_once_in_an_order_that_only_the_seed_decides() -> None:
    names = ["161_agnews_0", "162_agnews_1"]
    first, again, other = (drawn_texts(names, seed) for seed in (0, 0, 1))
    assert first == again != other
    prompts = [text.text for text in first]
    assert len(set(prompts)) == len(prompts)
    assert set(prompts) == {prompt for name in names for prompt in probing_set(name).prompts}
    assert set(prompts) == {text.text for text in other}


def test_data_sets_of_other_names_that_share_a_text_are_found() -> None:
    given = TextParams(
        training=["161_agnews_0"], held_out=["162_agnews_1"], probing=["95_toxic_is"], ood=["87_glue_cola"]
    )
    with pytest.raises(DataError, match="'161_agnews_0' shares a text with '162_agnews_1'"):
        check_disjoint(given)


@pytest.mark.parametrize("role", ["b", "c", "d", "d_OOD"])
def test_a_training_text_may_occur_in_no_other_role_nor_in_a_shifted_set(own_sets: OwnSets, role: str) -> None:
    sets = {name: [(f"{name}{i}", "xy"[i % 2]) for i in range(4)] for name in ("a", "b", "c", "d", "d_OOD")}
    own_sets(**sets)
    assert check_disjoint(roles()) == 4
    probing_set.cache_clear()
    own_sets(**sets | {role: [*sets[role], ("a2", "x")]})
    with pytest.raises(DataError, match=f"'a' shares a text with '{role.removesuffix('_OOD')}' \\('a2'"):
        check_disjoint(roles())


def test_texts_of_data_sets_without_two_classes_can_be_drawn() -> None:
    drawn = drawn_texts(["111_yelp_data"], seed=0)
    assert len(drawn) > 4900
    assert {text.data_set for text in drawn} == {"111_yelp_data"}


def test_all_data_sets_can_be_probed_beside_training_texts_that_none_of_them_holds() -> None:
    given = TextParams(training=["45_context_ans"], held_out=["86_social_iqa"], probing="all", ood=["87_glue_cola"])
    assert len(given.probing) == 113
    assert check_disjoint(given) > 3900
    sixteen = given.model_validate(given.model_dump() | {"probing": "husai16"})
    assert len(sixteen.probing) == 16
    assert set(sixteen.probing) < set(given.probing)


def test_the_cycles_of_this_repository_train_on_texts_they_do_not_measure_on() -> None:
    for name, distinct in (("smoke", 4000), ("quickstart", 8000)):
        cycle = load_cycle(REPOSITORY / "params" / f"{name}.yaml")
        assert check_disjoint(cycle.texts) > distinct


# --- stories ---------------------------------------------------------------------------------


def test_the_offline_stories_are_read_in_order_up_to_max_rows() -> None:
    lines = OFFLINE_STORIES.read_text(encoding="utf-8").splitlines()
    pairs = story_pairs("offline", 5)
    assert [first.data_set for first, _ in pairs] == [second.data_set for _, second in pairs]
    assert [first.data_set for first, _ in pairs] == [json.loads(line)["subject"] for line in lines[:5]]
    assert len(story_pairs("offline", 10_000)) == len(lines)
    assert all(first.text != second.text for first, second in story_pairs("offline", 10_000))


def test_validation_gets_the_pairs_that_the_benchmark_leaves() -> None:
    assert further_pairs("offline", 40) == story_pairs("offline", 80)[40:]
    with pytest.raises(
        DataError, match=r"stories 'offline' have no more than 200 pairs, .*; lower contrastive.max_rows"
    ):
        further_pairs("offline", 200)


def test_a_relative_path_of_stories_starts_at_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert story_pairs("husai_lib/data/contrastive_stories.jsonl", 3) == story_pairs("offline", 3)


ROW = {"subject": "s", "story1": "one", "story2": "two"}
BAD = {
    "not JSON": ("{", "cannot be read"),
    "no such file": (None, "cannot be read"),
    "not UTF-8": (b"\xff\xfe", "cannot be read"),
    "a column less": (json.dumps({"subject": "s", "story1": "one"}), r"\('story2'\); .* the columns subject, story1, "),
    "not an object": ("[1, 2]", "cannot be read"),
    "an empty story": (json.dumps(ROW | {"story2": " "}), "have no pair or an empty story"),
    "no line": ("\n", "have no pair or an empty story"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_stories_are_refused_with_what_a_line_must_be(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "stories.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        story_pairs(str(path), 5)


def test_stories_that_the_hub_does_not_have_are_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'nobody/no-stories' cannot be read .*; name 'offline'"):
        story_pairs("nobody/no-stories", 5)
