"""Blobs into one repository: mounted from another one where that can be, else uploaded (distribution-spec, "Push").

A registry may open an upload in place of a mount; that session is used when the blob is uploaded after all.
"""

from __future__ import annotations

import contextlib
import math
import threading
from time import monotonic
from typing import TYPE_CHECKING, Final

from ocistream.errors import AuthenticationError, CancelledError, NotFoundError, OcistreamError, RegistryError
from ocistream.notices import notice
from ocistream.oci.reference import printable
from ocistream.registry.upload import Sending
from ocistream.registry.upload_records import UploadRecords, may_be_kept
from ocistream.registry.upload_sessions import Session, Sessions
from ocistream.registry.upload_state import Ongoing, delete_left_over
from ocistream.registry.upload_window import Feed
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.repository import Repository
    from ocistream.transfer.interfaces import Unnamed

__all__ = ["Uploader"]

#: So many blobs in a row that a repository did not have: after that it is not asked for more. A base image's layers
#: come first, and its repository is found out at once.
_MISSES: Final = 8
#: Any of these in answer to a mount means a plain upload (ggcr#1404, #1679).
_REFUSALS: Final = (AuthenticationError, NotFoundError, RegistryError)


class Uploader:
    """Uploads and mounts into one repository. Safe for several threads, each with blobs of its own."""

    def __init__(self, repository: Repository, records: UploadRecords | None = None) -> None:
        """Take the repository to write to, and where uploads are remembered between runs, if they are."""
        self._ladder = repository.transport.ladder
        self._sessions = Sessions(repository)
        self._records = records or UploadRecords(None)
        #: Sessions that a registry opened in place of a mount, by digest: a 202 to a mount is an upload.
        self._opened: dict[str, Ongoing] = {}
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
        for source in sorted((s for s in sources if self._misses.get(s, 0) < _MISSES), key=self._missed):
            there = self._mount(descriptor, source) if not asked else self._find(descriptor, source)
            self._note(source, there)
            if there:
                return True
            asked = True
        return False

    def could_mount(self, descriptor: Descriptor, sources: Sequence[str]) -> bool:
        """Say whether any of several repositories of the same registry has a blob; nothing is opened for that.

        Raises:
            NetworkError: there was no answer, after all retries.
        """
        for source in sources:
            with contextlib.suppress(*_REFUSALS):
                if self._sessions.is_in(descriptor, source):
                    return True
        return False

    def upload(self, blob: Blob | Unnamed) -> int:
        """Send a blob; return how many of its bytes the registry had of an earlier run.

        Of a blob that has no name yet, the length is unknown when its upload begins; the digest closes it, as ever.
        What an earlier run has left of an upload is gone on with.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            OcistreamError: whatever the blob's own chunks raise, with the session deleted.
        """
        with Feed(blob, self._ladder.window(replayable=blob.replayable, sized=isinstance(blob, Blob))) as feed:
            descriptor = blob.descriptor if isinstance(blob, Blob) else None
            sending = Sending(self._sessions, blob, feed)
            opened = self._opened.pop(descriptor.digest, None) if descriptor is not None else None
            sending.run(opened or Ongoing(self._sessions, self._records, descriptor))
        return sending.resumed

    def upload_part(self, descriptor: Descriptor, offset: int, part: Blob) -> int:
        """Send the part of a blob that begins at `offset`; give how many bytes of it the registry has then.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            OcistreamError: whatever the part's own chunks raise.
        """
        # Hardly any blob comes in parts.
        from ocistream.registry.upload_parts import send_part

        return send_part(self._sessions, self._ongoing(descriptor), descriptor, offset, part)

    def reached(self, descriptor: Descriptor) -> int:
        """Ask how many bytes the registry has of an upload that earlier runs have begun.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
        """
        from ocistream.registry.upload_parts import reached

        return reached(self._sessions, self._ongoing(descriptor))

    def begun(self, digest: str) -> int:
        """Ask how many bytes of a blob are there of an upload that can be gone on with; 0 where that is not sure.

        Only what can be known without its size: nothing is opened, deleted or forgotten.
        """
        repository, sessions = self._sessions.repository, self._sessions
        record = self._records.look(repository.endpoint.registry, repository.name, digest)
        if record is None or not may_be_kept(record.location, repository.endpoint.url, repository.name):
            return 0
        try:
            _, offset = sessions.offset(Session(record.location, record.min_chunk), repository.transport.tries())
        except CancelledError:
            raise
        except OcistreamError:
            return 0
        return offset or 0

    def _ongoing(self, descriptor: Descriptor) -> Ongoing:
        with self._lock:
            opened = self._opened.pop(descriptor.digest, None)
        return opened or Ongoing(self._sessions, self._records, descriptor)

    def settle(self, digests: Collection[str]) -> None:
        """Delete what earlier runs have left of uploads of these blobs: all of them are there, whichever way."""
        with contextlib.suppress(OcistreamError):
            delete_left_over(self._sessions, self._records, digests)

    def close(self, deadline: float = math.inf) -> None:
        """Delete the sessions that were opened in place of mounts and not used since, until `deadline` (`monotonic`).

        What is left then, or where the registry does not answer, the next run will see to.
        """
        with self._lock:
            unused = list(self._opened.values())
            self._opened.clear()
        # The first that fails ends it: many time-outs are not worth waiting for.
        with contextlib.suppress(OcistreamError):
            for ongoing in unused:
                if monotonic() >= deadline:
                    break
                ongoing.delete()
        for ongoing in unused:
            ongoing.leave()

    def _mount(self, descriptor: Descriptor, source: str) -> bool | None:
        """Say whether a blob was mounted; None where the registry refused to talk about it."""
        try:
            there, session = self._sessions.mount(descriptor.digest, source)
        except _REFUSALS:
            return None
        self._keep(descriptor, session)
        return there

    def _find(self, descriptor: Descriptor, source: str) -> bool | None:
        try:
            there = self._sessions.is_in(descriptor, source)
        except _REFUSALS:
            return None
        return self._mount(descriptor, source) if there else False

    def _keep(self, descriptor: Descriptor, session: Session | None) -> None:
        """Keep a session for the upload, or none where the blob is there; the one it replaces is deleted.

        What an earlier run has come to is worth more than a session that has just been opened.
        """
        with self._lock:
            before = self._opened.pop(descriptor.digest, None)
        if session is None:
            if before is not None:
                before.abandon()
            return
        ongoing = before or Ongoing(self._sessions, self._records, descriptor)
        if ongoing.is_found:
            self._sessions.abandon(session)
        else:
            ongoing.replace(session)
        with self._lock:
            self._opened[descriptor.digest] = ongoing

    def _missed(self, source: str) -> int:
        return self._misses.get(source, 0)

    def _note(self, source: str, there: bool | None) -> None:
        with self._lock:
            self._misses[source] = misses = 0 if there else _MISSES if there is None else self._missed(source) + 1
        name = f"{self._sessions.repository.endpoint.registry}/{source}"
        if there is None:
            notice(f"the registry refuses to mount blobs from {printable(name)}: they are uploaded", level=1)
        elif misses == _MISSES:
            notice(f"no more blobs are mounted from {printable(name)}: it had none of the last {misses}", level=1)
