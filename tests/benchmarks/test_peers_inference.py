import asyncio

import aiohttp
import pytest

from benchmarks.peers.inference.trial import Load, repeated, seen
from tests.chaos.oracle import Call, Kill
from tests.llm_server import LLMServer, Plan, serve

LOAD = Load(jobs=4, latency_s=(1.0, 3.0), slots=2, patience_s=10.0)


def call(job_id: str, began_at: float, ended_at: float | None, *, number: int = 1, fault: str | None = None) -> Call:
    return Call(job_id, number, fault or "answered", fault, (1, 1), began_at, ended_at)


def test_server_with_full_slots_and_no_gap_is_ideal() -> None:
    calls = [call("a", 0, 2), call("b", 0, 2), call("c", 2, 4), call("d", 2, 4)]
    found = seen({each.job_id: [each] for each in calls}, LOAD)
    assert found["of_ideal"] == 1.0
    assert found["of_schedule"] == 1.0
    assert found["throughput_per_s"] == 1.0
    assert found["of_ideal_with_ends"] == 1.0  # two slots over two seconds


def test_slot_that_stays_empty_while_jobs_wait_is_lost() -> None:
    calls = [call("a", 0, 2), call("b", 0, 2), call("c", 2, 4), call("d", 4, 6)]
    found = seen({each.job_id: [each] for each in calls}, LOAD)
    assert found["of_ideal"] == 0.75
    assert found["of_schedule"] == pytest.approx(0.667)


def test_call_in_flight_at_the_kill_may_be_made_again() -> None:
    kill = Kill("half-way", 10.0, 10.1)
    found = repeated({"a": [call("a", 9.0, 10.05), call("a", 12.0, 13.0, number=2)]}, kill)
    assert found == {"duplicated_calls": 1, "duplicated_calls_outside_window": 0, "in_flight_at_kill": 1}


def test_call_answered_long_before_the_kill_may_not() -> None:
    kill = Kill("half-way", 10.0, 10.1)
    found = repeated({"a": [call("a", 3.0, 5.0), call("a", 12.0, 13.0, number=2)]}, kill)
    assert found == {"duplicated_calls": 1, "duplicated_calls_outside_window": 1, "in_flight_at_kill": 0}


def test_retry_after_a_told_failure_is_no_duplicate() -> None:
    kill = Kill("half-way", 10.0, 10.1)
    found = repeated({"a": [call("a", 3.0, 5.0, fault="503"), call("a", 6.0, 7.0, number=2)]}, kill)
    assert found["duplicated_calls"] == 0


def test_server_draws_faults_by_job_whoever_calls_first() -> None:
    async def faults(order: list[str]) -> dict[str, str | None]:
        server = LLMServer(Plan(fault_share=0.5, faults=("503",), by_job=True))
        runner, url = await serve(server)
        body = {"messages": [{"role": "user", "content": "What is it?"}]}
        try:
            async with aiohttp.ClientSession() as session:
                for job_id in order:
                    headers = {"Idempotency-Key": f"{job_id}/0/0"}
                    async with session.post(f"{url}/chat/completions", json=body, headers=headers) as response:
                        await response.read()
        finally:
            await runner.cleanup()
        return {call.job_id: call.fault for call in server.calls}

    jobs = [f"job-{number}" for number in range(20)]
    found = asyncio.run(faults(jobs))
    assert asyncio.run(faults(jobs[::-1])) == found
    assert set(found.values()) == {None, "503"}
