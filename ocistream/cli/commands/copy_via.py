"""`copy --via`: run ocistream on a remote host through a command, and stream to it the blobs that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocistream import __version__, limits
from ocistream.api.copy_plan import plan_copy
from ocistream.archive.destination import ArchiveDestination
from ocistream.archive.outputs import Output
from ocistream.cli.parameter_types import parse_location_argument
from ocistream.cli.transfers import run_transfer
from ocistream.errors import ArchiveError, IntegrityError, PartialBlobLostError, UsageError
from ocistream.locations import open_source
from ocistream.oci.omitted_blobs import HAVE, PARTIAL_BLOBS, OmissionReason, format_partial_blobs
from ocistream.oci.reference import is_digest, printable
from ocistream.oci.volumes import part_name
from ocistream.remote.command import RemoteCommand, check_shell_safe, split_command
from ocistream.remote.have_lists import HaveListReader, format_have_list
from ocistream.streams.chunks import chunks_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import IO

    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Destination, VerifiedBlob

_LOG_IN_REMOTELY: Final = "run `ocistream login` on the remote side: --via sends no passwords"
_CONFIGURE_REMOTELY: Final = "this file is on this machine: set it in the configuration of the remote ocistream"
_ASKED_REMOTELY: Final = "omit the option: ocistream asks the remote side which blobs it has"


def copy_via(context: CommandContext, source: str, destination: str, via: tuple[str, str]) -> None:
    """Copy to a destination of the remote ocistream; `via` are --via and --via-program.

    With --dry-run, the remote side is asked which blobs it has, and sent nothing.

    Raise an OcistreamError if it fails on either side; then nothing is visible at the destination.
    """
    if context.copy_options.all_tags or context.copy_options.tags:
        msg = "--all-tags and --tags do not work with --via"
        raise UsageError(msg, hint="copy the images one by one")
    check_shell_safe(destination)
    source_side, _ = context.sides
    source_side.check_options()
    source_location = parse_location_argument(source)
    remote_destination = parse_location_argument(destination, is_remote=True)
    context.check_result(source_location)
    if source_location.reference is None and (message := source_side.describe_unused_options()):
        context.console.info(message)
    plan = plan_copy([source_location], remote_destination, context.copy_options, is_remote=True)
    plan = plan.with_policy(context.access.load_trust_policy())
    _check_options(context)
    remote = _RemoteOcistream(context, plan.destination, via)

    def send() -> None:
        open_context = context.build_open_context(source_side, registries=plan.source_registries)
        source = open_source(source_location, open_context, plan.selection)
        run_transfer(context, plan, source, remote.open_destination(), find_omitted=remote.find_omitted)

    try:
        send()
    except PartialBlobLostError as error:
        if source_location.is_stream or context.cancelled.is_set():
            # The source cannot be read again, or this run is over.
            raise
        # The remote side lost or rejects the beginning of a blob. Neither side has read the complete blob, so the wrong
        # part is unknown: send everything again, and resume nothing.
        context.console.info(f"{error.message}; sending the complete blob")
        remote.can_resume = False
        send()


def _check_options(context: CommandContext) -> None:
    """Raise UsageError for an option without a meaning, or with a misleading one, if the remote side writes."""
    own = context.sides[-1].own
    refused: dict[str, tuple[object, str]] = {
        "dest-username": (own.username, _LOG_IN_REMOTELY),
        "dest-password-stdin": (own.password_stdin, _LOG_IN_REMOTELY),
        "dest-password-file": (own.password_file, _LOG_IN_REMOTELY),
        "dest-authfile": (own.authfile, _LOG_IN_REMOTELY),
        "dest-ca-cert": (own.ca_cert, _CONFIGURE_REMOTELY),
        "dest-client-cert": (own.client_cert, _CONFIGURE_REMOTELY),
        "dest-client-key": (own.client_key, _CONFIGURE_REMOTELY),
        "compress": (
            context.copy_options.compress,
            (
                "recompress the layers before or after this copy: the remote side cannot know digests of "
                "layers that do not exist yet"
            ),
        ),
        "split": (context.copy_options.split, "omit the option: --via sends one stream"),
        "have": (context.omission_options.have, _ASKED_REMOTELY),
        "base": (context.omission_options.base, _ASKED_REMOTELY),
        "only": (context.omission_options.only, _ASKED_REMOTELY),
    }
    for name, (value, hint) in refused.items():
        if value:
            msg = f"--{name} does not work with --via"
            raise UsageError(msg, hint=hint)


class _RemoteOcistream:
    """The remote ocistream: first queried for stored blobs, then sent the others."""

    def __init__(self, context: CommandContext, location: Location, via: tuple[str, str]) -> None:
        self._context = context
        self._location, text = location, location.text
        #: The location to query for stored blobs; None if the destination is replaced, not added to.
        self._query_location: str | None = None
        #: The command there that writes to the location.
        self._arguments = ["copy", "-", text]
        if location.reference is not None:
            self._query_location = f"{location.reference.registry}/{location.reference.repository}"
            self._arguments = ["push", str(location.reference)]
        elif location.kind == "oci":
            self._query_location = f"oci:{text.split(':')[1]}"
        elif location.kind == "path" and text.endswith("/"):
            self._query_location = f"oci:{text}"
        elif location.kind != "oci-archive" or location.is_stream:
            msg = f"{printable(text)!r} does not say whether it is a layout or an archive on the remote side"
            raise UsageError(msg, hint="write REGISTRY/REPO:TAG, oci:DIR or oci-archive:FILE")
        command, program = via
        self._command_line = [*split_command(command), *map(check_shell_safe, program.split())]
        self._destination: _RemoteArchiveDestination | None = None
        #: Whether to resume blobs that the remote side has in part.
        self.can_resume = True

    def open_destination(self) -> Destination:
        """Return the destination, which starts the remote command at the first write."""
        output = _RemoteOutput(lambda: self._start(self._arguments, self._push_options()))
        self._destination = _RemoteArchiveDestination(output, mtime=self._context.build_open_context().mtime)
        return self._destination

    def find_omitted(self, graph: Graph) -> Mapping[str, OmissionReason]:
        """Ask which blobs of a graph the remote side has.

        The answer is trusted like a list of --have: the remote side reports a blob that it lacks after all.
        """
        # The plain layers of a docker-archive are compressed on the way, so the digests that arrive are not known yet.
        sent = self._destination.stored(graph.blobs) if self._destination else set()
        digests = [blob.digest for blob in graph.blobs if blob.digest not in sent]
        if self._query_location is None or graph.has_plain_layers or not digests:
            return {}
        stored, answer = self._query(digests)
        self._report_version(answer)
        if self.can_resume and self._destination is not None:
            self._destination.partial_blobs = _find_resumable_blobs(graph, answer.partial_blobs)
            for digest, offset in self._destination.partial_blobs.items():
                self._context.console.info(f"{digest} resumes at byte {offset}: the remote side has the bytes before")
        return dict.fromkeys(sorted(stored), OmissionReason(HAVE, self._query_location))

    def _query(self, digests: Sequence[str]) -> tuple[set[str], HaveListReader]:
        pieces = format_have_list(["the expected blobs"], digests, version=__version__)
        queried = set(digests)

        def read(answer: IO[bytes]) -> tuple[set[str], HaveListReader]:
            reader = HaveListReader(answer, "the list of the remote side")
            try:
                return reader.find(queried), reader
            except ArchiveError as error:
                error.hint = "the command of --via must not print anything on stdout, such as a greeting"
                raise

        remote = self._start(["have", "--among", "-", self._query_location or ""], self._query_options())
        try:
            return remote.query(map(str.encode, pieces), read)
        except BaseException:
            remote.stop()
            raise

    def _report_version(self, reader: HaveListReader) -> None:
        other_versions = [version for version in reader.writers if version != __version__]
        if other_versions:
            self._context.console.info(
                f"the remote side has ocistream {printable(other_versions[0])}, this side has {__version__}"
            )

    # -- commands and options ------------------------------------------------------------------------------

    def _start(self, arguments: Sequence[str], options: Sequence[str]) -> RemoteCommand:
        """Start the remote command.

        It has no timeout: a registry there may be retried for minutes. `ssh -o ServerAliveInterval=N` detects a dead
        connection.
        """
        safe_arguments = [check_shell_safe(word) for word in (*arguments, *options)]
        # Only the first word of the command: others may be a password.
        self._context.console.info(
            f"running {printable(self._command_line[0])} ... {' '.join(safe_arguments)}", level=1
        )
        command = [*self._command_line, *safe_arguments]
        with self._context.console.suspend_display():
            remote = RemoteCommand(command, self._handle_message, self._context.cancelled)
            # Its output is printed here line by line; only prompts of the command itself go straight to the terminal.
            self._context.console.other_programs.add_command(lambda: remote.is_connecting)
        return remote

    def _query_options(self) -> list[str]:
        """Return the options of the destination, and those for the output of the remote ocistream.

        Its messages are JSON, errors with their exit codes too: what runs it (ssh, kubectl, docker) has other exit
        codes and messages of its own.
        """
        context, run = self._context, self._context.run_options
        registry = context.sides[-1].options
        options = ["--plain-http"] if registry.plain_http else []
        options += ["--insecure"] if registry.insecure else []
        options += ["--retries", f"{run.retries}", "--connect-timeout", f"{run.connect_timeout:g}"]
        options += ["--stall-timeout", f"{run.stall_timeout:g}"]
        if self._location.reference is not None:
            for repository in context.copy_options.mount_from:
                options += ["--mount-from", repository]
        verbosity = context.console.verbosity
        return [*options, "--log-format", "json", *(["-q"] if verbosity < 0 else ["-v"] * verbosity)]

    def _push_options(self) -> list[str]:
        options, run = self._query_options(), self._context.run_options
        if run.upload is not None:
            options += ["--upload", str(run.upload)]
        if run.limit_rate:
            options += ["--limit-rate", str(max(1, int(run.limit_rate)))]
        return [*options, "--progress", "json" if run.progress == "json" else "none"]

    # -- messages from the remote side ----------------------------------------------------------------

    def _handle_message(self, message: Mapping[str, Any] | str) -> None:
        """Print a message of the remote side. The progress bar is drawn on this side only."""
        console = self._context.console
        if isinstance(message, str):
            self._print_message(message, 0)
        elif isinstance(message.get("message"), str):
            self._print_message(message["message"], 1 if message.get("level") == "debug" else 0)
        elif self._context.run_options.progress == "json" and "event" in message:
            console.emit_event(**{**message, "side": "remote"})

    def _print_message(self, message: str, level: int) -> None:
        console = self._context.console
        console.info(message if console.as_json else f"remote: {message}", level=level, side="remote")


class _RemoteOutput(Output):
    """The stdin of the remote ocistream, as the output of an archive."""

    def __init__(self, start: Callable[[], RemoteCommand]) -> None:
        self._start = start
        self._remote: RemoteCommand | None = None
        #: The lines on its stdout, after its end.
        self.results: list[str] = []

    def write(self, chunk: Chunk) -> None:
        if self._remote is None:
            self._remote = self._start()
            self._remote.start_reading()
        self._remote.write(chunk)

    def finish(self) -> None:
        if self._remote is not None:
            self.results = self._remote.finish()
            self._remote = None

    def close(self) -> None:
        # Without the end of the archive, the remote side discards it.
        if self._remote is not None:
            remote, self._remote = self._remote, None
            remote.stop()


class _RemoteArchiveDestination(ArchiveDestination):
    """An archive that the remote ocistream reads from the connection.

    The rest of a blob has an entry name like a part of a volume, without a checksum after it: this archive is never
    stored.
    """

    def __init__(self, output: _RemoteOutput, *, mtime: int) -> None:
        super().__init__(output, mtime=mtime)
        self._remote_output = output
        #: How many bytes the remote side has of which blobs.
        self.partial_blobs: Mapping[str, int] = {}

    def begin(self, graph: Graph) -> None:
        """Write the index, with an annotation that says which blobs are resumed, and where.

        The annotation exists even if empty: it also says that the archive comes over a connection.
        """
        self.annotations = {PARTIAL_BLOBS: format_partial_blobs(self.partial_blobs)}
        super().begin(graph)

    def write(self, blob: VerifiedBlob) -> int:
        """Send a blob, or the rest of it. The last chunk is sent after the whole blob was verified.

        The blob is read from its beginning even to resume: only that proves the digest, and the source is near.
        """
        digest, size = blob.descriptor.digest, blob.descriptor.size
        start = self.partial_blobs.get(digest, 0)
        if blob.range is not None or not start:
            return super().write(blob)
        self._tar.add(part_name(digest, start), size - start, chunks_from(blob.open(), start))
        self._written.add(digest)
        return 0

    def commit(self, graph: Graph) -> None:
        """Write the end of the archive, and wait until the remote side has made the images visible."""
        super().commit(graph)
        _check_results(graph, self._remote_output.results)


def _find_resumable_blobs(graph: Graph, stored_sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the blobs to resume, and the offset of each: at least one byte remains to send.

    The remote side's sizes are checked against the graph; the remote side verifies the complete blobs.
    """
    configs = {document.config.digest for document in graph.documents.values() if document.config}
    return {
        blob.digest: min(stored_sizes[blob.digest], blob.size - 1)
        for blob in graph.blobs
        if limits.MIN_PARTIAL_SIZE <= stored_sizes.get(blob.digest, 0) <= blob.size and blob.digest not in configs
    }


def _check_results(graph: Graph, lines: Sequence[str]) -> None:
    """Raise IntegrityError unless the remote side reports the digests that were sent."""
    reported = {digest for line in lines if is_digest(digest := line.strip().rpartition("@")[2])}
    for root in graph.roots:
        if root.descriptor.digest not in reported:
            shown = f"{', '.join(map(printable, sorted(reported)[:3]))}" or "nothing"
            msg = f"sent {root.descriptor.digest}, but the remote side reports that it wrote {shown}"
            raise IntegrityError(msg)
