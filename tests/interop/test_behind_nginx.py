"""Push and pull with a docker-registry behind nginx: TLS, passwords and tokens, another path, blobs on another host."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

import pytest

from tests.archives import files_in, small_first, tar_of
from tests.certificates import Certificate
from tests.cli.proxy import tunnelling_to
from tests.images import Descriptor, Layout
from tests.peers import DockerRegistry, Nginx
from tests.registry_http import basic
from tests.runner import Result, ocistream
from tests.token_server import TokenServer, User

MIB: Final = 1 << 20
USER: Final = "ada"
PASSWORD: Final = "lovelace: the 1st"
LOGIN: Final = {"OCISTREAM_USERNAME": USER, "OCISTREAM_PASSWORD": PASSWORD}
#: The name of this machine for TLS: ocistream uses plain HTTP for names of loopback.
NAME: Final = "registry.test"

How = Literal["a file", "a pipe"]
Auth = Literal["open", "htpasswd", "tokens"]
StartRegistry = Callable[..., DockerRegistry]
StartNginx = Callable[..., Nginx]
#: Each kind of authorization, and a file and a pipe; tests/quirks has all combinations.
each_auth = pytest.mark.parametrize(
    ("auth", "how"), [("open", "a file"), ("htpasswd", "a pipe"), ("tokens", "a file"), ("tokens", "a pipe")]
)

#: The token server is behind the same nginx: a client of an HTTPS registry sends no password over HTTP.
TOKENS_HERE: Final = """
map $upstream_http_www_authenticate $challenge {
    default $upstream_http_www_authenticate;
    '~^Bearer realm="[^"]*"(?<rest>.*)$' 'Bearer realm="$scheme://$http_host/token"$rest';
}
"""


@dataclasses.dataclass(frozen=True)
class Behind:
    """A registry, and the configuration of an nginx in front of it."""

    registry: DockerRegistry
    tokens: TokenServer

    @property
    def server(self) -> str:
        return f"""
            location /token {{ proxy_pass {self.tokens.realm}; }}
            location / {{
                proxy_pass {self.registry.url};
                proxy_hide_header WWW-Authenticate;
                add_header WWW-Authenticate $challenge always;
            }}
        """


@pytest.fixture
def behind(start_registry: StartRegistry, start_token_server: Callable[..., TokenServer]) -> Callable[..., Behind]:
    """Return a function that starts a registry with one kind of `Auth`."""

    def start(auth: Auth, **options: object) -> Behind:
        tokens = start_token_server(users={USER: User(PASSWORD)})
        kinds: Mapping[Auth, object] = {"open": None, "htpasswd": {USER: PASSWORD}, "tokens": tokens}
        return Behind(start_registry(auth=kinds[auth], **options), tokens)

    return start


@dataclasses.dataclass(frozen=True)
class Runs:
    """Runs `push` and `pull` of team/app:v1 on a host."""

    host: str
    how: How
    folder: Path
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def image(self) -> str:
        return f"{self.host}/team/app:v1"

    def push(self, layout: Layout, *options: str) -> Result:
        path = self.folder / "given.tar"
        path.write_bytes(tar_of(small_first(layout)))
        given = ["-i", str(path)] if self.how == "a file" else []
        stdin = None if given else path
        return ocistream("push", self.image, *given, *self.options, *options, stdin=stdin, env={**LOGIN, **self.env})

    def pull(self, *options: str) -> tuple[Result, dict[str, bytes]]:
        path = self.folder / "pulled.tar"
        given = ["-o", str(path)] if self.how == "a file" else []
        stdout = None if given else path
        env = {**LOGIN, **self.env}
        result = ocistream("pull", self.image, *given, *self.options, *options, stdout=stdout, env=env)
        return result, files_in(path.read_bytes()) if result.code == 0 else {}

    def there_and_back(self, layout: Layout, image: Descriptor) -> None:
        """Push, pull, and assert that every blob is unchanged."""
        pushed = self.push(layout)
        assert pushed.code == 0, pushed.err
        assert pushed.lines() == [f"{self.image}@{image['digest']}"]
        pulled, files = self.pull()
        assert pulled.code == 0, pulled.err
        blobs = (layout.path / "blobs/sha256").iterdir()
        assert all(files[f"blobs/sha256/{path.name}"] == path.read_bytes() for path in blobs)


@contextlib.contextmanager
def by_name(front: Nginx, certificate: Certificate) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name of an nginx with TLS, and an environment in which the name reaches it and its CA is trusted."""
    with tunnelling_to(front.host) as proxy:
        host = f"{NAME}:{front.host.rpartition(':')[2]}"
        yield host, {"HTTPS_PROXY": proxy.url, "SSL_CERT_FILE": str(certificate.file)}


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image with a layer of several chunks."""
    return layout.image([3 * MIB, 5000], name="app")


@each_auth
def test_tls_with_a_private_certificate_authority(
    auth: Auth,
    how: How,
    behind: Callable[..., Behind],
    start_nginx: StartNginx,
    certificate: Certificate,
    layout: Layout,
    image: Descriptor,
    tmp_path: Path,
) -> None:
    back = behind(auth)
    front = start_nginx(back.server, http=TOKENS_HERE, tls=certificate)
    with by_name(front, certificate) as (host, env):
        Runs(host, how, tmp_path, env).there_and_back(layout, image)
    assert back.registry.tags("team/app") == {"v1": image["digest"]}
    assert back.registry.uploads("team/app") == []
    front.stop()
    refused = [entry for entry in front.entries() if entry["status"] == "401"]
    # Each of the two runs gets challenges at its start only.
    assert len(refused) <= (0 if auth == "open" else 2 * 4)
    assert not any(entry["method"] in {"PATCH", "PUT"} for entry in refused)
    tokens = [entry for entry in front.entries() if entry["target"].startswith("/token")]
    assert bool(tokens) == (auth == "tokens")


def test_the_registry_returns_locations_under_another_path(
    behind: Callable[..., Behind], start_nginx: StartNginx, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    # All locations of the registry have its prefix, which the client does not know.
    back = behind("tokens", settings={"REGISTRY_HTTP_PREFIX": "/prefix/"})
    server = back.server.replace(
        "location / {", f"location /v2/ {{ proxy_pass {back.registry.url}/prefix/v2/; }}\nlocation /prefix/ {{"
    )
    front = start_nginx(server, http=TOKENS_HERE)
    Runs(front.host, "a pipe", tmp_path).there_and_back(layout, image)
    assert back.registry.tags("team/app") == {"v1": image["digest"]}
    front.stop()
    sent = [entry for entry in front.entries() if entry["method"] in {"PATCH", "PUT"} and "/blobs/" in entry["target"]]
    # The config and a layer are small; the other layer takes two requests.
    assert sorted(entry["method"] for entry in sent) == ["PATCH", "PUT", "PUT", "PUT"]
    assert all(entry["target"].startswith("/prefix/v2/team/app/blobs/uploads/") for entry in sent)


def test_blobs_come_from_a_second_server_that_refuses_authorization(
    behind: Callable[..., Behind], start_nginx: StartNginx, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    back = behind("tokens")
    stored = back.registry.root / "docker/registry/v2/blobs/sha256"
    second = start_nginx(
        f"""
        if ($http_authorization) {{ return 400 "Only one auth mechanism allowed"; }}
        if ($args !~ ^X-Amz-Signature=a%2Fb%3D$) {{ return 403; }}
        location ~ "^/bucket/sha256:(..)(.+)$" {{ alias {stored}/$1/$1$2/data; }}
        """
    )
    # As a registry with S3 storage does: it redirects an authorized reader, with a signature in the query.
    away = f"""
        location ~ "^/v2/.+/blobs/(sha256:.+)$" {{
            error_page 418 = @away;
            set $digest $1;
            if ($request_method = GET) {{ return 418; }}
            proxy_pass {back.registry.url};
        }}
        location @away {{ return 307 {second.url}/bucket/$digest?X-Amz-Signature=a%2Fb%3D; }}
    """
    front = start_nginx(away + back.server, http=TOKENS_HERE)
    Runs(front.host, "a pipe", tmp_path).there_and_back(layout, image)
    front.stop()
    second.stop()
    fetched = second.entries()
    assert {(entry["method"], entry["status"], entry["authorization"]) for entry in fetched} == {("GET", "200", "")}
    assert len(fetched) == 3
    assert not any(
        secret in second.log.read_text() for secret in (PASSWORD, basic(USER, PASSWORD)["Authorization"][6:])
    )
    assert any(entry["authorization"] for entry in front.entries())
