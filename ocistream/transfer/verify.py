"""verify(source): everything that a source holds, read once and held against its digests; nothing is kept or moved.

A blob that is wrong does not end it: all that is wrong is found in one pass. What makes further reading senseless does
(a tar that ends too early, an index that is malformed) and is raised as it is.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, OcistreamError
from ocistream.oci.documents import check_config, parse_diff_ids
from ocistream.oci.graph import is_image
from ocistream.oci.volumes import part_error
from ocistream.streams import layer_types
from ocistream.streams.chunks import size_error, verify_chunks
from ocistream.streams.workers import run_each
from ocistream.transfer.blob_checks import BlobChecker
from ocistream.transfer.configs import ConfigChecker, not_json_error
from ocistream.transfer.incomplete_indexes import find_not_exported, limit_to_exported
from ocistream.transfer.interfaces import BlobPartSource, NullObserver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph, IncompleteIndex
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, Observer, Source

__all__ = ["BlobFailure", "Findings", "verify"]

#: Reading side by side pays as long as there are cores; more are rarely free for this.
_JOBS = 4
#: Where layers are unpacked, each thread keeps room for the widest window that it has met.
_DEEP_JOBS = 2


def is_layer(descriptor: Descriptor) -> bool:
    """Say whether something is an image layer, by its media type."""
    return layer_types.codec_name(descriptor.media_type) is not None


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
                if layer.size and layer_types.codec_name(layer.media_type) not in {None, plain.codec}:
                    msg = f"{layer.digest} is called {layer.media_type}, and its compression is {plain.codec}"
                    self._checker.errors.setdefault(layer.digest, ArchiveError(msg))
                if plain.digest != diff_id:
                    msg = (
                        f"{layer.digest}: its plain bytes have the digest {plain.digest}, "
                        f"its image's config says {diff_id}"
                    )
                    self._checker.errors[layer.digest] = IntegrityError(msg)
