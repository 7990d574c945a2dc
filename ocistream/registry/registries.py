"""`Registries`: what one side of a copy needs of registries, to read from repositories and to write to them.

An image is read from the registry's own repository, or from one with mirrors or a cache around it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol, TypeAlias

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
    from ocistream.registry.mirrors import MirroredRepository
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


#: Whether a host is used as a mirror, and its name.
MirrorHost: TypeAlias = "tuple[bool, str]"


class HostHealth:
    """Which hosts failed in this run: mirrors, and registries that have mirrors. Safe for several threads.

    A host that failed is not asked again in the run: another location can be asked, and a dead host costs seconds.
    """

    def __init__(self) -> None:
        """Begin without failures."""
        #: Hosts that are not asked again, and the first reason; `_corrupt` has those that sent wrong bytes.
        self._reasons: dict[MirrorHost, str] = {}
        self._corrupt: set[MirrorHost] = set()

    def has_failed(self, host: MirrorHost) -> bool:
        """Return whether a host must not be asked again, if another location can be asked."""
        return host in self._reasons

    def is_down(self, host: MirrorHost) -> bool:
        """Return whether a host failed without sending wrong bytes."""
        return host in self._reasons and host not in self._corrupt

    def record_failure(self, host: MirrorHost, reason: str, *, is_corrupt: bool = False) -> None:
        """Stop requests to a host for this run, and report the reason."""
        # `setdefault` is atomic: one of several threads is the first.
        is_new = self._reasons.setdefault(host, reason) is reason
        if is_corrupt:
            self._corrupt.add(host)
        notify(reason, level=0 if is_new else 1)


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
        # Shared with `without_cache`.
        self._health = HostHealth()
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
        if not mirrors and str(repository) == f"{reference.registry}/{reference.repository}":
            return self._cache(repository)
        return self._cache(self._open_mirrored(reference, repository, mirrors))

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
            tag_list = None
            if mirrors:
                tag_list = self._open_mirrored(reference, repository, mirrors).list_tags_of_mirrors(error)
            if tag_list is None:
                raise
            return tag_list

    def _open_own(self, own: PullSource, reference: Reference) -> Repository:
        """Open the registry's own repository. With another `location` the configuration named the host."""
        is_named_by_user = own.registry.lower() == reference.registry.lower()
        return Repository(self.client, own.registry, own.repository, is_named_by_user=is_named_by_user)

    def _open_mirrored(
        self, reference: Reference, own: Repository, mirrors: Sequence[PullSource]
    ) -> MirroredRepository:
        from ocistream.registry.mirrors import MirroredRepository

        return MirroredRepository(f"{reference.registry}/{reference.repository}", own, mirrors, self._health)
