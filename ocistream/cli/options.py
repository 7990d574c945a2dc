"""Options that several commands share, each declared once: network, TLS, credentials, platform, upload, split.

`transfer_options` decorates a command and passes it one `CommandContext` in place of all shared options.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from ocistream import limits
from ocistream.api import settings
from ocistream.cli.context import PASSWORD_ON_STDIN, CommandContext
from ocistream.cli.parameter_types import WholeNumber, check_number, parse_memory, parse_rate
from ocistream.cli.registry_options import SIDE_OPTIONS
from ocistream.cli.standard_streams import result_on_stdout_error
from ocistream.errors import UsageError
from ocistream.oci.platforms import parse_platform_choice
from ocistream.registry.upload_strategy import parse_upload_method
from ocistream.streams.memory import return_large_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.api.copy_plan import CopyOptions
    from ocistream.cli.console import Console
    from ocistream.registry.upload_strategy import UploadMethod

__all__ = [
    "cache_option",
    "memory_option",
    "platform_option",
    "read_copy_options",
    "referrers_option",
    "split_option",
    "transfer_options",
]

#: At most a day; a socket accepts no more.
_TIMEOUT_SECONDS: Final = click.FloatRange(0, 86_400, min_open=True)


def tls_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --ca-cert, --client-cert, --client-key, --cert-dir, --insecure and --plain-http."""
    return _combine_decorators(
        click.option(
            "--ca-cert",
            metavar="FILE",
            help="Trust these CAs (PEM) too, beside the system's or those of SSL_CERT_FILE, for all hosts.",
        ),
        click.option(
            "--client-cert",
            metavar="FILE",
            help="Show this client certificate (PEM) to a registry that is named here and asks for one, and to no "
            "other host.",
        ),
        click.option("--client-key", metavar="FILE", help="Its key, if it is not in the same file."),
        click.option(
            "--cert-dir",
            metavar="DIR",
            help="Take *.crt, *.cert and *.key from here for every registry that is named, and not from certs.d.",
        ),
        click.option(
            "--insecure",
            is_flag=True,
            help="Do not check the certificates of the registries that are named. Other hosts to which they lead are "
            "checked.",
        ),
        click.option("--plain-http", is_flag=True, help="Speak HTTP, not HTTPS, to hosts other than this one."),
    )(command)


def config_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --config."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Configuration of registries and mirrors.  [default: ~/.config/ocistream/config.toml]",
    )(command)


def network_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --retries, time-outs, limits, --config, --no-mirrors, and the options of `tls_options`."""
    return _combine_decorators(
        click.option(
            "--retries",
            type=WholeNumber(0, settings.MAX_RETRIES),
            default=settings.RETRIES,
            show_default=True,
            help="Tries after the first one.",
        ),
        click.option(
            "--connect-timeout",
            type=_TIMEOUT_SECONDS,
            callback=check_number,
            metavar="SECONDS",
            default=settings.CONNECT_TIMEOUT,
            show_default=True,
            help="How long connecting may take.",
        ),
        click.option(
            "--stall-timeout",
            type=_TIMEOUT_SECONDS,
            callback=check_number,
            metavar="SECONDS",
            default=settings.STALL_TIMEOUT,
            show_default=True,
            help="Give a connection up when no byte has moved for so long. There is no limit for the whole.",
        ),
        click.option(
            "--limit-rate",
            metavar="RATE",
            callback=parse_rate,
            help="Bytes in a second, in each direction, over all connections together: 500k, 10M, 1G; k is 1024.",
        ),
        click.option(
            "--max-requests-per-second",
            type=click.FloatRange(0, 10_000, min_open=True),
            callback=check_number,
            metavar="N",
            help="Begin no more than N requests in a second, to each host.",
        ),
        tls_options,
        config_option,
        click.option("--no-mirrors", is_flag=True, help="Ask the registry itself only, no mirror of it."),
    )(command)


def progress_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --progress."""
    return click.option(
        "--progress",
        type=click.Choice(["auto", "bar", "plain", "json", "none"]),
        default="auto",
        show_default=True,
        help="How progress is shown on stderr; json makes the messages there JSON as well.",
    )(command)


