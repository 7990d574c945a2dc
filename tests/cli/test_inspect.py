"""`ocistream inspect`: the description of a location, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.forms import FORMS, location
from tests.cli.terminal import on_terminal
from tests.faulty_registry import Fault, FaultyRegistry, refusal
from tests.images import OCI_INDEX, OCI_MANIFEST, Descriptor, Layout, small_image, tar_layer, two_platforms
from tests.registry_http import seed
from tests.runner import measured, ocistream
from tests.schemas import validate_ours

Inspect = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture(params=FORMS)
def inspected(request: pytest.FixtureRequest, layout: Layout, tmp_path: Path) -> Inspect:
    """Return a function that returns the JSON document and the text output about the layout, in each form."""

    def run(*options: str) -> tuple[dict[str, Any], str]:
        end, stdin = location(request.param, layout, tmp_path)
        as_json, as_text = (ocistream("inspect", end, *options, *more, stdin=stdin) for more in (["--json"], []))
        assert as_json.code == as_text.code == 0, as_json.err
        document = json.loads(as_json.out)
        validate_ours(document, "inspect")
        return document, as_text.out.decode()

    return run


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    return small_image(layout, name="v1", annotations={"org.example.why": "because"})


class TestArchives:
    def test_an_image_is_described_down_to_its_layers(
        self, inspected: Inspect, layout: Layout, image: Descriptor
    ) -> None:
        document, text = inspected()
        (found,) = document["images"]
        manifest = layout.read(image["digest"])
        assert (found["name"], found["digest"], found["kind"]) == ("v1", image["digest"], "image")
        assert found["platform"] == "linux/amd64"
        assert found["annotations"] == {"org.example.why": "because"}
        assert [(layer["digest"], layer["size"]) for layer in found["layers"]] == [
            (layer["digest"], layer["size"]) for layer in manifest["layers"]
        ]
        assert {layer["compression"] for layer in found["layers"]} == {"gzip"}
        assert found["bytes"] == manifest["config"]["size"] + sum(layer["size"] for layer in manifest["layers"])
        for word in ("v1", image["digest"], "linux/amd64", "2 layers", "org.example.why: because", "gzip"):
            assert word in text

    def test_an_index_is_described_with_its_platforms_and_shared_blobs(
        self, inspected: Inspect, layout: Layout
    ) -> None:
        index = two_platforms(layout, name="both")
        document, text = inspected()
        (found,) = document["images"]
        assert (found["kind"], found["digest"]) == ("index", index["digest"])
        assert [child["platform"] for child in found["manifests"]] == ["linux/amd64", "linux/arm64/v8"]
        shared = [[layer.get("sharedBy") for layer in child["layers"]] for child in found["manifests"]]
        assert shared == [[2, None], [2, None]]
        saved = document["totals"]["bytesUnshared"] - document["totals"]["bytes"]
        assert saved == found["manifests"][0]["layers"][0]["size"]
        assert "in 2 images" in text
        assert "saved by sharing" in text

    def test_one_platform_of_an_index_is_described(self, inspected: Inspect, layout: Layout) -> None:
        two_platforms(layout, name="both")
        document, _ = inspected("--platform", "linux/arm64")
        assert [image["platform"] for image in document["images"]] == ["linux/arm64/v8"]

    def test_referrers_are_described_with_their_image(
        self, inspected: Inspect, layout: Layout, image: Descriptor
    ) -> None:
        parts = layout.artifact(b"a list of parts", subject=image, name="parts")
        document, text = inspected()
        by_name = {found["name"]: found for found in document["images"]}
        (referrer,) = by_name["v1"]["referrers"]
        assert referrer["digest"] == parts["digest"]
        assert referrer["artifactType"] == "application/vnd.example.sbom.v1+json"
        assert by_name["parts"]["subject"] == image["digest"]
        assert by_name["parts"]["kind"] == "artifact"
        assert f"referred to by {parts['digest']}" in text

    def test_creation_time_and_labels_of_each_platform_are_shown(self, inspected: Inspect, layout: Layout) -> None:
        images = [
            layout.image(
                [tar_layer({"a": platform.encode()})],
                platform=platform,
                config={"Labels": {"org.example.for": platform, "empty": ""}},
            )
            for platform in ("linux/amd64", "linux/arm64")
        ]
        layout.index(images, name="both")
        document, text = inspected()
        for child, platform in zip(document["images"][0]["manifests"], ("linux/amd64", "linux/arm64"), strict=True):
            assert child["created"] == "2024-01-01T00:00:00Z"
            assert child["labels"] == {"org.example.for": platform, "empty": ""}
            assert f"label org.example.for: {platform}" in text
        assert text.count("created 2024-01-01T00:00:00Z") == 2

    def test_a_referrer_with_a_cosign_tag_is_named_with_its_image(
        self, inspected: Inspect, layout: Layout, image: Descriptor
    ) -> None:
        tag = f"{image['digest'].replace(':', '-')}.sig"
        signature = small_image(layout, name=tag, annotations={"a": "signature"})
        document, text = inspected()
        by_name = {found["name"]: found for found in document["images"]}
        assert (by_name[tag]["subject"], by_name[tag]["tag"]) == (image["digest"], tag)
        (referrer,) = by_name["v1"]["referrers"]
        assert (referrer["digest"], referrer["tag"]) == (signature["digest"], tag)
        assert f"referred to by {signature['digest']}" in text

    def test_each_compression_is_shown(self, inspected: Inspect, layout: Layout) -> None:
        kinds = ("gzip", "zstd", "")
        layers = [tar_layer({"a": kind.encode()}, compression=kind) for kind in kinds]  # type: ignore[arg-type]
        layout.image(layers, name="mixed")
        document, _ = inspected()
        assert [layer["compression"] for layer in document["images"][0]["layers"]] == ["gzip", "zstd", "none"]

    def test_missing_content_is_listed(self, inspected: Inspect, layout: Layout) -> None:
        index = two_platforms(layout, name="both")
        child = layout.read(index["digest"])["manifests"][1]["digest"]
        layout.file(child).unlink()
        document, text = inspected()
        assert [missing["digest"] for missing in document["missing"]] == [child]
        assert document["images"][0]["manifests"][1]["platform"] == "linux/arm64/v8"
        assert f"linux/arm64/v8  missing\n    {child}\n" in text
        assert "\n1 missing digest not exported (" in text

    @pytest.mark.parametrize(("part", "more"), [("config", 0), ("layers", 1)], ids=["gone", "of another size"])
    def test_a_missing_config_or_layer_is_listed(
        self, inspected: Inspect, layout: Layout, part: str, more: int
    ) -> None:
        manifest = layout.read(small_image(layout)["digest"])
        blob = manifest["layers"][1] if part == "layers" else manifest["config"]
        blob["size"] += more
        layout.document(manifest, name="v2")
        if not more:
            layout.file(blob["digest"]).unlink()
        document, text = inspected()
        assert document["missing"] == [{key: blob[key] for key in ("mediaType", "digest", "size")}]
        assert f"missing {blob['digest']}" in text.splitlines()

    def test_annotations_of_an_index_are_described(self, inspected: Inspect, layout: Layout, image: Descriptor) -> None:
        said = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image["digest"]}
        attestation = small_image(layout, annotations={"own": "word"}) | {
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": said,
        }
        layout.index([image, attestation], name="both")
        document, text = inspected()
        first, second = next(found for found in document["images"] if found["name"] == "both")["manifests"]
        assert "indexAnnotations" not in first
        assert second["indexAnnotations"] == said
        assert second["annotations"] == {"own": "word"}
        assert "vnd.docker.reference.type: attestation-manifest" in text


@pytest.mark.parametrize("form", ["--json", pytest.param("text", marks=pytest.mark.nightly)])
def test_an_image_of_ten_thousand_layers_is_described_within_the_promised_memory(
    layout: Layout, image: Descriptor, tmp_path: Path, form: str
) -> None:
    config = layout.read(image["digest"])["config"]
    many = [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": f"sha256:{number:064x}",
            "size": number,
            "annotations": {"number": str(number)},
        }
        for number in range(10_000)
    ]
    layout.document(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": many, "annotations": {"a": "b"}},
        name="many",
    )
    end = f"oci:{layout.path}:many"
    result = measured("inspect", end, *(["--json"] if form == "--json" else []), stdout=tmp_path / "out")
    assertions.peak(result)
    shown = (tmp_path / "out").read_text()
    if form == "--json":
        (found,) = json.loads(shown)["images"]
        assert found["annotations"] == {"a": "b"}
        assert [layer["annotations"]["number"] for layer in found["layers"]] == [str(n) for n in range(10_000)]
        assert len(json.loads(shown)["missing"]) == 10_000
    else:
        assert shown.count("\nmissing sha256:") == 10_000


def test_a_docker_archive_is_described_as_the_resulting_image(
    layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    archive = tmp_path / "x.tar"
    succeed("copy", f"oci:{layout.path}:v1", f"docker-archive:{archive}:app:1")
    for result in (
        ocistream("inspect", f"docker-archive:{archive}", "--json"),
        ocistream("inspect", archive, "--json"),
        ocistream("inspect", "-", "--json", stdin=archive.read_bytes()),
    ):
        (found,) = json.loads(result.out)["images"]
        assert found["name"] == "docker.io/library/app:1"
        assert {layer["compression"] for layer in found["layers"]} == {"none"}
        assert found["config"]["digest"] == layout.read(image["digest"])["config"]["digest"]


class TestRegistry:
    def test_an_image_is_described_without_fetching_its_layers(
        self, served: FaultyRegistry, layout: Layout, image: Descriptor
    ) -> None:
        seed(layout, image, served.host, "team/app", "v1")
        before = len(served.requests)
        result = succeed("inspect", f"{served.host}/team/app:v1", "--json")
        document = json.loads(result.out)
        (found,) = document["images"]
        assert found["name"] == f"{served.host}/team/app:v1"
        assert found["platform"] == "linux/amd64"
        layers = {layer["digest"] for layer in found["layers"]}
        assert not [request for request in served.requests[before:] if any(digest in request.path for digest in layers)]

    def test_referrers_in_a_registry_are_described(
        self, served: FaultyRegistry, layout: Layout, image: Descriptor
    ) -> None:
        seed(layout, image, served.host, "team/app", "v1")
        parts = layout.artifact(b"a list of parts", subject=image)
        seed(layout, parts, served.host, "team/app", "parts")
        (found,) = json.loads(ocistream("inspect", f"{served.host}/team/app:v1", "--json").out)["images"]
        assert [referrer["digest"] for referrer in found["referrers"]] == [parts["digest"]]


class TestTemplates:
    def test_a_line_is_printed_for_each_image(self, layout: Layout) -> None:
        labels = {"org.opencontainers.image.version": "1.5"}
        image = small_image(layout, name="v1", config={"Labels": labels}, annotations={"org.example.why": "because"})
        index = two_platforms(layout, name="both")
        fields = ("name", "digest", "mediaType", "kind", "platform", "size", "bytes")
        result = succeed("inspect", f"oci:{layout.path}", "--format", " ".join(f"{{{field}}}" for field in fields))
        manifests = [layout.read(image["digest"])]
        children = [layout.read(child["digest"]) for child in layout.read(index["digest"])["manifests"]]
        sizes = [
            sum({blob["digest"]: blob["size"] for m in found for blob in (m["config"], *m["layers"])}.values())
            for found in (manifests, children)
        ]
        assert result.lines() == [
            f"v1 {image['digest']} {OCI_MANIFEST} image linux/amd64 {image['size']} {sizes[0]}",
            f"both {index['digest']} {OCI_INDEX} index linux/amd64,linux/arm64/v8 {index['size']} {sizes[1]}",
        ]

    def test_fields_of_the_config(self, layout: Layout) -> None:
        labels = {"org.opencontainers.image.version": "1.5"}
        image = small_image(layout, name="v1", config={"Labels": labels}, annotations={"org.example.why": "because"})
        fields = (
            "{created}|{imageId}|{labels.org.opencontainers.image.version}|{labels.none}|{annotations.org.example.why}"
        )
        result = ocistream("inspect", f"oci:{layout.path}:v1", "--format", f"{{{{{fields}}}}}")
        image_id = layout.read(image["digest"])["config"]["digest"]
        assert result.lines() == [f"{{2024-01-01T00:00:00Z|{image_id}|1.5||because}}"]

    @pytest.mark.parametrize("field", ["created", "imageId", "labels.x"])
    def test_a_field_of_one_platform_needs_a_platform_of_an_index(self, layout: Layout, field: str) -> None:
        index = two_platforms(layout, name="both")
        result = ocistream("inspect", f"oci:{layout.path}", "--format", f"{{{field}}}")
        assert (result.code, result.out) == (2, b"")
        assert f"both is an index: {{{field}}} belongs to one platform" in result.err
        assert "add --platform: linux/amd64, linux/arm64/v8" in result.err
        chosen = succeed(
            "inspect", f"oci:{layout.path}", "--format", f"{{digest}} {{{field}}}", "--platform", "linux/arm64"
        )
        assert chosen.lines()[0].startswith(layout.read(index["digest"])["manifests"][1]["digest"])

    @pytest.mark.parametrize("option", ["--format={imageId}", "--raw-config"])
    def test_a_missing_platform_is_not_offered(self, layout: Layout, option: str) -> None:
        index = two_platforms(layout, name="both")
        missing = layout.read(index["digest"])["manifests"][1]["digest"]
        layout.file(missing).unlink()
        inspect = ["inspect", f"oci:{layout.path}", option]
        assertions.failure(ocistream(*inspect), 2, "add --platform: linux/amd64\n")
        succeed(*inspect, "--platform=linux/amd64")
        words = ["lacks", "linux/arm64/v8" if "Id" in option else missing]
        assertions.failure(ocistream(*inspect, "--platform=linux/arm64"), 6, *words)

    @pytest.mark.parametrize(
        ("template", "problem"),
        [
            ("{nam}", "'nam' is not a field"),
            ("{labels}", "'labels' is not a field"),
            ("{digest.x}", "'digest.x' is not a field"),
            ("jsn", "'jsn' is not text, json or html"),
            ("", "'' is not text, json or html"),
            ("{digest", "has a single {"),
            ("{{.Digest}}", "Go templates are not supported"),
        ],
    )
    def test_a_wrong_template_is_refused_with_the_list_of_fields(
        self, layout: Layout, template: str, problem: str
    ) -> None:
        small_image(layout, name="v1")
        result = ocistream("inspect", f"oci:{layout.path}", "--format", template)
        assert (result.code, result.out) == (2, b"")
        assert problem in result.err
        assert "{digest}, {mediaType}, {size}, {bytes}" in result.err

    def test_json_may_be_requested_in_two_ways_but_not_with_a_template(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        end = f"oci:{layout.path}"
        one, other = ocistream("inspect", end, "--format", "json"), ocistream("inspect", end, "--json")
        assert (one.code, one.out) == (0, other.out)
        assert ocistream("inspect", end, "--json", "--format", "{name}").code == 2

    def test_the_digest_of_a_docker_archive_is_not_invented(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, name="v1")
        archive = tmp_path / "x.tar"
        succeed("copy", f"oci:{layout.path}:v1", f"docker-archive:{archive}:app:1")
        image_id = layout.read(image["digest"])["config"]["digest"]
        assert ocistream("inspect", archive, "--format", "{name} {imageId}").lines() == [
            f"docker.io/library/app:1 {image_id}"
        ]
        result = ocistream("inspect", archive, "--format", "{digest}")
        assert (result.code, result.out) == (8, b"")
        assert image_id in result.err

    def test_a_repository_means_its_tag_latest(self, served: FaultyRegistry, layout: Layout) -> None:
        image = small_image(layout)
        seed(layout, image, served.host, "app", "latest")
        result = ocistream("inspect", f"{served.host}/app", "--format", "{name} {digest}")
        assert result.lines() == [f"{served.host}/app:latest {image['digest']}"]

    def test_a_label_cannot_add_a_line(self, layout: Layout) -> None:
        small_image(layout, name="v1", config={"Labels": {"a": "b\n::error::c\x1b[2J"}})
        result = ocistream("inspect", f"oci:{layout.path}", "--format", "{labels.a}")
        assert len(result.lines()) == 1
        assert b"\x1b" not in result.out


class TestRaw:
    @pytest.mark.parametrize("how", ["registry", *FORMS])
    def test_the_exact_bytes_of_index_manifest_and_config(
        self, how: str, served: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        index = two_platforms(layout, name="both")
        seed(layout, index, served.host, "app", "1")
        end, stdin = (f"{served.host}/app:1", None) if how == "registry" else location(how, layout, tmp_path)
        arm = layout.read(index["digest"])["manifests"][1]["digest"]
        config = layout.read(arm)["config"]["digest"]
        for options, digest in (
            (["--raw"], index["digest"]),
            (["--raw", "--platform", "linux/arm64"], arm),
            (["--raw-config", "--platform", "linux/arm64"], config),
        ):
            result = ocistream("inspect", end, *options, stdin=stdin)
            assert (result.code, result.out) == (0, layout.file(digest).read_bytes()), result.err
        assertions.failure(
            ocistream("inspect", end, "--raw-config", stdin=stdin), 2, "is an index", "linux/amd64, linux/arm64/v8"
        )
        # An index of some platforms exists only in a copy.
        assertions.failure(
            ocistream("inspect", end, "--raw", "--platform", "linux/amd64,linux/arm64", stdin=stdin),
            *(2, "one manifest or index", "choose one --platform"),
        )

    def test_a_docker_archive_has_a_config_but_no_manifest(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, name="v1")
        archive = tmp_path / "x.tar"
        succeed("copy", f"oci:{layout.path}:v1", f"docker-archive:{archive}:app:1")
        config = layout.read(image["digest"])["config"]["digest"]
        assert ocistream("inspect", archive, "--raw-config").out == layout.file(config).read_bytes()
        assertions.failure(ocistream("inspect", archive, "--raw"), 8, "has no manifests", config)

    def test_a_missing_config_is_an_error(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        config = layout.read(image["digest"])["config"]["digest"]
        layout.file(config).unlink()
        assertions.failure(ocistream("inspect", f"oci:{layout.path}", "--raw-config"), 6, config)

    def test_raw_output_cannot_control_a_terminal(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        manifest = layout.read(image["digest"])
        manifest["config"] = layout.blob(b"\x1b[2J", manifest["config"]["mediaType"])
        layout.document(manifest, name="v2")
        seen = on_terminal("inspect", f"oci:{layout.path}:v2", "--raw-config")
        assert seen.code == 0
        assert "\x1b" not in seen.screen

    def test_two_kinds_of_output_are_refused(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        assertions.failure(
            ocistream("inspect", f"oci:{layout.path}", "--raw", "--json"), 2, "--json, --format, --raw and --raw-config"
        )

    @pytest.mark.parametrize(("file", "code"), [("example.com/app:1", 4), ("/dev/null", 2)])
    def test_the_config_option_of_skopeo_gets_a_hint(self, file: str, code: int) -> None:
        assertions.failure(ocistream("inspect", "--config", file), code, "--raw-config prints the config of an image")


def test_labels_beyond_a_bound_are_not_shown_and_this_is_reported(layout: Layout) -> None:
    for number in range(4):
        small_image(layout, name=f"v{number}", config={"Labels": {str(number): "x" * 400_000}})
    document = json.loads(ocistream("inspect", f"oci:{layout.path}", "--json").out)
    assert [len(image.get("labels", {})) for image in document["images"]] == [1, 1, 0, 0]
    assert "the labels of 2 images are not shown" in ocistream("inspect", f"oci:{layout.path}").err


def test_a_missing_config_in_a_registry_does_not_hide_the_others(served: FaultyRegistry, layout: Layout) -> None:
    index = two_platforms(layout)
    seed(layout, index, served.host, "app", "v1")
    lost = layout.read(layout.read(index["digest"])["manifests"][1]["digest"])["config"]["digest"]
    served.faults.append(Fault(refusal(404, "BLOB_UNKNOWN"), path=lost, times=None))
    result = succeed("inspect", f"{served.host}/app:v1", "--json")
    document = json.loads(result.out)
    assert [blob["digest"] for blob in document["missing"]] == [lost]
    first, second = document["images"][0]["manifests"]
    assert ("created" in first, "created" in second) == (True, False)


def test_text_of_an_archive_cannot_control_the_terminal(layout: Layout) -> None:
    small_image(layout, name="v\x1b[2J1", annotations={"a\x1b[31m": "b\nc"})
    result = succeed("inspect", f"oci:{layout.path}")
    assert b"\x1b" not in result.out
    assert "b\nc" not in result.out.decode()


def test_a_refused_list_of_referrers_is_reported(image: Descriptor, layout: Layout, served: FaultyRegistry) -> None:
    seed(layout, image, served.host, "app", "v1")
    served.faults.append(Fault(refusal(403, "DENIED"), path="/referrers/", times=None))
    result = succeed("inspect", f"{served.host}/app:v1")
    assert f"not all referrers of {image['digest']} are shown: " in result.err
    assert "403" in result.err


def test_a_digest_that_only_a_copy_gets_is_announced(layout: Layout) -> None:
    platforms = ("linux/amd64", "linux/arm64", "linux/s390x")
    index = layout.index([layout.image([name.encode()], platform=name) for name in platforms], name="all")
    location = f"oci:{layout.path}:all"
    result = ocistream("inspect", location, "--platform", "linux/amd64,linux/s390x", "--format", "{digest}")
    (digest,) = result.lines()
    assert f"{digest} is what a copy of these platforms gets; the location has {index['digest']}" in result.err
    assert "is what a copy" not in ocistream("inspect", location, "--platform", "linux/amd64").err
