"""`main`: find the command, run it, report the error and return the exit code.

`COMMANDS` is the table of commands. It holds names and one-line help, so that `--help` imports no command.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from ocistream import __version__, notices, open_uploads
from ocistream.cli.console import Console
from ocistream.cli.signals import SignalHandler
from ocistream.errors import IntegrityError, OcistreamError, TerminatedError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams import files, partial_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "load_command", "main"]

_NAME: Final = "ocistream"
#: Name to "module:attribute", and the line that `ocistream --help` shows, so that it need not import them.
COMMANDS: Final = {
    "pull": ("ocistream.cli.commands.pull:pull", "Write images from registries into an archive (default: stdout)."),
    "push": ("ocistream.cli.commands.push:push", "Push the images of an archive (default: stdin) to a registry."),
    "copy": ("ocistream.cli.commands.copy:copy", "Copy an image from any end to any end."),
    "verify": (
        "ocistream.cli.commands.verify:verify",
        "Check an archive or a layout, offline, in one pass (default: stdin).",
    ),
    "inspect": ("ocistream.cli.commands.inspect:inspect", "Show what an end holds: images, platforms, layers, sizes."),
    "have": ("ocistream.cli.commands.have:have", "List the digests that an end holds, or which of a list it holds."),
    "sync": ("ocistream.cli.commands.sync:sync", "Copy many images, as a TOML file has them; only what differs."),
    "gc": ("ocistream.cli.commands.gc:gc", "Drop what no image in a layout needs, all of it or down to a size."),
    "config": ("ocistream.cli.commands.config:config", "Show what is set by file and environment, or check a file."),
    "rm": ("ocistream.cli.commands.rm:rm", "Remove images from a layout directory, by name."),
    "serve": ("ocistream.cli.commands.serve:serve", "Serve a layout directory, or an archive, as a registry."),
    "login": ("ocistream.cli.commands.login:login", "Check a registry's credential and keep it in Docker's file."),
    "logout": ("ocistream.cli.commands.login:logout", "Forget a registry's credential."),
    "completion": (
        "ocistream.cli.commands.completion:completion",
        "Print what makes a shell complete this command line.",
    ),
}

_SIGINT_EXIT: Final = 130
#: What Python says where the system has no more threads to give.
_NO_THREAD_MESSAGE: Final = "can't start new thread"
_THREAD_LIMIT_HINT: Final = (
    "the limit of processes or memory is reached: raise it (`ulimit -u`, or the container's PID limit), or use --jobs 1"
)
#: How writing to stdout fails. Whatever else is written turns its errors into ours where it is written.
_STDOUT_ERRNOS: Final = frozenset({errno.EPIPE, errno.ENOSPC})


def load_command(name: str) -> click.Command:
    """Import a command of the table."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command), name  # noqa: S101 - the table is ours
    return command


def _has_settings(arguments: Sequence[str]) -> bool:
    """Say whether there may be anything but the command line: a variable, or a file, which is not opened here."""
    if any(name.startswith("OCISTREAM_") for name in os.environ):
        return True
    if any(argument.partition("=")[0] == "--config" for argument in arguments):
        return True
    from pathlib import Path

    from ocistream.streams.xdg import SYSTEM_CONFIG_FILE, user_config_file

    own = user_config_file(os.environ, Path(os.environ.get("HOME") or "/"))
    # One that this user may not even look for is not theirs; where it is needed, it is an error.
    return any(os.path.exists(path) for path in (own, SYSTEM_CONFIG_FILE))  # noqa: PTH110 - it never raises


