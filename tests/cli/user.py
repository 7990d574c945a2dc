"""A user with a home directory."""

from __future__ import annotations

from pathlib import Path

from tests.runner import Argument, Result, ocistream


class User:
    """A user with a new HOME: programs find no other configuration."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.home = home
        self.file = home / ".config/ocistream/config.toml"
        self.env: dict[str, str | None] = {"HOME": str(home), "XDG_CONFIG_HOME": None}

    def write(self, name: str, *lines: str) -> Path:
        """Write a file below HOME."""
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
        return path

    def configure(self, *lines: str) -> Path:
        """Write ocistream's configuration."""
        return self.write(".config/ocistream/config.toml", *lines)

    def run(self, *argv: Argument, **env: str) -> Result:
        return ocistream(*argv, env={**self.env, **env})
