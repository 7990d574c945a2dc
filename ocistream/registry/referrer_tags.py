"""The tags of cosign's that hang on images, in the repositories of a registry that images go into.

Such a tag is one for all: whoever signs an image where it has arrived writes the same one there. So it is no tag to be
moved like an image's. Where there is something else under it, that stays, unless what comes has all of it: another
signature is a further layer of the same manifest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError
from ocistream.oci.referrers import TAKEN, Attached, LeftBehind
from ocistream.oci.strict_json import canonical_json, parse_json
from ocistream.streams.chunks import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocistream.oci.descriptor import Manifest
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.reference import Reference
    from ocistream.registry.repository import Repository

__all__ = ["HungTags"]


class HungTags:
    """Where these tags are to go, and where there is something else already."""

    def __init__(self, target: Callable[[Root], Reference], repository: Callable[[Reference], Repository]) -> None:
        """`target` says where each image goes, `repository` gives what is asked there."""
        self._target = target
        self._repository = repository
        self._taken: set[Reference] = set()
        #: What is there, and has all that it holds in what comes.
        self._outgrown: dict[Reference, str] = {}

    def spared(self, graph: Graph) -> Graph:
        """Leave behind what would take the place of something else.

        Where the same hangs on an image in several repositories, it goes into those in which its place is free.
        """
        places = self.places(graph)
        held = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        taken = [place for place, one in places.items() if self._is_taken(place, held.get(one.descriptor.digest), one)]
        self._taken.update(taken)
        going = {one.key for one in self.places(graph).values()}
        left = {one.key: one for one in map(places.__getitem__, taken)}
        graph = graph.without_attached(lambda one: one.key in left and one.key not in going, TAKEN)
        partly = (LeftBehind.of(one, TAKEN) for key, one in left.items() if key in going)
        return replace(graph, left_behind=(*graph.left_behind, *partly))

    def places(self, graph: Graph) -> dict[Reference, Attached]:
        """Give what goes under which tag, in the repository of each image that it says something of.

        A tag that was asked for by name is an image's, and is moved like one.
        """
        places: dict[Reference, Attached] = {}
        images = {self._target(root) for root in graph.roots}
        for root in graph.roots if graph.attached else ():
            reference = self._target(root)
            hanging = [attached for digest in graph.reachable(root) for attached in graph.attached.get(digest, ())]
            for attached in sorted(hanging, key=lambda one: one.order):
                place = replace(reference, tag=attached.tag, digest=None)
                if attached.tag and place not in images and place not in self._taken:
                    places[place] = attached
        return places

    def may_replace(self, place: Reference, present: str) -> bool:
        """Say whether what was found under a tag, by its digest, is all in what comes."""
        return self._outgrown.get(place) == present

    def _is_taken(self, place: Reference, manifest: Manifest | None, attached: Attached) -> bool:
        repository, tag = self._repository(place), place.tag or ""
        present = repository.digest_of(tag)
        # Some know a manifest by a digest of their own choice.
        own = {attached.descriptor.digest} | ({digest_of(manifest.raw)} if manifest else set())
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
        if manifest is None or not _layers_of(there) <= _layers_of(manifest):
            return True
        self._outgrown[place] = there.descriptor.digest
        return False


def _layers_of(manifest: Manifest) -> set[bytes]:
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
