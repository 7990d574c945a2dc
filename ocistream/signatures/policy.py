"""The policy of the configuration: which signers must have signed the images below a registry or a repository."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ocistream.errors import InvalidNameError, UnsupportedError
from ocistream.oci.reference import parse_reference, parse_registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ocistream.oci.graph import Root
    from ocistream.oci.reference import Reference
    from ocistream.signatures.signers import Signer


@dataclass(frozen=True, slots=True)
class TrustRule:
    """What holds for the images below `prefix`: a signature by one of the `signers`, nothing, or a refusal."""

    prefix: str
    signers: tuple[Signer, ...] = ()
    rejects: bool = False


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """The rules by their prefixes: `HOST[:PORT][/PATH]`, as `normalize_prefix` returns them."""

    rules: Mapping[str, TrustRule] = field(default_factory=dict)

    def find(self, repository: str) -> TrustRule | None:
        """Return the rule for `HOST/REPOSITORY`: the one with the longest prefix of complete path segments."""
        prefix = normalize_prefix(repository) if repository else ""
        while prefix:
            if (rule := self.rules.get(prefix)) is not None:
                return rule
            prefix = prefix.rpartition("/")[0]
        return None

    def find_for(self, root: Root, names: Iterable[str], references: Iterable[Reference | None]) -> list[TrustRule]:
        """Return the rules for an image, all of which hold: by its own names, and by where it is read and written.

        `names` are further names of the image in its archive or layout.
        """
        named = [_parse_name(name) for name in (root.name, *names) if name]
        return self._find_all([root.origin, *_list_repositories([*named, *references])])

    def needs_signatures(self, references: Iterable[Reference | None], *, may_have_names: bool) -> bool:
        """Return whether an image that is read and written there may need signatures.

        With `may_have_names`, the image may have other names as well.
        """
        rules = self.rules.values() if may_have_names else self._find_all(_list_repositories(references))
        return any(rule.signers for rule in rules)

    def _find_all(self, repositories: Iterable[str]) -> list[TrustRule]:
        found = {rule.prefix: rule for name in repositories if (rule := self.find(name)) is not None}
        return list(found.values())


def _list_repositories(references: Iterable[Reference | None]) -> list[str]:
    return [f"{reference.registry}/{reference.repository}" for reference in references if reference is not None]


def normalize_prefix(prefix: str) -> str:
    """Return `HOST[:PORT][/PATH]` with the usual spelling of the host, in lower case and without a default port.

    Otherwise another spelling of a registry's name would escape its rule.
    """
    host, slash, path = prefix.partition("/")
    host = parse_registry(host.lower().removesuffix(":443").removesuffix(":80"))
    if host.startswith("["):
        # Imported here, because few hosts are IPv6 addresses.
        from ipaddress import IPv6Address

        address, bracket, port = host[1:].partition("]")
        host = f"[{IPv6Address(address)}{bracket}{port}"
    return f"{host}{slash}{path}"


def _parse_name(name: str) -> Reference | None:
    """Parse a name in an archive, which may be a short one of Docker Hub. A bare tag names no repository."""
    if not {":", "/"} & set(name):
        return None
    try:
        return parse_reference(name, default_tag=False)
    except (InvalidNameError, UnsupportedError):
        return None
