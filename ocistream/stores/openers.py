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
    from ocistream.registry.open_repository import Reading
    from ocistream.stores import End, Surroundings, Want
    from ocistream.transfer.interfaces import Sink, Source

__all__ = [
    "archive_sink",
    "archive_source",
    "docker_archive_sink",
    "layout_sink",
    "layout_source",
    "path_of",
    "reference_of",
    "registry_sink",
    "registry_source",
]


def reference_of(end: End) -> Reference:
    """Give the reference of a registry's end."""
    assert end.reference is not None, "a registry's end has a reference"  # noqa: S101 - parse_end sees to it
    return end.reference


def path_of(end: End) -> Path:
    """Give the path of an end that is no registry's."""
    assert end.path is not None, "an end that is no registry has a path"  # noqa: S101 - parse_end sees to it
    return end.path


def _check_no_file(end: End) -> None:
    """Make sure that what is to be a layout is no file.

    Raises:
        UsageError: it is one.
    """
    if paths.is_file(path_of(end)):
        msg = f"{printable(end.text)}: this is a file, and no layout directory"
        raise UsageError(msg, hint=f"an archive is written {_written('oci-archive', end)}")


def _check_no_directory(end: End) -> None:
    """Make sure that what is to be an archive is no directory.

    Raises:
        UsageError: it is one.
    """
    if not end.is_stream and paths.is_directory(path_of(end)):
        msg = f"{printable(end.text)}: this is a directory, and no archive"
        raise UsageError(msg, hint=f"a layout is written {_written('oci', end)}")


def _written(kind: str, end: End) -> str:
    return printable(f"{kind}:{path_of(end)}" + (f":{end.name}" if end.name else ""))


def registry_source(end: End, around: Surroundings, want: Want) -> Source:
    """Open a registry's images.

    Raises:
        NotFoundError, UnsupportedError: tags are to be chosen of a repository that is not there, or has too many.
    """
    from ocistream.registry.source import RegistrySource

    references = [reference_of(end)]
    if want.tags is not None:
        references = _tagged(references[0], around.reading(), want.tags)
    return RegistrySource(
        around.transport(),
        references,
        platforms=want.platforms,
        referrers=want.referrers,
        repository=around.reading().repository,
        jobs=around.jobs,
        cancelled=around.cancelled,
    )


def _tagged(
    repository: Reference, reading: Reading, choose: Callable[[Sequence[str]], Sequence[str]]
) -> list[Reference]:
    """Name the chosen ones of a repository's tags, in one order wherever they come from.

    Raises:
        NotFoundError: there is no such repository, or nothing in it is chosen.
        UnsupportedError: there are more tags than are read.
    """
    listed = reading.tags(repository)
    if listed.cut:
        msg = f"{repository.registry}/{repository.repository}: not all of its tags can be had: {listed.cut}"
        raise UnsupportedError(msg, hint="copy images by their names")
    return [replace(repository, tag=tag) for tag in sorted(choose(listed.tags))]


def registry_sink(end: End, around: Surroundings) -> Sink:
    """Open a registry to push to."""
    from ocistream.registry.destination import RegistrySink

    reference = reference_of(end)

    def one(_: Root) -> Reference:
        return reference

    return RegistrySink(
        around.transport(),
        around.target or one,
        early=reference,
        mount_from=around.mount_from,
        placed=around.placed,
        records=around.records() if around.records is not None else None,
    )


def layout_source(end: End, around: Surroundings, want: Want) -> Source:  # noqa: ARG001 - the table's form
    """Open a layout directory.

    Raises:
        UsageError: it is a file.
        NotFoundError, ArchiveError: as `LayoutSource` has it.
    """
    from ocistream.layout.store import LayoutSource

    _check_no_file(end)
    return LayoutSource(
        path_of(end),
        select=want.select,
        platforms=want.platforms,
        referrers=want.referrers,
        everything=want.everything,
    )


def layout_sink(end: End, around: Surroundings) -> Sink:  # noqa: ARG001 - the table's form
    """Open a layout directory to write to.

    Raises:
        UsageError: it is a file.
    """
    from ocistream.layout.store import LayoutSink

    _check_no_file(end)
    return LayoutSink(path_of(end))


def archive_source(end: End, around: Surroundings, want: Want) -> Source:
    """Open an archive: a file, whose parts can be read side by side, or a stream.

    Raises:
        UsageError: it is a directory.
        NotFoundError, ArchiveError, LocalDiskError: as the two sources have it.
    """
    from ocistream.archive.compressed import is_compressed, sniffed
    from ocistream.archive.file import ArchiveFileSource
    from ocistream.archive.stream import ArchiveStreamSource, open_stream

    path = path_of(end)
    as_docker = end.kind == "docker-archive"
    _check_no_directory(end)
    if end.is_stream:
        what = "the archive on stdin"
        file = sniffed(around.stdin(), what, want.max_ratio)
    elif paths.is_file(path) and not is_compressed(path):
        return ArchiveFileSource(
            path,
            select=want.select,
            platforms=want.platforms,
            referrers=want.referrers,
            everything=want.everything,
            as_docker=as_docker,
        )
    else:
        # A FIFO, say, can be read once, as stdin can; and so can what is compressed.
        what = str(path)
        file = sniffed(open_stream(path, around.cancelled or threading.Event()), what, want.max_ratio)
    return ArchiveStreamSource(
        file,
        what=what,
        select=want.select,
        platforms=want.platforms,
        referrers=want.referrers,
        everything=want.everything,
        as_docker=as_docker,
    )


def _output(end: End, around: Surroundings) -> Output:
    from ocistream.archive.outputs import file_output, open_output, rest_of, stream_output

    path = path_of(end)
    _check_no_directory(end)
    if end.is_stream:
        output = stream_output(around.stdout(), "to stdout")
    else:
        output = open_output(path) if paths.is_special(path) else file_output(path)
    return rest_of(output, around.from_byte) if around.from_byte else output


def archive_sink(end: End, around: Surroundings) -> Sink:
    """Open an archive to write to, whole or in volumes.

    Raises:
        UsageError: it is a directory.
    """
    if around.split:
        from ocistream.archive.volume_writer import VolumesSink

        return VolumesSink(path_of(end), around.split, mtime=around.mtime)
    from ocistream.archive.writer import ArchiveSink

    return ArchiveSink(_output(end, around), mtime=around.mtime)


def docker_archive_sink(end: End, around: Surroundings) -> Sink:
    """Open a docker-archive to write to.

    Raises:
        UsageError: it is a directory.
    """
    from ocistream.archive.docker_writer import DockerArchiveSink

    return DockerArchiveSink(_output(end, around), mtime=around.mtime)
