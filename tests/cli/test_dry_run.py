"""`--dry-run` of pull, push and copy: it reports what the real run does, and changes nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import ocistream as api
from tests.archives import small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.forms import FORMS, location
from tests.cli.terminal import on_terminal
from tests.faulty_registry import Drop, Fault, FaultyRegistry
from tests.images import Descriptor, Layout, small_image, two_platforms
from tests.registry_http import seed, tags
from tests.runner import Result, forking_command, ocistream
from tests.schemas import validate_ours

OTHER = f"sha256:{'0' * 64}"
#: Fields of the --result document that differ between a dry run and the real run.
_OWN = ("dryRun", "seconds", "retried", "upload")


@pytest.fixture
def index(layout: Layout) -> Descriptor:
    return two_platforms(layout, name="app")


@pytest.fixture
def host(served: FaultyRegistry, layout: Layout, index: Descriptor) -> str:
    """Return the host of a registry that has the index as app:1; clear the recorded requests."""
    seed(layout, index, served.host, "app", "1")
    served.requests.clear()
    return served.host


def listing(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder, with their contents, and the folders."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def results(dry: Result) -> list[str]:
    """Return the result lines in the lines of a dry run, which have the form of `sync --dry-run`."""
    found = []
    for line in dry.lines():
        action, size, _, result = line.split(" ", 3)
        assert action == "copy"
        assert size.isdecimal()
        found.append(result)
    return found


def both(
    tmp_path: Path, arguments: Sequence[str | Path], *, stdin: bytes | None = None, served: FaultyRegistry
) -> tuple[Result, Result, dict[str, Any]]:
    """Do a dry run and check that nothing changed, then the real run. Return both results and the dry run's document.

    The documents must be equal, except for what a dry run cannot know.
    """
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    env = {"HOME": str(home), "XDG_STATE_HOME": None, "XDG_CONFIG_HOME": None, "XDG_CACHE_HOME": None}
    before = listing(work) | listing(home) | listing(served.layout.path)
    known = len(served.requests)
    dry = succeed(
        *arguments, "--dry-run", "--result", tmp_path / "dry.json", stdin=stdin, cwd=work, env=env, no_waits=True
    )
    assert {request.method for request in served.requests[known:]} <= {"GET", "HEAD"}
    assert listing(work) | listing(home) | listing(served.layout.path) == before
    done = succeed(*arguments, "--result", tmp_path / "real.json", stdin=stdin, cwd=work, env=env)
    documents = [json.loads((tmp_path / name).read_bytes()) for name in ("dry.json", "real.json")]
    for document in documents:
        validate_ours(document, "result")
    assert [document["dryRun"] for document in documents] == [True, False]
    shared = [{key: value for key, value in document.items() if key not in _OWN} for document in documents]
    assert shared[0] == shared[1]
    return dry, done, documents[0]


class TestPull:
    @pytest.mark.parametrize("output", ["app.tar", "layout/"])
    def test_a_pull_into_a_file_or_a_layout(
        self, tmp_path: Path, served: FaultyRegistry, host: str, output: str
    ) -> None:
        dry, done, document = both(
            tmp_path, ["pull", f"{host}/app:1", "--platform", "all", "-o", output], served=served
        )
        assert results(dry) == done.lines()
        assert {blob["status"] for blob in document["blobs"]} == {"copied"}
        assert re.search(rf"would copy 5 blobs, [0-9.]+ .?B, to {output}\n", dry.err)
        assert dry.lines()[0].startswith(f"copy {document['bytes']['copied']} {host}/app:1 {host}/app:1@sha256:")
        # A second run finds the layout complete; an archive is always written again.
        again, _, document = both(tmp_path, ["pull", f"{host}/app:1", "--platform", "all", "-o", output], served=served)
        in_layout = output.endswith("/")
        assert {blob["status"] for blob in document["blobs"]} == {"skipped" if in_layout else "copied"}
        assert ("5 exist at the destination" in again.err) == in_layout

    def test_stdout_may_be_a_terminal_and_has_the_results(self, host: str, index: Descriptor) -> None:
        seen = on_terminal("pull", f"{host}/app:1", "--platform", "all", "--dry-run")
        assert seen.code == 0
        assert f"{host}/app:1@{index['digest']}" in seen.screen

    def test_the_platform_that_was_chosen_is_reported(self, host: str) -> None:
        dry = ocistream("pull", f"{host}/app:1", "--dry-run")
        assert ", to stdout\n" in dry.err
        assert "of 2 platforms; use --platform all to copy all" in dry.err

    def test_verbose_names_each_blob(self, host: str, layout: Layout, index: Descriptor) -> None:
        dry = ocistream("pull", f"{host}/app:1", "--platform", "linux/arm64", "--dry-run", "-v")
        for blob in layout.blobs(layout.read(index["digest"])["manifests"][1]):
            assert f"to copy: {blob['digest']}" in dry.err

    def test_a_docker_archive_has_the_digest_of_the_source(self, host: str, layout: Layout, index: Descriptor) -> None:
        arguments = ("pull", f"{host}/app:1", "--platform", "linux/arm64", "-o", "x.tar", "--format", "docker-archive")
        dry = succeed(*arguments, "--dry-run")
        arm = layout.read(index["digest"])["manifests"][1]["digest"]
        assert results(dry) == [f"{host}/app:1@{arm}"]
        assert "2 of them decompressed to a size that is not known yet" in dry.err

    def test_a_digest_that_is_not_known_yet_is_not_printed(
        self, host: str, tmp_path: Path, layout: Layout, index: Descriptor
    ) -> None:
        arm = layout.read(index["digest"])["manifests"][1]["digest"]
        image_id = layout.read(arm)["config"]["digest"]
        for platform, line in (("linux/arm64", f"{host}/app:1 image ID {image_id}"), ("all", f"{host}/app:1")):
            dry = succeed(
                *("pull", f"{host}/app:1", "--platform", platform, "--compress", "zstd", "-o", tmp_path / "x.tar"),
                *("--dry-run", "--result", tmp_path / "result.json"),
            )
            assert results(dry) == [line]
            assert "known only afterwards" in dry.err
            document = json.loads((tmp_path / "result.json").read_bytes())
            validate_ours(document, "result")
            assert document["images"][0]["from"] == (arm if platform != "all" else index["digest"])
            assert "digest" not in document["images"][0]
            assert document["bytes"]["converted"] > 0

    def test_omitted_blobs_are_not_copied(self, host: str, served: FaultyRegistry, tmp_path: Path) -> None:
        (tmp_path / "work").mkdir()
        succeed("have", f"{host}/app", stdout=tmp_path / "have.txt")
        arguments = ["pull", f"{host}/app:1", "--platform=all", f"--have={tmp_path / 'have.txt'}", "-o", "x.tar"]
        dry, _, document = both(tmp_path, arguments, served=served)
        assert {blob["status"] for blob in document["blobs"]} == {"omitted"}
        assert "would copy 0 blobs" in dry.err
        assert "omitted 5 blobs" in dry.err

    def test_bytes_that_an_earlier_run_stored_are_resumed(self, start: Start, layout: Layout, tmp_path: Path) -> None:
        layer, _ = layout.random_layer(4 << 20, seed=1)
        registry = start()
        seed(layout, layout.image([layer]), registry.host, "app", "1")
        registry.faults.append(Fault(Drop(3_000_000), path=layer["digest"], times=None))
        arguments = ("pull", f"{registry.host}/app:1", "-o", f"{tmp_path / 'layout'}/", "--jobs=1", "--retries=0")
        assert ocistream(*arguments).code == 7
        registry.faults.clear()
        before = listing(tmp_path / "layout")
        dry = succeed(*arguments, "--dry-run", "--result", tmp_path / "result.json")
        assert listing(tmp_path / "layout") == before
        resumed = json.loads((tmp_path / "result.json").read_bytes())["resumed"]
        assert 1 << 20 <= resumed <= 3_000_000
        assert "resumed from an earlier run" in dry.err
        succeed(*arguments, "--result", tmp_path / "result.json")
        assert json.loads((tmp_path / "result.json").read_bytes())["resumed"] == resumed

    @pytest.mark.parametrize("with_base", [False, True])
    def test_a_cache_is_not_filled(self, host: str, tmp_path: Path, *, with_base: bool) -> None:
        base = ["--base", f"{host}/app:1"] if with_base else []
        output = ("--cache", tmp_path / "cache", "-o", tmp_path / "x.tar")
        succeed("pull", f"{host}/app:1", *output, *base, "--dry-run")
        assert not (tmp_path / "cache").exists()

    def test_errors_before_the_transfer_are_reported(self, host: str, tmp_path: Path) -> None:
        missing = ("pull", f"{host}/app:1", "-o", tmp_path / "none/x.tar", "--dry-run")
        assertions.failure(ocistream(*missing), 4, "no such file or directory")
        assertions.failure(ocistream("pull", f"{host}/app:2", "--dry-run"), 4, "app:2 not found")
        combined = ("pull", f"{host}/app:1", "--from-byte=1", "--dry-run")
        assertions.failure(ocistream(*combined), 2, "--from-byte")

    def test_a_directory_that_may_not_be_written_is_an_error(self, host: str, tmp_path: Path) -> None:
        # The unprivileged user must be able to read it.
        tmp_path.chmod(0o555)
        arguments = ("pull", f"{host}/app:1", "-o", tmp_path / "x.tar", "--dry-run")
        assertions.failure(ocistream(*arguments, unprivileged=True), 9, "ermission denied")


class TestPush:
    @pytest.mark.parametrize("how", FORMS)
    def test_the_registry_gets_only_read_requests(
        self, tmp_path: Path, served: FaultyRegistry, layout: Layout, index: Descriptor, how: str
    ) -> None:
        end, stdin = location(how, layout, tmp_path)
        arguments = ["push", f"{served.host}/app:1", "-i", end]
        dry, done, document = both(tmp_path, arguments, stdin=stdin, served=served)
        assert results(dry) == done.lines() == [f"{served.host}/app:1@{index['digest']}"]
        assert {blob["status"] for blob in document["blobs"]} == {"copied"}
        assert "would copy 5 blobs" in dry.err
        dry, _, document = both(tmp_path, arguments, stdin=stdin, served=served)
        assert {blob["status"] for blob in document["blobs"]} == {"skipped"}
        assert "would copy 0 blobs" in dry.err

    def test_the_line_names_the_image_at_its_source(
        self, served: FaultyRegistry, layout: Layout, host: str, index: Descriptor
    ) -> None:
        archive = f"oci:{layout.path}:app"
        for source, shown, destination, name in (
            (archive, "app", f"{served.host}/new:1", f"{served.host}/new:1"),
            (f"{host}/app:1", f"{host}/app:1", f"oci:{layout.path}:other", "other"),
            (archive, "app", f"oci:{layout.path}-new:other", "other"),
        ):
            (line,) = ocistream("copy", source, destination, "--dry-run").lines()
            assert line.split()[2:] == [shown, f"{name}@{index['digest']}"]

    def test_push_to_a_prefix(self, tmp_path: Path, served: FaultyRegistry, layout: Layout) -> None:
        small_image(layout, name="example.com/one:1")
        small_image(layout, name="example.com/two:2", annotations={"a": "b"})
        arguments: list[str | Path] = ["push", "-i", layout.path, "--to", f"{served.host}/mirror"]
        dry, done, _ = both(tmp_path, arguments, served=served)
        assert results(dry) == done.lines()
        assert len(results(dry)) == 2

    @pytest.mark.parametrize("how", ["file", "pipe"])
    def test_layers_of_docker_save_get_another_digest(
        self, tmp_path: Path, served: FaultyRegistry, layout: Layout, how: str
    ) -> None:
        image = small_image(layout, name="v1")
        archive = tmp_path / "x.tar"
        succeed("copy", f"oci:{layout.path}:v1", f"docker-archive:{archive}:app:1")
        stdin = None if how == "file" else archive.read_bytes()
        dry = succeed("push", f"{served.host}/app:1", "-i", "-" if stdin else archive, "--dry-run", stdin=stdin)
        assert results(dry) == [f"{served.host}/app:1 image ID {layout.read(image['digest'])['config']['digest']}"]
        assert "2 of them recompressed to a size that is not known yet" in dry.err
        assert tags(served.host, "app") == []

    def test_a_digest_that_the_image_does_not_have_is_refused(
        self, served: FaultyRegistry, layout: Layout, index: Descriptor
    ) -> None:
        arguments = ("push", "-i", layout.path, f"{served.host}/app@{OTHER}", "--dry-run")
        assertions.failure(ocistream(*arguments), 5, OTHER, index["digest"])

    def test_a_truncated_pipe_is_an_error(self, served: FaultyRegistry, layout: Layout, index: Descriptor) -> None:
        archive = tar_of(small_first(layout))
        result = ocistream("push", f"{served.host}/app:1", "--dry-run", stdin=archive[: len(archive) // 2])
        assertions.failure(result, 6, "truncated")
        assert index["digest"] not in result.err

    @pytest.mark.parametrize("how", ["layout", "pipe", "pipe, index first"])
    def test_a_blob_that_neither_side_has_is_an_error(
        self, served: FaultyRegistry, layout: Layout, tmp_path: Path, how: str
    ) -> None:
        image = small_image(layout, name="v1")
        lost = layout.read(image["digest"])["layers"][1]["digest"]
        layout.file(lost).unlink()
        end, stdin = location(how, layout, tmp_path)
        result = ocistream("push", f"{served.host}/app:1", "-i", end, "--dry-run", stdin=stdin)
        assertions.failure(result, 6, lost)

    def test_corrupt_bytes_in_a_pipe_are_an_error(self, served: FaultyRegistry, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        layer = layout.file(layout.read(image["digest"])["layers"][1]["digest"])
        layer.write_bytes(layer.read_bytes()[:-1] + b"x")
        result = ocistream("push", f"{served.host}/app:1", "--dry-run", stdin=tar_of(small_first(layout)))
        assertions.failure(result, 5, layer.name)


class TestCopy:
    def test_a_blob_of_several_images_counts_once(self, tmp_path: Path, served: FaultyRegistry, layout: Layout) -> None:
        small_image(layout, name="example.com/one:1")
        small_image(layout, name="example.com/two:2", annotations={"a": "b"})
        path = f"oci:{tmp_path / 'work/mirror'}"
        dry, _, document = both(tmp_path, ["copy", layout.path, path], served=served)
        size = document["bytes"]["copied"]
        assert [line.rpartition("@")[0] for line in dry.lines()] == [
            f"copy {size} example.com/one:1 example.com/one:1",
            "copy 0 example.com/two:2 example.com/two:2",
        ]

    def test_between_repositories_blobs_would_be_mounted(
        self, tmp_path: Path, served: FaultyRegistry, host: str
    ) -> None:
        dry, done, document = both(tmp_path, ["copy", f"{host}/app:1", f"{host}/other:1"], served=served)
        assert results(dry) == done.lines()
        assert {blob["status"] for blob in document["blobs"]} == {"mounted"}
        assert "5 mounted from another repository" in dry.err

    def test_copy_of_all_tags(self, tmp_path: Path, served: FaultyRegistry, host: str, layout: Layout) -> None:
        seed(layout, small_image(layout), host, "app", "2")
        arguments = ["copy", "--all-tags", f"{host}/app", f"oci:{tmp_path / 'work/mirror'}"]
        dry, done, _ = both(tmp_path, arguments, served=served)
        assert results(dry) == done.lines()
        assert len(results(dry)) == 2

    def test_via_asks_the_remote_side_and_sends_nothing(self, tmp_path: Path, host: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        script = folder / "ocistream"
        script.write_text(f'#!/bin/sh\necho "$1" >> {folder}/said\nexec {shlex.join(forking_command())} "$@"\n')
        script.chmod(0o755)
        via = f"env PATH={folder}:{os.environ['PATH']}"
        there = f"oci:{tmp_path / 'there'}"
        dry = succeed("copy", f"{host}/app:1", there, "--via", via, "--dry-run")
        assert "would copy 5 blobs" in dry.err
        assert (folder / "said").read_text().split() == ["have"]
        assert not (tmp_path / "there").exists()
        succeed("copy", f"{host}/app:1", there, "--via", via)
        dry = ocistream("copy", f"{host}/app:1", there, "--via", via, "--dry-run")
        assert "would copy 0 blobs" in dry.err
        assert "omitted 5 blobs" in dry.err


def test_the_python_api_has_dry_runs_too(host: str, tmp_path: Path, index: Descriptor) -> None:
    result = api.copy(f"{host}/app:1", tmp_path / "x.tar", dry_run=True)
    assert [image.digest for image in result.images] == [index["digest"]]
    assert {blob.status for blob in result.blobs} == {"copied"}
    assert result.size("copied") > 0
    assert not (tmp_path / "x.tar").exists()
    real = api.copy(f"{host}/app:1", tmp_path / "x.tar")
    assert (real.images, real.blobs) == (result.images, result.blobs)
