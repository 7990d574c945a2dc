"""Hatch's build hook: make the man pages of a wheel from the sources."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface[Any]):
    """Adds `share/man/man1` to a wheel, except to an editable one (`pip install -e`)."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the pages into a temporary directory."""
        # An older Python cannot import the sources. pip refuses the wheel afterwards, by its Requires-Python.
        if version == "editable" or sys.version_info < (3, 11):
            return
        sys.path.insert(0, self.root)
        from scripts.release.man_pages import write  # noqa: PLC0415 - sys.path was extended just now

        self._folder = tempfile.TemporaryDirectory()
        write(Path(self._folder.name))
        build_data["shared_data"][self._folder.name] = "share/man/man1"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - hatch's signature
        """Delete the temporary directory."""
        if self._folder is not None:
            self._folder.cleanup()
