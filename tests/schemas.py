"""JSON schemas that check ocistream's output: those of the image-spec (tests/spec), and those of docs/."""

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
    """Validate a document, or its JSON text, against the schema of its `kind`.

    Raises:
        jsonschema.ValidationError: the document is not valid.
    """
    instance = json.loads(document) if isinstance(document, bytes) else document
    _validator(kind).validate(instance)


def validate_ours(
    instance: Any, name: Literal["inspect", "progress", "result", "sync-result", "verify"], *, strict: bool = True
) -> None:
    """Validate machine-readable output against the schema `name` of docs/.

    A `strict` check rejects properties that the schema does not name.

    Raises:
        jsonschema.ValidationError: the output is not valid.
    """
    _validator_of_ours(name, strict=strict).validate(instance)


def validate_layout(folder: Path) -> int:
    """Validate oci-layout, index.json, and every index, manifest and config that they reach; return their number.

    Raises:
        jsonschema.ValidationError: a document is not valid.
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
    """Forbid properties that the schema does not name, in every object."""
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
    """Build the validator. Schemas refer to each other by file name, and are read only from tests/spec."""
    schemas = {path.name: json.loads(path.read_bytes()) for path in _FOLDER.glob("*.json")}
    resources: list[tuple[str, referencing.Resource[Any]]] = []
    for name, schema in schemas.items():
        # Their ids are URLs, which would turn "defs.json" into a URL too.
        resources.append((name, DRAFT4.create_resource(_without_ids(schema))))
    registry: referencing.Registry[Any] = referencing.Registry().with_resources(resources)
    return jsonschema.Draft4Validator({"$ref": _FILES[kind]}, registry=registry)


def _without_ids(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: _without_ids(value) for key, value in schema.items() if not (key == "id" and isinstance(value, str))
        }
    return [_without_ids(one) for one in schema] if isinstance(schema, list) else schema
