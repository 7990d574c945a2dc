"""Where this user's files are, by the XDG Base Directory Specification, and where the machine's configuration is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SYSTEM_FILE", "configuration_file", "configuration_home", "state_home"]

#: The configuration of a machine, for users who have none.
SYSTEM_FILE: Final = Path("/etc/ocistream/config.toml")


def configuration_home(env: Mapping[str, str], home: Path) -> Path:
    """Give `$XDG_CONFIG_HOME`, else `~/.config`."""
    return _absolute(env, "XDG_CONFIG_HOME") or home / ".config"


def configuration_file(env: Mapping[str, str], home: Path) -> Path:
    """Give the user's own configuration file, which need not be there."""
    return configuration_home(env, home) / "ocistream" / "config.toml"


def state_home(env: Mapping[str, str], home: Path | None) -> Path | None:
    """Give `$XDG_STATE_HOME`, else `~/.local/state`; None where there is no home either."""
    return _absolute(env, "XDG_STATE_HOME") or (home / ".local" / "state" if home is not None else None)


def _absolute(env: Mapping[str, str], variable: str) -> Path | None:
    """Read a variable; a relative path is to be overlooked. Nobody's working directory says whom to trust."""
    value = env.get(variable, "")
    return Path(value) if value.startswith("/") else None
