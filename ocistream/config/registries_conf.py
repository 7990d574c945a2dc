"""containers' registries.conf(5), as podman and skopeo have it: other locations, mirrors, what is blocked.

Which files are read, in which order, and what counts where two say something:

1. the file that `CONTAINERS_REGISTRIES_CONF` names, else `~/.config/containers/registries.conf`, else
   `/etc/containers/registries.conf`;
2. over it every `*.conf` of `/etc/containers/registries.conf.d` and then of
   `~/.config/containers/registries.conf.d`, each in the order of their names; of the machine's folder nothing where
   the user's own registries.conf is read. A `[[registry]]` takes the place of an earlier one of the same prefix, whole.

The older form of the file (`[registries.block]` and `[registries.insecure]`) is understood in 1. Short names, their
aliases and search lists, and credential helpers are not taken from here: names expand as Docker's do, and credentials
have their own order. A key that is not known is passed over, since the file is not ours.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream.config.toml_files import Table, read_table
from ocistream.errors import InvalidNameError, NotFoundError
from ocistream.registry.locations import PULLS, Mirror, Namespace, checked_location
from ocistream.streams.files import disk_errors
from ocistream.streams.paths import is_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SYSTEM_FOLDER", "load_namespaces"]

SYSTEM_FOLDER: Final = Path("/etc/containers")
_NAME: Final = "registries.conf"
_DROP_INS: Final = "registries.conf.d"
_WILDCARD: Final = "*."
#: What may follow a repository's name in a prefix.
_TARGET: Final = re.compile(r"(/[^/:@]+)(:[^/:@]+)?(@[^/@]+)?\Z")


def load_namespaces(env: Mapping[str, str], home: Path, *, system: Path = SYSTEM_FOLDER) -> tuple[Namespace, ...]:
    """Read all of it, and give every `[[registry]]` that counts; none where there are no files.

    Raises:
        NotFoundError: CONTAINERS_REGISTRIES_CONF names a file that is not there.
        UsageError: a file is malformed; the error names it.
        LocalDiskError: it cannot be read.
    """
    user = home / ".config" / "containers"
    folders = [system / _DROP_INS, user / _DROP_INS]
    if named := env.get("CONTAINERS_REGISTRIES_CONF"):
        table = read_table(Path(named))
        if table is None:
            msg = f"CONTAINERS_REGISTRIES_CONF: {named}: no such file"
            raise NotFoundError(msg)
    elif (table := read_table(user / _NAME)) is not None:
        folders = [user / _DROP_INS]
    else:
        table = read_table(system / _NAME)
    found: dict[str, Namespace] = {}
    if table is not None:
        found |= _namespaces(table)
        found |= _older_form(table)
    for folder in folders:
        for path in _drop_ins(folder):
            if (table := read_table(path)) is not None:
                found |= _namespaces(table)
    return tuple(found.values())


def _drop_ins(folder: Path) -> list[Path]:
    with disk_errors(f"cannot read {folder}"):
        try:
            names = sorted(path for path in folder.iterdir() if path.name.endswith(".conf"))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [path for path in names if is_file(path)]


def _namespaces(table: Table) -> dict[str, Namespace]:
    found: dict[str, Namespace] = {}
    for entry in table.tables("registry"):
        namespace = replace(_namespace(entry), source=table.where)
        before = found.setdefault(namespace.prefix, namespace)
        # Other tools refuse such a file; of two contradicting answers we would have to choose one.
        if before != namespace:
            raise entry.wrong("prefix", f"is there twice, and says different things: {namespace.prefix}")
    return found


def _namespace(entry: Table) -> Namespace:
    location = _location(entry, "location")
    prefix = entry.text("prefix") or ""
    if prefix.startswith(_WILDCARD):
        # What follows has to be a host, without a path (containers/image, since 5.11).
        domain = _checked(entry, "prefix", prefix.removeprefix(_WILDCARD))
        if "/" in domain:
            raise entry.wrong("prefix", "has a path behind its *.DOMAIN")
        prefix = f"{_WILDCARD}{domain}"
    elif prefix:
        # A tag or a digest behind it is allowed, and never the beginning of a repository's name: such an entry is for
        # none, here as for podman.
        name = _TARGET.sub(r"\1", prefix)
        prefix = _checked(entry, "prefix", name) + prefix.removeprefix(name).rstrip("/")
    elif location is not None:
        prefix = location
    else:
        raise entry.wrong("location", "is missing, and so is prefix")
    only_digests = entry.flag("mirror-by-digest-only") or False
    return Namespace(
        prefix,
        location if location != prefix else None,
        insecure=entry.flag("insecure") or False,
        blocked=entry.flag("blocked") or False,
        mirrors=tuple(_mirrors(entry, only_digests=only_digests)),
    )


def _mirrors(entry: Table, *, only_digests: bool) -> Iterator[Mirror]:
    if "pull-from-mirror" in entry.values:
        raise entry.wrong("pull-from-mirror", "belongs into a [[registry.mirror]]")
    for mirror in entry.tables("mirror"):
        location = _location(mirror, "location")
        if location is None:
            raise mirror.wrong("location", "is missing")
        pull = mirror.text("pull-from-mirror")
        if pull and only_digests:
            raise mirror.wrong("pull-from-mirror", "and the registry's mirror-by-digest-only exclude each other")
        if pull and pull not in PULLS:
            raise mirror.wrong("pull-from-mirror", f"is not one of {', '.join(PULLS)}")
        yield Mirror(location, mirror.flag("insecure") or False, "digest-only" if only_digests else pull or PULLS[0])


def _older_form(table: Table) -> dict[str, Namespace]:
    """Understand `[registries.block]` and `[registries.insecure]`, which older systems still have."""
    older = table.table("registries")
    found: dict[str, Namespace] = {}
    for kind in ("block", "insecure"):
        section = older.table(kind)
        for item in section.items("registries"):
            if not isinstance(item, str):
                raise section.wrong("registries", "has something that is not a string")
            prefix = _checked(section, "registries", item)
            before = found.get(prefix, Namespace(prefix, source=table.where))
            found[prefix] = replace(before, blocked=True) if kind == "block" else replace(before, insecure=True)
    return found


def _location(table: Table, key: str) -> str | None:
    text = table.text(key)
    return _checked(table, key, text) if text else None


def _checked(table: Table, key: str, text: str) -> str:
    """Check a location or a prefix.

    Raises:
        UsageError: it is neither.
    """
    # What Docker Hub's images are called here has its full name, as in containers'.
    try:
        return checked_location(text)
    except InvalidNameError as error:
        raise table.wrong(key, "is not HOST[:PORT][/PATH]", error.hint) from error
