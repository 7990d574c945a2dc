"""What hangs on an image goes with it, from each kind of source into each kind of sink, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream import transfer
from ocistream.attachments import NARROWED, UNWANTED
from ocistream.graph import Graph
from ocistream.interfaces import Source
from ocistream.model import parse_platform
from ocistream.platforms import PlatformChoice
from tests.contract.shapes import parts_of
from tests.contract.stores import SINKS, SOURCES, Store, opened
from tests.contract.test_sources import Kept
from tests.images import Layout, digest_of, small_image, tar_layer, two_platforms
from tests.signed import Signed, cosign_tag, referrer, signed

Hanging = set[tuple[str, str, str | None]]


@pytest.fixture(params=SOURCES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store of each kind that can be read from."""
    with opened(SOURCES[request.param], tmp_path / "store") as made:
        yield made


@pytest.fixture(params=SINKS)
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store of each kind that can be written to."""
    with opened(SINKS[request.param], tmp_path / "other") as made:
        yield made


def expected(found: Signed) -> Hanging:
    """Return what hangs on what, and by which tag."""
    image, signature = found.image["digest"], found.signature["digest"]
    return {
        (image, signature, None),
        (image, found.sbom["digest"], None),
        (signature, found.attestation["digest"], None),
        (image, found.cosign["digest"], found.cosign_tag),
    }


def hanging(graph: Graph) -> Hanging:
    return {(one.subject, one.descriptor.digest, one.tag) for one in graph.all_attached}


def graph_of(source: Source) -> Graph:
    return source.graph(Kept())


class TestSources:
    def test_all_that_hangs_on_an_image_is_part_of_the_graph_and_no_image(self, store: Store, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        store.fill(layout)
        graph = graph_of(store.source(referrers="along"))
        assert [root.descriptor.digest for root in graph.roots] == [found.image["digest"]]
        assert hanging(graph) == expected(found)
        assert {manifest.raw for manifest in graph.manifests} == set(parts_of(layout).manifests.values())
        assert {blob.digest for blob in graph.blobs} == set(parts_of(layout).blobs)
        assert graph.reachable(graph.roots[0]) == set(parts_of(layout).manifests) | set(parts_of(layout).blobs)

    def test_what_it_hangs_on_comes_first_and_the_order_is_one_for_all(self, store: Store, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        store.fill(layout)
        graph = graph_of(store.source(referrers="along"))
        order = [manifest.descriptor.digest for manifest in graph.manifests]
        first = sorted([found.signature["digest"], found.sbom["digest"]])
        assert order == [found.image["digest"], *first, found.cosign["digest"], found.attestation["digest"]]

    def test_it_is_described_by_its_own_words(self, store: Store, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        store.fill(layout)
        described = {
            one.descriptor.digest: one.descriptor for one in graph_of(store.source(referrers="along")).all_attached
        }
        signature = described[found.signature["digest"]]
        assert (signature.artifact_type, signature.annotations) == (found.signature["artifactType"], {"signer": "me"})
        assert described[found.sbom["digest"]].artifact_type == found.sbom["artifactType"]

    def test_a_signature_of_one_platform_goes_with_it(self, store: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        arm, amd = (signed(layout, child) for child in reversed(layout.read(index["digest"])["manifests"]))
        whole = signed(layout, index)
        for found in (arm, amd, whole):
            found.enter(layout, None)
        # Without names of their own the images are in the index only.
        document = json.loads((layout.path / "index.json").read_bytes())
        images = {found.image["digest"] for found in (arm, amd, whole)}
        document["manifests"] = [e for e in document["manifests"] if e["digest"] not in images or "annotations" in e]
        (layout.path / "index.json").write_text(json.dumps(document))
        store.fill(layout)
        graph = graph_of(store.source(platforms=PlatformChoice((parse_platform("linux/arm64"),)), referrers="along"))
        assert [root.descriptor.digest for root in graph.roots] == [arm.image["digest"]]
        assert hanging(graph) == expected(arm)
        left = {(left.subject, left.digest or left.tag) for left in graph.left_behind if left.why == NARROWED}
        assert {
            (whole.image["digest"], whole.signature["digest"]),
            (whole.image["digest"], whole.sbom["digest"]),
        } <= left
        assert len([one for one in graph.left_behind if one.subject == whole.image["digest"]]) == 3

    def test_an_artifact_that_is_an_index_comes_with_all_of_it(self, store: Store, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        parts = [
            layout.image([tar_layer({"a": text})], platform=f"linux/{text.decode()}") for text in (b"arm64", b"s390x")
        ]
        index = layout.index(parts, subject={key: image[key] for key in ("mediaType", "digest", "size")})
        document = json.loads((layout.path / "index.json").read_bytes())
        document["manifests"].append(index)
        (layout.path / "index.json").write_text(json.dumps(document))
        store.fill(layout)
        choice = PlatformChoice((parse_platform("linux/amd64"),), explicit=False)
        graph = graph_of(store.source(platforms=choice, referrers="along"))
        assert hanging(graph) == {(image["digest"], index["digest"], None)}
        assert {m.descriptor.digest for m in graph.manifests} == {
            image["digest"],
            index["digest"],
            *(p["digest"] for p in parts),
        }

    def test_left_behind_it_is_not_moved(self, store: Store, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        store.fill(layout)
        graph = graph_of(store.source(referrers="left"))
        assert [manifest.descriptor.digest for manifest in graph.manifests] == [found.image["digest"]]
        assert hanging(graph) == set()
        # A registry is not even asked.
        if not store.is_remote:
            assert {left.digest for left in graph.left_behind} == found.hanging
            assert {left.why for left in graph.left_behind} == {UNWANTED}


class TestTransfers:
    def test_all_of_it_arrives_byte_for_byte(self, store: Store, other: Store, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        store.fill(layout)
        report = transfer.copy(store.source(referrers="along"), other.sink())
        assert hanging(report.graph) == expected(found)
        assert other.images()["v1"] == layout.file(found.image["digest"]).read_bytes()
        assert other.called() == {found.cosign_tag: found.cosign["digest"]}
        assert set(parts_of(layout).manifests) | set(parts_of(layout).blobs) <= other.blobs()
        for subject, referring in found.subjects().items():
            listed = {one["digest"]: one for one in other.hanging(subject)}
            assert listed.keys() == {one["digest"] for one in referring}
            for one in referring:
                assert listed[one["digest"]]["artifactType"] == one["artifactType"]
                annotations = dict(listed[one["digest"]].get("annotations") or {})
                # In an index.json it stands which entry is no image of its own.
                said = None if other.is_remote else subject
                assert annotations.pop("io.containerd.manifest.subject", None) == said
                assert annotations == (found.listed(layout, one).get("annotations") or {})

    def test_left_behind_nothing_of_it_arrives(self, store: Store, other: Store, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        store.fill(layout)
        transfer.copy(store.source(referrers="left"), other.sink())
        assert set(other.images()) == {"v1"}
        hung = {digest_of(raw) for raw in parts_of(layout, *found.referrers, found.cosign).manifests.values()}
        assert hung.isdisjoint(other.blobs())

    def test_what_belongs_to_no_image_here_is_one_itself(self, store: Store, other: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        elsewhere = layout.image([b""])
        alone = referrer(layout, elsewhere, "a/b", b"alone")
        layout.name(alone, "alone")
        layout.name(alone, cosign_tag(elsewhere))
        store.fill(layout)
        transfer.copy(store.source(referrers="along"), other.sink())
        assert {"v1", "alone"} <= set(other.images())
