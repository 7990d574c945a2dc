"""What a token is asked for: `repository:NAME:ACTION,...` (distribution, "Token Scope Documentation")."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["missing_scopes", "repository_scope", "split_scope"]


def repository_scope(repository: str, *actions: str) -> str:
    """Write one scope: `scopes_for("org/app", "pull", "push")` is "repository:org/app:pull,push"."""
    return f"repository:{repository}:{','.join(actions)}"


def split_scope(scope: str) -> tuple[str, frozenset[str]]:
    """Take a scope apart: what it is for, and the actions."""
    resource, _, actions = scope.rpartition(":")
    return resource, frozenset(actions.split(","))


def missing_scopes(wanted: Iterable[str], held: Iterable[str]) -> tuple[str, ...]:
    """Give those of the `wanted` scopes that the `held` ones do not include, each once, in their order."""
    known = [split_scope(scope) for scope in held]
    missing = []
    for scope in dict.fromkeys(wanted):
        resource, actions = split_scope(scope)
        if not any(resource == other and actions <= more for other, more in known):
            missing.append(scope)
    return tuple(missing)
