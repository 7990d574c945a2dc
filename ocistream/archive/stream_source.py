"""Source for an image archive from a pipe: one pass, bounded memory, no temporary files.

Blobs that pass before `index.json` are buffered if they are small JSON, and otherwise written to the destination at
once under the digests in their names. `docker_stream` handles docker-archives.
"""

from __future__ import annotations

import io
import itertools
from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.archive.contents import ArchiveContents, normalize_name
from ocistream.archive.docker_archive import (
    mark_synthesized,
    parse_manifest_json,
    report_no_manifest_json,
    report_only_in_manifest_json,
)
from ocistream.archive.docker_stream import READ_FROM_FILE_HINT, DockerStreamReader, StreamBuffer
from ocistream.archive.tar import InputStream, TarEntry, TarReader
from ocistream.archive.volume_parts import StreamedPartChecker, check_parts
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from ocistream.layout.image_selection import report_duplicate_names
from ocistream.layout.index import ImageSelector, LayoutIndex, check_layout_file, parse_index_json, select_every_image
from ocistream.layout.index_graph import IndexGraphBuilder
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import printable
from ocistream.oci.volumes import parse_part_name, parse_volume
from ocistream.streams import files
from ocistream.streams.chunks import read_all, verify_chunks
from ocistream.streams.compression import NONE, detect_codec
from ocistream.transfer.blob_wrappers import blob_from_bytes
from ocistream.transfer.interfaces import Blob, EarlyWriter
from ocistream.transfer.partial_blobs import chunks_from, parse_partial_blobs

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from ocistream.errors import OcistreamError
    from ocistream.oci.graph import Graph
    from ocistream.oci.referrers import ReferrerMode
    from ocistream.oci.volumes import Volume
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import EarlyBlobs

__all__ = [
    "ArchiveStreamSource",
    "BufferedManifests",
    "open_input_stream",
]


class BufferedManifests:
    """Answers the needs of a graph out of what has `passed`; the digests that it takes from there become `given`.

    Every manifest that was supplied is kept, up to a limit: a second graph may be made of the same stream.
    """

    def __init__(
        self,
        buffer: StreamBuffer,
        delivered: set[str],
        *,
        on_recalled: Callable[[str, bytes], None] = lambda _digest, _raw: None,
    ) -> None:
        """Share both with the reader of the stream; `note` is called with what the sink gave back."""
        self._on_recalled = on_recalled
        self._buffer = buffer
        self._delivered = delivered
        self._supplied: dict[str, bytes] = {}
        self._size = 0

    @property
    def is_complete(self) -> bool:
        """Whether everything that was supplied is still kept."""
        return self._size <= limits.MAX_GRAPH_BYTES

    def next_needed(self, builder: IndexGraphBuilder, early_blobs: EarlyBlobs) -> Descriptor | None:
        """Give what is needed and has not passed yet: what hangs on an image is needed when all of that is known."""
        while (needed := builder.next_needed()) is not None:
            if not self._is_available(needed.digest):
                break
            self.supply_buffered(builder, early_blobs)
        return needed

    def supply_buffered(
        self, builder: IndexGraphBuilder, early_blobs: EarlyBlobs, last_digest: str | None = None
    ) -> None:
        """Give the gathering what it needs and has passed already.

        Only what was just `passed`, and what is needed since this was last done, can have become answerable: thousands
        of needs are not gone through again for each entry.
        """
        looked_for = deque([last_digest] if last_digest else [])
        looked_for.extend(builder.new_needs())
        while looked_for:
            found = looked_for.popleft()
            if builder.is_needed(found) and self._is_available(found):
                builder.supply(found, self._take_buffered(builder, found, early_blobs))
                looked_for.extend(builder.new_needs())

    def keep(self, digest: str, raw: bytes) -> None:
        """Keep a manifest that was supplied, unless there are too many of them: then none is kept."""
        self._size += len(raw)
        if self.is_complete:
            self._supplied[digest] = raw
        else:
            self._supplied.clear()

    def add(self, synthesized: Mapping[str, bytes]) -> None:
        """Take manifests that are not in the stream."""
        self._supplied |= synthesized

    def clear(self) -> None:
        """Let go of everything that is kept: no other graph will be made."""
        self._supplied.clear()

    def _is_available(self, digest: str) -> bool:
        return digest in self._buffer.buffered or digest in self._buffer.spilled or digest in self._supplied

    def _take_buffered(self, builder: IndexGraphBuilder, digest: str, early_blobs: EarlyBlobs) -> bytes:
        if digest in self._buffer.buffered:
            if builder.is_config(digest):
                # It is a blob as well, and will be asked for.
                return self._buffer.buffered[digest]
            content = self._buffer.buffered.pop(digest)
            self._buffer.buffered_bytes -= len(content)
            self._delivered.add(digest)
            self.keep(digest, content)
            return content
        if digest in self._supplied:
            return self._supplied[digest]
        raw = early_blobs.read_back(self._buffer.spilled[digest])
        self._on_recalled(digest, raw)
        return raw


