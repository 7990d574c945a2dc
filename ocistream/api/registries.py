"""Reach registries: HTTP clients, mirrors and the cache, with the settings of the environment and of files.

The command line and the Python API open registries through `RegistryAccess`.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import NotFoundError, UsageError
from ocistream.streams.paths import exists

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocistream.http.client import HttpClient
    from ocistream.http.settings import HostSettings, HttpSettings, TlsSettings
    from ocistream.layout.cache import Cache
    from ocistream.registry.configuration import HostRule, RegistryConfiguration
    from ocistream.registry.opener import RepositoryOpener

__all__ = [
    "RegistryAccess",
    "build_host_settings_lookup",
    "build_http_settings",
    "find_home",
    "find_state_directory",
    "load_host_rules",
    "read_source_date_epoch",
]

_PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@dataclass(slots=True, kw_only=True)
class RegistryAccess:
    """The HTTP clients for registries and for their mirrors, created on first use. Safe for several threads."""

    #: Creates the client for registries that the user names, or with True the one for mirrors.
    create_client: Callable[[bool], HttpClient]
    rules: Callable[[], RegistryConfiguration]
    #: Receives each fallback to another mirror, with its verbosity.
    report: Callable[[str, int], None] = lambda _message, _level: None
    cache: Callable[[], Cache | None] = lambda: None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _clients: dict[bool, HttpClient] = field(default_factory=dict)
    _opener: RepositoryOpener | None = None

    def client(self, *, is_for_mirrors: bool = False) -> HttpClient:
        """Return the client for registries that the user names, or the one for mirrors."""
        with self._lock:
            if is_for_mirrors not in self._clients:
                self._clients[is_for_mirrors] = self.create_client(is_for_mirrors)
            return self._clients[is_for_mirrors]

    def opener(self) -> RepositoryOpener:
        """Return the opener of repositories, with their mirrors and the cache."""
        with self._lock:
            if self._opener is None:
                from ocistream.registry.opener import RepositoryOpener

                self._opener = RepositoryOpener(
                    self.client(),
                    functools.partial(self.client, is_for_mirrors=True),
                    self.rules().find_pull_sources,
                    self.report,
                )
                if (cache := self.cache()) is not None:
                    from ocistream.layout.cached_repository import CachedRepository

                    self._opener = self._opener.wrapped_by(functools.partial(CachedRepository, cache))
            return self._opener


def build_http_settings(
    env: Mapping[str, str],
    *,
    plain_http: bool,
    tls: TlsSettings,
    attempts: int,
    connect_timeout: float,
    stall_timeout: float,
    max_requests_per_second: float | None,
) -> HttpSettings:
    """Return the settings for all hosts; proxies and the system's CAs come from the environment `env`.

    Raises:
        NotFoundError: SSL_CERT_FILE names a file that does not exist.
    """
    from ocistream import __version__
    from ocistream.http.settings import HttpSettings, RetryPolicy

    return HttpSettings(
        plain_http=plain_http,
        connect_timeout=connect_timeout,
        stall_timeout=stall_timeout,
        retry_policy=RetryPolicy(attempts=attempts),
        ca_file=_read_ca_file(env),
        tls=tls,
        requests_per_second=max_requests_per_second,
        proxies=_read_proxies(env),
        user_agent=f"ocistream/{__version__}",
    )


def load_host_rules(
    config: Path | None,
    env: Mapping[str, str],
    rules: Mapping[str, HostRule] | None = None,
    *,
    use_mirrors: bool = True,
) -> RegistryConfiguration:
    """Return the rules of the configuration files, ours and containers'; `rules`, by host, override them.

    Raises:
        NotFoundError, LocalDiskError, UsageError: a file cannot be read, or is malformed.
    """
    from ocistream.config.config_toml import read_host_rules
    from ocistream.config.registries_conf import load_namespaces
    from ocistream.registry.configuration import HostRule, RegistryConfiguration

    home = find_home(env)
    host_rules = read_host_rules(config, env, home)
    for host, rule in (rules or {}).items():
        host_rules[host.lower()] = rule.apply_to(host_rules.get(host.lower(), HostRule()))
    return RegistryConfiguration(host_rules, load_namespaces(env, home), use_mirrors=use_mirrors)


def find_home(env: Mapping[str, str]) -> Path:
    """Return the user's home directory, or the root if HOME is not set (an empty container)."""
    return Path(env.get("HOME") or "/")


def find_state_directory(env: Mapping[str, str]) -> Path | None:
    """Return the directory for records of uploads; None, with a notice, if the environment names none."""
    from ocistream.streams.xdg import state_home

    state = state_home(env, find_home(env) if env.get("HOME") else None)
    if state is None:
        reason = "neither HOME nor XDG_STATE_HOME is set"
        notices.notify(f"{reason}: no later run can resume an upload of this one", level=1)
        return None
    return state / "ocistream"


def read_source_date_epoch(env: Mapping[str, str]) -> int:
    """Return SOURCE_DATE_EPOCH, in seconds since 1970; 0 if it is not set.

    The limit is what 11 octal digits of a tar header hold.

    Raises:
        UsageError: the variable is not a number of seconds.
    """
    text = env.get("SOURCE_DATE_EPOCH") or "0"
    if not text.isascii() or not text.isdigit() or int(text) >= 8**11:
        msg = f"SOURCE_DATE_EPOCH is not a number of seconds: {text[:40]!r}"
        raise UsageError(msg)
    return int(text)


def build_host_settings_lookup(
    env: Mapping[str, str], configured: Callable[[str, str], HostSettings], *, use_certs_d: bool = True
) -> Callable[[str, str], HostSettings]:
    """Return the function that finds the settings of a host: those `configured`, and its `certs.d`.

    A client certificate that is configured for a host overrides one found there.
    """
    from ocistream.config.certs_d import certs_directories

    return functools.partial(
        _find_host_settings, certs_directories(env, find_home(env)) if use_certs_d else (), configured
    )


def _find_host_settings(
    directories: Sequence[Path], configured: Callable[[str, str], HostSettings], registry: str, repository: str
) -> HostSettings:
    from ocistream.config.certs_d import read_registry_certs

    settings = configured(registry, repository)
    certs = read_registry_certs(registry, directories)
    return replace(
        settings,
        ca_files=settings.ca_files + certs.ca_files,
        client_certificates=settings.client_certificates or certs.client_certificates,
    )


def _read_ca_file(env: Mapping[str, str]) -> str | None:
    """Return SSL_CERT_FILE. A missing file is an error here, before connections fail and are retried."""
    path = env.get("SSL_CERT_FILE") or None
    if path is not None and not exists(path):
        msg = f"SSL_CERT_FILE: {path}: no such file"
        raise NotFoundError(msg, hint="correct that variable, or leave it away: the system's CAs are trusted then")
    return path


def _read_proxies(env: Mapping[str, str]) -> dict[str, str]:
    """Return the proxies of the environment; lower-case variables come first, as in curl."""
    proxies: dict[str, str] = {}
    for name in _PROXY_VARIABLES:
        if value := env.get(name) or env.get(name.upper()):
            proxies[name.removesuffix("_proxy") if name != "no_proxy" else name] = value
    return proxies
