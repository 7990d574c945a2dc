"""Real registries as mirrors: a complete one, one with damaged storage, a pull-through cache.

The module also checks that ocistream reads registries.conf as skopeo does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.debian_image import DebianImage
from tests.images import Descriptor, Layout, small_image
from tests.interop.process_limits import assert_within_budget
from tests.peers import DockerRegistry, Tools
from tests.registry_http import assert_no_image, manifest_digest, seed
from tests.runner import Result, measured, ocistream, pipe

Start = Callable[..., DockerRegistry]


@dataclasses.dataclass
class Mirrored:
    """A registry and a mirror of it, both with an image as `team/app:1`, and a HOME that configures the mirror."""

    registry: DockerRegistry
    mirror: DockerRegistry
    layout: Layout
    image: Descriptor
    home: Path

    @property
    def name(self) -> str:
        return f"{self.registry.host}/team/app:1"

    @property
    def env(self) -> dict[str, str | None]:
        return {"HOME": str(self.home), "XDG_CONFIG_HOME": None}

    def configure(self, *mirrors: str) -> None:
        path = self.home / ".config/ocistream/config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = ", ".join(f'"{mirror}"' for mirror in mirrors or [self.mirror.host])
        path.write_text(f'[registry."{self.registry.host}"]\nmirrors = [{listed}]\n')

    def spoil(self, digest: str, at: int) -> None:
        """Flip a bit of a blob in the mirror's storage."""
        hexadecimal = digest.partition(":")[2]
        path = self.mirror.root / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    def layers(self) -> list[str]:
        return [layer["digest"] for layer in self.layout.read(self.image["digest"])["layers"]]

    def pull(self, target: Path, name: str | None = None) -> Result:
        return ocistream("pull", name or self.name, "--format", "oci", "-o", target, env=self.env)

    def assert_whole(self, folder: Path) -> None:
        """Assert that a layout has the complete image."""
        document = self.layout.read(self.image["digest"])
        for digest in (self.image["digest"], document["config"]["digest"], *self.layers()):
            content = (folder / "blobs" / digest.replace(":", "/")).read_bytes()
            assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest


@pytest.fixture
def mirrored(registry: DockerRegistry, other_registry: DockerRegistry, layout: Layout, tmp_path: Path) -> Mirrored:
    image = small_image(layout)
    for one in (registry, other_registry):
        seed(layout, image, one.host, "team/app", "1")
    found = Mirrored(registry, other_registry, layout, image, tmp_path / "home")
    found.configure()
    return found


def asked(registry: DockerRegistry) -> list[str]:
    """Return the GET and HEAD requests that a registry received."""
    return [request for request in registry.requests() if request.startswith(("GET", "HEAD"))]


# tests/cli/test_mirrors.py and tests/quirks test mirrors that are down or lack the image.
def test_an_image_is_pulled_from_the_mirror(mirrored: Mirrored, tmp_path: Path) -> None:
    pulled = mirrored.pull(tmp_path / "out")
    assert pulled.code == 0, pulled.err
    mirrored.assert_whole(tmp_path / "out")
    # The mirror has no referrers of the image, but the registry may: the client asks the registry only for those.
    hanging = re.compile(r"[A-Z]+ /v2/team/app/(referrers/|manifests/sha256-)")
    assert [request for request in asked(mirrored.registry) if not hanging.match(request)] == []


def test_a_damaged_layer_of_a_mirror_fails_a_pull_into_a_pipe_and_no_mirrors_helps(
    mirrored: Mirrored, start_registry: Start
) -> None:
    target = start_registry()
    mirrored.spoil(mirrored.layers()[1], at=20)
    pulled, pushed = pipe(["pull", mirrored.name], ["push", f"{target.host}/copy:1"], env=mirrored.env)
    assert (pulled.code, pushed.code) == (5, 6), (pulled.err, pushed.err)
    assert f"received from the mirror {mirrored.mirror.host}/team/app" in pulled.err
    assert "--no-mirrors" in pulled.err
    assert_no_image(target)
    again = pipe(["pull", "--no-mirrors", mirrored.name], ["push", f"{target.host}/copy:1"], env=mirrored.env)
    assert [result.code for result in again] == [0, 0]
    assert target.tags("copy") == {"1": mirrored.image["digest"]}


