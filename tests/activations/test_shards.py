"""A bank in shards has the rows of a whole one, trains the same SAEs, and is read, sent and kept shard by shard."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from husai_lib.activations import extraction
from husai_lib.activations.banks import Bank, open_bank
from husai_lib.activations.extraction import gaussian_bank, joined_bank, scaled_bank, text_bank
from husai_lib.activations.language_model import LanguageModel
from husai_lib.activations.texts import Text
from husai_lib.cycle.planned import cached_entries
from husai_lib.errors import DataError, EvidenceError, IntegrityError
from husai_lib.evidence import cache
from husai_lib.params.conditions import Condition
from husai_lib.params.inputs import ActivationParams
from husai_lib.saes import stack
from husai_lib.saes.data import Data
from husai_lib.saes.stack import Stack
from husai_lib.saes.trained import Member

HOOK, LAST, ROWS = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", 700
pytestmark = pytest.mark.usefixtures("one_job_on_the_cpu", "fresh_cache")


def params(**changes: Any) -> ActivationParams:
    values: dict[str, Any] = {"hook_name": HOOK, "training_rows": ROWS, "held_out_rows": 100, "context_tokens": 40}
    return ActivationParams(**values | {"batch_tokens": 256, "shard_rows": 200} | changes)


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    generator, words = np.random.default_rng(0), ["the", "of", "people", "water", "great", "number"]
    drawn = [" ".join(generator.choice(words, size=length)) for length in generator.permutation(61)]
    return [Text("even" if i % 2 == 0 else "odd", text) for i, text in enumerate(drawn)]


def pair(model: LanguageModel, texts: list[Text], **changes: Any) -> tuple[Bank, Bank]:
    """The same texts read in shards and as one bank."""
    whole = text_bank(model, texts, params(shard_rows=ROWS, **changes), [HOOK, LAST], ROWS)
    return in_shards(model, texts, **changes), whole


def in_shards(model: LanguageModel, texts: list[Text], **changes: Any) -> Bank:
    return text_bank(model, texts, params(**changes), [HOOK, LAST], ROWS)


def rows_of(bank: Bank) -> torch.Tensor:
    return torch.cat(list(bank.chunks()))


def test_shards_have_the_rows_and_statistics_of_a_whole_bank(tiny_model: LanguageModel, texts: list[Text]) -> None:
    bank, whole = pair(tiny_model, texts)
    assert len(bank.shards) == 4
    assert len(whole.shards) == 1
    assert max(len(shard.rows) for shard in bank.shards) < 240  # a text is never divided, and has 39 rows at most
    assert bank.shape == whole.shape == (ROWS, 32)
    for hook in (HOOK, LAST):
        torch.testing.assert_close(rows_of(bank.at(hook)), rows_of(whole.at(hook)), atol=1e-5, rtol=0)
    assert bank.offsets.tolist() == whole.offsets.tolist()
    assert bank.meta["sources"] == whole.meta["sources"]
    np.testing.assert_allclose(bank.mean(), whole.mean(), atol=1e-5)
    assert bank.scale() == pytest.approx(whole.scale(), rel=1e-6)
    index = np.random.default_rng(0).permutation(ROWS)[:300]
    assert torch.equal(bank.take(index), rows_of(bank)[torch.from_numpy(index)])
    assert torch.equal(bank.on("cpu"), rows_of(bank))


def test_texts_without_a_row_belong_to_their_shard(tiny_model: LanguageModel, texts: list[Text]) -> None:
    """What follows the texts that were read is known by their number."""
    some = [one for text in texts for one in (text, Text("empty", "a"))]
    given = params(skip_positions=3, training_rows=500)
    bank = text_bank(tiny_model, some, given, [HOOK], 500)
    whole = text_bank(tiny_model, some, given.model_copy(update={"shard_rows": 500}), [HOOK], 500)
    assert len(bank.shards) > 1
    assert bank.offsets.tolist() == whole.offsets.tolist()


def test_there_must_be_texts(tiny_model: LanguageModel) -> None:
    with pytest.raises(DataError, match="there are no texts to read"):
        text_bank(tiny_model, [], params(), [HOOK])


def test_the_norm_limit_is_that_of_the_first_shard(tiny_model: LanguageModel, texts: list[Text]) -> None:
    bank, whole = pair(tiny_model, texts, max_norm_ratio=1.2)
    all_rows = in_shards(tiny_model, texts)
    norms = np.linalg.norm(rows_of(all_rows), axis=1)
    limit = 1.2 * np.median(norms[: len(all_rows.shards[0].rows)])
    assert bank.meta["norm_limit"] == pytest.approx(limit)
    assert bank.shape[0] == (norms <= limit).sum() < ROWS
    assert bank.offsets[-1] == bank.shape[0] == sum(source["rows"] for source in bank.meta["sources"])
    assert whole.meta["norm_limit"] != bank.meta["norm_limit"]


def test_only_shards_that_are_missing_are_read(
    tiny_model: LanguageModel, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = in_shards(tiny_model, texts)
    lost, read, forward = bank.shards[2], list[int](), extraction._forward
    shutil.rmtree(bank.entry.path)
    shutil.rmtree(lost.entry.path)

    def counted(model: Any, tokens: Any, hooks: Any) -> Any:
        read.append(sum(max(0, len(ids) - 1) for ids in tokens))
        return forward(model, tokens, hooks)

    monkeypatch.setattr(extraction, "_forward", counted)
    again = in_shards(tiny_model, texts)
    assert (again.sha256, again.entry.key) == (bank.sha256, bank.entry.key)
    assert sum(read) <= len(lost.rows)  # texts that are alike are read once


def test_a_bank_that_lacks_a_shard_is_not_there_and_is_read_again(tiny_model: LanguageModel, texts: list[Text]) -> None:
    bank, whole = pair(tiny_model, texts)
    record = {"tables": {"banks": [bank.row("training").model_dump(), whole.row("whole").model_dump()]}}
    assert cached_entries(record) == [True, True]
    shutil.rmtree(bank.shards[1].entry.path)
    assert cached_entries(record) == [False, True]
    in_shards(tiny_model, texts)
    assert cached_entries(record) == [True, True]
    (bank.entry.path / "shards.json").write_text("no JSON")
    assert cached_entries(record) == [False, True]


def test_a_damaged_or_other_shard_is_refused(tiny_model: LanguageModel, texts: list[Text]) -> None:
    bank = in_shards(tiny_model, texts)
    with pytest.raises(IntegrityError, match="are not those of their record"):
        open_bank(bank.entry.key, HOOK, bank.at(LAST).sha256)
    file = bank.shards[1].entry.path / f"{HOOK}.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match="is damaged"):
        _ = open_bank(bank.entry.key, HOOK, bank.sha256).shards


def test_a_bank_goes_to_another_process_with_its_shards(tiny_model: LanguageModel, texts: list[Text]) -> None:
    bank = in_shards(tiny_model, texts)
    with cache.noted_entries() as entries:
        sent = pickle.dumps(bank)
    assert {entry.key for entry in entries} == {bank.entry.key, *(shard.entry.key for shard in bank.shards)}
    assert len(sent) < 10_000
    received = pickle.loads(sent)  # noqa: S301 - our own bytes
    assert torch.equal(rows_of(received), rows_of(bank))


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_training_gives_the_same_bits_whether_the_rows_are_divided_or_not(
    tiny_model: LanguageModel, texts: list[Text], architecture: str
) -> None:
    bank = in_shards(tiny_model, texts)
    rows = rows_of(bank).numpy()
    whole = extraction.rows_bank(rows, HOOK)
    condition = Condition(
        name="short", architecture=architecture, d_sae=64, k=4, training_samples=2048, batch_size=128
    )  # two epochs and more
    [divided], [plain] = (
        Stack([Member(condition, 0)], Data.of(one), "cpu").train() for one in (bank, joined_bank([whole], [HOOK]))
    )
    for name, tensor in plain.state_dict().items():
        assert torch.equal(divided.state_dict()[name], tensor), name


def test_nulls_and_controls_of_shards_are_in_shards(tiny_model: LanguageModel, texts: list[Text]) -> None:
    bank = in_shards(tiny_model, texts)
    scaled, null = scaled_bank(bank, 2.0), gaussian_bank(bank)
    assert len(scaled.shards) == len(null.shards) == len(bank.shards)
    assert torch.equal(rows_of(scaled), rows_of(bank) * 2)
    assert scaled.offsets.tolist() == bank.offsets.tolist()
    assert null.shape == bank.shape
    drawn = rows_of(null)
    assert len(drawn.unique(dim=0)) == ROWS  # no shard repeats the draws of another
    np.testing.assert_allclose(drawn.mean(0), bank.mean(), atol=4 * float(rows_of(bank).std(0).max()) / ROWS**0.5)
    assert float(drawn.var(0).sum()) == pytest.approx(float(rows_of(bank).var(0).sum()), rel=0.15)


def test_shards_go_to_the_disk_with_most_space_and_are_found_there(
    tiny_model: LanguageModel, texts: list[Text], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "one" / "banks", tmp_path / "two"]
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "one"))
    monkeypatch.setenv("HUSAI_DISKS", str(folders[1]))

    def usage(folder: Path) -> Any:  # each disk loses what lies on it
        used = sum(path.stat().st_size for path in folder.rglob("*.npy") if not path.parent.is_symlink())
        return SimpleNamespace(free=10**9 - used)

    monkeypatch.setattr(cache.shutil, "disk_usage", usage)
    bank = in_shards(tiny_model, texts)
    places = [shard.entry.path.resolve().parent for shard in bank.shards]
    assert {place: places.count(place) for place in folders} == {folders[0]: 2, folders[1]: 2}
    again = in_shards(tiny_model, texts)
    assert [shard.entry.path.resolve().parent for shard in again.shards] == places
    moved = next(shard for shard in bank.shards if shard.entry.path.is_symlink())
    next(moved.entry.path.glob("*.npy")).write_bytes(b"damaged")
    in_shards(tiny_model, texts)  # a damaged one is replaced, and nothing of it is left
    assert len([*folders[1].iterdir()]) == sum(path.is_symlink() for path in folders[0].iterdir())
    assert not [*folders[1].glob(".making-*")]


def test_a_disk_that_cannot_be_used_is_named(
    tiny_model: LanguageModel, texts: list[Text], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HUSAI_DISKS", str(tmp_path / "file" / "disk"))
    with pytest.raises(EvidenceError, match=rf"^{tmp_path}/file/disk cannot be written \(Not a directory\)"):
        in_shards(tiny_model, texts)


def test_a_gpu_that_has_no_room_for_all_rows_gets_the_same_batches_from_the_files(
    tiny_model: LanguageModel, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = in_shards(tiny_model, texts)
    size = 4 * ROWS * 32
    for total, fits in ((5 * size, True), (5 * size - 5, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda total=total: (0, total))
        assert stack._can_hold("cuda", [bank]) is fits
    assert not stack._can_hold("cpu", [bank])
    condition = Condition(name="short", architecture="topk", d_sae=64, k=4, training_samples=2048, batch_size=128)
    batches = []
    for held in (True, False):
        monkeypatch.setattr(stack, "_can_hold", lambda *_, held=held: held)
        members = [Member(condition, seed) for seed in (0, 1)]
        batches.append([x for x, _ in Stack(members, Data.of(bank, bank.at(LAST)), "cpu").batches()])
    assert len(batches[0]) == len(batches[1]) == 16
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))
