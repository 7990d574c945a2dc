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
from ocistream.layout.index import ImageSelector, select_every_image, select_named_images
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import Reference, parse_reference, printable
from ocistream.stores import openers
from ocistream.streams import files, paths
from ocistream.streams.workers import DEFAULT_JOBS

if TYPE_CHECKING:
    import io
    import threading
    from collections.abc import Callable, Sequence

    from ocistream.archive.tar import InputStream
    from ocistream.http.client import HttpClient
    from ocistream.oci.graph import Root
    from ocistream.oci.referrers import ReferrerMode
    from ocistream.registry.open_repository import RepositoryOpener
    from ocistream.registry.upload_records import UploadRecords
    from ocistream.transfer.interfaces import Destination, Source

__all__ = [
    "Location",
    "OpenContext",
    "Selection",
    "is_directory",
    "is_layout_destination",
    "open_destination",
    "open_source",
    "open_sources",
    "parse_location",
]

#: Words of containers-transports(5) that are understood as such, so that a typo does not become an image's name.
_FOREIGN_TRANSPORTS: Final = frozenset({"containers-storage", "dir", "docker-daemon", "ostree", "sif"})
_PATH_START = re.compile(r"(?:-|\.\.?|~)\Z|/|\.\.?/|~/|[A-Za-z]:\\")


@dataclass(frozen=True, slots=True)
class Location:
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


def parse_location(text: str, *, bare_is_path: bool = False) -> Location:
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
        return Location(prefix, text, path=_expand_user(where), name=name or None, is_stream=is_stream)
    if colon and prefix in _FOREIGN_TRANSPORTS:
        msg = f"{printable(text)!r}: the transport {prefix} is not supported"
        raise UnsupportedError(msg, hint="save the image to a file and name that")
    if bare_is_path or _PATH_START.match(text):
        return Location("path", text, path=_expand_user(text), is_stream=text == "-")
    bare = parse_reference(text, default_tag=False)
    return Location(
        "docker", text, reference=parse_reference(text), is_repository=bare.tag is None and bare.digest is None
    )


