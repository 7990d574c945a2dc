"""Transfers that take longer than their tokens are valid, with a real docker-registry and a token server.

distribution tolerates clocks that differ by 60 seconds, so a token with a lifetime of -58 expires after two seconds,
and one with a lifetime of 0 after a minute.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.archives import small_first, tar_of
from tests.images import Layout
from tests.interop.long_push import LOGIN, MIB, PASSWORD, USER, Lasted
from tests.peers import DockerRegistry
from tests.registry_http import seed
from tests.runner import started_fork
from tests.token_server import TokenServer, User

Start = Callable[..., DockerRegistry]
StartTokens = Callable[..., TokenServer]


def test_a_push_outlives_its_token(
    start_registry: Start, start_token_server: StartTokens, layout: Layout, tmp_path: Path
) -> None:
    # The server states a long lifetime, so that the client does not expect the token to expire.
    tokens = start_token_server(users={USER: User(PASSWORD)}, lifetime=-58, expires_in=300)
    registry = start_registry(auth=tokens)
    image = layout.image([3 * MIB, 3 * MIB], name="v1")
    archive = tmp_path / "app.tar"
    names = ["oci-layout", "index.json", "blobs"]
    subprocess.run(["tar", "--create", "--file", archive, "--directory", layout.path, *names], check=True)
    content = archive.read_bytes()
    half = len(content) // 4
    with started_fork("push", f"{registry.host}/app:v1", stdin=subprocess.PIPE, env=LOGIN) as process:
        assert process.stdin is not None
        # In the middle of the first layer: its upload starts with the first token and ends with another.
        process.stdin.write(content[:half])
        process.stdin.flush()
        tokens.wait_for_end()
        process.stdin.write(content[half:])
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert registry.tags("app") == {"v1": image["digest"]}
    # The next blob's POST may come before the PUT that ends this one; both may have the old token.
    uploads = [request for request in registry.requests() if request.startswith(("POST ", "PUT "))]
    assert 1 <= len([request for request in uploads if request.endswith(" 401")]) <= 2, uploads


def test_pull_and_push_outlive_the_tokens_of_both_registries(
    start_registry: Start, start_token_server: StartTokens, layout: Layout
) -> None:
    # These servers state the real lifetime, and the client renews tokens before they expire.
    users = {USER: User(PASSWORD)}
    one, other = (start_token_server(users=users, lifetime=-58, expires_in=2) for _ in range(2))
    source, target = start_registry(auth=one), start_registry(auth=other)
    image = layout.image([6 * MIB, 3 * MIB])
    # Seeding the image may take longer than a short token is valid.
    one.lifetime = 60
    seed(layout, image, source.host, "app", "v1", headers=_bearer(one))
    one.lifetime, one.last_end = -58, 0
    with started_fork("pull", f"{source.host}/app:v1", env=LOGIN) as pulling:
        with started_fork("push", f"{target.host}/app:v1", stdin=subprocess.PIPE, env=LOGIN) as pushing:
            assert pushing.stdin is not None
            # Wait in the middle of the first layer, and in the middle of the second.
            for part in (MIB, 6 * MIB):
                pushing.stdin.write(pulling.stdout.read(part))
                pushing.stdin.flush()
                one.wait_for_end()
                other.wait_for_end()
            pushing.stdin.write(pulling.stdout.read())
            _, errors = pushing.communicate()
            assert pushing.returncode == 0, errors
        assert pulling.wait() == 0
    assert target.tags("app") == {"v1": image["digest"]}
    assert len([request for request in other.requests if request.status == 200]) >= 2
    assert len([request for request in one.requests if request.status == 200]) >= 2


def test_a_user_whose_password_changes_during_a_push_is_refused_and_leaves_no_image(
    start_registry: Start, start_token_server: StartTokens, layout: Layout
) -> None:
    tokens = start_token_server(users={USER: User(PASSWORD)}, lifetime=-58, expires_in=2)
    registry = start_registry(auth=tokens)
    layout.image([3 * MIB, 3 * MIB], name="v1")
    archive = tar_of(small_first(layout))
    with started_fork("push", f"{registry.host}/app:v1", stdin=subprocess.PIPE, env=LOGIN) as process:
        assert process.stdin is not None
        process.stdin.write(archive[: len(archive) // 4])
        process.stdin.flush()
        tokens.wait_for_end()
        tokens.users[USER] = User("another")
        # The push may exit before it has read everything.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(archive[len(archive) // 4 :])
        _, errors = process.communicate()
    assert process.returncode == 3, errors
    assert PASSWORD not in errors.decode()
    assert registry.tags("app") == {}
    assert registry.manifests("app") == set()


def test_a_push_of_more_than_a_minute_outlives_tokens_of_a_minute(long_push: concurrent.futures.Future[Lasted]) -> None:
    push = long_push.result()
    assert push.code == 0, push.errors
    assert list(push.tags) == ["v1"]
    # The client renews tokens before they expire, so the registry refuses no request with a body.
    assert push.granted >= 2
    assert [request for request in push.refused if request.split()[0] in {"PATCH", "PUT"}] == []


def _bearer(tokens: TokenServer) -> dict[str, str]:
    access = [{"type": "repository", "name": "app", "actions": ["pull", "push"]}]
    return {"Authorization": f"Bearer {tokens.token('', access)}"}
