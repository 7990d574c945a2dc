"""Read containers' registries.conf(5) and its drop-in files: locations, mirrors and blocked registries.

Short names, aliases, search lists and credential helpers are ignored; unknown keys too.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream.config.toml_files import TomlTable, read_toml
from ocistream.errors import InvalidNameError, NotFoundError
from ocistream.registry.configuration import PULL_MODES, Mirror, RegistryNamespace, parse_registry_location
from ocistream.streams.files import disk_errors
from ocistream.streams.paths import is_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SYSTEM_DIRECTORY", "load_namespaces"]

SYSTEM_DIRECTORY: Final = Path("/etc/containers")
_NAME: Final = "registries.conf"
_DROP_INS: Final = "registries.conf.d"
_WILDCARD: Final = "*."
#: The last part of a repository's name in a prefix, with an optional tag and digest.
_TARGET: Final = re.compile(r"(/[^/:@]+)(:[^/:@]+)?(@[^/@]+)?\Z")


def load_namespaces(
    env: Mapping[str, str], home: Path, *, system: Path = SYSTEM_DIRECTORY
) -> tuple[RegistryNamespace, ...]:
    """Read all registries.conf files; return the `[[registry]]` tables, or an empty tuple if there are no files.

    Raises:
        NotFoundError: CONTAINERS_REGISTRIES_CONF names a file that does not exist.
        UsageError: a file is malformed; the error names the file.
        LocalDiskError: a file cannot be read.
    """
    user = home / ".config" / "containers"
    folders = [system / _DROP_INS, user / _DROP_INS]
    if named := env.get("CONTAINERS_REGISTRIES_CONF"):
        table = read_toml(Path(named))
        if table is None:
            msg = f"CONTAINERS_REGISTRIES_CONF: {named}: no such file"
            raise NotFoundError(msg)
    elif (table := read_toml(user / _NAME)) is not None:
        folders = [user / _DROP_INS]
    else:
        table = read_toml(system / _NAME)
    namespaces: dict[str, RegistryNamespace] = {}
    if table is not None:
        namespaces |= _parse_namespaces(table)
        namespaces |= _parse_v1(table)
    for folder in folders:
        for path in _list_drop_ins(folder):
            if (table := read_toml(path)) is not None:
                namespaces |= _parse_namespaces(table)
    return tuple(namespaces.values())


def _list_drop_ins(folder: Path) -> list[Path]:
    with disk_errors(f"cannot read {folder}"):
        try:
            names = sorted(path for path in folder.iterdir() if path.name.endswith(".conf"))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [path for path in names if is_file(path)]


def _parse_namespaces(table: TomlTable) -> dict[str, RegistryNamespace]:
    namespaces: dict[str, RegistryNamespace] = {}
    for entry in table.tables("registry"):
        namespace = replace(_parse_namespace(entry), config_file=table.label)
        first = namespaces.setdefault(namespace.prefix, namespace)
        # Two entries for one prefix must not contradict each other; other tools refuse such a file too.
        if first != namespace:
            raise entry.key_error("prefix", f"is there twice, and says different things: {namespace.prefix}")
    return namespaces


def _parse_namespace(entry: TomlTable) -> RegistryNamespace:
    location = _parse_location(entry, "location")
    prefix = entry.text("prefix") or ""
    if prefix.startswith(_WILDCARD):
        # The rest must be a host without a path (containers/image, since 5.11).
        domain = _check_location(entry, "prefix", prefix.removeprefix(_WILDCARD))
        if "/" in domain:
            raise entry.key_error("prefix", "has a path behind its *.DOMAIN")
        prefix = f"{_WILDCARD}{domain}"
    elif prefix:
        # A prefix may end in a tag or a digest. No repository's name begins with it, so such an entry matches nothing,
        # as in podman.
        name = _TARGET.sub(r"\1", prefix)
        prefix = _check_location(entry, "prefix", name) + prefix.removeprefix(name).rstrip("/")
    elif location is not None:
        prefix = location
    else:
        raise entry.key_error("location", "is missing, and so is prefix")
    only_digests = entry.flag("mirror-by-digest-only") or False
    return RegistryNamespace(
        prefix,
        location if location != prefix else None,
        insecure=entry.flag("insecure") or False,
        blocked=entry.flag("blocked") or False,
        mirrors=tuple(_parse_mirrors(entry, only_digests=only_digests)),
    )


def _parse_mirrors(entry: TomlTable, *, only_digests: bool) -> Iterator[Mirror]:
    if "pull-from-mirror" in entry.values:
        raise entry.key_error("pull-from-mirror", "belongs into a [[registry.mirror]]")
    for mirror in entry.tables("mirror"):
        location = _parse_location(mirror, "location")
        if location is None:
            raise mirror.key_error("location", "is missing")
        pull = mirror.text("pull-from-mirror")
        if pull and only_digests:
            raise mirror.key_error("pull-from-mirror", "and the registry's mirror-by-digest-only exclude each other")
        if pull and pull not in PULL_MODES:
            raise mirror.key_error("pull-from-mirror", f"is not one of {', '.join(PULL_MODES)}")
        yield Mirror(
            location, mirror.flag("insecure") or False, "digest-only" if only_digests else pull or PULL_MODES[0]
        )


def _parse_v1(table: TomlTable) -> dict[str, RegistryNamespace]:
    """Parse `[registries.block]` and `[registries.insecure]`, the format of older systems."""
    older = table.table("registries")
    namespaces: dict[str, RegistryNamespace] = {}
    for kind in ("block", "insecure"):
        section = older.table(kind)
        for item in section.items("registries"):
            if not isinstance(item, str):
                raise section.key_error("registries", "has something that is not a string")
            prefix = _check_location(section, "registries", item)
            known = namespaces.get(prefix, RegistryNamespace(prefix, config_file=table.label))
            namespaces[prefix] = replace(known, blocked=True) if kind == "block" else replace(known, insecure=True)
    return namespaces


def _parse_location(table: TomlTable, key: str) -> str | None:
    text = table.text(key)
    return _check_location(table, key, text) if text else None


def _check_location(table: TomlTable, key: str, text: str) -> str:
    """Check a location or a prefix, and return it in normal form."""
    # Names of Docker Hub are full names (docker.io/...), as in containers' own parser.
    try:
        return parse_registry_location(text)
    except InvalidNameError as error:
        raise table.key_error(key, "is not HOST[:PORT][/PATH]", error.hint) from error
