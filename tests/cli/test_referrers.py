"""Referrers on the command line: they are copied with their image unless excluded, and skipped ones are reported."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits
from tests import registry_http
from tests.archives import blob_name, items_of, small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.faulty_registry import Fault, FaultyRegistry, Header, refusal
from tests.images import Descriptor, Layout, small_image, tar_layer, two_platforms
from tests.runner import Result, ocistream
from tests.signed_image import ATTESTATION, Signed, cosign_tag, referrer, signed

KINDS = "2 signatures, 1 attestation, 1 SBOM"


@pytest.fixture
def found(served: FaultyRegistry, layout: Layout) -> Signed:
    made = signed(layout)
    made.seed(layout, served.host, "app", "1")
    return made


@pytest.fixture
def archive(served: FaultyRegistry, found: Signed, tmp_path: Path) -> Path:  # noqa: ARG001 - seeds the registry
    """Return an archive of the image with its referrers, as pulled."""
    path = tmp_path / "signed.tar"
    succeed("pull", f"{served.host}/app:1", "-o", path)
    return path


def is_all_there(found: Signed, registry: FaultyRegistry, repository: str = "app", tag: str = "1") -> None:
    assert registry_http.manifest_digest(registry.host, repository, tag) == found.image["digest"]
    assert registry_http.manifest_digest(registry.host, repository, found.cosign_tag) == found.cosign["digest"]
    for subject, referring in found.subjects().items():
        _, raw = registry_http.get(registry.host, f"/v2/{repository}/referrers/{subject}")
        assert {one["digest"] for one in json.loads(raw)["manifests"]} == {one["digest"] for one in referring}


def notes(result: Result) -> list[str]:
    return [line for line in result.err.splitlines() if line.startswith("ocistream: not copied: ")]


class TestCounts:
    """An attestation that an index contains counts as its manifest, also if a registry lists it as a referrer."""

    @pytest.fixture
    def built(self, layout: Layout, served: FaultyRegistry) -> str:
        """Return the name of an index of two images, each with an attestation in the index and an SBOM beside it."""
        images = [layout.image([platform.encode()], platform=platform) for platform in ("linux/amd64", "linux/arm64")]
        inside = [layout.artifact(image["digest"].encode(), kind=ATTESTATION, subject=image) for image in images]
        registry_http.seed(layout, layout.index([*images, *inside]), served.host, "built", "1")
        for image in images:
            registry_http.seed(
                layout, layout.artifact(b"list of " + image["digest"].encode(), subject=image), served.host, "built"
            )
        return f"{served.host}/built:1"

    def test_pull_push_and_copy_name_the_same_referrers(
        self, built: str, other: FaultyRegistry, tmp_path: Path
    ) -> None:
        archive = tmp_path / "built.tar"
        runs: list[list[str | Path]] = [
            ["pull", "--all", built, "-o", archive],
            ["push", "-i", archive, f"{other.host}/built:1"],
            ["copy", archive, f"oci:{tmp_path / 'layout'}"],
        ]
        for argv in runs:
            assert succeed(*argv).err.rstrip().endswith(", with 2 SBOMs")

    def test_attestations_beside_those_of_the_index_are_reported_as_such(
        self, served: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        image = layout.image([4000])
        inside = layout.artifact(b"inside", kind=ATTESTATION, subject=image)
        names = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image["digest"]}
        platform = {"os": "unknown", "architecture": "unknown"}
        index = layout.index([image, {**inside, "annotations": names, "platform": platform}])
        registry_http.seed(layout, index, served.host, "built", "1")
        beside = layout.artifact(b"beside", kind=ATTESTATION, subject=image)
        registry_http.seed(layout, beside, served.host, "built")
        result = succeed("pull", "--all", f"{served.host}/built:1", "-o", tmp_path / "all.tar")
        assert result.err.rstrip().endswith(", with 1 attestation beside those in the index")
        result = succeed("pull", "--platform=linux/amd64", f"{served.host}/built:1", "-o", tmp_path / "one.tar")
        assert result.err.rstrip().endswith(", with 2 attestations")

    def test_inspect_and_verify_print_the_same_counts(self, built: str, tmp_path: Path) -> None:
        archive = tmp_path / "built.tar"
        succeed("pull", "--all", built, "-o", archive)
        counts = "1 image, 2 referrers, 7 manifests, 9 blobs, "
        for command, location in (("inspect", archive), ("verify", archive), ("verify", built)):
            assert counts in succeed(command, location).out.decode().rstrip().splitlines()[-1]
        inspected = succeed("inspect", built).out.decode().rstrip().splitlines()[-1]
        assert inspected.startswith("1 image, 5 manifests, 7 blobs, ")
        assert inspected.endswith("; 2 referrers not counted")


class TestCopied:
    def test_pull_and_push_copy_referrers_through_an_archive(
        self, served: FaultyRegistry, found: Signed, other: FaultyRegistry, tmp_path: Path
    ) -> None:
        archive = tmp_path / "app.tar"
        pulled = succeed("pull", f"{served.host}/app:1", "-o", archive)
        assert pulled.lines() == [f"{served.host}/app:1@{found.image['digest']}"]
        assert f"with {KINDS}" in pulled.err
        pushed = succeed("push", f"{other.host}/app:1", "-i", archive)
        assert pushed.lines() == [f"{other.host}/app:1@{found.image['digest']}"]
        assert f"with {KINDS}" in pushed.err
        assert notes(pulled) == notes(pushed) == []
        is_all_there(found, other)

    def test_push_to_counts_only_images(self, archive: Path, found: Signed, other: FaultyRegistry) -> None:
        pushed = succeed("push", "--to", f"{other.host}/mirror", "-i", archive)
        assert pushed.lines() == [f"{other.host}/mirror/app:1@{found.image['digest']}"]
        is_all_there(found, other, "mirror/app")

    @pytest.mark.uncounted
    def test_only_referrers_of_the_selected_image_are_copied(
        self, layout: Layout, other: FaultyRegistry, tmp_path: Path
    ) -> None:
        one, two = signed(layout), signed(layout, layout.image([tar_layer({"two": b""})]))
        one.enter(layout, "r.example.com/app:1")
        two.enter(layout, "r.example.com/app:2")
        succeed("push", f"{other.host}/app:1", "-i", layout.path, "--image", "r.example.com/app:2")
        is_all_there(two, other)
        assert registry_http.manifest(other.host, "app", one.sbom["digest"]) is None
        nothing = ocistream("push", f"{other.host}/app:1", "-i", layout.path)
        assertions.failure(nothing, 2, " has 2 images", "app:1, r.example.com/app:2")
        copied = tmp_path / "both.tar"
        succeed("copy", layout.path, f"oci-archive:{copied}")
        assert len(assertions.index_of(copied)) == 2 * 5

    @pytest.mark.uncounted
    def test_a_signature_can_be_copied_by_name(
        self, served: FaultyRegistry, archive: Path, found: Signed, other: FaultyRegistry
    ) -> None:
        succeed("push", f"{other.host}/signature:1", "-i", archive, "--image", found.sbom["digest"])
        assert registry_http.manifest_digest(other.host, "signature", "1") == found.sbom["digest"]
        tag = f"{served.host}/app:{found.cosign_tag}"
        succeed("push", f"{other.host}/signature:2", "-i", archive, "--image", tag)
        assert registry_http.manifest_digest(other.host, "signature", "2") == found.cosign["digest"]
        pulled = succeed("pull", tag, "-o", archive)
        assert pulled.lines() == [f"{tag}@{found.cosign['digest']}"]
        succeed("push", f"{other.host}/signature:3", "-i", archive)
        assert registry_http.manifest_digest(other.host, "signature", "3") == found.cosign["digest"]

    def test_a_referrers_list_in_a_layout_is_read(self, layout: Layout, other: FaultyRegistry) -> None:
        """Tools that do not know the referrers API write such lists."""
        found = signed(layout)
        layout.name(found.image, "v1")
        for subject, referring in found.subjects().items():
            layout.name(layout.index(referring), subject.replace(":", "-"))
        layout.name(found.cosign, found.cosign_tag)
        succeed("push", f"{other.host}/app:1", "-i", layout.path)
        is_all_there(found, other)
        assert sorted(registry_http.tags(other.host, "app")) == sorted(["1", found.cosign_tag])

    @pytest.mark.uncounted
    def test_two_pulls_into_a_layout_list_a_referrer_once(
        self, served: FaultyRegistry, found: Signed, other: FaultyRegistry, tmp_path: Path
    ) -> None:
        folder = tmp_path / "images"
        for _ in range(2):
            succeed("pull", f"{served.host}/app:1", "-o", f"{folder}/")
        assert len(assertions.index_of(folder)) == 5
        with FaultyRegistry(folder) as over_it:
            is_all_there(found, over_it)
            succeed("copy", f"{over_it.host}/app:1", f"{other.host}/app:1")
        is_all_there(found, other)

    def test_a_new_signature_replaces_the_old_one(
        self, served: FaultyRegistry, found: Signed, layout: Layout, tmp_path: Path
    ) -> None:
        folder = tmp_path / "images"
        succeed("pull", f"{served.host}/app:1", "-o", f"{folder}/")
        anew = layout.artifact(b"signed by two")
        registry_http.seed(layout, anew, served.host, "app", found.cosign_tag)
        succeed("pull", f"{served.host}/app:1", "-o", f"{folder}/")
        named = [
            e["digest"] for e in assertions.index_of(folder) if "vnd.ocistream.image.name" in e.get("annotations", {})
        ]
        assert named == [anew["digest"]]

    def test_all_tags_copies_referrers_but_not_referrers_lists(
        self, start: Start, layout: Layout, other: FaultyRegistry
    ) -> None:
        found = signed(layout)
        without = start(
            Fault(refusal(404), path="/referrers/", times=None),
            Fault(Header("OCI-Subject", None), "PUT", "/manifests/", times=None),
        )
        found.enter(layout, "v1")
        succeed("push", f"{without.host}/app:1", "-i", layout.path)
        copied = succeed("copy", "--all-tags", f"{without.host}/app", f"{other.host}/app")
        assert copied.lines() == [f"{other.host}/app:1@{found.image['digest']}"]
        is_all_there(found, other)
        assert sorted(registry_http.tags(other.host, "app")) == sorted(["1", found.cosign_tag])


class TestPipeToSeveralDestinations:
    """Blobs that arrive before the graph is known cannot be pushed: their repository is not known."""

    @pytest.fixture
    def image(self, layout: Layout) -> Descriptor:
        content = random.Random(1).randbytes(2 * limits.CHUNK_SIZE)
        return layout.image([tar_layer({"a": content}), tar_layer({"b": content})], name="r.example.com/app:1")

    @pytest.fixture
    def candidate(self, layout: Layout, image: Descriptor) -> Descriptor:
        """Return an unnamed entry of the index that refers to the image."""
        made = referrer(layout, image, "a/b", b"one")
        layout.enter(made)
        return made

    @pytest.mark.parametrize(("chosen", "stray"), [([], True), (["--image", "r.example.com/app:1"], False)])
    def test_an_entry_without_a_manifest_does_not_block_the_push(
        self,
        layout: Layout,
        image: Descriptor,
        candidate: Descriptor,
        other: FaultyRegistry,
        chosen: list[str],
        *,
        stray: bool,
    ) -> None:
        layers = [layer["digest"] for layer in layout.read(image["digest"])["layers"]]
        layout.file(candidate["digest"]).unlink()
        items = small_first(layout)
        if stray:
            # A blob that no image needs comes first.
            blob = layout.blob(random.Random(2).randbytes(2 * limits.CHUNK_SIZE), "a/b")
            first = next(place for place, (name, _) in enumerate(items) if name == blob_name(layers[0]))
            items.insert(first, (blob_name(blob["digest"]), layout.file(blob["digest"]).read_bytes()))
        succeed("push", "--to", f"{other.host}/mirror", *chosen, stdin=tar_of(items))
        assert registry_http.manifest_digest(other.host, "mirror/app", "1") == image["digest"]

    def test_a_late_referrer_makes_nothing_visible(
        self, layout: Layout, image: Descriptor, candidate: Descriptor, other: FaultyRegistry
    ) -> None:
        name = blob_name(candidate["digest"])
        items = [item for item in small_first(layout) if item[0] != name]
        late = (name, layout.file(candidate["digest"]).read_bytes())
        result = ocistream("push", "--to", f"{other.host}/mirror", stdin=tar_of([*items, late]))
        assertions.failure(result, 8, candidate["digest"], "may refer to an image")
        assertions.no_image(other)
        # A push to one repository accepts every order.
        succeed("push", f"{other.host}/one:1", stdin=tar_of([*items, late]))
        _, raw = registry_http.get(other.host, f"/v2/one/referrers/{image['digest']}")
        assert [one["digest"] for one in json.loads(raw)["manifests"]] == [candidate["digest"]]


class TestSkipped:
    def test_no_referrers_skips_referrers_of_a_registry(
        self, served: FaultyRegistry, found: Signed, tmp_path: Path
    ) -> None:
        served.requests.clear()
        pulled = succeed("pull", "--no-referrers", f"{served.host}/app:1", "-o", tmp_path / "app.tar")
        assert [entry["digest"] for entry in assertions.index_of(tmp_path / "app.tar")] == [found.image["digest"]]
        assert served.asked(path="/referrers/|/sha256-") == []
        assert "with" not in pulled.err

    @pytest.mark.uncounted
    def test_no_referrers_skips_and_reports_referrers_of_an_archive(
        self, archive: Path, found: Signed, other: FaultyRegistry, tmp_path: Path
    ) -> None:
        result = tmp_path / "result.json"
        pushed = succeed("push", "--no-referrers", f"{other.host}/app:1", "-i", archive, "--result", result)
        assert notes(pushed) == [f"ocistream: not copied: {KINDS}; --no-referrers"]
        assert registry_http.tags(other.host, "app") == ["1"]
        assert registry_http.manifest(other.host, "app", found.sbom["digest"]) is None
        left = json.loads(result.read_bytes())["skippedReferrers"]
        assert {one["digest"] for one in left} == found.hanging
        copied = tmp_path / "copied.tar"
        succeed("copy", "--no-referrers", archive, f"oci-archive:{copied}")
        assert [entry["digest"] for entry in assertions.index_of(copied)] == [found.image["digest"]]

    @pytest.mark.usefixtures("found")
    def test_a_docker_archive_cannot_store_referrers(self, served: FaultyRegistry, tmp_path: Path) -> None:
        saved = succeed("copy", f"{served.host}/app:1", f"docker-archive:{tmp_path / 'app.tar'}:app:1")
        assert notes(saved) == [f"ocistream: not copied: {KINDS}; a docker-archive cannot contain them"]
        with tarfile.open(tmp_path / "app.tar") as tar:
            assert len(json.loads(tar.extractfile("manifest.json").read())) == 1  # type: ignore[union-attr]

    @pytest.mark.parametrize("through", ["file", "stdin"])
    def test_a_recompressed_image_has_another_digest_and_loses_its_referrers(
        self, archive: Path, other: FaultyRegistry, through: str
    ) -> None:
        options: dict[str, Any] = {"stdin": archive} if through == "stdin" else {}
        path: list[str | Path] = ["-i", archive] if through == "file" else []
        pushed = succeed("push", "--compress", "zstd", f"{other.host}/app:1", *path, **options)
        (note,) = notes(pushed)
        assert f"not copied: {KINDS}; their image was recompressed and has another digest" in note
        assert registry_http.tags(other.host, "app") == ["1"]

    def test_referrers_are_copied_if_no_layer_is_recompressed(
        self, archive: Path, found: Signed, other: FaultyRegistry
    ) -> None:
        pushed = succeed("push", "--compress", "gzip", f"{other.host}/app:1", "-i", archive)
        assert notes(pushed) == []
        is_all_there(found, other)

    def test_a_selected_platform_reports_skipped_referrers(
        self, served: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        index = two_platforms(layout)
        whole = signed(layout, index)
        whole.seed(layout, served.host, "app", "both")
        name, target = f"{served.host}/app:both", tmp_path / "both.tar"
        (note,) = notes(succeed("pull", "--platform", "linux/amd64", name, "-o", target))
        assert "2 signatures, 1 SBOM; " in note
        assert "--platform all" in note
        assert notes(succeed("pull", "--platform", "all", name, "-o", target)) == []
        # A copy of the archive reports the same.
        (note,) = notes(succeed("copy", "--platform", "linux/amd64", target, f"oci-archive:{tmp_path / 'one.tar'}"))
        assert f"{KINDS}; " in note
        assert len(assertions.index_of(tmp_path / "one.tar")) == 1

    def test_signatures_of_the_destination_stay_with_a_hint(
        self, served: FaultyRegistry, found: Signed, layout: Layout, other: FaultyRegistry, tmp_path: Path
    ) -> None:
        result = tmp_path / "result.json"
        succeed("copy", f"{served.host}/app:1", f"{other.host}/prod/app:1")
        own = layout.artifact(b"signed for production")
        registry_http.seed(layout, own, other.host, "prod/app", found.cosign_tag)
        again = succeed("copy", f"{served.host}/app:1", f"{other.host}/prod/app:1", "--result", result)
        (note,) = notes(again)
        assert "not copied: 1 signature; the destination has another one, which stays" in note
        assert f"(`ocistream copy --tags {found.cosign_tag} SRC DST` replaces it)" in note
        assert registry_http.manifest_digest(other.host, "prod/app", found.cosign_tag) == own["digest"]
        (left,) = json.loads(result.read_bytes())["skippedReferrers"]
        assert (left["digest"], left["tag"]) == (found.cosign["digest"], found.cosign_tag)
        succeed("copy", "--tags", found.cosign_tag, f"{served.host}/app", f"{other.host}/prod/app")
        is_all_there(found, other, "prod/app")

    def test_a_requested_cosign_tag_is_moved(
        self, served: FaultyRegistry, found: Signed, layout: Layout, other: FaultyRegistry
    ) -> None:
        own = layout.artifact(b"signed for production")
        registry_http.seed(layout, own, other.host, "app", found.cosign_tag)
        copied = succeed("copy", "--tags", "1", "--tags", "sha256-*.*", f"{served.host}/app", f"{other.host}/app")
        assert notes(copied) == []
        is_all_there(found, other)

    def test_an_archive_without_a_blob_of_a_referrer_is_incomplete(
        self, archive: Path, layout: Layout, found: Signed, other: FaultyRegistry
    ) -> None:
        (layer,) = layout.read(found.sbom["digest"])["layers"]
        kept = [(name, raw) for name, raw in assertions.entries(archive) if layer["digest"][7:] not in name]
        failed = ocistream("push", f"{other.host}/app:1", stdin=tar_of(kept))
        assertions.failure(failed, 6, layer["digest"])
        assertions.no_image(other)


class TestResults:
    def test_the_result_document_lists_referrers(
        self, served: FaultyRegistry, found: Signed, layout: Layout, tmp_path: Path
    ) -> None:
        path = tmp_path / "result.json"
        succeed("pull", f"{served.host}/app:1", "-o", tmp_path / "app.tar", "--result", path)
        document = json.loads(path.read_bytes())
        assert [image["digest"] for image in document["images"]] == [found.image["digest"]]
        subjects = {one["digest"]: subject for subject, those in found.subjects().items() for one in those}
        assert sorted(document["referrers"], key=lambda one: str(one["digest"])) == sorted(
            [
                *(
                    {
                        "subject": subjects[one["digest"]],
                        "digest": one["digest"],
                        "artifactType": one["artifactType"],
                        "kind": kind,
                    }
                    for one, kind in zip(found.referrers, ("signature", "SBOM", "attestation"), strict=True)
                ),
                {
                    "subject": found.image["digest"],
                    "digest": found.cosign["digest"],
                    "tag": found.cosign_tag,
                    "kind": "signature",
                },
            ],
            key=lambda one: str(one["digest"]),
        )
        assert document["skippedReferrers"] == []
        # The size of an image does not include its referrers.
        assert document["images"][0]["size"] == sum(blob["size"] for blob in layout.blobs(found.image))

    def test_inspect_and_verify_include_referrers(self, archive: Path, found: Signed) -> None:
        document = json.loads(succeed("inspect", "--json", archive).out)
        assert {image["digest"] for image in document["images"]} == {found.image["digest"], *found.hanging}
        succeed("verify", archive)


def test_a_cosign_tag_without_its_image_is_an_image(layout: Layout, other: FaultyRegistry, tmp_path: Path) -> None:
    elsewhere = small_image(layout)
    alone = referrer(layout, elsewhere, "a/b", b"alone")
    layout.name(alone, f"r.example.com/app:{cosign_tag(elsewhere)}")
    path = tmp_path / "alone.tar"
    path.write_bytes(tar_of(items_of(layout)))
    succeed("push", "--to", other.host, "-i", path)
    assert registry_http.manifest_digest(other.host, "app", cosign_tag(elsewhere)) == alone["digest"]
