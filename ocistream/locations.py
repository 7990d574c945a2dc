"""Locations of images: parse them, and open each kind as a source or a destination.

To add a kind, write its two open functions and a line in `_KINDS`. OpenContext supplies the streams.
"""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from ocistream import limits, notices
from ocistream.errors import InvalidNameError, LocalDiskError, UnsupportedError, UsageError
from ocistream.layout.image_selection import select_named_images
from ocistream.oci.reference import DEFAULT_REGISTRY, Reference, parse_reference, printable, without_password
from ocistream.streams import files, paths
from ocistream.streams.workers import DEFAULT_JOBS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.archive.outputs import Output
    from ocistream.archive.tar_reader import InputStream
    from ocistream.layout.destination import LayoutWriter
    from ocistream.layout.image_selection import ImageSelector, Selection
    from ocistream.oci.graph import Root
    from ocistream.registry.registries import Registries
    from ocistream.transfer.interfaces import Destination, Source

#: Transports of containers-transports(5) that are recognised to refuse them: a typo must not become an image's name.
_FOREIGN_TRANSPORTS: Final = frozenset({"containers-storage", "dir", "docker-daemon", "ostree", "sif"})
_PATH_START = re.compile(r"(?:-|\.\.?|~)\Z|/|\.\.?/|~/|[A-Za-z]:\\")
_URL_START: Final = re.compile(r"(?:docker|https?)://")
_ARCHIVE_NAME: Final = re.compile(r".+\.(?:tar|tgz|tar\.gz|tar\.zst)", re.IGNORECASE)
_COMPRESSED_NAME: Final = re.compile(r".+\.(?:tgz|gz|zst|xz|bz2)", re.IGNORECASE)
#: `HOST:PORT` alone, or localhost: by the naming rules an image of Docker Hub, whose repositories have no such names.
_REGISTRY_ALONE: Final = re.compile(
    r"localhost(?::[0-9]+)?|[^.:/@]+(?:\.[^.:/@]+)+:[0-9]+|\[[0-9a-fA-F:.]+\](?::[0-9]+)?"
)


@dataclass(frozen=True, slots=True)
class Location:
    """A source or destination of images: its kind, and where it is.

    `kind` is "docker" (a registry), "oci" (a directory), "oci-archive", "docker-archive", or "path", which is one of
    the others depending on what exists there. `name` selects an image, or names a written one. `is_stream` means stdin
    or stdout, not a file called `-`. `is_repository` means that the reference has neither tag nor digest: listing
    commands then use the complete repository, others the tag "latest", as Docker does.
    """

    kind: str
    text: str
    reference: Reference | None = None
    path: Path | None = None
    name: str | None = None
    is_stream: bool = False
    is_repository: bool = False

    @property
    def registries(self) -> set[str]:
        """The registry that the location is in, if it is in one."""
        return {self.reference.registry} if self.reference else set()

    @property
    def text_without_image(self) -> str:
        """The text of the repository, archive or layout that has the image."""
        if self.reference is None:
            return self.text.removesuffix(f":{self.name}")
        return str(replace(self.reference, tag=None, digest=None))

    @property
    def description(self) -> str:
        """The archive or layout as errors name it."""
        if not self.is_stream:
            return printable(str(self.path or self.text), 1024)
        from ocistream.archive.tar_reader import ARCHIVE_ON_STDIN

        return ARCHIVE_ON_STDIN


def is_archive_name(text: str) -> bool:
    """Return whether text is the name of an archive, such as `app.tar`. No registry is asked for it."""
    return _ARCHIVE_NAME.fullmatch(text) is not None and not text.startswith("docker://")


