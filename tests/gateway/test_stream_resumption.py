"""However gateways read the topics, and wherever a watcher is cut off: it is told all of it, once."""

import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, aclosing, closing
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.kafka.record import Record
from gateway.hub import Hub
from gateway.read_model import ReadModel
from gateway.stream import Said, told
from gateway.told import Position
from schemas.deltas import TextDelta
from schemas.jobs import JobState
from tests.gateway.records import delta, record, result, status

JOB = "j"
CALLS = ("first", "second", "third")


@dataclass
class Topics:
    """What three topics hold, each in its order, and which call of the model counts in the end."""

    statuses: list[Record]
    deltas: list[Record]
    results: list[Record]
    call_id: str

    @property
    def lanes(self) -> list[list[Record]]:
        return [self.statuses, self.deltas, self.results]


@st.composite
def topics(draw: st.DrawFn) -> Topics:
    """A job with one to three calls, each begun before the former had ended; those go on telling, and some repeat."""
    offset = draw(st.integers(0, 3))
    running = draw(st.integers(0, 4))
    states = [JobState.RUNNING] * running + [JobState.COMPLETED] + [JobState.RETRYING] * draw(st.integers(0, 1))
    statuses = [record(status(JOB, state), offset + index) for index, state in enumerate(states)]
    calls = CALLS[: draw(st.integers(1, 3))]
    left = {call: list(range(draw(st.integers(1, 5)))) for call in calls}
    length = {call: len(numbers) for call, numbers in left.items()}
    told: list[TextDelta] = []
    begun = 0
    while any(left.values()):
        may = [call for index, call in enumerate(calls) if left[call] and index <= begun]
        call = draw(st.sampled_from(may))
        number = left[call].pop(0)
        if call == calls[begun] and begun + 1 < len(calls):
            begun += 1
        event = delta(JOB, call, number, last=number == length[call] - 1)
        told += [event] * draw(st.sampled_from([1, 1, 1, 2]))
    deltas = [record(event, offset * 2 + index) for index, event in enumerate(told)]
    answer = result(JOB, calls[-1])
    results = [record(answer, index) for index in range(draw(st.integers(1, 2)))]
    others = [record(status("other"), offset + len(states))]
    return Topics(statuses + others, deltas, results, calls[-1])


@dataclass
class Gateway:
    """One gateway, which reads the topics in an order of its own."""

    read_model: ReadModel
    left: list[list[Record]]
    hub: Hub = field(default_factory=Hub)

    def read_on(self, lane: int, most: int) -> None:
        """Take up to so many records of one topic, or of the next one that has any."""
        for index in (lane, lane + 1, lane + 2):
            batch = self.left[index % 3][:most]
            if batch:
                del self.left[index % 3][:most]
                self.hub.publish(self.read_model.apply(batch))
                return


@dataclass
class Watcher:
    """A client, and all that it was told."""

    said: list[Said] = field(default_factory=list)

    @property
    def after(self) -> Position:
        return Position.parse(self.said[-1].id) if self.said else Position()

    @property
    def over(self) -> bool:
        return bool(self.said) and self.said[-1].event == "end"

    def of(self, event: str) -> list[dict[str, object]]:
        return [json.loads(said.data) for said in self.said if said.event == event]


# What happens: a gateway reads on, or the watcher is connected to one and takes so many messages at most.
STEPS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 6)), max_size=12)


async def watch(watcher: Watcher, gateway: Gateway, most: int | None) -> None:
    """Be connected until so many messages have come, or nothing comes for a moment; without a limit, to the end."""
    async with aclosing(told(gateway.read_model, gateway.hub, JOB, watcher.after)) as batches:
        while not watcher.over and (most is None or most > 0):
            try:
                batch = await asyncio.wait_for(anext(batches), 10.0 if most is None else 0.002)
            except TimeoutError:
                assert most is not None, "the stream does not end"
                return
            except StopAsyncIteration:
                return
            taken = batch[:most]  # the others are lost with the connection
            watcher.said += taken
            most = None if most is None else most - len(taken)


async def follow(gateways: Sequence[Gateway], steps: Sequence[tuple[int, int, int]]) -> Watcher:
    watcher = Watcher()
    for which, lane, most in steps:
        gateway = gateways[which % len(gateways)]
        if which == 2 and not watcher.over:
            connected = asyncio.create_task(watch(watcher, gateways[lane % 2], most))
            await asyncio.sleep(0)
            gateway.read_on(lane, most)
            await connected
        else:
            gateway.read_on(lane, most)
    last = gateways[len(steps) % 2]
    connected = asyncio.create_task(watch(watcher, last, None))
    while any(last.left):
        last.read_on(len(steps), 2)
        await asyncio.sleep(0)
    await connected
    return watcher


@settings(max_examples=120)
@given(topics(), STEPS)
def test_nothing_is_lost_or_told_twice_across_disconnects_and_gateways(
    written: Topics, steps: list[tuple[int, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        gateways = [
            Gateway(
                stack.enter_context(closing(ReadModel(Path(directory) / f"{name}.sqlite"))),
                [list(lane) for lane in written.lanes],
            )
            for name in ("a", "b")
        ]
        watcher = asyncio.run(follow(gateways, steps))
    said = watcher.said
    assert [each.event for each in said].count("end") == 1
    assert said[-1].event == "end"
    assert json.loads(said[-1].data) == {"job_id": JOB, "state": "completed"}
    written_statuses = [json.loads(each.value or b"") for each in written.statuses[:-1]]
    told_statuses = watcher.of("status")
    assert told_statuses == written_statuses[: len(told_statuses)]
    assert "completed" in [each["state"] for each in told_statuses]
    assert watcher.of("result") == [json.loads(written.results[0].value or b"")]
    assert whole_text(watcher.of("delta")) == whole_text(
        [json.loads(each.value or b"") for each in written.deltas if written.call_id.encode() in (each.value or b"")],
        repeats=True,
    )


def whole_text(deltas: Sequence[dict[str, object]], *, repeats: bool = False) -> str:
    """What a client makes of deltas; fails on a piece that belongs to another call, or leaves one out."""
    text, call_id, number = "", None, -1
    for each in deltas:
        if repeats and each["number"] == number:
            continue
        if each["number"] == 0:
            text, call_id, number = "", each["call_id"], -1
        assert (each["call_id"], each["number"]) == (call_id, number + 1)
        number += 1
        text += str(each["text"])
    return text
