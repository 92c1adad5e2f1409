"""What watchers are told, and when they are sent away."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from gateway import hub as hub_module
from gateway import stream
from gateway.hub import Hub, StreamEnds, TooSlow
from gateway.read_model import ReadModel
from gateway.stream import Said, appears, serve_websocket, sse_response, told, wait_for_end
from gateway.told import Position
from schemas.event import utc_now
from schemas.jobs import JobState
from schemas.requests import RequestSubmitted
from tests.gateway.records import delta, record, records, result, status

ASKED = RequestSubmitted(job_id="j", tenant="acme", prompt="How many?")


@pytest.fixture
def read_model(tmp_path: Path) -> Iterator[ReadModel]:
    with closing(ReadModel(tmp_path / "read_model.sqlite")) as opened:
        yield opened


@pytest.fixture
def hub() -> Hub:
    return Hub()


async def all_said(read_model: ReadModel, hub: Hub, after: Position | None = None) -> list[Said]:
    return [said async for batch in told(read_model, hub, "j", after or Position()) for said in batch]


def test_an_ended_job_is_told_whole(read_model: ReadModel, hub: Hub) -> None:
    deltas = [delta("j", "c", 0), delta("j", "c", 1, last=True)]
    read_model.apply(records(ASKED, status("j"), *deltas, result("j", "c"), status("j", JobState.COMPLETED)))
    said = asyncio.run(all_said(read_model, hub))
    assert sorted(each.event for each in said) == ["delta", "delta", "end", "result", "status", "status"]
    assert (said[-1].event, said[-1].id) == ("end", "s2.d2.r1")
    resumed = asyncio.run(all_said(read_model, hub, Position.parse(said[-1].id)))
    assert [each.event for each in resumed] == ["end"]
    assert hub.watching == 0


@pytest.mark.parametrize(
    "text", ["", "s1.d2", "s1.d2.r3 ", "s-1.d2.r3", "s1.d2.r3\n", "s٣.d2.r3", "s" + "1" * 20 + ".d0.r0"]
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no position in a stream"):
        Position.parse(text)


def test_an_end_waits_for_what_comes_from_other_topics_but_not_for_ever(
    read_model: ReadModel, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "GRACE_S", 0.2)
    read_model.apply(records(ASKED, status("j", JobState.COMPLETED)))

    async def watch() -> None:
        began = asyncio.get_running_loop().time()
        watching = asyncio.create_task(all_said(read_model, hub))
        while not hub.watching:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        hub.publish(read_model.apply([record(result("j", "c"), 0)]))
        said = await watching
        assert [each.event for each in said] == ["status", "result", "end"]
        assert asyncio.get_running_loop().time() - began >= 0.2  # the call's last delta never came

    asyncio.run(watch())


def test_an_end_waits_for_longer_while_the_projection_is_behind(
    read_model: ReadModel, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "GRACE_S", 0.0)
    hub.behind_s = 0.5
    read_model.apply(records(ASKED, status("j", JobState.COMPLETED), delta("j", "c", 0)))

    async def watch() -> list[Said]:
        watching = asyncio.create_task(all_said(read_model, hub))
        while not hub.watching:
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        hub.publish(read_model.apply([record(delta("j", "c", 1, last=True), 1), record(result("j", "c"), 0)]))
        return await watching

    assert [said.event for said in asyncio.run(watch())][-3:] == ["delta", "result", "end"]


def test_what_ended_long_ago_ends_at_once(read_model: ReadModel, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "GRACE_S", 60.0)
    long_ago = utc_now() - timedelta(hours=1)
    ended = status("j", JobState.COMPLETED).model_copy(update={"occurred_at": long_ago})
    read_model.apply(records(ended))
    said = asyncio.run(asyncio.wait_for(all_said(read_model, hub), 10.0))
    assert [each.event for each in said] == ["status", "end"]


def test_silence_is_broken_by_heartbeats(read_model: ReadModel, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.02)
    read_model.apply(records(ASKED))

    async def watch() -> None:
        async with aclosing(told(read_model, hub, "j", Position())) as batches:
            assert [list(await anext(batches)) for _ in range(3)] == [[], [], []]
        assert hub.watching == 0

    asyncio.run(watch())


def test_a_watcher_that_is_too_slow_is_sent_away_and_comes_back_for_the_rest(
    read_model: ReadModel, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "MOST_EVENTS", 20)
    read_model.apply(records(ASKED, delta("j", "c", 0)))

    async def watch() -> None:
        numbers: list[int] = []
        async with aclosing(told(read_model, hub, "j", Position())) as batches:
            (first,) = await anext(batches)
            numbers.append(json.loads(first.data)["number"])
            for number in range(1, 100):
                hub.publish(read_model.apply([record(delta("j", "c", number), number)]))
            await asyncio.sleep(0)
            with pytest.raises(TooSlow):
                await anext(batches)
        ends = [status("j", JobState.COMPLETED), result("j", "c")]
        read_model.apply([*records(*ends), record(delta("j", "c", 100, last=True), 100)])
        rest = await all_said(read_model, hub, Position.parse(first.id))
        numbers += [json.loads(said.data)["number"] for said in rest if said.event == "delta"]
        assert numbers == list(range(101))

    asyncio.run(watch())


@pytest.mark.parametrize("how", [Hub.close, Hub.send_away])
def test_watchers_are_sent_away_without_an_end(read_model: ReadModel, hub: Hub, how: Callable[[Hub], None]) -> None:
    read_model.apply(records(ASKED))

    async def watch() -> None:
        watching = asyncio.create_task(all_said(read_model, hub))
        while not hub.watching:
            await asyncio.sleep(0)
        await asyncio.to_thread(how, hub)
        with pytest.raises(StreamEnds):
            await watching

    asyncio.run(watch())


def test_a_job_that_is_redriven_goes_on(read_model: ReadModel, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "GRACE_S", 0.1)
    gave_up = status("j", JobState.DEAD_LETTERED)
    read_model.apply(records(ASKED, gave_up))
    said = asyncio.run(all_said(read_model, hub))
    assert json.loads(said[-1].data) == {"job_id": "j", "state": "dead_lettered"}
    later = replace(record(status("j", JobState.COMPLETED), 1))
    read_model.apply([later, record(result("j"), 0)])
    again = asyncio.run(all_said(read_model, hub, Position.parse(said[-1].id)))
    assert [each.event for each in again] == ["status", "result", "end"]


def test_whoever_waits_for_the_end_gets_it_with_the_result(read_model: ReadModel, hub: Hub) -> None:
    async def wait() -> None:
        waiting = asyncio.create_task(wait_for_end(read_model, hub, "j", 10.0))
        read_model.note(ASKED)
        for part in records(status("j", JobState.COMPLETED), result("j", "c")):
            await asyncio.sleep(0.01)
            assert not waiting.done()
            hub.publish(read_model.apply([part]))
        row = await waiting
        assert row is not None
        assert row.state == "completed"
        assert await wait_for_end(read_model, hub, "j", 0.0) == row
        assert await wait_for_end(read_model, hub, "nobody", 0.01) is None

    asyncio.run(wait())


def test_a_job_appears_when_another_gateway_has_just_accepted_it(read_model: ReadModel, hub: Hub) -> None:
    async def wait() -> None:
        waiting = asyncio.create_task(appears(read_model, hub, "j", 10.0))
        await asyncio.sleep(0.01)
        hub.publish(read_model.apply(records(ASKED)))
        row = await waiting
        assert row is not None
        assert row.tenant == "acme"
        assert await appears(read_model, hub, "nobody", 0.01) is None
        assert hub.watching == 0

    asyncio.run(wait())


def application(read_model: ReadModel, hub: Hub) -> Starlette:
    async def events(request: Request) -> Response:
        return sse_response(read_model, hub, "j", Position.parse(request.headers["last-event-id"]))

    async def messages(websocket: WebSocket) -> None:
        await websocket.accept()
        await serve_websocket(websocket, read_model, hub, "j", Position())

    return Starlette(routes=[Route("/events", events), WebSocketRoute("/ws", messages)])


def test_server_sent_events_are_framed_as_they_should_be(read_model: ReadModel, hub: Hub) -> None:
    answer = result("j", text="One\n\nevent: end\r\ndata: two\u2028")
    read_model.apply(records(ASKED, status("j"), answer, status("j", JobState.COMPLETED)))

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(application(read_model, hub))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.get("/events", headers={"Last-Event-ID": "s1.d0.r0"})

    response = asyncio.run(get())
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    frames = [frame.split("\n") for frame in response.content.decode().split("\n\n")]
    assert frames.pop() == [""]
    named = [dict(line.split(": ", 1) for line in frame) for frame in frames]
    assert sorted(frame["event"] for frame in named) == ["end", "result", "status"]
    assert named[-1]["event"] == "end"
    (told_result,) = [json.loads(frame["data"]) for frame in named if frame["event"] == "result"]
    assert told_result["text"] == answer.text
    assert {frame["id"] for frame in named[-1:]} == {"s2.d0.r1"}


def test_a_websocket_tells_the_same_and_closes(read_model: ReadModel, hub: Hub) -> None:
    read_model.apply(records(ASKED, status("j"), result("j"), status("j", JobState.COMPLETED)))
    with TestClient(application(read_model, hub)) as client, client.websocket_connect("/ws") as websocket:
        websocket.send_text("nobody listens to this")
        messages = [websocket.receive_json() for _ in range(4)]
        assert sorted(message["event"] for message in messages) == ["end", "result", "status", "status"]
        assert messages[-1] == {"id": "s2.d0.r1", "event": "end", "data": {"job_id": "j", "state": "completed"}}
        assert websocket.receive()["code"] == 1000


def test_a_websocket_that_leaves_is_no_longer_watched(read_model: ReadModel, hub: Hub) -> None:
    read_model.apply(records(ASKED, status("j")))
    with TestClient(application(read_model, hub)) as client:
        with client.websocket_connect("/ws") as websocket:
            assert websocket.receive_json()["event"] == "status"
            assert hub.watching == 1
        assert hub.watching == 0
