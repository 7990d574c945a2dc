"""Read a sync file (TOML). An unknown key or a malformed value is an error, and nothing is copied."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ocistream import limits
from ocistream.config import toml_files as toml
from ocistream.config.config_toml import ConnectionTable, read_credential_source
from ocistream.config.toml_files import TomlTable, registry_host
from ocistream.errors import InvalidNameError, NotFoundError, OcistreamError, UnsupportedError, UsageError
from ocistream.locations import Location, parse_location
from ocistream.oci.descriptor import parse_platform
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import printable
from ocistream.oci.tag_filters import TagFilter, glob_filter, version_filter
from ocistream.registry.configuration import HostRule
from ocistream.sync.plan import Login, SyncEntry, SyncLocation, SyncPlan, is_layout_location, is_single_image
from ocistream.sync.tag_regex import regex_filter

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROOT: Final = Path("/")
_CREDENTIAL_PREFIXES: Final = ("env:", "helper:", "file:")
#: Kinds of locations in a file: those that can be read repeatedly and whose digest is known beforehand.
_LOCATION_KINDS: Final = frozenset({"docker", "oci", "oci-archive", "path"})


# -- keys and values -----------------------------------------------------------------------------------------


class _SyncTable(TomlTable):
    sensitive_hint = "do not write passwords here: use `password-env` (a variable) or `password-file`"


class _LoginTable(_SyncTable):
    """A user name with one place of its password, or a file in Docker's format."""

    username = toml.optional(toml.text)
    password_env = toml.optional(toml.text)
    password_file = toml.optional(toml.existing_file)
    authfile = toml.optional(toml.existing_file)

    def login(self) -> Login:
        passwords = [key for key in ("password-env", "password-file") if key in self.values]
        if self.authfile is not None:
            if self.username is not None or passwords:
                raise self.key_error("authfile", "and a user name are both set: use one")
            return Login(self.label, auth_file=self.authfile)
        if len(passwords) > 1:
            raise self.key_error(passwords[1], f"and {passwords[0]} are both set: use one")
        if not self.username or not (self.password_env or self.password_file):
            missing = (passwords or ["password-env"])[0] if self.username else "username"
            hint = "use username with password-env or password-file, or authfile"
            raise self.missing_key_error(missing, hint)
        return Login(self.label, self.username, self.password_env or "", password_file=self.password_file)


_LOGIN_KEYS: Final = frozenset(_LoginTable.keys)


class _RegistryTable(_LoginTable, ConnectionTable):
    """`[registry."HOST"]`: the keys of the configuration for the connection, and a login or the name of one."""

    credentials = toml.optional(toml.text)


@dataclass(frozen=True, slots=True)
class _NamedLocation:
    """A location, and the name of its login. Errors are those of `table`."""

    location: Location
    table: TomlTable
    credentials: str | None = None


def _location(table: TomlTable, key: str, value: object) -> Location:
    try:
        location = parse_location(toml.text(table, key, value), folder=table.folder)
    except (InvalidNameError, UnsupportedError) as error:
        raise table.key_error(key, f"is not a location ({error.message})", error.hint) from error
    if location.is_stream or location.kind not in _LOCATION_KINDS:
        problem = "is stdin or stdout" if location.is_stream else "is a docker-archive"
        raise table.key_error(
            key, f"{problem}, which cannot be compared", "name a registry, oci:DIR or oci-archive:FILE"
        )
    return location if location.path is None else replace(location, path=table.folder / location.path)


class _LocationTable(_SyncTable):
    sensitive_hint = 'write credentials = "NAME" here; the user name and the password belong in [credentials.NAME]'
    location = toml.required(_location)
    credentials = toml.optional(toml.text)


def _named_location(table: TomlTable, key: str, value: object) -> _NamedLocation:
    if isinstance(value, str):
        return _NamedLocation(_location(table, key, value), table)
    if not isinstance(value, dict):
        hint = "write one location; for several, write one [[sync]] for each" if isinstance(value, list) else None
        raise table.key_error(key, "is neither a location nor a table with one", hint)
    named = _LocationTable.read(table, key, value)
    return _NamedLocation(named.location, named, named.credentials)


def _destinations(table: TomlTable, key: str, value: object) -> list[_NamedLocation]:
    if value == []:
        raise table.key_error(key, "is empty")
    return (
        toml.list_of(_named_location)(table, key, value)
        if isinstance(value, list)
        else [_named_location(table, key, value)]
    )


