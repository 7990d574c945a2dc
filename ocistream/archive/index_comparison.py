"""Compare `manifest.json` with `index.json`: find images that only the former lists, and refuse contradictions.

Images are compared by the digests of their configs and layers. This module opens no files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.archive.contents import parse_blob_name
from ocistream.archive.docker_archive import expand_docker_name
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.layout.index import FULL_NAME, REF_NAME
from ocistream.oci.descriptor import Descriptor, compute_digest
from ocistream.oci.reference import printable
from ocistream.oci.walk import Need, StreamedWalk, parse_candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ocistream.archive.docker_archive import DockerImage
    from ocistream.oci.documents import Document
    from ocistream.oci.walk import Walk

_DISAGREEMENT_HINT: Final = (
    "tools read different images from this archive; to use manifest.json, write docker-archive:FILE"
)


class IndexComparison(StreamedWalk[None]):
    """The images of an `index.json`, compared with the images of a `manifest.json`.

    This is a walk to the manifests below the entries. The images are compared as far as their manifests are known. A
    document that is malformed counts as missing: the images that use the document report that. A document with wrong
    bytes is an error if images of `manifest.json` are not found, since the document may list them.
    """

    def __init__(
        self,
        entries: Sequence[Descriptor],
        find_document: Callable[[str], Document | None] = lambda _digest: None,
        find: Callable[[Need], bytes | None] = lambda _need: None,
    ) -> None:
        """Compare with these entries of `index.json`.

        `find_document` returns a manifest that is already parsed, `find` the bytes of one that was read already.
        """
        self._entries = entries
        self._find_document = find_document
        #: The digests of manifests and indexes without an answer, and those that the walk has not yielded yet.
        self._unanswered: set[str] = set()
        self._unyielded: list[Need] = []
        #: The first manifest or index with wrong bytes. Its images are unknown, so no difference is a contradiction.
        self._damage: IntegrityError | None = None
        self._known: set[str] = set()
        self._children: dict[str, tuple[str, ...]] = {}
        #: By the digest of a manifest: the digest of its config. By that: the manifests that have this config, with the
        #: positions of their foreign layers, and the hash of the other ones.
        self._configs: dict[str, str] = {}
        self._manifests: dict[str, list[tuple[Descriptor, tuple[int, ...], str]]] = {}
        self._listed_count = 0
        self._steps = 0
        #: How many of the first images of `manifest.json` were found, and the final answer of `may_list_more`.
        self._found_count = 0
        self._lists_more: bool | None = None
        for entry in entries:
            self._need(entry)
        super().__init__(self._run(), find)
        self.answer_found()

    def _run(self) -> Walk[None]:
        while self._unanswered:
            new, self._unyielded = self._unyielded, []
            need, raw = yield new
            self._unanswered.remove(need.digest)
            if raw is not None:
                try:
                    document = self._find_document(need.digest) or parse_candidate(need.descriptor, raw)
                except IntegrityError as error:
                    self._damage = self._damage or error
                else:
                    if document is not None:
                        self._add_document(need.descriptor, document)

    def _add_document(self, descriptor: Descriptor, document: Document) -> None:
        digest = descriptor.digest
        if document.config is not None:
            self._configs[digest] = document.config.digest
            bare = Descriptor(descriptor.media_type, digest, descriptor.size)
            foreign = tuple(position for position, layer in enumerate(document.layers) if layer.is_foreign)
            layers_hash = _hash_layers([layer.digest for layer in document.layers], foreign)
            self._manifests.setdefault(document.config.digest, []).append((bare, foreign, layers_hash))
            return
        self._listed_count += len(document.manifests)
        if self._listed_count > limits.MAX_PLATFORM_CANDIDATES:
            msg = f"the indexes list more than {limits.MAX_PLATFORM_CANDIDATES} manifests to compare manifest.json with"
            raise UnsupportedError(msg, hint=_DISAGREEMENT_HINT)
        self._children[digest] = tuple(child.digest for child in document.manifests)
        for child in document.manifests:
            self._need(child)

    def find_entries_with(self, image_id: str) -> list[Descriptor]:
        """Return the entries of `index.json` that lead to an image with this ID, as far as is known now."""
        return [entry for entry in self._entries if image_id in self._find_configs_below(entry.digest)[0]]

    def find_manifest(self, image: DockerImage) -> Descriptor | None:
        """Return the manifest that an image of `manifest.json` has below `index.json`: the same config and layers."""
        digests = [parse_blob_name(name) or name for name in image.layers]
        for manifest, foreign, layers_hash in self._manifests.get(parse_blob_name(image.config) or "", ()):
            if _hash_layers(digests, foreign) == layers_hash:
                return manifest
        return None

    def find_only_in_manifest_json(self, images: Sequence[DockerImage], *, by_name: bool = False) -> list[DockerImage]:
        """Return the images of `manifest.json` that `index.json` does not list.

        While manifests are needed, the result may be too long. With `by_name`, only the images that have the same name
        in both files are compared.
        """
        digests_by_name = self._group_entries_by_name() if any(image.tags for image in images) else {}
        configs_by_entry: dict[str, tuple[set[str], bool]] = {}
        additional: list[DockerImage] = []
        for image in images:
            config = parse_blob_name(image.config) or ""
            for tag in image.tags:
                self._check_name(tag, config, digests_by_name.get(expand_docker_name(tag), ()), configs_by_entry)
            if by_name:
                continue
            if not config:
                msg = f"manifest.json lists the config {printable(image.config)}, which no image of index.json uses"
                raise ArchiveError(msg, hint=_DISAGREEMENT_HINT)
            if config not in self._manifests:
                additional.append(image)
            elif self.find_manifest(image) is None:
                first = self._manifests[config][0][0].digest
                msg = f"manifest.json lists other layers for the image {config} than its manifest {first}"
                raise ArchiveError(msg, hint=_DISAGREEMENT_HINT)
        if additional and self._damage is not None and not self._unanswered:
            raise self._damage
        if additional and len(additional) == len(images) and self._configs and not self._unanswered:
            image_id = parse_blob_name(additional[0].config)
            msg = f"manifest.json and index.json list different images ({image_id} is only in manifest.json)"
            raise ArchiveError(msg, hint=_DISAGREEMENT_HINT)
        return additional

    def may_list_more(self, images: Sequence[DockerImage]) -> bool:
        """Return whether `manifest.json` may list images that `index.json` does not, as far as is known now."""
        # This is asked for each entry of an archive: to compare all images each time would take minutes.
        if self._lists_more is None:
            count = self._found_count
            while count < len(images) and parse_blob_name(images[count].config) in self._manifests:
                count += 1
            self._found_count = count
            if count < len(images) and self._unanswered:
                return True
            self._lists_more = bool(self.find_only_in_manifest_json(images))
        return self._lists_more

    def _need(self, descriptor: Descriptor) -> None:
        """Add a need for a manifest or an index, unless it was seen before."""
        digest = descriptor.digest
        is_document = descriptor.is_index or descriptor.is_manifest
        if not is_document or digest in self._known or descriptor.size > limits.MAX_MANIFEST:
            return
        if len(self._known) >= limits.MAX_MANIFESTS:
            msg = f"more than {limits.MAX_MANIFESTS} manifests to compare manifest.json with"
            raise UnsupportedError(msg, hint=_DISAGREEMENT_HINT)
        self._known.add(digest)
        self._unanswered.add(digest)
        self._unyielded.append(Need(descriptor))

    def _group_entries_by_name(self) -> dict[str, list[str]]:
        """Return the digests of the entries by their full names."""
        digests_by_name: dict[str, list[str]] = {}
        for entry in self._entries:
            names = (entry.annotations.get(key, "") for key in (FULL_NAME, REF_NAME))
            for name in {expand_docker_name(name) for name in names if {":", "/"} & set(name)}:
                digests_by_name.setdefault(name, []).append(entry.digest)
        return digests_by_name

    def _check_name(
        self, tag: str, config: str, entries: Sequence[str], configs_by_entry: dict[str, tuple[set[str], bool]]
    ) -> None:
        """Check that one of the entries with a name of `manifest.json` leads to the image of that name."""
        for digest in entries:
            if digest not in configs_by_entry:
                configs_by_entry[digest] = self._find_configs_below(digest)
            configs, is_known = configs_by_entry[digest]
            if config in configs or not is_known:
                return
        if entries:
            if self._damage is not None:
                raise self._damage
            msg = f"{printable(tag)} is one image in manifest.json and another in index.json"
            hint = "tools read different images from this archive: get it again from a source that you trust"
            raise ArchiveError(msg, hint=hint)

    def _find_configs_below(self, digest: str) -> tuple[set[str], bool]:
        """Return the configs of all images below an entry, and whether all of its manifests were read."""
        # A digest may be a manifest of one image and the config of another: only an index leads to manifests.
        configs: set[str] = set()
        is_known = True
        seen = {digest}
        pending = [digest]
        while pending:
            current = pending.pop()
            is_known = is_known and current not in self._unanswered
            if current in self._configs:
                configs.add(self._configs[current])
            new = [child for child in self._children.get(current, ()) if child not in seen]
            seen.update(new)
            pending += new
            self._steps += 1
        if self._steps > limits.MAX_REQUIRED_DESCRIPTORS:
            msg = f"the images need more than {limits.MAX_REQUIRED_DESCRIPTORS} manifests, counted for each image"
            raise UnsupportedError(msg, hint=_DISAGREEMENT_HINT)
        return configs, is_known


def _hash_layers(digests: Sequence[str], foreign: Collection[int]) -> str:
    """Return a hash of layers. Those at the positions `foreign` do not count: Docker saves them under other digests."""
    lines = ("" if position in foreign else digest for position, digest in enumerate(digests))
    return compute_digest("\n".join([f"{len(digests)}", *lines]).encode("utf-8", "surrogateescape"))
