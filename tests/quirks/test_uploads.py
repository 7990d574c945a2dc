"""Uploads of blobs: statements 1 to 16, and 39 to 42. Chunks are in `test_chunked_uploads`."""

from __future__ import annotations

import os
import re
import threading
import time
from typing import Any

import pytest

from tests.archives import small_first, tar_of
from tests.certificates import Certificate
from tests.cli.proxy import tunnelling_to
from tests.faulty_auth import Basic, Bearer
from tests.faulty_registry import Fault, Header, refusal
from tests.images import Layout
from tests.quirks import upload_quirks
from tests.quirks.command_runner import How, both_ways
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import Quirk, refused, relocating
from tests.quirks.registry_models import PASSWORD, USER
from tests.quirks.registry_quirks import NO_LOOKING
from tests.quirks.small_images import (
    LAYER,
    config_of,
    is_stored,
    layer_of,
    one_layer,
    position_of,
    spoil,
    unread,
    upload_of,
)
from tests.quirks.statements import quirk
from tests.raw_server import eventually
from tests.registry_http import manifest_digest


@quirk(1, 39)
@pytest.mark.parametrize(
    ("habit", "expected"),
    [
        (upload_quirks.ABSOLUTE, r"/v2/team/app/blobs/uploads/[0-9a-f-]{36}"),
        (upload_quirks.RELATIVE, r"/v2/team/app/blobs/uploads/[0-9a-f-]{36}"),
        (upload_quirks.OTHER_PREFIX, r"/artifacts-uploads/namespaces/p/repositories/team/app/uploads/[0-9a-f-]{36}"),
    ],
    ids=str,
)
def test_a_location_is_resolved_against_the_request(
    habit: Quirk, expected: str, start: Start, mover: Move, layout: Layout
) -> None:
    # Without Docker-Upload-UUID, only the Location identifies an upload.
    registry = start(habit, upload_quirks.NO_UUID)
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/team/app:v1")
    requests = upload_of(registry, layer_of(layout, image))
    assert [request.method for request in requests] == ["PATCH", "PUT"]
    assert all(re.fullmatch(expected, request.path) for request in requests)
    assert is_stored(registry, layout, layer_of(layout, image), config_of(layout, image))


