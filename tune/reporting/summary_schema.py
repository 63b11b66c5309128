"""The JSON schema of summary.json, made from the types and docstrings of `Summary`.

python -m tune.reporting.summary_schema > summary.schema.json
"""

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from typing import Any

from tune.reporting.summary import Summary

NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}


def summary_schema() -> dict[str, Any]:
    """Returns the schema of summary.json (JSON Schema draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "summary.json"} | schema_of(Summary)


def schema_of(kind: Any) -> dict[str, Any]:
    """Returns the schema of a type: a dataclass, a basic type, Literal, dict, tuple, or a union of them."""
    arguments = typing.get_args(kind)
    match typing.get_origin(kind):
        case typing.Literal:
            return {"enum": list(arguments)}
        case types.UnionType | typing.Union:
            return {"anyOf": [schema_of(one) for one in arguments]}
        case origin if origin is dict:
            return {"type": "object", "additionalProperties": schema_of(arguments[1])}
        case origin if origin is tuple:
            return {"type": "array", "items": schema_of(arguments[0])}
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return {} if kind is Any else {"type": NAMES[kind]}
    described, kinds = _descriptions(kind), typing.get_type_hints(kind)
    properties = {}
    for field in dataclasses.fields(kind):
        text = {"description": described[field.name]} if field.name in described else {}
        properties[field.name] = text | schema_of(kinds[field.name])
    schema = {"type": "object", "additionalProperties": False, "required": list(properties), "properties": properties}
    return {"description": inspect.getdoc(kind)} | schema


def _descriptions(kind: type) -> dict[str, str]:
    """Returns field -> the docstring below it, of a dataclass and its bases."""
    found: dict[str, str] = {}
    for base in (one for one in kind.__mro__ if dataclasses.is_dataclass(one)):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    found.setdefault(name, " ".join(said.split()))
    return found


if __name__ == "__main__":
    print(json.dumps(summary_schema(), indent=2))
