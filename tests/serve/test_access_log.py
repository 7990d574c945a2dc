"""The access log of `serve`: it has no secrets and no control characters, and a full disk stops no client."""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path
from typing import Final

import pytest

from tests.raw_http import connect, converse
from tests.registry_http import basic, get
from tests.runner import started

pytestmark = pytest.mark.usefixtures("interruptible")

_MOUNT: Final = "/v2/a/blobs/uploads/?digest=sha256:ab&mount=x&from=b/c"
#: Targets of requests, and the requests in the log.
SHOWN: Final = {
    "/v2/": "GET /v2/",
    _MOUNT: f"GET {_MOUNT}",
    "/v2/?token=s3cr3t&n=1&X-Amz-Signature=abc": "GET /v2/?token=...&n=1&X-Amz-Signature=...",
    "http://ada:s3cr3t@host/v2/": "GET http://host/v2/",
    # Control characters: the request is refused before its target is parsed.
    "/v2/\x1b[2J\x07": "- -",
    "/v2/?last=%1b%0a": "GET /v2/?last=%1B%0A",
    '/v2/"\\': 'GET /v2/\\"\\\\',
}


def test_targets_are_logged_without_secrets_and_control_characters(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    argv = ["serve", str(tmp_path / "layout"), "--listen=127.0.0.1:0", "--username=ada lovelace", f"--access-log={log}"]
    with started(*argv, env={"OCISTREAM_PASSWORD": "engine"}) as process:
        assert process.stdout
        host = process.stdout.readline().decode().strip()
        for target in SHOWN:
            converse(host, f"GET {target} HTTP/1.1\r\nHost: host\r\nConnection: close\r\n\r\n".encode())
        get(host, "/v2/", headers=basic("ada lovelace", "engine"))
        authorization = basic("ada lovelace", "engine")["Authorization"]
        with connect(host) as connection:
            head = f"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n"
            connection.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 9\r\n\r\n".encode())
            # A reset, so that no client receives the answer.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        process.terminate()
        process.communicate(timeout=60)
    text = log.read_text()
    lines = text.splitlines()
    assert "s3cr3t" not in text
    assert text.replace("\n", "").isprintable()
    # A line is written after the answer, so two lines may be in reverse order.
    anonymous = [line for line in lines if line.startswith("127.0.0.1 - - [")]
    assert sorted(re.findall('"(.*) HTTP/1.1" ', "\n".join(anonymous))) == sorted(SHOWN.values())
    (authorized,) = [line for line in lines if line.startswith("127.0.0.1 - ada%20lovelace [") and "GET" in line]
    assert authorized.endswith('] "GET /v2/ HTTP/1.1" 200 2')


def test_a_log_that_cannot_be_written_is_reported_once_and_every_client_is_served(tmp_path: Path) -> None:
    # A link: a bug must not replace the device.
    log = tmp_path / "full"
    log.symlink_to("/dev/full")
    with started("serve", tmp_path / "layout", "--listen=127.0.0.1:0", "--access-log", log) as process:
        assert process.stdout
        host = process.stdout.readline().decode().strip()
        assert [get(host, "/v2/")[0] for _ in range(3)] == [200] * 3
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert [line for line in err.decode().splitlines() if "access log" in line] != []
    assert err.count(b"access log") == 1
