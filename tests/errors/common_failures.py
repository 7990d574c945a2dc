"""The table of the most common failures: how each is caused, and the two lines of its message.

In `says` and `do` a word in capitals stands for any word, and `…` for any text.
"""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.archives import tar_of
from tests.certificates import Certificate
from tests.cli.proxy import tunnelling_to
from tests.cli.terminal import on_terminal
from tests.faulty_auth import Basic
from tests.faulty_registry import Fault, FaultyRegistry, Reply, refusal, too_many_requests
from tests.http_doubles import unused_port
from tests.images import Descriptor, Layout
from tests.registry_http import seed
from tests.runner import Argument, Result, ocistream

MIB: Final = 1 << 20
_HERE: Final = Path(__file__).parent
#: A key that signed no image of the tests.
PUBLIC_KEY: Final = """\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEKdOzFHGCK0LYX8uUURcC98ees4eE
qLuSxi7ugrk08V+8otcMC4l448WcwpYDP1f1+PwGz3pvOf9J210ewqZrJw==
-----END PUBLIC KEY-----
"""
_FAILING: Final = _HERE.parent / "cli" / "local_faults" / "faulty_machine"
_ANY: Final = {"…": ".*", "HOST": r"\S+", "IMAGE": r"\S+", "FILE": r".+", "DIR": r".+", "DIGEST": r"\S+"}


@dataclasses.dataclass(frozen=True)
class Place:
    """The surroundings of a failure: a registry with an image as app:1, and the same image in a layout and a file."""

    start: Callable[..., FaultyRegistry]
    registry: FaultyRegistry
    layout: Layout
    image: Descriptor
    file: Path
    folder: Path
    certificate: Certificate

    @property
    def app(self) -> str:
        """The image's name."""
        return f"{self.registry.host}/app:1"

    @property
    def out(self) -> Path:
        """A file to write to."""
        return self.folder / "out.tar"

    def made(self, name: str, content: bytes) -> Path:
        """Create a file."""
        path = self.folder / name
        path.write_bytes(content)
        return path


def _pull(place: Place, image: str, *options: Argument, **env: str) -> Result:
    return ocistream("pull", image, "-o", place.out, "--retries=0", *options, env=env, names={"registry.test": None})


def _push(place: Place, path: Path | None, *faults: Fault, stdin: bytes | None = None) -> Result:
    given: list[Argument] = [] if path is None else ["-i", path]
    return ocistream("push", *given, f"{place.start(*faults).host}/new:1", "--retries=0", "-q", stdin=stdin)


def _pull_from(place: Place, action: Reply) -> Result:
    return _pull(place, f"{place.start(Fault(action, 'GET|HEAD', times=None)).host}/app:1")


# -- causes -------------------------------------------------------------------------------------------------


def _not_logged_in(place: Place) -> Result:
    return _pull(place, f"{place.start(auth=Basic('me', 'hunter2')).host}/app:1")


def _wrong_password(place: Place) -> Result:
    host = place.start(auth=Basic("me", "hunter2")).host
    return _pull(place, f"{host}/app:1", OCISTREAM_USERNAME="me", OCISTREAM_PASSWORD="hunter2-wrong")


def _no_right_to_push(place: Place) -> Result:
    denied = refusal(403, "DENIED", "requested access to the resource is denied")
    return _push(place, place.file, Fault(denied, "POST", times=None))


def _no_such_tag(place: Place) -> Result:
    for tag in ("1.24", "1.25", "latest", "1.25-alpine"):
        seed(place.layout, place.image, place.registry.host, "app", tag)
    return _pull(place, f"{place.registry.host}/app:1.25-alpin")


def _no_such_repository(place: Place) -> Result:
    return _pull(place, f"{place.registry.host}/ap:1")


def _no_such_platform(place: Place) -> Result:
    manifests = [
        {**place.layout.image([name.encode()]), "platform": {"os": "linux", "architecture": name}}
        for name in ("amd64", "arm64")
    ]
    seed(place.layout, place.layout.index(manifests), place.registry.host, "multi", "1")
    return _pull(place, f"{place.registry.host}/multi:1", "--platform=linux/s390x")


def _no_such_host(place: Place) -> Result:
    return _pull(place, "registri.test/app:1")


def _refused_connection(place: Place) -> Result:
    return _pull(place, f"127.0.0.1:{unused_port()}/app:1")


def _self_signed(place: Place) -> Result:
    port = place.start(tls=place.certificate).host.rpartition(":")[2]
    return _pull(place, f"registry.test:{port}/app:1")


