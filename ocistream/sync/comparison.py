"""Compare an image with each of its destinations: same digest and same referrers, or to be copied."""

from __future__ import annotations

import contextlib
import functools
import operator
import threading
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream import limits, notices
from ocistream.errors import NetworkError, NotFoundError, OcistreamError, RegistryError
from ocistream.layout.destination import ListedImages
from ocistream.layout.image_selection import Selection
from ocistream.locations import is_layout_destination
from ocistream.oci.reference import is_digest_tag, printable
from ocistream.registry.repository import Repository
from ocistream.streams.files import disk_errors
from ocistream.streams.synchronization import Budget, LinkedEvent
from ocistream.sync.open_locations import NO_IMAGES, LayoutWriters, SyncSources, resolve_graph
from ocistream.transfer.incomplete_indexes import limit_to_source

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from ocistream.layout.index_file import IndexChange
    from ocistream.locations import Location, OpenContext
    from ocistream.oci.graph import Graph, IncompleteIndex
    from ocistream.oci.reference import Reference
    from ocistream.oci.referrers import SkippedReferrer
    from ocistream.signatures.policy import TrustPolicy
    from ocistream.sync.plan import CopyDestination, ImageCopy, Login, SyncEntry, SyncLocation
    from ocistream.transfer.interfaces import Source
    from ocistream.transfer.report import Report

#: A registry that could not be reached for this many images in a row is skipped for this many seconds.
_MAX_FAILURES: Final = 3
_SKIP_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class SyncResult:
    """The result of one image at one destination: "copied", "unchanged" or "failed"; in a dry run also "to copy".

    `size` is how many bytes of blobs were written, or would be. `bytes_read` is how many were read for all
    destinations, and is set only for the first of them. `skipped_referrers` were not copied. `incomplete` is the
    image's index, if the source has only some of its platforms.
    """

    source: str
    destination: str
    status: str
    digest: str | None = None
    error: OcistreamError | None = None
    size: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    skipped_referrers: tuple[SkippedReferrer, ...] = ()
    incomplete: tuple[IncompleteIndex, ...] = ()


class ImageComparison:
    """One image, the destinations that lack it, and the results so far."""

    def __init__(self, copy: ImageCopy) -> None:
        """Start without results."""
        self.copy = copy
        self.pending: list[CopyDestination] = []
        #: By the name of the destination.
        self._results: dict[str, SyncResult] = {}
        #: Set when the image was copied, or failed.
        self.is_copied = threading.Event()
        #: The opened source of the image; None if its manifests were too large to keep, or could not be read.
        self.source: Source | None = None
        #: The image's size in bytes and its number of blobs; 0 if they are not known yet.
        self.size = self.blob_count = 0
        #: Bytes of its manifests.
        self.manifest_bytes = 0
        #: By the name of a layout: the change of its index that makes the image visible.
        self.index_changes: dict[str, IndexChange[Any]] = {}
        #: In a dry run: what would be written to each destination, by its name.
        self.planned: dict[str, Report] = {}

    def list_results(self) -> list[SyncResult]:
        """Return the results in the order of the file; the image failed where its layout's index was not written."""
        results = [self._results[place.name] for place in self.copy.destinations if place.name in self._results]
        return [
            replace(result, status="failed", digest=None, error=change.error)
            if (change := self.index_changes.get(result.destination)) is not None and change.error is not None
            else result
            for result in results
        ]

    def add_result(self, result: SyncResult) -> None:
        """Add the result of one destination."""
        self._results[result.destination] = result

    def add_failure(self, destinations: Collection[CopyDestination], error: OcistreamError) -> None:
        """Add a failure for destinations whose state is unknown."""
        for destination in destinations:
            self.add_result(SyncResult(self.copy.name, destination.name, "failed", error=error))


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncAccess:
    """What all images of a run share. Safe for several threads."""

    #: The context of each login of the file, and that of locations without one.
    contexts: Mapping[Login | None, OpenContext]
    #: Cancels the run.
    cancelled: threading.Event
    #: Which signatures images need.
    policy: TrustPolicy
    sources: SyncSources = field(default_factory=SyncSources)
    layouts: LayoutWriters = field(default_factory=LayoutWriters)

    def create_cancel_event(self) -> threading.Event:
        """Return an event that cancels one image: a failed image must not stop the next."""
        return LinkedEvent([self.cancelled])

    def context(self, sync_location: SyncLocation, cancelled: threading.Event | None = None) -> OpenContext:
        """Return the context of a location for one image, which `cancelled` cancels."""
        return replace(self.contexts[sync_location.login], cancelled=cancelled or self.create_cancel_event())

    def open_source(self, copy: ImageCopy, context: OpenContext) -> Source:
        """Open an image that is copied, with the signatures that it may need."""
        references = [copy.source.reference, *(destination.reference for destination in copy.destinations)]
        needs = self.policy.needs_signatures(references, may_have_names=copy.source.reference is None)
        return self.sources.open(copy.source, context, replace(_select_for(copy.entry), with_signatures=needs))


