"""Documents by http(s) URI, fetched from hosts that the operator allowed, and from public addresses only.

Guarantees: those of `connectors.public_address`, at each redirect anew, so that neither a name server nor a web server
can lead a read into the operator's own network; no more than `max_bytes` + 1 bytes
are read or unpacked; a read ends in time, however slowly the server drips. What a server failed at never counts against
the object store: whoever uploads a URI chooses the server.
"""

import asyncio
import re
import ssl
import zlib
from collections.abc import Collection
from contextlib import suppress

import aiohttp
from yarl import URL

from connectors.public_address import LookUp, Network, PublicAddresses, classed
from connectors.retry_after import retry_after_s
from connectors.web_url import host_of, literal, parse, shown, usual
from schemas.errors import Fatal, HeadraceError, Isolated, Poison, TookTooLong

MAX_REDIRECTS = 5  # browsers follow 20; a document behind more than a few is behind a login page
TOTAL_TIMEOUT_S = 60.0  # of all redirects together: half of what reading and parsing may take
RETRY_AFTER_CAP_S = 300.0  # a stranger's server must not keep a document waiting, in memory, for a year

_HEADERS = {"User-Agent": "headrace", "Accept": "*/*", "Accept-Encoding": "identity"}
_FOUND = frozenset({200, 203})
_MOVED = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 425, 429})
_SERVER_ERROR = 500
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS

_PATTERN = re.compile(r"\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|[0-9a-f:.]*:[0-9a-f:.]*")


class HttpDocuments:
    """Fetches documents by URI. Each read has a connection of its own, so it may be used from any event loop.

    hosts: `www.example.org`, `*.example.org` for its subdomains, `*` for any (HEADRACE_HTTP_HOSTS); none by default.
    allowed_networks: what may be read besides public addresses. For tests, whose servers are on loopback.
    tls: whose certificates are trusted; by default those of the system's authorities.
    """

    def __init__(
        self,
        hosts: Collection[str] = (),
        *,
        allowed_networks: Collection[Network] = (),
        look_up: LookUp | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TOTAL_TIMEOUT_S,
    ) -> None:
        self._patterns = frozenset(map(_pattern, hosts))
        self._addresses = PublicAddresses(allowed_networks, look_up=look_up, tls=tls)
        self._timeout_s = timeout_s

    async def read(self, uri: str, *, max_bytes: int) -> bytes:
        """The document's bytes.

        Raises:
            Poison: not allowed, missing, too large, refused, or with a certificate that proves nothing.
            Isolated: the server is out of reach or broken.
            TookTooLong: it was too slow.
        """
        url = parse(uri)
        try:
            async with asyncio.timeout(self._timeout_s), self._addresses.session(_HEADERS) as session:
                for _ in range(MAX_REDIRECTS + 1):
                    self._check(url)
                    with classed(shown(url)):
                        found = await _fetch(session, url, max_bytes)
                    if not isinstance(found, URL):
                        return found
                    url = found
        except TimeoutError as error:
            raise TookTooLong(f"{shown(url)} was not read within {self._timeout_s:g} s") from error
        raise Poison(f"{shown(parse(uri))} is redirected more than {MAX_REDIRECTS} times")

    def _check(self, url: URL) -> None:
        """Raises Poison unless the URL may be asked for; the addresses of a name are left to the resolver."""
        host = host_of(url)
        if not any(_matches(host, pattern) for pattern in self._patterns):
            raise Poison(
                f"{shown(url)}: host {host} is not among those that may be read; HEADRACE_HTTP_HOSTS lists them"
            )
        self._addresses.check(url, shown(url))


async def _fetch(session: aiohttp.ClientSession, url: URL, max_bytes: int) -> bytes | URL:
    """The bytes behind a URL, or where it redirects to."""
    async with session.get(url, allow_redirects=False) as response:
        try:
            if response.status in _MOVED:
                return _target(url, response.headers.get("Location"))
            if response.status not in _FOUND:
                raise _refusal(url, response)
            packed = await _body(response, max_bytes, shown(url))
            encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        finally:
            response.close()
    match encoding:
        case "identity" | "":
            return packed
        case "gzip" | "x-gzip" | "deflate":
            return await asyncio.to_thread(_unpack, packed, max_bytes, shown(url))
        case _:
            raise Poison(f"{shown(url)} comes with Content-Encoding {encoding!r:.50}, though we asked for none")


async def _body(response: aiohttp.ClientResponse, max_bytes: int, name: str) -> bytes:
    if response.content_length is not None and response.content_length > max_bytes:
        raise Poison(f"document {name} has {response.content_length} bytes; the limit is {max_bytes}")
    data = bytearray()
    while piece := await response.content.read(max_bytes + 1 - len(data)):
        data += piece
        if len(data) > max_bytes:
            raise _too_large(name, max_bytes)
    return bytes(data)


def _unpack(packed: bytes, max_bytes: int, name: str) -> bytes:
    """Unpack one gzip or zlib stream, no further than the limit."""
    unpacking = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        data = unpacking.decompress(packed, max_bytes + 1)
    except zlib.error as error:
        raise Poison(f"{name} says that it is compressed, and is not: {error}") from error
    if len(data) > max_bytes:
        raise _too_large(name, max_bytes)
    if not unpacking.eof or unpacking.unused_data:
        raise Poison(f"{name} is compressed and does not end where its compressed data does")
    return data


def _too_large(name: str, max_bytes: int) -> Poison:
    return Poison(f"document {name} has more than {max_bytes} bytes, which is the limit")


def _target(url: URL, location: str | None) -> URL:
    if not location:
        raise Poison(f"{shown(url)} is redirected without saying where to")
    target = parse(location, base=url)
    if url.scheme == "https" and target.scheme != "https":
        raise Poison(f"{shown(url)} is redirected from https to {target.scheme}: not followed")
    return target


def _refusal(url: URL, response: aiohttp.ClientResponse) -> HeadraceError:
    message = f"{shown(url)}: the server answered {response.status}"
    if response.status in _TRY_AGAIN or response.status >= _SERVER_ERROR:
        wait_s = retry_after_s(response.headers.get("Retry-After"))
        return Isolated(message, retry_after_s=None if wait_s is None else min(wait_s, RETRY_AFTER_CAP_S))
    return Poison(message)


def _matches(host: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and literal(host) is None
    return host == pattern


def _pattern(setting: str) -> str:
    """A host of the setting as it is compared. Raises Fatal if it is none."""
    stars = "*." if setting.startswith("*.") else ""
    host = setting.removeprefix("*.").rstrip(".").lower()
    with suppress(ValueError):  # an international name as it is asked for
        host = URL.build(scheme="http", host=host).raw_host or "" if not host.isascii() else host
    pattern = stars + usual(host.removeprefix("[").removesuffix("]"))
    if not _PATTERN.fullmatch(pattern):
        raise Fatal(f"HEADRACE_HTTP_HOSTS={setting}: not a host; write `www.example.org`, `*.example.org` or `*`")
    return pattern
