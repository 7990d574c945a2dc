"""--platform: which of an index's platforms are taken, and what is if nobody says it."""

from __future__ import annotations

import platform as machine
from typing import TYPE_CHECKING, Final

import click

from ocistream.errors import UsageError
from ocistream.oci.descriptor import Platform, parse_platform
from ocistream.oci.platforms import PlatformChoice
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["default_platform", "parse_platform_choice", "platform_option"]

_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i386": "386",
    "i686": "386",
}


def platform_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command --platform; `default` says in --help what holds without it."""
    return click.option(
        "--platform",
        "platforms",
        multiple=True,
        metavar="OS/ARCH[/VARIANT]|all",
        callback=_check_platforms,
        help=f"Platform of an index to take; repeats; `all` keeps the index as it is.  [default: {default}]",
    )


def parse_platform_choice(platforms: tuple[str, ...], default: Platform | None) -> PlatformChoice:
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
    return Platform("linux", _ARCHITECTURES.get(name, name), "v6" if name == "armv6l" else "")


def _check_platforms(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Take --platform.

    Raises:
        UsageError: as `platform_choice`.
    """
    parse_platform_choice(value, None)
    return value
