"""`Registries`: what one side of a copy needs of registries, to read from repositories and to write to them.

An image is read from the registry's own repository, or from one with mirrors or a cache around it.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from ocistream.errors import NetworkError
from ocistream.notices import notify
from ocistream.registry.configuration import RegistryRules
from ocistream.registry.repository import Repository
from ocistream.streams.synchronization import once

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.http.client import HttpClient
    from ocistream.http.endpoints import Endpoint
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.reference import Reference
    from ocistream.registry.configuration import PullSource
    from ocistream.registry.mirrors import MirrorHealth, PullCandidate
    from ocistream.registry.referrers import ReferrerList
    from ocistream.registry.tags import TagList
    from ocistream.registry.upload_record import UploadRecords
    from ocistream.registry.upload_strategy import UploadStrategy
    from ocistream.transfer.interfaces import RecoverableBlob


class ReadableRepository(Protocol):
    """The read operations of a repository, implemented by one repository or by several locations together."""

    @property
    def endpoint(self) -> Endpoint:
        """The registry itself, never a mirror."""

    @property
    def name(self) -> str:
        """The repository's name in that registry."""

    def resolve(self, target: str) -> Manifest:
        """Return the manifest of a tag or a digest."""

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a manifest that another document lists; the caller verifies them."""

    def blob(self, descriptor: Descriptor) -> RecoverableBlob:
        """Return a blob; the download starts when the caller opens it."""

    def list_referrers(self, digest: str) -> ReferrerList:
        """Return the referrers of a manifest."""

    def find_digest(self, target: str) -> str | None:
        """Return the digest of a tag, or None if the tag does not exist."""


def _read_directly(repository: ReadableRepository) -> ReadableRepository:
    return repository


class Registries:
    """The registries that one side of a copy reaches. Safe for several threads.

    `create_client` creates the client that sends all requests, on first use. `rules` are those of the configuration;
    without them no mirror is used. `cache` puts the cache around a repository and its mirrors. `upload_strategy` and
    `upload_records` are for destinations.
    """

    def __init__(
        self,
        create_client: Callable[[], HttpClient],
        rules: RegistryRules | None = None,
        *,
        cache: Callable[[ReadableRepository], ReadableRepository] = _read_directly,
        upload_strategy: Callable[[], UploadStrategy | None] = lambda: None,
        upload_records: Callable[[], UploadRecords | None] = lambda: None,
    ) -> None:
        """Send no request. Each function is called when its result is needed."""
        self._client = once(create_client)
        self.rules = rules or RegistryRules({})
        self.upload_strategy = upload_strategy
        self.upload_records = upload_records
        # Created when a mirror is used, and shared with `without_cache`.
        self._health = once(_create_health)
        self._cache = cache

    @property
    def client(self) -> HttpClient:
        """The client that sends all requests."""
        return self._client()

    def without_cache(self) -> Registries:
        """Return the same registries without the cache."""
        other = copy.copy(self)
        other._cache = _read_directly  # noqa: SLF001 - same class
        return other

    def open_repository(self, reference: Reference) -> ReadableRepository:
        """Return the repository that an image is read from.

        Raises:
            AuthenticationError: the configuration blocks it.
        """
        *mirrors, own = self.rules.find_pull_sources(reference)
        if reference.digest is not None:
            # A tag-only mirror is used neither for an image named by digest nor for anything it needs.
            mirrors = [mirror for mirror in mirrors if mirror.can_pull(by_digest=True)]
        repository = self._open_own(own, reference)
        display_name = f"{reference.registry}/{reference.repository}"
        if not mirrors and str(repository) == display_name:
            return self._cache(repository)
        from ocistream.registry.mirrors import MirroredRepository

        candidates = self._open_candidates(mirrors, own, repository)
        quick_candidate = candidates[-1]
        if mirrors:
            # With the short time-outs of a mirror.
            quick_repository = self._open_own(own, reference, is_replaceable=True)
            quick_candidate = replace(quick_candidate, repository=quick_repository)
        return self._cache(MirroredRepository(display_name, candidates, self._health(), quick_candidate))

    def list_tags(self, reference: Reference) -> TagList:
        """List the tags of a repository from the registry itself.

        Mirrors are asked only if the registry is unreachable: a cache lists only the tags that it happens to have.

        Raises:
            OcistreamError: the error of the registry itself, if no mirror answered.
        """
        from ocistream.registry.tags import list_tags

        *mirrors, own = self.rules.find_pull_sources(reference)
        repository = self._open_own(own, reference)
        try:
            return list_tags(repository)
        except NetworkError as error:
            if mirrors and (tag_list := self._list_tags_of_mirrors(mirrors, own, repository, error)) is not None:
                return tag_list
            raise

    def _list_tags_of_mirrors(
        self, mirrors: Sequence[PullSource], own: PullSource, repository: Repository, error: NetworkError
    ) -> TagList | None:
        """Return the tags of the first mirror that lists any; `error` is the registry's own."""
        from ocistream.registry.mirrors import CANDIDATE_FAILURES
        from ocistream.registry.tags import list_tags

        health = self._health()
        for mirror in self._open_candidates(mirrors, own, repository)[:-1]:
            if not mirror.pull_source.can_pull(by_digest=False) or health.is_disabled(mirror.pull_source):
                continue
            notify(f"{error.message}; asking the mirror {mirror.pull_source} for the tags")
            try:
                tag_list = list_tags(mirror.repository)
            except CANDIDATE_FAILURES as failure:
                notify(f"the mirror {mirror.pull_source}: {failure.message}")
            else:
                reason = f"these tags come from the mirror {mirror.pull_source}, which may lack some"
                return replace(tag_list, incomplete_reason=tag_list.incomplete_reason or reason)
        return None

    def _open_candidates(
        self, mirrors: Sequence[PullSource], own: PullSource, repository: Repository
    ) -> list[PullCandidate]:
        from ocistream.registry.mirrors import PullCandidate

        candidates = []
        for mirror in mirrors:
            quick, normal = (
                Repository(
                    self.client, mirror.registry, mirror.repository, is_named_by_user=False, is_replaceable=is_quick
                )
                for is_quick in (True, False)
            )
            candidates.append(PullCandidate(mirror, quick, normal))
        return [*candidates, PullCandidate(own, repository, repository)]

    def _open_own(self, primary: PullSource, reference: Reference, *, is_replaceable: bool = False) -> Repository:
        """Open the registry's own repository. With another `location` the configuration named the host."""
        return Repository(
            self.client,
            primary.registry,
            primary.repository,
            is_named_by_user=primary.registry.lower() == reference.registry.lower(),
            is_replaceable=is_replaceable,
        )


def _create_health() -> MirrorHealth:
    from ocistream.registry.mirrors import MirrorHealth

    return MirrorHealth()
