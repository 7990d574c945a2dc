"""The table of targets, by name."""

from __future__ import annotations

from typing import Final

from tests.fuzz.engine import Target
from tests.fuzz.targets import archives, configurations, documents, names, registries, signatures

TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for module in (archives, documents, names, configurations, registries, signatures)
    for target in module.TARGETS
}
