"""`ocistream have`: list the digests that a location stores, so that a sender can omit them."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import click

from ocistream.cli.options import context_options, credential_options, max_ratio_option, network_options
from ocistream.cli.parameter_types import WholeNumber, parse_location_argument
from ocistream.cli.transfers import parse_mount_sources
from ocistream.errors import NotFoundError, UnsupportedError, UsageError
from ocistream.locations import Selection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocistream.cli.console import Console
    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location
    from ocistream.oci.descriptor import Descriptor
    from ocistream.remote.stored_blobs import StoredBlobs

#: So many lines are written at once.
_LINES_PER_WRITE: Final = 4096


@click.command()
@click.argument("ends", metavar="END...", nargs=-1, required=True)
@click.option(
    "--among",
    metavar="FILE",
    help="List only those of this list's digests (- is stdin) that are there; where there is no END, that is none.",
)
@click.option(
    "--mount-from",
    multiple=True,
    metavar="REPO",
    help="With --among: what this repository of the same registry has counts too, as a push can mount it; repeats.",
)
@click.option(
    "--jobs", type=WholeNumber(1, 32), default=4, show_default=True, help="Questions asked of a registry at once."
)
@max_ratio_option
@credential_options
@network_options
@context_options
def have(context: CommandContext, ends: tuple[str, ...], among: str | None) -> None:
    """List the digests that each END holds: a repository, an image, a layout directory, an archive, also on stdin (-).

    The list says what it is of, and has some 80 bytes a blob. With it, whoever sends images here can leave out what is
    here. A repository, named without tag and digest, is all of its tags and what hangs on them. No layer is fetched,
    and nothing is hashed: that is what `verify` is for. (With --among, what a layout has is hashed: that is relied on.)

    \b
    ocistream have registry.local/app > have.txt
    ocistream have ./images/ ./app.tar
    """
    from ocistream import __version__
    from ocistream.remote.have_lists import format_have_list

    parsed = [parse_location_argument(end) for end in ends]
    _check_stdin([*(end.text for end in parsed if end.is_stream), *([among] if among == "-" else [])])
    if context.options["mount_from"] and among is None:
        msg = "--mount-from is for --among"
        raise UsageError(msg, hint="without it, name those repositories beside the others: ocistream have REPO REPO")
    context.check_credentials({end.reference.registry for end in parsed if end.reference})
    with _open_holdings(context, parsed, writes=among is not None) as holdings:
        reached: Mapping[str, int] = {}
        if among is None:
            found = _read_all_digests(holdings)
        else:
            asked_for = _read_among_list(context, among)
            found = _find_listed_digests(holdings, asked_for, context.console)
            if len(holdings) == 1:
                # Of several nobody could tell of which.
                reached = holdings[0].find_partial_blobs(
                    [blob.digest for blob in asked_for if blob.digest not in found]
                )
    # Nothing was written before: whoever gets a list gets all of it.
    text = format_have_list([holding.origin for holding in holdings], found, version=__version__, partial_blobs=reached)
    while some := "".join(itertools.islice(text, _LINES_PER_WRITE)):
        click.echo(some, nl=False)


def _check_stdin(uses: Sequence[str]) -> None:
    if len(uses) > 1:
        msg = "stdin cannot be read twice"
        raise UsageError(msg, hint="read one of them from a file")


@contextlib.contextmanager
def _open_holdings(
    context: CommandContext, locations: Sequence[Location], *, writes: bool
) -> Iterator[list[StoredBlobs]]:
    from ocistream.remote.stored_blobs import open_stored_blobs
    from ocistream.transfer.verify import DiscardedBlobs

    want = Selection(max_ratio=int(context.options["max_ratio"]), referrers="listed")

    def opened(end: Location) -> StoredBlobs:
        registry = end.reference.registry if end.reference else None
        mounts = parse_mount_sources(context.options["mount_from"], registry)
        around = context.build_open_context(registries={registry} if registry else ())
        return open_stored_blobs(
            end,
            replace(around, mount_from=mounts),
            onlooker,
            selection=want,
            records=context.upload_records() if writes else None,
            warn=context.console.info,
        )

    with contextlib.closing(DiscardedBlobs(context.cancelled)) as onlooker:
        yield list(map(opened, locations))


def _read_all_digests(holdings: Sequence[StoredBlobs]) -> set[str]:
    return set[str]().union(*(holding.list_digests() for holding in holdings))


def _find_listed_digests(holdings: Sequence[StoredBlobs], queried: Sequence[Descriptor], console: Console) -> set[str]:
    found: set[str] = set()
    for holding in holdings:
        try:
            found |= holding.find_stored([blob for blob in queried if blob.digest not in found])
        except NotFoundError as error:
            # A repository that does not exist yet has no blobs: that is an answer, unless its name is misspelt.
            console.info(f"{error.message}: it has none of these blobs", level=1)
    return found


def _read_among_list(context: CommandContext, among: str) -> list[Descriptor]:
    """Read the list of --among.

    Raises:
        NotFoundError, ArchiveError, LocalDiskError: it is not there, or is none.
        UnsupportedError: it has more digests than one transfer can.
    """
    from ocistream import limits
    from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, UNKNOWN_SIZE, Descriptor
    from ocistream.remote.have_lists import HaveListReader, read_lines

    what = "the list on stdin" if among == "-" else among
    found: dict[str, None] = {}
    with context.open_list(among) as file:
        for digest in HaveListReader(read_lines(file), what):
            found[digest] = None
            if len(found) > limits.MAX_QUERIED_DIGESTS:
                msg = f"{what} has more than {limits.MAX_QUERIED_DIGESTS} digests"
                raise UnsupportedError(msg, hint="ask for the blobs of fewer images at a time")
    return [Descriptor(UNKNOWN_MEDIA_TYPE, digest, UNKNOWN_SIZE) for digest in found]
