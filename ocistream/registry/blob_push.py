"""Write blobs to one repository: mount them from another repository, else upload them.

A registry may open an upload session instead of mounting; that session is used for the upload.
"""

from __future__ import annotations

import contextlib
import math
import threading
from time import monotonic
from typing import TYPE_CHECKING, Final

from ocistream.errors import AuthenticationError, CancelledError, NotFoundError, OcistreamError, RegistryError
from ocistream.notices import notify
from ocistream.oci.reference import printable
from ocistream.registry.upload import BlobUpload
from ocistream.registry.upload_bodies import ReplayBuffer
from ocistream.registry.upload_records import UploadRecords, can_store_location
from ocistream.registry.upload_sessions import UploadSession, UploadSessions, UploadState, delete_abandoned_sessions
from ocistream.registry.upload_strategy import UploadStrategy
from ocistream.transfer.interfaces import VerifiedBlob

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.repository import Repository
    from ocistream.transfer.interfaces import NewBlob

__all__ = ["BlobPusher"]

#: After this many missing blobs in a row a repository is not asked again. The layers of a base image come first, so
#: its repository is found early.
_MAX_MISSES: Final = 8
#: If a mount fails with one of these, the blob is uploaded (ggcr#1404, #1679).
_MOUNT_REFUSALS: Final = (AuthenticationError, NotFoundError, RegistryError)


