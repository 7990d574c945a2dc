"""--split: an archive cut into volumes of a size, and the names that they get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.oci.volumes import is_template, parse_template
from ocistream.sizes import parse_size
from ocistream.stores import is_layout_destination

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocistream.cli.session import CommandContext
    from ocistream.stores import Location

__all__ = ["check_split_size", "split_option"]

_SPLIT_HINT = "name an OCI archive by a template, as in app.%03d.tar"


def split_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --split."""
    return click.option(
        "--split",
        metavar="SIZE",
        callback=_parse_split_size,
        help="Cut the archive into files of at most SIZE bytes, such as 4GiB; in their names %d, or %03d, stands for "
        "their number. `push` takes them in any order.",
    )(command)


def _parse_split_size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int:
    """Read the bytes of --split; 0 where it was not given.

    Raises:
        UsageError: it is no size.
    """
    if value is None:
        return 0
    size = parse_size(value, fractions=True)
    if not size:
        msg = f"--split {printable(value, 40)!r} is no size"
        raise UsageError(msg, hint="write it as in --split 700MiB, or --split 4294967295, which is FAT32's limit")
    return size


def check_split_size(context: CommandContext, location: Location, *, from_byte: bool = False) -> int:
    """Give the bytes of --split, 0 where nothing is cut, once it is clear that the two go together.

    Raises:
        UsageError: they do not, or something else does not go with it.
    """
    size = int(context.options["split"])
    name = location.path.name if location.path is not None and not location.is_stream else ""
    if not size:
        if name and not is_layout_destination(location) and is_template(name):
            msg = f"{printable(location.text)} has a place for a volume's number, and nothing is cut into volumes"
            raise UsageError(msg, hint="give --split SIZE as well, or another name")
        return 0
    if location.is_stream or not name or is_layout_destination(location) or location.kind == "docker-archive":
        msg = f"--split makes several files of one OCI archive, and {printable(location.text)} is none"
        raise UsageError(msg, hint=_SPLIT_HINT)
    if from_byte or context.options["compress"] is not None:
        what = "--from-byte" if from_byte else "--compress"
        msg = f"--split does not go with {what}: where it cuts depends on the size of all blobs, before the first one"
        raise UsageError(msg, hint="leave one of them away")
    template = parse_template(name)
    result = context.options["result"]
    if result is not None and template.parse_number(result.name) is not None:
        msg = f"--result {result} has the name of a volume"
        raise UsageError(msg, hint="name another file: it would be written over")
    return size
