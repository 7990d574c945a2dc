"""Keyless signatures (a certificate for an identity and a log entry) are verified with a trusted root, offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import ocistream as api
from tests import registry_http
from tests.archives import items_of, tar_of
from tests.cli import assertions
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout
from tests.runner import Result, ocistream, real
from tests.signatures.fake_sigstore import IDENTITY, ISSUER, FakeSigstore, by
from tests.signing import Signer, bundle_referrer, manifest_of, sign_with_tag, statement

WORKFLOW: Final = "https://ci.example.com/release.yml@refs/heads/main"
_MIB: Final = 1 << 20
#: Refuses and reports each use of the network, and reports the peak memory (in KiB) of each process at its end.
_WATCH: Final = """
import atexit, os, re, sys
def report(line):
    with open(os.environ["WATCH"], "a") as file:
        file.write(line + "\\n")
def hook(event, arguments):
    if event in %r:
        report(event)
        raise OSError("no network")
def peak():
    with open("/proc/self/status") as status:
        report(re.search(r"VmHWM:\\s*(\\d+)", status.read())[1] + (" sigstore" if "sigstore" in sys.modules else ""))
def leave(code, leave_at_once=os._exit):
    peak()
    leave_at_once(code)
os._exit = leave
atexit.register(peak)
sys.addaudithook(hook)
"""
_NETWORK: Final = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")


def sign(layout: Layout, image: Descriptor, sigstore: FakeSigstore, **options: Any) -> Descriptor:
    """Sign an image with a statement, and add the bundle to index.json."""
    found = sigstore.bundle(statement=statement(image["digest"]), **options)
    return bundle_referrer(layout, image, json.dumps(found).encode())


def signature_of(result: Result) -> dict[str, Any]:
    """Return the `signature` object of each named image."""
    document = json.loads(result.out)
    images = [*document["images"], *document["damagedImages"]]
    return {item["name"]: item["signature"] for item in images if "signature" in item}


class TestAccepted:
    def test_each_form_of_a_bundle(self, layout: Layout, sigstore: FakeSigstore) -> None:
        images = {
            name: layout.image([size], name=name)
            for name, size in (("statement:1", 4_000), ("manifest:1", 5_000), ("new-issuer:1", 6_000))
        }
        sign(layout, images["statement:1"], sigstore)
        found = sigstore.bundle(manifest=manifest_of(layout, images["manifest:1"]))
        bundle_referrer(layout, images["manifest:1"], json.dumps(found).encode())
        sign(layout, images["new-issuer:1"], sigstore, has_old_issuer=False)
        images["sha512:1"] = layout.image([7_000], name="sha512:1", algorithm="sha512")
        sign(layout, images["sha512:1"], sigstore)
        result = assertions.success(ocistream("verify", *by(sigstore), "--json", layout.path))
        signed = {"keys": [], "identities": [{"identity": IDENTITY, "issuer": ISSUER}], "names": []}
        assert signature_of(result) == dict.fromkeys(images, signed)

    def test_from_a_pipe_by_a_workflow(self, layout: Layout, image: Descriptor, sigstore: FakeSigstore) -> None:
        sign(layout, image, sigstore, identity=WORKFLOW)
        result = assertions.success(ocistream("verify", *by(sigstore, WORKFLOW), stdin=tar_of(items_of(layout))))
        assert f"signed: app:1 by {WORKFLOW} ({ISSUER})" in result.out.decode()

    def test_a_key_or_an_identity_is_enough(self, layout: Layout, trusted: Signer, sigstore: FakeSigstore) -> None:
        first, second = layout.image([4_000], name="first:1"), layout.image([5_000], name="second:1")
        sign_with_tag(layout, first, trusted)
        sign(layout, second, sigstore)
        result = assertions.success(ocistream("verify", "--key", trusted.path, *by(sigstore), "--json", layout.path))
        assert {
            name: bool(found["keys"]) for name, found in signature_of(result).items() if "problem" not in found
        } == {
            "first:1": True,
            "second:1": False,
        }

    def test_verification_uses_no_network(
        self, layout: Layout, image: Descriptor, sigstore: FakeSigstore, tmp_path: Path
    ) -> None:
        sign(layout, image, sigstore)
        watched = Watch(tmp_path)
        assertions.success(real("verify", *by(sigstore), layout.path, env=watched.env))
        assert len(watched.peaks(keyless=True)) == 2, "the watch misses a run of the verifier"
        assert watched.sockets() == []


class TestRequired:
    def test_pull_push_and_copy(
        self,
        layout: Layout,
        image: Descriptor,
        sigstore: FakeSigstore,
        start: Callable[..., FaultyRegistry],
        tmp_path: Path,
    ) -> None:
        source, target = start(), start()
        registry_http.seed(layout, image, source.host, "app", "1")
        registry_http.seed(layout, sign(layout, image, sigstore), source.host, "app")
        name, archive = f"{source.host}/app:1", tmp_path / "app.tar"
        other = by(sigstore, "other@example.com")
        pulled = ocistream("pull", name, "-o", archive, *other)
        assertions.failure(pulled, 5, f"{name} ({image['digest']})", f"by another identity: {IDENTITY} ({ISSUER})")
        assert not archive.exists()
        assertions.success(ocistream("pull", name, "-o", archive, *by(sigstore)))
        push = ("push", f"{target.host}/app:1", "-i", archive)
        assertions.failure(ocistream(*push, *other), 5, "by another identity")
        assertions.no_image(target)
        assertions.success(ocistream(*push, *by(sigstore)))
        copied = ocistream("copy", name, f"oci:{tmp_path / 'x'}", *by(sigstore, issuer="https://other.example.com"))
        assertions.failure(copied, 5, "by another identity")
        assert not (tmp_path / "x/index.json").exists()

    def test_the_python_api(self, layout: Layout, image: Descriptor, sigstore: FakeSigstore, tmp_path: Path) -> None:
        sign(layout, image, sigstore)
        signer: dict[str, Any] = {"certificate_oidc_issuer": ISSUER, "trusted_root": sigstore.trusted_root}
        result = api.verify(layout.path, certificate_identity="other@example.com", **signer)
        with pytest.raises(api.IntegrityError, match="by another identity"):
            result.raise_for_findings()
        api.copy(f"oci:{layout.path}", tmp_path / "x.tar", certificate_identity=IDENTITY, **signer)
        with pytest.raises(api.UsageError, match="--certificate-identity must be given too"):
            api.copy(f"oci:{layout.path}", tmp_path / "y.tar", **signer)

    def test_memory_of_the_copy_stays_within_the_budget(
        self, layout: Layout, sigstore: FakeSigstore, start: Callable[..., FaultyRegistry], tmp_path: Path
    ) -> None:
        source, target, watched = start(), start(), Watch(tmp_path, network=True)
        image = layout.image([16 * _MIB, 16 * _MIB, 16 * _MIB])
        registry_http.seed(layout, image, source.host, "app", "1")
        for _ in range(20):
            registry_http.seed(layout, sign(layout, image, sigstore), source.host, "app")
        copy = ("copy", *by(sigstore), f"{source.host}/app:1", f"{target.host}/app:1")
        assertions.success(real(*copy, env=watched.env))
        (own,) = watched.peaks(keyless=False)
        assert own < 48 * _MIB, f"{own / _MIB:.1f} MiB"
        assert max(watched.peaks(keyless=True)) < 96 * _MIB


class Watch:
    """Watches the processes of a run, which must not be forks. Without `network`, they cannot use sockets."""

    def __init__(self, folder: Path, *, network: bool = False) -> None:
        self._report, path = folder / "watch", folder / "watched"
        path.mkdir()
        (path / "sitecustomize.py").write_text(_WATCH % (() if network else _NETWORK,))
        self._report.touch()
        self.env = {"PYTHONPATH": str(path), "WATCH": str(self._report)}

    def peaks(self, *, keyless: bool) -> list[int]:
        """Return the peak memory in bytes of the processes with or without the package sigstore."""
        lines = [line.split() for line in self._report.read_text().splitlines() if line[0].isdigit()]
        return [int(line[0]) * 1024 for line in lines if (len(line) == 2) is keyless]

    def sockets(self) -> list[str]:
        """Return the uses of sockets."""
        return [line for line in self._report.read_text().splitlines() if line.startswith("socket.")]
