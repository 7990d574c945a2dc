"""The ends that images move between: how they are written, and the table of their kinds.

To add a kind: one file beside this one, how it is opened (`openers.py`), one line in `_KINDS`, one parameter of the
contract tests. It may not look at the command line's streams or environment: those come in `Surroundings`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from ocistream import limits
from ocistream.errors import InvalidNameError, UnsupportedError, UsageError
from ocistream.layout.index import Selection, every_image, images_named
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import Reference, parse_reference, printable
from ocistream.stores import openers
from ocistream.streams import files, paths
from ocistream.streams.workers import DEFAULT_JOBS

if TYPE_CHECKING:
    import io
    import threading
    from collections.abc import Callable, Sequence

    from ocistream.archive.tar import Input
    from ocistream.http.client import Transport
    from ocistream.oci.graph import Root
    from ocistream.oci.referrers import Referrers
    from ocistream.registry.open_repository import Reading
    from ocistream.registry.upload_records import UploadRecords
    from ocistream.transfer.interfaces import Sink, Source

__all__ = [
    "End",
    "Surroundings",
    "Want",
    "is_directory",
    "is_layout_to_be",
    "open_sink",
    "open_source",
    "open_sources",
    "parse_end",
]

#: Words of containers-transports(5) that are understood as such, so that a typo does not become an image's name.
_FOREIGN_TRANSPORTS: Final = frozenset({"containers-storage", "dir", "docker-daemon", "ostree", "sif"})
_PATH = re.compile(r"(?:-|\.\.?|~)\Z|/|\.\.?/|~/|[A-Za-z]:\\")


@dataclass(frozen=True, slots=True)
class End:
    """One end of a transfer: its `kind`, and where it is.

    `kind` is "docker" (a registry), "oci" (a directory), "oci-archive", "docker-archive", or "path", which is one of
    the others by what is found there. `name` chooses an image within it, or gives it a name. `is_stream` says that
    this is stdin or stdout, and no file that is called `-`; `is_repository` that a registry's end has neither tag nor
    digest, so that it may mean all of a repository as well as what is tagged "latest" there.
    """

    kind: str
    text: str
    reference: Reference | None = None
    path: Path | None = None
    name: str | None = None
    is_stream: bool = False
    is_repository: bool = False


def parse_end(text: str, *, bare_is_path: bool = False) -> End:
    """Parse one end as docs/images.md has it: an image, `oci:DIR[:NAME]`, `oci-archive:FILE[:NAME]`, or a path.

    With `bare_is_path` what could be an image's name is a path: behind -o and -i.

    Raises:
        InvalidNameError: it is none of these.
        UnsupportedError: it is a transport that other tools know.
    """
    if not text:
        # To Python, a path without anything in it is the current directory.
        msg = "malformed end '': there is nothing in it"
        raise InvalidNameError(msg, hint="write . for the current directory, - for stdin or stdout")
    prefix, colon, rest = text.partition(":")
    if colon and prefix in _KINDS and prefix != "docker":
        where, _, name = rest.partition(":")
        if not where:
            msg = f"malformed end {printable(text)!r}: there is no path in it"
            raise InvalidNameError(msg, hint=f"write {prefix}:PATH[:NAME]")
        # A directory cannot be streamed: `oci:-` is one of that name.
        is_stream = where == "-" and prefix != "oci"
        return End(prefix, text, path=_expanded(where), name=name or None, is_stream=is_stream)
    if colon and prefix in _FOREIGN_TRANSPORTS:
        msg = f"{printable(text)!r}: the transport {prefix} is not supported"
        raise UnsupportedError(msg, hint="save the image to a file and name that")
    if bare_is_path or _PATH.match(text):
        return End("path", text, path=_expanded(text), is_stream=text == "-")
    bare = parse_reference(text, default_tag=False)
    return End("docker", text, reference=parse_reference(text), is_repository=bare.tag is None and bare.digest is None)


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        msg = f"malformed path {printable(text)!r}: it is not known where that home directory is"
        raise InvalidNameError(msg) from error


def _not_here() -> NoReturn:
    msg = "this end needs something of the process around it that was not given"
    raise UsageError(msg)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an end may need of the process around it, each opened only when it is asked for."""

    transport: Callable[[], Transport] = field(default=_not_here)
    stdin: Callable[[], Input] = field(default=_not_here)
    stdout: Callable[[], io.FileIO] = field(default=_not_here)
    #: Seconds since 1970 for every entry of an archive.
    mtime: int = 0
    #: Repositories of the registry that is written to, which may have blobs already.
    mount_from: tuple[str, ...] = ()
    #: Which of them are known to have the blob of a digest.
    placed: Callable[[str], Sequence[str]] = field(default=lambda _digest: ())
    #: Where in a registry each image goes; None where all go where the end says.
    target: Callable[[Root], Reference] | None = None
    #: Which bytes of an archive that is written are wanted: those from here on.
    from_byte: int = 0
    #: The most bytes that a file of an archive may have, which is cut into volumes then; 0 where it is not.
    split: int = 0
    #: From where images in registries are read; None where that is the repositories that they are named after.
    reads: Callable[[], Reading] | None = None
    #: How much may be asked for at a time.
    jobs: int = DEFAULT_JOBS
    #: Where uploads are remembered that a later run may go on with, if they are.
    records: Callable[[], UploadRecords] | None = None
    #: What ends the questions of one transfer, where others of the same transport go on.
    cancelled: threading.Event | None = None

    def reading(self) -> Reading:
        """Give what images in registries are read by."""
        from ocistream.registry.open_repository import Reading

        return self.reads() if self.reads is not None else Reading(self.transport())


