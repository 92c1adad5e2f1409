"""POST /v1/requests and /v1/documents: validate, publish, answer 202.

Guarantee: whatever was answered with 202 is durable in Kafka. With an `Idempotency-Key` the same request is the same
job, however often it comes: published once as far as this gateway knows, and again by one that does not know yet, which
the flows drop as a repeat. Without a key, `job_id` says so, or is derived from the content.
"""

import asyncio
import hashlib
import json
from collections import OrderedDict
from dataclasses import replace
from time import time
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from connectors.kafka.record import outgoing
from connectors.tracing.port import Attribute, Span, new_span_id
from gateway.body import JsonObject, read_json, text_of, wrong
from gateway.job_view import Accepted, JobView, links_of
from gateway.jobs import Jobs
from gateway.keys import Authenticated, Caller
from gateway.parts import Parts
from gateway.problems import Problem, invalid, responses
from gateway.read_model import BODY_SHA256_HEADER
from gateway.sending import Sending
from gateway.upload import FIELDS, Form, Received, boundary_of, receive
from schemas.documents import DocumentUploaded
from schemas.event import derive_id, utc_now
from schemas.requests import RequestSubmitted
from schemas.trace import Trace, root_of

_RECENT = 50_000  # jobs with a key that are remembered until the read model certainly knows them; some 15 MB
Submitted = RequestSubmitted | DocumentUploaded


class Acceptance:
    """Publishes what is wanted, each once if it has a key."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._recent: OrderedDict[str, str] = OrderedDict()  # SHA-256 of what was sent, by job
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def publish(self, event: Submitted, sending: Sending, sent: JsonObject) -> Trace | None:
        """The job's trace, once the event is durable; None: it was before, in whichever trace that was.

        Raises Problem, and what the publisher raises.
        """
        came, tracer = sending.trace or root_of(event.job_id), self._parts.tracer
        if not tracer.on or not came.sampled:
            return came if await self._accept(event, sending, sent, came) else None
        own, failed = came.child(new_span_id()), None
        try:
            return own if await self._accept(event, sending, sent, own) else None
        except BaseException as error:
            failed = type(error).__name__
            raise
        finally:
            name = "POST /v1/requests" if isinstance(event, RequestSubmitted) else "POST /v1/documents"
            parent_id = None if sending.trace is None else came.span_id
            said: dict[str, Attribute] = {"headrace.job_id": event.job_id, "headrace.tenant": event.tenant}
            tracer.record(Span(name, own, parent_id, sending.began_at, time(), "server", said, failed))

    async def _accept(self, event: Submitted, sending: Sending, sent: JsonObject, trace: Trace) -> bool:
        turn = self._turns.setdefault(event.job_id, asyncio.Lock())
        async with turn:
            self._refuse_anothers(event)
            if sending.key is None:
                await self._publish(event, trace, None)
                return True
            digest = hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()
            known = self._recent.get(event.job_id) or await self._digest_of(event)
            if known is None:
                await self._publish(event, trace, digest)
                self._recent[event.job_id] = digest
                if len(self._recent) > _RECENT:
                    self._recent.popitem(last=False)
                return True
            if known != digest:
                raise Problem(
                    422, "key-reused", "this Idempotency-Key came with another body before: send a key of its own"
                )
            return False

    async def _digest_of(self, event: Submitted) -> str | None:
        return await asyncio.to_thread(self._parts.read_model.body_sha256, event.job_id)

    def _refuse_anothers(self, event: Submitted) -> None:
        """Jobs that it names may be another tenant's: whoever can guess an id can also have taken it before."""
        if self._is_anothers(event.job_id, event.tenant):
            raise Problem(
                409, "job-id-taken", "the id of this job cannot be used: choose another job_id, or Idempotency-Key"
            )
        if isinstance(event, RequestSubmitted):  # what is under a root counts against its limits
            for name, job_id in (("parent_job_id", event.parent_job_id), ("root_job_id", event.root_job_id)):
                if job_id is not None and self._is_anothers(job_id, event.tenant):
                    raise wrong(name, "this is no job of this tenant's")

    def _is_anothers(self, job_id: str, tenant: str) -> bool:
        row = self._parts.read_model.job(job_id)
        return row is not None and row.tenant != tenant

    async def _publish(self, event: Submitted, trace: Trace, digest: str | None) -> None:
        record = outgoing(event, step="gateway", trace=trace)
        if digest is not None:
            record = replace(record, headers=(*record.headers, (BODY_SHA256_HEADER, digest.encode())))
        await self._parts.publisher.publish(record)
        self._parts.read_model.note(event, body_sha256=digest)


