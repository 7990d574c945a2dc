"""The table of known registries: how to recognize a registry, and how its uploads behave.

Data only; no other module tests for a registry's name. A wrong entry costs one refused request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocistream.limits import MIB
from ocistream.registry.upload_methods import CHUNK, PUT, STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "PROFILES",
    "PROFILES_BY_NAME",
    "UNKNOWN_PROFILE",
    "RegistryProfile",
    "find_profile",
    "find_profile_by_headers",
]


@dataclass(frozen=True, slots=True)
class RegistryProfile:
    """What holds for one kind of registry. Sizes are in bytes."""

    name: str
    #: Whole host names, without a port, as regular expressions.
    hosts: tuple[str, ...] = ()
    #: Headers of answers that only this kind gives, with a regular expression that is searched for in their values.
    headers: tuple[tuple[str, str], ...] = ()
    #: The ways of uploading that it takes; the first is where to begin.
    methods: tuple[str, ...] = (STREAM, PUT, CHUNK)
    #: The largest body of a PATCH with a Content-Range; None where none is known.
    largest_chunk: int | None = None
    #: Whether an upload that broke may be gone on with, at the offset that the registry states.
    can_resume: bool = True
    #: Whether a request that breaks costs the whole upload. Then a PATCH of known length, too, is sent in the chunked
    #: transfer coding, as `docker push` sends all layers: such a request has a proper end when a push is interrupted.
    loses_interrupted_uploads: bool = False
    #: Where this is known from.
    documented_in: tuple[str, ...] = ()


#: What holds for everybody else.
UNKNOWN_PROFILE: Final = RegistryProfile("unknown", documented_in=("distribution-spec, Pushing blobs",))

PROFILES: Final = (
    RegistryProfile(
        "Google Artifact Registry",
        hosts=(r"(?:[a-z0-9-]+\.)?gcr\.io", r"[a-z0-9-]+\.pkg\.dev"),
        # An upload is one request; a range in it is refused, and so is going on.
        methods=(STREAM, PUT),
        can_resume=False,
        documented_in=(
            "cloud.google.com/artifact-registry/docs/reference/docker-api",
            "dotnet/sdk-container-builds#287",
        ),
    ),
    RegistryProfile(
        "GitHub Packages",
        hosts=(r"ghcr\.io",),
        headers=(("X-GitHub-Request-Id", r"."),),
        # A streamed PATCH may have any size (docker's has); what states its range may not.
        largest_chunk=4 * MIB,
        documented_in=("oras-project/rust-oci-client#35", "wasmCloud/wash-archive#268"),
    ),
    RegistryProfile(
        "Amazon ECR",
        hosts=(
            r"[0-9]{12}\.dkr[.-]ecr(?:-fips)?\.[a-z0-9-]+\.(?:amazonaws\.com(?:\.cn)?|on\.aws|on\.amazonwebservices\.com\.cn)",
            r"(?:ecr-)?public\.ecr\.aws",
        ),
        # The Range of its answers stands still after the first PATCH, so nobody knows where to go on.
        methods=(STREAM, PUT),
        can_resume=False,
        documented_in=(
            "aws/containers-roadmap#2831",
            "docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html",
        ),
    ),
    RegistryProfile(
        "Azure Container Registry",
        hosts=(r"[a-z0-9-]+(?:\.[a-z0-9]+\.data)?\.azurecr\.(?:io|us|cn)",),
        headers=(("Server", r"\AAzureContainerRegistry\b"),),
        # One PUT of more than about 20 MB is refused with 413; chunks and streams are not.
        methods=(STREAM, CHUNK, PUT),
        documented_in=("goharbor/harbor#23015", "goharbor/harbor#23016", "dotnet/sdk-container-builds#258"),
    ),
    RegistryProfile(
        "Quay",
        hosts=(r"quay\.io",),
        # Not more than 20 GB in one request.
        methods=(STREAM, CHUNK, PUT),
        documented_in=("oras-project/oras-py#137",),
    ),
    RegistryProfile(
        "Docker Hub",
        hosts=(r"docker\.io", r"(?:index|registry-1)\.docker\.io"),
        headers=(("Docker-RateLimit-Source", r"."),),
        documented_in=("docs.docker.com/reference/api/registry/latest", "kitops-ml/kitops#329"),
    ),
    RegistryProfile(
        "GitLab",
        hosts=(r"registry\.gitlab\.com",),
        headers=(("Gitlab-Container-Registry-Version", r"."),),
        # A chunk's range is checked, and a wrong one answered with 416 and where to go on.
        documented_in=("gitlab.com/gitlab-org/container-registry!166", "gitlab.com/gitlab-org/container-registry!1393"),
    ),
    RegistryProfile(
        "Artifactory",
        hosts=(r"[a-z0-9-]+\.jfrog\.io",),
        headers=(("Server", r"\AArtifactory\b"), ("X-Artifactory-Id", r"."), ("X-JFrog-Version", r".")),
        # A PUT with a body is answered with 404 BLOB_UNKNOWN.
        methods=(STREAM, CHUNK),
        documented_in=("docker/buildx#196", "containerd/containerd#3533", "moby/buildkit#1130"),
    ),
    RegistryProfile(
        "Nexus",
        headers=(("Server", r"\ANexus/"),),
        documented_in=("sonatype/nexus-public#1040", "sonatype/nexus-public#1061"),
    ),
    RegistryProfile(
        "Harbor",
        hosts=(r"demo\.goharbor\.io",),
        headers=(("WWW-Authenticate", r'\bservice="harbor-registry"'),),
        # Its registry is distribution 2.8.
        loses_interrupted_uploads=True,
        documented_in=("goharbor/harbor#12192", "goharbor/harbor#23016"),
    ),
    RegistryProfile(
        "ocistream",
        headers=(("Server", r"\Aocistream\b"),),
        # `ocistream serve` keeps what has arrived, and takes a Content-Range only with a Content-Length.
        documented_in=("ocistream/serve/uploads.py",),
    ),
    # The last one: many others send this header as well. To lose nothing, they are treated in the same way.
    RegistryProfile(
        "distribution",
        headers=(("Docker-Distribution-Api-Version", r"\Aregistry/2\.0\Z"),),
        # In 2.8 the Location of an upload states its offset. After a request that broke in its middle more bytes are
        # stored than any Location states, and the upload is answered with 404 BLOB_UPLOAD_INVALID.
        loses_interrupted_uploads=True,
        documented_in=("distribution 2.8, registry/handlers/blobupload.go", "tests/interop/test_interrupted_push.py"),
    ),
)


#: All of them as a configuration names them: `harbor`, `amazon-ecr`; `unknown` for what follows the spec.
PROFILES_BY_NAME: Final = {known.name.lower().replace(" ", "-"): known for known in (*PROFILES, UNKNOWN_PROFILE)}


def find_profile(host: str) -> RegistryProfile:
    """Give the profile of a `HOST[:PORT]`, or that of everybody else."""
    name = host.lower() if host.startswith("[") else host.lower().partition(":")[0]
    return next((known for known in PROFILES if any(re.fullmatch(p, name) for p in known.hosts)), UNKNOWN_PROFILE)


def find_profile_by_headers(header: Callable[[str], str | None]) -> RegistryProfile | None:
    """Give the profile that an answer's headers show, or None where they show nothing; `header` gives one by name."""
    for known in PROFILES:
        for name, pattern in known.headers:
            value = header(name)
            if value is not None and re.search(pattern, value):
                return known
    return None
