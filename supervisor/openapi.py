"""The OpenAPI 3.1 document, made from the route tables and the models that the server itself uses."""

from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from supervisor.problems import Code, status_of
from supervisor.routes import Parameter, Route
from supervisor.schema import ProblemAnswer

VERSION = version("iggy-node-agent")
PATH = "/openapi/supervisor.json"
ALWAYS = (Code.EXPECTATION_FAILED, Code.INTERNAL_ERROR, Code.STORE_UNAVAILABLE, Code.OVERLOADED)
"""What can go wrong with every call."""
HEADERS = {
    "ld-request": {"description": "The id of this request.", "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}},
    "ld-node": {"description": "The id of the node.", "schema": {"type": "string"}},
    "ld-config": {"description": "The id of the config.", "schema": {"type": "string"}},
    "idempotent-replayed": {
        "description": "`true` when this is the answer of an earlier request with the same idempotency key.",
        "schema": {"type": "string", "const": "true"},
    },
}


def openapi(routes: Sequence[Route]) -> dict[str, Any]:
    """Make the document of these routes."""
    schemas, references = _schemas(routes)
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for route in routes:
        paths[route.path][route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Iggy Supervisor",
            "version": VERSION,
            "description": "The public Activities API of a reference Supervisor, and the agent protocol, version 1.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": dict(paths),
        "components": {
            "schemas": schemas,
            "headers": HEADERS,
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "ld-api-key"},
                "nodeToken": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _schemas(routes: Sequence[Route]) -> tuple[dict[str, Any], dict[type[BaseModel], dict[str, Any]]]:
    models: dict[tuple[type[BaseModel], str], None] = {(ProblemAnswer, "serialization"): None}
    for route in routes:
        if route.body is not None:
            models[route.body, "validation"] = None
        if route.answer is not None:
            models[route.answer, "serialization"] = None
    by_model, definitions = models_json_schema(
        list(models),  # type: ignore[arg-type]  # the mode is one of pydantic's two words, as text
        ref_template="#/components/schemas/{model}",
    )
    references = {model: schema for (model, _), schema in by_model.items() if issubclass(model, BaseModel)}
    return definitions["$defs"], references


def _operation(route: Route, references: dict[type[BaseModel], dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "responses": _responses(route, references),
        "security": _security(route),
    }
    if route.permission is not None:
        operation["description"] = f"Needs the permission `{route.permission}`."
    if route.parameters:
        operation["parameters"] = [_parameter(parameter) for parameter in route.parameters]
    if route.body is not None:
        operation["requestBody"] = {
            "required": route.body_required,
            "content": {"application/json": {"schema": references[route.body]}},
        }
    return operation


def _security(route: Route) -> list[dict[str, list[str]]]:
    if route.permission is not None:
        return [{"apiKey": []}]
    return [{"nodeToken": []}] if Code.NODE_TOKEN_INVALID in route.codes else []


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "description": parameter.description,
        "schema": parameter.schema,
    }


def _responses(route: Route, references: dict[type[BaseModel], dict[str, Any]]) -> dict[str, Any]:
    names = ["ld-request", *route.answer_headers]
    if any(parameter.name == "idempotency-key" for parameter in route.parameters):
        names.append("idempotent-replayed")
    schema = {"type": "object"} if route.answer is None else references[route.answer]
    responses: dict[str, Any] = {
        str(route.status): {
            "description": "Done.",
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
            "content": {"application/json": {"schema": schema}},
        }
    }
    if route.links:
        responses[str(route.status)]["links"] = {
            name: {"operationId": link.operation, "parameters": dict(link.parameters)}
            for name, link in route.links.items()
        }
    by_status: dict[int, list[Code]] = defaultdict(list)
    for code in (*route.codes, *ALWAYS):
        by_status[status_of(code)].append(code)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = {
            "description": "One of the codes " + ", ".join(f"`{code}`" for code in codes) + ".",
            "headers": {"ld-request": {"$ref": "#/components/headers/ld-request"}},
            "content": {"application/problem+json": {"schema": references[ProblemAnswer]}},
        }
    return responses