def parse_location(
    text: str, *, bare_is_path: bool = False, folder: Path | None = None, is_remote: bool = False
) -> Location:
    """Parse a location: an image, `oci:DIR[:NAME]`, `oci-archive:FILE[:NAME]`, or a path.

    Text that is the name of an archive, or of an existing file or directory, is a path. If it could be an image's name
    too, a notice says so. `app.tar:1` is refused: Docker Hub is not asked for the name of an archive.

    Relative paths start at `folder`, by default the current directory; with `is_remote` they are on another machine.
    With `bare_is_path`, text that could be an image's name is a path, unless it has `docker://`.

    Raises:
        InvalidNameError: the text is none of these.
        UnsupportedError: the text has a transport of other tools.
    """
    if not text:
        # For Python, an empty path is the current directory.
        msg = "malformed location '': it is empty"
        raise InvalidNameError(msg, hint="write . for the current directory, - for stdin or stdout")
    prefix, colon, rest = text.partition(":")
    if colon and prefix in _KINDS and prefix != "docker":
        path, _, name = rest.partition(":")
        if not path:
            msg = f"malformed location {printable(text)!r}: it has no path"
            raise InvalidNameError(msg, hint=f"write {prefix}:PATH[:NAME]")
        # A directory cannot be streamed: `oci:-` is a directory called `-`.
        is_stream = path == "-" and prefix != "oci"
        return Location(prefix, text, path=_expand_user(path), name=name or None, is_stream=is_stream)
    check_transport(text)
    is_path = _PATH_START.match(text) is not None or is_archive_name(text) or (text.endswith("/") and "://" not in text)
    is_path = is_path or (bare_is_path and _URL_START.match(text) is None)
    if not bare_is_path and not is_remote:
        _check_not_registry(text, folder or Path())
    if is_path or (not is_remote and _names_existing_path(text, folder or Path())):
        own_path = _expand_user(text)
        _check_no_tag(text, (folder or Path()) / own_path)
        return Location("path", text, path=own_path, is_stream=text == "-")
    check_repository(text)
    try:
        reference = parse_reference(text, default_tag=False)
    except InvalidNameError as error:
        if is_archive_name(prefix):
            shown = printable(without_password(text))
            error.hint = f"for an archive, write oci-archive:{shown} or docker-archive:{shown}"
        raise
    check_not_archive(text, reference)
    return Location(
        "docker",
        text,
        reference=parse_reference(text),
        is_repository=reference.tag is None and reference.digest is None,
    )


def check_transport(text: str) -> None:
    """Raise UnsupportedError for a location of another tool, such as `docker-daemon:app:1`."""
    prefix, colon, _ = text.partition(":")
    if colon and prefix in _FOREIGN_TRANSPORTS:
        msg = f"{printable(text)!r}: the transport {prefix} is not supported"
        hint = "`docker save IMAGE | ocistream push DST` reads from Docker, `ocistream pull IMAGE | docker load` writes"
        if prefix != "docker-daemon":
            hint = f"write oci:DIR or oci-archive:FILE; `skopeo copy` copies between {prefix}:... and oci-archive:FILE"
        raise UnsupportedError(msg, hint=hint)


def check_repository(text: str) -> None:
    """Raise InvalidNameError for the name of an image that is only a registry, such as `localhost:5000`."""
    name = text.removeprefix("docker://")
    if _REGISTRY_ALONE.fullmatch(name) and not is_archive_name(name.partition(":")[0]):
        msg = f"{printable(name)} is a registry, not an image"
        shown = printable(name)
        hint = f"write {shown}/REPOSITORY, or {shown}/REPOSITORY:TAG for one image; no command lists the repositories"
        raise InvalidNameError(msg, hint=hint)


def _check_not_registry(text: str, folder: Path) -> None:
    """Raise InvalidNameError for `localhost:5000/` and `localhost:5000/app/`, unless the directory of the host exists.

    A text that ends with / is a directory, but these are probably meant for a registry.
    """
    name = text.rstrip("/")
    host, slash, _ = name.partition("/")
    if text.endswith("/") and slash and _has_host_form(host) and not paths.exists(folder / host):
        msg = f"ambiguous location {printable(text)!r}: the / at its end means a directory, but it begins like an image"
        shown = printable(name)
        raise InvalidNameError(msg, hint=f"for the image, write {shown}; for the directory, ./{shown}/")
    if text.endswith("/") and _REGISTRY_ALONE.fullmatch(name) and not paths.exists(folder / name):
        msg = f"{printable(text)} names a registry, but no image"
        raise InvalidNameError(
            msg, hint=f"write {printable(name)}/REPOSITORY[:TAG], or ./{printable(text)} for a directory"
        )


def _check_no_tag(text: str, path: Path) -> None:
    """Raise InvalidNameError for `./app.tar:1`, unless such a file exists: a tag needs a prefix."""
    folder, slash, name = text.rpartition("/")
    archive, colon, _ = name.partition(":")
    if colon and is_archive_name(archive) and not is_archive_name(name) and not paths.exists(path, follow=False):
        msg = f"ambiguous location {printable(text)!r}: {printable(folder + slash + archive)} is the name of an archive"
        raise InvalidNameError(msg, hint=f"write oci-archive:{printable(text)} or docker-archive:{printable(text)}")


