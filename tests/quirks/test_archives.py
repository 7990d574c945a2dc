"""Archives and layouts of other tools: statements 33 to 38, each from a file and from a pipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.archives import END, blob_name, items_of, small_first, tar_of, with_checksum
from tests.docker_archives import (
    Entry,
    archive_of,
    hex_of,
    of_docker,
    of_stripped_oci,
    plain,
    plain_manifest,
    saved,
)
from tests.http_doubles import RawServer
from tests.images import (
    DOCKER_LAYER,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Layout,
    digest_of,
    small_image,
    tar_layer,
    two_platforms,
)
from tests.quirks.command_runner import How, Mover, both_ways
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import QuirkyRegistry
from tests.quirks.small_images import config_of, is_stored, layer_of
from tests.quirks.statements import quirk
from tests.registry_http import get, manifest, manifest_digest, seed, tags

FULL_NAME: Final = "io.containerd.image.name"
REF_NAME: Final = "org.opencontainers.image.ref.name"


def pushed(registry: QuirkyRegistry, tag: str = "v1") -> dict[str, Any]:
    """Return the manifest of app:`tag` in a registry."""
    document: dict[str, Any] = json.loads(manifest(registry.host, "app", tag) or b"null")
    return document


def run_push(mover: Mover, how: How, archive: bytes, *argv: str) -> list[str]:
    """Push an archive and return the result lines."""
    path = mover.folder / "given.tar"
    path.write_bytes(archive)
    given: list[str | Path] = ["-i", path] if how == "file" else []
    return mover.run("push", *argv, *given, stdin=archive if how == "pipe" else None).lines()


@quirk(33)
@both_ways
def test_an_archive_may_have_its_blobs_before_its_index(how: How, start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    index = two_platforms(layout, name="app")
    items = items_of(layout)
    names = [name for name, _ in items]
    assert names.index("index.json") > max(names.index(name) for name in names if name.startswith("blobs/"))
    mover().push(tar_of(items), f"{registry.host}/app:v1", how)
    assert manifest(registry.host, "app", "v1") == layout.file(index["digest"]).read_bytes()


@quirk(33)
@both_ways
@pytest.mark.parametrize("hard", [False, True], ids=["symbolic links", "hard links"])
def test_an_archive_of_an_older_docker_save_is_pushed_unchanged(
    hard: bool, how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    shared = tar_layer({"etc/motd": b"twice\n"})
    image = saved(layout, layout.image([shared, tar_layer({"bin/a": b"a" * 9000}), shared]), "team/app:v1")
    entries = of_docker([image], hard=hard)
    assert [name for name, _ in entries][-2:] == ["manifest.json", "repositories"]
    mover().push(archive_of(entries), f"{registry.host}/app:v1", how)
    document = pushed(registry)
    assert get(registry.host, f"/v2/app/blobs/{document['config']['digest']}")[1] == image.config
    layers = [get(registry.host, f"/v2/app/blobs/{layer['digest']}")[1] for layer in document["layers"]]
    assert [plain(layer) for layer in layers] == list(image.layers)
    assert {layer["mediaType"] for layer in document["layers"]} == {OCI_LAYER + "+gzip"}


#: Layers that are empty, are not a tar, or begin as JSON does.
UNUSUAL: Final = {
    "nothing": b"",
    "empty": END,
    "empty with blocks": bytes(10240),
    "a brace": tar_layer({"{": b"begins as JSON does"}, compression=""),
    "a space": tar_layer({" {": b"so does this"}, compression=""),
    "v7": with_checksum(tar_layer({"v7": b"knows no magic"}, compression="")[:257] + bytes(255)) + END,
    "text": b"no tar at all",
}


@quirk(33)
@both_ways
@pytest.mark.parametrize("what", UNUSUAL)
def test_an_unusual_layer_of_docker_save_is_compressed_or_stays_as_it_is(
    what: str, how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image = saved(layout, layout.image([UNUSUAL[what], tar_layer({"a": b"b"})]), "team/app:v1")
    archive = archive_of(of_docker([image]))
    mover().push(archive, f"{registry.host}/app:v1", how)
    layers = pushed(registry)["layers"]
    assert {layer["mediaType"] for layer in layers} == {OCI_LAYER + "+gzip"}
    found = [get(registry.host, f"/v2/app/blobs/{layer['digest']}")[1] for layer in layers]
    assert [plain(layer) for layer in found] == list(image.layers)
    mover().push(archive, f"{registry.host}/app:v2", how, "--compress", "none")
    assert pushed(registry, "v2") == plain_manifest(image)


def with_layer_sources(entries: list[Entry], layers: list[bytes], *, kind: str) -> list[Entry]:
    """Add the LayerSources of Docker 25 to a manifest.json."""
    (content,) = [content for name, content in entries if name == "manifest.json"]
    assert isinstance(content, bytes)
    (listed,) = json.loads(content)
    listed["LayerSources"] = {
        f"sha256:{hex_of(layer)}": {"mediaType": kind, "size": len(layer), "digest": f"sha256:{hex_of(layer)}"}
        for layer in layers
    }
    others = [entry for entry in entries if entry[0] != "manifest.json"]
    return [*others, ("manifest.json", json.dumps([listed]).encode())]


@quirk(34)
@both_ways
@pytest.mark.parametrize("kind", [OCI_LAYER, DOCKER_LAYER])
@pytest.mark.parametrize("index", [True, False], ids=["with an index.json", "without"])
def test_layer_sources_are_ordinary_layers(
    index: bool, kind: str, how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    layers = [tar_layer({"etc/motd": b"one"}, compression=""), tar_layer({"bin/a": b"two"}, compression="")]
    made = layout.image(layers, name="app")
    image = saved(layout, made, "team/app:v1")
    entries = with_layer_sources(of_stripped_oci([image]), layers, kind=kind)
    if index:
        known = {name for name, _ in entries}
        entries += [(name, content) for name, content in items_of(layout) if name not in known]
    mover().push(archive_of(entries), f"{registry.host}/app:v1", how)
    document = pushed(registry)
    assert len(document["layers"]) == 2
    assert not any("foreign" in layer["mediaType"] or "urls" in layer for layer in document["layers"])
    found = [get(registry.host, f"/v2/app/blobs/{layer['digest']}")[1] for layer in document["layers"]]
    assert [plain(layer) for layer in found] == layers


@quirk(35)
@both_ways
def test_our_archive_has_the_manifest_json_that_docker_load_needs(
    how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image = small_image(layout)
    seed(layout, image, registry.host, "team/app", "v1")
    files = mover().pull(f"{registry.host}/team/app:v1", how)
    (listed,) = json.loads(files["manifest.json"])
    assert listed["RepoTags"] == [f"{registry.host}/team/app:v1"]
    document = layout.read(image["digest"])
    assert listed["Config"] == blob_name(document["config"]["digest"])
    assert listed["Layers"] == [blob_name(layer["digest"]) for layer in document["layers"]]
    assert {listed["Config"], *listed["Layers"]} <= files.keys()


def named(layout: Layout, image: Descriptor, *entries: dict[str, str]) -> None:
    """Add an image to index.json, once for each of these annotations."""
    layout.enter(*({**image, "annotations": annotations} for annotations in entries))


@quirk(36)
@both_ways
def test_an_image_is_pushed_under_each_full_name_of_its_entries(
    how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image = small_image(layout)
    named(
        layout,
        image,
        {FULL_NAME: "docker.io/team/app:v1", REF_NAME: "v1"},
        {FULL_NAME: "docker.io/team/app:latest", REF_NAME: "latest"},
        {FULL_NAME: "registry.example.com:5000/other/app:v1", REF_NAME: "v1"},
    )
    # The order of containerd. In a pipe the names must come first: they say where the blobs belong.
    items = items_of(layout) if how == "file" else small_first(layout)
    lines = run_push(mover(), how, tar_of(items), "--to", registry.host)
    assert {line.partition("@")[0] for line in lines} == {
        f"{registry.host}/{name}" for name in ("team/app:v1", "team/app:latest", "other/app:v1")
    }
    assert tags(registry.host, "team/app") == ["latest", "v1"]
    assert manifest_digest(registry.host, "other/app", "v1") == image["digest"]


@quirk(36)
@both_ways
@pytest.mark.parametrize("chosen", ["v1", "team/app:v1", "docker.io/team/app:v1"])
def test_an_image_is_selected_by_its_tag_or_its_full_name(
    chosen: str, how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image, other = small_image(layout), layout.image([b"another"])
    named(layout, image, {FULL_NAME: "docker.io/team/app:v1", REF_NAME: "v1"})
    named(layout, other, {FULL_NAME: "docker.io/team/app:v2", REF_NAME: "v2"})
    run_push(mover(), how, tar_of(small_first(layout)), f"{registry.host}/app:v1", "--image", chosen)
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


@quirk(36)
@both_ways
def test_a_pulled_image_has_both_names(how: How, start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    seed(layout, small_image(layout), registry.host, "team/app", "v1")
    files = mover().pull(f"{registry.host}/team/app:v1", how)
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"] == {FULL_NAME: f"{registry.host}/team/app:v1", REF_NAME: "v1"}


@quirk(37)
@both_ways
def test_missing_blobs_of_other_images_and_unlisted_files_are_ignored(
    how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image, lacking = small_image(layout, name="app"), layout.image([b"not here"], name="lacking")
    for blob in (config_of(layout, lacking), layer_of(layout, lacking)):
        layout.file(blob["digest"]).unlink()
    extra = [("README.md", b"hello"), ("blobs/sha256/notes.txt", b"hm"), ("cache/index.json", b"{}"), ("empty/", None)]
    archive = tar_of([*extra, *small_first(layout)])
    run_push(mover(), how, archive, f"{registry.host}/app:v1", "--image", "app")
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]
    assert b"hello" not in {path.read_bytes() for path in (registry.layout.path / "blobs").glob("*/*")}


@quirk(37)
@both_ways
def test_a_missing_blob_may_exist_in_the_registry(how: How, start: Start, mover: Move, layout: Layout) -> None:
    there, empty = start(), start()
    image = small_image(layout, name="app")
    seed(layout, image, there.host, "app", "v0")
    layer = layer_of(layout, image)
    archive = tar_of([item for item in small_first(layout) if item[0] != blob_name(layer["digest"])])
    mover().push(archive, f"{there.host}/app:v1", how)
    assert manifest_digest(there.host, "app", "v1") == image["digest"]
    mover().push(archive, f"{empty.host}/app:v1", how, code=6, says=layer["digest"])
    assert manifest(empty.host, "app", "v1") is None


@quirk(38)
@both_ways
@pytest.mark.parametrize("kept", [True, False], ids=["and the layer is there", "and the layer is not"])
@pytest.mark.parametrize("kind", ["application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", OCI_LAYER + "+gzip"])
def test_the_urls_of_a_layer_are_never_requested(
    kind: str, kept: bool, how: How, start: Start, mover: Move, layout: Layout
) -> None:
    foreign = "nondistributable" in kind
    layer = tar_layer({"windows/base": b"w" * 5000})
    document = layout.read(layout.image([layer, tar_layer({"bin/own": b"own"})])["digest"])
    with RawServer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(layer) + layer) as elsewhere:
        document["layers"][0] |= {"mediaType": kind, "urls": [f"{elsewhere.url}/base", "https://go.example.com/base"]}
        made = layout.document({**document, "mediaType": OCI_MANIFEST}, name="app")
        if not kept:
            layout.file(digest_of(layer)).unlink()
        registry, other = start(), start()
        archive = tar_of(small_first(layout))
        if not kept and not foreign:
            mover().push(archive, f"{registry.host}/app:v1", how, code=6, says=digest_of(layer))
        else:
            mover().push(archive, f"{registry.host}/app:v1", how)
            assert manifest(registry.host, "app", "v1") == layout.file(made["digest"]).read_bytes()
            assert is_stored(registry, layout, layer_of(layout, made))
            files = mover().pull(f"{registry.host}/app:v1", how)
            assert files[blob_name(made["digest"])] == layout.file(made["digest"]).read_bytes()
            mover().copy(f"{registry.host}/app:v1", f"{other.host}/app:v1")
            mover().pull(f"{registry.host}/app:v1")
            mover().run("verify", mover().folder / "pulled.tar")
        assert elsewhere.heard == []
