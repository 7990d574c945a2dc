"""Uploads that a later run may go on with: one small file for each, in the state directory, of this user alone.

A file is locked (flock) by the process that uses the session, for as long as it does: the lock of one that was killed
is free. It says where the session is, and no secret: a Location is kept only where all of it is what registries are
known to use for a session (`may_be_kept`). Any other might be as good as a password, and is not. What is read back is
trusted no more than what a registry says. Nothing here is ever a failure: a file that cannot be written, or makes no
sense, is as good as none.

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
#: What stands behind `/v2/NAME/` in the path of a session: an id, and nothing that may be a web token (it has dots).
#: `uploads/UUID` is distribution's and everybody's (distribution-spec, "Pushing a blob in chunks"), GitHub has
#: `upload/1:UUID`.
_SESSION: Final = re.compile(r"blobs/uploads?/[A-Za-z0-9][A-Za-z0-9:_-]{0,127}\Z")
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


def may_be_kept(location: str, home: str, repository: str) -> bool:
    """Say whether a Location may be written down: each part of it is known to be no secret.

    It is at the registry (`home`, its URL), in this repository, and has an id and the parameters of `_PARAMETERS`.
    """
    if len(location) > limits.MAX_UPLOAD_LOCATION or not _SENDABLE.match(location):
        return False
    try:
        parts, base = urlsplit(location), urlsplit(home)
        if "@" in parts.netloc or "#" in location or Origin.of(location) != Origin.of(home):
            return False
    except (ValueError, OcistreamError):
        return False
    folder = f"{base.path.rstrip('/')}/v2/{repository}/"
    if not parts.path.startswith(folder) or not _SESSION.match(parts.path[len(folder) :]):
        return False
    given = (part.partition("=") for part in parts.query.split("&") if part)
    return all(name in _PARAMETERS and _PARAMETERS[name].match(value) for name, _, value in given)


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

        A file comes into being by it, so that what is opened next is written down at once. What is too old in one that
        is there is forgotten.
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

        That is of these blobs, of such as had no name yet, or older than anything is gone on with: registries that do
        not tidy up have that still. What is too old of other repositories is forgotten.
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

    def look(self, registry: str, repository: str, digest: str) -> UploadRecord | None:
        """Give what is there of an upload that nobody uses, be the blob of whatever size; it stays as it is."""
        if self._directory is None:
            return None
        path = self._directory / _name(Key(registry, repository, digest, 0))
        with contextlib.suppress(OSError):
            if self._is_too_old(path.lstat().st_mtime):
                return None
        claim = self._existing(path, registry, repository)
        if claim is None:
            return None
        claim.leave()
        return claim.found

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
                    if path.suffix == _SUFFIX:
                        yield path, self._is_too_old(path.lstat().st_mtime)

    def _existing(self, path: Path, registry: str, repository: str) -> Claim | None:
        try:
            descriptor = _locked(path, 0)
        except OSError:
            return None
        if descriptor is None:
            return None
        key, record, _ = self._read(descriptor)
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

        found, record, since = self._read(descriptor)
        if found != key or self._is_too_old(since):
            record = None
            if os.fstat(descriptor).st_size:
                # Of one that is new ext4 would take this for a replacement, and write it to the disk when it is closed.
                os.ftruncate(descriptor, 0)
        return Claim(path, descriptor, record, content)

    def _read(self, descriptor: int) -> tuple[Key | None, UploadRecord | None, float]:
        """Read of which upload a file is, what it holds, and since when: None where that makes no sense."""
        try:
            raw = os.pread(descriptor, limits.MAX_UPLOAD_RECORD + 1, 0)
            if raw:
                return _parsed(parse_json(raw, "the record", limits.MAX_UPLOAD_RECORD))
        except (OSError, KeyError, ValueError, TypeError, OcistreamError):
            pass
        return None, None, 0.0

    def _is_too_old(self, since: float) -> bool:
        return not -_SKEW <= self._now() - since <= limits.UPLOAD_RECORD_AGE

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
    blob = _hash(key.digest) if key.digest else _UNNAMED + os.urandom(8).hex()
    return f"{_hash(key.registry, key.repository)}-{blob}{_SUFFIX}"


def _make_private(directory: Path) -> None:
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
