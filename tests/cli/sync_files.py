"""Files for `ocistream sync`."""

from __future__ import annotations

import json
from pathlib import Path


def entry(source: str, *targets: str, **keys: str) -> str:
    """Return one [[sync]] table as text; `keys` are further keys with their values in TOML."""
    to = targets if len(targets) > 1 else targets[0]
    lines = ["[[sync]]", f"from = {json.dumps(source)}", f"to = {json.dumps(to)}"]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in keys.items()), ""])


def sync_file(folder: Path, text: str) -> Path:
    """Write a sync file."""
    file = folder / "sync.toml"
    file.write_text(text)
    return file
