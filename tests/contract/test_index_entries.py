"""The entries of an index.json, sorted: images, what hangs on them, and what belongs to nothing that moves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import pytest

from ocistream import limits
from ocistream.attachments import GONE, ORPHANED, SAME_TAG, UNREADABLE, Referrers
from ocistream.errors import ArchiveError, UnsupportedError, UsageError
from ocistream.graph import Graph
from ocistream.model import Platform
from ocistream.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.stores.gathering import Gathering
from ocistream.stores.index import Selection, images_named, only_image, parse_index, some_images
from tests.images import OCI_INDEX, Descriptor, Layout, small_image, tar_layer
from tests.signed import REF_NAME, Signed, cosign_signature, cosign_tag, referrer, signed


def enter(layout: Layout, *entries: Descriptor, name: str | None = None) -> None:
    """Enter more into index.json, under a name or under none."""
    path = layout.path / "index.json"
    document = json.loads(path.read_bytes())
    named: dict[str, Any] = {"annotations": {REF_NAME: name}} if name else {}
    document["manifests"] += [{**entry, **named} for entry in entries]
    path.write_text(json.dumps(document))


def graph_of(
    layout: Layout,
    select: Selection = only_image,
    *,
    first: Iterable[str] = (),
    referrers: Referrers = "along",
    platforms: PlatformChoice = ALL_PLATFORMS,
) -> Graph:
    """Gather what a layout has; `first` names what passes before anything else is asked for, as in a pipe."""
    gathering = Gathering(select, platforms, referrers)
    gathering.begin(parse_index((layout.path / "index.json").read_bytes()))
    for digest in first:
        if gathering.needs(digest):
            gathering.supply(digest, layout.file(digest).read_bytes())
    while (needed := gathering.needed()) is not None:
        if layout.file(needed.digest).exists():
            gathering.supply(needed.digest, layout.file(needed.digest).read_bytes())
        else:
            gathering.lacks(needed.digest)
    return gathering.graph()


def roots_in(graph: Graph) -> list[str]:
    return [root.descriptor.digest for root in graph.roots]


def hanging(graph: Graph) -> set[str]:
    return {one.descriptor.digest for one in graph.all_attached}


class TestImages:
    def test_without_names_the_image_is_what_refers_to_nothing(self, layout: Layout) -> None:
        found = signed(layout)
        # In whatever order they stand.
        enter(layout, found.attestation, found.sbom, found.image, found.signature)
        graph = graph_of(layout)
        assert roots_in(graph) == [found.image["digest"]]
        assert hanging(graph) == {one["digest"] for one in found.referrers}

    def test_two_images_without_names_are_no_choice(self, layout: Layout) -> None:
        enter(layout, small_image(layout), layout.image([b""]))
        with pytest.raises(UsageError, match="there are 2 images in it"):
            graph_of(layout)

    def test_an_image_without_a_name_goes_where_all_go(self, layout: Layout) -> None:
        named, nameless = small_image(layout, name="v1"), layout.image([b""])
        enter(layout, nameless)
        assert roots_in(graph_of(layout, some_images)) == [named["digest"], nameless["digest"]]
        with pytest.raises(UsageError, match="there are 2 images in it") as caught:
            graph_of(layout, only_image)
        assert caught.value.hint == f"choose one with --image: v1, {nameless['digest']}"
        assert roots_in(graph_of(layout, images_named(["v1"]))) == [named["digest"]]

    def test_what_is_a_part_of_the_image_is_not_a_second_one(self, layout: Layout) -> None:
        children = [layout.image([b""], platform=f"linux/{cpu}") for cpu in ("amd64", "arm64")]
        index = layout.index(children, name="v1")
        enter(layout, *children)
        for platforms in (ALL_PLATFORMS, PlatformChoice((Platform("linux", "arm64"),))):
            graph = graph_of(layout, platforms=platforms)
            assert roots_in(graph) == [(index if platforms is ALL_PLATFORMS else children[1])["digest"]]
            assert graph.left_behind == ()

    def test_a_referrer_of_an_image_that_is_not_here_is_left_behind(self, layout: Layout) -> None:
        image, elsewhere = small_image(layout, name="v1"), layout.image([b"elsewhere"])
        lost = referrer(layout, elsewhere, "a/sbom", b"lost")
        enter(layout, lost)
        signature = cosign_signature(layout, elsewhere)
        layout.name(signature, cosign_tag(elsewhere))
        graph = graph_of(layout)
        assert roots_in(graph) == [image["digest"]]
        assert [(one.kind, one.subject, one.digest, one.why) for one in graph.left_behind] == [
            ("SBOM", elsewhere["digest"], lost["digest"], ORPHANED),
            ("signature", elsewhere["digest"], signature["digest"], ORPHANED),
        ]
        # Whoever chooses images by name has chosen.
        layout.name(layout.image([b"another"]), "v2")
        assert graph_of(layout, images_named(["v1"])).left_behind == ()
        assert {lost["digest"], signature["digest"]} < set(roots_in(graph_of(layout, some_images)))

    def test_an_entry_whose_manifest_is_missing_is_left_behind(self, layout: Layout) -> None:
        image, missing = small_image(layout, name="v1"), layout.image([b""])
        enter(layout, missing)
        layout.file(missing["digest"]).unlink()
        graph = graph_of(layout)
        assert roots_in(graph) == [image["digest"]]
        assert [(one.subject, one.digest, one.why) for one in graph.left_behind] == [
            (None, missing["digest"], UNREADABLE)
        ]

    def test_all_images_without_a_place_are_named_but_before_blobs_move_those_with_a_name(self, layout: Layout) -> None:
        layout.name(small_image(layout), "v1")
        layout.name(layout.image([b"2"]), "v2")
        enter(layout, layout.image([b"3"]))
        with pytest.raises(UsageError, match="there are 3 images in it"):
            graph_of(layout, only_image)
        gathering = Gathering(only_image, ALL_PLATFORMS, "along")
        gathering.begin(parse_index((layout.path / "index.json").read_bytes()))
        with pytest.raises(UsageError, match="there are 2 images in it"):
            gathering.check_choice()

    def test_what_refers_to_something_that_is_not_here_is_an_image(self, layout: Layout) -> None:
        lost = referrer(layout, layout.image([b"elsewhere"]), "a/b", b"lost")
        enter(layout, lost)
        assert roots_in(graph_of(layout)) == [lost["digest"]]
        small_image(layout, name="v1")
        assert lost["digest"] in roots_in(graph_of(layout, some_images))
        assert lost["digest"] not in roots_in(graph_of(layout, only_image))

    def test_signatures_alone_are_images(self, layout: Layout) -> None:
        image = layout.image([b"elsewhere"])
        for suffix in (".sig", ".att"):
            layout.name(layout.artifact(suffix.encode()), cosign_tag(image, suffix))
        assert len(graph_of(layout, some_images).roots) == 2

    def test_what_is_asked_for_by_its_digest_is_one(self, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        graph = graph_of(layout, images_named([found.signature["digest"]]))
        assert roots_in(graph) == [found.signature["digest"]]
        assert hanging(graph) == {found.attestation["digest"]}

    def test_what_is_asked_for_itself_does_not_hang_on_anything(self, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        graph = graph_of(layout, images_named(["v1", found.sbom["digest"]]))
        assert roots_in(graph) == [found.image["digest"], found.sbom["digest"]]
        assert hanging(graph) == found.hanging - {found.sbom["digest"]}

    def test_an_unreadable_entry_without_a_name_matters_only_where_it_is_chosen(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        enter(layout, layout.blob(b"{no json", OCI_INDEX))
        assert roots_in(graph_of(layout)) == [image["digest"]]
        with pytest.raises(ArchiveError, match="JSON"):
            graph_of(layout, some_images)


class TestHanging:
    def test_the_same_comes_of_it_in_whatever_order_it_passes(self, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        digests = [found.image["digest"], *sorted(found.hanging)]
        expected = graph_of(layout)
        assert hanging(expected) == found.hanging
        for first in (digests, digests[::-1]):
            again = graph_of(layout, first=first)
            assert [m.descriptor for m in again.manifests] == [m.descriptor for m in expected.manifests]
            assert again.attached == expected.attached

    def test_an_entry_that_is_a_child_of_an_index_as_well_is_not_lost_in_a_pipe(self, layout: Layout) -> None:
        children = [layout.image([tar_layer({"a": b"b"})], platform=f"linux/{cpu}") for cpu in ("amd64", "arm64")]
        enter(layout, *children)
        index = layout.index(children, name="v1")
        graph = graph_of(layout, first=[*(child["digest"] for child in children), index["digest"]])
        assert roots_in(graph) == [index["digest"]]
        assert len(graph.manifests) == 3
        assert not graph.absent

    def test_who_is_listed_and_not_there_is_said(self, layout: Layout) -> None:
        found = signed(layout)
        layout.name(found.image, "v1")
        layout.name(layout.index([found.signature, found.sbom]), found.image["digest"].replace(":", "-"))
        layout.file(found.sbom["digest"]).unlink()
        graph = graph_of(layout)
        assert hanging(graph) == {found.signature["digest"]}
        (left,) = graph.left_behind
        assert (left.why, left.kind, left.digest) == (GONE, "SBOM", found.sbom["digest"])

    def test_a_list_of_what_refers_to_something_else_is_left(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        elsewhere = layout.image([b""])
        lost = referrer(layout, elsewhere, "a/b", b"lost")
        layout.name(layout.index([lost]), elsewhere["digest"].replace(":", "-"))
        graph = graph_of(layout)
        assert roots_in(graph) == [image["digest"]]
        assert len(graph.manifests) == 1
        assert [left.why for left in graph.left_behind] == [ORPHANED]

    def test_two_signatures_under_one_tag_cannot_both_go(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        for host in ("a", "b"):
            made = cosign_signature(layout, layout.image([host.encode()]))
            layout.name(made, f"{host}.example.com/app:{cosign_tag(image)}")
        graph = graph_of(layout)
        assert len(hanging(graph)) == 1
        assert [left.why for left in graph.left_behind] == [SAME_TAG]

    def test_a_signature_whose_manifest_is_not_there_is_absent(self, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        layout.file(found.cosign["digest"]).unlink()
        assert [one.digest for one in graph_of(layout).absent] == [found.cosign["digest"]]


class TestBounds:
    def test_what_may_be_an_image_is_held_up_to_a_bound(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        small_image(layout, name="v1")
        for number in range(3):
            enter(layout, layout.image([bytes([number])]))
        size = sum(
            layout.file(entry.digest).stat().st_size
            for entry in parse_index((layout.path / "index.json").read_bytes())[1:]
        )
        monkeypatch.setattr(limits, "MAX_HELD_JSON", size)
        assert len(graph_of(layout, some_images).roots) == 4
        monkeypatch.setattr(limits, "MAX_HELD_JSON", size - 1)
        with pytest.raises(ArchiveError, match="manifests that may be images"):
            graph_of(layout, some_images)
        # Manifests of images that are not chosen are dropped instead.
        assert len(graph_of(layout, images_named(["v1"])).roots) == 1

    def test_only_so_many_may_hang_on_images(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        made: Signed = signed(layout)
        made.enter(layout, "v1")
        monkeypatch.setattr(limits, "MAX_ATTACHED", 4)
        assert len(hanging(graph_of(layout))) == 4
        monkeypatch.setattr(limits, "MAX_ATTACHED", 3)
        with pytest.raises(Exception, match="more than 3 signatures") as caught:
            graph_of(layout)
        assert "--no-referrers" in caught.value.hint  # type: ignore[attr-defined]

    def test_all_that_lists_name_counts_whatever_comes_of_it(
        self, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = small_image(layout, name="v1")
        gone = [referrer(layout, image, "a/b", b"%d" % number) for number in range(4)]
        for one in gone:
            layout.file(one["digest"]).unlink()
        layout.name(layout.index(gone), image["digest"].replace(":", "-"))
        monkeypatch.setattr(limits, "MAX_ATTACHED", 4)
        assert len(graph_of(layout).left_behind) == 4
        monkeypatch.setattr(limits, "MAX_ATTACHED", 3)
        with pytest.raises(UnsupportedError, match="more than 3 signatures, SBOMs and the like are listed"):
            graph_of(layout)

    def test_how_deep_it_hangs_is_bounded_however_long_the_chain(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        deepest = chain(layout, image, limits.MAX_ATTACHED_DEPTH)
        assert deepest["digest"] in hanging(graph_of(layout))
        chain(layout, deepest, 300)
        with pytest.raises(UnsupportedError, match=f"more than {limits.MAX_ATTACHED_DEPTH} deep") as caught:
            graph_of(layout)
        assert "--no-referrers" in (caught.value.hint or "")

    @pytest.mark.parametrize("referrers", ["along", "left"])
    def test_many_entries_with_one_subject_are_looked_at_once_each(self, layout: Layout, referrers: Referrers) -> None:
        image = small_image(layout, name="v1")
        calls = []
        for number in range(2):
            for one in range(200):
                enter(layout, referrer(layout, image, "a/b", b"%d.%d" % (number, one)))
            calls.append(calls_of(lambda: graph_of(layout, referrers=referrers)))
        assert calls[1] < 2.2 * calls[0]

    def test_a_long_chain_that_is_left_behind_is_gone_through_once(self, layout: Layout) -> None:
        end = small_image(layout, name="v1")
        calls = []
        for number in range(2):
            end = chain(layout, end, 200)
            calls.append(calls_of(lambda: graph_of(layout, referrers="left")))
            assert len(graph_of(layout, referrers="left").left_behind) == 200 * (number + 1)
        assert calls[1] < 2.2 * calls[0]


def chain(layout: Layout, subject: Descriptor, length: int) -> Descriptor:
    """Enter something that hangs on a subject, something that hangs on that, and so on; return the last."""
    made: list[Descriptor] = []
    for number in range(length):
        made.append(referrer(layout, made[-1] if made else subject, "a/b", b"%d" % number))
    enter(layout, *made)
    return made[-1]


def calls_of(work: Callable[[], object]) -> int:
    """Count the calls of Python's functions that some work makes."""
    calls = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls
