"""Upload methods: parsing, alternatives after a refusal, and what is remembered of a registry."""

from __future__ import annotations

import pytest

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.registry.profiles import CHUNK, PROFILES_BY_NAME, PUT, STREAM, UNKNOWN_PROFILE
from ocistream.registry.upload_strategy import ALTERNATIVES, UploadMethod, UploadStrategy, parse_upload_method
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


class TestMemory:
    def test_buffers_of_all_jobs_share_the_upload_memory(self) -> None:
        for jobs in (1, 4, 32):
            ladder = UploadStrategy(jobs=jobs)
            assert ladder.replay_buffer_size(Access.ONCE, is_size_known=True) == limits.UPLOAD_MEMORY
            assert ladder.replay_buffer_size(Access.REPEATABLE, is_size_known=True) == limits.CHUNK_SIZE
            made = ladder.replay_buffer_size(Access.REPEATABLE, is_size_known=False)
            assert limits.CHUNK_SIZE <= made <= max(limits.CHUNK_SIZE, limits.UPLOAD_MEMORY // jobs)


def test_headers_identify_an_unknown_host_but_do_not_override_a_known_one() -> None:
    strategy = UploadStrategy()
    assert strategy.profile("registry.example") is UNKNOWN_PROFILE
    strategy.observe_headers("registry.example", lambda name: "6d70dcfd" if name == "X-Artifactory-Id" else None)
    assert strategy.profile("registry.example").name == "Artifactory"
    strategy.observe_headers("ghcr.io", lambda name: "Nexus/3" if name == "Server" else None)
    assert strategy.profile("ghcr.io").name == "GitHub Packages"


@pytest.mark.parametrize("name", ["amazon-ecr", "unknown"])
def test_a_configured_profile_takes_precedence(name: str) -> None:
    ladder = UploadStrategy(configured_profile=lambda host: PROFILES_BY_NAME[name] if host == "quay.io" else None)
    ladder.observe_headers("quay.io", lambda header: "Nexus/3" if header == "Server" else None)
    assert ladder.profile("quay.io") is PROFILES_BY_NAME[name]
    assert ladder.profile("docker.io").name == "Docker Hub"
