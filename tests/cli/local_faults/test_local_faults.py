"""Faults of the machine: every command ends with the right exit code, or is not affected.

A failed command creates no image, leaves only files that can be resumed, and succeeds when it is re-run.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.local_faults.conftest import note
from tests.cli.local_faults.fault_table import (
    COMMANDS,
    MIB,
    PULL_DIR,
    PULL_OUT,
    PUSH_IN,
    REASONS,
    SOME,
    TROUBLES,
    UNSEEN,
    Trouble,
)
from tests.cli.local_faults.workspace import Place, place_of
from tests.faulty_registry import Fault, Stall
from tests.images import Layout
from tests.peers import need
from tests.registry_http import seed
from tests.runner import Result, ocistream, started_fork

_MACHINE: Final = Path(__file__).with_name("faulty_machine")

pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.fixture
def place(start: Start, layout: Layout, tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    """Return a place without a fault."""
    return place_of(start(), start(), layout, tmp_path, request.node.callspec.params["name"])


def cells(*, together: bool) -> list[Any]:
    """Return the cells with an outcome as parameters of a test: those of one run, or of two parallel runs."""
    return [
        pytest.param(
            *(trouble, name, outcome),
            id=f"{trouble.name}-{name}".replace(" ", "_"),
            marks=[pytest.mark.nightly] if trouble.rare and name not in SOME else [],
        )
        for trouble in TROUBLES
        if bool(trouble.together) is together
        for name, outcome in trouble.outcomes.items()
        if outcome not in REASONS
    ]


def test_no_cell_is_empty(request: pytest.FixtureRequest) -> None:
    known: dict[str, set[str]] = {}
    for trouble in TROUBLES:
        known.setdefault(trouble.name, set()).update(trouble.outcomes)
        for name, outcome in trouble.outcomes.items():
            if outcome in REASONS:
                note(request, trouble.name, name, outcome)
    assert all(row == set(COMMANDS) for row in known.values()), known


@contextlib.contextmanager
def disk_of(trouble: Trouble, place: Place) -> Iterator[None]:
    """Make the place's disk small or read-only while the block runs."""
    if trouble.disk == "folder":
        yield
        return
    need("mount", root=True)
    options = "size=1m" if trouble.disk == "small" else "ro"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place.disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place.disk], check=True)


def run_in(trouble: Trouble, name: str, place: Place) -> Result:
    """Run a command with the fault."""
    argv = place.argv(name)
    stdin = place.file if name == PUSH_IN else None
    stdout = place.disk / "out.tar" if name == PULL_OUT else None
    if trouble.unread:
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb"):
            return ocistream(*argv, stdin=stdin, stdout=write)
    if trouble.closed is not None:
        return ocistream(*argv, stdin=stdin, stdout=stdout, closed=[trouble.closed])
    if trouble.plan is None:
        return ocistream(*argv, stdin=stdin, stdout=stdout)
    plan = {"OCISTREAM_TEST_MACHINE": json.dumps(trouble.plan)}
    return ocistream(*argv, stdin=stdin, stdout=stdout, env=plan, machine=_MACHINE)


@pytest.mark.parametrize(("trouble", "name", "outcome"), cells(together=False))
def test_a_run_with_a_fault_has_the_outcome_in_the_table(
    trouble: Trouble, name: str, outcome: int | str, place: Place, request: pytest.FixtureRequest
) -> None:
    note(request, trouble.name, name, outcome)
    with disk_of(trouble, place):
        result = run_in(trouble, name, place)
        assert result.code == (0 if outcome == UNSEEN else outcome), result.err
        if outcome == UNSEEN or (trouble.visible and name != PULL_OUT):
            place.check_done(name)
            assert place.strays(done=True) == []
            return
        assert place.strays() == []
        said = [line for line in result.err.splitlines() if not line.startswith("ocistream: moved")]
        # A closed stdout has no message.
        assert (said == []) == (result.code == 141), result.err
        assert all(line.startswith("ocistream: error: ") for line in said[:1])
        assert len(said) <= 2, result.err
        if result.code == 5 and not name.startswith("verify"):
            assert any(
                "is damaged, or changed during the run: check it with `ocistream verify " in line for line in said
            ), result.err
        assert "Traceback" not in result.err
        assert place.shown(name) is None
    if not name.startswith("verify"):
        check_again(name, place)


def check_again(name: str, place: Place) -> None:
    """Run the same command without the fault: it completes the work and leaves no other files."""
    place.restore()
    succeed(
        *place.argv(name),
        stdin=place.file if name == PUSH_IN else None,
        stdout=place.disk / "out.tar" if name == PULL_OUT else None,
    )
    place.check_done(name)
    assert place.strays(done=True) == []


@pytest.mark.parametrize(("trouble", "name", "outcome"), cells(together=True))
def test_two_parallel_runs_do_not_affect_each_other(
    trouble: Trouble, name: str, outcome: str, place: Place, layout: Layout, request: pytest.FixtureRequest
) -> None:
    note(request, trouble.name, name, outcome)
    first, second = place.argv(name), place.argv(name)
    digests = [place.digest]
    if trouble.together != "TWICE":
        other = layout.image([MIB, b"another one"])
        image = {"TWO IMAGES": "app:2", "ONE NAME": "other:1"}[trouble.together]
        seed(layout, other, place.registry.host, *image.split(":"))
        digests.append(other["digest"])
        to = f"oci:{place.disk}/out" + (":one" if trouble.together == "ONE NAME" else "")
        first, second = ["copy", first[1], to], ["copy", f"{place.registry.host}/{image}", to]
    if name == PULL_DIR:
        # Both pulls are in the middle before either ends.
        place.registry.faults = [Fault(Stall(after=1000), "GET", "/blobs/", times=2, skip=0)]
    with (
        started_fork(*first, stdin=_source(place, name)) as one,
        started_fork(*second, stdin=_source(place, name)) as two,
    ):
        if name == PULL_DIR:
            assertions.wait_for(lambda: sum(request.fault is not None for request in place.registry.requests) == 2)
            place.registry.release()
        errors = [process.communicate(timeout=60)[1].decode() for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], errors
    assert place.strays(done=True) == []
    if trouble.together == "TWICE":
        place.check_done(name)
        return
    there = [entry["digest"] for entry in assertions.index_of(place.disk / "out")]
    if trouble.together == "ONE NAME":
        assert len(there) == 1
        assert there[0] in digests
    else:
        assert sorted(there) == sorted(digests)
    succeed("verify", place.disk / "out")


def _source(place: Place, name: str) -> int:
    """Return a descriptor for a command's stdin."""
    return os.open(place.file if name == PUSH_IN else os.devnull, os.O_RDONLY)
