"""Activation banks hold the rows of a plain forward pass, in the order of the texts, and are never read damaged."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic_banks import bank_of
from transformers import AutoModelForCausalLM

from husai_lib.activations.banks import Bank, open_bank
from husai_lib.activations.extraction import gaussian_bank, last_token_bank, prompt_banks, rows_bank, text_bank
from husai_lib.activations.language_model import LanguageModel, open_model
from husai_lib.activations.texts import ProbingSet, Text
from husai_lib.errors import DataError, IntegrityError
from husai_lib.params.inputs import ActivationParams, ModelParams

HOOK, LAST = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


def params(**changes: Any) -> ActivationParams:
    values: dict[str, Any] = {
        "hook_name": HOOK, "training_rows": 100, "held_out_rows": 100, "context_tokens": 40, "probe_tokens": 40,
        "skip_positions": 1, "batch_tokens": 256,
    }  # fmt: skip
    return ActivationParams(**values | changes)


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    """Texts of 0 to 60 words in no order, an empty one among them."""
    generator = np.random.default_rng(0)
    words = [
        "the",
        "of",
        "and",
        "people",
        "water",
        "little",
        "great",
        "number",
        "never",
        "letter",
        "between",
        "father",
        "country",
        "answer",
    ]
    drawn = [" ".join(generator.choice(words, size=length)) for length in generator.permutation(61)]
    return [Text("even" if i % 2 == 0 else "odd", text) for i, text in enumerate(drawn)]


@pytest.fixture(scope="module")
def reference(tiny_folder: Path, tiny_model: LanguageModel, texts: list[Text]) -> list[torch.Tensor]:
    """For each text, the output of block 0 at all its positions, from transformers, one text at a time."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    states = []
    for text in texts:
        ids = torch.tensor(tiny_model.tokenize([text.text], 40))
        with torch.no_grad():
            states.append(model(ids, output_hidden_states=True).hidden_states[1][0])
    return states


def rows(bank: Bank) -> torch.Tensor:
    return torch.from_numpy(np.array(bank.rows))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# --- rows of texts -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 256, 4096])
def test_rows_are_those_of_a_plain_forward_pass_in_the_order_of_the_texts(
    tiny_model: LanguageModel, texts: list[Text], reference: list[torch.Tensor], batch_tokens: int
) -> None:
    bank = text_bank(tiny_model, texts, params(batch_tokens=batch_tokens), [HOOK])
    close(rows(bank), torch.cat([states[1:] for states in reference]))
    assert bank.offsets.tolist() == [0, *np.cumsum([len(states) - 1 for states in reference])]
    assert bank.rows.dtype == np.float32


@pytest.mark.parametrize("skip", [0, 1, 5])
def test_the_first_positions_of_every_text_are_skipped(
    tiny_model: LanguageModel, texts: list[Text], reference: list[torch.Tensor], skip: int
) -> None:
    bank = text_bank(tiny_model, texts, params(skip_positions=skip), [HOOK])
    close(rows(bank), torch.cat([states[skip:] for states in reference]))


def test_all_hooks_of_a_bank_have_the_same_rows(tiny_model: LanguageModel, texts: list[Text]) -> None:
    together = text_bank(tiny_model, texts, params(), [HOOK, "blocks.1.hook_resid_pre", LAST])
    # the input of block 1 is the output of block 0
    np.testing.assert_array_equal(together.rows, together.at("blocks.1.hook_resid_pre").rows)
    np.testing.assert_allclose(together.at(LAST).rows, text_bank(tiny_model, texts, params(), [LAST]).rows, atol=1e-5)


