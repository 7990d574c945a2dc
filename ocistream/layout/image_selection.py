"""Which images and platforms of a source are wanted: the only one, those of some names, or all; report unused names.

`push --to`, `copy --all-tags` and `sync` share `check_all_images`, so that none drops an image for its name.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocistream.errors import InvalidNameError, NotFoundError, UsageError
from ocistream.layout.index import REF_NAME, has_full_name, is_printable_name, tag_of
from ocistream.notices import notify
from ocistream.oci.descriptor import UNKNOWN_SIZE
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import parse_reference, printable
from ocistream.oci.referrers import REFERRER_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.referrers import ReferrerMode

#: At most this many names, and images of one name, are printed.
_MAX_NAMES: Final = 10

#: Which images have a name that copies require, by what errors call it.
_REQUIRED_NAMES: Final[Mapping[str, Callable[[Root], bool]]] = {
    "full name": has_full_name,
    "tag": lambda root: tag_of(root.name) is not None,
}

#: Selects images. The string is the name of their archive or layout, for errors.
ImageSelector: TypeAlias = "Callable[[Sequence[Root], str], Sequence[Root]]"


def select_every_image(roots: Sequence[Root], _where: str) -> Sequence[Root]:
    """Select all images."""
    return roots


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images and platforms of a source are wanted."""

    select: ImageSelector = field(default=select_every_image)
    platforms: PlatformChoice = ALL_PLATFORMS
    #: Whether to include blobs that no image needs, to verify them.
    all_blobs: bool = False
    #: How to handle referrers: signatures, SBOMs and the like.
    referrers: ReferrerMode = "copy"
    #: Whether to find signatures that are not copied too, because a check needs them.
    with_signatures: bool = False
    #: Which of a repository's tags to read; None reads the one that the location names.
    tags: Callable[[Sequence[str]], Sequence[str]] | None = None
    #: All tags of the repository that name referrers; other such tags are not requested. None if they are unknown.
    digest_tags: Collection[str] | None = None
    #: The name of the archive or layout, for errors.
    where: str = "the archive or layout"

    def choose(self, roots: Sequence[Root]) -> Sequence[Root]:
        """Return the wanted images of those that the archive or layout has."""
        return self.select(roots, self.where)


#: Every image, with referrers as images of their own.
ALL_IMAGES: Final = Selection(referrers="list")


class UnknownDigestError(Exception):
    """A digest must be printed, and the manifest of that image is not built yet."""


class NoSuchImageError(NotFoundError):
    """No image has this name or digest. `wanted` is the name or digest."""

    def __init__(self, wanted: str, where: str, hint: str) -> None:
        """Build the message. `where` is the name of the archive or layout, and `hint` says what to do."""
        super().__init__(f"{where} has no image {printable(wanted)!r}", hint=hint)
        self.wanted = wanted


def select_existing_images(roots: Sequence[Root], where: str) -> Sequence[Root]:
    """Select all images.

    Raises:
        NotFoundError: the layout or archive has no images.
    """
    if not roots:
        raise NotFoundError(f"{where} has no images")
    return roots


def select_only_image(roots: Sequence[Root], where: str) -> Sequence[Root]:
    """Select the only image, with or without a name. A stray entry is selected only without images.

    Raises:
        NotFoundError: the layout or archive has no images.
        UsageError: there are several images.
    """
    candidates = [root for root in select_existing_images(roots, where) if not root.is_stray] or list(roots)
    if (count := len({root.descriptor.digest for root in candidates})) > 1:
        msg = f"{where} has {count} images"
        if len({root.name for root in candidates}) < count:
            digests = list(dict.fromkeys(root.descriptor.digest for root in candidates))
            more = f" and {count - _MAX_NAMES} more" if count > _MAX_NAMES else ""
            hint = f"choose one with --image, by its digest: {', '.join(digests[:_MAX_NAMES])}{more}"
            raise UsageError(msg, hint=hint)
        # --to needs full names to tell where each image goes.
        which = "one with --image, or all with --to" if all(map(has_full_name, candidates)) else "one with --image"
        raise UsageError(msg, hint=f"choose {which}: {format_image_names(candidates)}")
    return [next((root for root in candidates if root.name), candidates[0])]


