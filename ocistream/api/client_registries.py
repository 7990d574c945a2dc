"""The registries of a `Client`: its settings, and the credentials, connections and upload records of its calls."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from ocistream.api.registries import (
    RegistryAccess,
    build_host_settings_lookup,
    find_home,
    find_state_directory,
    read_source_date_epoch,
)
from ocistream.errors import UsageError
from ocistream.locations import OpenContext

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from ocistream.auth.credentials import Credential
    from ocistream.http.client import HttpClient
    from ocistream.http.settings import HttpSettings
    from ocistream.layout.cache import Cache
    from ocistream.registry.configuration import RegistryConfiguration
    from ocistream.registry.upload_record import UploadRecords
    from ocistream.registry.upload_strategy import UploadMethod, UploadStrategy

__all__ = ["ClientRegistries", "Credentials"]

_T = TypeVar("_T")

Credentials: TypeAlias = "Credential | Mapping[str, Credential] | Callable[[str, str], Credential | None]"


class ClientRegistries:
    """Opens registries for the calls of one client. Safe for several threads."""

    def __init__(  # noqa: PLR0913 - settings, given by name
        self,
        *,
        env: Mapping[str, str],
        credentials: Credentials | None,
        build_settings: Callable[[], HttpSettings],
        load_rules: Callable[[], RegistryConfiguration],
        limit_rate: float | None,
        upload_method: UploadMethod | None,
        jobs: int,
        cache: Path | None,
        closed: threading.Event,
    ) -> None:
        """Take the settings; files are read on first use. Setting `closed` ends all requests."""
        self._env = env
        self._credentials = credentials
        self._build_settings = build_settings
        self._read_rules = load_rules
        self._limit_rate = limit_rate
        self._upload_method = upload_method
        self._jobs = jobs
        self._cache_path = cache
        self._closed = closed
        #: Registries that calls named; a mirror from the configuration is none of them.
        self._named: set[str] = set()
        self._lock = threading.RLock()
        self._shared: dict[str, object] = {}
        self._clients: dict[bool, HttpClient] = {}

    def close(self) -> None:
        """Close all idle connections."""
        with self._lock:
            for client in self._clients.values():
                client.close()

    def build_context(self, registries: Collection[str], cancelled: threading.Event) -> OpenContext:
        """Return the context of a call that names these registries.

        Raises:
            UsageError: SOURCE_DATE_EPOCH is malformed.
        """
        with self._lock:
            self._named |= set(registries)
        access = RegistryAccess(
            create_client=lambda is_for_mirrors: self._client(is_for_mirrors).for_transfer(cancelled),
            rules=self._load_rules,
            cache=self._open_cache,
        )
        return OpenContext(
            client=access.client,
            mtime=read_source_date_epoch(self._env),
            opener=access.opener,
            jobs=self._jobs,
            upload_strategy=self._upload_strategy,
            records=self._open_records,
            cancelled=cancelled,
            check_push=lambda reference: self._load_rules().check_push(reference),
        )

    def check_environment_credential(self, registries: Collection[str]) -> None:
        """Raise UsageError if the user name of the environment could be for several registries, as the command does."""
        if self._credentials is None and len(registries) > 1 and self._env.get("OCISTREAM_USERNAME"):
            msg = f"OCISTREAM_USERNAME cannot be for {' and '.join(sorted(registries))} at once"
            raise UsageError(msg, hint="use `ocistream login` for each, or credentials by host")

    def _once(self, key: str, create: Callable[[], _T]) -> _T:
        """Return the object of this name, which the first call creates."""
        with self._lock:
            if key not in self._shared:
                self._shared[key] = create()
            return cast("_T", self._shared[key])

    def _load_rules(self) -> RegistryConfiguration:
        return self._once("rules", self._read_rules)

    def _open_cache(self) -> Cache | None:
        if self._cache_path is None:
            return None
        from ocistream.layout.cache import Cache

        return Cache(self._cache_path)

    def _upload_strategy(self) -> UploadStrategy:
        from ocistream.registry.upload_strategy import UploadStrategy

        return self._once(
            "upload strategy",
            lambda: UploadStrategy(
                explicit_method=self._upload_method,
                jobs=self._jobs,
                configured_profile=lambda host: self._load_rules().profile(host),
            ),
        )

    def _open_records(self) -> UploadRecords:
        from ocistream.registry.upload_record import UploadRecords

        def create() -> UploadRecords:
            directory = find_state_directory(self._env)
            return UploadRecords(directory / "uploads" if directory else None, lambda _message: None)

        return self._once("records", create)

    def _client(self, is_for_mirrors: bool) -> HttpClient:
        with self._lock:
            if is_for_mirrors not in self._clients:
                self._clients[is_for_mirrors] = self._create_client(is_for_mirrors)
            return self._clients[is_for_mirrors]

    def _create_client(self, is_for_mirrors: bool) -> HttpClient:
        from ocistream.http.client import HttpClient
        from ocistream.http.rate_limits import RateLimits

        http_settings = self._build_settings()
        if is_for_mirrors:
            from ocistream.registry.mirrors import shorten_timeouts

            http_settings = shorten_timeouts(http_settings)
        rate_limits = self._once("rate limits", lambda: RateLimits(self._limit_rate))
        return HttpClient(
            http_settings,
            self._find_credential,
            find_host_settings=build_host_settings_lookup(self._env, self._load_rules().settings),
            cancelled=self._closed,
            rate_limits=rate_limits,
        )

    def _find_credential(self, registry: str, repository: str) -> Credential | None:
        from ocistream.auth.credentials import Credential, Keychain
        from ocistream.auth.docker_config import normalize_host

        given = self._credentials
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
            self._env,
            home=find_home(self._env),
            explicit=given if isinstance(given, Credential) else None,
            named=named_registries,
            configured=self._load_rules().credentials,
        )
        return keychain.find(registry, repository)
