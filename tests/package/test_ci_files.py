"""The CI files that docs/ci.md shows are well formed and their commands work, and so is our own workflow."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faulty_registry import FaultyRegistry
from tests.images import Layout, two_platforms
from tests.package.conftest import ROOT
from tests.registry_http import manifest_digest, seed

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs/ci.md").read_text()
SECTION = PAGE.partition("\n## Pull in one job, push in another\n")[2].partition("\n## ")[0]
GITHUB, GITLAB = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
#: YAML 1.1, which PyYAML reads, takes the word `on` for this.
ON = True


def steps(job: Mapping[str, Any]) -> list[str]:
    """Return what a job's steps run, or use."""
    return [step.get("run") or step["uses"] for step in job["steps"]]


def test_the_workflow_runs_scripts_test_on_each_python() -> None:
    assert set(WORKFLOW[ON]) == {"push", "pull_request"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    (job,) = WORKFLOW["jobs"].values()
    assert job["container"]["image"] == "python:${{ matrix.python }}-bookworm"
    assert steps(job)[-1] == "scripts/test"
    assert job["steps"][-1]["env"] == {"PYTHON": "python${{ matrix.python }}"}


def test_githubs_jobs_hand_the_archive_on() -> None:
    jobs = GITHUB["jobs"]
    assert set(GITHUB) == {"name", ON, "permissions", "jobs"}
    assert list(jobs) == ["pull", "push"]
    assert jobs["push"]["needs"] == "pull"
    uploads = next(step for step in jobs["pull"]["steps"] if "upload-artifact@" in step.get("uses", ""))
    downloads = next(step for step in jobs["push"]["steps"] if "download-artifact@" in step.get("uses", ""))
    assert uploads["with"]["name"] == downloads["with"]["name"]
    assert f"-o {uploads['with']['path']} " in jobs["pull"]["steps"][1]["run"]
    for job in jobs.values():
        assert job["runs-on"]
        (step,) = (step for step in job["steps"] if "run" in step)
        assert set(step["env"]) == {"OCISTREAM_USERNAME", "OCISTREAM_PASSWORD"}
        assert all(value.startswith("${{ secrets.") for value in step["env"].values())


def test_gitlabs_jobs_hand_the_archive_on() -> None:
    assert GITLAB["stages"] == [GITLAB["pull"]["stage"], GITLAB["push"]["stage"]]
    assert GITLAB["push"]["needs"] == ["pull"]
    (path,) = GITLAB["pull"]["artifacts"]["paths"]
    assert f"-o {path} " in GITLAB["pull"]["script"][0]
    for job in (GITLAB["pull"], GITLAB["push"]):
        assert set(job["variables"]) == {"OCISTREAM_USERNAME", "OCISTREAM_PASSWORD"}
        assert all(value.startswith("$") for value in job["variables"].values())


@pytest.mark.parametrize("kind", ["github", "gitlab"])
def test_their_commands_carry_an_image(
    kind: str, start: Callable[..., FaultyRegistry], layout: Layout, zipapp: Path, tmp_path: Path
) -> None:
    if kind == "github":
        lines = [step for job in GITHUB["jobs"].values() for step in steps(job) if not step.startswith("actions/")]
    else:
        lines = [line for name in ("pull", "push") for line in GITLAB[name]["script"]]
    assert len(lines) == 2
    here, there = start(), start()
    digest = seed(layout, two_platforms(layout, name="app"), here.host, "app", "2")
    for line in lines:
        python, program, *words = shlex.split(line)
        assert (python, program) == ("python3", "ocistream.pyz")
        words = [word.replace("registry.example.com", here.host) for word in words]
        words = [word.replace("mirror.example.com", there.host) for word in words]
        subprocess.run([sys.executable, "-I", zipapp, *words], cwd=tmp_path, check=True)
    assert manifest_digest(there.host, "app", "2") == digest


def test_no_host_is_named_that_is_not_for_examples() -> None:
    # A word in the place of a name is what people fill in.
    ours = {"github.com", "docker.io", "USER"}
    pages = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    texts = [README, *pages, (ROOT / ".github" / "workflows" / "test.yml").read_text()]
    hosts = {host for text in texts for host in re.findall(r"https?://([\w.-]+)", text)}
    assert {host for host in hosts if not host.endswith(".example.com")} <= ours
