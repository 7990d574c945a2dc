"""Read a repository from its mirrors first, and from the registry itself when the mirrors fail.

Provides the opener that turns an image name into a repository, and the health of each mirror during one run.
A digest from a mirror is verified; for a tag, the mirror is trusted.
"""

from __future__ import annotations

import copy
import threading
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

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
from ocistream.registry.configuration import PullSource
from ocistream.registry.download import BlobRedirect
from ocistream.registry.referrers import ReferrerList, RepositoryReferrers
from ocistream.registry.repository import Repository
from ocistream.streams.chunks import read_all, verify_chunks
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from ocistream.http.client import Endpoint, HttpClient, HttpSettings
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.reference import Reference
    from ocistream.registry.tags import TagList
    from ocistream.streams.chunks import Chunk

__all__ = [
    "CANDIDATE_FAILURES",
    "MirrorHealth",
    "MirroredRepository",
    "PullCandidate",
    "ReadableRepository",
    "RepositoryOpener",
    "shorten_timeouts",
]


class MirrorHealth:
    """What has come of asking places, by their hosts. Safe for several threads."""

    def __init__(self, report: Callable[[str, int], None]) -> None:
        """Begin with nothing against anybody.

        `tell(message, level)` is told of every fall-back: at level 0, or at 1 where it is nothing unusual.
        """
        self._report = report
        self._lock = threading.Lock()
        #: Registries that are not asked again, and those of them that gave nothing wrong but fell silent.
        self._disabled: set[str] = set()
        self._down: set[str] = set()
        #: Registries that mirrors stand for, and that did not answer themselves.
        self._unreachable: set[str] = set()

    def is_unreachable(self, pull_source: PullSource) -> bool:
        """Say whether a registry was given up, for what can be done without."""
        return pull_source.registry in self._unreachable

    def mark_unreachable(self, pull_source: PullSource, reason: str) -> None:
        """Ask a registry no more, in this run, for what can be done without, and say why."""
        with self._lock:
            news = pull_source.registry not in self._unreachable
            self._unreachable.add(pull_source.registry)
        self.report(reason, 0 if news else 1)

    def is_disabled(self, pull_source: PullSource) -> bool:
        """Say whether a mirror is not to be asked again."""
        return pull_source.is_mirror and pull_source.registry in self._disabled

    def is_down(self, pull_source: PullSource) -> bool:
        """Say whether a mirror failed, but gave nothing wrong."""
        return pull_source.registry in self._down

    def disable(self, pull_source: PullSource, reason: str, *, is_corrupt: bool) -> None:
        """Ask a mirror no more, in this run, and say why."""
        with self._lock:
            news = pull_source.registry not in self._disabled
            self._disabled.add(pull_source.registry)
            if is_corrupt:
                self._down.discard(pull_source.registry)
            elif news:
                self._down.add(pull_source.registry)
        self.report(reason, 0 if news else 1)

    def report(self, message: str, level: int) -> None:
        """Tell of a fall-back."""
        self._report(message, level)


#: What of a mirror is no reason to give up: the next place may do better.
CANDIDATE_FAILURES: Final = (NetworkError, AuthenticationError, NotFoundError, IntegrityError, ArchiveError)

_T = TypeVar("_T")


class ReadableRepository(Protocol):
    """What is read of a repository: of `registry.repository.Repository`, or of several in its place."""

    @property
    def endpoint(self) -> Endpoint:
        """The registry that it belongs to, and no mirror of that."""

    @property
    def name(self) -> str:
        """The repository's name there."""

    def resolve(self, target: str) -> Manifest:
        """Get the manifest that a tag or a digest stands for."""

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """Get the bytes of a manifest that another document lists; whoever asked verifies them."""

    def blob(self, descriptor: Descriptor) -> Blob:
        """Give a blob, to be downloaded when it is opened."""

    def list_referrers(self, digest: str) -> ReferrerList:
        """Ask what refers to a manifest."""

    def find_digest(self, target: str) -> str | None:
        """Ask what a tag stands for; None where it is not there."""


