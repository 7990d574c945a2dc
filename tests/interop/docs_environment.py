"""An environment in which the commands of the documentation work as written.

`registry.example.com`, `registry.local:5000`, `localhost:5000` and Docker Hub are real registries with images;
`ssh host` reaches a host, and `docker` has a daemon. The environment is a network namespace: its names and ports do not
collide with those of other processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.certificates import Certificate
from tests.fork_runner import Server
from tests.images import OCI_INDEX, Descriptor, Layout
from tests.peers import docker_registry, dockerd, namespace, ssh_server
from tests.registry_http import seed
from tests.runner import command, forking_command
from tests.signatures.fake_sigstore import FakeSigstore
from tests.signed_image import cosign_tag
from tests.signing import bundle_referrer, sign_with_tag, signer, statement

#: Seconds that a block may take: far more than any block needs.
TIMEOUT: Final = 120.0
_MIB: Final = 1 << 20

#: Name of a registry, its address and its port. A registry on port 443 uses TLS, and so does one that is not on
#: loopback.
_REGISTRIES: Final = {
    "docker.io": ("198.51.100.1", 443),
    "registry.example.com": ("198.51.100.2", 443),
    "registry.local": ("198.51.100.3", 5000),
}
_NAMES: Final = {"docker.io": ("registry-1.docker.io", "index.docker.io"), "localhost": ()}
_IMAGES: Final = ("app", "nginx", "redis")
_TAGS: Final = ("1", "2")


@dataclasses.dataclass(frozen=True)
class World:
    """The environment of the documentation's commands."""

    inside: Sequence[str]
    env: Mapping[str, str]
    certificate: Certificate
    #: The public key that verifies registry.example.com/release:1, and the trusted root for release:2.
    key: Path
    trusted_root: Path

    def run(self, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a bash script in a folder; stdout and stderr are merged, as on a terminal."""
        home = folder.parent / f"{folder.name}-home"
        home.mkdir(exist_ok=True)
        env = {**self.env, "HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
        line = [*self.inside, "bash", "--noprofile", "--norc", "-c", script]
        return subprocess.run(
            line,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )


def script_of(text: str) -> str:
    """Return a block as a script that ends at the first failure, and then ends its background processes.

    After starting a registry in the background, the script waits until it listens: a person types the next line later.
    """
    lines = []
    for line in text.splitlines():
        lines.append(line)
        if re.search(r"&\s*(#.*)?$", line):
            lines.append('until [[ $(ss -Htlnp) == *"pid=$!,"* ]]; do kill -0 $!; sleep 0.05; done')
    # A background process would inherit stdout and keep the pipe open.
    left = "trap 'code=$?; pkill -P $$ || :; wait; exit $code' EXIT"
    return "\n".join(["set -euo pipefail", left, *lines])


@contextlib.contextmanager
def world(
    folder: Path, certificate: Certificate, *, more: Mapping[str, tuple[Layout, Descriptor]] | None = None
) -> Iterator[World]:
    """Start registries with images, a host behind ssh, and a daemon with an image.

    Docker Hub also has the images of `more`, a mapping by NAME:TAG.
    """
    names = list(_REGISTRIES) + [other for others in _NAMES.values() for other in others]
    issued = certificate.issue(folder / "certificate", names=[*names, "localhost"])
    name = f"documents-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(_hosts(name))
        inside = stack.enter_context(namespace(name))
        forks = stack.enter_context(contextlib.closing(Server(os.environ, inside)))
        programs = _programs(folder / "bin", forking_command(forks.address))
        env = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SSL_CERT_FILE": str(certificate.file),
            "LANG": "C.UTF-8",
            "PASSWORD": "secret",
            "PROD_PASSWORD": "secret",
        }
        for address, _ in _REGISTRIES.values():
            subprocess.run([*inside, "ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
        layout, sigstore = Layout(folder / "images"), FakeSigstore(folder)
        images = {f"{name}:{tag}": (layout, _image(layout, name, tag)) for name in _IMAGES for tag in _TAGS}
        images |= more or {}
        for registry, (address, port) in _REGISTRIES.items():
            there = folder / registry
            with docker_registry(there) as seeded:
                for image, (source, descriptor) in images.items():
                    repository, _, tag = image.partition(":")
                    if registry == "docker.io":
                        for written in _tags(repository, tag):
                            seed(source, descriptor, seeded.host, f"library/{repository}", written)
                    elif registry == "registry.example.com" and repository == "app":
                        seed(source, descriptor, seeded.host, repository, tag)
                if registry == "registry.example.com":
                    _seed_signed(layout, seeded.host, folder / "cosign.pub", sigstore)
            stack.enter_context(docker_registry(there, tls=issued, within=inside, address=f"{address}:{port}"))
        # The host behind `ssh host` has its own loopback interface, with a registry on it.
        far = stack.enter_context(namespace(f"{name}-far"))
        far_forks = stack.enter_context(contextlib.closing(Server(os.environ, far)))
        far_programs = _programs(folder / "far-bin", forking_command(far_forks.address))
        stack.enter_context(docker_registry(folder / "far", within=far, address="127.0.0.1:5000"))
        home = folder / "far-home"
        home.mkdir()
        enter = _program(programs / "enter", f'cd {home} && exec {" ".join(far)} sh -c "$SSH_ORIGINAL_COMMAND"')
        homes = {
            "PATH": f"{far_programs}:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(folder / "far-state"),
            "XDG_CONFIG_HOME": str(folder / "far-config"),
        }
        ssh = stack.enter_context(
            ssh_server(folder / "ssh", name="host", env={**env, **homes}, program=enter, within=inside)
        )
        _program(programs / "ssh", f'exec {shutil.which("ssh")} {" ".join(ssh[1:-1])} "$@"')
        # `ip netns exec` mounts another /sys, without the cgroups that the daemon needs.
        network = ["nsenter", f"--net=/run/netns/{name}"]
        daemon = stack.enter_context(dockerd(folder / "dockerd", within=network))
        env |= {"DOCKER_HOST": daemon.host, "DOCKER_CONFIG": str(daemon.config)}
        found = World(inside, env, issued, folder / "cosign.pub", sigstore.trusted_root)
        prepared = folder / "prepared"
        prepared.mkdir()
        # An image in the daemon, and a truncated archive on the remote host, as a broken pipe leaves it.
        begun = f"ocistream pull app:2 -o app.tar && docker load -i app.tar && head -c 1000000 app.tar > {home}/x.tar"
        done = found.run(begun, prepared)
        assert done.returncode == 0, done.stdout
        yield found


def _seed_signed(layout: Layout, host: str, key: Path, sigstore: FakeSigstore) -> None:
    """Push release:1, signed with a key whose public half goes to a file, and release:2, signed keyless."""
    image, keyless = _image(layout, "release", "1"), _image(layout, "release", "2")
    seed(layout, image, host, "release", "1")
    seed(layout, sign_with_tag(layout, image, signer(key)), host, "release", cosign_tag(image))
    seed(layout, keyless, host, "release", "2")
    found = json.dumps(sigstore.bundle(statement=statement(keyless["digest"]))).encode()
    # The registry has no referrers API, so a tag lists the referrers.
    referrers = [bundle_referrer(layout, keyless, found)]
    listed = layout.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": referrers})
    seed(layout, listed, host, "release", keyless["digest"].replace(":", "-"))


def _tags(repository: str, tag: str) -> Sequence[str]:
    """Return the tags of an image: nginx has a version as a second tag."""
    return (tag, f"1.{25 + int(tag)}.0") if repository == "nginx" else (tag,)


def _image(layout: Layout, name: str, tag: str) -> Descriptor:
    """Write an image of two platforms, each with a layer that all tags of the name share, and one of its own."""
    images = []
    for number, platform in enumerate(("linux/amd64", "linux/arm64")):
        base, _ = layout.random_layer(2 * _MIB, seed=f"{name} {platform}")
        top, _ = layout.random_layer(_MIB // 2 + int(tag) * 4096 + number * 512, seed=f"{name} {tag} {platform}")
        images.append(layout.image([base, top], platform=platform))
    return layout.index(images)


@contextlib.contextmanager
def _hosts(name: str) -> Iterator[None]:
    """Write the hosts file that a network namespace of that name uses (ip-netns(8))."""
    folder = Path("/etc/netns") / name
    was = folder.parent.exists()
    folder.mkdir(parents=True)
    lines = ["127.0.0.1 localhost"]
    for host, (address, _) in _REGISTRIES.items():
        lines.append(" ".join([address, host, *_NAMES.get(host, ())]))
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    try:
        yield
    finally:
        shutil.rmtree(folder)
        if not was:
            with contextlib.suppress(OSError):
                folder.parent.rmdir()


def _programs(folder: Path, ocistream: Sequence[str]) -> Path:
    """Create a folder with an `ocistream` program."""
    folder.mkdir()
    # The process that a shell starts in the background must itself listen.
    serve = f'[ "$1" != serve ] || exec {" ".join(command())} "$@"'
    _program(folder / "ocistream", f'{serve}\nexec {" ".join(ocistream)} "$@"')
    return folder


def _program(path: Path, line: str) -> Path:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path
