"""Paths of configuration and state files by the XDG Base Directory Specification."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream.streams.paths import exists

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The configuration of the machine, for users without their own.
SYSTEM_CONFIG_FILE: Final = Path("/etc/ocistream/config.toml")


def config_home(env: Mapping[str, str], home: Path) -> Path:
    """Return `$XDG_CONFIG_HOME`, else `~/.config`."""
    return _read_absolute_path(env, "XDG_CONFIG_HOME") or home / ".config"


def user_config_file(env: Mapping[str, str], home: Path) -> Path:
    """Return the path of the user's own configuration file, which may not exist."""
    return config_home(env, home) / "ocistream" / "config.toml"


def find_configuration_file(env: Mapping[str, str], home: Path, *, system: Path = SYSTEM_CONFIG_FILE) -> Path | None:
    """Return the user's configuration file, else that of the machine; None if neither exists.

    Raises:
        LocalDiskError: a path cannot be checked.
    """
    return next((path for path in (user_config_file(env, home), system) if exists(path)), None)


def state_home(env: Mapping[str, str], home: Path | None) -> Path | None:
    """Return `$XDG_STATE_HOME`, else `~/.local/state`; None without a home directory."""
    return _read_absolute_path(env, "XDG_STATE_HOME") or (home / ".local" / "state" if home is not None else None)


def _read_absolute_path(env: Mapping[str, str], variable: str) -> Path | None:
    """Return the path in a variable. A relative path is ignored (XDG Base Directory Specification).

    Otherwise the working directory would decide which configuration is trusted.
    """
    value = env.get(variable, "")
    return Path(value) if value.startswith("/") else None
