"""Parsing of locations."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocistream.errors import InvalidNameError, UnsupportedError
from ocistream.locations import Location, parse_location
from ocistream.oci.reference import parse_reference


class TestParsing:
    @pytest.mark.parametrize(
        "text",
        [
            "nginx",
            "org/app:1",
            "docker://r.example/a:1",
            "localhost:5000/a",
            "r.example/a@sha256:" + "0" * 64,
            "docker:1",
        ],
    )
    def test_a_name_is_an_image_in_a_registry(self, text: str) -> None:
        whole = text in {"nginx", "localhost:5000/a"}
        assert parse_location(text) == Location("docker", text, reference=parse_reference(text), is_repository=whole)

    @pytest.mark.parametrize(
        ("text", "kind", "path", "name"),
        [
            ("oci:dir", "oci", "dir", None),
            ("oci:dir/a:v1", "oci", "dir/a", "v1"),
            ("oci:dir:", "oci", "dir", None),
            ("oci:dir:r.example/app:v1", "oci", "dir", "r.example/app:v1"),
            ("oci-archive:a.tar", "oci-archive", "a.tar", None),
            ("oci-archive:/a.tar:v1", "oci-archive", "/a.tar", "v1"),
            ("docker-archive:a.tar:app:v1", "docker-archive", "a.tar", "app:v1"),
        ],
    )
    def test_the_prefix_is_the_transport(self, text: str, kind: str, path: str, name: str | None) -> None:
        assert parse_location(text) == Location(kind, text, path=Path(path), name=name)

    @pytest.mark.parametrize("text", [".", "..", "./a", "../a:v1", "/a", "/", "C:\\a"])
    def test_a_text_that_looks_like_a_path_is_a_path(self, text: str) -> None:
        assert parse_location(text) == Location("path", text, path=Path(text))

    def test_the_home_directory_is_expanded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/somebody")
        assert parse_location("~").path == Path("/home/somebody")
        assert parse_location("~/a").path == Path("/home/somebody/a")
        assert parse_location("oci:~/a:v1").path == Path("/home/somebody/a")

    def test_a_home_directory_of_an_unknown_user_is_malformed(self) -> None:
        with pytest.raises(InvalidNameError, match="home directory") as caught:
            parse_location("oci:~nobody-is-called-that/a")
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        ("text", "is_stream"),
        [("-", True), ("oci-archive:-", True), ("oci-archive:-:v1", True), ("oci:-", False), ("./-", False)],
    )
    def test_a_dash_is_a_stream_for_archives(self, text: str, is_stream: bool) -> None:
        assert parse_location(text).is_stream is is_stream

    @pytest.mark.parametrize("text", ["a", "a.tar", "r.example/app:v1"])
    def test_a_bare_word_can_be_a_path(self, text: str) -> None:
        assert parse_location(text, bare_is_path=True) == Location("path", text, path=Path(text))

    @pytest.mark.parametrize("text", ["", "oci:", "oci-archive::v1", "NGINX", "https://r.example/a", "a b", "~user/a"])
    def test_anything_else_is_malformed(self, text: str) -> None:
        with pytest.raises(InvalidNameError, match="malformed"):
            parse_location(text)

    @pytest.mark.parametrize("text", ["docker-daemon:app:v1", "containers-storage:app", "sif:a.sif", "ostree:app"])
    def test_a_transport_of_other_tools_is_not_supported(self, text: str) -> None:
        with pytest.raises(UnsupportedError, match="not supported") as caught:
            parse_location(text)
        assert caught.value.exit_code == 8
