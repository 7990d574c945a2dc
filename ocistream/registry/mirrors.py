"""A repository that is read from several places: from mirrors first, and from the registry itself where they fail.

It has the reading verbs of `registry.repository.Repository`. A mirror that is down, refuses, lacks something or lies
costs the way to the next place, and nothing else: whoever reads does not see it, but for a blob that turns out wrong at
its very end (`transfer.interfaces.Blob.on_wrong`). What a mirror says is believed as far as a digest goes; which digest
a tag has today, only the mirror says.
"""

from __future__ import annotations

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
from ocistream.notices import notice
from ocistream.oci.reference import is_digest, printable
from ocistream.registry.downloads import Led
from ocistream.registry.referrers import ReferrerList, ReferrerLists
from ocistream.streams.chunks import gathered, verified
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from ocistream.http.client import Endpoint
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.registry.locations import Place
    from ocistream.registry.mirror_health import Standing
    from ocistream.registry.repository import Repository
    from ocistream.streams.chunks import Chunk

__all__ = ["FAILURES", "MirroredRepository", "Readable", "Source"]

#: What of a mirror is no reason to give up: the next place may do better.
FAILURES: Final = (NetworkError, AuthenticationError, NotFoundError, IntegrityError, ArchiveError)

_T = TypeVar("_T")


class Readable(Protocol):
    """What is read of a repository: of `registry.repository.Repository`, or of several in its place."""

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

    def referrers(self, digest: str) -> ReferrerList:
        """Ask what refers to a manifest."""

    def digest_of(self, target: str) -> str | None:
        """Ask what a tag stands for; None where it is not there."""


