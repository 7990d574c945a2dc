"""Archives of Docker 25 and later on the command line: `manifest.json` beside `index.json`, uncompressed layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.archives import blob_name, items_of, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Give
from tests.cli.forms import both
from tests.cli.serving import serving, stop
from tests.docker_archives import (
    Entry,
    Saved,
    archive_of,
    hex_of,
    of_docker_25,
    plain,
    plain_manifest,
    saved,
    with_file,
)
from tests.faulty_registry import FaultyRegistry
from tests.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, Layout, digest_of, tar_layer
from tests.recompression_checks import VOUCHES_FOR
from tests.registry_http import get, manifest, manifest_digest, tags
from tests.runner import ocistream

#: Part of the message about images that only manifest.json lists.
_ALSO: Final = "that index.json does not list"


@pytest.fixture
def images(layout: Layout) -> list[Saved]:
    """Return a tagged image, and one without a tag that shares a layer with it."""
    shared = tar_layer({"etc/motd": b"shared\n"})
    first = layout.image([shared, tar_layer({"a": b"first " * 500})])
    second = layout.image([shared, tar_layer({"b": b"second"})], platform="linux/arm64")
    return [saved(layout, first, "app:1"), saved(layout, second)]


def digest(image: Saved) -> str:
    """Return the digest of the manifest that Docker writes for an image."""
    return digest_of(json.dumps(plain_manifest(image), separators=(",", ":")).encode())


def image_id(image: Saved) -> str:
    return f"sha256:{hex_of(image.config)}"


def ordered(entries: Sequence[Entry], *first: str) -> list[Entry]:
    """Return entries in another order: some come first, in this order."""
    named = dict(entries)
    return [*((name, named[name]) for name in first), *(entry for entry in entries if entry[0] not in first)]


def small_of(image: Saved) -> list[str]:
    """Return the digests of the manifest and the config of an image."""
    return [digest(image), image_id(image)]


def late(entries: dict[str, Any], *first: str) -> list[Entry]:
    """Return entries in another order: `first` first, manifest.json and `repositories` last."""
    last = ("manifest.json", "repositories")
    middle = [name for name in entries if name not in {*first, *last}]
    return [(name, entries[name]) for name in (*first, *middle, *last)]


def with_list(layout: Layout, image: Descriptor, *tags: str) -> bytes:
    """Return an archive of a layout, and a manifest.json as `docker save` writes it that lists the image."""
    config, *layers = layout.blobs(image)
    listed = {
        "Config": blob_name(config["digest"]),
        "RepoTags": list(tags) or None,
        "Layers": [blob_name(layer["digest"]) for layer in layers],
        "LayerSources": {layer["digest"]: layer for layer in layers},
    }
    return tar_of([*items_of(layout), ("manifest.json", json.dumps([listed]).encode())])


def assert_pushed(host: str, repository: str, tag: str, image: Saved, suffix: str = "+gzip") -> None:
    """Assert that a registry has an image with its layers compressed."""
    document = json.loads(manifest(host, repository, tag) or b"{}")
    assert document["config"]["digest"] == image_id(image)
    assert {layer["mediaType"] for layer in document["layers"]} == {OCI_LAYER + suffix}
    found = [get(host, f"/v2/{repository}/blobs/{layer['digest']}")[1] for layer in document["layers"]]
    assert [plain(layer) for layer in found] == list(image.layers)


# Images that only manifest.json lists ---------------------------------------------------------------------------

#: Entries that come first in the archive.
ORDERS: Final = [(), ("manifest.json",), ("manifest.json", "index.json"), ("index.json", "manifest.json", "oci-layout")]


@both
def test_an_image_that_only_manifest_json_lists_is_included(how: str, images: list[Saved], give: Give) -> None:
    for first in ORDERS:
        result = assertions.success(give(archive_of(ordered(of_docker_25(images), *first)), how, "verify", "{}"))
        # Both manifests are in the archive, byte for byte: their digests exist there.
        assert result.lines()[:2] == [f"docker.io/library/app:1@{digest(images[0])}", f"-@{digest(images[1])}"]
        assert "ok: OCI archive, 2 images, 2 manifests, 5 blobs," in result.lines()[2]
        archive = "the archive on stdin" if how == "pipe" else "given.tar"
        assert f"{archive} also contains an image of manifest.json {_ALSO}: {digest(images[1])} (image ID" in result.err
        assert f"(image ID {image_id(images[1])})\n" in result.err


@pytest.mark.uncounted
@pytest.mark.parametrize(("how", "first"), [("file", ()), *(("pipe", first) for first in ORDERS)])
def test_push_requires_a_choice_if_only_manifest_json_lists_an_image(
    how: str, first: tuple[str, ...], images: list[Saved], give: Give, served: FaultyRegistry
) -> None:
    archive = archive_of(ordered(of_docker_25(images), *first))
    result = give(archive, how, "push", f"{served.host}/app:1")
    assert result.code == 2
    assert digest(images[1]) in result.err
    assertions.no_image(served)
    names = (digest(images[1]), "app:1") if how == "file" else (digest(images[1]),)
    for name, image in zip(names, images[::-1], strict=False):
        assertions.success(give(archive, how, "push", f"{served.host}/app:1", "--image", name))
        assert_pushed(served.host, "app", "1", image)


@both
def test_images_without_tags_of_docker_25_0_are_found_in_manifest_json(
    how: str, images: list[Saved], give: Give, served: FaultyRegistry
) -> None:
    archive = archive_of(of_docker_25(images[1:], null=True))
    result = assertions.success(give(archive, how, "verify", "{}"))
    assert result.lines()[0] == f"-@{digest(images[1])}"
    assertions.success(give(archive, how, "push", f"{served.host}/app:1"))
    assert_pushed(served.host, "app", "1", images[1])


@both
def test_an_image_without_a_manifest_is_named_by_its_image_id(how: str, images: list[Saved], give: Give) -> None:
    entries = of_docker_25(images[1:], null=True)
    manifest_file = f"blobs/sha256/{digest(images[1]).removeprefix('sha256:')}"
    result = give(archive_of([entry for entry in entries if entry[0] != manifest_file]), how, "verify", "{}")
    assertions.success(result)
    assert result.lines()[0] == f"- image ID {image_id(images[1])}"
    assert "ok: OCI archive, 1 image, 3 blobs," in result.lines()[1]
    spoilt = [(name, b"{}" if name == manifest_file else content) for name, content in entries]
    result = give(archive_of(spoilt), how, "verify", "{}")
    assert result.code == 5
    # Only an intact image has its own line.
    assert result.lines()[0].startswith("NOT ok: OCI archive, 1 image, 4 blobs,")
    assert f"digest mismatch: expected {digest(images[1])}, got " in result.err


@pytest.mark.uncounted
@both
def test_inspect_copy_and_have_include_an_image_of_manifest_json(
    how: str, images: list[Saved], give: Give, tmp_path: Path
) -> None:
    archive = archive_of(of_docker_25(images))
    shown = give(archive, how, "inspect", "{}", "--json")
    described = [image["digest"] for image in json.loads(shown.out)["images"]]
    assert described == [digest(images[0]), digest(images[1])]
    listed = give(archive, how, "have", "{}")
    assert digest(images[1]) in listed.lines()
    assert _ALSO in shown.err
    assert _ALSO in listed.err
    copied = assertions.success(give(archive, how, "copy", "{}", f"oci:{tmp_path / 'out'}"))
    entries = assertions.index_of(tmp_path / "out")
    # Its layers were compressed: only the destination has an image with this digest.
    assert copied.lines()[1] == f"oci:{tmp_path / 'out'}@{entries[1]['digest']}"
    assert len(entries) == 2


def test_serve_includes_an_image_of_manifest_json(images: list[Saved], tmp_path: Path) -> None:
    (tmp_path / "both.tar").write_bytes(archive_of(of_docker_25(images)))
    with serving(tmp_path / "both.tar") as (_, host):
        assert manifest_digest(host, "library/app", "1") == digest(images[0])
        assert get(host, f"/v2/library/app/manifests/{digest(images[1])}")[0] == 200
    (tmp_path / "one.tar").write_bytes(archive_of(of_docker_25(images[1:], null=True)))
    with serving(tmp_path / "one.tar") as (_, host):
        assert tags(host, "one") == ["latest"]
        assert manifest_digest(host, "one", "latest") == digest(images[1])


@pytest.mark.parametrize(("prefix", "notices"), [("", 1), ("docker-archive:", 0)])
def test_the_page_of_serve_shows_the_images_that_are_served(
    images: list[Saved], tmp_path: Path, prefix: str, notices: int
) -> None:
    path = tmp_path / "both.tar"
    path.write_bytes(archive_of(of_docker_25(images)))
    with serving(f"{prefix}{path}") as (process, host):
        status, page = get(host, "/", headers={"Accept": "text/html"})
        err = stop(process)
    assert (status, f"docker pull {host}/library/app:1" in page.decode()) == (200, True)
    # The page reads the archive again, in the same way and under the same name.
    assert err.count(_ALSO) == err.count(f"{path} also contains") == notices


def test_serve_refuses_an_archive_without_images(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "empty.tar").write_bytes(tar_of(items_of(layout)))
    result = ocistream("serve", tmp_path / "empty.tar", "--listen", "127.0.0.1:0")
    assertions.failure(result, 4, "empty.tar has no images")


def test_push_from_a_pipe_needs_manifest_json_before_the_layers(
    images: list[Saved], give: Give, served: FaultyRegistry
) -> None:
    entries = of_docker_25(images)
    late = [entry for entry in ordered(entries, "index.json") if entry[0] != "manifest.json"]
    archive = archive_of([*late, ("manifest.json", dict(entries)["manifest.json"])])
    result = give(archive, "pipe", "push", f"{served.host}/app:1", "--image", "app:1")
    assertions.failure(result, 8, "manifest.json", "from a file")
    assertions.no_image(served)
    assertions.success(give(archive, "file", "push", f"{served.host}/app:1", "--image", "app:1"))


@both
def test_as_a_docker_archive_only_manifest_json_counts(
    how: str, images: list[Saved], give: Give, served: FaultyRegistry
) -> None:
    entries = of_docker_25(images, index=[])
    shown = assertions.success(give(archive_of(entries), how, "verify", "{}", prefix="docker-archive:"))
    assert shown.lines()[:2] == [
        f"docker.io/library/app:1 image ID {image_id(images[0])}",
        f"- image ID {image_id(images[1])}",
    ]
    assert "ok: docker-archive, 2 images" in shown.lines()[2]
    inspected = give(archive_of(of_docker_25(images)), how, "inspect", "{}", "--json", prefix="docker-archive:")
    assert "org.opencontainers.image.ref.name" not in inspected.out.decode()
    result = give(archive_of(entries), how, "push", f"{served.host}/app:1", prefix="docker-archive:")
    assertions.failure(result, 2, " has 2 images\n", digest(images[1]))
    # Docker 25.0.0 lists the layers in its manifests in any order; manifest.json has the right order.
    image = images[0]
    mixed = dict(plain_manifest(image), layers=plain_manifest(image)["layers"][::-1])
    raw = json.dumps(mixed).encode()

    def of_the_other(index: Any) -> Any:
        index["manifests"][0] |= {"digest": digest_of(raw), "size": len(raw)}
        return index

    wrong = with_file([*of_docker_25([image]), (f"blobs/sha256/{hex_of(raw)}", raw)], "index.json", of_the_other)
    assertions.failure(
        give(archive_of(wrong), how, "push", f"{served.host}/app:1"), 6, "other layers", "docker-archive:"
    )
    assertions.no_image(served)
    assertions.success(give(archive_of(wrong), how, "push", f"{served.host}/app:1", prefix="docker-archive:"))
    assert_pushed(served.host, "app", "1", image)


@both
def test_as_a_docker_archive_without_manifest_json_it_is_read_as_oci(how: str, images: list[Saved], give: Give) -> None:
    entries = [entry for entry in of_docker_25(images[:1]) if entry[0] not in {"manifest.json", "repositories"}]
    result = assertions.success(give(archive_of(entries), how, "verify", "{}", "-v", prefix="docker-archive:"))
    assert result.lines()[0] == f"docker.io/library/app:1@{digest(images[0])}"
    assert "no manifest.json" in result.err


def test_in_a_directory_only_index_json_counts_and_this_is_reported(images: list[Saved], tmp_path: Path) -> None:
    for name, content in of_docker_25(images[1:], null=True):
        if isinstance(content, bytes):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    result = ocistream("push", "-i", tmp_path, "localhost:1/app:1")
    assert result.code == 4
    assert "manifest.json is not read" in result.err


# manifest.json and index.json that contradict each other --------------------------------------------------------


def same_name(images: list[Saved]) -> list[Entry]:
    """Return an archive in which app:1 is one image in index.json and another in manifest.json, which lists both."""

    def swapped(listed: Any) -> Any:
        return [{**listed[1], "RepoTags": ["app:1"]}, {**listed[0], "RepoTags": None}]

    return with_file(of_docker_25(images), "manifest.json", swapped)


def test_two_lists_that_contradict_each_other_are_refused(
    images: list[Saved], give: Give, served: FaultyRegistry
) -> None:
    # tests/hostile gives archives of every contradiction to `push`, `verify` and `copy`.
    archive = archive_of(same_name(images))
    for argv in (["inspect", "{}"], ["have", "{}"], ["serve", "{}", "--listen=127.0.0.1:0"]):
        assertions.failure(give(archive, "file", *argv), 6, "manifest.json")
    for first in ORDERS:
        archive = archive_of(ordered(same_name(images), *first))
        assertions.failure(give(archive, "pipe", "push", f"{served.host}/app:1"), 6, "manifest.json")
    assertions.no_image(served)


def test_a_contradiction_that_comes_last_in_a_pipe_is_refused(
    images: list[Saved], give: Give, served: FaultyRegistry
) -> None:
    entries = ordered(same_name(images), "index.json")
    late = [entry for entry in entries if entry[0] != "manifest.json"]
    archive = archive_of([*late, ("manifest.json", dict(entries)["manifest.json"])])
    assertions.failure(give(archive, "pipe", "push", f"{served.host}/app:1"), 6, "app:1", "manifest.json")
    assertions.no_image(served)
    # The prefix docker-archive: does not hide the contradiction.
    assertions.failure(give(archive, "pipe", "verify", "{}", prefix="docker-archive:"), 6, "app:1", "manifest.json")


def test_a_manifest_that_is_the_config_of_another_image_hides_no_contradiction(layout: Layout, tmp_path: Path) -> None:
    good, evil = layout.blob(b"good", OCI_LAYER), layout.blob(b"evil", OCI_LAYER)

    def image(layer: Descriptor, config: Descriptor, **more: Any) -> Descriptor:
        fields = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer], **more}
        return layout.blob(json.dumps(fields).encode(), OCI_MANIFEST)

    def config_of(layer: Descriptor) -> dict[str, Any]:
        rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
        return {"architecture": "amd64", "os": "linux", "rootfs": rootfs}

    # The manifest of app:1 is also the config of the other image.
    own = image(good, layout.blob(json.dumps(config_of(good)).encode(), OCI_CONFIG), **config_of(evil))
    other = image(evil, {**own, "mediaType": OCI_CONFIG})
    layout.name(own, "r.example/app:1")
    layout.name(other, "r.example/other:1")
    listed = {
        "Config": blob_name(own["digest"]),
        "RepoTags": ["r.example/app:1"],
        "Layers": [blob_name(evil["digest"])],
    }
    (layout.path / "manifest.json").write_text(json.dumps([listed]))
    archive = tmp_path / "app.tar"
    archive.write_bytes(tar_of(items_of(layout)))
    result = ocistream("verify", archive)
    assertions.failure(result, 6, "r.example/app:1 is one image in manifest.json and another in index.json")


@both
@pytest.mark.parametrize("count", [1, 2])
def test_a_damaged_manifest_is_not_called_a_contradiction(
    how: str, count: int, images: list[Saved], give: Give, served: FaultyRegistry
) -> None:
    name = f"blobs/sha256/{digest(images[0]).removeprefix('sha256:')}"
    entries = [
        (path, content[:-1] + b" " if path == name and isinstance(content, bytes) else content)
        for path, content in of_docker_25(images[:count])
    ]
    for argv in (["verify", "{}"], ["verify", "--deep", "{}"], ["push", f"{served.host}/app:1"]):
        result = give(archive_of(entries), how, *argv)
        words = ["the archive on stdin" if how == "pipe" else "given.tar", "digest mismatch", digest(images[0])]
        assertions.failure(result, 5, *words, "damaged")
    assertions.no_image(served)


# Uncompressed layers of docker save -----------------------------------------------------------------------------


@pytest.mark.parametrize("sources", [True, False], ids=["LayerSources", "repositories"])
def test_plain_layers_of_docker_save_are_compressed_and_the_new_digest_is_reported(
    sources: bool, images: list[Saved], give: Give, served: FaultyRegistry
) -> None:
    archive = archive_of(of_docker_25(images[:1], sources=sources))
    for how in ("file", "pipe"):
        result = assertions.success(give(archive, how, "push", f"{served.host}/app:{how}"))
        assert_pushed(served.host, "app", how, images[0])
        assert f"the digest {digest(images[0])} became {manifest_digest(served.host, 'app', how)}" in result.err
    assert manifest_digest(served.host, "app", "file") == manifest_digest(served.host, "app", "pipe")


@both
def test_layers_stay_uncompressed_with_compress_none(
    how: str, images: list[Saved], give: Give, served: FaultyRegistry
) -> None:
    result = give(archive_of(of_docker_25(images[:1])), how, "push", f"{served.host}/app:1", "--compress", "none")
    assertions.success(result)
    assert manifest_digest(served.host, "app", "1") == digest(images[0])
    assert "docker save" not in result.err


@pytest.mark.parametrize(("how", "to"), [("file", "oci:{out}"), ("pipe", "{host}/copied:1")])
def test_a_copy_compresses_layers_too(
    how: str, to: str, images: list[Saved], give: Give, served: FaultyRegistry, tmp_path: Path
) -> None:
    archive = archive_of(of_docker_25(images[:1]))
    result = assertions.success(give(archive, how, "copy", "{}", to.format(out=tmp_path / "out", host=served.host)))
    assert "became" in result.err
    if to.startswith("oci:"):
        (entry,) = assertions.index_of(tmp_path / "out")
        assert {layer["mediaType"] for layer in Layout(tmp_path / "out").read(entry["digest"])["layers"]} == {
            f"{OCI_LAYER}+gzip"
        }
    else:
        assert_pushed(served.host, "copied", "1", images[0])


def test_layers_stay_uncompressed_from_a_pipe_into_an_archive_and_this_is_reported(
    images: list[Saved], give: Give, tmp_path: Path
) -> None:
    archive = archive_of(of_docker_25(images[:1]))
    result = assertions.success(give(archive, "pipe", "copy", "{}", f"oci-archive:{tmp_path / 'out.tar'}"))
    assert "2 layers were copied uncompressed, because they came before manifest.json in the pipe" in result.err
    assert assertions.index_of(tmp_path / "out.tar")[0]["digest"] == digest(images[0])
    assertions.success(give(archive, "file", "copy", "{}", f"oci-archive:{tmp_path / 'out.tar'}"))
    assert assertions.index_of(tmp_path / "out.tar")[0]["digest"] != digest(images[0])


@both
def test_layers_stay_uncompressed_if_blobs_are_omitted_and_this_is_reported(
    how: str, images: list[Saved], give: Give, tmp_path: Path
) -> None:
    archive = archive_of(of_docker_25(images[:1]))
    (tmp_path / "have.txt").write_bytes(give(archive, how, "have", "{}").out)
    result = give(archive, how, "copy", "{}", f"oci-archive:{tmp_path / 'x.tar'}", "--have", tmp_path / "have.txt")
    assertions.success(result)
    assert "2 layers were copied uncompressed, because blobs are omitted by their digests" in result.err
    assert assertions.index_of(tmp_path / "x.tar")[0]["digest"] == digest(images[0])


@pytest.mark.uncounted
def test_layers_that_stay_uncompressed_because_manifest_json_is_late_are_counted(
    images: list[Saved], give: Give, served: FaultyRegistry, tmp_path: Path
) -> None:
    # The graph is known at the second layer, before manifest.json shows that `docker save` wrote the archive.
    entries = dict(of_docker_25(images[:1]))
    documents = ("oci-layout", "index.json", *(f"blobs/sha256/{one.partition(':')[2]}" for one in small_of(images[0])))
    archive = archive_of(late(entries, *documents))
    stay = (
        "2 layers were copied uncompressed, because they came before manifest.json in the pipe; to compress them, add"
    )
    result = assertions.success(give(archive, "pipe", "copy", "{}", f"oci-archive:{tmp_path / 'out.tar'}"))
    assert result.err.count(stay) == result.err.count("uncompressed") == 1
    for argv in (["push", f"{served.host}/app:1", "--compress", "gzip"], ["verify", "{}"]):
        result = assertions.success(give(archive, "pipe", *argv))
        assert "uncompressed" not in result.err
    assert_pushed(served.host, "app", "1", images[0])


def test_layers_of_several_archives_are_compressed_too(
    images: list[Saved], served: FaultyRegistry, tmp_path: Path
) -> None:
    paths = [tmp_path / "one.tar", tmp_path / "two.tar"]
    for path in paths:
        path.write_bytes(archive_of(of_docker_25(images[:1])))
    given = [word for path in paths for word in ("-i", path)]
    result = succeed("push", "--to", served.host, *given)
    assert f"{digest(images[0])} became" in result.err
    assert_pushed(served.host, "app", "1", images[0])
    result = succeed("push", f"{served.host}/app:plain", *given, "--compress", "none")
    assert manifest_digest(served.host, "app", "plain") == digest(images[0])


@pytest.mark.uncounted
@both
def test_plain_layers_of_other_tools_stay_unchanged(
    how: str, images: list[Saved], give: Give, served: FaultyRegistry, tmp_path: Path
) -> None:
    # BuildKit's `compression=uncompressed` has neither LayerSources nor a file named repositories.
    entries = [entry for entry in of_docker_25(images[:1], sources=False) if entry[0] != "repositories"]
    result = assertions.success(give(archive_of(entries), how, "push", f"{served.host}/app:1"))
    assert manifest_digest(served.host, "app", "1") == digest(images[0])
    assert_pushed(served.host, "app", "1", images[0], "")
    twice = "layers were sent compressed and then again uncompressed: this archive is not from `docker save`"
    assert result.err.count("docker save") == result.err.count(twice) == (how == "pipe")
    assertions.success(give(archive_of(entries), how, "copy", "{}", f"oci:{tmp_path / 'out'}"))
    assert assertions.index_of(tmp_path / "out")[0]["digest"] == digest(images[0])
    succeed("verify", tmp_path / "out", "--deep")


@pytest.mark.parametrize(("how", "compression"), [("file", "gzip"), ("pipe", "zstd")])
def test_compressed_layers_of_docker_save_stay_byte_for_byte(
    how: str, compression: Any, layout: Layout, give: Give, served: FaultyRegistry
) -> None:
    layers = [tar_layer({"a": b"one"}, compression=compression), tar_layer({"b": b"two"}, compression=compression)]
    image = layout.image(layers, name="app")
    archive = with_list(layout, image, "app:1")
    result = assertions.success(give(archive, how, "push", f"{served.host}/app:1"))
    assert manifest_digest(served.host, "app", "1") == image["digest"]
    assert "docker save" not in result.err
    # The existing manifest is used, too, if manifest.json lists the images.
    result = assertions.success(give(archive, how, "push", f"{served.host}/app:2", prefix="docker-archive:"))
    assert manifest_digest(served.host, "app", "2") == image["digest"]


@both
def test_an_attestation_in_the_index_refers_to_the_new_image_as_with_compress(
    how: str, layout: Layout, give: Give, served: FaultyRegistry
) -> None:
    image = layout.image([tar_layer({"a": b"plain"}, compression="")])
    vouching = layout.image([tar_layer({"in-toto": b"{}"})], platform="unknown/unknown")
    layout.index([image, {**vouching, "annotations": {VOUCHES_FOR: image["digest"]}}], name="app")
    found = {}
    for name, options in (("saved", []), ("asked", ["--compress", "gzip"])):
        archive = with_list(layout, image)
        assertions.success(give(archive, how, "push", f"{served.host}/{name}:1", *options))
        found[name] = json.loads(manifest(served.host, name, "1") or b"{}")
    assert found["saved"] == found["asked"]
    entry, attestation = found["saved"]["manifests"]
    assert attestation["annotations"][VOUCHES_FOR] == entry["digest"] != image["digest"]


@both
def test_a_missing_layer_is_reported_before_any_blob_of_the_image_is_written(
    how: str, images: list[Saved], give: Give, tmp_path: Path
) -> None:
    lost = digest_of(images[0].layers[1])
    archive = archive_of([entry for entry in of_docker_25(images[:1]) if not entry[0].endswith(lost.partition(":")[2])])
    result = give(archive, how, "copy", "{}", f"oci:{tmp_path / 'out'}", prefix="docker-archive:")
    assertions.failure(result, 6, lost)
    config = tmp_path / "out/blobs" / image_id(images[0]).replace(":", "/")
    assert not config.exists()
