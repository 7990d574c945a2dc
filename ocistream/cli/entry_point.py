"""`main`: find the command, run it, report the error and return the exit code.

`COMMANDS` is the table of commands. It holds names and one-line help, so that `--help` imports no command.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from ocistream import __version__, notices, process_exit
from ocistream.cli.console import Console
from ocistream.cli.signals import SignalReceivedError, run_until_signal
from ocistream.errors import IntegrityError, LocalDiskError, OcistreamError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams import files, partial_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem

PROGRAM: Final = "ocistream"
#: Command name to "module:attribute" and the line of `ocistream --help`, which need not import the commands.
COMMANDS: Final = {
    "pull": ("ocistream.cli.commands.pull:pull", "Pull images from registries into an archive (default: stdout)."),
    "push": ("ocistream.cli.commands.push:push", "Push the images of an archive (default: stdin) to a registry."),
    "copy": ("ocistream.cli.commands.copy:copy", "Copy images between registries, layouts and archives."),
    "verify": (
        "ocistream.cli.commands.verify:verify",
        "Verify archives, layouts and images in registries (default: stdin).",
    ),
    "inspect": ("ocistream.cli.commands.inspect:inspect", "Show images, platforms, layers and sizes of a location."),
    "digest": ("ocistream.cli.commands.digest:digest", "Print the digest of an image."),
    "tags": ("ocistream.cli.commands.tags:tags", "List the tags of a repository, or the names of an archive."),
    "have": ("ocistream.cli.commands.have:have", "List the digests of the blobs that a location has."),
    "sync": ("ocistream.cli.commands.sync:sync", "Copy the images that a TOML file lists, but only what differs."),
    "gc": ("ocistream.cli.commands.gc:gc", "Delete blobs that no image in a layout needs."),
    "config": ("ocistream.cli.commands.config:config", "Show the effective settings, or check a configuration file."),
    "rm": ("ocistream.cli.commands.rm:rm", "Remove images from a layout directory or a registry."),
    "serve": ("ocistream.cli.commands.serve:serve", "Serve a layout directory, or an archive, as a registry."),
    "login": ("ocistream.cli.commands.login:login", "Check a credential for a registry, and store it."),
    "logout": ("ocistream.cli.commands.login:logout", "Delete the stored credential of a registry."),
    "completion": (
        "ocistream.cli.commands.completion:completion",
        "Print the script for shell completion.",
    ),
}

_HELP_OPTIONS: Final = ["-h", "--help"]
#: Commands whose only effect is their output.
_PRINTING_COMMANDS: Final = frozenset({"completion", "config", "digest", "have", "help", "inspect", "tags", "version"})
#: Commands that stand for an option: `help [COMMAND]` and `version`.
_OPTION_COMMANDS: Final = {"help": "--help", "version": "--version"}
#: The beginning of click's message about arguments that the command does not take.
EXTRA_ARGUMENT: Final = "Got unexpected extra argument"
#: Python's message if the system allows no more threads.
_NO_THREAD_MESSAGE: Final = "can't start new thread"
_THREAD_LIMIT_HINT: Final = (
    "the limit of processes or memory is reached: raise it (`ulimit -u`, or the container's PID limit), or use --jobs 1"
)
#: Errors of writing to stdout. All other writes convert their errors where they happen.
_STDOUT_ERRNOS: Final = frozenset({errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPIPE})


def load_command(name: str) -> click.Command:
    """Import a command of `COMMANDS`."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command), name  # noqa: S101 - the table is ours
    return command


def _has_settings(arguments: Sequence[str]) -> bool:
    """Return whether a variable or a configuration file may set options of the command. No file is opened."""
    if any(name.startswith("OCISTREAM_") for name in os.environ):
        return True
    if any(argument.partition("=")[0] == "--config" for argument in arguments):
        return True
    from pathlib import Path

    from ocistream.streams.paths import SYSTEM_CONFIG_FILE, user_config_file

    user_file = user_config_file(os.environ, Path(os.environ.get("HOME") or "/"))
    # A file in a directory that this user may not search counts as absent; a command that needs it reports the error.
    return any(os.path.exists(path) for path in (user_file, SYSTEM_CONFIG_FILE))  # noqa: PTH110 - it never raises


