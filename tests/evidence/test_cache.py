"""The cache makes a thing once, never hands out a damaged one, and knows what a result depends on."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from husai_lib.errors import EvidenceError, IntegrityError
from husai_lib.evidence import cache
from husai_lib.evidence.cache import cache_folder, cached, code_hash, key_of, library_imports, open_entry
from husai_lib.files import read_json

MODULE = "husai_lib.files"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUSAI_CACHE", str(tmp_path))
    return tmp_path


class Maker:
    """Fills an entry and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "inner").mkdir()
        (folder / "inner" / "rows.npy").write_bytes(b"rows")


def test_an_entry_is_made_once_and_found_again(folder: Path) -> None:
    make = Maker()
    first, second = (cached("banks", MODULE, {"a": 1}, make) for _ in range(2))
    assert make.calls == 1
    assert first == second
    assert first.path == folder / "banks" / first.key
    assert list(second.files) == ["inner/rows.npy"]
    assert read_json(first.path / "entry.json")["inputs"] == {"a": 1}


def test_other_inputs_other_code_and_other_versions_have_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of(MODULE, {"a": 1})
    assert key == key_of(MODULE, {"a": 1})
    assert key != key_of(MODULE, {"a": 2})
    assert key != key_of("husai_lib.evidence.cache", {"a": 1})
    monkeypatch.setattr(cache, "versions", lambda: {"torch": "0"})
    assert key != key_of(MODULE, {"a": 1})


@pytest.mark.parametrize("damage", ["changed", "truncated", "deleted", "no entry"])
def test_a_damaged_entry_is_refused_when_opened_and_made_again_when_wanted(damage: str) -> None:
    make = Maker()
    entry = cached("banks", MODULE, {}, make)
    file = entry.path / "inner" / "rows.npy"
    match damage:
        case "changed":
            file.write_bytes(b"rowt")
        case "truncated":
            file.write_bytes(b"row")
        case "deleted":
            file.unlink()
        case _:
            (entry.path / "entry.json").unlink()
    with pytest.raises(EvidenceError if damage == "no entry" else IntegrityError):
        open_entry("banks", entry.key)
    cached("banks", MODULE, {}, make)
    assert make.calls == 2
    assert open_entry("banks", entry.key).files == entry.files


def test_a_failure_while_making_leaves_nothing(folder: Path) -> None:
    def fail(place: Path) -> None:
        (place / "half").write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached("banks", MODULE, {}, fail)
    assert list((folder / "banks").iterdir()) == []


def test_a_full_disk_is_explained() -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(EvidenceError, match="No space left"):
        cached("banks", MODULE, {}, fail)


def test_two_makers_at_the_same_time_end_with_one_entry(folder: Path) -> None:
    barrier = threading.Barrier(2)

    def make(place: Path) -> None:
        (place / "rows").write_bytes(b"rows")
        barrier.wait(timeout=10)

    threads = [threading.Thread(target=cached, args=("banks", MODULE, {}, make)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [entry] = (folder / "banks").iterdir()
    assert open_entry("banks", entry.name).files.keys() == {"rows"}


def test_the_cache_lies_where_the_environment_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == folder
    monkeypatch.delenv("HUSAI_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "husai")


def test_imports_of_the_library_are_found_wherever_they_stand() -> None:
    source = """
import numpy
import husai_lib.files
from husai_lib import errors, open_step
from husai_lib.cache import cached
def later():
    from husai_lib.params import check
"""
    assert set(library_imports(source)) == {
        "husai_lib.files", "husai_lib", "husai_lib.errors", "husai_lib.open_step", "husai_lib.evidence.cache",
        "husai_lib.evidence.cache.cached", "husai_lib.params.cycle", "husai_lib.params.cycle.check",
    }  # fmt: skip


def test_a_change_in_a_module_that_is_imported_indirectly_changes_the_code_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = {"husai_lib.a": "import husai_lib.b", "husai_lib.b": "from husai_lib import c", "husai_lib.c": "x = 1",
               "husai_lib.other": ""}  # fmt: skip
    monkeypatch.setattr(cache, "source_of", sources.get)

    def digest() -> str:
        code_hash.cache_clear()
        return code_hash("husai_lib.a")

    before = digest()
    sources["husai_lib.other"] = "x = 2"
    assert digest() == before
    sources["husai_lib.c"] = "x = 2"
    assert digest() != before
    code_hash.cache_clear()


def test_a_package_of_the_library_is_read_from_its_init_file() -> None:
    assert "ARCHITECTURES" in str(cache.source_of("husai_lib.saes.architectures"))
    assert cache.source_of("husai_lib.nowhere") is None
