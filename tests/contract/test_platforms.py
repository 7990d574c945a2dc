"""Which manifests of an index a selection of platforms includes. test_sources.py tests that all sources agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError
from tests.contract.adapter_types import Wanted
from tests.contract.image_shapes import attestation, nested_index, parts_of, with_attestation
from tests.contract.test_walk import children, images, listing_of, manifests
from tests.images import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor, Layout, small_image, tar_layer


def choice(*platforms: str, asked: bool = True) -> Wanted:
    return Wanted(platforms, asked)


def index_of(layout: Layout, *platforms: str, **options: Any) -> Descriptor:
    """Write an index of one small image for each platform."""
    made = [layout.image([tar_layer({"bin/arch": p.encode()})], platform=p) for p in platforms]
    return layout.index(made, **options)


def digests(descriptors: Sequence[Descriptor]) -> list[str]:
    return [descriptor["digest"] for descriptor in descriptors]


class TestOnePlatform:
    def test_every_name_of_an_index_selects_the_same_image(self, layout: Layout) -> None:
        first = index_of(layout, "linux/amd64", "linux/arm64")
        second = index_of(layout, "linux/amd64", "linux/riscv64")
        found = listing_of(layout, first, second, first, wanted=choice("linux/amd64"))
        amd = children(layout, first)[0]["digest"]
        assert images(found) == [amd, amd, amd]
        assert manifests(found) == [amd]

    @pytest.mark.parametrize(
        ("wanted", "place"), [("linux/arm", 1), ("linux/arm/v6", 0), ("linux/arm64", 3), ("linux/arm64/v8", 3)]
    )
    def test_the_plain_variant_is_preferred(self, layout: Layout, wanted: str, place: int) -> None:
        index = index_of(layout, "linux/arm/v6", "linux/arm/v7", "linux/arm64/v9", "linux/arm64")
        assert manifests(listing_of(layout, index, wanted=choice(wanted))) == [children(layout, index)[place]["digest"]]

    def test_without_a_plain_variant_the_first_is_taken(self, layout: Layout) -> None:
        index = index_of(layout, "linux/arm/v6", "linux/arm/v5")
        found = listing_of(layout, index, wanted=choice("linux/arm"))
        assert manifests(found) == [children(layout, index)[0]["digest"]]

    def test_an_attestation_is_not_copied_with_it(self, layout: Layout) -> None:
        index = with_attestation(layout, "v1")
        image, _ = children(layout, index)
        assert manifests(listing_of(layout, index, wanted=choice("linux/amd64"))) == [image["digest"]]

    @pytest.mark.parametrize("asked", [True, False])
    def test_the_error_for_a_missing_platform_lists_the_others(self, layout: Layout, asked: bool) -> None:
        index = with_attestation(layout, "v1")
        with pytest.raises(NotFoundError, match=r"v1 has no platform linux/s390x") as caught:
            listing_of(layout, index, wanted=choice("linux/s390x", asked=asked))
        assert caught.value.hint == "its platforms are: linux/amd64; choose one with --platform, or all"

    def test_hostile_names_cannot_control_the_terminal(self, layout: Layout) -> None:
        odd = {**small_image(layout), "platform": {"os": "\x1b[2J", "architecture": "amd64"}}
        with pytest.raises(NotFoundError) as caught:
            listing_of(layout, layout.index([odd]), wanted=choice("linux/amd64"))
        assert caught.value.message.isprintable()
        assert (caught.value.hint or "").isprintable()


class TestDefaultPlatform:
    """The user did not request this machine's platform, so an image without platforms is copied unchanged."""

    def test_an_index_without_platforms_is_copied_unchanged(self, layout: Layout) -> None:
        index = layout.index([layout.artifact(b"one"), layout.artifact(b"two")])
        found = listing_of(layout, index, wanted=choice("linux/amd64", asked=False))
        assert images(found) == [index["digest"]]
        assert set(manifests(found)) == set(parts_of(layout, index).manifests)
        with pytest.raises(NotFoundError) as caught:
            listing_of(layout, index, wanted=choice("linux/amd64"))
        assert "none with a name" in (caught.value.hint or "")

    def test_an_empty_index_is_copied_unchanged(self, layout: Layout) -> None:
        index = layout.index([])
        assert manifests(listing_of(layout, index, wanted=choice("linux/amd64", asked=False))) == [index["digest"]]


