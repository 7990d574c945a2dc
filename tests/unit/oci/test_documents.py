"""Parsing of manifests, indexes, configs and descriptors: what two parsers could read differently is refused."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from typing import Any, Final

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, InvalidNameError, UnsupportedError
from ocistream.oci.descriptor import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Platform,
    parse_platform,
)
from ocistream.oci.documents import (
    Document,
    check_config,
    guess_media_type,
    parse_config_platform,
    parse_descriptor,
    parse_diff_ids,
    parse_document,
    parse_outline,
)
from ocistream.oci.strict_json import canonical_json, discard_item, parse_json

DIGEST = "sha256:" + "a" * 64
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
#: A valid descriptor.
GOOD: dict[str, Any] = {"mediaType": LAYER, "digest": DIGEST, "size": 7}


def document_of(fields: dict[str, Any] | bytes, media_type: str = OCI_MANIFEST) -> Document:
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return parse_document(Descriptor(media_type, DIGEST, len(raw)), raw)


class TestJson:
    def test_an_object_is_parsed(self) -> None:
        assert parse_json(b' {"a": [1, -2.5, null, true, {}], "\\u00e4": "\\ud83d\\ude00"}\n', "x") == {
            "a": [1, -2.5, None, True, {}],
            "ä": "😀",
        }

    def test_nesting_too_deep_for_the_parser_is_reported(self) -> None:
        for raw in (b"[" * 100_000, b'{"a":' * 40_000, b'{"a":' + b"[" * 100_000):
            with pytest.raises(ArchiveError, match="x is nested too deeply: more than 64 levels"):
                parse_json(raw, "x")
        with pytest.raises(ArchiveError, match="an object has the same key twice"):
            parse_json(b'{"a": 1, "a": 1}', "x")

    @pytest.mark.parametrize("raw", [b"[]", b"1", b"null", b'"{}"', b"true"])
    def test_json_that_is_not_an_object_is_refused(self, raw: bytes) -> None:
        with pytest.raises(ArchiveError, match="not a JSON object"):
            parse_json(raw, "x")

    def test_items_have_a_limit(self) -> None:
        def wide(items: int) -> bytes:
            return b'{"a":[' + b",".join([b"1"] * items) + b"]}"

        # A brace, a bracket, and one comma less than items.
        parse_json(wide(limits.MAX_JSON_ITEMS - 1), "x", convert={"a": discard_item})
        with pytest.raises(ArchiveError, match=f"more than {limits.MAX_JSON_ITEMS} items"):
            parse_json(wide(limits.MAX_JSON_ITEMS), "x", convert={"a": discard_item})

    def test_size_has_a_limit(self) -> None:
        assert parse_json(b"{}" + b" " * 8, "x", 10) == {}
        with pytest.raises(ArchiveError, match="larger than 10 bytes"):
            parse_json(b"{}" + b" " * 9, "x", 10)


class TestDescriptors:
    def test_every_field_is_parsed(self) -> None:
        fields = {
            **GOOD,
            "platform": {"os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "1", "os.features": []},
            "annotations": {"b": "2", "a": "1"},
            "artifactType": "application/x",
            "urls": ["https://elsewhere.example"],
        }
        descriptor = parse_descriptor(fields, "it")
        assert descriptor == Descriptor(
            LAYER, DIGEST, 7, Platform("linux", "arm64", "v8", "1"), {"a": "1", "b": "2"}, "application/x"
        )
        assert descriptor.to_json() == {
            "mediaType": LAYER,
            "digest": DIGEST,
            "size": 7,
            "artifactType": "application/x",
            "platform": {"architecture": "arm64", "os": "linux", "os.version": "1", "variant": "v8"},
            "annotations": {"a": "1", "b": "2"},
        }

    def test_missing_fields_are_not_written(self) -> None:
        assert parse_descriptor(GOOD, "it").to_json() == GOOD

    @pytest.mark.parametrize(
        "changed",
        [
            {"mediaType": None},
            {"mediaType": ""},
            {"mediaType": 1},
            {"mediaType": "nonsense"},
            {"mediaType": "a/b\n"},
            {"mediaType": "a/b; charset=utf-8"},
            {"mediaType": "a/" + "b" * 128},
            {"digest": None},
            {"digest": 1},
            {"digest": ""},
            {"digest": "sha256:" + "A" * 64},
            {"digest": "sha256:" + "a" * 63},
            {"digest": "sha256:../../etc/passwd"},
            {"size": None},
            {"size": -1},
            {"size": True},
            {"size": False},
            {"size": 7.0},
            {"size": "7"},
            {"size": 2**63},
            {"platform": []},
            {"platform": "linux/amd64"},
            {"platform": {"os": 1, "architecture": "amd64"}},
            {"platform": {"os": "linux", "architecture": "amd64", "variant": ["v8"]}},
            {"annotations": []},
            {"annotations": {"a": 1}},
            {"annotations": {"a": None}},
            {"artifactType": 1},
        ],
    )
    def test_a_wrong_field_is_refused(self, changed: dict[str, Any]) -> None:
        with pytest.raises(ArchiveError, match=r"^layers\[0\]"):
            parse_descriptor({**GOOD, **changed}, "layers[0]")

    @pytest.mark.parametrize("fields", [None, [], "x", 1])
    def test_json_that_is_not_an_object_is_not_a_descriptor(self, fields: object) -> None:
        with pytest.raises(ArchiveError, match="it is not a descriptor"):
            parse_descriptor(fields, "it")

    def test_an_unknown_algorithm_is_not_supported(self) -> None:
        with pytest.raises(UnsupportedError, match="blake3") as caught:
            parse_descriptor({**GOOD, "digest": "blake3:" + "a" * 64}, "it")
        assert caught.value.exit_code == 8

    @pytest.mark.parametrize("size", [0, 2**63 - 1])
    def test_the_smallest_and_largest_size_are_valid(self, size: int) -> None:
        assert parse_descriptor({**GOOD, "size": size}, "it").size == size

    @pytest.mark.parametrize("platform", [{}, {"os": "", "architecture": ""}, {"os": "linux"}, None])
    def test_an_empty_platform_is_none(self, platform: dict[str, str] | None) -> None:
        assert parse_descriptor({**GOOD, "platform": platform}, "it").platform is None

    def test_media_types_tell_manifests_from_indexes_and_layers(self) -> None:
        kinds = {
            kind: (Descriptor(kind, DIGEST, 1).is_index, Descriptor(kind, DIGEST, 1).is_manifest)
            for kind in (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST, LAYER)
        }
        assert list(kinds.values()) == [(True, False)] * 2 + [(False, True)] * 2 + [(False, False)]
        foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        assert Descriptor(foreign, DIGEST, 1).is_foreign
        assert not Descriptor(LAYER, DIGEST, 1).is_foreign


class TestDocuments:
    def test_an_image_manifest_is_parsed(self) -> None:
        subject = {**GOOD, "mediaType": OCI_MANIFEST}
        document = document_of({"schemaVersion": 2, "config": GOOD, "layers": [GOOD, GOOD], "subject": subject})
        assert document.config == parse_descriptor(GOOD, "")
        assert document.layers == (document.config, document.config)
        assert document.manifests == ()
        assert document.subject == parse_descriptor(subject, "")

    @pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
    def test_an_index_is_parsed(self, media_type: str) -> None:
        child = {**GOOD, "mediaType": OCI_MANIFEST}
        document = document_of({"mediaType": media_type, "manifests": [child], "artifactType": "a/b"}, media_type)
        assert document.config is None
        assert document.layers == ()
        assert document.manifests == (parse_descriptor(child, ""),)
        assert document.artifact_type == "a/b"

    def test_a_child_of_an_index_that_is_neither_manifest_nor_index_is_a_blob(self) -> None:
        child = {**GOOD, "mediaType": OCI_MANIFEST}
        document = document_of({"manifests": [GOOD, child, GOOD]}, OCI_INDEX)
        assert document.manifests == (parse_descriptor(child, ""),)
        assert document.layers == (parse_descriptor(GOOD, ""),) * 2
        old = {**GOOD, "mediaType": "application/vnd.oci.artifact.manifest.v1+json"}
        # Refused when it is read: it is a manifest of an unsupported kind.
        assert document_of({"manifests": [old]}, OCI_INDEX).manifests == (parse_descriptor(old, ""),)

    def test_small_content_in_descriptors_is_decoded(self) -> None:
        data = {**GOOD, "data": "e30="}
        document = document_of({"config": data, "layers": [GOOD]})
        assert document.embedded == {GOOD["digest"]: b"{}"}
        assert document_of({"config": GOOD, "layers": [data]}).embedded == {GOOD["digest"]: b"{}"}
        large = {**data, "size": limits.MAX_EMBEDDED + 1}
        assert document_of({"config": large, "layers": []}).embedded == {}

    @pytest.mark.parametrize(("key", "media_type"), [("layers", OCI_MANIFEST), ("manifests", OCI_INDEX)])
    def test_a_long_list_is_parsed_and_one_over_the_limit_is_refused(
        self, key: str, media_type: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_LIST_ENTRIES", 1_000)
        fields = {"config": GOOD} if key == "layers" else {}
        # A document of this size is parsed in parts.
        document = document_of({**fields, key: [GOOD] * limits.MAX_LIST_ENTRIES}, media_type)
        assert (document.layers or document.manifests) == (parse_descriptor(GOOD, ""),) * limits.MAX_LIST_ENTRIES
        with pytest.raises(ArchiveError, match=f"has more than {limits.MAX_LIST_ENTRIES} {key}"):
            document_of({**fields, key: [GOOD] * (limits.MAX_LIST_ENTRIES + 1)}, media_type)

    def test_annotations_and_platforms_of_configs_and_layers_are_not_stored(self) -> None:
        fields = {**GOOD, "annotations": {"a": "b"}, "platform": {"os": "linux", "architecture": "arm"}}
        document = document_of({"config": fields, "layers": [fields]})
        assert document.config == document.layers[0] == parse_descriptor(GOOD, "")
        index = document_of({"manifests": [{**fields, "mediaType": OCI_MANIFEST}]}, OCI_INDEX)
        assert index.manifests[0].annotations == {"a": "b"}

    def test_an_error_about_the_kind_of_document_precedes_errors_in_its_lists(self) -> None:
        with pytest.raises(UnsupportedError, match="a Docker schema 1 manifest"):
            document_of({"schemaVersion": 1, "layers": [1]})
        with pytest.raises(ArchiveError, match="claims to be an image and an index"):
            document_of({"config": GOOD, "layers": [1], "manifests": [1]})
        with pytest.raises(ArchiveError, match=r"layers\[1\] of manifest \S+ is not a descriptor"):
            document_of({"config": GOOD, "layers": [GOOD, 1, 2]})

    @pytest.mark.parametrize(("key", "media_type"), [("layers", OCI_MANIFEST), ("manifests", OCI_INDEX)])
    def test_an_empty_list_may_be_written_as_null(self, key: str, media_type: str) -> None:
        fields = {"config": GOOD} if key == "layers" else {}
        document = document_of({**fields, key: None}, media_type)
        assert (document.layers, document.manifests) == ((), ())

    def test_a_manifest_of_an_unknown_kind_without_content_is_copied(self) -> None:
        document = document_of({"anything": 1}, "application/vnd.example.future.v9+json")
        assert (document.config, document.layers, document.manifests) == (None, (), ())

    @pytest.mark.parametrize("key", ["config", "layers", "blobs", "manifests"])
    def test_a_manifest_of_an_unknown_kind_with_content_is_refused(self, key: str) -> None:
        with pytest.raises(UnsupportedError, match=r"future\.v9\+json, which is not supported"):
            document_of({key: []}, "application/vnd.example.future.v9+json")

    def test_valid_annotations_of_a_referrer_are_kept(self) -> None:
        fields = {"config": GOOD, "layers": [], "subject": GOOD}
        assert document_of({**fields, "annotations": {"a": "b"}}).annotations == {"a": "b"}
        malformed: object
        for malformed in (None, [], {"a": 1}):
            assert document_of({**fields, "annotations": malformed}).annotations == {}

    @pytest.mark.parametrize(
        ("fields", "media_type"),
        [
            ({"config": GOOD, "layers": [], "manifests": []}, OCI_MANIFEST),
            ({"layers": [], "manifests": []}, OCI_INDEX),
            ({"config": GOOD, "manifests": []}, OCI_INDEX),
            ({"config": GOOD, "manifests": None}, OCI_MANIFEST),
        ],
    )
    def test_an_image_and_an_index_at_once_is_refused(self, fields: dict[str, Any], media_type: str) -> None:
        with pytest.raises(ArchiveError, match="an image and an index at once"):
            document_of(fields, media_type)

    @pytest.mark.parametrize(
        ("own", "media_type"), [(OCI_INDEX, OCI_MANIFEST), (OCI_MANIFEST, OCI_INDEX), (DOCKER_MANIFEST, OCI_MANIFEST)]
    )
    def test_a_media_type_that_contradicts_the_reference_is_refused(self, own: str, media_type: str) -> None:
        with pytest.raises(ArchiveError, match="is expected"):
            document_of({"mediaType": own, "config": GOOD, "layers": []}, media_type)

    @pytest.mark.parametrize(
        ("fields", "media_type"),
        [
            ({}, OCI_MANIFEST),
            ({"layers": []}, OCI_MANIFEST),
            ({"config": GOOD}, OCI_MANIFEST),
            ({"config": None, "layers": []}, OCI_MANIFEST),
            ({"config": GOOD, "layers": {}}, OCI_MANIFEST),
            ({"config": GOOD, "layers": [None]}, OCI_MANIFEST),
            ({"config": GOOD, "layers": [], "subject": "x"}, OCI_MANIFEST),
            ({"config": GOOD, "layers": [], "mediaType": 1}, OCI_MANIFEST),
            ({}, OCI_INDEX),
            ({"manifests": GOOD}, OCI_INDEX),
            ({"layers": [GOOD]}, OCI_INDEX),
            ({"manifests": [{**GOOD, "size": -1}]}, OCI_INDEX),
            (b"[]", OCI_INDEX),
            (b"\x1f\x8b\x08", OCI_MANIFEST),
        ],
    )
    def test_a_malformed_document_is_refused(self, fields: dict[str, Any] | bytes, media_type: str) -> None:
        with pytest.raises(ArchiveError, match=DIGEST):
            document_of(fields, media_type)

    @pytest.mark.parametrize(
        "media_type",
        [
            "application/vnd.docker.distribution.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "application/vnd.oci.artifact.manifest.v1+json",
            "application/vnd.cncf.oras.artifact.manifest.v1+json",
        ],
    )
    def test_an_old_kind_is_not_supported(self, media_type: str) -> None:
        with pytest.raises(UnsupportedError, match="not supported"):
            document_of({}, media_type)

    def test_a_schema_1_manifest_in_disguise_is_not_supported(self) -> None:
        with pytest.raises(UnsupportedError, match="schema 1"):
            document_of({"schemaVersion": 1, "fsLayers": []}, DOCKER_MANIFEST)


class TestKeys:
    """Keys that differ from those of the specifications only in case: Go's tools read them too."""

    IMAGE: Final = {"schemaVersion": 2, "config": GOOD, "layers": [GOOD]}
    INDEX: Final = {"schemaVersion": 2, "manifests": [{**GOOD, "mediaType": OCI_MANIFEST}]}

    @pytest.mark.parametrize("key", ["Layers", "Config", "MediaType", "Manifests", "SchemaVersion", "subJect", "BLOBS"])
    def test_keys_of_a_document(self, key: str) -> None:
        for fields, media_type in ((self.IMAGE, OCI_MANIFEST), (self.INDEX, OCI_INDEX)):
            for raw in ({key: [], **fields}, {**fields, key: []}):
                with pytest.raises(ArchiveError, match=f"^manifest {DIGEST} has the key '{key}'"):
                    document_of(raw, media_type)
                with pytest.raises(ArchiveError, match="has the key"):
                    parse_outline(json.dumps(raw).encode(), "it")

    @pytest.mark.parametrize("key", ["Digest", "SIZE", "mediatype", "Platform", "Urls", "Data", "ArtifactType"])
    def test_keys_of_a_descriptor(self, key: str) -> None:
        wrong = {**GOOD, key: GOOD["digest"]}
        for fields in ({**self.IMAGE, "config": wrong}, {**self.IMAGE, "layers": [GOOD, wrong]}):
            with pytest.raises(ArchiveError, match=f"has the key '{key}'"):
                document_of(fields)
        with pytest.raises(ArchiveError, match=f"^subject of manifest .* has the key '{key}'"):
            document_of({**self.IMAGE, "subject": wrong})

    @pytest.mark.parametrize("key", ["OS", "Architecture", "Variant", "OS.Version", "os.Features"])
    def test_keys_of_a_platform(self, key: str) -> None:
        with pytest.raises(ArchiveError, match=f"^platform of it has the key '{key}'"):
            parse_descriptor({**GOOD, "platform": {"os": "linux", "architecture": "arm", key: "x"}}, "it")

    @pytest.mark.parametrize(
        "fields",
        [{"RootFS": {}}, {"OS": "linux"}, {"rootfs": {"diff_ids": [], "Diff_Ids": []}}, {"rootf\u017f": {}}],
    )
    def test_keys_of_a_config(self, fields: dict[str, Any]) -> None:
        raw = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, **fields}).encode()
        for read in (check_config, parse_diff_ids):
            with pytest.raises(ArchiveError, match="has the key"):
                read(raw, "it")

    def test_keys_of_maps_and_of_the_runtime_config_are_data(self) -> None:
        maps = {"annotations": {"layers": "a", "Layers": "b", "DIGEST": "c"}, "x-Other": {"Digest": 1}}
        document = document_of({**self.IMAGE, **maps, "layers": [{**GOOD, **maps, "x": 1}]})
        assert document.layers == (parse_descriptor(GOOD, "it"),)
        assert dict(parse_descriptor({**GOOD, **maps}, "it").annotations) == maps["annotations"]
        raw = json.dumps({"os": "linux", "architecture": "arm", "rootfs": {"type": "layers"}, "Id": "x", "Size": 1,
                          "config": {"Labels": {"os": "", "OS": ""}, "Env": [], "labels": {}}}).encode()  # fmt: skip
        check_config(raw, "it")
        assert parse_config_platform(raw, "it") == Platform("linux", "arm")


