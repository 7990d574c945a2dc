"""Read blobs, verify them and discard their bytes: for `verify`, and for commands that need only a source's graph."""

from __future__ import annotations

import contextlib
import io
import tempfile
from typing import IO, TYPE_CHECKING, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, OcistreamError, UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.streams import files
from ocistream.streams.chunks import HashedChunks, peek_chunks, verify_chunks
from ocistream.streams.compression import (
    OCI_LAYER,
    DecompressionError,
    decompress_layer,
    describe_layer,
    detect_codec,
    is_probably_layer,
)
from ocistream.streams.workers import run_each
from ocistream.transfer.config_checks import can_be_json_object
from ocistream.transfer.interfaces import NullObserver
from ocistream.transfer.verified_blobs import BlobProgress, read_verified

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, Observer, Source


class PlainLayer(NamedTuple):
    """The digest of a layer's uncompressed bytes, and the layer's compression."""

    digest: str
    codec: str


class BlobChecker:
    """Verifies blobs and stores the results; also the `EarlyBlobs` of a source whose index comes last.

    By digest: `sizes` of all blobs that were read, in bytes, `errors`, and `plain_layers` of all layers that were
    decompressed.
    """

    early_refusal: Callable[[], UnsupportedError] | None = None

    def __init__(self, observer: Observer, *, deep: bool, max_ratio: int, cancelled: threading.Event | None) -> None:
        """With `deep`, decompress layers, up to `max_ratio` times their size. Setting `cancelled` stops it."""
        self._observer = observer
        self._deep = deep
        self._max_ratio = max_ratio
        self._cancelled = cancelled
        self._spill_file = _SpillFile()
        self.sizes: dict[str, int] = {}
        self.errors: dict[str, OcistreamError] = {}
        self.plain_layers: dict[str, PlainLayer] = {}
        #: Layers that came without a digest; some of them may be files that no image names.
        self.unnamed_layers: set[str] = set()

    def close(self) -> None:
        """Delete the temporary file."""
        self._spill_file.close()

    # -- blobs that come before the graph (interfaces.EarlyBlobs) --------------------------------------------

    def write(
        self,
        blob: Blob,
        *,
        can_be_plain_layer: bool = False,  # noqa: ARG002 - nothing is compressed here
    ) -> IntegrityError | None:
        """Verify a blob of which only the digest is known, and store its error: all failures are reported."""
        first, chunks = peek_chunks(blob.open())
        beginning = bytes(first)
        if can_be_json_object(beginning) and blob.descriptor.size <= limits.MAX_CONFIG:
            chunks = self._spill_file.write(blob.descriptor, chunks)
        self.check(blob.descriptor, chunks, unpack=self._deep and is_probably_layer(beginning))
        return None

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Verify a layer of unknown digest."""
        first, complete = peek_chunks(chunks)
        beginning, raw = bytes(first), HashedChunks(complete)
        error: OcistreamError | None = None
        plain: PlainLayer | None = None
        try:
            plain = self.read_complete(raw, Descriptor(OCI_LAYER, "", 0), unpack=self._deep)
        except DecompressionError as found:
            error = found.error
        descriptor = describe_layer(raw.digest, raw.size, detect_codec(beginning))
        self.unnamed_layers.add(descriptor.digest)
        self._add_result(descriptor, error, plain)
        return descriptor

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Return small content that was written."""
        return self._spill_file.read(descriptor)

    def can_read_back(self, descriptor: Descriptor) -> bool:
        """Return whether `read_back` has the content, and the content matches its digest."""
        return self._spill_file.has(descriptor) and descriptor.digest not in self.errors

    # -- reading -------------------------------------------------------------------------------------------

    def check(self, descriptor: Descriptor, chunks: Iterator[Chunk], *, unpack: bool) -> None:
        """Read a blob to its end, decompress it if `unpack`, and store its error, if any.

        Raises:
            OcistreamError: a failure that does not concern the blob.
        """
        try:
            self._add_result(
                descriptor, None, self.read_complete(verify_chunks(chunks, descriptor), descriptor, unpack=unpack)
            )
        except IntegrityError as error:
            self._add_result(descriptor, error)
        except DecompressionError as found:
            self._add_result(descriptor, found.error)

    def read_complete(self, chunks: Iterator[Chunk], descriptor: Descriptor, *, unpack: bool) -> PlainLayer | None:
        """Read all of a blob; return its uncompressed digest, or None without `unpack`.

        The observer counts the bytes for `descriptor`.
        """
        raw = BlobProgress(self._observer, descriptor, self._cancelled).count(chunks)
        if not unpack:
            for _ in raw:
                pass
            return None
        codec, plain_chunks = decompress_layer(raw, self._max_ratio)
        plain = HashedChunks(plain_chunks)
        for _ in plain:
            pass
        return PlainLayer(plain.digest, codec.name)

    def _add_result(
        self, descriptor: Descriptor, error: OcistreamError | None, plain: PlainLayer | None = None
    ) -> None:
        if isinstance(error, ArchiveError | UnsupportedError):
            error = type(error)(f"{descriptor.digest}: {error.message}", hint=error.hint)
        self.sizes[descriptor.digest] = descriptor.size
        if error is not None:
            self.errors[descriptor.digest] = error.without_frames()
        if plain is not None:
            self.plain_layers[descriptor.digest] = plain
        self._observer.done(descriptor, "verified")