class TestSeveralPlatforms:
    def test_all_platforms_are_the_unchanged_index(self, layout: Layout) -> None:
        index = nested_index(layout, "v1")
        found = listing_of(layout, index, wanted=choice("linux/riscv64", "linux/arm64", "linux/amd64"))
        assert images(found) == [index["digest"]]
        assert found == listing_of(layout, index)

    def test_all_platforms_with_attestations_are_the_unchanged_index(self, layout: Layout) -> None:
        made = children(layout, index_of(layout, "linux/amd64", "linux/arm64"))
        index = layout.index([*made, *(attestation(layout, image) for image in made)])
        assert images(listing_of(layout, index, wanted=choice("linux/amd64", "linux/arm64"))) == [index["digest"]]

    def test_some_platforms_are_a_smaller_index_in_the_same_order(self, layout: Layout) -> None:
        index = index_of(layout, "linux/amd64", "linux/arm64/v8", "linux/s390x")
        amd, _, s390x = children(layout, index)
        found = listing_of(layout, index, wanted=choice("linux/s390x", "linux/amd64"))
        *below, smaller = found.manifests
        assert [manifest.piece.digest for manifest in below] == digests([amd, s390x])
        # The entries are unchanged, including unknown fields.
        assert json.loads(smaller.raw) == {**layout.read(index["digest"]), "manifests": [amd, s390x]}
        assert images(found) == [smaller.piece.digest]
        assert smaller.piece.media_type == OCI_INDEX
        again = listing_of(layout, index, wanted=choice("linux/amd64", "linux/s390x"))
        assert again.manifests == found.manifests

    def test_a_smaller_index_keeps_annotations_and_dockers_type(self, layout: Layout) -> None:
        made = [layout.image([tar_layer({"x": p.encode()})], platform=p) for p in ("linux/a", "linux/b", "linux/c")]
        index = layout.document(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
                "manifests": made,
                "annotations": {"é": "ü"},
            }
        )
        smaller = listing_of(layout, index, wanted=choice("linux/a", "linux/c")).manifests[-1]
        assert smaller.piece.media_type == index["mediaType"]
        assert json.loads(smaller.raw)["annotations"] == {"é": "ü"}

    def test_nested_indexes_may_be_listed_twice_or_be_missing(self, layout: Layout) -> None:
        inner = index_of(layout, "linux/amd64", "linux/arm64", "linux/s390x")
        lost = index_of(layout, "linux/riscv64")
        index = layout.index([inner, lost, inner])
        found = listing_of(layout, index, wanted=choice("linux/amd64", "linux/arm64"), missing={lost["digest"]})
        assert json.loads(found.manifests[-1].raw)["manifests"] == children(layout, inner)[:2]
        assert found.absent == ()

    def test_the_first_of_several_entries_of_one_image_is_kept(self, layout: Layout) -> None:
        made = children(layout, index_of(layout, "linux/amd64", "linux/arm64", "linux/s390x"))
        noted = [layout.index([{**made[0], "annotations": {"note": str(number)}}, *made[1:]]) for number in range(9)]
        found = listing_of(layout, layout.index(noted), wanted=choice("linux/amd64", "linux/arm64"))
        entries = json.loads(found.manifests[-1].raw)["manifests"]
        assert entries[0]["annotations"] == {"note": "0"}

    def test_a_list_that_is_null_is_empty(self, layout: Layout) -> None:
        made = children(layout, index_of(layout, "linux/amd64", "linux/arm64", "linux/s390x"))
        empty = layout.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None})
        index = layout.index([empty, *made])
        found = listing_of(layout, index, wanted=choice("linux/amd64", "linux/arm64"))
        assert len(json.loads(found.manifests[-1].raw)["manifests"]) == 2


