"""What refers to a manifest, in one repository: listed by the registry, or, where it cannot, by its clients.

The registry's way is an API (distribution-spec, "Listing Referrers"). Where there is none, clients keep the list
themselves, as an index under a tag made of the subject's digest ("Referrers Tag Schema"), and whoever pushes a manifest
with a subject has to add it there. That is a read, a change and a write, between which nobody can be kept out: of two
that add to one list at the same moment, the spec has no way to save both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.attachments import fallback_tag
from ocistream.distribution import next_page
from ocistream.documents import parse_document
from ocistream.errors import ArchiveError, NotFoundError, RegistryError, UnsupportedError
from ocistream.model import OCI_INDEX, Descriptor, Manifest
from ocistream.stream import digest_of
from ocistream.strict_json import canonical_json, canonical_json_with, parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.distribution import Repository

__all__ = ["ReferrerLists"]

#: How a registry says that it does not know the API; a bad request may mean this digest alone.
_NO_API: Final = frozenset({404, 405, 501})
_NOT_THIS_ONE: Final = 400


class ReferrerLists:
    """The lists of referrers of one repository. Safe for several threads.

    Once the registry has shown that it does not know the API, it is not asked again.
    """

    def __init__(self, repository: Repository) -> None:
        """Nothing is asked for yet."""
        self._repository = repository
        self._has_api = True

    def of(self, digest: str) -> list[Descriptor]:
        """Ask what refers to a manifest. Of a list that never ends, `MAX_PAGES` are read.

        Raises:
            AuthenticationError: it is not to be seen.
            RegistryError: the registry failed.
            ArchiveError: the list is malformed.
        """
        if self._has_api:
            try:
                return self._listed(digest)
            except (NotFoundError, RegistryError) as error:
                status = error.status if isinstance(error, RegistryError) else 404
                if status not in {*_NO_API, _NOT_THIS_ONE}:
                    raise
                self._has_api = status == _NOT_THIS_ONE
        kept = self._kept(digest)
        return list(parse_document(kept.descriptor, kept.raw).manifests) if kept else []

    def add(self, subject: str, referrers: Sequence[Descriptor]) -> None:
        """Add to the list that clients keep, where something is not on it yet; what is stays as it is.

        Raises:
            UnsupportedError: the tag has another meaning, or the list would be too long for anybody to read.
            RegistryError: the registry does not want it.
        """
        tag = fallback_tag(subject)
        before = self._kept(subject)
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
        raw = canonical_json_with(fields, "manifests", [*entries, *new])
        if len(raw) > limits.MAX_MANIFEST or len(entries) + len(new) > limits.MAX_LISTED:
            msg = f"{self._repository}:{tag}: the list of what refers to {subject} would be too long to be read"
            raise UnsupportedError(msg, hint="leave referrers behind with --no-referrers")
        self._repository.put_manifest(tag, Manifest(Descriptor(OCI_INDEX, digest_of(raw), len(raw)), raw))

    def _listed(self, digest: str) -> list[Descriptor]:
        repository = self._repository
        found: list[Descriptor] = []
        url: str | None = repository.url(f"referrers/{digest}")
        for _ in range(limits.MAX_PAGES):
            if url is None or len(found) > limits.MAX_ATTACHED:
                break
            answer, raw = repository.small(url, OCI_INDEX)
            what = f"the list of what refers to {digest} in {repository}"
            if len(raw) > limits.MAX_MANIFEST:
                msg = f"{what} is larger than {limits.MAX_MANIFEST} bytes"
                raise ArchiveError(msg)
            try:
                found += parse_document(Descriptor(OCI_INDEX, digest, len(raw)), raw).manifests
            except (ArchiveError, UnsupportedError) as error:
                msg = f"{what}: {error.what}"
                raise ArchiveError(msg) from error
            url = next_page(answer)
        return found

    def _kept(self, digest: str) -> Manifest | None:
        """Get the index that clients keep; what else has its tag is none."""
        try:
            found = self._repository.resolve(fallback_tag(digest))
        except NotFoundError:
            return None
        return found if found.descriptor.media_type == OCI_INDEX else None
