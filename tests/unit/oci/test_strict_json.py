"""Strict JSON parsing: a document parsed in parts has the same result or error as one parsed at once."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci import strict_json
from ocistream.oci.strict_json import (
    ByteSource,
    canonical_json,
    canonical_json_with_items,
    check_keys,
    discard_item,
    parse_json,
)

ANY_SIZE = 1 << 40


def placed(place: int, value: object) -> object:
    return ("made", place, value)


class Slices:
    """Bytes that are read as those of a file are: by slices."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, span: slice) -> bytes:
        return bytes(memoryview(self.raw)[span])


def parse(raw: ByteSource, whole: int, **fields: Any) -> dict[str, Any]:
    """Parse a document at once if it has at most `whole` bytes, or else in parts; a file is read byte by byte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "MAX_JSON_UNSPLIT", whole)
        patch.setattr(strict_json, "_WINDOW", 1)
        return parse_json(raw, "it", **fields)


def outcome(raw: ByteSource, whole: int, keys: set[str] | None, known: set[str]) -> object:
    """Return what a document is parsed to, or "refused"."""
    convert = {"a": placed, "b": placed}
    try:
        return list(parse(raw, whole, keys=keys, known_keys=known, convert=convert).items())
    except ArchiveError:
        return "refused"


def both(raw: bytes, keys: set[str] | None = None, known: set[str] = frozenset()) -> object:  # type: ignore[assignment]
    """Parse a document at once, in parts and from a file, check that the results are equal, and return the result."""
    parts = outcome(raw, 0, keys, known)
    assert parts == outcome(raw, ANY_SIZE, keys, known)
    assert parts == outcome(Slices(raw), 0, keys, known)
    return parts


def count_parts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that gets an element for each parsed part."""
    parsed: list[object] = []
    parse_part = strict_json._parse_part  # noqa: SLF001 - the test counts its calls

    def counting(*arguments: Any) -> object:
        parsed.append(None)
        return parse_part(*arguments)

    monkeypatch.setattr(strict_json, "_parse_part", counting)
    return parsed


_keys = st.sampled_from(["a", "b", "c", "", "a,]}", "\u00e9", "\\", '"'])
_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _keys
_values = st.recursive(
    _scalars | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=8,
)
_documents = st.dictionaries(_keys, _values, max_size=5)
#: How a document may be formatted: json.dumps' indentation, and whether it escapes non-ASCII characters.
_layouts = st.tuples(st.sampled_from([None, 0, 2]), st.booleans())
#: Changes to a document: at a position (a fraction of the length), some bytes are replaced by others.
_changes = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 2),
        st.sampled_from(
            [b"", *(bytes([mark]) for mark in b'{}[],:"\\ \t\x0b\x00a1-.N\xff'), b'"a":1,', b"[],", b"\\u"]
        ),
    ),
    max_size=3,
)


