"""A registry as a source: resolve images and their referrers to a graph, and open the blobs.

`registry.repository` knows URLs and statuses. Referrers are the listed ones, those with tags of cosign, and the
referrers of those. The referrers of an index that is copied in part are only reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import (
    ArchiveError,
    AuthenticationError,
    IntegrityError,
    NotFoundError,
    OcistreamError,
    RegistryError,
    UnsupportedError,
)
from ocistream.oci.documents import parse_document
from ocistream.oci.graph import Graph, Root, children_of
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.referrers import (
    DUPLICATE_TAG,
    EXCLUDED,
    LIST_TRUNCATED,
    LISTING_DENIED,
    NOT_FOUND,
    PLATFORM_FILTERED,
    SUBJECT_MISMATCH,
    UNSUPPORTED_TYPE,
    Referrer,
    SkippedReferrer,
    classify_referrer,
    cosign_tags,
    is_signature,
    strip_descriptor,
)
from ocistream.oci.walk import GraphWalk, Need, run_walk
from ocistream.registry.download import raise_corrupt_blob
from ocistream.registry.repository import Repository, image_not_found_error
from ocistream.streams.synchronization import Budget
from ocistream.streams.workers import DEFAULT_JOBS, run_each
from ocistream.transfer.interfaces import CompleteSource
from ocistream.transfer.verified_blobs import read_verified

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.reference import Reference
    from ocistream.oci.referrers import ReferrerMode
    from ocistream.registry.referrers import ReferrerList
    from ocistream.registry.registries import ReadableRepository, Registries
    from ocistream.transfer.interfaces import Blob, EarlyBlobs

#: Skipped referrers of one subject and reason that are named; the others are only counted.
_MAX_NAMED: Final = 10
_TOO_MANY_HINT: Final = "skip them with --no-referrers"
#: Statuses below 500 after which a later request may succeed.
_TRANSIENT_STATUSES: Final = frozenset({408, 429})


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
        #: Digest of a manifest or blob -> the first repository that was found to contain it.
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
            _ReferrerQuery(repository, digest, None if is_copied else EXCLUDED)
            for root, repository in zip(graph.roots, repositories, strict=True)
            for digest in sorted(graph.reachable(root) & graph.documents.keys() & self._repositories.keys())
        ]
        queries += [
            _ReferrerQuery(self._repositories[digest], digest, PLATFORM_FILTERED if is_copied else EXCLUDED)
            for digest in walk.list_narrowed()
        ]
        _ReferrerSearch(
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
        """Return a document that the walk needs, fetched unless it is `known`; None if it does not exist."""
        if need.digest == known.descriptor.digest:
            return known.raw
        first_repository = self._repositories.setdefault(need.digest, repository)
        try:
            if need.is_config:
                return read_verified(first_repository.blob(need.descriptor))
            return repository.fetch_manifest(need.descriptor)
        except NotFoundError:
            return None


@dataclass(frozen=True, slots=True)
class _ReferrerQuery:
    """A query for the referrers of a manifest in a repository. With a `skip_reason` they are only reported."""

    repository: ReadableRepository
    digest: str
    skip_reason: str | None = None


class _ReferrerSearch:
    """Search for referrers and add them to a graph.

    A registry is asked by subject. An `index.json` lists entries without their subjects: `layout.index_walk` reads all
    that may be referrers.

    `settle(repository, manifest)` fetches what the graph needs for a manifest of the repository. With
    `with_signatures`, signatures that are not copied are added to be checked. `digest_tags` are all tags that name
    referrers, or None if they are unknown. `jobs` queries run at the same time.
    `cancelled` is the event of the transfer: it stops the queries, and a failed query sets it.
    """

    def __init__(
        self,
        walk: GraphWalk,
        settle: Callable[[ReadableRepository, Manifest], None],
        *,
        with_signatures: bool,
        digest_tags: Collection[str] | None,
        jobs: int,
        cancelled: threading.Event,
    ) -> None:
        """Take the walk that builds the graph. Send no request."""
        self._jobs = jobs
        self._cancelled = cancelled
        self._walk = walk
        self._settle = settle
        self._with_signatures = with_signatures
        self._digest_tags = digest_tags
        #: One object for each repository: it remembers whether its registry has the referrers API.
        self._repositories: dict[str, ReadableRepository] = {}
        #: (Repository, digest) of the subjects that were asked for.
        self._queried: set[tuple[str, str]] = set()
        #: (Subject, cosign tag) -> the digest that the graph has under this tag.
        self._digests_by_tag: dict[tuple[str, str], str] = {}
        #: Referrers that were found but are not in the graph yet. The queries of a level run in several threads, which
        #: only append here, and to `_skipped`.
        self._found: list[tuple[_ReferrerQuery, Referrer, Manifest]] = []
        #: The skipped referrers, each once.
        self._skipped: dict[SkippedReferrer, None] = {}
        #: How many more referrers may be listed, and how many more bytes their manifests may have.
        self._free_referrers = Budget(limits.MAX_REFERRERS)
        self._free_bytes = Budget(limits.MAX_GRAPH_BYTES)
        #: By repository: the first query that its registry refused.
        self._refused_queries: dict[str, _ReferrerQuery] = {}

    def collect(self, queries: Sequence[_ReferrerQuery]) -> None:
        """Search for referrers, and for referrers of those that are copied.

        Raises:
            UnsupportedError: there are too many referrers, or the chain of referrers is too long.
            OcistreamError: a registry failed. A refused query is reported and does not raise.
        """
        for _ in range(limits.MAX_REFERRER_DEPTH + 1):
            self._query_all(queries)
            queries = self._move_to_graph(queries)
            if not queries:
                break
        else:
            msg = f"referrers refer to each other more than {limits.MAX_REFERRER_DEPTH} levels deep"
            raise UnsupportedError(msg, hint=_TOO_MANY_HINT)
        for referrer in _summarize(self._skipped):
            self._walk.add_skipped_referrer(referrer)

    def _query_all(self, queries: Sequence[_ReferrerQuery]) -> None:
        """Send the queries that were not sent yet, several at once."""
        by_location = {(str(query.repository), query.digest): query for query in queries}
        new = [query for location, query in by_location.items() if location not in self._queried]
        self._queried.update(by_location)
        # The first query of a repository runs alone: it shows whether its registry has the referrers API.
        first = {str(query.repository): query for query in reversed(new)}
        for name, query in first.items():
            if name not in self._repositories:
                self._repositories[name] = query.repository
                self._query(query)
                new.remove(query)
        run_each(self._query, new, jobs=self._jobs, cancelled=self._cancelled)

    def _query(self, query: _ReferrerQuery) -> None:
        for send_query in (self._query_referrers, self._query_cosign_tags):
            try:
                send_query(query)
            except (AuthenticationError, ArchiveError) as error:
                self._report_unreadable(query, error)
            except RegistryError as error:
                if error.status >= 500 or error.status in _TRANSIENT_STATUSES:
                    raise
                self._report_unreadable(query, error)

    def _report_unreadable(self, query: _ReferrerQuery, error: OcistreamError) -> None:
        """Report once for a repository why its referrers are unknown.

        The same credentials could read the image, so the copy continues. Failures that may pass (5xx, 408, 429) are
        retried and then raise.
        """
        reason = f"{LISTING_DENIED}: {error.message}"
        if self._refused_queries.setdefault(str(query.repository), query) is query:
            self._skipped[SkippedReferrer(query.digest, reason)] = None

    def _query_referrers(self, query: _ReferrerQuery) -> None:
        referrers = self._repositories[str(query.repository)].list_referrers(query.digest)
        # Each listed entry costs a request, even if it is skipped.
        self._count(len(referrers.descriptors))
        if referrers.incomplete_reason:
            self._skipped[SkippedReferrer(query.digest, f"{LIST_TRUNCATED}: {referrers.incomplete_reason}")] = None
        for descriptor in referrers.descriptors:
            self._add(query, descriptor.digest, artifact_type=descriptor.artifact_type)

    def _query_cosign_tags(self, query: _ReferrerQuery) -> None:
        for tag in cosign_tags(query.digest):
            if self._digest_tags is not None and tag not in self._digest_tags:
                continue
            if query.repository.find_digest(tag) is not None:
                self._add(query, tag, tag=tag)

    def _count(self, number: int, size: int = 0) -> None:
        """Count referrers, and the bytes of their manifests.

        Raises:
            UnsupportedError: there are too many.
        """
        if not self._free_referrers.take(number):
            msg = f"more than {limits.MAX_REFERRERS} referrers are listed"
            raise UnsupportedError(msg, hint=_TOO_MANY_HINT)
        if not self._free_bytes.take(size):
            msg = f"the manifests of the referrers have more than {limits.MAX_GRAPH_BYTES} bytes"
            raise UnsupportedError(msg, hint=_TOO_MANY_HINT)

    def _add(
        self, query: _ReferrerQuery, target: str, *, artifact_type: str | None = None, tag: str | None = None
    ) -> None:
        """Add a referrer, by its digest in a list or by a cosign tag; skip what is not to be copied or is unusable."""

        def skip(reason: str) -> None:
            digest = target if tag is None else None
            kind = classify_referrer(artifact_type, tag)
            self._skipped[SkippedReferrer(query.digest, reason, kind, digest, tag)] = None

        if query.skip_reason is not None:
            skip(query.skip_reason)
            if not self._with_signatures:
                return
        # Skip entries that are gone or name another subject: clients never clean their lists.
        try:
            manifest = query.repository.resolve(target)
            document = parse_document(manifest.descriptor, manifest.raw)
        except NotFoundError:
            skip(NOT_FOUND)
        except (ArchiveError, UnsupportedError):
            skip(UNSUPPORTED_TYPE)
        else:
            if tag is None and (document.subject is None or document.subject.digest != query.digest):
                skip(SUBJECT_MISMATCH)
            elif query.skip_reason is None or is_signature(document):
                self._count(0 if tag is None else 1, len(manifest.raw))
                # The manifest describes the referrer, not the list: registries omit annotations in their lists, and the
                # same image must always give the same archive.
                referrer = Referrer(strip_descriptor(manifest.descriptor), query.digest, tag)
                self._found.append((query, referrer, manifest))

    def _move_to_graph(self, queries: Sequence[_ReferrerQuery]) -> list[_ReferrerQuery]:
        """Add the found referrers to the graph in the order of the queries; return queries for their referrers."""
        positions = {id(query): position for position, query in enumerate(queries)}
        found = sorted(self._found, key=lambda item: (positions[id(item[0])], *item[1].sort_key))
        self._found = []
        next_queries = []
        for query, referrer, manifest in found:
            digest = referrer.descriptor.digest
            if query.skip_reason is not None:
                self._walk.add_signature(referrer)
                self._settle(query.repository, manifest)
                continue
            if referrer.tag and self._digests_by_tag.setdefault((referrer.subject, referrer.tag), digest) != digest:
                self._skipped[SkippedReferrer.from_referrer(referrer, DUPLICATE_TAG)] = None
                continue
            self._walk.add_referrer(referrer)
            self._settle(query.repository, manifest)
            next_queries.append(_ReferrerQuery(query.repository, digest))
        return next_queries


def _summarize(skipped: Iterable[SkippedReferrer]) -> Iterator[SkippedReferrer]:
    """Yield skipped referrers in order; of many for the same reason, name the first and count the others."""
    groups: dict[tuple[str | None, str, str | None], list[SkippedReferrer]] = {}
    for referrer in sorted(
        skipped,
        key=lambda referrer: (referrer.reason, referrer.subject or "", referrer.digest or "", referrer.tag or ""),
    ):
        groups.setdefault((referrer.subject, referrer.reason, referrer.kind), []).append(referrer)
    for (subject, reason, kind), group in groups.items():
        yield from group[:_MAX_NAMED]
        if len(group) > _MAX_NAMED:
            yield SkippedReferrer(subject, reason, kind, count=len(group) - _MAX_NAMED)
