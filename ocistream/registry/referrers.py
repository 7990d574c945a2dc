"""What refers to a manifest, in one repository: listed by the registry, or, where it cannot, by its clients.

The registry's way is an API (distribution-spec, "Listing Referrers"). Where there is none, clients keep the list
themselves, as an index under a tag made of the subject's digest ("Referrers Tag Schema"), and whoever pushes a manifest
with a subject has to add it there. That is a read, a change and a write, between which nobody can be kept out: of two
that add to one list at the same moment, the spec has no way to save both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, RegistryError, UnsupportedError
from ocistream.http.origins import Origin, redact_url
from ocistream.notices import notify
from ocistream.oci.descriptor import OCI_INDEX, Descriptor, Manifest
from ocistream.oci.documents import parse_document
from ocistream.oci.referrers import fallback_tag
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items, parse_json
from ocistream.registry.repository import next_page_url
from ocistream.streams.chunks import compute_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ocistream.registry.repository import Repository

__all__ = ["ReferrerList", "RepositoryReferrers"]

#: How a registry says that it does not know the API; a bad request may mean this digest alone.
_NO_API: Final = frozenset({404, 405, 501})
_BAD_REQUEST: Final = 400


@dataclass(frozen=True, slots=True)
class ReferrerList:
    """What refers to a manifest, each once, as it is listed; `cut` says why it is not all of it, if so."""

    descriptors: tuple[Descriptor, ...] = ()
    incomplete_reason: str | None = None


class RepositoryReferrers:
    """The lists of referrers of one repository. Safe for several threads.

    Once the registry has shown that it does not know the API, it is not asked again.
    """

    def __init__(self, repository: Repository) -> None:
        """Nothing is asked for yet."""
        self._repository = repository
        self._has_api = True

    def list_referrers(self, digest: str) -> ReferrerList:
        """Ask what refers to a manifest, `MAX_PAGES` pages and little more than `MAX_ATTACHED` descriptors at most.

        Raises:
            AuthenticationError: it is not to be seen.
            RegistryError: the registry failed.
            ArchiveError: the list is malformed.
        """
        if self._has_api:
            try:
                return self._fetch_from_api(digest)
            except (NotFoundError, RegistryError) as error:
                status = error.status if isinstance(error, RegistryError) else 404
                if status not in {*_NO_API, _BAD_REQUEST}:
                    raise
                self._has_api = status == _BAD_REQUEST
        kept = self._fetch_fallback_index(digest)
        return ReferrerList(_unique(parse_document(kept.descriptor, kept.raw).manifests) if kept else ())

    def add_to_fallback_index(self, subject: str, referrers: Sequence[Descriptor]) -> None:
        """Add to the list that clients keep, where something is not on it yet; what is stays as it is.

        Raises:
            UnsupportedError: the tag has another meaning, or the list would be too long for anybody to read.
            RegistryError: the registry does not want it.
        """
        tag = fallback_tag(subject)
        before = self._fetch_fallback_index(subject)
        if before is None and self._repository.has_manifest(tag):
            msg = f"{self._repository}:{tag} should be the list of what refers to {subject}, and is something else"
            raise UnsupportedError(msg, hint="remove that tag, or leave referrers behind with --no-referrers")
        fields: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX}
        entries: list[bytes] = []
        known: set[str] = set()
        if before is not None:

            def keep(_: int, entry: dict[str, Any]) -> bytes:
                return canonical_json(entry)

            fields = parse_json(before.raw, tag, convert={"manifests": keep})
            entries = list(fields.get("manifests") or ())
            known = {entry.digest for entry in parse_document(before.descriptor, before.raw).manifests}
        new = [canonical_json(referrer.to_json()) for referrer in referrers if referrer.digest not in known]
        if not new:
            return
        raw = canonical_json_with_items(fields, "manifests", [*entries, *new])
        if len(raw) > limits.MAX_MANIFEST or len(entries) + len(new) > limits.MAX_LIST_ENTRIES:
            msg = f"{self._repository}:{tag}: the list of what refers to {subject} would be too long to be read"
            raise UnsupportedError(msg, hint="leave referrers behind with --no-referrers")
        self._repository.push_manifest(tag, Manifest(Descriptor(OCI_INDEX, compute_digest(raw), len(raw)), raw))

    def _fetch_from_api(self, digest: str) -> ReferrerList:
        repository = self._repository
        found: dict[str, Descriptor] = {}
        url = repository.url(f"referrers/{digest}")
        seen: set[str] = set()
        while len(seen) < limits.MAX_PAGES and len(found) <= limits.MAX_REFERRERS:
            seen.add(url)
            answer, raw = repository.fetch_document(url, OCI_INDEX)
            what = f"the list of what refers to {digest} in {repository}"
            if len(raw) > limits.MAX_MANIFEST:
                msg = f"{what} is larger than {limits.MAX_MANIFEST} bytes"
                raise ArchiveError(msg)
            try:
                page = parse_document(Descriptor(OCI_INDEX, digest, len(raw)), raw).manifests
            except (ArchiveError, UnsupportedError) as error:
                msg = f"{what}: {error.message}"
                raise ArchiveError(msg) from error
            for descriptor in page:
                found.setdefault(descriptor.digest, descriptor)
            following = next_page_url(answer)
            if following is None or following in seen:
                # In a circle, everything has been seen.
                return ReferrerList(tuple(found.values()))
            if Origin.from_url(following) != Origin.from_url(answer.url):
                return ReferrerList(
                    tuple(found.values()), f"the list goes on at {redact_url(following)}, which is not asked"
                )
            url = following
        return ReferrerList(tuple(found.values()), f"of the list only {len(found)} are read, on {len(seen)} pages")

    def _fetch_fallback_index(self, digest: str) -> Manifest | None:
        """Get the index that clients keep; something else under its tag is reported."""
        try:
            found = self._repository.resolve(fallback_tag(digest))
        except NotFoundError:
            return None
        if found.descriptor.media_type == OCI_INDEX:
            return found
        what = f"{self._repository}:{fallback_tag(digest)} should be the list of what refers to {digest}"
        notify(f"{what}, and is something else: it is not used")
        return None


def _unique(descriptors: Iterable[Descriptor]) -> tuple[Descriptor, ...]:
    by_digest: dict[str, Descriptor] = {}
    for descriptor in descriptors:
        by_digest.setdefault(descriptor.digest, descriptor)
    return tuple(by_digest.values())
