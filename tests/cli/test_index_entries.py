"""Entries of the index.json that ocistream writes: other tools must find the images in it, and nothing else.

docs/images.md has the rule as a table. tests/containerd_model.py is a model of containerd; tests/interop tests such
archives with skopeo, podman, Docker and containerd of Debian.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocistream import serve
from tests import containerd_model
from tests.archives import files_in, index_in, items_of, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.test_incomplete_indexes import Made
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout
from tests.registry_http import get, manifest, seed
from tests.runner import ocistream
from tests.signed_image import Signed, signed

Write = Callable[..., Path]

Pulled = Callable[..., list[dict[str, Any]]]

SUBJECT = containerd_model.SUBJECT


def push_signed(layout: Layout, host: str) -> Signed:
    """Push an image with a signature, an SBOM, an attestation and cosign's signature."""
    made = signed(layout)
    seed(layout, made.image, host, "app", "1")
    for referrer in made.referrers:
        seed(layout, referrer, host, "app")
    seed(layout, made.cosign, host, "app", made.cosign_tag)
    return made


@pytest.fixture
def found(layout: Layout, served: FaultyRegistry) -> Signed:
    """Return an image and its referrers in a registry."""
    return push_signed(layout, served.host)


@pytest.fixture
def with_attestations(layout: Layout, served: FaultyRegistry) -> Made:
    """Return an index in a registry, of three platforms with an attestation each, as BuildKit pushes it."""
    made = Made(layout)
    seed(layout, made.index, served.host, "built", "1")
    return made


@pytest.fixture(params=["archive", "layout", "volume"])
def pulled(request: pytest.FixtureRequest, tmp_path: Path, served: FaultyRegistry) -> Pulled:
    """Return a function that pulls images and returns the entries of the written index.json."""

    def pull(image: str, *options: str) -> list[dict[str, Any]]:
        target = tmp_path / {"archive": "a.tar", "layout": "layout/", "volume": "v.000.tar"}[request.param]
        if request.param == "layout":
            target.mkdir(exist_ok=True)
        split = ["--split", "1GiB"] if request.param == "volume" else []
        target = tmp_path / "v.000.tar" if split else target
        name = tmp_path / "v.%03d.tar" if split else target
        succeed("pull", f"{served.host}/{image}", *options, *split, "-o", name)
        if target.is_dir():
            entries: list[dict[str, Any]] = json.loads((target / "index.json").read_bytes())["manifests"]
            return entries
        (written,) = tmp_path.glob("*.tar")
        return index_in(files_in(written.read_bytes()))

    return pull


class TestImagesAlone:
    def test_referrers_and_cosign_signatures_are_not_images(
        self, found: Signed, served: FaultyRegistry, pulled: Pulled
    ) -> None:
        entries = pulled("app:1")
        assert containerd_model.images_of(entries) == [(f"{served.host}/app:1", found.image["digest"])]
        said = {entry["digest"]: entry["annotations"][SUBJECT] for entry in entries[1:]}
        assert said == {
            found.signature["digest"]: found.image["digest"],
            found.sbom["digest"]: found.image["digest"],
            found.attestation["digest"]: found.signature["digest"],
            found.cosign["digest"]: found.image["digest"],
        }

    def test_manifests_of_an_index_are_not_listed_again(self, with_attestations: Made, pulled: Pulled) -> None:
        (entry,) = pulled("built:1", "--platform", "linux/amd64", "--platform", "linux/arm64")
        assert entry["digest"] != with_attestations.index["digest"]
        *_, entry = pulled("built:1", "--platform", "all")
        assert entry["digest"] == with_attestations.index["digest"]

    def test_the_attestation_of_one_platform_is_a_referrer(
        self, with_attestations: Made, served: FaultyRegistry, pulled: Pulled
    ) -> None:
        image = with_attestations.images["linux/arm64"]["digest"]
        entries = pulled("built:1", "--platform", "linux/arm64")
        assert containerd_model.images_of(entries) == [(f"{served.host}/built:1", image)]
        assert [entry["annotations"][SUBJECT] for entry in entries[1:]] == [image]


class TestServedDirectory:
    def test_a_pushed_referrer_is_not_an_image(self, layout: Layout, tmp_path: Path) -> None:
        with serve.Registry(tmp_path / "store") as registry:
            found = push_signed(layout, registry.host)
        entries = assertions.index_of(tmp_path / "store")
        assert [digest for _, digest in containerd_model.images_of(entries)] == [found.image["digest"]]
        assert {entry["digest"]: entry["annotations"].get(SUBJECT) for entry in entries} == {
            found.image["digest"]: None,
            found.signature["digest"]: found.image["digest"],
            found.sbom["digest"]: found.image["digest"],
            found.attestation["digest"]: found.signature["digest"],
            found.cosign["digest"]: found.image["digest"],
        }


