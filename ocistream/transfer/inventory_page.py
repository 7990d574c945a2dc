"""Render a description of images (`transfer/inspection.py`) as one HTML page, in pieces.

The page has no script and loads nothing. All text of images is escaped; `STYLE_SOURCE` allows the one style sheet.
"""

from __future__ import annotations

import base64
import hashlib
import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ocistream.oci.reference import printable
from ocistream.oci.referrers import classify_referrer
from ocistream.sizes import format_count, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

#: The most characters of an annotation or a label.
_MAX_VALUE: Final = 500
_REFERRERS: Final = "Signatures, SBOMs, attestations and other artifacts"
#: Layers that are listed with the images that share them, and images that are named for each.
_MAX_SHARED: Final = 100
_MAX_SHARING: Final = 10
#: A layer below this share of its image, in percent, is not drawn in the image's bar: it would be invisible.
_MIN_DRAWN: Final = 0.1
#: The level of the headings below that of an image.
_IMAGE_LEVEL: Final = 3
#: BuildKit marks attestations in an index with these annotations.
_REFERENCE_TYPE: Final = "vnd.docker.reference.type"
_REFERENCE_DIGEST: Final = "vnd.docker.reference.digest"

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --back: #fff; --fill: #f6f8fa;
  --own: #4a7bb5; --shared: #a15c00; --warn: #b3261e; --link: #1f5fa8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --line: #343b44; --back: #14171b;
  --fill: #1d2127; --own: #6f9fd8; --shared: #dda04d; --warn: #ff8a80; --link: #8ab8ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.5rem 4rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1, h2, h3, h4, h5, h6 { line-height: 1.25; font-weight: 600; overflow-wrap: anywhere; margin: 0; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.2rem; }
