"""The options that several commands share, each written once.

`transfer_options` decorates a command, which then gets one `Session` in place of a dozen parameters.
"""

from __future__ import annotations

import functools
import platform as machine
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream import limits
from ocistream.cli.session import PASSWORD_ON_STDIN, Session, result_on_stdout
from ocistream.errors import UsageError
from ocistream.model import Platform, parse_platform
from ocistream.platforms import PlatformChoice
from ocistream.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocistream.cli.console import Console

__all__ = ["default_platform", "platform_choice", "platform_option", "transfer_options"]

_MACHINES: Final = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i386": "386",
    "i686": "386",
}


def network_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --retries, --plain-http, --config and --no-mirrors."""
    return _stack(
        click.option(
            "--retries", type=click.IntRange(0, 20), default=5, show_default=True, help="Tries after the first one."
        ),
        click.option("--plain-http", is_flag=True, help="Speak HTTP, not HTTPS, to hosts other than this one."),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Configuration of registries and mirrors.  [default: ~/.config/ocistream/config.toml]",
        ),
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


def transfer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of every transfer, and hand it a `Session` as `session`."""
    return _stack(
        click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True, help="Blobs moved at once."),
        network_options,
        progress_option,
        click.option(
            "--result", type=click.Path(dir_okay=False), callback=_result_path, help="Write what was done as JSON."
        ),
        session_options,
    )(command)


def _result_path(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Path | None:
    """Take the path of --result. A file that is called `-` has to be written `./-`, which a `Path` no longer shows.

    Raises:
        UsageError: it is stdout, or nothing.
    """
    if value == "-":
        raise result_on_stdout(value)
    if value == "":
        msg = "--result '' is no path"
        raise UsageError(msg)
    return None if value is None else Path(value)


def session_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that all have, and hand it a `Session` of them and of those above as `session`."""

    @verbosity_options
    @click.pass_obj
    @functools.wraps(command)
    def wrapped(console: Console, /, **options: Any) -> None:
        apply_verbosity(console, options)
        own = {key: options.pop(key) for key in list(options) if key in _SESSION_OPTIONS}
        if sum(bool(own.get(name)) for name in PASSWORD_ON_STDIN) > 1:
            msg = "only one of the two passwords can come on stdin"
            raise UsageError(msg, hint="set OCISTREAM_SRC_PASSWORD or OCISTREAM_DEST_PASSWORD for the other")
        command(Session(console, own, threading.Event()), **options)

    return wrapped


_SESSION_OPTIONS: Final = frozenset(
    {
        "jobs",
        "retries",
        "plain_http",
        "config",
        "no_mirrors",
        "progress",
        "result",
        "compress",
        "max_ratio",
        "username",
        "src_username",
        "dest_username",
        *PASSWORD_ON_STDIN,
    }
)


def compression_options(note: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command --compress and --max-ratio; `note` says in --help what else there is to know."""
    return _stack(
        click.option(
            "--compress",
            metavar="gzip|zstd|none[:LEVEL]",
            help="Compress layers anew that are not so already, which changes the image's digest. "
            f"High levels of zstd take hundreds of MB. {note}",
        ),
        max_ratio_option,
    )


def max_ratio_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --max-ratio."""
    return click.option(
        "--max-ratio",
        type=click.IntRange(1, 1_000_000),
        default=limits.MAX_RATIO,
        show_default=True,
        help="How much larger than itself anything compressed may become, above the first GiB.",
    )(command)


def verbosity_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command -q, -v and --log-format."""
    return _stack(
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
        click.option("-v", "--verbose", count=True, help="Say more; twice: with tracebacks."),
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            help="How messages are written on stderr.  [default: text]",
        ),
    )(command)


def apply_verbosity(console: Console, options: dict[str, Any]) -> None:
    """Take the options of `verbosity_options` out of `options` and set the console by them."""
    quiet, verbose = options.pop("quiet"), options.pop("verbose")
    console.verbosity = -1 if quiet else int(verbose)
    console.as_json = console.is_json(options.pop("log_format"), options.get("progress"))


def credential_options(*sides: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command options for a user name and a password, for each of `sides` ("" or "src-" and "dest-")."""
    found = []
    for side in sides:
        of = {"src-": " for the source", "dest-": " for the destination"}.get(side, "")
        found.append(click.option(f"--{side}username", metavar="USER", help=f"User name{of}."))
        found.append(click.option(f"--{side}password-stdin", is_flag=True, help=f"Read the password{of} from stdin."))
    return _stack(*found)


def platform_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command --platform; `default` says in --help what holds without it."""
    return click.option(
        "--platform",
        "platforms",
        multiple=True,
        metavar="OS/ARCH[/VARIANT]|all",
        help=f"Platform of an index to take; repeats; `all` keeps the index as it is.  [default: {default}]",
    )


def platform_choice(platforms: tuple[str, ...], default: Platform | None) -> PlatformChoice:
    """Turn --platform's values into a choice; `default` is what none of them means, None for all.

    Raises:
        UsageError: one is malformed, or `all` is one of several.
    """
    if "all" in platforms:
        if others := [platform for platform in platforms if platform != "all"]:
            msg = f"--platform all leaves nothing to choose, and {printable(others[0])!r} is chosen as well"
            raise UsageError(msg, hint="give either `all` or the platforms to take")
        return PlatformChoice()
    if platforms:
        return PlatformChoice(tuple(dict.fromkeys(map(parse_platform, platforms))))
    return PlatformChoice((default,), explicit=False) if default else PlatformChoice()


def default_platform() -> Platform:
    """Give linux on this machine's architecture: images for other systems are rarely what a pull is for."""
    name = machine.machine().lower()
    return Platform("linux", _MACHINES.get(name, name), "v6" if name == "armv6l" else "")


def _stack(*decorators: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Join decorators into one, so that --help lists their options in this order."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        return functools.reduce(lambda inner, outer: outer(inner), reversed(decorators), command)

    return decorate
