"""The table of machine faults: the outcome of each command with each fault.

A cell without an outcome has a reason (`verify` writes nothing), so that no cell is empty.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Mapping
from typing import Any, Final

MIB: Final = 1 << 20
PULL_FILE, PULL_DIR, PULL_OUT = "pull -o FILE", "pull -o DIR/", "pull > FILE"
PUSH_FILE, PUSH_DIR, PUSH_IN = "push -i FILE", "push -i DIR", "push < FILE"
COPY_FILE, COPY_DIR = "copy DIR FILE", "copy FILE DIR"
VERIFY_FILE, VERIFY_DIR = "verify FILE", "verify DIR"

#: Arguments by command: HOST has the image as app:1, TO is empty, MADE and FILE have the image, DISK is written to.
COMMANDS: Final[Mapping[str, str]] = {
    PULL_FILE: "pull HOST/app:1 -o DISK/out.tar",
    PULL_DIR: "pull HOST/app:1 -o DISK/out/",
    PULL_OUT: "pull HOST/app:1",
    PUSH_FILE: "push -i FILE TO/new:1",
    PUSH_DIR: "push -i MADE TO/new:1",
    PUSH_IN: "push TO/new:1",
    COPY_FILE: "copy MADE DISK/out.tar",
    COPY_DIR: "copy FILE oci:DISK/out",
    VERIFY_FILE: "verify FILE",
    VERIFY_DIR: "verify MADE",
}
PULLS: Final = (PULL_FILE, PULL_DIR, PULL_OUT)
FROM_DIR: Final = (PUSH_DIR, COPY_FILE, VERIFY_DIR)
WRITING: Final = (PULL_FILE, PULL_DIR, PULL_OUT, COPY_FILE, COPY_DIR)

#: The exit code, UNSEEN if the fault has no effect, or the reason why there is no outcome.
Outcome = int | str
UNSEEN: Final = "unseen"
WRITES_NOTHING: Final = "writes nothing"
READS_NO_FILE: Final = "reads no file"
#: Commands that together read and write a registry, a pipe, a file and a directory.
SOME: Final = frozenset({PULL_DIR, PULL_OUT, PUSH_IN, COPY_FILE, VERIFY_FILE})
THE_SHELLS: Final = "the shell's"
ALONE: Final = "no layout"
#: Reasons why a cell has no outcome.
REASONS: Final = frozenset({WRITES_NOTHING, READS_NO_FILE, THE_SHELLS, ALONE})


@dataclasses.dataclass(frozen=True)
class Trouble:
    """One fault. `plan` is for faulty_machine/sitecustomize.py, `disk` is the kind of DISK.

    `closed` is a stream (0, 1 or 2) that is closed. With `unread`, the reader of stdout has closed it. `together` is
    what a second run does at the same time. With `visible`, the work is done although the command fails: only its last
    line was lost. A `rare` fault has the effect of another one: a usual run tests it for `SOME` of the commands, a
    nightly run for all.
    """

    name: str
    outcomes: Mapping[str, Outcome]
    plan: Mapping[str, Any] | None = None
    closed: int | None = None
    unread: bool = False
    together: str = ""
    disk: str = "folder"
    visible: bool = False
    rare: bool = False


def _by(*pairs: tuple[Outcome, tuple[str, ...]], others: Outcome = UNSEEN) -> dict[str, Outcome]:
    found = dict.fromkeys(COMMANDS, others)
    for outcome, commands in pairs:
        found |= dict.fromkeys(commands, outcome)
    return found


def _interrupted(name: str, number: str, code: Outcome, after: int, *, rare: bool = False) -> list[Trouble]:
    """Return a signal after `after` bytes: written by commands that write, read by the others."""
    written, read = _by((code, WRITING), others=""), _by(("", WRITING), others=code)
    return [
        Trouble(name, {command: outcome for command, outcome in outcomes.items() if outcome != ""},
                plan={"at": at, "after": after, "do": "signal", "signal": number}, rare=rare)
        for at, outcomes in (("write", written), ("read", read))
    ]  # fmt: skip


_FULL: Final = _by((9, WRITING), others=WRITES_NOTHING)

TROUBLES: Final = [
    Trouble("disk full", _FULL, disk="small"),
    Trouble("quota used up", _FULL, plan={"at": "write", "after": MIB, "errno": errno.EDQUOT}, rare=True),
    Trouble("disk that fails", _FULL, plan={"at": "write", "after": MIB, "errno": errno.EIO}, rare=True),
    Trouble("read-only", _by((9, (PULL_FILE, PULL_DIR, COPY_FILE, COPY_DIR)), (THE_SHELLS, (PULL_OUT,))),
            disk="read-only"),
    Trouble("source fails", _by((READS_NO_FILE, PULLS), others=9),
            plan={"at": "read", "after": MIB, "errno": errno.EIO}),
    Trouble("source shrinks", _by((READS_NO_FILE, PULLS), (6, (PUSH_IN,)), others=5),
            plan={"at": "read", "after": MIB, "do": "shrink"}),
    Trouble("source grows", _by((READS_NO_FILE, PULLS), (5, FROM_DIR), (6, (PUSH_IN,)), others=UNSEEN),
            plan={"at": "read", "after": MIB, "do": "grow"}),
    Trouble("source replaced", _by((READS_NO_FILE, PULLS)), plan={"at": "read", "after": MIB, "do": "replace"},
            rare=True),
    Trouble("stdout closed", _by((2, (PULL_OUT,))), closed=1, rare=True),
    Trouble("stdout unread", _by(others=141), unread=True, visible=True),
    Trouble("stdin closed", _by((2, (PUSH_IN,))), closed=0, rare=True),
    Trouble("stderr closed", _by(), closed=2, rare=True),
    *_interrupted("SIGINT at once", "SIGINT", 130, 0, rare=True),
    *_interrupted("SIGINT midway", "SIGINT", 130, MIB),
    *_interrupted("SIGTERM midway", "SIGTERM", 143, MIB, rare=True),
    *_interrupted("SIGPIPE midway", "SIGPIPE", UNSEEN, MIB, rare=True),
    # Two runs that write to one file of the shell overwrite each other's output.
    Trouble("two at once", _by((THE_SHELLS, (PULL_OUT,))), together="TWICE"),
    Trouble("two images", _by((UNSEEN, (PULL_DIR, COPY_DIR)), others=ALONE), together="TWO IMAGES"),
    Trouble("two of one name", _by((UNSEEN, (PULL_DIR, COPY_DIR)), others=ALONE), together="ONE NAME"),
]  # fmt: skip
