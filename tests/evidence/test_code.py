"""Which code made a record: hashes of the library, and files as they were at a commit."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from husai_lib.evidence import code

GIT = ("git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with one commit of a small library."""
    (tmp_path / "husai_lib" / "room").mkdir(parents=True)
    (tmp_path / "husai_lib" / "a.py").write_text('"""A."""\nx = 1\n', encoding="utf-8")
    (tmp_path / "husai_lib" / "room" / "b.py").write_text("y = 2\n", encoding="utf-8")
    (tmp_path / "husai_lib" / "data.txt").write_text("first\n", encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    monkeypatch.setattr(code, "REPOSITORY", tmp_path)
    yield tmp_path
    forget()


def git(folder: Path, *arguments: str) -> str:
    command = [*GIT, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def forget() -> None:
    """What a process knows of its checkout is found out once; start again."""
    for remembered in (code.library_hash, code.library_hash_at, code.git_commit):
        remembered.cache_clear()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    forget()
    yield
    forget()


def test_the_library_at_a_commit_has_the_hash_that_it_had_when_it_was_checked_out(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert code.git_commit() == commit
    assert code.library_hash_at(commit) == code.library_hash()
    assert code.library_hash_at("0" * 40) is None


def test_changes_show_in_the_commits_name_and_only_those_of_code_in_the_hash(checkout: Path) -> None:
    before, commit = code.library_hash(), code.git_commit()
    for text, is_same in (('"""Another docstring."""\n# a comment\nx = 1\n', True), ("x = 2\n", False)):
        (checkout / "husai_lib" / "a.py").write_text(text, encoding="utf-8")
        forget()
        assert (code.library_hash() == before) is is_same
        assert code.git_commit() == f"{commit}{code.CHANGED}"


def test_a_new_module_changes_the_hash(checkout: Path) -> None:
    before = code.library_hash()
    (checkout / "husai_lib" / "room" / "c.py").write_text("", encoding="utf-8")
    forget()
    assert code.library_hash() != before


def test_a_file_is_read_as_it_was_at_a_commit(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "husai_lib" / "data.txt").write_text("second\n", encoding="utf-8")
    assert code.file_at(commit, "husai_lib/data.txt") == "first\n"
    assert code.file_at(commit, "husai_lib/none.txt") is None
    assert code.file_at("0" * 40, "husai_lib/data.txt") is None


def test_files_and_folders_are_tracked_where_git_knows_them(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (checkout / "new.txt").write_text("new\n", encoding="utf-8")
    tracked = [code.is_tracked(checkout / name) for name in ("husai_lib", "husai_lib/data.txt", "new.txt", "nowhere")]
    assert tracked == [True, True, False, False]
    assert not code.is_tracked(tmp_path_factory.mktemp("outside"))


def test_outside_a_checkout_and_without_git_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setattr(code, "REPOSITORY", tmp_path / "husai_lib" / "..")
    monkeypatch.setenv("PATH", "")
    assert code.git_commit() is None
    assert code.library_hash_at(commit) is None
    assert code.file_at(commit, "husai_lib/a.py") is None
