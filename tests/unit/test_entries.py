"""Which names in a tar mean something: a name becomes nothing but a key, and what is no file is no blob."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream.errors import ArchiveError
from ocistream.reference import is_digest
from ocistream.stores.entries import Contents, blob_digest, plain_name
from ocistream.stores.tar import Entry

HEX = "0123456789abcdef" * 4
BLOB = f"blobs/sha256/{HEX}"


def entry(name: str, kind: str = "file", size: int = 1) -> Entry:
    return Entry(name, size, kind, 512)


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
        assert blob_digest(name) == digest

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
    def test_no_other_name_is_one(self, name: str) -> None:
        assert blob_digest(name) is None

    @given(st.text("./ab0", max_size=20) | st.text(max_size=20))
    def test_any_name_is_a_legal_digest_or_none(self, name: str) -> None:
        for tried in (name, f"./blobs/sha256/{name}", f"blobs/sha256/{name}{HEX[len(name) :]}"):
            digest = blob_digest(tried)
            assert digest is None or is_digest(digest)

    def test_only_a_leading_dot_is_taken_away(self) -> None:
        assert plain_name("./a/./b") == "a/./b"
        assert plain_name("../a") == "../a"
        assert plain_name("/a") == "/a"
        assert plain_name("./") == ""


class TestContents:
    def test_what_belongs_to_an_archive_is_noted(self) -> None:
        contents = Contents()
        entries = [entry(name) for name in ("oci-layout", "./index.json", "manifest.json", BLOB)]
        assert [contents.add(one) for one in entries] == [None, None, None, f"sha256:{HEX}"]
        assert (contents.layout, contents.index, contents.docker) == tuple(entries[:3])
        assert contents.blobs == {f"sha256:{HEX}": (512, 1)}
        assert contents.repeated == []
        assert contents.required_index() is entries[1]

    @pytest.mark.parametrize(
        "name", ["repositories", "../index.json", "/index.json", "/etc/passwd", "blobs/sha256/../../x", "a/index.json"]
    )
    @pytest.mark.parametrize("kind", ["file", "link", "other"])
    def test_what_does_not_is_passed_over(self, name: str, kind: str) -> None:
        contents = Contents()
        assert contents.add(entry(name, kind)) is None
        assert (contents.layout, contents.index, contents.docker, contents.blobs) == (None, None, None, {})

    @pytest.mark.parametrize("name", ["blobs", "./", "blobs/sha256", "index.json", BLOB])
    def test_directories_mean_nothing(self, name: str) -> None:
        contents = Contents()
        assert contents.add(entry(name, "directory")) is None
        assert (contents.index, contents.blobs) == (None, {})

    @pytest.mark.parametrize("name", [BLOB, f"./{BLOB}", "index.json", "./index.json", "oci-layout", "manifest.json"])
    @pytest.mark.parametrize("kind", ["link", "other"])
    def test_what_is_no_file_is_refused_in_a_files_place(self, name: str, kind: str) -> None:
        with pytest.raises(ArchiveError, match="is not a regular file") as caught:
            Contents().add(entry(name, kind))
        assert caught.value.exit_code == 6

    @pytest.mark.parametrize("names", [("index.json", "index.json"), ("./index.json", "index.json")])
    def test_a_second_index_is_refused(self, names: tuple[str, str]) -> None:
        contents = Contents()
        contents.add(entry(names[0]))
        with pytest.raises(ArchiveError, match=r"index\.json stands twice"):
            contents.add(entry(names[1]))

    def test_a_blob_may_stand_there_twice_and_the_first_counts(self) -> None:
        contents = Contents()
        again = Entry(f"./{BLOB}", 5, "file", 4096)
        assert contents.add(entry(BLOB, size=5)) == contents.add(again) == f"sha256:{HEX}"
        assert contents.blobs[f"sha256:{HEX}"].offset == 512

    def test_but_not_with_two_sizes(self) -> None:
        contents = Contents()
        contents.add(entry(BLOB, size=5))
        with pytest.raises(ArchiveError, match="stands twice in the archive, with different sizes"):
            contents.add(entry(BLOB, size=6))

    def test_an_archive_of_something_else_is_refused(self) -> None:
        contents = Contents()
        contents.add(entry("readme.txt"))
        with pytest.raises(ArchiveError, match=r"it has neither an index\.json nor a manifest\.json"):
            contents.required_index()
