"""The registries of a `Client`: the credentials and connections of its calls."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from ocistream.api.argument_types import check_type
from ocistream.api.registries import find_home
from ocistream.errors import UsageError
from ocistream.streams.synchronization import once

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection

    from ocistream.api.options import RegistryOptions
    from ocistream.api.registries import RegistryAccess
    from ocistream.auth.docker_config import Credential
    from ocistream.http.client import HttpClient
    from ocistream.locations import OpenContext

Credentials: TypeAlias = "Credential | Mapping[str, Credential] | Callable[[str, str], Credential | None]"


def check_credentials(value: object) -> None:
    """Raise UsageError if `credentials` are not what a `Client` takes."""
    from ocistream.auth.docker_config import Credential

    expected = "a Credential, a mapping of hosts to Credentials, or a function"
    if value is not None and not callable(value):
        check_type("credentials", value, (Credential, Mapping), expected)
    for host, credential in value.items() if isinstance(value, Mapping) else ():
        check_type("credentials", host, str, expected)
        check_type("credentials", credential, Credential, expected)


class ClientRegistries:
    """Opens registries for the calls of one client. Safe for several threads."""

    def __init__(
        self,
        access: RegistryAccess,
        options: RegistryOptions,
        credentials: Credentials | None,
        *,
        env: Mapping[str, str],
        closed: threading.Event,
    ) -> None:
        """Take the settings; files are read on first use. Setting `closed` ends all requests."""
        check_credentials(credentials)
        self._access = access
        self._options = options
        self._credentials = credentials
        self._env = env
        self._closed = closed
        #: Registries that calls named, as keys; a mirror from the configuration is none of them.
        self._named: dict[str, None] = {}
        self._resources = contextlib.ExitStack()
        #: The client for registries, and the one for mirrors.
        self._clients = [
            once(functools.partial(self._create_client, is_for_mirrors)) for is_for_mirrors in (False, True)
        ]

    def close(self) -> None:
        """Close all idle connections."""
        self._resources.close()

    def build_context(self, registries: Collection[str], cancelled: threading.Event) -> OpenContext:
        """Return the context of a call that names these registries.

        Raises:
            UsageError: SOURCE_DATE_EPOCH is malformed.
        """
        self._named.update(dict.fromkeys(registries))
        return self._access.build_context(
            lambda is_for_mirrors: self._clients[is_for_mirrors]().for_transfer(cancelled), cancelled
        )

    def check_environment_credential(self, registries: Collection[str]) -> None:
        """Raise UsageError if the user name of the environment could be for several registries, as the command does."""
        if self._credentials is None and len(registries) > 1 and self._env.get("OCISTREAM_USERNAME"):
            msg = f"OCISTREAM_USERNAME cannot be used for {' and '.join(sorted(registries))}"
            raise UsageError(msg, hint="run `ocistream login` for each registry, or pass credentials by host")

    def _create_client(self, is_for_mirrors: bool) -> HttpClient:
        client = self._access.create_client(
            self._options, self._find_credential, is_for_mirrors=is_for_mirrors, cancelled=self._closed
        )
        self._resources.callback(client.close)
        return client

    def _find_credential(self, registry: str, repository: str) -> Credential | None:
        from ocistream.auth.credentials import Keychain
        from ocistream.auth.docker_config import Credential, normalize_host

        given = self._credentials
        if callable(given):
            found = given(registry, repository)
            check_type("credentials", found, (Credential, type(None)), "a function that returns a Credential or None")
            return found
        if given is not None and not isinstance(given, Credential):
            host = normalize_host(registry)
            for named, credential in given.items():
                if normalize_host(named) == host:
                    return credential
        keychain = Keychain(
            self._env,
            home=find_home(self._env),
            explicit=given if isinstance(given, Credential) else None,
            named=frozenset(self._named),
            configured=self._access.rules().credentials,
        )
        return keychain.find(registry, repository)
