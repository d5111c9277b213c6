"""The HTTP API as a page of text, from its own description."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INTRO = """\
# The HTTP API

Every route with its parameters, bodies and answers. The service shows the same at `/docs`, and
[openapi.json](openapi.json) is the description that both are made from, here by `make site`.
All routes are also there below `/v1`. Errors are problem documents;
[troubleshooting](troubleshooting.md) has every code.
"""
Fields = dict[str, Any]


def api_page(description: Path) -> str:
    """All routes by tag, then the objects that they take and answer."""
    api = json.loads(description.read_text(encoding="utf-8"))
    parts = [INTRO]
    for tag, routes in _by_tag(api["paths"]).items():
        parts.append(f"## {tag}\n")
        parts.extend(_route(path, verb, operation) for path, verb, operation in routes)
    parts.append("## Objects\n")
    parts.extend(
        _object(name, fields) for name, fields in sorted(api["components"]["schemas"].items())
    )
    return "\n".join(parts)


def _by_tag(paths: Fields) -> dict[str, list[tuple[str, str, Fields]]]:
    found: dict[str, list[tuple[str, str, Fields]]] = {}
    for path, verbs in paths.items():
        for verb, operation in verbs.items():
            found.setdefault(operation.get("tags", ["other"])[0], []).append(
                (path, verb, operation)
            )
    return found


def _route(path: str, verb: str, operation: Fields) -> str:
    lines = [f"### {verb.upper()} {path}\n"]
    lines += [f"{_text(operation.get('description') or operation['summary'])}\n"]
    needs = (scopes for need in operation.get("security", []) for scopes in need.values())
    scopes = [scope for each in needs for scope in each]
    lines += [f"Scope: `{'`, `'.join(scopes)}`.\n"] if scopes else []
    if operation.get("parameters"):
        rows = [
            _row(p["name"], p["schema"], p.get("description", ""), p["in"])
            for p in operation["parameters"]
        ]
        lines += ["| parameter | in | type | |\n| --- | --- | --- | --- |", *rows, ""]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        lines += [f"Body: `{media}`, {_kind(content.get('schema', {}))}.\n"]
    lines += ["| status | answer |\n| --- | --- |"]
    for status, answer in sorted(operation["responses"].items()):
        kinds = [
            _kind(content.get("schema", {})) for content in answer.get("content", {}).values()
        ]
        told = ", ".join(dict.fromkeys(kind for kind in kinds if kind != "any"))
        body = f": {told}" if told and status.startswith("2") else ""
        lines.append(f"| {status} | {_text(answer['description']).removesuffix('.')}{body}. |")
    return "\n".join(lines) + "\n"


def _object(name: str, fields: Fields) -> str:
    lines = [f"### {name}\n"]
    if fields.get("description"):
        lines += [f"{_text(fields['description'])}\n"]
    required = set(fields.get("required", []))
    rows = [
        _row(key, field, field.get("description", ""), "required" if key in required else "")
        for key, field in fields.get("properties", {}).items()
    ]
    if rows:
        lines += ["| field | | type | |\n| --- | --- | --- | --- |", *rows]
    else:
        lines += [f"{_kind(fields)}"]
    return "\n".join(lines) + "\n"


def _row(name: str, schema: Fields, about: str, place: str) -> str:
    default = schema.get("default")
    told = (
        f" Default: `{json.dumps(default, ensure_ascii=False)}`."
        if default not in (None, [], {})
        else ""
    )
    return f"| `{name}` | {place} | {_kind(schema)} | {_text(about)}{told} |"


def _kind(schema: Fields) -> str:
    """A schema in a few words, with links to the objects it names."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            kinds = dict.fromkeys(_kind(each) for each in schema[several])
            return " or ".join(kinds)
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    return str(schema.get("type", "any")) + "".join(_limits(schema))


def _limits(schema: Fields) -> Iterator[str]:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    yield from (f", {sign} {schema[name]}" for name, sign in words.items() if name in schema)


def _text(words: str) -> str:
    """A description on one line, with nothing that a table would take for its own."""
    return " ".join(words.split()).replace("|", "\\|").replace("<", "&lt;")
