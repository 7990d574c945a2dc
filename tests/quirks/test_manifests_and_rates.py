"""Media types of manifests, rate limits and failing registries: statements 28 to 30, and 32 of tags."""

from __future__ import annotations

import itertools
import json
from typing import Any, Final

import pytest

from tests.archives import small_first, tar_of
from tests.cli.assertions import json_lines
from tests.faulty_registry import Fault, Reset, StopReading, redirect, refusal, too_many_requests
from tests.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Layout,
    small_image,
    two_platforms,
)
from tests.quirks import registry_quirks
from tests.quirks.command_runner import How, both_ways, run
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import Quirk
from tests.quirks.small_images import MIB, is_stored, layer_of, one_layer
from tests.quirks.statements import quirk
from tests.registry_http import manifest, manifest_digest, seed

#: The longest Retry-After that is obeyed, in seconds.
LONG: Final = 300.0
TOO_LONG: Final = 301


@quirk(28)
@both_ways
@pytest.mark.parametrize(
    ("media", "types"), [("oci", {OCI_INDEX, OCI_MANIFEST}), ("docker", {DOCKER_LIST, DOCKER_MANIFEST})]
)
def test_a_manifest_is_pushed_with_its_own_media_type_and_its_bytes_unchanged(
    media: Any, types: set[str], how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(registry_quirks.KEEPS_TYPES)
    index = two_platforms(layout, media=media, name="app")
    mover().push(tar_of(small_first(layout)), f"{registry.host}/app:v1", how)
    kept = {key[1]: value for key, value in registry.memory.items() if key[0] == "type"}
    assert set(kept.values()) == types
    assert kept["v1"] == index["mediaType"]
    assert manifest(registry.host, "app", "v1") == layout.file(index["digest"]).read_bytes()


@quirk(28)
def test_a_manifest_without_a_media_type_is_pushed_with_that_of_its_descriptor(
    start: Start, mover: Move, layout: Layout
) -> None:
    image = small_image(layout)
    document = layout.read(image["digest"])
    del document["mediaType"]
    bare = layout.blob(json.dumps(document, indent=1).encode(), OCI_MANIFEST)
    layout.name(bare, "app")
    target = start(registry_quirks.KEEPS_TYPES)
    mover().push(tar_of(small_first(layout)), f"{target.host}/app:v1")
    assert target.memory["type", "v1"] == OCI_MANIFEST
    assert manifest(target.host, "app", "v1") == layout.file(bare["digest"]).read_bytes()


@quirk(29)
@pytest.mark.parametrize("form", ["seconds", "date", "nothing"])
def test_any_request_is_retried_after_429(form: Any, start: Start, mover: Move, layout: Layout) -> None:
    registry = start(registry_quirks.too_many(form, methods=".*"))
    image, archive = one_layer(layout)
    pushed = mover().push(archive, f"{registry.host}/app:v1", "file", "-v")
    mover().pull(f"{registry.host}/app:v1")
    refused = {request.method for request in registry.requests if request.status == 429}
    assert refused >= {"HEAD", "POST", "PATCH", "PUT", "GET"}
    assert 429 in {request.status for request in registry.asked("PUT", "/manifests/")}
    assert is_stored(registry, layout, layer_of(layout, image))
    longest = max(pushed.waits)
    # The resolution of a date is a second.
    assert longest < 5 if form == "nothing" else 5 < longest <= 7
    assert "answered 429" in pushed.err


@quirk(29)
@pytest.mark.parametrize(
    ("status", "at", "waits"),
    [(429, "the same registry", [LONG]), (503, "the same registry", []), (429, "another", []), (429, "storage", [])],
)
def test_after_429_all_requests_to_the_host_wait(
    status: int, at: str, waits: list[float], start: Start, mover: Move, layout: Layout
) -> None:
    first, target = start(), start()
    second = start() if at == "another" else first
    for registry, tag in ((first, "1"), (second, "2")):
        seed(layout, small_image(layout), registry.host, "app", tag)
    refused = Fault(refusal(status, Retry_After=f"{LONG:g}"), "GET|HEAD", "/manifests/1")
    if at == "storage":
        storage = start(Quirk("busy", (refused,)))
        refused = Fault(redirect(f"{storage.url}/v2/app/manifests/1"), "GET|HEAD", "/manifests/1")
    first.faults = [refused]
    used = mover(env={})
    plan = used.folder / "images.toml"
    entries = ((first, "1"), (second, "2"))
    plan.write_text(
        "".join(
            f'[[sync]]\nfrom = "{registry.host}/app:{tag}"\nto = "{target.host}/app:{tag}"\n'
            for registry, tag in entries
        )
    )
    # --retries 0: the refused request is not retried, so that a wait is of another request.
    result = run("sync", plan, "--jobs", "1", "--retries", "0", env=used.env)
    assert result.code == 7, result.err
    assert [round(wait, -1) for wait in result.waits] == waits
    assert manifest_digest(target.host, "app", "2") is not None


@quirk(29)
@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_beyond_the_limit_is_an_error(status: int, start: Start, mover: Move, layout: Layout) -> None:
    registry = start(Quirk("enough", (Fault(refusal(status, Retry_After=str(TOO_LONG)), "HEAD", times=None),)))
    _, archive = one_layer(layout)
    mover("--jobs", "1").push(archive, f"{registry.host}/app:v1", code=7, says=(str(status), f"{TOO_LONG} s"))
    assert len(registry.requests) == 1


@quirk(29)
def test_a_wait_is_reported(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(Quirk("enough", (Fault(too_many_requests(1), "PUT", "/manifests/"),)))
    image, archive = one_layer(layout)
    result = mover().push(archive, f"{registry.host}/app:v1", "file", "-v", "--log-format", "json")
    (told,) = [line["message"] for line in json_lines(result.err) if "429" in str(line.get("message"))]
    assert "/manifests/v1" in told
    assert "retrying in 1.0 s" in told
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


@quirk(30)
@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_temporary_failure_is_retried(status: int, start: Start, mover: Move, layout: Layout) -> None:
    registry = start(registry_quirks.in_trouble(status, methods=".*"))
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1")
    mover().pull(f"{registry.host}/app:v1")
    failed = {request.method for request in registry.requests if request.status == status}
    assert failed >= {"HEAD", "POST", "PATCH", "PUT", "GET"}
    assert is_stored(registry, layout, layer_of(layout, image))


@quirk(30)
@pytest.mark.parametrize("status", [400, 402, 410, 422, 451])
@pytest.mark.parametrize("what", ["manifests/v1", "blobs/uploads/"])
def test_a_permanent_refusal_is_not_retried(what: str, status: int, start: Start, mover: Move, layout: Layout) -> None:
    registry = start(Quirk("refuses", (Fault(refusal(status, "DENIED"), "POST|PUT", what, times=None),)))
    _, archive = one_layer(layout)
    mover("--jobs", "1").push(archive, f"{registry.host}/app:v1", code=7, says=str(status))
    assert len(registry.asked("POST|PUT", what)) == 1


@quirk(30)
def test_waits_grow_and_are_random(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(Quirk("down", (Fault(refusal(503), "HEAD", times=None),)))
    _, archive = one_layer(layout)
    options = ("--jobs", "1", "--retries", "8")
    failed = mover(*options).push(archive, f"{registry.host}/app:v1", code=7, says="503")
    waits = [wait for wait in failed.waits if wait]
    assert len(waits) == len(set(waits)) == 8
    # The upper bounds are 0.4 s, then twice as long each time, at most 20 s; the lower bounds are half of that.
    longest = [min(0.4 * 2**number, 20.0) for number in range(8)]
    assert all(bound / 2 <= wait <= bound for bound, wait in zip(longest, waits, strict=True))


@quirk(30)
@both_ways
def test_a_reset_download_resumes_where_it_stopped(how: How, start: Start, mover: Move, layout: Layout) -> None:
    image, _ = one_layer(layout, 2 * MIB)
    digest = layer_of(layout, image)["digest"]
    registry = start(Quirk("breaks", (Fault(Reset(300_000), "GET", digest, times=3),)))
    seed(layout, image, registry.host, "app", "v1")
    pulled = mover().pull(f"{registry.host}/app:v1", how)
    assert pulled[f"blobs/sha256/{digest[7:]}"] == layout.file(digest).read_bytes()
    starts = [int((request.headers["Range"] or "bytes=0-")[6:-1]) for request in registry.asked("GET", digest)]
    # A reset may lose the bytes of one read.
    assert starts[0] == 0
    assert all(later - earlier > 200_000 for earlier, later in itertools.pairwise(starts))
    assert len(starts) == 4


@quirk(30)
@both_ways
def test_an_upload_that_always_breaks_writes_no_manifest(how: How, start: Start, mover: Move, layout: Layout) -> None:
    _, archive = one_layer(layout, 3 * MIB)
    breaks = Fault(StopReading(0, reset=True), "PATCH|PUT", "uploads", times=None, larger_than=MIB // 8)
    registry = start(Quirk("breaks", (breaks,)))
    mover().push(archive, f"{registry.host}/app:v1", how, code=7)
    assert manifest(registry.host, "app", "v1") is None


@quirk(32)
def test_the_tags_of_cosign_can_be_selected_as_tags(start: Start, mover: Move, layout: Layout) -> None:
    source, target = start(), start()
    image = small_image(layout)
    seed(layout, image, source.host, "app", "v1")
    added = {}
    for suffix in ("sig", "att", "sbom"):
        tag = f"sha256-{image['digest'][7:]}.{suffix}"
        added[tag] = seed(layout, layout.artifact(suffix.encode()), source.host, "app", tag)
    chosen = ["--tags", "v*", "--tags", "sha256-*"]
    mover(env={}).run("copy", *chosen, f"{source.host}/app", f"{target.host}/app")
    assert {tag: manifest_digest(target.host, "app", tag) for tag in added} == added
    assert manifest_digest(target.host, "app", "v1") == image["digest"]