class TestKeys:
    """Keys that Go's encoding/json takes for known fields, because it ignores case."""

    KNOWN = frozenset({"layers", "mediaType", "os.version", "Config", "kind"})

    @pytest.mark.parametrize(
        "key",
        ["Layers", "LAYERS", "layer\u017f", "LAYER\u017f", "mediatype", "OS.Version", "o\u017f.version", "config",
         "\u212aind", "KIND"],
    )  # fmt: skip
    def test_a_key_that_go_takes_for_a_field_is_refused(self, key: str) -> None:
        documents: list[dict[str, Any]] = [{key: []}, {"layers": [], key: []}, {key: [], "x": 1, "layers": []}]
        for document in documents:
            with pytest.raises(ArchiveError, match=r"^it has the key '.*', which other tools read as '"):
                check_keys(document, self.KNOWN, "it")
            for whole in (0, ANY_SIZE):
                for fields in (
                    {"keys": self.KNOWN},
                    {"keys": {"layers"}, "known_keys": self.KNOWN},
                    {"known_keys": self.KNOWN},
                ):
                    with pytest.raises(
                        ArchiveError, match=r"^it has the key '.*', which other tools read as '"
                    ) as caught:
                        parse(json.dumps(document).encode(), whole, **fields)
                    assert caught.value.message.isprintable()

    @pytest.mark.parametrize(
        "key",
        ["layers", "layer", "layerss", "layers\0", "layer\u00df", "lay\u00e9rs", "\u0130", "k\u0131nd", "\uff4cayers",
         "con\ufb01g", "Annotations", ""],
    )  # fmt: skip
    def test_a_key_that_go_does_not_take_for_a_field_is_accepted(self, key: str) -> None:
        check_keys({key: [], "mediaType": ""}, self.KNOWN, "it")
        raw = json.dumps({key: [], "mediaType": ""}).encode()
        for whole in (0, ANY_SIZE):
            assert parse(raw, whole, known_keys=self.KNOWN) == json.loads(raw)

    def test_keys_of_maps_and_of_nested_objects_are_data(self) -> None:
        raw = b'{"a":1,"A":2,"x":{"layers":1,"Layers":2}}'
        for whole in (0, ANY_SIZE):
            assert parse(raw, whole) == parse(raw, whole, known_keys=self.KNOWN) == json.loads(raw)

    @given(st.dictionaries(st.sampled_from(["a", "A", "b", "B", "c"]), st.integers()), st.sets(st.sampled_from("aBc")))
    def test_keys_parsed_in_parts_and_at_once_are_the_same(self, document: dict[str, int], known: set[str]) -> None:
        folded = {name.lower() for name in known}
        refused = any(key.lower() in folded and key not in known for key in document)
        raw = json.dumps(document).encode()
        assert both(raw, None, known) == ("refused" if refused else list(document.items()))


