"""An outage opens the circuit, one bad item never does, and whoever waits is woken."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from connectors.circuit import Circuit, CircuitPolicy, CircuitState
from schemas.errors import Retryable, Unavailable

QUICK = CircuitPolicy(items=3, cooldown_s=0.01, cooldown_cap_s=0.04, retry_after_cap_s=0.2)
DOWN = Unavailable("refused")
FAILED = Retryable("500")


def on_loop(test: Callable[[Circuit], Awaitable[None]], policy: CircuitPolicy = QUICK) -> None:
    asyncio.run(asyncio.wait_for(_run(test, policy), 30))


async def _run(test: Callable[[Circuit], Awaitable[None]], policy: CircuitPolicy) -> None:
    await test(Circuit("thing", policy))


async def fail(circuit: Circuit, item: str, error: Retryable) -> bool:
    async with circuit.permit(item) as permit:
        return permit.failed(error)


async def succeed(circuit: Circuit, item: str = "good") -> None:
    async with circuit.permit(item) as permit:
        permit.succeeded()


def test_a_call_that_could_not_begin_opens_it_at_once_and_counts_for_no_item() -> None:
    async def test(circuit: Circuit) -> None:
        assert not await fail(circuit, "a", DOWN)
        assert circuit.state is CircuitState.OPEN

    on_loop(test)


def test_different_items_failing_in_a_row_open_it() -> None:
    async def test(circuit: Circuit) -> None:
        assert await fail(circuit, "a", FAILED)
        assert await fail(circuit, "b", FAILED)
        assert not await fail(circuit, "c", FAILED)
        assert circuit.state is CircuitState.OPEN

    on_loop(test)


def test_one_item_that_fails_again_and_again_never_opens_it() -> None:
    async def test(circuit: Circuit) -> None:
        for _ in range(100):
            assert await fail(circuit, "bad", FAILED)
        assert circuit.state is CircuitState.CLOSED

    on_loop(test)


def test_a_success_in_between_starts_the_count_anew() -> None:
    async def test(circuit: Circuit) -> None:
        for item in "abcdefgh":
            assert await fail(circuit, item, FAILED)
            await succeed(circuit)
        assert circuit.state is CircuitState.CLOSED

    on_loop(test)


def test_while_it_is_half_open_one_probe_is_under_way_and_its_success_wakes_everybody() -> None:
    async def test(circuit: Circuit) -> None:
        await fail(circuit, "a", DOWN)
        inside: list[str] = []
        most = 0
        probed = asyncio.Event()

        async def call(item: str) -> None:
            nonlocal most
            async with circuit.permit(item) as permit:
                inside.append(item)
                if circuit.state is CircuitState.HALF_OPEN:
                    most = max(most, len(inside))
                    probed.set()
                    for _ in range(20):
                        await asyncio.sleep(0)
                permit.succeeded()

        await asyncio.gather(*(call(str(n)) for n in range(50)))
        assert probed.is_set()
        assert (most, len(inside)) == (1, 50)
        assert circuit.state is CircuitState.CLOSED

    on_loop(test)


def test_probes_that_fail_cost_no_item_an_attempt_and_the_wait_grows_to_its_cap() -> None:
    async def test(circuit: Circuit) -> None:
        clock = asyncio.get_running_loop().time
        await fail(circuit, "a", DOWN)
        waits: list[float] = []
        for _ in range(8):
            began = clock()
            assert not await fail(circuit, "a", FAILED)
            waits.append(clock() - began)
        assert min(waits[4:]) >= QUICK.cooldown_cap_s / 2

    on_loop(test)


def test_a_thousand_probes_later_it_still_works() -> None:
    async def test(circuit: Circuit) -> None:
        await fail(circuit, "a", DOWN)
        for _ in range(1100):
            await fail(circuit, "a", DOWN)
        await succeed(circuit)
        assert circuit.state is CircuitState.CLOSED

    on_loop(test, CircuitPolicy(cooldown_s=1e-6, cooldown_cap_s=1e-5))


@pytest.mark.parametrize(("asked_s", "at_least_s"), [(0.1, 0.1), (3600.0, 0.2)])
def test_retry_after_is_obeyed_up_to_a_cap(asked_s: float, at_least_s: float) -> None:
    async def test(circuit: Circuit) -> None:
        began = asyncio.get_running_loop().time()
        await fail(circuit, "a", Unavailable("busy", retry_after_s=asked_s))
        await succeed(circuit)
        assert asyncio.get_running_loop().time() - began >= at_least_s

    on_loop(test)


def test_a_probe_that_made_no_call_lets_the_next_one_try() -> None:
    async def test(circuit: Circuit) -> None:
        await fail(circuit, "a", DOWN)
        async with circuit.permit("a"):
            waiting = asyncio.create_task(succeed(circuit))
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting
        assert circuit.state is CircuitState.CLOSED

    on_loop(test)


def test_a_waiter_that_is_cancelled_takes_nobodys_turn() -> None:
    async def test(circuit: Circuit) -> None:
        await fail(circuit, "a", DOWN)
        waiting = [asyncio.create_task(succeed(circuit, str(n))) for n in range(10)]
        await asyncio.sleep(0)
        for task in waiting[:9]:
            task.cancel()
        await waiting[9]
        assert circuit.state is CircuitState.CLOSED

    on_loop(test)


def test_its_state_is_a_metric_and_a_line_in_the_log() -> None:
    def metric() -> float | None:
        return REGISTRY.get_sample_value("headrace_circuit_state", {"dependency": "thing"})

    async def test(circuit: Circuit) -> None:
        with capture_logs() as lines:
            assert metric() == 0
            await fail(circuit, "a", DOWN)
            assert metric() == 2
            await fail(circuit, "a", DOWN)
            await succeed(circuit)
            assert metric() == 0
        assert [line["event"] for line in lines] == ["circuit opened", "circuit closed"]
        assert lines[0]["dependency"] == "thing"

    on_loop(test)
