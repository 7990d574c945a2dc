"""What the command line says of TLS is for the registry that it names, and not for where that is read from instead."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from ocistream.errors import NetworkError, NotFoundError
from ocistream.http.client import HttpSettings
from ocistream.http.settings import RetryPolicy, TlsSettings
from ocistream.oci.reference import parse_reference
from ocistream.registry.configuration import PullSource
from ocistream.registry.mirrors import shorten_timeouts
from ocistream.registry.opener import RepositoryOpener
from ocistream.registry.referrers import ReferrerList
from tests.certificates import Certificate, make_certificate
from tests.http_doubles import CountingRegistry, QuickTransport

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]
DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("authority"), "an authority")


@pytest.fixture
def client(authority: Certificate, tmp_path: Path) -> Certificate:
    return authority.issue(tmp_path / "client", common_name="me")


@pytest.fixture
def curious(faulty: Faulty, authority: Certificate, tmp_path: Path) -> CountingRegistry:
    """Return a registry that asks whoever comes for a certificate, and notes what it gets."""
    return faulty(tls=authority.issue(tmp_path / "server"), client_authority=authority, asks_only=True)


def shown(authority: Certificate, client: Certificate) -> TlsSettings:
    return TlsSettings((str(authority.file),), ((str(client.file), str(client.key_file)),))


def certificates(registry: CountingRegistry) -> set[bytes | None]:
    return {request.certificate for request in registry.requests}


@pytest.mark.parametrize("hurried", [False, True], ids=["first", "after a mirror"])
@pytest.mark.parametrize("location", [False, True], ids=["as named", "another location"])
def test_another_location_is_not_shown_the_command_lines_certificate(
    location: bool,
    hurried: bool,
    curious: CountingRegistry,
    faulty: Faulty,
    quick: Quick,
    authority: Certificate,
    client: Certificate,
) -> None:
    mirrors = [PullSource(faulty().host, "hub/app", is_mirror=True)] if hurried else []
    reference = parse_reference("elsewhere.example/app:1" if location else f"{curious.host.upper()}/app:1")
    transport, impatient = (quick(tls=shown(authority, client)) for _ in range(2))
    reading = RepositoryOpener(transport, lambda: impatient, lambda _: [*mirrors, PullSource(curious.host, "team/app")])
    assert reading.open_repository(reference).list_referrers(DIGEST) == ReferrerList(())
    with pytest.raises(NotFoundError):
        reading.list_tags(reference)
    assert certificates(curious) == {None if location else base64.b64decode(client.x5c)}


def test_another_location_is_checked_although_what_was_named_is_not(curious: CountingRegistry, quick: Quick) -> None:
    transport = quick(tls=TlsSettings(insecure=True))
    reading = RepositoryOpener(transport, find_pull_sources=lambda _: [PullSource(curious.host, "team/app")])
    with pytest.raises(NetworkError, match="not trusted"):
        reading.open_repository(parse_reference("elsewhere.example/app:1")).resolve("1")
    assert curious.requests == []
    with pytest.raises(NotFoundError):
        reading.open_repository(parse_reference(f"{curious.host}/app:1")).resolve("1")


def test_mirrors_have_less_patience_than_the_registry() -> None:
    theirs = shorten_timeouts(HttpSettings(user_agent="x"))
    ours = HttpSettings()
    assert theirs.user_agent == "x"
    assert theirs.connect_timeout < ours.connect_timeout
    assert theirs.stall_timeout < ours.stall_timeout
    assert 1 < theirs.retry_policy.attempts < ours.retry_policy.attempts
    assert theirs.retry_policy.retry_after_limit < ours.retry_policy.retry_after_limit


def test_who_has_less_patience_already_keeps_it() -> None:
    settings = HttpSettings(
        connect_timeout=1, stall_timeout=1, retry_policy=RetryPolicy(attempts=1, retry_after_limit=1)
    )
    assert shorten_timeouts(settings) == settings
