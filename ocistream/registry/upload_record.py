"""Records of open upload sessions: one locked file for each in the state directory, for a later run to resume.

A Location is stored only if each of its parts is known to be no secret. An error here never fails an upload.
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
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

from ocistream import limits
from ocistream.errors import OcistreamError
from ocistream.http.origins import Origin
from ocistream.notices import notify
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from ocistream.registry.repository import Repository

_Fields: TypeAlias = dict[str, Any]
_VERSION: Final = 1
#: The fields of a record, and their types.
_FIELD_TYPES: Final = {
    **dict.fromkeys(("registry", "repository", "digest", "location"), str),
    **dict.fromkeys(("version", "size", "min_chunk", "since"), int),
}
_SUFFIX: Final = ".json"
#: Hex digits of a hash in a file's name: enough to avoid collisions.
_HASH_DIGITS: Final = 32
_NEW_BLOB_PREFIX: Final = "unnamed-"
#: Seconds by which a record may lie in the future, after the clock was set back.
_MAX_CLOCK_SKEW: Final = 86_400.0
#: Attempts to open a file that other processes remove, or that is not ocistream's own.
_ATTEMPTS: Final = 5
#: A Location that may be stored has only these characters.
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]+\Z")
#: The path of a session after `/v2/NAME/`: an id without dots, so that it cannot be a JSON web token. Most registries
#: use `uploads/UUID` (distribution-spec, "Pushing a blob in chunks"), GitHub uses `upload/1:UUID`.
_SESSION_PATH: Final = re.compile(r"blobs/uploads?/[A-Za-z0-9][A-Za-z0-9:_-]{0,127}\Z")
_DIGEST: Final = re.compile(r"[a-z0-9]{1,32}(?::|%3[Aa])[0-9a-f]{1,128}\Z")
#: Query parameters that sessions are known to have, and the form of their values. A list of secret parameters would
#: never be complete: `st`, `s`, `code` and `hdnts` are some.
_PARAMETERS: Final = MappingProxyType(
    {
        # distribution, and with it Harbor, GitLab, Docker Hub and Azure: base64 of the offset and a checksum. Useless
        # without push rights (registry/handlers/hmac.go).
        "_state": re.compile(r"(?:[A-Za-z0-9_+/-]|%2[BbFf])*(?:=|%3[Dd]){0,2}\Z"),
        # Azure.
        "_nouploadcache": re.compile(r"(?:true|false)\Z"),
        # From a mount that became an upload, or from the request that opened the session (zot#573).
        "digest": _DIGEST,
        "mount": _DIGEST,
        "from": re.compile(r"(?:[a-z0-9._/-]|%2[Ff]){1,255}\Z"),
    }
)


@dataclass(frozen=True, slots=True)
class SessionLocation:
    """The URL of the next request of an upload session, and the minimum size in bytes of each chunk but the last."""

    url: str
    min_chunk: int = 0


def can_store_location(url: str, registry_url: str, repository: str) -> bool:
    """Return whether a Location may be stored: each of its parts is known to contain no secret.

    The URL must be in this repository at `registry_url`, and have only a session id and parameters of `_PARAMETERS`.
    The same check applies to a stored Location when it is read: the file may have been edited.
    """
    if len(url) > limits.MAX_UPLOAD_LOCATION or not _PRINTABLE.match(url):
        return False
    try:
        parts, base = urlsplit(url), urlsplit(registry_url)
        if "@" in parts.netloc or "#" in url or Origin.from_url(url) != Origin.from_url(registry_url):
            return False
    except (ValueError, OcistreamError):
        return False
    folder = f"{base.path.rstrip('/')}/v2/{repository}/"
    if not parts.path.startswith(folder) or not _SESSION_PATH.match(parts.path[len(folder) :]):
        return False
    parameters = (part.partition("=") for part in parts.query.split("&") if part)
    return all(name in _PARAMETERS and _PARAMETERS[name].match(value) for name, _, value in parameters)


class LockedRecord:
    """The record file of one upload, locked by this process until it is removed or released.

    `location` is the session that an earlier run stored. The lock ends with the process, so a killed process frees it.
    If two processes push the same image, the second one's session is not recorded.
    """

    def __init__(
        self,
        repository: Repository,
        path: Path,
        file_descriptor: int,
        identity: _Fields,
        location: SessionLocation | None,
    ) -> None:
        """Take the open and locked file of the upload that `identity` names, and the session that it has.

        `identity` is empty for a record that is only read or removed.
        """
        self._repository = repository
        self._path = path
        self._file_descriptor = file_descriptor
        self._identity = identity
        self._written_size = os.fstat(file_descriptor).st_size
        self.location = location if location is not None and self._can_store(location) else None

    @property
    def is_locked(self) -> bool:
        """Whether this process still holds the lock."""
        return self._file_descriptor >= 0

    def write(self, location: SessionLocation) -> None:
        """Store the session of the upload. If that fails, or its Location may have a secret, remove the file.

        One `pwrite` that never shortens the file: a killed process leaves either the old or the new record. The file is
        not synced, because after a power failure the upload may start again.
        """
        if not self.is_locked:
            return
        if not self._can_store(location):
            self.remove()
            return
        since = round(time.time())
        fields = {**self._identity, "location": location.url, "min_chunk": location.min_chunk, "since": since}
        content = json.dumps(fields).encode().ljust(self._written_size)
        self._written_size = len(content)
        try:
            if os.pwrite(self._file_descriptor, content, 0) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301 - handled as a failed write
        except OSError as error:
            self.remove()
            _warn(self._path.parent, error)

    def _can_store(self, location: SessionLocation) -> bool:
        return can_store_location(location.url, self._repository.endpoint.url, self._repository.name)

    def remove(self) -> None:
        """Remove the file, because no session is left to resume; unlock it."""
        if self.is_locked:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self.release()

    def release(self) -> None:
        """Unlock the file, for the next run."""
        if self.is_locked:
            file_descriptor, self._file_descriptor = self._file_descriptor, -1
            os.close(file_descriptor)


class UploadRecords:
    """The directory of upload records. Safe for several threads and processes.

    None as `directory` disables records.
    """

    def __init__(self, directory: Path | None) -> None:
        """Take the directory. Do not read or create it yet."""
        self._directory = directory
        #: The records of uploads that run now, and of some that have ended.
        self._locked: list[LockedRecord] = []

    def lock(self, repository: Repository, digest: str, size: int) -> LockedRecord | None:
        """Lock the record of an upload; return None if another process holds it, or if records cannot be stored.

        `digest` is "" if the digest is known only at the blob's end. This creates the file before the session is
        opened, so that the session is stored as soon as it exists. A record that is too old is dropped.
        """
        # Threads that ask at once may exceed the limit, by their number.
        self._locked = [record for record in self._locked if record.is_locked]
        if self._directory is None or len(self._locked) >= limits.MAX_OPEN_UPLOAD_RECORDS:
            return None
        identity = _identify(repository, digest, size)
        path = self._directory / _file_name(repository, digest)
        location, file_descriptor = None, None
        try:
            _ensure_private_directory(self._directory)
            if (file_descriptor := _open_locked(path, can_create=True)) is None:
                return None
            fields = _read_record(file_descriptor)
            if fields.items() >= identity.items() and not _is_too_old(fields["since"]):
                location = SessionLocation(fields["location"], fields["min_chunk"])
            elif os.fstat(file_descriptor).st_size:
                # Not for a new file: ext4 would treat it as a replacement, and sync it when it is closed.
                os.ftruncate(file_descriptor, 0)
        except OSError as error:
            if file_descriptor is not None:
                os.close(file_descriptor)
            _warn(self._directory, error)
            return None
        record = LockedRecord(repository, path, file_descriptor, identity, location)
        self._locked.append(record)
        return record

    def lock_abandoned(self, repository: Repository, digests: Collection[str]) -> Iterator[LockedRecord]:
        """Lock and yield each unused record of a repository: of these blobs, of blobs without a digest, and old ones.

        Old sessions are included because some registries never delete them. Old records of other repositories are
        removed.
        """
        prefix = _file_prefix(repository)
        wanted = {_file_name(repository, digest) for digest in digests}
        for path, is_old in self._list_files():
            is_selected = path.name in wanted or path.name.startswith(prefix + _NEW_BLOB_PREFIX)
            record = _lock_existing(path, repository) if is_selected or is_old else None
            if record is None:
                continue
            if is_selected or path.name.startswith(prefix):
                yield record
            else:
                record.remove()

    def find(self, repository: Repository, digest: str) -> SessionLocation | None:
        """Return the unused session of a blob of any size, or None; the record does not change."""
        if self._directory is None:
            return None
        path = self._directory / _file_name(repository, digest)
        with contextlib.suppress(OSError):
            if _is_too_old(path.lstat().st_mtime):
                return None
        if (record := _lock_existing(path, repository)) is None:
            return None
        record.release()
        return record.location

    def _list_files(self) -> Iterator[tuple[Path, bool]]:
        """Yield each record file, and whether it is too old."""
        if self._directory is None:
            return
        with contextlib.suppress(OSError):
            for path in self._directory.iterdir():
                with contextlib.suppress(OSError):
                    if path.suffix == _SUFFIX:
                        yield path, _is_too_old(path.lstat().st_mtime)


def _lock_existing(path: Path, repository: Repository) -> LockedRecord | None:
    try:
        file_descriptor = _open_locked(path)
    except OSError:
        return None
    if file_descriptor is None:
        return None
    fields, location = _read_record(file_descriptor), None
    if (fields.get("registry"), fields.get("repository")) == (repository.endpoint.registry, repository.name):
        location = SessionLocation(fields["location"], fields["min_chunk"])
    return LockedRecord(repository, path, file_descriptor, {}, location)


def _identify(repository: Repository, digest: str, size: int) -> _Fields:
    """Return the fields that name the blob and the repository of an upload."""
    names = {"registry": repository.endpoint.registry, "repository": repository.name, "digest": digest}
    return {"version": _VERSION, **names, "size": size}


def _read_record(file_descriptor: int) -> _Fields:
    """Return the fields of a file; none if it is empty or malformed."""
    try:
        raw = os.pread(file_descriptor, limits.MAX_UPLOAD_RECORD + 1, 0)
        fields = parse_json(raw, "the record", limits.MAX_UPLOAD_RECORD)
    except (OSError, OcistreamError):
        return {}
    has_known_fields = {name: type(value) for name, value in fields.items()} == _FIELD_TYPES
    numbers = (value for value in fields.values() if isinstance(value, int))
    is_valid = has_known_fields and fields["version"] == _VERSION and all(0 <= number < 10**18 for number in numbers)
    return fields if is_valid else {}


def _is_too_old(since: float) -> bool:
    return not -_MAX_CLOCK_SKEW <= time.time() - since <= limits.MAX_UPLOAD_RECORD_AGE


def _warn(directory: Path, error: OSError) -> None:
    reason = printable(error.strerror or str(error))
    notify(f"{directory}: cannot store upload records: {reason}", level=1)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]


def _file_prefix(repository: Repository) -> str:
    return _hash(f"{repository.endpoint.registry}\n{repository.name}") + "-"


def _file_name(repository: Repository, digest: str) -> str:
    blob = _hash(digest) if digest else _NEW_BLOB_PREFIX + os.urandom(8).hex()
    return f"{_file_prefix(repository)}{blob}{_SUFFIX}"


def _ensure_private_directory(directory: Path) -> None:
    """Create the directory, or make sure that only this user can access it; raise OSError otherwise."""
    if not os.path.lexists(directory.parent):
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "not a directory of this user")
    if status.st_mode & 0o077:
        directory.chmod(0o700)


def _open_locked(path: Path, *, can_create: bool = False) -> int | None:
    """Open and lock a record file; return None if another process holds it. Remove any other file of this name."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if can_create else 0)
    for _ in range(_ATTEMPTS):
        try:
            file_descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno not in {errno.ELOOP, errno.ENXIO, errno.EACCES}:
                raise
            path.unlink()
            continue
        try:
            fcntl.flock(file_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file_descriptor), path.lstat()):
                if _is_our_file(file_descriptor):
                    return file_descriptor
                path.unlink()
        except BlockingIOError:
            os.close(file_descriptor)
            return None
        except FileNotFoundError:
            # The process that held the lock has removed the file.
            pass
        except BaseException:
            os.close(file_descriptor)
            raise
        os.close(file_descriptor)
    return None


def _is_our_file(file_descriptor: int) -> bool:
    """Return whether it is a regular file of this user with one name and no rights for other users."""
    status = os.fstat(file_descriptor)
    is_plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    return is_plain and status.st_uid == os.geteuid() and not status.st_mode & 0o077