class ArchiveStreamSource:
    """Images out of a stream that can be read once."""

    concurrent = False

    def __init__(
        self,
        file: InputStream,
        *,
        what: str = "the archive on stdin",
        select: ImageSelector = select_every_image,
        platforms: PlatformChoice = ALL_PLATFORMS,
        referrers: ReferrerMode = "listed",
        include_unneeded: bool = False,
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
        self._referrers: ReferrerMode = referrers
        self._parts = StreamedPartChecker(what)
        #: Which volume it is, if it is one: that is known with its index.
        self.volume: Volume | None = None
        self._includes_unneeded = include_unneeded
        self._as_docker = as_docker
        self._contents = ArchiveContents(as_docker=as_docker)
        self._index = LayoutIndex([], {})
        self._is_index_last = False
        #: Why no image of `index.json` was chosen: `manifest.json` may list others.
        self._selection_error: OcistreamError | None = None
        #: Whether the graph was made of all that `manifest.json` lists.
        self._is_compared = False
        self._buffer = StreamBuffer(self._contents)
        self._docker = DockerStreamReader(self._buffer)
        self._delivered: set[str] = set()
        self._manifests = BufferedManifests(self._buffer, self._delivered, on_recalled=self._docker.add_manifest)
        #: Whether every entry has passed.
        self._has_ended = False
        #: Blobs of which only the rest comes, from an offset on; None where the archive does not come over a line.
        self._tail_offsets: dict[str, int] | None = None
        #: A blob that began to pass when the graph was complete without what was given up.
        self._started_blob: tuple[TarEntry, str, Iterator[Chunk]] | None = None
        self._abandoned: set[str] = set()

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:
        """Read until the index and every manifest below the chosen images are known.

        Images that only `manifest.json` lists are known when all of the archive has passed.
        """
        gathering = IndexGraphBuilder(self._select, self._platforms, self._referrers)
        for entry in self._read_entries():
            digest = self._contents.add(entry)
            if digest is not None:
                self._handle_early_blob(gathering, entry, digest, early_blobs)
            else:
                self._read_document(gathering, entry, early_blobs)
            if self._is_ready(gathering, early_blobs, digest):
                return self._finish_graph(gathering)
        self._is_compared = True
        if self._contents.is_docker_archive:
            return self._docker.build_graph(self._select, self._platforms, early_blobs)
        self._contents.require_index()
        made: dict[str, bytes] = {}
        if others := self._docker.find_additional_images(early_blobs):
            if not self._manifests.is_complete:
                msg = f"more than {limits.MAX_GRAPH_BYTES} bytes of manifests come before manifest.json"
                raise UnsupportedError(msg, hint=READ_FROM_FILE_HINT)
            entries, made = self._docker.synthesize_manifests(others, early_blobs)
            report_only_in_manifest_json(others)
            self._manifests.add(made)
            gathering = IndexGraphBuilder(self._select, self._platforms, self._referrers)
            gathering.begin([*self._index.entries, *entries], self._index.annotations, made)
        elif self._as_docker:
            report_no_manifest_json()
            gathering.begin(*self._index)
        if others or self._as_docker:
            self._selection_error = None
            self._manifests.supply_buffered(gathering, early_blobs)
        while (
            self._selection_error is None
            and (needed := self._manifests.next_needed(gathering, early_blobs)) is not None
        ):
            self._check_missing(gathering, needed)
            gathering.mark_missing(needed.digest)
            # Once an index is known to be lacking, it may be decided which of the held manifests are wanted.
            self._manifests.supply_buffered(gathering, early_blobs)
        return self._finish_graph(gathering, made)

    def _check_missing(self, builder: IndexGraphBuilder, needed: Descriptor) -> None:
        self._check_not_corrupt([needed.digest])
        if needed.digest in self._delivered:
            # It did not begin like a JSON object, and went to the sink as a blob.
            kind = "config" if builder.is_config(needed.digest) else "manifest"
            msg = f"{needed.digest} is listed as a {kind}, and is not a JSON object"
            raise ArchiveError(msg)

    def _finish_graph(self, builder: IndexGraphBuilder, synthesized: Collection[str] = ()) -> Graph:
        if self._selection_error is not None:
            raise self._selection_error
        self._manifests.clear()
        graph = replace(builder.build(), has_plain_layers=self._docker.is_docker_save)
        # What only `manifest.json` lists is known when all blobs have passed.
        there = self._contents.blobs.keys() - self._buffer.corrupt.keys()
        graph = mark_synthesized(graph, [digest for digest in synthesized if digest not in there])
        report_duplicate_names(graph)
        return graph

    def _is_ready(self, builder: IndexGraphBuilder, early_blobs: EarlyBlobs, last_digest: str | None) -> bool:
        """Say whether the graph is complete, and manifest.json can add nothing, or comes too late to do so."""
        if self._contents.index_json is None or self._as_docker:
            return False
        if self._selection_error is None:
            self._manifests.supply_buffered(builder, early_blobs, last_digest)
            if self._manifests.next_needed(builder, early_blobs) is not None:
                return False
        if self._started_blob is not None or self.volume is not None or self._tail_offsets:
            return True
        # In our own archives the two come first; in those of `docker save` a file named `repositories` comes last.
        return not self._is_index_last and self._docker.images is not None and not self._docker.may_list_more_images()

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
        self._check_not_corrupt(by_digest)
        for digest, content in self._buffer.buffered.items():
            self._delivered.add(digest)
            if digest in by_digest or self._includes_unneeded:
                unknown = Descriptor(UNKNOWN_MEDIA_TYPE, digest, len(content))
                yield blob_from_bytes(by_digest.get(digest, unknown), content)
        self._buffer.buffered.clear()
        for entry, digest, content_of in self._read_remaining():
            if digest in self._abandoned:
                msg = f"{digest} may hang on an image, and comes after layers that could not wait for it"
                raise UnsupportedError(
                    msg, hint="push from a file instead of a pipe (-i FILE), or name one IMAGE to push to"
                )
            descriptor = by_digest.get(digest)
            if self._consume_internally(entry, digest, is_wanted=descriptor is not None or self._includes_unneeded):
                continue
            self._delivered.add(digest)
            if descriptor is None and self._includes_unneeded:
                descriptor = Descriptor(UNKNOWN_MEDIA_TYPE, digest, entry.size)
            if descriptor is not None:
                yield self._blob(descriptor, entry, content_of)
        with files.disk_errors(self._what):
            self._reader.drain()
        if self.volume is not None and self._includes_unneeded:
            check_parts(self.volume, self._contents)
        if not self._is_compared:
            self._docker.check_late_manifest_json()

    def _check_not_corrupt(self, wanted: Collection[str]) -> None:
        for digest in wanted:
            if digest in self._buffer.corrupt:
                raise self._buffer.corrupt[digest]

    def _consume_internally(self, entry: TarEntry, digest: str, *, is_wanted: bool) -> bool:
        """Read a blob that stands there once more, or a manifest by which images are compared; False for others."""
        if digest in self._delivered:
            self._check_duplicate(entry, digest)
            return True
        if is_wanted or not self._docker.is_needed_for_comparison(digest, entry.size):
            return False
        self._delivered.add(digest)
        self._docker.add_manifest(digest, self._read(entry, limits.MAX_MANIFEST))
        return True

    def _blob(self, descriptor: Descriptor, entry: TarEntry, content_of: Callable[[], Iterator[Chunk]]) -> Blob:
        """Give a blob, or the rest of one.

        Raises:
            ArchiveError: that does not end where the blob does.
        """
        if self._tail_offsets is None:
            return Blob(descriptor, content_of, reopenable=False)
        if start := self._find_start(entry):
            if start + entry.size != descriptor.size:
                msg = f"{printable(entry.name)!r} in the archive is not the rest of a blob of {descriptor.size} bytes"
                raise ArchiveError(msg)
            return Blob(descriptor, content_of, reopenable=False, is_interruptible=True, offset=start)
        # What is there of it need not be written again, though it comes.
        open_at = partial(_chunks_from, content_of)
        return Blob(descriptor, content_of, reopenable=False, open_at=open_at, is_interruptible=True)

    def _find_start(self, entry: TarEntry) -> int:
        """Say where an entry begins in its blob: 0, unless it is one of those of which only the rest comes."""
        if not self._tail_offsets or self._includes_unneeded or entry.kind != "file":
            return 0
        part = parse_part_name(normalize_name(entry.name))
        return part[1] if part and not part[2] and self._tail_offsets.get(part[0]) == part[1] else 0

    def is_missing(self, descriptor: Descriptor) -> bool | None:
        """Say whether the archive has no such blob; that is known when all of it has passed.

        A docker-archive has names of its own for blobs, and its graph is made of what it has.
        """
        if not self._has_ended or self._contents.index_json is None or self._contents.is_docker_archive:
            return None
        return descriptor.digest not in self._contents.blobs

    def find_entries_with(self, image_id: str) -> list[Descriptor]:
        """Return the entries of `index.json` that lead to an image with this ID, as far as is known by now."""
        comparison = self._docker.comparison
        return comparison.find_entries_with(image_id) if comparison is not None else []

    @property
    def is_docker_save(self) -> bool:
        """Whether `docker save` wrote the archive. From a pipe this may be known only after the graph."""
        return self._docker.is_docker_save

    @property
    def contents(self) -> ArchiveContents:
        """What the archive was seen to contain so far."""
        return self._contents

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_document(self, builder: IndexGraphBuilder, entry: TarEntry, early_blobs: EarlyBlobs) -> None:
        """Read what names the images, and pass over what does not belong to an image archive."""
        name = normalize_name(entry.name)
        if entry is self._contents.index_json:
            self._index = index = parse_index_json(self._read(entry, limits.MAX_MANIFEST))
            self.volume = parse_volume(index.annotations) if index.annotations else None
            self._tail_offsets = parse_partial_blobs(index.annotations) if index.annotations else None
            self._docker.start_comparison(index.entries)
            self._is_index_last = bool(self._contents.blobs)
            if not self._as_docker:
                self._begin_graph(builder)
        elif entry is self._contents.manifest_json:
            self._docker.images = parse_manifest_json(self._read(entry, limits.MAX_MANIFEST))
        elif entry.kind == "file" and name in self._contents.docker_files:
            self._docker.add_entry(name, entry.size, self._content(entry)(), early_blobs)
        else:
            self._check_other_entry(entry)

    def _begin_graph(self, builder: IndexGraphBuilder) -> None:
        """Choose images of `index.json`; that none can be chosen is not final before `manifest.json` has passed."""
        try:
            builder.begin(*self._index)
        except (NotFoundError, UsageError) as error:
            self._selection_error = error

    def _check_other_entry(self, entry: TarEntry) -> None:
        """Check what may come at any place: `oci-layout`, or a part of a blob that has the rest in other volumes.

        Raises:
            ArchiveError: `oci-layout` is malformed, or of an unknown version.
        """
        if entry is self._contents.oci_layout:
            check_layout_file(self._read(entry, limits.MAX_LAYOUT_FILE))
        elif self._includes_unneeded and entry.kind == "file":
            self._parts.check_entry(normalize_name(entry.name), self._content(entry)())

    def _handle_early_blob(
        self, builder: IndexGraphBuilder, entry: TarEntry, digest: str, early_blobs: EarlyBlobs
    ) -> None:
        """Decide what a blob that passes before the graph is known is for."""
        if digest in self._delivered or digest in self._buffer.buffered:
            self._check_duplicate(entry, digest)
        elif builder.is_needed(digest) and not builder.is_config(digest):
            self._delivered.add(digest)
            builder.check_size(digest, entry.size)
            raw = self._read(entry, limits.MAX_MANIFEST)
            builder.supply(digest, raw)
            self._manifests.keep(digest, raw)
            self._docker.add_manifest(digest, raw, builder.document(digest))
        else:
            self._buffer_or_write(builder, entry, digest, early_blobs)

    def _buffer_or_write(
        self, builder: IndexGraphBuilder, entry: TarEntry, digest: str, early_blobs: EarlyBlobs
    ) -> None:
        descriptor = Descriptor(UNKNOWN_MEDIA_TYPE, digest, entry.size)
        chunks = self._content(entry)()
        first = bytes(next(chunks, b""))
        whole = len(first) == entry.size
        looks_like_json = first.lstrip()[:1] == b"{" and entry.size <= limits.MAX_CONFIG
        budget = limits.MAX_BUFFERED_JSON - self._buffer.buffered_bytes
        if looks_like_json and entry.size <= min(limits.MAX_MANIFEST, budget):
            content = first if whole else first + b"".join(bytes(chunk) for chunk in chunks)
            try:
                # It is verified now, since later nobody knows any more whether it was.
                self._buffer.buffered[digest] = read_all(verify_chunks([content], descriptor))
            except IntegrityError as error:
                self._buffer.corrupt[digest] = error
                self._write_early(Blob(descriptor, lambda: iter([content]), reopenable=False), early_blobs)
            else:
                self._buffer.buffered_bytes += entry.size
                self._docker.add_manifest(digest, self._buffer.buffered[digest])
            return
        builder.check_choice()
        if self._can_finish_early(builder, early_blobs):
            self._started_blob = entry, digest, itertools.chain([first], chunks)
            return
        if (codec := detect_codec(first[: limits.KIB])) is not NONE:
            self._buffer.codecs[digest] = codec
        rest = itertools.chain([first], chunks)
        blob = Blob(descriptor, lambda: rest, reopenable=False, can_be_plain_layer=self._may_be_bare(entry))
        self._write_early(blob, early_blobs)
        if looks_like_json and digest not in self._buffer.corrupt:
            self._buffer.spilled[digest] = descriptor

    def _may_be_bare(self, entry: TarEntry) -> bool:
        """Say whether `docker save` may have written an entry, as far as is known by now."""
        is_oci = self._contents.oci_layout is not None or self._contents.index_json is not None
        return self._docker.is_docker_save or not (is_oci or entry.is_read_only)

    def _write_early(self, blob: Blob, early_blobs: EarlyBlobs) -> None:
        """Hand a blob on. If its bytes are wrong, this matters only if an image needs it, as in a file.

        Raises:
            IntegrityError: the bytes are wrong, and the sink cannot take them back.
        """
        self._delivered.add(blob.descriptor.digest)
        try:
            early_blobs.write(blob)
        except IntegrityError as error:
            if isinstance(early_blobs, EarlyWriter) and not early_blobs.can_write_early():
                raise
            self._buffer.corrupt[blob.descriptor.digest] = error

    def _can_finish_early(self, builder: IndexGraphBuilder, early_blobs: EarlyBlobs) -> bool:
        """Say whether the graph is complete if nothing more comes that may hang on an image, or is listed elsewhere.

        That is for who cannot take this blob before the graph is known: an entry of the index may be of something that
        is not in the archive. Whoever can, waits for it to the end. What only `manifest.json` lists is waited for if
        that has passed.

        Raises:
            UnsupportedError: images that only `manifest.json` lists cannot be waited for.
        """
        if self._contents.index_json is None or self._as_docker:
            return False
        must_begin = isinstance(early_blobs, EarlyWriter) and not early_blobs.can_write_early()
        if self._docker.may_list_more_images():
            if must_begin:
                msg = "manifest.json lists images that index.json does not, and their repositories are not known yet"
                raise UnsupportedError(msg, hint="name one IMAGE to push to, or push from a file instead of a pipe")
            return False
        if self._selection_error is not None:
            return True
        if must_begin:
            self._abandoned |= builder.skip_candidates()
        return self._manifests.next_needed(builder, early_blobs) is None

    def _read_remaining(self) -> Iterator[tuple[TarEntry, str, Callable[[], Iterator[Chunk]]]]:
        if self._started_blob is not None:
            begun, of, rest = self._started_blob
            self._started_blob = None
            yield begun, of, lambda: rest
        for entry in self._read_entries():
            digest = self._contents.add(entry)
            if digest is None and self._find_start(entry) and (part := parse_part_name(normalize_name(entry.name))):
                digest = part[0]
            if digest is not None:
                yield entry, digest, self._content(entry)
            elif entry is self._contents.manifest_json:
                self._docker.images = parse_manifest_json(self._read(entry, limits.MAX_MANIFEST))
            else:
                self._check_other_entry(entry)

    def _read_entries(self) -> Iterator[TarEntry]:
        # Not `yield from`: that would end the reader together with this generator, and a second one goes on later.
        while True:
            with files.disk_errors(self._what):
                entry = next(self._entries, None)
            if entry is None:
                self._has_ended = True
                return
            yield entry

    def _content(self, entry: TarEntry) -> _EntryContent:
        return _EntryContent(self._reader, entry, self._what)

    def _read(self, entry: TarEntry, limit: int) -> bytes:
        with files.disk_errors(self._what):
            return self._reader.read(entry, limit)

    def _check_duplicate(self, entry: TarEntry, digest: str) -> None:
        for _ in verify_chunks(self._content(entry)(), Descriptor(UNKNOWN_MEDIA_TYPE, digest, entry.size)):
            pass


def open_input_stream(path: Path, cancelled: threading.Event) -> InputStream:
    """Open something to read it once, until `cancelled` is set.

    Raises:
        NotFoundError: it is not there.
        UsageError: it is a terminal.
        LocalDiskError: it cannot be read.
    """
    with files.disk_errors(f"cannot read {path}"):
        file = io.BufferedReader(files.CancellableInput(path, cancelled), 64 * limits.KIB)
    if file.isatty():
        file.close()
        msg = f"{path} is a terminal, from which no archive is read"
        raise UsageError(msg)
    return file


def _chunks_from(content_of: Callable[[], Iterator[Chunk]], offset: int) -> Iterator[Chunk]:
    return chunks_from(content_of(), offset)


class _EntryContent:
    """The way to an entry's bytes, once."""

    def __init__(self, reader: TarReader, entry: TarEntry, what: str) -> None:
        self._reader = reader
        self._entry = entry
        self._what = what

    def __call__(self) -> Iterator[Chunk]:
        with files.disk_errors(self._what):
            yield from self._reader.read_chunks(self._entry)
