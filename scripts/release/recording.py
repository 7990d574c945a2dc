"""Record docs/recording.svg: an animation of a terminal in which ocistream runs, for any browser.

The recording is real: the commands run on a pty with the registries and the ssh server of
tests/interop/docs_environment.py, and pyte, a terminal emulator, records the screen. The rate is limited to 200 Mbit/s,
so that the progress is visible. Waits are shown in real time, up to `PAUSE`.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import html
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyte

from tests.certificates import make_certificate
from tests.debian_image import debian_rootfs_image
from tests.images import Descriptor, Layout
from tests.interop.docs_environment import world

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.interop.docs_environment import World

ROOT: Final = Path(__file__).resolve().parents[2]
COLUMNS: Final = 108
ROWS: Final = 20
#: Bytes in a second: 200 Mbit/s.
RATE: Final = 25_000_000
#: Size in bytes of the layer that is new in the next release.
NEW: Final = 60_000_000
#: Seconds: the longest time of a frame, the shortest time between frames, and the time of the last frame.
PAUSE: Final = 1.2
STEP: Final = 0.15
END: Final = 4.0
#: Seconds between two keys.
KEY: Final = 0.03
#: The typed lines, and the percentage at which a command is interrupted (0: never).
SCRIPT: Final = (
    ("# Copy an image through ssh into a remote registry, at 200 Mbit/s.", 0),
    ("ocistream pull debian:12 | ssh host ocistream push localhost:5000/debian:12", 0),
    ("# The next release: only new blobs are sent. Interrupt the copy ...", 0),
    ("ocistream copy debian:13 localhost:5000/debian:13 --via 'ssh host'", 65),
    ("# ... and run it again: it resumes.", 0),
    ("ocistream copy debian:13 localhost:5000/debian:13 --via 'ssh host'", 0),
)
_PROMPT: Final = "$ "
_COLOURS: Final = {
    "default": "#d0d0d0",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
}


@dataclasses.dataclass(frozen=True)
class Frame:
    """A screen and its duration in seconds. Each line is a tuple of runs, and each run a colour and a text."""

    lines: tuple[tuple[tuple[str, str], ...], ...]
    seconds: float


# -- record a terminal -----------------------------------------------------------------------------------------


class Film:
    """A terminal of `ROWS` and `COLUMNS` that records each change."""

    def __init__(self) -> None:
        """Start with an empty screen."""
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._frames: list[Frame] = []
        self._shown = self._lines()
        self._since = time.monotonic()

    def write(self, content: bytes) -> None:
        """Show bytes as a terminal does."""
        self._stream.feed(content)
        now = time.monotonic()
        if now - self._since >= STEP:
            self._keep(now)

    def percentage(self) -> int:
        """Return the percentage of the total that the progress bar shows; 0 without a bar."""
        found = [re.match(r" *([0-9]+)%\|", line) for line in self._screen.display]
        return max((int(match[1]) for match in found if match), default=0)

    def frames(self) -> list[Frame]:
        """Return all frames so far; the last one is shown longer."""
        self._keep(time.monotonic())
        return [*self._frames, Frame(self._shown, END)]

    def _keep(self, now: float) -> None:
        lines = self._lines()
        if lines != self._shown:
            self._frames.append(Frame(self._shown, min(now - self._since, PAUSE)))
            self._shown, self._since = lines, now

    def _lines(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        return tuple(self._line(self._screen.buffer[row]) for row in range(ROWS))

    @staticmethod
    def _line(cells: object) -> tuple[tuple[str, str], ...]:
        runs: list[tuple[str, str]] = []
        for column in range(COLUMNS):
            cell = cells[column]  # type: ignore[index]
            colour = cell.fg if cell.fg in _COLOURS else "default"
            if runs and (runs[-1][0] == colour or cell.data == " "):
                runs[-1] = (runs[-1][0], runs[-1][1] + cell.data)
            else:
                runs.append((colour, cell.data))
        if runs:
            runs[-1] = (runs[-1][0], runs[-1][1].rstrip())
        return tuple(run for run in runs if run[1])


def perform(found: World, folder: Path, film: Film) -> None:
    """Type the lines of the script, run them, and record the terminal."""
    home = folder / "home"
    home.mkdir()
    env = {**found.env, "HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "TERM": "xterm-256color"}
    env["OCISTREAM_LIMIT_RATE"] = str(RATE)
    for line, percentage in SCRIPT:
        film.write(_PROMPT.encode())
        for key in line:
            film.write(key.encode())
            time.sleep(KEY)
        film.write(b"\r\n")
        if not line.startswith("#"):
            _run([*found.inside, "bash", "--noprofile", "--norc", "-c", line], env, folder, percentage, film)
        film.frames()


def _run(line: Sequence[str], env: dict[str, str], folder: Path, percentage: int, film: Film) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        line, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    with process:
        for content in _read(ours):
            film.write(content)
            if percentage and film.percentage() >= percentage:
                film.write(b"^C")
                os.killpg(process.pid, signal.SIGINT)
                percentage = 0
    os.close(ours)


def _read(terminal: int) -> Iterator[bytes]:
    """Yield the output on a terminal until it is closed; yield nothing whenever a frame may be due."""
    while True:
        ready, _, _ = select.select([terminal], [], [], STEP)
        try:
            content = os.read(terminal, 1 << 16) if ready else b""
        except OSError:
            # The other side of the pty is closed (pty(7)).
            return
        yield content


def images(folder: Path) -> dict[str, tuple[Layout, Descriptor]]:
    """Return an image of a Debian root file system, and a next release with one new layer."""
    made = debian_rootfs_image(ROOT / ".cache" / "tests")
    layout = Layout(folder / "debian")
    shutil.copytree(made.layout.path, layout.path, dirs_exist_ok=True)
    layers = layout.read(made.manifest["digest"])["layers"]
    new, _ = layout.random_layer(NEW, seed="next")
    return {"debian:12": (layout, made.manifest), "debian:13": (layout, layout.image([*layers[:-1], new]))}


# -- the SVG file -----------------------------------------------------------------------------------------------

_WIDTH: Final = 8.43
_HEIGHT: Final = 19
_MARGIN: Final = 14
_STYLE: Final = (
    "text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}}"
    "#film{{animation:film {seconds:.2f}s steps(1,end) infinite}}@keyframes film{{{keys}}}"
    # Without animations, show the last frame.
    "@media(prefers-reduced-motion){{#film{{animation:none;transform:translateY(-{last}px)}}}}"
)


def picture(frames: Sequence[Frame]) -> str:
    """Return the frames as SVG: one below the other, in a strip that moves behind a window."""
    height = ROWS * _HEIGHT + 2 * _MARGIN
    width = round(COLUMNS * _WIDTH) + 2 * _MARGIN
    total = sum(frame.seconds for frame in frames)
    keys, elapsed = [], 0.0
    for number, frame in enumerate(frames):
        keys.append(f"{100 * elapsed / total:.3f}%{{transform:translateY(-{number * height}px)}}")
        elapsed += frame.seconds
    style = _STYLE.format(seconds=total, keys="".join(keys), last=(len(frames) - 1) * height)
    texts: dict[tuple[tuple[str, str], ...], str] = {}
    strip = []
    for number, frame in enumerate(frames):
        for row, line in enumerate(frame.lines):
            if line:
                name = texts.setdefault(line, f"t{len(texts)}")
                y = number * height + _MARGIN + row * _HEIGHT + _HEIGHT - 5
                strip.append(f'<use href="#{name}" x="{_MARGIN}" y="{y}"/>')
    shapes = [f'<text id="{name}">{_spans(line)}</text>' for line, name in texts.items()]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
            "<title>A terminal in which ocistream runs</title>",
            f"<desc>{html.escape(chr(10).join(line for line, _ in SCRIPT))}</desc>",
            f"<style>{style}</style>",
            f"<defs>{''.join(shapes)}</defs>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#1e2127"/>',
            # Without animations, show the last frame.
            f'<g id="film" transform="translate(0 -{(len(frames) - 1) * height})">{"".join(strip)}</g>',
            "</svg>\n",
        ]
    )


def _spans(line: tuple[tuple[str, str], ...]) -> str:
    return "".join(f'<tspan fill="{_COLOURS[colour]}">{html.escape(text)}</tspan>' for colour, text in line)


def main() -> None:
    """Make the recording."""
    parser = argparse.ArgumentParser(description="Record a terminal in which ocistream runs.")
    parser.add_argument("output", type=Path, nargs="?", default=ROOT / "docs" / "recording.svg")
    output: Path = parser.parse_args().output
    film = Film()
    with tempfile.TemporaryDirectory(prefix="recording-") as name:
        folder = Path(name)
        with world(folder / "world", make_certificate(folder / "authority"), more=images(folder)) as found:
            # Connect once, so that ssh knows the host key.
            found.run("ssh host true", folder)
            perform(found, folder, film)
    output.write_text(picture(film.frames()))


if __name__ == "__main__":
    main()
