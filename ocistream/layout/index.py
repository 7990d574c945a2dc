"""`index.json`: parse and build it, and name its entries.

Used for directories and for archives. This module opens no files.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream.errors import ArchiveError, InvalidNameError, UnsupportedError, UsageError
from ocistream.oci.descriptor import DOCKER_LIST, OCI_INDEX, Descriptor
from ocistream.oci.documents import MANIFEST_FIELDS, DescriptorListParser, check_document_type, check_schema_version
from ocistream.oci.graph import Graph, Root
from ocistream.oci.reference import is_digest, is_tag, parse_digest, parse_full_name, parse_reference, printable
from ocistream.oci.referrers import REFERRER_NAME, SUBJECT, cosign_subject, is_fallback_tag
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items, discard_item, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from ocistream.oci.referrers import Referrer
    from ocistream.oci.strict_json import ByteSource, ItemConverter

#: The tag, or another name that a tool gives the image (image-spec, annotations.md).
REF_NAME: Final = "org.opencontainers.image.ref.name"
#: The full name. containerd, Docker and Podman read it first.
FULL_NAME: Final = "io.containerd.image.name"
#: The prefix of our annotations of an `index.json`.
ANNOTATION_PREFIX: Final = "vnd.ocistream."

OCI_LAYOUT: Final = canonical_json({"imageLayoutVersion": "1.0.0"})


def check_layout_file(raw: ByteSource) -> None:
    """Check the contents of `oci-layout`.

    Raises:
        ArchiveError: the file is malformed, or has an unknown version.
    """
    version = parse_json(raw, "oci-layout", keys={"imageLayoutVersion"}).get("imageLayoutVersion")
    # umoci and buildah write 1.0.0, as the spec says; any other 1.x may only add to it.
    if not isinstance(version, str) or not version.startswith("1."):
        msg = f"oci-layout has the version {printable(str(version))!r}, only 1.0.0 is known"
        raise ArchiveError(msg)


class LayoutIndex(NamedTuple):
    """The contents of an `index.json`: its entries in order, and our annotations of the index."""

    entries: Sequence[Descriptor]
    annotations: Mapping[str, str]


def parse_index_json(raw: ByteSource) -> LayoutIndex:
    """Parse an `index.json`.

    Raises:
        ArchiveError: the file is malformed.
    """
    # Imported here, because to write an index needs none.
    from ocistream.oci.packed_descriptors import PackedDescriptors

    entries = PackedDescriptors()
    return LayoutIndex(entries, parse_entries(raw, entries.append))


def parse_entries(raw: ByteSource, add: Callable[[Descriptor], object]) -> Mapping[str, str]:
    """Parse an `index.json`, pass each entry to `add`, and return our annotations of the index.

    Ten thousand descriptors take 5 MB, and `add` may store less. It also gets the entries before a malformed part.

    Raises:
        ArchiveError: the file is malformed.
    """
    parser = DescriptorListParser("manifests", "index.json", keep_extra=True)

    def convert(index: int, item: object) -> None:
        if (entry := parser(index, item)) is not None:
            add(entry)

    keys = {"schemaVersion", "mediaType", "config", "layers", "manifests", "annotations"}
    converters: Mapping[str, ItemConverter] = {"manifests": convert, "layers": discard_item}
    fields = parse_json(raw, "index.json", keys=keys, known_keys=MANIFEST_FIELDS, convert=converters)
    check_schema_version(fields, "index.json")
    check_document_type(fields, "index.json", (OCI_INDEX, DOCKER_LIST))
    annotations = fields.get("annotations")
    items = annotations.items() if isinstance(annotations, dict) else ()
    our_annotations = {key: value for key, value in items if key.startswith(ANNOTATION_PREFIX)}
    for key, value in our_annotations.items():
        if not isinstance(value, str):
            msg = f"index.json has an annotation {printable(key)} that is not a string"
            raise ArchiveError(msg)
    # Only for its errors: the list has nothing but None.
    parser.descriptors(fields)
    return our_annotations


def image_name_of(entry: Descriptor) -> str | None:
    """Return the image name of an entry of `index.json`: its full name, or else its tag."""
    return entry.annotations.get(FULL_NAME) or entry.annotations.get(REF_NAME) or None


def image_names_of(entry: Descriptor) -> list[str]:
    """Return the image names of an entry of `index.json`. Tools differ in the one that they read."""
    return [name for name in map(entry.annotations.get, (FULL_NAME, REF_NAME)) if name]


def entry_name_of(entry: Descriptor) -> str | None:
    """Return the name of an entry, whether it is an image or a referrer."""
    return image_name_of(entry) or entry.annotations.get(REFERRER_NAME) or None


def subject_of(entry: Descriptor) -> str | None:
    """Return the digest of an entry's subject, or None if its annotations do not mark it as a referrer."""
    subject = entry.annotations.get(SUBJECT, "")
    return subject if is_digest(subject) else None


def referrer_tag_of(entry: Descriptor) -> str | None:
    """Return the tag of an entry if it is that of a referrer or of a list of referrers, or None."""
    tag = tag_of(entry_name_of(entry))
    return tag if tag is not None and (is_fallback_tag(tag) or cosign_subject(tag) is not None) else None


def may_be_referrer(entry: Descriptor) -> bool:
    """Return whether an entry without an image name, with a referrer's tag or with a subject: its manifest decides."""
    return not image_name_of(entry) or referrer_tag_of(entry) is not None or subject_of(entry) is not None


def build_roots(entries: Sequence[Descriptor], synthesized: Container[str] = ()) -> list[Root]:
    """Return a root for each entry. `synthesized` are the digests of manifests that were built here."""
    return [Root(image_name_of(entry), entry, is_synthesized=entry.digest in synthesized) for entry in entries]


