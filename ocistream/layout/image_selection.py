"""What a source is asked for. Choose all images, or fail if one has no usable name; report names that are not used.

`push --to`, `copy --all-tags` and `sync` choose by `select_all_images`, so that none drops an image for its name.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.layout.index import (
    ImageSelector,
    format_image_names,
    select_every_image,
    select_existing_images,
    tag_of,
)
from ocistream.notices import notify
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.referrers import ReferrerMode

#: The size of a root whose manifest is not built yet. Its digest is a placeholder, and must not be printed.
UNKNOWN_SIZE: Final = -1
#: At most this many names, and images of one name, are printed.
_MAX_NAMES: Final = 10


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images and platforms of a source are wanted."""

    select: ImageSelector = field(default=select_every_image)
    platforms: PlatformChoice = ALL_PLATFORMS
    #: How much larger than itself a compressed archive may become.
    max_ratio: int = limits.MAX_RATIO
    #: Whether to include blobs that no image needs, to verify them.
    all_blobs: bool = False
    #: How to handle referrers: signatures, SBOMs and the like.
    referrers: ReferrerMode = "copy"
    #: Whether to find signatures that are not copied too, because a check needs them.
    with_signatures: bool = False
    #: Which of a repository's tags to read; None reads the one that the location names.
    tags: Callable[[Sequence[str]], Sequence[str]] | None = None


#: Every image, with referrers as images of their own.
ALL_IMAGES: Final = Selection(referrers="list")


class UnknownDigestError(Exception):
    """A digest must be printed, and the manifest of that image is not built yet."""


def select_all_images(
    roots: Sequence[Root],
    has_destination: Callable[[Root], bool],
    missing: str,
    hint: str,
    *,
    description: str = "in the archive or layout",
) -> Sequence[Root]:
    """Choose all images, each under those of its names that have a destination (`has_destination`).

    `missing` says what other names lack, and `description` where the images are. A name that is not used is reported if
    its image is copied under another name. A stray entry is chosen if it has a destination.

    Raises:
        NotFoundError: the layout or archive has no images.
        UsageError: an image has no such name. The message names each, and `hint` says what to do.
    """
    chosen = [root for root in select_existing_images(roots) if has_destination(root)]
    chosen_digests = _digests(chosen)
    unused = [root for root in roots if not root.is_stray and not has_destination(root)]
    unnamed = [root for root in unused if root.descriptor.digest not in chosen_digests]
    if unnamed or not chosen:
        count, total = len(_digests(unnamed)), len(_digests(root for root in roots if not root.is_stray))
        if count == total:
            msg = f"no image {description} has a {missing}: {format_image_names(unnamed or roots)}"
        else:
            verb = "has" if count == 1 else "have"
            msg = f"{count} of {total} images {description} {verb} no {missing}: {format_image_names(unnamed)}"
        raise UsageError(msg, hint=hint)
    for root in unused:
        if root.name:
            name = printable(root.name)
            notify(
                f"the name {name!r} is not used, because it is not a {missing}; "
                "the image is copied under its other name"
            )
    return chosen


def report_duplicate_names(graph: Graph) -> None:
    """Report names that several images have: tools differ in the image that they take.

    An archive may have two images of one name. A layout directory refuses that (`layout.destination`).
    """
    images: dict[str, dict[str, None]] = {}
    for root in graph.roots:
        if root.name:
            shown = graph.image_id(root) if root.is_synthesized else root.descriptor.digest
            images.setdefault(root.name, {})[shown or root.descriptor.digest] = None
    duplicates = {name: list(digests) for name, digests in images.items() if len(digests) > 1}
    for name, digests in itertools.islice(duplicates.items(), _MAX_NAMES):
        shown = ", ".join(digests[:_MAX_NAMES])
        more = f" and {len(digests) - _MAX_NAMES} more" if len(digests) > _MAX_NAMES else ""
        notify(
            f"{len(digests)} images have the name {printable(name)!r}: {shown}{more}; skopeo takes the first one, "
            "`docker load`, `ctr image import` and `ocistream serve` take the last one"
        )
    if len(duplicates) > _MAX_NAMES:
        notify(f"{len(duplicates) - _MAX_NAMES} more names belong to several images each")


def report_untagged(roots: Iterable[Root], option: str = "--tags") -> None:
    """Report images without a tag if `option` chooses images by their tags.

    Raises:
        UnknownDigestError: an image without a tag has `UNKNOWN_SIZE`.
    """
    images = [root for root in roots if not root.is_stray]
    tagged = _digests(root for root in images if tag_of(root.name))
    for root in images:
        if root.descriptor.digest not in tagged:
            if root.descriptor.size == UNKNOWN_SIZE:
                raise UnknownDigestError
            notify(f"{format_image_names([root])} is skipped: it has no tag, and {option} copies tags only")


def _digests(roots: Iterable[Root]) -> set[str]:
    return {root.descriptor.digest for root in roots}
