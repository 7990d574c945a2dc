"""The public API of `import ocistream`: each test uses public names only."""

from __future__ import annotations

import gzip
import inspect
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ocistream
from ocistream import limits
from tests.archives import items_of, tar_of
from tests.certificates import Certificate
from tests.cli.commands import options
from tests.fault_actions import Header, Reply, Stall, refusal
from tests.faulty_auth import Basic
from tests.faulty_registry import Fault, FaultyRegistry
from tests.images import Layout, small_image, two_platforms
from tests.registry_http import basic, manifest_digest, seed, tags
from tests.runner import ocistream as command
from tests.signed_image import cosign_tag
from tests.signing import sign_with_tag, signer

AUTH = "auth.json"
BLOBS = r"/blobs/sha256:"


def isolated(folder: Path, **variables: str) -> dict[str, str]:
    """Return an environment without the user's configuration and credentials."""
    return {"HOME": str(folder), **variables}


class Progress:
    """An observer that adds up the reported bytes."""

    def __init__(self) -> None:
        self.total = self.moved = 0
        self.statuses: dict[str, str] = {}
        self._lock = threading.Lock()

    def planned(self, graph: ocistream.Graph) -> None:
        self.total = graph.size

    def advance(self, size: int, descriptor: ocistream.Descriptor | None = None) -> None:
        """Add the bytes."""
        del descriptor
        with self._lock:
            self.moved += size

    def done(self, descriptor: ocistream.Descriptor, status: str) -> None:
        """Record the result of a blob."""
        self.statuses[descriptor.digest] = status


#: Options of the command that a call takes in another form: the argument.
OTHER_FORM = {
    "--platform": "platforms",
    "--image": "images",
    "--no-referrers": "referrers",
    "--no-mirrors": "mirrors",
    "--ca-cert": "tls",
    "--client-cert": "tls",
    "--client-key": "tls",
    "--username": "credentials",
    "--password-stdin": "credentials",
    "--password-file": "credentials",
    "--authfile": "environment",
    "--progress": "observer",
    "--input": "source",
    "--output": "destination",
    "--all": "platforms",
}
#: Options of the command line only, as the page says or because they concern the terminal.
COMMAND_ONLY = {"--have", "--base", "--only", "--via", "--via-program", "--from-byte"} | {
    *("--help", "--quiet", "--verbose", "--log-format", "--result", "--cert-dir"),
}


@pytest.mark.parametrize("name", ["pull", "push", "copy"])
def test_each_option_of_the_command_is_an_argument(name: str) -> None:
    arguments = {*inspect.signature(ocistream.Client).parameters, *inspect.signature(ocistream.copy).parameters}
    for option in options(name):
        if option.startswith(("--src-", "--dest-")) or not option.startswith("--") or option in COMMAND_ONLY:
            continue
        assert OTHER_FORM.get(option, option[2:].replace("-", "_")) in arguments, option


# -- copy -------------------------------------------------------------------------------------------------


def test_an_image_is_copied_in_one_line(tmp_path: Path, layout: Layout, served: FaultyRegistry) -> None:
    digest = seed(layout, two_platforms(layout, name="app"), served.host, "app", "1")
    progress = Progress()
    result = ocistream.copy(f"{served.host}/app:1", f"oci-archive:{tmp_path}/app.tar:renamed", observer=progress)
    assert result.images == (ocistream.ImageResult("renamed", digest),)
    assert {blob.descriptor.digest: blob.status for blob in result.blobs} == progress.statuses
    assert set(progress.statuses.values()) == {"copied"}
    assert result.size() == result.size("copied") == progress.total == progress.moved > 0
    assert result.seconds > 0
    again = ocistream.copy(tmp_path / "app.tar", f"{served.host}/app:2")
    assert manifest_digest(served.host, "app", "2") == digest
    assert {blob.status for blob in again.blobs} == {"skipped"}
    # Within one registry no blob is transferred.
    mounted = ocistream.copy(f"{served.host}/app:1", f"{served.host}/other:1")
    assert {blob.status for blob in mounted.blobs} == {"mounted"}


