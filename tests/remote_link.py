"""A link to another machine, as a command: it forwards both directions, counts bytes, and can be cut."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from tests.runner import forking_command

#: The link's program. The file `cut` has the number of bytes after which it breaks, in the first run except `have`.
#: The remote side then sees the end of its stdin, and its output is discarded. The link ends after the remote side, so
#: that a test knows the remote side's final state.
_LINE = """
import os, pathlib, subprocess, sys, threading
folder = pathlib.Path(sys.argv[1])
verb = sys.argv[3]
cut = folder / "cut"
left = int(cut.read_text()) if cut.exists() and verb != "have" else None
far = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
broken = threading.Event()

def hand_on(source, target):
    while chunk := source.read(1 << 16):
        if not broken.is_set():
            os.write(target, chunk)
    if not broken.is_set():
        os.close(target)

threads = [threading.Thread(target=hand_on, args=pair) for pair in ((far.stdout, 1), (far.stderr, 2))]
for thread in threads:
    thread.start()
passed = 0
try:
    while chunk := os.read(0, 1 << 16):
        if left is not None and passed + len(chunk) > left:
            broken.set()
            chunk = chunk[: left - passed]
            cut.unlink()
        at = 0
        while at < len(chunk):
            at += os.write(far.stdin.fileno(), chunk[at:])
        passed += len(chunk)
        if broken.is_set():
            break
except BrokenPipeError:
    pass
far.stdin.close()
code = far.wait()
with (folder / "passed").open("a") as file:
    file.write(f"{verb} {passed} {code}\\n")
for thread in threads:
    thread.join()
os._exit(255 if broken.is_set() else code)
"""


class Line:
    """One link; `text` is the command for --via. Commands behind it have their own state directory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._script = folder / "ocistream"
        self._script.write_text(f'#!/bin/sh\nexec {shlex.join(forking_command())} "$@"\n')
        self._script.chmod(0o755)
        (folder / "remote_link.py").write_text(_LINE)
        environment = f"env PATH={folder}:{os.environ['PATH']} XDG_STATE_HOME={folder / 'state'}"
        self.text = f"{environment} {sys.executable} -IS {folder / 'remote_link.py'} {folder}"

    def forgets_before(self, verb: str) -> None:
        """Have the remote side lose its state directory once, before it runs this verb."""
        self._script.write_text(
            f"#!/bin/sh\nif [ $1 = {verb} ]; then mv {self._folder / 'state'} {self._folder / 'lost'} 2>&-; fi\n"
            f'exec {shlex.join(forking_command())} "$@"\n'
        )

    def edits(self, script: str) -> None:
        """Edit the returned lists of blobs with sed."""
        ocistream = f'{shlex.join(forking_command())} "$@"'
        text = f"#!/bin/sh\nif [ $1 = have ]; then {ocistream} | sed {shlex.quote(script)}; else exec {ocistream}; fi\n"
        self._script.write_text(text)

    def breaks_after(self, size: int) -> None:
        """Break the link once, after so many bytes of an archive."""
        (self._folder / "cut").write_text(str(size))

    def passed(self) -> list[tuple[str, int, int]]:
        """Return what has passed since the last call: verbs, bytes, and the remote side's exit codes."""
        path = self._folder / "passed"
        if not path.exists():
            return []
        found = [line.split() for line in path.read_text().splitlines()]
        path.unlink()
        return [(verb, int(size), int(code)) for verb, size, code in found]

    def sent(self) -> int:
        """Return the number of bytes of archives sent since the last call."""
        return sum(size for verb, size, _ in self.passed() if verb != "have")

    def records(self) -> list[Path]:
        """Return the remote side's records of uploads."""
        return [path for path in (self._folder / "state" / "ocistream" / "uploads").glob("*") if path.is_file()]
