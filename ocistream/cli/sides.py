"""The sides of `copy`, each with options, credentials and hints of its own. Other commands have one side."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from ocistream.api.options import RegistryOptions
from ocistream.api.registries import find_home
from ocistream.cli.standard_streams import read_password, read_password_file
from ocistream.errors import AuthenticationError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams.paths import exists
from ocistream.streams.synchronization import once

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ocistream.api.registries import RegistryAccess
    from ocistream.auth.credentials import Keychain
    from ocistream.auth.docker_config import Credential

#: The sides of `copy`: the prefix of their options, and their names.
SIDES: Final = {"src": "source", "dest": "destination"}
#: The place of the options of one registry.
SYNC_FILE_TABLE: Final = '[registry."HOST"] of the sync file'
#: Options of one registry that a hint may name.
OPTION_IN_HINT: Final = re.compile(r"--(plain-http|insecure|ca-cert|client-cert|client-key)\b")
#: A command to run now, not a mention of stored logins that are ignored.
_LOGIN_IN_HINT: Final = re.compile(r"(?:^|; `)ocistream login [^\s`]+")


class Side:
    """One side of `copy`, "src" or "dest"; or the only side of another command, "".

    `own` are the options for this side alone, and `shared` those for both sides. A command with one side has only one
    group of them. `variables` is the prefix of the side's environment variables.
    """

    def __init__(self, name: str, own: RegistryOptions, shared: RegistryOptions, read_stdin: Callable[[], str]) -> None:
        """Read no file yet. `read_stdin` returns the password on stdin, which both sides may share."""
        self.name = name
        self.own = own
        self.shared = shared
        #: The options that hold for this side, each group after the name of its side.
        self.groups = [(name, own), ("", shared)] if name else [("", shared)]
        self._read_stdin = read_stdin
        self.variables = f"OCISTREAM_{name.upper()}" if name else "OCISTREAM"
        # Once: a password file may be a pipe.
        self._credential = once(self._read_credential)

    @property
    def options(self) -> RegistryOptions:
        """The options for both sides, as those of this side override them.

        A client certificate comes with its own key: the key for both sides does not belong to it. Credentials are not
        overridden here (`_read_credential`).

        Raises:
            UsageError: a key has no certificate.
        """
        own, shared = self.own, self.shared
        if not self.name:
            return shared
        certificate = (shared.client_cert, shared.client_key)
        if own.client_cert is not None:
            certificate = (own.client_cert, own.client_key)
        elif own.client_key is not None:
            msg = f"--{self.name}-client-key needs --{self.name}-client-cert"
            raise UsageError(msg, hint="name the certificate of that key too; --client-cert belongs to --client-key")
        return replace(
            shared,
            plain_http=shared.plain_http or own.plain_http,
            insecure=shared.insecure or own.insecure,
            ca_cert=shared.ca_cert if own.ca_cert is None else own.ca_cert,
            client_cert=certificate[0],
            client_key=certificate[1],
        )

    def check_options(self) -> None:
        """Raise UsageError if the options of this side contradict each other."""
        _ = self.options

    @property
    def names_credentials(self) -> bool:
        """Whether an option that holds for this side gives a credential, or names the file of credentials."""
        return any(_has_credential(group) or group.authfile is not None for _, group in self.groups)

    def build_keychain(self, access: RegistryAccess, registries: Collection[str]) -> Keychain:
        """Return the keychain for this side; its user name is for these `registries`.

        Raises:
            UsageError: an option or a variable of the credential is missing, or the file of credentials is malformed.
            AuthenticationError, LocalDiskError: a file does not exist, or cannot be read.
        """
        from ocistream.auth.credentials import Keychain

        keychain = Keychain(
            os.environ,
            home=find_home(os.environ),
            given=self._credential(),
            prefix=self.variables,
            named_registries=registries,
            configured=access.rules().credentials,
            auth_file=self.find_auth_file(),
        )
        keychain.check_auth_file()
        return keychain

    def find_auth_file(self) -> tuple[Path, str] | None:
        """Return the file that --authfile or its form for this side names, and the name of that option.

        No other credential file is read then, as in skopeo: a login found elsewhere would be a silent choice.
        """
        for side, group in self.groups:
            if group.authfile is not None:
                option = format_option(side, "authfile")
                if not exists(group.authfile):
                    msg = f"{option} {printable(group.authfile, 1024)}: no such file"
                    hint = "check the path; `ocistream login --authfile FILE` creates such a file"
                    # As for a missing file that a variable or the configuration names: no image was looked up yet.
                    raise AuthenticationError(msg, hint=hint)
                return Path(group.authfile), option
        return None

    def read_password(self) -> str | None:
        """Return the password that an option of this side gives, or None; raise UsageError if two options give one."""
        return self._read_password(self.name, self.own)

    def rename_options(self, hint: str) -> str:
        """Return a hint with the names that its options have for this side."""

        def rename(match: re.Match[str]) -> str:
            if match[1] == "plain-http" and self.shared.plain_http:
                (other,) = set(SIDES) - {self.name}
                return f"--plain-http (--{other}-plain-http is for the {SIDES[other]} alone)"
            return f"--{self.name}-{match[1]}"

        return OPTION_IN_HINT.sub(rename, hint) if self.name else hint

    def add_login_options(self, hint: str, auth_file: Path | None) -> str:
        """Add the options that the login needs too to a hint that says to log in.

        `auth_file` replaces all stored logins, so that another login has no effect.
        """
        options = self.options
        added = [f"--{name.replace('_', '-')}" for name in ("plain_http", "insecure") if getattr(options, name)]
        added += [
            f"--{name} {shlex.quote(printable(str(path), 1024))}"
            for name, path in (
                ("authfile", auth_file),
                ("ca-cert", options.ca_cert),
                ("client-cert", options.client_cert),
                ("client-key", options.client_key),
            )
            if path
        ]
        return _LOGIN_IN_HINT.sub(lambda match: " ".join([match[0], *added]), hint)

    def describe_unused_options(self) -> str | None:
        """Return a note on unused options of this side, which is not a registry; None if there are none.

        Defaults are for all runs, and are not mentioned.
        """
        context = click.get_current_context()
        names = [f"{self.name}_{field.name}" for field in fields(RegistryOptions)] if self.name else []
        given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if not given:
            return None
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        return f"{shown} {'has' if len(given) == 1 else 'have'} no effect: the {SIDES[self.name]} is not in a registry"

    def _read_password(self, side: str, group: RegistryOptions) -> str | None:
        option = format_option(side, "password-file")
        if group.password_file is None:
            return self._read_stdin() if group.password_stdin else None
        if group.password_stdin:
            msg = f"{option} and {format_option(side, 'password-stdin')} both give the password"
            raise UsageError(msg, hint="use one of them")
        return read_password_file(group.password_file, option)

    def _read_credential(self) -> Credential | None:
        """Return the credential that options give; None without one.

        Options of this side override those for both sides. The password for both sides belongs to the user name for
        both, and to no other.
        """
        side, group = next((item for item in self.groups if _has_credential(item[1])), ("", None))
        if group is None:
            return None
        option, password_option = format_option(side, "username"), format_option(side, "password-file")
        variables = self.variables if side else "OCISTREAM"
        if group.username == "":
            msg = f"{option} is empty"
            raise UsageError(msg, hint="is a shell variable unset?")
        # A password for one side may belong to the user name for both.
        names = {option: group.username, "--username": self.shared.username}
        names |= {name: os.environ.get(name) for name in (f"{self.variables}_USERNAME", "OCISTREAM_USERNAME")}
        source, username = next(((name, value) for name, value in names.items() if value), ("", None))
        if not username:
            msg = f"{format_option(side, 'password-stdin') if group.password_stdin else password_option} needs {option}"
            raise UsageError(msg, hint=f"or set {variables}_USERNAME")
        secret = self._read_password(side, group)
        secret = secret or os.environ.get(f"{self.variables}_PASSWORD") or os.environ.get("OCISTREAM_PASSWORD")
        if not secret:
            hint = f"set {variables}_PASSWORD, or use {password_option} or {format_option(side, 'password-stdin')}"
            if ":" in username:
                hint = f"the user name contains ':': omit the password there, and {hint}"
            msg = f"{option} needs a password"
            raise UsageError(msg, hint=hint)
        from ocistream.auth.docker_config import Credential

        return Credential(username, secret, source=source, is_named_by_user=True)


def build_sides(shared: RegistryOptions, own: Mapping[str, RegistryOptions]) -> tuple[Side, ...]:
    """Return the sides of `copy`, which have options of their `own`, or the only one of another command.

    Raise UsageError if two passwords would come on stdin.
    """
    if sum(group.password_stdin for group in (shared, *own.values())) > 1:
        msg = "only one password can come from stdin"
        others = "--src-password-file, --dest-password-file, OCISTREAM_SRC_PASSWORD or OCISTREAM_DEST_PASSWORD"
        raise UsageError(msg, hint=f"use {others} for the other one")
    read_stdin = once(read_password)
    return tuple(Side(name, group, shared, read_stdin) for name, group in (own or {"": shared}).items())


def check_registries(sides: Sequence[Side], *named: Collection[str]) -> None:
    """Raise UsageError if several registries could ask for one user name; `named` are the registries of each side."""
    asking: set[str] = set()
    for side, registries in zip(sides, named, strict=True):
        has_own_name = side.own.username is not None or os.environ.get(f"{side.variables}_USERNAME")
        if side.name and has_own_name and len(registries) > 1:
            msg = f"one {SIDES[side.name]} user name cannot be used for {' and '.join(sorted(registries))}"
            raise UsageError(msg, hint="run `ocistream login` for each registry")
        if not side.name or not _has_credential(side.own):
            asking.update(registries)
    origin = "--username" if sides[0].shared.username is not None else ""
    if not origin and os.environ.get("OCISTREAM_USERNAME"):
        is_for_a_side = any(os.environ.get(f"OCISTREAM_{side.upper()}_USERNAME") for side in SIDES)
        origin = "" if is_for_a_side else "OCISTREAM_USERNAME"
    if origin and len(asking) > 1:
        msg = f"{origin} cannot be used for {' and '.join(sorted(asking))}"
        hint = "run `ocistream login` for each registry"
        if len(sides) > 1:
            hint += ", or use --src-username and --dest-username, or OCISTREAM_SRC_USERNAME and OCISTREAM_DEST_USERNAME"
        raise UsageError(msg, hint=hint)


def format_option(side: str, name: str) -> str:
    """Return an option as the user writes it for a side."""
    return f"--{side}-{name}" if side else f"--{name}"


def _has_credential(options: RegistryOptions) -> bool:
    return options.username is not None or options.password_stdin or options.password_file is not None
