"""Where many images go at once: each to a place of its own, and none over another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import UsageError
from ocistream.layout.all_images import all_images, tell_untagged
from ocistream.layout.index import tag_of
from ocistream.oci.reference import Reference, printable
from ocistream.oci.tag_filters import matching

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.layout.index import Selection
    from ocistream.oci.graph import Root

__all__ = ["apart", "every_tag", "matching", "tagged", "under_own_tag"]


def apart(target: Callable[[Root], Reference], select: Selection) -> Selection:
    """Make sure that of the images that `select` chooses no two go to one place: the second would replace the first.

    What it gives raises UsageError where they do.
    """

    def chosen(roots: Sequence[Root]) -> Sequence[Root]:
        found = select(roots)
        places: dict[Reference, Root] = {}
        for root in found:
            place = target(root)
            if places.setdefault(place, root).descriptor.digest != root.descriptor.digest:
                both = f"{printable(places[place].name or '')} and {printable(root.name or '')}"
                msg = f"{both} would both become {place.name}"
                raise UsageError(msg, hint="push one of them with `ocistream push HOST/REPOSITORY:TAG --image NAME`")
        return found

    return chosen


def every_tag(choose: Callable[[Sequence[str]], Sequence[str]], hint: str) -> Selection:
    """Return a selection of all images of an archive or layout by their tags, which `choose` may restrict.

    The selection raises UsageError, with this hint, if an image has no tag.
    """

    def select(roots: Sequence[Root]) -> Sequence[Root]:
        return tagged(choose)(all_images(roots, lambda root: tag_of(root.name) is not None, "tag", hint))

    return select


def tagged(choose: Callable[[Sequence[str]], Sequence[str]]) -> Selection:
    """Return a selection of images of an archive or layout by their tags; a notice names the images without a tag."""

    def select(roots: Sequence[Root]) -> Sequence[Root]:
        tags = [tag for root in roots if (tag := tag_of(root.name))]
        chosen = set(choose(list(dict.fromkeys(tags))))
        tell_untagged(roots)
        return [root for root in roots if tag_of(root.name) in chosen]

    return select


def under_own_tag(repository: Reference) -> Callable[[Root], Reference]:
    """Give the way to name images within one repository: each keeps its tag."""

    def target(root: Root) -> Reference:
        return Reference(repository.registry, repository.repository, tag_of(root.name))

    return target
