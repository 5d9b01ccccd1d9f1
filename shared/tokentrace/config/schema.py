"""
The JSON schema of ``tokentrace.yml``, generated from the settings, so that an editor completes and checks the file.

msgspec's own schema generator does not fit this file, in which a duration is text with a unit, a number may be written
as ``${VAR}``, and a section may be empty.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import inspect

from tokentrace.config.section import Duration
from tokentrace.config.settings import Settings
from tokentrace.units import render_duration

_DURATION = r"^([0-9.]+(ns|us|µs|ms|s|m|h|d))+$|^0$|\$\{"
#: A number, true or false may also be written in quotes or come from a variable.
_QUOTED = r"^(-?[0-9.]+|true|false)$|\$\{"
_NULL = {"type": "null"}
_CONSTRAINTS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def json_schema() -> dict[str, Any]:
    """Return the schema (JSON Schema draft 2020-12) of the whole file."""
    definitions: dict[str, Any] = {}
    root = _struct(inspect.type_info(Settings), definitions)
    for key, section in root["properties"].items():
        # YAML reads a section whose keys are all commented out as null.
        described = {name: section.pop(name) for name in ("description", "default") if name in section}
        options = section.pop("anyOf", [section])
        root["properties"][key] = described | {"anyOf": [*(o for o in options if o != _NULL), _NULL]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tokentrace.yml",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def encode_schema() -> str:
    """Return the schema as the text of ``docs/configuration.schema.json``."""
    return msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode() + "\n"


def _struct(kind: inspect.Type, definitions: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(kind, inspect.StructType)
    properties = {}
    if kind.tag_field is not None:
        properties[kind.tag_field] = {"const": kind.tag}
    for field in kind.fields:
        schema = _type(field.type, definitions)
        # A section has no default of its own in the schema: its keys have theirs.
        if field.default is not msgspec.NODEFAULT and not isinstance(field.default, msgspec.Struct):
            schema["default"] = _default(field.default)
        elif field.default_factory is not msgspec.NODEFAULT:
            schema["default"] = _default(field.default_factory())
        properties[field.encode_name] = schema
    schema = {
        "description": " ".join((kind.cls.__doc__ or "").split()),
        "type": "object",
        "properties": properties,
        "required": [field.encode_name for field in kind.fields if field.required],
        "additionalProperties": not kind.forbid_unknown_fields,
    }
    return {key: value for key, value in schema.items() if value != []}


def _default(value: object) -> object:
    return render_duration(value) if isinstance(value, Duration) else msgspec.to_builtins(value)


def _type(kind: inspect.Type, definitions: dict[str, Any]) -> dict[str, Any]:
    match kind:
        case inspect.Metadata():
            return _type(kind.type, definitions) | (kind.extra_json_schema or {})
        case inspect.StructType():
            name = kind.cls.__name__
            if name not in definitions:
                definitions[name] = {}
                definitions[name] = _struct(kind, definitions)
            return {"$ref": f"#/$defs/{name}"}
        case inspect.UnionType():
            return {"anyOf": [_type(option, definitions) for option in kind.types]}
        case inspect.NoneType():
            return _NULL
        case inspect.ListType():
            return {"type": "array", "items": _type(kind.item_type, definitions)}
        case inspect.DictType():
            return {"type": "object", "additionalProperties": _type(kind.value_type, definitions)}
        case inspect.LiteralType():
            return {"anyOf": [{"enum": list(kind.values)}, {"type": "string", "pattern": r"\$\{"}]}
        case inspect.CustomType(cls=cls) if cls is Duration:
            return {"type": ["string", "integer"], "pattern": _DURATION, "minimum": 0, "maximum": 0}
        case inspect.StrType():
            return {"type": "string"}
        case inspect.BoolType():
            return _or_variable({"type": "boolean"})
        case inspect.IntType():
            return _or_variable({"type": "integer"} | _constraints(kind))
        case inspect.FloatType() | inspect.DecimalType():
            return _or_variable(
                {"type": "number"} | (_constraints(kind) if isinstance(kind, inspect.FloatType) else {})
            )
    raise NotImplementedError(f"no JSON schema for {kind}")


def _constraints(kind: inspect.IntType | inspect.FloatType) -> dict[str, Any]:
    return {keyword: getattr(kind, name) for name, keyword in _CONSTRAINTS.items() if getattr(kind, name) is not None}


def _or_variable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "string", "pattern": _QUOTED}]}
