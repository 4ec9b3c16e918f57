"""Which code made a record: the library's hash, the commit, and files as they were at a commit."""

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from husai_lib.evidence.cache import tree_hash
from husai_lib.files import REPOSITORY, canonical_json, sha256_text

LIBRARY = "husai_lib"
CHANGED = "+changes"
"""The end of a commit's name where tracked files differed from it."""


@cache
def library_hash() -> str:
    """Hash of the syntax trees of the whole library, as a step may call any of it."""
    modules = (REPOSITORY / LIBRARY).rglob("*.py")
    return _hash_of({path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in modules})


@cache
def library_hash_at(commit: str) -> str | None:
    """The library's hash as it was at a commit; None where this checkout has no such commit."""
    archive = _git("archive", "--format=tar", commit, LIBRARY)
    if archive is None:
        return None
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {member.name: tar.extractfile(member) for member in tar if member.name.endswith(".py")}
        return _hash_of({name: file.read().decode() for name, file in found.items() if file})


def _hash_of(sources: dict[str, str]) -> str:
    return sha256_text(canonical_json({name: tree_hash(sources[name]) for name in sorted(sources)}))


@cache
def git_commit() -> str | None:
    """The checked-out commit, with `+changes` where tracked files differ from it; null outside a checkout."""
    described = _git("describe", "--always", "--abbrev=40", "--exclude=*", f"--dirty={CHANGED}")
    return described.decode().strip() if described else None


def file_at(commit: str, path: str) -> str | None:
    """A file's text at a commit; None where this checkout has no such commit or file."""
    content = _git("show", f"{commit}:{path}")
    return None if content is None else content.decode(errors="replace")


@contextmanager
def checkout_of(commit: str) -> Iterator[Path | None]:
    """A temporary checkout of a commit; None where HEAD has no such ancestor: others may have come from anybody."""
    if _git("merge-base", "--is-ancestor", commit, "HEAD") is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="husai-commit-") as temporary:
        folder = Path(temporary) / "checkout"
        try:
            made = _git("worktree", "add", "--quiet", "--detach", str(folder), commit) is not None
            yield folder if made else None
        finally:
            _git("worktree", "remove", "--force", str(folder))


def is_tracked(path: Path) -> bool:
    """Whether git tracks a file of this checkout, or any file of a folder."""
    return path.resolve().is_relative_to(REPOSITORY) and bool(_git("ls-files", "--", str(path.resolve())))


def _git(*arguments: str) -> bytes | None:
    """What git prints; None outside a checkout, without git and where it fails."""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