def build_entry(root: Root) -> Descriptor:
    """Return the entry of `index.json` for a root, with the annotations that name it.

    A full name is written in full, and its tag in a second annotation for tools that read only that. A plain NAME, as
    in `oci:DIR:NAME`, is written as it is. If the name did not change, the entry keeps its annotations.
    """
    entry = root.descriptor
    if root.name is None or root.name == image_name_of(entry):
        return entry
    annotations = {k: v for k, v in entry.annotations.items() if k not in {REF_NAME, FULL_NAME}}
    reference = parse_full_name(root.name)
    if reference is None:
        annotations[REF_NAME] = root.name
    else:
        annotations[FULL_NAME] = reference.name
        annotations[REF_NAME] = reference.tag or reference.name
    return replace(entry, annotations=annotations)


def has_full_name(root: Root) -> bool:
    """Return whether an image's name tells its repository and its tag."""
    return root.name is not None and docker_tag(root.name) is not None


def tag_of(name: str | None) -> str | None:
    """Return the tag in a full or short name, such as `app:1`, or a name that is a tag, or None."""
    if name is None or is_tag(name):
        return name
    with contextlib.suppress(InvalidNameError, UnsupportedError):
        return parse_reference(name, default_tag=False).tag
    return None


def docker_tag(name: str) -> str | None:
    """Return a name as Docker shows it, such as `nginx:1`, or None for a name without a repository."""
    if not {":", "/"} & set(name):
        # A bare tag, as in layouts, would be parsed as a repository on Docker Hub.
        return None
    try:
        reference = parse_reference(name)
    except (InvalidNameError, UnsupportedError):
        return None
    return reference.familiar if reference.tag else None


def build_index_json(
    entries: Sequence[Descriptor], previous: ByteSource | None = None, *, annotations: Mapping[str, str] | None = None
) -> bytes:
    """Return an `index.json` with the other fields of the `previous` file, or a new one with these annotations."""
    fields = build_index_fields(previous)
    if annotations:
        fields["annotations"] = annotations
    lines = (canonical_json(entry.to_json()) for entry in entries)
    return canonical_json_with_items(fields, "manifests", lines)


def build_index_fields(previous: ByteSource | None) -> dict[str, Any]:
    """Return the fields of an `index.json` without its entries."""
    if not previous:
        return {"schemaVersion": 2, "mediaType": OCI_INDEX}
    fields = parse_json(previous, "index.json", convert={"manifests": discard_item})
    # The entries are dropped, but their position among the fields is kept.
    return {key: [] if key == "manifests" else value for key, value in fields.items()}


def is_printable_name(name: str) -> bool:
    """Return whether an image name has no blanks and no control characters. Tools write all other characters.

    The image-spec (annotations.md, `org.opencontainers.image.ref.name`) has a grammar, but only as a "should".
    """
    return name.isprintable() and " " not in name


def build_entries(graph: Graph) -> list[Descriptor]:
    """Return the entries of an `index.json` for a graph: its images, then their referrers.

    A referrer gets no image name, and an annotation with its subject. A tag of cosign's is written as its name, in the
    repository of each image that it refers to. Children of an index in the graph are not listed: a tool that looks for
    the one image of an archive would find several.

    Raises:
        UsageError: the name of an image has blanks or control characters.
    """
    for root in graph.roots:
        if root.name is not None and not is_printable_name(root.name):
            msg = f"the image has the name {printable(root.name)!r}, but names have no spaces or control characters"
            raise UsageError(
                msg, hint="choose another name: `ocistream copy SRC oci:DIR:NAME`, or oci-archive:FILE:NAME"
            )
    images = [build_entry(root) for root in graph.roots]
    listed_digests = {entry.digest for entry in images}
    listed_digests.update(child.digest for document in graph.documents.values() for child in document.manifests)
    untagged = {
        referrer.descriptor.digest: _build_referrer_entry(referrer)
        for referrer in graph.all_referrers
        if referrer.tag is None and referrer.descriptor.digest not in listed_digests
    }
    tagged: dict[str, Descriptor] = {}
    for root in graph.roots if graph.referrers else ():
        referrers = [referrer for digest in graph.reachable(root) for referrer in graph.referrers.get(digest, ())]
        for referrer in sorted(referrers, key=lambda item: item.sort_key):
            if referrer.tag is not None:
                reference = parse_full_name(root.name) if root.name else None
                repository = f"{reference.registry}/{reference.repository}:" if reference else ""
                name = repository + referrer.tag
                tagged.setdefault(name, _build_referrer_entry(referrer, {REFERRER_NAME: name}))
    return [*images, *untagged.values(), *tagged.values()]


def _remove_name(entry: Descriptor) -> Descriptor:
    """Remove annotations that would name an entry: a manifest's own annotations may have any keys."""
    if entry_name_of(entry) is None:
        return entry
    kept = {key: value for key, value in entry.annotations.items() if key not in {REF_NAME, FULL_NAME, REFERRER_NAME}}
    return replace(entry, annotations=kept)


def _build_referrer_entry(referrer: Referrer, annotations: Mapping[str, str] | None = None) -> Descriptor:
    entry = _remove_name(referrer.descriptor)
    return replace(entry, annotations={**entry.annotations, SUBJECT: referrer.subject, **(annotations or {})})


def blob_name(digest: str) -> str:
    """Return the path of a blob within a layout: `blobs/<algorithm>/<hex>`."""
    parsed = parse_digest(digest)
    return f"blobs/{parsed.algorithm}/{parsed.hex}"