class _VersionsTable(_SyncTable):
    regex = toml.optional(toml.text)
    versions = toml.optional(toml.text)
    latest = toml.optional(toml.whole_number())
    suffix = toml.optional(toml.text, "")


def _tag_filter(table: TomlTable, key: str, value: object) -> TagFilter:
    if isinstance(value, str | list):
        patterns = [value] if isinstance(value, str) else value
        if not all(isinstance(pattern, str) and pattern for pattern in patterns):
            raise table.key_error(key, "has an item that is not a pattern")
        return glob_filter(patterns)
    if not isinstance(value, dict):
        raise table.key_error(key, "must be a pattern, a list or a table", 'such as "1.*" or { latest = 5 }')
    chosen = _VersionsTable.read(table, key, value)
    if not chosen.values:
        raise table.key_error(key, "selects nothing", "allowed: regex; or versions, latest, suffix")
    if chosen.regex is not None and len(chosen.values) > 1:
        raise chosen.key_error("regex", "is set together with another choice: use one")
    try:
        if chosen.regex is not None:
            return regex_filter(chosen.regex)
        return version_filter(chosen.versions, latest=chosen.latest, suffix=chosen.suffix)
    except UsageError as error:
        msg = f"{table.label}: {printable(key)}: {error.message}"
        raise UsageError(msg, hint=error.hint) from error


def _platforms(table: TomlTable, key: str, value: object) -> PlatformChoice:
    if value == "all":
        return ALL_PLATFORMS
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise table.key_error(key, 'is neither "all" nor a list such as ["linux/amd64"]')
    if "all" in value:
        raise table.key_error(key, "has 'all' in a list", 'write platforms = "all", without a list')
    try:
        return PlatformChoice(tuple(dict.fromkeys(map(parse_platform, value))))
    except OcistreamError as error:
        raise table.key_error(key, f"has {error.message}", error.hint) from error


class _DefaultsTable(_SyncTable):
    platforms = toml.optional(_platforms)
    referrers = toml.optional(toml.flag)


#: Signatures are required by the configuration, for all commands.
_TRUST_MISTAKES: Final = dict.fromkeys(
    ("trust", "keys", "require-signature"), "write [trust] in the configuration file, which is not the sync file"
)


class _EntryTable(_DefaultsTable):
    known_mistakes = _TRUST_MISTAKES
    source = toml.required(_named_location, key="from", example='"docker.io/library/nginx:1"')
    destinations = toml.required(_destinations, key="to", example='"registry.example.com/mirror/nginx"')
    tags = toml.optional(_tag_filter)


def _entries(table: TomlTable, key: str, value: object) -> list[Any]:
    if isinstance(value, dict):
        raise table.key_error(key, "is not a list", "write [[sync]] instead of [sync]")
    return toml.items(table, key, value)


class _SyncFile(_SyncTable):
    known_mistakes: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("from", "to", "tags", "platforms", "referrers"), "write [[sync]] above the keys of each copy"),
        **_TRUST_MISTAKES,
    }
    credentials = toml.optional(toml.dict_of(_LoginTable.read), {})
    registry = toml.optional(toml.dict_of(_RegistryTable.read, registry_host), {})
    defaults = toml.optional(_DefaultsTable.read, {})
    #: Entries are read one by one, to save memory: there may be ten thousand.
    sync = toml.optional(_entries, [])


# -- from tables to the plan ---------------------------------------------------------------------------------


def read_sync_file(path: Path, home: Path = _ROOT) -> SyncPlan:
    """Read a sync file. Its paths are relative to its folder; `~/` is the user's home directory.

    Raises:
        NotFoundError: the file does not exist.
        UsageError: the file is malformed; the error names the file and the key.
        LocalDiskError: the file cannot be read.
    """
    table = toml.read_file(path, _SyncFile, home, limits.MAX_SYNC_FILE)
    if table is None:
        msg = f"{printable(str(path), 1024)}: no such file"
        hint = "check the path; relative paths start at the current directory"
        raise NotFoundError(msg, hint="name a file; for stdin, write /dev/stdin" if str(path) == "-" else hint)
    return _Planner(table).plan()


