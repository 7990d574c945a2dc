"""TLS: whom we trust, what we show and to whom, and how a host that may speak either is asked which one it speaks."""

from __future__ import annotations

import base64
import dataclasses
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocistream import tls
from ocistream.connections import Answer
from ocistream.credentials import Credential
from ocistream.distribution import Repository
from ocistream.errors import (
    FinalNetworkError,
    LocalDiskError,
    NetworkError,
    NotFoundError,
    OcistreamError,
    RegistryError,
    UsageError,
)
from ocistream.hosts import HostSettings
from ocistream.tls import Contexts, TlsSettings, check
from tests.certificates import Certificate, make_certificate
from tests.cli.proxy import tunnelling_to
from tests.faults import Fault, HangUp, Reply, redirect, refusal
from tests.faulty_auth import Basic, Bearer
from tests.network import CountingRegistry, QuickTransport, RawServer, names, unused_port

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]


@dataclasses.dataclass(frozen=True)
class Ids:
    """An authority that nobody knows, a registry's certificate by it, and a client's."""

    authority: Certificate
    server: Certificate
    client: Certificate

    @property
    def ca(self) -> TlsSettings:
        return TlsSettings(ca_files=(str(self.authority.file),))

    @property
    def shown(self) -> tuple[tuple[str, str | None], ...]:
        return ((str(self.client.file), str(self.client.key_file)),)

    @property
    def both(self) -> TlsSettings:
        return dataclasses.replace(self.ca, client_certificates=self.shown)


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Ids:
    folder = tmp_path_factory.mktemp("ids")
    authority = make_certificate(folder / "authority", "an authority")
    return Ids(authority, authority.issue(folder / "server"), authority.issue(folder / "client", common_name="me"))


def der(certificate: Certificate) -> bytes:
    return base64.b64decode(certificate.x5c)


def ask(
    transport: QuickTransport, registry: CountingRegistry | RawServer | str, target: str = "/v2/", **options: Any
) -> Answer:
    """Send a GET to a path or a URL of a registry, and drain the answer; `named` is what `Transport.endpoint` takes."""
    host = registry if isinstance(registry, str) else registry.host
    endpoint = transport.endpoint(host, named=options.pop("named", True))
    url = target if "://" in target else f"{endpoint.url}{target}"
    answer = transport.request(endpoint, options.pop("method", "GET"), url, **options)
    answer.drain()
    return answer


def elsewhere(registry: CountingRegistry) -> str:
    """Return a URL of a registry by another host's name than 127.0.0.1."""
    return registry.url.replace("127.0.0.1", "localhost")


