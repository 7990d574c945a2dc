"""Read what `ocistream inspect` shows of a source: its graph, and the configs of its images."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.documents import ConfigSummary, parse_config_summary
from ocistream.sizes import format_count
from ocistream.streams.budget import Budget
from ocistream.transfer.interfaces import SizedSource
from ocistream.transfer.inventory import Inventory, describe_images, list_image_configs
from ocistream.transfer.verify import DiscardedBlobs

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Blob, EarlyBlobs, Source

__all__ = ["inspect_source"]


def inspect_source(
    source: Source,
    *,
    name: str | None = None,
    list_referrers: Callable[[Sequence[str]], Mapping[str, Sequence[Descriptor]]] = lambda _digests: {},
    jobs: int = 1,
    cancelled: threading.Event | None = None,
    report: Callable[[str], None] = lambda _message: None,
) -> Inventory:
    """Return the description of the images of a source, which is not needed any more.

    `name` is the name of images without one. `list_referrers` returns the referrers of manifests that are not in the
    source itself. `jobs` configs are read at a time; with one, the same labels are shown each time.

    Raises:
        OcistreamError: the source cannot be read.
    """
    with contextlib.closing(DiscardedBlobs(cancelled)) as discarded:
        graph = source.resolve(discarded)
        sized = _BlobsOfRightSize(source, source.stored_size) if isinstance(source, SizedSource) else None
        summaries = _ConfigSummaries()
        configs = [config for config in list_image_configs(graph) if not sized or sized.can_have_blob(config)]
        discarded.read_contents(sized or source, configs, summaries.add, jobs=jobs, cancelled=cancelled)
    if summaries.unlabelled:
        report(f"the labels of {format_count(len(summaries.unlabelled), 'image')} are not shown: they are too many")
    for root in graph.roots:
        chosen = root.chosen_platforms
        if chosen is not None and root.descriptor.is_index and root.descriptor.digest != chosen.index:
            report(f"{root.descriptor.digest} is what a copy of these platforms gets; the location has {chosen.index}")
    if sized:
        missing = [blob for blob in graph.blobs if not sized.has_blob(blob) and blob.digest not in graph.embedded]
    else:
        missing = [config for config in configs if config.digest not in summaries.found]
    referrers = list_referrers([manifest.descriptor.digest for manifest in graph.manifests])
    names = {root.descriptor.digest: name for root in graph.roots} if name is not None else {}
    return describe_images(graph, summaries.by_digest, referrers, names, missing)


class _ConfigSummaries:
    """What is shown of configs, by digest: a config may have megabytes, and there may be thousands."""

    def __init__(self) -> None:
        self.by_digest: dict[str, ConfigSummary] = {}
        self.found: set[str] = set()
        #: Digests of the configs whose labels do not fit into `MAX_SHOWN_LABELS`.
        self.unlabelled: set[str] = set()
        self._label_memory = Budget(limits.MAX_SHOWN_LABELS)

    def add(self, descriptor: Descriptor, content: bytes) -> None:
        self.found.add(descriptor.digest)
        try:
            summary = parse_config_summary(content, f"the config {descriptor.digest}")
        except ArchiveError:
            # A config that is only shown may be malformed; it is checked when it is copied.
            return
        size = sum(len(key) + len(value) for key, value in summary.labels.items())
        if not self._label_memory.take(size):
            self.unlabelled.add(descriptor.digest)
            summary = replace(summary, labels={})
        self.by_digest[descriptor.digest] = summary


class _BlobsOfRightSize:
    """A source without the blobs that are stored with a wrong size: they count as missing, and would end the run."""

    def __init__(self, source: Source, stored_size: Callable[[str], int | None]) -> None:
        self._source = source
        self._stored_size = stored_size
        self.concurrent = source.concurrent

    def has_blob(self, descriptor: Descriptor) -> bool:
        return self._stored_size(descriptor.digest) == descriptor.size

    def can_have_blob(self, descriptor: Descriptor) -> bool:
        """Return whether a blob exists with the right size, or may still come."""
        return self._stored_size(descriptor.digest) in {None, descriptor.size}

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:
        return self._source.resolve(early_blobs)

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        return (blob for blob in self._source.blobs(wanted) if self.has_blob(blob.descriptor))

    def close(self) -> None:
        self._source.close()
