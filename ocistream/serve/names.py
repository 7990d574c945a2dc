"""Under which repository and tag an entry of `index.json` is served, and how a pushed one is entered there.

A layout is flat and its names are free text; a registry has repositories with tags. This is the one place that knows
both. Values only: it may not read anything.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import OcistreamError
from ocistream.layout.index import FULL_NAME, REF_NAME, REFERRER_NAME
from ocistream.oci.reference import DEFAULT_REGISTRY, Reference, is_repository, is_tag, parse_reference
from ocistream.serve.errors import RequestRejectedError

if TYPE_CHECKING:
    from ocistream.oci.descriptor import Descriptor

__all__ = ["ServedName", "choose_full_name", "repository_of_directory", "served_names_of"]

#: A repository and a tag.
ServedName = tuple[str, str]

_HUB_LIBRARY: Final = "library/"


def served_names_of(entry: Descriptor, default_repository: str) -> tuple[ServedName, ...]:
    """Give every (repository, tag) that an entry is served as, the one to list first; none where it has no name.

    `HOST/PATH:TAG` is PATH and HOST/PATH, and for Docker Hub's library the short name too; so whoever mirrors a
    host, and whoever just puts this registry's address before a name, finds it. A bare tag, such as `oci:DIR:v1`
    leaves behind, belongs to the repository `fallback`.
    """
    full, plain = (
        entry.annotations.get(FULL_NAME),
        entry.annotations.get(REF_NAME) or entry.annotations.get(REFERRER_NAME),
    )
    if full and (found := _parse_served_names(full)):
        return found
    if not plain:
        return ()
    return ((default_repository, plain),) if is_tag(plain) else _parse_served_names(plain)


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
        # A name that was written in short is listed in short.
        paths.insert(0 if name.startswith(short) else len(paths), short)
    # A host with a port or in brackets is no part of a repository's name.
    return tuple((path, reference.tag) for path in paths if is_repository(path))


def repository_of_directory(name: str) -> str:
    """Make a directory's name a repository's: `My Images` becomes `my-images`."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return name if is_repository(name) else plain or "layout"


def choose_full_name(hosts: tuple[str, ...], repository: str, tag: str) -> str:
    """Give the full name under which a pushed image is entered: the first of `hosts` that is one, and what follows.

    Raises:
        RefusedError: with the host it is longer than the 255 characters that clients accept (400).
    """
    for host in hosts:
        name = f"{host}/{repository}:{tag}"
        try:
            reference = parse_reference(name)
        except OcistreamError:
            continue
        # Docker Hub's own hosts are rewritten, and what has no dot and no port is no host.
        if reference == Reference(host, repository, tag):
            return name
    raise RequestRejectedError(400, "NAME_INVALID", "with the registry's host, the name is longer than 255 characters")
