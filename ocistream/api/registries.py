"""Reach registries: HTTP clients, mirrors, uploads and the cache, with settings of options, environment and files.

The command line and the Python API open registries through `RegistryAccess`.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import NotFoundError, UsageError
from ocistream.http.rate_limits import RateLimits
from ocistream.locations import OpenContext
from ocistream.streams.paths import exists, find_configuration_file
from ocistream.streams.synchronization import once

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Mapping

    from ocistream.api.options import ClientOptions, RegistryOptions
    from ocistream.auth.docker_config import Credential
    from ocistream.config.toml_files import TomlTable
    from ocistream.http.client import HttpClient
    from ocistream.http.endpoints import Endpoint
    from ocistream.http.retry import RetryEvent
    from ocistream.http.settings import HostSettings
    from ocistream.layout.cache import Cache
    from ocistream.registry.configuration import HostRule, RegistryRules
    from ocistream.registry.registries import ReadableRepository, Registries
    from ocistream.registry.upload_record import UploadRecords
    from ocistream.registry.upload_strategy import UploadStrategy
    from ocistream.signatures.policy import TrustPolicy


_PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class RegistryAccess:
    """What all requests of a client, or of a run of the command line, share. Safe for several threads.

    The rules of the configuration, the rate limits, the upload strategy, the records of uploads and the cache are
    created on first use, and files are read then.
    """

    def __init__(
        self,
        options: ClientOptions,
        env: Mapping[str, str],
        load_table: Callable[[], TomlTable | None],
        *,
        use_mirrors: bool = True,
        host_rules: Mapping[str, HostRule] | None = None,
    ) -> None:
        """Take the settings; no file is read yet. `load_table` reads our configuration file."""
        self._options = options
        self._env = env
        self._use_mirrors = use_mirrors
        #: Rules by host that override the configuration; they may be set until the first use of `rules`.
        self.host_rules = host_rules or {}
        #: How many bytes of each blob came from the cache, by digest.
        self.cached_sizes: Mapping[str, int] = {}
        #: Receive the headers of all responses of registries: the upload strategy, once there is a destination for it.
        self._header_observers: list[Callable[[Endpoint, Callable[[str], str | None]], None]] = []
        #: Our configuration file; None without one.
        self.configuration = once(load_table)
        #: The rules of the configuration files, ours and containers'.
        self.rules = once(self._load_rules)
        #: How registries accept uploads, by the options or as this run learns it.
        self.upload_strategy = once(self._create_upload_strategy)
        #: The records of uploads that a later run may resume.
        self.upload_records = once(self._open_upload_records)
        self._cache = once(self._open_cache)
        self._rate_limits = RateLimits(options.limit_rate)
        self._clients: list[HttpClient] = []

    def load_trust_policy(self) -> TrustPolicy | None:
        """Return the policy about signatures in our configuration file; None without a file.

        Raises:
            NotFoundError, LocalDiskError, UsageError: a file cannot be read, or is malformed.
        """
        if (table := self.configuration()) is None:
            return None
        from ocistream.config.config_toml import parse_trust_policy

        return parse_trust_policy(table)

    def limit_jobs(self, registries: Collection[str]) -> int:
        """Return how many blobs may move at once to or from these registries."""
        # Without a registry, a malformed file is not an error.
        return self.rules().limit_jobs(self._options.jobs, registries) if registries else self._options.jobs

    def _load_rules(self) -> RegistryRules:
        from ocistream.config.registries_conf import load_namespaces
        from ocistream.registry.configuration import HostRule, RegistryRules

        rules: dict[str, HostRule] = {}
        if (table := self.configuration()) is not None:
            from ocistream.config.config_toml import parse_host_rules

            rules = parse_host_rules(table)
        for host, rule in self.host_rules.items():
            rules[host.lower()] = rule.apply_to(rules.get(host.lower(), HostRule()))
        namespaces = load_namespaces(self._env, find_home(self._env))
        return RegistryRules(rules, namespaces, use_mirrors=self._use_mirrors)

    def _create_upload_strategy(self) -> UploadStrategy:
        from ocistream.registry.upload_strategy import UploadStrategy

        strategy = UploadStrategy(explicit_method=self._options.upload, jobs=self._options.jobs)
        self._header_observers.append(strategy.observe_headers)
        return strategy

    def _open_upload_records(self) -> UploadRecords:
        from ocistream.registry.upload_record import UploadRecords
        from ocistream.streams.paths import state_home

        state = state_home(self._env, find_home(self._env) if self._env.get("HOME") else None)
        if state is None:
            notices.notify("neither HOME nor XDG_STATE_HOME is set: interrupted uploads cannot be resumed", level=1)
        return UploadRecords(None if state is None else state / "ocistream" / "uploads")

    def _open_cache(self) -> Cache:
        from ocistream.layout.cache import Cache

        cache = Cache(Path(self._options.cache or ""))
        self.cached_sizes = cache.bytes_read
        return cache

    def create_client(
        self,
        registry_options: RegistryOptions,
        find_credential: Callable[[str, str], Credential | None],
        *,
        format_hint: Callable[[str], str] = str,
        on_retry: Callable[[RetryEvent], None] = lambda _event: None,
        cancelled: threading.Event,
    ) -> HttpClient:
        """Return an HTTP client for registries.

        Raises:
            NotFoundError: SSL_CERT_FILE or --cert-dir names what does not exist.
            UsageError, LocalDiskError: the certificates that the options name cannot be used.
        """
        from ocistream import __version__
        from ocistream.http.client import HttpClient
        from ocistream.http.settings import HttpSettings, RetryPolicy

        settings = HttpSettings(
            plain_http=registry_options.plain_http,
            connect_timeout=self._options.connect_timeout,
            stall_timeout=self._options.stall_timeout,
            retry_policy=RetryPolicy(attempts=self._options.retries + 1),
            ca_bundle=_read_ca_bundle(self._env),
            tls=registry_options.load_tls_settings(),
            requests_per_second=self._options.max_requests_per_second,
            proxies=_read_proxies(self._env),
            user_agent=f"ocistream/{__version__}",
            format_hint=format_hint,
        )
        client = HttpClient(
            settings,
            find_credential,
            find_host_settings=_build_host_settings_lookup(
                self._env, self.rules().settings, use_certs_d=not registry_options.cert_dir
            ),
            on_retry=on_retry,
            cancelled=cancelled,
            rate_limits=self._rate_limits,
            header_observers=self._header_observers,
        )
        self._clients.append(client)
        return client

    def close(self) -> None:
        """Close the connections of all clients."""
        for client in self._clients:
            client.close()

    def build_open_context(self, create_client: Callable[[], HttpClient], cancelled: threading.Event) -> OpenContext:
        """Return what opening a location needs; `create_client` creates the client for registries.

        Raises:
            UsageError: SOURCE_DATE_EPOCH is malformed.
        """
        return OpenContext(
            open_registries=once(functools.partial(self._open_registries, create_client)),
            mtime=_read_source_date_epoch(self._env),
            jobs=self._options.jobs,
            cancelled=cancelled,
        )

    def _open_registries(self, create_client: Callable[[], HttpClient]) -> Registries:
        from ocistream.registry.registries import Registries

        return Registries(
            create_client,
            self.rules(),
            cache=self._read_through_cache,
            upload_strategy=self.upload_strategy,
            upload_records=self.upload_records,
        )

    def _read_through_cache(self, repository: ReadableRepository) -> ReadableRepository:
        if not self._options.cache:
            return repository
        from ocistream.layout.cache import CachedRepository

        return CachedRepository(self._cache(), repository)


def load_configuration(config: Path | None, env: Mapping[str, str]) -> TomlTable | None:
    """Read the file `config`, or by default the user's or the machine's configuration file; None without one.

    Raises:
        NotFoundError, LocalDiskError, UsageError: the file cannot be read, or is malformed.
    """
    home = find_home(env)
    if (path := config or find_configuration_file(env, home)) is None:
        return None
    # Imported here, because few machines have such a file.
    from ocistream.config.config_toml import read_configuration

    table = read_configuration(path, home)
    if table is None and config is not None:
        msg = f"--config {config}: no such file"
        raise NotFoundError(msg, hint="check the path; relative paths start at the current directory")
    return table


def find_home(env: Mapping[str, str]) -> Path:
    """Return the user's home directory, or the root if HOME is not set (an empty container)."""
    return Path(env.get("HOME") or "/")


