"""Assertions about the result of a run, a directory, and a registry."""

from __future__ import annotations

import json
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.registry import Registry
from tests.runner import Argument, Result, ocistream
from tests.schemas import validate_ours

#: The maximum peak memory of a process with default settings, in bytes.
BUDGET: Final = 48 << 20
#: Seconds to wait for an event; every event takes much less.
_PATIENCE: Final = 60.0
#: Lines before an error: warnings, and on a slow machine progress.
_BESIDE: Final = re.compile(r"ocistream: (warning:|.* blobs?, .* in all$|.* of .*, \d+ %)")


def success(result: Result) -> Result:
    """Assert that a run succeeded, and return its result."""
    assert result.code == 0, (result.argv, result.code, result.err)
    return result


def succeed(*argv: Argument, **options: Any) -> Result:
    """Run ocistream with the options of `runner.ocistream`, assert that it succeeds, and return its result."""
    return success(ocistream(*argv, **options))


def peak(result: Result, code: int = 0, *, bound: int = BUDGET) -> int:
    """Assert the exit code and that the peak memory is below `bound` bytes; return the peak."""
    assert result.code == code, (result.argv, result.code, result.err)
    assert result.peak is not None
    assert result.peak < bound, f"{result.peak / (1 << 20):.1f} MiB: {result.argv}"
    return result.peak


def failure(result: Result, code: int, *words: str) -> None:
    """Assert that a run failed with `code`, with an error of one or two lines with all `words`, and an empty stdout."""
    assert result.code == code, (result.argv, result.code, result.err)
    lines = [line for line in result.err.splitlines() if not _BESIDE.match(line)]
    assert 1 <= len(lines) <= 2, result.err
    assert lines[0].startswith("ocistream: error: "), result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err, (word, result.err)
    assert result.out == b""


def nothing_left(folder: Path, *expected: str) -> None:
    """Assert that a folder has exactly the `expected` files and folders, including hidden ones."""
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(expected)


def no_partial_files(folder: Path) -> None:
    """Assert that no temporary file is left below `folder`."""
    left = [str(path) for path in folder.rglob("*") if path.is_file() and path.name.startswith(".")]
    assert left == []


def no_image(registry: Registry) -> None:
    """Assert that a registry has no tag and no manifest."""
    assert json.loads((registry.layout.path / "index.json").read_bytes())["manifests"] == []


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until `condition` is true."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)


def entries(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file of a tar, in order."""
    with tarfile.open(archive) as tar:
        for entry in tar:
            file = tar.extractfile(entry)
            yield entry.name, file.read() if file else b""


def index_of(archive: Path) -> list[dict[str, Any]]:
    """Return the entries of index.json of an archive or a layout."""
    raw = (archive / "index.json").read_bytes() if archive.is_dir() else dict(entries(archive))["index.json"]
    return list(json.loads(raw)["manifests"])


def names_in(archive: Path) -> list[str]:
    """Return the names of the images in an archive or a layout, from the annotation that all tools use."""
    return [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index_of(archive)]


def json_lines(text: str) -> list[dict[str, Any]]:
    """Return the lines of a stderr as JSON objects; check them with docs/progress.schema.json."""
    parsed = [json.loads(line) for line in text.splitlines()]
    for line in parsed:
        validate_ours(line, "progress")
    return parsed
