"""Plan what happens to each blob of a graph before anything is written: omit, recompress, check or write.

The existing blobs are found later (existing_blobs.py); what became of each blob is in `report.BlobResults`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import UnsupportedError
from ocistream.oci.digest import size_error

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.recompress import Recompressor
    from ocistream.transfer.report import BlobResults


class Action(Enum):
    """What happens to a blob of the graph. All but OMIT, RECOMPRESS and READ apply if the destination lacks it."""

    #: The output omits it on purpose.
    OMIT = auto()
    #: A layer gets another compression, and so another digest.
    RECOMPRESS = auto()
    #: A config is read, to check recompressed layers by its diff_ids, and written if the destination lacks it.
    READ = auto()
    #: A layer is written if it is compressed as its media type says.
    CHECK_COMPRESSION = auto()
    #: A config is written if it is valid JSON.
    CHECK_JSON = auto()
    #: It is written as it is.
    WRITE = auto()


@dataclass(frozen=True, slots=True)
class BlobPlan:
    """What happens to the blobs of a graph, by digest.

    `pending` are the blobs that did not come before the graph and are not omitted. `contents` are the bytes of blobs
    that are in memory: they are manifests of the graph too, or embedded in a descriptor. `recompressed` are the digests
    of the layers that are recompressed, or were before the graph was known.
    """

    actions: Mapping[str, Action]
    pending: tuple[Descriptor, ...]
    contents: Mapping[str, bytes]
    recompressed: Sequence[str]


def find_recompressed(graph: Graph, recompressor: Recompressor | None, results: BlobResults) -> set[str]:
    """Return the digests of the layers to recompress.

    Early blobs were handled by their first bytes, and may have another compression than their media type says.
    """
    if recompressor is None:
        return set()
    return {
        digest
        for digest in recompressor.find_layers(graph)
        if results.find(digest) is None or recompressor.results.get(digest)
    }


def plan_blobs(
    graph: Graph, configs: Collection[str], recompressor: Recompressor | None, results: BlobResults
) -> BlobPlan:
    """Return the plan for a graph; `configs` are the digests of those configs that must be JSON if small."""
    actions = dict.fromkeys((blob.digest for blob in graph.blobs), Action.WRITE)

    def assign(digests: Collection[str], action: Action) -> None:
        actions.update((digest, action) for digest in digests if digest in actions)

    parsed = {blob.digest for blob in graph.blobs if blob.size <= limits.MAX_PARSED_CONFIG}
    assign(parsed.intersection(configs), Action.CHECK_JSON)
    if recompressor is not None:
        if not recompressor.plain_only:
            # If only plain layers change, the others are copied unchecked.
            assign(recompressor.find_unchanged_layers(graph), Action.CHECK_COMPRESSION)
        assign(recompressor.find_configs(graph), Action.READ)
        assign(find_recompressed(graph, recompressor, results), Action.RECOMPRESS)
    assign(graph.omitted_from_output, Action.OMIT)
    pending: list[Descriptor] = []
    for blob in graph.blobs:
        action, result = actions[blob.digest], results.find(blob.digest)
        if action is Action.OMIT:
            continue
        if result is None:
            pending.append(blob)
        elif result.status == "converted" and action is not Action.RECOMPRESS:
            # The media type of an early blob was unknown, so it was recompressed by its first bytes. Fail rather than
            # write a blob that was not asked for.
            msg = f"{blob.digest} looked like a layer and was recompressed before the index showed that it is not one"
            raise UnsupportedError(msg, hint="read the archive from a file instead of a pipe or a compressed file")
        elif result.descriptor.size != blob.size:
            raise size_error(blob, result.descriptor.size)
    contents = {**graph.embedded, **{manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}}
    recompressed = [digest for digest, action in actions.items() if action is Action.RECOMPRESS]
    return BlobPlan(actions, tuple(pending), contents, recompressed)
