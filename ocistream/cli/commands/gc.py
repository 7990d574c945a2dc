"""`ocistream gc`: delete blobs of a layout that no image needs, all or down to a size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ocistream.cli.options import apply_verbosity, verbosity_options
from ocistream.cli.parameter_types import parse_byte_size, parse_duration
from ocistream.cli.progress import format_count, format_size

if TYPE_CHECKING:
    from ocistream.cli.console import Console
    from ocistream.layout.gc import GCResult


@click.command()
@click.argument("path", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--max-size",
    callback=parse_byte_size,
    metavar="SIZE",
    help="Drop no more than it takes for all blobs together to have no more than SIZE (500M, 20G): those first that "
    "were not used for longest.",
)
@click.option(
    "--older-than",
    callback=parse_duration,
    metavar="TIME",
    help="Spare what was used or written in the last so many seconds, or 30m, 12h, 7d.  [default: 1h, since a push or "
    "pull into DIR may be under way that has not named its image yet; with --max-size only if there is one; of "
    "unfinished files 7d]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be dropped, and drop nothing.")
@verbosity_options
@click.pass_obj
def gc(
    console: Console,
    /,
    path: Path,
    *,
    max_size: int | None,
    older_than: float | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Drop what no image in the layout directory DIR needs: blobs, and parts of them and uploads that were left.

    An image is what its index.json lists; a cache (--cache) lists none, so that all of it may go. It may be used
    meanwhile. The digests of what was dropped are printed, one a line.

    \b
    ocistream gc images/
    ocistream gc /var/cache/ocistream --max-size 20G
    """
    from ocistream.layout.directory import LayoutDirectory
    from ocistream.layout.gc import collect_garbage

    apply_verbosity(console, options)
    result = collect_garbage(LayoutDirectory(path), max_size=max_size, older_than=older_than, dry_run=dry_run)
    for digest in result.deleted:
        click.echo(digest)
    console.info(_format_summary(result, dry_run=dry_run))
    if max_size is not None and result.remaining_size > max_size:
        console.info(
            f"{format_size(result.remaining_size)} are more than --max-size: "
            f"{format_size(result.needed_size)} are needed by images"
            + (f", {format_size(result.recent_size)} were used too lately" if result.recent_size else "")
        )


def _format_summary(result: GCResult, *, dry_run: bool) -> str:
    verb = "would drop" if dry_run else "dropped"
    text = (
        f"{verb} {format_count(len(result.deleted), 'blob')}, {format_size(result.deleted_size)}; "
        f"{format_size(result.remaining_size)} are left"
    )
    if result.recent_size:
        text += f", of which {format_size(result.recent_size)} were used too lately to go"
    if result.unfinished_sizes:
        files = format_count(len(result.unfinished_sizes), "unfinished file")
        text += f"; {verb} {files}, {format_size(sum(result.unfinished_sizes))}"
    return text
