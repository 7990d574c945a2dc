"""Read a sync file (TOML). An unknown key or a malformed value is an error, and nothing is copied."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.config.config_toml import parse_host_rules
from ocistream.config.toml_files import TomlTable, read_toml
from ocistream.errors import InvalidNameError, NotFoundError, OcistreamError, UnsupportedError, UsageError
from ocistream.locations import Location, parse_location
from ocistream.oci.descriptor import parse_platform
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import parse_registry, printable
from ocistream.oci.tag_filters import TagFilter, glob_filter, version_filter
from ocistream.streams.paths import is_file
from ocistream.sync.plan import Login, SyncEntry, SyncLocation, SyncPlan, is_layout_location, is_single_image
from ocistream.sync.tag_regex import regex_filter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ocistream.registry.configuration import HostRule

__all__ = ["read_sync_file"]

_ROOT: Final = Path("/")
_ENTRY_KEYS: Final = frozenset({"from", "to", "tags", "platforms", "referrers"})
_DEFAULT_KEYS: Final = frozenset({"platforms", "referrers"})
#: How a registry is reached: the same keys and meaning as in the configuration.
_CONNECTION_KEYS: Final = frozenset({"plain-http", "insecure", "ca-cert", "client-cert", "client-key"})
#: The login at a registry: `credentials`, or a user name with one place of its password, or a file. (`auth-file` is
#: the older name of `authfile`.)
_LOGIN_KEYS: Final = frozenset({"username", "password-env", "password-file", "authfile", "auth-file"})
_REGISTRY_KEYS: Final = _CONNECTION_KEYS | _LOGIN_KEYS | {"credentials"}
_CREDENTIAL_PREFIXES: Final = ("env:", "helper:", "file:")
_TAG_KEYS: Final = frozenset({"regex", "versions", "latest", "suffix"})
#: Kinds of locations in a file: those that can be read repeatedly and whose digest is known beforehand.
_LOCATION_KINDS: Final = frozenset({"docker", "oci", "oci-archive", "path"})


def read_sync_file(path: Path, home: Path = _ROOT) -> SyncPlan:
    """Read a sync file. Its paths are relative to its folder; `~/` is the user's home directory.

    Raises:
        NotFoundError: the file does not exist.
        UsageError: the file is malformed; the error names the file and the key.
        LocalDiskError: the file cannot be read.
    """
    table = read_toml(path, limits.MAX_SYNC_FILE)
    if table is None:
        msg = f"{printable(str(path), 1024)}: no such file"
        raise NotFoundError(msg, hint="is the path right? a relative one begins in the folder that you are in")
    return _SyncFileReader(table, path.parent, home).read()


class _SyncFileReader:
    def __init__(self, table: TomlTable, folder: Path, home: Path) -> None:
        self._table = table
        self._folder = folder
        self._home = home
        self._logins: dict[str, Login] = {}
        #: By host, in lower case.
        self._registry_logins: dict[str, Login] = {}
        #: The registry of each login: a password may be sent to one registry only.
        self._login_registries: dict[str, str] = {}

    def read(self) -> SyncPlan:
        table = self._table
        _check_keys(table, {"sync", "defaults", "credentials", "registry"})
        credentials = table.table("credentials")
        for name in credentials.values:
            self._logins[name] = self._read_login(name, credentials.table(name))
        rules = self._read_host_rules(table.table("registry"))
        defaults = table.table("defaults")
        _check_keys(defaults, _DEFAULT_KEYS)
        entries = tuple(self._read_entry(entry, defaults) for entry in table.tables("sync"))
        if not entries:
            msg = f"{table.label} has no [[sync]]"
            raise UsageError(msg, hint="each one says what is copied `from` where, and `to` where")
        return SyncPlan(entries, rules)

    def _read_host_rules(self, tables: TomlTable) -> Mapping[str, HostRule]:
        """Read `[registry."HOST"]`: the login is stored here, the other keys are parsed as in the configuration."""
        connection_tables: dict[str, dict[str, object]] = {}
        for name in tables.values:
            table = tables.table(name)
            _check_keys(table, _REGISTRY_KEYS)
            credentials = table.text("credentials")
            if (
                credentials is not None
                and credentials not in self._logins
                and not credentials.startswith(_CREDENTIAL_PREFIXES)
            ):
                problem = 'is not the NAME of a [credentials.NAME], nor "env:PREFIX", "helper:NAME" or "file:PATH"'
                raise table.key_error("credentials", problem, f"there are: {self._format_logins()}")
            login_keys = _LOGIN_KEYS | {"credentials"} if credentials in self._logins else _LOGIN_KEYS
            connection_tables[name] = {key: value for key, value in table.values.items() if key not in login_keys}
        rules = parse_host_rules(
            TomlTable(self._table.label, {"registry": connection_tables}), self._home, _REGISTRY_KEYS
        )
        rules_by_host = {}
        for name in tables.values:
            host = parse_registry(name.lower())
            if (login := self._read_registry_login(host, tables.table(name))) is not None:
                self._registry_logins[host] = login
            # `explicit_keys` are the keys of this file. Unlike the configuration's they override command line options.
            rules_by_host[host] = replace(
                rules[host], settings=replace(rules[host].settings, explicit_keys=frozenset(connection_tables[name]))
            )
        return rules_by_host

    def _format_logins(self) -> str:
        return ", ".join(sorted(map(printable, self._logins))) or "none"

    def _read_registry_login(self, host: str, table: TomlTable) -> Login | None:
        """Return the login of a registry's table; None if the configuration decides."""
        login_values = {key: value for key, value in table.values.items() if key in _LOGIN_KEYS}
        name = table.text("credentials")
        if name is not None and login_values:
            raise table.key_error("credentials", f"and {min(login_values)} are both given: use one")
        if login_values:
            return self._read_login(host, TomlTable(table.label, login_values))
        return self._use_login(table, name, host) if name in self._logins else None

    def _read_login(self, name: str, table: TomlTable) -> Login:
        _check_keys(table, _LOGIN_KEYS)
        files = [key for key in ("authfile", "auth-file") if key in table.values]
        passwords = [key for key in ("password-env", "password-file") if key in table.values]
        username = table.text("username")
        if files:
            if username is not None or passwords:
                raise table.key_error(files[0], "and a user name are both given: use one")
            if len(files) > 1:
                raise table.key_error(files[0], "and auth-file (its older name) are both given: use one")
            return Login(name, table.label, auth_file=self._read_path(table, files[0]))
        if len(passwords) > 1:
            raise table.key_error(passwords[1], f"and {passwords[0]} are both given: use one")
        if not username or not passwords or not table.text(passwords[0]):
            missing = (passwords or ["password-env"])[0] if username else "username"
            hint = "give username with password-env or password-file, or give authfile"
            raise table.key_error(missing, "is missing", hint)
        if passwords == ["password-file"]:
            return Login(name, table.label, username, password_file=self._read_path(table, "password-file"))
        return Login(name, table.label, username, table.text("password-env") or "")

    def _read_path(self, table: TomlTable, key: str) -> Path:
        text = table.text(key) or ""
        try:
            path = self._folder / Path(text).expanduser()
        except RuntimeError as error:
            raise table.key_error(key, "begins with a home directory that is not known") from error
        if not is_file(path):
            raise table.key_error(key, f"names {printable(str(path))}: no such file")
        return path

    def _read_entry(self, table: TomlTable, defaults: TomlTable) -> SyncEntry:
        _check_keys(table, _ENTRY_KEYS)
        source = self._read_location(table, "from", table.values.get("from"))
        value = table.values.get("to")
        destinations = tuple(
            self._read_location(table, "to", item) for item in (value if isinstance(value, list) else [value])
        )
        if not destinations:
            raise table.key_error("to", "is empty")
        referrers = table.flag("referrers")
        if referrers is None:
            referrers = defaults.flag("referrers")
        entry = SyncEntry(
            table.label,
            source,
            destinations,
            _read_tag_filter(table) if "tags" in table.values else None,
            _read_platforms(table if "platforms" in table.values else defaults),
            referrers is not False,
        )
        _check_locations(table, entry)
        return entry

    def _read_location(self, table: TomlTable, key: str, value: object) -> SyncLocation:
        """Read a location: its text, or a table with its text as `end` and the name of its `credentials`."""
        location_table = table
        if isinstance(value, dict):
            location_table = TomlTable(f"{table.label}: {key}", value)
            _check_keys(location_table, {"end", "credentials"})
        elif not isinstance(value, str):
            raise table.key_error(key, "is missing" if value is None else "is neither an end nor a table with one")
        text = location_table.text("end") if isinstance(value, dict) else value
        try:
            location = self._resolve_path(parse_location(text or ""))
        except (InvalidNameError, UnsupportedError) as error:
            raise table.key_error(key, f"is no end: {error.message}", error.hint) from error
        if location.is_stream or location.kind not in _LOCATION_KINDS:
            problem = "is stdin or stdout" if location.is_stream else "is a docker-archive"
            raise table.key_error(
                key, f"{problem}, which cannot be compared", "name a registry, oci:DIR or oci-archive:FILE"
            )
        name = location_table.text("credentials") if isinstance(value, dict) else None
        if name is not None:
            return SyncLocation(location, self._find_login(location_table, name, location))
        return SyncLocation(
            location,
            None if location.reference is None else self._registry_logins.get(location.reference.registry.lower()),
        )

    def _find_login(self, table: TomlTable, name: str, location: Location) -> Login:
        if name not in self._logins:
            problem = f"names {printable(name)!r}: no table [credentials.{printable(name)}]"
            raise table.key_error("credentials", problem, f"there are: {self._format_logins()}")
        if location.reference is None:
            raise table.key_error("credentials", "is for registries alone")
        return self._use_login(table, name, location.reference.registry.lower())

    def _use_login(self, table: TomlTable, name: str, registry: str) -> Login:
        """Return the login with this name for a registry. Fail if its password is already for another registry."""
        login = self._logins[name]
        if login.auth_file is None and self._login_registries.setdefault(name, registry) != registry:
            both = f"{self._login_registries[name]} and {registry}"
            raise table.key_error("credentials", f"would show one password, {printable(name)!r}, to {both}")
        return login

    def _resolve_path(self, location: Location) -> Location:
        return location if location.path is None else replace(location, path=self._folder / location.path)


