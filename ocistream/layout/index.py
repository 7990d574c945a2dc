"""`index.json` and `manifest.json`: parse and build them, name their entries, and choose images by name.

Used for directories and for archives. This module opens no files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from ocistream.errors import ArchiveError, InvalidNameError, NotFoundError, UnsupportedError, UsageError
from ocistream.notices import notify
from ocistream.oci.descriptor import DOCKER_LIST, OCI_INDEX, Descriptor
from ocistream.oci.documents import MANIFEST_FIELDS, DescriptorListParser, check_document_type
from ocistream.oci.graph import Graph, Root, is_image
from ocistream.oci.reference import is_digest, is_tag, parse_digest, parse_reference, printable
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items, discard_item, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.oci.documents import Document
    from ocistream.oci.reference import Reference
    from ocistream.oci.referrers import Referrer
    from ocistream.oci.strict_json import ItemConverter

#: The tag, or whatever a tool calls an image by (image-spec, annotations.md).
REF_NAME: Final = "org.opencontainers.image.ref.name"
#: The full name; containerd, Docker and Podman read it first.
FULL_NAME: Final = "io.containerd.image.name"
#: The name, a full one or a tag, of what hangs on an image as cosign's signatures do. Those two above would make an
#: image of it, which `ctr images import`, say, fails to unpack.
REFERRER_NAME: Final = "vnd.ocistream.image.name"
#: The digest of what an entry refers to. containerd (2.2 and later), and so Docker, writes it for referrers, and makes
#: no image of an entry that has it.
SUBJECT: Final = "io.containerd.manifest.subject"
#: How the annotations begin that are ours of an `index.json` as a whole.
ANNOTATION_PREFIX: Final = "vnd.ocistream."

OCI_LAYOUT: Final = canonical_json({"imageLayoutVersion": "1.0.0"})

ImageSelector: TypeAlias = "Callable[[Sequence[Root]], Sequence[Root]]"


def check_layout_file(raw: bytes) -> None:
    """Check the contents of `oci-layout`.

    Raises:
        ArchiveError: it is malformed, or of a version that is not known.
    """
    version = parse_json(raw, "oci-layout", keys={"imageLayoutVersion"}).get("imageLayoutVersion")
    # umoci and buildah write 1.0.0, as the spec says; any other 1.x may only add to it.
    if not isinstance(version, str) or not version.startswith("1."):
        msg = f"oci-layout has the version {printable(str(version))!r}, only 1.0.0 is known"
        raise ArchiveError(msg)


class LayoutIndex(NamedTuple):
    """What an `index.json` says: its entries, in order, and those of its own annotations that are ours."""

    entries: list[Descriptor]
    annotations: Mapping[str, str]


def parse_index_json(raw: bytes) -> LayoutIndex:
    """Read an `index.json`.

    Raises:
        ArchiveError: it is malformed.
    """
    listing = DescriptorListParser("manifests", "index.json", written=True)
    keys = {"mediaType", "config", "layers", "manifests", "annotations"}
    convert: Mapping[str, ItemConverter] = {"manifests": listing, "layers": discard_item}
    fields = parse_json(raw, "index.json", keys=keys, known=MANIFEST_FIELDS, convert=convert)
    check_document_type(fields, "index.json", (OCI_INDEX, DOCKER_LIST))
    annotations = fields.get("annotations")
    items = annotations.items() if isinstance(annotations, dict) else ()
    notes = {key: value for key, value in items if key.startswith(ANNOTATION_PREFIX)}
    for key, value in notes.items():
        if not isinstance(value, str):
            msg = f"index.json has an annotation {printable(key)} that is no text"
            raise ArchiveError(msg)
    return LayoutIndex(list(listing.descriptors(fields)), notes)


def parse_index_entries(raw: bytes) -> list[Descriptor]:
    """Give the entries of an `index.json`, in order.

    Raises:
        ArchiveError: it is malformed.
    """
    return parse_index_json(raw).entries


def image_name_of(entry: Descriptor) -> str | None:
    """Give the name an entry of `index.json` goes by: the full one where it has one, else its tag."""
    return entry.annotations.get(FULL_NAME) or entry.annotations.get(REF_NAME) or None


def entry_name_of(entry: Descriptor) -> str | None:
    """Give the name of an entry, be it an image or what hangs on one."""
    return image_name_of(entry) or entry.annotations.get(REFERRER_NAME) or None


def subject_of(entry: Descriptor) -> str | None:
    """Give the digest of the manifest that an entry says it refers to; it is not an image of its own then."""
    subject = entry.annotations.get(SUBJECT, "")
    return subject if is_digest(subject) else None


def build_roots(entries: Sequence[Descriptor]) -> list[Root]:
    """Give every entry as a root."""
    return [Root(image_name_of(entry), entry) for entry in entries]


def build_entry(root: Root) -> Descriptor:
    """Give the descriptor that stands for a root in `index.json`, with the annotations that name it.

    A full name is kept whole for those who read it and its tag for the others; a plain NAME, as in `oci:DIR:NAME`,
    is written as it is. A root that is called as its entry was keeps the entry's annotations as they were.
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


