"""--have, --base and --only: decide which blobs an archive or layout omits because the other side has them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from ocistream.errors import ArchiveError, NotFoundError, UsageError
from ocistream.locations import Selection, open_source, parse_location
from ocistream.oci.omitted_blobs import BASE, HAVE, NOT_SELECTED, OmissionReason
from ocistream.oci.reference import is_digest, printable
from ocistream.streams import files, paths

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location, OpenContext
    from ocistream.oci.graph import Graph
    from ocistream.oci.platforms import PlatformChoice

__all__ = ["OmissionRule", "build_omission_rule", "find_queried_registries", "omission_options"]

OmissionRule: TypeAlias = "Callable[[Graph], Mapping[str, OmissionReason]]"


def omission_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --have, --base and --only."""
    options = (
        click.option(
            "--have",
            multiple=True,
            metavar="FILE|-|END",
            help="Leave out blobs that the other side has: those of a list that `ocistream have` wrote there, or of "
            "END (a repository HOST/REPO, an image of it, oci:DIR, an archive); repeats.",
        ),
        click.option(
            "--base",
            multiple=True,
            metavar="IMAGE",
            help="Leave out the blobs of an image that the other side is known to have; repeats.",
        ),
        click.option("--only", multiple=True, metavar="DIGEST|FILE", help="Leave out all blobs but these; repeats."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _open_context_for(context: CommandContext, location: Location, src: Location | None) -> OpenContext:
    """Give what an end needs that is asked or read; the sides of `copy` have credentials of their own.

    What is in the source's registry is asked as the source is; anything else belongs to the other side.
    """
    registry = location.reference.registry if location.reference else None
    side = ""
    if "src_username" in context.options:
        is_source = src is not None and src.reference is not None and src.reference.registry == registry
        side = "SRC" if is_source else "DEST"
    return context.build_open_context(side, registries={registry} if registry else ())


def find_queried_registries(context: CommandContext) -> set[str]:
    """Give the registries that are asked what they have: a user name that is given would be for them as well."""
    have, base, _ = _omission_values(context)
    # A path that is there is an archive, a layout or a list.
    ends = [parse_location(text) for text in (*have, *base) if text != "-" and not paths.is_existing_path(text)]
    return {end.reference.registry for end in ends if end.reference}


def build_omission_rule(
    context: CommandContext, choice: PlatformChoice, destination_location: Location, *, src: Location | None = None
) -> OmissionRule | None:
    """Give what says which blobs are left out of what is written `to` an end, or None where all of them go along.

    What it gives raises what reading the lists and ends raises. `choice` is of platforms, of the bases as well. `src`
    is where the images come from, if its credentials are not those of all other ends.

    Raises:
        UsageError: an option contradicts another.
        NotFoundError: a list is not there.
        InvalidNameError: an end is malformed.
    """
    have, base, only = _omission_values(context)
    if not (have or base or only):
        return None
    _check_omissions(context, have, destination_location, src)
    holders = [_build_have_rule(context, text, src) for text in have] + [
        _build_base_rule(context, text, choice, src) for text in base
    ]
    wanted = [_parse_only(text) for text in only]

    def left_out(graph: Graph) -> Mapping[str, OmissionReason]:
        found: dict[str, OmissionReason] = {}
        for holder in holders:
            for digest, reason in holder(graph).items():
                found.setdefault(digest, reason)
        kept = _select_only(context, wanted, graph) if wanted else found
        for blob in graph.blobs:
            if wanted and blob.digest not in kept:
                found.setdefault(blob.digest, OmissionReason(NOT_SELECTED, ""))
        return found

    return left_out


def _omission_values(context: CommandContext) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    return context.options["have"], context.options["base"], context.options["only"]


def _check_omissions(
    context: CommandContext, have: Sequence[str], destination_location: Location, src: Location | None
) -> None:
    if destination_location.kind in {"docker", "docker-archive"}:
        what = "a docker-archive" if destination_location.kind == "docker-archive" else "what goes to a registry"
        msg = f"nothing can be left out of {what}"
        raise UsageError(msg, hint="--have, --base and --only are for OCI archives and layouts")
    if context.options["compress"] is not None:
        msg = "--compress makes layers of which nobody can say yet whether they are there"
        raise UsageError(msg, hint="leave --compress away where some blobs are left out")
    if have.count("-") > 1:
        msg = "stdin can be one list only"
        raise UsageError(msg)
    if "-" in have and src is not None and src.is_stream:
        msg = "stdin cannot be both the archive and the list"
        raise UsageError(msg, hint="read one of them from a file")


def _build_have_rule(context: CommandContext, text: str, src: Location | None) -> OmissionRule:
    """Take a value of --have: a list, or an end that holds blobs."""
    if text == "-" or _is_list_file(Path(text)):
        return lambda graph: _read_have_list(context, text, graph)
    end = parse_location(text, bare_is_path=paths.is_existing_path(text))
    if end.kind == "docker" and "/" not in text:
        # What names no registry is rather a file's name that is not there than an image of Docker Hub's.
        msg = f"--have {printable(text)}: no such file"
        raise NotFoundError(msg, hint="a repository is written with its registry, as HOST/REPO")
    if end.path is not None and (end.kind == "oci" or paths.is_directory(end.path)):
        _check_layout(end.path)

    def leaving(graph: Graph) -> Mapping[str, OmissionReason]:
        from ocistream.remote.stored_blobs import open_stored_blobs
        from ocistream.transfer.verify import DiscardedBlobs

        with contextlib.closing(DiscardedBlobs(context.cancelled)) as onlooker:
            holding = open_stored_blobs(end, _open_context_for(context, end, src), onlooker)
            there = holding.find_stored(graph.blobs)
        return _report_if_empty(context, dict.fromkeys(sorted(there), OmissionReason(HAVE, holding.origin)), text)

    return leaving


def _check_layout(path: Path) -> None:
    """Make sure that a directory of which nothing would be left out is not simply the wrong one.

    Raises:
        NotFoundError: it is not there.
        ArchiveError: there is no layout in it, nor the beginning of one.
    """
    if not paths.is_directory(path):
        msg = f"--have {printable(str(path), 1024)}: no such directory"
        raise NotFoundError(msg)
    if not paths.exists(path / "index.json") and not paths.is_directory(path / "blobs"):
        msg = f"--have {printable(str(path), 1024)} is no OCI layout: it has neither an index.json nor blobs"
        raise ArchiveError(msg)


def _is_list_file(path: Path) -> bool:
    """Say whether a path is that of a text, and of no archive: those have zeros, or are compressed."""
    if not paths.is_existing_path(str(path)):
        return False
    try:
        if not paths.is_file(path):
            # What can be read once (a FIFO, `<(...)`) is a list.
            return paths.is_special(path)
        with path.open("rb") as file:
            beginning = file.read(512)
    except OSError:
        # What is wrong with it is said where it is read.
        return True
    return b"\0" not in beginning and not beginning.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))


