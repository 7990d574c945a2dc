"""What a stream has brought of a graph's needs: it is given once, and kept for another graph up to a limit."""

from __future__ import annotations

import pytest

from ocistream import limits
from ocistream.archive.docker_stream import Passed
from ocistream.archive.entries import Contents
from ocistream.archive.stream_blobs import Answering
from ocistream.layout.index import every_image, read_index
from ocistream.layout.index_entries import Gathering
from ocistream.oci.descriptor import UNKNOWN_TYPE, Descriptor
from ocistream.oci.platforms import ALL_PLATFORMS
from tests.images import Layout, small_image, two_platforms
from tests.observers import NothingEarly


def test_a_second_graph_is_made_of_what_the_first_one_was_given(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = two_platforms(layout, name="app")
    digests = [index["digest"], *(child["digest"] for child in layout.read(index["digest"])["manifests"])]
    passed, given = Passed(Contents()), set[str]()
    passed.held = {digest: layout.file(digest).read_bytes() for digest in digests}
    answering = Answering(passed, given)
    entries = read_index((layout.path / "index.json").read_bytes())

    def made() -> list[str]:
        gathering = Gathering(every_image, ALL_PLATFORMS, "listed")
        gathering.begin(*entries)
        missing = []
        while (needed := answering.next_need(gathering, NothingEarly())) is not None:
            missing.append(needed.digest)
            gathering.lacks(needed.digest)
        return missing

    assert made() == []
    assert given == set(digests)
    assert passed.held == {}
    assert (answering.has_all, made()) == (True, [])
    # With more than a graph may have, nothing is kept.
    monkeypatch.setattr(limits, "MAX_GRAPH_BYTES", 1)
    answering.keep("sha256:x", b"more")
    keeps_nothing = not answering.has_all
    monkeypatch.undo()
    assert (keeps_nothing, made()) == (True, [index["digest"]])


def test_manifests_that_the_sink_gives_back_are_noted(layout: Layout) -> None:
    image = small_image(layout, name="app")
    raw = layout.file(image["digest"]).read_bytes()
    passed = Passed(Contents())
    passed.spilled = {image["digest"]: Descriptor(UNKNOWN_TYPE, image["digest"], len(raw))}
    noted: list[tuple[str, bytes]] = []

    class GivesBack(NothingEarly):
        def recall(self, descriptor: Descriptor) -> bytes:
            return layout.file(descriptor.digest).read_bytes()

    answering = Answering(passed, set(), note=lambda digest, found: noted.append((digest, found)))
    gathering = Gathering(every_image, ALL_PLATFORMS, "listed")
    gathering.begin(*read_index((layout.path / "index.json").read_bytes()))
    answering.answer(gathering, GivesBack())
    assert noted == [(image["digest"], raw)]
