"""Start real peers: distribution's registry, nginx, Docker's daemon, and other image tools.

Each peer gets a free port or a socket of its own and keeps all its files in a folder of the test. If a peer is
missing, the test is skipped; with CI=true it fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.certificates import Certificate
from tests.token_server import TokenServer

#: Seconds until a peer must be ready: much more than any peer needs on a busy machine.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0

T = TypeVar("T")


def need(*programs: str, root: bool = False) -> None:
    """Skip the test (with CI=true: fail it) unless `programs` are in PATH and, with `root`, the user is root."""
    lacking = [f"{program} is not installed" for program in programs if shutil.which(program) is None]
    if root and os.geteuid() != 0:
        lacking.append("not root")
    if not lacking:
        return
    reason = f"{', '.join(lacking)} (see scripts/peers)"
    if os.environ.get("CI") == "true":
        pytest.fail(f"a real peer is missing: {reason}", pytrace=False)
    pytest.skip(reason)


@dataclasses.dataclass(frozen=True)
class DockerRegistry:
    """A running docker-registry (distribution 2.8). `root` is its storage, `log` its log file."""

    host: str
    url: str
    root: Path
    log: Path
    stop: Callable[[], None]
    authority: Path | None = None

    def repository(self, name: str) -> Path:
        """Return the storage folder of repository `name`."""
        return self.root / "docker/registry/v2/repositories" / name

    def repositories(self) -> list[str]:
        """Return the repositories in the storage, including those with only an upload."""
        top = self.repository("")
        known = {path.parent for path in top.glob("**/*") if path.name in {"_layers", "_manifests", "_uploads"}}
        return sorted(str(path.relative_to(top)) for path in known)

    def tags(self, name: str) -> dict[str, str]:
        """Return the tags of repository `name` with their digests, read from the storage."""
        links = self.repository(name).glob("_manifests/tags/*/current/link")
        return {link.parent.parent.name: link.read_text() for link in sorted(links)}

    def manifests(self, name: str) -> set[str]:
        """Return the digests of all manifests of repository `name`, read from the storage."""
        return _linked(self.repository(name) / "_manifests/revisions")

    def blobs(self, name: str) -> set[str]:
        """Return the digests of all blobs that repository `name` may serve, read from the storage."""
        return _linked(self.repository(name) / "_layers")

    def uploads(self, name: str) -> list[str]:
        """Return the upload sessions of repository `name` that were neither completed nor deleted.

        A deleted session leaves an empty folder; the file `startedat` makes it a session for the registry.
        """
        return sorted(path.parent.name for path in self.repository(name).glob("_uploads/*/startedat"))

    def requests(self) -> list[str]:
        """Return every request so far as "METHOD TARGET STATUS", from the access log."""
        pattern = re.compile(r'"([A-Z]+) (\S+) HTTP/[0-9.]+" (\d{3}) ')
        return [" ".join(found.groups()) for found in pattern.finditer(self.log.read_text())]


def _linked(folder: Path) -> set[str]:
    return {f"{link.parent.parent.name}:{link.parent.name}" for link in folder.glob("*/*/link")}


@contextlib.contextmanager
def docker_registry(
    folder: Path,
    *,
    auth: Mapping[str, str] | TokenServer | None = None,
    tls: Certificate | None = None,
    settings: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
    address: str = "127.0.0.1:0",
) -> Iterator[DockerRegistry]:
    """Run a docker-registry on `folder`, with filesystem storage and deletion enabled.

    `auth` is None for an open registry, {user: password} for htpasswd, or a token server for its clients.
    `settings` are further environment variables of distribution, such as REGISTRY_HTTP_RELATIVEURLS. `within` is the
    start of a command line that runs it elsewhere, such as the one of `namespace`, where it may use a fixed `address`.
    """
    need("docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    root, log = folder / "storage", folder / "log"
    root.mkdir(exist_ok=True)
    config = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(root)}, "delete": {"enabled": True}},
        "http": {"addr": address, **_tls(tls)},
        **_auth(folder, auth),
    }
    file = folder / "config.yml"
    # JSON is YAML.
    file.write_text(json.dumps(config))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*within, "docker-registry", "serve", str(file)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(settings or {})},
        )
    try:
        host = _wait(lambda: _listening(log), process, log)
        url = f"{'https' if tls else 'http'}://{host}"
        yield DockerRegistry(host, url, root, log, lambda: _end(process), tls.file if tls else None)
    finally:
        _end(process)


def _tls(certificate: Certificate | None) -> dict[str, object]:
    if certificate is None:
        return {}
    return {"tls": {"certificate": str(certificate.file), "key": str(certificate.key_file)}}


def _auth(folder: Path, auth: Mapping[str, str] | TokenServer | None) -> dict[str, object]:
    if auth is None:
        return {}
    if isinstance(auth, TokenServer):
        return {
            "auth": {
                "token": {
                    "realm": auth.realm,
                    "service": auth.service,
                    "issuer": auth.issuer,
                    "rootcertbundle": str(auth.certificate.file),
                }
            }
        }
    need("htpasswd")
    file = folder / "htpasswd"
    lines = [
        # distribution accepts only bcrypt; 4 is its lowest and fastest cost.
        subprocess.run(
            ["htpasswd", "-niB", "-C", "4", user], input=password.encode(), capture_output=True, check=True
        ).stdout
        for user, password in auth.items()
    ]
    file.write_bytes(b"".join(lines))
    return {"auth": {"htpasswd": {"realm": "registry.test", "path": str(file)}}}


def _listening(log: Path) -> str | None:
    """Read the address from the log: the kernel chooses the port, so that no two peers use the same."""
    found = re.search(r"listening on ([0-9.]+:\d+)", log.read_text())
    return found[1] if found else None


@contextlib.contextmanager
def namespace(name: str) -> Iterator[list[str]]:
    """Make a network namespace with only a loopback interface; yield the start of a command line that runs in it."""
    need("ip", root=True)
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        inside = ["ip", "netns", "exec", name]
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextlib.contextmanager
def ssh_server(
    folder: Path,
    *,
    name: str = "far",
    env: Mapping[str, str] | None = None,
    program: Path | None = None,
    within: Sequence[str] = (),
) -> Iterator[list[str]]:
    """Run OpenSSH's server on loopback, with its own keys; yield the start of a command line that runs on it.

    The client calls it `name`. Commands on it also have the variables of `env`. `program` runs each command, and finds
    it in SSH_ORIGINAL_COMMAND. `within` is as for `docker_registry`.
    """
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    need("ssh", "ssh-keygen", sshd or "sshd", root=True)
    folder.mkdir(parents=True, exist_ok=True)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    # sshd's privilege separation directory: only its service creates it.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "yes",
    }
    if program is not None:
        settings["ForceCommand"] = program
    lines = [f"{key} {value}" for key, value in settings.items()]
    # sshd uses only the first of several SetEnv lines.
    lines += ["SetEnv " + " ".join(f'"{key}={value}"' for key, value in (env or {}).items())] if env else []
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    client = {
        "HostName": "127.0.0.1",
        "Port": port,
        "IdentityFile": folder / "user",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": folder / "known_hosts",
        "StrictHostKeyChecking": "accept-new",
        "BatchMode": "yes",
        # The default takes a tenth of a second.
        "KexAlgorithms": "curve25519-sha256",
    }
    lines = [f"Host {name}", *(f"{key} {value}" for key, value in client.items())]
    (folder / "ssh_config").write_text("\n".join(lines) + "\n")
    log = folder / "log"
    with log.open("wb") as output:
        line = [*within, str(sshd), "-D", "-e", "-f", str(folder / "sshd_config")]
        process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        _wait(lambda: "Server listening" in log.read_text(), process, log)
        yield ["ssh", "-F", str(folder / "ssh_config"), name]
    finally:
        _end(process)


@dataclasses.dataclass(frozen=True)
class Nginx:
    """A running nginx. `log` is its access log, one JSON object a line; `errors` is its error log."""

    host: str
    url: str
    log: Path
    errors: Path
    stop: Callable[[], None]

    def entries(self) -> list[dict[str, Any]]:
        """Return every finished request: `method`, `target`, `status`, `authorization`, `length` and `body`.

        All values are text. `length` is the request's Content-Length, `body` the size of the response's body. nginx
        logs a request after it has sent the response, so a client may see the end before the log does: `stop` first.
        """
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def requests(self) -> list[str]:
        """Return `entries` as "METHOD TARGET STATUS"."""
        return [f"{entry['method']} {entry['target']} {entry['status']}" for entry in self.entries()]


@contextlib.contextmanager
def nginx(
    folder: Path,
    server: str,
    *,
    http: str = "",
    tls: Certificate | None = None,
    client_authority: Path | None = None,
    name: str = "127.0.0.1",
) -> Iterator[Nginx]:
    """Run an nginx on a free port of 127.0.0.1, with all its files in `folder`.

    `server` is the content of its only server {} block, `http` what is beside that block. `tls` enables TLS, and
    `client_authority` (a PEM file) then requires a certificate from clients. `name` is what `Nginx.host` calls this
    machine. Request and response bodies are not buffered.
    """
    need("nginx")
    folder.mkdir(parents=True, exist_ok=True)
    log, errors, file = folder / "access.log", folder / "errors.log", folder / "nginx.conf"
    log.touch()
    # nginx does not report the port that the kernel chose, so it inherits this socket, as in an upgrade.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        file.write_text(_nginx_config(folder, port, server, http, _nginx_tls(tls, client_authority)))
        with errors.open("wb") as output:
            process = subprocess.Popen(
                ["nginx", "-p", f"{folder}/", "-c", str(file), "-e", "stderr"],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "NGINX": f"{listener.fileno()};"},
                pass_fds=[listener.fileno()],
            )
    try:
        _wait((folder / "nginx.pid").exists, process, errors)
        yield Nginx(
            f"{name}:{port}", f"{'https' if tls else 'http'}://{name}:{port}", log, errors, lambda: _end(process)
        )
    finally:
        _end(process)


def _nginx_tls(certificate: Certificate | None, client_authority: Path | None) -> str:
    if certificate is None:
        return ""
    lines = f"ssl_certificate {certificate.file};\nssl_certificate_key {certificate.key_file};\n"
    if client_authority is not None:
        lines += f"ssl_client_certificate {client_authority};\nssl_verify_client on;\n"
    return lines


def _nginx_config(folder: Path, port: int, server: str, http: str, tls: str) -> str:
    # As root its workers would run as "nobody", which cannot read a test's folder.
    user = "user root;" if os.geteuid() == 0 else ""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "\n".join(f"{kind}_temp_path {folder / kind};" for kind in kinds)
    noted = {
        "method": "$request_method",
        "target": "$request_uri",
        "status": "$status",
        "authorization": "$http_authorization",
        "length": "$http_content_length",
        "body": "$body_bytes_sent",
    }
    return f"""daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
