"""Where an image may be read from: mirrors, in their order, and then the registry that it is named after.

Rules only: what our own configuration and containers' registries.conf say is handed in, and nothing is asked for here.
The name that a user gave stays the image's name, wherever its bytes come from. What is pushed goes to the registry
that was named: containers-registries.conf(5) has mirrors and other locations for reading only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import AuthenticationError, InvalidNameError
from ocistream.http.hosts import HostSettings
from ocistream.oci.reference import is_repository, parse_registry, printable
from ocistream.registry.profiles import NAMED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocistream.auth.credentials import CredentialSource
    from ocistream.oci.reference import Reference
    from ocistream.registry.profiles import Profile

__all__ = ["PULLS", "HostRule", "Mirror", "Namespace", "Place", "Places", "checked_location"]

#: What a mirror may be used for (containers-registries.conf(5), `pull-from-mirror`).
PULLS: Final = ("all", "digest-only", "tag-only")
#: Keys of a host in a file, and their fields in `HostSettings`.
_FIELDS: Final = {"plain-http": "plain_http", "ca-cert": "ca_files", "client-cert": "client_certificates"}
_WILDCARD: Final = "*."
_PORT: Final = re.compile(r":[0-9]+\Z")


@dataclass(frozen=True, slots=True)
class Mirror:
    """Another place that has what a registry or a part of it has. `location` is `HOST[:PORT][/PATH]`."""

    location: str
    insecure: bool | None = None
    #: One of `PULLS`.
    pull: str = "all"


@dataclass(frozen=True, slots=True)
class Namespace:
    """One `[[registry]]` of containers' registries.conf.

    `prefix` is `HOST[:PORT][/PATH]` or `*.DOMAIN`. `location` takes the prefix's place when something is read; None
    leaves names as they are. `source` is the file that says so, for errors.
    """

    prefix: str
    location: str | None = None
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()
    source: str = "registries.conf"

    def rest_of(self, name: str) -> str | None:
        """Give what follows the prefix in an image's name; None where it does not begin with it."""
        if not self.prefix.startswith(_WILDCARD):
            rest = name.removeprefix(self.prefix)
            return rest if name.startswith(self.prefix) and rest[:1] in {"", "/"} else None
        host, slash, path = name.partition("/")
        # A domain is meant, on whatever port.
        domain = host if _PORT.search(self.prefix) else _PORT.sub("", host)
        return slash + path if domain.endswith(self.prefix[1:]) else None


@dataclass(frozen=True, slots=True)
class HostRule:
    """What our own configuration says of one host. None is what it leaves to others."""

    settings: HostSettings = field(default_factory=HostSettings)
    insecure: bool | None = None
    mirrors: tuple[Mirror, ...] | None = None
    credentials: CredentialSource | None = None

    def before(self, other: HostRule) -> HostRule:
        """Return the other rule, changed to what this one says: it is of a file of this run."""
        keys = self.settings.said
        named = {_FIELDS[key]: getattr(self.settings, _FIELDS[key]) for key in keys if key in _FIELDS}
        return replace(
            other,
            settings=replace(other.settings, **named, said=keys),
            insecure=self.insecure if "insecure" in keys else other.insecure,
            credentials=self.credentials if "credentials" in keys else other.credentials,
        )


@dataclass(frozen=True, slots=True)
class Place:
    """One repository that an image may be read from; `is_mirror` unless it is the registry's own."""

    registry: str
    repository: str
    is_mirror: bool = False
    #: One of `PULLS`.
    pull: str = "all"

    def __str__(self) -> str:
        """Give `registry/repository`."""
        return f"{self.registry}/{self.repository}"

    def takes(self, *, by_digest: bool) -> bool:
        """Say whether an image that was named by its digest, or by a tag, may be looked for here."""
        return self.pull != ("tag-only" if by_digest else "digest-only")