class _Planner:
    """Finds the login of each location, and checks that the locations of an entry fit each other."""

    def __init__(self, table: _SyncFile) -> None:
        self._table = table
        self._logins = {name: login.login() for name, login in table.credentials.items()}
        #: By host, in lower case.
        self._registry_logins: dict[str, Login | None] = {}
        #: The registry of each login: a password may be sent to one registry only.
        self._login_registries: dict[str, str] = {}

    def plan(self) -> SyncPlan:
        table = self._table
        rules = {host: self._read_registry(host, registry) for host, registry in table.registry.items()}
        entries = tuple(
            self._read_entry(_EntryTable.read(table, f"[[sync]] number {number}", value))
            for number, value in enumerate(table.sync, 1)
        )
        if not entries:
            msg = f"{table.label} has no [[sync]]"
            raise UsageError(msg, hint="each [[sync]] needs `from` and `to`")
        return SyncPlan(entries, rules)

    def _read_registry(self, host: str, table: _RegistryTable) -> HostRule:
        """Return the rule of a registry, and remember its login; without one the configuration decides."""
        # `overriding_keys` are the keys of this file. Unlike the configuration's they override command line options.
        keys, name, source = frozenset(table.values) - _LOGIN_KEYS, table.credentials, None
        login_keys = _LOGIN_KEYS & set(table.values)
        if name is not None and login_keys:
            raise table.key_error("credentials", f"and {min(login_keys)} are both set: use one")
        if login_keys:
            self._registry_logins[host] = table.login()
        elif name is not None and name in self._logins:
            keys -= {"credentials"}
            self._registry_logins[host] = self._use_login(table, name, host)
        elif name is not None:
            if not name.startswith(_CREDENTIAL_PREFIXES):
                problem = 'is not the NAME of a [credentials.NAME], nor "env:PREFIX", "helper:NAME" or "file:PATH"'
                raise table.key_error("credentials", problem, f"available: {self._format_logins()}")
            source = read_credential_source(table, "credentials", name)
        return HostRule(replace(table.settings(), overriding_keys=keys), table.insecure, credentials=source)

    def _read_entry(self, table: _EntryTable) -> SyncEntry:
        defaults = self._table.defaults
        referrers = defaults.referrers if table.referrers is None else table.referrers
        entry = SyncEntry(
            table.label,
            self._add_login(table.source),
            tuple(map(self._add_login, table.destinations)),
            table.tags,
            table.platforms or defaults.platforms or ALL_PLATFORMS,
            referrers is not False,
        )
        _check_locations(table, entry)
        return entry

    def _add_login(self, named: _NamedLocation) -> SyncLocation:
        reference, name = named.location.reference, named.credentials
        if name is None:
            login = None if reference is None else self._registry_logins.get(reference.registry.lower())
            return SyncLocation(named.location, login)
        if name not in self._logins:
            problem = f"names {printable(name)!r}: no table [credentials.{printable(name)}]"
            raise named.table.key_error("credentials", problem, f"available: {self._format_logins()}")
        if reference is None:
            raise named.table.key_error("credentials", "is only for registries")
        return SyncLocation(named.location, self._use_login(named.table, name, reference.registry.lower()))

    def _use_login(self, table: TomlTable, name: str, registry: str) -> Login:
        """Return the login with this name for a registry. Fail if its password is already for another registry."""
        login = self._logins[name]
        if login.auth_file is None and self._login_registries.setdefault(name, registry) != registry:
            both = f"{self._login_registries[name]} and {registry}"
            raise table.key_error("credentials", f"would send one password, {printable(name)!r}, to {both}")
        return login

    def _format_logins(self) -> str:
        return ", ".join(sorted(map(printable, self._logins))) or "none"


def _check_locations(table: TomlTable, entry: SyncEntry) -> None:
    """Refuse locations that do not fit each other: many images at one location, or a location twice."""
    if entry.has_one_image and "tags" in table.values:
        raise table.key_error("tags", "is set, but `from` is one image", "omit one of them, or the tag in `from`")
    for destination in entry.destinations:
        location = destination.location
        is_single = is_single_image(location) or (location.reference is None and not is_layout_location(location))
        if is_single and not entry.has_one_image:
            problem = f"{printable(location.text)!r} is for one image, but `from` has many"
            is_archive = location.reference is None and not is_layout_location(location)
            hint = "write to = 'oci:DIR'" if is_archive else "omit its tag or name"
            raise table.key_error("to", problem, f"{hint}, or add a tag to `from`")
        if location.reference is not None and location.reference.digest:
            raise table.key_error("to", f"{printable(location.text)!r} has a digest, which the image determines")
    texts = [destination.location.text for destination in entry.destinations]
    if len(set(texts)) != len(texts):
        raise table.key_error("to", "has a location twice", "delete one of them")
