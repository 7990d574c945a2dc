"""What `index.json` and `manifest.json` say: how images are named, listed and chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, OcistreamError, UsageError
from ocistream.layout.index import (
    FULL_NAME,
    OCI_LAYOUT,
    REF_NAME,
    blob_name,
    build_entry,
    build_index_json,
    build_manifest_json,
    build_roots,
    check_layout_file,
    format_image_names,
    image_name_of,
    parse_index_entries,
    select_every_image,
    select_existing_images,
    select_named_images,
    select_only_image,
)
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Platform, parse_platform
from ocistream.oci.graph import Graph, Root
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from tests.contract.image_shapes import nested_index, with_attestation
from tests.images import Layout, small_image, tar_layer, two_platforms
from tests.observers import NothingEarly
from tests.schemas import validate

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def descriptor(digest: str = DIGEST, **annotations: str) -> Descriptor:
    return Descriptor(OCI_MANIFEST, digest, 7, annotations=annotations)


def named(name: str, digest: str = DIGEST) -> Root:
    return build_roots([descriptor(digest, **{REF_NAME: name})])[0]


class TestLayoutFile:
    def test_ours_is_valid_and_understood(self) -> None:
        validate(OCI_LAYOUT, "layout")
        check_layout_file(OCI_LAYOUT)

    def test_later_minor_versions_are_understood(self) -> None:
        check_layout_file(b'{"imageLayoutVersion": "1.1.0", "more": 1}')

    @pytest.mark.parametrize(
        "raw", [b"{}", b"", b"[]", b'{"imageLayoutVersion": "2.0.0"}', b'{"imageLayoutVersion": 1.0}', b"x" * 5000]
    )
    def test_anything_else_is_refused(self, raw: bytes) -> None:
        with pytest.raises(ArchiveError, match="oci-layout"):
            check_layout_file(raw)


class TestParsing:
    def test_entries_come_in_order(self) -> None:
        entries = [descriptor(OTHER), descriptor(**{REF_NAME: "v1"}), descriptor(**{FULL_NAME: "r.example/a:1"})]
        raw = build_index_json(entries)
        validate(raw, "index")
        assert parse_index_entries(raw) == entries

    @pytest.mark.uncounted
    def test_a_long_index_keeps_what_others_wrote_and_one_that_is_too_long_is_refused(self) -> None:
        others = {"data": "e30=", "urls": [], "platform": {"os": "linux", "architecture": "arm", "os.features": ["x"]}}
        entry = {**descriptor(**{REF_NAME: "v1"}).to_json(), **others, "artifactType": None}
        before = json.dumps({"x": [1], "manifests": [entry] * limits.MAX_LIST_ENTRIES, "y": 2}).encode()
        entries = parse_index_entries(before)
        # So large a document is parsed piece by piece.
        assert len(before) > limits.MAX_JSON_UNSPLIT
        written = json.loads(build_index_json(entries, before))
        assert written == {"x": [1], "manifests": [entry] * limits.MAX_LIST_ENTRIES, "y": 2}
        assert list(written) == ["x", "manifests", "y"]
        with pytest.raises(ArchiveError, match=f"index.json has more than {limits.MAX_LIST_ENTRIES} manifests"):
            parse_index_entries(json.dumps({"manifests": [entry] * (limits.MAX_LIST_ENTRIES + 1)}).encode())

    def test_of_an_entry_only_what_others_wrote_is_held_beside_the_descriptor(self) -> None:
        plain = replace(descriptor(**{REF_NAME: "v1"}), platform=Platform("linux", "arm"), artifact_type="a/b")
        (entry,) = parse_index_entries(json.dumps({"manifests": [plain.to_json()]}).encode())
        assert entry.extra_json is None
        (entry,) = parse_index_entries(json.dumps({"manifests": [{**plain.to_json(), "x": None}]}).encode())
        assert entry.extra_json == b'{"x":null}'
        assert replace(entry, annotations={}).to_json() == {**replace(plain, annotations={}).to_json(), "x": None}

    @pytest.mark.parametrize("raw", [b'{"manifests": null}', b'{"manifests": []}'])
    def test_an_empty_list_may_be_null(self, raw: bytes) -> None:
        assert parse_index_entries(raw) == []

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"{}",
            b"[]",
            b"not json",
            b'{"manifests": {}}',
            b'{"manifests": [1]}',
            b'{"manifests": [], "manifests": []}',
            b'{"manifests": [], "layers": []}',
            b'{"manifests": [{"mediaType": "a/b", "digest": "sha256:abc", "size": 1}]}',
            b'{"manifests": []}' + b" " * limits.MAX_MANIFEST,
        ],
    )
    def test_a_malformed_index_is_refused(self, raw: bytes) -> None:
        with pytest.raises(ArchiveError, match=r"index\.json") as caught:
            parse_index_entries(raw)
        assert caught.value.exit_code == 6


class TestNames:
    @pytest.mark.parametrize(
        ("annotations", "name"),
        [
            ({}, None),
            ({REF_NAME: ""}, None),
            ({REF_NAME: "v1"}, "v1"),
            ({FULL_NAME: "r.example/a:v1", REF_NAME: "v1"}, "r.example/a:v1"),
            ({"other": "x"}, None),
        ],
    )
    def test_an_entry_goes_by_its_full_name_or_its_tag(self, annotations: dict[str, str], name: str | None) -> None:
        assert image_name_of(descriptor(**annotations)) == name

    def test_a_root_that_is_called_as_before_keeps_its_entry(self) -> None:
        entry = descriptor(**{FULL_NAME: "r.example/a:1", REF_NAME: "odd", "x": "y"})
        assert build_entry(Root("r.example/a:1", entry)) is entry
        assert build_entry(Root(None, entry)) is entry

    @pytest.mark.parametrize(
        ("name", "annotations"),
        [
            ("r.example/org/app:v1", {FULL_NAME: "r.example/org/app:v1", REF_NAME: "v1"}),
            ("docker.io/library/nginx:1", {FULL_NAME: "docker.io/library/nginx:1", REF_NAME: "1"}),
            ("v1", {REF_NAME: "v1"}),
            ("nginx:1", {REF_NAME: "nginx:1"}),
            ("r.example/app", {REF_NAME: "r.example/app"}),
            ("any words", {REF_NAME: "any words"}),
            ("app:v1@blake3:abc", {REF_NAME: "app:v1@blake3:abc"}),
        ],
    )
    def test_a_root_is_entered_under_its_name(self, name: str, annotations: dict[str, str]) -> None:
        before = descriptor(**{REF_NAME: "old", FULL_NAME: "r.example/old:1", "x": "y"})
        assert build_entry(Root(name, before)).annotations == {"x": "y", **annotations}


class TestChoosing:
    full = build_roots(
        [
            descriptor(**{FULL_NAME: "docker.io/library/nginx:1", REF_NAME: "1"}),
            descriptor(OTHER, **{FULL_NAME: "r.example/app:2", REF_NAME: "2"}),
            descriptor(OTHER, **{FULL_NAME: "r.example/other:1", REF_NAME: "1"}),
        ]
    )

    @pytest.mark.parametrize(
        ("name", "place"),
        [
            ("docker.io/library/nginx:1", 0),
            ("nginx:1", 0),
            ("r.example/app:2", 1),
            ("2", 1),
            (DIGEST, 0),
        ],
    )
    def test_an_image_is_found_by_each_of_its_names(self, name: str, place: int) -> None:
        assert list(select_named_images([name])(self.full)) == [self.full[place]]

    def test_images_come_in_the_order_of_the_question(self) -> None:
        assert list(select_named_images(["2", "nginx:1"])(self.full)) == [self.full[1], self.full[0]]

    @pytest.mark.parametrize("name", ["3", "nginx", "NGINX", "r.example/app", "", "sha256:" + "c" * 64])
    def test_one_that_is_not_there_is_not_found_and_those_there_are_listed(self, name: str) -> None:
        with pytest.raises(NotFoundError) as caught:
            select_named_images([name])(self.full)
        assert "docker.io/library/nginx:1, r.example/app:2" in (caught.value.hint or "")

    def test_a_tag_of_two_images_is_no_choice(self) -> None:
        with pytest.raises(UsageError, match="2 images have the name '1'"):
            select_named_images(["1"])(self.full)

    def test_two_entries_of_one_image_are_one(self) -> None:
        twice = [named("v1"), named("v1")]
        assert list(select_named_images(["v1"])(twice)) == twice[:1]

    def test_where_each_name_has_a_place_a_digest_chooses_all_names(self) -> None:
        nameless = Root(None, descriptor())
        names = [named("r.example/app:1"), named("r.example/app:2")]
        assert list(select_named_images([DIGEST])([nameless, *names])) == names[:1]
        assert list(select_named_images([DIGEST], all_names=True)([nameless, *names])) == names
        assert list(select_named_images([DIGEST, "r.example/app:2"], all_names=True)([nameless, *names])) == names

    def test_every_image_is_all_of_them(self) -> None:
        assert select_every_image(self.full) == self.full

    def test_the_only_image_is_chosen_without_a_name(self) -> None:
        nameless = Root(None, descriptor(OTHER))
        assert list(select_only_image([nameless])) == [nameless]
        # A signature of an image that is not here does not count beside an image.
        stray = Root(None, descriptor(OTHER), is_stray=True)
        assert list(select_only_image([stray, named("v1")])) == [named("v1")]
        assert list(select_only_image([stray])) == [stray]
        # Two names of one image are one image.
        assert list(select_only_image([named("v1"), named("v2")])) == [named("v1")]
        assert list(select_only_image([Root(None, descriptor()), named("v1")])) == [named("v1")]

    def test_of_several_none_is_the_only_one(self) -> None:
        with pytest.raises(UsageError, match="the archive or layout has 2 images") as caught:
            select_only_image(self.full)
        assert "with --to: docker.io/library/nginx:1, r.example/app:2" in (caught.value.hint or "")
        with pytest.raises(UsageError):
            select_only_image([Root(None, descriptor()), Root(None, descriptor(OTHER))])

    def test_an_image_without_a_name_is_a_second_image(self) -> None:
        with pytest.raises(UsageError, match="the archive or layout has 2 images") as caught:
            select_only_image([named("r.example/app:1"), Root(None, descriptor(OTHER))])
        assert caught.value.hint == f"choose one with --image: r.example/app:1, {OTHER}"

    def test_of_none_there_is_none(self) -> None:
        with pytest.raises(NotFoundError, match="no image"):
            select_only_image([])

    def test_a_long_list_is_cut(self) -> None:
        assert format_image_names([]) == "none"
        assert format_image_names([named(str(n)) for n in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
        assert format_image_names([named(str(n)) for n in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
        assert format_image_names([Root(None, descriptor()), named("a\x1bb")]) == f"{DIGEST}, a?b"


class TestDockersManifest:
    def made(self, layout: Layout, platforms: PlatformChoice = ALL_PLATFORMS) -> list[dict[str, Any]]:
        graph = LayoutSource(layout.path, platforms=platforms).resolve(NothingEarly())
        entries: list[dict[str, Any]] = json.loads(build_manifest_json(graph))
        return entries

    def test_an_image_is_entered_with_paths_into_blobs_and_its_short_name(self, layout: Layout) -> None:
        image = small_image(layout, name="docker.io/library/app:v1")
        manifest = layout.read(image["digest"])
        assert self.made(layout) == [
            {
                "Config": blob_name(manifest["config"]["digest"]),
                "RepoTags": ["app:v1"],
                "Layers": [blob_name(layer["digest"]) for layer in manifest["layers"]],
            }
        ]

    def test_several_names_of_one_image_are_one_entry(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        layout.name(image, "r.example/app:v1", "docker.io/org/app:v2")
        (entry,) = self.made(layout)
        assert entry["RepoTags"] == ["r.example/app:v1", "org/app:v2"]

    def test_a_name_that_docker_cannot_have_is_none(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        layout.name(image, "a b", "app:v1@blake3:abc")
        assert self.made(layout)[0]["RepoTags"] is None

    @pytest.mark.parametrize("make", [two_platforms, nested_index])
    def test_of_an_index_it_is_the_image_for_amd64(self, layout: Layout, make: Callable[..., Any]) -> None:
        make(layout, name="r.example/app:v1")
        (entry,) = self.made(layout)
        config = json.loads((layout.path / entry["Config"]).read_bytes())
        assert config["architecture"] == "amd64"

    def test_without_one_it_is_the_first(self, layout: Layout) -> None:
        images = [layout.image([tar_layer({"x": p.encode()})], platform=p) for p in ("linux/s390x", "linux/arm64")]
        layout.index(images, name="r.example/app:v1")
        (entry,) = self.made(layout)
        assert json.loads((layout.path / entry["Config"]).read_bytes())["architecture"] == "s390x"

    def test_attestations_and_artifacts_are_no_images(self, layout: Layout) -> None:
        with_attestation(layout, "v1")
        layout.artifact(b"sbom", name="v2")
        # Older attestations have the config of an image.
        vouching = {
            **layout.image([tar_layer({"vouch": b""})]),
            "platform": {"os": "unknown", "architecture": "unknown"},
        }
        layout.index([vouching], name="v3")
        assert len(self.made(layout)) == 1

    def test_an_index_that_is_lacking_has_no_entry(self, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        layout.file(index["digest"]).unlink()
        assert self.made(layout) == []

    def test_a_narrowed_image_is_entered(self, layout: Layout) -> None:
        two_platforms(layout, name="r.example/app:v1")
        (entry,) = self.made(layout, PlatformChoice((parse_platform("linux/arm64"),)))
        assert entry["RepoTags"] == ["r.example/app:v1"]

    def test_indexes_that_list_each_other_a_thousand_times_are_looked_into_once(self, layout: Layout) -> None:
        found = small_image(layout)
        for _ in range(limits.MAX_INDEX_DEPTH - 1):
            found = layout.index([found] * 1000)
        layout.name(found, "v1")
        assert len(self.made(layout)) == 1


def test_an_index_of_ours_says_so() -> None:
    document = json.loads(build_index_json([]))
    assert document == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


def test_a_path_is_made_of_a_digest_and_of_nothing_else() -> None:
    assert blob_name(DIGEST) == "blobs/sha256/" + "a" * 64
    with pytest.raises(OcistreamError):
        blob_name("sha256:../../../etc/passwd")


def test_an_empty_graph_has_empty_documents() -> None:
    assert build_manifest_json(Graph((), (), ())) == b"[]"


def test_of_two_images_of_one_name_the_digests_are_named() -> None:
    roots = [named("v1"), named("v1", f"sha256:{'b' * 64}")]
    with pytest.raises(UsageError, match="2 images have the name 'v1'") as caught:
        select_named_images(["v1"])(roots)
    assert all(root.descriptor.digest in (caught.value.hint or "") for root in roots)


def test_nothing_is_no_image_to_copy() -> None:
    with pytest.raises(NotFoundError, match="the archive or layout has no images"):
        select_existing_images([])
    assert select_existing_images([named("v1")]) == [named("v1")]
