"""`copy --via`: what the far side lacks, streamed to an ocistream there by way of a command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from ocistream import __version__, limits
from ocistream.archive.writer import ArchiveSink
from ocistream.cli.sides import options_of
from ocistream.cli.signals import Stop
from ocistream.cli.transfers import move
from ocistream.errors import ArchiveError, IntegrityError, LostBeginningError, TerminatedError, UsageError
from ocistream.oci.omitted_blobs import HAVE, Reason
from ocistream.oci.reference import is_digest, printable
from ocistream.oci.volumes import part_name
from ocistream.remote.command import FarCommand, check_safe, split_command
from ocistream.remote.have_lists import HaveList, lines, lines_of
from ocistream.stores import open_source, parse_end
from ocistream.transfer.partial_blobs import BEGUN, begun_text, from_byte

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import IO

    from ocistream.cli.session import Session
    from ocistream.oci.graph import Graph, Root
    from ocistream.stores import End, Want
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, Sink, Source

__all__ = ["copy_via"]

_LOG_IN: Final = "`ocistream login` there: no password goes by this way"
_CONFIGURE: Final = "this file is on this machine: set it in the remote ocistream's configuration"
#: Options that mean nothing, or not what they seem to, where the destination is another ocistream's; and what to do.
_NOT_WITH_VIA: Final = {
    "dest_username": _LOG_IN,
    "dest_password_stdin": _LOG_IN,
    "dest_password_file": _LOG_IN,
    "dest_authfile": _LOG_IN,
    "dest_ca_cert": _CONFIGURE,
    "dest_client_cert": _CONFIGURE,
    "dest_client_key": _CONFIGURE,
    "compress": "make the layers anew before, or there: what is not made yet cannot be known there",
    "split": "leave it away: what goes there is one stream",
    "have": "leave it away: the far side is asked what it has",
    "base": "leave it away: the far side is asked what it has",
    "only": "leave it away: the far side is asked what it has",
}


def copy_via(session: Session, src: End, destination: str, want: Want, via: tuple[str, str]) -> None:
    """Copy `src` to a destination of the far side; `via` are the values of --via and --via-program.

    Raises:
        UsageError: an option or a name cannot be passed on.
        OcistreamError: it failed here or there, and nothing is visible there.
    """
    for option, hint in _NOT_WITH_VIA.items():
        if session.options.get(option):
            msg = f"--{option.replace('_', '-')} cannot be had with --via"
            raise UsageError(msg, hint=hint)
    there = _Destination(destination)
    command, program = via
    far = _FarSide(session, [*split_command(command), *map(check_safe, program.split())], there)

    def open_ends() -> tuple[Source, Sink]:
        named = () if src.reference is None else (src.reference.registry,)
        return open_source(src, session.surroundings("SRC", named=named), want), far.sink()

    def label(root: Root) -> str:
        reference = there.end.reference
        return reference.name if reference else there.end.name or root.name or root.origin or src.text

    def send() -> None:
        move(session, open_ends, label, of=src, to=there.end, leave_out=far.leave_out, is_far=True)

    try:
        send()
    except LostBeginningError as error:
        if src.is_stream or session.cancelled.is_set():
            # It cannot be read again here; or this run is over.
            raise
        session.console.note(f"{error.what}; now all of it is sent")
        far.goes_on = False
        send()


class _Destination:
    """An end of the far side: of what it is asked, and what is run to write to it."""

    def __init__(self, text: str) -> None:
        self.end = end = parse_end(text)
        #: What is asked which blobs it holds; None where nothing is added to what is there.
        self.asked: str | None = None
        if end.reference is not None:
            self.asked = f"{end.reference.registry}/{end.reference.repository}"
            self.verb = ["push", str(end.reference)]
        else:
            self.verb = ["copy", "-", text]
            if end.kind == "oci":
                self.asked = f"oci:{text.split(':')[1]}"
            elif end.kind == "path" and text.endswith("/"):
                self.asked = f"oci:{text}"
            elif end.kind != "oci-archive" or end.is_stream:
                msg = f"{printable(text)!r} is nothing that is known here to be a layout or an archive of the far side"
                raise UsageError(msg, hint="write REGISTRY/REPO:TAG, oci:DIR or oci-archive:FILE")


class _FarSide:
    """The far ocistream: asked what it has, and then given the rest."""

    def __init__(self, session: Session, line: Sequence[str], there: _Destination) -> None:
        self._session = session
        self._line = line
        self._there = there
        self._sink: _FarSink | None = None
        #: Whether blobs are sent from where the far side says that it has come to.
        self.goes_on = True

    def sink(self) -> Sink:
        """Give what writes to it, once there is something to write."""
        output = _FarOutput(self._command, lambda far: self._start(far, self._there.verb, self._pushing()))
        self._sink = _FarSink(output, mtime=self._session.surroundings().mtime)
        return self._sink

    def leave_out(self, graph: Graph) -> Mapping[str, Reason]:
        """Ask what it has of what is to be moved."""
        # The plain layers of a docker-archive are made anew on the way.
        asked = [blob.digest for blob in graph.blobs if self._sink and not self._sink.has(blob)]
        if self._there.asked is None or graph.bare or not asked:
            return {}
        found, read = self._ask(asked)
        self._tell_version(read)
        if self.goes_on and self._sink is not None:
            self._sink.begun = _begun(graph, read.reached)
            for digest, offset in self._sink.begun.items():
                self._session.console.note(f"{digest} goes on at byte {offset}, to which the far side has come")
        return dict.fromkeys(sorted(found), Reason(HAVE, self._there.asked))

    def _ask(self, digests: Sequence[str]) -> tuple[set[str], HaveList]:
        question = (line.encode() for line in lines(["what is to come"], digests, by=__version__))
        wanted = set(digests)

        def read(answer: IO[bytes]) -> tuple[set[str], HaveList]:
            listed = HaveList(lines_of(answer), "the far side's list")
            try:
                return {digest for digest in listed if digest in wanted}, listed
            except ArchiveError as error:
                error.hint = "what --via runs must print nothing of its own on stdout, such as a greeting"
                raise

        far = self._command()
        try:
            self._start(far, ["have", "--among", "-", self._there.asked or ""], self._asking())
            return far.ask(_joined(question), read)
        except BaseException:
            _abandon(far)
            raise

    def _tell_version(self, listed: HaveList) -> None:
        others = [version for version in listed.writers if version != __version__]
        if others:
            self._session.console.note(f"the far side has ocistream {printable(others[0])}, this is {__version__}")

    # -- what is said to it ------------------------------------------------------------------------------

    def _command(self) -> FarCommand:
        return FarCommand(self._hear, Stop())

    def _start(self, far: FarCommand, words: Sequence[str], options: Sequence[str]) -> None:
        said = [check_safe(word) for word in (*words, *options)]
        # Not all of the command: there may be a password in it.
        self._session.console.note(f"running {printable(self._line[0])} ... {' '.join(said)}", level=1)
        # What the command prints is shown here line by line; only its prompts go to the terminal itself.
        self._session.console.neighbours.add_command(lambda: far.is_connecting)
        with self._session.console.aside():
            far.start([*self._line, *said])

    def _asking(self) -> list[str]:
        """Give the options that are the destination's, and those by which it speaks to us."""
        session = self._session
        of_destination = options_of(session.options, "DEST")
        options = [f"--{name.replace('_', '-')}" for name in ("plain_http", "insecure") if of_destination[name]]
        for name in ("retries", "connect_timeout", "stall_timeout"):
            options += [f"--{name.replace('_', '-')}", f"{session.options[name]:g}"]
        if self._there.end.reference is not None:
            for repository in session.options["mount_from"]:
                options += ["--mount-from", repository]
        verbosity = session.console.verbosity
        return [*options, "--log-format", "json", *(["-q"] if verbosity < 0 else ["-v"] * verbosity)]

    def _pushing(self) -> list[str]:
        session = self._session
        options = self._asking()
        if session.options["upload"] is not None:
            options += ["--upload", str(session.options["upload"])]
        if session.options["limit_rate"]:
            options += ["--limit-rate", str(max(1, int(session.options["limit_rate"])))]
        return [*options, "--progress", "json" if session.options["progress"] == "json" else "none"]

    # -- what it says ------------------------------------------------------------------------------------

    def _hear(self, said: Mapping[str, Any] | str) -> None:
        """Show what is said there as the far side's. A bar is ours alone."""
        console = self._session.console
        if isinstance(said, str):
            self._note(said, 0)
        elif isinstance(said.get("message"), str):
            self._note(said["message"], 1 if said.get("level") == "debug" else 0)
        elif self._session.options["progress"] == "json" and "event" in said:
            console.event(**{**said, "side": "far"})

    def _note(self, message: str, level: int) -> None:
        console = self._session.console
        console.note(message if console.as_json else f"far: {message}", level=level, side="far")


