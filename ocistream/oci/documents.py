"""Parse manifests, indexes, configs and descriptors from untrusted JSON into values.

Only the fields that a copy needs are kept. No I/O.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import ArchiveError, InvalidNameError, OcistreamError, UnsupportedError
from ocistream.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Platform, is_media_type
from ocistream.oci.reference import is_digest, parse_digest, printable
from ocistream.oci.strict_json import canonical_json, check_keys, discard_item, parse_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

#: Documents whose content this version cannot copy completely. They are refused.
_UNSUPPORTED_TYPES: Final = {
    "application/vnd.docker.distribution.manifest.v1+json": "a Docker schema 1 manifest",
    "application/vnd.docker.distribution.manifest.v1+prettyjws": "a Docker schema 1 manifest",
    "application/vnd.oci.artifact.manifest.v1+json": "an OCI artifact manifest (withdrawn before image-spec 1.1)",
    "application/vnd.cncf.oras.artifact.manifest.v1+json": "an ORAS artifact manifest",
}
#: The schemaVersion of manifests and indexes (image-spec, manifest.md: "this MUST be 2").
_SCHEMA_VERSION: Final = 2
_REPUSH_HINT: Final = "rebuild the image or push it again with a current version of Docker"
#: The largest size that every other tool can represent.
_MAX_SIZE: Final = 2**63 - 1
_NO_ANNOTATIONS: Final[Mapping[str, str]] = {}
_NO_CONTENT: Final[Mapping[str, bytes]] = {}
#: Strings that occur often, so that equal strings share one object.
_interned_strings: Final[dict[str, str]] = {}

# The field names that Go's tools read (image-spec's specs-go/v1, distribution's manifest packages). A key that differs
# from a field name only in case is refused. The keys of maps, such as annotations, are data.
#: Fields of a manifest or index. No other fields are read.
MANIFEST_FIELDS: Final = frozenset(
    {
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "manifests",
        "blobs",
        "subject",
        "artifactType",
        "annotations",
    }
)
_DESCRIPTOR_FIELDS: Final = frozenset(
    {"mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType"}
)
#: Fields that each descriptor keeps as they are.
_ENTRY_FIELDS: Final = frozenset({"mediaType", "digest", "size", "annotations"})
_PLATFORM_FIELDS: Final = frozenset({"architecture", "os", "os.version", "os.features", "variant", "features"})
#: Fields of an image's config. The object under `config` is for runtimes.
_CONFIG_FIELDS: Final = frozenset(
    {
        "created",
        "author",
        "architecture",
        "os",
        "os.version",
        "os.features",
        "variant",
        "config",
        "rootfs",
        "history",
    }
)
_ROOTFS_FIELDS: Final = frozenset({"type", "diff_ids"})


@dataclass(frozen=True, slots=True)
class Document:
    """The parts of a manifest or index that a copy needs.

    An image manifest has `config` and `layers`. An index has `manifests` and no config; its `layers` are the children
    that are neither a manifest nor an index (BuildKit's cache lists layers in an index). `subject` is the manifest that
    a referrer refers to. Nothing else is kept, since thousands of manifests are in memory at once.
    """

    media_type: str
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None
    artifact_type: str | None
    annotations: Mapping[str, str]
    #: Content from the `data` of the config's and layers' descriptors, by digest. It is not verified here.
    embedded: Mapping[str, bytes] = field(default_factory=lambda: _NO_CONTENT, repr=False)


def parse_descriptor(fields: object, where: str) -> Descriptor:
    """Check one descriptor of a document. `where` names the place in errors."""
    if not isinstance(fields, dict):
        msg = f"{where} is not a descriptor"
        raise ArchiveError(msg)
    if not fields.keys() <= _DESCRIPTOR_FIELDS:
        check_keys(fields, _DESCRIPTOR_FIELDS, where)
    media_type, digest, size = fields.get("mediaType"), fields.get("digest"), fields.get("size")
    if not isinstance(media_type, str) or not is_media_type(media_type):
        msg = f"{where} has no valid mediaType"
        raise ArchiveError(msg)
    if not isinstance(digest, str):
        msg = f"{where} has no digest"
        raise ArchiveError(msg)
    if not is_digest(digest):
        try:
            parse_digest(digest)
        except InvalidNameError as error:
            msg = f"{where}: {error}"
            raise ArchiveError(msg) from error
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
        msg = f"{where} has no valid size"
        raise ArchiveError(msg)
    return Descriptor(
        # There are few media types, and tens of thousands of descriptors.
        intern_string(media_type),
        digest,
        size,
        _parse_platform_fields(fields.get("platform"), where),
        _parse_annotations(fields.get("annotations"), where),
        _optional_text(fields, "artifactType", where),
    )


def parse_entry(item: object) -> Descriptor:
    """Check an entry of an `index.json`, and keep all fields that `to_json` writes again."""
    return _keep_extra(parse_descriptor(item, "an entry of index.json"), item)


def intern_string(word: str) -> str:
    """Return the shared object for equal strings: few words occur in tens of thousands of descriptors.

    `sys.intern` is not used: Python 3.12 keeps its strings forever, and untrusted strings could fill the memory.
    """
    if (
        word in _interned_strings
        or len(_interned_strings) >= limits.MAX_INTERNED_STRINGS
        or len(word) > limits.MAX_INTERNED_LENGTH
    ):
        return _interned_strings.get(word, word)
    return _interned_strings.setdefault(word, word)


def _optional_text(fields: Mapping[str, Any], key: str, where: str) -> str | None:
    value = fields.get(key)
    if value is None or isinstance(value, str):
        return value or None
    msg = f"{where}: {key} is not a string"
    raise ArchiveError(msg)


def _parse_platform_fields(fields: object, where: str) -> Platform | None:
    if fields is None:
        return None
    if not isinstance(fields, dict):
        msg = f"{where}: platform is not an object"
        raise ArchiveError(msg)
    if not fields.keys() <= _PLATFORM_FIELDS:
        check_keys(fields, _PLATFORM_FIELDS, f"platform of {where}")
    keys = ("os", "architecture", "variant", "os.version")
    # These words are few, and platforms are thousands.
    platform = Platform(*(intern_string(_optional_text(fields, key, where) or "") for key in keys))
    # Tools that do not know the platform write an empty one.
    return platform if platform.os and platform.architecture else None


def _parse_annotations(fields: object, where: str) -> Mapping[str, str]:
    if fields is None:
        return _NO_ANNOTATIONS
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        msg = f"{where}: annotations are not a map of strings"
        raise ArchiveError(msg)
    return {intern_string(key): value for key, value in fields.items()} or _NO_ANNOTATIONS


def parse_document(descriptor: Descriptor, raw: bytes) -> Document:
    """Parse a manifest or index whose bytes were already verified against `descriptor`.

    Raises:
        ArchiveError: the document is malformed, or is not what the descriptor says (CVE-2021-41190).
        UnsupportedError: the document is of a known kind that cannot be copied.
    """
    what = f"manifest {descriptor.digest}"
    if kind := _UNSUPPORTED_TYPES.get(descriptor.media_type):
        msg = f"{what} is {kind}, which is not supported"
        raise UnsupportedError(msg, hint=_REPUSH_HINT)
    is_document = descriptor.is_index or descriptor.is_manifest
    manifests, layers = DescriptorListParser("manifests", what), DescriptorListParser("layers", what, minimal=True)
    try:
        fields = parse_json(
            raw, what, keys=MANIFEST_FIELDS, convert={"manifests": manifests, "layers": layers, "blobs": discard_item}
        )
    except ArchiveError:
        if is_document:
            raise
        # An entry of index.json may be any content, such as XML (image-spec, image-layout.md).
        return Document(descriptor.media_type, None, (), (), None, None, _NO_ANNOTATIONS)
    # In Python, True is 1.
    if fields.get("schemaVersion") == 1 and not isinstance(fields["schemaVersion"], bool):
        msg = f"{what} is a Docker schema 1 manifest, which is not supported"
        raise UnsupportedError(msg, hint=_REPUSH_HINT)
    if is_document:
        check_schema_version(fields, what)
    check_document_type(fields, what, (descriptor.media_type,))
    # Other content is a leaf, and is copied byte for byte.
    if not is_document and fields.keys() & {"config", "layers", "blobs", "manifests"}:
        msg = f"{what} has the type {descriptor.media_type}, which is not supported"
        raise UnsupportedError(msg)
    config = parse_descriptor(fields.get("config"), f"config of {what}") if descriptor.is_manifest else None
    layer_list = layers.descriptors(fields) if descriptor.is_manifest else ()
    children = manifests.descriptors(fields) if descriptor.is_index else ()
    blobs = tuple(_strip_descriptor(child) for child in children if not _is_document(child))
    subject = fields.get("subject")
    return Document(
        descriptor.media_type,
        _strip_descriptor(config) if config else None,
        layer_list or blobs,
        tuple(child for child in children if _is_document(child)) if blobs else children,
        None if subject is None else parse_descriptor(subject, f"subject of {what}"),
        _optional_text(fields, "artifactType", what),
        # Only lists of referrers need annotations. Keeping others would waste memory.
        _own_annotations(fields) if subject is not None else _NO_ANNOTATIONS,
        {**layers.embedded, **_decode_data(config, fields["config"])} if config else _NO_CONTENT,
    )


def _decode_data(descriptor: Descriptor, item: object) -> dict[str, bytes]:
    """Decode the content in a descriptor's `data` (image-spec, descriptor.md), if it is small."""
    data = item.get("data") if isinstance(item, dict) else None
    if not isinstance(data, str) or descriptor.size > limits.MAX_EMBEDDED or len(data) > 2 * limits.MAX_EMBEDDED:
        return {}
    try:
        return {descriptor.digest: base64.b64decode(data, validate=True)}
    except ValueError:
        # Registries accept malformed `data`, and it is not needed if the blob exists.
        return {}


def _is_document(child: Descriptor) -> bool:
    """Return whether a child of an index is a manifest or an index. Other children are blobs, copied byte for byte."""
    return child.is_manifest or child.is_index or child.media_type in _UNSUPPORTED_TYPES


def check_schema_version(fields: Mapping[str, Any], what: str) -> None:
    """Refuse a manifest or index whose schemaVersion is not the number 2.

    Raises:
        ArchiveError: it is not. A missing field and null are accepted, as Go's tools read both alike.
    """
    version = fields.get("schemaVersion")
    # In Python, True is an int.
    if version is not None and (type(version) is not int or version != _SCHEMA_VERSION):
        msg = f"{what} has the schemaVersion {printable(json.dumps(version), 40)}, not the number {_SCHEMA_VERSION}"
        raise ArchiveError(msg)


def check_document_type(fields: Mapping[str, Any], what: str, media_types: Collection[str]) -> None:
    """Refuse a document that other tools could read as another kind than `media_types`.

    Raises:
        ArchiveError: its own mediaType differs, or it has fields of images and of indexes (CVE-2021-41190).
    """
    own_type = _optional_text(fields, "mediaType", what)
    if own_type is not None and own_type not in media_types:
        msg = f"{what} has the mediaType {printable(own_type)!r}, but {next(iter(media_types))!r} is expected"
        raise ArchiveError(msg)
    if "manifests" in fields and ("layers" in fields or "config" in fields):
        msg = f"{what} claims to be an image and an index at once"
        raise ArchiveError(msg)


def _strip_descriptor(descriptor: Descriptor) -> Descriptor:
    """Drop annotations and other fields of a config or layer: they may be megabytes, and are not used."""
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)


