"""A change that would break a producer or a consumer is found before it is published."""

import copy
import json
import re
from collections.abc import Callable

import pytest

from schemas.compatibility import Schema, breaking_changes
from schemas.export import asyncapi, events, files, json_schema, topic_table, topics
from schemas.topics import CATALOGUE

OLD: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "maxLength": 10},
        "state": {"enum": ["a", "b"], "type": "string"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
    },
    "required": ["id"],
    "$defs": {"Part": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 0}}}},
}


def edited(*path: str, value: object) -> Schema:
    """OLD with one place changed; None removes it."""
    schema = copy.deepcopy(OLD)
    place: dict[str, object] = schema
    for name in path[:-1]:
        found = place[name]
        assert isinstance(found, dict)
        place = found
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return schema


@pytest.mark.parametrize("event", events().values(), ids=lambda event: event.__name__)
def test_a_schema_is_compatible_with_itself(event: type) -> None:
    assert breaking_changes(json_schema(event), json_schema(event)) == []


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        edited("properties", "extra", value={"type": "string"}),
        edited("properties", "id", value={"type": "string", "maxLength": 20}),
        edited("properties", "id", value={"type": "string"}),
        edited("properties", "id", value={"type": "string", "maxLength": 10, "description": "said better"}),
        edited("$defs", "Part", "properties", "colour", value={"type": "string"}),
    ],
)
def test_a_wider_schema_is_compatible(new: Schema) -> None:
    assert breaking_changes(OLD, new) == []


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (edited("properties", "note", value=None), "message.note: the field is gone"),
        (edited("required", value=["id", "note"]), "message.note: the field is required now"),
        (edited("required", value=[]), "message.id: the field may be absent now"),
        (edited("properties", "id", value={"type": "integer"}), "message.id: type was string, is integer"),
        (edited("properties", "id", value={"type": "string", "maxLength": 5}), "maxLength was 10, is 5"),
        (edited("properties", "state", "enum", value=["a"]), "lost 'b'"),
        (edited("properties", "state", "enum", value=["a", "b", "c"]), "gained 'c'"),
        (edited("properties", "note", value={"anyOf": [{"type": "string"}]}), "2 alternatives, now 1"),
        (
            edited("$defs", "Part", "properties", "size", "minimum", value=1),
            "message.parts[].size: minimum was 0, is 1",
        ),
        (edited("oneOf", value=[{"required": ["id"]}]), "oneOf"),
        (edited("properties", "parts", "uniqueItems", value=True), "message.parts: uniqueItems was None, is True"),
        (edited("$defs", "Part", "properties", "size", "multipleOf", value=5), "message.parts[].size: multipleOf"),
        (edited("dependentRequired", value={"id": ["note"]}), "dependentRequired"),
        (edited("x-kafka-topic", value="elsewhere"), "x-kafka-topic was None, is elsewhere"),
    ],
)
def test_a_breaking_change_is_named_with_its_place(new: Schema, says: str) -> None:
    (line,) = breaking_changes(OLD, new)
    assert says in line


def test_a_recursive_schema_is_compared_to_its_end() -> None:
    tree: Schema = {
        "$ref": "#/$defs/Node",
        "$defs": {"Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}},
    }
    assert breaking_changes(tree, copy.deepcopy(tree)) == []


@pytest.mark.parametrize("export", [files, asyncapi, topic_table])
def test_the_same_code_exports_the_same(export: Callable[[], object]) -> None:
    assert export() == export()


def test_asyncapi_describes_every_topic_and_resolves_every_reference() -> None:
    document = asyncapi()
    channels = document["channels"]
    components = document["components"]
    assert isinstance(channels, dict)
    assert isinstance(components, dict)
    assert document["asyncapi"] == "3.0.0"
    for topic in CATALOGUE:
        channel = channels[topic.name]
        assert channel["address"] == topic.name
        for message in channel["messages"].values():
            assert message["$ref"].removeprefix("#/components/messages/") in components["messages"]


def test_asyncapi_references_resolve_from_the_root_as_its_tools_resolve_them() -> None:
    document = asyncapi()
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        place: object = document
        for part in reference.removeprefix("#/").split("/"):
            assert isinstance(place, dict)
            place = place[part]


def test_asyncapi_says_what_the_flows_send_and_receive() -> None:
    operations = asyncapi()["operations"]
    assert isinstance(operations, dict)
    of_topic = {
        topic.name: {each["action"] for name, each in operations.items() if name.split()[1] == topic.name}
        for topic in topics()
    }
    assert of_topic["requests.submitted"] == {"receive"}
    assert of_topic["documents.uploaded"] == {"receive", "send"}
    assert of_topic["documents.extracted"] == {"send", "receive"}
    assert of_topic["results.completed"] == {"send", "receive"}
    assert of_topic["documents.indexed"] == {"send"}
    assert of_topic["requests.submitted.dlq"] == {"send"}


def test_the_topic_table_lists_every_topic() -> None:
    table = topic_table()
    assert all(f"`{topic.name}`" in table for topic in CATALOGUE)
