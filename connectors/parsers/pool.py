"""Parsing in killable processes: what a document does to its parser never reaches the flow.

A worker that crashes, hangs or is cancelled is killed and replaced; the other workers go on. Workers hold no state, so
killing one is always safe. They die with this process, however it ends.
"""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

from connectors.executors import Workers
from connectors.parsers.limits import Limits
from connectors.parsers.port import Attachment, ParsedDocument, Parser, Section
from connectors.parsers.worker import OUT_OF_MEMORY, REPLY, REQUEST, TAKEN
from schemas.errors import Poison, Retryable, TookTooLong

_PIPE_BUFFER_BYTES = 1 << 20
_INHERITED = (
    "HOME",
    "LANG",
    "LC_",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHON",
    "TESSDATA_PREFIX",
    "TMPDIR",
    "TZ",
    "VIRTUAL_ENV",
)
"""Prefixes of the variables that a worker gets: it reads hostile documents and has no use for keys and passwords."""


class ProcessParser(Parser):
    """A pool of worker processes, each started when it is first needed. Use it from one event loop, in any thread.

    workers: documents parsed at the same time; each takes a core while it works.
    recycle_after: documents per worker; bounds what PDFium and libxml2 leak and fragment, for 0.03 s per start.
    timeout_s: per document, however long the caller is willing to wait; less than what `extract` waits, so that a hang
        is put down to the document.
    memory_bytes: address space of a worker (RLIMIT_AS), and as much again of the OCR that it may have running.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        recycle_after: int = 200,
        timeout_s: float = 90.0,
        memory_bytes: int = 2 << 30,
        limits: Limits | None = None,
    ) -> None:
        self._arguments = (str(memory_bytes), json.dumps(asdict(limits or Limits())))
        self._recycle_after = recycle_after
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(workers)
        self._workers = Workers("parser", workers)
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def parse(self, data: bytes, *, name: str) -> ParsedDocument:
        """Parse one document in a worker; cancelling the call kills the worker.

        Raises:
            Poison: the document's fault, a crash of its parser included (the message names signal or exit code).
            Retryable: no worker could be started, or it was lost before it took the document, or time ran out.
        """
        async with self._slots:
            worker = await self._take()
            try:
                with self._workers.busy():
                    reply = await self._ask(worker, data, name)
            except BaseException:
                self._end(worker)
                raise
            self._give_back(worker)
        if "poison" in reply:
            raise Poison(reply["poison"])
        return _document(reply["document"])

    async def close(self) -> None:
        """Kill all workers and wait until they are gone; documents still in the works raise Retryable."""
        self._closed = True
        for worker in (*self._idle, *self._busy):
            self._end(worker)
        self._idle.clear()
        while self._ending:
            await asyncio.wait(self._ending)
        self._workers.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _take(self) -> "_Worker":
        if self._closed:
            raise Retryable("the parser is closed")
        try:
            worker = self._idle.pop() if self._idle else await _Worker.start(self._arguments)
        except OSError as error:
            raise Retryable(f"no parser process could be started: {error}") from error
        self._busy.add(worker)
        return worker

    async def _ask(self, worker: "_Worker", data: bytes, name: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await worker.ask(data, name)
        except TimeoutError as error:
            raise TookTooLong(f"{name}: parsing it took longer than {self._timeout_s:g} s") from error
        except _WorkerLostError as lost:
            if self._closed:
                raise Retryable(f"{name}: the parser was closed while it worked on it") from lost
            if not lost.taken:
                raise Retryable(f"{name}: its parser process {lost.how} before it took the document") from lost
            raise Poison(
                f"{name}: its parser process {lost.how} while it worked on it; is the file damaged, or too large?"
            ) from lost

    def _give_back(self, worker: "_Worker") -> None:
        if worker.served >= self._recycle_after or self._closed:
            self._end(worker)
        else:
            self._busy.discard(worker)
            self._idle.append(worker)

    def _end(self, worker: "_Worker") -> None:
        self._busy.discard(worker)
        worker.kill()
        reaping = asyncio.create_task(worker.reap())
        self._ending.add(reaping)
        reaping.add_done_callback(self._ending.discard)


@dataclass(frozen=True)
class _WorkerLostError(Exception):
    taken: bool  # it had begun to work on the document
    how: str  # "was killed by SIGSEGV"


class _Worker:
    """One worker process and how many documents it has served."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise TypeError("a worker is reached through pipes on its standard input and output")
        self.served = 0
        self._process = process
        self._requests = process.stdin
        self._replies = process.stdout

    @classmethod
    async def start(cls, arguments: tuple[str, ...]) -> Self:
        """Start a process. -P keeps the current directory, which may hold anything, out of its import path."""
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "connectors.parsers.worker", *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_PIPE_BUFFER_BYTES,
                env={name: value for name, value in os.environ.items() if name.startswith(_INHERITED)},
                start_new_session=True,  # Ctrl-C on the terminal is for the owner alone, which drains first
            )
        )

    async def ask(self, data: bytes, name: str) -> dict[str, Any]:
        """Send one document and return the reply; _WorkerLostError if the process ends instead."""
        self.served += 1
        taken = False
        try:
            encoded_name = name.encode("utf-8", errors="replace")
            self._requests.write(REQUEST.pack(len(encoded_name), len(data)) + encoded_name)
            self._requests.write(data)
            taken = await self._replies.readexactly(len(TAKEN)) == TAKEN
            (length,) = REPLY.unpack(await self._replies.readexactly(REPLY.size))
            reply: dict[str, Any] = json.loads(await self._replies.readexactly(length))
            for attachment in reply.get("document", {}).get("attachments", ()):
                attachment["data"] = await self._replies.readexactly(attachment.pop("bytes"))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _WorkerLostError(taken, _describe(await self._process.wait())) from error
        return reply

    def kill(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def reap(self) -> None:
        """Wait until the process is gone and its pipes are closed; what it had still written is dropped."""
        self._requests.close()
        while await self._replies.read(_PIPE_BUFFER_BYTES):
            pass
        await self._process.wait()


def _describe(exit_code: int) -> str:
    if exit_code == OUT_OF_MEMORY:
        return "ran out of memory"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    return f"was killed by {signal.Signals(-exit_code).name}"


def _document(fields: dict[str, Any]) -> ParsedDocument:
    sections = tuple(Section(**section) for section in fields.pop("sections"))
    attachments = tuple(Attachment(**attachment) for attachment in fields.pop("attachments"))
    return ParsedDocument(**fields, sections=sections, attachments=attachments)
