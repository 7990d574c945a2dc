"""What neither side of a transfer has: which blobs, and why the source is without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import MissingContentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.graph import Graph
    from ocistream.model import Descriptor

__all__ = ["ShortfallError"]


class ShortfallError(MissingContentError):
    """The source lacks blobs that the destination lacks too; nothing was made visible.

    `missing` are all of them, in the order of the graph, and `graph` says of which images, and why they were left out,
    if they were. With `is_untouched` that was found out before anything was sent.
    """

    def __init__(self, missing: Sequence[Descriptor], graph: Graph, *, is_untouched: bool) -> None:
        """Name the first of them, and say how many others there are."""
        digests = [descriptor.digest for descriptor in missing]
        more = f" and {len(digests) - 5} more" if len(digests) > 5 else ""
        super().__init__(
            f"incomplete: the source lacks {', '.join(digests[:5])}{more}, and so does the destination",
            hint="get the whole image, or with --platform one of which everything is there",
        )
        self.missing = tuple(missing)
        self.graph = graph
        self.is_untouched = is_untouched
