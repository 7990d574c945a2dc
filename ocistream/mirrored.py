"""A repository that is read from several places: from mirrors first, and from the registry itself where they fail.

It has the reading verbs of `distribution.Repository`. A mirror that is down, refuses, lacks something or lies costs
the way to the next place, and nothing else: whoever reads does not see it, but for a blob that turns out wrong at its
very end (`interfaces.Blob.on_wrong`). What a mirror says is believed as far as a digest goes; which digest a tag has
today, only the mirror says.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from ocistream.distribution import Repository
from ocistream.errors import (
    ArchiveError,
    AuthenticationError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    OcistreamError,
)
from ocistream.interfaces import Blob
from ocistream.places import Place
from ocistream.reference import is_digest
from ocistream.referrer_lists import ReferrerLists
from ocistream.stream import gathered, verified
from ocistream.tag_lists import list_tags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocistream.model import Descriptor, Manifest
    from ocistream.reference import Reference
    from ocistream.stream import Chunk
    from ocistream.tag_lists import TagList
    from ocistream.transport import Endpoint, Transport, TransportSettings

__all__ = ["MirroredRepository", "Readable", "Reading", "impatient"]

#: What of a mirror is no reason to give up: the next place may do better.
_FAILURES: Final = (NetworkError, AuthenticationError, NotFoundError, IntegrityError, ArchiveError)
#: A mirror is tried so often, and connecting to it, a silence and a Retry-After may take so many seconds: where there
#: is another place to ask, a dead one is to cost seconds.
_ATTEMPTS: Final = 2
_CONNECT: Final = 5.0
_STALL: Final = 20.0
_RETRY_AFTER: Final = 3.0

_T = TypeVar("_T")


class Readable(Protocol):
    """What is asked of a repository that is read from: of `distribution.Repository`, or of several in its place."""

    @property
    def endpoint(self) -> Endpoint:
        """The registry that it belongs to, and no mirror of that."""

    @property
    def name(self) -> str:
        """The repository's name there."""

    def resolve(self, target: str) -> Manifest:
        """Get the manifest that a tag or a digest stands for."""

    def manifest(self, descriptor: Descriptor) -> bytes:
        """Get the bytes of a manifest that another document lists; whoever asked verifies them."""

    def blob(self, descriptor: Descriptor) -> Blob:
        """Give a blob, to be downloaded when it is opened."""

    def referrers(self, digest: str) -> list[Descriptor]:
        """Ask what refers to a manifest."""

    def digest_of(self, target: str) -> str | None:
        """Ask what a tag stands for; None where it is not there."""


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
    """What is known, for one run, of all places that are read from. Safe for several threads."""

    def __init__(
        self,
        transport: Transport,
        mirrors: Callable[[], Transport] | None = None,
        places: Callable[[Reference], Sequence[Place]] = own_place,
        tell: Callable[[str, int], None] = lambda _message, _level: None,
    ) -> None:
        """Take the transports to registries and to their mirrors, and the rules: without any, there are no mirrors.

        `tell(message, level)` is told of every fall-back: at level 0, or at 1 where it is nothing unusual.
        """
        self._transport = transport
        self._mirrors = mirrors or (lambda: transport)
        self._places = places
        self._tell = tell
        self._lock = threading.Lock()
        #: Registries that are not asked again, and those of them that gave nothing wrong but fell silent.
        self._bad: set[str] = set()
        self._down: set[str] = set()
        #: Registries that mirrors stand for, and that did not answer themselves.
        self._unreachable: set[str] = set()

    def repository(self, reference: Reference) -> Readable:
        """Give what an image is read from.

        Raises:
            AuthenticationError: that is blocked.
        """
        named = f"{reference.registry}/{reference.repository}"
        # What names a digest is not looked for where only tags are, nor is anything that it needs.
        return MirroredRepository(named, self._sources(reference, by_digest=reference.digest is not None), self)

    def tags(self, reference: Reference) -> TagList:
        """List the tags of a repository, as the registry itself has them.

        Mirrors are asked only where that cannot be reached: a cache lists what it happens to hold, and no more.

        Raises:
            OcistreamError: what the registry itself says of it, if no mirror answered.
        """
        *mirrors, own = self._sources(reference, by_digest=False)
        try:
            return list_tags(own.repository)
        except NetworkError as error:
            for source in mirrors:
                if not source.place.takes(by_digest=False) or self.is_bad(source.place):
                    continue
                self.tell(f"{error.what}; asking the mirror {source.place} for the tags", 0)
                try:
                    listed = list_tags(source.repository)
                except _FAILURES as failure:
                    self.tell(f"the mirror {source.place}: {failure.what}", 0)
                else:
                    cut = listed.cut or f"these are those of the mirror {source.place}, which may lack some"
                    return replace(listed, cut=cut)
            raise

    def _sources(self, reference: Reference, *, by_digest: bool) -> list[_Source]:
        *mirrors, primary = self._places(reference)
        found = [
            _Source(place, self._mirror(self._mirrors(), place), self._mirror(self._transport, place))
            for place in mirrors
            if not by_digest or place.takes(by_digest=True)
        ]
        own = Repository(self._transport, primary.registry, primary.repository)
        return [*found, _Source(primary, own, own)]

    @staticmethod
    def _mirror(transport: Transport, place: Place) -> Repository:
        return Repository(transport, place.registry, place.repository, named=False)

    def hurried(self, own: _Source) -> _Source:
        """Give the registry's own place, asked with no more patience than a mirror."""
        return replace(own, repository=Repository(self._mirrors(), own.place.registry, own.place.repository))

    def is_unreachable(self, place: Place) -> bool:
        """Say whether a registry was given up, for what can be done without."""
        return place.registry in self._unreachable

    def give_up(self, place: Place, why: str) -> None:
        """Ask a registry no more, in this run, for what can be done without, and say why."""
        with self._lock:
            news = place.registry not in self._unreachable
            self._unreachable.add(place.registry)
        self.tell(why, 0 if news else 1)

    def is_bad(self, place: Place) -> bool:
        """Say whether a mirror is not to be asked again."""
        return place.is_mirror and place.registry in self._bad

    def is_down(self, place: Place) -> bool:
        """Say whether a mirror failed, but gave nothing wrong."""
        return place.registry in self._down

    def set_aside(self, place: Place, why: str, *, lies: bool) -> None:
        """Ask a mirror no more, in this run, and say why."""
        with self._lock:
            news = place.registry not in self._bad
            self._bad.add(place.registry)
            if lies:
                self._down.discard(place.registry)
            elif news:
                self._down.add(place.registry)
        self.tell(why, 0 if news else 1)

    def tell(self, message: str, level: int) -> None:
        """Tell of a fall-back."""
        self._tell(message, level)


