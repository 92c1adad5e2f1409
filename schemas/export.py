"""The events as documents for people and other languages: JSON Schemas, an AsyncAPI description, the topic table."""

import json
from typing import cast

from pydantic.json_schema import models_json_schema

from schemas.dead_letter import DeadLetter
from schemas.event import Event
from schemas.topics import CATALOGUE, DAY_MS, FOREVER, Topic, dead_letter_topic, dead_letter_topics

JsonObject = dict[str, object]

HEADERS: JsonObject = {
    "type": "object",
    "description": "CloudEvents 1.0 attributes, Kafka protocol binding, binary mode. All are optional.",
    "properties": {
        name: {"type": "string"}
        for name in (
            "ce_specversion",
            "ce_id",
            "ce_type",
            "ce_source",
            "ce_subject",
            "ce_time",
            "traceparent",
            "tracestate",
        )
    },
}


def topics() -> tuple[Topic, ...]:
    """All topics, dead-letter topics included."""
    return (*CATALOGUE, *dead_letter_topics())


def events() -> dict[str, type[Event]]:
    """Every event by its type, in the order of the catalogue."""
    return {topic.event.TYPE: topic.event for topic in topics()}


def json_schema(event: type[Event]) -> JsonObject:
    """The JSON Schema (draft 2020-12) of what a producer may send, and where to."""
    topic = next(topic for topic in topics() if topic.event is event)
    schema = cast("JsonObject", event.model_json_schema(mode="validation"))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:headrace:schema:{event.TYPE}",
        "x-kafka-topic": dead_letter_topic("<topic>") if event is DeadLetter else topic.name,
        "x-kafka-key": topic.key,
        **schema,
    }


def asyncapi() -> JsonObject:
    """The topics and their messages as an AsyncAPI 3.0.0 document.

    Payloads are references into `components`: AsyncAPI tools resolve `#/` from the document's root.
    """
    _, definitions = models_json_schema(
        [(event, "validation") for event in events().values()], ref_template="#/components/schemas/{model}"
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Headrace",
            "version": "1",
            "description": "Documents and requests in; vectors, results and dead letters out.",
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in topics()},
        "operations": {
            f"{action} {topic.name}": {"action": action, "channel": {"$ref": f"#/channels/{topic.name}"}}
            for topic in topics()
            for action, ours in (("receive", topic.consumed), ("send", topic.produced))
            if ours
        },
        "components": {
            "messages": {
                event.TYPE: {
                    "name": event.TYPE,
                    "title": event.__name__,
                    "headers": HEADERS,
                    "payload": {"$ref": f"#/components/schemas/{event.__name__}"},
                    "bindings": {"kafka": {"key": {"type": "string"}}},
                }
                for event in events().values()
            },
            "schemas": definitions["$defs"],
        },
    }


def _channel(topic: Topic) -> JsonObject:
    return {
        "address": topic.name,
        "description": f"Key: {topic.key}.",
        "messages": {topic.event.__name__: {"$ref": f"#/components/messages/{topic.event.TYPE}"}},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "topicConfiguration": {
                    "cleanup.policy": topic.cleanup.split(","),
                    "retention.ms": topic.retention_ms,
                },
            }
        },
    }


def files() -> dict[str, str]:
    """Every document by file name; the same code gives the same bytes."""
    documents: dict[str, JsonObject] = {f"{name}.json": json_schema(event) for name, event in events().items()}
    documents["asyncapi.json"] = asyncapi()
    return {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in documents.items()}


def _kept(topic: Topic) -> str:
    return "for good" if topic.retention_ms == FOREVER else f"{topic.retention_ms // DAY_MS} days"


def topic_table() -> str:
    """The catalogue as a Markdown table."""
    rows = ["| topic | key | event | cleanup | kept |", "|---|---|---|---|---|"]
    rows += [
        f"| `{topic.name}` | {topic.key} | `{topic.event.__name__}` | {topic.cleanup} | {_kept(topic)} |"
        for topic in topics()
    ]
    return "\n".join(rows) + "\n"
