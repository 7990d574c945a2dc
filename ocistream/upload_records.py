"""Uploads that a later run may go on with: one small file for each, in the state directory, of this user alone.

A file is locked (flock) by the process that uses the session, for as long as it does: the lock of one that was killed
is free. It says where the session is, and no secret: a Location that might be one (a signature or token in its query,
another host) is not kept at all. What is read back is trusted no more than what a registry says. Nothing here is ever a
failure: a file that cannot be written, or makes no sense, is as good as none.

It knows files, and what a Location may be; nothing is sent from here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import threading
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_plus, urlsplit

from ocistream import limits
from ocistream.errors import OcistreamError
from ocistream.origins import Origin
from ocistream.reference import printable
from ocistream.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

__all__ = ["Claim", "Key", "UploadRecord", "UploadRecords", "may_be_kept"]

_VERSION: Final = 1
_SUFFIX: Final = ".json"
#: Hex digits of a hash in a file's name: enough that no two things meet.
_HASHED: Final = 32
_UNNAMED: Final = "unnamed-"
#: Of clocks that are set back: what was begun tomorrow was not.
_SKEW: Final = 86_400.0
#: How often a name is looked up anew that others remove meanwhile, or that is not a file of ours.
_ATTEMPTS: Final = 5
#: What cannot be written to a file at all.
_SENDABLE: Final = re.compile(r"[\x21-\x7e]+\Z")
#: Parameters of queries that are, or may be, as good as a password: S3's, Azure's, Google's and CloudFront's signed
#: URLs, and whatever else says what it is.
_SECRET: Final = re.compile(
    r"sig|sign|token|key|cred|auth|secret|passw|pwd|policy|jwt|bearer|ticket|hmac|access|x-(?:amz|goog|ms|oss|cos)-",
    re.IGNORECASE,
)
#: A JSON web token, wherever it stands.
_JWT: Final = re.compile(r"eyJ[\w-]{8,}\.[\w-]+\.")


@dataclass(frozen=True, slots=True)
class Key:
    """Which upload it is: of which blob, into which repository. Of a blob that has no name yet `digest` is ""."""

    registry: str
    repository: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """What is remembered of an upload: where it goes on, and the least that a chunk must have, in bytes."""

    location: str
    min_chunk: int = 0


def may_be_kept(location: str, home: Origin) -> bool:
    """Say whether a Location may be written down: it is the registry's own (`home`), and nothing in it is a secret."""
    if len(location) > limits.MAX_UPLOAD_LOCATION or not _SENDABLE.match(location) or _JWT.search(location):
        return False
    try:
        parts = urlsplit(location)
        if "@" in parts.netloc or parts.fragment or Origin.of(location) != home:
            return False
    except (ValueError, OcistreamError):
        return False
    names = (part.partition("=")[0] for part in re.split("[&;]", parts.query))
    return not any(_SECRET.search(unquote_plus(name)) for name in names)