@dataclass(slots=True, eq=False)
class _Source:
    """One place, and what has come of asking there."""

    place: Place
    repository: Repository
    #: The same, asked with all patience.
    patient: Repository
    lists: ReferrerLists = field(init=False)
    #: Something came from there.
    is_useful: bool = False
    #: It lacks the image, or does not let us have it.
    is_useless: bool = False
    #: Nothing else is left to ask, so this is the place whose failure counts.
    is_last: bool = False

    def __post_init__(self) -> None:
        """Ask for referrers there as well."""
        self.lists = ReferrerLists(self.repository)


class MirroredRepository:
    """One repository and its mirrors, for reading. Safe for several threads."""

    def __init__(self, named: str, sources: Sequence[_Source], reading: Reading) -> None:
        """Take the places in the order in which they are asked; the last is the registry's own.

        `named` is what the user called the repository.
        """
        self._named = named
        self._sources = sources
        self._reading = reading
        #: The registry itself, where it is asked for what hardly matters.
        self._hurried = reading.hurried(sources[-1]) if len(sources) > 1 else sources[-1]
        self.endpoint = sources[-1].repository.endpoint
        self.name = sources[-1].repository.name

    def __str__(self) -> str:
        """Give `registry/name`, as the user did."""
        return self._named

    def resolve(self, target: str) -> Manifest:
        """Get the manifest that a tag or a digest stands for.

        Raises:
            OcistreamError: what the registry itself says of it.
        """
        return self._first(lambda source: source.repository.resolve(target), by_digest=is_digest(target))

    def manifest(self, descriptor: Descriptor) -> bytes:
        """Get the bytes of a manifest that another document lists; whoever asked verifies them.

        Raises:
            OcistreamError: what the registry itself says of it.
        """

        def ask(source: _Source) -> bytes:
            raw = source.repository.manifest(descriptor)
            return gathered(verified([raw], descriptor)) if source.place.is_mirror else raw

        return self._first(ask)

    def blob(self, descriptor: Descriptor) -> Blob:
        """Give a blob, to be downloaded when it is opened."""
        download = _Download(self, descriptor)
        return Blob(descriptor, download.chunks, on_wrong=download.on_wrong)

    def referrers(self, digest: str) -> list[Descriptor]:
        """Ask what refers to a manifest: the first place that knows of anything.

        Raises:
            OcistreamError: what the registry itself says of it, if no mirror answered.
        """
        return self._anything(lambda source: source.lists.of(digest) or None, by_digest=True) or []

    def digest_of(self, target: str) -> str | None:
        """Ask what a tag stands for, or whether a digest is there: the first place that knows of it.

        Raises:
            OcistreamError: what the registry itself says of it, if no mirror answered.
        """
        return self._anything(lambda source: source.repository.digest_of(target), by_digest=is_digest(target))

    def _anything(self, ask: Callable[[_Source], _T | None], *, by_digest: bool) -> _T | None:
        """Give the first answer that is one.

        That a mirror knows of nothing says little: many do without the API of referrers, and a cache holds what it was
        asked for. But where one has the image, that can be had without its registry, and what hangs on it cannot then:
        behind a firewall, to find that out is to cost seconds, and once.
        """
        answered = False
        for source in self._usable_for(by_digest=by_digest):
            own = not source.place.is_mirror
            if own and answered and self._reading.is_unreachable(source.place):
                break
            try:
                found = ask(self._hurried if own and answered else source)
            except _FAILURES as error:
                if answered and own and isinstance(error, NetworkError):
                    self._reading.give_up(source.place, f"{error.what}; it is not known whether the registry has more")
                    break
                self.fell_back(source, error)
            else:
                if found is not None:
                    return found
                answered = True
        return None

    def _usable_for(self, *, by_digest: bool) -> Iterator[_Source]:
        """Give the places that are worth asking for this; to some nothing is asked but by digest, or by tag."""
        # Where only digests are taken from, what an image needs may come from there once its tag is known.
        return (source for source in self.usable() if by_digest or source.place.takes(by_digest=False))

    def usable(self) -> Iterator[_Source]:
        """Give the places that are worth asking, in their order, as long as they are asked for.

        When the registry itself has failed, mirrors get a second chance that have given something before they fell
        silent: behind a firewall they may be all that there is.
        """
        for source in self._sources:
            if not self._reading.is_bad(source.place) and not source.is_useless:
                yield source
        silent = self._silent()
        for source in silent:
            yield replace(source, repository=source.patient, is_last=source is silent[-1])

    def _silent(self) -> list[_Source]:
        return [source for source in self._sources[:-1] if source.is_useful and self._reading.is_down(source.place)]

    def fell_back(self, source: _Source, error: OcistreamError) -> None:
        """Note what a place did, and tell it.

        Raises:
            OcistreamError: `error`, where there is no other place to go on to.
        """
        if source.is_last:
            raise error
        if not source.place.is_mirror:
            if not isinstance(error, NetworkError) or not self._silent():
                raise error
            self._reading.tell(f"{error.what}; trying its mirrors again", 0)
            return
        what = f"the mirror {source.place}: {error.what}; going on elsewhere"
        if isinstance(error, NotFoundError):
            # Who has given nothing yet has nothing of this image, and is not asked for each of its blobs.
            source.is_useless = not source.is_useful
            self._reading.tell(what, 1)
        elif isinstance(error, AuthenticationError):
            source.is_useless = True
            self._reading.tell(what, 0)
        else:
            self._reading.set_aside(source.place, what, lies=not isinstance(error, NetworkError))

    def found_wrong(self, source: _Source, what: str) -> None:
        """Ask a mirror no more that gave wrong bytes."""
        self._reading.set_aside(source.place, f"{what}; reading it again from elsewhere", lies=True)

    def _first(self, ask: Callable[[_Source], _T], *, by_digest: bool = True) -> _T:
        """Give the first answer; the last place's failure is what is raised."""
        for source in self._usable_for(by_digest=by_digest):
            try:
                found = ask(source)
            except _FAILURES as error:
                self.fell_back(source, error)
            else:
                source.is_useful = True
                return found
        msg = f"{self}: there is no place to read from"
        raise NotFoundError(msg)


