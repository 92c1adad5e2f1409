"""Reviews over HTTP: what guards have stopped, and a person's decision for it, which is an event like any other.

Guarantee: a decision that was answered with 202 is durable on `reviews.decided`. Of two decisions the first counts: the
second is refused with 409, unless both are made through different gateways at the same moment; then the flow drops it.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from connectors.kafka.record import outgoing
from connectors.kafka.reviews import Decision, Review, decision_of
from gateway.body import read_json
from gateway.keys import Authenticated, Caller
from gateway.problems import Problem, invalid, responses
from gateway.publisher import Publisher
from gateway.read_model import ReadModel
from schemas.errors import Fatal
from schemas.event import utc_now
from schemas.reviews import NOTE_MAX_CHARS, ReviewDecided, ReviewRequested
from schemas.trace import parse, root_of

CONSOLE = "console"
"""The reviewer that is recorded where no tenant's key was used."""
MOST_ALLOWED = 10**12
MAX_BODY_BYTES = 32_768
"""A note of 2,000 characters, each escaped as a pair of \\uXXXX, and some room."""
_SEEN_S = 1.0  # for which an answer waits until lists show what it says
_POLL_S = 0.01

Conversation = Callable[[ReviewRequested], str | None]
"""Reads the conversation of the request that was stopped; None if its message is gone. Blocking."""


_EXAMPLE: JsonDict = {
    "tenant": "acme",
    "job_id": "q-9",
    "review_id": "0b7c2f5e-2a4d-5b1c-9a77-6f3f1c1f5d20",
    "root_job_id": "q-1",
    "limit": "depth",
    "value": 9,
    "allowed": 8,
    "reason": "depth 9; 8 are allowed",
    "depth": 9,
    "ancestors": [{"job_id": "q-1", "depth": 0}],
    "prompt_chars": 1200,
    "origin": "requests.submitted/3/1041",
    "expires_at": "2026-02-07T12:00:00Z",
    "requested_at": "2026-01-31T12:00:00Z",
    "standing": "open",
    "decided": None,
}


class ReviewShown(ReviewRequested):
    """A job that a guard has stopped, and what became of it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    standing: Literal["open", "expired", "cancelled", "approved", "rejected"] = Field(description="What became of it.")
    decided: ReviewDecided | None = Field(description="The decision; null while it is open, and if there was none.")


class ReviewWithPrompt(ReviewShown):
    """The same with the conversation that was stopped."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [_EXAMPLE | {"prompt": "user: How often is the filter changed?"}]}
    )

    prompt: str | None = Field(description="`role: content`, turn by turn; null if its message is gone.")


class ReviewList(BaseModel):
    """Reviews, the newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reviews": [_EXAMPLE]}]})

    reviews: list[ReviewShown]


class Approval(BaseModel):
    """The job goes on, once."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"allowed": 12, "note": "a long chain"}]})

    allowed: Annotated[int, Field(ge=0, le=MOST_ALLOWED)] | None = Field(
        default=None, description="The limit from now on; what this job needs, `value`, is the least, and the default."
    )
    note: Annotated[str, Field(max_length=NOTE_MAX_CHARS)] | None = Field(
        default=None, description="Why; becomes part of the job's story."
    )


