"""Repositories from which blobs may be mounted: which ones are asked, how, and how often. Statement 47."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.archives import small_first, tar_of
from tests.faulty_auth import Bearer
from tests.faulty_registry import Fault, Header, refusal
from tests.images import Descriptor, Layout
from tests.quirks import registry_quirks
from tests.quirks.command_runner import How, Mover, both_ways
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import Quirk, QuirkyRegistry
from tests.quirks.registry_models import PASSWORD, USER
from tests.quirks.small_images import config_of, is_stored, layer_of
from tests.quirks.statements import quirk
from tests.registry_http import manifest_digest, seed
from tests.runner import ocistream

pytestmark = quirk(47)


def layers(layout: Layout, count: int) -> tuple[Descriptor, bytes]:
    """Return an image of `count` small layers, and its archive."""
    image = layout.image([f"layer {number}".encode() for number in range(count)], name="app")
    return image, tar_of(small_first(layout))


def asked_of(registry: QuirkyRegistry, blob: Descriptor) -> list[str]:
    """Return the requests that tried to mount a blob: METHOD and repository."""
    found = []
    for request in registry.asked("POST|HEAD", blob["digest"].replace(":", "(:|%3[Aa])")):
        repository = request.query.get("from", [request.path.removeprefix("/v2/").partition("/blobs/")[0]])[0]
        found.append(f"{request.method} {repository}")
    return found


def mounting(mover: Move, *repositories: str) -> Mover:
    return mover("--jobs", "1", *(f"--mount-from={repository}" for repository in repositories))


def test_the_first_repository_gets_the_mount_request_and_the_second_a_head(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(registry_quirks.only_in())
    image, archive = layers(layout, 1)
    mounting(mover, "base", "other").push(archive, f"{registry.host}/app:v1")
    # The response to the mount is the upload session; the HEAD opens none.
    for blob in (config_of(layout, image), layer_of(layout, image)):
        assert asked_of(registry, blob) == ["HEAD app", "POST base", "HEAD other"]
    assert len(registry.asked("POST")) == len(registry.asked("PUT", "/blobs/uploads/")) == 2
    assert registry.asked("DELETE") == []
    assert is_stored(registry, layout, layer_of(layout, image))


@both_ways
def test_a_blob_is_mounted_from_the_second_repository_and_the_session_of_the_first_deleted(
    how: How, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(registry_quirks.only_in("other"))
    image, archive = layers(layout, 1)
    seed(layout, image, registry.host, "other", "v1")
    registry.requests.clear()
    mounting(mover, "base", "other").push(archive, f"{registry.host}/app:v1", how)
    first, second = config_of(layout, image), layer_of(layout, image)
    assert asked_of(registry, first) == ["HEAD app", "POST base", "HEAD other", "POST other"]
    # The repository that had the last blob is asked first.
    assert asked_of(registry, second) == ["HEAD app", "POST other"]
    assert [request.status for request in registry.asked("DELETE", "/blobs/uploads/")] == [204]
    assert registry.asked("PATCH|PUT", "/blobs/") == []
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


def test_a_session_in_place_of_a_mount_is_deleted_if_its_blob_cannot_be_read(
    start: Start, mover: Move, layout: Layout
) -> None:
    source, registry = start(), start(registry_quirks.only_in())
    image, _ = layers(layout, 1)
    seed(layout, image, source.host, "app", "v1")
    source.faults = [Fault(refusal(404), "GET", "/blobs/", times=None)]
    mounting(mover, "base").copy(f"{source.host}/app:v1", f"{registry.host}/app:v1", code=4)
    opened = registry.asked("POST", "mount=")
    assert [request.status for request in opened] == [202] * len(opened) != []
    assert [request.status for request in registry.asked("DELETE")] == [204] * len(opened)


def test_unused_sessions_are_deleted_only_until_a_deadline_and_the_next_run_uses_the_rest(
    start: Start, mover: Move, layout: Layout, tmp_path: Path
) -> None:
    source, registry = start(), start(registry_quirks.only_in())
    image, _ = layers(layout, 5)
    seed(layout, image, source.host, "app", "v1")
    source.faults = [Fault(refusal(404), "GET", "/blobs/", times=None)]
    clock, machine = tmp_path / "clock", tmp_path / "machine"
    machine.mkdir()
    # The size of this file is the number of seconds that the process's clock is ahead.
    clock.touch()
    (machine / "sitecustomize.py").write_text(
        "import os, time\n_monotonic = time.monotonic\n"
        f"time.monotonic = lambda: _monotonic() + os.stat({str(clock)!r}).st_size\n"
    )

    def advance_clock(_: str) -> str:
        with clock.open("a") as file:
            file.write("x" * 60)
        return ""

    registry.faults = [Fault(Header("X-Slow", advance_clock), "DELETE", times=None)]
    used = mover("--jobs", "1", "--mount-from", "base", env={})
    command = ("copy", f"{source.host}/app:v1", f"{registry.host}/app:v1", *used.options)
    result = ocistream(*command, env=used.env, no_waits=True, machine=machine)
    assert result.code == 4
    # The failed upload used one session. Only one of the other five was deleted in time.
    assert len(registry.asked("POST", "mount=")) == 6
    assert len(registry.asked("DELETE")) == 2
    source.faults, registry.faults = [], []
    registry.requests.clear()
    used.run(*command)
    assert len(registry.asked("GET", "/blobs/uploads/")) == 4
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


@quirk(17)
@pytest.mark.parametrize(("status", "asked"), [(400, 1), (401, 1), (403, 1), (404, 1), (405, 1), (500, None)])
def test_a_repository_that_refuses_is_not_asked_again_and_the_blobs_are_uploaded(
    status: int, asked: int | None, start: Start, mover: Move, layout: Layout
) -> None:
    refuses = Fault(refusal(status), "POST", "mount=", times=None)
    registry = start(registry_quirks.only_in(), Quirk("refuses mounts", (refuses,)))
    image, archive = layers(layout, 4)
    mounting(mover, "base").push(archive, f"{registry.host}/app:v1")
    # After a server error, the request is tried again.
    assert asked is None or len(registry.asked("POST", "from=base")) == asked
    assert len(registry.asked("PUT", "/v2/app/blobs/uploads/")) == 5
    assert is_stored(registry, layout, *layout.read(image["digest"])["layers"])
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


def test_a_repository_that_lacked_eight_blobs_is_not_asked_again(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(registry_quirks.only_in())
    _, archive = layers(layout, 12)
    mounting(mover, "base", "other").push(archive, f"{registry.host}/app:v1")
    assert len(registry.asked("POST", "from=base")) == 8
    assert len(registry.asked("HEAD", "/v2/other/blobs/")) == 8


def test_after_a_mount_a_repository_is_asked_for_eight_more_missing_blobs(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(registry_quirks.only_in("base"))
    image, archive = layers(layout, 20)
    seventh = layout.read(image["digest"])["layers"][6]
    held = Layout(layout.path.parent / "held")
    seed(held, held.image([layout.file(seventh["digest"]).read_bytes()]), registry.host, "base", "v1")
    registry.requests.clear()
    mounting(mover, "base").push(archive, f"{registry.host}/app:v1")
    mounts = registry.asked("POST", "from=base")
    position = [request.status for request in mounts].index(201)
    assert position < 8
    assert len(mounts) == position + 1 + 8


@quirk(18)
def test_the_head_uses_the_token_for_mounting(start: Start, mover: Move, layout: Layout) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=())
    registry = start(registry_quirks.only_in(), auth=auth)
    _, archive = layers(layout, 1)
    mounting(mover, "base", "team/other").push(archive, f"{registry.host}/app:v1")
    assert {request.scopes for request in auth.requests} >= {
        ("repository:app:pull,push", "repository:base:pull"),
        ("repository:app:pull,push", "repository:team/other:pull"),
    }
    shown = registry.asked("HEAD", "/v2/team/other/blobs/")
    assert len(shown) == 2
    assert {request.status for request in shown} == {404}


@pytest.mark.parametrize("holder", ["base", "library/base"])
def test_a_base_image_of_docker_hub_is_mounted_from_either_form_of_its_name(
    holder: str, start: Start, mover: Move, layout: Layout, tmp_path: Path
) -> None:
    hub, target = start(), start(registry_quirks.only_in(holder))
    base = layout.image([b"of the base image"])
    image = layout.image([layout.file(layer_of(layout, base)["digest"]).read_bytes(), b"on top"])
    seed(layout, base, hub.host, "library/base", "1")
    seed(layout, image, hub.host, "library/app", "1")
    seed(layout, base, target.host, holder, "1")
    config = tmp_path / "config.toml"
    config.write_text(f'[registry."docker.io"]\nurl = "{hub.url}"\n')
    used = mover("--config", config, "--jobs", "1", env={})
    archive = tmp_path / "app.tar"
    used.run("pull", "app:1", "--base", "base:1", "-o", archive, "--platform", "all", "--config", config)
    target.requests.clear()
    used.run("push", f"{target.host}/app:1", "-i", archive, "--jobs", "1")
    mounts = [request.query["from"] for request in target.asked("POST", "mount=") if request.status == 201]
    assert mounts == [[holder]]
    assert manifest_digest(target.host, "app", "1") == image["digest"]
