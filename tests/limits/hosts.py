"""Names of public hosts for the registries of tests."""

from __future__ import annotations

from typing import Final

from tests.faulty_registry import FaultyRegistry

#: The address of a public registry, for `tests.raw_server.names`.
OUTSIDE: Final = "203.0.113.5"


def public(name: str, registry: FaultyRegistry) -> str:
    """Return HOST:PORT of the registry with a public name, which `tests.raw_server.names` routes to this machine."""
    return f"{name}.test:{registry.host.rpartition(':')[2]}"
