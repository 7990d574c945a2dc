"""skopeo, containerd's rule, GNU tar and ocistream find the same images in an archive that ocistream wrote."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests import containerd_model
from tests.archives import check_blobs, files_in, index_in
from tests.cli import assertions
from tests.contract.image_shapes import nested_index, with_attestation
from tests.images import Descriptor, Layout, small_image, tar_layer, two_platforms
from tests.peers import Tools, need
from tests.runner import ocistream

FULL_NAME: Final = "io.containerd.image.name"
REPOSITORY: Final = "registry.example/team/app"


def several(layout: Layout) -> dict[str, Descriptor]:
    image = small_image(layout)
    return {"one": image, "the-same": image, "another": layout.image([tar_layer({"a": b"b"}, compression="zstd")])}


def with_parts(layout: Layout) -> dict[str, Descriptor]:
    return {"index": two_platforms(layout), "child": small_image(layout), "nested": nested_index(layout, "nested")}


#: The images of a layout by tag. None has Docker's media types, which skopeo does not read in OCI archives.
SETS: Final[dict[str, Callable[[Layout], dict[str, Descriptor]]]] = {
    "one image": lambda layout: {"1": small_image(layout)},
    "an image without layers": lambda layout: {"1": layout.image([])},
    "several names": several,
    "indexes": with_parts,
    "an attestation": lambda layout: {"1": with_attestation(layout, "1")},
    "an artifact": lambda layout: {"1": layout.artifact(b"a list of parts")},
}


@pytest.mark.parametrize("which", SETS)
def test_every_tool_finds_the_same_images(which: str, layout: Layout, tools: Tools, tmp_path: Path) -> None:
    need("tar")
    made = SETS[which](layout)
    expected = {f"{REPOSITORY}:{tag}": image["digest"] for tag, image in made.items()}
    entries = [
        {**image, "annotations": {FULL_NAME: f"{REPOSITORY}:{tag}", "org.opencontainers.image.ref.name": tag}}
        for tag, image in made.items()
    ]
    layout.clear()
    layout.enter(*entries)
    archive = tmp_path / "x.tar"
    assertions.success(ocistream("copy", "--all-tags", f"oci:{layout.path}", f"oci-archive:{archive}"))

    files = files_in(archive.read_bytes())
    assert dict(containerd_model.images_of(index_in(files))) == expected

    (tmp_path / "extracted").mkdir()
    subprocess.run(["tar", "-x", "-f", archive, "-C", tmp_path / "extracted"], check=True)
    extracted = {
        str(path.relative_to(tmp_path / "extracted")): path.read_bytes()
        for path in (tmp_path / "extracted").rglob("*")
        if path.is_file()
    }
    assert extracted == files
    assert set(expected.values()) <= check_blobs(files)

    for tag, image in made.items():
        raw = tools.run("skopeo", "inspect", "--raw", f"oci-archive:{archive}:{tag}").stdout
        assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" == image["digest"]

    assertions.success(ocistream("copy", "--all-tags", f"oci-archive:{archive}", f"oci:{tmp_path}/again"))
    again = json.loads((tmp_path / "again" / "index.json").read_bytes())["manifests"]
    assert {entry["annotations"][FULL_NAME]: entry["digest"] for entry in again} == expected
