"""Dead letters on Apache Kafka: found by filters, redriven once, and a job's story told from its topics."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from confluent_kafka import Message, Producer

from connectors.kafka.client import record_of
from connectors.kafka.dead_letters import DeadLetters, LetterFilter, LetterPlace, repeated
from connectors.kafka.job_history import read_history
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import OutgoingRecord, RepeatedRecord
from connectors.kafka.stop import Stop
from connectors.kafka.topics import TopicSpec, create_topics
from schemas.dead_letter import REDRIVE_HEADER, DeadLetter, DeadLetterRedriven, Header
from schemas.errors import Fatal, HeadraceError
from schemas.event import Event
from schemas.explanation import Standing, explain
from schemas.jobs import JobState, StatusChanged
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted, Timings, TokenCount
from schemas.topics import CATALOGUE, dead_letter_topic, dead_letter_topics
from tests.headrace_process import headrace
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.client import count, read, wait_for

pytestmark = pytest.mark.kafka

REQUESTS = "requests.submitted"
MARKERS = "dead_letters.redriven"
FAILED_AT = datetime(2026, 1, 31, 12, tzinfo=UTC)

Headers = tuple[tuple[str, bytes], ...]


@pytest.fixture
def bootstrap(kafka: ApacheKafka) -> str:
    """A broker with the catalogue."""
    create_topics(
        kafka.bootstrap, [TopicSpec(topic.name, 4, topic.config) for topic in (*CATALOGUE, *dead_letter_topics())]
    )
    return kafka.bootstrap


@pytest.fixture
def tenant() -> str:
    """A tenant that no other test has: its letters are this test's."""
    return f"t{uuid4().hex[:12]}"


@pytest.fixture
def bury(bootstrap: str, tenant: str) -> Callable[..., DeadLetter]:
    """Write a dead letter, of a message that was never on its topic, and return it."""
    outbox = ReliableProducer(bootstrap).outbox()

    def write(  # noqa: PLR0913  # options by keyword
        *,
        key: bytes | None = b"key",
        value: bytes | None = b"value",
        headers: Headers = (),
        retryable: bool = True,
        topic: str = REQUESTS,
        dlq: str | None = None,
        step: str = "answer.infer",
        job_id: str | None = None,
        failed_at: datetime = FAILED_AT,
        fits_bytes: int = 1 << 30,
    ) -> DeadLetter:
        letter = DeadLetter(
            job_id=job_id or uuid4().hex,
            tenant=tenant,
            topic=topic,
            partition=0,
            offset=uuid4().int >> 80,
            message_key=key,
            message_value=value,
            message_headers=tuple(Header(name=name, value=content) for name, content in headers),
            step=step,
            error_class="retryable" if retryable else "poison",
            error_type="Retryable" if retryable else "Poison",
            message="the model answered 500",
            attempts=5,
            retryable=retryable,
            first_failed_at=failed_at,
            failed_at=failed_at,
        ).fitting(fits_bytes)
        outbox.send(OutgoingRecord(dlq or dead_letter_topic(topic), letter.key_bytes, letter.encode()))
        outbox.flush()
        return letter

    return write


@pytest.fixture
def letters(bootstrap: str) -> DeadLetters:
    return DeadLetters(bootstrap)


def redriven_to(bootstrap: str, topic: str, letter: DeadLetter) -> list[Message]:
    """Messages on `topic` with this letter's value."""
    return [message for message in read(bootstrap, topic) if message.value() == letter.message_value]


def headers_of(message: Message) -> Headers:
    return record_of(message).headers


def markers(bootstrap: str, of: Sequence[DeadLetter]) -> list[DeadLetterRedriven]:
    ids = {letter.event_id.encode() for letter in of}
    return [
        DeadLetterRedriven.model_validate_json(message.value() or b"")
        for message in read(bootstrap, MARKERS)
        if message.key() in ids
    ]


def publish(bootstrap: str, *events: Event) -> None:
    outbox = ReliableProducer(bootstrap).outbox()
    for event in events:
        topic = next(topic.name for topic in CATALOGUE if topic.event is type(event))
        outbox.send(OutgoingRecord(topic, event.key_bytes, event.encode()))
    outbox.flush()


