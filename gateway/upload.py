"""A document that is sent as multipart/form-data, straight into the object store.

Guarantee: memory stays below a few MB whatever is sent; the object is there as a whole or not at all, under a name made
of its tenant, content and file name, so that the same file sent again is the same object.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from connectors.object_store import ObjectStore, ObjectWriter
from gateway.problems import Problem

FIELDS = frozenset({"document_id", "collection", "tenant"})
MOST_PARTS = 16
FIELD_MAX_BYTES = 4096
NAME_MAX_CHARS = 100
_BLOCK_BYTES = 1 << 20  # what is gathered between two writes
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass
class Form:
    """What was sent: small fields as they are, and what the file was."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    size_bytes: int = 0
    sha256: str = ""

    def key(self, tenant: str) -> str:
        """Of the object. Its last part is the file's name, for citations and parsers."""
        name = _UNSAFE.sub("_", self.filename or "").lstrip(".")[-NAME_MAX_CHARS:].lstrip(".")
        return f"uploads/{tenant}/{self.sha256}/{name or 'document'}"


@dataclass(frozen=True)
class Received:
    """A file in the object store."""

    uri: str
    form: Form


def boundary_of(content_type: str) -> bytes | None:
    """Of a multipart/form-data body; None if it is something else."""
    media_type, options = parse_options_header(content_type)
    return options.get(b"boundary", b"") if media_type == b"multipart/form-data" else None


async def receive(
    body: AsyncIterator[bytes],
    boundary: bytes,
    store: ObjectStore,
    *,
    max_bytes: int,
    named: Callable[[Form], str],
) -> Received:
    """Store the one file of a body. `named` gives the object's key once all has been read; it may refuse by raising.

    Raises Problem for what is no such body, too large or empty, and what the object store raises.
    """
    async with store.writing() as writer:
        reading = _Reading(writer, max_bytes)
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": reading.begin,
                    "on_header_field": reading.header_name,
                    "on_header_value": reading.header_value,
                    "on_header_end": reading.header_end,
                    "on_headers_finished": reading.headers_end,
                    "on_part_data": reading.data,
                    "on_part_end": reading.end,
                    "on_end": reading.finish,
                },
            )
            async for chunk in body:
                parser.write(chunk)
                await reading.store(at_least=_BLOCK_BYTES)
            parser.finalize()
        except FormParserError as error:
            raise Problem(400, "malformed", f"the body is no multipart/form-data: {error}") from error
        if not reading.ended:
            raise Problem(400, "malformed", "the body ends in the middle of a part")
        await reading.store(at_least=0)
        form = reading.form()
        return Received(await writer.finish(named(form)), form)


class _Reading:
    """What the parser tells, part by part. Its methods are the parser's callbacks."""

    def __init__(self, writer: ObjectWriter, max_bytes: int) -> None:
        self.ended = False
        self._writer = writer
        self._max_bytes = max_bytes
        self._form = Form()
        self._digest = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._gathered_bytes = 0
        self._parts = 0
        self._has_file = False
        self._header_name = b""
        self._header_value = b""
        self._disposition = ""
        self._field: str | None = None  # the part is this field; None: it is the file
        self._value = b""

    def begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise Problem(400, "malformed", f"the body has more than {MOST_PARTS} parts")
        self._disposition = ""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value.decode("latin-1")
        self._header_name = self._header_value = b""

    def headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", errors="replace")
        if name == "file":
            if self._has_file:
                raise Problem(422, "invalid", "file: one document at a time")
            self._has_file = True
            self._field = None
            filename = options.get(b"filename")
            self._form.filename = None if not filename else filename.decode("utf-8", errors="replace")
        elif name in FIELDS:
            self._field, self._value = name, b""
        else:
            known = ", ".join(sorted(FIELDS))
            raise Problem(422, "invalid", f"the parts are `file` and, if wanted, {known}; this body has another one")

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._field is not None:
            self._value += data[start:end]
            if len(self._value) > FIELD_MAX_BYTES:
                raise Problem(413, "too-large", f"{self._field} has more than {FIELD_MAX_BYTES} bytes")
            return
        self._form.size_bytes += end - start
        if self._form.size_bytes > self._max_bytes:
            raise Problem(413, "too-large", f"the document has more than {self._max_bytes} bytes")
        self._pieces.append(data[start:end])
        self._gathered_bytes += end - start

    def end(self) -> None:
        if self._field is None:
            return
        try:
            self._form.fields[self._field] = self._value.decode()
        except UnicodeDecodeError:
            raise Problem(400, "malformed", f"{self._field} is no UTF-8") from None

    def finish(self) -> None:
        self.ended = True

    async def store(self, *, at_least: int) -> None:
        """Write what was gathered, if it is so much."""
        if self._gathered_bytes < at_least or not self._pieces:
            return
        block = b"".join(self._pieces)
        self._pieces.clear()
        self._gathered_bytes = 0
        await asyncio.to_thread(self._digest.update, block)
        await self._writer.write(block)

    def form(self) -> Form:
        """What was sent. Raises Problem if there is no document in it."""
        if not self._has_file:
            raise Problem(422, "invalid", "file: the document is missing; send it as the part `file`")
        if not self._form.size_bytes:
            raise Problem(422, "invalid", "file: the document is empty")
        self._form.sha256 = self._digest.hexdigest()
        return self._form
