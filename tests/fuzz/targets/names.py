"""Names, sizes, headers, command lines and have lists. Invalid UTF-8 in the input is kept as surrogates."""

from __future__ import annotations

import contextlib
import importlib
import io
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from ocistream.auth.docker_config import normalize_host
from ocistream.cli import COMMANDS
from ocistream.cli.console import Console
from ocistream.errors import OcistreamError, UnsupportedError, UsageError
from ocistream.http.origins import (
    Origin,
    check_target,
    is_internal,
    is_loopback,
    is_proxy_bypassed,
    redact_url,
    resolve_url,
)
from ocistream.http.retry import parse_retry_after
from ocistream.layout.index import docker_tag, tag_of
from ocistream.locations import parse_location
from ocistream.oci.descriptor import is_media_type, parse_platform
from ocistream.oci.reference import (
    Reference,
    is_digest,
    parse_digest,
    parse_full_name,
    parse_reference,
    parse_registry,
    printable,
)
from ocistream.registry.configuration import parse_registry_location
from ocistream.registry.upload_strategy import parse_upload_method
from ocistream.remote.have_lists import HaveListReader, format_have_list
from ocistream.sizes import parse_size
from tests.fuzz.engine import Check, Target

_HEX: Final = b"0" * 64
_NAMES: Final = (
    b"nginx", b"docker.io/library/nginx:1@sha256:" + _HEX, b"localhost:5000/a/b_c-d.e__f:tag", b"[::1]:5000/x",
    "b\u00fccher.example/app:1".encode(), b"docker://127.0.0.1:5000/x@sha512:" + _HEX * 2, b"oci:dir:name",
    b"oci-archive:/x/y.tar:example.com/app:1", b"docker-archive:-", b"./x.tar", b"-", b"~/x", b"C:\\x",
    b"index.docker.io/a", b"https://example.com/v1/", b"linux/arm64/v8", b"windows(10.0.17763)/amd64",
    b"chunk=4MiB", b"1.5M", b"500k", b"10 GB", b"sha256-" + _HEX + b".sig",
    b"application/vnd.oci.image.manifest.v1+json", "\u0430pple.example/x".encode(),
)  # fmt: skip
_TOKENS: Final = (
    b"..", b"/", b"//", b":", b"@", b"sha256:", b"[", b"]", b"%25", b"xn--", b".", b"localhost", b"docker.io/",
    b":65536", b":0", b"A", b"_", b"__", b"-", b"=", b"(", "\u3002".encode(), "\uff0e".encode(), "\u0660".encode(),
    b"MiB",
)  # fmt: skip


