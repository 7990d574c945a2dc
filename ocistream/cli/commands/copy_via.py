"""`copy --via`: run ocistream on a remote host through a command, and stream to it the blobs that it lacks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from ocistream import __version__, limits
from ocistream.archive.destination import ArchiveDestination
from ocistream.cli.registry_options import options_for_side
from ocistream.cli.signals import InterruptibleEvent
from ocistream.cli.transfers import run_transfer
from ocistream.errors import ArchiveError, IntegrityError, PartialBlobLostError, TerminatedError, UsageError
from ocistream.locations import open_source, parse_location
from ocistream.oci.omitted_blobs import HAVE, OmissionReason
from ocistream.oci.reference import is_digest, printable
from ocistream.oci.volumes import part_name
from ocistream.remote.command import RemoteCommand, check_shell_safe, split_command
from ocistream.remote.have_lists import HaveListReader, format_have_list, read_lines
from ocistream.transfer.partial_blobs import PARTIAL_BLOBS, chunks_from, format_partial_blobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import IO

    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location, Selection
    from ocistream.oci.graph import Graph, Root
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, Destination, Source

__all__ = ["copy_via"]

_LOG_IN_REMOTELY: Final = "`ocistream login` there: no password goes by this way"
_CONFIGURE_REMOTELY: Final = "this file is on this machine: set it in the remote ocistream's configuration"
#: Options that mean nothing, or not what they seem to, where the destination is another ocistream's; and what to do.
_OPTIONS_NOT_WITH_VIA: Final = {
    "dest_username": _LOG_IN_REMOTELY,
    "dest_password_stdin": _LOG_IN_REMOTELY,
    "dest_password_file": _LOG_IN_REMOTELY,
    "dest_authfile": _LOG_IN_REMOTELY,
    "dest_ca_cert": _CONFIGURE_REMOTELY,
    "dest_client_cert": _CONFIGURE_REMOTELY,
    "dest_client_key": _CONFIGURE_REMOTELY,
    "compress": "make the layers anew before, or there: what is not made yet cannot be known there",
    "split": "leave it away: what goes there is one stream",
    "have": "leave it away: the far side is asked what it has",
    "base": "leave it away: the far side is asked what it has",
    "only": "leave it away: the far side is asked what it has",
}


def copy_via(
    context: CommandContext, src: Location, destination: str, selection: Selection, via: tuple[str, str]
) -> None:
    """Copy `src` to a destination of the far side; `via` are the values of --via and --via-program.

    Raises:
        UsageError: an option or a name cannot be passed on.
        OcistreamError: it failed here or there, and nothing is visible there.
    """
    for option, hint in _OPTIONS_NOT_WITH_VIA.items():
        if context.options.get(option):
            msg = f"--{option.replace('_', '-')} cannot be had with --via"
            raise UsageError(msg, hint=hint)
    there = _RemoteLocation(destination)
    command, program = via
    far = _RemoteOcistream(context, [*split_command(command), *map(check_shell_safe, program.split())], there)

    def open_ends() -> tuple[Source, Destination]:
        named = () if src.reference is None else (src.reference.registry,)
        return open_source(src, context.build_open_context("SRC", registries=named), selection), far.open_destination()

    def label(root: Root) -> str:
        reference = there.location.reference
        return reference.name if reference else there.location.name or root.name or root.origin or src.text

    def send() -> None:
        run_transfer(
            context,
            open_ends,
            label,
            source_location=src,
            destination_location=there.location,
            omission_rule=far.find_omitted,
            is_remote=True,
        )

    try:
        send()
    except PartialBlobLostError as error:
        if src.is_stream or context.cancelled.is_set():
            # It cannot be read again here; or this run is over.
            raise
        context.console.info(f"{error.message}; now all of it is sent")
        far.can_resume = False
        send()


class _RemoteLocation:
    """An end of the far side: of what it is asked, and what is run to write to it."""

    def __init__(self, text: str) -> None:
        self.location = end = parse_location(text)
        #: What is asked which blobs it holds; None where nothing is added to what is there.
        self.query_location: str | None = None
        if end.reference is not None:
            self.query_location = f"{end.reference.registry}/{end.reference.repository}"
            self.arguments = ["push", str(end.reference)]
        else:
            self.arguments = ["copy", "-", text]
            if end.kind == "oci":
                self.query_location = f"oci:{text.split(':')[1]}"
            elif end.kind == "path" and text.endswith("/"):
                self.query_location = f"oci:{text}"
            elif end.kind != "oci-archive" or end.is_stream:
                msg = f"{printable(text)!r} is nothing that is known here to be a layout or an archive of the far side"
                raise UsageError(msg, hint="write REGISTRY/REPO:TAG, oci:DIR or oci-archive:FILE")


class _RemoteOcistream:
    """The far ocistream: asked what it has, and then given the rest."""

    def __init__(self, context: CommandContext, line: Sequence[str], target: _RemoteLocation) -> None:
        self._session = context
        self._command_line = line
        self._target = target
        self._destination: _RemoteArchiveDestination | None = None
        #: Whether blobs are sent from where the far side says that it has come to.
        self.can_resume = True

    def open_destination(self) -> Destination:
        """Give what writes to it, once there is something to write."""
        output = _RemoteOutput(
            self._build_command, lambda far: self._start(far, self._target.arguments, self._push_options())
        )
        self._destination = _RemoteArchiveDestination(output, mtime=self._session.build_open_context().mtime)
        return self._destination

    def find_omitted(self, graph: Graph) -> Mapping[str, OmissionReason]:
        """Ask what it has of what is to be moved."""
        # The plain layers of a docker-archive are made anew on the way.
        asked = [blob.digest for blob in graph.blobs if self._destination and not self._destination.has_blob(blob)]
        if self._target.query_location is None or graph.has_plain_layers or not asked:
            return {}
        found, read = self._query(asked)
        self._report_version(read)
        if self.can_resume and self._destination is not None:
            self._destination.partial_blobs = _find_resumable_blobs(graph, read.partial_blobs)
            for digest, offset in self._destination.partial_blobs.items():
                self._session.console.info(f"{digest} goes on at byte {offset}, to which the far side has come")
        return dict.fromkeys(sorted(found), OmissionReason(HAVE, self._target.query_location))

    def _query(self, digests: Sequence[str]) -> tuple[set[str], HaveListReader]:
        question = (line.encode() for line in format_have_list(["what is to come"], digests, version=__version__))
        wanted = set(digests)

        def read(answer: IO[bytes]) -> tuple[set[str], HaveListReader]:
            listed = HaveListReader(read_lines(answer), "the far side's list")
            try:
                return {digest for digest in listed if digest in wanted}, listed
            except ArchiveError as error:
                error.hint = "what --via runs must print nothing of its own on stdout, such as a greeting"
                raise

        far = self._build_command()
        try:
            self._start(far, ["have", "--among", "-", self._target.query_location or ""], self._query_options())
            return far.query(_join_lines(question), read)
        except BaseException:
            _stop_command(far)
            raise

    def _report_version(self, listed: HaveListReader) -> None:
        others = [version for version in listed.writers if version != __version__]
        if others:
            self._session.console.info(f"the far side has ocistream {printable(others[0])}, this is {__version__}")

    # -- what is said to it ------------------------------------------------------------------------------

    def _build_command(self) -> RemoteCommand:
        return RemoteCommand(self._handle_message, InterruptibleEvent())

    def _start(self, remote: RemoteCommand, words: Sequence[str], options: Sequence[str]) -> None:
        said = [check_shell_safe(word) for word in (*words, *options)]
        # Not all of the command: there may be a password in it.
        self._session.console.info(f"running {printable(self._command_line[0])} ... {' '.join(said)}", level=1)
        # What the command prints is shown here line by line; only its prompts go to the terminal itself.
        self._session.console.other_programs.add_command(lambda: remote.is_connecting)
        with self._session.console.suspend_display():
            remote.start([*self._command_line, *said])

    def _query_options(self) -> list[str]:
        """Give the options that are the destination's, and those by which it speaks to us."""
        session = self._session
        of_destination = options_for_side(session.options, "DEST")
        options = [f"--{name.replace('_', '-')}" for name in ("plain_http", "insecure") if of_destination[name]]
        for name in ("retries", "connect_timeout", "stall_timeout"):
            options += [f"--{name.replace('_', '-')}", f"{session.options[name]:g}"]
        if self._target.location.reference is not None:
            for repository in session.options["mount_from"]:
                options += ["--mount-from", repository]
        verbosity = session.console.verbosity
        return [*options, "--log-format", "json", *(["-q"] if verbosity < 0 else ["-v"] * verbosity)]

    def _push_options(self) -> list[str]:
        session = self._session
        options = self._query_options()
        if session.options["upload"] is not None:
            options += ["--upload", str(session.options["upload"])]
        if session.options["limit_rate"]:
            options += ["--limit-rate", str(max(1, int(session.options["limit_rate"])))]
        return [*options, "--progress", "json" if session.options["progress"] == "json" else "none"]

    # -- what it says ------------------------------------------------------------------------------------

    def _handle_message(self, said: Mapping[str, Any] | str) -> None:
        """Show what is said there as the far side's. A bar is ours alone."""
        console = self._session.console
        if isinstance(said, str):
            self._print_message(said, 0)
        elif isinstance(said.get("message"), str):
            self._print_message(said["message"], 1 if said.get("level") == "debug" else 0)
        elif self._session.options["progress"] == "json" and "event" in said:
            console.emit_event(**{**said, "side": "far"})

    def _print_message(self, message: str, level: int) -> None:
        console = self._session.console
        console.info(message if console.as_json else f"far: {message}", level=level, side="far")


