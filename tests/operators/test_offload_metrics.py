"""What metrics say of a step whose calls fail, wait and succeed."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main
from prometheus_client import REGISTRY

from connectors.kafka.port import Topics
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.envelope import Envelope
from operators.offload import OffloadPolicy, offload
from operators.produce import produce
from operators.runtime import Runtime
from schemas.documents import DocumentIndexed, DocumentUploaded
from schemas.errors import Poison, Retryable, Unavailable
from tests.memory_topics import MemoryTopics, record

POLICY = OffloadPolicy(capacity=2, backlog=8, timeout_s=5.0, attempts=3, backoff_base_s=0.01, backoff_cap_s=0.05)
GOOD = 4


class Work:
    """Fails by the name of the job, and looks at the step's gauges meanwhile."""

    def __init__(self, step: str) -> None:
        self._step = step
        self.seen: list[tuple[float, float]] = []
        self._failed: set[str] = set()

    async def __call__(self, envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
        body = envelope.body
        await asyncio.sleep(0.01)
        self.seen.append((gauge("offload_in_flight", self._step), gauge("offload_waiting", self._step)))
        if body.job_id == "poison":
            raise Poison("never")
        if body.job_id == "hopeless" or (body.job_id == "again" and body.job_id not in self._failed):
            self._failed.add(body.job_id)
            raise Retryable("503")
        if body.job_id == "away" and body.job_id not in self._failed:
            self._failed.add(body.job_id)
            raise Unavailable("refused")
        return DocumentIndexed(job_id=body.job_id, document_id=body.document_id, chunks=1, model="m")


def gauge(name: str, step: str) -> float:
    return REGISTRY.get_sample_value(f"headrace_{name}", {"step": step}) or 0.0


def total(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"headrace_{name}", labels) or 0.0


@pytest.fixture
def ran(runtime_on: Callable[[Topics], Runtime]) -> tuple[str, Work]:
    """The step's name, and its work, after a flow has ended in all ways."""
    flow = Dataflow(f"flow{uuid4().hex[:8]}")
    names = [*("poison", "hopeless", "again", "away"), *(f"good{n}" for n in range(GOOD))]
    uploads = [DocumentUploaded(job_id=name, document_id=name, text="text") for name in names]
    runtime = runtime_on(MemoryTopics([record(upload, offset=n) for n, upload in enumerate(uploads)], batch_size=8))
    step = f"{flow.flow_id}.work"
    work = Work(step)
    uploaded = consume("uploaded", flow, DocumentUploaded, runtime)
    worked = offload("work", uploaded.oks, work, body=DocumentUploaded, policy=replace(POLICY), runtime=runtime)
    produce("indexed", worked.oks, DocumentIndexed, runtime)
    dead_letter("dlq", uploaded.errs, worked.errs, runtime=runtime)
    run_main(flow)
    return step, work


def test_attempts_are_counted_by_what_they_ended_with(ran: tuple[str, Work]) -> None:
    step, _ = ran
    ends = ("ok", "retryable", "unavailable", "poison", "fatal", "cancelled", "deadline")
    counted = {end: total("attempts_total", step=step, outcome=end) for end in ends}
    made = {"ok": GOOD + 2, "retryable": 1 + POLICY.attempts, "unavailable": 1, "poison": 1}
    assert counted == made | {"fatal": 0, "cancelled": 0, "deadline": 0}


def test_each_call_is_timed_and_each_message_from_its_first_call_to_its_end(ran: tuple[str, Work]) -> None:
    step, work = ran
    assert total("call_seconds_count", step=step) == len(work.seen)
    assert total("dispatched_to_stored_seconds_count", step=step) == GOOD + 4
    assert total("call_seconds_sum", step=step) >= 0.01 * len(work.seen)


def test_states_are_timed_each_time(ran: tuple[str, Work]) -> None:
    step, work = ran
    times = {
        state: total("state_seconds_count", step=step, state=state) for state in ("running", "waiting", "retrying")
    }
    assert times == {"running": len(work.seen), "waiting": len(work.seen), "retrying": POLICY.attempts - 1 + 2}
    assert total("state_seconds_sum", step=step, state="waiting") > 0.01  # two slots for eight messages


def test_gauges_show_calls_and_what_waits_and_are_back_at_zero_at_the_end(ran: tuple[str, Work]) -> None:
    step, work = ran
    assert max(running for running, _ in work.seen) == POLICY.capacity
    assert max(waiting for _, waiting in work.seen) >= GOOD
    assert gauge("offload_in_flight", step) == gauge("offload_waiting", step) == 0


def test_dead_letters_are_counted_by_topic_step_and_class(ran: tuple[str, Work]) -> None:
    step, _ = ran
    letters = {
        kind: total("dead_letters_total", topic="documents.uploaded", step=step, error_class=kind)
        for kind in ("retryable", "poison")
    }
    assert letters == {"retryable": 1, "poison": 1}
