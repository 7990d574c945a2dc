"""Pushing and reading manifests, and the resulting entries of `index.json`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ocistream import limits
from ocistream.serve import AccessLogEntry, Registry
from tests.http_push import described, entries, image, index_of, untagged
from tests.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Layout,
    digest_of,
    two_platforms,
)
from tests.raw_http import Client
from tests.registry_http import seed
from tests.serve.served_layout import Served, SetLimits

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


class TestPushing:
    def test_a_tag_is_listed_with_its_full_name_and_served_unchanged(self, ask: Client, served: Served) -> None:
        content = json.dumps(image(ask), indent=7).encode()
        answer = ask("PUT", "/v2/team/app/manifests/v1", content, {"Content-Type": OCI_MANIFEST})
        digest = digest_of(content)
        assert (answer.status, answer.body) == (201, b"")
        assert answer.headers["Location"] == f"/v2/team/app/manifests/{digest}"
        assert answer.headers["Docker-Content-Digest"] == digest
        assert "OCI-Subject" not in answer.headers
        for reference in ("v1", digest):
            got = ask("GET", f"/v2/team/app/manifests/{reference}")
            assert (got.status, got.body) == (200, content)
            assert got.headers["Content-Type"] == OCI_MANIFEST
            assert got.headers["Docker-Content-Digest"] == digest
        assert entries(served.path) == [
            {
                "mediaType": OCI_MANIFEST,
                "digest": digest,
                "size": len(content),
                "annotations": {
                    "io.containerd.image.name": f"{served.host}/team/app:v1",
                    "org.opencontainers.image.ref.name": "v1",
                },
            }
        ]

    def test_a_tag_pushed_again_refers_to_the_new_image(self, ask: Client, served: Served) -> None:
        ask.push(image(ask, b"old"), "v1")
        ask.push(image(ask, b"other"), "v2")
        new = ask.push(image(ask, b"new"), "v1")
        assert ask("HEAD", "/v2/app/manifests/v1").headers["Docker-Content-Digest"] == new
        assert len(entries(served.path)) == 2

    @pytest.mark.parametrize("host", ["other.example:5000", "localhost:5000", "[::1]:5000", "registry.example"])
    def test_the_full_name_has_the_host_header_of_the_client(self, ask: Client, served: Served, host: str) -> None:
        content = json.dumps(image(ask)).encode()
        assert ask("PUT", "/v2/app/manifests/v1", content, {"Host": host}).status == 201
        assert entries(served.path)[0]["annotations"]["io.containerd.image.name"] == f"{host}/app:v1"

    @pytest.mark.parametrize("host", ["", "docker.io", "nothing"])
    def test_an_unsuitable_host_header_is_replaced_by_the_address(self, ask: Client, served: Served, host: str) -> None:
        content = json.dumps(image(ask)).encode()
        assert ask("PUT", "/v2/app/manifests/v1", content, {"Host": host}).status == 201
        assert entries(served.path)[0]["annotations"]["io.containerd.image.name"] == f"{served.host}/app:v1"

    def test_a_name_too_long_to_be_pulled_is_refused(self, ask: Client) -> None:
        answer = ask("PUT", f"/v2/{'a' * 250}/manifests/v1", json.dumps(image(ask)).encode())
        assert answer.refusal == (400, ["NAME_INVALID"])

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    def test_a_manifest_is_pushed_by_a_digest_of_any_algorithm(
        self, ask: Client, served: Served, algorithm: str
    ) -> None:
        content = json.dumps(image(ask)).encode()
        digest = digest_of(content, algorithm)  # type: ignore[arg-type]
        answer = ask("PUT", f"/v2/app/manifests/{digest}", content)
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (201, digest)
        assert ask("GET", f"/v2/app/manifests/{digest}").body == content
        assert untagged(served.path) == [digest]

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    def test_tag_parameters_of_a_digest_push_are_tags(self, ask: Client, served: Served, algorithm: str) -> None:
        ask.push(image(ask, b"other"), "1")
        content = json.dumps(image(ask)).encode()
        digest = digest_of(content, algorithm)  # type: ignore[arg-type]
        answer = ask("PUT", f"/v2/app/manifests/{digest}?tag=1.2&tag=1&tag=1.2", content)
        assert (answer.status, answer.headers["OCI-Tag"]) == (201, "1.2, 1")
        for reference in ("1", "1.2", digest):
            found = ask("GET", f"/v2/app/manifests/{reference}")
            assert (found.headers["Docker-Content-Digest"], found.body) == (digest, content)
        assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["1", "1.2"]
        assert [entry["annotations"]["io.containerd.image.name"] for entry in entries(served.path)] == [
            f"{served.host}/app:1.2",
            f"{served.host}/app:1",
        ]

    def test_tag_parameters_of_a_tag_push_are_ignored(self, ask: Client) -> None:
        answer = ask("PUT", "/v2/app/manifests/v1?tag=v2", json.dumps(image(ask)).encode())
        assert (answer.status, answer.headers["OCI-Tag"]) == (201, None)
        assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["v1"]

    def test_a_subject_is_acknowledged_and_may_be_missing(self, ask: Client) -> None:
        subject = described(b"not there", OCI_MANIFEST)
        answer = ask("PUT", "/v2/app/manifests/v1", json.dumps(image(ask, subject=subject)).encode())
        assert (answer.status, answer.headers["OCI-Subject"]) == (201, subject["digest"])

    def test_parameters_of_the_content_type_are_ignored(self, ask: Client) -> None:
        headers = {"Content-Type": f"{OCI_MANIFEST}; charset=utf-8"}
        assert ask("PUT", "/v2/app/manifests/v1", json.dumps(image(ask)).encode(), headers).status == 201

    def test_a_chunked_body_is_accepted(self, ask: Client) -> None:
        content = json.dumps(image(ask)).encode()
        assert ask("PUT", "/v2/app/manifests/v1", iter([content[:9], content[9:]])).status == 201

    def test_a_foreign_layer_may_be_missing(self, ask: Client) -> None:
        document = image(ask)
        document["layers"].append(described(b"elsewhere", FOREIGN))
        ask.push(document, "v1")

    def test_pushing_a_manifest_again_repairs_a_damaged_one(self, ask: Client, served: Served) -> None:
        document = image(ask)
        digest = ask.push(document, "v1")
        served.blob(digest).write_bytes(b"{}")
        assert ask("GET", "/v2/app/manifests/v1").status == 500
        ask.push(document, "v1")
        assert ask("GET", "/v2/app/manifests/v1").json() == document
        assert len(entries(served.path)) == 1


class TestRefusing:
    def refused(self, ask: Client, content: bytes, reference: str = "v1", kind: str = "") -> Any:
        """Push a manifest that is refused, check that nothing was stored, and return the answer."""
        headers = {"Content-Type": kind} if kind else {}
        answer = ask("PUT", f"/v2/app/manifests/{reference}", content, headers)
        assert ask("GET", "/v2/_catalog").json() == {"repositories": []}
        return answer

    @pytest.mark.parametrize("tag", ["", "-", "a:b", "%2e%2e/x", "x" * 129])
    def test_a_malformed_tag_parameter_is_refused(self, ask: Client, served: Served, tag: str) -> None:
        content = json.dumps(image(ask)).encode()
        answer = self.refused(ask, content, f"{digest_of(content)}?tag=v1&tag={tag}")
        assert answer.refusal == (400, ["MANIFEST_INVALID"])
        assert entries(served.path) == []

    def test_all_missing_blobs_and_manifests_are_named(self, ask: Client) -> None:
        layers = [described(b"one", OCI_LAYER), described(b"two", OCI_LAYER), described(b"one", OCI_LAYER)]
        answer = self.refused(ask, json.dumps(image(ask, layers=layers)).encode())
        assert answer.refusal == (400, ["MANIFEST_BLOB_UNKNOWN"] * 2)
        missing = [error["detail"]["digest"] for error in answer.json()["errors"]]
        assert missing == [digest_of(b"one"), digest_of(b"two")]
        answer = self.refused(ask, json.dumps(index_of(image(ask))).encode())
        assert answer.codes == ["MANIFEST_BLOB_UNKNOWN"]

    def test_a_wrong_size_is_refused(self, ask: Client) -> None:
        layer = {**described(b"layer", OCI_LAYER), "size": 6}
        answer = self.refused(ask, json.dumps(image(ask, layers=[layer])).encode())
        assert answer.refusal == (400, ["MANIFEST_INVALID"])
        assert answer.json()["errors"][0]["detail"] == {"digest": layer["digest"], "size": 5}

    def test_another_digest_is_refused(self, ask: Client) -> None:
        content = json.dumps(image(ask)).encode()
        answer = self.refused(ask, content, digest_of(b"another"))
        assert answer.refusal == (400, ["DIGEST_INVALID"])
        assert answer.json()["errors"][0]["detail"] == {"digest": digest_of(content)}

    @pytest.mark.parametrize("reference", [".hidden", "a" * 129, "%2e%2e", "a%2Fb", "-v1", ""])
    def test_a_malformed_tag_is_refused(self, ask: Client, reference: str) -> None:
        assert self.refused(ask, json.dumps(image(ask)).encode(), reference).refusal == (400, ["MANIFEST_INVALID"])

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"{}",
            b'{"schemaVersion": 2, "schemaVersion": 2}',
            b'{"schemaVersion": 1, "fsLayers": []}',
            b'{"schemaVersion": 2, "mediaType": "%b", "manifests": [], "layers": []}' % OCI_INDEX.encode(),
            b'{"schemaVersion": 2, "mediaType": "%b", "manifests": [{}]}' % OCI_INDEX.encode(),
            b'{"schemaVersion": 2, "mediaType": "application/vnd.example+json"}',
            b"[" * 100_000,
        ],
    )
    def test_a_malformed_manifest_is_refused(self, ask: Client, content: bytes) -> None:
        assert self.refused(ask, content).refusal == (400, ["MANIFEST_INVALID"])

    @pytest.mark.parametrize("kind", [OCI_INDEX, DOCKER_MANIFEST, "application/json", "nonsense"])
    def test_a_wrong_content_type_is_refused(self, ask: Client, kind: str) -> None:
        assert self.refused(ask, json.dumps(image(ask)).encode(), kind=kind).refusal == (400, ["MANIFEST_INVALID"])

    @pytest.mark.parametrize("chunked", [True, False])
    def test_more_than_four_mebibytes_are_refused(self, ask: Client, chunked: bool) -> None:
        size = limits.MAX_MANIFEST + 1
        body: Any = (bytes(1 << 19) for _ in range(9)) if chunked else bytes(size)
        try:
            answer = self.refused(ask, body)
        finally:
            ask.connection.close()
        assert answer.refusal == (413, ["MANIFEST_INVALID"])

    def test_exactly_four_mebibytes_are_accepted(self, ask: Client) -> None:
        document = image(ask, annotations={"padding": ""})
        padding = limits.MAX_MANIFEST - len(json.dumps(document))
        content = json.dumps({**document, "annotations": {"padding": "x" * padding}}).encode()
        assert len(content) == limits.MAX_MANIFEST
        assert ask("GET", f"/v2/app/manifests/{ask.push(content)}").body == content

    def test_an_entry_that_does_not_fit_into_index_json_is_refused(
        self, ask: Client, served: Served, set_limits: SetLimits
    ) -> None:
        content = json.dumps(image(ask)).encode()
        set_limits(MAX_MANIFEST=len(content))
        assert self.refused(ask, content, "v" * 128).refusal == (400, ["MANIFEST_INVALID"])
        assert entries(served.path) == []


class TestMediaTypes:
    def test_a_manifest_without_a_media_type_is_served_with_the_pushed_type(self, ask: Client) -> None:
        document = image(ask)
        del document["mediaType"]
        content = json.dumps(document).encode()
        ask("PUT", "/v2/app/manifests/v1", content, {"Content-Type": DOCKER_MANIFEST})
        for reference in ("v1", digest_of(content)):
            assert ask("GET", f"/v2/app/manifests/{reference}").headers["Content-Type"] == DOCKER_MANIFEST

    def test_a_manifest_without_a_media_type_is_served_with_the_type_in_the_index(self, ask: Client) -> None:
        document = image(ask)
        del document["mediaType"]
        content = json.dumps(document).encode()
        ask("PUT", f"/v2/app/manifests/{digest_of(content)}", content, {"Content-Type": DOCKER_MANIFEST})
        ask.push({**index_of(), "manifests": [described(content, DOCKER_MANIFEST)]}, "v1")
        answer = ask("GET", f"/v2/app/manifests/{digest_of(content)}")
        assert answer.headers["Content-Type"] == DOCKER_MANIFEST

    def test_the_media_type_of_an_unlisted_manifest_follows_from_its_fields(self, ask: Client) -> None:
        document = image(ask)
        del document["mediaType"]
        content = json.dumps(document).encode()
        ask.upload(content)
        answer = ask("GET", f"/v2/app/manifests/{digest_of(content)}")
        assert answer.headers["Content-Type"] == OCI_MANIFEST

    def test_a_docker_manifest_list_keeps_its_content_type(self, ask: Client, layout: Layout, served: Served) -> None:
        seed(layout, two_platforms(layout, media="docker"), served.host, "app", "v1")
        assert ask("HEAD", "/v2/app/manifests/v1").headers["Content-Type"] == DOCKER_LIST

    @pytest.mark.parametrize(
        "content",
        [
            b"layer",
            b'{"config": {"Cmd": ["true"]}, "rootfs": {}}',
            b'{"schemaVersion": 2}',
            b'{"schemaVersion": 1, "fsLayers": []}',
            b'{"schemaVersion": 2, "mediaType": 5, "layers": []}',
            b"x" * (limits.MAX_MANIFEST + 1),
        ],
    )
    def test_a_blob_is_not_served_as_a_manifest(self, ask: Client, content: bytes) -> None:
        for method in ("GET", "DELETE"):
            assert ask(method, f"/v2/app/manifests/{ask.upload(content)}").refusal == (404, ["MANIFEST_UNKNOWN"])
        assert ask("HEAD", f"/v2/app/blobs/{digest_of(content)}").status == 200

    def test_a_blob_too_large_for_a_manifest_is_not_served_as_one(self, ask: Client, served: Served) -> None:
        path = served.blob(digest_of(b"another"))
        path.parent.mkdir()
        with path.open("wb") as file:
            file.truncate(limits.MAX_MANIFEST + 1)
        assert ask("GET", f"/v2/app/manifests/{digest_of(b'another')}").codes == ["MANIFEST_UNKNOWN"]


class TestReading:
    @pytest.mark.parametrize("reference", ["v2", ".INVALID", "%2e%2e", digest_of(b"nothing")])
    def test_a_missing_manifest_is_unknown(self, ask: Client, reference: str) -> None:
        ask.push(image(ask), "v1")
        for method in ("GET", "DELETE"):
            assert ask(method, f"/v2/app/manifests/{reference}").refusal == (404, ["MANIFEST_UNKNOWN"])

    def test_a_tag_belongs_to_one_repository_and_a_digest_to_all(self, ask: Client) -> None:
        digest = ask.push(image(ask), "v1")
        assert ask("GET", "/v2/other/manifests/v1").status == 404
        assert ask("GET", f"/v2/other/manifests/{digest}").status == 200

    def test_a_tag_whose_manifest_is_missing_is_unknown(self, ask: Client, served: Served) -> None:
        served.blob(ask.push(image(ask), "v1")).unlink()
        assert ask("GET", "/v2/app/manifests/v1").codes == ["MANIFEST_UNKNOWN"]

    def test_a_tag_of_a_blob_too_large_is_an_error(self, layout: Layout, access_log: list[AccessLogEntry]) -> None:
        blob = layout.blob(bytes(limits.MAX_MANIFEST + 1), "application/octet-stream")
        layout.name(blob, "app:v1")
        with Registry(layout.path, log=access_log.append) as registry, Client(registry.host) as other:
            assert other("GET", "/v2/app/manifests/v1").status == 500
        assert "larger than" in str(access_log[-1].problem)

    def test_an_entry_with_an_unknown_media_type_is_served_with_it(self, layout: Layout) -> None:
        kind = "application/vnd.example.thing"
        layout.name(layout.blob(b"no JSON", kind), "app:v1")
        with Registry(layout.path) as registry, Client(registry.host) as ask:
            answer = ask("GET", "/v2/app/manifests/v1")
            assert (answer.headers["Content-Type"], answer.body) == (kind, b"no JSON")
