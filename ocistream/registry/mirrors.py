"""Read a repository from its mirrors first, and from the registry itself when the mirrors fail.

The health of each mirror is remembered during one run. A digest from a mirror is verified; for a tag, the mirror is
trusted.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from ocistream.errors import (
    ArchiveError,
    AuthenticationError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    OcistreamError,
)
from ocistream.notices import notify
from ocistream.oci.reference import is_digest, printable
from ocistream.registry.download import raise_corrupt_blob
from ocistream.registry.referrers import ReferrerList
from ocistream.registry.repository import Repository
from ocistream.registry.tags import list_tags
from ocistream.streams.chunks import read_all, verify_chunks
from ocistream.transfer.interfaces import RecoverableBlob

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.registry.configuration import PullSource
    from ocistream.registry.download import BlobDownload
    from ocistream.registry.registries import HostHealth, MirrorHost
    from ocistream.registry.tags import TagList
    from ocistream.streams.chunks import Chunk


#: Errors of a mirror after which the next location is tried.
CANDIDATE_FAILURES: Final = (NetworkError, AuthenticationError, NotFoundError, IntegrityError, ArchiveError)

_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class PullCandidate:
    """One location to read from, and the results of requests to it. `mirror` is None for the registry itself."""

    mirror: PullSource | None
    repository: Repository
    #: Whether the location served anything.
    has_served: bool = False
    #: Whether the location lacks the image, or denies access to it.
    is_excluded: bool = False
    #: Whether no other location is left, so that its failure is the result.
    is_last: bool = False

    @property
    def host(self) -> MirrorHost:
        """The host of the location. As a mirror it may fail where it answers for its own images."""
        return self.mirror is not None, self.repository.endpoint.registry


def _reopen(candidate: PullCandidate, *, is_replaceable: bool) -> PullCandidate:
    return replace(candidate, repository=candidate.repository.reopen(is_replaceable=is_replaceable))


class MirroredRepository:
    """One repository and its mirrors, for reading. Safe for several threads.

    The mirrors are asked in order, with short time-outs, and `own` last. `display_name` is the name that the user
    wrote.
    """

    def __init__(self, display_name: str, own: Repository, mirrors: Sequence[PullSource], health: HostHealth) -> None:
        """Take the locations. Send no request."""
        self._display_name = display_name
        self._health = health
        repositories = [
            Repository(own.client, mirror.registry, mirror.repository, is_named_by_user=False, is_replaceable=True)
            for mirror in mirrors
        ]
        self._candidates = [*map(PullCandidate, mirrors, repositories), PullCandidate(None, own)]
        self.endpoint = own.endpoint
        self.name = own.name

    def __str__(self) -> str:
        """Return `registry/name` as the user wrote it."""
        return self._display_name

    def resolve(self, target: str) -> Manifest:
        """Return the manifest of a tag or a digest.

        Raises:
            OcistreamError: the error of the registry itself.
        """

        def ask(candidate: PullCandidate) -> Manifest:
            return candidate.repository.resolve(target, strict=candidate.mirror is not None)

        return self._read_from_first(ask, by_digest=is_digest(target))

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a manifest that another document lists; the caller verifies them.

        Raises:
            OcistreamError: the error of the registry itself.
        """

        def ask(candidate: PullCandidate) -> bytes:
            raw = candidate.repository.fetch_manifest(descriptor)
            return read_all(verify_chunks([raw], descriptor)) if candidate.mirror else raw

        return self._read_from_first(ask)

    def blob(self, descriptor: Descriptor) -> RecoverableBlob:
        """Return a blob; the download starts when the caller opens it."""
        download = _MirroredDownload(self, descriptor)
        return RecoverableBlob(
            descriptor, download.chunks, on_corrupt=download.on_corrupt, fetch_range=download.fetch_range
        )

    def list_referrers(self, digest: str) -> ReferrerList:
        """Return the referrers of a manifest, from the first location that has any.

        Raises:
            OcistreamError: the error of the registry itself, if no mirror answered.
        """

        def ask(candidate: PullCandidate) -> ReferrerList | None:
            referrers = candidate.repository.list_referrers(digest)
            return referrers if referrers.descriptors or referrers.incomplete_reason else None

        answer = self._find_in_any(ask, by_digest=True, wanted="more referrers (signatures, SBOMs)")
        if answer is None:
            return ReferrerList()
        candidate, referrers = answer
        if candidate.mirror:
            # The mirror may have copied only some of the referrers.
            message = f"the mirror {candidate.mirror} lists the referrers of {printable(self._display_name)}"
            notify(f"{message}; other sources were not asked for more", level=1)
        return referrers

    def find_digest(self, target: str) -> str | None:
        """Return the digest of a tag or of a manifest, from the first location that has it; None if it does not exist.

        Raises:
            OcistreamError: the error of the registry itself, if no mirror answered.
        """
        answer = self._find_in_any(
            lambda candidate: candidate.repository.find_digest(target), by_digest=is_digest(target), wanted=target
        )
        return None if answer is None else answer[1]

    def _find_in_any(
        self, ask: Callable[[PullCandidate], _T | None], *, by_digest: bool, wanted: str
    ) -> tuple[PullCandidate, _T] | None:
        """Return the first answer that is not None, and the location that gave it. `wanted` is for messages.

        An empty answer of a mirror proves little: few mirrors implement the referrers API, and a cache has only what
        was requested before. So the registry itself is asked too. If a mirror answered and the registry is unreachable,
        as behind a firewall, that must cost seconds, and only once.
        """
        has_answer = False
        for candidate in self.usable_candidates(by_digest=by_digest):
            # The registry itself, after a mirror that answered.
            is_optional = candidate.mirror is None and has_answer
            if is_optional and self._health.has_failed(candidate.host):
                break
            try:
                result = ask(_reopen(candidate, is_replaceable=True) if is_optional else candidate)
            except CANDIDATE_FAILURES as error:
                if is_optional and isinstance(error, NetworkError):
                    self._health.record_failure(candidate.host, f"{error.message}; the registry may have {wanted}")
                    break
                self.record_failure(candidate, error)
            else:
                if result is not None:
                    return candidate, result
                has_answer = True
        return None

    def list_tags_of_mirrors(self, error: NetworkError) -> TagList | None:
        """Return the tags of the first mirror that lists any; `error` is the registry's own."""
        for candidate in self.usable_candidates(by_digest=False):
            if candidate.mirror is None:
                continue
            notify(f"{error.message}; asking the mirror {candidate.mirror} for the tags")
            try:
                tag_list = list_tags(candidate.repository)
            except CANDIDATE_FAILURES as failure:
                notify(f"the mirror {candidate.mirror}: {failure.message}")
            else:
                reason = f"these tags come from the mirror {candidate.mirror}, which may lack some"
                return replace(tag_list, incomplete_reason=tag_list.incomplete_reason or reason)
        return None

    def usable_candidates(self, *, by_digest: bool = True) -> Iterator[PullCandidate]:
        """Yield the usable locations in order that may be asked by digest, or by tag, while the caller asks for more.

        If the registry itself failed, mirrors that served something before they failed are tried again, with the normal
        retries. Behind a firewall they may be the only reachable locations.
        """
        for candidate in self._candidates:
            mirror = candidate.mirror
            if candidate.is_excluded or (mirror and self._health.has_failed(candidate.host)):
                continue
            # A digest-only mirror may serve manifests and blobs once the tag is resolved.
            if by_digest or mirror is None or mirror.can_pull(by_digest=False):
                yield candidate
        down_mirrors = self._list_down_mirrors()
        for candidate in down_mirrors:
            yield replace(_reopen(candidate, is_replaceable=False), is_last=candidate is down_mirrors[-1])

    def _list_down_mirrors(self) -> list[PullCandidate]:
        """List the mirrors that served something before they failed."""
        return [
            candidate
            for candidate in self._candidates
            if candidate.mirror and candidate.has_served and self._health.is_down(candidate.host)
        ]

    def record_failure(self, candidate: PullCandidate, error: OcistreamError) -> None:
        """Record and report the failure of a location.

        Raises:
            OcistreamError: `error`, if no other location is left.
        """
        if candidate.is_last:
            raise error
        if candidate.mirror is None:
            if not isinstance(error, NetworkError) or not self._list_down_mirrors():
                raise error
            notify(f"{error.message}; trying its mirrors again")
            return
        message = f"the mirror {candidate.mirror}: {error.message}; trying the next source"
        if isinstance(error, NotFoundError):
            # A mirror that served nothing so far lacks the image; do not ask it for each blob.
            candidate.is_excluded = not candidate.has_served
            notify(message, level=1)
        elif isinstance(error, AuthenticationError):
            candidate.is_excluded = True
            notify(message)
        else:
            self._health.record_failure(candidate.host, message, is_corrupt=not isinstance(error, NetworkError))

    def record_corrupt_blob(self, candidate: PullCandidate, reason: str) -> None:
        """Stop requests to a mirror that sent wrong bytes."""
        message = f"{reason}; reading it again from another source"
        self._health.record_failure(candidate.host, message, is_corrupt=True)

    def _read_from_first(self, ask: Callable[[PullCandidate], _T], *, by_digest: bool = True) -> _T:
        """Return the first successful answer; raise the failure of the last location."""
        for candidate in self.usable_candidates(by_digest=by_digest):
            try:
                result = ask(candidate)
            except CANDIDATE_FAILURES as error:
                self.record_failure(candidate, error)
            else:
                candidate.has_served = True
                return result
        msg = f"{self}: no source to read from"
        raise NotFoundError(msg)