def test_platforms_have_the_defaults_of_the_command_line(
    tmp_path: Path, layout: Layout, served: FaultyRegistry
) -> None:
    digest = seed(layout, two_platforms(layout, name="app"), served.host, "app", "1")
    image, count = f"{served.host}/app:1", len(ocistream.copy(f"{served.host}/app:1", tmp_path / "all.tar").blobs)
    assert ocistream.inspect(tmp_path / "all.tar")["images"][0]["digest"] == digest
    choices: list[str | ocistream.Platform] = ["linux/arm64", ocistream.Platform("linux", "arm64")]
    for choice in choices:
        result = ocistream.copy(image, tmp_path / "one.tar", platforms=choice)
        assert result.images[0].digest != digest
        assert len(result.blobs) < count
    # Docker has one image per name.
    loaded = ocistream.copy(image, f"docker-archive:{tmp_path}/docker.tar:app:1", platforms="linux/amd64")
    assert loaded.images[0].image_id
    with pytest.raises(ocistream.UsageError, match="--platform all already includes 'linux/amd64'"):
        ocistream.copy(image, tmp_path / "none.tar", platforms=["all", "linux/amd64"])


def test_images_keep_their_names_and_tags_and_sources_can_be_combined(
    tmp_path: Path, layout: Layout, served: FaultyRegistry
) -> None:
    for tag in ("1", "2", "2-rc"):
        seed(layout, layout.image([tag.encode()], name=tag), served.host, "app", tag)
    with ocistream.Client() as client:
        result = client.copy(f"{served.host}/app", f"oci:{tmp_path}/tags", tags=["*", "!*-rc"])
        assert [image.name for image in result.images] == [f"{served.host}/app:1", f"{served.host}/app:2"]
        both = client.copy([f"{served.host}/app:1", f"{served.host}/app:2"], tmp_path / "both.tar")
        assert len(both.images) == 2
        client.copy(tmp_path / "both.tar", to=f"{served.host}/mirror")
        assert tags(served.host, "mirror/app") == ["1", "2"]
        client.copy(tmp_path / "both.tar", f"{served.host}/one:x", images=f"{served.host}/app:2")
        assert tags(served.host, "one") == ["x"]
        with pytest.raises(ocistream.UsageError, match=r"/both\.tar has 2 images$"):
            client.copy(tmp_path / "both.tar", f"{served.host}/one:x")
        with pytest.raises(ocistream.UsageError, match="either a destination"):
            client.copy(tmp_path / "both.tar")
        with pytest.raises(ocistream.UsageError, match="`to` is a registry"):
            client.copy(tmp_path / "both.tar", to=f"{served.host}/mirror", name="app:1")
        with pytest.raises(ocistream.UsageError, match="`to` is a registry"):
            client.copy(tmp_path / "both.tar", to=f"{served.host}/mirror", format="oci")


def test_volumes_are_written_and_pushed_together(tmp_path: Path, layout: Layout, served: FaultyRegistry) -> None:
    image = layout.image([os.urandom(300_000), os.urandom(300_000)], name="app")
    ocistream.copy(f"oci:{layout.path}:app", tmp_path / "app.%d.tar", split="256KiB")
    volumes = sorted(tmp_path.glob("app.*.tar"))
    assert len(volumes) > 2
    verified = ocistream.verify(volumes)
    assert verified.ok
    assert verified.volumes is not None
    assert len(verified.volumes.present) == len(volumes)
    ocistream.copy(volumes, f"{served.host}/app:1")
    assert manifest_digest(served.host, "app", "1") == image["digest"]


def test_layers_are_recompressed(tmp_path: Path, layout: Layout) -> None:
    small_image(layout, name="app")
    result = ocistream.copy(f"oci:{layout.path}:app", tmp_path / "app.tar", compress="zstd:3")
    assert {blob.status for blob in result.blobs} >= {"converted"}
    (image,) = ocistream.inspect(tmp_path / "app.tar")["images"]
    assert {layer["compression"] for layer in image["layers"]} == {"zstd"}


def test_a_finished_copy_does_not_block_gc(tmp_path: Path, layout: Layout) -> None:
    small_image(layout, name="app")
    target = Layout(tmp_path / "target")
    ocistream.copy(f"oci:{layout.path}", f"oci:{target.path}")
    unused = target.file(target.blob(b"unused", "text/plain")["digest"])
    result = command("gc", target.path, "--max-size=1")
    assert result.code == 0, result.err
    assert not unused.exists()


