"""`CommandContext`: what shared options, environment and configuration mean to one run of a command.

It creates HTTP clients, credentials, the cache, upload records and open contexts when a command needs them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream.api.registries import RegistryAccess, load_configuration
from ocistream.cli.console import is_pipe
from ocistream.cli.sides import format_option
from ocistream.cli.standard_streams import (
    is_visible_on_stdout,
    open_stdin,
    open_stdout,
    result_on_stdout_error,
)
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.streams import files
from ocistream.streams.paths import real_path
from ocistream.streams.synchronization import once

if TYPE_CHECKING:
    import io
    import threading
    from collections.abc import Collection, Iterator, Sequence

    from ocistream.api.options import CopyOptions, RegistryOptions
    from ocistream.archive.outputs import Output
    from ocistream.cli.console import Console
    from ocistream.cli.options import OmissionOptions, RunOptions
    from ocistream.cli.sides import Side
    from ocistream.config.toml_files import TomlTable
    from ocistream.http.client import HttpClient
    from ocistream.http.retry import RetryEvent
    from ocistream.locations import Location, OpenContext

#: Shorter waits, in seconds, are reported only with -v.
_MIN_REPORTED_WAIT: Final = 5.0
#: Default name, in errors, of the input that is read from stdin.
ARCHIVE_INPUT: Final = "archive"
#: How the commands that do not take it as their first argument name an archive or layout instead of stdin.
_INPUT_USAGES: Final = {"copy": "copy PATH DST", "push": "push -i PATH"}
#: How commands name a file instead of stdout.
_OUTPUT_USAGES: Final = {"copy": "copy SRC FILE", "pull": "pull -o FILE"}


@dataclass(kw_only=True)
class CommandContext:
    """The shared options of one run, the console, and the objects that a transfer needs, created on first use."""

    #: The name of the command.
    command: str
    console: Console
    run_options: RunOptions
    registry_options: RegistryOptions
    #: The source and the destination of `copy`; the only side of other commands.
    sides: Sequence[Side]
    copy_options: CopyOptions
    omission_options: OmissionOptions
    #: The configuration file, if it was read for the defaults of the options.
    configuration: TomlTable | None = None
    #: How many requests were retried.
    retry_count: int = 0

    def __post_init__(self) -> None:
        """Prepare what all locations share; no file is read yet."""
        # The files of the configuration are read on first use: a command that contacts no registry does not fail for a
        # malformed file.
        self.access = RegistryAccess(
            self.run_options,
            os.environ,
            lambda: self.configuration or load_configuration(self.run_options.config, os.environ),
            use_mirrors=not self.run_options.no_mirrors,
        )
        self.cancelled: threading.Event = self.console.cancelled

    def build_open_context(self, side: Side | None = None, *, registries: Collection[str] = ()) -> OpenContext:
        """Return what opening a location needs, at one side: by default the first, which may be the only one.

        `registries` are the registries that the user named: a user name without a registry is for them.

        Each side has an HTTP client of its own: a copy may reach one registry in two ways at once.
        """
        side = side or self.sides[0]
        # Created once: stdin can be read for a password only once.
        keychain = once(functools.partial(side.build_keychain, self.access, registries))

        def format_hint(text: str) -> str:
            renamed = side.rename_options(text)
            if "ocistream login" not in text:
                return renamed
            auth_file = keychain().auth_file
            return side.add_login_options(renamed, auth_file[0] if auth_file is not None else None)

        def create_client() -> HttpClient:
            if side.names_credentials:
                # The error of an option does not depend on whether a registry asks for a credential.
                keychain()
            return self.access.create_client(
                side.options,
                lambda registry, repository: keychain().find(registry, repository),
                format_hint=format_hint,
                on_retry=self._report_retry,
                cancelled=self.cancelled,
            )

        open_context = self.access.build_open_context(create_client, self.cancelled)
        return replace(
            open_context,
            stdin=self.open_stdin,
            output=self._open_stdout,
            max_ratio=self.copy_options.max_ratio,
            is_dry_run=self.run_options.dry_run,
        )

    def check_result(self, *locations: Location) -> None:
        """Check that --result can be written; raise UsageError if it would overwrite a location, or mix with stdout.

        The last location is the destination, if the command has one: with --split, its name is that of volumes.
        """
        result = self.run_options.result
        # Without --result too: the error of an unreadable path comes before those of other options. A circle of links
        # is reported where the path is opened.
        paths = [
            real_path(location.path) for location in locations if location.path is not None and not location.is_stream
        ]
        if result is None:
            return
        from ocistream.cli.report import check_result_writable
        from ocistream.oci.volumes import is_template, parse_template

        if is_visible_on_stdout(result):
            raise result_on_stdout_error(str(result))
        problem = "is the archive itself" if real_path(result) in paths else ""
        name = locations[-1].path.name if self.copy_options.split and locations[-1].path is not None else ""
        # The plan says what is wrong with a name without %d.
        if is_template(name) and parse_template(name).parse_number(result.name) is not None:
            problem = "has the name of a volume"
        if problem:
            msg = f"--result {result} {problem}"
            raise UsageError(msg, hint="name another file: this one would be overwritten")
        check_result_writable(result)

    @contextlib.contextmanager
    def open_list(self, path: str) -> Iterator[tuple[io.BufferedReader, str]]:
        """Open a list, which is a file or stdin (`-`); yield it with its name in messages.

        Raise NotFoundError or LocalDiskError if it cannot be read, and UsageError if stdin is unusable.
        """
        label = describe_list(path)
        with files.disk_errors(f"cannot read {label}"):
            if path == "-":
                yield self.open_stdin("list", "pipe a list into stdin, or name its file"), label
                return
            with Path(path).open("rb") as file:
                yield file, label

    def open_stdin(self, what: str = ARCHIVE_INPUT, hint: str | None = None) -> io.BufferedReader:
        """Open stdin to read `what` from it; `hint` is for the UsageError if stdin is closed or a terminal.

        Without a hint, the error says how this command names a file.

        The console becomes terse if an archive comes by a pipe and stderr is not a terminal, unless the user asked for
        more output.
        """
        for name, options in (group for side in self.sides for group in side.groups):
            if options.password_stdin:
                msg = f"stdin cannot be both the {what} and the password"
                option = format_option(name, "password-file")
                raise UsageError(msg, hint=f"use {option}, or read the {what} from a file")
        if hint is None:
            usage = _INPUT_USAGES.get(self.command, f"{self.command} PATH")
            hint = f"pipe an archive into stdin, or name a file or directory (`{usage}`)"
        file = open_stdin(what, hint, self.cancelled)
        self.console.other_programs.add_pipe(file.fileno())
        if what == ARCHIVE_INPUT:
            has_terminal = sys.stderr is not None and sys.stderr.isatty()
            wants_more_output = self.run_options.progress not in {"auto", "none"} or self.console.verbosity > 0
            self.console.is_terse = is_pipe(file.fileno()) and not has_terminal and not wants_more_output
        return file

    def _report_retry(self, retry: RetryEvent) -> None:
        self.retry_count += 1
        self.console.info(
            f"{retry.message}; retrying in {retry.wait:.1f} s ({retry.count} of {retry.limit})",
            level=0 if retry.wait >= _MIN_REPORTED_WAIT else 1,
        )

    def _open_stdout(self) -> Output:
        from ocistream.archive.outputs import StreamOutput

        file = open_stdout(_OUTPUT_USAGES[self.command])
        self.console.other_programs.add_pipe(file.fileno())
        return StreamOutput(file, "to stdout")


def describe_list(path: str) -> str:
    """Return the name of a list in messages."""
    return "the list on stdin" if path == "-" else printable(path, 1024)
