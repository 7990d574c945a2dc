"""References, digests and registry names: valid ones are parsed, and others never become a path, URL or file name."""

from __future__ import annotations

import pytest

from ocistream.errors import InvalidNameError, UnsupportedError
from ocistream.oci.reference import (
    Digest,
    Reference,
    is_digest,
    is_repository,
    is_tag,
    parse_digest,
    parse_reference,
    parse_registry,
    printable,
)

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
LONG_DIGEST = f"sha512:{HEX}{HEX}"


class TestDigests:
    @pytest.mark.parametrize("text", [DIGEST, LONG_DIGEST])
    def test_a_registered_digest_is_parsed(self, text: str) -> None:
        assert is_digest(text)
        digest = parse_digest(text)
        assert digest == Digest(*text.split(":"))
        assert str(digest) == text

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "sha256",
            "sha256:",
            DIGEST[:-1],
            DIGEST + "0",
            DIGEST + "\n",
            DIGEST.upper(),
            f"sha256:{HEX.upper()}",
            f"SHA256:{HEX}",
            f"sha512:{HEX}",
            f" {DIGEST}",
            "sha256:../../../etc/passwd",
            f"sha256:{'../' * 21}a",
            HEX,
        ],
    )
    def test_anything_else_is_malformed(self, text: str) -> None:
        assert not is_digest(text)
        with pytest.raises(InvalidNameError, match="malformed digest"):
            parse_digest(text)

    @pytest.mark.parametrize("text", ["sha384:" + "0" * 96, "md5:" + "0" * 32, "multihash+base58:QmRZxt2b1FVZPN"])
    def test_another_algorithm_is_not_supported(self, text: str) -> None:
        with pytest.raises(UnsupportedError, match="sha256 and sha512"):
            parse_digest(text)

    def test_a_long_algorithm_name_is_shortened_in_the_error(self) -> None:
        with pytest.raises(UnsupportedError, match=r"'a{40}…' is not supported") as caught:
            parse_digest("a" * 100_000 + ":0")
        assert len(str(caught.value)) < 200

    @pytest.mark.parametrize("value", [None, 7, True, ["sha256"], DIGEST.encode()])
    def test_other_types_are_not_digests(self, value: object) -> None:
        assert not is_digest(value)


class TestReferences:
    @pytest.mark.parametrize(
        ("text", "registry", "repository", "tag", "digest"),
        [
            ("nginx", "docker.io", "library/nginx", "latest", None),
            ("nginx:1.27", "docker.io", "library/nginx", "1.27", None),
            (f"nginx@{DIGEST}", "docker.io", "library/nginx", None, DIGEST),
            (f"nginx:1@{LONG_DIGEST}", "docker.io", "library/nginx", "1", LONG_DIGEST),
            ("org/app:1", "docker.io", "org/app", "1", None),
            ("docker.io/nginx", "docker.io", "library/nginx", "latest", None),
            ("index.docker.io/org/app", "docker.io", "org/app", "latest", None),
            ("registry-1.docker.io/library/nginx", "docker.io", "library/nginx", "latest", None),
            ("docker://r.example/a/b:2", "r.example", "a/b", "2", None),
            ("localhost/app", "localhost", "app", "latest", None),
            ("localhost:5000/app", "localhost:5000", "app", "latest", None),
            ("localhost:5000", "docker.io", "library/localhost", "5000", None),
            ("[::1]:5000/app:v1", "[::1]:5000", "app", "v1", None),
            ("r.example:443/a-b/c_d/e__f/g.h/i---j", "r.example:443", "a-b/c_d/e__f/g.h/i---j", "latest", None),
        ],
    )
    def test_a_name_is_expanded_as_docker_does(
        self, text: str, registry: str, repository: str, tag: str | None, digest: str | None
    ) -> None:
        assert parse_reference(text) == Reference(registry, repository, tag, digest)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ":",
            ":tag",
            "@",
            f"@{DIGEST}",
            "nginx:",
            "nginx@",
            "nginx:a b",
            "nginx:-a",
            "nginx:" + "a" * 129,
            "nginx@sha256:abc",
            f"nginx@{DIGEST.upper()}",
            "NGINX",
            "Org/app",
            "a//b",
            "a/",
            "r.example/",
            "r.example/a/../b",
            "r.example/a/./b",
            "../a",
            "a___b",
            "a..b/c/d",
            "-a",
            "r.example/" + "a" * 250,
            "http://r.example/a",
            "docker://https://r.example/a",
            "user@r.example/a",
            "r.example:port/a",
            "r.example:123456/a",
            "r_x.example/a",
            "r.example/a?b",
            "r.example/a#b",
            "r.example/a:b:c",
            "r.example/ä",
            "nginx\n",
            "nginx:1\n",
            "a\0b",
        ],
    )
    def test_anything_else_is_malformed(self, text: str) -> None:
        with pytest.raises(InvalidNameError, match="malformed"):
            parse_reference(text)

    def test_an_upper_case_repository_gets_a_hint(self) -> None:
        with pytest.raises(InvalidNameError) as caught:
            parse_reference("r.example/App")
        assert caught.value.hint == "repository names are lower case"

    def test_a_url_gets_a_hint(self) -> None:
        with pytest.raises(InvalidNameError) as caught:
            parse_reference("https://r.example/a")
        assert "without http://" in (caught.value.hint or "")

    def test_the_default_tag_can_be_disabled(self) -> None:
        assert parse_reference("nginx", default_tag=False).tag is None
        assert parse_reference("nginx", default_tag=False).target == "latest"

    @pytest.mark.parametrize(
        ("text", "full", "familiar", "target"),
        [
            ("nginx:1", "docker.io/library/nginx:1", "nginx:1", "1"),
            ("org/app:1", "docker.io/org/app:1", "org/app:1", "1"),
            ("r.example/library/a:1", "r.example/library/a:1", "r.example/library/a:1", "1"),
            ("index.docker.io/a.example/b:1", "docker.io/a.example/b:1", "docker.io/a.example/b:1", "1"),
            ("docker.io/library/a/b:1", "docker.io/library/a/b:1", "docker.io/library/a/b:1", "1"),
            ("docker.io/localhost/b:1", "docker.io/localhost/b:1", "docker.io/localhost/b:1", "1"),
            (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}", "nginx", DIGEST),
            (f"nginx:1@{DIGEST}", f"docker.io/library/nginx:1@{DIGEST}", "nginx:1", DIGEST),
        ],
    )
    def test_a_reference_has_a_full_and_a_familiar_form(self, text: str, full: str, familiar: str, target: str) -> None:
        reference = parse_reference(text)
        assert str(reference) == full
        assert reference.familiar == familiar
        assert parse_reference(familiar).repository == reference.repository
        assert reference.target == target
        assert parse_reference(full) == reference