def test_file_objects_are_read_and_written_once_and_stay_open(
    tmp_path: Path, layout: Layout, served: FaultyRegistry
) -> None:
    digest = seed(layout, small_image(layout, name="app"), served.host, "app", "1")
    memory = io.BytesIO()
    ocistream.copy(f"{served.host}/app:1", memory)
    assert ocistream.verify(io.BytesIO(memory.getvalue())).ok
    with (tmp_path / "docker.tar").open("wb") as file:
        ocistream.copy(f"{served.host}/app:1", file, format="docker-archive", name="app:1")
        assert not file.closed
    assert ocistream.inspect(tmp_path / "docker.tar")["images"][0]["name"] == "docker.io/library/app:1"
    # A pipe in both directions, as between this program and another one.
    with subprocess.Popen(["gzip", "-1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as gzip:
        assert gzip.stdin is not None
        assert gzip.stdout is not None
        ocistream.copy(io.BytesIO(memory.getvalue()), gzip.stdin)
        gzip.stdin.close()
        ocistream.copy(gzip.stdout, ocistream.Reference(served.host, "piped", "1"))
    assert manifest_digest(served.host, "piped", "1") == digest


def test_a_dash_is_stdin_and_stdout(tmp_path: Path, layout: Layout) -> None:
    small_image(layout, name="app")
    write = f"import ocistream; ocistream.copy('oci:{layout.path}:app', '-')"
    read = f"import ocistream; ocistream.copy('-', 'oci:{tmp_path}/out:app')"
    archive = subprocess.run([sys.executable, "-P", "-c", write], capture_output=True, check=True).stdout
    subprocess.run([sys.executable, "-P", "-c", read], input=archive, check=True)
    assert ocistream.verify(tmp_path / "out").ok


def test_a_closed_reader_is_a_broken_pipe(layout: Layout) -> None:
    layout.image([os.urandom(1_000_000)], name="app")
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb", buffering=0) as pipe, pytest.raises(ocistream.OutputClosedError) as caught:  # noqa: PTH123
        ocistream.copy(f"oci:{layout.path}:app", pipe)
    assert caught.value.exit_code == 141


def test_a_non_blocking_pipe_loses_no_bytes_silently(layout: Layout) -> None:
    layout.image([os.urandom(3_000_000)], name="app")
    read, write = os.pipe()
    os.set_blocking(write, False)
    with open(read, "rb"), open(write, "wb", buffering=0) as pipe, pytest.raises(ocistream.LocalDiskError):  # noqa: PTH123
        ocistream.copy(f"oci:{layout.path}:app", pipe)


def test_the_command_and_a_call_write_the_same_bytes(tmp_path: Path, layout: Layout, served: FaultyRegistry) -> None:
    seed(layout, two_platforms(layout, name="app"), served.host, "app", "1")
    image = f"{served.host}/app:1"
    assert command("copy", image, f"oci-archive:{tmp_path}/command.tar").code == 0
    ocistream.copy(image, f"oci-archive:{tmp_path}/call.tar")
    assert (tmp_path / "command.tar").read_bytes() == (tmp_path / "call.tar").read_bytes()


# -- verify and inspect -----------------------------------------------------------------------------------


def test_verify_returns_its_findings_and_raises_them_on_request(tmp_path: Path, layout: Layout) -> None:
    image = small_image(layout, name="app")
    assert ocistream.verify(layout.path, deep=True).ok
    layer = layout.read(image["digest"])["layers"][0]["digest"]
    layout.file(layer).write_bytes(b"x" * layout.file(layer).stat().st_size)
    result = ocistream.verify(layout.path)
    assert not result.ok
    assert [failure.digest for failure in result.findings.failures] == [layer]
    printed = command("verify", "--json", str(layout.path))
    assert json.loads(printed.out) == result.document()
    with pytest.raises(ocistream.IntegrityError) as caught:
        result.raise_for_findings()
    assert caught.value.exit_code == printed.code == 5
    (tmp_path / "cut.tar").write_bytes(b"\0" * 100)
    with pytest.raises(ocistream.ArchiveError):
        ocistream.verify(tmp_path / "cut.tar")


def test_verify_requires_signatures_by_keys(tmp_path: Path, layout: Layout, served: FaultyRegistry) -> None:
    image, one = small_image(layout), signer(tmp_path / "cosign.pub")
    seed(layout, image, served.host, "app", "1")
    reference = ocistream.parse_reference(f"{served.host}/app:1")
    with pytest.raises(ocistream.IntegrityError, match="it has no signature"):
        ocistream.verify(reference, keys=one.path).raise_for_findings()
    seed(layout, sign_with_tag(layout, image, one), served.host, "app", cosign_tag(image))
    result = ocistream.verify(reference, keys=[one.path])
    assert result.ok
    assert result.document()["images"][0]["signature"]["keys"] == [str(one.path)]


def test_digest_and_tags_return_what_the_commands_print(layout: Layout, served: FaultyRegistry) -> None:
    index = two_platforms(layout, name="v1")
    seed(layout, index, served.host, "app", "1")
    arm = layout.read(index["digest"])["manifests"][1]["digest"]
    for source in (f"{served.host}/app:1", f"oci:{layout.path}", layout.path):
        assert ocistream.digest(source) == index["digest"]
        assert ocistream.digest(source, platform="linux/arm64") == arm
    assert ocistream.tags(f"{served.host}/app") == ("1",)
    assert ocistream.tags(layout.path) == ("v1",)
    with pytest.raises(ocistream.NotFoundError):
        ocistream.tags(f"{served.host}/gone")
    elsewhere = {"Link": '<http://localhost:1/more>; rel="next"'}
    served.faults.append(Fault(Reply(200, elsewhere, b'{"tags": ["1"]}'), path="/tags/list"))
    with pytest.raises(ocistream.UnsupportedError, match="has further tags"):
        ocistream.tags(f"{served.host}/app")


def test_inspect_returns_what_the_command_prints(layout: Layout, served: FaultyRegistry) -> None:
    seed(layout, two_platforms(layout, name="app"), served.host, "app", "1")
    for location in (f"{served.host}/app:1", f"{served.host}/app", f"oci:{layout.path}"):
        assert ocistream.inspect(location) == json.loads(command("inspect", "--json", location).out)
    assert ocistream.inspect(ocistream.Reference(served.host, "app"))["tags"] == ["1"]


@pytest.mark.parametrize("name", ["copy", "verify", "inspect", "digest", "tags"])
def test_a_compressed_archive_that_expands_too_much_is_refused(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(limits, "UNCHECKED_EXPANSION", 1 << 20)
    layout.image([bytes(2 << 20)], name="1")
    archive = tmp_path / "app.tgz"
    archive.write_bytes(gzip.compress(tar_of(items_of(layout))))
    call = getattr(ocistream, name)
    arguments = [archive, *([tmp_path / "out.tar"] if name == "copy" else [])]
    with pytest.raises(ocistream.ArchiveError, match="expands to more than 200 times"):
        call(*arguments)
    call(*arguments, max_ratio=2000)


# -- credentials and settings -----------------------------------------------------------------------------


def test_two_registries_have_separate_credentials_and_settings(
    tmp_path: Path, layout: Layout, certificate: Certificate
) -> None:
    with (
        FaultyRegistry(tmp_path / "from", auth=Basic("reader", "secret")) as source,
        FaultyRegistry(tmp_path / "to", auth=Basic("writer", "other"), tls=certificate) as destination,
    ):
        digest = seed(
            layout, small_image(layout, name="app"), source.host, "app", "1", headers=basic("reader", "secret")
        )
        credentials = {
            source.host: ocistream.Credential("reader", "secret"),
            destination.host: ocistream.Credential("writer", "other"),
        }
        arguments = f"{source.host}/app:1", f"{destination.host}/copy:1"
        settings = {destination.host: ocistream.RegistrySettings(tls=ocistream.TlsFiles(ca_cert=str(certificate.file)))}
        with ocistream.Client(credentials=credentials, registries=settings) as client:
            assert client.copy(*arguments).images[0].digest == digest

        def find(registry: str, repository: str) -> ocistream.Credential | None:
            asked.append((registry, repository))
            return credentials[registry]

        asked: list[tuple[str, str]] = []
        settings = {destination.host: ocistream.RegistrySettings(insecure=True)}
        with ocistream.Client(credentials=find, registries=settings) as client:
            client.copy(*arguments)
        assert set(asked) == {(source.host, "app"), (destination.host, "copy")}
        with (
            ocistream.Client(credentials={}, registries=settings, environment=isolated(tmp_path)) as client,
            pytest.raises(ocistream.AuthenticationError) as caught,
        ):
            client.copy(*arguments)
        assert caught.value.exit_code == 3
        trusting = isolated(tmp_path, SSL_CERT_FILE=str(certificate.file))
        with ocistream.Client(credentials=credentials, environment=trusting) as client:
            client.copy(*arguments)
        with (
            ocistream.Client(credentials=credentials, retries=0) as client,
            pytest.raises(ocistream.NetworkError, match="certificate"),
        ):
            client.copy(*arguments)


def test_credentials_are_found_through_the_environment(tmp_path: Path, layout: Layout) -> None:
    with FaultyRegistry(tmp_path / "served", auth=Basic("user", "secret")) as registry:
        headers = basic("user", "secret")
        digest = seed(layout, small_image(layout, name="app"), registry.host, "app", "1", headers=headers)
        image = f"{registry.host}/app:1"
        token = headers["Authorization"].removeprefix("Basic ")
        (tmp_path / AUTH).write_text(json.dumps({"auths": {registry.host: {"auth": token}}}))
        for variables in (
            {"REGISTRY_AUTH_FILE": str(tmp_path / AUTH)},
            {"OCISTREAM_USERNAME": "user", "OCISTREAM_PASSWORD": "secret"},
        ):
            with ocistream.Client(environment=isolated(tmp_path, **variables)) as client:
                assert client.copy(image, f"oci:{tmp_path}/out:app").images[0].digest == digest
        wrong = isolated(tmp_path, OCISTREAM_USERNAME="other", OCISTREAM_PASSWORD="wrong")
        with ocistream.Client(credentials=ocistream.Credential("user", "secret"), environment=wrong) as client:
            assert client.inspect(image)["images"][0]["digest"] == digest


def test_a_mirror_is_used_first_and_gets_no_credential_of_the_registry(tmp_path: Path, layout: Layout) -> None:
    with (
        FaultyRegistry(tmp_path / "origin", auth=Basic("user", "secret")) as origin,
        FaultyRegistry(tmp_path / "mirror") as mirror,
    ):
        headers = basic("user", "secret")
        digest = seed(layout, small_image(layout, name="app"), origin.host, "app", "1", headers=headers)
        seed(layout, small_image(layout, name="app"), mirror.host, "app", "1")
        config = tmp_path / "config.toml"
        config.write_text(f'[registry."{origin.host}"]\nmirrors = [{{ location = "{mirror.host}" }}]\n')
        given = ocistream.Credential("user", "secret")
        with ocistream.Client(credentials=given, config=config, environment=isolated(tmp_path)) as client:
            assert client.copy(f"{origin.host}/app:1", tmp_path / "app.tar").images[0].digest == digest
        assert mirror.asked("GET", BLOBS)
        assert not origin.asked("GET", BLOBS)
        assert all("Authorization" not in request.headers for request in mirror.requests)
        mirror.requests.clear()
        with ocistream.Client(credentials=given, config=config, mirrors=False) as client:
            client.inspect(f"{origin.host}/app:1")
        assert not mirror.requests


def test_a_registry_that_the_configuration_blocks_is_not_asked(
    tmp_path: Path, layout: Layout, served: FaultyRegistry
) -> None:
    small_image(layout, name="example.com/app:1")
    config = tmp_path / "registries.conf"
    config.write_text(f'[[registry]]\nlocation = "{served.host}"\nblocked = true\n')
    source = f"oci:{layout.path}"
    with ocistream.Client(environment=isolated(tmp_path, CONTAINERS_REGISTRIES_CONF=str(config))) as client:
        with pytest.raises(ocistream.AuthenticationError, match="is blocked"):
            client.copy(source, f"{served.host}/app:1")
        with pytest.raises(ocistream.AuthenticationError, match="is blocked"):
            client.copy(source, to=f"{served.host}/mirror")
    assert not served.requests


@pytest.mark.parametrize(
    "settings",
    [
        {"jobs": 0},
        {"memory": "1"},
        {"limit_rate": "fast"},
        {"upload": "slowly"},
        {"tls": ocistream.TlsFiles(client_key="key.pem")},
    ],
)
def test_settings_are_checked_immediately(settings: dict[str, object]) -> None:
    with pytest.raises(ocistream.UsageError) as caught:
        ocistream.Client(**settings)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_settings_reach_the_requests(tmp_path: Path, layout: Layout) -> None:
    with FaultyRegistry(tmp_path / "served", Fault(Reply(503), times=None)) as registry:
        for retries in (0, 1):
            registry.requests.clear()
            with ocistream.Client(retries=retries) as client, pytest.raises(ocistream.RegistryError) as caught:
                client.inspect(f"{registry.host}/app:1")
            assert caught.value.status == 503
            assert len(registry.asked("GET|HEAD", "/manifests/1")) == retries + 1
    del layout


# -- several calls, and their end ---------------------------------------------------------------------------


def test_a_registry_is_recognized_by_its_responses(layout: Layout, served: FaultyRegistry) -> None:
    small_image(layout, name="app")
    # This product accepts no blob in one PUT, so the client does not try that after the refusal.
    served.faults = [
        Fault(refusal(405), "PATCH", larger_than=0, times=None),
        Fault(Header("X-JFrog-Version", "7.1"), times=None),
    ]
    with pytest.raises(ocistream.OcistreamError, match="405"):
        ocistream.copy(str(layout.path), f"{served.host}/app:1")
    assert served.asked("PATCH")
    assert not any(request.received for request in served.asked("PUT"))


def test_one_client_serves_several_threads(tmp_path: Path, layout: Layout, served: FaultyRegistry) -> None:
    names = [f"app{number}" for number in range(8)]
    for name in names:
        seed(layout, layout.image([os.urandom(200_000)], name=name), served.host, name, "1")
    with ocistream.Client() as client, ThreadPoolExecutor(4) as pool:
        copies = [pool.submit(client.copy, f"{served.host}/{name}:1", tmp_path / f"{name}.tar") for name in names]
        failing = pool.submit(client.copy, f"{served.host}/nothing:1", tmp_path / "nothing.tar")
        written = [pool.submit(client.copy, f"{served.host}/{name}:1", f"oci:{tmp_path}/all:{name}") for name in names]
        assert isinstance(failing.exception(), ocistream.NotFoundError)
        for name, archived, added in zip(names, copies, written, strict=True):
            assert archived.result().images[0].digest == added.result().images[0].digest
            assert ocistream.verify(tmp_path / f"{name}.tar").ok
    assert len(ocistream.inspect(f"oci:{tmp_path}/all")["images"]) == len(names)


def test_a_copy_is_cancelled_from_another_thread_and_others_continue(
    tmp_path: Path, layout: Layout, served: FaultyRegistry
) -> None:
    seed(layout, layout.image([os.urandom(4_000_000)], name="app"), served.host, "app", "1")
    image = f"{served.host}/app:1"
    served.faults.append(Fault(Stall(after=1_000_000), "GET", BLOBS, times=None, skip=1))
    cancelled = threading.Event()

    class Stopper(Progress):
        """Cancels after some bytes, and lets the registry continue."""

        def advance(self, size: int, descriptor: ocistream.Descriptor | None = None) -> None:
            super().advance(size, descriptor)
            if self.moved > 100_000:
                cancelled.set()
                served.release()

    with ocistream.Client() as client:
        with pytest.raises(ocistream.CancelledError):
            client.copy(image, tmp_path / "app.tar", observer=Stopper(), cancelled=cancelled)
        assert not (tmp_path / "app.tar").exists()
        # A failure must not cancel other copies with the same event.
        unset = threading.Event()
        with pytest.raises(ocistream.NotFoundError):
            client.copy(f"{served.host}/nothing:1", tmp_path / "nothing.tar", cancelled=unset)
        assert not unset.is_set()
        served.faults.clear()
        client.copy(image, tmp_path / "app.tar", cancelled=unset)
        assert client.verify(tmp_path / "app.tar").ok
    with pytest.raises(ocistream.UsageError, match="closed"):
        client.inspect(image)


def test_a_copy_that_waits_for_a_registry_is_cancelled_alone(tmp_path: Path, layout: Layout) -> None:
    busy = Fault(Reply(503, {"Retry-After": "200"}), path="/app/manifests/", times=None, before_auth=True)
    with (
        FaultyRegistry(tmp_path / "served", busy, auth=Basic("user", "secret")) as registry,
        ThreadPoolExecutor() as pool,
    ):
        headers = basic("user", "secret")
        seed(layout, small_image(layout, name="app"), registry.host, "other", "1", headers=headers)
        cancelled = threading.Event()
        with ocistream.Client(credentials=ocistream.Credential("user", "secret")) as client:
            waiting = pool.submit(client.copy, f"{registry.host}/app:1", tmp_path / "app.tar", cancelled=cancelled)
            while not registry.asked(path="/app/manifests/"):
                time.sleep(0.01)
            cancelled.set()
            assert isinstance(waiting.exception(timeout=100), ocistream.CancelledError)
            assert client.copy(f"{registry.host}/other:1", tmp_path / "other.tar").images


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_a_script_is_raised_where_the_script_waits(
    tmp_path: Path, layout: Layout, served: FaultyRegistry
) -> None:
    seed(layout, layout.image([os.urandom(4_000_000)], name="app"), served.host, "app", "1")
    served.faults.append(Fault(Stall(after=1_000_000), "GET", BLOBS, times=None, skip=1))
    program = f"""
import ocistream

try:
    ocistream.copy("{served.host}/app:1", "{tmp_path}/app.tar")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE) as process:
        while not [request for request in served.requests if request.fault]:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"interrupted\n")
    assert not (tmp_path / "app.tar").exists()


def test_errors_have_the_exit_codes_and_hints_of_the_command(tmp_path: Path, served: FaultyRegistry) -> None:
    with pytest.raises(ocistream.NotFoundError) as caught:
        ocistream.copy(f"{served.host}/nothing:1", tmp_path / "x.tar")
    assert caught.value.exit_code == command("pull", f"{served.host}/nothing:1", "-o", str(tmp_path / "x.tar")).code
    with pytest.raises(ocistream.InvalidNameError) as malformed:
        ocistream.copy("UPPER:1", tmp_path / "x.tar")
    assert malformed.value.exit_code == 2
    assert malformed.value.message
    assert not list(tmp_path.glob("x.tar*"))


def test_a_copy_works_in_a_thread_of_an_async_program(tmp_path: Path, layout: Layout) -> None:
    small_image(layout, name="app")
    script = f"""
import asyncio, ocistream
async def main():
    with ocistream.Client() as client:
        await asyncio.gather(*(
            asyncio.to_thread(client.copy, "oci:{layout.path}:app", f"oci-archive:{tmp_path}/{{number}}.tar")
            for number in range(3)))
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-P", "-W", "error", "-c", script], check=True)
    assert len(list(tmp_path.glob("?.tar"))) == 3


class TestMistakes:
    @pytest.mark.parametrize("value", [None, 5, {}, [None]])
    def test_a_value_that_is_not_a_location_is_refused_and_stdin_is_not_read(
        self, value: object, tmp_path: Path
    ) -> None:
        target = tmp_path / "copied.tar"
        for call in (lambda: ocistream.copy(value, target), lambda: ocistream.verify(value)):  # type: ignore[arg-type]
            with pytest.raises(ocistream.UsageError, match="a location is text, a path"):
                call()
        assert not target.exists()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("connect_timeout", 0),
            ("stall_timeout", -1),
            ("stall_timeout", float("nan")),
            ("connect_timeout", "5"),
            ("max_requests_per_second", 0),
            ("jobs", 2.5),
            ("retries", "3"),
            ("retries", None),
            ("limit_rate", float("nan")),
            ("memory", True),
        ],
    )
    def test_a_setting_out_of_range_is_refused_immediately(self, name: str, value: object) -> None:
        with pytest.raises(ocistream.UsageError, match=name.replace("_", "-")):
            ocistream.Client(**{name: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize("function", ["copy", "verify", "inspect", "digest", "tags", "delete", "Client"])
    def test_an_argument_of_a_wrong_type_is_refused_by_its_name(
        self, function: str, layout: Layout, tmp_path: Path
    ) -> None:
        small_image(layout, name="app")
        location = f"oci:{layout.path}"
        first: dict[str, dict[str, object]] = {
            "copy": {"source": location, "destination": f"oci:{tmp_path}/copied"},
            "delete": {"images": "registry.test/app:1"},
            "Client": {},
        }
        call = getattr(ocistream, function)
        for name in inspect.signature(call).parameters:
            for value in (object(), [object()]):
                arguments = first.get(function, {"source": location}) | {name: value}
                if name == "to":
                    del arguments["destination"]
                with pytest.raises(ocistream.UsageError) as caught:
                    call(**arguments)
                known_as = "location" if name in {"source", "destination"} else name
                assert known_as in caught.value.message.replace("-", "_")
        assert not (tmp_path / "copied").exists()

    def test_text_does_not_switch_anything_on(self, layout: Layout, tmp_path: Path) -> None:
        with pytest.raises(ocistream.UsageError, match="`referrers` must be True or False, not str"):
            ocistream.copy(f"oci:{layout.path}", tmp_path / "a.tar", referrers="false")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("Credential", "secret"),
            ("Credential", "registry_token"),
            ("TlsFiles", "ca_cert"),
            ("RegistrySettings", "insecure"),
            ("RegistrySettings", "tls"),
        ],
    )
    def test_a_part_of_a_wrong_type_is_refused_and_not_shown(self, kind: str, name: str) -> None:
        required = {"username": "ada", "secret": "pw"} if kind == "Credential" else {}
        with pytest.raises(ocistream.UsageError) as caught:
            getattr(ocistream, kind)(**required | {name: [b"hunter2"]})
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("credential", ["ada:hunter2", {"registry.test": "hunter2"}, lambda *_: "hunter2"])
    def test_credentials_of_a_wrong_type_are_refused_and_not_shown(self, credential: object, tmp_path: Path) -> None:
        with (
            FaultyRegistry(tmp_path / "served", auth=Basic("ada", "hunter2")) as registry,
            pytest.raises(ocistream.UsageError, match="`credentials` must be") as caught,
            ocistream.Client(credentials=credential) as client,  # type: ignore[arg-type]
        ):
            client.digest(f"{registry.host}/app:1")
        assert "hunter2" not in str(caught.value)

    def test_a_setting_for_a_malformed_host_is_refused_because_it_would_have_no_effect(self) -> None:
        with pytest.raises(ocistream.InvalidNameError, match="malformed registry 'a host'"):
            ocistream.Client(registries={"a host": ocistream.RegistrySettings(plain_http=True)})

    @pytest.mark.parametrize(
        "parts",
        [
            ("../../v2/app", "1"),
            ("app", "../1"),
            ("app", "1?ns=other"),
            ("app/manifests/1?", "1"),
            ("APP", "1"),
            ("app", ""),
            ("app", None, "sha256:1"),
            ("app", None, 7),
        ],
    )
    def test_the_parts_of_a_reference_cannot_name_another_path(
        self, parts: tuple[Any, ...], layout: Layout, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        seed(layout, small_image(layout, name="app"), served.host, "app", "1")
        reference = ocistream.Reference(served.host, *parts)
        calls: list[Callable[[], object]] = [
            lambda: ocistream.copy(reference, tmp_path / "a.tar"),
            lambda: ocistream.copy(f"oci:{layout.path}", reference),
            lambda: ocistream.digest(reference),
            lambda: ocistream.delete(reference),
        ]
        for call in calls:
            with pytest.raises(ocistream.InvalidNameError):
                call()
        assert not served.requests

    @pytest.mark.parametrize("registry_host", ["user@localhost:5000", "localhost:5000/app", "localhost:5000#", ""])
    def test_the_host_of_a_reference_is_a_host(self, registry_host: str) -> None:
        with pytest.raises(ocistream.InvalidNameError, match="is not a registry host"):
            ocistream.digest(ocistream.Reference(registry_host, "app", "1"))

    def test_a_file_in_text_mode_and_a_closed_file_are_refused(self, layout: Layout) -> None:
        small_image(layout, name="app")
        closed = io.BytesIO()
        closed.close()
        with tempfile.NamedTemporaryFile("w+") as wrapped:
            wrapped.write("text")
            wrapped.seek(0)
            files = (
                (wrapped, "must (return|take) bytes"),
                (io.StringIO(), "binary file object"),
                (closed, "the file object is closed"),
            )
            for file, message in files:
                with pytest.raises(ocistream.UsageError, match=message):
                    ocistream.verify(file)  # type: ignore[arg-type]
                with pytest.raises(ocistream.UsageError, match=message):
                    ocistream.copy(f"oci:{layout.path}", file)  # type: ignore[arg-type]

    @pytest.mark.parametrize("text", ["https://ada:hunter2@registry.test/app:1", "ada:hunter2@registry.test/app:1"])
    def test_a_password_in_a_name_is_not_repeated(self, text: str) -> None:
        with pytest.raises(ocistream.InvalidNameError) as caught:
            ocistream.inspect(text)
        assert "hunter2" not in f"{caught.value} {caught.value.hint}"

    def test_two_formats_for_one_destination_are_refused(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="app")
        with pytest.raises(ocistream.UsageError, match="says what to write"):
            ocistream.copy(f"oci:{layout.path}", f"oci:{tmp_path}/copied", format="docker-archive")
        assert not (tmp_path / "copied").exists()

    def test_volumes_do_not_go_to_a_file_object(self, layout: Layout) -> None:
        small_image(layout, name="app")
        with pytest.raises(ocistream.UsageError, match="the file object is one stream"):
            ocistream.copy(f"oci:{layout.path}", io.BytesIO(), split="1MiB")

    def test_errors_can_be_pickled(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="app")
        found: list[ocistream.OcistreamError] = []
        for source, images in ((f"oci:{layout.path}", "nothing"), (f"oci:{tmp_path}/none", ()), ("no such name", ())):
            with pytest.raises(ocistream.OcistreamError) as caught:
                ocistream.copy(source, f"oci:{tmp_path}/copied", images=images)
            found.append(caught.value)
        found.append(ocistream.RegistryError("refused", status=418, codes=("TEAPOT",)))
        for error in found:
            again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
            assert type(again) is type(error)
            assert (str(again), again.hint, again.exit_code) == (str(error), error.hint, error.exit_code)
            assert vars(again).keys() == vars(error).keys()