class TestTrust:
    def test_a_ca_that_is_named_is_trusted(self, faulty: Faulty, quick: Quick, ids: Ids) -> None:
        registry = faulty(tls=ids.server)
        assert ask(quick(tls=ids.ca), registry).url == f"{registry.url}/v2/"

    def test_a_ca_in_the_hosts_settings_is_trusted_for_that_host_only(
        self, faulty: Faulty, quick: Quick, ids: Ids
    ) -> None:
        registry, other = faulty(tls=ids.server), faulty(tls=ids.server)
        transport = quick(hosts={registry.host: HostSettings(ca_files=ids.ca.ca_files)})
        ask(transport, registry)
        with pytest.raises(FinalNetworkError, match="not trusted"):
            ask(transport, other)

    def test_own_cas_are_trusted_beside_the_bundle_and_not_in_its_place(
        self, faulty: Faulty, quick: Quick, ids: Ids, certificate: Certificate
    ) -> None:
        usual, own = faulty(tls=certificate), faulty(tls=ids.server)
        transport = quick(ca_file=str(certificate.file), tls=ids.ca)
        ask(transport, usual)
        ask(transport, own)

    def test_a_bundle_may_be_a_directory(self, faulty: Faulty, quick: Quick, ids: Ids, tmp_path: Path) -> None:
        # OpenSSL finds a CA in a directory by the hash of its subject, so one that is found was read from there.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        Contexts(str(tmp_path), "").of(TlsSettings())
        assert context.cert_store_stats()["x509_ca"] == 0
        with pytest.raises(FinalNetworkError, match="not trusted"):
            ask(quick(ca_file=str(tmp_path)), faulty(tls=ids.server))

    def test_a_certificate_that_is_no_cas_is_trusted_where_it_is_named_itself(
        self, faulty: Faulty, quick: Quick, ids: Ids
    ) -> None:
        ask(quick(tls=TlsSettings((str(ids.server.file),))), faulty(tls=ids.server))

    def test_unchecked_is_unchecked_and_nothing_is_warned_of(
        self, faulty: Faulty, quick: Quick, ids: Ids, tmp_path: Path
    ) -> None:
        expired = ids.authority.issue(tmp_path, names=["other.example"], days=(-3, -2))
        # Warnings are errors in tests.
        ask(quick(tls=TlsSettings(insecure=True)), faulty(tls=expired))
        registry = faulty(tls=expired)
        ask(quick(hosts={registry.host: HostSettings(insecure=True)}), registry)

    @pytest.mark.parametrize(
        ("options", "said", "hint"),
        [
            ({}, "unable to get local issuer certificate", "--ca-cert"),
            ({"days": (-3, -2)}, "certificate has expired", "renew"),
            ({"days": (2, 3)}, "certificate is not yet valid", "clock"),
            ({"names": ["other.example"]}, "mismatch", "name that the certificate is for"),
        ],
    )
    def test_what_is_wrong_with_a_certificate_is_said_with_what_to_do(
        self, faulty: Faulty, quick: Quick, ids: Ids, tmp_path: Path, options: dict[str, Any], said: str, hint: str
    ) -> None:
        registry = faulty(tls=ids.authority.issue(tmp_path, **options))
        transport = quick(tls=ids.ca if options else TlsSettings((str(ids.client.file),)))
        with pytest.raises(FinalNetworkError, match=f"the certificate is not trusted.*{said}") as caught:
            ask(transport, registry)
        assert hint in str(caught.value.hint)
        assert transport.waits == []

    def test_where_the_system_has_no_cas_a_bundle_takes_their_place(
        self, ids: Ids, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        monkeypatch.setattr(tls, "_BUNDLES", ())
        context = Contexts(None, str(ids.authority.file)).of(TlsSettings())
        assert context.get_ca_certs(binary_form=True) == [der(ids.authority)]
        monkeypatch.setattr(tls, "_BUNDLES", (str(tmp_path / "none"), str(ids.authority.file)))
        assert len(Contexts(None, "").of(TlsSettings()).get_ca_certs()) == 1
        (tmp_path / "0a1b2c3d.0").touch()
        assert Contexts(None, "").of(TlsSettings()).get_ca_certs() == []


class TestContexts:
    def test_equal_settings_have_one_context_and_different_ones_have_none_in_common(self, ids: Ids) -> None:
        contexts = Contexts(str(ids.authority.file), "")
        settings = [TlsSettings(), ids.ca, ids.both, TlsSettings(insecure=True)]
        made = [contexts.of(one) for one in settings]
        assert len({id(context) for context in made}) == 4
        assert [contexts.of(dataclasses.replace(one)) for one in settings] == made

    def test_many_connections_make_one(
        self, faulty: Faulty, quick: Quick, ids: Ids, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[object] = []
        real = Contexts._make

        def make(self: Contexts, settings: TlsSettings) -> ssl.SSLContext:
            made.append(settings)
            return real(self, settings)

        monkeypatch.setattr(Contexts, "_make", make)
        registry = faulty(tls=ids.server)
        transport = quick(ca_file=str(ids.authority.file), hosts={registry.host: HostSettings(insecure=False)})
        transport.endpoint(registry.host)
        threads = [threading.Thread(target=ask, args=(transport, registry, f"{registry.url}/v2/")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(registry.requests) >= 8
        assert len([one for one in made if one == TlsSettings()]) <= 1
        assert len(made) <= 2

    def test_where_http_is_spoken_nothing_is_loaded(
        self, faulty: Faulty, quick: Quick, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # An empty context takes a megabyte already.
        monkeypatch.setattr(ssl, "SSLContext", None)
        ask(quick(), faulty())


class TestFiles:
    """Files that cannot be used are found before anything moves, and OpenSSL asks nobody for a password."""

    @pytest.fixture
    def files(self, ids: Ids, tmp_path: Path) -> Path:
        (tmp_path / "empty").touch()
        (tmp_path / "text").write_text("nonsense")
        (tmp_path / "cut").write_bytes(ids.client.file.read_bytes()[:300])
        (tmp_path / "cert").write_bytes(ids.client.file.read_bytes())
        (tmp_path / "key").write_bytes(ids.client.key_file.read_bytes())
        (tmp_path / "both").write_bytes(ids.client.file.read_bytes() + ids.client.key_file.read_bytes())
        (tmp_path / "other-key").write_bytes(ids.authority.key_file.read_bytes())
        ids.client.encrypted_key(tmp_path / "locked")
        (tmp_path / "both-locked").write_bytes(ids.client.file.read_bytes() + (tmp_path / "locked").read_bytes())
        return tmp_path

    @pytest.mark.parametrize("name", ["empty", "text", "cut", "key"])
    def test_a_file_without_a_ca(self, files: Path, name: str) -> None:
        with pytest.raises(UsageError, match=f"{name} holds no CA certificate"):
            check(TlsSettings((str(files / name),)))

    @pytest.mark.parametrize(
        ("certificate", "key", "said"),
        [
            ("empty", "key", "is no client certificate"),
            ("text", None, "is no client certificate"),
            ("cert", None, "is no client certificate"),
            ("cert", "text", "is no client certificate"),
            ("key", "cert", "is no client certificate"),
            ("cert", "other-key", "does not belong to the key"),
            ("cert", "locked", "locked is encrypted"),
            ("both-locked", None, "both-locked is encrypted"),
        ],
    )
    def test_a_client_certificate_or_key_that_is_none(
        self, files: Path, certificate: str, key: str | None, said: str
    ) -> None:
        shown = ((str(files / certificate), str(files / key) if key else None),)
        with pytest.raises(UsageError, match=said) as caught:
            check(TlsSettings(client_certificates=shown))
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(("certificate", "key"), [("cert", "key"), ("both", None), ("cert", "both")])
    def test_the_key_may_be_in_the_certificates_file(self, files: Path, certificate: str, key: str | None) -> None:
        check(TlsSettings(client_certificates=((str(files / certificate), str(files / key) if key else None),)))

    @pytest.mark.parametrize(("path", "kind"), [("none", NotFoundError), ("text/x", LocalDiskError)])
    def test_files_that_are_not_there(self, files: Path, path: str, kind: type[OcistreamError]) -> None:
        missing = str(files / path)
        for settings in (
            TlsSettings((missing,)),
            TlsSettings(client_certificates=((missing, None),)),
            TlsSettings(client_certificates=((str(files / "cert"), missing),)),
        ):
            with pytest.raises(kind, match=path) as caught:
                check(settings)
            assert type(caught.value) is kind

    def test_a_transport_and_an_endpoint_check_theirs(self, files: Path, quick: Quick) -> None:
        with pytest.raises(UsageError):
            quick(tls=TlsSettings((str(files / "text"),)))
        with pytest.raises(UsageError):
            quick(hosts={"registry.example": HostSettings(ca_files=(str(files / "text"),))}).endpoint(
                "registry.example"
            )


class TestClientCertificates:
    """A client certificate is a credential: it is shown to the registry that was named, and to nobody else."""

    @pytest.fixture
    def mutual(self, faulty: Faulty, ids: Ids) -> CountingRegistry:
        return faulty(tls=ids.server, client_authority=ids.authority)

    @pytest.fixture
    def curious(self, faulty: Faulty, ids: Ids) -> CountingRegistry:
        """Return a registry that asks whoever comes for a certificate, and notes what it gets."""
        return faulty(tls=ids.server, client_authority=ids.authority, asks_only=True)

    def test_it_is_shown_where_it_is_asked_for(self, mutual: CountingRegistry, quick: Quick, ids: Ids) -> None:
        ask(quick(tls=ids.both), mutual)
        ask(quick(hosts={mutual.host: HostSettings(ca_files=ids.ca.ca_files, client_certificates=ids.shown)}), mutual)
        assert [request.certificate for request in mutual.requests] == [der(ids.client)] * 2

    def test_without_one_the_refusal_says_how_to_show_one(
        self, mutual: CountingRegistry, quick: Quick, ids: Ids
    ) -> None:
        transport = quick(tls=ids.ca)
        with pytest.raises(FinalNetworkError, match="TLS failed") as caught:
            ask(transport, mutual)
        assert "--client-cert" in str(caught.value.hint)
        assert transport.waits == []

    def test_the_command_lines_comes_before_the_folders(
        self, curious: CountingRegistry, quick: Quick, ids: Ids, tmp_path: Path
    ) -> None:
        other = ids.authority.issue(tmp_path, common_name="other")
        known = HostSettings(client_certificates=((str(other.file), str(other.key_file)),))
        ask(quick(tls=ids.both, hosts={curious.host: known}), curious)
        ask(quick(tls=ids.ca, hosts={curious.host: known}), curious)
        assert [request.certificate for request in curious.requests] == [der(ids.client), der(other)]

    def test_of_several_in_a_folder_the_first_is_shown(
        self, curious: CountingRegistry, quick: Quick, ids: Ids, tmp_path: Path
    ) -> None:
        other = ids.authority.issue(tmp_path, common_name="other")
        several = (*ids.shown, (str(other.file), str(other.key_file)))
        ask(quick(tls=dataclasses.replace(ids.ca, client_certificates=several)), curious)
        assert curious.requests[0].certificate == der(ids.client)

    @pytest.mark.parametrize("own", [False, True])
    def test_a_redirect_takes_it_nowhere_not_even_back(
        self, curious: CountingRegistry, faulty: Faulty, quick: Quick, ids: Ids, own: bool
    ) -> None:
        registry = faulty(
            Fault(redirect(f"{curious.url}/v2/first"), path="away"),
            tls=ids.server,
            client_authority=ids.authority,
            asks_only=True,
        )
        curious.faults = [Fault(redirect(f"{registry.url}/v2/last"), path="first")]
        registry.faults.append(Fault(Reply(200), path="last"))
        hosts = {registry.host: HostSettings(client_certificates=ids.shown)} if own else {}
        # Even where the other host has the same one in its own settings: nobody asked for that host here.
        hosts[curious.host] = HostSettings(client_certificates=ids.shown)
        ask(quick(tls=ids.ca if own else ids.both, hosts=hosts), registry, "/v2/away")
        assert [request.certificate for request in registry.requests] == [der(ids.client), None]
        assert [request.certificate for request in curious.requests] == [None]

    def test_a_token_server_elsewhere_does_not_get_it_and_one_of_the_same_origin_does(
        self, faulty: Faulty, quick: Quick, ids: Ids
    ) -> None:
        realm = faulty(auth=Bearer(anonymous=("pull",)), tls=ids.server, client_authority=ids.authority, asks_only=True)
        for where in (f"{realm.url}/token", None):
            registry = faulty(
                auth=Bearer(realm=where, anonymous=("pull",)), tls=ids.server, client_authority=ids.authority
            )
            options: dict[str, Any] = {"scopes": ("repository:app:pull",), "expected": (404, 401)}
            ask(quick(tls=ids.both), registry, "/v2/app/tags/list", **options)
            assert {request.certificate for request in registry.requests} == {der(ids.client)}
        assert {request.certificate for request in realm.asked(path="/token")} == {None}

    def test_an_upload_that_goes_on_elsewhere_does_not_show_it(
        self, curious: CountingRegistry, faulty: Faulty, quick: Quick, ids: Ids
    ) -> None:
        registry = faulty(tls=ids.server, client_authority=ids.authority)
        transport = quick(tls=ids.both)
        ask(transport, registry)
        ask(transport, registry, f"{curious.url}/v2/")
        transport.request_once(transport.endpoint(registry.host), "DELETE", f"{curious.url}/v2/")
        assert [request.certificate for request in curious.requests] == [None, None]

    def test_a_registry_that_the_configuration_named_does_not_get_the_command_lines(
        self, curious: CountingRegistry, quick: Quick, ids: Ids
    ) -> None:
        transport = quick(tls=ids.both)
        ask(transport, curious, named=False)
        ask(transport, curious)
        assert [request.certificate for request in curious.requests] == [None, der(ids.client)]

    def test_a_proxy_is_not_shown_it(self, mutual: CountingRegistry, quick: Quick, ids: Ids) -> None:
        with tunnelling_to(mutual.host, tls=ids.server, client_authority=ids.authority) as proxy:
            ask(quick(tls=ids.both, proxies={"https": proxy.url}), "registry.test")
        assert proxy.certificates == [None]
        assert [request.certificate for request in mutual.requests] == [der(ids.client)]

    def test_a_proxy_is_checked_even_where_the_registry_is_not(
        self, mutual: CountingRegistry, quick: Quick, ids: Ids
    ) -> None:
        settings = dataclasses.replace(ids.both, ca_files=(), insecure=True)
        with tunnelling_to(mutual.host, tls=ids.server) as proxy:
            with pytest.raises(NetworkError, match="not trusted"):
                ask(quick(tls=settings, proxies={"https": proxy.url}), "registry.test")
            assert proxy.asked == []


class TestUnchecked:
    def test_it_is_for_the_host_that_was_named_on_all_of_its_ports(
        self, faulty: Faulty, quick: Quick, ids: Ids
    ) -> None:
        storage = faulty(tls=ids.server)
        registry = faulty(Fault(redirect(f"{storage.url}/v2/")), tls=ids.server)
        ask(quick(tls=TlsSettings(insecure=True)), registry)
        assert len(storage.requests) == 1

    def test_another_host_is_checked_unless_its_own_settings_say_otherwise(
        self, faulty: Faulty, quick: Quick, ids: Ids
    ) -> None:
        storage = faulty(tls=ids.server)
        registry = faulty(Fault(redirect(f"{elsewhere(storage)}/v2/"), times=None), tls=ids.server)
        for insecure in ({"tls": TlsSettings(insecure=True)}, {"hosts": {registry.host: HostSettings(insecure=True)}}):
            with pytest.raises(FinalNetworkError, match=r"https://localhost:.* not trusted"):
                ask(quick(**insecure), registry)
        assert storage.requests == []
        other = {elsewhere(storage).removeprefix("https://"): HostSettings(insecure=True)}
        ask(quick(tls=TlsSettings(insecure=True), hosts=other), registry)
        assert len(storage.requests) == 1

    def test_what_the_command_line_says_is_not_for_a_mirror(self, faulty: Faulty, quick: Quick, ids: Ids) -> None:
        registry = faulty(tls=ids.server)
        transport = quick(tls=TlsSettings(insecure=True), hosts={registry.host: HostSettings(url=registry.url)})
        with pytest.raises(FinalNetworkError, match="not trusted"):
            ask(transport, registry, named=False)
        assert registry.requests == []

    def test_what_is_said_of_one_repository_is_not_for_another_of_the_same_host(
        self, faulty: Faulty, quick: Quick, ids: Ids
    ) -> None:
        registry = faulty(tls=ids.server)
        transport = quick(hosts={f"{registry.host}/dev/app": HostSettings(insecure=True)})
        assert Repository(transport, registry.host, "dev/app").digest_of("1") is None
        with pytest.raises(FinalNetworkError, match="not trusted"):
            Repository(transport, registry.host, "prod/app").digest_of("1")
        assert [request.path for request in registry.requests] == ["/v2/dev/app/manifests/1"]

    def test_repositories_that_are_reached_alike_share_an_endpoint(self, quick: Quick) -> None:
        transport = quick(hosts={"registry.test/dev": HostSettings(insecure=True)})
        prod, test, dev = (transport.endpoint("registry.test", name) for name in ("prod", "test", "dev"))
        assert prod is test is transport.endpoint("registry.test")
        assert prod is not dev

    def test_a_registrys_ca_is_trusted_for_what_it_leads_to(self, faulty: Faulty, quick: Quick, ids: Ids) -> None:
        storage = faulty(tls=ids.server)
        registry = faulty(Fault(redirect(f"{elsewhere(storage)}/v2/")), tls=ids.server)
        ask(quick(hosts={registry.host: HostSettings(ca_files=ids.ca.ca_files)}), registry)
        assert len(storage.requests) == 1

    def test_a_host_that_is_led_to_may_have_a_ca_of_its_own(self, faulty: Faulty, quick: Quick, ids: Ids) -> None:
        storage = faulty(tls=ids.server)
        registry = faulty(Fault(redirect(f"{elsewhere(storage)}/v2/")))
        host = elsewhere(storage).removeprefix("https://")
        transport = quick(hosts={host: HostSettings(ca_files=ids.ca.ca_files)})
        ask(transport, registry)
        assert transport.hosts_asked == [registry.host, host]


class TestEither:
    """Hosts that may speak TLS or not: those on this machine, and those of which the configuration says so."""

    def test_a_plain_one_is_asked_on_one_connection(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        transport = quick()
        for _ in range(3):
            ask(transport, registry)
        assert registry.accepted == 1
        assert len(registry.requests) == 3

    def test_one_with_tls_on_this_machine_is_found_out_by_its_first_answer(
        self, faulty: Faulty, quick: Quick, ids: Ids
    ) -> None:
        registry = faulty(tls=ids.server)
        transport = quick(ca_file=str(ids.authority.file))
        assert ask(transport, registry).url == f"{registry.url}/v2/"
        assert ask(transport, registry).url == f"{registry.url}/v2/"
        # One in vain, one to find out, one that stays.
        assert registry.accepted == 3
        assert transport.waits == []

    @pytest.mark.parametrize("words", [b"Client sent an HTTP request to an HTTPS server.\n", b""])
    def test_a_server_that_says_so_itself_is_believed_only_after_it_was_asked(
        self, faulty: Faulty, quick: Quick, words: bytes
    ) -> None:
        registry = faulty(Fault(Reply(400, {}, words)))
        with pytest.raises(RegistryError, match="400"):
            ask(quick(), registry)
        assert registry.accepted == 2

    def test_a_plain_one_that_fails_is_not_taken_for_one_with_tls(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(HangUp(), times=2), Fault(refusal(400)))
        transport = quick()
        with pytest.raises(RegistryError, match="400"):
            ask(transport, registry)
        # It was asked once, and known from then on.
        assert registry.accepted == 4
        assert len(transport.waits) == 2

    @pytest.mark.parametrize("configured", ["ca", "client", "insecure", "may_be_plain", "given"])
    def test_where_anything_is_configured_it_is_asked_before_the_first_request(
        self, faulty: Faulty, quick: Quick, ids: Ids, configured: str
    ) -> None:
        settings = {
            "ca": HostSettings(ca_files=ids.ca.ca_files),
            "client": HostSettings(client_certificates=ids.shown),
            "insecure": HostSettings(insecure=True),
            "may_be_plain": HostSettings(may_be_plain=True),
            "given": HostSettings(),
        }[configured]
        plain, encrypted = faulty(), faulty(tls=ids.server)
        options = {"tls": ids.ca} if configured == "given" else {"ca_file": str(ids.authority.file)}
        transport = quick(hosts={plain.host: settings, encrypted.host: settings}, **options)
        for registry in (plain, encrypted):
            assert ask(transport, registry).url == f"{registry.url}/v2/"
            ask(transport, registry)
            # One to find out.
            assert registry.accepted == 2
            assert len(registry.requests) == 2

    def test_one_that_has_answered_is_not_doubted_any_more(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(refusal(400), skip=1))
        transport = quick()
        ask(transport, registry)
        with pytest.raises(RegistryError, match="400"):
            ask(transport, registry)
        assert registry.accepted == 1

    def test_a_host_elsewhere_that_may_be_plain_is_asked_too(
        self, faulty: Faulty, quick: Quick, ids: Ids, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain, encrypted = faulty(), faulty(tls=ids.server)
        hosts = [f"registry.test:{registry.host.rpartition(':')[2]}" for registry in (plain, encrypted)]
        transport = quick(tls=ids.ca, hosts=dict.fromkeys(hosts, HostSettings(may_be_plain=True)))
        with names(monkeypatch, registry="203.0.113.5"):
            assert [ask(transport, host).url.partition(":")[0] for host in hosts] == ["http", "https"]

    def test_one_that_wants_a_client_certificate_speaks_tls(self, faulty: Faulty, quick: Quick, ids: Ids) -> None:
        registry = faulty(tls=ids.server, client_authority=ids.authority)
        assert ask(quick(tls=ids.both), registry).status == 200
        with pytest.raises(FinalNetworkError, match=f"https://{registry.host}/v2/: TLS failed"):
            ask(quick(tls=ids.ca), registry)

    def test_while_it_is_in_doubt_nothing_secret_is_sent(self, faulty: Faulty, quick: Quick, ids: Ids) -> None:
        registry = faulty(auth=Basic("alice", "s3cret"), tls=ids.server)
        alice = Credential("alice", "s3cret", source="the test")
        ask(quick(credential=alice, tls=ids.ca), registry)
        assert [request.headers["Authorization"] is None for request in registry.requests] == [True, False]
        with RawServer(b"") as server, pytest.raises(NetworkError):
            ask(quick(credential=alice), server)
        assert all(one.headers["Authorization"] is None for one in server.heard)

    def test_nobody_there_leaves_it_in_doubt(self, quick: Quick, ids: Ids) -> None:
        transport = quick(tls=ids.ca)
        with pytest.raises(NetworkError, match="connection refused"):
            ask(transport, f"127.0.0.1:{unused_port()}")
        assert len(transport.waits) == 3

    def test_once_https_always_https(self, faulty: Faulty, quick: Quick, ids: Ids) -> None:
        plain = faulty()
        registry = faulty(tls=ids.server)
        transport = quick(tls=ids.ca)
        endpoint = transport.endpoint(registry.host)
        before = f"{endpoint.url}/v2/"
        assert before.startswith("http://")
        transport.request(endpoint, "GET", before).drain()
        # What was made of its first URL goes on in TLS; to leave it is refused as ever.
        assert transport.request(endpoint, "GET", before).url == f"{registry.url}/v2/"
        for location in (f"{plain.url}/v2/", before):
            registry.faults = [Fault(redirect(location))]
            with pytest.raises(FinalNetworkError, match="leads from https to http"):
                ask(transport, registry)
        assert plain.requests == []

    def test_many_first_requests_at_once_all_arrive(self, faulty: Faulty, quick: Quick, ids: Ids) -> None:
        registry = faulty(tls=ids.server)
        transport = quick(ca_file=str(ids.authority.file))
        url = f"{transport.endpoint(registry.host).url}/v2/"
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(ask(transport, registry, url).status)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 8

    def test_plain_http_that_was_asked_for_is_not_doubted_and_tls_is_named_as_the_reason(self, quick: Quick) -> None:
        answer = (
            b"HTTP/1.0 400 Bad Request\r\nContent-Length: 48\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
        )
        with RawServer(answer) as server:
            with pytest.raises(RegistryError, match="400") as caught:
                ask(quick(plain_http=True), server)
            assert len(server.heard) == 1
        assert "--plain-http" in str(caught.value.hint)

    @pytest.mark.parametrize("host", ["[::1]", "localhost"])
    def test_other_names_of_this_machine(self, tmp_path: Path, quick: Quick, ids: Ids, host: str) -> None:
        address = "::1" if host == "[::1]" else "127.0.0.1"
        with CountingRegistry(tmp_path / "served", tls=ids.server, address=(address, 0)) as registry:
            port = registry.host.rpartition(":")[2]
            assert ask(quick(tls=ids.ca), f"{host}:{port}").url == f"https://{host}:{port}/v2/"


def test_a_registry_by_a_url_of_its_own_is_not_doubted(faulty: Faulty, quick: Quick, ids: Ids) -> None:
    registry = faulty(tls=ids.server)
    known = HostSettings(url=f"{registry.url}/", ca_files=ids.ca.ca_files)
    assert ask(quick(hosts={"gateway.example": known}), "gateway.example").url == f"{registry.url}/v2/"
    assert registry.accepted == 1
