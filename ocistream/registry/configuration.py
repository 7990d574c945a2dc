"""How registries are configured, by our file and registries.conf: mirrors, blocked names, TLS, credentials.

Pure data: the files are parsed by `config`, and no request is sent here. Pushes always go to the named registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import AuthenticationError, InvalidNameError
from ocistream.http.settings import HostSettings
from ocistream.oci.reference import is_repository, parse_registry, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ocistream.auth.credentials import CredentialSource
    from ocistream.oci.reference import Reference

#: What a mirror may be used for (containers-registries.conf(5), `pull-from-mirror`).
PULL_MODES: Final = ("all", "digest-only", "tag-only")
#: Keys of a host in a file, and their fields in `HostSettings`.
_FIELDS_BY_KEY: Final = {
    "plain-http": "plain_http",
    "ca-cert": "ca_files",
    "client-cert": "client_certificates",
    "jobs": "jobs",
    "limit-rate": "limit_rate",
    "requests-per-second": "requests_per_second",
}
_WILDCARD: Final = "*."
_PORT: Final = re.compile(r":[0-9]+\Z")


@dataclass(frozen=True, slots=True)
class Mirror:
    """Another location that serves a registry's images, or a part of them. `location` is `HOST[:PORT][/PATH]`."""

    location: str
    insecure: bool | None = None
    #: One of `PULL_MODES`.
    pull_mode: str = "all"


@dataclass(frozen=True, slots=True)
class RegistryNamespace:
    """One `[[registry]]` table of containers' registries.conf.

    `prefix` is `HOST[:PORT][/PATH]` or `*.DOMAIN`. `location` replaces the prefix for reads; None keeps the name.
    Pushes ignore `location`, as containers-registries.conf(5) describes. `config_file` is for messages.
    """

    prefix: str
    location: str | None = None
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()
    config_file: str = "registries.conf"

    def strip_prefix(self, name: str) -> str | None:
        """Return the part of an image's name after the prefix, or None if the name does not begin with the prefix.

        A prefix ends at a `/`. That `example.com` also matches `example.com:5000` in containers' own parser is
        described there as unintended.
        """
        if not self.prefix.startswith(_WILDCARD):
            rest = name.removeprefix(self.prefix)
            return rest if name.startswith(self.prefix) and rest[:1] in {"", "/"} else None
        host, slash, path = name.partition("/")
        # A wildcard without a port matches the domain on every port.
        domain = host if _PORT.search(self.prefix) else _PORT.sub("", host)
        return slash + path if domain.endswith(self.prefix[1:]) else None


@dataclass(frozen=True, slots=True)
class HostRule:
    """The settings of one host in ocistream's own configuration. None means that the file does not set a value."""

    settings: HostSettings = field(default_factory=HostSettings)
    insecure: bool | None = None
    mirrors: tuple[Mirror, ...] | None = None
    credentials: CredentialSource | None = None

    def apply_to(self, other: HostRule) -> HostRule:
        """Return `other` with the keys that this rule sets explicitly replaced.

        This rule comes from a sync file, whose keys override the command line's options; the configuration's do not.
        """
        keys = self.settings.overriding_keys
        named = {
            _FIELDS_BY_KEY[key]: getattr(self.settings, _FIELDS_BY_KEY[key]) for key in keys if key in _FIELDS_BY_KEY
        }
        return replace(
            other,
            settings=replace(other.settings, **named, overriding_keys=keys),
            insecure=self.insecure if "insecure" in keys else other.insecure,
            credentials=self.credentials if "credentials" in keys else other.credentials,
        )


@dataclass(frozen=True, slots=True)
class PullSource:
    """One repository from which an image may be read: a mirror, or the registry's own repository."""

    registry: str
    repository: str
    #: One of `PULL_MODES`.
    pull_mode: str = "all"

    def __str__(self) -> str:
        """Return `registry/repository`."""
        return f"{self.registry}/{self.repository}"

    def can_pull(self, *, by_digest: bool) -> bool:
        """Return whether an image named by digest, or by tag, may be read from here."""
        return self.pull_mode != ("tag-only" if by_digest else "digest-only")


