"""Registries as data: lists of quirks, and authentication.

A model's name only says where its quirks were seen together. Sizes are the real ones, where a test can have blobs of
that size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from tests.faulty_auth import Auth, Basic, Bearer
from tests.quirks.quirky_registry import Quirk
from tests.quirks.registry_quirks import (
    BLOBS_ELSEWHERE,
    COOKIES,
    DROPS,
    GZIPS,
    KEEPS_TYPES,
    MOUNT_IS_UPLOAD,
    MOUNT_WANTS_FROM,
    NO_DIGESTS,
    NO_LOOKING,
    NO_PARTS,
    NO_SUBJECT,
    NOT_FOUND_IS_403,
    RELATIVE_REDIRECT,
    UNKNOWN_IN_WORDS,
    UNSIZED_HEAD,
    WRONG_DIGESTS,
    in_trouble,
    no_referrers,
    refused_mounts,
    too_many,
)
from tests.quirks.upload_quirks import (
    ABSOLUTE,
    BACKWARD_RANGE,
    LAST_RANGE,
    NO_CHUNKS,
    NO_LATER_LOCATION,
    NO_RANGE,
    NO_SINGLE_PUT,
    NO_UUID,
    OTHER_PREFIX,
    RELATIVE,
    STALLED_RANGE,
    STATE,
    TOKENS_END,
    UPLOADS_ELSEWHERE,
    answering,
    chunks_of_at_least,
    no_larger_than,
)

MIB: Final = 1 << 20
USER: Final = "ada"
PASSWORD: Final = "lovelace: the 1st"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A registry as its quirks and its authentication: USER with PASSWORD, or none."""

    name: str
    quirks: tuple[Quirk, ...]
    auth: Callable[[], Auth | None] = lambda: None

    def __str__(self) -> str:
        return self.name


def _basic() -> Auth:
    return Basic(USER, PASSWORD)


def _bearer(**options: Any) -> Callable[[], Auth]:
    return lambda: Bearer({USER: PASSWORD}, anonymous=(), **options)


KINDS: Final = (
    Kind("GAR", (ABSOLUTE, OTHER_PREFIX, NO_CHUNKS, NO_UUID), _bearer()),
    Kind("gcr.io", (RELATIVE_REDIRECT,), _basic),
    Kind(
        "GHCR",
        (
            no_larger_than(4 * MIB, 416, chunks_only=True),
            BLOBS_ELSEWHERE,
            no_referrers(404),
            NO_SUBJECT,
            too_many("seconds"),
        ),
        _bearer(),
    ),
    Kind(
        "ECR",
        (
            ABSOLUTE,
            STALLED_RANGE,
            answering("PATCH", 201),
            NO_UUID,
            NO_DIGESTS,
            BLOBS_ELSEWHERE,
            NO_LOOKING,
        ),
        _basic,
    ),
    Kind(
        "ACR",
        (STATE, no_larger_than(20 * MIB, 413, "PUT"), no_larger_than(20 * MIB, 413, chunks_only=True), BLOBS_ELSEWHERE),
        _bearer(field="access_token"),
    ),
    Kind(
        "Quay",
        (MOUNT_WANTS_FROM, GZIPS, too_many("nothing"), answering("PATCH", 204), BLOBS_ELSEWHERE),
        _bearer(oauth2=False),
    ),
    Kind("Hub", (STATE, ABSOLUTE, BLOBS_ELSEWHERE, too_many("date"), NOT_FOUND_IS_403), _bearer()),
    Kind("GitLab", (STATE, TOKENS_END, BLOBS_ELSEWHERE, no_referrers(404), NO_SUBJECT), _bearer(scope=False)),
    Kind("Harbor", (STATE, COOKIES, UNKNOWN_IN_WORDS, refused_mounts(404)), _bearer()),
    Kind("Artifactory", (ABSOLUTE, NO_SINGLE_PUT, no_referrers(404), NO_SUBJECT), _basic),
    Kind("Nexus", (UNSIZED_HEAD, NO_DIGESTS, RELATIVE_REDIRECT, no_referrers(400), NO_SUBJECT), _basic),
    Kind("Gitea", (NO_RANGE, LAST_RANGE), _basic),
    Kind("Aliyun", (BACKWARD_RANGE, STATE, MOUNT_IS_UPLOAD), _bearer(challenge=False)),
    Kind("zot", (MOUNT_IS_UPLOAD, RELATIVE), _basic),
    Kind("behind a proxy", (no_larger_than(10 * MIB, 413, "PUT"), GZIPS, in_trouble(502), DROPS), _basic),
)

#: Each quirk alone, with the number of its statement. A test pushes and pulls an image with each of them.
ALONE: Final[tuple[tuple[int, Quirk], ...]] = (
    (1, ABSOLUTE),
    (1, RELATIVE),
    (1, OTHER_PREFIX),
    (2, STATE),
    (3, NO_LATER_LOCATION),
    (5, UPLOADS_ELSEWHERE),
    (8, NO_CHUNKS),
    (8, no_larger_than(4 * MIB, 416, chunks_only=True)),
    (8, STALLED_RANGE),
    (9, no_larger_than(20 * MIB, 413, "PUT")),
    (10, BACKWARD_RANGE),
    (11, chunks_of_at_least(5 * MIB)),
    (11, chunks_of_at_least(1 << 40)),
    *((12, answering("PATCH", status)) for status in (200, 201, 204)),
    *((12, answering("PUT", status)) for status in (200, 202, 204)),
    (17, MOUNT_WANTS_FROM),
    (17, MOUNT_IS_UPLOAD),
    (20, BLOBS_ELSEWHERE),
    (20, RELATIVE_REDIRECT),
    (21, COOKIES),
    (22, GZIPS),
    (23, UNSIZED_HEAD),
    (23, NO_DIGESTS),
    (23, WRONG_DIGESTS),
    (24, NO_PARTS),
    (27, UNKNOWN_IN_WORDS),
    (28, KEEPS_TYPES),
    (29, too_many("seconds")),
    (29, too_many("date")),
    (29, too_many("nothing")),
    *((30, in_trouble(status)) for status in (408, 500, 502, 503, 504)),
    (30, DROPS),
    (31, NO_SUBJECT),
    (31, no_referrers(404)),
    (31, no_referrers(400)),
    (39, NO_UUID),
    (40, LAST_RANGE),
    (40, NO_RANGE),
    (41, NO_SINGLE_PUT),
    (42, NO_LOOKING),
    (27, NOT_FOUND_IS_403),
)
