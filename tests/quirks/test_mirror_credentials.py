"""A mirror without a login of its own never gets the registry's credential."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import assertions
from tests.faulty_registry import Fault, HangUp
from tests.images import Layout
from tests.quirks.command_runner import run
from tests.quirks.credential_forms import SCHEMES, Scheme, assert_unprinted, filled, logged_in, secrets_of, was_shown
from tests.quirks.fixture_types import MakeTap, Start
from tests.quirks.quirky_registry import Quirk
from tests.quirks.statements import quirk
from tests.registry_http import seed


@quirk(20)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("mirror", ["has it", "lacks it", "wants a password", "hangs up"])
def test_a_mirror_gets_no_credential_of_the_registry(
    mirror: str, scheme: Scheme, start: Start, tap: MakeTap, layout: Layout, tmp_path: Path
) -> None:
    registry = start(auth=scheme.auth())
    image = filled(layout, registry)
    faults = (Fault(HangUp(), times=None),) if mirror == "hangs up" else ()
    other = start(Quirk("a mirror", faults), auth=scheme.auth() if mirror == "wants a password" else None)
    if mirror == "has it":
        seed(layout, image, other.host, "app", "v1")
    second = tap(other.host)
    config = tmp_path / "config.toml"
    place = f'{{ location = "{second.host}", pull = "digest-only" }}'
    config.write_text(f'[registry."{registry.host}"]\nmirrors = [{place}]\n')
    env = logged_in(tmp_path, scheme, registry.host)
    options = ["--config", str(config), "-vv", "--retries", "1"]
    result = run("pull", f"{registry.host}/app:v1", "-o", tmp_path / "pulled.tar", *options, env=env)
    assertions.success(result)
    assert result.lines() == [f"{registry.host}/app:v1@{image['digest']}"]
    assert b"/v2/app/" in second.heard or mirror == "hangs up"
    was_shown(registry)
    # It may get an anonymous token of its own.
    assert not any(secret.encode() in second.heard for secret in secrets_of(registry))
    assert_unprinted(result, registry)