def memory_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that reads from registries --memory."""
    return click.option(
        "--memory",
        default=f"{limits.PREFETCH_MEMORY // limits.MIB}MiB",
        show_default=True,
        callback=parse_memory,
        metavar="SIZE",
        help="What may be fetched ahead where a registry sends slowly, over up to --jobs connections. More of it is "
        "faster there.",
    )(command)


def cache_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that reads from registries --cache."""
    return click.option(
        "--cache",
        metavar="DIR",
        help="A layout directory, made where there is none: what is in it is not fetched, and what is fetched is kept "
        "there. Several runs may share it; `ocistream gc --max-size` trims it.",
    )(command)


def transfer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of every transfer, and pass it a `CommandContext`."""
    return _combine_decorators(
        click.option(
            "--jobs",
            type=WholeNumber(1, settings.MAX_JOBS),
            default=settings.JOBS,
            show_default=True,
            help="Blobs moved at once, and connections over which they are fetched ahead.",
        ),
        network_options,
        progress_option,
        click.option(
            "--result",
            type=click.Path(dir_okay=False),
            callback=_parse_result_path,
            help="Write what was done as JSON.",
        ),
        context_options,
    )(command)


def _parse_result_path(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Path | None:
    """Return the path of --result; stdout is an error.

    A file called `-` must be written `./-`. A `Path` drops the `./`, so the text is checked here.
    """
    if value == "-":
        raise result_on_stdout_error(value)
    if value == "":
        msg = "--result '' is no path"
        raise UsageError(msg)
    return None if value is None else Path(value)


def context_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the common options, and pass it a `CommandContext` of them and of the options above."""

    @verbosity_options
    @click.pass_obj
    @functools.wraps(command)
    def wrapped(console: Console, /, **options: Any) -> None:
        apply_verbosity(console, options)
        context_options = {key: options.pop(key) for key in list(options) if key in _CONTEXT_OPTIONS}
        if sum(bool(context_options.get(name)) for name in PASSWORD_ON_STDIN) > 1:
            msg = "only one password can come on stdin"
            others = "--src-password-file, --dest-password-file, OCISTREAM_SRC_PASSWORD or OCISTREAM_DEST_PASSWORD"
            raise UsageError(msg, hint=f"give the other one with {others}")
        return_large_blocks()
        command(CommandContext(console, context_options, console.cancelled), **options)

    return wrapped


_CONTEXT_OPTIONS: Final = frozenset(
    {
        "jobs",
        "memory",
        "cache",
        "retries",
        "connect_timeout",
        "stall_timeout",
        "limit_rate",
        "max_requests_per_second",
        "ca_cert",
        "client_cert",
        "client_key",
        "cert_dir",
        "insecure",
        "plain_http",
        "config",
        "no_mirrors",
        "progress",
        "result",
        "compress",
        "max_ratio",
        "upload",
        "mount_from",
        "have",
        "base",
        "only",
        "no_referrers",
        "split",
        "username",
        "password_stdin",
        "password_file",
        "authfile",
        *SIDE_OPTIONS,
    }
)


def referrers_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --no-referrers."""
    return click.option(
        "--no-referrers",
        is_flag=True,
        help="Leave behind what hangs on an image: signatures, SBOMs, attestations.",
    )(command)


def read_copy_options(
    context: CommandContext,
    platforms: Sequence[str],
    *,
    images: Sequence[str] = (),
    all_tags: bool = False,
    tags: Sequence[str] = (),
) -> CopyOptions:
    """Return the options of a copy that a command got."""
    from ocistream.api.copy_plan import CopyOptions

    options = context.options
    return CopyOptions(
        platforms=platforms,
        images=images,
        all_tags=all_tags,
        tags=tags,
        referrers=not options["no_referrers"],
        compress=options["compress"],
        max_ratio=int(options["max_ratio"]),
        split=int(options.get("split", 0)),
        mount_from=options.get("mount_from", ()),
    )


def compression_options(note: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command --compress and --max-ratio; `note` is appended to the help text."""
    return _combine_decorators(
        click.option(
            "--compress",
            metavar="gzip|zstd|none[:LEVEL]",
            callback=_check_compression,
            help="Compress layers anew that are not so already, which changes the image's digest. "
            f"High levels of zstd take hundreds of MB. {note}",
        ),
        max_ratio_option,
    )


