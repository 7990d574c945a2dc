"""`RegistryOptions`: how a registry is reached, also by the sides of `copy`; and hints that name these options."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from ocistream.api.options import PATH, option
from ocistream.api.settings import TlsFiles
from ocistream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocistream.http.settings import TlsSettings

#: The sides of `copy`: the prefix of their options, and their names.
SIDES: Final = {"src": "source", "dest": "destination"}
#: Headings of --help.
ACCESS: Final = "Registry access"
TLS: Final = "TLS"
_USE_LOGIN: Final = "use `ocistream login`, or OCISTREAM_USERNAME and OCISTREAM_PASSWORD"
_USE_AUTH_FILE: Final = 'use the variable REGISTRY_AUTH_FILE, or credentials = "file:PATH" in [registry."HOST"]'
_FOR_ONE_REGISTRY: Final = 'it is for one registry: use the option, or set it in [registry."HOST"] of the configuration'
#: Options of one registry that a hint may name.
_OPTION_IN_HINT: Final = re.compile(r"--(plain-http|insecure|ca-cert|client-cert|client-key)\b")
_SYNC_FILE_TABLE: Final = '[registry."HOST"] of the sync file'


@dataclass(frozen=True, kw_only=True)
class RegistryOptions:
    """How a registry is reached, and with which credential. `copy` has these options once more for each side."""

    username: str | None = option(
        flags=["-u", "--username"],
        metavar="USER",
        no_default=_USE_LOGIN,
        section=ACCESS,
        help="User name.",
        side_help="User name for the {}.",
    )
    password_stdin: bool = option(
        default=False,
        no_default=_USE_LOGIN,
        section=ACCESS,
        help="Read the password from stdin.",
        side_help="Read the password for the {} from stdin.",
    )
    password_file: str | None = option(
        type=PATH,
        metavar="FILE",
        no_default=_USE_LOGIN,
        section=ACCESS,
        help="Read the password from FILE.",
        side_help="Read the password for the {} from FILE.",
    )
    authfile: str | None = option(
        type=PATH,
        metavar="FILE",
        no_default=_USE_AUTH_FILE,
        section=ACCESS,
        help="Read credentials only from FILE (Docker's format).",
        side_help="Read credentials for the {} only from FILE.",
    )
    plain_http: bool = option(
        default=False,
        no_default=_FOR_ONE_REGISTRY,
        section=ACCESS,
        help="Use HTTP (the default for loopback hosts), not HTTPS.",
        side_help="Use HTTP, not HTTPS, for the {}.",
    )
    insecure: bool = option(
        default=False,
        no_default=_FOR_ONE_REGISTRY,
        section=TLS,
        help="Disable certificate verification for the registries of this command.",
        side_help="Disable certificate verification for the {}.",
    )
    ca_cert: str | None = option(
        type=PATH,
        metavar="FILE",
        section=TLS,
        help="Also trust the CAs in FILE (PEM).",
        side_help="Trust the CAs in FILE (PEM) for the {}, not those of --ca-cert.",
    )
    client_cert: str | None = option(
        type=PATH,
        metavar="FILE",
        no_default=_FOR_ONE_REGISTRY,
        section=TLS,
        help="Client certificate (PEM) for the registries of this command.",
        side_help="Client certificate (PEM) for the {}.",
    )
    client_key: str | None = option(
        type=PATH,
        metavar="FILE",
        no_default=_FOR_ONE_REGISTRY,
        section=TLS,
        help="Key of the client certificate, if it is in another file.",
        side_help="Key of the client certificate for the {}, if it is in another file.",
    )

    @property
    def has_credential(self) -> bool:
        """Whether an option gives a credential, or a part of one."""
        return self.username is not None or self.password_stdin or self.password_file is not None

    def for_side(self, side: str, own: RegistryOptions) -> RegistryOptions:
        """Return these options, which are for both sides, as the side's `own` ones override them.

        A client certificate comes with its own key: the key for both sides does not belong to it. Credentials are
        not overridden here (`ExplicitCredentials`).
        """
        certificate = (self.client_cert, self.client_key)
        if own.client_cert is not None:
            certificate = (own.client_cert, own.client_key)
        elif own.client_key is not None:
            msg = f"--{side}-client-key needs --{side}-client-cert"
            raise UsageError(msg, hint="name the certificate of that key too; --client-cert belongs to --client-key")
        return replace(
            self,
            plain_http=self.plain_http or own.plain_http,
            insecure=self.insecure or own.insecure,
            ca_cert=self.ca_cert if own.ca_cert is None else own.ca_cert,
            client_cert=certificate[0],
            client_key=certificate[1],
        )

    def tls_settings(self, cert_dir: str | None) -> TlsSettings:
        """Return the certificates that the command line names; `cert_dir` is the directory of --cert-dir."""
        from pathlib import Path

        from ocistream.config.certs_d import read_certs_directory

        directory = read_certs_directory(Path(cert_dir)) if cert_dir else None
        names = TlsFiles(ca_cert=self.ca_cert, client_cert=self.client_cert, client_key=self.client_key)
        return names.to_settings(insecure=self.insecure, directory=directory)


def describe_unused_side_options(side: str) -> str | None:
    """Return a note on unused options of a side ("src", "dest") that is not a registry; None if none.

    Defaults are for all runs, and are not mentioned.
    """
    context = click.get_current_context()
    names = [f"{side}_{field.name}" for field in fields(RegistryOptions)]
    given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if not given:
        return None
    shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    return f"{shown} {'has' if len(given) == 1 else 'have'} no effect: the {SIDES[side]} is not in a registry"


def build_hint_translator(options: RegistryOptions, side: str) -> Callable[[str], str]:
    """Return a function that renames the options in a hint for one side of `copy`; `options` are for both sides."""
    return functools.partial(_OPTION_IN_HINT.sub, functools.partial(_side_option_name, options, side)) if side else str


def _side_option_name(options: RegistryOptions, side: str, match: re.Match[str]) -> str:
    if match[1] == "plain-http" and options.plain_http:
        (other,) = set(SIDES) - {side}
        return f"--plain-http (--{other}-plain-http is for the {SIDES[other]} alone)"
    return f"--{side}-{match[1]}"


def build_sync_hint_translator(options: RegistryOptions) -> Callable[[str], str]:
    """Return a function that replaces the options in a hint by the keys of a sync file's registry table."""

    def named(hint: str) -> str:
        if options.plain_http and "--plain-http" in hint:
            return hint.replace("--plain-http", f"--plain-http (or set plain-http = false in {_SYNC_FILE_TABLE})")
        matches = list(_OPTION_IN_HINT.finditer(hint))
        if not matches:
            return hint
        # Insert the table after the last key and its value; the rest of the hint may name other ways.
        end = matches[-1].end()
        end += len(" FILE") if hint.startswith(" FILE", end) else 0
        keys = _OPTION_IN_HINT.sub(r"\1", hint[:end])
        return f"{keys} ({'a key' if len(matches) == 1 else 'keys'} of {_SYNC_FILE_TABLE}){hint[end:]}"

    return named
