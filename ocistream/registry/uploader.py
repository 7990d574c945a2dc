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
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.repository import Repository
    from ocistream.transfer.interfaces import NewBlob

__all__ = ["Uploader"]

#: So many blobs in a row that a repository did not have: after that it is not asked for more. A base image's layers
#: come first, and its repository is found out at once.
_MAX_MISSES: Final = 8
#: Any of these in answer to a mount means a plain upload (ggcr#1404, #1679).
_MOUNT_REFUSALS: Final = (AuthenticationError, NotFoundError, RegistryError)


class Uploader:
    """Uploads and mounts into one repository. Safe for several threads, each with blobs of its own."""

    def __init__(self, repository: Repository, records: UploadRecords | None = None) -> None:
        """Take the repository to write to, and where uploads are remembered between runs, if they are."""
        self._strategy = repository.client.upload_strategy
        self._sessions = UploadSessions(repository)
        self._records = records or UploadRecords(None)
        #: Sessions that a registry opened in place of a mount, by digest: a 202 to a mount is an upload.
        self._open_states: dict[str, UploadState] = {}
        self._lock = threading.Lock()
        #: How often in a row each repository did not have what was asked for.
        self._misses: dict[str, int] = {}

    def mount(self, descriptor: Descriptor, source: str) -> bool:
        """Try to mount a blob from the repository `source` of the same registry.

        Raises:
            NetworkError: there was no answer, after all retries.
        """
        return self._mount(descriptor, source) is True

    def mount_from_any(self, descriptor: Descriptor, sources: Sequence[str]) -> bool:
        """Try to mount a blob from any of several repositories of the same registry, the likeliest first.

        Of the first it is asked for at once: if that is refused, it is the session that the upload would have needed
        anyway. The others are asked whether they have it, which opens nothing. One that refuses to say, or has had
        nothing for long, is not asked again.

        Raises:
            NetworkError: there was no answer, after all retries.
        """
        asked = False
        for source in sorted((s for s in sources if self._misses.get(s, 0) < _MAX_MISSES), key=self._miss_count):
            there = self._mount(descriptor, source) if not asked else self._mount_if_stored(descriptor, source)
            self._record_mount(source, there)
            if there:
                return True
            asked = True
        return False

    def can_mount(self, descriptor: Descriptor, sources: Sequence[str]) -> bool:
        """Say whether any of several repositories of the same registry has a blob; nothing is opened for that.

        Raises:
            NetworkError: there was no answer, after all retries.
        """
        for source in sources:
            with contextlib.suppress(*_MOUNT_REFUSALS):
                if self._sessions.has_blob_in(descriptor, source):
                    return True
        return False

    def upload(self, blob: Blob | NewBlob) -> int:
        """Send a blob; return how many of its bytes the registry had of an earlier run.

        Of a blob that has no name yet, the length is unknown when its upload begins; the digest closes it, as ever.
        What an earlier run has left of an upload is gone on with.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            OcistreamError: whatever the blob's own chunks raise, with the session deleted.
        """
        with ReplayBuffer(
            blob, self._strategy.replay_buffer_size(reopenable=blob.reopenable, is_size_known=isinstance(blob, Blob))
        ) as feed:
            descriptor = blob.descriptor if isinstance(blob, Blob) else None
            sending = BlobUpload(self._sessions, blob, feed)
            opened = self._open_states.pop(descriptor.digest, None) if descriptor is not None else None
            sending.run(opened or UploadState(self._sessions, self._records, descriptor))
        return sending.resumed_size

    def upload_part(self, descriptor: Descriptor, offset: int, part: Blob) -> int:
        """Send the part of a blob that begins at `offset`; give how many bytes of it the registry has then.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            OcistreamError: whatever the part's own chunks raise.
        """
        # Hardly any blob comes in parts.
        from ocistream.registry.upload import upload_part

        return upload_part(self._sessions, self._take_state(descriptor), descriptor, offset, part)

    def stored_size(self, descriptor: Descriptor) -> int:
        """Ask how many bytes the registry has of an upload that earlier runs have begun.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
        """
        from ocistream.registry.upload import find_stored_size

        return find_stored_size(self._sessions, self._take_state(descriptor))

    def partial_size(self, digest: str) -> int:
        """Ask how many bytes of a blob are there of an upload that can be gone on with; 0 where that is not sure.

        Only what can be known without its size: nothing is opened, deleted or forgotten.
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
            opened = self._open_states.pop(descriptor.digest, None)
        return opened or UploadState(self._sessions, self._records, descriptor)

    def delete_abandoned_sessions(self, digests: Collection[str]) -> None:
        """Delete what earlier runs have left of uploads of these blobs: all of them are there, whichever way."""
        with contextlib.suppress(OcistreamError):
            delete_abandoned_sessions(self._sessions, self._records, digests)

    def close(self, deadline: float = math.inf) -> None:
        """Delete the sessions that were opened in place of mounts and not used since, until `deadline` (`monotonic`).

        What is left then, or where the registry does not answer, the next run will see to.
        """
        with self._lock:
            unused = list(self._open_states.values())
            self._open_states.clear()
        # The first that fails ends it: many time-outs are not worth waiting for.
        with contextlib.suppress(OcistreamError):
            for ongoing in unused:
                if monotonic() >= deadline:
                    break
                ongoing.delete()
        for ongoing in unused:
            ongoing.release()

    def _mount(self, descriptor: Descriptor, source: str) -> bool | None:
        """Say whether a blob was mounted; None where the registry refused to talk about it."""
        try:
            there, session = self._sessions.mount(descriptor.digest, source)
        except _MOUNT_REFUSALS:
            return None
        self._keep_session(descriptor, session)
        return there

    def _mount_if_stored(self, descriptor: Descriptor, source: str) -> bool | None:
        try:
            there = self._sessions.has_blob_in(descriptor, source)
        except _MOUNT_REFUSALS:
            return None
        return self._mount(descriptor, source) if there else False

    def _keep_session(self, descriptor: Descriptor, session: UploadSession | None) -> None:
        """Keep a session for the upload, or none where the blob is there; the one it replaces is deleted.

        What an earlier run has come to is worth more than a session that has just been opened.
        """
        with self._lock:
            before = self._open_states.pop(descriptor.digest, None)
        if session is None:
            if before is not None:
                before.try_delete()
            return
        ongoing = before or UploadState(self._sessions, self._records, descriptor)
        if ongoing.is_from_earlier_run:
            self._sessions.try_delete(session)
        else:
            ongoing.replace(session)
        with self._lock:
            self._open_states[descriptor.digest] = ongoing

    def _miss_count(self, source: str) -> int:
        return self._misses.get(source, 0)

    def _record_mount(self, source: str, there: bool | None) -> None:
        with self._lock:
            self._misses[source] = misses = (
                0 if there else _MAX_MISSES if there is None else self._miss_count(source) + 1
            )
        name = f"{self._sessions.repository.endpoint.registry}/{source}"
        if there is None:
            notify(f"the registry refuses to mount blobs from {printable(name)}: they are uploaded", level=1)
        elif misses == _MAX_MISSES:
            notify(f"no more blobs are mounted from {printable(name)}: it had none of the last {misses}", level=1)
