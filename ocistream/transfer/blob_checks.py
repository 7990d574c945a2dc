"""Looking at blobs: each is read to its end and held against its digest, and layers are unpacked, if that is wanted.

What is wrong is noted, and ends nothing. Nothing is known here of images, nor of what they make of a blob.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import threading
from functools import partial
from typing import IO, TYPE_CHECKING, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, OcistreamError, UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.streams import files, layer_types
from ocistream.streams.chunks import FailureTracker, HashedChunks, cancellable_chunks, count_chunks, verify_chunks
from ocistream.streams.compression import decompress, detect_codec
from ocistream.streams.layer_types import is_probably_layer
from ocistream.transfer.configs import can_be_json_object

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, Observer

__all__ = ["BlobChecker", "PlainLayer"]


class PlainLayer(NamedTuple):
    """What a layer unpacks to, and from what."""

    digest: str
    codec: str


class BlobChecker:
    """What was found of each blob; to a source it is where those go that come before their images are known.

    `sizes` has those of all that were looked at, in bytes, and `wrong` what is wrong with some; `plain` what layers
    unpack to, of whatever looked like one or was known to be one. All three are by digest.
    """

    def __init__(self, observer: Observer, *, deep: bool, max_ratio: int, cancelled: threading.Event) -> None:
        """With `deep`, what looks like a layer is unpacked, up to `max_ratio` times its size. `cancelled` ends it."""
        self._observer = observer
        self._deep = deep
        self._max_ratio = max_ratio
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._spill_file = _SpillFile()
        self.sizes: dict[str, int] = {}
        self.errors: dict[str, OcistreamError] = {}
        self.plain_layers: dict[str, PlainLayer] = {}
        #: Layers that had no digest, of which some may be files that no image names.
        self.unnamed_layers: set[str] = set()

    def close(self) -> None:
        """Let go of what was kept."""
        self._spill_file.close()

    # -- what a source may do with blobs that come before the graph (interfaces.Early) -------------------

    def write(self, blob: Blob) -> None:
        """Look at a blob of which only the digest is known."""
        chunks = blob.open()
        first = bytes(next(chunks, b""))
        whole: Iterator[Chunk] = itertools.chain([first], chunks)
        if can_be_json_object(first) and blob.descriptor.size <= limits.MAX_CONFIG:
            whole = self._spill_file.write(blob.descriptor, whole)
        self.check(blob.descriptor, whole, unpack=self._deep and is_probably_layer(first))

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Look at a layer of which no digest is known."""
        first = bytes(next(chunks, b""))
        kind = layer_types.layer_media_type(layer_types.OCI_LAYER, detect_codec(first).name)
        raw = HashedChunks(itertools.chain([first], chunks))
        error: OcistreamError | None = None
        plain: PlainLayer | None = None
        try:
            plain = self.read_complete(raw, Descriptor(layer_types.OCI_LAYER, "", 0), unpack=self._deep)
        except _CannotUnpackError as found:
            error = found.error
        descriptor = Descriptor(kind, raw.digest, raw.size)
        self.unnamed_layers.add(descriptor.digest)
        self._add_result(descriptor, error, plain)
        return descriptor

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Give back small content that was put."""
        return self._spill_file.read(descriptor)

    def can_read_back(self, descriptor: Descriptor) -> bool:
        """Say whether `recall` can give it back."""
        return self._spill_file.has(descriptor)

    # -- looking -----------------------------------------------------------------------------------------

    def check(self, descriptor: Descriptor, chunks: Iterator[Chunk], *, unpack: bool) -> None:
        """Read a blob to its end, unpack it if that is asked for, and note what is wrong with it.

        Raises:
            OcistreamError: what is wrong is not the blob.
        """
        try:
            self._add_result(
                descriptor, None, self.read_complete(verify_chunks(chunks, descriptor), descriptor, unpack=unpack)
            )
        except IntegrityError as error:
            self._add_result(descriptor, error)
        except _CannotUnpackError as found:
            self._add_result(descriptor, found.error)

    def read_complete(self, chunks: Iterator[Chunk], descriptor: Descriptor, *, unpack: bool) -> PlainLayer | None:
        """Read all of a blob and say what it unpacks to, or None where it is not to be unpacked.

        `descriptor` is whose bytes these are, for who watches.

        Raises:
            _CannotUnpackError: it is what it should be, but not a well-formed compressed stream.
            OcistreamError: what reading it raises.
        """
        passing = partial(self._observer.advance, descriptor=descriptor)
        raw = FailureTracker(count_chunks(cancellable_chunks(chunks, self._cancelled), passing))
        if not unpack:
            for _ in raw:
                pass
            return None
        try:
            first = bytes(next(raw, b""))
            codec = detect_codec(first)
            plain = HashedChunks(decompress(codec, itertools.chain([first], raw), self._max_ratio))
            for _ in plain:
                pass
        except (ArchiveError, UnsupportedError) as error:
            if raw.has_failed:
                raise
            # If the bytes are not those that were promised either, that is what is to be said.
            for _ in raw:
                pass
            raise _CannotUnpackError(error) from error
        return PlainLayer(plain.digest, codec.name)

    def _add_result(
        self, descriptor: Descriptor, error: OcistreamError | None, plain: PlainLayer | None = None
    ) -> None:
        if isinstance(error, ArchiveError | UnsupportedError):
            error = type(error)(f"{descriptor.digest}: {error.message}", hint=error.hint)
        with self._lock:
            self.sizes[descriptor.digest] = descriptor.size
            if error is not None:
                self.errors[descriptor.digest] = error
            if plain is not None:
                self.plain_layers[descriptor.digest] = plain
        self._observer.done(descriptor, "verified")


class _CannotUnpackError(Exception):
    """A compressed stream is malformed."""

    def __init__(self, error: OcistreamError) -> None:
        super().__init__()
        self.error = error


class _SpillFile:
    """Small JSON that comes before anybody knows what it is, and for which its source had no room: in a file."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._offsets: dict[str, tuple[int, int]] = {}

    def write(self, descriptor: Descriptor, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Pass chunks on, and keep them."""
        with files.disk_errors("cannot keep a manifest in a temporary file"):
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with this
            begin = self._file.seek(0, io.SEEK_END)
        for chunk in chunks:
            with files.disk_errors("cannot keep a manifest in a temporary file"):
                self._file.write(chunk)
            yield chunk
        self._offsets[descriptor.digest] = (begin, descriptor.size)

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether it was kept."""
        return descriptor.digest in self._offsets

    def read(self, descriptor: Descriptor) -> bytes:
        """Give it back."""
        assert self._file is not None, "nothing was kept"  # noqa: S101 - sources ask for what they put
        begin, size = self._offsets[descriptor.digest]
        with files.disk_errors("cannot read a temporary file"):
            self._file.seek(begin)
            return self._file.read(size)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
