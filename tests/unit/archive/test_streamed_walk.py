"""A walk whose documents come from a stream: each is found once, and kept for another graph up to a limit."""

from __future__ import annotations

import pytest

from ocistream import limits
from ocistream.archive.contents import ArchiveContents
from ocistream.archive.stream_buffer import StreamBuffer
from ocistream.archive.streamed_walk import StreamedWalk
from ocistream.layout.index import parse_index_json, select_every_image
from ocistream.layout.index_walk import IndexWalk
from ocistream.oci.graph import Graph
from ocistream.oci.platforms import ALL_PLATFORMS
from tests.images import Layout, two_platforms


def streamed_walk(layout: Layout, buffer: StreamBuffer) -> StreamedWalk[Graph]:
    index = parse_index_json((layout.path / "index.json").read_bytes())
    walk = IndexWalk(index, select_every_image, ALL_PLATFORMS, "listed")
    streamed = StreamedWalk(walk.run(), buffer.find)
    streamed.answer_found()
    return streamed


def test_a_second_graph_is_made_of_the_manifests_of_the_first_one(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = two_platforms(layout, name="app")
    digests = [index["digest"], *(child["digest"] for child in layout.read(index["digest"])["manifests"])]
    buffer = StreamBuffer(ArchiveContents())
    buffer.buffered = {digest: layout.file(digest).read_bytes() for digest in digests}

    def missing() -> list[str]:
        return list(streamed_walk(layout, buffer).needs)

    assert missing() == []
    assert buffer.delivered == set(digests)
    assert buffer.buffered == {}
    assert (buffer.has_all_manifests, missing()) == (True, [])
    # With more than a graph may have, nothing is kept.
    monkeypatch.setattr(limits, "MAX_GRAPH_BYTES", 1)
    buffer.deliver_manifest("sha256:x", b"more")
    keeps_nothing = not buffer.has_all_manifests
    monkeypatch.undo()
    assert (keeps_nothing, missing()) == (True, [index["digest"]])


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