class Claim:
    """One upload's file, locked by this process until it is dropped or left. `found` is what another run has left."""

    def __init__(
        self, path: Path, descriptor: int, found: UploadRecord | None, write: Callable[[UploadRecord], bytes]
    ) -> None:
        """Take the open file; `write` makes its content."""
        self._path = path
        self._descriptor = descriptor
        self._content = write
        self._written = os.fstat(descriptor).st_size
        self.found = found

    @property
    def is_held(self) -> bool:
        """Whether it is this process's still."""
        return self._descriptor >= 0

    def write(self, record: UploadRecord) -> None:
        """Write down where the upload is now.

        By one call, and no shorter than what is there: a process that is killed leaves the one or the other.

        Raises:
            OSError: the disk is full, say.
        """
        content = self._content(record)
        content = content.ljust(self._written)
        self._written = len(content)
        if os.pwrite(self._descriptor, content, 0) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def drop(self) -> None:
        """Remove the file, since there is nothing any more to go on with."""
        if self.is_held:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self.leave()

    def leave(self) -> None:
        """Let the next run have the file."""
        if self.is_held:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class UploadRecords:
    """The folder. Safe for several threads and processes; `note` is told once why nothing is kept, if nothing is."""

    def __init__(
        self,
        directory: Path | None,
        note: Callable[[str], None] = lambda _: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Name the folder, or None for nothing to be kept; nothing is read or made yet."""
        self._directory = directory
        self._note = note
        self._now = now
        self._lock = threading.Lock()
        self._claims: list[Claim] = []
        self._told = False

    def claim(self, key: Key) -> Claim | None:
        """Take an upload for this process; None where another one has it, or nothing can be kept.

        A file comes into being by it, so that what is opened next is written down at once.
        """
        with self._lock:
            self._claims = [claim for claim in self._claims if claim.is_held]
            if self._directory is None or len(self._claims) >= limits.MAX_HELD_RECORDS:
                return None
            try:
                _make_private(self._directory)
                claim = self._open(self._directory / _name(key), key)
            except OSError as error:
                self._tell(error)
                return None
            if claim is not None:
                self._claims.append(claim)
            return claim

    def left_over(self, registry: str, repository: str, digests: Collection[str]) -> Iterator[Claim]:
        """Take, one after the other, what nobody uses of a repository's uploads.

        That is of these blobs, of such as had no name yet, or older than anything is kept. What is too old of other
        repositories is removed.
        """
        prefix = f"{_hash(registry, repository)}-"
        wanted = {_name(Key(registry, repository, digest, 0)) for digest in digests}
        for path, is_old in self._files():
            mine = path.name in wanted or path.name.startswith(prefix + _UNNAMED)
            claim = self._existing(path, registry, repository) if mine or is_old else None
            if claim is None:
                continue
            if mine or (is_old and path.name.startswith(prefix)):
                yield claim
            else:
                claim.drop()

    def failed(self, claim: Claim, error: OSError) -> None:
        """Give up what could not be written."""
        claim.drop()
        self._tell(error)

    # -- files ------------------------------------------------------------------------------------------

    def _files(self) -> Iterator[tuple[Path, bool]]:
        """List what is there, and whether it is too old."""
        if self._directory is None:
            return
        with contextlib.suppress(OSError):
            for path in self._directory.iterdir():
                with contextlib.suppress(OSError):
                    age = self._now() - path.lstat().st_mtime
                    if path.suffix == _SUFFIX:
                        yield path, not -_SKEW <= age <= limits.UPLOAD_RECORD_AGE

    def _existing(self, path: Path, registry: str, repository: str) -> Claim | None:
        try:
            descriptor = _locked(path, 0)
        except OSError:
            return None
        if descriptor is None:
            return None
        key, record = self._read(descriptor)
        mine = key is not None and (key.registry, key.repository) == (registry, repository)
        return Claim(path, descriptor, record if mine else None, _no_content)

    def _open(self, path: Path, key: Key) -> Claim | None:
        descriptor = _locked(path, os.O_CREAT)
        if descriptor is None:
            return None

        def content(record: UploadRecord) -> bytes:
            document = {
                "version": _VERSION,
                "registry": key.registry,
                "repository": key.repository,
                "digest": key.digest,
                "size": key.size,
                "location": record.location,
                "min_chunk": record.min_chunk,
                "since": round(self._now()),
            }
            return json.dumps(document).encode() + b"\n"

        found, record = self._read(descriptor)
        if found != key:
            record = None
            if os.fstat(descriptor).st_size:
                # Of one that is new ext4 would take this for a replacement, and write it to the disk when it is closed.
                os.ftruncate(descriptor, 0)
        return Claim(path, descriptor, record, content)

    def _read(self, descriptor: int) -> tuple[Key | None, UploadRecord | None]:
        """Read of which upload a file is, and what it holds: None where that makes no sense or is too old."""
        try:
            raw = os.pread(descriptor, limits.MAX_UPLOAD_RECORD + 1, 0)
            if not raw:
                return None, None
            key, record, since = _parsed(parse_json(raw, "the record", limits.MAX_UPLOAD_RECORD))
        except (OSError, KeyError, ValueError, TypeError, OcistreamError):
            return None, None
        return (key, record) if -_SKEW <= self._now() - since <= limits.UPLOAD_RECORD_AGE else (None, None)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            self._note(f"{self._directory}: uploads are not remembered: {printable(error.strerror or str(error))}")


def _parsed(document: Mapping[str, Any]) -> tuple[Key, UploadRecord, float]:
    """Take a file's content apart.

    Raises:
        KeyError, ValueError, TypeError: it is not what we write.
    """
    key = Key(**{field.name: document[field.name] for field in fields(Key) if field.name in document})
    record = UploadRecord(**{field.name: document[field.name] for field in fields(UploadRecord)})
    since, version = document["since"], document["version"]
    texts = (key.registry, key.repository, key.digest, record.location)
    numbers = (key.size, record.min_chunk, since, version)
    known = len(document) == len(texts) + len(numbers)
    if not known or version != _VERSION or not all(isinstance(text, str) for text in texts):
        raise ValueError
    if not all(type(number) is int and 0 <= number < 10**18 for number in numbers):
        raise ValueError
    return key, record, float(since)


def _no_content(record: UploadRecord) -> bytes:
    # What is left over is only closed.
    raise NotImplementedError(record)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:_HASHED]


def _name(key: Key) -> str:
    blob = _hash(key.digest) if key.digest else _UNNAMED + secrets.token_hex(8)
    return f"{_hash(key.registry, key.repository)}-{blob}{_SUFFIX}"


def _make_private(directory: Path) -> None:
    """Make the folder, or make sure that it is ours alone.

    Raises:
        OSError: it cannot be made, or is another one's, or a link.
    """
    if not directory.parent.exists():
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "not a folder of this user")
    if found.st_mode & 0o077:
        directory.chmod(0o700)


def _locked(path: Path, create: int) -> int | None:
    """Open a file of ours and lock it; None where another process has it. Whatever else has the name goes.

    Raises:
        OSError: that is not possible.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | create
    for attempt in range(_ATTEMPTS):
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            if attempt or error.errno not in {errno.ELOOP, errno.ENXIO, errno.EACCES}:
                raise
            path.unlink()
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                if _is_our_file(descriptor):
                    return descriptor
                path.unlink()
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            # Whoever had it has removed it meanwhile.
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    return None


def _is_our_file(descriptor: int) -> bool:
    """Say whether it is a plain file of this user, under one name only, and for nobody else to read or write."""
    found = os.fstat(descriptor)
    plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
    return plain and found.st_uid == os.geteuid() and not found.st_mode & 0o077
