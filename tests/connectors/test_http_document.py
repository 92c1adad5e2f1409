"""Documents over HTTP, from a real server on loopback, which the tests allow and no setting can."""

import asyncio
import gzip
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import TypeVar

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from connectors.http_document import RETRY_AFTER_CAP_S, HttpDocuments
from connectors.object_store import ObjectStore
from connectors.public_address import is_public
from schemas.errors import Fatal, Isolated, Poison, Retryable, TookTooLong

T = TypeVar("T")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Use = Callable[[TestServer], Awaitable[T]]

LIMIT = 100_000
LOOPBACK = (IPv4Network("127.0.0.1/32"),)
PUBLIC = "93.184.215.14"


class Names:
    """A name server whose answers change: the next one at each question, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def documents(names: Names | None = None, *hosts: str, timeout_s: float = 30.0) -> HttpDocuments:
    look_up = names or Names(["127.0.0.1"])
    return HttpDocuments(hosts or ("*",), allowed_networks=LOOPBACK, look_up=look_up, timeout_s=timeout_s)


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[TestServer]:
    application = web.Application()
    application.router.add_get("/{path:.*}", handler)
    server = TestServer(application, scheme="http" if tls is None else "https")
    await server.start_server(ssl=tls)
    try:
        yield server
    finally:
        await server.close()


def at(server: TestServer, path: str, host: str = "docs.example.org") -> str:
    return f"{server.scheme}://{host}:{server.port}{path}"


def read(
    handler: Handler,
    path: str = "/a.txt",
    *,
    reader: HttpDocuments | None = None,
    host: str = "docs.example.org",
    max_bytes: int = LIMIT,
) -> bytes:
    """Read one document from a server with that handler."""

    async def main() -> bytes:
        async with serving(handler) as server:
            return await (reader or documents()).read(at(server, path, host), max_bytes=max_bytes)

    return asyncio.run(main())


def refused(uri: str, reader: HttpDocuments | None = None) -> str:
    """Why a URI is poison, without any server."""
    with pytest.raises(Poison) as caught:
        asyncio.run((reader or documents(Names([PUBLIC]))).read(uri, max_bytes=LIMIT))
    return str(caught.value)


async def hello(request: web.Request) -> web.Response:
    del request
    return web.Response(body=b"content")


def answering(status: int, **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        del request
        return web.Response(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return handler


def raw(*pieces: bytes, endless: bytes = b"", pause_s: float = 0.0) -> Callable[[Callable[[int], Awaitable[T]]], T]:
    """Run something against a server that says exactly this, whatever it is asked."""

    def run(use: Callable[[int], Awaitable[T]]) -> T:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                for piece in pieces:
                    writer.write(piece)
                while endless:
                    writer.write(endless)
                    await writer.drain()
                    await asyncio.sleep(pause_s)
                await writer.drain()
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the reader has had enough
            finally:
                writer.close()

        async def main() -> T:
            async with await asyncio.start_server(speak, "127.0.0.1") as server:
                return await use(server.sockets[0].getsockname()[1])

        return asyncio.run(main())

    return run


def from_port(reader: HttpDocuments | None = None, max_bytes: int = LIMIT) -> Callable[[int], Awaitable[bytes]]:
    def use(port: int) -> Awaitable[bytes]:
        return (reader or documents()).read(f"http://docs.example.org:{port}/a.txt", max_bytes=max_bytes)

    return use


def test_document_is_read() -> None:
    assert read(hello) == b"content"


def test_empty_document_is_no_bytes() -> None:
    assert read(answering(200)) == b""


def test_server_sees_the_uri_byte_for_byte_and_none_of_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response()

    read(handler, "/a%2Fb%7e?X-Sig=a%2Fb%2B%3d&x=+#page=3")
    assert seen[0].raw_path == "/a%2Fb%7e?X-Sig=a%2Fb%2B%3d&x=+"
    assert seen[0].headers["Accept-Encoding"] == "identity"
    assert not {"Authorization", "Cookie", "Referer"} & seen[0].headers.keys()


def test_uri_that_is_not_percent_encoded_is_encoded() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=request.path)

    assert read(handler, "/größe.pdf").decode() == "/größe.pdf"


@pytest.mark.parametrize(
    ("hosts", "allowed", "denied"),
    [
        (["docs.example.org"], ["docs.example.org", "DOCS.example.org.", "docs.example.org:8080"], ["example.org"]),
        (["*.example.org"], ["a.example.org", "a.b.example.org"], ["example.org", "badexample.org", "example.org.io"]),
        (["a.org", "b.org"], ["a.org", "b.org"], ["c.org", "a.org.b", "x.a.org"]),
        (["*"], ["a.org", "10.0.0.9", "[fd00:0:0::1]"], []),
        (["10.0.0.9"], ["10.0.0.9"], ["10.0.0.8", "a.org"]),
        (["[fd00::1]", "fd00:0::2"], ["[fd00:0:0::1]", "[fd00::2]"], ["[fd00::3]"]),
        (["*.1.1"], [], ["1.1.1.1"]),
        (["größe.de"], ["xn--gre-6ka8i.de", "größe.de"], ["grosse.de"]),
        ([], [], ["a.org", PUBLIC]),
    ],
)
def test_only_hosts_that_the_setting_names_are_asked(hosts: list[str], allowed: list[str], denied: list[str]) -> None:
    names = Names(["10.0.0.1"])  # nobody is connected to: what the setting allows is then found to be private
    reader = HttpDocuments(hosts, look_up=names)
    for host in denied:
        assert "HEADRACE_HTTP_HOSTS" in refused(f"http://{host}/", reader)
    assert names.asked == []
    for host in allowed:
        assert "not public" in refused(f"http://{host}/", reader)


@pytest.mark.parametrize("host", ["", "https://a.org", "a*", "*a.org", "a.*.org", "a.org/x", "a b", "*.", "a..b", "**"])
def test_setting_that_is_no_host_is_fatal(host: str) -> None:
    with pytest.raises(Fatal, match="HEADRACE_HTTP_HOSTS"):
        HttpDocuments([host])


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),  # noqa: S104  # not bound to
        *("100.64.0.1", "100.100.100.200", "192.0.0.8", "192.88.99.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
        *("255.255.255.255", "192.0.2.1", "168.63.129.16"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fd00:ec2::254", "ff02::1", "ff0e::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:10.0.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1"),
        *("64:ff9b:1::808:808", "2002:7f00:1::", "2002:a00:1::1", "2001:0:808:808::1", "3fff::1", "5f00::1", "100::1"),
    ],
)
def test_address_that_is_not_public_is_told(address: str) -> None:
    assert not is_public(ip_address(address))
    uri_host = f"[{address}]" if ":" in address else address
    assert "public" in refused(f"http://{uri_host.replace('%', '%25')}/", HttpDocuments(["*"]))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", PUBLIC, "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]
)
def test_public_address_is_told(address: str) -> None:
    assert is_public(ip_address(address))


def test_every_ipv4_address_that_is_private_stays_so_inside_of_ipv6() -> None:
    for network in ("10.0.0.0/30", "127.0.0.0/30", "169.254.169.252/30"):
        for each in ip_network(network):
            assert not is_public(ip_address(f"::ffff:{each}"))
            assert not is_public(ip_address(f"64:ff9b::{each}"))


@pytest.mark.parametrize(
    "host",
    [
        *("2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "127.0.0.1.", "127.0.0.01", "1.2.3.4.5", "0x"),
        *(
            "%31%32%37.0.0.1",
            "①②⑦.0.0.1",
            "127。0。0。1",
            "[::1]",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:0:0:1]",
            "a.1",
        ),  # looks like digits and dots
        *("[::1%25lo]", "a..b", "a%00b", "256.256.256.256"),
    ],
)
def test_every_other_spelling_of_an_address_is_refused_without_asking(host: str) -> None:
    names = Names([PUBLIC])
    refused(f"http://{host}/", HttpDocuments(["*"], look_up=names))
    assert names.asked == []


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "http://",
            "http:///a",
            "http:a.org/a",
            "https:/a.org",
            "http://a.org:99999/",
            "http://a.org:x/",
            "http://[::1/",
        ),
        *("http://a.org/a b", "http://a.org/\r\nHost: b", "http://a.org\\@b.org/", "http://a.org/\0", "http://?a.org/"),
    ],
)
def test_what_is_no_proper_url_is_poison(uri: str) -> None:
    assert "no http(s) URL" in refused(uri)


@pytest.mark.parametrize("userinfo", ["user:hunter2@", "user@", ":hunter2@", "@", "hunter2%40@"])
def test_credentials_are_refused_and_not_repeated(userinfo: str) -> None:
    message = refused(f"https://{userinfo}docs.example.org/a?signature=hunter2")
    assert "credentials" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "uri",
    [
        "http://u:hunter2@docs.example.org:x/a",
        "http://u:hunt@hunter2@a b/",
        "http://docs.example.org:x/a?hunter2",
        "http://other.example.org/a?hunter2",
        "http://other.example.org/a#hunter2",
        "http://10.0.0.1/a?hunter2#hunter2",
    ],
)
def test_query_and_credentials_stay_out_of_messages(uri: str) -> None:
    assert "hunter2" not in refused(uri, documents(Names([PUBLIC]), "docs.example.org", "10.0.0.1"))


def test_name_that_leads_to_a_private_address_is_refused_without_telling_it() -> None:
    for answer in (["10.1.2.3"], [PUBLIC, "10.1.2.3"], ["::ffff:10.1.2.3"]):
        message = refused("http://intranet.example.org/", documents(Names(answer)))
        assert "not public" in message
        assert "10.1.2.3" not in message


def test_loopback_is_refused_where_no_test_allows_it() -> None:
    for host in ("localhost", "127.0.0.1", "[::1]"):  # by the system's own look-up
        assert "not public" in refused(f"http://{host}/", HttpDocuments(["*"]))


def test_connection_goes_to_the_address_that_was_checked() -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    assert read(hello, reader=documents(names)) == b"content"
    assert names.asked == ["docs.example.org"]


def test_name_that_is_rebound_between_two_redirects_is_checked_again() -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    with pytest.raises(Poison, match="not public"):
        read(answering(302, Location="/again"), reader=documents(names))
    assert len(names.asked) == 2


def test_redirects_are_followed_up_to_five() -> None:
    async def handler(request: web.Request) -> web.Response:
        left = int(request.path[1:])
        if left == 0:
            return web.Response(body=b"content")
        raise web.HTTPFound(f"{left - 1}")

    assert read(handler, "/5") == b"content"
    with pytest.raises(Poison, match="more than 5 times"):
        read(handler, "/6")


def test_redirect_loop_ends() -> None:
    with pytest.raises(Poison, match="more than 5 times"):
        read(answering(301, Location="/a.txt"))


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.2/", "not public"),
        ("http://169.254.169.254/latest/meta-data/", "not public"),
        ("http://[::1]/", "not public"),
        ("http://[::ffff:169.254.169.254]/", "not public"),
        ("http://2852039166/", "usual form"),
        ("//2130706433/", "usual form"),
        ("http://u:hunter2@docs.example.org/", "credentials"),
        ("file:///etc/passwd", "no http"),
        ("ftp://docs.example.org/", "no http"),
        ("gopher://docs.example.org/_hunter2", "no http"),
        ("http://docs.example.org:x/?hunter2", "no http"),
        ("", "without saying where to"),
    ],
)
def test_redirect_to_what_may_not_be_asked_is_poison(location: str, reason: str) -> None:
    with pytest.raises(Poison, match=reason) as caught:
        read(answering(307, Location=location))
    assert "hunter2" not in str(caught.value).replace("_hunter2", "")


def test_redirect_to_a_host_that_is_not_listed_is_poison() -> None:
    with pytest.raises(Poison, match=r"HEADRACE_HTTP_HOSTS"):
        read(answering(308, Location="http://other.example.org/"), reader=documents(None, "docs.example.org"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 451, 204, 206, 300, 304])
def test_status_that_another_try_will_not_change_is_poison(status: int) -> None:
    with pytest.raises(Poison, match=f"answered {status}"):
        read(answering(status), "/a.txt?hunter2")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_status_that_may_change_is_retryable_and_says_nothing_about_others(status: int) -> None:
    with pytest.raises(Isolated, match=f"answered {status}") as caught:
        read(answering(status))
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("999999999999", RETRY_AFTER_CAP_S), ("soon", None)])
def test_retry_after_is_obeyed_within_reason(value: str, seconds: float | None) -> None:
    with pytest.raises(Isolated) as caught:
        read(answering(429, Retry_After=value))
    assert caught.value.retry_after_s == seconds


def test_document_of_exactly_the_limit_is_read_and_one_more_byte_is_poison() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()  # chunked: says no length
        await response.prepare(request)
        await response.write(b"x" * int(request.path[1:]))
        return response

    assert len(read(handler, "/1000", max_bytes=1000)) == 1000
    with pytest.raises(Poison, match="more than 1000 bytes"):
        read(handler, "/1001", max_bytes=1000)


def test_announced_length_beyond_the_limit_is_refused_unread() -> None:
    server = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n")
    with pytest.raises(Poison, match=r"has 5000000000 bytes; the limit is 100000"):
        server(from_port())


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
def test_endless_body_is_read_to_the_limit_and_no_further(head: bytes) -> None:
    piece = b"x" * 4096
    endless = b"1000\r\n" + piece + b"\r\n" if b"chunked" in head else piece
    with pytest.raises(Poison, match="more than 100000 bytes"):
        raw(head, endless=endless)(from_port())


def test_endless_header_ends() -> None:
    with pytest.raises(Retryable):
        raw(b"HTTP/1.1 200 OK\r\nX: ", endless=b"x" * 4096)(from_port())


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 "]
)
def test_slow_drip_ends_in_time(head: bytes) -> None:
    with pytest.raises(TookTooLong, match=r"within 0\.3 s"):
        raw(head, endless=b"x", pause_s=0.02)(from_port(documents(timeout_s=0.3)))


@pytest.mark.parametrize("length", [b"500", b"2"])
def test_body_shorter_or_longer_than_announced_is_retryable(length: bytes) -> None:
    with pytest.raises(Isolated, match="cut the call"):
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\nshort")(from_port())


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b""]
)
def test_what_is_no_http_is_retryable(said: bytes) -> None:
    with pytest.raises(Isolated):
        raw(said)(from_port())


def packed(encoding: str, body: bytes) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        del request
        return web.Response(body=body, headers={"Content-Encoding": encoding})

    return handler


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_document_is_unpacked_though_nobody_asked_for_it(
    encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    assert read(packed(encoding, pack(b"content"))) == b"content"


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bomb_is_unpacked_to_the_limit_and_no_further(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(Poison, match="more than 100000 bytes"):
        read(packed(encoding, pack(bytes(20_000_000))))


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"content"),
        ("gzip", gzip.compress(b"content")[:-4]),
        ("gzip", gzip.compress(b"a") + gzip.compress(b"b")),
        ("br", b"content"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"content"))),
    ],
)
def test_what_cannot_be_unpacked_is_poison(encoding: str, body: bytes) -> None:
    with pytest.raises(Poison, match=r"compressed|Content-Encoding"):
        read(packed(encoding, body))


def test_refused_connection_and_unknown_host_are_retryable() -> None:
    async def main() -> None:
        async with serving(hello) as server:
            uri = at(server, "/?hunter2")
        with pytest.raises(Isolated, match="cannot be reached") as caught:
            await documents().read(uri, max_bytes=LIMIT)
        assert "hunter2" not in str(caught.value)

    async def unknown(host: str) -> Sequence[str]:
        raise OSError(f"{host} is unknown")

    asyncio.run(main())
    for look_up in (unknown, Names([])):
        with pytest.raises(Isolated, match="cannot be reached"):
            asyncio.run(HttpDocuments(["*"], look_up=look_up).read("http://nowhere.example.org/", max_bytes=1))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of docs.example.org, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "docs.example.org")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("docs.example.org")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(encoding))
    return path


def read_over_tls(
    handler: Handler, certificate: Path, *, trusted: bool = True, host: str = "docs.example.org"
) -> bytes:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=str(certificate)) if trusted else None
    reader = HttpDocuments(["*"], allowed_networks=LOOPBACK, look_up=Names(["127.0.0.1"]), tls=trust)

    async def main() -> bytes:
        async with serving(handler, tls) as server:
            return await reader.read(at(server, "/a.txt", host), max_bytes=LIMIT)

    return asyncio.run(main())


def test_document_is_read_over_tls_under_the_name_that_was_asked_for(certificate: Path) -> None:
    assert read_over_tls(hello, certificate) == b"content"


@pytest.mark.parametrize(("trusted", "host"), [(False, "docs.example.org"), (True, "other.example.org")])
def test_certificate_that_proves_nothing_is_poison(certificate: Path, trusted: bool, host: str) -> None:  # noqa: FBT001
    with pytest.raises(Poison, match="certificate is not valid"):
        read_over_tls(hello, certificate, trusted=trusted, host=host)


def test_redirect_from_https_to_http_is_poison(certificate: Path) -> None:
    with pytest.raises(Poison, match="from https to http"):
        read_over_tls(answering(302, Location="http://docs.example.org/"), certificate)


def test_name_server_that_is_silent_costs_no_more_than_the_time_of_a_read() -> None:
    async def silent(host: str) -> Sequence[str]:
        del host
        await asyncio.Event().wait()
        return []

    with pytest.raises(TookTooLong):
        asyncio.run(HttpDocuments(["*"], look_up=silent, timeout_s=0.05).read("http://a.org/", max_bytes=1))


def test_server_without_tls_is_retryable_over_https() -> None:
    async def main() -> None:
        async with serving(hello) as server:
            await documents().read(at(server, "/").replace("http:", "https:"), max_bytes=LIMIT)

    with pytest.raises(Isolated, match="cannot be reached"):
        asyncio.run(main())


def test_one_instance_serves_several_event_loops() -> None:
    reader = documents()
    assert read(hello, reader=reader) == read(hello, reader=reader) == b"content"


def test_object_store_leaves_http_to_it(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path), http_hosts=("localhost",))
    for uri, reason in (("HTTP://localhost/a", "not public"), ("https://a.org/", "HEADRACE_HTTP_HOSTS")):
        with pytest.raises(Poison, match=reason):
            asyncio.run(store.read(uri, max_bytes=LIMIT))