class Rejection(BaseModel):
    """The job ends."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"note": "it asks itself in a circle"}]})

    note: str = Field(min_length=1, max_length=NOTE_MAX_CHARS, description="Why; becomes part of the job's story.")


B = TypeVar("B", bound=BaseModel)

Traceparent = Annotated[str | None, Header(description="W3C trace context; passed on to Kafka.")]


class Reviews:
    """The routes."""

    def __init__(self, read_model: ReadModel, publisher: Publisher, conversation: Conversation) -> None:
        self._read_model = read_model
        self._publisher = publisher
        self._conversation = conversation
        self._deciding: set[str] = set()  # reviews; by the event loop alone

    def router(self) -> APIRouter:
        """Under /v1."""
        router = APIRouter(tags=["reviews"])
        router.add_api_route("/reviews", self.list_reviews, responses=responses())
        router.add_api_route("/reviews/{review_id}", self.show_review, responses=responses(404, 503))
        routes = (("approve", self.approve_review, Approval), ("reject", self.reject_review, Rejection))
        for path, route, body in routes:
            router.add_api_route(
                f"/reviews/{{review_id}}/{path}",
                route,
                methods=["POST"],
                status_code=202,
                responses=responses(404, 409, 413, 415, 503),
                openapi_extra=_documented(body),
            )
        return router

    def list_reviews(
        self,
        caller: Authenticated,
        state: Literal["open", "all"] = "open",
        tenant: str | None = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> ReviewList:
        """What waits for a decision, or all that ever did."""
        found = self._read_model.reviews(
            tenant=caller.scope(tenant), state="open" if state == "open" else None, limit=limit
        )
        return ReviewList(reviews=[_shown(each) for each in found])

    def show_review(
        self,
        caller: Authenticated,
        review_id: str,
        prompt: Annotated[bool, Query(description="With the conversation that was stopped.")] = False,  # noqa: FBT002  # a query parameter
    ) -> ReviewWithPrompt | ReviewShown:
        """One review."""
        review = self._visible(caller, review_id)
        shown = _shown(review)
        if not prompt:
            return shown
        self._publisher.ensure_reachable()
        return ReviewWithPrompt(**dict(shown), prompt=self._conversation(review.requested))

    async def approve_review(
        self, caller: Authenticated, request: Request, review_id: str, traceparent: Traceparent = None
    ) -> ReviewShown:
        """Let the job go on, once."""
        approval = await _body(request, Approval)
        return await self._decide(caller, review_id, "approve", approval.allowed, approval.note, traceparent)

    async def reject_review(
        self, caller: Authenticated, request: Request, review_id: str, traceparent: Traceparent = None
    ) -> ReviewShown:
        """End the job."""
        rejection = await _body(request, Rejection)
        return await self._decide(caller, review_id, "reject", None, rejection.note, traceparent)

    def _visible(self, caller: Caller, review_id: str) -> Review:
        review = self._read_model.review(review_id)
        if review is None or not caller.sees(review.requested.tenant):
            raise Problem(404, "unknown-review", "there is no such review; GET /v1/reviews?state=all lists all")
        return review

    async def _decide(
        self,
        caller: Caller,
        review_id: str,
        decision: Decision,
        allowed: int | None,
        note: str | None,
        traceparent: str | None,
    ) -> ReviewShown:
        review, now = self._visible(caller, review_id), utc_now()
        standing = "being decided" if review_id in self._deciding else review.standing(now)
        if standing != "open":
            raise Problem(409, "review-over", f"this review is {standing} already")
        reviewer = CONSOLE if caller.sees_all else caller.tenant
        try:
            event = decision_of(review, decision, now, allowed=allowed, note=note, reviewer=reviewer)
        except Fatal as error:
            raise Problem(422, "invalid", str(error)) from error
        trace = parse(traceparent or "") or root_of(event.job_id)
        self._deciding.add(review_id)
        try:
            await self._publisher.publish(outgoing(event, step="gateway", trace=trace))
            return _shown(await self._decided(review_id) or Review(review.requested, event))
        finally:
            self._deciding.remove(review_id)

    async def _decided(self, review_id: str) -> Review | None:
        """The review as lists show it now; None if they take longer to."""
        until = time.monotonic() + _SEEN_S
        while time.monotonic() < until:
            review = self._read_model.review(review_id)
            if review is not None and review.decided is not None:
                return review
            await asyncio.sleep(_POLL_S)
        return None


def _shown(review: Review) -> ReviewShown:
    return ReviewShown(**dict(review.requested), standing=review.standing(utc_now()), decided=review.decided)


async def _body(request: Request, model: type[B]) -> B:
    """What was sent, as far as it is bounded and right. Raises Problem."""
    fields = await read_json(request, MAX_BODY_BYTES)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid(error) from error


def _documented(model: type[BaseModel]) -> dict[str, object]:
    """The body of a route that reads it by itself, for OpenAPI."""
    required = any(field.is_required() for field in model.model_fields.values())
    return {
        "requestBody": {"required": required, "content": {"application/json": {"schema": model.model_json_schema()}}}
    }
