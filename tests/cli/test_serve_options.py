"""`ocistream serve` over an archive, with a password, TLS and an access log."""

from __future__ import annotations

import json
import os
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.archives import small_first, tar_of
from tests.certificates import make_certificate
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.serving import really_serving, serving, stop
from tests.images import Layout, digest_of, small_image
from tests.registry_http import basic, get
from tests.runner import ocistream

pytestmark = pytest.mark.usefixtures("interruptible")

MIB = 1 << 20
PASSWORD = "an-engine-of-1843"


@pytest.fixture
def archive(layout: Layout, tmp_path: Path) -> Path:
    """Return an archive of registry.example/app:1."""
    small_image(layout, name="registry.example/app:1")
    path = tmp_path / "app.tar"
    path.write_bytes(tar_of(small_first(layout)))
    return path


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("0.0.0.0:0", ["refusing to listen on 0.0.0.0 without a password", "add --username USER --password-file FILE"]),
        ("192.0.2.1:0", ["other machines could connect"]),
        ("foo:5000", ["cannot listen on foo: it is a host name, not an address", "write an IP address or localhost"]),
        ("127.0.0.1:99999", ["malformed address '127.0.0.1:99999': the port is not from 0 to 65535", "HOST:PORT"]),
        ("127.0.0.1:000000", ["the port is not from 0 to 65535"]),
        ("127.0.0.1", ["malformed address '127.0.0.1'\n", "HOST:PORT"]),
    ],
)
def test_a_refused_address_is_reported_with_its_correction(archive: Path, address: str, words: list[str]) -> None:
    assertions.failure(ocistream("serve", archive, "--listen", address), 2, *words)


