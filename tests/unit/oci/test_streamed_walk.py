"""A walk whose documents come from a stream searches each of them once."""

from __future__ import annotations

from ocistream.layout.image_selection import ALL_IMAGES
from ocistream.layout.index import parse_index_json
from ocistream.layout.index_walk import IndexWalk
from ocistream.oci.walk import StreamedWalk
from tests.images import Layout


def test_each_needed_document_is_searched_once(layout: Layout) -> None:
    digests = [layout.image([b"%d" % number], name=f"app:{number}")["digest"] for number in range(20)]
    index = parse_index_json((layout.path / "index.json").read_bytes())
    searched: list[str] = []
    walk = IndexWalk(index, ALL_IMAGES)
    streamed = StreamedWalk(walk.run(), lambda need: searched.append(need.digest))
    streamed.answer_found()
    for digest in reversed(digests):
        streamed.answer(streamed.needs[digest], layout.file(digest).read_bytes())
    assert searched == digests
    assert streamed.result is not None
    assert [root.descriptor.digest for root in streamed.result.roots] == digests
