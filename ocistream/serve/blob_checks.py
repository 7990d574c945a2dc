"""What is known of the files of blobs: which were hashed, and whether each was what its digest says.

A result counts only as long as the file is the same one: same device, inode, size and mtime. It must not open files.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ocistream import limits
from ocistream.streams.chunks import digest_of

if TYPE_CHECKING:
    import os

__all__ = ["BlobChecks", "is_empty_by_mistake"]

_FileState: TypeAlias = tuple[int, int, int, int]
_EMPTY = frozenset({digest_of(b"", "sha256"), digest_of(b"", "sha512")})


class _Check(NamedTuple):
    """`size` is the size of the blob in bytes, once that is known."""

    state: _FileState
    is_right: bool
    size: int | None


class BlobChecks:
    """The results of the most recent checks, by digest. Safe for several threads."""

    def __init__(self) -> None:
        """Start without results."""
        self._lock = threading.Lock()
        self._checks: dict[str, _Check] = {}

    def note(self, digest: str, status: os.stat_result, *, is_right: bool) -> None:
        """Remember the result of a check of the file that had this status when it was opened."""
        with self._lock:
            before = self._checks.pop(digest, None)
            size = status.st_size if is_right else before and before.size
            if len(self._checks) >= limits.MAX_CHECKED_BLOBS:
                del self._checks[next(iter(self._checks))]
            self._checks[digest] = _Check(_state(status), is_right, size)

    def is_known(self, digest: str) -> bool:
        """Say whether there is a result for any file of this blob."""
        return digest in self._checks

    def is_right(self, digest: str, status: os.stat_result) -> bool:
        """Say whether this file was hashed and found right."""
        check = self._checks.get(digest)
        return check is not None and check.is_right and check.state == _state(status)

    def is_wrong(self, digest: str, status: os.stat_result) -> bool:
        """Say whether this file is known to be wrong: it was hashed, or its size cannot be that of the blob."""
        if is_empty_by_mistake(digest, status.st_size):
            return True
        check = self._checks.get(digest)
        if check is None:
            return False
        if check.size is not None and check.size != status.st_size:
            return True
        return not check.is_right and check.state == _state(status)

    def touched(self, digest: str, before: os.stat_result, after: os.stat_result) -> None:
        """Keep a result although the mtime of the file was set to the present."""
        with self._lock:
            check = self._checks.get(digest)
            if check is not None and check.state == _state(before) and _state(before)[:3] == _state(after)[:3]:
                self._checks[digest] = check._replace(state=_state(after))


def is_empty_by_mistake(digest: str, size: int) -> bool:
    """Say whether a file of so many bytes is empty and its blob is not, as after a power failure."""
    return not size and digest not in _EMPTY


def _state(status: os.stat_result) -> _FileState:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
