"""Output does not follow a link that another user created in a shared directory (fs.protected_symlinks)."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.serving import serving, stop
from tests.images import Layout
from tests.peers import need
from tests.registry_http import get
from tests.runner import ocistream

Words = Callable[[str, Path], list[str]]

#: Commands that write to LINK.
WRITERS: Final = [
    "copy LAYOUT LINK",
    "copy LAYOUT oci-archive:LINK",
    "copy LAYOUT docker-archive:LINK",
    "copy LAYOUT OUT --result LINK",
]
_OTHER: Final = 65534


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return a directory with the permissions of /tmp."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def planted(link: Path, victim: Path) -> None:
    """Create a link of another user to a file of this one."""
    need("chown", root=True)
    link.symlink_to(victim)
    os.chown(link, _OTHER, _OTHER, follow_symlinks=False)


@pytest.fixture
def words(layout: Layout, tmp_path: Path) -> Words:
    """Return a function that makes the arguments of a command with a link."""
    layout.image([b"layer"], name="app:1")

    def filled(line: str, link: Path) -> list[str]:
        known = {"LAYOUT": layout.path, "LINK": link, "OUT": tmp_path / "out.tar"}
        for name, value in known.items():
            line = line.replace(name, str(value))
        return line.split()

    return filled


@pytest.mark.parametrize("line", WRITERS)
@pytest.mark.parametrize("is_there", [True, False])
def test_another_users_link_is_refused(line: str, is_there: bool, words: Words, shared: Path, tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", shared / "link.tar"
    if is_there:
        victim.write_text("mine")
        victim.chmod(0o600)
    planted(link, victim)
    assertions.failure(ocistream(*words(line, link)), 9, f"cannot write {link}", "another user's symbolic link")
    assert victim.exists() is is_there
    if is_there:
        assert (victim.read_text(), stat.S_IMODE(victim.stat().st_mode)) == ("mine", 0o600)
    assert link.is_symlink()
    assert not (tmp_path / "out.tar").exists()


def test_another_users_link_in_the_place_of_a_volume_is_refused(layout: Layout, shared: Path, tmp_path: Path) -> None:
    layout.image([b"layer"], name="app:1")
    victim, link = tmp_path / "victim", shared / "app.000.tar"
    victim.write_text("mine")
    planted(link, victim)
    result = ocistream("copy", layout.path, shared / "app.%03d.tar", "--split", "1M")
    assertions.failure(result, 9, f"cannot write {link}", "another user's symbolic link")
    assert victim.read_text() == "mine"


def test_an_access_log_is_not_written_through_another_users_link(shared: Path, tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", shared / "access.log"
    victim.write_text("mine")
    planted(link, victim)
    # The command must exit by itself, unlike a server that starts.
    result = ocistream("serve", tmp_path / "images", "--listen=127.0.0.1:0", "--access-log", link, timeout=60)
    assertions.failure(result, 9, f"cannot write {link}", "another user's symbolic link")
    assert result.out == b""
    assert victim.read_text() == "mine"


def test_an_access_log_follows_the_users_own_link(shared: Path, tmp_path: Path) -> None:
    link, log = shared / "access.log", tmp_path / "log"
    link.symlink_to(log)
    log.write_text("before\n")
    for name in (link, Path("/dev/stderr")):
        with serving(tmp_path / "images", "--access-log", name) as (process, host):
            assert get(host, "/v2/")[0] == 200
            err = stop(process)
        assert ('"GET /v2/ HTTP/1.1" 200' in err) is (name != link)
    assert link.is_symlink()
    assert log.read_text().startswith("before\n127.0.0.1 - - [")


@pytest.mark.parametrize("line", WRITERS)
def test_the_users_own_link_is_followed_and_stays(line: str, words: Words, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    between, link = tmp_path / "folder" / "between", shared / "link.tar"
    between.symlink_to("../target")
    link.symlink_to(between)
    succeed(*words(line, link))
    assert link.is_symlink()
    assert between.is_symlink()
    assert (tmp_path / "target").stat().st_size > 0


def test_the_result_is_written_to_a_pipe_that_is_named_by_a_link(layout: Layout, tmp_path: Path) -> None:
    # Like `--result >(command)` in a shell.
    layout.image([b"layer"], name="app:1")
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as got:
        os.set_inheritable(writing, True)
        named = f"/proc/{os.getpid()}/fd/{writing}"
        succeed("copy", layout.path, tmp_path / "out.tar", "--result", named)
        os.close(writing)
        assert json.loads(got.read())["images"]
