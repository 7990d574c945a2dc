"""Names of files and images in docker-archives that are written. Their content is tested in tests/contract."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ocistream.archive.docker_destination import DockerArchiveDestination
from ocistream.archive.outputs import open_file_output
from ocistream.errors import UnsupportedError
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.graph import Graph, Root
from ocistream.transfer.copy import Copy
from ocistream.transfer.interfaces import VerifiedBlob
from ocistream.transfer.recompress import parse_recompression
from tests.archives import files_in
from tests.docker_archives import hex_of, images_in, listed_in
from tests.images import OCI_LAYER, Layout, digest_of, small_image, tar_layer
from tests.observers import NothingEarly, Watch


def written(layout: Layout, path: Path, *names: str | None) -> dict[str, bytes]:
    """Write the first image of a layout, once under each name."""

    def rename(graph: Graph) -> Graph:
        root = graph.roots[0]
        return dataclasses.replace(graph, roots=tuple(Root(name, root.descriptor) for name in names))

    sink = DockerArchiveDestination(open_file_output(path))
    try:
        none = parse_recompression("none")
        Copy(LayoutSource(layout.path), sink, Watch(), rename=rename, recompression=none).run()
    finally:
        sink.close()
    return files_in(path.read_bytes())


@pytest.mark.parametrize(
    ("names", "tags"),
    [
        (["docker.io/library/app:1"], ["app:1"]),
        (["docker.io/org/app:1", "a.example:5000/app:2"], ["org/app:1", "a.example:5000/app:2"]),
        (["docker.io/library/app:1", "app:1", "library/app:1"], ["app:1"]),
        (["docker.io/library/app"], ["app:latest"]),
        (["v1"], None),
        ([None], None),
        (["a.example/app@sha256:" + "0" * 64], None),
        (["Not A Name/at:all"], None),
        (["v1", "app:1"], ["app:1"]),
    ],
)
def test_an_image_is_named_as_docker_shows_it(
    layout: Layout, names: list[str | None], tags: list[str] | None, tmp_path: Path
) -> None:
    small_image(layout, name="v1")
    (listed,) = listed_in(written(layout, tmp_path / "out.tar", *names))
    assert listed["RepoTags"] == tags


def test_a_blob_before_its_image_is_named_by_its_content(layout: Layout, tmp_path: Path) -> None:
    layer = tar_layer({"{brace}": b"content"}, compression="")
    image = layout.image([layer], name="v1")
    config = layout.file(layout.read(image["digest"])["config"]["digest"]).read_bytes()
    source = LayoutSource(layout.path)
    graph = source.resolve(NothingEarly())
    sink = DockerArchiveDestination(open_file_output(tmp_path / "out.tar"))
    for content in (layer, config):
        descriptor = Descriptor("application/octet-stream", digest_of(content), len(content))
        sink.write(VerifiedBlob(descriptor, lambda content=content: iter([content])))
    sink.begin(graph)
    sink.commit(graph)
    files = files_in((tmp_path / "out.tar").read_bytes())
    assert set(files) == {f"{hex_of(layer)}.tar", f"{hex_of(config)}.json", "manifest.json"}
    assert images_in(files)[0].layers == (layer,)


@pytest.mark.parametrize("kind", [f"{OCI_LAYER}+gzip", "application/vnd.oci.image.layer.v1.tar+encrypted"])
def test_a_layer_that_is_not_plain_is_refused_at_the_end(layout: Layout, kind: str, tmp_path: Path) -> None:
    image = small_image(layout)
    document = layout.read(image["digest"])
    layers = [{**layer, "mediaType": kind} for layer in document["layers"]]
    layout.document({**document, "layers": layers}, name="v1")
    sink = DockerArchiveDestination(open_file_output(tmp_path / "out.tar"))
    with pytest.raises(UnsupportedError, match="which a docker-archive cannot contain") as caught:
        Copy(LayoutSource(layout.path), sink, Watch()).run()
    sink.close()
    assert "oci-archive" in (caught.value.hint or "")
    assert not (tmp_path / "out.tar").exists()
