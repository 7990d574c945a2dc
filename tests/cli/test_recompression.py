"""`--compress` on pull, push and copy: the output, the messages, and the memory and disk space that it needs."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import pytest

from tests.archives import items_of, small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.faulty_registry import Fault, FaultyRegistry, StopReading, refusal
from tests.images import OCI_CONFIG, OCI_LAYER, Descriptor, Layout, digest_of, small_image, tar_layer
from tests.peers import need
from tests.recompression_checks import CODECS, all_kinds, compare, named, stray_blobs, unpacked
from tests.registry_http import manifest_digest, seed
from tests.runner import command, measured, ocistream, run

MIB: Final = 1 << 20
#: Point 4 of the issue about recompression: its maximum peak memory, in bytes.
BUDGET: Final = 64 * MIB

codecs = pytest.mark.parametrize("codec", CODECS)


@pytest.fixture
def registry(served: FaultyRegistry, layout: Layout) -> FaultyRegistry:
    """Return a registry that has an image with a layer of each kind as `app:1`."""
    image = all_kinds(layout, name="1")
    seed(layout, image, served.host, "app", "1")
    served.requests.clear()
    return served


def document(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))


def test_a_long_chain_of_subjects_is_rewritten(layout: Layout, tmp_path: Path) -> None:
    image = small_image(layout, name="0")
    raw = json.loads(layout.file(image["digest"]).read_bytes())
    for number in range(1, 1_200):
        image = layout.document({**raw, "subject": image}, name=str(number))
    result = succeed("copy", "--all-tags", "--compress", "zstd", f"oci:{layout.path}", f"oci:{tmp_path}/out")
    assert len(result.lines()) == 1_200


class TestDirections:
    @codecs
    def test_pull_to_a_directory_a_file_and_a_pipe(
        self, registry: FaultyRegistry, layout: Layout, tmp_path: Path, codec: str
    ) -> None:
        name = f"{registry.host}/app:1"
        lines = [
            ocistream("pull", name, "--compress", codec, "-o", f"{tmp_path}/out/").lines(),
            ocistream("pull", name, "--compress", codec, "-o", tmp_path / "out.tar").lines(),
        ]
        spooled = succeed("pull", name, "--compress", codec)
        assert spooled.out == (tmp_path / "out.tar").read_bytes()
        found = [Layout(tmp_path / "out"), unpacked(spooled.out, tmp_path / "unpacked")]
        for after, line in zip(found, lines, strict=True):
            compare(layout, after, codec)
            assert stray_blobs(after) == set()
            assert line == [f"{name}@{named(after)['1']['digest']}"]

    def test_lost_annotations_and_unchanged_layers_are_reported(self, layout: Layout, tmp_path: Path) -> None:
        manifest = layout.read(small_image(layout)["digest"])
        manifest["layers"][0]["annotations"] = {"containerd.io/snapshot/stargz/toc.digest": "sha256:" + "0" * 64}
        strange = layout.blob(b"x", "application/vnd.example.layer+xz")
        config = layout.read(manifest["config"]["digest"])
        config["rootfs"]["diff_ids"].append(strange["digest"])
        manifest["config"] = layout.blob(json.dumps(config).encode(), OCI_CONFIG)
        layout.document({**manifest, "layers": [*manifest["layers"], strange]}, name="1")
        result = succeed("copy", "-v", layout.path, f"oci:{tmp_path / 'to'}", "--compress", "zstd")
        assert result.err.count("recompressed layers lose their annotations for lazy pulling") == 1
        assert f"{strange['digest']} is not recompressed: layers of the type {strange['mediaType']}" in result.err

    def test_the_new_digest_is_reported(self, registry: FaultyRegistry, tmp_path: Path) -> None:
        name = f"{registry.host}/app:1"
        argv = [name, "--compress", "zstd", "--platform", "all", "-o", f"{tmp_path}/out/", "-v"]
        result = succeed("pull", *argv)
        old, new = manifest_digest(registry.host, "app", "1"), result.lines()[0].rpartition("@")[2]
        assert old != new
        assert f"layers were recompressed: the digest {old} became {new}\n" in result.err
        assert "ocistream: recompressed sha256:" in result.err
        again = succeed("copy", f"oci:{tmp_path}/out", tmp_path / "out.tar", "--compress", "zstd")
        assert "became" not in again.err

    def test_copy_within_a_registry_mounts_unchanged_layers(self, registry: FaultyRegistry, layout: Layout) -> None:
        succeed("copy", f"{registry.host}/app:1", f"{registry.host}/new:1", "--compress", "zstd")
        assert manifest_digest(registry.host, "new", "1") != manifest_digest(registry.host, "app", "1")
        assert len([r for r in registry.requests if r.method == "PATCH"]) == 2
        assert layout.path.exists()

    def test_push_to_sends_each_image_to_its_own_repository(
        self, served: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        shared = tar_layer({"shared": b"x" * 3000})
        for name in ("a.example/one:1", "b.example/two:2"):
            layout.name(layout.image([shared, tar_layer({name: b"own"})]), name)
        (tmp_path / "in.tar").write_bytes(tar_of(items_of(layout)))
        result = succeed("push", "--to", served.host, "-i", tmp_path / "in.tar", "--compress", "zstd")
        digests = [manifest_digest(served.host, name, tag) for name, tag in (("one", "1"), ("two", "2"))]
        assert result.lines() == [f"{served.host}/one:1@{digests[0]}", f"{served.host}/two:2@{digests[1]}"]
        # Two configs by one PUT each, and three recompressed layers.
        assert len([put for put in served.asked("PUT", "/uploads/") if put.received]) == 2
        assert len(served.asked("PATCH")) == 3


class TestResult:
    def test_old_and_new_digests_are_in_the_document(
        self, registry: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        path, name = tmp_path / "result.json", f"{registry.host}/app:1"
        result = succeed("pull", name, "--compress", "zstd", "-o", f"{tmp_path}/out/", "--result", path)
        after = Layout(tmp_path / "out")
        old, new = named(layout)["1"], named(after)["1"]
        before, now = layout.read(old["digest"]), after.read(new["digest"])
        told = document(path)
        keys = ("mediaType", "digest", "size")
        described = {key: new[key] for key in keys}
        assert told["images"] == [
            {**described, "name": name, "from": old["digest"], "size": sum(blob["size"] for blob in after.blobs(new))}
        ]
        assert told["manifests"] == [{**described, "from": old["digest"]}]
        first, second, third = (dict(layer) for layer in now["layers"])
        assert told["blobs"] == [
            {**{key: now["config"][key] for key in keys}, "status": "copied"},
            {**first, "status": "converted", "from": before["layers"][0]["digest"]},
            {**second, "status": "copied"},
            {**third, "status": "converted", "from": before["layers"][2]["digest"]},
        ]
        assert told["bytes"] == {
            "copied": now["config"]["size"] + second["size"],
            "converted": first["size"] + third["size"],
            "skipped": 0,
            "mounted": 0,
            "omitted": 0,
        }
        assert "2 of them recompressed" in result.err

    def test_an_unchanged_image_has_no_from_field(self, served: FaultyRegistry, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, name="1")
        path = tmp_path / "result.json"
        argv = ["push", f"{served.host}/app:1", "--compress", "gzip", "--result", str(path)]
        result = ocistream(*argv, "-i", layout.path)
        assert result.lines() == [f"{served.host}/app:1@{image['digest']}"]
        assert "from" not in path.read_text()
        assert document(path)["bytes"]["converted"] == 0
        assert "recompressed" not in result.err

    def test_progress_counts_the_bytes_that_are_read(
        self, registry: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        argv = ["pull", f"{registry.host}/app:1", "--compress", "zstd", "--progress", "json"]
        lines = assertions.json_lines(ocistream(*argv, "-o", tmp_path / "out.tar").err)
        total = sum(blob["size"] for blob in layout.blobs(named(layout)["1"]))
        last = [line for line in lines if line.get("event") == "progress"][-1]
        assert (last["total"], last["bytes"]) == (total, total)


class TestUsage:
    def test_an_unknown_compression_or_level_is_a_usage_error(self, tmp_path: Path) -> None:
        pull = ["pull", "127.0.0.1:1/app:1", "-o", f"{tmp_path}/out.tar"]
        push = ["push", "127.0.0.1:1/app:1", "-i", str(tmp_path)]
        copy = ["copy", "127.0.0.1:1/app:1", f"{tmp_path}/out.tar"]
        names, levels = ("", "lzma", "ZSTD"), ("gzip:0", "gzip:10", "gzip:", "zstd:99", "zstd:20", "zstd:-1", "none:1")
        for argv, texts, word in ((pull, names, "compression"), (push, ("xz:6",), "level"), (copy, levels, "level")):
            for text in texts:
                assertions.failure(ocistream(*argv, "--compress", text), 2, word)
        assertions.nothing_left(tmp_path)

    @pytest.mark.parametrize("ratio", ["0", "-1", "x", "1000001"])
    def test_a_ratio_has_bounds(self, tmp_path: Path, ratio: str) -> None:
        result = ocistream("copy", tmp_path, tmp_path / "out.tar", "--max-ratio", ratio)
        assertions.failure(result, 2, "--max-ratio")

    @pytest.mark.parametrize("verb", ["pull", "push", "copy"])
    def test_help_explains_compress_and_its_disk_space(self, verb: str) -> None:
        words = " ".join(ocistream(verb, "--help").out.decode().split())
        assert "--compress gzip|zstd|none[:LEVEL]" in words
        assert "--max-ratio" in words
        assert ("temporary disk space in TMPDIR" in words) == (verb != "push")


class TestUploads:
    """Recompressed layers get their digests while they are uploaded."""

    def sent_to(self, registry: FaultyRegistry) -> list[str]:
        """Return the repository of each blob that was sent."""
        bodies = [request for request in registry.asked("PATCH|PUT", "/uploads/") if request.received]
        return sorted(request.target.split("/")[2] for request in bodies)

    def test_a_layer_that_several_repositories_need_is_mounted(self, served: FaultyRegistry, layout: Layout) -> None:
        layout.name(small_image(layout), "r.example/a:1", "r.example/b:1", "r.example/c:1")
        succeed("push", "-i", layout.path, "--to", served.host, "--compress", "zstd")
        (repository,) = set(self.sent_to(served))
        others = {"a", "b", "c"} - {repository}
        digests = [manifest_digest(served.host, name, "1") for name in ("a", "b", "c")]
        assert len(set(digests)) == 1
        manifest = Layout(served.layout.path).read(str(digests[0]))
        for layer in manifest["layers"]:
            mounts = [r for r in served.asked("POST", "mount=") if layer["digest"] in unquote(r.target)]
            assert {request.target.split("/")[2] for request in mounts} == others

    def test_a_layer_that_becomes_identical_to_a_later_one_is_sent_once(
        self, served: FaultyRegistry, layout: Layout
    ) -> None:
        plain = gzip.decompress(tar_layer({"a": b"b"}))
        layers = [gzip.compress(plain, mtime=0), plain]
        layout.image(layers, name="1")
        # Layers that precede the index in a pipe are sent before their manifest is known.
        names = [f"blobs/{digest_of(layer).replace(':', '/')}" for layer in layers]
        items = sorted(items_of(layout), key=lambda item: [*names, item[0]].index(item[0]))
        push = ["push", f"{served.host}/app:1", "--compress", "none"]
        succeed(*push, stdin=tar_of(sorted(items, key=lambda item: item[0] == "index.json")))
        # The layer and the config.
        assert self.sent_to(served) == ["app", "app"]

    def test_a_layer_that_cannot_be_mounted_is_sent_again(self, start: Any, layout: Layout) -> None:
        served = start(Fault(refusal(405), "POST", "mount=", times=None))
        layout.name(layout.image([tar_layer({"a": b"b"})]), "r.example/a:1", "r.example/b:1")
        succeed("push", "-i", layout.path, "--to", served.host, "--compress", "zstd")
        assert self.sent_to(served) == ["a", "a", "b", "b"]

    def test_an_interrupted_upload_is_repeated(self, start: Any, layout: Layout) -> None:
        # The config, which comes first, is too small for the fault.
        served = start(Fault(StopReading(MIB), "PATCH", times=2))
        layout.image([3 * MIB], name="1")
        succeed("push", "-i", layout.path, f"{served.host}/app:1", "--compress", "none", "--jobs=1")
        image = Layout(served.layout.path).read(str(manifest_digest(served.host, "app", "1")))
        (layer,) = image["layers"]
        assert digest_of(Layout(served.layout.path).file(layer["digest"]).read_bytes()) == layer["digest"]

    def test_a_wrong_layer_leaves_no_upload(self, served: FaultyRegistry, layout: Layout) -> None:
        (layer,) = layout.read(layout.image([3 * MIB], name="1")["digest"])["layers"]
        content = layout.file(layer["digest"]).read_bytes()
        layout.file(layer["digest"]).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        result = ocistream("push", "-i", layout.path, f"{served.host}/app:1", "--compress", "none")
        assertions.failure(result, 5, layer["digest"])
        assert served.asked("DELETE", "/blobs/uploads/")
        assert [path.name for path in (served.layout.path / "blobs").glob("*/*") if len(path.name) != 64] == []

    def test_the_digest_of_the_source_is_refused_before_an_upload_from_a_pipe(
        self, served: FaultyRegistry, layout: Layout
    ) -> None:
        image = layout.image([tar_layer({"a": b"b"})], name="1")
        archive = ocistream("copy", layout.path, "-").out
        target = f"{served.host}/app@{image['digest']}"
        assertions.failure(ocistream("push", target, "--compress", "zstd", stdin=archive), 5, "was requested")
        assert not served.asked("POST", "/blobs/uploads/")
        succeed("push", target, "--compress", "gzip", stdin=archive)

    def test_a_requested_digest_must_be_that_of_the_result(self, served: FaultyRegistry, layout: Layout) -> None:
        image = layout.image([tar_layer({"a": b"b"})], name="1")
        push: list[str | Path] = ["push", "-i", layout.path, "--compress", "zstd"]
        result = ocistream(*push, f"{served.host}/app:1@{image['digest']}")
        assertions.failure(result, 5, "was requested")
        assert not served.asked("PUT", "/manifests/")
        assert not served.asked("POST", "/blobs/uploads/")
        (line,) = ocistream(*push, f"{served.host}/app:1").lines()
        succeed(*push, f"{served.host}/app:1@{line.rpartition('@')[2]}")


class TestRefusals:
    def test_a_layer_that_expands_too_much_is_refused(
        self, layout: Layout, tmp_path: Path, low_expansion: Path
    ) -> None:
        image = layout.read(layout.image([tar_layer({"a": b"b"})])["digest"])
        image["layers"] = [layout.blob(gzip.compress(bytes(2 * MIB), 9, mtime=0), image["layers"][0]["mediaType"])]
        layout.document(image, name="1")
        argv = ["copy", str(layout.path), f"{tmp_path}/out/", "--compress", "zstd"]
        result = ocistream(*argv, machine=low_expansion)
        assertions.failure(result, 6, "expands to more than 200 times", "--max-ratio")
        assert not (tmp_path / "out" / "index.json").exists()
        assertions.no_partial_files(tmp_path / "out")
        # With a higher limit the layer is read to its end, and then does not match the config.
        result = ocistream(*argv, "--max-ratio", "2000", machine=low_expansion)
        assertions.failure(result, 5, "the config of its image says")

    @pytest.mark.parametrize("verb", ["copy", "verify", "inspect", "digest", "tags", "have"])
    def test_a_compressed_archive_that_expands_too_much_is_refused(
        self, layout: Layout, tmp_path: Path, low_expansion: Path, verb: str
    ) -> None:
        layout.image([bytes(2 * MIB)], name="1")
        archive = tmp_path / "app.tgz"
        archive.write_bytes(gzip.compress(tar_of(items_of(layout))))
        argv: list[str | Path] = [verb, archive, *([tmp_path / "out.tar"] if verb == "copy" else [])]
        assertions.failure(ocistream(*argv, machine=low_expansion), 6, "expands to more than 200 times", "--max-ratio")
        assertions.success(ocistream(*argv, "--max-ratio", "2000", machine=low_expansion))


def uncovered() -> dict[str, str]:
    """Return the environment without coverage, which writes files."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


