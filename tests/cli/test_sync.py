"""`ocistream sync`: many copies from one file; a failure does not stop the others."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits
from tests.archives import small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.signalling import signalled
from tests.cli.sync_files import entry, sync_file
from tests.cli.terminal import on_terminal
from tests.faulty_auth import Basic
from tests.faulty_registry import Fault, FaultyRegistry, PauseReading, Reply, Stall, StopReading, refusal
from tests.http_doubles import unused_port
from tests.images import OCI_MANIFEST, Layout, small_image, two_platforms
from tests.registry_http import manifest, manifest_digest, seed, tags
from tests.runner import Argument, Result, ocistream, started_fork
from tests.schemas import validate_ours

TAGS = ["1.0", "1.1", "1.2-rc.1", "2.0", "latest"]
#: One password that two registries would receive.
ONE_FOR_TWO = """
[credentials.x]
username = 'x'
password-env = 'X'
[[sync]]
from = { location = 'r.example/b', credentials = 'x' }
to = { location = 's.example/d', credentials = 'x' }
"""


@pytest.fixture
def source(start: Start, layout: Layout) -> FaultyRegistry:
    """Return a registry whose repository `app` has some tags."""
    registry = start()
    for tag in TAGS:
        seed(layout, small_image(layout, annotations={"tag": tag}), registry.host, "app", tag)
    return registry


def sync(folder: Path, text: str, *argv: str | Path, **options: Any) -> Result:
    return ocistream("sync", sync_file(folder, text), *argv, **options)


def fetched(registry: FaultyRegistry) -> Counter[str]:
    """Count the requests for each blob."""
    return Counter(request.target for request in registry.asked("GET", "/blobs/sha256:"))


def same(one: FaultyRegistry, other: FaultyRegistry, repository: str, names: list[str]) -> None:
    assert sorted(tags(other.host, repository)) == sorted(names)
    for tag in names:
        assert manifest(other.host, repository, tag) == manifest(one.host, "app", tag)


def seed_big(source: FaultyRegistry, folder: Path, *layers: int) -> Layout:
    """Seed `big:1`, an image with layers of these sizes."""
    layout = Layout(folder / "big")
    seed(layout, layout.image(layers), source.host, "big", "1")
    return layout


def assert_big_copied(source: FaultyRegistry, *targets: FaultyRegistry) -> None:
    """Assert that these registries have `big:1`."""
    for registry in targets:
        assert manifest(registry.host, "big", "1") == manifest(source.host, "big", "1")


class TestCopies:
    def test_an_image_without_a_tag_is_an_error_or_is_reported(
        self, target: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        image, nameless = small_image(layout, name="1"), layout.image([b"nameless"])
        lost = layout.artifact(b"lost", subject=layout.image([b"elsewhere"]))
        layout.enter(nameless, lost)
        source = f"oci:{layout.path}"
        refused = sync(tmp_path, entry(source, f"{target.host}/app"))
        assert refused.code == 2
        assert f"1 of 2 images in {layout.path} has no tag: {nameless['digest']}" in refused.err
        assert tags(target.host, "app") == []
        chosen = sync(tmp_path, entry(source, f"{target.host}/app", tags="['*']"))
        assert chosen.lines() == [f"{target.host}/app:1@{image['digest']}"], chosen.err
        assert f"{nameless['digest']} is skipped: it has no tag, and `tags` copies tags only" in chosen.err
        assert f"not copied: {lost['digest']} in {source}; subject not in the source" in chosen.err
        # The command that the hint suggests works.
        one = sync(tmp_path, entry(f"{source}:{nameless['digest']}", f"{target.host}/app:nameless"))
        assert one.lines() == [f"{target.host}/app:nameless@{nameless['digest']}"], one.err

    def test_a_pattern_that_no_tag_matches_is_reported(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        result = sync(tmp_path, entry(f"{source.host}/app", f"{target.host}/app", tags='["1.0", "9.9", "!nothing"]'))
        assertions.success(result)
        same(source, target, "app", ["1.0"])
        assert re.findall("no tag matches .*", result.err) == ["no tag matches '9.9'"], result.err

    @pytest.mark.parametrize(
        ("choice", "expected"),
        [
            ('["1.*", "!*-rc*"]', ["1.0", "1.1"]),
            ("{ regex = '.*\\brc\\b.*' }", ["1.2-rc.1"]),
            ('{ versions = ">=1.1-0, <2" }', ["1.1", "1.2-rc.1"]),
            ("{ latest = 2 }", ["1.1", "2.0"]),
        ],
    )
    def test_only_selected_tags_are_copied(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path, choice: str, expected: list[str]
    ) -> None:
        assertions.success(sync(tmp_path, entry(f"{source.host}/app", f"{target.host}/app", tags=choice)))
        same(source, target, "app", expected)

    @pytest.mark.uncounted
    def test_an_archive_that_is_replaced_is_named(self, source: FaultyRegistry, tmp_path: Path) -> None:
        text = entry(f"{source.host}/app:1.0", "oci-archive:app.tar")
        assertions.success(sync(tmp_path, text))
        again = sync(tmp_path, text)
        assert "replacing" not in again.err
        (tmp_path / "app.tar").write_bytes(b"notes")
        result = assertions.success(sync(tmp_path, text))
        assert "replacing oci-archive:app.tar: it cannot be read as an archive (" in result.err

    def test_an_image_by_digest_is_copied_by_digest(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        digest = manifest_digest(source.host, "app", "2.0")
        text = entry(f"{source.host}/app@{digest}", f"{target.host}/app")
        assertions.success(sync(tmp_path, text))
        result = assertions.success(sync(tmp_path, text))
        assert manifest_digest(target.host, "app", str(digest)) == digest
        assert tags(target.host, "app") == []
        assert "1 unchanged" in result.err

    def test_unlisted_signature_tags_are_not_requested(
        self, source: FaultyRegistry, target: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        text = entry(f"{source.host}/app", f"{target.host}/app")
        assertions.success(sync(tmp_path, text))
        source.requests.clear()
        for options in ([], ["--dry-run"]):
            assertions.success(sync(tmp_path, text, *options))
        assert source.asked("HEAD|GET", ".sig") == []
        # A signature that was added since is copied.
        digest = manifest_digest(source.host, "app", "1.0")
        assert digest is not None
        signature = digest.replace(":", "-") + ".sig"
        seed(layout, small_image(layout, annotations={"signs": "1.0"}), source.host, "app", signature)
        result = sync(tmp_path, text)
        assert "1 image copied" in result.err
        assert manifest(target.host, "app", signature) == manifest(source.host, "app", signature)

    def test_several_images_for_one_platform_are_reported(
        self, source: FaultyRegistry, target: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        images = [layout.image([f"v{n}".encode()], platform=f"linux/amd64/v{n}") for n in (3, 4)]
        seed(layout, layout.index(images), source.host, "variants", "1")
        name = f"{source.host}/variants:1"
        result = sync(tmp_path, entry(name, f"{target.host}/variants", platforms="['linux/amd64']"))
        assert result.lines() == [f"{target.host}/variants:1@{images[0]['digest']}"], result.err
        assert f"ocistream: {name}: linux/amd64 matches linux/amd64/v3; not copied: linux/amd64/v4\n" in result.err

    def test_only_differing_images_are_copied(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        text = entry(f"{source.host}/app", f"{target.host}/app", referrers="false")
        assertions.success(sync(tmp_path, text))
        layout = Layout(tmp_path / "new")
        seed(layout, small_image(layout, annotations={"tag": "moved"}), source.host, "app", "latest")
        for registry in (source, target):
            registry.requests.clear()
        result = assertions.success(sync(tmp_path, text))
        assert "1 image copied" in result.err
        assert "4 unchanged" in result.err
        assert len(result.lines()) == len(TAGS)
        # An unchanged image costs two requests: one HEAD at each registry.
        for tag in TAGS[:-1]:
            assert [r.method for r in source.asked(path=f"/manifests/{re.escape(tag)}$")] == ["HEAD"]
            assert [r.method for r in target.asked(path=f"/manifests/{re.escape(tag)}$")] == ["HEAD"]
        assert len(target.asked("PUT", "/manifests/")) == 1
        same(source, target, "app", TAGS)

    def test_a_second_sync_of_some_platforms_copies_nothing(
        self, start: Start, target: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        registry = start()
        seed(layout, two_platforms(layout), registry.host, "app", "1")
        text = '[defaults]\nplatforms = ["linux/arm64"]\n' + entry(f"{registry.host}/app", f"{target.host}/app")
        assertions.success(sync(tmp_path, text))
        assert manifest(target.host, "app", "1") != manifest(registry.host, "app", "1")
        target.requests.clear()
        again = sync(tmp_path, text)
        assert "1 unchanged" in again.err
        assert target.asked("PUT|POST|PATCH") == []

    @pytest.mark.uncounted
    def test_a_signature_that_was_added_later_is_copied(
        self, source: FaultyRegistry, target: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        text = entry(f"{source.host}/app:1.0", f"{target.host}/app")
        assertions.success(sync(tmp_path, text))
        subject = small_image(layout, annotations={"tag": "1.0"})
        signature = layout.artifact(b"signed", subject=subject)
        seed(layout, signature, source.host, "app")
        result = assertions.success(sync(tmp_path, text))
        assert "1 image copied" in result.err
        assert manifest_digest(target.host, "app", signature["digest"]) == signature["digest"]
        assert "1 unchanged" in sync(tmp_path, text).err


class TestLayoutsAndArchives:
    def test_a_layout_as_destination_and_source(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        text = entry(f"{source.host}/app", "oci:images")
        assertions.success(sync(tmp_path, text))
        again = sync(tmp_path, text)
        assert (again.code, "5 unchanged" in again.err) == (0, True)
        assertions.success(sync(tmp_path, entry("oci:images", f"{target.host}/app", tags='["1.*"]')))
        same(source, target, "app", ["1.0", "1.1", "1.2-rc.1"])

    def test_an_archive_as_destination_and_source(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        text = entry(f"{source.host}/app:2.0", "oci-archive:app.tar", "oci:images:named")
        assertions.success(sync(tmp_path, text))
        before = (tmp_path / "app.tar").stat().st_mtime_ns
        again = sync(tmp_path, text)
        assert (again.code, "2 unchanged" in again.err) == (0, True)
        assert (tmp_path / "app.tar").stat().st_mtime_ns == before
        succeed("verify", tmp_path / "app.tar")
        text = entry("oci-archive:app.tar", f"{target.host}/app") + entry("oci:images:named", f"{target.host}/app")
        assertions.success(sync(tmp_path, text))
        assert sorted(tags(target.host, "app")) == ["2.0", "named"]
        assert manifest(target.host, "app", "named") == manifest(source.host, "app", "2.0")

    def test_an_unnamed_manifest_that_is_too_large_is_not_read(self, target: FaultyRegistry, tmp_path: Path) -> None:
        layout = Layout(tmp_path / "large")
        small_image(layout, name="1.0")
        large = layout.blob(bytes(limits.MAX_MANIFEST + 1), OCI_MANIFEST)
        # Reading the manifest would report wrong bytes.
        layout.file(large["digest"]).write_bytes(b"x" * large["size"])
        layout.enter(large)
        result = assertions.success(sync(tmp_path, entry(f"oci:{layout.path}", f"{target.host}/app")))
        assert f"not copied: {large['digest']} in oci:{layout.path}; manifest missing or malformed" in result.err
        assert tags(target.host, "app") == ["1.0"]

    def test_an_error_of_the_selection_names_the_layout(self, tmp_path: Path) -> None:
        small_image(Layout(tmp_path / "images"), name="1.0")
        result = sync(tmp_path, entry("oci:images:2.0", "oci:copies"))
        assert (result.code, f": {tmp_path}/images has no image '2.0'\n" in result.err) == (4, True), result.err

    def test_sources_that_can_be_read_only_once_are_refused(self, target: FaultyRegistry, tmp_path: Path) -> None:
        (tmp_path / "app.tar.gz").write_bytes(b"\x1f\x8b\x08" + bytes(20))
        result = sync(tmp_path, entry("oci-archive:app.tar.gz", f"{target.host}/app"))
        assert result.code == 2
        assert "compressed" in result.err


class TestSeveralDestinations:
    def test_each_blob_is_fetched_once(
        self, source: FaultyRegistry, target: FaultyRegistry, other: FaultyRegistry, tmp_path: Path
    ) -> None:
        seed_big(source, tmp_path, 300_000, 3 << 20, 40_000)
        result = sync(tmp_path, entry(f"{source.host}/big", f"{target.host}/big", f"{other.host}/big"))
        assertions.success(result)
        assert_big_copied(source, target, other)
        assert set(fetched(source).values()) == {1}
        assert len(fetched(source)) == 4
        assert "2 images copied" in result.err

    @pytest.mark.parametrize("options", [["--dry-run"], []])
    def test_results_are_in_the_order_of_the_file(
        self, source: FaultyRegistry, target: FaultyRegistry, other: FaultyRegistry, tmp_path: Path, options: list[str]
    ) -> None:
        image = f"{source.host}/app:1.0"
        assertions.success(sync(tmp_path, entry(image, f"{other.host}/app")))
        result = sync(tmp_path, entry(image, f"{target.host}/app", f"{other.host}/app", "oci:images"), *options)
        assertions.success(result)
        names = [line.split()[-1].partition("@")[0] for line in result.lines()]
        assert names == [f"{target.host}/app:1.0", f"{other.host}/app:1.0", f"oci:{tmp_path}/images:{image}"]

    def test_neither_destination_is_asked_for_small_blobs_after_eight_missing_blobs(
        self, source: FaultyRegistry, target: FaultyRegistry, other: FaultyRegistry, tmp_path: Path
    ) -> None:
        layout = Layout(tmp_path / "many")
        layers = [layout.random_layer(4000, seed=number)[0] for number in range(20)]
        seed(layout, layout.image(layers), source.host, "many", "1")
        text = entry(f"{source.host}/many:1", f"{target.host}/many", f"{other.host}/many")
        assertions.success(sync(tmp_path, text, "--jobs=1"))
        for registry in (target, other):
            assert len(registry.asked("HEAD", "/blobs/")) == 8
            assert len(registry.asked("PUT", "/blobs/uploads/")) == 21

    def test_a_failing_destination_does_not_stop_the_other(
        self, source: FaultyRegistry, target: FaultyRegistry, other: FaultyRegistry, tmp_path: Path
    ) -> None:
        seed_big(source, tmp_path, 3 << 20, 2 << 20)
        other.faults.append(Fault(StopReading(after=100_000), method="PATCH|PUT", path="/uploads/", times=None))
        text = entry(f"{source.host}/big", f"{target.host}/big", f"{other.host}/big")
        result = sync(tmp_path, text, "--retries", "0")
        assert result.code == 7
        assert_big_copied(source, target)
        assert manifest(other.host, "big", "1") is None
        assert [line.partition("@")[0] for line in result.lines()] == [f"{target.host}/big:1"]
        assert f"{other.host}/big:1" in result.err
        other.faults.clear()
        again = sync(tmp_path, text)
        assert (again.code, "1 unchanged" in again.err) == (0, True)
        assert_big_copied(source, other)

    @pytest.mark.parametrize("failing_first", [False, True])
    def test_a_destination_that_cannot_be_examined_does_not_stop_the_other(
        self, source: FaultyRegistry, other: FaultyRegistry, tmp_path: Path, failing_first: bool
    ) -> None:
        layout = Layout(tmp_path / "big")
        image = layout.image([3 << 20, 2 << 20, 300_000])
        seed(layout, image, source.host, "big", "1")
        other.faults.append(Fault(refusal(500), method="HEAD", path="/blobs/", times=None))
        out = tmp_path / "out"
        targets = [f"{other.host}/big", f"oci:{out}"]
        text = entry(f"{source.host}/big:1", *(targets if failing_first else reversed(targets)))
        result = sync(tmp_path, text, "--result", tmp_path / "result.json", no_waits=True)
        assert result.code == 7, result.err
        assert len(result.lines()) == 1
        assert result.lines()[0].endswith(f"@{image['digest']}")
        succeed("verify", out)
        assert [found["digest"] for found in assertions.index_of(out)] == [image["digest"]]
        errors = [line for line in result.err.splitlines() if line.startswith("ocistream: error: ")]
        assert len(errors) == 1, result.err
        assert other.host in errors[0]
        assert "500" in errors[0]
        assert str(out) not in errors[0]
        document = json.loads((tmp_path / "result.json").read_bytes())
        validate_ours(document, "sync-result")
        assert sorted(found["status"] for found in document["images"]) == ["copied", "failed"]
        assert manifest(other.host, "big", "1") is None

    def test_an_unreachable_registry_is_skipped_after_some_images(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        """Otherwise each of ten thousand images costs all retries, and the other destination waits."""
        gone = unused_port()
        text = entry(f"{source.host}/app", f"127.0.0.1:{gone}/app", f"{target.host}/app")
        result = sync(tmp_path, text, "--jobs", "1", "--retries", "0")
        assert result.code == 7
        same(source, target, "app", TAGS)
        assert result.err.count(f": skipping 127.0.0.1:{gone} for a while: ") == len(TAGS) - 3
        assert "5 images copied" in result.err


class TestFailures:
    def test_a_failing_image_does_not_stop_the_others(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        source.faults.append(Fault(Reply(404), path="/manifests/1.1$", times=None))
        result = sync(tmp_path, entry(f"{source.host}/app", f"{target.host}/app"))
        assert result.code == 4
        same(source, target, "app", [tag for tag in TAGS if tag != "1.1"])
        errors = [line for line in result.err.splitlines() if line.startswith("ocistream: error: ")]
        assert len(errors) == 1
        image = f"{source.host}/app:1.1 to {target.host}/app:1.1"
        assert errors[0].startswith(f"ocistream: error: {image}: not found (")
        assert "1 failed" in result.err

    def test_a_failing_entry_does_not_stop_the_others(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        text = entry(f"{source.host}/nothing", f"{target.host}/nothing") + entry("oci:nowhere", f"{target.host}/app")
        text += entry(f"{source.host}/app", f"{target.host}/app", tags='{ versions = ">7" }')
        result = sync(tmp_path, text + entry(f"{source.host}/app", f"{target.host}/app", tags='"2*"'))
        assert result.code == 4
        assert tags(target.host, "app") == ["2.0"]
        assert "3 failed" in result.err

    def test_a_failed_upload_does_not_stop_parallel_uploads(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        """A failed image does not stop the transfer of another, although both use the same connections."""
        layout = Layout(tmp_path / "many")
        seed(layout, layout.image([50_000, 60_000, 70_000, 80_000]), source.host, "app", "0")
        target.faults.append(Fault(Reply(403), method="POST", path="/uploads/", times=1))
        result = sync(tmp_path, entry(f"{source.host}/app", f"{target.host}/app"))
        assert result.code == 3
        assert len(tags(target.host, "app")) == len(TAGS)
        assert "5 images copied" in result.err
        assert "1 failed" in result.err

    def test_a_failing_request_does_not_stop_other_images(
        self, source: FaultyRegistry, target: FaultyRegistry, layout: Layout, tmp_path: Path
    ) -> None:
        children = {
            tag: [small_image(layout, annotations={"tag": tag, "number": str(number)}) for number in range(4)]
            for tag in ("1", "2")
        }
        for tag, those in children.items():
            seed(layout, layout.index(those), source.host, "indexes", tag)
        signature = layout.artifact(b"signed", subject=children["2"][-1])
        seed(layout, signature, source.host, "indexes")
        source.faults.append(Fault(Reply(500), path=f"/referrers/{children['1'][2]['digest']}"))
        result = sync(tmp_path, entry(f"{source.host}/indexes", f"{target.host}/indexes"), "--retries", "0")
        assert result.code == 7
        assert tags(target.host, "indexes") == ["2"]
        assert manifest_digest(target.host, "indexes", signature["digest"]) == signature["digest"]

    def test_manifests_are_requested_once(self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path) -> None:
        """The manifests of all images are requested in parallel, before the first blob."""
        source.requests.clear()
        assertions.success(sync(tmp_path, entry(f"{source.host}/app", f"{target.host}/app")))
        assert len(source.asked("GET", "/manifests/1.0")) == 1
        whole = [request.target for request in source.requests]
        first = next(at for at, target in enumerate(whole) if "/blobs/" in target)
        assert {tag for tag in TAGS if f"/v2/app/manifests/{tag}" in whole[:first]} == set(TAGS)

    def test_an_invalid_path_does_not_stop_other_images(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        long = "a" * 300
        text = "".join(
            entry(f"{source.host}/app:1.0", to) for to in (f"oci:{long}", f"oci-archive:{long}", f"./{long}/")
        )
        text += entry(f"oci:{long}", f"{target.host}/a") + entry(f"oci-archive:{long}", f"{target.host}/b")
        text += entry(f"{source.host}/app:1.0", f"{target.host}/app")
        result = sync(tmp_path, text)
        assert result.code == 9
        assert "1 image copied" in result.err
        # `oci:` and `./` name the same directory: one copy.
        assert "4 failed" in result.err
        assert "internal" not in result.err


class TestCredentials:
    def test_each_registry_gets_its_own_credentials(self, source: FaultyRegistry, start: Start, tmp_path: Path) -> None:
        one, two = start(auth=Basic("one", "first")), start(auth=Basic("two", "second"))
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {two.host: {"auth": "dHdvOnNlY29uZA=="}}}))
        text = '[credentials.one]\nusername = "one"\npassword-env = "ONE"\n[credentials.two]\nauthfile = "auth.json"\n'
        text += f'[[sync]]\nfrom = "{source.host}/app:1.0"\nto = [\n'
        for registry, name in (one, "one"), (two, "two"):
            text += f'{{ location = "{registry.host}/app", credentials = "{name}" }},\n'
        text += "]\n"
        result = assertions.success(sync(tmp_path, text, "-vv", env={"ONE": "first"}))
        assert "first" not in result.err
        result = sync(tmp_path, text, env={"ONE": "wrong"})
        assert result.code == 3
        assert "1 unchanged" in result.err
        missing = sync(tmp_path, text, env={"ONE": None})
        assertions.failure(missing, 2, "password-env", "ONE", "not set")

    def test_a_malformed_file_of_credentials_is_an_error_before_any_request(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        (tmp_path / "auth.json").write_text('{"auths": 1}')
        text = f'[credentials.x]\nauthfile = "auth.json"\n[registry."{target.host}"]\ncredentials = "x"\n'
        source.requests.clear()
        result = sync(tmp_path, text + entry(f"{source.host}/app:1.0", f"{target.host}/app"))
        assertions.failure(result, 2, "auth.json")
        assert source.requests == target.requests == []

    def test_the_hint_for_wrong_credentials_names_their_source(
        self, source: FaultyRegistry, start: Start, tmp_path: Path
    ) -> None:
        one = start(auth=Basic("one", "first"))
        text = '[credentials.one]\nusername = "one"\npassword-env = "ONE"\n'
        text += (
            f'[[sync]]\nfrom = "{source.host}/app:1.0"\nto = {{ location = "{one.host}/app", credentials = "one" }}\n'
        )
        refused = sync(tmp_path, text, env={"ONE": "wrong"})
        assert refused.code == 3
        assert "from ONE, which the sync file names: they take precedence" in refused.err

    def test_credentials_of_the_configuration_are_used(
        self, source: FaultyRegistry, start: Start, tmp_path: Path
    ) -> None:
        one, two = start(auth=Basic("one", "first")), start(auth=Basic("two", "second"))
        configuration = tmp_path / "config.toml"
        configuration.write_text(
            f'[registry."{one.host}"]\ncredentials = "env:ONE"\n'
            f'[registry."{two.host}"]\ncredentials = "env:OCISTREAM_TWO"\n'
        )
        env = {"ONE_USERNAME": "one", "ONE_PASSWORD": "first"}
        env |= {"OCISTREAM_TWO_USERNAME": "two", "OCISTREAM_TWO_PASSWORD": "second"}
        # Variables without a registry in their name apply to none of these.
        env |= {"OCISTREAM_USERNAME": "other", "OCISTREAM_PASSWORD": "secret"}
        text = entry(f"{source.host}/app:1.0", f"{one.host}/app", f"{two.host}/app")
        result = assertions.success(sync(tmp_path, text, "--config", configuration, env=env))
        (line,) = [line for line in result.err.splitlines() if "has no effect" in line]
        assert "the variable OCISTREAM_USERNAME has no effect on `ocistream sync`: give each registry its" in line

    def test_a_variable_that_the_file_names_is_used_and_a_misspelt_one_is_reported(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        text = '[credentials.one]\nusername = "me"\npassword-env = "OCISTREAM_TOKEN"\n'
        text += f'[registry."{target.host}"]\ncredentials = "one"\n'
        text += f'[registry."{source.host}"]\ncredentials = "env:OCISTREAM_READ"\n'
        text += entry(f"{source.host}/app:1.0", f"{target.host}/app")
        env = {"OCISTREAM_TOKEN": "x", "OCISTREAM_READ_USERNAME": "me", "OCISTREAM_READ_PASSWORD": "y"}
        result = assertions.success(sync(tmp_path, text, env={**env, "OCISTREAM_JBOS": "3"}))
        (line,) = [line for line in result.err.splitlines() if "has no effect" in line]
        assert "OCISTREAM_JBOS has no effect: did you mean OCISTREAM_JOBS?" in line


class TestTheFile:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", ["has no [[sync]]"]),
            ("[[sync]]\nto = 'a/b'", ["the key 'from' is missing", "add a line such as from = "]),
            ("[[sync]]\nfrom = 'a/b'", ["number 1: the key 'to' is missing", 'such as to = "registry.example.com/']),
            ("[[sync]]\nfrom = 'a/b'\nto = []", ["to", "is empty"]),
            (
                "[[sync]]\nfrom = 'a/b'\nto = 'c/d'\ntag = ['x']",
                ["[[sync]] number 1: unknown key 'tag'", "did you mean tags? allowed: from,"],
            ),
            ("[[sync]]\nfrom = 'a/b'\nto = 'c/d'\npassword = 'x'", ["do not write passwords here"]),
            ("[[sync]]\nfrom = 'a/b:1'\nto = 'c/d'\ntags = ['x']", ["tags", "is one image"]),
            ("[[sync]]\nfrom = 'a/b'\nto = 'c/d:1'", ["to", "is for one image"]),
            (
                "[[sync]]\nfrom = 'a/b'\nto = 'oci-archive:x.tar'",
                ["to", "is for one image", "write to = 'oci:DIR', or add a tag to `from`"],
            ),
            ("[registry.ghcr.io]\ninsecure = true", ["unknown key 'io'", 'in quotes: [registry."ghcr.io"]\n']),
            ("[registry.a.b.example]\ninsecure = true", ['write the host in quotes: [registry."a.b.example"]\n']),
            ("[[registry]]\nlocation = 'a'", ["registry is not a table", 'write [registry."HOST"]\n']),
            (
                "[[sync]]\nfrom = 'a/b'\nto = { location = 'c/d', username = 'x' }",
                ["to: unknown key 'username'", 'write credentials = "NAME" here'],
            ),
            (
                "[[sync]]\nfrom = 'a/b:1'\nto = 'c/d'\nplatforms = ['all']",
                ["platforms has 'all' in a list", 'write platforms = "all", without a list\n'],
            ),
            ("[[sync]]\nfrom = 'a/b:1'\nto = 'docker-archive:x.tar'", ["to", "docker-archive"]),
            ("[[sync]]\nfrom = '-'\nto = 'a/b'", ["from", "stdin"]),
            ("[[sync]]\nfrom = 'a/b'\nto = ['c/d', 'c/d']", ["to has a location twice", "delete one of them"]),
            (
                "[[sync]]\nfrom = 'a/b'\nto = 'c/d'\ntags = { versions = 'new' }",
                ["tags: malformed version range 'new': ", "not a version bound"],
            ),
            ("[[sync]]\nfrom = 'a/b'\nto = 'c/d'\ntags = { regex = '(' }", ["tags", "malformed regular expression"]),
            (
                "[[sync]]\nfrom = 'a/b'\nto = 'c/d'\ntags = 5",
                ["tags must be a pattern, a list or a table", "{ latest = 5 }"],
            ),
            (
                "[[sync]]\nfrom = 'a/b'\nto = 'localhost:5000'",
                ["[[sync]] number 1: to is not a", "localhost:5000/REPO"],
            ),
            ("[[sync]]\nfrom = 'a/b'\nto = 'c/d'\ntags = { latest = 0 }", ["latest", "above 0"]),
            ("[[sync]]\nfrom = 'a/b'\nto = 'c/d'\ntags = {}", ["tags", "selects nothing"]),
            ("[[sync]]\nfrom = 'a/b'\nto = 'c/d'\nplatforms = ['x']", ["platforms"]),
            ('[[sync]]\nfrom = "oci:\\u0000"\nto = "a/b"', ["sync.from", "zero byte"]),
            ('[[sync]]\n"a\\u0000" = 1', ["a?", "zero byte"]),
            (f"[[sync]]\nfrom = 'a/b'\nto = 'c/d'\ntags = {{ regex = '{'a' * 1001}' }}", ["tags", "more than 1000"]),
            ("[[sync]]\nfrom = { location = 'a/b', credentials = 'x' }\nto = 'c/d'", ["'x': no table [credentials.x]"]),
            (
                "[credentials.x]\nauthfile = 'none'\n[[sync]]\nfrom = 'a/b'\nto = 'c/d'",
                ["authfile", "none: no such file"],
            ),
            ("[credentials.x]\nauthfile = '~nobody-x/a'\n[[sync]]\nfrom = 'a/b'\nto = 'c/d'", ["authfile", "home"]),
            ("[credentials.x]\nusername = 'x'\n[[sync]]\nfrom = 'a/b'\nto = 'c/d'", ["password-env", "is missing"]),
            (ONE_FOR_TWO, ["one password", "r.example and s.example"]),
        ],
    )
    def test_a_mistake_in_the_file_is_named_and_no_request_is_sent(
        self, tmp_path: Path, text: str, words: list[str]
    ) -> None:
        assertions.failure(sync(tmp_path, text), 2, "sync.toml", *words)

    def test_a_missing_file_is_reported(self, tmp_path: Path) -> None:
        assertions.failure(ocistream("sync", tmp_path / "none.toml"), 4, "none.toml", "no such file")

    @pytest.mark.parametrize("part", ["4/4", "0/0", "1", "-1/4", "a/b"])
    def test_an_invalid_shard_is_refused(self, tmp_path: Path, part: str) -> None:
        assertions.failure(sync(tmp_path, entry("a/b", "c/d"), f"--shard={part}"), 2, "--shard")


def test_the_result_does_not_overwrite_the_sync_file(tmp_path: Path) -> None:
    result = sync(tmp_path, entry("a.example/b", "c.example/d"), "--result", tmp_path / "sync.toml")
    assertions.failure(result, 2, "--result", "sync.toml")
    assert "[[sync]]" in (tmp_path / "sync.toml").read_text()


class TestShards:
    @pytest.mark.uncounted
    def test_shards_are_complete_and_disjoint(
        self, source: FaultyRegistry, target: FaultyRegistry, other: FaultyRegistry, tmp_path: Path
    ) -> None:
        text = entry(f"{source.host}/app", f"{target.host}/app", f"{other.host}/app")
        lines: list[str] = []
        for number in range(3):
            result = assertions.success(sync(tmp_path, text, "--shard", f"{number}/3"))
            assert f"shard {number}/3" in result.err
            lines += result.lines()
        assert len(lines) == len(set(lines)) == 2 * len(TAGS)
        for registry in (target, other):
            same(source, registry, "app", TAGS)


class TestResults:
    def test_result_lists_the_status_of_each_image(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        source.faults.append(Fault(Reply(404), path="/manifests/1.1$", times=None))
        text = entry(f"{source.host}/app", f"{target.host}/app", tags='"1.[01]"')
        text += entry(f"{source.host}/app:1.0", f"{target.host}/app")
        sync(tmp_path, text, "--result", tmp_path / "result.json")
        document = json.loads((tmp_path / "result.json").read_text())
        validate_ours(document, "sync-result")
        assert document["complete"] is True
        by_name = {image["to"]: image for image in document["images"]}
        assert len(document["images"]) == 2
        one = by_name[f"{target.host}/app:1.0"]
        assert one["status"] == "copied"
        assert one["digest"] == manifest_digest(source.host, "app", "1.0")
        assert one["bytes"] == document["bytes"]["sent"] == document["bytes"]["fetched"] > 0
        failed = by_name[f"{target.host}/app:1.1"]
        assert (failed["status"], failed["exitCode"]) == ("failed", 4)
        assert failed["error"]

    def test_a_dry_run_uses_the_new_name(self, layout: Layout, tmp_path: Path) -> None:
        # A name with a blank cannot be kept in a layout.
        small_image(layout, name="a b")
        text = entry(f"oci:{layout.path}:a b", f"oci:{tmp_path}/out:new")
        for options in (["--dry-run"], []):
            result = assertions.success(sync(tmp_path, text, *options))
            assert len(result.lines()) == 1

    def test_a_dry_run_prints_bytes_and_writes_nothing(
        self, source: FaultyRegistry, target: FaultyRegistry, other: FaultyRegistry, tmp_path: Path
    ) -> None:
        text = entry(
            f"{source.host}/app:2.0", f"{target.host}/app", f"{other.host}/app", "oci:images", "oci-archive:a.tar"
        )
        layout = Layout(tmp_path / "same")
        seed(layout, small_image(layout, annotations={"tag": "2.0"}), other.host, "app", "other")
        asked = len(other.requests)
        result = assertions.success(sync(tmp_path, text, "--dry-run", "--result", tmp_path / "plan.json"))
        planned = json.loads((tmp_path / "plan.json").read_text())
        validate_ours(planned, "sync-result")
        assert target.asked("PUT|POST|PATCH") == []
        assert [r for r in other.requests[asked:] if r.method not in {"HEAD", "GET"}] == []
        assert fetched(source) == {}
        assert not (tmp_path / "images").exists()
        assert not (tmp_path / "a.tar").exists()
        plan = {line.split()[3].partition("@")[0].rpartition("/")[0]: line.split()[:2] for line in result.lines()}
        sizes = [int(line.split()[1]) for line in result.lines()]
        assert sizes[1] == 0
        assert sizes[0] == sizes[2] == sizes[3] > 0
        assert plan[target.host][0] == "copy"
        assertions.success(sync(tmp_path, text, "--result", tmp_path / "result.json"))
        document = json.loads((tmp_path / "result.json").read_text())
        assert [image["bytes"] for image in document["images"]] == sizes
        assert document["bytes"]["fetched"] == planned["bytes"]["fetched"] == sizes[0]

    def test_a_dry_run_counts_each_destination_of_one_registry_or_layout_as_the_run_does(
        self, source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
    ) -> None:
        text = entry(
            f"{source.host}/app:2.0", f"{target.host}/one", f"{target.host}/two", "oci:images:a", "oci:images:b"
        )
        planned, real = sync(tmp_path, text, "--dry-run"), sync(tmp_path, text)
        total = r"4 images (?:to copy|copied), (\S+ \S+); (\S+ \S+) (?:are|were) read from the sources"
        assert re.findall(total, planned.err) == re.findall(total, real.err) != []
        sizes = {line.split()[1] for line in planned.lines()}
        assert len(sizes) == 1
        assert sizes != {"0"}


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_sync_reports_and_resumes(
    source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
) -> None:
    target.faults.append(Fault(StopReading(after=0), method="PUT", path="/app/manifests/2.0$"))
    file = sync_file(tmp_path, entry(f"{source.host}/app", f"{target.host}/app", referrers="false"))
    # With two jobs, images are copied one by one.
    argv: list[Argument] = ["sync", file, "--jobs=2", "--result", tmp_path / "result.json"]
    ended = signalled(signal.SIGINT, *argv, until=lambda: target.asked("PUT", "/app/manifests/2.0$"))
    target.release()
    assert ended.code == 130, ended.err
    done = sorted(tags(target.host, "app"))
    assert done == ["1.0", "1.1", "1.2-rc.1"]
    document = json.loads((tmp_path / "result.json").read_text())
    validate_ours(document, "sync-result")
    assert document["complete"] is False
    assert [image["status"] for image in document["images"]] == ["copied"] * 3
    assert "3 images copied" in ended.err
    again = succeed("sync", file)
    same(source, target, "app", TAGS)
    assert "2 images copied" in again.err
    assert "3 unchanged" in again.err


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_ends_the_upload_to_one_destination_while_another_does_not_read(
    source: FaultyRegistry, target: FaultyRegistry, other: FaultyRegistry, tmp_path: Path
) -> None:
    seed_big(source, tmp_path, 32 << 20)
    target.faults.append(Fault(PauseReading(after=1 << 20), method="PATCH", times=None))
    file = sync_file(tmp_path, entry(f"{source.host}/big", f"{target.host}/big", f"{other.host}/big"))
    config = tmp_path / "config.toml"
    config.write_text(f"[registry.{json.dumps(other.host)}]\nprofile = 'distribution'\n")
    received = [0]

    def is_waiting() -> bool:
        received.append(sum(request.received for request in other.asked("PATCH")))
        return len(received) > 50 and received[-1] == received[-50] > 1 << 20

    ended = signalled(signal.SIGINT, "sync", file, "--jobs=1", "--config", config, until=is_waiting)
    target.release()
    assert ended.code == 130, ended.err
    assert [request.status for request in other.asked("PATCH")] == [202], ended.err


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("jobs", ["1", "4"])
def test_an_interruption_inside_a_blob_resumes_for_several_destinations(
    source: FaultyRegistry, target: FaultyRegistry, other: FaultyRegistry, tmp_path: Path, jobs: str
) -> None:
    layout = Layout(tmp_path / "big")
    layer, _ = layout.random_layer(8 << 20)
    seed(layout, layout.image([layer]), source.host, "big", "1")
    source.faults.append(Fault(Stall(after=6 << 20), method="GET", path=f"/blobs/{layer['digest']}"))
    file = sync_file(tmp_path, entry(f"{source.host}/big", f"{target.host}/big", f"{other.host}/big"))

    def is_under_way() -> bool:
        sent = [r for registry in (target, other) for r in registry.asked("PATCH") if r.received > 4 << 20]
        return len(sent) == 2

    ended = signalled(signal.SIGINT, "sync", file, "--jobs", jobs, until=is_under_way)
    source.release()
    assert ended.code == 130, ended.err
    for registry in (target, other):
        assert tags(registry.host, "big") == []
    succeed("sync", file)
    assert_big_copied(source, target, other)


def test_progress_has_one_total_from_the_first_byte(
    source: FaultyRegistry, target: FaultyRegistry, other: FaultyRegistry, tmp_path: Path
) -> None:
    for number in range(3):
        layout = Layout(tmp_path / str(number))
        seed(layout, layout.image([100_000 + number]), source.host, "big", str(number))
    result = sync(
        tmp_path, entry(f"{source.host}/big", f"{target.host}/big", f"{other.host}/big"), "--progress", "json"
    )
    assertions.success(result)
    events = [json.loads(line) for line in result.err.splitlines()]
    for event in events:
        validate_ours(event, "progress")
    totals = {event["total"] for event in events if event.get("event") in {"planned", "progress"}}
    assert len(totals) == 1
    assert max(totals) > 300_000
    assert [event for event in events if event.get("event") == "progress"][-1]["bytes"] == totals.pop()
    assert [(e["done"], e["images"]) for e in events if e.get("event") == "images"] == [(1, 3), (2, 3), (3, 3)]


def test_the_progress_total_excludes_a_failed_image(
    source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "big")
    seed(layout, layout.image([100_000]), source.host, "big", "0")
    image = layout.image([100_001])
    seed(layout, image, source.host, "big", "1")
    [layer] = layout.read(image["digest"])["layers"]
    source.faults.append(Fault(Reply(404), path=f"/blobs/{layer['digest']}", times=None))
    result = sync(tmp_path, entry(f"{source.host}/big", f"{target.host}/big"), "--progress", "json")
    assert result.code != 0
    planned = [e for line in result.err.splitlines() if (e := json.loads(line)).get("event") == "planned"]
    assert planned[0]["total"] > 200_000
    assert 100_000 < planned[-1]["total"] < 102_000


def test_result_lines_are_complete_with_a_bar(source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path) -> None:
    seen = on_terminal("sync", sync_file(tmp_path, entry(f"{source.host}/app", f"{target.host}/app")))
    assert seen.code == 0
    for tag in TAGS:
        line = f"{target.host}/app:{tag}@{manifest_digest(source.host, 'app', tag)}"
        # The bar is erased before a line is printed.
        assert re.search(rf"(^|\n|\x1b\[2K|\x1b\[[0-9]+A){re.escape(line)}\r\n", seen.screen), seen.screen


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_several_images_are_examined_in_parallel(
    source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path, options: list[str]
) -> None:
    source.faults.append(Fault(Stall(after=0), method="GET", path="/app/manifests/", times=3))
    file = sync_file(tmp_path, entry(f"{source.host}/app", f"{target.host}/app", referrers="false"))
    with started_fork("sync", file, "--jobs", "3", *options) as process:
        # No request has been answered yet.
        assertions.wait_for(lambda: len(source.asked("GET", "/app/manifests/")) == 3)
        source.release()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.mark.parametrize("fault", [None, "a wrong manifest", "a wrong layer", "no such image"])
def test_only_a_few_of_many_archives_are_open_at_the_same_time(
    fault: str | None, target: FaultyRegistry, layout: Layout, tmp_path: Path
) -> None:
    image = small_image(layout, name="app")
    archive = tar_of(small_first(layout))
    wrong = layout.read(image["digest"])["layers"][0] if fault == "a wrong layer" else image
    content = layout.file(wrong["digest"]).read_bytes()
    entries = []
    for number in range(12):
        path = tmp_path / f"{number:02}.tar"
        is_wrong = fault in {"a wrong manifest", "a wrong layer"} and number < 11
        path.write_bytes(archive.replace(content, content[:-1] + b" ") if is_wrong else archive)
        name = "other" if fault == "no such image" and number < 11 else "app"
        entries.append(entry(f"oci-archive:{path}:{name}", f"{target.host}/app:{number}"))
    target.faults = [Fault(Stall(), "PUT", "/manifests/11")]
    with started_fork("sync", sync_file(tmp_path, "".join(entries)), "--jobs=1") as process:
        assertions.wait_for(lambda: target.asked("PUT", "/manifests/11"))
        opened = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        target.release()
        _, err = process.communicate(timeout=60)
    assert len(tags(target.host, "app")) == (12 if fault is None else 1), err
    assert 1 <= len([name for name in opened if name.endswith(".tar")]) <= 4
