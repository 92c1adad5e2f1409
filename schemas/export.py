"""The events as documents for people and other languages: JSON Schemas, an AsyncAPI description, the topic table."""

import json
from typing import cast

from schemas.event import Event
from schemas.topics import CATALOGUE, Topic, dead_letter_topics

JsonObject = dict[str, object]

HEADERS: JsonObject = {
    "type": "object",
    "description": "CloudEvents 1.0 attributes, Kafka protocol binding, binary mode. All are optional.",
    "properties": {
        name: {"type": "string"}
        for name in ("ce_specversion", "ce_id", "ce_type", "ce_source", "ce_subject", "ce_time", "traceparent")
    },
}


def topics() -> tuple[Topic, ...]:
    """All topics, dead-letter topics included."""
    return (*CATALOGUE, *dead_letter_topics())


def events() -> dict[str, type[Event]]:
    """Every event by its type, in the order of the catalogue."""
    return {topic.event.TYPE: topic.event for topic in topics()}


def json_schema(event: type[Event]) -> JsonObject:
    """The JSON Schema (draft 2020-12) of what a producer may send."""
    schema = cast("JsonObject", event.model_json_schema(mode="validation"))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:headrace:schema:{event.TYPE}",
        **schema,
    }


def asyncapi() -> JsonObject:
    """The topics and their messages as an AsyncAPI 3.0.0 document."""
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
            f"{'receive' if topic.consumed else 'send'} {topic.name}": {
                "action": "receive" if topic.consumed else "send",
                "channel": {"$ref": f"#/channels/{topic.name}"},
            }
            for topic in topics()
        },
        "components": {
            "messages": {
                event.TYPE: {
                    "name": event.TYPE,
                    "title": event.__name__,
                    "headers": HEADERS,
                    "payload": {
                        "schemaFormat": "application/schema+json;version=draft-2020-12",
                        "schema": json_schema(event),
                    },
                }
                for event in events().values()
            }
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


def topic_table() -> str:
    """The catalogue as a Markdown table."""
    rows = ["| topic | key | event | cleanup | kept |", "|---|---|---|---|---|"]
    rows += [
        f"| `{topic.name}` | {topic.key} | `{topic.event.__name__}` | {topic.cleanup} "
        f"| {topic.retention_ms // 86_400_000} days |"
        for topic in topics()
    ]
    return "\n".join(rows) + "\n"
