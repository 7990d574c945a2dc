"""The options that several commands share, each written once, and what they are turned into.

`transfer_options` decorates a command, which then gets one `Session` in place of a dozen parameters.
"""

from __future__ import annotations

import functools
import io
import os
import platform as machine
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream import __version__, limits
from ocistream.errors import NotFoundError, UsageError
from ocistream.model import Platform, parse_platform
from ocistream.platforms import PlatformChoice
from ocistream.reference import printable
from ocistream.stores import End, Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ocistream.cli.console import Console
    from ocistream.conversion import Recompression
    from ocistream.credentials import Credential
    from ocistream.retry import Retried
    from ocistream.transport import Transport

__all__ = ["Session", "default_platform", "platform_choice", "platform_option", "transfer_options"]

#: Waits shorter than this (seconds) are only told with -v.
_WORTH_TELLING: Final = 5.0
_INSTEAD_OF_STDIN: Final = "pipe an archive in, or name a file or directory to read (of `push`, that is -i PATH)"
_PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
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


@dataclass(slots=True)
class Session:
    """What the shared options come to: the console, and everything a transfer needs of this process."""

    console: Console
    options: Mapping[str, Any]
    cancelled: threading.Event
    #: How often something had to be tried again.
    retried: int = 0

    @property
    def jobs(self) -> int:
        """How many blobs move at once."""
        return int(self.options["jobs"])

    def surroundings(self, side: str = "") -> Surroundings:
        """Give what an end may need; `side` is "SRC" or "DEST" where the two ends have credentials of their own."""
        return Surroundings(
            transport=functools.cache(functools.partial(self._transport, side)),
            stdin=self._stdin,
            stdout=self._stdout,
            mtime=_source_date(os.environ),
        )

    def check_result_apart(self, *ends: End) -> None:
        """Refuse a --result that would be written over one of the ends, or between what goes to stdout.

        Raises:
            UsageError: it has the path of one, or leads to our own stdout.
        """
        result = self.options["result"]
        if result is not None and _is_seen_on_stdout(result):
            raise _result_on_stdout(str(result))
        paths = [end.path.resolve() for end in ends if end.path is not None and not end.is_stream]
        if result is not None and result.resolve() in paths:
            msg = f"--result {result} is the archive itself"
            raise UsageError(msg, hint="name another file: it would be written over")

    def recompression(self, default: str | None = None) -> Recompression | None:
        """Give what --compress asks for, or what `default` says; None where layers stay as they are.

        Raises:
            UsageError: it is malformed.
        """
        asked = self.options["compress"]
        text = default if asked is None else asked
        if text is None:
            return None
        from ocistream.conversion import parse_recompression

        return parse_recompression(text, int(self.options["max_ratio"]))

    def check_credentials(self, registries: Collection[str]) -> None:
        """Refuse one user name and password where several registries might ask: which one is it for?

        Raises:
            UsageError: there are several, and one name for all of them was given.
        """
        given = "--username" if self.options.get("username") is not None else ""
        if not given and os.environ.get("OCISTREAM_USERNAME"):
            sides = ("OCISTREAM_SRC_USERNAME", "OCISTREAM_DEST_USERNAME")
            given = "" if any(os.environ.get(name) for name in sides) else "OCISTREAM_USERNAME"
        if given and len(registries) > 1:
            msg = f"{given} cannot be for {' and '.join(sorted(registries))} at once"
            hint = "use `ocistream login` for each, or, with copy, OCISTREAM_SRC_USERNAME and OCISTREAM_DEST_USERNAME"
            raise UsageError(msg, hint=hint)

    def _transport(self, side: str) -> Transport:
        from ocistream.credentials import Keychain
        from ocistream.retry import Patience
        from ocistream.transport import Transport, TransportSettings

        prefix = f"OCISTREAM_{side}" if side else "OCISTREAM"
        keychain = Keychain(os.environ, home=home(), explicit=self._credential(side), prefix=prefix)
        settings = TransportSettings(
            plain_http=bool(self.options["plain_http"]),
            patience=Patience(attempts=int(self.options["retries"]) + 1),
            ca_file=ca_file(os.environ),
            proxies=proxies(os.environ),
            user_agent=f"ocistream/{__version__}",
        )
        return Transport(settings, keychain.find, on_retry=self._tell_retry, cancelled=self.cancelled)

    def _credential(self, side: str) -> Credential | None:
        """Put a credential together of the options of one side, and of the environment for what they leave out."""
        key, option, prefix = "", "--", "OCISTREAM"
        if side:
            key, option, prefix = f"{side.lower()}_", f"--{side.lower()}-", f"OCISTREAM_{side}"
        username, from_stdin = self.options[f"{key}username"], self.options[f"{key}password_stdin"]
        if username is None and not from_stdin:
            return None
        if username is None:
            username = os.environ.get(f"{prefix}_USERNAME") or os.environ.get("OCISTREAM_USERNAME")
            if not username:
                msg = f"{option}password-stdin needs {option}username"
                raise UsageError(msg, hint=f"or set {prefix}_USERNAME")
        if from_stdin:
            secret: str | None = read_password()
        else:
            secret = os.environ.get(f"{prefix}_PASSWORD") or os.environ.get("OCISTREAM_PASSWORD")
        if not secret:
            msg = f"{option}username needs a password"
            raise UsageError(msg, hint=f"set {prefix}_PASSWORD, or give it on stdin with {option}password-stdin")
        from ocistream.credentials import Credential

        return Credential(username, secret, source=f"{option}username")

    def _tell_retry(self, retried: Retried) -> None:
        self.retried += 1
        where = f"{retried.url}: " if retried.url else ""
        self.console.note(
            f"{where}{retried.reason}; trying again in {retried.wait:.1f} s",
            level=0 if retried.wait >= _WORTH_TELLING else 1,
        )

    def _stdin(self) -> io.BufferedReader:
        if any(self.options.get(name) for name in _PASSWORD_ON_STDIN):
            msg = "stdin cannot be both the archive and the password"
            raise UsageError(msg, hint="set OCISTREAM_PASSWORD, or read the archive from a file")
        if sys.stdin is None:
            msg = "an archive is expected on stdin, which is closed"
            raise UsageError(msg, hint=_INSTEAD_OF_STDIN)
        if sys.stdin.isatty():
            msg = "an archive is expected on stdin, which is a terminal"
            raise UsageError(msg, hint=_INSTEAD_OF_STDIN)
        return io.BufferedReader(io.FileIO(sys.stdin.fileno(), "rb", closefd=False), 64 * limits.KIB)

    def _stdout(self) -> io.FileIO:
        if sys.stdout is None:
            msg = "the archive is to go to stdout, which is closed"
            raise UsageError(msg, hint="name a file to write to (of `pull`, that is -o FILE)")
        if sys.stdout.isatty():
            msg = "an archive is not written to a terminal"
            raise UsageError(
                msg, hint="name a file to write to (of `pull`, that is -o FILE), or pipe it on: `... | ssh host ...`"
            )
        return io.FileIO(sys.stdout.fileno(), "wb", closefd=False)


