"""Where many images go at once: each to a place of its own, and none over another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import UsageError
from ocistream.layout.all_images import report_untagged, select_all_images
from ocistream.layout.index import tag_of
from ocistream.oci.reference import Reference, printable
from ocistream.oci.tag_filters import glob_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.layout.index import ImageSelector
    from ocistream.oci.graph import Root

__all__ = ["build_tag_target", "glob_filter", "require_distinct_targets", "select_all_by_tag", "select_tagged"]


def require_distinct_targets(target: Callable[[Root], Reference], select: ImageSelector) -> ImageSelector:
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


def select_all_by_tag(choose: Callable[[Sequence[str]], Sequence[str]], hint: str) -> ImageSelector:
    """Return a selection of all images of an archive or layout by their tags, which `choose` may restrict.

    The selection raises UsageError, with this hint, if an image has no tag.
    """

    def select(roots: Sequence[Root]) -> Sequence[Root]:
        return select_tagged(choose)(select_all_images(roots, lambda root: tag_of(root.name) is not None, "tag", hint))

    return select


def select_tagged(choose: Callable[[Sequence[str]], Sequence[str]]) -> ImageSelector:
    """Return a selection of images of an archive or layout by their tags; a notice names the images without a tag."""

    def select(roots: Sequence[Root]) -> Sequence[Root]:
        tags = [tag for root in roots if (tag := tag_of(root.name))]
        chosen = set(choose(list(dict.fromkeys(tags))))
        report_untagged(roots)
        return [root for root in roots if tag_of(root.name) in chosen]

    return select


def build_tag_target(repository: Reference) -> Callable[[Root], Reference]:
    """Give the way to name images within one repository: each keeps its tag."""

    def target(root: Root) -> Reference:
        return Reference(repository.registry, repository.repository, tag_of(root.name))

    return target