def _check_locations(table: TomlTable, entry: SyncEntry) -> None:
    """Refuse locations that do not fit each other: many images at one location, or a location twice."""
    if entry.has_one_image and "tags" in table.values:
        raise table.key_error(
            "tags", "is there, and `from` is one image", "leave one of them, or the tag in `from`, away"
        )
    for destination in entry.destinations:
        location = destination.location
        is_single = is_single_image(location) or (location.reference is None and not is_layout_location(location))
        if is_single and not entry.has_one_image:
            problem = f"{printable(location.text)!r} is for one image, and `from` has many"
            raise table.key_error(
                "to", problem, "leave its tag or name away, or give `from` one; an archive has one image"
            )
        if location.reference is not None and location.reference.digest:
            raise table.key_error("to", f"{printable(location.text)!r} has a digest: that is the image's own")
    texts = [destination.location.text for destination in entry.destinations]
    if len(set(texts)) != len(texts):
        raise table.key_error("to", "has a place twice")


def _read_tag_filter(table: TomlTable) -> TagFilter:
    value = table.values.get("tags", [])
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        if not all(isinstance(item, str) and item for item in value):
            raise table.key_error("tags", "has something that is no pattern")
        return glob_filter(value)
    filter_table = table.table("tags")
    _check_keys(filter_table, _TAG_KEYS)
    regex, versions, suffix = filter_table.text("regex"), filter_table.text("versions"), filter_table.text("suffix")
    latest = filter_table.values.get("latest")
    if latest is not None and (not isinstance(latest, int) or isinstance(latest, bool) or latest < 1):
        raise filter_table.key_error("latest", "is not a number above 0")
    try:
        if regex is not None:
            if len(filter_table.values) > 1:
                raise filter_table.key_error("regex", "is there beside another choice: give one")
            return regex_filter(regex)
        if versions is None and latest is None and suffix is None:
            raise table.key_error("tags", "chooses nothing", "known: regex; or versions, latest, suffix")
        return version_filter(versions, latest=latest, suffix=suffix or "")
    except UsageError as error:
        if error.message.startswith(table.label):
            raise
        raise table.key_error("tags", f"choose by a {error.message}", error.hint) from error


def _read_platforms(table: TomlTable) -> PlatformChoice:
    value = table.values.get("platforms", "all")
    if value == "all":
        return ALL_PLATFORMS
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise table.key_error("platforms", 'is neither "all" nor a list such as ["linux/amd64"]')
    try:
        return PlatformChoice(tuple(dict.fromkeys(map(parse_platform, value))))
    except OcistreamError as error:
        raise table.key_error("platforms", f"has {error.message}", error.hint) from error


def _check_keys(table: TomlTable, known: Iterable[str]) -> None:
    for key in table.values:
        if key not in known:
            hint = f"known: {', '.join(sorted(known))}"
            if re.search(r"pass|secret|token", key, re.IGNORECASE):
                hint = "no password belongs here: `password-env` names a variable that has it, `password-file` a file"
            raise table.key_error(key, "is not known here", hint)
