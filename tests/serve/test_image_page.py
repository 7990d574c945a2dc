"""The page for browsers: who gets it, what a browser may do with it, and its content."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ocistream.serve import AccessLogEntry, BasicAuth, Registry
from tests.archives import small_first, tar_of
from tests.html_page import Page
from tests.images import OCI_MANIFEST, Layout, small_image, two_platforms
from tests.raw_http import Client, Response, connect, converse
from tests.raw_server import eventually
from tests.registry_http import basic, seed
from tests.serve.served_layout import Served, SetLimits

#: The headers that Firefox and Chromium send when a user types an address.
BROWSER: Final = {
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en",
    "Sec-Fetch-Site": "none",
    "Sec-Fetch-Mode": "navigate",
}


@pytest.fixture
def image(served: Served, layout: Layout) -> str:
    """Return the digest of an image in the registry, `app:v1`."""
    return seed(layout, small_image(layout), served.host, "app", "v1")


def page_of(answer: Response) -> Page:
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8"), answer.body
    return Page(answer.body.decode())


class TestContent:
    def test_a_browser_gets_the_page_with_the_command_that_pulls_each_image(
        self, served: Served, ask: Client, image: str, layout: Layout
    ) -> None:
        index = seed(layout, two_platforms(layout), served.host, "team/both", "2")
        page = page_of(ask("GET", "/", headers=BROWSER))
        for text in (f"docker pull {served.host}/app:v1", f"docker pull {served.host}/team/both:2", image, index):
            assert text in page.text

    def test_the_command_has_the_address_that_the_browser_used(self, ask: Client, image: str) -> None:
        assert image
        page = page_of(ask("GET", "/", headers={**BROWSER, "Host": "localhost:5000"}))
        assert "docker pull localhost:5000/app:v1" in page.text

    def test_referrers_have_no_command(self, served: Served, ask: Client, image: str, layout: Layout) -> None:
        subject = {"mediaType": OCI_MANIFEST, "digest": image, "size": len(served.blob(image).read_bytes())}
        seed(layout, layout.artifact(b"{}", kind="application/spdx+json", subject=subject), served.host, "app")
        page = page_of(ask("GET", "/", headers=BROWSER))
        assert "SBOM" in page.text
        assert page.text.count("docker pull") == 1

    def test_the_other_of_two_images_with_one_name_is_pulled_by_digest(self, layout: Layout) -> None:
        first = small_image(layout, name="example.com/app:1")
        second = layout.image([4_000], name="example.com/app:1")
        with Registry(layout.path) as registry, Client(registry.host) as ask:
            page = page_of(ask("GET", "/", headers=BROWSER))
            repository = registry.storage.index().repositories()[0]
        assert repository == "app"
        assert f"docker pull {registry.host}/app:1" in page.text.partition(second["digest"])[2]
        assert f"@{first['digest']}" in page.text
        assert page.text.count("docker pull") == 2

    @pytest.mark.parametrize("name", ["example.com/app:2", "v1", None])
    def test_an_archive_has_the_page_after_its_file_was_replaced(
        self, name: str | None, layout: Layout, tmp_path: Path
    ) -> None:
        image = small_image(layout, name=name)
        if name is None:
            layout.enter(image)
        path = tmp_path / "shipped.tar"
        path.write_bytes(tar_of(small_first(layout)))
        with Registry(path) as registry, Client(registry.host) as ask:
            path.unlink()
            path.write_bytes(b"something else")
            page = page_of(ask("GET", "/", headers=BROWSER))
            expected = {"example.com/app:2": "app:2", "v1": "shipped:v1", None: "shipped:latest"}[name]
            assert f"docker pull {registry.host}/{expected}" in page.text
            pulled = ask("GET", f"/v2/{expected.replace(':', '/manifests/')}")
            assert pulled.headers["Docker-Content-Digest"] == image["digest"]

    def test_an_empty_directory_has_a_page(self, ask: Client) -> None:
        assert "Images 0" in page_of(ask("GET", "/", headers=BROWSER)).text

    def test_hostile_names_are_text(self, layout: Layout) -> None:
        hostile = '"><script src=x>&amp;'
        small_image(layout, name=hostile, config={"Labels": {hostile: hostile}}, annotations={hostile: hostile})
        with Registry(layout.path) as registry, Client(registry.host) as ask:
            page = page_of(ask("GET", "/", headers=BROWSER))
        assert page.text.count(hostile) >= 6
        assert "docker pull" in page.text


class TestRequests:
    @pytest.mark.parametrize("accept", ["text/html", "TEXT/HTML; q=0.1", "application/json, text/html;level=1"])
    def test_a_client_that_accepts_html_gets_the_page(self, ask: Client, accept: str) -> None:
        page_of(ask("GET", "/", headers={"Accept": accept}))

    @pytest.mark.parametrize(
        "accept", [None, "*/*", "text/*", "application/json", "text/html;q=0", "text/html; q=0.000"]
    )
    def test_other_clients_get_not_found(self, ask: Client, accept: str | None) -> None:
        answer = ask("GET", "/", headers={} if accept is None else {"Accept": accept})
        assert answer.refusal == (404, ["UNSUPPORTED"])
        assert answer.headers["Content-Type"] == "application/json"

    @pytest.mark.parametrize(("method", "target"), [("POST", "/"), ("GET", "/index.html"), ("PUT", "/")])
    def test_only_a_get_of_the_root_returns_the_page(self, ask: Client, method: str, target: str) -> None:
        assert ask(method, target, headers=BROWSER).status == 404

    def test_head_has_the_same_headers_and_the_connection_stays(self, ask: Client, image: str) -> None:
        assert image
        head, page = ask("HEAD", "/", headers=BROWSER), ask("GET", "/", headers=BROWSER)
        assert (head.status, head.body) == (200, b"")
        assert {**head.headers, "Date": ""} == {**page.headers, "Date": ""}
        assert ask("GET", "/v2/").body == b"{}"

    @pytest.mark.parametrize("size", [1, 1_000, 1_000_000])
    def test_the_page_ends_once_whatever_the_sizes_of_its_pieces(
        self, served: Served, set_limits: SetLimits, size: int
    ) -> None:
        set_limits(MIN_READ=size)
        requests = [
            f"GET {target} HTTP/1.1\r\nHost: {served.host}\r\nAccept: text/html\r\n" for target in ("/", "/v2/")
        ]
        answer = converse(served.host, f"{requests[0]}\r\n{requests[1]}Connection: close\r\n\r\n".encode())
        assert b"</html>\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n" in answer

    def test_a_client_of_http_1_0_gets_the_page_up_to_the_end(self, served: Served, image: str) -> None:
        assert image
        answer = converse(served.host, b"GET / HTTP/1.0\r\nAccept: text/html\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert f"docker pull {served.host}/app:v1" in Page(body.decode()).text

    def test_the_page_forbids_scripts_requests_and_frames(self, ask: Client) -> None:
        headers = ask("GET", "/", headers=BROWSER).headers
        policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
        assert policy.pop("style-src").startswith("'sha256-")
        assert set(policy) == {"default-src", "base-uri", "form-action", "frame-ancestors"}
        assert set(policy.values()) == {"'none'"}
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_a_link_on_another_site_does_not_open_the_page(self, ask: Client, site: str) -> None:
        assert ask("GET", "/", headers={**BROWSER, "Sec-Fetch-Site": site}).status == 403

    def test_the_page_is_refused_under_a_foreign_host_name(self, ask: Client) -> None:
        assert ask("GET", "/", headers={**BROWSER, "Host": "rebound.example.com"}).status == 403

    def test_the_page_needs_the_password(self, tmp_path: Path) -> None:
        with (
            Registry(tmp_path / "served", auth=BasicAuth("ada", "secret")) as registry,
            Client(registry.host) as ask,
        ):
            refused = ask("GET", "/", headers=BROWSER)
            assert (refused.status, refused.headers["WWW-Authenticate"][:6]) == (401, "Basic ")
            assert "html" not in refused.headers["Content-Type"]
            page_of(ask("GET", "/", headers={**BROWSER, **basic("ada", "secret")}))

    def test_a_corrupt_manifest_is_an_error_without_a_page(self, served: Served, ask: Client, image: str) -> None:
        served.blob(image).write_bytes(b"x" * len(served.blob(image).read_bytes()))
        assert ask("GET", "/", headers=BROWSER).refusal == (500, ["UNKNOWN"])


class TestSlowClients:
    @pytest.fixture
    def slow(self, served: Served, layout: Layout) -> Iterator[socket.socket]:
        """Return a connection whose client has read only the beginning of a page that fits into no buffer."""
        for number in range(2):
            annotations = {f"{number}-{key}": "x" * 500 for key in range(6_500)}
            seed(layout, small_image(layout, annotations=annotations), served.host, "app", f"v{number}")
        with connect(served.host, receive_buffer=4096) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {served.host}\r\nAccept: text/html\r\n\r\n".encode())
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            yield connection

    def test_one_page_is_sent_at_a_time(self, slow: socket.socket, ask: Client, set_limits: SetLimits) -> None:
        set_limits(PAGE_TIMEOUT=0.01)
        assert ask("GET", "/", headers=BROWSER).refusal == (429, ["TOOMANYREQUESTS"])
        assert ask("GET", "/v2/").status == 200
        set_limits(PAGE_TIMEOUT=60)
        slow.close()
        assert ask("GET", "/", headers=BROWSER).status == 200

    def test_a_client_that_does_not_read_is_disconnected(
        self, served: Served, set_limits: SetLimits, access_log: list[AccessLogEntry], request: pytest.FixtureRequest
    ) -> None:
        set_limits(PAGE_TIMEOUT=0.5)
        request.getfixturevalue("slow")
        eventually(lambda: access_log[-1].target == "/")
        assert "timed out" in str(access_log[-1].problem)
        assert served.registry.page_slot.take(timeout=60)


def test_several_clients_get_the_same_page(served: Served, image: str) -> None:
    pages: list[bytes] = []

    def read() -> None:
        with Client(served.host) as ask:
            pages.append(ask("GET", "/", headers=BROWSER).body)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pages)) == 1
    assert len(pages) == 8
    assert image in Page(pages[0].decode()).text
