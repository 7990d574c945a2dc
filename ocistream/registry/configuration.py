"""How registries are configured, by our file and registries.conf: mirrors, blocked names, TLS, credentials.

Pure data: the files are parsed by `config`, and no request is sent here. Pushes always go to the named registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import AuthenticationError, InvalidNameError
from ocistream.http.host_settings import HostSettings
from ocistream.oci.reference import is_repository, parse_registry, printable
from ocistream.registry.profiles import PROFILES_BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocistream.auth.credentials import CredentialSource
    from ocistream.oci.reference import Reference
    from ocistream.registry.profiles import RegistryProfile

__all__ = [
    "PULL_MODES",
    "HostRule",
    "Mirror",
    "PullSource",
    "RegistryConfiguration",
    "RegistryNamespace",
    "parse_registry_location",
]

#: What a mirror may be used for (containers-registries.conf(5), `pull-from-mirror`).
PULL_MODES: Final = ("all", "digest-only", "tag-only")
#: Keys of a host in a file, and their fields in `HostSettings`.
_FIELDS_BY_KEY: Final = {"plain-http": "plain_http", "ca-cert": "ca_files", "client-cert": "client_certificates"}
_WILDCARD: Final = "*."
_PORT: Final = re.compile(r":[0-9]+\Z")


@dataclass(frozen=True, slots=True)
class Mirror:
    """Another place that has what a registry or a part of it has. `location` is `HOST[:PORT][/PATH]`."""

    location: str
    insecure: bool | None = None
    #: One of `PULLS`.
    pull_mode: str = "all"


@dataclass(frozen=True, slots=True)
class RegistryNamespace:
    """One `[[registry]]` of containers' registries.conf.

    `prefix` is `HOST[:PORT][/PATH]` or `*.DOMAIN`. `location` takes the prefix's place when something is read; None
    leaves names as they are. `source` is the file that says so, for errors.
    """

    prefix: str
    location: str | None = None
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()
    config_file: str = "registries.conf"

    def strip_prefix(self, name: str) -> str | None:
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

    def apply_to(self, other: HostRule) -> HostRule:
        """Return the other rule, changed to what this one says: it is of a file of this run."""
        keys = self.settings.explicit_keys
        named = {
            _FIELDS_BY_KEY[key]: getattr(self.settings, _FIELDS_BY_KEY[key]) for key in keys if key in _FIELDS_BY_KEY
        }
        return replace(
            other,
            settings=replace(other.settings, **named, explicit_keys=keys),
            insecure=self.insecure if "insecure" in keys else other.insecure,
            credentials=self.credentials if "credentials" in keys else other.credentials,
        )


@dataclass(frozen=True, slots=True)
class PullSource:
    """One repository that an image may be read from; `is_mirror` unless it is the registry's own."""

    registry: str
    repository: str
    is_mirror: bool = False
    #: One of `PULLS`.
    pull_mode: str = "all"

    def __str__(self) -> str:
        """Give `registry/repository`."""
        return f"{self.registry}/{self.repository}"

    def can_pull(self, *, by_digest: bool) -> bool:
        """Say whether an image that was named by its digest, or by a tag, may be looked for here."""
        return self.pull_mode != ("tag-only" if by_digest else "digest-only")


