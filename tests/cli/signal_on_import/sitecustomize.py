"""Send this process a signal at the Nth import after `ocistream.cli` itself; Python imports this file first."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_number = int(os.environ["STRIKE_WITH"])
_left = int(os.environ["STRIKE_AT"])
_has_begun = False
#: Modules that must be imported before a handler can be installed.
_BEFORE = {"ocistream.cli", "ocistream", "__future__"}


def _strike(event: str, arguments: tuple[Any, ...]) -> None:
    global _has_begun, _left  # noqa: PLW0603 - a hook has no other state
    if event != "import" or arguments[0] in _BEFORE:
        _has_begun = _has_begun or event == "import"
        return
    _left -= _has_begun
    # Only once: coverage imports more modules while the process ends.
    if _has_begun and _left == -1:
        Path(os.environ["STRIKE_TELLS"]).touch()
        os.kill(os.getpid(), _number)


# The hook is called for each module that is not imported yet, so not for the imports of this file.
sys.addaudithook(_strike)
