"""Describe the images or tags of a location as a JSON document, without fetching a layer from a registry."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError, UnsupportedError, UsageError
from ocistream.locations import Selection, open_source, reference_of
from ocistream.oci.documents import ConfigSummary, parse_config_summary
from ocistream.oci.reference import printable
from ocistream.sizes import format_count
from ocistream.transfer.inventory import describe_images, list_image_configs
from ocistream.transfer.verify import DiscardedBlobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.locations import Location, OpenContext
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.platforms import PlatformChoice
    from ocistream.transfer.interfaces import Blob, EarlyBlobs, Source

__all__ = ["NameList", "inspect_location", "list_names"]


def inspect_location(
    location: Location,
    context: OpenContext,
    *,
    platforms: PlatformChoice,
    max_ratio: int,
    cancelled: threading.Event,
    report: Callable[[str], None] = lambda _message: None,
) -> dict[str, Any]:
    """Return what `ocistream inspect --json` prints; `report` receives what a registry does not list.

    Of a repository, named without tag and digest, the tags are listed; most commands take the tag `latest`, as Docker
    does.

    Raises:
        OcistreamError: the location cannot be read.
    """
    if location.is_repository:
        listed = _list_tags(location, context)
        if listed.incomplete_reason:
            report(listed.incomplete_error().message)
        elif not listed.names:
            report(f"{listed.document['repository']} has no tags")
        return listed.document
    with contextlib.ExitStack() as stack:
        source = open_source(location, context, Selection(platforms=platforms, max_ratio=max_ratio, referrers="listed"))
        stack.callback(source.close)
        discarded = stack.enter_context(contextlib.closing(DiscardedBlobs(cancelled)))
        graph = source.resolve(discarded)
        sized_source = _wrap_sized_source(source)
        summaries = _ConfigSummaries()
        configs = [
            config for config in list_image_configs(graph) if not sized_source or sized_source.can_have_blob(config)
        ]
        # Files are read in order, so that the same labels are shown each time.
        jobs = context.jobs if location.reference else 1
        discarded.read_contents(sized_source or source, configs, summaries.add, jobs=jobs, cancelled=cancelled)
        if summaries.unlabelled:
            report(f"the labels of {format_count(summaries.unlabelled, 'image')} are not shown: they are too many")
        missing = [
            blob
            for blob in graph.blobs
            if sized_source and not sized_source.has_blob(blob) and blob.digest not in graph.embedded
        ]
        if not sized_source:
            missing = [config for config in configs if config.digest not in summaries.found]
        digests = [manifest.descriptor.digest for manifest in graph.manifests]
        # The registry modules need megabytes, and seconds on a slow disk: import them only for a registry.
        referrers = _find_referrers(source, digests, report) if location.reference else {}
    names = {root.descriptor.digest: location.reference.name for root in graph.roots if location.reference}
    return {"location": location.text, **describe_images(graph, summaries.by_digest, referrers, names, missing)}


class NameList(NamedTuple):
    """The tags of a repository in a registry, or the names of the images of an archive or layout.

    `document` is what `ocistream tags --json` prints. `incomplete_reason` says why further tags may exist, or is None.
    """

    names: tuple[str, ...]
    document: dict[str, Any]
    incomplete_reason: str | None = None

    def incomplete_error(self) -> UnsupportedError:
        """Return the error for a list that must be complete."""
        return UnsupportedError(f"{self.document['repository']} has further tags: {self.incomplete_reason}")


def list_names(location: Location, context: OpenContext, *, max_ratio: int, cancelled: threading.Event) -> NameList:
    """Return the tags of a repository in a registry, or the names of an archive or layout.

    Raises:
        UsageError: the location is one image.
        OcistreamError: the location cannot be read.
    """
    if location.name is not None or (location.reference is not None and not location.is_repository):
        msg = f"{printable(location.text)} is one image"
        raise UsageError(msg, hint="omit its tag, digest or name")
    if location.is_repository:
        return _list_tags(location, context)
    with contextlib.ExitStack() as stack:
        source = open_source(location, context, Selection(max_ratio=max_ratio, referrers="listed"))
        stack.callback(source.close)
        discarded = stack.enter_context(contextlib.closing(DiscardedBlobs(cancelled)))
        graph = source.resolve(discarded)
        # A pipe is read to its end: its writer must not fail.
        for _ in source.blobs(()):
            pass
    names = tuple(dict.fromkeys(root.name for root in graph.roots if root.name))
    return NameList(names, {"location": location.text, "names": list(names)})


def _list_tags(location: Location, context: OpenContext) -> NameList:
    reference = reference_of(location)
    tag_list = context.repository_opener().list_tags(reference)
    document = {
        "location": location.text,
        "repository": f"{reference.registry}/{reference.repository}",
        "tags": list(tag_list.tags),
        "complete": tag_list.incomplete_reason is None,
    }
    return NameList(tag_list.tags, document, tag_list.incomplete_reason)


class _ConfigSummaries:
    """What is shown of configs, by digest: a config may have megabytes, and there may be thousands."""

    def __init__(self) -> None:
        self.by_digest: dict[str, ConfigSummary] = {}
        self.found: set[str] = set()
        #: How many images have labels that do not fit into `MAX_SHOWN_LABELS`.
        self.unlabelled = 0
        self._label_size = 0
        self._lock = threading.Lock()

    def add(self, descriptor: Descriptor, content: bytes) -> None:
        self.found.add(descriptor.digest)
        try:
            summary = parse_config_summary(content, f"the config {descriptor.digest}")
        except ArchiveError:
            # A config that is only shown may be malformed; it is checked when it is copied.
            return
        size = sum(len(key) + len(value) for key, value in summary.labels.items())
        with self._lock:
            if self._label_size + size > limits.MAX_SHOWN_LABELS:
                self.unlabelled += 1
                summary = replace(summary, labels={})
            else:
                self._label_size += size
            self.by_digest[descriptor.digest] = summary


class _SizedSource:
    """A source that knows, without reading it, which blobs it has and their sizes."""

    def __init__(self, source: Source, size: Callable[[str], int | None]) -> None:
        """`size` returns the bytes stored under a digest, or None; in a stream, of blobs read so far."""
        self._source = source
        self._size = size
        self.concurrent = source.concurrent

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether a blob exists with the right size."""
        return self._size(descriptor.digest) == descriptor.size

    def can_have_blob(self, descriptor: Descriptor) -> bool:
        """Return whether a blob exists with the right size, or may still come."""
        return self._size(descriptor.digest) in {None, descriptor.size}

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:
        """Return the graph of the source."""
        return self._source.resolve(early_blobs)

    def blobs(self, selected: Sequence[Descriptor]) -> Iterator[Blob]:
        """Return the selected blobs, except those of a wrong size: they count as missing, and would end the run."""
        for blob in self._source.blobs(selected):
            if self.has_blob(blob.descriptor):
                yield blob

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def _wrap_sized_source(source: Source) -> _SizedSource | None:
    """Return a source that knows the sizes of its blobs; None for a registry, which is not asked for each.

    None for a docker-archive too: its images are made from what it has, so nothing can be missing.
    """
    from ocistream.layout.source import LayoutSource

    if isinstance(source, LayoutSource):
        return _SizedSource(source, source.layout.blob_size)
    from ocistream.archive.source import ArchiveSource

    if not isinstance(source, ArchiveSource) or source.contents.is_docker_archive:
        return None
    entries = source.contents.blobs
    return _SizedSource(source, lambda digest: entries[digest].size if digest in entries else None)


def _find_referrers(
    source: Source, digests: Sequence[str], report: Callable[[str], None]
) -> Mapping[str, Sequence[Descriptor]]:
    """Ask a registry for the referrers of an image's manifests; an archive has all its referrers in itself."""
    from ocistream.registry.source import RegistrySource

    referrers = source.list_referrers(digests) if isinstance(source, RegistrySource) else {}
    for digest, result in referrers.items():
        if result.incomplete_reason:
            report(f"not all referrers of {digest} are shown: {result.incomplete_reason}")
    return {digest: result.descriptors for digest, result in referrers.items()}
