"""A walk whose documents come from a stream: each is searched once."""

from __future__ import annotations

from ocistream.layout.index import parse_index_json, select_every_image
from ocistream.layout.index_walk import IndexWalk
from ocistream.oci.platforms import ALL_PLATFORMS
from ocistream.oci.walk import StreamedWalk
from tests.images import Layout


def test_each_need_is_searched_once_however_many_documents_arrive(layout: Layout) -> None:
    digests = [layout.image([b"%d" % number], name=f"app:{number}")["digest"] for number in range(20)]
    index = parse_index_json((layout.path / "index.json").read_bytes())
    searched: list[str] = []
    walk = IndexWalk(index, select_every_image, ALL_PLATFORMS, "list")
    streamed = StreamedWalk(walk.run(), lambda need: searched.append(need.digest))
    streamed.answer_found()
    for digest in reversed(digests):
        streamed.answer(streamed.needs[digest], layout.file(digest).read_bytes())
    assert searched == digests
    assert streamed.result is not None
    assert [root.descriptor.digest for root in streamed.result.roots] == digests
