"""Documents by http(s) URI, fetched from hosts that the operator allowed, and from public addresses only.

Guarantees: the connection goes to the very address that was checked, at each redirect anew, so that neither a name
server nor a web server can lead a read into the operator's own network; no more than `max_bytes` + 1 bytes are read or
unpacked; a read ends in time, however slowly the server drips. What a server failed at never counts against the object
store: whoever uploads a URI chooses the server.
"""

import asyncio
import re
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from connectors.retry_after import retry_after_s
from schemas.errors import Fatal, HeadraceError, Isolated, Poison, TookTooLong

MAX_REDIRECTS = 5  # browsers follow 20; a document behind more than a few is behind a login page
CONNECT_TIMEOUT_S = 10.0  # per address
TOTAL_TIMEOUT_S = 60.0  # of all redirects together: half of what reading and parsing may take
RETRY_AFTER_CAP_S = 300.0  # a stranger's server must not keep a document waiting, in memory, for a year
LOOK_UP_THREADS = 4  # as many as documents are read at once

SCHEMES = frozenset({"http", "https"})

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
LookUp = Callable[[str], Awaitable[Sequence[str]]]
"""From a host's name to its addresses. Raises OSError if there are none."""

_HEADERS = {"User-Agent": "headrace", "Accept": "*/*", "Accept-Encoding": "identity"}
_FOUND = frozenset({200, 203})
_MOVED = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 425, 429})
_SERVER_ERROR = 500
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS

_PROPER = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")  # RFC 3986
_BREAKING = re.compile(r"[\x00-\x20\x7f\\]")
_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATTERN = re.compile(r"\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|[0-9a-f:.]*:[0-9a-f:.]*")

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_IPV4_IN_LAST_BITS = (  # of an IPv6 address: what a gateway may take for an IPv4 address
    IPv6Network("::ffff:0:0/96"),  # mapped
    IPv6Network("::ffff:0:0:0/96"),  # translated
    IPv6Network("::/96"),  # compatible
    IPv6Network("64:ff9b::/96"),  # NAT64
)
_NEVER: tuple[Network, ...] = (  # what `is_global` of the Pythons that we support takes for public
    IPv4Network("168.63.129.16/32"),  # Azure's platform service, which trusts whoever asks from inside
    IPv4Network("192.0.0.0/24"),  # IETF protocol assignments
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv6Network("2001::/23"),  # IETF protocol assignments, Teredo among them
    IPv6Network("3fff::/20"),  # documentation
)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, whatever IPv4 address it may hold inside."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        inside = _embedded(address)
        if inside is not None:
            return is_public(inside)
        if address not in _GLOBAL_UNICAST:
            return False
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address in network for network in _NEVER)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address.sixtofour is not None:
        return address.sixtofour
    if any(address in network for network in _IPV4_IN_LAST_BITS):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None


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
        self._allowed_networks = tuple(allowed_networks)
        self._look_up = look_up or _ThreadedLookUp()
        self._tls = tls
        self._timeout_s = timeout_s

    async def read(self, uri: str, *, max_bytes: int) -> bytes:
        """The document's bytes.

        Raises:
            Poison: not allowed, missing, too large, refused, or with a certificate that proves nothing.
            Isolated: the server is out of reach or broken.
            TookTooLong: it was too slow.
        """
        url = _parse(uri)
        try:
            async with asyncio.timeout(self._timeout_s), self._session() as session:
                for _ in range(MAX_REDIRECTS + 1):
                    self._check(url)
                    with _classed(shown(url)):
                        found = await _fetch(session, url, max_bytes)
                    if not isinstance(found, URL):
                        return found
                    url = found
        except TimeoutError as error:
            raise TookTooLong(f"{shown(url)} was not read within {self._timeout_s:g} s") from error
        raise Poison(f"{shown(_parse(uri))} is redirected more than {MAX_REDIRECTS} times")

    def _session(self) -> aiohttp.ClientSession:
        resolver = _CheckedResolver(self._look_up, self._may_connect)
        connector = aiohttp.TCPConnector(
            resolver=resolver, ssl=self._tls or True, use_dns_cache=False, force_close=True
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # it has no bound over the whole body
            trust_env=False,  # a proxy would look names up by itself
        )

    def _check(self, url: URL) -> None:
        """Raises Poison unless the URL may be asked for; the addresses of a name are left to the resolver."""
        if url.raw_user is not None or url.raw_password is not None or "@" in url.raw_authority:
            raise Poison(
                f"{shown(url)} holds credentials, which would be stored with every event: sign the URL instead"
            )
        host = _host(url)
        if not any(_matches(host, pattern) for pattern in self._patterns):
            raise Poison(
                f"{shown(url)}: host {host} is not among those that may be read; HEADRACE_HTTP_HOSTS lists them"
            )
        address = _literal(host)
        if address is None:
            if not _HOST.fullmatch(host) or _NUMBER.fullmatch(host.rpartition(".")[2]):
                raise Poison(f"{shown(url)}: {host!r} is neither a host's name nor an address in its usual form")
        elif not self._may_connect(address):
            raise _not_public(host)

    def _may_connect(self, address: Address) -> bool:
        return is_public(address) or any(address in network for network in self._allowed_networks)


