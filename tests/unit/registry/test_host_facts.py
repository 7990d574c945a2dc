"""What is learnt of hosts, kept for the next run: a convenience that is never in the way."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.registry.upload_strategy import HostFacts, HostFactsFile, state_directory
from ocistream.streams.files import locked_directory

CHUNKS = HostFacts(sized_method="chunk=4194304")
NOW = 1_700_000_000.0


def state(folder: Path | None, notes: list[str] | None = None, now: float = NOW) -> HostFactsFile:
    return HostFactsFile(folder, (notes if notes is not None else []).append, lambda: now)


@pytest.mark.parametrize(
    ("env", "home", "found"),
    [
        ({"XDG_STATE_HOME": "/x"}, "/home/me", "/x/ocistream"),
        ({"XDG_STATE_HOME": "/x"}, None, "/x/ocistream"),
        ({"XDG_STATE_HOME": ""}, "/home/me", "/home/me/.local/state/ocistream"),
        # XDG base directories: a path that is not absolute is invalid and ignored.
        ({"XDG_STATE_HOME": "x"}, "/home/me", "/home/me/.local/state/ocistream"),
        ({}, "/home/me", "/home/me/.local/state/ocistream"),
        ({}, None, None),
    ],
)
def test_it_is_where_state_belongs(env: dict[str, str], home: str | None, found: str | None) -> None:
    directory = state_directory(env, Path(home) if home else None)
    assert directory == (Path(found) if found else None)


def test_what_is_kept_is_there_in_the_next_run_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    state(folder).write("registry.example:5000", CHUNKS)
    state(folder).write("other.example", HostFacts(unsized_method="chunk=1048576"))
    found = state(folder).read()
    assert found["registry.example:5000"] == HostFacts("chunk=4194304", "", NOW)
    assert found["other.example"] == HostFacts("", "chunk=1048576", NOW)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_turned_out_wrong_is_forgotten(tmp_path: Path) -> None:
    state(tmp_path).write("a.example", CHUNKS)
    state(tmp_path).write("b.example", CHUNKS)
    state(tmp_path).write("a.example", None)
    assert list(state(tmp_path).read()) == ["b.example"]


def test_nothing_is_written_where_there_is_nothing_to_forget(tmp_path: Path) -> None:
    state(tmp_path / "none").write("a.example", None)
    assert not (tmp_path / "none").exists()


def test_what_is_old_or_of_the_future_is_not_known(tmp_path: Path) -> None:
    state(tmp_path).write("a.example", CHUNKS)
    assert state(tmp_path, now=NOW + limits.MAX_STATE_AGE).read()
    assert not state(tmp_path, now=NOW + limits.MAX_STATE_AGE + 1).read()
    assert not state(tmp_path, now=NOW - 100_000).read()


def test_it_is_bounded_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STATE_HOSTS", 3)
    for number in range(5):
        state(tmp_path, now=NOW + number).write(f"{number}.example", CHUNKS)
    assert list(state(tmp_path).read()) == ["2.example", "3.example", "4.example"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"[]",
        b'{"version":2,"hosts":{"a":{"upload":"put","since":1700000000}}}',
        b'{"version":1}',
        b'{"version":1,"hosts":[]}',
        b'{"version":1,"hosts":{"a":1,"b":{},"c":{"since":"x"},"d":{"upload":7,"since":1700000000}}}',
        b'{"version":1,"hosts":{"a":{"since":[]},"b":null}}',
        b'{"version":1,"hosts":{"a":{"upload":"put","since":1' + b"0" * 400 + b"}}}",
        b'{"version":1,"hosts":{"a":{"upload":"put","since":1e999}}}',
        b"x" * (limits.MAX_STATE_FILE + 1),
    ],
)
def test_a_file_that_makes_no_sense_is_as_good_as_none_and_written_anew(tmp_path: Path, content: bytes) -> None:
    notes: list[str] = []
    (tmp_path / "hosts.json").write_bytes(content)
    assert state(tmp_path, notes).read() == {}
    state(tmp_path, notes).write("a.example", CHUNKS)
    assert list(state(tmp_path, notes).read()) == ["a.example"]


def test_that_it_cannot_be_read_or_written_is_a_note_and_no_failure(tmp_path: Path) -> None:
    notes: list[str] = []
    # A file where the folder should be, and a folder where the file should be: root may do anything else.
    (tmp_path / "file").touch()
    state(tmp_path / "file" / "x", notes).write("a.example", CHUNKS)
    assert state(tmp_path / "file" / "x", notes).read() == {}
    (tmp_path / "folder" / "hosts.json").mkdir(parents=True)
    state(tmp_path / "folder", notes).write("a.example", CHUNKS)
    assert state(tmp_path / "folder", notes).read() == {}
    assert any("is not kept" in note for note in notes)
    assert any("is not used" in note for note in notes)


def test_what_others_have_locked_is_no_reason_to_wait_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(limits, "STATE_LOCK_TIMEOUT", 0)
    with locked_directory(tmp_path):
        state(tmp_path, notes).write("a.example", CHUNKS)
    assert "another process has the lock" in notes[0]
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"version":1,"hosts":{"a":{"upload":"put","since":1700000000}}}')
    (tmp_path / "hosts.json").symlink_to(tmp_path / "secret")
    assert state(tmp_path).read() == {}


def test_without_a_place_nothing_is_kept() -> None:
    state(None).write("a.example", CHUNKS)
    assert state(None).read() == {}


def test_several_at_once_lose_nothing(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda number=number: state(tmp_path).write(f"{number}.example", CHUNKS))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(state(tmp_path).read()) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["hosts.json"]


def test_other_files_of_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "x.json").write_text("{}")
    state(tmp_path).write("a.example", CHUNKS)
    assert (tmp_path / "uploads" / "x.json").read_text() == "{}"
    document = json.loads((tmp_path / "hosts.json").read_bytes())
    assert document == {"version": 1, "hosts": {"a.example": {"upload": "chunk=4194304", "since": int(NOW)}}}
