"""Contents of requests: only the necessary headers, exact URLs, no cookie, and no unintended credentials."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faulty_auth import Bearer
from tests.faulty_registry import FaultyRegistry
from tests.http.fixture_types import ONCE, Run
from tests.http.raw_registry import MANIFEST, MANIFESTS, RawRegistry, answer, manifest
from tests.images import Layout, digest_of, small_image
from tests.raw_server import RawServer
from tests.registry_http import seed


def test_a_request_has_only_the_necessary_headers(raw: RawRegistry, run: Run) -> None:
    raw.says(MANIFESTS, manifest(Set_Cookie="sid=1; Path=/"))
    assert run("pull", raw.image, "-o", "app.tar", *ONCE).code == 0
    assert {frozenset(request.headers) for request in raw.requests} == {
        frozenset({"accept", "accept-encoding", "host", "user-agent"})
    }
    assert {request.headers["accept-encoding"] for request in raw.requests} == {"identity"}
    assert {request.headers["host"] for request in raw.requests} == {raw.host}


def test_requests_without_a_body_have_a_length_and_are_not_chunked(raw: RawRegistry, run: Run) -> None:
    assert run("pull", raw.image, "-o", "app.tar", *ONCE).code == 0
    raw.says("/blobs/", answer(status="404 Not Found"), method="HEAD")
    raw.says(MANIFESTS, answer(status="404 Not Found"), method="HEAD")
    raw.says("uploads/session", answer(status="500 Internal Server Error"), method="PUT", times=1)
    # A stream ends with a PUT that has no body.
    assert run("push", raw.image, "-i", "app.tar", "--upload", "stream", *ONCE).code == 7
    assert run("push", raw.image, "-i", "app.tar", "--upload", "stream", *ONCE).code == 0
    raw.says(MANIFESTS, manifest(), method="HEAD")
    assert run("rm", raw.image, "--yes", *ONCE).code in {0, 2}
    without_body = [*raw.asked("POST"), *raw.asked("PUT", "uploads/session"), *raw.asked("DELETE")]
    assert {request.method for request in without_body} == {"POST", "PUT", "DELETE"}
    assert {request.headers.get("content-length") for request in without_body} == {"0"}
    assert {request.headers.get("transfer-encoding") for request in without_body} == {None}


@pytest.mark.parametrize("target", ["/v2/?_state=a%3Db%7E&n=1", "/v2/%7Ea//b/?q=%2B+'", "/v2/../x/./y?q", "/;p?a;b"])
def test_a_url_is_requested_unchanged(raw: RawRegistry, run: Run, target: str) -> None:
    raw.says(MANIFESTS, answer(status="307 Temporary Redirect", Location=f"{raw.url}{target}"))
    raw.says("", manifest())
    run("inspect", raw.image, *ONCE)
    assert target in [request.target for request in raw.requests]


def test_user_and_password_in_a_url_are_not_sent(raw: RawRegistry, run: Run) -> None:
    with RawServer(manifest()) as other:
        raw.says(MANIFESTS, answer(status="307 Temporary Redirect", Location=f"http://mallory:pw@{other.host}/x"))
        assert run("inspect", f"{raw.host}/app@{digest_of(MANIFEST)}", *ONCE).code == 0
        assert {heard.headers["Authorization"] for heard in other.heard} == {None}


def test_netrc_does_not_replace_a_token(
    tmp_path: Path, layout: Layout, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login alice password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    with FaultyRegistry(tmp_path / "served") as registry:
        seed(layout, small_image(layout), registry.host, "app", "1")
        registry.auth = Bearer(anonymous=("pull",))
        registry.requests.clear()
        assert run("inspect", f"{registry.host}/app:1").code == 0
        sent = {str(request.headers["Authorization"]).partition(" ")[0] for request in registry.requests}
        assert sent == {"None", "Bearer"}


def test_every_challenge_of_a_response_is_read(raw: RawRegistry, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCISTREAM_USERNAME", "alice")
    monkeypatch.setenv("OCISTREAM_PASSWORD", "secret")
    head = b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nwww-authenticate: Basic realm=x\r\n"
    raw.says(MANIFESTS, head + b"Content-Length: 0\r\n\r\n", times=1)
    assert run("inspect", raw.image, *ONCE).code == 0
    assert [request.headers.get("authorization") for request in raw.requests][:2] == [None, "Basic YWxpY2U6c2VjcmV0"]


def test_one_attempt_is_one_request(run: Run) -> None:
    with RawServer(b"") as server:
        assert run("inspect", f"{server.host}/app:1", *ONCE).code == 7
        assert len(server.heard) == 1
