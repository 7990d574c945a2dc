"""Verify all blobs of a source against their digests, and layers against diff_ids, without storing anything.

Collects all failures in one pass; raises only for what makes further reading pointless.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import IO, TYPE_CHECKING, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, OcistreamError, UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.documents import check_config, parse_diff_ids
from ocistream.oci.graph import is_image
from ocistream.oci.volumes import part_error
from ocistream.streams import files, layer_media_types
from ocistream.streams.chunks import (
    FailureTracker,
    HashedChunks,
    cancellable_chunks,
    count_chunks,
    size_error,
    verify_chunks,
)
from ocistream.streams.compression import decompress, detect_codec
from ocistream.streams.layer_media_types import is_probably_layer
from ocistream.streams.workers import run_each
from ocistream.transfer.config_checks import ConfigChecker, can_be_json_object, not_json_error
from ocistream.transfer.incomplete_indexes import find_not_exported, limit_to_exported
from ocistream.transfer.interfaces import BlobPartSource, NullObserver

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from ocistream.oci.graph import Graph, IncompleteIndex
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, Observer, Source

__all__ = [
    "BlobChecker",
    "BlobFailure",
    "DiscardedBlobs",
    "Findings",
    "PlainLayer",
    "verify",
]

#: Reading side by side pays as long as there are cores; more are rarely free for this.
_JOBS = 4
#: Where layers are unpacked, each thread keeps room for the widest window that it has met.
_DEEP_JOBS = 2


def is_layer(descriptor: Descriptor) -> bool:
    """Say whether something is an image layer, by its media type."""
    return layer_media_types.codec_name(descriptor.media_type) is not None


@dataclass(frozen=True, slots=True)
class BlobFailure:
    """A blob that is not what it should be: in its bytes, or in what they unpack to; `error` says how."""

    digest: str
    error: OcistreamError


@dataclass(slots=True)
class Findings:
    """What was found. Sizes are in bytes.

    `missing` are manifests and blobs that images need and that are not there; `oci.omitted_blobs` are those of which
    the source says that it was made without them, and `incomplete` are indexes of which only some platforms were
    exported: what the others need is not among `missing`. `unneeded` counts blobs that no image needs, `unpacked`
    layers whose plain bytes were looked at, and `parts` those of blobs that have the rest in other volumes.
    """

    graph: Graph
    blobs: int = 0
    size: int = 0
    unreferenced: int = 0
    unpacked: int = 0
    parts: int = 0
    missing: list[Descriptor] = field(default_factory=list)
    omitted: list[Descriptor] = field(default_factory=list)
    failures: list[BlobFailure] = field(default_factory=list)
    incomplete: tuple[IncompleteIndex, ...] = ()


def verify(
    source: Source,
    observer: Observer | None = None,
    *,
    deep: bool = False,
    max_ratio: int = limits.MAX_RATIO,
    cancelled: threading.Event | None = None,
) -> Findings:
    """Read everything that `source` gives, which is to be opened for `everything`.

    With `deep`, layers are unpacked too, up to `max_ratio` times their size, and held against their configs' diff_ids.

    Raises:
        OcistreamError: what ends all reading.
    """
    check = _Verification(
        observer or NullObserver(), deep=deep, max_ratio=max_ratio, cancelled=cancelled or threading.Event()
    )
    try:
        return check.run(source)
    finally:
        check.close()


class _Verification:
    """One verification."""

    def __init__(self, observer: Observer, *, deep: bool, max_ratio: int, cancelled: threading.Event) -> None:
        self._observer = observer
        self._deep = deep
        self._cancelled = cancelled
        self._checker = BlobChecker(observer, deep=deep, max_ratio=max_ratio, cancelled=cancelled)
        self._diff_ids: dict[str, tuple[str, ...]] = {}
        #: Digests of configs that were read as JSON.
        self._checked_configs: set[str] = set()

    def close(self) -> None:
        self._checker.close()

    def run(self, source: Source) -> Findings:
        graph = source.resolve(self._checker)
        self._observer.planned(graph)
        images = [document for _, document in graph.images() if is_image(document)] if self._deep else []
        configs = ConfigChecker()
        configs.find_configs(graph)
        unpack = {layer.digest for document in images for layer in document.layers if is_layer(layer)}
        waiting = [blob for blob in graph.blobs if blob.digest not in self._checker.sizes]

        def look(blob: Blob) -> None:
            digest = blob.descriptor.digest
            if digest in configs.digests:
                with configs.reserve_memory(blob.descriptor):
                    self._check_config(blob)
            else:
                self._checker.check(blob.descriptor, blob.open(), unpack=digest in unpack)

        jobs = (_DEEP_JOBS if self._deep else _JOBS) if source.concurrent else 1
        run_each(look, source.blobs(waiting), jobs=jobs, cancelled=self._cancelled)
        parts = self._check_parts(source, graph) if isinstance(source, BlobPartSource) else []
        findings = self._collect_findings(graph, configs)
        findings.parts, findings.size = len(parts), findings.size + sum(parts)
        return findings

    # -- looking -----------------------------------------------------------------------------------------

    def _check_parts(self, source: BlobPartSource, graph: Graph) -> list[int]:
        """Look at parts of blobs that are not all there, and give their sizes; or find out where one is wrong that is.

        The parts of one that is there, and right, are.
        """
        sizes: list[int] = []
        for blob in graph.blobs:
            whole = blob.digest in self._checker.sizes
            if whole and blob.digest not in self._checker.errors:
                continue
            for part in source.parts(blob):
                if part.blob is None:
                    continue
                if not whole:
                    sizes.append(part.size)
                try:
                    self._checker.read_complete(
                        verify_chunks(part.blob.open(), part.blob.descriptor), blob, unpack=False
                    )
                except IntegrityError as error:
                    self._checker.errors[blob.digest] = part_error(blob.digest, part.offset, part.volume, error)
        return sizes

    def _check_config(self, blob: Blob) -> None:
        descriptor = blob.descriptor
        # No larger than a config may be: the walk has seen to that.
        content = io.BytesIO()

        def keeping() -> Iterator[Chunk]:
            for chunk in blob.open():
                content.write(chunk)
                yield chunk

        self._checker.check(descriptor, keeping(), unpack=False)
        if descriptor.digest not in self._checker.errors:
            self._add_config(descriptor, content.getvalue())

    def _check_early_configs(self, configs: ConfigChecker, graph: Graph) -> None:
        """Look at configs that came before anybody knew what they are; what may be one was kept."""
        unread = (configs.digests & self._checker.sizes.keys()) - self._checked_configs - self._checker.errors.keys()
        for blob in graph.blobs if unread else ():
            if blob.digest in unread and self._checker.can_read_back(blob):
                self._add_config(blob, self._checker.read_back(blob))
            elif blob.digest in unread:
                self._checker.errors[blob.digest] = not_json_error(blob)

    def _add_config(self, descriptor: Descriptor, content: bytes) -> None:
        what = f"the config {descriptor.digest}"
        self._checked_configs.add(descriptor.digest)
        try:
            if self._deep:
                self._diff_ids[descriptor.digest] = parse_diff_ids(content, what)
            else:
                check_config(content, what)
        except ArchiveError as error:
            self._checker.errors[descriptor.digest] = error

    # -- what came of it ---------------------------------------------------------------------------------

    def _collect_findings(self, graph: Graph, configs: ConfigChecker) -> Findings:
        for blob in graph.blobs:
            seen = self._checker.sizes.get(blob.digest)
            if seen is not None and seen != blob.size:
                self._checker.errors.setdefault(blob.digest, size_error(blob, seen))
        self._check_early_configs(configs, graph)
        if self._deep:
            self._check_diff_ids(graph)
        lacking = [
            blob for blob in graph.blobs if blob.digest not in self._checker.sizes and blob.digest not in graph.embedded
        ]
        exported = self._limit_to_exported(graph, {blob.digest for blob in lacking})
        needed = {blob.digest for blob in (*exported.blobs, *exported.absent)}
        named = {blob.digest for blob in graph.blobs} | {m.descriptor.digest for m in graph.manifests}
        # A file of a docker-archive that no image names is not a blob.
        strays = self._checker.unnamed_layers - named
        sizes = {digest: size for digest, size in self._checker.sizes.items() if digest not in strays}
        made = {root.descriptor.digest for root in graph.roots if root.is_synthesized}
        manifests = {m.descriptor.digest: m.descriptor.size for m in graph.manifests if m.descriptor.digest not in made}
        return Findings(
            graph,
            blobs=len(sizes.keys() | manifests.keys()),
            size=sum((manifests | sizes).values()),
            unreferenced=len(sizes.keys() - named),
            unpacked=len(self._checker.plain_layers),
            missing=[
                blob
                for blob in (*graph.absent, *lacking)
                if blob.digest in needed and blob.digest not in graph.omitted_from_source
            ],
            incomplete=exported.incomplete_indexes,
            omitted=[blob for blob in lacking if blob.digest in graph.omitted_from_source],
            failures=[BlobFailure(digest, error) for digest, error in self._checker.errors.items()],
        )

    @staticmethod
    def _limit_to_exported(graph: Graph, lacking: AbstractSet[str]) -> Graph:
        """Give the graph less the platforms that were not exported."""
        missing = find_not_exported(graph, lambda blob: blob.digest in lacking)
        return limit_to_exported(graph, {one.digest for one in missing}) if missing else graph

    def _check_diff_ids(self, graph: Graph) -> None:
        for manifest, document in graph.images():
            config = document.config
            if config is None or not is_image(document) or config.digest in self._checker.errors:
                continue
            promised = self._diff_ids.get(config.digest)
            if promised is None:
                # It is missing, which is said.
                continue
            if len(promised) != len(document.layers):
                msg = f"{len(document.layers)} layers, and {len(promised)} diff_ids in the config"
                self._checker.errors[manifest.descriptor.digest] = ArchiveError(
                    f"manifest {manifest.descriptor.digest}: {msg}"
                )
                continue
            for layer, diff_id in zip(document.layers, promised, strict=True):
                plain = self._checker.plain_layers.get(layer.digest)
                if plain is None:
                    continue
                if layer.size and layer_media_types.codec_name(layer.media_type) not in {None, plain.codec}:
                    msg = f"{layer.digest} is called {layer.media_type}, and its compression is {plain.codec}"
                    self._checker.errors.setdefault(layer.digest, ArchiveError(msg))
                if plain.digest != diff_id:
                    msg = (
                        f"{layer.digest}: its plain bytes have the digest {plain.digest}, "
                        f"its image's config says {diff_id}"
                    )
                    self._checker.errors[layer.digest] = IntegrityError(msg)


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
        kind = layer_media_types.layer_media_type(layer_media_types.OCI_LAYER, detect_codec(first).name)
        raw = HashedChunks(itertools.chain([first], chunks))
        error: OcistreamError | None = None
        plain: PlainLayer | None = None
        try:
            plain = self.read_complete(raw, Descriptor(layer_media_types.OCI_LAYER, "", 0), unpack=self._deep)
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


class DiscardedBlobs:
    """Where blobs go of a source of which only the graph is asked for: they are verified, and nowhere kept."""

    def __init__(self, cancelled: threading.Event) -> None:
        """`cancelled` ends it."""
        self._checker = BlobChecker(NullObserver(), deep=False, max_ratio=limits.MAX_RATIO, cancelled=cancelled)

    def write(self, blob: Blob) -> None:
        """Read a blob to its end.

        Raises:
            IntegrityError: it is not what its name says.
        """
        self._checker.write(blob)
        if (error := self._checker.errors.get(blob.descriptor.digest)) is not None:
            raise error

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Read a layer to its end."""
        return self._checker.write_new(chunks)

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Give back small content that was put."""
        return self._checker.read_back(descriptor)

    def read_contents(self, source: Source, wanted: Sequence[Descriptor]) -> dict[str, bytes]:
        """Read small blobs whole, as far as the source has them; a stream is read to its end.

        Raises:
            IntegrityError: one is not what it should be.
        """
        found: dict[str, bytes] = {}
        for blob in source.blobs(wanted):
            found[blob.descriptor.digest] = b"".join(bytes(c) for c in verify_chunks(blob.open(), blob.descriptor))
        for descriptor in wanted:
            if descriptor.digest not in found and self._checker.can_read_back(descriptor):
                found[descriptor.digest] = self._checker.read_back(descriptor)
        return found

    def close(self) -> None:
        """Let go of what was kept."""
        self._checker.close()
