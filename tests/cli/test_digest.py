"""`ocistream digest`: one line with the digest of an image in any location."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.archives import small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.forms import FORMS, location
from tests.faulty_registry import Fault, FaultyRegistry, Header, Reply, refusal
from tests.images import OCI_MANIFEST, Descriptor, Layout, small_image, two_platforms
from tests.registry_http import seed
from tests.runner import ocistream

OTHER = f"sha256:{'0' * 64}"


@pytest.fixture
def index(layout: Layout) -> Descriptor:
    return two_platforms(layout, name="both")


class TestRegistry:
    @pytest.fixture
    def image(self, served: FaultyRegistry, layout: Layout, index: Descriptor) -> str:
        """Push the index as app:1; return its name, and clear the recorded requests."""
        seed(layout, index, served.host, "app", "1")
        served.requests.clear()
        return f"{served.host}/app:1"

    def test_one_head_request_is_enough(self, served: FaultyRegistry, image: str, index: Descriptor) -> None:
        result = ocistream("digest", image)
        assert (result.code, result.lines(), result.err) == (0, [index["digest"]], "")
        assert [(request.method, request.path) for request in served.requests] == [("HEAD", "/v2/app/manifests/1")]

    @pytest.mark.parametrize("header", [None, "", "nonsense", "sha256:00"])
    def test_the_manifest_is_hashed_if_the_registry_states_no_digest(
        self, served: FaultyRegistry, image: str, index: Descriptor, header: str | None
    ) -> None:
        served.faults.append(Fault(Header("Docker-Content-Digest", header), path="/manifests/", times=None))
        assert ocistream("digest", image).lines() == [index["digest"]]
        assert [request.method for request in served.requests] == ["HEAD", "GET"]

    @pytest.mark.parametrize("status", [400, 405, 501])
    def test_the_manifest_is_fetched_if_head_is_not_supported(
        self, served: FaultyRegistry, image: str, index: Descriptor, status: int
    ) -> None:
        served.faults.append(Fault(refusal(status), method="HEAD", times=None))
        result = ocistream("digest", image, "--retries=0")
        assert (result.code, result.lines()) == (0, [index["digest"]])

    def test_a_stated_digest_does_not_replace_the_requested_one(
        self, served: FaultyRegistry, image: str, index: Descriptor
    ) -> None:
        served.faults.append(Fault(Header("Docker-Content-Digest", OTHER), path="/manifests/", times=None))
        name = image.removesuffix(":1")
        assert ocistream("digest", f"{name}@{index['digest']}").lines() == [index["digest"]]
        assert [request.method for request in served.requests] == ["HEAD", "GET"]

    def test_other_content_than_the_requested_digest_is_refused(
        self, served: FaultyRegistry, layout: Layout, image: str
    ) -> None:
        raw = layout.file(small_image(layout)["digest"]).read_bytes()
        served.faults.append(Fault(Reply(200, {"Content-Type": OCI_MANIFEST}, raw), path=OTHER, times=None))
        assertions.failure(ocistream("digest", f"{image.removesuffix(':1')}@{OTHER}"), 5, OTHER)

    def test_one_platform_has_the_digest_of_its_manifest(self, layout: Layout, image: str, index: Descriptor) -> None:
        arm = layout.read(index["digest"])["manifests"][1]["digest"]
        assert ocistream("digest", image, "--platform", "linux/arm64").lines() == [arm]
        assertions.failure(ocistream("digest", image, "--platform", "linux/s390x"), 4, "has no platform linux/s390x")
        assertions.failure(
            ocistream("digest", image, "--platform", "linux/arm64", "--platform", "linux/amd64"), 2, "several platforms"
        )

    def test_a_name_without_tag_is_latest(self, served: FaultyRegistry, layout: Layout, index: Descriptor) -> None:
        seed(layout, index, served.host, "app", "latest")
        assert ocistream("digest", f"{served.host}/app").lines() == [index["digest"]]

    def test_a_missing_tag_is_an_error_with_similar_tags(self, image: str) -> None:
        assertions.failure(ocistream("digest", f"{image}2"), 4, "not found", "did you mean 1?")

    def test_refused_access_is_a_permission_error(self, served: FaultyRegistry, image: str) -> None:
        served.faults.append(Fault(refusal(403, "DENIED"), times=None))
        assertions.failure(ocistream("digest", image), 3, "403")


@pytest.mark.parametrize("how", FORMS)
def test_an_archive_and_a_layout_have_the_same_digest(
    layout: Layout, index: Descriptor, tmp_path: Path, how: str
) -> None:
    end, stdin = location(how, layout, tmp_path)
    assert ocistream("digest", end, stdin=stdin).lines() == [index["digest"]]
    arm = layout.read(index["digest"])["manifests"][1]["digest"]
    assert ocistream("digest", end, "--platform", "linux/arm64", stdin=stdin).lines() == [arm]


@pytest.mark.parametrize("verb", ["digest", "tags"])
@pytest.mark.usefixtures("index")
def test_a_pipe_is_read_to_its_end(layout: Layout, verb: str) -> None:
    archive = tar_of(small_first(layout))
    succeed(verb, "-", stdin=archive)
    assertions.failure(ocistream(verb, "-", stdin=archive[:-1024]), 6, "truncated")


def test_an_image_is_chosen_by_its_name(layout: Layout, index: Descriptor) -> None:
    image = small_image(layout, name="v1")
    assertions.failure(ocistream("digest", layout.path), 2, "has 2 images", "both, v1")
    assert ocistream("digest", f"oci:{layout.path}:v1").lines() == [image["digest"]]
    assert ocistream("digest", f"oci:{layout.path}:both").lines() == [index["digest"]]


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_a_docker_archive_has_an_image_id_but_no_digest(layout: Layout, tmp_path: Path, how: str) -> None:
    image = small_image(layout, name="v1")
    archive = tmp_path / "x.tar"
    succeed("copy", f"oci:{layout.path}:v1", f"docker-archive:{archive}:app:1")
    result = ocistream("digest", "-", stdin=archive.read_bytes()) if how == "pipe" else ocistream("digest", archive)
    assertions.failure(result, 8, "has no manifests", f"image ID is {layout.read(image['digest'])['config']['digest']}")
