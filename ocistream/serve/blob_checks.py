"""What is known of the files of blobs: which were hashed, and whether each was what its digest says.

A result counts only as long as the file is the same one: same device, inode, size and mtime. It must not open files.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ocistream import limits
from ocistream.streams.chunks import compute_digest

if TYPE_CHECKING:
    import os

__all__ = ["VerificationCache", "is_unexpectedly_empty"]

_FileState: TypeAlias = tuple[int, int, int, int]
_EMPTY_BLOB_DIGESTS = frozenset({compute_digest(b"", "sha256"), compute_digest(b"", "sha512")})


class _VerificationResult(NamedTuple):
    """`size` is the size of the blob in bytes, once that is known."""

    state: _FileState
    is_intact: bool
    size: int | None


class VerificationCache:
    """The results of the most recent checks, by digest. Safe for several threads."""

    def __init__(self) -> None:
        """Start without results."""
        self._lock = threading.Lock()
        self._results: dict[str, _VerificationResult] = {}

    def record(self, digest: str, status: os.stat_result, *, is_right: bool) -> None:
        """Remember the result of a check of the file that had this status when it was opened."""
        with self._lock:
            before = self._results.pop(digest, None)
            size = status.st_size if is_right else before and before.size
            if len(self._results) >= limits.MAX_CACHED_BLOB_CHECKS:
                del self._results[next(iter(self._results))]
            self._results[digest] = _VerificationResult(_file_state(status), is_right, size)

    def has_result(self, digest: str) -> bool:
        """Say whether there is a result for any file of this blob."""
        return digest in self._results

    def is_intact(self, digest: str, status: os.stat_result) -> bool:
        """Say whether this file was hashed and found right."""
        check = self._results.get(digest)
        return check is not None and check.is_intact and check.state == _file_state(status)

    def is_corrupt(self, digest: str, status: os.stat_result) -> bool:
        """Say whether this file is known to be wrong: it was hashed, or its size cannot be that of the blob."""
        if is_unexpectedly_empty(digest, status.st_size):
            return True
        check = self._results.get(digest)
        if check is None:
            return False
        if check.size is not None and check.size != status.st_size:
            return True
        return not check.is_intact and check.state == _file_state(status)

    def record_touch(self, digest: str, before: os.stat_result, after: os.stat_result) -> None:
        """Keep a result although the mtime of the file was set to the present."""
        with self._lock:
            check = self._results.get(digest)
            if (
                check is not None
                and check.state == _file_state(before)
                and _file_state(before)[:3] == _file_state(after)[:3]
            ):
                self._results[digest] = check._replace(state=_file_state(after))


def is_unexpectedly_empty(digest: str, size: int) -> bool:
    """Say whether a file of so many bytes is empty and its blob is not, as after a power failure."""
    return not size and digest not in _EMPTY_BLOB_DIGESTS


def _file_state(status: os.stat_result) -> _FileState:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
