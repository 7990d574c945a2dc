"""verify(source): everything that a source holds, read once and held against its digests; nothing is kept or moved.

A blob that is wrong does not end it: all that is wrong is found in one pass. What makes further reading senseless does
(a tar that ends too early, an index that is malformed) and is raised as it is.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import IO, TYPE_CHECKING, NamedTuple

from ocistream import files, layers, limits
from ocistream.compression import codec_of, decompressed
from ocistream.configs import Configs, begins_as_object, no_json
from ocistream.documents import check_config, diff_ids_of_config
from ocistream.errors import ArchiveError, IntegrityError, OcistreamError, UnsupportedError
from ocistream.graph import is_image
from ocistream.interfaces import HasParts, Unwatched
from ocistream.layers import looks_like_layer
from ocistream.model import Descriptor
from ocistream.stream import Blamed, Tally, counted, stoppable, verified, wrong_size
from ocistream.volumes import wrong_part
from ocistream.workers import each

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocistream.graph import Graph
    from ocistream.interfaces import Blob, Observer, Source
    from ocistream.stream import Chunk

__all__ = ["Findings", "Onlooker", "Wrong", "verify"]

#: Reading side by side pays as long as there are cores; more are rarely free for this.
_JOBS = 4
#: Where layers are unpacked, each thread keeps room for the widest window that it has met.
_DEEP_JOBS = 2


def is_layer(descriptor: Descriptor) -> bool:
    """Say whether something is an image layer, by its media type."""
    return layers.codec_name(descriptor.media_type) is not None


@dataclass(frozen=True, slots=True)
class Wrong:
    """A blob that is not what it should be: in its bytes, or in what they unpack to; `error` says how."""

    digest: str
    error: OcistreamError


@dataclass(slots=True)
class Findings:
    """What was found. Sizes are in bytes.

    `missing` are manifests and blobs that images need and that are not there; `left_out` are those of which the
    source says that it was made without them. `unneeded` counts blobs that no image needs, `unpacked` layers whose
    plain bytes were looked at, and `parts` those of blobs that have the rest in other volumes.
    """

    graph: Graph
    blobs: int = 0
    size: int = 0
    unneeded: int = 0
    unpacked: int = 0
    parts: int = 0
    missing: list[Descriptor] = field(default_factory=list)
    left_out: list[Descriptor] = field(default_factory=list)
    wrong: list[Wrong] = field(default_factory=list)


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
    check = _Check(observer or Unwatched(), deep=deep, max_ratio=max_ratio, cancelled=cancelled or threading.Event())
    try:
        return check.run(source)
    finally:
        check.close()


class _Check:
    """One verification; to the source it is where blobs go that come before their images are known."""

    def __init__(self, observer: Observer, *, deep: bool, max_ratio: int, cancelled: threading.Event) -> None:
        self._observer = observer
        self._deep = deep
        self._max_ratio = max_ratio
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        self._wrong: dict[str, OcistreamError] = {}
        #: Digests of plain bytes, of whatever looked like a layer or was known to be one.
        self._plain: dict[str, _Plain] = {}
        self._diff_ids: dict[str, tuple[str, ...]] = {}
        #: Digests of configs that were read as JSON.
        self._looked_at: set[str] = set()
        self._kept = _Kept()

    def close(self) -> None:
        self._kept.close()

    def run(self, source: Source) -> Findings:
        graph = source.graph(self)
        self._observer.planned(graph)
        images = [document for _, document in graph.images() if is_image(document)] if self._deep else []
        configs = Configs()
        configs.find(graph)
        unpack = {layer.digest for document in images for layer in document.layers if is_layer(layer)}
        waiting = [blob for blob in graph.blobs if blob.digest not in self._sizes]

        def look(blob: Blob) -> None:
            digest = blob.descriptor.digest
            if digest in configs.digests:
                with configs.turn(blob.descriptor):
                    self._look_at_config(blob)
            else:
                self._look(blob.descriptor, blob.open(), unpack=digest in unpack)

        jobs = (_DEEP_JOBS if self._deep else _JOBS) if source.parallel else 1
        each(look, source.blobs(waiting), jobs=jobs, cancelled=self._cancelled)
        parts = self._look_at_parts(source, graph) if isinstance(source, HasParts) else []
        findings = self._findings(graph, configs)
        findings.parts, findings.size = len(parts), findings.size + sum(parts)
        return findings

    # -- what a source may do with blobs that come before the graph (interfaces.Early) -------------------

    def put(self, blob: Blob) -> None:
        """Look at a blob of which only the digest is known."""
        chunks = blob.open()
        first = bytes(next(chunks, b""))
        whole: Iterator[Chunk] = itertools.chain([first], chunks)
        if begins_as_object(first) and blob.descriptor.size <= limits.MAX_CONFIG:
            whole = self._kept.keeping(blob.descriptor, whole)
        self._look(blob.descriptor, whole, unpack=self._deep and looks_like_layer(first))

    def put_unnamed(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Look at a layer of which no digest is known."""
        first = bytes(next(chunks, b""))
        kind = layers.media_type(layers.OCI, codec_of(first).name)
        raw = Tally(itertools.chain([first], chunks))
        error: OcistreamError | None = None
        plain: _Plain | None = None
        try:
            plain = self._read(raw, Descriptor(layers.OCI, "", 0), unpack=self._deep)
        except _CannotUnpackError as found:
            error = found.error
        descriptor = Descriptor(kind, raw.digest, raw.size)
        self._note(descriptor, error, plain)
        return descriptor

    def recall(self, descriptor: Descriptor) -> bytes:
        """Give back small content that was put."""
        return self._kept.recall(descriptor)

    def keeps(self, descriptor: Descriptor) -> bool:
        """Say whether `recall` can give it back."""
        return self._kept.has(descriptor)

    def raise_first(self) -> None:
        """Raise what was wrong first, if anything was."""
        for error in self._wrong.values():
            raise error

    # -- looking -----------------------------------------------------------------------------------------

    def _look(self, descriptor: Descriptor, chunks: Iterator[Chunk], *, unpack: bool) -> None:
        try:
            self._note(descriptor, None, self._read(verified(chunks, descriptor), descriptor, unpack=unpack))
        except IntegrityError as error:
            self._note(descriptor, error)
        except _CannotUnpackError as found:
            self._note(descriptor, found.error)

    def _look_at_parts(self, source: HasParts, graph: Graph) -> list[int]:
        """Look at parts of blobs that are not all there, and give their sizes; or find out where one is wrong that is.

        The parts of one that is there, and right, are.
        """
        sizes: list[int] = []
        for blob in graph.blobs:
            whole = blob.digest in self._sizes
            if whole and blob.digest not in self._wrong:
                continue
            for part in source.parts(blob):
                if part.blob is None:
                    continue
                if not whole:
                    sizes.append(part.size)
                try:
                    self._read(verified(part.blob.open(), part.blob.descriptor), blob, unpack=False)
                except IntegrityError as error:
                    self._wrong[blob.digest] = wrong_part(blob.digest, part.offset, part.volume, error)
        return sizes

    def _look_at_config(self, blob: Blob) -> None:
        descriptor = blob.descriptor
        # No larger than a config may be: the walk has seen to that.
        content = io.BytesIO()

        def keeping() -> Iterator[Chunk]:
            for chunk in blob.open():
                content.write(chunk)
                yield chunk

        self._look(descriptor, keeping(), unpack=False)
        if descriptor.digest not in self._wrong:
            self._note_config(descriptor, content.getvalue())

    def _look_at_early(self, configs: Configs, graph: Graph) -> None:
        """Look at configs that came before anybody knew what they are; what may be one was kept."""
        unread = (configs.digests & self._sizes.keys()) - self._looked_at - self._wrong.keys()
        for blob in graph.blobs if unread else ():
            if blob.digest in unread and self._kept.has(blob):
                self._note_config(blob, self._kept.recall(blob))
            elif blob.digest in unread:
                self._wrong[blob.digest] = no_json(blob)

    def _note_config(self, descriptor: Descriptor, content: bytes) -> None:
        what = f"the config {descriptor.digest}"
        self._looked_at.add(descriptor.digest)
        try:
            if self._deep:
                self._diff_ids[descriptor.digest] = diff_ids_of_config(content, what)
            else:
                check_config(content, what)
        except ArchiveError as error:
            self._wrong[descriptor.digest] = error

    def _read(self, chunks: Iterator[Chunk], descriptor: Descriptor, *, unpack: bool) -> _Plain | None:
        """Read all of a blob and say what it unpacks to, or None where it is not to be unpacked.

        `descriptor` is whose bytes these are, for who watches.

        Raises:
            _CannotUnpackError: it is what it should be, but not a well-formed compressed stream.
            OcistreamError: what reading it raises.
        """
        passing = partial(self._observer.advance, descriptor=descriptor)
        raw = Blamed(counted(stoppable(chunks, self._cancelled), passing))
        if not unpack:
            for _ in raw:
                pass
            return None
        try:
            first = bytes(next(raw, b""))
            codec = codec_of(first)
            plain = Tally(decompressed(codec, itertools.chain([first], raw), self._max_ratio))
            for _ in plain:
                pass
        except (ArchiveError, UnsupportedError) as error:
            if raw.has_failed:
                raise
            # If the bytes are not those that were promised either, that is what is to be said.
            for _ in raw:
                pass
            raise _CannotUnpackError(error) from error
        return _Plain(plain.digest, codec.name)

    def _note(self, descriptor: Descriptor, error: OcistreamError | None, plain: _Plain | None = None) -> None:
        if isinstance(error, ArchiveError | UnsupportedError):
            error = type(error)(f"{descriptor.digest}: {error.what}", hint=error.hint)
        with self._lock:
            self._sizes[descriptor.digest] = descriptor.size
            if error is not None:
                self._wrong[descriptor.digest] = error
            if plain is not None:
                self._plain[descriptor.digest] = plain
        self._observer.done(descriptor, "verified")

    # -- what came of it ---------------------------------------------------------------------------------

    def _findings(self, graph: Graph, configs: Configs) -> Findings:
        for blob in graph.blobs:
            seen = self._sizes.get(blob.digest)
            if seen is not None and seen != blob.size:
                self._wrong.setdefault(blob.digest, wrong_size(blob, seen))
        self._look_at_early(configs, graph)
        if self._deep:
            self._check_diff_ids(graph)
        lacking = [blob for blob in graph.blobs if blob.digest not in self._sizes]
        named = {blob.digest for blob in graph.blobs} | {m.descriptor.digest for m in graph.manifests}
        return Findings(
            graph,
            blobs=len(self._sizes.keys() | {m.descriptor.digest for m in graph.manifests}),
            size=sum(self._sizes.values())
            + sum(m.descriptor.size for m in graph.manifests if m.descriptor.digest not in self._sizes),
            unneeded=len(self._sizes.keys() - named),
            unpacked=len(self._plain),
            missing=[*graph.absent, *(blob for blob in lacking if blob.digest not in graph.left_out)],
            left_out=[blob for blob in lacking if blob.digest in graph.left_out],
            wrong=[Wrong(digest, error) for digest, error in self._wrong.items()],
        )

    def _check_diff_ids(self, graph: Graph) -> None:
        for manifest, document in graph.images():
            config = document.config
            if config is None or not is_image(document) or config.digest in self._wrong:
                continue
            promised = self._diff_ids.get(config.digest)
            if promised is None:
                # It is missing, which is said.
                continue
            if len(promised) != len(document.layers):
                msg = f"{len(document.layers)} layers, and {len(promised)} diff_ids in the config"
                self._wrong[manifest.descriptor.digest] = ArchiveError(f"manifest {manifest.descriptor.digest}: {msg}")
                continue
            for layer, diff_id in zip(document.layers, promised, strict=True):
                plain = self._plain.get(layer.digest)
                if plain is None:
                    continue
                if layer.size and layers.codec_name(layer.media_type) not in {None, plain.codec}:
                    msg = f"{layer.digest} is called {layer.media_type}, and its compression is {plain.codec}"
                    self._wrong.setdefault(layer.digest, ArchiveError(msg))
                if plain.digest != diff_id:
                    msg = (
                        f"{layer.digest}: its plain bytes have the digest {plain.digest}, "
                        f"its image's config says {diff_id}"
                    )
                    self._wrong[layer.digest] = IntegrityError(msg)


