"""Paths of configuration and state files by the XDG Base Directory Specification."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SYSTEM_CONFIG_FILE", "config_home", "state_home", "user_config_file"]

#: The configuration of a machine, for users who have none.
SYSTEM_CONFIG_FILE: Final = Path("/etc/ocistream/config.toml")


def config_home(env: Mapping[str, str], home: Path) -> Path:
    """Give `$XDG_CONFIG_HOME`, else `~/.config`."""
    return _read_absolute_path(env, "XDG_CONFIG_HOME") or home / ".config"


def user_config_file(env: Mapping[str, str], home: Path) -> Path:
    """Give the user's own configuration file, which need not be there."""
    return config_home(env, home) / "ocistream" / "config.toml"


def state_home(env: Mapping[str, str], home: Path | None) -> Path | None:
    """Give `$XDG_STATE_HOME`, else `~/.local/state`; None where there is no home either."""
    return _read_absolute_path(env, "XDG_STATE_HOME") or (home / ".local" / "state" if home is not None else None)


def _read_absolute_path(env: Mapping[str, str], variable: str) -> Path | None:
    """Read a variable; a relative path is to be overlooked. Nobody's working directory says whom to trust."""
    value = env.get(variable, "")
    return Path(value) if value.startswith("/") else None
