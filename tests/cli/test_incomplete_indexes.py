"""Archives and layouts that contain a complete index, but only some of its platforms.

`docker save` (25 and later) and `ctr image export` write them. The results and messages must be the same for a file,
for a pipe in either order, and for a directory.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.archives import files_in, index_in, items_of, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.forms import FORMS, location
from tests.cli.serving import serving, stop
from tests.cli.sync_files import entry, sync_file
from tests.faulty_registry import FaultyRegistry
from tests.images import OCI_LAYER, Descriptor, Layout, digest_of, tar_layer
from tests.registry_http import get, manifest, manifest_digest, seed
from tests.runner import Result, ocistream
from tests.schemas import validate_ours

Serve = Callable[[], str]

Source = Callable[[], tuple[str, bytes | None]]

NAME = "registry.example.com/app:1"
PLATFORMS = ("linux/amd64", "linux/arm64", "linux/s390x")
ATTESTS = "vnd.docker.reference.digest"
Push = Callable[..., Result]


class Made:
    """An index of images for three platforms, each with an attestation in the index, as BuildKit makes it."""

    def __init__(self, layout: Layout, *, subjects: bool = True) -> None:
        self.layout = layout
        self.images: dict[str, Descriptor] = {}
        self.attestations: dict[str, Descriptor] = {}
        shared = tar_layer({"etc/motd": b"the same on all\n"})
        for platform in PLATFORMS:
            image = layout.image([shared, tar_layer({"bin/arch": platform.encode()})], platform=platform)
            bare = {key: image[key] for key in ("mediaType", "digest", "size")}
            attestation = layout.artifact(
                b'{"for": "%s"}' % platform.encode(),
                kind="application/vnd.docker.attestation.manifest.v1+json",
                subject=bare if subjects else None,
            )
            self.images[platform] = image
            self.attestations[platform] = {
                **{key: attestation[key] for key in ("mediaType", "digest", "size")},
                "platform": {"os": "unknown", "architecture": "unknown"},
                "annotations": {ATTESTS: image["digest"], "vnd.docker.reference.type": "attestation-manifest"},
            }
        self.index = layout.index([*self.images.values(), *self.attestations.values()])
        layout.name(self.index, NAME)

    def remove(self, *platforms: str, keep_manifests: bool = False) -> None:
        """Remove platforms, as an exporter omits those that it does not have."""
        for platform in platforms:
            image = self.layout.read(self.images[platform]["digest"])
            gone = [image["config"], image["layers"][1]]
            if not keep_manifests:
                attestation = self.layout.read(self.attestations[platform]["digest"])
                gone += [self.images[platform], self.attestations[platform], attestation["layers"][0]]
            for descriptor in gone:
                self.layout.file(descriptor["digest"]).unlink()


def only(form: str) -> pytest.MarkDecorator:
    """Run a test with one form of the source."""
    return pytest.mark.parametrize("source", [form], indirect=True)


@pytest.fixture
def made(layout: Layout) -> Made:
    return Made(layout)


@pytest.fixture(params=FORMS)
def source(request: pytest.FixtureRequest, layout: Layout, tmp_path: Path) -> Source:
    """Return a function that returns the location of the layout and its stdin."""
    return lambda: location(request.param, layout, tmp_path)


@pytest.fixture
def push(source: Source, served: FaultyRegistry) -> Push:
    """Return a function that pushes the layout to app:1 with the given options."""

    def run(*options: str | Path) -> Result:
        end, stdin = source()
        return ocistream("push", f"{served.host}/app:1", "-i", end, *options, stdin=stdin)

    return run


class TestOnePlatform:
    def test_its_manifest_and_attestation_are_copied_byte_for_byte_and_reported(
        self, made: Made, push: Push, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        made.remove("linux/arm64", keep_manifests=True)
        made.remove("linux/s390x")
        result = assertions.success(push("--result", tmp_path / "result.json"))
        image = made.images["linux/amd64"]["digest"]
        assert result.lines() == [f"{served.host}/app:1@{image}"]
        assert manifest(served.host, "app", "1") == made.layout.file(image).read_bytes()
        (line,) = [line for line in result.err.splitlines() if "of this index, not" in line]
        assert line == (
            f"ocistream: {NAME}: the source has only linux/amd64 of this index, not linux/arm64, linux/s390x: "
            f"copied as {image} instead of {made.index['digest']}; "
            "to keep all platforms, copy the image from its registry"
        )
        attestation = made.attestations["linux/amd64"]["digest"]
        _, listed = get(served.host, f"/v2/app/referrers/{image}")
        assert [one["digest"] for one in json.loads(listed)["manifests"]] == [attestation]
        document = json.loads((tmp_path / "result.json").read_bytes())
        validate_ours(document, "result")
        (incomplete,) = document["incomplete"]
        assert incomplete == {
            "name": NAME,
            "digest": made.index["digest"],
            "platforms": ["linux/amd64"],
            "missing": ["linux/arm64", "linux/s390x"],
            "instead": image,
        }
        # As the referrers list describes it, not as the index does.
        (referrer,) = document["referrers"]
        assert referrer["artifactType"] == "application/vnd.docker.attestation.manifest.v1+json"
        assert referrer["kind"] == "attestation"

    @only("pipe")
    def test_an_attestation_without_a_subject_is_skipped_and_reported(
        self, layout: Layout, push: Push, served: FaultyRegistry
    ) -> None:
        made = Made(layout, subjects=False)
        made.remove("linux/arm64", "linux/s390x")
        result = assertions.success(push())
        assert "not copied: 1 attestation; the source has only some platforms of their index" in result.err
        assert manifest(served.host, "app", made.attestations["linux/amd64"]["digest"]) is None

    def test_a_push_by_digest_needs_the_digest_of_the_platform(self, made: Made, served: FaultyRegistry) -> None:
        made.remove("linux/arm64", "linux/s390x")
        push = ["push", "-i", str(made.layout.path)]
        result = ocistream(*push, f"{served.host}/app@{made.index['digest']}")
        assertions.failure(result, 5, "the source has only some platforms of this index")
        image = f"{served.host}/app@{made.images['linux/amd64']['digest']}"
        assert ocistream(*push, image).lines() == [image]


class TestSeveralPlatforms:
    def test_they_become_the_same_index_as_with_platform_options(
        self, made: Made, push: Push, served: FaultyRegistry
    ) -> None:
        succeed(
            *("push", f"{served.host}/chosen:1", "-i", made.layout.path),
            *("--platform", "linux/amd64", "--platform", "linux/s390x"),
        )
        made.remove("linux/arm64")
        result = assertions.success(push())
        assert "the source has only linux/amd64, linux/s390x of this index, not linux/arm64: copied as" in result.err
        assert manifest(served.host, "app", "1") == manifest(served.host, "chosen", "1")
        index = json.loads(manifest(served.host, "app", "1") or b"")
        assert [one["digest"] for one in index["manifests"]] == [
            one["digest"]
            for kind in (made.images, made.attestations)
            for platform, one in kind.items()
            if platform != "linux/arm64"
        ]


class TestAttestations:
    def test_an_attestation_that_was_not_exported_is_named(
        self, made: Made, push: Push, served: FaultyRegistry
    ) -> None:
        for descriptor in made.attestations.values():
            made.layout.file(descriptor["digest"]).unlink()
        result = assertions.success(push())
        missing = ", ".join(f"attestation of {platform}" for platform in PLATFORMS)
        assert f"the source has only {', '.join(PLATFORMS)} of this index, not {missing}: copied as" in result.err
        index = json.loads(manifest(served.host, "app", "1") or b"")
        assert [one["digest"] for one in index["manifests"]] == [one["digest"] for one in made.images.values()]
        verified = succeed("verify", made.layout.path)
        assert f"not exported: attestation of linux/amd64 of {NAME}" in verified.lines()


class TestDamage:
    def test_a_platform_with_a_config_and_a_missing_layer_is_damaged(
        self, made: Made, push: Push, served: FaultyRegistry
    ) -> None:
        made.remove("linux/s390x")
        layer = made.layout.read(made.images["linux/arm64"]["digest"])["layers"][1]["digest"]
        made.layout.file(layer).unlink()
        assertions.failure(push(), 6, layer)
        assert manifest(served.host, "app", "1") is None
        result = ocistream("push", f"{served.host}/app:1", "-i", made.layout.path, "--platform", "linux/arm64")
        assertions.failure(result, 6, layer, "complete platforms: linux/amd64; `ocistream inspect")

    @only("pipe")
    def test_an_index_without_any_platform_is_an_error(self, made: Made, push: Push, served: FaultyRegistry) -> None:
        made.remove(*PLATFORMS)
        assertions.failure(push(), 6, made.images["linux/amd64"]["digest"])
        assert manifest(served.host, "app", "1") is None

    @only("pipe, index first")
    def test_a_requested_platform_is_not_replaced(self, made: Made, push: Push) -> None:
        made.remove("linux/arm64", "linux/s390x")
        result = push("--platform", "linux/arm64")
        assertions.failure(
            result, 6, f"{NAME} for linux/arm64", made.images["linux/arm64"]["digest"], "` lists the missing blobs"
        )

    @pytest.mark.parametrize("keep_manifests", [False, True])
    def test_the_error_names_the_complete_platforms_of_a_directory(
        self, made: Made, tmp_path: Path, served: FaultyRegistry, keep_manifests: bool
    ) -> None:
        made.remove("linux/arm64", keep_manifests=keep_manifests)
        options = ("--platform", "linux/arm64")
        result = ocistream("push", f"{served.host}/a:1", "-i", made.layout.path, *options)
        assertions.failure(result, 6, "complete platforms: linux/amd64, linux/s390x")
        result = ocistream("copy", made.layout.path, f"docker-archive:{tmp_path / 'a.tar'}:app:1", *options)
        assertions.failure(result, 6, "complete platforms: linux/amd64, linux/s390x")


class TestPlatformsAtTheDestination:
    def test_the_complete_index_is_pushed_if_the_registry_has_the_missing_platforms(
        self, made: Made, push: Push, served: FaultyRegistry
    ) -> None:
        seed(made.layout, made.index, served.host, "app", "before")
        made.remove("linux/arm64", "linux/s390x")
        result = assertions.success(push())
        assert manifest_digest(served.host, "app", "1") == made.index["digest"]
        assert "of this index, not" not in result.err


class TestOtherCommands:
    def test_verify_succeeds_and_lists_the_missing_platforms(self, made: Made, source: Source) -> None:
        made.remove("linux/arm64", keep_manifests=True)
        made.remove("linux/s390x")
        end, stdin = source()
        result = succeed("verify", end, stdin=stdin)
        lines = result.lines()
        assert lines[0] == f"{NAME}@{made.index['digest']}"
        assert lines[1:3] == [f"not exported: linux/arm64 of {NAME}", f"not exported: linux/s390x of {NAME}"]
        assert lines[-1].startswith("ok: ")
        assert lines[-1].endswith(", 2 index entries not exported (`docker save` omits other platforms)")
        assert not any(line.startswith("missing") for line in lines)

    def test_verify_finds_damage_in_an_exported_platform(self, made: Made, source: Source) -> None:
        made.remove("linux/s390x")
        layer = made.layout.read(made.images["linux/arm64"]["digest"])["layers"][1]["digest"]
        made.layout.file(layer).unlink()
        end, stdin = source()
        result = ocistream("verify", "--json", end, stdin=stdin)
        assert result.code == 6
        document = json.loads(result.out)
        assert [one["digest"] for one in document["missing"]] == [layer]
        assert document["incomplete"][0]["missing"] == ["linux/s390x"]
        assert document["ok"] is False

    def test_copy_into_a_layout_and_an_archive(self, made: Made, source: Source, tmp_path: Path) -> None:
        made.remove("linux/arm64", "linux/s390x")
        end, stdin = source()
        for target in (f"oci:{tmp_path / 'copied'}", f"oci-archive:{tmp_path / 'copied.tar'}"):
            result = ocistream("copy", end, target, stdin=stdin)
            if stdin and "archive" in target and "linux" not in result.err:
                # The index was written before the missing platforms were known.
                assertions.failure(result, 6)
                continue
            assertions.success(result)
            assert "the source has only linux/amd64 of this index" in result.err
        index = json.loads((tmp_path / "copied" / "index.json").read_bytes())
        assert index["manifests"][0]["digest"] == made.images["linux/amd64"]["digest"]

    def test_a_docker_archive_gets_the_only_exported_platform(self, made: Made, source: Source, tmp_path: Path) -> None:
        made.remove("linux/arm64", keep_manifests=True)
        made.remove("linux/s390x")
        end, stdin = source()
        result = succeed("copy", end, f"docker-archive:{tmp_path / 'a.tar'}:app:1", stdin=stdin)
        (listed,) = json.loads(files_in((tmp_path / "a.tar").read_bytes())["manifest.json"])
        config = made.layout.read(made.images["linux/amd64"]["digest"])["config"]["digest"]
        assert config.partition(":")[2] in listed["Config"]
        # What a pipe lacks is not known before its end.
        advice = "choose another with --platform, if the archive has the others"
        which = f"only linux/amd64 of 3 platforms in the index; {advice}"
        if not stdin:
            which = "linux/amd64, the only platform that the source has of the 3 in the index"
        assert f"ocistream: {NAME}: {which}\n" in result.err

    def test_a_docker_archive_gets_one_of_two_exported_platforms(self, layout: Layout, tmp_path: Path) -> None:
        made = Made(layout, subjects=False)
        made.remove("linux/s390x")
        result = succeed("copy", made.layout.path, f"docker-archive:{tmp_path / 'a.tar'}:app:1")
        which = (
            "only linux/amd64 of the 2 platforms that the source has; the index lists 3; choose another with --platform"
        )
        assert f"ocistream: {NAME}: {which}\n" in result.err
        # A docker-archive cannot contain attestations, whatever the platforms.
        assert "not copied: 1 attestation; a docker-archive cannot contain them\n" in result.err

    @pytest.mark.parametrize(("keep_manifests", "is_file"), [(False, True), (True, False)])
    def test_a_docker_archive_of_all_platforms_gets_the_only_exported_one(
        self, made: Made, tmp_path: Path, keep_manifests: bool, is_file: bool
    ) -> None:
        made.remove("linux/arm64", "linux/s390x", keep_manifests=keep_manifests)
        given = tmp_path / "x.tar" if is_file else made.layout.path
        if is_file:
            given.write_bytes(tar_of(items_of(made.layout)))
        target = tmp_path / "y.tar"
        result = succeed("copy", given, f"docker-archive:{target}:app:1", "--platform", "all")
        said = f"ocistream: {NAME}: the source has only linux/amd64 of this index, not linux/arm64, linux/s390x: "
        (line,) = [line for line in result.err.splitlines() if line.startswith(said)]
        assert line.endswith(made.index["digest"])
        (listed,) = json.loads(files_in(target.read_bytes())["manifest.json"])
        document = made.layout.read(made.images["linux/amd64"]["digest"])
        assert document["config"]["digest"].partition(":")[2] in listed["Config"]
        assert len(listed["Layers"]) == len(document["layers"])

    def test_the_reported_digest_of_a_recompressed_image_exists(
        self, layout: Layout, served: FaultyRegistry, made: Made
    ) -> None:
        made.remove("linux/arm64", "linux/s390x")
        result = succeed("push", f"{served.host}/app:1", "-i", layout.path, "--compress", "zstd")
        digest = manifest_digest(served.host, "app", "1")
        assert f"copied as {digest} instead of {made.index['digest']}" in result.err

    def test_no_referrers_skips_the_attestation_and_is_the_reported_reason(
        self, layout: Layout, served: FaultyRegistry, made: Made
    ) -> None:
        made.remove("linux/arm64", "linux/s390x")
        for options in ([], ["--platform", "linux/amd64"]):
            result = succeed("push", f"{served.host}/app:1", "-i", layout.path, "--no-referrers", *options)
            assert "not copied: 1 attestation; --no-referrers" in result.err
        assert manifest(served.host, "app", made.attestations["linux/amd64"]["digest"]) is None

    def test_inspect_and_have_recognize_platforms_that_were_not_exported(self, made: Made) -> None:
        made.remove("linux/arm64", "linux/s390x")
        missing = made.images["linux/arm64"]["digest"]
        inspected = [line.strip() for line in ocistream("inspect", made.layout.path).lines()]
        assert (inspected.count(missing), inspected.count(f"missing {missing}")) == (1, 0)
        # Two platforms, and their attestations.
        assert "4 missing digests not exported (`docker save` omits other platforms)" in inspected
        listed = ocistream("have", made.layout.path).lines()
        assert missing not in listed
        assert made.images["linux/amd64"]["digest"] in listed


class TestSync:
    @pytest.mark.uncounted
    def test_missing_platforms_are_reported_and_a_second_run_copies_nothing(
        self, made: Made, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        made.remove("linux/arm64", "linux/s390x")
        image = made.images["linux/amd64"]["digest"]
        file = sync_file(tmp_path, entry(f"oci:{made.layout.path}", f"{served.host}/app"))
        planned = succeed("sync", file, "--dry-run")
        first = succeed("sync", file, "--result", tmp_path / "result.json")
        for result in (planned, first):
            assert f"{served.host}/app:1@{image}" in result.out.decode()
            assert "the source has only linux/amd64 of this index, not linux/arm64, linux/s390x" in result.err
        document = json.loads((tmp_path / "result.json").read_bytes())
        validate_ours(document, "sync-result")
        assert document["images"][0]["missingPlatforms"] == ["linux/arm64", "linux/s390x"]
        again = succeed("sync", file)
        assert "0 images copied, 0 B; 1 unchanged" in again.err

    def test_an_index_with_attestations_in_a_layout_is_unchanged(
        self, made: Made, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        seed(made.layout, made.index, served.host, "app", "1")
        file = sync_file(tmp_path, entry(f"{served.host}/app:1", f"oci:{tmp_path / 'to'}"))
        succeed("sync", file)
        again = succeed("sync", file)
        assert "1 unchanged" in again.err

    def test_a_destination_with_the_complete_index_is_unchanged(
        self, made: Made, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        seed(made.layout, made.index, served.host, "app", "1")
        made.remove("linux/arm64", "linux/s390x")
        file = sync_file(tmp_path, entry(f"oci:{made.layout.path}", f"{served.host}/app"))
        result = succeed("sync", file)
        assert "1 unchanged" in result.err
        assert manifest_digest(served.host, "app", "1") == made.index["digest"]

    def test_a_dry_run_matches_the_real_run_if_the_destination_has_the_rest(
        self, made: Made, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        seed(made.layout, made.index, served.host, "app", "before")
        made.remove("linux/arm64", "linux/s390x")
        file = sync_file(tmp_path, entry(f"oci:{made.layout.path}", f"{served.host}/app"))
        for options in (["--dry-run"], []):
            result = succeed("sync", file, *options)
            assert f"{served.host}/app:1@{made.index['digest']}" in result.out.decode()


class TestServed:
    """`serve` of a directory and of an archive: an image that is requested by tag is complete."""

    @pytest.fixture(params=["directory", "archive"])
    def serve(self, request: pytest.FixtureRequest, layout: Layout, tmp_path: Path) -> Iterator[Serve]:
        with contextlib.ExitStack() as stack:

            def serve() -> str:
                path = layout.path
                if request.param == "archive":
                    path = tmp_path / "archive.tar"
                    path.write_bytes(tar_of(items_of(layout)))
                return stack.enter_context(serving(path))[1]

            yield serve

    @pytest.mark.parametrize("keep_manifests", [False, True])
    def test_one_platform_is_served_as_its_manifest(
        self, made: Made, serve: Serve, tmp_path: Path, keep_manifests: bool
    ) -> None:
        made.remove("linux/arm64", "linux/s390x", keep_manifests=keep_manifests)
        host = serve()
        assert manifest_digest(host, "app", "1") == made.images["linux/amd64"]["digest"]
        succeed("pull", f"{host}/app:1", "--platform", "all", "-o", tmp_path / "pulled.tar")
        _, listed = get(host, f"/v2/app/referrers/{made.images['linux/amd64']['digest']}")
        assert [one["digest"] for one in json.loads(listed)["manifests"]] == [
            made.attestations["linux/amd64"]["digest"]
        ]

    def test_several_platforms_are_served_as_a_smaller_index_by_tag_and_by_digest(
        self, made: Made, serve: Serve, tmp_path: Path
    ) -> None:
        made.remove("linux/arm64")
        host = serve()
        smaller = manifest(host, "app", "1") or b""
        children = [one["digest"] for one in json.loads(smaller)["manifests"]]
        assert made.images["linux/arm64"]["digest"] not in children
        assert manifest(host, "app", digest_of(smaller)) == smaller
        succeed("pull", f"{host}/app:1", "--platform", "all", "-o", tmp_path / "pulled.tar")

    def test_an_incomplete_index_is_reported_once(self, made: Made, layout: Layout) -> None:
        made.remove("linux/arm64", "linux/s390x")
        with serving(layout.path) as (process, host):
            for _ in range(3):
                manifest(host, "app", "1")
            err = stop(process)
        said = (
            f"index {made.index['digest']} is incomplete: only linux/amd64 is served; missing: linux/arm64, linux/s390x"
        )
        assert err.count(said) == 1

    def test_a_damaged_index_is_served_unchanged(self, made: Made, serve: Serve) -> None:
        layer = made.layout.read(made.images["linux/arm64"]["digest"])["layers"][1]["digest"]
        made.layout.file(layer).unlink()
        assert manifest_digest(serve(), "app", "1") == made.index["digest"]


class TestSelectedPlatform:
    @only("pipe")
    def test_its_attestation_is_copied(self, made: Made, push: Push, served: FaultyRegistry) -> None:
        assertions.success(push("--platform", "linux/arm64"))
        _, listed = get(served.host, f"/v2/app/referrers/{made.images['linux/arm64']['digest']}")
        assert [one["digest"] for one in json.loads(listed)["manifests"]] == [
            made.attestations["linux/arm64"]["digest"]
        ]

    @only("file")
    def test_an_attestation_without_a_subject_is_reported(self, layout: Layout, push: Push) -> None:
        Made(layout, subjects=False)
        result = assertions.success(push("--platform", "linux/arm64"))
        assert "not copied: 1 attestation; only some platforms of the index were copied" in result.err

    def test_an_attestation_without_a_subject_is_reported_for_a_registry(
        self, layout: Layout, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        made = Made(layout, subjects=False)
        seed(layout, made.index, served.host, "app", "1")
        result = succeed("pull", f"{served.host}/app:1", "--platform", "linux/arm64", "-o", tmp_path / "a.tar")
        assert "not copied: 1 attestation" in result.err
        (found,) = index_in(files_in((tmp_path / "a.tar").read_bytes()))
        assert found["digest"] == made.images["linux/arm64"]["digest"]


class TestBlobsInAnIndex:
    """BuildKit's cache with image-manifest=false: an index of layers and of a cache config."""

    @pytest.fixture
    def cache(self, layout: Layout) -> Descriptor:
        children = [
            layout.blob(tar_layer({"a": b"a" * 5000}), OCI_LAYER + "+gzip"),
            layout.blob(tar_layer({"b": b"b" * 5000}), OCI_LAYER + "+gzip"),
            layout.blob(b'{"layers": [{"blob": "x"}], "records": []}', "application/vnd.buildkit.cacheconfig.v0"),
        ]
        index = layout.index(children)
        layout.name(index, NAME)
        return index

    @pytest.mark.uncounted
    def test_they_are_copied_byte_for_byte(
        self, cache: Descriptor, layout: Layout, push: Push, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        assertions.success(push())
        assert manifest(served.host, "app", "1") == layout.file(cache["digest"]).read_bytes()
        for child in layout.read(cache["digest"])["manifests"]:
            status, blob = get(served.host, f"/v2/app/blobs/{child['digest']}")
            assert (status, digest_of(blob)) == (200, child["digest"])
        succeed("pull", f"{served.host}/app:1", "-o", tmp_path / "cache.tar")
        succeed("verify", tmp_path / "cache.tar")

    def test_a_registry_with_such_an_index_can_be_verified_inspected_and_cleaned(
        self, cache: Descriptor, layout: Layout, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        layout.image([b"of its own"], name="registry.example.com/other:1")
        succeed("push", "-i", layout.path, "--to", served.host)
        folder = served.layout.path
        succeed("verify", folder)
        inspected = succeed("inspect", folder)
        assert "application/vnd.buildkit.cacheconfig.v0" in inspected.out.decode()
        assert "-" not in inspected.lines()[-2].partition("(")[2]
        succeed("gc", folder, "--older-than", "0s")
        succeed("pull", f"{served.host}/app:1", "-o", tmp_path / "again.tar")
        del cache


class TestEmbeddedData:
    def test_content_in_a_descriptor_needs_no_blob(self, layout: Layout, push: Push, served: FaultyRegistry) -> None:
        artifact = layout.artifact(b"a chart")
        layout.name(artifact, NAME)
        empty = layout.read(artifact["digest"])["config"]["digest"]
        layout.file(empty).unlink()
        assertions.success(push())
        assert get(served.host, f"/v2/app/blobs/{empty}") == (200, b"{}")

    @only("pipe, index first")
    def test_verify_does_not_report_embedded_content_as_missing(self, layout: Layout, source: Source) -> None:
        artifact = layout.artifact(b"a chart")
        layout.name(artifact, NAME)
        layout.file(layout.read(artifact["digest"])["config"]["digest"]).unlink()
        end, stdin = source()
        result = ocistream("verify", end, stdin=stdin)
        assert (result.code, result.err) == (0, "")

    def test_wrong_embedded_data_is_ignored(self, layout: Layout, served: FaultyRegistry) -> None:
        changed = layout.read(layout.artifact(b"a chart")["digest"])
        empty = changed["config"]["digest"]
        layout.file(empty).unlink()
        for data in ("e3t9", "not base64!", 3, ""):
            changed["config"]["data"] = data
            image = layout.document(changed)["digest"]
            layout.name(layout.document(changed), NAME)
            result = ocistream("push", f"{served.host}/app:1", "-i", layout.path, "--image", image)
            assertions.failure(result, 6, empty)