@dataclass(slots=True, eq=False)
class PullCandidate:
    """One place, and what has come of asking there."""

    pull_source: PullSource
    repository: Repository
    #: The same, asked with all patience.
    fallback_repository: Repository
    referrers: RepositoryReferrers = field(init=False)
    #: Something came from there.
    has_served: bool = False
    #: It lacks the image, or does not let us have it.
    is_excluded: bool = False
    #: Nothing else is left to ask, so this is the place whose failure counts.
    is_last: bool = False

    def __post_init__(self) -> None:
        """Ask for referrers there as well."""
        self.referrers = RepositoryReferrers(self.repository)


class MirroredRepository:
    """One repository and its mirrors, for reading. Safe for several threads."""

    def __init__(
        self,
        display_name: str,
        candidates: Sequence[PullCandidate],
        health: MirrorHealth,
        quick_candidate: PullCandidate,
    ) -> None:
        """Take the places in the order in which they are asked; the last is the registry's own.

        `named` is what the user called the repository. `hurried` is the registry's own place once more, for what hardly
        matters.
        """
        self._display_name = display_name
        self._candidates = candidates
        self._health = health
        self._quick_candidate = quick_candidate
        self.endpoint = candidates[-1].repository.endpoint
        self.name = candidates[-1].repository.name

    def __str__(self) -> str:
        """Give `registry/name`, as the user did."""
        return self._display_name

    def resolve(self, target: str) -> Manifest:
        """Get the manifest that a tag or a digest stands for.

        Raises:
            OcistreamError: what the registry itself says of it.
        """

        def ask(source: PullCandidate) -> Manifest:
            return source.repository.resolve(target, strict=source.pull_source.is_mirror)

        return self._read_from_first(ask, by_digest=is_digest(target))

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """Get the bytes of a manifest that another document lists; whoever asked verifies them.

        Raises:
            OcistreamError: what the registry itself says of it.
        """

        def ask(source: PullCandidate) -> bytes:
            raw = source.repository.fetch_manifest(descriptor)
            return read_all(verify_chunks([raw], descriptor)) if source.pull_source.is_mirror else raw

        return self._read_from_first(ask)

    def blob(self, descriptor: Descriptor) -> Blob:
        """Give a blob, to be downloaded when it is opened."""
        download = _MirroredDownload(self, descriptor)
        return Blob(
            descriptor,
            download.chunks,
            on_corrupt=download.on_corrupt,
            open_at=download.chunks,
            fetch_range=download.fetch_range,
        )

    def list_referrers(self, digest: str) -> ReferrerList:
        """Ask what refers to a manifest: the first place that knows of anything.

        Raises:
            OcistreamError: what the registry itself says of it, if no mirror answered.
        """

        def ask(source: PullCandidate) -> ReferrerList | None:
            found = source.referrers.list_referrers(digest)
            return found if found.descriptors or found.incomplete_reason else None

        answer = self._find_in_any(ask, by_digest=True)
        if answer is None:
            return ReferrerList()
        source, found = answer
        if source.pull_source.is_mirror:
            # The mirror may have copied some of them only.
            what = f"the mirror {source.pull_source} lists what refers to images of {printable(self._display_name)}"
            notify(f"{what}; no other place is asked for more", level=1)
        return found

    def find_digest(self, target: str) -> str | None:
        """Ask what a tag stands for, or whether a digest is there: the first place that knows of it.

        Raises:
            OcistreamError: what the registry itself says of it, if no mirror answered.
        """
        answer = self._find_in_any(lambda source: source.repository.find_digest(target), by_digest=is_digest(target))
        return None if answer is None else answer[1]

    def _find_in_any(
        self, ask: Callable[[PullCandidate], _T | None], *, by_digest: bool
    ) -> tuple[PullCandidate, _T] | None:
        """Give the first answer that is one, and who gave it.

        That a mirror knows of nothing says little: many do without the API of referrers, and a cache holds what it was
        asked for. But where one has the image, that can be had without its registry, and what hangs on it cannot then:
        behind a firewall, to find that out is to cost seconds, and once.
        """
        answered = False
        for source in self._usable_candidates_for(by_digest=by_digest):
            own = not source.pull_source.is_mirror
            if own and answered and self._health.is_unreachable(source.pull_source):
                break
            try:
                found = ask(self._quick_candidate if own and answered else source)
            except CANDIDATE_FAILURES as error:
                if answered and own and isinstance(error, NetworkError):
                    self._health.mark_unreachable(
                        source.pull_source, f"{error.message}; it is not known whether the registry has more"
                    )
                    break
                self.record_failure(source, error)
            else:
                if found is not None:
                    return source, found
                answered = True
        return None

    def _usable_candidates_for(self, *, by_digest: bool) -> Iterator[PullCandidate]:
        """Give the places that are worth asking for this; to some nothing is asked but by digest, or by tag."""
        # Where only digests are taken from, what an image needs may come from there once its tag is known.
        return (
            source for source in self.usable_candidates() if by_digest or source.pull_source.can_pull(by_digest=False)
        )

    def usable_candidates(self) -> Iterator[PullCandidate]:
        """Give the places that are worth asking, in their order, as long as they are asked for.

        When the registry itself has failed, mirrors get a second chance that have given something before they fell
        silent: behind a firewall they may be all that there is.
        """
        for source in self._candidates:
            if not self._health.is_disabled(source.pull_source) and not source.is_excluded:
                yield source
        silent = self._silent_mirrors()
        for source in silent:
            yield replace(source, repository=source.fallback_repository, is_last=source is silent[-1])

    def _silent_mirrors(self) -> list[PullCandidate]:
        return [
            source for source in self._candidates[:-1] if source.has_served and self._health.is_down(source.pull_source)
        ]

    def record_failure(self, candidate: PullCandidate, error: OcistreamError) -> None:
        """Note what a place did, and tell it.

        Raises:
            OcistreamError: `error`, where there is no other place to go on to.
        """
        if candidate.is_last:
            raise error
        if not candidate.pull_source.is_mirror:
            if not isinstance(error, NetworkError) or not self._silent_mirrors():
                raise error
            self._health.report(f"{error.message}; trying its mirrors again", 0)
            return
        what = f"the mirror {candidate.pull_source}: {error.message}; going on elsewhere"
        if isinstance(error, NotFoundError):
            # Who has given nothing yet has nothing of this image, and is not asked for each of its blobs.
            candidate.is_excluded = not candidate.has_served
            self._health.report(what, 1)
        elif isinstance(error, AuthenticationError):
            candidate.is_excluded = True
            self._health.report(what, 0)
        else:
            self._health.disable(candidate.pull_source, what, is_corrupt=not isinstance(error, NetworkError))

    def record_corrupt_blob(self, candidate: PullCandidate, reason: str) -> None:
        """Ask a mirror no more that gave wrong bytes."""
        self._health.disable(candidate.pull_source, f"{reason}; reading it again from elsewhere", is_corrupt=True)

    def _read_from_first(self, ask: Callable[[PullCandidate], _T], *, by_digest: bool = True) -> _T:
        """Give the first answer; the last place's failure is what is raised."""
        for source in self._usable_candidates_for(by_digest=by_digest):
            try:
                found = ask(source)
            except CANDIDATE_FAILURES as error:
                self.record_failure(source, error)
            else:
                source.has_served = True
                return found
        msg = f"{self}: there is no place to read from"
        raise NotFoundError(msg)


