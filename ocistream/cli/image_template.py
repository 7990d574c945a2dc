"""Templates of `ocistream inspect --format`: one line for each image, with the values of its fields."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

from ocistream.cli.console import sanitize_line
from ocistream.errors import MissingContentError, UnsupportedError, UsageError
from ocistream.oci.reference import printable

#: Returns the line of an image, or a part of it.
_Part: TypeAlias = Callable[[Mapping[str, Any]], str]

#: A doubled brace, a field, or a single brace.
_ITEM: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
#: A Go template, as skopeo and docker take it. Here `{{` is a literal brace.
_GO_TEMPLATE: Final = re.compile(r"\{\{-?\s*(?:\.|json\b|range\b|if\b|index\b|println\b)")


def parse_template(text: str) -> _Part:
    """Return a function that returns the line of an image of the JSON document.

    A template is such as "{name} {labels.org.opencontainers.image.version}"; {{ and }} are literal braces. Labels and
    annotations that the image lacks are empty.

    Raises:
        UsageError: the template has no field, an unknown one, or a single brace. The function also raises it if the
            image is an index, and a field belongs to one platform; and UnsupportedError if a docker-archive has no such
            field.
    """
    shown = printable(text)
    if _GO_TEMPLATE.search(text):
        msg = f"--format {shown!r}: Go templates are not supported"
        raise UsageError(msg, hint=f"write {{digest}} for {{{{.Digest}}}}; {_describe_fields()}")
    fields = []
    for match in _ITEM.finditer(text):
        if match[0] in {"{", "}"}:
            msg = f"--format {shown!r} has a single {match[0]}"
            raise UsageError(msg, hint=f"write {match[0] * 2} for a literal {match[0]}; {_describe_fields()}")
        if match[1] is not None:
            fields.append(_parse_field(match[1]))
    if not fields:
        msg = f"--format {shown!r} is not text, json or html, and a template needs a field"
        raise UsageError(msg, hint=_describe_fields())

    def fill_in(image: Mapping[str, Any]) -> str:
        values = (field(image) for field in fields)
        return sanitize_line(_ITEM.sub(lambda match: match[0][0] if match[1] is None else next(values), text))

    return fill_in


def _parse_field(text: str) -> _Part:
    name, dot, key = text.partition(".")
    if name in _FIELDS and not dot:
        return _FIELDS[name]
    if name in _MAPS and key:
        return partial(_read_entry, name, key)
    msg = f"--format: {printable(text)!r} is not a field"
    raise UsageError(msg, hint=_describe_fields())


def _describe_fields() -> str:
    names = [*_FIELDS, *(f"{name}.KEY" for name in _MAPS)]
    return f"the fields are {', '.join(f'{{{name}}}' for name in names)}"


def _read_entry(name: str, key: str, image: Mapping[str, Any]) -> str:
    if name == "annotations":
        entries = {**image.get("indexAnnotations", {}), **image.get("annotations", {})}
    else:
        _require_one_image(image, f"{name}.{key}")
        entries = image.get(name, {})
    return str(entries.get(key, ""))


def _require_one_image(image: Mapping[str, Any], field: str) -> None:
    if image.get("missing"):
        platform = printable(image.get("platform", image["digest"]))
        msg = f"{printable(image['name'] or 'the image')} lacks the manifest of {platform}"
        raise MissingContentError(msg, hint="choose a complete platform, or pull the image again")
    if image.get("kind") != "index":
        return
    platforms = ", ".join(_list_platforms(image, only_existing=True))
    msg = f"{printable(image['name'] or image['digest'])} is an index: {{{printable(field)}}} belongs to one platform"
    raise UsageError(msg, hint=f"add --platform: {printable(platforms, 1024)}" if platforms else None)


def _list_platforms(manifest: Mapping[str, Any], *, only_existing: bool = False) -> list[str]:
    if "manifests" not in manifest:
        platform = None if only_existing and manifest.get("missing") else manifest.get("platform")
        return [platform] if platform and not platform.startswith("unknown/") else []
    platforms = [_list_platforms(child, only_existing=only_existing) for child in manifest["manifests"]]
    return list(dict.fromkeys(itertools.chain.from_iterable(platforms)))


def _sum_blobs(manifest: Mapping[str, Any]) -> int:
    """Return the bytes of the configs and layers of an image, or of all images of an index, each blob once."""
    sizes: dict[str, int] = {}
    pending = [manifest]
    while pending:
        current = pending.pop()
        pending.extend(current.get("manifests", ()))
        blobs = [*current.get("layers", ()), *current.get("blobs", ())]
        if "config" in current:
            blobs.append(current["config"])
        sizes.update((blob["digest"], blob["size"]) for blob in blobs if not blob.get("foreign"))
    return sum(sizes.values())


def _of_manifest(key: str) -> _Part:
    def read(image: Mapping[str, Any]) -> str:
        if key not in image:
            msg = f"{printable(image['name'] or 'the image')} has no {{{key}}}: a docker-archive has no manifests"
            raise UnsupportedError(msg, hint=f"its image ID is {image.get('imageId')} ({{imageId}})")
        return str(image[key])

    return read


def _of_config(key: str) -> _Part:
    def read(image: Mapping[str, Any]) -> str:
        _require_one_image(image, key)
        return str(image.get(key, ""))

    return read


def _image_id(image: Mapping[str, Any]) -> str:
    _require_one_image(image, "imageId")
    return str(image["config"]["digest"]) if "config" in image else ""


#: The fields, by the names of the JSON document, and how their text is found.
_FIELDS: Final[dict[str, _Part]] = {
    "name": lambda image: image["name"] or "",
    "digest": _of_manifest("digest"),
    "mediaType": _of_manifest("mediaType"),
    "size": _of_manifest("size"),
    "bytes": lambda image: str(_sum_blobs(image)),
    "kind": lambda image: str(image.get("kind", "missing")),
    "platform": lambda image: ",".join(_list_platforms(image)),
    "created": _of_config("created"),
    "imageId": _image_id,
}
#: Fields with a key.
_MAPS: Final = ("labels", "annotations")
