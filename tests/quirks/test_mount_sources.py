"""Repositories from which blobs may be mounted: which of them are asked, how, and how often. Statement 47."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archives import small_first, tar_of
from tests.faulty_auth import Bearer
from tests.faulty_registry import Fault, Header, refusal
from tests.images import Descriptor, Layout
from tests.quirks import registry_quirks
from tests.quirks.command_runner import Mover
from tests.quirks.quirky_registry import Quirk, QuirkyRegistry
from tests.quirks.registry_models import PASSWORD, USER
from tests.quirks.small_images import config_of, is_stored, layer_of
from tests.quirks.statements import quirk
from tests.registry_http import manifest_digest, seed
from tests.runner import ocistream

Start = Callable[..., QuirkyRegistry]
Move = Callable[..., Mover]


def layers(layout: Layout, count: int) -> tuple[Descriptor, bytes]:
    """Return an image of so many small layers, and the archive that holds it."""
    image = layout.image([f"layer {number}".encode() for number in range(count)], name="app")
    return image, tar_of(small_first(layout))


def asked_of(registry: QuirkyRegistry, blob: Descriptor) -> list[str]:
    """Return the requests by which a mount of a blob was tried: METHOD and repository."""
    found = []
    for request in registry.asked("POST|HEAD", blob["digest"].replace(":", "(:|%3[Aa])")):
        repository = request.query.get("from", [request.path.removeprefix("/v2/").partition("/blobs/")[0]])[0]
        found.append(f"{request.method} {repository}")
    return found


def mounting(mover: Move, *repositories: str) -> Mover:
    return mover("--jobs", "1", *(f"--mount-from={repository}" for repository in repositories))


@quirk(47)
def test_the_first_is_asked_for_the_mount_and_the_second_whether_it_has_the_blob(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(registry_quirks.only_in())
    image, archive = layers(layout, 1)
    mounting(mover, "base", "other").push(archive, f"{registry.host}/app:v1")
    # What the first has answered is the session of the upload; the question to the second opens nothing.
    for blob in (config_of(layout, image), layer_of(layout, image)):
        assert asked_of(registry, blob) == ["HEAD app", "POST base", "HEAD other"]
    assert len(registry.asked("POST")) == len(registry.asked("PUT", "/blobs/uploads/")) == 2
    assert registry.asked("DELETE") == []
    assert is_stored(registry, layout, layer_of(layout, image))


@quirk(47)
def test_what_the_second_has_is_mounted_from_there_and_the_session_of_the_first_deleted(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(registry_quirks.only_in("other"))
    image, archive = layers(layout, 1)
    seed(layout, image, registry.host, "other", "v1")
    registry.requests.clear()
    mounting(mover, "base", "other").push(archive, f"{registry.host}/app:v1")
    first, second = config_of(layout, image), layer_of(layout, image)
    assert asked_of(registry, first) == ["HEAD app", "POST base", "HEAD other", "POST other"]
    # The repository that had the last one is asked first.
    assert asked_of(registry, second) == ["HEAD app", "POST other"]
    assert [request.status for request in registry.asked("DELETE", "/blobs/uploads/")] == [204]
    assert registry.asked("PATCH|PUT", "/blobs/") == []
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


@quirk(47)
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


@quirk(47)
def test_unused_sessions_are_deleted_only_until_a_deadline_and_the_next_run_uses_the_rest(
    start: Start, mover: Move, layout: Layout, tmp_path: Path
) -> None:
    source, registry = start(), start(registry_quirks.only_in())
    image, _ = layers(layout, 5)
    seed(layout, image, source.host, "app", "v1")
    source.faults = [Fault(refusal(404), "GET", "/blobs/", times=None)]
    clock, machine = tmp_path / "clock", tmp_path / "machine"
    machine.mkdir()
    # The clock of the process is as many seconds ahead as this file has bytes.
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
    # One session was used by the upload that failed. Only one of the other five was deleted in time.
    assert len(registry.asked("POST", "mount=")) == 6
    assert len(registry.asked("DELETE")) == 2
    source.faults, registry.faults = [], []
    registry.requests.clear()
    used.run(*command)
    assert len(registry.asked("GET", "/blobs/uploads/")) == 4
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]


@quirk(47)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
def test_a_repository_that_refuses_is_not_asked_again(status: int, start: Start, mover: Move, layout: Layout) -> None:
    refuses = Fault(refusal(status), "POST", "mount=", times=None)
    registry = start(registry_quirks.only_in(), Quirk("refuses mounts", (refuses,)))
    image, archive = layers(layout, 4)
    mounting(mover, "base").push(archive, f"{registry.host}/app:v1")
    assert len(registry.asked("POST", "from=base")) == 1
    assert is_stored(registry, layout, layer_of(layout, image))


@quirk(47)
def test_a_repository_that_has_had_nothing_eight_times_is_not_asked_again(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(registry_quirks.only_in())
    _, archive = layers(layout, 12)
    mounting(mover, "base", "other").push(archive, f"{registry.host}/app:v1")
    assert len(registry.asked("POST", "from=base")) == 8
    assert len(registry.asked("HEAD", "/v2/other/blobs/")) == 8


@quirk(47)
def test_one_that_had_a_blob_is_asked_eight_times_more(start: Start, mover: Move, layout: Layout) -> None:
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
@quirk(47)
def test_the_token_for_asking_is_the_one_for_mounting(start: Start, mover: Move, layout: Layout) -> None:
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


@quirk(47)
@pytest.mark.parametrize("holder", ["base", "library/base"])
def test_what_docker_hub_has_is_mounted_from_either_spelling_of_its_name(
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
