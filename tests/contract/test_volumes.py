"""Volumes of strangers, put together: what they say of themselves is believed nothing, and no blob comes out wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ocistream import limits, transfer
from ocistream.errors import ArchiveError, IntegrityError, MissingContentError, UsageError
from ocistream.interfaces import Source
from ocistream.left_out import VOLUME, Reason
from ocistream.stores import Want
from ocistream.stores.archive_file import ArchiveFileSource
from ocistream.stores.archive_stream import ArchiveStreamSource
from ocistream.stores.index import only_image
from ocistream.stores.joined import JoinedSource, open_joined
from ocistream.stores.layout import LayoutSink
from ocistream.verification import verify
from tests.archives import Item, blob_name, files_in, items_of, tar_of
from tests.images import Descriptor, Layout, digest_of
from tests.observers import NothingEarly
from tests.volumes import LEFT_OUT, PARTS, Cut, part_items
from tests.volumes import VOLUME as VOLUME_NOTE

#: A layer that is cut, and one that is not.
CONTENT, REST = bytes(range(256)) * 8, b"the rest"
CUT, WHOLE = digest_of(CONTENT), digest_of(REST)
SIZE = len(CONTENT)

Open = Callable[..., JoinedSource]


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image of these two layers."""
    return layout.image([CONTENT, REST], name="v1")


@pytest.fixture
def cut(layout: Layout, image: Descriptor) -> Cut:
    """Return its volumes: the first layer goes from the first to the third, the second is in the second."""
    assert image
    return Cut(layout, 3, {CUT: [(0, 0, 1000), (1, 1000, 1), (2, 1001, SIZE - 1001)]}, {WHOLE: 1})


@pytest.fixture
def opened() -> Iterator[Open]:
    """Return a function that opens several files as one source."""
    sources: list[Source] = []

    def open_all(*paths: Path, everything: bool = False) -> JoinedSource:
        source = open_joined([(path, path.name) for path in paths], Want(only_image, everything=everything))
        sources.append(source)
        return source

    yield open_all
    for source in sources:
        source.close()


def copied(source: Source, folder: Path) -> None:
    sink = LayoutSink(folder)
    try:
        transfer.copy(source, sink)
    finally:
        sink.close()


def nothing_wrong_in(folder: Path) -> None:
    """Assert that no image is there, nor any blob that is not what its name says."""
    assert not (folder / "index.json").exists()
    for path in folder.glob("blobs/*/*"):
        if not path.name.startswith("."):
            assert digest_of(path.read_bytes()) == f"{path.parent.name}:{path.name}"


def changed(paths: list[Path], number: int, change: Callable[[dict[str, bytes]], None], *more: Item) -> None:
    """Write a volume anew, after a change to its files, and with more behind them."""
    files = files_in(paths[number].read_bytes())
    change(files)
    paths[number].write_bytes(tar_of([*files.items(), *more]))


def nothing(_: dict[str, bytes]) -> None:
    pass


