"""A name that has one address when it is looked at, and an inward one when it is connected to (DNS rebinding)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import pytest

from ocistream.distribution import Repository
from ocistream.errors import FinalNetworkError
from ocistream.interfaces import Blob
from ocistream.stream import verified
from ocistream.upload import Uploader
from tests.faults import Fault, Header, redirect
from tests.faulty_auth import Bearer
from tests.network import CountingRegistry, QuickTransport, blob_of, names, read_blob

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]

OUTSIDE: Final = "203.0.113.5"
#: What a resolver says of the other host: first to who looks, then to who connects.
REBOUND: Final = ("203.0.113.6", "127.0.0.1")
CONTENT: Final = b"a blob that must not be asked of this machine"
REFUSED: Final = r"storage\.test is outside by its name, and now leads to an address inside"


def under(name: str, registry: CountingRegistry) -> str:
    """Return `NAME.test` with the port of a registry."""
    return f"{name}.test:{registry.host.rpartition(':')[2]}"


@pytest.fixture
def inner(faulty: Faulty) -> CountingRegistry:
    """Return what listens on this machine, and is not to be asked for anything."""
    return faulty()


def pull(transport: QuickTransport, host: str) -> bytes:
    blob = blob_of(CONTENT)
    return read_blob(Repository(transport, host, "app").blob_chunks(blob), blob)


def push(transport: QuickTransport, host: str) -> None:
    blob = blob_of(CONTENT)
    opened = Blob(blob, lambda: verified([CONTENT], blob))
    Uploader(Repository(transport, host, "app", writes=True)).upload(opened)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254", "0.0.0.0"])  # noqa: S104
@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_to_a_name_that_becomes_an_inward_address_is_not_followed(
    faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch, inner: CountingRegistry, address: str, status: int
) -> None:
    target = redirect(f"http://{under('storage', inner)}/blob", status)
    registry = faulty(Fault(target, path="blobs", times=None))
    with (
        names(monkeypatch, registry=OUTSIDE, storage=("203.0.113.6", address)),
        pytest.raises(FinalNetworkError, match=REFUSED),
    ):
        pull(quick(plain_http=True), under("registry", registry))
    assert inner.requests == []
    assert len(registry.requests) == 1


def test_nor_is_a_realm(faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch, inner: CountingRegistry) -> None:
    registry = faulty(auth=Bearer(realm=f"http://{under('storage', inner)}/token"))
    with (
        names(monkeypatch, registry=OUTSIDE, storage=REBOUND),
        pytest.raises(FinalNetworkError, match=REFUSED),
    ):
        pull(quick(plain_http=True), under("registry", registry))
    assert inner.requests == []


def test_nor_is_the_location_of_an_upload(
    faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch, inner: CountingRegistry
) -> None:
    registry = faulty(Fault(Header("Location", f"http://{under('storage', inner)}/upload"), "POST", times=None))
    with (
        names(monkeypatch, registry=OUTSIDE, storage=REBOUND),
        pytest.raises(FinalNetworkError, match=REFUSED),
    ):
        push(quick(plain_http=True), under("registry", registry))
    assert inner.requests == []


def test_nor_is_the_second_of_two_redirects(
    faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch, inner: CountingRegistry
) -> None:
    cdn = faulty(Fault(redirect(f"http://{under('storage', inner)}/blob"), times=None))
    # The registry itself is on this machine, and might lead here; the host in between might not.
    registry = faulty(Fault(redirect(f"http://{under('cdn', cdn)}/blob"), path="blobs", times=None))
    with names(monkeypatch, cdn=OUTSIDE, storage=REBOUND), pytest.raises(FinalNetworkError, match=REFUSED):
        pull(quick(), registry.host)
    assert inner.requests == []


def test_a_connection_that_was_made_for_the_host_itself_is_not_used_for_what_leads_there(
    faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch, inner: CountingRegistry
) -> None:
    inner.hold(CONTENT)
    registry = faulty(Fault(redirect(f"http://{under('storage', inner)}/blob"), path="blobs", times=None))
    transport = quick(plain_http=True)
    with names(monkeypatch, registry=OUTSIDE, storage=("127.0.0.1", "203.0.113.6", "127.0.0.1")):
        # The user names it, and so it may be here; its connection is kept.
        assert pull(transport, under("storage", inner)) == CONTENT
        with pytest.raises(FinalNetworkError, match=REFUSED):
            pull(transport, under("registry", registry))
    assert len(inner.requests) == 1


@pytest.mark.parametrize("later", [("127.0.0.1",), ("127.0.0.1", OUTSIDE)])
def test_what_a_registry_is_when_it_leads_elsewhere_is_told_by_where_it_answered_from(
    faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch, inner: CountingRegistry, later: Sequence[str]
) -> None:
    # Its name leads inward by the time at which it is looked at: then it might lead to its neighbours.
    registry = faulty(Fault(redirect(f"{inner.url}/blob"), path="blobs", times=None))
    with (
        names(monkeypatch, registry=(OUTSIDE, *later)),
        pytest.raises(FinalNetworkError, match=r"registry\.test leads to 127\.0\.0\.1, an address inside"),
    ):
        pull(quick(plain_http=True), under("registry", registry))
    assert inner.requests == []


def test_a_registry_that_was_outside_is_not_looked_for_in_here(
    faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = faulty(Fault(Header("Connection", "close"), times=None))
    registry.hold(CONTENT)
    transport = quick(plain_http=True)
    with names(monkeypatch, registry=(OUTSIDE, "127.0.0.1")):
        assert pull(transport, under("registry", registry)) == CONTENT
        with pytest.raises(FinalNetworkError, match=r"registry\.test is outside by its name"):
            pull(transport, under("registry", registry))
    assert len(registry.requests) == 1


def test_what_stays_outside_is_followed(faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = faulty()
    storage.hold(CONTENT)
    blob = f"/v2/app/blobs/{blob_of(CONTENT).digest}"
    registry = faulty(Fault(redirect(f"http://{under('storage', storage)}{blob}"), path="blobs", times=None))
    with names(monkeypatch, registry=OUTSIDE, storage=("203.0.113.6", "10.1.2.3")):
        assert pull(quick(plain_http=True), under("registry", registry)) == CONTENT


def test_a_proxy_on_this_machine_is_no_inward_address(
    faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The proxy answers itself, whatever host it is asked for.
    storage = faulty()
    storage.hold(CONTENT)
    blob = f"/v2/app/blobs/{blob_of(CONTENT).digest}"
    registry = faulty(Fault(redirect(f"http://{under('storage', storage)}{blob}"), path="blobs", times=None))
    no_proxy = "registry.test"
    with names(monkeypatch, registry=OUTSIDE, storage="203.0.113.6"):
        transport = quick(plain_http=True, proxies={"http": storage.url, "no_proxy": no_proxy})
        assert pull(transport, under("registry", registry)) == CONTENT
    assert [request.target.startswith("http://storage.test") for request in storage.requests] == [True]
