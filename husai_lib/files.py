"""Files that are whole or absent: canonical JSON, atomic writes, SHA-256."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from husai_lib.errors import EvidenceError, IntegrityError

REPOSITORY = Path(__file__).resolve().parent.parent
"""The root of the checkout; all paths of the project start here."""


def canonical_json(data: Any) -> str:
    """`data` as the one JSON text this project writes for it: sorted keys, no NaN, a final newline."""
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def sha256_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_of(data: Any) -> bytes:
    """The content of a file that is given as bytes, as text, or as data for canonical JSON."""
    return data if isinstance(data, bytes) else (data if isinstance(data, str) else canonical_json(data)).encode()


def write_text(path: Path, text: str) -> str:
    """Write `text` as UTF-8, whole or not at all; returns its SHA-256."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> str:
    """Write `content` whole or not at all; returns its SHA-256. EvidenceError where the disk is full or read-only."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return hashlib.sha256(content).hexdigest()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a failed write of `path` in the block into an EvidenceError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter is what safetensors makes of a full disk
        why = getattr(error, "strerror", None) or error
        remedy = "free space or name another folder, then run it again (a cycle with --resume)"
        raise EvidenceError(f"{path} cannot be written ({why}); {remedy}") from error


def write_json(path: Path, data: Any) -> str:
    """Write `data` as canonical JSON, atomically; returns the file's SHA-256."""
    return write_text(path, canonical_json(data))


def read_json(path: Path, sha256: str | None = None) -> Any:
    """The content of a JSON file that this project wrote; IntegrityError if it is not canonical or not of that hash."""
    try:
        text = path.read_bytes().decode()  # the bytes as they are: read_text would hide changed line ends
        data = json.loads(text)
        canonical = canonical_json(data)
    except FileNotFoundError:
        raise EvidenceError(f"{path} is missing; run the cycle again with --resume") from None
    except (ValueError, RecursionError):  # not UTF-8, not JSON, NaN or infinity
        raise IntegrityError(f"{path} is damaged: it is not valid JSON; restore it or run the cycle again") from None
    if canonical != text or (sha256 is not None and sha256_text(text) != sha256):
        raise IntegrityError(f"{path} was changed after it was written; restore it or run the cycle again")
    return data