class TestInParts:
    @given(_documents, _layouts, st.none() | st.sets(_keys))
    def test_a_document_has_the_same_result_as_when_parsed_at_once(
        self, document: dict[str, Any], layout: tuple[int | None, bool], keys: set[str] | None
    ) -> None:
        raw = json.dumps(document, indent=layout[0], ensure_ascii=layout[1]).encode()
        assert both(raw, keys) == [
            (key, [placed(*pair) for pair in enumerate(value)] if key in {"a", "b"} and type(value) is list else value)
            for key, value in document.items()
            if keys is None or key in keys
        ]

    @given(_documents, _layouts, _changes)
    def test_a_changed_document_has_the_same_result_as_when_parsed_at_once(
        self, document: dict[str, Any], layout: tuple[int | None, bool], changes: list[tuple[float, int, bytes]]
    ) -> None:
        raw = json.dumps(document, indent=layout[0], ensure_ascii=layout[1]).encode()
        for where, gone, come in changes:
            place = int(where * len(raw))
            raw = raw[:place] + come + raw[place + gone :]
        both(raw)

    @given(
        st.lists(st.sampled_from([b"{", b"}", b"[", b"]", b",", b":", b'"a"', b'"', b" ", b"1", b"\\"]), max_size=14)
    )
    def test_any_order_of_tokens_has_the_same_result(self, marks: list[bytes]) -> None:
        both(b"".join(marks))
        both(b'{"a":' + b"".join(marks) + b"}")
        both(b'{"a":[' + b"".join(marks) + b"]}")

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"a":1}}',
            b'{"a":1}x',
            b'{"a":1',
            b'{"a":[1}',
            b'{"a":[1},"b":{2]}',
            b'{"a":[1}2]}',
            b'{"a":[1,]}',
            b'{"a":[,1]}',
            b'{"a":[,]}',
            b'{"a":[1] 2}',
            b'{"a":[1]]',
            b'{"a":1 [1]}',
            b"{,}",
            b'{"a":1,}',
            b'{,"a":1}',
            b'{"a"}',
            b'{"a" 1}',
            b'{"a":}',
            b'{"a"::1}',
            b"{:1}",
            b'{x"a":1}',
            b'{"a"x:1}',
            b'{"a":x[1]}',
            b'{"a":[1]x}',
            b'{"a":[1],"a":[2]}',
            b'{"a":1,"\\u0061":2}',
            b'{"a":[{"x":1,"x":2}]}',
            b'{"a":[NaN]}',
            b'{"a":["\\ud800"]}',
            b'{"\\ud800":[]}',
            b'{"a":["\xff"]}',
            b'{"a":["',
            b'{"a":"\\"}',
            b"\xef\xbb\xbf{}",
            b'\x0b{"a":1}',
            b'{"a":1\x0c}',
            b'{"a":[\xa0]}',
            b"[]",
            b"",
            b" ",
            b"{",
            b"{}{}",
            b"{'a':1}",
            b'{"a":01}',
            b'{"a":"\n"}',
            b'{"a":{"b":1,"\\u0062":2}}',
            b'{"a":"\xed\xa0\x80"}',
            '{"a":1}'.encode("utf-16"),
            '{"a":1}'.encode("utf-32"),
            b'{"a":[' + b"[" * 63 + b"]" * 63 + b"]}",
            b'{"c":' + b"[" * 64 + b"]" * 64 + b"}",
        ],
    )
    def test_malformed_json_is_refused(self, raw: bytes) -> None:
        assert both(raw) == "refused"

    @pytest.mark.parametrize(
        ("raw", "understood"),
        [
            (b"{}", []),
            (b" \n{ \t\r} ", []),
            (b'{"":0}', [("", 0)]),
            (b' { "a" : [ 1 , [ 2 ] ] , "c" : "," } ', [("a", [placed(0, 1), placed(1, [2])]), ("c", ",")]),
            (b'{"a":[]}', [("a", [])]),
            (b'{"a":[ ],"b":null}', [("a", []), ("b", None)]),
            (b'{"a":{"a":[1]}}', [("a", {"a": [1]})]),
            (b'{"\\u0061":[1]}', [("a", [placed(0, 1)])]),
            (b'{"c":"\\"]}","a":["{\\\\"]}', [("c", '"]}'), ("a", [placed(0, "{\\")])]),
            (b'{"a":[' + b"[" * 62 + b"]" * 62 + b"]}", [("a", [placed(0, json.loads("[" * 62 + "]" * 62))])]),
        ],
    )
    def test_well_formed_json_is_parsed(self, raw: bytes, understood: object) -> None:
        assert both(raw) == understood

    def test_members_that_the_caller_does_not_want_are_checked_and_omitted(self) -> None:
        assert both(b'{"c":{"x":1},"a":[1]}', {"a"}) == [("a", [placed(0, 1)])]
        assert both(b'{"c":{"x":1,"x":2},"a":[1]}', {"a"}) == "refused"
        assert both(b'{"c":[1,{"x":1,"x":2}],"a":[1]}', {"a"}) == "refused"


