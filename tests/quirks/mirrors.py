"""A registry with an image, its mirrors, and a configuration that names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from tests.archives import check_blobs, files_in, index_in
from tests.faulty_registry import Fault, Request
from tests.images import Descriptor, Layout
from tests.quirks.command_runner import How, Mover
from tests.quirks.quirky_registry import QuirkyRegistry
from tests.registry_http import seed
from tests.runner import Result


@dataclasses.dataclass
class Mirrored:
    """A registry that has an image as app:1; its mirrors have the image as hub/app:1."""

    start: Callable[..., QuirkyRegistry]
    layout: Layout
    mover: Mover
    image: Descriptor
    registry: QuirkyRegistry
    mirrors: list[QuirkyRegistry] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """The user's name of the image."""
        return f"{self.registry.host}/app:1"

    def mirror(self, *faults: Fault, lacks: bool = False, **options: object) -> QuirkyRegistry:
        """Start a mirror with the image and faults; clients try it after the earlier ones."""
        mirror = self.start(**options)
        if not lacks:
            auth, mirror.auth = mirror.auth, None
            seed(self.layout, self.image, mirror.host, "hub/app", "1")
            mirror.auth = auth
            mirror.requests.clear()
        mirror.faults = list(faults)
        self.mirrors.append(mirror)
        return mirror

    def configure(self, *hosts: str, pull: str = "all", url: str = "") -> list[str]:
        """Write the configuration, and return the options that name it. `hosts` are mirrors before all others."""
        hosts = (*hosts, *(mirror.host for mirror in self.mirrors))
        places = [f'{{ location = "{host}/hub", pull = "{pull}" }}' for host in hosts]
        lines = [f'[registry."{self.registry.host}"]', f"mirrors = [{', '.join(places)}]"]
        path = self.mover.folder / "config.toml"
        path.write_text("\n".join([*lines, *([f'url = "{url}"'] if url else []), ""]))
        return ["--config", str(path)]

    def pull(self, *hosts: str, how: How = "file", name: str = "", pull: str = "all", url: str = "") -> Result:
        """Pull the image to a file or a pipe, check it, and return the result."""
        output = ["-o", str(self.mover.folder / "out.tar")] if how == "file" else []
        arguments = ["pull", name or self.name, "--platform", "all", "--no-referrers", "--jobs", "1", "-v", *output]
        result = self.mover.run(*arguments, *self.configure(*hosts, pull=pull, url=url))
        content = (self.mover.folder / "out.tar").read_bytes() if how == "file" else result.out
        self.check(content)
        return result

    def check(self, archive: bytes) -> None:
        """Assert that an archive has the image, and that every blob is correct."""
        files = files_in(archive)
        (entry,) = index_in(files)
        assert entry["digest"] == self.image["digest"]
        assert entry.get("annotations", {}).get("io.containerd.image.name") in {self.name, None}
        check_blobs(files)


def paths(requests: Sequence[Request]) -> list[str]:
    """Return the paths of requests, without the repository's name."""
    return [request.path.removeprefix("/v2/").removeprefix("hub/").removeprefix("app/") for request in requests]