class DescriptorListParser:
    """Converts the elements of a document's list to descriptors while the document is parsed.

    `descriptors` raises the first error: only the complete document shows whether the list is used at all.
    """

    def __init__(self, key: str, what: str, *, minimal: bool = False, keep_extra: bool = False) -> None:
        """Name the list and its document for errors.

        `minimal` keeps only media type, digest and size. `keep_extra` keeps the fields that `to_json` writes again.
        """
        self._key = key
        self._what = what
        self._is_minimal = minimal
        self._keeps_extra = keep_extra
        self._error: OcistreamError | None = None
        #: Content from the descriptors' `data`, by digest. Only for `minimal` lists, which are layers.
        self.embedded: dict[str, bytes] = {}

    def __call__(self, index: int, item: object) -> Descriptor | None:
        """Return the descriptor of one element, or None after an error."""
        if self._error is not None:
            return None
        try:
            if index >= limits.MAX_LIST_ENTRIES:
                msg = f"{self._what} has more than {limits.MAX_LIST_ENTRIES} {self._key}"
                raise ArchiveError(msg)
            descriptor = parse_descriptor(item, f"{self._key}[{index}] of {self._what}")
        except OcistreamError as error:
            self._error = error
            return None
        if self._is_minimal:
            if len(self.embedded) < limits.MAX_EMBEDDED_BLOBS:
                self.embedded |= _decode_data(descriptor, item)
            return _strip_descriptor(descriptor)
        return _keep_extra(descriptor, item) if self._keeps_extra else descriptor

    def descriptors(self, fields: Mapping[str, Any]) -> tuple[Descriptor, ...]:
        """Return the descriptors that `parse_json` stored in `fields`.

        Raises:
            ArchiveError: the list is missing or too long, or a descriptor is malformed.
            UnsupportedError: the algorithm of a digest is not registered.
        """
        if self._error is not None:
            try:
                raise self._error
            finally:
                # Otherwise its traceback and this object would keep each other in memory, and the document too.
                self._error = None
        items = fields.get(self._key)
        # Go writes an empty list as null.
        if items is None and self._key in fields:
            return ()
        if not isinstance(items, list):
            msg = f"{self._what} has no list of {self._key}"
            raise ArchiveError(msg)
        return tuple(items)


