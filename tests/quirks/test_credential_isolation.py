"""A credential for one host never reaches another host, and is never printed.

The other host receives its requests through a `Tap`, so that the tests can check every byte.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.certificates import Certificate
from tests.faulty_auth import Bearer
from tests.faulty_registry import Fault, Header, redirect, refusal
from tests.images import OCI_INDEX, Layout
from tests.quirks.command_runner import run
from tests.quirks.credential_forms import (
    PASSWORD,
    SCHEMES,
    USER,
    Scheme,
    assert_silent,
    assert_unprinted,
    filled,
    logged_in,
    secrets_of,
    was_shown,
)
from tests.quirks.fixture_types import MakeTap, Move, Start
from tests.quirks.quirky_registry import Quirk, QuirkyRegistry, Tap, changed, relocating
from tests.quirks.registry_quirks import BLOBS_ELSEWHERE
from tests.quirks.small_images import config_of, is_stored, layer_of, one_layer, spoil
from tests.quirks.statements import quirk
from tests.quirks.upload_quirks import UPLOADS_ELSEWHERE
from tests.registry_http import seed

schemes = pytest.mark.parametrize("scheme", SCHEMES, ids=str)
#: A name that resolves to a public address, as far as the client can see.
PUBLIC: Final = {"registry.test": "203.0.113.5"}


def everywhere(folder: Path, scheme: Scheme, *servers: QuirkyRegistry | Tap) -> dict[str, str]:
    """Return the environment of a user with a login for each of these servers: none may see another's."""
    taps = [server.memory["tap"] for server in servers if isinstance(server, QuirkyRegistry) and "tap" in server.memory]
    return logged_in(folder, scheme, *(server.host for server in (*servers, *taps)))


# Redirects ------------------------------------------------------------------------------------------------------


@quirk(20)
@schemes
def test_a_redirect_of_a_blob_to_another_host_carries_no_credential(
    scheme: Scheme, start: Start, mover: Move, layout: Layout, tmp_path: Path
) -> None:
    registry = start(BLOBS_ELSEWHERE, auth=scheme.auth())
    filled(layout, registry)
    mover(env=everywhere(tmp_path, scheme, registry)).pull(f"{registry.host}/app:v1")
    heard = registry.memory["tap"].heard
    assert heard.count(b"GET /v2/app/blobs/") == 3
    # The signed query is unchanged.
    assert heard.count(b"?sig=a%2Fb%3D+c~ HTTP/1.1") == 3
    was_shown(registry)
    assert_silent(heard, registry)


@quirk(20)
@schemes
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_of_a_manifest_to_another_host_carries_no_credential(
    status: int, scheme: Scheme, start: Start, mover: Move, tap: MakeTap, layout: Layout, tmp_path: Path
) -> None:
    registry, other = start(auth=scheme.auth()), start()
    image = filled(layout, registry)
    seed(layout, image, other.host, "app", "v1")
    second = tap(other.host)
    registry.faults.append(Fault(redirect(f"{second.url}/v2/app/manifests/v1", status), "GET", "/manifests/"))
    mover(env=everywhere(tmp_path, scheme, registry, second)).pull(f"{registry.host}/app:v1")
    assert second.heard.count(b"GET /v2/app/manifests/v1") == 1
    was_shown(registry)
    assert_silent(second.heard, registry)


@quirk(20)
@schemes
def test_a_redirect_target_that_requires_a_password_gets_none(
    scheme: Scheme, start: Start, mover: Move, tap: MakeTap, layout: Layout, tmp_path: Path
) -> None:
    registry, other = start(auth=scheme.auth()), start(auth=scheme.auth())
    image = filled(layout, registry)
    filled(layout, other)
    second = tap(other.host)
    digest = layer_of(layout, image)["digest"]
    registry.faults.append(Fault(redirect(f"{second.url}/v2/app/blobs/{digest}"), "GET", digest, times=None))
    used = mover(env=everywhere(tmp_path, scheme, registry, second))
    used.pull(f"{registry.host}/app:v1", code=7, says=f"{second.host} refused")
    assert b"GET /v2/app/blobs/" in second.heard
    assert_silent(second.heard, registry)


