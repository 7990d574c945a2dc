"""Archives that are valid except for entries that must be skipped, or that are just within a limit."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from ocistream import limits
from tests.archives import blob_name
from tests.hostile.archive_parts import (
    LAYER,
    LAYERS,
    PLAIN,
    SOUND_CONFIG,
    beside,
    digest_of,
    entry,
    flipped,
    image,
    json_of,
    nested,
    pax,
    record,
    tar,
)
from tests.limits.rules import limit

Run = Callable[[Sequence[object]], int]
#: Names that are not allowed in image archives: an extraction would write outside its directory.
_OUT: Final = ["../escaped", "/tmp/escaped", "blobs/../../escaped", "blobs/sha256/../../../escaped", "./../escaped"]


def moved(ocistream: Run, archive: bytes) -> int:
    """Copy an archive into a layout and into another archive, and check that nothing else is written."""
    folder = Path("in")
    folder.mkdir()
    (folder / "app.tar").write_bytes(archive)
    Path("out").mkdir()
    codes = {ocistream(["copy", "./in/app.tar", end]) for end in ("oci:out/layout", "./out/app.tar")}
    (code,) = codes
    assert {path.name for path in Path("out").iterdir()} <= {"layout", "app.tar"}
    assert {path.name for path in Path().iterdir()} == {"in", "out"}
    assert not Path("/tmp/escaped").exists()
    assert {path.name for path in Path("..").resolve().iterdir()} == {"here"}
    return code


@limit(2)
@pytest.mark.parametrize("name", _OUT)
def test_a_name_that_leads_out_is_skipped_and_reported_by_verify(
    ocistream: Run, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    archive = beside(pax(("path", name)) + entry("x", b"escaped"), ("notes.txt", b"of nobody's"))
    assert moved(ocistream, archive) == 0
    capsys.readouterr()
    assert ocistream(["verify", "./in/app.tar"]) == 6
    assert "a name that is not allowed in image archives" in capsys.readouterr().err


@limit(3)
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_layer_of_a_docker_archive_may_be_one_link_to_a_file_in_it(ocistream: Run, kind: bytes) -> None:
    listed = json_of([{"Config": "config.json", "RepoTags": ["app:1"], "Layers": ["a/layer.tar", "two"]}])
    target = "../one" if kind == tarfile.SYMTYPE else "one"
    archive = tar(
        ("one", PLAIN[0]), ("two", PLAIN[1]), entry("a/layer.tar", b"", kind, target=target),
        ("config.json", SOUND_CONFIG), ("manifest.json", listed),
    )  # fmt: skip
    assert moved(ocistream, archive) == 0


@limit(3)
def test_an_unrelated_link_is_ignored(ocistream: Run) -> None:
    assert moved(ocistream, beside(entry("x", b"", tarfile.SYMTYPE, target="/etc/passwd"))) == 0


@limit(4)
def test_headers_of_the_maximum_size_are_read(ocistream: Run) -> None:
    comment = record("comment", "x" * (limits.MAX_PAX_HEADER - 17))
    header = entry("pax", comment, tarfile.XHDTYPE)
    assert len(comment) == limits.MAX_PAX_HEADER
    long = entry("././@LongLink", b"x" * (limits.MAX_LONG_NAME - 1) + b"\0", tarfile.GNUTYPE_LONGNAME)
    many = pax(("comment", "x")) * limits.MAX_EXTENSION_HEADERS
    assert moved(ocistream, beside(header, long, entry("x", b""), many, entry("y", b""))) == 0


@limit(4)
def test_one_header_too_many_before_an_entry_is_refused(ocistream: Run) -> None:
    assert moved(ocistream, beside(pax(("comment", "x")) * (limits.MAX_EXTENSION_HEADERS + 1), entry("y", b""))) == 6


@limit(5)
def test_a_repeated_digest_is_stored_once(ocistream: Run) -> None:
    assert moved(ocistream, beside((image()[LAYER][0], LAYERS[0]))) == 0
    with tarfile.open("out/app.tar") as copied:
        names = copied.getnames()
    assert names.count(blob_name(digest_of(LAYERS[0]))) == 1


@limit(5)
def test_a_repeated_blob_is_checked_even_if_no_image_needs_it(ocistream: Run) -> None:
    extra = b"that no image needs"
    name = blob_name(digest_of(extra))
    assert moved(ocistream, beside((name, extra), (name, flipped(extra, 0)))) == 5


@limit(6)
def test_indexes_of_the_maximum_depth_are_accepted(ocistream: Run) -> None:
    assert moved(ocistream, tar(*nested(limits.MAX_INDEX_DEPTH))) == 0


@limit(6)
def test_indexes_beyond_the_maximum_depth_are_refused(ocistream: Run) -> None:
    assert moved(ocistream, tar(*nested(limits.MAX_INDEX_DEPTH + 1))) == 6


@limit(9)
def test_a_name_from_the_command_line_is_printed_as_one_line_too(
    ocistream: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ocistream(["verify", "./no\x1b[2J\nocistream: all is well\x9b31m.tar"]) == 4
    line, hint = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert hint.isprintable()