log_format entries escape=json '{json.dumps(noted)}';
access_log {folder}/access.log entries;
{folders}
client_max_body_size 0;
proxy_request_buffering off;
proxy_buffering off;
proxy_http_version 1.1;
proxy_read_timeout 600s;
proxy_set_header Host $http_host;
proxy_set_header X-Forwarded-Proto $scheme;
{http}
server {{
listen 127.0.0.1:{port}{" ssl" if tls else ""};
{tls}{server}
}}
}}
"""


@dataclasses.dataclass(frozen=True)
class Dockerd:
    """A running Docker daemon with its own state. `host` is the DOCKER_HOST of its socket."""

    host: str
    log: Path
    config: Path

    def docker(
        self, *arguments: str | Path, stdin: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run Docker's client against this daemon, with a file as `stdin`; output is captured as text."""
        command = ["docker", "--host", self.host, "--config", self.config, *arguments]
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
            done = subprocess.run(command, stdin=source, capture_output=True, text=True, check=False)
        if check and done.returncode:
            pytest.fail(f"docker {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr}")
        return done


@contextlib.contextmanager
def dockerd(folder: Path, *, within: Sequence[str] = ()) -> Iterator[Dockerd]:
    """Run Docker's daemon as root, with all its state in `folder` and no network of its own.

    It starts its own containerd, and uses plain HTTP for registries on 127.0.0.0/8. `within` is as for
    `docker_registry`.
    """
    need("dockerd", "docker", "containerd", "runc", root=True)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    # A socket's path has at most 107 bytes (unix(7)); a test's folder may be longer than that.
    with tempfile.TemporaryDirectory(prefix="dockerd-") as short:
        host = f"unix://{short}/docker.sock"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *within,
                    "dockerd",
                    f"--host={host}",
                    f"--data-root={folder / 'data'}",
                    f"--exec-root={short}/exec",
                    f"--pidfile={short}/pid",
                    "--bridge=none",
                    "--iptables=false",
                    "--ip-masq=false",
                    "--storage-driver=vfs",
                    "--insecure-registry=127.0.0.0/8",
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        try:
            daemon = Dockerd(host, log, folder / "config")
            _wait(lambda: daemon.docker("version", check=False).returncode == 0, process, log)
            yield daemon
            containers = daemon.docker("ps", "--quiet").stdout.split()
            if containers:
                daemon.docker("kill", *containers)
        finally:
            _end(process)
            _unmount(folder, Path(short))