@dataclass(slots=True, eq=False)
class Source:
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

    def __init__(self, named: str, sources: Sequence[Source], standing: Standing, hurried: Source) -> None:
        """Take the places in the order in which they are asked; the last is the registry's own.

        `named` is what the user called the repository. `hurried` is the registry's own place once more, for what hardly
        matters.
        """
        self._named = named
        self._sources = sources
        self._standing = standing
        self._hurried = hurried
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

        def ask(source: Source) -> Manifest:
            return source.repository.resolve(target, strictly=source.place.is_mirror)

        return self._first(ask, by_digest=is_digest(target))

    def manifest(self, descriptor: Descriptor) -> bytes:
        """Get the bytes of a manifest that another document lists; whoever asked verifies them.

        Raises:
            OcistreamError: what the registry itself says of it.
        """

        def ask(source: Source) -> bytes:
            raw = source.repository.manifest(descriptor)
            return gathered(verified([raw], descriptor)) if source.place.is_mirror else raw

        return self._first(ask)

    def blob(self, descriptor: Descriptor) -> Blob:
        """Give a blob, to be downloaded when it is opened."""
        download = _Download(self, descriptor)
        return Blob(
            descriptor, download.chunks, on_wrong=download.on_wrong, open_at=download.chunks, part=download.part
        )

    def referrers(self, digest: str) -> ReferrerList:
        """Ask what refers to a manifest: the first place that knows of anything.

        Raises:
            OcistreamError: what the registry itself says of it, if no mirror answered.
        """

        def ask(source: Source) -> ReferrerList | None:
            found = source.lists.of(digest)
            return found if found.descriptors or found.cut else None

        answer = self._anything(ask, by_digest=True)
        if answer is None:
            return ReferrerList()
        source, found = answer
        if source.place.is_mirror:
            # The mirror may have copied some of them only.
            what = f"the mirror {source.place} lists what refers to images of {printable(self._named)}"
            notice(f"{what}; no other place is asked for more", level=1)
        return found

    def digest_of(self, target: str) -> str | None:
        """Ask what a tag stands for, or whether a digest is there: the first place that knows of it.

        Raises:
            OcistreamError: what the registry itself says of it, if no mirror answered.
        """
        answer = self._anything(lambda source: source.repository.digest_of(target), by_digest=is_digest(target))
        return None if answer is None else answer[1]

    def _anything(self, ask: Callable[[Source], _T | None], *, by_digest: bool) -> tuple[Source, _T] | None:
        """Give the first answer that is one, and who gave it.

        That a mirror knows of nothing says little: many do without the API of referrers, and a cache holds what it was
        asked for. But where one has the image, that can be had without its registry, and what hangs on it cannot then:
        behind a firewall, to find that out is to cost seconds, and once.
        """
        answered = False
        for source in self._usable_for(by_digest=by_digest):
            own = not source.place.is_mirror
            if own and answered and self._standing.is_unreachable(source.place):
                break
            try:
                found = ask(self._hurried if own and answered else source)
            except FAILURES as error:
                if answered and own and isinstance(error, NetworkError):
                    self._standing.give_up(source.place, f"{error.what}; it is not known whether the registry has more")
                    break
                self.fell_back(source, error)
            else:
                if found is not None:
                    return source, found
                answered = True
        return None

    def _usable_for(self, *, by_digest: bool) -> Iterator[Source]:
        """Give the places that are worth asking for this; to some nothing is asked but by digest, or by tag."""
        # Where only digests are taken from, what an image needs may come from there once its tag is known.
        return (source for source in self.usable() if by_digest or source.place.takes(by_digest=False))

    def usable(self) -> Iterator[Source]:
        """Give the places that are worth asking, in their order, as long as they are asked for.

        When the registry itself has failed, mirrors get a second chance that have given something before they fell
        silent: behind a firewall they may be all that there is.
        """
        for source in self._sources:
            if not self._standing.is_bad(source.place) and not source.is_useless:
                yield source
        silent = self._silent()
        for source in silent:
            yield replace(source, repository=source.patient, is_last=source is silent[-1])

    def _silent(self) -> list[Source]:
        return [source for source in self._sources[:-1] if source.is_useful and self._standing.is_down(source.place)]

    def fell_back(self, source: Source, error: OcistreamError) -> None:
        """Note what a place did, and tell it.

        Raises:
            OcistreamError: `error`, where there is no other place to go on to.
        """
        if source.is_last:
            raise error
        if not source.place.is_mirror:
            if not isinstance(error, NetworkError) or not self._silent():
                raise error
            self._standing.tell(f"{error.what}; trying its mirrors again", 0)
            return
        what = f"the mirror {source.place}: {error.what}; going on elsewhere"
        if isinstance(error, NotFoundError):
            # Who has given nothing yet has nothing of this image, and is not asked for each of its blobs.
            source.is_useless = not source.is_useful
            self._standing.tell(what, 1)
        elif isinstance(error, AuthenticationError):
            source.is_useless = True
            self._standing.tell(what, 0)
        else:
            self._standing.set_aside(source.place, what, lies=not isinstance(error, NetworkError))

    def found_wrong(self, source: Source, what: str) -> None:
        """Ask a mirror no more that gave wrong bytes."""
        self._standing.set_aside(source.place, f"{what}; reading it again from elsewhere", lies=True)

    def _first(self, ask: Callable[[Source], _T], *, by_digest: bool = True) -> _T:
        """Give the first answer; the last place's failure is what is raised."""
        for source in self._usable_for(by_digest=by_digest):
            try:
                found = ask(source)
            except FAILURES as error:
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
        self._given: list[Source] = []
        #: Where each of them has led to.
        self._led: dict[Source, Led] = {}

    def chunks(self, offset: int = 0) -> Iterator[Chunk]:
        """Read the blob, unverified, from byte `offset` on; where one place breaks off, the next goes on there."""
        for source in self._repository.usable():
            is_mirror = source.place.is_mirror
            try:
                for chunk in source.repository.blob_chunks(self._descriptor, offset, strictly=is_mirror):
                    self._note(source)
                    offset += len(chunk)
                    yield chunk
            except FAILURES as error:
                self._repository.fell_back(source, error)
            else:
                return

    def part(self, start: int, view: memoryview) -> Generator[int, None, None]:
        """Read bytes from `start` on into `view`, from the first place that is worth asking, and nowhere else."""
        for source in self._repository.usable():
            led = self._led.setdefault(source, Led())
            with closing(source.repository.blob_part(self._descriptor, led, start, view)) as steps:
                for filled in steps:
                    self._note(source)
                    yield filled
            return
        msg = f"{self._repository}: there is no place to read from"
        raise NotFoundError(msg)

    def _note(self, source: Source) -> None:
        if source not in self._given:
            self._given.append(source)
            source.is_useful = True

    def on_wrong(self, error: IntegrityError, again: bool) -> None:
        """Suspect the mirrors that had a part in the readings so far, and read no more from them.

        Raises:
            IntegrityError: there were none, or nothing can be begun anew.
        """
        suspects = [source for source in self._given if source.place.is_mirror]
        self._given = []
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
