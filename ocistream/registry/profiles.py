"""The table of known registries: how to recognize a registry, and how its uploads behave.

Data only; no other module tests for a registry's name. A wrong entry costs one refused request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocistream.limits import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

#: POST, one PATCH without a Content-Range, PUT without a body: what docker, skopeo and crane do.
STREAM: Final = "stream"
#: POST, one PUT with the digest and the body: what containerd and oras do.
PUT: Final = "put"
#: POST, PATCHes that state their range and length, each to the Location of the answer before, PUT without a body.
CHUNK: Final = "chunk"


@dataclass(frozen=True, slots=True)
class RegistryProfile:
    """How the uploads of one kind of registry behave. Sizes are in bytes.

    A profile has only what spares a refused request; the upload detects everything else. The comment at its name gives
    the sources of its facts.
    """

    name: str
    #: Whole host names, without a port, as regular expressions.
    hosts: tuple[str, ...] = ()
    #: Response headers that only this kind sends, each with a regular expression to search for in its value.
    headers: tuple[tuple[str, str], ...] = ()
    #: The upload methods that the registry accepts; the first is tried first for all but small blobs. Those go by one
    #: PUT, if the registry accepts that.
    methods: tuple[str, ...] = (STREAM, PUT, CHUNK)
    #: The largest body of a PATCH with a Content-Range; None if no limit is known.
    largest_chunk: int | None = None
    #: Whether a broken upload can be resumed at the offset that the registry reports.
    can_resume: bool = True
    #: Whether a broken request loses the complete upload. If so, a PATCH of known length also uses the chunked transfer
    #: coding, as `docker push` does for all layers: the client can end such a request properly when it is interrupted.
    loses_interrupted_uploads: bool = False


#: The profile of every other registry (distribution-spec, "Pushing blobs").
UNKNOWN_PROFILE: Final = RegistryProfile("unknown")

PROFILES: Final = (
    RegistryProfile(
        # cloud.google.com/artifact-registry/docs/reference/docker-api; dotnet/sdk-container-builds#287
        "Google Artifact Registry",
        hosts=(r"(?:[a-z0-9-]+\.)?gcr\.io", r"[a-z0-9-]+\.pkg\.dev"),
        # An upload is one request; Content-Range and resuming are refused.
        methods=(STREAM, PUT),
        can_resume=False,
    ),
    RegistryProfile(
        # oras-project/rust-oci-client#35; wasmCloud/wash-archive#268
        "GitHub Packages",
        hosts=(r"ghcr\.io",),
        headers=(("X-GitHub-Request-Id", r"."),),
        # A streamed PATCH may have any size, as docker's has. Only a PATCH with a Content-Range is limited.
        largest_chunk=4 * MIB,
    ),
    RegistryProfile(
        # aws/containers-roadmap#2831; docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html
        "Amazon ECR",
        hosts=(
            r"[0-9]{12}\.dkr[.-]ecr(?:-fips)?\.[a-z0-9-]+\.(?:amazonaws\.com(?:\.cn)?|on\.aws|on\.amazonwebservices\.com\.cn)",
            r"(?:ecr-)?public\.ecr\.aws",
        ),
        # The Range of its responses does not change after the first PATCH, so the offset is unknown.
        methods=(STREAM, PUT),
        can_resume=False,
    ),
    RegistryProfile(
        # goharbor/harbor#23015; goharbor/harbor#23016; dotnet/sdk-container-builds#258
        "Azure Container Registry",
        hosts=(r"[a-z0-9-]+(?:\.[a-z0-9]+\.data)?\.azurecr\.(?:io|us|cn)",),
        headers=(("Server", r"\AAzureContainerRegistry\b"),),
        # A PUT of more than about 20 MB is refused with 413; chunks and streams are accepted.
        methods=(STREAM, CHUNK, PUT),
    ),
    RegistryProfile(
        # oras-project/oras-py#137
        "Quay",
        hosts=(r"quay\.io",),
        # At most 20 GB in one request.
        methods=(STREAM, CHUNK, PUT),
    ),
    RegistryProfile(
        # docs.docker.com/reference/api/registry/latest; kitops-ml/kitops#329
        "Docker Hub",
        hosts=(r"docker\.io", r"(?:index|registry-1)\.docker\.io"),
        headers=(("Docker-RateLimit-Source", r"."),),
    ),
    RegistryProfile(
        # gitlab.com/gitlab-org/container-registry!166; gitlab.com/gitlab-org/container-registry!1393
        "GitLab",
        hosts=(r"registry\.gitlab\.com",),
        headers=(("Gitlab-Container-Registry-Version", r"."),),
        # A wrong Content-Range is answered with 416 and the right offset.
    ),
    RegistryProfile(
        # docker/buildx#196; containerd/containerd#3533; moby/buildkit#1130
        "Artifactory",
        hosts=(r"[a-z0-9-]+\.jfrog\.io",),
        headers=(("Server", r"\AArtifactory\b"), ("X-Artifactory-Id", r"."), ("X-JFrog-Version", r".")),
        # A PUT with a body is answered with 404 BLOB_UNKNOWN.
        methods=(STREAM, CHUNK),
    ),
    RegistryProfile(
        # sonatype/nexus-public#1040; sonatype/nexus-public#1061
        "Nexus",
        headers=(("Server", r"\ANexus/"),),
    ),
    RegistryProfile(
        # goharbor/harbor#12192; goharbor/harbor#23016
        "Harbor",
        hosts=(r"demo\.goharbor\.io",),
        headers=(("WWW-Authenticate", r'\bservice="harbor-registry"'),),
        # Its registry is distribution 2.8.
        loses_interrupted_uploads=True,
    ),
    RegistryProfile(
        # ocistream/serve/uploads.py
        "ocistream",
        headers=(("Server", r"\Aocistream\b"),),
        # `ocistream serve` keeps the bytes that arrived, and accepts Content-Range only with Content-Length.
    ),
    # Must be last: many other registries send this header too. The same treatment is safe for them.
    RegistryProfile(
        # distribution 2.8, registry/handlers/blobupload.go; tests/interop/test_interrupted_push.py
        "distribution",
        headers=(("Docker-Distribution-Api-Version", r"\Aregistry/2\.0\Z"),),
        # In 2.8 an upload's Location contains its offset. After a broken request more bytes are stored than any
        # Location says, and the upload is answered with 404 BLOB_UPLOAD_INVALID. 2.8 never deletes it either.
        loses_interrupted_uploads=True,
    ),
)


#: All profiles by their names in a configuration: `harbor`, `amazon-ecr`; `unknown` follows the spec.
PROFILES_BY_NAME: Final = {known.name.lower().replace(" ", "-"): known for known in (*PROFILES, UNKNOWN_PROFILE)}


def find_profile(host: str) -> RegistryProfile:
    """Return the profile of a `HOST[:PORT]`, or `UNKNOWN_PROFILE`."""
    name = host.lower() if host.startswith("[") else host.lower().partition(":")[0]
    return next(
        (profile for profile in PROFILES if any(re.fullmatch(pattern, name) for pattern in profile.hosts)),
        UNKNOWN_PROFILE,
    )


def find_profile_by_headers(header: Callable[[str], str | None]) -> RegistryProfile | None:
    """Return the profile that a response's headers show, or None. `header` returns a header's value by its name."""
    for profile in PROFILES:
        for name, pattern in profile.headers:
            value = header(name)
            if value is not None and re.search(pattern, value):
                return profile
    return None
