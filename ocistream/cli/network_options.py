"""What the options and the environment say of the network, as `ocistream.http.client` takes it."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ocistream import __version__
from ocistream.errors import NotFoundError, UsageError
from ocistream.streams.paths import exists

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocistream.http.client import HttpSettings
    from ocistream.http.hosts import HostSettings
    from ocistream.http.tls import TlsSettings
    from ocistream.registry.locations import HostRule, RegistryConfiguration

__all__ = ["build_host_settings_lookup", "build_http_settings", "load_host_rules"]

_PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def build_http_settings(
    options: Mapping[str, Any], env: Mapping[str, str], *, attempts: int | None = None
) -> HttpSettings:
    """Give what holds for all hosts; `attempts` is how often a thing is tried where there is no --retries.

    Raises:
        UsageError, NotFoundError, LocalDiskError: files of certificates that cannot be used.
    """
    from ocistream.http.client import HttpSettings
    from ocistream.http.retry import RetryPolicy

    settings = HttpSettings(
        plain_http=bool(options["plain_http"]),
        retry_policy=RetryPolicy(attempts=int(options["retries"]) + 1 if attempts is None else attempts),
        ca_file=_read_ca_file(env),
        tls=_read_tls_options(options),
        requests_per_second=options.get("max_requests_per_second"),
        proxies=_read_proxies(env),
        user_agent=f"ocistream/{__version__}",
    )
    if "stall_timeout" not in options:
        return settings
    return replace(settings, connect_timeout=options["connect_timeout"], stall_timeout=options["stall_timeout"])


def build_host_settings_lookup(
    options: Mapping[str, Any], env: Mapping[str, str], home: Path, configured: Callable[[str, str], HostSettings]
) -> Callable[[str, str], HostSettings]:
    """Give what says how a registry's host is reached: what is `configured`, and `certs.d` beside it.

    --cert-dir stands in the place of `certs.d`, and a client certificate that is configured for a host before those
    that are found there.
    """
    from ocistream.config.certs_d import certs_directories

    return functools.partial(
        _find_host_settings, () if options["cert_dir"] else certs_directories(env, home), configured
    )


def _find_host_settings(
    directories: Sequence[Path], configured: Callable[[str, str], HostSettings], registry: str, repository: str
) -> HostSettings:
    from ocistream.config.certs_d import read_registry_certs

    known = configured(registry, repository)
    found = read_registry_certs(registry, directories)
    return replace(
        known,
        ca_files=known.ca_files + found.ca_files,
        client_certificates=known.client_certificates or found.client_certificates,
    )


def load_host_rules(
    options: Mapping[str, Any], env: Mapping[str, str], home: Path, rules: Mapping[str, HostRule] | None = None
) -> RegistryConfiguration:
    """Read the configuration files, ours and containers'; `rules` of this run come before them, by host.

    Raises:
        UsageError: one is malformed.
        NotFoundError: one that was named is not there.
    """
    from ocistream.config.file import read_host_rules
    from ocistream.config.registries_conf import load_namespaces
    from ocistream.registry.locations import HostRule, RegistryConfiguration

    own = read_host_rules(options.get("config"), env, home)
    for host, rule in (rules or {}).items():
        own[host] = rule.apply_to(own.get(host, HostRule()))
    return RegistryConfiguration(own, load_namespaces(env, home), use_mirrors=not options.get("no_mirrors"))


def _read_tls_options(options: Mapping[str, Any]) -> TlsSettings:
    """Give the certificates that the command line names."""
    from ocistream.config.certs_d import read_certs_directory
    from ocistream.http.tls import TlsSettings

    folder = read_certs_directory(Path(options["cert_dir"])) if options["cert_dir"] else TlsSettings()
    authority, certificate, key = options["ca_cert"], options["client_cert"], options["client_key"]
    if key and not certificate:
        msg = "--client-key needs --client-cert"
        raise UsageError(msg)
    return TlsSettings(
        ((authority,) if authority else ()) + folder.ca_files,
        ((certificate, key),) if certificate else folder.client_certificates,
        bool(options["insecure"]),
    )


def _read_ca_file(env: Mapping[str, str]) -> str | None:
    """Read SSL_CERT_FILE, and make sure now that it is there: a connection would be tried again and again.

    Raises:
        NotFoundError: it is not.
    """
    path = env.get("SSL_CERT_FILE") or None
    if path is not None and not exists(path):
        msg = f"SSL_CERT_FILE: {path}: no such file"
        raise NotFoundError(msg, hint="correct that variable, or leave it away: the system's CAs are trusted then")
    return path


def _read_proxies(env: Mapping[str, str]) -> dict[str, str]:
    """Read the proxy variables, the lower-case ones first, as curl does."""
    found: dict[str, str] = {}
    for name in _PROXY_VARIABLES:
        if value := env.get(name) or env.get(name.upper()):
            found[name.removesuffix("_proxy") if name != "no_proxy" else name] = value
    return found
