"""How failures of a Qdrant server are classed. The servers here answer as Qdrant, a proxy or a stranger would."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc  # type: ignore[import-untyped] # grpcio ships no types
import pytest

from connectors.vector_index.qdrant import QdrantIndex
from schemas.errors import Fatal, HeadraceError, Poison, Retryable, Unavailable

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"status": {"error": "the text of a document"}}'


@pytest.fixture
def http_server() -> Iterator[Callable[[Answer], str]]:
    """Start a server that gives one answer to every request; returns its URL."""
    with ExitStack() as stack:

        def start(answer: Answer) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.send_response(answer.status)
                    for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer.body)

                def log_message(self, *_: object) -> None:
                    pass

            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield start


@pytest.fixture
def grpc_server() -> Iterator[Callable[[grpc.StatusCode], int]]:
    """Start a gRPC server that refuses every call with one code; returns its port."""
    with ExitStack() as stack:

        def start(code: grpc.StatusCode) -> int:
            def refuse(_request: bytes, context: grpc.ServicerContext) -> bytes:
                context.abort(code, "the text of a document")
                return b""

            class Everything(grpc.GenericRpcHandler):  # type: ignore[misc] # grpcio ships no types
                def service(self, _call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
                    return grpc.unary_unary_rpc_method_handler(refuse)

            server = grpc.server(ThreadPoolExecutor(2), handlers=(Everything(),))
            port: int = server.add_insecure_port("127.0.0.1:0")
            server.start()
            stack.callback(lambda: server.stop(None).wait())
            return port

        yield start


def failure(index: QdrantIndex) -> HeadraceError:
    async def scenario() -> None:
        try:
            await index.count("docs")
        finally:
            await index.close()

    with pytest.raises(HeadraceError) as caught:
        asyncio.run(scenario())
    return caught.value


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, Poison),
        (401, Fatal),
        (403, Fatal),
        (405, Fatal),
        (408, Retryable),
        (413, Poison),
        (429, Retryable),
        (500, Retryable),
        (502, Retryable),
        (503, Retryable),
    ],
)
def test_answer_of_the_server_is_classed(
    http_server: Callable[[Answer], str], status: int, expected: type[HeadraceError]
) -> None:
    assert type(failure(QdrantIndex(http_server(Answer(status))))) is expected


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_of_the_server_is_passed_on(http_server: Callable[[Answer], str], status: int) -> None:
    error = failure(QdrantIndex(http_server(Answer(status, {"Retry-After": "7"}))))
    assert isinstance(error, Retryable)
    assert error.retry_after_s == 7


def test_retry_after_that_is_a_date_is_still_retryable(http_server: Callable[[Answer], str]) -> None:
    answer = Answer(429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})
    assert isinstance(failure(QdrantIndex(http_server(answer))), Retryable)


def test_message_names_server_and_collection_and_holds_no_text(http_server: Callable[[Answer], str]) -> None:
    url = http_server(Answer(400))
    message = str(failure(QdrantIndex(url.replace("http://", "http://user:secret@"))))
    assert "127.0.0.1" in message
    assert "'docs'" in message
    assert "secret" not in message
    assert "text of a document" not in message


def test_server_out_of_reach_is_retryable() -> None:
    assert isinstance(failure(QdrantIndex("http://127.0.0.1:1")), Retryable)


def test_server_that_is_no_qdrant_is_fatal(http_server: Callable[[Answer], str]) -> None:
    error = failure(QdrantIndex(http_server(Answer(200, body=b'{"hello": "world"}'))))
    assert isinstance(error, Fatal)
    assert "check the URL" in str(error)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Retryable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Retryable),
        (grpc.StatusCode.INTERNAL, Retryable),
        (grpc.StatusCode.UNAUTHENTICATED, Fatal),
        (grpc.StatusCode.PERMISSION_DENIED, Fatal),
        (grpc.StatusCode.INVALID_ARGUMENT, Poison),
    ],
)
def test_grpc_status_is_classed(
    grpc_server: Callable[[grpc.StatusCode], int], code: grpc.StatusCode, expected: type[HeadraceError]
) -> None:
    index = QdrantIndex("http://127.0.0.1:1", prefer_grpc=True, grpc_port=grpc_server(code))
    assert type(failure(index)) is expected


def test_grpc_server_out_of_reach_is_retryable() -> None:
    assert isinstance(failure(QdrantIndex("http://127.0.0.1:1", prefer_grpc=True, grpc_port=1)), Retryable)


@pytest.mark.parametrize("location", ["ftp://qdrant:6333", "http://qdrant:port"])
def test_location_that_is_no_url_is_fatal_and_names_the_setting(location: str) -> None:
    with pytest.raises(Fatal, match="HEADRACE_QDRANT_URL"):
        QdrantIndex(location)


def test_importing_the_module_does_not_import_the_client() -> None:
    script = "import sys, connectors.vector_index.qdrant; sys.exit('qdrant_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
