"""`ocistream rm` of images in registries: tags and manifests are deleted by the registry's API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import ocistream as api
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.serving import serving
from tests.faulty_auth import Bearer
from tests.faulty_registry import Fault, FaultyRegistry, Header, Reply, refusal
from tests.images import Descriptor, Layout, small_image
from tests.registry_http import manifest_digest, seed, tags
from tests.runner import ocistream

#: The answer of distribution 2.8 to the deletion of a tag.
NO_TAGS = refusal(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
#: The answer of distribution if deletion is not enabled.
DISABLED = refusal(405, "UNSUPPORTED", "The operation is unsupported.")


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    return small_image(layout)


@pytest.fixture
def host(served: FaultyRegistry, layout: Layout, image: Descriptor) -> str:
    """Fill a registry with app:1 and app:2, which are one image, and app:3; clear the recorded requests."""
    fill(served.host, layout, image)
    served.requests.clear()
    return served.host


def fill(host: str, layout: Layout, image: Descriptor) -> str:
    for tag in ("1", "2"):
        seed(layout, image, host, "app", tag)
    other = small_image(layout, annotations={"other": "image"})
    seed(layout, other, host, "app", "3")
    return str(other["digest"])


@pytest.fixture(params=["the tests' registry", "ocistream serve"])
def registry(
    request: pytest.FixtureRequest, served: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path
) -> Iterator[str]:
    """Return the host of each kind of registry, with the same images."""
    if request.param == "the tests' registry":
        fill(served.host, layout, image)
        yield served.host
        return
    with serving(tmp_path / "store") as (_, host):
        fill(host, layout, image)
        yield host


def test_a_tag_is_deleted_and_other_tags_of_the_image_stay(registry: str, image: Descriptor) -> None:
    result = succeed("rm", f"{registry}/app:1")
    assert result.lines() == [f"{registry}/app:1@{image['digest']}"]
    assert f"deleted the tag: {registry}/app:1" in result.err
    assert sorted(tags(registry, "app")) == ["2", "3"]
    assert manifest_digest(registry, "app", image["digest"]) == image["digest"]


def test_a_digest_is_deleted_with_all_its_tags_and_this_is_reported(registry: str, image: Descriptor) -> None:
    result = succeed("rm", f"{registry}/app@{image['digest']}")
    assert result.lines() == [f"{registry}/app@{image['digest']}"]
    assert "deleted the manifest with all its tags" in result.err
    assert tags(registry, "app") == ["3"]
    assert manifest_digest(registry, "app", image["digest"]) is None


def test_several_are_deleted_or_none_if_one_does_not_exist(registry: str) -> None:
    assertions.failure(ocistream("rm", f"{registry}/app:1", f"{registry}/app:none"), 4, "app:none not found")
    assertions.failure(ocistream("rm", f"{registry}/app:1", f"{registry}/gone:1"), 4, "gone:1 not found")
    assert sorted(tags(registry, "app")) == ["1", "2", "3"]
    result = succeed("rm", f"{registry}/app:1", f"{registry}/app:3", f"{registry}/app:1")
    assert [line.partition("@")[0] for line in result.lines()] == [f"{registry}/app:1", f"{registry}/app:3"]
    assert tags(registry, "app") == ["2"]


def test_a_dry_run_deletes_nothing(served: FaultyRegistry, host: str, image: Descriptor) -> None:
    result = succeed("rm", "--dry-run", f"{host}/app:1", f"{host}/app@{image['digest']}")
    assert result.lines() == [f"{host}/app:1@{image['digest']}", f"{host}/app@{image['digest']}"]
    assert f"would delete the tag: {host}/app:1" in result.err
    assert "would delete the manifest with all its tags" in result.err
    result = succeed("rm", "--dry-run", "--by-digest", f"{host}/app:1")
    assert "would delete the tag, or its manifest with all its tags if the registry does not" in result.err
    assert {request.method for request in served.requests} == {"HEAD"}
    assertions.failure(ocistream("rm", "--dry-run", f"{host}/app:none"), 4, "app:none not found")


class TestUnsupported:
    @pytest.mark.parametrize("answer", [NO_TAGS, DISABLED])
    def test_a_manifest_is_never_deleted_in_place_of_a_tag(
        self, served: FaultyRegistry, host: str, answer: Reply
    ) -> None:
        served.faults.append(Fault(answer, method="DELETE", path="/manifests/1$", times=None))
        result = ocistream("rm", f"{host}/app:1")
        assertions.failure(result, 8, "does not delete the tag", "--by-digest", "REGISTRY_STORAGE_DELETE_ENABLED=true")
        assert sorted(tags(host, "app")) == ["1", "2", "3"]

    def test_by_digest_deletes_the_manifest_with_all_its_tags(
        self, served: FaultyRegistry, host: str, image: Descriptor
    ) -> None:
        served.faults.append(Fault(NO_TAGS, method="DELETE", path="/manifests/[0-9]$", times=None))
        result = succeed("rm", "--by-digest", f"{host}/app:1", f"{host}/app:2")
        assert result.lines() == [f"{host}/app:{tag}@{image['digest']}" for tag in "12"]
        assert result.err.count("deleted the manifest with all its tags") == 2
        assert tags(host, "app") == ["3"]
        # The first request deleted the second tag, too.
        assert len(served.asked("DELETE")) == 2

    def test_by_digest_deletes_only_the_tag_if_the_registry_supports_that(self, host: str) -> None:
        succeed("rm", "--by-digest", f"{host}/app:1")
        assert sorted(tags(host, "app")) == ["2", "3"]

    @pytest.mark.parametrize("options", [[], ["--by-digest"]])
    def test_the_error_for_a_registry_that_does_not_delete_names_its_setting(
        self, served: FaultyRegistry, host: str, image: Descriptor, options: list[str]
    ) -> None:
        served.faults.append(Fault(DISABLED, method="DELETE", times=None))
        name = f"{host}/app:1" if options else f"{host}/app@{image['digest']}"
        words = (f"{host} does not delete", image["digest"], "405", "REGISTRY_STORAGE_DELETE_ENABLED=true")
        assertions.failure(ocistream("rm", name, *options), 8, *words)

    def test_an_archive_that_is_served_is_never_changed(self, layout: Layout) -> None:
        small_image(layout, name="127.0.0.1/app:1")
        with serving(layout.path, "--read-only") as (_, host):
            for options, words in (([], "does not delete the tag"), (["--by-digest"], "does not delete 127.0.0.1")):
                result = ocistream("rm", f"{host}/app:1", *options)
                hint = "this registry is read-only)\n  nothing can be deleted there: ask its operator\n"
                assertions.failure(result, 8, words, hint)


class TestPermission:
    def test_the_token_is_requested_with_the_permission_to_delete(self, start: Start, layout: Layout) -> None:
        auth = Bearer({"ada": "lovelace"}, anonymous=())
        registry = start(auth=auth)
        token = auth.token_for("repository:app:pull,push", user="ada")
        seed(layout, small_image(layout), registry.host, "app", "1", headers={"Authorization": f"Bearer {token}"})
        env = {"OCISTREAM_USERNAME": "ada", "OCISTREAM_PASSWORD": "lovelace"}
        succeed("rm", f"{registry.host}/app:1", env=env)
        assert [request.scopes for request in auth.requests] == [("repository:app:pull,delete",)]

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_refused_deletion_is_a_permission_error(self, served: FaultyRegistry, host: str, status: int) -> None:
        served.faults.append(Fault(refusal(status, "DENIED"), method="DELETE", times=None))
        assertions.failure(ocistream("rm", f"{host}/app:1"), 3, str(status))
        assert sorted(tags(host, "app")) == ["1", "2", "3"]

    def test_a_failed_deletion_ends_with_its_traceback(self, served: FaultyRegistry, host: str) -> None:
        # An error that was its own cause made this traceback endless.
        served.faults.append(Fault(refusal(409, "UNKNOWN"), method="DELETE", times=None))
        result = ocistream("rm", "-vv", f"{host}/app:1")
        assert result.code == 7, result.err
        assert len(result.err) < 20_000
        assert sorted(tags(host, "app")) == ["1", "2", "3"]


class TestDigests:
    def test_a_tag_that_has_another_digest_than_the_given_one_stays(self, host: str, image: Descriptor) -> None:
        assertions.failure(ocistream("rm", f"{host}/app:3@{image['digest']}"), 5, image["digest"])
        assert sorted(tags(host, "app")) == ["1", "2", "3"]
        succeed("rm", f"{host}/app:1@{image['digest']}")
        assert sorted(tags(host, "app")) == ["2", "3"]

    def test_a_digest_that_the_registry_does_not_state_is_computed(
        self, served: FaultyRegistry, host: str, image: Descriptor
    ) -> None:
        served.faults.append(Fault(Header("Docker-Content-Digest", None), path="/manifests/", times=None))
        assert ocistream("rm", f"{host}/app:1").lines() == [f"{host}/app:1@{image['digest']}"]


def test_a_lost_answer_to_a_deletion_is_not_a_failure(served: FaultyRegistry, host: str) -> None:
    # The registry had deleted the tag before, and answers 404 to the next attempt.
    served.faults.append(Fault(refusal(404, "MANIFEST_UNKNOWN"), method="DELETE", times=None))
    served.faults.append(Fault(refusal(404, "MANIFEST_UNKNOWN"), method="HEAD", skip=1, times=None))
    succeed("rm", f"{host}/app:1")


def test_a_404_for_an_image_that_still_exists_is_an_error(served: FaultyRegistry, host: str) -> None:
    served.faults.append(Fault(refusal(404, "MANIFEST_UNKNOWN"), method="DELETE", times=None))
    assertions.failure(ocistream("rm", f"{host}/app:1"), 4, "DELETE")


class TestArguments:
    def test_a_name_without_tag_and_digest_is_never_deleted_from_a_registry(self, host: str) -> None:
        told = [
            "no such directory",
            "a complete repository is never deleted",
            "HOST/REPO:TAG",
            f"tags {host}/app` lists",
        ]
        assertions.failure(ocistream("rm", f"{host}/app"), 4, *told)
        assertions.failure(ocistream("rm", "app"), 4, "no such directory", "HOST/REPO:TAG")
        assertions.failure(ocistream("rm", f"{host}/app:1", f"{host}/app"), 2, "is not an image in a registry")
        assert sorted(tags(host, "app")) == ["1", "2", "3"]

    def test_a_layout_and_a_registry_are_not_mixed(self, host: str, tmp_path: Path) -> None:
        assertions.failure(ocistream("rm", f"{host}/app:1", tmp_path), 2, "is not an image in a registry")

    def test_by_digest_is_for_registries(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        assertions.failure(ocistream("rm", layout.path, "v1", "--by-digest"), 2, "--by-digest")

    def test_a_layout_may_be_written_with_its_transport_and_the_name(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        other = small_image(layout, name="v2", annotations={"a": "b"})
        succeed("rm", f"oci:{layout.path}:v1")
        assert ocistream("digest", layout.path).lines() == [other["digest"]]
        assertions.failure(ocistream("rm", f"oci:{layout.path}"), 2, "NAME")
        assertions.failure(ocistream("rm", f"oci-archive:{layout.path}", "v2"), 2, "is an archive")


def test_the_python_api_deletes_images_too(host: str, image: Descriptor) -> None:
    deleted = api.delete([f"{host}/app:1", api.Reference(host, "app", "3")])
    assert [result.name for result in deleted] == [f"{host}/app:1", f"{host}/app:3"]
    assert deleted[0].digest == image["digest"]
    assert tags(host, "app") == ["2"]
    with pytest.raises(api.InvalidNameError, match="is a repository"):
        api.delete(f"{host}/app")
