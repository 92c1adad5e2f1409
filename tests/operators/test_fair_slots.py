"""Slots are bounded, shared round-robin, and never lost."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from operators.fair_slots import FairSlots


def test_a_burst_of_one_tenant_delays_another_by_one_turn_only() -> None:
    async def run() -> list[str]:
        slots = FairSlots(1)
        served: list[str] = []

        async def work(tenant: str, number: int) -> None:
            async with slots.slot(tenant):
                served.append(f"{tenant}{number}")
                await asyncio.sleep(0)

        burst = [asyncio.create_task(work("a", number)) for number in range(100)]
        await asyncio.sleep(0)
        late = [asyncio.create_task(work("b", number)) for number in range(2)]
        await asyncio.gather(*burst, *late)
        return served

    served = asyncio.run(run())
    assert served.index("b0") <= 3
    assert served.index("b1") <= 5
    assert [item for item in served if item[0] == "a"] == [f"a{number}" for number in range(100)]


@given(
    capacity=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["enter", "cancel", "leave", "run"]))),
)
def test_whatever_is_cancelled_no_slot_is_lost_and_none_is_made(capacity: int, steps: list[tuple[str, str]]) -> None:
    async def run() -> None:
        slots = FairSlots(capacity)
        leave: list[asyncio.Event] = []
        tasks: list[asyncio.Task[None]] = []
        inside = 0

        async def hold(tenant: str, done: asyncio.Event) -> None:
            nonlocal inside
            async with slots.slot(tenant):
                inside += 1
                try:
                    assert inside <= capacity
                    await done.wait()
                finally:
                    inside -= 1

        for number, (tenant, step) in enumerate(steps):
            if step == "enter":
                leave.append(asyncio.Event())
                tasks.append(asyncio.create_task(hold(tenant, leave[-1])))
            elif step == "run":
                await asyncio.sleep(0)
            elif tasks and step == "cancel":
                tasks[number % len(tasks)].cancel()
            elif tasks:
                leave[number % len(leave)].set()
        for done in leave:
            done.set()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert ended is None or isinstance(ended, asyncio.CancelledError)
        everybody = [asyncio.create_task(slots.acquire("x")) for _ in range(capacity)]
        await asyncio.wait_for(asyncio.gather(*everybody), 10)

    asyncio.run(run())
