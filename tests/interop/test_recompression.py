"""Other tools read and run an image that was recompressed between real registries; nightly, a Debian image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.debian_image import DebianImage
from tests.images import Layout
from tests.interop.image_contents import compression_of, in_layout
from tests.interop.process_limits import COMPRESSING_BUDGET, assert_within_budget
from tests.interop.program_image import GREETING, podman_run, program_image
from tests.peers import DockerRegistry, Tools
from tests.registry_http import manifest_digest, seed
from tests.runner import measured, measured_pipe, ocistream


def test_skopeo_reads_and_podman_runs_an_image_in_zstd(
    registry: DockerRegistry, layout: Layout, tools: Tools, tmp_path: Path
) -> None:
    # tests/cli/test_recompression.py tests every codec, source and destination, and measures the memory.
    seed(layout, program_image(layout, name="v1"), registry.host, "program/gzip", "v1")
    name = f"{registry.host}/program/zstd:v1"
    result = assertions.success(ocistream("copy", "--compress=zstd", f"{registry.host}/program/gzip:v1", name))
    digest = manifest_digest(registry.host, "program/zstd", "v1")
    assert result.lines() == [f"{name}@{digest}"]
    tools.run("skopeo", "copy", f"docker://{name}", f"oci:{tmp_path / 'pulled'}:v1")
    found = in_layout(tmp_path / "pulled")
    assert found.digest == digest
    assert found.diff_ids == in_layout(layout.path).diff_ids
    assert {compression_of(layer) for layer in found.layers} == {"zstd"}
    tools.run("podman", "pull", "--quiet", name)
    assert podman_run(tools, name) == GREETING


@pytest.mark.nightly
def test_pull_and_push_recompress_a_debian_image_as_copy_does(
    debian_name: str, debian_image: DebianImage, registry: DockerRegistry, tools: Tools, tmp_path: Path
) -> None:
    name, piped = f"{registry.host}/debian/zstd:v1", f"{registry.host}/debian/piped:v1"
    result = measured("copy", "--compress=zstd", debian_name, name)
    assert_within_budget(result, budget=COMPRESSING_BUDGET)
    (digest,) = registry.tags("debian/zstd").values()
    assert result.lines() == [f"{name}@{digest}"]
    tools.run("skopeo", "copy", f"docker://{name}", f"oci:{tmp_path / 'copied'}:v1")
    document = debian_image.layout.read(debian_image.manifest["digest"])
    config = debian_image.layout.read(document["config"]["digest"])
    assert in_layout(tmp_path / "copied").diff_ids == config["rootfs"]["diff_ids"]
    archive, report = tmp_path / "pulled.tar", tmp_path / "report.json"
    result = measured("pull", "--compress=zstd", "--result", report, debian_name, "-o", archive)
    assert_within_budget(result, budget=COMPRESSING_BUDGET)
    assert result.lines() == [f"{debian_name}@{digest}"]
    blobs = json.loads(report.read_bytes())["blobs"]
    before = [layer["digest"] for layer in document["layers"]]
    assert [blob["from"] for blob in blobs if blob["status"] == "converted"] == before
    pulled, pushed = measured_pipe(["pull", debian_name], ["push", "--compress=zstd", piped])
    assert_within_budget(pulled, pushed, budget=COMPRESSING_BUDGET)
    assert pushed.lines() == [f"{piped}@{digest}"]