@dataclasses.dataclass(frozen=True)
class Containerd:
    """A running containerd with its own state; only the namespace "default" is used."""

    socket: Path

    def ctr(self, *arguments: str | Path) -> str:
        """Run containerd's own client against this daemon and return its stdout."""
        command = ["ctr", "--address", self.socket, *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"ctr {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr}")
        return done.stdout


@contextlib.contextmanager
def containerd(folder: Path) -> Iterator[Containerd]:
    """Run containerd as root, with all its state in `folder`; its "native" snapshotter works everywhere."""
    need("containerd", "ctr", root=True)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with tempfile.TemporaryDirectory(prefix="containerd-") as short:
        socket = Path(short) / "grpc"
        file = folder / "config.toml"
        file.write_text(
            f"version = 2\nroot = {json.dumps(str(folder / 'root'))}\nstate = {json.dumps(f'{short}/state')}\n"
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f"[grpc]\naddress = {json.dumps(str(socket))}\n[ttrpc]\naddress = {json.dumps(f'{short}/ttrpc')}\n"
        )
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["containerd", "--config", str(file)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        try:
            daemon = Containerd(socket)
            version = ["ctr", "--address", str(socket), "version"]
            _wait(lambda: subprocess.run(version, capture_output=True, check=False).returncode == 0, process, log)
            yield daemon
        finally:
            _end(process)
            _unmount(folder, Path(short))


def _unmount(*folders: Path) -> None:
    """Unmount the mounts that a daemon left below `folders`, innermost first."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if any(Path(mount).is_relative_to(folder) for folder in folders):
            subprocess.run(["umount", "--lazy", mount], check=False)


@dataclasses.dataclass(frozen=True)
class Tools:
    """Other image tools, each with its storage and configuration below one folder."""

    folder: Path
    runroot: Path

    def __call__(self, name: str) -> list[str]:
        """Return the start of a command line for skopeo, umoci, podman or buildah.

        Images need no signature, and registries on 127.0.0.1 use plain HTTP.
        """
        need("env", name)
        storage = [
            f"--root={self.folder / 'storage'}",
            f"--runroot={self.runroot}",
            "--storage-driver=vfs",
        ]
        options = {
            "skopeo": [],
            "umoci": [],
            # cgroupfs needs no systemd, and events in a file need no journal.
            "podman": [*storage, "--cgroup-manager=cgroupfs", "--events-backend=file"],
            "buildah": storage,
        }[name]
        if name in {"podman", "buildah"}:
            need(name, root=True)
        return [*self._environment(), name, *options]

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `command`, which starts with the tool's name, and capture its output as text."""
        name, *arguments = command
        done = subprocess.run(
            [*self(str(name)), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def _environment(self) -> Sequence[str]:
        """Return a prefix that sets HOME: these tools look below HOME before /etc, so one HOME isolates them all."""
        home = self.folder / "home"
        configuration = home / ".config/containers"
        if not configuration.exists():
            configuration.mkdir(parents=True)
            (configuration / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
            (configuration / "registries.conf").write_text(
                'unqualified-search-registries = []\n[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n'
            )
            (self.folder / "runtime").mkdir(mode=0o700)
        return [
            "env",
            f"HOME={home}",
            f"XDG_RUNTIME_DIR={self.folder / 'runtime'}",
            f"TMPDIR={self.folder}",
            "BUILDAH_ISOLATION=chroot",
        ]


@contextlib.contextmanager
def isolated_tools(folder: Path) -> Iterator[Tools]:
    """Keep the tools' storage and configuration in `folder` while the block runs."""
    # Podman refuses a runroot of more than 50 characters; a test's folder may be longer.
    with tempfile.TemporaryDirectory(prefix="run-") as runroot:
        yield Tools(folder, Path(runroot))


def _wait(ready: Callable[[], T | None], process: subprocess.Popen[bytes], log: Path) -> T:
    """Call `ready` until it returns a true value; fail when the process has ended or the time is over."""
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        answer = ready()
        if answer:
            return answer
        time.sleep(0.02)
    pytest.fail(f"{process.args!r} did not become ready:\n{log.read_text()[-4000:]}", pytrace=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a peer with SIGTERM, and after a timeout with SIGKILL."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
