"""A sync file becomes copies and shards, without any request."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream.errors import UsageError
from ocistream.sync.file import read_sync_file
from ocistream.sync.plan import EntryCopies, ImageCopy, Shard, drop_duplicates, parse_shard

NAMES = st.text(min_size=1, max_size=30)


def planned(folder: Path, text: str, names: list[str]) -> list[ImageCopy]:
    (folder / "sync.toml").write_text(text)
    return list(drop_duplicates([EntryCopies(entry, names) for entry in read_sync_file(folder / "sync.toml").entries]))


def shown(found: list[ImageCopy]) -> list[tuple[str, list[str]]]:
    return [(copy.name, [target.name for target in copy.destinations]) for copy in found]


@given(NAMES, st.integers(1, 50))
def test_each_image_is_in_one_shard(name: str, count: int) -> None:
    assert sum(Shard(index, count).has_image(name) for index in range(count)) == 1


def test_shards_are_about_equal() -> None:
    names = [f"registry.example.com/team/app:{number}" for number in range(2000)]
    for index in range(8):
        assert 200 < sum(Shard(index, 8).has_image(name) for name in names) < 300


@pytest.mark.parametrize(("text", "shard"), [("0/1", Shard(0, 1)), ("3/4", Shard(3, 4))])
def test_shards_count_from_0(text: str, shard: Shard) -> None:
    assert parse_shard(text) == shard
    assert str(shard) == text


def test_tags_keep_their_names_in_a_registry_and_full_names_in_a_layout(tmp_path: Path) -> None:
    text = "[[sync]]\nfrom = 'r.example/app'\nto = ['s.example/mirror/app', 'oci:images']\ntags = ['1*']"
    assert shown(planned(tmp_path, text, ["2", "1.1", "1.0"])) == [
        (f"r.example/app:{tag}", [f"s.example/mirror/app:{tag}", f"oci:{tmp_path}/images:r.example/app:{tag}"])
        for tag in ("1.0", "1.1")
    ]


def test_images_of_a_layout_keep_their_tags(tmp_path: Path) -> None:
    text = "[[sync]]\nfrom = 'oci:images'\nto = 's.example/app'"
    found = planned(tmp_path, text, ["r.example/app:1", "2", "no tag"])
    # The name does not contain the path of the file: a shard is the same on every machine.
    assert shown(found) == [
        ("oci:images:2", ["s.example/app:2"]),
        ("oci:images:r.example/app:1", ["s.example/app:1"]),
    ]
    assert found[0].source.path == tmp_path / "images"


def test_defaults_apply_to_entries_without_own_values(tmp_path: Path) -> None:
    text = "[defaults]\nplatforms = ['linux/arm64']\nreferrers = false\n"
    text += "[[sync]]\nfrom = 'a.example/x:1'\nto = 'b.example/x'\n"
    text += "[[sync]]\nfrom = 'a.example/y:1'\nto = 'b.example/y'\nplatforms = 'all'\nreferrers = true\n"
    one, two = [copy.entry for copy in planned(tmp_path, text, [])]
    assert ([str(platform) for platform in one.platforms.platforms], one.referrers) == (["linux/arm64"], False)
    assert (two.platforms.platforms, two.referrers) == ((), True)


def test_duplicate_copies_are_removed(tmp_path: Path) -> None:
    text = "[[sync]]\nfrom = 'a.example/x'\nto = 'b.example/x'\n"
    text += "[[sync]]\nfrom = 'a.example/x:1'\nto = ['b.example/x', 'c.example/x']\n"
    assert shown(planned(tmp_path, text, ["1"])) == [
        ("a.example/x:1", ["b.example/x:1"]),
        ("a.example/x:1", ["c.example/x:1"]),
    ]


@pytest.mark.uncounted
def test_a_file_of_ten_thousand_entries_is_read(tmp_path: Path) -> None:
    text = "".join(f"[[sync]]\nfrom='a.example/x:{number}'\nto='b.example/x'\n" for number in range(10_000))
    (tmp_path / "sync.toml").write_text(text)
    assert len(read_sync_file(tmp_path / "sync.toml").entries) == 10_000


@pytest.mark.parametrize(
    "entries",
    [
        ["from = 'a.example/x:1'\nto = 'c.example/x'", "from = 'b.example/x:1'\nto = 'c.example/x'"],
        ["from = 'a.example/x:1'\nto = 'oci:x:n'", "from = 'a.example/x:2'\nto = 'oci:x:n'"],
        [
            "from = 'a.example/x:1'\nto = 'c.example/x'",
            "from = 'a.example/x:1'\nto = 'c.example/x'\nplatforms = ['a/b']",
        ],
        ["from = 'a.example/x:1'\nto = 'c.example/x'", "from = 'a.example/x:1'\nto = 'c.example/x'\nreferrers = false"],
    ],
)
def test_two_images_for_one_destination_are_refused(tmp_path: Path, entries: list[str]) -> None:
    with pytest.raises(UsageError, match="would both become"):
        planned(tmp_path, "".join(f"[[sync]]\n{entry}\n" for entry in entries), [])


def test_an_image_without_a_tag_needs_one(tmp_path: Path) -> None:
    text = "[[sync]]\nfrom = 'oci:x:an image'\nto = 'c.example/x'"
    with pytest.raises(UsageError, match="no tag") as caught:
        planned(tmp_path, text, [])
    assert "[[sync]] number 1" in caught.value.message
