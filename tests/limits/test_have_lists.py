"""Lists of digests from another machine, and archives that have only the rest of a blob."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from ocistream import limits
from tests.archives import small_first, tar_of
from tests.images import Layout, digest_of
from tests.limits.rules import limit

Run = Callable[[Sequence[object]], int]

MIB: Final = 1 << 20
A, B = digest_of(b"a"), digest_of(b"b")
LIST: Final = f"# ocistream have 1\n# have registry.example/app\n# by 1.0\n# digests 2\n{A}\n{B}\n".encode()
#: The annotation of index.json that lists the blobs of which an archive has only the rest.
PARTIAL_BLOBS: Final = "vnd.ocistream.partial-blobs"


def read_list(ocistream: Run, content: bytes) -> int:
    """Have the command read a list of digests, and return the exit code."""
    for name, text in (("oci-layout", '{"imageLayoutVersion": "1.0.0"}'), ("index.json", '{"schemaVersion": 2}')):
        Path("layout").mkdir(exist_ok=True)
        Path("layout", name).write_text(text)
    Path("list").write_bytes(content)
    return ocistream(["have", "oci:layout", "--among", "list"])


@limit(19)
@pytest.mark.parametrize("line", ["sha256:abc", "md5:" + "0" * 32, A.upper(), f"{A} {B}", "../x", "\x1b[2J"])
def test_a_line_that_is_not_a_digest_is_named(ocistream: Run, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert read_list(ocistream, f"{A}\n{line}\n{B}\n".encode()) == 6
    err = capsys.readouterr().err
    assert "line 2" in err
    assert err.replace("\n", "").isprintable()


@limit(19)
def test_the_rest_of_a_long_line_is_not_a_digest(ocistream: Run, capsys: pytest.CaptureFixture[str]) -> None:
    comment = b"# " + b"x" * (limits.MAX_HAVE_LINE - 1)
    assert read_list(ocistream, comment + f"{A}\n{LIST.decode()}".encode()) == 6
    assert f"line 1: it has more than {limits.MAX_HAVE_LINE} bytes" in " ".join(capsys.readouterr().err.split())


@limit(19)
def test_a_line_without_an_end_is_not_buffered(ocistream: Run) -> None:
    read_list(ocistream, LIST)
    content = b"x" * (32 * MIB)
    tracemalloc.start()
    try:
        assert read_list(ocistream, content) == 6
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


@limit(19)
def test_a_list_with_too_many_lines_is_refused(
    ocistream: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "MAX_HAVE_LINES", 10)
    assert read_list(ocistream, b"# a comment\n" * 8 + f"{A}\n{B}\n".encode()) == 0
    assert read_list(ocistream, b"# a comment\n" * 9 + f"{A}\n{B}\n".encode()) == 8
    assert "more than 10 lines" in capsys.readouterr().err


class Rest:
    """An archive of an image whose layer begins at byte `start`, as `copy --via` sends it, and the complete layer."""

    start: Final = MIB // 2

    def __init__(self, layout: Layout) -> None:
        layer, _ = layout.random_layer(MIB, seed=1)
        layout.image([layer], name="v1")
        self.digest = str(layer["digest"])
        self.content = layout.file(self.digest).read_bytes()
        self.items = small_first(layout)
        self.index = json.loads((layout.path / "index.json").read_bytes())

    def archive(self, text: str | None = None, rest: bytes | None = None) -> bytes:
        """Return the archive with this annotation (None: the correct one), and with this rest of the layer."""
        note = {PARTIAL_BLOBS: f"{self.digest} {self.start}" if text is None else text}
        index = json.dumps({**self.index, "annotations": note}).encode()
        layer = self.digest[7:]
        items = [item for item in self.items if item[0] != "index.json" and not item[0].endswith(layer)]
        part = self.content[self.start :] if rest is None else rest
        return tar_of([("index.json", index), *items, (f"parts/sha256/{layer}/{self.start}", part)])

    def of_config(self, layout: Layout) -> bytes:
        """Return an archive that has the complete layer, but only the rest of the config."""
        config = str(layout.read(self.index["manifests"][0]["digest"])["config"]["digest"])
        index = json.dumps({**self.index, "annotations": {PARTIAL_BLOBS: f"{config} 1"}}).encode()
        items = [item for item in self.items if item[0] != "index.json" and not item[0].endswith(config[7:])]
        part = (f"parts/sha256/{config[7:]}/1", layout.file(config).read_bytes()[1:])
        return tar_of([("index.json", index), *items, part])

    def copy(self, ocistream: Run, archive: bytes, beginning: bytes, destination: str = "oci:there") -> int:
        """Copy the archive; the layout `there` has the beginning of the layer."""
        path = Path("there/blobs/sha256") / f".{self.digest[7:]}.partial"
        path.parent.mkdir(parents=True)
        path.write_bytes(beginning)
        Path("stdin").write_bytes(archive)
        with Path("stdin").open() as stdin, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", stdin)
            return ocistream(["copy", "-", destination])

    def is_complete(self) -> bool:
        """Return whether the layout has the layer or an index."""
        return Path("there/blobs/sha256", self.digest[7:]).exists() or Path("there/index.json").exists()


@pytest.fixture
def rest(layout: Layout) -> Rest:
    return Rest(layout)


@limit(22)
@pytest.mark.parametrize("more", [0, MIB // 4, MIB // 2, MIB])
def test_the_rest_of_a_blob_is_appended_to_its_beginning(ocistream: Run, rest: Rest, more: int) -> None:
    beginning = (rest.content + b"x" * MIB)[: rest.start + more]
    assert rest.copy(ocistream, rest.archive(), beginning) == 0
    assert Path("there/blobs/sha256", rest.digest[7:]).read_bytes() == rest.content


@limit(22)
def test_a_rest_for_a_destination_that_cannot_resume_is_refused(
    ocistream: Run, capsys: pytest.CaptureFixture[str], rest: Rest
) -> None:
    assert rest.copy(ocistream, rest.archive(), b"", "oci-archive:x.tar") == 8
    assert "has only a part of this blob" in capsys.readouterr().err
    assert not Path("x.tar").exists()


@limit(22)
def test_the_rest_of_a_config_is_refused(
    ocistream: Run, capsys: pytest.CaptureFixture[str], rest: Rest, layout: Layout
) -> None:
    assert rest.copy(ocistream, rest.of_config(layout), b"") == 8
    assert "the complete blob is needed" in capsys.readouterr().err
    assert not Path("there/index.json").exists()


@limit(22)
@pytest.mark.parametrize(
    "text",
    [
        *("x", A, f"{A} 0", f"{A} 01", f"{A} x", f"{A} 1\n", f"{A} 1\n{A} 2", f"{A}  1", f"{A} 1 2"),
        "\n".join(f"sha256:{number:064x} 1" for number in range(limits.MAX_RESUMABLE_BLOBS + 1)),
    ],
    ids=range(10),
)
def test_a_malformed_annotation_about_rests_is_refused(
    ocistream: Run, capsys: pytest.CaptureFixture[str], rest: Rest, text: str
) -> None:
    assert rest.copy(ocistream, rest.archive(text), rest.content[: rest.start]) == 6
    assert PARTIAL_BLOBS in capsys.readouterr().err
    assert not rest.is_complete()


@limit(22)
@pytest.mark.parametrize("size", [0, MIB // 4, MIB])
def test_a_rest_that_does_not_end_where_the_blob_does_is_refused(
    ocistream: Run, capsys: pytest.CaptureFixture[str], rest: Rest, size: int
) -> None:
    assert rest.copy(ocistream, rest.archive(rest=b"x" * size), rest.content[: rest.start]) == 6
    assert "not the rest of a blob" in capsys.readouterr().err
    assert not rest.is_complete()


@limit(22)
@pytest.mark.parametrize(("wrong", "code"), [("beginning", 7), ("rest", 7), ("offset", 6)])
def test_a_beginning_and_a_rest_that_are_not_the_blob_are_refused(
    ocistream: Run, rest: Rest, wrong: str, code: int
) -> None:
    beginning, end = rest.content[: rest.start], rest.content[rest.start :]
    beginning = b"!" + beginning[1:] if wrong == "beginning" else beginning
    end = end[:-1] + bytes([end[-1] ^ 1]) if wrong == "rest" else end
    text = f"{rest.digest} {rest.start - 1}" if wrong == "offset" else None
    assert rest.copy(ocistream, rest.archive(text, end), beginning) == code
    assert not rest.is_complete()