class LazyGroup(click.Group):
    """Imports a command when it is called."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        command = load_command(name) if name in COMMANDS else None
        if command is not None and ctx.resilient_parsing:
            # A shell asks what may follow.
            from ocistream.cli.commands.completion import mark_path_parameters

            mark_path_parameters(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and what its options are by environment and configuration, if there is any of it.

        Raises:
            UsageError: there is none of that name, and some like it.
        """
        if args and args[0] not in COMMANDS and not ctx.resilient_parsing:
            import difflib

            if close := difflib.get_close_matches(args[0], COMMANDS, n=2):
                msg = f"No such command {printable(args[0])!r}."
                raise UsageError(msg, hint=f"did you mean {' or '.join(close)}? see `{_NAME} --help`")
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None and not ctx.resilient_parsing and _has_settings(rest):
            from ocistream.cli.settings import apply_defaults

            apply_defaults(ctx, name, command, rest)
        return name, command, rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Give the commands that begin so without importing them, or the options."""
        from ocistream.cli.commands.completion import complete_commands

        table = ((name, line) for name, (_, line) in COMMANDS.items())
        return [*complete_commands(table, incomplete), *super().shell_complete(ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Move container images as a stream: out of a registry, through a pipe or a file, into another.

    \b
    ocistream pull nginx:1 | ssh host ocistream push localhost:5000/nginx:1
    """


def main(arguments: Sequence[str], *, ends_process: bool = False) -> int:
    """Run a command line and give its exit code (README, "Commands").

    It is for the main thread, since it takes signals. If it `ends_process` with that code, they stay without effect.
    """
    console = Console.from_arguments(arguments)
    if not arguments and (instruction := os.environ.get("_OCISTREAM_COMPLETE")):
        from ocistream.cli.commands.completion import print_completions

        return print_completions(cli, instruction)
    if not arguments:
        click.echo(cli.make_context(_NAME, [], resilient_parsing=True).get_help(), err=True)
        return UsageError.exit_code
    partial_files.reset()
    open_uploads.reset()
    notices.set_listener(console.info)
    interruption = SignalHandler(partial(_finish_without_main_thread, console))
    # A signal may strike while a library makes an object, whose half then fails to go: no news to a user.
    sys.unraisablehook = partial(_report_unraisable, console, interruption)
    interruption.install()
    try:
        return _run_to_exit_code(arguments, console, interruption)
    except (KeyboardInterrupt, TerminatedError) as error:
        # It came out where another error was about to be reported. There is no second one.
        return _handle_failure(console, interruption, error)
    finally:
        _flush_streams()
        if not ends_process:
            interruption.restore()


def _run_to_exit_code(arguments: Sequence[str], console: Console, interruption: SignalHandler) -> int:
    """Run, and give the exit code of however it ends."""
    try:
        interruption.enable()
        code = _run(arguments, console)
        # One that came before the end counts, whatever the run came to meanwhile.
        interruption.check()
        interruption.finish()
    except (Exception, KeyboardInterrupt, TerminatedError) as error:  # noqa: BLE001 - no traceback reaches a user
        return _handle_failure(console, interruption, error)
    return code


def _run(arguments: Sequence[str], console: Console) -> int:
    """Parse and run, without click's own `main`: it has other exit codes for Ctrl-C and for a closed pipe."""
    code = 0
    try:
        with cli.make_context(_NAME, list(arguments), obj=console) as context:
            cli.invoke(context)
    except click.exceptions.Exit as end:
        code = end.exit_code
    # Flushed here, so that a full disk or a closed pipe behind stdout is a failure.
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


def _handle_failure(console: Console, interruption: SignalHandler, error: BaseException) -> int:
    """Clear up and say what went wrong. Whatever else fails once a signal has come is that signal's doing."""
    interruption.disable()
    files.clean_up_unfinished()
    interruption.finish()
    code = _report_error(console, interruption.build_error() or error)
    console.print_traceback(partial(_format_traceback, error))
    return code


def _finish_without_main_thread(console: Console, error: BaseException) -> None:
    """Settle what can be settled without the main thread, which still waits for something."""
    files.clean_up_unfinished()
    _report_error(console, error)


