"""Run tests in copies of the project, each with its own virtual environment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

#: Starts coverage in each Python of the environment if TESTS_LINES names coverage's settings. A separate variable,
#: because many tests remove those of coverage.
_COUNTING: Final = """\
import os; exec('if "TESTS_LINES" in os.environ:\\n import coverage\\n\
 os.environ["COVERAGE_PROCESS_START"] = os.environ["TESTS_LINES"]\\n\
 coverage.process_startup()\\n del os.environ["COVERAGE_PROCESS_START"]')
"""
_SETTINGS: Final = """\
[run]
source_pkgs = ocistream
patch = _exit
parallel = true
context = ${{TESTS_CONTEXT-}}
data_file = {data}
"""
#: Small files are faster in memory.
_MEMORY: Final = Path("/dev/shm")
_GRACE: Final = 20.0


class Workshop:
    """A copy of a project. Nothing writes to the project itself."""

    def __init__(self, source: Path, folder: Path) -> None:
        """Copy the files that git lists, and install the copy."""
        self._source = source
        self._folder = folder
        self.project = folder / "project"
        self._copy()
        self._python = folder / "environment/bin/python"
        self._install(folder / "environment")

    def _install(self, environment: Path) -> None:
        """Create an environment with the copy and its test dependencies, unless one for the same settings exists."""
        stamp, wanted = environment / "stamp", (self.project / "pyproject.toml").read_text() + sys.version
        if stamp.exists() and stamp.read_text() == wanted:
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", ".[test]"]
        subprocess.run([self._python, *install], cwd=self.project, check=True)
        (next(environment.glob("lib/python*/site-packages")) / "mutants_counting.pth").write_text(_COUNTING)
        stamp.write_text(wanted)

    def _copy(self) -> None:
        """Update the copy. Keep compiled files, with which a run starts in half the time."""
        wanted = listed(self._source)
        for name in wanted:
            if _stamp(self._source / name) != _stamp(self.project / name):
                self.restore(name)
        for path in self.project.rglob("*"):
            relative = path.relative_to(self.project)
            if path.is_file() and "__pycache__" not in relative.parts and str(relative) not in wanted:
                path.unlink()

    def restore(self, name: str) -> None:
        """Copy a file again."""
        (self.project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self._source / name, self.project / name)

    def record(self, test_file: str, seconds: float) -> tuple[list[tuple[str, float]], list[Path]]:
        """Run a test file; return its tests with their seconds, and coverage's files.

        Raises:
            subprocess.TimeoutExpired: the tests were still running after `seconds`.
        """
        data, times, settings = self._folder / "data", self._folder / "times", self._folder / "settings"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        times.write_text("[]")
        settings.write_text(_SETTINGS.format(data=data / "lines"))
        self._pytest([f"--times={times}", test_file], {"TESTS_LINES": str(settings)}, seconds)
        return [(name, spent) for name, spent in json.loads(times.read_text())], sorted(data.iterdir())

    def first_failure(self, tests: Mapping[str, float], seconds: float) -> str:
        """Run tests in order until one fails; return its ID, or "". `tests` has the seconds that each may take.

        Raises:
            subprocess.TimeoutExpired: no test had failed after `seconds`.
        """
        chosen, failed = self._folder / "chosen", self._folder / "failed"
        chosen.write_text(json.dumps(dict(tests)))
        failed.write_text("")
        files = dict.fromkeys(test.partition("::")[0] for test in tests)
        options = ["-x", f"--chosen={chosen}", f"--failed={failed}", *files]
        try:
            code = self._pytest(options, {"PYTHONDONTWRITEBYTECODE": "1"}, seconds)
        except subprocess.TimeoutExpired:
            if not failed.read_text():
                raise
            code = 1
        if code in (0, 5):  # 5: the names of the tests come from the product, and the mutant removed them
            return ""
        return (failed.read_text().splitlines() or [f"pytest, exit code {code}"])[0]

    def _pytest(self, arguments: Sequence[str], environment: Mapping[str, str], seconds: float) -> int:
        options = ["-q", "-p", "no:cacheprovider", "-p", "tests.mutants.plugin", "--no-header", "--tb=no"]
        with (
            _scratch() as scratch,
            subprocess.Popen(
                [self._python, "-m", "pytest", *options, *arguments],
                cwd=self.project,
                env={**os.environ, **environment, "PYTEST_DEBUG_TEMPROOT": str(scratch)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            ) as process,
        ):
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                # On SIGINT, the fixtures stop the processes that they started.
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)
                raise
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def listed(project: Path) -> dict[str, None]:
    """Return the existing files that git tracks or would add."""
    line = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(line, cwd=project, check=True, capture_output=True).stdout.decode().split("\0")
    return dict.fromkeys(name for name in sorted(names) if name and (project / name).is_file())


def _stamp(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_size, found.st_mtime_ns
    return None


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a folder for the tests, and remove it with the files of killed tests."""
    folder = Path(tempfile.mkdtemp(prefix="mutants-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
