"""The tools.* topics: what a model asks for in the middle of a job, and what it gets."""

from typing import ClassVar

from pydantic import Field

from schemas.event import Identifier, JobEvent, Timestamp, derive_id, utc_now
from schemas.requests import RequestSubmitted, ToolName
from schemas.results import TokenCount

CONTENT_MAX_CHARS = 50_000
"""Of what a tool gives back: half of what a prompt may hold."""


ANSWER_HEADER = "headrace_tool_answer"
"""Header of a ToolRequested that was redriven after its answer: what the model was told, UTF-8. It needs no new one."""


class ToolRequested(JobEvent):
    """The model wants a tool to be called before it goes on. Produced by `answer`; keyed by `job_id`.

    Read by whoever serves the tool, which answers with a ToolCompleted, and by `answer` itself, which goes on with
    `request` when that comes.
    """

    TYPE: ClassVar[str] = "headrace.tool.requested.v1"
    ENDS_JOB_IF_UNREADABLE: ClassVar[bool] = False

    call_id: Identifier = Field(description="Names this call; the answer repeats it.")
    tool: ToolName = Field(description="Which tool.")
    arguments: str = Field(description="JSON, as the model wrote it: check it as input from a stranger.")
    depth: int = Field(ge=0, description="Depth of the inference that will follow the answer.")
    model: str = Field(description="The model that asks.")
    usage: TokenCount = Field(description="Tokens of the inference that ended in this call.")
    said: str = Field(default="", description="What the model said besides.")
    admission_id: Identifier | None = Field(default=None, description="What usage.tokens calls that inference.")
    request: RequestSubmitted = Field(description="What goes on when the tool has answered; for `answer`.")
    answer_until: Timestamp = Field(description="A later answer is ignored: the model is told that there was none.")
    requested_at: Timestamp = Field(default_factory=utc_now, description="When the model asked.")

    @property
    def event_id(self) -> str:
        """One id per call."""
        return derive_id(self.TYPE, self.job_id, self.call_id)


class ToolCompleted(JobEvent):
    """What a tool gave back, or why it could not. Produced by whoever serves the tool; keyed by `job_id`."""

    TYPE: ClassVar[str] = "headrace.tool.completed.v1"
    ENDS_JOB_IF_UNREADABLE: ClassVar[bool] = False

    call_id: Identifier = Field(description="Of the ToolRequested.")
    tool: ToolName = Field(description="Which tool.")
    content: str = Field(max_length=CONTENT_MAX_CHARS, description="What the model gets to read.")
    failed: bool = Field(default=False, description="`content` says what went wrong; the model may try otherwise.")
    completed_at: Timestamp = Field(default_factory=utc_now, description="When it was done.")

    @property
    def event_id(self) -> str:
        """One id per call."""
        return derive_id(self.TYPE, self.job_id, self.call_id)