class TestTogether:
    def test_the_image_comes_out_of_all_of_them(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        source = opened(*cut.write(tmp_path)[::-1])
        copied(source, tmp_path / "out")
        assert (tmp_path / "out" / blob_name(CUT)).read_bytes() == CONTENT
        assert [volume.number for volume in source.volumes] == [0, 1, 2]
        assert len(source.graph(NothingEarly()).roots) == 1

    def test_a_blob_is_begun_at_any_byte(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        source = opened(*cut.write(tmp_path))
        graph = source.graph(NothingEarly())
        (blob,) = (b for b in source.blobs([b for b in graph.blobs if b.digest == CUT]) if b.descriptor.digest == CUT)
        assert blob.open_at is not None
        for offset in (0, 1, 999, 1000, 1001, 1002, SIZE - 1, SIZE):
            assert b"".join(bytes(chunk) for chunk in blob.open_at(offset)) == CONTENT[offset:]

    def test_what_it_lacks_is_in_volumes_that_are_not_there(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        paths = cut.write(tmp_path)
        graph = opened(paths[0], paths[2]).graph(NothingEarly())
        assert graph.left_out == dict.fromkeys((CUT, WHOLE), Reason(VOLUME, "app.001.tar"))
        graph = opened(paths[0], paths[1]).graph(NothingEarly())
        assert graph.left_out == {CUT: Reason(VOLUME, "app.002.tar")}
        graph = opened(paths[1]).graph(NothingEarly())
        assert graph.left_out[CUT] == Reason(VOLUME, "app.000.tar")
        assert opened(*paths).graph(NothingEarly()).left_out == {}

    def test_a_whole_blob_beside_its_parts_is_taken(
        self, cut: Cut, image: Descriptor, opened: Open, tmp_path: Path
    ) -> None:
        cut.whole[cut.layout.read(image["digest"])["config"]["digest"]] = 1
        paths = cut.write(tmp_path)
        changed(paths, 2, lambda files: files.update({blob_name(CUT): CONTENT}))
        copied(opened(paths[2], paths[1]), tmp_path / "out")
        assert (tmp_path / "out" / blob_name(CUT)).read_bytes() == CONTENT

    def test_what_a_volume_should_have_is_missing_if_all_are_there(
        self, cut: Cut, opened: Open, tmp_path: Path
    ) -> None:
        cut.damaged[WHOLE] = None
        source = opened(*cut.write(tmp_path), everything=True)
        assert source.graph(NothingEarly()).left_out == {}
        assert [blob.digest for blob in verify(source).missing] == [WHOLE]
        with pytest.raises(MissingContentError, match=WHOLE):
            copied(opened(*cut.write(tmp_path)), tmp_path / "out")

    def test_volumes_that_were_renamed_are_known_by_what_they_say(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        paths = cut.write(tmp_path)
        renamed = [path.rename(tmp_path / name) for path, name in zip(paths, ("c", "a", "b"), strict=True)]
        copied(opened(*renamed), tmp_path / "out")
        assert (tmp_path / "out" / blob_name(CUT)).read_bytes() == CONTENT

    def test_an_image_that_is_called_otherwise_in_another_is_the_same_one(
        self, layout: Layout, image: Descriptor, opened: Open, tmp_path: Path
    ) -> None:
        paths = [tmp_path / name for name in ("one.tar", "other.tar")]
        paths[0].write_bytes(tar_of(items_of(layout)))
        (layout.path / "index.json").write_bytes(b'{"schemaVersion": 2, "manifests": []}')
        layout.name(image, "v2")
        paths[1].write_bytes(tar_of(items_of(layout)))
        (root,) = opened(*paths).graph(NothingEarly()).roots
        assert root.name == "v1"

    def test_too_many_are_not_even_opened(self, tmp_path: Path) -> None:
        paths = [(tmp_path / "none", "none")] * (limits.MAX_INPUTS + 1)
        with pytest.raises(UsageError, match=f"{limits.MAX_INPUTS + 1} archives"):
            open_joined(paths, Want())

    def test_more_images_than_anybody_lists_are_refused(
        self, layout: Layout, image: Descriptor, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = Layout(tmp_path / "other")
        other.image([b"another"], name="v2")
        paths = []
        for number, one in enumerate((layout, other)):
            paths.append(tmp_path / f"{number}.tar")
            paths[-1].write_bytes(tar_of(items_of(one)))
        monkeypatch.setattr(limits, "MAX_LISTED", 1)
        with pytest.raises(ArchiveError, match="together they list more than 1 images"):
            opened(*paths).graph(NothingEarly())
        assert image


#: Lines about the parts of the first layer, and what is said of them.
PLANS = {
    "they are shorter": [(0, 0, 1000), (1, 1000, 1), (2, 1001, SIZE - 1002)],
    "they are longer": [(0, 0, 1000), (1, 1000, 1), (2, 1001, 10**17)],
    "there is one": [(0, 0, 1000)],
}


class TestHostile:
    @pytest.mark.parametrize("what", PLANS)
    def test_parts_that_do_not_make_up_the_blob_are_refused(
        self, cut: Cut, opened: Open, tmp_path: Path, what: str
    ) -> None:
        paths = cut.write(tmp_path / "in")
        lines = [f"# {CUT}", *(" ".join(map(str, piece)) for piece in PLANS[what])]
        cut.notes[PARTS] = "\n".join(lines)
        cut.write(tmp_path / "in")
        for given in ([paths[0]], paths):
            with pytest.raises(ArchiveError, match="do not make up"):
                copied(opened(*given), tmp_path / "out")
            with pytest.raises(ArchiveError, match="do not make up"):
                verify(opened(*given, everything=True))
        nothing_wrong_in(tmp_path / "out")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda files: files.pop(f"parts/{CUT.replace(':', '/')}/1000"), "lacks parts/"),
            (lambda files: files.pop(f"parts/{CUT.replace(':', '/')}/1000.sha256"), "lacks parts/"),
            (lambda files: files.update({f"parts/{CUT.replace(':', '/')}/1000": b""}), "has 0 bytes"),
            (lambda files: files.update({f"parts/{CUT.replace(':', '/')}/1000": b"ab"}), "has 2 bytes"),
            (lambda files: files.update({f"parts/{CUT.replace(':', '/')}/1000.sha256": b"no"}), "malformed"),
        ],
    )
    def test_a_volume_without_what_its_index_says_is_refused(
        self, cut: Cut, opened: Open, tmp_path: Path, change: Callable[[dict[str, bytes]], None], words: str
    ) -> None:
        paths = cut.write(tmp_path / "in")
        changed(paths, 1, change)
        with pytest.raises(ArchiveError, match=words):
            copied(opened(*paths), tmp_path / "out")
        with pytest.raises(ArchiveError, match=words):
            verify(opened(paths[1], everything=True))
        with contextlib.closing(ArchiveStreamSource(paths[1].open("rb"), everything=True)) as piped:
            # In a pipe a part is hashed before its place in the index is looked at.
            with pytest.raises((ArchiveError, IntegrityError)):
                verify(piped)
            assert piped.volume is not None
            assert piped.volume.number == 1
        nothing_wrong_in(tmp_path / "out")

    def test_a_part_twice_in_a_volume_is_refused(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        paths = cut.write(tmp_path / "in")
        changed(paths, 1, nothing, *part_items(CUT, 1000, b"x"))
        with pytest.raises(ArchiveError, match="stands twice"):
            opened(*paths)

    def test_a_part_that_no_index_speaks_of_is_another_file(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        paths = cut.write(tmp_path / "in")
        changed(paths, 1, nothing, *part_items(CUT, 7, b"x"), *part_items(WHOLE, 0, b"x"))
        copied(opened(*paths), tmp_path / "out")
        assert (tmp_path / "out" / blob_name(CUT)).read_bytes() == CONTENT

    @pytest.mark.parametrize("number", range(3))
    def test_wrong_bytes_with_a_checksum_that_fits_never_become_the_blob(
        self, cut: Cut, opened: Open, tmp_path: Path, number: int
    ) -> None:
        paths = cut.write(tmp_path / "in")
        _, offset, size = cut.pieces[CUT][number]
        changed(paths, number, lambda files: files.update(dict(part_items(CUT, offset, bytes(size)))))  # type: ignore[arg-type]
        with pytest.raises(IntegrityError, match=CUT):
            copied(opened(*paths), tmp_path / "out")
        assert [wrong.digest for wrong in verify(opened(*paths, everything=True)).wrong] == [CUT]
        nothing_wrong_in(tmp_path / "out")

    def test_a_volume_is_named_that_is_damaged(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        paths = cut.write(tmp_path / "in")
        changed(paths, 2, lambda files: files.update({f"parts/{CUT.replace(':', '/')}/1001": bytes(SIZE - 1001)}))
        paths[2] = paths[2].rename(tmp_path / "in" / "renamed")
        with pytest.raises(IntegrityError) as caught:
            copied(opened(*paths), tmp_path / "out")
        assert "renamed is damaged" in (caught.value.hint or "")
        (wrong,) = verify(opened(paths[2], everything=True)).wrong
        assert f"its part from byte 1001 on, in {cut.template % 2}" in wrong.error.what
        cut.damaged[WHOLE] = b"THE REST"
        with pytest.raises(IntegrityError) as caught:
            copied(opened(*cut.write(tmp_path / "in")), tmp_path / "other")
        assert "app.001.tar is damaged" in (caught.value.hint or "")

    @pytest.mark.parametrize(
        "notes",
        [
            {VOLUME_NOTE: "1 4 {identity} app.%03d.tar"},
            {VOLUME_NOTE: "1 3 {identity} other.%03d.tar"},
            {PARTS: f"# {CUT}\n0 0 1000\n1 1000 {SIZE - 1000}"},
        ],
    )
    def test_a_set_that_contradicts_itself_is_refused(
        self, cut: Cut, opened: Open, tmp_path: Path, notes: dict[str, str]
    ) -> None:
        paths = cut.write(tmp_path)
        sound = {path: path.read_bytes() for path in paths}
        cut.notes.update({key: text.format(identity=cut.identity) for key, text in notes.items()})
        cut.write(tmp_path)
        for path in (paths[0], paths[2]):
            path.write_bytes(sound[path])
        with pytest.raises(ArchiveError, match="and they differ"):
            opened(*paths).graph(NothingEarly())

    def test_of_two_sets_the_odd_one_is_named(self, cut: Cut, opened: Open, layout: Layout, tmp_path: Path) -> None:
        paths = cut.write(tmp_path)
        other = Cut(layout, 3, identity=digest_of(b"another"), template="other.%d").write(tmp_path)
        with pytest.raises(
            ArchiveError, match=r"other\.1 does not belong to the others: it is volume 2 of 3 \(other\.1\)"
        ):
            opened(other[1], paths[0], paths[2]).graph(NothingEarly())

    @pytest.mark.parametrize("notes", [{VOLUME_NOTE: "x"}, {PARTS: "x"}, {LEFT_OUT: "x"}])
    def test_a_malformed_annotation_names_its_file(
        self, cut: Cut, opened: Open, tmp_path: Path, notes: dict[str, str | None]
    ) -> None:
        cut.notes.update(notes)
        paths = cut.write(tmp_path)
        with pytest.raises(ArchiveError, match=next(iter(notes))):
            opened(*paths).graph(NothingEarly())
        source = ArchiveFileSource(paths[0])
        with pytest.raises(ArchiveError, match=next(iter(notes))):
            source.graph(NothingEarly())
        source.close()
