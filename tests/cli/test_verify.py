"""`ocistream verify`: complete and damaged archives, from a file, a directory and a pipe."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits
from tests import registry_http
from tests.archives import END, blob_name, items_of, small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Give
from tests.docker_archives import archive_of, of_docker, saved
from tests.faulty_registry import FaultyRegistry
from tests.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Layout, digest_of, small_image, tar_layer, two_platforms
from tests.runner import Result, ocistream
from tests.schemas import validate_ours

Verify = Callable[..., Result]


@pytest.fixture(params=["file", "pipe"])
def verify(request: pytest.FixtureRequest, give: Give) -> Verify:
    """Return a function that verifies the bytes of an archive from a file or from a pipe."""
    return lambda archive, *options: give(archive, request.param, "verify", "{}", *options)


@pytest.fixture
def images(layout: Layout) -> Layout:
    """Return a layout of an image, an index of two images, and an artifact that refers to the first image."""
    image = small_image(layout, name="v1")
    two_platforms(layout, name="both")
    layout.artifact(b"a list of parts", subject=image, name="parts")
    return layout


def changed(layout: Layout, digest: str, content: bytes | None) -> bytes:
    """Return an archive in which a blob has other bytes, or is missing."""
    items = [(name, content if name == blob_name(digest) else was) for name, was in items_of(layout)]
    return tar_of([item for item in items if item[0] != blob_name(digest) or content is not None])


def a_layer(layout: Layout) -> str:
    """Return the digest of a layer of the image v1."""
    return str(layout.blobs(layout.entries[0])[1]["digest"])


def document(result: Result) -> dict[str, Any]:
    """Return the document of --json, which docs/verify.schema.json describes."""
    found: dict[str, Any] = json.loads(result.out)
    validate_ours(found, "verify")
    return found


def names_in(found: dict[str, Any], key: str) -> list[str]:
    """Return the names of the images in a list of the document."""
    return [image["name"] for image in found[key]]


class TestComplete:
    @pytest.mark.parametrize(("order", "options"), [(items_of, ("--deep",)), (small_first, ())])
    def test_a_complete_archive_is_ok(
        self, images: Layout, verify: Verify, order: Callable[[Layout], list[Any]], options: tuple[str, ...]
    ) -> None:
        result = verify(tar_of(order(images)), *options)
        assert result.code == 0, result.err
        assert result.lines()[-1].startswith("ok: OCI archive, 3 images, ")
        assert ("unpacked" in result.lines()[-1]) == bool(options)
        names = {line.partition("@")[0] for line in result.lines()[:-1]}
        assert names == {"v1", "both", "parts"}

    def test_a_complete_directory_is_ok(self, images: Layout) -> None:
        result = succeed("verify", images.path, "--deep")
        assert result.lines()[-1].startswith("ok: OCI layout, 3 images, ")

    def test_the_json_document_counts_what_was_hashed(self, images: Layout, verify: Verify) -> None:
        found = document(verify(tar_of(items_of(images)), "--json", "--deep"))
        blobs = [path for path in (images.path / "blobs").rglob("*") if path.is_file()]
        assert found["ok"] is True
        assert found["blobs"] == len(blobs)
        assert found["bytes"] == sum(path.stat().st_size for path in blobs)
        # The layers of all images; two images share one.
        assert found["unpacked"] == 5
        assert found["missing"] == found["failures"] == found["illegalNames"] == []

    def test_an_archive_inside_gzip_is_verified(self, images: Layout, verify: Verify) -> None:
        assert verify(gzip.compress(tar_of(items_of(images)))).code == 0

    def test_other_files_are_counted(self, images: Layout, verify: Verify) -> None:
        result = verify(tar_of([*items_of(images), ("README", b"hello")]))
        assert result.code == 0
        assert "1 other file" in result.lines()[-1]


class TestWrongBytes:
    def test_a_flipped_byte_in_a_layer_is_found(self, images: Layout, verify: Verify) -> None:
        digest = a_layer(images)
        content = images.file(digest).read_bytes()
        result = verify(changed(images, digest, content[:-1] + b"?"))
        assert result.code == 5
        said = f"v1: digest mismatch: expected {digest}, got {digest_of(content[:-1] + b'?')}"
        (line,) = [line for line in result.err.splitlines() if digest in line]
        assert line.startswith("ocistream: error: ")
        assert line.endswith(f": {said}")
        assert digest not in result.out.decode()
        # Only the images without a problem are results.
        assert [line.partition("@")[0] for line in result.lines()[:-1]] == ["both", "parts"]
        assert result.lines()[-1].startswith("NOT ok")

    def test_a_layer_that_is_too_short_is_damaged(self, images: Layout, verify: Verify) -> None:
        digest = a_layer(images)
        result = verify(changed(images, digest, images.file(digest).read_bytes()[:-1]))
        assert result.code == 5
        assert "the archive is damaged: copy or pull it again" in result.err

    def test_the_json_document_separates_damaged_images_and_names_one_in_each_failure(
        self, images: Layout, verify: Verify
    ) -> None:
        digest = a_layer(images)
        content = images.file(digest).read_bytes()[:-1] + b"?"
        found = document(verify(changed(images, digest, content), "--json"))
        assert found["ok"] is False
        assert (names_in(found, "images"), names_in(found, "damagedImages")) == (["both", "parts"], ["v1"])
        error = f"digest mismatch: expected {digest}, got {digest_of(content)}"
        assert found["failures"] == [{"image": "v1", "digest": digest, "error": error}]

    def test_an_image_without_a_name_is_named_by_its_digest(self, layout: Layout, verify: Verify) -> None:
        image = small_image(layout)
        layout.write_index([image])
        layer = layout.read(image["digest"])["layers"][0]["digest"]
        archive = changed(layout, layer, layout.file(layer).read_bytes()[:-1] + b"?")
        result = verify(archive, "--json")
        assert [failure["image"] for failure in document(result)["failures"]] == [image["digest"]]
        assert f": {image['digest']}: digest mismatch: expected {layer}" in result.err

    def test_an_image_without_a_manifest_or_a_name_is_named_by_its_image_id(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        image = saved(layout, small_image(layout))
        image = dataclasses.replace(image, layers=(gzip.decompress(tar_layer({"other": b"x"})), *image.layers[1:]))
        (tmp_path / "saved.tar").write_bytes(archive_of(of_docker([image])))
        found = document(ocistream("verify", tmp_path / "saved.tar", "--deep", "--json"))
        (damaged,) = found["damagedImages"]
        assert [failure["image"] for failure in found["failures"]] == [damaged["imageId"]]

    def test_all_wrong_blobs_are_named_in_one_pass(self, images: Layout, verify: Verify) -> None:
        items = items_of(images)
        layers = _layers(images)[:3]
        archive = tar_of(
            [
                (name, content[:-1] + b"?" if content and name in map(blob_name, layers) else content)
                for name, content in items
            ]
        )
        result = verify(archive, "--json")
        assert result.code == 5
        assert {failure["digest"] for failure in document(result)["failures"]} == set(layers)
        assert "(and 2 more)" in result.err
        lines = verify(archive).err.splitlines()
        named = [digest for line in lines for digest in layers if f"mismatch: expected {digest}" in line]
        assert sorted(named) == sorted(layers)

    def test_an_unreferenced_blob_is_hashed_too(self, images: Layout, verify: Verify) -> None:
        name = blob_name(digest_of(b"unneeded"))
        good = verify(tar_of([*items_of(images), (name, b"unneeded")]))
        assert good.code == 0
        assert "1 blob that no image needs" in good.lines()[-1]
        assert verify(tar_of([*items_of(images), (name, b"needed!!")])).code == 5

    def test_a_stored_foreign_layer_is_needed(self, layout: Layout, verify: Verify) -> None:
        kind = "application/vnd.oci.image.layer.nondistributable.v1.tar"
        layer = {**layout.blob(b"foreign", kind), "urls": ["https://example.com/layer"]}
        image = layout.read(small_image(layout)["digest"])
        layout.document({**image, "layers": [*image["layers"], layer]}, name="app:1")
        gc = ocistream("gc", layout.path, "--older-than=0")
        # gc deletes only the manifest without this layer.
        assert len(gc.lines()) == 1
        for result in (ocistream("verify", layout.path), verify(tar_of(items_of(layout)))):
            assert result.code == 0
            assert "no image needs" not in result.lines()[-1]

    def test_a_wrong_blob_of_a_directory_is_found(self, images: Layout) -> None:
        stray = images.blob(b"unneeded", "text/plain")
        assert "1 blob that no image needs" in ocistream("verify", images.path).lines()[-1]
        images.file(stray["digest"]).write_bytes(b"needed!!")
        assert ocistream("verify", images.path).code == 5


@pytest.mark.parametrize(
    ("verify", "order"), [("file", small_first), ("pipe", items_of), ("pipe", small_first)], indirect=["verify"]
)
def test_a_config_that_is_not_json_is_named(layout: Layout, verify: Verify, order: Callable[[Layout], Any]) -> None:
    # The second and third configs are larger than the buffer for JSON.
    large = b'{"x":"' + b"x" * (3 << 20) + b'","z":"' + b"z" * (3 << 20) + b'"'
    image = layout.read(small_image(layout)["digest"])
    for number, content in enumerate((b"\x7fELF", large + b',"x":"y"}', large + b',"y":"y"}')):
        config = layout.blob(content, OCI_CONFIG)
        layout.document({**image, "config": config}, name=f"v{number}")
    result = verify(tar_of(order(layout)))
    assert result.code == 6
    wrong = [line for line in result.err.splitlines() if "the config" in line]
    assert len(wrong) == 2
    for content in (b"\x7fELF", large + b',"x":"y"}'):
        assert any(f": the config {digest_of(content)} " in line for line in wrong)


class TestIncomplete:
    def test_missing_content_is_listed(self, images: Layout, verify: Verify) -> None:
        digest = a_layer(images)
        result = verify(changed(images, digest, None))
        assert result.code == 6
        assert result.err.count(f"missing {digest}") == 1
        assert digest not in result.out.decode()

    def test_a_missing_manifest_is_listed(self, images: Layout, verify: Verify) -> None:
        image = images.entries[0]
        result = verify(changed(images, image["digest"], None), "--json")
        assert result.code == 6
        assert [(missing["image"], missing["digest"]) for missing in document(result)["missing"]] == [
            ("v1", image["digest"])
        ]
        assert names_in(document(result), "damagedImages") == ["v1"]

    def test_a_truncated_archive_is_reported(self, images: Layout, verify: Verify) -> None:
        for less in (1, 512, 1024, 1500, 5000):
            result = verify(tar_of(items_of(images))[:-less], "--json")
            assert result.code == 6
            found = document(result)
            assert found == {"path": found["path"], "ok": False, "error": found["error"]}
            assert "truncated" in result.err

    def test_a_truncated_volume_hides_the_results_of_the_others(self, images: Layout, tmp_path: Path) -> None:
        good, layer = tar_of(items_of(images)), a_layer(images)
        damaged = changed(images, layer, b"x" * images.file(layer).stat().st_size)
        files = {"good.tar": good, "damaged.tar": damaged, "cut.tar": good[: len(good) // 2]}
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        readable = ocistream("verify", tmp_path / "good.tar", tmp_path / "damaged.tar")
        assert (readable.code, "digest mismatch" in readable.err) == (5, True)
        result = ocistream("verify", *(tmp_path / name for name in files))
        assertions.failure(result, 6, "cut.tar is truncated")
        assert "digest mismatch" not in result.err

    def test_input_that_is_not_an_archive_is_refused(self, verify: Verify) -> None:
        for content in (b"", b"no tar at all" * 100, END):
            assert verify(content).code == 6

    @pytest.mark.parametrize(
        ("name", "full_name"),
        [
            ("nginx:1", "docker.io/library/nginx:1"),
            ("org/app", "docker.io/org/app:latest"),
            (f"app@sha256:{'1' * 64}", f"docker.io/library/app@sha256:{'1' * 64}"),
        ],
    )
    def test_a_name_without_a_host_gets_a_hint_with_the_full_name(
        self, tmp_path: Path, name: str, full_name: str
    ) -> None:
        words = (name, "no such file or directory", "check the path", f"in a registry, write its host too: {full_name}")
        assertions.failure(ocistream("verify", name, cwd=tmp_path), 4, *words)
        result = ocistream("verify", "--json", name, cwd=tmp_path)
        assert json.loads(result.out)["error"] == f"cannot read {name}: no such file or directory"

    @pytest.mark.parametrize("name", ["gone.tar", "./nginx", "/gone/nginx", "Gone", "oci:nginx"])
    def test_a_path_that_cannot_be_an_image_name_gets_no_hint_about_registries(self, tmp_path: Path, name: str) -> None:
        result = ocistream("verify", name, cwd=tmp_path)
        assertions.failure(result, 4)
        assert "registry" not in result.err


class TestNames:
    def test_an_illegal_file_name_is_reported(self, images: Layout, verify: Verify) -> None:
        for name in ("../../etc/passwd", "/etc/passwd", "blobs/sha256/abc", "blobs/md5/" + "0" * 32):
            result = verify(tar_of([*items_of(images), (name, b"x")]))
            assert result.code == 6
            assert f"{name!r} is a name that is not allowed in image archives" in result.err

    def test_illegal_image_names_are_reported(self, images: Layout, verify: Verify) -> None:
        names = ["a b", "app:1\n", "v\x1b[2J1", "\u202eapp:1"]
        images.name(images.image([tar_layer({"a": b"1"})]), *names)
        result = verify(tar_of(items_of(images)), "--json")
        assert result.code == 6
        assert sorted(document(result)["illegalNames"]) == sorted(names)
        assert "is a name that is not allowed in image archives" in result.err
        assert "give it another one with `ocistream copy SRC oci:DIR:NAME`" in result.err
        assert ocistream("verify", images.path).code == 6

    def test_an_illegal_name_of_an_image_that_gets_another_name_is_reported(
        self, layout: Layout, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        layout.name(small_image(layout), "app:1\x07")
        line = "ocistream: the name 'app:1?' is not used: names have no spaces or control characters\n"
        source = str(layout.path)
        for argv in (["push", "-i", source, f"{served.host}/app:1"], ["copy", source, f"oci:{tmp_path}/a:1"]):
            result = succeed(*argv)
            assert line in result.err

    def test_tags_of_a_docker_archive_must_be_image_names(self, layout: Layout, verify: Verify) -> None:
        legal, illegal = ["app:1", "r.example:5000/a/b:c"], ["App:1", "app:a b"]
        image = saved(layout, small_image(layout), *legal, *illegal)
        result = verify(archive_of(of_docker([image])), "--json")
        assert (result.code, document(result)["illegalNames"]) == (6, illegal)

    def test_image_names_of_common_tools_are_legal(self, images: Layout, verify: Verify) -> None:
        names = ("app", "v1.0", "docker.io/library/app:1", "UPPER", "a@b", "caf\u00e9")
        images.name(images.image([tar_layer({"a": b"1"})]), *names)
        assert verify(tar_of(items_of(images))).code == 0

    def test_an_illegal_file_name_in_a_directory_is_reported(self, images: Layout) -> None:
        (images.path / "blobs/sha256/abc").write_bytes(b"x")
        (images.path / "blobs/sha256" / ("0" * 64)).symlink_to("/etc/passwd")
        result = ocistream("verify", images.path, "--json")
        assert result.code == 6
        assert document(result)["illegalNames"] == ["blobs/sha256/" + "0" * 64, "blobs/sha256/abc"]

    def test_a_partial_file_in_a_directory_is_not_reported(self, images: Layout) -> None:
        (images.path / "blobs/sha256/.abc.123456.partial").write_bytes(b"x")
        succeed("verify", images.path)


class TestDeep:
    def made(self, layout: Layout, layer: bytes, diff_ids: list[str]) -> bytes:
        config = layout.blob(
            json.dumps(
                {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
            ).encode(),
            OCI_CONFIG,
        )
        written = layout.blob(layer, f"{OCI_LAYER}+gzip")
        layout.document(
            {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [written]}, name="v1"
        )
        return tar_of(items_of(layout))

    def test_a_layer_that_does_not_match_the_config_is_reported(self, layout: Layout, verify: Verify) -> None:
        archive = self.made(layout, tar_layer({"a": b"1"}), [digest_of(b"another")])
        assert verify(archive).code == 0
        result = verify(archive, "--deep")
        assert result.code == 5
        assert digest_of(b"another") in result.err
        assert result.err.endswith("\n  the image itself is wrong: build it again\n")

    def test_a_sha512_diff_id_is_not_checked_and_this_is_said(self, layout: Layout, verify: Verify) -> None:
        layer = tar_layer({"a": b"1"})
        archive = self.made(layout, layer, [digest_of(gzip.decompress(layer), "sha512")])
        result = assertions.success(verify(archive, "--deep"))
        assert f"{digest_of(layer)}: the config of its image has the diff_id sha512:" in result.err

    def test_a_layer_that_cannot_be_decompressed_is_reported(self, layout: Layout, verify: Verify) -> None:
        whole = tar_layer({"a": b"1"})
        archive = self.made(layout, whole[:-4], [digest_of(gzip.decompress(whole))])
        assert verify(archive).code == 0
        result = verify(archive, "--deep")
        assert result.code == 6
        assert digest_of(whole[:-4]) in result.err

    def test_a_config_with_a_different_number_of_layers_is_reported(self, layout: Layout, verify: Verify) -> None:
        plain = digest_of(gzip.decompress(tar_layer({"a": b"1"})))
        assert verify(self.made(layout, tar_layer({"a": b"1"}), [plain, plain]), "--deep").code == 6

    def test_a_layer_that_expands_too_much_is_reported(self, layout: Layout, low_expansion: Path) -> None:
        archive = self.made(layout, gzip.compress(bytes(2 << 20), mtime=0), [digest_of(b"")])
        for path, stdin in ((layout.path, None), ("-", archive)):
            result = ocistream("verify", path, "--deep", "--max-ratio", "10", stdin=stdin, machine=low_expansion)
            assert result.code == 6
            assert "--max-ratio" in result.err


class TestManySmallBlobs:
    def test_json_beyond_the_memory_bound_is_buffered_in_a_file(self, images: Layout) -> None:
        # Unneeded blobs fill the buffer for JSON before the needed ones arrive.
        size = limits.MAX_BUFFERED_JSON // 8
        strays = [b'{"number": %d, "filling": "' % number for number in range(8)]
        strays = [stray + b"-" * (size - len(stray) - 2) + b'"}' for stray in strays]
        items = [(blob_name(digest_of(stray)), stray) for stray in strays]
        result = succeed("verify", "--deep", stdin=tar_of([*items, *items_of(images)]))
        assert "8 blobs that no image needs" in result.lines()[-1]


def test_all_platforms_of_an_image_in_a_registry_are_verified(tmp_path: Path) -> None:
    with FaultyRegistry(tmp_path / "served") as served:
        layout = Layout(tmp_path / "made")
        index = two_platforms(layout)
        registry_http.seed(layout, index, served.host, "app", "1")
        intact = succeed("verify", "--deep", f"{served.host}/app:1")
        assert intact.lines()[0] == f"{served.host}/app:1@{index['digest']}"
        assert intact.lines()[-1].startswith("ok: registry, 1 image, 3 manifests, 5 blobs")
        layer = _layers(layout)[0]
        content = bytearray(layout.file(layer).read_bytes())
        content[-1] ^= 1
        served.layout.blob_path(layer).write_bytes(content)
        broken = ocistream("verify", f"docker://{served.host}/app:1")
        assert broken.code == 5, broken.err
        assert layer in broken.err
        assert broken.err.count(f"{served.host}/app:1") == 1


def _layers(layout: Layout) -> list[str]:
    """Return the digests of all gzip layers."""
    files = [path for path in (layout.path / "blobs/sha256").iterdir() if path.read_bytes()[:2] == b"\x1f\x8b"]
    return [f"sha256:{path.name}" for path in files]
