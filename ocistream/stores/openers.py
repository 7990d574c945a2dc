"""How an end of each kind is opened: what its store is given of the end, of what is around it and of what is wanted.

The table of these is `ocistream.stores`' own. A store is imported when an end of its kind is opened.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.errors import UnsupportedError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ocistream.archive.outputs import Output
    from ocistream.oci.graph import Root
    from ocistream.oci.reference import Reference
    from ocistream.registry.open_repository import RepositoryOpener
    from ocistream.stores import Location, OpenContext, Selection
    from ocistream.transfer.interfaces import Destination, Source

__all__ = [
    "open_archive_destination",
    "open_archive_source",
    "open_docker_archive_destination",
    "open_layout_destination",
    "open_layout_source",
    "open_registry_destination",
    "open_registry_source",
    "path_of",
    "reference_of",
]


def reference_of(location: Location) -> Reference:
    """Give the reference of a registry's end."""
    assert location.reference is not None, "a registry's end has a reference"  # noqa: S101 - parse_end sees to it
    return location.reference


def path_of(location: Location) -> Path:
    """Give the path of an end that is no registry's."""
    assert location.path is not None, "an end that is no registry has a path"  # noqa: S101 - parse_end sees to it
    return location.path


def _check_not_file(location: Location) -> None:
    """Make sure that what is to be a layout is no file.

    Raises:
        UsageError: it is one.
    """
    if paths.is_file(path_of(location)):
        msg = f"{printable(location.text)}: this is a file, and no layout directory"
        raise UsageError(msg, hint=f"an archive is written {_format_location('oci-archive', location)}")


def _check_not_directory(location: Location) -> None:
    """Make sure that what is to be an archive is no directory.

    Raises:
        UsageError: it is one.
    """
    if not location.is_stream and paths.is_directory(path_of(location)):
        msg = f"{printable(location.text)}: this is a directory, and no archive"
        raise UsageError(msg, hint=f"a layout is written {_format_location('oci', location)}")


def _format_location(kind: str, location: Location) -> str:
    return printable(f"{kind}:{path_of(location)}" + (f":{location.name}" if location.name else ""))


def open_registry_source(location: Location, context: OpenContext, selection: Selection) -> Source:
    """Open a registry's images.

    Raises:
        NotFoundError, UnsupportedError: tags are to be chosen of a repository that is not there, or has too many.
    """
    from ocistream.registry.source import RegistrySource

    references = [reference_of(location)]
    if selection.tags is not None:
        references = _select_tags(references[0], context.repository_opener(), selection.tags)
    return RegistrySource(
        context.client(),
        references,
        platforms=selection.platforms,
        referrers=selection.referrers,
        open_repository=context.repository_opener().open_repository,
        jobs=context.jobs,
        cancelled=context.cancelled,
    )


def _select_tags(
    repository: Reference, reading: RepositoryOpener, choose: Callable[[Sequence[str]], Sequence[str]]
) -> list[Reference]:
    """Name the chosen ones of a repository's tags, in one order wherever they come from.

    Raises:
        NotFoundError: there is no such repository, or nothing in it is chosen.
        UnsupportedError: there are more tags than are read.
    """
    listed = reading.list_tags(repository)
    if listed.incomplete_reason:
        msg = (
            f"{repository.registry}/{repository.repository}: not all of its tags can be had: {listed.incomplete_reason}"
        )
        raise UnsupportedError(msg, hint="copy images by their names")
    return [replace(repository, tag=tag) for tag in sorted(choose(listed.tags))]


def open_registry_destination(location: Location, context: OpenContext) -> Destination:
    """Open a registry to push to."""
    from ocistream.registry.destination import RegistryDestination

    reference = reference_of(location)

    def one(_: Root) -> Reference:
        return reference

    return RegistryDestination(
        context.client(),
        context.find_reference or one,
        early_target=reference,
        mount_from=context.mount_from,
        mount_candidates=context.mount_candidates,
        records=context.records() if context.records is not None else None,
    )


def open_layout_source(location: Location, context: OpenContext, selection: Selection) -> Source:  # noqa: ARG001 - the table's form
    """Open a layout directory.

    Raises:
        UsageError: it is a file.
        NotFoundError, ArchiveError: as `LayoutSource` has it.
    """
    from ocistream.layout.store import LayoutSource

    _check_not_file(location)
    return LayoutSource(
        path_of(location),
        select=selection.select,
        platforms=selection.platforms,
        referrers=selection.referrers,
        include_unneeded=selection.all_blobs,
    )


def open_layout_destination(location: Location, context: OpenContext) -> Destination:  # noqa: ARG001 - the table's form
    """Open a layout directory to write to.

    Raises:
        UsageError: it is a file.
    """
    from ocistream.layout.store import LayoutDestination

    _check_not_file(location)
    return LayoutDestination(path_of(location))


def open_archive_source(location: Location, context: OpenContext, selection: Selection) -> Source:
    """Open an archive: a file, whose parts can be read side by side, or a stream.

    Raises:
        UsageError: it is a directory.
        NotFoundError, ArchiveError, LocalDiskError: as the two sources have it.
    """
    from ocistream.archive.compressed import decompress_input, is_compressed
    from ocistream.archive.file import ArchiveFileSource
    from ocistream.archive.stream import ArchiveStreamSource, open_input_stream

    path = path_of(location)
    as_docker = location.kind == "docker-archive"
    _check_not_directory(location)
    if location.is_stream:
        what = "the archive on stdin"
        file = decompress_input(context.stdin(), what, selection.max_ratio)
    elif paths.is_file(path) and not is_compressed(path):
        return ArchiveFileSource(
            path,
            select=selection.select,
            platforms=selection.platforms,
            referrers=selection.referrers,
            include_unneeded=selection.all_blobs,
            as_docker=as_docker,
        )
    else:
        # A FIFO, say, can be read once, as stdin can; and so can what is compressed.
        what = str(path)
        file = decompress_input(
            open_input_stream(path, context.cancelled or threading.Event()), what, selection.max_ratio
        )
    return ArchiveStreamSource(
        file,
        what=what,
        select=selection.select,
        platforms=selection.platforms,
        referrers=selection.referrers,
        include_unneeded=selection.all_blobs,
        as_docker=as_docker,
    )


def _open_output(location: Location, context: OpenContext) -> Output:
    from ocistream.archive.outputs import (
        build_tail_output,
        open_file_output,
        open_special_file_output,
        open_stream_output,
    )

    path = path_of(location)
    _check_not_directory(location)
    if location.is_stream:
        output = open_stream_output(context.stdout(), "to stdout")
    else:
        output = open_special_file_output(path) if paths.is_special(path) else open_file_output(path)
    return build_tail_output(output, context.from_byte) if context.from_byte else output


def open_archive_destination(location: Location, context: OpenContext) -> Destination:
    """Open an archive to write to, whole or in volumes.

    Raises:
        UsageError: it is a directory.
    """
    if context.volume_size:
        from ocistream.archive.volume_writer import VolumeSetDestination

        return VolumeSetDestination(path_of(location), context.volume_size, mtime=context.mtime)
    from ocistream.archive.writer import ArchiveDestination

    return ArchiveDestination(_open_output(location, context), mtime=context.mtime)


def open_docker_archive_destination(location: Location, context: OpenContext) -> Destination:
    """Open a docker-archive to write to.

    Raises:
        UsageError: it is a directory.
    """
    from ocistream.archive.docker_writer import DockerArchiveDestination

    return DockerArchiveDestination(_open_output(location, context), mtime=context.mtime)
