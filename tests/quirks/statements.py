"""What real registries do, and what others put into archives: each statement with its number, and where it was seen.

A number never changes its meaning; what is found out later gets the next one. `seen` names the registries, and the
threads in which they were caught at it.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import pytest


@dataclasses.dataclass(frozen=True)
class Statement:
    """One thing that a client has to live with, in one line."""

    text: str
    seen: str


def quirk(number: int) -> pytest.MarkDecorator:
    """Say that a test shows statement `number`; a test may show several."""
    assert number in QUIRKS, number
    return pytest.mark.quirk(number)


QUIRKS: Final[dict[int, Statement]] = {
    # Upload
    1: Statement(
        "An upload's Location is relative, absolute, or under another prefix; it is resolved against the request",
        "Google Artifact Registry, Harbor; distribution-spec#79, harbor#5001, rust-oci-client#175",
    ),
    2: Statement(
        "digest= is added to a query that is there with &, and the rest stays byte for byte (_state=...%3D)",
        "distribution",
    ),
    3: Statement(
        "Each answer's Location is the one to go on with: the offset may be in it", "distribution; oras-py#150"
    ),
    4: Statement(
        "An http Location after https is not followed; port 443 and no port are one host",
        "registries behind proxies; distribution#123, oras-go#177",
    ),
    5: Statement("An upload on another host gets no Authorization", "object storage; GHSA-jxpm-75mh-9fp7"),
    6: Statement(
        "A streamed PATCH has no Content-Range; a chunk's is 0-99 and not bytes 0-99/*",
        "zot, ACR; distribution-spec#506",
    ),
    7: Statement("POST, one streamed PATCH, PUT with the digest and no body: what all take", "docker, skopeo, crane"),
    8: Statement(
        "No chunks at all, chunks of 4 MiB at most (else 416), or a Range that stalls after the first chunk",
        "Google Artifact Registry; GHCR, rust-oci-client#35; ECR, containers-roadmap#2831",
    ),
    9: Statement(
        "A body that is too large is refused with 413, and chunks are not",
        "ACR, harbor#23015; Cloudflare; Quay, oras-py#137",
    ),
    10: Statement(
        "A Range that goes backwards is not believed; after 416 or 5xx the upload itself is asked where it is",
        "Aliyun; regclient#627",
    ),
    11: Statement("OCI-Chunk-Min-Length is honoured, but never past the memory there is", "distribution-spec 1.1"),
    12: Statement("PATCH is answered by 201, 202 or 204, PUT by 200, 201, 202 or 204", "ECR, tart#273; Quay, Nexus"),
    13: Statement(
        "A token that ends during an upload is renewed, and the closing PUT alone is sent again",
        "Hub, GitLab; moby#33558, containers-image#1907",
    ),
    14: Statement(
        "A session that waits for its first byte is closed, so it is opened when that is there", "skopeo#2101"
    ),
    15: Statement("An abandoned session is deleted, and if that fails nothing comes of it", "distribution, ECR"),
    16: Statement("A blob of no bytes is a PUT without a body", "distribution"),
    # Mount, auth
    17: Statement(
        "A mount without from is refused, any error means an upload, and so does 202, whose Location may say mount=",
        "Quay, ggcr#1404, ggcr#1679; zot#573",
    ),
    18: Statement("A mount's token is for both repositories, the one that is pushed to first", "Hub, ECR, ggcr"),
    19: Statement(
        "token or access_token; no OAuth2 behind POST; a 401 that does not say how",
        "ACR, distribution; gcr.io",
    ),
    20: Statement(
        "A blob is somewhere else, where Authorization is refused; the redirect may be relative",
        "S3, GCS, Azure; nexus-public#1061",
    ),
    21: Statement("Who sends the cookies back is asked for a CSRF token", "Harbor"),
    # Reading
    22: Statement("Content is compressed on the way unless identity is asked for", "Quay behind a CDN; quay#1310"),
    23: Statement(
        "HEAD has no Content-Length, and nobody says the digest, or a wrong one: the bytes decide",
        "distribution#4895; ECR, Nexus",
    ),
    24: Statement(
        "A part is asked for and all comes (200), or another part: known bytes are passed over, within a bound",
        "container-libs#1114",
    ),
    25: Statement("A manifest that is asked for by digest has to have it", "regclient GHSA-qv35-3gw6-8q4j"),
    26: Statement(
        "Lists of tags have nulls and digests in them, refuse n above 1000, link to pages relatively and in circles",
        "Nexus; Artifactory; ECR",
    ),
    27: Statement('"Not found" is UNKNOWN with a text, or 403', "Harbor 2.10, containers-image#2203; Hub, Quay"),
    # Manifests, rates
    28: Statement(
        "A manifest's Content-Type is its mediaType, else what the descriptor says, and its bytes stay as they are",
        "ECR",
    ),
    29: Statement("429 on any request, with seconds, a date, or nothing to say how long", "Hub, GHCR; Quay"),
    30: Statement("408, 5xx and broken connections are tried again, other refusals are not", "all of them"),
    31: Statement(
        "Without OCI-Subject in the answer, and without the referrers API, sha256-<hex> lists what refers to an image",
        "GHCR, GitLab, Nexus; distribution-spec 1.1",
    ),
    32: Statement("cosign's sha256-<hex>.sig, .att and .sbom are parts of an image", "cosign"),
    # Archives of others
    33: Statement(
        "blobs/ comes before index.json; older: <id>/layer.tar with links, plain layers, the list at the end",
        "containerd, docker 25; docker 1.10 to 24",
    ),
    34: Statement("LayerSources are ordinary layers", "docker 25; ggcr#1870"),
    35: Statement("docker load wants a manifest.json with a tag; it may point into blobs/", "docker 20.10"),
    36: Statement(
        "io.containerd.image.name is the full name, org.opencontainers.image.ref.name the tag; an entry for each",
        "containerd; image-spec#796",
    ),
    37: Statement("A layout lacks blobs that it lists, and has files that nobody lists", "image-spec, image-layout.md"),
    38: Statement("What a layer's urls name is never asked for", "CVE-2020-15157"),
    # Found on the way
    39: Statement("No Docker-Upload-UUID: an upload is known by its Location alone", "ECR; distribution#2927"),
    40: Statement(
        "The Range after a PATCH is the last chunk's, that of nothing (0--1), or is not there",
        "distribution-spec#580; gitea#34792",
    ),
    41: Statement(
        "A blob in one PUT is refused, and in a PATCH it is not",
        "Artifactory, with 404 BLOB_UNKNOWN; containerd#3533, moby/buildkit#1130",
    ),
    42: Statement(
        "Who may push may not look: whether something is there is answered by 403",
        "ECR without BatchGetImage; rules_oci#648",
    ),
    # Requests, one by one
    43: Statement(
        "A challenge names scopes that were not requested: they are added behind ours, sixteen at most",
        "distribution, Token Authentication; GitLab",
    ),
    44: Statement(
        "A token is shown only for the login that it was given to, and only as long as it is good",
        "Quay's robot accounts, podman's logins by namespace",
    ),
    45: Statement("Challenges come in every form of RFC 9110, and realms are absolute http(s) URLs or refused", "all"),
    46: Statement("What a token server answers is a token or an error that shows nothing of it", "all of them"),
    47: Statement(
        "A mount is asked of the first repository, of others only where they have the blob, of none that refused",
        "Harbor, Quay; ggcr#1404",
    ),
    48: Statement("An answer that was lost does not mean that its request was not carried out", "all of them"),
    49: Statement(
        "An upload that broke continues where the registry says, if that can be so; else another takes its place",
        "distribution; containers-roadmap#2831",
    ),
    50: Statement("An upload of an earlier run continues, or is deleted where it is by now", "distribution 2.8, zot"),
    51: Statement("What is kept of an upload between runs is private, and believed only if it can be so", "ocistream"),
    52: Statement(
        "A mirror that is down, refuses or lacks something costs a request or two, and the registry has the last word",
        "pull-through caches; Artifactory, Harbor",
    ),
    53: Statement(
        "A mirror may lie: what it gives has the digest that was asked for, or is read elsewhere", "any cache"
    ),
    54: Statement(
        "Credentials are looked for in one order of places, and the first that knows the registry wins",
        "docker, podman",
    ),
    55: Statement(
        "Docker's and Podman's files and helpers are read as these tools do: the longest namespace counts",
        "containers-auth.json(5); docker login",
    ),
    56: Statement("A login is kept as docker login does it, and nothing else in the file changes", "docker login"),
    57: Statement("A registry that stored another manifest than was sent says so by its digest", "distribution-spec"),
    58: Statement("A tag does not exist: what may have been meant is told, if the registry says so at once", "all"),
    59: Statement(
        "Referrers are asked for once for each manifest, listed in pages, or kept by clients under a tag",
        "distribution-spec 1.1; GHCR, GitLab, Harbor",
    ),
    60: Statement(
        "A way of uploading that was asked for is obeyed; else what is refused leads to another, and that is learnt",
        "nginx before a registry; Artifactory, ECR, Google Artifact Registry",
    ),
    61: Statement(
        "A request that breaks costs the whole upload: what is worth keeping is sent in the chunked transfer coding",
        "distribution 2.8, Harbor",
    ),
    62: Statement(
        "A blob that breaks off continues to the byte, and what is not it is found", "S3, CDNs, proxies; all"
    ),
    63: Statement(
        "A manifest is what it says it is, and what its digest says, by sha256 or sha512",
        "distribution#4895; image-spec, descriptor.md",
    ),
    64: Statement("Nothing is sent that exists, and a tag comes last of all", "distribution-spec, Pushing Manifests"),
    65: Statement(
        "Of a large image whose manifest exists only some blobs are asked about, and all where one is lost",
        "Hub's rate limits; garbage collection of registries",
    ),
}
