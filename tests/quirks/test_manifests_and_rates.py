"""Manifests as they are called, and registries that have enough or fail: statements 28 to 30, and 32 of tags."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from ocistream.errors import NetworkError, RegistryError
from ocistream.retry import Patience
from tests.archives import small_first, tar_of
from tests.cli.expect import json_lines, success
from tests.cli.run import ocistream
from tests.faults import Drop, Fault, Reset, StopReading, refusal, too_many_requests
from tests.images import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Layout, small_image, two_platforms
from tests.network import QuickTransport
from tests.quirks import habits
from tests.quirks.moving import WAYS, How, Mover
from tests.quirks.pieces import MIB, is_stored, layer_of, one_layer
from tests.quirks.registry import Quirk, QuirkyRegistry
from tests.quirks.statements import quirk
from tests.registry_http import manifest, manifest_digest, seed

Start = Callable[..., QuirkyRegistry]
Move = Callable[..., Mover]
#: Longer than anybody waits for nothing, and shorter than what is obeyed.
LONG: Final = 120.0


@quirk(28)
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    ("media", "types"), [("oci", {OCI_INDEX, OCI_MANIFEST}), ("docker", {DOCKER_LIST, DOCKER_MANIFEST})]
)
def test_a_manifest_is_called_what_it_calls_itself_and_its_bytes_stay(
    media: Any, types: set[str], how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(habits.KEEPS_TYPES)
    index = two_platforms(layout, media=media, name="app")
    mover().push(tar_of(small_first(layout)), f"{registry.host}/app:v1", how)
    kept = {key[1]: value for key, value in registry.memory.items() if key[0] == "type"}
    assert set(kept.values()) == types
    assert kept["v1"] == index["mediaType"]
    assert manifest(registry.host, "app", "v1") == layout.file(index["digest"]).read_bytes()


@quirk(28)
@pytest.mark.parametrize("way", ["from an archive", "from a registry"])
def test_a_manifest_that_does_not_say_is_called_what_others_call_it(
    way: str, start: Start, mover: Move, layout: Layout
) -> None:
    image = small_image(layout)
    document = layout.read(image["digest"])
    del document["mediaType"]
    bare = layout.blob(json.dumps(document, indent=1).encode(), OCI_MANIFEST)
    layout.name(bare, "app")
    source, target = start(), start(habits.KEEPS_TYPES)
    if way == "from an archive":
        mover().push(tar_of(small_first(layout)), f"{target.host}/app:v1")
    else:
        seed(layout, bare, source.host, "app", "v1")
        mover().copy(f"{source.host}/app:v1", f"{target.host}/app:v1")
    assert target.memory["type", "v1"] == OCI_MANIFEST
    assert manifest(target.host, "app", "v1") == layout.file(bare["digest"]).read_bytes()


@quirk(29)
@pytest.mark.parametrize("form", ["seconds", "date", "nothing"])
def test_a_429_of_any_request_is_waited_out(form: Any, start: Start, mover: Move, layout: Layout) -> None:
    registry = start(habits.too_many(form, methods=".*"))
    image, archive = one_layer(layout)
    used = mover()
    used.push(archive, f"{registry.host}/app:v1")
    used.pull(f"{registry.host}/app:v1")
    refused = {request.method for request in registry.requests if request.status == 429}
    assert refused >= {"HEAD", "POST", "PATCH", "PUT", "GET"}
    assert 429 in {request.status for request in registry.asked("PUT", "/manifests/")}
    assert is_stored(registry, layout, layer_of(layout, image))
    transport = used.transport
    assert isinstance(transport, QuickTransport)
    longest = max(transport.waits)
    # A date has whole seconds.
    assert longest < 1 if form == "nothing" else 5 < longest <= 7
    assert any("answered 429" in told.reason for told in transport.told)


@quirk(29)
def test_while_a_registry_has_enough_of_one_request_it_gets_no_other(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(Quirk("enough", (Fault(too_many_requests(LONG), "HEAD", "/blobs/"),)))
    _, archive = one_layer(layout)
    used = mover()
    used.push(archive, f"{registry.host}/app:v1")
    transport = used.transport
    assert isinstance(transport, QuickTransport)
    # All that came to that host within the time waited, not only the one that was refused.
    assert len([wait for wait in transport.waits if wait > LONG - 30]) > 1


@quirk(29)
def test_a_wait_beyond_the_bound_is_no_wait_and_is_said(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(Quirk("enough", (Fault(too_many_requests(LONG), "HEAD", times=None),)))
    _, archive = one_layer(layout)
    used = mover(jobs=1, patience=Patience(retry_after_limit=LONG - 1))
    with pytest.raises(RegistryError, match="429") as failure:
        used.push(archive, f"{registry.host}/app:v1")
    assert "120 s" in (failure.value.hint or "")
    assert len(registry.requests) == 1


@quirk(29)
def test_a_wait_is_shown(start: Start, layout: Layout, tmp_path: Path) -> None:
    registry = start(Quirk("enough", (Fault(too_many_requests(1), "PUT", "/manifests/"),)))
    image, archive = one_layer(layout)
    path = tmp_path / "app.tar"
    path.write_bytes(archive)
    result = ocistream("push", f"{registry.host}/app:v1", "-i", path, "-v", "--log-format", "json")
    success(result)
    (told,) = [line["message"] for line in json_lines(result.err) if "429" in str(line.get("message"))]
    assert "/manifests/v1" in told
    assert "trying again in 1.0 s" in told
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


@quirk(30)
@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int, start: Start, mover: Move, layout: Layout) -> None:
    registry = start(habits.in_trouble(status, methods=".*"))
    image, archive = one_layer(layout)
    used = mover()
    used.push(archive, f"{registry.host}/app:v1")
    used.pull(f"{registry.host}/app:v1")
    failed = {request.method for request in registry.requests if request.status == status}
    assert failed >= {"HEAD", "POST", "PATCH", "PUT", "GET"}
    assert is_stored(registry, layout, layer_of(layout, image))


@quirk(30)
@pytest.mark.parametrize("status", [400, 402, 410, 422, 451])
@pytest.mark.parametrize("what", ["manifests/v1", "blobs/uploads/"])
def test_what_is_refused_for_good_is_not_tried_again(
    what: str, status: int, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(Quirk("refuses", (Fault(refusal(status, "DENIED"), "POST|PUT", what, times=None),)))
    _, archive = one_layer(layout)
    with pytest.raises(RegistryError, match=str(status)):
        mover(jobs=1).push(archive, f"{registry.host}/app:v1")
    assert len(registry.asked("POST|PUT", what)) == 1


@quirk(30)
def test_waits_grow_and_no_two_are_the_same(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(Quirk("down", (Fault(refusal(503), "HEAD", times=None),)))
    _, archive = one_layer(layout)
    used = mover(jobs=1, patience=Patience(attempts=5, backoff=1, backoff_limit=60))
    with pytest.raises(RegistryError, match="503"):
        used.push(archive, f"{registry.host}/app:v1")
    transport = used.transport
    assert isinstance(transport, QuickTransport)
    waits = [wait for wait in transport.waits if wait]
    assert len(waits) == 4
    assert all(2**number / 2 <= wait <= 2**number for number, wait in enumerate(waits))
    assert len(set(waits)) == 4


@quirk(30)
@pytest.mark.parametrize("action", [Drop(300_000), Reset(300_000)], ids=["a proper end", "a reset"])
@pytest.mark.parametrize("how", WAYS)
def test_a_download_that_breaks_goes_on_where_it_was(
    action: Any, how: How, start: Start, mover: Move, layout: Layout
) -> None:
    image, _ = one_layer(layout, 2 * MIB)
    digest = layer_of(layout, image)["digest"]
    registry = start(Quirk("breaks", (Fault(action, "GET", digest, times=3),)))
    seed(layout, image, registry.host, "app", "v1")
    pulled = mover().pull(f"{registry.host}/app:v1", how)
    assert pulled[f"blobs/sha256/{digest[7:]}"] == layout.file(digest).read_bytes()
    starts = [int((request.headers["Range"] or "bytes=0-")[6:-1]) for request in registry.asked("GET", digest)]
    # A reset may take with it what had come of one read.
    assert starts[0] == 0
    assert all(later - earlier > 200_000 for earlier, later in itertools.pairwise(starts))
    assert len(starts) == 4


@quirk(30)
def test_a_broken_upload_is_tried_again_where_its_bytes_can_be_had_again(
    start: Start, mover: Move, layout: Layout
) -> None:
    image, archive = one_layer(layout, 3 * MIB)
    registry = start(Quirk("breaks", (Fault(StopReading(MIB, reset=True), "PATCH", larger_than=2 * MIB),)))
    mover().push(archive, f"{registry.host}/app:v1")
    assert is_stored(registry, layout, layer_of(layout, image))
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


@quirk(30)
@pytest.mark.parametrize("how", WAYS)
def test_an_upload_that_breaks_for_ever_makes_nothing_visible(
    how: How, start: Start, mover: Move, layout: Layout
) -> None:
    _, archive = one_layer(layout, 3 * MIB)
    breaks = Fault(StopReading(0, reset=True), "PATCH|PUT", "uploads", times=None, larger_than=MIB // 8)
    registry = start(Quirk("breaks", (breaks,)))
    with pytest.raises(NetworkError):
        mover().push(archive, f"{registry.host}/app:v1", how)
    assert manifest(registry.host, "app", "v1") is None
    assert threading.active_count() < 50


@quirk(32)
def test_what_cosign_adds_as_tags_can_be_chosen_as_tags(start: Start, layout: Layout) -> None:
    source, target = start(), start()
    image = small_image(layout)
    seed(layout, image, source.host, "app", "v1")
    added = {}
    for suffix in ("sig", "att", "sbom"):
        tag = f"sha256-{image['digest'][7:]}.{suffix}"
        added[tag] = seed(layout, layout.artifact(suffix.encode()), source.host, "app", tag)
    chosen = ["--tags", "v*", "--tags", "sha256-*"]
    success(ocistream("copy", *chosen, f"{source.host}/app", f"{target.host}/app"))
    assert {tag: manifest_digest(target.host, "app", tag) for tag in added} == added
    assert manifest_digest(target.host, "app", "v1") == image["digest"]
