"""Upload methods: parsing, alternatives after a refusal, and what is remembered of a registry."""

from __future__ import annotations

import pytest

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.http.endpoints import Endpoint
from ocistream.http.settings import HostSettings, HttpSettings
from ocistream.registry.profiles import CHUNK, PROFILES_BY_NAME, PUT, STREAM, UNKNOWN_PROFILE
from ocistream.registry.upload_strategy import (
    ALTERNATIVES,
    HostStrategy,
    UploadMethod,
    UploadStrategy,
    parse_upload_method,
)
from ocistream.transfer.interfaces import Access

KIB = 1024


class TestMethods:
    @pytest.mark.parametrize(
        ("text", "rung"),
        [
            ("auto", None),
            ("stream", UploadMethod(STREAM)),
            ("put", UploadMethod(PUT)),
            ("chunk=4194304", UploadMethod(CHUNK, 4 * limits.MIB)),
            ("chunk=4MiB", UploadMethod(CHUNK, 4 * limits.MIB)),
            ("chunk=4MB", UploadMethod(CHUNK, 4 * limits.MIB)),
            ("chunk=4m", UploadMethod(CHUNK, 4 * limits.MIB)),
            ("chunk=512K", UploadMethod(CHUNK, 512 * KIB)),
            ("chunk=100b", UploadMethod(CHUNK, 100)),
        ],
    )
    def test_a_method_is_parsed_and_formatted(self, text: str, rung: UploadMethod | None) -> None:
        assert parse_upload_method(text) == rung
        if rung is not None:
            assert parse_upload_method(str(rung)) == rung

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            "Stream",
            "chunk",
            "chunk=",
            "chunk=0",
            "chunk=-1",
            "chunk=4T",
            "chunk=4iB",
            "chunk=1.5M",
            "put=1",
            "stream=",
            "chunk=4 4",
            "chunk=٤",
            "chunk=4M\n",
            "auto=1",
        ],
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_upload_method(text)
        assert caught.value.hint
        assert "chunk=SIZE" in caught.value.hint

    def test_a_chunk_over_the_limit_is_refused_with_the_limit(self) -> None:
        assert parse_upload_method("chunk=8MiB") == UploadMethod(CHUNK, limits.UPLOAD_MEMORY)
        for text in ("chunk=8388609", "chunk=1G", "chunk=999999999999G"):
            with pytest.raises(UsageError) as caught:
                parse_upload_method(text)
            assert "at most chunk=8MiB" in (caught.value.hint or "")

    def test_the_table_of_alternatives_has_only_known_methods(self) -> None:
        for refused in ALTERNATIVES.values():
            for status, ways in refused.items():
                assert 400 <= status < 600
                assert set(ways) <= {STREAM, PUT, CHUNK}


def host(name: str = "registry.example", profile: str | None = None, jobs: int = 4) -> HostStrategy:
    endpoint = Endpoint(
        name, HostSettings(profile=profile), HttpSettings(), lambda _url, _timeout: None, is_named_by_user=True
    )
    return UploadStrategy(jobs=jobs).host(endpoint)


class TestMemory:
    def test_buffers_of_all_jobs_share_the_upload_memory(self) -> None:
        for jobs in (1, 4, 32):
            strategy = host(jobs=jobs)
            assert strategy.replay_buffer_size(Access.ONCE, is_size_known=True) == limits.UPLOAD_MEMORY
            assert strategy.replay_buffer_size(Access.REPEATABLE, is_size_known=True) == limits.CHUNK_SIZE
            made = strategy.replay_buffer_size(Access.REPEATABLE, is_size_known=False)
            assert limits.CHUNK_SIZE <= made <= max(limits.CHUNK_SIZE, limits.UPLOAD_MEMORY // jobs)


def test_headers_identify_an_unknown_host_but_do_not_override_a_known_one() -> None:
    unknown = host()
    assert unknown.profile is UNKNOWN_PROFILE
    unknown.observe_headers(lambda name: "6d70dcfd" if name == "X-Artifactory-Id" else None)
    assert unknown.profile.name == "Artifactory"
    github = host("ghcr.io")
    github.observe_headers(lambda name: "Nexus/3" if name == "Server" else None)
    assert github.profile.name == "GitHub Packages"


@pytest.mark.parametrize("name", ["amazon-ecr", "unknown"])
def test_a_configured_profile_takes_precedence(name: str) -> None:
    configured = host("quay.io", name)
    configured.observe_headers(lambda header: "Nexus/3" if header == "Server" else None)
    assert configured.profile is PROFILES_BY_NAME[name]
    assert host("docker.io").profile.name == "Docker Hub"
