"""Known behavior of real registries and archives: numbered statements with their sources.

A number never changes its meaning; a new statement gets the next number. A statement is one behavior that a client must
handle; in parentheses are registries, and the issues or pull requests that report the behavior.

Upload:

1. The Location of an upload may be relative, absolute, or below another prefix: resolve it against the request.
    (Google Artifact Registry, Harbor; distribution-spec#79, harbor#5001, rust-oci-client#175)
2. If the Location has a query, digest= is appended with &, and the rest stays unchanged (_state=...%3D).
    (distribution)
3. Use the Location of the latest response: it may contain the offset. (distribution; oras-py#150)
4. Do not follow an http Location after https; port 443 and no port are the same origin. (registries behind proxies;
    distribution#123, oras-go#177)
5. Send no Authorization to an upload on another host. (object storage; GHSA-jxpm-75mh-9fp7)
6. A streamed PATCH has no Content-Range; a chunk has 0-99, not bytes 0-99/*. (zot, ACR; distribution-spec#506)
7. All registries accept POST, one streamed PATCH, and PUT with the digest and no body. (docker, skopeo, crane)
8. Some registries refuse chunks, accept at most 4 MiB (else 416), or keep the Range of the first chunk. (Google
    Artifact Registry; GHCR, rust-oci-client#35; ECR, containers-roadmap#2831)
9. A body that is too large is refused with 413, but smaller chunks are accepted. (ACR, harbor#23015; Cloudflare;
    Quay, oras-py#137)
10. Ignore a Range that goes backwards; after 416 or 5xx, ask the upload for its offset. (Aliyun; regclient#627)
11. Obey OCI-Chunk-Min-Length within the memory limit. (distribution-spec 1.1)
12. PATCH may answer 201, 202 or 204; PUT may answer 200, 201, 202 or 204. (ECR, tart#273; Quay, Nexus)
13. Renew a token that expires during an upload, and repeat only the closing PUT. (Hub, GitLab; moby#33558,
    containers-image#1907)
14. Open the session when the first bytes are available, because the registry closes an idle session. (skopeo#2101)
15. Delete an abandoned session; ignore a failure of the deletion. (distribution, ECR)
16. An empty blob is a PUT without a body. (distribution)

Mounts and authentication:

17. A mount without from may be refused; upload the blob after any error, or after 202 (Location may have mount=).
    (Quay, ggcr#1404, ggcr#1679; zot#573)
18. The token for a mount covers both repositories; the repository that is pushed to comes first. (Hub, ECR, ggcr)
19. Token servers answer token or access_token, may not support OAuth2, and a 401 may have no challenge. (ACR,
    distribution; gcr.io)
20. Storage of blobs may be on another host that refuses Authorization; the redirect may be relative. (S3, GCS, Azure;
    nexus-public#1061)
21. Do not send cookies back: the registry would require a CSRF token. (Harbor)

Reading:

22. Request the identity encoding: proxies compress content otherwise. (Quay behind a CDN; quay#1310)
23. HEAD may have no Content-Length, and no digest or a wrong one: only the bytes decide. (distribution#4895; ECR,
    Nexus)
24. A Range request may return everything (200) or another range: skip known bytes, up to a limit.
    (container-libs#1114)
25. A manifest that was requested by digest must have that digest. (regclient GHSA-qv35-3gw6-8q4j)
26. Lists of tags may contain nulls and digests, refuse n above 1000, and have relative or circular links. (Nexus;
    Artifactory; ECR)
27. "Not found" may be the code UNKNOWN with a text, or 403. (Harbor 2.10, containers-image#2203; Hub, Quay)

Manifests, rates:

28. The Content-Type of a manifest is its mediaType, else that of the descriptor; its bytes stay unchanged. (ECR)
29. Any request may get 429, with seconds, a date or no Retry-After. (Hub, GHCR; Quay)
30. Retry 408, 5xx except 501, and broken connections, but not other errors. (all of them)
31. Without OCI-Subject or the referrers API, the tag sha256-<hex> lists the referrers of an image. (GHCR, GitLab,
    Nexus; distribution-spec 1.1)
32. The tags sha256-<hex>.sig, .att and .sbom of cosign belong to an image. (cosign)

Archives of other tools:

33. blobs/ may come before index.json; old archives have <id>/layer.tar, links, plain layers and a late list.
    (containerd, docker 25; docker 1.10 to 24)
34. LayerSources are ordinary layers. (docker 25; ggcr#1870)
35. docker load needs a manifest.json with a tag; its paths may be in blobs/. (docker 20.10)
36. io.containerd.image.name is the full name, org.opencontainers.image.ref.name the tag; a name has one entry.
    (containerd; image-spec#796)
37. A layout may lack blobs that it lists, and may have unlisted files. (image-spec, image-layout.md)
38. Never request the urls of a layer. (CVE-2020-15157)

Further observations:

39. Without Docker-Upload-UUID, only the Location identifies an upload. (ECR; distribution#2927)
40. The Range after a PATCH may be that of the last chunk, of nothing (0--1), or missing. (distribution-spec#580;
    gitea#34792)
41. A registry may refuse a blob in one PUT and accept it in a PATCH. (Artifactory, with 404 BLOB_UNKNOWN;
    containerd#3533, moby/buildkit#1130)
42. With push permission only, requests for existing content get 403. (ECR without BatchGetImage; rules_oci#648)

Requests and authorization:

43. A challenge may name more scopes: add at most sixteen of them after ours. (distribution, Token Authentication;
    GitLab)
44. Send a token only with the login that it belongs to, and only while it is valid. (Quay's robot accounts, podman's
    logins by namespace)
45. Challenges have every form of RFC 9110; realms must be absolute http(s) URLs. (all)
46. The response of a token server is a token, or an error that does not print it. (all of them)
47. Mount from the first repository, from others only if they have the blob, and never from one that refused. (Harbor,
    Quay; ggcr#1404)
48. A lost response does not mean that the request had no effect. (all of them)
49. Resume a broken upload at a plausible offset of the registry; otherwise start a new one. (distribution;
    containers-roadmap#2831)
50. Resume the upload of an earlier run, or delete it at its current Location. (distribution 2.8, zot)
51. Upload records are private, and used only if they are plausible. (ocistream)
52. A failing mirror costs one or two requests; the registry itself is tried last. (pull-through caches; Artifactory,
    Harbor)
53. A mirror may send wrong bytes: verify the digest, and read the blob from elsewhere. (any cache)
54. Credentials are searched in a fixed order of places; the first one that has the registry is used. (docker, podman)
55. Docker's and Podman's files and helpers are read as these tools read them: the longest namespace is used.
    (containers-auth.json(5); docker login)
56. A login is stored as docker login stores it; nothing else in the file changes. (docker login)
57. A registry that stored another manifest than was sent reports another digest. (distribution-spec)
58. For a missing tag, similar tags are suggested if the registry lists tags quickly. (all)
59. Referrers are requested once for each manifest; lists have pages, or are manifests under a tag. (distribution-spec
    1.1; GHCR, GitLab, Harbor)
60. A requested upload method is used; otherwise a refused method leads to another one, for the rest of the run.
    (nginx before a registry; Artifactory, ECR, Google Artifact Registry)
61. If a broken request loses the whole upload, send large blobs in the chunked transfer coding. (distribution 2.8,
    Harbor)
62. A broken blob continues at the exact byte, and wrong bytes are detected. (S3, CDNs, proxies; all)
63. A manifest has the requested media type and digest, sha256 or sha512. (distribution#4895; image-spec,
    descriptor.md)
64. Existing content is not sent, and a tag is written last. (distribution-spec, Pushing Manifests)
65. For a large image with an existing manifest, check only some blobs, and all blobs if one is missing. (Hub's rate
    limits; garbage collection of registries)
"""

from __future__ import annotations

from typing import Final

import pytest

COUNT: Final = 65


def quirk(*numbers: int) -> pytest.MarkDecorator:
    """Mark a test, or with `pytestmark` every test of a module, that covers the statements `numbers`."""
    assert all(1 <= number <= COUNT for number in numbers), numbers
    return pytest.mark.quirk(*numbers)
