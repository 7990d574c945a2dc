"""Origins: which URLs a request may go to, and how URLs are shown."""

from __future__ import annotations

import threading

import pytest

from ocistream.errors import PermanentNetworkError
from ocistream.http.origins import Origin, is_loopback, is_proxy_bypassed, redact_url, request_target, resolve_url

PUBLIC = Origin("https", "registry.example", 443)


class TestOrigin:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("https://registry.example", "https://registry.example:443/v2/"),
            ("http://registry.example:80", "http://REGISTRY.example/x?y"),
            ("https://registry.example/", "https://user:password@registry.example/"),
            ("http://[::1]:80/", "http://[::1]/"),
        ],
    )
    def test_the_same_scheme_host_and_port_are_the_same_origin(self, one: str, other: str) -> None:
        assert Origin.from_url(one) == Origin.from_url(other)

    @pytest.mark.parametrize(
        "other",
        [
            "http://registry.example/",
            "https://registry.example:444/",
            "https://registry.example.evil.test/",
            "https://registry.example@evil.test/",
            "https://evil.test/registry.example",
        ],
    )
    def test_anything_else_is_another_origin(self, other: str) -> None:
        assert Origin.from_url(other) != PUBLIC

    @pytest.mark.parametrize(
        "url", ["", "/v2/", "ftp://host/", "file:///etc/passwd", "https://", "https:///x", "http://h:x/", "http://[::1"]
    )
    def test_a_url_without_a_host_is_refused(self, url: str) -> None:
        with pytest.raises(PermanentNetworkError, match="not an http or https URL"):
            Origin.from_url(url)


class TestLoopback:
    @pytest.mark.parametrize("host", ["localhost", "app.localhost", "127.0.0.1", "127.5.5.5", "::1"])
    def test_loopback_names_are_recognized(self, host: str) -> None:
        assert is_loopback(host)

    @pytest.mark.parametrize("host", ["", "localhost.example", "notlocalhost", "10.0.0.1", "0.0.0.0", "::2"])  # noqa: S104
    def test_other_names_are_not_loopback(self, host: str) -> None:
        assert not is_loopback(host)


class TestResolved:
    BASE = "https://registry.example/v2/app/blobs/uploads/?x=1"

    @pytest.mark.parametrize(
        ("location", "expected"),
        [
            (
                "/v2/app/blobs/uploads/1?_state=a%3Db%7E",
                "https://registry.example/v2/app/blobs/uploads/1?_state=a%3Db%7E",
            ),
            ("1?_state=a%3D", "https://registry.example/v2/app/blobs/uploads/1?_state=a%3D"),
            ("?_state=x", "https://registry.example/v2/app/blobs/uploads/?_state=x"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("https://cdn.example/a%2Fb?sig=%2B+/=~", "https://cdn.example/a%2Fb?sig=%2B+/=~"),
            ("", "https://registry.example/v2/app/blobs/uploads/?x=1"),
        ],
    )
    def test_a_location_is_resolved_and_otherwise_unchanged(self, location: str, expected: str) -> None:
        assert resolve_url(self.BASE, location) == expected

    @pytest.mark.parametrize(
        ("location", "expected"),
        [("/a b", "/a%20b"), ("/\xe9", "/%E9"), ("/\xc3\xa9?n=\xa0", "/%C3%A9?n=%A0"), ("/\x7f", "/%7F")],
    )
    def test_characters_that_cannot_be_sent_are_encoded(self, location: str, expected: str) -> None:
        assert resolve_url(self.BASE, location) == f"https://registry.example{expected}"

    @pytest.mark.parametrize("location", ["http://[::1/x?sig=secret", "https://[v]/secret", "/\u2603"])
    def test_a_malformed_location_is_refused_and_not_shown(self, location: str) -> None:
        with pytest.raises(PermanentNetworkError, match="points to") as caught:
            resolve_url(self.BASE, location)
        assert "secret" not in caught.value.message


class TestRedacted:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("https://user:password@h:5000/v2/x?sig=secret#part", "https://h:5000/v2/x?..."),
            ("https://h/v2/", "https://h/v2/"),
            ("http://a@b@h/", "http://h/"),
            ("http://h/\x1b[31m\n", "http://h/?[31m"),
            ("http://[::1/?sig=secret", "(a malformed URL)"),
        ],
    )
    def test_user_password_query_and_control_characters_are_not_shown(self, url: str, expected: str) -> None:
        assert redact_url(url) == expected

    def test_a_long_url_is_shortened(self) -> None:
        assert len(redact_url("https://h/" + "x" * 5000)) < 500


class TestProxies:
    @pytest.mark.parametrize(
        ("url", "no_proxy"),
        [
            ("https://registry.example/v2/", "registry.example"),
            ("https://registry.example/v2/", "other, registry.example"),
            ("https://registry.example/v2/", "other registry.example"),
            ("https://a.registry.example/", "registry.example"),
            ("https://a.registry.example/", ".registry.example"),
            ("https://registry.example/", "REGISTRY.example:443"),
            ("https://registry.example:5000/", "registry.example:5000"),
            ("https://anything.example/", "*"),
            ("https://10.1.2.3/", "10.0.0.0/8"),
            ("https://10.1.2.3/", "10.1.2.3"),
            ("https://10.1.2.3:5000/", "10.1.2.3:5000"),
            ("https://[2001:db8::1]/", "2001:db8::/32"),
            ("https://[2001:db8::1]:5000/", "[2001:db8::1]:5000"),
            ("http://localhost:5000/", ""),
            ("http://127.0.0.1:5000/", ""),
            ("http://[::1]:5000/", ""),
        ],
    )
    def test_these_requests_bypass_the_proxy(self, url: str, no_proxy: str) -> None:
        assert is_proxy_bypassed(url, no_proxy)

    @pytest.mark.parametrize(
        ("url", "no_proxy"),
        [
            ("https://registry.example/", ""),
            ("https://registry.example/", " , ,"),
            ("https://registry.example/", "example.registry"),
            ("https://notregistry.example/", "registry.example"),
            ("https://registry.example/", "registry.example:5000"),
            ("https://registry.example/", "10.0.0.0/8"),
            ("https://10.1.2.3/", "11.0.0.0/8"),
            ("https://10.1.2.3/", "10.1.2.3:5000"),
            ("https://10.1.2.3/", "2001:db8::/32"),
            ("https://registry.example/", "a:b:c"),
            ("https://registry.example/", "::1"),
        ],
    )
    def test_these_requests_use_the_proxy(self, url: str, no_proxy: str) -> None:
        assert not is_proxy_bypassed(url, no_proxy)

    def test_the_environment_is_neither_read_nor_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("no_proxy", "registry.example")
        assert not is_proxy_bypassed("https://registry.example/", "other.example")
        monkeypatch.delenv("no_proxy")
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                for _ in range(200):
                    is_proxy_bypassed("https://registry.example/", "other.example")
            except BaseException as error:  # noqa: BLE001 - asserted below
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://h", "/"),
        ("http://h/", "/"),
        ("https://h:1/a//b?c=%7e&d=/#e?f", "/a//b?c=%7e&d=/"),
        ("http://user:word@h?a/b", "/?a/b"),
        ("http://[::1]:5000/v2/#", "/v2/"),
    ],
)
def test_the_target_of_a_request_is_the_unchanged_path_and_query(url: str, target: str) -> None:
    assert request_target(url) == target
