"""An OpenAI-compatible server that fails as real ones do, and keeps a record of every call.

As a process: `python tests/llm_server.py --record FILE` prints {"url": "http://127.0.0.1:PORT/v1"}. What goes wrong is
told by the server's plan, or by the last user message: `FAULT:429`, `FAULT:cut` and so on. `PUT /plan` changes the
plan, `PUT /outage {"seconds": 5}` refuses connections for a while; `/health` says ok whenever it can be reached.

A request that offers tools is answered with a call of one if its last message is the user's and says `TOOL:name`, or
`TOOLS2:name` for two calls at once, or if the plan has an `always_tool`. After a tool's message the answer quotes it.

The record is append-only and survives kill -9: it is the oracle of who was called how often.
"""

import argparse
import asyncio
import json
import os
import random
import re
import ssl
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from aiohttp import web

FAULTS = (
    "400",
    "401",
    "404",
    "429",
    "500",
    "503",
    "hang",
    "cut",
    "malformed",
    "no-usage",
    "wrong-usage",
    "absurd-usage",
    "not-utf8",
    "whole",
    "error",
    "length",  # max_tokens came first
    "nameless",  # a call of no tool
    "bare",  # a call without arguments
    "callless",  # it ends as a call does, without one
    "index-0",  # of every call, as Ollama's
    "index-1",  # of the first call, as of proxies that count the text before it
    "renamed",  # every piece of a call repeats its name, as NVIDIA's NIM does
)
_MARK = re.compile(r"FAULT:([a-z0-9-]+)")
_TOOL = re.compile(r"TOOL(S2|):([A-Za-z0-9_-]+)")


@dataclass(frozen=True)
class Plan:
    """How the server behaves; the same seed draws the same faults."""

    latency_s: tuple[float, float] = (0.0, 0.0)  # drawn uniformly
    word_s: float = 0.0  # before each word of an answer, as a model that writes
    fault_share: float = 0.0  # of calls that get a fault drawn from `faults`
    faults: Sequence[str] = ("429", "503", "cut")
    failures_before_success: int = 0  # calls of each job that get `first_fault`
    first_fault: str = "503"
    retry_after: str = "0"
    distinct: bool = False  # every answer names its job and call, and every call has a usage of its own
    always_tool: str = ""  # every answer is a call of this tool, where the request offers it
    answer: str = "The race is 310 metres long [1]. It is two metres deep [2]."
    by_job: bool = False  # a call's latency and fault depend on its job and number alone, not on who calls when
    seed: int = 0


@dataclass
class Call:
    """One call, as the server saw it."""

    job_id: str
    number: int  # of this job, from 1
    outcome: str = "in flight"
    fault: str | None = None
    usage: tuple[int, int] = (11, 7)  # prompt and completion tokens
    began_at: float = field(default_factory=time.time)
    ended_at: float | None = None
    traceparent: str | None = None
    body: dict[str, object] = field(default_factory=dict, repr=False)


