"""Image archives out of a pipe, in one pass, without temporary space and in bounded memory.

Our own archives have everything small first. Most others are the other way round: exporters that sort names or walk a
directory put `blobs/...` before `index.json`. Then small blobs that look like JSON are held, within a budget, and
everything else goes straight to the sink, under the digest that its name promises: content addressing makes that safe.
Held JSON over the budget goes there too, and is read back if it turns out to be a manifest.

A docker-archive is another matter, which `archive/docker_stream.py` sees to.
"""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.archive.docker_images import less_made, parse_manifest_json, tell_no_list, tell_only_there
from ocistream.archive.docker_stream import FROM_A_FILE, DockerStream, Passed
from ocistream.archive.entries import Contents, plain_name
from ocistream.archive.stream_blobs import Answering
from ocistream.archive.tar import Entry, Input, TarReader
from ocistream.archive.volume_parts import PassingParts, check_parts
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from ocistream.layout.all_images import tell_same_names
from ocistream.layout.index import Index, Selection, every_image, parse_layout_file, read_index
from ocistream.layout.index_entries import Gathering
from ocistream.oci.descriptor import UNKNOWN_TYPE, Descriptor
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import printable
from ocistream.oci.volumes import part_of, volume_of
from ocistream.streams import files
from ocistream.streams.chunks import gathered, verified
from ocistream.streams.compression import NONE, codec_of
from ocistream.transfer.blobs import held
from ocistream.transfer.interfaces import Blob, MayHaveToWait
from ocistream.transfer.partial_blobs import begun_of, from_byte

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from ocistream.errors import OcistreamError
    from ocistream.oci.graph import Graph
    from ocistream.oci.referrers import Referrers
    from ocistream.oci.volumes import Volume
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Early

__all__ = ["ArchiveStreamSource", "open_stream"]


