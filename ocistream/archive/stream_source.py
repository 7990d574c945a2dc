"""Source for an image archive from a pipe: one pass, bounded memory, no temporary files.

A blob before `index.json` is buffered if it is small JSON. Otherwise it goes to the destination at once, and is read
back if it turns out to be a manifest. `docker_stream` handles docker-archives.
"""

from __future__ import annotations

import io
import itertools
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
from ocistream.archive.docker_stream import READ_FROM_FILE_HINT, DockerStreamReader
from ocistream.archive.stream_buffer import StreamBuffer
from ocistream.archive.streamed_walk import StreamedWalk
from ocistream.archive.tar import InputStream, TarEntry, TarReader
from ocistream.archive.volume_parts import StreamedPartChecker, check_parts
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from ocistream.layout.image_selection import report_duplicate_names
from ocistream.layout.index import (
    ImageSelector,
    LayoutIndex,
    check_layout_file,
    no_image_error,
    parse_index_json,
    select_every_image,
)
from ocistream.layout.index_walk import IndexWalk
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.digest import size_error
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import printable
from ocistream.oci.volumes import parse_part_name, parse_volume
from ocistream.streams import files
from ocistream.streams.chunks import chunks_from, read_all, verify_chunks
from ocistream.streams.compression import NONE, detect_codec
from ocistream.transfer.interfaces import Access, Blob, ByteRange
from ocistream.transfer.partial_blobs import parse_partial_blobs
from ocistream.transfer.verified_blobs import blob_from_bytes

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from ocistream.errors import OcistreamError
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph
    from ocistream.oci.referrers import ReferrerMode
    from ocistream.oci.volumes import Volume
    from ocistream.oci.walk import Need
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import BlobPart, EarlyBlobs

__all__ = [
    "ArchiveStreamSource",
    "open_input_stream",
]


