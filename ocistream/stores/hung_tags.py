"""The tags of cosign's that hang on images, in the repositories of a registry that images go into.

Such a tag is one for all: whoever signs an image where it has arrived writes the same one there. So it is no tag to be
moved like an image's. Where there is something else under it, that stays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.attachments import TAKEN, Attached, LeftBehind
from ocistream.errors import NotFoundError
from ocistream.stream import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocistream.distribution import Repository
    from ocistream.graph import Graph, Root
    from ocistream.reference import Reference

__all__ = ["HungTags"]


class HungTags:
    """Where these tags are to go, and where there is something else already."""

    def __init__(self, target: Callable[[Root], Reference], repository: Callable[[Reference], Repository]) -> None:
        """`target` says where each image goes, `repository` gives what is asked there."""
        self._target = target
        self._repository = repository
        self._taken: set[Reference] = set()

    def spared(self, graph: Graph) -> Graph:
        """Leave behind what would take the place of something else.

        Where the same hangs on an image in several repositories, it goes into those in which its place is free.
        """
        places = self.places(graph)
        raw = {manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}
        taken = [place for place, one in places.items() if self._is_taken(place, raw.get(one.descriptor.digest), one)]
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

    def _is_taken(self, place: Reference, raw: bytes | None, attached: Attached) -> bool:
        repository, tag = self._repository(place), place.tag or ""
        present = repository.digest_of(tag)
        if present == "":
            # Not every registry says the digest before it gives the manifest.
            try:
                present = repository.resolve(tag).descriptor.digest
            except NotFoundError:
                present = None
        # Some know a manifest by a digest of their own choice.
        own = {attached.descriptor.digest} if raw is None else {attached.descriptor.digest, digest_of(raw)}
        return present is not None and present not in own