def test_a_second_redrive_finds_the_marker_and_does_nothing(
    bootstrap: str, tenant: str, bury: Callable[..., DeadLetter], letters: DeadLetters
) -> None:
    buried = [bury(value=uuid4().bytes) for _ in range(3)]
    wanted = LetterFilter(tenant=tenant)
    assert letters.redrive(letters.plan(wanted)) == 3
    again = letters.plan(wanted)
    assert (again.ids, again.already_redriven) == (frozenset(), 3)
    assert letters.redrive(again) == 0
    assert [len(redriven_to(bootstrap, REQUESTS, letter)) for letter in buried] == [1, 1, 1]
    assert sorted(marker.dead_letter_id for marker in markers(bootstrap, buried)) == sorted(
        letter.event_id for letter in buried
    )


@pytest.mark.parametrize("key", [b"key", b"\x00\xff\xfe", None], ids=["text", "binary", "none"])
def test_the_original_message_is_produced_byte_for_byte(
    bootstrap: str, tenant: str, bury: Callable[..., DeadLetter], letters: DeadLetters, key: bytes | None
) -> None:
    headers = (("trace", b"\x00\xff"), (REDRIVE_HEADER, b"1"), ("trace", b"second"), ("empty", b""))
    letter = bury(key=key, value=b"\xff\x00" + uuid4().bytes, headers=headers)
    letters.redrive(letters.plan(LetterFilter(tenant=tenant)))
    (message,) = redriven_to(bootstrap, REQUESTS, letter)
    assert message.key() == key
    assert headers_of(message) == (
        ("trace", b"\x00\xff"),
        ("trace", b"second"),
        ("empty", b""),
        (REDRIVE_HEADER, b"2"),
    )
    (marker,) = markers(bootstrap, [letter])
    assert (marker.redrives, marker.topic, marker.job_id, marker.tenant) == (2, REQUESTS, letter.job_id, tenant)


def test_a_message_without_a_value_stays_without_one(
    bootstrap: str, tenant: str, bury: Callable[..., DeadLetter], letters: DeadLetters
) -> None:
    key = uuid4().bytes
    bury(key=key, value=None)
    letters.redrive(letters.plan(LetterFilter(tenant=tenant)))
    (message,) = (message for message in read(bootstrap, REQUESTS) if message.key() == key)
    assert message.value() is None


def test_a_counter_that_nobody_can_read_counts_as_none(bury: Callable[..., DeadLetter]) -> None:
    """Python refuses to read a number of 5,000 digits, and any producer may send one."""
    for value in (b"9" * 5000, b"", b"-1", b"two"):
        letter = bury(headers=((REDRIVE_HEADER, value),))
        assert repeated(letter).headers == ((REDRIVE_HEADER, b"1"),)


def test_a_kill_between_message_and_marker_repeats_the_same_counter(
    bootstrap: str, tenant: str, bury: Callable[..., DeadLetter], letters: DeadLetters
) -> None:
    letter = bury(value=uuid4().bytes, headers=((REDRIVE_HEADER, b"1"),))
    outbox = ReliableProducer(bootstrap).outbox()
    outbox.send(repeated(letter))  # and killed before the marker
    outbox.flush()
    assert letters.redrive(letters.plan(LetterFilter(tenant=tenant))) == 1
    counters = [headers_of(message) for message in redriven_to(bootstrap, REQUESTS, letter)]
    assert counters == [((REDRIVE_HEADER, b"2"),)] * 2  # the ledger takes the second for the first
    assert letters.redrive(letters.plan(LetterFilter(tenant=tenant))) == 0


def test_a_letter_that_a_crash_wrote_twice_is_redriven_once(
    bootstrap: str, tenant: str, bury: Callable[..., DeadLetter], letters: DeadLetters
) -> None:
    letter = bury(value=uuid4().bytes)
    outbox = ReliableProducer(bootstrap).outbox()
    outbox.send(OutgoingRecord(dead_letter_topic(REQUESTS), letter.key_bytes, letter.encode()))
    outbox.flush()
    assert letters.list(LetterFilter(tenant=tenant)).total == 1
    assert letters.redrive(letters.plan(LetterFilter(tenant=tenant))) == 1
    assert len(redriven_to(bootstrap, REQUESTS, letter)) == 1


