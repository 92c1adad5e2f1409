"""Dead letters over HTTP: found, shown without their message unless it is asked for, and redriven once."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Message

from connectors.kafka.client import record_of
from schemas.dead_letter import REDRIVE_HEADER, DeadLetter, Header
from schemas.topics import dead_letter_topic
from tests.gateway.operated import ACME, ALL, UMBRA, Gateway, gateway_on
from tests.kafka.client import read

REQUESTS = "requests.submitted"
FAILED_AT = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_on(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


def buried(gateway: Gateway, tenant: str = "acme", *, fits_bytes: int = 1 << 30, **fields: Any) -> DeadLetter:
    """A dead letter, as lists show it."""
    letter = DeadLetter(
        **{
            "job_id": f"job-{uuid4()}",
            "tenant": tenant,
            "topic": REQUESTS,
            "partition": 1,
            "offset": uuid4().int >> 80,
            "message_key": b"key",
            "message_value": b"\xff\x00" + uuid4().bytes,
            "step": "answer.infer",
            "error_class": "retryable",
            "error_type": "Retryable",
            "message": "the model answered 500",
            "attempts": 5,
            "retryable": True,
            "failed_at": FAILED_AT,
        }
        | fields
    ).fitting(fits_bytes)
    gateway.publish(letter, topic=dead_letter_topic(REQUESTS))
    path = f"/dead-letters/{letter.event_id}"
    gateway.eventually("the letter to be known", lambda: gateway.ask("GET", path)[0] == 200)
    return letter


def redriven_messages(gateway: Gateway, letter: DeadLetter) -> list[Message]:
    """What flows read again."""
    return [each for each in read(gateway.bootstrap, REQUESTS) if each.value() == letter.message_value]


def test_a_redrive_puts_the_very_bytes_on_the_topic_and_is_listed(gateway: Gateway) -> None:
    headers = (Header(name="trace", value=b"\x00\xff"), Header(name=REDRIVE_HEADER, value=b"1"))
    letter = buried(gateway, message_key=b"\x00key", message_headers=headers)

    assert gateway.ask("POST", f"/dead-letters/{letter.event_id}/redrive", ACME) == (202, {"redriven": 1})

    (message,) = redriven_messages(gateway, letter)
    assert message.key() == b"\x00key"
    assert record_of(message).headers == (("trace", b"\x00\xff"), (REDRIVE_HEADER, b"2"))
    assert gateway.get("/dead-letters", job_id=letter.job_id) == {"dead_letters": [], "total": 0}
    (listed,) = gateway.get("/dead-letters", job_id=letter.job_id, redriven=True)["dead_letters"]
    assert listed["redriven_at"] is not None
    assert gateway.get(f"/dead-letters/{letter.event_id}")["redriven_at"] is not None


def test_a_letter_is_redriven_once(gateway: Gateway) -> None:
    letter = buried(gateway)
    path = f"/dead-letters/{letter.event_id}/redrive"

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda _: gateway.ask("POST", path)[0], range(4)))

    assert sorted(statuses) == [202, 409, 409, 409]
    assert gateway.ask("POST", path)[1]["type"] == "/problems/already-redriven"
    assert len(redriven_messages(gateway, letter)) == 1


def test_what_was_redriven_too_often_or_has_no_message_is_not(gateway: Gateway) -> None:
    capped = buried(gateway, message_headers=(Header(name=REDRIVE_HEADER, value=b"3"),))
    empty = buried(gateway, message_value=b"x" * 5000, fits_bytes=2000)

    asked = [gateway.ask("POST", f"/dead-letters/{each.event_id}/redrive") for each in (capped, empty)]

    assert [(status, problem["type"]) for status, problem in asked] == [
        (409, "/problems/redriven-too-often"),
        (409, "/problems/no-message"),
    ]
    assert redriven_messages(gateway, capped) == []


def test_poison_is_redriven_where_somebody_insists(gateway: Gateway) -> None:
    letter = buried(gateway, error_class="poison", retryable=False)
    assert gateway.ask("POST", f"/dead-letters/{letter.event_id}/redrive")[0] == 202
    assert len(redriven_messages(gateway, letter)) == 1


def test_another_tenants_letter_does_not_exist(gateway: Gateway) -> None:
    letter = buried(gateway, "acme")
    path = f"/dead-letters/{letter.event_id}"

    asked = [
        gateway.ask("GET", path, UMBRA),
        gateway.ask("GET", path, UMBRA, message=True),
        gateway.ask("POST", f"{path}/redrive", UMBRA),
        gateway.ask("POST", "/dead-letters/no-such-letter/redrive", ALL),
    ]

    assert {(status, problem["type"]) for status, problem in asked} == {(404, "/problems/unknown-dead-letter")}
    assert redriven_messages(gateway, letter) == []
    assert gateway.get("/dead-letters", UMBRA) == {"dead_letters": [], "total": 0}
    assert gateway.ask("GET", "/dead-letters", UMBRA, tenant="acme")[0] == 403


def test_a_letter_shows_everything_but_its_message_unless_that_is_asked_for(gateway: Gateway) -> None:
    value = json.dumps({"prompt": "the secret plan", "filler": "é" * 4000}).encode()
    letter = buried(
        gateway,
        message_value=value,
        message_headers=(Header(name="ce_id", value=b"7"), Header(name="b", value=b"\xff")),
    )

    shown = gateway.get(f"/dead-letters/{letter.event_id}", ACME)

    assert "secret" not in json.dumps(shown)
    assert (shown["id"], shown["job_id"], shown["step"]) == (letter.event_id, letter.job_id, "answer.infer")
    assert (shown["topic"], shown["partition"], shown["offset"]) == (REQUESTS, 1, letter.offset)
    assert (shown["message_key"], shown["redriven_at"]) == ("key", None)
    assert shown["message_headers"] == [{"name": "ce_id", "value": "7"}, {"name": "b", "value": "�"}]

    whole = gateway.get(f"/dead-letters/{letter.event_id}", ACME, message=True)
    assert (whole["message_bytes"], whole["message_preview"]) == (len(value), value.decode()[:2000])


def test_a_message_that_was_left_out_has_no_preview(gateway: Gateway) -> None:
    letter = buried(gateway, message_value=b"x" * 5000, fits_bytes=2000)
    shown = gateway.get(f"/dead-letters/{letter.event_id}", message=True)
    assert (shown["message_preview"], shown["message_bytes"], shown["left_out_bytes"]) == (None, None, 5000)


def test_a_list_shows_the_newest_and_counts_all_that_match(gateway: Gateway) -> None:
    early, late, poison = (
        buried(gateway, "lister", failed_at=FAILED_AT),
        buried(gateway, "lister", failed_at=FAILED_AT + timedelta(minutes=1)),
        buried(gateway, "lister", failed_at=FAILED_AT + timedelta(minutes=2), error_class="poison", step="ingest.cut"),
    )

    def listed(**query: Any) -> tuple[list[str], int]:
        found = gateway.get("/dead-letters", tenant="lister", **query)
        return [each["id"] for each in found["dead_letters"]], found["total"]

    assert listed(limit=2) == ([poison.event_id, late.event_id], 3)
    assert listed(error_class="poison") == ([poison.event_id], 1)
    assert listed(step="answer") == ([late.event_id, early.event_id], 2)
    assert listed(step="answer.inf") == ([], 0)
    assert listed(job_id=early.job_id) == ([early.event_id], 1)
    assert gateway.ask("GET", "/dead-letters", error_class="odd")[0] == 422
