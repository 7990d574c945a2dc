"""Read ocistream's own config.toml: settings, mirrors and credential sources of each registry host.

Only the first existing file is read. Unknown keys are errors. The command line reads `[defaults]`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ocistream.auth.credentials import parse_credential_source
from ocistream.config.toml_files import TomlTable, read_toml
from ocistream.errors import InvalidNameError, NotFoundError, UsageError
from ocistream.http.settings import HostSettings
from ocistream.oci.reference import parse_registry, printable
from ocistream.registry.configuration import PULL_MODES, HostRule, Mirror, parse_registry_location
from ocistream.registry.profiles import PROFILES_BY_NAME
from ocistream.registry.upload_strategy import parse_upload_method
from ocistream.streams.paths import is_file
from ocistream.streams.xdg import SYSTEM_CONFIG_FILE, user_config_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ocistream.auth.credentials import CredentialSource

__all__ = ["parse_host_rules", "read_configuration", "read_host_rules", "resolve_path"]

_REGISTRY_KEYS: Final = frozenset(
    {
        "mirrors",
        "plain-http",
        "insecure",
        "ca-cert",
        "client-cert",
        "client-key",
        "url",
        "requests-per-second",
        "upload",
        "profile",
        "credentials",
    }
)
_MIRROR_KEYS: Final = frozenset({"location", "insecure", "pull"})
_SECRET: Final = re.compile(r"pass|secret|token|user|auth|credential", re.IGNORECASE)


def read_host_rules(
    named: Path | None, env: Mapping[str, str], home: Path, *, system: Path = SYSTEM_CONFIG_FILE
) -> dict[str, HostRule]:
    """Read the configuration; return the rule of each host by its lower-case name, or {} if there is no file.

    Raises:
        NotFoundError: the file that `named` names does not exist.
        UsageError: the file is malformed; the error names the file and the key.
        LocalDiskError: the file cannot be read.
    """
    table = read_configuration(named, env, home, system=system)
    return {} if table is None else parse_host_rules(table, home)


def read_configuration(
    named: Path | None, env: Mapping[str, str], home: Path, *, system: Path = SYSTEM_CONFIG_FILE
) -> TomlTable | None:
    """Read the first existing file; return None if there is none.

    Raises:
        NotFoundError: the file that `named` names does not exist.
        UsageError: the file is not TOML, or has unknown tables.
        LocalDiskError: the file cannot be read.
    """
    if named is not None:
        table = read_toml(named)
        if table is None:
            msg = f"--config {named}: no such file"
            raise NotFoundError(msg, hint="is the path right? a relative one begins in the folder that you are in")
        return _check_table(table)
    for path in (user_config_file(env, home), system):
        if (table := read_toml(path)) is not None:
            return _check_table(table)
    return None


def _check_table(table: TomlTable) -> TomlTable:
    _check_keys(table, {"registry", "defaults"})
    table.table("defaults")
    return table


def parse_host_rules(table: TomlTable, home: Path, keys: Collection[str] = _REGISTRY_KEYS) -> dict[str, HostRule]:
    """Return the rule of each host in a file, by its lower-case name. Only `keys` are allowed in a host's table.

    A sync file uses this parser too, with fewer keys.

    Raises:
        UsageError: the file is malformed.
    """
    folder = Path(table.label).parent
    registries = table.table("registry")
    rules: dict[str, HostRule] = {}
    for key in registries.values:
        try:
            host = parse_registry(key.lower())
        except InvalidNameError as error:
            raise registries.key_error(key, "is not a registry's HOST[:PORT]") from error
        if host in rules:
            raise registries.key_error(key, "is there twice, under two names of one registry")
        host_table = registries.table(key)
        _check_keys(host_table, keys)
        rules[host] = _HostRuleParser(host_table, folder, home).parse()
    return rules


class _HostRuleParser:
    """Parse one table `[registry."HOST"]` to a rule. Paths are relative to the file's directory."""

    def __init__(self, table: TomlTable, folder: Path, home: Path) -> None:
        self._table = table
        self._folder = folder
        self._home = home

    def parse(self) -> HostRule:
        table = self._table
        settings = HostSettings(
            plain_http=table.flag("plain-http") or False,
            ca_files=self._ca_files(),
            client_certificates=self._client_certificates(),
            url=self._url(),
            requests_per_second=self._rate(),
            upload=self._upload(),
            profile=self._profile(),
        )
        mirrors = tuple(self._mirror(item) for item in table.items("mirrors")) if "mirrors" in table.values else None
        return HostRule(settings, table.flag("insecure"), mirrors, self._credentials())

    def _mirror(self, item: object) -> Mirror:
        if isinstance(item, str):
            item = {"location": item}
        if not isinstance(item, dict):
            raise self._table.key_error("mirrors", "has something that is neither a location nor a table")
        table = TomlTable(f"{self._table.label}: mirrors", item)
        _check_keys(table, _MIRROR_KEYS)
        pull = table.text("pull") or PULL_MODES[0]
        if pull not in PULL_MODES:
            raise table.key_error("pull", f"is not one of {', '.join(PULL_MODES)}")
        try:
            location = parse_registry_location(table.text("location") or "")
        except InvalidNameError as error:
            raise table.key_error("location", "is not HOST[:PORT][/PATH]", error.hint) from error
        return Mirror(location, table.flag("insecure"), pull)

    def _ca_files(self) -> tuple[str, ...]:
        value = self._table.values.get("ca-cert")
        paths: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, str) for item in paths):
            raise self._table.key_error("ca-cert", "is neither a path nor a list of paths")
        return tuple(self._path("ca-cert", item) for item in paths)

    def _client_certificates(self) -> tuple[tuple[str, str | None], ...]:
        certificate, key = self._table.text("client-cert"), self._table.text("client-key")
        if certificate is None:
            if key is not None:
                raise self._table.key_error("client-key", "is there without a client-cert")
            return ()
        return ((self._path("client-cert", certificate), self._path("client-key", key) if key else None),)

    def _path(self, key: str, text: str) -> str:
        """Return the path that the file means; it must exist, or each connection would fail and be retried."""
        path = resolve_path(self._folder, text, self._home)
        if not is_file(path):
            raise self._table.key_error(key, f"names {printable(str(path))}: no such file")
        return str(path)

    def _url(self) -> str | None:
        url = self._table.text("url")
        if url is None:
            return None
        if not _is_base_url(url):
            # Do not show the URL: it may contain a password.
            raise self._table.key_error("url", "is not http[s]://HOST[:PORT][/PATH]")
        return url.rstrip("/")

    def _upload(self) -> str | None:
        text = self._table.text("upload")
        if text is not None:
            try:
                parse_upload_method(text)
            except UsageError as error:
                raise self._table.key_error("upload", f"is refused: {error.message}", error.hint) from error
        return text

    def _profile(self) -> str | None:
        name = self._table.text("profile")
        if name is not None and name not in PROFILES_BY_NAME:
            raise self._table.key_error("profile", f"is not one of {', '.join(sorted(PROFILES_BY_NAME))}")
        return name

    def _credentials(self) -> CredentialSource | None:
        text = self._table.text("credentials")
        if text is None:
            return None
        try:
            source = parse_credential_source(text)
        except UsageError as error:
            # Do not show the value: it may be a password.
            raise self._table.key_error("credentials", error.message, error.hint) from error
        if source.kind != "file":
            return source
        # The file need not exist until credentials are needed.
        return replace(source, name=str(resolve_path(self._folder, source.name, self._home)))

    def _rate(self) -> float | None:
        value = self._table.values.get("requests-per-second")
        if value is None:
            return None
        # In Python, True is an int; TOML has `inf` and `nan`.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1_000_000:
            raise self._table.key_error("requests-per-second", "is not a number above 0")
        return float(value)


def resolve_path(folder: Path, text: str, home: Path) -> Path:
    """Return a path relative to `folder`, or, with `~/`, relative to the user's home."""
    return home / text[2:] if text.startswith("~/") else folder / text


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return is_valid and not (parts.query or parts.fragment or "@" in parts.netloc or re.search(r"[^\x21-\x7e]", url))


def _check_keys(table: TomlTable, known: Iterable[str]) -> None:
    """Raise UsageError for an unknown key, with a hint where secrets belong.

    Our own file is strict. containers' files are written for other programs too, so their unknown keys are ignored.
    """
    for key in table.values:
        if key in known:
            continue
        if _SECRET.search(key):
            hint = (
                "secrets do not belong here: `ocistream login` keeps them, or OCISTREAM_USERNAME and _PASSWORD, or "
                'say where they are, of a registry: credentials = "env:PREFIX", "helper:NAME" or "file:PATH"'
            )
            raise table.key_error(key, "is not a key of this file", hint)
        raise table.key_error(key, "is not known here", f"known: {', '.join(sorted(known))}")