class BlobPusher:
    """Upload blobs to one repository, or mount them. Safe for several threads with different blobs."""

    def __init__(
        self, repository: Repository, strategy: UploadStrategy | None = None, records: UploadRecords | None = None
    ) -> None:
        """Take the repository, what is known of its uploads, and the records of unfinished ones, if they are kept."""
        self._sessions = UploadSessions(repository, strategy or UploadStrategy())
        self._records = records or UploadRecords(None)
        #: Digest -> the session that the registry opened instead of a mount (status 202).
        self._open_states: dict[str, UploadState] = {}
        self._lock = threading.Lock()
        #: Repository -> number of missing blobs in a row.
        self._misses: dict[str, int] = {}

    def mount(self, descriptor: Descriptor, source: str) -> bool:
        """Mount a blob from the repository `source` of the same registry; return whether that succeeded.

        Raises:
            NetworkError: there was no answer, after all retries.
        """
        return self._mount(descriptor, source) is True

    def mount_from_any(self, descriptor: Descriptor, sources: Sequence[str]) -> bool:
        """Mount a blob from one of several repositories of the same registry, the likeliest first.

        The first repository is asked by a mount: a refused mount opens the session that the upload needs anyway. The
        others are asked by HEAD, which opens nothing. A repository that refuses, or lacks eight blobs in a row, is not
        asked again.

        Raises:
            NetworkError: there was no answer, after all retries.
        """
        has_tried = False
        for source in sorted(
            (name for name in sources if self._misses.get(name, 0) < _MAX_MISSES), key=self._miss_count
        ):
            is_mounted = self._mount(descriptor, source) if not has_tried else self._mount_if_stored(descriptor, source)
            self._record_mount(source, is_mounted)
            if is_mounted:
                return True
            has_tried = True
        return False

    def can_mount(self, descriptor: Descriptor, sources: Sequence[str]) -> bool:
        """Return whether any of several repositories of the same registry has a blob; this opens no session.

        Raises:
            NetworkError: there was no answer, after all retries.
        """
        for source in sources:
            with contextlib.suppress(*_MOUNT_REFUSALS):
                if self._sessions.has_blob_in(descriptor, source):
                    return True
        return False

    def upload(self, blob: VerifiedBlob | NewBlob) -> int:
        """Upload a blob, resuming the session of an earlier run; return how many bytes the registry had of it.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            OcistreamError: an error of the blob's own chunks; the session is deleted.
        """
        descriptor = blob.descriptor if isinstance(blob, VerifiedBlob) else None
        size = self._sessions.strategy.replay_buffer_size(
            reopenable=blob.reopenable, is_size_known=descriptor is not None
        )
        with ReplayBuffer(blob, size) as buffer:
            upload = BlobUpload(self._sessions, blob, buffer)
            state = self._open_states.pop(descriptor.digest, None) if descriptor is not None else None
            upload.run(state or UploadState(self._sessions, self._records, descriptor))
        return upload.resumed_size

    def upload_part(self, descriptor: Descriptor, offset: int, part: VerifiedBlob) -> int:
        """Upload the part of a blob that begins at `offset`; return how many bytes of the blob the registry has.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            OcistreamError: an error of the part's own chunks.
        """
        # Imported late: blobs in parts are rare.
        from ocistream.registry.upload import upload_part

        return upload_part(self._sessions, self._take_state(descriptor), descriptor, offset, part)

    def stored_size(self, descriptor: Descriptor) -> int:
        """Return how many bytes the registry has of an upload that earlier runs began.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
        """
        from ocistream.registry.upload import find_stored_size

        return find_stored_size(self._sessions, self._take_state(descriptor))

    def partial_size(self, digest: str) -> int:
        """Return how many bytes of a blob an unfinished upload has; 0 if that is not certain.

        The size of the blob is not needed, because a list of digests has no sizes. Nothing is opened, deleted or
        removed.
        """
        repository, sessions = self._sessions.repository, self._sessions
        record = self._records.find(repository.endpoint.registry, repository.name, digest)
        if record is None or not can_store_location(record.location, repository.endpoint.url, repository.name):
            return 0
        try:
            _, offset = sessions.query_offset(
                UploadSession(record.location, record.min_chunk), repository.client.start_retries()
            )
        except CancelledError:
            raise
        except OcistreamError:
            return 0
        return offset or 0

    def _take_state(self, descriptor: Descriptor) -> UploadState:
        with self._lock:
            state = self._open_states.pop(descriptor.digest, None)
        return state or UploadState(self._sessions, self._records, descriptor)

    def delete_abandoned_sessions(self, digests: Collection[str]) -> None:
        """Delete sessions that earlier runs left of these blobs: all blobs now exist in the repository."""
        with contextlib.suppress(OcistreamError):
            delete_abandoned_sessions(self._sessions, self._records, digests)

    def close(self, deadline: float = math.inf) -> None:
        """Delete unused sessions that were opened instead of mounts, until `deadline` (`time.monotonic`).

        The next run deletes those that are left.
        """
        with self._lock:
            unused = list(self._open_states.values())
            self._open_states.clear()
        # Stop at the first failure, to avoid waiting for many time-outs.
        with contextlib.suppress(OcistreamError):
            for state in unused:
                if monotonic() >= deadline:
                    break
                state.delete()
        for state in unused:
            state.release()

    def _mount(self, descriptor: Descriptor, source: str) -> bool | None:
        """Mount a blob; return whether that succeeded, or None if the registry refused the request."""
        try:
            is_mounted, session = self._sessions.mount(descriptor.digest, source)
        except _MOUNT_REFUSALS:
            return None
        self._keep_session(descriptor, session)
        return is_mounted

    def _mount_if_stored(self, descriptor: Descriptor, source: str) -> bool | None:
        try:
            is_stored = self._sessions.has_blob_in(descriptor, source)
        except _MOUNT_REFUSALS:
            return None
        return self._mount(descriptor, source) if is_stored else False

    def _keep_session(self, descriptor: Descriptor, session: UploadSession | None) -> None:
        """Keep a session for the upload, or none if the blob exists; delete the session that it replaces.

        A session of an earlier run takes precedence over one that was just opened.
        """
        with self._lock:
            old_state = self._open_states.pop(descriptor.digest, None)
        if session is None:
            if old_state is not None:
                old_state.try_delete()
            return
        state = old_state or UploadState(self._sessions, self._records, descriptor)
        if state.is_from_earlier_run:
            self._sessions.try_delete(session)
        else:
            state.replace(session)
        with self._lock:
            self._open_states[descriptor.digest] = state

    def _miss_count(self, source: str) -> int:
        return self._misses.get(source, 0)

    def _record_mount(self, source: str, is_mounted: bool | None) -> None:
        with self._lock:
            self._misses[source] = misses = (
                0 if is_mounted else _MAX_MISSES if is_mounted is None else self._miss_count(source) + 1
            )
        name = f"{self._sessions.repository.endpoint.registry}/{source}"
        if is_mounted is None:
            notify(f"the registry refuses to mount blobs from {printable(name)}: they are uploaded", level=1)
        elif misses == _MAX_MISSES:
            notify(f"no more blobs are mounted from {printable(name)}: it had none of the last {misses}", level=1)
