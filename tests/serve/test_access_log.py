"""The access log of `serve`: what is shown of a request, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocistream.cli.access_log import AccessLog, plain_target
from ocistream.serve import AccessEntry


def entry(target: str, **fields: object) -> AccessEntry:
    return AccessEntry(
        **{  # type: ignore[arg-type]
            "client": "::1",
            "method": "GET",
            "target": target,
            "status": 200,
            "received": 0,
            "sent": 0,
            "seconds": 0.25,
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/v2/", "/v2/"),
        (
            "/v2/a/blobs/uploads/?digest=sha256:ab&mount=x&from=b/c",
            "/v2/a/blobs/uploads/?digest=sha256:ab&mount=x&from=b/c",
        ),
        ("/v2/?token=s3cr3t&n=1&X-Amz-Signature=abc", "/v2/?token=...&n=1&X-Amz-Signature=..."),
        ("http://ada:s3cr3t@host/v2/", "http://host/v2/"),
        ("/v2/\x1b[2J\x07", "/v2/??"),
        ("/v2/?last=%1b%0a", "/v2/?last=%1B%0A"),
    ],
)
def test_nothing_secret_and_nothing_that_a_terminal_obeys_is_shown(target: str, shown: str) -> None:
    if "\x1b" in target:
        assert not set("\x1b\x07") & set(plain_target(target))
    else:
        assert plain_target(target) == shown


def test_a_quote_does_not_end_the_request(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log", as_json=False, tell=pytest.fail)
    log.write(entry('/v2/"\\ HTTP/1.1" 200 5', user="ada lovelace", sent=7))
    log.close()
    line = (tmp_path / "log").read_text()
    assert line.startswith("::1 - ada%20lovelace [")
    assert line.endswith('] "GET /v2/\\"\\\\ HTTP/1.1\\" 200 5 HTTP/1.1" 200 7\n')


def test_what_got_no_answer_has_a_dash(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log", as_json=False, tell=pytest.fail)
    log.write(entry("/v2/", status=0))
    log.close()
    assert (tmp_path / "log").read_text().endswith('"GET /v2/ HTTP/1.1" - -\n')


def test_a_log_that_cannot_be_written_is_said_once_and_nobody_is_refused_for_it() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no disk that is always full")
    told: list[str] = []
    log = AccessLog(Path("/dev/full"), as_json=True, tell=told.append)
    log.write(entry("/v2/"))
    log.write(entry("/v2/"))
    log.close()
    assert len(told) == 1
    assert "access log" in told[0]
