"""`ocistream pull`: write images from registries into one archive or layout directory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import click

from ocistream import limits
from ocistream.api.copy_plan import plan_copy
from ocistream.api.options import FOR_ONE_RUN, OUTPUT, SELECTION, SELECTS_CONTENT, CopyOptions
from ocistream.cli.options import (
    OmissionOptions,
    Option,
    RunOptions,
    all_platforms_option,
    command,
    compression_options,
    credential_options,
    identity_options,
    options_of,
    platform_option,
    transfer_options,
)
from ocistream.cli.parameter_types import FilePath, WholeNumber, describe_missing_key, parse_image
from ocistream.cli.standard_streams import resolve_stdout
from ocistream.cli.transfers import run_plan
from ocistream.errors import InvalidNameError, NotFoundError, UsageError
from ocistream.locations import Location, is_layout_destination, is_missing_image, parse_local_location, path_of
from ocistream.oci.reference import printable
from ocistream.streams import paths

if TYPE_CHECKING:
    from ocistream.cli.context import CommandContext

_FORMATS: Final = ("oci", "oci-archive", "docker-archive")
_IMAGE_HINT: Final = (
    "pull reads from registries; use -o PATH for the output file; `ocistream copy SRC DST` also reads files"
)
_LIST_HINT: Final = "write one image per line"


@command(
    click.Argument(["sources"], nargs=-1, metavar="[IMAGE]..."),
    Option(
        ["--images", "lists"],
        type=FilePath(),
        multiple=True,
        metavar="FILE",
        not_configurable=SELECTS_CONTENT,
        section=SELECTION,
        help="Also pull the images in FILE (- is stdin), one per line, # for comments; repeatable.",
    ),
    Option(
        ["-o", "--output"],
        type=FilePath(),
        default="-",
        metavar="PATH",
        not_configurable=SELECTS_CONTENT,
        section=OUTPUT,
        help="Output file, or an OCI layout if PATH is a directory or ends in /.  [default: stdout]",
    ),
    Option(
        ["--format", "kind"],
        type=click.Choice(_FORMATS),
        section=OUTPUT,
        help="Output format; oci is a layout.  [default: oci for a directory, else oci-archive]",
    ),
    Option(
        ["--from-byte"],
        # A whole number of bytes, not a size such as `1GiB`: a byte more or less is another archive.
        type=WholeNumber(min=0),
        metavar="N",
        not_configurable=FOR_ONE_RUN,
        section=OUTPUT,
        help="Write the archive to stdout from byte N on, to append to a partly received copy.",
    ),
    options_of(CopyOptions, "split"),
    platform_option("linux/ARCH of this machine"),
    all_platforms_option,
    options_of(OmissionOptions),
    options_of(CopyOptions, "no_referrers", "require_signature"),
    identity_options,
    compression_options("To stdout, it needs temporary disk space in TMPDIR."),
    credential_options,
    options_of(RunOptions, "memory", "cache"),
    transfer_options,
    options_of(RunOptions, "dry_run"),
)
def pull(
    context: CommandContext,
    sources: tuple[str, ...],
    lists: tuple[str, ...],
    output: str,
    kind: str | None,
    *,
    from_byte: int | None,
) -> None:
    """Pull images from registries into an archive, a layout directory, or stdout.

    The output appears under its name only after every byte is verified. Re-run an interrupted command to resume it.

    \b
    ocistream pull nginx:1 | ssh host ocistream push localhost:5000/nginx:1
    ocistream pull --platform all -o app.tar registry.example.com/app:2 nginx:1
    ocistream pull --images k3s-images.txt -o k3s.tar
    ssh host ocistream have oci:images | ocistream pull --have - -o n.tar nginx:2
    ocistream pull --split 4GiB -o 'app.%03d.tar' app:2
    """
    images = [Location("docker", text, reference=parse_image(text, _IMAGE_HINT)) for text in sources]
    if not images and not lists:
        msg = "Missing argument 'IMAGE...'."
        hint = describe_missing_key(context.copy_options.require_signature)
        raise UsageError(msg, hint=hint or "name images, or a list of images with --images FILE")
    if [*lists, *context.omission_options.have].count("-") > 1:
        msg = "only one list can come from stdin"
        raise UsageError(msg, hint="write the other one into a file")
    for path in lists:
        images += _read_image_list(context, path)
    destination = _parse_output(output, kind)
    if destination.is_stream and destination.kind == "oci":
        msg = "cannot write a layout directory to stdout"
        raise UsageError(msg, hint="name a directory with -o")
    if from_byte is not None:
        if context.run_options.dry_run:
            msg = "--from-byte does not work with --dry-run, which writes no archive"
            raise UsageError(msg, hint="omit one of them")
        _check_from_byte(destination, context.copy_options.split)
    context.check_result(destination)
    plan = plan_copy(images, destination, context.copy_options, only_this_platform=True)
    run_plan(context, plan, from_byte=from_byte or 0)


def _parse_output(output: str, kind: str | None) -> Location:
    """Return the location of -o and --format, which overrides what a path looks like."""
    location = resolve_stdout(parse_local_location(output))
    _check_not_image(location)
    if kind is None:
        return location
    if location.kind not in {"path", kind}:
        msg = f"-o {printable(output)} contradicts --format {kind}"
        raise UsageError(msg, hint="omit one of them")
    return replace(location, kind=kind)


def _check_not_image(location: Location) -> None:
    """Raise NotFoundError for a path such as `localhost:5000/app:1`, unless its directory exists."""
    if location.kind == "path" and is_missing_image(location) and not is_layout_destination(location):
        folder = path_of(location).parent
        if not paths.exists(folder):
            shown = printable(location.text, 1024)
            msg = f"cannot write {shown}: -o takes a path, and there is no directory {printable(str(folder), 1024)}"
            raise NotFoundError(
                msg, hint=f"to write to a registry, run `ocistream copy IMAGE {shown}`; for a file, use mkdir -p first"
            )


def _check_from_byte(location: Location, split: int) -> None:
    """Raise UsageError if the rest of an archive would be written to a file, where it looks like a complete one."""
    if split:
        msg = "--split does not work with --from-byte: the volumes depend on the sizes of all blobs"
        raise UsageError(msg, hint="omit one of them")
    is_special = location.path is not None and paths.is_special(location.path)
    if location.kind == "oci" or not (location.is_stream or is_special):
        msg = "--from-byte writes the rest of an archive to stdout"
        raise UsageError(msg, hint="files and layouts resume by themselves: re-run the command without --from-byte")


def _read_image_list(context: CommandContext, path: str) -> list[Location]:
    """Return the images of a list in a file or on stdin (`-`), as k3s and RKE2 publish them: one image per line.

    Raises:
        UsageError: a line is malformed, the list is empty or too long, or stdin is unusable.
        NotFoundError, LocalDiskError: the file cannot be read.
    """
    images: list[Location] = []
    with context.open_list(path) as (file, label):
        number = 0
        while raw := file.readline(limits.MAX_IMAGE_LIST_LINE + 1):
            number += 1
            where = f"{label}, line {number}"
            if len(raw) > limits.MAX_IMAGE_LIST_LINE or number > limits.MAX_IMAGE_LIST_LINES:
                msg = f"{where}: this is not a list of images"
                raise UsageError(msg, hint=_LIST_HINT)
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                msg = f"{where}: this is not text in UTF-8"
                raise UsageError(msg, hint=_LIST_HINT) from error
            if text := line.partition("#")[0].strip():
                images.append(_parse_list_item(text, where))
    if not images:
        msg = f"{label} has no images" if number else f"{label} is empty"
        raise UsageError(msg, hint=_LIST_HINT)
    return images


def _parse_list_item(text: str, where: str) -> Location:
    if len(text.split()) > 1:
        msg = f"{where}: {printable(text)!r} is more than one image name"
        raise InvalidNameError(msg, hint=_LIST_HINT)
    try:
        return Location("docker", text, reference=parse_image(text, _IMAGE_HINT))
    except InvalidNameError as error:
        raise InvalidNameError(f"{where}: {error.message}", hint=error.hint) from error
