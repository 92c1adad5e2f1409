"""API keys: who asks, what they may see, and how often.

A key is 32 random bytes, so its SHA-256 is as good as a slow hash, and a look-up by it reveals nothing by its time.
Without keys the gateway is open, and the command that starts it serves loopback alone.
"""

import hashlib
import json
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.base import SecurityBase
from pydantic import TypeAdapter, ValidationError
from starlette.requests import HTTPConnection

from gateway.problems import Problem
from schemas.event import Tenant

ALL = "*"
"""In the place of a tenant: a key that sees all."""

PREFIX = "hr_"
_MOST_BUCKETS = 10_000  # clients that are remembered; of more, those that were silent longest begin anew
_FAILURES_PER_S = 1.0  # per client address, which a proxy's clients share: so whoever has a key is not held up by them
_FAILURES_BURST = 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TENANT: TypeAdapter[str] = TypeAdapter(Tenant)


def new_key() -> str:
    """A key that nobody has."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """What is configured in the place of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class Caller:
    """Who asks: a tenant, or `*` for whoever sees all."""

    tenant: str
    open: bool = False  # no keys are configured

    def sees(self, tenant: str) -> bool:
        """Whether what is this tenant's exists for them."""
        return self.tenant in {ALL, tenant}

    @property
    def sees_all(self) -> bool:
        """Whether there is no restriction."""
        return self.tenant == ALL

    def scope(self, asked: str | None) -> str | None:
        """Whose things a list shows, None for everybody's. Raises Problem (403) for another tenant's."""
        if self.sees_all or asked is None:
            return asked if self.sees_all else self.tenant
        return self.acting_for(asked)

    def acting_for(self, asked: str | None, *, default: str = "default") -> str:
        """The tenant that something is done for. Raises Problem: 403 for another one, 422 for what is no tenant."""
        if asked is not None:
            try:
                _TENANT.validate_python(asked)
            except ValidationError:
                raise Problem(
                    422, "invalid", "tenant: letters, digits and ._-, 64 at most, the first no sign"
                ) from None
        if self.sees_all:
            return default if asked is None else asked
        if asked not in {None, self.tenant}:
            raise Problem(403, "another-tenant", f"this key is tenant {self.tenant}'s: leave the tenant out")
        return self.tenant


class Buckets:
    """Token buckets by name: `burst` at once, `per_s` on average. Holds the last MOST used, no more."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._clock = clock
        self._filled: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def take(self, name: str) -> float:
        """Take a token: 0; or how long to wait for one, in seconds."""
        tokens = self._tokens(name)
        taken = tokens >= 1.0
        self._filled[name] = (tokens - taken, self._clock())
        self._filled.move_to_end(name)
        if len(self._filled) > _MOST_BUCKETS:
            self._filled.popitem(last=False)
        return 0.0 if taken else (1.0 - tokens) / self._per_s

    def _tokens(self, name: str) -> float:
        tokens, at = self._filled.get(name, (self._burst, self._clock()))
        return min(self._burst, tokens + (self._clock() - at) * self._per_s)


class Keys:
    """Who may use the gateway: tenants by the SHA-256 of their keys."""

    def __init__(self, tenants: Mapping[str, str], *, per_s: float = 50.0, burst: int = 200) -> None:
        self._tenants = dict(tenants)
        self._requests = Buckets(per_s, burst)
        self._failures = Buckets(_FAILURES_PER_S, _FAILURES_BURST)

    @property
    def open(self) -> bool:
        """No key is asked for."""
        return not self._tenants

    def caller(self, key: str | None, client: str) -> Caller:
        """Who that is. `client`: the address. Raises Problem: 401, or 429 if there were too many requests."""
        if self.open:
            return Caller(ALL, open=True)
        digest = None if key is None else digest_of(key)
        tenant = None if digest is None else self._tenants.get(digest)
        if digest is None or tenant is None:
            if (wait_s := self._failures.take(client)) > 0:
                raise _too_many(wait_s, "requests without a key that is known, from this address")
            raise Problem(
                401,
                "no-key" if key is None else "unknown-key",
                "send an API key: Authorization: Bearer KEY, or X-API-Key: KEY" if key is None else "unknown API key",
                headers={"WWW-Authenticate": 'Bearer realm="headrace"'},
            )
        if (wait_s := self._requests.take(digest)) > 0:
            raise _too_many(wait_s, "requests with this key")
        return Caller(tenant)


def _too_many(wait_s: float, what: str) -> Problem:
    seconds = max(1, math.ceil(wait_s))
    return Problem(429, "too-many", f"too many {what}; go on in {seconds} s", headers={"Retry-After": str(seconds)})


def configured(entries: Mapping[str, str], file: Path | None) -> dict[str, str]:
    """The keys of both variables. Raises ValueError with one line that names the variable."""
    keys = dict(_checked(entries, "HEADRACE_API_KEYS"))
    if file is not None:
        where = f"HEADRACE_API_KEYS_FILE={file}"
        try:
            found = json.loads(file.read_text())
        except OSError as error:
            raise ValueError(f"{where}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f'{where}: not JSON, as in {{"<sha256>": "tenant"}}') from error
        if not isinstance(found, dict):
            raise ValueError(f'{where}: a JSON object is needed, {{"<sha256>": "tenant"}}')
        for digest, tenant in _checked(found, where).items():
            if keys.setdefault(digest, tenant) != tenant:
                raise ValueError(f"{where}: the key {digest[:8]}... is another tenant's in HEADRACE_API_KEYS")
    return keys


def _checked(entries: Mapping[str, object], variable: str) -> dict[str, str]:
    """Whole entries are never shown: somebody may have put a key there in the place of its SHA-256."""
    checked: dict[str, str] = {}
    for number, (digest, tenant) in enumerate(entries.items(), 1):
        if not _DIGEST.fullmatch(digest):
            raise ValueError(
                f"{variable}: entry {number} does not begin with the SHA-256 of a key, 64 lower-case hexadecimal "
                "digits; make both: headrace keys create TENANT"
            )
        try:
            checked[digest] = ALL if tenant == ALL else _TENANT.validate_python(tenant)
        except ValidationError:
            raise ValueError(
                f"{variable}: entry {number} names no tenant: letters, digits and ._-, or * for all"
            ) from None
    return checked


_BEARER = HTTPBearer(auto_error=False, description="An API key, made by `headrace keys create`.")
HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same in a header of its own.")


class _Authentication(SecurityBase):
    """Finds out who asks, or raises a problem. One dependency, since three take as long as all else of a POST's route.

    To FastAPI it is the first way to send a key; the description of the gateway adds the second.
    """

    def __init__(self) -> None:
        self.model = _BEARER.model
        self.scheme_name = _BEARER.scheme_name

    async def __call__(self, request: Request) -> Caller:
        bearer, header = await _BEARER(request), request.headers.get("x-api-key")
        keys: Keys = request.app.state.keys
        caller = keys.caller(header if bearer is None else bearer.credentials, address_of(request))
        request.scope["headrace.tenant"] = caller.tenant  # for the access log
        return caller


authenticate = _Authentication()
Authenticated = Annotated[Caller, Depends(authenticate)]
"""Annotates the parameter of a route that has to know who asks."""


def address_of(connection: HTTPConnection) -> str:
    """The client's address, without its port."""
    return "" if connection.client is None else connection.client.host
