"""A registry as a source: resolve images and their referrers to a graph, and open the blobs.

`registry.repository` knows URLs and statuses.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ocistream.errors import AuthenticationError, IntegrityError, NotFoundError
from ocistream.oci.graph import Graph, Root, children_of
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.referrers import EXCLUDED, PLATFORM_FILTERED
from ocistream.oci.walk import GraphWalk, Need, run_walk
from ocistream.registry.download import raise_corrupt_blob
from ocistream.registry.referrer_search import ReferrerQuery, ReferrerSearch
from ocistream.registry.repository import Repository, image_not_found_error
from ocistream.streams.workers import DEFAULT_JOBS
from ocistream.transfer.interfaces import CompleteSource
from ocistream.transfer.verified_blobs import read_verified

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Iterator, Sequence

    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.reference import Reference
    from ocistream.oci.referrers import ReferrerMode
    from ocistream.registry.referrers import ReferrerList
    from ocistream.registry.registries import ReadableRepository, Registries
    from ocistream.transfer.interfaces import Blob, EarlyBlobs


class RegistrySource(CompleteSource):
    """Read images from one or more registries, by reference.

    Referrers are searched only if they are copied along, or with `with_signatures`, which adds signatures that are not
    copied, to be checked. `digest_tags` are all tags that name referrers, if they are known. `jobs` queries run at the
    same time. `cancelled` stops these queries, and a failed query sets it; the default is the client's event.
    """

    concurrent = True

    def __init__(
        self,
        registries: Registries,
        references: Sequence[Reference],
        *,
        platforms: PlatformChoice = ALL_PLATFORMS,
        referrers: ReferrerMode = "list",
        with_signatures: bool = False,
        digest_tags: Collection[str] | None = None,
        jobs: int = DEFAULT_JOBS,
        cancelled: threading.Event | None = None,
    ) -> None:
        """Take the references of the images. Send no request."""
        self._references = tuple(dict.fromkeys(references))
        self._platforms = platforms
        self._referrers: ReferrerMode = referrers
        self._with_signatures = with_signatures
        self._digest_tags = digest_tags
        self._jobs = jobs
        self._registries = registries
        # Created now: a credential that cannot be read is reported before the destination is opened.
        self._client = registries.client
        self._cancelled = cancelled or self._client.cancelled
        #: Digest -> the first repository that was found to contain it.
        self._repositories: dict[str, ReadableRepository] = {}
        self._graph: Graph | None = None

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:  # noqa: ARG002 - a registry gives the graph before the blobs
        """Fetch every manifest below the named images, once, and return the graph.

        Raises:
            NotFoundError: an image or a platform does not exist.
        """
        if self._graph is None:
            self._graph = self._build_graph()
        return self._graph

    def _build_graph(self) -> Graph:
        walk = GraphWalk(self._platforms, skip_referrers=self._referrers == "skip")
        repositories = []
        for reference in self._references:
            repository = self._registries.open_repository(reference)
            repositories.append(repository)
            manifest = self._resolve_image(reference, repository)
            walk.add_root(Root(reference.name if reference.tag else None, manifest.descriptor, str(repository)))
            self._settle(walk, repository, manifest)
        if self._referrers == "copy" or self._with_signatures:
            self._collect_referrers(repositories, walk)
        graph = walk.build()
        signatures = [
            manifest.descriptor.digest for uncopied in graph.uncopied_signatures for manifest in uncopied.manifests
        ]
        for digest in (*graph.documents, *signatures):
            # An index that was narrowed to some platforms is new: no repository has it, and it has no blobs.
            repository_of_digest, document = self._repositories.get(digest), walk.document(digest)
            if repository_of_digest is not None and document is not None:
                for child in children_of(document):
                    self._repositories.setdefault(child.digest, repository_of_digest)
        return graph

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Yield the wanted blobs in the given order."""
        for descriptor in wanted:
            yield self._repositories[descriptor.digest].blob(descriptor)

    def fetch_image_manifest(self) -> Manifest:
        """Return the manifest or index of the first reference, without anything below it.

        Raises:
            NotFoundError: the image does not exist.
        """
        reference = self._references[0]
        return self._resolve_image(reference, self._registries.open_repository(reference))

    def find_repository(self, digest: str) -> tuple[str, str] | None:
        """Return the registry and repository of a blob, for a destination that can mount it; never a mirror.

        A mirror is another registry, even if it is nearer, and a mount works only within one registry.
        """
        repository = self._repositories.get(digest)
        return (repository.endpoint.registry, repository.name) if repository else None

    def list_referrers(self, digests: Sequence[str]) -> dict[str, ReferrerList]:
        """Return the referrers of manifests in the graph; a list has a reason if the registry denies access."""
        from ocistream.registry.referrers import ReferrerList

        lists: dict[str, ReferrerList] = {}
        for digest in digests:
            if repository := self._repositories.get(digest):
                try:
                    lists[digest] = repository.list_referrers(digest)
                except AuthenticationError as error:
                    lists[digest] = ReferrerList(incomplete_reason=error.message)
        return lists

    def close(self) -> None:
        """Do nothing: the caller owns the client."""

    def _resolve_image(self, reference: Reference, repository: ReadableRepository) -> Manifest:
        try:
            return repository.resolve(reference.target)
        except NotFoundError as error:
            not_found = image_not_found_error(repository, reference.target, error)
            # One request for advice: the first missing image ends the command.
            if reference.digest is None:
                not_found.hint = self._suggest_tags(reference, repository) or not_found.hint
            raise not_found from error

    def _suggest_tags(self, reference: Reference, repository: ReadableRepository) -> str | None:
        """Ask the registry which tag the user may have meant."""
        from ocistream.registry.tags import suggest_tags

        registry = repository.endpoint.registry
        is_named_by_user = registry.lower() == reference.registry.lower()
        return suggest_tags(
            Repository(self._client, registry, repository.name, is_named_by_user=is_named_by_user), reference.target
        )

    def _collect_referrers(self, repositories: Sequence[ReadableRepository], walk: GraphWalk) -> None:
        """Collect the referrers of the images from each repository that has one of them."""
        graph = walk.build()
        is_copied = self._referrers == "copy"
        queries = [
            ReferrerQuery(repository, digest, None if is_copied else EXCLUDED)
            for root, repository in zip(graph.roots, repositories, strict=True)
            for digest in sorted(graph.reachable(root) & graph.documents.keys() & self._repositories.keys())
        ]
        queries += [
            ReferrerQuery(self._repositories[digest], digest, PLATFORM_FILTERED if is_copied else EXCLUDED)
            for digest in walk.list_narrowed()
        ]
        ReferrerSearch(
            walk,
            partial(self._settle, walk),
            with_signatures=self._with_signatures,
            digest_tags=self._digest_tags,
            jobs=self._jobs,
            cancelled=self._cancelled,
        ).collect(queries)

    def _settle(self, walk: GraphWalk, repository: ReadableRepository, manifest: Manifest) -> None:
        """Fetch everything that the graph needs for a manifest of the repository."""
        self._repositories.setdefault(manifest.descriptor.digest, repository)
        try:
            run_walk(walk.settle(), partial(self._read, repository, manifest))
        except IntegrityError as error:
            raise_corrupt_blob(str(repository), error)

    def _read(self, repository: ReadableRepository, known: Manifest, need: Need) -> bytes | None:
        if need.digest == known.descriptor.digest:
            return known.raw
        first_repository = self._repositories.setdefault(need.digest, repository)
        try:
            if need.is_config:
                return read_verified(first_repository.blob(need.descriptor))
            return repository.fetch_manifest(need.descriptor)
        except NotFoundError:
            return None