class _SpillFile:
    """A temporary file for early JSON blobs that did not fit into the source's buffer, since they may be manifests."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._offsets: dict[str, tuple[int, int]] = {}

    def write(self, descriptor: Descriptor, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        with files.disk_errors("cannot keep a manifest in a temporary file"):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=files.temporary_directory())  # noqa: SIM115 - it is closed with this
            offset = self._file.seek(0, io.SEEK_END)
        for chunk in chunks:
            with files.disk_errors("cannot keep a manifest in a temporary file"):
                self._file.write(chunk)
            yield chunk
        self._offsets[descriptor.digest] = (offset, descriptor.size)

    def has(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self._offsets

    def read(self, descriptor: Descriptor) -> bytes:
        assert self._file is not None, "nothing was kept"  # noqa: S101 - sources read back only what they wrote
        offset, size = self._offsets[descriptor.digest]
        with files.disk_errors("cannot read a temporary file"):
            self._file.seek(offset)
            return self._file.read(size)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class DiscardedBlobs(BlobChecker):
    """The `EarlyBlobs` of a source of which only the graph is needed: blobs are verified and discarded."""

    def __init__(
        self, cancelled: threading.Event | None, refusal: Callable[[], UnsupportedError] | None = None
    ) -> None:
        """Setting `cancelled` stops the reading. `refusal` returns the error for a blob before the graph, if any."""
        super().__init__(NullObserver(), deep=False, max_ratio=limits.MAX_RATIO, cancelled=cancelled)
        self.early_refusal = refusal

    def write(self, blob: Blob, *, can_be_plain_layer: bool = False) -> IntegrityError | None:
        """Read and verify a blob; return the error if it does not match its digest."""
        super().write(blob, can_be_plain_layer=can_be_plain_layer)
        error = self.errors.get(blob.descriptor.digest)
        return error if isinstance(error, IntegrityError) else None

    def read_contents(
        self,
        blobs: Iterator[Blob],
        wanted: Sequence[Descriptor],
        use: Callable[[Descriptor, bytes], None],
        *,
        jobs: int,
    ) -> None:
        """Pass the content of each wanted small blob to `use`; `blobs` are those that the source yields.

        A wanted blob that came before the graph is read back. `use` may be called from several threads, up to `jobs`. A
        blob that a registry lists and lacks is not passed.

        Raises:
            IntegrityError: a blob is corrupt.
        """
        found: set[str] = set()

        def read(blob: Blob) -> None:
            try:
                content = read_verified(blob)
            except NotFoundError:
                return
            found.add(blob.descriptor.digest)
            use(blob.descriptor, content)

        run_each(read, blobs, jobs=jobs, cancelled=self._cancelled)
        for descriptor in wanted:
            if descriptor.digest not in found and self.can_read_back(descriptor):
                use(descriptor, self.read_back(descriptor))


def read_graph(source: Source, cancelled: threading.Event | None = None) -> Graph:
    """Return the graph of a source. A pipe is read to its end: its writer must not fail."""
    with contextlib.closing(DiscardedBlobs(cancelled)) as discarded:
        graph = source.resolve(discarded)
        for _ in source.blobs(()):
            pass
    return graph