@contextlib.contextmanager
def _names(_: Path) -> Iterator[Check]:
    """Read a text as each kind of name; a valid name is the same after writing and reading it again."""

    def check(data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        assert len(printable(text)) <= 201
        assert printable(text).isprintable()
        parse_size(text)
        parse_size(text, fractions=True)
        is_media_type(text)
        parse_full_name(text)
        tag_of(text)
        docker_tag(text)
        first: OcistreamError | None = None
        for read in (_reference, _digest, _host, _location, parse_platform, parse_location, parse_upload_method):
            try:
                read(text)
            except (UnsupportedError, UsageError) as error:
                first = first or error
        if first is not None:
            raise first

    yield check


def _reference(text: str) -> None:
    for default_tag in (True, False):
        found = parse_reference(text, default_tag=default_tag)
        _check_path(found)
        assert parse_reference(str(found), default_tag=default_tag) == found, "the written name is another one"
        shown = found.familiar + (f"@{found.digest}" if found.digest else "")
        assert parse_reference(shown, default_tag=default_tag) == found, "the shown name is another one"


def _check_path(found: Reference) -> None:
    url = f"https://{found.registry}/v2/{found.repository}/manifests/{found.target}"
    parts = urlsplit(url)
    assert parts.path == f"/v2/{found.repository}/manifests/{found.target}", "a name changes the path of the URL"
    assert posixpath.normpath(parts.path) == parts.path, "a name has .. in the path of the URL"
    assert parts.netloc == found.registry, "a name changes the host of the URL"
    assert url.isascii()
    assert url.isprintable()
    assert " " not in url


def _digest(text: str) -> None:
    assert str(parse_digest(text)) == text
    assert is_digest(text)
    assert "/" not in text


def _host(text: str) -> None:
    registry = parse_registry(text)
    assert parse_registry(registry) == registry, "the written registry is another one"
    assert "/" not in registry
    assert normalize_host(registry) == normalize_host(registry.upper()) == normalize_host(normalize_host(registry))


def _location(text: str) -> None:
    location = parse_registry_location(text)
    assert parse_registry_location(location) == location, "the written location is another one"
    assert ".." not in location.split("/")


# -- headers ------------------------------------------------------------------------------------------------

_HEADERS: Final = (
    b"/v2/app/blobs/uploads/0?_state=a%2Fb", b"https://example.com:443/x?y=z#w", b"http://127.0.0.1:5000/",
    b"http://user:secret@[::1]:80/a?signature=hidden", b"//host/path", b"?n=1", b"120",
    b"Wed, 21 Oct 2015 07:28:00 GMT", b"Wed, 21 Oct 2015 07:28:00", b"Sun, 06 Nov 1994 08:49:37 +9999",
    b"10.0.0.0/8,.example.com:443,[::1],*", b"http://169.254.169.254/latest", b"http://[::ffff:127.0.0.1]/",
)  # fmt: skip
_HEADER_TOKENS: Final = (
    b"http://", b"https://", b"//", b"\\", b"@", b":", b"?", b"#", b"%", b"[", b"]", b"127.0.0.1", b"localhost",
    b":99999", b"GMT", b"-0000", b"+2400", b"9999", b"Feb 30", b",", b"../", b"\r\nX: y", "\u2100".encode("utf-8"),
    b"[v1.x]",
)  # fmt: skip


def _is_external(origin: Origin) -> bool:
    return not is_internal(origin.host)


@contextlib.contextmanager
def _headers(_: Path) -> Iterator[Check]:
    """Read a header's value, as http.client returns it, as a Location, a realm, a Retry-After and a NO_PROXY."""
    base = "https://registry.example/v2/app/blobs/uploads/"

    def check(data: bytes) -> None:
        text = data.decode("latin-1")
        seconds = parse_retry_after(text)
        assert seconds is None or seconds >= 0
        assert redact_url(text).isprintable()
        assert "hunter2" not in redact_url(f"https://user:hunter2@{text}"), "the redacted URL has a password"
        is_loopback(text)
        is_proxy_bypassed(base, text)
        url = resolve_url(base, text)
        assert url.isascii()
        assert url.isprintable(), "a URL with control characters"
        for home in (Origin.from_url(base), Origin("http", "127.0.0.1", 5000)):
            check_target(home, url, refuses_internal=_is_external(home))
            assert home.scheme == "http" or url.lower().startswith("https://"), "a change from https to http"
        is_proxy_bypassed(url, "10.0.0.0/8, .example")
        check_target(Origin.from_url(base), text, refuses_internal=False)

    yield check


# -- the command line ---------------------------------------------------------------------------------------

_LINES: Final = (
    b"pull\nnginx:1\n-o\nx.tar\n--platform\nlinux/arm64\n--compress\nzstd:3\n--progress\njson",
    b"push\n-i\nx.tar\n--to\nlocalhost:5000/a\n--upload\nchunk=4MiB\n--mount-from\na/b\n--limit-rate\n1.5M",
    b"copy\noci:x\ndocker://127.0.0.1:5000/x:1\n--jobs\n3\n--all-tags\n--tags\n1.*\n--connect-timeout\n2.5",
    b"verify\nx.tar\n--deep\n--max-ratio\n200",
    b"inspect\noci:x\n--log-format\njson\n-vv",
    b"serve\nx\n--listen\n127.0.0.1:0\n--read-only",
    b"login\nlocalhost:5000\n-u\nme\n--password-stdin\n--max-requests-per-second\n0.5",
)  # fmt: skip
_LINE_TOKENS: Final = (
    b"\n--", b"\n-", b"=", b"\n--help", b"\nnan", b"\ninf", b"\n-1", b"\n1e400", b"\n0", b"\n\n", b"\n--result\n-",
    b"\n-o",
)  # fmt: skip


@contextlib.contextmanager
def _lines(_: Path) -> Iterator[Check]:
    """Parse a command line with one argument on each line, without running the command."""

    def check(data: bytes) -> None:
        # An argument of a program cannot have a NUL.
        name, *arguments = data.replace(b"\0", b"").decode(errors="surrogateescape").split("\n")
        Console.from_arguments(arguments)
        if name not in COMMANDS:
            return
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        # click's own errors also have exit code 2; --help prints and exits with 0.
        with contextlib.suppress(click.ClickException, click.exceptions.Exit), contextlib.redirect_stdout(None):
            command.make_context(name, arguments)

    yield check


def _seeds(*lists: Sequence[bytes]) -> Sequence[bytes]:
    return [item for one in lists for item in one]


# -- have lists ---------------------------------------------------------------------------------------------

_LISTS: Final = (
    b"# ocistream have 1\n# origin registry.local/app\n# by ocistream 0.5.0\n# digests 2\nsha256:" + _HEX
    + b"\nsha512:" + _HEX * 2 + b"\n",
    b"# ocistream have 1\n# digests 0\n", b"\xef\xbb\xbfsha256:" + _HEX + b"\r\n\r\n# by hand\r\n", b"",
    b"\x1f\x8b\x08\x00", b"\xff\xfe#\x00",
)  # fmt: skip
_LIST_TOKENS: Final = (
    b"# ocistream have 2\n", b"# digests 999999999\n", b"# digests 1\n", b"# origin \x1b[2J\n", b"\n", b"\r", b"#",
    b"sha256:" + _HEX, b"sha256:" + b"F" * 64, b"\0",
)  # fmt: skip


@contextlib.contextmanager
def _lists(_: Path) -> Iterator[Check]:
    """Read a list of digests; its digests are the same after writing and reading them again."""

    def check(data: bytes) -> None:
        read = HaveListReader(io.BytesIO(data), "the list")
        digests = set(read)
        assert len(digests) <= read.total
        again = "".join(format_have_list(list(read.origins), digests, version="0")).encode()
        found = HaveListReader(io.BytesIO(again), "the list")
        assert found.find(digests) == digests, "the written list is another one"
        assert found.total == len(digests)
        assert all(origin.isprintable() for origin in found.origins)

    yield check


TARGETS: Final = (
    Target("names", _names, lambda: _seeds(_NAMES), frozenset({2, 8}), tokens=_TOKENS, share=12000),
    Target("headers", _headers, lambda: _seeds(_HEADERS), frozenset({7}), tokens=_HEADER_TOKENS, share=12000),
    Target("have-lists", _lists, lambda: _seeds(_LISTS), frozenset({6, 8}), tokens=_LIST_TOKENS, share=4000),
    Target("command-lines", _lines, lambda: _seeds(_LINES), frozenset({2, 8}), tokens=_LINE_TOKENS, share=1500),
)