class ImageComparer:
    """Compares images with their destinations, for one run. Safe for several threads.

    The image is compared first. A signature often comes later than its image, so the referrers of an unchanged image
    are compared too, unless the file says `referrers = false`.
    """

    def __init__(self, access: SyncAccess) -> None:
        """Compare nothing yet."""
        self._access = access
        self._unreachable = _UnreachableRegistries()
        #: Memory for manifests, in bytes.
        self._memory = Budget(limits.MAX_PENDING_GRAPH_BYTES)
        #: By registry and repository: all its tags that name referrers.
        self._digest_tags: dict[tuple[str, str], Collection[str]] = {}

    def add_tags(self, reference: Reference, tags: Iterable[str]) -> None:
        """Set all tags of a repository: other tags of referrers are not requested from the registry."""
        self._digest_tags[reference.registry, reference.repository] = frozenset(filter(is_digest_tag, tags))

    def compare(self, comparison: ImageComparison) -> None:
        """Find the destinations that lack an image or have another one under its name."""
        copy = comparison.copy
        try:
            with self._unreachable.guard(copy.source.reference):
                source_image = self._find_source_image(copy)
        except OcistreamError as error:
            comparison.add_failure(copy.destinations, error)
            return
        for destination in copy.destinations:
            try:
                context = self._access.contexts[destination.sync_location.login]
                if destination.reference is not None:
                    context.registries().rules.check_push(destination.reference)
                with self._unreachable.guard(destination.reference):
                    state = _DestinationState(destination, context, self._access.layouts)
                    digest = state.find_digest()
                    is_same = digest in source_image.digests
                # Referrers are requested only if the image itself is the same; otherwise it is copied anyway.
                if is_same and digest and copy.entry.referrers:
                    is_same = state.has_all_referrers(source_image.read_graph(), digest)
            except OcistreamError as error:
                comparison.add_failure([destination], error)
            else:
                if is_same:
                    comparison.add_result(SyncResult(copy.name, destination.name, "unchanged", digest))
                else:
                    comparison.pending.append(destination)

    def prepare(self, comparison: ImageComparison) -> None:
        """Read the graph of an image that must be copied, and keep it until then if memory allows."""
        copy = comparison.copy
        if copy.source.reference is None:
            return
        try:
            with ExitStack() as stack:
                source = self._access.open_source(copy, self._image_context(copy.entry))
                stack.callback(source.close)
                graph = resolve_graph(source, copy.source)
                stack.pop_all()
        except OcistreamError as error:
            comparison.add_failure(comparison.pending, error)
            comparison.pending = []
            return
        comparison.size, comparison.blob_count = graph.size, len(graph.blobs)
        manifest_bytes = sum(len(manifest.raw) for manifest in graph.manifests)
        if not self._memory.take(manifest_bytes):
            source.close()
            return
        comparison.source, comparison.manifest_bytes = source, manifest_bytes

    def release(self, comparison: ImageComparison) -> None:
        """Free the memory of an image."""
        if comparison.source is not None:
            comparison.source.close()
            comparison.source = None
            self._memory.give_back(comparison.manifest_bytes)

    def _image_context(self, entry: SyncEntry) -> OpenContext:
        # One request at a time: other images are compared in parallel.
        return replace(self._access.context(entry.source), jobs=1)

    def _find_source_image(self, copy: ImageCopy) -> _SourceImage:
        location, entry = copy.source, copy.entry
        context = self._image_context(entry)
        selection = _select_for(entry)
        if location.reference is not None:
            tags = self._digest_tags.get((location.reference.registry, location.reference.repository))
            selection = replace(selection, digest_tags=tags)

        @functools.cache
        def graph() -> Graph:
            with closing(self._access.sources.open(location, context, selection)) as source:
                source_graph = resolve_graph(source, location)
                return source_graph if location.reference is not None else limit_to_source(source, source_graph)

        if location.reference is not None and not entry.platforms.platforms:
            repository = context.registries().open_repository(location.reference)
            # Some registries answer HEAD without a digest. A missing image is reported when its manifest is fetched.
            digest = repository.find_digest(location.reference.target)
            if digest:
                return _SourceImage({digest}, graph)
        # A layout or an archive may have only some platforms of an index: either digest may be at the destination.
        indexes = (index.digest for index in graph().incomplete_indexes[:1])
        return _SourceImage({graph().roots[0].descriptor.digest, *indexes}, graph)