def max_ratio_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --max-ratio."""
    return click.option(
        "--max-ratio",
        type=WholeNumber(1, 1_000_000),
        default=limits.MAX_RATIO,
        show_default=True,
        help="How much larger than itself anything compressed may become, above the first GiB.",
    )(command)


def upload_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --upload and --mount-from."""
    return _combine_decorators(
        click.option(
            "--upload",
            metavar="auto|stream|put|chunk=SIZE",
            default="auto",
            show_default=True,
            callback=_parse_upload_method,
            help="How blobs go up: in one streamed request, in one PUT, or in chunks of SIZE such as 4MiB at the most; "
            "auto finds out what the registry takes.",
        ),
        click.option(
            "--mount-from",
            multiple=True,
            metavar="REPO",
            help="A repository of the same registry that may have blobs, so that they need not be sent; repeats.",
        ),
    )(command)


def via_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --via and --via-program."""
    return _combine_decorators(
        click.option(
            "--via",
            metavar="COMMAND",
            help="Have an ocistream behind COMMAND (`ssh host`, `kubectl exec -i pod --`) write DST there; send only "
            "what it lacks.",
        ),
        click.option(
            "--via-program",
            metavar="PROGRAM",
            default="ocistream",
            show_default=True,
            help="What runs ocistream there: its path, or `python3 -m ocistream`.",
        ),
    )(command)


def _check_compression(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Return the value of --compress after a check of its syntax."""
    if value is not None:
        from ocistream.transfer.recompress import parse_recompression

        parse_recompression(value, limits.MAX_RATIO)
    return value


def _parse_upload_method(_context: click.Context, _parameter: click.Parameter, value: str) -> UploadMethod | None:
    """Return the upload method of --upload; None for `auto`."""
    return parse_upload_method(value)


def verbosity_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command -q, -v and --log-format."""
    return _combine_decorators(
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
        click.option("-v", "--verbose", count=True, help="Say more; twice: with tracebacks."),
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            help="How messages are written on stderr.  [default: text]",
        ),
    )(command)


def apply_verbosity(console: Console, options: dict[str, Any]) -> None:
    """Remove the options of `verbosity_options` from `options` and apply them to the console."""
    quiet, verbose = options.pop("quiet"), options.pop("verbose")
    source = click.get_current_context().get_parameter_source
    if source("verbose") is ParameterSource.COMMANDLINE and source("quiet") is not ParameterSource.COMMANDLINE:
        # The command line overrides a default for all runs.
        quiet = False
    console.verbosity = -1 if quiet else int(verbose)
    console.as_json = console.is_json(options.pop("log_format"), options.get("progress"))


def credential_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --username, --password-stdin, --password-file and --authfile."""
    return _combine_decorators(user_options, authfile_option)(command)


def user_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --username, --password-stdin and --password-file."""
    return _combine_decorators(
        click.option("-u", "--username", metavar="USER", help="User name."),
        click.option("--password-stdin", is_flag=True, help="Read the password from stdin."),
        click.option("--password-file", metavar="FILE", help="Read the password from FILE."),
    )(command)


def authfile_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --authfile."""
    return click.option(
        "--authfile",
        metavar="FILE",
        help="Read credentials (Docker's format) from FILE only.",
    )(command)


def _combine_decorators(*decorators: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Join decorators into one, so that --help lists their options in this order."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        return functools.reduce(lambda inner, outer: outer(inner), reversed(decorators), command)

    return decorate


def platform_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command --platform; `default` is the default that --help shows."""
    return click.option(
        "--platform",
        "platforms",
        multiple=True,
        metavar="OS/ARCH[/VARIANT]|all",
        callback=_check_platforms,
        help=f"Platform of an index to take; repeats; `all` keeps the index as it is.  [default: {default}]",
    )


def _check_platforms(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Return the values of --platform after a check of their syntax."""
    parse_platform_choice(value)
    return value


def split_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --split."""
    return click.option(
        "--split",
        metavar="SIZE",
        callback=_parse_split_size,
        help="Cut the archive into files of at most SIZE bytes, such as 4GiB; in their names %d, or %03d, stands for "
        "their number. `push` takes them in any order.",
    )(command)


def _parse_split_size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int:
    """Return the bytes of --split; 0 without --split."""
    return 0 if value is None else settings.parse_split(value)
