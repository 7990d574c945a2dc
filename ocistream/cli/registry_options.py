"""Options that say how a registry is reached: --src-* and --dest-* of `copy`, TLS, proxies, time-outs and retries.

It turns them into settings of `ocistream.http`, and rewrites hints to name the options of the right side.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from ocistream import __version__
from ocistream.errors import NotFoundError, UsageError
from ocistream.streams.paths import exists

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ocistream.http.client import HttpSettings
    from ocistream.http.host_settings import HostSettings
    from ocistream.http.tls import TlsSettings
    from ocistream.registry.configuration import HostRule, RegistryConfiguration

__all__ = [
    "SIDE_OPTIONS",
    "build_hint_translator",
    "build_host_settings_lookup",
    "build_http_settings",
    "build_sync_hint_translator",
    "describe_unused_side_options",
    "has_credential",
    "load_host_rules",
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


_PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def build_http_settings(
    options: Mapping[str, Any], env: Mapping[str, str], *, attempts: int | None = None
) -> HttpSettings:
    """Return the HTTP settings for all hosts; `attempts` is for commands without --retries."""
    from ocistream.http.client import HttpSettings
    from ocistream.http.retry import RetryPolicy

    http_settings = HttpSettings(
        plain_http=bool(options["plain_http"]),
        retry_policy=RetryPolicy(attempts=int(options["retries"]) + 1 if attempts is None else attempts),
        ca_file=_read_ca_file(env),
        tls=_read_tls_options(options),
        requests_per_second=options.get("max_requests_per_second"),
        proxies=_read_proxies(env),
        user_agent=f"ocistream/{__version__}",
    )
    if "stall_timeout" not in options:
        return http_settings
    return replace(http_settings, connect_timeout=options["connect_timeout"], stall_timeout=options["stall_timeout"])


def build_host_settings_lookup(
    options: Mapping[str, Any], env: Mapping[str, str], home: Path, configured: Callable[[str, str], HostSettings]
) -> Callable[[str, str], HostSettings]:
    """Return the function that finds the settings of a host: those `configured`, and `certs.d`.

    --cert-dir replaces `certs.d`. A client certificate that is configured for a host overrides one found there.
    """
    from ocistream.config.certs_d import certs_directories

    return functools.partial(
        _find_host_settings, () if options["cert_dir"] else certs_directories(env, home), configured
    )


def _find_host_settings(
    directories: Sequence[Path], configured: Callable[[str, str], HostSettings], registry: str, repository: str
) -> HostSettings:
    from ocistream.config.certs_d import read_registry_certs

    settings = configured(registry, repository)
    certs = read_registry_certs(registry, directories)
    return replace(
        settings,
        ca_files=settings.ca_files + certs.ca_files,
        client_certificates=settings.client_certificates or certs.client_certificates,
    )


def load_host_rules(
    options: Mapping[str, Any], env: Mapping[str, str], home: Path, rules: Mapping[str, HostRule] | None = None
) -> RegistryConfiguration:
    """Return the rules of the configuration files, ours and containers'; `rules`, by host, override them."""
    from ocistream.config.config_toml import read_host_rules
    from ocistream.config.registries_conf import load_namespaces
    from ocistream.registry.configuration import HostRule, RegistryConfiguration

    host_rules = read_host_rules(options.get("config"), env, home)
    for host, rule in (rules or {}).items():
        host_rules[host] = rule.apply_to(host_rules.get(host, HostRule()))
    return RegistryConfiguration(host_rules, load_namespaces(env, home), use_mirrors=not options.get("no_mirrors"))


def _read_tls_options(options: Mapping[str, Any]) -> TlsSettings:
    """Return the certificates that the command line names."""
    from ocistream.config.certs_d import read_certs_directory
    from ocistream.http.tls import TlsSettings

    folder = read_certs_directory(Path(options["cert_dir"])) if options["cert_dir"] else TlsSettings()
    authority, certificate, key = options["ca_cert"], options["client_cert"], options["client_key"]
    if key and not certificate:
        msg = "--client-key needs --client-cert"
        raise UsageError(msg)
    return TlsSettings(
        ((authority,) if authority else ()) + folder.ca_files,
        ((certificate, key),) if certificate else folder.client_certificates,
        bool(options["insecure"]),
    )


def _read_ca_file(env: Mapping[str, str]) -> str | None:
    """Return SSL_CERT_FILE. A missing file is an error here, before connections fail and are retried."""
    path = env.get("SSL_CERT_FILE") or None
    if path is not None and not exists(path):
        msg = f"SSL_CERT_FILE: {path}: no such file"
        raise NotFoundError(msg, hint="correct that variable, or leave it away: the system's CAs are trusted then")
    return path


def _read_proxies(env: Mapping[str, str]) -> dict[str, str]:
    """Return the proxies of the environment; lower-case variables come first, as in curl."""
    proxies: dict[str, str] = {}
    for name in _PROXY_VARIABLES:
        if value := env.get(name) or env.get(name.upper()):
            proxies[name.removesuffix("_proxy") if name != "no_proxy" else name] = value
    return proxies
