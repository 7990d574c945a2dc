"""The walk over manifests: what is asked for, in which order it comes out, and what a choice of platforms leaves."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from ocistream import limits, model
from ocistream.documents import parse_descriptor
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UnsupportedError
from ocistream.graph import Graph, Root, is_image
from ocistream.model import Platform, parse_platform
from ocistream.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.walk import GraphBuilder
from tests.contract.shapes import nested_index, parts_of, with_attestation
from tests.images import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Layout,
    small_image,
    tar_layer,
    two_platforms,
)


def choice(*platforms: str, explicit: bool = True) -> PlatformChoice:
    return PlatformChoice(tuple(map(parse_platform, platforms)), explicit=explicit)


def root_of(descriptor: Descriptor, name: str | None = "v1") -> Root:
    return Root(name, parse_descriptor(descriptor, "root"))


class Walk:
    """A builder that is fed from a layout; `asked` is what it wanted to know, in order."""

    def __init__(
        self,
        layout: Layout,
        *roots: Descriptor | Root,
        platforms: PlatformChoice = ALL_PLATFORMS,
        lacking: Collection[str] = (),
    ) -> None:
        self.asked: list[str] = []
        builder = GraphBuilder(platforms)
        for root in roots:
            builder.add_root(root if isinstance(root, Root) else root_of(root))
        while builder.needs:
            digest = next(iter(builder.needs))
            self.asked.append(digest)
            if digest in lacking:
                builder.lacks(digest)
            else:
                builder.supply(digest, layout.file(digest).read_bytes())
        self.graph: Graph = builder.graph()

    @property
    def manifests(self) -> list[str]:
        return [manifest.descriptor.digest for manifest in self.graph.manifests]


def platforms_index(layout: Layout, *platforms: str, **options: Any) -> Descriptor:
    """Write an index of one small image for each platform."""
    images = [layout.image([tar_layer({"bin/arch": p.encode()})], platform=p) for p in platforms]
    return layout.index(images, **options)


def listed(layout: Layout, index: Descriptor) -> list[Descriptor]:
    manifests: list[Descriptor] = layout.read(index["digest"])["manifests"]
    return manifests


def digests(descriptors: Sequence[Descriptor]) -> list[str]:
    return [descriptor["digest"] for descriptor in descriptors]


class TestOrder:
    def test_children_come_before_parents_and_each_once(self, layout: Layout) -> None:
        index = nested_index(layout, "v1")
        single = listed(layout, index)[1]
        walk = Walk(layout, index, single, index)
        assert len(walk.manifests) == len(set(walk.manifests))
        assert walk.manifests[-1] == index["digest"]
        assert set(walk.manifests) == set(parts_of(layout, index).manifests)
        assert [root.descriptor.digest for root in walk.graph.roots] == digests([index, single, index])

    def test_each_manifest_is_asked_for_once(self, layout: Layout) -> None:
        image = small_image(layout)
        walk = Walk(layout, layout.index([image, image, layout.index([image])]), image)
        assert len(walk.asked) == len(set(walk.asked)) == 3

    def test_blobs_are_unique_with_configs_first(self, layout: Layout) -> None:
        walk = Walk(layout, two_platforms(layout))
        kinds = [blob.media_type.rpartition(".")[2] for blob in walk.graph.blobs]
        assert [kind.startswith("v1+json") for kind in kinds] == [True, True, False, False, False]
        assert len({blob.digest for blob in walk.graph.blobs}) == 5
        assert walk.graph.size == sum(blob.size for blob in walk.graph.blobs)

    def test_foreign_layers_are_set_aside(self, layout: Layout) -> None:
        foreign = {
            **layout.blob(b"licence", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            "urls": ["https://elsewhere.example/layer"],
        }
        image = small_image(layout)
        document = layout.read(image["digest"])
        document["layers"] += [foreign, foreign]
        walk = Walk(layout, layout.document(document))
        assert [layer.digest for layer in walk.graph.foreign] == [foreign["digest"]]
        assert foreign["digest"] not in {blob.digest for blob in walk.graph.blobs}
        assert len(walk.graph.blobs) == 3

    def test_a_subject_is_not_followed(self, layout: Layout) -> None:
        subject = small_image(layout)
        walk = Walk(layout, layout.artifact(b"sbom", subject=subject))
        assert subject["digest"] not in walk.asked
        ((_, document),) = walk.graph.images()
        assert document.subject is not None
        assert document.subject.digest == subject["digest"]
        assert not is_image(document)

    def test_what_a_root_needs_can_be_told_apart(self, layout: Layout) -> None:
        index, other = two_platforms(layout), layout.image([tar_layer({"x": b"y"})])
        walk = Walk(layout, index, other)
        for root, made in zip(walk.graph.roots, (index, other), strict=True):
            parts = parts_of(layout, made)
            assert walk.graph.reachable(root) == set(parts.manifests) | set(parts.blobs)


class TestAbsent:
    def test_what_is_lacking_is_named(self, layout: Layout) -> None:
        index = two_platforms(layout)
        lost, there = digests(listed(layout, index))
        walk = Walk(layout, index, lacking={lost})
        assert [manifest.digest for manifest in walk.graph.absent] == [lost]
        assert walk.manifests == [there, index["digest"]]

    def test_a_root_may_be_lacking(self, layout: Layout) -> None:
        index = two_platforms(layout)
        for platforms in (ALL_PLATFORMS, choice("linux/amd64")):
            walk = Walk(layout, index, index, platforms=platforms, lacking={index["digest"]})
            assert [manifest.digest for manifest in walk.graph.absent] == [index["digest"]]
            assert walk.manifests == []
            assert len(walk.graph.roots) == 2
            assert walk.graph.reachable(walk.graph.roots[0]) == {index["digest"]}

    def test_what_was_not_chosen_is_not_missed(self, layout: Layout) -> None:
        lost = platforms_index(layout, "linux/s390x")
        image = small_image(layout)
        walk = Walk(layout, layout.index([lost, image]), platforms=choice("linux/amd64"), lacking={lost["digest"]})
        assert walk.manifests == [image["digest"]]
        assert walk.graph.absent == ()


class TestChecks:
    def test_bytes_of_another_digest_are_refused(self, layout: Layout) -> None:
        image = small_image(layout)
        raw = layout.file(image["digest"]).read_bytes()
        builder = GraphBuilder()
        builder.add_root(root_of(image))
        with pytest.raises(IntegrityError, match=image["digest"]):
            builder.supply(image["digest"], raw[:-1] + b" ")

    @pytest.mark.parametrize("change", [-1, 1])
    def test_bytes_of_another_size_are_refused(self, layout: Layout, change: int) -> None:
        image = small_image(layout)
        builder = GraphBuilder()
        builder.add_root(root_of({**image, "size": image["size"] + change}))
        with pytest.raises(IntegrityError, match="expected"):
            builder.supply(image["digest"], layout.file(image["digest"]).read_bytes())

    def test_sha512_is_checked_as_sha512(self, layout: Layout) -> None:
        image = small_image(layout, algorithm="sha512")
        assert Walk(layout, image).manifests == [image["digest"]]

    def test_one_blob_with_two_sizes_is_refused(self, layout: Layout) -> None:
        image = small_image(layout)
        document = layout.read(image["digest"])
        document["layers"].append({**document["layers"][0], "size": 1})
        with pytest.raises(ArchiveError, match="is referenced with"):
            Walk(layout, layout.document(document))

    @pytest.mark.parametrize("order", [1, -1])
    @pytest.mark.parametrize("other", [{"size": 1}, {"mediaType": OCI_INDEX}])
    def test_one_manifest_that_is_two_things_is_refused(
        self, layout: Layout, other: dict[str, Any], order: int
    ) -> None:
        image = small_image(layout)
        for nested in (False, True):
            twice = [image, {**image, **other}][::order]
            index = layout.index([twice[0], layout.index([twice[1]])] if nested else twice)
            with pytest.raises((ArchiveError, IntegrityError)):
                Walk(layout, index)

    def test_a_manifest_that_is_lacking_cannot_be_two_things_either(self, layout: Layout) -> None:
        image = small_image(layout)
        index = layout.index([image, layout.index([{**image, "size": 1}])])
        with pytest.raises(ArchiveError, match="is referenced as"):
            Walk(layout, index, lacking={image["digest"]})

    def test_a_manifest_that_claims_to_be_too_large_is_not_asked_for(self, layout: Layout) -> None:
        image = {**small_image(layout), "size": limits.MAX_MANIFEST + 1}
        builder = GraphBuilder()
        builder.add_root(root_of({**image, "size": limits.MAX_MANIFEST}))
        assert builder.needs
        with pytest.raises(ArchiveError, match="larger than 4194304 bytes"):
            Walk(layout, image)


class TestLimits:
    @pytest.mark.parametrize("platforms", [ALL_PLATFORMS, choice("linux/amd64")])
    def test_indexes_nest_so_deep_and_no_deeper(self, layout: Layout, platforms: PlatformChoice) -> None:
        found = small_image(layout)
        for _ in range(limits.MAX_INDEX_DEPTH):
            found = layout.index([found])
        Walk(layout, found, platforms=platforms)
        with pytest.raises(ArchiveError, match="nested more than 8 deep"):
            # An index more, and around what is known to go: the image is too deep, or the last index.
            Walk(layout, layout.index([layout.index([found])]), platforms=platforms)

    def test_a_chain_that_is_hidden_in_a_list_is_no_way_around_it(self, layout: Layout) -> None:
        chain = [small_image(layout)]
        for _ in range(2000):
            chain.append(layout.index([chain[-1]]))
        with pytest.raises(ArchiveError, match="nested more than 8 deep"):
            Walk(layout, layout.index(list(reversed(chain))))

    @pytest.mark.parametrize("platforms", [ALL_PLATFORMS, choice("linux/amd64")])
    def test_indexes_that_list_each_other_a_thousand_times_are_looked_into_once(
        self, layout: Layout, platforms: PlatformChoice
    ) -> None:
        image = small_image(layout)
        found = image
        for _ in range(limits.MAX_INDEX_DEPTH - 1):
            found = layout.index([found] * 1000)
        walk = Walk(layout, found, platforms=platforms)
        # By walking along every path this would take longer than the universe has been there.
        assert image["digest"] in walk.manifests

    def test_there_is_a_greatest_number_of_manifests(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_MANIFESTS", 3)
        Walk(layout, two_platforms(layout))
        with pytest.raises(ArchiveError, match="more than 3 manifests"):
            Walk(layout, two_platforms(layout), layout.artifact(b"one more"))

    def test_there_is_a_greatest_number_of_images(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_IMAGES", 2)
        image = small_image(layout)
        assert len(Walk(layout, image, image).graph.roots) == 2
        with pytest.raises(UnsupportedError, match="more than 2 images"):
            Walk(layout, image, image, image)

    def test_what_all_images_need_has_a_limit_even_if_it_is_the_same(
        self, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = two_platforms(layout)
        # An index, two manifests, two configs and three layers.
        monkeypatch.setattr(limits, "MAX_NEEDED", 16)
        Walk(layout, *(root_of(index, name) for name in "ab"))
        with pytest.raises(UnsupportedError, match="more than 16 manifests and blobs"):
            Walk(layout, *(root_of(index, name) for name in "abc"))

    def test_so_has_what_platforms_are_chosen_from(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        inner = two_platforms(layout)
        roots = [layout.index([inner], subject={**inner, "size": number}) for number in range(3)]
        monkeypatch.setattr(limits, "MAX_OFFERED", 4)
        Walk(layout, *roots[:2], platforms=choice("linux/amd64"))
        with pytest.raises(UnsupportedError, match="more than 4 manifests to choose"):
            Walk(layout, *roots, platforms=choice("linux/amd64"))

    def test_there_is_a_greatest_number_of_blobs(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_BLOBS", 5)
        layers = [tar_layer({"x": b"%d" % number}) for number in range(4)]
        # Two configs and three layers, one of them in both.
        first, second = layout.image(layers[:2]), layout.image(layers[1:3])
        assert len(Walk(layout, first, second).graph.blobs) == 5
        with pytest.raises(ArchiveError, match="more than 5 blobs"):
            Walk(layout, first, layout.image(layers[1:4]))

    def test_one_layer_under_many_types_counts_as_many(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_BLOBS", 5)
        image = layout.read(small_image(layout)["digest"])
        image["layers"] = [{**image["layers"][0], "mediaType": f"a/{number}"} for number in range(4)]
        assert len(Walk(layout, layout.document(image)).graph.blobs) == 2
        image["layers"].append({**image["layers"][0], "mediaType": "a/4"})
        with pytest.raises(ArchiveError, match="more than 5 blobs"):
            Walk(layout, layout.document(image))

    def test_a_layer_of_several_images_is_held_once(self, layout: Layout) -> None:
        documents = Walk(layout, two_platforms(layout)).graph.documents.values()
        first, second = (document.layers[0] for document in documents if document.layers)
        assert first is second

    def test_what_is_incomplete_is_not_walked_again_for_each_index_that_comes(
        self, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        count, looked_at = 100, 0

        def counted(descriptor: model.Descriptor) -> bool:
            nonlocal looked_at
            looked_at += 1
            return descriptor.media_type in model.INDEX_TYPES

        image = small_image(layout)
        nested = [layout.index([], subject={**image, "size": number}) for number in range(count)]
        root = layout.index([*nested, image])
        monkeypatch.setattr(model.Descriptor, "is_index", property(counted))
        walk = Walk(layout, root, platforms=choice("linux/amd64"))
        assert walk.manifests == [image["digest"]]
        assert looked_at < 10 * count

    def test_all_manifests_together_have_a_limit(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        index = two_platforms(layout)
        total = sum(map(len, parts_of(layout, index).manifests.values()))
        monkeypatch.setattr(limits, "MAX_GRAPH_BYTES", total)
        Walk(layout, index)
        monkeypatch.setattr(limits, "MAX_GRAPH_BYTES", total - 1)
        with pytest.raises(ArchiveError, match="in one transfer") as caught:
            Walk(layout, index)
        assert caught.value.hint == "move fewer images or platforms at a time"


class TestNews:
    def test_each_need_is_announced_once(self, layout: Layout) -> None:
        index = two_platforms(layout)
        builder = GraphBuilder()
        builder.add_root(root_of(index))
        assert builder.new_needs() == [index["digest"]]
        builder.supply(index["digest"], layout.file(index["digest"]).read_bytes())
        assert builder.new_needs() == list(builder.needs)
        assert builder.new_needs() == []

    def test_so_is_a_config_that_is_to_be_checked(self, layout: Layout) -> None:
        image = small_image(layout)
        del image["platform"]
        builder = GraphBuilder(choice("linux/amd64"))
        builder.add_root(root_of(image))
        builder.supply(image["digest"], layout.file(image["digest"]).read_bytes())
        assert builder.new_needs() == [image["digest"], layout.read(image["digest"])["config"]["digest"]]


class TestOnePlatform:
    def test_it_is_the_image_itself_and_no_other_is_asked_for(self, layout: Layout) -> None:
        index = two_platforms(layout)
        amd, _ = listed(layout, index)
        walk = Walk(layout, index, platforms=choice("linux/amd64"))
        assert walk.asked == digests([index, amd])
        assert walk.manifests == [amd["digest"]]
        (root,) = walk.graph.roots
        assert root == root_of(amd)

    def test_it_is_so_under_a_second_name_that_comes_when_the_index_is_known(self, layout: Layout) -> None:
        index = platforms_index(layout, "linux/amd64", "linux/arm64")
        builder = GraphBuilder(choice("linux/arm64"))
        for name in ("v1", "v2"):
            builder.add_root(root_of(index, name))
            while builder.needs:
                digest = next(iter(builder.needs))
                builder.supply(digest, layout.file(digest).read_bytes())
        wanted = listed(layout, index)[1]["digest"]
        assert [(root.name, root.descriptor.digest) for root in builder.graph().roots] == [
            ("v1", wanted),
            ("v2", wanted),
        ]

    def test_it_is_found_in_nested_indexes(self, layout: Layout) -> None:
        index = nested_index(layout, "v1")
        walk = Walk(layout, index, platforms=choice("linux/arm64"))
        assert len(walk.manifests) == 1
        assert walk.graph.roots[0].descriptor.platform == Platform("linux", "arm64", "v8")
        # Three indexes and the one image.
        assert len(walk.asked) == 4

    def test_the_plain_variant_is_taken_before_others(self, layout: Layout) -> None:
        index = platforms_index(layout, "linux/arm/v6", "linux/arm/v7", "linux/arm64/v9", "linux/arm64")
        for wanted, place in (("linux/arm", 1), ("linux/arm/v6", 0), ("linux/arm64", 3), ("linux/arm64/v8", 3)):
            walk = Walk(layout, index, platforms=choice(wanted))
            assert walk.manifests == [listed(layout, index)[place]["digest"]]

    def test_without_a_plain_variant_the_first_is_taken(self, layout: Layout) -> None:
        index = platforms_index(layout, "linux/arm/v6", "linux/arm/v5")
        assert Walk(layout, index, platforms=choice("linux/arm")).manifests == [listed(layout, index)[0]["digest"]]

    def test_an_attestation_does_not_come_along(self, layout: Layout) -> None:
        index = with_attestation(layout, "v1")
        image, _ = listed(layout, index)
        assert Walk(layout, index, platforms=choice("linux/amd64")).manifests == [image["digest"]]

    def test_it_is_what_it_was_picked_as(self, layout: Layout) -> None:
        image = small_image(layout)
        twice = [
            {**image, "platform": {"os": "linux", "architecture": "amd64"}},
            {**image, "platform": {"os": "linux", "architecture": "arm64"}},
        ]
        walk = Walk(layout, layout.index(twice), platforms=choice("linux/amd64"))
        assert str(walk.graph.roots[0].descriptor.platform) == "linux/amd64"

    @pytest.mark.parametrize("explicit", [True, False])
    def test_one_that_is_not_there_is_not_found_and_those_there_are_listed(
        self, layout: Layout, explicit: bool
    ) -> None:
        index = with_attestation(layout, "v1")
        with pytest.raises(NotFoundError, match=r"v1 has no platform linux/s390x") as caught:
            Walk(layout, index, platforms=choice("linux/s390x", explicit=explicit))
        assert caught.value.hint == "its platforms are: linux/amd64; choose one with --platform, or all"

    def test_names_of_strangers_cannot_drive_a_terminal(self, layout: Layout) -> None:
        odd = {**small_image(layout), "platform": {"os": "\x1b[2J", "architecture": "amd64"}}
        with pytest.raises(NotFoundError) as caught:
            Walk(layout, root_of(layout.index([odd]), "a\nb"), platforms=choice("linux/amd64"))
        assert caught.value.what.isprintable()
        assert (caught.value.hint or "").isprintable()


class TestImplicitChoice:
    def test_an_index_that_names_no_platforms_is_taken_as_it_is(self, layout: Layout) -> None:
        index = layout.index([layout.artifact(b"one"), layout.artifact(b"two")])
        walk = Walk(layout, index, platforms=choice("linux/amd64", explicit=False))
        assert walk.graph.roots == (root_of(index),)
        assert set(walk.manifests) == set(parts_of(layout, index).manifests)

    def test_but_not_where_a_platform_was_asked_for(self, layout: Layout) -> None:
        index = layout.index([layout.artifact(b"one")])
        with pytest.raises(NotFoundError) as caught:
            Walk(layout, index, platforms=choice("linux/amd64"))
        assert "none that is named" in (caught.value.hint or "")

    def test_an_empty_index_is_taken_as_it_is(self, layout: Layout) -> None:
        index = layout.index([])
        assert Walk(layout, index, platforms=choice("linux/amd64", explicit=False)).manifests == [index["digest"]]


class TestSeveralPlatforms:
    def test_all_of_them_are_the_index_byte_for_byte(self, layout: Layout) -> None:
        index = nested_index(layout, "v1")
        walk = Walk(layout, index, platforms=choice("linux/riscv64", "linux/arm64", "linux/amd64"))
        assert walk.graph.roots == (root_of(index),)
        assert walk.graph == Walk(layout, index).graph

    def test_some_of_them_are_a_smaller_index_in_the_order_of_the_large_one(self, layout: Layout) -> None:
        index = platforms_index(layout, "linux/amd64", "linux/arm64/v8", "linux/s390x")
        amd, _, s390x = listed(layout, index)
        walk = Walk(layout, index, platforms=choice("linux/s390x", "linux/amd64"))
        *children, smaller = walk.graph.manifests
        assert [manifest.descriptor.digest for manifest in children] == digests([amd, s390x])
        document = json.loads(smaller.raw)
        # The entries are as they were, down to what we know nothing of.
        assert document == {**layout.read(index["digest"]), "manifests": [amd, s390x]}
        assert [root.descriptor for root in walk.graph.roots] == [smaller.descriptor]
        assert smaller.descriptor.media_type == OCI_INDEX
        again = Walk(layout, index, platforms=choice("linux/amd64", "linux/s390x"))
        assert again.graph.manifests == walk.graph.manifests

    def test_a_smaller_index_keeps_annotations_and_dockers_type(self, layout: Layout) -> None:
        images = [layout.image([tar_layer({"x": p.encode()})], platform=p) for p in ("linux/a", "linux/b", "linux/c")]
        index = layout.document(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
                "manifests": images,
                "annotations": {"é": "ü"},
            }
        )
        walk = Walk(layout, index, platforms=choice("linux/a", "linux/c"))
        assert walk.graph.roots[0].descriptor.media_type == index["mediaType"]
        assert json.loads(walk.graph.manifests[-1].raw)["annotations"] == {"é": "ü"}

    def test_attestations_go_along_with_what_they_vouch_for(self, layout: Layout) -> None:
        images = listed(layout, platforms_index(layout, "linux/amd64", "linux/arm64", "linux/s390x"))
        vouching = [
            {
                **layout.artifact(image["digest"].encode()),
                "platform": {"os": "unknown", "architecture": "unknown"},
                "annotations": {"vnd.docker.reference.digest": image["digest"]},
            }
            for image in images
        ]
        index = layout.index([*images, *vouching])
        walk = Walk(layout, index, platforms=choice("linux/amd64", "linux/s390x"))
        assert walk.manifests[:-1] == digests([images[0], images[2], vouching[0], vouching[2]])
        every = Walk(layout, index, platforms=choice("linux/amd64", "linux/s390x", "linux/arm64"))
        assert every.graph.roots == (root_of(index),)

    def test_they_may_come_out_of_nested_indexes(self, layout: Layout) -> None:
        index = nested_index(layout, "v1")
        walk = Walk(layout, index, platforms=choice("linux/amd64", "linux/riscv64"))
        document = json.loads(walk.graph.manifests[-1].raw)
        assert [entry["platform"]["architecture"] for entry in document["manifests"]] == ["amd64", "riscv64"]
        assert len(walk.manifests) == 3

    def test_nested_indexes_may_be_listed_twice_or_be_lacking(self, layout: Layout) -> None:
        inner = platforms_index(layout, "linux/amd64", "linux/arm64", "linux/s390x")
        lost = platforms_index(layout, "linux/riscv64")
        index = layout.index([inner, lost, inner])
        walk = Walk(layout, index, platforms=choice("linux/amd64", "linux/arm64"), lacking={lost["digest"]})
        assert json.loads(walk.graph.manifests[-1].raw)["manifests"] == listed(layout, inner)[:2]
        assert walk.graph.absent == ()

    def test_the_first_entry_of_an_image_is_the_one_that_is_kept(self, layout: Layout) -> None:
        images = listed(layout, platforms_index(layout, "linux/amd64", "linux/arm64", "linux/s390x"))
        noted = [
            layout.index([{**images[0], "annotations": {"note": str(number)}}, *images[1:]]) for number in range(9)
        ]
        walk = Walk(layout, layout.index(noted), platforms=choice("linux/amd64", "linux/arm64"))
        entries = json.loads(walk.graph.manifests[-1].raw)["manifests"]
        assert entries[0]["annotations"] == {"note": "0"}

    def test_a_list_that_go_wrote_as_null_is_an_empty_one(self, layout: Layout) -> None:
        images = listed(layout, platforms_index(layout, "linux/amd64", "linux/arm64", "linux/s390x"))
        empty = layout.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None})
        index = layout.index([empty, *images])
        walk = Walk(layout, index, platforms=choice("linux/amd64", "linux/arm64"))
        assert len(json.loads(walk.graph.manifests[-1].raw)["manifests"]) == 2

    def test_each_root_is_narrowed(self, layout: Layout) -> None:
        first = platforms_index(layout, "linux/amd64", "linux/arm64")
        second = platforms_index(layout, "linux/amd64", "linux/riscv64")
        walk = Walk(layout, first, second, first, platforms=choice("linux/amd64"))
        amd = listed(layout, first)[0]["digest"]
        assert [root.descriptor.digest for root in walk.graph.roots] == [amd, amd, amd]
        assert walk.manifests == [amd]


class TestSingleImages:
    """An image that is no index says in its config which platform it is for."""

    def made(self, layout: Layout, platform: str = "linux/arm64/v8") -> tuple[Root, str]:
        image = small_image(layout, platform=platform)
        del image["platform"]
        return root_of(image), layout.read(image["digest"])["config"]["digest"]

    @pytest.mark.parametrize("wanted", [("linux/arm64",), ("linux/amd64", "linux/arm64/v8")])
    def test_the_right_one_passes_and_its_config_stays_a_blob(self, layout: Layout, wanted: tuple[str, ...]) -> None:
        root, config = self.made(layout)
        walk = Walk(layout, root, platforms=choice(*wanted))
        assert walk.asked == [root.descriptor.digest, config]
        assert walk.manifests == [root.descriptor.digest]
        assert walk.graph.blobs[0].digest == config
        assert walk.graph.absent == ()

    def test_a_manifest_that_another_image_calls_its_config_is_no_less_needed(self, layout: Layout) -> None:
        index = platforms_index(layout, "linux/amd64")
        (image,) = listed(layout, index)
        config = {"mediaType": OCI_CONFIG, "digest": image["digest"], "size": image["size"]}
        odd = layout.document({"mediaType": OCI_MANIFEST, "config": config, "layers": []})
        walk = Walk(layout, index, odd, platforms=choice("linux/amd64"))
        assert walk.manifests == [image["digest"], odd["digest"]]

    def test_another_is_not_found(self, layout: Layout) -> None:
        root, _ = self.made(layout)
        with pytest.raises(NotFoundError, match="v1 has no platform linux/amd64, linux/s390x") as caught:
            Walk(layout, root, platforms=choice("linux/amd64", "linux/s390x"))
        assert caught.value.hint == "it is a single image, for linux/arm64/v8"

    def test_one_that_does_not_say_passes(self, layout: Layout) -> None:
        image = small_image(layout)
        document = layout.read(image["digest"])
        document["config"] = layout.blob(b"{}", OCI_CONFIG)
        walk = Walk(layout, layout.document(document), platforms=choice("linux/amd64"))
        assert len(walk.manifests) == 1

    def test_one_whose_config_is_lacking_is_left_to_be_missed_as_a_blob(self, layout: Layout) -> None:
        root, config = self.made(layout)
        walk = Walk(layout, root, platforms=choice("linux/amd64"), lacking={config})
        assert walk.graph.absent == ()
        assert config in {blob.digest for blob in walk.graph.blobs}

    def test_a_config_of_other_bytes_is_refused(self, layout: Layout) -> None:
        root, config = self.made(layout)
        content = layout.file(config).read_bytes()
        layout.file(config).write_bytes(content.replace(b"arm64", b"amd64"))
        with pytest.raises(IntegrityError, match=config):
            Walk(layout, root, platforms=choice("linux/amd64"))

    def test_a_config_that_claims_to_be_too_large_is_not_asked_for(self, layout: Layout) -> None:
        document = layout.read(small_image(layout)["digest"])
        config = document["config"]["digest"]
        document["config"]["size"] = limits.MAX_CONFIG
        Walk(layout, layout.document(document), platforms=choice("linux/amd64"), lacking={config})
        document["config"]["size"] += 1
        with pytest.raises(ArchiveError, match="larger than 8388608 bytes"):
            Walk(layout, layout.document(document), platforms=choice("linux/amd64"), lacking={config})

    def test_the_config_is_not_asked_for_where_it_does_not_matter(self, layout: Layout) -> None:
        root, config = self.made(layout)
        known = root_of(small_image(layout, platform="linux/arm64/v8"))
        index = platforms_index(layout, "linux/arm64/v8", "linux/amd64")
        artifact = root_of(layout.artifact(b"sbom"))
        walks = [
            Walk(layout, root),
            Walk(layout, root, platforms=choice("linux/amd64", explicit=False)),
            Walk(layout, known, platforms=choice("linux/arm64")),
            Walk(layout, index, platforms=choice("linux/arm64")),
            Walk(layout, artifact, platforms=choice("linux/arm64")),
        ]
        for walk in walks:
            assert config not in walk.asked
            assert len(walk.asked) == len(walk.manifests) + (walk is walks[3])


def test_a_layer_that_is_a_manifest_too_is_both(layout: Layout) -> None:
    inner = small_image(layout)
    raw = layout.file(inner["digest"]).read_bytes()
    document = layout.read(small_image(layout)["digest"])
    document["layers"] = [layout.blob(raw, OCI_LAYER)]
    outer = layout.document({**document, "mediaType": OCI_MANIFEST})
    walk = Walk(layout, layout.index([inner, outer]))
    assert inner["digest"] in walk.manifests
    assert inner["digest"] in {blob.digest for blob in walk.graph.blobs}


class TestEntriesWithAPlatform:
    """A single image whose entry in an index.json says what it is for."""

    def root(self, layout: Layout) -> Root:
        image = small_image(layout, platform="linux/amd64")
        return Root("v1", parse_descriptor(image, "the entry"))

    def test_another_platform_than_was_asked_for_is_refused(self, layout: Layout) -> None:
        builder = GraphBuilder(choice("linux/arm64"))
        with pytest.raises(NotFoundError, match="has no platform linux/arm64") as caught:
            builder.add_root(self.root(layout))
        assert "linux/amd64" in (caught.value.hint or "")

    def test_the_one_that_was_is_taken_and_any_where_none_was(self, layout: Layout) -> None:
        for wanted in (choice("linux/amd64"), choice("linux/arm64", explicit=False), ALL_PLATFORMS):
            builder = GraphBuilder(wanted)
            builder.add_root(self.root(layout))
            assert builder.needs
