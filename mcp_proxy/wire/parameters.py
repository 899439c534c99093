"""Arguments of a tool that a request of revision 2026-07-28 repeats in headers, as the tool's schema asks.

A property with ``x-mcp-header: X`` is repeated in ``Mcp-Param-X`` (specification 2026-07-28, "Custom headers"). A tool
that uses the annotation wrongly is not to be shown to anybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mcp_proxy.wire import modern
from mcp_proxy.wire.headers import Headers

#: The path of each annotated property in the arguments, with the name of its header.
Annotations = tuple[tuple[tuple[str, ...], str], ...]

PREFIX = b"mcp-param-"
_ANNOTATION = "x-mcp-header"
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TYPES = ("string", "integer", "boolean")
#: Members of a schema that hold another, a list of others, or others by name; ``properties`` is apart.
_ONE = ("items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames", "unevaluatedProperties",
        "not", "if", "then", "else", "contentSchema")  # fmt: skip
_LIST = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("patternProperties", "dependentSchemas", "$defs", "definitions")
#: How many schemas one tool's is searched for.
_MAX_SCHEMAS = 10_000


class WronglyAnnotated(Exception):
    """The tool's schema asks for what no client can do."""


def repeated(schema: Any) -> Annotations:
    """Which arguments of a tool are repeated.

    :raises WronglyAnnotated: the tool is to be hidden; the text says why.
    """
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for count, (path, each) in enumerate(_schemas(schema)):
        if count >= _MAX_SCHEMAS:
            raise WronglyAnnotated("its schema is too large")
        if _ANNOTATION not in each:
            continue
        name = each[_ANNOTATION]
        if not path:
            raise WronglyAnnotated(f"{_ANNOTATION} is where no argument is")
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise WronglyAnnotated(f"{_ANNOTATION} is no name of a header")
        if each.get("type") not in _TYPES:
            raise WronglyAnnotated(f"{_ANNOTATION} is for strings, integers and booleans")
        if name.lower() in found:
            raise WronglyAnnotated(f"{_ANNOTATION} has the same name twice")
        found[name.lower()] = path, name
    return tuple(found.values())


def headers_for(wanted: Annotations, arguments: Any) -> Headers:
    """The headers that repeat these arguments, as far as they are given."""
    return tuple(
        (b"Mcp-Param-" + name.encode(), modern.encoded(text))
        for path, name in wanted
        if (text := _text(_value_at(arguments, path))) is not None
    )


def _schemas(root: Any) -> Iterator[tuple[tuple[str, ...] | None, dict[str, Any]]]:
    """Every schema in a schema, with the path of the argument that it is about if that is plain."""
    waiting: list[tuple[tuple[str, ...] | None, Any]] = [((), root)]
    while waiting:
        path, schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield path, schema
        for name, value in schema.items():
            if name == "properties" and isinstance(value, dict):
                waiting += ((None if path is None else (*path, own), each) for own, each in value.items())
            elif name in _ONE:
                waiting.append((None, value))
            elif name in _LIST and isinstance(value, list):
                waiting += ((None, each) for each in value)
            elif name in _NAMED and isinstance(value, dict):
                waiting += ((None, each) for each in value.values())


def _value_at(arguments: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        arguments = arguments.get(name) if isinstance(arguments, dict) else None
    return arguments


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return str(value) if isinstance(value, (str, int, float)) else None
    except ValueError:  # more digits than Python writes
        return None
