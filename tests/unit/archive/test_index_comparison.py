"""`manifest.json` is compared with `index.json`: same images, images that only one lists, and contradictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from ocistream import limits
from ocistream.archive.docker_archive import DockerImage
from ocistream.archive.index_comparison import IndexComparison
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.documents import parse_descriptor
from tests.images import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of

FULL_NAME = "io.containerd.image.name"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


def described(content: bytes, kind: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest_of(content), "size": len(content), **more}


def image(config: bytes, *layers: bytes, kind: str = OCI_LAYER) -> bytes:
    """Return the manifest of an image."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(config, OCI_CONFIG),
        "layers": [described(layer, kind) for layer in layers],
    }
    return json.dumps(document).encode()


def index(*manifests: bytes, kind: str = OCI_MANIFEST) -> bytes:
    entries = [described(manifest, kind) for manifest in manifests]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


def entry(raw: bytes, name: str | None = None, kind: str = OCI_MANIFEST) -> Descriptor:
    annotations = {} if name is None else {"annotations": {FULL_NAME: f"docker.io/library/{name}"}}
    return parse_descriptor(described(raw, kind, **annotations), "an entry")


def path(content: bytes) -> str:
    return "blobs/" + digest_of(content).replace(":", "/")


def listed(config: bytes, *layers: bytes, tags: Sequence[str] = ()) -> DockerImage:
    return DockerImage(path(config), tuple(map(path, layers)), tuple(tags))


def compared(entries: Sequence[Descriptor], *documents: bytes) -> IndexComparison:
    """Return a comparison that has all documents that it needs."""
    comparison = IndexComparison(entries)
    known = {digest_of(document): document for document in documents}
    comparison.finish(lambda need: known.get(need.digest))
    return comparison


A, B = image(b"a", b"1", b"2"), image(b"b", b"1")
LISTED_A, LISTED_B = listed(b"a", b"1", b"2", tags=["app:1"]), listed(b"b", b"1")


def test_the_same_images_are_not_a_contradiction() -> None:
    assert compared([entry(A, "app:1"), entry(B)], A, B).find_only_in_manifest_json([LISTED_A, LISTED_B]) == []


def test_images_only_in_manifest_json_are_returned() -> None:
    assert compared([entry(A, "app:1")], A).find_only_in_manifest_json([LISTED_A, LISTED_B]) == [LISTED_B]
    assert compared([]).find_only_in_manifest_json([LISTED_A, LISTED_B]) == [LISTED_A, LISTED_B]


def test_a_name_may_be_an_index_and_one_of_its_platforms() -> None:
    whole = index(A, B)
    comparison = compared([entry(whole, "app:1", OCI_INDEX)], whole, A, B)
    assert comparison.find_only_in_manifest_json([LISTED_A]) == []
    assert comparison.find_only_in_manifest_json([listed(b"b", b"1", tags=["docker.io/library/app:1"])]) == []


def test_an_index_may_lack_other_platforms() -> None:
    # Docker 29 keeps the complete index, and saves the platforms that it has.
    whole = index(B, A)
    assert compared([entry(whole, "app:1", OCI_INDEX)], whole, A).find_only_in_manifest_json([LISTED_A]) == []
    with pytest.raises(ArchiveError, match="app:1 is one image"):
        compared([entry(whole, "app:1", OCI_INDEX)], whole, B).find_only_in_manifest_json([LISTED_A])


def test_a_name_may_have_several_entries() -> None:
    assert compared([entry(B, "app:1"), entry(A, "app:1")], A, B).find_only_in_manifest_json([LISTED_A]) == []


def test_another_image_of_the_same_name_is_a_contradiction() -> None:
    comparison = compared([entry(B, "app:1"), entry(A)], A, B)
    for by_name in (False, True):
        with pytest.raises(ArchiveError, match=r"app:1 is one image in manifest\.json and another in index\.json"):
            comparison.find_only_in_manifest_json([LISTED_A], by_name=by_name)


def test_nothing_is_a_contradiction_while_documents_are_missing() -> None:
    whole = index(A, B)
    comparison = IndexComparison([entry(whole, "app:1", OCI_INDEX)])
    assert comparison.find_only_in_manifest_json([LISTED_A]) == [LISTED_A]
    (need,) = comparison.needs.values()
    comparison.answer(need, whole)
    a, b = comparison.needs.values()
    comparison.answer(b, B)
    assert comparison.find_only_in_manifest_json([LISTED_A]) == [LISTED_A]
    comparison.answer(a, A)
    assert comparison.find_only_in_manifest_json([LISTED_A]) == []


