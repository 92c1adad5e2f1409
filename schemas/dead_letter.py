"""The <topic>.dlq topics: what could not be done, with everything that is needed to do it again."""

import hashlib
from datetime import datetime
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from schemas.event import Base64Bytes, Identifier, JobEvent, Sha256, Timestamp, derive_id, utc_now
from schemas.results import TokenCount

REDRIVE_HEADER = "headrace_redrives"
"""Header of a message that was redriven: how often so far, as a decimal number. Absent on a first delivery."""

PRODUCED_HEADER = "headrace_first_produced"
"""Header of a message that was redriven: when it was first produced, RFC 3339. An old upload stays old."""

MAX_REDRIVES = 3
"""How often one message is redriven unless somebody insists: what failed four times has another cause."""

_COUNTER_DIGITS = 9
"""More is no count of ours. Python refuses to read numbers of thousands of digits, and anybody may send this header."""


class Header(BaseModel):
    """One Kafka header."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Header name.")
    value: Base64Bytes = Field(description="Header value.")


class DeadLetter(JobEvent):
    """A message that a step gave up on. Produced by every flow to `<topic>.dlq`, under the original key.

    `key`, `value` and `headers` are the original message byte for byte: a redrive is that message produced again. Only
    a turn that a tool had answered has one header more: that answer, so that its redrive goes on with the same. A
    message that is too large for its dead letter is left out of it, and is only where it was: that letter cannot be
    redriven.
    """

    TYPE: ClassVar[str] = "headrace.dead-letter.v1"

    topic: str = Field(description="Topic of the original message.")
    partition: int = Field(ge=0, description="Partition of the original message.")
    offset: int = Field(ge=0, description="Offset of the original message.")
    message_key: Base64Bytes | None = Field(default=None, description="The original key.")
    message_value: Base64Bytes | None = Field(default=None, description="The original value.")
    message_headers: tuple[Header, ...] = Field(default=(), description="The original headers, in order.")
    left_out_bytes: int | None = Field(
        default=None, ge=0, description="Size of the original value, if the message was too large to be carried."
    )
    left_out_sha256: Sha256 | None = Field(default=None, description="Of the value that was left out.")
    produced_at: Timestamp | None = Field(
        default=None, description="When the original message was first produced, by its Kafka timestamp."
    )
    step: str = Field(description="The step that gave up: `ingest.extract`.")
    error_class: Literal["retryable", "poison"] = Field(
        description="`poison`: can never work as it is; `retryable`: attempts or time ran out."
    )
    error_type: str = Field(description="Name of the exception.")
    message: str = Field(description="What went wrong, and the way out.")
    attempts: int = Field(ge=1, description="How often it was tried.")
    retryable: bool = Field(description="A redrive may succeed without a change to the message.")
    ends_job: bool = Field(
        default=True,
        description="False: the job itself goes on; only this message, another one under the job's id, was refused.",
    )
    admission_id: Identifier | None = Field(
        default=None, description="What its tenant's budget had reserved for it, and now takes back."
    )
    model: str | None = Field(default=None, description="The model whose answers were refused, if any were.")
    usage: TokenCount | None = Field(default=None, description="What these answers cost; its tenant is charged for it.")
    document_id: str | None = Field(default=None, description="The document, if the message is about one.")
    callback_url: SkipJsonSchema[str | None] = Field(default=None, exclude=True)
    """For the job's last status alone, no part of what is written: it may hold a secret, and people read letters."""
    received_at: SkipJsonSchema[Timestamp | None] = Field(default=None, exclude=True)
    """When its flow took the message up: for the trace alone."""
    first_failed_at: Timestamp = Field(default_factory=utc_now, description="When the first attempt failed.")
    failed_at: Timestamp = Field(default_factory=utc_now, description="When the last attempt failed.")

    @property
    def key_bytes(self) -> bytes:
        """The original key, so that a redrive keeps its partition and order; the job's id if there was none."""
        return self.job_id.encode() if self.message_key is None else self.message_key

    @property
    def event_id(self) -> str:
        """One id per original message and step."""
        return derive_id(self.TYPE, self.topic, str(self.partition), str(self.offset), self.step)

    @property
    def place(self) -> str:
        """Where the original message is, as long as its topic keeps it."""
        return f"{self.topic}, partition {self.partition}, offset {self.offset}"

    def fitting(self, max_bytes: int) -> "DeadLetter":
        """This letter; one without its message if the record would be larger than that, as a compressed one makes it.

        Key and headers stay if they fit.
        """
        if self._record_bytes <= max_bytes:
            return self
        value = self.message_value or b""
        letter = self.model_copy(
            update={
                "message_value": None,
                "left_out_bytes": len(value),
                "left_out_sha256": hashlib.sha256(value).hexdigest(),
                "retryable": False,
            }
        )
        if letter._record_bytes <= max_bytes:  # noqa: SLF001  # its own
            return letter
        return letter.model_copy(update={"message_key": None, "message_headers": ()})

    @property
    def _record_bytes(self) -> int:
        return len(self.key_bytes) + len(self.encode())

    @property
    def redrives(self) -> int:
        """How often the message had been redriven before it failed this time."""
        return redrives(tuple((header.name, header.value) for header in self.message_headers))


class DeadLetterRedriven(JobEvent):
    """A dead letter was produced again to its original topic. Produced by whoever redrives; keyed by `dead_letter_id`.

    It is written after the message itself is durable, so that a redrive which is cut short is repeated, not lost.
    """

    TYPE: ClassVar[str] = "headrace.dead-letter.redriven.v1"

    dead_letter_id: str = Field(description="`ce_id` of the dead letter.")
    topic: str = Field(description="Topic that the message was produced to.")
    redrives: int = Field(ge=1, description="How often the message has now been redriven, as its header says.")
    redriven_at: Timestamp = Field(default_factory=utc_now, description="When it was.")

    @property
    def key(self) -> str:
        """One record per dead letter."""
        return self.dead_letter_id

    @property
    def event_id(self) -> str:
        """One id per dead letter: it is redriven once."""
        return derive_id(self.TYPE, self.dead_letter_id)


def id_of_place(topic: str, partition: int, offset: int) -> str:
    """The job_id of a message that has none that can be read."""
    return derive_id("undecodable", topic, str(partition), str(offset))


def redrives(headers: tuple[tuple[str, bytes], ...]) -> int:
    """The redrive counter in a message's headers; 0 if it has none that can be read."""
    counts = [value for name, value in headers if name == REDRIVE_HEADER]
    return int(counts[-1]) if counts and counts[-1].isdigit() and len(counts[-1]) <= _COUNTER_DIGITS else 0


def first_produced_at(headers: tuple[tuple[str, bytes], ...], timestamp: datetime) -> datetime:
    """When a message was first produced: what a redrive says, at most its own Kafka timestamp."""
    said = [value for name, value in headers if name == PRODUCED_HEADER]
    if not said:
        return timestamp
    try:
        return min(datetime.fromisoformat(said[-1].decode("ascii")), timestamp)
    except (ValueError, TypeError):  # not ours: anybody may send this header, and a time without an offset compares not
        return timestamp
