"""What a stream has brought of a graph's needs: it is given once, and kept for another graph up to a limit."""

from __future__ import annotations

import pytest

from ocistream import limits
from ocistream.archive.contents import ArchiveContents
from ocistream.archive.docker_stream import StreamBuffer
from ocistream.archive.stream_source import BufferedManifests
from ocistream.layout.index import parse_index_json, select_every_image
from ocistream.layout.index_graph import IndexGraphBuilder
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.platforms import ALL_PLATFORMS
from tests.images import Layout, small_image, two_platforms
from tests.observers import NothingEarly


def test_a_second_graph_is_made_of_what_the_first_one_was_given(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = two_platforms(layout, name="app")
    digests = [index["digest"], *(child["digest"] for child in layout.read(index["digest"])["manifests"])]
    passed, given = StreamBuffer(ArchiveContents()), set[str]()
    passed.buffered = {digest: layout.file(digest).read_bytes() for digest in digests}
    answering = BufferedManifests(passed, given)
    entries = parse_index_json((layout.path / "index.json").read_bytes())

    def made() -> list[str]:
        gathering = IndexGraphBuilder(select_every_image, ALL_PLATFORMS, "listed")
        gathering.begin(*entries)
        missing = []
        while (needed := answering.next_needed(gathering, NothingEarly())) is not None:
            missing.append(needed.digest)
            gathering.mark_missing(needed.digest)
        return missing

    assert made() == []
    assert given == set(digests)
    assert passed.buffered == {}
    assert (answering.is_complete, made()) == (True, [])
    # With more than a graph may have, nothing is kept.
    monkeypatch.setattr(limits, "MAX_GRAPH_BYTES", 1)
    answering.keep("sha256:x", b"more")
    keeps_nothing = not answering.is_complete
    monkeypatch.undo()
    assert (keeps_nothing, made()) == (True, [index["digest"]])


def test_manifests_that_the_sink_gives_back_are_noted(layout: Layout) -> None:
    image = small_image(layout, name="app")
    raw = layout.file(image["digest"]).read_bytes()
    passed = StreamBuffer(ArchiveContents())
    passed.spilled = {image["digest"]: Descriptor(UNKNOWN_MEDIA_TYPE, image["digest"], len(raw))}
    noted: list[tuple[str, bytes]] = []

    class GivesBack(NothingEarly):
        def read_back(self, descriptor: Descriptor) -> bytes:
            return layout.file(descriptor.digest).read_bytes()

    answering = BufferedManifests(passed, set(), on_recalled=lambda digest, found: noted.append((digest, found)))
    gathering = IndexGraphBuilder(select_every_image, ALL_PLATFORMS, "listed")
    gathering.begin(*parse_index_json((layout.path / "index.json").read_bytes()))
    answering.supply_buffered(gathering, GivesBack())
    assert noted == [(image["digest"], raw)]
