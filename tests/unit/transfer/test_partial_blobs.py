"""Archives that have only the rest of a blob: their annotation, and how destinations use it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream.archive.destination import ArchiveDestination
from ocistream.archive.outputs import open_file_output
from ocistream.archive.stream_source import ArchiveStreamSource
from ocistream.errors import PartialBlobLostError, UnsupportedError
from ocistream.layout.destination import LayoutDestination
from ocistream.oci.omitted_blobs import PARTIAL_BLOBS, format_partial_blobs, parse_partial_blobs
from ocistream.transfer.copy import Copy
from ocistream.transfer.interfaces import Destination
from tests.archives import small_first, tar_of
from tests.images import Layout, digest_of

MIB = 1 << 20
A, B = digest_of(b"a"), digest_of(b"b")


@given(st.dictionaries(st.sampled_from([A, B, digest_of(b"c", "sha512")]), st.integers(1, 10**18 - 1)))
def test_partial_blobs_are_formatted_and_parsed(begun: dict[str, int]) -> None:
    assert parse_partial_blobs({PARTIAL_BLOBS: format_partial_blobs(begun)}) == begun


def test_a_missing_annotation_differs_from_an_empty_one() -> None:
    assert parse_partial_blobs({}) is None
    assert parse_partial_blobs({PARTIAL_BLOBS: ""}) == {}


class Rest:
    """The archive of an image that has only the rest of one layer, as `copy --via` sends it."""

    def __init__(self, layout: Layout) -> None:
        self.start = 2 * MIB
        layer, _ = layout.random_layer(4 * MIB, seed=1)
        layout.image([layer], name="v1")
        self.hex = str(layer["digest"])[7:]
        self.content = layout.file(layer["digest"]).read_bytes()
        self.items = small_first(layout)
        self.index = (layout.path / "index.json").read_bytes()

    def of_config(self, layout: Layout) -> bytes:
        """Return an archive that has the complete layer, but only the rest of the config."""
        index = json.loads(self.index)
        config = str(layout.read(index["manifests"][0]["digest"])["config"]["digest"])
        index["annotations"] = {PARTIAL_BLOBS: f"{config} 1"}
        items = [item for item in self.items if item[0] != "index.json" and not item[0].endswith(config[7:])]
        part = (f"parts/sha256/{config[7:]}/1", layout.file(config).read_bytes()[1:])
        return tar_of([("index.json", json.dumps(index).encode()), *items, part])

    def complete(self) -> bytes:
        """Return an archive that announces the rest of the layer, but has the complete layer."""
        index = json.loads(self.index)
        index["annotations"] = {PARTIAL_BLOBS: f"sha256:{self.hex} {self.start}"}
        items = [item for item in self.items if item[0] != "index.json"]
        return tar_of([("index.json", json.dumps(index).encode()), *items])

    def archive(self, said: int | None = None, rest: bytes | None = None) -> bytes:
        """Return an archive that announces the layer from byte `said` on, and has `rest`."""
        index = json.loads(self.index)
        index["annotations"] = {PARTIAL_BLOBS: f"sha256:{self.hex} {self.start if said is None else said}"}
        items = [item for item in self.items if item[0] != "index.json" and not item[0].endswith(self.hex)]
        part = self.content[self.start :] if rest is None else rest
        return tar_of(
            [("index.json", json.dumps(index).encode()), *items, (f"parts/sha256/{self.hex}/{self.start}", part)]
        )


@pytest.fixture
def rest(layout: Layout) -> Rest:
    return Rest(layout)


def copied(archive: bytes, sink: Destination) -> None:
    Copy(ArchiveStreamSource(io.BufferedReader(io.BytesIO(archive))), sink).run()


def begun(folder: Path, rest: Rest, content: bytes) -> Path:
    path = folder / "blobs/sha256" / f".{rest.hex}.partial"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


class TestLayoutDestination:
    @pytest.mark.parametrize("more", [0, MIB, 2 * MIB, 3 * MIB])
    def test_the_rest_is_appended_to_the_partial_file(self, rest: Rest, tmp_path: Path, more: int) -> None:
        path = begun(tmp_path / "there", rest, (rest.content + b"x" * MIB)[: rest.start + more])
        copied(rest.archive(), LayoutDestination(tmp_path / "there"))
        assert path.with_name(rest.hex).read_bytes() == rest.content
        assert not path.exists()

    @pytest.mark.parametrize("size", [0, 2 * MIB - 1])
    def test_a_partial_file_that_is_too_short_is_kept(self, rest: Rest, tmp_path: Path, size: int) -> None:
        path = begun(tmp_path / "there", rest, rest.content[:size])
        with pytest.raises(PartialBlobLostError):
            copied(rest.archive(), LayoutDestination(tmp_path / "there"))
        assert not path.with_name(rest.hex).exists()
        assert not (tmp_path / "there/index.json").exists()
        if size:
            assert path.stat().st_size == size

    def test_a_complete_blob_needs_no_partial_file(self, rest: Rest, tmp_path: Path) -> None:
        copied(rest.complete(), LayoutDestination(tmp_path / "there"))
        assert (tmp_path / "there/blobs/sha256" / rest.hex).read_bytes() == rest.content


class TestRefused:
    def test_a_destination_that_cannot_resume_refuses_a_partial_blob(self, rest: Rest, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedError, match="has only a part of this blob"):
            copied(rest.archive(), ArchiveDestination(open_file_output(tmp_path / "x.tar")))
        assert not (tmp_path / "x.tar").exists()

    def test_a_partial_config_is_refused(self, rest: Rest, layout: Layout, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedError, match="the complete blob is needed"):
            copied(rest.of_config(layout), LayoutDestination(tmp_path / "there"))
        assert not (tmp_path / "there/index.json").exists()
