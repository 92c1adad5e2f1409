"""The gateway's benchmark notices what a stream leaves out, and what it tells twice."""

import asyncio
import json
from collections.abc import Iterable
from urllib.parse import urlsplit

import pytest

from benchmarks.watch import Client, Watch

Told = tuple[str, dict[str, object]]

CLIENT = Client(urlsplit("http://127.0.0.1:9"), "hr_key")
RUNNING: Told = ("status", {"state": "running"})
COMPLETED: Told = ("status", {"state": "completed"})
RESULT: Told = ("result", {"text": "The gate was lifted."})
END: Told = ("end", {"state": "completed"})


def _delta(number: int, *, last: bool = False) -> Told:
    return "delta", {"number": number, "last": last, "written_at": "2026-01-01T00:00:00Z"}


WHOLE = [RUNNING, _delta(0), _delta(1), _delta(2, last=True), RESULT, COMPLETED, END]


def _watched(told: Iterable[Told], cut_every: int = 1000) -> Watch:
    """A watch that has taken these events, in pieces of so many bytes."""
    events = [f"id: s{n}\nevent: {event}\ndata: {json.dumps(data)}\n\n" for n, (event, data) in enumerate(told)]
    stream = ": keep-alive\n\n".join(events).encode()

    async def take() -> Watch:
        watch = Watch(CLIENT, "q-1")
        watch.began()
        for at in range(0, len(stream), cut_every):
            watch.took(stream[at : at + cut_every])
        return watch

    return asyncio.run(take())


@pytest.mark.parametrize("cut_every", [1, 7, 1000])
def test_a_stream_that_tells_all_has_lost_and_repeated_nothing(cut_every: int) -> None:
    watch = _watched(WHOLE, cut_every)
    assert (watch.lost, watch.repeated, watch.events, watch.state) == (0, 0, 7, "completed")


@pytest.mark.parametrize("left_out", range(len(WHOLE)))
def test_each_event_that_is_left_out_is_missed(left_out: int) -> None:
    watch = _watched(WHOLE[:left_out] + WHOLE[left_out + 1 :])
    assert (watch.lost, watch.repeated) == (1, 0)


@pytest.mark.parametrize("twice", range(len(WHOLE) - 1))
def test_each_event_that_is_told_twice_is_noticed(twice: int) -> None:
    watch = _watched([*WHOLE[: twice + 1], *WHOLE[twice:]])
    assert (watch.lost, watch.repeated) == (0, 1)


def test_a_delta_from_before_the_connection_says_nothing_about_latency() -> None:
    assert _watched(WHOLE).latencies_s == []
