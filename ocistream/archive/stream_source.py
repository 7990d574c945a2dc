"""Source for an image archive from a pipe: one pass, bounded memory, no temporary files.

A blob before `index.json` is buffered if it is small JSON. Otherwise it goes to the destination at once, and is read
back if it turns out to be a manifest. The layers of a docker-archive usually come before `manifest.json`: a file that
looks like a layer goes to the destination too, and its name is matched with its digest at the end.
"""

from __future__ import annotations

import io
import itertools
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits
from ocistream.archive.contents import normalize_name
from ocistream.archive.source import DOCUMENT_LIMITS, ArchiveSource
from ocistream.archive.tar_reader import ARCHIVE_ON_STDIN, InputStream, TarEntry, TarReader
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from ocistream.layout.image_selection import ALL_IMAGES
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor, digest_error
from ocistream.oci.omitted_blobs import parse_partial_blobs
from ocistream.oci.reference import printable
from ocistream.oci.volumes import parse_checksum_line, parse_part_name, part_error, part_name
from ocistream.streams import files
from ocistream.streams.chunks import HashedChunks, chunks_from, peek_chunks, read_all, verify_chunks
from ocistream.streams.compression import NONE, Codec, describe_layer, detect_codec, is_probably_json, is_probably_layer
from ocistream.transfer.interfaces import Access, Blob, ByteRange
from ocistream.transfer.verified_blobs import blob_from_bytes

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ocistream.archive.contents import Extent
    from ocistream.errors import OcistreamError
    from ocistream.layout.image_selection import Selection
    from ocistream.layout.index import LayoutIndex
    from ocistream.oci.graph import Graph
    from ocistream.oci.walk import Need
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import EarlyBlobs


class _Json(NamedTuple):
    """A JSON blob that came before the graph: it is in memory, or was written to the destination.

    `is_in_graph` says that the graph has the same bytes, as a manifest.
    """

    content: bytes | Descriptor
    is_in_graph: bool = False


_PLAIN_FILE_HINT: Final = "read it from a file instead of a pipe or a compressed file"


