"""The project's workflow, action and template for CI, and the CI files in docs/ci.md: their form and their commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.faulty_auth import Basic
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout, small_image, two_platforms
from tests.package.conftest import ROOT
from tests.registry_http import basic, manifest_digest, seed

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs/ci.md").read_text()
SECTION = PAGE.partition("\n## Pull in one job, push in another\n")[2].partition("\n## ")[0]
GITHUB, GITLAB = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
INSTALLING = PAGE.partition("\n## Install ocistream in a job\n")[2].partition("\n## ")[0]
USES_ACTION, USES_TEMPLATE = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", INSTALLING, re.DOTALL))
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
TEMPLATE = yaml.safe_load((ROOT / "templates" / "ocistream.gitlab-ci.yml").read_text())
#: PyYAML reads YAML 1.1, in which the word `on` is a boolean.
ON = True


def steps(job: Mapping[str, Any]) -> list[str]:
    """Return the commands or actions of a job's steps."""
    return [step.get("run") or step["uses"] for step in job["steps"]]


def test_the_workflow_runs_scripts_test_on_each_python() -> None:
    assert set(WORKFLOW[ON]) == {"push", "pull_request"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    (job,) = WORKFLOW["jobs"].values()
    assert job["container"]["image"] == "python:${{ matrix.python }}-bookworm"
    assert steps(job)[-1] == "scripts/test"
    assert job["steps"][-1]["env"] == {"PYTHON": "python${{ matrix.python }}"}


def test_github_jobs_pass_the_archive_as_an_artifact() -> None:
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


def test_gitlab_jobs_pass_the_archive_as_an_artifact() -> None:
    assert GITLAB["stages"] == [GITLAB["pull"]["stage"], GITLAB["push"]["stage"]]
    assert GITLAB["push"]["needs"] == ["pull"]
    (path,) = GITLAB["pull"]["artifacts"]["paths"]
    assert f"-o {path} " in GITLAB["pull"]["script"][0]
    for job in (GITLAB["pull"], GITLAB["push"]):
        assert set(job["variables"]) == {"OCISTREAM_USERNAME", "OCISTREAM_PASSWORD"}
        assert all(value.startswith("$") for value in job["variables"].values())


@pytest.mark.parametrize("kind", ["github", "gitlab"])
def test_the_commands_of_the_ci_files_copy_an_image(
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


def test_the_documents_name_only_example_hosts() -> None:
    # USER is a placeholder.
    ours = {"github.com", "docker.io", "USER"}
    pages = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    texts = [README, *pages, (ROOT / ".github" / "workflows" / "test.yml").read_text()]
    hosts = {host for text in texts for host in re.findall(r"https?://([\w.-]+)", text)}
    assert {host for host in hosts if not host.endswith(".example.com")} <= ours


#: A password with characters that a shell would interpret.
SECRET: Final = "a 'secret' $HOME `id` \\"


@pytest.fixture
def protected(start: Callable[..., FaultyRegistry], layout: Layout) -> FaultyRegistry:
    """Return a registry that requires a password and has the image app:2."""
    registry = start(auth=Basic("ada", SECRET))
    seed(layout, small_image(layout), registry.host, "app", "2", headers=basic("ada", SECRET))
    return registry


class Job:
    """A CI job: its directory, and the environment of its shells."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        programs = folder / "programs"
        programs.mkdir()
        # A link, so that PATH does not have the ocistream next to this Python.
        (programs / "python3").symlink_to(sys.executable)
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        # Compiling all modules takes longer than installing them. pip negates this option, so its value is false.
        pip["PIP_NO_COMPILE"] = "no"
        self.environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder), **pip, **environment}

    def run(self, script: str, shell: Sequence[str], **environment: str) -> str:
        """Run a script and return its output."""
        done = subprocess.run(
            [*shell, script],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the source that a job installs: a file in its directory, or a wheel for pip."""
    if request.param == "wheel":
        return str(request.getfixturevalue("wheel"))
    shutil.copy(request.getfixturevalue("zipapp"), tmp_path / "ocistream.pyz")
    return "ocistream.pyz"


class TestAction:
    #: The runner's command line for the shell `bash`.
    SHELL: Final = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c")

    def test_the_page_uses_and_explains_each_input(self) -> None:
        (step,) = (step for step in USES_ACTION["jobs"]["archive"]["steps"] if "/ocistream@" in step.get("uses", ""))
        assert set(step["with"]) == set(ACTION["inputs"])
        assert [name for name in ACTION["inputs"] if f"`{name}`" not in INSTALLING] == []

    def test_inputs_are_variables_and_not_part_of_a_script(self) -> None:
        for step in ACTION["runs"]["steps"]:
            assert "${{" not in step["run"]
            assert set(step["env"].values()) <= {f"${{{{ inputs.{name} }}}}" for name in ACTION["inputs"]}

    @pytest.mark.parametrize("source", ["file", "wheel"], indirect=True)
    def test_the_action_installs_ocistream_and_logs_in_for_the_next_step(
        self, source: str, protected: FaultyRegistry, tmp_path: Path
    ) -> None:
        files = {name: tmp_path / name for name in ("GITHUB_PATH", "GITHUB_ENV")}
        fixed = {"RUNNER_TEMP": str(tmp_path / "temp"), "GITHUB_ACTION_PATH": str(ROOT)}
        job = Job(tmp_path, **fixed, **{name: str(path) for name, path in files.items()})
        inputs = {"source": source, "registry": protected.host, "username": "ada", "password": SECRET}
        for step in ACTION["runs"]["steps"]:
            named = {name: inputs[value.split(".")[1].split()[0]] for name, value in step["env"].items()}
            job.run(step["run"], self.SHELL, **named)
            for path in files["GITHUB_PATH"].read_text().split():
                job.environment["PATH"] = f"{path}:{job.environment['PATH']}"
        name, _, value = files["GITHUB_ENV"].read_text().strip().partition("=")
        job.environment[name] = value
        assert Path(value).is_relative_to(tmp_path / "temp")
        line = USES_ACTION["jobs"]["archive"]["steps"][-1]["run"].replace("registry.example.com", protected.host)
        assert job.run(line, self.SHELL).startswith(f"{protected.host}/app:2@sha256:")
        assert not (tmp_path / ".docker").exists()


class TestTemplate:
    def test_the_page_includes_the_template_and_names_its_variable(self) -> None:
        (included,) = USES_TEMPLATE["include"]
        assert (ROOT / included["local"]).is_file()
        assert USES_TEMPLATE["archive"]["extends"] in TEMPLATE
        assert [name for name in TEMPLATE[".ocistream"]["variables"] if f"`{name}`" not in INSTALLING] == []

    @pytest.mark.parametrize(("source", "has_registry"), [("file", False), ("wheel", True)], indirect=["source"])
    def test_the_template_installs_ocistream_logs_in_and_cleans_up(
        self, source: str, has_registry: bool, protected: FaultyRegistry, tmp_path: Path
    ) -> None:
        template = TEMPLATE[".ocistream"]
        builds = tmp_path / "builds"
        of_project = {"CI_REGISTRY": protected.host, "CI_REGISTRY_USER": "ada", "CI_REGISTRY_PASSWORD": SECRET}
        job = Job(
            tmp_path,
            **template["variables"] | {"INSTALL_OCISTREAM_FROM": source},
            CI_BUILDS_DIR=str(builds),
            CI_JOB_ID="7",
            CI_REGISTRY_IMAGE=f"{protected.host}/app",
            **(of_project if has_registry else {"OCISTREAM_USERNAME": "ada", "OCISTREAM_PASSWORD": SECRET}),
        )
        # The runner runs both scripts in one shell.
        lines = ["set -e", *template["before_script"], *USES_TEMPLATE["archive"]["script"]]
        printed = job.run("\n".join(lines), ["sh", "-c"])
        assert f"\n{protected.host}/app:2@sha256:" in printed
        assert (tmp_path / USES_TEMPLATE["archive"]["artifacts"]["paths"][0]).is_file()
        assert list(builds.iterdir())
        job.run("\n".join(template["after_script"]), ["sh", "-c"])
        assert list(builds.iterdir()) == []
