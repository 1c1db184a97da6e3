"""The schemas that are shipped, to hold documents against."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry, Resource

from qmpshim.conformance import document
from qmpshim.conformance.check.report import results

SCHEMAS = Path(document.__file__).with_name("schemas")
SCHEMA = Path(results.__file__).with_name("results.schema.json")


@cache
def schemas() -> dict[str, Any]:
    """All that are shipped, each valid itself; they find each other by the paths of their files."""
    files = {path.name: path for path in SCHEMAS.iterdir()}
    files[f"../check/{SCHEMA.name}"] = SCHEMA
    contents = {name: json.loads(path.read_text()) for name, path in files.items()}
    for content in contents.values():
        jsonschema.Draft202012Validator.check_schema(content)
    return contents


@cache
def validator(command: str) -> jsonschema.Draft202012Validator:
    """Of the document of *command*."""
    contents = schemas()
    registry: Registry[Any] = Registry().with_resources(
        [(name, Resource.from_contents(content)) for name, content in contents.items()]
    )
    schema = contents[f"{command.replace(' ', '-')}.schema.json"]
    return jsonschema.Draft202012Validator(schema, registry=registry)
