"""What Ollama's clients ask about models: /api/tags, /api/ps, /api/show, /api/version; and what is not served, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sapwood import __version__
from sapwood.base.errors import RequestError
from sapwood.hub.about import About
from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.ollama.errors import OllamaError
from sapwood.server.ollama.protocol import ShowBody, check_model
from sapwood.server.routes import Described, plain, post

SPOKEN = "0.12.11"
"""The version of Ollama whose API this is; clients ask for it before they use a field."""

_FOR_EVER = "9999-12-31T23:59:59Z"
_UNITS = (("B", 1e9), ("M", 1e6), ("K", 1e3))
_MANAGED = "The model was chosen when this server was started, and is not changed over HTTP: use `sapwood pull` and `sapwood serve`."


class Details(msgspec.Struct):
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    parent_model: str = ""


class Tag(msgspec.Struct):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Running(msgspec.Struct):
    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class Tags(msgspec.Struct):
    models: list[Tag]


class RunningModels(msgspec.Struct):
    models: list[Running]


class Shown(msgspec.Struct):
    """`parameters` are lines of a name and a value: what serves requests that bring none."""

    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    license: str = ""


class SpokenVersion(msgspec.Struct):
    """`version` is that of Ollama whose API this is, `sapwood` this program's."""

    version: str
    sapwood: str


def tags(there: Sequence[tuple[Sequence[str], Front | None]]) -> Tags:
    """Models by their names, each under all of them; of one that is not loaded nothing more is known."""
    return Tags([_tag(About() if front is None else front.about, name) for names, front in there for name in names])


def running(there: Sequence[tuple[str, Front, str | None]]) -> RunningModels:
    """Models that are loaded, by a name each, and when they go, which may be never."""
    found = []
    for name, front, expires in there:
        tag, most, on_cpu = _tag(front.about, name), front.facts.max_model_len, front.facts.device.startswith("cpu")
        size = 0 if on_cpu else front.about.num_bytes
        last = expires or _FOR_EVER
        found.append(Running(tag.name, tag.model, tag.size, tag.digest, tag.details, last, size, most))
    return RunningModels(found)


def routes(front: Front) -> list[Described]:
    about = front.about

    async def tags_(request: Request) -> Response:
        """The models that are there: the one that is served, under each of its names."""
        return json_response(tags([(front.model_names, front)]))

    async def ps(request: Request) -> Response:
        """The models that are loaded: the one that is served."""
        return json_response(running([(name, front, None) for name in front.model_names]))

    async def show(request: Request, body: ShowBody) -> Response:
        """What is known of a model: its template, its sizes, and what it can do."""
        check_model(front, body.model or body.name)
        return json_response(_shown(front, about))

    async def version(request: Request) -> Response:
        """The version of Ollama's API that is spoken here."""
        return json_response(SpokenVersion(SPOKEN, __version__))

    return [
        plain("/api/tags", tags_, gives=Tags),
        plain("/api/ps", ps, gives=RunningModels),
        post(front, "/api/show", ShowBody, show, gives=Shown),
        plain("/api/version", version, gives=SpokenVersion),
        *(_refusing(name, _MANAGED) for name in ("pull", "push", "create", "copy")),
        _refusing("delete", _MANAGED, method="DELETE"),
    ]


def _refusing(name: str, why: str, *, method: str = "POST") -> Described:
    async def refused(request: Request) -> Response:
        raise RequestError(why, status=501)

    refused.__doc__ = f"Not served. {why}"
    return plain(f"/api/{name}", refused, methods=[method], otherwise={501: OllamaError})


def _tag(about: About, name: str) -> Tag:
    name = name if ":" in name else f"{name}:latest"
    return Tag(name, name, _stamp(about), about.num_bytes, about.digest, _details(about))


def _details(about: About) -> Details:
    return Details(about.container, about.architecture, [about.architecture], _size(about.num_parameters), about.stored)


def _shown(front: Front, about: About) -> Shown:
    dialect = front.text.dialect
    writes = "generate" in front.facts.tasks
    can = {
        "completion": writes,
        "tools": writes and dialect.tools is not None,
        "thinking": writes and dialect.reasoning is not None,
    }
    can |= {"embedding": not writes}
    names = {"repetition_penalty": "repeat_penalty"}
    facts = {"context_length": front.facts.max_model_len, "vocab_size": front.facts.vocab_size, **about.sizes}
    general = {"general.architecture": about.architecture, "general.parameter_count": about.num_parameters}
    return Shown(
        modelfile=f"FROM {front.config.model.model}\n",
        parameters="\n".join(f"{names.get(name, name):<30} {value}" for name, value in front.defaults.items()),
        template=front.text.template_source,
        details=_details(about),
        model_info=general | {f"{about.architecture}.{name}": value for name, value in facts.items()},
        capabilities=[name for name, able in can.items() if able],
        modified_at=_stamp(about),
    )


def _stamp(about: About) -> str:
    return datetime.fromtimestamp(about.modified, UTC).isoformat().replace("+00:00", "Z")


def _size(num_parameters: int) -> str:
    """A number of parameters as names of models have it: 135M, 1.7B."""
    for unit, size in _UNITS:
        if num_parameters >= size:
            number = num_parameters / size
            return f"{number:.0f}{unit}" if number >= 10 else f"{number:.1f}{unit}"
    return str(num_parameters)
