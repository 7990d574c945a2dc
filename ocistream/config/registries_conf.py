"""Read containers' registries.conf(5) and its drop-in files: locations, mirrors and blocked registries.

Short names, aliases, search lists and credential helpers are ignored; unknown keys too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from ocistream.config import toml_files as toml
from ocistream.config.toml_files import TomlTable, registry_location
from ocistream.errors import NotFoundError
from ocistream.registry.configuration import PULL_MODES, Mirror, RegistryNamespace
from ocistream.streams.files import disk_errors
from ocistream.streams.paths import is_file

if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM_DIRECTORY: Final = Path("/etc/containers")
_NAME: Final = "registries.conf"
_DROP_INS: Final = "registries.conf.d"
_WILDCARD: Final = "*."
#: The last part of a repository's name in a prefix, with an optional tag and digest.
_TARGET: Final = re.compile(r"(/[^/:@]+)(:[^/:@]+)?(@[^/@]+)?\Z")


def _location(table: TomlTable, key: str, value: object) -> str:
    """Read a location. An empty location counts as missing, as in containers' own parser."""
    return registry_location(table, key, value) if value != "" else ""


def _prefix(table: TomlTable, key: str, value: object) -> str:
    prefix = toml.text(table, key, value)
    if prefix.startswith(_WILDCARD):
        # The rest must be a host without a path (containers/image, since 5.11).
        domain = registry_location(table, key, prefix.removeprefix(_WILDCARD))
        if "/" in domain:
            raise table.key_error(key, "has a path after its *.DOMAIN")
        return f"{_WILDCARD}{domain}"
    if not prefix:
        return ""
    # A prefix may end in a tag or a digest. No repository's name begins with it, so such an entry matches nothing.
    name = _TARGET.sub(r"\1", prefix)
    return registry_location(table, key, name) + prefix.removeprefix(name).rstrip("/")


def _pull_mode(table: TomlTable, key: str, value: object) -> str:
    return toml.choice(*PULL_MODES)(table, key, value) if value != "" else ""


def _misplaced_pull_mode(table: TomlTable, key: str, _: object) -> NoReturn:
    raise table.key_error(key, "belongs in a [[registry.mirror]]")


class _MirrorTable(TomlTable):
    ignores_unknown = True
    location = toml.optional(_location, "")
    insecure = toml.optional(toml.flag, False)
    pull_from_mirror = toml.optional(_pull_mode, "")

    def mirror(self, *, only_digests: bool) -> Mirror:
        if not self.location:
            raise self.missing_key_error("location")
        if self.pull_from_mirror and only_digests:
            raise self.key_error("pull-from-mirror", "and the registry's mirror-by-digest-only exclude each other")
        return Mirror(
            self.location, self.insecure, "digest-only" if only_digests else self.pull_from_mirror or PULL_MODES[0]
        )


class _RegistryTable(TomlTable):
    ignores_unknown = True
    location = toml.optional(_location, "")
    prefix = toml.optional(_prefix, "")
    insecure = toml.optional(toml.flag, False)
    blocked = toml.optional(toml.flag, False)
    mirror_by_digest_only = toml.optional(toml.flag, False)
    pull_from_mirror = toml.optional(_misplaced_pull_mode)
    mirror = toml.optional(toml.list_of(_MirrorTable.read), [])

    def namespace(self, config_file: str) -> RegistryNamespace:
        prefix = self.prefix or self.location
        if not prefix:
            raise self.key_error("location", "is missing, and so is prefix")
        return RegistryNamespace(
            prefix,
            self.location if self.location not in {"", prefix} else None,
            insecure=self.insecure,
            blocked=self.blocked,
            mirrors=tuple(mirror.mirror(only_digests=self.mirror_by_digest_only) for mirror in self.mirror),
            config_file=config_file,
        )


class _DropIn(TomlTable):
    ignores_unknown = True
    registry = toml.optional(toml.list_of(_RegistryTable.read), [])

    def namespaces(self) -> dict[str, RegistryNamespace]:
        namespaces: dict[str, RegistryNamespace] = {}
        for entry in self.registry:
            namespace = entry.namespace(self.label)
            first = namespaces.setdefault(namespace.prefix, namespace)
            # Two entries for one prefix must not contradict each other; other tools refuse such a file too.
            if first != namespace:
                raise entry.key_error("prefix", f"is set twice with different values: {namespace.prefix}")
        return namespaces


class _LocationsTable(TomlTable):
    ignores_unknown = True
    registries = toml.optional(toml.list_of(registry_location), [])


class _OlderTable(TomlTable):
    """`[registries.block]` and `[registries.insecure]`, the format of older systems."""

    ignores_unknown = True
    block = toml.optional(_LocationsTable.read, {})
    insecure = toml.optional(_LocationsTable.read, {})


class _RegistriesConf(_DropIn):
    registries = toml.optional(_OlderTable.read, {})

    def namespaces(self) -> dict[str, RegistryNamespace]:
        blocked, insecure = self.registries.block.registries, self.registries.insecure.registries
        older = {
            prefix: RegistryNamespace(
                prefix, insecure=prefix in insecure, blocked=prefix in blocked, config_file=self.label
            )
            for prefix in (*blocked, *insecure)
        }
        return super().namespaces() | older


def load_namespaces(
    env: Mapping[str, str], home: Path, *, system: Path = SYSTEM_DIRECTORY
) -> tuple[RegistryNamespace, ...]:
    """Read all registries.conf files; return the `[[registry]]` tables, or an empty tuple if no file exists.

    Raises:
        NotFoundError: CONTAINERS_REGISTRIES_CONF names a file that does not exist.
        UsageError: a file is malformed; the error names the file.
        LocalDiskError: a file cannot be read.
    """
    user = home / ".config" / "containers"
    folders = [system / _DROP_INS, user / _DROP_INS]
    if named := env.get("CONTAINERS_REGISTRIES_CONF"):
        table = toml.read_file(Path(named), _RegistriesConf, home)
        if table is None:
            msg = f"CONTAINERS_REGISTRIES_CONF: {named}: no such file"
            raise NotFoundError(msg)
    elif (table := toml.read_file(user / _NAME, _RegistriesConf, home)) is not None:
        folders = [user / _DROP_INS]
    else:
        table = toml.read_file(system / _NAME, _RegistriesConf, home)
    namespaces = {} if table is None else table.namespaces()
    for folder in folders:
        for path in _list_drop_ins(folder):
            if (drop_in := toml.read_file(path, _DropIn, home)) is not None:
                namespaces |= drop_in.namespaces()
    return tuple(namespaces.values())


def _list_drop_ins(folder: Path) -> list[Path]:
    with disk_errors(f"cannot read {folder}"):
        try:
            names = sorted(path for path in folder.iterdir() if path.name.endswith(".conf"))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [path for path in names if is_file(path)]
