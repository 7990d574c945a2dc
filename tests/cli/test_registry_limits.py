"""Limits of one registry in the configuration or in a sync file: `jobs` and `limit-rate`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.sync_files import entry, sync_file
from tests.faulty_registry import Fault, FaultyRegistry, Stall
from tests.images import Layout
from tests.registry_http import seed
from tests.runner import ocistream, started_fork

SIZE = 100_000


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "layout")
    layout.image([SIZE, SIZE + 1, SIZE + 2, SIZE + 3], name="app")
    return layout


@pytest.fixture
def source(start: Start, layout: Layout) -> FaultyRegistry:
    registry = start()
    (image,) = layout.entries
    seed(layout, image, registry.host, "app", "1")
    return registry


def limited(folder: Path, host: str, key: str) -> Path:
    config = folder / "config.toml"
    config.write_text(f'[registry."{host}"]\n{key}\n')
    return config


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("command", ["pull", "push", "copy from", "copy to", "sync", "sync by the file"])
def test_jobs_limits_the_parallel_blobs_of_one_registry(
    command: str, jobs: int, source: FaultyRegistry, target: FaultyRegistry, layout: Layout, tmp_path: Path
) -> None:
    first, second = f"{source.host}/app:1", f"{target.host}/app:1"
    reads = command in {"pull", "copy from"}
    limited_host = source.host if reads else target.host
    config = limited(tmp_path, limited_host if command != "sync by the file" else "other.example", f"jobs = {jobs}")
    by_file = f'[registry."{limited_host}"]\njobs = {jobs}\n' if command == "sync by the file" else ""
    file = sync_file(tmp_path, entry(first, second) + by_file)
    argv = {
        "pull": ["pull", first, "-o", f"{tmp_path}/out/"],
        "push": ["push", second, "-i", str(layout.path)],
        "copy from": ["copy", first, second],
        "copy to": ["copy", first, second],
    }.get(command, ["sync", str(file)])
    registry = source if reads else target
    method, path = ("GET", "/blobs/") if reads else ("POST", "/blobs/uploads/")
    registry.faults.append(Fault(Stall(), method=method, path=path, times=None))
    with started_fork(*argv, "--jobs=8", "--config", str(config)) as process:
        assertions.wait_for(lambda: len(registry.asked(method, path)) == jobs)
        # Further requests would arrive now.
        time.sleep(0.3)
        assert len(registry.asked(method, path)) == jobs
        registry.faults.clear()
        registry.release()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_a_rate_is_for_one_registry_only(source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path) -> None:
    # 400 kB take about 4 seconds at 100 kB per second.
    config = limited(tmp_path, source.host, 'limit-rate = "100k"')
    argv: list[str | Path] = ["--jobs=1", "--config", config]
    pulled = succeed("pull", f"{source.host}/app:1", "-o", tmp_path / "a.tar", *argv, no_waits=True)
    assert sum(pulled.waits) > 3
    copied = succeed("push", f"{target.host}/app:1", "-i", tmp_path / "a.tar", *argv, no_waits=True)
    assert sum(copied.waits) == 0
    pushed = succeed("push", f"{source.host}/new:1", "-i", tmp_path / "a.tar", *argv, no_waits=True)
    assert sum(pushed.waits) > 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jobs = 0", "jobs is not a whole number from 1 to 32"),
        ("jobs = 33", "jobs is not a whole number from 1 to 32"),
        ("jobs = true", "jobs is not a whole number from 1 to 32"),
        ("limit-rate = 0", "limit-rate is not a rate in bytes per second"),
        ("limit-rate = 'fast'", "limit-rate is not a rate in bytes per second"),
        ("limit-rate = true", "limit-rate is not a rate in bytes per second"),
        ("limit-rate = inf", "limit-rate is not a rate in bytes per second"),
    ],
)
def test_an_invalid_limit_is_named(text: str, words: str, tmp_path: Path) -> None:
    config = limited(tmp_path, "r.example", text)
    assertions.failure(ocistream("config", "check", config), 2, "r.example", words)
    file = sync_file(tmp_path, entry("r.example/a:1", "s.example/b") + f'[registry."r.example"]\n{text}\n')
    assertions.failure(ocistream("sync", file), 2, "r.example", words)


def test_config_show_prints_the_limits(tmp_path: Path) -> None:
    config = limited(tmp_path, "r.example", 'jobs = 2\nlimit-rate = "10M"\nrequests-per-second = 5')
    shown = succeed("config", "show", "--config", config)
    lines = [line.partition("   #")[0] for line in shown.lines()]
    assert {"jobs = 2", 'limit-rate = "10M"', "requests-per-second = 5"} <= set(lines)