class ArchiveStreamSource(ArchiveSource):
    """Reads images from a stream that can be read once."""

    concurrent = False
    _no_layer_hint = f"if it is a layer in an uncommon format, {_PLAIN_FILE_HINT}"

    def __init__(
        self,
        file: InputStream,
        selection: Selection = ALL_IMAGES,
        *,
        what: str = ARCHIVE_ON_STDIN,
        as_docker: bool = False,
    ) -> None:
        """Read from the position of `file`, later. `what` names the stream in errors."""
        super().__init__(what, selection, as_docker=as_docker)
        self._file = file
        self._reader = TarReader(file, what)
        self._entries = iter(self._reader)
        #: The digests of parts of blobs that are split, until their checksums arrive.
        self._part_digests: dict[tuple[str, int], str] = {}
        #: Accepts blobs while the graph is not known.
        self._early_blobs: EarlyBlobs | None = None
        #: By the offset of an entry that came before the graph: JSON, the blob that a Docker file became at the
        #: destination, or the codec of a compressed blob.
        self._early_entries: dict[int, _Json | Descriptor | Codec] = {}
        #: By offset: blobs whose bytes do not match the digest in their name.
        self._corrupt: dict[int, IntegrityError] = {}
        #: The total size of the JSON in memory that the graph does not have too.
        self._buffered_bytes = 0
        self._docker_file_count = 0
        self._is_index_last = False
        #: The error of the selection from `index.json`. `manifest.json` may still list the image.
        self._selection_error: OcistreamError | None = None
        #: Blobs of which the archive has only the rest, by digest: the offset where it starts. None if the archive was
        #: not sent by a `copy --via` that can resume.
        self._rest_offsets: dict[str, int] | None = None
        #: A blob that was already started when the graph became complete without the abandoned candidates.
        self._started_blob: tuple[TarEntry, str, Iterator[Chunk]] | None = None
        self._abandoned: set[str] = set()

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:
        """Read until the index and every manifest below the selected images are known.

        Images that only `manifest.json` lists are known after the whole archive was read.
        """
        self._early_blobs = early_blobs
        graph = self._read_graph()
        if self._comparison is not None:
            # The graph may have manifests that were read back from the destination.
            for digest in tuple(self._comparison.needs):
                self._comparison.search(digest)
        # The walk uses more memory than the graph, and no other graph will be built.
        self._early_entries = {
            offset: entry
            for offset, entry in self._early_entries.items()
            if isinstance(entry, _Json) and not entry.is_in_graph
        }
        self._index_walk = self._walk = self._early_blobs = None
        return graph

    def _read_graph(self) -> Graph:
        for entry in self._read_entries():
            digest = self.contents.add(entry)
            if digest is None:
                self._read_other(entry)
            else:
                self._read_early_blob(entry, digest)
            if self._is_ready():
                if self._selection_error is not None:
                    raise self._selection_error
                assert self._walk is not None, "it was started"  # noqa: S101 - else the selection has failed
                return self._complete(self._walk.finish(self.read))
        return self._resolve()

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Yield the wanted blobs as they arrive. The archive is always read to its end.

        Raises:
            ArchiveError: the archive is truncated.
            IntegrityError: a wanted blob that came before the graph is corrupt, or a digest occurs twice with other
                bytes the second time.
            UnsupportedError: a possible referrer arrived after the graph was completed without it, or a late
                `manifest.json` lists other images.
        """
        # At the end of the archive, the graph has all images of `manifest.json`.
        is_compared = self._has_ended
        by_digest = {descriptor.digest: descriptor for descriptor in wanted}
        for digest, extent in self.contents.blobs.items():
            if digest in by_digest and extent.offset in self._corrupt:
                raise self._corrupt[extent.offset]
        yield from self._take_buffered(by_digest)
        for entry, digest, chunks in self._read_remaining():
            if digest in self._abandoned:
                msg = f"{digest} may refer to an image, but comes after layers that were not buffered"
                raise UnsupportedError(
                    msg, hint="push from an uncompressed file (-i FILE) instead of a pipe, or name one IMAGE to push to"
                )
            descriptor = by_digest.pop(digest, None)
            if self.contents.is_duplicate(digest, entry):
                self._check_duplicate(entry, digest)
            elif descriptor is not None or self._selection.all_blobs:
                descriptor = descriptor or Descriptor(UNKNOWN_MEDIA_TYPE, digest, entry.size)
                yield self._blob(descriptor, entry, chunks)
            else:
                self._compare_manifest(entry, digest)
        self._reader.drain()
        if self.volume is not None and self._selection.all_blobs:
            self.contents.check_parts(self.volume)
        if not is_compared:
            self._check_late_manifest_json()

    def find_entries_with(self, image_id: str) -> list[Descriptor]:
        """Return the entries of `index.json` that lead to an image with this ID, as far as is known now."""
        return self._comparison.find_entries_with(image_id) if self._comparison is not None else []

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # -- what was kept of the entries so far -----------------------------------------------------------------

    def read(self, need: Need) -> bytes | None:
        """Return a document that a graph needs, or None if it has not arrived, or the archive does not have it.

        Raises:
            ArchiveError: the whole archive was read, and the document is not a JSON object.
        """
        raw = super().read(need)
        extent = self.contents.blobs.get(need.digest)
        if extent is None or (raw is None and not self._has_ended):
            return raw
        if raw is None and not need.is_candidate:
            # The blob did not look like a JSON object, and went to the destination as a blob.
            kind = "config" if need.is_config else "manifest"
            msg = f"{need.digest} is listed as {kind}, but is not a JSON object"
            raise ArchiveError(msg)
        # A config is also a blob of the graph, and a candidate may be a manifest of it: both are needed again.
        if raw is not None and not need.is_config and not need.is_candidate:
            match self._early_entries.get(extent.offset):
                case _Json(bytes(), is_in_graph=False):
                    self._buffered_bytes -= extent.size
            self._early_entries[extent.offset] = _Json(raw, is_in_graph=True)
        return raw

    def _recall(self, need: Need) -> bytes | None:
        """Return a manifest that is in memory, or None."""
        extent = self.contents.blobs.get(need.digest)
        if extent is None or extent.size != need.descriptor.size:
            return None
        return self._find_in_memory(extent)

    def _find_in_memory(self, extent: Extent) -> bytes | None:
        match self._early_entries.get(extent.offset):
            case _Json(bytes() as content):
                return content
        return None

    def _read_extent(self, extent: Extent) -> bytes | None:
        if extent.offset in self._corrupt:
            raise self._corrupt[extent.offset]
        match self._early_entries.get(extent.offset):
            case _Json(Descriptor() as written) if self._early_blobs is not None:
                return self._early_blobs.read_back(written)
        return self._find_in_memory(extent)

    def _identify_layer(self, extent: Extent, digest: str | None, diff_id: str) -> Descriptor | None:
        del diff_id  # The digest was computed when the layer was written.
        entry = self._early_entries.get(extent.offset)
        if isinstance(entry, _Json) and (
            entry.is_in_graph or isinstance(entry.content, Descriptor) or is_probably_json(entry.content)
        ):
            return None
        if digest is None:
            return entry if isinstance(entry, Descriptor) else None
        return describe_layer(digest, extent.size, entry if isinstance(entry, Codec) else NONE)

    def _take_buffered(self, wanted: dict[str, Descriptor]) -> Iterator[Blob]:
        """Yield the wanted blobs that are in memory, and free all memory of blobs."""
        for digest, extent in self.contents.blobs.items():
            content = self._find_in_memory(extent)
            if content is not None and (digest in wanted or self._selection.all_blobs):
                unknown = Descriptor(UNKNOWN_MEDIA_TYPE, digest, len(content))
                yield blob_from_bytes(wanted.get(digest, unknown), content)
        self._early_entries.clear()

    # -- documents, and other entries that are not blobs -----------------------------------------------------

    def _read_other(self, entry: TarEntry) -> None:
        """Read a document, a file of a docker-archive, or a part of a blob that is split. Skip other entries."""
        name = normalize_name(entry.name)
        if self.contents.documents.get(name) is entry:
            self._parse_document(entry, self._reader.read(entry, DOCUMENT_LIMITS[name]))
            if self._index is not None and name == "index.json":
                self._start_walks(self._index)
        elif entry.kind != "file":
            return
        elif self._early_blobs is not None and name in self.contents.docker_files:
            self._keep_docker_file(entry, self._early_blobs)
        elif self._selection.all_blobs:
            self._check_part(name)

    def _check_part(self, name: str) -> None:
        """Read an entry if it is a part of a blob, or the checksum that follows a part."""
        if (part := parse_part_name(name)) is None:
            return
        digest, offset, is_checksum = part
        if not is_checksum:
            chunks = HashedChunks(self._reader.read_chunks())
            for _ in chunks:
                pass
            self._part_digests[digest, offset] = chunks.digest
        elif (actual := self._part_digests.pop((digest, offset), None)) is not None:
            line = read_all(itertools.islice(self._reader.read_chunks(), 1))
            expected = parse_checksum_line(part_name(digest, offset), line)
            if expected != actual:
                raise part_error(digest, offset, self._label, digest_error(expected, actual))

    def _start_walks(self, index: LayoutIndex) -> None:
        """Start the walks to the manifests below `index.json`. A failed selection is not final yet."""
        self._rest_offsets = parse_partial_blobs(index.annotations) if index.annotations else None
        self._is_index_last = bool(self.contents.blobs)
        self._start_comparison(self._recall)
        if self._as_docker:
            return
        try:
            self._walk = self._start_walk(index)
        except (NotFoundError, UsageError) as error:
            self._selection_error = error
        else:
            self._walk.answer_found()

    def _keep_docker_file(self, entry: TarEntry, early_blobs: EarlyBlobs) -> None:
        """Buffer an entry that may be a config, or write one that may be a layer to the destination."""
        first, content = peek_chunks(self._reader.read_chunks())
        first_chunk = bytes(first)
        is_json = is_probably_json(first_chunk)
        if is_json and self._buffered_bytes + entry.size <= limits.MAX_BUFFERED_JSON:
            self._early_entries[entry.offset] = _Json(read_all(content))
            self._buffered_bytes += entry.size
            return
        if is_json:
            is_wanted = entry.size <= limits.MAX_CONFIG
        else:
            is_wanted = is_probably_layer(first_chunk) or normalize_name(entry.name).endswith(".tar")
        if not is_wanted:
            return
        self._docker_file_count += 1
        if self._docker_file_count > limits.MAX_LIST_ENTRIES:
            msg = f"more than {limits.MAX_LIST_ENTRIES} layers come before the archive's manifest.json"
            raise UnsupportedError(msg, hint=_PLAIN_FILE_HINT)
        _require_accepted(early_blobs)
        written = early_blobs.write_new(content)
        self._early_entries[entry.offset] = (
            _Json(Descriptor(UNKNOWN_MEDIA_TYPE, written.digest, entry.size)) if is_json else written
        )

    # -- blobs that come before the graph --------------------------------------------------------------------

    def _read_early_blob(self, entry: TarEntry, digest: str) -> None:
        """Buffer a blob or write it to the destination, and pass it to the walks."""
        need = self._walk.needs.get(digest) if self._walk is not None else None
        if self.contents.is_duplicate(digest, entry):
            self._check_duplicate(entry, digest)
        elif need is None or need.is_config or need.is_candidate:
            self._buffer_or_write(entry, digest)
        elif entry.size == need.descriptor.size:
            # The walk verifies the manifest. It refuses another size below.
            self._early_entries[entry.offset] = _Json(self._reader.read(entry, limits.MAX_MANIFEST), is_in_graph=True)
        if self._walk is not None:
            self._walk.search(digest)
        if self._comparison is not None:
            self._comparison.search(digest)

    def _buffer_or_write(self, entry: TarEntry, digest: str) -> None:
        descriptor = Descriptor(UNKNOWN_MEDIA_TYPE, digest, entry.size)
        first, chunks = peek_chunks(self._reader.read_chunks())
        first_chunk = bytes(first)
        looks_like_json = first_chunk.lstrip()[:1] == b"{" and entry.size <= limits.MAX_CONFIG
        available = limits.MAX_BUFFERED_JSON - self._buffered_bytes
        if looks_like_json and entry.size <= min(limits.MAX_MANIFEST, available):
            content = first_chunk if len(first_chunk) == entry.size else read_all(chunks)
            try:
                # Verify the blob now: later it is not known whether it was verified.
                self._early_entries[entry.offset] = _Json(read_all(verify_chunks([content], descriptor)))
            except IntegrityError as error:
                self._corrupt[entry.offset] = error.without_frames()
                self._write_early(entry, blob_from_bytes(descriptor, content))
            else:
                self._buffered_bytes += entry.size
            return
        if self._index_walk is not None and self._index_walk.selection_error is not None:
            # The selection from the named images failed, and the other entries cannot be awaited.
            raise self._index_walk.selection_error
        if self._can_finish_early():
            self._started_blob = entry, digest, chunks
            return
        assert self._early_blobs is not None  # noqa: S101 - `resolve` has set it
        _require_accepted(self._early_blobs)
        if (codec := detect_codec(first_chunk[: limits.KIB])) is not NONE:
            self._early_entries[entry.offset] = codec
        blob = Blob(descriptor, partial(_skip_to, chunks), self._access)
        self._write_early(entry, blob, can_be_plain_layer=self._may_be_plain_layer(entry))
        if looks_like_json and entry.offset not in self._corrupt:
            self._early_entries[entry.offset] = _Json(descriptor)

    def _may_be_plain_layer(self, entry: TarEntry) -> bool:
        """Return whether `docker save` may have written an entry, as far as is known now.

        Its plain layers are compressed at once. Read-only entries are left alone: containerd's exports have them.
        """
        return self.is_docker_save or not (self.contents.is_oci or entry.is_read_only)

    def _write_early(self, entry: TarEntry, blob: Blob, *, can_be_plain_layer: bool = False) -> None:
        """Write a blob to the destination. As in a file, corrupt bytes matter only if an image needs the blob.

        If the destination cannot remove the blob again, the IntegrityError is raised at once.
        """
        assert self._early_blobs is not None  # noqa: S101 - `resolve` has set it
        error = self._early_blobs.write(blob, can_be_plain_layer=can_be_plain_layer)
        if error is not None:
            self._corrupt[entry.offset] = error.without_frames()

    def _check_duplicate(self, entry: TarEntry, digest: str) -> None:
        for _ in verify_chunks(self._reader.read_chunks(), Descriptor(UNKNOWN_MEDIA_TYPE, digest, entry.size)):
            pass

    # -- whether the graph is complete -----------------------------------------------------------------------

    def _is_ready(self) -> bool:
        """Return whether the graph is complete, and `manifest.json` cannot add images any more."""
        if self.contents.index_json is None or self._as_docker or self._is_incomplete():
            return False
        if self._started_blob is not None or self.volume is not None or self._rest_offsets:
            return True
        # Our own archives begin with both files. Those of `docker save` end with a file named `repositories`.
        return not self._is_index_last and self._images is not None and not self._may_list_more_images()

    def _is_incomplete(self) -> bool:
        """Return whether the graph needs further documents."""
        return self._walk is not None and self._walk.result is None

    def _can_finish_early(self) -> bool:
        """Return whether the graph is complete if no referrer and no other image follows.

        An entry of the index may belong to an image that the archive lacks, so candidates may never arrive. A
        destination that can write blobs early waits for them to the end. For another one, candidates are abandoned once
        the images are complete. `manifest.json` is awaited only if it was read already.
        """
        if self.contents.index_json is None or self._as_docker or self._early_blobs is None:
            return False
        must_begin = self._early_blobs.early_refusal is not None
        if self._images and self._comparison is not None and self._comparison.may_list_more(self._images):
            if must_begin:
                # If the two files contradict each other, that is the error.
                self._comparison.find_only_in_manifest_json(self._images)
                msg = (
                    "manifest.json lists images that index.json does not list, so --to cannot read it from a pipe or a "
                    "compressed file"
                )
                hint = "decompress it, or save it to a file and push with -i FILE, or push to one IMAGE"
                raise UnsupportedError(msg, hint=hint)
            return False
        if must_begin and self._walk is not None and self._index_walk is not None and self._index_walk.is_chosen:
            self._abandoned.update(self._walk.skip_candidates())
        return not self._is_incomplete()

    def _may_list_more_images(self) -> bool:
        """Return whether `manifest.json` may list images that `index.json` does not, as far as is known now."""
        return bool(self._images and self._comparison is not None and self._comparison.may_list_more(self._images))

    # -- blobs that come after the graph ---------------------------------------------------------------------

    def _read_remaining(self) -> Iterator[tuple[TarEntry, str, Iterator[Chunk]]]:
        """Yield entries with bytes of blobs, each with its digest and its chunks, and read all others."""
        if self._started_blob is not None:
            started, self._started_blob = self._started_blob, None
            yield started
        for entry in self._read_entries():
            digest = self.contents.add(entry)
            if digest is None and (rest := self._find_rest(entry)) is not None:
                digest, _ = rest
            if digest is not None:
                yield entry, digest, self._reader.read_chunks()
            else:
                self._read_other(entry)

    def _blob(self, descriptor: Descriptor, entry: TarEntry, chunks: Iterator[Chunk]) -> Blob:
        """Return a blob, or the rest of a blob."""
        if (found := self._find_rest(entry)) is None:
            return Blob(descriptor, partial(_skip_to, chunks), self._access)
        _, start = found
        if start + entry.size != descriptor.size:
            msg = f"{printable(entry.name)!r} in the archive is not the rest of a blob of {descriptor.size} bytes"
            raise ArchiveError(msg)
        rest = ByteRange(start, descriptor.size)
        return Blob(descriptor, lambda offset=0: _skip_to(chunks, offset - start), self._access, rest)

    @property
    def _access(self) -> Access:
        return Access.ONCE if self._rest_offsets is None else Access.RESUMABLE

    def _find_rest(self, entry: TarEntry) -> tuple[str, int] | None:
        """Return the digest of a blob and the offset where an entry starts in it, if the archive has only the rest."""
        if not self._rest_offsets or self._selection.all_blobs or entry.kind != "file":
            return None
        # A rest has the name of a volume part, but no checksum: such an archive is only sent, never kept.
        part = parse_part_name(normalize_name(entry.name))
        if part is None or part[2] or not part[1] or self._rest_offsets.get(part[0]) != part[1]:
            return None
        return part[0], part[1]

    def _compare_manifest(self, entry: TarEntry, digest: str) -> None:
        """Pass a manifest that no image needs to the comparison of `manifest.json` with `index.json`."""
        comparison = self._comparison
        need = comparison.needs.get(digest) if comparison is not None else None
        if comparison is not None and need is not None and need.descriptor.size == entry.size:
            comparison.answer(need, self._reader.read(entry, limits.MAX_MANIFEST))

    def _check_late_manifest_json(self) -> None:
        """Check a `manifest.json` that came after the graph was built.

        The images of `index.json` do not wait for a `manifest.json` after the layers, so it cannot add images.
        """
        if self._images and (more := self._finish_comparison().find_only_in_manifest_json(self._images)):
            msg = f"manifest.json comes after the layers, and lists the image {printable(more[0].config)} as well"
            raise UnsupportedError(msg, hint=f"{_PLAIN_FILE_HINT}: then the order does not matter")

    # -- reading entries -------------------------------------------------------------------------------------

    def _read_entries(self) -> Iterator[TarEntry]:
        # Not `yield from`: that would close the reader with this generator, and a second generator continues to read
        # it.
        while (entry := next(self._entries, None)) is not None:
            yield entry
        self._has_ended = True


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
        msg = f"{path} is a terminal: archives are not read from terminals"
        raise UsageError(msg)
    return file


def _require_accepted(early_blobs: EarlyBlobs) -> None:
    """Check that blobs are accepted before the graph is known.

    Raises:
        UnsupportedError: the destination accepts none.
    """
    if early_blobs.early_refusal is not None:
        raise early_blobs.early_refusal()


def _skip_to(chunks: Iterator[Chunk], offset: int = 0) -> Iterator[Chunk]:
    """Return the chunks from byte `offset` on."""
    return chunks_from(chunks, offset) if offset > 0 else chunks
