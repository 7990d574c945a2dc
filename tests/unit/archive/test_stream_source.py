"""A walk whose documents come from a stream: each is found once, and kept for another graph up to a limit."""

from __future__ import annotations

from functools import partial

import pytest

from ocistream import limits
from ocistream.archive.contents import ArchiveContents
from ocistream.archive.docker_stream import StreamBuffer
from ocistream.archive.stream_source import BufferedManifests
from ocistream.archive.streamed_walk import StreamedWalk
from ocistream.layout.index import parse_index_json, select_every_image
from ocistream.layout.index_walk import IndexWalk
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.graph import Graph
from ocistream.oci.platforms import ALL_PLATFORMS
from ocistream.transfer.interfaces import EarlyBlobs
from tests.images import Layout, small_image, two_platforms
from tests.observers import NothingEarly


def streamed_walk(layout: Layout, manifests: BufferedManifests, early_blobs: EarlyBlobs) -> StreamedWalk[Graph]:
    index = parse_index_json((layout.path / "index.json").read_bytes())
    walk = IndexWalk(index, select_every_image, ALL_PLATFORMS, "listed")
    streamed = StreamedWalk(walk.run(), partial(manifests.find, early_blobs))
    streamed.answer_found()
    return streamed


def test_a_second_graph_is_made_of_the_manifests_of_the_first_one(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = two_platforms(layout, name="app")
    digests = [index["digest"], *(child["digest"] for child in layout.read(index["digest"])["manifests"])]
    buffer, delivered = StreamBuffer(ArchiveContents()), set[str]()
    buffer.buffered = {digest: layout.file(digest).read_bytes() for digest in digests}
    manifests = BufferedManifests(buffer, delivered)

    def missing() -> list[str]:
        return list(streamed_walk(layout, manifests, NothingEarly()).needs)

    assert missing() == []
    assert delivered == set(digests)
    assert buffer.buffered == {}
    assert (manifests.is_complete, missing()) == (True, [])
    # With more than a graph may have, nothing is kept.
    monkeypatch.setattr(limits, "MAX_GRAPH_BYTES", 1)
    manifests.keep("sha256:x", b"more")
    keeps_nothing = not manifests.is_complete
    monkeypatch.undo()
    assert (keeps_nothing, missing()) == (True, [index["digest"]])


def test_manifests_that_the_destination_read_back_are_reported(layout: Layout) -> None:
    image = small_image(layout, name="app")
    raw = layout.file(image["digest"]).read_bytes()
    buffer = StreamBuffer(ArchiveContents())
    buffer.spilled = {image["digest"]: Descriptor(UNKNOWN_MEDIA_TYPE, image["digest"], len(raw))}
    recalled: list[tuple[str, bytes]] = []

    class ReadsBack(NothingEarly):
        def read_back(self, descriptor: Descriptor) -> bytes:
            return layout.file(descriptor.digest).read_bytes()

    manifests = BufferedManifests(buffer, set(), on_recalled=lambda digest, found: recalled.append((digest, found)))
    assert streamed_walk(layout, manifests, ReadsBack()).result is not None
    assert recalled == [(image["digest"], raw)]


def test_each_need_is_searched_once_however_many_documents_arrive(layout: Layout) -> None:
    digests = [layout.image([b"%d" % number], name=f"app:{number}")["digest"] for number in range(20)]
    index = parse_index_json((layout.path / "index.json").read_bytes())
    searched: list[str] = []
    walk = IndexWalk(index, select_every_image, ALL_PLATFORMS, "listed")
    streamed = StreamedWalk(walk.run(), lambda need: searched.append(need.digest))
    streamed.answer_found()
    for digest in reversed(digests):
        streamed.answer(streamed.needs[digest], layout.file(digest).read_bytes())
    assert searched == digests
    assert streamed.result is not None
    assert [root.descriptor.digest for root in streamed.result.roots] == digests
