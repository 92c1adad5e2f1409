"""Whatever a producer sends, the flow goes on and says what was wrong."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main
from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka.port import Topics
from connectors.kafka.record import Record
from connectors.slices import Slice
from operators.dead_letter import dead_letter
from operators.decode import consume, parse
from operators.produce import produce
from operators.runtime import Runtime
from schemas.budgets import BudgetChanged
from schemas.documents import DocumentUploaded
from schemas.errors import Poison
from schemas.event import JobEvent
from schemas.jobs import JobState
from schemas.requests import PROMPT_MAX_CHARS, TOOLS_MAX_CHARS, RequestSubmitted
from schemas.topics import DEAD_LETTER_MAX_BYTES
from tests.memory_topics import MemoryTopics, record

MakeRuntime = Callable[[Topics], Runtime]
GOOD = DocumentUploaded(document_id="good", job_id="good-job", text="hello")


def run_decode(
    runtime_on: MakeRuntime,
    records: list[Record],
    event: type[JobEvent] = DocumentUploaded,
    mine: Slice | None = None,
) -> MemoryTopics:
    topics = MemoryTopics(records)
    runtime = replace(runtime_on(topics), slice=mine)
    flow = Dataflow("test")
    decoded = consume("uploaded", flow, event, runtime)
    produce("again", decoded.oks, event, runtime)
    dead_letter("dlq", decoded.errs, runtime=runtime)
    run_main(flow)
    return topics


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"key", b"x" * 7_000_000, (("x-origin", b"here"),)),
        (b"k" * 7_000_000, b"x", (("x-origin", b"here"),)),
        (b"key", b"x", (("x-origin", b"h" * 7_000_000),)),
        (b"key", b'{"document_id": "' + b"d" * 7_000_000 + b'"}', (("x-origin", b"here"),)),
    ],
)
def test_a_message_that_its_dead_letter_cannot_hold_is_left_out_and_the_flow_goes_on(
    runtime_on: MakeRuntime, key: bytes, value: bytes, headers: tuple[tuple[str, bytes], ...]
) -> None:
    bad = replace(record(value, offset=1, key=key), headers=headers)
    topics = run_decode(runtime_on, [bad, record(GOOD, offset=2)])
    (letter,) = topics.dead_letters()
    assert all(len(each.key) + len(each.value) < DEAD_LETTER_MAX_BYTES for each in topics.written)
    assert (letter.message_value, letter.left_out_bytes) == (None, len(value))
    assert letter.left_out_sha256 == hashlib.sha256(value).hexdigest()
    assert letter.place == "documents.uploaded, partition 0, offset 1"
    assert not letter.retryable
    if len(value) > 1:
        assert (letter.message_key, letter.message_headers[0].value) == (key, b"here")
    assert len(topics.on("documents.uploaded")) == 1
    (status,) = topics.statuses()
    assert (status.state, status.retryable) == (JobState.DEAD_LETTERED, False)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"", "the message is empty"),
        (b"{", "Invalid JSON"),
        (b"\xff\xfe\x00", "Invalid JSON"),
        (b"[1, 2]", "should be an object"),
        (b'"text"', "should be an object"),
        (b"{}", "document_id"),
        (b'{"text": 5}', "text: Input should be a valid string"),
        (b'{"text": "a", "uri": "file:///a"}', "exactly one of uri and text"),
        (b'{"text": "a", "op": "rename"}', "op: Input should be 'upsert' or 'delete'"),
        (b'{"op": "delete"}', "document_id"),
        (b'{"text": "a", "tenant": "../other"}', "tenant"),
        (b'{"text": "a", "uploaded_at": "2026-01-01T00:00:00"}', "uploaded_at"),
        (b"[" * 100_000, "Invalid JSON"),
    ],
)
def test_a_malformed_message_is_dead_lettered_whole_and_its_neighbours_pass(
    runtime_on: MakeRuntime, value: bytes, says: str
) -> None:
    bad = replace(record(value, offset=1, key=b"\x00key"), headers=(("x-origin", b"\xff"),))
    topics = run_decode(runtime_on, [record(GOOD), bad, record(GOOD, offset=2)])
    (letter,) = topics.dead_letters()
    assert says in letter.message
    assert (letter.message_value or b"", letter.message_key) == (value, b"\x00key")
    assert [(header.name, header.value) for header in letter.message_headers] == [("x-origin", b"\xff")]
    assert (letter.topic, letter.offset, letter.step) == ("documents.uploaded", 1, "test.uploaded")
    assert (letter.error_class, letter.retryable) == ("poison", False)
    assert len(topics.on("documents.uploaded")) == 2
    (status,) = topics.statuses()
    assert (status.job_id, status.state) == (letter.job_id, JobState.DEAD_LETTERED)


def test_the_dead_letter_keeps_the_original_key(runtime_on: MakeRuntime) -> None:
    topics = run_decode(runtime_on, [record(b"{", key=b"\x00key")])
    assert [item.key for item in topics.written if item.topic == "documents.uploaded.dlq"] == [b"\x00key"]


def test_the_status_of_a_malformed_message_goes_to_the_job_that_it_names(runtime_on: MakeRuntime) -> None:
    topics = run_decode(runtime_on, [record(b'{"job_id": "mine", "tenant": "acme", "text": 5}')])
    (status,) = topics.statuses()
    assert (status.job_id, status.tenant) == ("mine", "acme")


def test_a_message_that_names_no_usable_job_gets_one_from_its_place(runtime_on: MakeRuntime) -> None:
    values = [b'{"job_id": 7}', b'{"job_id": "", "tenant": "' + b"x" * 500 + b'"}']
    topics = run_decode(runtime_on, [record(value, offset=offset) for offset, value in enumerate(values)])
    assert len({status.job_id for status in topics.statuses()}) == 2


def test_a_message_of_another_type_is_refused_by_its_header() -> None:
    other = replace(record(GOOD), headers=(("ce_type", b"com.example.other"),))
    with pytest.raises(Poison, match=r"com\.example\.other"):
        parse(other, DocumentUploaded)


def test_a_message_without_headers_is_accepted_by_its_topic() -> None:
    assert parse(replace(record(GOOD), headers=()), DocumentUploaded) == GOOD


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({"prompt": "x" * 200_000}, f"200000 characters; the limit is {PROMPT_MAX_CHARS}"),
        (
            {"prompt": "?", "tools": [{"name": f"t{n}", "parameters": {"x": "y" * 60_000}} for n in range(2)]},
            f"characters as JSON; the limit is {TOOLS_MAX_CHARS}",
        ),
        (
            {
                "messages": [
                    *[
                        {
                            "role": "assistant",
                            "content": "",
                            "tool_call": {"call_id": "i" * 256, "tool": "t", "arguments": ""},
                        }
                    ]
                    * 400,
                    {"role": "user", "content": "?"},
                ]
            },
            f"102801 characters; the limit is {PROMPT_MAX_CHARS}",
        ),
        ({"prompt": "x", "kind": "poem"}, "kind: Input should be 'answer' or 'generate'"),
        ({}, "exactly one of prompt and messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "must be the user's"),
        ({"prompt": "x", "parent_job_id": "p"}, "parent_job_id without root_job_id: name the root too"),
        ({"prompt": "x", "parent_job_id": "p", "depth": 2}, "parent_job_id without root_job_id: name the root too"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(payload: dict[str, object], says: str) -> None:
    with pytest.raises(Poison, match=says):
        parse(record(json.dumps(payload).encode()), RequestSubmitted)


def test_the_reason_never_repeats_what_the_message_said() -> None:
    said = "what the prompt said"
    for payload in ({"prompt": 5, "kind": said}, {"messages": said}, {"prompt": said, "max_tokens": said}):
        with pytest.raises(Poison) as refused:
            parse(record(json.dumps(payload).encode()), RequestSubmitted)
        assert said not in str(refused.value)


@given(
    value=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: (
            st.lists(x) | st.dictionaries(st.sampled_from(["text", "uri", "op", "tenant", "document_id", "job_id"]), x)
        ),
    ).map(lambda x: json.dumps(x).encode())
)
def test_any_bytes_are_an_event_or_poison(value: bytes) -> None:
    try:
        event = parse(record(value), DocumentUploaded)
    except Poison:
        return
    assert parse(record(event.encode()), DocumentUploaded) == event


def test_a_misspelt_field_is_named_and_a_name_that_is_none_is_not() -> None:
    budget = {"tenant": "t", "windows": [{"seconds": 60, "tokns": 5, "the board resigns": 1}]}
    with pytest.raises(Poison) as raised:
        parse(record(json.dumps(budget).encode(), topic="budgets.config"), BudgetChanged)
    assert "windows.0.tokns: Extra inputs are not permitted" in str(raised.value)
    assert "windows.0.?: Extra inputs" in str(raised.value)


def test_what_cannot_be_read_still_says_who_is_to_be_told_of_its_end(runtime_on: MakeRuntime) -> None:
    values = [b'{"text": 5, "callback_url": "https://a.org/?t=1"}', b'{"text": 5, "callback_url": 7}']
    topics = run_decode(runtime_on, [record(value, offset=offset) for offset, value in enumerate(values)])
    assert [status.callback_url for status in topics.statuses()] == ["https://a.org/?t=1", None]
    assert b"callback_url" not in b"".join(letter.encode() for letter in topics.dead_letters())


def test_with_holding_only_what_has_these_bytes_is_decoded(runtime_on: MakeRuntime) -> None:
    topics = MemoryTopics([record(b"{"), record(GOOD, offset=1), record(b'{"text": "', offset=2)])
    runtime = runtime_on(topics)
    flow = Dataflow("test")
    uploads = consume("uploaded", flow, DocumentUploaded, runtime, holding=b'"text"')
    produce("passed", uploads.oks, DocumentUploaded, runtime)
    dead_letter("dlq", uploads.errs, runtime=runtime)
    run_main(flow)
    assert len(topics.on("documents.uploaded")) == 1
    assert [letter.offset for letter in topics.dead_letters()] == [2]


def test_slices_by_tenant_take_up_every_message_once_and_bury_each_unreadable_one_once(runtime_on: MakeRuntime) -> None:
    events = [
        DocumentUploaded(document_id=f"d{n}", job_id=f"j{n}", tenant=f"tenant-{n % 5}", text="hello") for n in range(20)
    ]
    records = [replace(record(event, offset=n), partition=n % 3) for n, event in enumerate(events)]
    records += [replace(record(b"no event", offset=100 + n), partition=n) for n in range(3)]
    taken: list[str] = []
    buried: list[str] = []
    for index in range(3):
        topics = run_decode(runtime_on, records, mine=Slice(index, 3, "tenant"))
        taken += [str(each["job_id"]) for each in topics.on("documents.uploaded")]
        buried += [letter.place for letter in topics.dead_letters()]
    assert sorted(taken) == sorted(event.job_id for event in events)
    assert len(buried) == len(set(buried)) == 3


def test_a_slice_by_partition_reads_less_and_takes_up_all_that_it_reads(runtime_on: MakeRuntime) -> None:
    records = [record(GOOD.model_copy(update={"tenant": f"t{n}"}), offset=n) for n in range(5)]
    topics = run_decode(runtime_on, records, mine=Slice(0, 4, "partition"))
    assert len(topics.on("documents.uploaded")) == 5
