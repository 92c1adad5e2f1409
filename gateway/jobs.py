"""GET and DELETE of jobs, and their streams: what the read model knows, of the caller's tenant alone."""

import asyncio
import re
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.websockets import WebSocket
from starlette.responses import JSONResponse, Response, StreamingResponse

from connectors.kafka.record import outgoing
from gateway.job_view import Cancelling, JobList, JobView, Timeline, line_of, links_of, timeline_of, view_of
from gateway.keys import Authenticated, Caller, Keys, address_of
from gateway.parts import Parts
from gateway.problems import Problem, path_of, responses
from gateway.read_model import JobRow
from gateway.sending import trace_of_request
from gateway.stream import appears, serve_websocket, sse_response, wait_for_end
from gateway.told import Position
from schemas.cancellations import REASON_MAX_CHARS, CancelRequested
from schemas.event import utc_now
from schemas.explanation import Standing, explain
from schemas.results import ResultCompleted
from schemas.trace import Trace, root_of

APPEARS_S = 0.5
"""How long an unknown job may take to become known: another gateway may just have accepted it."""

FOLLOWS_S = 1.0
"""How long the index's own event may come after the status that says that it is there: they are on two topics."""

_LOOK_S = 0.02
SUBPROTOCOL = "headrace"
_BEARER = re.compile(r"bearer\.(\S+)")


class Jobs:
    """Jobs as a caller sees them."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def visible(self, caller: Caller, job_id: str) -> JobRow:
        """The job. Raises Problem (404) if there is none, or it is another tenant's."""
        began = time.monotonic()
        row = await appears(self._parts.read_model, self._parts.hub, job_id, APPEARS_S)
        if row is None or not caller.sees(row.tenant):
            # Of both, the answer takes as long: its time says nothing about other tenants.
            await asyncio.sleep(APPEARS_S - (time.monotonic() - began))
            raise Problem(404, "unknown-job", f"there is no job {job_id[:256]!r}")
        return row

    async def view(self, row: JobRow) -> JobView:
        """All about it."""
        return await asyncio.to_thread(self._view, row)

    async def ended(self, job_id: str, wait_s: float) -> JobView | None:
        """The job once it has ended; None if it has not within so many seconds."""
        row = await wait_for_end(self._parts.read_model, self._parts.hub, job_id, wait_s)
        if row is None:
            return None
        view = await self.view(row)
        until = time.monotonic() + FOLLOWS_S
        while _lacks_its_document(view) and time.monotonic() < until:
            await asyncio.sleep(_LOOK_S)
            view = await self.view(row)
        return view

    def _view(self, row: JobRow) -> JobView:
        evidence = self._parts.read_model.evidence(row.job_id)
        if evidence is None:
            raise Problem(404, "unknown-job", f"there is no job {row.job_id!r}")
        reviews = self._parts.read_model.reviews(job_id=row.job_id, limit=1000)
        ids = [each.requested.review_id for each in reversed(reviews)]
        current = self._parts.read_model.job(row.job_id) or row
        return view_of(current, evidence, explain(evidence, now=utc_now()), ids)

    async def timeline(self, row: JobRow) -> Timeline:
        """Its story."""
        evidence = await asyncio.to_thread(self._parts.read_model.evidence, row.job_id)
        if evidence is None:
            raise Problem(404, "unknown-job", f"there is no job {row.job_id!r}")
        return timeline_of(explain(evidence, now=utc_now()))

    async def result(self, row: JobRow) -> ResultCompleted:
        """Its answer. Raises Problem (404) if there is none."""
        evidence = await asyncio.to_thread(self._parts.read_model.evidence, row.job_id)
        if evidence is None or evidence.result is None:
            raise Problem(404, "no-result", f"job {row.job_id!r} is {row.state}, and has no result")
        return evidence.result

    async def cancel(self, row: JobRow, reason: str | None, trace: Trace | None) -> Cancelling:
        """Ask for its end. Raises Problem (409) if it has ended."""
        if row.state.ended:
            raise Problem(409, "ended", f"job {row.job_id!r} is {row.state} already")
        event = CancelRequested(job_id=row.job_id, tenant=row.tenant, reason=reason)
        await self._parts.publisher.publish(outgoing(event, step="gateway", trace=trace or root_of(row.job_id)))
        return Cancelling(job_id=row.job_id, state=row.state, links=links_of(row.job_id))


def _lacks_its_document(view: JobView) -> bool:
    document = view.document
    return view.state is Standing.COMPLETED and document is not None and document.indexed_at is None


def position_of(text: str | None) -> Position:
    """Where a stream is resumed. Raises Problem (400) for what is no position."""
    if not text:
        return Position()
    try:
        return Position.parse(text)
    except ValueError as error:
        raise Problem(400, "position", str(error)) from None


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": (
            "`status`, `delta` and `result` events, whose data is the JSON of the event on Kafka, and `end`, the last. "
            "A delta with number 0 begins a new call: drop the text of an earlier one. `Last-Event-ID` resumes."
        ),
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "object",
                    "required": ["id", "event", "data"],
                    "properties": {
                        "id": {"type": "string", "description": "Where the stream is resumed: `s12.d40.r3`."},
                        "event": {"enum": ["status", "delta", "result", "end"]},
                        "data": {"type": "string", "description": "JSON."},
                    },
                },
                "example": 'id: s12.d40.r3\nevent: end\ndata: {"job_id": "q-1", "state": "completed"}\n\n',
            }
        },
    }
}


def router(parts: Parts, jobs: Jobs) -> APIRouter:  # noqa: C901  # a route each
    """The routes of jobs."""
    routes = APIRouter(prefix="/v1", tags=["jobs"])

    async def found(request: Request, caller: Caller, job_id: str) -> JobRow:
        request.scope["headrace.job_id"] = job_id  # for the access log
        return await jobs.visible(caller, job_id)

    @routes.get("/jobs", summary="List jobs", responses=responses())
    async def list_jobs(
        caller: Authenticated,
        *,
        state: Annotated[Standing | None, Query(description="Those that stand so.")] = None,
        tenant: Annotated[str | None, Query(description="Of this tenant; for a key that sees all.")] = None,
        kind: Annotated[Literal["request", "document"] | None, Query(description="Of this kind.")] = None,
        limit: Annotated[int, Query(ge=1, le=500, description="At most so many.")] = 50,
        before: Annotated[str | None, Query(max_length=2000, description="`next` of the page before.")] = None,
    ) -> JobList:
        """Show jobs, the newest first."""

        def read() -> JobList:
            page = parts.read_model.jobs(
                tenant=caller.scope(tenant), state=state, kind=kind, limit=limit, before=before
            )
            return JobList(jobs=[line_of(row) for row in page.jobs], next=page.next)

        try:
            return await asyncio.to_thread(read)
        except ValueError as error:
            raise Problem(400, "cursor", str(error)) from None

    @routes.get("/jobs/{job_id:path}/timeline", summary="A job's story", responses=responses(404))
    async def timeline(request: Request, job_id: str, caller: Authenticated) -> Timeline:
        """Tell what happened to a job, the oldest first."""
        return await jobs.timeline(await found(request, caller, job_id))

    @routes.get(
        "/jobs/{job_id:path}/result", summary="A job's answer", response_model=ResultCompleted, responses=responses(404)
    )
    async def result(request: Request, job_id: str, caller: Authenticated) -> Response:
        """Give the answer with its citations."""
        answer = await jobs.result(await found(request, caller, job_id))
        return Response(answer.encode(), media_type="application/json")

    @routes.get(
        "/jobs/{job_id:path}/events",
        summary="Watch a job",
        responses=responses(404) | _STREAM,
        response_class=StreamingResponse,
        openapi_extra={
            "parameters": [
                {
                    "name": "Last-Event-ID",
                    "in": "header",
                    "required": False,
                    "schema": {"type": "string"},
                    "description": "Resume after this event, on any gateway.",
                }
            ]
        },
    )
    async def events(
        request: Request,
        job_id: str,
        caller: Authenticated,
        last_event_id: Annotated[str | None, Query(description="The same, where headers cannot be set.")] = None,
    ) -> Response:
        """Stream what becomes of a job, as server-sent events."""
        row = await found(request, caller, job_id)
        after = position_of(request.headers.get("last-event-id") or last_event_id)
        return sse_response(parts.read_model, parts.hub, row.job_id, after)

    @routes.websocket("/jobs/{job_id:path}/ws")
    async def websocket(socket: WebSocket, job_id: str, last_event_id: str | None = None) -> None:
        """Stream the same as JSON messages."""
        try:
            caller, subprotocol = caller_of(socket, parts.keys)
            row = await jobs.visible(caller, job_id)
            after = position_of(last_event_id)
        except Problem as problem:
            await socket.send_denial_response(problem.response(path_of(socket)))
            return
        await socket.accept(subprotocol)
        await serve_websocket(socket, parts.read_model, parts.hub, row.job_id, after)

    @routes.get("/jobs/{job_id:path}", summary="Show a job", responses=responses(404))
    async def show(request: Request, job_id: str, caller: Authenticated) -> JobView:
        """Say where a job stands, what has succeeded, what can be retried, and who has to know."""
        return await jobs.view(await found(request, caller, job_id))

    @routes.delete(
        "/jobs/{job_id:path}",
        status_code=202,
        summary="Cancel a job",
        response_model=Cancelling,
        responses=responses(404, 409, 503),
    )
    async def cancel(
        request: Request,
        job_id: str,
        caller: Authenticated,
        reason: Annotated[
            str | None, Query(max_length=REASON_MAX_CHARS, description="Why; becomes part of its story.")
        ] = None,
    ) -> JSONResponse:
        """Ask for the end of a job; its flow ends it as soon as it hears of that."""
        row = await found(request, caller, job_id)
        cancelling = await jobs.cancel(row, reason, trace_of_request(request))
        return JSONResponse(cancelling.model_dump(mode="json"), 202)

    return routes


def caller_of(socket: WebSocket, keys: Keys) -> tuple[Caller, str | None]:
    """Who opens a WebSocket, and the subprotocol to accept. Raises Problem.

    A browser cannot set headers: it offers the subprotocols `headrace` and `bearer.KEY`.
    """
    offered = [each.strip() for each in socket.headers.get("sec-websocket-protocol", "").split(",") if each.strip()]
    key = socket.headers.get("x-api-key")
    scheme, _, credentials = socket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        key = credentials.strip()
    for each in offered:
        found = _BEARER.fullmatch(each)
        key = found[1] if found and key is None else key
    return keys.caller(key, address_of(socket)), SUBPROTOCOL if SUBPROTOCOL in offered else None