@quirk(20)
@schemes
def test_a_redirect_back_from_another_host_carries_no_credential(
    scheme: Scheme, start: Start, mover: Move, tap: MakeTap, layout: Layout, tmp_path: Path
) -> None:
    registry = start(auth=scheme.auth())
    image = filled(layout, registry)
    digest = layer_of(layout, image)["digest"]
    home = f"{registry.url}/v2/app/blobs/{digest}?back"
    second = tap(start(Quirk("leads back", (Fault(redirect(home), "GET", times=None),))).host)
    registry.faults.append(Fault(redirect(f"{second.url}/there"), "GET", rf"{digest}\Z", times=None))
    mover(env=everywhere(tmp_path, scheme, registry, second)).pull(f"{registry.host}/app:v1", code=3)
    assert_silent(second.heard, registry)
    # After a redirect to another host, even the registry itself gets no credential.
    assert {request.headers["Authorization"] for request in registry.asked("GET", r"\?back")} == {None}


# Locations ------------------------------------------------------------------------------------------------------


@quirk(5)
@schemes
def test_an_upload_on_another_host_carries_no_credential(
    scheme: Scheme, start: Start, mover: Move, layout: Layout, tmp_path: Path
) -> None:
    registry = start(UPLOADS_ELSEWHERE, auth=scheme.auth())
    image, archive = one_layer(layout)
    mover(env=everywhere(tmp_path, scheme, registry)).push(archive, f"{registry.host}/app:v1")
    assert registry.asked("PATCH|PUT", "uploads") == []
    assert is_stored(registry, layout, layer_of(layout, image), config_of(layout, image))
    heard = registry.memory["tap"].heard
    # The layer takes two requests, the small config takes one.
    assert [heard.count(method + b" /v2/app/blobs/uploads/") for method in (b"PATCH", b"PUT")] == [1, 2]
    was_shown(registry)
    assert_silent(heard, registry)


@quirk(5, 15)
@schemes
def test_deleting_a_failed_upload_on_another_host_carries_no_credential(
    scheme: Scheme, start: Start, mover: Move, layout: Layout, tmp_path: Path
) -> None:
    registry = start(UPLOADS_ELSEWHERE, auth=scheme.auth())
    image, archive = one_layer(layout)
    spoiled = spoil(archive, layout, layer_of(layout, image)["digest"])
    mover(env=everywhere(tmp_path, scheme, registry)).push(spoiled, f"{registry.host}/app:v1", code=5)
    heard = registry.memory["tap"].heard
    assert b"DELETE /v2/app/blobs/uploads/" in heard
    assert_silent(heard, registry)


@quirk(4)
@schemes
def test_another_port_of_the_same_host_is_another_host(
    scheme: Scheme, start: Start, mover: Move, tap: MakeTap, layout: Layout, tmp_path: Path
) -> None:
    other = start()
    second = tap(other.host)
    registry = start(
        Quirk("another port", outward=relocating(lambda _, location: second.url + location)), auth=scheme.auth()
    )
    _, archive = one_layer(layout)
    mover(env=everywhere(tmp_path, scheme, registry, second)).push(archive, f"{registry.host}/app:v1", code=7)
    assert b"PATCH /v2/app/blobs/uploads/" in second.heard
    assert_silent(second.heard, registry)


# Realms ---------------------------------------------------------------------------------------------------------


@quirk(19)
@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=str)
def test_a_realm_on_another_host_gets_the_password_but_no_token(
    scheme: Scheme, start: Start, mover: Move, tap: MakeTap, layout: Layout, tmp_path: Path
) -> None:
    auth = scheme.auth()
    assert isinstance(auth, Bearer)
    # One state, two hosts: the second issues the tokens that the first requires.
    tokens = start(auth=auth)
    second = tap(tokens.host)
    auth.realm = f"{second.url}/token"
    registry = start(auth=auth)
    _, archive = one_layer(layout)
    mover(env=everywhere(tmp_path, scheme, registry)).push(archive, f"{registry.host}/app:v1")
    assert second.heard.count(b" /token") == len(auth.requests) > 0
    shown = {(request.headers["Authorization"] or "").partition(" ")[2] for request in registry.requests} - {""}
    assert shown
    assert not any(token.encode() in second.heard for token in shown)


