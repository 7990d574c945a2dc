"""Pull sources and settings of hosts, from ocistream's configuration and containers' registries.conf."""

from __future__ import annotations

import pytest

from ocistream.errors import AuthenticationError, InvalidNameError
from ocistream.http.settings import HostSettings
from ocistream.oci.reference import parse_reference
from ocistream.registry.configuration import (
    HostRule,
    Mirror,
    RegistryNamespace,
    RegistryRules,
    parse_registry_location,
)

DIGEST = f"sha256:{'a' * 64}"


def places(
    *namespaces: RegistryNamespace, own: dict[str, HostRule] | None = None, mirrors: bool = True
) -> RegistryRules:
    return RegistryRules(own or {}, namespaces, use_mirrors=mirrors)


def of(rules: RegistryRules, name: str) -> list[str]:
    return [str(place) for place in rules.find_pull_sources(parse_reference(name))]


def mirrored(*locations: str, prefix: str = "a.example") -> RegistryNamespace:
    return RegistryNamespace(prefix, mirrors=tuple(map(Mirror, locations)))


def test_without_rules_an_image_is_read_from_its_registry() -> None:
    (place,) = places().find_pull_sources(parse_reference("A.example:5000/x/y:1"))
    assert (place.registry, place.repository) == ("A.example:5000", "x/y")


def test_mirrors_keep_their_order_before_the_registry() -> None:
    found = places(mirrored("m.example/hub", "n.example:5000")).find_pull_sources(parse_reference("a.example/x/y:1"))
    assert list(map(str, found)) == ["m.example/hub/x/y", "n.example:5000/x/y", "a.example/x/y"]


def test_docker_hubs_images_are_in_its_mirrors_under_their_full_names() -> None:
    rules = places(own={"docker.io": HostRule(mirrors=(Mirror("m.example/hub"),))})
    assert of(rules, "nginx") == ["m.example/hub/library/nginx", "docker.io/library/nginx"]


def test_no_mirrors_keeps_the_configured_location() -> None:
    rules = places(RegistryNamespace("a.example", "b.example/c", mirrors=(Mirror("m.example"),)), mirrors=False)
    assert of(rules, "a.example/x") == ["b.example/c/x"]


def test_a_location_replaces_the_prefix() -> None:
    rules = places(RegistryNamespace("a.example/foo", "b.example/bar"))
    assert of(rules, "a.example/foo/x:1") == ["b.example/bar/x"]
    assert of(rules, "a.example/foo") == ["b.example/bar"]


@pytest.mark.parametrize("name", ["a.example/foobar", "a.example/fo", "a.example:5000/foo/x", "b.a.example/foo/x"])
def test_a_prefix_matches_complete_path_components(name: str) -> None:
    assert of(places(mirrored("m.example", prefix="a.example/foo")), name) == [name]


def test_only_the_longest_prefix_counts() -> None:
    rules = places(
        mirrored("m.example"),
        mirrored("n.example/y", prefix="a.example/x/y"),
        mirrored("o.example", prefix="*.example"),
    )
    assert of(rules, "a.example/x/y/z") == ["n.example/y/z", "a.example/x/y/z"]
    assert of(rules, "a.example/x/z") == ["m.example/x/z", "a.example/x/z"]
    assert of(rules, "b.example/x/z") == ["o.example/x/z", "b.example/x/z"]


def test_a_wildcard_matches_only_hosts_below_a_domain() -> None:
    rules = places(mirrored("m.example/all", prefix="*.corp.example"))
    assert of(rules, "a.b.corp.example:5000/x") == ["m.example/all/x", "a.b.corp.example:5000/x"]
    assert of(rules, "corp.example/x") == ["corp.example/x"]
    assert of(rules, "evilcorp.example/x") == ["evilcorp.example/x"]
    assert of(rules, "a.example/b.corp.example/x") == ["a.example/b.corp.example/x"]


def test_our_own_mirrors_take_precedence_even_an_empty_list() -> None:
    own = {"a.example": HostRule(mirrors=(Mirror("own.example"),)), "b.example": HostRule(mirrors=())}
    rules = places(mirrored("m.example"), mirrored("m.example", prefix="b.example"), own=own)
    assert of(rules, "a.example/x") == ["own.example/x", "a.example/x"]
    assert of(rules, "b.example/x") == ["b.example/x"]


def test_a_rule_without_mirrors_keeps_those_of_registries_conf() -> None:
    assert of(places(mirrored("m.example"), own={"a.example": HostRule()}), "a.example/x")[0] == "m.example/x"


def test_a_mirror_that_is_the_registry_itself_is_listed_once() -> None:
    assert of(places(mirrored("a.example", "m.example", "m.example")), "a.example/x") == ["m.example/x", "a.example/x"]


def test_the_case_of_a_host_does_not_matter() -> None:
    assert of(places(mirrored("m.example")), "A.Example/x") == ["m.example/x", "A.Example/x"]


@pytest.mark.parametrize(
    ("pull", "by_tag", "by_digest"), [("all", True, True), ("digest-only", False, True), ("tag-only", True, False)]
)
def test_the_pull_mode_of_a_mirror_is_obeyed(pull: str, by_tag: bool, by_digest: bool) -> None:
    rules = places(RegistryNamespace("a.example", mirrors=(Mirror("m.example", pull_mode=pull),)))
    mirror = rules.find_pull_sources(parse_reference("a.example/x"))[0]
    assert (mirror.can_pull(by_digest=False), mirror.can_pull(by_digest=True)) == (by_tag, by_digest)


