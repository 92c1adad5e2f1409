"""Callbacks from a job's end to its receiver, on the embedded broker, with a schedule of tenths of seconds."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web
from bytewax.testing import cluster_main

from cli.wiring import KafkaTopics
from connectors.event_loop import EventLoop
from connectors.kafka.dead_letters import DeadLetters, LetterFilter
from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.pressure import Pressure
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.reader import TopicReader
from connectors.kafka.record import OutgoingRecord, outgoing
from connectors.kafka.recovery import RecoveryDirectory
from connectors.kafka.stop import Stop
from connectors.public_address import PublicAddresses
from connectors.settings import Settings
from connectors.tracing.off import NoTracing
from connectors.webhook.http import HttpWebhooks
from flows.webhooks import WebhooksPolicy, build
from operators.deliver import RetryPolicy
from operators.envelope import job_of
from operators.outcome import bury
from operators.produce import letter_records
from operators.runtime import Runtime
from schemas.callbacks import CallbackDeferred
from schemas.dead_letter import DeadLetter
from schemas.errors import GaveUp
from schemas.event import Event
from schemas.jobs import JobState, StatusChanged
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted, Timings, TokenCount
from schemas.topics import CATALOGUE, dead_letter_topics, topic_of
from tests.memory_topics import record
from tests.webhook_receiver import (
    OTHER_SECRET,
    SECRET,
    Receiver,
    answering,
    in_turn,
    names,
    on_loopback,
    receiving,
    taken,
    until,
)

QUICK = (0.1, 0.2, 0.3)
NEVER = (3600.0,)


@pytest.fixture(scope="module")
def receivers() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def receiver(receivers: Receiver) -> Receiver:
    receivers.answers.clear()
    receivers.posted.clear()
    return receivers


@pytest.fixture
def broker() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as broker:
        broker.create_topics([topic.name for topic in (*CATALOGUE, *dead_letter_topics())])
        yield broker


class Running:
    """The flow, in a thread, while entered; what it leaves behind, a later one goes on with."""

    def __init__(
        self,
        broker: EmbeddedKafka,
        directory: Path,
        *,
        waits_s: tuple[float, ...] = QUICK,
        secrets: dict[str, str] | None = None,
        addresses: PublicAddresses | None = None,
        timeout_s: float = 15.0,
    ) -> None:
        self._broker = broker
        self._directory = RecoveryDirectory(directory, 2)
        self._webhooks = HttpWebhooks(
            {"*": SECRET} if secrets is None else secrets, addresses or on_loopback(), timeout_s=timeout_s
        )
        self._policy = WebhooksPolicy(retry=RetryPolicy(waits_s, jitter=0.0))
        self._stop = Stop()
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        self._closing.enter_context(self._directory)
        loop = self._closing.enter_context(EventLoop())
        settings = Settings(kafka_bootstrap=self._broker.bootstrap)
        pressure = Pressure()
        topics = KafkaTopics(ReliableProducer(self._broker.bootstrap), settings, "webhooks", self._stop, pressure)
        flow = build(Runtime(topics, loop, self._stop, pressure), self._webhooks, self._policy)
        threads = self._closing.enter_context(ThreadPoolExecutor(1))
        self._run = threads.submit(
            cluster_main,
            flow,
            [],
            0,
            epoch_interval=timedelta(seconds=0.1),
            recovery_config=self._directory.config(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.request(drain_s=1.0)
        try:
            self._run.result(30)
        finally:
            self._closing.close()


def produce(broker: EmbeddedKafka, *events: Event) -> None:
    outbox = ReliableProducer(broker.bootstrap).outbox()
    for event in events:
        outbox.send(outgoing(event, step="test"))
    outbox.flush()


def values(broker: EmbeddedKafka, topic: str) -> list[bytes]:
    with TopicReader(broker.bootstrap, {}, Stop()) as reader:
        return [record.value or b"" for record in reader.records([topic])]


def callbacks(broker: EmbeddedKafka) -> list[CallbackDeferred]:
    return [CallbackDeferred.model_validate_json(value) for value in values(broker, "callbacks.deferred")]


def letters(broker: EmbeddedKafka, count: int = 1) -> list[DeadLetter]:
    """The dead letters, once there are so many."""
    until(lambda: len(values(broker, "callbacks.deferred.dlq")) >= count, f"{count} dead letters")
    return [DeadLetter.model_validate_json(value) for value in values(broker, "callbacks.deferred.dlq")]


def redrive(broker: EmbeddedKafka) -> int:
    dead_letters = DeadLetters(broker.bootstrap)
    return dead_letters.redrive(dead_letters.plan(LetterFilter()))


def result(url: str, job_id: str = "j", tenant: str = "acme") -> ResultCompleted:
    return ResultCompleted(
        job_id=job_id,
        tenant=tenant,
        kind="answer",
        text="Sechs Umdrehungen: Gefälle.",
        finish_reason="stop",
        usage=TokenCount(prompt_tokens=1, completion_tokens=1),
        callback_url=url,
        model="m",
        timings=Timings(queued_s=0, retrieve_s=0, infer_s=0),
    )


def ended(url: str | None, state: JobState, job_id: str = "j") -> StatusChanged:
    return StatusChanged(job_id=job_id, state=state, step="answer.infer", callback_url=url, end_id=f"{job_id}/{state}")


def test_every_end_is_told_once_signed_and_the_job_stays_as_it_ended(
    broker: EmbeddedKafka, receiver: Receiver, tmp_path: Path
) -> None:
    url = receiver.url("/hook?token=s3cret")
    completed = result(url)
    ends = [
        completed,
        completed,  # written again after a crash
        ended(url, JobState.DEAD_LETTERED, "dead"),
        ended(url, JobState.CANCELLED, "cancelled"),
        ended(url, JobState.COMPLETED),
        ended(None, JobState.DEAD_LETTERED, "silent"),
    ]
    with Running(broker, tmp_path / "state"):
        produce(broker, *ends)
        receiver.wait_for(3)
        produce(broker, result(url, "last"))
        receiver.wait_for(4)
    bodies: list[dict[str, Any]] = [posted.verified() for posted in receiver.posted]
    told = {(body["type"], body["data"]["job_id"]) for body in bodies}
    assert told == {
        ("job.completed", "j"),
        ("job.dead_lettered", "dead"),
        ("job.cancelled", "cancelled"),
        ("job.completed", "last"),
    }
    assert len(receiver.posted) == len({posted.webhook_id for posted in receiver.posted}) == 4
    (told_of_j,) = (body for body in bodies if body["data"]["job_id"] == "j")
    assert told_of_j["data"]["text"] == "Sechs Umdrehungen: Gefälle."
    assert len(values(broker, "jobs.status")) == 4  # the test's own
    assert values(broker, "callbacks.deferred.dlq") == []


def test_a_job_that_ends_again_after_a_redrive_is_told_again(
    broker: EmbeddedKafka, receiver: Receiver, tmp_path: Path
) -> None:
    """As any flow ends it, whose replay of the same message after a crash is no other end."""
    request = RequestSubmitted(job_id="j", prompt="Why?", callback_url=receiver.url())
    outbox = ReliableProducer(broker.bootstrap).outbox()
    with Running(broker, tmp_path / "state"):
        for offset, reason in ((3, "no model"), (3, "no model"), (9, "still no model")):
            letter = bury(job_of(request), record(request, offset=offset), GaveUp(reason), step="answer.infer")
            for each in letter_records(letter, step="answer.dlq", tracer=NoTracing()):
                outbox.send(each)
        outbox.flush()
        first, second = (posted.verified() for posted in receiver.wait_for(2))
        produce(broker, result(receiver.url("/last")))
        receiver.wait_for(1, "/last")
    assert len(receiver.to("/hook")) == len({posted.webhook_id for posted in receiver.to("/hook")}) == 2
    assert {first["data"]["detail"], second["data"]["detail"]} == {"no model", "still no model"}
    assert first["type"] == second["type"] == "job.dead_lettered"
    assert first["data"]["retryable"] is True


def test_what_fails_is_tried_again_under_the_same_id_until_it_is_taken(
    broker: EmbeddedKafka, receiver: Receiver, tmp_path: Path
) -> None:
    async def hang(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    receiver.answers["/hook"] = in_turn(answering(503), hang, answering(302, {"Location": "http://10.0.0.1/"}), taken)
    with Running(broker, tmp_path / "state", timeout_s=0.5):
        produce(broker, result(receiver.url()))
        posted = receiver.wait_for(4)
    assert len({each.webhook_id for each in posted}) == len({each.body for each in posted}) == 1
    for each in posted:
        each.verified()
    attempts = sorted(callbacks(broker), key=lambda each: each.attempts)
    assert [each.attempts for each in attempts] == [0, 1, 2, 3]
    reasons = ["", "answered 503", "did not answer within 0.5 s", "redirects are not followed"]
    assert all(reason in each.failure for reason, each in zip(reasons, attempts, strict=True))


def test_after_the_last_attempt_there_is_a_dead_letter_whose_redrive_begins_anew(
    broker: EmbeddedKafka, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.answers["/s3cret"] = answering(500)
    with Running(broker, tmp_path / "state"):
        produce(broker, ended(receiver.url("/s3cret"), JobState.DEAD_LETTERED))
        (letter,) = letters(broker)
        assert len(receiver.to("/s3cret")) == len(QUICK) + 1
        assert (letter.step, letter.retryable, letter.ends_job, letter.attempts) == ("webhooks.deliver", True, False, 4)
        assert "not delivered at 4 attempts" in letter.message
        assert "s3cret" not in letter.message
        assert len(values(broker, "jobs.status")) == 1
        receiver.answers["/s3cret"] = in_turn(answering(500), answering(500), taken)
        assert redrive(broker) == 1
        posted = receiver.wait_for(len(QUICK) + 4, "/s3cret")
        assert len({each.webhook_id for each in posted}) == 1
    assert len(letters(broker)) == 1


def test_a_receiver_that_is_gone_is_not_asked_again(broker: EmbeddedKafka, receiver: Receiver, tmp_path: Path) -> None:
    receiver.answers["/gone"] = answering(410)
    with Running(broker, tmp_path / "state"):
        produce(broker, result(receiver.url("/gone")))
        (letter,) = letters(broker)
        produce(broker, result(receiver.url("/hook"), "another"))
        receiver.wait_for(1)
    assert (letter.error_class, letter.attempts, letter.ends_job) == ("poison", 1, False)
    assert len(receiver.to("/gone")) == 1


def test_nothing_is_sent_to_an_address_that_is_not_public(
    broker: EmbeddedKafka, receiver: Receiver, tmp_path: Path
) -> None:
    with Running(broker, tmp_path / "state", addresses=PublicAddresses(look_up=names(["127.0.0.1"]))):
        produce(broker, result(receiver.url(host="127.0.0.1")), result(receiver.url(), "by name"))
        found = letters(broker, 2)
    assert all("not public" in letter.message and letter.error_class == "poison" for letter in found)
    assert receiver.posted == []


def test_a_tenant_without_a_secret_is_told_by_its_dead_letter_and_redriven_when_it_has_one(
    broker: EmbeddedKafka, receiver: Receiver, tmp_path: Path
) -> None:
    with Running(broker, tmp_path / "state", secrets={"other": SECRET}):
        produce(broker, result(receiver.url()))
        (letter,) = letters(broker)
    assert "HEADRACE_WEBHOOK_SECRETS" in letter.message
    assert receiver.posted == []
    with Running(broker, tmp_path / "state", secrets={"acme": OTHER_SECRET}):
        assert redrive(broker) == 1
        (posted,) = receiver.wait_for(1)
    posted.verified(OTHER_SECRET)


def test_what_waits_for_its_next_attempt_survives_a_restart(
    broker: EmbeddedKafka, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.answers["/hook"] = in_turn(answering(503), taken)
    with Running(broker, tmp_path / "state", waits_s=(10.0, *NEVER)):
        produce(broker, result(receiver.url()))
        receiver.wait_for(1)
        until(lambda: len(callbacks(broker)) == 2, "a second attempt to wait for")
        produce(broker, result(receiver.url("/other"), "other"))  # read after it, so that it has been taken up
        receiver.wait_for(1, "/other")
    assert len(receiver.to("/hook")) == 1
    with Running(broker, tmp_path / "state"):
        receiver.wait_for(2)
        assert len({posted.webhook_id for posted in receiver.to("/hook")}) == 1
    assert len(receiver.posted) == 3


def test_a_receiver_that_hangs_holds_up_nobody_else(broker: EmbeddedKafka, receiver: Receiver, tmp_path: Path) -> None:
    """Three hundred callbacks of one tenant to an endpoint that never answers, and one of another to a good one."""
    hanging = 0
    most = 0

    async def hang(_request: web.Request) -> web.StreamResponse:
        nonlocal hanging, most
        hanging += 1
        most = max(most, hanging)
        try:
            await asyncio.sleep(60)
        finally:
            hanging -= 1
        return web.Response()

    receiver.answers["/dead"] = hang
    dead = receiver.url("/dead", host="dead.example.org")
    with Running(broker, tmp_path / "state", waits_s=NEVER, timeout_s=15.0):
        produce(broker, *(result(dead, f"dead {n}", "patient") for n in range(300)))
        receiver.wait_for(8, "/dead")
        began = time.monotonic()
        produce(broker, *(result(receiver.url("/good"), f"good {n}") for n in range(20)))
        receiver.wait_for(20, "/good")
        took_s = time.monotonic() - began
        assert most == 8
    assert took_s < 14.0  # less than one call to the dead one


def test_unreadable_ends_stop_nothing(broker: EmbeddedKafka, receiver: Receiver, tmp_path: Path) -> None:
    outbox = ReliableProducer(broker.bootstrap).outbox()
    outbox.send(OutgoingRecord("results.completed", b"victim", b'{"job_id": "victim", "callback_url": 5}'))
    outbox.send(OutgoingRecord("jobs.status", b"victim", b'{"job_id": "victim", "callback_url": 5}'))
    outbox.send(OutgoingRecord("jobs.status", b"victim", b"\xff\xff"))  # no concern of ours
    outbox.flush()
    with Running(broker, tmp_path / "state"):
        produce(broker, result(receiver.url()))
        receiver.wait_for(1)
        until(lambda: bool(values(broker, "jobs.status.dlq")), "a dead letter")
    for topic in ("results.completed.dlq", "jobs.status.dlq"):
        (value,) = values(broker, topic)
        assert not DeadLetter.model_validate_json(value).ends_job
    assert len(values(broker, topic_of(StatusChanged).name)) == 2