def _job_id(kind: str, tenant: str, sending: Sending, given: str | None) -> dict[str, str]:
    """The field `job_id`, if anything is said about it; else it is derived from the content."""
    if sending.key is None:
        return {} if given is None else {"job_id": given}
    if given is not None:
        raise wrong("job_id", "leave it out beside an Idempotency-Key, which names the job")
    return {"job_id": derive_id("idempotency", tenant, kind, sending.key)}


def request_of(caller: Caller, fields: JsonObject, sending: Sending, parts: Parts) -> RequestSubmitted:
    """The event of a request. Raises Problem."""
    tenant = caller.acting_for(text_of(fields, "tenant"))
    job_id = _job_id("request", tenant, sending, text_of(fields, "job_id"))
    known = {name: value for name, value in fields.items() if name != "job_id" and value is not None}
    try:
        event = RequestSubmitted.model_validate(known | {"tenant": tenant} | job_id)
    except ValidationError as error:
        raise invalid(error) from None
    if event.callback_url is not None:
        _check_callback(event.callback_url, tenant, parts)
    return event


def _check_callback(url: str, tenant: str, parts: Parts) -> None:
    """Its address is judged when it is called."""
    try:
        parsed = urlsplit(url)
        good = parsed.scheme in {"http", "https"} and bool(parsed.hostname)
    except ValueError:
        good = False
    if not good:
        raise wrong("callback_url", "an absolute http or https URL is needed")
    if not parts.limits.signs_callbacks(tenant):
        raise wrong(
            "callback_url", "this tenant has no secret to sign callbacks with; HEADRACE_WEBHOOK_SECRETS holds them"
        )


def document_of(caller: Caller, fields: JsonObject, sending: Sending, parts: Parts) -> DocumentUploaded:
    """The event of a document that is sent as JSON. Raises Problem."""
    tenant = caller.acting_for(text_of(fields, "tenant"))
    job_id = _job_id("document", tenant, sending, text_of(fields, "job_id"))
    now = {"uploaded_at": utc_now()}  # what is sent again, or deleted again, is another job
    known = {name: value for name, value in fields.items() if name != "job_id" and value is not None}
    try:
        event = DocumentUploaded.model_validate(now | known | {"tenant": tenant} | job_id)
    except ValidationError as error:
        raise invalid(error) from None
    if event.uri is not None and not caller.sees_all:
        key = parts.store.key_of(event.uri)
        if key is not None and not key.startswith(f"uploads/{tenant}/"):
            raise wrong("uri", "this object is not this tenant's upload")
    return event


def upload_of(caller: Caller, form: Form, sending: Sending, uri: str) -> DocumentUploaded:
    """The event of a document that was sent as a file. Raises Problem."""
    tenant = caller.acting_for(form.fields.get("tenant"))
    collection = form.fields.get("collection", "documents")
    document_id = form.fields.get("document_id")
    if document_id is None:
        if form.filename is None:
            raise wrong("document_id", "needed where the file has no name")
        document_id = derive_id("upload", tenant, collection, form.filename)
    try:
        return DocumentUploaded.model_validate(
            {
                "tenant": tenant,
                "collection": collection,
                "document_id": document_id,
                "uri": uri,
                "sha256": form.sha256,
                **_job_id("document", tenant, sending, None),
            }
        )
    except ValidationError as error:
        raise invalid(error) from None


async def _received(
    request: Request, boundary: bytes, caller: Caller, sending: Sending, parts: Parts
) -> tuple[DocumentUploaded, JsonObject]:
    """Store a file; its event, and what was sent."""
    max_bytes = parts.limits.max_document_bytes

    def named(form: Form) -> str:
        upload_of(caller, form, sending, "file:///checked")  # nothing is stored for what is refused
        return form.key(caller.acting_for(form.fields.get("tenant")))

    got: Received = await receive(request.stream(), boundary, parts.store, max_bytes=max_bytes, named=named)
    sent: JsonObject = {**got.form.fields, "filename": got.form.filename, "sha256": got.form.sha256}
    return upload_of(caller, got.form, sending, got.uri), sent