class _FarOutput:
    """The far side's stdin, as an archive's output."""

    def __init__(self, command: Callable[[], FarCommand], start: Callable[[FarCommand], None]) -> None:
        self._command = command
        self._start = start
        self._far: FarCommand | None = None
        #: What it has printed, when it has ended.
        self.results: list[str] = []

    def write(self, chunk: Chunk) -> None:
        if self._far is None:
            self._far = self._command()
            self._start(self._far)
            self._far.collect()
        self._far.write(chunk)

    def finish(self) -> None:
        if self._far is not None:
            self.results = self._far.results()
            self._far = None

    def close(self) -> None:
        # Without its end nobody takes the archive for whole.
        if self._far is not None:
            far, self._far = self._far, None
            _abandon(far)


class _FarSink(ArchiveSink):
    """An archive that is taken there as it comes, and made visible there."""

    def __init__(self, output: _FarOutput, *, mtime: int) -> None:
        super().__init__(output, mtime=mtime)
        self._output = output
        #: Of which blobs the far side has how many bytes.
        self.begun: Mapping[str, int] = {}

    def notes(self) -> dict[str, str]:
        """Say what goes on, and that the archive comes over a line."""
        return {BEGUN: begun_text(self.begun)}

    def put(self, blob: Blob) -> None:
        """Send a blob, or the rest of it, of which the last chunk comes when all of it was found right.

        It is read from its beginning all the same: only that proves the digest, and what is near costs no line.
        """
        digest, size = blob.descriptor.digest, blob.descriptor.size
        start = self.begun.get(digest, 0)
        if not start:
            super().put(blob)
            return
        self._tar.add(part_name(digest, start), size - start, from_byte(blob.open(), start))
        self._written.add(digest)

    def commit(self, graph: Graph) -> None:
        """Write the end of the archive, and wait until all of it is visible."""
        super().commit(graph)
        _check_results(graph, self._output.results)


def _begun(graph: Graph, reached: Mapping[str, int]) -> dict[str, int]:
    """Give the blobs that are to be gone on with, and where: some byte of each is left to be sent.

    What the far side says may be anything: it is held against what is known here, and what comes of it is verified
    there.
    """
    configs = {document.config.digest for document in graph.documents.values() if document.config}
    return {
        blob.digest: min(reached[blob.digest], blob.size - 1)
        for blob in graph.blobs
        if limits.WORTH_KEEPING <= reached.get(blob.digest, 0) <= blob.size and blob.digest not in configs
    }


def _abandon(far: FarCommand) -> None:
    """End it: who is stopped by a signal does not wait long."""
    far.abandon(at_once=isinstance(sys.exc_info()[1], KeyboardInterrupt | TerminatedError))


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


def _joined(lines: Iterable[bytes]) -> Iterable[bytes]:
    """Give lines in pieces worth a write."""
    held: list[bytes] = []
    for line in lines:
        held.append(line)
        if len(held) >= 512:
            yield b"".join(held)
            held.clear()
    yield b"".join(held)