class _MirroredDownload:
    """One blob, from wherever it can be had, and where it was had from."""

    def __init__(self, repository: MirroredRepository, descriptor: Descriptor) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._served_by: list[PullCandidate] = []
        #: Where each of them has led to.
        self._redirects: dict[PullCandidate, BlobRedirect] = {}

    def chunks(self, offset: int = 0) -> Iterator[Chunk]:
        """Read the blob, unverified, from byte `offset` on; where one place breaks off, the next goes on there."""
        for source in self._repository.usable_candidates():
            is_mirror = source.pull_source.is_mirror
            try:
                for chunk in source.repository.fetch_blob(self._descriptor, offset, strict=is_mirror):
                    self._record_served(source)
                    offset += len(chunk)
                    yield chunk
            except CANDIDATE_FAILURES as error:
                self._repository.record_failure(source, error)
            else:
                return

    def fetch_range(self, start: int, view: memoryview) -> Generator[int, None, None]:
        """Read bytes from `start` on into `view`, from the first place that is worth asking, and nowhere else."""
        for source in self._repository.usable_candidates():
            led = self._redirects.setdefault(source, BlobRedirect())
            with closing(source.repository.fetch_blob_range(self._descriptor, led, start, view)) as steps:
                for filled in steps:
                    self._record_served(source)
                    yield filled
            return
        msg = f"{self._repository}: there is no place to read from"
        raise NotFoundError(msg)

    def _record_served(self, source: PullCandidate) -> None:
        if source not in self._served_by:
            self._served_by.append(source)
            source.has_served = True

    def on_corrupt(self, error: IntegrityError, again: bool) -> None:
        """Suspect the mirrors that had a part in the readings so far, and read no more from them.

        Raises:
            IntegrityError: there were none, or nothing can be begun anew.
        """
        suspects = [source for source in self._served_by if source.pull_source.is_mirror]
        self._served_by = []
        if not suspects:
            raise error
        what = f"{error.message}, as {' and '.join(f'the mirror {source.pull_source}' for source in suspects)} gave it"
        for source in suspects:
            source.is_excluded = True
        if not again:
            hint = "run it again with --no-mirrors to ask the registry itself only, or write to a file"
            raise IntegrityError(what, hint=hint) from error
        for source in suspects:
            self._repository.record_corrupt_blob(source, what)