class _SourceImage(NamedTuple):
    """An image at its source: the digests that it may have at a destination, and its graph with all referrers."""

    digests: set[str]
    read_graph: Callable[[], Graph]


class _DestinationState:
    """The state of one destination. A registry is asked only by the methods."""

    def __init__(self, destination: CopyDestination, context: OpenContext, layouts: LayoutWriters) -> None:
        """Read a layout or an archive; send no request to a registry.

        Raises:
            OcistreamError: a layout cannot be read.
        """
        self._reference, location = destination.reference, destination.sync_location.location
        self._name = destination.image_name or ""
        self._listed = NO_IMAGES
        if self._reference is not None:
            registry, repository = self._reference.registry, self._reference.repository
            self._repository = Repository(context.registries().client, registry, repository, for_push=True)
            return
        with disk_errors(f"cannot read {printable(location.text)}"):
            is_layout = is_layout_destination(location)
            self._listed = layouts.list_images(location) if is_layout else _read_archive(location, context, self._name)

    def find_digest(self) -> str | None:
        """Return the digest of the image with this name, or None.

        Raises:
            OcistreamError: the registry failed or refused.
        """
        if self._reference is not None:
            return self._repository.find_digest(self._reference.target)
        return self._listed.find_digest(self._name)

    def has_all_referrers(self, graph: Graph, digest: str) -> bool:
        """Return whether the destination has all referrers of an image; False if the graph is now another image's."""
        if digest not in {graph.roots[0].descriptor.digest, *(index.digest for index in graph.incomplete_indexes)}:
            return False
        digests = [referrer.descriptor.digest for referrer in graph.all_referrers]
        if self._reference is not None:
            targets = [referrer.tag or referrer.descriptor.digest for referrer in graph.all_referrers]
            return all(map(operator.eq, map(self._repository.find_digest, targets), digests))
        # A manifest within an index has no entry of its own.
        children = {child.digest for document in graph.documents.values() for child in document.manifests}
        return all(digest in children or digest in self._listed.referrers for digest in digests)


def _read_archive(location: Location, context: OpenContext, name: str) -> ListedImages:
    """Return the one image of an archive, under any name. An archive that cannot be read will be replaced."""
    try:
        with closing(SyncSources()) as sources, closing(sources.open(location, context, Selection())) as source:
            graph = resolve_graph(source, location)
    except NotFoundError:
        return NO_IMAGES
    except OcistreamError as error:
        notices.notify(f"replacing {printable(location.text)}: it cannot be read as an archive ({error.message})")
        return NO_IMAGES
    if len(graph.roots) != 1:
        notices.notify(f"replacing {printable(location.text)}: it has {len(graph.roots)} images, and gets one")
        return NO_IMAGES
    if any(graph.omitted_from_source):
        return NO_IMAGES
    digest = graph.roots[0].descriptor.digest
    return ListedImages({name: digest}.get, frozenset(referrer.descriptor.digest for referrer in graph.all_referrers))


def _select_for(entry: SyncEntry) -> Selection:
    return Selection(platforms=entry.platforms, referrers="copy" if entry.referrers else "skip")


class _UnreachableRegistries:
    """Registries that could not be reached, after all retries, for some images in a row.

    Without this, each of ten thousand images would cost all retries again, and delay the other destinations. A registry
    that answers with an error counts as reached.
    """

    def __init__(self) -> None:
        #: Failures in a row, the time of the last one or of the next try (monotonic seconds), and the last error. Not
        #: locked: if a failure is not counted, one more image is tried.
        self._failures: dict[str, tuple[int, float, NetworkError]] = {}

    @contextlib.contextmanager
    def guard(self, reference: Reference | None) -> Iterator[None]:
        """Run requests to a registry in this context, unless the registry is skipped at present.

        Raises:
            NetworkError: the registry is skipped.
        """
        registry = reference.registry if reference is not None else ""
        if (failures := self._failures.get(registry)) is not None and failures[0] >= _MAX_FAILURES:
            count, since, error = failures
            if monotonic() - since < _SKIP_SECONDS:
                reason = f"it could not be reached for {count} images in a row: {error.message}"
                msg = f"skipping {registry} for a while: {reason}"
                raise NetworkError(msg, hint="re-run the command when it is reachable")
            # This image checks whether the registry can be reached again.
            self._failures[registry] = (count, monotonic(), error)
        try:
            yield
        except NetworkError as error:
            if isinstance(error, RegistryError):
                self._failures.pop(registry, None)
            else:
                # One look-up: another thread may remove the entry.
                failures = self._failures.get(registry)
                count = failures[0] if failures is not None else 0
                self._failures[registry] = (count + 1, monotonic(), error)
            raise
        else:
            self._failures.pop(registry, None)