@dataclass(frozen=True, slots=True)
class Want:
    """Which of a source's images and platforms are wanted."""

    select: Selection = field(default=every_image)
    platforms: PlatformChoice = ALL_PLATFORMS
    #: How much larger than itself what is compressed may become.
    max_ratio: int = limits.MAX_RATIO
    #: Whether blobs that no image needs are handed out as well, to be looked at.
    everything: bool = False
    #: What is done with what hangs on the images: signatures, SBOMs and the like.
    referrers: Referrers = "along"
    #: Which of a repository's tags are wanted, if it is more than the one that the end names.
    tags: Callable[[Sequence[str]], Sequence[str]] | None = None


def open_source(end: End, around: Surroundings, want: Want) -> Source:
    """Open an end to read from.

    Raises:
        NotFoundError, ArchiveError, LocalDiskError, UnsupportedError: as the kind of end has it.
    """
    if end.name is not None:
        want = replace(want, select=images_named([end.name]))
    with files.disk_errors(f"cannot open {printable(end.text)}"):
        return _KINDS[_kind_of_source(end)][0](end, around, want)


def open_sources(ends: Sequence[End], around: Surroundings, want: Want) -> Source:
    """Open one end to read from, or several archives and layouts as if they were one.

    Raises:
        UsageError: of several, one can be read only once, or names an image.
        NotFoundError, ArchiveError, LocalDiskError, UnsupportedError: as the kind of end has it.
    """
    if len(ends) == 1:
        return open_source(ends[0], around, want)
    from ocistream.archive.joined import open_joined

    return open_joined([(_checked_to_join(end), end.text) for end in ends], want)


def _checked_to_join(end: End) -> Path:
    from ocistream.archive.compressed import is_compressed

    kind = _kind_of_source(end)
    path = openers.path_of(end)
    what = None
    if end.name is not None:
        what = "names an image in it: choose with --image"
    elif end.is_stream or paths.is_special(path):
        what = "can be read only once"
    elif kind == "docker-archive":
        what = "is a docker-archive"
    elif paths.is_file(path) and is_compressed(path):
        what = "is compressed: unpack it first"
    if what:
        msg = f"{printable(end.text)} {what}, and only OCI archives in files, and layouts, are put together"
        raise UsageError(msg)
    return path


def open_sink(end: End, around: Surroundings) -> Sink:
    """Open an end to write to.

    Raises:
        UsageError, NotFoundError, LocalDiskError, UnsupportedError: as the kind of end has it.
    """
    with files.disk_errors(f"cannot open {printable(end.text)}"):
        return _KINDS[_kind_of_sink(end)][1](end, around)


def _kind_of_source(end: End) -> str:
    if end.kind != "path":
        return end.kind
    return "oci" if is_directory(end) else "oci-archive"


def _kind_of_sink(end: End) -> str:
    if end.kind != "path":
        return end.kind
    return "oci" if end.text.endswith("/") or is_directory(end) else "oci-archive"


def is_layout_to_be(end: End) -> bool:
    """Say whether what is written to an end is a layout directory."""
    return _kind_of_sink(end) == "oci"


def is_directory(end: End) -> bool:
    """Say whether an end is a directory that is there."""
    return not end.is_stream and end.path is not None and paths.is_directory(end.path)


#: A source of an archive finds out by itself which of the two kinds it is.
_KINDS: Final[dict[str, tuple[Callable[[End, Surroundings, Want], Source], Callable[[End, Surroundings], Sink]]]] = {
    "docker": (openers.registry_source, openers.registry_sink),
    "oci": (openers.layout_source, openers.layout_sink),
    "oci-archive": (openers.archive_source, openers.archive_sink),
    "docker-archive": (openers.archive_source, openers.docker_archive_sink),
}