def _not_yet_valid(place: Place) -> Result:
    return _dated(place, (1, 2))


def _expired(place: Place) -> Result:
    return _dated(place, (-2, -1))


def _dated(place: Place, days: tuple[int, int]) -> Result:
    issued = place.certificate.issue(place.folder, days=days)
    port = place.start(tls=issued).host.rpartition(":")[2]
    return _pull(place, f"registry.test:{port}/app:1", "--ca-cert", place.certificate.file)


def _other_name(place: Place) -> Result:
    issued = place.certificate.issue(place.folder, names=("other.test",))
    port = place.start(tls=issued).host.rpartition(":")[2]
    return _pull(place, f"registry.test:{port}/app:1", "--ca-cert", place.certificate.file)


def _plain_http(place: Place) -> Result:
    port = place.registry.host.rpartition(":")[2]
    return _pull(place, f"registry.test:{port}/app:1")


def _proxy_is_not_there(place: Place) -> Result:
    return _pull(place, "registry.test/app:1", HTTPS_PROXY=f"http://me:hunter2@127.0.0.1:{unused_port()}")


def _proxy_wants_a_password(place: Place) -> Result:
    with tunnelling_to(place.registry.host, password="me:hunter2") as proxy:
        return _pull(place, "registry.test/app:1", HTTPS_PROXY=proxy.url)


def _rate_limited(place: Place) -> Result:
    return _pull_from(place, too_many_requests(3600))


def _down(place: Place) -> Result:
    return _pull_from(place, Reply(503, {}, b"<html>upstream"))


def _too_large_for_a_proxy(place: Place) -> Result:
    too_large = Reply(413, {}, b"<html>413 Request Entity Too Large")
    return _push(place, place.file, Fault(too_large, "PUT|PATCH", times=None))


def _disk_full(place: Place) -> Result:
    plan = json.dumps({"at": "write", "after": MIB, "errno": errno.ENOSPC})
    return ocistream("pull", place.app, "-o", place.out, env={"OCISTREAM_TEST_MACHINE": plan}, machine=_FAILING)


def _no_permission(place: Place) -> Result:
    place.folder.chmod(0o555)
    try:
        return ocistream("pull", place.app, "-o", place.out, unprivileged=True)
    finally:
        place.folder.chmod(0o755)


def _no_folder(place: Place) -> Result:
    return ocistream("pull", place.app, "-o", place.folder / "missing" / "app.tar")


def _no_file(place: Place) -> Result:
    return _push(place, place.folder / "missing.tar")


def _no_archive(place: Place) -> Result:
    return _push(place, place.made("app.tar", b"<!DOCTYPE html><html>" * 100))


def _source_code(place: Place) -> Result:
    return _push(place, place.made("app.tgz", gzip.compress(tar_of([("README", b"hello"), ("src/main.c", b"int")]))))


