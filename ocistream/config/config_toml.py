"""Read ocistream's own config.toml: settings, mirrors and credential sources of each registry host.

The command line reads `[defaults]`.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from ocistream.auth.credentials import parse_credential_source
from ocistream.config import toml_files as toml
from ocistream.config.toml_files import TomlTable, registry_host, registry_location
from ocistream.http.settings import HostSettings
from ocistream.registry.configuration import PULL_MODES, HostRule, Mirror
from ocistream.registry.profiles import PROFILES_BY_NAME
from ocistream.registry.upload_strategy import parse_upload_method
from ocistream.signatures.policy import TrustPolicy, TrustRule, normalize_prefix
from ocistream.sizes import parse_size
from ocistream.streams.workers import MAX_JOBS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ocistream.auth.credentials import CredentialSource
    from ocistream.signatures.signers import Signer


def read_credential_source(table: TomlTable, key: str, value: object) -> CredentialSource:
    """Read `env:PREFIX`, `helper:NAME` or `file:PATH`. Errors do not show the value: it may be a password."""
    source = toml.parsed(parse_credential_source)(table, key, value)
    if source.kind != "file":
        return source
    # The file need not exist until credentials are needed.
    return replace(source, name=str(toml.resolve_path(table.folder, source.name, table.home)))


def _ca_files(table: TomlTable, key: str, value: object) -> tuple[str, ...]:
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) for path in paths):
        raise table.key_error(key, "is neither a path nor a list of paths")
    return tuple(str(toml.existing_file(table, key, path)) for path in paths)


def _base_url(table: TomlTable, key: str, value: object) -> str:
    url = toml.text(table, key, value)
    try:
        parts = urlsplit(url)
        is_valid = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.query or parts.fragment or "@" in parts.netloc or re.search(r"[^\x21-\x7e]", url))
        )
    except ValueError:
        is_valid = False
    if not is_valid:
        # Do not show the URL: it may contain a password.
        raise table.key_error(key, "is not http[s]://HOST[:PORT][/PATH]")
    return url.rstrip("/")


def _rate(table: TomlTable, key: str, value: object) -> float:
    # In Python, True is an int; TOML has `inf` and `nan`.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1_000_000:
        raise table.key_error(key, "is not a number above 0")
    return float(value)


def _limit_rate(table: TomlTable, key: str, value: object) -> float:
    size = parse_size(value, fractions=True) if isinstance(value, str) else value
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < math.inf:
        raise table.key_error(key, "is not a rate in bytes per second", "such as 500k, 10M or 1G")
    return float(size)


def _check_upload_method(text: str) -> str:
    parse_upload_method(text)
    return text


class _MirrorTable(TomlTable):
    location = toml.required(registry_location)
    insecure = toml.optional(toml.flag)
    pull = toml.optional(toml.choice(*PULL_MODES), PULL_MODES[0])


def _mirror(table: TomlTable, key: str, value: object) -> Mirror:
    if isinstance(value, str):
        return Mirror(registry_location(table, key, value))
    if not isinstance(value, dict):
        raise table.key_error(key, "is neither a location nor a table")
    mirror = _MirrorTable.read(table, key, value)
    return Mirror(mirror.location, mirror.insecure, mirror.pull)


class ConnectionTable(TomlTable):
    """How a registry is reached: keys of `[registry."HOST"]` in our configuration and in a sync file."""

    not_a_table_hint: ClassVar[str] = 'name the registry: [registry."HOST"]'
    plain_http = toml.optional(toml.flag, False)
    insecure = toml.optional(toml.flag)
    ca_cert = toml.optional(_ca_files, [])
    client_cert = toml.optional(toml.existing_file)
    client_key = toml.optional(toml.existing_file)
    jobs = toml.optional(toml.whole_number(MAX_JOBS))
    limit_rate = toml.optional(_limit_rate)
    requests_per_second = toml.optional(_rate)

    def settings(self) -> HostSettings:
        """Return the settings of the host.

        Raises:
            UsageError: a client certificate is missing.
        """
        if self.client_cert is None and self.client_key is not None:
            raise self.key_error("client-key", "is set without client-cert")
        key = None if self.client_key is None else str(self.client_key)
        certificates = () if self.client_cert is None else ((str(self.client_cert), key),)
        return HostSettings(
            plain_http=self.plain_http,
            ca_files=self.ca_cert,
            client_certificates=certificates,
            jobs=self.jobs,
            limit_rate=self.limit_rate,
            requests_per_second=self.requests_per_second,
        )


class _HostTable(ConnectionTable):
    sensitive_hint = (
        "do not store secrets here: use `ocistream login`, OCISTREAM_USERNAME and "
        'OCISTREAM_PASSWORD, or for one registry: credentials = "env:PREFIX", "helper:NAME" or '
        '"file:PATH"'
    )
    mirrors = toml.optional(toml.list_of(_mirror))
    url = toml.optional(_base_url)
    upload = toml.optional(toml.parsed(_check_upload_method, "is refused: {}"))
    profile = toml.optional(toml.choice(*sorted(PROFILES_BY_NAME)))
    credentials = toml.optional(read_credential_source)

    def rule(self) -> HostRule:
        settings = replace(
            self.settings(),
            url=self.url,
            upload=self.upload,
            profile=self.profile,
        )
        # An empty list of mirrors overrides registries.conf; no list does not.
        mirrors = None if self.mirrors is None else tuple(self.mirrors)
        return HostRule(settings, self.insecure, mirrors, self.credentials)


def _non_empty_text(table: TomlTable, key: str, value: object) -> str:
    if not value:
        raise table.key_error(key, "is empty")
    return toml.text(table, key, value)


class _IdentityTable(TomlTable):
    identity = toml.required(_non_empty_text)
    issuer = toml.required(_non_empty_text)


class _TrustTable(TomlTable):
    key_files = toml.optional(toml.list_of(toml.existing_file), [], key="keys")
    identities = toml.optional(toml.list_of(_IdentityTable.read), [])
    trusted_root = toml.optional(toml.existing_file)

    def signers(self) -> tuple[Signer, ...]:
        """Return the signers that the table names.

        Raises:
            UsageError: identities have no trusted root, or a trusted root has no identities.
        """
        # Imported here, because few configurations name signers.
        from ocistream.signatures.signers import Identity, PublicKey

        keys = tuple(PublicKey(str(file)) for file in self.key_files)
        if self.trusted_root is None:
            if self.identities:
                raise self.key_error("identities", "need a trusted-root", 'such as trusted-root = "trusted_root.json"')
            return keys
        if not self.identities:
            raise self.key_error("trusted-root", "is only for identities", "add identities, or delete the key")
        root = str(self.trusted_root)
        return (*keys, *(Identity(signer.identity, signer.issuer, root) for signer in self.identities))


def _trust_prefix(table: TomlTable, key: str, value: object) -> str:
    location = registry_location(table, key, value)
    host = location.partition("/")[0]
    # The first part of an image's name is a registry only then, so that this rule would hold for no image.
    if host != "localhost" and not {".", ":"} & set(host):
        hint = f"write docker.io/library/{location}" if host == location else f"write docker.io/{location}"
        raise table.key_error(key, "does not begin with a registry", f"for images of Docker Hub {hint}")
    return normalize_prefix(location)


def _trust(table: TomlTable, key: str, value: object) -> TrustRule:
    if isinstance(value, str):
        return TrustRule("", rejects=toml.choice("reject", "any")(table, key, value) == "reject")
    if not isinstance(value, dict):
        raise table.key_error(key, 'is neither "reject" nor "any" nor a table with keys or identities')
    signers = _TrustTable.read(table, key, value).signers()
    if not signers:
        raise table.key_error(key, "has neither keys nor identities", 'write "reject" or "any" instead')
    return TrustRule("", signers)


class _RegistryTables(TomlTable):
    not_a_table_hint = 'write [registry."HOST"]'


class _ConfigurationFile(TomlTable):
    sensitive_hint = _HostTable.sensitive_hint
    unknown_hint = 'put options under [defaults], and keys for one registry under [registry."HOST"]'
    known_mistakes: ClassVar[Mapping[str, str]] = {
        "sync": "this is a sync file, not a configuration file: `ocistream sync FILE --dry-run` checks it"
    }
    trust = toml.optional(TomlTable.read)
    # Commands that use no registry do not parse the tables of registries.
    registry = toml.optional(_RegistryTables.read)
    defaults = toml.optional(TomlTable.read)


def read_configuration(path: Path, home: Path) -> TomlTable | None:
    """Read a configuration file; return None if it does not exist.

    Raises:
        UsageError: the file is not TOML, or has unknown tables.
        LocalDiskError: the file cannot be read.
    """
    return toml.read_file(path, _ConfigurationFile, home)


def parse_trust_policy(table: TomlTable) -> TrustPolicy:
    """Return the policy in a configuration.

    Raises:
        UsageError: the file is malformed, or the file of a signer does not exist.
    """
    rules = toml.dict_of(_trust, _trust_prefix)(table, "trust", table.values.get("trust", {}))
    return TrustPolicy({prefix: replace(rule, prefix=prefix) for prefix, rule in rules.items()})


def parse_host_rules(table: TomlTable) -> dict[str, HostRule]:
    """Return the rule of each host in a configuration, by its lower-case name.

    Raises:
        UsageError: the file is malformed.
    """
    hosts = toml.dict_of(_HostTable.read, registry_host)(table, "registry", table.values.get("registry", {}))
    return {host: host_table.rule() for host, host_table in hosts.items()}
