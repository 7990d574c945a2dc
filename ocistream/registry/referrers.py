"""The referrers of a manifest in one repository, and the tags that cosign uses for signatures.

A registry lists referrers by API, or clients keep an index under a tag (distribution-spec, "Referrers Tag Schema").
Two clients that update the same index at the same time can lose an entry; the spec has no lock for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, RegistryError, UnsupportedError
from ocistream.http.origins import Origin, redact_url
from ocistream.notices import notify
from ocistream.oci.descriptor import OCI_INDEX, Descriptor, Manifest
from ocistream.oci.documents import parse_document
from ocistream.oci.referrers import TAG_EXISTS, Referrer, SkippedReferrer, fallback_tag
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items, parse_json
from ocistream.registry.repository import next_page_url
from ocistream.streams.chunks import compute_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.reference import Reference
    from ocistream.registry.repository import Repository

__all__ = [
    "CosignTags",
    "ReferrerList",
    "RepositoryReferrers",
]

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


class CosignTags:
    """Where these tags are to go, and where there is something else already."""

    def __init__(self, target: Callable[[Root], Reference], repository: Callable[[Reference], Repository]) -> None:
        """`target` says where each image goes, `repository` gives what is asked there."""
        self._target = target
        self._repository = repository
        self._conflicting: set[Reference] = set()
        #: What is there, and has all that it holds in what comes.
        self._replaceable: dict[Reference, str] = {}

    def skip_conflicting_referrers(self, graph: Graph) -> Graph:
        """Leave behind what would take the place of something else.

        Where the same hangs on an image in several repositories, it goes into those in which its place is free.
        """
        places = self.find_tagged_referrers(graph)
        held = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        taken = [
            place for place, one in places.items() if self._has_conflict(place, held.get(one.descriptor.digest), one)
        ]
        self._conflicting.update(taken)
        going = {one.key for one in self.find_tagged_referrers(graph).values()}
        left = {one.key: one for one in map(places.__getitem__, taken)}
        graph = graph.without_referrers(lambda one: one.key in left and one.key not in going, TAG_EXISTS)
        partly = (SkippedReferrer.from_referrer(one, TAG_EXISTS) for key, one in left.items() if key in going)
        return replace(graph, skipped_referrers=(*graph.skipped_referrers, *partly))

    def find_tagged_referrers(self, graph: Graph) -> dict[Reference, Referrer]:
        """Give what goes under which tag, in the repository of each image that it says something of.

        A tag that was asked for by name is an image's, and is moved like one.
        """
        places: dict[Reference, Referrer] = {}
        images = {self._target(root) for root in graph.roots}
        for root in graph.roots if graph.referrers else ():
            reference = self._target(root)
            hanging = [attached for digest in graph.reachable(root) for attached in graph.referrers.get(digest, ())]
            for attached in sorted(hanging, key=lambda one: one.sort_key):
                place = replace(reference, tag=attached.tag, digest=None)
                if attached.tag and place not in images and place not in self._conflicting:
                    places[place] = attached
        return places

    def can_replace(self, reference: Reference, existing: str) -> bool:
        """Say whether what was found under a tag, by its digest, is all in what comes."""
        return self._replaceable.get(reference) == existing

    def _has_conflict(self, reference: Reference, manifest: Manifest | None, referrer: Referrer) -> bool:
        repository, tag = self._repository(reference), reference.tag or ""
        present = repository.find_digest(tag)
        # Some know a manifest by a digest of their own choice.
        own = {referrer.descriptor.digest} | ({compute_digest(manifest.raw)} if manifest else set())
        if present is None or present in own:
            return False
        try:
            # Not every registry says the digest before it gives the manifest.
            there = repository.resolve(tag)
        except NotFoundError:
            return False
        except (ArchiveError, UnsupportedError):
            return True
        if there.descriptor.digest in own:
            return False
        if manifest is None or not _parse_layers(there) <= _parse_layers(manifest):
            return True
        self._replaceable[reference] = there.descriptor.digest
        return False


def _parse_layers(manifest: Manifest) -> set[bytes]:
    """Give what is signed, and, as annotations, by whom: cosign's signatures of one payload differ in these only."""

    def entry(_: int, layer: object) -> bytes:
        return canonical_json(layer)

    try:
        fields = parse_json(manifest.raw, manifest.descriptor.digest, keys={"layers"}, convert={"layers": entry})
    except ArchiveError:
        fields = {}
    layers = fields.get("layers")
    # What has no layers is itself all that it holds.
    return set(layers) if layers and isinstance(layers, list) else {manifest.raw}
