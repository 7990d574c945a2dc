"""A registry as a source: resolve images and their referrers to a graph, and open the blobs.

`registry.repository` knows URLs and statuses.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ocistream.errors import (
    AuthenticationError,
    NotFoundError,
)
from ocistream.oci.graph import Graph, Root
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.registry.mirrors import RepositoryOpener
from ocistream.registry.referrer_search import ReferrerSearch
from ocistream.registry.repository import Repository, image_not_found_error
from ocistream.streams.chunks import read_all
from ocistream.streams.workers import DEFAULT_JOBS
from ocistream.transfer.blob_wrappers import use_verified
from ocistream.transfer.graph_builder import GraphBuilder

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from ocistream.http.client import HttpClient
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.reference import Reference
    from ocistream.oci.referrers import ReferrerMode
    from ocistream.registry.mirrors import ReadableRepository
    from ocistream.registry.referrers import ReferrerList
    from ocistream.transfer.interfaces import Blob, EarlyBlobs

__all__ = ["RegistrySource"]


class RegistrySource:
    """Images out of one registry or several, by reference."""

    concurrent = True

    def __init__(
        self,
        client: HttpClient,
        references: Sequence[Reference],
        *,
        platforms: PlatformChoice = ALL_PLATFORMS,
        referrers: ReferrerMode = "listed",
        open_repository: Callable[[Reference], ReadableRepository] | None = None,
        jobs: int = DEFAULT_JOBS,
        cancelled: threading.Event | None = None,
    ) -> None:
        """Name the images; nothing is asked for yet. What hangs on them is asked for only where it is to go along.

        So many questions of that kind as there are `jobs` are asked at a time.
        `cancelled` ends them, and is set when one of them fails; without it that is the transport's.
        `repository` gives what an image is read from; without it that is the one it is named after, and nothing else.
        """
        self._references = tuple(dict.fromkeys(references))
        self._platforms = platforms
        self._referrers: ReferrerMode = referrers
        self._jobs = jobs
        self._client = client
        self._cancelled = cancelled or client.cancelled
        self._open_repository = open_repository or RepositoryOpener(client).open_repository
        #: Where each manifest and blob can be had: the first repository that was seen to need it.
        self._repositories: dict[str, ReadableRepository] = {}
        self._graph: Graph | None = None

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:  # noqa: ARG002 - a registry gives names before bytes
        """Get every manifest below the named images; once.

        Raises:
            NotFoundError: an image or a platform is not there.
        """
        if self._graph is None:
            self._graph = self._build_graph()
        return self._graph

    def _build_graph(self) -> Graph:
        builder = GraphBuilder(self._platforms, leaves_referrers=self._referrers == "left")
        repositories = []
        for reference in self._references:
            repository = self._open_repository(reference)
            repositories.append(repository)
            self._collect_image(reference, repository, builder)
        if self._referrers == "along":
            self._collect_referrers(repositories, builder)
        graph = builder.build()
        for digest, document in graph.documents.items():
            # An index that was cut down to some platforms is ours; no repository has it, and it has no blobs.
            home = self._repositories.get(digest)
            if home is not None:
                for blob in (*document.layers, *((document.config,) if document.config else ())):
                    self._repositories.setdefault(blob.digest, home)
        return graph

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Give the wanted blobs in the order in which they are wanted."""
        for descriptor in wanted:
            yield self._repositories[descriptor.digest].blob(descriptor)

    def find_repository(self, digest: str) -> tuple[str, str] | None:
        """Say in which registry and repository a blob is, for a sink that can mount it; a mirror is never named."""
        repository = self._repositories.get(digest)
        return (repository.endpoint.registry, repository.name) if repository else None

    def list_referrers(self, digests: Sequence[str]) -> dict[str, ReferrerList]:
        """Ask what refers to manifests that the graph has; a list is `cut` where the registry refuses it."""
        from ocistream.registry.referrers import ReferrerList

        found: dict[str, ReferrerList] = {}
        for digest in digests:
            if home := self._repositories.get(digest):
                try:
                    found[digest] = home.list_referrers(digest)
                except AuthenticationError as error:
                    found[digest] = ReferrerList(incomplete_reason=error.message)
        return found

    def close(self) -> None:
        """The transport belongs to whoever made it."""

    def _collect_image(self, reference: Reference, repository: ReadableRepository, builder: GraphBuilder) -> None:
        try:
            manifest = repository.resolve(reference.target)
        except NotFoundError as error:
            many = len(self._references) > 1
            found = image_not_found_error(repository, reference.target, error, one_of_many=many)
            if reference.digest is None and not many:
                found.hint = self._suggest_tags(reference, repository) or found.hint
            raise found from error
        descriptor = manifest.descriptor
        builder.add_root(Root(reference.name if reference.tag else None, descriptor, str(repository)))
        if descriptor.digest in builder.needs:
            builder.supply(descriptor.digest, manifest.raw)
        self._fetch_children(builder, repository, descriptor.digest)

    def _suggest_tags(self, reference: Reference, repository: ReadableRepository) -> str | None:
        """Ask the registry which tag may have been meant."""
        from ocistream.registry.tags import suggest_tags

        registry = repository.endpoint.registry
        named = registry.lower() == reference.registry.lower()
        return suggest_tags(Repository(self._client, registry, repository.name, is_explicit=named), reference.target)

    def _collect_referrers(self, repositories: Sequence[ReadableRepository], builder: GraphBuilder) -> None:
        """Get what hangs on the images, out of each repository that has one of them."""
        graph = builder.build()
        moving = [
            (repository, digest)
            for root, repository in zip(graph.roots, repositories, strict=True)
            for digest in sorted(graph.reachable(root) & graph.documents.keys() & self._repositories.keys())
        ]
        cut = [(self._repositories[digest], digest) for digest in builder.list_narrowed()]
        complete = partial(self._fetch_children, builder)
        ReferrerSearch(builder, complete, jobs=self._jobs, cancelled=self._cancelled).collect(moving, cut)

    def _fetch_children(self, builder: GraphBuilder, repository: ReadableRepository, digest: str) -> None:
        """Get what is needed for a manifest that came out of a repository."""
        self._repositories.setdefault(digest, repository)
        while builder.needs:
            child = next(iter(builder.needs.values()))
            self._repositories.setdefault(child.digest, repository)
            try:
                raw = self._fetch_config(child) if builder.is_config(child.digest) else repository.fetch_manifest(child)
            except NotFoundError:
                builder.mark_missing(child.digest)
            else:
                builder.supply(child.digest, raw)

    def _fetch_config(self, descriptor: Descriptor) -> bytes:
        blob = self._repositories[descriptor.digest].blob(descriptor)
        return use_verified(blob, lambda checked: read_all(checked.open()), again=True)
