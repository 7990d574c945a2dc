"""Volumes of other tools, read together: their annotations are not trusted, and no wrong blob is copied."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, MissingContentError, UsageError
from tests.archives import Item, blob_name, files_in, items_of, tar_of
from tests.contract.adapter import Source, copy, layout_destination, volumes_source
from tests.contract.adapter_types import Wanted
from tests.images import Descriptor, Layout, digest_of
from tests.runner import ocistream
from tests.volume_archives import OMITTED, PARTS, VOLUME, Cut, part_items

#: A layer that is cut into parts, and one that is not.
CONTENT, REST = bytes(range(256)) * 8, b"the rest"
CUT, WHOLE = digest_of(CONTENT), digest_of(REST)
SIZE = len(CONTENT)

Open = Callable[..., Source]


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image of these two layers."""
    return layout.image([CONTENT, REST], name="v1")


@pytest.fixture
def cut(layout: Layout, image: Descriptor) -> Cut:
    """Return its volumes: the first layer spans all three, the second is in the second."""
    assert image
    return Cut(layout, 3, {CUT: [(0, 0, 1000), (1, 1000, 1), (2, 1001, SIZE - 1001)]}, {WHOLE: 1})


@pytest.fixture
def opened() -> Iterator[Open]:
    """Return a function that opens several files as one source."""
    with contextlib.ExitStack() as stack:
        yield lambda *paths: stack.enter_context(volumes_source(paths, Wanted(images="only")))


def copied(source: Source, folder: Path) -> None:
    destination = layout_destination(folder)
    try:
        copy(source, destination)
    finally:
        destination.close()


def verified(*paths: Path) -> int:
    """Return the exit code of `verify`."""
    return ocistream("verify", *paths).code


def nothing_wrong_in(folder: Path) -> None:
    """Assert that there is no image, and no blob with wrong bytes."""
    assert not (folder / "index.json").exists()
    for path in folder.glob("blobs/*/*"):
        if not path.name.startswith("."):
            assert digest_of(path.read_bytes()) == f"{path.parent.name}:{path.name}"


def changed(paths: list[Path], number: int, change: Callable[[dict[str, bytes]], None], *more: Item) -> None:
    """Change the files of a volume and rewrite it, with more entries after them."""
    files = files_in(paths[number].read_bytes())
    change(files)
    paths[number].write_bytes(tar_of([*files.items(), *more]))


def nothing(_: dict[str, bytes]) -> None:
    pass


