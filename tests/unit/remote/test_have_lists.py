"""Have lists: written, read as a stream, and refused if they are malformed or truncated."""

from __future__ import annotations

import gzip
import io
import tracemalloc
from collections.abc import Collection, Iterator

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, OcistreamError, TruncatedError, UnsupportedError
from ocistream.remote.have_lists import HaveListReader, format_have_list
from tests.images import digest_of

A, B, C = (digest_of(name) for name in (b"a", b"b", b"c"))
LONG = digest_of(b"d", "sha512")
HEAD = b"# ocistream have 1\n# origin registry.local/app\n# by ocistream 0.5.0\n"


def written(digests: Collection[str], *origins: str) -> bytes:
    return "".join(format_have_list(origins or ("registry.local/app",), digests, version="0.5.0")).encode()


def read(text: bytes, *wanted: str) -> tuple[set[str], list[str], list[str], int]:
    """Return the wanted digests that a list has, its origins, its writers, and the number of its digests."""
    listed = HaveListReader(io.BytesIO(text), "have.txt")
    return listed.find({*wanted}), [*listed.origins], [*listed.writers], listed.total


def refused(text: bytes, *words: str, error: type[OcistreamError] = ArchiveError) -> None:
    with pytest.raises(error) as found:
        read(text, A)
    assert type(found.value) is error
    for word in ("have.txt", *words):
        assert word in found.value.message, found.value.message
    assert found.value.message.isprintable()
    assert found.value.hint


def test_a_list_is_a_header_and_its_digests_in_order() -> None:
    assert written({C, A, B}) == HEAD + b"# digests 3\n" + "".join(f"{d}\n" for d in sorted((A, B, C))).encode()


def test_the_error_says_how_much_is_missing() -> None:
    there = [digest_of(bytes([n])) for n in range(30)]
    cut = b"".join(written(there).splitlines(keepends=True)[: 4 + 17])
    refused(cut, "is truncated: 17 of 30 digests", error=TruncatedError)
    # In the middle of a line too.
    for begun in (b"s", b"sha2", b"sha256:", b"sha256:0123456789abcdef", b"sha512:" + b"0" * 127):
        refused(cut + begun, "is truncated: 17 of 30 digests", error=TruncatedError)
    refused(cut + b"sha256:" + b"0" * 63 + b"\n", "line 22")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n\r\n",
        b"# what is this?\n",
    ],
)
def test_output_without_digests_is_not_a_list(text: bytes) -> None:
    refused(text, "no digest", error=TruncatedError)


@pytest.mark.parametrize(
    "text",
    [
        f"{A}\n{B}\n",
        f"{A}\r\n\r\n  {B}",
        f"\ufeff{A}\n{B}",
        f"# made with jq\n#\n\n{B}\n{A}\n{A}\n",
        f"# ocistream have 1\n# by the way\n# digests 2\n# sizes later\n{B}\n{A}\n{LONG}\n",
    ],
    ids=["bare", "crlf", "byte order mark", "comments, twice", "later headers, appended"],
)
def test_handmade_lists_are_accepted(text: str) -> None:
    assert read(text.encode(), A, B)[0] == {A, B}


def test_concatenated_lists_are_accepted() -> None:
    joined = written({A, B}) + f"{C}\n".encode() + written({A}, "oci:there")
    assert read(joined, A, C) == ({A, C}, ["registry.local/app", "oci:there"], ["0.5.0"], 4)
    refused(written({A, B})[: -len(A) - 1] + written({C}), "is truncated: 2 of 3 digests", error=TruncatedError)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (A.upper(), "SHA256:"),
        (f"sha256:{A[7:].upper()}", "is not a digest"),
        (A[:-1], A[:-1]),
        (f"{A} {B}", "is not a digest"),
        (A[7:], "is not a digest"),
        ("md5:" + "0" * 32, "md5:"),
        ("\x1b[2J", "?[2J"),
        ("# digests many", "is not a number of digests"),
        ("# digests -1", "is not a number of digests"),
        ("# digests 9999999999", "is not a number of digests"),
    ],
)
def test_a_line_that_is_not_a_digest_is_named(line: str, words: str) -> None:
    refused(f"{A}\n{line}\n".encode(), "line 2:", words)


@pytest.mark.parametrize("version", ["2", "1.1", "x", "10"])
def test_a_later_format_is_not_supported(version: str) -> None:
    refused(f"# ocistream have {version}\n{A}\n".encode(), version, error=UnsupportedError)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (gzip.compress(written({A})), "gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(8), "zstd"),
        (written({A}).decode().encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + written({A}).decode().encode("utf-16-be"), "UTF-16"),
        (b"oci-layout" + bytes(502), "line 1"),
        (bytes(limits.MAX_HAVE_LINE + 1), "line 1"),
    ],
    ids=["gzip", "zstd", "utf-16", "utf-16, big-endian", "a tar", "zeros"],
)
def test_binary_data_is_not_a_list(text: bytes, word: str) -> None:
    refused(text, word)


@pytest.mark.uncounted
def test_memory_does_not_grow_with_the_list() -> None:
    def many(count: int) -> Iterator[bytes]:
        for number in range(count):
            yield f"# origin {number}\nsha256:{number:064x}\n".encode().splitlines()[number % 2] + b"\n"

    peaks = []
    for count in (1_000, 50_000):
        file = io.BytesIO(b"".join(many(count)))
        tracemalloc.start()
        listed = HaveListReader(file, "have.txt")
        listed.find({A})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(listed.origins) <= limits.MAX_HAVE_HEADERS
    assert peaks[1] < peaks[0] + 64 * limits.KIB


def partial(text: bytes) -> dict[str, int]:
    listed = HaveListReader(io.BytesIO(text), "have.txt")
    list(listed)
    return listed.partial_blobs


def test_partial_blobs_are_comments_that_older_readers_skip() -> None:
    text = "".join(format_have_list(["app"], {A}, version="0.5.0", partial_blobs={C: 12, B: 1 << 40})).encode()
    first, second = sorted([f"# partial {B} {1 << 40}", f"# partial {C} 12"])
    assert f"{first}\n{second}\n# digests 1\n" in text.decode()
    assert partial(text) == {B: 1 << 40, C: 12}
    assert read(text, A, B) == ({A}, ["app"], ["0.5.0"], 1)


@pytest.mark.parametrize(
    "line", ["", "x", A, f"{A} ", f"{A} 0", f"{A} 01", f"{A} -1", f"{A} 1 2", f"{A} {10**18}", "sha256:1 5", f"{A} ٣"]
)
def test_malformed_lines_of_partial_blobs_are_skipped(line: str) -> None:
    assert partial(HEAD + f"# partial {line}\n# partial {B} 7\n# digests 0\n".encode()) == {B: 7}


def test_the_number_of_partial_blobs_is_limited() -> None:
    many = {digest_of(f"{n}".encode()): n + 1 for n in range(limits.MAX_RESUMABLE_BLOBS + 1)}
    assert (
        len(partial("".join(format_have_list(["app"], (), version="1", partial_blobs=many)).encode()))
        == limits.MAX_RESUMABLE_BLOBS
    )
    text = HEAD + "".join(f"# partial {digest} {n}\n" for digest, n in many.items()).encode() + b"# digests 0\n"
    assert len(partial(text)) == limits.MAX_RESUMABLE_BLOBS
