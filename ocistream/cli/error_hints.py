"""Add hints to errors: which blobs are missing and how to fetch them, and which image has a given image ID."""

from __future__ import annotations

import contextlib
import shlex
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream.cli.progress import format_count, format_size
from ocistream.errors import OcistreamError
from ocistream.layout.index import (
    NoSuchImageError,
    format_image_names,
    image_name_of,
    parse_full_name,
    select_every_image,
    select_named_images,
)
from ocistream.locations import OpenContext, Selection, open_source, parse_location
from ocistream.oci.graph import Root
from ocistream.oci.reference import is_digest, printable
from ocistream.transfer.incomplete_indexes import find_exported_platforms
from ocistream.transfer.interfaces import IncompleteSource
from ocistream.transfer.report import MissingBlobsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocistream.cli.console import Console
    from ocistream.locations import Location
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Source
    from ocistream.transfer.report import NeededVolumes

__all__ = [
    "add_image_id_hint",
    "add_missing_blobs_hint",
    "add_sync_hint",
]

#: So many digests are written into an error, and into a command; for more, the other side is asked once more.
_MAX_IN_COMMAND: Final = 20
#: So many are listed.
_MAX_LISTED: Final = 1000


@contextlib.contextmanager
def add_missing_blobs_hint(
    console: Console, source_location: Location | None, destination_location: Location | None = None
) -> Iterator[None]:
    """List what neither side has, and say how it can be had; `of` is where the images come from.

    `to` is where they go, if that is no registry.
    """
    try:
        yield
    except MissingBlobsError as error:
        if error.needed is not None:
            error.hint = _volumes_hint(error.needed, is_untouched=error.is_untouched)
        elif any(missing.digest in error.graph.omitted_from_source for missing in error.missing):
            error.message = _missing_blobs_message(error)
            error.hint = _fetch_hint(error, source_location, destination_location)
            _list_missing_blobs(console, error)
        elif error.graph.is_platform_filtered and source_location is not None:
            _add_platforms_hint(error, source_location)
        raise


def add_sync_hint(error: OcistreamError, source: str) -> None:
    """Say how an image can be had that `sync` could not copy, since neither side has all of it; `source` is its end."""
    if not isinstance(error, MissingBlobsError) or error.needed is not None:
        return
    if error.graph.is_platform_filtered:
        _add_platforms_hint(error, parse_location(source, bare_is_path=True))
    else:
        error.hint = "get the complete image, or name in `platforms` one of which nothing is missing"


def _add_platforms_hint(error: MissingBlobsError, source_location: Location) -> None:
    if not error.message.startswith(named := _name_incomplete_image(error)):
        # Once: several destinations may have the same error.
        error.message = f"{named}{error.message}"
    error.hint = _complete_platforms_hint(error.graph, source_location)


def _name_incomplete_image(error: MissingBlobsError) -> str:
    """Name the image and the platform that are not complete, to stand before what is missing."""
    missing = {descriptor.digest for descriptor in error.missing}
    for root in error.graph.roots:
        if root.descriptor.platform and missing & error.graph.reachable(root):
            name = printable(root.origin or root.name or root.descriptor.digest)
            return f"{name} for {printable(str(root.descriptor.platform))} is "
    return ""


def _complete_platforms_hint(graph: Graph, source_location: Location) -> str:
    """Name the platforms that are there, of an archive or a layout that lacks the one that was asked for."""
    path = printable(str(source_location.path or source_location.text), 1024)
    hint = f"`ocistream verify {path}` lists what is missing"
    if source_location.is_stream or source_location.path is None:
        return "save the archive to a file: `ocistream verify FILE` lists what is missing of it"
    names = {root.origin or root.name for root in graph.roots}
    from ocistream.transfer.verify import DiscardedBlobs

    select = select_named_images([name for name in names if name]) if all(names) else select_every_image
    with contextlib.suppress(OcistreamError):
        source = open_source(replace(source_location, name=None), OpenContext(), Selection(select, referrers="left"))
        with contextlib.closing(source):
            if isinstance(source, IncompleteSource):
                lacks = source.is_missing
                whole = source.resolve(DiscardedBlobs(threading.Event()))
                platforms = find_exported_platforms(whole, lambda blob: bool(lacks(blob)))
                shown = ", ".join(map(printable, platforms[:_MAX_IN_COMMAND])) or "none"
                return f"complete platforms: {shown}; {hint}"
    return hint


def _missing_blobs_message(error: MissingBlobsError) -> str:
    many = len(error.missing)
    size = format_size(sum(missing.size for missing in error.missing))
    reasons = {error.graph.omitted_from_source.get(missing.digest) for missing in error.missing}
    said = "; ".join(sorted(f"left out as {reason}" for reason in reasons if reason)[:5])
    done = "nothing was sent" if error.is_untouched else "no image is visible"
    shown = ", ".join(missing.digest for missing in error.missing) if many <= _MAX_IN_COMMAND else "see above"
    return f"neither it nor the destination has {format_count(many, 'blob')} ({size}; {said}), and {done}: {shown}"