def _keep_extra(descriptor: Descriptor, item: object) -> Descriptor:
    """Return a descriptor with the fields of its object that it does not have, as JSON."""
    fields = item if isinstance(item, dict) else {}
    # Most of thousands of entries have no other fields.
    if fields.keys() <= _ENTRY_FIELDS:
        return descriptor
    written = descriptor.to_json()
    others = {
        key: value
        for key, value in fields.items()
        if key != "annotations" and (key not in written or value != written[key])
    }
    return replace(descriptor, extra_json=canonical_json(others)) if others else descriptor


def _own_annotations(fields: Mapping[str, Any]) -> Mapping[str, str]:
    """Return a document's own annotations. A copy does not depend on them, so malformed ones are ignored."""
    annotations = fields.get("annotations")
    if isinstance(annotations, dict) and all(isinstance(value, str) for value in annotations.values()):
        return annotations
    return _NO_ANNOTATIONS


def parse_config_platform(raw: bytes, what: str) -> Platform | None:
    """Return the platform in an image's config, or None if it names none."""
    keys = {"os", "architecture", "variant", "os.version"}
    fields = parse_json(raw, what, limits.MAX_CONFIG, keys=keys, known_keys=_CONFIG_FIELDS)
    return _parse_platform_fields(fields, what)


