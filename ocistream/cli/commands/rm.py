"""`ocistream rm`: remove images from a layout directory by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ocistream.cli.options import command, dry_run_option
from ocistream.cli.parameter_types import FilePath
from ocistream.locations import parse_layout_path
from ocistream.sizes import format_count

if TYPE_CHECKING:
    from ocistream.cli.context import CommandContext


@command
@click.argument("directory", metavar="DIR", type=FilePath())
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@dry_run_option("Print what would be removed; remove nothing.")
def rm(context: CommandContext, directory: str, names: tuple[str, ...], *, dry_run: bool) -> None:
    """Remove images from the layout DIR, and referrers that lose their subject.

    NAME is a full name, its short form, a tag, or a digest, which means all names of that image. If one NAME does not
    exist, nothing is removed. Run `ocistream gc DIR` to delete the blobs. Removed images are printed as NAME@sha256:...

    \b
    ocistream rm images/ nginx:1 example.com/app:1 && ocistream gc images/
    """
    from ocistream.layout.directory import LayoutDirectory
    from ocistream.layout.index import entry_name_of
    from ocistream.layout.removal import remove_images

    # The blobs stay for `gc`, which knows what a concurrent pull may still need.
    removed = remove_images(LayoutDirectory(parse_layout_path(directory)), names, dry_run=dry_run)
    for entry in (*removed.images, *removed.referrers):
        name = entry_name_of(entry)
        click.echo(f"{name}@{entry.digest}" if name else entry.digest)
    summary = format_count(len(removed.images), "image")
    if removed.referrers:
        summary += f", and {len(removed.referrers)} that referred to " + ("it" if len(removed.images) == 1 else "them")
    message = f"would remove {summary}" if dry_run else f"removed {summary}; run `ocistream gc` to delete unused blobs"
    context.console.info(message)
