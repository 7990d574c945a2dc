"""A sync file, read: TOML, strictly. What is misspelt is an error, and nothing is moved."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.config.file import host_rules
from ocistream.config.toml_files import Table, read_table
from ocistream.errors import InvalidNameError, NotFoundError, OcistreamError, UnsupportedError, UsageError
from ocistream.oci.descriptor import parse_platform
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import parse_registry, printable
from ocistream.oci.tag_filters import TagChoice, matching, of_regex, of_versions
from ocistream.stores import End, parse_end
from ocistream.streams.paths import is_file
from ocistream.sync.plan import Entry, Login, Place, Plan, is_layout, names_one

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ocistream.registry.locations import HostRule

__all__ = ["read_plan"]

_ROOT: Final = Path("/")
_ENTRY: Final = frozenset({"from", "to", "tags", "platforms", "referrers"})
_DEFAULTS: Final = frozenset({"platforms", "referrers"})
#: How a registry is reached: as in the configuration, and with the same meaning.
_REACHED: Final = frozenset({"plain-http", "insecure", "ca-cert", "client-cert", "client-key"})
#: Whom a registry sees: one of `credentials`, a user name with one place of its password, and a file. (`auth-file` is
#: the older name of `authfile`.)
_LOGIN: Final = frozenset({"username", "password-env", "password-file", "authfile", "auth-file"})
_REGISTRY: Final = _REACHED | _LOGIN | {"credentials"}
_SOURCES: Final = ("env:", "helper:", "file:")
_TAGS: Final = frozenset({"regex", "versions", "latest", "suffix"})
#: Kinds of ends that a file may name: all that can be read more than once, and of which the digest is known before.
_KINDS: Final = frozenset({"docker", "oci", "oci-archive", "path"})


def read_plan(path: Path, home: Path = _ROOT) -> Plan:
    """Read a sync file. Paths in it are relative to its folder, or with `~/` to the user's home directory.

    Raises:
        NotFoundError: it is not there.
        UsageError: it is malformed; the error names it and the key.
        LocalDiskError: it cannot be read.
    """
    table = read_table(path, limits.MAX_SYNC_FILE)
    if table is None:
        msg = f"{printable(str(path), 1024)}: no such file"
        raise NotFoundError(msg, hint="is the path right? a relative one begins in the folder that you are in")
    return _Reader(table, path.parent, home).plan()


class _Reader:
    def __init__(self, table: Table, folder: Path, home: Path) -> None:
        self._table = table
        self._folder = folder
        self._home = home
        self._logins: dict[str, Login] = {}
        #: By host, in lower case.
        self._of_registries: dict[str, Login] = {}
        #: For whom each of them is: a password is shown to one registry.
        self._registries: dict[str, str] = {}

    def plan(self) -> Plan:
        table = self._table
        _check_keys(table, {"sync", "defaults", "credentials", "registry"})
        credentials = table.table("credentials")
        for name in credentials.values:
            self._logins[name] = self._login(name, credentials.table(name))
        rules = self._rules(table.table("registry"))
        defaults = table.table("defaults")
        _check_keys(defaults, _DEFAULTS)
        entries = tuple(self._entry(entry, defaults) for entry in table.tables("sync"))
        if not entries:
            msg = f"{table.where} has no [[sync]]"
            raise UsageError(msg, hint="each one says what is copied `from` where, and `to` where")
        return Plan(entries, rules)

    def _rules(self, tables: Table) -> Mapping[str, HostRule]:
        """Read `[registry."HOST"]`: what logs in there is kept here, and the rest is read as the configuration is.

        Raises:
            UsageError: a table is malformed.
        """
        reached: dict[str, dict[str, object]] = {}
        for name in tables.values:
            table = tables.table(name)
            _check_keys(table, _REGISTRY)
            credentials = table.text("credentials")
            if credentials is not None and credentials not in self._logins and not credentials.startswith(_SOURCES):
                what = 'is not the NAME of a [credentials.NAME], nor "env:PREFIX", "helper:NAME" or "file:PATH"'
                raise table.wrong("credentials", what, f"there are: {self._known()}")
            own = _LOGIN | {"credentials"} if credentials in self._logins else _LOGIN
            reached[name] = {key: value for key, value in table.values.items() if key not in own}
        rules = host_rules(Table(self._table.where, {"registry": reached}), self._home, _REGISTRY)
        found = {}
        for name in tables.values:
            host = parse_registry(name.lower())
            if (login := self._login_of(host, tables.table(name))) is not None:
                self._of_registries[host] = login
            found[host] = replace(rules[host], settings=replace(rules[host].settings, said=frozenset(reached[name])))
        return found

    def _known(self) -> str:
        return ", ".join(sorted(map(printable, self._logins))) or "none"

    def _login_of(self, host: str, table: Table) -> Login | None:
        """Return what logs in to a registry by its table; None where the table leaves that to the configuration."""
        of_login = {key: value for key, value in table.values.items() if key in _LOGIN}
        name = table.text("credentials")
        if name is not None and of_login:
            raise table.wrong("credentials", f"and {min(of_login)} are both given: use one")
        if of_login:
            return self._login(host, Table(table.where, of_login))
        return self._shown_to(table, name, host) if name in self._logins else None

    def _login(self, name: str, table: Table) -> Login:
        _check_keys(table, _LOGIN)
        files = [key for key in ("authfile", "auth-file") if key in table.values]
        passwords = [key for key in ("password-env", "password-file") if key in table.values]
        username = table.text("username")
        if files:
            if username is not None or passwords:
                raise table.wrong(files[0], "and a user name are both given: use one")
            if len(files) > 1:
                raise table.wrong(files[0], "and auth-file (its older name) are both given: use one")
            return Login(name, table.where, auth_file=self._file(table, files[0]))
        if len(passwords) > 1:
            raise table.wrong(passwords[1], f"and {passwords[0]} are both given: use one")
        if not username or not passwords or not table.text(passwords[0]):
            missing = (passwords or ["password-env"])[0] if username else "username"
            hint = "give username with password-env or password-file, or give authfile"
            raise table.wrong(missing, "is missing", hint)
        if passwords == ["password-file"]:
            return Login(name, table.where, username, password_file=self._file(table, "password-file"))
        return Login(name, table.where, username, table.text("password-env") or "")

    def _file(self, table: Table, key: str) -> Path:
        text = table.text(key) or ""
        try:
            path = self._folder / Path(text).expanduser()
        except RuntimeError as error:
            raise table.wrong(key, "begins with a home directory that is not known") from error
        if not is_file(path):
            raise table.wrong(key, f"names {printable(str(path))}: no such file")
        return path

    def _entry(self, table: Table, defaults: Table) -> Entry:
        _check_keys(table, _ENTRY)
        source = self._place(table, "from", table.values.get("from"))
        value = table.values.get("to")
        targets = tuple(self._place(table, "to", item) for item in (value if isinstance(value, list) else [value]))
        if not targets:
            raise table.wrong("to", "is empty")
        referrers = table.flag("referrers")
        if referrers is None:
            referrers = defaults.flag("referrers")
        entry = Entry(
            table.where,
            source,
            targets,
            _tags(table) if "tags" in table.values else None,
            _platforms(table if "platforms" in table.values else defaults),
            referrers is not False,
        )
        _check_ends(table, entry)
        return entry

    def _place(self, table: Table, key: str, value: object) -> Place:
        """Read an end: its text, or a table of its text as `end` and the name of its `credentials`."""
        where = table
        if isinstance(value, dict):
            where = Table(f"{table.where}: {key}", value)
            _check_keys(where, {"end", "credentials"})
        elif not isinstance(value, str):
            raise table.wrong(key, "is missing" if value is None else "is neither an end nor a table with one")
        text = where.text("end") if isinstance(value, dict) else value
        try:
            end = self._in_folder(parse_end(text or ""))
        except (InvalidNameError, UnsupportedError) as error:
            raise table.wrong(key, f"is no end: {error.what}", error.hint) from error
        if end.is_stream or end.kind not in _KINDS:
            what = "is stdin or stdout" if end.is_stream else "is a docker-archive"
            raise table.wrong(key, f"{what}, which cannot be compared", "name a registry, oci:DIR or oci-archive:FILE")
        name = where.text("credentials") if isinstance(value, dict) else None
        if name is not None:
            return Place(end, self._login_for(where, name, end))
        return Place(end, None if end.reference is None else self._of_registries.get(end.reference.registry.lower()))

    def _login_for(self, table: Table, name: str, end: End) -> Login:
        if name not in self._logins:
            what = f"names {printable(name)!r}: no table [credentials.{printable(name)}]"
            raise table.wrong("credentials", what, f"there are: {self._known()}")
        if end.reference is None:
            raise table.wrong("credentials", "is for registries alone")
        return self._shown_to(table, name, end.reference.registry.lower())

    def _shown_to(self, table: Table, name: str, registry: str) -> Login:
        """Return credentials for a registry.

        Raises:
            UsageError: they are a password that is for another registry.
        """
        login = self._logins[name]
        if login.auth_file is None and self._registries.setdefault(name, registry) != registry:
            both = f"{self._registries[name]} and {registry}"
            raise table.wrong("credentials", f"would show one password, {printable(name)!r}, to {both}")
        return login

    def _in_folder(self, end: End) -> End:
        return end if end.path is None else replace(end, path=self._folder / end.path)


def _check_ends(table: Table, entry: Entry) -> None:
    """Refuse ends that do not fit each other.

    Raises:
        UsageError: many images would go to one place, or a place is there twice.
    """
    if entry.is_one and "tags" in table.values:
        raise table.wrong("tags", "is there, and `from` is one image", "leave one of them, or the tag in `from`, away")
    for target in entry.targets:
        end = target.end
        one = names_one(end) or (end.reference is None and not is_layout(end))
        if one and not entry.is_one:
            what = f"{printable(end.text)!r} is for one image, and `from` has many"
            raise table.wrong("to", what, "leave its tag or name away, or give `from` one; an archive has one image")
        if end.reference is not None and end.reference.digest:
            raise table.wrong("to", f"{printable(end.text)!r} has a digest: that is the image's own")
    texts = [target.end.text for target in entry.targets]
    if len(set(texts)) != len(texts):
        raise table.wrong("to", "has a place twice")


def _tags(table: Table) -> TagChoice:
    value = table.values.get("tags", [])
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        if not all(isinstance(item, str) and item for item in value):
            raise table.wrong("tags", "has something that is no pattern")
        return matching(value)
    of = table.table("tags")
    _check_keys(of, _TAGS)
    regex, versions, suffix = of.text("regex"), of.text("versions"), of.text("suffix")
    latest = of.values.get("latest")
    if latest is not None and (not isinstance(latest, int) or isinstance(latest, bool) or latest < 1):
        raise of.wrong("latest", "is not a number above 0")
    try:
        if regex is not None:
            if len(of.values) > 1:
                raise of.wrong("regex", "is there beside another choice: give one")
            return of_regex(regex)
        if versions is None and latest is None and suffix is None:
            raise table.wrong("tags", "chooses nothing", "known: regex; or versions, latest, suffix")
        return of_versions(versions, latest=latest, suffix=suffix or "")
    except UsageError as error:
        if error.what.startswith(table.where):
            raise
        raise table.wrong("tags", f"choose by a {error.what}", error.hint) from error


def _platforms(table: Table) -> PlatformChoice:
    value = table.values.get("platforms", "all")
    if value == "all":
        return ALL_PLATFORMS
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise table.wrong("platforms", 'is neither "all" nor a list such as ["linux/amd64"]')
    try:
        return PlatformChoice(tuple(dict.fromkeys(map(parse_platform, value))))
    except OcistreamError as error:
        raise table.wrong("platforms", f"has {error.what}", error.hint) from error


def _check_keys(table: Table, known: Iterable[str]) -> None:
    for key in table.values:
        if key not in known:
            hint = f"known: {', '.join(sorted(known))}"
            if re.search(r"pass|secret|token", key, re.IGNORECASE):
                hint = "no password belongs here: `password-env` names a variable that has it, `password-file` a file"
            raise table.wrong(key, "is not known here", hint)
