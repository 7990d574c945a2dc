"""Credentials that options and environment variables provide for one side, and the file that --authfile names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ocistream.cli.option_hints import SIDES
from ocistream.cli.standard_streams import read_password, read_password_file
from ocistream.errors import AuthenticationError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams.paths import exists

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ocistream.api.options import RegistryOptions
    from ocistream.auth.docker_config import Credential


class ExplicitCredentials:
    """The credentials of one run, from options and environment variables.

    `options` are those of a registry, by side: "" for both sides, "src" and "dest" for the sides of `copy`.
    """

    def __init__(self, options: Mapping[str, RegistryOptions], env: Mapping[str, str]) -> None:
        """Take the options of a command and the environment."""
        self._options = options
        self._env = env
        #: Credentials by side.
        self._credentials: dict[str, Credential | None] = {}
        #: The password read from stdin, which can be read only once for both sides.
        self._stdin_password: str | None = None

    def check_password_stdin(self) -> None:
        """Raise UsageError if two passwords would come on stdin."""
        if sum(options.password_stdin for options in self._options.values()) > 1:
            msg = "only one password can come from stdin"
            others = "--src-password-file, --dest-password-file, OCISTREAM_SRC_PASSWORD or OCISTREAM_DEST_PASSWORD"
            raise UsageError(msg, hint=f"use {others} for the other one")

    def check_registries(self, registries: Collection[str]) -> None:
        """Raise UsageError if several registries could ask for the one user name and password given."""
        origin = "--username" if self._options[""].username is not None else ""
        if not origin and self._env.get("OCISTREAM_USERNAME"):
            sides = ("OCISTREAM_SRC_USERNAME", "OCISTREAM_DEST_USERNAME")
            origin = "" if any(self._env.get(name) for name in sides) else "OCISTREAM_USERNAME"
        if origin and len(registries) > 1:
            msg = f"{origin} cannot be used for {' and '.join(sorted(registries))}"
            hint = "run `ocistream login` for each registry"
            if len(self._options) > 1:
                hint += (
                    ", or use --src-username and --dest-username, or OCISTREAM_SRC_USERNAME and OCISTREAM_DEST_USERNAME"
                )
            raise UsageError(msg, hint=hint)

    def check_sides(self, registries: Mapping[str, Collection[str]]) -> None:
        """Raise UsageError if several registries of a side could ask for its user name, or for that of both sides."""
        shared: set[str] = set()
        for side, names in registries.items():
            options = self._options[side]
            if len(names) > 1 and (options.username is not None or self._env.get(f"{variable_prefix(side)}_USERNAME")):
                msg = f"one {SIDES[side]} user name cannot be used for {' and '.join(sorted(names))}"
                raise UsageError(msg, hint="run `ocistream login` for each registry")
            if not options.has_credential:
                shared.update(names)
        self.check_registries(shared)

    def are_given(self, side: str) -> bool:
        """Return whether an option that holds for a side gives a credential, or names the file of credentials."""
        options = [self._options[owner] for owner in (side, "")]
        return any(own.has_credential or own.authfile is not None for own in options)

    def find_credential(self, side: str) -> Credential | None:
        """Return the credential of one side, or None if no option gives one.

        Options of a side override those for both sides. The password for both sides belongs to the user name for both,
        and to no other.
        """
        if side not in self._credentials:
            self._credentials[side] = self._read_credential(side)
        return self._credentials[side]

    def find_auth_file(self, side: str) -> tuple[Path, str] | None:
        """Return the file that --authfile or its form for one side names, and the name of that option.

        No other credential file is read then, as in skopeo: a login found elsewhere would be a silent choice.
        """
        for owner in dict.fromkeys((side, "")):
            if (path := self._options[owner].authfile) is not None:
                option = _option_name(owner, "authfile")
                if not exists(path):
                    msg = f"{option} {printable(path, 1024)}: no such file"
                    hint = "check the path; `ocistream login --authfile FILE` creates such a file"
                    # As for a missing file that a variable or the configuration names: no image was looked up yet.
                    raise AuthenticationError(msg, hint=hint)
                return Path(path), option
        return None

    def read_password(self, side: str = "") -> str | None:
        """Return the password that an option of a side gives, or None; raise UsageError if two options give one."""
        options = self._options[side]
        self._check_password_options(side)
        if options.password_file is not None:
            return read_password_file(options.password_file, _option_name(side, "password-file"))
        if options.password_stdin and self._stdin_password is None:
            self._stdin_password = read_password()
        return self._stdin_password if options.password_stdin else None

    def _check_password_options(self, side: str) -> None:
        options = self._options[side]
        if options.password_file is not None and options.password_stdin:
            both = f"{_option_name(side, 'password-file')} and {_option_name(side, 'password-stdin')}"
            msg = f"{both} both give the password"
            raise UsageError(msg, hint="use one of them")

    def _read_credential(self, side: str) -> Credential | None:
        prefix = variable_prefix(side)
        owner = next((owner for owner in dict.fromkeys((side, "")) if self._options[owner].has_credential), None)
        if owner is None:
            return None
        options, own_prefix = self._options[owner], prefix if owner else "OCISTREAM"
        if options.username == "":
            msg = f"{_option_name(owner, 'username')} is empty"
            raise UsageError(msg, hint="is a shell variable unset?")
        self._check_password_options(owner)
        # A password for one side may belong to the user name for both.
        names = {
            _option_name(owner, "username"): options.username,
            "--username": self._options[""].username,
            f"{prefix}_USERNAME": self._env.get(f"{prefix}_USERNAME"),
            "OCISTREAM_USERNAME": self._env.get("OCISTREAM_USERNAME"),
        }
        usernames = [(name, value) for name, value in names.items() if value]
        if not usernames:
            password_option = "password-stdin" if options.password_stdin else "password-file"
            msg = f"{_option_name(owner, password_option)} needs {_option_name(owner, 'username')}"
            raise UsageError(msg, hint=f"or set {own_prefix}_USERNAME")
        secret = self.read_password(owner) or self._env.get(f"{prefix}_PASSWORD") or self._env.get("OCISTREAM_PASSWORD")
        if not secret:
            msg = f"{_option_name(owner, 'username')} needs a password"
            others = f"{_option_name(owner, 'password-file')} or {_option_name(owner, 'password-stdin')}"
            hint = f"set {own_prefix}_PASSWORD, or use {others}"
            if ":" in usernames[0][1]:
                hint = f"the user name contains ':': omit the password there, and {hint}"
            raise UsageError(msg, hint=hint)
        from ocistream.auth.docker_config import Credential

        source, username = usernames[0]
        return Credential(username, secret, source=source, is_named_by_user=True)


def variable_prefix(side: str) -> str:
    """Return the prefix of the environment variables of a side."""
    return f"OCISTREAM_{side.upper()}" if side else "OCISTREAM"


def _option_name(side: str, name: str) -> str:
    return f"--{side}-{name}" if side else f"--{name}"