def parse_full_name(name: str) -> Reference | None:
    """Parse a name if it is a full one, with its registry and its tag, or give None."""
    try:
        reference = parse_reference(name, default_tag=False)
    except (InvalidNameError, UnsupportedError):
        return None
    return reference if reference.tag and name.startswith(f"{reference.registry}/") else None


def has_full_name(root: Root) -> bool:
    """Say whether an image's name tells its repository and its tag."""
    # A bare tag, as layouts have them, would be taken for a repository of Docker Hub's.
    if root.name is None or not ({":", "/"} & set(root.name)):
        return False
    try:
        return parse_reference(root.name).tag is not None
    except (InvalidNameError, UnsupportedError):
        return False


def tag_of(name: str | None) -> str | None:
    """Give the tag that an image of this name has: that of a full name, or a name that is nothing but one."""
    if name is None:
        return None
    reference = parse_full_name(name)
    return reference.tag if reference else name if is_tag(name) else None


def docker_tag(name: str) -> str | None:
    """Give a name as Docker shows it, such as `nginx:1`; None for one that says of no repository that it is in it."""
    if not {":", "/"} & set(name):
        # A bare tag, as layouts have them.
        return None
    try:
        reference = parse_reference(name)
    except (InvalidNameError, UnsupportedError):
        return None
    return reference.familiar if reference.tag else None


def build_index_json(
    entries: Sequence[Descriptor], previous: bytes | None = None, *, annotations: Mapping[str, str] | None = None
) -> bytes:
    """Write an `index.json`; of the one that was there `before`, other fields (annotations, say) are kept.

    `notes` are the annotations that are ours; those that were there are kept only without them.
    """
    lines = (canonical_json(entry.to_json()) for entry in entries)
    return canonical_json_with_items(build_index_fields(previous, annotations=annotations), "manifests", lines)