def test_poison_and_what_was_redriven_too_often_is_left_out_unless_named(
    tenant: str, bury: Callable[..., DeadLetter], letters: DeadLetters
) -> None:
    fine, poison, capped = (
        bury(),
        bury(retryable=False),
        bury(headers=((REDRIVE_HEADER, b"3"),)),
    )
    plan = letters.plan(LetterFilter(tenant=tenant))
    assert plan.ids == {fine.event_id}
    assert (plan.not_retryable, plan.capped) == (1, (capped.event_id,))
    assert letters.plan(LetterFilter(tenant=tenant, error_class="poison")).ids == {poison.event_id}
    assert letters.plan(LetterFilter(), [poison.event_id[:13]]).ids == {poison.event_id}
    assert letters.plan(LetterFilter(), [capped.event_id]).capped == (capped.event_id,)
    assert letters.plan(LetterFilter(), [capped.event_id], max_redrives=4).ids == {capped.event_id}


def test_each_filter_leaves_out_what_it_should(
    tenant: str, bury: Callable[..., DeadLetter], letters: DeadLetters
) -> None:
    early = bury(job_id="é-1", failed_at=FAILED_AT - timedelta(hours=1))
    poison = bury(retryable=False, step="answer.submitted", failed_at=FAILED_AT)
    upload = bury(topic="documents.uploaded", step="ingest.extract", failed_at=FAILED_AT + timedelta(hours=1))

    def found(**fields: object) -> list[str]:
        wanted = LetterFilter(tenant=tenant, **fields)  # type: ignore[arg-type]  # the parts under test
        return [letter.id for letter in letters.list(wanted).letters]

    assert found() == [early.event_id, poison.event_id, upload.event_id]
    assert found(topic="documents.uploaded") == [upload.event_id]
    assert found(step="answer") == [early.event_id, poison.event_id]
    assert found(step="answer.infer") == [early.event_id]
    assert found(step="answer.inf") == []
    assert found(error_class="poison") == [poison.event_id]
    assert found(since=FAILED_AT) == [poison.event_id, upload.event_id]
    assert found(until=FAILED_AT) == [early.event_id]
    assert found(job_id="é-1") == [early.event_id]
    assert letters.list(LetterFilter(tenant="nobody")).total == 0


def test_a_list_shows_the_newest_and_counts_all(
    tenant: str, bury: Callable[..., DeadLetter], letters: DeadLetters
) -> None:
    buried = [bury(failed_at=FAILED_AT + timedelta(seconds=second)) for second in range(5)]
    listing = letters.list(LetterFilter(tenant=tenant), limit=2)
    assert [letter.id for letter in listing.letters] == [letter.event_id for letter in buried[-2:]]
    assert (listing.total, listing.by_class, listing.by_step) == (5, {"retryable": 5}, {"answer.infer": 5})
    letters.redrive(letters.plan(LetterFilter(), [buried[0].event_id]))
    assert letters.list(LetterFilter(tenant=tenant)).total == 4
    everything = letters.list(LetterFilter(tenant=tenant), include_redriven=True)
    assert [letter.redriven_at is not None for letter in everything.letters] == [True, False, False, False, False]


def test_a_letter_whose_place_is_known_is_found_and_redriven_like_any_other(
    bootstrap: str, bury: Callable[..., DeadLetter], letters: DeadLetters
) -> None:
    buried = [bury(value=uuid4().bytes) for _ in range(3)]
    letter = buried[1]
    (at,) = (place for place, known in places(bootstrap) if known == letter.event_id)

    assert letters.find(letter.event_id, at=at).letter == letter
    assert letters.redrive(letters.plan(LetterFilter(), [letter.event_id], at=at)) == 1

    assert [len(redriven_to(bootstrap, REQUESTS, each)) for each in buried] == [0, 1, 0]
    again = letters.plan(LetterFilter(), [letter.event_id], at=at)
    assert (again.ids, again.already_redriven) == (frozenset(), 1)
    assert letters.find(letter.event_id, at=at).redriven_at is not None


def test_a_marker_is_found_wherever_whoever_asks_has_not_read(
    bootstrap: str, bury: Callable[..., DeadLetter], letters: DeadLetters
) -> None:
    first, letter = bury(), bury()
    letters.redrive(letters.plan(LetterFilter(), [first.event_id]))
    before = ends(bootstrap, MARKERS)
    letters.redrive(letters.plan(LetterFilter(), [letter.event_id]))

    def redriven(each: DeadLetter, unmarked_before: dict[tuple[str, int], int]) -> bool:
        return letters.find(each.event_id, unmarked_before=unmarked_before).redriven_at is not None

    assert redriven(letter, before)
    assert not redriven(letter, ends(bootstrap, MARKERS))  # what was said is believed
    assert redriven(first, {(MARKERS, partition): 1_000_000 for partition in range(4)})  # the topic was made anew


