"""The credential that options and environment give for the registry of a side, and the file that --authfile names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocistream.cli.sides import CREDENTIAL
from ocistream.cli.streams import read_password, read_password_file
from ocistream.errors import NotFoundError, UsageError
from ocistream.reference import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.credentials import Credential

__all__ = ["GivenCredentials"]


class GivenCredentials:
    """The credentials of one run; `side` is "SRC" or "DEST" for the sides of `copy`, else ""."""

    def __init__(self, options: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """Take the options of a command, and the environment."""
        self._options = options
        self._env = env
        #: By side.
        self._known: dict[str, Credential | None] = {}
        #: Stdin can be read once, also where the password is for both sides.
        self._on_stdin: str | None = None

    def of(self, side: str) -> Credential | None:
        """Return the credential of one side, or None where no option gives one.

        A side's own options come before those for both. The password for both sides is used with the user name for
        both, and with no other.

        Raises:
            UsageError: the user name or the password is missing, or the password is given twice.
            NotFoundError, LocalDiskError: the file of the password cannot be read.
        """
        if side not in self._known:
            self._known[side] = self._read(side)
        return self._known[side]

    def password(self) -> str | None:
        """Return the password that an option gives, or None.

        Raises:
            UsageError, NotFoundError, LocalDiskError: as `of`.
        """
        return self._password("")[0]

    def auth_file(self, side: str) -> tuple[Path, str] | None:
        """Return the file that --authfile or its form for one side names, and that option.

        Raises:
            NotFoundError: it does not exist.
        """
        for key in dict.fromkeys((_key(side), "")):
            if path := self._options.get(f"{key}authfile"):
                option = _option(key, "authfile")
                if not Path(path).exists():
                    msg = f"{option} {printable(path, 1024)}: no such file"
                    raise NotFoundError(msg, hint="is the path right? `ocistream login --authfile FILE` writes one")
                return Path(path), option
        return None

    def _read(self, side: str) -> Credential | None:
        prefix = f"OCISTREAM_{side}" if side else "OCISTREAM"
        keys = dict.fromkeys((_key(side), ""))
        key = next((key for key in keys if any(self._options.get(f"{key}{name}") for name in CREDENTIAL)), None)
        if key is None:
            return None
        secret, given_by = self._password(key)
        # A password of one side may be for the user name of both.
        username = self._options.get(f"{key}username") or (self._options.get("username") if given_by else None)
        username = username or self._env.get(f"{prefix}_USERNAME") or self._env.get("OCISTREAM_USERNAME")
        if not username:
            msg = f"{given_by} needs {_option(key, 'username')}"
            raise UsageError(msg, hint=f"or set {prefix if key else 'OCISTREAM'}_USERNAME")
        secret = secret or self._env.get(f"{prefix}_PASSWORD") or self._env.get("OCISTREAM_PASSWORD")
        if not secret:
            msg = f"{_option(key, 'username')} needs a password"
            others = f"{_option(key, 'password-file')} or {_option(key, 'password-stdin')}"
            raise UsageError(msg, hint=f"set {prefix if key else 'OCISTREAM'}_PASSWORD, or give {others}")
        from ocistream.credentials import Credential

        return Credential(username, secret, source=_option(key, "username"))

    def _password(self, key: str) -> tuple[str | None, str]:
        """Return the password that an option gives, and that option; None and "" where there is none."""
        path, on_stdin = self._options.get(f"{key}password_file"), self._options.get(f"{key}password_stdin")
        by_file, by_stdin = _option(key, "password-file"), _option(key, "password-stdin")
        if path and on_stdin:
            msg = f"{by_file} and {by_stdin} both give the password"
            raise UsageError(msg, hint="give one of them")
        if path:
            return read_password_file(path, by_file), by_file
        if not on_stdin:
            return None, ""
        if self._on_stdin is None:
            self._on_stdin = read_password()
        return self._on_stdin, by_stdin


def _key(side: str) -> str:
    return f"{side.lower()}_" if side else ""


def _option(key: str, name: str) -> str:
    return f"--{key.replace('_', '-')}{name}"