h3, h4, h5, h6 { font-size: 1rem; margin: 1.5rem 0 0; }
.soft:is(h3, h4, h5, h6) { font-size: 0.87rem; font-weight: 500; margin-top: 0.75rem; }
a { color: var(--link); text-decoration: none; overflow-wrap: anywhere; }
a:hover, a:focus { text-decoration: underline; }
code { font: 0.87em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
p, dl { margin: 0.5rem 0; }
section { margin-top: 3rem; }
section.image { border-top: 1px solid var(--line); padding-top: 1.5rem; margin-top: 2rem;
  content-visibility: auto; contain-intrinsic-size: auto 30rem; }
.soft, .unit { color: var(--soft); }
.warn { color: var(--warn); }
.totals { display: flex; flex-wrap: wrap; gap: 0.75rem 2.25rem; margin: 1rem 0 0; }
.totals dt { color: var(--soft); font-size: 0.85rem; }
.totals dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.15rem 1rem; margin: 0.6rem 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.facts.pairs { grid-template-columns: minmax(0, 1fr) minmax(0, 2fr); font-size: 0.87rem; border-left: 2px solid
  var(--line); padding-left: 0.75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 0.75rem 0; }
caption { text-align: left; color: var(--soft); padding-bottom: 0.25rem; }
th, td { text-align: left; vertical-align: baseline; padding: 0.3rem 1rem 0.3rem 0;
  border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-size: 0.85rem; font-weight: 500; color: var(--soft); white-space: nowrap; }
tbody th { font-weight: 400; }
th.n, td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.digest { display: inline-block; max-width: 20ch; overflow: hidden; overflow: clip; text-overflow: ellipsis;
  white-space: nowrap; user-select: all; }
.all { user-select: all; }
.command { display: block; background: var(--fill); border: 1px solid var(--line); border-radius: 4px;
  padding: 0.5rem 0.75rem; margin: 0.75rem 0; user-select: all; }
svg { display: block; width: 100%; }
svg.stack { height: 1.5rem; margin: 0.75rem 0 0.25rem; }
svg.bar { height: 0.7rem; min-width: 3.5rem; margin-top: 0.35rem; }
.b { width: 30%; }
td.b { vertical-align: top; }
.own { fill: var(--own); }
.shared { fill: var(--shared); }
svg.stack rect { stroke: var(--back); stroke-width: 1px; }
.key { display: inline-block; width: 0.7rem; height: 0.7rem; margin-right: 0.4rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1.5rem; font-size: 0.87rem; color: var(--soft); margin: 0; }
.mark { color: var(--shared); white-space: nowrap; }
.note td { border-bottom: 1px solid var(--line); font-size: 0.87rem; color: var(--soft); overflow-wrap: anywhere; }
.tags { columns: 14rem; padding: 0; list-style: none; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: 0.87rem; }
@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 3rem; font-size: 14px; }
  th, td { padding-right: 0.6rem; }
  .wide { display: none; }
  .digest { max-width: 16ch; }
  .facts.pairs { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .pairs dd { margin-bottom: 0.4rem; }
  .b { width: 18%; }
  th.b { font-size: 0; }
  svg.bar { min-width: 2rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 9pt; }
  .digest { max-width: none; white-space: normal; }
  section.image { content-visibility: visible; }
  tr { break-inside: avoid; }
}
"""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
#: What a browser may do with the page, for a `meta` element.
_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'"
#: The same for the header `Content-Security-Policy`: `frame-ancestors` is allowed only there.
CONTENT_SECURITY_POLICY: Final = f"{_POLICY}; frame-ancestors 'none'"


def render_page(
    description: Mapping[str, Any],
    title: str,
    pull_command: Callable[[Mapping[str, Any]], str | None] = lambda _image: None,
) -> Iterator[str]:
    """Yield the page about the images, or the tags, of a description.

    `description["images"]` is iterated several times. `pull_command` returns the command that pulls an image.
    """
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{_text(title)}: images</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    )
    if "tags" in description:
        yield from _render_tags(description, title)
    else:
        yield from _ImagePage(description, pull_command).render(title)
    yield (
        "<footer>\n<p>Made by ocistream. Click a digest to select it completely. "
        "<code>ocistream inspect --format json</code> prints the same data for programs, with values of any length."
        "</p>\n</footer>\n</body>\n</html>\n"
    )


def _render_tags(description: Mapping[str, Any], title: str) -> Iterator[str]:
    tags = description["tags"]
    yield f"<header>\n<h1>{_text(title)}</h1>\n<p>{format_count(len(tags), 'tag')}</p>\n"
    if not description["complete"]:
        yield '<p class="warn">The registry has further tags that it does not list.</p>\n'
    yield '</header>\n<main>\n<ul class="tags">\n'
    for tag in tags:
        yield f"<li><code>{_text(tag)}</code></li>\n"
    yield "</ul>\n</main>\n"


@dataclass(slots=True)
class _SharedLayer:
    """A layer that several images have: its size, their number, and some of them by their number and platform."""

    size: int
    image_count: int
    users: list[tuple[int, str]] = field(default_factory=list)

    @property
    def saved(self) -> int:
        """The bytes that sharing saves."""
        return self.size * (self.image_count - 1)


class _ImagePage:
    """The page about images. Only names and digests are kept, because there may be thousands of images."""

    def __init__(self, description: Mapping[str, Any], pull_command: Callable[[Mapping[str, Any]], str | None]) -> None:
        self._images = description["images"]
        self._totals = description["totals"]
        self._missing_blobs: Sequence[Mapping[str, Any]] = description["missing"]
        self._missing = {descriptor["digest"] for descriptor in self._missing_blobs}
        self._pull_command = pull_command
        #: The heading of each image on the page, and the number of the first image with a digest.
        self._titles: list[str] = []
        self._numbers: dict[str, int] = {}
        #: The number of the first image that contains a manifest.
        self._owners: dict[str, int] = {}
        #: The platforms, so that equal ones are one object.
        self._platforms: dict[str, str] = {}
        #: Layers in several images, by digest; in the end only those that save most.
        self._shared: dict[str, _SharedLayer] = {}
        for number, image in enumerate(self._images):
            self._add(number, image)
        largest = sorted(self._shared.items(), key=lambda item: item[1].saved, reverse=True)[:_MAX_SHARED]
        self._omitted_shared = len(self._shared) - len(largest)
        self._shared = dict(largest)
        self._shared_numbers = {digest: number for number, digest in enumerate(self._shared)}

    def _add(self, number: int, image: Mapping[str, Any]) -> None:
        self._titles.append(_title(image))
        self._numbers.setdefault(_key(image), number)
        for manifest in _flatten(image):
            if self._owners.setdefault(_key(manifest), number) != number:
                continue
            platform = manifest.get("platform", "")
            user = number, self._platforms.setdefault(platform, platform)
            for layer in manifest.get("layers", ()):
                if (count := layer.get("sharedBy", 1)) > 1:
                    shared = self._shared.setdefault(layer["digest"], _SharedLayer(layer["size"], count))
                    if len(shared.users) < _MAX_SHARING and user not in shared.users:
                        shared.users.append(user)

    def render(self, title: str) -> Iterator[str]:
        yield f"<header>\n<h1>{_text(title)}</h1>\n"
        yield from self._render_totals()
        yield "</header>\n<main>\n"
        yield from self._render_overview()
        yield from self._render_missing()
        for number, image in enumerate(self._images):
            yield from self._render_image(number, image)
        yield from self._render_shared()
        yield "</main>\n"

    # -- about all images ----------------------------------------------------------------------------------

    def _render_totals(self) -> Iterator[str]:
        totals = self._totals
        saved = totals["bytesUnshared"] - totals["bytes"]
        referrers = sum("subject" in image for image in self._images)
        yield '<dl class="totals">\n'
        facts = [
            ("Images", f"{totals['images'] - referrers:,}"),
            ("Signatures, SBOMs, other artifacts", f"{referrers:,}" if referrers else ""),
            ("Manifests", f"{totals['manifests']:,}"),
            ("Configs and layers", f"{totals['blobs']:,}"),
            ("Size", _size(totals["bytes"])),
            ("Saved by sharing", _size(saved) if saved else ""),
            ("Missing", f'<span class="warn">{len(self._missing_blobs):,}</span>' if self._missing_blobs else ""),
        ]
        for term, value in facts:
            if value:
                yield f"<div><dt>{term}</dt><dd>{value}</dd></div>\n"
        yield "</dl>\n"

    def _render_overview(self) -> Iterator[str]:
        yield "<section>\n<h2>Images</h2>\n"
        yield _open_table("Name and digest", "Platforms", ("Layers", "n wide"), ("Size", "n"))
        for number, image in enumerate(self._images):
            if "subject" not in image:
                yield self._image_row(number, image)
        yield f"{_END_TABLE}</section>\n"
        if any("subject" in image for image in self._images):
            yield f"<section>\n<h2>{_REFERRERS}</h2>\n"
            yield _open_table("Kind and digest", "Refers to", ("Size", "n"))
            for number, image in enumerate(self._images):
                if "subject" in image:
                    size = _size(image.get("bytes", image.get("size", 0)))
                    yield _row(self._link_and_digest(number, image), self._subject(image), (size, "n"))
            yield f"{_END_TABLE}</section>\n"

    def _image_row(self, number: int, image: Mapping[str, Any]) -> str:
        manifests = [manifest for manifest in _flatten(image) if "layers" in manifest and not _is_attestation(manifest)]
        platforms = dict.fromkeys(manifest.get("platform", "") for manifest in manifests)
        sizes = {blob["digest"]: blob["size"] for manifest in manifests for blob in _stored_blobs(manifest)}
        layers = {layer["digest"] for manifest in manifests for layer in manifest["layers"]}
        return _row(
            self._link_and_digest(number, image),
            _lines(map(_text, platforms)),
            (f"{len(layers):,}", "n wide"),
            (_size(sum(sizes.values())), "n"),
        )

    def _link_and_digest(self, number: int, image: Mapping[str, Any]) -> str:
        return f'{self._link(number)}<div class="soft">{_short(_key(image))}</div>'

    def _render_missing(self) -> Iterator[str]:
        if not self._missing_blobs:
            return
        yield '<section>\n<h2 class="warn">Missing content</h2>\n'
        yield "<p>Images need these manifests, configs and layers, and the location does not have them.</p>\n"
        yield _open_table("Digest", ("Size", "n"), "Reason")
        for descriptor in self._missing_blobs:
            reason = descriptor.get("omitted") or ("not exported" if "notExported" in descriptor else "not found")
            yield _row(_short(descriptor["digest"]), (_size(descriptor["size"]), "n"), _text(reason))
        yield f"{_END_TABLE}</section>\n"

    def _render_shared(self) -> Iterator[str]:
        if not self._shared:
            return
        yield "<section>\n<h2>Shared layers</h2>\n<p>Several images, or several platforms of an image, have these "
        yield "layers. Each layer is stored once.</p>\n"
        yield _open_table("Layer", ("Size", "n"), "Images")
        for digest, layer in self._shared.items():
            users = [f"{self._link(number)} {_text(platform)}" for number, platform in layer.users]
            if layer.image_count > len(users):
                users.append(f"and {layer.image_count - len(users):,} more")
            anchor = f"layer-{self._shared_numbers[digest]}"
            yield _row(_short(digest), (_size(layer.size), "n"), _lines(users), anchor=anchor)
        yield _END_TABLE
        if self._omitted_shared:
            yield f"<p>{self._omitted_shared:,} more shared layers save less and are not listed here.</p>\n"
        yield "</section>\n"

    # -- about one image -----------------------------------------------------------------------------------

    def _render_image(self, number: int, image: Mapping[str, Any]) -> Iterator[str]:
        yield f'<section class="image" id="image-{number}">\n<h2>{_text(self._titles[number])}</h2>\n'
        if (command := self._pull_command(image)) is not None:
            yield f'<code class="command">{_text(command)}</code>\n'
        first = self._numbers[_key(image)]
        if first == number:
            yield from self._render_manifest(image, _IMAGE_LEVEL)
        else:
            yield f"<p>This is the same {_kind(image)} as {self._link(first)}:</p>\n"
            yield f'<p><code class="all">{_text(_key(image))}</code></p>\n'
        yield "</section>\n"

    def _render_manifest(self, manifest: Mapping[str, Any], level: int) -> Iterator[str]:
        yield '<dl class="facts">\n'
        for term, value in self._facts(manifest, is_child=level > _IMAGE_LEVEL):
            yield f"<dt>{term}</dt><dd>{value}</dd>\n"
        yield "</dl>\n"
        named = manifest.get("name")
        of_entry = {key: value for key, value in manifest.get("indexAnnotations", {}).items() if value != named}
        annotations = {**of_entry, **manifest.get("annotations", {})}
        yield from _render_pairs("Labels", manifest.get("labels", {}), level)
        yield from _render_pairs("Annotations", annotations, level)
        layers = manifest.get("layers") or manifest.get("blobs")
        if layers:
            yield from self._render_layers(layers)
        if referrers := manifest.get("referrers"):
            yield from self._render_referrers(referrers)
        platforms = {child["digest"]: child.get("platform", "") for child in manifest.get("manifests", ())}
        for child in manifest.get("manifests", ()):
            title = child.get("platform") or _kind(child)
            if _is_attestation(child):
                title = f"attestation of {platforms.get(child['indexAnnotations'].get(_REFERENCE_DIGEST), 'an image')}"
            yield f"<h{level}>{_text(title)}</h{level}>\n"
            yield from self._render_manifest(child, min(level + 1, 6))

    def _facts(self, manifest: Mapping[str, Any], *, is_child: bool) -> Iterator[tuple[str, str]]:
        for key, term in (("imageId", "Image ID"), ("digest", "Digest")):
            if key in manifest:
                yield term, f'<code class="all">{_text(manifest[key])}</code>'
        if "missing" in manifest:
            yield "Manifest", '<span class="warn">missing</span>'
        if "subject" in manifest:
            yield "Refers to", self._subject(manifest)
        shown = {"artifactType": "Type", "platform": "Platform", "created": "Created", "mediaType": "Media type"}
        for key, term in shown.items():
            # The platform of a child is its heading.
            if key in manifest and not (is_child and key == "platform"):
                yield term, _text(manifest[key])
        if "bytes" in manifest:
            yield "Size", _size(manifest["bytes"])
        if "config" in manifest:
            config = manifest["config"]
            mark = self._missing_mark(config["digest"])
            yield "Config", f"{_short(config['digest'])} {_size(config['size'])}{mark}"

    def _render_layers(self, layers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        stored = [layer for layer in layers if not layer.get("foreign")]
        total = sum(layer["size"] for layer in stored)
        largest = max((layer["size"] for layer in stored), default=0)
        if len(stored) > 1:
            yield from _render_stacked_bar(stored, total)
        columns = (
            ("#", "n"),
            ("Size", "n"),
            ("Share", "n wide"),
            ("Compared with the largest", "b"),
            "Digest",
            "Notes",
        )
        yield _open_table(*columns, caption=format_count(len(layers), "layer"))
        for number, layer in enumerate(layers, 1):
            size = layer["size"]
            share = bar = ""
            if size and not layer.get("foreign"):
                share = f"{_percent(size, total)} %"
                # Wide enough to be seen.
                width = _percent(max(size, largest / 200), largest)
                bar = f'<rect class="{_shape(layer)}" width="{width}%" height="100%"/>'
            yield _row(
                (str(number), "n"),
                (_size(size), "n"),
                (share, "n wide"),
                (f'<svg class="bar" aria-hidden="true">{bar}</svg>', "b"),
                _short(layer["digest"]),
                self._notes(layer),
            )
            for key, value in layer.get("annotations", {}).items():
                yield f'<tr class="note"><td></td><td colspan="5">{_text(key)}: {_text(value)}</td></tr>\n'
        yield _END_TABLE

    def _notes(self, layer: Mapping[str, Any]) -> str:
        notes = [_text(layer.get("compression") or layer["mediaType"])]
        if "sharedBy" in layer:
            text = f"in {layer['sharedBy']:,} images"
            number = self._shared_numbers.get(layer["digest"])
            notes.append(
                f'<span class="mark">{text}</span>'
                if number is None
                else f'<a class="mark" href="#layer-{number}">{text}</a>'
            )
        if layer.get("foreign"):
            notes.append("foreign: not copied")
        return ", ".join(notes) + self._missing_mark(layer["digest"])

    def _missing_mark(self, digest: str) -> str:
        return ', <span class="warn">missing</span>' if digest in self._missing else ""

    def _render_referrers(self, referrers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        yield _open_table("Kind", "Type", "Digest", caption=_REFERRERS)
        for referrer in referrers:
            number = self._numbers.get(referrer["digest"])
            kind = _text(_kind(referrer))
            yield _row(
                kind if number is None else f'<a href="#image-{number}">{kind}</a>',
                _text(referrer.get("artifactType") or referrer["mediaType"]),
                _short(referrer["digest"]),
            )
        yield _END_TABLE

    def _link(self, number: int) -> str:
        return f'<a href="#image-{number}">{_text(self._titles[number])}</a>'

    def _subject(self, manifest: Mapping[str, Any]) -> str:
        subject = manifest["subject"]
        number = self._numbers.get(subject, self._owners.get(subject))
        return f"{_short(subject)}{'' if number is None else f' in {self._link(number)}'}"


def _flatten(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a manifest and all manifests below it."""
    yield manifest
    for child in manifest.get("manifests", ()):
        yield from _flatten(child)


