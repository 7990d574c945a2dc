"""Volumes: their annotations, and the distribution of an image's blobs; only text and sizes."""

from __future__ import annotations

import dataclasses
import random
import re
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.archive.tar_writer import END_OF_ARCHIVE, build_header
from ocistream.archive.volume_destination import VolumePlan, VolumeSetDestination, plan_volumes
from ocistream.errors import ArchiveError, UnsupportedError, UsageError
from ocistream.layout.index import blob_name, build_entries, build_index_json
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.graph import Graph
from ocistream.oci.omitted_blobs import HAVE, OmissionReason
from ocistream.oci.volumes import (
    PARTS_ANNOTATION,
    VOLUME_ANNOTATION,
    Volume,
    VolumePart,
    VolumeTemplate,
    checksum_line,
    is_template,
    parse_checksum_line,
    parse_part_name,
    parse_template,
    parse_volume,
    volume_annotations,
)
from tests.images import Layout, digest_of
from tests.observers import NothingEarly

ONE, OTHER = digest_of(b"one"), digest_of(b"other", "sha512")
SET = digest_of(b"set")
TEMPLATE = VolumeTemplate("app.", 3, ".tar")
VOLUME = Volume(
    1,
    3,
    SET,
    TEMPLATE,
    {ONE: (VolumePart(0, 0, 10), VolumePart(1, 10, 5)), OTHER: (VolumePart(1, 0, 3), VolumePart(2, 3, 9))},
)


class TestTemplates:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("app.%03d.tar", ["app.000.tar", "app.012.tar"]),
            ("%d", ["0", "12"]),
            ("100%%-%02d%%", ["100%-00%", "100%-12%"]),
            ("a b'%09d", ["a b'000000000", "a b'000000012"]),
        ],
    )
    def test_names_are_formatted_and_parsed(self, text: str, names: list[str]) -> None:
        template = parse_template(text)
        assert [template.format_name(0), template.format_name(12)] == names
        assert [template.parse_number(name) for name in names] == [0, 12]
        assert str(template) == text
        assert is_template(text)

    @pytest.mark.parametrize(
        "name", ["app.0000.tar", "app.00.tar", "app..tar", "app.0x1.tar", "app.\u0660\u0660\u0661.tar", "app.tar"]
    )
    def test_other_names_are_not_volumes(self, name: str) -> None:
        assert TEMPLATE.parse_number(name) is None

    @pytest.mark.parametrize(
        "text",
        [
            "app.tar",
            "%d%d",
            "%s.%d",
            "%",
            "%d%",
            "%3d",
            "%00d",
            "%0d",
            "%-d",
            "%i",
            "a/%d",
            "%d\n",
            "%d\udc80",
            "%d" * 200,
        ],
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError):
            parse_template(text)

    def test_a_name_without_a_number_is_not_a_template(self) -> None:
        assert not is_template("100%%d.tar")
        assert not is_template("app%20s.tar")


