"""The registries of a `Client`: its settings, and the credentials, connections and upload records of its calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from ocistream.api.registries import (
    RegistryAccess,
    build_host_settings_lookup,
    build_http_settings,
    find_home,
    find_state_directory,
    load_host_rules,
    read_source_date_epoch,
)
from ocistream.errors import UsageError
from ocistream.locations import OpenContext

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from ocistream.auth.credentials import Credential
    from ocistream.http.client import HttpClient
    from ocistream.http.tls import TlsSettings
    from ocistream.layout.cache import Cache
    from ocistream.registry.configuration import HostRule, RegistryConfiguration
    from ocistream.registry.upload_methods import UploadMethod
    from ocistream.registry.upload_records import UploadRecords

__all__ = ["ClientRegistries", "ClientSettings", "Credentials"]

_T = TypeVar("_T")

Credentials: TypeAlias = "Credential | Mapping[str, Credential] | Callable[[str, str], Credential | None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """The checked settings of a client."""

    env: Mapping[str, str]
    credentials: Credentials | None
    rules: Mapping[str, HostRule]
    plain_http: bool
    tls: TlsSettings
    attempts: int
    connect_timeout: float
    stall_timeout: float
    limit_rate: float | None
    max_requests_per_second: float | None
    use_mirrors: bool
    upload_method: UploadMethod | None
    jobs: int
    cache: Path | None
    config: Path | None


class ClientRegistries:
    """Opens registries for the calls of one client. Safe for several threads."""

    def __init__(self, settings: ClientSettings, closed: threading.Event) -> None:
        """Take the settings. Setting `closed` ends all requests."""
        self._settings = settings
        self._closed = closed
        #: Registries that calls named; a mirror from the configuration is none of them.
        self._named: set[str] = set()
        self._lock = threading.RLock()
        self._shared: dict[str, object] = {}
        self._access = RegistryAccess(create_client=self._create_client, rules=self._load_rules, cache=self._open_cache)

    def close(self) -> None:
        """Close all idle connections."""
        self._access.close()

    def build_context(self, registries: Collection[str], cancelled: threading.Event) -> OpenContext:
        """Return the context of a call that names these registries.

        Raises:
            UsageError: SOURCE_DATE_EPOCH is malformed.
        """
        with self._lock:
            self._named |= set(registries)
        return OpenContext(
            client=self._access.client,
            mtime=read_source_date_epoch(self._settings.env),
            opener=self._access.opener,
            jobs=self._settings.jobs,
            records=self._open_records,
            cancelled=cancelled,
            check_push=lambda reference: self._load_rules().check_push(reference),
        )

    def check_environment_credential(self, registries: Collection[str]) -> None:
        """Raise UsageError if the user name of the environment could be for several registries, as the command does."""
        settings = self._settings
        if settings.credentials is None and len(registries) > 1 and settings.env.get("OCISTREAM_USERNAME"):
            msg = f"OCISTREAM_USERNAME cannot be for {' and '.join(sorted(registries))} at once"
            raise UsageError(msg, hint="use `ocistream login` for each, or credentials by host")

    def _once(self, key: str, create: Callable[[], _T]) -> _T:
        """Return the object of this name, which the first call creates."""
        with self._lock:
            if key not in self._shared:
                self._shared[key] = create()
            return cast("_T", self._shared[key])

    def _load_rules(self) -> RegistryConfiguration:
        settings = self._settings
        return self._once(
            "rules",
            lambda: load_host_rules(settings.config, settings.env, settings.rules, use_mirrors=settings.use_mirrors),
        )

    def _open_cache(self) -> Cache | None:
        if self._settings.cache is None:
            return None
        from ocistream.layout.cache import Cache

        return Cache(self._settings.cache)

    def _open_records(self) -> UploadRecords:
        from ocistream.registry.upload_records import UploadRecords

        def create() -> UploadRecords:
            directory = find_state_directory(self._settings.env)
            return UploadRecords(directory / "uploads" if directory else None, lambda _message: None)

        return self._once("records", create)

    def _create_client(self, is_for_mirrors: bool) -> HttpClient:
        from ocistream.http.client import HttpClient
        from ocistream.http.rate_limits import RateLimits
        from ocistream.registry.upload_strategy import UploadStrategy

        http_settings = build_http_settings(
            self._settings.env,
            plain_http=self._settings.plain_http,
            tls=self._settings.tls,
            attempts=self._settings.attempts,
            connect_timeout=self._settings.connect_timeout,
            stall_timeout=self._settings.stall_timeout,
            max_requests_per_second=self._settings.max_requests_per_second,
        )
        if is_for_mirrors:
            from ocistream.registry.mirrors import shorten_timeouts

            http_settings = shorten_timeouts(http_settings)
        rate_limits = self._once("rate limits", lambda: RateLimits(self._settings.limit_rate))
        strategy = self._once(
            "upload strategy",
            lambda: UploadStrategy(
                explicit_method=self._settings.upload_method,
                jobs=self._settings.jobs,
                configured_profile=lambda host: self._load_rules().profile(host),
            ),
        )
        return HttpClient(
            http_settings,
            self._find_credential,
            find_host_settings=build_host_settings_lookup(self._settings.env, self._load_rules().settings),
            cancelled=self._closed,
            rate_limits=rate_limits,
            upload_strategy=strategy,
        )

    def _find_credential(self, registry: str, repository: str) -> Credential | None:
        from ocistream.auth.credentials import Credential, Keychain
        from ocistream.auth.docker_config import normalize_host

        given = self._settings.credentials
        if callable(given):
            return given(registry, repository)
        if given is not None and not isinstance(given, Credential):
            host = normalize_host(registry)
            for named, credential in given.items():
                if normalize_host(named) == host:
                    return credential
        with self._lock:
            named_registries = frozenset(self._named)
        keychain = Keychain(
            self._settings.env,
            home=find_home(self._settings.env),
            explicit=given if isinstance(given, Credential) else None,
            named=named_registries,
            configured=self._load_rules().credentials,
        )
        return keychain.find(registry, repository)
