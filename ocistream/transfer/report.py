"""The results of a transfer as values: the written graph, what became of each blob, and which blobs are missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ocistream.errors import MissingContentError
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph

__all__ = [
    "BlobResult",
    "MissingBlobsError",
    "NeededVolumes",
    "Report",
]


@dataclass(slots=True)
class BlobResult:
    """One blob and what became of it: "copied", "converted", "mounted", "skipped", or "left out" on purpose.

    `source` is the digest of what it was made from, if it was converted. `resumed` is how many bytes of it were there
    already, left by an earlier run.
    """

    descriptor: Descriptor
    status: str
    source_digest: str | None = None
    resumed_size: int = 0


@dataclass(slots=True)
class Report:
    """What a transfer did. `seconds` is how long it took.

    `graph` is what was written; `source` is what was there to be read, another one only where layers were converted:
    its roots stand in the same order, and `origins` names what each new manifest was made of.
    """

    graph: Graph
    source_graph: Graph
    blobs: list[BlobResult] = field(default_factory=list)
    seconds: float = 0.0
    origins: Mapping[str, str] = field(default_factory=dict)


class NeededVolumes(NamedTuple):
    """Volumes that have what is lacking, by their names.

    `in_order` are blobs, by digest, of which a part is at hand that cannot be put before the parts in front of it, each
    with the volumes that have it from there on: they are put in this order, or together.
    """

    names: Sequence[str]
    in_order: Mapping[str, Sequence[str]]


class MissingBlobsError(MissingContentError):
    """The source lacks blobs that the destination lacks too; nothing was made visible.

    `missing` are all of them, in the order of the graph, and `graph` says of which images, and why they were left out,
    if they were. With `is_untouched` that was found out before anything was sent. `needed` are volumes that have all of
    them, if there are such.
    """

    def __init__(
        self, missing: Sequence[Descriptor], graph: Graph, *, is_untouched: bool, needed: NeededVolumes | None = None
    ) -> None:
        """Name the first of them, and say how many others there are; or name the volumes."""
        digests = [descriptor.digest for descriptor in missing]
        more = f" and {len(digests) - 5} more" if len(digests) > 5 else ""
        what = f"incomplete: the source lacks {', '.join(digests[:5])}{more}, and so does the destination"
        hint = "get the whole image, or with --platform one of which everything is there"
        if needed is not None:
            what = f"incomplete: still needed: {', '.join(map(printable, needed.names))}"
            hint = "what was put stays there: go on with these, in any order, or with all of them at once"
        super().__init__(what, hint=hint)
        self.needed = needed
        self.missing = tuple(missing)
        self.graph = graph
        self.is_untouched = is_untouched
