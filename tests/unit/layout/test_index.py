"""`index.json` and `manifest.json`: how images are named, listed and selected."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ocistream import limits
from ocistream.archive.destination import build_manifest_json, list_docker_images
from ocistream.errors import ArchiveError, OcistreamError
from ocistream.layout.image_selection import Selection
from ocistream.layout.index import (
    FULL_NAME,
    OCI_LAYOUT,
    REF_NAME,
    blob_name,
    build_entry,
    build_index_json,
    build_roots,
    check_layout_file,
    image_name_of,
    parse_index_json,
)
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import OCI_MANIFEST, Descriptor, Platform
from ocistream.oci.graph import Root
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
    def test_our_layout_file_is_valid(self) -> None:
        validate(OCI_LAYOUT, "layout")
        check_layout_file(OCI_LAYOUT)

    def test_later_minor_versions_are_accepted(self) -> None:
        check_layout_file(b'{"imageLayoutVersion": "1.1.0", "more": 1}')

    @pytest.mark.parametrize(
        "raw", [b"{}", b"", b"[]", b'{"imageLayoutVersion": "2.0.0"}', b'{"imageLayoutVersion": 1.0}', b"x" * 5000]
    )
    def test_anything_else_is_refused(self, raw: bytes) -> None:
        with pytest.raises(ArchiveError, match="oci-layout"):
            check_layout_file(raw)


class TestParsing:
    def test_entries_keep_their_order(self) -> None:
        entries = [descriptor(OTHER), descriptor(**{REF_NAME: "v1"}), descriptor(**{FULL_NAME: "r.example/a:1"})]
        raw = build_index_json(entries)
        validate(raw, "index")
        assert [*parse_index_json(raw).entries] == entries

    def test_a_long_index_keeps_unknown_fields_and_one_over_the_limit_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_LIST_ENTRIES", 1_000)
        others = {"data": "e30=", "urls": [], "platform": {"os": "linux", "architecture": "arm", "os.features": ["x"]}}
        entry = {**descriptor(**{REF_NAME: "v1"}).to_json(), **others, "artifactType": None}
        before = json.dumps({"x": [1], "manifests": [entry] * limits.MAX_LIST_ENTRIES, "y": 2}).encode()
        entries = parse_index_json(before).entries
        # A document of this size is parsed in parts.
        assert len(before) > limits.MAX_JSON_UNSPLIT
        written = json.loads(build_index_json(entries, before))
        assert written == {"x": [1], "manifests": [entry] * limits.MAX_LIST_ENTRIES, "y": 2}
        assert list(written) == ["x", "manifests", "y"]
        with pytest.raises(ArchiveError, match=f"index.json has more than {limits.MAX_LIST_ENTRIES} manifests"):
            parse_index_json(json.dumps({"manifests": [entry] * (limits.MAX_LIST_ENTRIES + 1)}).encode())

    def test_only_unknown_fields_are_stored_in_addition_to_the_descriptor(self) -> None:
        plain = replace(descriptor(**{REF_NAME: "v1"}), platform=Platform("linux", "arm"), artifact_type="a/b")
        (entry,) = parse_index_json(json.dumps({"manifests": [plain.to_json()]}).encode()).entries
        assert entry.extra_json is None
        (entry,) = parse_index_json(json.dumps({"manifests": [{**plain.to_json(), "x": None}]}).encode()).entries
        assert entry.extra_json == b'{"x":null}'
        assert replace(entry, annotations={}).to_json() == {**replace(plain, annotations={}).to_json(), "x": None}

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
            parse_index_json(raw)
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
    def test_the_name_of_an_entry_is_its_full_name_or_its_tag(
        self, annotations: dict[str, str], name: str | None
    ) -> None:
        assert image_name_of(descriptor(**annotations)) == name

    def test_a_root_with_the_same_name_keeps_its_entry(self) -> None:
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
    def test_a_root_is_listed_under_its_name(self, name: str, annotations: dict[str, str]) -> None:
        before = descriptor(**{REF_NAME: "old", FULL_NAME: "r.example/old:1", "x": "y"})
        assert build_entry(Root(name, before)).annotations == {"x": "y", **annotations}


class TestManifestJson:
    def made(self, layout: Layout, platforms: PlatformChoice = ALL_PLATFORMS) -> list[dict[str, Any]]:
        graph = LayoutSource(layout.path, Selection(platforms=platforms, referrers="list")).resolve(NothingEarly())
        entries: list[dict[str, Any]] = json.loads(build_manifest_json(graph, list_docker_images(graph), blob_name))
        return entries

    def test_several_names_of_an_image_are_in_one_entry(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        layout.name(image, "r.example/app:v1", "docker.io/org/app:v2")
        (entry,) = self.made(layout)
        assert entry["RepoTags"] == ["r.example/app:v1", "org/app:v2"]

    def test_a_name_that_docker_cannot_use_is_omitted(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        layout.name(image, "a b", "app:v1@blake3:abc")
        assert self.made(layout)[0]["RepoTags"] is None

    @pytest.mark.parametrize("make", [two_platforms, nested_index])
    def test_the_amd64_image_of_an_index_is_listed(self, layout: Layout, make: Callable[..., Any]) -> None:
        make(layout, name="r.example/app:v1")
        (entry,) = self.made(layout)
        config = json.loads((layout.path / entry["Config"]).read_bytes())
        assert config["architecture"] == "amd64"

    def test_without_an_amd64_image_the_first_is_listed(self, layout: Layout) -> None:
        images = [layout.image([tar_layer({"x": p.encode()})], platform=p) for p in ("linux/s390x", "linux/arm64")]
        layout.index(images, name="r.example/app:v1")
        (entry,) = self.made(layout)
        assert json.loads((layout.path / entry["Config"]).read_bytes())["architecture"] == "s390x"

    def test_attestations_and_artifacts_are_not_listed(self, layout: Layout) -> None:
        with_attestation(layout, "v1")
        layout.artifact(b"sbom", name="v2")
        # Older attestations have the config of an image.
        vouching = {
            **layout.image([tar_layer({"vouch": b""})]),
            "platform": {"os": "unknown", "architecture": "unknown"},
        }
        layout.index([vouching], name="v3")
        assert len(self.made(layout)) == 1

    def test_nested_indexes_with_repeated_entries_are_read_once(self, layout: Layout) -> None:
        found = small_image(layout)
        for _ in range(limits.MAX_INDEX_DEPTH - 1):
            found = layout.index([found] * 1000)
        layout.name(found, "v1")
        assert len(self.made(layout)) == 1


def test_only_a_digest_becomes_a_path() -> None:
    assert blob_name(DIGEST) == "blobs/sha256/" + "a" * 64
    with pytest.raises(OcistreamError):
        blob_name("sha256:../../../etc/passwd")
