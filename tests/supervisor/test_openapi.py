"""The OpenAPI document says what the server does: every route, parameter, body and error."""

import re
from typing import Any

from supervisor.problems import Code, status_of
from tests.supervisor.rig import Rig


async def document(rig: Rig) -> Any:
    return (await rig.call("GET", "/openapi/supervisor.json", ld_api_key="")).ok()


def operations(openapi: Any) -> dict[tuple[str, str], Any]:
    return {
        (method.upper(), path): operation
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    }


def walk(node: Any) -> Any:
    yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


async def test_it_has_exactly_the_routes_that_the_server_has(rig: Rig) -> None:
    application = rig.supervisor.application()
    served = {
        (route.method, route.resource.canonical)
        for route in application.router.routes()
        if route.resource and route.method != "*"  # which only says that there is no such method
    }
    assert set(operations(await document(rig))) == served


async def test_every_reference_leads_somewhere(rig: Rig) -> None:
    openapi = await document(rig)
    references = {node["$ref"] for node in walk(openapi) if isinstance(node, dict) and "$ref" in node}
    assert references
    for reference in references:
        target = openapi
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


async def test_every_path_parameter_is_declared_and_every_operation_has_a_name_of_its_own(rig: Rig) -> None:
    all_operations = operations(await document(rig))
    for (_, path), operation in all_operations.items():
        parameters = operation.get("parameters", [])
        declared = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path))
        assert all(parameter["required"] for parameter in parameters if parameter["in"] == "path")
        assert len({(parameter["in"], parameter["name"]) for parameter in parameters}) == len(parameters)
    names = [operation["operationId"] for operation in all_operations.values()]
    assert len(set(names)) == len(names)


async def test_it_is_a_3_1_document_with_what_one_needs(rig: Rig) -> None:
    openapi = await document(rig)
    assert openapi["openapi"] == "3.1.0"
    assert {"title", "version", "license"} <= set(openapi["info"])
    for operation in operations(openapi).values():
        assert {"summary", "tags", "responses", "security", "operationId"} <= set(operation)
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[2-5]\d\d", status)
            assert response["description"]
            assert "ld-request" in response["headers"]
            expected = "application/json" if status < "300" else "application/problem+json"
            assert list(response["content"]) == [expected]


async def test_every_code_is_documented_under_its_status(rig: Rig) -> None:
    openapi = await document(rig)
    said = {
        (int(status), code)
        for operation in operations(openapi).values()
        for status, response in operation["responses"].items()
        for code in re.findall(r"`(\w+)`", response["description"])
    }
    of_no_operation = {Code.NOT_FOUND, Code.METHOD_NOT_ALLOWED, Code.BAD_REQUEST}
    assert said == {(int(status_of(code)), code.value) for code in Code if code not in of_no_operation}


async def test_what_is_answered_has_the_fields_that_the_document_says(rig: Rig) -> None:
    openapi = await document(rig)
    schemas = openapi["components"]["schemas"]
    await rig.agent()
    await rig.dispatch()
    for path, model in (("activities", "ActivityPage"), ("nodes", "NodePage"), ("configs/iggy", "ConfigPage")):
        page = (await rig.call("GET", path)).ok()
        assert set(page) == set(schemas[model]["properties"]) == set(schemas[model]["required"])
        item = schemas[schemas[model]["properties"]["items"]["items"]["$ref"].rpartition("/")[2]]
        for answered in page["items"]:
            assert set(item["required"]) <= set(answered) <= set(item["properties"])
            assert item["additionalProperties"] is False
    problem = (await rig.call("GET", "activities/5")).body
    assert set(schemas["ProblemAnswer"]["required"]) <= set(problem) <= set(schemas["ProblemAnswer"]["properties"])


async def test_every_link_leads_to_an_operation_by_its_parameters(rig: Rig) -> None:
    all_operations = operations(await document(rig)).values()
    known = {operation["operationId"]: operation for operation in all_operations}
    answers = [answer for operation in all_operations for answer in operation["responses"].values()]
    links = [link for answer in answers for link in answer.get("links", {}).values()]
    assert len(links) == 5
    for link in links:
        parameters = known[link["operationId"]]["parameters"]
        assert set(link["parameters"]) <= {parameter["name"] for parameter in parameters}
        assert {parameter["name"] for parameter in parameters if parameter["required"]} == set(link["parameters"])