def select_single_image(roots: Sequence[Root], where: str, alternative: str = "") -> Sequence[Root]:
    """Return the only image, as `select_only_image`; if there are several, say how to choose one in a location.

    `alternative` is what else the user can do, for the hint.
    """
    try:
        return select_only_image(roots, where)
    except UsageError as error:
        # One name for each image is enough.
        images: dict[str, Root] = {}
        for root in roots:
            images.setdefault(root.descriptor.digest, root)
        names = format_image_names(list(images.values()))
        hint = f"choose one, as in oci:DIR:NAME or oci-archive:FILE:NAME{alternative}: {names}"
        raise UsageError(error.message, hint=hint) from error


def select_image_to_copy(roots: Sequence[Root], where: str) -> Sequence[Root]:
    """Return the only image, as `select_single_image`, for `copy`."""
    return select_single_image(roots, where, ", or copy all with --all-tags")


def select_named_images(names: Sequence[str], *, all_names: bool = False) -> ImageSelector:
    """Return a selector of images by full name, short name, tag, or digest.

    With `all_names`, all entries of an image that match a name are selected. The selector raises NotFoundError, with
    the existing names, if a name matches no image.
    """

    def select(roots: Sequence[Root], where: str) -> Sequence[Root]:
        chosen: list[Root] = []
        for name in names:
            matches = find_named(roots, name)
            matches = [root for root in matches if not root.is_stray] or matches
            if not matches:
                raise NoSuchImageError(name, where, f"its images are: {format_image_names(roots)}")
            if len({root.descriptor.digest for root in matches}) > 1:
                msg = f"{len(matches)} images have the name {printable(name)!r}"
                digests = ", ".join(dict.fromkeys(root.descriptor.digest for root in matches))
                by_name = len({root.name for root in matches}) == len(matches)
                hint = f"by its full name: {format_image_names(matches)}" if by_name else f"by its digest: {digests}"
                raise UsageError(msg, hint=f"choose one {hint}")
            matches = [root for root in matches if root.name] or matches
            chosen += matches if all_names else matches[:1]
        return list({id(root): root for root in chosen}.values())

    return select


def find_named(roots: Sequence[Root], name: str) -> list[Root]:
    """Return the images that a name means: its full or short name, its tag, its digest, or its image ID.

    Images whose name is exactly this one come first, then those whose full name it is: `v1` is the image `v1`, even
    beside `registry.example/app:v1`.
    """
    exact = [root for root in roots if root.name == name]
    if not exact:
        with contextlib.suppress(InvalidNameError):
            full_name = parse_reference(name).name
            exact = [root for root in roots if root.name == full_name]
    if exact:
        return exact
    return [
        root
        for root in roots
        if name in {root.descriptor.digest, root.image_id}
        or name in map(root.descriptor.annotations.get, (REF_NAME, REFERRER_NAME))
    ]


def select_full_names(chosen: Sequence[str], command: str) -> ImageSelector:
    """Return a selection of the images of --image, else of all images, that requires full names.

    `command` pushes one image, for the error that names images without a full name; NAME stands for one of them.
    """

    def select(roots: Sequence[Root], where: str) -> Sequence[Root]:
        unnamed = [root for root in roots if not has_full_name(root)]
        line = command.replace("NAME", shlex.quote(_typeable_name(unnamed[0])), 1) if unnamed else command
        which = "this one" if len(unnamed) == 1 else "each image without one"
        hint = f"--to needs a full name, REPOSITORY:TAG, for every image; push {which} by itself: `{line}`"
        if len(unnamed) < len(roots):
            hint += "; select the others with --image NAME"
        if chosen:
            images, which = select_named_images(chosen, all_names=True)(roots, where), "chosen"
        else:
            images, which = select_existing_images(roots, where), f"in {where}"
        check_all_images(images, which, "full name", hint)
        return list(filter(has_full_name, images))

    return select


