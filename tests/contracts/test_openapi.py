"""What is served is what is said: the routes, the OpenAPI document and the CapabilityStatement."""

import re
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from hub import wiring
from hub.facade.app import openapi_document
from hub.facade.capability import SERVED, capability_statement
from hub.facade.interactions import HANDLERS
from hub.facade.searching import SEARCHED
from hub.settings import HubSettings

DOCUMENT = Path(__file__).resolve().parents[2] / "schemas" / "openapi" / "facade.json"


@pytest.fixture(scope="module")
def app():
    return wiring.facade_app(HubSettings(), create_async_engine("sqlite+aiosqlite://"))


def test_the_document_is_the_programs(app):
    assert DOCUMENT.read_bytes() == openapi_document(app), "run: hub openapi > schemas/openapi/facade.json"


def test_each_interaction_has_a_route_and_a_function(app):
    assert set(HANDLERS) == {each.name for each in SERVED}
    document = app.openapi()["paths"]
    for each in SERVED:
        said = document[each.path][each.method.lower()]
        assert said["operationId"] == each.name
        named = {parameter["name"] for parameter in said["parameters"] if parameter["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", each.path))
        assert ("requestBody" in said) == each.body


def test_the_capability_statement_says_each_interaction_and_nothing_else():
    statement = capability_statement("https://hub.example/fhir", wiring.now())
    assert statement["fhirVersion"] == "4.0.1"
    [rest] = statement["rest"]
    said = {(r["type"], i["code"]) for r in rest["resource"] for i in r["interaction"]}
    assert said == {(each.resource, each.interaction) for each in SERVED if each.interaction}
    operations = {each["name"] for part in (rest, *rest["resource"]) for each in part.get("operation", ())}
    assert operations == {each.path.rpartition("$")[2] for each in SERVED if "$" in each.path}
    for resource in rest["resource"]:
        parameters = {each["name"] for each in resource.get("searchParam", ())}
        assert parameters == set(SEARCHED.get(resource["type"], ()))
