"""What is not believed of what arrives: each rule with its number, the one place that holds it, and what shows it.

A number never changes its meaning. `archives` are patterns of names in the corpus of hostile archives, `tests` are
tests of other folders, as FILE::NAME; those of this folder name their numbers themselves.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import pytest


@dataclasses.dataclass(frozen=True)
class Limit:
    """One rule: `homes` are the functions and classes of ocistream that hold it, as MODULE:NAME."""

    text: str
    homes: tuple[str, ...]
    archives: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


def limit(number: int) -> pytest.MarkDecorator:
    """Say that a test shows that a rule is held; a test may show several."""
    assert number in LIMITS, number
    return pytest.mark.limit(number)


LIMITS: Final[dict[int, Limit]] = {
    1: Limit(
        "A digest is sha256 or sha512 and lower-case hex of that length, before it is a path, a URL or a key",
        ("reference:parse_digest", "documents:parse_descriptor"),
        archives=("digest-[!t]*", "manifest-subject", "docker-diff-ids-*"),
        tests=("unit/test_reference.py::test_anything_else_is_malformed",
               "unit/test_index.py::test_a_path_is_made_of_a_digest_and_of_nothing_else"),
    ),
    2: Limit(
        "Of a tar, entries with a layout's names count, or those that a manifest.json names; a name is a key, no path",
        ("stores.entries:Contents",),
        archives=("name-*", "pax-global-path", "docker-layer-out", "docker-layer-absolute", "docker-config-*",
                  "docker-layer-escapes", "docker-layer-missing", "docker-layer-more", "docker-layer-is-config"),
        tests=("unit/test_entries.py::test_no_other_name_is_one",),
    ),
    3: Limit(
        "Entries are regular files; links count in docker-archives alone, by names within them, and one of them",
        ("stores.tar:TarReader", "stores.entries:Contents.add", "stores.entries:Contents.resolve"),
        archives=("type-*", "docker-link-*", "docker-hard-link-*", "docker-layer-device", "docker-layer-directory"),
    ),
    4: Limit(
        "Sizes are not negative and are those of the descriptors; no sparse files; names and headers have a bound",
        ("stores.tar:TarReader", "stream:verified"),
        archives=("size-*", "pax-*", "sparse-*", "long-*", "checksum-*", "entries-*",
                  "docker-layer-sparse", "layer-empty"),
        tests=("unit/test_tar.py::test_an_enormous_size_is_truncated_and_nothing_is_allocated",),
    ),
    5: Limit(
        "A digest twice is read and checked and not stored twice; a document of the layout twice is malformed",
        ("stores.entries:Contents.add",),
        archives=("index-twice*", "layout-twice", "digest-twice*", "manifest-twice", "docker-list-twice",
                  "docker-layer-twice"),
    ),
    6: Limit(
        "Manifests and lists have 4 MiB and 10,000 entries, configs 8 MiB, indexes go 8 deep, all of it has a bound",
        ("walk:GraphBuilder", "documents:Listing", "strict_json:parse_json"),
        archives=("*-huge", "*-mib*", "*-10*,*", "manifests-*", "indexes-*", "size-claim-exbibyte"),
        tests=("unit/test_distribution.py::test_one_that_is_too_large_is_not_read",
               "unit/test_layout.py::test_a_malformed_index_is_refused"),
    ),
    7: Limit(
        "JSON that two parsers may read differently, or that is none, or of other types, is malformed; configs as well",
        ("strict_json:parse_json", "strict_json:check_keys", "documents:parse_descriptor", "configs:checked"),
        archives=("index-*", "layout-*", "manifest-no-json*", "manifest-empty-object", "manifest-keys-twice",
                  "manifest-of-no-bytes", "manifest-layers-*", "manifest-config-*", "size-claim-*", "type-none",
                  "type-long", "annotations-*", "platform-*", "docker-list-*", "docker-config-no-json", "keys-*",
                  "config-*"),
    ),
    8: Limit(
        "A document is what it was referenced as, and not an image and an index at once",
        ("documents:check_kind", "walk:GraphBuilder"),
        archives=("manifest-both*", "keys-manifests", "keys-media-type", "manifest-other-type",
                  "manifest-as-index", "index-and-*", "index-is-a-manifest",
                  "two-*", "size-claim-both"),
        tests=("quirks/test_downloads.py::test_a_manifest_that_the_registry_calls_something_else_is_refused",),
    ),
    9: Limit(
        "A token's answer has 128 KiB, an error's body 64 KiB; what is printed has no control characters, in one line",
        ("transport:Transport", "connections:Answer.explanation", "reference:printable", "cli.console:Console"),
        archives=("*-escapes",),
        tests=("quirks/test_tokens.py::test_a_broken_answer_is_an_error_of_the_registry_and_none_of_it_is_printed",
               "unit/test_connections.py::test_of_an_explanation_no_more_than_the_limit_is_kept",
               "cli/test_exit_codes.py::test_what_a_registry_says_cannot_drive_the_terminal"),
    ),
    10: Limit(
        "A body is read up to its promised size and a byte more; no size that is stated is ever allocated",
        ("stream:verified", "stream:chunks_of", "downloads:announces_more"),
        archives=("size-of-80-bits", "size-tebibyte", "size-claim-layer-larger", "size-claim-smaller"),
        tests=("unit/test_distribution.py::test_a_longer_body_is_not_read_to_its_end",
               "unit/test_distribution.py::test_what_is_announced_beyond_the_blob_is_not_waited_for",
               "unit/test_distribution.py::test_one_byte_too_many_is_seen_even_where_a_chunk_ends_before_it",
               "unit/test_layout.py::test_a_file_that_grew_is_found_out_after_one_byte"),
    ),
    11: Limit(
        "What is unpacked flows, has a window of 128 MiB at most and a ratio, and is whole at its end",
        ("compression:decompressed", "compression:CODECS"),
        archives=("gzip-*", "zstd-*", "layer-gzip-*", "layer-zstd-*", "layer-other", "layer-fewer", "layer-no-*"),
        tests=("unit/test_compression.py::test_a_gibibyte_of_zeros_passes_in_little_memory_and_no_more_than_that",
               "unit/test_unpacked.py::test_one_that_grows_too_much_is_stopped"),
    ),
    12: Limit(
        "Five redirects at most, never from https to http; Authorization and bodies stay with scheme, host and port",
        ("following:Following", "origins:check_target"),
        tests=("unit/test_transport.py::test_five_are_followed_and_no_more",
               "unit/test_transport.py::test_https_is_not_left_for_http",
               "unit/test_transport.py::test_a_body_goes_along_within_an_origin_and_never_to_another",
               "quirks/test_credentials_stay.py::test_a_redirect_of_blobs_takes_nothing_along",
               "quirks/test_credentials_stay.py::test_another_port_of_the_same_host_is_another_host"),
    ),
    13: Limit(
        "Realms, Locations and Links are held to the same; a realm over http is for registries over http",
        ("origins:check_target",),
        tests=("quirks/test_credentials_stay.py::test_a_realm_over_http_gets_nothing_from_who_speaks_https",
               "quirks/test_credentials_stay.py::test_a_link_to_another_host_is_not_followed_with_anything",
               "quirks/test_uploads.py::test_an_http_location_after_https_is_not_followed"),
    ),
    14: Limit(
        "A public registry does not lead to loopback, link-local or metadata addresses, by number or by name",
        ("origins:check_target", "pools:Reached.check"),
        tests=("unit/test_origins.py::test_a_host_outside_never_leads_to_this_machine_or_to_metadata",
               "unit/test_origins.py::test_nor_by_a_name_that_resolves_to_such_an_address",
               "unit/test_transport.py::test_a_public_registry_does_not_lead_to_inner_addresses",
               "unit/test_rebinding.py::test_a_redirect_to_a_name_that_becomes_an_inward_address_is_not_followed",
               "unit/test_rebinding.py::test_a_registry_that_was_outside_is_not_looked_for_in_here",
               "quirks/test_credentials_stay.py::test_a_public_registry_cannot_send_a_password_to_this_machine"),
    ),
    15: Limit(
        "What a descriptor's urls name is never asked for",
        ("documents:parse_descriptor",),
        tests=("quirks/test_archives.py::test_what_urls_name_is_never_asked_for",),
    ),
    16: Limit(
        "Credentials are for one host, not out of netrc; helpers are found by an absolute PATH and a name of a-z0-9-",
        ("credentials:Keychain.find", "credential_helper:CredentialHelper", "connections:Connections"),
        tests=("quirks/test_credentials.py::test_a_credential_never_goes_to_another_host_or_port",
               "unit/test_connections.py::test_netrc_is_not_read",
               "quirks/test_credentials.py::test_a_helper_is_never_taken_from_the_current_directory",
               "quirks/test_credentials.py::test_a_helper_that_fails_is_named_and_what_it_said_is_not_shown",
               "unit/test_credentials.py::test_no_secret_is_in_a_repr",
               "quirks/test_credentials_stay.py::test_neither_messages_nor_results_hold_a_secret"),
    ),
    17: Limit(
        "A file is temporary beside its place, verified, synced, renamed; no link leads into or out of a layout",
        ("files:named_at_the_end", "files:open_for_reading", "stores.blob_folders:BlobFolders"),
        archives=("flipped-*", "swapped-*", "docker-layer-flipped", "docker-layers-swapped"),
        tests=("unit/test_durability.py::test_a_file_is_synced_and_then_named_and_then_its_folder_is_synced",
               "unit/test_durability.py::test_of_a_layout_all_that_an_index_names_is_durable_before_the_index_is",
               "unit/test_layout.py::test_a_link_in_a_blobs_place_is_not_followed",
               "unit/test_layout.py::test_a_failure_leaves_no_partial_file"),
    ),
    18: Limit(
        "An archive without its end or its index, or with a short entry, fails before any manifest is pushed",
        ("stores.tar:TarReader", "stores.entries:Contents.required_index"),
        archives=("cut-*", "zeros-within", "end-*", "no-tar", "empty", "nothing-but-zeros", "index-never", "*-missing",
                  "missing-*", "docker-nothing-listed"),
        tests=("unit/test_archive_stream.py::test_cut_off_at_any_byte_it_is_no_archive",),
    ),
    19: Limit(
        "A list of digests is whole and nothing else; its lines and their number have bounds; what is wanted is kept",
        ("have_lists:HaveList",),
        tests=("unit/test_have_lists.py::test_a_list_that_is_cut_anywhere_is_refused",
               "unit/test_have_lists.py::test_a_line_that_is_no_digest_is_named",
               "unit/test_have_lists.py::test_a_line_without_end_is_not_held",
               "unit/test_have_lists.py::test_too_many_lines_are_refused",
               "unit/test_have_lists.py::test_memory_does_not_grow_with_the_list"),
    ),
    20: Limit(
        "To a far side no shell is run and no word said that one looks at; what it says is bounded, and in one line",
        ("far:check_safe", "far:FarCommand"),
        tests=("cli/test_via.py::test_what_a_shell_might_look_at_is_not_said",
               "cli/test_via.py::test_nothing_that_is_said_drives_a_terminal",
               "cli/test_via.py::test_whatever_is_said_of_it_is_an_error"),
    ),
    21: Limit(
        "What volumes say of themselves is checked: one set, parts without gaps; and the whole is hashed as ever",
        ("volumes:volume_of", "stores.parts:parts_in", "stores.joined:JoinedSource"),
        archives=("volume-*", "parts-*"),
        tests=("unit/test_volumes.py::test_malformed_parts_are_refused",
               "unit/test_joined.py::test_wrong_bytes_with_a_checksum_that_fits_never_become_the_blob",
               "unit/test_joined.py::test_a_volume_without_what_its_index_says_is_refused",
               "unit/test_sending_parts.py::test_parts_that_are_right_and_make_another_blob_are_refused_by_the_registry",
               "cli/test_volumes.py::test_a_volume_of_another_image_is_refused_by_name"),
    ),
    22: Limit(
        "The rest of a blob ends where the blob does; with its beginning it is verified whole, or all of it is sent",
        ("begun:begun_of", "beginnings:put_rest"),
        tests=("unit/test_begun.py::test_what_is_malformed_is_refused",
               "unit/test_begun.py::test_so_are_more_than_there_can_be",
               "unit/test_begun.py::test_what_does_not_end_where_the_blob_does",
               "unit/test_begun.py::test_together_they_have_to_be_the_blob",
               "cli/test_via_continues.py::test_a_beginning_that_is_not_the_blobs_costs_time_and_nothing_else"),
    ),
    23: Limit(
        "A manifest.json and an index.json in one archive mean the same images; others in manifest.json are said",
        ("stores.comparison:Comparison",),
        archives=("docker-and-index-*",),
        tests=("cli/test_docker_save.py::test_two_lists_that_contradict_each_other_are_refused",
               "cli/test_docker_save.py::test_an_image_that_only_manifest_json_lists_counts_too"),
    ),
    24: Limit(
        "What common tools read differently is refused: names, headers, types, and entries behind links",
        ("stores.tar:TarReader", "stores.tar_header:header_of", "stores.entries:Contents.add"),
        archives=("differ-*",),
        tests=("interop/test_differing_archives.py::test_gnu_tar",
               "interop/test_differing_archives.py::test_pythons_tarfile",
               "interop/test_differing_archives.py::test_skopeo"),
    ),
}  # fmt: skip
