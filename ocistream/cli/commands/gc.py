"""`ocistream gc`: delete blobs of a layout that no image needs, all or down to a size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ocistream.cli.options import Option, RunOptions, command, options_of
from ocistream.cli.parameter_types import FilePath, parse_age, parse_max_size
from ocistream.locations import parse_layout_path
from ocistream.sizes import format_count, format_size

if TYPE_CHECKING:
    from ocistream.cli.context import CommandContext
    from ocistream.layout.gc import GCResult


@command(
    click.Argument(["directory"], metavar="DIR", type=FilePath()),
    Option(
        ["--max-size"],
        type=parse_max_size,
        metavar="SIZE",
        help="Delete the least recently used blobs until the total is at most SIZE (500M, 20G).",
    ),
    Option(
        ["--older-than"],
        type=parse_age,
        metavar="TIME",
        help="Keep files used within TIME (seconds, 30m, 12h, 7d).  "
        "[default: 1h; with --max-size 0; unfinished files 7d]",
    ),
    options_of(RunOptions, "dry_run", help_text="Print what would be deleted; delete nothing."),
)
def gc(context: CommandContext, directory: str, *, max_size: int | None, older_than: float | None) -> None:
    """Delete blobs that no image in the layout DIR needs, and old unfinished files; print their digests.

    A cache (--cache) lists no images, so every blob may be deleted. Other commands may use DIR at the same time.

    \b
    ocistream gc images/
    ocistream gc cache/ --max-size 20G
    """
    from ocistream.layout.directory import LayoutDirectory
    from ocistream.layout.gc import collect_garbage

    console, dry_run = context.console, context.run_options.dry_run
    layout = LayoutDirectory(parse_layout_path(directory))
    result = collect_garbage(layout, max_size=max_size, older_than=older_than, dry_run=dry_run)
    for digest in result.deleted:
        click.echo(digest)
    console.info(_format_summary(result, dry_run=dry_run))
    if result.recent_size and max_size is None:
        limit = "in the last hour" if older_than is None else "within --older-than"
        console.info(
            f"no image needs {format_size(result.recent_size)} of these, but they were used {limit}: "
            "if no other command writes to this layout, run the same command with --older-than 0"
        )
    if max_size is not None and result.remaining_size > max_size:
        console.info(
            (
                f"{format_size(result.remaining_size)} remain, which is more than --max-size: images need "
                f"{format_size(result.needed_size)}"
            )
            + (f", {format_size(result.recent_size)} were used too recently" if result.recent_size else "")
        )


def _format_summary(result: GCResult, *, dry_run: bool) -> str:
    verb = "would delete" if dry_run else "deleted"
    text = (
        f"{verb} {format_count(len(result.deleted), 'blob')}, {format_size(result.deleted_size)}; "
        f"{format_size(result.remaining_size)} are left"
    )
    if result.unfinished_sizes:
        files = format_count(len(result.unfinished_sizes), "unfinished file")
        text += f"; {verb} {files}, {format_size(sum(result.unfinished_sizes))}"
    return text
