"""The events are the contract: what is written can be read, and what is wrong is refused."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.decode import parse
from schemas.budgets import BudgetChanged, WindowLimit
from schemas.callbacks import CallbackDeferred
from schemas.cancellations import CancelRequested
from schemas.dead_letter import DeadLetter, DeadLetterRedriven, Header
from schemas.deltas import TextDelta
from schemas.documents import DocumentEmbedded, DocumentExtracted, DocumentIndexed, DocumentUploaded, EmbeddedChunk
from schemas.errors import Poison
from schemas.event import Event, JobEvent, derive_id
from schemas.export import events, json_schema
from schemas.jobs import JobState, StatusChanged
from schemas.notifications import Bucket, BucketNotified, ObjectNotified, Place, StoredObject
from schemas.requests import ChatMessage, RequestSubmitted, Tool, ToolCall
from schemas.results import Citation, ResultCompleted, Timings, TokenCount
from schemas.reviews import Ancestor, ReviewDecided, ReviewRequested
from schemas.tools import ToolCompleted, ToolRequested
from schemas.topics import CATALOGUE, dead_letter_topic, dead_letter_topics, topic_of
from schemas.trace import Trace
from schemas.usage import TokensUsed, UsageWindowed
from tests.memory_topics import record

EXAMPLES: list[Event] = [
    BucketNotified(
        job_id="j",
        Records=(
            ObjectNotified(
                event_name="ObjectCreated:Put",
                event_time=datetime(2026, 1, 1, tzinfo=UTC),
                s3=Place(
                    bucket=Bucket(name="docs"), object=StoredObject(key="a+b.pdf", size=1, etag="e", sequencer="5")
                ),
            ),
            {"eventName": "nonsense"},
        ),
    ),
    BucketNotified(job_id="j", Event="s3:TestEvent"),
    DocumentUploaded(job_id="j", document_id="d", uri="s3://bucket/über.pdf", sha256="0" * 64),
    DocumentUploaded(job_id="j", document_id="d", op="delete"),
    DocumentExtracted(
        job_id="j",
        document_id="d",
        text="text",
        title="T",
        attached=(DocumentUploaded(job_id="k", document_id="e", parent_id="d", uri="s3://bucket/note.txt", depth=1),),
    ),
    DocumentEmbedded(
        job_id="j",
        document_id="d",
        model="m",
        dimensions=2,
        attached=(DocumentUploaded(job_id="k", document_id="e", parent_id="d", uri="s3://bucket/note.txt", depth=1),),
        chunks=(EmbeddedChunk(chunk_id="c", ordinal=0, text="text", vector=b"\xfb\xff\x00\x01\x02\x03\x04\x05"),),
    ),
    DocumentIndexed(job_id="j", document_id="d", chunks=1, model="m"),
    RequestSubmitted(job_id="j", messages=(ChatMessage(role="user", content="why?"),)),
    ResultCompleted(
        job_id="j",
        kind="answer",
        text="because [1]",
        finish_reason="stop",
        citations=(Citation(number=1, document_id="d", chunk_id="c", text="text", score=0.5),),
        usage=TokenCount(prompt_tokens=1, completion_tokens=2),
        model="m",
        timings=Timings(queued_s=0, retrieve_s=0.1, infer_s=1),
    ),
    StatusChanged(job_id="j", state=JobState.RETRYING, step="answer.infer", attempt=2, detail="503"),
    DeadLetter(
        job_id="j",
        topic="t",
        partition=0,
        offset=7,
        message_key=b"\xff",
        message_value=b"\x00{",
        message_headers=(Header(name="h", value=b"\xfe"),),
        step="ingest.extract",
        error_class="poison",
        error_type="Poison",
        message="no",
        attempts=1,
        retryable=False,
    ),
    DeadLetterRedriven(job_id="j", dead_letter_id="d", topic="t", redrives=1),
    TokensUsed(job_id="j", admission_id="j/0/0", root_job_id="j", model="m", prompt_tokens=1, completion_tokens=2),
    UsageWindowed(
        tenant="t",
        model="m",
        window_start=datetime(2026, 1, 1, tzinfo=UTC),
        window_s=60,
        calls=1,
        prompt_tokens=1,
        completion_tokens=2,
        version=1,
        closed=False,
    ),
    BudgetChanged(
        job_id="j",
        tenant="t",
        windows=(
            WindowLimit(seconds=60, tokens=1000),
            WindowLimit(kind="sliding", seconds=86400, money=Decimal("2.5")),
        ),
        policy="defer",
    ),
    BudgetChanged(job_id="j", tenant="t"),
    ReviewRequested(
        job_id="j",
        review_id="r",
        root_job_id="root",
        limit="depth",
        value=9,
        allowed=8,
        reason="too deep",
        depth=9,
        ancestors=(Ancestor(job_id="root", depth=0),),
        prompt_chars=10,
        origin="requests.submitted/0/1",
    ),
    ReviewDecided(job_id="j", review_id="r", root_job_id="root", decision="approve", allowed=9, note="fine"),
    ToolRequested(
        job_id="j",
        call_id="c",
        tool="search",
        arguments='{"query": "x"}',
        depth=1,
        model="m",
        usage=TokenCount(prompt_tokens=1, completion_tokens=2),
        request=RequestSubmitted(
            job_id="j",
            messages=(
                ChatMessage(role="user", content="why?"),
                ChatMessage(
                    role="assistant", content="", tool_call=ToolCall(call_id="c", tool="search", arguments="{}")
                ),
                ChatMessage(role="tool", content="because", tool_call_id="c"),
            ),
            tools=(Tool(name="search", description="Finds passages."),),
        ),
        answer_until=datetime(2026, 1, 1, tzinfo=UTC),
    ),
    ToolCompleted(job_id="j", call_id="c", tool="search", content="found"),
    TextDelta(job_id="j", call_id="c", number=0, text="It ro"),
    CancelRequested(job_id="j", reason="asked twice"),
    CallbackDeferred(
        job_id="j",
        callback_id="c",
        url="https://example.org/hook",
        ending="job.completed",
        data={"job_id": "j", "text": "It rotates."},
        ended_at=datetime(2026, 1, 1, tzinfo=UTC),
        attempts=1,
        not_before=datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC),
        failure="503",
    ),
]


PRIVATE = "the board resigns"
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from([PRIVATE, "delete", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00", "QUJD", "0" * 64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([PRIVATE, "role", "text"]), inner),
    max_leaves=5,
)


def places(payload: object) -> Iterator[tuple[Any, Any]]:
    """Every container inside a payload, with each key or index in it."""
    if isinstance(payload, dict | list):
        for name, value in payload.items() if isinstance(payload, dict) else enumerate(payload):
            yield payload, name
            yield from places(value)


def test_the_examples_cover_the_catalogue() -> None:
    assert {type(example) for example in EXAMPLES} == set(events().values())


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_what_is_written_reads_as_it_was(event: Event) -> None:
    assert type(event).model_validate_json(event.encode()) == event


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_what_is_written_fits_the_published_schema(event: Event) -> None:
    jsonschema.validate(json.loads(event.encode()), json_schema(type(event)))


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_a_field_that_a_reader_does_not_know_is_ignored(event: Event) -> None:
    payload = json.loads(event.encode()) | {"added_later": {"x": 1}}
    assert type(event).model_validate(payload) == event


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_headers_carry_the_required_cloudevents_attributes(event: Event) -> None:
    headers = dict(
        event.headers(source="headrace/test", trace=Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"))
    )
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_type"] == event.TYPE.encode()
    assert {"ce_id", "ce_source", "ce_time", "ce_subject", "traceparent"} <= headers.keys()
    assert headers["ce_id"] == dict(event.headers(source="another"))["ce_id"]


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (DocumentUploaded, {"uri": "file:///a.pdf"}),
        (DocumentUploaded, {"text": "a note"}),
        (DocumentUploaded, {"uri": ""}),
        (DocumentUploaded, {"document_id": "d", "op": "delete"}),
        (RequestSubmitted, {"prompt": "why?"}),
        (RequestSubmitted, {"messages": [{"role": "user", "content": "why?"}]}),
    ],
)
def test_the_least_that_the_schema_asks_for_is_accepted(event: type[JobEvent], payload: dict[str, object]) -> None:
    jsonschema.validate(payload, json_schema(event))
    accepted = event.model_validate(payload)
    assert accepted.job_id == event.model_validate(dict(payload)).job_id or payload.get("op") == "delete"


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (DocumentUploaded, {}),
        (DocumentUploaded, {"uri": "file:///a", "text": "b"}),
        (DocumentUploaded, {"op": "delete"}),
        (RequestSubmitted, {}),
        (RequestSubmitted, {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}),
        (RequestSubmitted, {"prompt": "a", "kind": "poem"}),
    ],
)
def test_schema_and_model_refuse_the_same(event: type[JobEvent], payload: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(payload, json_schema(event))
    with pytest.raises(ValidationError):
        event.model_validate(payload)


def test_a_time_without_an_offset_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        StatusChanged(job_id="j", state=JobState.RUNNING, step="s", occurred_at=datetime(2026, 1, 1))  # noqa: DTZ001


def test_base64_is_the_standard_alphabet() -> None:
    letter = next(event for event in EXAMPLES if isinstance(event, DocumentEmbedded))
    assert json.loads(letter.encode())["chunks"][0]["vector"] == "+/8AAQIDBAU="


@pytest.mark.parametrize("vector", [5, 1.5, True, None, [], {}, "AA-_", "AAA", "é"])
def test_what_is_not_base64_is_refused_like_any_other_wrong_value(vector: object) -> None:
    with pytest.raises(ValidationError):
        EmbeddedChunk.model_validate({"chunk_id": "c", "ordinal": 0, "text": "text", "vector": vector})


@settings(max_examples=300)
@given(st.data())
def test_any_value_anywhere_is_refused_without_being_quoted_or_reads_back_as_it_was(data: st.DataObject) -> None:
    event = data.draw(st.sampled_from([each for each in EXAMPLES if isinstance(each, JobEvent)]))
    payload = json.loads(event.encode())
    place, name = data.draw(st.sampled_from(list(places(payload))))
    place[name] = data.draw(JSON_VALUES)
    said = ""
    try:
        accepted = parse(record(json.dumps(payload).encode()), type(event))
    except Poison as error:
        accepted, said = None, str(error)
    assert PRIVATE not in said
    if accepted is not None:
        assert type(event).model_validate_json(accepted.encode()) == accepted
        jsonschema.validate(json.loads(accepted.encode()), json_schema(type(event)))


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_derived_ids_are_equal_only_for_equal_parts(one: list[str], two: list[str]) -> None:
    assert (derive_id(*one) == derive_id(*two)) == (one == two)


def test_the_same_upload_is_the_same_job_and_new_content_is_another() -> None:
    first = DocumentUploaded.model_validate({"uri": "file:///a", "sha256": "0" * 64})
    again = DocumentUploaded.model_validate({"uri": "file:///a", "sha256": "0" * 64})
    changed = DocumentUploaded.model_validate({"uri": "file:///a", "sha256": "1" * 64})
    assert first.job_id == again.job_id
    assert first.document_id == changed.document_id
    assert first.job_id != changed.job_id


def test_a_document_of_one_tenant_is_not_that_of_another() -> None:
    ids = {DocumentUploaded.model_validate({"uri": "file:///a", "tenant": tenant}).document_id for tenant in ("a", "b")}
    assert len(ids) == 2


def test_the_catalogue_names_each_topic_once_and_keys_it_by_a_field() -> None:
    names = [topic.name for topic in (*CATALOGUE, *dead_letter_topics())]
    assert len(names) == len(set(names))
    assert all(set(topic.key.split(", ")) <= {"any", *topic.event.model_fields} for topic in CATALOGUE)


def test_every_topic_that_flows_read_has_a_dead_letter_topic() -> None:
    consumed = {topic.name for topic in CATALOGUE if topic.consumed}
    assert {topic.name for topic in dead_letter_topics()} == {dead_letter_topic(name) for name in consumed}


def test_an_event_without_a_topic_is_named() -> None:
    with pytest.raises(LookupError, match="DeadLetter"):
        topic_of(DeadLetter)


def test_a_request_in_the_past_is_still_an_event() -> None:
    asked = RequestSubmitted(job_id="j", prompt="x", deadline_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert asked.deadline == datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("where", ["content", "call_id", "tool", "arguments", "tool_call_id", "name", "parameters"])
def test_the_size_of_a_prompt_counts_all_that_the_model_gets(where: str) -> None:
    def sized(text: str) -> int:
        def put(name: str) -> str:
            return text if name == where else "x"

        call = ToolCall(call_id=put("call_id"), tool=put("tool"), arguments=put("arguments"))
        messages = (
            ChatMessage(role="user", content=put("content")),
            ChatMessage(role="assistant", content="", tool_call=call),
            ChatMessage(role="tool", content="x", tool_call_id=put("tool_call_id")),
        )
        tool = Tool(name=put("name"), parameters={"description": put("parameters")})
        return RequestSubmitted(job_id="j", messages=messages, tools=(tool,)).prompt_chars

    assert sized("x" * 64) - sized("x") == 63
