"""Packed lists: they return what was added, and take a fraction of the memory of objects."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, compute_digest
from ocistream.oci.documents import parse_entry
from ocistream.oci.packed_descriptors import PackedDescriptors, Positions
from ocistream.oci.strict_json import canonical_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ENTRIES = st.builds(
    lambda media_type, digest, fields, annotations: {
        "mediaType": media_type,
        "digest": digest,
        "size": len(annotations),
        **fields,
        **({"annotations": annotations} if annotations else {}),
    },
    st.sampled_from([OCI_MANIFEST, OCI_INDEX]),
    st.builds(compute_digest, st.binary(max_size=2), st.sampled_from(["sha256", "sha512"])),
    st.fixed_dictionaries(
        {},
        optional={
            "platform": st.sampled_from([{"os": "linux", "architecture": "arm64"}, {}, {"os.features": ["x"]}]),
            "artifactType": TEXT,
            "%s": TEXT,
            "urls": st.lists(TEXT, max_size=2),
        },
    ),
    st.dictionaries(TEXT, TEXT, max_size=3),
)
#: Some of them collide in the table.
KEYS = st.sampled_from([0, 1, 256, 257])


def pack(entries: list[Descriptor]) -> PackedDescriptors:
    packed = PackedDescriptors()
    for entry in entries:
        packed.append(entry)
    return packed


@given(st.lists(ENTRIES, max_size=5))
def test_a_packed_entry_is_equal_in_all_fields(items: list[dict[str, object]]) -> None:
    entries = list(map(parse_entry, items))
    packed = pack(entries)
    assert [(entry, entry.extra_json) for entry in packed] == [(entry, entry.extra_json) for entry in entries]
    lines = list(map(packed.line, range(len(entries))))
    assert lines == [canonical_json(entry.to_json()) for entry in entries]
    assert list(map(json.loads, lines)) == items


def test_entries_of_many_kinds_are_kept() -> None:
    entries = [
        Descriptor(OCI_MANIFEST, compute_digest(b"%d" % number), number, annotations={f"key{number}": "value"})
        for number in range(300)
    ]
    packed = pack(entries)
    assert list(packed) == entries
    assert packed.line(299) == canonical_json(entries[299].to_json())
    assert (packed[-1], packed[10:12]) == (entries[-1], entries[10:12])
    with pytest.raises(IndexError):
        packed[300]


def test_a_packed_entry_takes_a_fraction_of_its_size_as_json() -> None:
    entries = [
        Descriptor(OCI_MANIFEST, compute_digest(b"%d" % number), 1000 + number, annotations={"name": f"v{number}"})
        for number in range(1_000)
    ]
    tracemalloc.start()
    try:
        packed = pack(entries)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(packed) == 1_000
    assert size < 80_000


@given(st.lists(st.tuples(KEYS, st.booleans()), max_size=20))
def test_positions_are_found_by_key_until_they_are_removed(steps: list[tuple[int, bool]]) -> None:
    positions, expected = Positions(), dict[int, list[int]]()
    for number, (key, is_removal) in enumerate(steps):
        if is_removal and expected.get(key):
            positions.remove(key, expected[key].pop(0))
        else:
            positions.add(key, number)
            expected.setdefault(key, []).append(number)
        for each in (0, 1, 256, 257):
            assert positions.find(each) == expected.get(each, [])
