"""Callbacks over HTTP, signed, to public addresses only.

Guarantees: those of `connectors.public_address`; no redirect is followed; nothing is sent unsigned; a call ends in
time, however slowly the receiver drips, and of its answer only status and headers are read. Errors name the receiver's
host alone: the paths of callbacks are secrets often enough.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime

import aiohttp
from yarl import URL

from connectors.public_address import PublicAddresses, classed
from connectors.retry_after import retry_after_s
from connectors.tracing.off import NoTracing
from connectors.tracing.port import Tracer, outgoing_call
from connectors.web_url import parse
from connectors.webhook.signature import Signatures
from schemas.errors import GaveUp, HeadraceError, Isolated, Poison, TookTooLong
from schemas.event import utc_now

TIMEOUT_S = 15.0  # of name, connection and answer together: what Standard Webhooks recommends at least

_HEADERS = {"User-Agent": "headrace", "Content-Type": "application/json"}
_TAKEN = range(200, 300)
_MOVED = range(300, 400)
_GONE = 410


class HttpWebhooks:
    """Each call has a connection of its own, so it may be used from any event loop.

    secrets: by tenant, `*` for all others (HEADRACE_WEBHOOK_SECRETS). Raises ValueError for one that is none.
    """

    def __init__(
        self,
        secrets: Mapping[str, str],
        addresses: PublicAddresses,
        *,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], datetime] = utc_now,
        tracer: Tracer = NoTracing(),  # noqa: B008  # without state
    ) -> None:
        self._signatures = Signatures(secrets)
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._clock = clock
        self._tracer = tracer

    async def post(self, url: str, *, tenant: str, webhook_id: str, body: bytes) -> None:
        """As the port says: 2xx is taken, 410 is the end, everything else is worth another attempt."""
        signed = self._signatures.headers(tenant, webhook_id, self._clock(), body)
        if signed is None:
            raise GaveUp(
                f"tenant {tenant} has no secret to sign callbacks with: add it, or `*`, to HEADRACE_WEBHOOK_SECRETS, "
                "and redrive this"
            )
        target = parse(url)
        name = str(target.origin())
        self._addresses.check(target, name)
        with outgoing_call(self._tracer, "POST callback", **{"server.address": target.host or ""}) as span:
            headers = _HEADERS | signed | span.http_headers
            try:
                async with asyncio.timeout(self._timeout_s), self._addresses.session(headers) as session:
                    with classed(name):
                        await _post(session, target, body, name)
            except TimeoutError as error:
                raise TookTooLong(f"{name} did not answer within {self._timeout_s:g} s") from error


async def _post(session: aiohttp.ClientSession, url: URL, body: bytes, name: str) -> None:
    try:
        async with session.post(url, data=body, allow_redirects=False) as response:
            response.close()
            if response.status not in _TAKEN:
                raise _refusal(name, response)
    except aiohttp.ClientConnectorCertificateError as error:  # which its owner can renew within a day
        raise Isolated(f"{name}: the server's certificate is not valid for it") from error


def _refusal(name: str, response: aiohttp.ClientResponse) -> HeadraceError:
    message = f"{name}: the server answered {response.status}"
    if response.status == _GONE:
        return Poison(f"{message}: it wants no more callbacks")
    if response.status in _MOVED:
        message += ", and redirects are not followed: name the place itself"
    return Isolated(message, retry_after_s=retry_after_s(response.headers.get("Retry-After")))