class _RemoteOutput:
    """The far side's stdin, as an archive's output."""

    def __init__(self, command: Callable[[], RemoteCommand], start: Callable[[RemoteCommand], None]) -> None:
        self._build_command = command
        self._start = start
        self._remote: RemoteCommand | None = None
        #: What it has printed, when it has ended.
        self.results: list[str] = []

    def write(self, chunk: Chunk) -> None:
        if self._remote is None:
            self._remote = self._build_command()
            self._start(self._remote)
            self._remote.start_reading()
        self._remote.write(chunk)

    def finish(self) -> None:
        if self._remote is not None:
            self.results = self._remote.finish()
            self._remote = None

    def close(self) -> None:
        # Without its end nobody takes the archive for whole.
        if self._remote is not None:
            far, self._remote = self._remote, None
            _stop_command(far)


class _RemoteArchiveDestination(ArchiveDestination):
    """An archive that is taken there as it comes, and made visible there."""

    def __init__(self, output: _RemoteOutput, *, mtime: int) -> None:
        super().__init__(output, mtime=mtime)
        self._output = output
        #: Of which blobs the far side has how many bytes.
        self.partial_blobs: Mapping[str, int] = {}

    def annotations(self) -> dict[str, str]:
        """Say what goes on, and that the archive comes over a line."""
        return {PARTIAL_BLOBS: format_partial_blobs(self.partial_blobs)}

    def write(self, blob: Blob) -> None:
        """Send a blob, or the rest of it, of which the last chunk comes when all of it was found right.

        It is read from its beginning all the same: only that proves the digest, and what is near costs no line.
        """
        digest, size = blob.descriptor.digest, blob.descriptor.size
        start = self.partial_blobs.get(digest, 0)
        if not start:
            super().write(blob)
            return
        self._tar.add(part_name(digest, start), size - start, chunks_from(blob.open(), start))
        self._written.add(digest)

    def commit(self, graph: Graph) -> None:
        """Write the end of the archive, and wait until all of it is visible."""
        super().commit(graph)
        _check_results(graph, self._output.results)


