"""A Qdrant behind TLS that wants a key: what is sent to whom, over REST and gRPC."""

import asyncio
import json
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc  # type: ignore[import-untyped] # grpcio ships no types
import pytest
from structlog.testing import capture_logs

from connectors.vector_index.qdrant import QdrantIndex
from schemas.errors import Fatal
from tests.certificates import Authority

KEY = "tide-and-mill-7"


@dataclass
class Server:
    """Answers that no collection exists, and keeps the keys that it was sent."""

    http_port: int
    grpc_port: int
    keys: list[str] = field(default_factory=list)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Iterator[Server]:
    certificate, key = authority.sign("qdrant", "127.0.0.1")
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["api-key"])
            body = json.dumps({"result": {"exists": False}, "status": "ok", "time": 0.0}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def refuse(_request: bytes, context: grpc.ServicerContext) -> bytes:
        keys.append(dict(context.invocation_metadata())["api-key"])
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "")
        return b""

    class Everything(grpc.GenericRpcHandler):  # type: ignore[misc] # grpcio ships no types
        def service(self, _call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(refuse)

    with ExitStack() as stack:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, key)
        http = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        http.socket = tls.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
        Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        stack.callback(http.shutdown)
        calls = grpc.server(ThreadPoolExecutor(2), handlers=(Everything(),))
        pair = (key.read_bytes(), certificate.read_bytes())
        port = calls.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        calls.start()
        stack.callback(lambda: calls.stop(None).wait())
        yield Server(http.server_address[1], port, keys)


def count(index: QdrantIndex) -> int:
    async def scenario() -> int:
        try:
            return await index.count("docs")
        finally:
            await index.close()

    return asyncio.run(scenario())


def rest(server: Server, ca: Path | None, host: str = "127.0.0.1") -> QdrantIndex:
    return QdrantIndex(f"https://{host}:{server.http_port}", api_key=KEY, ca=ca)


def over_grpc(server: Server, ca: Path | None, host: str = "127.0.0.1") -> QdrantIndex:
    url = f"https://{host}:{server.http_port}"
    return QdrantIndex(url, api_key=KEY, ca=ca, prefer_grpc=True, grpc_port=server.grpc_port)


def test_the_key_is_sent_to_a_server_that_is_trusted(server: Server, authority: Authority) -> None:
    assert count(rest(server, authority.ca)) == 0
    assert server.keys == [KEY]


def test_the_key_is_sent_by_grpc_too(server: Server, authority: Authority) -> None:
    with pytest.raises(Fatal, match="HEADRACE_QDRANT_API_KEY"):  # it was reached, and refuses every key
        count(over_grpc(server, authority.ca))
    assert server.keys == [KEY]


@pytest.mark.parametrize("way", [rest, over_grpc])
@pytest.mark.parametrize("trusted", ["another", "system"])
def test_a_server_that_is_not_trusted_is_fatal_and_gets_no_key(
    server: Server, tmp_path: Path, way: Callable[[Server, Path | None], QdrantIndex], trusted: str
) -> None:
    ca = Authority(tmp_path, "stranger").ca if trusted == "another" else None
    with pytest.raises(Fatal) as caught:
        count(way(server, ca))
    assert "HEADRACE_QDRANT_CA" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert server.keys == []


def test_a_server_of_another_name_is_fatal_and_gets_no_key(server: Server, authority: Authority) -> None:
    with pytest.raises(Fatal, match="HEADRACE_QDRANT_CA"):
        count(rest(server, authority.ca, host="localhost"))
    assert server.keys == []


def test_a_file_without_certificates_is_fatal_and_names_the_setting() -> None:
    with pytest.raises(Fatal, match=r"HEADRACE_QDRANT_CA=.*test_qdrant_tls.py: it holds no certificate"):
        QdrantIndex("https://127.0.0.1:1", ca=Path(__file__))


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("http://qdrant.example:6333", True),
        ("http://10.1.2.3:6333", True),
        ("https://qdrant.example:6333", False),
        ("http://127.0.0.1:6333", False),
        ("http://localhost:6333", False),
    ],
)
def test_a_key_that_would_go_unencrypted_to_another_machine_is_a_warning(url: str, *, warns: bool) -> None:
    with capture_logs() as logs:
        index = QdrantIndex(url, api_key=KEY)
        asyncio.run(index.close())
    assert [log["log_level"] for log in logs] == ["warning"] * warns
    assert KEY not in str(logs)