class TestGroups:
    """Small elements of a list are parsed together, as many as fit into `MAX_JSON_GROUP`."""

    @pytest.mark.parametrize("size", [1, 3, 10, 40])
    @pytest.mark.parametrize(
        ("listed", "is_refused"),
        [
            (b'[1,[2],{"x":[3,{}]},"]}",null , [[[[4]]]],\t[ ],{"y":"\\"\\\\"},5]', False),
            (b"[1,2,3,,4]", True),
            (b"[1,2,3,]", True),
            (b"[1,2,[3}]", True),
            (b"[1,2,{3]]", True),
            (b'[1,2,{"x":1,"x":2},4]', True),
            (b"[1,2,NaN,4]", True),
            (b"[1,2,1e999,4]", True),
            (b'[1,2,"\\ud800",4]', True),
            (b'[1,2,"\xff",4]', True),
            (b"[1,2,3 4,5]", True),
            (b"[1,2,\x0b3,5]", True),
            (b"[1,2,3", True),
            (b"[1,2," + b"[" * 63 + b"]" * 63 + b",3]", True),
            (b"[1,2," + b"[" * 62 + b"]" * 62 + b",3]", False),
        ],
    )
    def test_groups_have_the_same_result_as_when_parsed_at_once(
        self, monkeypatch: pytest.MonkeyPatch, size: int, listed: bytes, is_refused: bool
    ) -> None:
        monkeypatch.setattr(limits, "MAX_JSON_GROUP", size)
        for keys in (None, {"a"}, {"c"}):
            for key in (b"a", b"c"):
                assert (both(b'{"%b":%b,"z":1}' % (key, listed), keys) == "refused") is is_refused

    def test_the_parser_is_called_for_each_group_and_not_for_each_element(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        count = 100_000
        raw = b'{"a":1,"x":[' + b",".join([b"[]"] * count) + b"]}"
        parsed = count_parts(monkeypatch)
        assert parse_json(raw, "it", keys={"a"}) == {"a": 1}
        assert len(parsed) < count / 500


class TestParts:
    """The limits of a part: some elements of a list, or everything outside such lists."""

    @pytest.fixture(autouse=True)
    def small_limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Use limits with the proportions of the real ones, so that documents can be small."""
        small = {"UNSPLIT": 512, "GROUP": 64, "PART": 56_000, "PART_ITEMS": 2_000, "ITEMS": 25_000}
        for name, limit in small.items():
            monkeypatch.setattr(limits, f"MAX_JSON_{name}", limit)
        monkeypatch.setattr(limits, "MAX_WIDE_JSON_PART", 6_000)

    def test_a_document_may_be_larger_than_any_of_its_parts(self) -> None:
        element = b'{"x":"' + b"x" * (limits.MAX_JSON_PART // 2) + b'"}'
        raw = b'{"a":[' + b",".join([element] * 5) + b'],"b":1}'
        assert parse_json(raw, "it", ANY_SIZE, convert={"a": discard_item}) == {"a": [None] * 5, "b": 1}
        with pytest.raises(ArchiveError, match=f"it has a part, at byte 0, of more than {limits.MAX_JSON_PART} bytes"):
            parse_json(raw, "it", ANY_SIZE)
        # A member that the caller does not want may be a long list of anything.
        assert parse_json(raw, "it", ANY_SIZE, keys={"b"}) == {"b": 1}

    @pytest.mark.parametrize(
        ("character", "limit_name"),
        [
            ("x", "MAX_JSON_PART"),
            ("\u00e9", "MAX_JSON_PART"),
            ("\\u003c", "MAX_JSON_PART"),
            ("\u0142", "MAX_WIDE_JSON_PART"),
            ("\U0001f600", "MAX_WIDE_JSON_PART"),
            ("\\u0142", "MAX_WIDE_JSON_PART"),
            ("\\ud83d\\ude00", "MAX_WIDE_JSON_PART"),
        ],
    )
    @pytest.mark.parametrize("element", [False, True])
    def test_a_part_has_a_lower_limit_if_python_stores_wide_characters(
        self, character: str, limit_name: str, *, element: bool
    ) -> None:
        limit = getattr(limits, limit_name)
        before, after = (b'{"a":[', b"]}") if element else (b'{"a":', b"}")
        # The brackets around the elements count, because they are parsed with them.
        around = 2 if element else len(before + after)

        def document(size: int) -> bytes:
            padding = "x" * (size - around - 2 - len(character.encode()))
            return before + f'"{padding}{character}"'.encode() + after

        parse_json(document(limit), "it", ANY_SIZE, convert={"a": discard_item})
        with pytest.raises(ArchiveError, match=f"it has a part, at byte {6 if element else 0}, of more than"):
            parse_json(document(limit + 1), "it", ANY_SIZE, convert={"a": discard_item})

    def test_the_items_of_a_part_and_of_the_outermost_object_are_limited(self) -> None:
        def wide(items: int) -> bytes:
            # Two brackets, and one comma less than items.
            return b'{"a":[' + b",".join([b"1234"] * (items - 1)) + b"]}"

        def nested(items: int) -> bytes:
            # Four brackets within the list, one for the group, and one comma less than items.
            return b'{"a":[[[[' + b",".join([b"1234"] * (items - 3)) + b"]]]]}"

        def members(items: int) -> bytes:
            return b"{" + b",".join(b'"%d":1' % number for number in range(items)) + b"}"

        def lists(items: int) -> bytes:
            # Each list has a bracket and a comma.
            return b"{" + b",".join(b'"%d":[]' % number for number in range((items + 1) // 2)) + b"}"

        cases: list[tuple[Callable[[int], bytes], dict[str, Any]]] = [
            (wide, {}),
            (nested, {"convert": {"a": discard_item}}),
            (members, {}),
            (lists, {"keys": {"a"}}),
        ]
        for document, fields in cases:
            parse_json(document(limits.MAX_JSON_PART_ITEMS), "it", **fields)
            with pytest.raises(ArchiveError, match=f"or {limits.MAX_JSON_PART_ITEMS} items"):
                parse_json(document(limits.MAX_JSON_PART_ITEMS + 1), "it", **fields)

    def test_a_document_of_many_lists_is_refused_before_all_are_parsed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        raw = b"{" + b",".join(b'"%x":[]' % number for number in range(limits.MAX_JSON_ITEMS // 2 - 1)) + b"}"
        parsed = count_parts(monkeypatch)
        with pytest.raises(ArchiveError, match=f"or {limits.MAX_JSON_PART_ITEMS} items"):
            parse_json(raw, "it", keys={"a"})
        assert len(parsed) < 3 * limits.MAX_JSON_PART_ITEMS


class TestErrors:
    @pytest.mark.parametrize("whole", [0, ANY_SIZE])
    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            (b'{\n "a": [1, 2, 3, x]\n}', "Expecting value: line 2 column 17 (byte 18)"),
            (b'{"a":[1],\n"c":\n\n  x}', "Expecting value: line 4 column 3 (byte 18)"),
            (b'{"a":[1,2],"b":["\xc3\xa9",[1 2]]}', "Expecting ',' delimiter: line 1 column 25 (byte 24)"),
            (b'{"a":[1,2],"b":3}}', "Extra data: line 1 column 18 (byte 17)"),
            (b'{"a":[1,2]', "Expecting ',' delimiter: line 1 column 11 (byte 10)"),
            (b'{"a":[1],"b":["\xff"]}', "it is not UTF-8 at byte 15"),
            (b'{"a":[1],"b":"\xff"}', "it is not UTF-8 at byte 14"),
            (b'{"x":{"\\u0061":1,"a":2}}', "an object has the same key twice"),
            (b'{"a":[1],"\\u0061":[1]}', "an object has the same key twice"),
            (b'{"x":[1e999]}', "a number is too large"),
            (b'{"x":[-Infinity]}', "-Infinity is not a JSON number"),
            (b'{"a":%b}' % (b"1" * 5000), "a number has too many digits"),
            (b'{"a":"\\ud800"}', "a string has half of a surrogate pair"),
            (b"\xef\xbb\xbf{}", "it begins with a byte order mark"),
        ],
    )
    def test_an_error_says_what_is_wrong_and_where(self, raw: bytes, reason: str, whole: int) -> None:
        with pytest.raises(ArchiveError, match=f"^it is not valid JSON: {re.escape(reason)}$") as caught:
            parse(raw, whole, convert={"a": placed, "b": placed})
        assert not re.search("sys|codec|utf-8", str(caught.value))

    def test_an_error_in_a_document_of_many_groups_has_its_position(self) -> None:
        raw = b'{"a":[' + b"1," * limits.MAX_JSON_UNSPLIT + b"x]}"
        place = raw.index(b"x")
        reason = f"Expecting value: line 1 column {place + 1} (byte {place})"
        with pytest.raises(ArchiveError, match=f"^it is not valid JSON: {re.escape(reason)}$"):
            parse_json(raw, "it", convert={"a": discard_item})
        with pytest.raises(
            ArchiveError, match=r"^it is not valid JSON: NaN is not a JSON number \(after byte"
        ) as caught:
            parse_json(raw.replace(b"x", b"NaN"), "it", convert={"a": discard_item})
        assert place - limits.MAX_JSON_GROUP <= int(re.findall(r"\d+", str(caught.value))[-1]) <= place

    def test_an_unclosed_string_of_many_escapes_is_refused_at_once(self) -> None:
        raw = b'{"a":"' + b'\\"' * (limits.MAX_MANIFEST // 4) + b"}"
        with pytest.raises(ArchiveError, match="Unterminated string starting at: line 1 column 6"):
            parse_json(raw, "it")

    @pytest.mark.parametrize(
        ("text", "is_refused"),
        [
            ("\\ud83d\\ude00", False),
            ("\\uD83D\\uDE00\\\\ud800", False),
            ("\\\\ud83d", False),
            ("\\ud7ff\\ue000", False),
            ("\\ud83d\\\\ude00", True),
            ("\\ud83d\\ud83d\\ude00", True),
            ("\\ude00\\ud83d", True),
            ("\\ud83dx\\ude00", True),
            ("\\ud83d\\n\\ude00", True),
            ("\\\\\\uDfFf", True),
        ],
    )
    def test_half_of_a_surrogate_pair_is_refused(self, text: str, is_refused: bool) -> None:
        for raw in (f'{{"a":["{text}"]}}', f'{{"c":{{"{text}":1}}}}', f'{{"c":[["{text}"]]}}'):
            assert (both(raw.encode()) == "refused") is is_refused

    def test_unclosed_deep_nesting_is_reported_as_nesting(self) -> None:
        with pytest.raises(ArchiveError, match="it is nested too deeply: more than 64 levels"):
            parse_json(b'{"a":' + b"[" * limits.MAX_JSON_UNSPLIT, "it")

    def test_only_one_element_at_a_time_is_in_memory(self) -> None:
        raw = b'{"a":[' + b",".join(b'{"x":%d,"y":{},"z":[]}' % number for number in range(10_000)) + b"]}"
        tracemalloc.start()
        try:
            parse_json(raw, "it", convert={"a": discard_item})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # All objects at once take more than five million bytes; the list takes 8 bytes for each.
        assert peak < 500_000

    def test_a_document_in_a_file_is_read_in_pieces(self) -> None:
        raw = Slices(json.dumps({"a": ["x" * 100] * 20_000, "b": 1}, indent=1).encode())
        tracemalloc.start()
        try:
            assert parse_json(raw, "it", keys={"b"}) == {"b": 1}
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 500_000 < len(raw.raw) / 4

    def test_a_long_text_takes_twice_its_size(self) -> None:
        size = 500_000
        raw = b"{" + b",".join(b'"%d":"%s"' % (number, b"x" * size) for number in range(4)) + b"}"
        tracemalloc.start()
        try:
            parse_json(raw, "it", keys={"a"})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The text and its strings, or the part and its text.
        assert peak < 2.1 * len(raw)


@given(_documents, _keys, st.lists(_values, max_size=3))
def test_canonical_items_are_written_as_in_the_whole_document(
    document: dict[str, Any], key: str, items: list[Any]
) -> None:
    written = canonical_json_with_items(document, key, (canonical_json(item) for item in items))
    assert written == canonical_json(document | {key: items})