def _find_resumable_blobs(graph: Graph, stored_sizes: Mapping[str, int]) -> dict[str, int]:
    """Give the blobs that are to be gone on with, and where: some byte of each is left to be sent.

    What the far side says may be anything: it is held against what is known here, and what comes of it is verified
    there.
    """
    configs = {document.config.digest for document in graph.documents.values() if document.config}
    return {
        blob.digest: min(stored_sizes[blob.digest], blob.size - 1)
        for blob in graph.blobs
        if limits.MIN_PARTIAL_SIZE <= stored_sizes.get(blob.digest, 0) <= blob.size and blob.digest not in configs
    }


def _stop_command(remote: RemoteCommand) -> None:
    """End it: who is stopped by a signal does not wait long."""
    remote.stop(immediately=isinstance(sys.exc_info()[1], KeyboardInterrupt | TerminatedError))


def _check_results(graph: Graph, lines: Sequence[str]) -> None:
    """Make sure that what has become visible there is what was sent.

    Raises:
        IntegrityError: it is not, or that is not said.
    """
    seen = {digest for line in lines if is_digest(digest := line.strip().rpartition("@")[2])}
    for root in graph.roots:
        if root.descriptor.digest not in seen:
            found = f"{', '.join(map(printable, sorted(seen)[:3]))}" or "nothing"
            msg = f"{root.descriptor.digest} was sent, and the far side says that it has written {found}"
            raise IntegrityError(msg)


def _join_lines(lines: Iterable[bytes]) -> Iterable[bytes]:
    """Give lines in pieces worth a write."""
    held: list[bytes] = []
    for line in lines:
        held.append(line)
        if len(held) >= 512:
            yield b"".join(held)
            held.clear()
    yield b"".join(held)
