"""Options that say how a registry is reached: --src-* and --dest-* of `copy`, TLS, proxies, time-outs and retries.

It turns them into settings of `ocistream.http`, and rewrites hints to name the options of the right side.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from ocistream.api import registries
from ocistream.api.settings import CONNECT_TIMEOUT, STALL_TIMEOUT, TlsFiles
from ocistream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ocistream.http.client import HttpSettings
    from ocistream.http.settings import TlsSettings

__all__ = [
    "SIDE_OPTIONS",
    "build_hint_translator",
    "build_http_settings",
    "build_sync_hint_translator",
    "describe_unused_side_options",
    "has_credential",
    "options_for_side",
    "side_options",
    "suggest_option",
]

_SIDES: Final = {"src": "source", "dest": "destination"}
_CREDENTIAL_OPTIONS: Final = ("username", "password_stdin", "password_file")
#: Options of the connection to a registry.
_CONNECTION_OPTIONS: Final = ("plain_http", "insecure", "ca_cert", "client_cert", "client_key")
#: Name, metavar (None for a switch) and help of each option of a side.
_SIDE_OPTION_TABLE: Final = (
    ("username", "USER", "User name for the {}."),
    ("password-stdin", None, "Read the password for the {} from stdin."),
    ("password-file", "FILE", "Read the password for the {} from FILE."),
    ("authfile", "FILE", "Take the credentials for the {} from FILE."),
    ("plain-http", None, "Use HTTP, not HTTPS, for the {}."),
    ("insecure", None, "Do not verify the certificate of the {}."),
    ("ca-cert", "FILE", "Trust these CAs (PEM) for the {}, not those of --ca-cert."),
    ("client-cert", "FILE", "Show this client certificate (PEM) to the {}."),
    ("client-key", "FILE", "Key of the client certificate for the {}, if it is in another file."),
)
#: The parameter names of all these options.
SIDE_OPTIONS: Final = tuple(f"{side}_{name.replace('-', '_')}" for side in _SIDES for name, _, _ in _SIDE_OPTION_TABLE)
#: Options of one registry that a hint may name.
_OPTION_IN_HINT: Final = re.compile(r"--(plain-http|insecure|ca-cert|client-cert|client-key)\b")
#: Options of skopeo and docker that have a replacement here; {} is the side.
_FOREIGN_OPTION: Final = re.compile(r"--(src-|dest-|)(creds|password|tls-verify)")
#: `zip`, because bandit takes the hint in a dict display for a password.
_REPLACEMENT_HINTS: Final = dict(
    zip(
        ("creds", "password", "tls-verify"),
        (
            "give --{0}username, and the password with --{0}password-file or --{0}password-stdin",
            "a process list shows command lines: give --{0}password-file or --{0}password-stdin",
            "--{0}insecure skips the check of certificates, --{0}plain-http uses HTTP",
        ),
        strict=True,
    )
)
_SYNC_FILE_TABLE: Final = '[registry."HOST"] of the sync file'


def side_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `copy` the options of each side."""
    for side, name in reversed(_SIDES.items()):
        for option, metavar, text in reversed(_SIDE_OPTION_TABLE):
            help_ = text.format(name)
            decorate = click.option(f"--{side}-{option}", is_flag=metavar is None, metavar=metavar, help=help_)
            command = decorate(command)
    return command


def options_for_side(options: Mapping[str, Any], side: str) -> Mapping[str, Any]:
    """Return the options that apply to one side: "SRC", "DEST", or "" for a command without sides.

    A client certificate comes with its own key: the key for both sides does not belong to it.
    """
    if not side:
        return options
    key = side.lower()
    overrides = {name: options[f"{key}_{name}"] for name in _CONNECTION_OPTIONS if _is_given(options, f"{key}_{name}")}
    if "client_cert" in overrides:
        overrides.setdefault("client_key", None)
    elif "client_key" in overrides:
        msg = f"--{key}-client-key needs --{key}-client-cert"
        raise UsageError(msg, hint="name the certificate of that key too; --client-cert comes with --client-key")
    return {**options, **overrides}


