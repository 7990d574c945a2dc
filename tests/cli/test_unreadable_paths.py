"""A path that cannot be examined is a disk error with the path and the cause, for every option."""

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.archives import items_of, tar_of
from tests.cli import assertions
from tests.docs_examples import ROOT
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout
from tests.registry_http import seed
from tests.runner import Argument, ocistream

Words = Callable[[str, Argument], list[str]]

#: Commands: HOST has app:1, LAYOUT and FILE have the image, OUT is writable, and PATH cannot be examined.
COMMANDS: Final = [
    "pull HOST/app:1 -o PATH",
    "pull HOST/app:1 -o PATH/",
    "pull HOST/app:1 -o oci:PATH",
    "pull HOST/app:1 -o PATH --format docker-archive",
    "pull HOST/app:1 -o PATH --split 1M",
    "pull HOST/app:1 -o OUT --result PATH",
    "pull HOST/app:1 -o OUT --have PATH",
    "pull HOST/app:1 -o OUT --base PATH",
    "pull HOST/app:1 -o OUT --only PATH",
    "pull HOST/app:1 -o OUT --config PATH",
    "pull HOST/app:1 -o OUT --authfile PATH",
    "pull HOST/app:1 --from-byte 5 -o PATH",
    "push -i PATH HOST/new:1",
    "push -i FILE -i PATH HOST/new:1",
    "copy PATH oci:OUT",
    "copy oci:PATH oci:OUT",
    "copy docker-archive:PATH oci:OUT",
    "copy LAYOUT PATH",
    "verify PATH",
    "verify FILE PATH",
    "inspect PATH",
    "have PATH",
    "have --among PATH LAYOUT",
    "gc PATH",
    "rm PATH app",
    "serve PATH",
    "serve PATH --read-only",
    "sync PATH",
    "config check PATH",
]


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return a small image."""
    return layout.image([b"layer"], name="app")


@pytest.fixture
def words(served: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path) -> Words:
    """Return a function that makes the arguments of a command with a path."""
    seed(layout, image, served.host, "app", "1")
    file = tmp_path / "file.tar"
    file.write_bytes(tar_of(items_of(layout)))
    known = {"HOST": served.host, "LAYOUT": layout.path, "FILE": file, "OUT": tmp_path / "out"}

    def filled(line: str, path: Argument) -> list[str]:
        for name, value in {**known, "PATH": path}.items():
            line = line.replace(name, str(value))
        return line.split()

    return filled


def test_a_path_below_a_closed_directory(words: Words, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    for line in COMMANDS:
        result = ocistream(*words(line, closed / "x"), unprivileged=True)
        assertions.failure(result, 9, f"{closed / 'x'}", os.strerror(errno.EACCES), "check the permissions")
    closed.chmod(0o700)
    assert list(closed.iterdir()) == []


def test_rm_of_a_relative_path_below_a_closed_directory(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    result = ocistream("rm", "closed/x", "app", unprivileged=True, cwd=tmp_path)
    assertions.failure(result, 9, "closed/x", os.strerror(errno.EACCES), "check the permissions")


def test_a_symbolic_link_to_itself(words: Words, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for line in COMMANDS:
        assertions.failure(ocistream(*words(line, loop / "x")), 9, f"{loop / 'x'}", os.strerror(errno.ELOOP))


@pytest.mark.parametrize(
    ("variable", "code"),
    # A run continues without its cache, and reports it.
    [("SSL_CERT_FILE", 9), ("OCISTREAM_CONFIG", 9), ("OCISTREAM_CACHE", 0)],
)
def test_a_variable_that_names_a_path_below_a_closed_directory(
    variable: str, code: int, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    monkeypatch.setenv(variable, str(closed / "x"))
    result = ocistream(*words("pull HOST/app:1 -o OUT", closed), unprivileged=True)
    closed.chmod(0o700)
    assert result.code == code, result.err
    assert f"{closed / 'x'}" in result.err
    assert os.strerror(errno.EACCES) in result.err


def test_a_working_directory_that_was_deleted(words: Words, tmp_path: Path) -> None:
    for line in COMMANDS:
        # Neither the path nor a directory for it exists.
        (tmp_path / "gone").mkdir()
        result = ocistream(*words(line, "./x"), cwd=tmp_path / "gone", deletes_cwd=True)
        is_misused = "--from-byte" in line
        missing = 3 if "--authfile" in line else 4
        assert result.code in ({2} if is_misused else {missing, 9}), (line, result.err)
        assert "internal error" not in result.err
        if " -o PATH" in line and not is_misused:
            assert "the working directory was deleted" in result.err


def test_a_name_that_is_too_long(words: Words, tmp_path: Path) -> None:
    for line in COMMANDS:
        result = ocistream(*words(line, tmp_path / ("x" * 300)))
        assert result.code in {4, 9}, (line, result.err)
        assert "internal error" not in result.err


def test_a_thread_that_cannot_be_started_is_reported_in_a_line(words: Words, tmp_path: Path) -> None:
    machine = tmp_path / "machine"
    machine.mkdir()
    (machine / "sitecustomize.py").write_text(
        "import threading\n"
        'def start(self): raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = start\n"
    )
    result = ocistream(*words("pull HOST/app:1 -o PATH/", tmp_path / "x"), env={"PYTHONPATH": str(machine)})
    assertions.failure(result, 1, "cannot start another thread", "ulimit -u", "--jobs 1")


def test_paths_are_examined_in_one_place() -> None:
    # Elsewhere `Path.exists` and similar methods would raise an error that is not an OcistreamError.
    examining = {"exists", "is_dir", "is_file", "is_symlink", "is_fifo", "is_socket", "cwd", "resolve", "absolute"}
    found = []
    for path in (ROOT / "ocistream").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in examining and not node.args and not node.keywords:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    # These are methods of ocistream's classes, not of `Path`.
    assert [one for one in found if not one.endswith((": self.exists()", "_cache.exists()", ".layout.exists()"))] == []