class LLMServer:
    """The server's state; `application()` serves it."""

    def __init__(self, plan: Plan, record: Path | None = None, slots: int = sys.maxsize) -> None:
        self.plan = plan
        self.most = 0  # calls answered at once, at most
        self._slots = asyncio.Semaphore(slots)
        self._answering = 0
        self.calls: list[Call] = []
        self.keys: list[str] = []  # the idempotency key of each call
        self.runner: web.AppRunner | None = None
        self.site: web.TCPSite | None = None
        self._numbers: Counter[str] = Counter()
        self.called = asyncio.Event()
        self.closed_early = asyncio.Event()
        self._record = None if record is None else record.open("a", buffering=1)
        self._random = random.Random(plan.seed)  # noqa: S311  # faults, not secrets

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/health", self._health)
        app.router.add_get("/calls", self._list)
        app.router.add_get("/load", self._load)
        app.router.add_put("/plan", self._change)
        app.router.add_put("/outage", self._refuse)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"status": "ok"})

    async def _list(self, request: web.Request) -> web.Response:
        del request
        return web.json_response([asdict(call) for call in self.calls])

    async def _load(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"calls": len(self.calls), "answering": self._answering, "most": self.most})

    async def _change(self, request: web.Request) -> web.Response:
        self.plan = replace(self.plan, **await request.json())
        return web.json_response({})

    async def _refuse(self, request: web.Request) -> web.Response:
        """Stop listening for a while; calls in flight are cut."""
        seconds = (await request.json())["seconds"]
        asyncio.get_running_loop().create_task(self._away(seconds))
        return web.json_response({})

    async def _away(self, seconds: float) -> None:
        site = self.site
        assert site is not None
        port = int(site.name.rsplit(":", 1)[1])
        await site.stop()
        await asyncio.sleep(seconds)
        assert self.runner is not None
        self.site = web.TCPSite(self.runner, "127.0.0.1", port)
        await self.site.start()

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        key = request.headers.get("Idempotency-Key", "")
        job_id = key.rsplit("/", 2)[0]  # of <job_id>/<redrives>/<digest of what is asked>
        self.keys.append(key)
        self._numbers[job_id] += 1
        call = Call(job_id, self._numbers[job_id], traceparent=request.headers.get("traceparent"), body=body)
        if self.plan.distinct:
            call.usage = (self._random.randint(1, 500), self._random.randint(1, 500))
        self.calls.append(call)
        self.called.set()
        self._write(call)
        try:
            return await self._in_a_slot(request, call)
        except asyncio.CancelledError:
            call.outcome = "closed by the client"
            self.closed_early.set()
            raise
        except ConnectionError:
            if call.outcome != "cut":
                call.outcome = "closed by the client"
                self.closed_early.set()
            return web.Response()  # to nobody
        finally:
            call.ended_at = time.time()
            self._write(call)

    def _write(self, call: Call) -> None:
        if self._record is not None:
            line = {name: value for name, value in asdict(call).items() if name != "body"}
            self._record.write(json.dumps(line) + "\n")
            os.fsync(self._record.fileno())

    def _fault(self, call: Call) -> str | None:
        messages = call.body["messages"]
        assert isinstance(messages, list)
        marked = _MARK.search(messages[-1]["content"])
        if marked is not None:
            return marked[1]
        if call.number <= self.plan.failures_before_success:
            return self.plan.first_fault
        draw = self._draw(call, "fault")
        return draw.choice(self.plan.faults) if draw.random() < self.plan.fault_share else None

    def _draw(self, call: Call, what: str) -> random.Random:
        if not self.plan.by_job:
            return self._random
        return random.Random(f"{self.plan.seed}/{call.job_id}/{call.number}/{what}")  # noqa: S311  # same

    async def _in_a_slot(self, request: web.Request, call: Call) -> web.StreamResponse:
        async with self._slots:
            self._answering += 1
            self.most = max(self.most, self._answering)
            try:
                return await self._answer(request, call)
            finally:
                self._answering -= 1

    async def _answer(self, request: web.Request, call: Call) -> web.StreamResponse:
        await asyncio.sleep(self._draw(call, "latency").uniform(*self.plan.latency_s))
        fault = call.fault = self._fault(call)
        call.outcome = fault or "answered"
        if fault is not None and fault.isdecimal():
            error = {"type": "test_fault", "code": f"fault_{fault}", "message": json.dumps(call.body)}
            headers = {"Retry-After": self.plan.retry_after} if fault in {"429", "503"} else {}
            return web.json_response({"error": error}, status=int(fault), headers=headers)
        usage = dict(zip(("prompt_tokens", "completion_tokens"), call.usage, strict=True))
        usage |= {"wrong-usage": {"completion_tokens": -1}, "absurd-usage": {"completion_tokens": 10**30}}.get(
            fault or "", {}
        )
        text = self._text(call)
        wanted = self._wanted(call)
        if fault == "whole":
            said: dict[str, object] = {"content": None, "tool_calls": wanted} if wanted else {"content": text}
            choice = {"message": said, "finish_reason": "tool_calls" if wanted else "stop"}
            return web.json_response({"model": "whole-1", "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if fault == "hang":
            await response.write(b": waiting\n\n")
            await asyncio.Event().wait()
        words: list[dict[str, object]] = [{"content": word} for word in re.findall(r"\S+\s*", text)]
        deltas = _pieces(wanted, fault) if wanted else words
        for delta in deltas[:2] if fault == "length" else deltas:
            await asyncio.sleep(self.plan.word_s)
            await _event(response, {"model": "test-1", "choices": [{"delta": delta}]})
            if fault == "cut":
                assert request.transport is not None
                request.transport.abort()
                raise ConnectionResetError
            if fault in {"malformed", "not-utf8", "error"}:
                bad = {"malformed": b'data: {"choices": [\n\n', "not-utf8": b"data: \xff\n\n"}
                await response.write(bad.get(fault, b'data: {"error": {"type": "engine_dead"}}\n\n'))
                return response
        finish_reason = "length" if fault == "length" else "tool_calls" if wanted else "stop"
        await _event(response, {"choices": [{"delta": {}, "finish_reason": finish_reason}]})
        if fault != "no-usage":
            await _event(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    def _text(self, call: Call) -> str:
        messages = call.body["messages"]
        assert isinstance(messages, list)
        text = f"{call.job_id} call {call.number}" if self.plan.distinct else self.plan.answer
        return f"{text} The tool said: {messages[-1]['content']}" if messages[-1]["role"] == "tool" else text

    def _wanted(self, call: Call) -> list[dict[str, object]]:
        """The calls of tools that it asks for, as a whole completion lists them."""
        messages = call.body["messages"]
        assert isinstance(messages, list)
        # A tool may quote the question in its answer: that is no new wish.
        marked = None if messages[-1]["role"] == "tool" else _TOOL.search(messages[-1]["content"])
        name = marked[2] if marked is not None else self.plan.always_tool
        if not name or not call.body.get("tools"):
            return []
        said = [message["content"] for message in messages if message["role"] == "user"]
        function = {"name": name, "arguments": json.dumps({"query": said[-1][:50]})}
        count = 2 if marked is not None and marked[1] else 1
        return [
            {"id": f"call-{call.job_id}-{call.number}-{n}", "type": "function", "function": function}
            for n in range(count)
        ]


def _pieces(wanted: Sequence[dict[str, object]], fault: str | None) -> list[dict[str, object]]:
    """The deltas of a stream that make these calls: of each one its name first, then its arguments in two parts."""
    deltas: list[dict[str, object]] = []
    for number, each in enumerate(wanted):
        function = each["function"]
        assert isinstance(function, dict)
        index = {"index-0": 0, "index-1": number + 1}.get(fault or "", number)
        named = {} if fault == "nameless" else {"name": function["name"]}
        again = named if fault == "renamed" else {}
        arguments = "" if fault == "bare" else function["arguments"]
        pieces = (
            each | {"index": index, "function": named | {"arguments": ""}},
            {"index": index, "function": again | {"arguments": arguments[:7]}},
            {"index": index, "function": again | {"arguments": arguments[7:]}},
        )
        deltas += [{"tool_calls": [piece]} for piece in pieces]
    return [] if fault == "callless" else deltas


async def _event(response: web.StreamResponse, payload: dict[str, object]) -> None:
    await response.write(b"data: " + json.dumps(payload).encode() + b"\n\n")


async def serve(server: LLMServer, port: int = 0, tls: ssl.SSLContext | None = None) -> tuple[web.AppRunner, str]:
    """Start serving on loopback; the runner to clean up, and the base URL."""
    runner = web.AppRunner(server.application(), handler_cancellation=True)
    await runner.setup()
    server.runner = runner
    server.site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await server.site.start()
    host, bound = runner.addresses[0][:2]
    return runner, f"{'http' if tls is None else 'https'}://{host}:{bound}/v1"


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--latency-s", type=float, nargs=2, default=(0.0, 0.0), metavar=("LEAST", "MOST"))
    parser.add_argument("--word-s", type=float, default=Plan.word_s)
    parser.add_argument("--fault-share", type=float, default=0.0)
    parser.add_argument("--faults", nargs="*", default=Plan.faults)
    parser.add_argument("--distinct", action="store_true")
    parser.add_argument("--always-tool", default=Plan.always_tool, metavar="NAME")
    parser.add_argument("--by-job", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slots", type=int, default=sys.maxsize, help="calls answered at once; more wait in order")
    options = parser.parse_args()
    plan = Plan(
        latency_s=tuple(options.latency_s),
        word_s=options.word_s,
        fault_share=options.fault_share,
        faults=options.faults,
        distinct=options.distinct,
        always_tool=options.always_tool,
        by_job=options.by_job,
        seed=options.seed,
    )
    _, url = await serve(LLMServer(plan, options.record, options.slots), options.port)
    print(json.dumps({"url": url}), flush=True)  # noqa: T201  # the line that a parent waits for
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
