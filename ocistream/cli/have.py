"""`ocistream have`: the digests that ends hold, as a list that whoever sends something there can use."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import click

from ocistream.cli.locations import parse_named_end
from ocistream.cli.number_types import Whole
from ocistream.cli.options import (
    credential_options,
    max_ratio_option,
    network_options,
    session_options,
)
from ocistream.cli.transfers import mount_sources
from ocistream.errors import NotFoundError, UnsupportedError, UsageError
from ocistream.stores import Want

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocistream.cli.console import Console
    from ocistream.cli.session import Session
    from ocistream.oci.descriptor import Descriptor
    from ocistream.remote.holdings import Holding
    from ocistream.stores import End

#: So many lines are written at once.
_LINES: Final = 4096


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
@click.option("--jobs", type=Whole(1, 32), default=4, show_default=True, help="Questions asked of a registry at once.")
@max_ratio_option
@credential_options
@network_options
@session_options
def have(session: Session, ends: tuple[str, ...], among: str | None) -> None:
    """List the digests that each END holds: a repository, an image, a layout directory, an archive, also on stdin (-).

    The list says what it is of, and has some 80 bytes a blob. With it, whoever sends images here can leave out what is
    here. A repository, named without tag and digest, is all of its tags and what hangs on them. No layer is fetched,
    and nothing is hashed: that is what `verify` is for. (With --among, what a layout has is hashed: that is relied on.)

    \b
    ocistream have registry.local/app > have.txt
    ocistream have ./images/ ./app.tar
    """
    from ocistream import __version__
    from ocistream.remote.have_lists import lines

    parsed = [parse_named_end(end) for end in ends]
    _check_stdin([*(end.text for end in parsed if end.is_stream), *([among] if among == "-" else [])])
    if session.options["mount_from"] and among is None:
        msg = "--mount-from is for --among"
        raise UsageError(msg, hint="without it, name those repositories beside the others: ocistream have REPO REPO")
    session.check_credentials({end.reference.registry for end in parsed if end.reference})
    with _opened(session, parsed, writes=among is not None) as holdings:
        reached: Mapping[str, int] = {}
        if among is None:
            found = _all_of(holdings)
        else:
            asked_for = _asked_for(session, among)
            found = _some_of(holdings, asked_for, session.console)
            if len(holdings) == 1:
                # Of several nobody could tell of which.
                reached = holdings[0].begun([blob.digest for blob in asked_for if blob.digest not in found])
    # Nothing was written before: whoever gets a list gets all of it.
    text = lines([holding.origin for holding in holdings], found, by=__version__, reached=reached)
    while some := "".join(itertools.islice(text, _LINES)):
        click.echo(some, nl=False)


def _check_stdin(uses: Sequence[str]) -> None:
    if len(uses) > 1:
        msg = "stdin cannot be read twice"
        raise UsageError(msg, hint="read one of them from a file")


@contextlib.contextmanager
def _opened(session: Session, ends: Sequence[End], *, writes: bool) -> Iterator[list[Holding]]:
    from ocistream.remote.holdings import open_holding
    from ocistream.transfer.no_destination import Onlooker

    want = Want(max_ratio=int(session.options["max_ratio"]), referrers="listed")

    def opened(end: End) -> Holding:
        registry = end.reference.registry if end.reference else None
        mounts = mount_sources(session.options["mount_from"], registry)
        around = session.surroundings(named={registry} if registry else ())
        return open_holding(
            end,
            replace(around, mount_from=mounts),
            onlooker,
            want=want,
            records=session.records() if writes else None,
            tell=session.console.note,
        )

    with contextlib.closing(Onlooker(session.cancelled)) as onlooker:
        yield list(map(opened, ends))


def _all_of(holdings: Sequence[Holding]) -> set[str]:
    return set[str]().union(*(holding.digests() for holding in holdings))


def _some_of(holdings: Sequence[Holding], asked_for: Sequence[Descriptor], console: Console) -> set[str]:
    found: set[str] = set()
    for holding in holdings:
        try:
            found |= holding.among([blob for blob in asked_for if blob.digest not in found])
        except NotFoundError as error:
            # A repository that does not exist yet has no blobs: that is an answer, unless its name is misspelt.
            console.note(f"{error.what}: it has none of these blobs", level=1)
    return found


def _asked_for(session: Session, among: str) -> list[Descriptor]:
    """Read the list of --among.

    Raises:
        NotFoundError, ArchiveError, LocalDiskError: it is not there, or is none.
        UnsupportedError: it has more digests than one transfer can.
    """
    from ocistream import limits
    from ocistream.oci.descriptor import UNKNOWN_SIZE, UNKNOWN_TYPE, Descriptor
    from ocistream.remote.have_lists import HaveList, lines_of

    what = "the list on stdin" if among == "-" else among
    found: dict[str, None] = {}
    with session.opened_list(among) as file:
        for digest in HaveList(lines_of(file), what):
            found[digest] = None
            if len(found) > limits.MAX_ASKED:
                msg = f"{what} has more than {limits.MAX_ASKED} digests"
                raise UnsupportedError(msg, hint="ask for the blobs of fewer images at a time")
    return [Descriptor(UNKNOWN_TYPE, digest, UNKNOWN_SIZE) for digest in found]