class TestAnnotations:
    def test_annotations_are_written_and_parsed(self) -> None:
        assert parse_volume(volume_annotations(VOLUME)) == VOLUME
        assert parse_volume(volume_annotations(VOLUME._replace(parts={}))) == VOLUME._replace(parts={})
        assert parse_volume({}) is None
        assert str(VOLUME) == "volume 2 of 3 (app.001.tar)"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "1 3",
            f"1 3 {SET}",
            f"3 3 {SET} app.%d",
            f"-1 3 {SET} app.%d",
            f"0 0 {SET} app.%d",
            f"0 {limits.MAX_VOLUMES + 1} {SET} app.%d",
            f"0 {'9' * 5000} {SET} app.%d",
            f"01 3 {SET} app.%d",
            f"1 3 {SET[:-1]} app.%d",
            f"1 3 {SET} app.tar",
            f"1 3 {SET} ../%d",
            f"1  3 {SET} app.%d",
            f"\u0660 3 {SET} app.%d",
        ],
    )
    def test_a_malformed_volume_is_refused(self, text: str) -> None:
        with pytest.raises(ArchiveError, match=re.escape(VOLUME_ANNOTATION)):
            parse_volume({VOLUME_ANNOTATION: text})

    @pytest.mark.parametrize(
        "text",
        [
            "0 0 1",
            "# sha256:1\n0 0 1",
            f"{ONE}\n0 0 1",
            f"# {ONE}",
            f"# {ONE}\n# {OTHER}\n0 0 1",
            f"# {ONE}\n0 0 1\n# {ONE}\n1 0 1",
            f"# {ONE}\n0 1 1",
            f"# {ONE}\n0 0 0",
            f"# {ONE}\n0 0 -1",
            f"# {ONE}\n0 0",
            f"# {ONE}\n0 0 1 2",
            f"# {ONE}\n0 0 1e3",
            f"# {ONE}\n0 0 1\n",
            # An overlap, a gap, a step back, two parts in one volume, a part in no volume.
            f"# {ONE}\n0 0 10\n1 9 10",
            f"# {ONE}\n0 0 10\n1 11 10",
            f"# {ONE}\n1 0 10\n0 10 10",
            f"# {ONE}\n0 0 10\n0 10 10",
            f"# {ONE}\n0 0 10\n3 10 10",
            f"# {ONE}\n0 0 {'9' * 19}",
            "\n" * (limits.MAX_PART_LINES + 1),
            "\n".join(f"# {digest_of(str(n).encode())}\n0 0 1" for n in range(limits.MAX_PART_LINES // 2 + 1)),
            "# " * 1_000_000,
        ],
    )
    def test_malformed_parts_are_refused(self, text: str) -> None:
        with pytest.raises(ArchiveError, match=re.escape(PARTS_ANNOTATION)) as caught:
            parse_volume({VOLUME_ANNOTATION: f"0 3 {SET} app.%d", PARTS_ANNOTATION: text})
        assert len(caught.value.message) < 200

    def test_only_valid_part_names_are_parsed(self) -> None:
        hexes = ONE[7:]
        assert parse_part_name(f"parts/sha256/{hexes}/0") == (ONE, 0, False)
        assert parse_part_name(f"parts/sha256/{hexes}/17.sha256") == (ONE, 17, True)
        for name in (f"parts/sha256/{hexes}", f"parts/sha256/{hexes}/01", f"parts/sha256/{hexes}/-1", "parts/x/y/0"):
            assert parse_part_name(name) is None
            assert parse_part_name(f"{name}\n") is None

    @pytest.mark.parametrize("line", [b"", b"0" * 64, b"\xff" * 64 + b"  parts/x\n", b"0" * 64 + b"  parts/y\n"])
    def test_a_malformed_checksum_is_refused(self, line: bytes) -> None:
        assert parse_checksum_line("parts/x", checksum_line("parts/x", SET)) == SET
        with pytest.raises(ArchiveError):
            parse_checksum_line("parts/x", line)


#: The digest of the first blob of `with_blobs`.
SOME = digest_of(b"0")


def graph_of(layout: Layout) -> Graph:
    return LayoutSource(layout.path).resolve(NothingEarly())


def with_blobs(graph: Graph, sizes: list[int]) -> Graph:
    """Replace the blobs of a graph by others of these sizes, without content."""
    blobs = [Descriptor("x", digest_of(str(number).encode()), size) for number, size in enumerate(sizes)]
    return dataclasses.replace(graph, blobs=tuple(blobs))


class TestPlans:
    @pytest.mark.parametrize("seed", range(40))
    def test_no_volume_exceeds_the_size_and_each_byte_is_in_one(self, layout: Layout, seed: int) -> None:
        chance = random.Random(seed)
        layout.image([b"layer"], name="v1")
        sizes = [int(chance.paretovariate(0.5) * 1000) % 10_000_000 for _ in range(chance.randrange(1, 60))]
        graph = with_blobs(graph_of(layout), sizes)
        if chance.random() < 0.3:
            graph = dataclasses.replace(
                graph, omitted_from_output={graph.blobs[0].digest: OmissionReason(HAVE, "host/app")}
            )
        size = chance.randrange(60_000, 5_000_000)
        try:
            plan = plan_volumes(graph, TEMPLATE, size)
        except UsageError as error:
            least = int(error.message.split()[-2])
            assert least > size
            with pytest.raises(UsageError):
                plan_volumes(graph, TEMPLATE, least - 1)
            size = least
            plan = plan_volumes(graph, TEMPLATE, size)
        assert plan == plan_volumes(graph, TEMPLATE, size)
        if plan is None:
            return
        assert plan.parts.keys() == {
            blob.digest for blob in graph.blobs if blob.digest not in graph.omitted_from_output
        }
        for number in range(plan.total):
            assert self.size_of(plan, number, graph) <= size
            assert any(piece.volume == number for pieces in plan.parts.values() for piece in pieces)
        for blob in graph.blobs:
            if blob.digest in plan.parts:
                end = 0
                for piece in plan.parts[blob.digest]:
                    assert piece.offset == end
                    assert piece.size > 0 or not blob.size
                    end += piece.size
                assert end == blob.size
        continued = [pieces for pieces in plan.parts.values() if len(pieces) > 1]
        assert all(sum(piece.size for piece in pieces) > size // 2 for pieces in continued)
        assert parse_volume(plan.build_annotations(0, graph)) == plan.describe_volume(0)

    @staticmethod
    def size_of(plan: VolumePlan, number: int, graph: Graph) -> int:
        """Return the size of a volume as a tar archive."""
        entries = {
            "oci-layout": 30,
            "index.json": len(
                build_index_json(build_entries(graph), annotations=plan.build_annotations(number, graph))
            ),
        }
        entries.update({blob_name(m.descriptor.digest): len(m.raw) for m in graph.manifests})
        for digest, pieces in plan.parts.items():
            for piece in pieces:
                if piece.volume == number and len(pieces) == 1:
                    entries[blob_name(digest)] = piece.size
                elif piece.volume == number:
                    name = f"parts/{digest.replace(':', '/')}/{piece.offset}"
                    entries[name] = piece.size
                    entries[f"{name}.sha256"] = len(checksum_line(name, SET))
        sizes = [len(build_header(name, size)) + size + -size % 512 for name, size in entries.items()]
        return sum(sizes) + len(END_OF_ARCHIVE)

    def test_the_longer_header_of_a_blob_over_eight_gigabytes_counts(self, layout: Layout) -> None:
        layout.image([b"layer"], name="v1")
        graph = with_blobs(graph_of(layout), [25 << 30, 9 << 30])
        plan = plan_volumes(graph, TEMPLATE, 10 << 30)
        assert plan is not None
        for number in range(plan.total):
            assert self.size_of(plan, number, graph) <= 10 << 30

    def test_the_longer_headers_of_parts_with_long_names_count(self, layout: Layout) -> None:
        layout.image([b"layer"], name="v1")
        long = Descriptor("x", digest_of(b"0", "sha512"), 5_000_000)
        graph = dataclasses.replace(graph_of(layout), blobs=(long,))
        plan = plan_volumes(graph, TEMPLATE, 1_000_000)
        assert plan is not None
        assert len(build_header(f"parts/{long.digest.replace(':', '/')}/0", 0)) > 512
        for number in range(plan.total):
            assert self.size_of(plan, number, graph) <= 1_000_000

    def test_a_split_blob_does_not_begin_in_very_little_space(self, layout: Layout) -> None:
        layout.image([b"layer"], name="v1")
        for first, volume in ((900_000, 0), (985_000, 1)):
            plan = plan_volumes(with_blobs(graph_of(layout), [first, 1_500_000]), TEMPLATE, 1_000_000)
            assert plan is not None
            assert [piece.volume for piece in plan.parts[SOME]] == [0]
            assert plan.parts[digest_of(b"1")][0].volume == volume

    def test_a_set_is_identified_by_image_size_and_names(self, layout: Layout) -> None:
        layout.image([b"layer"], name="v1")
        graph = with_blobs(graph_of(layout), [100_000, 100_000])
        others = [
            plan_volumes(graph, TEMPLATE, 120_000),
            plan_volumes(graph, TEMPLATE, 90_000),
            plan_volumes(graph, TEMPLATE._replace(prefix="other."), 120_000),
            plan_volumes(with_blobs(graph, [100_000, 100_001]), TEMPLATE, 120_000),
            *(
                plan_volumes(
                    dataclasses.replace(with_blobs(graph, [7, 100_000]), omitted_from_output={SOME: reason}),
                    TEMPLATE,
                    90_000,
                )
                for reason in (OmissionReason(HAVE, "a"), OmissionReason(HAVE, "b"))
            ),
        ]
        assert len({plan.identity for plan in others if plan}) == len(others)

    def test_too_many_volumes_are_refused(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        layout.image([b"layer"], name="v1")
        graph = with_blobs(graph_of(layout), [100_000] * 9)
        plan = plan_volumes(graph, TEMPLATE, 110_000)
        assert plan is not None
        assert plan.total == 9
        monkeypatch.setattr(limits, "MAX_VOLUMES", 8)
        with pytest.raises(UsageError, match="too small"):
            plan_volumes(graph, TEMPLATE, 110_000)

    def test_an_index_that_is_too_large_is_refused(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        layout.image([b"layer"], name="v1")
        graph = with_blobs(graph_of(layout), [100_000] * 9)
        monkeypatch.setattr(limits, "MAX_MANIFEST", 1000)
        with pytest.raises(UnsupportedError, match="index"):
            plan_volumes(graph, TEMPLATE, 110_000)


class TestDestination:
    def test_a_blob_before_the_graph_is_refused(self, tmp_path: Path) -> None:
        sink = VolumeSetDestination(tmp_path / "app.%d.tar", 1000)
        assert sink.traits.early_refusal is not None
        assert "lists its images only at its end, so --split" in sink.traits.early_refusal().message
        sink.close()
