"""Dead letters over HTTP: find them, look at one, and produce its message again.

Guarantee of a redrive: that of `connectors.kafka.dead_letters`. Of two through one gateway the second finds the marker
of the first, since they are done one after the other. Letters are the read model's; only a message itself is read from
Kafka, where the read model has seen it.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from connectors.kafka.dead_letters import (
    DeadLetters,
    ErrorClass,
    FoundLetter,
    LetterFilter,
    LetterPlace,
    LetterSummary,
    Offsets,
    UnknownLetter,
)
from gateway.keys import Authenticated, Caller
from gateway.problems import Problem, responses
from gateway.publisher import Publisher
from gateway.read_model import ReadModel
from schemas.dead_letter import MAX_REDRIVES
from schemas.errors import HeadraceError, Retryable, Unavailable
from schemas.event import Identifier, Timestamp
from schemas.results import TokenCount

PREVIEW_CHARS = 2000
_SEEN_S = 1.0  # for which an answer waits until lists show what it says
_POLL_S = 0.01
_RETRY_AFTER_S = 5.0
_MOST_WAITING = 20  # redrives; each takes some tenths of a second, and its caller waits

_EXAMPLE: JsonDict = {
    "id": "5c3b8f0e-9a54-5f1e-8f3e-0d7c6f1f2a11",
    "failed_at": "2026-01-31T12:00:00Z",
    "topic": "requests.submitted",
    "step": "answer.infer",
    "error_class": "retryable",
    "error_type": "Retryable",
    "message": "the model answered 500 five times",
    "attempts": 5,
    "retryable": True,
    "tenant": "acme",
    "job_id": "q-1",
    "document_id": None,
    "redrives": 0,
    "redriven_at": None,
}


class LetterList(BaseModel):
    """Dead letters, the newest first, and how many there are in all."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"dead_letters": [_EXAMPLE], "total": 1}]})

    dead_letters: list[LetterSummary]
    total: int = Field(description="How many match, shown or not.")


class ShownHeader(BaseModel):
    """A header of the original message, as text."""

    name: str
    value: str = Field(description="UTF-8; what is none is replaced.")


class LetterShown(BaseModel):
    """A dead letter without its message."""

    id: str = Field(description="Names it.")
    redriven_at: Timestamp | None = Field(description="When it was redriven; null: it was not.")
    redrives: int = Field(description="How often its message had been redriven before it failed this time.")
    job_id: Identifier
    tenant: str
    topic: str = Field(description="Topic of the original message.")
    partition: int = Field(description="Partition of the original message.")
    offset: int = Field(description="Offset of the original message.")
    message_key: str | None = Field(description="Its key as text.")
    message_headers: list[ShownHeader] = Field(description="Its headers, in order.")
    left_out_bytes: int | None = Field(description="Size of the value, if it was too large for its dead letter.")
    left_out_sha256: str | None = Field(description="Of the value that was left out.")
    produced_at: Timestamp | None = Field(description="When the message was first produced.")
    step: str = Field(description="The step that gave up.")
    error_class: ErrorClass
    error_type: str = Field(description="Name of the exception.")
    message: str = Field(description="What went wrong, and the way out.")
    attempts: int = Field(description="How often it was tried.")
    retryable: bool = Field(description="A redrive may succeed without a change to the message.")
    ends_job: bool = Field(description="False: the job itself goes on.")
    admission_id: str | None
    model: str | None = Field(description="The model whose answers were refused, if any were.")
    usage: TokenCount | None = Field(description="What these answers cost.")
    document_id: str | None
    first_failed_at: Timestamp
    failed_at: Timestamp


class LetterWithMessage(LetterShown):
    """The same with the beginning of its message."""

    message_bytes: int | None = Field(description="Size of its value; null if there is none, or it was left out.")
    message_preview: str | None = Field(
        description=f"The value as text, {PREVIEW_CHARS:,} characters at most; null if there is none."
    )


class Redriven(BaseModel):
    """The message is on its topic again."""

    redriven: int = Field(description="Letters that were redriven.", examples=[1])


