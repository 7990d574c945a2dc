"""`ocistream inspect --format html`: an HTML page about the content of a location."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from tests.archives import items_of, tar_of
from tests.cli.assertions import peak, succeed
from tests.faulty_registry import FaultyRegistry
from tests.html_page import Page
from tests.images import OCI_CONFIG, OCI_MANIFEST, Descriptor, Layout, small_image, thousands_of_images, two_platforms
from tests.registry_http import seed
from tests.runner import measured

#: Text that would be markup, an attribute, the end of the style sheet, or a command of CI if it were not escaped.
HOSTILE: Final = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title><svg onload=alert(1)>",
    "]]>--><!--",
    "&lt;b&gt;",
    "##[error]no",
)


def page_of(*arguments: str | Path, stdin: bytes | None = None) -> Page:
    """Return the page about a location."""
    return Page(html_of(*arguments, stdin=stdin))


def html_of(*arguments: str | Path, stdin: bytes | None = None) -> str:
    result = succeed("inspect", *arguments, "--format", "html", stdin=stdin)
    return result.out.decode()


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    return small_image(layout, name="v1", config={"Labels": {"org.example.team": "harbour"}})


@pytest.mark.parametrize("kind", ["layout", "file", "stdin", "docker-archive", "registry"])
def test_each_kind_of_location_has_a_page(
    kind: str, layout: Layout, image: Descriptor, served: FaultyRegistry, tmp_path: Path
) -> None:
    archive = tmp_path / "app.tar"
    archive.write_bytes(tar_of(items_of(layout)))
    manifest = layout.read(image["digest"])
    if kind == "layout":
        page = page_of(f"oci:{layout.path}")
    elif kind == "file":
        page = page_of(archive)
    elif kind == "stdin":
        page = page_of("-", stdin=archive.read_bytes())
    elif kind == "docker-archive":
        saved = tmp_path / "saved.tar"
        succeed("copy", archive, f"docker-archive:{saved}:example.com/app:v1")
        page = page_of(f"docker-archive:{saved}")
    else:
        seed(layout, image, served.host, "app", "v1")
        page = page_of(f"{served.host}/app:v1")
    assert "v1" in page.text
    assert "linux/amd64" in page.text
    assert "2024-01-01T00:00:00Z" in page.text
    assert "org.example.team harbour" in page.text
    assert manifest["config"]["digest"] in page.text
    if kind != "docker-archive":
        for descriptor in (image, *manifest["layers"]):
            assert descriptor["digest"] in page.text
    assert page.elements.count("rect") >= len(manifest["layers"])


def test_a_repository_has_a_page_of_its_tags(layout: Layout, image: Descriptor, served: FaultyRegistry) -> None:
    for tag in ("v1", "v2"):
        seed(layout, image, served.host, "app", tag)
    page = page_of(f"{served.host}/app")
    assert "2 tags v1 v2" in page.text


def test_layers_have_bars_by_size_and_exact_bytes(layout: Layout) -> None:
    layout.image([40_000, 10_000, 50_000], name="v1")
    page = html_of(f"oci:{layout.path}")
    stacked = re.findall(r'<rect class="own" x="([0-9.]+)%" width="([0-9.]+)%"', page)
    assert stacked == [("0.00", "40.00"), ("40.00", "10.00"), ("50.00", "50.00")]
    assert re.findall(r'<rect class="own" width="([0-9.]+)%"', page) == ["80.0", "20.0", "100.0"]
    assert '<data value="40000" title="40,000 bytes">40.0 kB</data>' in page
    assert re.findall(r"[0-9.]+ %", Page(page).text) == ["40.0 %", "10.0 %", "50.0 %"]


def test_shared_layers_are_marked_and_listed_with_their_images(layout: Layout) -> None:
    index = two_platforms(layout, name="both")
    shared = layout.read(layout.read(index["digest"])["manifests"][0]["digest"])["layers"][0]
    page = page_of(f"oci:{layout.path}")
    assert "gzip, in 2 images" in page.text
    listed = page.text.partition("Each layer is stored once.")[2]
    assert f"{shared['digest']} {shared['size']} B both linux/amd64 both linux/arm64/v8" in listed
    assert {link for link in page.links if link.startswith("#layer-")} == {"#layer-0"}
    assert "shared" in html_of(f"oci:{layout.path}")


def test_an_image_under_two_names_is_shown_once(layout: Layout, image: Descriptor) -> None:
    layout.name(image, "v2")
    page = page_of(f"oci:{layout.path}")
    assert "This is the same image as v1" in page.text
    assert page.text.count("org.example.team") == 1


def test_referrers_are_listed_with_their_image_and_apart_from_images(layout: Layout, image: Descriptor) -> None:
    sbom = layout.artifact(b"{}", kind="application/spdx+json", subject=image, name="parts")
    signature = layout.document(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": layout.blob(b"{}", OCI_CONFIG), "layers": []},
        name=f"{image['digest'].replace(':', '-')}.sig",
    )
    page = page_of(f"oci:{layout.path}")
    overview, _, details = page.text.partition("Signatures, SBOMs, attestations and other artifacts Kind")
    assert sbom["digest"] not in overview
    assert signature["digest"] not in overview
    assert f"SBOM parts {sbom['digest']} {image['digest']} in v1" in details
    section = details.partition("Kind Type Digest")[2]
    assert f"SBOM application/spdx+json {sbom['digest']}" in section
    assert f"signature {OCI_MANIFEST} {signature['digest']}" in section


def test_attestations_of_buildkit_are_named_for_their_platform(layout: Layout) -> None:
    image = small_image(layout)
    attestation = layout.image([10_000]) | {
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image["digest"],
        },
    }
    layout.index([image, attestation], name="both")
    page = page_of(f"oci:{layout.path}")
    assert "attestation of linux/amd64" in page.text
    assert "unknown" not in page.text.partition("attestation of")[0]


def test_missing_blobs_are_listed_and_marked(layout: Layout, image: Descriptor) -> None:
    layer = layout.read(image["digest"])["layers"][1]
    layout.file(layer["digest"]).unlink()
    page = page_of(f"oci:{layout.path}")
    assert "Missing 1" in page.text
    assert f"{layer['digest']} {layer['size']} B not found" in page.text
    assert f"{layer['digest']} gzip, missing" in page.text


def test_every_link_leads_to_a_place_on_the_page(layout: Layout, image: Descriptor) -> None:
    layout.artifact(b"{}", subject=image, name="parts")
    two_platforms(layout, name="both")
    page = page_of(f"oci:{layout.path}")
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)


def hostile(layout: Layout) -> None:
    """Write images whose names, labels, annotations, platforms and other text are `HOSTILE`."""
    values = {**{text: text for text in HOSTILE}, "control": "a\x1b[31m\u202eb\x00", "long": "x" * 9_000}
    for number, text in enumerate(HOSTILE):
        base = layout.image([20_000 + number], config={"Labels": values}, annotations=values)
        manifest: dict[str, Any] = layout.read(base["digest"])
        manifest["layers"][0]["annotations"] = values
        config = layout.read(manifest["config"]["digest"])
        manifest["config"] = layout.blob(json.dumps({**config, "created": text}).encode(), OCI_CONFIG)
        image = layout.document(manifest, name=text)
        platform = {"os": text, "architecture": text, "variant": text}
        layout.index([{**image, "platform": platform, "annotations": values}], name=f"index {text}")


def test_hostile_text_is_shown_as_text(layout: Layout) -> None:
    hostile(layout)
    page = html_of(f"oci:{layout.path}")
    parsed = Page(page)
    for text in HOSTILE:
        assert f"index {text}" in parsed.text
        assert parsed.text.count(text) > 20
    for control in ("\x1b", "\u202e", "\x00", "##[", "x" * 600):
        assert control not in page
    assert page.count("<style>") == page.count("</style>") == 1


@pytest.mark.usefixtures("image")
def test_the_page_allows_its_own_style_and_nothing_else(layout: Layout) -> None:
    page = html_of(f"oci:{layout.path}")
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.replace("&#x27;", "'") == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_of_thousands_of_images_needs_little_memory(layout: Layout, tmp_path: Path) -> None:
    thousands_of_images(layout)
    result = measured("inspect", f"oci:{layout.path}", "--format", "html", stdout=tmp_path / "page.html")
    peak(result)
    assert (tmp_path / "page.html").read_text().count("team/app-3999:1") >= 2