def check_not_archive(text: str, reference: Reference) -> None:
    """Raise InvalidNameError if a name such as `app.tar:1`, parsed as `reference`, may be meant for an archive."""
    is_on_hub = reference.registry == DEFAULT_REGISTRY and not text.startswith(f"{DEFAULT_REGISTRY}/")
    path = text.partition(":")[0]
    if is_on_hub and is_archive_name(path):
        shown = printable(text)
        msg = f"ambiguous name {shown!r}: {printable(path)} is the name of an archive"
        hint = f"for the image, write docker://{shown}; for an archive, oci-archive:{shown} or docker-archive:{shown}"
        raise InvalidNameError(msg, hint=hint)


def is_missing_image(location: Location) -> bool:
    """Return whether a path does not exist and has the form of `HOST[:PORT]/REPOSITORY`."""
    text = location.text
    host, slash, _ = text.partition("/")
    return bool(slash) and _has_host_form(host) and not is_archive_name(text) and not paths.exists(text)


def _has_host_form(host: str) -> bool:
    form = r"[^.:~][^:]*(?:\.[^.:]+|:[0-9]+)|\[[0-9a-fA-F:.]+\](?::[0-9]+)?"
    return host == "localhost" or re.fullmatch(form, host) is not None


def parse_local_location(text: str) -> Location:
    """Parse the location of an archive or a layout where none of a registry makes sense, as for -i and -o.

    Raises:
        UsageError: the location is in a registry.
        InvalidNameError, UnsupportedError: see `parse_location`.
    """
    location = parse_location(text, bare_is_path=True)
    if location.reference is not None:
        msg = f"{printable(text)!r} is in a registry, but this must be an archive or a layout"
        raise UsageError(msg, hint="`ocistream copy SRC DST` also copies between registries")
    return location


def parse_layout_path(text: str) -> Path:
    """Parse the location of a layout directory without the name of an image, and return its path.

    Raises:
        UsageError: the location is an archive or in a registry, or has the name of an image.
        InvalidNameError, UnsupportedError: see `parse_location`.
    """
    location = parse_local_location(text)
    if is_missing_image(location):
        msg = f"{printable(text)!r} is in a registry, but this must be a layout directory"
        raise UsageError(
            msg, hint=f"registries delete unused blobs themselves; for a directory, write ./{printable(text)}"
        )
    path = layout_path_of(location)
    if location.name is not None:
        msg = f"{printable(text)!r} has the name of an image, but this must be the whole layout"
        raise UsageError(msg, hint=f"write oci:{printable(str(path))}")
    return path


def layout_path_of(location: Location) -> Path:
    """Return the path of a layout directory.

    Raises:
        UsageError: the location is an archive.
    """
    path = path_of(location)
    has_archive_name = location.kind == "path" and is_archive_name(path.name) and not is_directory(location)
    if location.is_stream or has_archive_name or location.kind not in {"path", "oci"}:
        msg = f"{printable(location.text)!r} is an archive, but this must be a layout directory"
        raise UsageError(msg, hint="`ocistream copy SRC oci:DIR` copies an archive to a layout")
    return path


def _names_existing_path(text: str, folder: Path) -> bool:
    """Return whether text is an existing file or directory; if it could be an image's name too, tell the user."""
    try:
        if not paths.is_existing_path(str(folder / text)):
            return False
    except LocalDiskError:
        # A name does not have to be a path that this user may read.
        return False
    # A text such as `images/` names no image.
    with contextlib.suppress(InvalidNameError):
        parse_reference(text)
        kind = "directory" if paths.is_directory(folder / text) else "file"
        notices.notify(
            f"{printable(text)} is the {kind} ./{printable(text)}; for the image, write docker://{printable(text)}"
        )
    return True