@quirk(4, 19)
@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=str)
def test_an_http_realm_of_an_https_registry_gets_nothing(
    scheme: Scheme,
    start: Start,
    mover: Move,
    tap: MakeTap,
    layout: Layout,
    certificate: Certificate,
    tmp_path: Path,
) -> None:
    auth = scheme.auth()
    assert isinstance(auth, Bearer)
    second = tap(start(auth=auth).host)
    auth.realm = f"http://registry.test:{second.host.partition(':')[2]}/token"
    registry = start(auth=auth, tls=certificate)
    _, archive = one_layer(layout)
    host = f"registry.test:{registry.host.partition(':')[2]}"
    used = mover("--ca-cert", certificate.file, env=logged_in(tmp_path, scheme, host), names=PUBLIC)
    used.push(archive, f"{host}/app:v1", code=7, says="uses https, but points to http")
    assert second.connections == 0


@quirk(19)
@schemes
def test_a_public_registry_cannot_send_a_password_to_this_machine(
    scheme: Scheme, start: Start, mover: Move, tap: MakeTap, layout: Layout, tmp_path: Path
) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=())
    second = tap(start(auth=auth).host)
    auth.realm = f"{second.url}/token"
    registry = start(auth=auth)
    _, archive = one_layer(layout)
    host = f"registry.test:{registry.host.partition(':')[2]}"
    used = mover("--plain-http", env=logged_in(tmp_path, scheme, host), names=PUBLIC)
    used.push(archive, f"{host}/app:v1", code=7, says="an address inside")
    assert second.connections == 0


# Links ----------------------------------------------------------------------------------------------------------


@quirk(26)
@schemes
def test_a_link_of_tags_to_another_host_is_not_followed(
    scheme: Scheme, start: Start, tap: MakeTap, layout: Layout, tmp_path: Path
) -> None:
    other = start()
    second = tap(other.host)
    link = f'<{second.url}/v2/app/tags/list?last=v1>; rel="next"'
    registry = start(
        Quirk("a link that leads away", (Fault(Header("Link", link), "GET", "/tags/list", times=None),)),
        auth=scheme.auth(),
    )
    filled(layout, registry)
    result = run("inspect", f"{registry.host}/app", env=logged_in(tmp_path, scheme, registry.host))
    assert "v1" in result.lines(), result.err
    was_shown(registry)
    assert f"the list continues at {second.url}/v2/app/tags/list" in result.err
    assert second.connections == 0
    assert_unprinted(result, registry)


@quirk(31)
@schemes
def test_a_link_of_referrers_to_another_host_is_not_followed(
    scheme: Scheme, start: Start, tap: MakeTap, layout: Layout, tmp_path: Path
) -> None:
    other = start()
    second = tap(other.host)
    link = f'<{second.url}/v2/app/referrers/x>; rel="next"'

    def leads_away(handler: Any, answer: Any) -> Any:
        listed = "/referrers/" in handler.path and answer.headers.get("Content-Type") == OCI_INDEX
        return changed(answer, Link=link) if listed else answer

    registry = start(Quirk("a link that leads away", outward=leads_away), auth=scheme.auth())
    filled(layout, registry)
    env = logged_in(tmp_path, scheme, registry.host)
    inspected = run("inspect", f"{registry.host}/app:v1", env=env)
    assert inspected.code == 0, inspected.err
    assert registry.asked("GET", "/referrers/") != []
    copied = run("copy", f"{registry.host}/app:v1", f"oci:{tmp_path / 'out'}", env=env)
    for result in (inspected, copied):
        assert f"the list continues at {second.url}/v2/app/referrers/x, which is not followed" in result.err
    assert second.connections == 0


