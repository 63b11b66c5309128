"""Texts with {NAME} in them, which stand for values: `{learning_rate}`, and arithmetic such as `{learning_rate / 10}`."""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from myllm.system.errors import InputError

FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
"""a doubled brace, which stands for one, or an expression in braces"""
BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"int": int, "round": round, "min": min, "max": max}


def fill(text: str, values: Mapping[str, Any]) -> str:
    """`text` with each `{EXPRESSION}` replaced by its value. Raises InputError for one that can't be computed."""

    def value(match: re.Match[str]) -> str:
        return match[0][0] if match[1] is None else str(compute(match[1], values))

    return FIELD.sub(value, text)


def names_in(text: str) -> set[str]:
    """The names in the expressions of `text`. Raises InputError for an expression that is none."""
    found: set[str] = set()
    for match in FIELD.finditer(text):
        if match[1] is not None:
            nodes = ast.walk(_parse(match[1]))
            found |= {node.id for node in nodes if isinstance(node, ast.Name) and node.id not in FUNCTIONS}
    return found


def compute(expression: str, values: Mapping[str, Any]) -> Any:
    """The value of an arithmetic expression of names and numbers. Raises InputError where it has none."""
    try:
        return _value(_parse(expression), values)
    except KeyError as error:
        raise InputError(f"{{{expression}}}: there is no value {error}; known are {', '.join(values)}") from None
    except (ArithmeticError, TypeError, ValueError) as error:
        raise InputError(f"{{{expression}}} can't be computed: {error}") from None


def _parse(expression: str) -> ast.expr:
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        wanted = "write {NAME}, or arithmetic of names and numbers; a brace that stands for itself is doubled"
        raise InputError(f"{{{expression}}} is no expression; {wanted}") from None


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name(id=name):
            return values[name]
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            return BINARY[type(op)](_value(left, values), _value(right, values))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_value(argument, values) for argument in arguments))
    raise ValueError("only names, numbers, + - * / // % **, int, round, min and max can stand there")
