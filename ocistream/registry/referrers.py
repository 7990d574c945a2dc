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
from ocistream.oci.descriptor import OCI_INDEX, Descriptor, Manifest, compute_digest
from ocistream.oci.documents import parse_document
from ocistream.oci.referrers import TAG_EXISTS, Referrer, SkippedReferrer, fallback_tag
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items, parse_json
from ocistream.registry.repository import next_page_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.reference import Reference
    from ocistream.registry.repository import Repository

#: Statuses of a registry without the referrers API. Status 400 may concern only this digest.
_NO_API: Final = frozenset({404, 405, 501})
_BAD_REQUEST: Final = 400


@dataclass(frozen=True, slots=True)
class ReferrerList:
    """The referrers of a manifest, without duplicates, in the order of the registry's list.

    `incomplete_reason` says why the list is not complete, or is None.
    """

    descriptors: tuple[Descriptor, ...] = ()
    incomplete_reason: str | None = None


def list_referrers(repository: Repository, digest: str) -> ReferrerList:
    """Return the referrers of a manifest, from at most `MAX_PAGES` pages and about `MAX_REFERRERS` descriptors.

    Raises:
        AuthenticationError: the registry denies access.
        RegistryError: the registry failed.
        ArchiveError: the list is malformed.
    """
    if repository.has_referrers_api:
        try:
            return _fetch_from_api(repository, digest)
        except (NotFoundError, RegistryError) as error:
            status = error.status if isinstance(error, RegistryError) else 404
            if status not in {*_NO_API, _BAD_REQUEST}:
                raise
            repository.has_referrers_api = status == _BAD_REQUEST
    index = _fetch_fallback_index(repository, digest)
    return ReferrerList(_unique(parse_document(index.descriptor, index.raw).manifests) if index else ())


def add_to_fallback_index(repository: Repository, subject: str, referrers: Sequence[Descriptor]) -> None:
    """Add referrers to the index that clients keep under a tag; existing entries stay as they are.

    Raises:
        UnsupportedError: the tag is used for something else, or the index would exceed its limits.
        RegistryError: the registry refuses the index.
    """
    tag = fallback_tag(subject)
    existing = _fetch_fallback_index(repository, subject)
    if existing is None and repository.has_manifest(tag):
        msg = f"{repository}:{tag} must be the list of referrers of {subject}, but is something else"
        raise UnsupportedError(msg, hint="remove that tag, or use --no-referrers")
    fields: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX}
    known_digests: set[str] = set()
    if existing is not None:
        fields = parse_json(existing.raw, tag, convert={"manifests": lambda _, entry: canonical_json(entry)})
        known_digests = {entry.digest for entry in parse_document(existing.descriptor, existing.raw).manifests}
    new = [canonical_json(referrer.to_json()) for referrer in referrers if referrer.digest not in known_digests]
    if not new:
        return
    entries = [*(fields.get("manifests") or ()), *new]
    raw = canonical_json_with_items(fields, "manifests", entries)
    if len(raw) > limits.MAX_MANIFEST or len(entries) > limits.MAX_LIST_ENTRIES:
        msg = f"{repository}:{tag}: the list of referrers of {subject} would become too long"
        raise UnsupportedError(msg, hint="use --no-referrers")
    repository.push_manifest(tag, Manifest(Descriptor(OCI_INDEX, compute_digest(raw), len(raw)), raw))


def _fetch_from_api(repository: Repository, digest: str) -> ReferrerList:
    label = f"the list of referrers of {digest} in {repository}"
    referrers: dict[str, Descriptor] = {}
    url = repository.url(f"referrers/{digest}")
    urls_seen: set[str] = set()
    while len(urls_seen) < limits.MAX_PAGES and len(referrers) <= limits.MAX_REFERRERS:
        urls_seen.add(url)
        response, raw = repository.fetch_document(url, OCI_INDEX)
        if len(raw) > limits.MAX_MANIFEST:
            msg = f"{label} is larger than {limits.MAX_MANIFEST} bytes"
            raise ArchiveError(msg)
        try:
            page = parse_document(Descriptor(OCI_INDEX, digest, len(raw)), raw).manifests
        except (ArchiveError, UnsupportedError) as error:
            # The list has no digest: it was parsed as the manifest that it is about.
            raise ArchiveError(error.message.replace(f"manifest {digest}", label, 1)) from error
        for descriptor in page:
            referrers.setdefault(descriptor.digest, descriptor)
        next_url = next_page_url(response)
        if next_url is None or next_url in urls_seen:
            # A page that links to an earlier page: all pages have been read.
            return ReferrerList(tuple(referrers.values()))
        if Origin.from_url(next_url) != Origin.from_url(response.url):
            reason = f"the list continues at {redact_url(next_url)}, which is not followed"
            return ReferrerList(tuple(referrers.values()), reason)
        url = next_url
    reason = f"only {len(referrers)} entries on {len(urls_seen)} pages of the list are read"
    return ReferrerList(tuple(referrers.values()), reason)


