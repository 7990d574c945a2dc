"""Write blobs to one repository: mount them from another repository, else upload them.

A registry may open an upload session instead of mounting; that session is used for the upload.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits
from ocistream.errors import AuthenticationError, CancelledError, NotFoundError, OcistreamError, RegistryError
from ocistream.notices import notify
from ocistream.oci.reference import printable
from ocistream.registry.upload import Upload
from ocistream.registry.upload_record import UploadRecords
from ocistream.registry.upload_session import (
    UploadSession,
    delete_session,
    has_mountable_blob,
    mount_blob,
    query_session,
)
from ocistream.registry.upload_strategy import UploadStrategy
from ocistream.transfer.interfaces import VerifiedBlob

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.repository import Repository
    from ocistream.registry.upload_record import SessionLocation
    from ocistream.streams.synchronization import Budget
    from ocistream.transfer.interfaces import NewBlob

#: After this many missing blobs in a row no more mounts from a repository are tried. The layers of a base image come
#: first, so its repository is found early.
_MAX_MOUNT_MISSES: Final = 8
#: If a mount fails with one of these, the blob is uploaded (ggcr#1404, #1679).
_MOUNT_REFUSALS: Final = (AuthenticationError, NotFoundError, RegistryError)


class UploadedSizes(NamedTuple):
    """How many bytes of a blob the registry has after an upload, and how many of them it had before."""

    stored: int
    resumed: int


class BlobPusher:
    """Upload blobs to one `repository`, or mount them. Safe for several threads with different blobs."""

    def __init__(
        self,
        repository: Repository,
        strategy: UploadStrategy | None = None,
        records: UploadRecords | None = None,
        memory: Budget | None = None,
    ) -> None:
        """Take the repository, what is known of its uploads, and the records of unfinished ones, if they are kept.

        `memory` is for sending bytes of a pipe again: see ReplayBuffer.
        """
        self.repository = repository
        self._strategy = (strategy or UploadStrategy()).host(repository.endpoint)
        self._records = records or UploadRecords(None)
        self._memory = memory
        #: Digest -> whether the repository has the blob, from a request or from an upload.
        self.exists: dict[str, bool] = {}
        #: How many blobs in a row the repository lacked. If two threads count at once, one more blob is asked for.
        self.missing_count = 0
        #: Digest -> the session that the registry opened instead of a mount (status 202).
        self._sessions: dict[str, UploadSession] = {}
        #: Name of a repository to mount from -> how many blobs in a row it lacked. If two threads count at once, one
        #: more mount is tried.
        self._mount_misses: Counter[str] = Counter()

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether the repository has a blob; send at most one request for each blob."""
        digest = descriptor.digest
        if digest not in self.exists:
            exists = self.exists[digest] = self.repository.has_blob(descriptor)
            self.missing_count = 0 if exists else self.missing_count + 1
        return self.exists[digest]

    def mount(self, descriptor: Descriptor, from_names: Sequence[str]) -> bool:
        """Mount a blob from one of several repositories of the same registry, the likeliest first.

        The first repository is asked by a mount: a refused mount opens the session that the upload needs anyway. The
        others are asked by HEAD, which opens nothing. A repository that refuses, or lacks eight blobs in a row, is not
        asked again.

        Raises:
            NetworkError: there was no answer, after all retries.
        """
        usable = [name for name in from_names if self._mount_misses[name] < _MAX_MOUNT_MISSES]
        for position, from_name in enumerate(sorted(usable, key=self._mount_misses.__getitem__)):
            if self.mount_from(descriptor, from_name, with_head=position > 0):
                self._mount_misses[from_name] = 0
                return True
            if self._mount_misses[from_name] == _MAX_MOUNT_MISSES:
                # It has just refused.
                continue
            self._mount_misses[from_name] += 1
            if self._mount_misses[from_name] == _MAX_MOUNT_MISSES:
                name = self._format_name(from_name)
                notify(f"no longer trying to mount from {name}: it had none of the last {_MAX_MOUNT_MISSES}", level=1)
        return False

    def mount_from(self, descriptor: Descriptor, from_name: str, *, with_head: bool = False) -> bool:
        """Mount a blob from one repository, even if it lacked others.

        `with_head` first asks the repository by HEAD whether it has the blob: this opens no session.

        Raises:
            NetworkError: there was no answer, after all retries.
        """
        try:
            if with_head and not has_mountable_blob(self.repository, descriptor, from_name):
                return False
            is_mounted, location = mount_blob(self.repository, descriptor.digest, from_name)
            if is_mounted or location is not None:
                self._keep_session(descriptor, location)
        except _MOUNT_REFUSALS:
            self._mount_misses[from_name] = _MAX_MOUNT_MISSES
            notify(f"the registry refuses to mount blobs from {self._format_name(from_name)}: uploading them", level=1)
            return False
        if is_mounted:
            self.exists[descriptor.digest] = True
        return is_mounted

    def can_mount(self, descriptor: Descriptor, from_names: Sequence[str]) -> bool:
        """Return whether any of several repositories of the same registry has a blob; this opens no session.

        Raises:
            NetworkError: there was no answer, after all retries.
        """
        for from_name in from_names:
            with contextlib.suppress(*_MOUNT_REFUSALS):
                if has_mountable_blob(self.repository, descriptor, from_name):
                    return True
        return False

    def upload(self, blob: VerifiedBlob | NewBlob) -> UploadedSizes:
        """Upload a blob, or the part of it that the source has; resume the session of an earlier run.

        The registry verifies the blob when it closes the upload. A wrong part deletes the upload, because the registry
        may have stored some of its bytes.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused; the upload may be resumed.
            TruncatedError, LocalDiskError, CancelledError: the chunks ended too early; the upload may be resumed.
            OcistreamError: another error of the blob's own chunks; the session is deleted.
        """
        if isinstance(blob, VerifiedBlob):
            session = self._sessions.pop(blob.descriptor.digest, None) or self._choose_session(blob)
        else:
            session = self._load_session(None)
        upload = Upload(self.repository, self._strategy, session, blob, self._memory)
        sizes = UploadedSizes(upload.run(), upload.resumed_size)
        self.exists[blob.descriptor.digest] = sizes.stored == blob.descriptor.size
        return sizes

    def partial_size(self, digest: str) -> int:
        """Return how many bytes of a blob an unfinished upload of earlier runs has; 0 if that is not certain.

        The size of the blob is not needed, because a list of digests has no sizes. Nothing is opened, deleted or
        removed.
        """
        repository = self.repository
        location = self._records.find(repository, digest)
        if location is None:
            return 0
        try:
            _, offset = query_session(repository, location, repository.client.start_retries(repository.endpoint))
        except CancelledError:
            raise
        except OcistreamError:
            return 0
        return offset or 0

    def delete_abandoned_sessions(self, digests: Collection[str]) -> None:
        """Delete the sessions that earlier runs left of these blobs, which now exist, and all old ones.

        If a deletion fails, the record stays for the next run. A server error (5xx) ends only this deletion; any other
        failure ends all. distribution needs a delete permission that push tokens often lack.
        """
        for record in self._records.lock_abandoned(self.repository, digests):
            session = UploadSession(self.repository, record)
            try:
                session.delete()
            except OcistreamError as error:
                if not isinstance(error, RegistryError) or error.status < 500:
                    return
            finally:
                session.release()

    def close(self, deadline: float = math.inf) -> None:
        """Delete unused sessions that were opened instead of mounts, until `deadline` (`time.monotonic`).

        The next run deletes those that are left.
        """
        unused = list(self._sessions.values())
        self._sessions.clear()
        # Stop at the first failure, to avoid waiting for many time-outs.
        with contextlib.suppress(OcistreamError):
            for session in unused:
                if monotonic() >= deadline:
                    break
                session.delete()
        for session in unused:
            session.release()

    def _keep_session(self, descriptor: Descriptor, location: SessionLocation | None) -> None:
        """Keep a session for the upload, or none if the blob exists; delete the session that it replaces.

        A session of an earlier run takes precedence over one that was just opened.
        """
        session = self._sessions.pop(descriptor.digest, None)
        if location is None:
            if session is not None:
                session.try_delete()
            return
        session = session or self._load_session(descriptor)
        if session.is_from_earlier_run:
            with contextlib.suppress(OcistreamError):
                delete_session(self.repository, location)
        else:
            session.replace(location)
        self._sessions[descriptor.digest] = session

    def _choose_session(self, blob: VerifiedBlob) -> UploadSession:
        """Return the session for a blob, with a record if a later run may resume it; it may not be open yet."""
        if blob.range is None and blob.descriptor.size <= limits.MAX_BUFFERED_BLOB:
            # The upload is one short request, so there is nothing to resume: a record would cost more than it saves.
            return UploadSession(self.repository)
        return self._load_session(blob.descriptor)

    def _load_session(self, descriptor: Descriptor | None) -> UploadSession:
        """Return the session that an earlier run recorded, or one that is not open yet.

        A new blob, whose digest is not known yet, cannot be resumed, but it is recorded so that a later run can delete
        its session.
        """
        if not self._strategy.profile.can_resume:
            # GAR and ECR cannot report an offset.
            return UploadSession(self.repository)
        digest, size = (descriptor.digest, descriptor.size) if descriptor is not None else ("", 0)
        return UploadSession(self.repository, self._records.lock(self.repository, digest, size))

    def _format_name(self, name: str) -> str:
        return printable(f"{self.repository.endpoint.registry}/{name}")