def ends(bootstrap: str, topic: str) -> dict[tuple[str, int], int]:
    """The offset after the last, by partition."""
    found = {(topic, partition): 0 for partition in range(4)}
    for record in map(record_of, read(bootstrap, topic)):
        found[topic, record.partition] = record.offset + 1
    return found


def test_a_place_that_holds_another_letter_or_none_is_no_letter(
    bootstrap: str, bury: Callable[..., DeadLetter], letters: DeadLetters
) -> None:
    letter, other = bury(), bury()
    (at,) = (place for place, known in places(bootstrap) if known == other.event_id)
    beyond = LetterPlace(at.topic, at.partition, 1_000_000)
    for wrong in (at, beyond, LetterPlace("no-such-topic", 0, 0)):
        with pytest.raises(Fatal, match="no dead letter"):
            letters.plan(LetterFilter(), [letter.event_id], at=wrong)


def places(bootstrap: str) -> list[tuple[LetterPlace, str]]:
    """Where the dead letters of requests are, with their ids."""
    records = map(record_of, read(bootstrap, dead_letter_topic(REQUESTS)))
    return [
        (
            LetterPlace(record.topic, record.partition, record.offset),
            DeadLetter.model_validate_json(record.value or b"").event_id,
        )
        for record in records
    ]


def test_a_missing_original_topic_is_named_and_nothing_is_redriven(
    bootstrap: str, tenant: str, bury: Callable[..., DeadLetter], letters: DeadLetters
) -> None:
    fine = bury(value=uuid4().bytes)
    lost = bury(topic="no-such-topic", dlq=dead_letter_topic(REQUESTS))
    with pytest.raises(Fatal, match=r"topic no-such-topic, .* is missing"):
        letters.redrive(letters.plan(LetterFilter(tenant=tenant)))
    assert redriven_to(bootstrap, REQUESTS, fine) == []
    assert markers(bootstrap, [fine, lost]) == []


def test_unknown_and_ambiguous_ids_are_refused(bury: Callable[..., DeadLetter], letters: DeadLetters) -> None:
    first, second = bury(), bury()
    while second.event_id[0] != first.event_id[0]:
        second = bury()
    with pytest.raises(Fatal, match="begins the ids of several"):
        letters.find(first.event_id[0])
    with pytest.raises(Fatal, match=r"no dead letter at .* has the id"):
        letters.find("00000000-0000")
    with pytest.raises(Fatal, match=r"no dead letter at .* has the id 00000000-0000"):
        letters.plan(LetterFilter(), [first.event_id, "00000000-0000"])
    assert letters.find(first.event_id).letter == first
    assert letters.find(first.event_id[:18]).redriven_at is None


def test_the_rate_is_a_bound(tenant: str, bury: Callable[..., DeadLetter], letters: DeadLetters) -> None:
    for _ in range(11):
        bury()
    plan = letters.plan(LetterFilter(tenant=tenant))
    began = datetime.now(UTC)
    assert letters.redrive(plan, rate_per_s=10) == 11
    assert (datetime.now(UTC) - began).total_seconds() >= 1.0  # ten gaps of 0.1 s


def test_a_stop_ends_the_part_that_has_begun_and_marks_it(
    bootstrap: str, tenant: str, bury: Callable[..., DeadLetter]
) -> None:
    buried = [bury(value=uuid4().bytes) for _ in range(9)]
    stop = Stop()
    letters = DeadLetters(bootstrap, stop=stop)
    plan = letters.plan(LetterFilter(tenant=tenant))
    done = letters.redrive(plan, rate_per_s=4, redriven=lambda _: stop.request())
    assert done == 4
    produced = [letter for letter in buried if redriven_to(bootstrap, REQUESTS, letter)]
    assert {letter.event_id for letter in produced} == {marker.dead_letter_id for marker in markers(bootstrap, buried)}
    assert len(produced) == 4