@pytest.fixture(scope="module")
def plain() -> list[bytes]:
    """Return large uncompressed layers."""
    return [tar_layer({f"{n}": os.urandom(2 * MIB) + b"many words " * (MIB // 2)}, compression="") for n in range(4)]


@pytest.fixture(scope="module")
def packed(plain: list[bytes]) -> list[bytes]:
    """Return the same layers compressed with gzip."""
    return [gzip.compress(content, 1) for content in plain]


class TestSpace:
    """Only output to a pipe needs temporary disk space."""

    @pytest.fixture
    def no_files(self) -> list[str]:
        """Return a command prefix that prevents all writes to files, even by root."""
        need("prlimit")
        return ["prlimit", "--fsize=0"]

    @pytest.mark.parametrize(("verb", "order"), [(["push"], items_of), (["copy", "-"], small_first)])
    def test_a_copy_from_a_pipe_into_a_registry_needs_no_space(
        self, served: FaultyRegistry, layout: Layout, no_files: list[str], verb: list[str], order: Any, tmp_path: Path
    ) -> None:
        layout.image([tar_layer({"a": b"words " * 100_000}), MIB], name="1")
        (tmp_path / "in.tar").write_bytes(tar_of(order(layout)))
        line = [*no_files, *command(), *verb, f"{served.host}/app:1", "--compress", "zstd"]
        assertions.success(
            run(line, stdin=tmp_path / "in.tar", env=dict.fromkeys(os.environ.keys() - uncovered().keys()))
        )
        compare(layout, Layout(served.layout.path), "zstd")

    def test_a_pull_into_a_pipe_needs_space(self, registry: FaultyRegistry, no_files: list[str]) -> None:
        line = [*no_files, *command(), "pull", f"{registry.host}/app:1", "--compress", "zstd"]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=uncovered()) as process:
            out, err = process.communicate()
        assert process.returncode == 9, err
        assert b"temporary file" in err
        assert not out.endswith(bytes(1024))

    def test_it_is_taken_in_the_directory_that_the_user_chose_and_nowhere_else(
        self, registry: FaultyRegistry, tmp_path: Path
    ) -> None:
        nowhere = tmp_path / "nowhere"
        result = ocistream("pull", f"{registry.host}/app:1", "--compress", "zstd", env={"TMPDIR": str(nowhere)})
        assert result.code == 9
        assert f"cannot store a layer in a temporary file: {nowhere} does not exist" in result.err

    @pytest.mark.parametrize(
        ("codec", "to"),
        [
            ("zstd", "registry"),
            ("gzip", "pipe"),
            *(pytest.param("none", to, marks=pytest.mark.nightly) for to in ("registry", "pipe", "file")),
            *(pytest.param("zstd", to, marks=pytest.mark.nightly) for to in ("pipe", "layout", "file")),
            *(pytest.param("gzip", to, marks=pytest.mark.nightly) for to in ("registry", "layout")),
        ],
    )
    def test_memory_is_bounded(
        self,
        served: FaultyRegistry,
        start: Any,
        layout: Layout,
        plain: list[bytes],
        packed: list[bytes],
        to: str,
        codec: str,
        tmp_path: Path,
    ) -> None:
        image = layout.image(plain if codec == "gzip" else packed, name="1")
        seed(layout, image, served.host, "app", "1")
        targets = {"layout": f"oci:{tmp_path}/out", "file": f"{tmp_path}/out.tar", "pipe": "-"}
        target = targets.get(to) or f"{start().host}/app:1"
        stdout = tmp_path / "spooled" if to == "pipe" else None
        result = measured("copy", f"{served.host}/app:1", target, "--compress", codec, stdout=stdout)
        assertions.peak(result, bound=BUDGET)


def test_an_image_is_unchanged_after_two_conversions(layout: Layout, tmp_path: Path) -> None:
    original: Descriptor = layout.image([tar_layer({"a": b"b" * 5000}, compression="")], name="1")
    document = layout.read(original["digest"])
    succeed("copy", layout.path, tmp_path / "a.tar", "--compress", "zstd")
    succeed("copy", tmp_path / "a.tar", f"{tmp_path}/out/", "--compress", "none")
    after = Layout(tmp_path / "out")
    # Only the formatting of the manifest's JSON may differ.
    assert after.read(named(after)["1"]["digest"]) == document


class TestWrongMediaType:
    """Layers whose media type names another compression than their bytes have."""

    @pytest.fixture
    def mislabelled(self, layout: Layout) -> Layout:
        layer = layout.blob(tar_layer({"a": b"1"}, compression="zstd"), f"{OCI_LAYER}+gzip")
        layout.image([layer], name="v1")
        return layout

    @pytest.mark.parametrize("ends", [["oci:x"], ["oci-archive:x.tar"], ["-"]])
    def test_they_are_not_accepted_as_already_compressed(
        self, mislabelled: Layout, tmp_path: Path, ends: list[str]
    ) -> None:
        result = ocistream("copy", f"oci:{mislabelled.path}", *ends, "--compress", "gzip", cwd=tmp_path)
        assert result.code == 6
        assert "its compression is zstd" in result.err
        assert not (tmp_path / "x" / "index.json").exists()
        assert not (tmp_path / "x.tar").exists()

    def test_verify_deep_finds_them(self, mislabelled: Layout) -> None:
        succeed("verify", mislabelled.path)
        result = ocistream("verify", mislabelled.path, "--deep")
        assert result.code == 6
        assert "its compression is zstd" in result.err
