"""The images of an `index.json` by repository and tag, and by digest. This module opens no files."""

from __future__ import annotations

import copy
import functools
import itertools
import re
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import OcistreamError
from ocistream.layout.index import FULL_NAME, REF_NAME, entry_name_of
from ocistream.oci.reference import DEFAULT_REGISTRY, Reference, is_repository, is_tag, parse_reference, printable
from ocistream.oci.referrers import REFERRER_NAME
from ocistream.oci.strict_json import canonical_json, canonical_json_pieces
from ocistream.serve.request import RequestRejectedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor

#: A repository and a tag.
ServedName = tuple[str, str]

_HUB_LIBRARY: Final = "library/"


class ImageIndex:
    """One version of the entries. It never changes, so that several threads may read it; `replace` makes the next one.

    An entry is identified by `id`: a file may list one several times.
    """

    def __init__(
        self,
        entries: Iterable[Descriptor],
        default_repository: str,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the entries, the repository of entries that name none, and the file's other fields."""
        self.default_repository = default_repository
        #: Digest and media type of every manifest that the entries lead to; None until `Repositories` needs it.
        self.reachable: dict[str, str] | None = None
        self._fields = fields or {}
        self._entries: dict[int, Descriptor] = {}
        #: The JSON of each entry, in the same order, as far as it was needed to write the file.
        self._lines: dict[int, bytes] = {}
        self._by_digest: dict[str, tuple[Descriptor, ...]] = {}
        self._images: dict[str, dict[str, tuple[Descriptor, ...]]] = {}
        self._add(entries)

    @property
    def entries(self) -> list[Descriptor]:
        """The entries, in order."""
        return list(self._entries.values())

    def find(self, repository: str, tag: str) -> Descriptor | None:
        """Return the entry that is served under a name. Of several, the last was added last."""
        return (self.entries_named(repository, tag) or (None,))[-1]

    def entries_named(self, repository: str, tag: str) -> tuple[Descriptor, ...]:
        """Return all entries with a name."""
        return self._images.get(repository, {}).get(tag, ())

    def entries_with_digest(self, digest: str) -> tuple[Descriptor, ...]:
        """Return all entries of a manifest."""
        return self._by_digest.get(digest, ())

    def tags(self, repository: str) -> list[str] | None:
        """Return the tags of a repository in ASCII order, or None if it has none."""
        images = self._images.get(repository)
        return sorted(images) if images else None

    def repositories(self) -> list[str]:
        """Return the repositories that have tags, sorted, each by the first of its names."""
        names = (served_names_of(entry, self.default_repository)[:1] for entry in self._entries.values())
        return sorted({path for listed in names for path, _ in listed})

    def replace(self, removed: Iterable[Descriptor], added: Sequence[Descriptor] = ()) -> ImageIndex:
        """Return an index without some entries, and with others at its end.

        Only tables are copied: the cost of thousands of other entries is that of some memory.
        """
        removed = list({id(entry): entry for entry in removed}.values())
        changed = copy.copy(self)
        changed.reachable = None
        changed._entries, changed._lines = dict(self._entries), dict(self._lines)  # noqa: SLF001 - same class
        changed._by_digest, changed._images = dict(self._by_digest), dict(self._images)  # noqa: SLF001 - same class
        for entry in (*removed, *added):
            for path, _ in served_names_of(entry, self.default_repository):
                changed._images[path] = dict(self._images.get(path, {}))  # noqa: SLF001 - same class
        changed._remove(removed)  # noqa: SLF001 - same class
        changed._add(added)  # noqa: SLF001 - same class
        return changed

    @property
    def size(self) -> int:
        """The size of all entries in the file, in bytes."""
        return sum(map(len, self._json_lines())) + len(self._entries)

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def pieces(self) -> Iterable[bytes]:
        """Return the file's content in canonical form."""
        return canonical_json_pieces(self._fields, "manifests", self._json_lines())

    def _json_lines(self) -> Iterable[bytes]:
        # Entries are added at the end only, so the first ones have their lines.
        for key, entry in itertools.islice(self._entries.items(), len(self._lines), None):
            self._lines[key] = canonical_json(entry.to_json())
        return self._lines.values()

    def _add(self, entries: Iterable[Descriptor]) -> None:
        for entry in entries:
            self._entries[id(entry)] = entry
            self._by_digest[entry.digest] = (*self._by_digest.get(entry.digest, ()), entry)
            for path, tag in served_names_of(entry, self.default_repository):
                images = self._images.setdefault(path, {})
                images[tag] = (*images.get(tag, ()), entry)

    def _remove(self, entries: Iterable[Descriptor]) -> None:
        for entry in entries:
            del self._entries[id(entry)]
            self._lines.pop(id(entry), None)
            _discard(self._by_digest, entry.digest, entry)
            for path, tag in served_names_of(entry, self.default_repository):
                _discard(self._images[path], tag, entry)
                if not self._images[path]:
                    del self._images[path]


def _discard(table: dict[str, tuple[Descriptor, ...]], key: str, entry: Descriptor) -> None:
    table[key] = tuple(other for other in table[key] if other is not entry)
    if not table[key]:
        del table[key]


def served_names_of(entry: Descriptor, default_repository: str) -> tuple[ServedName, ...]:
    """Return every (repository, tag) under which an entry is served; the listed one comes first. Empty without a name.

    `HOST/PATH:TAG` is served as PATH and HOST/PATH, and for Docker Hub's library also as the short name. So clients
    that mirror a host find it, and clients that prefix a name with this registry's address. A bare tag, as in
    `oci:DIR:v1`, belongs to `default_repository`.
    """
    full_name, ref_name = (
        entry.annotations.get(FULL_NAME),
        entry.annotations.get(REF_NAME) or entry.annotations.get(REFERRER_NAME),
    )
    if full_name and (names := _parse_served_names(full_name)):
        return names
    if not ref_name:
        return ()
    return ((default_repository, ref_name),) if is_tag(ref_name) else _parse_served_names(ref_name)


@functools.lru_cache(maxsize=2 * limits.MAX_LIST_ENTRIES)
def _parse_served_names(name: str) -> tuple[ServedName, ...]:
    try:
        reference = parse_reference(name)
    except OcistreamError:
        return ()
    if reference.tag is None:
        return ()
    paths = [reference.repository, f"{reference.registry}/{reference.repository}"]
    if reference.registry == DEFAULT_REGISTRY and reference.repository.startswith(_HUB_LIBRARY):
        short = reference.repository.removeprefix(_HUB_LIBRARY)
        # A name in its short form is listed in that form.
        paths.insert(0 if name.startswith(short) else len(paths), short)
    # A host with a port or brackets cannot be part of a repository's name.
    return tuple((path, reference.tag) for path in paths if is_repository(path))


def repository_of_directory(name: str) -> str:
    """Return a repository name for a directory's name: `My Images` becomes `my-images`."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return name if is_repository(name) else plain or "layout"


def choose_full_name(hosts: tuple[str, ...], repository: str, tag: str) -> str:
    """Return the full name for a pushed image's entry, with the first of `hosts` that is valid as a registry.

    Raises:
        RequestRejectedError: with the host the name is longer than the 255 characters that clients accept (400).
    """
    for host in hosts:
        name = f"{host}/{repository}:{tag}"
        try:
            reference = parse_reference(name)
        except OcistreamError:
            continue
        # The parser rewrites Docker Hub's hosts, and reads a word without dot and port as part of the path.
        if reference == Reference(host, repository, tag):
            return name
    raise RequestRejectedError(
        400, "NAME_INVALID", "with the host of the registry, the name is longer than 255 characters"
    )


_MAX_LINES: Final = 10
_MAX_DIGESTS: Final = 3


def describe_name_conflicts(index: ImageIndex) -> list[str]:
    """Return a line for each entry whose name leads to another entry, or cannot be a repository and a tag."""
    lines: dict[str, None] = {}
    for entry in index.entries:
        names = served_names_of(entry, index.default_repository)
        served = {f"{repository}:{tag}": index.entries_named(repository, tag)[-1].digest for repository, tag in names}
        lost_names = [name for name, digest in served.items() if digest != entry.digest]
        if lost_names:
            name, kept_names = lost_names[0], [name for name in served if name not in lost_names]
            as_name = f"as {kept_names[0]}" if kept_names else "by digest only"
            message = f"two images have the name {name}: {served[name]} is served under it"
            lines[f"{message}; {entry.digest} is served {as_name}"] = None
        elif not names and (written := entry_name_of(entry)) is not None:
            message = f"{printable(written)!r} is not the name of a repository with a tag"
            lines[f"{message}: {entry.digest} is served by digest only"] = None
    more = len(lines) - _MAX_LINES
    return [*[*lines][:_MAX_LINES], f"and {more} more such images"] if more > 0 else [*lines]


def find_unnamed_entries(entries: Sequence[Descriptor]) -> list[Descriptor]:
    """Return the entries without a name whose digest no other entry has a name for, each once."""
    named = {entry.digest for entry in entries if entry_name_of(entry) is not None}
    return list({entry.digest: entry for entry in entries if entry.digest not in named}.values())


def describe_unnamed(digests: Sequence[str], kind: str) -> str:
    """Return the line about images without a name."""
    listed = ", ".join(digests[:_MAX_DIGESTS])
    remaining = len(digests) - _MAX_DIGESTS
    suffix = f" and {remaining} more" if remaining > 0 else ""
    return f"{len(digests)} {kind} without a name, served by digest only: {listed}{suffix}"