class Onlooker:
    """Where blobs go of a source of which only the graph is asked for: they are verified, and nowhere kept."""

    def __init__(self, cancelled: threading.Event) -> None:
        """`cancelled` ends it."""
        self._check = _Check(Unwatched(), deep=False, max_ratio=limits.MAX_RATIO, cancelled=cancelled)

    def put(self, blob: Blob) -> None:
        """Read a blob to its end.

        Raises:
            IntegrityError: it is not what its name says.
        """
        self._check.put(blob)
        self._check.raise_first()

    def put_unnamed(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Read a layer to its end."""
        return self._check.put_unnamed(chunks)

    def recall(self, descriptor: Descriptor) -> bytes:
        """Give back small content that was put."""
        return self._check.recall(descriptor)

    def contents_of(self, source: Source, wanted: Sequence[Descriptor]) -> dict[str, bytes]:
        """Read small blobs whole, as far as the source has them; a stream is read to its end.

        Raises:
            IntegrityError: one is not what it should be.
        """
        found: dict[str, bytes] = {}
        for blob in source.blobs(wanted):
            found[blob.descriptor.digest] = b"".join(bytes(c) for c in verified(blob.open(), blob.descriptor))
        for descriptor in wanted:
            if descriptor.digest not in found and self._check.keeps(descriptor):
                found[descriptor.digest] = self._check.recall(descriptor)
        return found

    def close(self) -> None:
        """Let go of what was kept."""
        self._check.close()


class _Plain(NamedTuple):
    """What a layer unpacks to, and from what."""

    digest: str
    codec: str


class _CannotUnpackError(Exception):
    """A compressed stream is malformed."""

    def __init__(self, error: OcistreamError) -> None:
        super().__init__()
        self.error = error


class _Kept:
    """Small JSON that comes before anybody knows what it is, and for which its source had no room: in a file."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._places: dict[str, tuple[int, int]] = {}

    def keeping(self, descriptor: Descriptor, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Pass chunks on, and keep them."""
        with files.disk_errors("cannot keep a manifest in a temporary file"):
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with this
            begin = self._file.seek(0, io.SEEK_END)
        for chunk in chunks:
            with files.disk_errors("cannot keep a manifest in a temporary file"):
                self._file.write(chunk)
            yield chunk
        self._places[descriptor.digest] = (begin, descriptor.size)

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether it was kept."""
        return descriptor.digest in self._places

    def recall(self, descriptor: Descriptor) -> bytes:
        """Give it back."""
        assert self._file is not None, "nothing was kept"  # noqa: S101 - sources ask for what they put
        begin, size = self._places[descriptor.digest]
        with files.disk_errors("cannot read a temporary file"):
            self._file.seek(begin)
            return self._file.read(size)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
