"""`ocistream sync` of several images between real registries: complete, interrupted and resumed."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.fault_actions import Stall
from tests.faulty_registry import Fault, FaultyRegistry
from tests.images import Layout, small_image
from tests.peers import DockerRegistry, docker_registry
from tests.registry_http import seed
from tests.runner import measured, ocistream, started

REPOSITORIES = 4
TAGS = 3
IMAGES = REPOSITORIES * TAGS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Return a docker-registry with images in four repositories, some of which share layers."""
    folder = tmp_path_factory.mktemp("from")
    layout = Layout(folder / "made")
    with docker_registry(folder / "registry") as registry:
        for number in range(REPOSITORIES):
            for tag in range(TAGS):
                image = layout.image([b"base", f"layer {number} {tag}".encode(), 4000 + tag])
                seed(layout, image, registry.host, f"team/app{number}", f"1.{tag}")
        yield registry


@pytest.fixture
def target(tmp_path: Path) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path / "registry") as registry:
        yield registry


def sync_file(folder: Path, source: DockerRegistry, *targets: DockerRegistry) -> Path:
    file = folder / "sync.toml"
    entries = [
        f'[[sync]]\nfrom = "{source.host}/team/app{number}"\n'
        f"to = {json.dumps([f'{target.host}/mirror/app{number}' for target in targets])}\n"
        for number in range(REPOSITORIES)
    ]
    file.write_text("\n".join(entries))
    return file


def contents(registry: DockerRegistry, prefix: str) -> dict[str, dict[str, str]]:
    """Return the digests of all tags by repository."""
    return {name.removeprefix(prefix): registry.tags(name) for name in registry.repositories()}


def blobs(registry: DockerRegistry, prefix: str) -> dict[str, set[str]]:
    return {name.removeprefix(prefix): registry.blobs(name) for name in registry.repositories()}


def assert_same(source: DockerRegistry, target: DockerRegistry) -> None:
    assert sum(map(len, contents(source, "team/").values())) == IMAGES
    assert contents(target, "mirror/") == contents(source, "team/")
    assert blobs(target, "mirror/") == blobs(source, "team/")


def test_a_sync_copies_all_images_and_a_second_one_reports_them_unchanged(
    source: DockerRegistry, target: DockerRegistry, tmp_path: Path
) -> None:
    file = sync_file(tmp_path, source, target)
    result = assertions.success(ocistream("sync", file))
    assert len(result.lines()) == IMAGES
    assert_same(source, target)
    again = assertions.success(ocistream("sync", file))
    assert sorted(again.lines()) == sorted(result.lines())
    assert f"{IMAGES} unchanged" in again.err


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_sync_resumes(source: DockerRegistry, target: DockerRegistry, tmp_path: Path) -> None:
    file, layout = sync_file(tmp_path, source, target), Layout(tmp_path / "made")
    with FaultyRegistry(tmp_path / "stalling", Fault(Stall(), "POST", "/v2/copy/")) as stalling:
        # The last image stalls, so that sync does not end before the signal.
        seed(layout, small_image(layout), stalling.host, "app", "1")
        with file.open("a") as entries:
            entries.write(f'[[sync]]\nfrom = "{stalling.host}/app"\nto = "{stalling.host}/copy"\n')
        with started("sync", str(file), "--result", str(tmp_path / "result.json")) as process:
            assert process.stdout is not None
            for _ in range(IMAGES // 4):
                process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        assert process.returncode == 130, err
        document = json.loads((tmp_path / "result.json").read_text())
        done = [image for image in document["images"] if image["status"] == "copied"]
        assert IMAGES // 4 <= len(done) <= IMAGES
        stalling.release()
        result = ocistream("sync", file)
    assertions.success(result)
    assert_same(source, target)
    unchanged = int(result.err.partition(" unchanged")[0].rpartition(" ")[2])
    # One more image may have been complete but not yet reported.
    assert unchanged in {len(done), len(done) + 1}


def test_one_source_to_two_registries_reads_each_blob_once(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "made")
    with (
        docker_registry(tmp_path / "from") as source,
        docker_registry(tmp_path / "one") as one,
        docker_registry(tmp_path / "two") as two,
    ):
        shared = layout.random_layer(2_000_000)[0]
        seed(layout, layout.image([shared, 5 << 20, 300_000]), source.host, "app", "1")
        seed(layout, small_image(layout), source.host, "app", "2")
        # One registry already has some of the blobs.
        seed(layout, layout.image([shared]), two.host, "other/app", "0")
        file = tmp_path / "sync.toml"
        file.write_text(f'[[sync]]\nfrom = "{source.host}/app"\nto = ["{one.host}/app", "{two.host}/other/app"]\n')
        before = len(source.requests())
        assertions.success(ocistream("sync", file))
        got = [r.split() for r in source.requests()[before:] if r.startswith("GET ") and "/blobs/" in r]
        asked = Counter(target for _, target, status in got if status in {"200", "206"})
        assert len(asked) == 7
        assert set(asked.values()) == {1}
        assert one.tags("app") == source.tags("app")
        assert {"1", "2"} <= two.tags("other/app").keys()
        assert two.tags("other/app")["1"] == source.tags("app")["1"]
        assert one.blobs("app") == source.blobs("app")


def test_a_sync_to_several_destinations_stays_within_the_memory_budget(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "made")
    with (
        docker_registry(tmp_path / "from") as source,
        docker_registry(tmp_path / "one") as one,
        docker_registry(tmp_path / "two") as two,
    ):
        seed(layout, layout.image([(13 << 20) + number for number in range(4)]), source.host, "app", "1")
        file = tmp_path / "sync.toml"
        file.write_text(f'[[sync]]\nfrom = "{source.host}/app"\nto = ["{one.host}/app", "{two.host}/app"]\n')
        result = assertions.success(measured("sync", file))
        assert one.tags("app") == two.tags("app") == source.tags("app")
        assert result.peak is not None
        assert result.peak < 48 << 20


def test_a_layer_of_several_repositories_is_uploaded_once_as_planned(target: DockerRegistry, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "made")
    base, _ = layout.random_layer(200_000)
    with docker_registry(tmp_path / "from") as source:
        for number in range(4):
            seed(layout, layout.image([base, str(number).encode()]), source.host, f"team/app{number}", "1")
        file = tmp_path / "sync.toml"
        file.write_text(
            "".join(
                f'[[sync]]\nfrom = "{source.host}/team/app{number}:1"\nto = "{target.host}/mirror/app{number}"\n'
                for number in range(4)
            )
        )
        documents = []
        for options in (["--dry-run"], []):
            assertions.success(ocistream("sync", file, *options, "--result", tmp_path / "result.json"))
            documents.append(json.loads((tmp_path / "result.json").read_text())["bytes"])
    assert documents[0] == documents[1]
    assert 200_000 < documents[1]["sent"] < 400_000
    assert target.log.read_text().count("mount=") >= 3
    assert all(len(target.blobs(f"mirror/app{number}")) == 3 for number in range(4))
