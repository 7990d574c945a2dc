"""Add hints to errors of a copy: how to get missing blobs, which image has a given ID, which file is damaged."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream.errors import IntegrityError, OcistreamError
from ocistream.layout.image_selection import (
    NoSuchImageError,
    Selection,
    format_image_names,
    select_every_image,
    select_named_images,
)
from ocistream.layout.index import image_name_of
from ocistream.locations import OpenContext, open_source, parse_location
from ocistream.oci.graph import Root
from ocistream.oci.reference import DEFAULT_REGISTRY, is_digest, parse_full_name, printable
from ocistream.sizes import format_count, format_size
from ocistream.transfer.incomplete_indexes import find_complete_platforms
from ocistream.transfer.report import MissingBlobsError, MissingVolumesError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.api.copy_plan import CopyPlan
    from ocistream.cli.console import Console
    from ocistream.locations import Location
    from ocistream.oci.graph import Graph
    from ocistream.oci.volumes import Volume
    from ocistream.transfer.interfaces import Source

#: At most this many digests in an error or a command; for more, the hint is to make a new list.
_MAX_IN_COMMAND: Final = 20
#: At most this many missing blobs are listed.
_MAX_LISTED: Final = 1000
#: The beginning of the full name of an image without a host.
_HUB_LIBRARY: Final = f"{DEFAULT_REGISTRY}/library/"


def add_copy_hint(error: OcistreamError, console: Console, plan: CopyPlan, source: Source, *, dry_run: bool) -> None:
    """Add to the error of a copy what the user can do about it."""
    location = plan.local_source
    if isinstance(error, MissingVolumesError):
        _describe_needed_volumes(error, source, plan, dry_run=dry_run)
    elif isinstance(error, MissingBlobsError):
        if error.needed is not None:
            # An archive cannot wait for the blobs of later volumes.
            error.hint = (
                "`copy` takes one volume: start `ocistream serve DIR`, push all volumes there with one command, then "
                "copy oci:DIR"
            )
        elif any(missing.digest in error.graph.omitted_from_source for missing in error.missing):
            error.message = _missing_blobs_message(error, location)
            error.hint = _fetch_hint(error, location, plan.destination)
            _list_missing_blobs(console, error)
        elif error.graph.is_platform_filtered and location is not None:
            _add_platforms_hint(error, location)
        elif location is not None and (images := _needing_images(error)):
            more = f" and {len(images) - 1} more" if images[1:] else ""
            text = f", for {_image_name(images[0])}{more} of {location.description}"
            error.message = error.message.removesuffix(text) + text
    elif isinstance(error, NoSuchImageError):
        if is_digest(error.wanted) and (images := _find_images_by_id(error.wanted, location, source)):
            shown = printable(error.wanted)
            error.hint = f"{shown} is an image ID; use the name or digest instead: {format_image_names(images)}"
    elif location is not None:
        add_damage_hint(error, location)


def add_damage_hint(error: OcistreamError, location: Location) -> None:
    """Name the archive or layout in the error of a damaged blob, and add how to check it."""
    if isinstance(error, IntegrityError) and error.digest and not error.hint and location.path:
        name = location.description
        error.message = f"{name}: {error.message}"
        error.hint = (
            "the archive is damaged: save it to a file, and check it with `ocistream verify FILE`"
            if location.is_stream
            else f"it is damaged, or changed during the run: check it with `ocistream verify {name}`"
        )


def describe_hub_destination(error: OcistreamError, destination: str) -> str | None:
    """Return a hint if `to` of a sync file lacks a host; `destination` is the name of the image there."""
    # Only Docker writes to this part of Docker Hub.
    if not destination.startswith(_HUB_LIBRARY) or DEFAULT_REGISTRY not in error.message:
        return None
    name = printable(destination.removeprefix(_HUB_LIBRARY))
    return f"`to` names Docker Hub: write HOST/{name} for another registry, or oci:{name} for a directory"


def add_sync_hint(error: OcistreamError, source: str) -> None:
    """Add to an error of `sync` how to get an image that is incomplete on both sides; name keys, not options.

    `source` is the location text of the image's source.
    """
    error.hint = error.hint and error.hint.replace("--platform", "`platforms`")
    if not isinstance(error, MissingBlobsError) or error.needed is not None:
        return
    if error.graph.is_platform_filtered:
        _add_platforms_hint(error, parse_location(source, bare_is_path=True))
    else:
        error.hint = "get the complete image, or select a complete platform with `platforms`"


def _add_platforms_hint(error: MissingBlobsError, source_location: Location) -> None:
    if root := next((root for root in _needing_images(error) if root.descriptor.platform), None):
        # Only once: several destinations may share the error.
        prefix = f"{_image_name(root)} for {printable(str(root.descriptor.platform))} is "
        error.message = prefix + error.message.removeprefix(prefix)
    error.hint = _complete_platforms_hint(error.graph, source_location)


def _needing_images(error: MissingBlobsError) -> list[Root]:
    """Return the images that need a missing blob."""
    missing = {descriptor.digest for descriptor in error.missing}
    return [root for root in error.graph.roots if missing & error.graph.reachable(root)]


def _image_name(root: Root) -> str:
    return printable(root.origin or root.name or root.descriptor.digest)


def _complete_platforms_hint(graph: Graph, source_location: Location) -> str:
    """Return a hint that names the complete platforms in an archive or layout that lacks the requested one."""
    path = printable(str(source_location.path or source_location.text), 1024)
    hint = f"`ocistream inspect {path}` lists the missing blobs"
    if source_location.is_stream or source_location.path is None:
        return "save the archive to a file: `ocistream inspect FILE` lists the missing blobs"
    names = {root.origin or root.name for root in graph.roots}
    from ocistream.transfer.discarded_blobs import read_graph

    select = select_named_images([name for name in names if name]) if all(names) else select_every_image
    with contextlib.suppress(OcistreamError):
        source = open_source(replace(source_location, name=None), OpenContext(), Selection(select, referrers="skip"))
        with contextlib.closing(source):
            if source.may_lack_blobs:
                platforms = find_complete_platforms(read_graph(source), lambda blob: bool(source.is_absent(blob)))
                shown = ", ".join(map(printable, platforms[:_MAX_IN_COMMAND])) or "none"
                return f"complete platforms: {shown}; {hint}"
    return hint


def _missing_blobs_message(error: MissingBlobsError, source_location: Location | None) -> str:
    count = len(error.missing)
    archive = "the archive" if source_location is None else source_location.description
    are, they_were, them = ("is", "it was", "it") if count == 1 else ("are", "they were", "them")
    size = format_size(sum(missing.size for missing in error.missing))
    reasons = {error.graph.omitted_from_source.get(missing.digest) for missing in error.missing}
    details = "; ".join(sorted(str(reason) for reason in reasons if reason)[:5])
    outcome = "nothing was sent" if error.is_untouched else "no image is visible"
    shown = ", ".join(missing.digest for missing in error.missing) if count <= _MAX_IN_COMMAND else "see above"
    return (
        f"{format_count(count, 'blob')} ({size}) {are} missing: {they_were} omitted from {archive} ({details}), "
        f"and the destination does not have {them}; {outcome}: {shown}"
    )


def _list_missing_blobs(console: Console, error: MissingBlobsError) -> None:
    """Print the missing blobs that the error omits; with -q too, since they are part of the error."""
    if len(error.missing) <= _MAX_IN_COMMAND:
        return
    for missing in error.missing[:_MAX_LISTED]:
        console.info(f"missing {missing.digest} ({format_size(missing.size)})", level=-1)
    if len(error.missing) > _MAX_LISTED:
        console.info(f"missing {len(error.missing) - _MAX_LISTED} more", level=-1)


def _describe_needed_volumes(error: MissingVolumesError, source: Source, plan: CopyPlan, *, dry_run: bool) -> None:
    """Say which volumes are stored, and how to write the others: together, or one by one in the order of numbers."""
    from ocistream.api.verification import VolumeSet

    assert error.needed is not None  # noqa: S101 - the error is raised for these
    present = volumes.present if (volumes := VolumeSet.from_source(source)) else ()
    names = sorted(error.needed.names, key=lambda name: (present[0].template.parse_number(name) or 0) if present else 0)
    needed = ", ".join(map(printable, names))
    stored = [volume for volume in present if volume.name not in names]
    destination = plan.destination
    is_layout = destination.kind != "docker"
    absent: Volume | None = None
    if refused := [volume.name for volume in present if volume.name in names]:
        if is_layout:
            reason = "a layout stores only complete blobs"
        elif error.needed.in_order:
            # A registry stores the parts of a blob in order.
            first = next(iter(error.needed.in_order.values()))[0]
            reason = f"{printable(first)} must come first"
            absent = present[0]._replace(number=present[0].template.parse_number(first) or 0)
        else:
            reason = "a pipe gives only complete blobs"
        shown = ", ".join(map(printable, sorted(refused)))
        verb = "would not be" if dry_run else "was not"
        error.message = f"part of {shown} {verb} stored: {reason}; still needed: {needed}"
        if absent:
            error.message = f"{absent} was not given, so {error.message}"
    elif stored:
        shown = f"{stored[0]}" if len(stored) == 1 else f"{len(stored)} of {stored[0].total} volumes"
        verb = "would be" if dry_run else "is" if len(stored) == 1 else "are"
        error.message = f"incomplete: {shown} {verb} stored; still needed: {needed}"
    if dry_run:
        error.hint = "nothing was changed; name all volumes to see everything that would be copied"
        return
    options = _format_input_options(names)
    if is_layout:
        where = printable(str(destination.path), 1024)
        error.hint = (
            f"start `ocistream serve {where}`, and run `ocistream push {options} --to localhost:5000`"
            if refused or any(source.parts(blob) for blob in error.missing)
            else f"{where} keeps what was written: copy the needed volumes one by one"
        )
        return
    # Without them the command would fail, or push another digest.
    selected = [("--image", name) for name in plan.options.images]
    selected += [("--platform", platform) for platform in plan.options.platforms]
    options += "".join(f" {option} {shlex.quote(printable(value))}" for option, value in selected)
    target = f"{'' if destination.reference else '--to '}{printable(destination.text)}"
    error.hint = f"the registry keeps what was sent: run `ocistream push {options} {target}`"
    if len(names) > 1:
        error.hint += ", or push them one by one in this order"


def _format_input_options(names: Sequence[str]) -> str:
    shown = " ".join(f"-i {shlex.quote(printable(name))}" for name in names[:_MAX_IN_COMMAND])
    return f"{shown} ..." if len(names) > _MAX_IN_COMMAND else shown


def _fetch_hint(error: MissingBlobsError, source_location: Location | None, destination: Location) -> str:
    digests = [missing.digest for missing in error.missing]
    images = _needing_images(error)
    pull = f"ocistream pull {' '.join(dict.fromkeys(map(_source_name, images)))}{_format_platform_options(images)}"
    if destination.kind != "docker":
        explanation = "archives that --have or --base wrote lack blobs"
        return f"get the complete image with `{pull} -o FILE` ({explanation})"
    if len(digests) > _MAX_IN_COMMAND:
        return f"run `ocistream have HOST/REPOSITORY > LIST` on the destination side, then `{pull} --have LIST` here"
    only = " ".join(f"--only {digest}" for digest in digests)
    # A new name: one or more of the input archives may be called missing.tar.
    missing = f"missing-{digests[0].rpartition(':')[2][:8]}.tar"
    is_file = source_location is not None and source_location.path is not None and not source_location.is_stream
    # The command is meant to be pasted into a shell.
    archive = (
        shlex.quote(printable(str(source_location.path), 1024))
        if source_location is not None and is_file
        else "ARCHIVE"
    )
    return f"fetch the missing blobs: `{pull} {only} -o {missing}`; then push both: -i {archive} -i {missing}"


def _source_name(root: Root) -> str:
    """Return the name of an image at its source, which may differ from its name in this transfer."""
    name = root.origin if parse_full_name(root.origin) else root.name
    return printable(name) if name and parse_full_name(name) else "IMAGE"


def _format_platform_options(images: list[Root]) -> str:
    if any(root.descriptor.is_index for root in images):
        return " --platform all"
    platforms = {str(root.descriptor.platform) for root in images if root.descriptor.platform}
    return "".join(f" --platform {platform}" for platform in sorted(platforms))


def _find_images_by_id(image_id: str, source_location: Location | None, source: Source) -> list[Root]:
    """Return the images with this ID; for an archive from a pipe, only those that were read so far."""
    from ocistream.archive.stream_source import ArchiveStreamSource
    from ocistream.transfer.discarded_blobs import read_graph

    # Errors in other images are not what the user asked about.
    with contextlib.suppress(OcistreamError):
        if isinstance(source, ArchiveStreamSource):
            return [Root(image_name_of(entry), entry) for entry in source.find_entries_with(image_id)]
        if source_location is not None and source_location.path is not None:
            selected = Selection(referrers="skip")
            opened = open_source(replace(source_location, name=None), OpenContext(), selected)
            with contextlib.closing(opened):
                graph = read_graph(opened)
            configs = {digest: document.config for digest, document in graph.documents.items()}
            digests = {digest for digest, config in configs.items() if config is not None and config.digest == image_id}
            return [root for root in graph.roots if digests & graph.reachable(root, alone=True)]
    return []