def test_a_message_that_the_topic_refuses_is_not_marked(
    bootstrap: str, tenant: str, bury: Callable[..., DeadLetter], new_topic: Callable[..., str], letters: DeadLetters
) -> None:
    tiny = new_topic(max_message_bytes="500")
    letter = bury(value=b"x" * 5000, topic=tiny, dlq=dead_letter_topic(REQUESTS))
    with pytest.raises(HeadraceError, match=r"ended after 0 of 1 .* topic .* max\.message\.bytes"):
        letters.redrive(letters.plan(LetterFilter(tenant=tenant)))
    assert markers(bootstrap, [letter]) == []


def test_a_dry_run_writes_nothing(bootstrap: str, tenant: str, bury: Callable[..., DeadLetter]) -> None:
    letter = bury()
    before = count(bootstrap, REQUESTS), count(bootstrap, MARKERS)
    ran = headrace("dlq", "redrive", "--tenant", tenant, "--dry-run", "--json", "--bootstrap", bootstrap)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["redriven"], report["would_redrive"]) == (0, [letter.event_id])
    assert (count(bootstrap, REQUESTS), count(bootstrap, MARKERS)) == before


def test_the_commands_list_show_and_redrive(bootstrap: str, tenant: str, bury: Callable[..., DeadLetter]) -> None:
    letter = bury(value=b'{"prompt": "\\u001b[31m"}' + b" " * 5000, headers=(("trace", b"\xff"),))
    broken = bury(value=b"\xff\x1b[31m" + b"x" * 5000, retryable=False)
    at = ("--bootstrap", bootstrap)
    listed = headrace("dlq", "list", "--tenant", tenant, *at).stdout
    assert "2 open dead letters: 1 retryable, 1 poison" in listed or "1 poison, 1 retryable" in listed
    assert letter.event_id[:8] in listed
    shown = headrace("dlq", "show", broken.event_id[:13], *at).stdout
    assert r"\xff\x1b[31m" in shown
    assert "--full shows all" in shown
    assert "\x1b" not in shown + headrace("dlq", "show", letter.event_id, *at).stdout
    dumped = json.loads(headrace("dlq", "show", letter.event_id, "--json", *at).stdout)
    assert DeadLetter.model_validate(dumped) == letter
    redriven = json.loads(headrace("dlq", "redrive", "--tenant", tenant, "--json", *at).stdout)
    assert (redriven["redriven"], redriven["skipped_not_retryable"]) == (1, 1)
    again = json.loads(headrace("dlq", "redrive", "--tenant", tenant, "--json", *at).stdout)
    assert (again["redriven"], again["already_redriven"], again["skipped_by_cap"]) == (0, 1, 0)
    everything = json.loads(headrace("dlq", "list", "--tenant", tenant, "--all", "--json", *at).stdout)
    assert {each["id"]: each["state"] for each in everything["letters"]} == {
        letter.event_id: "redriven",
        broken.event_id: "open",
    }
    unknown = headrace("dlq", "show", "00000000", *at)
    assert (unknown.returncode, len(unknown.stderr.strip().splitlines())) == (1, 1)


def test_a_letter_without_its_message_is_shown_as_such_and_never_redriven(
    bootstrap: str, tenant: str, bury: Callable[..., DeadLetter]
) -> None:
    letter = bury(value=b"x" * 7_000_000, fits_bytes=1_000_000)
    at = ("--bootstrap", bootstrap)
    shown = headrace("dlq", "show", letter.event_id, *at).stdout
    assert "Payload (7,000,000 bytes, left out: too large for a dead letter)" in shown
    assert f"sha256 {letter.left_out_sha256}; it is only at {letter.place}" in shown
    assert "no: its message is not in it" in shown
    refused = headrace("dlq", "redrive", letter.event_id, *at).stdout
    assert "redriven 0" in refused
    assert "left out 1 that cannot be redriven: their messages were too large for them" in refused
    told = json.loads(headrace("dlq", "redrive", "--tenant", tenant, "--json", *at).stdout)
    assert (told["redriven"], told["without_message"]) == (0, [letter.event_id])
    assert markers(bootstrap, [letter]) == []
    explained = explain(read_history(bootstrap, None, letter.job_id), now=datetime.now(UTC))
    assert explained.retry == ()
    assert any("cannot be redriven" in each and letter.place in each for each in explained.escalate)


