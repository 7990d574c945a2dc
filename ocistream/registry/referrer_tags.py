"""The tags of cosign's that hang on images, in the repositories of a registry that images go into.

Such a tag is one for all: whoever signs an image where it has arrived writes the same one there. So it is no tag to be
moved like an image's. Where there is something else under it, that stays, unless what comes has all of it: another
signature is a further layer of the same manifest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError
from ocistream.oci.referrers import TAG_EXISTS, Referrer, SkippedReferrer
from ocistream.oci.strict_json import canonical_json, parse_json
from ocistream.streams.chunks import compute_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocistream.oci.descriptor import Manifest
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.reference import Reference
    from ocistream.registry.repository import Repository

__all__ = ["CosignTags"]


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