class ArchiveStreamSource:
    """Images out of a stream that can be read once."""

    parallel = False

    def __init__(
        self,
        file: Input,
        *,
        what: str = "the archive on stdin",
        select: Selection = every_image,
        platforms: PlatformChoice = ALL_PLATFORMS,
        referrers: Referrers = "listed",
        everything: bool = False,
        as_docker: bool = False,
    ) -> None:
        """Read from where `file` stands; nothing is read yet. `what` names it in errors.

        With `everything`, `blobs` gives those too that no image needs. With `as_docker` the images are those of
        `manifest.json`, if there is one beside an `index.json`.
        """
        self._file = file
        self._reader = TarReader(file, what)
        self._entries = iter(self._reader)
        self._what = f"cannot read {what}"
        self._select = select
        self._platforms = platforms
        self._referrers: Referrers = referrers
        self._parts = PassingParts(what)
        #: Which volume it is, if it is one: that is known with its index.
        self.volume: Volume | None = None
        self._everything = everything
        self._as_docker = as_docker
        self._contents = Contents(as_docker=as_docker)
        self._index = Index([], {})
        self._is_index_last = False
        #: Why no image of `index.json` was chosen: `manifest.json` may list others.
        self._refused: OcistreamError | None = None
        #: Whether the graph was made of all that `manifest.json` lists.
        self._is_compared = False
        self._passed = Passed(self._contents)
        self._docker = DockerStream(self._passed)
        self._given: set[str] = set()
        self._answering = Answering(self._passed, self._given, note=self._docker.note)
        #: Whether every entry has passed.
        self._has_ended = False
        #: Blobs of which only the rest comes, from an offset on; None where the archive does not come over a line.
        self._rests: dict[str, int] | None = None
        #: A blob that began to pass when the graph was complete without what was given up.
        self._begun: tuple[Entry, str, Iterator[Chunk]] | None = None
        self._given_up: set[str] = set()

    def graph(self, early: Early) -> Graph:
        """Read until the index and every manifest below the chosen images are known.

        Images that only `manifest.json` lists are known when all of the archive has passed.
        """
        gathering = Gathering(self._select, self._platforms, self._referrers)
        for entry in self._read_entries():
            digest = self._contents.add(entry)
            if digest is not None:
                self._take_blob(gathering, entry, digest, early)
            else:
                self._take_document(gathering, entry, early)
            if self._is_ready(gathering, early, digest):
                return self._finished(gathering)
        self._is_compared = True
        if self._contents.is_docker_archive:
            return self._docker.graph(self._select, self._platforms, early)
        self._contents.required_index()
        made: dict[str, bytes] = {}
        if others := self._docker.others(early):
            if not self._answering.has_all:
                msg = f"more than {limits.MAX_GRAPH_BYTES} bytes of manifests come before manifest.json"
                raise UnsupportedError(msg, hint=FROM_A_FILE)
            entries, made = self._docker.made(others, early)
            tell_only_there(others)
            self._answering.add(made)
            gathering = Gathering(self._select, self._platforms, self._referrers)
            gathering.begin([*self._index.entries, *entries], self._index.notes, made)
        elif self._as_docker:
            tell_no_list()
            gathering.begin(*self._index)
        if others or self._as_docker:
            self._refused = None
            self._answering.answer(gathering, early)
        while self._refused is None and (needed := self._answering.next_need(gathering, early)) is not None:
            self._check_missing(gathering, needed)
            gathering.lacks(needed.digest)
            # Once an index is known to be lacking, it may be decided which of the held manifests are wanted.
            self._answering.answer(gathering, early)
        return self._finished(gathering, made)

    def _check_missing(self, gathering: Gathering, needed: Descriptor) -> None:
        self._check_right([needed.digest])
        if needed.digest in self._given:
            # It did not begin like a JSON object, and went to the sink as a blob.
            kind = "config" if gathering.wants_config(needed.digest) else "manifest"
            msg = f"{needed.digest} is listed as a {kind}, and is not a JSON object"
            raise ArchiveError(msg)

    def _finished(self, gathering: Gathering, made: Collection[str] = ()) -> Graph:
        if self._refused is not None:
            raise self._refused
        self._answering.forget()
        graph = replace(gathering.graph(), bare=self._docker.is_saved)
        # What only `manifest.json` lists is known when all blobs have passed.
        there = self._contents.blobs.keys() - self._passed.wrong.keys()
        graph = less_made(graph, [digest for digest in made if digest not in there])
        tell_same_names(graph)
        return graph

    def _is_ready(self, gathering: Gathering, early: Early, passed: str | None) -> bool:
        """Say whether the graph is complete, and manifest.json can add nothing, or comes too late to do so."""
        if self._contents.index is None or self._as_docker:
            return False
        if self._refused is None:
            self._answering.answer(gathering, early, passed)
            if self._answering.next_need(gathering, early) is not None:
                return False
        if self._begun is not None or self.volume is not None or self._rests:
            return True
        # In our own archives the two come first; in those of `docker save` a file named `repositories` comes last.
        return not self._is_index_last and self._docker.images is not None and not self._docker.may_list_others()

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Give the wanted blobs as they pass, and read on to the very end, whatever is wanted.

        Raises:
            ArchiveError: the archive ends too early.
            IntegrityError: a wanted blob that came before the graph is wrong, or a digest that stands twice has other
                bytes the second time.
            UnsupportedError: something comes that may hang on an image, and was not waited for; or a `manifest.json`
                that lists other images.
        """
        by_digest = {descriptor.digest: descriptor for descriptor in wanted}
        self._check_right(by_digest)
        for digest, content in self._passed.held.items():
            self._given.add(digest)
            if digest in by_digest or self._everything:
                unknown = Descriptor(UNKNOWN_TYPE, digest, len(content))
                yield held(by_digest.get(digest, unknown), content)
        self._passed.held.clear()
        for entry, digest, content_of in self._remaining():
            if digest in self._given_up:
                msg = f"{digest} may hang on an image, and comes after layers that could not wait for it"
                raise UnsupportedError(
                    msg, hint="push from a file instead of a pipe (-i FILE), or name one IMAGE to push to"
                )
            descriptor = by_digest.get(digest)
            if self._is_read_here(entry, digest, is_wanted=descriptor is not None or self._everything):
                continue
            self._given.add(digest)
            if descriptor is None and self._everything:
                descriptor = Descriptor(UNKNOWN_TYPE, digest, entry.size)
            if descriptor is not None:
                yield self._blob(descriptor, entry, content_of)
        with files.disk_errors(self._what):
            self._reader.drain()
        if self.volume is not None and self._everything:
            check_parts(self.volume, self._contents)
        if not self._is_compared:
            self._docker.check_late()

    def _check_right(self, wanted: Collection[str]) -> None:
        for digest in wanted:
            if digest in self._passed.wrong:
                raise self._passed.wrong[digest]

    def _is_read_here(self, entry: Entry, digest: str, *, is_wanted: bool) -> bool:
        """Read a blob that stands there once more, or a manifest by which images are compared; False for others."""
        if digest in self._given:
            self._check_again(entry, digest)
            return True
        if is_wanted or not self._docker.compares(digest, entry.size):
            return False
        self._given.add(digest)
        self._docker.note(digest, self._read(entry, limits.MAX_MANIFEST))
        return True

    def _blob(self, descriptor: Descriptor, entry: Entry, content_of: Callable[[], Iterator[Chunk]]) -> Blob:
        """Give a blob, or the rest of one.

        Raises:
            ArchiveError: that does not end where the blob does.
        """
        if self._rests is None:
            return Blob(descriptor, content_of, replayable=False)
        if start := self._start_of(entry):
            if start + entry.size != descriptor.size:
                msg = f"{printable(entry.name)!r} in the archive is not the rest of a blob of {descriptor.size} bytes"
                raise ArchiveError(msg)
            return Blob(descriptor, content_of, replayable=False, may_break=True, start=start)
        # What is there of it need not be written again, though it comes.
        open_at = partial(_from, content_of)
        return Blob(descriptor, content_of, replayable=False, open_at=open_at, may_break=True)

    def _start_of(self, entry: Entry) -> int:
        """Say where an entry begins in its blob: 0, unless it is one of those of which only the rest comes."""
        if not self._rests or self._everything or entry.kind != "file":
            return 0
        part = part_of(plain_name(entry.name))
        return part[1] if part and not part[2] and self._rests.get(part[0]) == part[1] else 0

    def lacks(self, descriptor: Descriptor) -> bool | None:
        """Say whether the archive has no such blob; that is known when all of it has passed.

        A docker-archive has names of its own for blobs, and its graph is made of what it has.
        """
        if not self._has_ended or self._contents.index is None or self._contents.is_docker_archive:
            return None
        return descriptor.digest not in self._contents.blobs

    def entries_with(self, image_id: str) -> list[Descriptor]:
        """Return the entries of `index.json` that lead to an image with this ID, as far as is known by now."""
        comparison = self._docker.comparison
        return comparison.entries_with(image_id) if comparison is not None else []

    @property
    def is_saved(self) -> bool:
        """Whether `docker save` wrote the archive. From a pipe this may be known only after the graph."""
        return self._docker.is_saved

    @property
    def contents(self) -> Contents:
        """What the archive was seen to contain so far."""
        return self._contents

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _take_document(self, gathering: Gathering, entry: Entry, early: Early) -> None:
        """Read what names the images, and pass over what does not belong to an image archive."""
        name = plain_name(entry.name)
        if entry is self._contents.index:
            self._index = index = read_index(self._read(entry, limits.MAX_MANIFEST))
            self.volume = volume_of(index.notes) if index.notes else None
            self._rests = begun_of(index.notes) if index.notes else None
            self._docker.compare_with(index.entries)
            self._is_index_last = bool(self._contents.blobs)
            if not self._as_docker:
                self._begin(gathering)
        elif entry is self._contents.docker:
            self._docker.images = parse_manifest_json(self._read(entry, limits.MAX_MANIFEST))
        elif entry.kind == "file" and name in self._contents.others:
            self._docker.take(name, entry.size, self._content(entry)(), early)
        else:
            self._take_other(entry)

    def _begin(self, gathering: Gathering) -> None:
        """Choose images of `index.json`; that none can be chosen is not final before `manifest.json` has passed."""
        try:
            gathering.begin(*self._index)
        except (NotFoundError, UsageError) as error:
            self._refused = error

    def _take_other(self, entry: Entry) -> None:
        """Check what may come at any place: `oci-layout`, or a part of a blob that has the rest in other volumes.

        Raises:
            ArchiveError: `oci-layout` is malformed, or of an unknown version.
        """
        if entry is self._contents.layout:
            parse_layout_file(self._read(entry, limits.MAX_LAYOUT_FILE))
        elif self._everything and entry.kind == "file":
            self._parts.take(plain_name(entry.name), self._content(entry)())

    def _take_blob(self, gathering: Gathering, entry: Entry, digest: str, early: Early) -> None:
        """Decide what a blob that passes before the graph is known is for."""
        if digest in self._given or digest in self._passed.held:
            self._check_again(entry, digest)
        elif gathering.needs(digest) and not gathering.wants_config(digest):
            self._given.add(digest)
            gathering.check_size(digest, entry.size)
            raw = self._read(entry, limits.MAX_MANIFEST)
            gathering.supply(digest, raw)
            self._answering.keep(digest, raw)
            self._docker.note(digest, raw, gathering.document(digest))
        else:
            self._hold_or_pass_on(gathering, entry, digest, early)

    def _hold_or_pass_on(self, gathering: Gathering, entry: Entry, digest: str, early: Early) -> None:
        descriptor = Descriptor(UNKNOWN_TYPE, digest, entry.size)
        chunks = self._content(entry)()
        first = bytes(next(chunks, b""))
        whole = len(first) == entry.size
        looks_like_json = first.lstrip()[:1] == b"{" and entry.size <= limits.MAX_CONFIG
        budget = limits.MAX_HELD_JSON - self._passed.held_bytes
        if looks_like_json and entry.size <= min(limits.MAX_MANIFEST, budget):
            content = first if whole else first + b"".join(bytes(chunk) for chunk in chunks)
            try:
                # It is verified now, since later nobody knows any more whether it was.
                self._passed.held[digest] = gathered(verified([content], descriptor))
            except IntegrityError as error:
                self._passed.wrong[digest] = error
                self._put_early(Blob(descriptor, lambda: iter([content]), replayable=False), early)
            else:
                self._passed.held_bytes += entry.size
                self._docker.note(digest, self._passed.held[digest])
            return
        gathering.check_choice()
        if self._is_complete_without_more(gathering, early):
            self._begun = entry, digest, itertools.chain([first], chunks)
            return
        if (codec := codec_of(first[: limits.KIB])) is not NONE:
            self._passed.codecs[digest] = codec
        rest = itertools.chain([first], chunks)
        blob = Blob(descriptor, lambda: rest, replayable=False, may_be_bare=self._may_be_bare(entry))
        self._put_early(blob, early)
        if looks_like_json and digest not in self._passed.wrong:
            self._passed.spilled[digest] = descriptor

    def _may_be_bare(self, entry: Entry) -> bool:
        """Say whether `docker save` may have written an entry, as far as is known by now."""
        is_oci = self._contents.layout is not None or self._contents.index is not None
        return self._docker.is_saved or not (is_oci or entry.is_read_only)

    def _put_early(self, blob: Blob, early: Early) -> None:
        """Hand a blob on. If its bytes are wrong, this matters only if an image needs it, as in a file.

        Raises:
            IntegrityError: the bytes are wrong, and the sink cannot take them back.
        """
        self._given.add(blob.descriptor.digest)
        try:
            early.put(blob)
        except IntegrityError as error:
            if isinstance(early, MayHaveToWait) and not early.takes_early():
                raise
            self._passed.wrong[blob.descriptor.digest] = error

    def _is_complete_without_more(self, gathering: Gathering, early: Early) -> bool:
        """Say whether the graph is complete if nothing more comes that may hang on an image, or is listed elsewhere.

        That is for who cannot take this blob before the graph is known: an entry of the index may be of something that
        is not in the archive. Whoever can, waits for it to the end. What only `manifest.json` lists is waited for if
        that has passed.

        Raises:
            UnsupportedError: images that only `manifest.json` lists cannot be waited for.
        """
        if self._contents.index is None or self._as_docker:
            return False
        must_begin = isinstance(early, MayHaveToWait) and not early.takes_early()
        if self._docker.may_list_others():
            if must_begin:
                msg = "manifest.json lists images that index.json does not, and their repositories are not known yet"
                raise UnsupportedError(msg, hint="name one IMAGE to push to, or push from a file instead of a pipe")
            return False
        if self._refused is not None:
            return True
        if must_begin:
            self._given_up |= gathering.give_up()
        return self._answering.next_need(gathering, early) is None

    def _remaining(self) -> Iterator[tuple[Entry, str, Callable[[], Iterator[Chunk]]]]:
        if self._begun is not None:
            begun, of, rest = self._begun
            self._begun = None
            yield begun, of, lambda: rest
        for entry in self._read_entries():
            digest = self._contents.add(entry)
            if digest is None and self._start_of(entry) and (part := part_of(plain_name(entry.name))):
                digest = part[0]
            if digest is not None:
                yield entry, digest, self._content(entry)
            elif entry is self._contents.docker:
                self._docker.images = parse_manifest_json(self._read(entry, limits.MAX_MANIFEST))
            else:
                self._take_other(entry)

    def _read_entries(self) -> Iterator[Entry]:
        # Not `yield from`: that would end the reader together with this generator, and a second one goes on later.
        while True:
            with files.disk_errors(self._what):
                entry = next(self._entries, None)
            if entry is None:
                self._has_ended = True
                return
            yield entry

    def _content(self, entry: Entry) -> _Content:
        return _Content(self._reader, entry, self._what)

    def _read(self, entry: Entry, limit: int) -> bytes:
        with files.disk_errors(self._what):
            return self._reader.read(entry, limit)

    def _check_again(self, entry: Entry, digest: str) -> None:
        for _ in verified(self._content(entry)(), Descriptor(UNKNOWN_TYPE, digest, entry.size)):
            pass


def open_stream(path: Path, cancelled: threading.Event) -> Input:
    """Open something to read it once, until `cancelled` is set.

    Raises:
        NotFoundError: it is not there.
        UsageError: it is a terminal.
        LocalDiskError: it cannot be read.
    """
    with files.disk_errors(f"cannot read {path}"):
        file = io.BufferedReader(files.StoppableInput(path, cancelled), 64 * limits.KIB)
    if file.isatty():
        file.close()
        msg = f"{path} is a terminal, from which no archive is read"
        raise UsageError(msg)
    return file


def _from(content_of: Callable[[], Iterator[Chunk]], offset: int) -> Iterator[Chunk]:
    return from_byte(content_of(), offset)


class _Content:
    """The way to an entry's bytes, once."""

    def __init__(self, reader: TarReader, entry: Entry, what: str) -> None:
        self._reader = reader
        self._entry = entry
        self._what = what

    def __call__(self) -> Iterator[Chunk]:
        with files.disk_errors(self._what):
            yield from self._reader.content(self._entry)
