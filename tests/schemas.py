"""JSON schemas as a check on what ocistream writes: the image-spec's own (tests/spec), and those of docs/."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Final, Literal

import jsonschema
import referencing
from referencing.jsonschema import DRAFT4

Kind = Literal["layout", "index", "manifest", "config", "descriptor"]

_FOLDER: Final = Path(__file__).parent / "spec"
_DOCS: Final = Path(__file__).parents[1] / "docs"
_FILES: Final[dict[Kind, str]] = {
    "layout": "image-layout-schema.json",
    "index": "image-index-schema.json",
    "manifest": "image-manifest-schema.json",
    "config": "config-schema.json",
    "descriptor": "content-descriptor.json",
}


def validate(document: bytes | Any, kind: Kind) -> None:
    """Check a document, or its JSON text, by the schema of its `kind`.

    Raises:
        jsonschema.ValidationError: it is not valid.
    """
    instance = json.loads(document) if isinstance(document, bytes) else document
    _validator(kind).validate(instance)


def validate_ours(
    instance: Any, name: Literal["inspect", "progress", "result", "sync-result", "verify"], *, strict: bool = True
) -> None:
    """Check what is said or written for programs by the schema of docs/ that is called `name`.

    A `strict` check takes no property that the schema does not name.

    Raises:
        jsonschema.ValidationError: it is not valid.
    """
    _validator_of_ours(name, strict=strict).validate(instance)


def validate_layout(folder: Path) -> int:
    """Check oci-layout, index.json, and every index, manifest and config that they lead to; return how many.

    Raises:
        jsonschema.ValidationError: one is not valid.
    """
    validate((folder / "oci-layout").read_bytes(), "layout")
    index = json.loads((folder / "index.json").read_bytes())
    validate(index, "index")
    return 2 + sum(_validate_below(folder, entry) for entry in index["manifests"])


def _validate_below(folder: Path, descriptor: dict[str, Any]) -> int:
    algorithm, _, encoded = descriptor["digest"].partition(":")
    document = json.loads((folder / "blobs" / algorithm / encoded).read_bytes())
    validate(descriptor, "descriptor")
    if "manifests" in document:
        validate(document, "index")
        return 1 + sum(_validate_below(folder, entry) for entry in document["manifests"])
    validate(document, "manifest")
    if document["config"]["mediaType"] != "application/vnd.oci.image.config.v1+json":
        return 1
    algorithm, _, encoded = document["config"]["digest"].partition(":")
    validate((folder / "blobs" / algorithm / encoded).read_bytes(), "config")
    return 2


@functools.cache
def _validator_of_ours(name: str, *, strict: bool) -> jsonschema.Draft202012Validator:
    schema = json.loads((_DOCS / f"{name}.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(_closed(schema) if strict else schema)


def _closed(schema: Any) -> Any:
    """Let no object have other properties than those that are named."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema and "mediaType" not in schema["properties"]:
        changed.setdefault("unevaluatedProperties", False)
    return changed


@functools.cache
def _validator(kind: Kind) -> jsonschema.Draft4Validator:
    """Build the validator. A schema refers to others by file name, and they are read from here only."""
    schemas = {path.name: json.loads(path.read_bytes()) for path in _FOLDER.glob("*.json")}
    resources: list[tuple[str, referencing.Resource[Any]]] = []
    for name, schema in schemas.items():
        # Their ids are addresses, which would make "defs.json" one too: without them a name is just a name.
        resources.append((name, DRAFT4.create_resource(_without_ids(schema))))
    registry: referencing.Registry[Any] = referencing.Registry().with_resources(resources)
    return jsonschema.Draft4Validator({"$ref": _FILES[kind]}, registry=registry)


def _without_ids(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: _without_ids(value) for key, value in schema.items() if not (key == "id" and isinstance(value, str))
        }
    return [_without_ids(one) for one in schema] if isinstance(schema, list) else schema
