"""Redirects: which requests follow them, with which method and body, and which host an error names."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.cli import assertions
from tests.http.fixture_types import ONCE, Run
from tests.http.raw_registry import LAYER, LAYERS, MANIFESTS, RawRegistry, answer, manifest, read_body
from tests.images import Layout, small_image
from tests.raw_server import Heard


def redirect(location: str, status: int = 307, connection: str = "keep-alive") -> bytes:
    return answer(status=f"{status} Elsewhere", Location=location, Connection=connection)


@pytest.fixture
def storage() -> Iterator[RawRegistry]:
    """Return another host, to which the registry redirects."""
    with RawRegistry() as other:
        yield other


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_keeps_the_method(raw: RawRegistry, run: Run, layout: Layout, status: int) -> None:
    small_image(layout, name="app")
    raw.says("/uploads/$", redirect("/v2/app/moved/", status), method="POST")
    raw.says("/moved/", answer(status="202 Accepted", Location="/v2/app/blobs/uploads/session"), method="POST")
    raw.says("/blobs/", answer(status="404 Not Found"), method="HEAD")
    raw.says(r"/manifests/1$", redirect("/v2/app/moved", status), method="GET|HEAD")
    raw.says("/moved$", manifest(), method="GET")
    raw.says("/moved$", answer(status="404 Not Found"), method="HEAD")
    assert run("inspect", raw.image, *ONCE).code == 0
    assert run("push", raw.image, "-i", layout.path, *ONCE).code == 0
    assert {request.method for request in raw.asked(path="/moved$")} == {"GET", "HEAD"}
    assert {request.method for request in raw.asked(path="/moved/")} == {"POST"}


def test_a_refused_signed_url_is_replaced_by_a_fresh_redirect(raw: RawRegistry, storage: RawRegistry, run: Run) -> None:
    for number in range(2):
        raw.says(LAYERS, redirect(f"{storage.url}/blob?X-Signature={number}"), times=1)
    storage.says("/blob", answer(status="403 Forbidden"), times=1)
    storage.says("/blob", answer(LAYER))
    assert run("pull", raw.image, "-o", "app.tar", "--plain-http", "--retries=1").code == 0
    assert [request.target for request in storage.requests] == ["/blob?X-Signature=0", "/blob?X-Signature=1"]


@pytest.mark.parametrize(("status", "times"), [(401, 1), (403, 2)])
def test_the_host_that_refuses_is_named_and_no_login_is_suggested(
    raw: RawRegistry, storage: RawRegistry, run: Run, status: int, times: int
) -> None:
    raw.says(MANIFESTS, redirect(f"http://me:secret@{storage.host}/x?sig=secret"))
    storage.says("", answer(status=f"{status} Refused", WWW_Authenticate="Basic realm=x"))
    result = run("inspect", raw.image, "--plain-http", "--retries=1")
    assertions.failure(result, 7, f"{storage.host} refused: GET {storage.url}/x?...: {status}")
    assert "ocistream login" not in result.err
    assert f"{raw.host} redirected the request to that host" in result.err
    assert "secret" not in result.err
    assert len(storage.requests) == len(raw.requests) == times


def test_an_upload_that_another_host_refuses_names_that_host(
    raw: RawRegistry, storage: RawRegistry, run: Run, layout: Layout
) -> None:
    small_image(layout, name="app")
    raw.says("/blobs/", answer(status="404 Not Found"), method="HEAD")
    raw.says("/uploads/", answer(status="202 Accepted", Location=f"{storage.url}/x"), method="POST")
    storage.says("", answer(status="403 Forbidden"), method="PATCH|PUT")
    result = run("push", raw.image, "-i", layout.path, *ONCE)
    assertions.failure(result, 7, f"{storage.host} refused")
    assert "ocistream login" not in result.err


def test_the_registry_itself_is_not_asked_again_after_a_refusal(raw: RawRegistry, run: Run) -> None:
    raw.says(MANIFESTS, answer(status="403 Forbidden"))
    assertions.failure(run("inspect", raw.image, *ONCE), 3, f"{raw.host} refused", f"ocistream login {raw.host}")
    assert len(raw.requests) == 1


def test_five_redirects_are_followed_and_no_more(raw: RawRegistry, run: Run) -> None:
    for number in range(5):
        raw.says("", redirect(f"/v2/{number}"), times=1)
    raw.says("/v2/4$", manifest())
    assert run("inspect", raw.image, *ONCE).code == 0
    assert [request.target for request in raw.requests][:6] == [
        "/v2/app/manifests/1",
        *(f"/v2/{number}" for number in range(5)),
    ]
    raw.answers.clear()
    raw.requests.clear()
    raw.says("", redirect("/v2/app/manifests/1"))
    assertions.failure(run("inspect", raw.image, *ONCE), 7, "more than 5 redirects")
    assert len(raw.requests) == 6


@pytest.mark.parametrize("given", [answer(status="307 Elsewhere"), redirect("")], ids=["none", "empty"])
def test_a_redirect_without_a_location_is_a_failure(raw: RawRegistry, run: Run, given: bytes) -> None:
    raw.says(MANIFESTS, given)
    assertions.failure(run("inspect", raw.image, *ONCE), 7, "307")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("ftp://h/x?secret", "not an http or https URL"),
        ("http://[::1/?secret", "points to"),
        ("file:///etc/passwd", "not an http or https URL"),
        ("http://user:secret@127.0.0.1:0/?secret", "GET http://127.0.0.1:0/"),
    ],
)
def test_a_malformed_location_is_refused_and_not_shown(raw: RawRegistry, run: Run, location: str, said: str) -> None:
    raw.says(MANIFESTS, redirect(location))
    result = run("inspect", raw.image, *ONCE)
    assertions.failure(result, 7, said)
    assert "secret" not in result.err


def test_the_body_of_a_redirect_may_have_no_end(raw: RawRegistry, run: Run) -> None:
    def endless(connection: socket.socket, _: Heard) -> None:
        connection.sendall(b"HTTP/1.1 307 There\r\nLocation: /v2/moved\r\nContent-Length: 1099511627776\r\n\r\n")
        while True:
            connection.sendall(bytes(1 << 16))

    raw.says("/manifests/1$", endless)
    raw.says("/moved", manifest())
    assert run("inspect", raw.image, *ONCE).code == 0


def test_a_manifest_is_sent_again_within_an_origin_and_never_to_another(
    raw: RawRegistry, storage: RawRegistry, run: Run, layout: Layout
) -> None:
    small_image(layout, name="app")
    raw.says("/manifests/", answer(status="404 Not Found"), method="HEAD")
    raw.says("/manifests/", redirect("/v2/moved"), method="PUT", times=1)
    assert run("push", raw.image, "-i", layout.path, *ONCE).code == 0
    first, second = raw.asked("PUT", "/manifests/|/moved")[:2]
    assert (second.target, second.headers["content-length"]) == ("/v2/moved", first.headers["content-length"])
    raw.says("/manifests/", redirect(f"{storage.url}/v2/"), method="PUT")
    assertions.failure(run("push", raw.image, "-i", layout.path, *ONCE), 7, "redirected to another host")
    assert storage.requests == []


def test_a_blob_that_was_sent_is_not_sent_again_elsewhere(raw: RawRegistry, run: Run, layout: Layout) -> None:
    small_image(layout, name="app")

    def moved(connection: socket.socket, heard: Heard) -> None:
        read_body(connection, heard)
        connection.sendall(redirect("/v2/moved", connection="close"))

    raw.says("/blobs/", answer(status="404 Not Found"), method="HEAD")
    raw.says("/uploads/", moved, method="PUT")
    assertions.failure(run("push", raw.image, "-i", layout.path, *ONCE), 7, "redirected after its body was sent")
    assert raw.asked(path="/moved") == []