class _MirroredDownload:
    """The download of one blob from any usable location, with a record of the locations that served it."""

    def __init__(self, repository: MirroredRepository, descriptor: Descriptor) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._served_by: list[PullCandidate] = []
        #: The download of parts from each location.
        self._range_downloads: dict[PullCandidate, BlobDownload] = {}

    def chunks(self, offset: int = 0) -> Iterator[Chunk]:
        """Yield unverified bytes from byte `offset` on; if a location fails, the next one continues there."""
        for candidate in self._repository.usable_candidates():
            download = candidate.repository.download(self._descriptor, strict=candidate.mirror is not None)
            try:
                for chunk in download.chunks(offset):
                    self._record_served(candidate)
                    offset += len(chunk)
                    yield chunk
            except CANDIDATE_FAILURES as error:
                self._repository.record_failure(candidate, error)
            else:
                return

    def fetch_range(self, start: int, end: int, buffers: Iterator[memoryview]) -> Generator[int, None, None]:
        """Read the bytes `start` to `end` (excluded) into `buffers`, from the first usable location only."""
        candidate = next(self._repository.usable_candidates(), None)
        if candidate is None:
            msg = f"{self._repository}: no source to read from"
            raise NotFoundError(msg)
        download = self._range_downloads.setdefault(candidate, candidate.repository.download(self._descriptor))
        with closing(download.fetch_range(start, end, buffers)) as counts:
            for count in counts:
                self._record_served(candidate)
                yield count

    def _record_served(self, candidate: PullCandidate) -> None:
        if candidate not in self._served_by:
            self._served_by.append(candidate)
            candidate.has_served = True

    def on_corrupt(self, error: IntegrityError, can_retry: bool) -> None:
        """Disable the mirrors that served a part of a wrong blob; the registry itself is never suspected.

        The verification above the source calls this, because hashing here too would cost a second SHA-256 of each byte.

        Raises:
            IntegrityError: no mirror took part, or the blob cannot be read again.
        """
        suspects = [candidate for candidate in self._served_by if candidate.mirror]
        self._served_by = []
        if not suspects:
            raise_corrupt_blob(str(self._repository), error, can_retry)
        names = " and ".join(f"the mirror {candidate.mirror}" for candidate in suspects)
        message = f"{error.message}, received from {names}"
        for candidate in suspects:
            candidate.is_excluded = True
        if not can_retry:
            hint = "re-run with --no-mirrors to use only the registry itself, or write to a file"
            raise IntegrityError(message, hint=hint) from error
        for candidate in suspects:
            self._repository.record_corrupt_blob(candidate, message)