def _key(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest; the image ID if it has none."""
    key: str = manifest.get("digest") or manifest["imageId"]
    return key


def _title(image: Mapping[str, Any]) -> str:
    name = image["name"] or _key(image).partition(":")[2][:12]
    return name if image["name"] and "subject" not in image else f"{_kind(image)} {name}"


def _kind(manifest: Mapping[str, Any]) -> str:
    """Return what a manifest or referrer is: an index, an image, an artifact, or the kind of a referrer."""
    if "subject" in manifest or manifest.get("kind", "artifact") == "artifact":
        return classify_referrer(manifest.get("artifactType"), manifest.get("tag"))
    kind: str = manifest["kind"]
    return kind


def _is_attestation(manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest of an index is BuildKit's attestation of another one."""
    return _REFERENCE_TYPE in manifest.get("indexAnnotations", {})


def _stored_blobs(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the config and the layers of an image that are stored with it."""
    yield manifest["config"]
    yield from (layer for layer in manifest["layers"] if not layer.get("foreign"))


def _render_pairs(heading: str, pairs: Mapping[str, object], level: int) -> Iterator[str]:
    if pairs:
        yield f'<h{level} class="soft">{heading}</h{level}>\n<dl class="facts pairs">\n'
        for key, value in pairs.items():
            yield f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>\n"
        yield "</dl>\n"


def _render_stacked_bar(layers: Sequence[Mapping[str, Any]], total: int) -> Iterator[str]:
    """Yield one bar of all layers side by side, and the sizes of those that are shared and those that are not."""
    yield '<svg class="stack" role="img" aria-label="The layers side by side, by size; the table has the numbers">'
    position = shared = 0
    for layer in layers:
        size = layer["size"]
        if size and size / total * 100 >= _MIN_DRAWN:
            place = f'x="{_percent(position, total, 2)}%" width="{_percent(size, total, 2)}%" height="100%"'
            title = f"<title>{_text(layer['digest'])}: {format_size(size)}</title>"
            yield f'<rect class="{_shape(layer)}" {place}>{title}</rect>'
        position += size
        shared += size if "sharedBy" in layer else 0
    yield "</svg>\n"
    if shared:
        yield '<p class="legend">'
        for shape, text, size in (("own", "only in this image", total - shared), ("shared", "shared", shared)):
            key = f'<svg class="key" aria-hidden="true"><rect class="{shape}" width="100%" height="100%"/></svg>'
            yield f"<span>{key}{text}: {_size(size)}</span>"
        yield "</p>\n"


def _shape(layer: Mapping[str, Any]) -> str:
    """Return the class of a bar."""
    return "shared" if "sharedBy" in layer else "own"


def _percent(part: float, total: int, digits: int = 1) -> str:
    return f"{part / total * 100 if total else 0:.{digits}f}"


#: The end of a table that `_open_table` began.
_END_TABLE: Final = "</tbody>\n</table></div>\n"


def _open_table(*columns: str | tuple[str, str], caption: str = "") -> str:
    """Return the beginning of a table. A column is its heading, or its heading and its class."""
    named = [(column, "") if isinstance(column, str) else column for column in columns]
    heads = "".join(f'<th scope="col"{_class(kind)}>{heading}</th>' for heading, kind in named)
    caption = f"<caption>{caption}</caption>\n" if caption else ""
    return f'<div class="scroll"><table>\n{caption}<thead><tr>{heads}</tr></thead>\n<tbody>\n'


def _row(*cells: str | tuple[str, str], anchor: str = "") -> str:
    """Return a row of a table. A cell is markup, or markup and its class; the first one is the row's heading."""
    (first, first_kind), *others = [(cell, "") if isinstance(cell, str) else cell for cell in cells]
    identifier = f' id="{anchor}"' if anchor else ""
    data = "".join(f"<td{_class(kind)}>{cell}</td>" for cell, kind in others)
    return f'<tr{identifier}><th scope="row"{_class(first_kind)}>{first}</th>{data}</tr>\n'


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _lines(items: Iterable[str]) -> str:
    return "".join(f"<div>{item}</div>" for item in items)


def _size(size: int) -> str:
    """Return a size for people, with the exact number of bytes as its title."""
    return f'<data value="{size}" title="{size:,} bytes">{format_size(size)}</data>'


def _short(digest: str) -> str:
    """Return a digest that is shown shortened, and selected and copied completely."""
    text = _text(digest)
    return f'<code class="digest" title="{text}">{text}</code>'


def _text(value: object) -> str:
    """Escape text of an image: no markup, no control characters, and no `##`, which starts commands in logs of CI."""
    text = printable(" ".join(str(value).split()), _MAX_VALUE)
    return html.escape(text).replace("##", "#&#35;")
