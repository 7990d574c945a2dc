"""Which names in a tar archive have a meaning; a name never becomes a path, and only a file is a blob."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream import limits
from ocistream.archive.contents import ArchiveContents, normalize_name, parse_blob_name
from ocistream.archive.tar_reader import TarEntry
from ocistream.errors import ArchiveError
from ocistream.oci.reference import is_digest

HEX = "0123456789abcdef" * 4
BLOB = f"blobs/sha256/{HEX}"


def entry(name: str, kind: str = "file", size: int = 1, offset: int = 512) -> TarEntry:
    return TarEntry(name, size, kind, offset, target="", is_symbolic=False, is_read_only=False)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "digest"),
        [
            (BLOB, f"sha256:{HEX}"),
            (f"./{BLOB}", f"sha256:{HEX}"),
            (f"././{BLOB}", f"sha256:{HEX}"),
            (f"blobs/sha512/{HEX}{HEX}", f"sha512:{HEX}{HEX}"),
        ],
    )
    def test_a_blobs_name_is_its_digest(self, name: str, digest: str) -> None:
        assert parse_blob_name(name) == digest

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "blobs",
            "blobs/sha256/",
            f"/{BLOB}",
            f"../{BLOB}",
            f".//{BLOB}",
            f"x/{BLOB}",
            f"x/../{BLOB}",
            f"{BLOB}/",
            f"{BLOB}\n",
            f"{BLOB}\0",
            f"{BLOB}0",
            f"blobs//sha256/{HEX}",
            f"blobs/sha256/./{HEX}",
            f"blobs/sha256/../sha256/{HEX}",
            f"blobs/sha256/{HEX.upper()}",
            f"BLOBS/sha256/{HEX}",
            f"blobs/sha512/{HEX}",
            f"blobs/sha384/{HEX}",
            "blobs/sha256/../../x",
            "blobs/sha256/../../index.json",
        ],
    )
    def test_other_names_are_not_blobs(self, name: str) -> None:
        assert parse_blob_name(name) is None

    @given(st.text("./ab0", max_size=20) | st.text(max_size=20))
    def test_any_name_is_a_valid_digest_or_none(self, name: str) -> None:
        for tried in (name, f"./blobs/sha256/{name}", f"blobs/sha256/{name}{HEX[len(name) :]}"):
            digest = parse_blob_name(tried)
            assert digest is None or is_digest(digest)

    def test_only_a_leading_dot_is_removed(self) -> None:
        assert normalize_name("./a/./b") == "a/./b"
        assert normalize_name("../a") == "../a"
        assert normalize_name("/a") == "/a"
        assert normalize_name("./") == ""


class TestContents:
    @pytest.mark.parametrize(
        "name", ["repositories", "../x", "/x/index.json", "/etc/passwd", "blobs/sha256/../../x", "a/index.json"]
    )
    @pytest.mark.parametrize("kind", ["file", "link", "other"])
    def test_other_names_are_ignored(self, name: str, kind: str) -> None:
        contents = ArchiveContents()
        assert contents.add(entry(name, kind)) is None
        assert (contents.documents, [*contents.blobs]) == ({}, [])

    @pytest.mark.parametrize("name", ["blobs", "blobs/", "./", ".", "", "/", "blobs/sha256", "x/index.json"])
    def test_directories_are_ignored(self, name: str) -> None:
        contents = ArchiveContents()
        assert contents.add(entry(name, "directory")) is None
        assert (contents.index_json, [*contents.blobs], contents.foreign_count) == (None, [], 0)

    @pytest.mark.parametrize("name", [BLOB, f"./{BLOB}", "index.json", "./index.json", "oci-layout", "manifest.json"])
    @pytest.mark.parametrize("kind", ["link", "other", "directory"])
    def test_a_layouts_file_must_be_a_regular_file(self, name: str, kind: str) -> None:
        with pytest.raises(ArchiveError, match="is not a regular file") as caught:
            ArchiveContents().add(entry(name, kind))
        assert caught.value.exit_code == 6

    @pytest.mark.parametrize(
        "name",
        [
            "index.json/", "index.json/.", ".//index.json", "/index.json", "//index.json", "../index.json",
            "../../index.json", "x/../index.json", "x/../../index.json", "/../index.json", "./x/.././index.json",
            "INDEX.JSON", "Oci-Layout", "MANIFEST.json", "index.j\u017fon", "index.json.", "index.json .",
            "index.json. /", "x\\..\\index.json", f"/{BLOB}", f"{BLOB}/", f"x/../{BLOB}", BLOB.upper(),
            f"blobs//sha256/{HEX}", f"blobs/sha256/./{HEX}", f"BLOBS/sha256/{HEX}", f"blobs /sha256/{HEX}",
            f"blobs\\sha256\\{HEX}", f"{BLOB}.",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("kind", ["file", "link", "other", "directory"])
    def test_a_name_that_some_tools_take_for_a_layouts_is_refused(self, name: str, kind: str) -> None:
        with pytest.raises(ArchiveError, match=r"some tools read the entry .*, others do not"):
            ArchiveContents().add(entry(name, kind))

    @pytest.mark.parametrize(
        "name", ["index.json2", "index", ".index.json", "..index.json", "x/index.json", "index.json/x", "in dex.json"]
    )
    def test_a_name_that_no_tool_takes_for_a_layouts_is_ignored(self, name: str) -> None:
        contents = ArchiveContents()
        assert contents.add(entry(name)) is None
        assert contents.foreign_count == 1

    @pytest.mark.parametrize("name", ["", ".", "/", "blobs", "blobs/sha256", "./blobs/sha512/", "Blobs", "x/.."])
    @pytest.mark.parametrize("kind", ["file", "link", "other"])
    def test_the_directories_of_a_layout_must_be_directories(self, name: str, kind: str) -> None:
        with pytest.raises(ArchiveError, match="is not a directory"):
            ArchiveContents().add(entry(name, kind))

    def test_the_depth_of_a_name_is_limited(self) -> None:
        ArchiveContents().add(entry("a/" * limits.MAX_NAME_DEPTH + "a"))
        with pytest.raises(ArchiveError, match="more than 100 directories deep"):
            ArchiveContents().add(entry("a/" * (limits.MAX_NAME_DEPTH + 1) + "a"))


class TestLinks:
    @pytest.mark.parametrize("name", ["d", "d/x", "d/x/y", "./d/x", "d//x", "d/.", "d/../x", "D/x", "x/../d/y", "/d/x"])
    @pytest.mark.parametrize("kind", ["file", "other", "directory"])
    def test_nothing_leads_through_a_link(self, name: str, kind: str) -> None:
        contents = ArchiveContents()
        contents.add(entry("d", "link"))
        with pytest.raises(ArchiveError, match="leads through a link"):
            contents.add(entry(name, kind))

    @pytest.mark.parametrize("name", ["a", "b/d", "dd", "d.x", "b/d/c", "x/d", "index.json", BLOB])
    def test_other_names_may_come_after_links(self, name: str) -> None:
        contents = ArchiveContents()
        contents.add(entry("d", "link"))
        contents.add(entry("b/c", "link"))
        contents.add(entry(name))

    def test_a_link_may_replace_a_link_but_not_be_below_one(self) -> None:
        contents = ArchiveContents()
        contents.add(entry("a/d", "link"))
        contents.add(entry("a/d", "link"))
        with pytest.raises(ArchiveError, match="leads through a link"):
            contents.add(entry("a/d/e", "link"))

    def test_an_entry_before_a_link_does_not_lead_through_it(self) -> None:
        contents = ArchiveContents()
        contents.add(entry("d/x"))
        contents.add(entry("d", "link"))