_HEADERS = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 256},
        "description": "The same request under the same key is the same job; another one is refused with 422.",
    },
    {
        "name": "Prefer",
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": "`wait=N`: wait for the end of the job, N seconds at most (120); 200 with the job, or 202.",
        "example": "wait=30",
    },
    {
        "name": "traceparent",
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": "W3C trace context: the trace that the job becomes a part of; `traceresponse` names it.",
    },
]
_REQUEST_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/RequestSubmitted"},
            "example": {"prompt": "How often is the filter changed?", "collection": "documents"},
        }
    },
}
_DOCUMENT_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/DocumentUploaded"},
            "example": {"document_id": "note-1", "text": "The filter is changed every 400 hours."},
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "additionalProperties": False,
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "The document."},
                    **{name: {"type": "string", "maxLength": 256} for name in sorted(FIELDS)},
                },
            }
        },
    },
}
_ANSWERS = responses(409, 413, 415, 503) | {
    200: {"model": JobView, "description": "With `Prefer: wait`: the job has ended."},
    202: {"model": Accepted, "description": "Durable in Kafka."},
}


def router(parts: Parts, jobs: Jobs) -> APIRouter:
    """The routes that accept."""
    routes = APIRouter(prefix="/v1", tags=["submit"])
    acceptance = Acceptance(parts)

    async def answer(request: Request, event: Submitted, sending: Sending, trace: Trace | None) -> Response:
        request.scope["headrace.job_id"] = event.job_id  # for the access log
        headers: dict[str, str] = {}
        if trace is not None:
            request.scope["headrace.trace_id"] = trace.trace_id
            headers["traceresponse"] = trace.traceparent
        if sending.wait_s:
            job = await jobs.ended(event.job_id, sending.wait_s)
            if job is not None:
                headers |= {"Preference-Applied": f"wait={sending.wait_s}", "Content-Location": job.links["self"]}
                return JSONResponse(job.model_dump(mode="json"), 200, headers)
        document_id = event.document_id if isinstance(event, DocumentUploaded) else None
        accepted = Accepted(job_id=event.job_id, document_id=document_id, links=links_of(event.job_id))
        headers |= {"Location": accepted.links["self"]}
        return JSONResponse(accepted.model_dump(mode="json", exclude_none=True), 202, headers)

    @routes.post(
        "/requests",
        status_code=202,
        summary="Ask",
        responses=_ANSWERS,
        response_class=JSONResponse,
        openapi_extra={"requestBody": _REQUEST_BODY, "parameters": _HEADERS},
    )
    async def submit_request(request: Request, caller: Authenticated) -> Response:
        """Submit a request; the answer comes later, over links.events, or as links.result."""
        parts.publisher.ensure_reachable()
        sending = Sending.of(request)
        fields = await read_json(request, parts.limits.max_body_bytes)
        event = request_of(caller, fields, sending, parts)
        trace = await acceptance.publish(event, sending, fields)
        return await answer(request, event, sending, trace)

    @routes.post(
        "/documents",
        status_code=202,
        summary="Upload",
        responses=_ANSWERS,
        response_class=JSONResponse,
        openapi_extra={"requestBody": _DOCUMENT_BODY, "parameters": _HEADERS},
    )
    async def submit_document(request: Request, caller: Authenticated) -> Response:
        """Submit a document: as a file, or as JSON with its text or URI; `op: delete` removes one."""
        parts.publisher.ensure_reachable()  # before a large file is taken for nothing
        sending = Sending.of(request)
        boundary = boundary_of(request.headers.get("content-type", ""))
        event: DocumentUploaded
        if boundary is None:
            sent = await read_json(request, parts.limits.max_body_bytes)
            event = document_of(caller, sent, sending, parts)
        else:
            event, sent = await _received(request, boundary, caller, sending, parts)
        trace = await acceptance.publish(event, sending, sent)
        return await answer(request, event, sending, trace)

    return routes