class _Download:
    """One blob, from wherever it can be had, and where it was had from."""

    def __init__(self, repository: MirroredRepository, descriptor: Descriptor) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._given: list[_Source] = []

    def chunks(self) -> Iterator[Chunk]:
        """Read the blob, unverified; where one place breaks off, the next goes on at the same byte."""
        self._given = []
        offset = 0
        for source in self._repository.usable():
            is_mirror = source.place.is_mirror
            try:
                for chunk in source.repository.blob_chunks(self._descriptor, offset, strictly=is_mirror):
                    if source not in self._given:
                        self._given.append(source)
                        source.is_useful = True
                    offset += len(chunk)
                    yield chunk
            except _FAILURES as error:
                self._repository.fell_back(source, error)
            else:
                return

    def on_wrong(self, error: IntegrityError, again: bool) -> None:
        """Suspect the mirrors that had a part in the last reading, and read no more from them.

        Raises:
            IntegrityError: there were none, or nothing can be begun anew.
        """
        suspects = [source for source in self._given if source.place.is_mirror]
        if not suspects:
            raise error
        what = f"{error.what}, as {' and '.join(f'the mirror {source.place}' for source in suspects)} gave it"
        for source in suspects:
            source.is_useless = True
        if not again:
            hint = "run it again with --no-mirrors to ask the registry itself only, or write to a file"
            raise IntegrityError(what, hint=hint) from error
        for source in suspects:
            self._repository.found_wrong(source, what)
