"""`ocistream pull`: write images from registries into one archive or layout directory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ocistream.cli.omission_options import build_omission_rule, find_queried_registries, omission_options
from ocistream.cli.options import (
    cache_option,
    check_split_size,
    choose_referrers_mode,
    compression_options,
    credential_options,
    default_platform,
    memory_option,
    parse_platform_choice,
    platform_option,
    referrers_option,
    split_option,
    transfer_options,
)
from ocistream.cli.parameter_types import WholeNumber, parse_image
from ocistream.cli.standard_streams import resolve_stdout
from ocistream.cli.transfers import build_rename, run_transfer
from ocistream.errors import UsageError
from ocistream.locations import open_destination, parse_location
from ocistream.streams import paths

if TYPE_CHECKING:
    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location
    from ocistream.oci.graph import Root
    from ocistream.transfer.interfaces import Destination, Source

FORMATS = ("oci", "oci-archive", "docker-archive")
_OUTPUT_HINT = "pull reads from registries; the file to write is -o PATH; `ocistream copy SRC DST` reads files too"


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "-o",
    "--output",
    default="-",
    metavar="PATH",
    help="Where to; a directory (or PATH/) is a layout.  [default: stdout]",
)
@click.option("--format", "kind", type=click.Choice(FORMATS), help="What to write, whatever PATH looks like.")
@click.option(
    "--from-byte",
    # A whole number of bytes, not a size such as `1GiB`: a byte more or less is another archive.
    type=WholeNumber(min=0),
    metavar="N",
    help="Write the archive from byte N on, to stdout, where a pipe broke. Of the blob that N is in only the size is "
    "checked: verify the whole where it is put together. Files and layouts go on by themselves.",
)
@split_option
@platform_option("linux on this machine's architecture")
@omission_options
@referrers_option
@compression_options("To stdout, one layer at a time waits in a temporary file: its size has to be written first.")
@credential_options
@memory_option
@cache_option
@transfer_options
def pull(
    context: CommandContext,
    images: tuple[str, ...],
    output: str,
    kind: str | None,
    platforms: tuple[str, ...],
    *,
    from_byte: int | None,
) -> None:
    """Write images from registries into one archive, a layout directory, or stdout.

    Nothing gets its name before every byte of it is verified. What was interrupted goes on where it stopped when the
    same command is run again.

    \b
    ocistream pull nginx:1 | ssh host ocistream push localhost:5000/nginx:1
    ocistream pull --platform all -o app.tar registry.example.com/app:2 nginx:1
    ssh host ocistream have localhost:5000/nginx | ocistream pull --have - -o only-what-is-new.tar nginx:2
    ocistream pull --split 4GiB -o '/media/stick/app.%03d.tar' app:2
    ocistream pull --from-byte "$(ssh host stat -c %s x.tar)" nginx:1 | ssh host 'cat >> x.tar'
    """
    references = [parse_image(image, _OUTPUT_HINT) for image in images]
    context.check_credentials({reference.registry for reference in references} | find_queried_registries(context))
    choice = parse_platform_choice(platforms, default_platform())
    location = parse_output(output, kind)
    if location.is_stream and location.kind == "oci":
        msg = "a layout directory cannot be written to stdout"
        raise UsageError(msg, hint="name a directory with -o")
    if from_byte is not None:
        check_from_byte(location)
    if location.name and len(references) > 1:
        msg = f"{len(references)} images cannot all be called {location.name!r}"
        raise UsageError(msg)
    context.check_result_path(location)
    split = check_split_size(context, location, from_byte=from_byte is not None)
    omission_rule = build_omission_rule(context, choice, location)
    open_context = context.build_open_context(registries={reference.registry for reference in references})
    referrers = choose_referrers_mode(context)

    def open_ends() -> tuple[Source, Destination]:
        from ocistream.registry.source import RegistrySource

        # The destination comes last: it creates a file, which would stay if opening the source failed.
        source = RegistrySource(
            open_context.client(),
            references,
            platforms=choice,
            referrers=referrers,
            open_repository=open_context.repository_opener().open_repository,
            jobs=open_context.jobs,
        )
        return source, open_destination(location, replace(open_context, from_byte=from_byte or 0, volume_size=split))

    run_transfer(
        context,
        open_ends,
        image_label,
        destination_location=location,
        rename=build_rename(location.name, location.kind) if location.name else None,
        omission_rule=omission_rule,
    )


def parse_output(output: str, kind: str | None) -> Location:
    """Return the location of -o and --format; --format overrides what the path looks like."""
    location = resolve_stdout(parse_location(output, bare_is_path=True))
    return replace(location, kind=kind) if kind else location


def check_from_byte(location: Location) -> None:
    """Raise UsageError if the rest of an archive would be written to a file, where it looks like a complete one."""
    is_special = location.path is not None and paths.is_special(location.path)
    if location.kind == "oci" or not (location.is_stream or is_special):
        msg = "--from-byte writes the rest of an archive to stdout"
        raise UsageError(msg, hint="a file or layout goes on by itself: run the same command without it once more")


def image_label(root: Root) -> str:
    """Return the name of an image in the results."""
    return root.name or root.origin
