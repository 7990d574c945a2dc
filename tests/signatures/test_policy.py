"""The policy in the configuration: the signatures that images need, by registry and repository."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

import ocistream as api
from tests import registry_http
from tests.cli import assertions
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout
from tests.runner import Result, ocistream
from tests.signatures.fake_sigstore import IDENTITY, ISSUER, FakeSigstore
from tests.signed_image import cosign_tag
from tests.signing import Signer, bundle_referrer, enter, sign_with_tag, statement

#: A host without a registry.
ELSEWHERE: Final = "registry.example.com"


class User:
    """A user with a configuration file, and a registry that has the signed image team/app:1."""

    def __init__(self, home: Path, layout: Layout, host: str, start: Callable[..., FaultyRegistry]) -> None:
        self.file = home / ".config/ocistream/config.toml"
        self.home, self.layout, self.host, self.start = home, layout, host, start
        self.file.parent.mkdir(parents=True)

    def configure(self, *lines: str) -> None:
        self.file.write_text("\n".join(lines).replace("HOST", self.host))

    def run(self, *argv: str | Path, **env: str) -> Result:
        return ocistream(*argv, env={"HOME": str(self.home), "XDG_CONFIG_HOME": None, **env})

    def pull(self, *argv: str | Path) -> Result:
        return self.run("pull", f"{self.host}/team/app:1", "-o", self.home / "x.tar", *argv)

    def push(self, image: Descriptor, repository: str, tag: str | None = None) -> None:
        registry_http.seed(self.layout, image, self.host, repository, tag)

    def sync(self, *copies: tuple[str, str | list[str]], dry: bool = False) -> Result:
        """Sync each source to its destinations, and assert that a source is refused."""
        file = self.home / "images.toml"
        file.write_text("".join(f'[[sync]]\nfrom = "{source}"\nto = {json.dumps(to)}\n' for source, to in copies))
        result = self.run("sync", file, *(["--dry-run"] if dry else []))
        assert result.code == 5, result.err
        return result


@pytest.fixture
def user(
    layout: Layout, image: Descriptor, trusted: Signer, start: Callable[..., FaultyRegistry], tmp_path: Path
) -> User:
    user = User(tmp_path / "home", layout, start().host, start)
    user.push(image, "team/app", "1")
    user.push(sign_with_tag(layout, image, trusted), "team/app", cosign_tag(image))
    return user


def refused(result: Result, *words: str) -> None:
    assertions.failure(result, 5, "no valid signature", *words)


def rejected(result: Result, *words: str) -> None:
    """Assert that the rule "reject" applied. A rejected image may have a valid signature."""
    assertions.failure(result, 5, "the configuration rejects the images of ", *words)
    assert "no valid signature" not in result.err, result.err


class TestRules:
    def test_keys_for_a_registry(self, user: User, trusted: Signer, stranger: Signer) -> None:
        user.configure('[trust."HOST"]', f'keys = ["{stranger.path}"]')
        refused(user.pull(), "by another key")
        user.configure('[trust."HOST"]', f'keys = ["{stranger.path}", "{trusted.path}"]')
        assertions.success(user.pull())

    def test_paths_are_relative_to_the_file(self, user: User, trusted: Signer) -> None:
        (user.file.parent / "keys").mkdir()
        (user.file.parent / "keys/cosign.pub").write_bytes(trusted.path.read_bytes())
        user.configure('[trust."HOST"]', 'keys = ["keys/cosign.pub"]')
        assertions.success(user.pull())

    def test_identities_for_a_registry(
        self, user: User, image: Descriptor, stranger: Signer, sigstore: FakeSigstore
    ) -> None:
        def configure(identity: str, *lines: str) -> None:
            identities = f'identities = [{{ identity = "{identity}", issuer = "{ISSUER}" }}]'
            user.configure('[trust."HOST"]', identities, f'trusted-root = "{sigstore.trusted_root}"', *lines)

        found = json.dumps(sigstore.bundle(statement=statement(image["digest"]))).encode()
        user.push(bundle_referrer(user.layout, image, found), "team/app")
        configure("other@example.com", f'keys = ["{stranger.path}"]')
        refused(user.pull(), "by another key", f"by another identity: {IDENTITY}")
        configure(IDENTITY, f'keys = ["{stranger.path}"]')
        assertions.success(user.pull())
        # The image must satisfy both the rule and the option.
        refused(user.pull("--require-signature", stranger.path), f"by another identity: {IDENTITY}")

    def test_each_rule_has_its_own_trusted_root(
        self, user: User, image: Descriptor, sigstore: FakeSigstore, tmp_path: Path
    ) -> None:
        foreign = FakeSigstore(tmp_path)
        found = json.dumps(foreign.bundle(statement=statement(image["digest"]))).encode()
        user.push(bundle_referrer(user.layout, image, found), "team/app")
        identities = f'identities = [{{ identity = "{IDENTITY}", issuer = "{ISSUER}" }}]'
        user.configure(
            *('[trust."HOST"]', identities, f'trusted-root = "{foreign.trusted_root}"'),
            *('[trust."HOST/inner"]', identities, f'trusted-root = "{sigstore.trusted_root}"'),
        )
        assertions.success(user.pull())
        copy = ("copy", f"{user.host}/team/app:1", f"{user.host}/inner/app:1")
        refused(user.run(*copy), f"by another identity: {IDENTITY}")

    def test_the_longest_prefix_applies(self, user: User, stranger: Signer) -> None:
        keys = ('[trust."HOST/team"]', f'keys = ["{stranger.path}"]')
        user.configure("[trust]", '"HOST" = "reject"', '"HOST/team/app" = "any"', *keys)
        assertions.success(user.pull())
        user.configure("[trust]", '"HOST" = "any"', *keys)
        refused(user.pull(), "by another key")

    def test_a_prefix_is_made_of_complete_segments(self, user: User) -> None:
        user.configure("[trust]", '"HOST/team/ap" = "reject"', '"HOST/te" = "reject"', '"HOST/team/app/x" = "reject"')
        assertions.success(user.pull())

    @pytest.mark.parametrize("prefix", ["Registry.Example.COM", "registry.example.com:443", "registry.example.com/"])
    @pytest.mark.parametrize("name", ["REGISTRY.example.com/app:1", "registry.example.com:443/app:1"])
    def test_another_spelling_of_the_host_does_not_escape_a_rule(self, user: User, prefix: str, name: str) -> None:
        user.configure("[trust]", f'"{prefix}" = "reject"')
        shown = assertions.success(user.run("config", "show", name))
        assert '"registry.example.com" = "reject"' in shown.out.decode()

    @pytest.mark.parametrize("name", ["[2001:db8::1]:5000/app:1", "[2001:DB8:0:0::0001]:5000/app:1"])
    def test_another_spelling_of_an_address_does_not_escape_a_rule(self, user: User, layout: Layout, name: str) -> None:
        enter(layout, layout.image([5_000]), name)
        user.configure("[trust]", '"[2001:0db8::1]:5000" = "reject"')
        rejected(user.run("copy", layout.path, f"oci:{user.home / 'x'}"), "[2001:db8::1]:5000")
        shown = assertions.success(user.run("config", "show", name))
        assert '"[2001:db8::1]:5000" = "reject"' in shown.out.decode()

    @pytest.mark.parametrize("name", ["index.docker.io/team/app:1", "registry-1.docker.io:443/team/app", "team/app"])
    def test_all_names_of_docker_hub_have_the_same_rules(self, user: User, layout: Layout, name: str) -> None:
        enter(layout, layout.image([5_000]), name)
        user.configure("[trust]", '"docker.io/team" = "reject"')
        rejected(user.run("copy", layout.path, f"oci:{user.home / 'x'}"))

    @pytest.mark.parametrize("other", ["containerd", "ref"])
    def test_the_rules_of_both_names_of_an_entry_apply(
        self, user: User, layout: Layout, image: Descriptor, other: str
    ) -> None:
        names = {"containerd": "io.containerd.image.name", "ref": "org.opencontainers.image.ref.name"}
        annotations = {key: f"{other}.example.com/app:1" for other, key in names.items()}
        entry = {**{key: image[key] for key in ("mediaType", "digest", "size")}, "annotations": annotations}
        (layout.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        user.configure("[trust]", f'"{other}.example.com" = "reject"')
        rejected(user.run("copy", layout.path, f"oci:{user.home / 'x'}"))
        assert "rejects" in user.sync((f"oci:{layout.path}", "oci:y")).err

    def test_reject_refuses_signed_images_too(self, user: User) -> None:
        user.configure("[trust]", '"HOST" = "reject"')
        rejected(user.pull(), user.host, "config show IMAGE")
        assert not (user.home / "x.tar").exists()

    def test_reject_refuses_signatures_too(self, user: User, image: Descriptor) -> None:
        user.configure("[trust]", '"HOST" = "reject"')
        name = f"{user.host}/team/app:{cosign_tag(image)}"
        rejected(user.run("copy", name, f"oci:{user.home / 'x'}"))

    def test_the_option_applies_in_addition_to_the_policy(self, user: User, trusted: Signer, stranger: Signer) -> None:
        user.configure('[trust."HOST"]', f'keys = ["{trusted.path}"]')
        assertions.success(user.pull("--require-signature", trusted.path))
        result = user.pull("--require-signature", stranger.path)
        refused(result, "by another key")
        assert "the rule" not in result.err, result.err

    def test_without_a_rule_no_request_is_added(self, user: User, image: Descriptor) -> None:
        other = user.start()
        registry_http.seed(user.layout, image, other.host, "app", "1")
        other.requests.clear()
        user.configure("[trust]", '"HOST" = "reject"')
        assertions.success(user.run("pull", "--no-referrers", f"{other.host}/app:1", "-o", user.home / "y.tar"))
        assert not [item for item in other.requests if "referrers" in item.path or ".sig" in item.path]


class TestNames:
    def test_the_rule_of_the_destination_applies(self, user: User, layout: Layout, stranger: Signer) -> None:
        user.configure('[trust."HOST/inner"]', f'keys = ["{stranger.path}"]')
        push = ("push", "-i", layout.path, "--image", "app:1")
        reason = f'it is signed by another key; the rule [trust."{user.host}/inner"] requires a signature'
        refused(user.run(*push, f"{user.host}/inner/app:1"), reason, "config show IMAGE")
        assert registry_http.manifest_digest(user.host, "inner/app", "1") is None
        assertions.success(user.run(*push, f"{user.host}/outer/app:1"))

    def test_the_rule_of_the_name_in_an_archive_applies(self, user: User, trusted: Signer, tmp_path: Path) -> None:
        assertions.success(user.pull())
        copy = ("copy", user.home / "x.tar", f"oci:{tmp_path / 'y'}")
        user.configure("[trust]", '"HOST/team" = "reject"')
        rejected(user.run(*copy))
        user.configure('[trust."HOST/team"]', f'keys = ["{trusted.path}"]')
        assertions.success(user.run(*copy))

    def test_each_image_of_a_push_to_a_prefix(self, user: User) -> None:
        assertions.success(user.pull())
        user.configure("[trust]", '"HOST/mirror/team/app" = "reject"')
        rejected(user.run("push", "-i", user.home / "x.tar", "--to", f"{user.host}/mirror"))

    def test_one_of_several_images_by_their_digests(self, user: User, image: Descriptor) -> None:
        other, second = user.start(), user.layout.image([5_000])
        registry_http.seed(user.layout, second, other.host, "app", "1")
        pull = ("pull", f"{user.host}/team/app@{image['digest']}", f"{other.host}/app@{second['digest']}")
        user.configure("[trust]", f'"{other.host}" = "reject"')
        rejected(user.run(*pull, "-o", user.home / "y.tar"), other.host)
        user.configure("[trust]", f'"{other.host}/x" = "reject"')
        assertions.success(user.run(*pull, "-o", user.home / "y.tar"))

    def test_one_of_several_images_by_their_tags(self, user: User, trusted: Signer) -> None:
        other = user.start()
        registry_http.seed(user.layout, user.layout.image([5_000]), other.host, "app", "1")
        pull = ("pull", f"{user.host}/team/app:1", f"{other.host}/app:1", "-o", user.home / "y.tar")
        user.configure(f'[trust."{user.host}"]', f'keys = ["{trusted.path}"]')
        assertions.success(user.run(*pull))
        user.configure(f'[trust."{other.host}"]', f'keys = ["{trusted.path}"]')
        refused(user.run(*pull), "it has no signature")

    def test_the_python_api_has_the_same_policy(
        self, user: User, trusted: Signer, stranger: Signer, tmp_path: Path
    ) -> None:
        def copy() -> None:
            with api.Client(config=user.file) as client:
                client.copy(f"{user.host}/team/app:1", tmp_path / "y.tar")

        user.configure('[trust."HOST"]', f'keys = ["{stranger.path}"]')
        with pytest.raises(api.IntegrityError, match="by another key"):
            copy()
        user.configure('[trust."HOST"]', f'keys = ["{trusted.path}"]')
        copy()


class TestSync:
    def test_each_image_is_checked_by_its_rules(self, user: User, image: Descriptor, trusted: Signer) -> None:
        inner, unsigned = user.start(), user.layout.image([5_000])
        user.push(unsigned, "team/unsigned", "1")
        user.configure('[trust."HOST/team"]', f'keys = ["{trusted.path}"]')
        copies = [(f"{user.host}/team/{name}:1", f"{inner.host}/{name}:1") for name in ("unsigned", "app")]
        user.sync(*copies, dry=True)
        assert inner.requests == [] or not [item for item in inner.requests if item.method == "PUT"]
        result = user.sync(*copies)
        source, destination = copies[0]
        reason = f"{source} ({unsigned['digest']}): no valid signature: it has no signature"
        assert f"{source} to {destination}: {reason}" in result.err
        assert registry_http.manifest_digest(inner.host, "unsigned", "1") is None
        assert registry_http.manifest_digest(inner.host, "app", "1") == image["digest"]

    def test_an_unsigned_image_fails_for_each_of_its_destinations(self, user: User, trusted: Signer) -> None:
        user.push(user.layout.image([5_000]), "team/unsigned", "1")
        user.configure('[trust."HOST/team"]', f'keys = ["{trusted.path}"]')
        inner = user.start()
        to = [f"{inner.host}/a:1", f"{inner.host}/b:1", "oci:y:c"]
        for dry in (True, False):
            result = user.sync((f"{user.host}/team/unsigned:1", to), dry=dry)
            assert result.out == b""
            assert result.err.count("no valid signature: it has no signature") == 3, result.err
        assertions.no_image(inner)

    def test_the_rules_of_the_destination_apply_to_a_layout(self, user: User, stranger: Signer) -> None:
        inner = user.start()
        user.configure(f'[trust."{inner.host}"]', f'keys = ["{stranger.path}"]')
        assert "by another key" in user.sync((f"oci:{user.layout.path}:app:1", f"{inner.host}/app:1")).err
        assertions.no_image(inner)

    @pytest.mark.parametrize("destination", ["HOST/app:latest", "oci:out:app:latest"])
    def test_a_manifest_with_a_subject_is_checked_if_it_gets_a_name(
        self, user: User, image: Descriptor, trusted: Signer, destination: str
    ) -> None:
        inner, artifact = user.start(), user.layout.artifact(b"content", subject=image)
        user.push(artifact, "team/app")
        user.configure('[trust."HOST"]', f'keys = ["{trusted.path}"]')
        copy = f"{user.host}/team/app@{artifact['digest']}", destination.replace("HOST", inner.host)
        for dry in (True, False):
            assert "it has no signature" in user.sync(copy, dry=dry).err
        assertions.no_image(inner)
        assert not (user.home / "out/index.json").exists()


class TestConfigCommand:
    def test_show_prints_the_rule_of_an_image(self, user: User, trusted: Signer) -> None:
        user.configure(
            "[trust]", f'"{ELSEWHERE}" = "reject"', f'[trust."{ELSEWHERE}/app"]', f'keys = ["{trusted.path}"]'
        )

        def shown(image: str) -> str:
            result = assertions.success(user.run("config", "show", image))
            return result.out.decode()

        assert shown(f"{ELSEWHERE}/app:1") == f'[trust."{ELSEWHERE}/app"]\nkeys = ["{trusted.path}"]\n'
        assert shown(f"{ELSEWHERE}/application") == f'[trust]\n"{ELSEWHERE}" = "reject"\n'
        assert shown("other.example.com/app") == "# no rule of [trust]: signatures are not checked\n"
        document = json.loads(user.run("config", "show", f"{ELSEWHERE}/other", "--json").out)
        assert document == {"trust": {ELSEWHERE: "reject"}}

    def test_show_reads_the_file_that_the_variable_names(self, user: User, tmp_path: Path) -> None:
        other = tmp_path / "other.toml"
        other.write_text(f'[trust]\n"{ELSEWHERE}" = "reject"\n')
        result = assertions.success(user.run("config", "show", f"{ELSEWHERE}/app:1", OCISTREAM_CONFIG=str(other)))
        assert result.out == other.read_bytes()

    def test_show_prints_the_policy_as_a_configuration_file(
        self, user: User, trusted: Signer, sigstore: FakeSigstore
    ) -> None:
        user.configure(
            *(f'[trust."{ELSEWHERE}/keyless"]', f'identities = [{{ identity = "{IDENTITY}", issuer = "{ISSUER}" }}]'),
            f'trusted-root = "{sigstore.trusted_root}"',
            *("[trust]", f'"{ELSEWHERE}" = "reject"', '"docker.io/library/nginx" = "any"'),
            *(f'[trust."{ELSEWHERE}/app"]', f'keys = ["{trusted.path}"]'),
        )
        written = tomllib.loads(user.run("config", "show").out.decode())
        assert written["trust"] == tomllib.loads(user.file.read_text())["trust"]

    @pytest.mark.parametrize(
        ("lines", "words"),
        [
            (['"HOST" = "allow"'], "is not one of reject, any"),
            (['"HOST" = 1'], 'is neither "reject" nor "any"'),
            (['"HOST" = {}'], "has neither keys nor identities"),
            (['"HOST" = { keys = [] }'], "has neither keys nor identities"),
            (['"HOST" = { identities = [{ identity = "x", issuer = "y" }] }'], "identities need a trusted-root"),
            (['"HOST" = { identities = [{ identity = "x" }] }'], "identities[0]: the key 'issuer' is missing"),
            (['"HOST" = { identities = [{ identity = "", issuer = "y" }] }'], "identity is empty"),
            (['"HOST" = { trusted-root = "config.toml" }'], "trusted-root is only for identities"),
            (['"HOST" = { trusted-root = "absent.json" }'], "no such file"),
            (['"HOST" = { keys = ["absent.pub"] }'], "no such file"),
            (['"HOST" = { keys = "cosign.pub" }'], "is not a list"),
            (['"HOST" = { key = [] }'], "unknown key 'key'"),
            (['"not a host" = "any"'], "is not HOST"),
            (['"HOST/app:1" = "any"'], "is not HOST"),
            (['"nginx" = "reject"'], "does not begin with a registry"),
            (['"r.example.com" = "any"', '"R.example.com:443" = "reject"'], "is set twice"),
        ],
    )
    def test_a_mistake_is_an_error_of_config_check_and_of_pull(self, user: User, lines: list[str], words: str) -> None:
        user.configure("[trust]", *lines)
        assertions.failure(user.run("config", "check"), 2, str(user.file), words)
        assertions.failure(user.pull(), 2, str(user.file), words)