def _expand_user(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        msg = f"malformed path {printable(text)!r}: it is not known where that home directory is"
        raise InvalidNameError(msg) from error


def _not_provided() -> NoReturn:
    msg = "this end needs something of the process around it that was not given"
    raise UsageError(msg)


@dataclass(frozen=True, slots=True)
class OpenContext:
    """What an end may need of the process around it, each opened only when it is asked for."""

    client: Callable[[], HttpClient] = field(default=_not_provided)
    stdin: Callable[[], InputStream] = field(default=_not_provided)
    stdout: Callable[[], io.FileIO] = field(default=_not_provided)
    #: Seconds since 1970 for every entry of an archive.
    mtime: int = 0
    #: Repositories of the registry that is written to, which may have blobs already.
    mount_from: tuple[str, ...] = ()
    #: Which of them are known to have the blob of a digest.
    mount_candidates: Callable[[str], Sequence[str]] = field(default=lambda _digest: ())
    #: Where in a registry each image goes; None where all go where the end says.
    find_reference: Callable[[Root], Reference] | None = None
    #: Which bytes of an archive that is written are wanted: those from here on.
    from_byte: int = 0
    #: The most bytes that a file of an archive may have, which is cut into volumes then; 0 where it is not.
    volume_size: int = 0
    #: From where images in registries are read; None where that is the repositories that they are named after.
    opener: Callable[[], RepositoryOpener] | None = None
    #: How much may be asked for at a time.
    jobs: int = DEFAULT_JOBS
    #: Where uploads are remembered that a later run may go on with, if they are.
    records: Callable[[], UploadRecords] | None = None
    #: What ends the questions of one transfer, where others of the same transport go on.
    cancelled: threading.Event | None = None

    def repository_opener(self) -> RepositoryOpener:
        """Give what images in registries are read by."""
        from ocistream.registry.open_repository import RepositoryOpener

        return self.opener() if self.opener is not None else RepositoryOpener(self.client())


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of a source's images and platforms are wanted."""

    select: ImageSelector = field(default=select_every_image)
    platforms: PlatformChoice = ALL_PLATFORMS
    #: How much larger than itself what is compressed may become.
    max_ratio: int = limits.MAX_RATIO
    #: Whether blobs that no image needs are handed out as well, to be looked at.
    all_blobs: bool = False
    #: What is done with what hangs on the images: signatures, SBOMs and the like.
    referrers: ReferrerMode = "along"
    #: Which of a repository's tags are wanted, if it is more than the one that the end names.
    tags: Callable[[Sequence[str]], Sequence[str]] | None = None


def open_source(location: Location, context: OpenContext, selection: Selection) -> Source:
    """Open an end to read from.

    Raises:
        NotFoundError, ArchiveError, LocalDiskError, UnsupportedError: as the kind of end has it.
    """
    if location.name is not None:
        selection = replace(selection, select=select_named_images([location.name]))
    with files.disk_errors(f"cannot open {printable(location.text)}"):
        return _KINDS[_source_kind(location)][0](location, context, selection)


def open_sources(locations: Sequence[Location], context: OpenContext, selection: Selection) -> Source:
    """Open one end to read from, or several archives and layouts as if they were one.

    Raises:
        UsageError: of several, one can be read only once, or names an image.
        NotFoundError, ArchiveError, LocalDiskError, UnsupportedError: as the kind of end has it.
    """
    if len(locations) == 1:
        return open_source(locations[0], context, selection)
    from ocistream.archive.joined import open_joined_source

    return open_joined_source([(_check_joinable(end), end.text) for end in locations], selection)


def _check_joinable(location: Location) -> Path:
    from ocistream.archive.compressed import is_compressed

    kind = _source_kind(location)
    path = openers.path_of(location)
    what = None
    if location.name is not None:
        what = "names an image in it: choose with --image"
    elif location.is_stream or paths.is_special(path):
        what = "can be read only once"
    elif kind == "docker-archive":
        what = "is a docker-archive"
    elif paths.is_file(path) and is_compressed(path):
        what = "is compressed: unpack it first"
    if what:
        msg = f"{printable(location.text)} {what}, and only OCI archives in files, and layouts, are put together"
        raise UsageError(msg)
    return path


def open_destination(location: Location, context: OpenContext) -> Destination:
    """Open an end to write to.

    Raises:
        UsageError, NotFoundError, LocalDiskError, UnsupportedError: as the kind of end has it.
    """
    with files.disk_errors(f"cannot open {printable(location.text)}"):
        return _KINDS[_destination_kind(location)][1](location, context)


def _source_kind(location: Location) -> str:
    if location.kind != "path":
        return location.kind
    return "oci" if is_directory(location) else "oci-archive"


def _destination_kind(location: Location) -> str:
    if location.kind != "path":
        return location.kind
    return "oci" if location.text.endswith("/") or is_directory(location) else "oci-archive"


def is_layout_destination(location: Location) -> bool:
    """Say whether what is written to an end is a layout directory."""
    return _destination_kind(location) == "oci"


def is_directory(location: Location) -> bool:
    """Say whether an end is a directory that is there."""
    return not location.is_stream and location.path is not None and paths.is_directory(location.path)


#: A source of an archive finds out by itself which of the two kinds it is.
_KINDS: Final[
    dict[
        str, tuple[Callable[[Location, OpenContext, Selection], Source], Callable[[Location, OpenContext], Destination]]
    ]
] = {
    "docker": (openers.open_registry_source, openers.open_registry_destination),
    "oci": (openers.open_layout_source, openers.open_layout_destination),
    "oci-archive": (openers.open_archive_source, openers.open_archive_destination),
    "docker-archive": (openers.open_archive_source, openers.open_docker_archive_destination),
}
