"""HTTP to hosts that strangers have named, on public addresses only.

Guarantee: a connection goes to the very address that was checked, and a name is never looked up again, so that no name
server can lead a call into the operator's own network. Whoever follows a redirect must `check` its target anew.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from connectors.web_url import Address, host_of, literal
from schemas.errors import Isolated, Poison

CONNECT_TIMEOUT_S = 10.0  # per address
LOOK_UPS = 4  # as many as documents are read at once

Network = IPv4Network | IPv6Network
LookUp = Callable[[str], Awaitable[Sequence[str]]]
"""From a host's name to its addresses. Raises OSError if there are none."""

_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

EVERYWHERE = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
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


class PublicAddresses:
    """Public addresses, and those of `allowed_networks`: what may be connected to.

    tls: whose certificates are trusted; by default those of the system's authorities.
    look_ups: names looked up at once; a silent name server keeps each for half a minute.
    """

    def __init__(
        self,
        allowed_networks: Collection[Network] = (),
        *,
        look_up: LookUp | None = None,
        tls: ssl.SSLContext | None = None,
        look_ups: int = LOOK_UPS,
    ) -> None:
        self._allowed_networks = tuple(allowed_networks)
        self._look_up = look_up or _ThreadedLookUp(look_ups)
        self._tls = tls

    def check(self, url: URL, name: str) -> None:
        """Raises Poison, about `name`, unless the URL may be asked for; a host's addresses are left to the resolver."""
        if url.raw_user is not None or url.raw_password is not None or "@" in url.raw_authority:
            raise Poison(f"{name} holds credentials, which would be stored with every event: sign the URL instead")
        host = host_of(url)
        address = literal(host)
        if address is None:
            if not _HOST.fullmatch(host) or _NUMBER.fullmatch(host.rpartition(".")[2]):
                raise Poison(f"{name}: {host!r} is neither a host's name nor an address in its usual form")
        elif not self._may_connect(address):
            raise _not_public(host)

    def session(self, headers: Mapping[str, str]) -> aiohttp.ClientSession:
        """A session that connects to nothing else, for URLs that have been checked. It ends no call by itself."""
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._look_up, self._may_connect),
            ssl=self._tls or True,
            use_dns_cache=False,
            force_close=True,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # it has no bound over the whole body
            trust_env=False,  # a proxy would look names up by itself
        )

    def _may_connect(self, address: Address) -> bool:
        return is_public(address) or any(address in network for network in self._allowed_networks)


class _ThreadedLookUp:
    """The system's own, in threads of its own: a name server that is silent holds up no file and no object store."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="look-up")

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
    return Poison(f"host {host} leads to an address that is not public; only public ones are connected to")


@contextmanager
def classed(name: str) -> Iterator[None]:
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
