"""Result lines on stdout, and the document of --result."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.faulty_registry import Fault, FaultyRegistry, Flip, refusal
from tests.images import Descriptor, Layout, small_image, two_platforms
from tests.registry_http import seed
from tests.runner import Result, ocistream, pipe
from tests.schemas import validate_ours

#: This machine's platform.
MINE = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}.get(platform.machine(), "")


def document(path: Path) -> dict[str, Any]:
    """Return the document of --result, after a check against docs/result.schema.json."""
    found = json.loads(path.read_bytes())
    validate_ours(found, "result")
    return dict(found)


# Result lines ------------------------------------------------------------------------------------------------


def test_a_result_line_is_a_name_and_a_digest(registry: FaultyRegistry, image: Descriptor, tmp_path: Path) -> None:
    host, digest = registry.host, image["digest"]
    for argv, line in (
        (["pull", f"{host}/app:1", "-o", "PATH/1.tar"], f"{host}/app:1@{digest}"),
        (["pull", f"{host}/app@{digest}", "-o", "PATH/2.tar"], f"{host}/app@{digest}"),
        (["pull", f"{host}/app:1@{digest}", "-o", "PATH/layout/"], f"{host}/app:1@{digest}"),
        (["push", f"{host}/new", "-i", "PATH/1.tar"], f"{host}/new:latest@{digest}"),
        (["push", f"{host}/new@{digest}", "-i", "PATH/2.tar"], f"{host}/new@{digest}"),
        (["push", "--to", f"{host}/mirror", "-i", "PATH/1.tar"], f"{host}/mirror/app:1@{digest}"),
        (["copy", "oci-archive:PATH/1.tar", "oci:PATH/layout"], f"{host}/app:1@{digest}"),
        (["copy", "oci-archive:PATH/1.tar", "oci:PATH/layout:other"], f"other@{digest}"),
        (["copy", f"{host}/app@{digest}", "oci:PATH/layout"], f"{host}/app@{digest}"),
        (["copy", "PATH/2.tar", "PATH/3.tar"], f"PATH/2.tar@{digest}"),
    ):
        result = ocistream(*[word.replace("PATH", str(tmp_path)) for word in argv])
        assert result.lines() == [line.replace("PATH", str(tmp_path))], (argv, result.err)


def test_the_digest_is_that_of_the_pulled_image(served: FaultyRegistry, layout: Layout, tmp_path: Path) -> None:
    index = two_platforms(layout)
    amd64, arm64 = layout.read(index["digest"])["manifests"]
    name = f"{served.host}/app:1"
    seed(layout, index, served.host, "app", "1")
    for wanted, digest in (("all", index), ("linux/amd64", amd64), ("linux/arm64/v8", arm64)):
        result = ocistream("pull", name, "--platform", wanted, "-o", tmp_path / "app.tar")
        assert result.lines() == [f"{name}@{digest['digest']}"]


# Platforms ---------------------------------------------------------------------------------------------------


class TestPlatforms:
    """Messages about platforms that the user did not choose."""

    @pytest.fixture
    def name(self, served: FaultyRegistry, layout: Layout) -> str:
        """Return the name of an image with this machine's platform and two others."""
        images = [layout.image([wanted.encode()], platform=wanted) for wanted in ("plan9/mips", MINE, "plan9/arm")]
        seed(layout, layout.index(images), served.host, "app", "1")
        return f"{served.host}/app:1"

    def notes(self, result: Result, name: str) -> list[str]:
        """Return the messages on stderr about an image, except for its ID."""
        assertions.success(result)
        lines = [line for line in result.err.splitlines() if line.startswith(f"ocistream: {name}: ")]
        return [line for line in lines if "image ID" not in line]

    def test_the_default_platform_is_reported_for_every_output(self, name: str, tmp_path: Path) -> None:
        said = [f"ocistream: {name}: only {MINE} of 3 platforms; use --platform all to copy all"]
        assert self.notes(ocistream("pull", name), name) == said
        assert self.notes(ocistream("pull", name, "-o", tmp_path / "app.tar"), name) == said
        assert self.notes(ocistream("pull", name, name, "-o", f"{tmp_path}/layout/"), name) == said
        assert self.notes(ocistream("pull", name, "-q"), name) == []
        for argv in (["pull", "--format=docker-archive", name], ["copy", name, "docker-archive:-"]):
            assert self.notes(ocistream(*argv), name) == [
                f"ocistream: {name}: only {MINE} of 3 platforms; choose another with --platform"
            ]

    def test_a_requested_platform_is_not_reported(self, name: str, tmp_path: Path) -> None:
        for argv in (["pull", "--platform=plan9/arm", name], ["pull", "--platform=all", name], ["copy", name, "-"]):
            assert self.notes(ocistream(*argv), name) == []
        succeed("pull", "--platform=all", name, "-o", tmp_path / "all.tar")
        succeed("verify", tmp_path / "all.tar")

    def test_only_one_side_of_a_pipe_reports_the_platform(self, name: str) -> None:
        first, second = pipe(["pull", name], ["push", name.replace("app", "other")])
        assert self.notes(first, name) == [
            f"ocistream: {name}: only {MINE} of 3 platforms; use --platform all to copy all"
        ]
        assert "platform" not in second.err

    def test_the_only_platform_of_an_index_is_reported(self, served: FaultyRegistry, layout: Layout) -> None:
        name = f"{served.host}/one:1"
        seed(layout, layout.index([layout.image([b""], platform=MINE)]), served.host, "one", "1")
        only = f"ocistream: {name}: {MINE}, the only platform of an index"
        assert self.notes(ocistream("pull", name), name) == [f"{only}; use --platform all to keep the index"]
        assert self.notes(ocistream("copy", name, "docker-archive:-"), name) == [only]

    def test_a_single_image_for_another_platform_is_reported(
        self, served: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        name = f"{served.host}/single:1"
        seed(layout, layout.image([b"layer"], platform="plan9/mips"), served.host, "single", "1")
        said = [f"ocistream: {name}: only plan9/mips; this machine is {MINE}"]
        assert self.notes(ocistream("pull", name), name) == said
        assert self.notes(ocistream("pull", name, "--compress=zstd", "-o", f"{tmp_path}/layout/"), name) == said
        assert self.notes(ocistream("copy", name, "docker-archive:-"), name) == said
        assert self.notes(ocistream("pull", name, "--platform=plan9/mips"), name) == []
        assert self.notes(ocistream("pull", name, "--platform=all"), name) == []
        assert self.notes(ocistream("copy", name, "-"), name) == []

    def test_an_image_whose_platform_cannot_be_read_is_copied_without_a_report(
        self, served: FaultyRegistry, layout: Layout
    ) -> None:
        image = layout.image([b"layer"], platform="plan9/mips")
        manifest = layout.read(image["digest"])
        config = {**layout.read(manifest["config"]["digest"]), "variant": 1}
        manifest["config"] = layout.blob(json.dumps(config).encode(), manifest["config"]["mediaType"])
        seed(layout, layout.blob(json.dumps(manifest).encode(), image["mediaType"]), served.host, "single", "1")
        name = f"{served.host}/single:1"
        assert self.notes(ocistream("pull", name), name) == []

    def test_another_variant_is_reported(self, served: FaultyRegistry, layout: Layout) -> None:
        name = f"{served.host}/app:variants"
        images = [layout.image([f"v{n}".encode()], platform=f"{MINE}/v{n}") for n in (12, 13)]
        seed(layout, layout.index(images), served.host, "app", "variants")
        assert self.notes(ocistream("pull", name), name) == [
            f"ocistream: {name}: only {MINE}/v12 of 2 platforms; use --platform all to copy all",
            f"ocistream: {name}: {MINE} matches {MINE}/v12; not copied: {MINE}/v13",
        ]
        # This is reported for a requested platform, too: the variant was not requested.
        assert self.notes(ocistream("pull", name, "--platform", MINE), name) == [
            f"ocistream: {name}: {MINE} matches {MINE}/v12; not copied: {MINE}/v13"
        ]
        assert self.notes(ocistream("pull", name, "--platform", f"{MINE}/v13"), name) == []

    def test_several_images_for_one_platform_are_reported(self, served: FaultyRegistry, layout: Layout) -> None:
        name = f"{served.host}/app:windows"
        images = []
        for version in ("10.1", "10.2"):
            image = layout.image([version.encode()], platform="windows/amd64")
            images.append({**image, "platform": {**image["platform"], "os.version": version}})
        seed(layout, layout.index(images), served.host, "app", "windows")
        assert self.notes(ocistream("pull", name, "--platform=windows/amd64"), name) == [
            f"ocistream: {name}: windows/amd64 matches windows(10.1)/amd64; not copied: windows(10.2)/amd64"
        ]

    def test_a_missing_platform_of_this_machine_is_reported(self, served: FaultyRegistry, layout: Layout) -> None:
        seed(layout, layout.index([layout.image([b""], platform="plan9/mips")]), served.host, "app", "other")
        result = ocistream("pull", f"{served.host}/app:other")
        assertions.failure(result, 4, f"has no platform {MINE}, which is this machine's", "plan9/mips", "--platform")

    def test_the_result_document_has_the_platforms(self, name: str, layout: Layout, tmp_path: Path) -> None:
        path, archive = tmp_path / "result.json", tmp_path / "app.tar"
        succeed("pull", name, "-o", archive, "--result", path)
        (image,) = document(path)["images"]
        taken = {"copied": [MINE], "available": ["plan9/mips", MINE, "plan9/arm"], "byDefault": True}
        index = image["platforms"].pop("index")
        assert image["platforms"] == taken
        assert image["digest"] in {child["digest"] for child in layout.read(index)["manifests"]}
        argv = ["--platform=plan9/arm", "--platform=plan9/mips", "--compress=zstd"]
        succeed("pull", name, "-o", archive, "--result", path, *argv)
        (image,) = document(path)["images"]
        assert image["platforms"] == {
            **taken,
            "index": index,
            "copied": ["plan9/arm", "plan9/mips"],
            "byDefault": False,
        }
        succeed("pull", name, "-o", archive, "--result", path, "--platform=all")
        assert "platforms" not in document(path)["images"][0]


# --result ----------------------------------------------------------------------------------------------------


def test_the_result_document_has_the_moved_blobs(
    registry: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    succeed("pull", f"{registry.host}/app:1", "-o", tmp_path / "app.tar", "--result", path)
    blobs = [{key: blob[key] for key in ("mediaType", "digest", "size")} for blob in layout.blobs(image)]
    total = sum(blob["size"] for blob in blobs)
    seconds = document(path)["seconds"]
    assert isinstance(seconds, float)
    described = {key: image[key] for key in ("mediaType", "digest", "size")}
    assert document(path) == {
        "dryRun": False,
        "images": [{**described, "name": f"{registry.host}/app:1", "size": total}],
        "manifests": [described],
        "blobs": [{**blob, "status": "copied"} for blob in blobs],
        "referrers": [],
        "skippedReferrers": [],
        "incomplete": [],
        "foreign": [],
        "bytes": {"copied": total, "converted": 0, "skipped": 0, "mounted": 0, "omitted": 0},
        "resumed": 0,
        "cached": 0,
        "retried": 0,
        "upload": {},
        "seconds": seconds,
    }


def test_the_result_document_counts_skips_mounts_and_retries(
    registry: FaultyRegistry, tmp_path: Path, layout: Layout, image: Descriptor
) -> None:
    path = tmp_path / "result.json"
    total = sum(blob["size"] for blob in layout.blobs(image))
    succeed("copy", f"{registry.host}/app:1", f"{registry.host}/mounted:1", "--result", path)
    assert document(path)["bytes"] == {"copied": 0, "converted": 0, "skipped": 0, "mounted": total, "omitted": 0}
    assert {blob["status"] for blob in document(path)["blobs"]} == {"mounted"}
    registry.faults = [Fault(refusal(503), "HEAD", "/blobs/", times=2)]
    succeed("push", "-i", layout.path, f"{registry.host}/app:2", "--result", path)
    assert document(path)["bytes"] == {"copied": 0, "converted": 0, "skipped": total, "mounted": 0, "omitted": 0}
    assert document(path)["retried"] == 2


def test_the_result_document_lists_foreign_layers(served: FaultyRegistry, layout: Layout, tmp_path: Path) -> None:
    foreign = {
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": f"sha256:{'1' * 64}",
        "size": 12,
        "urls": ["https://a.example/layer"],
    }
    image = layout.read(small_image(layout)["digest"])
    layout.document({**image, "layers": [*image["layers"], foreign]}, name="app")
    path = tmp_path / "result.json"
    result = succeed("push", "-i", layout.path, f"{served.host}/app:1", "--result", path)
    assert "; 1 foreign layer not copied" in result.err
    assert document(path)["foreign"] == [{key: foreign[key] for key in ("mediaType", "digest", "size")}]


def test_both_sides_of_a_pipe_write_result_documents(registry: FaultyRegistry, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    host = registry.host
    pull, push = pipe(["pull", f"{host}/app:1", "--result", one], ["push", f"{host}/app:2", "--result", two])
    assert (pull.code, push.code) == (0, 0)
    assert document(one)["manifests"] == document(two)["manifests"]
    assert document(two)["images"][0]["name"] == f"{host}/app:2"


def test_a_failure_writes_no_result_document(registry: FaultyRegistry, folder: Path, tmp_path: Path) -> None:
    registry.faults = [Fault(Flip(10), "GET", "/blobs/", times=None)]
    argv = ["pull", f"{registry.host}/app:1", "-o", f"{tmp_path}/app.tar", "--result"]
    assertions.failure(ocistream(*argv, folder / "result.json"), 5)
    assertions.nothing_left(folder)
    (folder / "result.json").write_text("of the run before")
    assertions.failure(ocistream(*argv, folder / "result.json"), 5)
    assert (folder / "result.json").read_text() == "of the run before"


def test_an_unwritable_result_file_fails_before_the_copy(
    registry: FaultyRegistry, layout: Layout, tmp_path: Path
) -> None:
    assertions.failure(
        ocistream("push", "-i", layout.path, f"{registry.host}/app:2", "--result", tmp_path / "missing" / "r.json"),
        4,
        "missing/r.json",
    )
    assert registry.requests == []
    closed = tmp_path / "closed"
    closed.mkdir(0o555)
    result = ocistream(
        "push", "-i", layout.path, f"{registry.host}/app:2", "--result", closed / "r.json", unprivileged=True
    )
    assertions.failure(result, 9, "closed/r.json", "Permission denied")
    assert registry.requests == []


def test_the_result_document_follows_links_and_is_written_to_devices(registry: FaultyRegistry, tmp_path: Path) -> None:
    pull = ["pull", f"{registry.host}/app:1", "-o", str(tmp_path / "app.tar"), "--result"]
    (tmp_path / "link.json").symlink_to("real.json")
    for _ in range(2):
        succeed(*pull, tmp_path / "link.json")
        assert (tmp_path / "link.json").is_symlink()
        assert document(tmp_path / "real.json")["retried"] == 0
    # The test uses a FIFO instead of a device: a bug, run as root, would replace the machine's device.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as reader:
        succeed(*pull, fifo)
        assert json.loads(reader.communicate(timeout=60)[0])["retried"] == 0
    assert fifo.is_fifo()


@pytest.mark.parametrize("verb", ["pull", "push", "copy"])
def test_the_result_document_never_overwrites_the_archive(
    registry: FaultyRegistry, layout: Layout, tmp_path: Path, verb: str
) -> None:
    small_image(layout, name="app:1")
    archive = tmp_path / "app.tar"
    succeed("copy", layout.path, archive)
    before = archive.read_bytes()
    ends: dict[str, list[str | Path]] = {
        "pull": [f"{registry.host}/app:1", "-o", archive],
        "push": [f"{registry.host}/other:1", "-i", archive],
        "copy": [archive, layout.path],
    }
    assertions.failure(ocistream(verb, *ends[verb], "--result", archive), 2, "--result", "is the archive itself")
    assert archive.read_bytes() == before


@pytest.mark.parametrize("verb", ["pull", "push", "copy"])
def test_the_result_document_is_never_written_to_stdout(
    registry: FaultyRegistry, layout: Layout, dev_stdout: Path, tmp_path: Path, verb: str
) -> None:
    small_image(layout, name="app:1")
    before = len(registry.requests)
    ends: dict[str, list[str | Path]] = {
        "pull": [f"{registry.host}/app:1"],
        "push": [f"{registry.host}/other:1", "-i", layout.path],
        "copy": [layout.path, "out.tar"],
    }
    behind = tmp_path / "behind"
    for result, stdout in (("-", None), (dev_stdout, None), (dev_stdout, behind), (behind, behind)):
        if stdout:
            stdout.write_text("")
        done = ocistream(verb, *ends[verb], "--result", result, stdout=stdout, cwd=tmp_path)
        assertions.failure(done, 2, f"--result {result} is stdout", "name a file")
        assert not done.out
        assert not stdout or stdout.read_text() == ""
    assert len(registry.requests) == before
    assert not (tmp_path / "-").exists()
    assert not (tmp_path / "out.tar").exists()


def test_a_result_file_may_be_named_dash_but_not_empty(registry: FaultyRegistry, tmp_path: Path) -> None:
    pull = ["pull", f"{registry.host}/app:1", "-o", "app.tar", "--result"]
    succeed(*pull, "./-", cwd=tmp_path)
    assert document(tmp_path / "-")["retried"] == 0
    assertions.failure(ocistream(*pull, "", cwd=tmp_path), 2, "--result")