@pytest.mark.parametrize("kind", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out"])
def test_a_joined_hook_has_the_activations_of_its_parts_side_by_side(
    tiny_model: LanguageModel, texts: list[Text], kind: str
) -> None:
    parts = [f"blocks.{layer}.{kind}" for layer in (0, 1)]
    joined = text_bank(tiny_model, texts, params(max_norm_ratio=1.5), ["+".join(parts), *parts])
    assert joined.rows.shape[1] == 64
    assert joined.hook_name == "+".join(parts)
    assert len(joined.rows) < sum(len(ids) for ids in tiny_model.tokenize([text.text for text in texts], 40))
    np.testing.assert_array_equal(joined.rows, np.hstack([joined.at(part).rows for part in parts]))
    alone = text_bank(tiny_model, texts, params(), parts)
    np.testing.assert_allclose(
        text_bank(tiny_model, texts, params(), ["+".join(parts)]).rows,
        np.hstack([alone.at(part).rows for part in parts]),
        atol=1e-5,
    )


def test_last_tokens_and_gaussian_rows_of_a_joined_hook_have_its_width(
    tiny_model: LanguageModel, texts: list[Text]
) -> None:
    both, longer = f"{HOOK}+{LAST}", texts[:8]
    bank = last_token_bank(tiny_model, longer, params(), both)
    expected = [last_token_bank(tiny_model, longer, params(), hook).rows for hook in (HOOK, LAST)]
    np.testing.assert_allclose(bank.rows, np.hstack(expected), atol=1e-5)
    assert gaussian_bank(bank).rows.shape == bank.rows.shape


def test_no_more_blocks_run_than_the_last_hook_needs(
    tiny_model: LanguageModel, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = tiny_model.bridge.run_with_cache, []

    def noted(*tokens: Any, **how: Any) -> Any:
        asked.append(how)
        return run(*tokens, **how)

    monkeypatch.setattr(tiny_model.bridge, "run_with_cache", noted)
    text_bank(
        tiny_model, texts[:5], params(seed=7, batch_tokens=4096), ["blocks.0.hook_resid_pre+blocks.0.hook_resid_post"]
    )
    [how] = asked
    assert how["stop_at_layer"] == 1
    assert how["names_filter"] == ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"]


@pytest.mark.parametrize("count", [1, 39, 100, 577])
def test_a_bank_has_exactly_the_requested_rows_with_the_last_text_cut(
    tiny_model: LanguageModel, texts: list[Text], reference: list[torch.Tensor], count: int
) -> None:
    bank = text_bank(tiny_model, texts, params(), [HOOK], count)
    close(rows(bank), torch.cat([states[1:] for states in reference])[:count])
    assert bank.offsets[-1] == count


def test_too_few_positions_are_an_error_that_counts_them(
    tiny_model: LanguageModel, texts: list[Text], reference: list[torch.Tensor]
) -> None:
    there = sum(len(states) - 1 for states in reference)
    assert len(text_bank(tiny_model, texts, params(), [HOOK], there).rows) == there
    with pytest.raises(DataError, match=f"have {there} token positions but {there + 1} were requested"):
        text_bank(tiny_model, texts, params(), [HOOK], there + 1)


def test_sources_count_texts_tokens_and_rows_by_data_set(
    tiny_model: LanguageModel, texts: list[Text], reference: list[torch.Tensor]
) -> None:
    found = text_bank(tiny_model, texts, params(), [HOOK]).sources("training")
    tokens = [len(states) for states in reference]
    assert [(row.role, row.data_set, row.texts, row.tokens, row.rows) for row in found] == [
        ("training", "even", 31, sum(tokens[::2]), sum(tokens[::2]) - 31),
        ("training", "odd", 30, sum(tokens[1::2]), sum(tokens[1::2]) - 30),
    ]


def test_a_text_of_100_000_tokens_is_cut_to_the_context(tiny_model: LanguageModel) -> None:
    long = Text("long", "word " * 50_000)
    assert len(text_bank(tiny_model, [long], params(), [HOOK]).rows) == 39
    assert last_token_bank(tiny_model, [long], params(), HOOK).rows.shape == (1, 32)


# --- outliers ----------------------------------------------------------------------------------


def test_exactly_the_rows_above_the_limit_are_left_out_at_all_hooks_alike(
    tiny_model: LanguageModel, texts: list[Text]
) -> None:
    whole = text_bank(tiny_model, texts, params(), [HOOK, LAST])
    norms = np.linalg.norm(whole.rows, axis=1)
    ratio = float(np.quantile(norms, 0.8) / np.median(norms))
    bank = text_bank(tiny_model, texts, params(max_norm_ratio=ratio), [HOOK, LAST])
    limit = bank.meta["norm_limit"]
    assert limit == pytest.approx(np.quantile(norms, 0.8))
    keep = norms <= limit
    assert 0.7 < keep.mean() < 0.9
    np.testing.assert_array_equal(bank.rows, whole.rows[keep])
    np.testing.assert_array_equal(bank.at(LAST).rows, whole.at(LAST).rows[keep])
    left = [int(keep[start:end].sum()) for start, end in zip(whole.offsets[:-1], whole.offsets[1:], strict=True)]
    assert np.diff(bank.offsets).tolist() == left
    assert sum(row.rows for row in bank.sources("training")) == keep.sum()


def test_held_out_rows_are_held_to_the_limit_of_the_training_rows(tiny_model: LanguageModel, texts: list[Text]) -> None:
    norms = np.linalg.norm(text_bank(tiny_model, texts, params(), [HOOK]).rows, axis=1)
    limit = float(np.quantile(norms, 0.3))
    bank = text_bank(tiny_model, texts, params(max_norm_ratio=50.0), [HOOK], norm_limit=limit)
    assert bank.meta["norm_limit"] == limit
    assert len(bank.rows) == (norms <= limit).sum()


# --- the cache ---------------------------------------------------------------------------------


def test_equal_inputs_share_a_key_and_any_other_input_has_its_own(
    tiny_folder: Path, tiny_model: LanguageModel, texts: list[Text]
) -> None:
    first = text_bank(tiny_model, texts, params(), [HOOK], 50)
    again = text_bank(open_model(tiny_model.params), list(texts), params(), [HOOK], 50, progress=_not_again)
    assert again.entry.key == first.entry.key
    changed = [Text(texts[0].data_set, texts[0].text + "."), *texts[1:]]
    others = [
        text_bank(tiny_model, changed, params(), [HOOK], 50),
        text_bank(tiny_model, texts[::-1], params(), [HOOK], 50),
        text_bank(tiny_model, texts, params(), [LAST], 50),
        text_bank(tiny_model, texts, params(), [HOOK], 51),
        text_bank(tiny_model, texts, params(context_tokens=39), [HOOK], 50),
        text_bank(tiny_model, texts, params(skip_positions=2), [HOOK], 50),
        text_bank(tiny_model, texts, params(max_norm_ratio=9.0), [HOOK], 50),
        text_bank(tiny_model, texts, params(), [HOOK], 50, norm_limit=1e9),
        *(text_bank(_random(tiny_folder, seed), texts, params(), [HOOK], 50) for seed in (0, 1)),
        last_token_bank(tiny_model, texts, params(), HOOK),
    ]
    keys = {bank.entry.key for bank in [first, *others]}
    assert len(keys) == 1 + len(others)


def _not_again(*_: Any) -> None:
    raise AssertionError("the bank was extracted again")


def _random(folder: Path, seed: int) -> LanguageModel:
    return open_model(ModelParams(name=f"random:{folder}", prepend_bos=True, seed=seed))


@pytest.mark.parametrize("damage", ["a flipped bit", "truncated"])
def test_a_damaged_bank_is_extracted_again_and_never_read(
    tiny_model: LanguageModel, texts: list[Text], damage: str
) -> None:
    bank = text_bank(tiny_model, texts, params(), [HOOK], 60)
    sound = np.array(bank.rows)
    path = bank.entry.path / f"{HOOK}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "a flipped bit" else content[:-4])
    with pytest.raises(IntegrityError):
        open_bank(bank.entry.key, HOOK, bank.sha256)
    again = text_bank(tiny_model, texts, params(), [HOOK], 60)
    np.testing.assert_array_equal(again.rows, sound)
    np.testing.assert_array_equal(open_bank(bank.entry.key, HOOK, bank.sha256).rows, sound)


def test_activations_that_are_not_finite_are_refused_and_nothing_is_kept(
    tiny_folder: Path, tmp_path: Path, texts: list[Text]
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.layers.0.mlp.dense_4h_to_h.bias"][3] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = open_model(ModelParams(name=str(folder), prepend_bos=True))
    for _ in range(2):  # the second time too: the first left no entry
        with pytest.raises(DataError, match=f"activation {HOOK} has a value that is not finite"):
            text_bank(model, texts, params(), [HOOK])


def test_rows_are_memory_mapped_and_extraction_holds_a_fraction_of_them_in_memory(tiny_model: LanguageModel) -> None:
    texts = [Text("a", "word " * (20 + i % 19)) for i in range(1500)]
    hooks = [HOOK, "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", LAST]
    text_bank(tiny_model, texts, params(), hooks, 10)  # loads the model, which is not what is measured
    tracemalloc.start()  # follows numpy and Python; what torch holds is one batch
    bank = text_bank(tiny_model, texts, params(max_norm_ratio=10.0), hooks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(bank.rows, np.memmap)
    assert not bank.rows.flags.writeable
    stored = bank.rows.nbytes * len(hooks)
    assert stored > 15e6
    assert peak < stored / 3


# --- last tokens ---------------------------------------------------------------------------------


def test_last_tokens_are_those_of_transformers_a_long_prompt_cut_on_the_left(
    tiny_folder: Path, tiny_model: LanguageModel, texts: list[Text]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    bank = last_token_bank(tiny_model, texts, params(probe_tokens=20), HOOK)
    assert len(bank.rows) == len(texts)
    assert bank.offsets.tolist() == list(range(len(texts) + 1))
    long = 0
    for row, text in zip(rows(bank), texts, strict=True):
        ids = tiny_model.tokenizer(text.text)["input_ids"]
        long += len(ids) > 19
        with torch.no_grad():
            states = model(torch.tensor([[0, *ids[-19:]]]), output_hidden_states=True).hidden_states[1][0]
        close(row, states[-1])
    assert 10 < long < 60


def test_a_prompt_without_tokens_needs_bos(tiny_folder: Path, tiny_model: LanguageModel) -> None:
    empty = [Text("set", "a"), Text("set", "")]
    model = open_model(ModelParams(name=str(tiny_folder), prepend_bos=False))
    with pytest.raises(DataError, match="'set' has a text without tokens"):
        last_token_bank(model, empty, params(), HOOK)
    assert len(last_token_bank(tiny_model, empty, params(), HOOK).rows) == 2


def test_every_probing_set_has_its_bank_in_order(tiny_model: LanguageModel, texts: list[Text]) -> None:
    sets = [
        ProbingSet(name, prompts, np.array([0, 1]), ("0", "1"))
        for name, prompts in (("a", ("x", "y")), ("b", ("y", "z")))
    ]
    done: list[tuple[int, int, str]] = []
    first, second = prompt_banks(tiny_model, sets, params(), lambda *state: done.append(state))
    np.testing.assert_allclose(first.rows[1], second.rows[0], atol=1e-6)
    assert [row.data_set for bank in (first, second) for row in bank.sources("probing")] == ["a", "b"]
    assert done == [(1, 2, "data sets read"), (2, 2, "data sets read")]


def test_a_prompt_that_occurs_several_times_is_read_once_and_has_a_row_each_time(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, read = tiny_model.bridge.run_with_cache, []

    def noted(tokens: torch.Tensor, **how: Any) -> Any:
        read.append(len(tokens))
        return run(tokens, **how)

    monkeypatch.setattr(tiny_model.bridge, "run_with_cache", noted)
    prompts = [Text(data_set, prompt) for data_set, prompt in (("a", "one"), ("a", "two"), ("b", "one"), ("a", "one"))]
    bank = last_token_bank(tiny_model, prompts, params(probe_tokens=9), HOOK)
    assert sum(read) == 2
    np.testing.assert_array_equal(bank.rows, bank.rows[[0, 1, 0, 0]])
    assert not np.array_equal(bank.rows[0], bank.rows[1])
    assert [(row.data_set, row.rows) for row in bank.sources("probing")] == [("a", 3), ("b", 1)]


# --- Gaussian activations --------------------------------------------------------------------


def test_gaussian_rows_have_the_mean_and_covariance_of_the_data_and_nothing_else() -> None:
    n, d_in = 40_000, 8
    generator = np.random.default_rng(0)
    data = np.exp(generator.normal(size=(n, d_in))) @ generator.normal(size=(d_in, d_in)) + 3  # heavy tails, one side
    bank = bank_of(data)
    drawn = gaussian_bank(bank, seed=0)
    assert drawn.rows.shape == (n, d_in)
    mean, covariance = data.mean(0), np.cov(data.T, bias=True)
    spread = np.sqrt(np.diag(covariance))
    # standard errors of a mean and of a covariance: s / sqrt(n) and, at most, s_i s_j sqrt(2 / n); five of each
    assert (np.abs(drawn.rows.mean(0) - mean) < 5 * spread / n**0.5).all()
    error = np.abs(np.cov(drawn.rows.T, bias=True) - covariance)
    assert (error < 5 * np.outer(spread, spread) * (2 / n) ** 0.5).all()
    kurtosis = (((drawn.rows - drawn.rows.mean(0)) / drawn.rows.std(0)) ** 4).mean(0)
    assert np.abs(kurtosis - 3).max() < 0.3  # a Gaussian's; its standard error is sqrt(24 / n) = 0.02
    assert (((data - mean) / spread) ** 4).mean() > 6
    assert drawn.sha256 == gaussian_bank(bank, seed=0).sha256 != gaussian_bank(bank, seed=1).sha256


def test_equal_rows_at_two_hooks_have_a_gaussian_bank_each() -> None:
    # the output of one block and the input of the next hold the same bytes
    data = np.random.default_rng(1).normal(size=(100, 4))
    banks = [bank_of(data, hook) for hook in (HOOK, "blocks.1.hook_resid_pre")]
    assert banks[0].sha256 == banks[1].sha256
    assert [gaussian_bank(bank).rows.shape for bank in banks] == [(100, 4), (100, 4)]


# --- given rows ----------------------------------------------------------------------------------


def test_given_rows_are_a_bank_of_one_text_that_is_kept_by_its_content() -> None:
    data = np.random.default_rng(2).normal(size=(300, 4)).astype(np.float32)
    found, again, other = rows_bank(data, HOOK), rows_bank(data.copy(), HOOK), rows_bank(data[:299], HOOK)
    np.testing.assert_array_equal(found.rows, data)
    assert found.offsets.tolist() == [0, 300]
    assert (found.hook_name, found.entry.key) == (again.hook_name, again.entry.key)
    assert found.entry.key not in {other.entry.key, rows_bank(data, LAST).entry.key}
    assert found.scale() == pytest.approx(4**0.5 / np.linalg.norm(data, axis=1).mean(), rel=1e-5)


def test_given_rows_of_another_shape_are_another_bank() -> None:
    rows = np.arange(24, dtype=np.float32)
    assert rows_bank(rows.reshape(4, 6), HOOK).shape == (4, 6)
    assert rows_bank(rows.reshape(6, 4), HOOK).shape == (6, 4)
