"""What a transfer did, as values: the graph that was written, and what became of each blob."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph

__all__ = ["BlobResult", "Report"]


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
