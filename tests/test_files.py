"""Files are whole or absent, and any edit of them shows."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from husai_lib.errors import EvidenceError, IntegrityError
from husai_lib.files import (
    canonical_json,
    explained,
    read_json,
    sha256_file,
    sha256_text,
    write_json,
    write_text,
)

TEXT = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def test_a_text_is_written_whole_with_its_hash(tmp_path: Path) -> None:
    # SHA-256 of "abc" (FIPS 180-2, appendix B.1).
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path = tmp_path / "new" / "folder" / "a.txt"
    assert write_text(path, "abc") == expected == sha256_text("abc") == sha256_file(path)
    assert path.read_bytes() == b"abc"
    assert path.stat().st_mode & 0o777 == 0o644


def test_canonical_json_is_sorted_utf_8_with_a_final_newline() -> None:
    assert canonical_json({"b": 1, "a": [0.1, None, "é"]}) == '{\n "a": [\n  0.1,\n  null,\n  "é"\n ],\n "b": 1\n}\n'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_word_for_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"value": value})
    assert list(tmp_path.iterdir()) == []


@given(VALUES)
def test_what_was_written_is_read_back(data: Any) -> None:
    assert json.loads(canonical_json(data)) == data
    assert canonical_json(json.loads(canonical_json(data))) == canonical_json(data)


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path = tmp_path / "a.json"
    write_text(path, "before")

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if stage == "fsync" else (Path, "replace")), fail)
    with pytest.raises(EvidenceError, match=r"a.json cannot be written \(No space left on device\); free space"):
        write_text(path, "after")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.json", "text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failed_write_is_explained_by_its_cause(number: int) -> None:
    with pytest.raises(EvidenceError) as failed, explained(Path("place/file")):
        raise OSError(number, os.strerror(number))
    assert "place/file" in str(failed.value)
    assert os.strerror(number) in str(failed.value)


# Reading


def test_a_file_of_this_project_is_read_with_or_without_its_hash(tmp_path: Path) -> None:
    sha256 = write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == read_json(tmp_path / "a.json", sha256) == {"a": 1}


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n',  # not canonical
        b'{\n "a": 1\n}',  # no final newline
        b'{\r\n "a": 1\r\n}\r\n',  # other line ends
        b'{\n "a": 1,\n "a": 1\n}\n',  # a key twice
        b'{\n "a": NaN\n}\n',
        b'{\n "a": 1e999\n}\n',
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"a.json (is damaged|was changed)"):
        read_json(tmp_path / "a.json")


def test_another_content_than_the_hash_says_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(IntegrityError, match="was changed after it was written"):
        read_json(tmp_path / "a.json", hashlib.sha256(b"other").hexdigest())


def test_a_missing_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="is missing") as caught:
        read_json(tmp_path / "a.json")
    assert not isinstance(caught.value, IntegrityError)
