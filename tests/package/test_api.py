"""What a program gets in one line: registries, with the credentials and CAs that the command line would find."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

import ocistream
from tests.certificates import Certificate
from tests.faulty_auth import Basic
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout, small_image
from tests.registry_http import basic, seed

AUTH = "auth.json"


def pulled(around: ocistream.OpenContext, image: str, folder: Path) -> list[str]:
    """Copy an image into a layout, and return the digests of what is there then."""
    source = ocistream.open_source(ocistream.parse_location(image), around, ocistream.Selection())
    sink = ocistream.open_destination(ocistream.parse_location(f"oci:{folder}/out:app"), around)
    with closing(around.client()), closing(source), closing(sink):
        return [root.descriptor.digest for root in ocistream.copy(source, sink).graph.roots]


def test_a_credential_is_found_where_the_environment_says(tmp_path: Path, layout: Layout) -> None:
    with FaultyRegistry(tmp_path / "served", auth=Basic("user", "secret")) as registry:
        headers = basic("user", "secret")
        digest = seed(layout, small_image(layout, name="app"), registry.host, "app", "1", headers=headers)
        image = f"{registry.host}/app:1"
        with pytest.raises(ocistream.OcistreamError) as caught:
            pulled(ocistream.create_context(environment={}), image, tmp_path)
        assert caught.value.exit_code == 3
        token = headers["Authorization"].removeprefix("Basic ")
        (tmp_path / AUTH).write_text(json.dumps({"auths": {registry.host: {"auth": token}}}))
        environment = {"REGISTRY_AUTH_FILE": str(tmp_path / AUTH)}
        assert pulled(ocistream.create_context(environment=environment), image, tmp_path) == [digest]


def test_a_programs_own_credential_comes_before_others(tmp_path: Path, layout: Layout) -> None:
    with FaultyRegistry(tmp_path / "served", auth=Basic("user", "secret")) as registry:
        headers = basic("user", "secret")
        digest = seed(layout, small_image(layout, name="app"), registry.host, "app", "1", headers=headers)
        around = ocistream.create_context(
            credential=ocistream.Credential("user", "secret"),
            environment={"OCISTREAM_USERNAME": "other", "OCISTREAM_PASSWORD": "wrong"},
        )
        assert pulled(around, f"{registry.host}/app:1", tmp_path) == [digest]


def test_authorities_are_those_of_the_settings_or_else_of_the_environment(
    tmp_path: Path, layout: Layout, certificate: Certificate
) -> None:
    small_image(layout, name="app")
    with FaultyRegistry(tmp_path / "served", tls=certificate) as registry:
        target = ocistream.parse_location(f"localhost:{registry.host.rpartition(':')[2]}/app:1")
        nothing = tmp_path / "nothing.pem"
        given = ocistream.HttpSettings(ca_file=str(certificate.file))
        for around in (
            ocistream.create_context(environment={"SSL_CERT_FILE": str(certificate.file)}),
            ocistream.create_context(given, environment={"SSL_CERT_FILE": str(nothing)}),
        ):
            source = ocistream.open_source(
                ocistream.parse_location(f"oci:{layout.path}:app"), around, ocistream.Selection()
            )
            sink = ocistream.open_destination(target, around)
            with closing(around.client()), closing(source), closing(sink):
                assert ocistream.copy(source, sink).graph.roots