def test_no_image_in_common_is_a_contradiction() -> None:
    comparison = compared([entry(A, "app:1")], A)
    with pytest.raises(ArchiveError, match=r"list different images \(sha256:.* is only in manifest\.json\)"):
        comparison.find_only_in_manifest_json([LISTED_B])
    assert comparison.find_only_in_manifest_json([LISTED_B], by_name=True) == []


@pytest.mark.parametrize("layers", [(b"2", b"1"), (b"1",), (), (b"1", b"2", b"2")])
def test_other_layers_are_a_contradiction(layers: Sequence[bytes]) -> None:
    comparison = compared([entry(A, "app:1")], A)
    with pytest.raises(ArchiveError, match=r"lists other layers for the image .* than its manifest"):
        comparison.find_only_in_manifest_json([listed(b"a", *layers, tags=["app:1"])])


def test_one_of_several_manifests_of_a_config_must_have_the_layers() -> None:
    again = image(b"a", b"3")
    comparison = compared([entry(again), entry(A, "app:1")], A, again)
    assert comparison.find_only_in_manifest_json([LISTED_A, listed(b"a", b"3")]) == []


def test_foreign_layers_saved_by_docker_may_have_other_digests() -> None:
    foreign = image(b"a", b"1", b"2", kind=FOREIGN)
    comparison = compared([entry(foreign, "app:1")], foreign)
    assert comparison.find_only_in_manifest_json([listed(b"a", b"saved", b"too", tags=["app:1"])]) == []
    with pytest.raises(ArchiveError, match="other layers"):
        comparison.find_only_in_manifest_json([listed(b"a", b"saved", tags=["app:1"])])


def test_a_config_that_is_not_a_blob_cannot_be_compared() -> None:
    with pytest.raises(ArchiveError, match=r"lists the config a\.json"):
        compared([entry(A, "app:1")], A).find_only_in_manifest_json([DockerImage("a.json", (), ())])


@pytest.mark.parametrize("raw", [A + b" ", b"{}", A.replace(b"a", b"b", 1)])
@pytest.mark.parametrize("tags", [(), ("app:1",)])
def test_a_corrupt_manifest_is_an_error_if_an_image_is_not_found(raw: bytes, tags: Sequence[str]) -> None:
    comparison = IndexComparison([entry(A, "app:1"), entry(B)])
    comparison.finish(lambda need: raw if need.digest == digest_of(A) else B)
    assert comparison.find_only_in_manifest_json([LISTED_B]) == []
    with pytest.raises(IntegrityError, match=digest_of(A)):
        comparison.find_only_in_manifest_json([listed(b"a", b"1", b"2", tags=tags), LISTED_B])


def test_a_malformed_manifest_counts_as_missing() -> None:
    malformed = b'{"schemaVersion":2,"layers":1}'
    assert compared([entry(malformed)], malformed).find_only_in_manifest_json([LISTED_A]) == [LISTED_A]


def test_other_kinds_of_entries_are_not_needed() -> None:
    layer = index(b"a layer", kind=f"{OCI_LAYER}+gzip")
    comparison = compared([entry(layer, kind=OCI_INDEX)], layer)
    assert comparison.find_only_in_manifest_json([LISTED_A]) == [LISTED_A]


def test_the_numbers_of_manifests_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = index(A, B)
    entries = [entry(whole, "app:1", OCI_INDEX), entry(whole, "app:2", OCI_INDEX)]
    monkeypatch.setattr(limits, "MAX_PLATFORM_CANDIDATES", 1)
    with pytest.raises(UnsupportedError, match="more than 1 manifests to compare"):
        compared(entries, whole, A, B)
    monkeypatch.undo()
    monkeypatch.setattr(limits, "MAX_MANIFESTS", 2)
    with pytest.raises(UnsupportedError, match="more than 2 manifests to compare"):
        compared(entries, whole, A, B)
    monkeypatch.undo()
    monkeypatch.setattr(limits, "MAX_REQUIRED_DESCRIPTORS", 2)
    with pytest.raises(UnsupportedError, match="need more than 2 manifests, counted for each image"):
        compared(entries, whole, A, B).find_only_in_manifest_json([LISTED_A])
    # Manifests that the archive lacks count too: an index may list thousands of them.
    with pytest.raises(UnsupportedError, match="need more than 2 manifests, counted for each image"):
        compared(entries, whole).find_only_in_manifest_json([LISTED_A])
