"""The documented examples of `ocistream sync` in shards are valid: a Kubernetes Job and two CI matrices.

A schema checks each example against the documentation of its engine. A shell runs its command for each part of the
work; together the parts must be all shards.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml

from tests.cli import assertions
from tests.docs_examples import code_block
from tests.runner import ocistream

ROOT: Final = Path(__file__).parents[2]
SHARDS: Final = (ROOT / "docs/ci.md").read_text().partition("\n## Sync in shards\n")[2]


def closed(*required: str, **properties: Any) -> dict[str, Any]:
    """Return the schema of an object with these properties and no other one."""
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


def several(item: Mapping[str, Any], least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": least}


def number(least: int, most: int | None = None) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, **({} if most is None else {"maximum": most})}


TEXT: Final = {"type": "string"}
TEXTS: Final = several(TEXT)
NAME: Final = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_SECRET: Final = {"properties": {"secretKeyRef": {"type": "object", "required": ["name", "key"]}}}
_CONTAINER: Final = closed(
    *("name", "image"),
    name=NAME,
    image=TEXT,
    command=TEXTS,
    args=TEXTS,
    env=several({"type": "object", "required": ["name", "valueFrom"], "properties": {"valueFrom": _SECRET}}),
    resources={"properties": {"limits": {"properties": {"memory": {"pattern": "^[0-9]+[KMG]i$"}}}}},
    volumeMounts=several({"type": "object", "required": ["name", "mountPath"]}),
)
_POD: Final = closed(
    *("restartPolicy", "containers"),
    restartPolicy={"const": "Never"},
    containers=several(_CONTAINER, 1),
    volumes=several({"type": "object", "required": ["name", "configMap"]}),
)
#: kubernetes.io, "Job" and "Indexed Job": with a limit for each index, pods are never restarted in place.
JOB: Final = closed(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "batch/v1"},
    kind={"const": "Job"},
    metadata={"type": "object", "required": ["name"], "properties": {"name": NAME}},
    spec=closed(
        *("completions", "completionMode", "template"),
        completions=number(1),
        parallelism=number(1),
        completionMode={"const": "Indexed"},
        backoffLimitPerIndex=number(0),
        template=closed("spec", spec=_POD),
    ),
)
_STEP: Final = {
    **closed(uses={"type": "string", "pattern": "@"}, run=TEXT, env={"type": "object", "additionalProperties": TEXT}),
    "oneOf": [{"required": ["uses"]}, {"required": ["run"]}],
}
_SCHEDULE: Final = several({"required": ["cron"]})
_STRATEGY: Final = closed(**{"fail-fast": {"type": "boolean"}, "matrix": {"type": "object"}})
_WORK: Final = closed("runs-on", "steps", **{"runs-on": TEXT, "strategy": _STRATEGY, "steps": several(_STEP)})
#: docs.github.com, "Workflow syntax for GitHub Actions".
WORKFLOW: Final = closed(
    *("on", "jobs"),
    name=TEXT,
    on={"type": "object", "properties": {"schedule": _SCHEDULE}},
    jobs={"type": "object", "minProperties": 1, "additionalProperties": _WORK},
)
_WHEN: Final = {"enum": ["on_success", "on_failure", "always"]}
#: docs.gitlab.com, "CI/CD YAML syntax reference".
PIPELINE: Final = {
    "type": "object",
    "additionalProperties": closed(
        "script",
        image=TEXT,
        parallel=number(1, 200),
        script=TEXTS,
        artifacts={"type": "object", "properties": {"when": _WHEN, "paths": TEXTS}},
    ),
}


def document(word: str, schema: Mapping[str, Any]) -> Any:
    # YAML 1.1 reads a bare `on` as true; GitHub does not.
    found = yaml.safe_load(re.sub(r"^on:", '"on":', code_block(SHARDS, "yaml", word), flags=re.MULTILINE))
    jsonschema.Draft202012Validator(schema).validate(found)
    return found


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a folder with an `ocistream` that prints its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ocistream").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "ocistream").chmod(0o755)
    # The CI examples have it in the repository.
    (folder / "ocistream.pyz").write_text("import sys\nprint(*sys.argv[1:], sep='\\n')\n")
    return folder


def shard_of(script: str, programs: Path, env: Mapping[str, str]) -> str:
    """Return the shard that a script requests."""
    environment = {**env, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", script], env=environment, cwd=programs, capture_output=True, text=True, check=True
    )
    command, file, option, value, *_ = done.stdout.splitlines()
    assert (command, Path(file).suffix, option) == ("sync", ".toml", "--shard")
    # The shard is valid: the only error is the missing file.
    assertions.failure(ocistream("sync", "none.toml", "--shard", value), 4, "none.toml")
    return value


def test_the_sync_file_writes_only_to_registries() -> None:
    # A job's directory may be read-only, and is lost when the job ends.
    file = tomllib.loads(code_block(SHARDS, "toml", "[[sync]]"))
    assert file["credentials"]["prod"]["password-env"] == "PROD_PASSWORD"
    locations = [entry["to"]["location"] for entry in file["sync"]]
    assert locations
    assert all(location.startswith("registry.example.com/") for location in locations)


def test_the_kubernetes_job_does_each_shard_once(programs: Path) -> None:
    job = document("kind: Job", JOB)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["/bin/sh", "-c"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (script,) = container["args"]
    count = spec["completions"]
    shards = [shard_of(script, programs, {"JOB_COMPLETION_INDEX": str(index)}) for index in range(count)]
    assert shards == [f"{index}/{count}" for index in range(count)]


def test_the_matrix_of_github_does_each_shard_once(programs: Path) -> None:
    workflow = document("runs-on", WORKFLOW)
    job = workflow["jobs"]["sync"]
    numbers = job["strategy"]["matrix"]["shard"]
    (step,) = [step for step in job["steps"] if "ocistream.pyz sync" in step.get("run", "")]
    shards = []
    for number in numbers:
        values = {"matrix.shard": str(number), "strategy.job-total": str(len(numbers)), "secrets.PROD_PASSWORD": "x"}
        env = {key: values[text.strip("${} ")] for key, text in step["env"].items()}
        shards.append(shard_of(step["run"], programs, env))
    assert shards == [f"{number}/{len(numbers)}" for number in range(len(numbers))]


def test_the_parallel_job_of_gitlab_does_each_shard_once(programs: Path) -> None:
    job = document("CI_NODE_INDEX", PIPELINE)["sync"]
    (line,) = [line for line in job["script"] if "ocistream.pyz sync" in line]
    total = job["parallel"]
    shards = [
        shard_of(line, programs, {"CI_NODE_INDEX": str(index + 1), "CI_NODE_TOTAL": str(total)})
        for index in range(total)
    ]
    assert shards == [f"{index}/{total}" for index in range(total)]