def home() -> Path:
    """Give the user's home directory, or the root where there is none (an empty container)."""
    return Path(os.environ.get("HOME") or "/")


def read_password() -> str:
    """Read a password from stdin, as `docker login --password-stdin` does: all of it, less the line's end.

    Raises:
        UsageError: there is none.
    """
    secret = sys.stdin.read(limits.MAX_ERROR_BODY).rstrip("\r\n") if sys.stdin else ""
    if not secret:
        msg = "no password came on stdin"
        raise UsageError(msg)
    return secret


def network_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --retries and --plain-http."""
    return _stack(
        click.option(
            "--retries", type=click.IntRange(0, 20), default=5, show_default=True, help="Tries after the first one."
        ),
        click.option("--plain-http", is_flag=True, help="Speak HTTP, not HTTPS, to hosts other than this one."),
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


def _result_path(context: click.Context, parameter: click.Parameter, value: str | None) -> Path | None:  # noqa: ARG001 - click's form
    """Take the path of --result. A file that is called `-` has to be written `./-`, which a `Path` no longer shows.

    Raises:
        UsageError: it is stdout, or nothing.
    """
    if value == "-":
        raise _result_on_stdout(value)
    if value == "":
        msg = "--result '' is no path"
        raise UsageError(msg)
    return None if value is None else Path(value)


def _result_on_stdout(result: str) -> UsageError:
    hint = "name a file: stdout has the archive, or a line for each image, and nothing else"
    return UsageError(f"--result {printable(result)} is stdout", hint=hint)


def session_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that all have, and hand it a `Session` of them and of those above as `session`."""

    @verbosity_options
    @click.pass_obj
    @functools.wraps(command)
    def wrapped(console: Console, /, **options: Any) -> None:
        apply_verbosity(console, options)
        own = {key: options.pop(key) for key in list(options) if key in _SESSION_OPTIONS}
        if sum(bool(own.get(name)) for name in _PASSWORD_ON_STDIN) > 1:
            msg = "only one of the two passwords can come on stdin"
            raise UsageError(msg, hint="set OCISTREAM_SRC_PASSWORD or OCISTREAM_DEST_PASSWORD for the other")
        command(Session(console, own, threading.Event()), **options)

    return wrapped