class _ThreadedLookUp:
    """The system's own, in threads of its own: a name server that is silent holds up no file and no object store."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOK_UP_THREADS, thread_name_prefix="look-up")

    async def __call__(self, host: str) -> Sequence[str]:
        found = await asyncio.get_running_loop().run_in_executor(self._threads, _addresses, host)
        return list(dict.fromkeys(found))


def _addresses(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(address[0]) for *_, address in found]


class _CheckedResolver(AbstractResolver):
    """Gives a connection addresses that have been checked, and nothing else: it is never looked up again."""

    def __init__(self, look_up: LookUp, may_connect: Callable[[Address], bool]) -> None:
        self._look_up = look_up
        self._may_connect = may_connect

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        del family
        addresses = [ip_address(each) for each in await self._look_up(host)]
        if not addresses:
            raise OSError(f"{host} has no address")
        if not all(map(self._may_connect, addresses)):  # one wrong among them is a trap, or somebody's mistake
            raise _not_public(host)
        return [
            ResolveResult(
                hostname=host,
                host=str(each),
                port=port,
                family=socket.AF_INET if each.version == 4 else socket.AF_INET6,  # noqa: PLR2004  # IPv4
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for each in addresses
        ]

    async def close(self) -> None:
        """Nothing to close."""


def _not_public(host: str) -> Poison:
    # Not the address: whoever reads dead letters must not learn what the operator's name server knows.
    return Poison(f"host {host} leads to an address that is not public; documents are read from public ones only")


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
    target = _parse(location, base=url)
    if url.scheme == "https" and target.scheme != "https":
        raise Poison(f"{shown(url)} is redirected from https to {target.scheme}: not followed")
    return target


def _refusal(url: URL, response: aiohttp.ClientResponse) -> HeadraceError:
    message = f"{shown(url)}: the server answered {response.status}"
    if response.status in _TRY_AGAIN or response.status >= _SERVER_ERROR:
        wait_s = retry_after_s(response.headers.get("Retry-After"))
        return Isolated(message, retry_after_s=None if wait_s is None else min(wait_s, RETRY_AFTER_CAP_S))
    return Poison(message)


@contextmanager
def _classed(name: str) -> Iterator[None]:
    """Class what aiohttp raises. Its own messages may quote the whole URL: only their kind is shown."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        # The same certificate will be there in a minute.
        raise Poison(f"{name}: the server's certificate is not valid for it: {_why(error)}") from error
    except aiohttp.ClientConnectorError as error:  # unknown, refused, or no TLS
        raise Isolated(f"{name} cannot be reached: {type(error).__name__}") from error
    except aiohttp.ConnectionTimeoutError as error:
        raise Isolated(f"{name} cannot be reached within {CONNECT_TIMEOUT_S:g} s") from error
    except ValueError as error:  # InvalidURL among them: what aiohttp finds wrong with a URL
        raise Poison(f"{name} cannot be asked for: {type(error).__name__}") from error
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise
        raise Isolated(f"{name}: the server cut the call or speaks no HTTP: {type(error).__name__}") from error


def _why(error: aiohttp.ClientConnectorCertificateError) -> str:
    return str(getattr(error.certificate_error, "verify_message", "") or type(error.certificate_error).__name__)


def _parse(uri: str, *, base: URL | None = None) -> URL:
    """The URL, sent byte for byte as it came if it is a proper one: a signature is about these bytes."""
    if not _BREAKING.search(uri):  # where a line or a host ends is a matter of opinion then
        with suppress(ValueError):
            parsed = URL(uri, encoded=_PROPER.fullmatch(uri) is not None)
            url = parsed if base is None else base.join(parsed)
            if url.scheme in SCHEMES and url.raw_host and url.port is not None:
                return url.with_fragment(None)
    raise Poison(f"{without_secrets(uri)!r:.300} is no http(s) URL with a host")


def _host(url: URL) -> str:
    return _usual((url.raw_host or "").rstrip(".").lower())


def _usual(host: str) -> str:
    """An address in its one usual form, as it is compared; a name as it is."""
    address = _literal(host)
    return host if address is None else str(address)


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _matches(host: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and _literal(host) is None
    return host == pattern


def _pattern(setting: str) -> str:
    """A host of the setting as it is compared. Raises Fatal if it is none."""
    stars = "*." if setting.startswith("*.") else ""
    host = setting.removeprefix("*.").rstrip(".").lower()
    with suppress(ValueError):  # an international name as it is asked for
        host = URL.build(scheme="http", host=host).raw_host or "" if not host.isascii() else host
    pattern = stars + _usual(host.removeprefix("[").removesuffix("]"))
    if not _PATTERN.fullmatch(pattern):
        raise Fatal(f"HEADRACE_HTTP_HOSTS={setting}: not a host; write `www.example.org`, `*.example.org` or `*`")
    return pattern


def shown(url: URL) -> str:
    """The URL for messages: without credentials, query or fragment, any of which may be secret."""
    port = "" if url.explicit_port is None else f":{url.explicit_port}"
    host = f"[{url.raw_host}]" if ":" in (url.raw_host or "") else url.raw_host
    return f"{url.scheme}://{host}{port}{url.raw_path}"


def without_secrets(uri: str) -> str:
    """The same of what may be no URL at all: rather too little than too much."""
    return re.sub(r"(?s)//.*@", "//", re.split(r"[?#]", uri, maxsplit=1)[0])
