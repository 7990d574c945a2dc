"""The kinds of content of the current suite: each is pushed, listed, checked by HEAD, pulled and deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.registry_content import REPOSITORY, url
from tests.images import Descriptor, Layout, digest_of
from tests.raw_http import Client

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
KIND = "application/vnd.example.kind"
MIB = 1 << 20

Make = Callable[[Layout], list[Descriptor]]


def bare(descriptor: Descriptor, **more: Any) -> Descriptor:
    return {**{key: descriptor[key] for key in ("mediaType", "digest", "size")}, **more}


def image(layout: Layout, **options: Any) -> Descriptor:
    return layout.image([b"layer"], **options)


def index_of(layout: Layout, *manifests: Descriptor, **more: Any) -> Descriptor:
    listed = [bare(one) for one in manifests]
    return layout.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed, **more})


def manifest(layout: Layout, **more: Any) -> Descriptor:
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": layout.blob(b"{}", EMPTY), **more}
    return layout.document(document)


def artifact(layout: Layout, **more: Any) -> Descriptor:
    return manifest(layout, **{"artifactType": KIND, "layers": [layout.blob(b"artifact", KIND)], **more})


def foreign(layout: Layout) -> Descriptor:
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    absent = {"mediaType": kind, "digest": digest_of(b"elsewhere"), "size": 9, "urls": ["https://else.example/layer"]}
    made = layout.read(image(layout)["digest"])
    return layout.document({**made, "layers": [*made["layers"], absent]})


def data_field(layout: Layout) -> Descriptor:
    return artifact(layout, config={**layout.blob(b"{}", EMPTY), "data": "e30="})


def custom_fields(layout: Layout) -> Descriptor:
    made = layout.read(image(layout)["digest"])
    return layout.document({**made, "org.example": {"a": [1, 2.5, None]}, "layers": [{**made["layers"][0], "x": "y"}]})


MADE: dict[str, Make] = {
    "Artifact": lambda layout: [artifact(layout)],
    "Artifact Index": lambda layout: [one := artifact(layout), index_of(layout, one, artifactType=KIND)],
    "Artifact without Layers": lambda layout: [artifact(layout, layers=[])],
    "Custom Fields": lambda layout: [custom_fields(layout)],
    "Data Field": lambda layout: [data_field(layout)],
    "Digest Algorithm sha512": lambda layout: [image(layout, algorithm="sha512")],
    "Empty Index": lambda layout: [index_of(layout)],
    "Image": lambda layout: [image(layout)],
    "Image Uncompressed": lambda layout: [layout.image([bytes(10_240)])],
    "Image with Large Manifest": lambda layout: [image(layout, annotations={"large": "x" * (3 * MIB)})],
    "Index": lambda layout: [one := image(layout), other := layout.image([b"other"]), index_of(layout, one, other)],
    "Nested Index": lambda layout: [one := image(layout), inner := index_of(layout, one), index_of(layout, inner)],
    "No Layers": lambda layout: [layout.image([])],
    "Non-distributable Layers": lambda layout: [foreign(layout)],
}


@pytest.mark.parametrize("kind", MADE)
def test_content_is_pushed_listed_pulled_and_deleted(ask: Client, layout: Layout, kind: str) -> None:
    made = MADE[kind](layout)
    push_all(ask, layout, made, tag="v1")
    root, raw = made[-1], layout.file(made[-1]["digest"]).read_bytes()
    assert ask("GET", url("tags", "list")).json()["tags"] == ["v1"]
    for reference in ("v1", root["digest"]):
        for method in ("HEAD", "GET"):
            answer = ask(method, url("manifests", reference), headers={"Accept": root["mediaType"]})
            assert (answer.status, answer.headers["Content-Type"]) == (200, root["mediaType"])
            assert answer.body == (raw if method == "GET" else b"")
            assert answer.headers["Docker-Content-Digest"] == root["digest"]
    assert ask("DELETE", url("manifests", "v1")).status == 202
    assert ask("GET", url("manifests", "v1")).status == 404
    for document in reversed(made):
        target = url("manifests", document["digest"])
        if ask("GET", target).status == 200:
            assert ask("DELETE", target).status == 202
        assert ask("GET", target).status == 404


def test_the_subject_of_a_referrer_is_confirmed_and_the_referrer_is_listed(ask: Client, layout: Layout) -> None:
    subject = image(layout)
    absent = {"mediaType": MANIFEST, "digest": digest_of(b"absent"), "size": 6}
    first, second = artifact(layout, subject=bare(subject)), artifact(layout, subject=absent)
    third = index_of(layout, subject, artifactType=KIND, subject=bare(subject), annotations={"a": "b"})
    push_all(ask, layout, [subject])
    for document, of in ((first, subject), (second, absent), (third, subject)):
        push_blobs(ask, layout, document)
        answer = put(ask, layout, document, document["digest"])
        assert (answer.status, answer.headers["OCI-Subject"]) == (201, of["digest"])
    listed = ask("GET", url("referrers", subject["digest"])).json()["manifests"]
    assert {entry["digest"]: entry["artifactType"] for entry in listed} == {
        first["digest"]: KIND,
        third["digest"]: KIND,
    }
    assert [entry["digest"] for entry in ask("GET", url("referrers", str(absent["digest"]))).json()["manifests"]] == [
        second["digest"]
    ]


def test_content_with_another_digest_is_refused(ask: Client, layout: Layout) -> None:
    made = image(layout)
    push_blobs(ask, layout, made)
    assert put(ask, layout, made, digest_of(b"another")).refusal == (400, ["DIGEST_INVALID"])
    location = ask("POST", f"/v2/{REPOSITORY}/blobs/uploads/").headers["Location"]
    assert ask("PUT", f"{location}?digest={digest_of(b'another')}", b"content").refusal == (400, ["DIGEST_INVALID"])
    assert ask("GET", url("blobs", digest_of(b"another"))).status == 404
    assert ask("GET", url("tags", "list")).status == 404


def test_a_sparse_index_is_refused(ask: Client, layout: Layout) -> None:
    """The suite skips sparse manifests unless a setting enables them; these registries require complete images."""
    made = index_of(layout, image(layout))
    assert put(ask, layout, made, "v1").refusal == (400, ["MANIFEST_BLOB_UNKNOWN"])


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_push_by_digest_may_set_tags(ask: Client, layout: Layout, algorithm: str) -> None:
    made = image(layout, algorithm=algorithm)
    push_blobs(ask, layout, made)
    answer = put(ask, layout, made, f"{made['digest']}?tag=v1&tag=v2")
    assert (answer.status, answer.headers["OCI-Tag"]) == (201, "v1, v2")
    assert ask("GET", url("tags", "list")).json()["tags"] == ["v1", "v2"]
    for tag in ("v1", "v2"):
        assert ask("HEAD", url("manifests", tag)).headers["Docker-Content-Digest"] == made["digest"]


def push_all(ask: Client, layout: Layout, documents: list[Descriptor], tag: str | None = None) -> None:
    """Push documents and their blobs, the last one with `tag`; a push by tag alone would use the sha256 digest."""
    for document in documents:
        push_blobs(ask, layout, document)
        reference = str(document["digest"])
        if tag and document is documents[-1]:
            reference = tag if reference.startswith("sha256:") else f"{reference}?tag={tag}"
        assert put(ask, layout, document, reference).status == 201


def push_blobs(ask: Client, layout: Layout, document: Descriptor) -> None:
    fields = json.loads(layout.file(document["digest"]).read_bytes())
    for blob in [fields.get("config"), *fields.get("layers", [])]:
        if blob is not None and "urls" not in blob:
            ask.upload(layout.file(blob["digest"]).read_bytes(), REPOSITORY, blob["digest"].partition(":")[0])


def put(ask: Client, layout: Layout, document: Descriptor, reference: str) -> Any:
    raw = layout.file(document["digest"]).read_bytes()
    return ask("PUT", url("manifests", reference), raw, {"Content-Type": document["mediaType"]})