class TestBlocked:
    rules = places(
        RegistryNamespace("a.example", blocked=True, config_file="/etc/x.conf"),
        RegistryNamespace("a.example/fine"),
        RegistryNamespace("b.example", "a.example/hidden"),
        mirrored("a.example/m", "c.example/m", prefix="d.example"),
    )

    @pytest.mark.parametrize("name", ["a.example/x", "b.example/x"])
    def test_nothing_is_read_from_it_under_any_name(self, name: str) -> None:
        with pytest.raises(AuthenticationError, match=r"a\.example.* is blocked: see a\.example in /etc/x\.conf"):
            self.rules.find_pull_sources(parse_reference(name))

    def test_nothing_is_pushed_to_it(self) -> None:
        with pytest.raises(AuthenticationError, match="is blocked"):
            self.rules.check_push(parse_reference("a.example/x"))

    def test_a_part_of_it_may_be_exempt(self) -> None:
        reference = parse_reference("a.example/fine/x")
        assert str(self.rules.find_pull_sources(reference)[-1]) == "a.example/fine/x"
        self.rules.check_push(reference)

    def test_it_is_not_used_as_a_mirror(self) -> None:
        assert of(self.rules, "d.example/x") == ["c.example/m/x", "d.example/x"]

    def test_a_push_ignores_the_pull_location(self) -> None:
        # b.example is read from a blocked location; a push to b.example itself is allowed.
        self.rules.check_push(parse_reference("b.example/x"))


class TestSettings:
    loose = HostSettings(insecure=True, has_http_fallback=True)
    unchecked = HostSettings(insecure=True)
    theirs = places(
        RegistryNamespace("a.example", insecure=True),
        RegistryNamespace("a.example/safe"),
        RegistryNamespace("b.example/dev", insecure=True),
        RegistryNamespace("z.example", "real.example:5000/y", insecure=True),
        RegistryNamespace("y.example", mirrors=(Mirror("m.example:5000/z", insecure=True),)),
        RegistryNamespace("*.corp.example", insecure=True),
        RegistryNamespace("m.corp.example"),
    )

    def test_an_unknown_host_has_the_defaults(self) -> None:
        assert places().settings("a.example") == HostSettings()

    def test_settings_of_our_configuration_are_used(self) -> None:
        own = HostSettings(plain_http=True, requests_per_second=5.0)
        assert places(own={"a.example": HostRule(own)}).settings("A.example") == own

    @pytest.mark.parametrize(
        ("host", "repository"),
        [
            ("a.example", ""),
            ("A.example", "x"),
            ("b.example", "dev"),
            ("b.example", "dev/x"),
            ("z.example", "x"),
            ("real.example:5000", "y/x"),
            ("m.example:5000", "z/x"),
            ("x.corp.example", ""),
            ("x.corp.example", "x"),
        ],
    )
    def test_insecure_in_registries_conf_is_insecure(self, host: str, repository: str) -> None:
        assert self.theirs.settings(host, repository) == self.loose

    @pytest.mark.parametrize(
        ("host", "repository"),
        [
            ("a.example", "safe/x"),
            ("b.example", ""),
            ("b.example", "prod/x"),
            ("b.example", "development"),
            ("real.example:5000", "x"),
            ("m.example:5000", ""),
            ("y.example", "x"),
            ("m.corp.example", "x"),
            ("corp.example", "x"),
        ],
    )
    def test_other_repositories_of_the_host_are_secure(self, host: str, repository: str) -> None:
        assert self.theirs.settings(host, repository) == HostSettings()

    def test_contradicting_rules_are_not_insecure(self) -> None:
        two = [
            RegistryNamespace("a.example", insecure=True),
            RegistryNamespace("b.example", mirrors=(Mirror("a.example"),)),
        ]
        assert places(*two).settings("a.example", "x") == HostSettings()
        assert places(*reversed(two)).settings("a.example", "x") == HostSettings()

    def test_our_configuration_takes_precedence(self) -> None:
        theirs = (RegistryNamespace("a.example", insecure=True), RegistryNamespace("b.example/x"))
        own = {"a.example": HostRule(insecure=False), "b.example": HostRule(insecure=True)}
        assert places(*theirs, own=own).settings("a.example", "x") == HostSettings()
        assert places(*theirs, own=own).settings("b.example", "x") == self.unchecked

    def test_insecure_in_our_configuration_does_not_allow_plain_http(self) -> None:
        own = {"a.example": HostRule(HostSettings(requests_per_second=5.0), insecure=True)}
        assert places(own=own).settings("a.example") == HostSettings(insecure=True, requests_per_second=5.0)

    def test_an_insecure_mirror_of_our_configuration_affects_nothing_else(self) -> None:
        rules = places(own={"a.example": HostRule(mirrors=(Mirror("m.example/x", insecure=True),))})
        assert rules.settings("m.example", "x/y") == self.unchecked
        assert rules.settings("m.example", "y") == HostSettings()
        assert rules.settings("m.example") == HostSettings()
        assert rules.settings("a.example", "y") == HostSettings()


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("M.example", "m.example"),
        ("m.example:5000/x/y/", "m.example:5000/x/y"),
        ("index.docker.io/library", "docker.io/library"),
        ("[::1]:5000/x", "[::1]:5000/x"),
    ],
)
def test_a_location_is_normalized(text: str, location: str) -> None:
    assert parse_registry_location(text) == location


@pytest.mark.parametrize("text", ["", "/", "https://m.example", "m.example/X", "m.example/x:1", "m..example", "a b/c"])
def test_a_malformed_location_is_refused(text: str) -> None:
    with pytest.raises(InvalidNameError):
        parse_registry_location(text)
