"""JSON bodies of requests, read so that they can do no harm."""

from pydantic_core import from_json
from starlette.requests import Request

from gateway.problems import Fault, Problem

JsonObject = dict[str, object]


async def read_json(request: Request, max_bytes: int) -> JsonObject:
    """The body as a JSON object; an empty one if there is no body. Raises Problem: 413, 415, 400.

    Nesting of more than 200 levels, numbers of thousands of digits, NaN and lone surrogates are refused.
    """
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise Problem(415, "media-type", "send application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise Problem(413, "too-large", f"the body has more than {max_bytes} bytes")
    if not body.strip():
        return {}
    try:
        found = from_json(bytes(body), allow_inf_nan=False)
    except ValueError as error:
        raise Problem(400, "malformed", f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise Problem(400, "malformed", "the body is no JSON object")
    return found


def text_of(fields: JsonObject, name: str) -> str | None:
    """A field that is a string, if it is there. Raises Problem (422) if it is something else."""
    found = fields.get(name)
    if found is not None and not isinstance(found, str):
        raise wrong(name, "should be a string")
    return found


def wrong(field: str, message: str) -> Problem:
    """One field of the body is."""
    return Problem(422, "invalid", f"{field}: {message}", faults=[Fault(field, message)])
