"""The entries of an index.json: which ones are images, which are referrers, and which are skipped.

A pipe gives the same result in any order; see `piped`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from tests.archives import blob_name, items_of, tar_of
from tests.contract.adapter import archive_source, bytes_source, layout_source
from tests.contract.adapter_types import (
    MISSING,
    NO_SUBJECT,
    SAME_TAG,
    UNREADABLE,
    Listing,
    ReferrerChoice,
    Wanted,
)
from tests.images import OCI_INDEX, Descriptor, Layout, small_image, tar_layer
from tests.signed_image import REF_NAME, cosign_signature, cosign_tag, referrer, signed

ONLY = Wanted(referrers="copy", images="only")
IMAGES = Wanted(referrers="copy", images="images")


def named(*names: str) -> Wanted:
    return Wanted(referrers="copy", images=names)


def listing_of(layout: Layout, wanted: Wanted = ONLY) -> Listing:
    return layout_source(layout.path, wanted).list()


def piped(layout: Layout, wanted: Wanted, first: Sequence[str]) -> Listing:
    """List an archive through a pipe in which these blobs come first, after index.json."""
    items = dict(items_of(layout))
    order = ["oci-layout", "index.json", *map(blob_name, first)]
    order += [name for name in items if name not in order]
    return bytes_source(tar_of((name, items[name]) for name in order), wanted).list()


def archived(path: Path) -> Listing:
    with archive_source(path, ONLY) as source:
        return source.list()


def images(listing: Listing) -> list[str]:
    return [digest for _, digest in listing.images]


def referrers(listing: Listing) -> set[str]:
    return {one.digest for one in listing.referrers}


class TestImages:
    def test_without_names_the_image_is_the_entry_without_a_subject(self, layout: Layout) -> None:
        found = signed(layout)
        layout.enter(found.attestation, found.sbom, found.image, found.signature)
        listing = listing_of(layout)
        assert images(listing) == [found.image["digest"]]
        assert referrers(listing) == {one["digest"] for one in found.referrers}

    def test_two_images_without_names_are_ambiguous(self, layout: Layout) -> None:
        layout.enter(small_image(layout), layout.image([b""]))
        with pytest.raises(UsageError, match="the archive or layout has 2 images"):
            listing_of(layout)

    def test_an_image_without_a_name_counts_as_an_image(self, layout: Layout) -> None:
        first, nameless = small_image(layout, name="v1"), layout.image([b""])
        layout.enter(nameless)
        assert images(listing_of(layout, IMAGES)) == [first["digest"], nameless["digest"]]
        with pytest.raises(UsageError, match="the archive or layout has 2 images") as caught:
            listing_of(layout)
        assert caught.value.hint == f"choose one with --image: v1, {nameless['digest']}"
        assert images(listing_of(layout, named("v1"))) == [first["digest"]]

    @pytest.mark.parametrize("platforms", [(), ("linux/arm64",)])
    def test_a_child_of_the_image_is_not_a_second_image(self, layout: Layout, platforms: tuple[str, ...]) -> None:
        children = [layout.image([b""], platform=f"linux/{cpu}") for cpu in ("amd64", "arm64")]
        index = layout.index(children, name="v1")
        layout.enter(*children)
        listing = listing_of(layout, Wanted(platforms, referrers="copy", images="only"))
        assert images(listing) == [(children[1] if platforms else index)["digest"]]
        assert listing.skipped == ()

    def test_a_referrer_without_its_subject_is_skipped_beside_an_image(self, layout: Layout) -> None:
        image, elsewhere = small_image(layout, name="v1"), layout.image([b"elsewhere"])
        lost = referrer(layout, elsewhere, "a/sbom", b"lost")
        layout.enter(lost)
        signature = cosign_signature(layout, elsewhere)
        layout.name(signature, cosign_tag(elsewhere))
        listing = listing_of(layout)
        assert images(listing) == [image["digest"]]
        assert [(one.kind, one.subject, one.digest, one.reason) for one in listing.skipped] == [
            ("SBOM", elsewhere["digest"], lost["digest"], NO_SUBJECT),
            ("signature", elsewhere["digest"], signature["digest"], NO_SUBJECT),
        ]
        # If the user names images, nothing else is reported.
        layout.name(layout.image([b"another"]), "v2")
        assert listing_of(layout, named("v1")).skipped == ()
        assert {lost["digest"], signature["digest"]} < set(images(listing_of(layout, IMAGES)))

    def test_a_missing_manifest_without_a_name_is_skipped(self, layout: Layout) -> None:
        image, missing = small_image(layout, name="v1"), layout.image([b""])
        layout.enter(missing)
        layout.file(missing["digest"]).unlink()
        listing = listing_of(layout)
        assert images(listing) == [image["digest"]]
        assert [(one.subject, one.digest, one.reason) for one in listing.skipped] == [
            (None, missing["digest"], UNREADABLE)
        ]

    def test_a_referrer_alone_is_an_image(self, layout: Layout) -> None:
        lost = referrer(layout, layout.image([b"elsewhere"]), "a/b", b"lost")
        layout.enter(lost)
        assert images(listing_of(layout)) == [lost["digest"]]
        small_image(layout, name="v1")
        assert lost["digest"] in images(listing_of(layout, IMAGES))
        assert lost["digest"] not in images(listing_of(layout))

    def test_signatures_alone_are_images(self, layout: Layout) -> None:
        image = layout.image([b"elsewhere"])
        for suffix in (".sig", ".att"):
            layout.name(layout.artifact(suffix.encode()), cosign_tag(image, suffix))
        assert len(listing_of(layout, IMAGES).images) == 2

    def test_a_referrer_that_is_selected_by_its_digest_is_an_image(self, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        listing = listing_of(layout, named(found.signature["digest"]))
        assert images(listing) == [found.signature["digest"]]
        assert referrers(listing) == {found.attestation["digest"]}
        both = listing_of(layout, named("v1", found.sbom["digest"]))
        assert images(both) == [found.image["digest"], found.sbom["digest"]]
        assert referrers(both) == found.hanging - {found.sbom["digest"]}

    def test_an_unreadable_entry_without_a_name_matters_only_if_it_is_selected(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        layout.enter(layout.blob(b"{no json", OCI_INDEX))
        assert images(listing_of(layout)) == [image["digest"]]
        with pytest.raises(ArchiveError, match="JSON"):
            listing_of(layout, IMAGES)


class TestNames:
    @pytest.fixture
    def made(self, layout: Layout) -> list[Descriptor]:
        """Return three images with full names, two of which have the same tag."""
        names = ("docker.io/library/nginx:v1", "r.example/app:v2", "r.example/other:v1")
        made = [layout.image([name.encode()]) for name in names]
        entries = [
            {**image, "annotations": {REF_NAME: name.rpartition(":")[2], "io.containerd.image.name": name}}
            for image, name in zip(made, names, strict=True)
        ]
        layout.enter(*entries)
        return made

    @pytest.mark.parametrize(
        ("name", "place"), [("nginx:v1", 0), ("docker.io/library/nginx:v1", 0), ("r.example/app:v2", 1), ("v2", 1)]
    )
    def test_an_image_is_found_by_each_of_its_names(
        self, layout: Layout, made: list[Descriptor], name: str, place: int
    ) -> None:
        assert images(listing_of(layout, named(name))) == [made[place]["digest"]]

    def test_images_are_listed_in_the_order_of_the_request(self, layout: Layout, made: list[Descriptor]) -> None:
        first, second, _ = (image["digest"] for image in made)
        assert images(listing_of(layout, named("v2", first))) == [second, first]

    @pytest.mark.usefixtures("made")
    @pytest.mark.parametrize("name", ["v3", "nginx", "NGINX", "r.example/app", "", "sha256:" + "0" * 64])
    def test_the_error_for_a_missing_image_lists_the_others(self, layout: Layout, name: str) -> None:
        with pytest.raises(NotFoundError) as caught:
            listing_of(layout, named(name))
        assert "docker.io/library/nginx:v1, r.example/app:v2" in (caught.value.hint or "")

    @pytest.mark.usefixtures("made")
    def test_a_tag_of_two_images_is_ambiguous(self, layout: Layout) -> None:
        with pytest.raises(UsageError, match="2 images have the name 'v1'") as caught:
            listing_of(layout, named("v1"))
        assert "r.example/other:v1" in (caught.value.hint or "")

    def test_two_entries_of_one_image_are_one_image(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        layout.name(image, "v2")
        assert images(listing_of(layout)) == [image["digest"]]

    def test_an_empty_index_has_no_image(self, layout: Layout) -> None:
        with pytest.raises(NotFoundError):
            listing_of(layout)

    def test_a_long_list_of_names_is_shortened(self, layout: Layout) -> None:
        image = small_image(layout)
        layout.name(image, *(f"v{number}" for number in range(100)))
        with pytest.raises(NotFoundError) as caught:
            listing_of(layout, named("x"))
        assert len(caught.value.hint or "") < 1000
        assert "more" in (caught.value.hint or "")


class TestReferrers:
    def test_a_pipe_lists_the_same_in_any_order(self, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        order = [found.image["digest"], *sorted(found.hanging)]
        expected = listing_of(layout)
        assert referrers(expected) == found.hanging
        for first in (order, order[::-1]):
            again = piped(layout, ONLY, first)
            assert again.manifests == expected.manifests
            assert again.referrers == expected.referrers

    def test_an_entry_that_is_a_child_of_an_index_is_not_lost_in_a_pipe(self, layout: Layout) -> None:
        children = [layout.image([tar_layer({"a": b"b"})], platform=f"linux/{cpu}") for cpu in ("amd64", "arm64")]
        layout.enter(*children)
        index = layout.index(children, name="v1")
        listing = piped(layout, ONLY, [*(child["digest"] for child in children), index["digest"]])
        assert images(listing) == [index["digest"]]
        assert len(listing.manifests) == 3
        assert not listing.absent

    def test_a_listed_but_missing_referrer_is_skipped(self, layout: Layout) -> None:
        found = signed(layout)
        layout.name(found.image, "v1")
        layout.name(layout.index([found.signature, found.sbom]), found.image["digest"].replace(":", "-"))
        layout.file(found.sbom["digest"]).unlink()
        listing = listing_of(layout)
        assert referrers(listing) == {found.signature["digest"]}
        (skipped,) = listing.skipped
        assert (skipped.reason, skipped.kind, skipped.digest) == (MISSING, "SBOM", found.sbom["digest"])

    def test_a_list_of_referrers_of_another_image_is_skipped(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        elsewhere = layout.image([b""])
        lost = referrer(layout, elsewhere, "a/b", b"lost")
        layout.name(layout.index([lost]), elsewhere["digest"].replace(":", "-"))
        listing = listing_of(layout)
        assert images(listing) == [image["digest"]]
        assert len(listing.manifests) == 1
        assert [skipped.reason for skipped in listing.skipped] == [NO_SUBJECT]

    def test_one_of_two_signatures_with_the_same_tag_is_copied(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        for host in ("a", "b"):
            made = cosign_signature(layout, layout.image([host.encode()]))
            layout.name(made, f"{host}.example.com/app:{cosign_tag(image)}")
        listing = listing_of(layout)
        assert len(referrers(listing)) == 1
        assert [skipped.reason for skipped in listing.skipped] == [SAME_TAG]

    def test_a_missing_signature_is_absent(self, layout: Layout) -> None:
        found = signed(layout)
        found.enter(layout, "v1")
        layout.file(found.cosign["digest"]).unlink()
        assert listing_of(layout).absent == (found.cosign["digest"],)


class TestCorrupt:
    def test_an_entry_that_is_not_a_manifest_is_not_read(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        other = layout.blob(b"neither a manifest nor an index", "text/plain")
        layout.enter(other)
        layout.file(other["digest"]).write_bytes(b"damaged")
        assert images(listing_of(layout)) == [image["digest"]]

    @pytest.mark.parametrize("subject", [True, False])
    def test_an_entry_that_may_be_a_referrer_is_verified_by_every_source(self, layout: Layout, subject: bool) -> None:
        image = small_image(layout, name="v1")
        elsewhere = layout.image([b""])
        entry = referrer(layout, image if subject else elsewhere, "a/b", b"one")
        layout.enter(entry)
        file = layout.file(entry["digest"])
        file.chmod(0o644)
        file.write_bytes(file.read_bytes().replace(b"a/b", b"a/c"))
        archive = layout.path / "archive.tar"
        archive.write_bytes(tar_of(items_of(layout)))
        listings: list[Callable[[], object]] = [
            lambda: listing_of(layout),
            lambda: archived(archive),
            lambda: piped(layout, ONLY, [image["digest"], entry["digest"]]),
            lambda: piped(layout, ONLY, [entry["digest"], image["digest"]]),
        ]
        for listing in listings:
            with pytest.raises(IntegrityError, match=entry["digest"]):
                listing()


class TestLimits:
    def test_manifests_that_may_be_images_are_not_kept(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        small_image(layout, name="v1")
        more = [layout.image([bytes([number])]) for number in range(3)]
        layout.enter(*more)
        # A layout reads a manifest again if it is an image. A pipe buffers manifests like other JSON.
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 0)
        assert len(listing_of(layout, IMAGES).images) == 4
        assert len(listing_of(layout, named("v1")).images) == 1

    def test_an_entry_beyond_the_size_limit_of_manifests_is_not_read(
        self, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = small_image(layout, name="v1")
        large = referrer(layout, image, "a/sbom", b"sbom", note="x" * 3000)
        layout.enter(large)
        monkeypatch.setattr(limits, "MAX_MANIFEST", large["size"])
        assert referrers(listing_of(layout)) == {large["digest"]}
        monkeypatch.setattr(limits, "MAX_MANIFEST", large["size"] - 1)
        listing = listing_of(layout)
        assert images(listing) == [image["digest"]]
        assert [(one.digest, one.reason) for one in listing.skipped] == [(large["digest"], UNREADABLE)]

    def test_the_number_of_referrers_is_limited(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        signed(layout).enter(layout, "v1")
        monkeypatch.setattr(limits, "MAX_REFERRERS", 4)
        assert len(referrers(listing_of(layout))) == 4
        monkeypatch.setattr(limits, "MAX_REFERRERS", 3)
        with pytest.raises(UnsupportedError, match="more than 3 referrers") as caught:
            listing_of(layout)
        assert "--no-referrers" in (caught.value.hint or "")

    def test_listed_but_missing_referrers_count(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        image = small_image(layout, name="v1")
        gone = [referrer(layout, image, "a/b", b"%d" % number) for number in range(4)]
        for one in gone:
            layout.file(one["digest"]).unlink()
        layout.name(layout.index(gone), image["digest"].replace(":", "-"))
        monkeypatch.setattr(limits, "MAX_REFERRERS", 4)
        assert len(listing_of(layout).skipped) == 4
        monkeypatch.setattr(limits, "MAX_REFERRERS", 3)
        with pytest.raises(UnsupportedError, match="more than 3 referrers are listed"):
            listing_of(layout)

    def test_the_depth_of_referrers_is_limited(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        deepest = chain(layout, image, limits.MAX_REFERRER_DEPTH)
        assert deepest["digest"] in referrers(listing_of(layout))
        chain(layout, deepest, 300)
        with pytest.raises(UnsupportedError, match=f"more than {limits.MAX_REFERRER_DEPTH} levels deep") as caught:
            listing_of(layout)
        assert "--no-referrers" in (caught.value.hint or "")

    @pytest.mark.parametrize("choice", ["copy", "skip"])
    def test_the_work_for_many_referrers_of_one_subject_grows_with_their_number(
        self, layout: Layout, choice: ReferrerChoice
    ) -> None:
        image = small_image(layout, name="v1")
        calls = []
        for number in range(2):
            layout.enter(*(referrer(layout, image, "a/b", b"%d.%d" % (number, one)) for one in range(100)))
            calls.append(calls_of(lambda: listing_of(layout, Wanted(referrers=choice, images="only"))))
        assert calls[1] < 2.2 * calls[0]

    @pytest.mark.uncounted
    def test_the_work_for_a_long_chain_grows_with_its_length(self, layout: Layout) -> None:
        end = small_image(layout, name="v1")
        left = Wanted(referrers="skip", images="only")
        calls = []
        for number in range(2):
            end = chain(layout, end, 100)
            calls.append(calls_of(lambda: listing_of(layout, left)))
            assert len(listing_of(layout, left).skipped) == 100 * (number + 1)
        assert calls[1] < 2.2 * calls[0]


def chain(layout: Layout, subject: Descriptor, length: int) -> Descriptor:
    """Write a chain of referrers, each of the one before; return the last."""
    made: list[Descriptor] = []
    for number in range(length):
        made.append(referrer(layout, made[-1] if made else subject, "a/b", b"%d" % number))
    layout.enter(*made)
    return made[-1]


def calls_of(work: Callable[[], object]) -> int:
    """Count the calls of Python functions."""
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