_PASSWORD_ON_STDIN: Final = ("password_stdin", "src_password_stdin", "dest_password_stdin")
_SESSION_OPTIONS: Final = frozenset(
    {
        "jobs",
        "retries",
        "plain_http",
        "progress",
        "result",
        "compress",
        "max_ratio",
        "username",
        "src_username",
        "dest_username",
        *_PASSWORD_ON_STDIN,
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


def stdout_end(end: End) -> End:
    """Give `-` for a path that leads to our own stdout, such as `/dev/stdout`; any other end as it is.

    What is printed beside an archive would get into it, and a file cannot be replaced that is being written to.
    """
    if end.path is None or end.kind == "oci":
        return end
    return replace(end, is_stream=True) if _is_stdout(end.path) else end


def _is_stdout(path: Path) -> bool:
    if sys.stdout is None:
        return False
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except OSError:
        # It is not there, or stdout is no file. What is wrong with it is found out where it is opened.
        return False


def _is_seen_on_stdout(path: Path) -> bool:
    """Say whether what is written to a path would stand between what is printed: not so where all of it vanishes."""
    return _is_stdout(path) and (not path.is_char_device() or sys.stdout.isatty())


def ca_file(env: Mapping[str, str]) -> str | None:
    """Read SSL_CERT_FILE, and make sure now that it is there: a connection would be tried again and again.

    Raises:
        NotFoundError: it is not.
    """
    path = env.get("SSL_CERT_FILE") or None
    if path is not None and not Path(path).exists():
        msg = f"SSL_CERT_FILE: {path}: no such file"
        raise NotFoundError(msg)
    return path


def proxies(env: Mapping[str, str]) -> dict[str, str]:
    """Read the proxy variables, the lower-case ones first, as curl does."""
    found: dict[str, str] = {}
    for name in _PROXY_VARIABLES:
        if value := env.get(name) or env.get(name.upper()):
            found[name.removesuffix("_proxy") if name != "no_proxy" else name] = value
    return found


def _source_date(env: Mapping[str, str]) -> int:
    """Read SOURCE_DATE_EPOCH, seconds since 1970.

    Raises:
        UsageError: it is not a number that a tar can hold.
    """
    text = env.get("SOURCE_DATE_EPOCH") or "0"
    if not text.isascii() or not text.isdigit() or int(text) >= 8**11:
        msg = f"SOURCE_DATE_EPOCH is not a number of seconds: {text[:40]!r}"
        raise UsageError(msg)
    return int(text)


def _stack(*decorators: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Join decorators into one, so that --help lists their options in this order."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        return functools.reduce(lambda inner, outer: outer(inner), reversed(decorators), command)

    return decorate
