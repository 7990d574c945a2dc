"""Each image of an index gives the same graph from its own entries as from all entries."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocistream.errors import NotFoundError
from ocistream.layout.image_lookup import ImageLookup
from ocistream.layout.image_selection import Selection, select_named_images
from ocistream.layout.index import LayoutIndex
from ocistream.layout.index_walk import IndexWalk
from ocistream.layout.source import LayoutSource
from ocistream.oci.graph import Graph
from ocistream.oci.referrers import SUBJECT_MISSING, UNREADABLE, ReferrerMode, fallback_tag
from ocistream.oci.walk import Need, run_walk
from tests.images import Layout, small_image, two_platforms
from tests.signed_image import signed

#: Each name, and the number of referrers that are copied with its image.
REFERRERS = {"signed": 4, "two": 1, "docker.io/library/app:1": 0, "app:1": 0, "listed": 1}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Return a layout with named images, referrers of all kinds, and entries that belong to no image."""
    layout = Layout(tmp_path / "layout")
    signed(layout).enter(layout, "signed")
    child = layout.read(two_platforms(layout, name="two")["digest"])["manifests"][1]
    layout.name(small_image(layout, annotations={"image": "app"}), "docker.io/library/app:1")
    listed = small_image(layout, annotations={"image": "listed"})
    layout.name(listed, "listed")
    layout.index([layout.artifact(b"in a list", subject=listed)], name=fallback_tag(listed["digest"]))
    layout.enter(child, layout.artifact(b"of a child", subject=child))
    return layout


def lookup_of(layout: Layout, reads: list[str] | None = None) -> tuple[ImageLookup, LayoutSource]:
    source = LayoutSource(layout.path)

    def read(need: Need) -> bytes | None:
        if reads is not None:
            reads.append(need.digest)
        return source.read(need)

    return ImageLookup(source.read_index(), read), source


def graph(source: LayoutSource, index: LayoutIndex, name: str, referrers: ReferrerMode = "copy") -> Graph:
    return run_walk(IndexWalk(index, Selection(select_named_images([name]), referrers=referrers)).run(), source.read)


@pytest.mark.parametrize("referrers", ["copy", "skip"])
@pytest.mark.parametrize("name", REFERRERS)
def test_an_image_has_the_same_graph(layout: Layout, name: str, referrers: ReferrerMode) -> None:
    lookup, source = lookup_of(layout)
    of_all = graph(source, source.read_index(), name, referrers)
    own = lookup.find(name)
    assert len(own.entries) < len(source.read_index().entries)
    assert graph(source, own, name, referrers) == of_all
    assert len(list(of_all.all_referrers)) == (REFERRERS[name] if referrers == "copy" else 0)


def test_the_entries_of_other_images_are_not_read_for_an_image(layout: Layout) -> None:
    reads: list[str] = []
    lookup, _ = lookup_of(layout, reads)
    before = len(reads)
    assert before == len(set(reads))
    lookup.find("app:1")
    assert len(reads) == before


def test_an_unknown_name_is_an_error_that_names_the_images(layout: Layout) -> None:
    lookup, source = lookup_of(layout)
    with pytest.raises(NotFoundError) as caught:
        graph(source, lookup.find("none"), "none")
    assert caught.value.hint is not None
    assert "docker.io/library/app:1" in caught.value.hint


def test_the_listing_has_images_and_referrers_without_a_subject(layout: Layout) -> None:
    subject = {**small_image(layout), "digest": f"sha256:{'0' * 64}"}
    orphan = layout.artifact(b"of nothing", subject=subject)
    unnamed = small_image(layout, annotations={"image": "unnamed"})
    missing = {**unnamed, "digest": f"sha256:{'1' * 64}"}
    layout.enter(orphan, unnamed, missing)
    roots, skipped = lookup_of(layout)[0].list_images()
    images = [root.name or root.descriptor.digest for root in roots if not root.is_stray]
    assert images == ["signed", "two", "docker.io/library/app:1", "listed", unnamed["digest"]]
    assert {referrer.digest: referrer.reason for referrer in skipped} == {
        orphan["digest"]: SUBJECT_MISSING,
        missing["digest"]: UNREADABLE,
    }