class Letters:
    """The routes."""

    def __init__(self, read_model: ReadModel, publisher: Publisher, letters: DeadLetters) -> None:
        self._read_model = read_model
        self._publisher = publisher
        self._letters = letters
        self._one_at_a_time = ThreadPoolExecutor(1, "redrive")
        self._waiting = 0  # by the event loop alone

    def router(self) -> APIRouter:
        """Under /v1."""
        router = APIRouter(tags=["dead letters"])
        router.add_api_route("/dead-letters", self.list_letters, responses=responses())
        router.add_api_route("/dead-letters/{letter_id}", self.show_letter, responses=responses(404, 503))
        router.add_api_route(
            "/dead-letters/{letter_id}/redrive",
            self.redrive_letter,
            methods=["POST"],
            status_code=202,
            responses=responses(404, 409, 503),
        )
        return router

    def list_letters(
        self,
        caller: Authenticated,
        tenant: str | None = None,
        job_id: Identifier | None = None,
        step: Annotated[str | None, Query(description="`answer.infer`, or all of a flow: `answer`.")] = None,
        error_class: ErrorClass | None = None,
        redriven: Annotated[bool, Query(description="Also those that were redriven.")] = False,  # noqa: FBT002  # a query parameter
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> LetterList:
        """The newest dead letters."""
        wanted = LetterFilter(tenant=caller.scope(tenant), job_id=job_id, step=step, error_class=error_class)
        found = self._read_model.letters(wanted, include_redriven=redriven, limit=limit)
        return LetterList(dead_letters=list(found.letters), total=found.total)

    def show_letter(
        self,
        caller: Authenticated,
        letter_id: str,
        message: Annotated[bool, Query(description="With the beginning of its message.")] = False,  # noqa: FBT002  # a query parameter
    ) -> LetterWithMessage | LetterShown:
        """One dead letter."""
        known = self._read_model.positions()
        found, at = self._visible(caller, letter_id)
        shown = _shown(found)
        if not message:
            return shown
        self._publisher.ensure_reachable()
        try:
            value = self._letters.find(letter_id, at=at, unmarked_before=known).letter.message_value
        except UnknownLetter as error:
            raise _unknown() from error
        size = None if value is None else len(value)
        return LetterWithMessage(**dict(shown), message_bytes=size, message_preview=_preview(value))

    async def redrive_letter(self, caller: Authenticated, letter_id: str) -> Redriven:
        """Produce its message again, as it was. A letter is redriven once."""
        known = self._read_model.positions()  # before it is asked whether the letter was redriven up to there
        found, at = self._visible(caller, letter_id)
        if found.redriven_at is not None:
            raise _already()
        self._publisher.ensure_reachable()
        if self._waiting >= _MOST_WAITING:
            raise Unavailable(f"{self._waiting} redrives are under way; ask again", retry_after_s=1.0)
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            redriven = await loop.run_in_executor(self._one_at_a_time, self._redrive, letter_id, at, known)
        finally:
            self._waiting -= 1
        await self._seen(letter_id)
        return Redriven(redriven=redriven)

    def _visible(self, caller: Caller, letter_id: str) -> tuple[FoundLetter, LetterPlace]:
        found = self._read_model.letter(letter_id)
        if found is None or not caller.sees(found[0].letter.tenant):
            raise _unknown()
        return found

    def _redrive(self, letter_id: str, at: LetterPlace, known: Offsets) -> int:
        try:
            plan = self._letters.plan(LetterFilter(), [letter_id], at=at, unmarked_before=known)
            if plan.already_redriven:
                raise _already()
            if plan.without_message:
                raise Problem(409, "no-message", "its message was too large for it: send the message again instead")
            if plan.capped:
                raise Problem(
                    409,
                    "redriven-too-often",
                    f"its message was redriven {MAX_REDRIVES} times: what failed so often has another cause; headrace "
                    "dlq redrive --max-redrives insists",
                )
            redriven = self._letters.redrive(plan)
        except UnknownLetter as error:
            raise _unknown() from error
        except HeadraceError as error:
            if isinstance(error.__cause__, Retryable):  # of a redrive, which says how far it came
                raise Unavailable(str(error), retry_after_s=_RETRY_AFTER_S) from error
            raise
        if not redriven:
            raise _unknown()
        return redriven

    async def _seen(self, letter_id: str) -> None:
        until = time.monotonic() + _SEEN_S
        while time.monotonic() < until:
            found = self._read_model.letter(letter_id)
            if found is None or found[0].redriven_at is not None:
                return
            await asyncio.sleep(_POLL_S)


def _unknown() -> Problem:
    return Problem(
        404, "unknown-dead-letter", "there is no such dead letter, or no more; GET /v1/dead-letters lists all"
    )


def _already() -> Problem:
    return Problem(409, "already-redriven", "this dead letter was redriven already; what failed again has a new one")


def _preview(value: bytes | None) -> str | None:
    return None if value is None else value[: PREVIEW_CHARS * 4].decode(errors="replace")[:PREVIEW_CHARS]


def _shown(found: FoundLetter) -> LetterShown:
    letter = found.letter
    fields = dict(letter) | {
        "id": letter.event_id,
        "redriven_at": found.redriven_at,
        "redrives": letter.redrives,
        "message_key": None if letter.message_key is None else letter.message_key.decode(errors="replace"),
        "message_headers": [
            ShownHeader(name=header.name, value=header.value.decode(errors="replace"))
            for header in letter.message_headers
        ],
    }
    return LetterShown(**fields)