class LazyGroup(click.Group):
    """A group that imports a command when it is called."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command; None if there is none of that name."""
        return load_command(name) if name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, with its defaults from environment and configuration if there are any.

        Raise UsageError with a suggestion if the command is another tool's, or has a similar name.
        """
        if args and args[0] not in COMMANDS and not ctx.resilient_parsing:
            import difflib

            from ocistream.cli.usage_errors import suggest_command

            hint = suggest_command(args[0])
            if hint is None and (close := difflib.get_close_matches(args[0], COMMANDS, n=2)):
                hint = f"did you mean {' or '.join(close)}? see `{PROGRAM} --help`"
            if hint is not None:
                msg = f"No such command {printable(args[0])!r}."
                raise UsageError(msg, hint=hint)
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None and not ctx.resilient_parsing and _has_settings(rest):
            from ocistream.cli.settings import apply_defaults

            apply_defaults(ctx, name, command, rest)
        return name, command, rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Return the commands that begin with `incomplete`, without importing them, and the options."""
        from ocistream.cli.commands.completion import complete_commands

        table = ((name, line) for name, (_, line) in COMMANDS.items())
        return [*complete_commands(table, incomplete), *super().shell_complete(ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": _HELP_OPTIONS})
@click.version_option(__version__, message="%(prog)s %(version)s", help="Show the version; also: `ocistream version`.")
@click.help_option(*_HELP_OPTIONS, help="Show this page; also: `ocistream help`.")
def cli() -> None:
    """Copy container images as streams: from a registry, through a pipe or a file, into another registry.

    \b
    ocistream pull nginx:1 | ssh host ocistream push localhost:5000/nginx:1
    ocistream pull --help   # options and examples; or: ocistream help pull
    """


def main(arguments: Sequence[str], *, ends_process: bool = False) -> int:
    """Run a command line and return its exit code (README, "Commands").

    Call it in the main thread, which handles signals. If `ends_process`, the caller ends the process with the code: the
    signal handlers are not restored.
    """
    console = Console.from_arguments(arguments)
    # Only without arguments, so that a variable left in the environment does no harm.
    if not arguments and (instruction := os.environ.get("_OCISTREAM_COMPLETE")):
        from ocistream.cli.commands.completion import print_completions

        return print_completions(cli, instruction)
    if not arguments:
        click.echo(cli.make_context(PROGRAM, [], resilient_parsing=True).get_help(), err=True)
        return UsageError.exit_code
    partial_files.reset()
    process_exit.reset()
    notices.set_listener(console.info)
    # An error that Python cannot raise, such as in `__del__`, would otherwise be printed on stderr.
    sys.unraisablehook = partial(_report_unraisable, console)
    try:
        _require_stdout(arguments)
        return _run(_replace_option_command(arguments), console, ends_process=ends_process)
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user
        if isinstance(error, SignalReceivedError):
            process_exit.run_callbacks()
        partial_files.clean_up_unfinished(ends_process=ends_process)
        code = _report_error(console, error)
        console.print_traceback(partial(_format_traceback, error))
        return code
    finally:
        _flush_streams()


def _require_stdout(arguments: Sequence[str]) -> None:
    """Raise LocalDiskError if stdout is closed (`>&-`), and the command does nothing but print a result there.

    Other commands do their work without it: Python has no stdout then, and their result lines are discarded.
    """
    if sys.stdout is None and arguments and arguments[0] in _PRINTING_COMMANDS:
        msg = "cannot write the result to stdout: it is closed"
        raise LocalDiskError(msg, hint="to discard the result, redirect it to /dev/null")


def _replace_option_command(arguments: Sequence[str]) -> Sequence[str]:
    """Return the arguments, with the option in place of `help [COMMAND]` and `version`.

    Raises:
        UsageError: further arguments follow.
    """
    if not arguments or (option := _OPTION_COMMANDS.get(arguments[0])) is None:
        return arguments
    rest = [argument for argument in arguments[1:] if argument not in _HELP_OPTIONS]
    topic, extra = (rest[:1], rest[1:]) if option == "--help" else ([], rest)
    if extra:
        msg = f"{EXTRA_ARGUMENT} ({printable(extra[0])})."
        raise UsageError(msg, hint=f"write `{PROGRAM} help [COMMAND]` or `{PROGRAM} version`")
    # `help help` and `help version` are about commands that have no page of their own.
    return [*(name for name in topic if name not in _OPTION_COMMANDS), option]


def _run(arguments: Sequence[str], console: Console, *, ends_process: bool) -> int:
    """Run a command line without click's own `main`, which has other exit codes for Ctrl-C and for a closed pipe."""
    try:
        # Only the program's own options are parsed here: `--help` and `--version` need no worker thread.
        with cli.make_context(PROGRAM, list(arguments), obj=console) as context:
            run_until_signal(lambda: _invoke(context), console.cancelled, restores_handlers=not ends_process)
    except click.exceptions.Exit as end:
        _flush_stdout()
        return end.exit_code
    return 0


def _invoke(context: click.Context) -> None:
    """Parse the arguments of the command and run it, in the worker thread."""
    cli.invoke(context)
    _flush_stdout()


def _flush_stdout() -> None:
    """Flush stdout, so that a full disk or a closed pipe behind it is a failure of the run."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _report_error(console: Console, error: BaseException) -> int:
    """Print an error and return its exit code. Exit codes of our errors are attributes of their classes."""
    if isinstance(error, SignalReceivedError):
        message = "interrupted" if error.number == signal.SIGINT else "terminated"
        if console.is_server:
            # A signal is the normal end of a server.
            console.info(message, code=error.exit_code)
        else:
            console.error(message, hint=_resume_hint(), code=error.exit_code)
        return error.exit_code
    if isinstance(error, click.ClickException):
        from ocistream.cli.usage_errors import describe_usage_error

        message, hint = describe_usage_error(error)
        console.error(message, hint=hint, code=UsageError.exit_code)
        return UsageError.exit_code
    # Not at the top: `--version` does not need it.
    from ocistream.cli.standard_streams import StdoutClosedError, stdout_error

    if isinstance(error, OSError) and error.errno in _STDOUT_ERRNOS:
        error = stdout_error(error)
    if isinstance(error, RuntimeError) and _NO_THREAD_MESSAGE in str(error):
        error = OcistreamError("cannot start another thread", hint=_THREAD_LIMIT_HINT)
    if isinstance(error, OSError) and isinstance(error.filename, str):
        # No caller handled this file error, but the user can act on the path and the cause.
        error = files.disk_error(f"cannot access {error.filename}", error)
    if isinstance(error, StdoutClosedError):
        # The exit code alone says it, as with other tools.
        console.info(error.message, level=1)
        return error.exit_code
    if isinstance(error, OcistreamError):
        # A run that is repeated does not repair wrong content.
        resume_hint = None if isinstance(error, IntegrityError) else _resume_hint()
        hint = "; ".join(text for text in (error.hint, *notices.failure_hints(error.message), resume_hint) if text)
        message = notices.add_failure_prefixes(error.message)
        console.error(message, hint=hint or None, code=error.exit_code, kind=error.kind)
        return error.exit_code
    console.error(
        f"internal error: {type(error).__name__}: {error}",
        hint="this is a bug in ocistream: please report it with the output of the same command with -vv",
        code=1,
    )
    return 1


def _resume_hint() -> str | None:
    """Return what the same command can resume, or None."""
    # Not at the top: `--version` does not need it.
    from ocistream.sizes import format_count, format_size

    texts = []
    if sizes := partial_files.kept_files():
        path, *others = sizes
        where = f"{len(sizes)} files in {path.parent}" if others else f"{path}"
        size = format_size(sum(sizes.values()))
        texts.append(f"{size} are stored in {printable(where, 1024)}: re-run the same command to resume")
    for registry, (count, stored) in process_exit.count_resumable().items():
        blobs = format_count(count, "unfinished blob")
        texts.append(f"{registry} has stored {format_size(stored)} of {blobs}: re-run the same command to resume")
    for registry, count in process_exit.count_unconfirmed().items():
        blobs = format_count(count, "blob")
        texts.append(
            f"{registry} may have stored a part of {blobs}: re-run the same command; it reports what it resumes"
        )
    return "; ".join(texts) or None


def _format_traceback(error: BaseException) -> str:
    """Return the stack of an error and the types of its causes, without their texts: those may hold signed URLs."""
    # Imported here, because `--version` would spend a twentieth of its time on it.
    import traceback

    lines = ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)]
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        # An error can be among the causes of its own cause.
        seen.add(id(cause))
        lines.append(f"{type(cause).__name__}\n")
        cause = cause.__cause__ or cause.__context__
        if cause is not None:
            lines.append(f"caused by\n{''.join(traceback.format_tb(cause.__traceback__))}")
    return "".join(lines)


def _report_unraisable(console: Console, problem: sys.UnraisableHookArgs) -> None:
    """Print a traceback of an error that Python could not raise, at verbosity 2."""
    if problem.exc_value is not None:
        console.print_traceback(partial(_format_traceback, problem.exc_value))


def _flush_streams() -> None:
    """Flush stdout and stderr, or redirect them to the null device.

    Python's own flush at exit would complain and end with 120. A full disk behind stderr is not a failure, and one
    behind stdout was reported before.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                null_device = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null_device, stream.fileno())
                os.close(null_device)
