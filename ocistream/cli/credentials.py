"""Credentials that options and environment variables provide for one side, and the file that --authfile names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocistream.cli.registry_options import has_credential
from ocistream.cli.standard_streams import read_password, read_password_file
from ocistream.errors import AuthenticationError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams.paths import exists

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.auth.credentials import Credential

__all__ = ["ExplicitCredentials"]


class ExplicitCredentials:
    """The credentials of one run; `side` is "SRC" or "DEST" for the sides of `copy`, else ""."""

    def __init__(self, options: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """Take the options of a command and the environment."""
        self._options = options
        self._env = env
        #: Credentials by side.
        self._credentials: dict[str, Credential | None] = {}
        #: The password read from stdin, which can be read only once for both sides.
        self._stdin_password: str | None = None

    def find_credential(self, side: str) -> Credential | None:
        """Return the credential of one side, or None if no option gives one.

        Options of a side override those for both sides. The password for both sides belongs to the user name for both,
        and to no other.
        """
        if side not in self._credentials:
            self._credentials[side] = self._read_credential(side)
        return self._credentials[side]

    def read_password(self) -> str | None:
        """Return the password that an option gives, or None."""
        return self._read_password("", self._find_source(""))

    def find_auth_file(self, side: str) -> tuple[Path, str] | None:
        """Return the file that --authfile or its form for one side names, and the name of that option.

        No other credential file is read then, as in skopeo: a login found elsewhere would be a silent choice.
        """
        for key in dict.fromkeys((_option_prefix(side), "")):
            if (path := self._options.get(f"{key}authfile")) is not None:
                option = _option_name(key, "authfile")
                if not path:
                    msg = f"{option} is empty"
                    raise UsageError(msg, hint="is it a variable that is not set?")
                if not exists(path):
                    msg = f"{option} {printable(path, 1024)}: no such file"
                    hint = "is the path right? `ocistream login --authfile FILE` writes one"
                    # AuthenticationError, as for a missing file named by a variable or the configuration: no image was
                    # looked up yet.
                    raise AuthenticationError(msg, hint=hint)
                return Path(path), option
        return None

    def _read_credential(self, side: str) -> Credential | None:
        prefix = f"OCISTREAM_{side}" if side else "OCISTREAM"
        owner = next(
            (candidate for candidate in dict.fromkeys((side, "")) if has_credential(self._options, candidate)), None
        )
        if owner is None:
            return None
        key = _option_prefix(owner)
        if self._options.get(f"{key}username") == "":
            msg = f"{_option_name(key, 'username')} is empty"
            raise UsageError(msg, hint="is it a variable that is not set?")
        password_option = self._find_source(key)
        # A password for one side may belong to the user name for both.
        names = {
            _option_name(key, "username"): self._options.get(f"{key}username"),
            "--username": self._options.get("username"),
            f"{prefix}_USERNAME": self._env.get(f"{prefix}_USERNAME"),
            "OCISTREAM_USERNAME": self._env.get("OCISTREAM_USERNAME"),
        }
        usernames = [(name, value) for name, value in names.items() if value]
        if not usernames:
            msg = f"{_option_name(key, password_option or 'password')} needs {_option_name(key, 'username')}"
            raise UsageError(msg, hint=f"or set {prefix if key else 'OCISTREAM'}_USERNAME")
        secret = (
            self._read_password(key, password_option)
            or self._env.get(f"{prefix}_PASSWORD")
            or self._env.get("OCISTREAM_PASSWORD")
        )
        if not secret:
            msg = f"{_option_name(key, 'username')} needs a password"
            others = f"{_option_name(key, 'password-file')} or {_option_name(key, 'password-stdin')}"
            raise UsageError(msg, hint=f"set {prefix if key else 'OCISTREAM'}_PASSWORD, or give {others}")
        from ocistream.auth.credentials import Credential

        source, username = usernames[0]
        return Credential(username, secret, source=source)

    def _find_source(self, key: str) -> str | None:
        """Return the option that gives the password, or None; raise UsageError if two do."""
        options = {
            name: self._options.get(key + name.replace("-", "_")) for name in ("password-file", "password-stdin")
        }
        names = [name for name, value in options.items() if value not in {None, False}]
        if len(names) > 1:
            msg = f"{_option_name(key, names[0])} and {_option_name(key, names[1])} both give the password"
            raise UsageError(msg, hint="give one of them")
        return names[0] if names else None

    def _read_password(self, key: str, source: str | None) -> str | None:
        if source == "password-file":
            return read_password_file(self._options[f"{key}password_file"], _option_name(key, source))
        if source == "password-stdin" and self._stdin_password is None:
            self._stdin_password = read_password()
        return self._stdin_password if source else None


def _option_prefix(side: str) -> str:
    return f"{side.lower()}_" if side else ""


def _option_name(key: str, name: str) -> str:
    return f"--{key.replace('_', '-')}{name}"
