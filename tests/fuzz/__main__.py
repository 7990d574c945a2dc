"""`scripts/fuzz`: fuzz for a given time. tests/fuzz/test_fuzz.py does the same with few inputs."""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import secrets
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.fuzz.coverage_guide import Guide
from tests.fuzz.engine import Find, Run
from tests.fuzz.monitor import PATIENCE
from tests.fuzz.targets import TARGETS

_ROOT: Final = Path(__file__).resolve().parents[2]
_KEPT: Final = _ROOT / ".cache" / "fuzz"
#: Seconds for one turn of a target.
_TURN: Final = 20.0


def main() -> int:
    """Fuzz the targets in turn, and print the finds. Return 1 if there are any."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz every parser of untrusted input.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together (default: 60)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="default: a random one")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="only check this input, and print its traceback")
    options = parser.parse_args()
    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    names = options.targets or list(TARGETS)
    if options.replay is not None:
        return _replay(names, options.replay)
    guide = Guide() if Guide.is_possible() else None
    if guide is not None:
        guide.start()
    print(f"seed {options.seed}, {'guided by branches' if guide else 'not guided (Python 3.12 and later are)'}")
    total, found = 0, dict[tuple[str, str], Find]()
    with tempfile.TemporaryDirectory() as folder:
        ends_at, turn = time.monotonic() + options.seconds, 0
        share = max(1.0, min(_TURN, options.seconds / len(names)))
        while (left := ends_at - time.monotonic()) > 0:
            name, seed = names[turn % len(names)], options.seed + turn // len(names)
            total += _turn(name, seed, Path(folder) / str(turn), guide, min(left, share), found)
            turn += 1
    print(f"{total} inputs, {len(found)} faults" + (f", {guide.total} lines and branches reached" if guide else ""))
    return 1 if found else 0


def _turn(
    name: str, seed: int, folder: Path, guide: Guide | None, seconds: float, found: dict[tuple[str, str], Find]
) -> int:
    """Fuzz one target for some seconds, and return the number of inputs."""
    kept = _KEPT / "corpus" / name
    kept.mkdir(parents=True, exist_ok=True)
    count, ends_at = 0, time.monotonic() + seconds
    with Run(TARGETS[name], folder, seed, guide) as run:
        before = [path.read_bytes() for path in sorted(kept.iterdir())] if guide else []
        for data in before:
            run.look(data)
        for data in run.inputs():
            if time.monotonic() > ends_at:
                break
            # An input that cannot be interrupted ends the process with a stack trace; the input is already on disk.
            (_KEPT / "current").write_bytes(data)
            faulthandler.dump_traceback_later(3 * PATIENCE, exit=True)
            find = run.look(data)
            faulthandler.cancel_dump_traceback_later()
            count += 1
            if find is not None and (name, find.problem) not in found:
                found[name, find.problem] = find
                _keep(run.smaller(find))
        for data in run.corpus:
            (kept / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    print(f"{name}: {count} inputs", flush=True)
    return count


def _keep(find: Find) -> None:
    folder = _KEPT / "found" / find.target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(find.data).hexdigest()[:16]
    path.write_bytes(find.data)
    print(f"FOUND {find.target}: {find.problem}\n  {path.relative_to(_ROOT)}\n{find.trace}", flush=True)


def _replay(names: list[str], path: Path) -> int:
    data, code = path.read_bytes(), 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder, Run(TARGETS[name], Path(folder)) as run:
            find = run.look(data)
        if find is not None:
            print(f"{name}: {find.problem}\n{find.trace}")
            code = 1
    return code


if __name__ == "__main__":
    raise SystemExit(main())
