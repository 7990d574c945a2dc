"""The cases of the distribution-spec's conformance suite (v1.1.1, `conformance/0*_test.go`), by their names there.

A case has a chapter, a context and a text. A case that the suite has twice, for example because a registry may require
that manifests are deleted before or after blobs, is listed once. `DATA` are the kinds of content of the newer suite (on
`main`, without texts), which pushes, lists, pulls and deletes each of them.
"""

from __future__ import annotations

from typing import Final

import pytest

#: Chapter, context, and the texts in it, in the suite's order.
CHAPTERS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "Pull": {
        "Setup": (
            "Populate registry with test blob",
            "Populate registry with test layer",
            "Populate registry with test manifest",
            "Get tag name from environment",
        ),
        "Pull blobs": (
            "HEAD request to nonexistent blob should result in 404 response",
            "HEAD request to existing blob should yield 200",
            "GET nonexistent blob should result in 404 response",
            "GET request to existing blob URL should yield 200",
        ),
        "Pull manifests": (
            "HEAD request to nonexistent manifest should return 404",
            "HEAD request to manifest[0] path (digest) should yield 200 response",
            "HEAD request to manifest[1] path (digest) should yield 200 response",
            "HEAD request to manifest path (tag) should yield 200 response",
            "GET nonexistent manifest should return 404",
            "GET request to manifest[0] path (digest) should yield 200 response",
            "GET request to manifest[1] path (digest) should yield 200 response",
            "GET request to manifest path (tag) should yield 200 response",
        ),
        "Error codes": ("400 response body should contain OCI-conforming JSON message",),
        "Teardown": (
            "Delete manifest[0] created in setup",
            "Delete manifest[1] created in setup",
            "Delete config[0] blob created in setup",
            "Delete config[1] blob created in setup",
            "Delete layer blob created in setup",
        ),
    },
    "Push": {
        "Blob Upload Streamed": (
            "PATCH request with blob in body should yield 202 response",
            "PUT request to session URL with digest should yield 201 response",
        ),
        "Blob Upload Monolithic": (
            "GET nonexistent blob should result in 404 response",
            "POST request with digest and blob should yield a 201 or 202",
            "GET request to blob URL from prior request should yield 200 or 404 based on response code",
            "POST request should yield a session ID",
            "PUT upload of a blob should yield a 201 Response",
            "GET request to existing blob should yield 200 response",
            "PUT upload of a layer blob should yield a 201 Response",
            "GET request to existing layer should yield 200 response",
        ),
        "Blob Upload Chunked": (
            "Out-of-order blob upload should return 416",
            "PATCH request with first chunk should return 202",
            "Retry previous blob chunk should return 416",
            "Get on stale blob upload should return 204 with a range and location",
            "PATCH request with second chunk should return 202",
            "PUT request with digest should return 201",
        ),
        "Cross-Repository Blob Mount": (
            "Cross-mounting of a blob without the from argument should yield session id",
            "POST request to mount another repository's blob should return 201 or 202",
            "GET request to test digest within cross-mount namespace should return 200",
            "Cross-mounting of nonexistent blob should yield session id",
            "Cross-mounting without from, and automatic content discovery enabled should return a 201",
            "Cross-mounting without from, and automatic content discovery disabled should return a 202",
        ),
        "Manifest Upload": (
            "GET nonexistent manifest should return 404",
            "PUT should accept a manifest upload",
            "Registry should accept a manifest upload with no layers",
            "GET request to manifest URL (digest) should yield 200 response",
        ),
        "Teardown": (
            "Delete manifest created in tests",
            "Delete config blob created in tests",
            "Delete layer blob created in setup",
        ),
    },
    "Content Discovery": {
        "Setup": (
            "Populate registry with test blob",
            "Populate registry with test layer",
            "Populate registry with test tags",
            "Populate registry with test tags (no push)",
            "References setup",
        ),
        "Test content discovery endpoints (listing tags)": (
            "GET request to list tags should yield 200 response",
            "GET number of tags should be limitable by `n` query parameter",
            "GET start of tag is set by `last` query parameter",
        ),
        "Test content discovery endpoints (listing references)": (
            "GET request to nonexistent blob should result in empty 200 response",
            "GET request to existing blob should yield 200",
            "GET request to existing blob with filter should yield 200",
            "GET request to missing manifest should yield 200",
        ),
        "Teardown": (
            "Delete created manifest & associated tags",
            "Delete config blob created in tests",
            "Delete layer blob created in setup",
            "References teardown",
        ),
    },
    "Content Management": {
        "Setup": (
            "Populate registry with test config blob",
            "Populate registry with test layer",
            "Populate registry with test tag",
            "Check how many tags there are before anything gets deleted",
        ),
        "Manifest delete": (
            "DELETE request to manifest tag should return 202, unless tag deletion is disallowed (400/405)",
            "DELETE request to manifest (digest) should yield 202 response unless already deleted",
            "GET request to deleted manifest URL should yield 404 response, unless delete is disallowed",
            "GET request to tags list should reflect manifest deletion",
        ),
        "Blob delete": (
            "DELETE request to blob URL should yield 202 response",
            "GET request to deleted blob URL should yield 404 response",
        ),
    },
}

#: Every case, "CHAPTER / CONTEXT / TEXT".
CASES: Final[tuple[str, ...]] = tuple(
    f"{chapter} / {context} / {text}"
    for chapter, contexts in CHAPTERS.items()
    for context, texts in contexts.items()
    for text in texts
)

#: Kinds of content, with their names in the suite's report.
DATA: Final[tuple[str, ...]] = (
    "Artifact",
    "Artifact Index",
    "Artifact without Layers",
    "Artifacts with Subject",
    "Bad Digest Image",
    "Custom Fields",
    "Data Field",
    "Digest Algorithm sha512",
    "Empty Index",
    "Image",
    "Image Uncompressed",
    "Image with Large Manifest",
    "Index",
    "Index with Subject",
    "Missing Subject",
    "Nested Index",
    "No Layers",
    "Non-distributable Layers",
    "Sparse Manifests",
    "Tag Param",
    "Tag Param sha512",
)


def case(chapter: str, context: str, text: str) -> pytest.MarkDecorator:
    """Mark a test as this case of the suite."""
    name = f"{chapter} / {context} / {text}"
    assert name in CASES, name
    return pytest.mark.conformance(name)


def data(kind: str) -> pytest.MarkDecorator:
    """Mark a test as a test of this kind of content."""
    assert kind in DATA, kind
    return pytest.mark.conformance(f"Data / {kind}")