def _read_have_list(context: CommandContext, text: str, graph: Graph) -> Mapping[str, OmissionReason]:
    from ocistream.remote.have_lists import match_have_list, read_lines

    what = "the list on stdin" if text == "-" else printable(text, 1024)
    with context.open_list(text) as file:
        found = match_have_list(read_lines(file), {blob.digest for blob in graph.blobs}, what)
    reason = OmissionReason(HAVE, " ".join(found.origins) or ("" if text == "-" else Path(text).name))
    return _report_if_empty(context, dict.fromkeys(sorted(found.digests), reason), what)


def _report_if_empty(
    context: CommandContext, found: Mapping[str, OmissionReason], what: str
) -> Mapping[str, OmissionReason]:
    """Say of a list or an end that it has nothing of the images: mostly it is not the one that was meant."""
    if not found:
        context.console.info(f"{printable(what, 1024)} has no blob of what is asked for, so none is left out for it")
    return found


def _build_base_rule(context: CommandContext, text: str, choice: PlatformChoice, src: Location | None) -> OmissionRule:
    """Take a value of --base: an image, or any other end."""
    end = parse_location(text, bare_is_path=paths.is_existing_path(text))
    if end.is_stream:
        msg = "--base is an image, and no list: a list is what --have takes"
        raise UsageError(msg)

    def leaving(graph: Graph) -> Mapping[str, OmissionReason]:
        there = {blob.digest for blob in _read_graph(context, end, choice, src).blobs}
        name = end.reference.name if end.reference else end.text
        of = {blob.digest: OmissionReason(BASE, name) for blob in graph.blobs if blob.digest in there}
        return _report_if_empty(context, of, text)

    return leaving


def _read_graph(context: CommandContext, location: Location, choice: PlatformChoice, src: Location | None) -> Graph:
    from ocistream.transfer.verify import DiscardedBlobs

    with contextlib.ExitStack() as stack:
        source = open_source(
            location, _open_context_for(context, location, src), Selection(platforms=choice, referrers="left")
        )
        stack.callback(source.close)
        return source.resolve(stack.enter_context(contextlib.closing(DiscardedBlobs(context.cancelled))))


def _parse_only(text: str) -> str | Path:
    """Take a value of --only: a digest, or a file with a list of them.

    Raises:
        NotFoundError: it is neither.
    """
    if is_digest(text):
        return text
    if not paths.exists(text, follow=False):
        msg = f"--only {printable(text)}: no digest, and no such file"
        raise NotFoundError(msg, hint="a digest is written sha256:...")
    return Path(text)


def _select_only(context: CommandContext, selected: Sequence[str | Path], graph: Graph) -> Collection[str]:
    """Give the digests that --only asks for.

    Raises:
        NotFoundError: one is in none of the images.
    """
    there = {blob.digest for blob in graph.blobs}
    kept: set[str] = set()
    for one in selected:
        if isinstance(one, Path):
            from ocistream.remote.have_lists import match_have_list, read_lines

            what = printable(str(one), 1024)
            with files.disk_errors(f"cannot read {one}"), one.open("rb") as file:
                found = match_have_list(read_lines(file), there, what)
            kept |= found.digests
            if others := found.total - len(found.digests):
                context.console.info(f"--only {what}: {others} of its {found.total} digests are in none of the images")
        elif one not in there:
            msg = f"--only {one}: no image that is asked for has such a blob"
            raise NotFoundError(msg, hint="was its tag moved meanwhile? Name it by its digest, and see --platform")
        else:
            kept.add(one)
    return kept