class ArchiveStreamSource:
    """Reads images from a stream that can be read once."""

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
        """Read from the position of `file`, later. `what` names the stream in errors.

        With `include_unneeded`, `blobs` also yields blobs that no image needs. With `as_docker`, the images are those
        of `manifest.json`, even if the archive has an `index.json` too.
        """
        self._file = file
        self._reader = TarReader(file, what)
        self._entries = iter(self._reader)
        self._what = f"cannot read {what}"
        self._select = select
        self._platforms = platforms
        self._referrers: ReferrerMode = referrers
        self._parts = StreamedPartChecker(what)
        #: The volume that this archive is, or None. Known once the index was read.
        self.volume: Volume | None = None
        self._includes_unneeded = include_unneeded
        self._as_docker = as_docker
        self._contents = ArchiveContents(as_docker=as_docker)
        self._index = LayoutIndex([], {})
        self._index_walk = IndexWalk(self._index, select, platforms, referrers)
        self._walk: StreamedWalk[Graph] | None = None
        self._is_index_last = False
        #: The error of the selection from `index.json`. `manifest.json` may still list the image.
        self._selection_error: OcistreamError | None = None
        #: Whether the graph has all images of `manifest.json`.
        self._is_compared = False
        self._buffer = StreamBuffer(self._contents)
        self._docker = DockerStreamReader(self._buffer)
        #: Whether every entry was read.
        self._has_ended = False
        #: Blobs of which the archive has only the tail, by digest: the offset where it starts. None if the archive was
        #: not sent by a `copy --via` that can resume.
        self._tail_offsets: dict[str, int] | None = None
        #: A blob that was already started when the graph became complete without the abandoned candidates.
        self._started_blob: tuple[TarEntry, str, Iterator[Chunk]] | None = None
        self._abandoned: set[str] = set()

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:
        """Read until the index and every manifest below the selected images are known.

        Images that only `manifest.json` lists are known after the whole archive was read.
        """
        for entry in self._read_entries():
            digest = self._contents.add(entry)
            if digest is not None:
                self._handle_early_blob(entry, digest, early_blobs)
            else:
                self._read_document(entry, early_blobs)
            if self._is_ready():
                return self._finish_graph()
        self._is_compared = True
        if self._contents.is_docker_archive:
            return self._docker.build_graph(self._select, self._platforms, early_blobs)
        self._contents.require_index()
        synthesized: dict[str, bytes] = {}
        if additional := self._docker.find_additional_images(early_blobs):
            if not self._buffer.has_all_manifests:
                msg = f"more than {limits.MAX_GRAPH_BYTES} bytes of manifests come before manifest.json"
                raise UnsupportedError(msg, hint=READ_FROM_FILE_HINT)
            entries, synthesized = self._docker.synthesize_manifests(additional, early_blobs)
            report_only_in_manifest_json(additional)
            self._buffer.add_synthesized(synthesized)
            self._index = LayoutIndex([*self._index.entries, *entries], self._index.annotations)
            self._start_walk(early_blobs, synthesized)
        elif self._as_docker:
            report_no_manifest_json()
            self._start_walk(early_blobs)
        while self._walk is not None and self._walk.needs:
            need = next(iter(self._walk.needs.values()))
            self._check_missing(need)
            self._walk.answer(need, None)
        return self._finish_graph(synthesized)

    def _find(self, early_blobs: EarlyBlobs, need: Need) -> bytes | None:
        """Return a document that was read already, or None."""
        raw = self._buffer.find(need)
        if raw is None and (spilled := self._buffer.spilled.get(need.digest)) is not None:
            raw = early_blobs.read_back(spilled)
            self._docker.add_manifest(need.digest, raw)
        return raw

    def _find_document(self, digest: str) -> Document | None:
        return self._index_walk.document(digest)

    def _check_missing(self, need: Need) -> None:
        self._check_not_corrupt([need.digest])
        if need.digest in self._buffer.delivered and not need.is_candidate:
            # The blob did not look like a JSON object, and went to the destination as a blob.
            kind = "config" if need.is_config else "manifest"
            msg = f"{need.digest} is listed as a {kind}, and is not a JSON object"
            raise ArchiveError(msg)

    def _finish_graph(self, synthesized: Collection[str] = ()) -> Graph:
        graph = self._walk.result if self._walk is not None else None
        if self._selection_error is not None or graph is None:
            raise self._selection_error or no_image_error()
        self._buffer.drop_manifests()
        # The walk uses more memory than the graph.
        self._index = LayoutIndex([], {})
        self._index_walk, self._walk = IndexWalk(self._index, self._select, self._platforms, self._referrers), None
        graph = replace(graph, has_plain_layers=self._docker.is_docker_save)
        # Synthesized manifests are known only after all blobs were read.
        valid_digests = self._contents.blobs.keys() - self._buffer.corrupt.keys()
        graph = mark_synthesized(graph, [digest for digest in synthesized if digest not in valid_digests])
        report_duplicate_names(graph)
        return graph

    def _is_ready(self) -> bool:
        """Return whether the graph is complete, and `manifest.json` cannot add images any more."""
        if self._contents.index_json is None or self._as_docker or self._is_incomplete():
            return False
        if self._started_blob is not None or self.volume is not None or self._tail_offsets:
            return True
        # Our own archives begin with both files. Those of `docker save` end with a file named `repositories`.
        return not self._is_index_last and self._docker.images is not None and not self._docker.may_list_more_images()

    def _is_incomplete(self) -> bool:
        """Return whether the graph needs further documents."""
        return self._walk is not None and self._walk.result is None

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Yield the wanted blobs as they arrive. The archive is always read to its end.

        Raises:
            ArchiveError: the archive is truncated.
            IntegrityError: a wanted blob that came before the graph is corrupt, or a digest occurs twice with other
                bytes the second time.
            UnsupportedError: a possible referrer arrived after the graph was completed without it, or a late
                `manifest.json` lists other images.
        """
        by_digest = {descriptor.digest: descriptor for descriptor in wanted}
        self._check_not_corrupt(by_digest)
        for digest, content in self._buffer.buffered.items():
            self._buffer.delivered.add(digest)
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
            self._buffer.delivered.add(digest)
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
        """Consume a duplicate blob, or a manifest for the comparison of the indexes. Return False for other blobs."""
        if digest in self._buffer.delivered:
            self._check_duplicate(entry, digest)
            return True
        if is_wanted or not self._docker.is_needed_for_comparison(digest, entry.size):
            return False
        self._buffer.delivered.add(digest)
        self._docker.add_manifest(digest, self._read(entry, limits.MAX_MANIFEST))
        return True

    def _blob(self, descriptor: Descriptor, entry: TarEntry, content_of: Callable[[], Iterator[Chunk]]) -> Blob:
        """Return a blob, or the tail of a blob."""
        start = self._find_start(entry)
        if start and start + entry.size != descriptor.size:
            msg = f"{printable(entry.name)!r} in the archive is not the rest of a blob of {descriptor.size} bytes"
            raise ArchiveError(msg)
        rest = ByteRange(start, descriptor.size) if start else None
        return Blob(descriptor, partial(_chunks_from, content_of, start), self._access, rest)

    @property
    def _access(self) -> Access:
        return Access.ONCE if self._tail_offsets is None else Access.RESUMABLE

    def _find_start(self, entry: TarEntry) -> int:
        """Return where an entry starts in its blob: 0, unless the archive has only the tail of the blob."""
        if not self._tail_offsets or self._includes_unneeded or entry.kind != "file":
            return 0
        # A tail has the name of a volume part, but no checksum: such an archive is only sent, never kept.
        part = parse_part_name(normalize_name(entry.name))
        return part[1] if part and not part[2] and self._tail_offsets.get(part[0]) == part[1] else 0

    def is_missing(self, descriptor: Descriptor) -> bool | None:
        """Return whether the archive does not have the blob, or None before the whole archive was read.

        A docker-archive has its own names for blobs, and its graph is built from the blobs that it has.
        """
        if not self._has_ended or self._contents.index_json is None or self._contents.is_docker_archive:
            return None
        return descriptor.digest not in self._contents.blobs

    def parts(self, descriptor: Descriptor) -> Sequence[BlobPart]:  # noqa: ARG002 - see below
        """Return nothing: a pipe ends before it is known which of a blob's parts it has."""
        return ()

    def find_entries_with(self, image_id: str) -> list[Descriptor]:
        """Return the entries of `index.json` that lead to an image with this ID, as far as is known now."""
        return self._docker.comparison.find_entries_with(image_id)

    @property
    def is_docker_save(self) -> bool:
        """Whether `docker save` wrote the archive. From a pipe this may be known only after the graph."""
        return self._docker.is_docker_save

    @property
    def contents(self) -> ArchiveContents:
        """The entries that were read so far."""
        return self._contents

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_document(self, entry: TarEntry, early_blobs: EarlyBlobs) -> None:
        """Read a file that names images or belongs to a docker-archive, and skip other files."""
        name = normalize_name(entry.name)
        if entry is self._contents.index_json:
            self._index = index = parse_index_json(self._read(entry, limits.MAX_MANIFEST))
            self.volume = parse_volume(index.annotations) if index.annotations else None
            self._tail_offsets = parse_partial_blobs(index.annotations) if index.annotations else None
            self._docker.start_comparison(index.entries, self._find_document)
            self._is_index_last = bool(self._contents.blobs)
            if not self._as_docker:
                self._start_walk(early_blobs)
        elif entry is self._contents.manifest_json:
            self._docker.images = parse_manifest_json(self._read(entry, limits.MAX_MANIFEST))
        elif entry.kind == "file" and name in self._contents.docker_files:
            self._docker.add_entry(name, entry.size, self._content(entry)(), early_blobs)
        else:
            self._check_other_entry(entry)

    def _start_walk(self, early_blobs: EarlyBlobs, image_digests: Collection[str] = ()) -> None:
        """Select images of `index.json`, and walk to the manifests that were already read.

        A failed selection is final only after `manifest.json` was read.
        """
        self._index_walk = IndexWalk(
            self._index, self._select, self._platforms, self._referrers, image_digests=image_digests
        )
        self._walk = None
        try:
            self._walk = StreamedWalk(self._index_walk.run(), partial(self._find, early_blobs))
        except (NotFoundError, UsageError) as error:
            self._selection_error = error
        else:
            self._selection_error = None
            self._walk.answer_found()

    def _check_other_entry(self, entry: TarEntry) -> None:
        """Check a file that may come at any place: `oci-layout`, or a part of a blob that is split over volumes."""
        if entry is self._contents.oci_layout:
            check_layout_file(self._read(entry, limits.MAX_LAYOUT_FILE))
        elif self._includes_unneeded and entry.kind == "file":
            self._parts.check_entry(normalize_name(entry.name), self._content(entry)())

    def _handle_early_blob(self, entry: TarEntry, digest: str, early_blobs: EarlyBlobs) -> None:
        """Answer a need with a blob that arrives before the graph is known, or buffer or write the blob."""
        need = self._walk.needs.get(digest) if self._walk is not None else None
        if digest in self._buffer.delivered or digest in self._buffer.buffered:
            self._check_duplicate(entry, digest)
        elif self._walk is None or need is None:
            self._buffer_or_write(entry, digest, early_blobs)
        elif need.is_config or need.is_candidate:
            self._buffer_or_write(entry, digest, early_blobs)
            if (raw := self._find(early_blobs, need)) is not None:
                self._walk.answer(need, raw)
        else:
            if entry.size != need.descriptor.size:
                raise size_error(need.descriptor, entry.size)
            raw = self._read(entry, limits.MAX_MANIFEST)
            self._buffer.deliver_manifest(digest, raw)
            self._walk.send(need, raw)
            # The comparison finds children in the buffer, from which the walk then takes them.
            self._docker.add_manifest(digest, raw)
            self._walk.answer_found()

    def _buffer_or_write(self, entry: TarEntry, digest: str, early_blobs: EarlyBlobs) -> None:
        descriptor = Descriptor(UNKNOWN_MEDIA_TYPE, digest, entry.size)
        chunks = self._content(entry)()
        first_chunk = bytes(next(chunks, b""))
        is_complete = len(first_chunk) == entry.size
        looks_like_json = first_chunk.lstrip()[:1] == b"{" and entry.size <= limits.MAX_CONFIG
        available = limits.MAX_BUFFERED_JSON - self._buffer.buffered_bytes
        if looks_like_json and entry.size <= min(limits.MAX_MANIFEST, available):
            content = first_chunk if is_complete else first_chunk + b"".join(bytes(chunk) for chunk in chunks)
            try:
                # Verify the blob now: later it is not known whether it was verified.
                self._buffer.buffered[digest] = read_all(verify_chunks([content], descriptor))
            except IntegrityError as error:
                self._buffer.corrupt[digest] = error
                self._write_early(blob_from_bytes(descriptor, content), early_blobs)
            else:
                self._buffer.buffered_bytes += entry.size
                self._docker.add_manifest(digest, self._buffer.buffered[digest])
            return
        if self._index_walk.selection_error is not None:
            # The selection from the named images failed, and the other entries cannot be awaited.
            raise self._index_walk.selection_error
        if self._can_finish_early(early_blobs):
            self._started_blob = entry, digest, itertools.chain([first_chunk], chunks)
            return
        if (codec := detect_codec(first_chunk[: limits.KIB])) is not NONE:
            self._buffer.codecs[digest] = codec
        all_chunks = itertools.chain([first_chunk], chunks)
        blob = Blob(descriptor, partial(_chunks_from, lambda: all_chunks, 0), self._access)
        self._write_early(blob, early_blobs, can_be_plain_layer=self._may_be_bare(entry))
        if looks_like_json and digest not in self._buffer.corrupt:
            self._buffer.spilled[digest] = descriptor

    def _may_be_bare(self, entry: TarEntry) -> bool:
        """Return whether `docker save` may have written an entry, as far as is known now.

        Its plain layers are compressed at once. Read-only entries are left alone: containerd's exports have them.
        """
        is_oci = self._contents.oci_layout is not None or self._contents.index_json is not None
        return self._docker.is_docker_save or not (is_oci or entry.is_read_only)

    def _write_early(self, blob: Blob, early_blobs: EarlyBlobs, *, can_be_plain_layer: bool = False) -> None:
        """Write a blob to the destination. As in a file, corrupt bytes matter only if an image needs the blob.

        If the destination cannot remove the blob again, the IntegrityError is raised at once.
        """
        self._buffer.delivered.add(blob.descriptor.digest)
        error = early_blobs.write(blob, can_be_plain_layer=can_be_plain_layer)
        if error is not None:
            self._buffer.corrupt[blob.descriptor.digest] = error

    def _can_finish_early(self, early_blobs: EarlyBlobs) -> bool:
        """Return whether the graph is complete if no referrer and no other image follows.

        An entry of the index may belong to an image that the archive lacks, so candidates may never arrive. A
        destination that can write blobs early waits for them to the end. For another one, candidates are abandoned once
        the images are complete. `manifest.json` is awaited only if it was read already.
        """
        if self._contents.index_json is None or self._as_docker:
            return False
        must_begin = not early_blobs.accepts_early
        if self._docker.may_list_more_images():
            if must_begin:
                msg = "manifest.json lists images that index.json does not, and their repositories are not known yet"
                raise UnsupportedError(msg, hint="name one IMAGE to push to, or push from a file instead of a pipe")
            return False
        if must_begin and self._walk is not None and self._index_walk.is_chosen:
            self._abandoned.update(self._walk.skip_candidates())
        return not self._is_incomplete()

    def _read_remaining(self) -> Iterator[tuple[TarEntry, str, Callable[[], Iterator[Chunk]]]]:
        if self._started_blob is not None:
            started, started_digest, rest = self._started_blob
            self._started_blob = None
            yield started, started_digest, lambda: rest
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
        # Not `yield from`: that would close the reader with this generator, and a second generator continues to read
        # it.
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
    """Open a pipe or device for one pass. Reading ends when `cancelled` is set.

    Raises:
        NotFoundError: the file does not exist.
        UsageError: the file is a terminal.
        LocalDiskError: the file cannot be read.
    """
    with files.disk_errors(f"cannot read {path}"):
        file = io.BufferedReader(files.CancellableInput(path, cancelled), 64 * limits.KIB)
    if file.isatty():
        file.close()
        msg = f"{path} is a terminal, from which no archive is read"
        raise UsageError(msg)
    return file


def _chunks_from(content_of: Callable[[], Iterator[Chunk]], start: int = 0, offset: int = 0) -> Iterator[Chunk]:
    """Return the bytes of a blob from byte `offset` on; the content begins at byte `start` of the blob."""
    chunks = content_of()
    return chunks_from(chunks, offset - start) if offset > start else chunks


class _EntryContent:
    """A callable that returns an entry's bytes. It can be called once."""

    def __init__(self, reader: TarReader, entry: TarEntry, what: str) -> None:
        self._reader = reader
        self._entry = entry
        self._what = what

    def __call__(self) -> Iterator[Chunk]:
        with files.disk_errors(self._what):
            yield from self._reader.read_chunks(self._entry)