# Two registries -------------------------------------------------------------------------------------------------


@quirk(20)
@schemes
def test_a_copy_does_not_send_the_source_s_password_to_the_destination(
    scheme: Scheme, start: Start, tap: MakeTap, layout: Layout, tmp_path: Path
) -> None:
    registry, other = start(auth=scheme.auth()), start()
    second = tap(other.host)
    filled(layout, registry)
    env = logged_in(tmp_path, scheme, registry.host)
    result = run("copy", f"{registry.host}/app:v1", f"{second.host}/app:v1", env=env)
    assert result.code == 0, result.err
    was_shown(registry)
    assert b"PUT /v2/app/blobs/uploads/" in second.heard
    assert_silent(second.heard, registry)


# Output ---------------------------------------------------------------------------------------------------------


#: Failures that make the commands print messages.
FAILURES: Final[Mapping[str, tuple[Fault, ...]]] = {
    "nothing": (),
    "a refusal for good": (Fault(refusal(400, "DENIED"), "PUT|GET", "/manifests/v1", times=None),),
    "a redirect to nowhere": (Fault(redirect("http://127.0.0.1:9/?sig=a%2Fb"), "GET", "/blobs/", times=None),),
    "a server in trouble": (Fault(refusal(503), "HEAD|GET", "", times=1),),
}


@quirk(13)
@pytest.mark.parametrize(
    ("scheme", "failure"),
    [
        *((scheme, "nothing") for scheme in SCHEMES),
        *((SCHEMES[1], failure) for failure in FAILURES if failure != "nothing"),
    ],
    ids=str,
)
def test_neither_messages_nor_results_contain_a_secret(
    failure: str, scheme: Scheme, start: Start, layout: Layout, tmp_path: Path
) -> None:
    registry = start(BLOBS_ELSEWHERE, UPLOADS_ELSEWHERE, auth=scheme.auth())
    filled(layout, registry)
    registry.faults = [dataclasses.replace(fault) for fault in FAILURES[failure]]
    env = logged_in(tmp_path, scheme, registry.host)
    pulled, done = tmp_path / "pulled.tar", tmp_path / "result.json"
    options = ["-vv", "--retries", "1", "--progress", "json", "--result", str(done)]
    first = run("pull", f"{registry.host}/app:v1", "-o", pulled, *options, env=env)
    assert (first.code == 0) == (failure in {"nothing", "a server in trouble"}), first.err
    assert_unprinted(first, registry)
    _, archive = one_layer(layout)
    (tmp_path / "given.tar").write_bytes(archive)
    second = run("push", f"{registry.host}/app:v1", "-i", tmp_path / "given.tar", *options, env=env)
    assert_unprinted(second, registry)
    if done.exists():
        text = done.read_text()
        assert not any(secret in text for secret in secrets_of(registry))
        assert "sig=" not in text
    was_shown(registry)


@schemes
def test_a_refused_secret_is_not_printed(scheme: Scheme, start: Start, tmp_path: Path) -> None:
    registry = start(auth=Bearer({USER: "another"}, anonymous=(), oauth2=scheme.name != "Basic"))
    env = logged_in(tmp_path, scheme, registry.host)
    result = run("pull", f"{registry.host}/app:v1", "-o", tmp_path / "none.tar", "-vv", env=env)
    assert result.code == 3, result.err
    assert_unprinted(result, registry)


def test_the_check_for_secrets_detects_them(
    start: Start, mover: Move, tap: MakeTap, layout: Layout, tmp_path: Path
) -> None:
    """Check that a tap before the registry itself records the credential."""
    for scheme in SCHEMES:
        registry = start(auth=scheme.auth())
        second = tap(registry.host)
        _, archive = one_layer(layout)
        mover(env=logged_in(tmp_path, scheme, second.host)).push(archive, f"{second.host}/app:v1")
        with pytest.raises(AssertionError):
            assert_silent(second.heard, registry)
        assert any(secret.encode() in second.heard for secret in secrets_of(registry) - {USER})