def has_credential(options: Mapping[str, Any], side: str) -> bool:
    """Return whether options give a credential for one side ("SRC", "DEST"), or for both ("").

    If a side has its own credential, the one for both does not apply.
    """
    return any(_is_given(options, f"{side.lower()}_{name}" if side else name) for name in _CREDENTIAL_OPTIONS)


def _is_given(options: Mapping[str, Any], name: str) -> bool:
    return options.get(name) not in {None, False}


def describe_unused_side_options(side: str) -> str | None:
    """Return a note on unused options of a side ("src", "dest") that is not a registry; None if none.

    Defaults are for all runs, and are not mentioned.
    """
    context = click.get_current_context()
    given = [name for name in SIDE_OPTIONS if name.startswith(f"{side}_")]
    given = [name for name in given if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if not given:
        return None
    shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    return f"{shown} {'has' if len(given) == 1 else 'have'} no effect: the {_SIDES[side]} is not in a registry"


def suggest_option(option: str, known: Collection[str]) -> str | None:
    """Return the replacement for another tool's option, for a command with the options `known`; or None."""
    match = _FOREIGN_OPTION.fullmatch(option)
    if match is None:
        return None
    side, name = match[1], "insecure" if match[2] == "tls-verify" else "username"
    if f"--{name}" not in known:
        return None
    return _REPLACEMENT_HINTS[match[2]].format(side if f"--{side}{name}" in known else "")


def build_hint_translator(options: Mapping[str, Any], side: str) -> Callable[[str], str]:
    """Return a function that renames the options in a hint for one side of `copy`."""
    return (
        functools.partial(_OPTION_IN_HINT.sub, functools.partial(_side_option_name, options, side.lower()))
        if side
        else str
    )


def _side_option_name(options: Mapping[str, Any], side: str, match: re.Match[str]) -> str:
    if match[1] == "plain-http" and options["plain_http"]:
        (other,) = set(_SIDES) - {side}
        return f"--plain-http (--{other}-plain-http is for the {_SIDES[other]} alone)"
    return f"--{side}-{match[1]}"


def build_sync_hint_translator(options: Mapping[str, Any]) -> Callable[[str], str]:
    """Return a function that replaces the options in a hint by the keys of a sync file's registry table."""

    def named(hint: str) -> str:
        if options["plain_http"] and "--plain-http" in hint:
            return hint.replace("--plain-http", f"--plain-http (or set plain-http = false in {_SYNC_FILE_TABLE})")
        text, count = _OPTION_IN_HINT.subn(r"\1", hint)
        return f"{text} ({'a key' if count == 1 else 'keys'} of {_SYNC_FILE_TABLE})" if count else hint

    return named


def build_http_settings(
    options: Mapping[str, Any], env: Mapping[str, str], *, attempts: int | None = None
) -> HttpSettings:
    """Return the HTTP settings for all hosts; `attempts` is for commands without --retries."""
    return registries.build_http_settings(
        env,
        plain_http=bool(options["plain_http"]),
        tls=_read_tls_options(options),
        attempts=int(options["retries"]) + 1 if attempts is None else attempts,
        connect_timeout=options.get("connect_timeout", CONNECT_TIMEOUT),
        stall_timeout=options.get("stall_timeout", STALL_TIMEOUT),
        max_requests_per_second=options.get("max_requests_per_second"),
    )


def _read_tls_options(options: Mapping[str, Any]) -> TlsSettings:
    """Return the certificates that the command line names."""
    from ocistream.config.certs_d import read_certs_directory

    directory = read_certs_directory(Path(options["cert_dir"])) if options["cert_dir"] else None
    names = TlsFiles(ca_cert=options["ca_cert"], client_cert=options["client_cert"], client_key=options["client_key"])
    return names.to_settings(insecure=bool(options["insecure"]), directory=directory)