class TestParts:
    def test_host_and_repository_together_have_at_most_255_characters(self) -> None:
        # The host, a slash, and the rest of 255.
        assert parse_reference("r.example/" + "a" * 245).repository == "a" * 245
        with pytest.raises(InvalidNameError, match="is not a repository"):
            parse_reference("r.example/" + "a" * 246)

    def test_the_longest_repository_has_255_characters(self) -> None:
        assert is_repository("a" * 255)
        assert not is_repository("a" * 256)
        assert not is_repository("A")

    def test_the_longest_tag_has_128_characters(self) -> None:
        assert is_tag("_" + "a" * 127)
        assert not is_tag("a" * 129)
        assert not is_tag("")

    @pytest.mark.parametrize(
        ("text", "registry"),
        [
            ("r.example", "r.example"),
            ("https://r.example/", "r.example"),
            ("http://localhost:5000", "localhost:5000"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry.hub.docker.com/v2", "docker.io"),
        ],
    )
    def test_a_registry_name_is_normalized(self, text: str, registry: str) -> None:
        assert parse_registry(text) == registry

    @pytest.mark.parametrize("text", ["", "r.example/path", "user:secret@r.example", "r example", "ftp://r.example"])
    def test_a_malformed_registry_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidNameError, match="malformed registry"):
            parse_registry(text)


class TestHosts:
    @pytest.mark.parametrize(
        ("written", "host"),
        [
            ("bücher.example", "xn--bcher-kva.example"),
            ("Bücher.Example:5000", "xn--bcher-kva.example:5000"),
            ("bu\N{COMBINING DIAERESIS}cher.example", "xn--bcher-kva.example"),
            ("日本語.jp", "xn--wgv71a119e.jp"),
            # A name in a single script may be genuine; it is shown in ASCII.
            ("аррӏе.example", "xn--80ak6aa92e.example"),  # noqa: RUF001 - the test needs this letter
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("[::1]:5000", "[::1]:5000"),
            ("[2001:db8::7]", "[2001:db8::7]"),
            ("[::ffff:192.0.2.1]:5000", "[::ffff:192.0.2.1]:5000"),
            ("192.0.2.1:65535", "192.0.2.1:65535"),
        ],
    )
    def test_a_host_is_converted_to_ascii(self, written: str, host: str) -> None:
        assert parse_reference(f"{written}/app:1") == Reference(host, "app", "1")
        assert parse_registry(written) == host

    @pytest.mark.parametrize(
        "written",
        [
            "\N{CYRILLIC SMALL LETTER A}pple.example",
            "p\N{GREEK SMALL LETTER ALPHA}ypal.example",
            "a℀.example",
            "ⅷ.example",
            "\N{FULLWIDTH LATIN SMALL LETTER E}xample.com",
            "a\N{ZERO WIDTH JOINER}b.example",
            "-ü.example",
            "ü" * 64 + ".example",
            "ü..example",
            "ü.example:x",
            "ü.example:\N{FULLWIDTH DIGIT FIVE}",
            "ü.example:65536",
            "registry.example:0443",
            "[::1]:05000",
            "[::g]",
            "[1:2]",
            "[192.0.2.1]",
            "[::1",
            "[::1]x",
            "[]:5000",
        ],
    )
    def test_a_malformed_or_misleading_host_is_refused(self, written: str) -> None:
        for parse in (parse_registry, lambda text: parse_reference(f"{text}/app:1")):
            with pytest.raises(InvalidNameError) as caught:
                parse(written)
            assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        ("written", "hint"), [("[fe80::1%eth0]:5000", "zone"), ("registry.example.", "dot"), ("x.example.:5000", "dot")]
    )
    def test_zones_and_trailing_dots_are_refused_with_a_hint(self, written: str, hint: str) -> None:
        for parse in (parse_registry, lambda text: parse_reference(f"{text}/app:1")):
            with pytest.raises(InvalidNameError) as caught:
                parse(written)
            assert hint in str(caught.value.hint)


class TestPrintable:
    def test_control_characters_do_not_reach_a_terminal(self) -> None:
        assert printable("a\x1b[2Jb\r\n\x07\u202ec\ud800") == "a?[2Jb????c?"

    def test_long_text_is_truncated(self) -> None:
        assert printable("a" * 200) == "a" * 200
        assert printable("a" * 201) == "a" * 200 + "…"
        assert printable("abc", 2) == "ab…"