class TestSingleImages:
    """The config of an image without an index states its platform."""

    def made(self, layout: Layout, platform: str = "linux/arm64/v8") -> tuple[Descriptor, str]:
        image = small_image(layout, platform=platform)
        del image["platform"]
        return image, layout.read(image["digest"])["config"]["digest"]

    @pytest.mark.parametrize("wanted", [("linux/arm64",), ("linux/amd64", "linux/arm64/v8")])
    def test_an_image_of_the_platform_is_listed_with_its_config_as_a_blob(
        self, layout: Layout, wanted: tuple[str, ...]
    ) -> None:
        image, config = self.made(layout)
        found = listing_of(layout, image, wanted=choice(*wanted))
        assert manifests(found) == [image["digest"]]
        assert found.blobs[0].digest == config
        assert found.absent == ()

    def test_a_manifest_that_is_also_the_config_of_another_image_is_listed(self, layout: Layout) -> None:
        index = index_of(layout, "linux/amd64")
        (image,) = children(layout, index)
        config = {"mediaType": OCI_CONFIG, "digest": image["digest"], "size": image["size"]}
        odd = layout.document({"mediaType": OCI_MANIFEST, "config": config, "layers": []})
        found = listing_of(layout, index, odd, wanted=choice("linux/amd64"))
        assert manifests(found) == [image["digest"], odd["digest"]]

    def test_an_image_of_another_platform_is_not_found(self, layout: Layout) -> None:
        image, _ = self.made(layout)
        with pytest.raises(NotFoundError, match="v1 has no platform linux/amd64, linux/s390x") as caught:
            listing_of(layout, image, wanted=choice("linux/amd64", "linux/s390x"))
        assert (caught.value.hint or "").startswith("it is a single image, for linux/arm64/v8: omit --platform")

    def test_an_image_without_a_platform_is_listed(self, layout: Layout) -> None:
        document = layout.read(small_image(layout)["digest"])
        document["config"] = layout.blob(b"{}", OCI_CONFIG)
        assert len(manifests(listing_of(layout, layout.document(document), wanted=choice("linux/amd64")))) == 1

    def test_a_missing_config_is_a_missing_blob(self, layout: Layout) -> None:
        image, config = self.made(layout)
        found = listing_of(layout, image, wanted=choice("linux/amd64"), missing={config})
        assert found.absent == ()
        assert config in {blob.digest for blob in found.blobs}

    def test_a_config_with_a_wrong_digest_is_refused(self, layout: Layout) -> None:
        image, config = self.made(layout)
        content = layout.file(config).read_bytes()
        layout.file(config).write_bytes(content.replace(b"arm64", b"amd64"))
        with pytest.raises(IntegrityError, match=config):
            listing_of(layout, image, wanted=choice("linux/amd64"))

    def test_a_config_that_claims_to_be_too_large_is_not_read(self, layout: Layout) -> None:
        document = layout.read(small_image(layout)["digest"])
        config = document["config"]["digest"]
        layout.file(config).unlink()
        document["config"]["size"] = limits.MAX_CONFIG
        listing_of(layout, layout.document(document), wanted=choice("linux/amd64"))
        document["config"]["size"] += 1
        with pytest.raises(ArchiveError, match="larger than 8388608 bytes"):
            listing_of(layout, layout.document(document), wanted=choice("linux/amd64"))

    def test_the_platform_of_an_entry_is_checked(self, layout: Layout) -> None:
        entry = small_image(layout, platform="linux/amd64")
        with pytest.raises(NotFoundError, match="has no platform linux/arm64") as caught:
            listing_of(layout, entry, wanted=choice("linux/arm64"))
        assert "linux/amd64" in (caught.value.hint or "")
        for wanted in (choice("linux/amd64"), choice("linux/arm64", asked=False), choice()):
            assert manifests(listing_of(layout, entry, wanted=wanted)) == [entry["digest"]]
