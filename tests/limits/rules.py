"""Rules about untrusted input: each has a number, the modules that implement it, and its tests.

A number never changes its meaning. `archives` are patterns of names in the corpus of hostile archives. `tests` are
tests in other directories, as FILE::NAME; tests in this directory name the number themselves.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import pytest


@dataclasses.dataclass(frozen=True)
class Limit:
    """One rule: `homes` are the modules of ocistream that implement it."""

    text: str
    homes: tuple[str, ...]
    archives: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


def limit(number: int) -> pytest.MarkDecorator:
    """Mark a test that covers a rule; a test may cover several."""
    assert number in LIMITS, number
    return pytest.mark.limit(number)


LIMITS: Final[dict[int, Limit]] = {
    1: Limit(
        "Digests are sha256 or sha512 with lower-case hex of the right length, before one is used in a path, "
        "a URL or a key",
        ("oci.reference", "oci.documents"),
        archives=("digest-[!t]*", "manifest-subject", "docker-diff-ids-*"),
    ),
    2: Limit(
        "In a tar only entries named as in a layout, or listed by manifest.json, are read; a name is a key, "
        "never a path",
        ("archive.contents",),
        archives=(
            "name-*",
            "pax-global-path",
            "docker-layer-out",
            "docker-layer-absolute",
            "docker-config-*",
            "docker-layer-escapes",
            "docker-layer-missing",
            "docker-layer-more",
            "docker-layer-is-config",
        ),
    ),
    3: Limit(
        "Entries are regular files; links are allowed only in docker-archives, to names in the same archive, "
        "one level deep",
        ("archive.tar_reader", "archive.contents"),
        archives=("type-*", "docker-link-*", "docker-hard-link-*", "docker-layer-device", "docker-layer-directory"),
    ),
    4: Limit(
        "Sizes are not negative and match the descriptors; sparse files are refused; names and headers are limited",
        ("archive.tar_reader", "streams.chunks"),
        archives=(
            "size-*",
            "pax-*",
            "sparse-*",
            "long-*",
            "checksum-*",
            "entries-*",
            "docker-layer-sparse",
            "layer-empty",
        ),
    ),
    5: Limit(
        "A digest that occurs twice is read and checked, and stored once; a layout document that occurs twice "
        "is malformed",
        ("archive.contents",),
        archives=(
            "index-twice*",
            "layout-twice",
            "digest-twice*",
            "manifest-twice",
            "docker-list-twice",
            "docker-layer-twice",
        ),
    ),
    6: Limit(
        "Manifests and lists have at most 4 MiB and 10,000 entries, configs 8 MiB, indexes 8 levels; totals "
        "are limited too",
        ("oci.documents", "oci.strict_json", "oci.walk"),
        archives=("*-huge", "*-mib*", "*-10*,*", "manifests-*", "indexes-*", "size-claim-exbibyte"),
    ),
    7: Limit(
        "JSON that is invalid, has wrong types, or that two parsers may read differently is refused; in configs too",
        ("oci.strict_json", "oci.documents", "transfer.config_checks"),
        archives=(
            "index-*",
            "layout-*",
            "manifest-no-json*",
            "manifest-empty-object",
            "manifest-keys-twice",
            "manifest-of-no-bytes",
            "manifest-layers-*",
            "manifest-config-*",
            "size-claim-*",
            "type-none",
            "type-long",
            "annotations-*",
            "platform-*",
            "docker-list-*",
            "docker-config-no-json",
            "keys-*",
            "config-*",
        ),
    ),
    8: Limit(
        "A document must have the type that it was referenced as and schemaVersion 2, and not be an image and an index",
        ("oci.documents", "oci.walk"),
        archives=(
            "manifest-both*",
            "manifest-version-*",
            "keys-manifests",
            "keys-media-type",
            "manifest-other-type",
            "manifest-as-index",
            "index-and-*",
            "index-is-a-manifest",
            "two-*",
            "size-claim-both",
        ),
    ),
    9: Limit(
        "A token response has at most 128 KiB, an error body 64 KiB; printed text is one line without control "
        "characters",
        ("http.client", "http.response", "oci.reference", "cli.console"),
        archives=("*-escapes",),
    ),
    10: Limit(
        "A body is read up to its promised size plus one byte; memory of a stated size is never allocated",
        ("streams.chunks", "registry.download"),
        archives=("size-of-80-bits", "size-tebibyte", "size-claim-layer-larger", "size-claim-smaller"),
    ),
    11: Limit(
        "Decompression streams, with a window of at most 128 MiB and a maximum ratio; the compressed stream "
        "must be complete",
        ("streams.compression",),
        archives=("gzip-*", "zstd-*", "layer-gzip-*", "layer-zstd-*", "layer-other", "layer-fewer", "layer-no-*"),
    ),
    12: Limit(
        "At most five redirects, never from https to http; Authorization and bodies stay within scheme, host and port",
        ("http.client", "http.origins"),
        tests=(
            "quirks/test_credential_isolation.py::test_a_redirect_of_a_blob_to_another_host_carries_no_credential",
            "quirks/test_credential_isolation.py::test_another_port_of_the_same_host_is_another_host",
        ),
    ),
    13: Limit(
        "Realms, Locations and Links follow the same rules; a realm over http is only for registries over http",
        ("http.origins",),
        tests=(
            "quirks/test_credential_isolation.py::test_an_http_realm_of_an_https_registry_gets_nothing",
            "quirks/test_credential_isolation.py::test_a_link_of_tags_to_another_host_is_not_followed",
            "quirks/test_uploads.py::test_an_http_location_after_https_is_not_followed",
        ),
    ),
    14: Limit(
        "A public registry must not lead to loopback, link-local or metadata addresses, by number or by name",
        ("http.origins", "http.adapter"),
        tests=("quirks/test_credential_isolation.py::test_a_public_registry_cannot_send_a_password_to_this_machine",),
    ),
    15: Limit(
        "URLs in a descriptor are never requested",
        ("oci.documents",),
        tests=("quirks/test_archives.py::test_the_urls_of_a_layer_are_never_requested",),
    ),
    16: Limit(
        "Credentials belong to one host and never come from netrc; helpers need an absolute PATH and a name of a-z0-9-",
        ("auth.credentials", "auth.credential_helpers", "http.client"),
        tests=("quirks/test_credential_isolation.py::test_neither_messages_nor_results_contain_a_secret",),
    ),
    17: Limit(
        "A file is written beside its destination, verified, synced, renamed; links into or out of a layout "
        "are not followed",
        ("streams.files", "layout.directory"),
        archives=("flipped-*", "swapped-*", "docker-layer-flipped", "docker-layers-swapped"),
        tests=(
            "contract/test_layouts.py::test_a_link_in_the_place_of_a_folder_is_refused",
            "contract/test_layouts.py::test_anything_but_a_file_in_the_place_of_a_blob_is_not_read",
            "contract/test_layouts.py::test_a_link_is_replaced_by_the_blob_and_its_target_is_unchanged",
        ),
    ),
    18: Limit(
        "An archive without its end or its index, or with a short entry, fails before any manifest is pushed",
        ("archive.tar_reader", "archive.contents"),
        archives=(
            "cut-*",
            "zeros-within",
            "end-*",
            "no-tar",
            "empty",
            "nothing-but-zeros",
            "index-never",
            "*-missing",
            "missing-*",
            "docker-nothing-listed",
        ),
    ),
    19: Limit(
        "A list of digests must be complete and well-formed; lines and their number are limited; only wanted "
        "digests are kept",
        ("remote.have_lists",),
    ),
    20: Limit(
        "The remote command runs without a shell, and words that a shell would interpret are refused; its "
        "output is limited",
        ("remote.command",),
        tests=(
            "cli/test_via.py::test_a_name_that_a_shell_might_interpret_is_refused",
            "cli/test_via.py::test_remote_messages_cannot_control_the_terminal",
            "cli/test_via.py::test_a_failing_remote_side_is_an_error",
        ),
    ),
    21: Limit(
        "Volumes must form one set of parts without gaps; the complete blob is hashed as always",
        ("oci.volumes", "archive.contents", "archive.joined_source"),
        archives=("volume-*", "parts-*"),
        tests=("cli/test_volumes.py::test_a_volume_of_another_image_is_refused_by_name",),
    ),
    22: Limit(
        "The rest of a blob must end where the blob ends, and is verified together with its beginning",
        ("oci.omitted_blobs",),
        tests=("cli/test_via_resume.py::test_a_wrong_stored_beginning_is_replaced",),
    ),
    23: Limit(
        "manifest.json and index.json in one archive must name the same images; more images in manifest.json "
        "are reported",
        ("archive.index_comparison",),
        archives=("docker-and-index-*",),
        tests=(
            "cli/test_docker_save.py::test_two_lists_that_contradict_each_other_are_refused",
            "cli/test_docker_save.py::test_an_image_that_only_manifest_json_lists_is_included",
        ),
    ),
    24: Limit(
        "Input that common tools read differently is refused: names, headers, types, and entries behind links",
        ("archive.tar_reader", "archive.contents"),
        archives=("differ-*",),
        tests=(
            "interop/test_ambiguous_archives.py::test_gnu_tar",
            "interop/test_ambiguous_archives.py::test_pythons_tarfile",
            "interop/test_ambiguous_archives.py::test_skopeo",
        ),
    ),
    25: Limit(
        "Text of images is escaped in pages for browsers, which have no script and may load, send and frame nothing",
        ("transfer.inventory_page", "serve.image_page"),
        tests=(
            "cli/test_inspect_page.py::test_hostile_text_is_shown_as_text",
            "cli/test_inspect_page.py::test_the_page_allows_its_own_style_and_nothing_else",
            "serve/test_image_page.py::test_hostile_names_are_text",
            "serve/test_image_page.py::test_the_page_forbids_scripts_requests_and_frames",
        ),
    ),
    26: Limit(
        "A signature must be of the manifest's own digest; the given key decides algorithm and hash; "
        "payloads are bounded",
        ("signatures.check", "signatures.verifier"),
        tests=(
            "signatures/test_hostile.py::test_the_signature_of_another_image",
            "signatures/test_hostile.py::test_a_document_does_not_choose_the_hash",
            "signatures/test_hostile.py::test_a_huge_payload_is_not_read",
            "signatures/test_hostile.py::test_an_unsigned_image_that_refers_to_a_signed_one",
        ),
    ),
    27: Limit(
        "A keyless signature needs the exact identity and issuer, an authority and a log of the trusted root, and a "
        "signed time",
        ("signatures.keyless",),
        tests=(
            "signatures/test_hostile_keyless.py::test_an_invalid_signature_is_refused",
            "signatures/test_hostile_keyless.py::test_the_package_must_verify_the_statement_that_was_read",
            "signatures/test_keyless.py::test_verification_uses_no_network",
        ),
    ),
}
