"""Registry profiles: which hosts and responses they match, and which not."""

from __future__ import annotations

import dataclasses

import pytest

from ocistream.registry.profiles import (
    CHUNK,
    PROFILES,
    PROFILES_BY_NAME,
    PUT,
    STREAM,
    UNKNOWN_PROFILE,
    find_profile,
    find_profile_by_headers,
)

HOSTS = {
    "gcr.io": "Google Artifact Registry",
    "eu.gcr.io": "Google Artifact Registry",
    "europe-west1-docker.pkg.dev": "Google Artifact Registry",
    "ghcr.io": "GitHub Packages",
    "GHCR.io": "GitHub Packages",
    "ghcr.io:443": "GitHub Packages",
    "123456789012.dkr.ecr.eu-central-1.amazonaws.com": "Amazon ECR",
    "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com": "Amazon ECR",
    "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn": "Amazon ECR",
    "123456789012.dkr-ecr.eu-central-1.on.aws": "Amazon ECR",
    "public.ecr.aws": "Amazon ECR",
    "team.azurecr.io": "Azure Container Registry",
    "team.westeurope.data.azurecr.io": "Azure Container Registry",
    "team.azurecr.us": "Azure Container Registry",
    "quay.io": "Quay",
    "docker.io": "Docker Hub",
    "registry.gitlab.com": "GitLab",
    "team.jfrog.io": "Artifactory",
    "demo.goharbor.io": "Harbor",
}
ANSWERS = {
    ("Server", "Artifactory/7.9.1 70901900"): "Artifactory",
    ("X-Artifactory-Id", "6d70dcfd451c8e98"): "Artifactory",
    ("X-JFrog-Version", "Artifactory/7.111.4"): "Artifactory",
    ("Server", "Nexus/3.95.0-07 (COMMUNITY)"): "Nexus",
    ("Server", "AzureContainerRegistry"): "Azure Container Registry",
    ("Gitlab-Container-Registry-Version", "4.0.0-gitlab"): "GitLab",
    ("WWW-Authenticate", 'Bearer realm="https://h.example/service/token",service="harbor-registry"'): "Harbor",
    ("X-GitHub-Request-Id", "ABCD:1234"): "GitHub Packages",
    ("Docker-RateLimit-Source", "198.51.100.7"): "Docker Hub",
    ("Server", "ocistream"): "ocistream",
    ("Docker-Distribution-Api-Version", "registry/2.0"): "distribution",
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_has_a_profile(host: str) -> None:
    assert find_profile(host).name == HOSTS[host]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("spoilt", ["evil{}", "{}.evil.example", "evil.{}.x", "{}\n", "x/{}", "{}@evil"])
def test_a_host_that_only_contains_a_known_name_has_none(host: str, spoilt: str) -> None:
    name = spoilt.format(host.partition(":")[0])
    found = find_profile(name)
    # `evilteam.azurecr.io` is a registry of Azure too, but of no other kind.
    assert found is UNKNOWN_PROFILE or (spoilt == "evil{}" and found.name == HOSTS[host])
    assert (
        find_profile("evilghcr.io") is find_profile("ghcr.io.evil.com") is find_profile("evilgcr.io") is UNKNOWN_PROFILE
    )


@pytest.mark.parametrize("host", ["localhost:5000", "[::1]:5000", "registry.example.com", "127.0.0.1", ""])
def test_any_other_registry_follows_the_specification(host: str) -> None:
    assert find_profile(host) is UNKNOWN_PROFILE
    assert UNKNOWN_PROFILE.methods == (STREAM, PUT, CHUNK)
    assert UNKNOWN_PROFILE.can_resume


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_header_identifies_the_registry(answer: tuple[str, str]) -> None:
    name, value = answer
    found = find_profile_by_headers(lambda header: value if header == name else None)
    assert found is not None
    assert found.name == ANSWERS[answer]


def test_other_headers_identify_no_registry() -> None:
    for server in ("nginx", "MyArtifactory/1", "xNexus/3", "Docker Registry", None):
        assert find_profile_by_headers(lambda header, server=server: server if header == "Server" else None) is None  # type: ignore[misc]


def test_every_profile_can_be_recognized_and_starts_with_streaming() -> None:
    assert len({profile.name for profile in PROFILES}) == len(PROFILES)
    for profile in PROFILES:
        assert profile.hosts or profile.headers, profile.name
        assert profile.methods[0] == STREAM, f"{profile.name}: every registry accepts docker's method"
        assert set(profile.methods) <= {STREAM, PUT, CHUNK}


def test_profiles_have_the_known_restrictions() -> None:
    by_name = {profile.name: profile for profile in PROFILES}
    assert CHUNK not in by_name["Google Artifact Registry"].methods
    assert CHUNK not in by_name["Amazon ECR"].methods
    assert not by_name["Amazon ECR"].can_resume
    assert PUT not in by_name["Artifactory"].methods
    assert by_name["GitHub Packages"].largest_chunk == 4 << 20
    assert dataclasses.is_dataclass(UNKNOWN_PROFILE)


def test_names_of_profiles_in_the_configuration_are_lower_case() -> None:
    assert PROFILES_BY_NAME["amazon-ecr"].name == "Amazon ECR"
    assert PROFILES_BY_NAME["unknown"] is UNKNOWN_PROFILE
    assert set(PROFILES_BY_NAME.values()) == {*PROFILES, UNKNOWN_PROFILE}
    assert all(name.replace("-", "").isalnum() and name == name.lower() for name in PROFILES_BY_NAME)