@pytest.mark.nightly
def test_a_real_image_from_a_mirror_stays_within_the_budget(
    debian_registry: DockerRegistry,
    debian_image: DebianImage,
    registry: DockerRegistry,
    start_registry: Start,
    tmp_path: Path,
) -> None:
    seed(debian_image.layout, debian_image.manifest, registry.host, "team/debian", "v1")
    mirrored = Mirrored(debian_registry, registry, debian_image.layout, debian_image.manifest, tmp_path / "home")
    mirrored.configure()
    target = start_registry()
    # The last byte of the largest layer: the complete layer must be sent again.
    largest = max(debian_image.layout.read(debian_image.manifest["digest"])["layers"], key=lambda layer: layer["size"])
    mirrored.spoil(largest["digest"], at=largest["size"] - 1)
    copied = measured("copy", f"{debian_registry.host}/team/debian:v1", f"{target.host}/copy:1", env=mirrored.env)
    assert_within_budget(copied)
    assert f"received from the mirror {registry.host}/team/debian" in copied.err
    assert manifest_digest(target.host, "copy", "1") == debian_image.manifest["digest"]


def test_a_pull_through_cache_fetches_and_keeps_an_image(
    registry: DockerRegistry, start_registry: Start, layout: Layout, tmp_path: Path
) -> None:
    image = small_image(layout)
    seed(layout, image, registry.host, "team/app", "1")
    cache = start_registry(settings={"REGISTRY_PROXY_REMOTEURL": registry.url})
    mirrored = Mirrored(registry, cache, layout, image, tmp_path / "home")
    mirrored.configure()
    for number in range(2):
        pulled = mirrored.pull(tmp_path / str(number))
        assert pulled.code == 0, pulled.err
        assert "the mirror" not in pulled.err
        mirrored.assert_whole(tmp_path / str(number))
    assert cache.manifests("team/app") == {image["digest"]}


# -- the same registries.conf with skopeo -------------------------------------------------------------------


def entry(location: str, *lines: str, prefix: str = "") -> str:
    """Return a `[[registry]]` for plain HTTP, which skopeo only uses if `insecure` allows it."""
    named = [f'prefix = "{prefix}"'] if prefix else []
    return "\n".join(["[[registry]]", *named, f'location = "{location}"', "insecure = true", *lines, ""])


def mirror(location: str, *lines: str) -> str:
    return "\n".join(["[[registry.mirror]]", f'location = "{location}"', "insecure = true", *lines])


#: The file, the requested name, and where the client requests the manifest: "R" is the registry, "M" the mirror.
FILES: dict[str, tuple[Sequence[str], str, str]] = {
    "a mirror": ((entry("R", mirror("M")),), "R/team/app:1", "M"),
    "a mirror that lacks it": ((entry("R", mirror("M/empty")),), "R/team/app:1", "MR"),
    "a mirror for digests, and a tag": (
        (entry("R", "mirror-by-digest-only = true", mirror("M")),),
        "R/team/app:1",
        "R",
    ),
    "a mirror for digests, and a digest": (
        (entry("R", "mirror-by-digest-only = true", mirror("M")),),
        "R/team/app@D",
        "M",
    ),
    "another location": ((entry("M/team", prefix="apps.example/x"),), "apps.example/x/app:1", "M"),
    "a wildcard": ((entry("M/team", prefix="*.example"),), "apps.example/app:1", "M"),
    "the longest prefix": (
        (entry("R/empty", prefix="apps.example"), entry("M/team", prefix="apps.example/x")),
        "apps.example/x/app:1",
        "M",
    ),
    "blocked": ((entry("R", "blocked = true"),), "R/team/app:1", ""),
    "a part of it blocked": (
        (entry("R"), entry("R/other", "blocked = true")),
        "R/team/app:1",
        "R",
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_ocistream_reads_registries_conf_as_skopeo_does(what: str, mirrored: Mirrored, tools: Tools) -> None:
    lines, name, places = FILES[what]

    def filled(text: str) -> str:
        hosts = {"R": mirrored.registry.host, "M": mirrored.mirror.host}
        for letter, host in hosts.items():
            text = text.replace(f'"{letter}', f'"{host}').replace(f"{letter}/team", f"{host}/team")
        return text.replace("@D", f"@{mirrored.image['digest']}")

    def where(run: Callable[[], int]) -> tuple[str, bool]:
        """Run a command; return where it requested a manifest, and whether it succeeded."""
        before = [len(mirrored.mirror.requests()), len(mirrored.registry.requests())]
        code = run()
        found = ""
        for letter, registry, seen in zip("MR", (mirrored.mirror, mirrored.registry), before, strict=True):
            # Requests for referrers, under a tag made from the digest, do not count.
            if any("/manifests/" in request and "sha256-" not in request for request in registry.requests()[seen:]):
                found += letter
        return found, code == 0

    tools("skopeo")
    path = tools.folder / "home/.config/containers/registries.conf"
    path.write_text(filled("".join(lines)))
    env = {"HOME": str(tools.folder / "home"), "XDG_CONFIG_HOME": None}
    theirs = where(lambda: tools.run("skopeo", "inspect", "--raw", f"docker://{filled(name)}", check=False).returncode)
    ours = where(lambda: ocistream("inspect", filled(name), env=env).code)
    assert theirs == ours == (places, bool(places))
