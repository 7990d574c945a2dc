"""Records of unfinished uploads: one locked file for each in the state directory, for a later run to resume.

A Location is stored only if each of its parts is known to be no secret. An error here never fails an upload.
Must stay a module of its own: `cli.signals` never interrupts its functions, which hold locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import threading
import time
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ocistream import limits
from ocistream.errors import OcistreamError
from ocistream.http.origins import Origin
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

__all__ = ["LockedRecord", "UploadKey", "UploadRecord", "UploadRecords", "can_store_location"]

_VERSION: Final = 1
_SUFFIX: Final = ".json"
#: Hex digits of a hash in a file's name: enough that no two things meet.
_HASH_DIGITS: Final = 32
_NEW_BLOB_PREFIX: Final = "unnamed-"
#: Of clocks that are set back: what was begun tomorrow was not.
_MAX_CLOCK_SKEW: Final = 86_400.0
#: How often a name is looked up anew that others remove meanwhile, or that is not a file of ours.
_ATTEMPTS: Final = 5
#: What cannot be written to a file at all.
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]+\Z")
#: What stands behind `/v2/NAME/` in the path of a session: an id, and nothing that may be a web token (it has dots).
#: `uploads/UUID` is distribution's and everybody's (distribution-spec, "Pushing a blob in chunks"), GitHub has
#: `upload/1:UUID`.
_SESSION_PATH: Final = re.compile(r"blobs/uploads?/[A-Za-z0-9][A-Za-z0-9:_-]{0,127}\Z")
_DIGEST: Final = re.compile(r"[a-z0-9]{1,32}(?::|%3[Aa])[0-9a-f]{1,128}\Z")
#: Parameters that sessions are known to have, and what their values look like. A list of those that are secrets would
#: never be whole: `st`, `s`, `code` and `hdnts` are some.
_PARAMETERS: Final = MappingProxyType(
    {
        # distribution's, and so Harbor's, GitLab's, Docker Hub's, Azure's: base64 of the offset and a checksum, of no
        # use to who may not push anyway (registry/handlers/hmac.go).
        "_state": re.compile(r"(?:[A-Za-z0-9_+/-]|%2[BbFf])*(?:=|%3[Dd]){0,2}\Z"),
        # Azure's.
        "_nouploadcache": re.compile(r"(?:true|false)\Z"),
        # What was asked for by a mount that became an upload, or named when it was opened (zot#573).
        "digest": _DIGEST,
        "mount": _DIGEST,
        "from": re.compile(r"(?:[a-z0-9._/-]|%2[Ff]){1,255}\Z"),
    }
)


@dataclass(frozen=True, slots=True)
class UploadKey:
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


def can_store_location(location: str, registry_url: str, repository: str) -> bool:
    """Say whether a Location may be written down: each part of it is known to be no secret.

    It is at the registry (`home`, its URL), in this repository, and has an id and the parameters of `_PARAMETERS`.
    """
    if len(location) > limits.MAX_UPLOAD_LOCATION or not _PRINTABLE.match(location):
        return False
    try:
        parts, base = urlsplit(location), urlsplit(registry_url)
        if "@" in parts.netloc or "#" in location or Origin.from_url(location) != Origin.from_url(registry_url):
            return False
    except (ValueError, OcistreamError):
        return False
    folder = f"{base.path.rstrip('/')}/v2/{repository}/"
    if not parts.path.startswith(folder) or not _SESSION_PATH.match(parts.path[len(folder) :]):
        return False
    given = (part.partition("=") for part in parts.query.split("&") if part)
    return all(name in _PARAMETERS and _PARAMETERS[name].match(value) for name, _, value in given)


class LockedRecord:
    """One upload's file, locked by this process until it is dropped or left. `found` is what another run has left."""

    def __init__(
        self, path: Path, descriptor: int, record: UploadRecord | None, encode: Callable[[UploadRecord], bytes]
    ) -> None:
        """Take the open file; `write` makes its content."""
        self._path = path
        self._descriptor = descriptor
        self._encode = encode
        self._written_size = os.fstat(descriptor).st_size
        self.record = record

    @property
    def is_locked(self) -> bool:
        """Whether it is this process's still."""
        return self._descriptor >= 0

    def write(self, record: UploadRecord) -> None:
        """Write down where the upload is now.

        By one call, and no shorter than what is there: a process that is killed leaves the one or the other.

        Raises:
            OSError: the disk is full, say.
        """
        content = self._encode(record)
        content = content.ljust(self._written_size)
        self._written_size = len(content)
        if os.pwrite(self._descriptor, content, 0) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def remove(self) -> None:
        """Remove the file, since there is nothing any more to go on with."""
        if self.is_locked:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self.release()

    def release(self) -> None:
        """Let the next run have the file."""
        if self.is_locked:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class UploadRecords:
    """The folder. Safe for several threads and processes; `note` is told once why nothing is kept, if nothing is."""

    def __init__(
        self,
        directory: Path | None,
        warn: Callable[[str], None] = lambda _: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Name the folder, or None for nothing to be kept; nothing is read or made yet."""
        self._directory = directory
        self._warn = warn
        self._now = now
        self._lock = threading.Lock()
        self._locked_records: list[LockedRecord] = []
        self._has_warned = False

    def lock(self, key: UploadKey) -> LockedRecord | None:
        """Take an upload for this process; None where another one has it, or nothing can be kept.

        A file comes into being by it, so that what is opened next is written down at once. What is too old in one that
        is there is forgotten.
        """
        with self._lock:
            self._locked_records = [claim for claim in self._locked_records if claim.is_locked]
            if self._directory is None or len(self._locked_records) >= limits.MAX_OPEN_UPLOAD_RECORDS:
                return None
            try:
                _ensure_private_directory(self._directory)
                claim = self._lock_or_create(self._directory / _file_name(key), key)
            except OSError as error:
                self._warn_once(error)
                return None
            if claim is not None:
                self._locked_records.append(claim)
            return claim

    def lock_abandoned(self, registry: str, repository: str, digests: Collection[str]) -> Iterator[LockedRecord]:
        """Take, one after the other, what nobody uses of a repository's uploads.

        That is of these blobs, of such as had no name yet, or older than anything is gone on with: registries that do
        not tidy up have that still. What is too old of other repositories is forgotten.
        """
        prefix = f"{_hash(registry, repository)}-"
        wanted = {_file_name(UploadKey(registry, repository, digest, 0)) for digest in digests}
        for path, is_old in self._list_files():
            mine = path.name in wanted or path.name.startswith(prefix + _NEW_BLOB_PREFIX)
            claim = self._lock_existing(path, registry, repository) if mine or is_old else None
            if claim is None:
                continue
            if mine or (is_old and path.name.startswith(prefix)):
                yield claim
            else:
                claim.remove()

    def find(self, registry: str, repository: str, digest: str) -> UploadRecord | None:
        """Give what is there of an upload that nobody uses, be the blob of whatever size; it stays as it is."""
        if self._directory is None:
            return None
        path = self._directory / _file_name(UploadKey(registry, repository, digest, 0))
        with contextlib.suppress(OSError):
            if self._is_too_old(path.lstat().st_mtime):
                return None
        claim = self._lock_existing(path, registry, repository)
        if claim is None:
            return None
        claim.release()
        return claim.record

    def discard_unwritable(self, record: LockedRecord, error: OSError) -> None:
        """Give up what could not be written."""
        record.remove()
        self._warn_once(error)

    # -- files ------------------------------------------------------------------------------------------

    def _list_files(self) -> Iterator[tuple[Path, bool]]:
        """List what is there, and whether it is too old."""
        if self._directory is None:
            return
        with contextlib.suppress(OSError):
            for path in self._directory.iterdir():
                with contextlib.suppress(OSError):
                    if path.suffix == _SUFFIX:
                        yield path, self._is_too_old(path.lstat().st_mtime)

    def _lock_existing(self, path: Path, registry: str, repository: str) -> LockedRecord | None:
        try:
            descriptor = _open_locked(path, 0)
        except OSError:
            return None
        if descriptor is None:
            return None
        key, record, _ = self._read_record(descriptor)
        mine = key is not None and (key.registry, key.repository) == (registry, repository)
        return LockedRecord(path, descriptor, record if mine else None, _no_content)

    def _lock_or_create(self, path: Path, key: UploadKey) -> LockedRecord | None:
        descriptor = _open_locked(path, os.O_CREAT)
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

        found, record, since = self._read_record(descriptor)
        if found != key or self._is_too_old(since):
            record = None
            if os.fstat(descriptor).st_size:
                # Of one that is new ext4 would take this for a replacement, and write it to the disk when it is closed.
                os.ftruncate(descriptor, 0)
        return LockedRecord(path, descriptor, record, content)

    def _read_record(self, descriptor: int) -> tuple[UploadKey | None, UploadRecord | None, float]:
        """Read of which upload a file is, what it holds, and since when: None where that makes no sense."""
        try:
            raw = os.pread(descriptor, limits.MAX_UPLOAD_RECORD + 1, 0)
            if raw:
                return _parse_record(parse_json(raw, "the record", limits.MAX_UPLOAD_RECORD))
        except (OSError, KeyError, ValueError, TypeError, OcistreamError):
            pass
        return None, None, 0.0

    def _is_too_old(self, since: float) -> bool:
        return not -_MAX_CLOCK_SKEW <= self._now() - since <= limits.MAX_UPLOAD_RECORD_AGE

    def _warn_once(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._warn(f"{self._directory}: uploads are not remembered: {printable(error.strerror or str(error))}")


def _parse_record(document: Mapping[str, Any]) -> tuple[UploadKey, UploadRecord, float]:
    """Take a file's content apart.

    Raises:
        KeyError, ValueError, TypeError: it is not what we write.
    """
    key = UploadKey(**{field.name: document[field.name] for field in fields(UploadKey) if field.name in document})
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
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:_HASH_DIGITS]


def _file_name(key: UploadKey) -> str:
    blob = _hash(key.digest) if key.digest else _NEW_BLOB_PREFIX + os.urandom(8).hex()
    return f"{_hash(key.registry, key.repository)}-{blob}{_SUFFIX}"


def _ensure_private_directory(directory: Path) -> None:
    """Make the folder, or make sure that it is ours alone.

    Raises:
        OSError: it cannot be made, or is another one's, or a link.
    """
    if not os.path.lexists(directory.parent):
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "not a folder of this user")
    if found.st_mode & 0o077:
        directory.chmod(0o700)


def _open_locked(path: Path, create: int) -> int | None:
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