class TestComplete:
    def test_all_volumes_together_are_the_image(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        paths = cut.write(tmp_path)
        copied(opened(*paths[::-1]), tmp_path / "out")
        assert (tmp_path / "out" / blob_name(CUT)).read_bytes() == CONTENT
        assert len(opened(*paths).list().images) == 1
        assert verified(*paths) == 0

    def test_a_blob_can_be_read_from_any_byte(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        source = opened(*cut.write(tmp_path))
        (blob,) = source.blobs([piece for piece in source.list().blobs if piece.digest == CUT])
        assert blob.reopenable
        for offset in (0, 1, 999, 1000, 1001, 1002, SIZE - 1, SIZE):
            assert b"".join(map(bytes, blob.open(offset))) == CONTENT[offset:]

    def test_a_complete_blob_beside_its_parts_is_used(
        self, cut: Cut, image: Descriptor, opened: Open, tmp_path: Path
    ) -> None:
        cut.whole[cut.layout.read(image["digest"])["config"]["digest"]] = 1
        paths = cut.write(tmp_path)
        changed(paths, 2, lambda files: files.update({blob_name(CUT): CONTENT}))
        copied(opened(paths[2], paths[1]), tmp_path / "out")
        assert (tmp_path / "out" / blob_name(CUT)).read_bytes() == CONTENT

    def test_a_blob_that_its_volume_lacks_is_reported_as_missing(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        cut.damaged[WHOLE] = None
        paths = cut.write(tmp_path)
        assert verified(*paths) == 6
        with pytest.raises(MissingContentError, match=WHOLE):
            copied(opened(*paths), tmp_path / "out")

    def test_renamed_volumes_are_recognized_by_their_annotations(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        paths = cut.write(tmp_path)
        renamed = [path.rename(tmp_path / name) for path, name in zip(paths, ("c", "a", "b"), strict=True)]
        copied(opened(*renamed), tmp_path / "out")
        assert (tmp_path / "out" / blob_name(CUT)).read_bytes() == CONTENT

    def test_an_image_with_different_names_in_two_archives_is_listed_once(
        self, layout: Layout, image: Descriptor, opened: Open, tmp_path: Path
    ) -> None:
        paths = [tmp_path / name for name in ("one.tar", "other.tar")]
        paths[0].write_bytes(tar_of(items_of(layout)))
        layout.clear()
        layout.name(image, "v2")
        paths[1].write_bytes(tar_of(items_of(layout)))
        assert opened(*paths).list().images == (("v1", image["digest"]),)

    def test_too_many_archives_are_refused_before_any_is_opened(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=f"{limits.MAX_INPUTS + 1} archives"):
            volumes_source([tmp_path / "none"] * (limits.MAX_INPUTS + 1))

    def test_the_number_of_images_of_all_archives_is_limited(
        self, layout: Layout, image: Descriptor, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = Layout(tmp_path / "other")
        other.image([b"another"], name="v2")
        paths = []
        for number, one in enumerate((layout, other)):
            paths.append(tmp_path / f"{number}.tar")
            paths[-1].write_bytes(tar_of(items_of(one)))
        monkeypatch.setattr(limits, "MAX_LIST_ENTRIES", 1)
        with pytest.raises(ArchiveError, match="together the archives list more than 1 images"):
            opened(*paths).list()
        assert image


#: Wrong parts of the first layer.
PLANS = {
    "they are shorter": [(0, 0, 1000), (1, 1000, 1), (2, 1001, SIZE - 1002)],
    "they are longer": [(0, 0, 1000), (1, 1000, 1), (2, 1001, 10**17)],
    "there is one": [(0, 0, 1000)],
}


class TestHostile:
    @pytest.mark.parametrize("what", PLANS)
    def test_parts_that_do_not_add_up_to_the_blob_are_refused(
        self, cut: Cut, opened: Open, tmp_path: Path, what: str
    ) -> None:
        paths = cut.write(tmp_path / "in")
        lines = [f"# {CUT}", *(" ".join(map(str, piece)) for piece in PLANS[what])]
        cut.notes[PARTS] = "\n".join(lines)
        cut.write(tmp_path / "in")
        for given in ([paths[0]], paths):
            with pytest.raises(ArchiveError, match="do not add up to"):
                copied(opened(*given), tmp_path / "out")
            assert verified(*given) == 6
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
    def test_a_volume_that_lacks_a_listed_part_is_refused(
        self, cut: Cut, opened: Open, tmp_path: Path, change: Callable[[dict[str, bytes]], None], words: str
    ) -> None:
        paths = cut.write(tmp_path / "in")
        changed(paths, 1, change)
        with pytest.raises(ArchiveError, match=words):
            copied(opened(*paths), tmp_path / "out")
        assert verified(paths[1]) == 6
        nothing_wrong_in(tmp_path / "out")

    def test_a_repeated_part_in_a_volume_is_refused(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        paths = cut.write(tmp_path / "in")
        changed(paths, 1, nothing, *part_items(CUT, 1000, b"x"))
        with pytest.raises(ArchiveError, match=r"the archive has 'parts/.*' twice"):
            opened(*paths)

    def test_an_unlisted_part_is_ignored(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        paths = cut.write(tmp_path / "in")
        changed(paths, 1, nothing, *part_items(CUT, 7, b"x"), *part_items(WHOLE, 0, b"x"))
        copied(opened(*paths), tmp_path / "out")
        assert (tmp_path / "out" / blob_name(CUT)).read_bytes() == CONTENT

    @pytest.mark.parametrize("number", range(3))
    def test_wrong_bytes_with_a_matching_checksum_are_refused(
        self, cut: Cut, opened: Open, tmp_path: Path, number: int
    ) -> None:
        paths = cut.write(tmp_path / "in")
        _, offset, size = cut.pieces[CUT][number]
        changed(paths, number, lambda files: files.update(dict(part_items(CUT, offset, bytes(size)))))  # type: ignore[arg-type]
        with pytest.raises(IntegrityError, match=CUT):
            copied(opened(*paths), tmp_path / "out")
        assert verified(*paths) == 5
        nothing_wrong_in(tmp_path / "out")

    def test_a_damaged_volume_is_named(self, cut: Cut, opened: Open, tmp_path: Path) -> None:
        paths = cut.write(tmp_path / "in")
        changed(paths, 2, lambda files: files.update({f"parts/{CUT.replace(':', '/')}/1001": bytes(SIZE - 1001)}))
        paths[2] = paths[2].rename(tmp_path / "in" / "renamed")
        with pytest.raises(IntegrityError) as caught:
            copied(opened(*paths), tmp_path / "out")
        assert "renamed is damaged" in (caught.value.hint or "")
        assert verified(paths[2]) == 5
        cut.damaged[WHOLE] = b"THE REST"
        with pytest.raises(IntegrityError) as caught:
            copied(opened(*cut.write(tmp_path / "in")), tmp_path / "other")
        assert "app.001.tar is damaged" in (caught.value.hint or "")

    @pytest.mark.parametrize(
        "notes",
        [
            {VOLUME: "1 4 {identity} app.%03d.tar"},
            {VOLUME: "1 3 {identity} other.%03d.tar"},
            {PARTS: f"# {CUT}\n0 0 1000\n1 1000 {SIZE - 1000}"},
        ],
    )
    def test_a_set_with_contradictory_annotations_is_refused(
        self, cut: Cut, opened: Open, tmp_path: Path, notes: dict[str, str]
    ) -> None:
        paths = cut.write(tmp_path)
        sound = {path: path.read_bytes() for path in paths}
        cut.notes.update({key: text.format(identity=cut.identity) for key, text in notes.items()})
        cut.write(tmp_path)
        for path in (paths[0], paths[2]):
            path.write_bytes(sound[path])
        with pytest.raises(ArchiveError, match="but they differ"):
            opened(*paths).list()

    def test_a_volume_of_another_set_is_named(self, cut: Cut, opened: Open, layout: Layout, tmp_path: Path) -> None:
        paths = cut.write(tmp_path)
        other = Cut(layout, 3, identity=digest_of(b"another"), template="other.%d").write(tmp_path)
        with pytest.raises(
            ArchiveError, match=r"other\.1 does not belong to the others: it is volume 2 of 3 \(other\.1\)"
        ):
            opened(other[1], paths[0], paths[2]).list()

    @pytest.mark.parametrize("notes", [{VOLUME: "x"}, {PARTS: "x"}, {OMITTED: "x"}])
    def test_a_malformed_annotation_names_its_file(
        self, cut: Cut, opened: Open, tmp_path: Path, notes: dict[str, str | None]
    ) -> None:
        cut.notes.update(notes)
        paths = cut.write(tmp_path)
        with pytest.raises(ArchiveError, match=next(iter(notes))):
            opened(*paths).list()
        assert verified(paths[0]) == 6
