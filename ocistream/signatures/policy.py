"""The policy of the configuration: which keys must have signed the images below a registry or a repository."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["TrustPolicy", "TrustRule"]


@dataclass(frozen=True, slots=True)
class TrustRule:
    """What holds for the images below `prefix`: a signature by one of the keys in `keys`, nothing, or a refusal."""

    prefix: str
    keys: tuple[str, ...] = ()
    rejects: bool = False


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """The rules by their prefixes: `HOST[:PORT][/PATH]`, in normal form."""

    rules: Mapping[str, TrustRule] = field(default_factory=dict)

    def find(self, repository: str) -> TrustRule | None:
        """Return the rule for `HOST/REPOSITORY`: the one with the longest prefix of complete path segments."""
        prefix = repository
        while prefix:
            if (rule := self.rules.get(prefix)) is not None:
                return rule
            prefix = prefix.rpartition("/")[0]
        return None

    def find_all(self, repositories: Iterable[str]) -> list[TrustRule]:
        """Return the rules for an image that has several names. All of them hold."""
        if not self.rules:
            return []
        found = {rule.prefix: rule for name in repositories if (rule := self.find(name)) is not None}
        return list(found.values())
