"""A registry as a source of images: out of which repository each manifest and blob is had, and what hangs on them.

Which URLs and statuses that takes is registry/repository.py's business.
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
from ocistream.registry.open_repository import Reading
from ocistream.registry.referrer_search import Hanging
from ocistream.registry.repository import Repository, not_found
from ocistream.streams.chunks import gathered
from ocistream.streams.workers import DEFAULT_JOBS
from ocistream.transfer.retry import until_right
from ocistream.transfer.walk import GraphBuilder

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from ocistream.http.client import Transport
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.reference import Reference
    from ocistream.oci.referrers import Referrers
    from ocistream.registry.mirrors import Readable
    from ocistream.registry.referrers import ReferrerList
    from ocistream.transfer.interfaces import Blob, Early

__all__ = ["RegistrySource"]


class RegistrySource:
    """Images out of one registry or several, by reference."""

    parallel = True

    def __init__(
        self,
        transport: Transport,
        references: Sequence[Reference],
        *,
        platforms: PlatformChoice = ALL_PLATFORMS,
        referrers: Referrers = "listed",
        repository: Callable[[Reference], Readable] | None = None,
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
        self._referrers: Referrers = referrers
        self._jobs = jobs
        self._transport = transport
        self._cancelled = cancelled or transport.cancelled
        self._repository = repository or Reading(transport).repository
        #: Where each manifest and blob can be had: the first repository that was seen to need it.
        self._homes: dict[str, Readable] = {}
        self._graph: Graph | None = None

    def graph(self, early: Early) -> Graph:  # noqa: ARG002 - a registry gives names before bytes
        """Get every manifest below the named images; once.

        Raises:
            NotFoundError: an image or a platform is not there.
        """
        if self._graph is None:
            self._graph = self._collected()
        return self._graph

    def _collected(self) -> Graph:
        builder = GraphBuilder(self._platforms, leaves_referrers=self._referrers == "left")
        repositories = []
        for reference in self._references:
            repository = self._repository(reference)
            repositories.append(repository)
            self._collect(reference, repository, builder)
        if self._referrers == "along":
            self._collect_attached(repositories, builder)
        graph = builder.graph()
        for digest, document in graph.documents.items():
            # An index that was cut down to some platforms is ours; no repository has it, and it has no blobs.
            home = self._homes.get(digest)
            if home is not None:
                for blob in (*document.layers, *((document.config,) if document.config else ())):
                    self._homes.setdefault(blob.digest, home)
        return graph

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Give the wanted blobs in the order in which they are wanted."""
        for descriptor in wanted:
            yield self._homes[descriptor.digest].blob(descriptor)

    def home(self, digest: str) -> tuple[str, str] | None:
        """Say in which registry and repository a blob is, for a sink that can mount it; a mirror is never named."""
        repository = self._homes.get(digest)
        return (repository.endpoint.registry, repository.name) if repository else None

    def referrers(self, digests: Sequence[str]) -> dict[str, ReferrerList]:
        """Ask what refers to manifests that the graph has; a list is `cut` where the registry refuses it."""
        from ocistream.registry.referrers import ReferrerList

        found: dict[str, ReferrerList] = {}
        for digest in digests:
            if home := self._homes.get(digest):
                try:
                    found[digest] = home.referrers(digest)
                except AuthenticationError as error:
                    found[digest] = ReferrerList(cut=error.what)
        return found

    def close(self) -> None:
        """The transport belongs to whoever made it."""

    def _collect(self, reference: Reference, repository: Readable, builder: GraphBuilder) -> None:
        try:
            manifest = repository.resolve(reference.target)
        except NotFoundError as error:
            many = len(self._references) > 1
            found = not_found(repository, reference.target, error, one_of_many=many)
            if reference.digest is None and not many:
                found.hint = self._advice(reference, repository) or found.hint
            raise found from error
        descriptor = manifest.descriptor
        builder.add_root(Root(reference.name if reference.tag else None, descriptor, str(repository)))
        if descriptor.digest in builder.needs:
            builder.supply(descriptor.digest, manifest.raw)
        self._complete(builder, repository, descriptor.digest)

    def _advice(self, reference: Reference, repository: Readable) -> str | None:
        """Ask the registry which tag may have been meant."""
        from ocistream.registry.tags import nearby

        registry = repository.endpoint.registry
        named = registry.lower() == reference.registry.lower()
        return nearby(Repository(self._transport, registry, repository.name, named=named), reference.target)

    def _collect_attached(self, repositories: Sequence[Readable], builder: GraphBuilder) -> None:
        """Get what hangs on the images, out of each repository that has one of them."""
        graph = builder.graph()
        moving = [
            (repository, digest)
            for root, repository in zip(graph.roots, repositories, strict=True)
            for digest in sorted(graph.reachable(root) & graph.documents.keys() & self._homes.keys())
        ]
        cut = [(self._homes[digest], digest) for digest in builder.cut_down()]
        complete = partial(self._complete, builder)
        Hanging(builder, complete, jobs=self._jobs, cancelled=self._cancelled).collect(moving, cut)

    def _complete(self, builder: GraphBuilder, repository: Readable, digest: str) -> None:
        """Get what is needed for a manifest that came out of a repository."""
        self._homes.setdefault(digest, repository)
        while builder.needs:
            child = next(iter(builder.needs.values()))
            self._homes.setdefault(child.digest, repository)
            try:
                raw = self._small(child) if builder.wants_config(child.digest) else repository.manifest(child)
            except NotFoundError:
                builder.lacks(child.digest)
            else:
                builder.supply(child.digest, raw)

    def _small(self, descriptor: Descriptor) -> bytes:
        blob = self._homes[descriptor.digest].blob(descriptor)
        return until_right(blob, lambda checked: gathered(checked.open()), again=True)
