"""The reference page: an OpenAPI document as plain HTML, which needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 0 auto; padding: 1rem }
summary { cursor: pointer; padding: .3rem 0 }
details { border-top: 1px solid #8884 }
details > div { padding: 0 0 1rem 1rem; overflow-x: auto }
code, pre { font: .875em ui-monospace, monospace }
pre { white-space: pre-wrap }
table { border-collapse: collapse }
td { border-top: 1px solid #8884; padding: .2rem .8rem .2rem 0; vertical-align: top }
.method { display: inline-block; min-width: 4rem; font-weight: bold }
"""

POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
)
"""The page's content security policy: its own style, and nothing else from anywhere."""


def page(document: Mapping[str, Any]) -> str:
    """The document's page. Every route is a fold; types are folds behind them, which the routes link to."""
    title = f"{document['info']['title']} {document['info']['version']}"
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>",
        f"<p>{escape(document['info']['description'])}</p>",
        '<p>As a document for programs: <a href="/openapi.json">/openapi.json</a></p><h2>Routes</h2>',
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _operation(path, method, operation)
    parts.append("<h2>Types</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts += _type(name, schema)
    return "".join([*parts, "</main></body></html>"])


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<details><summary><span class="method">{method.upper()}</span> '
    yield f"<code>{escape(path)}</code> {escape(operation['summary'])}</summary><div>"
    if "description" in operation:
        yield f"<p>{escape(operation['description'])}</p>"
    if parameters := operation.get("parameters"):
        rows = {f"{one['name']} (in the {one['in']})": _spelled(one["schema"]) for one in parameters}
        yield f"<h3>Parameters</h3>{_table(rows)}"
    if body := operation.get("requestBody"):
        yield f"<h3>Body</h3>{_contents(body['content'])}"
    if refused := operation.get("x-refused-fields"):
        yield f"<p>Refused, for they would change the result: {', '.join(f'<code>{escape(name)}</code>' for name in refused)}</p>"
    yield "<h3>Answers</h3>"
    yield _table({status: _answer(told) for status, told in operation["responses"].items()})
    yield "</div></details>"


def _answer(told: Mapping[str, Any]) -> str:
    if "$ref" in told:
        return "an error"
    return f"{escape(told['description'])} {_contents(told.get('content', {}))}"


def _contents(content: Mapping[str, Any]) -> str:
    each = (f"<code>{escape(kind)}</code>: {_spelled(one['schema'])}" for kind, one in content.items())
    return "<br>".join(each)


def _type(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f'<details><summary><code>{escape(schema.get("title", name))}</code></summary><div id="{escape(name)}">'
    if "description" in schema:
        yield f"<p>{escape(schema['description'])}</p>"
    yield _table({field: _spelled(one) for field, one in schema.get("properties", {}).items()})
    yield "</div></details>"


def _spelled(schema: Mapping[str, Any]) -> str:
    """A schema as one reads it."""
    match schema:
        case {"$ref": str(ref)}:
            name = ref.rpartition("/")[2]
            return f'<a href="#{escape(name)}"><code>{escape(name)}</code></a>'
        case {"contentSchema": inner, "description": about} | {
            "properties": {"data": {"anyOf": [{"contentSchema": inner}, _]}},
            "description": about,
        }:
            return f"{escape(about)} {_spelled(inner)}"
        case {"anyOf": several}:
            return " or ".join(_spelled(one) for one in several)
        case {"type": "array", "items": Mapping() as inner}:
            return f"a list of: {_spelled(inner)}"
        case {"enum": values}:
            return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    return f"<code>{escape(str(schema.get('type', 'anything')))}</code>"


def _table(rows: Mapping[str, str]) -> str:
    cells = (f"<tr><td><code>{escape(name)}</code></td><td>{told}</td></tr>" for name, told in rows.items())
    return f"<table>{''.join(cells)}</table>"