def _cut(place: Place) -> Result:
    content = place.file.read_bytes()
    return _push(place, place.made("cut.tar", content[: len(content) // 2]))


def _nothing_on_stdin(place: Place) -> Result:
    return _push(place, None, stdin=b"")


def _altered(place: Place) -> Result:
    content = bytearray(place.file.read_bytes())
    content[len(content) // 2] ^= 1
    return _push(place, place.made("altered.tar", bytes(content)))


def _to_a_terminal(place: Place) -> Result:
    return _on_terminal("pull", place.app)


def _from_a_terminal(place: Place) -> Result:
    return _on_terminal("push", f"{place.registry.host}/new:1")


def _on_terminal(*argv: str) -> Result:
    seen = on_terminal(*argv)
    return Result(argv, seen.code, b"", seen.screen.replace("\r\n", "\n"))


def _several_images(place: Place) -> Result:
    place.layout.image([b"another"], name="other")
    return _push(place, place.layout.path)


def _upper_case(place: Place) -> Result:
    return _pull(place, f"{place.registry.host}/App:1")


def _file_for_an_image(place: Place) -> Result:
    return _pull(place, str(place.file))


def _malformed_platform(place: Place) -> Result:
    return _pull(place, place.app, "--platform=amd64")


def _no_deletion(place: Place) -> Result:
    place.registry.faults.append(Fault(refusal(405, "UNSUPPORTED"), "DELETE", times=None))
    return ocistream("rm", place.app)


def _read_only(place: Place) -> Result:
    place.registry.faults.append(Fault(refusal(405), "POST", times=None))
    return ocistream("push", "-i", place.layout.path, f"{place.registry.host}/new:1")


def _old_manifest(place: Place) -> Result:
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    return _pull_from(place, Reply(200, {"Content-Type": kind}, b'{"schemaVersion": 1, "name": "app", "tag": "1"}'))


def _no_helper(place: Place) -> Result:
    config = place.folder / "docker"
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"credsStore": "desktop"}))
    host = place.start(auth=Basic("me", "hunter2")).host
    return _pull(place, f"{host}/app:1", DOCKER_CONFIG=str(config))


def _lost_blob(place: Place) -> Result:
    layer = place.layout.read(place.image["digest"])["layers"][0]["digest"]
    place.registry.layout.delete_blob(layer)
    return _pull(place, place.app)


def _unsigned(place: Place) -> Result:
    key = place.made("cosign.pub", PUBLIC_KEY.encode())
    return _pull(place, place.app, "--require-signature", key)


@dataclasses.dataclass(frozen=True)
class Failure:
    """One failure: its name, the exit code, the two lines of the message, and the function that causes it."""

    what: str
    code: int
    says: str
    do: str
    happens: Callable[[Place], Result]

    @property
    def pattern(self) -> str:
        """The pattern of both lines."""
        return rf"ocistream: error: {_pattern(self.says)}\n  {_pattern(self.do)}\n"

    @property
    def row(self) -> str:
        """Return the row of this failure in docs/errors.md."""
        says, do = (text.replace("|", "\\|") for text in (self.says, self.do))
        return f"| {self.what} | {self.code} | {says} | {do} |"


def _pattern(text: str) -> str:
    words = "|".join(_ANY)
    return "".join(_ANY.get(piece, re.escape(piece)) for piece in re.split(rf"({words})", text))


#: The secrets in these tests, which no message may contain.
SECRETS: Final = ("hunter2",)

FAILURES: Final = [
    Failure("not logged in", 3, "HOST requires a user name and password, but none were found",
            "ocistream login HOST", _not_logged_in),
    Failure("a wrong password", 3, "HOST refused the credentials from …",
            "check the user name and password from …: they take precedence over `ocistream login HOST`",
            _wrong_password),
    Failure("no right to push", 3, "HOST refused: POST …: 403 DENIED: …",
            "check the name and your permissions; `ocistream login HOST` stores a credential", _no_right_to_push),
    Failure("a credential helper that is not installed", 3,
            "credential helper docker-credential-… failed: it is not in PATH",
            "install or repair the helper, or remove it from FILE", _no_helper),
    Failure("a typo in a tag", 4, "IMAGE not found (…)",
            "did you mean …? `ocistream inspect IMAGE` lists its tags", _no_such_tag),
    Failure("a typo in a repository", 4, "IMAGE not found (…)",
            "the repository does not exist, or you have no permission to pull it: check the name, or log in",
            _no_such_repository),
    Failure("no such platform", 4, "IMAGE has no platform …",
            "its platforms are: …; choose one with --platform, or all", _no_such_platform),
    Failure("a layer that the registry has lost", 4, "GET …: 404 …",
            "the registry has lost this blob: push the image again, or contact the administrator of the registry",
            _lost_blob),
    Failure("a missing file", 4, "cannot read FILE: no such file or directory",
            "check the path; relative paths start at the current directory", _no_file),
    Failure("a missing directory", 4, "cannot write FILE: no such file or directory",
            "check the path, or create the directory with mkdir -p", _no_folder),
    Failure("an unknown host name", 7, "GET …: the host name cannot be resolved: …",
            "check the host name, and the network of this machine", _no_such_host),
    Failure("nothing listens on the port", 7, "GET …: connection refused",
            "check that the registry runs there, and its port", _refused_connection),
    Failure("a self-signed certificate, or a private CA", 7,
            "GET …: the certificate is not trusted: self-signed certificate",
            "if the registry has its own CA, use --ca-cert FILE, copy it to "
            "~/.config/containers/certs.d/HOST[:PORT]/ca.crt, or set SSL_CERT_FILE to a file with all CAs to trust",
            _self_signed),
    Failure("a clock that is wrong", 7, "GET …: the certificate is not trusted: certificate is not yet valid",
            "the certificate is not valid yet: check the clock of this machine", _not_yet_valid),
    Failure("a certificate that has expired", 7, "GET …: the certificate is not trusted: certificate has expired",
            "the administrator of the registry must renew it; also check the clock of this machine", _expired),
    Failure("a certificate for another name", 7, "GET …: the certificate is not trusted: Hostname mismatch, …",
            "use the host name of the certificate, or get a certificate for this name", _other_name),
    Failure("a registry that speaks plain HTTP", 7, "GET …: TLS failed: the server does not speak TLS",
            "the registry seems to use plain HTTP: use --plain-http", _plain_http),
    Failure("a missing proxy", 7, "GET …: cannot connect to the proxy: connection refused",
            "check the proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or exclude this host with NO_PROXY",
            _proxy_is_not_there),
    Failure("a proxy that requires a password", 7, "GET …: … 407 Proxy Authentication Required",
            "add the user and password of the proxy: HTTPS_PROXY=http://USER:PASSWORD@…", _proxy_wants_a_password),
    Failure("a rate limit", 7, "GET …: 429 TOOMANYREQUESTS…",
            "the registry limits requests: wait …, or log in for a higher limit", _rate_limited),
    Failure("a registry that is down", 7, "GET …: 503",
            "the registry has problems: try again later; --retries sets the number of retries", _down),
    Failure("a proxy that limits the size of requests", 7, "… …: 413",
            "… (nginx: client_max_body_size): raise the limit, or use smaller requests with --upload chunk=SIZE…",
            _too_large_for_a_proxy),
    Failure("a full disk", 9, "cannot write FILE: No space left on device",
            "free some space and re-run the command…", _disk_full),
    Failure("no permission to write", 9, "cannot write FILE: Permission denied",
            "check the permissions of this path and of its directories", _no_permission),
    Failure("a file that is not an archive", 6, "no tar header at byte 0 of FILE: …",
            "this looks like HTML: use an archive from `ocistream pull`, `docker save` or skopeo",
            _no_archive),
    Failure("an archive of something else", 6,
            "FILE is not an image archive: it has neither an index.json nor a manifest.json",
            "use an archive from `ocistream pull`, `docker save`, skopeo or podman", _source_code),
    Failure("a truncated archive", 6, "FILE is truncated: it ends at byte …",
            "the program that wrote it failed or was interrupted: pull or copy it again", _cut),
    Failure("nothing on stdin", 6, "the archive on stdin is empty",
            "name the archive, or check why the program that writes it failed (in a shell, use "
            "`set -o pipefail`)",
            _nothing_on_stdin),
    Failure("a damaged archive", 5, "FILE: digest mismatch: expected DIGEST, got DIGEST",
            "it is damaged, or changed during the run: check it with `ocistream verify FILE`", _altered),
    Failure("an image without a required signature", 5, "IMAGE (DIGEST): no valid signature: it has no signature",
            "sign this digest, or, if its index is signed, copy all platforms (--platform all)", _unsigned),
    Failure("no `-o`, and no pipe", 2, "stdout is a terminal: archives are not written to terminals",
            "name an output file (`pull -o FILE`), or pipe the archive: `... | ssh host ...`",
            _to_a_terminal),
    Failure("no `-i`, and no pipe", 2, "an archive is expected on stdin, which is a terminal",
            "pipe an archive into stdin, or name a file or directory (`push -i PATH`)", _from_a_terminal),
    Failure("an archive of several images, pushed to one name", 2, "FILE has … images",
            "choose one with --image: …", _several_images),
    Failure("a malformed name", 2, "malformed image name …: … is not a repository",
            "repository names are lower case", _upper_case),
    Failure("a file where an image belongs", 2, "FILE is a path, not the name of an image in a registry",
            "pull reads from registries; use -o PATH for the output file; `ocistream copy SRC DST` also reads files",
            _file_for_an_image),
    Failure("a malformed platform", 2, "malformed platform …",
            "write OS/ARCHITECTURE[/VARIANT], such as linux/amd64, or all", _malformed_platform),
    Failure("a Docker schema 1 image", 8,
            "manifest DIGEST is a Docker schema 1 manifest, which is not supported",
            "rebuild the image or push it again with a current version of Docker", _old_manifest),
    Failure("a registry that deletes no tags", 8, "HOST does not delete the tag IMAGE (DELETE …)",
            "--by-digest deletes its manifest instead, with all tags of that manifest, unless the registry is "
            "read-only, or its deletion is disabled: ask its operator (distribution, registry:2: "
            "REGISTRY_STORAGE_DELETE_ENABLED=true)", _no_deletion),
    Failure("a read-only registry", 8, "HOST does not accept pushes (…)",
            "it is read-only, or not a registry: push to another registry, or ask its operator", _read_only),
]  # fmt: skip