class TestMediaTypeOf:
    @pytest.mark.parametrize(
        ("fields", "media_type"),
        [
            ({"mediaType": DOCKER_LIST, "manifests": []}, DOCKER_LIST),
            ({"manifests": []}, OCI_INDEX),
            ({"config": {}}, OCI_MANIFEST),
            ({"layers": []}, OCI_MANIFEST),
            ({"schemaVersion": 1}, "application/vnd.docker.distribution.manifest.v1+json"),
        ],
    )
    def test_a_media_type_is_guessed_from_the_field_or_the_keys(self, fields: dict[str, Any], media_type: str) -> None:
        assert guess_media_type(json.dumps(fields).encode(), "it") == media_type

    def test_a_document_that_is_neither_is_refused(self) -> None:
        with pytest.raises(ArchiveError, match="neither a manifest nor an index"):
            guess_media_type(b'{"schemaVersion": 2}', "it")


class TestPlatforms:
    @pytest.mark.parametrize(
        ("text", "platform"),
        [
            ("linux/amd64", Platform("linux", "amd64")),
            ("linux/arm64/v8", Platform("linux", "arm64", "v8")),
            ("linux/x86_64", Platform("linux", "amd64")),
            ("linux/aarch64", Platform("linux", "arm64")),
            ("linux/i386", Platform("linux", "386")),
            ("windows(10.0.17763.1)/amd64", Platform("windows", "amd64", "", "10.0.17763.1")),
        ],
    )
    def test_a_platform_is_parsed(self, text: str, platform: Platform) -> None:
        assert parse_platform(text) == platform
        assert parse_platform(str(platform)) == platform

    @pytest.mark.parametrize(
        "text", ["", "linux", "linux/", "/amd64", "linux/amd64/", "linux/amd64/v1/x", "Linux/amd64", "linux/amd64\n"]
    )
    def test_a_malformed_platform_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidNameError, match="malformed platform") as caught:
            parse_platform(text)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        ("wanted", "offered", "covered"),
        [
            ("linux/arm64", "linux/arm64/v8", True),
            ("linux/arm64/v8", "linux/arm64", True),
            ("linux/arm64", "linux/arm64/v9", True),
            ("linux/arm64/v9", "linux/arm64", False),
            ("linux/arm", "linux/arm/v6", True),
            ("linux/arm/v7", "linux/arm", True),
            ("linux/arm/v6", "linux/arm/v7", False),
            ("linux/amd64/v1", "linux/amd64", True),
            ("linux/amd64/v3", "linux/amd64", False),
            ("linux/riscv64/x", "linux/riscv64", False),
            ("linux/amd64", "windows/amd64", False),
            ("windows/amd64", "windows(10.0.1)/amd64", True),
            ("windows(10.0.1)/amd64", "windows(10.0.2)/amd64", False),
        ],
    )
    def test_variants_match_as_specified(self, wanted: str, offered: str, covered: bool) -> None:
        assert parse_platform(wanted).matches(parse_platform(offered)) is covered

    def test_the_default_variant_is_preferred(self) -> None:
        wanted = parse_platform("linux/arm")
        assert wanted.has_same_variant(parse_platform("linux/arm/v7"))
        assert not wanted.has_same_variant(parse_platform("linux/arm/v6"))

    def test_a_config_names_its_platform(self) -> None:
        raw = json.dumps({"os": "linux", "architecture": "arm64", "variant": "v8", "config": {}}).encode()
        assert parse_config_platform(raw, OCI_CONFIG) == Platform("linux", "arm64", "v8")
        assert parse_config_platform(b"{}", OCI_CONFIG) is None
        with pytest.raises(ArchiveError, match="the config"):
            parse_config_platform(b'{"os": 1}', "the config")

    def test_a_config_may_be_larger_than_a_manifest(self) -> None:
        raw = b"{}" + b" " * limits.MAX_MANIFEST
        assert parse_config_platform(raw, "it") is None
        with pytest.raises(ArchiveError, match="larger"):
            parse_config_platform(b"{}" + b" " * limits.MAX_CONFIG, "it")