def _report_error(console: Console, error: BaseException) -> int:
    """Say what went wrong, and give the exit code for it."""
    if isinstance(error, KeyboardInterrupt):
        _report_signal(console, "interrupted", _SIGINT_EXIT)
        return _SIGINT_EXIT
    if isinstance(error, TerminatedError):
        _report_signal(console, "terminated", error.exit_code)
        return error.exit_code
    if isinstance(error, click.ClickException):
        # Some of click's messages have lines of their own for each choice.
        console.error(" ".join(error.format_message().split()), hint=_usage_hint(error), code=UsageError.exit_code)
        return UsageError.exit_code
    if isinstance(error, OSError) and error.errno in _STDOUT_ERRNOS:
        error = files.disk_error("cannot write to stdout", error)
    if isinstance(error, RuntimeError) and _NO_THREAD_MESSAGE in str(error):
        error = OcistreamError("no further thread can be started", hint=_THREAD_LIMIT_HINT)
    if isinstance(error, OSError) and isinstance(error.filename, str):
        # A file that no code above has handled: the user can act on the path and the cause.
        error = files.disk_error(f"cannot access {error.filename}", error)
    if isinstance(error, OcistreamError):
        # What is wrong in itself is so the next time, too.
        kept = None if isinstance(error, IntegrityError) else _resume_hint()
        hint = "; ".join(text for text in (error.hint, *notices.failure_hints(), kept) if text)
        console.error(error.message, hint=hint or None, code=error.exit_code, kind=error.kind)
        return error.exit_code
    console.error(
        f"internal error: {type(error).__name__}: {error}",
        hint="this is a bug in ocistream: please report it with what the same command says with -vv",
        code=1,
    )
    return 1


def _report_signal(console: Console, message: str, code: int) -> None:
    if console.is_server:
        # That is how servers end.
        console.info(message, code=code)
    else:
        console.error(message, hint=_resume_hint(), code=code)


def _resume_hint() -> str | None:
    """Say what is left for the same command to go on with, if anything is."""
    return "; ".join(text for text in (_file_resume_hint(), _registry_resume_hint()) if text) or None


def _registry_resume_hint() -> str | None:
    stored, uncertain = open_uploads.count_resumable(), open_uploads.count_unconfirmed()
    if not stored and not uncertain:
        return None
    from ocistream.cli.progress import format_count
    from ocistream.sizes import format_size

    texts = [
        f"{registry} has stored {format_size(size)} of {format_count(count, 'unfinished blob')}: "
        "re-run the same command to resume"
        for registry, (count, size) in stored.items()
    ] + [
        f"{registry} may have stored a part of {format_count(count, 'blob')}: "
        "re-run the same command; it reports what it resumes"
        for registry, count in uncertain.items()
    ]
    return "; ".join(texts)


def _file_resume_hint() -> str | None:
    kept = partial_files.kept_files()
    if not kept:
        return None
    from ocistream.cli.progress import format_size

    path, *others = kept
    where = f"{len(kept)} files in {path.parent}" if others else f"{path}"
    return (
        f"{format_size(sum(kept.values()))} are kept in {printable(where, 1024)}: the same command goes on from there"
    )


def _format_traceback(error: BaseException) -> str:
    """Give the stack of an error and the kinds of its causes, whose own texts may hold signed URLs."""
    lines = ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)]
    cause: BaseException | None = error
    while cause is not None:
        lines.append(f"{type(cause).__name__}\n")
        cause = cause.__cause__ or cause.__context__
        if cause is not None:
            lines.append(f"caused by\n{''.join(traceback.format_tb(cause.__traceback__))}")
    return "".join(lines)


def _report_unraisable(console: Console, interruption: SignalHandler, problem: sys.UnraisableHookArgs) -> None:
    """Print what Python could raise nowhere, for those who asked for tracebacks."""
    interruption.raise_again(problem.exc_value)
    if problem.exc_value is not None:
        console.print_traceback(partial(_format_traceback, problem.exc_value))


def _usage_hint(error: click.ClickException) -> str | None:
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and context is not None:
        from ocistream.cli.registry_options import suggest_option

        known = [name for parameter in context.command.params for name in parameter.opts]
        if (hint := suggest_option(error.option_name, known)) is not None:
            return hint
    return f"see `{context.command_path} --help`" if context is not None else None


def _flush_streams() -> None:
    """Write out what the streams still hold, or point them at nothing.

    Python's own flush at exit would complain, and end with 120: a full disk behind stderr is no failure of ours, and
    one behind stdout has been reported by now.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, stream.fileno())
                os.close(nothing)