def test_an_address_of_another_machine_is_reported_with_its_correction(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    login: list[str | Path] = ["-u", "ada", "--password-file", tmp_path / "password"]
    result = ocistream("serve", archive, "-q", "--listen=192.0.2.1:0", *login)
    assertions.failure(result, 7, "cannot listen on 192.0.2.1:0", "use an address of this machine, or 0.0.0.0 for all")


def test_a_new_layout_is_reported(tmp_path: Path) -> None:
    for notice in ("ocistream: created an empty layout in new\n", ""):
        with serving("new", cwd=tmp_path) as (process, _):
            assert stop(process) == f"{notice}ocistream: new has no images yet\nocistream: terminated\n"


def test_with_a_password_from_stdin_every_address_is_accepted(archive: Path) -> None:
    read, write = os.pipe()
    os.write(write, f"{PASSWORD}\n".encode())
    os.close(write)
    argv: list[str | Path] = [archive, "-u", "ada", "--password-stdin"]
    try:
        with serving(*argv, listen="0.0.0.0:0", stdin=read, env={"OCISTREAM_PASSWORD": "another"}) as (process, host):
            address = f"127.0.0.1:{host.rpartition(':')[2]}"
            assert get(address, "/v2/", headers=basic("ada", PASSWORD))[0] == 200
            assert get(address, "/v2/", headers=basic("ada", "another"))[0] == 401
            err = stop(process)
    finally:
        os.close(read)
    assert "no TLS (--tls-cert): others on the network can read the password" in err


def test_options_that_need_another_are_refused_without_it(archive: Path, tmp_path: Path) -> None:
    listen = "--listen=127.0.0.1:0"
    assertions.failure(ocistream("serve", archive, listen, "--username=ada"), 2, "--password-stdin")
    assertions.failure(ocistream("serve", archive, listen, "--password-stdin", stdin=b"x"), 2, "--username")
    assertions.failure(ocistream("serve", archive, listen, "-u", "a:b", "--password-stdin", stdin=b"x"), 2, "colon")
    assertions.failure(
        ocistream("serve", archive, listen, "-u", "ada", "--password-stdin", stdin=b""), 2, "no password"
    )
    certificate = make_certificate(tmp_path / "tls")
    assertions.failure(ocistream("serve", archive, listen, "--tls-key", certificate.key_file), 2, "--tls-cert")
    assertions.failure(ocistream("serve", archive, listen, "--tls-cert", certificate.file), 2, "--tls-key")
    assertions.failure(ocistream("serve", archive, listen, "--tls-cert", tmp_path / "missing"), 4, "missing")
    assertions.failure(ocistream("serve", archive, listen, "--access-log", tmp_path / "no/log"), 4, "access log")


def test_tls_uses_the_given_certificate(archive: Path, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "tls")
    with serving(archive, "--tls-cert", certificate.file, "--tls-key", certificate.key_file) as (_, host):
        pull: list[str | Path] = ["pull", f"{host}/app:1", "-o", tmp_path / "x.tar", "--retries=0"]
        assertions.failure(ocistream(*pull), 7, "certificate")
        succeed(*pull, "--ca-cert", certificate.file)


class TestAccessLog:
    def test_each_request_is_a_line_in_the_common_log_format(self, archive: Path, tmp_path: Path) -> None:
        log = tmp_path / "access.log"
        env = {"OCISTREAM_PASSWORD": PASSWORD}
        with serving(archive, "--username=ada", "--access-log", log, env=env) as (process, host):
            get(host, "/v2/")
            get(host, '/v2/app/tags/list?n=1&token=s3cr3t&last="', headers=basic("ada", PASSWORD))
            get(host, f"/v2/app/blobs/{digest_of(b'none')}", headers=basic("ada", PASSWORD))
            assert stop(process) == "ocistream: terminated\n"
        lines = log.read_text().splitlines()
        pattern = re.compile(
            r'127\.0\.0\.1 - (\S+) \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "(.*)" (\d{3}) (\d+|-)'
        )
        found = [match.groups() for line in lines if (match := pattern.fullmatch(line))]
        assert len(found) == len(lines)
        # A line is written after its answer was sent, so the order of the lines may differ.
        assert sorted((user, request, status) for user, request, status, _ in found) == [
            ("-", "GET /v2/ HTTP/1.1", "401"),
            ("ada", f"GET /v2/app/blobs/{digest_of(b'none')} HTTP/1.1", "404"),
            ("ada", "GET /v2/app/tags/list?n=1&token=...&last=%22 HTTP/1.1", "200"),
        ]
        assert PASSWORD not in log.read_text()

    def test_each_request_is_an_object_on_stderr_with_log_format_json(self, archive: Path) -> None:
        with serving(archive, "--access-log=-", "--log-format=json") as (process, host):
            get(host, "/v2/?x=y")
            entries = [entry for entry in map(json.loads, stop(process).splitlines()) if "method" in entry]
        assert len(entries) == 1
        assert entries[0] | {"time": "", "seconds": 0} == {
            "time": "",
            "client": "127.0.0.1",
            "user": None,
            "method": "GET",
            "target": "/v2/?x=...",
            "status": 200,
            "received": 0,
            "sent": 2,
            "seconds": 0,
        }

    def test_an_existing_log_is_appended_to(self, archive: Path, tmp_path: Path) -> None:
        log = tmp_path / "access.log"
        for _ in range(2):
            with serving(archive, "--access-log", log) as (_, host):
                get(host, "/v2/")
        assert len(log.read_text().splitlines()) == 2


def test_memory_does_not_grow_with_the_archive(layout: Layout, tmp_path: Path) -> None:
    image = layout.image([64 * MIB], name="registry.example/app:1")
    path = tmp_path / "app.tar"
    with tarfile.open(path, "w") as writer:
        for name in ("oci-layout", "index.json", "blobs"):
            writer.add(layout.path / name, name)
    layer = layout.read(image["digest"])["layers"][0]["digest"]
    # Coverage takes memory.
    without = dict.fromkeys(name for name in os.environ if name.startswith("COVERAGE_"))
    with really_serving(path, env=without) as (process, host):
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda _: get(host, f"/v2/app/blobs/{layer}")[0], range(4)))
        assert found == [200] * 4
        status = Path(f"/proc/{process.pid}/status")
        if not status.exists():
            pytest.skip("the peak memory of another process needs /proc")
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 48 * 1024, peak
