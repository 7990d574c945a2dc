"""Which options hold for a side of `copy`, and what hints call them."""

from __future__ import annotations

from typing import Any

import pytest

from ocistream.cli.registry_options import (
    RegistryOptions,
    build_hint_translator,
    build_sync_hint_translator,
)
from ocistream.errors import UsageError

NONE = RegistryOptions()
CERTIFICATE = "a client certificate: --client-cert and --client-key"
PLAIN = "omit --plain-http, or correct the port"


def of(side: str, **given: Any) -> dict[str, Any]:
    """Return what a side's options come to, less what is not set."""
    both = {name: value for name, value in given.items() if not name.startswith(("src_", "dest_"))}
    own = {name.removeprefix(f"{side}_"): value for name, value in given.items() if name.startswith(f"{side}_")}
    found = RegistryOptions(**both).for_side(side, RegistryOptions(**own))
    names = ("plain_http", "insecure", "ca_cert", "client_cert", "client_key")
    return {name: getattr(found, name) for name in names if getattr(found, name)}


def test_an_option_without_a_side_is_for_both() -> None:
    given = {"plain_http": True, "insecure": True, "ca_cert": "x", "client_cert": "c", "client_key": "k"}
    for side in ("src", "dest"):
        assert of(side, **given) == given


def test_the_option_of_a_side_comes_first_and_is_for_no_other() -> None:
    given = {"ca_cert": "both", "src_ca_cert": "own", "src_plain_http": True, "src_insecure": True}
    assert of("src", **given) == {"ca_cert": "own", "plain_http": True, "insecure": True}
    assert of("dest", **given) == {"ca_cert": "both"}
    assert of("src", ca_cert="both", src_ca_cert="") == {}


def test_a_client_certificate_has_its_own_key_only() -> None:
    both = {"client_cert": "c", "client_key": "k"}
    assert of("src", **both, src_client_cert="own") == {"client_cert": "own"}
    assert of("src", **both, src_client_cert="own", src_client_key="its") == {"client_cert": "own", "client_key": "its"}
    with pytest.raises(UsageError, match="--src-client-key needs --src-client-cert"):
        of("src", **both, src_client_key="its")


def test_a_hint_has_the_names_of_the_side() -> None:
    assert build_hint_translator(NONE, "")(CERTIFICATE) == CERTIFICATE
    assert (
        build_hint_translator(NONE, "src")(CERTIFICATE)
        == "a client certificate: --src-client-cert and --src-client-key"
    )
    assert build_hint_translator(NONE, "dest")(PLAIN) == "omit --dest-plain-http, or correct the port"
    for side, other in (
        ("src", "--dest-plain-http is for the destination"),
        ("dest", "--src-plain-http is for the source"),
    ):
        shown = build_hint_translator(RegistryOptions(plain_http=True), side)(PLAIN)
        assert shown == f"omit --plain-http ({other} alone), or correct the port"
    assert build_hint_translator(NONE, "src")("--retries and --cache") == "--retries and --cache"


def test_a_hint_of_a_sync_has_the_keys_of_the_file() -> None:
    table = '[registry."HOST"] of the sync file'
    assert (
        build_sync_hint_translator(NONE)(CERTIFICATE)
        == f"a client certificate: client-cert and client-key (keys of {table})"
    )
    assert build_sync_hint_translator(NONE)("plain HTTP: --plain-http") == f"plain HTTP: plain-http (a key of {table})"
    shown = build_sync_hint_translator(RegistryOptions(plain_http=True))(PLAIN)
    assert shown == f"omit --plain-http (or set plain-http = false in {table}), or correct the port"
    assert build_sync_hint_translator(NONE)("--retries") == "--retries"