class RegistryConfiguration:
    """The rules of one run."""

    def __init__(
        self,
        host_rules: Mapping[str, HostRule],
        namespaces: Sequence[RegistryNamespace] = (),
        *,
        use_mirrors: bool = True,
    ) -> None:
        """Take our own rules, by lower-case host, and containers'; without `mirrors` none is used."""
        self._host_rules = host_rules
        self._namespaces = namespaces
        self._is_using_mirrors = use_mirrors
        self._own_insecure_settings = [
            (mirror.location, mirror.insecure)
            for rule in host_rules.values()
            for mirror in rule.mirrors or ()
            if mirror.insecure is not None
        ]
        self._insecure_settings = list(_list_insecure_settings(namespaces))

    def find_pull_sources(self, reference: Reference) -> tuple[PullSource, ...]:
        """List the places to read an image from; the last is the registry's own.

        Raises:
            AuthenticationError: reading from there is blocked.
        """
        name = _full_name(reference.registry, reference.repository)
        namespace = self._find_namespace(name)
        self._check_not_blocked(name)
        primary = _parse_pull_source(_rewrite_name(namespace, name))
        self._check_not_blocked(str(primary))
        found = dict.fromkeys(self._find_mirrors(reference, namespace, name)) if self._is_using_mirrors else {}
        others = []
        for place in found:
            if (blocking := self._find_blocking_namespace(str(place))) is not None:
                notices.notify(f"the mirror {place} is not asked: {blocking.config_file} blocks it", level=1)
            elif str(place) != str(primary):
                others.append(place)
        if namespace is not None and str(primary) != name:
            what = f"{printable(name)} is read from {printable(str(primary))}"
            notices.notify(f"{what}, its location in {namespace.config_file}", level=1)
        if str(primary) == name:
            # In the spelling of whoever named it.
            primary = replace(primary, registry=reference.registry)
        return (*others, primary)

    def check_push(self, reference: Reference) -> None:
        """Make sure that an image may be pushed to its registry.

        Raises:
            AuthenticationError: it is blocked.
        """
        self._check_not_blocked(_full_name(reference.registry, reference.repository))

    def settings(self, registry: str, repository: str = "") -> HostSettings:
        """Say how a host is reached for one of its repositories; without one, for what is no repository's.

        What our own configuration says of it counts for more than containers', of which `insecure` may be said of a
        part of a host, and means that HTTP will do as well; ours, as --insecure, is of certificates only.
        """
        rule = self._host_rules.get(registry.lower(), HostRule())
        name = _full_name(registry, repository) if repository else registry.lower()
        own = _find_insecure_setting(self._own_insecure_settings, name) if rule.insecure is None else rule.insecure
        if own is not None:
            return replace(rule.settings, insecure=own)
        return (
            replace(rule.settings, insecure=True, has_http_fallback=True) if self._is_insecure(name) else rule.settings
        )

    def credentials(self, registry: str) -> CredentialSource | None:
        """Say where a host's secrets are, if our own configuration says so."""
        return self._host_rules.get(registry.lower(), HostRule()).credentials

    def profile(self, registry: str) -> RegistryProfile | None:
        """Say what kind of registry a host is, if our own configuration says so."""
        name = self._host_rules.get(registry.lower(), HostRule()).settings.profile
        return None if name is None else PROFILES_BY_NAME[name]

    def _find_mirrors(
        self, reference: Reference, namespace: RegistryNamespace | None, name: str
    ) -> Iterator[PullSource]:
        own = self._host_rules.get(reference.registry.lower(), HostRule()).mirrors
        if own is not None:
            for mirror in own:
                yield _parse_pull_source(f"{mirror.location}/{reference.repository}", mirror)
        elif namespace is not None:
            rest = namespace.strip_prefix(name) or ""
            for mirror in namespace.mirrors:
                yield _parse_pull_source(f"{mirror.location}{rest}", mirror)

    def _find_namespace(self, name: str) -> RegistryNamespace | None:
        """Find the one `[[registry]]` that counts: that of the longest prefix, and of two alike the first."""
        fitting = [namespace for namespace in self._namespaces if namespace.strip_prefix(name) is not None]
        return max(fitting, key=lambda namespace: len(namespace.prefix), default=None)

    def _find_blocking_namespace(self, name: str) -> RegistryNamespace | None:
        namespace = self._find_namespace(name)
        return namespace if namespace is not None and namespace.blocked else None

    def _check_not_blocked(self, name: str) -> None:
        namespace = self._find_blocking_namespace(name)
        if namespace is not None:
            msg = f"{printable(name)} is blocked: {namespace.config_file} says so of {printable(namespace.prefix)}"
            raise AuthenticationError(msg)

    def _is_insecure(self, name: str) -> bool:
        if (known := _find_insecure_setting(self._insecure_settings, name)) is not None:
            return known
        namespace = self._find_namespace(name)
        return namespace is not None and namespace.insecure


def parse_registry_location(text: str) -> str:
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


def _full_name(registry: str, repository: str) -> str:
    return f"{registry.lower()}/{repository}"


def _rewrite_name(namespace: RegistryNamespace | None, name: str) -> str:
    if namespace is None or namespace.location is None:
        return name
    return f"{namespace.location}{namespace.strip_prefix(name)}"


def _parse_pull_source(name: str, mirror: Mirror | None = None) -> PullSource:
    registry, _, repository = name.partition("/")
    return PullSource(registry, repository, mirror is not None, mirror.pull_mode if mirror else "all")


def _list_insecure_settings(namespaces: Sequence[RegistryNamespace]) -> Iterator[tuple[str, bool]]:
    """Collect of which locations it is said whether they are insecure; *.DOMAIN is not one."""
    for namespace in namespaces:
        for where in {namespace.prefix, namespace.location or namespace.prefix}:
            if not where.startswith(_WILDCARD):
                yield where, namespace.insecure
        for mirror in namespace.mirrors:
            yield mirror.location, bool(mirror.insecure)


def _find_insecure_setting(said: Sequence[tuple[str, bool]], name: str) -> bool | None:
    """Give what is said of the longest location that a name is in, or is; None where nothing is.

    Where two things are said of one location, it is not insecure: nobody is to see a password by a contradiction.
    """
    fitting = [(where, insecure) for where, insecure in said if f"{name}/".startswith(f"{where}/")]
    longest = max((len(where) for where, _ in fitting), default=0)
    return all(insecure for where, insecure in fitting if len(where) == longest) if fitting else None
