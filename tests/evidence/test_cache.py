"""The cache computes each result once, never returns a damaged one, and knows what a result depends on."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from husai_lib.errors import EvidenceError, IntegrityError
from husai_lib.evidence import cache
from husai_lib.evidence.cache import cache_folder, cached, code_hash, key_of, library_imports, open_entry, tree_hash
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
def test_a_damaged_entry_is_refused_when_opened_and_recomputed_when_needed(damage: str) -> None:
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


# --- the code of a key ---------------------------------------------------------------------------


def test_imports_of_the_library_are_found_wherever_they_are() -> None:
    source = """
import numpy
import husai_lib.files
from husai_lib import errors, open_step
from husai_lib.saes.trained import Member
def later():
    from husai_lib.params import cycle
"""
    assert library_imports(source) == {
        "husai_lib.files", "husai_lib", "husai_lib.errors", "husai_lib.open_step", "husai_lib.saes.trained",
        "husai_lib.saes.trained.Member", "husai_lib.params", "husai_lib.params.cycle",
    }  # fmt: skip


CODE = """
'''A module.'''
class A:
    '''A class.'''
    x: int = 1
    '''A field.'''
    def f(self, y):
        '''A method.'''
        return [y, 'text']  # a comment
"""


def test_comments_docstrings_and_layout_do_not_change_the_hash_of_a_module_and_code_does() -> None:
    same = [
        CODE.replace("A class", "Another")
        .replace("A field.", "One more.")
        .replace("A method", "B")
        .replace("A mod", "m"),
        "\n".join(line for line in CODE.splitlines() if "'''" not in line),
        CODE.replace("  # a comment", "").replace("[y, 'text']", '[\n   y,\n "text",\n]'),
    ]
    others = [
        CODE.replace("= 1", "= 2"),
        CODE.replace("'text'", "'tex'"),
        CODE.replace("x: int", "z: int"),
        CODE + "A()",
    ]
    assert {tree_hash(source) for source in [CODE, *same]} == {tree_hash(CODE)}
    assert len({tree_hash(source) for source in [CODE, *others]}) == 5


def test_a_key_holds_the_computing_modules_that_are_imported_indirectly(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {
        "husai_lib.saes.a": "import husai_lib.measures.b\nfrom husai_lib import files",
        "husai_lib.measures.b": "def f():\n    from husai_lib.activations import c",
        "husai_lib.activations.c": "x = 1",
        "husai_lib.files": "import husai_lib.saes.d",
        "husai_lib.saes.d": "x = 1",
    }
    monkeypatch.setattr(cache, "source_of", sources.get)

    def digest() -> str:
        code_hash.cache_clear()
        return code_hash("husai_lib.saes.a")

    before = digest()
    sources["husai_lib.files"] = sources["husai_lib.saes.d"] = "x = 2"  # files compute nothing
    assert digest() == before
    sources["husai_lib.activations.c"] = "x = 2"
    assert digest() != before
    code_hash.cache_clear()


def test_a_package_of_the_library_is_read_from_its_init_file() -> None:
    assert "ARCHITECTURES" in str(cache.source_of("husai_lib.saes.architectures"))
    assert cache.source_of("husai_lib.nowhere") is None


def test_threads_compute_the_same_hash_at_the_same_time() -> None:
    sources = [f"x = {i}\n" * 2000 for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tree_hash, sources)) == [tree_hash(source) for source in sources]
