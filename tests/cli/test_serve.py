"""`ocistream serve`: a local registry, from the first line on stdout until a signal."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import threading
import time
from http.client import HTTPException
from pathlib import Path

import pytest

from ocistream import limits
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.serving import really_serving, serving, stop
from tests.images import OCI_CONFIG, OCI_MANIFEST, Layout, digest_of, small_image
from tests.raw_http import Client
from tests.registry_http import manifest_digest, seed
from tests.runner import ocistream

pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.mark.uncounted
def test_the_first_line_is_the_address_and_the_registry_works(layout: Layout, tmp_path: Path) -> None:
    image = small_image(layout, name="app")
    with serving(tmp_path / "store") as (process, host):
        assert host.startswith("127.0.0.1:")
        succeed("push", "-i", layout.path, f"{host}/app:1")
        succeed("pull", f"{host}/app:1", "-o", tmp_path / "x.tar")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    store = tmp_path / "store"
    said = (
        f"ocistream: created an empty layout in {store}\nocistream: {store} has no images yet\nocistream: terminated\n"
    )
    assert (process.returncode, out, err.decode()) == (143, b"", said)
    assert assertions.index_of(tmp_path / "x.tar")[0]["digest"] == image["digest"]
    # The next server has the pushed image.
    with serving(tmp_path / "store") as (_, host):
        assert manifest_digest(host, "app", "1") == image["digest"]


def test_ctrl_c_stops_the_server(tmp_path: Path) -> None:
    with serving(tmp_path / "store") as (process, _):
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    store = tmp_path / "store"
    said = (
        f"ocistream: created an empty layout in {store}\nocistream: {store} has no images yet\nocistream: interrupted\n"
    )
    assert (process.returncode, err.decode()) == (130, said)


def test_the_default_directory_is_the_current_one(layout: Layout) -> None:
    image = small_image(layout, name="127.0.0.1/app:1")
    with serving(cwd=layout.path) as (_, host):
        assert manifest_digest(host, "app", "1") == image["digest"]


def test_read_only_refuses_pushes(layout: Layout, tmp_path: Path) -> None:
    image = small_image(layout, name="127.0.0.1/app:1")
    before = sorted(layout.path.rglob("*"))
    with serving(layout.path, "--read-only") as (_, host):
        result = ocistream("push", "-i", layout.path, f"{host}/new:1")
        assertions.failure(result, 8, "does not accept pushes", "405", "push to another registry")
        succeed("pull", f"{host}/app@{image['digest']}", "-o", tmp_path / "x.tar")
    assert sorted(layout.path.rglob("*")) == before
    missing = ocistream("serve", tmp_path / "missing", "--read-only", "--listen", "127.0.0.1:0")
    assertions.failure(missing, 4, "missing", "no such directory")
    assert not (tmp_path / "missing").exists()


def test_verbose_prints_requests(layout: Layout, tmp_path: Path) -> None:
    image = small_image(layout)
    for argv in (["-v"], [], ["-v", "--log-format=json"]):
        with serving(tmp_path / "store", *argv) as (process, host):
            seed(layout, image, host, "app", "1")
            assert manifest_digest(host, "gone", "\x1b[2J"[2:]) is None
            lines = stop(process).splitlines()
        if not argv:
            assert lines == ["ocistream: terminated"]
        elif len(argv) == 1:
            assert any("127.0.0.1 PUT /v2/app/manifests/1: 201, " in line for line in lines)
            assert any("GET /v2/gone/manifests/2J: 404, 0 B in" in line for line in lines)
        else:
            served = [line for line in map(json.loads, lines) if line["level"] == "debug"]
            assert {"PUT", "POST", "GET"} == {line["method"] for line in served}
            assert all(isinstance(line["received"], int) for line in served)


def test_a_confirmed_manifest_is_in_the_index_after_a_kill(tmp_path: Path) -> None:
    config = {"mediaType": OCI_CONFIG, "digest": digest_of(b"{}"), "size": 2}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    answered: list[str] = []
    with serving(tmp_path / "store") as (process, host):
        with Client(host) as ask:
            ask.upload(b"{}")

        def push(thread: int) -> None:
            # Until the server is killed.
            with contextlib.suppress(OSError, HTTPException), Client(host) as client:
                for number in range(100_000):
                    tag = f"v{thread}-{number}"
                    raw = json.dumps({**document, "annotations": {"tag": tag}}).encode()
                    if client("PUT", f"/v2/app/manifests/{tag}", raw).status == 201:
                        answered.append(tag)

        threads = [threading.Thread(target=push, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        while len(answered) < 50:
            time.sleep(0.01)
        process.kill()
        for thread in threads:
            thread.join()
    listed = json.loads((tmp_path / "store" / "index.json").read_bytes())["manifests"]
    tags = {entry["annotations"]["org.opencontainers.image.ref.name"] for entry in listed}
    assert set(answered) <= tags
    # Each thread may have one more push, whose answer was lost.
    assert len(tags) <= len(answered) + 8
    # The next server has the images of the killed one.
    with serving(tmp_path / "store") as (_, host), Client(host) as ask:
        assert ask("GET", "/v2/app/tags/list").json()["tags"] == sorted(tags)


def test_a_corrupt_blob_is_never_served_and_a_push_replaces_it(layout: Layout, tmp_path: Path) -> None:
    image = layout.image([300_000], name="app")
    layer = layout.read(image["digest"])["layers"][0]["digest"]
    blob = tmp_path / "store" / "blobs" / layer.replace(":", "/")
    with serving(tmp_path / "store") as (_, host):
        succeed("push", "-i", layout.path, f"{host}/app:1")
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with serving(tmp_path / "store") as (process, host):
        pulled = ocistream("pull", f"{host}/app:1", "-o", tmp_path / "x.tar", "--retries=1")
        assertions.failure(pulled, 7, layer)
        assert not (tmp_path / "x.tar").exists()
        succeed("push", "-i", layout.path, f"{host}/app:1")
        succeed("pull", f"{host}/app:1", "-o", tmp_path / "x.tar")
        err = stop(process)
    assert blob.read_bytes() == content
    told = [line for line in err.splitlines() if "is corrupt: it is not served" in line]
    assert len(told) == 1
    assert layer in told[0]
    succeed("verify", tmp_path / "x.tar")


@pytest.mark.parametrize("argv", [[], ["--log-format=json"]])
def test_server_errors_are_printed_without_verbose(layout: Layout, argv: list[str]) -> None:
    small_image(layout, name="app")
    with serving(layout.path, *argv) as (process, host):
        (layout.path / "index.json").write_text("broken")
        with Client(host) as ask:
            assert [ask("GET", "/v2/app/tags/list").status for _ in range(2)] == [500, 500]
        err = stop(process)
    told = err.splitlines()[:-1]
    assert len(told) == 2
    assert all("/v2/app/tags/list" in line and "not valid JSON" in line for line in told)
    if argv:
        assert "is_ours" not in json.loads(told[0])


def test_the_limit_of_file_descriptors_is_raised_for_all_clients(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with really_serving(tmp_path / "store") as (process, _):
            raised, _ = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised == min(limits.RESERVED_FILE_DESCRIPTORS + 4 * limits.MAX_CLIENTS, hard)


@pytest.mark.parametrize("listen", ["localhost:0", "127.0.0.2:0", "[::1]:0"])
def test_every_loopback_address_is_accepted(layout: Layout, tmp_path: Path, listen: str) -> None:
    if listen.startswith("[") and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    small_image(layout, name="app")
    with serving(tmp_path / "store", listen=listen) as (_, host):
        succeed("push", "-i", layout.path, f"{host}/app:1")
        assert host.rpartition(":")[0] == listen.rpartition(":")[0].replace("localhost", "127.0.0.1")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