@quirk(2, 3)
def test_the_query_of_the_last_location_is_unchanged_and_the_digest_appended(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(upload_quirks.STATE)
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1")
    patch, put = upload_of(registry, layer_of(layout, image))
    given = r"_state=n([0-9]+)-x%2By\+z~%3D%3D"
    first = re.fullmatch(given, patch.target.partition("?")[2])
    last = re.fullmatch(rf"{given}&digest=(.+)", put.target.partition("?")[2])
    assert first is not None
    assert last is not None
    assert int(last[1]) > int(first[1])
    assert last[2].replace("%3A", ":") == layer_of(layout, image)["digest"]


@quirk(3)
def test_without_a_new_location_the_previous_one_is_used(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(upload_quirks.NO_LATER_LOCATION, upload_quirks.ABSOLUTE)
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1")
    patch, put = upload_of(registry, layer_of(layout, image))
    assert put.path == patch.path


@quirk(4)
def test_an_http_location_after_https_is_not_followed(
    start: Start, mover: Move, layout: Layout, certificate: Certificate
) -> None:
    plain = start()
    to_plain = relocating(lambda _, location: f"http://registry.test:{plain.host.partition(':')[2]}{location}")
    registry = start(Quirk("http after https", outward=to_plain), tls=certificate)
    image, archive = one_layer(layout)
    host = f"registry.test:{registry.host.partition(':')[2]}"
    used = mover("--ca-cert", certificate.file, names={"registry.test": "203.0.113.5"})
    used.push(archive, f"{host}/app:v1", code=7, says="uses https, but points to http://registry.test")
    assert plain.requests == []
    assert not is_stored(registry, layout, layer_of(layout, image))


@quirk(4)
def test_port_443_and_no_port_are_the_same_host(
    start: Start, mover: Move, layout: Layout, certificate: Certificate
) -> None:
    def with_port(_: Any, location: str) -> str:
        return f"https://registry.test:443{location}"

    registry = start(
        Quirk("the port is said", outward=relocating(with_port)), tls=certificate, auth=Basic(USER, PASSWORD)
    )
    image, archive = one_layer(layout)
    with tunnelling_to(registry.host) as proxy:
        env = {"HTTPS_PROXY": proxy.url, "SSL_CERT_FILE": str(certificate.file)}
        login = {"OCISTREAM_USERNAME": USER, "OCISTREAM_PASSWORD": PASSWORD}
        mover(env={**env, **login}).push(archive, "registry.test/app:v1")
    # The requests had an Authorization header, or they would have been refused.
    assert {request.status for request in upload_of(registry, layer_of(layout, image))} == {201, 202}


@quirk(6, 7, 8)
@both_ways
def test_a_blob_takes_one_post_one_streamed_patch_and_a_put_without_a_body(
    how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1", how)
    layer, config = layer_of(layout, image), config_of(layout, image)
    patch, put = upload_of(registry, layer)
    assert (patch.method, patch.received) == ("PATCH", layer["size"])
    assert patch.headers["Content-Range"] is None
    assert patch.headers["Content-Type"] == "application/octet-stream"
    assert (put.method, put.received, put.headers["Content-Length"]) == ("PUT", 0, "0")
    # A small blob takes one PUT.
    (put,) = upload_of(registry, config)
    assert (put.method, put.received, put.headers["Content-Length"]) == ("PUT", config["size"], str(config["size"]))
    assert put.headers["Content-Type"] == "application/octet-stream"
    assert [request.headers["Content-Length"] for request in registry.asked("POST")] == ["0", "0"]


@quirk(10, 40)
@both_ways
@pytest.mark.parametrize(
    "habit", [upload_quirks.BACKWARD_RANGE, upload_quirks.LAST_RANGE, upload_quirks.NO_RANGE], ids=str
)
def test_the_range_after_a_streamed_upload_is_ignored(
    habit: Quirk, how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(habit)
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1", how)
    assert len(upload_of(registry, layer_of(layout, image))) == 2
    assert is_stored(registry, layout, layer_of(layout, image))


@quirk(12)
@pytest.mark.parametrize(
    ("method", "status"),
    [*(("PATCH", status) for status in (200, 201, 202, 204)), *(("PUT", status) for status in (200, 201, 202, 204))],
)
def test_every_success_status_is_accepted(method: str, status: int, start: Start, mover: Move, layout: Layout) -> None:
    registry = start(upload_quirks.answering(method, status))
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1")
    requests = upload_of(registry, layer_of(layout, image))
    assert [request.method for request in requests] == ["PATCH", "PUT"]
    # The status is trusted: no HEAD checks the blob afterwards.
    assert len(registry.asked("HEAD", "/blobs/")) == 2
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


@quirk(13)
@both_ways
def test_after_an_expired_token_only_the_closing_put_is_repeated(
    how: How, start: Start, mover: Move, layout: Layout
) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=())
    registry = start(upload_quirks.TOKENS_END, auth=auth)
    image, archive = one_layer(layout)
    mover("--jobs", "1").push(archive, f"{registry.host}/app:v1", how)
    puts = [request.status for request in registry.asked("PUT", "digest=")]
    assert sorted(puts, key=str) == [201, 201, 401]
    assert [request.received for request in registry.asked("PATCH")] == [layer_of(layout, image)["size"]]
    assert [request.status for request in auth.requests] == [200, 200]


@quirk(14)
def test_no_session_is_opened_before_the_first_byte_of_its_blob_arrives(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image = layout.image([LAYER, LAYER + 1], name="app")
    archive = tar_of(small_first(layout))
    used = mover()
    fifo = used.folder / "stdin"
    os.mkfifo(fifo)
    first, second = sorted(position_of(archive, blob["digest"]) for blob in layout.read(image["digest"])["layers"])
    opened: list[int] = []

    def write() -> None:
        with fifo.open("wb", buffering=0) as pipe:
            pipe.write(archive[:second])
            eventually(lambda: max([request.received for request in registry.asked("PATCH")], default=0) >= LAYER)
            eventually(lambda: unread(pipe) == 0)
            # Enough time to open another session.
            time.sleep(0.2)
            opened.append(len(registry.asked("POST")) - len(registry.asked("PUT", "digest=")))
            pipe.write(archive[second:])

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    used.run("push", f"{registry.host}/app:v1", stdin=fifo)
    writer.join(60)
    assert first < second
    assert opened == [0]
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


@quirk(15)
@pytest.mark.parametrize(
    ("status", "how"), [(204, "file"), (204, "pipe"), *((status, "pipe") for status in (405, 500, 401))]
)
def test_an_abandoned_session_is_deleted_once(status: int, how: How, start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    if status != 204:
        registry.faults = [Fault(refusal(status), "DELETE", times=None)]
    image, archive = one_layer(layout)
    digest = layer_of(layout, image)["digest"]
    spoiled = spoil(archive, layout, digest)
    mover("--jobs", "1").push(spoiled, f"{registry.host}/app:v1", how, code=5, says=digest)
    (deleted,) = registry.asked("DELETE")
    assert (deleted.status, deleted.path[:22]) == (status, "/v2/app/blobs/uploads/")
    if status == 204:
        assert list((registry.layout.path / "blobs").glob("*/.*")) == []


@quirk(16)
@both_ways
def test_an_empty_blob_is_a_put_without_a_body(how: How, start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    artifact = layout.artifact(b"", name="app")
    mover().push(tar_of(small_first(layout)), f"{registry.host}/app:v1", how)
    empty = layer_of(layout, artifact)
    assert empty["size"] == 0
    (put,) = upload_of(registry, empty)
    assert (put.method, put.received) == ("PUT", 0)
    assert is_stored(registry, layout, empty)


@quirk(41)
@pytest.mark.parametrize(("header", "refused"), [("X-JFrog-Version", 0), ("X-Other", 1)])
def test_a_registry_that_requires_a_patch_gets_one(
    header: str, refused: int, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(upload_quirks.NO_SINGLE_PUT)
    # A registry recognized by this header gets no small blob in one PUT. Another one refuses the first PUT.
    registry.faults = [Fault(Header(header, "7.1"), times=None)]
    image = layout.image([4000, 5000, LAYER], name="app")
    mover("--jobs", "1").push(tar_of(small_first(layout)), f"{registry.host}/app:v1")
    statuses = [request.status for request in registry.asked("PUT", "uploads")]
    assert (statuses.count(404), statuses.count(201)) == (refused, 4)
    assert is_stored(registry, layout, *layout.read(image["digest"])["layers"])


@quirk(42)
def test_a_push_succeeds_with_push_permission_only(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(NO_LOOKING)
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1")
    assert {request.status for request in registry.asked("HEAD")} == {403}
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


@quirk(42)
@both_ways
def test_a_user_without_push_permission_gets_an_error_before_any_byte_is_sent(
    how: How, start: Start, mover: Move, layout: Layout
) -> None:
    def deny(handler: Any) -> Any:
        return refused(403, "DENIED") if handler.command != "GET" else None

    registry = start(Quirk("read only", inward=deny))
    _, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1", how, code=3, says="403")
    assert registry.asked("PATCH|PUT") == []
