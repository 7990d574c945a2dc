"""`ocistream have`: list the digests that a location stores, so that a sender can omit them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ocistream.api.copy_plan import parse_mount_sources
from ocistream.api.options import SELECTION, SELECTS_CONTENT, CopyOptions
from ocistream.cli.options import Option, RunOptions, command, credential_options, network_options, options_of
from ocistream.cli.parameter_types import FilePath, parse_location_argument
from ocistream.cli.sides import check_registries
from ocistream.errors import NotFoundError, UnsupportedError, UsageError
from ocistream.layout.image_selection import Selection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocistream.cli.console import Console
    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location
    from ocistream.oci.descriptor import Descriptor
    from ocistream.remote.stored_blobs import StoredBlobs


@command(
    click.Argument(["locations"], metavar="LOCATION...", nargs=-1, required=True, type=FilePath()),
    Option(
        ["--among"],
        type=FilePath(),
        metavar="FILE",
        not_configurable=SELECTS_CONTENT,
        section=SELECTION,
        help="List only the digests in FILE (- is stdin) that LOCATION has.",
    ),
    options_of(
        CopyOptions,
        "mount_from",
        help_text="With --among: also count blobs that REPO in the same registry has; repeatable.",
    ),
    options_of(RunOptions, "jobs", help_text="Parallel requests to a registry."),
    options_of(CopyOptions, "max_ratio"),
    credential_options,
    network_options,
)
def have(context: CommandContext, locations: tuple[str, ...], among: str | None) -> None:
    """List the digests of blobs that each LOCATION has: a repository, image, layout or archive (- is stdin).

    Pass the list to `pull --have`, to omit these blobs from an archive. A repository without tag or digest means all
    its tags and their referrers. No layer is fetched from a registry; --among hashes the blobs of a layout.

    \b
    ocistream have registry.local:5000/app > have.txt
    ocistream have ./images/ ./app.tar
    """
    from ocistream import __version__
    from ocistream.remote.have_lists import format_have_list

    parsed = [parse_location_argument(location) for location in locations]
    if sum(location.is_stream for location in parsed) + (among == "-") > 1:
        msg = "stdin cannot be read twice"
        raise UsageError(msg, hint="read one of them from a file")
    if context.copy_options.mount_from and among is None:
        msg = "--mount-from needs --among"
        raise UsageError(msg, hint="without --among, name the other repositories too: ocistream have REPO REPO")
    check_registries(context.sides, {location.reference.registry for location in parsed if location.reference})
    stores = [_open_store(context, location, writes=among is not None) for location in parsed]
    partial_blobs: Mapping[str, int] = {}
    if among is None:
        # Nothing is hashed: a list proves nothing, and the receiver verifies the blobs that are pushed later.
        digests = set[str]().union(*(store.list_digests() for store in stores))
    else:
        queried = _read_among_list(context, among)
        digests, partial_blobs = _find_listed(stores, queried, context.console)
    # Nothing was written before, so a reader gets a complete list or none.
    origins = [store.origin for store in stores]
    for piece in format_have_list(origins, digests, version=__version__, partial_blobs=partial_blobs):
        click.echo(piece, nl=False)


def _open_store(context: CommandContext, location: Location, *, writes: bool) -> StoredBlobs:
    """Open a location; `writes` asks a registry with the right to push, and for uploads that can be resumed."""
    from ocistream.remote.stored_blobs import open_stored_blobs

    registry = location.reference.registry if location.reference else None
    mounts = parse_mount_sources(context.copy_options.mount_from, registry)
    open_context = context.build_open_context(registries=location.registries)
    return open_stored_blobs(
        location,
        replace(open_context, mount_from=mounts),
        selection=Selection(referrers="list"),
        records=context.access.upload_records() if writes else None,
        warn=context.console.info,
    )


def _find_listed(
    stores: Sequence[StoredBlobs], queried: Sequence[Descriptor], console: Console
) -> tuple[set[str], Mapping[str, int]]:
    """Return the digests of the queried blobs that are stored, and the sizes of partial blobs, by digest."""
    found: set[str] = set()
    partial_blobs: Mapping[str, int] = {}
    for store in stores:
        try:
            found |= store.stored([blob for blob in queried if blob.digest not in found])
            # With several locations, the list could not say which one has the partial blobs.
            if len(stores) == 1:
                partial_blobs = store.partial_sizes([blob.digest for blob in queried if blob.digest not in found])
        except NotFoundError as error:
            # A repository that does not exist yet has no blobs: that is an answer before a first push, unless the name
            # is misspelt.
            console.info(f"{error.message}: it has none of these blobs", level=1)
    return found, partial_blobs


def _read_among_list(context: CommandContext, among: str) -> list[Descriptor]:
    """Return the blobs of the list of --among, without types and sizes; raise UnsupportedError for too many."""
    from ocistream import limits
    from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, UNKNOWN_SIZE, Descriptor
    from ocistream.remote.have_lists import HaveListReader

    digests: dict[str, None] = {}
    with context.open_list(among) as (file, label):
        for digest in HaveListReader(file, label):
            digests[digest] = None
            if len(digests) > limits.MAX_QUERIED_DIGESTS:
                msg = f"{label} has more than {limits.MAX_QUERIED_DIGESTS} digests"
                raise UnsupportedError(msg, hint="list fewer images at a time")
    return [Descriptor(UNKNOWN_MEDIA_TYPE, digest, UNKNOWN_SIZE) for digest in digests]