def _read_source_date_epoch(env: Mapping[str, str]) -> int:
    """Return SOURCE_DATE_EPOCH, in seconds since 1970; 0 if it is not set.

    The limit is what 11 octal digits of a tar header hold.
    """
    text = env.get("SOURCE_DATE_EPOCH") or "0"
    if not text.isascii() or not text.isdigit() or int(text) >= 8**11:
        msg = f"SOURCE_DATE_EPOCH is not a number of seconds: {text[:40]!r}"
        raise UsageError(msg)
    return int(text)


def _build_host_settings_lookup(
    env: Mapping[str, str], configured: Callable[[str, str], HostSettings], *, use_certs_d: bool
) -> Callable[[str, str], HostSettings]:
    """Return the function that finds the settings of a host: those `configured`, and its `certs.d`.

    A client certificate that is configured for a host overrides one found there.
    """
    from ocistream.config.certs_d import certs_directories, read_registry_certs

    directories = certs_directories(env, find_home(env)) if use_certs_d else ()

    def find(registry: str, repository: str) -> HostSettings:
        settings, certs = configured(registry, repository), read_registry_certs(registry, directories)
        return replace(
            settings,
            ca_files=settings.ca_files + certs.ca_files,
            client_certificates=settings.client_certificates or certs.client_certificates,
        )

    return find


def _read_ca_bundle(env: Mapping[str, str]) -> str | None:
    """Return SSL_CERT_FILE. A missing file is an error here, before connections fail and are retried."""
    path = env.get("SSL_CERT_FILE") or None
    if path is not None and not exists(path):
        msg = f"SSL_CERT_FILE: {path}: no such file"
        raise NotFoundError(msg, hint="correct or unset that variable; without it, the CAs of the system are trusted")
    return path


def _read_proxies(env: Mapping[str, str]) -> dict[str, str]:
    """Return the proxies of the environment; lower-case variables come first, as in curl."""
    proxies: dict[str, str] = {}
    for name in _PROXY_VARIABLES:
        if value := env.get(name) or env.get(name.upper()):
            proxies[name.removesuffix("_proxy") if name != "no_proxy" else name] = value
    return proxies
