"""The documents that programs read: whole, valid, and true of what is served and sent."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from cloud_dispatcher.adapters.http.documents import OPERATIONS, openapi
from cloud_dispatcher.adapters.http.gateway import build_gateway
from fleet_protocol import asyncapi
from fleet_protocol import messages as m
from fleet_protocol.topics import CATALOGUE, Role
from tests.unit import gateway_house
from tests.unit.gateway_house import gateway
from tests.unit.service_house import House, Worker
from tests.unit.visitor import Visitor

SCHEMA = Path(__file__).parents[1] / "data" / "asyncapi" / "3.0.0.json.gz"


def refs_of(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(refs_of(each) for each in node.values()))
    return set().union(*(refs_of(each) for each in node)) if isinstance(node, list) else set()


def found(document: Any, ref: str) -> Any:
    for level in ref.removeprefix("#/").split("/"):
        document = document[level]
    return document


@pytest.mark.parametrize("document", [openapi(), asyncapi.document()], ids=["http", "mqtt"])
def test_everything_that_is_referred_to_is_there(document: dict[str, Any]) -> None:
    refs = refs_of(document)
    assert len(refs) > 10
    for ref in refs:
        assert found(document, ref)


def test_the_document_of_the_topics_is_what_asyncapi_says_it_must_be() -> None:
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    validator = jsonschema_rs.validator_for(schema)
    document = asyncapi.document("site/7")
    assert [str(error) for error in validator.iter_errors(document)] == []
    del document["info"]["title"]
    assert not validator.is_valid(document)


def test_every_channel_stands_there_with_its_ends() -> None:
    document = asyncapi.document("site/7")
    assert set(document["channels"]) == {channel.name for channel in CATALOGUE}
    for channel in CATALOGUE:
        told = document["channels"][channel.name]
        assert told["address"] == f"site/7/{channel.template}"
        assert channel.message.__name__ in told["messages"]
        ours = [name for name in document["operations"] if name.endswith(f"-{channel.name}")]
        is_ours = Role.DISPATCHER in (channel.sender, *channel.receivers)
        assert (
            any(
                document["operations"][name]["channel"]["$ref"] == f"#/channels/{channel.name}"
                for name in ours
            )
            is is_ours
        )


def test_a_message_is_valid_by_its_schema_exactly_where_it_can_be_read() -> None:
    document = asyncapi.document()
    schema = {"$ref": "#/components/schemas/JobSubmit", "components": document["components"]}
    validator = jsonschema_rs.validator_for(schema)
    good = {"prompt": "Is the hall warm?", "unknown": 1}
    for told, is_right in (
        (good, True),
        ({**good, "max_tokens": 0}, False),
        ({**good, "priority": 10}, False),
        ({**good, "escalate": "perhaps"}, False),
        ({"prompt": ""}, False),
    ):
        assert validator.is_valid(told) is is_right
        try:
            msgspec.convert(told, m.JobSubmit)
        except msgspec.ValidationError:
            assert not is_right
        else:
            assert is_right


async def test_every_path_of_the_gateway_stands_in_its_document(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Starlette] = []

    def build(*words: Any) -> Starlette:
        made.append(build_gateway(*words))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(gateway_house, "build_gateway", build)
    async with gateway(house) as url:
        visitor = Visitor(url)
        told = json.loads((await visitor.get("/openapi.json")).body)
        topics = json.loads((await visitor.get("/asyncapi.json")).body)
    assert (topics["asyncapi"], topics) == ("3.0.0", json.loads(json.dumps(asyncapi.document())))
    assert (told["openapi"], told) == ("3.1.0", json.loads(json.dumps(openapi())))
    written = {(method.upper(), path) for path, item in told["paths"].items() for method in item}
    served = {
        (method, route.path.replace("{name:path}", "{name}"))
        for route in made[0].routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert written == served == set(OPERATIONS)


async def test_what_is_answered_is_valid_by_the_document(house: House, worker: Worker) -> None:
    schemas = openapi()["components"]
    async with gateway(house) as url:
        visitor = Visitor(url)
        posted = await visitor.post("/jobs", {"id": "q1", "prompt": "Is the hall warm?"})
        worker.done(await worker.assignment(), "It is.")
        await house.until(lambda: all(job.result for job in house.store._jobs.values()))
        answers = {
            "JobView": [posted, await visitor.get("/jobs/q1")],
            "JobPage": [await visitor.get("/jobs")],
            "ModelPage": [await visitor.get("/v1/models")],
            "ErrorBody": [await visitor.get("/jobs/none"), await visitor.get("/nothing")],
        }
    for name, told in answers.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": schemas}
        for answer in told:
            jsonschema_rs.validate(schema, json.loads(answer.body))
