"""--have, --base and --only: decide which blobs an archive or layout omits because the destination has them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ocistream.cli.context import describe_list
from ocistream.errors import ArchiveError, NotFoundError, UsageError
from ocistream.layout.image_selection import Selection
from ocistream.locations import open_source, parse_location
from ocistream.oci.omitted_blobs import BASE, HAVE, NOT_SELECTED, OmissionReason
from ocistream.oci.reference import DIGEST_HEX_LENGTHS, is_digest, parse_digest, printable
from ocistream.streams import paths

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ocistream.api.copy_plan import CopyPlan
    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location, OpenContext
    from ocistream.oci.graph import Graph
    from ocistream.remote.have_lists import HaveListReader


class OmissionRules:
    """Selects the blobs of a graph that the destination omits. Manifests are never omitted.

    The call reads the lists and locations, and raises their errors. The platforms of the plan are also those of each
    --base.
    """

    def __init__(self, context: CommandContext, plan: CopyPlan) -> None:
        """Parse the options, and raise UsageError if they do not fit the plan."""
        self._context = context
        self._plan = plan
        options = context.omission_options
        _check_plan(options.have, plan)
        #: The values of --have: a location that stores blobs, or None for a list.
        self._have = [(text, _parse_have(text)) for text in options.have]
        self._base = [(text, _parse_base(text)) for text in options.base]
        for text in options.only:
            _check_only(text)

    @property
    def registries(self) -> set[str]:
        """The registries that --have and --base query: a user name on the command line is for them too."""
        locations = [location for _, location in (*self._have, *self._base) if location is not None]
        return {location.reference.registry for location in locations if location.reference}

    def __call__(self, graph: Graph) -> Mapping[str, OmissionReason]:
        """Return the blobs to omit, by digest."""
        omitted: dict[str, OmissionReason] = {}
        for text, location in self._have:
            self._add(omitted, text, self._match_list(text, graph) if location is None else self._ask(location, graph))
        for text, location in self._base:
            digests = {blob.digest for blob in self._read_graph(location).blobs}
            reason = OmissionReason(BASE, location.reference.name if location.reference else location.text)
            self._add(omitted, text, {blob.digest: reason for blob in graph.blobs if blob.digest in digests})
        if self._context.omission_options.only:
            kept = self._select_only(graph)
            for blob in graph.blobs:
                if blob.digest not in kept:
                    omitted.setdefault(blob.digest, OmissionReason(NOT_SELECTED, ""))
        return omitted

    def _add(self, omitted: dict[str, OmissionReason], text: str, found: Mapping[str, OmissionReason]) -> None:
        """Add blobs, or print a note if a list or location has none of the images: it is probably the wrong one."""
        if not found:
            self._context.console.info(f"{describe_list(text)} has none of the requested blobs: nothing is omitted")
        for digest, reason in found.items():
            omitted.setdefault(digest, reason)

    def _match_list(self, text: str, graph: Graph) -> Mapping[str, OmissionReason]:
        listed, found = self._search_list(text, graph)
        reason = OmissionReason(HAVE, " ".join(listed.origins) or ("" if text == "-" else Path(text).name))
        return dict.fromkeys(sorted(found), reason)

    def _search_list(self, path: str, graph: Graph) -> tuple[HaveListReader, Collection[str]]:
        """Read a list beside the graph and keep only digests of the graph, so memory does not grow with the list."""
        from ocistream.remote.have_lists import HaveListReader

        with self._context.open_list(path) as (file, label):
            listed = HaveListReader(file, label)
            return listed, listed.find({blob.digest for blob in graph.blobs})

    def _ask(self, location: Location, graph: Graph) -> Mapping[str, OmissionReason]:
        from ocistream.remote.stored_blobs import open_stored_blobs

        stored_blobs = open_stored_blobs(location, self._build_open_context(location))
        return dict.fromkeys(sorted(stored_blobs.stored(graph.blobs)), OmissionReason(HAVE, stored_blobs.origin))

    def _read_graph(self, location: Location) -> Graph:
        from ocistream.transfer.discarded_blobs import read_graph

        selection = Selection(platforms=self._plan.selection.platforms, referrers="skip")
        with contextlib.closing(open_source(location, self._build_open_context(location), selection)) as source:
            return read_graph(source, self._context.cancelled)

    def _build_open_context(self, location: Location) -> OpenContext:
        """Return the open context for a location that is queried or read.

        The sides of `copy` have separate credentials. A location in the source's registry uses those of the source; any
        other location belongs to the destination.
        """
        is_at_source = location.registries & self._plan.sources[0].registries
        side = self._context.sides[0 if is_at_source else -1]
        return self._context.build_open_context(side, registries=location.registries)

    def _select_only(self, graph: Graph) -> Collection[str]:
        """Return the digests that --only selects; raise NotFoundError if no image has one of them."""
        available = {blob.digest for blob in graph.blobs}
        kept: set[str] = set()
        for item in self._context.omission_options.only:
            if not is_digest(item):
                listed, found = self._search_list(item, graph)
                kept.update(found)
                if unmatched := listed.total - len(found):
                    self._context.console.info(
                        f"--only {describe_list(item)}: {unmatched} of its {listed.total} digests are in none of "
                        "the images"
                    )
            elif item not in available:
                msg = f"--only {item}: none of the requested images has such a blob"
                raise NotFoundError(msg, hint="was the tag moved? name the image by its digest, and check --platform")
            else:
                kept.add(item)
        return kept


def _check_plan(have: Collection[str], plan: CopyPlan) -> None:
    if plan.destination.kind in {"docker", "docker-archive"}:
        description = "a docker-archive" if plan.destination.kind == "docker-archive" else "an upload to a registry"
        msg = f"cannot omit blobs from {description}"
        hint = "--have, --base and --only work only with OCI archives and layouts"
        if plan.destination.kind == "docker":
            hint += "; without them, a registry gets only the blobs that it lacks"
        raise UsageError(msg, hint=hint)
    if plan.options.compress is not None:
        # A recompressed layer has a new digest, which no list has.
        msg = "--compress makes layers with unknown digests: they cannot be compared with a list"
        raise UsageError(msg, hint="omit --compress")
    if [*have].count("-") > 1:
        msg = "only one list can come from stdin"
        raise UsageError(msg)
    if "-" in have and plan.sources[0].is_stream:
        msg = "stdin cannot be both the archive and the list"
        raise UsageError(msg, hint="read one of them from a file")


def _parse_have(text: str) -> Location | None:
    """Parse a value of --have: a location that stores blobs; None for a list."""
    if text == "-" or _is_list_file(Path(text)):
        return None
    location = parse_location(text, bare_is_path=paths.is_existing_path(text))
    if location.kind == "docker" and "/" not in text:
        # Text without a registry is more likely a missing file than an image of Docker Hub.
        msg = f"--have {printable(text)}: no such file"
        raise NotFoundError(msg, hint="check the path; a repository needs its registry: HOST/REPO")
    if location.path is not None and (location.kind == "oci" or paths.is_directory(location.path)):
        _check_layout(location.path)
    return location


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


def _parse_base(text: str) -> Location:
    """Parse a value of --base: an image, or any other location."""
    location = parse_location(text, bare_is_path=paths.is_existing_path(text))
    if location.is_stream:
        msg = "--base takes an image; use --have for a list"
        raise UsageError(msg)
    return location


def _check_only(text: str) -> None:
    """Raise an error if a value of --only is neither a digest nor a file with a list of digests."""
    if is_digest(text) or paths.exists(text, follow=False):
        return
    if text.partition(":")[0] in DIGEST_HEX_LENGTHS:
        # Not a file, but a digest of the wrong length or with other characters.
        parse_digest(text)
    msg = f"--only {printable(text)}: not a digest, and no such file"
    raise NotFoundError(msg, hint="a digest is sha256: with 64 hex digits")
