"""The registries of a `Client`: the credentials and connections of its calls."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeAlias

from ocistream.api.registries import RegistryAccess, find_home
from ocistream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ocistream.api.options import ClientOptions
    from ocistream.auth.credentials import Credential
    from ocistream.http.client import HttpClient
    from ocistream.http.settings import TlsSettings
    from ocistream.locations import OpenContext
    from ocistream.registry.configuration import RegistryConfiguration

__all__ = ["ClientRegistries", "Credentials"]

Credentials: TypeAlias = "Credential | Mapping[str, Credential] | Callable[[str, str], Credential | None]"


class ClientRegistries:
    """Opens registries for the calls of one client. Safe for several threads."""

    def __init__(
        self,
        options: ClientOptions,
        *,
        env: Mapping[str, str],
        credentials: Credentials | None,
        load_rules: Callable[[], RegistryConfiguration],
        plain_http: bool,
        tls: TlsSettings,
        closed: threading.Event,
    ) -> None:
        """Take the settings; files are read on first use. Setting `closed` ends all requests."""
        self._access = RegistryAccess(options, env, load_rules)
        self._env = env
        self._credentials = credentials
        self._plain_http = plain_http
        self._tls = tls
        self._closed = closed
        #: Registries that calls named; a mirror from the configuration is none of them.
        self._named: set[str] = set()
        self._lock = threading.RLock()
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
        return self._access.build_context(
            lambda is_for_mirrors: self._client(is_for_mirrors).for_transfer(cancelled), cancelled
        )

    def check_environment_credential(self, registries: Collection[str]) -> None:
        """Raise UsageError if the user name of the environment could be for several registries, as the command does."""
        if self._credentials is None and len(registries) > 1 and self._env.get("OCISTREAM_USERNAME"):
            msg = f"OCISTREAM_USERNAME cannot be used for {' and '.join(sorted(registries))}"
            raise UsageError(msg, hint="run `ocistream login` for each registry, or pass credentials by host")

    def _client(self, is_for_mirrors: bool) -> HttpClient:
        with self._lock:
            if is_for_mirrors not in self._clients:
                self._clients[is_for_mirrors] = self._access.create_client(
                    self._find_credential,
                    plain_http=self._plain_http,
                    tls=self._tls,
                    is_for_mirrors=is_for_mirrors,
                    cancelled=self._closed,
                )
            return self._clients[is_for_mirrors]

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
            configured=self._access.rules().credentials,
        )
        return keychain.find(registry, repository)
