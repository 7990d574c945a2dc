"""Which suites are run against a mutant of which module. The first area that matches counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Area:
    """Modules (a regular expression for their paths), and the suites that may notice a change, quick ones first."""

    name: str
    modules: str
    suites: tuple[str, ...]


def _cli(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/cli/test_{name}.py" for name in names)


AREAS: Final = (
    Area("serve", r"/serve/", ("tests/serve", "tests/conformance", *_cli("serve", "serve_options", "serve_strangers"))),
    Area("sync", r"/sync/|cli/(sync|split)", _cli("sync", "sync_examples", "sync_registries", "results")),
    Area(
        "command line",
        r"/cli/",
        (
            *_cli("pull", "push", "copy", "inspect", "exit_codes", "config", "defaults", "sides", "network_options"),
            *_cli("progress", "results", "help", "completion", "environment", "login", "gc", "rm", "tags", "have"),
            *_cli("left_out", "via", "signals", "streams", "volumes", "verify", "upload"),
            "tests/errors",
        ),
    ),
    Area(
        "auth and configuration",
        r"/(auth|config)/",
        ("tests/quirks", "tests/http", *_cli("login", "credential_files", "config", "environment", "mirrors", "sides")),
    ),
    Area(
        "upload",
        r"/registry/(upload|profiles|learnt_hosts)|/open_uploads",
        ("tests/quirks", *_cli("upload", "push", "push_continues", "going_on", "copy"), "tests/matrix"),
    ),
    Area(
        "HTTP",
        r"/http/|/transfer/prefetch",
        ("tests/http", "tests/quirks", "tests/limits", *_cli("pull", "network_options", "exit_codes"), "tests/matrix"),
    ),
    Area(
        "registry",
        r"/registry/",
        ("tests/quirks", "tests/limits", *_cli("pull", "push", "copy", "referrers", "tags", "mirrors"), "tests/matrix"),
    ),
    Area("remote command", r"/remote/", _cli("via", "via_continues", "have", "left_out")),
    Area(
        "cache and gc",
        r"/layout/(cache|cached_repository|gc|removal)",
        ("tests/contract", *_cli("cache", "gc", "rm")),
    ),
    Area(
        "volumes",
        r"/archive/(volume|joined)|/oci/volumes",
        ("tests/contract", *_cli("volumes", "verify"), "tests/hostile"),
    ),
    Area(
        "recompression",
        r"/transfer/(recompress|rewrite)|/streams/(compression|layer_types)",
        ("tests/unit/streams/test_compression.py", *_cli("compress"), "tests/hostile", "tests/contract"),
    ),
    Area(
        "archives and layouts",
        r"/(archive|layout|stores)/",
        (
            "tests/contract",
            "tests/limits",
            "tests/hostile",
            *_cli(
                "docker_archive",
                "docker_save",
                "index_entries",
                "incomplete_indexes",
                "verify",
                "inspect",
                "pull",
                "push",
            ),
            *_cli("planted_links", "going_on", "closed_paths"),
        ),
    ),
    Area(
        "transfer and documents",
        "",
        (
            "tests/contract",
            "tests/limits",
            "tests/hostile",
            *_cli(
                "pull", "push", "copy", "verify", "inspect", "incomplete_indexes", "referrers", "left_out", "results"
            ),
            "tests/quirks",
            "tests/matrix",
        ),
    ),
)

#: Parts of a survivor's line -> why no test notices it.
SURVIVING_FOR_A_REASON: Final[tuple[tuple[str, str], ...]] = ()