def test_ctrl_c_ends_a_redrive_with_one_line_and_nothing_unmarked(
    bootstrap: str, tenant: str, bury: Callable[..., DeadLetter]
) -> None:
    buried = [bury(value=uuid4().bytes) for _ in range(40)]
    command = [sys.executable, "-m", "cli.main", "dlq", "redrive", "--tenant", tenant, "--rate", "2"]
    with subprocess.Popen(
        [*command, "--bootstrap", bootstrap], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        wait_for("the first part", lambda: markers(bootstrap, buried))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.startswith("headrace: interrupted: ")
    assert len(said.strip().splitlines()) == 1
    values = {message.value() for message in read(bootstrap, REQUESTS)}
    produced = {letter.event_id for letter in buried if letter.message_value in values}
    assert produced == {marker.dead_letter_id for marker in markers(bootstrap, buried)}
    assert 0 < len(produced) < 40


def test_a_job_is_explained_from_its_topics(bootstrap: str, tenant: str, bury: Callable[..., DeadLetter]) -> None:
    job_id = uuid4().hex

    def stands() -> Standing:
        return explain(read_history(bootstrap, None, job_id), now=datetime.now(UTC)).standing

    def said(state: JobState, seconds: float, step: str = "answer.infer") -> StatusChanged:
        at = FAILED_AT + timedelta(seconds=seconds)
        return StatusChanged(job_id=job_id, tenant=tenant, state=state, step=step, occurred_at=at)

    assert not read_history(bootstrap, None, job_id).known
    publish(bootstrap, RequestSubmitted(job_id=job_id, tenant=tenant, prompt="Who keeps the sluice, secretly?"))
    assert stands() is Standing.ACCEPTED
    publish(bootstrap, said(JobState.RUNNING, -1))
    assert stands() is Standing.RUNNING
    letter = bury(job_id=job_id)
    publish(bootstrap, said(JobState.DEAD_LETTERED, 0.1))
    assert stands() is Standing.DEAD_LETTERED
    shown = headrace("jobs", "show", job_id, "--bootstrap", bootstrap)
    assert f"headrace dlq redrive {letter.event_id}" in shown.stdout
    assert headrace("dlq", "redrive", letter.event_id, "--bootstrap", bootstrap).returncode == 0
    assert stands() is Standing.REDRIVEN
    publish(bootstrap, said(JobState.RUNNING, 5))
    assert stands() is Standing.RUNNING
    result = ResultCompleted(
        job_id=job_id,
        tenant=tenant,
        kind="answer",
        text="word " * 100,
        finish_reason="stop",
        usage=TokenCount(prompt_tokens=10, completion_tokens=100),
        model="m",
        timings=Timings(queued_s=0, retrieve_s=0, infer_s=1),
        completed_at=FAILED_AT + timedelta(seconds=6),
    )
    publish(bootstrap, result, said(JobState.COMPLETED, 6, "answer.completed"))
    assert stands() is Standing.COMPLETED
    shown = headrace("jobs", "show", job_id, "--bootstrap", bootstrap)
    assert "secretly" not in shown.stdout
    assert shown.stdout.count("word ") < 65
    told = json.loads(headrace("jobs", "show", job_id, "--json", "--bootstrap", bootstrap).stdout)
    assert (told["standing"], told["result"]["model"]) == ("completed", "m")
    assert "text" not in told["result"]
    full = json.loads(headrace("jobs", "show", job_id, "--json", "--full", "--bootstrap", bootstrap).stdout)
    assert full["result"]["text"] == result.text


def test_an_unknown_job_is_one_line(bootstrap: str) -> None:
    refused = headrace("jobs", "show", "no-such-job", "--bootstrap", bootstrap)
    assert refused.returncode == 1
    assert "knows a job 'no-such-job'" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_what_is_no_dead_letter_is_counted_and_left_out(bootstrap: str, tenant: str, letters: DeadLetters) -> None:
    before = letters.list(LetterFilter(tenant=tenant)).unreadable
    producer = Producer({"bootstrap.servers": bootstrap})
    producer.produce(dead_letter_topic(REQUESTS), b"no letter")
    producer.produce(dead_letter_topic(REQUESTS), None, b"tombstone")
    assert producer.flush(30) == 0
    assert letters.list(LetterFilter(tenant=tenant)).unreadable == before + 2


def test_a_repeated_record_may_lack_key_and_value(bootstrap: str, new_topic: Callable[..., str]) -> None:
    topic = new_topic()
    outbox = ReliableProducer(bootstrap).outbox()
    outbox.send(RepeatedRecord(topic, None, None))
    outbox.flush()
    (message,) = read(bootstrap, topic)
    assert (message.key(), message.value()) == (None, None)