def _expand_user(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        msg = f"malformed path {printable(text)!r}: that home directory is unknown"
        raise InvalidNameError(msg) from error


def _not_provided() -> NoReturn:
    msg = "this location needs a part of the context that is missing"
    raise UsageError(msg)


@dataclass(frozen=True, slots=True)
class OpenContext:
    """What opening a location needs from the process. Each part is created on first use."""

    open_registries: Callable[[], Registries] = field(default=_not_provided)
    stdin: Callable[[], InputStream] = field(default=_not_provided)
    #: The output of a stream location.
    output: Callable[[], Output] = field(default=_not_provided)
    #: Seconds since 1970 for every entry of an archive.
    mtime: int = 0
    #: Repositories of the destination's registry that may already have blobs.
    mount_from: tuple[str, ...] = ()
    #: Which of these repositories are known to have the blob with a digest.
    mount_candidates: Callable[[str], Sequence[str]] = field(default=lambda _digest: ())
    #: The reference of each image in a registry; None if all use the location's.
    target: Callable[[Root], Reference] | None = None
    #: The first byte of the written archive that is needed; earlier bytes are not written.
    from_byte: int = 0
    #: The maximum size of a volume, in bytes; 0 writes one file.
    volume_size: int = 0
    #: How much larger than itself a compressed archive may become.
    max_ratio: int = limits.MAX_RATIO
    #: Concurrent requests; a registry may have a lower limit.
    jobs: int = DEFAULT_JOBS
    #: Cancels one transfer, while others with the same client continue.
    cancelled: threading.Event = field(default_factory=threading.Event)
    #: The writer of a layout that several images are written to; None makes each image visible by itself.
    layout_writer: Callable[[Path], LayoutWriter] | None = None
    #: Whether locations are opened for a dry run: no file is created, and no cache is filled.
    is_dry_run: bool = False

    def registries(self) -> Registries:
        """Return the registries; in a dry run without the cache."""
        return self.open_registries().without_cache() if self.is_dry_run else self.open_registries()


def open_source(location: Location, context: OpenContext, selection: Selection) -> Source:
    """Open a location to read images from.

    Raises:
        NotFoundError, ArchiveError, LocalDiskError, UnsupportedError: depending on the kind of location.
    """
    if location.name is not None:
        selection = replace(selection, select=_select_within(location.name, selection.select))
    selection = replace(selection, where=location.description)
    with files.disk_errors(f"cannot open {printable(location.text)}"):
        return _KINDS[_kind_of(location, is_written=False)][0](location, context, selection)


def _select_within(name: str, select: ImageSelector) -> ImageSelector:
    """Return a selection from the image of a location's name alone."""
    return lambda roots, where: select(select_named_images([name])(roots, where), where)


def open_sources(locations: Sequence[Location], context: OpenContext, selection: Selection) -> Source:
    """Open one location to read from, or as one source several images in registries, or several archives and layouts.

    Raises:
        UsageError: one of several archives can be read only once, or names an image.
        NotFoundError, ArchiveError, LocalDiskError, UnsupportedError: depending on the kind of location.
    """
    if len(locations) == 1:
        return open_source(locations[0], context, selection)
    if all(location.kind == "docker" for location in locations):
        return _open_references([reference_of(location) for location in locations], context, selection)
    from ocistream.archive.joined_source import open_joined_source

    return open_joined_source([(_check_joinable(location), location.text) for location in locations], selection)


def _check_joinable(location: Location) -> Path:
    from ocistream.archive.decompression import is_compressed

    kind = _kind_of(location, is_written=False)
    if location.path is None:
        msg = f"{printable(location.text)} is in a registry, but the other sources are files"
        raise UsageError(msg, hint="use one command for registries, and another for files")
    path = location.path
    problem = None
    if location.name is not None:
        problem = "names an image: use --image to choose it"
    elif location.is_stream or paths.is_special(path):
        problem = "can be read only once"
    elif kind == "docker-archive":
        problem = "is a docker-archive"
    elif paths.is_file(path) and is_compressed(path):
        problem = "is compressed: decompress it first"
    if problem:
        msg = f"{printable(location.text)} {problem}, but only OCI archives in files and layouts can be combined"
        raise UsageError(msg, hint="use a separate command for this archive")
    return path


def open_destination(location: Location, context: OpenContext) -> Destination:
    """Open a location to write images to.

    Raises:
        UsageError, NotFoundError, LocalDiskError, UnsupportedError: depending on the kind of location.
    """
    with files.disk_errors(f"cannot open {printable(location.text)}"):
        return _KINDS[_kind_of(location, is_written=True)][1](location, context)


def _kind_of(location: Location, *, is_written: bool) -> str:
    if location.kind != "path":
        return location.kind
    # A path with a slash at its end becomes a directory.
    is_layout = is_directory(location) or (is_written and location.text.endswith("/"))
    return "oci" if is_layout else "oci-archive"


def is_layout_destination(location: Location) -> bool:
    """Return whether writing to the location makes a layout directory."""
    return _kind_of(location, is_written=True) == "oci"


def is_directory(location: Location) -> bool:
    """Return whether the location is an existing directory."""
    return not location.is_stream and location.path is not None and paths.is_directory(location.path)


def reference_of(location: Location) -> Reference:
    """Return the reference of a registry location."""
    assert location.reference is not None, "a registry location has a reference"  # noqa: S101 - parse_location sets it
    return location.reference


def path_of(location: Location) -> Path:
    """Return the path of a location that is not a registry."""
    assert location.path is not None, "a location outside a registry has a path"  # noqa: S101 - parse_location sets it
    return location.path


def check_path_kind(location: Location) -> None:
    """Raise UsageError for a file that is written as a layout, or a directory that is written as an archive."""
    if location.kind == "oci":
        _check_not_file(location)
    elif location.kind in {"oci-archive", "docker-archive"}:
        _check_not_directory(location, is_written=True)


def _check_not_file(location: Location) -> None:
    if paths.is_file(path_of(location)):
        msg = f"{printable(location.text)}: this is a file, not a layout directory"
        raise UsageError(msg, hint=f"write an archive as {_format_location('oci-archive', location)}")


def _check_not_directory(location: Location, *, is_written: bool = False) -> None:
    # As in `_kind_of`: a path with a slash at its end becomes a directory.
    is_new_directory = is_written and location.text_without_image.endswith("/")
    if location.is_stream or not (is_new_directory or paths.is_directory(path_of(location))):
        return
    msg = f"{printable(location.text)}: this is a directory, not an archive"
    hint = f"write a layout as {_format_location('oci', location)}"
    if not location.text.startswith(f"{location.kind}:"):
        # `pull --format` says that the path must be an archive.
        shown = printable(str(path_of(location)), 1024)
        hint = f"write a file as {shown}.tar; for a layout, omit --format {location.kind}"
    raise UsageError(msg, hint=hint)


def _format_location(kind: str, location: Location) -> str:
    return printable(f"{kind}:{path_of(location)}" + (f":{location.name}" if location.name else ""))


def open_registry_source(location: Location, context: OpenContext, selection: Selection) -> Source:
    """Open images of a registry.

    Raises:
        NotFoundError, UnsupportedError: the repository does not exist, or has too many tags to select from.
    """
    references = [reference_of(location)]
    if selection.tags is not None:
        references = _select_tags(references[0], context.registries(), selection.tags)
    return _open_references(references, context, selection)


def _open_references(references: Sequence[Reference], context: OpenContext, selection: Selection) -> Source:
    from ocistream.registry.source import RegistrySource

    registries = context.registries()
    return RegistrySource(
        registries,
        references,
        platforms=selection.platforms,
        referrers=selection.referrers,
        with_signatures=selection.with_signatures,
        digest_tags=selection.digest_tags,
        jobs=registries.rules.limit_jobs(context.jobs, (reference.registry for reference in references)),
        cancelled=context.cancelled,
    )


def _select_tags(
    repository: Reference, registries: Registries, choose: Callable[[Sequence[str]], Sequence[str]]
) -> list[Reference]:
    """Return the references of the selected tags, sorted."""
    tags = registries.list_tags(repository)
    if tags.incomplete_reason:
        msg = f"{repository.registry}/{repository.repository}: cannot list all tags: {tags.incomplete_reason}"
        raise UnsupportedError(msg, hint="copy images by their names")
    return [replace(repository, tag=tag) for tag in sorted(choose(tags.tags))]


def open_registry_destination(location: Location, context: OpenContext) -> Destination:
    """Open a registry to push to. The location needs no reference if the context finds one for each image."""
    from ocistream.registry.destination import RegistryDestination

    registries = context.registries()
    return RegistryDestination(
        registries.client,
        context.target or (lambda _root: reference_of(location)),
        early_target=location.reference,
        mount_from=context.mount_from,
        mount_candidates=context.mount_candidates,
        strategy=registries.upload_strategy(),
        records=registries.upload_records(),
        jobs=registries.rules.limit_jobs(context.jobs, location.registries),
        cancelled=context.cancelled,
    )


def open_layout_source(location: Location, context: OpenContext, selection: Selection) -> Source:  # noqa: ARG001 - the signature in _KINDS
    """Open a layout directory.

    Raises:
        UsageError: the path is a file.
        NotFoundError, ArchiveError: see `LayoutSource`.
    """
    from ocistream.layout.source import LayoutSource

    _check_not_file(location)
    return LayoutSource(path_of(location), selection)


def open_layout_destination(location: Location, context: OpenContext) -> Destination:
    """Open a layout directory to write to.

    Raises:
        UsageError: the path is a file.
    """
    from ocistream.layout.destination import LayoutDestination

    _check_not_file(location)
    path = path_of(location)
    writer = context.layout_writer(path) if context.layout_writer is not None else None
    return LayoutDestination(path, context.cancelled, writer=writer)


def open_archive_source(location: Location, context: OpenContext, selection: Selection) -> Source:
    """Open an archive: a file, whose parts can be read in parallel, or a stream.

    Raises:
        UsageError: the path is a directory.
        NotFoundError, ArchiveError, LocalDiskError: see `ArchiveFileSource` and `ArchiveStreamSource`.
    """
    from ocistream.archive.decompression import decompress_input, is_compressed

    path = path_of(location)
    as_docker = location.kind == "docker-archive"
    _check_not_directory(location)
    if not location.is_stream and paths.is_file(path) and not is_compressed(path):
        from ocistream.archive.file_source import ArchiveFileSource

        return ArchiveFileSource(path, selection, as_docker=as_docker)
    from ocistream.archive.stream_source import ArchiveStreamSource, open_input_stream
    from ocistream.archive.tar_reader import ARCHIVE_ON_STDIN

    if location.is_stream:
        label = ARCHIVE_ON_STDIN if str(path) == "-" else location.text
        file = context.stdin()
    else:
        # A FIFO can be read only once, as stdin, and so can a compressed file.
        label = str(path)
        file = open_input_stream(path, context.cancelled)
    file = decompress_input(file, label, context.max_ratio)
    return ArchiveStreamSource(file, selection, what=label, as_docker=as_docker)


def _open_output(location: Location, context: OpenContext) -> Output:
    from ocistream.archive.outputs import (
        TailOutput,
        open_file_output,
        open_null_output,
        open_special_file_output,
    )

    path = path_of(location)
    _check_not_directory(location, is_written=True)
    if context.is_dry_run:
        return open_null_output(None if location.is_stream else path)
    if location.is_stream:
        output = context.output()
    else:
        output = open_special_file_output(path) if paths.is_special(path) else open_file_output(path)
    return TailOutput(output, context.from_byte) if context.from_byte else output


def open_archive_destination(location: Location, context: OpenContext) -> Destination:
    """Open an archive to write to, as one file or in volumes.

    Raises:
        UsageError: the path is a directory.
    """
    if _COMPRESSED_NAME.fullmatch(path_of(location).name):
        notices.notify(f"{printable(location.text)} is written as an uncompressed tar: only its layers are compressed")
    if context.volume_size:
        from ocistream.archive.volume_destination import VolumeSetDestination

        return VolumeSetDestination(path_of(location), context.volume_size, mtime=context.mtime)
    from ocistream.archive.destination import ArchiveDestination

    return ArchiveDestination(_open_output(location, context), mtime=context.mtime)


def open_docker_archive_destination(location: Location, context: OpenContext) -> Destination:
    """Open a docker-archive to write to.

    Raises:
        UsageError: the path is a directory.
    """
    from ocistream.archive.docker_destination import DockerArchiveDestination

    return DockerArchiveDestination(_open_output(location, context), mtime=context.mtime)


#: The open functions of each kind. An archive source detects the format by itself.
_KINDS: Final[
    dict[
        str, tuple[Callable[[Location, OpenContext, Selection], Source], Callable[[Location, OpenContext], Destination]]
    ]
] = {
    "docker": (open_registry_source, open_registry_destination),
    "oci": (open_layout_source, open_layout_destination),
    "oci-archive": (open_archive_source, open_archive_destination),
    "docker-archive": (open_archive_source, open_docker_archive_destination),
}