def build_index_fields(previous: bytes | None, *, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the fields of an `index.json` beside its entries, as `index_json` writes them."""
    fields: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX}
    if previous:
        fields = parse_json(previous, "index.json", convert={"manifests": discard_item})
        # Of the entries only their place among the fields is kept.
        fields = {key: [] if key == "manifests" else value for key, value in fields.items()}
    if annotations is not None:
        there = fields.get("annotations")
        others = (
            {k: v for k, v in there.items() if not k.startswith(ANNOTATION_PREFIX)} if isinstance(there, dict) else {}
        )
        fields["annotations"] = {**others, **annotations}
        if not fields["annotations"]:
            del fields["annotations"]
    return fields


def is_printable_name(name: str) -> bool:
    """Say whether an OCI image's name is one: tools write all kinds, but none with blanks or control characters.

    The image-spec (annotations.md, `org.opencontainers.image.ref.name`) has a grammar, of which it says "should".
    """
    return name.isprintable() and " " not in name


def build_entries(graph: Graph) -> list[Descriptor]:
    """Give what an `index.json` lists of a graph: its images, then what hangs on them.

    None of that is an image, so none has an image's name, and each says what it refers to. What has a tag of cosign's
    is called by that, in the repository of each image that it says something of. What an index of the graph lists is
    not listed again: tools that look for the one image of an archive would see several.

    Raises:
        UsageError: an image brings a name along that is none, and was not given another.
    """
    for root in graph.roots:
        if root.name is not None and not is_printable_name(root.name):
            msg = f"the image is called {printable(root.name)!r}, and a name has no blanks and no control characters"
            raise UsageError(msg, hint="give it another: `ocistream copy SRC oci:DIR:NAME`, or oci-archive:FILE:NAME")
    images = [build_entry(root) for root in graph.roots]
    known = {entry.digest for entry in images}
    known.update(child.digest for document in graph.documents.values() for child in document.manifests)
    nameless = {
        attached.descriptor.digest: _build_referrer_entry(attached)
        for attached in graph.all_referrers
        if attached.tag is None and attached.descriptor.digest not in known
    }
    named: dict[str, Descriptor] = {}
    for root in graph.roots if graph.referrers else ():
        hanging = [attached for digest in graph.reachable(root) for attached in graph.referrers.get(digest, ())]
        for attached in sorted(hanging, key=lambda one: one.sort_key):
            if attached.tag is not None:
                name = _build_referrer_name(root, attached.tag)
                named.setdefault(name, _build_named_referrer_entry(attached, name))
    return [*images, *nameless.values(), *named.values()]


def _remove_name(entry: Descriptor) -> Descriptor:
    """Drop what would name an entry: its manifest's own annotations are listed, and may say anything."""
    if entry_name_of(entry) is None:
        return entry
    kept = {key: value for key, value in entry.annotations.items() if key not in {REF_NAME, FULL_NAME, REFERRER_NAME}}
    return replace(entry, annotations=kept)


def _build_referrer_entry(attached: Referrer) -> Descriptor:
    entry = _remove_name(attached.descriptor)
    return replace(entry, annotations={**entry.annotations, SUBJECT: attached.subject})


def _build_named_referrer_entry(attached: Referrer, name: str) -> Descriptor:
    entry = _build_referrer_entry(attached)
    return replace(entry, annotations={**entry.annotations, REFERRER_NAME: name})


def _build_referrer_name(root: Root, referrer_tag: str) -> str:
    reference = parse_full_name(root.name) if root.name else None
    return f"{reference.registry}/{reference.repository}:{referrer_tag}" if reference else referrer_tag


def select_every_image(roots: Sequence[Root]) -> Sequence[Root]:
    """Choose all images."""
    return roots


def select_existing_images(roots: Sequence[Root]) -> Sequence[Root]:
    """Choose all images.

    Raises:
        NotFoundError: there is none.
    """
    if not roots:
        raise no_image_error()
    return roots


def no_image_error() -> NotFoundError:
    """Say that there is nothing to be moved."""
    return NotFoundError("there is no image in it")


def select_only_image(roots: Sequence[Root]) -> Sequence[Root]:
    """Choose the one image that exists, whether it has a name or not. A stray entry counts only where it is alone.

    Raises:
        NotFoundError: there is none.
        UsageError: there are several.
    """
    if not roots:
        raise no_image_error()
    candidates = [root for root in roots if not root.is_stray] or list(roots)
    if (count := len({root.descriptor.digest for root in candidates})) > 1:
        msg = f"there are {count} images in it"
        # Without a full name --to says where no image goes.
        which = "one with --image, or all with --to" if all(map(has_full_name, candidates)) else "one with --image"
        raise UsageError(msg, hint=f"choose {which}: {format_image_names(candidates)}")
    return [next((root for root in candidates if root.name), candidates[0])]


def select_named_images(names: Sequence[str], *, all_names: bool = False) -> ImageSelector:
    """Choose images by name: by the full name, its short form, or the tag; or by digest.

    With `every_name`, all entries of the image that go by a name are chosen. The choice raises NotFoundError, with the
    names there are, where one is not there.
    """

    def select(roots: Sequence[Root]) -> Sequence[Root]:
        chosen: list[Root] = []
        for name in names:
            matches = [root for root in roots if matches_name(root, name)]
            matches = [root for root in matches if not root.is_stray] or matches
            if not matches:
                raise NoSuchImageError(name, f"its images are: {format_image_names(roots)}")
            if len({root.descriptor.digest for root in matches}) > 1:
                msg = f"there are {len(matches)} images that go by {printable(name)!r}"
                digests = ", ".join(dict.fromkeys(root.descriptor.digest for root in matches))
                by_name = len({root.name for root in matches}) == len(matches)
                hint = f"by its full name: {format_image_names(matches)}" if by_name else f"by its digest: {digests}"
                raise UsageError(msg, hint=f"choose one {hint}")
            matches = [root for root in matches if root.name] or matches
            chosen += matches if all_names else matches[:1]
        return list({id(root): root for root in chosen}.values())

    return select


def matches_name(root: Root, name: str) -> bool:
    """Say whether a name means this image: its full name, the short form of that, its tag, its digest or image ID."""
    annotations, digest = root.descriptor.annotations, root.descriptor.digest
    if name in {root.name, annotations.get(REF_NAME), annotations.get(REFERRER_NAME), digest, root.image_id}:
        return True
    try:
        wanted = parse_reference(name)
    except InvalidNameError:
        return False
    return root.name is not None and wanted.name == root.name


def format_image_names(roots: Sequence[Root]) -> str:
    """List names for a hint, at most ten of them."""
    names = [printable(root.name) if root.name else root.descriptor.digest for root in roots]
    shown = ", ".join(names[:10]) or "none"
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown


class NoSuchImageError(NotFoundError):
    """No image goes by a name or digest; `wanted` is what was asked for."""

    def __init__(self, wanted: str, hint: str) -> None:
        """Say so; `hint` is what to do."""
        super().__init__(f"there is no image {printable(wanted)!r} in it", hint=hint)
        self.wanted = wanted


def blob_name(digest: str) -> str:
    """Give the path of a blob within a layout: `blobs/<algorithm>/<hex>`."""
    parsed = parse_digest(digest)
    return f"blobs/{parsed.algorithm}/{parsed.hex}"


def build_manifest_json(graph: Graph) -> bytes:
    """Write the `manifest.json` by which `docker load` of any age takes an OCI archive as it is.

    One entry an image; its paths point into `blobs/`, its tag is the short name that `docker save` would write. Of
    an index there can be only one: linux/amd64 where it is there, else the first, the same on every machine.
    """
    entries: dict[str, dict[str, Any]] = {}
    for root in graph.roots:
        digest = _choose_docker_image(graph, root.descriptor)
        if digest is None:
            continue
        _report_other_platforms(graph, root, digest)
        if digest not in entries:
            entries[digest] = _build_docker_entry(graph.documents[digest])
        if root.name and (tag := docker_tag(root.name)):
            entries[digest]["RepoTags"] = [*(entries[digest]["RepoTags"] or []), tag]
    return canonical_json(list(entries.values()))


def _build_docker_entry(document: Document) -> dict[str, Any]:
    config = document.config
    return {
        "Config": blob_name(config.digest) if config else "",
        "RepoTags": None,
        "Layers": [blob_name(layer.digest) for layer in document.layers],
    }


def _choose_docker_image(graph: Graph, root: Descriptor) -> str | None:
    """Choose the image of a root that `docker load` is to take."""
    first: str | None = None
    for digest, platform in _list_leaves(graph, root):
        # Attestations look like images, of a platform that is not known.
        if platform != "unknown/unknown" and digest in graph.documents and is_image(graph.documents[digest]):
            if platform == "linux/amd64":
                return digest
            first = first or digest
    return first


def _report_other_platforms(graph: Graph, root: Root, chosen: str) -> None:
    """Report that `manifest.json` has one platform only, if the root has several."""
    platforms = {
        digest: platform or "no platform"
        for digest, platform in _list_leaves(graph, root.descriptor)
        if platform != "unknown/unknown" and digest in graph.documents and is_image(graph.documents[digest])
    }
    if len(platforms) > 1:
        name = printable(root.name) if root.name else root.descriptor.digest
        which = f"{printable(platforms[chosen])}, one of {len(platforms)} platforms of {name}"
        notify(f"manifest.json of the archive has {which}: `docker load` before version 25 takes that one", level=1)


def _list_leaves(graph: Graph, root: Descriptor) -> Iterator[tuple[str, str | None]]:
    """Give the manifests that are no index, in order, each once, with the platform that is first claimed for it.

    Each index is looked into once, however often it is listed.
    """
    seen: set[str] = set()
    todo = [iter((root,))]
    while todo:
        descriptor = next(todo[-1], None)
        if descriptor is None:
            todo.pop()
        elif descriptor.digest not in seen:
            seen.add(descriptor.digest)
            document = graph.documents.get(descriptor.digest)
            if document is None or not document.manifests:
                yield descriptor.digest, str(descriptor.platform) if descriptor.platform else None
            else:
                todo.append(iter(document.manifests))