@dataclass(frozen=True, slots=True)
class ConfigSummary:
    """The fields of an image's config that are shown: platform, creation time and labels. Malformed ones are absent."""

    platform: Platform | None = None
    created: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_config_summary(raw: bytes, what: str) -> ConfigSummary:
    """Return the fields of an image's config that are shown.

    Raises:
        ArchiveError: the config is malformed.
    """
    keys = {"os", "architecture", "variant", "os.version", "created", "config"}
    fields = parse_json(raw, what, limits.MAX_CONFIG, keys=keys, known_keys=_CONFIG_FIELDS)
    created, config = fields.pop("created", None), fields.pop("config", None)
    labels = config.get("Labels") if isinstance(config, dict) else None
    return ConfigSummary(
        _parse_platform_fields(fields, what),
        created if isinstance(created, str) and created else None,
        {key: value for key, value in labels.items() if isinstance(value, str)} if isinstance(labels, dict) else {},
    )


def parse_diff_ids(raw: bytes, what: str) -> tuple[str, ...]:
    """Return the digests of an image's plain layers from its config, bottom layer first (image-spec, config.md).

    Raises:
        ArchiveError: the list is missing or malformed.
    """
    rootfs = check_config(raw, what)
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    # Go writes an empty list as null.
    if isinstance(rootfs, dict) and diff_ids is None:
        diff_ids = []
    if not isinstance(diff_ids, list) or not all(isinstance(item, str) and is_digest(item) for item in diff_ids):
        msg = f"{what} has no list of diff_ids"
        raise ArchiveError(msg)
    return tuple(diff_ids)


def check_config(raw: bytes, what: str) -> object:
    """Check that an image's config is a JSON object that all tools read alike, and return its `rootfs`.

    Raises:
        ArchiveError: the config is malformed, ambiguous, or too large.
    """
    rootfs = parse_json(raw, what, limits.MAX_CONFIG, keys={"rootfs"}, known_keys=_CONFIG_FIELDS).get("rootfs")
    if isinstance(rootfs, dict):
        check_keys(rootfs, _ROOTFS_FIELDS, f"rootfs of {what}")
    return rootfs


def guess_media_type(raw: bytes, what: str) -> str:
    """Return the media type of a manifest that came without one: its own mediaType, or a guess by its fields.

    Raises:
        ArchiveError: the document is not a manifest.
    """
    fields = parse_outline(raw, what)
    own_type = _optional_text(fields, "mediaType", what)
    if own_type:
        return own_type
    if "manifests" in fields:
        return OCI_INDEX
    if "layers" in fields or "config" in fields:
        return OCI_MANIFEST
    if fields.get("schemaVersion") == 1:
        return "application/vnd.docker.distribution.manifest.v1+json"
    msg = f"{what} is neither a manifest nor an index"
    raise ArchiveError(msg)


def parse_outline(raw: bytes, what: str) -> dict[str, Any]:
    """Parse the top-level fields of a manifest of any kind. The elements of its lists are replaced by None.

    Raises:
        ArchiveError: the document is not a JSON object.
    """
    keys = {"schemaVersion", "mediaType", "config", "layers", "manifests"}
    convert = {"layers": discard_item, "manifests": discard_item}
    return parse_json(raw, what, keys=keys, known_keys=MANIFEST_FIELDS, convert=convert)
