"""Hatch's hook: a wheel gets its man pages when it is built, from the sources that it is built of."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface[Any]):
    """Adds `share/man/man1` to a wheel. One that is only a link to the sources (`pip install -e`) has none."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the pages."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        from scripts.release.man_pages import write  # noqa: PLC0415 - it is found only now

        self._folder = tempfile.TemporaryDirectory()
        write(Path(self._folder.name))
        build_data["shared_data"][self._folder.name] = "share/man/man1"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - its form
        """Take the pages away, which are in the wheel by now."""
        if version != "editable":
            self._folder.cleanup()
