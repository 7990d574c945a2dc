"""From the name of an image to what it is read from: its repository, by way of the mirrors that stand for it.

Which places there are, `places` says; how they are asked in turn is `mirrored`'s business.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream.errors import NetworkError
from ocistream.registry.locations import PullSource
from ocistream.registry.mirror_health import MirrorHealth
from ocistream.registry.mirrors import CANDIDATE_FAILURES, MirroredRepository, PullCandidate
from ocistream.registry.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.http.client import HttpClient, HttpSettings
    from ocistream.oci.reference import Reference
    from ocistream.registry.mirrors import ReadableRepository
    from ocistream.registry.tags import TagList

__all__ = ["RepositoryOpener", "shorten_timeouts"]

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