def select_by_tag(choose: Callable[[Sequence[str]], Sequence[str]], hint: str | None = None) -> ImageSelector:
    """Return a selection of those images of an archive or layout whose tags `choose` returns.

    With `hint`, the selection raises UsageError with it if an image has no tag. Otherwise a notice names these images.
    """

    def select(roots: Sequence[Root], where: str) -> Sequence[Root]:
        if hint is not None:
            check_all_images(select_existing_images(roots, where), f"in {where}", "tag", hint)
        chosen = set(choose(list(dict.fromkeys(tag for root in roots if (tag := tag_of(root.name))))))
        if hint is None:
            report_untagged(roots)
        return [root for root in roots if tag_of(root.name) in chosen]

    return select


def check_all_images(roots: Sequence[Root], which: str, required: Literal["full name", "tag"], hint: str) -> None:
    """Check that each image has a full name, or a name with a tag. No list of all roots is in memory.

    A name that is not used is reported if its image is copied under another name. `which` says in errors which images
    these are: "in FILE", or "chosen".

    Raises:
        UsageError: an image has no such name. The message names each, and `hint` says what to do.
    """
    has_required = _REQUIRED_NAMES[required]
    unused = [root for root in roots if not root.is_stray and not has_required(root)]
    if not unused and any(map(has_required, roots)):
        return
    chosen_digests = _digests(filter(has_required, roots))
    unnamed = [root for root in unused if root.descriptor.digest not in chosen_digests]
    if unnamed or not chosen_digests:
        count, total = len(_digests(unnamed)), len(_digests(root for root in roots if not root.is_stray))
        if count == total:
            msg = f"no image {which} has a {required}: {format_image_names(unnamed or roots)}"
        else:
            verb = "has" if count == 1 else "have"
            msg = f"{count} of {total} images {which} {verb} no {required}: {format_image_names(unnamed)}"
        raise UsageError(msg, hint=hint)
    for root in unused:
        if root.name:
            name = printable(root.name)
            notify(
                f"the name {name!r} is not used, because it is not a {required}; "
                "the image is copied under its other name"
            )


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


def report_replaced_names(roots: Iterable[Root]) -> None:
    """Report names that `verify` refuses, if another name replaces them."""
    for root in itertools.islice(roots, _MAX_NAMES):
        name = root.origin or root.name
        if name is not None and not is_printable_name(name):
            notify(f"the name {printable(name)!r} is not used: names have no spaces or control characters")


def report_untagged(roots: Sequence[Root], option: str = "--tags") -> None:
    """Report images without a tag if `option` chooses images by their tags.

    Raises:
        UnknownDigestError: an image without a tag has `UNKNOWN_SIZE`.
    """
    untagged = [root for root in roots if not root.is_stray and not tag_of(root.name)]
    tagged = _digests(root for root in roots if not root.is_stray and tag_of(root.name)) if untagged else set()
    for root in untagged:
        if root.descriptor.digest not in tagged:
            if root.descriptor.size == UNKNOWN_SIZE:
                raise UnknownDigestError
            notify(f"{format_image_names([root])} is skipped: it has no tag, and {option} copies tags only")


def format_image_names(roots: Sequence[Root]) -> str:
    """Return names for a hint, at most ten of them."""
    names = [printable(root.name) if root.name else root.descriptor.digest for root in roots]
    shown = ", ".join(names[:_MAX_NAMES]) or "none"
    return f"{shown} and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else shown


def _typeable_name(root: Root) -> str:
    """Return a name for a command: the image's own, or its digest if it has none that can be typed."""
    return root.name if root.name and is_printable_name(root.name) else root.descriptor.digest


def _digests(roots: Iterable[Root]) -> set[str]:
    return {root.descriptor.digest for root in roots}