class RegistryRules:
    """The registry rules of one run: which locations to read from, what is blocked, and the settings of each host."""

    def __init__(
        self,
        host_rules: Mapping[str, HostRule],
        namespaces: Sequence[RegistryNamespace] = (),
        *,
        use_mirrors: bool = True,
    ) -> None:
        """Take ocistream's rules by lower-case host, and containers' rules. `use_mirrors=False` disables mirrors."""
        self._host_rules = host_rules
        self._namespaces = namespaces
        self._is_using_mirrors = use_mirrors
        self._own_insecure_settings = [
            (mirror.location, mirror.insecure)
            for rule in host_rules.values()
            for mirror in rule.mirrors or ()
            if mirror.insecure is not None
        ]
        # `*.DOMAIN` is not the location of any image.
        self._insecure_settings = [
            (location, namespace.insecure)
            for namespace in namespaces
            for location in {namespace.prefix, namespace.location or namespace.prefix}
        ]
        self._insecure_settings += [
            (mirror.location, bool(mirror.insecure)) for namespace in namespaces for mirror in namespace.mirrors
        ]

    def find_pull_sources(self, reference: Reference) -> tuple[PullSource, ...]:
        """Return the repositories to read an image from, in order; the last is the registry's own.

        Raises:
            AuthenticationError: the configuration blocks the image or its `location`.
        """
        name = f"{reference.registry.lower()}/{reference.repository}"
        namespace = self._find_namespace(name)
        self._check_not_blocked(name)
        primary = _parse_pull_source(name)
        rest = None if namespace is None else namespace.strip_prefix(name)
        if namespace is not None and namespace.location is not None:
            primary = _parse_pull_source(f"{namespace.location}{rest}")
            self._check_not_blocked(str(primary))
        mirrors = self._host_rules.get(reference.registry.lower(), HostRule()).mirrors
        if mirrors is not None:
            rest = f"/{reference.repository}"
        elif namespace is not None:
            mirrors = namespace.mirrors
        if not self._is_using_mirrors:
            mirrors = ()
        found = [_parse_pull_source(f"{mirror.location}{rest}", mirror.pull_mode) for mirror in mirrors or ()]
        allowed_mirrors = []
        for mirror in dict.fromkeys(found):
            blocking = self._find_namespace(str(mirror))
            if blocking is not None and blocking.blocked:
                notices.notify(f"the mirror {mirror} is not used: {blocking.config_file} blocks it", level=1)
            elif str(mirror) != str(primary):
                allowed_mirrors.append(mirror)
        if namespace is not None and str(primary) != name:
            message = f"{printable(name)} is read from {printable(str(primary))}"
            notices.notify(f"{message}, its location in {namespace.config_file}", level=1)
        if str(primary) == name:
            # Keep the upper and lower case that the user wrote.
            primary = replace(primary, registry=reference.registry)
        return (*allowed_mirrors, primary)

    def check_push(self, reference: Reference) -> None:
        """Check that the configuration allows pushes to an image's registry.

        Raises:
            AuthenticationError: the registry or the repository is blocked.
        """
        self._check_not_blocked(f"{reference.registry.lower()}/{reference.repository}")

    def limit_jobs(self, jobs: int, registries: Iterable[str]) -> int:
        """Return how many of `jobs` blobs and connections these registries may have at once."""
        return min([jobs, *filter(None, (self.settings(registry).jobs for registry in registries))])

    def settings(self, registry: str, repository: str = "") -> HostSettings:
        """Return the settings of a host for one of its repositories, or for requests that belong to no repository.

        ocistream's own configuration takes precedence over registries.conf. `insecure` in registries.conf may apply to
        a part of a host and also permits HTTP. ocistream's `insecure`, like --insecure, only disables certificate
        checks.
        """
        rule = self._host_rules.get(registry.lower(), HostRule())
        name = f"{registry.lower()}/{repository}" if repository else registry.lower()
        insecure = rule.insecure
        if insecure is None:
            insecure = _find_insecure_setting(self._own_insecure_settings, name)
        if insecure is not None:
            return replace(rule.settings, insecure=insecure)
        insecure = _find_insecure_setting(self._insecure_settings, name)
        if insecure is None:
            namespace = self._find_namespace(name)
            insecure = namespace is not None and namespace.insecure
        return replace(rule.settings, insecure=True, has_http_fallback=True) if insecure else rule.settings

    def credentials(self, registry: str) -> CredentialSource | None:
        """Return where a host's credentials are stored, or None if ocistream's own configuration does not say."""
        return self._host_rules.get(registry.lower(), HostRule()).credentials

    def _find_namespace(self, name: str) -> RegistryNamespace | None:
        """Return the `[[registry]]` with the longest matching prefix; of two equal ones, the first."""
        matching = [namespace for namespace in self._namespaces if namespace.strip_prefix(name) is not None]
        return max(matching, key=lambda namespace: len(namespace.prefix), default=None)

    def _check_not_blocked(self, name: str) -> None:
        namespace = self._find_namespace(name)
        if namespace is not None and namespace.blocked:
            msg = f"{printable(name)} is blocked: see {printable(namespace.prefix)} in {namespace.config_file}"
            raise AuthenticationError(msg)


def parse_registry_location(text: str) -> str:
    """Check `HOST[:PORT][/PATH]`; return it with a lower-case host and without a trailing slash.

    Raises:
        InvalidNameError: the text has another form, such as a URL.
    """
    host, _, path = text.rstrip("/").partition("/")
    if "://" in text or (path and not is_repository(path)):
        msg = f"malformed location {printable(text)!r}"
        raise InvalidNameError(msg, hint="write HOST[:PORT][/PATH], without http:// or https://")
    host = parse_registry(host.lower())
    return f"{host}/{path}" if path else host


def _parse_pull_source(name: str, pull_mode: str = "all") -> PullSource:
    registry, _, repository = name.partition("/")
    return PullSource(registry, repository, pull_mode)


def _find_insecure_setting(settings: Sequence[tuple[str, bool]], name: str) -> bool | None:
    """Return the setting of the longest location that contains a name, or None.

    `insecure` applies to the location that has it: `host/dev` may be insecure while `host/prod` is not. If two entries
    contradict each other about one location, certificates are checked, so that no password leaks.
    """
    matching = [(location, insecure) for location, insecure in settings if f"{name}/".startswith(f"{location}/")]
    longest = max((len(location) for location, _ in matching), default=0)
    return all(insecure for location, insecure in matching if len(location) == longest) if matching else None
