"""Transfers that last longer than their tokens, with a real docker-registry and a real token server.

distribution allows for clocks that are 60 seconds apart, so a token that lives for -58 ends after two seconds, and one
that lives for none after a minute.
"""

from __future__ import annotations

import concurrent.futures
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archives import files_in, small_first, tar_of
from tests.images import Layout
from tests.interop.long_push import LOGIN, MIB, PASSWORD, USER, Lasted
from tests.peers import DockerRegistry
from tests.quirks.statements import quirk
from tests.registry_http import seed
from tests.runner import started
from tests.token_server import TokenServer, User

Start = Callable[..., DockerRegistry]
StartTokens = Callable[..., TokenServer]


@pytest.mark.parametrize(
    "stated", [2, 300], ids=["and the server says so", "though the server says that it lives for long"]
)
def test_a_push_outlives_its_token(
    stated: int, start_registry: Start, start_token_server: StartTokens, layout: Layout, tmp_path: Path
) -> None:
    # distribution allows for clocks that are 60 seconds apart: this token ends after two.
    tokens = start_token_server(users={USER: User(PASSWORD)}, lifetime=-58, expires_in=stated)
    registry = start_registry(auth=tokens)
    image = layout.image([3 * MIB, 3 * MIB], name="v1")
    archive = tmp_path / "app.tar"
    names = ["oci-layout", "index.json", "blobs"]
    subprocess.run(["tar", "--create", "--file", archive, "--directory", layout.path, *names], check=True)
    content = archive.read_bytes()
    half = len(content) // 4
    with started("push", f"{registry.host}/app:v1", stdin=subprocess.PIPE, env=LOGIN) as process:
        assert process.stdin is not None
        # In the middle of the first layer: its upload was opened with the first token and is closed with another.
        process.stdin.write(content[:half])
        process.stdin.flush()
        tokens.wait_for_end()
        _, errors = process.communicate(content[half:])
    assert process.returncode == 0, errors
    assert registry.tags("app") == {"v1": image["digest"]}
    refused = [request for request in registry.requests() if request.startswith("PUT ") and request.endswith(" 401")]
    # A token whose end is known is renewed before it; one that ends unexpectedly when it has.
    assert len(refused) == (1 if stated == 300 else 0)


def test_a_pull_outlives_its_token(
    start_registry: Start, start_token_server: StartTokens, layout: Layout, tmp_path: Path
) -> None:
    tokens = start_token_server(anonymous={"*": ["pull"]}, lifetime=-58, expires_in=300)
    registry = start_registry(auth=tokens)
    access = [{"type": "repository", "name": "app", "actions": ["pull", "push"]}]
    header = {"Authorization": f"Bearer {tokens.token('', access)}"}
    seed(layout, layout.image([6 * MIB, 3 * MIB]), registry.host, "app", "v1", headers=header)
    with started("pull", f"{registry.host}/app:v1") as process:
        assert process.stdout is not None
        beginning = process.stdout.read(MIB)
        tokens.wait_for_end()
        rest = process.stdout.read()
        assert process.wait() == 0
    (tmp_path / "pulled.tar").write_bytes(beginning + rest)
    subprocess.run(["tar", "--list", "--file", tmp_path / "pulled.tar"], check=True, capture_output=True)
    assert len([request for request in tokens.requests if request.status == 200]) >= 2