class TestEntriesOfOtherTools:
    """Entries as containerd 2.2 and Docker export them: referrers with the annotation, perhaps with a name."""

    @pytest.fixture
    def archive(self, layout: Layout, tmp_path: Path) -> Write:
        def written(*entries: Descriptor) -> Path:
            layout.write_index(entries)
            (tmp_path / "others.tar").write_bytes(tar_of(items_of(layout)))
            return tmp_path / "others.tar"

        return written

    def test_entries_with_a_name_are_referrers(self, layout: Layout, served: FaultyRegistry, archive: Write) -> None:
        made = signed(layout)
        named = {"io.containerd.image.name": "registry.example.com/app:sig", SUBJECT: made.image["digest"]}
        path = archive(
            {**made.image, "annotations": {"io.containerd.image.name": "registry.example.com/app:1"}},
            {**made.signature, "annotations": named},
        )
        result = succeed("push", f"{served.host}/app:1", "-i", path)
        assert result.lines() == [f"{served.host}/app:1@{made.image['digest']}"]
        _, listed = get(served.host, f"/v2/app/referrers/{made.image['digest']}")
        assert [one["digest"] for one in json.loads(listed)["manifests"]] == [made.signature["digest"]]

    def test_entries_whose_manifest_names_no_subject_are_skipped_and_reported(
        self, layout: Layout, served: FaultyRegistry, archive: Write
    ) -> None:
        made = signed(layout)
        other = layout.artifact(b"refers to nothing")
        path = archive(made.image, {**other, "annotations": {SUBJECT: made.image["digest"]}})
        result = succeed("push", f"{served.host}/app:1", "-i", path)
        assert "not copied: 1 SBOM; they are listed, but do not name this image as their subject" in result.err
        assert manifest(served.host, "app", other["digest"]) is None

    def test_entries_without_a_digest_in_the_annotation_are_images(
        self, layout: Layout, served: FaultyRegistry, archive: Write
    ) -> None:
        image = layout.image([b"one"])
        for value in ("", "sha256:abc", "v1"):
            path = archive({**image, "annotations": {SUBJECT: value}})
            succeed("push", f"{served.host}/app:1", "-i", path)

    def test_verify_counts_them_as_referrers(self, layout: Layout, archive: Write) -> None:
        made = signed(layout)
        path = archive(made.image, *({**one, "annotations": {SUBJECT: made.image["digest"]}} for one in made.referrers))
        result = succeed("verify", path)
        assert result.lines()[-1].startswith("ok: OCI archive, 1 image, 3 referrers, ")
        document = json.loads(ocistream("verify", "--json", path).out)
        assert [image.get("subject") for image in document["images"]] == [
            None,
            made.image["digest"],
            made.image["digest"],
            made.signature["digest"],
        ]


class TestEntriesThatAreNotManifests:
    """The example of image-layout.md in the image-spec lists an XML file beside the images."""

    @pytest.fixture
    def other(self, layout: Layout) -> Descriptor:
        """Return the entry of an XML file in a layout whose other entry is the image v1."""
        image = layout.image([b"one"], name="v1")
        made = {**layout.blob(b"<component/>", "application/xml"), "annotations": {"org.example.type": "AppStream"}}
        assert [one["digest"] for one in layout.entries] == [image["digest"]]
        layout.enter(made)
        return made

    @pytest.mark.parametrize("piped", [False, True])
    def test_they_are_copied_with_the_images(
        self, piped: bool, layout: Layout, other: Descriptor, tmp_path: Path
    ) -> None:
        archive = tmp_path / "a.tar"
        succeed("copy", f"oci:{layout.path}", f"oci-archive:{archive}")
        files = files_in(archive.read_bytes())
        assert index_in(files)[1] == other
        assert files[f"blobs/{other['digest'].replace(':', '/')}"] == b"<component/>"
        result = succeed("verify", *([] if piped else [archive]), stdin=archive.read_bytes() if piped else None)
        assert f"-@{other['digest']}" in result.lines()

    def test_damage_is_found(self, layout: Layout, other: Descriptor) -> None:
        layout.file(other["digest"]).write_bytes(b"<Component/>")
        result = ocistream("verify", layout.path)
        assert (result.code, "digest mismatch" in result.err) == (5, True), result.err

    def test_inspect_shows_their_type(self, layout: Layout, other: Descriptor) -> None:
        result = succeed("inspect", "--json", f"oci:{layout.path}")
        shown = json.loads(result.out)["images"][1]
        assert (shown["digest"], shown["kind"]) == (other["digest"], "artifact")
        assert shown["artifactType"] == "application/xml"

    @pytest.mark.parametrize("command", ["push", "copy"])
    def test_only_images_are_copied_to_a_registry_and_this_is_reported(
        self, command: str, layout: Layout, served: FaultyRegistry, other: Descriptor
    ) -> None:
        arguments = ["-i", layout.path] if command == "push" else ["--all-tags", f"oci:{layout.path}"]
        result = succeed(command, *arguments, f"{served.host}/app" + (":1" if command == "push" else ""))
        assert "not copied: 1 artifact; their type is not supported" in result.err
        assert manifest(served.host, "app", other["digest"]) is None
