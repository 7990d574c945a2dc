"""Configuration files of users: config.toml, sync files, registries.conf, and folders of certificates."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from unittest import mock

from ocistream.config.certs_d import read_certs_directory, read_registry_certs
from ocistream.config.config_toml import parse_host_rules, read_configuration
from ocistream.config.registries_conf import load_namespaces
from ocistream.errors import AuthenticationError, OcistreamError
from ocistream.oci.reference import parse_reference
from ocistream.registry.configuration import RegistryRules
from ocistream.sync.file import read_sync_file
from ocistream.sync.plan import EntryCopies, drop_duplicates
from tests.fuzz.engine import Check, Target

_OURS: Final = b"""
[registry."docker.io"]
mirrors = ["mirror.example.com:5000/hub", { location = "cache.example.com", pull = "digest-only", insecure = true }]

[registry."registry.local:5000"]
ca-cert = "ca.pem"
client-cert = "ca.pem"
client-key = "ca.pem"
requests-per-second = 5
insecure = true
plain-http = false
url = "https://gateway.example.com/registry"
upload = "chunk=4MiB"
"""
_THEIRS: Final = b"""
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "*.example.com"
blocked = true
[[registry]]
prefix = "docker.io/library"
location = "mirror.local:5000/hub"
mirror-by-digest-only = true
[[registry.mirror]]
location = "cache.local/hub"
insecure = true
[[registry]]
location = "registry.local"
insecure = true
[[registry.mirror]]
location = "cache.local"
pull-from-mirror = "tag-only"
"""
_OLDER: Final = b"""
[registries.search]
registries = ["docker.io"]
[registries.insecure]
registries = ["localhost:5000"]
[registries.block]
registries = ["bad.example"]
"""
_SYNC: Final = b"""
[defaults]
platforms = ["linux/amd64", "linux/arm64/v8"]
referrers = false
[credentials.prod]
username = "robot"
password-env = "PROD"
[credentials.file]
authfile = "auth.json"
[registry."registry.local:5000"]
plain-http = true
insecure = false
ca-cert = "auth.json"
credentials = "prod"
[registry."example.com"]
username = "robot"
password-file = "auth.json"
[[sync]]
from = "docker.io/library/nginx"
to = [{ location = "registry.local:5000/a", credentials = "prod" }, "oci:images"]
tags = { versions = ">=1.4, <2-rc.1", latest = 3, suffix = "-alpine" }
[[sync]]
from = "oci:images:v1"
to = "oci-archive:app.tar"
platforms = "all"
[[sync]]
from = { location = "registry.local/x", credentials = "file" }
to = "example.com/y"
tags = ["1.*", "!*-rc*"]
[[sync]]
from = "registry.local/z"
to = "example.com/z"
tags = { regex = "v[0-9]+" }
"""
_TAGS: Final = ("1.4", "v1.5-rc.1", "1.9-alpine", "latest", f"sha256-{'a' * 64}.sig", "v3")
_TOKENS: Final = (
    b"[", b"]", b"[[", b"]]", b"{", b"}", b"=", b'"', b"'", b'"""', b".", b"#", b"\n", b"true", b"inf", b"-nan",
    b"1_000", b"0xff", b"1979-05-27T07:32:00Z", b"9999-99-99", b"99:99:99", b"\\uD800", b"\\U00110000",
    b"mirrors = ", b"registry.", b"[" * 2000, b"a." * 600, b"location = ", b"prefix = ", b"9" * 5000,
    b"0b" + b"1" * 20000, b"password = ",
)  # fmt: skip
_IMAGES: Final = ("docker.io/library/nginx:1", "registry.local:5000/a:1", "a.example.com/x:1", "registry.local/x:1")


def _used(places: RegistryRules) -> None:
    for name in _IMAGES:
        image = parse_reference(name)
        with contextlib.suppress(AuthenticationError):
            for place in places.find_pull_sources(image):
                parse_reference(f"{place}:1")
            places.check_push(image)
        places.settings(image.registry, image.repository)


@contextlib.contextmanager
def _ours(folder: Path) -> Iterator[Check]:
    path = folder / "config.toml"
    (folder / "ca.pem").write_bytes(b"")

    def check(data: bytes) -> None:
        path.write_bytes(data)
        table = read_configuration(path, folder)
        _used(RegistryRules({} if table is None else parse_host_rules(table)))

    yield check


@contextlib.contextmanager
def _sync(folder: Path) -> Iterator[Check]:
    path = folder / "sync.toml"
    (folder / "auth.json").write_bytes(b"{}")

    def check(data: bytes) -> None:
        path.write_bytes(data)
        plan = read_sync_file(path, folder)
        _used(RegistryRules(plan.registries))
        found = [EntryCopies(entry, _TAGS) for entry in plan.entries]
        places = [target.name for copy in drop_duplicates(found) for target in copy.destinations]
        assert len(places) == len(set(places)), "two images for one destination"

    # sync matches regular expressions in another process, which no target may start.
    with mock.patch("ocistream.sync.tag_regex._match", lambda _pattern, tags: [*tags]):
        yield check


@contextlib.contextmanager
def _theirs(folder: Path) -> Iterator[Check]:
    path = folder / "registries.conf"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        environment = {"CONTAINERS_REGISTRIES_CONF": str(path)}
        _used(RegistryRules({}, load_namespaces(environment, folder, system=folder / "none")))

    yield check


@contextlib.contextmanager
def _certificates(folder: Path) -> Iterator[Check]:
    """Check a folder of certificates: the first line is a registry's name, the others are file names."""
    made = folder / "certs.d"

    def check(data: bytes) -> None:
        registry, *names = data.decode(errors="surrogateescape").split("\n")
        shutil.rmtree(made, ignore_errors=True)
        inside = made / "example.com"
        inside.mkdir(parents=True)
        for file in names:
            with contextlib.suppress(OSError, ValueError):
                if "/" not in file:
                    (inside / file).write_bytes(b"")
        first: OcistreamError | None = None
        for name in (None, registry):
            try:
                found = read_certs_directory(inside) if name is None else read_registry_certs(name, (made,))
            except OcistreamError as error:
                first = first or error
                continue
            for path in found.ca_files:
                assert Path(path).resolve().is_relative_to(made.resolve()), "a certificate from elsewhere"
        if first is not None:
            raise first

    yield check


def _certificate_seeds() -> Sequence[bytes]:
    return [
        b"example.com\nca.crt\nclient.cert\nclient.key",
        b"example.com:5000\na.key",
        b"..\nx.crt",
        b"\n.cert\n.key\n.crt",
    ]


TARGETS: Final = (
    Target("config-toml", _ours, lambda: [_OURS, b""], frozenset({2, 9}), tokens=_TOKENS, share=2700),
    Target("sync-toml", _sync, lambda: [_SYNC], frozenset({2, 4}), tokens=_TOKENS, share=1500),
    Target("registries-conf", _theirs, lambda: [_THEIRS, _OLDER], frozenset({2}), tokens=_TOKENS, share=2700),
    Target(
        "certs-d",
        _certificates,
        _certificate_seeds,
        frozenset({2, 4, 9}),
        tokens=(b"\n", b".crt", b".key", b"/"),
        share=900,
    ),
)