class Places:
    """The rules of one run."""

    def __init__(
        self, own: Mapping[str, HostRule], namespaces: Sequence[Namespace] = (), *, mirrors: bool = True
    ) -> None:
        """Take our own rules, by lower-case host, and containers'; without `mirrors` none is used."""
        self._own = own
        self._namespaces = namespaces
        self._mirrors = mirrors
        self._own_said = [
            (mirror.location, mirror.insecure)
            for rule in own.values()
            for mirror in rule.mirrors or ()
            if mirror.insecure is not None
        ]
        self._said = list(_said(namespaces))

    def of(self, reference: Reference) -> tuple[Place, ...]:
        """List the places to read an image from; the last is the registry's own.

        Raises:
            AuthenticationError: reading from there is blocked.
        """
        name = _name(reference.registry, reference.repository)
        namespace = self._namespace(name)
        self._check_not_blocked(name)
        primary = _place(_rewritten(namespace, name))
        self._check_not_blocked(str(primary))
        found = dict.fromkeys(self._mirrors_of(reference, namespace, name)) if self._mirrors else {}
        others = []
        for place in found:
            if (blocking := self._blocks(str(place))) is not None:
                notices.notice(f"the mirror {place} is not asked: {blocking.source} blocks it", level=1)
            elif str(place) != str(primary):
                others.append(place)
        if namespace is not None and str(primary) != name:
            what = f"{printable(name)} is read from {printable(str(primary))}"
            notices.notice(f"{what}, its location in {namespace.source}", level=1)
        if str(primary) == name:
            # In the spelling of whoever named it.
            primary = replace(primary, registry=reference.registry)
        return (*others, primary)

    def check_push(self, reference: Reference) -> None:
        """Make sure that an image may be pushed to its registry.

        Raises:
            AuthenticationError: it is blocked.
        """
        self._check_not_blocked(_name(reference.registry, reference.repository))

    def settings(self, registry: str, repository: str = "") -> HostSettings:
        """Say how a host is reached for one of its repositories; without one, for what is no repository's.

        What our own configuration says of it counts for more than containers', of which `insecure` may be said of a
        part of a host, and means that HTTP will do as well; ours, as --insecure, is of certificates only.
        """
        rule = self._own.get(registry.lower(), HostRule())
        name = _name(registry, repository) if repository else registry.lower()
        own = _insecure(self._own_said, name) if rule.insecure is None else rule.insecure
        if own is not None:
            return replace(rule.settings, insecure=own)
        return replace(rule.settings, insecure=True, may_be_plain=True) if self._is_insecure(name) else rule.settings

    def credentials(self, registry: str) -> CredentialSource | None:
        """Say where a host's secrets are, if our own configuration says so."""
        return self._own.get(registry.lower(), HostRule()).credentials

    def profile(self, registry: str) -> Profile | None:
        """Say what kind of registry a host is, if our own configuration says so."""
        name = self._own.get(registry.lower(), HostRule()).settings.profile
        return None if name is None else NAMED[name]

    def _mirrors_of(self, reference: Reference, namespace: Namespace | None, name: str) -> Iterator[Place]:
        own = self._own.get(reference.registry.lower(), HostRule()).mirrors
        if own is not None:
            for mirror in own:
                yield _place(f"{mirror.location}/{reference.repository}", mirror)
        elif namespace is not None:
            rest = namespace.rest_of(name) or ""
            for mirror in namespace.mirrors:
                yield _place(f"{mirror.location}{rest}", mirror)

    def _namespace(self, name: str) -> Namespace | None:
        """Find the one `[[registry]]` that counts: that of the longest prefix, and of two alike the first."""
        fitting = [namespace for namespace in self._namespaces if namespace.rest_of(name) is not None]
        return max(fitting, key=lambda namespace: len(namespace.prefix), default=None)

    def _blocks(self, name: str) -> Namespace | None:
        namespace = self._namespace(name)
        return namespace if namespace is not None and namespace.blocked else None

    def _check_not_blocked(self, name: str) -> None:
        namespace = self._blocks(name)
        if namespace is not None:
            msg = f"{printable(name)} is blocked: {namespace.source} says so of {printable(namespace.prefix)}"
            raise AuthenticationError(msg)

    def _is_insecure(self, name: str) -> bool:
        if (known := _insecure(self._said, name)) is not None:
            return known
        namespace = self._namespace(name)
        return namespace is not None and namespace.insecure


def checked_location(text: str) -> str:
    """Check `HOST[:PORT][/PATH]`, and give it without a slash at its end and with its host in lower case.

    Raises:
        InvalidNameError: it is something else, such as a URL.
    """
    host, _, path = text.rstrip("/").partition("/")
    if "://" in text or (path and not is_repository(path)):
        msg = f"malformed location {printable(text)!r}"
        raise InvalidNameError(msg, hint="write HOST[:PORT][/PATH], without http:// or https://")
    host = parse_registry(host.lower())
    return f"{host}/{path}" if path else host


def _name(registry: str, repository: str) -> str:
    return f"{registry.lower()}/{repository}"


def _rewritten(namespace: Namespace | None, name: str) -> str:
    if namespace is None or namespace.location is None:
        return name
    return f"{namespace.location}{namespace.rest_of(name)}"


def _place(name: str, mirror: Mirror | None = None) -> Place:
    registry, _, repository = name.partition("/")
    return Place(registry, repository, mirror is not None, mirror.pull if mirror else "all")


def _said(namespaces: Sequence[Namespace]) -> Iterator[tuple[str, bool]]:
    """Collect of which locations it is said whether they are insecure; *.DOMAIN is not one."""
    for namespace in namespaces:
        for where in {namespace.prefix, namespace.location or namespace.prefix}:
            if not where.startswith(_WILDCARD):
                yield where, namespace.insecure
        for mirror in namespace.mirrors:
            yield mirror.location, bool(mirror.insecure)


def _insecure(said: Sequence[tuple[str, bool]], name: str) -> bool | None:
    """Give what is said of the longest location that a name is in, or is; None where nothing is.

    Where two things are said of one location, it is not insecure: nobody is to see a password by a contradiction.
    """
    fitting = [(where, insecure) for where, insecure in said if f"{name}/".startswith(f"{where}/")]
    longest = max((len(where) for where, _ in fitting), default=0)
    return all(insecure for where, insecure in fitting if len(where) == longest) if fitting else None
