"""Network options on the command line: certificates from files and folders, proxies, host names, limits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.certificates import Certificate, make_certificate
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.proxy import NO_PROXIES, tunnelling_to
from tests.faulty_auth import Basic
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout
from tests.runner import Result, measured, ocistream

pytestmark = pytest.mark.usefixtures("image")


@dataclasses.dataclass(frozen=True)
class Ids:
    """An unknown certificate authority, and its certificates for a registry and for a client."""

    authority: Certificate
    server: Certificate
    client: Certificate

    @property
    def ca(self) -> str:
        return f"--ca-cert={self.authority.file}"

    @property
    def shown(self) -> list[str]:
        return [f"--client-cert={self.client.file}", f"--client-key={self.client.key_file}"]

    def folder(self, path: Path, *, client: bool = True) -> Path:
        """Make a folder like those in `certs.d`."""
        path.mkdir(parents=True)
        (path / "ca.crt").write_bytes(self.authority.file.read_bytes())
        if client:
            (path / "client.cert").write_bytes(self.client.file.read_bytes())
            (path / "client.key").write_bytes(self.client.key_file.read_bytes())
        return path


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Ids:
    folder = tmp_path_factory.mktemp("ids")
    authority = make_certificate(folder / "authority", "an authority")
    return Ids(authority, authority.issue(folder / "server"), authority.issue(folder / "client", common_name="me"))


@pytest.fixture
def mutual(start: Start, ids: Ids) -> FaultyRegistry:
    """Return a registry that uses TLS and requires a client certificate."""
    return start(tls=ids.server, client_authority=ids.authority)


def push(layout: Layout, registry: FaultyRegistry, *argv: str, env: dict[str, str | None] | None = None) -> Result:
    return ocistream("push", "-i", layout.path, f"{registry.host}/app:1", *argv, env=env)


# Certificates --------------------------------------------------------------------------------------------------


def test_with_the_ca_of_another_host_the_error_names_its_file(
    mutual: FaultyRegistry, certificate: Certificate, layout: Layout
) -> None:
    result = push(layout, mutual, f"--ca-cert={certificate.file}", env={"SSL_CERT_FILE": None})
    assertions.failure(
        result,
        7,
        "the certificate is not trusted",
        f"  {certificate.file} does not contain the CA of this host: give its CA with --ca-cert FILE\n",
    )


@pytest.mark.uncounted
def test_private_cas_do_not_replace_ssl_cert_file(
    start: Start, ids: Ids, certificate: Certificate, layout: Layout, image: Descriptor
) -> None:
    one, other = start(tls=certificate), start(tls=ids.server)
    assertions.success(push(layout, one, env={"SSL_CERT_FILE": str(certificate.file)}))
    copy = ["copy", f"{one.host}/app:1", f"{other.host}/app:1"]
    env: dict[str, str | None] = {"SSL_CERT_FILE": str(certificate.file)}
    assertions.failure(ocistream(*copy, env=env), 7, other.host, "not trusted")
    result = succeed(*copy, ids.ca, env=env)
    assert result.lines() == [f"{other.host}/app:1@{image['digest']}"]


@pytest.mark.parametrize(("tool", "variable"), [("containers", "HOME"), ("docker", "XDG_CONFIG_HOME")])
def test_certs_d_of_the_user_is_read(
    mutual: FaultyRegistry, ids: Ids, layout: Layout, tmp_path: Path, tool: str, variable: str
) -> None:
    base = tmp_path / "home"
    ids.folder((base / ".config" if variable == "HOME" else base) / tool / "certs.d" / mutual.host)
    assertions.success(push(layout, mutual, env={variable: str(base)}))


def test_verbose_reports_unused_files_in_certs_d(
    mutual: FaultyRegistry, ids: Ids, layout: Layout, tmp_path: Path
) -> None:
    folder = ids.folder(tmp_path / ".config/containers/certs.d" / mutual.host)
    (folder / "old.pem").write_text("x")
    result = assertions.success(push(layout, mutual, "-v", env={"HOME": str(tmp_path)}))
    assert f"{folder}: old.pem not used: only *.crt, *.cert and *.key are read" in result.err


def test_invalid_files_in_certs_d_are_an_error_before_any_request(
    mutual: FaultyRegistry, ids: Ids, layout: Layout, tmp_path: Path
) -> None:
    folder = ids.folder(tmp_path / ".config/containers/certs.d" / mutual.host)
    (folder / "client.key").unlink()
    assertions.failure(push(layout, mutual, env={"HOME": str(tmp_path)}), 2, "client.cert", "client.key, is missing")
    (folder / "client.cert").unlink()
    (folder / "ca.crt").write_text("nonsense")
    assertions.failure(push(layout, mutual, env={"HOME": str(tmp_path)}), 2, "ca.crt has no CA certificate", "PEM")
    assert mutual.requests == []


def test_cert_dir_replaces_certs_d(mutual: FaultyRegistry, ids: Ids, layout: Layout, tmp_path: Path) -> None:
    folder = ids.folder(tmp_path / "certificates")
    wrong = tmp_path / ".config/containers/certs.d" / mutual.host
    wrong.mkdir(parents=True)
    (wrong / "ca.crt").write_text("nonsense")
    assertions.success(push(layout, mutual, f"--cert-dir={folder}", env={"HOME": str(tmp_path)}))


def test_insecure_accepts_an_invalid_certificate_without_a_warning(
    start: Start, ids: Ids, layout: Layout, tmp_path: Path
) -> None:
    registry = start(tls=ids.authority.issue(tmp_path / "expired", names=["other.example"], days=(-3, -2)))
    assertions.failure(push(layout, registry, ids.ca), 7, "not trusted")
    result = assertions.success(push(layout, registry, "--insecure", "-q"))
    # urllib3 would warn.
    assert result.err == ""


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--ca-cert=none"], 4, ["none", "no such file"]),
        (["--client-cert=cert"], 2, ["--client-key"]),
        (["--client-key=key"], 2, ["--client-key needs --client-cert"]),
        (["--client-cert=cert", "--client-key=locked"], 2, ["locked is encrypted", "openssl pkey"]),
        (["--cert-dir=none"], 4, ["none", "no such file or directory"]),
        (["--cert-dir=text"], 9, ["text"]),
    ],
)
def test_unusable_files_are_reported_before_any_request(
    served: FaultyRegistry, ids: Ids, layout: Layout, tmp_path: Path, argv: list[str], code: int, words: list[str]
) -> None:
    (tmp_path / "text").write_text("nonsense")
    (tmp_path / "cert").write_bytes(ids.client.file.read_bytes())
    (tmp_path / "key").write_bytes(ids.client.key_file.read_bytes())
    ids.client.encrypted_key(tmp_path / "locked")
    result = ocistream("push", "-i", layout.path, f"{served.host}/app:1", *argv, cwd=tmp_path)
    assertions.failure(result, code, *words)
    result = ocistream("login", served.host, "-u", "me", "--password-stdin", *argv, cwd=tmp_path, stdin=b"secret")
    assertions.failure(result, code, *words)
    assert served.requests == []


@pytest.mark.uncounted
def test_login_accepts_the_certificate_options_too(start: Start, ids: Ids, tmp_path: Path) -> None:
    registry = start(tls=ids.server, client_authority=ids.authority, auth=Basic("me", "right"))
    login = ["login", registry.host, "-u", "me", "--password-stdin"]
    env: dict[str, str | None] = {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path)}
    assertions.failure(ocistream(*login, ids.ca, env=env, stdin=b"right"), 7, "TLS failed")
    succeed(*login, ids.ca, *ids.shown, env=env, stdin=b"right")
    succeed(*login, "--insecure", *ids.shown, env=env, stdin=b"right")
    assert [request.headers["Authorization"] is None for request in registry.requests] == [True, False] * 2


@pytest.mark.nightly
def test_tls_stays_within_the_promised_memory(mutual: FaultyRegistry, ids: Ids, layout: Layout) -> None:
    argv = ["push", "-i", str(layout.path), f"{mutual.host}/app:1", ids.ca, *ids.shown]
    assertions.peak(measured(*argv, env={"SSL_CERT_FILE": None}))


# Proxies -------------------------------------------------------------------------------------------------------


def test_push_through_a_proxy_with_a_password_uses_a_private_ca_and_a_client_certificate(
    mutual: FaultyRegistry, ids: Ids, layout: Layout
) -> None:
    with tunnelling_to(mutual.host, password="me:hunter2@x") as proxy:
        env = {**NO_PROXIES, "HTTPS_PROXY": proxy.url.replace("://", "://me:hunter2%40x@")}
        argv = ["push", "-i", str(layout.path), "registry.test/app:1", "--jobs=1", ids.ca, *ids.shown]
        succeed(*argv, env=env)
        assert {request.headers["Proxy-Authorization"] for request in mutual.requests} == {None}
        wrong = {**NO_PROXIES, "ALL_PROXY": proxy.url.replace("://", "://me:wrong-hunter@")}
        result = ocistream(*argv, env=wrong)
    assertions.failure(result, 7, "407 Proxy Authentication Required", "USER:PASSWORD")
    assert "wrong-hunter" not in result.err
    # A retry would not help and might lock the account.
    assert len([one for one in proxy.authorizations if one != proxy.authorization]) == 1


def test_an_unsupported_kind_of_proxy_is_an_error(layout: Layout, served: FaultyRegistry) -> None:
    env = {**NO_PROXIES, "ALL_PROXY": "socks5h://me:hunter2@127.0.0.1:1080"}
    result = ocistream("push", "-i", layout.path, "registry.test/app:1", env=env)
    assertions.failure(result, 8, "socks5h", "ALL_PROXY")
    assert "hunter2" not in result.err
    # A push that needs no proxy succeeds.
    assertions.success(push(layout, served, env=env))


# Host names ----------------------------------------------------------------------------------------------------


def test_an_ipv6_address_is_a_registry(ids: Ids, layout: Layout, image: Descriptor, tmp_path: Path) -> None:
    with FaultyRegistry(tmp_path / "served", address=("::1", 0), tls=ids.server, auth=Basic("me", "right")) as registry:
        assert registry.host.startswith("[::1]:")
        ids.folder(tmp_path / ".config/containers/certs.d" / registry.host, client=False)
        env: dict[str, str | None] = {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path)}
        login = ["login", registry.host, "-u", "me", "--password-stdin"]
        succeed(*login, env=env, stdin=b"right")
        result = assertions.success(push(layout, registry, env=env))
        assert result.lines() == [f"{registry.host}/app:1@{image['digest']}"]


def test_an_internationalised_name_is_requested_in_its_dns_form(
    start: Start, ids: Ids, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    server = ids.authority.issue(tmp_path / "server", names=["xn--bcher-kva.example"])
    with tunnelling_to(start(tls=server).host) as proxy:
        env = {**NO_PROXIES, "HTTPS_PROXY": proxy.url}
        result = ocistream("push", "-i", layout.path, "Bücher.example/app:1", ids.ca, env=env)
    assertions.success(result)
    assert result.lines() == [f"xn--bcher-kva.example/app:1@{image['digest']}"]
    assert set(proxy.asked) == {"xn--bcher-kva.example:443"}


@pytest.mark.parametrize(
    "name",
    ["\N{CYRILLIC SMALL LETTER A}pple.example/x", "a℀.example/x", "x.example./a", "[fe80::1%eth0]:5/a", "[::g]:5/a"],
)
def test_invalid_and_confusable_host_names_are_usage_errors(tmp_path: Path, name: str) -> None:
    assertions.failure(ocistream("pull", name, "-o", tmp_path / "x.tar"), 2, "is not a registry host")


# Time-outs and limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--limit-rate=fast", "--limit-rate 'fast' is not a rate in bytes per second"),
        ("--limit-rate=0", "is not a rate in bytes per second"),
        ("--limit-rate=1T", "is not a rate in bytes per second"),
        ("--limit-rate=", "is not a rate in bytes per second"),
        ("--max-requests-per-second=0", "--max-requests-per-second"),
        ("--connect-timeout=0", "--connect-timeout"),
        ("--stall-timeout=-1", "--stall-timeout"),
        ("--stall-timeout=nan", "--stall-timeout"),
    ],
)
def test_an_invalid_limit_is_a_usage_error(tmp_path: Path, option: str, words: str) -> None:
    assertions.failure(ocistream("pull", "a.example/x", "-o", tmp_path / "x.tar", option), 2, words)


def test_rates_are_written_as_for_curl(served: FaultyRegistry, layout: Layout) -> None:
    argv = ["--max-requests-per-second=500", "--connect-timeout=0.5", "--stall-timeout=30"]
    assertions.success(push(layout, served, *argv, "--limit-rate=10MiB"))
    for rate in ("600", "500k", "1.5M", "10MB", "1g"):
        # A copy between directories only checks them.
        argv = ["copy", str(layout.path), "oci:out", f"--limit-rate={rate}"]
        succeed(*argv, cwd=layout.path.parent)


@pytest.mark.parametrize("size", ["0", "1023k", "5G", "-1", "much", "", "٤MiB"])
def test_an_invalid_or_unusable_memory_size_is_refused(size: str, tmp_path: Path) -> None:
    result = ocistream("pull", "127.0.0.1:1/app", "-o", tmp_path / "x.tar", f"--memory={size}")
    assertions.failure(result, 2, "--memory", "from 1MiB to 4GiB")
