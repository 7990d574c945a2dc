"""From the name of an image to what it is read from: its repository, by way of the mirrors that stand for it.

Which places there are, `places` says; how they are asked in turn is `mirrored`'s business.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream.errors import NetworkError
from ocistream.registry.locations import Place
from ocistream.registry.mirror_health import Standing
from ocistream.registry.mirrors import FAILURES, MirroredRepository, Source
from ocistream.registry.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.http.client import Transport, TransportSettings
    from ocistream.oci.reference import Reference
    from ocistream.registry.mirrors import Readable
    from ocistream.registry.tags import TagList

__all__ = ["Reading", "impatient"]

#: A mirror is tried so often, and connecting to it, a silence and a Retry-After may take so many seconds: where there
#: is another place to ask, a dead one is to cost seconds.
_ATTEMPTS: Final = 2
_CONNECT: Final = 5.0
_STALL: Final = 20.0
_RETRY_AFTER: Final = 3.0


def own_place(reference: Reference) -> tuple[Place, ...]:
    """Give the place that an image is named after, and no other."""
    return (Place(reference.registry, reference.repository),)


def impatient(settings: TransportSettings) -> TransportSettings:
    """Give the settings of a transport to mirrors: those of the registry's own, with less patience."""
    patience = replace(
        settings.patience,
        attempts=min(settings.patience.attempts, _ATTEMPTS),
        retry_after_limit=min(settings.patience.retry_after_limit, _RETRY_AFTER),
    )
    return replace(
        settings,
        patience=patience,
        connect_timeout=min(settings.connect_timeout, _CONNECT),
        stall_timeout=min(settings.stall_timeout, _STALL),
    )


class Reading:
    """The way, for one run, from the names of images to what they are read from. Safe for several threads."""

    def __init__(
        self,
        transport: Transport,
        mirrors: Callable[[], Transport] | None = None,
        places: Callable[[Reference], Sequence[Place]] = own_place,
        tell: Callable[[str, int], None] = lambda _message, _level: None,
        before: Callable[[Readable], Readable] = lambda repository: repository,
    ) -> None:
        """Take the transports to registries and to their mirrors, and the rules: without any, there are no mirrors.

        `tell(message, level)` is told of every fall-back: at level 0, or at 1 where it is nothing unusual. `before`
        gives what stands before a repository and all its mirrors, such as a cache.
        """
        self._transport = transport
        self._mirrors = mirrors or (lambda: transport)
        self._places = places
        self._standing = Standing(tell)
        self._before = before

    def behind(self, before: Callable[[Readable], Readable]) -> Reading:
        """Give the same way, with something more before each repository."""
        other, inner = copy.copy(self), self._before
        other._before = lambda repository: before(inner(repository))  # noqa: SLF001 - it is our own kind
        return other

    def repository(self, reference: Reference) -> Readable:
        """Give what an image is read from.

        Raises:
            AuthenticationError: that is blocked.
        """
        named = f"{reference.registry}/{reference.repository}"
        # What names a digest is not looked for where only tags are, nor is anything that it needs.
        sources = self._sources(reference, by_digest=reference.digest is not None)
        return self._before(MirroredRepository(named, sources, self._standing, self._hurried(sources, reference)))

    def tags(self, reference: Reference) -> TagList:
        """List the tags of a repository, as the registry itself has them.

        Mirrors are asked only where that cannot be reached: a cache lists what it happens to hold, and no more.

        Raises:
            OcistreamError: what the registry itself says of it, if no mirror answered.
        """
        from ocistream.registry.tags import list_tags

        *mirrors, own = self._sources(reference, by_digest=False)
        try:
            return list_tags(own.repository)
        except NetworkError as error:
            for source in mirrors:
                if not source.place.takes(by_digest=False) or self._standing.is_bad(source.place):
                    continue
                self._standing.tell(f"{error.what}; asking the mirror {source.place} for the tags", 0)
                try:
                    listed = list_tags(source.repository)
                except FAILURES as failure:
                    self._standing.tell(f"the mirror {source.place}: {failure.what}", 0)
                else:
                    cut = listed.cut or f"these are those of the mirror {source.place}, which may lack some"
                    return replace(listed, cut=cut)
            raise

    def _sources(self, reference: Reference, *, by_digest: bool) -> list[Source]:
        *mirrors, primary = self._places(reference)
        found = [
            Source(place, self._mirror(self._mirrors(), place), self._mirror(self._transport, place))
            for place in mirrors
            if not by_digest or place.takes(by_digest=True)
        ]
        own = self._own(self._transport, primary, reference)
        return [*found, Source(primary, own, own)]

    @staticmethod
    def _mirror(transport: Transport, place: Place) -> Repository:
        return Repository(transport, place.registry, place.repository, named=False)

    @staticmethod
    def _own(transport: Transport, primary: Place, reference: Reference) -> Repository:
        """Give the registry's own repository; with another `location`, it was the configuration that named the host."""
        named = primary.registry.lower() == reference.registry.lower()
        return Repository(transport, primary.registry, primary.repository, named=named)

    def _hurried(self, sources: Sequence[Source], reference: Reference) -> Source:
        """Give the registry's own place, asked with no more patience than a mirror where there are any."""
        *mirrors, own = sources
        if not mirrors:
            return own
        return replace(own, repository=self._own(self._mirrors(), own.place, reference))