#: A mirror is tried so often, and connecting to it, a silence and a Retry-After may take so many seconds: where there
#: is another place to ask, a dead one is to cost seconds.
_MIRROR_ATTEMPTS: Final = 2
_MIRROR_CONNECT_TIMEOUT: Final = 5.0
_MIRROR_STALL_TIMEOUT: Final = 20.0
_MIRROR_RETRY_AFTER: Final = 3.0


def default_pull_sources(reference: Reference) -> tuple[PullSource, ...]:
    """Give the place that an image is named after, and no other."""
    return (PullSource(reference.registry, reference.repository),)


def shorten_timeouts(settings: HttpSettings) -> HttpSettings:
    """Give the settings of a transport to mirrors: those of the registry's own, with less patience."""
    patience = replace(
        settings.retry_policy,
        attempts=min(settings.retry_policy.attempts, _MIRROR_ATTEMPTS),
        retry_after_limit=min(settings.retry_policy.retry_after_limit, _MIRROR_RETRY_AFTER),
    )
    return replace(
        settings,
        retry_policy=patience,
        connect_timeout=min(settings.connect_timeout, _MIRROR_CONNECT_TIMEOUT),
        stall_timeout=min(settings.stall_timeout, _MIRROR_STALL_TIMEOUT),
    )