def test_canonical_json_is_the_same_each_time() -> None:
    assert canonical_json({"b": [1, "ä"], "a": None}) == '{"b":[1,"ä"],"a":null}'.encode()


def test_the_media_type_of_a_large_manifest_is_guessed() -> None:
    lists: dict[str, list[object]] = {"layers": [GOOD] * 9000, "history": [{"v1Compatibility": "x" * 100}] * 9000}
    raw = json.dumps({"mediaType": OCI_MANIFEST, "schemaVersion": 1, **lists}).encode()
    fields = parse_outline(raw, "it")
    assert (fields["mediaType"], fields["schemaVersion"], fields.keys() & lists.keys()) == (OCI_MANIFEST, 1, {"layers"})
    assert guess_media_type(raw, "it") == OCI_MANIFEST
    # The length of a list that is not parsed is no reason to refuse a manifest either.
    assert document_of({"schemaVersion": 2, "x": lists["layers"]}, "a/future").layers == ()
    with pytest.raises(UnsupportedError):
        document_of({"blobs": lists["layers"]}, "a/future")


def test_the_bytes_of_a_refused_manifest_are_freed() -> None:
    """Many clients may push manifests that are refused, and Python's collector may run much later."""
    raw = json.dumps({"schemaVersion": 2, "config": GOOD, "layers": [GOOD, {}]}).encode()
    descriptor = Descriptor(OCI_MANIFEST, f"sha256:{'0' * 64}", len(raw))
    references = sys.getrefcount(raw)
    gc.disable()
    try:
        with contextlib.suppress(ArchiveError):
            parse_document(descriptor, raw)
        assert sys.getrefcount(raw) == references
    finally:
        gc.enable()