@quirk(13)
@pytest.mark.parametrize("stated", [2, 300], ids=["and both say so", "though both say that theirs live for long"])
def test_a_copy_outlives_the_tokens_of_both_its_sides(
    stated: int, start_registry: Start, start_token_server: StartTokens, layout: Layout
) -> None:
    one, other = (start_token_server(users={USER: User(PASSWORD)}, lifetime=-58, expires_in=stated) for _ in range(2))
    source, target = start_registry(auth=one), start_registry(auth=other)
    image = layout.image([6 * MIB, 3 * MIB])
    seed(layout, image, source.host, "app", "v1", headers=_bearer(one))
    # One job, and both layers after the tokens of the first requests have ended.
    env = {**LOGIN, "OCISTREAM_SRC_USERNAME": USER, "OCISTREAM_SRC_PASSWORD": PASSWORD}
    env |= {"OCISTREAM_DEST_USERNAME": USER, "OCISTREAM_DEST_PASSWORD": PASSWORD}
    with started("pull", f"{source.host}/app:v1", env=env) as pulling:
        assert pulling.stdout is not None
        with started("push", f"{target.host}/app:v1", stdin=subprocess.PIPE, env=env) as pushing:
            assert pushing.stdin is not None
            # Once in the middle of the first layer, and once in the middle of the second.
            for part in (MIB, 6 * MIB):
                pushing.stdin.write(pulling.stdout.read(part))
                pushing.stdin.flush()
                one.wait_for_end()
                other.wait_for_end()
            _, errors = pushing.communicate(pulling.stdout.read())
            assert pushing.returncode == 0, errors
        assert pulling.wait() == 0
    assert target.tags("app") == {"v1": image["digest"]}
    assert len([request for request in other.requests if request.status == 200]) >= 2
    assert len([request for request in one.requests if request.status == 200]) >= 2


@quirk(13)
def test_a_pull_of_many_layers_gets_as_many_tokens_as_it_takes(
    start_registry: Start, start_token_server: StartTokens, layout: Layout
) -> None:
    tokens = start_token_server(users={USER: User(PASSWORD)}, lifetime=-58, expires_in=2)
    registry = start_registry(auth=tokens)
    image = layout.image([2 * MIB + number for number in range(4)])
    seed(layout, image, registry.host, "app", "v1", headers=_bearer(tokens))
    tokens.requests.clear()
    with started("pull", "--jobs", "1", f"{registry.host}/app:v1", env=LOGIN) as process:
        assert process.stdout is not None
        parts = [process.stdout.read(3 * MIB)]
        tokens.wait_for_end()
        parts.append(process.stdout.read(3 * MIB))
        tokens.wait_for_end()
        parts.append(process.stdout.read())
        assert process.wait() == 0
    files = files_in(b"".join(parts))
    assert all(f"blobs/sha256/{path.name}" in files for path in (layout.path / "blobs/sha256").iterdir())
    assert len(tokens.requests) >= 2
    assert {request.status for request in tokens.requests} == {200}


@quirk(13)
def test_who_loses_the_right_meanwhile_is_refused_and_leaves_nothing_visible(
    start_registry: Start, start_token_server: StartTokens, layout: Layout
) -> None:
    tokens = start_token_server(users={USER: User(PASSWORD)}, lifetime=-58, expires_in=2)
    registry = start_registry(auth=tokens)
    layout.image([3 * MIB, 3 * MIB], name="v1")
    archive = tar_of(small_first(layout))
    with started("push", f"{registry.host}/app:v1", stdin=subprocess.PIPE, env=LOGIN) as process:
        assert process.stdin is not None
        process.stdin.write(archive[: len(archive) // 4])
        process.stdin.flush()
        tokens.wait_for_end()
        tokens.users[USER] = User("another")
        _, errors = process.communicate(archive[len(archive) // 4 :])
    assert process.returncode == 3, errors
    assert PASSWORD not in errors.decode()
    assert registry.tags("app") == {}
    assert registry.manifests("app") == set()


@quirk(13)
def test_a_push_of_more_than_a_minute_outlives_tokens_of_a_minute(long_push: concurrent.futures.Future[Lasted]) -> None:
    push = long_push.result()
    assert push.code == 0, push.errors
    assert list(push.tags) == ["v1"]
    # Renewed before the end, so that nothing that has a body is ever refused.
    assert push.granted >= 2
    assert [request for request in push.refused if request.split()[0] in {"PATCH", "PUT"}] == []


def _bearer(tokens: TokenServer) -> dict[str, str]:
    access = [{"type": "repository", "name": "app", "actions": ["pull", "push"]}]
    return {"Authorization": f"Bearer {tokens.token('', access)}"}
