"""Verify all blobs of a source against their digests, and layers against diff_ids, without storing anything.

Collects all failures in one pass; raises only for what makes further reading pointless.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ocistream import limits, notices
from ocistream.errors import ArchiveError, IntegrityError, OcistreamError, UnsupportedError
from ocistream.oci.descriptor import size_error
from ocistream.oci.documents import check_config, parse_diff_ids
from ocistream.oci.graph import is_image
from ocistream.oci.volumes import part_error
from ocistream.streams.chunks import verify_chunks
from ocistream.streams.compression import codec_name
from ocistream.streams.workers import run_each
from ocistream.transfer.config_checks import (
    ConfigChecker,
    find_diff_id_errors,
    media_type_error,
    not_json_error,
    record_chunks,
)
from ocistream.transfer.discarded_blobs import BlobChecker
from ocistream.transfer.incomplete_indexes import limit_to_exported
from ocistream.transfer.interfaces import NullObserver

if TYPE_CHECKING:
    import threading

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph, IncompleteIndex
    from ocistream.signatures.check import SignatureCheck
    from ocistream.transfer.interfaces import Blob, Observer, Source

#: Reading in parallel helps while there are free cores; more than these are rarely free.
_JOBS = 4
#: Fewer where layers are decompressed: each thread keeps memory for the widest window that it has met.
_DEEP_JOBS = 2


@dataclass(frozen=True, slots=True)
class BlobFailure:
    """A blob whose bytes, or decompressed content, are wrong; `error` says how."""

    digest: str
    error: OcistreamError


@dataclass(slots=True)
class Findings:
    """What `verify` found. Sizes are in bytes.

    `graph` has the images. `blobs` counts manifests and blobs, `manifests` only the manifests of the images, and `size`
    is the size of all. `failures` are those with wrong content. `missing` are manifests and blobs that images need and
    the source lacks. `omitted` are those that the source omits on purpose. `incomplete` are indexes of which only some
    platforms were exported; blobs of the others are not in `missing`. `unreferenced` counts blobs that no image needs,
    `unpacked` layers that were decompressed, and `parts` the parts of blobs that continue in other volumes.
    """

    graph: Graph
    blobs: int = 0
    manifests: int = 0
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
    check: SignatureCheck | None = None,
    cancelled: threading.Event | None = None,
) -> Findings:
    """Read and verify everything in `source`, which must be opened with `all_blobs`.

    With `deep`, layers are also decompressed, up to `max_ratio` times their size, and checked against the diff_ids of
    their configs. `check` gets the contents that it needs; the caller reads its results.

    Raises:
        OcistreamError: reading cannot continue.
    """
    verification = _Verification(observer or NullObserver(), deep=deep, max_ratio=max_ratio, cancelled=cancelled)
    try:
        return verification.run(source, check)
    finally:
        verification.close()


class _Verification:
    """One verification."""

    def __init__(self, observer: Observer, *, deep: bool, max_ratio: int, cancelled: threading.Event | None) -> None:
        self._observer = observer
        self._deep = deep
        self._cancelled = cancelled
        self._checker = BlobChecker(observer, deep=deep, max_ratio=max_ratio, cancelled=cancelled)
        self._diff_ids: dict[str, tuple[str, ...]] = {}
        #: Digests of configs that were parsed.
        self._checked_configs: set[str] = set()

    def close(self) -> None:
        self._checker.close()

    def run(self, source: Source, check: SignatureCheck | None) -> Findings:
        graph = source.resolve(self._checker)
        self._observer.planned(graph)
        if check is not None:
            check.start(graph)
            for blob in tuple(check.pending.values()):
                if self._checker.can_read_back(blob):
                    check.add(blob.digest, self._checker.read_back(blob))
        images = [document for _, document in graph.images() if is_image(document)] if self._deep else []
        configs = ConfigChecker()
        configs.find_configs(graph)
        unpack = {layer.digest for document in images for layer in document.layers if codec_name(layer.media_type)}
        pending = [blob for blob in graph.blobs if blob.digest not in self._checker.sizes]

        def check_blob(blob: Blob) -> None:
            digest = blob.descriptor.digest
            if digest in configs.digests:
                # Its size is at most `MAX_CONFIG`: the walk has checked that.
                with configs.take_turn(blob.descriptor, self._cancelled):
                    if (content := self._read_small(blob)) is not None:
                        self._add_config(blob.descriptor, content)
            elif check is not None and digest in check.pending:
                if (content := self._read_small(blob)) is not None:
                    check.add(digest, content)
            else:
                self._checker.check(blob.descriptor, blob.open(), unpack=digest in unpack)

        jobs = (_DEEP_JOBS if self._deep else _JOBS) if source.concurrent else 1
        run_each(check_blob, source.blobs(pending), jobs=jobs, cancelled=self._cancelled)
        parts = self._check_parts(source, graph)
        findings = self._collect_findings(graph, configs)
        findings.parts, findings.size = len(parts), findings.size + sum(parts)
        return findings

    # -- reading -------------------------------------------------------------------------------------------

    def _check_parts(self, source: Source, graph: Graph) -> list[int]:
        """Verify the available parts of blobs, and return the sizes of parts whose blob is incomplete.

        The parts of a complete blob are read only if it is corrupt, to find the wrong one.
        """
        sizes: list[int] = []
        for blob in graph.blobs:
            is_complete = blob.digest in self._checker.sizes
            if is_complete and blob.digest not in self._checker.errors:
                continue
            for part in source.parts(blob):
                if part.blob is None or part.blob.range_descriptor is None:
                    continue
                if not is_complete:
                    sizes.append(part.size)
                try:
                    self._checker.read_complete(
                        verify_chunks(part.blob.open(), part.blob.range_descriptor), blob, unpack=False
                    )
                except IntegrityError as error:
                    self._checker.errors[blob.digest] = part_error(blob.digest, part.offset, part.volume, error)
        return sizes

    def _read_small(self, blob: Blob) -> bytes | None:
        """Verify a blob, and return its content, or None if the bytes are wrong."""
        content = io.BytesIO()
        self._checker.check(blob.descriptor, record_chunks(blob.open(), content), unpack=False)
        return content.getvalue() if blob.descriptor.digest not in self._checker.errors else None

    def _check_early_configs(self, configs: ConfigChecker, graph: Graph) -> None:
        """Check configs that came before the graph; blobs that may be configs were kept."""
        unread = (configs.digests & self._checker.sizes.keys()) - self._checked_configs - self._checker.errors.keys()
        for blob in graph.blobs if unread else ():
            if blob.digest in unread and self._checker.can_read_back(blob):
                self._add_config(blob, self._checker.read_back(blob))
            elif blob.digest in unread:
                self._checker.errors[blob.digest] = not_json_error(blob)

    def _add_config(self, descriptor: Descriptor, content: bytes) -> None:
        label = f"the config {descriptor.digest}"
        self._checked_configs.add(descriptor.digest)
        try:
            if self._deep:
                self._diff_ids[descriptor.digest] = parse_diff_ids(content, label)
            else:
                check_config(content, label)
        except ArchiveError as error:
            self._checker.errors[descriptor.digest] = error.without_frames()

    # -- results -------------------------------------------------------------------------------------------

    def _collect_findings(self, graph: Graph, configs: ConfigChecker) -> Findings:
        for blob in graph.blobs:
            read_size = self._checker.sizes.get(blob.digest)
            if read_size is not None and read_size != blob.size:
                self._checker.errors.setdefault(blob.digest, size_error(blob, read_size))
        self._check_early_configs(configs, graph)
        if self._deep:
            self._check_layers(graph)
        absent_blobs = [
            blob for blob in graph.blobs if blob.digest not in self._checker.sizes and blob.digest not in graph.embedded
        ]
        absent_digests = {blob.digest for blob in absent_blobs}
        exported = limit_to_exported(graph, lambda blob: blob.digest in absent_digests)
        needed = {blob.digest for blob in (*exported.blobs, *exported.absent)}
        # Foreign layers are not copied, but a layout or an archive may have them.
        referenced = {blob.digest for blob in (*graph.blobs, *graph.foreign)} | {
            m.descriptor.digest for m in graph.manifests
        }
        # A file of a docker-archive that no image names is not a blob.
        unnamed = self._checker.unnamed_layers - referenced
        sizes = {digest: size for digest, size in self._checker.sizes.items() if digest not in unnamed}
        synthesized = {root.descriptor.digest for root in graph.roots if root.is_synthesized}
        manifests = {
            m.descriptor.digest: m.descriptor.size for m in graph.manifests if m.descriptor.digest not in synthesized
        }
        return Findings(
            graph,
            blobs=len(sizes.keys() | manifests.keys()),
            manifests=len(manifests),
            size=sum((manifests | sizes).values()),
            unreferenced=len(sizes.keys() - referenced),
            unpacked=len(self._checker.plain_layers),
            missing=[
                blob
                for blob in (*graph.absent, *absent_blobs)
                if blob.digest in needed and blob.digest not in graph.omitted_from_source
            ],
            incomplete=exported.incomplete_indexes,
            omitted=[blob for blob in absent_blobs if blob.digest in graph.omitted_from_source],
            failures=[BlobFailure(digest, error) for digest, error in self._checker.errors.items()],
        )

    def _check_layers(self, graph: Graph) -> None:
        errors, plain_layers = self._checker.errors, self._checker.plain_layers
        for _, document in graph.images():
            for layer in document.layers if is_image(document) else ():
                plain = plain_layers.get(layer.digest)
                # Without --deep a media type is trusted. Here the bytes must have the compression that it says.
                if plain and layer.size and codec_name(layer.media_type) not in {None, plain.codec}:
                    errors.setdefault(layer.digest, media_type_error(layer, plain.codec))
        # A missing config is reported already.
        diff_ids = {digest: listed for digest, listed in self._diff_ids.items() if digest not in errors}
        plain_digests = {digest: plain.digest for digest, plain in plain_layers.items()}
        for digest, error in find_diff_id_errors(graph.images(), diff_ids, plain_digests):
            if isinstance(error, UnsupportedError):
                notices.notify(f"{error.message}: only sha256 diff_ids are checked")
            else:
                errors[digest] = error