def _list_missing_blobs(console: Console, error: MissingBlobsError) -> None:
    """List what the error itself has no room for; with -q too, since it belongs to it."""
    if len(error.missing) <= _MAX_IN_COMMAND:
        return
    for missing in error.missing[:_MAX_LISTED]:
        console.info(f"missing {missing.digest} ({format_size(missing.size)})", level=-1)
    if len(error.missing) > _MAX_LISTED:
        console.info(f"missing {len(error.missing) - _MAX_LISTED} more", level=-1)


def _volumes_hint(needed: NeededVolumes, *, is_untouched: bool) -> str:
    """Say how the other volumes are pushed: all at once always works, one after the other not in every order."""
    if is_untouched:
        return "an archive is made of all volumes at once: push them, or copy them one by one into a layout"
    hint = (
        f"what was sent stays there: go on with {_format_input_options(needed.names)}, at once or one after the other"
    )
    for digest, names in needed.in_order.items():
        options = _format_input_options(names)
        return f"{hint}; {digest} goes on from one to the next: give {options} together, or in this order"
    return hint


def _format_input_options(names: Sequence[str]) -> str:
    shown = " ".join(f"-i {shlex.quote(printable(name))}" for name in names[:_MAX_IN_COMMAND])
    return f"{shown} ..." if len(names) > _MAX_IN_COMMAND else shown


def _fetch_hint(
    error: MissingBlobsError, source_location: Location | None, destination_location: Location | None
) -> str:
    digests = [missing.digest for missing in error.missing]
    images = [root for root in error.graph.roots if error.graph.reachable(root) & set(digests)]
    pull = f"ocistream pull {' '.join(dict.fromkeys(map(_source_name, images)))}{_format_platform_options(images)}"
    if destination_location is not None and destination_location.kind != "docker":
        wide = "--have and --base leave out what an OCI archive or a layout is to be without"
        return f"get the whole image: `{pull}`; {wide}"
    if len(digests) > _MAX_IN_COMMAND:
        return f"ask for a new list there (`ocistream have`, with the image's repository), then `{pull} --have LIST`"
    only = " ".join(f"--only {digest}" for digest in digests)
    # A name of its own: one of the archives that were given may be called missing.tar, or several of them.
    missing = f"missing-{digests[0].rpartition(':')[2][:8]}.tar"
    is_file = source_location is not None and source_location.path is not None and not source_location.is_stream
    # It is to be pasted into a shell.
    archive = (
        shlex.quote(printable(str(source_location.path), 1024))
        if source_location is not None and is_file
        else "ARCHIVE"
    )
    return f"fetch just that: `{pull} {only} -o {missing}`; then push both: -i {archive} -i {missing}"


def _source_name(root: Root) -> str:
    """Give the name that an image has where it comes from; the one that it is given now says nothing of that."""
    name = root.origin if parse_full_name(root.origin) else root.name
    return printable(name) if name and parse_full_name(name) else "IMAGE"


def _format_platform_options(images: list[Root]) -> str:
    if any(root.descriptor.is_index for root in images):
        return " --platform all"
    found = {str(root.descriptor.platform) for root in images if root.descriptor.platform}
    return "".join(f" --platform {platform}" for platform in sorted(found))


@contextlib.contextmanager
def add_image_id_hint(source_location: Location | None, source: Source) -> Iterator[None]:
    """Let the error about an image that does not exist say which image has the ID that was given."""
    try:
        yield
    except NoSuchImageError as error:
        wanted = error.wanted
        if is_digest(wanted) and (images := _find_images_by_id(wanted, source_location, source)):
            error.hint = (
                f"{printable(wanted)} is an image ID; use the name or digest instead: {format_image_names(images)}"
            )
        raise


def _find_images_by_id(image_id: str, source_location: Location | None, source: Source) -> list[Root]:
    """List the images with this ID; in an archive from a pipe only those that are known already."""
    from ocistream.archive.stream_source import ArchiveStreamSource

    # What is wrong in other images is not what the user asked about.
    with contextlib.suppress(OcistreamError):
        if isinstance(source, ArchiveStreamSource):
            return [Root(image_name_of(entry), entry) for entry in source.find_entries_with(image_id)]
        if source_location is not None and source_location.path is not None:
            return _search_images_by_id(image_id, source_location)
    return []


def _search_images_by_id(image_id: str, source_location: Location) -> list[Root]:
    from ocistream.transfer.verify import DiscardedBlobs

    source = open_source(replace(source_location, name=None), OpenContext(), Selection(referrers="left"))
    with contextlib.closing(source):
        graph = source.resolve(DiscardedBlobs(threading.Event()))
    digests = {
        digest
        for digest, document in graph.documents.items()
        if document.config is not None and document.config.digest == image_id
    }
    return [root for root in graph.roots if digests & graph.reachable(root, alone=True)]
