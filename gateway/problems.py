"""Errors over HTTP: problem details (RFC 9457), which say what is wrong and the way out, and never what was sent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

from schemas.errors import HeadraceError, Poison, Retryable

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5.0  # where whoever failed does not say


@dataclass(frozen=True)
class Fault:
    """One field that is wrong."""

    field: str
    message: str


class Problem(Exception):
    """What a request ends in. `slug` names its type: /problems/<slug>."""

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.faults = tuple(faults)
        self.headers = dict(headers or {})

    def body(self, instance: str) -> dict[str, object]:
        """The JSON object."""
        fields: dict[str, object] = {
            "type": f"/problems/{self.slug}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
        }
        if self.faults:
            fields["errors"] = [{"field": fault.field, "message": fault.message} for fault in self.faults]
        return fields

    def response(self, instance: str) -> Response:
        """What is sent."""
        return JSONResponse(self.body(instance), self.status, self.headers, media_type=MEDIA_TYPE)


class FieldError(BaseModel):
    """One field that is wrong."""

    field: str = Field(description="Path of the field: `messages.0.role`.")
    message: str = Field(description="What is wrong with it.")


class ProblemDetails(BaseModel):
    """Problem details, RFC 9457."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "/problems/unknown-job",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "there is no job q-1",
                    "instance": "/v1/jobs/q-1",
                }
            ]
        }
    )

    type: str = Field(description="Names the kind of problem.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong, and the way out.")
    instance: str = Field(description="Path of the request.")
    errors: list[FieldError] | None = Field(default=None, description="With 400 and 422: which fields are wrong.")


DESCRIPTIONS = {
    400: "The request cannot be read.",
    401: "An API key is needed, or this one is unknown.",
    403: "This key, or this page, may not do that.",
    404: "There is no such thing, or it is another tenant's.",
    409: "That is not possible any more.",
    411: "The length of the body is not known.",
    413: "The body is too large.",
    415: "The body's media type is not supported.",
    422: "A field is wrong.",
    429: "Too many requests; `Retry-After` says when to go on.",
    503: "Kafka, or what else is needed, is out of reach; `Retry-After` says when to try again.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the problems of a route; those of authentication are in every one."""
    return {
        status: {
            "description": DESCRIPTIONS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for status in sorted({400, 401, 403, 422, 429, *statuses})
    }


def unavailable(error: Retryable) -> Problem:
    """Nothing was accepted: the same request may work later."""
    wait_s = RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
    return Problem(503, "unavailable", str(error), headers={"Retry-After": str(max(1, math.ceil(wait_s)))})


def invalid(error: ValidationError | RequestValidationError, *, at: str = "the body") -> Problem:
    """Fields that are wrong, without what was sent in them."""
    faults = []
    for each in error.errors() if isinstance(error, RequestValidationError) else error.errors(include_input=False):
        path = each["loc"][1:] if isinstance(error, RequestValidationError) else each["loc"]  # without `query`, `body`
        place = ".".join(str(part) for part in path) or at
        message = str(each["msg"]).removeprefix("Value error, ")
        faults.append(Fault(place[:200], message[:500]))
    first = faults[0] if faults else Fault(at, "not as expected")
    return Problem(422, "invalid", f"{first.field}: {first.message}", faults=faults[:50])


def install(app: FastAPI) -> None:
    """Make problems of everything that a route raises."""

    async def problem(request: Request, error: Exception) -> Response:
        return problem_of(error).response(path_of(request))

    for kind in (Problem, HTTPException, RequestValidationError, HeadraceError):
        app.add_exception_handler(kind, problem)


def path_of(connection: HTTPConnection) -> str:
    """The path as it was sent, percent-encoded, without the query."""
    raw: bytes = connection.scope.get("raw_path") or quote(connection.scope["path"]).encode()
    return raw.decode("ascii", errors="replace")


def problem_of(error: Exception) -> Problem:  # noqa: PLR0911  # one return per class
    """The problem that an exception is."""
    match error:
        case Problem():
            return error
        case HTTPException(status_code=413):
            return Problem(413, "too-large", str(error.detail), headers=error.headers)
        case HTTPException(status_code=404):
            return Problem(404, "unknown-path", "there is nothing at this path; /openapi.json lists what there is")
        case HTTPException():
            slug = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
            return Problem(error.status_code, slug, str(error.detail), headers=error.headers)
        case RequestValidationError():
            return invalid(error, at="the request")
        case Retryable():
            return unavailable(error)
        case Poison():
            return Problem(422, "refused", str(error))
        case HeadraceError():
            log.error("request failed", error=str(error), error_type=type(error).__name__)
            return Problem(500, "failed", str(error))
        case _:
            return Problem(500, "failed", "this is a bug of the gateway; its log has more about it")