class RepositoryOpener:
    """The way, for one run, from the names of images to what they are read from. Safe for several threads."""

    def __init__(
        self,
        client: HttpClient,
        mirror_transport: Callable[[], HttpClient] | None = None,
        find_pull_sources: Callable[[Reference], Sequence[PullSource]] = default_pull_sources,
        report: Callable[[str, int], None] = lambda _message, _level: None,
        wrap: Callable[[ReadableRepository], ReadableRepository] = lambda repository: repository,
    ) -> None:
        """Take the transports to registries and to their mirrors, and the rules: without any, there are no mirrors.

        `tell(message, level)` is told of every fall-back: at level 0, or at 1 where it is nothing unusual. `before`
        gives what stands before a repository and all its mirrors, such as a cache.
        """
        self._client = client
        self._mirror_transport = mirror_transport or (lambda: client)
        self._find_pull_sources = find_pull_sources
        self._health = MirrorHealth(report)
        self._wrap = wrap

    def wrapped_by(self, wrap: Callable[[ReadableRepository], ReadableRepository]) -> RepositoryOpener:
        """Give the same way, with something more before each repository."""
        other, inner = copy.copy(self), self._wrap
        other._wrap = lambda repository: wrap(inner(repository))  # noqa: SLF001 - it is our own kind
        return other

    def open_repository(self, reference: Reference) -> ReadableRepository:
        """Give what an image is read from.

        Raises:
            AuthenticationError: that is blocked.
        """
        named = f"{reference.registry}/{reference.repository}"
        # What names a digest is not looked for where only tags are, nor is anything that it needs.
        sources = self._open_candidates(reference, by_digest=reference.digest is not None)
        return self._wrap(
            MirroredRepository(named, sources, self._health, self._open_quick_candidate(sources, reference))
        )

    def list_tags(self, reference: Reference) -> TagList:
        """List the tags of a repository, as the registry itself has them.

        Mirrors are asked only where that cannot be reached: a cache lists what it happens to hold, and no more.

        Raises:
            OcistreamError: what the registry itself says of it, if no mirror answered.
        """
        from ocistream.registry.tags import list_tags

        *mirrors, own = self._open_candidates(reference, by_digest=False)
        try:
            return list_tags(own.repository)
        except NetworkError as error:
            for source in mirrors:
                if not source.pull_source.can_pull(by_digest=False) or self._health.is_disabled(source.pull_source):
                    continue
                self._health.report(f"{error.message}; asking the mirror {source.pull_source} for the tags", 0)
                try:
                    listed = list_tags(source.repository)
                except CANDIDATE_FAILURES as failure:
                    self._health.report(f"the mirror {source.pull_source}: {failure.message}", 0)
                else:
                    cut = (
                        listed.incomplete_reason
                        or f"these are those of the mirror {source.pull_source}, which may lack some"
                    )
                    return replace(listed, incomplete_reason=cut)
            raise

    def _open_candidates(self, reference: Reference, *, by_digest: bool) -> list[PullCandidate]:
        *mirrors, primary = self._find_pull_sources(reference)
        found = [
            PullCandidate(
                place, self._open_mirror(self._mirror_transport(), place), self._open_mirror(self._client, place)
            )
            for place in mirrors
            if not by_digest or place.can_pull(by_digest=True)
        ]
        own = self._open_own(self._client, primary, reference)
        return [*found, PullCandidate(primary, own, own)]

    @staticmethod
    def _open_mirror(client: HttpClient, pull_source: PullSource) -> Repository:
        return Repository(client, pull_source.registry, pull_source.repository, is_explicit=False)

    @staticmethod
    def _open_own(client: HttpClient, primary: PullSource, reference: Reference) -> Repository:
        """Give the registry's own repository; with another `location`, it was the configuration that named the host."""
        named = primary.registry.lower() == reference.registry.lower()
        return Repository(client, primary.registry, primary.repository, is_explicit=named)

    def _open_quick_candidate(self, sources: Sequence[PullCandidate], reference: Reference) -> PullCandidate:
        """Give the registry's own place, asked with no more patience than a mirror where there are any."""
        *mirrors, own = sources
        if not mirrors:
            return own
        return replace(own, repository=self._open_own(self._mirror_transport(), own.pull_source, reference))
