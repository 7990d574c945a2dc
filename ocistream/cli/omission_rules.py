"""--have, --base and --only: decide which blobs an archive or layout omits because the destination has them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ocistream.errors import ArchiveError, NotFoundError, UsageError
from ocistream.layout.image_selection import Selection
from ocistream.locations import open_source, parse_location
from ocistream.oci.omitted_blobs import BASE, HAVE, NOT_SELECTED, OmissionReason
from ocistream.oci.reference import DIGEST_HEX_LENGTHS, is_digest, parse_digest, printable
from ocistream.streams import files, paths

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ocistream.api.copy_plan import CopyPlan
    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location, OpenContext
    from ocistream.oci.graph import Graph
    from ocistream.oci.platforms import PlatformChoice

OmissionRule: TypeAlias = "Callable[[Graph], Mapping[str, OmissionReason]]"


def _open_context_for(context: CommandContext, location: Location, source_location: Location) -> OpenContext:
    """Return the open context for a location that is queried or read.

    The sides of `copy` have separate credentials. A location in the source's registry uses those of the source; any
    other location belongs to the destination.
    """
    side = ""
    if context.sides:
        side = "src" if location.registries & source_location.registries else "dest"
    return context.build_open_context(side, registries=location.registries)


def find_queried_registries(context: CommandContext) -> set[str]:
    """Return the registries that --have and --base query: a user name on the command line is for them too."""
    have, base = context.omission.have, context.omission.base
    # An existing path is an archive, a layout or a list.
    locations = [parse_location(text) for text in (*have, *base) if text != "-" and not paths.is_existing_path(text)]
    return {location.reference.registry for location in locations if location.reference}


def build_omission_rule(context: CommandContext, plan: CopyPlan) -> OmissionRule:
    """Return the function that selects the blobs to omit from the destination.

    Manifests are never omitted. Calling the function reads the lists and locations, and raises their errors. The
    platforms of the plan are also those of each --base.
    """
    have, base, only = context.omission.have, context.omission.base, context.omission.only
    source_location, choice = plan.sources[0], plan.selection.platforms
    _check_omissions(context, plan)
    holders = [_build_have_rule(context, text, source_location) for text in have] + [
        _build_base_rule(context, text, choice, source_location) for text in base
    ]
    selected = [_parse_only(text) for text in only]

    def omitted(graph: Graph) -> Mapping[str, OmissionReason]:
        omitted: dict[str, OmissionReason] = {}
        for holder in holders:
            for digest, reason in holder(graph).items():
                omitted.setdefault(digest, reason)
        kept = _select_only(context, selected, graph) if selected else omitted
        for blob in graph.blobs:
            if selected and blob.digest not in kept:
                omitted.setdefault(blob.digest, OmissionReason(NOT_SELECTED, ""))
        return omitted

    return omitted


def _check_omissions(context: CommandContext, plan: CopyPlan) -> None:
    if plan.destination.kind in {"docker", "docker-archive"}:
        description = "a docker-archive" if plan.destination.kind == "docker-archive" else "an upload to a registry"
        msg = f"cannot omit blobs from {description}"
        raise UsageError(msg, hint="--have, --base and --only work only with OCI archives and layouts")
    if plan.options.compress is not None:
        # A recompressed layer has a new digest, which no list has.
        msg = "--compress makes layers with unknown digests: they cannot be compared with a list"
        raise UsageError(msg, hint="omit --compress")
    if context.omission.have.count("-") > 1:
        msg = "only one list can come from stdin"
        raise UsageError(msg)
    if "-" in context.omission.have and plan.sources[0].is_stream:
        msg = "stdin cannot be both the archive and the list"
        raise UsageError(msg, hint="read one of them from a file")


def _build_have_rule(context: CommandContext, text: str, source_location: Location) -> OmissionRule:
    """Parse a value of --have: a list, or a location that stores blobs."""
    if text == "-" or _is_list_file(Path(text)):
        return lambda graph: _read_have_list(context, text, graph)
    location = parse_location(text, bare_is_path=paths.is_existing_path(text))
    if location.kind == "docker" and "/" not in text:
        # Text without a registry is more likely a missing file than an image of Docker Hub.
        msg = f"--have {printable(text)}: no such file"
        raise NotFoundError(msg, hint="check the path; a repository needs its registry: HOST/REPO")
    if location.path is not None and (location.kind == "oci" or paths.is_directory(location.path)):
        _check_layout(location.path)

    def leaving(graph: Graph) -> Mapping[str, OmissionReason]:
        from ocistream.remote.stored_blobs import open_stored_blobs
        from ocistream.transfer.verify import DiscardedBlobs

        with contextlib.closing(DiscardedBlobs(context.cancelled)) as discarded:
            stored_blobs = open_stored_blobs(location, _open_context_for(context, location, source_location), discarded)
            stored = stored_blobs.stored(graph.blobs)
        return _report_if_empty(context, dict.fromkeys(sorted(stored), OmissionReason(HAVE, stored_blobs.origin)), text)

    return leaving


def _check_layout(path: Path) -> None:
    """Raise an error if a directory is neither a layout nor the beginning of one: it is probably the wrong path."""
    if not paths.is_directory(path):
        msg = f"--have {printable(str(path), 1024)}: no such directory"
        raise NotFoundError(msg)
    if not paths.exists(path / "index.json") and not paths.is_directory(path / "blobs"):
        msg = f"--have {printable(str(path), 1024)} is not an OCI layout: it has neither an index.json nor blobs"
        raise ArchiveError(msg)


def _is_list_file(path: Path) -> bool:
    """Return whether a path is a text file. Archives have zero bytes or are compressed."""
    if not paths.is_existing_path(str(path)):
        return False
    try:
        if not paths.is_file(path):
            # A file that can be read once (a FIFO, `<(...)`) is a list.
            return paths.is_special(path)
        with path.open("rb") as file:
            beginning = file.read(512)
    except OSError:
        # The error is reported where the file is read.
        return True
    return b"\0" not in beginning and not beginning.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))


def _read_have_list(context: CommandContext, text: str, graph: Graph) -> Mapping[str, OmissionReason]:
    """Read a list beside the graph and keep only digests of the graph, so memory does not grow with the list."""
    from ocistream.remote.have_lists import HaveListReader

    description = "the list on stdin" if text == "-" else printable(text, 1024)
    with context.open_list(text) as file:
        listed = HaveListReader(file, description)
        found = listed.find({blob.digest for blob in graph.blobs})
    reason = OmissionReason(HAVE, " ".join(listed.origins) or ("" if text == "-" else Path(text).name))
    return _report_if_empty(context, dict.fromkeys(sorted(found), reason), description)


def _report_if_empty(
    context: CommandContext, omitted: Mapping[str, OmissionReason], description: str
) -> Mapping[str, OmissionReason]:
    """Print a note if a list or location has no blob of the images: it is probably the wrong one."""
    if not omitted:
        context.console.info(f"{printable(description, 1024)} has none of the requested blobs: nothing is omitted")
    return omitted


def _build_base_rule(
    context: CommandContext, text: str, choice: PlatformChoice, source_location: Location
) -> OmissionRule:
    """Parse a value of --base: an image, or any other location."""
    location = parse_location(text, bare_is_path=paths.is_existing_path(text))
    if location.is_stream:
        msg = "--base takes an image; use --have for a list"
        raise UsageError(msg)

    def leaving(graph: Graph) -> Mapping[str, OmissionReason]:
        base_digests = {blob.digest for blob in _read_graph(context, location, choice, source_location).blobs}
        name = location.reference.name if location.reference else location.text
        omitted = {blob.digest: OmissionReason(BASE, name) for blob in graph.blobs if blob.digest in base_digests}
        return _report_if_empty(context, omitted, text)

    return leaving


def _read_graph(
    context: CommandContext, location: Location, choice: PlatformChoice, source_location: Location
) -> Graph:
    from ocistream.transfer.verify import read_graph

    open_context = _open_context_for(context, location, source_location)
    selection = Selection(platforms=choice, referrers="skip")
    with contextlib.closing(open_source(location, open_context, selection)) as source:
        return read_graph(source, context.cancelled)


def _parse_only(text: str) -> str | Path:
    """Parse a value of --only: a digest, or a file with a list of digests."""
    if is_digest(text):
        return text
    if not paths.exists(text, follow=False):
        if text.partition(":")[0] in DIGEST_HEX_LENGTHS:
            # Not a file, but a digest of the wrong length or with other characters.
            parse_digest(text)
        msg = f"--only {printable(text)}: not a digest, and no such file"
        raise NotFoundError(msg, hint="a digest is sha256: with 64 hex digits")
    return Path(text)


def _select_only(context: CommandContext, selected: Sequence[str | Path], graph: Graph) -> Collection[str]:
    """Return the digests that --only selects; raise NotFoundError if no image has one of them."""
    available = {blob.digest for blob in graph.blobs}
    kept: set[str] = set()
    for item in selected:
        if isinstance(item, Path):
            from ocistream.remote.have_lists import HaveListReader

            description = printable(str(item), 1024)
            with files.disk_errors(f"cannot read {item}"), item.open("rb") as file:
                listed = HaveListReader(file, description)
                found = listed.find(available)
            kept |= found
            if unmatched := listed.total - len(found):
                context.console.info(
                    f"--only {description}: {unmatched} of its {listed.total} digests are in none of the images"
                )
        elif item not in available:
            msg = f"--only {item}: none of the requested images has such a blob"
            raise NotFoundError(msg, hint="was the tag moved? name the image by its digest, and check --platform")
        else:
            kept.add(item)
    return kept