def _fetch_fallback_index(repository: Repository, digest: str) -> Manifest | None:
    """Return the index that clients keep, or None; report other content under its tag."""
    tag = fallback_tag(digest)
    try:
        manifest = repository.resolve(tag)
    except NotFoundError:
        return None
    if manifest.descriptor.media_type == OCI_INDEX:
        return manifest
    notify(f"{repository}:{tag} must be the list of referrers of {digest}, but is something else: it is not used")
    return None


def _unique(descriptors: Iterable[Descriptor]) -> tuple[Descriptor, ...]:
    by_digest: dict[str, Descriptor] = {}
    for descriptor in descriptors:
        by_digest.setdefault(descriptor.digest, descriptor)
    return tuple(by_digest.values())


class CosignTags:
    """Where cosign's tags of a graph go, and which of these tags already have other content.

    A copy must not remove a signature that was added at the destination: signing there writes the same tag. Each
    further signature is a layer of the same manifest. So a manifest replaces another only if it has all layers of the
    other, with their annotations. Otherwise the existing tag stays, and the skipped referrer is reported.

    `target` returns the reference of each image; `repository` returns the repository of a reference.
    """

    def __init__(self, target: Callable[[Root], Reference], repository: Callable[[Reference], Repository]) -> None:
        """Take the target of each image. Send no request."""
        self._target = target
        self._repository = repository
        self._conflicting: set[Reference] = set()
        #: Reference -> digest of the existing manifest, all of whose layers are in the new manifest.
        self._replaceable: dict[Reference, str] = {}

    def skip_conflicting_referrers(self, graph: Graph) -> Graph:
        """Return the graph without referrers that would replace other content.

        A referrer that goes to several repositories is still copied into those without a conflict.
        """
        self._conflicting = set()
        tagged = self.find_tagged_referrers(graph)
        manifests = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        self._conflicting = {
            reference
            for reference, referrer in tagged.items()
            if self._has_conflict(reference, manifests.get(referrer.descriptor.digest), referrer)
        }
        remaining = {referrer.key for reference, referrer in tagged.items() if reference not in self._conflicting}
        skipped = {tagged[reference].key: tagged[reference] for reference in tagged if reference in self._conflicting}
        graph = graph.without_referrers(
            lambda referrer: referrer.key in skipped and referrer.key not in remaining, TAG_EXISTS
        )
        partly_skipped = (
            SkippedReferrer.from_referrer(referrer, TAG_EXISTS) for key, referrer in skipped.items() if key in remaining
        )
        return replace(graph, skipped_referrers=(*graph.skipped_referrers, *partly_skipped))

    def find_tagged_referrers(self, graph: Graph) -> dict[Reference, Referrer]:
        """Return the referrer for each cosign tag, in the repository of each image that it refers to.

        A cosign tag that the user selected by name is copied as an image, and is not returned here.
        """
        tagged: dict[Reference, Referrer] = {}
        images = {self._target(root) for root in graph.roots}
        for root in graph.roots if graph.referrers else ():
            reference = self._target(root)
            referrers = [referrer for digest in graph.reachable(root) for referrer in graph.referrers.get(digest, ())]
            for referrer in sorted(referrers, key=lambda item: item.sort_key):
                tag_reference = replace(reference, tag=referrer.tag, digest=None)
                if referrer.tag and tag_reference not in images and tag_reference not in self._conflicting:
                    tagged[tag_reference] = referrer
        return tagged

    def can_replace(self, reference: Reference, existing: str) -> bool:
        """Return whether the new manifest contains everything of the existing one, which is named by its digest."""
        return self._replaceable.get(reference) == existing

    def _has_conflict(self, reference: Reference, manifest: Manifest | None, referrer: Referrer) -> bool:
        repository, tag = self._repository(reference), reference.tag or ""
        existing = repository.find_digest(tag)
        # Some registries use another digest algorithm for the same manifest.
        own_digests = {referrer.descriptor.digest} | ({compute_digest(manifest.raw)} if manifest else set())
        if existing is None or existing in own_digests:
            return False
        try:
            # Not every registry sends the digest in its answer to HEAD.
            existing_manifest = repository.resolve(tag)
        except NotFoundError:
            return False
        except (ArchiveError, UnsupportedError):
            return True
        if existing_manifest.descriptor.digest in own_digests:
            return False
        if manifest is None or not _parse_layers(existing_manifest) <= _parse_layers(manifest):
            return True
        self._replaceable[reference] = existing_manifest.descriptor.digest
        return False


def _parse_layers(manifest: Manifest) -> set[bytes]:
    """Return a manifest's layers as canonical JSON; their annotations hold the signatures of one payload."""
    try:
        fields = parse_json(
            manifest.raw,
            manifest.descriptor.digest,
            keys={"layers"},
            convert={"layers": lambda _, layer: canonical_json(layer)},
        )
    except ArchiveError:
        fields = {}
    layers = fields.get("layers")
    # A manifest without layers is compared as a whole.
    return set(layers) if layers and isinstance(layers, list) else {manifest.raw}
