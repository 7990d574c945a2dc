"""The results of a transfer: what became of each blob, the written graph, and which blobs are missing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from ocistream.errors import MissingContentError, VolumesNeededError
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Observer


@dataclass(slots=True)
class BlobResult:
    """The result of one blob. `status` is "copied", "converted", "mounted", "skipped" or "omitted".

    `source_digest` is the digest of the source's blob, if it was converted. `resumed_size` is how many bytes an earlier
    run had already stored.
    """

    descriptor: Descriptor
    status: str
    source_digest: str | None = None
    resumed_size: int = 0


class BlobResults:
    """Collects the result of each blob of a copy, and tells the observer. Safe for several threads."""

    def __init__(self, observer: Observer) -> None:
        """Start without results."""
        self._observer = observer
        self._by_digest: dict[str, BlobResult] = {}

    @property
    def has_written(self) -> bool:
        """Whether a blob was written or mounted."""
        return any(result.status in {"copied", "converted", "mounted"} for result in [*self._by_digest.values()])

    def find(self, digest: str) -> BlobResult | None:
        """Return the result of a blob, or None if it has none yet."""
        return self._by_digest.get(digest)

    def add(self, descriptor: Descriptor, status: str, counted: int = 0, *, resumed: int = 0) -> None:
        """Add the result of a blob. `counted` is how many of its bytes were counted while they were read."""
        self._by_digest[descriptor.digest] = BlobResult(descriptor, status, resumed_size=resumed)
        # Bytes that were not read count as moved too, so that the total is reached.
        self._observer.advance(descriptor.size - counted)
        self._observer.done(descriptor, status)

    def list_for(self, graph: Graph, source_digests: Mapping[str, str]) -> list[BlobResult]:
        """Return the result of each blob of the written graph; `source_digests` are those of recompressed layers."""
        # For early blobs only the digest was known, so report the graph's descriptor.
        return [
            BlobResult(blob, "converted", source_digests[blob.digest])
            if blob.digest in source_digests
            else replace(self._by_digest[blob.digest], descriptor=blob)
            for blob in graph.blobs
        ]


@dataclass(slots=True)
class Report:
    """The result of a copy. `seconds` is its duration.

    `graph` was written, `source_graph` was read. They differ only if layers were recompressed: the roots then have the
    same order, and `origins` has the source digest of each new manifest.

    After a dry run (`is_dry_run`), nothing was written: the results are what a real run would do. `undetermined` are
    then the digests of the manifests that a real run replaces, since it recompresses their layers.
    """

    graph: Graph
    source_graph: Graph
    blobs: list[BlobResult] = field(default_factory=list)
    seconds: float = 0.0
    origins: Mapping[str, str] = field(default_factory=dict)
    is_dry_run: bool = False
    undetermined: AbstractSet[str] = frozenset()


class NeededVolumes(NamedTuple):
    """Names of the volumes that have the missing blobs.

    `in_order` are blobs, by digest, of which a part is available but earlier parts are missing. Each comes with the
    volumes that have the rest: they must be pushed in this order, or together.
    """

    names: Sequence[str]
    in_order: Mapping[str, Sequence[str]]


class MissingBlobsError(MissingContentError):
    """The source lacks blobs that the destination lacks too; nothing was made visible.

    `missing` are all of these blobs, in the order of the graph. `graph` has the images that need them and the reasons
    of omitted ones. If `is_untouched`, nothing was sent before. `needed` are the volumes that have all of them, if
    there are any.
    """

    def __init__(
        self, missing: Sequence[Descriptor], graph: Graph, *, is_untouched: bool, needed: NeededVolumes | None = None
    ) -> None:
        """Name the first blobs and the number of the others, or the volumes."""
        digests = [descriptor.digest for descriptor in missing]
        more = f" and {len(digests) - 5} more" if len(digests) > 5 else ""
        message = f"incomplete: neither the source nor the destination has {', '.join(digests[:5])}{more}"
        hint = "get the complete image"
        if any(root.descriptor.is_index for root in graph.roots):
            hint += ", or choose a complete platform with --platform"
        if needed is not None:
            message = f"incomplete: still needed: {', '.join(map(printable, needed.names))}"
            hint = (
                "the destination keeps what was written: copy these together, or into a registry one by one in the "
                "order of their numbers"
            )
        super().__init__(message, hint=hint)
        self.needed = needed
        self.missing = tuple(missing)
        self.graph = graph
        self.is_untouched = is_untouched


class MissingVolumesError(MissingBlobsError, VolumesNeededError):
    """Other volumes have the missing blobs, and the destination keeps what was written."""
